"""Nearest rows against a full sort and against FAISS, in any cut of the work."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.images import neighbours
from data_prep.images.neighbours import NeighbourError, find_neighbours, open_shards


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(folder: Path, rows: np.ndarray, counts: list[int]) -> Path:
    folder.mkdir()
    # clip-retrieval's names: 10 sorts before 2
    names = sorted(f"img_emb_{number}.npy" for number in range(len(counts)))
    for name, part in zip(names, np.split(rows, np.cumsum(counts)[:-1]), strict=True):
        np.save(folder / name, part)
    return folder


def brute(queries: np.ndarray, rows: np.ndarray, count: int, threshold: float) -> dict[int, tuple[float, int]]:
    """Row -> its best similarity and query, over the full table of cosines in float64."""
    scores = unit(queries.astype(np.float64)) @ unit(rows.astype(np.float64)).T
    found: dict[int, tuple[float, int]] = {}
    for query, line in enumerate(scores):
        for row in np.argsort(-line, kind="stable")[:count]:
            if line[row] >= threshold and line[row] > found.get(row, (-2.0, 0))[0]:
                found[int(row)] = float(line[row]), query
    return found


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "_CHUNK_ROWS", 50)
    monkeypatch.setattr(neighbours, "_QUERY_BLOCK", 7)
    monkeypatch.setattr(neighbours, "_ROW_BLOCK", 13)


@pytest.mark.parametrize("backend", ["numpy", "faiss"])
@pytest.mark.parametrize(("count", "threshold"), [(1, -1.0), (5, 0.3), (40, 0.6), (400, -1.0)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.usefixtures("small_blocks")
def test_the_nearest_are_those_of_a_full_sort(tmp_path, backend, count, threshold, dtype):
    if backend == "faiss":
        pytest.importorskip("faiss", reason="it comes with an extra of its own")
    rng = np.random.default_rng(count)
    rows = rng.normal(size=(331, 8)).astype(dtype)
    queries = 3 * rng.normal(size=(30, 8))
    shards = open_shards(write(tmp_path / "rows", rows, [20, 100, *[3] * 9, 184]))
    found = find_neighbours(queries, shards, count, threshold, backend)
    expected = brute(queries, rows, count, threshold)
    assert found.rows.tolist() == sorted(expected)
    assert found.queries.tolist() == [expected[row][1] for row in sorted(expected)]
    # float32 sums of 8 products
    np.testing.assert_allclose(found.similarities, [expected[row][0] for row in sorted(expected)], atol=1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_of_equally_near_rows_the_first_is_nearer(tmp_path):
    rows = np.zeros((300, 4), np.float32)
    rows[:, 0] = 2.0  # all the same, of any length
    shards = open_shards(write(tmp_path / "rows", rows, [100, 200]))
    found = find_neighbours(np.array([[1.0, 0, 0, 0], [5.0, 0, 0, 0]]), shards, 3, 0.9)
    assert found.rows.tolist() == [0, 1, 2]
    assert found.queries.tolist() == [0, 0, 0]
    assert found.similarities.tolist() == [1.0, 1.0, 1.0]


def test_rows_without_direction_are_near_to_nothing(tmp_path):
    rows = np.array([[0, 0], [np.nan, 1], [np.inf, 1], [-1, 0], [1, 0]], np.float32)
    found = find_neighbours(np.array([[1.0, 0]]), open_shards(write(tmp_path / "rows", rows, [5])), 10, -1.0)
    assert found.rows.tolist() == [3, 4]
    assert found.rows_without_direction == 3


def test_nothing_near_gives_nothing(tmp_path):
    shards = open_shards(write(tmp_path / "rows", np.array([[-1.0, 0]], np.float32), [1]))
    assert len(find_neighbours(np.array([[1.0, 0]]), shards, 10, 0.5).rows) == 0


def test_what_cannot_be_searched_is_refused(tmp_path):
    shards = open_shards(write(tmp_path / "rows", np.ones((4, 3), np.float32), [4]))
    with pytest.raises(NeighbourError, match=r"\[Q, 3\] as the embeddings are, got \[1, 2\]"):
        find_neighbours(np.ones((1, 2)), shards, 1, 0.5)
    with pytest.raises(NeighbourError, match="1 queries are zero"):
        find_neighbours(np.array([[0.0, 0, 0], [1, 0, 0]]), shards, 1, 0.5)
    with pytest.raises(NeighbourError, match="1 neighbour or more"):
        find_neighbours(np.ones((1, 3)), shards, 0, 0.5)
    with pytest.raises(NeighbourError, match="one of numpy, faiss"):
        find_neighbours(np.ones((1, 3)), shards, 1, 0.5, "annoy")
    np.save(tmp_path / "rows" / "z.npy", np.ones((4, 2), np.float32))
    with pytest.raises(NeighbourError, match=r"z.npy: expected \[N, 3\]"):
        open_shards(tmp_path / "rows")
    (tmp_path / "rows" / "z.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(NeighbourError, match=r"not a whole \.npy file"):
        open_shards(tmp_path / "rows")
    with pytest.raises(NeighbourError, match="found none"):
        open_shards(tmp_path)
