"""Times of steps, the watch over the data, and the profile window."""

import time
import types
from pathlib import Path

import numpy as np
import pytest

from plip_jax.training import speed as module
from plip_jax.training.speed import Moment, ProfileWindow, Speed, StallWatch, StepTimer

SPEED = Speed(
    forward_flops=lambda lengths: 100.0 * lengths.sum(),
    peak_flops_per_second=750.0,
    device_count=4,
    process_count=2,
)


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def test_an_interval_counts_steady_steps_only(clock):
    timer = StepTimer(SPEED, global_batch_size=40)

    def end_step(seconds: float, waited: float) -> None:
        clock.seconds += seconds
        timer.add_wait(waited)
        timer.end_step(timer.moment(), np.array([2, 4], np.int32), 20)

    assert timer.take_interval() == {}
    timer.leave_out_next()
    end_step(50.0, 7.0)  # compiles
    timer.restart()
    assert timer.take_interval() == {}
    end_step(1.0, 0.0)
    end_step(1.0, 0.5)
    end_step(2.0, 0.0)
    clock.seconds += 1000.0  # an evaluation
    timer.restart()
    end_step(4.0, 0.5)
    metrics = timer.take_interval()
    assert metrics == pytest.approx(
        {
            "steps_per_second": 0.5,  # 4 steps in 8 s
            "pairs_per_second": 20.0,
            "pairs_per_second_per_device": 5.0,
            "step_seconds_p50": 1.5,
            "step_seconds_p90": 3.4,  # numpy's: between 2 and 4
            "step_seconds_max": 4.0,
            "data_wait_share": 1 / 8,
            "live_token_share": 0.3,  # 6 of 20 tokens
            "model_flops_per_second": 4 * 3 * 600 * 2 / 8,  # backward twice the forward, two processes
            "mfu": 0.6,  # 1800 of 4 x 750
        }
    )
    assert timer.take_interval() == {}


def test_without_a_peak_or_lengths_nothing_is_made_up():
    timer = StepTimer(Speed(SPEED.forward_flops, None, 1, 1), global_batch_size=4)
    timer.end_step(Moment(0.0, 0.0), None, 20)
    timer.end_step(Moment(1.0, 0.0), None, 20)
    assert "live_token_share" not in timer.take_interval()
    timer.end_step(Moment(2.0, 0.0), np.array([5, 5]), 20)
    metrics = timer.take_interval()
    assert metrics["model_flops_per_second"] == 3000.0
    assert "mfu" not in metrics


def test_a_batch_of_new_shapes_compiles_also_where_they_are_nested():
    timer = StepTimer(SPEED, 8)
    plain = {"image": np.zeros((8, 4, 4, 3)), "tokens": np.zeros((8, 10))}
    packed = {**plain, "packed": {"tokens": np.zeros((1, 3, 10))}}
    wider = {**plain, "packed": {"tokens": np.zeros((1, 4, 10))}}
    batches = [plain, plain, packed, plain, packed, wider]
    assert [timer.compiles(batch) for batch in batches] == [True, False, True, False, False, True]


def test_a_stall_is_said_once_a_limit_and_when_it_is_over():
    said = []
    with StallWatch(0.05, said.append) as watch:
        watch.start_waiting(6)
        watch.stop_waiting()
        assert said == []
        watch.start_waiting(7)
        deadline = time.monotonic() + 30
        while len(said) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        waited = watch.stop_waiting()
    assert waited >= 0.1  # twice the limit
    assert len(said) >= 3
    for text in said[:-1]:
        assert "for the batch of step 7, and no data yet" in text
        assert "data.num_workers" in text
    assert said[-1].startswith("the wait for the batch of step 7 is over after")
    assert not watch._thread.is_alive()


def test_watching_costs_a_step_next_to_nothing():
    with StallWatch(30.0, print) as watch:
        rounds = []
        for _ in range(20):
            start = time.perf_counter()
            for step in range(100):
                watch.start_waiting(step)
                watch.stop_waiting()
            rounds.append((time.perf_counter() - start) / 100)
    assert min(rounds) < 20e-6  # the best of 20: the machine may be busy with other things


def test_a_profile_window_is_read_and_checked():
    assert ProfileWindow.parse("5:8", Path("trace")) == ProfileWindow(5, 8, Path("trace"))
    for wrong in ("5", "8:5", "0:3", "a:b", "5:"):
        with pytest.raises(ValueError, match="START"):
            ProfileWindow.parse(wrong, Path("trace"))
