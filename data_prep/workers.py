"""Worker processes of the programs that draw, decode and encode images; who starts them is what they end with."""

import concurrent.futures
import multiprocessing
import os
import threading


def make_pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    """A pool whose processes do not outlive this one, not even where it is killed.

    Args:
        workers: Processes.
    """
    # spawn: the caller may have threads running (jax's), which a fork would break.
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_the_parent)


def num_cores() -> int:
    """Cores this process may use, which a container or taskset may have cut."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_with_the_parent() -> None:
    """Without it, after a SIGKILL of the parent, a worker waits for ever on a queue that it holds open itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
