"""Several tasks on several splits for several models: planned and checked first, each split embedded once."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.embeddings import Embeddings, EvaluationError
from plip_jax.evaluation.examples import EncodeImages, EncodeImagesOfModels, Examples, RecordLike
from plip_jax.evaluation.task import TEST, EncodeText, Inputs, Model, Task, TaskResult
from plip_jax.evaluation.tasks import make_task

OpenExamples = Callable[[str, str | None], Sequence[RecordLike]]
"""Folder and split -> records."""


@dataclasses.dataclass(frozen=True)
class PlannedTask:
    """A task of a config, checked.

    Attributes:
        name: its own, in reports.
        type_name: of its type.
        task: its type.
        config: the settings of its type.
        data: folder of class folders, of records, or of a built set.
        split: of the data; "" for the folder itself.
        published: key of the published numbers of this set; "" for none.
    """

    name: str
    type_name: str
    task: Task
    config: Any
    data: str
    split: str
    published: str = ""

    @property
    def source(self) -> tuple[str, str]:
        """What it scores: tasks with the same source share its embeddings."""
        return self.data, self.split

    @property
    def sources(self) -> dict[str, tuple[str, str]]:
        """All that it reads, by role; "test" is what it scores."""
        others = {role: (self.data, split) for role, split in self.task.splits(self.config).items()}
        return {TEST: self.source, **others}


def plan_tasks(
    tasks: Mapping[str, Mapping[str, Any]],
    sets: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    block: str = "config",
) -> tuple[list[PlannedTask], dict[str, str]]:
    """Read a config's tasks.

    Args:
        tasks: by name, each with ``type``, ``split``, ``data`` or the name of a ``set``, and the settings of its type;
            ``published`` names the numbers it stands beside.
        sets: by name, each with ``data`` (a folder, or "" where it is absent) and ``get`` (where to get it).
        block: where both stand in the config, for messages.

    Returns:
        What can be run, and for each task whose ``data`` is empty what to do about it.

    Raises:
        EvaluationError: a field that is missing, unknown or out of range, or an unknown type or set.
    """
    planned: list[PlannedTask] = []
    absent: dict[str, str] = {}
    for name, fields in tasks.items():
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        here = f"{block}.tasks.{name}"
        missing = [key for key in ("type", "split") if key not in settings]
        missing += ["data (or set)"] * (("data" in settings) == ("set" in settings))
        if missing:
            raise EvaluationError(f"{here}: expected type, split and data (or set), {', '.join(missing)} not there")
        where, get = f"{here}.data", ""
        if "set" in settings:
            set_name = str(settings.pop("set"))
            if set_name not in (sets or {}):
                raise EvaluationError(f"{here}: no set {set_name!r} in {block}.sets; known: {', '.join(sets or {})}")
            found = dict((sets or {})[set_name])
            where, get = f"{block}.sets.{set_name}.data", str(found.get("get", ""))
            settings["data"] = found.get("data", "")
        type_name, data, split = (str(settings.pop(key)) for key in ("type", "data", "split"))
        published = str(settings.pop("published", ""))
        try:
            task, task_config = make_task(type_name, settings)
        except EvaluationError as error:
            raise EvaluationError(f"{here}: {error}") from error
        if data:
            planned.append(PlannedTask(name, type_name, task, task_config, data, split, published))
        else:
            absent[name] = f"no data; {get + '; ' if get else ''}give a folder with --{where}=DIR"
    return planned, absent


class _NoSplitError(Exception):
    """Carries an error of `open_examples` out of the loop over a task's roles."""

    def __init__(self, message: str, *, is_scored: bool) -> None:
        super().__init__(message)
        self.is_scored = is_scored


def open_data(planned: Sequence[PlannedTask], open_examples: OpenExamples) -> dict[tuple[str, str], Examples]:
    """Open each source once and check every task against it; nothing is embedded.

    Args:
        planned: the tasks.
        open_examples: folder and split -> records; `plip_jax.data.examples.open_examples`.

    Raises:
        EvaluationError: labels, captions or prompts that a task cannot use; it is named.
    """
    return open_available(planned, open_examples)[1]


def open_available(
    planned: Sequence[PlannedTask],
    open_examples: OpenExamples,
    *,
    no_split: tuple[type[Exception], ...] = (),
    not_in_set: tuple[type[Exception], ...] = (),
    allow_absent: bool = False,
) -> tuple[list[PlannedTask], dict[tuple[str, str], Examples], dict[str, str]]:
    """`open_data`, passing over the tasks whose split a set does not hold.

    Args:
        planned: the tasks.
        open_examples: as for `open_data`.
        no_split: errors that say that data have no such split.
        not_in_set: those of them that whole sets raise.
        allow_absent: pass over tasks for them; a task that can do without a role goes without it in any case.

    Returns:
        The tasks that can be run, their examples by source, and for each other task why it is absent.

    Raises:
        EvaluationError: a task that cannot be run on its examples, or that may not be passed over and has no split to
            learn from. An error of ``no_split`` is raised as it is where the split is the one to be scored.
    """
    opened: dict[tuple[str, str], Examples] = {}
    kept: list[PlannedTask] = []
    absent: dict[str, str] = {}
    for item in planned:
        try:
            for role, (data, split) in item.sources.items():
                if (data, split) not in opened:
                    try:
                        opened[data, split] = Examples.from_records(open_examples(data, split or None))
                    except no_split as error:
                        if role not in item.task.optional:
                            raise _NoSplitError(str(error), is_scored=role == TEST) from error
        except _NoSplitError as error:
            cause = error.__cause__
            assert cause is not None
            # A folder without the split that is to be scored is a mistake; a built set knows what it holds.
            if error.is_scored and not (allow_absent and isinstance(cause, not_in_set)):
                raise cause from None
            if not allow_absent:
                others = ",".join(one.name for one in planned if one.name != item.name)
                leave_out = f"leave it out with --tasks (the others are {others})" if others else "choose another task"
                raise EvaluationError(
                    f"task {item.name} learns from a split that is not there; {leave_out}: {cause}"
                ) from cause
            absent[item.name] = str(cause)
            continue
        try:
            item.task.check(item.config, data_of(item, opened))
        except ValueError as error:  # a prompt file's errors are its own type
            raise EvaluationError(f"task {item.name} ({' '.join(item.source).strip()}): {error}") from error
        kept.append(item)
    return kept, opened, absent


def lacks(task: Task, model: Model) -> str:
    """Why a model cannot do a task; "" where it can."""
    if "text" in task.needs and model.encode_text is None:
        return "it embeds no text"
    if "tower" in task.needs and model.tower is None:
        return "its weights are not here to be trained"
    return ""


def run_tasks(
    planned: Sequence[PlannedTask],
    data: Mapping[tuple[str, str], Examples],
    model: Model,
    *,
    bootstrap: BootstrapConfig | None = None,
    progress: Callable[[str], object] = lambda name: None,
    on_error: Callable[[str, EvaluationError], object] | None = None,
) -> dict[str, TaskResult]:
    """Run the tasks that a model can do.

    Args:
        planned: the tasks.
        data: by source, from `open_data`.
        model: the one to measure.
        bootstrap: how intervals are made; None for none.
        progress: is told the name of each task before it runs.
        on_error: is told of a task that failed, and the others go on; None to raise.

    Returns:
        By task; what `lacks` names, and what failed, is not there.

    Raises:
        EvaluationError: a task failed and ``on_error`` is None; the message names task and model.
    """
    results = {}
    for item in planned:
        if lacks(item.task, model):
            continue
        progress(item.name)
        try:
            results[item.name] = item.task.run(item.config, Inputs(data_of(item, data), model, bootstrap))
        except EvaluationError as error:
            if on_error is None:
                raise EvaluationError(f"task {item.name}, model {model.name}: {error}") from error
            on_error(item.name, error)
    return results


def run_without(
    planned: Sequence[PlannedTask],
    data: Mapping[tuple[str, str], Examples],
    model: Model,
    results: Mapping[str, TaskResult],
    left_out: Mapping[tuple[str, str], np.ndarray],
    *,
    bootstrap: BootstrapConfig | None = None,
) -> dict[str, dict[str, Any]]:
    """Score the tasks again without some of the scored examples; what was learned for them is not learned anew.

    Args:
        planned: the tasks.
        data: by source, from `open_data`.
        model: the one to measure.
        results: what they gave with all examples.
        left_out: rows of scored sources; a task without any is not scored again.
        bootstrap: how intervals are made; None for none.

    Returns:
        The report of each task, or ``not_scored`` with the reason where too little is left (a class without examples).
    """
    reports: dict[str, dict[str, Any]] = {}
    for item in planned:
        rows = left_out.get(item.source, np.zeros(0, np.int64))
        if item.name not in results or not len(rows):
            continue
        examples = data_of(item, data)
        kept = np.setdiff1d(np.arange(len(examples[TEST])), rows)
        rescore = results[item.name].rescore
        try:
            if rescore is not None:
                reports[item.name] = rescore({examples[TEST].ids[row] for row in rows})
                continue
            examples[TEST] = examples[TEST].subset(kept)
            item.task.check(item.config, examples)
            reports[item.name] = item.task.run(item.config, Inputs(examples, model, bootstrap)).report
        except ValueError as error:  # a prompt file's errors are its own type
            reports[item.name] = {"not_scored": str(error)}
    return reports


def data_of(item: PlannedTask, opened: Mapping[tuple[str, str], Examples]) -> dict[str, Examples]:
    """The examples of a task, by role."""
    optional = item.task.optional
    return {role: opened[source] for role, source in item.sources.items() if source in opened or role not in optional}


def evaluate(
    planned: Sequence[PlannedTask],
    data: Mapping[tuple[str, str], Examples],
    *,
    encode_images: EncodeImages,
    encode_text: EncodeText,
    logit_scale: float | None = None,
) -> dict[str, TaskResult]:
    """Run the tasks; the images of a source that several tasks share are embedded once."""

    def encode_for_one(images: Iterable[bytes], /, *, names: Sequence[str]) -> np.ndarray:
        return np.asarray(encode_images(images, names=names))[None]

    return evaluate_models(
        planned, data, encode_images=encode_for_one, encode_texts=[encode_text], logit_scales=[logit_scale]
    )[0]


def evaluate_models(
    planned: Sequence[PlannedTask],
    data: Mapping[tuple[str, str], Examples],
    *,
    encode_images: EncodeImagesOfModels,
    encode_texts: Sequence[EncodeText],
    logit_scales: Sequence[float | None],
    bootstrap: BootstrapConfig | None = None,
) -> list[dict[str, TaskResult]]:
    """Run the tasks for several models; the images of a source are read once for all of them.

    Args:
        planned: the tasks.
        data: by source, from `open_data`.
        encode_images: by all models at once.
        encode_texts: of each model.
        logit_scales: of each model, exp of the learned one.
        bootstrap: how intervals are made; None for none.

    Returns:
        The results of each model, by task.
    """
    by_examples = {id(examples): source for source, examples in data.items()}

    @functools.cache
    def embeddings_of(source: tuple[str, str]) -> tuple[Embeddings, ...]:
        return data[source].embed_by_models(encode_images)

    def embed(examples: Examples, model: int) -> Embeddings:
        if examples.origin is not None:
            whole, rows = examples.origin
            return embed(whole, model).take(rows)
        return embeddings_of(by_examples[id(examples)])[model]

    models = [
        Model(f"model {number}", functools.partial(embed, model=number), encode_text, logit_scale)
        for number, (encode_text, logit_scale) in enumerate(zip(encode_texts, logit_scales, strict=True))
    ]
    return [run_tasks(planned, data, model, bootstrap=bootstrap) for model in models]
