"""``python -m plip_jax.train``: records -> a trained model. The only orchestrator of training; reads top to bottom.

A run lives in its work directory: ``checkpoints/``, ``metrics.jsonl`` and ``curves.png``. Started again with the same
work directory, it goes on where its newest checkpoint stands. It uses all devices of one host.
"""

import argparse
import dataclasses
import functools
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from plip_jax import sharding
from plip_jax.api import Encoder
from plip_jax.config_file import parse_config_args
from plip_jax.convert.load import load_model
from plip_jax.data.examples import open_examples
from plip_jax.data.image import Preprocessing, normalize_pixels
from plip_jax.data.pipeline import TrainIterator
from plip_jax.data.records import open_records
from plip_jax.data.tokenizer import Tokenizer, load_tokenizer, restore_tokenizer, train_tokenizer
from plip_jax.evaluation import suite
from plip_jax.model import clip
from plip_jax.model.presets import CLIPConfig, get_preset
from plip_jax.run_config import RunConfig
from plip_jax.training.checkpoint import Checkpoints, Description
from plip_jax.training.curves import draw_curves
from plip_jax.training.logging import ProgressLine, cut_metrics, make_writers
from plip_jax.training.loop import Actions, Loop, Schedule, TrainingError, interrupted_by_signal
from plip_jax.training.optim import learning_rate_schedule, make_optimizer
from plip_jax.training.provenance import check_config, environment, locked, why_not_bit_exact
from plip_jax.training.speed import Speed
from plip_jax.training.state import TrainState, init_state
from plip_jax.training.step import Task, make_train_step


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
        run = prepare(config, checkpoints, mesh, allow_change)
        progress = ProgressLine(run.last_step)
        for line in run.hello(workdir, config, mesh):
            progress.say(line)
        cut_metrics(workdir, int(run.state.step))
        writers = make_writers(workdir, config.writers, config.flat, first_step=int(run.state.step) + 1)
        loop = Loop(
            run.schedule(config),
            make_actions(config, run, checkpoints, mesh, evaluation_data),
            run.iterator,
            writers,
            progress,
            interrupted,
            Speed(
                context_length=run.start.config.text.context_length,
                forward_flops=lambda lengths: 0.0,  # the data do not count live tokens yet
                peak_flops_per_second=None,
                device_count=mesh.size,
                process_count=jax.process_count(),
            ),
        )
        try:
            finished = loop.run(run.state)
        finally:
            checkpoints.close()  # lets the last write land
            run.iterator.close()
            for writer in writers:
                writer.close()
        if finished:
            curves = draw_curves(workdir)
            progress.say(f"done: {workdir}" + (f", curves in {curves}" if curves else ""))
        return finished


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that may begin: all that could be refused was looked at, and nothing is written yet.

    Attributes:
        start: the network.
        iterator: the batches, behind those that are done.
        state: drawn, loaded or restored.
        take_step: the jitted step.
        total_steps: length of the schedule.
        last_step: where this run ends.
        changes: what is not as it was when the run began, allowed by the user.
        environments: of every machine of the run, this one among them.
        not_bit_exact: why a restart may differ from the unbroken run.
    """

    start: StartingPoint
    iterator: TrainIterator
    state: TrainState
    take_step: Callable[..., tuple[TrainState, Any]]
    total_steps: int
    last_step: int
    changes: Sequence[str]
    environments: Sequence[Mapping[str, Any]]
    not_bit_exact: Sequence[str]

    def hello(self, workdir: Path, config: RunConfig, mesh: Any) -> list[str]:
        """What is about to run, in lines."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        step = int(self.state.step)
        return [
            f"{workdir}: {count:,} parameters, {self.iterator.num_examples} records, batch "
            f"{config.data['global_batch_size']}, {self.total_steps} steps, "
            f"{mesh.size} {jax.default_backend()} devices",
            *([f"resuming at step {step}"] if step else []),
            *(f"changed: {change}" for change in self.changes),
            *(f"not bit-exact: {reason}" for reason in self.not_bit_exact),
        ]

    def schedule(self, config: RunConfig) -> Schedule:
        """When the loop does what."""
        return Schedule(
            last_step=self.last_step,
            steps_per_epoch=self.iterator.steps_per_epoch,
            global_batch_size=config.data["global_batch_size"],
            eval_interval_steps=config.train.eval_interval_steps,
            checkpoint_interval_steps=config.train.checkpoint_interval_steps,
            log_interval_steps=config.train.log_interval_steps,
            max_skipped_steps=1,
        )


def prepare(config: RunConfig, checkpoints: Checkpoints, mesh: Any, allow_change: bool) -> Run:
    """Begin a run, or go on from its newest checkpoint; raises a ValueError of its own class where it may not."""
    resumed = checkpoints.describe() if checkpoints.latest_step is not None else None
    changes = check_config(resumed.config, config.flat, allow_change=allow_change) if resumed else []
    start = resumed_point(resumed, checkpoints) if resumed else starting_point(config)
    iterator = config.make_iterator(start.config.vision.image_size, start.tokenizer)
    total_steps = config.train.total_steps(iterator.steps_per_epoch)
    optimizer = make_optimizer(config.optim, total_steps)
    step_function = make_train_step(
        make_task(config, start), optimizer, learning_rate_schedule(config.optim, total_steps)
    )
    init = functools.partial(init_state, initial_params(config, start), optimizer, sharding.replicated(mesh))
    environments = list(resumed.environments) if resumed else []
    reasons = why_not_bit_exact(environments) if resumed else []
    if environment() not in environments:
        environments.append(environment())
    if resumed:
        changes += restore_position(iterator, resumed.data_state, allow_change)

    def take_step(state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Any]:
        placed = sharding.put_batch(mesh, {name: batch[name] for name in ("image", "tokens")})
        state, metrics = step_function(state, placed)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        return state, {**metrics, "skipped_in_row": (~finite).astype(jnp.float32)}

    return Run(
        start=start,
        iterator=iterator,
        state=restore(checkpoints, init, mesh) if resumed else init(),
        take_step=take_step,
        total_steps=total_steps,
        last_step=min(total_steps, config.train.stop_at_step or total_steps),
        changes=changes,
        environments=environments,
        not_bit_exact=reasons,
    )


def make_actions(config: RunConfig, run: Run, checkpoints: Checkpoints, mesh: Any, evaluation_data: Any) -> Actions:
    """What the loop does: the step, the evaluation, and a checkpoint that describes itself."""
    description = Description(
        run.start.config.to_dict(),
        run.start.preprocessing.to_dict(),
        dict(config.flat),
        [dict(machine) for machine in run.environments],
    )

    def save(state: TrainState, scores: Mapping[str, float]) -> None:
        here = dataclasses.replace(description, data_state=run.iterator.get_state(), metrics=dict(scores))
        checkpoints.save(state, here, run.start.tokenizer.files)
        check_best_metric(config.checkpoint.best_metric, scores)

    return Actions(
        run.take_step, make_evaluate(config, run.start, mesh, evaluation_data), save, lambda: checkpoints.latest_step
    )


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

    def encode_image(params: Any, image: jax.Array, keys: jax.Array) -> jax.Array:
        return model.encode_image(params, normalize_pixels(image, start.preprocessing), keys)

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


if __name__ == "__main__":
    sys.exit(main())
