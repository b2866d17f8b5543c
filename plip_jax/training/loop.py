"""The steps of a run and everything that happens between them: metrics, evaluation, checkpoints, signals.

What a step, an evaluation or a checkpoint is made of is passed in; nothing is configured here but when.
"""

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import jax
import numpy as np

from plip_jax.training.logging import MetricWriter, ProgressLine, headlines
from plip_jax.training.state import TrainState
from plip_jax.training.step import Metrics


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
    """

    last_step: int
    steps_per_epoch: int
    global_batch_size: int
    eval_interval_steps: int
    checkpoint_interval_steps: int
    log_interval_steps: int


class Batches(Protocol):
    """The data iterator, as far as the loop needs it."""

    skipped: int

    def __next__(self) -> Mapping[str, np.ndarray]: ...  # the class says it


@dataclasses.dataclass(frozen=True)
class Actions:
    """What the loop does.

    Attributes:
        take_step: (state, host batch) -> next state and metrics, both on the device.
        evaluate: (params) -> flat metrics, empty where nothing is evaluated.
        save: (state, evaluation metrics) -> writes a checkpoint in the background.
    """

    take_step: Callable[[TrainState, Mapping[str, np.ndarray]], tuple[TrainState, Metrics]]
    evaluate: Callable[[Any], dict[str, float]]
    save: Callable[[TrainState, Mapping[str, float]], None]


@dataclasses.dataclass(frozen=True)
class _Clock:
    """A moment, and the seconds spent waiting for data until then."""

    now: float
    waited: float


@dataclasses.dataclass
class _Pending:
    """Metrics of a step that are still on the device; ``done`` once the step is known to have finished."""

    step: int
    metrics: Metrics
    done: _Clock | None


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
    ):
        self._schedule = schedule
        self._actions = actions
        self._batches = batches
        self._writers = writers
        self._progress = progress
        self._interrupted = interrupted
        self._pending: _Pending | None = None
        self._waited = 0.0
        self._logged = (0, self._clock())

    def run(self, state: TrainState) -> bool:
        """Take steps until the last one or a signal, which saves; whether the last one was reached.

        Raises:
            TrainingError: a loss or gradient that is not finite. Nothing is saved from it.
        """
        first = step = int(state.step)
        while step < self._schedule.last_step and not self._interrupted.is_set():
            entered = time.perf_counter()
            batch = next(self._batches)
            self._waited += time.perf_counter() - entered
            state, metrics = self._actions.take_step(state, batch)
            step += 1
            # Reading a step's metrics after the next is under way keeps the device busy.
            self._write_pending()
            # Where dispatch waits for the step, as on a CPU, it has finished now and not when it is read.
            self._pending = _Pending(step, metrics, self._clock() if _is_ready(metrics["loss"]) else None)
            if step == first + 1:
                self._restart_clock(step)  # the first step compiles; its time would hide the rate
            if step == self._schedule.last_step or _is_due(step, self._schedule.eval_interval_steps):
                self._evaluate_and_save(step, state)
            elif _is_due(step, self._schedule.checkpoint_interval_steps):
                self._save(state, {})
        if self._interrupted.is_set():
            self._save(state, {})
        return step >= self._schedule.last_step

    def _clock(self) -> _Clock:
        return _Clock(time.perf_counter(), self._waited)

    def _restart_clock(self, step: int) -> None:
        self._write_pending()
        self._logged = step, self._clock()

    def _evaluate_and_save(self, step: int, state: TrainState) -> None:
        self._write_pending()
        scores: dict[str, float] = {}
        try:
            scores = self._actions.evaluate(state.params)
        finally:
            # Also where evaluation fails: the steps until here are not lost with it.
            if scores:
                for writer in self._writers:
                    writer.write(step, scores)
            self._save(state, scores)
        if scores:
            shown = "  ".join(f"{name.removeprefix('eval/')} {scores[name]:.3f}" for name in headlines(scores))
            self._progress.say(f"step {step}  {shown}")
        self._restart_clock(step)

    def _save(self, state: TrainState, scores: Mapping[str, float]) -> None:
        # Metrics first: a step that a checkpoint holds must not be missing from the log after a kill.
        self._write_pending()
        self._actions.save(state, scores)

    def _write_pending(self) -> None:
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        step = pending.step
        scalars = {name: float(value) for name, value in jax.device_get(pending.metrics).items()}
        done = pending.done or self._clock()
        for name in ("loss", "grad_norm"):
            if not np.isfinite(scalars[name]):
                raise TrainingError(
                    f"step {step}: {name} is {scalars[name]}; the run stops, and its newest checkpoint is from before "
                    "this step. Lower optim.learning_rate, or set optim.clip_norm."
                )
        if not (_is_due(step, self._schedule.log_interval_steps) or step == self._schedule.last_step):
            return
        (logged_step, logged), self._logged = self._logged, (step, done)
        if step > logged_step and done.now > logged.now:
            rate = (step - logged_step) / (done.now - logged.now)
            scalars |= {
                "steps_per_second": rate,
                "pairs_per_second": rate * self._schedule.global_batch_size,
                "data_wait_share": (done.waited - logged.waited) / (done.now - logged.now),
            }
        scalars |= {"epoch": step / self._schedule.steps_per_epoch, "skipped_images": float(self._batches.skipped)}
        for writer in self._writers:
            writer.write(step, scalars)
        self._progress.report(step, scalars)


def _is_ready(array: Any) -> bool:
    return array.is_ready()


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
