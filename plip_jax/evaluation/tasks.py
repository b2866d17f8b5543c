"""What is measured on a set of examples: the table of task types, each with its settings and its result.

A task sees ids, labels and captions, a function that embeds the images, and one that embeds texts; it never sees
a model, a file or a train state. Labels and prompts are checked before anything is embedded.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from plip_jax.evaluation import retrieval, statistics, zero_shot
from plip_jax.evaluation.embeddings import Embeddings, EvaluationError, Similarity, normalize_rows
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.pairing import RELEVANCE, Pairing
from plip_jax.evaluation.prompts_file import Prompts, load_prompts
from plip_jax.evaluation.zero_shot import EncodeText

EmbedImages = Callable[[], Embeddings]


@dataclasses.dataclass(frozen=True)
class GalleryRow:
    """A query of a retrieval picture.

    Attributes:
        query: the caption.
        shown: ids of the best images, best first.
        right: ids of all right answers.
        best_right: the right answer that comes first.
        rank: of that answer; ties count against it.
    """

    query: str
    shown: tuple[str, ...]
    right: tuple[str, ...]
    best_right: str
    rank: int


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What a task found.

    Attributes:
        report: JSON-able; ``metrics`` in it is a flat mapping of names to numbers, ``hashes`` names the inputs.
        rows: one mapping an example or query, with the same keys each, for a table.
        gallery: queries for a picture.
    """

    report: dict[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    gallery: tuple[GalleryRow, ...] = ()


@dataclasses.dataclass(frozen=True)
class ZeroShotConfig:
    """Settings of zero-shot classification.

    Attributes:
        prompts: name of a shipped prompt file, or path of one.
        missing_classes: "error", or "allow" where the data lack some of the prompt file's classes.
    """

    prompts: str
    missing_classes: str = "error"

    def __post_init__(self) -> None:
        if self.missing_classes not in ("error", "allow"):
            raise EvaluationError(f"missing_classes: expected error or allow, got {self.missing_classes!r}")


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """Settings of retrieval, text to image and image to text.

    Attributes:
        relevance: which texts and images are right for each other, a key of ``RELEVANCE``.
        recall_at: cut-offs K.
        pictured_queries: captions in the picture, drawn with a fixed seed.
        pictured_images: images shown for each.
    """

    relevance: str = "id"
    recall_at: tuple[int, ...] = (1, 5, 10, 50)
    pictured_queries: int = 6
    pictured_images: int = 5

    def __post_init__(self) -> None:
        if self.relevance not in RELEVANCE:
            raise EvaluationError(f"relevance: expected one of {', '.join(RELEVANCE)}, got {self.relevance!r}")
        if not self.recall_at or min(self.recall_at) < 1:
            raise EvaluationError(f"recall_at: expected cut-offs of 1 or more, got {self.recall_at}")


TaskConfig = ZeroShotConfig | RetrievalConfig


def check_zero_shot(config: ZeroShotConfig, examples: Examples) -> tuple[Prompts, np.ndarray]:
    """Read the prompts, and number the labels in their order; both sides are named where they do not fit."""
    prompts = load_prompts(config.prompts)
    allow_missing = config.missing_classes == "allow"
    return prompts, zero_shot.label_ids(examples.labels, prompts, allow_missing=allow_missing)


def run_zero_shot(
    config: ZeroShotConfig, examples: Examples, embed_images: EmbedImages, encode_text: EncodeText
) -> TaskResult:
    """Classify each image by the prompts of each class."""
    prompts, label_ids = check_zero_shot(config, examples)
    classes = zero_shot.class_embeddings(prompts, encode_text)
    images = embed_images()
    scores = zero_shot.class_scores(images.features, classes)
    predicted = zero_shot.predict(scores)

    counts = statistics.confusion_matrix(label_ids, predicted, len(prompts.labels))
    constant, constant_metrics = statistics.best_constant_class(counts)
    precision, recall, f1 = statistics.per_class_f1(counts)
    per_class = {
        label: {
            "examples": int(counts[k].sum()),
            "predicted": int(counts[:, k].sum()),
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
        }
        for k, label in enumerate(prompts.labels)
    }
    report = {
        "type": "zero_shot",
        "num_examples": len(images),
        "metrics": statistics.classification_metrics(counts).to_dict(),
        "constant_class": {"label": prompts.labels[constant], "metrics": constant_metrics.to_dict()},
        "per_class": per_class,
        "confusion": {"labels": list(prompts.labels), "rows": "actual", "counts": counts.tolist()},
        "prompts": prompts.to_dict(),
        "missing_classes": [label for label in prompts.labels if not per_class[label]["examples"]],
        "hashes": {"prompts": prompts.hash, "split": examples.hash},
    }
    rows = tuple(
        {"id": name, "label": label, "predicted": prompts.labels[k]}
        | {f"score_{other}": float(value) for other, value in zip(prompts.labels, row, strict=True)}
        for name, label, k, row in zip(images.ids, examples.labels, predicted, scores, strict=True)
    )
    return TaskResult(report, rows)


def check_retrieval(config: RetrievalConfig, examples: Examples) -> None:
    """Every example needs a caption."""
    bare = [name for name, captions in zip(examples.ids, examples.captions, strict=True) if not captions]
    if bare:
        raise EvaluationError(
            f"retrieval needs captions, but {len(bare)} of {len(examples.ids)} examples have none, first {bare[0]!r}"
        )


def run_retrieval(
    config: RetrievalConfig, examples: Examples, embed_images: EmbedImages, encode_text: EncodeText
) -> TaskResult:
    """Rank images for each text, and texts for each image."""
    check_retrieval(config, examples)
    pairing, texts = _embed_texts(config, examples, encode_text)
    images = embed_images()
    metrics: dict[str, float] = {}
    directions: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for direction, queries, candidates, targets in (
        ("text_to_image", texts, images, pairing.images_of_text),
        ("image_to_text", images, texts, pairing.texts_of_image),
    ):
        ranks = retrieval.first_ranks(queries.features, candidates.features, targets)
        recalls = retrieval.recall_at(ranks, targets, len(candidates), config.recall_at)
        directions[direction] = {
            "num_queries": len(queries),
            "num_candidates": len(candidates),
            "num_distinct_candidates": Similarity(candidates.features).num_distinct,
            "median_rank": float(np.median(ranks)),
            "recall": {str(recall.k): dataclasses.asdict(recall) for recall in recalls},
        }
        metrics |= {f"{direction}_recall@{recall.k}": recall.recall for recall in recalls}
        metrics |= {f"{direction}_fold@{recall.k}": recall.fold for recall in recalls}
        metrics[f"{direction}_median_rank"] = float(np.median(ranks))
        rows += [
            {"direction": direction, "query": name, "rank": int(rank), "num_right": len(right)}
            for name, rank, right in zip(queries.ids, ranks, targets, strict=True)
        ]
    report = {
        "type": "retrieval",
        "num_examples": len(images),
        "num_texts": len(texts),
        "relevance": config.relevance,
        "metrics": metrics,
        "directions": directions,
        "hashes": {"split": examples.hash},
    }
    return TaskResult(report, tuple(rows), _gallery(config, pairing, texts, images, rows))


def _embed_texts(config: RetrievalConfig, examples: Examples, encode_text: EncodeText) -> tuple[Pairing, Embeddings]:
    """Embed each distinct text once; equal texts get equal rows."""
    pairing = RELEVANCE[config.relevance](examples)
    row_of = {text: row for row, text in enumerate(dict.fromkeys(pairing.texts))}
    features = normalize_rows(encode_text(list(row_of)), names=tuple(row_of))
    return pairing, Embeddings(pairing.text_ids, features[[row_of[text] for text in pairing.texts]])


def _gallery(
    config: RetrievalConfig, pairing: Pairing, texts: Embeddings, images: Embeddings, rows: Sequence[Mapping[str, Any]]
) -> tuple[GalleryRow, ...]:
    """Draw queries with a fixed seed, so that the picture shows what is typical and not what is best."""
    count = min(config.pictured_queries, len(texts))
    if count < 1:
        return ()
    chosen = np.sort(np.random.default_rng(0).choice(len(texts), size=count, replace=False))
    shown = []
    for text in chosen:
        query = texts.features[text : text + 1]
        right = pairing.images_of_text[text]
        best = retrieval.nearest(query, images.features, config.pictured_images)[0]
        best_right = right[retrieval.nearest(query, images.features[right], 1)[0, 0]]
        shown.append(
            GalleryRow(
                query=pairing.texts[text],
                shown=tuple(images.ids[image] for image in best),
                right=tuple(images.ids[image] for image in right),
                best_right=images.ids[best_right],
                rank=rows[text]["rank"],  # the rows begin with text_to_image, in the order of the texts
            )
        )
    return tuple(shown)


@dataclasses.dataclass(frozen=True)
class Task:
    """A type of task.

    Attributes:
        config: makes its settings.
        check: raises EvaluationError where examples and settings do not fit; nothing is embedded for it.
        run: the task itself.
        metric_names: of its report, known before it is run; the one worth a glance comes first.
    """

    config: Callable[..., TaskConfig]
    check: Callable[[Any, Examples], object]
    run: Callable[[Any, Examples, EmbedImages, EncodeText], TaskResult]
    metric_names: Callable[[Any], tuple[str, ...]]


def zero_shot_metric_names(config: ZeroShotConfig) -> tuple[str, ...]:
    """Weighted F1, the score PLIP reports, and the others."""
    names = (field.name for field in dataclasses.fields(statistics.ClassificationMetrics))
    return "weighted_f1", *(name for name in names if name != "weighted_f1")


def retrieval_metric_names(config: RetrievalConfig) -> tuple[str, ...]:
    """Text to image recall at 10, or at the largest cut-off where 10 is none, and the others."""
    first = f"text_to_image_recall@{10 if 10 in config.recall_at else max(config.recall_at)}"
    names = [
        name
        for direction in ("text_to_image", "image_to_text")
        for name in (
            *(f"{direction}_{measure}@{k}" for measure in ("recall", "fold") for k in config.recall_at),
            f"{direction}_median_rank",
        )
    ]
    return first, *(name for name in names if name != first)


TASKS: dict[str, Task] = {
    "zero_shot": Task(ZeroShotConfig, check_zero_shot, run_zero_shot, zero_shot_metric_names),
    "retrieval": Task(RetrievalConfig, check_retrieval, run_retrieval, retrieval_metric_names),
}


def make_task(type_name: str, settings: Mapping[str, Any]) -> tuple[Task, TaskConfig]:
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
