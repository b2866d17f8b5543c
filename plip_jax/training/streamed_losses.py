"""The losses over all pairs of a global batch, computed without the batch x batch matrix.

Each is a function with a gradient of its own: the backward pass works the logits of a tile out again instead of keeping
them. `plip_jax.training.ring` visits the tiles; what is here is the mathematics of one tile. Features are normalised
tile by tile, so that no normalised copy of a batch is held, and all products are float32 at the highest precision.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from plip_jax.training.ring import Side, visit_pairs

Features = Float[Array, "batch dim"]
"""Of images or texts; row i of both is a pair."""
Scalar = Float[Array, ""]
PerExample = Float[Array, " batch"]
GroupIds = Int[Array, "batch keys"]
"""Pairs with an equal number in any column are never pushed apart."""

# Below every logit, and finite: the difference of two infinities would be no number.
_LOWEST = float(jnp.finfo(jnp.float32).min)
_NOBODY = jnp.iinfo(jnp.int32).max


@dataclasses.dataclass(frozen=True)
class Streaming:
    """How a loss is computed; hashable, for jax to know it as static.

    Attributes:
        label_smoothing: of the softmax losses.
        chunk_size: longest side of a tile of logits.
        mesh: whose devices share the batch; None for one device.
    """

    label_smoothing: float
    chunk_size: int
    mesh: Mesh | None

    def visit(self, tile: Any, start: Any, shared: Side, rows: Side, columns: Side) -> tuple[Side, Side]:
        """`visit_pairs` with this chunk size and mesh."""
        return visit_pairs(tile, start, shared, rows, columns, chunk_size=self.chunk_size, mesh=self.mesh)


def l2_normalize(features: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Divide by the Euclidean norm over the last axis, in float32, without an epsilon as CLIP does."""
    features = features.astype(jnp.float32)
    return features * jax.lax.rsqrt(jnp.sum(jnp.square(features), axis=-1, keepdims=True))


def share_a_group(row_groups: Int[Array, "rows keys"], column_groups: Int[Array, "columns keys"]) -> Bool[Array, "..."]:
    """Whether a row and a column agree in any key, [rows, columns]."""
    # A reduction over the last axis of [rows, columns, keys] would not be vectorised; there are one or two keys.
    keys = range(row_groups.shape[1])
    return functools.reduce(jnp.logical_or, [row_groups[:, k, None] == column_groups[None, :, k] for k in keys])


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Product over axis ``contract[0]`` of a and ``contract[1]`` of b."""
    # The highest precision: at a scale of 100 a TPU's default rounding puts the logits off by 0.06.
    return jax.lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((), ())), precision=jax.lax.Precision.HIGHEST)


def _masked_logits(shared: Side, row: Side, column: Side) -> tuple[Array, Array, Array]:
    """One tile of logits, which of them are a pair's own, and which may be compared; the others are -inf."""
    cosine = _dot(l2_normalize(row["features"]), l2_normalize(column["features"]), (1, 1))
    logits = shared["scale"] * cosine + shared.get("bias", 0.0)
    real = (row["number"] > 0)[:, None] & (column["number"] > 0)[None, :]
    own = (row["number"][:, None] == column["number"][None, :]) & real
    allowed = real
    if "groups" in row:
        allowed &= own | ~share_a_group(row["groups"], column["groups"])
    return jnp.where(allowed, logits, -jnp.inf), own, allowed


def _across(vector: Array, axis: int) -> Array:
    """A vector of rows (axis 1 is reduced) or of columns (axis 0) beside its tile."""
    return jnp.expand_dims(vector, axis)


def _nearest_so_far(state: Side, logits: Array, highest: Array, number: Array, axis: int) -> Array:
    """The number of the first candidate that has the highest logit so far, as argmax gives it."""
    numbers = jnp.where(logits == _across(highest, axis), _across(number, 1 - axis), _NOBODY)
    before = jnp.where(state["highest"] == highest, state["nearest"], _NOBODY)
    return jnp.minimum(before, jnp.min(numbers, axis=axis))


# The softmax losses.


def softmax_losses(
    how: Streaming, image_features: Features, text_features: Features, scale: Scalar, group_ids: GroupIds | None
) -> tuple[PerExample, PerExample, PerExample, PerExample]:
    """Cross-entropy of each image over the texts and of each text over the images.

    With z = scale * cos(image, text), the candidates of an example those that share no group with it, and itself:
    loss_i = logsumexp_j z_ij - (1 - smoothing) z_ii - smoothing * mean_j z_ij (torch's ``cross_entropy``).

    Args:
        how: label smoothing, size of the tiles, mesh.
        image_features: [batch, dim], not normalised.
        text_features: the same.
        scale: of the logits.
        group_ids: [batch, keys]; None where every pair is its own group.

    Returns:
        The losses of the images and of the texts, and for each 1.0 where its own partner is nearest, without gradient.
    """
    return _softmax_losses(how, image_features, text_features, scale, group_ids)


def _softmax_value(how: Streaming, *inputs: Any) -> Any:
    return _softmax_forward(how, *inputs)[0]


def _softmax_forward(
    how: Streaming, image_features: Array, text_features: Array, scale: Array, group_ids: Array | None
) -> tuple[Any, Any]:
    def side(count: tuple[int, ...]) -> Side:
        zeros = jnp.zeros(count, jnp.float32)
        state = {"highest": zeros + _LOWEST, "total": zeros, "own": zeros, "nearest": zeros.astype(jnp.int32)}
        return state | ({"sum": zeros, "candidates": zeros} if how.label_smoothing else {})

    def tile(shared: Side, row: Side, column: Side, row_state: Side, column_state: Side) -> tuple[Side, Side]:
        logits, own, allowed = _masked_logits(shared, row, column)
        return (
            _online_softmax(row_state, logits, own, allowed, column["number"], 1),
            _online_softmax(column_state, logits, own, allowed, row["number"], 0),
        )

    images, texts = _sides(image_features, text_features, group_ids)
    states = how.visit(tile, lambda shape: (side(shape), side(shape)), {"scale": scale}, images, texts)
    outputs = [_cross_entropy(state, how.label_smoothing) for state in states]
    numbers = jnp.arange(1, len(image_features) + 1)
    outputs += [(state["nearest"] == numbers).astype(jnp.float32) for state in states]
    return tuple(outputs), (image_features, text_features, scale, group_ids, *states)


def _sides(image_features: Array, text_features: Array, group_ids: Array | None) -> tuple[Side, Side]:
    groups = {} if group_ids is None else {"groups": group_ids}
    return {"features": image_features, **groups}, {"features": text_features, **groups}


def _online_softmax(state: Side, logits: Array, own: Array, allowed: Array, number: Array, axis: int) -> Side:
    """Take one tile into the sums of exp(z - highest) over an axis (Milakov and Gimelshein 2018, arXiv:1805.02867)."""
    highest = jnp.maximum(state["highest"], jnp.max(logits, axis=axis))
    new = {
        "highest": highest,
        "total": state["total"] * jnp.exp(state["highest"] - highest)
        + jnp.sum(jnp.exp(logits - _across(highest, axis)), axis=axis),
        "own": state["own"] + jnp.sum(jnp.where(own, logits, 0.0), axis=axis),
        "nearest": _nearest_so_far(state, logits, highest, number, axis),
    }
    if "sum" in state:
        new["sum"] = state["sum"] + jnp.sum(jnp.where(allowed, logits, 0.0), axis=axis)
        new["candidates"] = state["candidates"] + jnp.sum(allowed, axis=axis, dtype=jnp.float32)
    return new


def _cross_entropy(state: Side, smoothing: float) -> Array:
    # The highest logit is subtracted before the logarithm is added: at logits of 100 a float32 has steps of 8e-6.
    losses = (1 - smoothing) * (state["highest"] - state["own"]) + jnp.log(state["total"])
    if smoothing:
        losses += smoothing * (state["highest"] - state["sum"] / state["candidates"])
    return losses


def _softmax_backward(how: Streaming, kept: Any, cotangents: Any) -> tuple[Any, ...]:
    """dz_ij = w_i (p_ij - y_ij) over rows and the same over columns, with y the smoothed labels."""
    image_features, text_features, scale, group_ids, *states = kept
    smoothing = how.label_smoothing

    def weights(state: Side, weight: Array) -> Side:
        side = {"highest": state["highest"], "share": weight / state["total"], "own": (1 - smoothing) * weight}
        return side | ({"all": smoothing * weight / state["candidates"]} if smoothing else {})

    def tile(shared: Side, row: Side, column: Side, row_state: Side, column_state: Side) -> tuple[Side, Side]:
        logits, own, allowed = _masked_logits(shared, row, column)
        gradient = jnp.where(own, -_across(row["own"], 1) - _across(column["own"], 0), 0.0)
        if smoothing:
            gradient -= jnp.where(allowed, _across(row["all"], 1) + _across(column["all"], 0), 0.0)
        # The largest terms first: a well learned pair's p is near its label, and what is left must not be rounded off.
        for side, axis in ((row, 1), (column, 0)):
            gradient += jnp.exp(logits - _across(side["highest"], axis)) * _across(side["share"], axis)
        return _add_products(gradient, row, column, row_state, column_state)

    images, texts = _sides(image_features, text_features, group_ids)
    images |= weights(states[0], cotangents[0])
    texts |= weights(states[1], cotangents[1])
    start = _zero_gradients(image_features.shape[1])
    of_images, of_texts = how.visit(tile, start, {"scale": scale}, images, texts)
    of_image, of_scale = _through_norm(image_features, of_images["gradient"], scale)
    of_text, _ = _through_norm(text_features, of_texts["gradient"], scale)
    return of_image, of_text, of_scale, None


def _through_norm(features: Array, gradient: Array, scale: Array) -> tuple[Array, Array]:
    """The gradients of features and scale, from that of the normalised features at a scale of one."""
    normalised, pull_back = jax.vjp(l2_normalize, features)
    # sum_ij dz_ij cos_ij, the sum over j being in the gradient already.
    return pull_back(scale * gradient)[0], jnp.sum(normalised * gradient)


def _zero_gradients(dim: int) -> Any:
    def start(shape: tuple[int, ...]) -> tuple[Side, Side]:
        zeros = {"gradient": jnp.zeros((*shape, dim), jnp.float32)}
        return zeros, zeros

    return start


def _add_products(gradient: Array, row: Side, column: Side, row_state: Side, column_state: Side) -> tuple[Side, Side]:
    """Send a tile's gradient to the normalised features of its rows and columns, at a scale of one."""
    return (
        row_state | {"gradient": row_state["gradient"] + _dot(gradient, l2_normalize(column["features"]), (1, 0))},
        column_state | {"gradient": column_state["gradient"] + _dot(gradient, l2_normalize(row["features"]), (0, 0))},
    )


_softmax_losses: Any = jax.custom_vjp(_softmax_value, nondiff_argnums=(0,))
_softmax_losses.defvjp(_softmax_forward, _softmax_backward)


# SigLIP's.


def sigmoid_loss(
    how: Streaming,
    image_features: Features,
    text_features: Features,
    scale: Scalar,
    bias: Scalar,
    group_ids: GroupIds | None,
) -> tuple[Scalar, PerExample, PerExample]:
    """-(1 / batch) sum_ij log sigmoid(y_ij (scale * cos(image_i, text_j) + bias)), y = 1 where i = j and -1 elsewhere.

    Zhai et al. 2023 (https://arxiv.org/abs/2303.15343), equation 2. Others that share a group are left out of the sum.

    Args:
        how: size of the tiles, mesh.
        image_features: [batch, dim], not normalised.
        text_features: the same.
        scale: of the cosines.
        bias: added to the scaled cosines.
        group_ids: [batch, keys]; None where every pair is its own group.

    Returns:
        The loss, and 1.0 for each image, and then for each text, whose own partner is nearest, without gradient.
    """
    return _sigmoid_loss(how, image_features, text_features, scale, bias, group_ids)


def _sigmoid_visit(
    how: Streaming,
    image_features: Array,
    text_features: Array,
    scale: Array,
    bias: Array,
    group_ids: Array | None,
    with_gradients: bool,
) -> tuple[Any, Any]:
    """The loss, and with it the gradients: unlike a softmax's, they need no sums over the batch first."""
    batch, dim = image_features.shape

    def start(shape: tuple[int, ...]) -> tuple[Side, Side]:
        zeros = jnp.zeros(shape, jnp.float32)
        both = {"highest": zeros + _LOWEST, "nearest": zeros.astype(jnp.int32)}
        rows: Side = both | {"loss": zeros}
        if not with_gradients:
            return rows, both
        image_state, text_state = _zero_gradients(dim)(shape)
        return rows | image_state | {"bias": zeros}, both | text_state

    def tile(shared: Side, row: Side, column: Side, row_state: Side, column_state: Side) -> tuple[Side, Side]:
        logits, own, _ = _masked_logits(shared, row, column)
        rows, columns = row_state, column_state
        # Where a logit is -inf, loss and gradient are exactly zero.
        loss = jnp.sum(jax.nn.softplus(jnp.where(own, -logits, logits)), axis=1)
        rows |= _highest(row_state, logits, column["number"], 1) | {"loss": row_state["loss"] + loss}
        columns |= _highest(column_state, logits, row["number"], 0)
        if with_gradients:
            gradient = jnp.where(own, -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))
            rows |= {"bias": row_state["bias"] + jnp.sum(gradient, axis=1)}
            rows, columns = _add_products(gradient, row, column, rows, columns)
        return rows, columns

    shared = {"scale": scale, "bias": bias}
    rows, columns = how.visit(tile, start, shared, *_sides(image_features, text_features, group_ids))
    numbers = jnp.arange(1, batch + 1)
    nearest = [(state["nearest"] == numbers).astype(jnp.float32) for state in (rows, columns)]
    outputs = (jnp.sum(rows["loss"]) / batch, *nearest)
    if not with_gradients:
        return outputs, None
    of_image, of_scale = _through_norm(image_features, rows["gradient"], scale)
    of_text, _ = _through_norm(text_features, columns["gradient"], scale)
    return outputs, (of_image, of_text, of_scale, jnp.sum(rows["bias"]))


def _highest(state: Side, logits: Array, number: Array, axis: int) -> Side:
    highest = jnp.maximum(state["highest"], jnp.max(logits, axis=axis))
    return {"highest": highest, "nearest": _nearest_so_far(state, logits, highest, number, axis)}


def _sigmoid_value(how: Streaming, *inputs: Any) -> Any:
    return _sigmoid_visit(how, *inputs, with_gradients=False)[0]


def _sigmoid_forward(how: Streaming, *inputs: Any) -> tuple[Any, Any]:
    return _sigmoid_visit(how, *inputs, with_gradients=True)


def _sigmoid_backward(how: Streaming, gradients: Any, cotangents: Any) -> tuple[Any, ...]:
    del how
    batch = gradients[0].shape[0]
    return (*((cotangents[0] / batch * gradient).astype(gradient.dtype) for gradient in gradients), None)


_sigmoid_loss: Any = jax.custom_vjp(_sigmoid_value, nondiff_argnums=(0,))
_sigmoid_loss.defvjp(_sigmoid_forward, _sigmoid_backward)
