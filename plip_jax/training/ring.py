"""Every pair of a global batch, visited tile by tile: what a loss over pairs needs in place of the matrix of pairs.

The rows (images) stay on their device. The columns (texts) travel round the ring of devices by ``ppermute``, with what
is summed up for them, and are home again after as many steps as there are devices. On a device, a step is cut into
square tiles of at most ``chunk_size`` by ``chunk_size``. A device holds O(batch * dim / devices + chunk_size^2).

The travelling blocks are ring attention's (Liu et al. 2023, https://arxiv.org/abs/2310.01889) and those of SigLIP's
chunked loss (Zhai et al. 2023, section 3.3). It knows no loss: `plip_jax.training.streamed_losses` does.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from plip_jax.sharding import DATA_AXIS

Side = dict[str, Any]
"""Arrays by name, each with an example an entry in its first axis."""
Tile = Callable[[Side, Side, Side, Side, Side], tuple[Side, Side]]
Start = Callable[[tuple[int, ...]], tuple[Side, Side]]


def visit_pairs(
    tile: Tile, start: Start, shared: Side, rows: Side, columns: Side, *, chunk_size: int, mesh: Mesh | None
) -> tuple[Side, Side]:
    """Fold a function over all tiles of rows x columns.

    Args:
        tile: (shared, rows, columns, row_state, column_state) of one tile -> the two states. The two sides also hold
            ``number``: int32, the example's place in the global batch counted from 1, and 0 for padding.
        start: shape of the leading axes -> the two states before the first tile.
        shared: what every tile sees whole.
        rows: arrays [batch, ...], split over the mesh.
        columns: the same.
        chunk_size: longest side of a tile.
        mesh: its axis ``data`` is the ring; None for one device.

    Returns:
        The states of all rows and of all columns, arrays [batch, ...], split like them.

    Raises:
        ValueError: the batch does not divide by the number of devices.
    """
    devices = 1 if mesh is None else mesh.shape[DATA_AXIS]
    batch = jax.tree.leaves(rows)[0].shape[0]
    if batch % devices:
        raise ValueError(f"batch of {batch}: expected a multiple of the {devices} devices of the mesh")
    tiling = Tiling.of(batch // devices, chunk_size)

    def on_device(shared: Side, rows: Side, columns: Side) -> tuple[Side, Side]:
        first = 1 if devices == 1 else 1 + jax.lax.axis_index(DATA_AXIS) * tiling.length
        number = {"number": tiling.number(first)}
        rows, columns = tiling.split(rows) | number, tiling.split(columns) | number
        states = start((tiling.count, tiling.size))

        def ring_step(_: Any, carry: tuple[Side, Side, Side]) -> tuple[Side, Side, Side]:
            columns, row_state, column_state = carry
            row_state, column_state = _visit_tiles(tile, tiling.count, shared, rows, columns, row_state, column_state)
            return _pass_on(columns, devices), row_state, _pass_on(column_state, devices)

        _, row_state, column_state = jax.lax.fori_loop(0, devices, ring_step, (columns, *states))
        return tiling.join(row_state), tiling.join(column_state)

    if devices == 1:
        return on_device(shared, rows, columns)
    split = PartitionSpec(DATA_AXIS)
    # Every output is split, so there is no claim of replication for check_vma to check.
    on_ring = jax.shard_map(
        on_device, mesh=mesh, in_specs=(PartitionSpec(), split, split), out_specs=split, check_vma=False
    )
    return on_ring(shared, rows, columns)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """A device's share cut into ``count`` pieces of ``size``; the last one is padded.

    Attributes:
        length: examples on the device.
        count: pieces.
        size: length of one, the same for all and at most the chunk size.
    """

    length: int
    count: int
    size: int

    @classmethod
    def of(cls, length: int, chunk_size: int) -> "Tiling":
        """As few pieces as the chunk size allows, and as little padding as they allow."""
        count = -(-length // chunk_size)
        return cls(length, count, -(-length // count))

    def split(self, side: Side) -> Side:
        """[length, ...] -> [count, size, ...]."""
        padding = self.count * self.size - self.length

        def cut(array: jax.Array) -> jax.Array:
            if padding:
                # With the last example again: zeros have no direction, and their norm would make them no numbers.
                array = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1), mode="edge")
            return array.reshape(self.count, self.size, *array.shape[1:])

        return jax.tree.map(cut, side)

    def number(self, first: Any) -> jax.Array:
        """``first``, ``first`` + 1, ... and 0 for padding, [count, size], int32."""
        place = jnp.arange(self.count * self.size, dtype=jnp.int32)
        return jnp.where(place < self.length, first + place, 0).reshape(self.count, self.size)

    def join(self, side: Side) -> Side:
        """[count, size, ...] -> [length, ...]."""
        return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[: self.length], side)


def _visit_tiles(
    tile: Tile, count: int, shared: Side, rows: Side, columns: Side, row_state: Side, column_state: Side
) -> tuple[Side, Side]:
    """All tiles of one device's rows and the columns it holds now."""

    def column_step(j: Any, states: tuple[Side, Side]) -> tuple[Side, Side]:
        row_state, column_state = states
        column = _take(columns, j)

        # The states are updated in place: as outputs of a scan they would be held twice.
        def row_step(i: Any, states: tuple[Side, Side]) -> tuple[Side, Side]:
            row_state, state = states
            new, state = tile(shared, _take(rows, i), column, _take(row_state, i), state)
            return _put(row_state, i, new), state

        row_state, state = jax.lax.fori_loop(0, count, row_step, (row_state, _take(column_state, j)))
        return row_state, _put(column_state, j, state)

    return jax.lax.fori_loop(0, count, column_step, (row_state, column_state))


def _take(side: Side, index: Any) -> Side:
    return jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, index, keepdims=False), side)


def _put(side: Side, index: Any, piece: Side) -> Side:
    return jax.tree.map(lambda array, new: jax.lax.dynamic_update_index_in_dim(array, new, index, axis=0), side, piece)


def _pass_on(side: Side, devices: int) -> Side:
    """To the next device of the ring."""
    if devices == 1:
        return side
    return jax.lax.ppermute(side, DATA_AXIS, [(i, (i + 1) % devices) for i in range(devices)])
