"""Comparisons of two models against hand-computed numbers, scipy, and what a test promises under no difference."""

import json

import numpy as np
import pytest
from scipy import stats

from plip_jax.evaluation import bootstrap, significance
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.task import TaskResult
from plip_jax.evaluation.units import Units, units_of


def each_its_own(count: int, kind: str = "patient") -> Units:
    return Units(kind, np.arange(count), count)


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, and never below the one before.
    found = significance.holm({"a": 0.03, "b": 0.01, "none": None, "c": 0.04, "d": 0.02})
    assert list(found) == ["a", "b", "none", "c", "d"]
    assert found == {"a": 0.06, "b": 0.04, "none": None, "c": 0.06, "d": 0.06}
    assert significance.holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1}
    assert significance.holm({}) == {}
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        significance.holm({"a": 1.2})


def test_the_paired_p_value_by_hand():
    second = np.zeros(99)
    first = np.r_[np.full(97, 0.1), 0.0, -0.1]
    found = significance.paired_difference(first, second, 0.12, 0.05, level=0.98)
    # Two of 99 are not above zero: 2 * (2 + 1) / (99 + 1).
    assert found["p_value"] == 0.06
    assert found["difference"] == pytest.approx(0.07, abs=1e-15)  # one rounding
    assert found["interval"] == [pytest.approx(-0.002, abs=1e-12), 0.1]  # 0.98 of the way from -.1 to 0
    assert significance.paired_difference(-first, second, 0, 0)["p_value"] == 0.06
    assert significance.paired_difference(second, second, 0, 0)["p_value"] == 1
    assert significance.paired_difference(second + 1, second, 1, 0)["p_value"] == 0.02  # never 0


def test_undefined_resamples_are_left_out_and_counted():
    first, second = np.array([1.0, np.nan, 1, 1]), np.array([0.0, 0, np.nan, 0])
    found = significance.paired_difference(first, second, 1, 0)
    assert (found["undefined_resamples"], found["resamples"], found["p_value"]) == (2, 4, pytest.approx(2 / 3))
    assert significance.paired_difference(first, second * np.nan, 1, 0)["p_value"] is None
    with pytest.raises(ValueError, match="same resamples"):
        significance.paired_difference(first, second[:2], 1, 0)


def test_equal_models_are_seldom_called_different():
    """Of 300 studies without a difference 5 % give p < 0.05: between 1 % and 10 % but for one chance in 1,000."""
    rng = np.random.default_rng(0)
    called = 0
    for study in range(300):
        units = Units("slide", np.repeat(np.arange(60), 5), 60)
        easy = rng.normal(size=60)[units.of_item]
        first, second = (rng.normal(size=300) + easy > 0 for _ in range(2))
        config = bootstrap.BootstrapConfig(200, seed=study)
        replicates = [bootstrap.mean_replicates(correct, units, config) for correct in (first, second)]
        called += significance.paired_difference(*replicates, first.mean(), second.mean())["p_value"] < 0.05
    assert 3 <= called <= 30


def test_pairing_finds_what_separate_intervals_hide():
    rng = np.random.default_rng(0)
    units = each_its_own(400, "slide")
    second = rng.random(400) < 0.7
    first = second | (rng.random(400) < 0.15)  # never worse
    config = bootstrap.BootstrapConfig(500)
    replicates = [bootstrap.mean_replicates(correct, units, config) for correct in (first, second)]
    assert bootstrap.interval(replicates[0])[0] < bootstrap.interval(replicates[1])[1]
    assert significance.paired_difference(*replicates, first.mean(), second.mean())["p_value"] < 0.01


def test_mcnemar_by_hand():
    first = np.array([1] * 8 + [0] * 1 + [1] * 20 + [0] * 3, bool)
    second = np.array([0] * 8 + [1] * 1 + [1] * 20 + [0] * 3, bool)
    found = significance.mcnemar(first, second, each_its_own(32))
    # 2 * (1 + 9) / 2^9 of the nine on which they differ.
    assert found == {"p_value": pytest.approx(20 / 512, abs=1e-15), "only_first": 8, "only_second": 1, "refused": None}
    assert significance.mcnemar(first, first, each_its_own(32))["p_value"] == 1


def test_mcnemar_is_refused_where_examples_are_not_known_to_be_independent():
    answers = np.array([True, False, True])
    unknown = significance.mcnemar(answers, ~answers, each_its_own(3, "patch"))
    assert unknown["p_value"] is None
    assert "nothing says that the examples are independent" in unknown["refused"]
    clustered = significance.mcnemar(answers, ~answers, units_of("slide", ("a", "a", "b")))
    assert clustered["p_value"] is None
    assert "3 examples come from 2 slide units" in clustered["refused"]
    with pytest.raises(ValueError, match="same examples"):
        significance.mcnemar(answers, answers[:2], each_its_own(3))


def test_students_t_is_scipys_and_says_what_it_is_not():
    first, second = [0.80, 0.82, 0.81, 0.79, 0.83], [0.78, 0.80, 0.79, 0.80, 0.78]
    found = significance.student_t_over_seeds(first, second)
    # Means .81 and .79, squared deviations .001 and .0004: t = .02 / sqrt(.0014 / 8 * 2 / 5).
    assert found["statistic"] == pytest.approx(
        0.02 / (0.0014 / 8 * 2 / 5) ** 0.5, rel=1e-9
    )  # scores are no binary numbers
    assert found["p_value"] == pytest.approx(2 * stats.t.sf(found["statistic"], 8), rel=1e-9)  # the same
    assert found["label"] == "as published: not a comparison of models"
    assert significance.student_t_over_seeds([0.5, 0.5], [0.4, 0.4])["p_value"] is None
    with pytest.raises(ValueError, match="two or more seeds"):
        significance.student_t_over_seeds([0.5], [0.4, 0.4])


def result(correct: np.ndarray, units: Units, seed: int = 0, split: str = "s") -> TaskResult:
    config = bootstrap.BootstrapConfig(100, seed=seed)
    replicates = {"accuracy": bootstrap.mean_replicates(correct, units, config), "own": np.zeros(100)}
    report = {
        "metrics": {"accuracy": float(correct.mean())},
        "hashes": {"split": split},
        "bootstrap": bootstrap.summarize(replicates, units, config),
    }
    return TaskResult(report, (), replicates=replicates, correct=correct)


def test_two_results_are_compared_metric_by_metric():
    units = each_its_own(50)
    correct = np.arange(50) % 5 > 0
    found = significance.compare_results(result(correct, units), result(correct & (np.arange(50) > 15), units))
    assert list(found) == ["accuracy"]
    assert found["accuracy"]["difference"] == pytest.approx(12 / 50, abs=1e-15)  # one rounding
    assert found["accuracy"]["p_value"] == pytest.approx(2 / 101, abs=1e-15)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_results_that_are_not_paired_are_refused():
    correct, units = np.arange(50) % 5 > 0, each_its_own(50)
    base = result(correct, units)
    with pytest.raises(EvaluationError, match=r"same draws.*seed.*\[0, 1\]"):
        significance.compare_results(base, result(correct, units, seed=1))
    with pytest.raises(EvaluationError, match="same split"):
        significance.compare_results(base, result(correct, units, split="other"))
    with pytest.raises(EvaluationError, match="without a bootstrap"):
        significance.compare_results(base, TaskResult({"metrics": {}, "hashes": {}}, ()))
