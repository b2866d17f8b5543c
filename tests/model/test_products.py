"""The hand-written gradients against autodiff, their roundings, and what they keep for the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plip_jax.model.presets import get_preset
from plip_jax.model.products import attend, matmul
from plip_jax.model.transformer import Block, LayerNorm, causal_mask

BATCH, LENGTH, HEADS, HEAD_DIM = 3, 7, 2, 8
WIDTH = HEADS * HEAD_DIM


def normal(seed: int, *shape: int):
    return jax.random.normal(jax.random.key(seed), shape)


def relative(found, expected) -> float:
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


def plain_attention(qkv, mask):
    query, key, value = qkv[:, :, 0] * HEAD_DIM**-0.5, qkv[:, :, 1], qkv[:, :, 2]
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision="highest")
    scores = scores if mask is None else jnp.where(mask, scores, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value, precision="highest")


@pytest.mark.parametrize("kind", ["none", "causal", "per example"])
def test_attention_and_its_gradient_equal_autodiff(kind):
    segments = jnp.arange(LENGTH)[None] // jnp.array([2, 3, 7])[:, None]
    masks = {
        "none": None,
        "causal": causal_mask(LENGTH),
        "per example": (segments[:, None, :, None] == segments[:, None, None, :]) & causal_mask(LENGTH),
    }
    qkv, g = normal(0, BATCH, LENGTH, 3, HEADS, HEAD_DIM), normal(1, BATCH, LENGTH, HEADS, HEAD_DIM)
    found, pull = jax.vjp(lambda qkv: attend(qkv, masks[kind], "float32"), qkv)
    expected, plain_pull = jax.vjp(lambda qkv: plain_attention(qkv, masks[kind]), qkv)
    assert relative(found, expected) < 1e-6  # float32 sums of at most eight terms
    assert relative(pull(g)[0], plain_pull(g)[0]) < 1e-6
    rounded, rounded_pull = jax.vjp(lambda qkv: attend(qkv, masks[kind], "bfloat16"), qkv)
    # Operands carry 8 bits: 2^-9 each, over the three products of a path.
    assert 1e-4 < relative(rounded, expected) < 1e-2
    assert 1e-4 < relative(rounded_pull(g)[0], plain_pull(g)[0]) < 1e-2


@pytest.mark.parametrize("in_dim", [24, 512])  # one block of kept columns, and two
def test_several_kernels_are_one_product_and_their_gradients_equal_autodiff(in_dim):
    x, kernels = normal(0, BATCH, LENGTH, in_dim), (normal(1, in_dim, 6), normal(2, in_dim, 10))
    g = normal(3, BATCH, LENGTH, 16)
    found, pull = jax.vjp(lambda x, *kernels: matmul(x, *kernels, compute_dtype="float32"), x, *kernels)
    plain = lambda x, *kernels: jnp.matmul(x, jnp.concatenate(kernels, 1), precision="highest")  # noqa: E731 # one line
    expected, plain_pull = jax.vjp(plain, x, *kernels)
    assert relative(found, expected) < 1e-6
    for ours, theirs in zip(pull(g), plain_pull(g), strict=True):
        assert relative(ours, theirs) < 1e-6


def test_under_bfloat16_only_the_operands_are_rounded():
    x, kernel, g = normal(0, BATCH, LENGTH, 512), normal(1, 512, 10), normal(3, BATCH, LENGTH, 10)
    found, pull = jax.vjp(lambda x, kernel: matmul(x, kernel, compute_dtype="bfloat16"), x, kernel)
    x, kernel, g64 = (np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x, kernel, g))
    dx, dkernel = pull(g)
    # Exact products of the rounded operands, to float32's rounding: a result in bfloat16 would be 2e-3 off.
    assert relative(found, x @ kernel) < 1e-6
    assert relative(dx, g64 @ kernel.T) < 1e-6
    assert relative(dkernel, np.einsum("blk,blm->km", x, g64)) < 1e-6
    assert found.dtype == dx.dtype == dkernel.dtype == jnp.float32


def test_layer_norm_gradient_equals_autodiff():
    x, scale, bias, g = normal(0, 3, 5, WIDTH) * 3 + 1, normal(1, WIDTH), normal(2, WIDTH), normal(3, 3, 5, WIDTH)

    def ours(x, scale, bias):
        norm = LayerNorm(WIDTH, 1e-5)
        norm.scale[...], norm.bias[...] = scale, bias
        return norm(x)

    def plain(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias

    found, pull = jax.vjp(ours, x, scale, bias)
    expected, plain_pull = jax.vjp(plain, x, scale, bias)
    assert relative(found, expected) < 1e-6
    for mine, theirs in zip(pull(g), plain_pull(g), strict=True):
        assert relative(mine, theirs) < 1e-5  # the project's bound for a gradient


def test_attention_keeps_nothing_of_length_by_length():
    qkv = jnp.zeros((1, 64, 3, HEADS, HEAD_DIM))
    kept = jax.eval_shape(lambda qkv: jax.vjp(lambda qkv: attend(qkv, None, "bfloat16"), qkv)[1], qkv)
    # Query, key and value in two bytes each, and nothing else.
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept)) == 2 * qkv.size


def test_a_block_keeps_twenty_bytes_a_feature_and_six_a_hidden_feature():
    config = get_preset("tiny")
    block = Block(config.text, config, compute_dtype="bfloat16", rngs=nnx.Rngs(params=0))
    graphdef, params = nnx.split(block)
    x = jnp.zeros((16, 16, config.text.width))
    kept = jax.eval_shape(lambda p, x: jax.vjp(lambda p, x: nnx.merge(graphdef, p)(x, None), p, x)[1], params, x)
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept) if leaf.size >= x.size]
    # float32: the stream before each norm, the hidden features. Two bytes: the operand of query-key-value and its three
    # results, the operands of the output map and of both linear maps of the perceptron.
    hidden = x.size * config.text.mlp_dim // config.text.width
    assert sum(sizes) == (2 * 4 + 6 * 2) * x.size + (4 + 2) * hidden
