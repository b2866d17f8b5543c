"""Measures of a ranking: AUROC, average precision, sensitivity at a specificity; for many bootstrap resamples at once.

Every number equals scikit-learn's of the same definition, ties included (tests/evaluation/test_ranking_metrics.py).
Weights are whole numbers and are summed as such in float64, which is exact below 2^53; only the last quotients round.
A measure is NaN where it is not defined: AUROC and sensitivity without a positive or without a negative example,
average precision without a positive one.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

# Numbers held at a time in one of the temporaries: rows are taken together while they fit a core's cache.
_CHUNK = 2**18


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Weights of examples above each threshold that finds a positive one, float64 of whole numbers.

    Attributes:
        true: positives at or above it, [r, T], rising.
        false: negatives at or above it, [r, T].
        gain: positives exactly at it, [r, T].
        false_before: negatives strictly above it, [r, T].
        all_true: positives, [r].
        all_false: negatives, [r].
    """

    true: np.ndarray
    false: np.ndarray
    gain: np.ndarray
    false_before: np.ndarray
    all_true: np.ndarray
    all_false: np.ndarray


class Ranking:
    """Examples of one yes-or-no question in the order of falling scores; sorted once for all resamples."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray):
        """Sort the examples.

        Args:
            scores: [N], higher for what is more likely positive.
            positive: bool [N].

        Raises:
            ValueError: lengths differ, no examples, or a score that is not finite.
        """
        scores, positive = np.asarray(scores), np.asarray(positive, bool)
        if scores.ndim != 1 or scores.shape != positive.shape or not len(scores) or not np.isfinite(scores).all():
            raise ValueError(
                f"expected finite scores and answers, as many, got {scores.shape} and {positive.shape} with "
                f"{int((~np.isfinite(scores)).sum())} not finite"
            )
        self._order = np.argsort(-scores, kind="stable")
        falling, positive = scores[self._order], positive[self._order]
        # Runs of equal scores, by their last example. No measure changes at a run without a positive example.
        ends = np.flatnonzero(np.append(np.diff(falling) != 0, True))
        run_of = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1))
        runs, of_positive = np.unique(run_of[positive], return_inverse=True)
        self._positives = self._order[positive]
        self._last_positive = np.flatnonzero(np.append(np.diff(of_positive) != 0, len(of_positive) > 0))
        self._ends, self._starts = ends[runs], np.append(-1, ends)[runs] + 1

    def measure(self, names: Sequence[str], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Compute several measures from one pass over the weights.

        Args:
            names: keys of ``MEASURES``.
            weights: integers [r, N]; None for one row of ones.

        Returns:
            Named float64 [r].
        """
        if weights is None:
            weights = np.ones((1, len(self._order)), np.int32)
        step = max(1, _CHUNK // len(self._order))
        out = {name: np.empty(len(weights), np.float64) for name in names}
        for start in range(0, len(weights), step):
            thresholds = self._thresholds(weights[start : start + step])
            for name in names:
                out[name][start : start + step] = MEASURES[name](thresholds)
        return out

    def _thresholds(self, weights: np.ndarray) -> "Thresholds":
        # Whole numbers until here: sums are exact, and adding them up is faster.
        true = weights.take(self._positives, axis=1).cumsum(axis=1, dtype=np.int64)
        every = np.zeros((len(weights), len(self._order) + 1), np.int64)
        weights.take(self._order, axis=1).cumsum(axis=1, out=every[:, 1:])
        all_true = true[:, -1].astype(np.float64) if true.shape[1] else np.zeros(len(weights))
        true = true[:, self._last_positive].astype(np.float64)
        true_before = np.concatenate([np.zeros((len(weights), 1)), true[:, :-1]], axis=1)[:, : true.shape[1]]
        return Thresholds(
            true=true,
            false=every[:, self._ends + 1] - true,
            gain=true - true_before,
            false_before=every[:, self._starts] - true_before,
            all_true=all_true,
            all_false=every[:, -1] - all_true,
        )


def one_vs_rest(scores: np.ndarray, label_ids: np.ndarray) -> list[Ranking]:
    """A ranking for each class against all others.

    Args:
        scores: [N, K], comparable between examples.
        label_ids: integers [N].
    """
    return [Ranking(scores[:, k], label_ids == k) for k in range(scores.shape[1])]


def mean_of_defined(values: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over classes of those that are defined, [r] each -> float64 [r]; NaN where none is."""
    table = np.stack(values)
    defined = np.isfinite(table)
    count = defined.sum(axis=0)
    total = np.where(defined, table, 0).sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def macro_measures(rankings: Sequence[Ranking], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """``auroc`` and ``auprc`` averaged over classes, float64 [r] each; a class not in a resample is left out of it."""
    found = [ranking.measure(("auroc", "auprc"), weights) for ranking in rankings]
    return {name: mean_of_defined([one[name] for one in found]) for name in ("auroc", "auprc")}


def numbers(measures: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The first resample's measures as plain numbers, those that are not defined left out."""
    return {name: float(values[0]) for name, values in measures.items() if np.isfinite(values[0])}


def auroc(at: Thresholds) -> np.ndarray:
    """Area under the ROC curve: a pair of positive and negative in the right order counts 1, a tie 1/2.

    float64 [r]; NaN without a positive or without a negative.
    """
    # Twice the number of pairs in order, so that a tie's half is whole, too.
    pairs = (at.gain * (2 * at.all_false[:, None] - at.false - at.false_before)).sum(axis=1)
    return _quotient(pairs, 2 * at.all_true * at.all_false)


def average_precision(at: Thresholds) -> np.ndarray:
    """Mean over the positives of the precision at their threshold, without interpolation (scikit-learn's AP).

    float64 [r]; NaN without a positive.
    """
    precision = at.true + at.false
    np.divide(at.true, precision, out=precision, where=precision > 0)  # where nothing is found yet the gain is 0
    return _quotient((at.gain * precision).sum(axis=1), at.all_true)


def sensitivity_at_95_specificity(at: Thresholds) -> np.ndarray:
    """The highest sensitivity of a threshold at which at least 95 % of the negatives are called so.

    float64 [r]; NaN without a positive or without a negative.
    """
    # A whole number of negatives may be wrong, and 20 * false <= negatives compares whole numbers.
    best = np.where(20 * at.false <= at.all_false[:, None], at.true, 0).max(axis=1, initial=0)
    return np.where(at.all_false > 0, _quotient(best, at.all_true), np.nan)


MEASURES: dict[str, Callable[[Thresholds], np.ndarray]] = {
    "auroc": auroc,
    "auprc": average_precision,
    "sensitivity_at_95_specificity": sensitivity_at_95_specificity,
}
"""Name in a report -> measure: float64 [r], a value for each resample; NaN where it is not defined."""


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
