"""``python -m plip_jax.train``: records -> a trained model. The only orchestrator of training; reads top to bottom.

A run lives in its work directory: ``checkpoints/``, ``metrics.jsonl`` and ``curves.png``. Started again with the same
work directory, it goes on where its newest checkpoint stands. It uses all devices of all hosts it is started on
(docs/scale.md).
"""

import argparse
import contextlib
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

from plip_jax import distributed, sharding
from plip_jax.api import Encoder
from plip_jax.config_file import parse_config_args
from plip_jax.data.examples import open_examples
from plip_jax.data.image import normalize_pixels
from plip_jax.data.pipeline import TrainIterator
from plip_jax.data.records import open_records
from plip_jax.data.warp import warp_images
from plip_jax.evaluation import suite
from plip_jax.model import clip, flops
from plip_jax.run_config import RunConfig
from plip_jax.starting_point import StartingPoint, initial_params, resumed_point, starting_point
from plip_jax.training.accumulation import AccumulatedStep
from plip_jax.training.checkpoint import Checkpoints, Description
from plip_jax.training.curves import draw_curves
from plip_jax.training.feed import AgreedBatches, make_place
from plip_jax.training.hardware import peak_flops_per_second
from plip_jax.training.logging import ProgressLine, cut_metrics, make_writers
from plip_jax.training.loop import Actions, Loop, Schedule, TrainingError, interrupted_by_signal
from plip_jax.training.losses import get_loss
from plip_jax.training.optim import learning_rate_schedule, make_optimizer, stop_frozen_gradients
from plip_jax.training.provenance import check_config, environment, locked, why_not_bit_exact
from plip_jax.training.speed import ProfileWindow, Speed
from plip_jax.training.state import TrainState, init_state
from plip_jax.training.step import Task, UpdateRule, make_train_step


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(prog="plip-jax train", description="Train a CLIP on image-text records.")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the run; an existing run is resumed")
    parser.add_argument(
        "--allow-config-change", action="store_true", help="resume although the configuration or the data changed"
    )
    parser.add_argument(
        "--profile", default="", metavar="START:STOP", help="write a trace of these steps to WORKDIR/profile"
    )
    distributed.add_distributed_flags(parser)
    flags, config = parse_config_args(parser, argv)
    resume_command = shlex.join(["python", "-m", "plip_jax.train", *(sys.argv[1:] if argv is None else argv)])
    try:
        distributed.start_from_flags(flags)  # first: it sets signal handlers of its own
        with interrupted_by_signal() as interrupted:
            run_config = RunConfig.read(config)
            profile = ProfileWindow.parse(flags.profile, flags.workdir / "profile") if flags.profile else None
            finished = train(run_config, flags.workdir, flags.allow_config_change, interrupted, profile)
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


def train(
    config: RunConfig,
    workdir: Path,
    allow_change: bool,
    interrupted: threading.Event,
    profile: ProfileWindow | None = None,
) -> bool:
    """Train from where the work directory stands.

    Args:
        config: checked.
        workdir: the run's folder; with several processes, one that all of them see.
        allow_change: resume with another configuration, or other data, than the run was started with.
        interrupted: once set in any process, the run saves and stops in all of them.
        profile: steps of which a trace is written.

    Returns:
        Whether the last step was reached.

    Raises:
        ValueError: a subclass with a message for the user.
    """
    for source in config.sources:
        open_records(source.path, source.split)  # says which command makes records, before anything else is opened
    evaluation_data = suite.open_data(config.planned, open_examples)
    mesh = sharding.make_mesh()
    is_main = distributed.is_main_process()
    with locked(workdir) if is_main else contextlib.nullcontext():
        checkpoints = Checkpoints(workdir, config.checkpoint)
        run = prepare(config, checkpoints, mesh, allow_change)
        progress = ProgressLine(run.last_step, process=jax.process_index() if jax.process_count() > 1 else None)
        speed, peak_source = make_speed(config, run.start, mesh)
        for line in [*run.hello(workdir, config, mesh), f"MFU against {peak_source}"]:
            progress.say(line)
        writers = []
        if is_main:  # the metrics are the same on every process
            cut_metrics(workdir, int(run.state.step))
            writers = make_writers(workdir, config.writers, config.flat, first_step=int(run.state.step) + 1)
        loop = Loop(
            run.schedule(config),
            make_actions(config, run, checkpoints, mesh, evaluation_data),
            run.batches,
            writers,
            progress,
            interrupted,
            speed,
            profile if is_main else None,
        )
        try:
            finished = loop.run(run.state)
        finally:
            checkpoints.close()  # lets the last write land
            run.batches.close()
            for writer in writers:
                writer.close()
        if finished and is_main:
            curves = draw_curves(workdir)
            progress.say(f"done: {workdir}" + (f", curves in {curves}" if curves else ""))
        return finished


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that may begin: all that could be refused was looked at, and nothing is written yet.

    Attributes:
        start: the network.
        iterator: the data.
        batches: its batches, behind those that are done.
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
    batches: AgreedBatches
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
        rows = self.iterator.packed_rows
        return [
            f"{workdir}: {count:,} parameters, {self.iterator.num_examples} records, batch "
            f"{config.data['global_batch_size']}, {self.total_steps} steps, "
            f"{mesh.size} {jax.default_backend()} devices"
            + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""),
            *([f"captions packed into {rows} rows a device"] if rows else []),
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
            max_skipped_steps=config.train.max_skipped_steps,
            stall_limit_seconds=config.train.stall_limit_seconds,
        )


def prepare(config: RunConfig, checkpoints: Checkpoints, mesh: Any, allow_change: bool) -> Run:
    """Begin a run, or go on from its newest checkpoint; raises a ValueError of its own class where it may not."""
    resumed = checkpoints.describe() if checkpoints.latest_step is not None else None
    changes = check_config(resumed.config, config.flat, allow_change=allow_change) if resumed else []
    start = resumed_point(resumed, checkpoints) if resumed else starting_point(config)
    iterator = config.make_iterator(start.config.vision.image_size, start.tokenizer, len(mesh.local_devices))
    check_same_packing(iterator)
    total_steps = config.train.total_steps(iterator.steps_per_epoch)
    optimizer = make_optimizer(config.optim, total_steps)
    place_state = functools.partial(sharding.params_sharding, mesh, strategy=config.train.params_sharding)
    init = functools.partial(
        init_state,
        initial_params(config, start),
        optimizer,
        place_state,
        keep_ema=config.train.ema_decay > 0,
    )
    environments = list(resumed.environments) if resumed else []
    reasons = why_not_bit_exact(environments) if resumed else []
    if environment() not in environments:
        environments.append(environment())
    if resumed:
        changes += restore_position(iterator, resumed.data_state, allow_change)
        state = restore(checkpoints, init, place_state)
    else:
        state = init()
    return Run(
        start=start,
        iterator=iterator,
        batches=AgreedBatches(iterator),
        state=state,
        take_step=make_take_step(config, start, mesh, optimizer, total_steps, place_state(state)),
        total_steps=total_steps,
        last_step=min(total_steps, config.train.stop_at_step or total_steps),
        changes=changes,
        environments=environments,
        not_bit_exact=reasons,
    )


def check_same_packing(iterator: TrainIterator) -> None:
    """Refuse processes that would run different programs."""
    rows = sharding.values_of_processes(iterator.packed_rows or 0)
    if len(set(rows)) > 1:
        raise TrainingError(
            f"the processes pack captions into different numbers of rows ({rows}): they read different records. "
            "Give all of them the same, and look with python -m data_prep.verify whether one cannot read some"
        )


def make_take_step(
    config: RunConfig, start: StartingPoint, mesh: Any, optimizer: Any, total_steps: int, state_sharding: Any
) -> Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Any]]:
    """The step on a host batch: in one pass, or in two where the batch is cut into micro-batches."""
    task = make_task(config, start, mesh)
    rule = UpdateRule(
        optimizer,
        learning_rate_schedule(config.optim, total_steps),
        task.loss.logit_scale_range,
        config.train.ema_decay,
    )
    micro_batches = config.train.accumulation_steps
    if micro_batches > 1:
        in_two_passes = AccumulatedStep(task, rule, mesh, micro_batches, state_sharding)
        return lambda state, batch: in_two_passes(state, make_place(mesh, batch, micro_batches))
    in_one_pass = make_train_step(task, rule, state_sharding)
    return lambda state, batch: in_one_pass(state, make_place(mesh, batch)(0))


def make_actions(config: RunConfig, run: Run, checkpoints: Checkpoints, mesh: Any, evaluation_data: Any) -> Actions:
    """What the loop does: the step, the evaluation, and a checkpoint that describes itself."""
    description = Description(
        run.start.config.to_dict(),
        run.start.preprocessing.to_dict(),
        dict(config.flat),
        [dict(machine) for machine in run.environments],
    )

    def save(state: TrainState, scores: Mapping[str, float]) -> None:
        here = dataclasses.replace(description, data_state=run.batches.get_state(), metrics=dict(scores))
        checkpoints.save(state, here, run.start.tokenizer.files)
        check_best_metric(config.checkpoint.best_metric, scores)

    return Actions(
        run.take_step,
        make_evaluate(config, run.start, mesh, evaluation_data),
        save,
        lambda: checkpoints.latest_step,
        sharding.any_process,
    )


def make_speed(config: RunConfig, start: StartingPoint, mesh: Any) -> tuple[Speed, str]:
    """What a step multiplies and what a device could at best; and where that comes from."""
    # `Speed` counts a backward pass of twice the forward pass; a frozen tower has none.
    image_share, text_share = (1 / 3 if tower in config.optim.frozen_towers else 1 for tower in ("vision", "text"))
    image_flops = image_share * flops.image_flops(start.config, config.model.patch_dropout)
    peak, source = peak_flops_per_second(mesh.local_devices[0], config.model.compute_dtype)
    speed = Speed(
        forward_flops=lambda lengths: len(lengths) * image_flops + text_share * flops.text_flops(start.config, lengths),
        peak_flops_per_second=peak,
        device_count=mesh.size,
        process_count=jax.process_count(),
    )
    return speed, f"{peak / 1e12:.3g} TFLOP/s a device ({source})"


def make_task(config: RunConfig, start: StartingPoint, mesh: Any) -> Task:
    """The encoders and the loss; pixels travel as uint8 and are warped and normalised on the device."""
    model = clip.build(
        start.config,
        compute_dtype=config.model.compute_dtype,
        remat=config.model.remat,
        patch_dropout=config.model.patch_dropout,
    )

    def encode_image(params: Any, batch: Mapping[str, Any], keys: jax.Array) -> jax.Array:
        pixels = warp_images(batch["image"], batch["warp"]) if "warp" in batch else batch["image"]
        return model.encode_image(params, normalize_pixels(pixels, start.preprocessing), keys)

    def encode_text(params: Any, text: Any) -> jax.Array:
        return model.encode_packed_text(params, text) if isinstance(text, Mapping) else model.encode_text(params, text)

    def prepare_params(params: Any) -> Any:
        return stop_frozen_gradients(config.optim, sharding.gather_params(mesh, params, config.train.params_sharding))

    return Task(encode_image, encode_text, get_loss(config.loss, mesh), config.seed, prepare_params)


def restore(
    checkpoints: Checkpoints, init: Callable[[], TrainState], place_state: Callable[[Any], TrainState]
) -> TrainState:
    """The newest checkpoint's state, on the devices."""
    shapes = jax.eval_shape(init)
    return checkpoints.restore(
        jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            shapes,
            place_state(shapes),
        )
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

    # Once, and not in every batch: an encoder on split weights would gather activations in each of its layers.
    gather = jax.jit(lambda params: params, out_shardings=sharding.replicated(mesh))

    def evaluate(params: Any) -> dict[str, float]:
        params = params if config.train.params_sharding == "replicated" else gather(params)
        results = suite.evaluate(
            config.planned,
            data,
            encode_images=functools.partial(encoder.encode_images, params),
            encode_text=functools.partial(encoder.encode_text, params),
            logit_scale=math.exp(float(params["logit_scale"])),
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
