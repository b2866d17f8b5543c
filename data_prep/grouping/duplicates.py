"""Duplicate images: which pairs show copies of one image, and which of them stay.

Two images are copies where their bytes are equal, or where their 64-bit hashes differ in at most `radius` bits; copies
of copies are one group. The hashes and the search for close ones are `plip_jax.data.perceptual_hash`'s. Embeddings and
captions are counted here and decide nothing. `duplicates_beam` finds the same groups on many machines.

A flat image (`ImageHash.is_flat`) has a hash of noise: its `Pair.phash` is empty, and its bytes alone are compared.
"""

import dataclasses
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.curation.pair import Decision, Pair, drop
from data_prep.grouping.components import components, hash_text, link_equal, members_of_groups
from plip_jax.data.image import decode_image
from plip_jax.data.perceptual_hash import close_pairs_within, dhash

STAGE = "duplicate"
_LISTED = 20  # pairs of embeddings that a report quotes; all are counted
_BLOCK = 2048  # embeddings compared with as many others at a time: 16 MiB of cosines


class DuplicateError(ValueError):
    """The duplicates cannot be looked for at all; the message says what to change."""


def _stored_phash(pair: Pair, images: Path | None) -> str:
    return pair.phash


def _dhash_of_file(pair: Pair, images: Path | None) -> str:
    if images is None:
        raise DuplicateError("hash 'dhash': expected the folder of the stripped images, got none; pass `images`")
    if not pair.phash:
        return ""  # flat: the stage `image` has seen that there is no structure
    path = images / pair.clean_digest[:2] / pair.clean_digest
    return f"{dhash(decode_image(path.read_bytes(), name=pair.id)):016x}"


HASHES: dict[str, Callable[[Pair, Path | None], str]] = {"phash": _stored_phash, "dhash": _dhash_of_file}
"""What gives a pair's hash (16 hexadecimal digits; empty for a flat image) from it and the folder of its images."""


def _earliest(pair: Pair) -> tuple[Any, ...]:
    return (pair.created_at or "~", pair.id)  # "~" sorts behind every date


def _largest(pair: Pair) -> tuple[Any, ...]:
    return (-pair.width * pair.height, *_earliest(pair))


KEEP: dict[str, Callable[[Pair], tuple[Any, ...]]] = {"earliest": _earliest, "largest": _largest}
"""What a copy is judged by; the least value stays. "largest" counts pixels."""

POLICIES = ("drop", "group")


@dataclasses.dataclass(frozen=True)
class DuplicateSettings:
    """What counts as a copy, and what becomes of copies.

    Attributes:
        hash: "phash" or "dhash", see `HASHES`.
        radius: Bits of 64 in which the hashes of copies may differ (ours).
        policy: "drop" keeps the pairs of one image of a group, "group" keeps all and notes the group (ours).
        keep: Which image stays, see `KEEP` (ours).
        embedding_threshold: Least cosine at which embeddings are reported as close; 1 or more reports none (ours).
    """

    hash: str = "phash"
    radius: int = 3
    policy: str = "drop"
    keep: str = "earliest"
    embedding_threshold: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (("hash", HASHES), ("policy", POLICIES), ("keep", KEEP)):
            if getattr(self, name) not in known:
                raise DuplicateError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 <= self.radius <= 64:
            raise DuplicateError(f"radius: expected 0 to 64 bits, got {self.radius}")


def duplicate_groups(hashes: np.ndarray, radius: int) -> np.ndarray:
    """Group rows whose hashes differ in at most `radius` bits, and those that such rows connect; exact.

    Proof that no close pair is missed (radius 3): cut the 64 bits into 5 bands. Two hashes that differ in 3 bits or
    fewer differ in at most 3 bands, because each bit lies in one; so at least 2 of the 5 bands are equal. The search
    sorts the hashes once for each of the 10 choices of 2 bands and compares those that are equal there: the pair meets
    in the sort of its equal bands. The same holds for any radius and A: of radius + A bands at least A are equal. And
    no other pair is taken, since every candidate's distance is counted.

    Equal hashes are made one before: one value that is there 200,000 times costs no more than one.

    Args:
        hashes: uint64 [N].
        radius: Bits.

    Returns:
        int64 [N], the least row of each row's group.
    """
    distinct, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    pairs = close_pairs_within(distinct, radius)
    labels = components(len(distinct), pairs.left, pairs.right)
    least = np.full(len(distinct), len(hashes), np.int64)
    np.minimum.at(least, labels, first)
    return least[labels][which]


@dataclasses.dataclass(frozen=True)
class DuplicatePlan:
    """What becomes of the pairs; those not named are alone and stay.

    Attributes:
        group_of: Id of a pair with copies or further pairs of its image -> the least id of its group.
        dropped: Id of a pair that ends -> the reason, and the id of the pair that stays for it.
        report: Counts, for the funnel.
    """

    group_of: dict[str, str]
    dropped: dict[str, tuple[str, str]]
    report: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Columns:
    """What is kept of the pairs while they are read.

    Attributes:
        ids: Of the pairs.
        ranks: What the kept one is chosen by; the least stays.
        images: Hashes of the image's name, uint64 [N].
        digests: Of its bytes, likewise.
        clean_digests: Of its stripped bytes, likewise.
        hashes: uint64 [N].
        hashable: Whether the hash says something, bool [N].
    """

    ids: list[str]
    ranks: list[tuple[Any, ...]]
    images: np.ndarray
    digests: np.ndarray
    clean_digests: np.ndarray
    hashes: np.ndarray
    hashable: np.ndarray


def plan_duplicates(pairs: Iterable[Pair], settings: DuplicateSettings, images: Path | None = None) -> DuplicatePlan:
    """Decide about copies from one pass over the pairs, of which 0.5 kB each are held.

    Args:
        pairs: Behind the stages `image`, `gate` and `verdict`, in any order.
        settings: What counts as a copy.
        images: Folder of the stripped images by sha256 (`ab/ab12...`), where the hash is made from them.

    Raises:
        DuplicateError: Two pairs have one id, or the hash needs the images and there is no folder of them.
    """
    columns = _read_columns(pairs, settings, images)
    if (distinct := len(set(columns.ids))) < len(columns.ids):
        raise DuplicateError(f"expected pairs of different ids, got {len(columns.ids)} with {distinct} ids")
    labels = _group_rows(columns, settings.radius)
    group_of: dict[str, str] = {}
    dropped: dict[str, tuple[str, str]] = {}
    sizes: list[int] = []
    for rows in members_of_groups(labels):
        least = min(columns.ids[row] for row in rows)
        group_of |= {columns.ids[row]: least for row in rows}
        of_image: dict[int, list[int]] = {}
        for row in rows.tolist():
            of_image.setdefault(int(columns.images[row]), []).append(row)
        if len(of_image) > 1:
            sizes.append(len(of_image))
            if settings.policy == "drop":
                dropped |= _drop_copies(columns, list(of_image.values()))
    report = {
        "hash": settings.hash,
        "radius": settings.radius,
        "policy": settings.policy,
        "pairs": len(columns.ids),
        "pairs_without_hash": int((~columns.hashable).sum()),
        "groups_of_copies": len(sizes),
        "images_in_groups": sum(sizes),
        "largest_group": max(sizes, default=0),
        "dropped": dict(sorted(Counter(reason for reason, _ in dropped.values()).items())),
    }
    return DuplicatePlan(group_of, dropped, report)


def _read_columns(pairs: Iterable[Pair], settings: DuplicateSettings, images: Path | None) -> _Columns:
    ids: list[str] = []
    ranks: list[tuple[Any, ...]] = []
    hashes = array("Q")
    hashable: list[bool] = []
    texts = array("Q")
    rank, hash_of = KEEP[settings.keep], HASHES[settings.hash]
    for pair in pairs:
        ids.append(pair.id)
        ranks.append(rank(pair))
        bits = hash_of(pair, images)
        hashes.append(int(bits or "0", 16))
        hashable.append(bool(bits))
        image = image_name(pair)
        texts.extend(map(hash_text, (image, pair.digest, pair.clean_digest)))
    by_text = np.array(texts, np.uint64).reshape(-1, 3)
    return _Columns(
        ids,
        ranks,
        *np.ascontiguousarray(by_text.T),
        hashes=np.array(hashes, np.uint64),
        hashable=np.array(hashable, bool),
    )


def image_name(pair: Pair) -> str:
    """Name the image that a pair is about: pairs of one image stay together, whatever becomes of its copies.

    It is what the source says: an address in a conversation, where people post (a tweet and its reply; the same address
    in another post is a copy); in a table, where nobody is named, the address alone (two captions of one file).
    """
    source = pair.id.partition(":")[0]
    conversation = pair.conversation_id if pair.image_author else ""
    return f"{source}\0{conversation}\0{pair.url or pair.path}"


def _group_rows(columns: _Columns, radius: int) -> np.ndarray:
    """The least row of each row's group, by bytes and by hash."""
    hashable = np.flatnonzero(columns.hashable)
    near = hashable[duplicate_groups(columns.hashes[hashable], radius)]
    links = [(hashable, near), link_equal(columns.digests), link_equal(columns.clean_digests)]
    left, right = (np.concatenate(ends) for ends in zip(*links, strict=True))
    return components(len(columns.ids), left, right)


def _drop_copies(columns: _Columns, images: list[list[int]]) -> dict[str, tuple[str, str]]:
    """Keep the pairs of the first image of a group; the others end, each with its reason and what stays for it."""
    images = sorted(images, key=lambda rows: min(columns.ranks[row] for row in rows))
    kept = images[0]
    stays = columns.ids[min(kept, key=lambda row: columns.ranks[row])]
    known = {int(column[row]) for column in (columns.digests, columns.clean_digests) for row in kept} - {0}
    dropped = {}
    for row in (row for rows in images[1:] for row in rows):
        same = {int(columns.digests[row]), int(columns.clean_digests[row])} & known
        dropped[columns.ids[row]] = ("same_bytes" if same else "near_duplicate", stays)
    return dropped


def judge_duplicate(pair: Pair, plan: DuplicatePlan) -> Pair | Decision:
    """Give a pair its duplicate group, or end it as a copy."""
    pair = dataclasses.replace(pair, duplicate_group=plan.group_of.get(pair.id, pair.id))
    if pair.id in plan.dropped:
        reason, stays = plan.dropped[pair.id]
        return drop(pair, STAGE, reason, stays)
    return pair


def resolve_duplicates(
    pairs: Sequence[Pair], settings: DuplicateSettings, images: Path | None = None
) -> tuple[list[Pair], list[Decision]]:
    """Plan and judge pairs that fit in memory; both lists are in the order of the pairs."""
    plan = plan_duplicates(pairs, settings, images)
    judged = [judge_duplicate(pair, plan) for pair in pairs]
    kept = [one for one in judged if isinstance(one, Pair)]
    return kept, [one for one in judged if isinstance(one, Decision)]


def report_close_embeddings(
    ids: Sequence[str], features: np.ndarray, threshold: float, groups: Sequence[str]
) -> dict[str, Any]:
    """Count the pairs of images whose embeddings are close; exact, in time that grows with their square.

    Args:
        ids: Of the images.
        features: L2-normalised embeddings, float [N, D].
        threshold: The least cosine.
        groups: `Pair.duplicate_group` of each; pairs in one group were known as copies.

    Returns:
        ``threshold``, ``images``, ``close_pairs``, ``close_pairs_in_two_groups``, ``images_with_a_close_one`` and the
        first ``listed`` of the pairs in two groups, closest first.
    """
    features = np.asarray(features, np.float32)
    _, group = np.unique(np.asarray(groups, object), return_inverse=True)
    close, between = 0, 0
    has_close = np.zeros(len(ids), bool)
    listed: list[tuple[float, int, int]] = []
    for start in range(0, len(ids), _BLOCK):
        for other in range(start, len(ids), _BLOCK):
            cosines = features[start : start + _BLOCK] @ features[other : other + _BLOCK].T
            rows, columns = np.nonzero(cosines >= threshold)
            left, right = rows + start, columns + other
            near = np.flatnonzero(left < right)
            left, right, cosine = left[near], right[near], cosines[rows[near], columns[near]]
            has_close[left] = has_close[right] = True
            close += len(near)
            new = np.flatnonzero(group[left] != group[right])
            between += len(new)
            new = new[np.lexsort((right[new], left[new], -cosine[new]))[:_LISTED]]
            listed += zip((-cosine[new]).tolist(), left[new].tolist(), right[new].tolist(), strict=True)
            listed = sorted(listed)[:_LISTED]
    return {
        "threshold": threshold,
        "images": len(ids),
        "close_pairs": close,
        "close_pairs_in_two_groups": between,
        "images_with_a_close_one": int(has_close.sum()),
        "listed": [{"ids": [ids[left], ids[right]], "cosine": round(-cosine, 4)} for cosine, left, right in listed],
    }


def count_equal_captions(keys: Iterable[str]) -> dict[str, int]:
    """Count captions that are there more than once.

    Args:
        keys: `data_prep.text.clean_text.caption_key` of each caption; empty ones are left out.
    """
    counts = Counter(hash_text(key) for key in keys if key)
    repeated = [count for count in counts.values() if count > 1]
    return {
        "captions": counts.total(),
        "distinct": len(counts),
        "captions_equal_to_another": sum(repeated),
        "most_of_one": max(counts.values(), default=0),
    }
