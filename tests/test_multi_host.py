"""Two processes on this machine are one run: the same batches, parameters and features as one process."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import multi_host_worker as worker
import numpy as np
import pytest
import small_training as training
from small_records import write_tiles

from plip_jax import sharding
from plip_jax.training.checkpoint import read_model
from plip_jax.training.logging import read_metrics

ROOT = Path(__file__).parents[1]
PROCESSES, DEVICES = 2, 4
# A start, three steps and two checkpoints take seconds; this ends what hangs.
TIMEOUT_SECONDS = 240


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(command: list[str], out: Path, *, count: int = PROCESSES) -> list[subprocess.Popen]:
    """Every process of a run, with its part of the devices; what they print goes to ``out/<I>.log``."""
    # The steps are few, the compilation is what takes time.
    flags = f"--xla_force_host_platform_device_count={DEVICES // count} --xla_backend_optimization_level=0"
    where = [f"--coordinator=localhost:{free_port()}", f"--num-processes={count}"]
    processes = []
    for index in range(count):
        with (out / f"{index}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *command, *([*where, f"--process-id={index}"] if count > 1 else [])],
                cwd=ROOT,
                env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        processes.append(process)
    return processes


def finish(processes: list[subprocess.Popen], out: Path) -> list[str]:
    """Wait for all; none outlives the test, nor the first that fails. What each has printed."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while any(process.poll() is None for process in processes):
            assert not any(process.poll() for process in processes)
            assert time.monotonic() < deadline, "the processes hang"
            time.sleep(0.05)
        assert not any(process.returncode for process in processes)
    except AssertionError as error:
        kill(processes)
        logs = "\n".join((out / f"{index}.log").read_text()[-3000:] for index in range(len(processes)))
        raise AssertionError(f"{error}\n{logs}") from None
    finally:
        kill(processes)
    return [(out / f"{index}.log").read_text() for index in range(len(processes))]


def kill(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("data") / "records")


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.slow  # three programs are started and compiled
def test_two_processes_are_one_run(records, tmp_path):
    finish(start(["tests/multi_host_worker.py", str(records), str(tmp_path)], tmp_path), tmp_path)
    first, second = (dict(np.load(tmp_path / f"process{index}.npz")) for index in range(PROCESSES))
    alone = tmp_path / "alone"
    one = worker.work(records, alone, sharding.make_mesh(jax.devices()[:DEVICES]), "replicated")

    for found in (first, second):
        assert found["only_the_last_says_yes"]
        assert not found["nobody_says_yes"]
        assert found["values"].tolist() == [10, 11]
        assert found["owners"].tolist() == [0, 0, 1, 1]
        assert found["restored_is_same"]
        assert found["batches"] == one["batches"] == 3 + 2
    assert (bool(first["is_main"]), bool(second["is_main"])) == (True, False)
    # Each process reads its half of the batches that one process reads.
    np.testing.assert_array_equal(np.concatenate([first["indices"], second["indices"]], axis=1), one["indices"])
    # Both hold the same bits, and within the project's bound the one process's: sums over devices have another order.
    for name in one.keys() - {"indices"}:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    np.testing.assert_allclose(first["losses"], one["losses"], rtol=1e-6)
    for name in (name for name in one if name.startswith("params/")):
        assert relative(first[name], one[name]) <= 1e-5, name
    for name in ("images", "texts"):
        assert relative(first[name], one[name]) <= 1e-5, name
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


STEPS, EVALUATED, CHECKPOINT_EVERY = 12, 3, 100


def train_command(records: Path, workdir: Path) -> list[str]:
    return [
        *("-m", "plip_jax.train", "--config=configs/plip_vit_b32.py:smoke", f"--workdir={workdir}"),
        f"--config.data.sources.openpath.path={records}",
        f"--config.eval.tasks.heldout.data={records}",
        f"--config.train.steps={STEPS}",
        f"--config.train.eval_interval_steps={EVALUATED}",
        f"--config.train.checkpoint_interval_steps={CHECKPOINT_EVERY}",
        "--config.train.log_interval_steps=1",
        "--config.model.compute_dtype=float32",
        "--config.optim.eps=1e-4",  # see small_training.OPTIMIZER
        "--config.optim.learning_rate=1e-3",
        # Each process cuts its own rows: the parts and their random keys must still make up the one batch.
        "--config.train.accumulation_steps=2",
        "--config.model.patch_dropout=0.25",
    ]


def logged(workdir: Path, name: str) -> dict[int, float]:
    lines = [(line["step"], line[name]) for line in read_metrics(workdir) if name in line]
    assert len(dict(lines)) == len(lines), "a step is there twice"
    return dict(lines)


@pytest.mark.slow  # four starts of the program, 55 s of processor time
def test_the_program_on_two_processes_stops_as_one_and_goes_on_alone(records, tmp_path):
    alone, workdir = tmp_path / "alone", tmp_path / "run"
    finish(start(train_command(records, alone), tmp_path, count=1), tmp_path)

    processes = start(train_command(records, workdir), tmp_path)
    try:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not any(line["step"] > EVALUATED for line in read_metrics(workdir)):
            assert all(process.poll() is None for process in processes), "ended before the signal"
            assert time.monotonic() < deadline, "the first steps hang"
            time.sleep(0.01)
    except AssertionError:
        kill(processes)
        raise AssertionError("\n".join(path.read_text()[-3000:] for path in sorted(tmp_path.glob("*.log")))) from None
    processes[1].send_signal(signal.SIGTERM)  # to one of them, and not the one that writes
    logs = finish(processes, tmp_path)
    saved = read_model(workdir).step
    assert EVALUATED < saved < STEPS
    assert list(logged(workdir, "loss")) == list(range(1, saved + 1))
    assert "step 1/" in logs[0]
    assert "step 1/" not in logs[1]

    finish(start(train_command(records, workdir), tmp_path, count=1), tmp_path)
    assert list(logged(workdir, "loss")) == list(range(1, STEPS + 1))
    assert (workdir / "curves.png").exists()
    expected = logged(alone, "loss")
    # The same batches, in the project's bound for a loss times the steps it was carried over.
    assert logged(workdir, "loss") == pytest.approx(expected, rel=1e-6 * STEPS)
    recall = "eval/heldout/text_to_image_recall@10"
    assert logged(workdir, recall)[EVALUATED] == logged(alone, recall)[EVALUATED]
    ours, theirs = read_model(workdir), read_model(alone)
    assert ours.step == theirs.step == STEPS
    training.assert_close_by_norm(ours.params, theirs.params, 1e-5)
