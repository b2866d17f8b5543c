"""verify finds every kind of damage, names its place, and never fails itself."""

import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from data_prep import shards, verify
from data_prep.seen_ids import SeenIds
from data_prep.shards import RecordsWriter
from plip_jax.data.records import Record, encode_record, open_records


def encoded(seed: int = 0, mode: str = "RGB", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def record(i: int, **changes) -> Record:
    return Record(**({"id": f"r{i}", "image": encoded(i), "captions": (f"caption {i}",), "label": "ADI"} | changes))


def write(path: Path, *records: Record) -> Path:
    with RecordsWriter(path, max_shard_bytes=1500) as writer:
        for i, item in enumerate(records or [record(i) for i in range(8)]):
            writer.write(item, "test" if i == 5 else "train")
    return path


def problems(folder: Path) -> list[str]:
    return list(verify.find_problems(folder))


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("sound") / "set")


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "set"))


def test_a_sound_folder_has_no_problems(sound, capsys):
    assert problems(sound) == []
    assert verify.main([str(sound)]) == 0
    assert "all records are sound (test 1, train 7)" in capsys.readouterr().out


def test_all_problems_of_records_are_found_at_once_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(SeenIds, "add", lambda self, text: True)  # let the writer take a second r1
    out = write(
        tmp_path / "set",
        record(0, image=b"not an image"),
        record(1),
        record(1, captions=("fine", "x")),
        record(3, image=encoded(3)[:80]),
        record(4, image=encoded(4, mode="L")),
        record(5, image=encoded(5, kind="BMP")),
        record(6),
    )
    monkeypatch.undo()
    train = open_records(out)
    found = problems(out)
    places = {i: train.where(n) for n, i in enumerate([0, 1, "1b", 3, 4, 6])}
    places[5] = open_records(out, "test").where(0)
    for key, text in [(0, "r0"), ("1b", "an earlier record has this id"), (3, "r3"), (4, "plain"), (5, "plain")]:
        assert any(places[key] in line and text in line for line in found), (key, found)
    assert len(found) == 5
    assert verify.main([str(out)]) == 1
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 5
    assert "5 problems found" in output.err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xff\xff\xff", "not a tf.train.Example"),
        (encode_record(record(0, captions=())), "it has no caption"),
        (encode_record(record(0, captions=("a", " "))), "caption 1 is empty"),
        (encode_record(record(0, id="")), "the id is empty"),
        (encode_record(record(0, image=b"")), "r0"),
        (encode_record(record(0)).replace(b"group_id", b"group_ix"), "'group_id' is missing"),
    ],
)
def test_one_wrong_record_is_named(data, message):
    (found,) = verify.record_problems(data, "here", SeenIds())
    assert "here" in found
    assert message in found


def first_shard(folder: Path) -> Path:
    return folder / open_records(folder).shards[0].file


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: first_shard(f).unlink(), "the shard is missing"),
        (lambda f: first_shard(f).write_bytes(b""), "0 bytes, the manifest says"),
        (lambda f: first_shard(f).write_bytes(first_shard(f).read_bytes()[:-9]), "the manifest says"),
        (
            lambda f: shutil.copy(first_shard(f), f / "set-train.array_record-00009-of-00010"),
            "does not list this shard",
        ),
        (lambda f: (f / "records.json").unlink(), "no records.json"),
        (lambda f: (f / "records.json").write_bytes(b"\xff{"), "cannot be read"),
        (lambda f: edit_json(f / "records.json", format_version=2), "format version 2"),
        (lambda f: edit_json(f / "records.json", splits={"train": []}), "has no records"),
        (lambda f: (f / "dataset_info.json").unlink(), "TFDS cannot open"),
        (lambda f: (f / "features.json").write_text("[]"), "TFDS cannot open"),
        (lambda f: shutil.rmtree(f / "1.0.0"), "TFDS cannot open"),
        (lambda f: edit_json(f / "dataset_info.json", version="3.0.0"), "TFDS reads version 3.0.0, expected 1.0.0"),
        (lambda f: edit_json(f / "dataset_info.json", name="other"), "TFDS reads name other, expected set"),
        (lambda f: edit_json(f / "1.0.0" / "dataset_info.json", splits=[]), "TFDS reads splits {}"),
    ],
)
def test_damaged_folders_are_reported(folder, damage, message):
    damage(folder)
    found = problems(folder)
    assert any(message in line for line in found), found


def test_swapped_shards_of_equal_size_are_found(folder):
    first, second = (folder / shard.file for shard in open_records(folder).shards[:2])
    first_bytes, second_bytes = first.read_bytes(), second.read_bytes()
    assert len(first_bytes) == len(second_bytes)  # ArrayRecord pads, so sizes alone would not tell
    first.write_bytes(second_bytes)
    second.write_bytes(first_bytes)
    assert sum("sha256" in line for line in problems(folder)) == 2


def test_another_group_size_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "open_shard_writer", lambda path: ArrayRecordWriter(str(path), "group_size:4"))
    out = write(tmp_path / "set")
    assert any("expected group_size:1" in line for line in problems(out))


def test_a_path_that_is_nothing_is_reported(tmp_path):
    (found,) = problems(tmp_path / "nothing")
    assert "does not exist" in found


def _damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, flip, overwrite or extend, where the content is (ArrayRecord pads with zeros) or anywhere."""
    damaged = bytearray(data)
    content = [i for i, value in enumerate(data) if value]
    match rng.randrange(5):
        case 0:
            return data[: rng.randrange(len(data))]
        case 1:
            for _ in range(rng.randrange(1, 5)):
                damaged[rng.choice(content)] ^= 1 << rng.randrange(8)
        case 2:
            place, length = rng.choice(content), rng.randrange(1, 300)
            damaged[place : place + length] = rng.randbytes(len(damaged[place : place + length]))
        case 3:
            damaged[rng.randrange(len(damaged))] ^= 0xFF
        case 4:
            damaged += rng.randbytes(rng.randrange(1, 300))
    return bytes(damaged)


@pytest.mark.parametrize("seed", range(100))
def test_fuzz_damaged_shards_are_named_without_a_crash(folder, seed):
    rng = random.Random(seed)
    path = folder / rng.choice(open_records(folder).shards).file
    data = path.read_bytes()
    damaged = _damaged(data, rng)
    path.write_bytes(damaged)
    found = problems(folder)
    if damaged != data:
        assert any(path.name in line for line in found), (seed, found)


@pytest.mark.parametrize("seed", range(100))
def test_fuzz_damaged_records_are_named_without_a_crash(seed):
    rng = random.Random(seed)
    data = encode_record(record(seed))
    damaged = _damaged(data, rng)
    for line in verify.record_problems(damaged, "shard record 3", SeenIds()):
        assert "shard record 3" in line


@pytest.mark.parametrize("name", ["records.json", "dataset_info.json", "features.json", "1.0.0/dataset_info.json"])
@pytest.mark.parametrize("seed", range(10))
def test_fuzz_damaged_metadata_is_reported_without_a_crash(folder, name, seed):
    rng = random.Random(seed)
    path = folder / name
    path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size - 2)])
    assert problems(folder)
