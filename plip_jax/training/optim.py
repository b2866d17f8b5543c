"""The optimiser: gradient clipping, Adam, decoupled weight decay, learning rate, in that order.

AdamW as PyTorch computes it (Loshchilov and Hutter 2019): the decay is proportional to the learning rate and to the
weights before the update.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Settings of AdamW and its schedule.

    Attributes:
        learning_rate: the peak.
        warmup_steps: steps of linear warm-up; 0 for none.
        schedule: a key of ``SCHEDULES``, what follows the warm-up.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay.
        decay_mask: a key of ``DECAY_MASKS``, which parameters decay.
        clip_norm: global norm the gradient is cut to; 0 means no clipping.
    """

    learning_rate: float
    warmup_steps: int
    schedule: str = "cosine"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_mask: str = "all"
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        for name, table in (("schedule", SCHEDULES), ("decay_mask", DECAY_MASKS)):
            if getattr(self, name) not in table:
                raise ValueError(f"optim.{name}: expected one of {', '.join(table)}, got {getattr(self, name)!r}")
        for name in ("learning_rate", "warmup_steps", "weight_decay", "clip_norm", "eps"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name}: expected a number >= 0, got {getattr(self, name)}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name}: expected a share of at least 0 and below 1, got {getattr(self, name)}")


def _cosine(progress: Float[Array, ""]) -> Float[Array, ""]:
    return 0.5 * (1 + jnp.cos(jnp.pi * progress))


def _constant(progress: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.ones_like(progress)


# Share of the peak rate, as a function of the share of the steps after the warm-up that are done, 0 to 1.
SCHEDULES: dict[str, Callable[[Array], Array]] = {"cosine": _cosine, "constant": _constant}

# Whether a parameter decays, by its path and value. "all" is what PLIP's trainer does; "matrices" leaves out norms,
# biases, the class embedding and the temperature, as OpenAI's CLIP and open_clip do.
DECAY_MASKS: dict[str, Callable[[str, jax.ShapeDtypeStruct], bool]] = {
    "all": lambda path, _: True,
    "matrices": lambda path, _: path.endswith(("kernel", "token_embedding", "position_embedding")),
}


def learning_rate_schedule(config: OptimConfig, total_steps: int) -> Callable[[ArrayLike], Array]:
    """Rate of update ``step`` (from 0): lr * (step + 1) / warmup, then the schedule down to ``total_steps``.

    The first update is not zero, and the rate reaches its peak at the last step of the warm-up; open_clip's
    ``cosine_lr`` is the same formula.
    """
    if config.warmup_steps >= total_steps:
        raise ValueError(f"optim.warmup_steps: expected fewer than the {total_steps} steps, got {config.warmup_steps}")

    def rate(step: ArrayLike) -> Array:
        step = jnp.asarray(step)
        progress = (step - config.warmup_steps) / (total_steps - config.warmup_steps)
        after = SCHEDULES[config.schedule](jnp.clip(progress, 0.0, 1.0).astype(jnp.float32))
        warmup = (step + 1) / max(config.warmup_steps, 1)
        return jnp.float32(config.learning_rate) * jnp.where(step < config.warmup_steps, warmup, after)

    return rate


def make_optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """The chain clip, Adam, decay, rate; its state is created by ``init`` from the parameters."""
    decays = DECAY_MASKS[config.decay_mask]

    def mask(params: optax.Params) -> optax.Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: decays(jax.tree_util.keystr(path, simple=True, separator="/"), leaf), params
        )

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate_schedule(config, total_steps)),
    )
