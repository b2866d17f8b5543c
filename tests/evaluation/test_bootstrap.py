"""The bootstrap against literals, against weights spelt out, and against what intervals promise."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from plip_jax.evaluation import bootstrap, statistics
from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.units import PATCH_LEVEL, Units, choose_units, units_of

CONFIG = BootstrapConfig(resamples=300, seed=3)


def patches(count: int) -> Units:
    return Units("patch", np.arange(count), count)


def answers(count: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, count)
    return labels, np.where(rng.random(count) < 0.6, labels, rng.integers(0, num_classes, count))


@pytest.mark.parametrize("kind", ["patch", "shuffled", "slide"])
def test_a_resamples_matrix_is_that_of_its_repeated_examples(kind):
    labels, predicted = answers(60, 4, 0)
    of_item = {
        "patch": np.arange(60),
        "shuffled": np.random.default_rng(1).permutation(60),  # a unit each, numbered in another order
        "slide": np.random.default_rng(1).integers(0, 9, 60),
    }[kind]
    units = Units(kind, of_item, int(of_item.max()) + 1)
    found = bootstrap.confusion_replicates(labels, predicted, 4, units, CONFIG)
    weights = np.concatenate(list(bootstrap.item_weights(units, CONFIG)))
    assert found.shape == (300, 4, 4)
    assert found.dtype == np.int64
    for row in range(0, 300, 37):
        again = np.repeat(np.arange(60), weights[row])
        np.testing.assert_array_equal(
            found[row], sklearn_metrics.confusion_matrix(labels[again], predicted[again], labels=range(4))
        )
    scores = bootstrap.classification_bootstrap(labels, predicted, 4, units, CONFIG)
    again = np.repeat(np.arange(60), weights[5])
    assert scores["weighted_f1"][5] == pytest.approx(
        sklearn_metrics.f1_score(labels[again], predicted[again], average="weighted"), abs=1e-12  # order of sums
    )  # fmt: skip


def test_every_draw_takes_as_many_units_as_there_are():
    units = units_of("slide", ("b", "a", "b", "c", "c", "c"))
    weights = np.concatenate(list(bootstrap.item_weights(units, CONFIG)))
    assert weights.shape == (300, 6)
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 3] == weights[:, 5]).all()


def test_the_blocks_do_not_change_the_draws(monkeypatch):
    units = units_of("slide", tuple("abcabcdd"))
    whole = np.concatenate(list(bootstrap.item_weights(units, CONFIG)))
    counts = bootstrap.count_replicates(np.arange(8) % 3, 3, units, CONFIG)
    monkeypatch.setattr(bootstrap, "_BLOCK_WEIGHTS", 70)
    blocks = list(bootstrap.item_weights(units, CONFIG))
    assert len(blocks) > 30
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    np.testing.assert_array_equal(bootstrap.count_replicates(np.arange(8) % 3, 3, units, CONFIG), counts)


def test_golden_draws():
    """Golden: the seed of a report must give its intervals again; change it only with a note in the changelog."""
    weights = np.concatenate(list(bootstrap.item_weights(patches(5), BootstrapConfig(3, seed=0))))
    assert weights.tolist() == [[0, 2, 1, 1, 1], [4, 0, 0, 0, 1], [0, 0, 1, 2, 2]]


def test_two_models_share_their_draws():
    labels, first = answers(200, 3, 0)
    _, second = answers(200, 3, 1)
    units = units_of("patient", tuple(str(i // 7) for i in range(200)))
    both = np.where(first == second, 0, np.where(first == labels, 1, 2))  # an item's pair of answers, in one cell
    paired = bootstrap.count_replicates(both, 3, units, CONFIG)
    total = paired.sum(axis=1)
    one, two = (bootstrap.mean_replicates(guess == labels, units, CONFIG) for guess in (first, second))
    assert np.ptp(one - two) > 0
    only_one = bootstrap.count_replicates(
        (first == labels).astype(int) - (second == labels).astype(int) + 1, 3, units, CONFIG
    )
    # The difference of the replicates is the replicate of the difference: rounding of two quotients.
    np.testing.assert_allclose(one - two, (only_one[:, 2] - only_one[:, 0]) / total, atol=1e-15)


def test_patches_of_alike_slides_are_too_narrow_a_unit():
    rng = np.random.default_rng(0)
    slide = np.repeat(np.arange(30), 40)
    labels = rng.integers(0, 2, 1200)
    predicted = np.where(rng.random(1200) < rng.beta(1, 0.5, 30)[slide], labels, 1 - labels)  # slides differ widely
    widths = {}
    for units in (patches(1200), Units("slide", slide, 30)):
        low, high = bootstrap.interval(bootstrap.mean_replicates(labels == predicted, units, CONFIG))
        widths[units.kind] = high - low
    assert widths["slide"] > 3 * widths["patch"]  # 40 nearly equal patches a slide: up to the root of 40


@pytest.mark.parametrize("slide_spread", [0.0, 2.0])
def test_an_interval_over_the_right_units_covers_what_it_says(slide_spread):
    """95 % of the intervals of 200 simulated studies hold the truth: at least 90 % but for one chance in 500."""
    rng = np.random.default_rng(7)
    truth = float((1 / (1 + np.exp(-rng.normal(0.5, slide_spread, 200_000)))).mean())
    covered = 0
    for study in range(200):
        rate = 1 / (1 + np.exp(-rng.normal(0.5, slide_spread, 60)))
        hits = rng.random((60, 10)) < rate[:, None]
        units = Units("slide", np.repeat(np.arange(60), 10), 60)
        low, high = bootstrap.interval(bootstrap.mean_replicates(hits.ravel(), units, BootstrapConfig(300, seed=study)))
        covered += low <= truth <= high
    assert covered >= 180
    assert covered < 200  # an interval that never misses is too wide


def test_an_interval_is_the_percentiles():
    assert bootstrap.interval(np.arange(101.0)) == pytest.approx((2.5, 97.5), rel=1e-15)  # 0.025 is not a binary number
    assert bootstrap.interval(np.arange(101.0), level=0.5) == (25, 75)


def test_an_undefined_resample_is_left_out_and_counted():
    units = units_of("slide", tuple("abcd"))
    values = np.arange(41.0)  # 0.025 * 40 is 1
    some, most = np.r_[values, [np.nan] * 20], np.r_[values, [np.nan] * 42]
    found = bootstrap.summarize({"all": values, "some": some, "most": most}, units, CONFIG)
    assert found["intervals"]["most"] is None
    assert found["intervals"]["some"] == found["intervals"]["all"] == pytest.approx([1, 39], rel=1e-15)  # of 0.025
    assert found["undefined_resamples"] == {"some": 20, "most": 42}


def test_a_summary_says_what_was_resampled():
    labels, predicted = answers(30, 2, 0)
    for units, unit, warning in (
        (patches(30), PATCH_LEVEL, None),
        (units_of("patient", tuple("abc" * 10)), "patient-level", "3 units: too few, the intervals are too narrow"),
    ):
        replicates = bootstrap.classification_bootstrap(labels, predicted, 2, units, CONFIG)
        found = bootstrap.summarize(replicates, units, CONFIG)
        assert (found["unit"], found["num_units"], found["warning"]) == (unit, units.count, warning)
        assert (found["resamples"], found["seed"], found["level"], found["method"]) == (300, 3, 0.95, "percentile")
        low, high = found["intervals"]["accuracy"]
        assert 0 <= low < (labels == predicted).mean() < high <= 1


def test_one_unit_has_no_interval():
    units = units_of("patient", ("a",) * 30)
    replicates = bootstrap.classification_bootstrap(*answers(30, 2, 0), 2, units, CONFIG)
    assert set(bootstrap.summarize(replicates, units, CONFIG)["intervals"].values()) == {None}


def test_replicate_gathers_the_blocks_of_a_statistic(monkeypatch):
    monkeypatch.setattr(bootstrap, "_BLOCK_WEIGHTS", 100)
    hits = np.array([1, 0, 1, 1, 0, 0, 1, 0])
    units = units_of("group", tuple("aabbccdd"))
    found = bootstrap.replicate(units, CONFIG, lambda w: {"share": (w * hits).sum(axis=1) / w.sum(axis=1)})
    np.testing.assert_array_equal(found["share"], bootstrap.mean_replicates(hits, units, CONFIG))


def test_the_highest_unit_that_is_known_everywhere_is_chosen():
    def examples(**names) -> Examples:
        return Examples(("0", "1", "2"), ("a",) * 3, ((),) * 3, (), **names)

    assert choose_units(examples(patient_ids=("p", "p", "q"), slide_ids=("s", "t", "u"))).label == "patient-level"
    assert choose_units(examples(patient_ids=("p", "", "q"), slide_ids=("s", "t", "t"))).of_item.tolist() == [0, 1, 1]
    assert choose_units(examples(group_ids=("g", "h", "h"))).kind == "group"
    assert choose_units(examples(group_ids=("g", "h", "i"))).label == PATCH_LEVEL
    assert choose_units(examples()).count == 3
    taken = choose_units(examples(slide_ids=("s", "t", "t"))).take(np.array([2, 1]))
    assert (taken.of_item.tolist(), taken.count, taken.kind) == ([0, 0], 1, "slide")


def test_scores_of_many_matrices_are_those_of_each():
    matrices = np.random.default_rng(0).integers(0, 9, (50, 5, 5)) * np.random.default_rng(1).integers(0, 2, (50, 5, 5))
    together = statistics.metrics_of(matrices)
    for row, counts in enumerate(matrices):
        assert {name: values[row] for name, values in together.items()} == pytest.approx(
            statistics.classification_metrics(counts).to_dict(), abs=1e-15  # order of sums
        )  # fmt: skip


def test_wrong_settings_and_units_are_refused():
    with pytest.raises(ValueError, match="level in"):
        BootstrapConfig(level=1)
    with pytest.raises(ValueError, match="1 or more resamples"):
        BootstrapConfig(resamples=0)
    with pytest.raises(ValueError, match="units of 4 examples, got those of 3"):
        bootstrap.mean_replicates(np.ones(4), patches(3), CONFIG)
    with pytest.raises(ValueError, match="predicted_ids"):
        bootstrap.classification_bootstrap(np.array([0]), np.array([5]), 2, patches(1), CONFIG)
