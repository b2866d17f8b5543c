"""Image to image: the other images of a post, or the classes of the nearest images. The query is never a candidate.

The random level of the first is simulated by shuffling all images (PLIP reports .00556 and .0236 for recall at 10 and
50, which is not K/N because posts differ in size); `retrieval.random_recall` has its exact expectation. What PLIP
calls accuracy at K for Kather, PanNuke and KIMIA Path24C is not defined in print, so three measures have names here:
the share of the K nearest that have the query's class, the vote of these K, and whether one of them has it.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from plip_jax.evaluation import retrieval

# Pairs of neighbours compared at a time by a vote.
_BLOCK_PAIRS = 2**24
NO_GROUP = -1
"""Of an image without a group."""


def number_names(names: Sequence[str]) -> np.ndarray:
    """Number names in the order of their first use, int64 [N]; `NO_GROUP` where a name is empty."""
    numbers: dict[str, int] = {}
    return np.asarray([numbers.setdefault(name, len(numbers)) if name else NO_GROUP for name in names], np.int64)


def exclusion_codes(names: Sequence[str]) -> np.ndarray:
    """Codes that images share with the images they must not be found by: those of one name, else themselves alone.

    Args:
        names: slides or patients, [N]; empty ones are known to differ from all others.

    Returns:
        int64 [N], not negative.
    """
    named = number_names(names)
    return np.where(named == NO_GROUP, named.max(initial=NO_GROUP) + 1 + np.arange(len(named)), named)


def other_members(group_of: np.ndarray) -> list[np.ndarray]:
    """For each image the other images of its group, int64 and rising; none where it has no group."""
    order = np.argsort(group_of, kind="stable")
    starts = np.flatnonzero(np.diff(group_of[order], prepend=NO_GROUP - 1))
    others = [np.empty(0, np.int64)] * len(group_of)
    for members in np.split(order, starts[1:]):
        if group_of[members[0]] != NO_GROUP:
            for place, image in enumerate(members):
                others[image] = np.delete(members, place)
    return others


def simulated_recalls(
    group_of: np.ndarray, queries: np.ndarray, cut_offs: Sequence[int], *, rankings: int, seed: int
) -> np.ndarray:
    """How often shuffled images have another of the query's group among the first K, the query itself passed over.

    Args:
        group_of: of all images, int [N].
        queries: rows of images with another one in their group, int [Q].
        cut_offs: each K.
        rankings: shuffles; each ranks the images for every query.
        seed: of the shuffles.

    Returns:
        float64 [K, Q], shares of the rankings.
    """
    rng = np.random.default_rng(seed)
    by_group = np.argsort(group_of, kind="stable")
    starts = np.flatnonzero(np.diff(group_of[by_group], prepend=NO_GROUP - 1))
    sizes = np.diff(starts, append=len(by_group))
    section = np.empty(len(group_of), np.int64)
    section[by_group] = np.repeat(np.arange(len(starts)), sizes)
    hits = np.zeros((len(cut_offs), len(queries)), np.int64)
    never = len(group_of)
    for _ in range(rankings):
        place = rng.permutation(len(group_of))
        members = place[by_group]
        first = np.minimum.reduceat(members, starts)
        second = np.minimum.reduceat(np.where(members == np.repeat(first, sizes), never, members), starts)
        mine, section_of = place[queries], section[queries]
        best = np.where(mine == first[section_of], second[section_of], first[section_of])
        rank = 1 + best - (mine < best)  # without the query itself
        for row, k in enumerate(cut_offs):
            hits[row] += rank <= k
    return hits / rankings


@dataclasses.dataclass(frozen=True)
class NeighbourScores:
    """What the nearest images say of a query's class, for each cut-off and query, [K, Q].

    Attributes:
        precision: the share of the neighbours that have its class, float64.
        vote: the class that most of them have, the nearest one's among equals; int64, -1 without neighbours.
        hit: whether one of them has its class, bool.
    """

    precision: np.ndarray
    vote: np.ndarray
    hit: np.ndarray


def neighbour_scores(neighbours: np.ndarray, label_ids: np.ndarray, cut_offs: Sequence[int]) -> NeighbourScores:
    """Score the classes of the nearest images.

    Args:
        neighbours: rows, best first, int [Q, max(cut_offs)] with Q = N; -1 where there are no more. A query with fewer
            than K is scored on those it has, and as wrong where it has none.
        label_ids: class of each image, int [N].
        cut_offs: each K.
    """
    known = neighbours >= 0
    labels = np.where(known, label_ids[neighbours], -1)
    same = known & (labels == label_ids[:, None])
    right = np.cumsum(same, axis=1)
    number = np.maximum(np.cumsum(known, axis=1), 1)
    at = [min(k, neighbours.shape[1]) - 1 for k in cut_offs]
    return NeighbourScores(
        precision=np.stack([right[:, place] / number[:, place] for place in at]),
        vote=np.stack([_majority(labels[:, : place + 1]) for place in at]),
        hit=np.stack([right[:, place] > 0 for place in at]),
    )


def _majority(labels: np.ndarray) -> np.ndarray:
    """The commonest label of each row, of equally common ones the one that comes first; labels -1 do not vote."""
    winners = np.empty(len(labels), np.int64)
    block = max(1, _BLOCK_PAIRS // labels.shape[1] ** 2)
    for start in range(0, len(labels), block):
        rows = labels[start : start + block]
        votes = (rows[:, :, None] == rows[:, None, :]).sum(axis=2)
        winner = np.where(rows >= 0, votes, -1).argmax(axis=1)
        winners[start : start + block] = rows[np.arange(len(rows)), winner]
    return winners


def eligible_counts(label_ids: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many candidates a query has and how many of them have its class, int64 [N] each.

    Args:
        label_ids: class of each image, int [N].
        codes: images with the query's code are no candidates, int [N].
    """
    pairs = np.stack([label_ids, codes], axis=1)
    candidates = len(codes) - _occurrences(codes)
    return candidates, _occurrences(label_ids) - _occurrences(pairs)


def _occurrences(values: np.ndarray) -> np.ndarray:
    """How often each row is there, int64 [N]."""
    _, which, counts = np.unique(values, axis=0, return_inverse=True, return_counts=True)
    return counts[which.reshape(-1)]


def random_hits(num_candidates: np.ndarray, num_right: np.ndarray, cut_offs: Iterable[int]) -> np.ndarray:
    """The exact chance of a right answer among the first K of a random order, float64 [K, Q]."""
    pairs, which = np.unique(np.stack([num_candidates, num_right], axis=1), axis=0, return_inverse=True)
    return np.stack(
        [
            np.asarray([float(retrieval.random_recall(int(n), int(m), k)) if m else 0.0 for n, m in pairs])[
                which.reshape(-1)
            ]
            for k in cut_offs
        ]
    )
