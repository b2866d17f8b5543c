"""The training step: a pure function of the state and a global batch, jitted once for each shape of its text.

The step in two passes, for batches that do not fit on the devices, is `plip_jax.training.accumulation`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from plip_jax.training.losses import Loss
from plip_jax.training.state import TrainState

Batch = Mapping[str, Any]
"""Arrays by name, as `plip_jax.training.feed.make_place` puts them on the devices."""
Metrics = dict[str, Float[Array, ""]]
"""Float32 scalars by name."""


def _unchanged(params: Any) -> Any:
    return params


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned: two encoders and a loss.

    Attributes:
        encode_image: (params, batch, one random key for each example) -> features [batch, dim].
        encode_text: (params, batch["text"]) -> features [batch, dim], in the order of the images.
        loss: of `plip_jax.training.losses.get_loss`.
        seed: the run's seed.
        prepare_params: what the encoders are given of the parameters: gathered from the devices they are split over,
            with no gradient to those that are frozen.
    """

    encode_image: Callable[[Any, Batch, Array], Array]
    encode_text: Callable[[Any, Any], Array]
    loss: Loss
    seed: int
    prepare_params: Callable[[Any], Any] = _unchanged

    def encode(self, params: Any, batch: Batch, step: Array) -> tuple[Array, Array]:
        """Features of images and texts, each [batch, dim].

        Args:
            params: the network's.
            batch: the whole global batch, or a part of it. Its ``place`` says where in the global batch an example
                stands, by default in order: an example has one key wherever the batch is cut, so a batch in parts is
                the batch in one.
            step: batches taken before this one; with the seed and an example's place it gives the example's key.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        places = batch["place"] if "place" in batch else jnp.arange(batch["image"].shape[0], dtype=jnp.int32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        params = self.prepare_params(params)
        return self.encode_image(params, batch, keys), self.encode_text(params, batch["text"])

    def loss_params(self, params: Any) -> dict[str, Array]:
        """The parameters that belong to the loss and not to a tower."""
        return {name: params[name] for name in self.loss.init_params}


def loss_and_grads(
    task: Task, params: Any, batch: Batch, step: Int[Array, ""]
) -> tuple[Float[Array, ""], Metrics, Any]:
    """The loss of a global batch, its metrics, and its gradient with respect to every parameter."""

    def loss_of(params: Any) -> tuple[Array, Metrics]:
        image_features, text_features = task.encode(params, batch, step)
        return task.loss(image_features, text_features, task.loss_params(params), batch.get("group_ids"))

    (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    return loss, metrics, grads


@dataclasses.dataclass(frozen=True)
class UpdateRule:
    """From gradients to the next state, in the order: clip, Adam, decay, rate, clamp of ``logit_scale``, average.

    Attributes:
        optimizer: of `plip_jax.training.optim.make_optimizer`.
        learning_rate: the schedule, for the log only.
        logit_scale_range: what ``logit_scale`` is clamped to after the update; None leaves it free.
        ema_decay: share of the moving average that stays at each update; read where the state keeps one.
    """

    optimizer: optax.GradientTransformation
    learning_rate: Callable[[Array], Array]
    logit_scale_range: tuple[float, float] | None
    ema_decay: float = 0.0

    def apply(self, state: TrainState, loss: Array, loss_metrics: Metrics, grads: Any) -> tuple[TrainState, Metrics]:
        """The next state, and metrics; a step that is not finite changes nothing but the counts.

        Skipped, parameters, moments, average and the count behind the schedule stay as they are, bit for bit.
        """
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        if self.logit_scale_range is not None:
            params = {**params, "logit_scale": jnp.clip(params["logit_scale"], *self.logit_scale_range)}
        grad_norm, update_norm = optax.tree.norm(grads), optax.tree.norm(updates)
        # A norm is finite exactly if its values are, and their squares, which go into Adam's second moment.
        is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, old)

        ema = state.ema
        if ema is not None:
            decay = jnp.float32(self.ema_decay)
            ema = keep(jax.tree.map(lambda mean, leaf: decay * mean + (1 - decay) * leaf, ema, params), ema)
        after = TrainState(
            step=state.step + 1,
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
            ema=ema,
            skipped=state.skipped + (1 - is_finite.astype(jnp.int32)),
            skipped_in_row=jnp.where(is_finite, 0, state.skipped_in_row + 1),
        )
        metrics = {
            "loss": loss,
            **loss_metrics,
            "grad_norm": grad_norm,
            "update_ratio": update_norm / optax.tree.norm(state.params),
            "logit_scale": jnp.exp(after.params["logit_scale"]),
            "learning_rate": self.learning_rate(state.step - state.skipped),
            "skipped_steps": after.skipped.astype(jnp.float32),
            "skipped_in_row": after.skipped_in_row.astype(jnp.float32),
        }
        if "logit_bias" in after.params:
            metrics["logit_bias"] = after.params["logit_bias"]
        return after, metrics


def make_train_step(
    task: Task, rule: UpdateRule, state_sharding: Any = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Build the jitted step; it donates the state it is given.

    Args:
        task: encoders and loss.
        rule: optimiser, clamp and average.
        state_sharding: where the next state lives, a tree of shardings; None leaves it to the compiler.

    Returns:
        A function of the state and a batch to the next state and float32 scalars, ``loss``, ``grad_norm`` (before
        clipping), ``update_ratio`` (norm of the update to norm of the parameters), ``logit_scale`` (exponentiated),
        ``learning_rate``, ``skipped_steps``, ``skipped_in_row`` and the loss's own. The batch holds ``image`` uint8
        [B, S, S, 3], ``text`` (int32 [B, L], or the arrays of packed captions) and what else the encoders read, and
        ``group_ids`` int32 [B, K] where pairs of one group are not to be pushed apart.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        loss, metrics, grads = loss_and_grads(task, state.params, batch, state.step)
        return rule.apply(state, loss, metrics, grads)

    if state_sharding is None:
        return jax.jit(train_step, donate_argnums=0)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_sharding, None))
