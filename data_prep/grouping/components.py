"""Connected components of rows: what belongs together because of shared values or close pairs.

Texts enter as 64-bit hashes, so that a column of ten million fits in 80 MB; two different texts among ten million
collide with probability 3e-6, and then two groups become one, never the reverse.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

UNKNOWN = 0
"""The hash of an empty text: a value that is not known and links nothing."""


def hash_text(text: str) -> int:
    """Return the 64-bit hash of a text, `UNKNOWN` for the empty one."""
    if not text:
        return UNKNOWN
    # surrogatepass: broken input holds lone surrogates, which have no UTF-8
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """Return the hashes of texts, uint64 [N]."""
    return np.fromiter(map(hash_text, texts), np.uint64)


def link_equal(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Link each row to the first one that has its value; rows of `UNKNOWN` stay alone.

    Args:
        values: uint64 [N].

    Returns:
        The ends of the links, int64 each; a value of m rows gives m - 1.
    """
    rows = np.flatnonzero(values != UNKNOWN)
    order = rows[np.argsort(values[rows], kind="stable")]  # stable: the first of equals has the least row
    begins = np.ones(len(order), bool)
    begins[1:] = values[order[1:]] != values[order[:-1]]
    leaders = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    linked = leaders != order
    return leaders[linked], order[linked]


def components(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Label each row with the least row of its component, int64 [count].

    Args:
        count: Rows.
        left: One end of each link, int64 [L].
        right: The other.
    """
    if not count:
        return np.empty(0, np.int64)
    links = coo_array((np.ones(len(left), np.bool_), (left, right)), shape=(count, count))
    _, labels = connected_components(links, directed=False)
    _, least = np.unique(labels, return_index=True)
    return least[labels].astype(np.int64)


def members_of_groups(labels: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each group of two or more, rising, in the order of their least rows."""
    order = np.argsort(labels, kind="stable")
    sorted_labels = labels[order]
    # Rows alone are left out before the split: there may be a million.
    alone = np.ones(len(order), bool)
    alone[1:] &= sorted_labels[1:] != sorted_labels[:-1]
    alone[:-1] &= sorted_labels[:-1] != sorted_labels[1:]
    order, sorted_labels = order[~alone], sorted_labels[~alone]
    if not len(order):
        return []
    return np.split(order, np.flatnonzero(sorted_labels[1:] != sorted_labels[:-1]) + 1)
