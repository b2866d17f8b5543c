"""Exact cosine search: against a float64 oracle, ties by order, memory maps read once and flat."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plip_jax.image_search import is_features, top_k


def oracle(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """All cosines, in float64."""
    queries, corpus = queries.astype(np.float64), corpus.astype(np.float64)
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(corpus, axis=1)
    return queries @ corpus.T / lengths


@pytest.mark.parametrize(
    ("num_queries", "num_rows", "k", "chunk"),
    [(1, 1, 1, 8), (3, 40, 5, 16), (3, 40, 5, 4096), (2, 17, 40, 8), (1030, 20, 2, 16)],
    ids=["one", "chunks", "one_chunk", "k_above_rows", "blocks_of_queries"],
)
def test_the_best_rows_are_those_of_all_cosines(num_queries: int, num_rows: int, k: int, chunk: int) -> None:
    rng = np.random.default_rng(0)
    # Rows of any length: the search must normalise both sides.
    queries = rng.normal(size=(num_queries, 12)) * rng.uniform(0.1, 9, (num_queries, 1))
    corpus = (rng.normal(size=(num_rows, 12)) * rng.uniform(0.1, 9, (num_rows, 1))).astype(np.float16)
    cosines = oracle(queries.astype(np.float32), corpus)
    rows, scores = top_k(queries, corpus, k, chunk=chunk)
    kept = min(k, num_rows)
    assert (rows.shape, rows.dtype, scores.dtype) == ((num_queries, kept), np.int64, np.float32)
    np.testing.assert_array_equal(rows, np.argsort(-cosines, axis=1)[:, :kept])
    # 1e-6: float32 against float64.
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, rows, axis=1), atol=1e-6)


@settings(max_examples=30, deadline=None)  # no deadline: a new shape is compiled
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 12))
def test_equal_scores_come_in_the_order_of_the_rows(axes: list[int], k: int) -> None:
    corpus = np.eye(4, dtype=np.float32)[axes]  # cosines are exactly 0 or 1
    rows, scores = top_k(np.eye(4, dtype=np.float32)[:1], corpus, k, chunk=8)
    expected = [i for i, axis in enumerate(axes) if axis == 0] + [i for i, axis in enumerate(axes) if axis != 0]
    assert rows[0].tolist() == expected[:k]
    assert scores[0].tolist() == [float(axes[i] == 0) for i in expected[:k]]


def test_rows_without_a_direction_are_never_found_and_find_nothing() -> None:
    corpus = np.float32([[0, 0], [-1, 0], [np.nan, 1], [np.inf, 0], [0, 2]])
    rows, scores = top_k(np.float32([[1, 0], [0, 0], [np.nan, 0]]), corpus, 5)
    assert rows.tolist() == [[4, 1, -1, -1, -1], [-1] * 5, [-1] * 5]
    assert scores[0].tolist() == [0, -1, -np.inf, -np.inf, -np.inf]


def test_nothing_is_found_among_nothing() -> None:
    assert top_k(np.ones((2, 4)), np.ones((0, 4), np.float32), 3)[0].shape == (2, 0)
    assert top_k(np.ones((0, 4)), np.ones((5, 4), np.float32), 3)[0].shape == (0, 3)


class ReadOnce:
    """A corpus on disk, as far as the search may touch it."""

    def __init__(self, rows: np.ndarray):
        self._rows, self.shape, self.read = rows, rows.shape, []

    def __getitem__(self, rows: slice) -> np.ndarray:
        part = self._rows[rows]
        self.read.append(len(part))
        return part


def test_a_corpus_is_read_once_a_chunk_at_a_time(tmp_path: Path) -> None:
    features = np.random.default_rng(1).normal(size=(100, 6)).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    corpus = ReadOnce(mapped)
    rows, _ = top_k(features[:3], corpus, 4, chunk=32)
    assert corpus.read == [32, 32, 32, 4]
    assert rows[:, 0].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(top_k(features[:3], mapped, 4)[0], rows)


@pytest.mark.parametrize(
    ("queries", "corpus", "k", "message"),
    [
        (np.ones((1, 4)), np.ones((3, 4)), 0, "k: expected 1 or more, got 0"),
        (np.ones((1, 4)), np.ones((3, 5)), 1, r"of one model, got \[1, 4\] and \[3, 5\]"),
        (np.ones(4), np.ones((3, 4)), 1, r"expected queries \[Q, D\]"),
        (np.ones((1, 4)), np.ones(4), 1, r"a corpus \[N, D\]"),
    ],
)
def test_what_does_not_fit_is_said(queries: Any, corpus: Any, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top_k(queries, corpus, k)


def test_floats_are_features_and_pixels_are_not() -> None:
    assert is_features(np.zeros(3, np.float16))
    assert not is_features(np.zeros((4, 4, 3), np.uint8))
    assert not is_features([0.5])
    assert not is_features("mucus")
