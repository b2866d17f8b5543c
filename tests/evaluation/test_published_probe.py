"""The published linear probe: its numbers are scikit-learn's, its alpha is chosen where the report says."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import f1_score, matthews_corrcoef
from small_classes import draw_classes, make_examples, make_inputs

from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.embeddings import EvaluationError, normalize_rows
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.holdout import hold_out
from plip_jax.evaluation.published_probe_task import PUBLISHED_PROBE, PublishedProbeConfig
from plip_jax.evaluation.task import Inputs

COUNTS = {"a": 60, "b": 30, "c": 10}
SEEDS = (1, 2, 3)
ALPHAS = (1.0, 0.01, 0.0001)


@pytest.fixture(scope="module")
def drawn() -> tuple[dict[str, Examples], dict[str, np.ndarray]]:
    data, features = {}, {}
    for seed, role in enumerate(("train", "val", "test")):
        labels, features[role] = draw_classes(COUNTS, 8, seed)
        slides = [f"{role}{label}{i % 30}" for i, label in enumerate(labels)]
        data[role] = make_examples(role, labels, slides)
    return data, features


def settings(**changes: Any) -> PublishedProbeConfig:
    return PublishedProbeConfig(**{"train_split": "train", "alphas": ALPHAS, "seeds": SEEDS, **changes})


def only(drawn, *roles: str, bootstrap: BootstrapConfig | None = None) -> Inputs:
    data, features = drawn
    return make_inputs({role: data[role] for role in roles}, features, bootstrap)


def sklearn_answers(alpha: float, train: np.ndarray, labels, test: np.ndarray) -> list[np.ndarray]:
    """As the authors' script calls it, on labels as text."""
    return [
        SGDClassifier(
            random_state=seed, loss="log_loss", alpha=alpha, penalty="l2", max_iter=10_000, class_weight="balanced"
        )
        .fit(normalize_rows(train), labels)
        .predict(normalize_rows(test))
        for seed in SEEDS
    ]


def macro_f1(data: Examples, answers: list[np.ndarray]) -> list[float]:
    return [float(f1_score(data.labels, answer, average="macro")) for answer in answers]


def test_scores_are_those_of_sklearns_classifier_with_the_alpha_that_is_best_on_validation(drawn):
    data, features = drawn
    result = PUBLISHED_PROBE.run(settings(val_split="val"), only(drawn, "train", "val", "test"))
    on_val = {
        alpha: macro_f1(data["val"], sklearn_answers(alpha, features["train"], data["train"].labels, features["val"]))
        for alpha in ALPHAS
    }
    best = max(ALPHAS, key=lambda alpha: np.mean(on_val[alpha]))
    report = result.report
    assert report["selection"]["alpha"] == best
    for candidate in report["selection"]["candidates"]:
        assert candidate["scores"] == pytest.approx(on_val[candidate["alpha"]], abs=1e-12)  # float64 rounding
    answers = sklearn_answers(best, features["train"], data["train"].labels, features["test"])
    expected = macro_f1(data["test"], answers)
    assert report["seed_scores"]["macro_f1"] == pytest.approx(expected, abs=1e-12)  # the same
    assert report["metrics"]["macro_f1"] == pytest.approx(np.mean(expected), abs=1e-12)  # the same
    assert report["metrics"]["macro_f1_sd"] == pytest.approx(np.std(expected, ddof=1), abs=1e-12)  # the same
    mcc = np.mean([matthews_corrcoef(data["test"].labels, answer) for answer in answers])
    assert report["metrics"]["mcc"] == pytest.approx(mcc, abs=1e-12)  # the same
    assert [row["predicted_seed_1"] for row in result.rows] == answers[0].tolist()
    assert result.correct is not None
    assert result.correct.tolist() == [a == b for a, b in zip(answers[0], data["test"].labels, strict=True)]
    assert sum(map(sum, report["confusion"]["counts"])) == len(data["test"])
    assert tuple(report["metrics"]) == PUBLISHED_PROBE.metric_names(settings())
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_without_a_validation_split_alpha_is_chosen_on_whole_slides_and_fitted_again_on_all(drawn):
    data, features = drawn
    report = PUBLISHED_PROBE.run(settings(val_share=0.3, val_seed=4), only(drawn, "train", "test")).report
    rest, held = hold_out(data["train"], 0.3, 4)
    labels = np.asarray(data["train"].labels)
    chosen = report["selection"]
    part = sklearn_answers(ALPHAS[1], features["train"][rest], labels[rest], features["train"][held])
    assert chosen["candidates"][1]["scores"] == pytest.approx(
        macro_f1(data["train"].subset(held), part),
        abs=1e-12,  # float64 rounding
    )
    whole = sklearn_answers(chosen["alpha"], features["train"], labels, features["test"])
    assert report["seed_scores"]["macro_f1"] == pytest.approx(macro_f1(data["test"], whole), abs=1e-12)  # the same
    assert report["selection"]["num_examples"] == len(held)
    assert "on validation" in report["descriptions"]["macro_f1"]


def test_the_authors_choice_of_alpha_is_there_by_name_and_says_so(drawn):
    report = PUBLISHED_PROBE.run(settings(alpha_from="test"), only(drawn, "train", "test")).report
    means = [candidate["mean"] for candidate in report["selection"]["candidates"]]
    assert report["metrics"]["macro_f1"] == max(means)
    assert report["selection"]["alpha"] == ALPHAS[int(np.argmax(means))]
    assert any("best on the test set" in note for note in report["notes"])
    assert "on the test set" in report["descriptions"]["macro_f1"]


def test_intervals_are_over_slides_of_the_mean_over_seeds(drawn):
    given = BootstrapConfig(resamples=200)
    result = PUBLISHED_PROBE.run(settings(alphas=(0.01,)), only(drawn, "train", "test", bootstrap=given))
    block = result.report["bootstrap"]
    assert block["unit"] == "slide-level"
    assert set(block["intervals"]) == set(result.report["metrics"])
    low, high = block["intervals"]["macro_f1"]
    assert low < result.report["metrics"]["macro_f1"] < high
    assert result.replicates["macro_f1"].shape == (200,)


def test_one_seed_has_no_sd_and_early_stops_are_counted(drawn):
    chosen = settings(seeds=(7,), max_iter=2, alphas=(1e-4,))
    report = PUBLISHED_PROBE.run(chosen, only(drawn, "train", "test")).report
    assert "macro_f1_sd" not in report["metrics"]
    assert tuple(report["metrics"]) == PUBLISHED_PROBE.metric_names(chosen)
    assert "1 of 1 classifiers met max_iter=2." in report["notes"]


def test_splits_that_do_not_fit_are_refused_before_anything_is_embedded(drawn):
    data, _ = drawn
    check = PUBLISHED_PROBE.check
    with pytest.raises(EvaluationError, match="test split has labels that no training example has: d"):
        check(settings(), {"train": data["train"], "test": make_examples("t", ["a", "d"])})
    with pytest.raises(EvaluationError, match="labels that classes does not name: c"):
        check(settings(classes=("b", "a")), data)
    with pytest.raises(EvaluationError, match="there is none of d"):
        check(settings(classes=("b", "a", "c", "d")), data)
    with pytest.raises(EvaluationError, match="1 of 2 have none, first 't1'"):
        check(settings(), {"train": data["train"], "test": make_examples("t", ["a", ""])})
    with pytest.raises(EvaluationError, match="train_split: expected other examples than the test split"):
        check(settings(), {"train": data["train"], "test": data["train"]})
    # Other images may bear the same names: class folders number their files anew in each split.
    check(settings(), {"train": data["train"], "test": dataclasses.replace(data["train"], fingerprint="another")})
    classes, ids = check(settings(classes=("c", "a", "b")), data)
    assert classes == ("c", "a", "b")
    assert ids["test"].tolist() == [classes.index(label) for label in data["test"].labels]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_split": ""}, "train_split: expected the name"),
        ({"val_share": 1.0}, "val_share"),
        ({"alphas": (0.0,)}, "alphas"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"alpha_from": "train"}, "validation, test"),
        ({"alpha_from": "test", "val_split": "val"}, "nothing reads it"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(EvaluationError, match=message):
        settings(**changes)


def test_splits_are_those_of_the_settings():
    assert PUBLISHED_PROBE.splits(settings()) == {"train": "train"}
    assert PUBLISHED_PROBE.splits(settings(val_split="v")) == {"train": "train", "val": "v"}
