"""Classifiers that hardly train: nearest neighbours, and SimpleShot from a few examples a class.

All of it is exact and runs in blocks, so memory does not grow with the number of queries or episodes.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from plip_jax.evaluation.embeddings import EvaluationError, Similarity
from plip_jax.evaluation.units import Units

# Scores, or gathered features, held at a time.
_BLOCK = 2**23


def nearest(train: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The k training examples with the highest cosine, best first; of equal ones the lower row first.

    Args:
        train: float32 [N, D], L2-normalised.
        queries: float32 [Q, D], L2-normalised.
        k: at most N.

    Returns:
        Rows of ``train``, int64 [Q, k].
    """
    similarity = Similarity(train)
    found = np.empty((len(queries), k), np.int64)
    # One integer orders by score, then by row: no two are equal, so a partition cannot cut through a tie.
    last = np.int64(2**32 - 1)
    row_key = last - np.arange(len(train), dtype=np.int64)
    block = max(1, _BLOCK // len(train))
    for start in range(0, len(queries), block):
        keys = (_rising_integers(similarity(queries[start : start + block])) << 32) + row_key
        keys.partition(len(train) - k, axis=1)
        best = np.sort(keys[:, len(train) - k :], axis=1)[:, ::-1]
        found[start : start + block] = last - (best & last)
    return found


def vote(neighbour_ids: np.ndarray, num_classes: int) -> np.ndarray:
    """The class of most neighbours; of classes with as many, that of the nearest neighbour among them.

    Args:
        neighbour_ids: class ids of the neighbours, nearest first, integers [Q, k].
        num_classes: K.

    Returns:
        int64 [Q].
    """
    queries, k = neighbour_ids.shape
    rows = np.arange(queries)
    votes, first = np.zeros((queries, num_classes), np.int64), np.full((queries, num_classes), k, np.int64)
    for place in reversed(range(k)):
        votes[rows, neighbour_ids[:, place]] += 1
        first[rows, neighbour_ids[:, place]] = place
    return (votes * (k + 1) - first).argmax(axis=1).astype(np.int64)


def draw_episodes(
    label_ids: np.ndarray, units: Units, num_classes: int, shots: int, episodes: int, seed: int
) -> np.ndarray:
    """Draw the training examples of each episode: every class, from as many different units as there are.

    A class's first example is from one unit, the second from another, and so on; a unit gives a second example only
    when each has given one. So the first s shots of an episode are themselves a draw of s shots.

    Args:
        label_ids: integers in [0, num_classes), [N].
        units: of the N examples.
        num_classes: K.
        shots: S, examples a class.
        episodes: E.
        seed: of the draws.

    Returns:
        Rows, int64 [E, K, S].

    Raises:
        EvaluationError: a class with fewer than S examples.
    """
    rng = np.random.default_rng(seed)
    drawn = np.empty((episodes, num_classes, shots), np.int64)
    for number in range(num_classes):
        rows = np.flatnonzero(label_ids == number)
        if len(rows) < shots:
            raise EvaluationError(f"expected {shots} or more examples of class {number} to draw, got {len(rows)}")
        rows = rows[np.argsort(units.of_item[rows], kind="stable")]
        sizes = np.unique(units.of_item[rows], return_counts=True)[1]
        starts = np.cumsum(sizes) - sizes
        for episode in range(episodes):
            drawn[episode, number] = rows[_spread(starts, sizes, shots, rng)]
    return drawn


def _spread(starts: np.ndarray, sizes: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Places of the drawn examples among a class's, which lie unit by unit."""
    if len(sizes) >= shots:
        units = rng.choice(len(sizes), shots, replace=False)
        return starts[units] + rng.integers(0, sizes[units])
    unit = np.repeat(np.arange(len(sizes)), sizes)
    mixed = rng.permutation(len(unit))
    by_unit = mixed[np.argsort(unit[mixed], kind="stable")]  # each unit's own examples, mixed
    turn = np.arange(len(unit)) - starts[unit]
    return by_unit[np.lexsort((rng.permutation(len(sizes))[unit], turn))[:shots]]


def centre(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Subtract a mean and scale each row to length 1 (SimpleShot's CL2N; Wang et al. 2019, section 3.2).

    Features [N, D] and a mean [D] give float32 [N, D]. A row that is the mean itself stays zero: it is as far from
    every class.
    """
    moved = np.asarray(features, np.float32) - np.asarray(mean, np.float32)
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.divide(moved, norms, out=np.zeros_like(moved), where=norms > 0)


def simple_shot(train: np.ndarray, queries: np.ndarray, episodes: np.ndarray) -> Iterator[np.ndarray]:
    """Answer every query in every episode: the class whose mean is nearest in Euclidean distance (Wang et al. 2019).

    Args:
        train: float32 [N, D], of `centre`.
        queries: float32 [Q, D], of `centre` with the same mean.
        episodes: rows of ``train``, int64 [E, K, S].

    Yields:
        Class ids int64 [e, Q] of the next e episodes, E in all; of equally near classes the lowest.
    """
    _, num_classes, shots = episodes.shape
    at_once = max(1, _BLOCK // (num_classes * max(shots * train.shape[1], len(queries))))
    for start in range(0, len(episodes), at_once):
        means = train[episodes[start : start + at_once]].mean(axis=2)  # [e, K, D]
        flat = means.reshape(-1, means.shape[-1])
        # |q - m|^2 = |q|^2 - 2 q.m + |m|^2, and the first term is the same for every class.
        nearness = 2 * (queries @ flat.T) - (flat * flat).sum(axis=1)
        answers = nearness.reshape(len(queries), len(means), num_classes).argmax(axis=2)
        yield answers.T.astype(np.int64)


def confusion_of_episodes(label_ids: np.ndarray, answers: np.ndarray, num_classes: int) -> np.ndarray:
    """The confusion matrix of each episode.

    Args:
        label_ids: integers in [0, num_classes), [Q].
        answers: of each episode, integers [e, Q].
        num_classes: K.

    Returns:
        int64 [e, K, K], rows actual.
    """
    cells = label_ids * num_classes + answers + num_classes**2 * np.arange(len(answers))[:, None]
    counts = np.bincount(cells.ravel(), minlength=len(answers) * num_classes**2)
    return counts.reshape(len(answers), num_classes, num_classes)


def too_small(label_ids: np.ndarray, classes: Sequence[str], shots: int) -> list[str]:
    """The classes with fewer examples than shots, each with its number of examples."""
    counts = np.bincount(label_ids, minlength=len(classes))
    return [f"{label} ({count})" for label, count in zip(classes, counts, strict=True) if count < shots]


def _rising_integers(scores: np.ndarray) -> np.ndarray:
    """Integers in the order of the float32 scores, int64: IEEE 754 bits, those of negative numbers turned around."""
    bits = (scores + np.float32(0)).view(np.int32)  # -0 becomes 0: equal values, equal integers
    return np.where(bits < 0, np.int32(-(2**31)) - bits, bits).astype(np.int64)
