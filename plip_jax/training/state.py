"""The training state: everything a step changes. Frozen; a step returns a new one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Step, parameters, optimiser state, their moving average and the guard's counts.

    There is no random key in it: the key of a step is ``fold_in(seed, step)`` (`plip_jax.training.step`), so a resumed
    run draws what the unbroken run draws.

    Attributes:
        step: updates done, int32 scalar.
        params: nested dict of float32 arrays.
        opt_state: the optimiser's.
        ema: the exponential moving average of ``params``, a tree like it; None where the run keeps none.
        skipped: steps whose update was left out because it was not finite, int32 scalar.
        skipped_in_row: of them, those since the last update that was made, int32 scalar.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: optax.OptState
    ema: dict[str, Any] | None
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]


def init_state(
    params: dict[str, Any] | Callable[[], dict[str, Any]],
    optimizer: optax.GradientTransformation,
    sharding: Any,
    keep_ema: bool = False,
) -> TrainState:
    """Create the state on its devices by one jitted call, every scalar with an explicit dtype.

    Args:
        params: parameters to start from, or a function without arguments that draws them.
        optimizer: gives the optimiser state.
        sharding: where each array lives: one sharding for all of them, or a ``TrainState`` of shardings.
        keep_ema: keep a moving average, which begins as a copy of the parameters.
    """

    def start(given: dict[str, Any] | None) -> TrainState:
        # An eager or weakly typed start makes the train step compile again at its second call.
        values: Any = given if given is not None else draw()
        values = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), values)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(
            step=zero,
            params=values,
            opt_state=optimizer.init(values),
            ema=jax.tree.map(jnp.copy, values) if keep_ema else None,
            skipped=zero,
            skipped_in_row=zero,
        )

    draw: Any = params
    given = None if callable(params) else params
    return jax.jit(start, out_shardings=sharding)(given)
