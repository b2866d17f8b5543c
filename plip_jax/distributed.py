"""Starting one program on several hosts: the processes find each other before the devices are first used.

A wrapper around ``jax.distributed.initialize`` (https://docs.jax.dev/en/latest/multi_process.html) and its flags. What
processes ask each other later is in `plip_jax.sharding`; how runs are launched is in ``docs/scale.md``.
"""

import argparse
import signal
import socket
import threading
import time

import jax

# Processes of one job start minutes apart where images are pulled or nodes booted; jax waits for five.
_START_TIMEOUT_SECONDS = 900


class DistributedError(ValueError):
    """The processes of a run cannot be started together; the message says what to do."""


def add_distributed_flags(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `start` to a program's flags."""
    group = parser.add_argument_group("several processes, the same command on each (docs/scale.md)")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="ask the cluster which process this is: TPU pod, Slurm, GKE",
    )
    group.add_argument(
        "--coordinator", default="", metavar="HOST:PORT", help="of process 0, where there is no such cluster"
    )
    group.add_argument("--num-processes", type=int, metavar="N", help="how many there are; with --coordinator")
    group.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0; with --coordinator")


def start_from_flags(flags: argparse.Namespace) -> None:
    """Call `start` with the flags of `add_distributed_flags`; a program on one process gives none of them."""
    start(
        automatic=flags.distributed,
        coordinator=flags.coordinator,
        num_processes=flags.num_processes,
        process_id=flags.process_id,
    )


def start(
    *,
    automatic: bool = False,
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: int = _START_TIMEOUT_SECONDS,
) -> None:
    """Join the other processes; returns once all are there. Without arguments this process is the only one.

    Called before anything uses the devices, and before the program sets signal handlers.

    Args:
        automatic: the cluster knows the rest; the other arguments stay empty.
        coordinator: host and port of process 0, which listens there.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        timeout_seconds: how long to wait for the others.

    Raises:
        DistributedError: arguments that do not go together, an unknown cluster, no answer from the coordinator. (Where
            another process does not come, jax ends this one, and says so in its log.)
    """
    explicit = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    given = [name for name, value in explicit.items() if value not in ("", None)]
    if not automatic and not given:
        return
    if automatic and given:
        raise DistributedError(f"--distributed asks the cluster; leave out {', '.join(given)}")
    if not automatic:
        _check(coordinator, num_processes, process_id, missing=[name for name in explicit if name not in given])
        if process_id != 0:
            _wait_for(coordinator, timeout_seconds)
    try:
        jax.distributed.initialize(
            coordinator or None,
            num_processes,
            process_id,
            # Given all, jax would still ask the cluster which devices are this process's, and take one alone on Slurm.
            cluster_detection_method=None if automatic else "deactivate",
            initialization_timeout=timeout_seconds,
        )
    except Exception as error:  # jax's own types, of the cluster's client and of the network
        raise DistributedError(_why(automatic, coordinator, error)) from error
    if threading.current_thread() is threading.main_thread():
        # jax has put a handler of its own below Python's, which swallows a SIGTERM; this puts Python's back.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    if num_processes is not None and jax.process_count() != num_processes:
        raise DistributedError(
            f"--num-processes: {num_processes} processes have met, and the devices know of {jax.process_count()}; on a "
            "TPU slice use --distributed, on CPUs the gloo collectives (JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo)"
        )


def _check(coordinator: str, num_processes: int | None, process_id: int | None, missing: list[str]) -> None:
    if missing or num_processes is None or process_id is None:
        raise DistributedError(
            "several processes: expected --coordinator HOST:PORT, --num-processes N and --process-id I together, "
            f"{', '.join(missing)} missing; on a TPU pod or under Slurm --distributed alone"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise DistributedError(f"--coordinator: expected HOST:PORT of process 0, got {coordinator!r}")
    if not 0 <= process_id < num_processes:
        raise DistributedError(f"--process-id: expected 0 <= I < {num_processes}, got {process_id}")


def _wait_for(coordinator: str, timeout_seconds: int) -> None:
    """Wait until process 0 listens; jax would wait too, and then abort the program with a core dump."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise DistributedError(
                    f"--coordinator: no process 0 at {coordinator} within {timeout_seconds} s ({error}); is it "
                    "started, and can this host reach that port?"
                ) from error
        time.sleep(0.2)


def _why(automatic: bool, coordinator: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, RuntimeError) and "before" in reason:
        return f"the processes must meet before the devices are first used ({reason})"
    if automatic and isinstance(error, ValueError):
        return (
            f"--distributed: no cluster that jax knows is here ({reason}). On a TPU pod, Slurm, Open MPI or GKE start "
            "every process by its launcher; elsewhere give --coordinator HOST:PORT --num-processes N --process-id I"
        )
    return f"the processes cannot meet at {coordinator or 'the address the cluster gave'}: {reason}"


def is_main_process() -> bool:
    """Whether this process writes what is written once: metrics, curves, the lock, what is said on the terminal."""
    return jax.process_index() == 0
