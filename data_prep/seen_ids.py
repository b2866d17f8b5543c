"""Remembers which ids have come by, in memory that stays small for tens of millions."""

import hashlib

import numpy as np


class SeenIds:
    """A set of text ids at 8 bytes each, so that ten million of them fit in 80 MB.

    Ids are compared by a 64-bit hash: among ten million, two different ids collide with probability 3e-6.
    """

    _PENDING = 65_536

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._pending: set[int] = set()

    def add(self, text: str) -> bool:
        """Add an id; say whether it was new."""
        data = text.encode("utf-8", "surrogatepass")  # broken input holds lone surrogates
        key = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        place = int(np.searchsorted(self._sorted, np.uint64(key)))
        known = place < len(self._sorted) and int(self._sorted[place]) == key
        if known or key in self._pending:
            return False
        self._pending.add(key)
        if len(self._pending) >= self._PENDING:
            self._sorted = np.union1d(self._sorted, np.fromiter(self._pending, np.uint64, len(self._pending)))
            self._pending.clear()
        return True
