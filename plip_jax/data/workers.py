"""Threads and worker processes that make the elements of a source ahead, in order (Grain)."""

import multiprocessing
import os
import signal
import threading

import grain
from absl import flags

from plip_jax.data.allocator import keep_freed_memory


def run_ahead(source: grain.sources.RandomAccessDataSource, num_workers: int, prefetch: int) -> grain.IterDataset:
    """Let Grain make elements ahead, in threads or in worker processes.

    One element is a slice of one batch: Grain deals elements out to workers and takes them back in order, so batches
    stay the same for any number of workers.

    Args:
        source: Of the elements; pickled to worker processes.
        num_workers: Worker processes; 0 works in threads of this process.
        prefetch: Elements made ahead (by each worker).
    """
    dataset = grain.MapDataset.source(source)
    if num_workers == 0:
        keep_freed_memory()  # the threads decode in this process
        threads = min(prefetch, os.cpu_count() or 1)
        return dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # outside absl.app, Grain's worker processes read their flags unparsed and fail
    options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=max(1, prefetch))
    # Last in the chain: what follows mp_prefetch would run in this process.
    ahead = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    return ahead.mp_prefetch(options, worker_init_fn=_live_and_die_with_the_trainer)


def _live_and_die_with_the_trainer(worker: int, workers: int) -> None:
    """Set up a worker process: freed pixels stay, signals are the trainer's, and nothing outlives it."""
    del worker, workers  # Grain's signature
    keep_freed_memory()
    # A Ctrl-C or a scheduler's SIGTERM reaches the whole group; the trainer saves first, then ends its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        # After a SIGKILL of the trainer a worker would wait for ever for room in a queue that nobody reads.
        threading.Thread(target=lambda: (trainer.join(), os._exit(1)), daemon=True).start()
