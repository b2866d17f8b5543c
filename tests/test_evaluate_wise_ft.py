"""The program's WiSE-FT sweep: its ends are the two models, its middle is what export ships."""

import collections
import json
from pathlib import Path

import pytest
from PIL import Image
from small_evaluation import (
    read_evaluation,
    report_of,
    rows_of,
    write_class_folders,
    write_config,
    write_pairs,
)
from small_models import make_model

from plip_jax import batching
from plip_jax import evaluate as program
from plip_jax import export as export_program
from plip_jax.convert.load import load_model
from plip_jax.export import export


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return export(make_model(), tmp_path_factory.mktemp("checkpoint") / "hf")


@pytest.fixture(scope="module")
def config_path(tmp_path_factory) -> str:
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data") / "kather")


@pytest.fixture(scope="module")
def records_folder(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs")


@pytest.fixture(scope="module")
def out(tmp_path_factory, checkpoint, config_path, class_folders, records_folder) -> Path:
    """The plain report of the checkpoint."""
    folder = tmp_path_factory.mktemp("report") / "out"
    argv = ["--checkpoint", str(checkpoint), "--config", config_path, "--out", str(folder)]
    argv += [f"--config.tasks.kather.data={class_folders}", f"--config.tasks.pairs.data={records_folder}"]
    assert program.main(argv) == 0
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return export(make_model(seed=1), tmp_path_factory.mktemp("start") / "hf")


@pytest.fixture(scope="module")
def swept(tmp_path_factory, checkpoint, start, config_path, class_folders, records_folder) -> Path:
    """A sweep of three alphas, during which each image is decoded once."""
    folder = tmp_path_factory.mktemp("sweep") / "out"
    argv = [
        "--checkpoint",
        str(checkpoint),
        "--config",
        config_path,
        "--out",
        str(folder),
        "--wise-ft-from",
        str(start),
    ]
    argv += ["--alphas", "1,0.5,0", "--in-domain", "pairs/image_to_text_recall@5"]
    argv += [f"--config.tasks.kather.data={class_folders}", f"--config.tasks.pairs.data={records_folder}"]
    decoded: collections.Counter[str] = collections.Counter()
    with pytest.MonkeyPatch.context() as patch:
        original = batching.decode_image
        patch.setattr(
            batching, "decode_image", lambda data, *, name: (decoded.update([name]), original(data, name=name))[1]
        )
        assert program.main(argv) == 0
    assert len(decoded) == 21 + 11
    assert set(decoded.values()) == {1}  # whatever the number of alphas
    return folder


def test_the_sweeps_ends_are_the_two_models_and_its_middle_is_what_export_ships(
    swept, out, start, checkpoint, config_path, class_folders, tmp_path
):
    points = {point["alpha"]: point for point in json.loads((swept / "wise_ft.json").read_text())["points"]}
    assert list(points) == [0, 0.5, 1]
    evaluation, again = read_evaluation(out), read_evaluation(swept)
    assert again["tasks"] == evaluation["tasks"]  # the report is the plain one, of alpha 1
    assert (swept / "kather.csv").read_bytes() == (out / "kather.csv").read_bytes()
    for name in ("kather", "pairs"):
        assert points[1]["metrics"][name] == report_of(evaluation, name)["metrics"]
    assert points[0]["weights_hash"] == load_model(start).weights_hash
    assert points[1]["weights_hash"] == load_model(checkpoint).weights_hash

    half = tmp_path / "half"
    argv = ["--checkpoint", str(checkpoint), "--wise-ft-from", str(start), "--alpha", "0.5", "--out", str(half)]
    assert export_program.main(argv) == 0
    assert points[0.5]["weights_hash"] == load_model(half).weights_hash
    argv = ["--checkpoint", str(half), "--config", config_path, "--out", str(tmp_path / "report")]
    argv += ["--config.allow_absent=true", f"--config.tasks.kather.data={class_folders}"]
    assert program.main(argv) == 0
    found = read_evaluation(tmp_path / "report")
    assert points[0.5]["metrics"]["kather"] == report_of(found, "kather", half.name)["metrics"]
    assert len({json.dumps(point["metrics"]) for point in points.values()}) == 3  # else equal ones would show nothing


def test_the_sweep_is_a_table_a_picture_and_a_part_of_the_report(swept, out, start):
    new = {path.name for path in swept.iterdir()} - {path.name for path in out.iterdir()}
    assert new == {"wise_ft.json", "wise_ft.csv", "wise_ft.png"}
    sweep = json.loads((swept / "wise_ft.json").read_text())
    assert sweep["start"]["source"] == str(start)
    assert sweep["in_domain"] == {"task": "pairs", "metric": "image_to_text_recall@5"}
    assert sweep["general"] == {"task": "kather", "metric": "weighted_f1"}
    text = (swept / "report.md").read_text()
    assert "| alpha | in-domain: pairs, image to text recall@5 | general: kather, weighted f1 | weights |" in text
    rows = rows_of(swept / "wise_ft.csv")
    for point, row in zip(sweep["points"], rows, strict=True):
        assert point["in_domain"] == point["metrics"]["pairs"]["image_to_text_recall@5"]
        assert point["general"] == point["metrics"]["kather"]["weighted_f1"] == float(row["kather/weighted_f1"])
        line = (
            f"| {point['alpha']:g} | {point['in_domain']:.3f} | {point['general']:.3f} | `{row['weights_hash'][:16]}` |"
        )
        assert line in text
    with Image.open(swept / "wise_ft.png") as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20  # more than a blank page


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--alphas", "0,1"], 2, "need --wise-ft-from START"),
        (["--general", "kather"], 2, "need --wise-ft-from START"),
        (["--wise-ft-from", "START", "--alphas", "0,1.5"], 2, "expected a number from 0 (start) to 1 (checkpoint)"),
        (["--wise-ft-from", "START", "--alphas", "0.5"], 2, "expected two or more different alphas"),
        (["--wise-ft-from", "START", "--general", "kathr"], 1, "did you mean 'kather'"),
        (["--wise-ft-from", "START", "--config.tasks.pairs.data="], 1, "kather is the only one with data"),
    ],
)
def test_a_sweep_that_cannot_be_made_is_refused_before_a_model_is_loaded(
    flags, status, message, config_path, class_folders, records_folder, tmp_path, capsys
):
    argv = ["--checkpoint", str(tmp_path / "no model"), "--config", config_path, "--out", str(tmp_path / "out")]
    argv += ["--config.allow_absent=true", f"--config.tasks.kather.data={class_folders}"]
    argv += [f"--config.tasks.pairs.data={records_folder}", *flags]
    if status == 2:
        with pytest.raises(SystemExit, match="2"):
            program.main(argv)
    else:
        assert program.main(argv) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
