"""The program that trains, evaluates and uses a gate, and the embeddings it keeps."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_models import make_model

from data_prep.gate import main
from data_prep.images.embeddings import ImageEncoder, embed, fingerprint_of, forget, load_embeddings, plip_encoder
from data_prep.images.gates import load_gate
from plip_jax.data.image import decode_image
from plip_jax.export import export

CALLS: list[int] = []


def mean_colour_encoder(checkpoint: str) -> ImageEncoder:
    """Features that a person can check: the mean red, green and blue, and a constant."""

    def encode(images: Sequence[bytes]) -> np.ndarray:
        CALLS.append(len(images))
        means = [np.asarray(decode_image(data, name="")).mean(axis=(0, 1)) / 255 for data in images]
        return np.concatenate([means, np.ones((len(means), 1))], axis=1)

    return ImageEncoder(checkpoint, f"print of {checkpoint}", encode)


def write_images(folder: Path, colour: tuple[int, int, int], count: int, seed: int) -> None:
    """One file a slide: noise about a colour."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        pixels = np.clip(rng.normal(colour, 25, (16, 16, 3)), 0, 255).astype(np.uint8)
        path = folder / f"slide{number % 10}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    write_images(tmp_path / "tissue", (200, 120, 180), 40, seed=0)
    write_images(tmp_path / "cats", (120, 150, 90), 40, seed=1)
    return ["--positive", str(tmp_path / "tissue"), "--negative", str(tmp_path / "cats")]


def train(folders: list[str], out: Path, *more: str) -> int:
    arguments = ["train", *folders, "--checkpoint", "tiny", "--out", str(out), *more]
    return main(arguments, mean_colour_encoder)


def test_a_gate_is_trained_evaluated_and_used(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gate.json"
    assert train(folders, out, "--group-by", "folder") == 0
    output = capsys.readouterr().out
    assert "tissue: 40 images, 0 copies, 0 unreadable files" in output
    assert "precision 1.0000" in output
    assert "note: the lower bound of the precision is below the stated one" in output
    gate = load_gate(out)
    assert (gate.name, gate.role, gate.model, gate.trained_on["groups"]) == ("pathology", "require", "tiny", 10)

    CALLS.clear()
    assert main(["evaluate", "--gate", str(out), *folders], mean_colour_encoder) == 0
    assert "40 found, 0 missed, 0 taken wrongly, 40 left rightly" in capsys.readouterr().out
    assert CALLS == []  # the embeddings were kept

    write_images(tmp_path / "new", (205, 125, 175), 2, seed=2)
    Image.new("RGB", (20, 20), (90, 160, 80)).save(tmp_path / "new" / "green.png")
    scores = tmp_path / "scores.csv"
    arguments = ["score", "--gate", str(out), "--images", str(tmp_path / "new"), "--out", str(scores)]
    assert main(arguments, mean_colour_encoder) == 0
    with scores.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["result"]) for row in rows] == [
        ("green.png", "drop"), ("slide0/0.png", "pass"), ("slide1/1.png", "pass")
    ]  # fmt: skip
    capsys.readouterr()
    assert main(["score", "--gate", str(out), "--images", str(tmp_path / "new")], mean_colour_encoder) == 0
    assert capsys.readouterr().out == scores.read_text()


def test_another_model_than_the_gates_is_refused(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gate.json"
    assert train(folders, out) == 0
    assert main(["evaluate", "--gate", str(out), *folders, "--checkpoint", "other"], mean_colour_encoder) == 1
    assert "use that checkpoint, or train the gate again" in capsys.readouterr().err


def test_unreadable_files_and_copies_are_named_and_left_out(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cats" / "labels.csv").write_text("not an image")
    (tmp_path / "cats" / ".DS_Store").write_text("hidden")
    (tmp_path / "cats" / "copy.png").write_bytes((tmp_path / "cats" / "slide0" / "0.png").read_bytes())
    assert train(folders, tmp_path / "gate.json", "--role", "hold", "--name", "cat_picture") == 0
    shown = capsys.readouterr()
    assert "cats: 40 images, 1 copies, 1 unreadable files" in shown.out
    assert f"left out, not an image: {tmp_path / 'cats' / 'labels.csv'}" in shown.err
    assert load_gate(tmp_path / "gate.json").private


def test_mistakes_are_answered_with_what_to_do(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gate.json"
    (tmp_path / "empty").mkdir()
    for change, message in [
        (["--positive", str(tmp_path / "absent")], "absent: no such folder"),
        (["--positive", str(tmp_path / "empty")], "empty: no image that can be read, of 0 files"),
        (["--positive", str(tmp_path / "cats")], "40 images are in both folders, the first is"),
        (["--precision", "99"], "precision: expected above 0 and at most 1, got 99"),
    ]:
        assert train([*folders, *change], out) == 1
        assert message in capsys.readouterr().err
    assert not out.exists()
    assert main(["score", "--gate", str(out), "--images", str(tmp_path)], mean_colour_encoder) == 1
    assert "train one with `python -m data_prep.gate train`" in capsys.readouterr().err


def test_embeddings_are_kept_by_model_and_content_and_forgotten_by_digest(tmp_path: Path) -> None:
    write_images(tmp_path / "tissue", (200, 120, 180), 3, seed=0)
    files = dict(zip("abc", sorted((tmp_path / "tissue").rglob("*.png")), strict=True))
    encoder, cache = mean_colour_encoder("tiny"), tmp_path / "vectors" / "part-00000"
    CALLS.clear()
    features = embed(encoder, files, cache)
    assert (features.dtype, features.shape) == (np.float32, (3, 4))
    np.testing.assert_array_equal(embed(encoder, {"c": files["c"], "a": files["a"]}, cache), features[[2, 0]])
    np.testing.assert_array_equal(embed(encoder, files), features)
    assert CALLS == [3, 3]
    assert load_embeddings(cache, "another model") == {}
    assert embed(encoder, {}, cache).shape == (0, 0)

    row = features[1].tobytes()
    assert row in (tmp_path / "vectors" / "part-00000.npy").read_bytes()
    assert forget(cache, {"b", "unknown"}) == 1
    assert row not in (tmp_path / "vectors" / "part-00000.npy").read_bytes()
    assert load_embeddings(cache, encoder.fingerprint).keys() == {"a", "c"}
    assert forget(cache, {"b"}) == 0


def test_embeddings_whose_two_files_do_not_fit_are_computed_again(tmp_path: Path) -> None:
    write_images(tmp_path / "tissue", (200, 120, 180), 2, seed=0)
    files = dict(zip("ab", sorted((tmp_path / "tissue").rglob("*.png")), strict=True))
    encoder, cache = mean_colour_encoder("tiny"), tmp_path / "part"
    features = embed(encoder, files, cache)
    listed = json.loads((tmp_path / "part.json").read_text())
    for broken in (
        "",
        "[]",
        json.dumps({**listed, "row_hashes": ["0", "0"]}),
        json.dumps({**listed, "digests": ["a"]}),
    ):
        (tmp_path / "part.json").write_text(broken)
        np.testing.assert_array_equal(embed(encoder, files, cache), features)
    np.save(tmp_path / "part.npy", features[::-1])
    np.testing.assert_array_equal(embed(encoder, files, cache), features)
    # A row may be taken out of the file and the two lists by others.
    np.save(tmp_path / "part.npy", features[1:])
    fewer = {name: value[1:] if isinstance(value, list) else value for name, value in listed.items()}
    (tmp_path / "part.json").write_text(json.dumps(fewer))
    np.testing.assert_array_equal(load_embeddings(cache, encoder.fingerprint)["b"], features[1])
    (tmp_path / "part.json").write_text("")
    assert forget(cache, {"a"}) == 0
    assert not (tmp_path / "part.npy").exists()


def test_the_image_tower_of_a_saved_model_is_an_encoder(tmp_path: Path) -> None:
    model = export(make_model(), tmp_path / "model")
    write_images(tmp_path / "tissue", (200, 120, 180), 2, seed=0)
    files = {path.name: path for path in (tmp_path / "tissue").rglob("*.png")}
    encoder = plip_encoder(str(model), batch_size=8)
    features = embed(encoder, files)
    assert features.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)  # float32 rows of length one
    assert len(encoder.fingerprint) == 16
    assert encoder.fingerprint == plip_encoder(str(model)).fingerprint
    assert fingerprint_of("weights", {"a": 1, "b": 2}) == fingerprint_of("weights", {"b": 2, "a": 1})
    assert fingerprint_of("weights", {"a": 1}) != fingerprint_of("weights", {"a": 2})
