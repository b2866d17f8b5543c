"""What the splits of the finished pairs share: the proof, for the report, that nothing is on both sides.

It counts on the pairs as they are written, and knows nothing of how `data_prep.grouping.split` made the groups.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from data_prep.curation.pair import Pair
from data_prep.grouping.components import UNKNOWN, hash_text
from data_prep.grouping.split import local_name
from plip_jax.data.perceptual_hash import close_pairs_within

_MOST_SPLITS = 63  # one bit each

VALUES: dict[str, Callable[[Pair], tuple[str, ...]]] = {
    "group": lambda pair: (pair.group_id,),
    "bytes": lambda pair: (pair.digest,),
    "stripped_bytes": lambda pair: (pair.clean_digest,),
    "duplicate_group": lambda pair: (pair.duplicate_group,),
    "conversation": lambda pair: (pair.conversation_id,),
    "author": lambda pair: (pair.author, pair.image_author),
    "url": lambda pair: (pair.url or local_name(pair),),
    "given_group": lambda pair: (f"{pair.source}\0{pair.given_group}" if pair.given_group else "",),
}
"""What is counted, and a pair's values of it; empty ones are not known."""

HASH, CAPTION = "hash", "caption"

KEPT_TOGETHER: dict[str, tuple[str, ...]] = {
    "duplicates": ("bytes", "stripped_bytes", "duplicate_group", HASH),
    "conversations": ("conversation",),
    "authors": ("author",),
    "urls": ("url",),
    "given_groups": ("given_group",),
}
"""What must not be shared where `SplitSettings.keep_together` names this."""


def prove_disjoint(
    pairs: Iterable[Pair],
    keep_together: Sequence[str],
    radius: int,
    caption_key: Callable[[str], str],
    *,
    hash_is_phash: bool = True,
) -> dict[str, Any]:
    """Count the values that pairs of two splits have in common.

    Args:
        pairs: With their splits; read once.
        keep_together: As in `SplitSettings`.
        radius: Bits in which the perceptual hashes of two images may differ, as in `DuplicateSettings`.
        caption_key: `data_prep.text.clean_text.caption_key`.
        hash_is_phash: Whether copies were found by the hash in `Pair.phash`; by another, close hashes may be shared.

    Returns:
        ``pairs`` by split; ``shared``, which for each kind of value has ``values`` (distinct ones), ``shared`` (those
        in two splits; of perceptual hashes those with one in another split within the radius) and ``must_be_0``; and
        ``holds``, whether all are 0 that must be.

    Raises:
        ValueError: More than 63 splits.
    """
    codes: dict[str, int] = {}
    counts: Counter[str] = Counter()
    rows, hashes, hashed = array("Q"), array("Q"), array("Q")
    columns = {name: array("Q") for name in (*VALUES, CAPTION)}
    for pair in pairs:
        counts[pair.split] += 1
        rows.append(codes.setdefault(pair.split, len(codes)))
        for name, values in VALUES.items():
            columns[name].extend(map(hash_text, values(pair)))
        columns[CAPTION].append(hash_text(caption_key(pair.caption)))
        if pair.phash:
            hashes.append(int(pair.phash, 16))
            hashed.append(rows[-1])
    if len(codes) > _MOST_SPLITS:
        raise ValueError(f"expected at most {_MOST_SPLITS} splits, got {len(codes)}")
    required = {"group"}.union(*(KEPT_TOGETHER[kind] for kind in keep_together))
    if not hash_is_phash:
        required.discard(HASH)
    bits = np.uint64(1) << np.array(rows, np.uint64)
    found = {name: _count_shared(np.array(column, np.uint64), bits) for name, column in columns.items()}
    found[HASH] = _count_close(np.array(hashes, np.uint64), np.uint64(1) << np.array(hashed, np.uint64), radius)
    shared = {
        name: {"values": values, "shared": number, "must_be_0": name in required}
        for name, (values, number) in found.items()
    }
    return {
        "pairs": dict(sorted(counts.items())),
        "radius": radius,
        "shared": shared,
        "holds": not any(one["shared"] for one in shared.values() if one["must_be_0"]),
    }


def _count_shared(values: np.ndarray, bits: np.ndarray) -> tuple[int, int]:
    """Distinct known values [N * V], and how many of them are in two splits; ``bits`` [N] has one bit a split."""
    bits = np.repeat(bits, len(values) // max(1, len(bits)))
    known = values != UNKNOWN
    distinct, splits = _splits_of(values[known], bits[known])
    return len(distinct), int((np.bitwise_count(splits) > 1).sum())


def _count_close(hashes: np.ndarray, bits: np.ndarray, radius: int) -> tuple[int, int]:
    """Distinct hashes, and how many are in two splits or have a close one in another."""
    distinct, splits = _splits_of(hashes, bits)
    shared = np.bitwise_count(splits) > 1
    pairs = close_pairs_within(distinct, radius)
    apart = np.bitwise_count(splits[pairs.left] | splits[pairs.right]) > 1
    shared[pairs.left[apart]] = shared[pairs.right[apart]] = True
    return len(distinct), int(shared.sum())


def _splits_of(values: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distinct, which = np.unique(values, return_inverse=True)
    splits = np.zeros(len(distinct), np.uint64)
    np.bitwise_or.at(splits, which, bits)
    return distinct, splits
