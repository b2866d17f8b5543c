"""Two processes on this machine are one run: the same batches, parameters and features as one process."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import multi_host_worker as worker
import numpy as np
import pytest
from small_records import write_tiles

from plip_jax import sharding

ROOT = Path(__file__).parents[1]
PROCESSES, DEVICES = 2, 4
# A start, three steps and two checkpoints take seconds; this ends what hangs.
TIMEOUT_SECONDS = 240


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(command: list[str], out: Path) -> list[subprocess.Popen]:
    """Every process of a run, with its part of the devices; what they print goes to ``out/<I>.log``."""
    # The steps are few, the compilation is what takes time.
    flags = f"--xla_force_host_platform_device_count={DEVICES // PROCESSES} --xla_backend_optimization_level=0"
    where = [f"--coordinator=localhost:{free_port()}", f"--num-processes={PROCESSES}"]
    processes = []
    for index in range(PROCESSES):
        with (out / f"{index}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *command, *where, f"--process-id={index}"],
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
        assert [process.returncode for process in processes] == [0] * PROCESSES
    except AssertionError as error:
        kill(processes)
        logs = "\n".join((out / f"{index}.log").read_text()[-3000:] for index in range(PROCESSES))
        raise AssertionError(f"{error}\n{logs}") from None
    finally:
        kill(processes)
    return [(out / f"{index}.log").read_text() for index in range(PROCESSES)]


def kill(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("data") / "records")


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


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
