"""The task of retrieval, text to image and image to text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plip_jax.evaluation import bootstrap, retrieval
from plip_jax.evaluation.embeddings import Embeddings, EvaluationError, distinct_rows, normalize_rows, normalized
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.pairing import RELEVANCE, Pairing, usable_captions
from plip_jax.evaluation.task import TEST, EncodeText, GalleryRow, Inputs, Task, TaskResult
from plip_jax.evaluation.units import choose_units

RESAMPLED = "the queries, by the unit of their (first) image; the candidates are fixed"


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
    """Every example needs a caption, one that is not blank.

    Raises:
        EvaluationError: some have none; they are counted, and the first is named.
    """
    examples = data[TEST]
    named = zip(examples.ids, examples.captions, strict=True)
    bare = [name for name, captions in named if not any(text.strip() for text in captions)]
    if bare:
        raise EvaluationError(
            f"retrieval needs captions, but {len(bare)} of {len(examples.ids)} examples have none, first {bare[0]!r}"
        )


@dataclasses.dataclass(frozen=True)
class _Direction:
    """Queries of one kind with their ranks.

    Attributes:
        query_ids: one a query.
        targets: rows of the right answers of each.
        image_of_query: row of the example whose unit each query belongs to.
        num_candidates: N.
        num_distinct: candidates that differ.
        ranks: int64 [Q].
    """

    query_ids: tuple[str, ...]
    targets: Sequence[np.ndarray]
    image_of_query: np.ndarray
    num_candidates: int
    num_distinct: int
    ranks: np.ndarray

    def report(self, recalls: Sequence[retrieval.Recall]) -> dict[str, Any]:
        return {
            "num_queries": len(self.ranks),
            "num_candidates": self.num_candidates,
            "num_distinct_candidates": self.num_distinct,
            "median_rank": float(np.median(self.ranks)),
            "recall": {str(recall.k): dataclasses.asdict(recall) for recall in recalls},
            "curve": retrieval.recall_curve(self.ranks, self.targets, self.num_candidates),
        }

    def replicates(self, weights: np.ndarray, cut_offs: Sequence[int]) -> dict[str, np.ndarray]:
        """Each metric where each example counts as often as ``weights`` say, int [r, N]."""
        num_right = np.asarray([len(rows) for rows in self.targets])
        chances = np.stack([retrieval.random_recalls(self.num_candidates, num_right, k) for k in cut_offs])
        return retrieval.resampled_recalls(self.ranks, chances, self.image_of_query, cut_offs, weights)


def run_retrieval(config: RetrievalConfig, inputs: Inputs) -> TaskResult:
    """Rank images for each text, and texts for each image."""
    examples = inputs.test
    check_retrieval(config, inputs.data)
    assert inputs.model.encode_text is not None  # the suite asks for it: Task.needs
    pairing, texts = _embed_texts(config, examples, inputs.model.encode_text)
    images = inputs.embed()
    ranked = _rank(pairing, texts, images)
    metrics: dict[str, float] = {}
    directions: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for direction, found in ranked.items():
        recalls = retrieval.recall_at(found.ranks, found.targets, found.num_candidates, config.recall_at)
        directions[direction] = found.report(recalls)
        metrics |= {f"{direction}_recall@{recall.k}": recall.recall for recall in recalls}
        metrics |= {f"{direction}_fold@{recall.k}": recall.fold for recall in recalls}
        metrics[f"{direction}_median_rank"] = float(np.median(found.ranks))
        rows += [
            {"direction": direction, "query": name, "rank": int(rank), "num_right": len(right)}
            for name, rank, right in zip(found.query_ids, found.ranks, found.targets, strict=True)
        ]
    _, left_out = usable_captions(examples)
    report = {
        "type": "retrieval",
        "num_examples": len(images),
        "num_texts": len(texts),
        "relevance": config.relevance,
        "metrics": metrics,
        "directions": directions,
        "duplicates": {
            "images_with_the_embedding_of_an_earlier_one": len(images) - ranked["text_to_image"].num_distinct,
            "texts_equal_to_an_earlier_one": len(texts) - len(set(pairing.texts)),
            "captions_left_out": left_out,
        },
        "hashes": {"split": examples.hash},
    }
    replicates = {}
    if inputs.bootstrap is not None:
        units = choose_units(examples)
        replicates = bootstrap.replicate(units, inputs.bootstrap, lambda w: _replicate(ranked, w, config.recall_at))
        report["bootstrap"] = bootstrap.summarize(replicates, units, inputs.bootstrap) | {"resampled": RESAMPLED}
    return TaskResult(report, tuple(rows), _gallery(config, pairing, texts, images, rows), replicates)


def _rank(pairing: Pairing, texts: Embeddings, images: Embeddings) -> dict[str, _Direction]:
    """Both directions; a text belongs to the unit of its first image."""
    first_image = np.asarray([rows[0] for rows in pairing.images_of_text], np.int64)
    return {
        direction: _Direction(
            queries.ids,
            targets,
            image_of_query,
            len(candidates),
            len(distinct_rows(candidates.features)[0]),
            retrieval.first_ranks(normalized(queries), normalized(candidates), targets),
        )
        for direction, queries, candidates, targets, image_of_query in (
            ("text_to_image", texts, images, pairing.images_of_text, first_image),
            ("image_to_text", images, texts, pairing.texts_of_image, np.arange(len(images))),
        )
    }


def _replicate(ranked: Mapping[str, _Direction], weights: np.ndarray, cut_offs: Sequence[int]) -> dict[str, np.ndarray]:
    return {
        f"{direction}_{name}": values
        for direction, found in ranked.items()
        for name, values in found.replicates(weights, cut_offs).items()
    }


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
    candidates = normalized(images)
    best = retrieval.nearest(texts.features[chosen], candidates, config.pictured_images).rows
    shown = []
    for text, found in zip(chosen, best, strict=True):
        right = pairing.images_of_text[text]
        best_right = right[np.argmax(candidates[right] @ texts.features[text])]
        shown.append(
            GalleryRow(
                query=pairing.texts[text],
                shown=tuple(images.ids[image] for image in found),
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
