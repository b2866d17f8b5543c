"""The two promises that make ranks exact: equal candidates score equally, and what is looked up is what is counted."""

import numpy as np
import pytest

from plip_jax.evaluation.embeddings import distinct_rows
from plip_jax.evaluation.tiled_similarity import TiledSimilarity


def nearly_equal(rows: int, dim: int) -> np.ndarray:
    """Rows that differ in the last bits of their numbers only, so that rounding alone orders their scores."""
    base = np.random.default_rng(0).normal(size=dim).astype(np.float32)
    base /= np.linalg.norm(base)
    noise = np.random.default_rng(1).integers(-2, 3, (rows, dim)) * np.spacing(base)
    return (base + noise).astype(np.float32)


@pytest.mark.parametrize("tile", [(8, 16), (64, 32), (1024, 8192)])
def test_what_is_looked_up_is_what_is_counted(tile):
    features = nearly_equal(150, 96)
    similarity = TiledSimilarity(features[:70], features, tile=tile)
    queries, candidates = (grid.reshape(-1) for grid in np.indices((70, 150)))
    scores = similarity.look_up(queries, candidates).reshape(70, 150)
    assert len(np.unique(scores)) < 100  # so ties are everywhere, and one bit more or less would change a count
    for column in (0, 15, 16, 77, 149):
        counted = similarity.count_at_least(scores[:, column])
        np.testing.assert_array_equal(counted, (scores >= scores[:, [column]]).sum(axis=1))


def test_pairs_may_be_looked_up_in_any_order_and_often():
    features = nearly_equal(40, 16)
    similarity = TiledSimilarity(features, features, tile=(8, 8))
    rng = np.random.default_rng(2)
    queries, candidates = rng.integers(0, 40, 500), rng.integers(0, 40, 500)
    scores = similarity.look_up(queries, candidates)
    order = rng.permutation(500)
    np.testing.assert_array_equal(similarity.look_up(queries[order], candidates[order]), scores[order])
    assert similarity.look_up(queries[:0], candidates[:0]).shape == (0,)


def test_equal_candidates_score_equally_wherever_they_stand():
    features = nearly_equal(203, 77)
    features[[5, 90, 202]] = features[11]
    similarity = TiledSimilarity(features[:9], features, tile=(4, 16))
    assert similarity.num_distinct == 200
    rows = np.repeat(np.arange(9), 4)
    scores = similarity.look_up(rows, np.tile([5, 11, 90, 202], 9)).reshape(9, 4)
    assert (scores == scores[:, :1]).all()
    # Each of them is counted, the threshold being their own score.
    assert (similarity.count_at_least(scores[:, 0]) >= 4).all()


def test_rows_are_equal_by_value_and_numbered_in_order():
    features = np.array([[1, 0], [0, 1], [1, -0.0], [2, 0], [0, 1]], np.float32)
    first, of_row = distinct_rows(features)
    assert first.tolist() == [0, 1, 3]
    assert of_row.tolist() == [0, 1, 0, 2, 1]
