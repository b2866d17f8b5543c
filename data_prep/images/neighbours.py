"""Exact nearest neighbours of some embeddings in a folder of very many, with bounded memory.

The folder holds `.npy` files (float16 or float32, [N, D]), mapped and read a part at a time; a row's number runs over
the files in the order of their names, as clip-retrieval and img2dataset write them. What the rows are is
`data_prep.expand`'s.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

_CHUNK_ROWS = 65_536  # read at a time: 128 MiB at 512 numbers a row
_QUERY_BLOCK, _ROW_BLOCK = 1024, 8192  # scored at a time: 32 MiB

Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Queries, rows and similarities of what may be among the nearest."""


class NeighbourError(ValueError):
    """The embeddings cannot be searched; the message says what was expected and what came."""


@dataclasses.dataclass(frozen=True)
class EmbeddingShards:
    """A folder of embeddings.

    Attributes:
        files: In the order that row numbers run over.
        counts: Rows of each.
        dim: Numbers a row.
    """

    files: tuple[Path, ...]
    counts: tuple[int, ...]
    dim: int


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Rows that are near to some query, each once, rising.

    Attributes:
        rows: int64 [P].
        similarities: Cosine with the nearest query, float32 [P].
        queries: That query; of equally near ones the first, int64 [P].
        rows_without_direction: Rows of the folder that are zero or not finite, and near to nothing.
    """

    rows: np.ndarray
    similarities: np.ndarray
    queries: np.ndarray
    rows_without_direction: int


def open_shards(folder: Path) -> EmbeddingShards:
    """Look at the `.npy` files of a folder without reading their rows.

    Raises:
        NeighbourError: There are none, or one is no matrix of float16 or float32 as wide as the first.
    """
    files = sorted(folder.glob("*.npy"), key=lambda path: path.name)
    if not files:
        raise NeighbourError(f"{folder}: expected embeddings as .npy files, found none")
    counts = []
    dim = 0
    for file in files:
        rows = _map(file)
        if rows.ndim != 2 or rows.dtype not in (np.float16, np.float32) or (dim and rows.shape[1] != dim):
            wanted = f"[N, {dim or 'D'}] of float16 or float32"
            raise NeighbourError(f"{file}: expected {wanted}, got {list(rows.shape)} of {rows.dtype}")
        dim = rows.shape[1]
        counts.append(len(rows))
    return EmbeddingShards(tuple(files), tuple(counts), dim)


def _map(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise NeighbourError(f"{file} is not a whole .npy file ({type(error).__name__}): fetch it again") from error


def find_neighbours(
    queries: np.ndarray, shards: EmbeddingShards, count: int, threshold: float, backend: str = "numpy"
) -> Neighbours:
    """Find the rows that are among the nearest of some query.

    Of equally near rows the one with the lower number is nearer (FAISS may choose another one at the last place).

    Args:
        queries: float [Q, D], of any length.
        shards: What is searched.
        count: Of nearest rows that each query may name, 1 or more.
        threshold: The least cosine.
        backend: One of `BACKENDS`.

    Raises:
        NeighbourError: Queries of another width, or without direction; no such backend, or it is not installed.
    """
    if backend not in BACKENDS:
        raise NeighbourError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if queries.ndim != 2 or queries.shape[1] != shards.dim:
        raise NeighbourError(f"expected queries [Q, {shards.dim}] as the embeddings are, got {list(queries.shape)}")
    if count < 1:
        raise NeighbourError(f"expected 1 neighbour or more, got {count}")
    queries, directed = _normalise(queries)
    if not directed.all():
        raise NeighbourError(f"{int((~directed).sum())} queries are zero or not finite: embed their images again")
    search = BACKENDS[backend]
    best = np.full((len(queries), count), -np.inf, np.float32)
    best_rows = np.full((len(queries), count), -1, np.int64)
    # What a row must exceed: just below the threshold, later what the query's last place has.
    floor = np.full(len(queries), np.nextafter(np.float32(threshold), np.float32(-np.inf)))
    without_direction = 0
    for start, part in tqdm(_chunks(shards), desc="embeddings", unit="part", disable=None):
        rows, directed = _normalise(part)
        numbers = np.flatnonzero(directed)
        without_direction += len(rows) - len(numbers)
        for found, columns, scores in search(queries, rows[numbers], count, floor):
            _merge(best, best_rows, (found, numbers[columns] + start, scores))
            touched = np.unique(found)
            floor[touched] = np.maximum(floor[touched], best[touched, -1])
    return _best_of_rows(best, best_rows, without_direction)


def _chunks(shards: EmbeddingShards) -> Iterator[tuple[int, np.ndarray]]:
    first = 0
    for file, count in zip(shards.files, shards.counts, strict=True):
        rows = _map(file)
        for start in range(0, count, _CHUNK_ROWS):
            yield first + start, rows[start : start + _CHUNK_ROWS]
        first += count


def _normalise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of length 1, float32, and which have a direction."""
    rows = np.array(rows, np.float32)  # a copy, because the file is mapped for reading
    norms = np.linalg.norm(rows, axis=1)
    directed = np.isfinite(norms) & (norms > 0)
    rows[directed] /= norms[directed, None]
    return rows, directed


def _search_numpy(queries: np.ndarray, rows: np.ndarray, count: int, floor: np.ndarray) -> Iterator[Candidates]:
    for first in range(0, len(queries), _QUERY_BLOCK):
        block = slice(first, first + _QUERY_BLOCK)
        for start in range(0, len(rows), _ROW_BLOCK):
            scores = queries[block] @ rows[start : start + _ROW_BLOCK].T
            passing = scores > floor[block, None]
            crowded = np.flatnonzero(np.count_nonzero(passing, axis=1) > count)
            if len(crowded):
                last = np.partition(scores[crowded], -count, axis=1)[:, -count]
                passing[crowded] &= scores[crowded] >= last[:, None]
            found, columns = np.nonzero(passing)
            if len(found):
                yield found + first, columns + start, scores[found, columns]


def _search_faiss(queries: np.ndarray, rows: np.ndarray, count: int, floor: np.ndarray) -> Iterator[Candidates]:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise NeighbourError("backend 'faiss' is not installed: pip install faiss-cpu") from error
    if not len(rows):
        return
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)  # pyright: ignore[reportCallIssue] # faiss replaces its SWIG signatures when it is imported
    for first in range(0, len(queries), _QUERY_BLOCK):
        block = slice(first, first + _QUERY_BLOCK)
        scores, columns = index.search(queries[block], min(count, len(rows)))  # pyright: ignore[reportCallIssue] # the same
        found, places = np.nonzero(scores > floor[block, None])
        if len(found):
            yield found + first, columns[found, places], scores[found, places]


BACKENDS: dict[str, Callable[[np.ndarray, np.ndarray, int, np.ndarray], Iterator[Candidates]]] = {
    "numpy": _search_numpy,
    "faiss": _search_faiss,
}
"""Queries, rows, number of neighbours and what must be exceeded -> candidates, the nearest of these rows among them."""


def _merge(best: np.ndarray, best_rows: np.ndarray, candidates: Candidates) -> None:
    """Put candidates into the places of their queries, nearest first, of equals the lower row."""
    touched, which = np.unique(candidates[0], return_inverse=True)
    count = best.shape[1]
    owners = np.concatenate([np.repeat(np.arange(len(touched)), count), which])
    rows = np.concatenate([best_rows[touched].reshape(-1), candidates[1]])
    scores = np.concatenate([best[touched].reshape(-1), candidates[2]])
    order = np.lexsort((rows, -scores, owners))
    owners = owners[order]
    place = np.arange(len(order)) - np.searchsorted(owners, owners)  # among its query's
    order, owners, place = (column[place < count] for column in (order, owners, place))
    best[touched[owners], place] = scores[order]
    best_rows[touched[owners], place] = rows[order]


def _best_of_rows(best: np.ndarray, best_rows: np.ndarray, without_direction: int) -> Neighbours:
    """Each found row once, with its nearest query."""
    queries, places = np.nonzero(best_rows >= 0)
    rows, scores = best_rows[queries, places], best[queries, places]
    order = np.lexsort((queries, -scores, rows))
    order = order[np.flatnonzero(np.diff(rows[order], prepend=-1))]
    return Neighbours(rows[order], scores[order], queries[order], without_direction)
