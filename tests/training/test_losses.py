"""The contrastive loss: hand-computed values, symmetry, groups, gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plip_jax.training.losses import LOSSES, contrastive_loss, get_loss, l2_normalize


def scale(value: float):
    return {"logit_scale": jnp.float32(math.log(value))}


def features(seed: int, batch: int = 8, dim: int = 16):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, dim)).astype(np.float32))


def test_two_orthogonal_pairs_by_hand():
    # Cosines are the identity, so each row is (s, 0): loss = log(1 + exp(-s)).
    loss, metrics = contrastive_loss(5 * jnp.eye(2), 3 * jnp.eye(2), scale(2.0))
    assert float(loss) == pytest.approx(math.log1p(math.exp(-2.0)), rel=1e-6)  # float32 rounding
    assert metrics["image_to_text_accuracy"] == metrics["text_to_image_accuracy"] == 1.0


def test_equal_features_give_log_of_the_batch():
    loss, _ = contrastive_loss(jnp.ones((8, 4)), jnp.ones((8, 4)), scale(100.0))
    assert float(loss) == pytest.approx(math.log(8), rel=1e-5)  # float32 steps of 8e-6 at logits of 100


def test_order_of_the_batch_and_side_change_nothing():
    image, text = features(0), features(1)
    order = jnp.asarray([3, 1, 7, 0, 2, 6, 5, 4])
    loss, _ = contrastive_loss(image, text, scale(14.0))
    assert float(contrastive_loss(image[order], text[order], scale(14.0))[0]) == pytest.approx(float(loss), rel=1e-6)
    assert float(contrastive_loss(text, image, scale(14.0))[0]) == pytest.approx(float(loss), rel=1e-6)


def test_accuracy_counts_nearest_own_caption():
    image = jnp.eye(4)
    text = jnp.eye(4)[jnp.asarray([0, 2, 1, 3])]
    _, metrics = contrastive_loss(image, text, scale(10.0))
    assert metrics["image_to_text_accuracy"] == 0.5


def test_pairs_of_one_group_are_never_pushed_apart():
    image, text = features(0), features(1)
    groups = jnp.asarray([0, 0, 1, 2, 3, 4, 5, 6])
    grads = jax.grad(lambda t: contrastive_loss(image, t, scale(10.0), groups)[0])(text)
    without = contrastive_loss(image, text, scale(10.0), jnp.arange(8))[0]
    assert float(without) == pytest.approx(float(contrastive_loss(image, text, scale(10.0))[0]), rel=1e-6)
    assert np.all(np.isfinite(grads))
    # By hand in numpy: the pair (0, 1) and (1, 0) are taken out of both sums.
    a, b = np.asarray(l2_normalize(image), np.float64), np.asarray(l2_normalize(text), np.float64)
    logits = 10.0 * a @ b.T
    logits[0, 1] = logits[1, 0] = -np.inf
    rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    expected = (rows.mean() + columns.mean()) / 2
    assert float(contrastive_loss(image, text, scale(10.0), groups)[0]) == pytest.approx(expected, rel=1e-6)


def test_unknown_loss_lists_the_known():
    with pytest.raises(ValueError, match="known: contrastive"):
        get_loss("contrastve")
    assert get_loss("contrastive") is LOSSES["contrastive"]
