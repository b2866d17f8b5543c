"""The optimiser: schedule values, the order of its parts, the decay masks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plip_jax.training.optim import OptimConfig, learning_rate_schedule, make_optimizer


def test_schedule_by_hand():
    rate = learning_rate_schedule(OptimConfig(learning_rate=1.0, warmup_steps=4), total_steps=14)
    assert [float(rate(step)) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert float(rate(4)) == 1.0
    assert float(rate(9)) == pytest.approx(0.5, abs=1e-7)  # half way down the cosine, float32
    assert float(rate(13)) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.9)), abs=1e-7)  # float32
    assert float(rate(14)) == pytest.approx(0.0, abs=1e-7)  # float32


def test_no_warmup_starts_at_the_peak_and_constant_stays():
    rate = learning_rate_schedule(OptimConfig(learning_rate=0.5, warmup_steps=0, schedule="constant"), total_steps=3)
    assert [float(rate(step)) for step in range(3)] == [0.5, 0.5, 0.5]


def test_first_update_by_hand_is_clip_then_adam_then_decay_then_rate():
    config = OptimConfig(learning_rate=0.1, warmup_steps=2, weight_decay=0.5, clip_norm=1.0, eps=0.25)
    optimizer = make_optimizer(config, total_steps=10)
    params = {"kernel": jnp.asarray([2.0, -1.0])}
    grads = {"kernel": jnp.asarray([3.0, 4.0])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    clipped = np.asarray([0.6, 0.8])  # norm 5 cut to 1
    adam = clipped / (np.abs(clipped) + 0.25)  # first step: both moments are unbiased to g and g^2
    expected = -0.05 * (adam + 0.5 * np.asarray([2.0, -1.0]))  # rate 0.1 * 1/2
    np.testing.assert_allclose(updates["kernel"], expected, rtol=3e-5)  # 1 - 0.999 keeps five digits in float32


def test_decay_masks():
    params = {
        "logit_scale": jnp.ones(()),
        "vision": {
            "class_embedding": jnp.ones(3),
            "blocks": {"fc1": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
        },
        "text": {"token_embedding": jnp.ones((4, 2)), "final_norm": {"scale": jnp.ones(2)}},
    }
    zeros = jax.tree.map(jnp.zeros_like, params)

    def decayed(mask: str) -> list[str]:
        optimizer = make_optimizer(OptimConfig(1.0, 0, decay_mask=mask, weight_decay=0.1), total_steps=10)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        leaves = jax.tree_util.tree_flatten_with_path(updates)[0]
        return [jax.tree_util.keystr(p, simple=True, separator="/") for p, leaf in leaves if jnp.any(leaf != 0)]

    assert decayed("matrices") == ["text/token_embedding", "vision/blocks/fc1/kernel"]
    assert len(decayed("all")) == len(jax.tree.leaves(params))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"optim.schedule.*cosine, constant.*linear"):
        OptimConfig(1.0, 0, schedule="linear")
    with pytest.raises(ValueError, match=r"optim.weight_decay.*-1"):
        OptimConfig(1.0, 0, weight_decay=-1)
    with pytest.raises(ValueError, match=r"fewer than the 5 steps, got 5"):
        learning_rate_schedule(OptimConfig(1.0, 5), total_steps=5)


def test_optimizer_state_is_float32_and_counts_are_int32():
    state = make_optimizer(OptimConfig(1.0, 0), 10).init({"kernel": jnp.ones(2)})
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
    assert optax.tree.get(state, "mu") is not None
