"""The program: every example once, the same answers as transformers, absent data said, nothing half written."""

import collections
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_models import NO_TORCH, make_model, make_tokenizer

from data_prep.shards import RecordsWriter
from plip_jax import api
from plip_jax import evaluate as program
from plip_jax import export as export_program
from plip_jax.config_file import load_config
from plip_jax.convert.load import load_model
from plip_jax.data.image import Preprocessing, decode_image, normalize_pixels, preprocess_image
from plip_jax.data.records import Record
from plip_jax.evaluation.prompts_file import load_prompts
from plip_jax.export import export

PREPROCESSING = Preprocessing(image_size=32)
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({"batch_size": 8, "compute_dtype": "float32", "allow_absent": False, "tasks": ConfigDict({
        "kather": ConfigDict({"type": "zero_shot", "data": "", "split": "test", "prompts": "kather",
                              "missing_classes": "allow"}),
        "pairs": ConfigDict({"type": "retrieval", "data": "", "split": "", "relevance": "id", "recall_at": (1, 5)}),
    })})
"""


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
    path = tmp_path_factory.mktemp("config") / "eval_test.py"
    path.write_text(CONFIG)
    return str(path)


def draw(seed: int) -> bytes:
    """An image whose embedding differs from the others': coarse random blocks, not square."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((60, 50), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory) -> Path:
    """21 images of 3 classes under test/: with 8 devices the batch is 8, and the last one holds 5."""
    root = tmp_path_factory.mktemp("data") / "kather"
    for index in range(21):
        folder = root / "test" / ("TUM", "ADI", "STR")[0 if index < 9 else 1 + index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:02d}.png").write_bytes(draw(index))
    return root


@pytest.fixture(scope="module")
def records_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pairs"
    with RecordsWriter(folder) as writer:
        for index in range(11):
            captions = (f"smooth muscle number {index}", "an H&E image") if index % 2 else (f"{index} lymphocytes",)
            writer.write(Record(f"r{index}", draw(100 + index), captions), "test")
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory, checkpoint, config_path, class_folders, records_folder) -> Path:
    folder = tmp_path_factory.mktemp("report") / "out"
    argv = ["--checkpoint", str(checkpoint), "--config", config_path, "--out", str(folder)]
    argv += [f"--config.tasks.kather.data={class_folders}", f"--config.tasks.pairs.data={records_folder}"]
    assert program.main(argv) == 0
    return folder


@pytest.fixture(scope="module")
def evaluation(out) -> dict:
    return json.loads((out / "evaluation.json").read_text())


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_example_counts_once_though_the_last_batch_is_padded(evaluation, out, class_folders):
    kather = evaluation["tasks"]["kather"]
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

    pairs = evaluation["tasks"]["pairs"]
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
    assert evaluation["format_version"] == program.FORMAT_VERSION
    assert evaluation["model"]["source"] == str(checkpoint)
    assert evaluation["model"]["weights_file"].endswith("model.safetensors")
    kather, pairs = evaluation["tasks"]["kather"], evaluation["tasks"]["pairs"]
    assert kather["hashes"]["weights"] == pairs["hashes"]["weights"] == evaluation["model"]["weights_hash"]
    assert kather["hashes"]["prompts"] == load_prompts("kather").hash
    assert kather["hashes"]["split"] != pairs["hashes"]["split"]
    assert evaluation["config"]["tasks"]["pairs"]["recall_at"] == [1, 5]
    assert evaluation["absent"] == {}


def test_tables_and_pictures_stand_beside_it_and_nothing_else(out):
    assert {path.name for path in out.iterdir()} == {
        "evaluation.json", "report.md", "kather.csv", "pairs.csv", "kather_confusion.png", "pairs_retrieval.png",
    }  # fmt: skip
    for picture in out.glob("*.png"):
        with Image.open(picture) as image:
            assert min(image.size) > 200
    assert "| kather | 21 | always TUM |" in (out / "report.md").read_text()


def test_a_second_run_gives_the_same_bytes(out, checkpoint, config_path, class_folders, tmp_path, capsys):
    argv = ["--checkpoint", str(checkpoint), "--config", config_path, "--config.allow_absent=true"]
    argv += ["--out", str(tmp_path), f"--config.tasks.kather.data={class_folders}"]
    for _ in range(2):
        assert program.main(argv) == 0  # the second replaces the first
    assert (tmp_path / "kather.csv").read_bytes() == (out / "kather.csv").read_bytes()
    again = json.loads((tmp_path / "evaluation.json").read_text())
    assert again["tasks"]["kather"] == json.loads((out / "evaluation.json").read_text())["tasks"]["kather"]
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
    assert not (tmp_path / "out").exists()


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
        original = api.decode_image
        patch.setattr(api, "decode_image", lambda data, *, name: (decoded.update([name]), original(data, name=name))[1])
        assert program.main(argv) == 0
    assert len(decoded) == 21 + 11
    assert set(decoded.values()) == {1}  # whatever the number of alphas
    return folder


def test_the_sweeps_ends_are_the_two_models_and_its_middle_is_what_export_ships(
    swept, out, start, checkpoint, config_path, class_folders, tmp_path
):
    points = {point["alpha"]: point for point in json.loads((swept / "wise_ft.json").read_text())["points"]}
    assert list(points) == [0, 0.5, 1]
    evaluation = json.loads((out / "evaluation.json").read_text())
    again = json.loads((swept / "evaluation.json").read_text())
    assert again == {**evaluation, "versions": again["versions"]}  # the report is the plain one, of alpha 1
    assert (swept / "kather.csv").read_bytes() == (out / "kather.csv").read_bytes()
    for name in ("kather", "pairs"):
        assert points[1]["metrics"][name] == evaluation["tasks"][name]["metrics"]
    assert points[0]["weights_hash"] == load_model(start).weights_hash
    assert points[1]["weights_hash"] == load_model(checkpoint).weights_hash

    half = tmp_path / "half"
    argv = ["--checkpoint", str(checkpoint), "--wise-ft-from", str(start), "--alpha", "0.5", "--out", str(half)]
    assert export_program.main(argv) == 0
    assert points[0.5]["weights_hash"] == load_model(half).weights_hash
    argv = ["--checkpoint", str(half), "--config", config_path, "--out", str(tmp_path / "report")]
    argv += ["--config.allow_absent=true", f"--config.tasks.kather.data={class_folders}"]
    assert program.main(argv) == 0
    found = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert points[0.5]["metrics"]["kather"] == found["tasks"]["kather"]["metrics"]
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
    assert [item.config.__class__.__name__ for item in planned] == ["RetrievalConfig", "ZeroShotConfig"]
    assert absent == {}
    overrides = ["tasks.kather.data=x"]
    planned, absent = program.plan(program._read_config(load_config("configs/eval_plip.py", overrides)))
    assert set(absent) == {"pannuke", "digestpath", "wsss4luad", "heldout"}


@pytest.mark.realdata
def test_kathers_prompts_on_real_tiles_of_three_regions(realdata, checkpoint, tmp_path):
    argv = ["--checkpoint", str(checkpoint), "--config", "configs/eval_plip.py", "--out", str(tmp_path)]
    argv += [f"--config.tasks.kather.data={realdata / 'colon_regions3'}", "--config.tasks.kather.split=test"]
    argv += ["--config.tasks.kather.missing_classes=allow"]
    assert program.main(argv) == 0
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    kather = evaluation["tasks"]["kather"]
    assert kather["num_examples"] == 254
    examples = {label: found["examples"] for label, found in kather["per_class"].items() if found["examples"]}
    assert examples == {"ADI": 54, "BACK": 100, "NORM": 100}
    # BACK and NORM tie: the first in class order. F1 of BACK is 2 * 100 / (100 + 254), weighted by 100 of 254.
    assert kather["constant_class"]["label"] == "BACK"
    assert kather["constant_class"]["metrics"]["weighted_f1"] == pytest.approx(200 / 354 * 100 / 254, abs=1e-15)
    assert kather["missing_classes"] == ["DEB", "LYM", "MUC", "MUS", "STR", "TUM"]
    assert np.sum(kather["confusion"]["counts"]) == 254
    assert set(evaluation["absent"]) == {"pannuke", "digestpath", "wsss4luad", "heldout"}


def test_a_file_where_the_report_should_go_is_refused_at_once(tmp_path, checkpoint, config_path, class_folders, capsys):
    (tmp_path / "file").write_text("mine")
    more = [f"--config.tasks.kather.data={class_folders}", "--config.allow_absent=True"]
    out = str(tmp_path / "file")
    assert program.main(["--checkpoint", "/no/such/model", "--config", config_path, "--out", out, *more]) == 1
    assert "expected a folder" in capsys.readouterr().err  # and not a word of the model: it was not looked for
    assert (tmp_path / "file").read_text() == "mine"
