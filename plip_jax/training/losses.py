"""The losses, as functions of the global batch's features. Sees arrays, never a module.

``LOSSES`` is the table a configuration names them from; `get_loss` makes of an entry what a step calls. The losses that
hold no batch x batch matrix are in `plip_jax.training.streamed_losses`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from plip_jax.training.streamed_losses import Streaming, l2_normalize, share_a_group, sigmoid_loss, softmax_losses

LossOutput = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]
"""The loss, a float32 scalar, and its metrics by name, float32 scalars too."""
GroupIds = Int[Array, " batch"] | Int[Array, "batch keys"]
"""Pairs with an equal number are never pushed apart: one number an example, or several."""

LOGIT_SCALE_RANGE = (0.0, math.log(100))
"""CLIP keeps the temperature's inverse at or below 100 (Radford et al. 2021, section 2.5) and PLIP at or above 1."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Which loss, and how it is computed.

    Attributes:
        name: a key of ``LOSSES``.
        label_smoothing: share of the label spread evenly over all candidates; 0 for none.
        chunk_size: longest side of a tile of logits, for the losses that hold no batch x batch matrix. A tile and what
            is worked out from it take a few times 4 * chunk_size^2 bytes a device.

    Raises:
        ValueError: a value out of range, a name that is not in the table, or smoothing where a loss has none.
    """

    name: str
    label_smoothing: float = 0.0
    chunk_size: int = 2048

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise ValueError(f"unknown loss {self.name!r}; known: {', '.join(LOSSES)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing: expected 0 or more and below 1, got {self.label_smoothing}")
        if self.label_smoothing and not LOSSES[self.name].smooths_labels:
            raise ValueError(
                f"loss.label_smoothing: expected 0, as {self.name!r} has no distribution over candidates to smooth, "
                f"got {self.label_smoothing}"
            )
        if self.chunk_size < 1:
            raise ValueError(f"loss.chunk_size: expected 1 or more, got {self.chunk_size}")


@dataclasses.dataclass(frozen=True, eq=False)  # jit wants a hash, and a mapping has none
class Loss:
    """A loss as a step sees it: called with (image_features, text_features, loss_params, group_ids=None).

    Features are [batch, dim] of the global batch, not normalised, in any float type; row i of both is pair i.
    ``loss_params`` holds a float32 scalar for each name of ``init_params``. Pairs that agree in any column of
    ``group_ids`` ([batch, keys] or [batch], integers) are never negatives of each other; None means that every pair is
    its own group. The call returns the scalar loss and metrics: the share of images whose own text is nearest of all
    candidates (``image_to_text_accuracy``; of equals the first counts), and the reverse.

    Attributes:
        compute: the function of the table, with its configuration and mesh.
        init_params: the loss parameters of a model that is trained from scratch.
        logit_scale_range: what ``logit_scale`` is clamped to after an update; None where it is free.
    """

    compute: Callable[..., LossOutput]
    init_params: Mapping[str, float]
    logit_scale_range: tuple[float, float] | None

    def __call__(
        self,
        image_features: Array,
        text_features: Array,
        loss_params: Mapping[str, Array],
        group_ids: Array | None = None,
    ) -> LossOutput:
        """The loss of a global batch and its metrics."""
        return self.compute(image_features, text_features, loss_params, group_ids)


def contrastive_loss(
    image_features: Float[Array, "batch dim"],
    text_features: Float[Array, "batch dim"],
    loss_params: Mapping[str, Array],
    group_ids: GroupIds | None = None,
    *,
    config: LossConfig | None = None,
    mesh: Mesh | None = None,
) -> LossOutput:
    """Symmetric cross-entropy over cosine similarities (Radford et al. 2021, figure 3), every pair a negative.

    loss = (CE(s, i) + CE(s^T, i)) / 2 with s = exp(logit_scale) * cos(image, text), averaged over the batch, and CE
    with label smoothing as torch's ``cross_entropy`` has it. The dense form: it holds s.

    Args:
        image_features: [batch, dim], not normalised.
        text_features: [batch, dim], not normalised; row i belongs to image i.
        loss_params: ``logit_scale``, the scalar log of the inverse temperature.
        group_ids: see `Loss`.
        config: gives the label smoothing; None for none.
        mesh: not needed: jit splits this one by itself.

    Returns:
        The scalar loss and the metrics of `Loss`.
    """
    del mesh
    image_features, text_features = l2_normalize(image_features), l2_normalize(text_features)
    # The highest precision: at a scale of 100 a TPU's default rounding puts the logits off by 0.06.
    cosine = jnp.matmul(image_features, text_features.T, precision=jax.lax.Precision.HIGHEST)
    logits_per_image = jnp.exp(loss_params["logit_scale"]) * cosine
    targets = jnp.arange(logits_per_image.shape[0])
    candidates = jnp.ones(logits_per_image.shape, bool)
    if (groups := _columns(group_ids)) is not None:
        candidates = ~share_a_group(groups, groups) | (targets[:, None] == targets[None, :])
        logits_per_image = jnp.where(candidates, logits_per_image, -jnp.inf)
    own = jnp.diagonal(logits_per_image)
    smoothing = config.label_smoothing if config else 0.0

    def cross_entropy(axis: int) -> Array:
        expected = (1 - smoothing) * own
        if smoothing:
            expected += smoothing * jnp.mean(logits_per_image, axis=axis, where=candidates)
        return jnp.mean(jax.nn.logsumexp(logits_per_image, axis=axis) - expected)

    metrics = {
        "image_to_text_accuracy": jnp.mean(jnp.argmax(logits_per_image, axis=1) == targets, dtype=jnp.float32),
        "text_to_image_accuracy": jnp.mean(jnp.argmax(logits_per_image, axis=0) == targets, dtype=jnp.float32),
    }
    return (cross_entropy(1) + cross_entropy(0)) / 2, metrics


def contrastive_ring_loss(
    image_features: Float[Array, "batch dim"],
    text_features: Float[Array, "batch dim"],
    loss_params: Mapping[str, Array],
    group_ids: GroupIds | None = None,
    *,
    config: LossConfig,
    mesh: Mesh | None = None,
) -> LossOutput:
    """`contrastive_loss` in O(batch * dim / devices + chunk_size^2) of memory a device; see `softmax_losses`.

    Raises:
        ValueError: the batch does not divide by the number of devices of the mesh.
    """
    image_losses, text_losses, image_is_nearest, text_is_nearest = softmax_losses(
        Streaming(config.label_smoothing, config.chunk_size, mesh),
        image_features,
        text_features,
        jnp.exp(loss_params["logit_scale"]),
        _columns(group_ids),
    )
    return (jnp.mean(image_losses) + jnp.mean(text_losses)) / 2, _accuracies(image_is_nearest, text_is_nearest)


def siglip_loss(
    image_features: Float[Array, "batch dim"],
    text_features: Float[Array, "batch dim"],
    loss_params: Mapping[str, Array],
    group_ids: GroupIds | None = None,
    *,
    config: LossConfig,
    mesh: Mesh | None = None,
) -> LossOutput:
    """SigLIP's sigmoid loss (Zhai et al. 2023), streamed like `contrastive_ring_loss`; see `sigmoid_loss`.

    Raises:
        ValueError: the batch does not divide by the number of devices of the mesh.
    """
    loss, image_is_nearest, text_is_nearest = sigmoid_loss(
        Streaming(0.0, config.chunk_size, mesh),
        image_features,
        text_features,
        jnp.exp(loss_params["logit_scale"]),
        loss_params["logit_bias"],
        _columns(group_ids),
    )
    return loss, _accuracies(image_is_nearest, text_is_nearest)


def _columns(group_ids: Array | None) -> Array | None:
    """[batch] or [batch, keys] -> [batch, keys]; no keys at all are no groups."""
    if group_ids is None or group_ids.size == 0:
        return None
    return group_ids.reshape(group_ids.shape[0], -1)


def _accuracies(image_is_nearest: Array, text_is_nearest: Array) -> dict[str, Array]:
    return {
        "image_to_text_accuracy": jnp.mean(image_is_nearest),
        "text_to_image_accuracy": jnp.mean(text_is_nearest),
    }


@dataclasses.dataclass(frozen=True)
class LossEntry:
    """A line of the table.

    Attributes:
        compute: (image_features, text_features, loss_params, group_ids, *, config, mesh) -> loss and metrics.
        init_params: see `Loss`.
        logit_scale_range: see `Loss`.
        smooths_labels: whether it reads ``label_smoothing``.
    """

    compute: Callable[..., LossOutput]
    init_params: Mapping[str, float]
    logit_scale_range: tuple[float, float] | None
    smooths_labels: bool


# Radford et al. 2021, section 2.5: a temperature of 0.07.
_CLIP_INIT = {"logit_scale": math.log(1 / 0.07)}
# Zhai et al. 2023, section 3.2: t' = log 10, b = -10, which is near the odds of a pair among so many others.
_SIGLIP_INIT = {"logit_scale": math.log(10), "logit_bias": -10.0}

LOSSES: dict[str, LossEntry] = {
    "contrastive": LossEntry(contrastive_loss, _CLIP_INIT, LOGIT_SCALE_RANGE, smooths_labels=True),
    "contrastive_ring": LossEntry(contrastive_ring_loss, _CLIP_INIT, LOGIT_SCALE_RANGE, smooths_labels=True),
    "siglip": LossEntry(siglip_loss, _SIGLIP_INIT, None, smooths_labels=False),
}
"""Name in a config -> loss. Another loss is a function and a line here."""


def get_loss(config: LossConfig, mesh: Mesh | None = None) -> Loss:
    """The loss of a configuration.

    Args:
        config: checked.
        mesh: whose axis ``data`` the batch is split over, for the losses that divide the pairs among devices
            themselves; None for one device.
    """
    entry = LOSSES[config.name]
    compute = functools.partial(entry.compute, config=config, mesh=mesh)
    return Loss(compute, entry.init_params, entry.logit_scale_range)
