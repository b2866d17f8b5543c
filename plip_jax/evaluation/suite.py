"""Several tasks on several splits for several models: planned and checked first, each split embedded once."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from plip_jax.evaluation.embeddings import Embeddings, EvaluationError
from plip_jax.evaluation.examples import EncodeImages, EncodeImagesOfModels, Examples, RecordLike
from plip_jax.evaluation.task import TEST, EncodeText, Inputs, Model, Task, TaskResult
from plip_jax.evaluation.tasks import make_task


@dataclasses.dataclass(frozen=True)
class PlannedTask:
    """A task of a config, checked.

    Attributes:
        name: its own, in reports.
        task: its type.
        config: the settings of its type.
        data: folder of class folders, or of records.
        split: of the data; "" for the folder itself.
    """

    name: str
    task: Task
    config: Any
    data: str
    split: str

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
    tasks: Mapping[str, Mapping[str, Any]], *, block: str = "config.tasks"
) -> tuple[list[PlannedTask], dict[str, str]]:
    """Read a config's tasks.

    Args:
        tasks: by name, each with ``type``, ``data``, ``split`` and the settings of its type.
        block: where they stand in the config, for messages.

    Returns:
        What can be run, and for each task whose ``data`` is empty what to do about it.

    Raises:
        EvaluationError: a field that is missing, unknown or out of range, or an unknown type.
    """
    planned: list[PlannedTask] = []
    absent: dict[str, str] = {}
    for name, fields in tasks.items():
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        missing = [key for key in ("type", "data", "split") if key not in settings]
        if missing:
            raise EvaluationError(f"{block}.{name}: expected type, data and split, {', '.join(missing)} not there")
        type_name, data, split = (str(settings.pop(key)) for key in ("type", "data", "split"))
        try:
            task, task_config = make_task(type_name, settings)
        except EvaluationError as error:
            raise EvaluationError(f"{block}.{name}: {error}") from error
        if data:
            planned.append(PlannedTask(name, task, task_config, data, split))
        else:
            absent[name] = f"no data; give a folder with --{block}.{name}.data=DIR"
    return planned, absent


def open_data(
    planned: Sequence[PlannedTask], open_examples: Callable[[str, str | None], Sequence[RecordLike]]
) -> dict[tuple[str, str], Examples]:
    """Open each source once and check every task against it; nothing is embedded.

    Args:
        planned: the tasks.
        open_examples: folder and split -> records; `plip_jax.data.examples.open_examples`.

    Raises:
        EvaluationError: labels, captions or prompts that a task cannot use; it is named.
    """
    opened: dict[tuple[str, str], Examples] = {}
    for item in planned:
        for data, split in item.sources.values():
            if (data, split) not in opened:
                opened[data, split] = Examples.from_records(open_examples(data, split or None))
        try:
            item.task.check(item.config, data_of(item, opened))
        except ValueError as error:  # a prompt file's errors are its own type
            raise EvaluationError(f"task {item.name} ({' '.join(item.source).strip()}): {error}") from error
    return opened


def data_of(item: PlannedTask, opened: Mapping[tuple[str, str], Examples]) -> dict[str, Examples]:
    """The examples of a task, by role."""
    return {role: opened[source] for role, source in item.sources.items()}


def evaluate(
    planned: Sequence[PlannedTask],
    data: Mapping[tuple[str, str], Examples],
    *,
    encode_images: EncodeImages,
    encode_text: EncodeText,
) -> dict[str, TaskResult]:
    """Run the tasks; the images of a source that several tasks share are embedded once."""

    def encode_for_one(images: Iterable[bytes], /, *, names: Sequence[str]) -> np.ndarray:
        return np.asarray(encode_images(images, names=names))[None]

    return evaluate_models(planned, data, encode_images=encode_for_one, encode_texts=[encode_text])[0]


def evaluate_models(
    planned: Sequence[PlannedTask],
    data: Mapping[tuple[str, str], Examples],
    *,
    encode_images: EncodeImagesOfModels,
    encode_texts: Sequence[EncodeText],
) -> list[dict[str, TaskResult]]:
    """Run the tasks for several models; the images of a source are read once for all of them.

    Args:
        planned: the tasks.
        data: by source, from `open_data`.
        encode_images: by all models at once.
        encode_texts: of each model.

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

    found = []
    for number, encode_text in enumerate(encode_texts):
        model = Model(f"model {number}", functools.partial(embed, model=number), encode_text)
        found.append({item.name: item.task.run(item.config, Inputs(data_of(item, data), model)) for item in planned})
    return found
