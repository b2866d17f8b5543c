"""From host batches to device batches: one decision for all processes, positions, and which rows travel together."""

import jax
import numpy as np
import pytest

from plip_jax import sharding
from plip_jax.training.feed import AgreedBatches, make_place


class Numbered:
    """Batches that hold their number; every third cannot be packed."""

    skipped = 0

    def __init__(self, count: int = 100):
        self.position, self.count, self.closed = 0, count, False

    def __next__(self):
        if self.position == self.count:
            raise OSError("the data ends here")
        batch = {"image": np.full((4, 2), self.position), "tokens": np.zeros((4, 3), np.int32)}
        if self.position % 3:
            batch["packed"] = {"tokens": np.zeros((2, 1, 3), np.int32)}
        self.position += 1
        return batch

    def get_state(self):
        return {"position": self.position}

    def where(self, index):
        return f"record {index}"

    def close(self):
        self.closed = True


@pytest.mark.parametrize("read_ahead", [0, 1, 3])
def test_the_position_is_that_of_the_batches_handed_out(read_ahead):
    inner = Numbered()
    batches = AgreedBatches(inner, read_ahead=read_ahead)
    assert batches.get_state() == {"position": 0}
    for index in range(5):
        batch = next(batches)
        assert batch["image"][0, 0] == index
        assert ("packed" in batch) == bool(index % 3)
        assert batches.get_state() == {"position": index + 1}
        assert inner.position == index + 1 + read_ahead
    batches.close()
    assert inner.closed
    assert batches.where(7) == "record 7"


def test_a_failure_ahead_keeps_the_position_of_what_was_handed_out():
    batches = AgreedBatches(Numbered(count=2), read_ahead=1)
    next(batches)
    with pytest.raises(OSError, match="the data ends"):
        next(batches)
    assert batches.get_state() == {"position": 1}


def test_one_process_that_cannot_pack_stops_all_from_packing(monkeypatch):
    monkeypatch.setattr("plip_jax.training.feed.any_process", lambda flag: True)
    batches = AgreedBatches(Numbered(), read_ahead=1)
    assert all("packed" not in next(batches) for _ in range(4))


def test_micro_batches_are_contiguous_rows_with_their_own_captions():
    mesh = sharding.make_mesh(jax.devices()[:2])
    batch = {
        "image": np.arange(16, dtype=np.uint8),
        "tokens": np.arange(16, dtype=np.int32),
        "index": np.arange(16),
        "group_ids": np.arange(32, dtype=np.int32).reshape(16, 2),
    }
    place = make_place(mesh, batch, 4)
    third = place(2)
    assert set(third) == {"image", "text", "group_ids", "place"}
    np.testing.assert_array_equal(third["place"], [8, 9, 10, 11])
    np.testing.assert_array_equal(third["image"], [8, 9, 10, 11])
    np.testing.assert_array_equal(third["text"], [8, 9, 10, 11])
    assert {shard.data.shape for shard in third["image"].addressable_shards} == {(2,)}

    batch["packed"] = {"tokens": np.arange(8 * 5, dtype=np.int32).reshape(8, 5)}  # 4 micro-batches x 2 devices
    packed = make_place(mesh, batch, 4)(2)["text"]
    np.testing.assert_array_equal(packed["tokens"], np.arange(20, 30).reshape(2, 5))
