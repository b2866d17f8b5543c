"""What a task is: its settings, what it may see, what it gives back. The table of all of them is `tasks`.

A task sees the examples of its splits and a `Model`: how to embed examples and texts. It never sees a file, a device or
a train state.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.embeddings import Embeddings
from plip_jax.evaluation.examples import Examples

EncodeText = Callable[[Sequence[str]], np.ndarray]
"""Texts -> float32 [N, D]; the rows need not be normalised."""

TEST = "test"


class ImageTower(Protocol):
    """A network from images to features that can be trained further.

    Attributes:
        params: its weights, a tree of arrays.
        feature_dim: D.
        image_size: side of its square input, pixels.
        mean: of the pixels it was trained on, RGB, in [0, 1].
        std: their standard deviation.
    """

    params: Any
    feature_dim: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def pixels(self, image: bytes, name: str) -> np.ndarray:
        """An image file as uint8 [image_size, image_size, 3]; runs in a thread."""
        ...

    def apply(self, params: Any, pixels: Any) -> Any:
        """Features float32 [B, D] of normalised pixels float32 [B, image_size, image_size, 3]; jittable."""
        ...


@dataclasses.dataclass(frozen=True)
class Model:
    """What a task may ask of a model.

    Attributes:
        name: its own among those compared.
        embed: examples -> embeddings, each image computed once; a subset is cut from its whole.
        encode_text: texts -> features; None for an image encoder.
        logit_scale: exp of the learned one, what similarities are multiplied by; None where there is none.
        tower: loads the image network for fine-tuning; None where there is only a table of embeddings.
    """

    name: str
    embed: Callable[[Examples], Embeddings]
    encode_text: EncodeText | None = None
    logit_scale: float | None = None
    tower: Callable[[], ImageTower] | None = None


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a task is run on.

    Attributes:
        data: the examples of each of its splits, by role; "test" is always there.
        model: the one that is measured.
        bootstrap: how intervals are made; None for none (during training).
    """

    data: Mapping[str, Examples]
    model: Model
    bootstrap: BootstrapConfig | None = None

    @property
    def test(self) -> Examples:
        """The examples that are scored."""
        return self.data[TEST]

    def embed(self, role: str = TEST) -> Embeddings:
        """The embeddings of one split."""
        return self.model.embed(self.data[role])


@dataclasses.dataclass(frozen=True)
class GalleryRow:
    """A query of a retrieval picture.

    Attributes:
        query: the caption; the id where the query is an image.
        shown: ids of the best images, best first.
        right: ids of all right answers.
        best_right: the right answer that comes first.
        rank: of that answer; ties count against it.
        query_image: id of the query where it is an image.
    """

    query: str
    shown: tuple[str, ...]
    right: tuple[str, ...]
    best_right: str
    rank: int
    query_image: str = ""


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What a task found.

    Attributes:
        report: JSON-able; ``type``, ``num_examples``, ``metrics`` (a flat mapping of names to numbers), ``hashes`` of
            the inputs, and, where intervals were made, ``bootstrap`` (`bootstrap.summarize`).
        rows: one mapping an example or query, with the same keys each, for a table.
        gallery: queries for a picture.
        replicates: of each metric, float64 [R], in the order of the resamples: with the same seed and units those of
            two models are paired.
        correct: whether each test example was classified right, bool [N]; None where nothing is classified.
        rescore: from ids to leave out to a report of the same answers without them, for a task that learns; None where
            running the task again does no more than that.
    """

    report: dict[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    gallery: tuple[GalleryRow, ...] = ()
    replicates: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    correct: np.ndarray | None = None
    rescore: Callable[[Collection[str]], dict[str, Any]] | None = None


def no_other_splits(config: Any) -> dict[str, str]:
    """For tasks that read the test split alone."""
    return {}


def no_prompts(config: Any) -> tuple[str, ...]:
    """For tasks without prompts."""
    return ()


@dataclasses.dataclass(frozen=True)
class Task:
    """A type of task.

    Attributes:
        config: makes its settings.
        check: raises EvaluationError where examples (by role) and settings do not fit; nothing is embedded for it.
        run: the task itself.
        metric_names: of its report, known before it is run; the one worth a glance comes first.
        splits: roles besides "test" and the name of the split of the same data that fills each.
        needs: "text" where texts are embedded, "tower" where the image network itself is trained; a model that lacks it
            is reported as not applicable.
        optional: roles without which the task is run, too, where the data lack their split.
        prompts: the prompt files and templates that scores depend on, which are frozen before scores are seen.
    """

    config: Callable[..., Any]
    check: Callable[[Any, Mapping[str, Examples]], object]
    run: Callable[[Any, Inputs], TaskResult]
    metric_names: Callable[[Any], tuple[str, ...]]
    splits: Callable[[Any], dict[str, str]] = no_other_splits
    needs: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    prompts: Callable[[Any], tuple[str, ...]] = no_prompts
