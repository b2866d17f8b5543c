"""What the network promises: its parameter paths, causality, pooling, lengths, dtypes, patch dropout."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plip_jax import sharding
from plip_jax.model import clip
from plip_jax.model.presets import PRESETS, CLIPConfig, get_preset
from plip_jax.model.text import eot_position
from plip_jax.model.transformer import causal_mask
from plip_jax.model.vision import drop_patches

TINY = get_preset("tiny")
GOLDEN = Path(__file__).parent / "parameter_paths.json"


@pytest.fixture(scope="module")
def params():
    return jax.jit(clip.build(TINY).init)(jax.random.key(0))


@pytest.fixture(scope="module")
def tokens():
    tokens = np.random.default_rng(0).integers(1, 500, (4, 16)).astype(np.int32)
    for row, length in enumerate((3, 7, 12, 16)):
        tokens[row, length - 1 :] = TINY.text.eot_token_id
    return jnp.asarray(tokens)


def pixels(batch: int = 2):
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, 32, 32, 3)).astype(np.float32))


@pytest.mark.parametrize("preset", ["tiny", "ViT-B-32"])
def test_parameter_paths_are_the_golden_ones(preset):
    leaves = jax.tree_util.tree_flatten_with_path(clip.build(get_preset(preset)).abstract_params())[0]
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): [*leaf.shape, str(leaf.dtype)] for path, leaf in leaves
    }
    golden = json.loads(GOLDEN.read_text())[preset]
    assert found == golden, (
        "the parameter paths are part of the checkpoint format; if they must change, raise "
        "training/checkpoint.py FORMAT_VERSION, and only then update tests/model/parameter_paths.json"
    )


def test_parameters_are_float32_and_strongly_typed(params):
    assert {(leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(params)} == {(jnp.dtype("float32"), False)}


def test_text_tower_is_causal(params, tokens):
    blocks = clip.build(TINY).tower("text", params).blocks
    x = jax.random.normal(jax.random.key(1), (2, 16, 32))
    later = x.at[:, 8:].add(1.0)
    mask = causal_mask(16)
    np.testing.assert_array_equal(blocks(x, mask)[:, :8], blocks(later, mask)[:, :8])
    assert not np.allclose(blocks(x, mask)[:, 8:], blocks(later, mask)[:, 8:])
    # A caption that ends before the change keeps its features; one that reaches into it does not.
    before = clip.build(TINY).encode_text(params, tokens)
    after = clip.build(TINY).encode_text(params, tokens.at[:, 8:].set(7))
    np.testing.assert_array_equal(before[:2], after[:2])
    assert not np.allclose(before[3], after[3])


def test_padding_and_its_token_change_nothing(params, tokens):
    model = clip.build(TINY)
    zero_padded = np.array(tokens)
    for row, length in enumerate((3, 7, 12)):
        zero_padded[row, length:] = 0
    np.testing.assert_array_equal(
        model.encode_text(params, tokens), model.encode_text(params, jnp.asarray(zero_padded))
    )
    short = model.encode_text(params, tokens[:2, :7])
    # Another length is another program: the sums may be ordered differently.
    np.testing.assert_allclose(model.encode_text(params, tokens)[:2], short, rtol=0, atol=1e-6)


def test_eot_pooling_conventions(params):
    first = dataclasses.replace(TINY.text, eot_token_id=5)
    by_id = clip.build(dataclasses.replace(TINY, text=first))
    by_argmax = clip.build(dataclasses.replace(TINY, text=dataclasses.replace(first, eot_pooling="argmax")))
    tokens = jnp.asarray([[9, 5, 99, 3, 5]], jnp.int32)  # first 5 at position 1, largest id at 2
    assert int(eot_position(tokens, by_id.config.text)[0]) == 1
    assert int(eot_position(tokens, by_argmax.config.text)[0]) == 2
    assert not np.allclose(by_id.encode_text(params, tokens), by_argmax.encode_text(params, tokens))


def test_batch_rows_are_independent(params, tokens):
    model = clip.build(TINY)
    order = jnp.asarray([2, 0, 3, 1])
    np.testing.assert_allclose(  # a row's place in a batch may change the blocking of a product
        model.encode_text(params, tokens[order]), model.encode_text(params, tokens)[order], rtol=0, atol=1e-6
    )


def test_any_context_length():
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, context_length=256))
    model = clip.build(config)
    params = model.init(jax.random.key(0))
    assert model.encode_text(params, jnp.full((1, 256), 3, jnp.int32)).shape == (1, 16)
    with pytest.raises(ValueError, match=r"at most 256 .* got 257"):
        model.encode_text(params, jnp.zeros((1, 257), jnp.int32))


def test_wrong_image_size_is_named(params):
    with pytest.raises(ValueError, match=r"expected \[batch, 32, 32, 3\], got \(1, 48, 48, 3\)"):
        clip.build(TINY).encode_image(params, jnp.zeros((1, 48, 48, 3)))


def test_bfloat16_compute_is_close_and_returns_float32(params, tokens):
    exact, rounded = clip.build(TINY), clip.build(TINY, compute_dtype="bfloat16")
    for name, inputs in (("encode_image", pixels()), ("encode_text", tokens)):
        reference, features = getattr(exact, name)(params, inputs), getattr(rounded, name)(params, inputs)
        assert features.dtype == jnp.float32
        # bfloat16 keeps 8 bits: 2^-8 a rounded operand, a few of them deep.
        np.testing.assert_allclose(features, reference, atol=0.03 * float(jnp.max(jnp.abs(reference))))
        assert not np.array_equal(features, reference)


def test_weight_gradients_are_not_rounded_to_bfloat16(params):
    model = clip.build(TINY, compute_dtype="bfloat16")
    grads = jax.grad(lambda p: jnp.sum(model.encode_image(p, pixels()) ** 2))(params)
    kernel = grads["vision"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert not np.array_equal(kernel, kernel.astype(jnp.bfloat16).astype(jnp.float32))


def test_rematerialisation_changes_no_gradient(params):
    def grads(remat: bool):
        model = clip.build(TINY, remat=remat)
        return jax.jit(jax.grad(lambda p: jnp.sum(model.encode_image(p, pixels()) ** 2)))(params)

    for kept, recomputed in zip(jax.tree.leaves(grads(False)), jax.tree.leaves(grads(True)), strict=True):
        # The recomputed forward pass may be fused differently.
        np.testing.assert_allclose(kept, recomputed, rtol=1e-4, atol=1e-6)


def test_patch_dropout_drops_only_in_training_and_keeps_distinct_patches(params):
    model = clip.build(TINY, patch_dropout=0.5)
    keys = jax.random.split(jax.random.key(0), 2)
    whole = model.encode_image(params, pixels())
    np.testing.assert_array_equal(whole, clip.build(TINY).encode_image(params, pixels()))
    dropped = model.encode_image(params, pixels(), keys)
    assert not np.allclose(whole, dropped)
    np.testing.assert_array_equal(dropped, model.encode_image(params, pixels(), keys))
    numbered = jnp.broadcast_to(jnp.arange(10.0)[None, :, None], (3, 10, 1))
    kept = drop_patches(numbered, 0.25, jax.random.split(jax.random.key(1), 3))
    assert kept.shape == (3, 7, 1)
    assert all(len(set(row.ravel().tolist())) == 7 for row in np.asarray(kept))
    assert len({tuple(row.ravel().tolist()) for row in np.asarray(kept)}) == 3


def test_dropped_patches_do_not_depend_on_how_the_batch_is_cut():
    keys = jax.random.split(jax.random.key(2), 6)
    numbered = jnp.broadcast_to(jnp.arange(49.0)[None, :, None], (6, 49, 1))
    whole = drop_patches(numbered, 0.5, keys)
    assert whole.shape == (6, 24, 1)
    halves = [drop_patches(numbered[cut], 0.5, keys[cut]) for cut in (slice(0, 3), slice(3, 6))]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    mesh = sharding.make_mesh(jax.devices()[:2])
    split = jax.device_put((numbered, keys), sharding.split_batch(mesh))
    np.testing.assert_array_equal(whole, jax.jit(lambda x, k: drop_patches(x, 0.5, k))(*split))


def test_configurations_survive_json():
    for config in PRESETS.values():
        assert CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_bad_configurations_are_named():
    with pytest.raises(ValueError, match="did you mean 'ViT-B-32'"):
        get_preset("ViT-B/32")
    with pytest.raises(ValueError, match=r"divisor of vision\.image_size"):
        dataclasses.replace(TINY.vision, patch_size=5)
    with pytest.raises(ValueError, match=r"divisor of text\.width"):
        dataclasses.replace(TINY.text, num_heads=3)
    with pytest.raises(ValueError, match="float16"):
        clip.build(TINY, compute_dtype="float16")
