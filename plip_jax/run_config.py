"""A training run's configuration, checked: each block of the ConfigDict becomes its owner's dataclass, once.

Below the program nobody sees a ConfigDict, so a search for a field finds its only reader.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from plip_jax.config_file import flatten_config
from plip_jax.data.pipeline import DataConfig, SourceConfig, TokenizeFn, TrainIterator, make_train_iterator
from plip_jax.evaluation import suite
from plip_jax.sharding import PARAMS_SHARDINGS
from plip_jax.training.checkpoint import CheckpointConfig
from plip_jax.training.loop import TrainingError
from plip_jax.training.losses import LossConfig
from plip_jax.training.optim import OptimConfig
from plip_jax.training.provenance import plain_config

ALL_CORES = -1  # as data.num_workers


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    Attributes:
        preset: a key of ``PRESETS``; read where nothing is fine-tuned.
        init_from: a model to fine-tune: folder, work directory or hub id; empty trains from scratch.
        tokenizer: a tokenizer's folder or hub id; empty takes that of ``init_from``, or learns one from the captions.
        compute_dtype: operands of the matrix products.
        remat: recompute activations in the backward pass.
        patch_dropout: share of patches left out in training.
    """

    preset: str
    init_from: str
    tokenizer: str
    compute_dtype: str
    remat: bool
    patch_dropout: float


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, and how often something is done on the way; steps are updates.

    Attributes:
        epochs: passes over the data; may be a fraction.
        steps: overrides ``epochs`` where above 0.
        stop_at_step: ends the run early, with the schedule of the whole length; 0 for never.
        eval_interval_steps: evaluation during training; 0 only at the end.
        checkpoint_interval_steps: checkpoints besides those at each evaluation and at the end; 0 for none.
        log_interval_steps: metrics and progress.
        accumulation_steps: micro-batches of a global batch; above 1 the exact step in two passes.
        params_sharding: a key of `plip_jax.sharding.PARAMS_SHARDINGS`.
        ema_decay: share of the weights' moving average that stays at each update; 0 keeps none.
        stall_limit_seconds: a wait for data that is longer is said; 0 for never.
        max_skipped_steps: steps in a row that may be skipped because they are not finite; then the run stops.
    """

    epochs: float
    steps: int
    stop_at_step: int
    eval_interval_steps: int
    checkpoint_interval_steps: int
    log_interval_steps: int
    accumulation_steps: int = 1
    params_sharding: str = "replicated"
    ema_decay: float = 0.0
    max_skipped_steps: int = 10
    stall_limit_seconds: float = 60.0

    def __post_init__(self) -> None:
        at_least_one = ("log_interval_steps", "accumulation_steps", "max_skipped_steps")
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 1 if field.name in at_least_one else 0
            if field.name != "params_sharding" and value < least:
                raise TrainingError(f"train.{field.name}: expected {least} or more, got {value}")
        if self.params_sharding not in PARAMS_SHARDINGS:
            raise TrainingError(
                f"train.params_sharding: expected one of {', '.join(PARAMS_SHARDINGS)}, got {self.params_sharding!r}"
            )
        if not self.ema_decay < 1:
            raise TrainingError(f"train.ema_decay: expected a share below 1, got {self.ema_decay}")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Length of the schedule.

        Raises:
            TrainingError: it has no steps.
        """
        total = self.steps or math.ceil(self.epochs * steps_per_epoch)
        if total < 1:
            raise TrainingError("train: expected steps or epochs above 0")
        return total


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The whole configuration, each block as its owner's dataclass; ``flat`` is what the run is compared by."""

    seed: int
    model: ModelConfig
    sources: tuple[SourceConfig, ...]
    data: Mapping[str, Any]
    loss: LossConfig
    group_by: tuple[str, ...]
    optim: OptimConfig
    train: TrainConfig
    planned: Sequence[suite.PlannedTask]
    eval_batch_size: int
    checkpoint: CheckpointConfig
    writers: tuple[str, ...]
    flat: Mapping[str, Any]

    @classmethod
    def read(cls, config: Any) -> "RunConfig":
        """Check every block; a TrainingError names the one that is missing or wrong."""
        try:
            planned, _ = suite.plan_tasks(config.eval.tasks, block="config.eval")
            read = cls(
                seed=config.seed,
                model=ModelConfig(**config.model),
                sources=_sources(config.data.sources),
                data={name: value for name, value in config.data.items() if name != "sources"},
                loss=LossConfig(**{name: value for name, value in config.loss.items() if name != "group_by"}),
                group_by=tuple(name.strip() for name in config.loss.group_by.split(",") if name.strip()),
                optim=OptimConfig(**config.optim),
                train=TrainConfig(**config.train),
                planned=planned,
                eval_batch_size=config.eval.batch_size,
                checkpoint=CheckpointConfig(**config.checkpoint),
                writers=tuple(name for name, on in config.logging.items() if on),
                flat=plain_config(flatten_config(config)),
            )
        except (AttributeError, TypeError) as error:
            raise TrainingError(f"this is no training config: {error}; configs/plip_vit_b32.py is one") from error
        if read.checkpoint.best_metric and not planned:
            raise TrainingError(
                f"checkpoint.best_metric is {read.checkpoint.best_metric!r}, but no set of config.eval.tasks has data; "
                "give one its folder, or leave the metric empty"
            )
        return read

    def make_iterator(self, image_size: int, tokenizer: TokenizeFn, local_devices: int) -> TrainIterator:
        """Open this process's data iterator for a network's images and captions.

        Args:
            image_size: side of the images, pixels.
            tokenizer: texts to ids.
            local_devices: devices of this process; captions are packed for each of them, and each micro-batch.

        Raises:
            TrainingError: a field of ``config.data`` that is unknown or missing.
            ValueError: a value out of range, or records that cannot be read.
        """
        settings = {**self.data, "num_workers": _workers(self.data["num_workers"])}
        try:
            data = DataConfig(
                sources=self.sources,
                image_size=image_size,
                seed=self.seed,
                group_by=self.group_by,
                text_parts=local_devices * self.train.accumulation_steps,
                **settings,
            )
        except TypeError as error:
            raise TrainingError(f"config.data: {error}") from error
        processes = jax.process_count()
        return make_train_iterator(data, tokenizer, process_index=jax.process_index(), process_count=processes)


def _workers(configured: int) -> int:
    """Data workers: as configured, or one for each core that this process may use."""
    if configured != ALL_CORES:
        return configured
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sources(blocks: Mapping[str, Any]) -> tuple[SourceConfig, ...]:
    """The records folders to train on; one without a path is left out unless all are."""
    sources = tuple(SourceConfig(**block) for block in blocks.values() if block["path"])
    if not sources:
        names = ", ".join(f"--config.data.sources.{name}.path=DIR" for name in blocks)
        raise TrainingError(
            f"no training data: give a records folder with {names}. Make one from an image-caption table with\n"
            "  python -m data_prep.build --source csv --table captions.csv --images DIR --out DIR\n"
            "or simulated tissue with\n"
            "  python -m data_prep.simulate --out DIR"
        )
    return sources
