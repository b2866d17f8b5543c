"""The optimiser: gradient clipping, Adam, decoupled weight decay, learning rate, in that order.

AdamW as PyTorch computes it (Loshchilov and Hutter 2019): the decay is proportional to the learning rate and to the
weights before the update. Owns also which parameter learns how fast: frozen towers and blocks, layer-wise decay of the
rate, a rate for each tower; all of them are one multiplier a parameter (`rate_multipliers`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
        freeze: towers that do not learn, ``vision``, ``text`` or empty; a frozen tower's other settings do not count.
        freeze_vision_blocks: the first blocks of the tower that do not learn; above 0, what feeds them (embeddings and
            the norm before the blocks) does not either.
        freeze_text_blocks: the same of the text tower.
        layer_decay: the rate is multiplied by this once for each layer above, see `rate_multipliers`; 1 for none.
        vision_rate: multiplier of the vision tower's rate.
        text_rate: multiplier of the text tower's rate.
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
    freeze: str = ""
    freeze_vision_blocks: int = 0
    freeze_text_blocks: int = 0
    layer_decay: float = 1.0
    vision_rate: float = 1.0
    text_rate: float = 1.0

    def __post_init__(self) -> None:
        for name, table in (("schedule", SCHEDULES), ("decay_mask", DECAY_MASKS)):
            if getattr(self, name) not in table:
                raise ValueError(f"optim.{name}: expected one of {', '.join(table)}, got {getattr(self, name)!r}")
        not_negative = ("learning_rate", "warmup_steps", "weight_decay", "clip_norm", "eps")
        for name in (*not_negative, "freeze_vision_blocks", "freeze_text_blocks"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name}: expected a number >= 0, got {getattr(self, name)}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name}: expected a share of at least 0 and below 1, got {getattr(self, name)}")
        self._check_rates()

    def _check_rates(self) -> None:
        unknown = sorted(self.frozen_towers - set(TOWERS))
        if unknown:
            raise ValueError(f"optim.freeze: expected {' or '.join(TOWERS)}, or nothing, got {', '.join(unknown)}")
        if len(self.frozen_towers) == len(TOWERS):
            raise ValueError(f"optim.freeze: nothing is left to train when {self.freeze!r} are frozen")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optim.layer_decay: expected a factor above 0 and at most 1, got {self.layer_decay}")
        for name in ("vision_rate", "text_rate"):
            rate = getattr(self, name)
            if not rate > 0:
                raise ValueError(f"optim.{name}: expected a factor above 0, got {rate}; optim.freeze holds a tower")

    @property
    def frozen_towers(self) -> frozenset[str]:
        """The names in ``freeze``."""
        return frozenset(name.strip() for name in self.freeze.split(",") if name.strip())

    @property
    def freezes(self) -> bool:
        """Whether any parameter is frozen."""
        return bool(self.frozen_towers or self.freeze_vision_blocks or self.freeze_text_blocks)

    @property
    def has_one_rate(self) -> bool:
        """Whether every parameter learns at the same rate."""
        return not self.freezes and self.layer_decay == self.vision_rate == self.text_rate == 1


TOWERS = ("vision", "text")
# The parts of a tower besides its stacked ``blocks``, by where they stand.
_BELOW_THE_BLOCKS = ("patch_embedding", "class_embedding", "position_embedding", "token_embedding", "pre_norm")
_ABOVE_THE_BLOCKS = ("post_norm", "final_norm", "projection")


def _cosine(progress: Float[Array, ""]) -> Float[Array, ""]:
    return 0.5 * (1 + jnp.cos(jnp.pi * progress))


def _constant(progress: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.ones_like(progress)


SCHEDULES: dict[str, Callable[[Array], Array]] = {"cosine": _cosine, "constant": _constant}
"""Share of the peak rate, as a function of the share of the steps after the warm-up that are done, 0 to 1."""

DECAY_MASKS: dict[str, Callable[[str, jax.ShapeDtypeStruct], bool]] = {
    "all": lambda path, _: True,
    "matrices": lambda path, _: path.endswith(("kernel", "token_embedding", "position_embedding")),
}
"""Whether a parameter decays, by its path and value.

"all" is what PLIP's trainer does; "matrices" leaves out norms, biases, the class embedding and the temperature, as
OpenAI's CLIP and open_clip do.
"""


def learning_rate_schedule(config: OptimConfig, total_steps: int) -> Callable[[ArrayLike], Array]:
    """Rate of update ``step`` (from 0): lr * (step + 1) / warmup, then the schedule down to ``total_steps``.

    The first update is not zero, and the rate reaches its peak at the last step of the warm-up; open_clip's
    ``cosine_lr`` is the same formula.

    Raises:
        ValueError: a warm-up as long as the whole run, or longer.
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


def rate_multipliers(config: OptimConfig, params: Any) -> Any:
    """The factor of each parameter's learning rate; 0 where it is frozen.

    A tower of D blocks has the layers 0 (embeddings and the norm before the blocks), 1 to D (the blocks) and D + 1 (the
    rest). Layer l learns at ``layer_decay ** (D + 1 - l)`` times its tower's rate (the discriminative fine-tuning of
    Howard and Ruder 2018, section 3.2; numbered as BEiT does, https://github.com/microsoft/unilm, MIT). What belongs to
    no tower, the loss's scale and bias, has factor 1.

    Args:
        config: the rules.
        params: arrays or their shapes; a tower's blocks are stacked on axis 0 of each of their leaves.

    Returns:
        The same tree of float32 numpy arrays, which are scalars, or [depth, 1, ...] for a leaf of stacked blocks.

    Raises:
        ValueError: more frozen blocks than the tower has, or a part of a tower that is not known.
    """
    depths = {tower: jax.tree.leaves(params[tower]["blocks"])[0].shape[0] for tower in TOWERS if tower in params}
    rates = {"vision": config.vision_rate, "text": config.text_rate}
    frozen_blocks = {"vision": config.freeze_vision_blocks, "text": config.freeze_text_blocks}
    for tower, depth in depths.items():
        if frozen_blocks[tower] > depth:
            raise ValueError(
                f"optim.freeze_{tower}_blocks: expected at most the {depth} blocks that the tower has, "
                f"got {frozen_blocks[tower]}"
            )

    def multiplier(path: Any, leaf: Any) -> np.ndarray:
        tower = path[0].key
        if tower not in depths:
            return np.ones((), np.float32)
        layer = _layer(path[1].key, leaf, depths[tower])
        factor = rates[tower] * config.layer_decay ** (depths[tower] + 1 - layer)
        held = layer <= frozen_blocks[tower] if frozen_blocks[tower] else np.zeros_like(layer, bool)
        return np.where(held | (tower in config.frozen_towers), 0, factor).astype(np.float32)

    return jax.tree_util.tree_map_with_path(multiplier, params)


def _layer(part: str, leaf: Any, depth: int) -> np.ndarray:
    """The layer of a tower's part, see `rate_multipliers`; of the stacked blocks, one a block, [depth, 1, ...]."""
    if part == "blocks":
        return np.arange(1, depth + 1).reshape(-1, *[1] * (leaf.ndim - 1))
    if part in _BELOW_THE_BLOCKS:
        return np.asarray(0)
    if part in _ABOVE_THE_BLOCKS:
        return np.asarray(depth + 1)
    known = ", ".join((*_BELOW_THE_BLOCKS, "blocks", *_ABOVE_THE_BLOCKS))
    raise ValueError(f"rates by layer: a tower's parts are {known}; give {part!r} its place in training/optim.py")


def stop_frozen_gradients(config: OptimConfig, params: Any) -> Any:
    """The same parameters, with no gradient to those that are frozen.

    Call it on what the encoders are given: the backward pass of a frozen tower is then never computed. Of blocks that
    are frozen in part the gradient is zero, but it is computed: the blocks run in one scan.

    Raises:
        ValueError: see `rate_multipliers`.
    """
    if not config.freezes:
        return params

    def stop(leaf: jax.Array, multiplier: np.ndarray) -> jax.Array:
        if multiplier.all():
            return leaf
        if not multiplier.any():
            return jax.lax.stop_gradient(leaf)
        return jnp.where(multiplier == 0, jax.lax.stop_gradient(leaf), leaf)

    return jax.tree.map(stop, params, rate_multipliers(config, params))


def make_optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """The chain clip, Adam, decay, rate; its state is created by ``init`` from the parameters.

    A multiplied rate scales the whole update, the decay too. A frozen parameter never moves, and its gradient counts
    neither in the norm that is clipped nor in the moments; a leaf that is frozen as a whole has no moments.

    Raises:
        ValueError: from ``init`` and ``update``, see `rate_multipliers`.
    """
    decays = DECAY_MASKS[config.decay_mask]

    def mask(params: optax.Params) -> optax.Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: decays(jax.tree_util.keystr(path, simple=True, separator="/"), leaf), params
        )

    adamw = (
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask),
    )
    rate = optax.scale_by_learning_rate(learning_rate_schedule(config, total_steps))
    if config.has_one_rate:
        return optax.chain(*adamw, rate)
    if config.freezes:
        adamw = (_zero_frozen(config), optax.masked(optax.chain(*adamw), lambda params: _learns(config, params)))
    return optax.chain(*adamw, _scale_by_multipliers(config), rate)


def _learns(config: OptimConfig, params: Any) -> Any:
    """Whether any element of each leaf is trained."""
    return jax.tree.map(lambda multiplier: bool(multiplier.any()), rate_multipliers(config, params))


def _zero_frozen(config: OptimConfig) -> optax.GradientTransformation:
    """A frozen parameter's gradient becomes 0, whatever it was, a NaN too."""

    def update(updates: Any, params: Any) -> Any:
        multipliers = rate_multipliers(config, updates)
        return jax.tree.map(lambda leaf, factor: jnp.where(factor == 0, 0, leaf), updates, multipliers)

    return optax.stateless(update)


def _scale_by_multipliers(config: OptimConfig) -> optax.GradientTransformation:
    """Each parameter's update times its factor; exactly 0 where that is 0."""

    def update(updates: Any, params: Any) -> Any:
        multipliers = rate_multipliers(config, updates)
        # Not a product with 0: without eps the update of a frozen block is 0 / 0.
        return jax.tree.map(lambda leaf, factor: jnp.where(factor == 0, 0, leaf * factor), updates, multipliers)

    return optax.stateless(update)
