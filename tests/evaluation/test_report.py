"""The report by what it says: intervals and their unit, the constant class, whose numbers are whose, what is absent."""

import numpy as np
import pytest

from plip_jax.evaluation import statistics
from plip_jax.evaluation.cells import number, published_scores, with_interval
from plip_jax.evaluation.document import Table, to_html, to_markdown
from plip_jax.evaluation.prompts_file import load_prompts
from plip_jax.evaluation.report import file_prefix, make_document
from plip_jax.evaluation.report_pictures import make_pictures


def classified(counts, **more) -> dict:
    labels = list(load_prompts("kather").labels)
    counts = np.asarray(counts)
    constant, metrics = statistics.best_constant_class(counts)
    found = statistics.classification_metrics(counts).to_dict()
    return {
        "type": "zero_shot",
        "num_examples": int(counts.sum()),
        "confusion": {"labels": labels, "counts": counts.tolist()},
        "metrics": found,
        "constant_class": {"label": labels[constant], "metrics": metrics.to_dict()},
        "missing_classes": ["DEB"],
        "hashes": {"prompts": "a" * 64},
        "bootstrap": {"unit": "slide-level", "intervals": {"weighted_f1": [0.9, 1.0], "mcc": None}},
        **more,
    }


def retrieved() -> dict:
    recall = {"k": 10, "hits": 5, "recall": 0.5, "random": 0.1, "fold": 5.0}
    found = {"num_queries": 10, "num_candidates": 1000, "median_rank": 8.5, "recall": {"10": recall}}
    found["curve"] = {"k": [1, 10, 100], "recall": [0.1, 0.5, 0.9], "random": [0.001, 0.01, 0.1]}
    return {
        "type": "retrieval",
        "num_examples": 1000,
        "metrics": {"text_to_image_recall@10": 0.5, "text_to_image_median_rank": 8.5},
        "directions": {"text_to_image": found},
        "hashes": {"split": "c" * 64},
    }


def task(type_name: str, models: dict, metric: str, published: str = "", **more) -> dict:
    return {
        "type": type_name, "data": f"/data/{published}", "split": "test", "published": published,
        "first_metric": metric, "models": models, "not_applicable": {}, **more,
    }  # fmt: skip


@pytest.fixture
def evaluation() -> dict:
    right = classified(np.diag([6, 2, 0, 0, 0, 0, 0, 0, 0]))
    wrong = classified(np.roll(np.diag([6, 2, 0, 0, 0, 0, 0, 0, 0]), 1, axis=1))
    return {
        "models": {
            "one": {"source": "run", "weights_hash": "0123456789abcdef" * 4, "step": 1200, "weights": "ema"},
            "two": {"source": "vit:folder", "weights_hash": "f" * 64},
        },
        "versions": {"plip_jax": "0.1.0"},
        "config": {"note": "A note.", "bootstrap": {"resamples": 2000, "seed": 7, "level": 0.95}},
        "tasks": {
            "colon": task("zero_shot", {"one": right, "two": wrong}, "weighted_f1", "kather"),
            "books": task(
                "retrieval", {"one": retrieved()}, "text_to_image_recall@10", "books",
                not_applicable={"two": "it embeds no text"},
            ),
        },
        "comparisons": [
            {"task": "colon", "a": "one", "b": "two", "metric": "weighted_f1", "unit": "slide-level", "difference": 1.0,
             "interval": [0.8, 1.0], "p_value": 0.0004, "p_holm": 0.02, "resamples": 2000,
             "mcnemar": {"p_value": None, "refused": "9 examples come from 2 slide units"}},
        ],
        "over_seeds": [],
        "leakage": {"absent": "no training records were given"},
        "absent": {"pannuke": "no data; https://warwick.ac.uk; give a folder"},
    }  # fmt: skip


def test_the_document_says_what_was_found(evaluation):
    text = to_markdown(make_document(evaluation, {}))
    assert "- one: run, weights `0123456789abcdef`, step 1,200, moving average" in text
    assert "A note." in text
    assert "95% bootstrap intervals (2,000 resamples, percentile; seed 7)" in text
    assert "| colon | one | slide-level | 8 | 1.000 [0.900, 1.000] | 1.000 |" in text
    assert "| colon | two | slide-level | 8 | 0.000 [0.900, 1.000] | 0.000 |" in text
    # Always ADI: F1 2 * 6 / (6 + 8) = 0.857, weighted by 6 of 8 = 0.643, macro over the two classes seen 0.429.
    assert "| colon | always ADI |  |  | 0.643 | 0.429 | 0.500 | 0.000 | 0.750 |" in text
    assert "| colon | PLIP (published) |  |  | 0.565 [0.559, 0.572] | - |" in text
    assert "No examples of DEB" in text
    assert "| text to image | one | 10 | 1,000 | 8.500 | 0.500 (5.0x) |" in text
    assert "| PLIP | 0.265 | 0.659 |" in text
    assert "- two: it embeds no text" in text
    assert (
        "| colon | one against two | weighted f1 | slide-level | 1.000 | [0.800, 1.000] | < 0.001 | 0.020 | - |" in text
    )
    assert "No p-value is below 0.001" in text
    assert "No McNemar's test: 9 examples come from 2 slide units." in text
    assert "Not audited: no training records were given" in text
    assert "- pannuke: no data; https://warwick.ac.uk; give a folder" in text
    assert "- colon: /data/kather test: prompts `aaaaaaaaaaaaaaaa`" in text
    assert "Huang et al." in text


def test_a_task_of_another_type_is_shown_with_all_its_metrics(evaluation):
    found = {"type": "pair_cosine", "num_examples": 5, "metrics": {"mean_cosine": 0.25}, "hashes": {"split": "d" * 64}}
    evaluation["tasks"]["pairs"] = task("pair_cosine", {"one": found}, "mean_cosine")
    text = to_markdown(make_document(evaluation, {}))
    assert "## Pair cosine\n\n### pairs\n" in text
    assert "| mean cosine | 0.250 |" in text


def test_flagged_examples_are_counted_and_scores_given_without_them(evaluation):
    flagged = {"either": 3, "hash": 1, "embedding": 2}
    evaluation["leakage"] = {"method": "By hash.", "sets": {"/data/kather test": {"num_test": 8, "flagged": flagged}}}
    fewer = classified(np.diag([4, 1, 0, 0, 0, 0, 0, 0, 0]))
    evaluation["without_flagged"] = {"colon": {"one": fewer, "two": {"not_scored": "nothing is left"}}}
    text = to_markdown(make_document(evaluation, {}))
    assert "| /data/kather test | 8 | 3 | 1 | 2 |" in text
    assert "| colon | one | weighted f1 | 1.000 [0.900, 1.000] | 1.000 [0.900, 1.000] |" in text
    assert "| colon | two | weighted f1 | 0.000 [0.900, 1.000] | nothing is left |" in text


def test_strata_sensitivity_and_calibration_have_their_tables(evaluation):
    report = evaluation["tasks"]["colon"]["models"]["one"]
    report["by"] = {"attribute": "organ", "strata": {"lung": classified(np.diag([1, 1, 0, 0, 0, 0, 0, 0, 0]))}}
    spread = {"median": 0.5, "minimum": 0.2, "maximum": 0.7, "median_interval": [0.4, 0.6]}
    report["prompt_sensitivity"] = {"num_variants": 12, "metrics": {"weighted_f1": spread}, "variants": []}
    report["calibration"] = {"bins": 15, "binning": "equal mass", "ece": 0.25, "curve": None, "temperature": None}
    text = to_markdown(make_document(evaluation, {}))
    assert "| lung | 2 | 1.000 [0.900, 1.000] |" in text
    assert "| one | weighted f1 | 12 | 0.500 [0.400, 0.600] | 0.200 | 0.700 |" in text
    assert "| model | bins | binning | ece |" in text
    assert "| one | 15 | equal mass | 0.250 |" in text


def test_pictures_are_made_for_each_model_and_shown_with_what_they_are(evaluation):
    pictures = make_pictures(evaluation, {}, lambda task, wanted: {})
    assert set(pictures) == {"scores.png", "books_curves.png"}
    page = to_html(make_document(evaluation, pictures), title="t")
    assert page.count("<img") == 2
    assert "books: recall at each cut-off against chance" in page
    assert file_prefix(evaluation, "one") == "one/"
    assert file_prefix({"models": {"one": {}}}, "one") == ""


def test_every_row_of_every_table_is_as_long_as_its_head(evaluation):
    tables = [block for block in make_document(evaluation, {}) if isinstance(block, Table)]
    assert len(tables) >= 4
    assert all(len(row) == len(table.head) for table in tables for row in table.rows)


@pytest.mark.parametrize(
    ("value", "cell"),
    [(0.56471, "0.565"), (-0.0001, "0.000"), (1.0, "1.000"), (388.0, "388"), (8.5, "8.500"), (0, "0"), (711, "711"),
     (1234.56, "1,234.6"), (float("nan"), "-"), (None, "-")],
)  # fmt: skip
def test_numbers_as_cells(value, cell):
    assert number(value) == cell


def test_an_interval_that_is_not_defined_is_left_out():
    report = {"metrics": {"mcc": 0.5}, "bootstrap": {"intervals": {"mcc": None}}}
    assert with_interval(report, "mcc") == "0.500"
    assert with_interval(report, "auroc") == "-"


def test_published_numbers_are_those_of_the_paper():
    assert published_scores("kather", "zero_shot") == {"weighted_f1": {"CLIP": [0.135], "PLIP": [0.565, 0.559, 0.572]}}
    assert published_scores("wsss4luad", "published_probe")["macro_f1"]["PLIP"] == [0.927]
    assert published_scores("kather", "fine_tune") == {}  # a curve, drawn and not tabled
    assert published_scores("", "zero_shot") == {}


def test_a_task_that_no_model_can_do_is_named_and_the_rest_stands(evaluation):
    for name in ("colon", "books"):
        evaluation["tasks"][name] |= {"models": {}, "not_applicable": {"one": "no text", "two": "no text"}}
    evaluation["comparisons"] = []
    pictures = make_pictures(evaluation, {}, lambda task, wanted: {})
    text = to_markdown(make_document(evaluation, pictures))
    assert pictures == {}
    assert text.count("- one: no text") == text.count("- two: no text") == 2


def test_several_labels_an_image_and_failed_tasks_have_their_place(evaluation):
    constant = {"label": None, "metrics": {"auroc": 0.5, "map": 0.3}}
    labels = {"type": "zero_shot_multi_label", "num_examples": 9, "metrics": {"auroc": 0.8, "map": 0.6}, "hashes": {}}
    evaluation["tasks"]["flags"] = task(
        "zero_shot_multi_label", {"one": {**labels, "constant_class": constant}}, "auroc",
        not_applicable={"two": "failed: no such thing"},
    )  # fmt: skip
    text = to_markdown(make_document(evaluation, make_pictures(evaluation, {}, lambda task, wanted: {})))
    assert "## Zero-shot, several labels an image" in text
    assert "| flags | one | - | 9 | 0.800 | 0.600 |" in text
    assert "| flags | one score for all |  |  | 0.500 | 0.300 |" in text
    assert "- two: failed: no such thing" in text


def test_scores_by_share_of_the_training_data_stand_beside_the_published_ones(evaluation):
    points = [{"fraction": 0.01, "mean": 0.5, "sd": 0.1, "low": 0.4, "high": 0.6},
              {"fraction": 1.0, "mean": 0.9, "sd": None, "low": None, "high": None}]  # fmt: skip
    tuned = classified(np.diag([6, 2, 0, 0, 0, 0, 0, 0, 0]), type="fine_tune", curve=points)
    evaluation["tasks"]["tuned"] = task("fine_tune", {"one": tuned}, "weighted_f1", "kather")
    pictures = make_pictures(evaluation, {}, lambda task, wanted: {})
    text = to_markdown(make_document(evaluation, pictures))
    assert "tuned_fractions.png" in pictures
    assert "| training data | one | PLIP (published) | ImageNet ViT-B/32 (published) |" in text
    assert "| 1% | 0.500 [0.400, 0.600], SD 0.100 | 0.952 | 0.921 |" in text
    assert "| 100% | 0.900 | 0.994 | 0.991 |" in text
