"""The losses, as functions of the global batch's features. Sees arrays, never a module.

A loss takes the image and text features of the whole batch and the loss parameters, and returns a scalar and
metrics. ``LOSSES`` is the table a configuration names them from.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LossOutput = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]


def l2_normalize(features: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Divide by the Euclidean norm over the last axis, in float32, without an epsilon as CLIP does."""
    features = features.astype(jnp.float32)
    return features * jax.lax.rsqrt(jnp.sum(jnp.square(features), axis=-1, keepdims=True))


def contrastive_loss(
    image_features: Float[Array, "batch dim"],
    text_features: Float[Array, "batch dim"],
    loss_params: Mapping[str, Array],
    group_ids: Int[Array, " batch"] | None = None,
) -> LossOutput:
    """Symmetric cross-entropy over cosine similarities (Radford et al. 2021, figure 3), every pair a negative.

    loss = (CE(s, i) + CE(s^T, i)) / 2 with s = exp(logit_scale) * cos(image, text), averaged over the batch.

    Args:
        image_features: [batch, dim], not normalised.
        text_features: [batch, dim], not normalised; row i belongs to image i.
        loss_params: ``logit_scale``, the scalar log of the inverse temperature.
        group_ids: pairs of one group are never negatives of each other; None means that every pair is its own group.

    Returns:
        The scalar loss, and metrics: the share of images whose own text is nearest (``image_to_text_accuracy``) and
        the reverse.
    """
    image_features, text_features = l2_normalize(image_features), l2_normalize(text_features)
    # The highest precision: at a scale of 100 a TPU's default rounding puts the logits off by 0.06.
    cosine = jnp.matmul(image_features, text_features.T, precision=jax.lax.Precision.HIGHEST)
    logits_per_image = jnp.exp(loss_params["logit_scale"]) * cosine
    targets = jnp.arange(logits_per_image.shape[0])
    if group_ids is not None:
        same_group = (group_ids[:, None] == group_ids[None, :]) & (targets[:, None] != targets[None, :])
        logits_per_image = jnp.where(same_group, -jnp.inf, logits_per_image)
    own = jnp.diagonal(logits_per_image)
    image_to_text = jax.nn.logsumexp(logits_per_image, axis=1) - own
    text_to_image = jax.nn.logsumexp(logits_per_image, axis=0) - own
    metrics = {
        "image_to_text_accuracy": jnp.mean(jnp.argmax(logits_per_image, axis=1) == targets, dtype=jnp.float32),
        "text_to_image_accuracy": jnp.mean(jnp.argmax(logits_per_image, axis=0) == targets, dtype=jnp.float32),
    }
    return (jnp.mean(image_to_text) + jnp.mean(text_to_image)) / 2, metrics


LOSSES: dict[str, Callable[..., LossOutput]] = {"contrastive": contrastive_loss}


def get_loss(name: str) -> Callable[..., LossOutput]:
    """Look a loss up by name; a ValueError lists the known ones."""
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; known: {', '.join(LOSSES)}")
    return LOSSES[name]
