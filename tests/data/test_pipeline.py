"""The training batches: one global order, any number of processes, workers and restarts."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from data_prep.shards import RecordsWriter
from plip_jax.data.image import ImageError
from plip_jax.data.pipeline import DataConfig, SourceConfig, TrainIterator, make_train_iterator
from plip_jax.data.records import Record, RecordError
from plip_jax.data.warp import warp_images
from tests.processes import is_running

BATCH = 8


class CharacterTokenizer:
    """Stands in for the tokenizer: the first characters' codes, closed and padded by a space's."""

    eot_token_id = ord(" ")

    def __init__(self, context_length: int = 6) -> None:
        self.context_length = context_length

    def __call__(self, texts):
        rows = [text[: self.context_length - 1].ljust(self.context_length) for text in texts]
        return np.array([[ord(c) for c in row] for row in rows], np.int32)


def png(seed: int, size: tuple[int, int] = (20, 24)) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_records(path: Path, count: int, *, captions: int = 3, bad: tuple[int, ...] = (), salt: int = 0) -> str:
    with RecordsWriter(path, max_shard_bytes=6000) as writer:
        for i in range(count):
            image = b"not an image" if i in bad else png(i + 1000 * salt)
            texts = tuple(f"{chr(97 + k)}{i:03d}" for k in range(captions))
            writer.write(Record(id=f"r{i}", image=image, captions=texts))
    return str(path)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> str:
    return write_records(tmp_path_factory.mktemp("data") / "forty", 40)


def config_for(*paths: str, **changes) -> DataConfig:
    values = {"global_batch_size": BATCH, "image_size": 16, "seed": 3, "prefetch": 0, **changes}
    return DataConfig(sources=tuple(SourceConfig(path) for path in paths), **values)


def start(config: DataConfig, process: int = 0, processes: int = 1, context_length: int = 6) -> TrainIterator:
    tokenizer = CharacterTokenizer(context_length)
    return make_train_iterator(config, tokenizer, process_index=process, process_count=processes)


def take(iterator: TrainIterator, count: int) -> list[dict[str, np.ndarray]]:
    return [next(iterator) for _ in range(count)]


def assert_equal_batches(left, right) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if key == "packed":
                assert_equal_batches([a[key]], [b[key]])
            else:
                np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_a_batch_has_the_promised_arrays(records):
    batch = next(start(config_for(records)))
    assert set(batch) == {"image", "tokens", "text_length", "index"}
    assert (batch["image"].shape, batch["image"].dtype) == ((8, 16, 16, 3), np.uint8)
    assert (batch["tokens"].shape, batch["tokens"].dtype) == ((8, 6), np.int32)
    assert (batch["text_length"].tolist(), batch["text_length"].dtype) == ([5] * 8, np.int32)
    assert (batch["index"].shape, batch["index"].dtype) == ((8,), np.int64)
    assert all(array.flags["C_CONTIGUOUS"] for array in batch.values())


def test_image_and_tokens_belong_to_the_indexed_record(records):
    from plip_jax.data.records import open_records

    folder = open_records(records)
    batch = next(start(config_for(records, augmentation="none", image_size=20)))
    for image, tokens, index in zip(batch["image"], batch["tokens"], batch["index"], strict=True):
        stored = np.asarray(Image.open(io.BytesIO(folder[int(index)].image)))
        np.testing.assert_array_equal(image, stored[:, 2:22])  # 20 x 24, centre crop of 20, no resize
        assert "".join(map(chr, tokens[1:4])) == f"{index:03d}"


def test_the_device_can_finish_the_view(records):
    host, device = (
        start(config_for(records, augmentation="light", warp_on_device=on_device)) for on_device in (False, True)
    )
    for whole, part in zip(take(host, 3), take(device, 3), strict=True):
        assert set(part) == {*whole, "warp"}
        assert (part["warp"].shape, part["warp"].dtype) == ((8, 8), np.float32)
        assert (part["image"] != whole["image"]).any()
        np.testing.assert_array_equal(jax.jit(warp_images)(part["image"], part["warp"]), whole["image"])
        for key in ("index", "tokens"):
            np.testing.assert_array_equal(part[key], whole[key])
    assert host.fingerprint == device.fingerprint


def test_every_record_comes_exactly_once_an_epoch_in_a_new_order(records):
    iterator = start(config_for(records))
    assert (iterator.steps_per_epoch, iterator.num_examples) == (5, 40)
    epochs = [[i for batch in take(iterator, 5) for i in batch["index"].tolist()] for _ in range(3)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_last_partial_global_batch_is_dropped(records):
    iterator = start(config_for(records, global_batch_size=12))
    assert iterator.steps_per_epoch == 3
    missed = [set(range(40)) - {i for b in take(iterator, 3) for i in b["index"].tolist()} for _ in range(4)]
    assert all(len(rest) == 4 for rest in missed)
    assert len({frozenset(rest) for rest in missed}) > 1


@pytest.mark.parametrize("processes", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_processes(records, processes):
    whole = take(start(config_for(records)), 12)
    parts = [take(start(config_for(records), p, processes), 12) for p in range(processes)]
    joined = [{k: np.concatenate([part[s][k] for part in parts]) for k in whole[0]} for s in range(12)]
    assert_equal_batches(whole, joined)


@pytest.mark.parametrize("position", [0, 1, 4, 5, 7, 11])
def test_resume_equals_the_unbroken_stream(records, position):
    unbroken = take(start(config_for(records)), 14)
    first = start(config_for(records, prefetch=2))
    take(first, position)
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    second = start(config_for(records, prefetch=2))
    take(second, 2)  # whatever it has done before
    second.set_state(state)
    assert_equal_batches(take(second, 14 - position), unbroken[position:])
    second.close()


def test_resume_onto_another_number_of_processes(records):
    unbroken = take(start(config_for(records)), 12)
    before = [start(config_for(records), p, 4) for p in range(4)]
    for iterator in before:
        take(iterator, 7)
    states = [iterator.get_state() for iterator in before]
    assert all(state == states[0] for state in states)
    after = [start(config_for(records), p, 2) for p in range(2)]
    for iterator in after:
        iterator.set_state(states[3])
    parts = [take(iterator, 5) for iterator in after]
    joined = [{k: np.concatenate([part[s][k] for part in parts]) for k in unbroken[0]} for s in range(5)]
    assert_equal_batches(joined, unbroken[7:])


def test_the_state_counts_consumed_batches_not_those_made_ahead(records):
    iterator = start(config_for(records, prefetch=4))
    positions = [iterator.get_state()["position"]]
    for _ in range(3):
        next(iterator)
        positions.append(iterator.get_state()["position"])
    iterator.close()
    assert positions == [0, 1, 2, 3]


def test_worker_processes_and_threads_give_the_same_batches(records):
    texts = {"text_parts": 2, "group_by": ("caption",)}
    alone = take(start(config_for(records, **texts), context_length=16), 7)
    assert all("packed" in batch for batch in alone)
    threads = start(config_for(records, prefetch=3, **texts), context_length=16)
    assert_equal_batches(take(threads, 7), alone)
    threads.close()
    workers = start(config_for(records, num_workers=2, **texts), context_length=16)
    assert_equal_batches(take(workers, 4), alone[:4])
    state = workers.get_state()
    assert state["position"] == 4
    workers.set_state(state)
    assert_equal_batches(take(workers, 3), alone[4:])
    workers.close()


TRAINER = """
import multiprocessing, sys, time
from plip_jax.data.pipeline import DataConfig, SourceConfig, make_train_iterator
from plip_jax.data.tokenizer import train_tokenizer

def main():
    tokenizer = train_tokenizer(["a b c"], vocab_size=520, context_length=8)
    source = SourceConfig(sys.argv[1])
    config = DataConfig(sources=(source,), global_batch_size=8, image_size=16, augmentation="none", num_workers=1)
    iterator = make_train_iterator(config, tokenizer)
    next(iterator)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(300)

if __name__ == "__main__":
    main()
"""


def test_workers_ignore_the_groups_signals_and_die_with_a_killed_trainer(records, tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    trainer = subprocess.Popen([sys.executable, str(script), records], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in trainer.stdout.readline().split()]
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    time.sleep(1)
    assert all(is_running(pid) for pid in workers)
    trainer.kill()
    trainer.communicate()
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlives its trainer"
        time.sleep(0.1)


def test_one_of_several_captions_is_drawn_and_changes_over_epochs(records):
    iterator = start(config_for(records))
    drawn: dict[int, list[str]] = {i: [] for i in range(40)}
    for batch in take(iterator, 5 * 6):
        for tokens, index in zip(batch["tokens"], batch["index"], strict=True):
            drawn[int(index)].append(chr(tokens[0]))
    counts = Counter(letter for letters in drawn.values() for letter in letters)
    assert set(counts) == {"a", "b", "c"}
    assert min(counts.values()) > 240 / 3 * 0.7
    assert sum(len(set(letters)) > 1 for letters in drawn.values()) > 35


def test_augmentation_changes_over_epochs_and_not_over_runs(records):
    first = {
        int(i): im for b in take(start(config_for(records)), 5) for i, im in zip(b["index"], b["image"], strict=True)
    }
    iterator = start(config_for(records))
    take(iterator, 5)
    second = {int(i): im for b in take(iterator, 5) for i, im in zip(b["index"], b["image"], strict=True)}
    assert sum(np.array_equal(first[i], second[i]) for i in range(40)) == 0


@pytest.mark.parametrize("seed", [4, 2**40])
def test_the_seed_changes_the_order(records, seed):
    assert not np.array_equal(
        next(start(config_for(records)))["index"], next(start(config_for(records, seed=seed)))["index"]
    )


def test_mixture_shares_are_exact_in_every_epoch(tmp_path):
    large, small = write_records(tmp_path / "large", 30), write_records(tmp_path / "small", 7, salt=1)
    sources = (SourceConfig(large, weight=3.0), SourceConfig(small, weight=1.0))
    iterator = start(dataclasses.replace(config_for(large), sources=sources, global_batch_size=4))
    assert (iterator.examples_per_epoch, iterator.num_examples, iterator.steps_per_epoch) == (40, 37, 10)
    extras = set()
    for _ in range(4):
        counts = Counter(i for batch in take(iterator, 10) for i in batch["index"].tolist())
        assert sorted(i for i in counts if i < 30) == list(range(30))
        assert all(counts[i] == 1 for i in range(30))
        of_small = [counts[i] for i in range(30, 37)]
        assert sum(of_small) == 10
        assert set(of_small) == {1, 2}
        extras.add(tuple(of_small))
    assert len(extras) > 1  # the partial second pass takes other records each epoch


def test_without_weights_a_mixture_is_every_record_once(tmp_path, records):
    small = write_records(tmp_path / "small", 8, salt=1)
    iterator = start(config_for(records, small))
    order = [i for batch in take(iterator, 6) for i in batch["index"].tolist()]
    assert sorted(order) == list(range(48))
    assert any(i >= 40 for i in order[:24])
    assert any(i >= 40 for i in order[24:])


def test_a_repeated_record_is_augmented_anew(tmp_path, records):
    tiny = write_records(tmp_path / "tiny", 1, captions=1)
    sources = (SourceConfig(records, weight=1.0), SourceConfig(tiny, weight=0.2))
    iterator = start(dataclasses.replace(config_for(records), sources=sources))
    views = {
        image.tobytes()
        for batch in take(iterator, iterator.steps_per_epoch)
        for image, index in zip(batch["image"], batch["index"], strict=True)
        if index == 40
    }
    assert len(views) == 8


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_image_stops_training_and_is_named(tmp_path, num_workers):
    path = write_records(tmp_path / "bad", 16, bad=(5,))
    iterator = start(config_for(path, num_workers=num_workers, prefetch=2))
    with pytest.raises(ImageError, match=r"record 'r5' \(.*bad-train\.array_record-0000\d-of-0000\d record \d+\)"):
        take(iterator, 2)
    position = iterator.get_state()["position"]
    with pytest.raises(ImageError, match="r5"):  # the position stays at the failed batch
        take(iterator, 2 - position)
    iterator.close()


def test_skipping_replaces_only_the_bad_image_and_counts_it(tmp_path, records):
    bad = write_records(tmp_path / "bad", 40, bad=(5, 17))
    good_batches = take(start(config_for(records)), 10)
    runs = []
    for prefetch in (0, 2):
        iterator = start(config_for(bad, on_bad_image="skip", prefetch=prefetch))
        runs.append(take(iterator, 10))
        assert iterator.skipped == 4  # two records, two epochs
        iterator.close()
    assert_equal_batches(*runs)
    for good, got in zip(good_batches, runs[0], strict=True):
        assert got["image"].shape == good["image"].shape
        kept = ~np.isin(good["index"], (5, 17))
        assert not np.isin(got["index"], (5, 17)).any()
        for key in good:
            np.testing.assert_array_equal(got[key][kept], good[key][kept])


def test_data_that_is_bad_throughout_is_an_error_even_when_skipping(tmp_path):
    path = write_records(tmp_path / "bad", 8, bad=tuple(range(8)))
    with pytest.raises(RecordError, match=r"100 records in a row .* run python -m data_prep\.verify"):
        next(start(config_for(path, on_bad_image="skip")))


def test_fingerprint_follows_the_data_and_the_order(tmp_path, records):
    same = write_records(tmp_path / "copy_under_another_name", 40)
    other = write_records(tmp_path / "other", 40, salt=1)
    reference = start(config_for(records)).fingerprint
    assert start(config_for(same)).fingerprint == reference
    assert start(config_for(records, num_workers=2, prefetch=3)).fingerprint == reference
    assert start(config_for(records), 1, 2).fingerprint == reference
    assert start(config_for(records, packing=False)).fingerprint == reference
    assert start(config_for(records, text_parts=2, group_by=("group",)), context_length=16).fingerprint == reference
    assert start(config_for(other)).fingerprint != reference
    assert start(config_for(records, seed=4)).fingerprint != reference
    assert start(config_for(records, global_batch_size=4)).fingerprint != reference


def test_a_state_of_other_data_is_refused_unless_allowed(tmp_path, records):
    state = start(config_for(write_records(tmp_path / "other", 40, salt=1))).get_state() | {"position": 3}
    iterator = start(config_for(records))
    with pytest.raises(ValueError, match="other data"):
        iterator.set_state(state)
    iterator.set_state(state, allow_changed_data=True)
    assert iterator.get_state()["position"] == 3
    with pytest.raises(ValueError, match="position"):
        iterator.set_state({"step": 3})


def test_mistakes_in_the_settings_are_named(tmp_path, records):
    with pytest.raises(RecordError, match=r"data_prep\.build .*--out"):
        start(config_for(str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="multiple of 3"):
        start(config_for(records), 0, 3)
    with pytest.raises(ValueError, match="40 examples, fewer than one global batch of 64"):
        start(config_for(records, global_batch_size=64))
    with pytest.raises(ValueError, match="none of them"):
        start(dataclasses.replace(config_for(records), sources=(SourceConfig(records, 1.0), SourceConfig(records))))
    with pytest.raises(ValueError, match="on_bad_image"):
        config_for(records, on_bad_image="ignore")
    with pytest.raises(ValueError, match="plip"):
        config_for(records, augmentation="plipp")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_large_batch_is_made_in_slices_and_is_the_same(records, monkeypatch, num_workers):
    config = config_for(records, num_workers=num_workers, group_by=("caption",))
    whole = take(start(config), 4)
    monkeypatch.setattr("plip_jax.data.pipeline._SLICE_ROWS", 3)
    in_slices = start(config)
    assert in_slices._source.slices > 1
    assert_equal_batches(take(in_slices, 4), whole)
    # A restart stands at a batch, not within one.
    again = start(config)
    again.set_state({"position": 2, "fingerprint": again.fingerprint})
    assert_equal_batches(take(again, 2), whole[2:])
    for iterator in (in_slices, again):
        iterator.close()
