"""What a takedown leaves behind: salted hashes of what was removed, and whether something is covered by one.

`WORK/takedowns.jsonl` holds a line for each removed post, author, address, image and pair: its kind and the HMAC-SHA256
of its value under `WORK/takedown_salt`; never the value. Whoever has the work folder can test a value they know against
the hashes; the released folder holds neither. `has` is all that matching needs, so the same rules (`removal`)
serve the search, the purge and every later run.

A perceptual hash is matched within `NEAR_BITS`, which salted hashes alone cannot tell: of a removed one the hashes of
its 64 neighbours (1 bit away) are kept too, and of an image in question all within 2 bits are tried. Together that is
every hash within 3 bits and no other: at a distance of 3 or less, 2 of the bits are turned on one side and 1 on the
other, and what meets so is no further apart.
"""

import collections
import contextlib
import dataclasses
import hmac
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from data_prep.curation.rows import write_atomically
from data_prep.removing.removal import post_goes, redact_post
from data_prep.removing.run_facts import platform_post, read_platforms
from data_prep.sources.post import Post

SALT_NAME = "takedown_salt"
TOMBSTONES_NAME = "takedowns.jsonl"
KINDS = ("post", "author", "url", "image", "phash", "pair")
"""What is hashed: "SOURCE:POST_ID" (":POST_ID" for any source, "platform PLATFORM:POST_ID" for those of a platform),
the keyed hash of an author, the address of an image or a page, the sha256 of an image, its perceptual hash, a pair's
id."""
NEAR_BITS = 3
"""Perceptual hashes match within so many bits: the radius at which `data_prep.grouping.duplicates` finds copies, unless
it is configured otherwise."""

_SALT_BYTES = 32  # of the HMAC's key: the length of its hash (RFC 2104, section 3)
_HASH_BYTES = 16  # kept of each hash: among 10^9 of them, two values collide with probability 1e-21
_NEAR_BYTES = 8  # kept of a neighbour's: 10^5 images tried against 10^4 removed ones collide with probability 1e-5
_BITS = 64


class TombstoneError(ValueError):
    """The salt or the tombstones of a work folder cannot be used; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class Tombstone:
    """One removed thing.

    Attributes:
        kind: One of `KINDS`.
        hash: Of its value, hexadecimal.
        why: "requested", or "derived" for what a request took along (copies, replies to a removed image).
        time: Of the request, as given; empty where it gave none, and for what is derived.
        request: Name of the request, as given; likewise.
        near: Of a perceptual hash: the salted hashes of its 64 neighbours, 16 digits each, sorted.
    """

    kind: str
    hash: str
    why: str = "requested"
    time: str = ""
    request: str = ""
    near: str = ""


def make_tombstone(salt: bytes, kind: str, value: str, why: str = "requested", *about: str) -> Tombstone:
    """Return the tombstone of a value; `about` is its time and its request."""
    near = ""
    if kind == "phash":
        bits = int(value, 16)
        near = b"".join(sorted(_seal_near(salt, bits ^ 1 << place) for place in range(_BITS))).hex()
    return Tombstone(kind, seal(salt, kind, value), why, *about, near=near)


def seal(salt: bytes, kind: str, value: str) -> str:
    """Return the salted hash of a value of a kind, 32 hexadecimal digits."""
    message = f"{kind}\0{value}".encode(errors="surrogatepass")
    return hmac.digest(salt, message, "sha256")[:_HASH_BYTES].hex()


def load_salt(work: Path) -> bytes:
    """Return the salt of a work folder; made where there is none.

    Raises:
        TombstoneError: It is damaged, or missing where there are tombstones, which mean nothing without it.
    """
    path = work / SALT_NAME
    if not path.exists():
        if (work / TOMBSTONES_NAME).exists():
            raise TombstoneError(f"{path} is missing, and {TOMBSTONES_NAME} means nothing without it: restore it")
        write_atomically(path, os.urandom(_SALT_BYTES).hex().encode() + b"\n")
        path.chmod(0o600)
    with contextlib.suppress(ValueError):
        if len(salt := bytes.fromhex(path.read_text(encoding="ascii"))) == _SALT_BYTES:
            return salt
    raise TombstoneError(f"{path}: expected {2 * _SALT_BYTES} hexadecimal digits: restore it")


class Tombstones:
    """The tombstones of a work folder, in memory: some 100 bytes for each removed thing.

    Attributes:
        salt: Of the hashes; empty where nothing was ever removed.
        stones: In the order of the file.
    """

    def __init__(self, salt: bytes, stones: Iterable[Tombstone], platforms: Mapping[str, str] | None = None) -> None:
        self.salt = salt
        self.stones = tuple(stones)
        self._platforms = dict(platforms or {})
        self._hashes: dict[str, set[str]] = collections.defaultdict(set)
        self._near: set[bytes] = set()
        for stone in self.stones:
            self._hashes[stone.kind].add(stone.hash)
            if stone.kind == "phash":
                # What has no neighbours, of an older takedown, is found within 2 bits by its own hash.
                hashes = bytes.fromhex(stone.hash)[:_NEAR_BYTES] + bytes.fromhex(stone.near)
                self._near.update(hashes[n : n + _NEAR_BYTES] for n in range(0, len(hashes), _NEAR_BYTES))

    @classmethod
    def load(cls, work: Path) -> "Tombstones":
        """Read the tombstones of a work folder; none where nothing was removed, and then nothing is made.

        Raises:
            TombstoneError: They or their salt are damaged.
        """
        if not (work / TOMBSTONES_NAME).exists():
            return cls(b"", ())
        return cls(load_salt(work), _read(work / TOMBSTONES_NAME), read_platforms(work))

    def __len__(self) -> int:
        return len(self.stones)

    def has(self, kind: str, value: str) -> bool:
        """Say whether a value was removed; the empty value never was."""
        if not value or kind not in self._hashes:
            return False
        names = (value, platform_post(value, self._platforms)) if kind == "post" else (value,)
        return any(seal(self.salt, kind, name) in self._hashes[kind] for name in names if name)

    def covers(self, post: Post) -> bool:
        """Say whether a post (its author hashed) was removed: by id, author, page, or the address of all its images."""
        return bool(self.stones) and post_goes(post, self.has)

    def redact(self, post: Post) -> Post:
        """Return a post that is not covered without what it says of removed ones: images, thread, addresses."""
        return redact_post(post, self.has, self.pseudonym) if self.stones else post

    def covers_image(self, digest: str, phash: str = "") -> bool:
        """Say whether an image or a copy of it was removed; with a hash that is none, in some milliseconds.

        Args:
            digest: sha256 of its bytes as fetched, or as stripped.
            phash: Its perceptual hash, matched within `NEAR_BITS`; empty where it is not known.
        """
        if self.has("image", digest):
            return True
        return bool(phash and self._near) and any(
            _seal_near(self.salt, bits) in self._near for bits in _within_two(int(phash, 16))
        )

    def pseudonym(self, kind: str, value: str) -> str:
        """Return what stands for a removed id where others must still agree on it (a thread, a group of copies)."""
        return f"takedown-{seal(self.salt, kind, value)}"


def add_tombstones(work: Path, stones: Iterable[Tombstone]) -> Tombstones:
    """Add to the file what it does not hold yet, and return all; a file that holds all is left as it is."""
    old = Tombstones.load(work)
    known = {(stone.kind, stone.hash) for stone in old.stones}
    new = [stone for stone in stones if (stone.kind, stone.hash) not in known]
    if not new:
        return old
    everything = Tombstones(load_salt(work), [*old.stones, *new], read_platforms(work))
    lines = (json.dumps(dataclasses.asdict(stone), sort_keys=True) + "\n" for stone in everything.stones)
    write_atomically(work / TOMBSTONES_NAME, "".join(lines).encode())
    return everything


def _read(path: Path) -> Iterator[Tombstone]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            stone = Tombstone(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise TombstoneError(f"{path} line {number} is not a tombstone: {error}; restore the file") from error
        if stone.kind not in KINDS:
            raise TombstoneError(f"{path} line {number}: kind {stone.kind!r}, expected one of {', '.join(KINDS)}")
        yield stone


def _seal_near(salt: bytes, bits: int) -> bytes:
    return hmac.digest(salt, b"phash\0%016x" % bits, "sha256")[:_NEAR_BYTES]  # the beginning of `seal`


def _within_two(bits: int) -> Iterator[int]:
    """Yield a hash and all that differ from it in 1 or 2 bits: 2,081."""
    yield bits
    for first in range(_BITS):
        yield bits ^ 1 << first
        for second in range(first):
            yield bits ^ 1 << first ^ 1 << second
