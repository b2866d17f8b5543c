"""Ranking measures against scikit-learn, ties and weights included, and against hand-worked numbers."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from plip_jax.evaluation import ranking_metrics
from plip_jax.evaluation.ranking_metrics import Ranking

NAMES = ("auroc", "auprc", "sensitivity_at_95_specificity")
TOLERANCE = 1e-12  # float64 sums in another order


def theirs_at_95(positive, scores, weights=None) -> float:
    false_share, found_share, _ = sklearn_metrics.roc_curve(
        positive, scores, sample_weight=weights, drop_intermediate=False
    )
    return found_share[false_share <= 0.05 + 1e-12].max()


def draw(seed: int, num_levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = rng.random(300) < 0.3
    scores = rng.normal(size=300) + positive
    if num_levels:
        scores = np.round(scores * num_levels / 6)  # few distinct values: most pairs tie
    return scores.astype(np.float32), positive, rng.integers(0, 4, (17, 300)).astype(np.int32)


@pytest.mark.parametrize("num_levels", [0, 3, 40])
@pytest.mark.parametrize("seed", range(4))
def test_every_measure_equals_sklearns(seed, num_levels):
    scores, positive, weights = draw(seed, num_levels)
    ranking = Ranking(scores, positive)
    assert ranking_metrics.numbers(ranking.measure(NAMES)) == pytest.approx(
        {
            "auroc": sklearn_metrics.roc_auc_score(positive, scores),
            "auprc": sklearn_metrics.average_precision_score(positive, scores),
            "sensitivity_at_95_specificity": theirs_at_95(positive, scores),
        },
        abs=TOLERANCE,
    )
    weighted = {
        "auroc": [sklearn_metrics.roc_auc_score(positive, scores, sample_weight=w) for w in weights],
        "auprc": [sklearn_metrics.average_precision_score(positive, scores, sample_weight=w) for w in weights],
        "sensitivity_at_95_specificity": [theirs_at_95(positive, scores, w) for w in weights],
    }
    ours = ranking.measure(NAMES, weights)
    assert list(ours) == list(weighted)
    for name, values in weighted.items():
        np.testing.assert_allclose(ours[name], values, atol=TOLERANCE, rtol=0)


def test_a_weight_is_that_many_examples():
    scores, positive, weights = draw(0, 8)
    ranking = Ranking(scores, positive)
    for row in weights[:5]:
        again = Ranking(np.repeat(scores, row), np.repeat(positive, row))
        assert ranking.measure(NAMES, row[None]) == again.measure(NAMES)


def test_chunks_change_nothing(monkeypatch):
    scores, positive, weights = draw(1, 5)
    ranking = Ranking(scores, positive)
    whole = ranking.measure(NAMES, weights)
    monkeypatch.setattr(ranking_metrics, "_CHUNK", 700)
    for name, values in ranking.measure(NAMES, weights).items():
        np.testing.assert_array_equal(values, whole[name])


def test_the_callers_weights_are_left_alone():
    scores, positive, weights = draw(2, 5)
    before = weights.copy()
    Ranking(scores, positive).measure(NAMES, weights)
    np.testing.assert_array_equal(weights, before)


@pytest.mark.parametrize("seed", range(4))
def test_one_vs_rest_equals_sklearns_macro(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 200)
    scores = np.round(rng.random((200, 5)) + np.eye(5)[labels] * 0.3, 1)
    scores /= scores.sum(axis=1, keepdims=True)
    found = ranking_metrics.numbers(ranking_metrics.macro_measures(ranking_metrics.one_vs_rest(scores, labels)))
    theirs = {
        "auroc": sklearn_metrics.roc_auc_score(labels, scores, multi_class="ovr", average="macro"),
        "auprc": sklearn_metrics.average_precision_score(np.eye(5)[labels], scores, average="macro"),
    }
    assert found == pytest.approx(theirs, abs=TOLERANCE)


def measure(name: str, scores, positive, weights=None) -> list[float]:
    return Ranking(np.asarray(scores), np.asarray(positive)).measure([name], weights)[name].tolist()


def test_by_hand():
    # Falling: + - + -, so of the four pairs three are in order; precision 1 and 2/3 at the two positives.
    scores, positive = [4, 3, 2, 1], [True, False, True, False]
    assert measure("auroc", scores, positive) == [0.75]
    assert measure("auprc", scores, positive) == [(1 + 2 / 3) / 2]
    assert measure("sensitivity_at_95_specificity", scores, positive) == [0.5]
    # The positives twice: the same pairs, and precision 2/2 and 4/5.
    assert measure("auprc", scores, positive, np.array([[2, 1, 2, 1]])) == [0.9]


def test_one_of_twenty_negatives_may_be_wrong():
    positive = np.array([False] + [True] * 3 + [False] * 19)
    assert measure("sensitivity_at_95_specificity", -np.arange(23), positive) == [1]
    assert measure("sensitivity_at_95_specificity", -np.arange(22), positive[:22]) == [0]  # of 19, not one


def test_what_is_not_defined_is_nan_and_left_out_of_means():
    scores = [3.0, 2.0, 1.0]
    assert np.isnan(measure("auroc", scores, [1, 1, 1])).all()
    assert measure("auprc", scores, [1, 1, 1]) == [1]
    assert np.isnan(measure("sensitivity_at_95_specificity", scores, [1, 1, 1])).all()
    assert ranking_metrics.numbers(Ranking(np.array(scores), np.zeros(3)).measure(NAMES)) == {}
    rankings = [Ranking(np.array(scores), np.array(positive)) for positive in ([1, 1, 1], [1, 0, 0])]
    assert ranking_metrics.numbers(ranking_metrics.macro_measures(rankings)) == {"auroc": 1, "auprc": 1}
    # In the second resample the only positive was not drawn.
    weights = np.array([[1, 1, 1], [0, 2, 1]])
    assert np.isnan(measure("auroc", scores, [1, 0, 0], weights)).tolist() == [False, True]


@pytest.mark.parametrize(("scores", "positive"), [([1.0, np.nan], [0, 1]), ([1.0], [0, 1]), ([[1.0]], [[1]]), ([], [])])
def test_what_cannot_be_ranked_is_refused(scores, positive):
    with pytest.raises(ValueError, match="expected finite scores"):
        Ranking(np.asarray(scores), np.asarray(positive))
