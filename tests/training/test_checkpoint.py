"""Checkpoints: what is kept, what is read back, other device counts, unknown versions, half-written steps."""

import dataclasses
import functools
import gc
import json
import shutil

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from plip_jax import sharding
from plip_jax.training.checkpoint import (
    CheckpointConfig,
    CheckpointError,
    Checkpoints,
    Description,
    is_workdir,
    read_model,
)
from plip_jax.training.optim import OptimConfig, make_optimizer
from plip_jax.training.state import init_state

DESCRIPTION = Description({"a": 1}, {"image_size": 8}, {"seed": 0}, [{"platform": "cpu"}])
TOKENIZER = {"vocab.json": '{"\u00e9": 0}'}
OPTIMIZER = make_optimizer(OptimConfig(1e-3, 0), 10)


def make_state(step: int, devices=None, keep_ema=False):
    params = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3) + step, "norm": {"scale": np.ones(3, np.float32)}}
    state = init_state(params, OPTIMIZER, sharding.replicated(sharding.make_mesh(devices)), keep_ema=keep_ema)
    ema = jax.tree.map(lambda leaf: leaf / 2, state.ema)
    return dataclasses.replace(
        state, step=state.step + step, ema=ema, skipped=state.skipped + 3, skipped_in_row=state.skipped_in_row + 1
    )


def abstract(state, devices=None):
    where = sharding.replicated(sharding.make_mesh(devices))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), state)


def save(checkpoints, step, metrics, keep_ema=False):
    description = dataclasses.replace(DESCRIPTION, data_state={"position": step}, metrics=metrics)
    checkpoints.save(make_state(step, keep_ema=keep_ema), description, TOKENIZER)


def write(workdir, config, scores, keep_ema=False):
    checkpoints = Checkpoints(workdir, config)
    for step, metrics in scores.items():
        save(checkpoints, step, metrics, keep_ema)
    checkpoints.close()


def restore(workdir, abstract_state):
    checkpoints = Checkpoints(workdir, CheckpointConfig())
    try:
        return checkpoints.restore(abstract_state)
    finally:
        checkpoints.close()


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_the_newest_are_kept_and_the_best_beside_them(tmp_path):
    write(
        tmp_path, CheckpointConfig(keep=2, best_metric="r"), {1: {"r": 0.1}, 2: {"r": 0.9}, 3: {}, 4: {"r": 0.2}, 5: {}}
    )
    assert steps(tmp_path) == [2, 4, 5]
    assert is_workdir(tmp_path)
    assert [read_model(tmp_path, which).step for which in ("latest", "best", 4)] == [5, 2, 4]


def test_best_can_be_the_smallest(tmp_path):
    write(tmp_path, CheckpointConfig(keep=1, best_metric="l", best_mode="min"), {1: {"l": 3}, 2: {"l": 1}, 3: {"l": 2}})
    assert steps(tmp_path) == [2, 3]
    assert read_model(tmp_path, "best").description.metrics == {"l": 1.0}


def test_restore_brings_back_every_bit_on_another_number_of_devices(tmp_path):
    write(tmp_path, CheckpointConfig(), {7: {"r": 0.5}})
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    for devices in (jax.devices()[:1], jax.devices()[:8]):
        restored = checkpoints.restore(abstract(make_state(0), devices))
        expected = make_state(7)
        jax.tree.map(np.testing.assert_array_equal, restored, expected)
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(restored)} == {len(devices)}
    assert checkpoints.describe().data_state == {"position": 7}
    assert checkpoints.describe().metrics == {"r": 0.5}
    assert checkpoints.read_tokenizer_files() == TOKENIZER
    checkpoints.close()


def test_a_model_is_read_as_numpy_with_its_description(tmp_path):
    write(tmp_path, CheckpointConfig(), {7: {}})
    files = read_model(tmp_path)
    np.testing.assert_array_equal(files.params["kernel"], np.arange(6).reshape(2, 3) + 7)
    assert type(files.params["kernel"]) is np.ndarray
    assert files.tokenizer_files == TOKENIZER
    assert files.step == 7
    # What was written, and what `save` adds.
    assert dataclasses.replace(files.description, data_state={}) == DESCRIPTION


def test_a_step_that_exists_is_not_written_twice(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    save(checkpoints, 3, {"r": 1.0})
    save(checkpoints, 3, {})
    checkpoints.close()
    assert read_model(tmp_path).description.metrics == {"r": 1.0}


def test_a_half_written_step_is_never_picked_up(tmp_path):
    write(tmp_path, CheckpointConfig(), {1: {}, 2: {}})
    folder = tmp_path / "checkpoints"
    (folder / "3.orbax-checkpoint-tmp").mkdir()  # what a kill in the middle of a write leaves
    (folder / "3.orbax-checkpoint-tmp" / "params").mkdir()
    assert read_model(tmp_path).step == 2
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    assert checkpoints.latest_step == 2
    save(checkpoints, 3, {})
    checkpoints.close()
    assert steps(tmp_path) == [2, 3]


def test_an_unknown_format_version_is_a_clear_error(tmp_path):
    write(tmp_path, CheckpointConfig(), {1: {}})
    path = tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    text = path.read_text().replace('"format_version": 2', '"format_version": 99')
    assert text != path.read_text(), metadata
    path.write_text(text)
    with pytest.raises(CheckpointError, match="expected checkpoint format version 1 or 2, got 99"):
        read_model(tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        read_model(tmp_path)
    write(tmp_path, CheckpointConfig(), {4: {}})
    with pytest.raises(CheckpointError, match=r"no step 5; there are \[4\]"):
        read_model(tmp_path, 5)
    with pytest.raises(CheckpointError, match=r"set no checkpoint\.best_metric"):
        read_model(tmp_path, "best")


def test_another_model_does_not_fit(tmp_path):
    write(tmp_path, CheckpointConfig(), {1: {}})
    other = init_state({"kernel": np.ones((4, 4), np.float32)}, OPTIMIZER, sharding.replicated(sharding.make_mesh()))
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    with pytest.raises(CheckpointError, match="does not fit this run's model or optimiser") as caught:
        checkpoints.restore(abstract(other))
    assert "params/kernel: (2, 3) in the checkpoint, (4, 4) in this run" in str(caught.value)
    assert "params/norm/scale: (3,) in the checkpoint, absent in this run" in str(caught.value)
    checkpoints.close()


def test_a_best_metric_that_nothing_was_evaluated_by_is_not_the_newest(tmp_path):
    write(tmp_path, CheckpointConfig(best_metric="r"), {1: {"other": 1.0}, 2: {}})
    with pytest.raises(CheckpointError, match="no checkpoint was evaluated by r yet"):
        read_model(tmp_path, "best")


def test_an_old_step_whose_removal_was_killed_is_passed_over(tmp_path):
    write(tmp_path, CheckpointConfig(keep=3, best_metric="r"), {1: {"r": 0.9}, 2: {"r": 0.5}, 3: {"r": 0.1}})
    (tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA").unlink()
    assert read_model(tmp_path, "best").step == 2


def test_damage_is_named_and_nothing_else_is_raised(tmp_path):
    write(tmp_path, CheckpointConfig(), {1: {}})
    damaged = [path for path in (tmp_path / "checkpoints" / "1" / "params").rglob("*") if path.is_file()]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:7])
    with pytest.raises(CheckpointError, match=r"checkpoints/1 cannot be read \("):
        read_model(tmp_path)
    gc.collect()  # what orbax left unfinished must not be heard of later


def test_the_moving_average_and_the_counts_come_back(tmp_path):
    write(tmp_path, CheckpointConfig(), {7: {}}, keep_ema=True)
    restored = restore(tmp_path, abstract(make_state(0, keep_ema=True)))
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(7, keep_ema=True))
    assert (int(restored.skipped), int(restored.skipped_in_row)) == (3, 1)
    raw, ema = read_model(tmp_path, weights="raw"), read_model(tmp_path, weights="ema")
    np.testing.assert_array_equal(raw.params["kernel"], 2 * ema.params["kernel"])
    assert (raw.weights, ema.weights, read_model(tmp_path).weights) == ("raw", "ema", "ema")


def test_a_moving_average_that_is_not_there_is_named(tmp_path):
    write(tmp_path, CheckpointConfig(), {7: {}})
    assert read_model(tmp_path).weights == "raw"
    with pytest.raises(CheckpointError, match=r"checkpoints/7: the run kept no moving average \(ema\)"):
        read_model(tmp_path, weights="ema")
    with pytest.raises(CheckpointError, match="holds no moving average"):
        restore(tmp_path, abstract(make_state(0, keep_ema=True)))
    with pytest.raises(CheckpointError, match="weights: expected auto, raw or ema"):
        read_model(tmp_path, weights="average")


def test_only_the_weights_that_are_asked_for_are_read(tmp_path):
    write(tmp_path, CheckpointConfig(), {7: {}}, keep_ema=True)
    for other, wanted in (("params", "ema"), ("optimizer", "ema")):
        shutil.rmtree(tmp_path / "checkpoints" / "7" / other)
        assert read_model(tmp_path, weights=wanted).step == 7


def test_a_step_of_version_1_is_read_with_counts_of_zero(tmp_path):
    state = make_state(7)
    said = {"format_version": 1, **dataclasses.asdict(DESCRIPTION)}
    with ocp.training.Checkpointer(tmp_path / "checkpoints") as old:  # what version 1 wrote
        old.save_checkpointables(
            7,
            {
                "params": state.params,
                "optimizer": {"step": state.step, "opt_state": state.opt_state},
                "tokenizer": {"files": np.frombuffer(json.dumps(TOKENIZER).encode(), np.uint8)},
            },
            custom_metadata=said,
        )
    restored = restore(tmp_path, abstract(state))
    zero = np.zeros((), np.int32)
    expected = dataclasses.replace(state, skipped=zero, skipped_in_row=zero)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    assert restored.skipped.sharding == restored.step.sharding
    assert read_model(tmp_path).weights == "raw"


def test_a_state_is_restored_on_other_devices_and_split_otherwise(tmp_path):
    params = {"kernel": np.arange(2**16, dtype=np.float32).reshape(256, 256), "bias": np.ones(256, np.float32)}
    places = [
        functools.partial(sharding.params_sharding, sharding.make_mesh(jax.devices()[:count]), strategy=strategy)
        for count, strategy in ((8, "fsdp"), (1, "replicated"), (4, "fsdp"), (8, "replicated"), (8, "fsdp"))
    ]
    first = init_state(params, OPTIMIZER, places[0], keep_ema=True)
    expected = jax.device_get(first)
    state = first
    for number, place in enumerate(places[1:]):
        workdir = tmp_path / str(number)
        checkpoints = Checkpoints(workdir, CheckpointConfig())
        checkpoints.save(state, DESCRIPTION, TOKENIZER)
        checkpoints.close()
        where = place(expected)
        target = jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), expected, where
        )
        state = restore(workdir, target)
        jax.tree.map(np.testing.assert_array_equal, state, expected)
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == where
    kernels = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (256, 256)]
    assert len(kernels) == 4  # the parameter, two moments, the average
    for leaf in kernels:
        assert [shard.data.shape for shard in leaf.addressable_shards] == [(256, 32)] * 8


def test_processes_that_see_different_checkpoints_are_refused(tmp_path, monkeypatch):
    write(tmp_path, CheckpointConfig(), {4: {}})
    monkeypatch.setattr("plip_jax.training.checkpoint.values_of_processes", lambda value: [value, -1])
    with pytest.raises(CheckpointError, match=r"different newest steps \(\[4, -1\], -1 for none\)"):
        Checkpoints(tmp_path, CheckpointConfig())
