"""The step: one trace, eight devices equal one, the clamp, guards, the average, the golden metrics of one step."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plip_jax import sharding
from plip_jax.data.image import Preprocessing, normalize_pixels
from plip_jax.model import clip
from plip_jax.model.presets import get_preset
from plip_jax.training.losses import LossConfig, get_loss
from plip_jax.training.optim import OptimConfig, learning_rate_schedule, make_optimizer
from plip_jax.training.state import init_state
from plip_jax.training.step import Task, UpdateRule, loss_and_grads, make_train_step

TINY = get_preset("tiny")
BATCH = 16


def make_batch(step: int = 0):
    rng = np.random.default_rng([7, step])
    tokens = rng.integers(1, 500, (BATCH, 16)).astype(np.int32)
    tokens[:, -1] = TINY.text.eot_token_id
    return {"image": rng.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8), "text": tokens}


def make_task(counter: list[int] | None = None, **settings):
    model = clip.build(TINY, **settings)
    pixels = Preprocessing(image_size=32)

    def encode_image(params, batch, keys):
        if counter is not None:
            counter.append(1)  # runs while tracing only
        return model.encode_image(params, normalize_pixels(batch["image"], pixels), keys)

    return Task(encode_image, model.encode_text, get_loss(LossConfig("contrastive")), seed=0)


def make_run(devices, counter=None, optim=None, ema_decay=0.0, **settings):
    config = optim or OptimConfig(learning_rate=1e-3, warmup_steps=2)
    optimizer = make_optimizer(config, 20)
    mesh = sharding.make_mesh(devices)
    draw = lambda: clip.build(TINY).init(jax.random.key(0))  # noqa: E731 # one line, named for the call
    state = init_state(draw, optimizer, sharding.replicated(mesh), keep_ema=ema_decay > 0)
    task = make_task(counter, **settings)
    rule = UpdateRule(optimizer, learning_rate_schedule(config, 20), task.loss.logit_scale_range, ema_decay)
    return mesh, state, make_train_step(task, rule)


@pytest.mark.parametrize("count", [1, 8])
def test_the_step_is_traced_exactly_once(count):
    counter: list[int] = []
    mesh, state, step = make_run(jax.devices()[:count], counter)
    for index in range(4):
        state, _ = step(state, sharding.put_batch(mesh, make_batch(index)))
    assert int(state.step) == 4
    # One trace of the step runs the encoder's Python once.
    assert len(counter) == 1


def test_eight_devices_equal_one():
    results = {}
    for count in (1, 8):
        mesh, state, _ = make_run(jax.devices()[:count])
        batch = sharding.put_batch(mesh, make_batch())
        results[count] = jax.jit(lambda p, b, s: loss_and_grads(make_task(), p, b, s))(state.params, batch, state.step)
    (loss, _, grads), (loss8, _, grads8) = results[1], results[8]
    # The project's bounds: 1e-6 relative for the loss, 1e-5 norm-relative for a gradient.
    assert float(loss8) == pytest.approx(float(loss), rel=1e-6)
    paths = jax.tree_util.tree_flatten_with_path(grads)[0]
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(grads))
    for (path, one), eight in zip(paths, jax.tree.leaves(grads8), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        one, eight = np.asarray(one), np.asarray(eight)
        if name.endswith("attention/key/bias"):
            assert np.max(np.abs(one - eight)) <= 1e-6 * largest, name  # zero in theory
        else:
            assert np.linalg.norm(eight - one) <= 1e-5 * np.linalg.norm(one), name


def test_the_batch_is_split_and_negatives_are_global():
    mesh, state, step = make_run(jax.devices()[:8])
    batch = sharding.put_batch(mesh, make_batch())
    assert {shard.data.shape[0] for shard in batch["image"].addressable_shards} == {BATCH // 8}
    _, metrics = step(state, batch)
    # Untrained features are near each other: about log(16) with 16 negatives, log(2) if they were local.
    assert float(metrics["loss"]) > math.log(8)


def test_logit_scale_is_clamped_after_the_update():
    config = OptimConfig(learning_rate=10.0, warmup_steps=0, weight_decay=0.0)
    mesh, state, step = make_run(jax.devices()[:1], optim=config)
    for index in range(3):
        state, metrics = step(state, sharding.put_batch(mesh, make_batch(index)))
        raw = float(state.params["logit_scale"])
        assert raw in (0.0, pytest.approx(math.log(100), rel=1e-6))  # a rate of 10 throws it to either end
        assert float(metrics["logit_scale"]) == pytest.approx(math.exp(raw), rel=1e-6)


def test_a_batch_that_does_not_divide_is_named():
    mesh = sharding.make_mesh(jax.devices()[:3])
    with pytest.raises(ValueError, match=r"batch of 16 \(image\): expected a multiple of the 3 devices"):
        sharding.put_batch(mesh, make_batch())


def test_random_keys_depend_on_seed_and_step_only():
    _, state, _ = make_run(jax.devices()[:1])
    batch = {name: jnp.asarray(value) for name, value in make_batch().items()}
    task = make_task(patch_dropout=0.5)
    loss = jax.jit(lambda step: loss_and_grads(task, state.params, batch, step)[0])
    assert float(loss(jnp.int32(3))) == float(loss(jnp.int32(3)))
    assert float(loss(jnp.int32(3))) != float(loss(jnp.int32(4)))


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    mesh, state, step = make_run(jax.devices()[:8], ema_decay=0.9)
    state, _ = step(state, sharding.put_batch(mesh, make_batch()))
    # A temperature beyond float32 makes the loss and every gradient NaN, as a diverged run does.
    poisoned = dataclasses.replace(state, params={**state.params, "logit_scale": jnp.float32(200.0)})
    before = jax.device_get(poisoned)
    for count in (1, 2):
        poisoned, metrics = step(poisoned, sharding.put_batch(mesh, make_batch(count)))
        assert not np.isfinite(float(metrics["loss"]))
        assert (float(metrics["skipped_steps"]), float(metrics["skipped_in_row"])) == (count, count)
    after = jax.device_get(poisoned)
    for name in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    assert int(after.step) == int(before.step) + 2

    healed = dataclasses.replace(poisoned, params={**poisoned.params, "logit_scale": jnp.float32(2.0)})
    healed, metrics = step(healed, sharding.put_batch(mesh, make_batch(3)))
    assert (float(metrics["skipped_steps"]), float(metrics["skipped_in_row"])) == (2, 0)
    # The schedule counts updates: this is the second.
    assert float(metrics["learning_rate"]) == pytest.approx(1e-3, rel=1e-6)
    assert np.any(np.asarray(healed.params["text"]["token_embedding"]) != before.params["text"]["token_embedding"])


def test_the_average_follows_its_formula():
    mesh, state, step = make_run(jax.devices()[:1], ema_decay=0.75)
    expected = jax.device_get(state.params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.ema), expected)
    for index in range(3):
        state, _ = step(state, sharding.put_batch(mesh, make_batch(index)))
        expected = jax.tree.map(lambda mean, leaf: 0.75 * mean + 0.25 * leaf, expected, jax.device_get(state.params))
    # Sums of three float32 products, in another order in the compiled program.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), jax.device_get(state.ema), expected
    )


def test_the_update_ratio_is_what_the_parameters_moved_by():
    config = OptimConfig(learning_rate=1e-3, warmup_steps=0)
    mesh, state, step = make_run(jax.devices()[:1], optim=config)
    before = jax.device_get(state.params)
    state, metrics = step(state, sharding.put_batch(mesh, make_batch()))
    moved = jax.tree.map(np.subtract, jax.device_get(state.params), before)
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))  # noqa: E731 # one line
    # A float32 difference of parameters loses the last digits of an update a thousand times smaller.
    assert float(metrics["update_ratio"]) == pytest.approx(norm(moved) / norm(before), rel=1e-3)


def test_golden_metrics_after_one_step():
    mesh, state, step = make_run(jax.devices()[:1])
    state, metrics = step(state, sharding.put_batch(mesh, make_batch()))
    found = {name: float(value) for name, value in metrics.items()}
    golden = {
        "loss": 5.7973595,
        "image_to_text_accuracy": 0.0625,
        "text_to_image_accuracy": 0.0625,
        "grad_norm": 101.552818,
        "logit_scale": 14.2766743,
        "learning_rate": 0.0005,
        "update_ratio": 0.004058911,
        "skipped_steps": 0.0,
        "skipped_in_row": 0.0,
    }
    message = (
        "the first step of the tiny model changed; right only if the network, its initialisation, the loss or the "
        f"optimiser was meant to change. Then copy these into the test: {found}"
    )
    assert found == pytest.approx(golden, rel=1e-4), message  # jax versions order float32 sums differently
