"""The task of image to image retrieval: the other images of a post, or the classes of the nearest images."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from plip_jax.evaluation import bootstrap, image_retrieval, retrieval
from plip_jax.evaluation.embeddings import EvaluationError, distinct_rows, normalized
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.retrieval_task import RESAMPLED
from plip_jax.evaluation.task import TEST, GalleryRow, Inputs, Task, TaskResult
from plip_jax.evaluation.units import choose_units

_FIELDS = {"group": "group_ids", "slide": "slide_ids", "patient": "patient_ids", "label": "labels"}
# Right answers held at a time, 8 bytes each.
_MOST_PAIRS = 10**8
_MEASURES = ("precision", "majority_vote", "hit")


@dataclasses.dataclass(frozen=True)
class ImageRetrievalConfig:
    """Settings of image to image retrieval.

    Attributes:
        mode: "same_post" ranks the other images of the query's group; "label" scores the classes of the nearest images.
        target: what images of a group have in common ("same_post"): "group", "slide", "patient" or "label".
        recall_at: cut-offs K ("same_post").
        random_rankings: shuffles that the random level is the mean of ("same_post").
        seed: of the shuffles.
        neighbours_at: cut-offs K ("label").
        exclude_same: images of the query's "slide", "patient" or "group" are no candidates either ("label"); "" for the
            query alone.
        pictured_queries: images in the picture, drawn with a fixed seed.
        pictured_images: images shown for each.
    """

    mode: str = "same_post"
    target: str = "group"
    recall_at: tuple[int, ...] = (10, 50)
    random_rankings: int = 1000
    seed: int = 0
    neighbours_at: tuple[int, ...] = (1, 5, 10)
    exclude_same: str = ""
    pictured_queries: int = 6
    pictured_images: int = 5

    def __post_init__(self) -> None:
        for name, known in (
            ("mode", ("same_post", "label")),
            ("target", tuple(_FIELDS)),
            ("exclude_same", ("", "slide", "patient", "group")),
        ):
            if getattr(self, name) not in known:
                expected = ", ".join(repr(value) for value in known)
                raise EvaluationError(f"{name}: expected one of {expected}, got {getattr(self, name)!r}")
        for name in ("recall_at", "neighbours_at"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise EvaluationError(f"{name}: expected cut-offs of 1 or more, got {getattr(self, name)}")
        if self.mode == "same_post" and self.exclude_same:
            raise EvaluationError("exclude_same: only for mode label; mode same_post leaves out the query alone")
        if self.random_rankings < 1:
            raise EvaluationError(f"random_rankings: expected 1 or more, got {self.random_rankings}")


def check_image_retrieval(config: ImageRetrievalConfig, data: Mapping[str, Examples]) -> None:
    """There must be something to find: another image of a group, or labels.

    Raises:
        EvaluationError: there is nothing to find, or too many pairs to rank.
    """
    examples = data[TEST]
    if config.mode == "same_post":
        if not len(_queries(config, examples)):
            raise EvaluationError(
                f"image retrieval by {config.target}: no two of {len(examples)} examples have one {config.target} in "
                f"common; choose another target ({', '.join(_FIELDS)})"
            )
        sizes = np.bincount(_groups(config, examples) + 1)[1:]  # NO_GROUP is -1
        if (sizes**2).sum() > _MOST_PAIRS:
            raise EvaluationError(
                f"image retrieval by {config.target}: {int((sizes**2).sum()):,} right pairs are too many to rank; "
                "groups this large are what mode='label' is for"
            )
        return
    unlabelled = [name for name, label in zip(examples.ids, examples.labels, strict=True) if not label]
    if unlabelled:
        raise EvaluationError(
            f"image retrieval by label: {len(unlabelled)} of {len(examples)} examples have no label, first "
            f"{unlabelled[0]!r}"
        )
    if config.exclude_same and not any(getattr(examples, _FIELDS[config.exclude_same])):
        raise EvaluationError(f"exclude_same: the examples have no {config.exclude_same}")
    candidates, _ = image_retrieval.eligible_counts(*_labels_and_codes(config, examples))
    if not candidates.all():
        raise EvaluationError(
            f"{int((candidates == 0).sum())} of {len(examples)} examples have no candidate"
            + (f" of another {config.exclude_same}" if config.exclude_same else "")
        )


def run_image_retrieval(config: ImageRetrievalConfig, inputs: Inputs) -> TaskResult:
    """Search the split with its own images."""
    check_image_retrieval(config, inputs.data)
    features = normalized(inputs.embed())
    result = (
        _run_same_post(config, inputs, features) if config.mode == "same_post" else _run_label(config, inputs, features)
    )
    common = {
        "type": "image_retrieval",
        "mode": config.mode,
        "num_examples": len(inputs.test),
        "duplicates": {"images_with_the_embedding_of_an_earlier_one": len(features) - len(distinct_rows(features)[0])},
        "hashes": {"split": inputs.test.hash},
    }
    return dataclasses.replace(result, report={**common, **result.report})


def _run_same_post(config: ImageRetrievalConfig, inputs: Inputs, features: np.ndarray) -> TaskResult:
    examples, cut_offs = inputs.test, config.recall_at
    queries, group_of = _queries(config, examples), _groups(config, examples)
    others = image_retrieval.other_members(group_of)
    targets = [others[query] for query in queries]
    ranks = retrieval.first_ranks(features[queries], features, targets, excluded=queries)
    num_candidates = len(examples) - 1
    simulated = image_retrieval.simulated_recalls(
        group_of, queries, cut_offs, rankings=config.random_rankings, seed=config.seed
    )
    num_right = np.asarray([len(rows) for rows in targets])
    exact = np.stack([retrieval.random_recalls(num_candidates, num_right, k) for k in cut_offs])
    # Where no shuffle hit anything, the exact expectation stands in for a zero that nothing can be divided by.
    chance = np.where(simulated.any(axis=1, keepdims=True), simulated, exact)
    recall = {}
    for place, found in enumerate(retrieval.recall_at(ranks, targets, num_candidates, cut_offs)):
        random = float(chance[place].mean())
        recall[str(found.k)] = {
            **dataclasses.asdict(found), "random": random, "random_exact": found.random, "fold": found.recall / random,
        }  # fmt: skip
    metrics = {f"recall@{k}": recall[str(k)]["recall"] for k in cut_offs}
    metrics |= {f"fold@{k}": recall[str(k)]["fold"] for k in cut_offs}
    report: dict[str, Any] = {
        "target": config.target,
        "num_queries": len(queries),
        "num_left_out": len(examples) - len(queries),  # without another image of their group; they stay candidates
        "num_candidates": num_candidates,
        "random_rankings": config.random_rankings,
        "seed": config.seed,
        "metrics": {**metrics, "median_rank": float(np.median(ranks))},
        "recall": recall,
        "curve": retrieval.recall_curve(ranks, targets, num_candidates),
    }

    rows = tuple(
        {"query": examples.ids[query], config.target: getattr(examples, _FIELDS[config.target])[query],
         "rank": int(rank), "num_right": len(right)}
        for query, rank, right in zip(queries, ranks, targets, strict=True)
    )  # fmt: skip
    gallery = _gallery(config, examples, features, queries, group_of, np.arange(len(examples)))
    return _with_intervals(
        TaskResult(report, rows, gallery),
        inputs,
        lambda weights: retrieval.resampled_recalls(ranks, chance, queries, cut_offs, weights),
    )


def _run_label(config: ImageRetrievalConfig, inputs: Inputs, features: np.ndarray) -> TaskResult:
    examples, cut_offs = inputs.test, config.neighbours_at
    label_ids, codes = _labels_and_codes(config, examples)
    found = retrieval.nearest(features, features, max(cut_offs), query_codes=codes, candidate_codes=codes)
    scores = image_retrieval.neighbour_scores(found.rows, label_ids, cut_offs)
    values = {"precision": scores.precision, "majority_vote": scores.vote == label_ids, "hit": scores.hit}
    num_candidates, num_right = image_retrieval.eligible_counts(label_ids, codes)
    named = {f"{name}@{k}": values[name][place] for name in _MEASURES for place, k in enumerate(cut_offs)}
    random_hits = image_retrieval.random_hits(num_candidates, num_right, cut_offs).mean(axis=1)
    random_precision = float((num_right / num_candidates).mean())
    labels = np.asarray(examples.labels)
    report: dict[str, Any] = {
        "exclude_same": config.exclude_same,
        "vote_ties": "the class of the nearest neighbour among equally common ones",
        "num_queries": len(examples),
        "num_without_right_answer": int((num_right == 0).sum()),  # they count as missed
        "metrics": {name: float(value.mean()) for name, value in named.items()},
        "random": {f"precision@{k}": random_precision for k in cut_offs}
        | {f"hit@{k}": float(chance) for k, chance in zip(cut_offs, random_hits, strict=True)},
        "per_class": {
            str(label): {"examples": int((labels == label).sum())}
            | {name: float(value[labels == label].mean()) for name, value in named.items()}
            for label in np.unique(labels)
        },
    }
    columns = np.stack([value.astype(np.float64) for value in named.values()], axis=1)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        means = retrieval.weighted_ratios(columns, np.ones(columns.shape), weights)
        return {name: means[:, place] for place, name in enumerate(named)}

    names = [examples.labels[row] for row in np.unique(label_ids, return_index=True)[1]]
    rows = tuple(
        {"id": name, "label": label}
        | {f"precision@{k}": float(scores.precision[place, row]) for place, k in enumerate(cut_offs)}
        | {f"majority_vote@{k}": names[scores.vote[place, row]] for place, k in enumerate(cut_offs)}
        | {f"hit@{k}": bool(scores.hit[place, row]) for place, k in enumerate(cut_offs)}
        for row, (name, label) in enumerate(zip(examples.ids, examples.labels, strict=True))
    )
    gallery = _gallery(config, examples, features, np.flatnonzero(num_right), label_ids, codes)
    return _with_intervals(TaskResult(report, rows, gallery), inputs, statistic)


def _with_intervals(result: TaskResult, inputs: Inputs, statistic: Any) -> TaskResult:
    if inputs.bootstrap is None:
        return result
    units = choose_units(inputs.test)
    replicates = bootstrap.replicate(units, inputs.bootstrap, statistic)
    block = bootstrap.summarize(replicates, units, inputs.bootstrap) | {"resampled": RESAMPLED}
    return dataclasses.replace(result, report={**result.report, "bootstrap": block}, replicates=replicates)


def _groups(config: ImageRetrievalConfig, examples: Examples) -> np.ndarray:
    return image_retrieval.number_names(getattr(examples, _FIELDS[config.target]) or ("",) * len(examples))


def _queries(config: ImageRetrievalConfig, examples: Examples) -> np.ndarray:
    """Rows of the examples with another one in their group."""
    group_of = _groups(config, examples)
    sizes = np.bincount(group_of + 1)  # NO_GROUP is -1
    return np.flatnonzero((group_of != image_retrieval.NO_GROUP) & (sizes[group_of + 1] > 1))


def _labels_and_codes(config: ImageRetrievalConfig, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """The class of each image, and codes that it shares with those that are no candidates for it."""
    names = getattr(examples, _FIELDS[config.exclude_same]) if config.exclude_same else ("",) * len(examples)
    return image_retrieval.number_names(examples.labels), image_retrieval.exclusion_codes(names)


def _gallery(
    config: ImageRetrievalConfig,
    examples: Examples,
    features: np.ndarray,
    queries: np.ndarray,
    group_of: np.ndarray,
    codes: np.ndarray,
) -> tuple[GalleryRow, ...]:
    """Draw queries with a fixed seed; images of one group are right, images of one code no candidates."""
    count = min(config.pictured_queries, len(queries))
    if count < 1:
        return ()
    chosen = np.sort(np.random.default_rng(0).choice(queries, size=count, replace=False))
    best = retrieval.nearest(
        features[chosen], features, config.pictured_images, query_codes=codes[chosen], candidate_codes=codes
    ).rows
    shown = []
    for query, found in zip(chosen, best, strict=True):
        candidates = np.flatnonzero(codes != codes[query])
        right = np.flatnonzero(group_of[candidates] == group_of[query])
        rank = retrieval.first_ranks(features[[query]], features[candidates], [right])[0]
        best_right = retrieval.nearest(features[[query]], features[candidates[right]], 1).rows[0, 0]
        shown.append(
            GalleryRow(
                query=examples.ids[query],
                shown=tuple(examples.ids[image] for image in found if image >= 0),
                right=tuple(examples.ids[image] for image in candidates[right]),
                best_right=examples.ids[candidates[right][best_right]],
                rank=int(rank),
                query_image=examples.ids[query],
            )
        )
    return tuple(shown)


def image_retrieval_metric_names(config: ImageRetrievalConfig) -> tuple[str, ...]:
    """Recall, or precision, at 10, or at the largest cut-off where 10 is none, and the others."""
    cut_offs = config.recall_at if config.mode == "same_post" else config.neighbours_at
    names = [
        f"{name}@{k}" for name in (("recall", "fold") if config.mode == "same_post" else _MEASURES) for k in cut_offs
    ]
    first = f"{'recall' if config.mode == 'same_post' else 'precision'}@{10 if 10 in cut_offs else max(cut_offs)}"
    last = ("median_rank",) if config.mode == "same_post" else ()
    return first, *(name for name in names if name != first), *last


IMAGE_RETRIEVAL = Task(ImageRetrievalConfig, check_image_retrieval, run_image_retrieval, image_retrieval_metric_names)
