"""Training of an image network with a linear classifier on top, all weights, as PLIP's fine-tuning does it.

The one place in evaluation that trains. Owns the decoded pixels, the subsamples and the step, which is traced once for
all fractions, seeds and learning rates: they all use one shape of batch, and the rate is an argument.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.task import ImageTower
from plip_jax.training.optim import SCHEDULES, OptimConfig, learning_rate_schedule, make_optimizer

# Pixel statistics of OpenAI's CLIP, RGB in [0, 1] (openai/CLIP, clip.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Decoded images above this many bytes lie in a file.
_IN_MEMORY = 2**30
# Encoded images in memory at a time, while they are decoded.
_DECODED_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a classifier is trained; no warm-up, no augmentation, and the last epoch counts.

    Attributes:
        epochs: passes over the examples.
        batch_size: examples a step; the last batch of an epoch may hold fewer.
        weight_decay: of AdamW, on every weight.
        schedule: a key of `plip_jax.training.optim.SCHEDULES`.
        mean: of the pixels, RGB in [0, 1].
        std: their standard deviation.
    """

    epochs: int = 10
    batch_size: int = 128
    weight_decay: float = 0.1
    schedule: str = "constant"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise EvaluationError(
                f"expected 1 or more epochs and examples a batch, got {self.epochs} and {self.batch_size}"
            )
        if self.schedule not in SCHEDULES:
            raise EvaluationError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.weight_decay < 0:
            raise EvaluationError(f"weight_decay: expected a number >= 0, got {self.weight_decay}")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Decoded examples with their classes.

    Attributes:
        pixels: uint8 [N, S, S, 3].
        label_ids: int64 [N].
    """

    pixels: np.ndarray
    label_ids: np.ndarray


def load_pixels(examples: Examples, tower: ImageTower, folder: Path, name: str) -> np.ndarray:
    """Decode every image once, in threads.

    Args:
        examples: whose images.
        tower: says how its input is made of a file.
        folder: for ``name``.npy, where the pixels are more than a GiB.
        name: of the split.

    Returns:
        uint8 [N, S, S, 3]; a memory map where it lies in the folder.

    Raises:
        EvaluationError: the records no longer come in the order of the ids.
    """
    shape = (len(examples), tower.image_size, tower.image_size, 3)
    if np.prod(shape, dtype=np.int64) > _IN_MEMORY:
        pixels = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, shape)
    else:
        pixels = np.empty(shape, np.uint8)
    rows = enumerate(zip(examples.ids, examples.records, strict=True))
    with concurrent.futures.ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        while block := list(itertools.islice(rows, _DECODED_AT_ONCE)):
            for _, (expected, record) in block:
                if record.id != expected:
                    raise EvaluationError(
                        f"the data changed while they were read: expected {expected!r}, got {record.id!r}"
                    )
            decoded = pool.map(lambda row: tower.pixels(row[1][1].image, row[1][0]), block)
            for (row, _), image in zip(block, decoded, strict=True):
                pixels[row] = image
    return pixels


class Classifier:
    """A network with a linear classifier, trained from the network's own weights each time it is asked.

    The classifier starts at zero, so nothing but the order of the examples is random.
    """

    def __init__(self, tower: ImageTower, num_classes: int, recipe: Recipe) -> None:
        """Build the step; it is compiled when it is first used.

        Args:
            tower: the network.
            num_classes: K.
            recipe: how to train.
        """
        self.recipe = recipe
        head = {
            "kernel": np.zeros((tower.feature_dim, num_classes), np.float32),
            "bias": np.zeros(num_classes, np.float32),
        }
        self._start = {"tower": tower.params, "head": head}
        # Rate 1: what the optimiser gives is multiplied by the rate of the step, which is an argument.
        optim = OptimConfig(1.0, warmup_steps=0, schedule="constant", weight_decay=recipe.weight_decay)
        optimizer = make_optimizer(optim, total_steps=1)
        logits = functools.partial(_logits, tower.apply, recipe.mean, recipe.std)

        def train_step(
            params: Any, opt_state: Any, batch: Mapping[str, Any], rate: jax.Array
        ) -> tuple[Any, Any, jax.Array]:
            loss, grads = jax.value_and_grad(_loss)(params, logits, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return jax.tree.map(lambda leaf, update: leaf + rate * update, params, updates), opt_state, loss

        self._init = jax.jit(optimizer.init)
        self._step = jax.jit(train_step, donate_argnums=(0, 1))
        self._logits = jax.jit(logits)

    def train(self, data: Labelled, rows: np.ndarray, learning_rate: float, seed: int) -> Any:
        """Train on some rows.

        Args:
            data: the examples.
            rows: those that count, int64.
            learning_rate: the peak of the schedule.
            seed: of the order of the examples, anew in each epoch.

        Returns:
            The trained weights of network and classifier.
        """
        params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), self._start)  # the step donates what it is given
        opt_state = self._init(params)
        steps = self.recipe.epochs * -(-len(rows) // self.recipe.batch_size)
        optim = OptimConfig(learning_rate, warmup_steps=0, schedule=self.recipe.schedule)
        rates = np.asarray(learning_rate_schedule(optim, steps)(np.arange(steps)), np.float32)
        rng = np.random.default_rng(seed)
        batches = (b for _ in range(self.recipe.epochs) for b in self._batches(data, rng.permutation(rows)))
        before = None
        for rate, batch in zip(rates, batches, strict=True):
            params, opt_state, loss = self._step(params, opt_state, batch, rate)
            if before is not None:  # the host is one batch ahead, and no more: batches in flight take memory
                before.block_until_ready()
            before = loss
        return params

    def predict(self, params: Any, data: Labelled, rows: np.ndarray | None = None) -> np.ndarray | None:
        """The best class of each row (all of them when None), int64 [N]; None where a logit is not finite."""
        rows = np.arange(len(data.pixels)) if rows is None else rows
        found: list[Any] = []
        for batch in self._batches(data, rows):
            found.append(self._logits(params, batch["pixels"]))
            found[-2:-1] = [np.asarray(one) for one in found[-2:-1]]  # one batch ahead, as in training
        logits = np.concatenate(found)[: len(rows)]
        return logits.argmax(axis=1).astype(np.int64) if np.isfinite(logits).all() else None

    def _batches(self, data: Labelled, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Batches of one shape; the last one is filled up with the first row at weight 0."""
        size = self.recipe.batch_size
        for start in range(0, len(rows), size):
            real = rows[start : start + size]
            taken = np.concatenate([real, np.full(size - len(real), rows[0])])
            weights = (np.arange(size) < len(real)).astype(np.float32)
            labels = data.label_ids[taken].astype(np.int32)
            yield {"pixels": data.pixels[taken], "label_ids": labels, "weights": weights}


def _logits(
    apply: Callable[[Any, Any], Any],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    params: Any,
    pixels: jax.Array,
) -> jax.Array:
    """float32 [B, K] of pixels uint8 [B, S, S, 3]."""
    scaled = (pixels.astype(jnp.float32) / 255 - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
    features = apply(params["tower"], scaled).astype(jnp.float32)
    return features @ params["head"]["kernel"] + params["head"]["bias"]


def _loss(params: Any, logits: Callable[[Any, Any], jax.Array], batch: Mapping[str, Any]) -> jax.Array:
    """Cross-entropy, mean over the examples of weight 1."""
    log_shares = jax.nn.log_softmax(logits(params, batch["pixels"]))
    own = jnp.take_along_axis(log_shares, batch["label_ids"][:, None], axis=1)[:, 0]
    return -(own * batch["weights"]).sum() / batch["weights"].sum()
