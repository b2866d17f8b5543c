"""The texts of a training batch: lengths, packed rows, groups, and where a record lies."""

import numpy as np
import pytest

from data_prep.shards import RecordsWriter
from plip_jax.data.packing import pack_captions
from plip_jax.data.records import Record, RecordError
from tests.data.test_pipeline import assert_equal_batches, config_for, png, start, take

ROW = 16


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> str:
    return write_captions(tmp_path_factory.mktemp("texts") / "mixed", [1 + i % 5 for i in range(40)])


def write_captions(path, lengths) -> str:
    """Records with captions of these many letters."""
    return write(path, [Record(f"r{i}", png(i), ("abcdefghijklmnopqrst"[:n],)) for i, n in enumerate(lengths)])


def write(path, records) -> str:
    with RecordsWriter(path) as writer:
        for record in records:
            writer.write(record)
    return str(path)


def test_packing_adds_the_packed_captions_and_changes_nothing_else(records):
    packed = start(config_for(records, text_parts=2), context_length=ROW)
    plain = start(config_for(records, text_parts=2, packing=False), context_length=ROW)
    assert (packed.packed_rows, plain.packed_rows) == (3, None)
    for with_packed, without in zip(take(packed, 6), take(plain, 6), strict=True):
        expected = pack_captions(without["tokens"], without["text_length"], 2, 3)
        assert_equal_batches([with_packed.pop("packed")], [expected])
        assert_equal_batches([with_packed], [without])


def test_a_batch_that_does_not_fit_comes_without_packed_captions(tmp_path):
    path = write_captions(tmp_path / "tail", [3] * 36 + [15] * 4)
    iterator = start(config_for(path, global_batch_size=20), context_length=ROW)
    rows = iterator.packed_rows
    # As if the rows had been chosen before the tail was known: one that holds all captions of 3 and one of 15.
    iterator.packed_rows = 6
    seen = set()
    for batch in take(iterator, 20):
        long = int((batch["text_length"] == ROW).sum())
        assert ("packed" in batch) == (long <= 1)
        seen.add(long <= 1)
    assert seen == {False, True}
    assert rows is not None
    assert rows > 6


def test_rows_do_not_depend_on_the_process_or_the_run(records):
    config = config_for(records, global_batch_size=32)
    rows = {start(config, process, 4, context_length=ROW).packed_rows for process in (0, 1, 2, 3, 0)}
    assert len(rows) == 1
    assert None not in rows


def test_a_damaged_record_does_not_stop_the_choice_of_rows(tmp_path):
    # noise, which the shard's compression leaves as it is, so that it is found again in the file
    records = [Record(f"r{i}", np.random.default_rng(i).bytes(500), ("abc",)) for i in range(40)]
    path = write(tmp_path / "damaged", records)
    shard = next((tmp_path / "damaged").glob("*.array_record*"))
    data = bytearray(shard.read_bytes())
    data[data.index(records[7].image[100:200])] ^= 1
    shard.write_bytes(data)
    iterator = start(config_for(path, global_batch_size=16), context_length=ROW)
    assert iterator.packed_rows is not None
    with pytest.raises(RecordError, match="record 7: cannot be read from the shard"):
        iterator._source.folders[0][7]


def test_groups_are_equal_where_caption_or_group_agree(tmp_path):
    captions = ("A Gland", "a  gland ", "a gland", "stroma", "stroma", "mucus", "fat", "fat")
    groups = ("p1", "p2", "", "p1", "", "p2", "r2", "r2")
    records = [
        Record(f"r{i}", png(i), (caption,), group_id=group)
        for i, (caption, group) in enumerate(zip(captions, groups, strict=True))
    ]
    path = write(tmp_path / "groups", records)
    batch = next(start(config_for(path, group_by=("caption", "group"))))
    assert (batch["group_ids"].shape, batch["group_ids"].dtype) == ((8, 2), np.int32)
    by_caption, by_group = batch["group_ids"][np.argsort(batch["index"])].T.tolist()

    def partition(values):
        return [values.index(value) for value in values]

    assert partition(by_caption) == [0, 0, 0, 3, 3, 5, 6, 6]
    # Records without a group stand alone, and a group that bears a record's id is not that record.
    assert partition(by_group) == [0, 1, 2, 0, 4, 1, 6, 6]
    only = next(start(config_for(path, group_by=("group",))))
    np.testing.assert_array_equal(only["group_ids"][:, 0], batch["group_ids"][:, 1])
    assert "group_ids" not in next(start(config_for(path)))


def test_names_of_groups_count_within_their_source(tmp_path):
    paths = [write(tmp_path / name, [Record(f"r{i}", png(i), ("x",)) for i in range(4)]) for name in ("one", "two")]
    batch = next(start(config_for(*paths, group_by=("group", "caption"))))
    assert len(set(batch["group_ids"][:, 0].tolist())) == 8
    assert len(set(batch["group_ids"][:, 1].tolist())) == 1


def test_the_place_of_a_record_is_found_by_its_number(tmp_path, records):
    other = write_captions(tmp_path / "other", [3] * 8)
    iterator = start(config_for(records, other))
    assert iterator.where(39).endswith("mixed-train.array_record-00000-of-00001 record 39")
    assert iterator.where(40).endswith("other-train.array_record-00000-of-00001 record 0")
    with pytest.raises(IndexError):
        iterator.where(48)


def test_mistakes_in_the_settings_of_texts_are_named(records):
    with pytest.raises(ValueError, match="known: caption, group"):
        config_for(records, group_by=("captions",))
    with pytest.raises(ValueError, match="text_parts"):
        config_for(records, text_parts=0)
    with pytest.raises(ValueError, match=r"batch of 4 does not divide into 3 text parts .* multiple of 6"):
        start(config_for(records, text_parts=3), 0, 2)
