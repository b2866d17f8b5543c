"""The zero-shot task on embeddings that are known: its settings, what it reports, and what it may not look at."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sklearn_metrics

from plip_jax.evaluation import significance
from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.task import Inputs, Model, TaskResult
from plip_jax.evaluation.zero_shot_task import ZERO_SHOT, ZeroShotConfig, prompts_to_freeze, run_zero_shot

DIM = 12
SCALE = 20.0


@dataclasses.dataclass(frozen=True)
class Record:
    id: str
    label: str = ""
    captions: tuple[str, ...] = ()
    image: bytes = b""
    label_set: tuple[str, ...] = ()
    patient_id: str = ""
    attributes: dict[str, str] = dataclasses.field(default_factory=dict)


def text_features(texts) -> np.ndarray:
    """A direction of its own for each text."""
    return np.stack([np.random.default_rng(list(text.encode())).normal(size=DIM) for text in texts])


def write_prompts(folder, classes: str = "abcd", templates=("An image of {}.",), name: str = "p") -> str:
    path = folder / f"{name}.json"
    content = {"name": name, "source": "s", "classes": {c: [c] for c in classes}, "templates": list(templates)}
    path.write_text(json.dumps(content))
    return str(path)


def records(count: int, classes: str = "abcd", seed: int = 0, template: str = "An image of {}.", noise: float = 1.5):
    """Images that look like their class's prompt, more or less; ten a patient, in three organs."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        label = classes[int(rng.integers(len(classes)))]
        look = text_features([template.replace("{}", label)])[0] + noise * rng.normal(size=DIM)
        yield Record(
            f"{seed}-{i}",
            label,
            image=look.tobytes(),
            patient_id=f"{seed}-{i // 10}",
            attributes={"organ": ("lung", "colon", "")[i % 3]},
        )


def make_examples(*given, **settings) -> Examples:
    return Examples.from_records(list(records(*given, **settings)))


def encode_images(images, *, names) -> np.ndarray:
    return np.stack([np.frombuffer(image) for image in images])


def run(config: ZeroShotConfig, *, scale: float | None = SCALE, resamples: int = 0, **data: Examples) -> TaskResult:
    model = Model("m", lambda examples: examples.embed(encode_images), text_features, scale)
    intervals = BootstrapConfig(resamples) if resamples else None
    result = ZERO_SHOT.run(config, Inputs(data, model, intervals))
    assert json.loads(json.dumps(result.report, allow_nan=False)) == result.report
    assert set(result.report["metrics"]) == set(ZERO_SHOT.metric_names(config))
    assert next(iter(result.report["metrics"])) == ZERO_SHOT.metric_names(config)[0]
    if resamples:
        assert list(result.replicates) == list(result.report["metrics"])
        intervals = result.report["bootstrap"]["intervals"]
        for name, value in result.report["metrics"].items():
            low, high = intervals[name]
            # ECE grows when examples repeat, so its interval may lie above it.
            assert low <= value <= high or name.startswith("ece")
    return result


def test_every_metric_is_sklearns_on_the_scores_of_the_rows(tmp_path):
    examples = make_examples(120)
    result = run(ZeroShotConfig(write_prompts(tmp_path)), test=examples)
    labels = np.array(["abcd".index(label) for label in examples.labels])
    scores = np.array([[row[f"score_{label}"] for label in "abcd"] for row in result.rows])
    probabilities = special.softmax(SCALE * scores, axis=1)
    found = result.report["metrics"]
    assert list(found) == [
        "weighted_f1", "accuracy", "macro_f1", "balanced_accuracy", "mcc", "top3_accuracy", "auroc", "auprc", "ece",
    ]  # fmt: skip
    tolerance = 1e-12  # float64 sums in another order
    assert found["accuracy"] == (scores.argmax(axis=1) == labels).mean()
    assert found["top3_accuracy"] == sklearn_metrics.top_k_accuracy_score(labels, scores, k=3)
    assert found["auroc"] == pytest.approx(
        sklearn_metrics.roc_auc_score(labels, probabilities, multi_class="ovr"), abs=tolerance
    )
    assert found["auprc"] == pytest.approx(
        sklearn_metrics.average_precision_score(np.eye(4)[labels], probabilities), abs=tolerance
    )
    bins = np.argsort(probabilities.max(axis=1)).reshape(15, 8)
    gaps = (scores.argmax(axis=1) == labels) - probabilities.max(axis=1)
    assert found["ece"] == pytest.approx(np.abs(gaps[bins].mean(axis=1)).mean(), abs=tolerance)
    assert result.report["calibration"]["ece"] == found["ece"]
    assert len(result.report["calibration"]["curve"]) == 15
    assert result.report["calibration"]["temperature"] is None
    assert result.report["ranking"]["positive_class"] is None
    assert result.report["ranking"]["per_class"]["b"]["auroc"] == pytest.approx(
        sklearn_metrics.roc_auc_score(labels == 1, probabilities[:, 1]), abs=tolerance
    )
    np.testing.assert_array_equal(result.correct, scores.argmax(axis=1) == labels)


def test_of_two_classes_the_last_is_positive_and_the_scale_does_not_rank(tmp_path):
    examples = make_examples(90, "ab")
    config = ZeroShotConfig(write_prompts(tmp_path, "ab"))
    report = run(config, test=examples).report
    scores = np.array([[row["score_a"], row["score_b"]] for row in run(config, test=examples).rows], np.float64)
    positive = np.array(examples.labels) == "b"
    assert report["ranking"]["positive_class"] == "b"
    expected = sklearn_metrics.roc_auc_score(positive, scores[:, 1] - scores[:, 0])
    assert report["metrics"]["auroc"] == pytest.approx(expected, abs=1e-12)  # float64 sums in another order
    assert run(config, test=examples, scale=100.0).report["metrics"]["auroc"] == report["metrics"]["auroc"]
    false, true, _ = sklearn_metrics.roc_curve(positive, scores[:, 1] - scores[:, 0], drop_intermediate=False)
    assert report["metrics"]["sensitivity_at_95_specificity"] == pytest.approx(
        true[false <= 0.05 + 1e-12].max(), abs=1e-12
    )
    assert "top3_accuracy" not in report["metrics"]


def test_without_a_scale_there_are_rankings_but_no_confidences(tmp_path):
    config = ZeroShotConfig(write_prompts(tmp_path))
    model = Model("m", lambda examples: examples.embed(encode_images), text_features)
    report = run_zero_shot(config, Inputs({"test": make_examples(60)}, model, BootstrapConfig(20))).report
    assert set(ZERO_SHOT.metric_names(config)) - set(report["metrics"]) == {"ece"}
    assert report["calibration"]["ece"] is None
    assert 0.5 < report["metrics"]["auroc"] <= 1


def test_intervals_are_over_patients_and_paired_between_models(tmp_path):
    examples = make_examples(200)
    config = ZeroShotConfig(write_prompts(tmp_path))
    result = run(config, test=examples, resamples=300)
    assert (result.report["bootstrap"]["unit"], result.report["bootstrap"]["num_units"]) == ("patient-level", 20)
    for label, one in result.report["per_class"].items():
        assert one["f1_interval"][0] < one["f1"] < one["f1_interval"][1], label
    same = significance.compare_results(result, run(config, test=examples, resamples=300))
    assert set(same) == set(result.report["metrics"])
    assert {found["p_value"] for found in same.values()} == {1.0}
    weak = Model("m", lambda e: e.embed(encode_images), lambda texts: text_features(texts)[:, ::-1], SCALE)
    other = run_zero_shot(config, Inputs({"test": examples}, weak, BootstrapConfig(300)))
    compared = significance.compare_results(result, other)
    assert compared["weighted_f1"]["p_value"] == 2 / 301
    assert compared["weighted_f1"]["interval"][0] > 0.2


def test_each_value_of_an_attribute_has_its_own_numbers(tmp_path):
    examples = make_examples(150)
    report = run(ZeroShotConfig(write_prompts(tmp_path), by="organ"), test=examples, resamples=50).report
    strata = report["by"]["strata"]
    assert list(strata) == ["unknown", "colon", "lung"]
    lung = np.flatnonzero(np.array(examples.attributes["organ"]) == "lung")
    alone = run(ZeroShotConfig(write_prompts(tmp_path)), test=examples.subset(lung), resamples=50).report
    assert strata["lung"]["num_examples"] == 50
    for key in ("metrics", "constant_class", "bootstrap"):
        assert strata["lung"][key] == alone[key]


def test_graded_classes_have_a_kappa(tmp_path):
    examples = make_examples(100)
    report = run(ZeroShotConfig(write_prompts(tmp_path), graded=True), test=examples, resamples=50).report
    counts = np.array(report["confusion"]["counts"])
    actual, predicted = (np.repeat(ids.ravel(), counts.ravel()) for ids in np.indices((4, 4)))
    assert report["metrics"]["quadratic_kappa"] == pytest.approx(
        sklearn_metrics.cohen_kappa_score(actual, predicted, weights="quadratic"), abs=1e-12  # order of sums
    )  # fmt: skip


def label_set_examples(count: int = 80, seed: int = 5) -> Examples:
    rng = np.random.default_rng(seed)
    given = []
    for i in range(count):
        labels = tuple(label for label in "abc" if rng.random() < 0.4)  # some have none
        looks = text_features([f"An image of {label}." for label in labels or "z"]).sum(axis=0)
        image = (looks + rng.normal(size=DIM)).tobytes()
        given.append(Record(str(i), image=image, label_set=labels, attributes={"organ": "xy"[i % 2]}))
    return Examples.from_records(given)


def test_each_label_of_a_multi_label_set_ranks_all_examples(tmp_path):
    examples = label_set_examples()
    config = ZeroShotConfig(write_prompts(tmp_path, "abc"), multi_label=True, by="organ")
    result = run(config, test=examples, resamples=60)
    table = np.array([[label in labels for label in "abc"] for labels in examples.label_sets])
    scores = np.array([[row[f"score_{label}"] for label in "abc"] for row in result.rows])
    assert result.report["type"] == "zero_shot_multi_label"
    assert result.report["metrics"] == pytest.approx(
        {
            "auroc": sklearn_metrics.roc_auc_score(table, scores),
            "map": sklearn_metrics.average_precision_score(table, scores),
        },
        abs=1e-12,  # float64 sums in another order
    )
    assert result.report["constant_class"]["metrics"]["map"] == pytest.approx(table.mean(), abs=1e-15)  # one rounding
    b = result.report["per_label"]["b"]
    assert b["examples"] == table[:, 1].sum()
    assert b["auroc_interval"][0] < b["auroc"] < b["auroc_interval"][1]
    assert "confusion" not in result.report
    assert result.correct is None
    assert set(result.report["by"]["strata"]) == {"x", "y"}
    assert result.rows[0]["labels"] == ";".join(examples.label_sets[0])


def test_label_sets_are_checked(tmp_path):
    config = ZeroShotConfig(write_prompts(tmp_path, "ab"), multi_label=True)
    with pytest.raises(EvaluationError, match="1 labels of the data are not classes of the prompts: c"):
        ZERO_SHOT.check(config, {"test": label_set_examples()})
    with pytest.raises(EvaluationError, match="none has one"):
        ZERO_SHOT.check(config, {"test": make_examples(5)})


GOOD, BAD = "An image of {}.", "Not {}!"


def test_a_prompt_is_chosen_on_validation_even_where_test_would_choose_another(tmp_path):
    config = ZeroShotConfig(
        write_prompts(tmp_path, templates=(BAD,)), selection="validation", candidates=(GOOD,), val_split="val"
    )
    assert ZERO_SHOT.splits(config) == {"val": "val"}
    val, test = make_examples(80, seed=1), make_examples(80, seed=2)
    report = run(config, test=test, val=val).report
    assert report["selection"]["chosen"] == GOOD
    assert report["prompts"]["templates"] == [GOOD]
    assert report["selection"]["criterion"] == "weighted_f1"
    bad, good = report["selection"]["candidates"]
    assert good["validation"] > bad["validation"] + 0.2
    assert good["validation"] != report["metrics"]["weighted_f1"]  # the one is of val, the other of test
    assert report["hashes"]["val"] == val.hash
    assert "prompt_sensitivity" not in report

    misleading = make_examples(80, seed=1, template=BAD, noise=0.5)  # validation that says the opposite of test
    report = run(config, test=test, val=misleading).report
    assert report["prompts"]["templates"] == [BAD]


def test_all_prompts_are_reported_and_the_published_one_is_the_score(tmp_path):
    examples = make_examples(100)
    prompts = write_prompts(tmp_path, templates=(BAD, "x {}"))
    published = run(ZeroShotConfig(prompts), test=examples, resamples=50)
    report = run(ZeroShotConfig(prompts, selection="all", candidates=(GOOD,)), test=examples, resamples=50).report
    assert report["metrics"] == published.report["metrics"]
    assert report["bootstrap"] == published.report["bootstrap"]
    found = report["prompt_sensitivity"]
    assert [one["name"] for one in found["variants"]] == ["p", f"p: {BAD}", "p: x {}", GOOD]
    assert found["variants"][0]["metrics"] == report["metrics"]
    scores = sorted(one["metrics"]["weighted_f1"] for one in found["variants"])
    spread = found["metrics"]["weighted_f1"]
    assert (spread["minimum"], spread["median"], spread["maximum"]) == (
        scores[0], pytest.approx((scores[1] + scores[2]) / 2, abs=1e-15), scores[3],
    )  # fmt: skip
    assert spread["median_interval"][0] < spread["median"] < spread["median_interval"][1]
    assert found["variants"][3]["metrics"] == run(
        ZeroShotConfig(write_prompts(tmp_path, templates=(GOOD,))), test=examples
    ).report["metrics"]  # fmt: skip


def test_labels_choose_their_prompts_on_validation_too(tmp_path):
    config = ZeroShotConfig(
        write_prompts(tmp_path, "abc", templates=(BAD,)),
        multi_label=True,
        selection="validation",
        candidates=(GOOD,),
        train_split="train",
    )
    report = run(config, test=label_set_examples(60), train=label_set_examples(120, seed=6)).report
    assert (report["selection"]["criterion"], report["selection"]["chosen"]) == ("auroc", GOOD)
    assert report["selection"]["num_validation_examples"] == 36


@pytest.mark.parametrize("role", ["val", "train"])
def test_a_temperature_is_fitted_on_other_examples_than_the_test_ones(tmp_path, role):
    config = ZeroShotConfig(write_prompts(tmp_path), **{f"{role}_split": role})
    other, test = make_examples(400, seed=1, noise=4), make_examples(200, seed=2, noise=4)  # most answers are wrong
    report = run(config, test=test, **{role: other}, scale=100.0, resamples=30).report
    found = report["calibration"]
    assert found["temperature"] == 100 / found["fitted_scale"]
    assert found["temperature"] > 3
    assert found["ece_temperature"] < found["ece"] / 2
    assert report["metrics"]["ece_temperature"] == found["ece_temperature"]
    assert len(found["curve_temperature"]) == 15
    used = report["selection"]["num_validation_examples"]
    assert used == 400 if role == "val" else 80 < used < 160  # 30 % of the training examples
    changed_test = run(config, test=test.subset(range(50)), **{role: other}, scale=100.0).report
    assert changed_test["calibration"]["fitted_scale"] == found["fitted_scale"]


def test_data_that_do_not_fit_are_refused_before_anything_is_embedded(tmp_path):
    prompts, examples = write_prompts(tmp_path), make_examples(40)
    with pytest.raises(EvaluationError, match="no attribute 'organs'; there is organ"):
        ZERO_SHOT.check(ZeroShotConfig(prompts, by="organs"), {"test": examples})
    with pytest.raises(EvaluationError, match="val_split: expected other examples than the test split"):
        ZERO_SHOT.check(ZeroShotConfig(prompts, val_split="test"), {"test": examples, "val": examples})
    with pytest.raises(EvaluationError, match="one template and there are no candidates"):
        ZERO_SHOT.check(ZeroShotConfig(prompts, selection="all"), {"test": examples})
    with pytest.raises(EvaluationError, match="not classes of the prompts: e"):
        ZERO_SHOT.check(ZeroShotConfig(prompts), {"test": examples, "val": make_examples(40, "abcde")})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selection": "best"}, "published, validation, all"),
        ({"selection": "validation", "candidates": ("x {}",)}, "expected val_split or train_split"),
        ({"candidates": ("x {}",)}, "nothing reads them"),
        ({"top_k": (0,)}, "top_k"),
        ({"multi_label": True, "graded": True}, "one label an example"),
    ],
)
def test_settings_that_contradict_are_refused(settings, message):
    with pytest.raises(EvaluationError, match=message):
        ZeroShotConfig("kather", **settings)


def test_every_prompt_in_play_is_there_to_freeze():
    config = ZeroShotConfig("kather", selection="all", candidates=("kather", "x {}"))
    assert prompts_to_freeze(config) == ("kather", "x {}")
