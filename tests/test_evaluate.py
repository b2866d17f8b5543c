"""The program: every example once, the same answers as transformers, absent data said, nothing half written."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_evaluation import (
    MODEL,
    draw,
    read_evaluation,
    report_of,
    rows_of,
    write_class_folders,
    write_config,
    write_pairs,
)
from small_models import NO_TORCH, make_model, make_tokenizer

from data_prep.shards import RecordsWriter
from plip_jax import evaluate as program
from plip_jax.config_file import load_config
from plip_jax.data.image import Preprocessing, decode_image, normalize_pixels, preprocess_image
from plip_jax.data.records import Record
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.prompts_file import load_prompts
from plip_jax.evaluation.report_files import FORMAT_VERSION
from plip_jax.export import export

PREPROCESSING = Preprocessing(image_size=32)


@pytest.fixture(scope="module")
def torch_model(checkpoint):
    """The checkpoint's weights in transformers."""
    pytest.importorskip("torch", reason=NO_TORCH)
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(checkpoint).eval()


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
    folder = tmp_path_factory.mktemp("report") / "out"
    argv = ["--checkpoint", str(checkpoint), "--config", config_path, "--out", str(folder)]
    argv += [f"--config.tasks.kather.data={class_folders}", f"--config.tasks.pairs.data={records_folder}"]
    assert program.main(argv) == 0
    return folder


@pytest.fixture(scope="module")
def evaluation(out) -> dict:
    return read_evaluation(out)


def test_every_example_counts_once_though_the_last_batch_is_padded(evaluation, out, class_folders):
    kather = report_of(evaluation, "kather")
    assert kather["num_examples"] == 21
    counts = np.array(kather["confusion"]["counts"])
    assert counts.sum() == 21
    by_label = dict(zip(kather["confusion"]["labels"], counts.sum(axis=1), strict=True))
    assert {label: int(count) for label, count in by_label.items() if count} == {"TUM": 9, "ADI": 6, "STR": 6}
    expected = sorted(path.relative_to(class_folders / "test").as_posix() for path in class_folders.rglob("*.png"))
    assert [row["id"] for row in rows_of(out / "kather.csv")] == expected
    assert kather["constant_class"]["label"] == "TUM"
    assert kather["constant_class"]["metrics"]["accuracy"] == 9 / 21
    assert set(kather["missing_classes"]) == {"BACK", "DEB", "LYM", "MUC", "MUS", "NORM"}

    pairs = report_of(evaluation, "pairs")
    assert (pairs["num_examples"], pairs["num_texts"]) == (11, 16)
    assert pairs["directions"]["text_to_image"]["recall"]["5"]["random"] == 5 / 11
    ids = [row["query"] for row in rows_of(out / "pairs.csv") if row["direction"] == "image_to_text"]
    assert ids == [f"r{index}" for index in range(11)]


def torch_scores(model, images: list[bytes], texts: list[str]) -> np.ndarray:
    pixels = [preprocess_image(decode_image(data, name="image"), PREPROCESSING) for data in images]
    values = normalize_pixels(np.stack(pixels), PREPROCESSING).transpose(0, 3, 1, 2)
    tokens = make_tokenizer()(texts)
    lengths = (tokens == make_tokenizer().eot_token_id).argmax(axis=1) + 1
    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    import torch

    with torch.no_grad():
        found = model(
            input_ids=torch.from_numpy(tokens.astype(np.int64)),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            pixel_values=torch.from_numpy(np.ascontiguousarray(values)),
        )
    return (found.image_embeds @ found.text_embeds.T).numpy()


def test_predictions_are_those_of_transformers_with_the_same_weights(out, torch_model, class_folders):
    rows = rows_of(out / "kather.csv")
    prompts = load_prompts("kather")
    images = [(class_folders / "test" / row["id"]).read_bytes() for row in rows]
    scores = torch_scores(torch_model, images, [prompts.texts(label)[0] for label in prompts.labels])
    assert [row["predicted"] for row in rows] == [prompts.labels[k] for k in scores.argmax(axis=1)]
    assert len({row["predicted"] for row in rows}) > 1  # else equal answers would show nothing
    ours = np.array([[float(row[f"score_{label}"]) for label in prompts.labels] for row in rows])
    np.testing.assert_allclose(ours, scores, atol=1e-5, rtol=0)  # float32 features of length one


def test_ranks_are_those_of_transformers_with_the_same_weights(out, torch_model):
    captions = [f"smooth muscle number {i}" if i % 2 else f"{i} lymphocytes" for i in range(11)]
    scores = torch_scores(torch_model, [draw(100 + i) for i in range(11)], captions).T
    ranks = 1 + (scores > scores.diagonal()[:, None]).sum(axis=1)
    found = {
        row["query"]: int(row["rank"]) for row in rows_of(out / "pairs.csv") if row["direction"] == "text_to_image"
    }
    assert [found[f"r{i}#0"] for i in range(11)] == ranks.tolist()


def test_the_report_names_its_inputs(evaluation, checkpoint):
    assert evaluation["format_version"] == FORMAT_VERSION
    model = evaluation["models"][MODEL]
    assert model["source"] == str(checkpoint)
    assert model["weights_file"].endswith("model.safetensors")
    kather, pairs = report_of(evaluation, "kather"), report_of(evaluation, "pairs")
    assert kather["hashes"]["weights"] == pairs["hashes"]["weights"] == model["weights_hash"]
    assert kather["hashes"]["prompts"] == load_prompts("kather").hash
    assert kather["hashes"]["split"] != pairs["hashes"]["split"]
    assert evaluation["config"]["tasks"]["pairs"]["recall_at"] == [1, 5]
    assert evaluation["absent"] == {}


def test_tables_and_pictures_stand_beside_it_and_nothing_else(out):
    assert {path.name for path in out.iterdir()} == {
        "evaluation.json", "report.md", "report.html", "prompts.lock.json", "embeddings", "scores.png",
        "kather.csv", "kather_confusion.png", "kather_reliability.png",
        "pairs.csv", "pairs_retrieval.png", "pairs_curves.png",
    }  # fmt: skip
    for picture in out.glob("*.png"):
        with Image.open(picture) as image:
            assert min(image.size) > 200
    assert "| kather | always TUM |" in (out / "report.md").read_text()


def test_a_second_run_gives_the_same_bytes(out, checkpoint, config_path, class_folders, tmp_path, capsys):
    argv = ["--checkpoint", str(checkpoint), "--config", config_path, "--config.allow_absent=true"]
    argv += ["--out", str(tmp_path), f"--config.tasks.kather.data={class_folders}"]
    for _ in range(2):
        assert program.main(argv) == 0  # the second replaces the first
    assert (tmp_path / "kather.csv").read_bytes() == (out / "kather.csv").read_bytes()
    again = json.loads((tmp_path / "evaluation.json").read_text())
    assert again["tasks"]["kather"] == read_evaluation(out)["tasks"]["kather"]
    assert list(again["absent"]) == ["pairs"]
    assert "--config.tasks.pairs.data=DIR" in again["absent"]["pairs"]
    assert "- pairs: no data" in (tmp_path / "report.md").read_text()
    assert "pairs: absent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "kather: no data; give a folder with --config.tasks.kather.data=DIR"),
        (["allow_absent=true"], "nothing to evaluate"),
        (["allow_absent=true", "tasks.kather.data=FOLDERS", "tasks.kather.missing_classes=error"], "no example in the"),
        (["allow_absent=true", "tasks.kather.data=FOLDERS", "tasks.kather.prompts=pannuke"], "not classes of the"),
        (["allow_absent=true", "tasks.kather.data=FOLDERS", "tasks.kather.prompts=kathr"], "did you mean 'kather'"),
        (["allow_absent=true", "tasks.pairs.data=FOLDERS/test"], "21 of 21 examples have none"),
        (["allow_absent=true", "tasks.kather.data=FOLDERS/nowhere"], "nowhere is not a folder"),
        (["allow_absent=true", "tasks.kather.data=FOLDERS", "tasks.kather.split=dev"], "no folder 'dev'"),
    ],
)
def test_what_does_not_fit_is_said_before_a_model_is_loaded(
    overrides, message, config_path, class_folders, tmp_path, capsys
):
    argv = ["--checkpoint", str(tmp_path / "no model"), "--config", config_path, "--out", str(tmp_path / "out")]
    argv += [f"--config.{override.replace('FOLDERS', str(class_folders))}" for override in overrides]
    assert program.main(argv) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_training_split_is_evaluated_without_its_probe(class_folders, tmp_path, capsys):
    records = tmp_path / "records"
    with RecordsWriter(records) as writer:
        for name in ("TUM", "ADI", "STR"):
            writer.write(Record(name, draw(0), ("a tile",), label=name), "test")
    for data in (class_folders, records):
        argv = [
            "--checkpoint",
            str(tmp_path / "no model"),
            "--config",
            "configs/eval_demo.py",
            "--tasks=tissue,tissue_probe",
        ]
        argv += ["--out", str(tmp_path / data.name), f"--config.tasks.tissue.data={data}"]
        argv += ["--config.tasks.tissue.prompts=kather", "--config.tasks.tissue.missing_classes=allow"]
        assert program.main(argv) == 1
        said = capsys.readouterr().err
        assert (
            "tissue_probe learns from a split that is not there; leave it out with --tasks (the others are tissue)"
            in said
        )
        assert program.main([*argv, "--config.allow_absent=true"]) == 1
        said = capsys.readouterr()
        assert "tissue_probe: absent (" in said.out
        assert "no model" in said.err


def test_a_wrong_field_exits_with_2_and_names_the_nearest(config_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        program.main(["--checkpoint", "c", "--out", "o", "--config", config_path, "--config.tasks.kater.data=x"])
    assert exit_info.value.code == 2
    assert "nearest known one is --config.tasks.kather.data" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_named(config_path, class_folders, tmp_path, capsys):
    argv = ["--checkpoint", str(tmp_path / "gone"), "--config", config_path, "--out", str(tmp_path / "out")]
    argv += ["--config.allow_absent=true", f"--config.tasks.kather.data={class_folders}"]
    assert program.main(argv) == 1
    assert "gone" in capsys.readouterr().err


def test_every_image_that_cannot_be_read_is_named_and_nothing_is_written(checkpoint, config_path, tmp_path, capsys):
    for name, data in (("a", draw(0)), ("b", b""), ("c", draw(1)[:60]), ("d", draw(2))):
        (tmp_path / "data" / "ADI").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "ADI" / f"{name}.png").write_bytes(data)
    argv = ["--checkpoint", str(checkpoint), "--config", config_path, "--out", str(tmp_path / "out")]
    argv += [
        "--config.allow_absent=true",
        "--config.tasks.kather.split=",
        f"--config.tasks.kather.data={tmp_path}/data",
    ]
    assert program.main(argv) == 1
    message = capsys.readouterr().err
    assert "2 images cannot be read" in message
    assert "ADI/b.png" in message
    assert "ADI/c.png" in message
    # What a next run reads, and not a score.
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"embeddings", "prompts.lock.json"}


def test_weights_that_a_source_does_not_have_are_said(config_path, class_folders, checkpoint, tmp_path, capsys):
    argv = [
        "--checkpoint",
        str(checkpoint),
        "--weights",
        "ema",
        "--config",
        config_path,
        "--out",
        str(tmp_path / "out"),
    ]
    argv += ["--config.allow_absent=true", f"--config.tasks.kather.data={class_folders}"]
    assert program.main(argv) == 1
    assert "this model has one weight only" in capsys.readouterr().err


def test_the_shipped_configs_are_valid():
    planned, absent = program.plan(program._read_config(load_config("configs/eval_demo.py")))
    kinds = [item.config.__class__.__name__ for item in planned]
    assert kinds == ["RetrievalConfig", "ZeroShotConfig", "LinearProbeConfig"]
    assert absent == {}
    moved = load_config("configs/eval_demo.py", ["tasks.tissue.data=elsewhere"])
    assert moved.tasks.tissue_probe.data == "elsewhere"
    assert moved.tasks.captions.data == "demo_out/records"
    moved = load_config("configs/eval_demo.py", ["tasks.tissue_probe.data=elsewhere"])
    assert moved.tasks.tissue.data == "demo_out/records"
    for name in ("eval_plip", "eval_ip_clip", "eval_field", "eval_own"):
        config = program._read_config(load_config(f"configs/{name}.py"))
        everything = dataclasses.replace(config, sets={key: {**of, "data": "x"} for key, of in config.sets.items()})
        planned, absent = program.plan(everything)
        assert {item.name for item in planned} == set(config.tasks)
        assert absent == {}
        assert {fields["set"] for fields in config.tasks.values()} == set(config.sets)
        with pytest.raises(EvaluationError, match="nothing to evaluate"):
            program.plan(config)


@pytest.mark.realdata
def test_kathers_prompts_on_real_tiles_of_three_regions(realdata, checkpoint, tmp_path):
    argv = ["--checkpoint", str(checkpoint), "--config", "configs/eval_plip.py", "--out", str(tmp_path)]
    argv += [
        f"--config.sets.kather.data={realdata / 'colon_regions3'}",
        "--tasks",
        "kather_zero_shot,pannuke_zero_shot",
    ]
    argv += ["--config.tasks.kather_zero_shot.missing_classes=allow", "--config.bootstrap.resamples=20"]
    assert program.main(argv) == 0
    evaluation = read_evaluation(tmp_path)
    kather = report_of(evaluation, "kather_zero_shot")
    assert kather["num_examples"] == 254
    examples = {label: found["examples"] for label, found in kather["per_class"].items() if found["examples"]}
    assert examples == {"ADI": 54, "BACK": 100, "NORM": 100}
    # BACK and NORM tie: the first in class order. F1 of BACK is 2 * 100 / (100 + 254), weighted by 100 of 254.
    assert kather["constant_class"]["label"] == "BACK"
    assert kather["constant_class"]["metrics"]["weighted_f1"] == pytest.approx(200 / 354 * 100 / 254, abs=1e-15)
    assert kather["missing_classes"] == ["DEB", "LYM", "MUC", "MUS", "STR", "TUM"]
    assert np.sum(kather["confusion"]["counts"]) == 254
    assert "https://warwick.ac.uk" in evaluation["absent"]["pannuke_zero_shot"]
    assert "--config.sets.pannuke.data=DIR" in evaluation["absent"]["pannuke_zero_shot"]


def test_a_file_where_the_report_should_go_is_refused_at_once(tmp_path, checkpoint, config_path, class_folders, capsys):
    (tmp_path / "file").write_text("mine")
    more = [f"--config.tasks.kather.data={class_folders}", "--config.allow_absent=True"]
    out = str(tmp_path / "file")
    assert program.main(["--checkpoint", "/no/such/model", "--config", config_path, "--out", out, *more]) == 1
    assert "expected a folder" in capsys.readouterr().err  # and not a word of the model: it was not looked for
    assert (tmp_path / "file").read_text() == "mine"


def test_checkpoints_are_named_by_the_user_or_by_their_folder():
    named = program.name_checkpoints(["runs/plip", "clip=openai/clip-vit-base-patch32", "vit:models/vit b"])
    assert named == {"plip": "runs/plip", "clip": "openai/clip-vit-base-patch32", "vit_b": "vit:models/vit b"}
    with pytest.raises(EvaluationError, match="two checkpoints are called 'plip'"):
        program.name_checkpoints(["a/plip", "b/plip"])
