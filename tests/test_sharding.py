"""Where arrays live: the rule, its share of memory, that it changes no number, what a split state costs in traffic."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_training as training
from jax.sharding import PartitionSpec

from plip_jax import sharding
from plip_jax.model import clip
from plip_jax.model.presets import get_preset
from plip_jax.training.state import init_state


def spec(path: str, *shape: int, devices: int = 8) -> PartitionSpec:
    return sharding.PARAMS_SHARDINGS["fsdp"](path, shape, devices)


def test_the_rule_splits_the_largest_axis_and_never_the_layers():
    assert spec("params/text/token_embedding", 49408, 512) == PartitionSpec("data")
    assert spec("params/text/projection/kernel", 512, 512) == PartitionSpec(None, "data")
    assert spec("params/vision/patch_embedding/kernel", 32, 32, 3, 768) == PartitionSpec(None, None, None, "data")
    # Stacked layers: 24 is divisible and stays; so do axes that the devices do not divide, and small arrays.
    assert spec("opt_state/0/mu/vision/blocks/mlp/fc1/kernel", 24, 768, 3072) == PartitionSpec(None, None, "data")
    assert spec("ema/vision/blocks/mlp/fc2/kernel", 12, 3072, 768) == PartitionSpec(None, "data")
    assert spec("params/text/blocks/mlp/fc1/kernel", 4096, 17, 31) == PartitionSpec()
    assert spec("params/text/kernel", 510, 512, devices=5) == PartitionSpec("data")
    assert spec("params/text/kernel", 509, 511) == PartitionSpec()
    assert spec("params/vision/blocks/norm1/scale", 12, 768) == PartitionSpec()
    assert spec("step") == PartitionSpec()


def test_an_unknown_strategy_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown sharding of parameters 'zero3'; known: replicated, fsdp"):
        sharding.params_sharding(sharding.make_mesh(), {}, "zero3")


def test_a_device_holds_an_eighth_of_parameters_and_moments():
    mesh = sharding.make_mesh()
    draw = functools.partial(clip.build(get_preset("ViT-B-32")).init, jax.random.key(0))
    state = jax.eval_shape(functools.partial(init_state, draw, training.OPTIMIZER, sharding.replicated(mesh)))
    share = {}
    for strategy in sharding.PARAMS_SHARDINGS:
        where = jax.tree.leaves(sharding.params_sharding(mesh, state, strategy))
        sizes = [
            (math.prod(place.shard_shape(leaf.shape)), math.prod(leaf.shape))
            for leaf, place in zip(jax.tree.leaves(state), where, strict=True)
        ]
        share[strategy] = sum(here for here, _ in sizes) / sum(whole for _, whole in sizes)
    assert share["replicated"] == 1
    # An eighth of all but the small arrays, 0.2 % of the elements, which every device holds.
    assert share["fsdp"] == pytest.approx(1 / 8 + 0.002 * 7 / 8, abs=5e-4)


@pytest.fixture
def split_small_arrays(monkeypatch):
    monkeypatch.setattr(sharding, "_SMALLEST_SPLIT", 256)  # the tiny network has no array of 2^16


def gathered_shapes(program: str) -> set[tuple[int, ...]]:
    """Shapes that all-gathers of a compiled program give, alone or several in one."""
    results = re.findall(r"= (.*?) all-gather(?:-start)?\(", program)
    return {tuple(map(int, shape.split(","))) for result in results for shape in re.findall(r"\w\[([\d,]+)\]", result)}


def test_a_split_state_gives_the_same_step_and_gathers_parameters_only(split_small_arrays):
    mesh = sharding.make_mesh()
    batch = sharding.put_batch(mesh, training.make_batch())
    after, result, gathered = {}, {}, {}
    for strategy in sharding.PARAMS_SHARDINGS:
        state = training.init(mesh, strategy)
        step = training.make_step(mesh, strategy)
        compiled = step.lower(state, batch).compile({"xla_backend_optimization_level": 0})  # takes half the time
        after[strategy], result[strategy] = compiled(state, batch)
        gathered[strategy] = gathered_shapes(compiled.as_text())
    # The project's bounds: 1e-6 relative for the loss, 1e-5 norm-relative for gradients and what they make.
    assert float(result["fsdp"]["loss"]) == pytest.approx(float(result["replicated"]["loss"]), rel=1e-6)
    training.assert_close_by_norm(result["fsdp"]["grads"], result["replicated"]["grads"], 1e-5)
    for name in ("params", "opt_state"):
        training.assert_close_by_norm(getattr(after["fsdp"], name), getattr(after["replicated"], name), 1e-5)
    kernel = after["fsdp"].params["vision"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 32, 8)}
    parameters = {leaf.shape for leaf in jax.tree.leaves(after["fsdp"].params)}
    assert gathered["fsdp"] - gathered["replicated"] <= parameters
    assert (2, 32, 64) in gathered["fsdp"]  # otherwise this reads no all-gather at all


def test_without_gathering_the_parameters_activations_travel(split_small_arrays):
    # What gather_params is for; where a newer compiler no longer does this, it may go.
    mesh = sharding.make_mesh()
    params = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in (("a", (64, 128)), ("b", (128, 32)))}
    where = sharding.params_sharding(mesh, params, "fsdp")
    gathered = {}
    for strategy in sharding.PARAMS_SHARDINGS:  # under "replicated" nothing is gathered, wherever the parameters are

        def loss(params, x, strategy=strategy):
            params = sharding.gather_params(mesh, params, strategy)
            return jnp.sum(jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]))

        grad = jax.jit(jax.grad(loss), in_shardings=(where, sharding.split_batch(mesh)), out_shardings=where)
        x = jax.ShapeDtypeStruct((16, 64), np.float32)
        gathered[strategy] = gathered_shapes(grad.lower(params, x).compile().as_text())
    assert gathered == {"replicated": {(16, 64)}, "fsdp": {(64, 128), (128, 32)}}


def test_the_whole_batch_must_divide():
    mesh = sharding.make_mesh(jax.devices()[:3])
    with pytest.raises(ValueError, match=r"batch of 16 \(text/tokens\): expected a multiple of the 3 devices"):
        sharding.put_batch(mesh, {"text": {"tokens": np.zeros((16, 4), np.int32)}})


def test_one_process_agrees_with_itself_without_the_devices(monkeypatch):
    monkeypatch.setattr(sharding, "_gather", None)  # may not be called
    assert bool(sharding.any_process(True)) is True
    assert bool(sharding.any_process(False)) is False
    assert sharding.values_of_processes(7) == [7]
