"""A WiSE-FT sweep: what fine-tuning gains in its own domain against what it costs in general, at each alpha.

The weights are ``(1 - alpha) * start + alpha * end`` (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903); they are
not known here. Owns the choice of the two metrics and the sweep's content; `report` draws it.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.retrieval_task import RetrievalConfig
from plip_jax.evaluation.suite import PlannedTask
from plip_jax.evaluation.task import TaskResult

FORMAT_VERSION = 1
"""Of wise_ft.json: changes when a reader of the older layout would misread the newer one."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """One metric of one task.

    Attributes:
        task: its name in the config.
        metric: one of the task's own.
    """

    task: str
    metric: str


def choose_axes(planned: Sequence[PlannedTask], in_domain: str = "", general: str = "") -> tuple[Axis, Axis]:
    """Choose the in-domain and the general metric, before anything is computed.

    Args:
        planned: the tasks.
        in_domain: ``TASK`` or ``TASK/METRIC``; without a metric it is the task's first one. Empty for the first
            retrieval task, or the first task where there is none.
        general: the same. Empty for the first other task that is no retrieval, or the first other task.

    Raises:
        EvaluationError: an unknown task or metric, the same one twice, or no other task.
    """
    retrieval = [item for item in planned if isinstance(item.config, RetrievalConfig)]
    inside = _read_axis(planned, in_domain, "--in-domain") if in_domain else _headline([*retrieval, *planned][0])
    others = [item for item in planned if item.name != inside.task]
    others.sort(key=lambda item: item in retrieval)  # stable: what is no retrieval comes first
    if not general and not others:
        raise EvaluationError(
            f"WiSE-FT weighs two tasks against each other, and {inside.task} is the only one with data: give another "
            "set its folder, or a second metric of this one with --general=TASK/METRIC"
        )
    outside = _read_axis(planned, general, "--general") if general else _headline(others[0])
    if inside == outside:
        raise EvaluationError(
            f"--in-domain and --general: expected two metrics, got {inside.task}/{inside.metric} twice"
        )
    return inside, outside


def _headline(item: PlannedTask) -> Axis:
    return Axis(item.name, item.task.metric_names(item.config)[0])


def _read_axis(planned: Sequence[PlannedTask], text: str, flag: str) -> Axis:
    task, _, metric = text.partition("/")
    tasks = {item.name: item for item in planned}
    if task not in tasks:
        raise EvaluationError(
            f"{flag}: no task {task!r} is evaluated{_near(task, tasks)}; there are {', '.join(tasks)}"
        )
    known = tasks[task].task.metric_names(tasks[task].config)
    if metric and metric not in known:
        raise EvaluationError(f"{flag}: task {task} has no {metric!r}{_near(metric, known)}; it has {', '.join(known)}")
    return Axis(task, metric or known[0])


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def make_sweep(
    axes: tuple[Axis, Axis],
    start: Mapping[str, Any],
    end: Mapping[str, Any],
    points: Sequence[tuple[float, str, Mapping[str, TaskResult]]],
) -> dict[str, Any]:
    """The content of ``wise_ft.json``.

    Args:
        axes: the in-domain and the general metric.
        start: what says which weights fine-tuning started from, fit for JSON.
        end: the same of those it ended at.
        points: alpha, the hash of its weights, and its results by task.
    """
    in_domain, general = axes
    found = []
    for alpha, weights_hash, results in points:
        metrics = {name: dict(result.report["metrics"]) for name, result in results.items()}
        found.append(
            {
                "alpha": alpha,
                "weights_hash": weights_hash,
                "in_domain": metrics[in_domain.task][in_domain.metric],
                "general": metrics[general.task][general.metric],
                "metrics": metrics,
            }
        )
    return {
        "format_version": FORMAT_VERSION,
        "start": dict(start),
        "end": dict(end),
        "in_domain": dataclasses.asdict(in_domain),
        "general": dataclasses.asdict(general),
        "points": found,
    }


def sweep_rows(sweep: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row an alpha, with every metric of every task, for a table."""
    return [
        {"alpha": point["alpha"], "weights_hash": point["weights_hash"]}
        | {f"{task}/{name}": value for task, metrics in point["metrics"].items() for name, value in metrics.items()}
        for point in sweep["points"]
    ]
