"""The Transformer both towers are made of: linear layer, norm, attention, perceptron, block, stack of blocks.

Parameters and the residual stream are float32; the matrix products take operands in the compute dtype and return
float32; norms and softmax are float32. The block is the pre-norm residual block of CLIP (Radford et al. 2021,
https://github.com/openai/CLIP, MIT).
"""

import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from plip_jax.model.presets import Activation, CLIPConfig, TextConfig, VisionConfig
from plip_jax.model.products import attend, matmul
from plip_jax.model.vit_config import ViTConfig


def normal_param(rngs: nnx.Rngs, shape: tuple[int, ...], stddev: float) -> nnx.Param:
    """A float32 parameter drawn from a normal distribution of mean 0."""
    return nnx.Param(jnp.float32(stddev) * jax.random.normal(rngs.params(), shape, jnp.float32))


class Linear(nnx.Module):
    """Affine map over the last axis; ``kernel`` is [in, out]."""

    def __init__(self, in_dim: int, out_dim: int, *, stddev: float, compute_dtype: str, use_bias: bool, rngs: nnx.Rngs):
        self.compute_dtype = compute_dtype
        self.use_bias = use_bias
        self.kernel = normal_param(rngs, (in_dim, out_dim), stddev)
        if use_bias:
            self.bias = nnx.Param(jnp.zeros((out_dim,), jnp.float32))

    def __call__(self, x: Float[Array, "*batch in_dim"]) -> Float[Array, "*batch out_dim"]:
        """Apply the map; float32 out."""
        y = matmul(x, self.kernel[...], compute_dtype=self.compute_dtype)
        return y + self.bias[...] if self.use_bias else y


class LayerNorm(nnx.Module):
    """Layer norm in float32 (Ba et al. 2016), biased variance, as PyTorch computes it."""

    def __init__(self, dim: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """Normalise the last axis; float32 out."""
        return cast(Array, _layer_norm(x.astype(jnp.float32), self.scale[...], self.bias[...], self.eps))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(x: Array, scale: Array, bias: Array, eps: float) -> tuple[Array, Any]:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    inverse_deviation = jax.lax.rsqrt(variance + eps)
    # Autodiff would keep three arrays of x's size; the block keeps x itself in any case.
    return (x - mean) * inverse_deviation * scale + bias, (x, mean, inverse_deviation, scale)


def _layer_norm_backward(eps: float, residuals: Any, g: Any) -> tuple[Array, Array, Array]:
    # With n = (x - mean) / deviation and h = g * scale: dx = (h - mean(h) - n * mean(h * n)) / deviation.
    x, mean, inverse_deviation, scale = residuals
    normalised = (x - mean) * inverse_deviation
    rows = tuple(range(x.ndim - 1))
    h = g * scale
    along = jnp.mean(h * normalised, axis=-1, keepdims=True)
    dx = inverse_deviation * (h - jnp.mean(h, axis=-1, keepdims=True) - normalised * along)
    return dx, jnp.sum(g * normalised, axis=rows), jnp.sum(g, axis=rows)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class Attention(nnx.Module):
    """Multi-head self-attention with scaled dot products; the softmax is float32."""

    def __init__(self, width: int, num_heads: int, *, out_stddev: float, compute_dtype: str, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.compute_dtype = compute_dtype

        def linear(stddev: float) -> Linear:
            return Linear(width, width, stddev=stddev, compute_dtype=compute_dtype, use_bias=True, rngs=rngs)

        self.query = linear(width**-0.5)
        self.key = linear(width**-0.5)
        self.value = linear(width**-0.5)
        self.out = linear(out_stddev)

    def __call__(
        self, x: Float[Array, "batch length width"], mask: Bool[Array, "#batch 1 length length"] | None
    ) -> Float[Array, "batch length width"]:
        """Attend; ``mask`` is true where a query (second to last axis) may look at a key (last axis)."""
        batch, length, width = x.shape
        # One product for the three projections: their rows are the same.
        projections = (self.query, self.key, self.value)
        kernels = [projection.kernel[...] for projection in projections]
        bias = jnp.concatenate([projection.bias[...] for projection in projections])
        qkv = matmul(x, *kernels, compute_dtype=self.compute_dtype) + bias
        qkv = qkv.reshape(batch, length, 3, self.num_heads, width // self.num_heads)
        return self.out(attend(qkv, mask, self.compute_dtype).reshape(batch, length, width))


def quick_gelu(x: Array) -> Array:
    """OpenAI's activation, x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": functools.partial(jax.nn.gelu, approximate=False)}
"""`plip_jax.model.presets.Activation` -> function, elementwise."""


class MLP(nnx.Module):
    """Two-layer perceptron."""

    def __init__(
        self, width: int, mlp_dim: int, activation: Activation, *, out_stddev: float, compute_dtype: str, rngs: nnx.Rngs
    ):
        self.activation = activation
        common: dict[str, Any] = {"compute_dtype": compute_dtype, "use_bias": True, "rngs": rngs}
        self.fc1 = Linear(width, mlp_dim, stddev=(2 * width) ** -0.5, **common)
        self.fc2 = Linear(mlp_dim, width, stddev=out_stddev, **common)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Expand, activate, contract."""
        # Recomputed in the backward pass from the hidden features: autodiff would keep three arrays of their size.
        activate = jax.checkpoint(ACTIVATIONS[self.activation], prevent_cse=False)
        return self.fc2(activate(self.fc1(x)))


class Block(nnx.Module):
    """Pre-norm residual block: attention, then perceptron.

    From-scratch initialisation is OpenAI's ``CLIP.initialize_parameters``; the tower's depth scales what is
    added to the residual stream.
    """

    def __init__(
        self, tower: VisionConfig | TextConfig, config: CLIPConfig | ViTConfig, *, compute_dtype: str, rngs: nnx.Rngs
    ):
        width = tower.width
        out_stddev = width**-0.5 * (2 * tower.depth) ** -0.5
        common: dict[str, Any] = {"out_stddev": out_stddev, "compute_dtype": compute_dtype, "rngs": rngs}
        self.norm1 = LayerNorm(width, config.norm_eps)
        self.attention = Attention(width, tower.num_heads, **common)
        self.norm2 = LayerNorm(width, config.norm_eps)
        self.mlp = MLP(width, tower.mlp_dim, config.activation, **common)

    def __call__(
        self, x: Float[Array, "batch length width"], mask: Bool[Array, "#batch 1 length length"] | None
    ) -> Float[Array, "batch length width"]:
        """Run the block; ``mask`` as in `Attention`."""
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Stack(nnx.Module):
    """A tower's blocks with their parameters stacked on axis 0, run by ``lax.scan``.

    One traced block instead of one for each layer, so that the time to compile does not grow with the depth.
    """

    def __init__(
        self,
        tower: VisionConfig | TextConfig,
        config: CLIPConfig | ViTConfig,
        *,
        compute_dtype: str,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        self.remat = remat

        def make_block(key: Array) -> Block:
            return Block(tower, config, compute_dtype=compute_dtype, rngs=nnx.Rngs(params=key))

        graphdef, _ = nnx.split(nnx.eval_shape(lambda: make_block(jax.random.key(0))))
        keys = jax.random.split(rngs.params(), tower.depth)
        self.stacked = nnx.merge(graphdef, jax.vmap(lambda key: nnx.state(make_block(key)))(keys))

    def __call__(
        self, x: Float[Array, "batch length width"], mask: Bool[Array, "#batch 1 length length"] | None = None
    ) -> Float[Array, "batch length width"]:
        """Run the blocks in order; ``mask`` as in `Attention`."""
        graphdef, layers = nnx.split(self.stacked)

        def run_block(carry: Array, layer: Any) -> tuple[Array, None]:
            return nnx.merge(graphdef, layer)(carry, mask), None

        return jax.lax.scan(jax.checkpoint(run_block) if self.remat else run_block, x, layers)[0]


def causal_mask(length: int) -> Bool[Array, "1 1 length length"]:
    """True where a token may look: at itself and before."""
    return jnp.tril(jnp.ones((1, 1, length, length), jnp.bool_))


def default_logit_scale() -> float:
    """ln(1 / 0.07): the temperature CLIP starts from (Radford et al. 2021, section 2.5)."""
    return math.log(1 / 0.07)
