"""Which images of an evaluation set, or near-copies of them, a model was trained on.

Two witnesses: a perceptual hash (a copy compressed, resized, flipped or turned; it does not depend on any model) and
the cosine of embeddings (also crops and other stains of one field; its threshold depends on the model). Pure functions
on ids, hashes and features; hashes and the search for close ones are `plip_jax.data.perceptual_hash`'s, handed in.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from plip_jax.evaluation import retrieval
from plip_jax.evaluation.embeddings import EvaluationError

# Pairs that a report quotes; all of them are rows of its table.
_QUOTED = 20


class PairsLike(Protocol):
    """The fields of `plip_jax.data.perceptual_hash.ClosePairs`."""

    @property
    def left(self) -> np.ndarray: ...  # noqa: D102 # the class says it
    @property
    def right(self) -> np.ndarray: ...  # noqa: D102 # the same
    @property
    def distance(self) -> np.ndarray: ...  # noqa: D102 # the same


ClosePairsSearch = Callable[[np.ndarray, np.ndarray, int], PairsLike]
"""`plip_jax.data.perceptual_hash.close_pairs`: hashes [N], hashes [M, V] and a radius -> all pairs within it."""


@dataclasses.dataclass(frozen=True)
class LeakageConfig:
    """When two images count as one.

    Attributes:
        hash_radius: bits of 64 in which their hashes may differ. On 1,881 real tiles of two sets, 6 found every copy
            compressed at quality 75 or resized from 256 to 64 pixels, 98 % of those cropped by 2 pixels a side, and
            among the tiles themselves the 32 that both sets hold and no other pair.
        cosine: the least cosine of their embeddings. What it means depends on the model.
        pairs_per_image: of a test image, the closest training images listed by each witness.
    """

    hash_radius: int = 6
    cosine: float = 0.98
    pairs_per_image: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.hash_radius <= 64 or not -1 <= self.cosine <= 1 or self.pairs_per_image < 1:
            raise EvaluationError(
                "leakage: expected hash_radius in [0, 64], cosine in [-1, 1] and pairs_per_image of 1 or more, got "
                f"{self.hash_radius}, {self.cosine} and {self.pairs_per_image}"
            )


@dataclasses.dataclass(frozen=True)
class AuditedImages:
    """What an audit knows of the images of one side.

    Attributes:
        ids: one an image.
        hashes: uint64 [N, V], an image's own hash first and then those of its flips and turns; None where not known.
        is_flat: images whose hash is noise because they are blank, bool [N]; they are compared by embedding alone.
        features: L2-normalised embeddings float32 [N, D]; None where not known.
    """

    ids: tuple[str, ...]
    hashes: np.ndarray | None = None
    is_flat: np.ndarray | None = None
    features: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("hashes", "is_flat", "features"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != len(self.ids):
                raise EvaluationError(f"leakage: expected {name} of {len(self.ids)} images, got {len(rows)}")
        if self.hashes is not None and self.hashes.ndim != 2:
            raise EvaluationError(f"leakage: expected hashes [N, V], got {self.hashes.shape}")

    @property
    def hashable(self) -> np.ndarray:
        """Rows whose hash says something."""
        return np.arange(len(self.ids)) if self.is_flat is None else np.flatnonzero(~self.is_flat)


@dataclasses.dataclass(frozen=True)
class LeakedPair:
    """A test image and a training image that count as one.

    Attributes:
        test: row of the test image.
        train: row of the training image.
        distance: differing bits of their hashes; None where one is not known or flat.
        cosine: of their embeddings; None where not known.
        why: "hash", "embedding" or "hash and embedding".
    """

    test: int
    train: int
    distance: int | None
    cosine: float | None
    why: str


@dataclasses.dataclass(frozen=True)
class Leaks:
    """What was found.

    Attributes:
        by_hash: bool [N] of the test images; None where hashes were not compared.
        by_embedding: the same by embeddings.
        pairs: of each flagged image the closest training images, in the order of the test images.
    """

    by_hash: np.ndarray | None
    by_embedding: np.ndarray | None
    pairs: tuple[LeakedPair, ...]

    @property
    def flagged(self) -> np.ndarray:
        """Test images with a near-copy in training by either witness, bool [N]."""
        known = [found for found in (self.by_hash, self.by_embedding) if found is not None]
        return np.logical_or.reduce(known)


def find_leaks(
    train: AuditedImages, test: AuditedImages, config: LeakageConfig, *, close_pairs: ClosePairsSearch
) -> Leaks:
    """Find the test images that have a near-copy among the training images.

    Args:
        train: with flips and turns of the hashes where copies may be turned.
        test: only the images' own hashes are read.
        config: what counts as a copy.
        close_pairs: `plip_jax.data.perceptual_hash.close_pairs`.

    Raises:
        EvaluationError: neither hashes nor features on both sides, or features of different lengths.
    """
    by_hash = by_embedding = None
    found: dict[tuple[int, int], set[str]] = {}
    if train.hashes is not None and test.hashes is not None:
        by_hash = np.zeros(len(test.ids), bool)
        for row, other in _close_by_hash(train, test, config, close_pairs, by_hash):
            found.setdefault((row, other), set()).add("hash")
    cosines: dict[tuple[int, int], float] = {}
    if train.features is not None and test.features is not None:
        if train.features.shape[1] != test.features.shape[1]:
            raise EvaluationError(
                f"leakage: expected features of one model, got {train.features.shape[1]} and {test.features.shape[1]} "
                "numbers an image"
            )
        nearest = retrieval.nearest(test.features, train.features, config.pairs_per_image)
        close = nearest.scores >= config.cosine
        by_embedding = close[:, 0]
        for row, place in np.argwhere(close):
            pair = int(row), int(nearest.rows[row, place])
            cosines[pair] = float(nearest.scores[row, place])
            found.setdefault(pair, set()).add("embedding")
    if by_hash is None and by_embedding is None:
        raise EvaluationError("leakage: expected hashes or features of both training and test images, got neither")
    pairs = (_describe(train, test, config, pair, found[pair], cosines.get(pair)) for pair in sorted(found))
    return Leaks(by_hash, by_embedding, tuple(pairs))


def _close_by_hash(
    train: AuditedImages,
    test: AuditedImages,
    config: LeakageConfig,
    close_pairs: ClosePairsSearch,
    flagged: np.ndarray,
) -> list[tuple[int, int]]:
    """The closest training images of each test image within the radius; those test images are flagged."""
    assert train.hashes is not None
    assert test.hashes is not None
    # Equal hashes are searched once: a set in which one image is there a thousand times must not give a million pairs.
    own, which = np.unique(test.hashes[test.hashable, 0], return_inverse=True)
    _, first = np.unique(train.hashes[train.hashable, 0], return_index=True)
    trained = train.hashable[first]
    pairs = close_pairs(own, train.hashes[trained], config.hash_radius)
    order = np.lexsort((trained[pairs.right], pairs.distance, pairs.left))
    listed: dict[int, list[int]] = {}
    for place in order:
        others = listed.setdefault(int(pairs.left[place]), [])
        if len(others) < config.pairs_per_image:
            others.append(int(trained[pairs.right[place]]))
    close = [
        (int(row), other)
        for row, number in zip(test.hashable, which, strict=True)
        for other in listed.get(int(number), [])
    ]
    flagged[[row for row, _ in close]] = True
    return close


def _describe(
    train: AuditedImages,
    test: AuditedImages,
    config: LeakageConfig,
    pair: tuple[int, int],
    why: set[str],
    cosine: float | None,
) -> LeakedPair:
    row, other = pair
    distance = None
    flat = any(side.is_flat is not None and side.is_flat[at] for side, at in ((test, row), (train, other)))
    if test.hashes is not None and train.hashes is not None and not flat:
        distance = int(np.bitwise_count(test.hashes[row, 0] ^ train.hashes[other]).min())
        why = why | ({"hash"} if distance <= config.hash_radius else set())
    if cosine is None and test.features is not None and train.features is not None:
        cosine = float(test.features[row].astype(np.float64) @ train.features[other].astype(np.float64))
        why = why | ({"embedding"} if cosine >= config.cosine else set())
    return LeakedPair(row, other, distance, cosine, " and ".join(sorted(why, reverse=True)))


def audit_report(leaks: Leaks, train: AuditedImages, test: AuditedImages, config: LeakageConfig) -> dict[str, Any]:
    """Put an audit into JSON: how many images, how many flagged by which witness, and the first pairs."""
    flagged = {
        name: None if found is None else int(found.sum())
        for name, found in (("hash", leaks.by_hash), ("embedding", leaks.by_embedding))
    }
    both = None
    if leaks.by_hash is not None and leaks.by_embedding is not None:
        both = int((leaks.by_hash & leaks.by_embedding).sum())
    return {
        "settings": dataclasses.asdict(config),
        "num_train": len(train.ids),
        "num_test": len(test.ids),
        "flagged": {**flagged, "both": both, "either": int(leaks.flagged.sum())},
        "share_flagged": float(leaks.flagged.mean()),
        # Blank images: their hashes are noise, so only an embedding can flag them.
        "too_flat_to_hash": {
            name: None if side.is_flat is None else int(side.is_flat.sum())
            for name, side in (("train", train), ("test", test))
        },
        "pairs": audit_rows(leaks, train, test)[:_QUOTED],
        "num_pairs": len(leaks.pairs),
    }


def audit_rows(leaks: Leaks, train: AuditedImages, test: AuditedImages) -> list[dict[str, Any]]:
    """One mapping a pair, for a table: ``test_id``, ``train_id``, ``distance``, ``cosine``, ``why``."""
    return [
        {
            "test_id": test.ids[pair.test],
            "train_id": train.ids[pair.train],
            "distance": pair.distance,
            "cosine": pair.cosine,
            "why": pair.why,
        }
        for pair in leaks.pairs
    ]
