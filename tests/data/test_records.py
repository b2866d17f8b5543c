"""The record on disk: what goes in comes out, in every reader, and damage is named."""

import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from data_prep import shards
from data_prep.shards import DuplicateIdError, RecordsWriter, upright_rgb
from plip_jax.data.image import ImageError, decode_image
from plip_jax.data.records import (
    FORMAT_VERSION,
    Record,
    RecordError,
    decode_record,
    encode_record,
    open_records,
)


def encoded(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (12, 10), **options) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def record(i: int) -> Record:
    captions = tuple(f"caption {k} of {i}" for k in range(1 + i % 3))
    return Record(f"r{i}", encoded(i, "JPEG" if i % 2 else "PNG"), captions, f"g{i // 2}", "tests", "tümör")


def write(path: Path, count: int = 12, **options) -> Path:
    with RecordsWriter(path, max_shard_bytes=2000, **options) as writer:
        for i in range(count):
            writer.write(record(i), "test" if i % 4 == 3 else "train")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_record_survives_encoding():
    for i in range(3):
        assert decode_record(encode_record(record(i)), where="here") == record(i)


def test_the_bytes_are_a_tf_train_example_of_these_fields():
    """Field numbers and types written out by hand, from TensorFlow's example.proto and feature.proto."""

    def field(number: int, content: bytes) -> bytes:
        assert len(content) < 128
        return bytes([number << 3 | 2, len(content)]) + content

    def entry(name: bytes, *values: bytes) -> bytes:
        bytes_list = b"".join(field(1, value) for value in values)
        return field(1, field(1, name) + field(2, field(1, bytes_list)))

    by_hand = field(
        1,
        entry(b"captions", b"x", b"y")
        + entry(b"group_id", b"g")
        + entry(b"id", b"i")
        + entry(b"image", b"\x89")
        + entry(b"label", b"")
        + entry(b"source", b"s"),
    )
    assert encode_record(Record("i", b"\x89", ("x", "y"), "g", "s", "")) == by_hand


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xff\xff", "here: not a tf.train.Example"),
        (b"", "here: field 'id' is missing"),
        (encode_record(record(1)).replace(b"captions", b"caption5"), r"'captions' is missing; found \['caption5'"),
        (encode_record(Record("\x7f\x7f", b"i", ("c",))).replace(b"\x7f\x7f", b"\xff\xff"), "not UTF-8"),
    ],
)
def test_damaged_bytes_are_named(data, message):
    with pytest.raises(RecordError, match=message):
        decode_record(data, where="here")


def test_records_are_read_in_the_order_of_writing(tmp_path):
    folder = open_records(write(tmp_path / "set"))
    expected = [record(i) for i in range(12) if i % 4 != 3]
    assert len(folder.shards) > 1
    assert list(folder) == expected
    assert folder[-1] == expected[-1]
    assert folder[2:4] == expected[2:4]
    assert pickle.loads(pickle.dumps(folder))[5] == expected[5]
    with pytest.raises(IndexError, match="which has 9"):
        folder[9]


def test_the_same_folder_opens_in_grain_and_both_tfds_readers(tmp_path):
    import grain

    out = write(tmp_path / "my_set")
    by_folder = tfds.builder_from_directory(out).as_data_source()
    by_name = tfds.data_source("my_set", data_dir=tmp_path)
    by_version = tfds.data_source("my_set:1.0.0", data_dir=tmp_path)
    for split in ("train", "test"):
        ours = open_records(out, split)
        in_grain = grain.sources.ArrayRecordDataSource([str(path) for path in sorted(out.glob(f"*-{split}.*"))])
        assert [len(r) for r in (in_grain, by_folder[split], by_name[split], by_version[split])] == [len(ours)] * 4
        for i, expected in enumerate(ours):
            assert decode_record(in_grain[i], where="grain") == expected
            pixels = np.asarray(decode_image(expected.image, name="x"))
            for reader in (by_folder, by_name, by_version):
                example = reader[split][i]
                np.testing.assert_array_equal(example["image"], pixels)
                assert [caption.decode() for caption in example["captions"]] == list(expected.captions)
                for name in ("id", "group_id", "source", "label"):
                    assert example[name].decode() == getattr(expected, name)


def test_a_folder_may_be_renamed_or_be_a_version_folder(tmp_path):
    write(tmp_path / "before").rename(tmp_path / "after")
    assert len(tfds.data_source("after", data_dir=tmp_path)["train"]) == 9
    out = write(tmp_path / "named" / "1.0.0")
    assert not (out / "1.0.0").exists()
    assert len(tfds.data_source("named", data_dir=tmp_path)["train"]) == 9
    assert len(open_records(tmp_path / "after" / "1.0.0")) == len(open_records(out)) == 9


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="shows that TensorFlow may be absent")
def test_reading_needs_no_tensorflow(tmp_path):
    out = str(write(tmp_path / "set"))
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        "from plip_jax.data.records import open_records\n"
        f"assert len(open_records({out!r})) == 9\n"
        f"assert tfds.builder_from_directory({out!r}).as_data_source('train')[0]['id'] == b'r0'\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_equal_input_gives_byte_equal_folders(tmp_path):
    assert contents(write(tmp_path / "a" / "set")) == contents(write(tmp_path / "b" / "set"))


def test_the_fingerprint_follows_the_content_and_not_the_name(tmp_path):
    reference = open_records(write(tmp_path / "a")).fingerprint
    assert open_records(write(tmp_path / "b")).fingerprint == reference
    assert open_records(write(tmp_path / "c", count=13)).fingerprint != reference
    assert open_records(tmp_path / "a", "test").fingerprint != reference


def test_nothing_is_visible_until_all_is_written(tmp_path):
    with RecordsWriter(tmp_path / "set") as writer:
        writer.write(record(0))
        assert not (tmp_path / "set").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_failed_build_leaves_the_old_folder_and_nothing_else(tmp_path):
    before = contents(write(tmp_path / "set"))

    def build_and_fail():
        with RecordsWriter(tmp_path / "set", overwrite=True) as writer:
            writer.write(record(99))
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        build_and_fail()
    assert contents(tmp_path / "set") == before
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    before = contents(write(tmp_path / "set"))
    rename = Path.rename

    def fail_to_publish(self, target):
        if ".partial-" in self.name:
            raise OSError("disk says no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_to_publish)
    with pytest.raises(OSError, match="disk says no"):
        write(tmp_path / "set", count=3, overwrite=True)
    assert contents(tmp_path / "set") == before


def test_an_existing_folder_is_refused_or_replaced(tmp_path):
    out = write(tmp_path / "set")
    with pytest.raises(FileExistsError, match="--overwrite"):
        write(out)
    write(out, count=4, overwrite=True)
    assert len(open_records(out)) == 3
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="not a records folder"):
        write(tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_the_writer_refuses_what_readers_could_not_use(tmp_path):
    def attempt(*records: Record, split: str = "train") -> None:
        with RecordsWriter(tmp_path / "set") as writer:
            for item in records:
                writer.write(item, split)

    with pytest.raises(ValueError, match="nothing was written"):
        attempt()
    with pytest.raises(DuplicateIdError, match="'r1' is written twice"):
        attempt(record(1), record(1))
    with pytest.raises(ValueError, match="empty caption"):
        attempt(Record("x", encoded(), ("  ",)))
    with pytest.raises(ValueError, match="no image"):
        attempt(Record("x", b"", ("c",)))
    with pytest.raises(ValueError, match="split 'a/b'"):
        attempt(record(1), split="a/b")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_records_folder_is_refused(tmp_path):
    with pytest.raises(RecordError, match=r"does not exist.*\n.*data_prep\.build --source csv"):
        open_records(tmp_path / "nothing")
    out = write(tmp_path / "set")
    with pytest.raises(RecordError, match=r"no split 'val'; it has \['test', 'train'\]"):
        open_records(out, "val")
    manifest = json.loads((out / "records.json").read_text())

    def with_manifest(**changes):
        (out / "records.json").write_text(json.dumps(manifest | changes))
        return open_records(out)

    with pytest.raises(RecordError, match=f"format version 99; this plip_jax reads version {FORMAT_VERSION}"):
        with_manifest(format_version=99)
    with pytest.raises(RecordError, match="not a records manifest"):
        with_manifest(splits={"train": [{"file": "x"}]})
    shard = {"file": "../../etc/passwd", "num_examples": 1, "num_bytes": 1, "sha256": ""}
    with pytest.raises(RecordError, match="not a plain file name"):
        with_manifest(splits={"train": [shard]})
    (out / "records.json").write_text("{")
    with pytest.raises(RecordError, match="cannot be read"):
        open_records(out)


def test_missing_and_cut_shards_are_named_at_opening(tmp_path):
    out = write(tmp_path / "set")
    first, second, *_ = open_records(out).shards
    os.truncate(out / first.file, 1000)
    (out / second.file).unlink()
    with pytest.raises(RecordError, match=rf"{first.file}: 1000 bytes[\s\S]*{second.file}: the shard is missing"):
        open_records(out)


def test_another_group_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "open_shard_writer", lambda path: ArrayRecordWriter(str(path), "group_size:10"))
    with pytest.raises(RecordError, match="expected group_size:1"):
        open_records(write(tmp_path / "set"))


def test_a_damaged_record_is_named_and_its_neighbours_stay_readable(tmp_path):
    # noise, which the shard's compression leaves as it is, so that it is found again in the file
    records = [Record(f"r{i}", np.random.default_rng(i).bytes(4000), ("c",)) for i in range(5)]
    with RecordsWriter(tmp_path / "set") as writer:
        for item in records:
            writer.write(item)
    folder = open_records(tmp_path / "set")
    path = tmp_path / "set" / folder.shards[0].file
    data = bytearray(path.read_bytes())
    data[data.index(records[2].image[1000:1100])] ^= 1
    path.write_bytes(data)
    folder = open_records(tmp_path / "set")
    with pytest.raises(RecordError, match=rf"{path.name} record 2: cannot be read from the shard"):
        folder[2]
    assert [folder[i] for i in (0, 1, 3, 4)] == [records[i] for i in (0, 1, 3, 4)]


def test_plain_images_keep_their_bytes():
    for data in (encoded(kind="PNG"), encoded(kind="JPEG", quality=80)):
        assert upright_rgb(data, name="x") is data


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(kind="JPEG", exif=exif)


def _converted(mode: str, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encoded())).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        _rotated(),
        _converted("RGBA", "PNG"),
        _converted("P", "PNG"),
        _converted("L", "JPEG"),
        _converted("CMYK", "JPEG"),
        _converted("RGB", "TIFF"),
        encoded(kind="PNG", transparency=(1, 2, 3)),
    ],
    ids=["rotated", "alpha", "palette", "grey", "cmyk", "tiff", "transparent_colour"],
)
def test_other_images_are_stored_as_png_with_the_same_pixels(data):
    stored = upright_rgb(data, name="x")
    with Image.open(io.BytesIO(stored)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(image), np.asarray(decode_image(data, name="x")))


def test_what_is_no_image_is_named():
    with pytest.raises(ImageError, match=r"tile_7\.png"):
        upright_rgb(b"hello", name="tile_7.png")
