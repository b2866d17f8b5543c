"""Calibration: softmax at a scale, expected calibration error over equal-mass bins, one fitted temperature.

The error is that of Guo et al. 2017 (https://arxiv.org/abs/1706.04599, eq. 3) over 15 bins that hold the same number
of examples, not the same width (Nguyen & O'Connor 2015; Nixon et al. 2019, https://arxiv.org/abs/1904.01685): with
equal widths nearly all examples of a confident model fall into one bin.

The convention here: examples are laid out by rising confidence of the predicted class, and bin b holds those between
b/15 and (b+1)/15 of them. An example that stands on an edge counts in both bins, in the share that lies there, and
examples of equal confidence are mixed before they are cut. So the number does not depend on the order of the data, an
example that counts twice is two examples, and where 15 divides their number and no confidence comes twice it is the
plain definition.
"""

import dataclasses
from typing import Any

import numpy as np
from scipy import optimize, special

NUM_BINS = 15
# The inverse temperatures that are looked at, on cosines: from all classes alike to a difference of 0.001 deciding.
_SCALES = (1e-2, 1e5)


def probabilities(scores: np.ndarray, scale: float) -> np.ndarray:
    """Softmax of scaled cosines, [N, K] -> float64 [N, K]."""
    return special.softmax(scale * np.asarray(scores, np.float64), axis=1)


class Reliability:
    """Confidence against being right; sorted once for all resamples."""

    def __init__(self, confidence: np.ndarray, correct: np.ndarray):
        """Lay examples out by rising confidence.

        Args:
            confidence: probability of the predicted class, [N].
            correct: whether it is the right one, bool [N].

        Raises:
            ValueError: lengths differ, no examples, or a confidence outside [0, 1].
        """
        confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, bool)
        if (
            confidence.shape != correct.shape
            or not len(confidence)
            or not ((confidence >= 0) & (confidence <= 1)).all()
        ):
            raise ValueError(
                f"expected confidences in [0, 1] and whether each is right, got {confidence.shape} and {correct.shape}"
            )
        self._order = np.argsort(confidence, kind="stable")
        self._confidence, self._correct = confidence[self._order], correct[self._order]
        self._ends = np.flatnonzero(np.append(np.diff(self._confidence) != 0, True))

    def error(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Expected calibration error.

        Args:
            weights: integers [r, N]; None for one row of ones.

        Returns:
            float64 [r], in [0, 1].
        """
        if weights is None:
            weights = np.ones((1, len(self._order)), np.int32)
        gaps = self._correct - self._confidence
        out = np.empty(len(weights), np.float64)
        for row, own in enumerate(weights):
            sorted_weights = own.take(self._order)
            (gap,) = self._per_bin(sorted_weights, gaps)
            out[row] = np.abs(gap).sum() / sorted_weights.sum()
        return out

    def curve(self) -> list[dict[str, float]]:
        """The bins of a reliability diagram: mean ``confidence``, ``accuracy`` and number of ``examples`` of each."""
        weights = np.ones(len(self._order), np.int64)
        confidence, correct = self._per_bin(weights, self._confidence, self._correct)
        examples = len(self._order) / NUM_BINS
        return [
            {"confidence": float(c / examples), "accuracy": float(a / examples), "examples": examples}
            for c, a in zip(confidence, correct, strict=True)
        ]

    def _per_bin(self, weights: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
        """Weighted sums of values over each bin, float64 [NUM_BINS] each; examples in rising confidence."""
        # Sums up to any place between two examples are linear in between: an example is cut where an edge is.
        mass = np.concatenate([[0.0], weights.cumsum(dtype=np.float64)[self._ends]])
        edges = mass[-1] * np.arange(NUM_BINS + 1) / NUM_BINS
        sums = (np.concatenate([[0.0], (weights * one).cumsum(dtype=np.float64)[self._ends]]) for one in values)
        return [np.diff(np.interp(edges, mass, one)) for one in sums]


@dataclasses.dataclass(frozen=True)
class FittedScale:
    """The scale of cosines that gives the lowest loss.

    Attributes:
        scale: what cosines are multiplied by; the learned one divided by the temperature.
        loss: mean negative log-likelihood with it, in nats.
        at_bound: every larger (or smaller) scale would be better still: the classes are told apart without an error, or
            not at all.
    """

    scale: float
    loss: float
    at_bound: bool


def fit_scale(scores: np.ndarray, label_ids: np.ndarray) -> FittedScale:
    """Temperature scaling (Guo et al. 2017, section 4.2): one number, fitted by the loss of validation examples.

    The loss is convex in the scale, so its slope has one root.

    Args:
        scores: cosines [N, K] of validation examples.
        label_ids: integers [N].

    Raises:
        ValueError: no examples.
    """
    scores = np.asarray(scores, np.float64)
    if not len(scores):
        raise ValueError("expected validation examples to fit a temperature on, got none")
    own = scores[np.arange(len(scores)), label_ids]

    def slope(log_scale: float) -> float:
        return float(((probabilities(scores, np.exp(log_scale)) * scores).sum(axis=1) - own).mean())

    low, high = np.log(_SCALES)
    if slope(low) >= 0 or slope(high) <= 0:
        scale, at_bound = _SCALES[int(slope(low) < 0)], True
    else:
        scale, at_bound = float(np.exp(optimize.root_scalar(slope, bracket=(low, high), xtol=1e-12).root)), False
    return FittedScale(scale, negative_log_likelihood(scores, label_ids, scale), at_bound)


def negative_log_likelihood(scores: np.ndarray, label_ids: np.ndarray, scale: float) -> float:
    """Mean loss of softmax at a scale, in nats."""
    logs = special.log_softmax(scale * np.asarray(scores, np.float64), axis=1)
    return float(-logs[np.arange(len(logs)), label_ids].mean())


def reliability(scores: np.ndarray, predicted: np.ndarray, label_ids: np.ndarray, scale: float) -> Reliability:
    """The reliability of predictions whose confidence is softmax at a scale.

    Args:
        scores: cosines [N, K].
        predicted: integers [N].
        label_ids: integers [N].
        scale: of the cosines.
    """
    confidence = probabilities(scores, scale)[np.arange(len(predicted)), predicted]
    return Reliability(np.minimum(confidence, 1), predicted == label_ids)


def report_calibration(
    scores: np.ndarray,
    predicted: np.ndarray,
    label_ids: np.ndarray,
    scale: float | None,
    fitted: FittedScale | None,
) -> tuple[dict[str, Any], dict[str, Reliability]]:
    """The ``calibration`` block of a report, and what its errors are resampled from.

    Args:
        scores: cosines [N, K] of the test examples.
        predicted: integers [N].
        label_ids: integers [N].
        scale: the learned one; None where the model has none.
        fitted: from validation examples; None where there are none.

    Returns:
        The block, JSON-able, with None for what is not known; and by name (``ece``, ``ece_temperature``) the
        `Reliability` of each error that is.
    """
    scales = {"ece": scale, "ece_temperature": None if fitted is None else fitted.scale}
    found = {name: reliability(scores, predicted, label_ids, s) for name, s in scales.items() if s is not None}
    errors = {name: float(one.error()[0]) for name, one in found.items()}
    return {
        "bins": NUM_BINS,
        "binning": "equal mass",
        "scale": scale,
        "ece": errors.get("ece"),
        "nll": None if scale is None else negative_log_likelihood(scores, label_ids, scale),
        "temperature": None if fitted is None or scale is None else scale / fitted.scale,
        "fitted_scale": None if fitted is None else fitted.scale,
        "temperature_at_bound": None if fitted is None else fitted.at_bound,
        "validation_nll": None if fitted is None else fitted.loss,
        "ece_temperature": errors.get("ece_temperature"),
        "nll_temperature": None if fitted is None else negative_log_likelihood(scores, label_ids, fitted.scale),
        "curve": found["ece"].curve() if "ece" in found else None,
        "curve_temperature": found["ece_temperature"].curve() if "ece_temperature" in found else None,
    }, found
