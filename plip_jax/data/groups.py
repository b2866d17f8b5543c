"""What makes two examples of one batch false negatives: numbers that are equal where they show the same thing.

Owns the table of groupings by name. A contrastive loss pushes every other pair of a batch apart, also one with the same
caption or of the same post; the loss reads these numbers and leaves such pairs out.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Sequence

from plip_jax.data.records import Record

Grouping = Callable[[Record, str, int], str]
"""(record, its caption, number of its source) -> a text that is equal where two examples show the same thing."""


def _by_caption(record: Record, caption: str, source: int) -> str:
    """The caption as the tokenizer's cleaning leaves it: composed, lowered, white space collapsed."""
    del record, source
    return " ".join(unicodedata.normalize("NFC", caption).split()).lower()


def _by_group(record: Record, caption: str, source: int) -> str:
    """The record's group (slide, patient, post), or the record itself; names count within their source only."""
    del caption
    return f"{source}/group/{record.group_id}" if record.group_id else f"{source}/id/{record.id}"


GROUPINGS: dict[str, Grouping] = {"caption": _by_caption, "group": _by_group}
"""Name in ``loss.group_by`` -> grouping: the same caption, or the same group of a source."""


def check_groupings(names: Sequence[str]) -> None:
    """Raise a ValueError that lists the known groupings where a name is none."""
    for name in names:
        if name not in GROUPINGS:
            raise ValueError(f"unknown grouping {name!r}; known: {', '.join(GROUPINGS)}")


def group_ids(names: Sequence[str], record: Record, caption: str, source: int) -> list[int]:
    """One signed 32-bit hash for each grouping, the same in every process and run.

    Two of a batch of 65,536 that differ get one hash in every second batch (65,536^2 / 2 / 2^32): a negative less.

    Args:
        names: Keys of `GROUPINGS`.
        record: The example's record.
        caption: The one of its captions that was drawn.
        source: Number of the records folder.
    """
    texts = (GROUPINGS[name](record, caption, source) for name in names)
    hashes = (hashlib.blake2b(text.encode(), digest_size=4).digest() for text in texts)
    return [int.from_bytes(digest, "big", signed=True) for digest in hashes]
