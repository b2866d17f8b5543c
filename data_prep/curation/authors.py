"""Authors as keyed hashes: the same person gets the same hash, and nobody without the key can tell who it is.

Without a key, a hash of an account's number is found by trying all numbers; so the key is secret, and it must not lie
where the dataset or its work folder could be copied with it. Deleting the key makes the hashes anonymous.
"""

import dataclasses
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from data_prep.curation.rows import write_atomically

KEY_BYTES = 32
"""The least for HMAC-SHA256: the length of its output (RFC 2104, section 3)."""
KEY_CHECK_NAME = "author_key_check"
_HASH_HEX_DIGITS = 32  # 128 bits: among a billion authors, two share a hash with probability 1.5e-21
_PLACE_HEX_DIGITS = 16  # 64 bits: among a million places, two share a hash with probability 3e-8


class AuthorKeyError(ValueError):
    """The key cannot be used; the message says what was found and what to do."""


@dataclasses.dataclass(frozen=True)
class AuthorKey:
    """The secret of the hashes; its text form does not show it."""

    secret: bytes = dataclasses.field(repr=False)


def make_author_key(path: Path) -> None:
    """Write a new random key, readable by its owner alone.

    Raises:
        AuthorKeyError: There is a file already: a new key would give every author another hash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise AuthorKeyError(f"{path} is there already: use it, or delete it to give all authors new hashes") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))


def check_key_place(path: Path, *, work: Path, out: Path) -> None:
    """Refuse a place for the key that could be copied with the dataset or its work folder.

    Raises:
        AuthorKeyError: It is within one of the folders (also by way of a link).
    """
    for name, folder in (("the work folder", work), ("the dataset", out)):
        for place in (path.absolute(), path.resolve()):
            if place.is_relative_to(folder.absolute()) or place.is_relative_to(folder.resolve()):
                raise AuthorKeyError(f"{path} lies in {name} {folder}: keep the key of the authors elsewhere")


def load_author_key(path: Path, *, work: Path, out: Path) -> AuthorKey:
    """Read the key of a dataset.

    Args:
        path: A file of at least `KEY_BYTES` bytes, all of which are the key.
        work: Folder of the work, which must not hold the key.
        out: Folder of the dataset, which must not either.

    Raises:
        AuthorKeyError: No such file, too short, or within one of the folders (also by way of a link).
    """
    check_key_place(path, work=work, out=out)
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise AuthorKeyError(
            f"{path} cannot be read ({error.strerror}): give the key that the work folder was made with, or pass "
            "--make-author-key for a new one"
        ) from error
    if len(secret) < KEY_BYTES:
        raise AuthorKeyError(f"{path} holds {len(secret)} bytes, expected at least {KEY_BYTES} random ones")
    return AuthorKey(secret)


def hash_author(key: AuthorKey, platform: str, author: str) -> str:
    """Return an author as 32 hexadecimal digits; nobody ("") stays nobody.

    Args:
        key: Of the dataset.
        platform: Where the account is: "x", "instagram" ... One person in two sources of a platform gets one hash.
        author: Id of the account.
    """
    if not author:
        return ""
    # the length in front keeps ("x", "ab") and ("xa", "b") apart
    return _keyed(key, f"{len(platform)}:{platform}{author}")[:_HASH_HEX_DIGITS]


def hash_place(key: AuthorKey, where: str) -> str:
    """Return the place of something in its source as 16 hexadecimal digits.

    Without the key, the places of a public table or an archive of accounts would be found by trying them all.
    """
    return _keyed(key, f"place\n{where}")[:_PLACE_HEX_DIGITS]


def key_check(key: AuthorKey) -> str:
    """Return what tells a key from another without telling the key, hexadecimal."""
    return _keyed(key, "which key")


def check_same_key(key: AuthorKey, work: Path) -> None:
    """Note at the first run of a work folder which key it is made with, and refuse another one later.

    Raises:
        AuthorKeyError: Another key was used: all hashes would change, and removed authors would come back.
    """
    path = work / KEY_CHECK_NAME
    if not path.exists():
        write_atomically(path, f"{key_check(key)}\n".encode())
    elif path.read_text(encoding="utf-8").strip() != key_check(key):
        raise AuthorKeyError(
            f"{work} was made with another key: every author would get another hash, and those that were taken down "
            "would come back. Give the key it was made with, or begin in a new work folder"
        )


def _keyed(key: AuthorKey, message: str) -> str:
    # broken input holds lone surrogates
    return hmac.new(key.secret, message.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
