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
    """Step, parameters, optimiser state and what guards them.

    There is no random key in it: the keys of a step come from the seed and the step (`plip_jax.training.step`), so a
    resumed run draws what the unbroken run draws.

    Attributes:
        step: batches taken, int32 scalar.
        params: nested dict of float32 arrays.
        opt_state: the optimiser's.
        ema: exponential moving average of ``params``; None where none is kept.
        skipped: steps whose update was left out because it was not finite, int32 scalar.
        skipped_in_row: those directly before this one, int32 scalar.
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
    *,
    keep_ema: bool = False,
) -> TrainState:
    """Create the state on its devices by one jitted call, every scalar with an explicit dtype.

    Args:
        params: parameters to start from, or a function without arguments that draws them.
        optimizer: gives the optimiser state.
        sharding: where the arrays live: one sharding for all, or a function from the state's shapes
            (``jax.ShapeDtypeStruct`` leaves) to a tree of them.
        keep_ema: keep an average of the parameters; it starts at the parameters.
    """

    def start(given: dict[str, Any] | None) -> TrainState:
        # An eager or weakly typed start makes the train step compile again at its second call.
        values: Any = given if given is not None else draw()
        values = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), values)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=values,
            opt_state=optimizer.init(values),
            ema=jax.tree.map(jnp.copy, values) if keep_ema else None,
            skipped=jnp.zeros((), jnp.int32),
            skipped_in_row=jnp.zeros((), jnp.int32),
        )

    draw: Any = params
    given = None if callable(params) else params
    if callable(sharding):
        sharding = sharding(jax.eval_shape(start, given))
    return jax.jit(start, out_shardings=sharding)(given)
