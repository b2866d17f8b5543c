"""Metrics against scikit-learn, against PLIP's published confusion matrix, and against hand-worked numbers."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from plip_jax.evaluation import statistics

# PLIP on Kather (Huang et al. 2023, extended data), rows actual, order ADI BACK STR TUM DEB LYM MUC NORM MUS.
PLIP_KATHER = np.array(
    [
        [1027, 92, 169, 0, 47, 0, 3, 0, 0],
        [0, 847, 0, 0, 0, 0, 0, 0, 0],
        [0, 6, 276, 3, 0, 0, 0, 0, 136],
        [0, 62, 436, 702, 1, 0, 5, 22, 5],
        [0, 175, 141, 1, 3, 0, 0, 1, 18],
        [0, 64, 131, 1, 0, 437, 1, 0, 0],
        [1, 125, 867, 2, 0, 0, 6, 0, 34],
        [2, 110, 65, 226, 0, 0, 7, 331, 0],
        [0, 2, 168, 3, 0, 0, 1, 0, 418],
    ]
)


def test_plips_published_kather_matrix_gives_its_published_score():
    assert PLIP_KATHER.sum() == 7180
    assert round(statistics.classification_metrics(PLIP_KATHER).weighted_f1, 4) == 0.5647


def test_the_published_constant_baseline_of_kather_is_the_adipose_class():
    best, scores = statistics.best_constant_class(PLIP_KATHER)
    assert best == 0
    assert round(scores.weighted_f1, 3) == 0.059
    assert scores.accuracy == 1338 / 7180
    assert scores.balanced_accuracy == pytest.approx(1 / 9, abs=1e-15)  # one rounding of a mean of nine
    assert scores.mcc == 0


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.filterwarnings(
    # sklearn says so for balanced accuracy, where we follow it
    "ignore:y_pred contains classes not in y_true:UserWarning"
)
def test_every_metric_equals_sklearns(seed):
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(2, 12))
    # Some classes are absent, some never predicted, some neither, and sizes differ widely.
    label_share = rng.dirichlet(np.full(num_classes, 0.3)) * (rng.random(num_classes) < 0.8)
    predicted_share = rng.dirichlet(np.full(num_classes, 0.3)) * (rng.random(num_classes) < 0.8)
    label_share, predicted_share = (s / s.sum() if s.sum() else np.eye(num_classes)[0] for s in
                                    (label_share, predicted_share))  # fmt: skip
    labels = rng.choice(num_classes, size=500, p=label_share)
    predicted = np.where(rng.random(500) < 0.4, labels, rng.choice(num_classes, size=500, p=predicted_share))

    counts = statistics.confusion_matrix(labels, predicted, num_classes)
    ours = statistics.classification_metrics(counts)

    tolerance = 1e-12  # float64 sums in another order
    order = list(range(num_classes))
    np.testing.assert_array_equal(counts, sklearn_metrics.confusion_matrix(labels, predicted, labels=order))
    theirs = {
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
        "weighted_f1": sklearn_metrics.f1_score(labels, predicted, average="weighted", zero_division=0),
        "macro_f1": sklearn_metrics.f1_score(labels, predicted, average="macro", zero_division=0),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
        "mcc": sklearn_metrics.matthews_corrcoef(labels, predicted),
    }
    assert ours.to_dict() == pytest.approx(theirs, abs=tolerance, rel=0)
    precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=order, zero_division=0
    )
    for mine, reference in zip(statistics.per_class_f1(counts), (precision, recall, f1), strict=True):
        np.testing.assert_allclose(mine, reference, atol=tolerance, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_no_constant_answer_beats_the_best_constant_class(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, size=50, p=rng.dirichlet(np.ones(4)))
    counts = statistics.confusion_matrix(labels, labels, 4)
    best, scores = statistics.best_constant_class(counts)
    for constant in range(4):
        predicted = np.full(50, constant)
        other = statistics.classification_metrics(statistics.confusion_matrix(labels, predicted, 4))
        assert other.weighted_f1 <= scores.weighted_f1
        assert other.macro_f1 <= scores.macro_f1
        if constant == best:
            assert other == scores


def test_a_tie_of_constant_classes_goes_to_the_lowest_index():
    assert statistics.best_constant_class(np.diag([3, 5, 5]))[0] == 1


def test_mcc_is_exact_where_int64_products_overflow():
    counts = np.array([[3, 1], [1, 3]], np.int64) * 10**10
    assert statistics.classification_metrics(counts).mcc == pytest.approx(0.5, abs=1e-15)  # one rounding


@pytest.mark.parametrize(
    ("labels", "predicted", "message"),
    [([0, 1], [0], "one length"), ([0, 3], [0, 0], "label_ids"), ([0], [-1], "predicted_ids"), ([0.5], [0], "float")],
)
def test_wrong_ids_are_refused(labels, predicted, message):
    with pytest.raises(ValueError, match=message):
        statistics.confusion_matrix(np.array(labels), np.array(predicted), 3)


@pytest.mark.parametrize(
    "counts", [np.zeros((2, 2), int), np.ones((2, 3), int), np.ones((2, 2)), -np.eye(2, dtype=int)]
)
def test_what_is_not_a_confusion_matrix_is_refused(counts):
    with pytest.raises(ValueError, match="expected"):
        statistics.classification_metrics(counts)


@pytest.mark.parametrize("seed", range(10))
def test_quadratic_kappa_equals_sklearns(seed):
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(2, 8))
    labels = rng.integers(0, num_classes, 300)
    predicted = np.clip(labels + rng.integers(-2, 3, 300), 0, num_classes - 1)
    counts = statistics.confusion_matrix(labels, predicted, num_classes)
    theirs = sklearn_metrics.cohen_kappa_score(labels, predicted, weights="quadratic")
    assert statistics.quadratic_kappa(counts) == pytest.approx(theirs, abs=1e-12)  # float64 sums in another order


def test_quadratic_kappa_by_hand_and_where_it_is_not_defined():
    # Observed: one off by 2, so 4. By chance: (2 actual 0 * 1 predicted 2 + 2 actual 2 * 3 predicted 0) * 4 / 4 = 8.
    assert statistics.quadratic_kappa(np.array([[2, 0, 0], [0, 0, 0], [1, 0, 1]])) == 0.5
    assert statistics.quadratic_kappa(np.diag([5, 0, 0])) is None
    assert statistics.quadratic_kappa(np.array([[0, 5], [0, 0]])) == 0
    assert statistics.quadratic_kappa(np.array([[3, 1], [1, 3]], np.int64) * 10**10) == pytest.approx(0.5, abs=1e-15)


def test_top_k_counts_the_right_class_among_the_k_best_and_ties_in_class_order():
    scores = np.array([[0.1, 0.5, 0.4], [0.3, 0.3, 0.3], [0.3, 0.3, 0.3], [0.9, 0.0, 0.1]])
    labels = np.array([2, 0, 2, 1])
    assert statistics.right_ranks(scores, labels).tolist() == [1, 0, 2, 2]
    distinct = np.random.default_rng(0).permuted(np.tile(np.arange(6.0), (200, 1)), axis=1)
    labels = np.random.default_rng(1).integers(0, 6, 200)
    for k in range(1, 6):
        assert (statistics.right_ranks(distinct, labels) < k).mean() == sklearn_metrics.top_k_accuracy_score(
            labels, distinct, k=k, labels=range(6)
        )
