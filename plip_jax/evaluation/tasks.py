"""The table of task types. A new one is a file with its settings, check and run, and a line here."""

import difflib
from collections.abc import Mapping
from typing import Any

from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.few_shot_task import FEW_SHOT
from plip_jax.evaluation.fine_tune_task import FINE_TUNE
from plip_jax.evaluation.image_retrieval_task import IMAGE_RETRIEVAL
from plip_jax.evaluation.linear_probe_task import LINEAR_PROBE
from plip_jax.evaluation.published_probe_task import PUBLISHED_PROBE
from plip_jax.evaluation.retrieval_task import RETRIEVAL
from plip_jax.evaluation.task import Task
from plip_jax.evaluation.zero_shot_task import ZERO_SHOT

TASKS: dict[str, Task] = {
    "zero_shot": ZERO_SHOT,
    "linear_probe": LINEAR_PROBE,
    "published_probe": PUBLISHED_PROBE,
    "few_shot": FEW_SHOT,
    "fine_tune": FINE_TUNE,
    "retrieval": RETRIEVAL,
    "image_retrieval": IMAGE_RETRIEVAL,
}
"""``type`` in a config -> task."""


def make_task(type_name: str, settings: Mapping[str, Any]) -> tuple[Task, Any]:
    """Look a task type up and check its settings.

    Raises:
        EvaluationError: an unknown type or setting (the known ones are listed), or a value out of range.
    """
    if type_name not in TASKS:
        raise EvaluationError(f"unknown task type {type_name!r}; known: {', '.join(TASKS)}")
    task = TASKS[type_name]
    try:
        return task, task.config(**settings)
    except TypeError as error:
        raise EvaluationError(f"task type {type_name}: {error}{_nearest_setting(task, settings)}") from error


def _nearest_setting(task: Task, settings: Mapping[str, Any]) -> str:
    known = list(getattr(task.config, "__dataclass_fields__", ()))
    near = {n for name in settings if name not in known for n in difflib.get_close_matches(name, known, n=1)}
    return f" (known: {', '.join(known)}" + (f"; did you mean {', '.join(sorted(near))}?)" if near else ")")
