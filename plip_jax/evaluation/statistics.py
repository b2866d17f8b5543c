"""Classification metrics from a confusion matrix of integer counts, float64 on the host.

Every number equals scikit-learn's of the same name with ``zero_division=0`` (tests/evaluation/test_statistics.py),
so its conventions hold: a class that is never predicted has precision 0, a class without examples recall 0;
macro F1 averages over the classes that occur among the labels or the predictions, balanced accuracy over those
that occur among the labels; Matthews' coefficient of a constant prediction is 0.
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
    """Precision, recall and F1 of each class, float64 [K] each; 0 where the denominator is 0."""
    correct = np.diag(counts)
    actual, predicted = counts.sum(axis=1), counts.sum(axis=0)
    return _ratio(correct, predicted), _ratio(correct, actual), _ratio(2 * correct, actual + predicted)


def classification_metrics(counts: np.ndarray) -> ClassificationMetrics:
    """Score a confusion matrix.

    Args:
        counts: integers [K, K], rows actual, columns predicted.

    Raises:
        ValueError: not a square matrix of non-negative integers, or no examples.
    """
    counts = _check_counts(counts)
    correct, total = np.diag(counts), counts.sum()
    actual, predicted = counts.sum(axis=1), counts.sum(axis=0)
    _, recall, f1 = per_class_f1(counts)
    return ClassificationMetrics(
        accuracy=float(correct.sum() / total),
        weighted_f1=float((f1 * actual).sum() / total),
        macro_f1=float(f1[(actual + predicted) > 0].mean()),
        balanced_accuracy=float(recall[actual > 0].mean()),
        mcc=_matthews(correct, actual, predicted),
    )


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


def _matthews(correct: np.ndarray, actual: np.ndarray, predicted: np.ndarray) -> float:
    # Python integers: sums of products of counts are exact at any size, and only the last division rounds.
    c, s = int(correct.sum()), int(actual.sum())
    p, t = [int(n) for n in predicted], [int(n) for n in actual]
    covariance = c * s - sum(a * b for a, b in zip(p, t, strict=True))
    predicted_variance = s * s - sum(n * n for n in p)
    actual_variance = s * s - sum(n * n for n in t)
    if predicted_variance == 0 or actual_variance == 0:
        return 0.0
    return covariance / (predicted_variance**0.5 * actual_variance**0.5)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    out = np.zeros(numerator.shape, np.float64)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def _check_counts(counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.dtype.kind not in "iu" or counts.min() < 0:
        raise ValueError(f"expected a square matrix of counts, got {counts.dtype} {counts.shape}")
    if counts.sum() == 0:
        raise ValueError("expected at least one example, got an empty confusion matrix")
    return counts
