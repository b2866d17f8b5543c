"""The ring: every pair is visited once, whatever the devices and tiles, and what travels comes home."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plip_jax import sharding
from plip_jax.training.ring import Tiling, visit_pairs


def mesh_of(devices: int):
    return sharding.make_mesh(jax.devices()[:devices]) if devices else None


# (0 is no mesh at all), the tiles: one, even, and uneven with a padded last one.
@pytest.mark.parametrize(("devices", "chunk_size"), [(0, 7), (1, 64), (3, 3), (8, 2)])
def test_every_row_meets_every_column_once(devices, chunk_size):
    batch = 24
    values = jnp.asarray(np.random.default_rng(0).permutation(batch) + 100, jnp.int32)

    def tile(shared, row, column, row_state, column_state):
        pairs = (row["number"] > 0)[:, None] & (column["number"] > 0)[None, :]
        # Powers of two: a pair that is missing or met twice changes the exclusive or.
        seen = jnp.where(pairs, shared["one"] << (column["value"] - 100)[None, :], 0)
        met = jnp.where(pairs, shared["one"] << (row["value"] - 100)[:, None], 0)
        return (
            {"sum": row_state["sum"] + seen.sum(1), "count": row_state["count"] + pairs.sum(1)},
            {"sum": column_state["sum"] + met.sum(0), "count": column_state["count"] + pairs.sum(0)},
        )

    def start(shape):
        zeros = {"sum": jnp.zeros(shape, jnp.int32), "count": jnp.zeros(shape, jnp.int32)}
        return zeros, zeros

    @jax.jit
    def visit(values):
        side = {"value": values}
        shared = {"one": jnp.int32(1)}
        return visit_pairs(tile, start, shared, side, side, chunk_size=chunk_size, mesh=mesh_of(devices))

    for side in visit(values):
        assert side["sum"].tolist() == [2**batch - 1] * batch
        assert side["count"].tolist() == [batch] * batch


def test_state_of_a_column_comes_home():
    numbers = jnp.arange(1, 17, dtype=jnp.int32)

    def tile(shared, row, column, row_state, column_state):
        own = column["number"][None, :] == row["number"][:, None]
        return row_state, {"value": column_state["value"] + jnp.where(own, row["value"][:, None], 0).sum(0)}

    def start(shape):
        return {}, {"value": jnp.zeros(shape, jnp.int32)}

    side = {"value": 10 * numbers}
    _, columns = visit_pairs(tile, start, {}, side, side, chunk_size=64, mesh=mesh_of(8))
    assert columns["value"].tolist() == (10 * numbers).tolist()


def test_tiles_are_within_the_chunk_size_and_hardly_padded():
    for length in range(1, 60):
        for chunk_size in range(1, 70):
            tiling = Tiling.of(length, chunk_size)
            assert tiling.size <= chunk_size
            # No piece is padding alone, and none has more than one example of it less than there are pieces.
            assert 0 <= tiling.count * tiling.size - length < min(tiling.count, tiling.size)


def test_a_batch_that_does_not_divide_is_named():
    side = {"value": jnp.zeros(12)}
    with pytest.raises(ValueError, match="batch of 12: expected a multiple of the 8 devices"):
        visit_pairs(lambda *_: ({}, {}), lambda _: ({}, {}), {}, side, side, chunk_size=4, mesh=mesh_of(8))
