"""The streamed losses equal their dense forms, in value and gradient, on one and eight devices, and hold no matrix."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plip_jax import sharding
from plip_jax.training.losses import LossConfig, get_loss, l2_normalize
from plip_jax.training.streamed_losses import Streaming, softmax_losses

BATCH, DIM = 48, 16
# Two keys: a caption and a post; some agree in one, some in none.
GROUPS = np.random.default_rng(3).integers(0, 30, (BATCH, 2)).astype(np.int32)


def mesh_of(devices: int):
    return sharding.make_mesh(jax.devices()[:devices]) if devices else None


def features(noise: float):
    """Images, and texts that are the more like theirs the less noise there is."""
    rng = np.random.default_rng(0)
    image, other = rng.normal(size=(2, BATCH, DIM)).astype(np.float32)
    return jnp.asarray(3 * image), jnp.asarray(image + noise * other)


def value_and_gradients(losses, image, text, params, groups):
    """Of each loss its value, metrics and gradients; one compilation for all of them."""

    def of(loss):
        return jax.value_and_grad(lambda *inputs: loss(*inputs, groups), argnums=(0, 1, 2), has_aux=True)

    outputs = jax.jit(lambda *inputs: [of(loss)(*inputs) for loss in losses])(image, text, params)
    return [(value, metrics, grads) for (value, metrics), grads in outputs]


def assert_equal(found, expected):
    (value, metrics, grads), (expected_value, expected_metrics, expected_grads) = found, expected
    # The project's bound for the value and, norm-relative, for the gradients; float32 on both sides.
    assert float(value) == pytest.approx(float(expected_value), rel=1e-5)
    assert metrics == expected_metrics
    for (path, one), other in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True):
        assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(other), jax.tree_util.keystr(path)
        assert np.linalg.norm(other) > 0, jax.tree_util.keystr(path)


# Devices (0: no mesh), chunk, smoothing, groups, scale, noise: tiles even, uneven, and one; little left to learn.
CASES = [
    (0, 48, 0.0, None, 14.0, 1.0),
    (1, 13, 0.1, GROUPS, 14.0, 1.0),
    (8, 4, 0.1, GROUPS, 14.0, 1.0),
    (8, 64, 0.0, GROUPS[:, 0], 100.0, 0.4),
]


@pytest.mark.parametrize(("devices", "chunk_size", "smoothing", "groups", "scale", "noise"), CASES)
def test_softmax_losses_equal_the_dense_one(devices, chunk_size, smoothing, groups, scale, noise):
    image, text = features(noise)
    groups = None if groups is None else jnp.asarray(groups)
    params = {"logit_scale": jnp.float32(math.log(scale))}
    dense = get_loss(LossConfig("contrastive", smoothing))
    ring = get_loss(LossConfig("contrastive_ring", smoothing, chunk_size), mesh_of(devices))
    assert_equal(*value_and_gradients([ring, dense], image, text, params, groups))


def dense_sigmoid_loss(image, text, params, groups):
    """Zhai et al. 2023, algorithm 1, with the matrix."""
    cosine = jnp.matmul(l2_normalize(image), l2_normalize(text).T, precision="highest")
    logits = jnp.exp(params["logit_scale"]) * cosine + params["logit_bias"]
    labels = 2 * jnp.eye(BATCH) - 1
    together = jnp.zeros((BATCH, BATCH), bool)
    if groups is not None:
        together = (groups[:, None] == groups[None]).reshape(BATCH, BATCH, -1).any(-1) & (labels < 0)
    logits_of_candidates = jnp.where(together, -jnp.inf, logits)
    metrics = {
        "image_to_text_accuracy": jnp.mean(logits_of_candidates.argmax(1) == jnp.arange(BATCH), dtype=jnp.float32),
        "text_to_image_accuracy": jnp.mean(logits_of_candidates.argmax(0) == jnp.arange(BATCH), dtype=jnp.float32),
    }
    return -jnp.sum(jnp.where(together, 0.0, jax.nn.log_sigmoid(labels * logits))) / BATCH, metrics


@pytest.mark.parametrize(("devices", "chunk_size", "groups"), [(0, 13, GROUPS), (8, 4, None)])
def test_sigmoid_loss_equals_the_dense_one(devices, chunk_size, groups):
    image, text = features(1.0)
    groups = None if groups is None else jnp.asarray(groups)
    params = {"logit_scale": jnp.float32(math.log(12.0)), "logit_bias": jnp.float32(-7.0)}
    streamed = get_loss(LossConfig("siglip", chunk_size=chunk_size), mesh_of(devices))
    found, expected = value_and_gradients([streamed, dense_sigmoid_loss], image, text, params, groups)
    assert_equal(found, expected)
    # Without gradients another program runs.
    value, metrics = jax.jit(streamed)(image, text, params, groups)
    assert float(value) == pytest.approx(float(found[0]), rel=1e-6)  # float32 rounding
    assert metrics == found[1]


def test_each_example_has_its_own_weight_in_the_gradient():
    image, text = features(1.0)
    weights = jnp.asarray(np.random.default_rng(5).normal(size=(2, BATCH)), jnp.float32)

    def streamed(image, text):
        losses = softmax_losses(Streaming(0.0, 13, mesh_of(8)), image, text, jnp.float32(14.0), None)
        return jnp.vdot(weights[0], losses[0]) + jnp.vdot(weights[1], losses[1])

    def dense(image, text):
        logits = 14 * jnp.matmul(l2_normalize(image), l2_normalize(text).T, precision="highest")
        own = jnp.diagonal(logits)
        rows, columns = (jax.nn.logsumexp(logits, axis=axis) - own for axis in (1, 0))
        return jnp.vdot(weights[0], rows) + jnp.vdot(weights[1], columns)

    found, expected = jax.jit(lambda *sides: [jax.grad(of, (0, 1))(*sides) for of in (streamed, dense)])(image, text)
    for one, other in zip(found, expected, strict=True):
        assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(other)  # the project's bound


def test_equal_captions_are_counted_as_argmax_counts_them():
    # Every caption twice, in other tiles: of two equal logits the first is the nearest.
    image = jnp.eye(8)[jnp.asarray([0, 1, 2, 3, 0, 1, 2, 3])]
    params = {"logit_scale": jnp.float32(1.0), "logit_bias": jnp.float32(0.0)}
    for name in ("contrastive", "contrastive_ring", "siglip"):
        _, metrics = jax.jit(get_loss(LossConfig(name, chunk_size=3)))(image, image, params)
        assert (metrics["image_to_text_accuracy"], metrics["text_to_image_accuracy"]) == (0.5, 0.5), name


def test_one_group_leaves_nothing_to_learn_and_no_infinity():
    image, text = features(1.0)
    params = {"logit_scale": jnp.float32(math.log(100.0))}
    loss = get_loss(LossConfig("contrastive_ring", label_smoothing=0.1, chunk_size=13))
    [(value, _, grads)] = value_and_gradients([loss], image, text, params, jnp.zeros(BATCH, jnp.int32))
    assert float(value) == pytest.approx(0.0, abs=1e-5)  # a float32 step at logits of 100
    assert all(np.all(np.abs(leaf) < 1e-5) for leaf in jax.tree.leaves(grads))  # the same


def largest_array(jaxpr) -> int:
    """Elements of the largest array a program computes, of those inside its loops and on one device too."""
    sizes = [math.prod(v.aval.shape) for equation in jaxpr.eqns for v in equation.outvars if hasattr(v.aval, "shape")]
    inner = [leaf for equation in jaxpr.eqns for leaf in jax.tree.leaves(list(equation.params.values()))]
    return max([0, *sizes, *(largest_array(getattr(p, "jaxpr", p)) for p in inner if hasattr(p, "eqns"))])


@pytest.mark.parametrize("devices", [0, 8])
@pytest.mark.parametrize("name", ["contrastive", "contrastive_ring", "siglip"])
def test_no_matrix_of_pairs_is_ever_there(name, devices):
    batch, dim = 2048, 4
    side = jax.ShapeDtypeStruct((batch, dim), jnp.float32)
    params = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in ("logit_scale", "logit_bias")}
    groups = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
    loss = get_loss(LossConfig(name, chunk_size=64), mesh_of(devices))
    program = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(side, side, params, groups)
    # The features themselves are the largest; a row of tiles, 64 x 2048, would be found too.
    expected = batch * batch if name == "contrastive" else batch * dim
    assert largest_array(program.jaxpr) == expected
