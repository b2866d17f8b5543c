"""What happens between steps: guards, the agreed stop, evaluation, the log, the stall message, the trace."""

import dataclasses
import io
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from plip_jax.training.logging import ProgressLine, make_writers, read_metrics
from plip_jax.training.loop import Actions, Loop, Schedule, TrainingError
from plip_jax.training.speed import ProfileWindow, Speed
from plip_jax.training.state import TrainState

BATCH = 12
SCHEDULE = Schedule(
    last_step=10,
    steps_per_epoch=5,
    global_batch_size=BATCH,
    eval_interval_steps=0,
    checkpoint_interval_steps=0,
    log_interval_steps=1,
    max_skipped_steps=3,
)
SPEED = Speed(lambda lengths: 10.0 * lengths.sum(), 1e6, device_count=2, process_count=1)


class Batches:
    """Twelve records a batch, numbered on; every caption has 4 live tokens of 8."""

    skipped = 0

    def __init__(self, slow_step: int = 0, slow_seconds: float = 0.0):
        self._made = 0
        self._slow_step, self._slow_seconds = slow_step, slow_seconds

    def __next__(self):
        self._made += 1
        if self._made == self._slow_step:
            time.sleep(self._slow_seconds)
        index = np.arange(BATCH) + BATCH * (self._made - 1)
        return {"index": index, "tokens": np.zeros((BATCH, 8)), "text_length": np.full(BATCH, 4, np.int32)}

    def where(self, index):
        return f"shard:{index}"


class Run:
    """A loop over steps that do nothing, and what it did in order."""

    def __init__(
        self,
        workdir: Path,
        schedule=SCHEDULE,
        *,
        not_finite=(),
        speed=SPEED,
        agree=None,
        batches=None,
        profile=None,
        process=None,
    ):
        self.events = []
        self.at = {}  # step -> called once the step is dispatched
        self.at_evaluation = {}
        self.interrupted = threading.Event()
        self.stream = io.StringIO()
        self.workdir = workdir
        self._not_finite, self._in_row, self._saved = not_finite, 0, None
        self._schedule, self._agree = schedule, agree
        self._rest = {"speed": speed, "profile": profile}
        self._batches = batches or Batches()
        self._progress = ProgressLine(schedule.last_step, self.stream, process=process)

    def __call__(self, step=0, ema=None):
        actions = Actions(self._take_step, self._evaluate, self._save, lambda: self._saved, self._agree)
        scalar = np.zeros((), np.int32)
        (self._writer,) = make_writers(self.workdir, [], {})
        try:
            loop = Loop(self._schedule, actions, self._batches, [self], self._progress, self.interrupted, **self._rest)
            return loop.run(TrainState(np.int32(step), {"w": "raw"}, (), ema, scalar, scalar))
        finally:
            self._writer.close()

    def write(self, step, scalars):
        self.events.append(("write", step))
        self._writer.write(step, scalars)

    def _take_step(self, state, batch):
        step = int(state.step) + 1
        self.events.append(("step", step))
        self.at.get(step, lambda: None)()
        bad = step in self._not_finite
        self._in_row = self._in_row + 1 if bad else 0
        values = {"loss": np.nan if bad else 1 / step, "grad_norm": np.inf if bad else 2.0}
        values |= {"update_ratio": 0.0, "skipped_steps": 0.0, "skipped_in_row": float(self._in_row)}
        metrics = {name: jnp.float32(value) for name, value in values.items()}
        return dataclasses.replace(state, step=np.int32(step)), metrics

    def _evaluate(self, weights):
        self.events.append(("evaluate", weights["w"]))
        self.at_evaluation.get("now", lambda: None)()
        return {"eval/set/recall@10": 0.5}

    def _save(self, state, scores):
        self._saved = int(state.step)
        self.events.append(("save", self._saved, len(scores)))

    def done(self, kind):
        return [event[1:] if len(event) > 2 else event[1] for event in self.events if event[0] == kind]

    @property
    def said(self):
        return self.stream.getvalue().splitlines()


def test_metrics_are_written_one_step_late_and_before_a_checkpoint(tmp_path):
    run = Run(tmp_path, dataclasses.replace(SCHEDULE, last_step=5, checkpoint_interval_steps=4))
    assert run()
    # The first step compiles and is awaited; a checkpoint must not hold a step that the log lacks.
    order = ["step 1", "write 1", "step 2", "step 3", "write 2", "step 4", "write 3", "write 4", "save 4", "step 5"]
    order += ["write 5", "evaluate raw", "write 5", "save 5"]
    assert [f"{event[0]} {event[1]}" for event in run.events] == order


def test_a_step_that_is_not_finite_is_said_once_and_training_goes_on(tmp_path):
    run = Run(tmp_path, dataclasses.replace(SCHEDULE, log_interval_steps=10), not_finite=(3, 4, 6, 7))
    assert run()
    skipped = [line for line in run.said if "is skipped" in line]
    assert [line.split()[1] for line in skipped] == ["3", "4", "6", "7"]
    assert "loss is nan, grad_norm is inf" in skipped[0]
    places = ", ".join(f"shard:{index}" for index in range(24, 32))
    assert f"(records of the batch: {places} and 4 more)" in skipped[0]
    # Between the logged intervals too, and with what JSON has no number for.
    lines = [line for line in read_metrics(tmp_path) if "loss" in line]
    assert [line["step"] for line in lines] == [3, 4, 6, 7, 10]
    assert (lines[0]["loss"], lines[0]["grad_norm"], lines[0]["skipped_in_row"]) == ("nan", "inf", 1.0)


def test_too_many_in_a_row_stop_the_run_and_nothing_of_it_is_saved(tmp_path):
    schedule = dataclasses.replace(SCHEDULE, checkpoint_interval_steps=4)
    run = Run(tmp_path, schedule, not_finite=(2, 3, 6, 7, 8))
    with pytest.raises(TrainingError) as stopped:
        run()
    message = str(stopped.value)
    assert message.startswith("step 8: loss is nan, grad_norm is inf, update_ratio is 0. ")
    assert "3 times in a row" in message
    assert "the newest whole checkpoint is of step 4" in message
    assert message.endswith("shard:90, shard:91 and 4 more")
    assert message.count("shard:") == 8
    assert run.done("save") == [(4, 0)]
    assert run.done("write") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sum("is skipped" in line for line in run.said) == 4  # the last is the error
    with pytest.raises(TrainingError, match="there is no checkpoint yet"):
        Run(tmp_path, dataclasses.replace(schedule, max_skipped_steps=1), not_finite=(1,))()


def test_the_average_of_the_weights_is_what_is_evaluated_where_there_is_one(tmp_path):
    for ema, evaluated in ((None, "raw"), ({"w": "averaged"}, "averaged")):
        run = Run(tmp_path, dataclasses.replace(SCHEDULE, last_step=1))
        assert run(ema=ema)
        assert run.done("evaluate") == [evaluated]


def test_a_signal_stops_one_process_at_once_and_saves_the_step_once(tmp_path):
    run = Run(tmp_path)
    run.at[3] = run.interrupted.set
    assert not run()
    assert run.done("step") == [1, 2, 3]
    assert run.done("save") == [(3, 0)]
    during = Run(tmp_path, dataclasses.replace(SCHEDULE, eval_interval_steps=4))
    during.at_evaluation["now"] = during.interrupted.set
    assert not during()
    assert during.done("step") == [1, 2, 3, 4]
    assert during.done("save") == [(4, 1)]  # after the evaluation, with its scores
    before = Run(tmp_path)
    before.interrupted.set()
    assert not before(step=7)
    assert before.events == [("save", 7, 0)]


class Votes:
    """Answers of processes to each other, as `any_process` gives them: waited for when they are read."""

    def __init__(self, processes: int):
        self._processes = processes
        self._votes: dict[int, dict[int, bool]] = {}
        self._changed = threading.Condition()
        self.asked = [0] * processes
        self.answered: list[list[int]] = [[] for _ in range(processes)]  # how many were asked when one was read

    def of(self, process: int):
        def agree(flag: bool):
            with self._changed:
                number = self.asked[process]
                self.asked[process] += 1
                self._votes.setdefault(number, {})[process] = flag
                self._changed.notify_all()
            return Answer(self, process, number)

        return agree

    def read(self, process: int, number: int) -> bool:
        with self._changed:
            self.answered[process].append(self.asked[process] - number)
            everyone = self._changed.wait_for(lambda: len(self._votes[number]) == self._processes, timeout=60)
            assert everyone, "a process asked more often than the other"
            return any(self._votes[number].values())


@dataclasses.dataclass
class Answer:
    votes: Votes
    process: int
    number: int

    def __bool__(self):
        return self.votes.read(self.process, self.number)


def run_together(runs) -> list[bool]:
    finished = [None] * len(runs)

    def go(index):
        finished[index] = runs[index]()

    threads = [threading.Thread(target=go, args=(index,)) for index in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return finished


def two_runs(tmp_path, schedule):
    votes = Votes(2)
    speed = dataclasses.replace(SPEED, process_count=2)
    runs = []
    for process in range(2):
        (tmp_path / str(process)).mkdir(exist_ok=True)
        runs.append(Run(tmp_path / str(process), schedule, speed=speed, agree=votes.of(process), process=process))
    return votes, runs


def test_processes_stop_after_the_same_step_and_save_it_once(tmp_path):
    votes, (first, second) = two_runs(tmp_path, SCHEDULE)
    first.at[3] = first.interrupted.set
    assert run_together([first, second]) == [False, False]
    # The wish of step 3 is asked with that step and read after the next.
    assert first.done("step") == second.done("step") == [1, 2, 3, 4]
    assert first.done("save") == second.done("save") == [(4, 0)]
    assert votes.asked[0] == votes.asked[1]
    # At the start the answer is awaited; then another question is on its way whenever one is read.
    assert votes.answered[0] == [1, 2, 2, 2]


def test_processes_stop_after_an_evaluation_in_which_one_was_told_to(tmp_path):
    votes, (first, second) = two_runs(tmp_path, dataclasses.replace(SCHEDULE, eval_interval_steps=2))
    second.at_evaluation["now"] = second.interrupted.set
    assert run_together([first, second]) == [False, False]
    assert first.done("step") == second.done("step") == [1, 2]
    assert first.done("save") == second.done("save") == [(2, 1)]
    assert votes.asked[0] == votes.asked[1]


def test_processes_that_cannot_agree_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected actions\.agree"):
        Run(tmp_path, speed=dataclasses.replace(SPEED, process_count=2))()


def test_the_log_holds_speed_without_evaluations_and_checkpoints(tmp_path):
    schedule = dataclasses.replace(SCHEDULE, last_step=6, eval_interval_steps=3, log_interval_steps=2)
    run = Run(tmp_path, schedule)
    for step in range(1, 7):
        run.at[step] = lambda: time.sleep(0.005)
    run.at_evaluation["now"] = lambda: time.sleep(1.0) or run.at_evaluation.clear()  # the first one only
    assert run()
    lines = [line for line in read_metrics(tmp_path) if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert 0.005 <= line["step_seconds_p50"] <= line["step_seconds_p90"] <= line["step_seconds_max"] < 1.0
        assert line["pairs_per_second"] == pytest.approx(BATCH * line["steps_per_second"])
        assert line["pairs_per_second_per_device"] == pytest.approx(line["pairs_per_second"] / 2)
        assert line["live_token_share"] == 0.5
        # Three times 480 FLOPs of the forward pass a step, of twice 1e6 a second.
        assert line["model_flops_per_second"] == pytest.approx(1440 * line["steps_per_second"])
        assert line["mfu"] == pytest.approx(line["model_flops_per_second"] / 2e6)
        assert 0 <= line["data_wait_share"] <= 1
        assert line["host_peak_memory_bytes"] > 1e6
    assert "MFU" in run.said[-1] or "MFU" in run.said[-2]
    assert "pairs_per_second" not in _first_line(tmp_path / "short")


def _first_line(workdir: Path) -> dict:
    """The line of a step that compiles: it has no speed."""
    workdir.mkdir()
    Run(workdir, dataclasses.replace(SCHEDULE, last_step=1))()
    return read_metrics(workdir)[0]


def test_data_that_do_not_come_are_said(tmp_path):
    schedule = dataclasses.replace(SCHEDULE, last_step=3, stall_limit_seconds=0.1)
    run = Run(tmp_path, schedule, batches=Batches(slow_step=2, slow_seconds=0.5), process=1)
    assert run()
    stalls = [line for line in run.said if "for the batch of step 2" in line]
    assert "no data yet" in stalls[0]
    assert "is over" in stalls[-1]
    assert run.said == stalls  # a second process reports nothing else
    assert all(line.startswith("process 1: ") for line in stalls)
    assert "stall watch" not in [thread.name for thread in threading.enumerate()]


def test_a_profile_window_leaves_a_trace(tmp_path):
    def traces(folder):
        return sorted(file.suffix for file in folder.rglob("*") if file.is_file())

    run = Run(tmp_path, profile=ProfileWindow(3, 4, tmp_path / "trace"))
    seen = {}
    run.at[5] = lambda: seen.update(after=traces(tmp_path / "trace"))
    assert run()
    assert ".pb" in seen["after"]  # written with the last step of the window, not at the end
    assert any("the trace of steps 3 to 4 is in" in line for line in run.said)
    # Stopped within the window: what was traced until then is kept.
    cut = Run(tmp_path, profile=ProfileWindow(2, 9, tmp_path / "cut"), not_finite=(3, 4, 5))
    with pytest.raises(TrainingError):
        cut()
    assert ".pb" in traces(tmp_path / "cut")
    passed = Run(tmp_path, profile=ProfileWindow(3, 4, tmp_path / "none"))
    assert passed(step=8)
    assert any("no step of the profile window 3:4 was taken" in line for line in passed.said)
    assert not (tmp_path / "none").exists()


def test_two_steps_found_finished_together_take_no_negative_time(tmp_path):
    class NotReady:
        def is_ready(self):
            return False

        def __float__(self):
            time.sleep(0.2)  # from the device
            return 0.5

    class Late(Run):
        """Step 2 is dispatched before it has finished, step 3 waits for both: nobody saw when step 2 ended."""

        def _take_step(self, state, batch):
            state, metrics = super()._take_step(state, batch)
            if state.step == 2:
                metrics["loss"] = NotReady()
            return state, metrics

    run = Late(tmp_path, dataclasses.replace(SCHEDULE, last_step=4))
    run.at[3] = lambda: time.sleep(0.05)
    assert run()
    lines = {line["step"]: line for line in read_metrics(tmp_path) if "loss" in line}
    assert 0.05 <= lines[2]["step_seconds_max"] < 0.2  # until step 3 was there, and not until its loss was read
    assert "step_seconds_max" not in lines[3]  # nothing was left for it, and it counts with the next
    assert lines[4]["step_seconds_p50"] >= 0.1  # of 0 and 0.2
