"""Exact retrieval: the rank of the first right answer, recall at K, and what chance would give.

A query may have several right answers; recall at K asks that at least one is among the first K. Ties are ranked
pessimistically: a wrong answer with the score of the right one comes before it, so a model that gives everything
one score is worst, not perfect. Memory is bounded by scoring a block of queries at a time.
"""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from plip_jax.evaluation.embeddings import EvaluationError, Similarity

# Scores held at once: 64 MiB of float32, and as much again while they are compared.
_BLOCK_SCORES = 2**24


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


def targets_by_key(query_keys: Sequence[str], candidate_keys: Sequence[str]) -> list[np.ndarray]:
    """For each query the candidates with its key (an image id, a figure), int64 indices, ascending."""
    rows_of: dict[str, list[int]] = {}
    for row, key in enumerate(candidate_keys):
        rows_of.setdefault(key, []).append(row)
    return [np.asarray(rows_of.get(key, []), np.int64) for key in query_keys]


def first_ranks(
    queries: np.ndarray, candidates: np.ndarray, targets: Sequence[np.ndarray], *, block_scores: int = _BLOCK_SCORES
) -> np.ndarray:
    """Rank the best right answer of each query among the wrong ones.

    Args:
        queries: float32 [Q, D], L2-normalised.
        candidates: float32 [N, D], L2-normalised.
        targets: for each query the rows of its right answers, at least one.
        block_scores: scores computed at a time; changes memory and speed only.

    Returns:
        int64 [Q]: 1 + the number of wrong answers that score at least as high as the best right one.

    Raises:
        EvaluationError: a query without a right answer.
    """
    if len(targets) != len(queries):
        raise EvaluationError(f"expected targets for {len(queries)} queries, got {len(targets)}")
    empty = [query for query, rows in enumerate(targets) if len(rows) == 0]
    if empty:
        raise EvaluationError(f"{len(empty)} queries have no right answer among the candidates, first: row {empty[0]}")
    similarity = Similarity(candidates)
    block = max(1, block_scores // max(1, len(candidates)))
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), block):
        scores = similarity(queries[start : start + block])
        for row, query_scores in enumerate(scores):
            right = query_scores[targets[start + row]]
            best = right.max()
            ranks[start + row] = 1 + np.count_nonzero(query_scores >= best) - np.count_nonzero(right >= best)
    return ranks


def random_recall(num_candidates: int, num_right: int, k: int) -> Fraction:
    """Chance that a random order has one of ``num_right`` among its first k: 1 - C(N-m, k) / C(N, k); k/N for m = 1.

    The exact hypergeometric probability, in integers: the binomials of a large N overflow any float.
    """
    k = min(k, num_candidates)
    return 1 - Fraction(math.comb(num_candidates - num_right, k), math.comb(num_candidates, k))


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


def nearest(queries: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """The k best candidates of a few queries, best first, int64 [Q, k]; of equal scores the lowest row first."""
    scores = Similarity(candidates)(queries)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]
