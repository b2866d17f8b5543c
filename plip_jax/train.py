"""``python -m plip_jax.train``: records -> a trained model. The only orchestrator of training; reads top to bottom.

A run lives in its work directory: ``checkpoints/``, ``metrics.jsonl`` and ``curves.png``. Started again with the same
work directory, it goes on where its newest checkpoint stands. It uses all devices of one host.
"""

import argparse
import dataclasses
import functools
import math
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from plip_jax import sharding
from plip_jax.api import Encoder
from plip_jax.config_file import flatten_config, parse_config_args
from plip_jax.convert.load import load_model
from plip_jax.data.examples import open_examples
from plip_jax.data.image import Preprocessing, normalize_pixels
from plip_jax.data.pipeline import DataConfig, SourceConfig, TrainIterator, make_train_iterator
from plip_jax.data.records import open_records
from plip_jax.data.tokenizer import Tokenizer, load_tokenizer, restore_tokenizer, train_tokenizer
from plip_jax.evaluation import suite
from plip_jax.model import clip
from plip_jax.model.presets import CLIPConfig, get_preset
from plip_jax.training.checkpoint import CheckpointConfig, Checkpoints, Description
from plip_jax.training.curves import draw_curves
from plip_jax.training.logging import ProgressLine, cut_metrics, make_writers
from plip_jax.training.loop import Actions, Loop, Schedule, TrainingError, interrupted_by_signal
from plip_jax.training.losses import get_loss
from plip_jax.training.optim import OptimConfig, learning_rate_schedule, make_optimizer
from plip_jax.training.provenance import check_config, environment, locked, plain_config, why_not_bit_exact
from plip_jax.training.state import TrainState, init_state
from plip_jax.training.step import Task, make_train_step


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
    """

    epochs: float
    steps: int
    stop_at_step: int
    eval_interval_steps: int
    checkpoint_interval_steps: int
    log_interval_steps: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 1 if field.name == "log_interval_steps" else 0
            if getattr(self, field.name) < least:
                raise TrainingError(f"train.{field.name}: expected {least} or more, got {getattr(self, field.name)}")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Length of the schedule."""
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
    loss: Callable[..., Any]
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
            planned, _ = suite.plan_tasks(config.eval.tasks, block="config.eval.tasks")
            read = cls(
                seed=config.seed,
                model=ModelConfig(**config.model),
                sources=_sources(config.data.sources),
                data={name: value for name, value in config.data.items() if name != "sources"},
                loss=get_loss(config.loss.name),
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

    def make_iterator(self, start: "StartingPoint") -> TrainIterator:
        """Open the data iterator."""
        try:
            data = DataConfig(
                sources=self.sources, image_size=start.config.vision.image_size, seed=self.seed, **self.data
            )
        except TypeError as error:
            raise TrainingError(f"config.data: {error}") from error
        return make_train_iterator(data, start.tokenizer)


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """The network that is trained.

    Attributes:
        config: its sizes.
        params: weights to fine-tune; None to draw them, or where a checkpoint holds them.
        tokenizer: for the captions.
        preprocessing: for evaluation, and the statistics that training pixels are normalised by.
    """

    config: CLIPConfig
    params: dict[str, Any] | None
    tokenizer: Tokenizer
    preprocessing: Preprocessing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(prog="plip-jax train", description="Train a CLIP on image-text records.")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the run; an existing run is resumed")
    parser.add_argument(
        "--allow-config-change", action="store_true", help="resume although the configuration or the data changed"
    )
    flags, config = parse_config_args(parser, argv)
    resume_command = shlex.join(["python", "-m", "plip_jax.train", *(sys.argv[1:] if argv is None else argv)])
    try:
        with interrupted_by_signal() as interrupted:
            run_config = RunConfig.read(config)
            finished = train(run_config, flags.workdir, flags.allow_config_change, interrupted)
    except (ValueError, ImportError) as error:
        if not _raised_by_us(error):
            raise  # a fault of ours or of a library: the traceback is what helps
        print(f"plip-jax train: {error}", file=sys.stderr)
        return 1
    if not finished:
        print(f"stopped by a signal; saved. Resume with:\n  {resume_command}", file=sys.stderr)
    return 0


def _raised_by_us(error: BaseException) -> bool:
    """Whether the error comes from a check of ours, whose message says what to do."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).resolve().is_relative_to(Path(__file__).resolve().parent)


def train(config: RunConfig, workdir: Path, allow_change: bool, interrupted: threading.Event) -> bool:
    """Train from where the work directory stands.

    Args:
        config: checked.
        workdir: the run's folder.
        allow_change: resume with another configuration, or other data, than the run was started with.
        interrupted: once set, the run saves and stops.

    Returns:
        Whether the last step was reached.

    Raises:
        ValueError: a subclass with a message for the user.
    """
    for source in config.sources:
        open_records(source.path, source.split)  # says which command makes records, before anything else is opened
    evaluation_data = suite.open_data(config.planned, open_examples)
    mesh = sharding.make_mesh()
    with locked(workdir):
        checkpoints = Checkpoints(workdir, config.checkpoint)
        resumed = checkpoints.describe() if checkpoints.latest_step is not None else None
        changes = check_config(resumed.config, config.flat, allow_change=allow_change) if resumed else []
        start = resumed_point(resumed, checkpoints) if resumed else starting_point(config)
        iterator = config.make_iterator(start)
        total_steps = config.train.total_steps(iterator.steps_per_epoch)
        optimizer = make_optimizer(config.optim, total_steps)
        rate = learning_rate_schedule(config.optim, total_steps)
        step_function = make_train_step(make_task(config, start), optimizer, rate)
        init = functools.partial(init_state, initial_params(config, start), optimizer, sharding.replicated(mesh))
        state = restore(checkpoints, init, mesh) if resumed else init()
        if resumed:
            changes += restore_position(iterator, resumed.data_state, allow_change)

        last_step = min(total_steps, config.train.stop_at_step or total_steps)
        progress = ProgressLine(last_step)
        say_hello(progress, workdir, state, iterator, mesh, config, total_steps)
        for change in changes:
            progress.say(f"changed: {change}")
        environments = list(resumed.environments) if resumed else []
        for reason in why_not_bit_exact(environments) if resumed else ():
            progress.say(f"not bit-exact: {reason}")
        if environment() not in environments:
            environments.append(environment())

        cut_metrics(workdir, int(state.step))
        writers = make_writers(workdir, config.writers, config.flat, first_step=int(state.step) + 1)
        description = Description(
            start.config.to_dict(), start.preprocessing.to_dict(), dict(config.flat), environments
        )

        def take_step(state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Any]:
            return step_function(state, sharding.put_batch(mesh, {name: batch[name] for name in ("image", "tokens")}))

        def save(state: TrainState, scores: Mapping[str, float]) -> None:
            here = dataclasses.replace(description, data_state=iterator.get_state(), metrics=dict(scores))
            checkpoints.save(state, here, start.tokenizer.files)
            check_best_metric(config.checkpoint.best_metric, scores)

        loop = Loop(
            Schedule(
                last_step=last_step,
                steps_per_epoch=iterator.steps_per_epoch,
                global_batch_size=config.data["global_batch_size"],
                eval_interval_steps=config.train.eval_interval_steps,
                checkpoint_interval_steps=config.train.checkpoint_interval_steps,
                log_interval_steps=config.train.log_interval_steps,
            ),
            Actions(take_step, make_evaluate(config, start, mesh, evaluation_data), save),
            iterator,
            writers,
            progress,
            interrupted,
        )
        try:
            finished = loop.run(state)
        finally:
            checkpoints.close()  # lets the last write land
            iterator.close()
            for writer in writers:
                writer.close()
        if finished:
            curves = draw_curves(workdir)
            progress.say(f"done: {workdir}" + (f", curves in {curves}" if curves else ""))
        return finished


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


def resumed_point(resumed: Description, checkpoints: Checkpoints) -> StartingPoint:
    """What the newest checkpoint says it holds; the starting weights are not read again."""
    return StartingPoint(
        config=CLIPConfig.from_dict(resumed.model_config),
        params=None,
        tokenizer=restore_tokenizer(checkpoints.read_tokenizer_files()),
        preprocessing=Preprocessing.from_dict(resumed.preprocessing),
    )


def starting_point(config: RunConfig) -> StartingPoint:
    """The network of a new run: loaded, or of a preset's sizes with a tokenizer given or learned."""
    if config.model.init_from:
        loaded = load_model(config.model.init_from)
        tokenizer = loaded.tokenizer
        if config.model.tokenizer:
            tokenizer = load_tokenizer(config.model.tokenizer, context_length=loaded.config.text.context_length)
            if (tokenizer.vocab_size, tokenizer.eot_token_id) != (
                loaded.config.text.vocab_size,
                loaded.config.text.eot_token_id,
            ):
                raise TrainingError(
                    f"model.tokenizer {config.model.tokenizer}: expected the vocabulary of the starting weights "
                    f"({loaded.config.text.vocab_size} ids, end of text {loaded.config.text.eot_token_id}), got "
                    f"{tokenizer.vocab_size} and {tokenizer.eot_token_id}; leave it empty to use theirs"
                )
        return StartingPoint(loaded.config, loaded.params, tokenizer, loaded.preprocessing)
    network = get_preset(config.model.preset)
    context_length = network.text.context_length
    if config.model.tokenizer:
        tokenizer = load_tokenizer(config.model.tokenizer, context_length=context_length)
    else:
        captions = (
            caption
            for source in config.sources
            for record in open_records(source.path, source.split)
            for caption in record.captions
        )
        tokenizer = train_tokenizer(captions, vocab_size=network.text.vocab_size, context_length=context_length)
    text = dataclasses.replace(network.text, vocab_size=tokenizer.vocab_size, eot_token_id=tokenizer.eot_token_id)
    return StartingPoint(
        config=dataclasses.replace(network, text=text),
        params=None,
        tokenizer=tokenizer,
        preprocessing=Preprocessing(image_size=network.vision.image_size),
    )


def initial_params(config: RunConfig, start: StartingPoint) -> dict[str, Any] | Callable[[], dict[str, Any]]:
    """The weights to fine-tune, or the function that draws them."""
    return start.params or (lambda: clip.build(start.config).init(jax.random.key(config.seed)))


def make_task(config: RunConfig, start: StartingPoint) -> Task:
    """The encoders and the loss; pixels travel as uint8 and are normalised on the device."""
    model = clip.build(
        start.config,
        compute_dtype=config.model.compute_dtype,
        remat=config.model.remat,
        patch_dropout=config.model.patch_dropout,
    )

    def encode_image(params: Any, image: jax.Array, key: jax.Array) -> jax.Array:
        return model.encode_image(params, normalize_pixels(image, start.preprocessing), key)

    return Task(encode_image, model.encode_text, config.loss, config.seed)


def restore(checkpoints: Checkpoints, init: Callable[[], TrainState], mesh: Any) -> TrainState:
    """The newest checkpoint's state, on the devices."""
    where = sharding.replicated(mesh)
    shapes = jax.eval_shape(init)
    return checkpoints.restore(
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes)
    )


def restore_position(iterator: TrainIterator, data_state: Mapping[str, Any], allow_change: bool) -> list[str]:
    """Put the data iterator behind what the checkpoint has consumed; what changed in the data, for the log."""
    before = data_state.get("fingerprint")
    if before != iterator.fingerprint and not allow_change:
        raise TrainingError(
            f"the run was started on other data (fingerprint {before}, now {iterator.fingerprint}): records, weights, "
            "seed or batch size have changed. Restore them, or go on at the same count of batches of the new data "
            "with --allow-config-change."
        )
    iterator.set_state(dict(data_state), allow_changed_data=True)
    return [] if before == iterator.fingerprint else [f"data: {before} -> {iterator.fingerprint}"]


def make_evaluate(config: RunConfig, start: StartingPoint, mesh: Any, data: Any) -> Callable[[Any], dict[str, float]]:
    """The configured evaluations as a function of the parameters: flat metrics, ``eval/<task>/<metric>``."""
    encoder = Encoder(
        start.config,
        start.tokenizer,
        start.preprocessing,
        compute_dtype=config.model.compute_dtype,
        batch_size=config.eval_batch_size,
        mesh=mesh,
    )

    def evaluate(params: Any) -> dict[str, float]:
        results = suite.evaluate(
            config.planned,
            data,
            encode_images=functools.partial(encoder.encode_images, params),
            encode_text=functools.partial(encoder.encode_text, params),
        )
        return {
            f"eval/{name}/{metric}": value
            for name, result in results.items()
            for metric, value in result.report["metrics"].items()
        }

    return evaluate


def check_best_metric(name: str, scores: Mapping[str, float]) -> None:
    """Refuse a metric that no evaluation gives, as soon as one has been made."""
    if name and scores and name not in scores:
        raise TrainingError(f"checkpoint.best_metric is {name!r}; expected one of {', '.join(sorted(scores))}")


def say_hello(
    progress: ProgressLine,
    workdir: Path,
    state: TrainState,
    iterator: TrainIterator,
    mesh: Any,
    config: RunConfig,
    total_steps: int,
) -> None:
    """Print what is about to run."""
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    progress.say(
        f"{workdir}: {count:,} parameters, {iterator.num_examples} records, batch "
        f"{config.data['global_batch_size']}, {total_steps} steps, {mesh.size} {jax.default_backend()} devices"
    )
    if int(state.step):
        progress.say(f"resuming at step {int(state.step)}")


if __name__ == "__main__":
    sys.exit(main())
