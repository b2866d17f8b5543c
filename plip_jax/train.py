"""``python -m plip_jax.train``: records -> a trained model. The only orchestrator of training; reads top to bottom.

A run lives in its work directory: ``run.json`` (what it is), ``tokenizer/``, ``checkpoints/``, ``metrics.jsonl`` and
``curves.png``. Started again with the same work directory, it goes on where its newest checkpoint stands.
"""

import argparse
import dataclasses
import functools
import math
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plip_jax import sharding
from plip_jax.api import Encoder
from plip_jax.config_file import flatten_config, parse_config_args
from plip_jax.convert.load import load_model
from plip_jax.data.examples import open_examples
from plip_jax.data.image import Preprocessing, normalize_pixels
from plip_jax.data.pipeline import DataConfig, SourceConfig, TrainIterator, make_train_iterator
from plip_jax.data.records import open_records
from plip_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from plip_jax.evaluation import suite
from plip_jax.model import clip
from plip_jax.model.presets import CLIPConfig, get_preset
from plip_jax.training import checkpoint, run_file
from plip_jax.training.curves import draw_curves
from plip_jax.training.logging import MetricWriter, ProgressLine, Stopwatch, cut_metrics, make_writers
from plip_jax.training.losses import get_loss
from plip_jax.training.optim import OptimConfig, learning_rate_schedule, make_optimizer
from plip_jax.training.state import TrainState, init_state
from plip_jax.training.step import Task, make_train_step


class TrainingError(ValueError):
    """Training cannot start or go on; the message says why and what to do."""


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
class StartingPoint:
    """What training starts from.

    Attributes:
        config: the network.
        params: weights to fine-tune; None to draw them.
        tokenizer: for the captions.
        preprocessing: for evaluation, and the statistics that training pixels are normalised by.
    """

    config: CLIPConfig
    params: dict[str, Any] | None
    tokenizer: Tokenizer
    preprocessing: Preprocessing

    @property
    def description(self) -> dict[str, Any]:
        """What every checkpoint says of its model."""
        return {
            "model_config": self.config.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m plip_jax.train", description="Train a CLIP on image-text records.")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the run; an existing run is resumed")
    parser.add_argument(
        "--allow-config-change", action="store_true", help="resume although the configuration is another"
    )
    flags, config = parse_config_args(parser, argv)
    resume_command = shlex.join(["python", "-m", "plip_jax.train", *(sys.argv[1:] if argv is None else argv)])
    try:
        return train(config, flags.workdir, flags.allow_config_change, resume_command)
    except (ValueError, ImportError) as error:
        if not _raised_by_us(error):
            raise  # a fault of ours or of a library: the traceback is what helps
        print(f"error: {error}", file=sys.stderr)
        return 1


def _raised_by_us(error: BaseException) -> bool:
    """Whether the error comes from a check of ours, whose message says what to do."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).resolve().is_relative_to(Path(__file__).resolve().parent)


def train(config: Any, workdir: Path, allow_config_change: bool, resume_command: str) -> int:
    """Train as the configuration says, from where the work directory stands.

    Args:
        config: the whole configuration.
        workdir: the run's folder.
        allow_config_change: resume with another configuration than the run was started with.
        resume_command: printed when the run is interrupted.

    Returns:
        0: finished, or saved and stopped by a signal.

    Raises:
        ValueError: a subclass with a message for the user.
    """
    train_config = TrainConfig(**config.train)
    sources = make_sources(config.data.sources)
    planned, _ = suite.plan_tasks(config.eval.tasks, block="config.eval.tasks")
    evaluation_data = suite.open_data(planned, open_examples)

    workdir.mkdir(parents=True, exist_ok=True)
    previous = run_file.load_run_file(workdir)
    changes: list[str] = []
    if previous is not None:
        changes = run_file.check_config(previous, flatten_config(config), allow_change=allow_config_change)
    start = starting_point(config, workdir, sources)

    mesh = sharding.make_mesh()
    iterator = make_train_iterator(
        DataConfig(
            sources=sources,
            image_size=start.config.vision.image_size,
            seed=config.seed,
            **{key: value for key, value in config.data.items() if key != "sources"},
        ),
        start.tokenizer,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    total_steps = train_config.total_steps(iterator.steps_per_epoch)
    optim_config = OptimConfig(**config.optim)
    optimizer = make_optimizer(optim_config, total_steps)
    train_step = make_train_step(make_task(config, start), optimizer, learning_rate_schedule(optim_config, total_steps))

    start.tokenizer.save(checkpoint.tokenizer_dir(workdir))
    this_run = run_file.make_run_file(flatten_config(config), start.description)
    this_run.save(workdir)
    checkpoints = checkpoint.Checkpoints(workdir, checkpoint.CheckpointConfig(**config.checkpoint), start.description)
    progress = ProgressLine(min(total_steps, train_config.stop_at_step or total_steps))
    progress.say(
        f"{workdir}: {_count(start)} parameters, {iterator.num_examples} records, batch "
        f"{config.data.global_batch_size}, {total_steps} steps, {mesh.size} {jax.default_backend()} devices"
    )
    for change in changes:
        progress.say(f"configuration changed: {change}")

    init = functools.partial(init_state, start.params or _draw(config, start), optimizer, sharding.replicated(mesh))
    if checkpoints.latest_step is None:
        state = init()
        cut_metrics(workdir, 0)
    else:
        state = restore(checkpoints, jax.eval_shape(init), mesh, iterator, bool(changes))
        cut_metrics(workdir, int(state.step))
        progress.say(f"resuming at step {int(state.step)}")
    if previous is not None:
        for reason in run_file.why_not_bit_exact(previous):
            progress.say(f"not bit-exact: {reason}")

    encoder = Encoder(
        start.config,
        start.tokenizer,
        start.preprocessing,
        compute_dtype=config.model.compute_dtype,
        batch_size=config.eval.batch_size,
        mesh=mesh,
    )
    loop = Loop(
        config=train_config,
        last_step=min(total_steps, train_config.stop_at_step or total_steps),
        global_batch_size=config.data.global_batch_size,
        mesh=mesh,
        iterator=iterator,
        train_step=train_step,
        evaluate=functools.partial(evaluate, encoder, planned, evaluation_data),
        checkpoints=checkpoints,
        writers=make_writers(workdir, [name for name, on in config.logging.items() if on], flatten_config(config)),
        progress=progress,
    )
    try:
        finished = loop.run(state)
    finally:
        loop.close()
    if finished:
        curves = draw_curves(workdir)
        progress.say(f"done: {workdir}" + (f", curves in {curves}" if curves else ""))
    else:
        progress.say(f"stopped by a signal; saved. Resume with:\n  {resume_command}")
    return 0


def make_sources(blocks: Mapping[str, Any]) -> tuple[SourceConfig, ...]:
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


def starting_point(config: Any, workdir: Path, sources: Sequence[SourceConfig]) -> StartingPoint:
    """The network, its weights where it is fine-tuned, its tokenizer and its preprocessing.

    A resumed run takes its tokenizer from the work directory.
    """
    kept = checkpoint.tokenizer_dir(workdir)
    if config.model.init_from:
        loaded = load_model(config.model.init_from)
        tokenizer = load_tokenizer(kept) if kept.is_dir() else loaded.tokenizer
        return StartingPoint(loaded.config, loaded.params, tokenizer, loaded.preprocessing)
    network = get_preset(config.model.preset)
    if kept.is_dir():
        tokenizer = load_tokenizer(kept)
    elif config.model.tokenizer:
        tokenizer = load_tokenizer(config.model.tokenizer, context_length=network.text.context_length)
    else:
        captions = (
            caption
            for source in sources
            for record in open_records(source.path, source.split)
            for caption in record.captions
        )
        tokenizer = train_tokenizer(
            captions, vocab_size=network.text.vocab_size, context_length=network.text.context_length
        )
    text = dataclasses.replace(network.text, vocab_size=tokenizer.vocab_size, eot_token_id=tokenizer.eot_token_id)
    return StartingPoint(
        config=dataclasses.replace(network, text=text),
        params=None,
        tokenizer=tokenizer,
        preprocessing=Preprocessing(image_size=network.vision.image_size),
    )


def make_task(config: Any, start: StartingPoint) -> Task:
    """The encoders and the loss; pixels travel as uint8 and are normalised on the device."""
    model = clip.build(
        start.config,
        compute_dtype=config.model.compute_dtype,
        remat=config.model.remat,
        patch_dropout=config.model.patch_dropout,
    )

    def encode_image(params: Any, image: jax.Array, key: jax.Array) -> jax.Array:
        return model.encode_image(params, normalize_pixels(image, start.preprocessing), key)

    return Task(encode_image, model.encode_text, get_loss(config.loss.name), config.seed)


def _draw(config: Any, start: StartingPoint) -> Callable[[], dict[str, Any]]:
    return lambda: clip.build(start.config).init(jax.random.key(config.seed))


def _count(start: StartingPoint) -> str:
    return f"{sum(leaf.size for leaf in jax.tree.leaves(clip.build(start.config).abstract_params())):,}"


def restore(
    checkpoints: checkpoint.Checkpoints, shapes: TrainState, mesh: Any, iterator: TrainIterator, changed: bool
) -> TrainState:
    """Put state and data iterator back to the newest checkpoint."""
    where = sharding.replicated(mesh)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes)
    restored = checkpoints.restore(abstract)
    iterator.set_state(dict(restored.data_state), allow_changed_data=changed)
    return restored.state


def evaluate(encoder: Encoder, planned: Any, data: Any, params: Any) -> dict[str, float]:
    """Run the configured evaluations on the parameters: flat metrics, ``eval/<task>/<metric>``."""
    results = suite.evaluate(
        planned,
        data,
        encode_images=lambda images: encoder.encode_images(params, images),
        encode_text=lambda texts: encoder.encode_text(params, texts),
    )
    return {
        f"eval/{name}/{metric}": value
        for name, result in results.items()
        for metric, value in result.report["metrics"].items()
    }


@contextmanager
def interrupted_by_signal() -> Iterator[threading.Event]:
    """Within the block, SIGTERM and the first SIGINT set the event instead of killing the process."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may set handlers
        return

    def handle(number: int, _: Any) -> None:
        event.set()
        signal.signal(number, previous[number])  # a second one acts as ever

    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in previous:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclasses.dataclass
class Loop:
    """The steps of a run, with everything that happens between them."""

    config: TrainConfig
    last_step: int
    global_batch_size: int
    mesh: Any
    iterator: TrainIterator
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[[Any], dict[str, float]]
    checkpoints: checkpoint.Checkpoints
    writers: Sequence[MetricWriter]
    progress: ProgressLine
    _pending: tuple[int, dict[str, jax.Array]] | None = None
    _logged_step: int = 0

    def run(self, state: TrainState) -> bool:
        """Take steps until the last one or a signal; whether the last one was reached."""
        self._data_wait = Stopwatch()
        step = first = self._logged_step = int(state.step)
        with interrupted_by_signal() as interrupted:
            while step < self.last_step and not interrupted.is_set():
                with self._data_wait:
                    batch = next(self.iterator)
                images_and_tokens = {name: batch[name] for name in ("image", "tokens")}
                state, metrics = self.train_step(state, sharding.put_batch(self.mesh, images_and_tokens))
                step += 1
                # Reading a step's metrics after the next is under way keeps the device busy.
                self._write_pending()
                self._pending = step, metrics
                if step == first + 1:
                    self._write_pending()
                    self._data_wait.read()  # the first step compiles; its time would hide the rate
                    self._logged_step = step
                if self._is_due(step, self.config.eval_interval_steps) or step == self.last_step:
                    self._evaluate_and_save(step, state)
                elif self._is_due(step, self.config.checkpoint_interval_steps):
                    self._save(state, {})
            if interrupted.is_set():
                self._save(state, {})
        return step >= self.last_step

    def close(self) -> None:
        """Let the last checkpoint land; stop the data workers; close the writers."""
        self.checkpoints.close()
        self.iterator.close()
        for writer in self.writers:
            writer.close()

    @staticmethod
    def _is_due(step: int, interval: int) -> bool:
        return interval > 0 and step % interval == 0

    def _evaluate_and_save(self, step: int, state: TrainState) -> None:
        self._write_pending()
        scores = self.evaluate(state.params)
        if scores:
            for writer in self.writers:
                writer.write(step, scores)
            shown = "  ".join(f"{name.removeprefix('eval/')} {scores[name]:.3f}" for name in _headlines(scores))
            self.progress.say(f"step {step}  {shown}")
        self._save(state, scores)
        self._data_wait.read()
        self._logged_step = step

    def _save(self, state: TrainState, scores: Mapping[str, float]) -> None:
        # Metrics first: a step that a checkpoint holds must not be missing from the log after a kill.
        self._write_pending()
        self.checkpoints.save(state, self.iterator.get_state(), scores)

    def _write_pending(self) -> None:
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        scalars = {name: float(value) for name, value in metrics.items()}
        if not np.isfinite(scalars["loss"]):
            raise TrainingError(
                f"step {step}: the loss is {scalars['loss']}; newest checkpoint: step {self.checkpoints.latest_step}. "
                "Lower optim.learning_rate, or set optim.clip_norm."
            )
        if not (self._is_due(step, self.config.log_interval_steps) or step == self.last_step):
            return
        waiting, seconds = self._data_wait.read()
        steps, self._logged_step = step - self._logged_step, step
        rate = steps / seconds
        scalars |= {
            "epoch": step / self.iterator.steps_per_epoch,
            "steps_per_second": rate,
            "pairs_per_second": rate * self.global_batch_size,
            "data_wait_share": waiting / seconds,
            "skipped_images": float(self.iterator.skipped),
        }
        for writer in self.writers:
            writer.write(step, scalars)
        self.progress.report(step, scalars)


def _headlines(scores: Mapping[str, float]) -> list[str]:
    return [name for name in scores if name.endswith(("recall@10", "weighted_f1"))]


if __name__ == "__main__":
    sys.exit(main())
