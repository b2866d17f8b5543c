"""Exact retrieval: the rank of the first right answer, recall at K, and what chance would give.

A query may have several right answers; recall at K asks that at least one is among the first K. Ties are ranked
pessimistically: a wrong answer with the score of the right one comes before it, so a model that gives everything
one score is worst, not perfect. The scores are computed on the device, a tile at a time (`tiled_similarity`).
"""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.tiled_similarity import TiledSimilarity

# Cut-offs of a recall curve: the largest one, and how many are drawn up to it.
_CURVE_END, _CURVE_POINTS = 1000, 60


@dataclasses.dataclass(frozen=True)
class Recall:
    """Recall at one cut-off.

    Attributes:
        k: the cut-off.
        hits: queries with a right answer among the first k.
        recall: hits / queries.
        random: the same recall's expectation under a random order.
        fold: recall / random.
    """

    k: int
    hits: int
    recall: float
    random: float
    fold: float


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The best candidates of each query, best first.

    Of equal scores the candidate comes first whose features come first among the candidates, and of equal features
    the lowest row.

    Attributes:
        rows: int64 [Q, k]; -1 where there are no more candidates.
        scores: float32 [Q, k]; -inf there.
    """

    rows: np.ndarray
    scores: np.ndarray


def targets_by_key(query_keys: Sequence[str], candidate_keys: Sequence[str]) -> list[np.ndarray]:
    """For each query the candidates with its key (an image id, a figure), int64 indices, ascending."""
    rows_of: dict[str, list[int]] = {}
    for row, key in enumerate(candidate_keys):
        rows_of.setdefault(key, []).append(row)
    return [np.asarray(rows_of.get(key, []), np.int64) for key in query_keys]


def first_ranks(
    queries: np.ndarray,
    candidates: np.ndarray,
    targets: Sequence[np.ndarray],
    *,
    excluded: np.ndarray | None = None,
    tile: tuple[int, int] | None = None,
) -> np.ndarray:
    """Rank the best right answer of each query among the wrong ones.

    Args:
        queries: float32 [Q, D], L2-normalised.
        candidates: float32 [N, D], L2-normalised.
        targets: for each query the rows of its right answers, at least one, none twice.
        excluded: for each query a candidate that is not ranked (the query itself), int [Q]; None for none.
        tile: queries and candidates whose scores are held at a time; None fits the device. It changes memory and speed
            only.

    Returns:
        int64 [Q], 1 + the number of wrong answers that score at least as high as the best right one.

    Raises:
        EvaluationError: a query without a right answer.
    """
    if len(targets) != len(queries):
        raise EvaluationError(f"expected targets for {len(queries)} queries, got {len(targets)}")
    num_right = np.asarray([len(rows) for rows in targets], np.int64)
    empty = np.flatnonzero(num_right == 0)
    if len(empty):
        raise EvaluationError(f"{len(empty)} queries have no right answer among the candidates, first: row {empty[0]}")
    right = np.concatenate(targets).astype(np.int64)
    # Queries in the order of their answers: the pairs to look up then share tiles.
    order = np.argsort(right[np.cumsum(num_right) - num_right], kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    similarity = TiledSimilarity(queries[order], candidates, tile=tile)
    query_of = np.repeat(place, num_right)
    scores = similarity.look_up(query_of, right)
    best = np.full(len(queries), -np.inf, np.float32)
    np.maximum.at(best, query_of, scores)
    before = similarity.count_at_least(best)
    before -= np.bincount(query_of[scores >= best[query_of]], minlength=len(queries))
    if excluded is not None:
        before -= similarity.look_up(place, np.asarray(excluded, np.int64))[order] >= best
    return 1 + before[place]


def nearest(
    queries: np.ndarray,
    candidates: np.ndarray,
    k: int,
    *,
    query_codes: np.ndarray | None = None,
    candidate_codes: np.ndarray | None = None,
    tile: tuple[int, int] | None = None,
) -> Nearest:
    """Find the k best candidates of each query.

    Args:
        queries: float32 [Q, D], L2-normalised.
        candidates: float32 [N, D], L2-normalised.
        k: how many; all where there are fewer.
        query_codes: int [Q], not negative: a candidate with the query's code is no answer (the query itself, its
            slide); None where all are.
        candidate_codes: int [N], not negative; given with ``query_codes``.
        tile: as in `first_ranks`.
    """
    k = min(k, len(candidates))
    similarity = TiledSimilarity(queries, candidates, tile=tile)
    columns, column_scores = similarity.best_columns(k, query_codes=query_codes, candidate_codes=candidate_codes)
    order = np.argsort(similarity.column_of, kind="stable")
    copies = np.bincount(similarity.column_of, minlength=similarity.num_distinct)
    starts = np.cumsum(copies) - copies
    rows = np.where(columns < 0, -1, order[starts[columns]])
    scores = column_scores.copy()
    # Candidates with equal features were searched as one: here each is itself again.
    for query in np.flatnonzero((copies[columns] * (columns >= 0) > 1).any(axis=1)):
        found = columns[query][columns[query] >= 0]
        members = np.concatenate([order[starts[column] : starts[column] + copies[column]] for column in found])
        score_of = np.repeat(column_scores[query, : len(found)], copies[found])
        if query_codes is not None and candidate_codes is not None:
            answers = candidate_codes[members] != query_codes[query]
            members, score_of = members[answers], score_of[answers]
        rows[query], scores[query] = -1, -np.inf
        rows[query, : len(members)], scores[query, : len(members)] = members[:k], score_of[:k]
    return Nearest(rows, scores)


def random_recall(num_candidates: int, num_right: int, k: int) -> Fraction:
    """Chance that a random order has one of ``num_right`` among its first k: 1 - C(N-m, k) / C(N, k); k/N for m = 1.

    The exact hypergeometric probability, in integers: the binomials of a large N overflow any float.
    """
    # C(N-m, k) / C(N, k) = C(N-k, m) / C(N, m): the smaller of k and m keeps the integers short.
    k, m = sorted((min(k, num_candidates), num_right))
    return 1 - Fraction(math.comb(num_candidates - m, k), math.comb(num_candidates, k))


def random_recalls(num_candidates: int, num_right: np.ndarray, k: int) -> np.ndarray:
    """`random_recall` of each query, float64 [Q]."""
    sizes, which = np.unique(num_right, return_inverse=True)
    return np.asarray([float(random_recall(num_candidates, int(size), k)) for size in sizes])[which]


def recall_at(
    ranks: np.ndarray, targets: Sequence[np.ndarray], num_candidates: int, cut_offs: Sequence[int]
) -> list[Recall]:
    """Recall at each cut-off, with its expectation under chance and the fold over it.

    Args:
        ranks: from `first_ranks`, [Q].
        targets: right answers of each query; their numbers set the level of chance.
        num_candidates: N.
        cut_offs: each K; one above N is always hit, by chance too.
    """
    sizes, queries_of_size = np.unique([len(rows) for rows in targets], return_counts=True)
    results = []
    for k in cut_offs:
        hits = int(np.count_nonzero(ranks <= k))
        chances = [
            random_recall(num_candidates, int(m), k) * int(n) for m, n in zip(sizes, queries_of_size, strict=True)
        ]
        expected_hits = sum(chances, Fraction(0))
        results.append(
            Recall(
                k=k,
                hits=hits,
                recall=hits / len(ranks),
                random=float(expected_hits / len(ranks)),
                fold=float(hits / expected_hits),
            )
        )
    return results


def curve_cut_offs(num_candidates: int) -> tuple[int, ...]:
    """The cut-offs of a recall curve: from 1 to the number of candidates or 1,000, evenly on a logarithmic axis."""
    end = min(num_candidates, _CURVE_END)
    return tuple(int(k) for k in np.unique(np.rint(np.geomspace(1, end, _CURVE_POINTS)).astype(np.int64)))


def recall_curve(ranks: np.ndarray, targets: Sequence[np.ndarray], num_candidates: int) -> dict[str, list[Any]]:
    """Recall and the random level at the cut-offs ``k``, three lists of one length."""
    points = recall_at(ranks, targets, num_candidates, curve_cut_offs(num_candidates))
    return {name: [getattr(point, name) for point in points] for name in ("k", "recall", "random")}


def resampled_recalls(
    ranks: np.ndarray, chances: np.ndarray, example_of: np.ndarray, cut_offs: Sequence[int], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Recall, fold and median rank in each resample of the queries; the candidates, and so the ranks, are fixed.

    Args:
        ranks: from `first_ranks`, [Q].
        chances: of each query to be hit by a random order, float [K, Q].
        example_of: the example of each query, int [Q].
        cut_offs: each K.
        weights: how often each example counts, int [r, N].

    Returns:
        ``recall@K`` and ``fold@K`` of each cut-off and ``median_rank``, float64 [r] each.
    """
    counts, hits, expected = (
        np.stack([np.bincount(example_of, weights=row, minlength=weights.shape[1]) for row in rows], axis=1)
        for rows in (np.ones((1, len(ranks))), [ranks <= k for k in cut_offs], chances)
    )
    recalls = weighted_ratios(hits, np.broadcast_to(counts, hits.shape), weights)
    folds = weighted_ratios(hits, expected, weights)
    named = {f"recall@{k}": recalls[:, place] for place, k in enumerate(cut_offs)}
    named |= {f"fold@{k}": folds[:, place] for place, k in enumerate(cut_offs)}
    return {**named, "median_rank": weighted_median(ranks, example_of, weights)}


def weighted_ratios(values: np.ndarray, of: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ratios of weighted sums in each resample: of hits and queries a recall, of hits and expected hits a fold.

    Args:
        values: of each example, float [N, M]; those of its queries summed.
        of: what they are a share of, float [N, M].
        weights: how often each example counts, int [r, N].

    Returns:
        float64 [r, M]; NaN where the denominator is 0.
    """
    counts = weights.astype(np.float64)
    numerators, denominators = counts @ values.astype(np.float64), counts @ of.astype(np.float64)
    out = np.full(numerators.shape, np.nan)
    return np.divide(numerators, denominators, out=out, where=denominators > 0)


def weighted_median(values: np.ndarray, example_of: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The median in each resample, as of each value repeated as often as its example counts.

    Args:
        values: integers or floats [Q].
        example_of: the example of each value, int [Q].
        weights: how often each example counts, int [r, N].

    Returns:
        float64 [r]; NaN where all weights are 0. The mean of the two in the middle where their number is even.
    """
    order = np.argsort(values, kind="stable")
    rising, sorted_examples = values[order], example_of[order]
    medians = np.full(len(weights), np.nan)
    for row, weight in enumerate(weights):  # a vector at a time stays in the cache
        count = np.cumsum(weight[sorted_examples])
        if total := count[-1]:
            low, high = rising[np.searchsorted(count, [(total - 1) // 2, total // 2], side="right")]
            medians[row] = (low + high) / 2
    return medians
