"""The nearest rows of a corpus of features: exact cosine top-k, a chunk of the corpus at a time.

Owns the search over arrays, and what counts as a query and as a corpus. What makes features of images and texts is
`plip_jax.api`; ranks that an evaluation counts, where copies of one image must tie to the last bit, are
`plip_jax.evaluation.tiled_similarity`, which holds all features on the device. Here the corpus may be memory-mapped and
larger than any memory: each row is read once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plip_jax.answers import Hit
from plip_jax.batching import image_list, is_one_image

Encode = Callable[[Any], np.ndarray]

# Rows of the corpus and queries of one product: 64 MiB of scores.
_CHUNK, _QUERIES = 16_384, 1024


def is_features(values: Any) -> bool:
    """Whether this is an array of floats, which are features; images are uint8."""
    dtype = getattr(values, "dtype", None)
    return isinstance(dtype, np.dtype) and np.issubdtype(dtype, np.floating)


def query_features(queries: Any, *, encode_text: Encode, encode_images: Encode) -> tuple[np.ndarray, bool]:
    """Features [Q, D] of queries of any form, and whether there was one query and no list; see `PLIP.retrieve`.

    Raises:
        TypeError: a list that mixes texts and images.
    """
    if is_features(queries):
        return np.atleast_2d(queries), queries.ndim == 1
    if isinstance(queries, str):
        return encode_text([queries]), True
    if is_one_image(queries):
        return encode_images([queries]), True
    queries = list(queries)
    texts = [query for query in queries if isinstance(query, str)]
    if texts and len(texts) < len(queries):
        raise TypeError(
            f"queries: expected texts only or images only, got {len(texts)} strings among {len(queries)}; a string is "
            "a text, so give the file of an image as a pathlib.Path"
        )
    return encode_text(queries) if texts else encode_images(queries), False


def corpus_features(corpus: Any, *, encode_images: Encode, model: Any) -> tuple[Any, Sequence[Any] | None]:
    """Features [N, D] of a corpus of any form, not read where they are on disk, and its names; see `PLIP.retrieve`.

    Raises:
        ValueError: embeddings on disk that another model than `model`, a `PLIP`, has made.
    """
    if is_features(corpus):
        return corpus, None
    if hasattr(corpus, "features") and hasattr(corpus, "ids"):
        if hasattr(corpus, "check"):  # `Embeddings`; what has no more than arrays is the caller's word
            corpus.check(model)
        return corpus.features, corpus.ids
    names: list[str | None] = []

    def named(images: Iterable[Any]) -> Iterator[Any]:
        for image in images:
            names.append(str(image) if isinstance(image, str | Path) else None)
            yield image

    return encode_images(named(image_list(corpus))), names


def hits_of(rows: np.ndarray, scores: np.ndarray, names: Sequence[Any] | None) -> list[list[Hit]]:
    """What `top_k` found, by query."""

    def name(row: int) -> str | None:
        return None if names is None or names[row] is None else str(names[row])

    return [
        [Hit(int(row), name(row), float(score)) for row, score in zip(*found, strict=True) if row >= 0]
        for found in zip(rows, scores, strict=True)
    ]


def top_k(queries: np.ndarray, corpus: Any, k: int, *, chunk: int = _CHUNK) -> tuple[np.ndarray, np.ndarray]:
    """Find the k rows of a corpus with the highest cosine to each query, best first.

    Neither side needs rows of length one: both are normalised here, and the scores are cosines whatever is passed. Rows
    without a direction (zeros, NaN: what a damaged image leaves) are never found, and find nothing. Of equal scores the
    lower row comes first; copies of a row may differ in the last bit of their scores, as matrix products do.

    Args:
        queries: float [Q, D].
        corpus: float [N, D], anything that slices into arrays: a memory map or an HDF5 dataset is read once, in order.
        k: how many at most.
        chunk: rows of the corpus held at once; changes memory and speed only.

    Returns:
        Rows of the corpus int64 [Q, K] and their scores float32 [Q, K]; K is k, or N where that is less. A row of -1
        and a score of -inf stand where there are no more.

    Raises:
        ValueError: k below 1, or shapes that do not fit.
    """
    queries = np.asarray(queries, np.float32)
    if k < 1:
        raise ValueError(f"k: expected 1 or more, got {k}")
    if queries.ndim != 2 or len(corpus.shape) != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            f"expected queries [Q, D] and a corpus [N, D] of features of one model, got {list(queries.shape)} and "
            f"{list(corpus.shape)}"
        )
    k = min(k, corpus.shape[0])
    if k == 0 or not len(queries):
        return np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k), np.float32)
    # Powers of two, so that lists of about one length share a compiled program.
    height, width = _power_of_two(len(queries), _QUERIES), _power_of_two(corpus.shape[0], chunk)
    device = jax.local_devices()[0]
    blocks = [
        jax.device_put(_filled(queries[start : start + height], height), device)
        for start in range(0, len(queries), height)
    ]
    nothing = np.full((height, k), -np.inf, np.float32), np.full((height, k), -1, np.int32)
    best: list[tuple[Any, Any]] = [nothing] * len(blocks)
    for start in range(0, corpus.shape[0], width):
        rows = jax.device_put(_filled(np.asarray(corpus[start : start + width], np.float32), width), device)
        # What is waited for is the chunk before this one: the device works while a chunk is read, and no more than two
        # chunks are held.
        jax.block_until_ready(best)
        best = [_best_so_far(block, rows, np.int32(start), *so_far) for block, so_far in zip(blocks, best, strict=True)]
    scores, places = (np.concatenate([np.asarray(part[i]) for part in best])[: len(queries)] for i in (0, 1))
    return places.astype(np.int64), scores


@jax.jit
def _best_so_far(
    queries: jax.Array, rows: jax.Array, start: jax.Array, best: jax.Array, places: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Merge a chunk into the best of the chunks before it, which stay first among equals."""
    (queries, is_query), (units, is_row) = _units(queries), _units(rows)
    # TPUs and newer GPUs round float32 operands unless told otherwise.
    scores = lax.dot_general(queries, units, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
    scores = jnp.where(is_query[:, None] & is_row[None, :], scores, -jnp.inf)
    found, where = lax.top_k(scores, min(best.shape[1], scores.shape[1]))
    where = jnp.where(found == -jnp.inf, -1, where.astype(jnp.int32) + start)
    merged, order = lax.top_k(jnp.concatenate([best, found], axis=1), best.shape[1])
    return merged, jnp.take_along_axis(jnp.concatenate([places, where], axis=1), order, axis=1)


def _units(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Every row of length one, and whether it has a direction; one without is zeros."""
    lengths = jnp.linalg.norm(rows, axis=1)
    has_direction = (lengths > 0) & jnp.isfinite(lengths)
    return jnp.where(has_direction[:, None], rows / jnp.where(has_direction, lengths, 1)[:, None], 0), has_direction


def _power_of_two(count: int, most: int) -> int:
    return min(most, 1 << max(3, (count - 1).bit_length()))


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Rows of zeros, which are never found, up to a size."""
    return rows if len(rows) == size else np.pad(rows, ((0, size - len(rows)), (0, 0)))
