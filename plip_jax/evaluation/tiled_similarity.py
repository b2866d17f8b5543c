"""Similarities of any number of queries and candidates on the device, one tile of them at a time.

Owns the only product that ranks are made of. Held are both sets of features and one tile of scores, never all scores,
so 100,000 x 100,000 takes no more than a tile beyond the features.

Two promises make integer ranks exact. Candidates with bit-equal features get bit-equal scores, because the product
runs over the distinct rows only (a matrix product need not sum the last columns of a matrix as it sums the first). And
a score that is looked up equals, bit for bit, the one that is counted: both come from the same compiled program with
the same operands at the same places.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plip_jax.evaluation.embeddings import distinct_rows

# Queries and candidates of a tile. On a CPU 8 MiB of scores, which stay near the cores and in memory that is not asked
# for anew at each tile (32 MiB took twice the processor time, a third of it in the kernel); elsewhere enough work to
# outlast the start of a program.
_CPU_TILE, _TILE = (1024, 2048), (4096, 16384)
# Scores looked up in one run of a tile, as a share of the tile: more runs would repeat the product, larger ones cost
# time where nothing is looked up.
_LOOKED_UP = 512
# Codes that no query has: of columns that are never left out, and of a query that leaves nothing out.
_KEPT, _KEEPS_ALL = -1, -2


class TiledSimilarity:
    """Scores of queries and candidates, counted, looked up or searched tile by tile.

    Attributes:
        num_queries: Q.
        num_candidates: N.
        num_distinct: U, candidates that differ; a column is one of them, in the order of their first rows.
        column_of: int64 [N], the column of each candidate.
    """

    def __init__(self, queries: np.ndarray, candidates: np.ndarray, *, tile: tuple[int, int] | None = None) -> None:
        """Put both on the device.

        Args:
            queries: float32 [Q, D], L2-normalised where cosines are meant.
            candidates: float32 [N, D], the same.
            tile: queries and candidates of a tile at most; changes memory and speed only. None fits the device.
        """
        tile = tile or (_CPU_TILE if jax.local_devices()[0].platform == "cpu" else _TILE)
        first_row, self.column_of = distinct_rows(candidates)
        self.num_queries, self.num_candidates, self.num_distinct = len(queries), len(candidates), len(first_row)
        # A power of two, so that sets of about one size share a compiled program.
        self._height, self._width = (
            min(most, 1 << max(3, (count - 1).bit_length()))
            for most, count in zip(tile, (self.num_queries, self.num_distinct), strict=True)
        )
        columns = candidates if len(first_row) == len(candidates) else candidates[first_row]
        self._queries = _blocks(np.asarray(queries, np.float32), self._height)
        self._columns = _blocks(np.asarray(columns, np.float32), self._width)
        copies = np.bincount(self.column_of, minlength=self.num_distinct).astype(np.int32)
        self._copies = _blocks(copies, self._width)

    def look_up(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """The scores of some pairs, bit-equal to those that `count_at_least` compares.

        Pairs of one tile cost one product, so pairs of neighbouring queries and candidates are cheap.

        Args:
            queries: rows, int64 [P].
            candidates: rows, int64 [P].

        Returns:
            float32 [P].
        """
        columns = self.column_of[candidates]
        tile_of = queries // self._height * len(self._columns) + columns // self._width
        order = np.argsort(tile_of, kind="stable")
        size = max(8, self._height * self._width // _LOOKED_UP)
        never = np.full(self._height, np.inf, np.float32)
        zeros = np.zeros(self._height, np.int32)
        scores = np.empty(len(order), np.float32)
        starts = np.flatnonzero(np.diff(tile_of[order], prepend=-1))
        for pairs in np.split(order, starts[1:]):
            for start in range(0, len(pairs), size):
                chosen = pairs[start : start + size]
                row, column = divmod(int(tile_of[chosen[0]]), len(self._columns))
                places = np.zeros((2, size), np.int32)
                places[0, : len(chosen)] = queries[chosen] % self._height
                places[1, : len(chosen)] = columns[chosen] % self._width
                _, found = _count_and_look_up(
                    self._queries[row], self._columns[column], self._copies[column], never, zeros, places
                )
                scores[chosen] = np.asarray(found)[: len(chosen)]
        return scores

    def count_at_least(self, thresholds: np.ndarray) -> np.ndarray:
        """How many candidates score at least a query's threshold.

        Args:
            thresholds: float32 [Q].

        Returns:
            int64 [Q], each candidate counted, equal ones too.
        """
        nothing = np.zeros((2, max(8, self._height * self._width // _LOOKED_UP)), np.int32)
        counts = np.empty(len(self._queries) * self._height, np.int64)
        for row, (queries, limits) in enumerate(
            zip(self._queries, _host_blocks(thresholds, self._height, np.inf), strict=True)
        ):
            count: Any = np.zeros(self._height, np.int32)
            for columns, copies in zip(self._columns, self._copies, strict=True):
                count, _ = _count_and_look_up(queries, columns, copies, limits, count, nothing)
            counts[row * self._height : (row + 1) * self._height] = np.asarray(count)
        return counts[: self.num_queries]

    def best_columns(
        self, k: int, *, query_codes: np.ndarray | None = None, candidate_codes: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best columns of each query, best first; of equal scores the lower column first.

        Args:
            k: how many.
            query_codes: int [Q], not negative; a column is left out where all its candidates have the query's code.
            candidate_codes: int [N]; given with ``query_codes``.

        Returns:
            Columns int64 [Q, k], -1 where there are no more, and their scores float32 [Q, k].
        """
        left_out = np.full(self.num_distinct, _KEPT, np.int32)
        asked = np.full(self.num_queries, _KEEPS_ALL, np.int32)
        if query_codes is not None and candidate_codes is not None:
            left_out = _common_codes(candidate_codes, self.column_of, self.num_distinct)
            asked = query_codes.astype(np.int32)
        left_out = _blocks(left_out, self._width)
        columns = np.empty((len(self._queries) * self._height, k), np.int64)
        scores = np.empty(columns.shape, np.float32)
        for row, (queries, codes) in enumerate(
            zip(self._queries, _host_blocks(asked, self._height, _KEEPS_ALL), strict=True)
        ):
            best: Any = np.full((self._height, k), -np.inf, np.float32)
            places: Any = np.full((self._height, k), -1, np.int32)
            for number, (block, copies, excluded) in enumerate(zip(self._columns, self._copies, left_out, strict=True)):
                start = np.int32(number * self._width)
                best, places = _best_so_far(queries, block, copies, codes, excluded, start, best, places)
            rows = slice(row * self._height, (row + 1) * self._height)
            columns[rows], scores[rows] = np.asarray(places), np.asarray(best)
        return columns[: self.num_queries], scores[: self.num_queries]


def _product(queries: jax.Array, candidates: jax.Array) -> jax.Array:
    # TPUs and newer GPUs round float32 operands unless told otherwise.
    return lax.dot_general(queries, candidates, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


@jax.jit
def _count_and_look_up(
    queries: jax.Array, candidates: jax.Array, copies: jax.Array, limits: jax.Array, count: jax.Array, places: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One program for both, so that what is looked up is what is counted; ``count`` runs on from tile to tile."""
    scores = _product(queries, candidates)
    at_least = jnp.where(scores >= limits[:, None], copies[None, :], 0)
    return count + at_least.sum(axis=1, dtype=jnp.int32), scores[places[0], places[1]]


@jax.jit
def _best_so_far(
    queries: jax.Array,
    candidates: jax.Array,
    copies: jax.Array,
    query_codes: jax.Array,
    left_out: jax.Array,
    start: jax.Array,
    best: jax.Array,
    places: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Merge a tile into the best of the tiles before it, which stay first among equals."""
    hidden = (copies == 0)[None, :] | (query_codes[:, None] == left_out[None, :])
    scores = jnp.where(hidden, -jnp.inf, _product(queries, candidates))
    found, where = lax.top_k(scores, min(best.shape[1], scores.shape[1]))
    where = jnp.where(found == -jnp.inf, -1, where.astype(jnp.int32) + start)
    merged, order = lax.top_k(jnp.concatenate([best, found], axis=1), best.shape[1])
    return merged, jnp.take_along_axis(jnp.concatenate([places, where], axis=1), order, axis=1)


def _common_codes(codes: np.ndarray, column_of: np.ndarray, num_columns: int) -> np.ndarray:
    """The code that all candidates of a column have, else one that no query has; int32 [num_columns]."""
    lowest = np.full(num_columns, np.iinfo(np.int32).max, np.int32)
    highest = np.full(num_columns, np.iinfo(np.int32).min, np.int32)
    np.minimum.at(lowest, column_of, codes.astype(np.int32))
    np.maximum.at(highest, column_of, codes.astype(np.int32))
    return np.where(lowest == highest, lowest, _KEPT).astype(np.int32)


def _host_blocks(values: np.ndarray, size: int, fill: float) -> list[np.ndarray]:
    """Blocks of equal length; the last one is filled up."""
    blocks = []
    for start in range(0, len(values), size):
        block = values[start : start + size]
        if len(block) < size:
            block = np.concatenate([block, np.full((size - len(block), *block.shape[1:]), fill, block.dtype)])
        blocks.append(block)
    return blocks


def _blocks(values: np.ndarray, size: int) -> Sequence[jax.Array]:
    """Blocks on the device; a candidate that fills the last one has no copies, and is never counted."""
    device = jax.local_devices()[0]
    return [jax.device_put(block, device) for block in _host_blocks(values, size, 0)]
