"""A folder of embeddings: whole or not there wherever its writer is killed, and only for the model that made it."""

import contextlib
import dataclasses
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import make_model

from plip_jax import embedding_writer
from plip_jax.convert.embedding_files import read_embedding_files
from plip_jax.convert.load import LoadedModel
from plip_jax.data.image import Preprocessing
from plip_jax.embedding_store import EmbeddingStoreError, describe_model, hash_names, open_embeddings, write_h5
from plip_jax.embedding_writer import Chunk, Store, begin, finish, write_chunk

DIM, CHUNK = 3, 4
NAMES = [f"tile {place}.png" for place in range(10)]
DAMAGED = {5: "a damaged PNG", 9: "an empty file"}
TEXTS = ["a\nb", "mucus"]
MODEL = make_model()


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "model": describe_model(MODEL),
        "images": {"kind": "folder", "count": len(NAMES), "fingerprint": "f", "coords": True},
        "texts": {"count": len(TEXTS), "fingerprint": "t"},
        "normalized": False,
        "dtype": "float32",
        "compute_dtype": "float32",
        "feature_dim": DIM,
        **changes,
    }


def feature(place: int) -> list[float]:
    return [place, place + 0.5, -place]


def chunk_of(places: range, names: list[str] = NAMES) -> Chunk:
    kept = [place for place in places if place not in DAMAGED]
    return Chunk(
        np.array([feature(place) for place in kept], np.float32).reshape(-1, DIM),
        [names[place] for place in kept],
        [(names[place], DAMAGED[place]) for place in places if place in DAMAGED],
        np.array([(place, -place) for place in kept], np.int64).reshape(-1, 2),
    )


def open_store(folder: Path, **changes: Any) -> Store:
    return begin(folder, settings(**changes), {"images": "there"}, {"name": "m", "logit_scale": 14.0}, CHUNK)


def write(folder: Path, names: list[str] = NAMES) -> bool:
    """What the program does, without a model."""
    store = open_store(folder)
    if store.finished:
        return finish(store)
    for number in store.missing("images"):
        write_chunk(store, "images", number, chunk_of(store.chunks("images")[number], names))
    for number in store.missing("texts"):
        write_chunk(store, "texts", number, Chunk(np.ones((2, DIM), np.float32), TEXTS))
    return finish(store)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """No test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def folder(tmp_path) -> Path:
    assert write(tmp_path / "out")
    return tmp_path / "out"


def test_what_is_written_is_read(folder):
    found = open_embeddings(folder, model=MODEL, check_content=True)
    kept = [place for place in range(10) if place not in DAMAGED]
    assert found.ids == [NAMES[place] for place in kept]
    assert found.features.tolist() == [feature(place) for place in kept]
    assert found.coords is not None
    assert found.coords.tolist() == [[place, -place] for place in kept]
    assert (found.texts, found.normalized) == (TEXTS, False)
    assert found.text_features is not None
    assert found.text_features.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert isinstance(found.features, np.memmap)
    assert not found.features.flags.writeable
    assert (folder / "damaged.csv").read_text() == "id,reason\ntile 5.png,a damaged PNG\ntile 9.png,an empty file\n"
    assert sorted(content(folder)) == [
        "coords.npy",
        "damaged.csv",
        "image_ids.txt",
        "images.npy",
        "manifest.json",
        "metadata.json",
        "texts.json",
        "texts.npy",
    ]
    assert np.load(folder / "images.npy").dtype == np.dtype("<f4")


def test_the_evaluation_reads_it(folder):
    found = read_embedding_files(folder)
    assert found.images.take(["tile 6.png", "tile 0.png"], what="ids").tolist() == [feature(6), feature(0)]
    assert found.texts is not None
    assert found.texts.take(["a\nb"], what="texts").tolist() == [[1, 1, 1]]
    assert (found.name, found.logit_scale, found.normalized) == ("m", 14.0, True)


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


@contextlib.contextmanager
def killed_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End the process before its n-th change of the disk; what would tidy up after it does nothing."""
    left = [moment]

    def count(function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*args, **kwargs)

        return counted

    with monkeypatch.context() as patch:
        for owner, name in [
            (os, "fsync"),
            (os, "link"),
            (Path, "replace"),
            (Path, "mkdir"),
            (Path, "unlink"),
            (shutil, "rmtree"),
        ]:
            patch.setattr(owner, name, count(getattr(owner, name)))
        yield


def test_killed_before_any_change_of_the_disk_it_goes_on_to_the_same_bytes(folder, tmp_path, monkeypatch):
    expected = content(folder)
    kills = 0
    while True:
        out = tmp_path / f"killed{kills}"
        with contextlib.suppress(Killed), killed_at(kills, monkeypatch):
            assert write(out)
            break
        kills += 1
        if not (out / "manifest.json").exists() or open_store(out).finished is None:
            with pytest.raises(EmbeddingStoreError):
                open_embeddings(out)
        assert write(out)
        assert content(out) == expected
    assert kills > 20
    assert content(out) == expected


def test_a_chunk_cut_short_is_made_again(folder, tmp_path):
    expected = content(folder)
    store = open_store(tmp_path / "out2")
    write_chunk(store, "images", 1, chunk_of(range(4, 8)))
    part = store.part("images", 1)
    part.write_bytes(part.read_bytes()[:-30])
    with pytest.raises(EmbeddingStoreError, match=r"images-00000001.npz was damaged .* run the same again"):
        write(tmp_path / "out2")
    assert write(tmp_path / "out2")
    assert content(tmp_path / "out2") == expected


def test_a_bit_that_flips_in_a_chunk_is_found(tmp_path):
    store = open_store(tmp_path / "out")
    write_chunk(store, "images", 1, chunk_of(range(4, 8)))
    part = store.part("images", 1)
    data = bytearray(part.read_bytes())
    data[data.index(np.float32(4.5).tobytes())] ^= 1
    part.write_bytes(data)
    with pytest.raises(EmbeddingStoreError, match=r"was damaged .*CRC"):
        write(tmp_path / "out")


def test_several_processes_write_one_folder(folder, tmp_path):
    first, second = open_store(tmp_path / "two"), open_store(tmp_path / "two")
    write_chunk(second, "images", 2, chunk_of(range(8, 10)))
    write_chunk(second, "texts", 0, Chunk(np.ones((2, DIM), np.float32), TEXTS))
    assert not finish(second)
    assert first.missing("images") == [0, 1]
    for number in (0, 1):
        write_chunk(first, "images", number, chunk_of(first.chunks("images")[number]))
    assert finish(first)
    assert finish(second)
    assert content(tmp_path / "two") == content(folder)


def test_a_process_that_joins_late_finds_it_done(folder, tmp_path, monkeypatch):
    late = open_store(tmp_path / "out2")
    for number in range(3):
        write_chunk(late, "images", number, chunk_of(late.chunks("images")[number]))
    write_chunk(late, "texts", 0, Chunk(np.ones((2, DIM), np.float32), TEXTS))
    join = embedding_writer._join

    def join_after_another(store: Store, kind: str) -> Any:
        monkeypatch.setattr(embedding_writer, "_join", join)
        assert finish(open_store(tmp_path / "out2"))  # and removes the parts
        return join(store, kind)

    monkeypatch.setattr(embedding_writer, "_join", join_after_another)
    assert finish(late)
    assert content(tmp_path / "out2") == content(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, 'dtype: it was "float32", now "float16"'),
        ({"normalized": True}, "normalized: it was false, now true"),
        ({"texts": None}, r"texts: it was .*, now null"),
        ({"images": {"kind": "tar", "count": 11, "fingerprint": "f"}}, r'kind: it was "folder", .*count: it was 10'),
        ({"model": describe_model(make_model(1))}, "model/weights_hash: it was"),
    ],
)
def test_other_settings_are_refused_and_named(folder, changes, message):
    before = content(folder)
    with pytest.raises(EmbeddingStoreError, match=message):
        open_store(folder, **changes)
    assert content(folder) == before


def changed(**changes: Any) -> LoadedModel:
    return dataclasses.replace(MODEL, **changes)


def test_another_model_is_refused(folder):
    open_embeddings(folder, model=MODEL.weights_hash)
    with pytest.raises(EmbeddingStoreError, match=r'weights_hash: made with .*, the model has "ff"'):
        open_embeddings(folder, model="ff")
    with pytest.raises(EmbeddingStoreError, match=r"weights_hash"):
        open_embeddings(folder, model=make_model(1))
    other = Preprocessing(image_size=MODEL.preprocessing.image_size, std=(1, 1, 1))
    with pytest.raises(EmbeddingStoreError, match=r"preprocessing/std: made with .* model has"):
        open_embeddings(folder, model=changed(preprocessing=other))
    gelu = dataclasses.replace(MODEL.config, activation="gelu")
    with pytest.raises(EmbeddingStoreError, match=r'config/activation: made with "quick_gelu", the model has "gelu"'):
        open_embeddings(folder, model=changed(config=gelu))
    # The same weights, read from a file of the older convention.
    assert MODEL.config.text.eot_pooling == "first_eot"
    legacy = dataclasses.replace(MODEL.config.text, eot_pooling="argmax")
    open_embeddings(folder, model=changed(config=dataclasses.replace(MODEL.config, text=legacy)))


def test_a_changed_folder_is_refused(folder):
    ids = folder / "image_ids.txt"
    lines = ids.read_text().split("\n")
    ids.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(EmbeddingStoreError, match=r"image_ids.txt was changed"):
        open_embeddings(folder)
    ids.write_text("\n".join(lines))
    array = folder / "images.npy"
    whole = bytearray(array.read_bytes())
    array.write_bytes(whole[:-4])
    with pytest.raises(EmbeddingStoreError, match=r"images.npy cannot be read"):
        open_embeddings(folder)
    array.write_bytes(bytes(whole) + b"1234")
    with pytest.raises(EmbeddingStoreError, match=r"expected 224 bytes, got 228"):
        open_embeddings(folder)
    whole[-1] ^= 1
    array.write_bytes(whole)
    open_embeddings(folder)
    with pytest.raises(EmbeddingStoreError, match=r"images.npy was changed"):
        open_embeddings(folder, check_content=True)
    np.save(array, np.array([{}], object))
    with pytest.raises(EmbeddingStoreError, match=r"images.npy cannot be read"):
        open_embeddings(folder)


def test_what_is_no_such_folder_is_refused(tmp_path, folder):
    with pytest.raises(EmbeddingStoreError, match=r"it has no manifest.json"):
        open_embeddings(tmp_path)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(EmbeddingStoreError, match=r"cannot be read"):
        open_embeddings(folder)
    (folder / "manifest.json").write_text('{"format_version": 2}')
    with pytest.raises(EmbeddingStoreError, match=r"expected format_version 1, got 2"):
        open_embeddings(folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("")
    with pytest.raises(EmbeddingStoreError, match=r"expected a new or empty folder.*thesis.doc"):
        open_store(tmp_path / "full")
    with pytest.raises(EmbeddingStoreError, match=r"got a file"):
        open_store(tmp_path / "full" / "thesis.doc")


def test_an_unfinished_folder_is_not_read(tmp_path):
    store = open_store(tmp_path / "out")
    write_chunk(store, "images", 0, chunk_of(range(4)))
    assert not finish(store)
    with pytest.raises(EmbeddingStoreError, match=r"is not finished"):
        open_embeddings(tmp_path / "out")
    with pytest.raises(ValueError, match=r"is not finished: run the command that began it again"):
        read_embedding_files(tmp_path / "out")


@pytest.mark.parametrize("odd", ["line\nend", "return\r", "caf\udce9.png"])
def test_ids_that_no_line_holds_are_kept(tmp_path, odd):
    names = [odd, *NAMES[1:]]
    assert write(tmp_path / "out", names)
    assert open_embeddings(tmp_path / "out").ids[0] == odd
    assert read_embedding_files(tmp_path / "out").images.rows[odd] == 0
    assert json.loads((tmp_path / "out" / "image_ids.json").read_text())[0] == odd


def test_an_id_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(EmbeddingStoreError, match=r"got 'tile 0.png' again"):
        write(tmp_path / "out", [*NAMES[:8], NAMES[0], NAMES[9]])


def test_features_that_are_not_finite_are_refused(tmp_path):
    store = open_store(tmp_path / "out")
    chunk = chunk_of(range(4))
    chunk.features[2, 1] = np.nan
    with pytest.raises(EmbeddingStoreError, match=r"features of 'tile 2.png' are not finite in float32"):
        write_chunk(store, "images", 0, chunk)
    assert store.missing("images") == [0, 1, 2]


def test_files_may_be_read_by_whom_the_umask_lets(folder):
    mask = os.umask(0)
    os.umask(mask)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {0o666 & ~mask}


def test_hdf5_as_slide_tools_read_it(folder, tmp_path):
    h5py = pytest.importorskip("h5py", reason="an extra")
    write_h5(open_embeddings(folder), tmp_path / "h5" / "slide.h5")
    with h5py.File(tmp_path / "h5" / "slide.h5", "r") as file:
        assert file["features"].dtype == np.float32
        assert file["features"][3].tolist() == feature(3)
        assert file["coords"][3].tolist() == [3, -3]
        assert file["ids"].asstr()[3] == "tile 3.png"
    assert read_embedding_files(tmp_path / "h5" / "slide.h5").images.rows["tile 3.png"] == 3
    assert [path.name for path in (tmp_path / "h5").iterdir()] == ["slide.h5"]


def test_the_hash_of_names_knows_where_one_ends():
    assert hash_names(["ab", "c"]) != hash_names(["a", "bc"])
