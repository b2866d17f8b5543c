"""The training step: a pure function of the state and a global batch, jitted once."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from plip_jax.training.losses import LOGIT_SCALE_RANGE, Loss
from plip_jax.training.state import TrainState

Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned: two encoders and a loss.

    Attributes:
        encode_image: (params, batch["image"], a key for each image) -> features [batch, dim].
        encode_text: (params, batch["tokens"]) -> features [batch, dim].
        loss: of `losses.get_loss`.
        seed: the run's seed; the key of a step is ``fold_in(seed, step)``.
    """

    encode_image: Callable[[Any, Array, Array], Array]
    encode_text: Callable[[Any, Array], Array]
    loss: Loss
    seed: int


def loss_and_grads(task: Task, params: Any, batch: Batch, step: Array) -> tuple[Array, Metrics, Any]:
    """The loss of a global batch, its metrics, and its gradient with respect to every parameter."""
    key = jax.random.fold_in(jax.random.key(task.seed), step)

    def loss_of(params: Any) -> tuple[Array, Metrics]:
        keys = jax.random.split(key, len(batch["image"]))
        image_features = task.encode_image(params, batch["image"], keys)
        text_features = task.encode_text(params, batch["tokens"])
        return task.loss(image_features, text_features, {"logit_scale": params["logit_scale"]})

    (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    return loss, metrics, grads


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, learning_rate: Callable[[Array], Array]
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Build the jitted step; it donates the state it is given.

    The order is gradient, clip, Adam, decay, rate, and then the clamp of ``logit_scale``.

    Args:
        task: encoders and loss.
        optimizer: of `plip_jax.training.optim.make_optimizer`.
        learning_rate: the schedule, for the log only.

    Returns:
        A function of the state and a batch ``{"image": uint8 [B, S, S, 3], "tokens": int32 [B, L]}`` to the next state
        and float32 scalars: ``loss``, ``grad_norm`` (before clipping), ``logit_scale`` (exponentiated),
        ``learning_rate`` and the loss's own.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        loss, metrics, grads = loss_and_grads(task, state.params, batch, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        params = {**params, "logit_scale": jnp.clip(params["logit_scale"], *LOGIT_SCALE_RANGE)}
        metrics = {
            "loss": loss,
            **metrics,
            "grad_norm": optax.tree.norm(grads),
            "logit_scale": jnp.exp(params["logit_scale"]),
            "learning_rate": learning_rate(state.step),
        }
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)
