"""Calibration against the plain definition, against hand-worked numbers, and a temperature that is known."""

import json

import numpy as np
import pytest
from scipy import optimize

from plip_jax.evaluation import calibration
from plip_jax.evaluation.calibration import Reliability


def plain_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The definition, for a number of examples that 15 divides."""
    bins = np.argsort(confidence).reshape(15, -1)
    return float(np.abs(correct[bins].mean(axis=1) - confidence[bins].mean(axis=1)).mean())


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.2, 1, count)
    return confidence, rng.random(count) < confidence**2


@pytest.mark.parametrize("count", [15, 150, 3000])
def test_where_the_bins_come_out_even_it_is_the_plain_definition(count):
    confidence, correct = draw(count, count)
    reliability = Reliability(confidence, correct)
    expected = plain_error(confidence, correct)
    assert reliability.error() == pytest.approx(expected, abs=1e-12)  # float64 sums in another order
    curve = reliability.curve()
    assert [one["examples"] for one in curve] == [count / 15] * 15
    assert np.mean([abs(one["accuracy"] - one["confidence"]) for one in curve]) == pytest.approx(expected, abs=1e-12)


def test_by_hand():
    # Two examples, 15 bins: the eighth is half of each. 7 bins off by .6, one by |.5 - .8| = .3, 7 by 0 (right, sure).
    assert Reliability(np.array([1.0, 0.6]), np.array([True, False])).error() == pytest.approx(
        (7 * 0.6 + abs(0.5 - 0.8) + 7 * 0) / 15, abs=1e-15  # rounding of the cuts
    )  # fmt: skip
    assert Reliability(np.full(4, 0.75), np.array([1, 1, 0, 1])).error() == pytest.approx(0, abs=1e-15)  # the same


def test_a_weight_is_that_many_examples_and_order_does_not_matter():
    confidence, correct = draw(100, 0)
    confidence = np.round(confidence, 1)  # many ties
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, (6, 100)).astype(np.int32)
    found = Reliability(confidence, correct).error(weights)
    shuffled = rng.permutation(100)
    for row, own in enumerate(weights):
        again = Reliability(np.repeat(confidence, own), np.repeat(correct, own)).error()
        assert found[row] == pytest.approx(again, abs=1e-12)  # float64 sums in another order
    np.testing.assert_allclose(
        Reliability(confidence[shuffled], correct[shuffled]).error(weights[:, shuffled]), found, atol=1e-12  # the same
    )  # fmt: skip


def test_a_temperature_that_is_known_is_found_and_calibrates():
    rng = np.random.default_rng(0)
    scores = rng.uniform(-0.2, 0.4, (20_000, 4))
    truth = calibration.probabilities(scores, 12.0)
    labels = (truth.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    fitted = calibration.fit_scale(scores[:10_000], labels[:10_000])
    assert fitted.scale == pytest.approx(12, rel=0.03)  # 10,000 examples; the fit's own error is about 0.1
    assert not fitted.at_bound
    predicted = scores.argmax(axis=1)
    block, found = calibration.report_calibration(
        scores[10_000:], predicted[10_000:], labels[10_000:], scale=60.0, fitted=fitted
    )
    assert block["temperature"] == 60 / fitted.scale
    assert block["ece"] > 0.2
    assert block["ece_temperature"] < 0.03
    assert block["nll_temperature"] < block["nll"]
    assert found["ece"].error()[0] == block["ece"]
    assert json.loads(json.dumps(block, allow_nan=False)) == block


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_has_the_lowest_loss(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(50, 3)).astype(np.float32) * 0.1
    labels = (scores + rng.normal(size=(50, 3)) * 0.1).argmax(axis=1)
    fitted = calibration.fit_scale(scores, labels)
    search = optimize.minimize_scalar(
        lambda log: calibration.negative_log_likelihood(scores, labels, np.exp(log)), bounds=(-3, 10), method="bounded"
    )
    assert fitted.loss <= search.fun
    assert fitted.scale == pytest.approx(np.exp(search.x), rel=1e-4)  # what the search resolves of a flat minimum


def test_a_fit_without_a_lowest_loss_stops_at_a_bound_and_says_so():
    scores = np.array([[0.3, 0.1], [0.1, 0.3]])
    perfect, reversed_ = (calibration.fit_scale(scores, np.array(labels)) for labels in ([0, 1], [1, 0]))
    assert (perfect.at_bound, reversed_.at_bound) == (True, True)
    assert perfect.scale > 1e4 > 1 > reversed_.scale


def test_without_a_scale_or_validation_nothing_is_made_up():
    scores = np.array([[0.3, 0.1], [0.1, 0.3]])
    block, found = calibration.report_calibration(scores, np.array([0, 1]), np.array([0, 0]), None, None)
    assert found == {}
    assert {name for name, value in block.items() if value is not None} == {"bins", "binning"}


def test_what_is_no_confidence_is_refused():
    for confidence, correct in (([1.5], [True]), ([np.nan], [True]), ([0.5], [True, False]), ([], [])):
        with pytest.raises(ValueError, match="expected confidences"):
            Reliability(np.array(confidence), np.array(correct))
    with pytest.raises(ValueError, match="validation examples"):
        calibration.fit_scale(np.zeros((0, 2)), np.zeros(0, int))
