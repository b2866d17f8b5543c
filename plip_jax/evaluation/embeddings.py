"""Embeddings that carry their ids, and the one similarity all measures are made of.

Owns the checks at the edge (finite, one row an id, no id twice) and the product of two sets of embeddings. Where
embeddings come from is not known here.
"""

import dataclasses
import hashlib

import numpy as np


class EvaluationError(ValueError):
    """What is to be evaluated does not fit together; the message says what was expected and what to do."""


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Rows and whose they are.

    Attributes:
        ids: one a row, none twice.
        features: float32 [N, D], L2-normalised on construction unless ``normalize`` is false.
        normalize: false for features that are published as they are (MuDiPath's).

    Raises:
        EvaluationError: rows and ids differ in number, an id is there twice, a row is not finite or all zero.
    """

    ids: tuple[str, ...]
    features: np.ndarray
    normalize: bool = True

    def __post_init__(self) -> None:
        if np.ndim(self.features) != 2 or len(self.features) != len(self.ids):
            raise EvaluationError(f"expected {len(self.ids)} rows, one an id, got an array {np.shape(self.features)}")
        if len(set(self.ids)) != len(self.ids):
            seen: set[str] = set()
            twice = next(name for name in self.ids if name in seen or seen.add(name))
            raise EvaluationError(f"expected each id once, got {twice!r} at least twice; each example counts once")
        normalized = normalize_rows(self.features, names=self.ids)  # checks the rows, too
        object.__setattr__(self, "features", normalized if self.normalize else np.asarray(self.features, np.float32))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> "Embeddings":
        """The embeddings of some rows, in the order given."""
        return Embeddings(tuple(self.ids[row] for row in rows), self.features[rows], self.normalize)


def normalize_rows(features: np.ndarray, *, names: tuple[str, ...] | None = None) -> np.ndarray:
    """Scale each row to length 1.

    Args:
        features: [N, D], any float type.
        names: what to call a bad row in the error; its number when None.

    Returns:
        float32 [N, D].

    Raises:
        EvaluationError: a row holds a NaN or an infinity, or is all zero.
    """
    features = np.asarray(features, np.float32)
    norms = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if bad.size:
        first = names[bad[0]] if names else f"row {bad[0]}"
        raise EvaluationError(
            f"expected finite, non-zero embeddings, got {bad.size} bad of {len(features)}, the first of them {first}: "
            "the weights may hold NaN, or compute_dtype may overflow"
        )
    return (features / norms).astype(np.float32)


def normalized(embeddings: Embeddings) -> np.ndarray:
    """The features of embeddings with rows of length 1, float32 [N, D], whether they are stored so or not."""
    if embeddings.normalize:
        return embeddings.features
    return normalize_rows(embeddings.features, names=embeddings.ids)


def distinct_rows(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find rows of equal values, bit for bit but for the sign of a zero.

    Args:
        features: float32 [N, D].

    Returns:
        The first row of each distinct one, int64 [U], rising, and for each row which of these it equals, int64 [N].
    """
    number: dict[bytes, int] = {}
    first_row: list[int] = []
    of_row = np.empty(len(features), np.int64)
    for row, values in enumerate(features):
        # -0 becomes 0: equal values, equal bytes. By hash, because all rows at once would be a second copy of them.
        content = np.asarray(values, np.float32) + np.float32(0)
        found = number.setdefault(hashlib.sha256(content.tobytes()).digest(), len(number))
        if found == len(first_row):
            first_row.append(row)
        of_row[row] = found
    return np.asarray(first_row, np.int64), of_row


class Similarity:
    """Cosine similarity with a fixed set of candidates, exact under ties.

    Two candidates with bit-equal embeddings get bit-equal scores from every query. A plain matrix product does not
    promise that: a BLAS sums the last columns of a matrix in another order than the first, and a tie would be
    broken by rounding. So the product runs over the distinct rows only and its columns are then repeated.
    """

    def __init__(self, candidates: np.ndarray):
        """Index the distinct rows.

        Args:
            candidates: float32 [N, D], L2-normalised.
        """
        first_row, self._column = distinct_rows(candidates)
        self.num_candidates = len(self._column)
        self.num_distinct = len(first_row)
        self._distinct = np.ascontiguousarray(np.asarray(candidates, np.float32)[first_row])

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        """Score each query (float32 [Q, D], L2-normalised) with each candidate: float32 [Q, N]."""
        scores = np.asarray(queries, np.float32) @ self._distinct.T
        return scores if self.num_distinct == self.num_candidates else scores[:, self._column]
