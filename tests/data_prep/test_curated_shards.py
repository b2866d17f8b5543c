"""Shards by key: the same bytes from any order, and only the changed ones written anew."""

import functools
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from curated_pairs import kept_pair, put, small_png

from data_prep import curated_shards, verify
from data_prep.curated_shards import (
    CuratedShardsError,
    ShardSettings,
    file_of,
    finish_folder,
    group_by_shard,
    rewrite_shards,
    shard_key,
    shard_of,
    write_shard,
)
from plip_jax.data.records import Record, RecordError, open_records, read_manifest

PAIRS = 12


def make_folder(root: Path, pairs, settings: ShardSettings, *, overwrite: bool = False, reports: Path | None = None):
    out, staged = root / "atlas", root / "work" / "shards"
    shards: dict[str, list] = {}
    for key, members in group_by_shard(pairs, settings).items():
        shard = write_shard(members, root / "store", staged / file_of(out, key, settings), settings)
        shards.setdefault(key[0], []).append(shard)
    finish_folder(out, staged, shards, reports=reports, overwrite=overwrite)
    assert not staged.exists()
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def pairs(tmp_path):
    train = [kept_pair(number, tmp_path / "store") for number in range(PAIRS)]
    return [*train, kept_pair(100, tmp_path / "store", split="test"), kept_pair(101, tmp_path / "store", split="test")]


def test_folder_holds_the_pairs_and_every_reader_opens_it_with_its_empty_shards(tmp_path, pairs):
    out = make_folder(tmp_path, pairs, ShardSettings(shards=8))
    counts = [shard.num_examples for shard in read_manifest(out).splits["test"]]
    assert sum(counts) == 2
    assert counts.count(0) >= 6  # two pairs in eight shards
    assert list(verify.find_problems(out)) == []
    records = {record.id: record for record in open_records(out)}
    assert len(records) == PAIRS
    assert records["twitter:3:0"] == Record(
        "twitter:3:0", small_png(3), ("a gland number 3",), "g0000000000000003", "twitter", ""
    )
    with_tfds = tfds.builder_from_directory(out).as_data_source(split="test")
    assert {example["id"] for example in with_tfds} == {b"twitter:100:0", b"twitter:101:0"}


def test_bytes_do_not_depend_on_the_order_of_the_input(tmp_path, pairs):
    settings = ShardSettings(shards=3)
    first = content(make_folder(tmp_path, pairs, settings))
    for seed in range(3):
        shuffled = random.Random(seed).sample(pairs, len(pairs))
        assert content(make_folder(tmp_path, shuffled, settings, overwrite=True)) == first


def test_bytes_do_not_depend_on_who_writes_beside(tmp_path):
    """Some megabytes a shard, written by one thread and by four at once."""
    settings, rng = ShardSettings(shards=4), random.Random(0)
    stored = [put(tmp_path / "store", rng.randbytes(rng.randrange(1, 400_000))) for _ in range(40)]
    pairs = [kept_pair(number, tmp_path / "store", clean_digest=stored[number]) for number in range(40)]
    grouped = group_by_shard(pairs, settings)

    def write(folder: str, key) -> str:
        return write_shard(grouped[key], tmp_path / "store", tmp_path / folder / str(key[1]), settings).sha256

    alone = [write("alone", key) for key in grouped]
    with ThreadPoolExecutor(4) as pool:
        for attempt in range(3):
            assert list(pool.map(functools.partial(write, f"beside{attempt}"), grouped)) == alone


def test_any_number_of_shards_holds_the_same_set(tmp_path, pairs):
    found = []
    for shards in (1, 3, 8):
        out = make_folder(tmp_path, pairs, ShardSettings(shards=shards), overwrite=True)
        assert [len(listed) for listed in read_manifest(out).splits.values()] == [shards, shards]
        found.append({split: sorted(r.id for r in open_records(out, split)) for split in ("train", "test")})
    assert found[0] == found[1] == found[2]
    assert len(found[0]["train"]) == PAIRS


def test_keys_spread_pairs_evenly_and_shuffle_them(tmp_path, pairs):
    ids = [f"twitter:{number}:0" for number in range(8000)]
    counts = [0] * 8
    for id in ids:
        counts[shard_of(id, ShardSettings(shards=8))] += 1
    assert min(counts) > 850  # 1000 expected, standard deviation 30
    assert [shard_of(id, ShardSettings(8, "another")) for id in ids] != [shard_of(id, ShardSettings(8)) for id in ids]
    orders = []
    for key in ("plip_jax", "another"):
        out = make_folder(tmp_path, pairs, ShardSettings(1, key), overwrite=True)
        orders.append([record.id for record in open_records(out)])
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1] != sorted(orders[1])


def test_only_changed_shards_are_written_anew(tmp_path, pairs):
    settings = ShardSettings(shards=4)
    reports = tmp_path / "reports"
    reports.mkdir()
    (reports / "datasheet.md").write_text("what it is")
    out = make_folder(tmp_path, pairs, settings, reports=reports)
    before, inodes = content(out), {path.name: path.stat().st_ino for path in out.iterdir()}
    gone = pairs[5]
    key = shard_key(gone, settings)
    left = [pair for pair in pairs if pair is not gone]
    manifest = rewrite_shards(out, {key: group_by_shard(left, settings)[key]}, tmp_path / "store", settings)
    assert manifest == read_manifest(out)
    after = content(out)
    assert after.keys() == before.keys()
    file = manifest.splits[key[0]][key[1]].file
    for other in before.keys() - {file, "records.json"}:
        if other.endswith("-of-00004"):
            assert after[other] == before[other]
            assert (out / other).stat().st_ino == inodes[other]  # linked, not copied
    assert after["datasheet.md"] == b"what it is"
    assert after[file] != before[file]
    assert gone.id not in {record.id for record in open_records(out)}
    assert list(verify.find_problems(out)) == []
    assert after == content(make_folder(tmp_path, left, settings, reports=reports, overwrite=True))


def test_a_split_without_records_is_left_out_and_a_folder_without_is_refused(tmp_path, pairs):
    settings = ShardSettings(shards=2)
    out = make_folder(tmp_path, pairs, settings)
    empty = {("test", 0): [], ("test", 1): []}
    assert list(rewrite_shards(out, empty, tmp_path / "store", settings).splits) == ["train"]
    assert not list(out.glob("*-test*"))
    assert list(verify.find_problems(out)) == []
    before = content(out)
    with pytest.raises(CuratedShardsError, match="nothing is left"):
        rewrite_shards(out, {("train", 0): [], ("train", 1): []}, tmp_path / "store", settings)
    assert content(out) == before
    with pytest.raises(CuratedShardsError, match="nothing was kept"):
        finish_folder(tmp_path / "none", tmp_path / "staged", {"train": ()}, overwrite=False)


def test_no_stale_shard_stays_and_no_foreign_folder_is_replaced(tmp_path, pairs):
    out = make_folder(tmp_path, pairs, ShardSettings(shards=5))
    with pytest.raises(FileExistsError, match="already holds records"):
        make_folder(tmp_path, pairs, ShardSettings(shards=2))
    make_folder(tmp_path, pairs, ShardSettings(shards=2), overwrite=True)
    assert len(list(out.glob("*.array_record*"))) == 4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    (out / "records.json").unlink()
    with pytest.raises(FileExistsError, match="not a records folder"):
        make_folder(tmp_path, pairs, ShardSettings(shards=2), overwrite=True)


def test_bad_pairs_and_a_damaged_store_stop_the_shard_and_leave_no_file(tmp_path, pairs):
    settings, store, path = ShardSettings(shards=1), tmp_path / "store", tmp_path / "shard"
    cases = {
        "two pairs have the id 'twitter:1:0'": [pairs[1], pairs[2], pairs[1]],
        "empty caption": [kept_pair(7, store, caption="  ")],
        "not in the store": [kept_pair(7, store, clean_digest="ab" * 32)],
    }
    for message, members in cases.items():
        with pytest.raises(CuratedShardsError, match=message):
            write_shard(members, store, path, settings)
    digest = put(store, small_png(3))
    (store / digest[:2] / digest).write_bytes(small_png(4))
    with pytest.raises(CuratedShardsError, match="changed or damaged"):
        write_shard(pairs, store, path, settings)
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_shards_that_do_not_fit_together_are_refused(tmp_path, pairs):
    settings, staged, out = ShardSettings(shards=2), tmp_path / "staged", tmp_path / "atlas"
    first, second = (
        write_shard(members, tmp_path / "store", staged / file_of(out, key, settings), settings)
        for key, members in group_by_shard(pairs[:PAIRS], settings).items()
    )
    with pytest.raises(CuratedShardsError, match="00001-of-00002 where"):
        finish_folder(out, staged, {"train": [second, first]}, overwrite=False)
    with pytest.raises(CuratedShardsError, match=r"00000-of-00002 where .*00000-of-00001"):
        finish_folder(out, staged, {"train": [first]}, overwrite=False)
    os.truncate(staged / second.file, 100)
    with pytest.raises(CuratedShardsError, match="has 100 bytes"):
        finish_folder(out, staged, {"train": [first, second]}, overwrite=False)
    assert not out.exists()


def test_rewriting_needs_the_settings_that_made_the_folder(tmp_path, pairs):
    out = make_folder(tmp_path, pairs, ShardSettings(shards=3))
    store = tmp_path / "store"
    with pytest.raises(CuratedShardsError, match="has 3 shards, settings 4"):
        rewrite_shards(out, {}, store, ShardSettings(shards=4))
    with pytest.raises(CuratedShardsError, match="no shard"):
        rewrite_shards(out, {("train", 3): []}, store, ShardSettings(shards=3))
    other = next(n for n in range(3) if n != shard_of(pairs[0].id, ShardSettings(shards=3)))
    with pytest.raises(CuratedShardsError, match="other settings"):
        rewrite_shards(out, {("train", other): [pairs[0]]}, store, ShardSettings(shards=3))
    with pytest.raises(RecordError, match="No records"):
        rewrite_shards(tmp_path / "nowhere", {}, store, ShardSettings())


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, pairs, monkeypatch):
    settings = ShardSettings(shards=2)
    out = make_folder(tmp_path, pairs, settings)
    before = content(out)
    real = Path.rename

    def kill_at_second(path, target):
        if path.name == ".atlas.partial":
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", kill_at_second)
        with pytest.raises(KeyboardInterrupt):
            rewrite_shards(out, {}, tmp_path / "store", settings)
    assert not out.exists()
    rewrite_shards(out, {}, tmp_path / "store", settings)
    assert content(out) == before


def test_files_of_another_file_system_are_copied(tmp_path, pairs, monkeypatch):
    def no_links(*_):
        raise OSError(18, "cross-device link")

    linked = content(make_folder(tmp_path, pairs, ShardSettings(shards=2)))
    monkeypatch.setattr(curated_shards.os, "link", no_links)
    assert content(make_folder(tmp_path, pairs, ShardSettings(shards=2), overwrite=True)) == linked


@pytest.mark.parametrize("bad", [{"shards": 0}, {"shards": 100_000}, {"key": ""}, {"key": "k" * 65}])
def test_settings_are_checked(bad):
    with pytest.raises(CuratedShardsError, match="expected 1 to"):
        ShardSettings(**bad)
