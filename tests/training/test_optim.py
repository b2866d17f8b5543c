"""The optimiser: schedule values, the order of its parts, the decay masks, who learns at which rate."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import NO_TORCH, make_config, make_params

from plip_jax.model import clip
from plip_jax.training.optim import (
    OptimConfig,
    learning_rate_schedule,
    make_optimizer,
    rate_multipliers,
    stop_frozen_gradients,
)


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


def by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def factors(**rules: Any) -> dict[str, list[float]]:
    """The distinct multipliers of each part of the tiny CLIP (two blocks a tower); of the blocks, one a block."""
    shapes = clip.build(make_config()).abstract_params()
    found: dict[str, list[float]] = {}
    for path, multiplier in by_path(rate_multipliers(OptimConfig(1.0, 0, **rules), shapes)).items():
        part = "/".join(path.split("/")[:2])
        values = multiplier.ravel().tolist()
        assert found.setdefault(part, values) == values, path  # every leaf of a part has the same
    return found


def test_layer_decay_by_hand():
    below, above = [0.125], [1.0]  # two blocks: 0.5 ** 3, 0.5 ** 2, 0.5 ** 1, 1
    assert factors(layer_decay=0.5) == {
        "logit_scale": [1.0],
        "vision/patch_embedding": below,
        "vision/class_embedding": below,
        "vision/position_embedding": below,
        "vision/pre_norm": below,
        "vision/blocks": [0.25, 0.5],
        "vision/post_norm": above,
        "vision/projection": above,
        "text/token_embedding": below,
        "text/position_embedding": below,
        "text/blocks": [0.25, 0.5],
        "text/final_norm": above,
        "text/projection": above,
    }


def test_tower_rates_and_frozen_layers_by_hand():
    found = factors(layer_decay=0.5, vision_rate=0.1, text_rate=2.0, freeze_text_blocks=1)
    assert found["logit_scale"] == [1.0]
    assert found["vision/blocks"] == pytest.approx([0.025, 0.05], rel=1e-7)  # float32 of a decimal
    assert found["vision/projection"] == pytest.approx([0.1], rel=1e-7)  # the same
    assert found["text/token_embedding"] == found["text/position_embedding"] == [0.0]
    assert found["text/blocks"] == [0.0, 1.0]
    assert found["text/projection"] == found["text/final_norm"] == [2.0]
    every_block = factors(freeze_vision_blocks=2)
    assert every_block["vision/pre_norm"] == [0.0]
    assert every_block["vision/blocks"] == [0.0, 0.0]
    assert every_block["vision/post_norm"] == every_block["text/token_embedding"] == [1.0]
    tower = factors(freeze="text", text_rate=3.0)
    assert {part: values for part, values in tower.items() if 0.0 not in values}.keys() == {
        "logit_scale", *(part for part in tower if part.startswith("vision/")),
    }  # fmt: skip


def test_rules_that_cannot_hold_are_refused():
    with pytest.raises(ValueError, match=r"optim.freeze: expected vision or text, or nothing, got image"):
        OptimConfig(1.0, 0, freeze="image, text")
    with pytest.raises(ValueError, match=r"optim.freeze: nothing is left to train"):
        OptimConfig(1.0, 0, freeze="vision,text")
    with pytest.raises(ValueError, match=r"optim.layer_decay.*at most 1, got 1.5"):
        OptimConfig(1.0, 0, layer_decay=1.5)
    with pytest.raises(ValueError, match=r"optim.text_rate.*got 0; optim.freeze"):
        OptimConfig(1.0, 0, text_rate=0)
    with pytest.raises(ValueError, match=r"optim.freeze_vision_blocks.*-1"):
        OptimConfig(1.0, 0, freeze_vision_blocks=-1)
    params = make_params(make_config())
    for raises in (
        lambda config: make_optimizer(config, 10).init(params),
        lambda config: stop_frozen_gradients(config, params),
    ):
        with pytest.raises(ValueError, match=r"freeze_text_blocks: expected at most the 2 blocks .* got 3"):
            raises(OptimConfig(1.0, 0, freeze_text_blocks=3))
    params["vision"]["adapter"] = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match=r"blocks.*give 'adapter' its place"):
        rate_multipliers(OptimConfig(1.0, 0, layer_decay=0.5), params)


def small_tree(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def tower(below: str, above: str) -> dict[str, Any]:
        draw = functools.partial(rng.normal, size=(3, 2))
        return {below: draw(), "blocks": {"fc1": {"kernel": rng.normal(size=(3, 2, 2))}}, above: {"kernel": draw()}}

    tree = {
        "vision": tower("class_embedding", "projection"),
        "text": tower("token_embedding", "projection"),
        "logit_scale": rng.normal(size=()),
    }
    return jax.tree.map(np.float32, tree)


def updated(config: OptimConfig, params: Any, gradients: list[Any]) -> Any:
    optimizer = make_optimizer(config, total_steps=20)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def layers(tree: Any) -> dict[tuple[str, int], np.ndarray]:
    """Every leaf by its path, a stacked one cut into its layers."""
    cut = {path: leaf if "blocks" in path else leaf[None] for path, leaf in by_path(tree).items()}
    return {(path, row): leaf[row] for path, leaf in cut.items() for row in range(len(leaf))}


RULES = [
    {"layer_decay": 0.5, "vision_rate": 0.25},
    {"freeze": "vision"},
    {"freeze": "text", "layer_decay": 0.7},
    {"freeze_vision_blocks": 1, "freeze_text_blocks": 3, "text_rate": 2.0},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_steps_are_those_of_torch_with_a_group_for_each_rate(rules: dict[str, Any]):
    """Torch holds one tensor a layer, each with its own rate; the frozen ones are not given to it at all."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    config = OptimConfig(0.01, 0, schedule="constant", weight_decay=0.2, clip_norm=0.5, **rules)
    start, gradients = small_tree(0), [small_tree(seed) for seed in (1, 2, 3)]
    multipliers = rate_multipliers(config, start)
    rates = {key: float(value.squeeze()) for key, value in layers(multipliers).items()}
    theirs = {key: torch.nn.Parameter(torch.tensor(leaf)) for key, leaf in layers(start).items()}
    trained = {key: parameter for key, parameter in theirs.items() if rates[key]}
    groups = [{"params": [parameter], "lr": 0.01 * rates[key]} for key, parameter in trained.items()]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.2)
    for gradient in gradients:
        for key, leaf in layers(gradient).items():
            theirs[key].grad = torch.tensor(leaf)
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 0.5)
        adamw.step()
    ours = layers(updated(config, start, gradients))
    for key, parameter in theirs.items():
        # 3 float32 updates; torch adds 1e-6 to the norm it clips by
        np.testing.assert_allclose(ours[key], parameter.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=str(key))
        assert (np.asarray(ours[key]).tobytes() == layers(start)[key].tobytes()) == (not rates[key]), key


def test_a_frozen_tower_stays_bit_equal_has_no_moments_and_spreads_no_nan():
    params, gradients = small_tree(0), small_tree(1)
    params["text"]["projection"]["kernel"][:] = -0.0  # equal to 0, but of other bits
    gradients["text"] = jax.tree.map(lambda leaf: leaf * np.nan, gradients["text"])
    config = OptimConfig(0.1, 0, freeze="text", weight_decay=0.5, clip_norm=1.0, eps=0.0)
    for path, leaf in by_path(updated(config, params, [gradients] * 2)).items():
        same = np.asarray(leaf).tobytes() == by_path(params)[path].tobytes()
        assert same == path.startswith("text/"), path
        assert np.isfinite(leaf).all(), path
    moments = [leaf for leaf in jax.tree.leaves(make_optimizer(config, 10).init(params)) if leaf.dtype == jnp.float32]
    trained = [leaf for path, leaf in by_path(params).items() if not path.startswith("text/")]
    assert sum(leaf.size for leaf in moments) == 2 * sum(leaf.size for leaf in trained)

    # A leaf that is frozen in part: the same of its frozen layer.
    config = dataclasses.replace(config, freeze="", freeze_text_blocks=1)
    gradients["text"] = small_tree(2)["text"]
    gradients["text"]["blocks"]["fc1"]["kernel"][0] = np.nan
    before, after = (tree["text"]["blocks"]["fc1"]["kernel"] for tree in (params, updated(config, params, [gradients])))
    assert np.asarray(after[0]).tobytes() == before[0].tobytes()
    assert (np.asarray(after[1:]) != before[1:]).all()
    assert np.isfinite(after).all()


def contrastive(config: OptimConfig, params: Any) -> jax.Array:
    """A loss through both towers of the tiny CLIP."""
    model = clip.build(make_config())
    params = stop_frozen_gradients(config, params)
    images = model.encode_image(params, jnp.linspace(-1, 1, 4 * 32 * 32 * 3).reshape(4, 32, 32, 3))
    texts = model.encode_text(params, jnp.asarray(np.arange(64).reshape(4, 16) % 200))
    logits = jnp.exp(params["logit_scale"]) * images @ texts.T
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))


def test_no_gradient_reaches_what_is_frozen_and_none_is_computed_for_a_frozen_tower():
    params = jax.tree.map(jnp.asarray, make_params(make_config()))

    def flops(compiled: Any) -> float:
        return compiled.cost_analysis()["flops"]

    def compiled(**rules: Any) -> Any:
        return jax.jit(jax.grad(functools.partial(contrastive, OptimConfig(1.0, 0, **rules)))).lower(params).compile()

    whole = compiled()
    free = by_path(whole(params))
    for rules in ({"freeze": "vision"}, {"freeze_vision_blocks": 1, "freeze_text_blocks": 2}):
        step = compiled(**rules)
        multipliers = by_path(rate_multipliers(OptimConfig(1.0, 0, **rules), params))
        for path, leaf in by_path(step(params)).items():
            expected = np.where(multipliers[path] == 0, 0, free[path])
            # another program for the same sums, float32; the gradient of a key bias is 0 in theory
            tolerance = 1e-5 * np.abs(free[path]).max() + 1e-6
            np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=tolerance, err_msg=path)
        if "freeze" in rules:
            forward = jax.jit(lambda params: clip.build(make_config()).encode_image(params, jnp.ones((4, 32, 32, 3))))
            # A backward pass costs more than a forward one (twice in theory; 1.4 times here, where little is matmul).
            assert flops(whole) - flops(step) > flops(forward.lower(params).compile())
