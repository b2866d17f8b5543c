"""Example thumbnails for reports: which pairs are shown, and how small.

The same decisions give the same examples, whatever their order: in each group those with the least hash of their id.
"""

import dataclasses
import hashlib
import heapq
import io
from collections.abc import Callable, Iterable
from pathlib import Path

from data_prep.curated_shards import stored_path
from data_prep.curation.pair import KEPT, Decision
from plip_jax.data.image import ImageError, decode_image

GroupKey = tuple[str, str]
"""`KEPT` and a source, or a stage and a reason."""

_MAX_SIDE = 112  # pixels; two to a pixel of the page would not show more of tissue
_JPEG_QUALITY = 80


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A small picture of a stored image: the image's sha256, and the thumbnail as JPEG."""

    clean_digest: str
    jpeg: bytes


def show_kept(decision: Decision) -> bool:
    """Say whether a report may show an item: of those that are in the dataset, whose images are released anyway."""
    return decision.stage == KEPT


def choose_thumbnails(
    decisions: Iterable[Decision],
    store_clean: Path,
    *,
    may_show: Callable[[Decision], bool] = show_kept,
    per_group: int = 8,
) -> dict[GroupKey, tuple[Thumbnail, ...]]:
    """Pick examples of the kept pairs of each source and of each reason, and make them small.

    Args:
        decisions: Read once; a handful of each group is held.
        store_clean: The store of stripped images; what is not in it (any more) is not shown.
        may_show: Whether a decision's image may be shown to whoever reads the report.
        per_group: How many; an image is shown once in a group.
    """
    chosen: dict[GroupKey, set[str]] = {}  # clean digests
    for decision in decisions:
        pair = decision.pair
        if pair is None or not pair.clean_digest or not may_show(decision):
            continue
        group = (KEPT, decision.source) if decision.stage == KEPT else (decision.stage, decision.reason)
        members = chosen.setdefault(group, set())
        members.add(pair.clean_digest)
        if len(members) > 4 * per_group:
            chosen[group] = set(heapq.nsmallest(per_group, members, key=_rank))
    found = {}
    for group in sorted(chosen):
        digests = heapq.nsmallest(per_group, chosen[group], key=_rank)
        thumbnails = [thumbnail for digest in digests if (thumbnail := _thumbnail(digest, store_clean))]
        if thumbnails:
            found[group] = tuple(thumbnails)
    return found


def _rank(digest: str) -> int:
    return int.from_bytes(hashlib.blake2b(digest.encode(), digest_size=8, person=b"thumbnail").digest(), "big")


def _thumbnail(digest: str, store_clean: Path) -> Thumbnail | None:
    try:
        image = decode_image(stored_path(store_clean, digest).read_bytes(), name=digest).convert("RGB")
    except (OSError, ImageError):
        return None  # an example less; the shards say what is wrong with the store
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    image.info.clear()  # no colour profile nor comment goes along
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return Thumbnail(digest, buffer.getvalue())
