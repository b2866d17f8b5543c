"""The steps of a run and everything that happens between them: metrics, evaluation, checkpoints, signals, guards.

What a step, an evaluation or a checkpoint is made of is passed in; nothing is configured here but when.
"""

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import jax
import numpy as np

from plip_jax.training.hardware import peak_memory
from plip_jax.training.logging import MetricWriter, ProgressLine, headlines
from plip_jax.training.speed import Moment, Profiler, ProfileWindow, Speed, StallWatch, StepTimer
from plip_jax.training.state import TrainState
from plip_jax.training.step import Metrics

# Records of a batch that a message names; a batch has thousands.
_SHOWN_RECORDS = 8


class TrainingError(ValueError):
    """Training cannot start or go on; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When the loop does what; steps are updates, and an interval of 0 is never.

    Attributes:
        last_step: the loop ends there; it is evaluated and saved.
        steps_per_epoch: to count epochs.
        global_batch_size: to count pairs.
        eval_interval_steps: evaluation, and a checkpoint with it.
        checkpoint_interval_steps: checkpoints besides.
        log_interval_steps: metrics and progress.
        max_skipped_steps: so many skipped updates in a row end the run; at least 1.
        stall_limit_seconds: a wait for data that is longer is said, and said again after as long; 0 for never.
    """

    last_step: int
    steps_per_epoch: int
    global_batch_size: int
    eval_interval_steps: int
    checkpoint_interval_steps: int
    log_interval_steps: int
    max_skipped_steps: int
    stall_limit_seconds: float = 30.0


class Batches(Protocol):
    """The data iterator, as far as the loop needs it."""

    @property
    def skipped(self) -> int:
        """Records that were replaced."""
        ...

    def __next__(self) -> Mapping[str, Any]: ...  # the class says it

    def where(self, index: int) -> str:
        """The place on disk of a record, given by its number in a batch's ``index``."""
        ...


@dataclasses.dataclass(frozen=True)
class Actions:
    """What the loop does.

    Attributes:
        take_step: (state, host batch) -> next state and metrics, both on the device. It skips an update that is not
            finite itself and says so by ``skipped_in_row``, the steps skipped until now without one taken between.
        evaluate: (weights) -> flat metrics, empty where nothing is evaluated.
        save: (state, evaluation metrics) -> writes a checkpoint in the background.
        last_checkpoint: the step of the newest whole checkpoint, if there is one.
        agree: (wish of this process) -> an answer whose ``bool`` waits and is whether any process wishes it; needed
            with several processes, and called equally often by each (`plip_jax.sharding.any_process`).
    """

    take_step: Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Metrics]]
    evaluate: Callable[[Any], dict[str, float]]
    save: Callable[[TrainState, Mapping[str, float]], None]
    last_checkpoint: Callable[[], int | None]
    agree: Callable[[bool], Any] | None = None


@dataclasses.dataclass
class _Pending:
    """A step whose metrics are still on the device; ``done`` once it is known to have finished."""

    step: int
    metrics: Metrics
    done: Moment | None
    index: np.ndarray
    text_lengths: np.ndarray | None
    computed_tokens: int


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


class _Stop:
    """Whether to stop before the last step: a signal here, or in any process and then after the same step in all."""

    def __init__(self, interrupted: threading.Event, agree: Callable[[bool], Any] | None):
        self._interrupted = interrupted
        self._agree = agree
        self._asked: Any = False

    def is_wished(self) -> bool:
        """Ask and wait for the answer."""
        self._asked = False
        is_wished = self._interrupted.is_set()
        return is_wished if self._agree is None else bool(self._agree(is_wished))

    def was_wished(self) -> bool:
        """Ask, and return the answer of the step before, which no device has to be waited for."""
        if self._agree is None:
            return self._interrupted.is_set()
        answered, self._asked = self._asked, self._agree(self._interrupted.is_set())
        return bool(answered)


class Loop:
    """Takes steps from a state to the last one."""

    def __init__(
        self,
        schedule: Schedule,
        actions: Actions,
        batches: Batches,
        writers: Sequence[MetricWriter],
        progress: ProgressLine,
        interrupted: threading.Event,
        speed: Speed,
        profile: ProfileWindow | None = None,
    ):
        if speed.process_count > 1 and actions.agree is None:
            raise ValueError("several processes must agree when to stop: expected actions.agree, got None")
        self._schedule = schedule
        self._actions = actions
        self._batches = batches
        self._writers = writers
        self._progress = progress
        self._stop = _Stop(interrupted, actions.agree if speed.process_count > 1 else None)
        self._timer = StepTimer(speed, schedule.global_batch_size)
        self._process_count = speed.process_count
        self._profiler = Profiler(profile, progress.say)
        self._stalls = StallWatch(schedule.stall_limit_seconds, progress.warn)
        self._pending: _Pending | None = None
        self._saved_step: int | None = None

    def run(self, state: TrainState) -> bool:
        """Take steps until the last one or a signal, which saves; whether the last one was reached.

        Raises:
            TrainingError: the loss or gradient of ``max_skipped_steps`` steps in a row is not finite. Nothing is saved
                from it.
        """
        step = int(state.step)
        is_stopping = self._stop.is_wished()
        with self._stalls:
            try:
                while step < self._schedule.last_step and not is_stopping:
                    step += 1
                    state = self._take_step(step, state)
                    if step == self._schedule.last_step or _is_due(step, self._schedule.eval_interval_steps):
                        self._evaluate_and_save(step, state)
                        is_stopping = self._stop.is_wished()
                    else:
                        if _is_due(step, self._schedule.checkpoint_interval_steps):
                            self._save(step, state, {})
                        is_stopping = self._stop.was_wished()
                if is_stopping:
                    self._save(step, state, {})
                self._profiler.say_unused()
            finally:
                self._profiler.stop(step)
        return step >= self._schedule.last_step

    def _take_step(self, step: int, state: TrainState) -> TrainState:
        self._stalls.start_waiting(step)
        try:
            batch = next(self._batches)
        finally:
            self._timer.add_wait(self._stalls.stop_waiting())
        compiles, profiles = self._timer.compiles(batch), self._profiler.starts(step)
        if compiles or profiles:
            self._write_pending()  # what follows is neither the time nor the trace of the step before
        if profiles:
            self._profiler.start(step)
            self._timer.restart()
        if compiles:
            self._timer.leave_out_next()
        state, metrics = self._actions.take_step(state, batch)
        # Where dispatch waits for the step, as on a CPU, it has finished now and not when it is read.
        done = self._timer.moment() if _is_ready(metrics["loss"]) else None
        # Reading a step's metrics after the next is under way keeps the device busy.
        self._write_pending(ended_by=done)
        computed_tokens = np.size(batch["packed"]["tokens"] if "packed" in batch else batch["tokens"])
        self._pending = _Pending(step, metrics, done, batch["index"], batch.get("text_length"), computed_tokens)
        if compiles or self._profiler.stops(step):
            self._write_pending()
            if self._profiler.stops(step):
                self._profiler.stop(step)
            self._timer.restart()
        return state

    def _evaluate_and_save(self, step: int, state: TrainState) -> None:
        self._write_pending()
        try:
            scores = self._actions.evaluate(state.params if state.ema is None else state.ema)
        except BaseException:
            # The steps until here are not lost with it; but a save takes all processes, and this one may fail alone.
            if self._process_count == 1:
                self._save(step, state, {})
            raise
        if scores:
            for writer in self._writers:
                writer.write(step, scores)
        self._save(step, state, scores)
        if scores:
            shown = "  ".join(f"{name.removeprefix('eval/')} {scores[name]:.3f}" for name in headlines(scores))
            self._progress.say(f"step {step}  {shown}")

    def _save(self, step: int, state: TrainState, scores: Mapping[str, float]) -> None:
        if step == self._saved_step:
            return  # a signal came while it was evaluated
        # Metrics first: a step that a checkpoint holds must not be missing from the log after a kill.
        self._write_pending()
        self._actions.save(state, scores)
        self._saved_step = step
        self._timer.restart()

    def _write_pending(self, ended_by: Moment | None = None) -> None:
        """Write what is pending, whose step had ended by the moment given, where one is known."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        step = pending.step
        scalars = {name: float(value) for name, value in jax.device_get(pending.metrics).items()}
        end = pending.done or ended_by or self._timer.moment()
        self._timer.end_step(end, pending.text_lengths, pending.computed_tokens)
        is_skipped = scalars["skipped_in_row"] > 0
        is_logged = _is_due(step, self._schedule.log_interval_steps) or step == self._schedule.last_step
        if is_logged:
            scalars |= self._timer.take_interval() | peak_memory()
        if is_logged or is_skipped:
            scalars |= {"epoch": step / self._schedule.steps_per_epoch, "skipped_images": float(self._batches.skipped)}
            for writer in self._writers:
                writer.write(step, scalars)
        if is_logged:
            self._progress.report(step, scalars)
        if is_skipped:
            self._report_skipped(pending, scalars)

    def _report_skipped(self, pending: _Pending, scalars: Mapping[str, float]) -> None:
        """Say which step was skipped, or raise where too many were."""
        places = [self._batches.where(int(index)) for index in pending.index[:_SHOWN_RECORDS]]
        more = len(pending.index) - len(places)
        records = ", ".join(places) + (f" and {more} more" if more else "")
        what = ", ".join(f"{name} is {scalars[name]:.4g}" for name in ("loss", "grad_norm", "update_ratio"))
        in_row = int(scalars["skipped_in_row"])
        if in_row < self._schedule.max_skipped_steps:
            self._progress.warn(
                f"step {pending.step} is skipped, nothing is updated: {what} (records of the batch: {records})"
            )
            return
        last = self._actions.last_checkpoint()
        saved = "there is no checkpoint yet" if last is None else f"the newest whole checkpoint is of step {last}"
        raise TrainingError(
            f"step {pending.step}: {what}. Updates that are not finite were skipped {in_row} times in a row "
            f"(train.max_skipped_steps), and the run stops; nothing of it is saved, {saved}. Go on from there with a "
            "lower optim.learning_rate or with optim.clip_norm set (--allow-config-change), or look at the records of "
            f"this batch: {records}"
        )


def _is_ready(array: Any) -> bool:
    return array.is_ready()


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
