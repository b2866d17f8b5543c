"""A training step of the tiny network, and its batches, for tests of where a step runs: devices, shardings, processes.

Loss and optimiser are the library's. How the trainer composes them is tested elsewhere, and may change without these.
"""

import functools
from typing import Any

import jax
import numpy as np
import optax
from small_models import make_params

from plip_jax import sharding
from plip_jax.data.image import Preprocessing, normalize_pixels
from plip_jax.model import clip
from plip_jax.model.presets import CLIPConfig, get_preset
from plip_jax.training.losses import contrastive_loss
from plip_jax.training.optim import OptimConfig, make_optimizer
from plip_jax.training.state import TrainState, init_state

TINY = get_preset("tiny")
# The gradient of a key's bias is zero in theory; with a usual eps Adam would make full steps of its rounding.
OPTIMIZER = make_optimizer(OptimConfig(learning_rate=1e-3, warmup_steps=2, eps=1e-4), 20)


def make_batch(step: int = 0, size: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([7, step])
    tokens = rng.integers(1, 500, (size, 16)).astype(np.int32)
    tokens[:, -1] = TINY.text.eot_token_id
    return {"image": rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8), "tokens": tokens}


def init(mesh: Any, strategy: str = "replicated", config: CLIPConfig = TINY) -> TrainState:
    place = functools.partial(sharding.params_sharding, mesh, strategy=strategy)
    return init_state(make_params(config), OPTIMIZER, place)


def make_grads(mesh: Any, strategy: str = "replicated", config: CLIPConfig = TINY, compute_dtype: str = "float32"):
    """(params, batch) -> loss and gradients."""
    model = clip.build(config, compute_dtype=compute_dtype)
    pixels = Preprocessing(image_size=config.vision.image_size)

    def loss_of(params, batch):
        params = sharding.gather_params(mesh, params, strategy)
        images = model.encode_image(params, normalize_pixels(batch["image"], pixels))
        texts = model.encode_text(params, batch["tokens"])
        return contrastive_loss(images, texts, {"logit_scale": params["logit_scale"]})[0]

    return jax.value_and_grad(loss_of)


def make_step(mesh: Any, strategy: str = "replicated", config: CLIPConfig = TINY, compute_dtype: str = "float32"):
    """(state, batch) -> next state and {loss, grads}, jitted; the state is donated."""
    loss_and_grads = make_grads(mesh, strategy, config, compute_dtype)
    shapes = jax.eval_shape(lambda: init(mesh, strategy, config))
    where = sharding.params_sharding(mesh, shapes, strategy)

    def step(state: TrainState, batch):
        loss, grads = loss_and_grads(state.params, batch)
        updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
        after = TrainState(
            state.step + 1,
            optax.apply_updates(state.params, updates),
            opt_state,
            ema=state.ema,
            skipped=state.skipped,
            skipped_in_row=state.skipped_in_row,
        )
        return after, {"loss": loss, "grads": grads}

    # Pinned: what the compiler would choose may be another sharding than came in, and the step be compiled again.
    return jax.jit(step, donate_argnums=0, out_shardings=(where, {"loss": None, "grads": where.params}))


def assert_close_by_norm(found: Any, expected: Any, tolerance: float) -> None:
    """Each array within ``tolerance`` times its norm.

    Of a key's bias, whose gradient is zero in theory, times the largest value of the tree.
    """
    paths = jax.tree_util.tree_flatten_with_path(expected)[0]
    largest = max(float(np.max(np.abs(leaf))) for _, leaf in paths)
    for (path, one), other in zip(paths, jax.tree.leaves(found), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        scale = largest if name.endswith("attention/key/bias") else np.linalg.norm(one)
        assert np.linalg.norm(other - one) <= tolerance * scale, name
