"""The table of losses and their mathematics: hand-computed values, PyTorch's, symmetry, groups, smoothing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plip_jax.training.losses import LossConfig, contrastive_loss, get_loss, l2_normalize

dense_loss = jax.jit(contrastive_loss)


def scale(value: float):
    return {"logit_scale": jnp.float32(math.log(value))}


def features(seed: int, batch: int = 8, dim: int = 16):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, dim)).astype(np.float32))


def test_two_orthogonal_pairs_by_hand():
    # Cosines are the identity, so each row is (s, 0): loss = log(1 + exp(-s)).
    loss, metrics = dense_loss(5 * jnp.eye(2), 3 * jnp.eye(2), scale(2.0))
    assert float(loss) == pytest.approx(math.log1p(math.exp(-2.0)), rel=1e-6)  # float32 rounding
    assert metrics["image_to_text_accuracy"] == metrics["text_to_image_accuracy"] == 1.0


def test_equal_features_give_log_of_the_batch():
    loss, _ = dense_loss(jnp.ones((8, 4)), jnp.ones((8, 4)), scale(100.0))
    assert float(loss) == pytest.approx(math.log(8), rel=1e-5)  # float32 steps of 8e-6 at logits of 100


def test_order_of_the_batch_and_side_change_nothing():
    image, text = features(0), features(1)
    order = jnp.asarray([3, 1, 7, 0, 2, 6, 5, 4])
    loss, _ = dense_loss(image, text, scale(14.0))
    assert float(dense_loss(image[order], text[order], scale(14.0))[0]) == pytest.approx(float(loss), rel=1e-6)
    assert float(dense_loss(text, image, scale(14.0))[0]) == pytest.approx(float(loss), rel=1e-6)


def test_accuracy_counts_nearest_own_caption():
    image = jnp.eye(4)
    text = jnp.eye(4)[jnp.asarray([0, 2, 1, 3])]
    _, metrics = dense_loss(image, text, scale(10.0))
    assert metrics["image_to_text_accuracy"] == 0.5


def test_pairs_of_one_group_are_never_pushed_apart():
    image, text = features(0), features(1)
    groups = jnp.asarray([0, 0, 1, 2, 3, 4, 5, 6])
    grads = jax.grad(lambda t: dense_loss(image, t, scale(10.0), groups)[0])(text)
    without = dense_loss(image, text, scale(10.0), jnp.arange(8))[0]
    assert float(without) == pytest.approx(float(dense_loss(image, text, scale(10.0))[0]), rel=1e-6)
    assert np.all(np.isfinite(grads))
    # By hand in numpy: the pair (0, 1) and (1, 0) are taken out of both sums.
    a, b = np.asarray(l2_normalize(image), np.float64), np.asarray(l2_normalize(text), np.float64)
    logits = 10.0 * a @ b.T
    logits[0, 1] = logits[1, 0] = -np.inf
    rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    expected = (rows.mean() + columns.mean()) / 2
    assert float(dense_loss(image, text, scale(10.0), groups)[0]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["contrastive", "contrastive_ring"])
def test_smoothed_labels_by_hand(name):
    # Cosines are the identity, so each row is (s, 0): loss = log(1 + exp(-s)) + smoothing * s / 2.
    loss = get_loss(LossConfig(name, label_smoothing=0.1))
    value, _ = jax.jit(loss)(5 * jnp.eye(2), 3 * jnp.eye(2), scale(2.0))
    expected = math.log1p(math.exp(-2.0)) + 0.1 * 2.0 / 2
    assert expected == pytest.approx(0.226928, abs=1e-6)  # the literal's last place
    assert float(value) == pytest.approx(expected, rel=1e-6)  # float32 rounding


def test_smoothing_is_that_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference (the test extra installs it)")
    image, text = features(0), features(1)
    groups = np.array([[0, 9], [0, 1], [1, 2], [2, 3], [3, 3], [4, 5], [5, 6], [6, 7]], np.int32)
    together = (groups[:, None] == groups[None]).any(-1) & ~np.eye(8, dtype=bool)
    logits = (
        10
        * torch.nn.functional.normalize(torch.tensor(np.asarray(image), dtype=torch.float64))
        @ (torch.nn.functional.normalize(torch.tensor(np.asarray(text), dtype=torch.float64)).T)
    )

    def cross_entropy(logits):
        # torch has no masked candidates: each row is handed over with its own candidates alone.
        rows = []
        for i in range(8):
            keep = np.flatnonzero(~together[i])
            target = torch.tensor([int(np.flatnonzero(keep == i)[0])])
            rows.append(torch.nn.functional.cross_entropy(logits[i, keep][None], target, label_smoothing=0.2))
        return torch.stack(rows).mean()

    expected = float((cross_entropy(logits) + cross_entropy(logits.T)) / 2)
    assert together.sum() == 4  # (0, 1) by the first column, (3, 4) by the second
    for name in ("contrastive", "contrastive_ring"):
        loss = jax.jit(get_loss(LossConfig(name, label_smoothing=0.2)))
        value, _ = loss(image, text, scale(10.0), jnp.asarray(groups))
        assert float(value) == pytest.approx(expected, rel=1e-6), name  # float32 rounding


def test_sigmoid_loss_by_hand():
    # Cosines are the identity: own pairs have s + b, the two others b. Over the batch of two, 2 of each / 2.
    loss = jax.jit(get_loss(LossConfig("siglip")))
    params = {"logit_scale": jnp.float32(math.log(3.0)), "logit_bias": jnp.float32(-1.0)}
    value, metrics = loss(5 * jnp.eye(2), 3 * jnp.eye(2), params)
    expected = math.log1p(math.exp(-2.0)) + math.log1p(math.exp(-1.0))
    assert expected == pytest.approx(0.440190, abs=1e-6)  # the literal's last place
    assert float(value) == pytest.approx(expected, rel=1e-6)  # float32 rounding
    assert metrics["image_to_text_accuracy"] == metrics["text_to_image_accuracy"] == 1.0
    alone, _ = loss(5 * jnp.eye(2), 3 * jnp.eye(2), params, jnp.asarray([7, 7]))
    assert float(alone) == pytest.approx(math.log1p(math.exp(-2.0)), rel=1e-6)  # the others are left out of the sum


def test_what_the_table_says_of_each_loss():
    contrastive, siglip = get_loss(LossConfig("contrastive_ring")), get_loss(LossConfig("siglip"))
    assert contrastive.init_params == {"logit_scale": pytest.approx(2.65926)}
    assert contrastive.logit_scale_range == (0.0, pytest.approx(4.60517))
    assert siglip.init_params == {"logit_scale": pytest.approx(2.302585), "logit_bias": -10.0}
    assert siglip.logit_scale_range is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "contrastve"}, "unknown loss 'contrastve'; known: contrastive, contrastive_ring, siglip"),
        ({"name": "contrastive", "label_smoothing": 1.0}, "label_smoothing: expected 0 or more and below 1, got 1.0"),
        ({"name": "siglip", "label_smoothing": 0.1}, "label_smoothing: expected 0, as 'siglip' has no distribution"),
        ({"name": "contrastive_ring", "chunk_size": 0}, "chunk_size: expected 1 or more, got 0"),
    ],
)
def test_a_wrong_configuration_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**settings)
