"""Records taken out of a folder: what stays is the same, byte for byte, and every reader opens it."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds
from small_work import make_image

from data_prep.removing.purge_records import record_ids, remove_records, restore_folder
from data_prep.shards import RecordsWriter
from data_prep.verify import find_problems
from plip_jax.data.records import Record, is_records_folder, open_records, read_manifest


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve records in train, two a shard; three in test, one shard; two files besides."""
    folder = tmp_path_factory.mktemp("shelf") / "atlas"
    with RecordsWriter(folder, max_shard_bytes=2_000) as writer:
        for number in range(12):
            writer.write(Record(f"a{number}", make_image(number), (f"caption {number}",), "g", "s", "l"))
        for number in range(3):
            writer.write(Record(f"b{number}", make_image(20 + number), (f"caption {number}",)), "test")
        writer.add_file("datasheet.md", "# what it is")
    return folder


@pytest.fixture
def atlas(shelf: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shelf, tmp_path / "atlas")


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_only_shards_that_hold_it_change(shelf: Path, atlas: Path):
    shards = read_manifest(shelf).splits["train"]
    assert len(shards) > 3
    assert remove_records(atlas, lambda record: record.id in {"a0", "a11"}) == 2
    before, after = digests(shelf), digests(atlas)
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    infos = {"records.json", "dataset_info.json", "1.0.0/dataset_info.json"}
    assert changed == {shards[0].file, shards[-1].file} | infos
    left = [record for record in open_records(shelf, "train") if record.id not in ("a0", "a11")]
    assert list(open_records(atlas, "train")) == left
    assert [path.name for path in atlas.parent.iterdir()] == ["atlas"]


def test_readers_open_what_is_left(atlas: Path):
    first = read_manifest(atlas).splits["train"][0]
    gone = set(list(record_ids(atlas, "train"))[: first.num_examples])
    remove_records(atlas, lambda record: record.id in gone)  # the whole of a shard
    assert read_manifest(atlas).splits["train"][0].num_examples == 0
    assert list(find_problems(atlas)) == []
    source: Any = tfds.builder_from_directory(atlas).as_data_source()
    source = source["train"]
    assert [source[i]["id"].decode() for i in range(len(source))] == list(record_ids(atlas, "train"))


def test_a_split_without_records_is_left_out(atlas: Path):
    assert remove_records(atlas, lambda record: record.id.startswith("b")) == 3
    assert sorted(read_manifest(atlas).splits) == ["train"]
    assert not list(atlas.glob("*-test*"))
    assert list(find_problems(atlas)) == []


def test_a_folder_without_records_is_none(atlas: Path):
    assert remove_records(atlas, lambda _: True) == 15
    assert not is_records_folder(atlas)
    assert [path.name for path in atlas.rglob("*")] == ["datasheet.md"]


def test_nothing_to_remove_changes_nothing(shelf: Path, atlas: Path):
    before = {path: path.stat().st_mtime_ns for path in atlas.rglob("*")}
    assert remove_records(atlas, lambda record: record.id in {"c"}) == 0
    assert {path: path.stat().st_mtime_ns for path in atlas.rglob("*")} == before
    assert digests(atlas) == digests(shelf)


def test_a_version_folder_is_its_own_dataset(shelf: Path, tmp_path: Path):
    folder = tmp_path / "atlas" / "1.0.0"
    with RecordsWriter(folder) as writer:
        for number in range(3):
            writer.write(Record(f"a{number}", make_image(number), ("caption",)))
    assert remove_records(folder, lambda record: record.id in {"a1"}) == 1
    assert list(find_problems(folder)) == []


def test_a_replacement_that_was_killed_is_undone(shelf: Path, atlas: Path):
    atlas.rename(atlas.parent / ".atlas.takedown-old")
    (atlas.parent / ".atlas.takedown").mkdir()
    restore_folder(atlas)
    assert digests(atlas) == digests(shelf)
    assert [path.name for path in atlas.parent.iterdir()] == ["atlas"]
