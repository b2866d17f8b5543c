"""The step in two passes equals the step in one: loss, gradient, packed text, dropout, devices, memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plip_jax import sharding
from plip_jax.data.image import Preprocessing, normalize_pixels
from plip_jax.data.packing import pack_captions
from plip_jax.model import clip
from plip_jax.model.presets import get_preset
from plip_jax.training.accumulation import AccumulatedStep
from plip_jax.training.feed import make_place
from plip_jax.training.losses import LossConfig, get_loss
from plip_jax.training.optim import OptimConfig, learning_rate_schedule, make_optimizer
from plip_jax.training.state import init_state
from plip_jax.training.step import Task, UpdateRule, loss_and_grads, make_train_step

TINY = get_preset("tiny")
BATCH, LENGTH = 64, 16


def make_host_batch(parts: int = 0):
    rng = np.random.default_rng(3)
    lengths = rng.integers(3, 9, BATCH).astype(np.int32)
    tokens = rng.integers(1, 500, (BATCH, LENGTH)).astype(np.int32)
    tokens[np.arange(LENGTH) >= lengths[:, None] - 1] = TINY.text.eot_token_id
    batch = {
        "image": rng.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8),
        "tokens": tokens,
        "group_ids": rng.integers(0, 40, (BATCH, 1)).astype(np.int32),
    }
    if parts:
        packed = pack_captions(tokens, lengths, parts, BATCH // parts)
        assert packed is not None
        batch["packed"] = packed
    return batch


def make_task(counter=None, *, loss="contrastive", mesh=None, **settings):
    model = clip.build(TINY, **settings)
    pixels = Preprocessing(image_size=32)

    def encode_image(params, batch, keys):
        if counter is not None:
            counter.append(1)  # runs while tracing only
        return model.encode_image(params, normalize_pixels(batch["image"], pixels), keys)

    def encode_text(params, text):
        return model.encode_packed_text(params, text) if isinstance(text, dict) else model.encode_text(params, text)

    return Task(encode_image, encode_text, get_loss(LossConfig(loss, chunk_size=16), mesh), seed=0)


class Keep:
    """An update rule that hands out the gradient it is given."""

    def apply(self, state, loss, metrics, grads):
        return dataclasses.replace(state, params=grads), {"loss": loss, **metrics}


def start(mesh, keep_ema=False):
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-3, warmup_steps=0), 20)
    draw = lambda: clip.build(TINY).init(jax.random.key(0))  # noqa: E731 # one line, named for the call
    return optimizer, init_state(draw, optimizer, sharding.replicated(mesh), keep_ema=keep_ema)


def assert_close(ours, theirs):
    """1e-5 norm-relative, the project's bound for a gradient in float32; key biases are zero in theory."""
    largest = max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(theirs))
    flat = jax.tree_util.tree_flatten_with_path(theirs)[0]
    for (path, expected), found in zip(flat, jax.tree.leaves(ours), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        error = np.linalg.norm(np.asarray(found) - np.asarray(expected))
        if name.endswith("attention/key/bias"):
            assert error <= 1e-6 * largest, name  # a sum that cancels to zero: only its size beside the others counts
        else:
            assert error <= 1e-5 * np.linalg.norm(expected), (name, error / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("devices", "micro_batches", "packed", "settings"),
    [
        (1, 4, False, {"patch_dropout": 0.5}),
        (1, 8, True, {"remat": True}),
        (8, 2, True, {"patch_dropout": 0.25, "loss": "contrastive_ring"}),
        (8, 4, False, {"remat": True, "loss": "siglip"}),
    ],
)
def test_two_passes_give_the_loss_and_the_gradient_of_the_whole_batch(devices, micro_batches, packed, settings):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    _, state = start(mesh)
    siglip = settings.get("loss") == "siglip"
    if siglip:
        state = dataclasses.replace(state, params={**state.params, "logit_bias": jnp.float32(-10.0)})
    whole = make_task(mesh=mesh, **{name: value for name, value in settings.items() if name != "remat"})
    batch = make_place(mesh, make_host_batch())(0)
    loss, metrics, grads = jax.jit(lambda p, b, s: loss_and_grads(whole, p, b, s))(state.params, batch, state.step)
    grads = jax.device_get(grads)

    task = make_task(mesh=mesh, **settings)
    step = AccumulatedStep(task, Keep(), mesh, micro_batches)  # pyright: ignore[reportArgumentType] # stands in for a rule
    place = make_place(mesh, make_host_batch(micro_batches * devices if packed else 0), micro_batches)
    after, found = step(state, place)
    assert float(found["loss"]) == pytest.approx(float(loss), rel=1e-5)  # the same bound, for a scalar
    for name, value in metrics.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5), name
    assert_close(jax.device_get(after.params), grads)


@pytest.mark.slow  # both forms of the step are compiled
def test_several_steps_follow_the_one_pass_run_and_trace_twice_at_most():
    mesh = sharding.make_mesh(jax.devices()[:2])
    counter: list[int] = []
    schedule = learning_rate_schedule(OptimConfig(learning_rate=1e-3, warmup_steps=0), 20)
    optimizer, state = start(mesh, keep_ema=True)
    _, other = start(mesh, keep_ema=True)
    rule = UpdateRule(optimizer, schedule, (0.0, 4.6), 0.9)
    one = make_train_step(make_task(), rule)
    # Pinned, as the program does: what the compiler would choose may be another sharding than came in.
    two = AccumulatedStep(make_task(counter), rule, mesh, 4, sharding.params_sharding(mesh, other, "replicated"))
    for index in range(4):
        # The second shape of the text is what a batch takes whose captions do not fit.
        state, expected = one(state, make_place(mesh, make_host_batch())(0))
        other, found = two(other, make_place(mesh, make_host_batch(8 if index != 2 else 0), 4))
        # Adam divides tiny gradients by their own size, so rounding grows from step to step.
        assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-4)
    # Two programs run the encoders, each for two shapes of the text.
    assert len(counter) == 4
    assert int(other.step) == 4


def test_micro_batches_that_do_not_divide_are_named():
    mesh = sharding.make_mesh(jax.devices()[:1])
    with pytest.raises(ValueError, match=r"batch of 64 .* multiple of train.accumulation_steps \(5\)"):
        make_place(mesh, make_host_batch(), 5)
