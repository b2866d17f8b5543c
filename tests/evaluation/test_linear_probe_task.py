"""The linear probe's task: the strength is chosen on validation, the scores are scikit-learn's at that strength."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, matthews_corrcoef
from small_classes import draw_classes, make_examples, make_inputs

from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.embeddings import EvaluationError, normalize_rows
from plip_jax.evaluation.holdout import hold_out
from plip_jax.evaluation.linear_probe_task import LINEAR_PROBE, LinearProbeConfig
from plip_jax.evaluation.task import Inputs
from plip_jax.evaluation.tasks import make_task

COUNTS = {"a": 60, "b": 30, "c": 10}
STRENGTHS = (100.0, 0.01, 1.0)


@pytest.fixture(scope="module")
def drawn() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    data, features = {}, {}
    for seed, role in enumerate(("train", "val", "test")):
        labels, features[role] = draw_classes(COUNTS, 8, seed, spread=0.9)
        data[role] = make_examples(role, labels, [f"{role}{label}{i % 30}" for i, label in enumerate(labels)])
    return data, features


def settings(**changes: Any) -> LinearProbeConfig:
    return LinearProbeConfig(**{"train_split": "train", "strengths": STRENGTHS, **changes})


def only(drawn, *roles: str, bootstrap: BootstrapConfig | None = None) -> Inputs:
    data, features = drawn
    return make_inputs({role: data[role] for role in roles}, features, bootstrap)


def sklearn_answers(strength: float, train, labels, shown, **more: Any) -> np.ndarray:
    model = LogisticRegression(C=strength, tol=1e-6, max_iter=10_000, **more)
    return model.fit(normalize_rows(train).astype(np.float64), labels).predict(normalize_rows(shown))


@pytest.mark.parametrize(("class_weight", "theirs"), [("none", None), ("balanced", "balanced")])
def test_the_strength_is_the_best_on_validation_and_the_scores_are_scikit_learns(drawn, class_weight, theirs):
    data, features = drawn
    inputs = only(drawn, "train", "val", "test")
    report = LINEAR_PROBE.run(settings(val_split="v", class_weight=class_weight, refit_with_val=False), inputs).report
    on_val = {}
    for strength in STRENGTHS:
        answers = sklearn_answers(
            strength, features["train"], data["train"].labels, features["val"], class_weight=theirs
        )
        on_val[strength] = f1_score(data["val"].labels, answers, average="macro")
    candidates = report["selection"]["candidates"]
    assert [c["strength"] for c in candidates] == sorted(STRENGTHS)
    for candidate in candidates:
        assert candidate["macro_f1"] == pytest.approx(on_val[candidate["strength"]], abs=1e-12)  # float64 rounding
        assert candidate["converged"]
    best = max(sorted(STRENGTHS), key=lambda strength: on_val[strength])
    assert report["selection"]["strength"] == report["fit"]["strength"] == best
    answers = sklearn_answers(best, features["train"], data["train"].labels, features["test"], class_weight=theirs)
    expected = f1_score(data["test"].labels, answers, average="macro")
    assert report["metrics"]["macro_f1"] == pytest.approx(expected, abs=1e-12)  # the same
    assert report["metrics"]["mcc"] == pytest.approx(matthews_corrcoef(data["test"].labels, answers), abs=1e-12)
    assert report["fit"]["on"] == "training examples without validation"
    assert (report["fit"]["num_examples"], report["num_examples"]) == (100, 100)


def test_the_final_fit_is_on_training_and_validation_together(drawn):
    data, features = drawn
    result = LINEAR_PROBE.run(settings(val_split="v", strengths=(1.0,)), only(drawn, "train", "val", "test"))
    both = np.concatenate([features["train"], features["val"]])
    answers = sklearn_answers(1.0, both, data["train"].labels + data["val"].labels, features["test"])
    assert [row["predicted"] for row in result.rows] == answers.tolist()
    assert result.correct is not None
    assert result.correct.tolist() == (answers == np.asarray(data["test"].labels)).tolist()
    assert result.report["fit"]["num_examples"] == 200
    assert result.report["fit"]["on"] == "training and validation examples"


def test_without_a_validation_split_whole_slides_are_held_out(drawn):
    data, features = drawn
    report = LINEAR_PROBE.run(settings(val_share=0.3, val_seed=7), only(drawn, "train", "test")).report
    rest, held = hold_out(data["train"], 0.3, 7)
    labels = np.asarray(data["train"].labels)
    for candidate in report["selection"]["candidates"]:
        answers = sklearn_answers(candidate["strength"], features["train"][rest], labels[rest], features["train"][held])
        expected = f1_score(labels[held], answers, average="macro")
        assert candidate["macro_f1"] == pytest.approx(expected, abs=1e-12)  # float64 rounding
    assert report["selection"]["num_examples"] == len(held)
    assert report["selection"]["on"] == "30% of the training split, held out with seed 7"
    assert report["fit"]["num_examples"] == 100


def test_the_report_is_whole_and_its_intervals_are_of_its_metrics(drawn):
    bootstrap = BootstrapConfig(resamples=50)
    config = settings(val_split="v", classes=("c", "a", "b"))
    result = LINEAR_PROBE.run(config, only(drawn, "train", "val", "test", bootstrap=bootstrap))
    report = result.report
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert tuple(report["confusion"]["labels"]) == ("c", "a", "b")
    assert set(report["metrics"]) == set(LINEAR_PROBE.metric_names(config)) == set(result.replicates)
    assert report["bootstrap"]["unit"] == "slide-level"
    low, high = report["bootstrap"]["intervals"]["macro_f1"]
    assert low < report["metrics"]["macro_f1"] < high
    assert report["constant_class"]["label"] == "a"
    assert set(report["hashes"]) == {"split", "train", "val"}
    assert report["curve"] == []
    assert LINEAR_PROBE.splits(config) == {"train": "train", "val": "v"}
    assert LINEAR_PROBE.splits(settings()) == {"train": "train"}


def test_more_training_examples_score_better_along_the_curve(drawn):
    config = settings(val_split="v", fractions=(0.05, 1.0), fraction_seeds=(0, 1, 2))
    inputs = only(drawn, "train", "val", "test", bootstrap=BootstrapConfig(resamples=50))
    result = LINEAR_PROBE.run(config, inputs)
    few, all_of_them = result.report["curve"]
    assert (few["fraction"], few["num_examples"]) == (0.05, 3 + 2 + 1)  # 5 % of 60, 30 and 10 examples, one at least
    assert few["mean"] < all_of_them["mean"]
    assert few["sd"] > 0
    assert len(few["strengths"]) == len(few["scores"]) == 3
    assert len(set(all_of_them["scores"])) == 1  # all examples, whatever the seed
    assert result.report["metrics"]["macro_f1_at_0.05"] == few["mean"]
    assert tuple(result.report["metrics"]) == LINEAR_PROBE.metric_names(config)
    assert result.report["bootstrap"]["intervals"]["macro_f1_at_0.05"] == [few["low"], few["high"]]
    assert few["low"] < few["mean"] < few["high"]
    assert any(note.startswith("curve:") for note in result.report["notes"])


def test_a_fraction_of_all_is_the_probe_without_validation(drawn):
    inputs = only(drawn, "train", "val", "test")
    report = LINEAR_PROBE.run(settings(val_split="v", refit_with_val=False, fractions=(1.0,)), inputs).report
    assert report["metrics"]["macro_f1_at_1"] == report["metrics"]["macro_f1"]
    assert report["curve"][0]["low"] is None
    assert set(report["curve"][0]["strengths"]) == {report["fit"]["strength"]}


def test_a_class_that_the_fitted_part_lacks_is_not_answered(drawn):
    """Class c is there in one slide only, most of which is a: holding that slide out leaves none to fit."""
    labels = ["a"] * 8 + ["b"] * 8 + ["a", "a", "c"]
    slides = [f"s{i // 4}" for i in range(16)] + ["mixed"] * 3
    train, test = make_examples("train", labels, slides), make_examples("test", ["a", "b", "c"])
    rng = np.random.default_rng(0)
    features = {"train": rng.normal(size=(19, 4)), "test": rng.normal(size=(3, 4))}
    inputs = make_inputs({"train": train, "test": test}, features)
    seeds = [seed for seed in range(20) if "c" not in np.asarray(labels)[hold_out(train, 0.3, seed)[0]]]
    assert seeds
    config = settings(val_share=0.3, val_seed=seeds[0], refit_with_val=False)
    result = LINEAR_PROBE.run(config, inputs)
    assert result.report["confusion"]["labels"] == ["a", "b", "c"]
    assert result.report["per_class"]["c"]["predicted"] == 0


def test_a_strength_at_the_end_of_the_sweep_and_a_fit_that_did_not_converge_are_noted(drawn):
    inputs = only(drawn, "train", "val", "test")
    report = LINEAR_PROBE.run(settings(strengths=(1e3, 1e4), max_iterations=2, val_split="v"), inputs).report
    assert any("at the end of those tried" in note for note in report["notes"])
    assert any(note.startswith("2 of 2 fits of the sweep and 1 of the final one did not") for note in report["notes"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_split": ""}, "the name of a split to learn from"),
        ({"strengths": (1.0, 1.0)}, "different numbers above 0"),
        ({"strengths": (0.0,)}, "different numbers above 0"),
        ({"class_weight": "even"}, "expected one of none, balanced"),
        ({"fractions": (2.0,)}, "different shares in"),
        ({"fractions": (0.5,), "fraction_seeds": ()}, "fraction_seeds: expected different integers"),
        ({"tolerance": 2.0}, "a tolerance in"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(EvaluationError, match=message):
        make_task("linear_probe", {"train_split": "train", **changes})


def test_labels_that_do_not_fit_are_refused_before_anything_is_embedded(drawn):
    data, _ = drawn
    with pytest.raises(EvaluationError, match="train_split: expected other examples"):
        LINEAR_PROBE.check(settings(), {"train": data["test"], "test": data["test"]})
    with pytest.raises(EvaluationError, match="no training example has: d"):
        LINEAR_PROBE.check(settings(), {"train": data["train"], "test": make_examples("t", ["a", "d"])})
