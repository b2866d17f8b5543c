"""Classification metrics from confusion matrices of integer counts, float64 on the host.

Every number equals scikit-learn's of the same name with ``zero_division=0`` (tests/evaluation/test_statistics.py),
so its conventions hold: a class that is never predicted has precision 0, a class without examples recall 0;
macro F1 averages over the classes that occur among the labels or the predictions, balanced accuracy over those
that occur among the labels; Matthews' coefficient of a constant prediction is 0. Quadratic kappa is not defined (NaN)
where all labels and all predictions are of one class.

The functions that end in ``_of`` take any number of matrices at once, int [..., K, K], as a bootstrap makes them; the
scalar ones are the same computation on one.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ClassificationMetrics:
    """Scores of one confusion matrix, each in [0, 1] but ``mcc`` in [-1, 1].

    Attributes:
        accuracy: correct / all.
        weighted_f1: F1 of each class, weighted by its number of examples (the score PLIP reports).
        macro_f1: mean F1 over the classes among labels or predictions.
        balanced_accuracy: mean recall over the classes among the labels.
        mcc: Matthews' correlation coefficient, multi-class (Gorodkin 2004, eq. 8).
    """

    accuracy: float
    weighted_f1: float
    macro_f1: float
    balanced_accuracy: float
    mcc: float

    def to_dict(self) -> dict[str, float]:
        """Plain dict, fit for JSON."""
        return dataclasses.asdict(self)


def confusion_matrix(label_ids: np.ndarray, predicted_ids: np.ndarray, num_classes: int) -> np.ndarray:
    """Count examples by (actual, predicted) class.

    Args:
        label_ids: integers in [0, num_classes), [N].
        predicted_ids: the same.
        num_classes: rows and columns of the result.

    Returns:
        int64 [num_classes, num_classes], rows actual; it sums to N.

    Raises:
        ValueError: lengths differ, not integers, or an id outside the classes.
    """
    label_ids, predicted_ids = np.asarray(label_ids), np.asarray(predicted_ids)
    if label_ids.shape != predicted_ids.shape or label_ids.ndim != 1:
        raise ValueError(f"expected two vectors of one length, got {label_ids.shape} and {predicted_ids.shape}")
    for name, ids in (("label_ids", label_ids), ("predicted_ids", predicted_ids)):
        if ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= num_classes):
            raise ValueError(f"{name}: expected integers in [0, {num_classes}), got {ids.dtype} up to {ids.max()}")
    flat = label_ids.astype(np.int64) * num_classes + predicted_ids.astype(np.int64)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def per_class_f1(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class, float64 [..., K] each; 0 where the denominator is 0."""
    correct = np.diagonal(counts, axis1=-2, axis2=-1)
    actual, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    return _ratio(correct, predicted), _ratio(correct, actual), _ratio(2 * correct, actual + predicted)


def classification_metrics(counts: np.ndarray) -> ClassificationMetrics:
    """Score a confusion matrix.

    Args:
        counts: integers [K, K], rows actual, columns predicted.

    Raises:
        ValueError: not a square matrix of non-negative integers, or no examples.
    """
    return ClassificationMetrics(**{name: float(value) for name, value in metrics_of(_check_counts(counts)).items()})


def metrics_of(counts: np.ndarray) -> dict[str, np.ndarray]:
    """The fields of `ClassificationMetrics` of many confusion matrices at once.

    Args:
        counts: integers [..., K, K], each matrix with at least one example.

    Returns:
        Named float64 [...].
    """
    correct, total = np.trace(counts, axis1=-2, axis2=-1), counts.sum(axis=(-2, -1))
    actual, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    _, recall, f1 = per_class_f1(counts)
    return {
        "accuracy": correct / total,
        "weighted_f1": (f1 * actual).sum(axis=-1) / total,
        "macro_f1": f1.sum(axis=-1) / (actual + predicted > 0).sum(axis=-1),  # F1 is 0 of the classes left out
        "balanced_accuracy": recall.sum(axis=-1) / (actual > 0).sum(axis=-1),
        "mcc": _matthews_of(counts),
    }


def quadratic_kappa(counts: np.ndarray) -> float | None:
    """Cohen's kappa of ordered classes with weights (i - j)^2 (Cohen 1968).

    Args:
        counts: integers [K, K], rows actual, columns predicted, the classes in the order of their grades.

    Returns:
        In [-1, 1]; None where all labels and predictions are of one class.

    Raises:
        ValueError: as `classification_metrics`.
    """
    value = float(quadratic_kappa_of(_check_counts(counts)))
    return None if np.isnan(value) else value


def quadratic_kappa_of(counts: np.ndarray) -> np.ndarray:
    """`quadratic_kappa` of many matrices, integers [..., K, K] -> float64 [...]; NaN where it is not defined."""
    counts = _wide_enough(counts, factor=2 * counts.shape[-1])
    grade = np.arange(counts.shape[-1])
    actual, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    observed = (counts * (grade[:, None] - grade) ** 2).sum(axis=(-2, -1))
    # sum_ij a_i p_j (i - j)^2, multiplied out: no K x K table of expected counts for each resample.
    (a, p), total = ((n * grade).sum(axis=-1) for n in (actual, predicted)), actual.sum(axis=-1)
    a2, p2 = ((n * grade**2).sum(axis=-1) for n in (actual, predicted))
    expected = np.asarray(total * (a2 + p2) - 2 * a * p)
    ratio = np.full(expected.shape, np.nan)
    np.divide(np.asarray(total * observed, np.float64), np.asarray(expected, np.float64), out=ratio, where=expected > 0)
    return 1 - ratio


def right_ranks(scores: np.ndarray, label_ids: np.ndarray) -> np.ndarray:
    """How many classes come before the right one; equal scores come in class order, as in `zero_shot.predict`.

    The right class is among the k best where this is below k.

    Args:
        scores: [N, K].
        label_ids: integers [N].

    Returns:
        int64 [N], in [0, K).
    """
    own = np.take_along_axis(scores, label_ids[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < label_ids[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def best_constant_class(counts: np.ndarray) -> tuple[int, ClassificationMetrics]:
    """The class that scores best when it is always answered, and its scores.

    Weighted F1 of the constant answer c is 2 p^2 / (1 + p) with p the share of c, and accuracy and macro F1 grow
    with p too, so the largest class is best at once in all; the lowest index wins a tie. Any score at or below
    these has learned nothing that the class sizes do not tell.

    Args:
        counts: a confusion matrix; only its row sums are read.
    """
    actual = _check_counts(counts).sum(axis=1)
    best = int(actual.argmax())
    constant = np.zeros_like(counts)
    constant[:, best] = actual
    return best, classification_metrics(constant)


def _matthews_of(counts: np.ndarray) -> np.ndarray:
    # Integers until the division: sums of products of counts are exact, and only the last steps round.
    counts = _wide_enough(counts)
    actual, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    s = actual.sum(axis=-1)
    covariance = np.trace(counts, axis1=-2, axis2=-1) * s - (actual * predicted).sum(axis=-1)
    variances = [np.asarray(s * s - (n * n).sum(axis=-1), np.float64) for n in (predicted, actual)]
    return _ratio(np.asarray(covariance, np.float64), np.sqrt(variances[0]) * np.sqrt(variances[1]))


def _wide_enough(counts: np.ndarray, factor: int = 1) -> np.ndarray:
    """Matrices whose squared total, times the factor squared, does not overflow: int64, or Python's integers."""
    largest = float(counts.astype(np.float64).sum(axis=(-2, -1)).max(initial=0)) * factor
    return counts.astype(np.int64 if largest < 2**31 else object)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    out = np.zeros(np.shape(numerator), np.float64)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def _check_counts(counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.dtype.kind not in "iu" or counts.min() < 0:
        raise ValueError(f"expected a square matrix of counts, got {counts.dtype} {counts.shape}")
    if counts.sum() == 0:
        raise ValueError("expected at least one example, got an empty confusion matrix")
    return counts
