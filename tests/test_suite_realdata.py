"""The whole suite on real micrographs, for two checkpoints: every kind of task, the audit, the report."""

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image
from small_evaluation import read_evaluation, report_of, rows_of
from small_models import make_model

from data_prep import build as build_records
from data_prep.tfds.build import build as build_set
from plip_jax import api
from plip_jax import evaluate as program
from plip_jax.evaluation.tasks import TASKS
from plip_jax.export import export

pytestmark = [pytest.mark.realdata, pytest.mark.slow]

_TASKS = "kather_zero_shot,kather_probe,kather_published_probe,kather_few_shot,kather_fine_tune,kather_image_retrieval,"
_TASKS += "twitter_retrieval,twitter_image_retrieval,pannuke_zero_shot"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [
        f"--checkpoint={name}={export(make_model(seed), folder / name)}" for seed, name in enumerate(("one", "two"))
    ]


@pytest.fixture(scope="module")
def atlas(realdata, tmp_path_factory) -> Path:
    """The atlas as records, its slides as posts: what training could have read."""
    folder, out = realdata / "pathology_atlas", tmp_path_factory.mktemp("records") / "atlas"
    argv = ["--source=csv", f"--table={folder / 'captions.csv'}", f"--images={folder}", f"--out={out}"]
    assert build_records.main([*argv, "--group-column=slide", "--holdout=test=0.5"]) == 0
    return out


@pytest.fixture(scope="module")
def arguments(models, atlas, realdata) -> list[str]:
    settings = {
        "sets.kather.data": realdata / "colon_regions3",
        "sets.twitter.data": atlas,
        "leakage.data": atlas,
        "bootstrap.resamples": 200,
        "tasks.kather_zero_shot.missing_classes": "allow",
        "tasks.kather_few_shot.episodes": 20,
        "tasks.kather_probe.fractions": (0.1,),
        "tasks.kather_fine_tune.fractions": (0.1, 0.5),
        "tasks.kather_fine_tune.seeds": (0, 1),
        "tasks.kather_fine_tune.epochs": 1,
        "tasks.kather_fine_tune.learning_rates": (1e-3, 1e-2),
    }
    return [*models, "--config=configs/eval_plip.py", *(f"--config.{name}={value}" for name, value in settings.items())]


@pytest.fixture(scope="module")
def out(arguments, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("suite") / "report"
    assert program.main([*arguments, f"--out={folder}", f"--tasks={_TASKS}"]) == 0
    return folder


@pytest.fixture(scope="module")
def evaluation(out) -> dict:
    return read_evaluation(out)


def test_every_kind_of_task_is_run_for_both_models(evaluation):
    assert list(evaluation["models"]) == ["one", "two"]
    assert {task["type"] for task in evaluation["tasks"].values()} == set(TASKS)
    for name, task in evaluation["tasks"].items():
        assert set(task["models"]) == {"one", "two"}, name
        for report in task["models"].values():
            bounds = report["bootstrap"]["intervals"][task["first_metric"]]
            assert bounds[0] <= report["metrics"][task["first_metric"]] <= bounds[1]
    assert report_of(evaluation, "kather_zero_shot", "one")["bootstrap"]["unit"] == "patch-level: too narrow"
    assert report_of(evaluation, "twitter_retrieval", "one")["bootstrap"]["unit"] == "group-level"
    assert "https://warwick.ac.uk" in evaluation["absent"]["pannuke_zero_shot"]


def test_models_are_compared_on_one_metric_a_task(evaluation):
    rows = evaluation["comparisons"]
    assert {row["task"] for row in rows} == set(evaluation["tasks"])
    assert {(row["a"], row["b"]) for row in rows} == {("one", "two")}
    assert all(row["p_value"] <= row["p_holm"] <= 1 for row in rows)
    (mcnemar,) = {row["mcnemar"]["refused"] for row in rows if row.get("mcnemar")}
    assert "nothing says that the examples are independent" in mcnemar
    assert {row["task"] for row in evaluation["over_seeds"]} == {"kather_fine_tune", "kather_published_probe"}


def test_tiles_that_two_of_the_real_sets_share_are_found(evaluation, out, realdata):
    """The colon tiles and the atlas have 32 tiles in common, most of them in the colon set's training part."""
    found = evaluation["leakage"]["sets"][f"{realdata / 'colon_regions3'} test"]
    assert found["num_test"] == 254
    assert found["flagged"]["hash"] >= 5
    rows = [row for row in rows_of(out / "leakage.csv") if row["set"].endswith("colon_regions3 test")]
    close = {row["test_id"] for row in rows if "hash" in row["why"]}
    assert len(close) == found["flagged"]["hash"]
    assert all(int(row["distance"]) <= 6 for row in rows if "hash" in row["why"])
    without = evaluation["without_flagged"]["kather_zero_shot"]["one"]
    assert without["num_examples"] == 254 - found["flagged"]["either"]


def test_the_page_holds_every_picture_and_says_what_it_shows(out):
    page = (out / "report.html").read_text()
    pictures = re.findall(r'<img src="data:image/(\w+);base64,([^"]+)" alt="([^"]+)">', page)
    assert len(pictures) == page.count("<img") == len(list(out.rglob("*.png")))
    assert len({alt for _, _, alt in pictures}) == len(pictures)
    for _, data, _ in pictures:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert min(image.size) > 200
    assert "(published)" in page
    assert "always BACK" in page


def test_a_second_run_embeds_nothing_and_gives_the_same_numbers(arguments, out, evaluation, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("an image was embedded again")

    monkeypatch.setattr(api.Encoder, "encode_images_of", refuse)
    argv = [*arguments, f"--out={tmp_path}", f"--cache={out / 'embeddings'}"]
    assert program.main([*argv, "--tasks=kather_zero_shot,kather_probe,twitter_retrieval"]) == 0
    again = read_evaluation(tmp_path)["tasks"]
    assert len(again) == 3
    assert again == {name: evaluation["tasks"][name] for name in again}


def test_a_built_set_is_evaluated_by_name(realdata, models, tmp_path):
    folder = build_set("colorectal_histology", realdata / "kather2016_100", tmp_path / "sets", allow_counts=True)
    argv = [*models[:1], "--config=configs/eval_field.py", f"--out={tmp_path / 'report'}"]
    argv += [f"--config.sets.colorectal_histology.data={folder.parent}", "--tasks=colorectal_histology_zero_shot"]
    assert program.main(argv) == 0
    found = report_of(read_evaluation(tmp_path / "report"), "colorectal_histology_zero_shot", "one")
    assert found["num_examples"] == 100
    assert sum(of["examples"] for of in found["per_class"].values()) == 100
