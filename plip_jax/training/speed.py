"""What a run measures of itself: the time of its steps, the wait for its data, and on wish a trace of some steps."""

import dataclasses
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

# The backward pass multiplies twice what the forward pass does: once for the gradient of the weights and once for that
# of the activations (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
_FLOPS_OF_A_STEP = 3


@dataclasses.dataclass(frozen=True)
class Speed:
    """What turns the time of a step into rates.

    Attributes:
        forward_flops: text lengths int [b] of this process's batch -> FLOPs of the forward pass of its pairs, dead
            tokens and recomputation not counted; a multiplication and its addition are two.
        peak_flops_per_second: of one device, see `plip_jax.training.hardware`; None where it is not known.
        device_count: of all processes.
        process_count: how many run the same step.
    """

    forward_flops: Callable[[np.ndarray], float]
    peak_flops_per_second: float | None
    device_count: int
    process_count: int


@dataclasses.dataclass(frozen=True)
class Moment:
    """A time, and what was waited until then.

    Attributes:
        now: seconds of a clock that only rises.
        waited: seconds spent waiting for data.
    """

    now: float
    waited: float


class StepTimer:
    """Times the steps of a log interval.

    A step lasts from the end of the step before it to its own. Only steady ones count: `restart` after whatever is no
    step (evaluation, checkpoint, compilation), and that time is in no step and in no rate.
    """

    def __init__(self, speed: Speed, global_batch_size: int):
        self._speed = speed
        self._global_batch_size = global_batch_size
        self._known_shapes: set[Any] = set()
        self._waited = 0.0
        self._last: Moment | None = None
        self._clear()

    def _clear(self) -> None:
        self._seconds: list[float] = []
        self._seconds_waited = 0.0
        self._flops = 0.0
        self._live_tokens = self._all_tokens = 0

    def compiles(self, batch: Mapping[str, Any]) -> bool:
        """Whether a batch of these shapes was not seen before, so that its step compiles first."""
        shapes = _shapes(batch)
        is_new = shapes not in self._known_shapes
        self._known_shapes.add(shapes)
        return is_new

    def add_wait(self, seconds: float) -> None:
        """Count time spent waiting for data."""
        self._waited += seconds

    def moment(self) -> Moment:
        """Now."""
        return Moment(time.perf_counter(), self._waited)

    def restart(self) -> None:
        """Let the next step begin now."""
        self._last = self.moment()

    def leave_out_next(self) -> None:
        """Count the next step in nothing: it compiles."""
        self._last = None

    def end_step(self, end: Moment, text_lengths: np.ndarray | None, computed_tokens: int) -> None:
        """Count a step.

        Args:
            end: when it had finished.
            text_lengths: live tokens of each caption of this process's batch, int [b]; None where nobody counts them.
            computed_tokens: live or not, of the rows that the text tower was given.
        """
        start, self._last = self._last, end
        if start is None:
            return  # left out
        self._seconds.append(end.now - start.now)
        self._seconds_waited += end.waited - start.waited
        if text_lengths is not None:
            self._flops += _FLOPS_OF_A_STEP * self._speed.forward_flops(text_lengths)
            self._live_tokens += int(text_lengths.sum())
            self._all_tokens += computed_tokens

    def take_interval(self) -> dict[str, float]:
        """The metrics of the steps since the last call; empty if none was steady.

        Text is this process's share of the batch; with several processes its FLOPs stand for those of each.
        """
        speed, total = self._speed, sum(self._seconds)
        if total <= 0:
            return {}
        rate = len(self._seconds) / total
        pairs = rate * self._global_batch_size
        p50, p90 = np.percentile(self._seconds, [50, 90])
        metrics = {
            "steps_per_second": rate,
            "pairs_per_second": pairs,
            "pairs_per_second_per_device": pairs / speed.device_count,
            "step_seconds_p50": float(p50),
            "step_seconds_p90": float(p90),
            "step_seconds_max": max(self._seconds),
            "data_wait_share": self._seconds_waited / total,
        }
        if self._all_tokens:
            flops = self._flops * speed.process_count / total
            metrics |= {"live_token_share": self._live_tokens / self._all_tokens, "model_flops_per_second": flops}
            if speed.peak_flops_per_second is not None:
                metrics["mfu"] = flops / (speed.peak_flops_per_second * speed.device_count)
        self._clear()
        return metrics


def _shapes(batch: Mapping[str, Any]) -> Any:
    return tuple((name, _shapes(part) if isinstance(part, Mapping) else part.shape) for name, part in batch.items())


class StallWatch:
    """Says that data do not come while the loop waits for them; a context, because it has a thread of its own.

    One thread for the whole run looks now and then at what the loop is doing: a step pays for two uncontended locks.
    """

    def __init__(self, limit_seconds: float, say: Callable[[str], None]):
        """Say so by ``say``, from the thread, each time another ``limit_seconds`` have passed; 0 for never."""
        self._limit = limit_seconds
        self._say = say
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="stall watch", daemon=True)
        self._step = 0
        self._since: float | None = None
        self._said = 0

    def __enter__(self) -> Self:
        if self._limit > 0:
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._ended.set()
        if self._limit > 0:
            self._thread.join()

    def start_waiting(self, step: int) -> None:
        """The loop waits for the batch of a step from now on."""
        with self._lock:
            self._step, self._since, self._said = step, time.perf_counter(), 0

    def stop_waiting(self) -> float:
        """It came, or failed; the seconds waited."""
        with self._lock:
            now = time.perf_counter()
            since, self._since = self._since, None
            said = self._said
        waited = now - (now if since is None else since)
        if said:
            self._say(f"the wait for the batch of step {self._step} is over after {waited:.0f} s")
        return waited

    def _look(self) -> None:
        while not self._ended.wait(self._limit / 4):
            with self._lock:
                waited = 0.0 if self._since is None else time.perf_counter() - self._since
                if waited < (self._said + 1) * self._limit:
                    continue
                self._said = int(waited / self._limit)
                # Under the lock, so that no message comes after the one that says the wait is over.
                self._say(
                    f"waited {waited:.0f} s for the batch of step {self._step}, and no data yet. Look whether the "
                    "worker processes live and use their cores, and whether the disk or network share of the records "
                    "answers; if it is only slow, raise data.num_workers or data.prefetch"
                )


@dataclasses.dataclass(frozen=True)
class ProfileWindow:
    """Steps of which a trace is written.

    Attributes:
        start: the first, counted from 1 as in the log.
        stop: the last.
        folder: where to; TensorBoard's profile plugin and https://ui.perfetto.dev open what is there.
    """

    start: int
    stop: int
    folder: Path

    def __post_init__(self) -> None:
        if not 1 <= self.start <= self.stop:
            raise ValueError(f"profile window: expected 1 <= START <= STOP, got {self.start}:{self.stop}")

    @classmethod
    def parse(cls, text: str, folder: Path) -> "ProfileWindow":
        """Read ``START:STOP``; a ValueError says what was expected."""
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if not found:
            raise ValueError(f"profile window: expected START:STOP, two step numbers, got {text!r}")
        return cls(int(found[1]), int(found[2]), folder)


class Profiler:
    """Writes the trace of a window; does nothing without one."""

    def __init__(self, window: ProfileWindow | None, say: Callable[[str], None]):
        self._window = window
        self._say = say
        self._is_tracing = False
        self._first = 0

    def starts(self, step: int) -> bool:
        """Whether the trace begins with this step; a run that goes on within the window begins there."""
        window = self._window
        return window is not None and not self._is_tracing and window.start <= step <= window.stop

    def stops(self, step: int) -> bool:
        """Whether the trace ends with this step."""
        return self._is_tracing and self._window is not None and step >= self._window.stop

    def start(self, step: int) -> None:
        """Begin; the steps before must have finished."""
        assert self._window is not None
        jax.profiler.start_trace(str(self._window.folder))
        self._is_tracing, self._first = True, step

    def stop(self, step: int) -> None:
        """End and write, if a trace was begun; ``step`` must have finished."""
        if not self._is_tracing or self._window is None:
            return
        self._is_tracing = False
        jax.profiler.stop_trace()
        self._say(
            f"the trace of steps {self._first} to {step} is in {self._window.folder}: "
            f"tensorboard --logdir {self._window.folder}"
        )
        self._window = None

    def say_unused(self) -> None:
        """Say so where a window was asked for and no step of it was taken."""
        if self._window is not None and not self._is_tracing:
            self._say(f"no step of the profile window {self._window.start}:{self._window.stop} was taken: no trace")
