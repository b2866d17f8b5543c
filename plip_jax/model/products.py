"""Matrix products with rounded operands and float32 results, and their gradients: linear maps and attention.

The gradients are written by hand where autodiff would round a weight gradient to the operands' dtype, keep several
copies of an activation, or hand XLA a product in a form it has no fast kernel for.
"""

import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Columns of a block of a kept operand. Transposing walks down a column, and at the 6 KiB between the rows of a B/32
# perceptron the rows evict each other from the second-level cache: 1600 x 3072 took 75 ms, and 6 ms in blocks of 256.
_BLOCK = 256


def matmul(x: Array, *kernels: Array, compute_dtype: str) -> Array:
    """``x @ kernel`` for each kernel, side by side, with operands rounded to the compute dtype and float32 results.

    Returning float32 and not the compute dtype costs nothing on matrix units, which accumulate in float32 anyway, and
    keeps the residual stream and the weight gradient unrounded. In float32 compute the precision is the highest one:
    the default on a TPU would round the operands to bfloat16. Several kernels make one product of the same rows.

    Args:
        x: [..., in], any float dtype.
        kernels: each [in, out], any float dtype; or all from `round_kernel`, which has no gradient.
        compute_dtype: name of the operands' dtype, ``"float32"`` or ``"bfloat16"``.

    Returns:
        [..., sum of out], float32.
    """
    if kernels[0].dtype == jnp.uint16:
        columns = _restore(jnp.concatenate(kernels))
        rows = _operand(x.reshape(-1, x.shape[-1]), compute_dtype)
        return _product(rows, _operand(columns, compute_dtype), transpose_b=True).reshape(*x.shape[:-1], -1)
    return cast(Array, _matmul(x, kernels, compute_dtype))


def round_kernel(kernel: Array, compute_dtype: str) -> Array:
    """Round a kernel once for many forward passes; `matmul` gives the same with it.

    On a CPU under bfloat16 a kernel of one axis of inputs becomes the bits of its transpose, uint16 [..., out, in]: XLA
    then takes a layer out of the stack as it is (see `_keep`), and the product is faster (12 % of a 1600 x 768 x 3072).
    A kernel that is rounded already is returned itself.
    """
    if kernel.dtype == jnp.uint16:
        return kernel
    rounded = kernel.astype(compute_dtype)
    if rounded.dtype != jnp.bfloat16 or jax.default_backend() != "cpu" or kernel.ndim > 3:
        return rounded
    return _keep(jnp.swapaxes(rounded, -1, -2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: Array, kernels: tuple[Array, ...], compute_dtype: str) -> Array:
    rows = _operand(x.reshape(-1, x.shape[-1]), compute_dtype)
    return _product(rows, _side_by_side(kernels, compute_dtype)).reshape(*x.shape[:-1], -1)


def _matmul_forward(x: Array, kernels: tuple[Array, ...], compute_dtype: str) -> tuple[Array, Any]:
    # The rounded operand is what the backward pass needs: half the memory under bfloat16. The empty array carries x's
    # shape and dtype.
    rows = x.reshape(-1, x.shape[-1]).astype(compute_dtype)
    return _matmul(x, kernels, compute_dtype), (_keep_rows(rows), kernels, jnp.zeros((*x.shape[:-1], 0), x.dtype))


def _matmul_backward(compute_dtype: str, residuals: Any, g: Any) -> tuple[Array, tuple[Array, ...]]:
    kept, kernels, like = residuals
    g = _operand(g.reshape(-1, g.shape[-1]), compute_dtype)
    dx = _product(g, _side_by_side(kernels, compute_dtype), transpose_b=True).reshape(*like.shape[:-1], -1)
    ends = [sum(kernel.shape[1] for kernel in kernels[: i + 1]) for i in range(len(kernels) - 1)]
    dkernels = jnp.split(_weight_gradient(kept, g, compute_dtype), ends, axis=1)
    return dx.astype(like.dtype), tuple(d.astype(kernel.dtype) for d, kernel in zip(dkernels, kernels, strict=True))


_matmul.defvjp(_matmul_forward, _matmul_backward)


def attend(
    qkv: Float[Array, "batch length 3 heads head_dim"],
    mask: Bool[Array, "#batch 1 length length"] | None,
    compute_dtype: str,
) -> Float[Array, "batch length heads head_dim"]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) with float32 scores and softmax.

    The backward pass keeps query, key and value, rounded, and computes the weights again, as FlashAttention does (Dao
    et al. 2022): nothing of length x length is kept.

    Args:
        qkv: query, key and value, float32, not scaled.
        mask: true where a query (second to last axis) may look at a key (last axis).
        compute_dtype: as in `matmul`.

    Returns:
        float32.
    """
    return cast(Array, _attend(qkv, mask, compute_dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(qkv: Array, mask: Array | None, compute_dtype: str) -> Array:
    query, key, value = (_operand(part, compute_dtype) for part in _split_heads(qkv, compute_dtype))
    return _merge_heads(_product(_operand(_weights(query, key, mask), compute_dtype), value))


def _attend_forward(qkv: Array, mask: Array | None, compute_dtype: str) -> tuple[Array, Any]:
    kept = tuple(_keep(part) for part in _split_heads(qkv, compute_dtype))
    return _attend(qkv, mask, compute_dtype), (kept, mask)


def _attend_backward(compute_dtype: str, residuals: Any, g: Any) -> tuple[Array, None]:
    kept, mask = residuals
    query, key, value = (_operand(_restore(part), compute_dtype) for part in kept)
    weights = _weights(query, key, mask)
    g = _operand(_heads_first(g), compute_dtype)
    dweights = _product(g, value, transpose_b=True)
    dscores = weights * (dweights - jnp.sum(weights * dweights, axis=-1, keepdims=True))
    dscores = _operand(dscores, compute_dtype)
    dvalue = _product(_transposed(_operand(weights, compute_dtype)), g)
    dquery = _product(dscores, key) * query.shape[-1] ** -0.5
    dkey = _product(_transposed(dscores), query)
    return jnp.stack([_merge_heads(part) for part in (dquery, dkey, dvalue)], axis=2), None


_attend.defvjp(_attend_forward, _attend_backward)


def _split_heads(qkv: Array, compute_dtype: str) -> tuple[Array, Array, Array]:
    """Scaled query, key and value, rounded, [batch, heads, length, head_dim]."""
    query, key, value = (
        _heads_first(part.astype(compute_dtype))
        for part in (qkv[:, :, 0] * qkv.shape[-1] ** -0.5, qkv[:, :, 1], qkv[:, :, 2])
    )
    return query, key, value


def _heads_first(x: Array) -> Array:
    # The reshapes of this and the two functions below change nothing but the layout XLA writes on the result: a plain
    # transpose is handed on as a strided view, for which its CPU backend has no bfloat16 product and widens.
    batch, length, heads, head_dim = x.shape
    x = x.reshape(batch, length, heads, 1, head_dim).transpose(0, 2, 1, 3, 4)
    return x.reshape(batch, heads, length, head_dim)


def _merge_heads(x: Array) -> Array:
    batch, heads, length, head_dim = x.shape
    x = x.reshape(batch, heads, length, 1, head_dim).transpose(0, 2, 1, 3, 4)
    return x.reshape(batch, length, heads, head_dim)


def _transposed(x: Array) -> Array:
    """Swap the last two of four axes."""
    *batch, rows, columns = x.shape
    x = x.reshape(*batch, 1, rows, columns).transpose(0, 1, 4, 2, 3)
    return x.reshape(*batch, columns, rows)


def _weights(query: Array, key: Array, mask: Array | None) -> Array:
    scores = _product(query, key, transpose_b=True)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


def _product(a: Array, b: Array, *, transpose_b: bool = False) -> Array:
    """Product over the last axis of ``a`` and the second to last of ``b``, or its last; axes before these are batch."""
    batch = tuple(range(a.ndim - 2))
    contract = ((a.ndim - 1,), (b.ndim - 1 if transpose_b else b.ndim - 2,))
    return _dot(a, b, (contract, (batch, batch)))


def _dot(a: Array, b: Array, dimensions: Any) -> Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _side_by_side(kernels: tuple[Array, ...], compute_dtype: str) -> Array:
    rounded = [_operand(kernel, compute_dtype) for kernel in kernels]
    return jnp.concatenate(rounded, axis=1) if len(rounded) > 1 else rounded[0]


def _operand(x: Array, compute_dtype: str) -> Array:
    """Round to the compute dtype."""
    x = x.astype(compute_dtype)
    # jaxlib before 0.8.2 lacks some layouts of bfloat16 x bfloat16 = float32 on the CPU (0.7.2 and 0.8.0 fail, and
    # 0.8.2 runs them). Widening the rounded operand changes no value.
    if jax.__version_info__ < (0, 8, 2) and jax.default_backend() == "cpu":
        return x.astype(jnp.float32)
    return x


def _keep(x: Array) -> Array:
    """A residual as it is kept for the backward pass; `_restore` undoes it.

    XLA's CPU backend has no bfloat16 dynamic slice: to write one layer's residual into the stack of ``lax.scan`` it
    would widen and round the whole stack, once for each layer. Integers of the same bits are written in place.
    """
    if x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        return jax.lax.bitcast_convert_type(x, jnp.uint16)
    return x


def _restore(kept: Array) -> Array:
    return jax.lax.bitcast_convert_type(kept, jnp.bfloat16) if kept.dtype == jnp.uint16 else kept


def _keep_rows(rows: Array) -> Array:
    """`_keep` for the rows of a linear map: under bfloat16 on a CPU in blocks of columns, [blocks, rows, columns]."""
    if rows.dtype != jnp.bfloat16 or jax.default_backend() != "cpu":
        return rows
    count, columns = rows.shape
    width = math.gcd(columns, _BLOCK)
    return _keep(rows.reshape(count, columns // width, width).transpose(1, 0, 2))


def _weight_gradient(kept: Array, g: Array, compute_dtype: str) -> Array:
    """The product over the rows of what `_keep_rows` kept and the rounded cotangent, float32."""
    if kept.ndim == 2:
        return _dot(_operand(kept, compute_dtype), g, (((0,), (0,)), ((), ())))
    # XLA's CPU backend has a bfloat16 product for a left operand summed over its last axis only, and would widen.
    blocks, rows, width = kept.shape
    transposed = _restore(kept).transpose(0, 2, 1).reshape(blocks * width, rows)
    return _product(_operand(transposed, compute_dtype), g)
