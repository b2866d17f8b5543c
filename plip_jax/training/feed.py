"""From the host's batches to the devices': which captions are packed, which rows are a micro-batch, where they go.

Packing is decided by the data, and every process must run the same program: the processes agree on each batch while
the batch before it is being computed.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from plip_jax.sharding import any_process, put_batch

HostBatch = dict[str, Any]

# What a step reads of a host batch besides the text.
_ARRAYS = ("image", "warp", "group_ids")


class Resumable(Protocol):
    """An iterator of host batches whose position can be saved."""

    skipped: int

    def __next__(self) -> HostBatch:
        """The next batch."""
        ...

    def get_state(self) -> dict[str, Any]:
        """The position behind the batches handed out."""
        ...

    def where(self, index: int) -> str:
        """Place of a record on disk."""
        ...

    def close(self) -> None:
        """Stop the data workers."""
        ...


class AgreedBatches(Iterator[HostBatch]):
    """Host batches that hold ``packed`` on every process or on none.

    With several processes one batch is read ahead, so that agreeing does not wait for the devices; the saved position
    stays that of the batches handed out.
    """

    def __init__(self, batches: Resumable, *, read_ahead: int | None = None):
        """Wrap an iterator; ``read_ahead`` is 1 with several processes and 0 with one, if not given."""
        self._batches = batches
        self._read_ahead = (1 if jax.process_count() > 1 else 0) if read_ahead is None else read_ahead
        # Each with the position before it and the answer, under way, whether some process could not pack it.
        self._queue: deque[tuple[HostBatch, dict[str, Any], Any]] = deque()

    @property
    def skipped(self) -> int:
        """Records of this process that were replaced."""
        return self._batches.skipped

    def __iter__(self) -> "AgreedBatches":
        return self

    def __next__(self) -> HostBatch:
        """The next batch; raises what the data raises, with the position at the failed batch."""
        while len(self._queue) <= self._read_ahead:
            before = self._batches.get_state()
            batch = next(self._batches)
            self._queue.append((batch, before, any_process("packed" not in batch)))
        batch, _, lacks_packed = self._queue.popleft()
        if "packed" in batch and bool(lacks_packed):
            del batch["packed"]
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position behind the batches handed out."""
        return self._queue[0][1] if self._queue else self._batches.get_state()

    def where(self, index: int) -> str:
        """Place of a record on disk."""
        return self._batches.where(index)

    def close(self) -> None:
        """Stop the data workers."""
        self._queue.clear()
        self._batches.close()


def make_place(mesh: Mesh, batch: Mapping[str, Any], micro_batches: int = 1) -> Callable[[int], dict[str, Any]]:
    """A function that puts one micro-batch of a host batch on the mesh: what a step takes.

    A micro-batch is a contiguous part of this process's rows; of packed captions, the parts that belong to them.

    Raises:
        ValueError: the rows do not divide by the micro-batches.
    """
    rows = len(batch["image"])
    if rows % micro_batches:
        raise ValueError(
            f"batch of {rows} on this process: expected a multiple of train.accumulation_steps ({micro_batches})"
        )
    host = {name: batch[name] for name in _ARRAYS if name in batch}
    host["text"] = batch.get("packed", batch["tokens"])
    # Of several processes, a micro-batch is a part of each one's rows: the places in the global batch have gaps.
    host["place"] = np.arange(rows, dtype=np.int32) + jax.process_index() * rows

    def place(micro: int) -> dict[str, Any]:
        def part(array: Any) -> Any:
            size = len(array) // micro_batches
            return array[micro * size : (micro + 1) * size]

        return put_batch(mesh, jax.tree.map(part, host))

    return place
