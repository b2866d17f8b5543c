"""The task of retrieval, text to image and image to text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plip_jax.evaluation import retrieval
from plip_jax.evaluation.embeddings import Embeddings, EvaluationError, Similarity, normalize_rows
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.pairing import RELEVANCE, Pairing
from plip_jax.evaluation.task import TEST, EncodeText, GalleryRow, Inputs, Task, TaskResult


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


def check_retrieval(config: RetrievalConfig, data: Mapping[str, Examples]) -> None:
    """Every example needs a caption."""
    examples = data[TEST]
    bare = [name for name, captions in zip(examples.ids, examples.captions, strict=True) if not captions]
    if bare:
        raise EvaluationError(
            f"retrieval needs captions, but {len(bare)} of {len(examples.ids)} examples have none, first {bare[0]!r}"
        )


def run_retrieval(config: RetrievalConfig, inputs: Inputs) -> TaskResult:
    """Rank images for each text, and texts for each image."""
    examples = inputs.test
    check_retrieval(config, inputs.data)
    assert inputs.model.encode_text is not None  # the suite asks for it: Task.needs
    pairing, texts = _embed_texts(config, examples, inputs.model.encode_text)
    images = inputs.embed()
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


RETRIEVAL = Task(RetrievalConfig, check_retrieval, run_retrieval, retrieval_metric_names, needs=frozenset({"text"}))
