"""The training step in two passes: the exact loss and gradient of a batch that does not fit on the devices.

A contrastive loss is not a mean over examples, so the mean of small batches' gradients is another gradient. Here the
first pass encodes every micro-batch and keeps its features alone; the loss of all features gives its gradient with
respect to each of them; the second pass encodes each micro-batch again and pulls that gradient back to the
parameters (GradCache, Gao et al. 2021, https://arxiv.org/abs/2101.06983, section 3.2). The chain rule's sum over
examples is all that is used, so nothing is approximated.

The batch stays on the host as uint8; at most two micro-batches are on the devices at a time.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from plip_jax.sharding import split_batch
from plip_jax.training.state import TrainState
from plip_jax.training.step import Batch, Metrics, Task, UpdateRule

Place = Callable[[int], Batch]


class AccumulatedStep:
    """A training step over micro-batches; it donates the state it is given.

    Each of its programs is compiled once for each shape of the text.
    """

    def __init__(
        self, task: Task, rule: UpdateRule, mesh: Mesh, micro_batches: int, state_sharding: TrainState | None = None
    ):
        """Build the step.

        Args:
            task: encoders and loss.
            rule: optimiser, clamp and average.
            mesh: the devices the micro-batches are split over.
            micro_batches: parts of the global batch.
            state_sharding: where the state lives; None leaves it to the compiler.
        """
        self._task = task
        self._micro_batches = micro_batches
        split = split_batch(mesh)
        params_sharding = None if state_sharding is None else state_sharding.params
        self._encode = jax.jit(task.encode, out_shardings=split)
        self._loss = jax.jit(self._loss_of_features)
        self._zeros = jax.jit(functools.partial(jax.tree.map, jnp.zeros_like), out_shardings=params_sharding)
        self._pull_back = jax.jit(self._add_gradient, donate_argnums=0, out_shardings=(params_sharding, None))
        self._update = jax.jit(
            self._finish,
            donate_argnums=(0, 1),
            out_shardings=None if state_sharding is None else (state_sharding, None),
        )
        self._rule = rule

    def __call__(self, state: TrainState, place: Place) -> tuple[TrainState, Metrics]:
        """Take a step.

        Args:
            state: donated.
            place: puts micro-batch number m on the devices; called twice for each, so both passes see the same bytes.

        Returns:
            As the one-pass step's.
        """
        images, texts, groups = self._first_pass(state, place)
        loss, loss_metrics, loss_grads, image_grads, text_grads = self._loss(
            self._task.loss_params(state.params), images, texts, groups
        )
        grads = self._zeros(state.params)
        done: list[Any] = list(texts)
        for micro in range(self._micro_batches):
            _wait(done)
            grads, marker = self._pull_back(
                grads, state.params, place(micro), state.step, image_grads[micro], text_grads[micro]
            )
            done.append(marker)
        return self._update(state, grads, loss, loss_metrics, loss_grads)

    def _first_pass(self, state: TrainState, place: Place) -> tuple[list[Array], list[Array], list[Array]]:
        """Features of images and texts, and group ids where there are any, by micro-batch."""
        images: list[Array] = []
        texts: list[Array] = []
        groups: list[Array] = []
        for micro in range(self._micro_batches):
            _wait(texts)
            batch = place(micro)
            image, text = self._encode(state.params, batch, state.step)
            images.append(image)
            texts.append(text)
            if "group_ids" in batch:
                groups.append(batch["group_ids"])
        return images, texts, groups

    def _loss_of_features(self, loss_params: Any, images: list[Array], texts: list[Array], groups: list[Array]) -> Any:
        def loss_of(loss_params: Any, images: list[Array], texts: list[Array]) -> tuple[Array, Metrics]:
            group_ids = jnp.concatenate(groups) if groups else None
            return self._task.loss(jnp.concatenate(images), jnp.concatenate(texts), loss_params, group_ids)

        (loss, metrics), (loss_grads, image_grads, text_grads) = jax.value_and_grad(
            loss_of, argnums=(0, 1, 2), has_aux=True
        )(loss_params, images, texts)
        return loss, metrics, loss_grads, image_grads, text_grads

    def _add_gradient(
        self, grads: Any, params: Any, batch: Batch, step: Array, image_grad: Array, text_grad: Array
    ) -> tuple[Any, Array]:
        """Add a micro-batch's part of the gradient; the second output is ready when the first is."""
        _, pull_back = jax.vjp(lambda params: self._task.encode(params, batch, step), params)
        (part,) = pull_back((image_grad, text_grad))
        # Computed and not passed through: an input that is handed on is ready before the program has run.
        return jax.tree.map(jnp.add, grads, part), step + 1

    def _finish(
        self, state: TrainState, grads: Any, loss: Array, loss_metrics: Metrics, loss_grads: Any
    ) -> tuple[TrainState, Metrics]:
        grads = {**grads, **{name: grads[name] + part for name, part in loss_grads.items()}}
        return self._rule.apply(state, loss, loss_metrics, grads)


def _wait(outputs: list[Any]) -> None:
    """Let no more than one micro-batch be under way while the next is placed: placing is what takes memory."""
    if len(outputs) >= 2:
        jax.block_until_ready(outputs[-2])
