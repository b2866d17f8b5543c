"""What the program must not call finished: images that changed, another model's chunks or file, a disk that went."""

import dataclasses
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_evaluation import draw
from small_models import make_model

from plip_jax import embed as program
from plip_jax.api import PLIP
from plip_jax.convert.embedding_files import read_embedding_files
from plip_jax.embedding_folder import Stop
from plip_jax.embedding_store import EmbeddingStoreError, open_embeddings, write_h5
from plip_jax.embedding_writer import Store, begin, write_chunk
from plip_jax.image_sources import ImageSource, ImageSourceError, open_images

MODEL, OTHER = make_model(), make_model(1)
COUNT = 6
_PLIPS: dict[str, PLIP] = {}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The same models in every test, compiled once; and no test cuts the power."""

    def make_plip(model: Any, **options: Any) -> PLIP:
        if model.weights_hash not in _PLIPS:
            _PLIPS[model.weights_hash] = PLIP(model, **options)
        return _PLIPS[model.weights_hash]

    monkeypatch.setattr(program, "PLIP", make_plip)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def images(tmp_path) -> Path:
    return write_images(tmp_path / "tiles")


def write_images(root: Path, first: int = 0) -> Path:
    root.mkdir()
    for index in range(COUNT):
        (root / f"{224 * index}_0.png").write_bytes(draw(first + index))
    return root


def embed(out: Path, source: ImageSource | Path, model: Any = MODEL, h5: Path | None = None, **options: Any) -> bool:
    source = open_images(source) if isinstance(source, Path) else source
    wanted = program.EmbedOptions(batch_size=8, chunk_size=2, **options)
    return program.embed(model, source, [], out, wanted, Stop(threading.Event()), h5)


class Cut(Exception):
    """The program ends here."""


def embed_two_chunks(out: Path, source: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    def write(store: Any, kind: str, number: int, chunk: Any) -> None:
        if number == 2:
            raise Cut
        write_chunk(store, kind, number, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(program, "write_chunk", write)
        with pytest.raises(Cut):
            embed(out, source, **options)


def features_of(paths: list[Path]) -> np.ndarray:
    return _PLIPS[MODEL.weights_hash].encode_images(paths)


def test_another_folder_with_the_same_names_is_not_finished_already(images, tmp_path):
    other = write_images(tmp_path / "other", first=100)
    assert embed(tmp_path / "out", images)
    with pytest.raises(
        EmbeddingStoreError, match=r"begun with the images of .*tiles, got those of .*other.*--images-moved"
    ):
        embed(tmp_path / "out", other)
    with pytest.raises(EmbeddingStoreError, match=r"images have changed since"):
        embed(tmp_path / "out", other, images_moved=True)
    moved = images.rename(tmp_path / "moved")
    assert embed(tmp_path / "out", moved, images_moved=True)


def test_a_chunk_whose_images_changed_is_made_again(images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    embed_two_chunks(out, images, monkeypatch)
    kept = out / "parts" / "images-00000001.npz"
    before = kept.stat().st_mtime_ns, kept.read_bytes()
    (images / "0_0.png").write_bytes(draw(50))
    with monkeypatch.context() as patch:
        patch.setattr(program, "finish", lambda *_: True)  # the chunks stay
        assert embed(out, images)
    assert (kept.stat().st_mtime_ns, kept.read_bytes()) == before
    assert embed(out, images)
    found = open_embeddings(out)
    np.testing.assert_array_equal(found.features, features_of([images / name for name in found.ids]))
    (images / "0_0.png").write_bytes(draw(51) + b"more")
    with pytest.raises(EmbeddingStoreError, match=r"images have changed since"):
        embed(out, images)


def test_a_disk_that_goes_away_is_not_skipped(images, tmp_path):
    source = open_images(images)

    def read(index: int) -> Any:
        if index == 4:
            images.rename(tmp_path / "gone")
        return source.read(index)

    with pytest.raises(ImageSourceError, match=r"cannot be read: No such file"):
        embed(tmp_path / "out", dataclasses.replace(source, read=read), skip_damaged=True)
    with pytest.raises(EmbeddingStoreError, match=r"is not finished"):
        open_embeddings(tmp_path / "out")
    (tmp_path / "gone").rename(images)
    assert embed(tmp_path / "out", images, skip_damaged=True)
    assert len(open_embeddings(tmp_path / "out").ids) == COUNT


def test_damage_that_was_skipped_stops_who_does_not_skip(images, tmp_path, monkeypatch):
    (images / "224_0.png").write_bytes(b"junk")
    embed_two_chunks(tmp_path / "out", images, monkeypatch, skip_damaged=True)
    with pytest.raises(program.EmbedError, match=r"1 of the images 2 to 3 cannot be read"):
        embed(tmp_path / "out", images)
    assert embed(tmp_path / "out", images, skip_damaged=True)
    assert len(open_embeddings(tmp_path / "out").ids) == COUNT - 1


def test_chunks_of_another_model_are_not_joined(images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    embed_two_chunks(out, images, monkeypatch)
    (out / "manifest.json").unlink()
    with pytest.raises(EmbeddingStoreError, match=r"has chunks in parts/, and no manifest.json"):
        embed(out, images, OTHER)
    embed_two_chunks(tmp_path / "other", images, monkeypatch, model=OTHER)
    (tmp_path / "other" / "manifest.json").rename(out / "manifest.json")
    with pytest.raises(EmbeddingStoreError, match=r"images-00000000.npz was made with other settings.*remove .*parts"):
        embed(out, images, OTHER)


def test_a_file_of_another_model_is_not_left_as_it_is(images, tmp_path, capsys):
    pytest.importorskip("h5py", reason="an extra")
    file = tmp_path / "x.h5"
    assert embed(tmp_path / "out", images, h5=file)
    assert embed(tmp_path / "out", images, h5=file)
    assert "is there already" in capsys.readouterr().out
    before = file.read_bytes()
    with pytest.raises(
        EmbeddingStoreError, match=r"x.h5 exists and holds other .*weights_hash, features_sha256 differ"
    ):
        embed(tmp_path / "other", images, OTHER, h5=file)
    assert file.read_bytes() == before
    assert (tmp_path / "other" / "images.npy").exists()
    file.write_bytes(b"not HDF5")
    with pytest.raises(EmbeddingStoreError, match=r"x.h5 exists and cannot be read"):
        embed(tmp_path / "out", images, h5=file)


def test_names_that_are_no_text_are_in_the_hdf5_file(tmp_path):
    pytest.importorskip("h5py", reason="an extra")
    (tmp_path / "tiles").mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "tiles" / name).write_bytes(draw(0))
    assert embed(tmp_path / "out", tmp_path / "tiles", h5=tmp_path / "x.h5")
    assert read_embedding_files(tmp_path / "x.h5").images.rows == {name: 0}
    assert not write_h5(open_embeddings(tmp_path / "out"), tmp_path / "x.h5")


@pytest.mark.parametrize(
    "damage",
    [
        lambda manifest: manifest["settings"].pop("model"),
        lambda manifest: manifest["settings"].update(model="m"),
        lambda manifest: manifest["settings"].update(dtype="text"),
        lambda manifest: manifest["finished"].update(audio={}),
        lambda manifest: manifest["finished"].pop("images"),
        lambda manifest: manifest["finished"]["images"].pop("rows"),
        lambda manifest: manifest["finished"]["images"].update(rows="many"),
        lambda manifest: manifest["finished"]["images"].update(names_file="../../../../etc/hostname"),
        lambda manifest: manifest.update(finished=[1]),
        lambda manifest: manifest.update(settings=None),
    ],
)
def test_a_damaged_manifest_is_said(finished_folder, damage: Callable[[dict[str, Any]], object]):
    file = finished_folder / "manifest.json"
    whole = file.read_bytes()
    manifest = json.loads(whole)
    damage(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(EmbeddingStoreError):
        open_embeddings(finished_folder, model=MODEL)
    file.write_bytes(whole)
    open_embeddings(finished_folder, model=MODEL)


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    options = program.EmbedOptions(batch_size=8, chunk_size=2)
    source = open_images(write_images(root / "tiles"))
    assert program.embed(MODEL, source, [], root / "out", options, Stop(threading.Event()))
    return root / "out"


def start_store(folder: Path) -> Any:
    settings = {"images": {"count": 2}, "texts": None, "feature_dim": 3, "dtype": "float32"}
    return begin(folder, settings, {}, {}, 2)


def test_nobody_leaves_before_all_is_written(tmp_path):
    stops = [Stop(threading.Event(), run=7, process=process, processes=2) for process in range(2)]
    out = start_store(tmp_path / "out").folder
    stops[1].arrive(out)
    assert not stops[0].all_arrived(out)
    assert not stops[1].released(out)
    stops[0].arrive(out)
    assert stops[0].all_arrived(out)
    assert not Stop(threading.Event(), run=8, process=0, processes=2).all_arrived(out)  # of a start before


def test_the_others_wait_for_the_hdf5_file_too(finished_folder, tmp_path, monkeypatch):
    """The second process is let go when the first has written all, also of a folder that was finished before."""
    manifest = json.loads((finished_folder / "manifest.json").read_text())
    store = Store(finished_folder, manifest["settings"], manifest["chunk_size"])
    first, second = (Stop(threading.Event(), run=9, process=process, processes=2) for process in range(2))
    second.arrive(finished_folder)
    seen: list[bool] = []
    monkeypatch.setattr(program, "write_h5", lambda *_: seen.append(second.released(finished_folder)) or True)
    assert program._finish(store, first, tmp_path / "x.h5")
    assert seen == [False]
    assert second.released(finished_folder)
    assert not (finished_folder / "parts").exists()


def test_who_fails_before_it_begins_tells_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program.jax, "process_count", lambda: 2)
    monkeypatch.setattr(program, "values_of_processes", lambda _: [5, 6])
    out = tmp_path / "out"
    where = ["--checkpoint=absent", f"--images={tmp_path / 'absent'}", f"--out={out}"]
    assert program.main(where) == 1
    assert "nothing is there" in capsys.readouterr().err
    assert Stop(threading.Event(), run=5, process=1, processes=2).here(out)
    assert start_store(out).missing("images") == [0]  # and the folder can be begun
