"""The content-addressed store: files named by the sha256 of their bytes.

    FOLDER/ab/abcdef…      the file whose sha256 is abcdef…
    FOLDER/.incoming/…     what is being written; left behind only by a process that was killed

Owns how bytes become a file and which name it has. What the bytes are, and who asked for them, is known elsewhere. A
file appears under its name whole or not at all, so any number of processes and threads may write at the same time, and
writing the same bytes again changes nothing. Files are not forced to the disk one by one: after a loss of power
`read(..., verify=True)` finds a damaged file.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

_DIGEST = re.compile(r"[0-9a-f]{64}")
_INCOMING = ".incoming"


class StoreError(ValueError):
    """What is asked for is not in the store, or not what was put there."""


class Store:
    """A folder of content-addressed files; it is made when the first file comes.

    Args:
        folder: Of this store and nothing else.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, digest: str) -> Path:
        """Return where the file of a digest is, or would be.

        Args:
            digest: sha256, 64 hexadecimal digits in lower case.

        Raises:
            StoreError: It is not such a digest.
        """
        if not _DIGEST.fullmatch(digest):
            raise StoreError(f"{digest!r} is no sha256: expected 64 hexadecimal digits in lower case")
        return self.folder / digest[:2] / digest

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def put(self, data: bytes) -> str:
        """Store bytes and return their digest."""
        digest = hashlib.sha256(data).hexdigest()
        if not self._has(digest, len(data)):
            with self._incoming() as temporary:
                temporary.write_bytes(data)
                self._name(temporary, digest)
        return digest

    def put_file(self, path: str | os.PathLike[str]) -> str:
        """Store a file and return its digest.

        A hard link is made where the file system can, so that a folder of images takes no second place on the disk; the
        file must then not be written into afterwards (replacing or deleting it does no harm). Else it is copied.

        Raises:
            OSError: The file cannot be read.
        """
        source = Path(path).resolve(strict=True)  # of a symbolic link the file it leads to
        with self._incoming() as temporary:
            try:
                os.link(source, temporary)
            except OSError:  # another file system, or one without links
                shutil.copyfile(source, temporary)
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not self._has(digest, temporary.stat().st_size):
                self._name(temporary, digest)
        return digest

    def read(self, digest: str, *, verify: bool = False) -> bytes:
        """Return the bytes of a digest.

        Args:
            digest: As `put` returned it.
            verify: Compute the digest of what is read.

        Raises:
            StoreError: It is not in the store, or (with `verify`) the file was changed or damaged.
        """
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError as error:
            raise StoreError(f"{self.folder} does not hold {digest}: it was deleted, or never put there") from error
        if verify and (found := hashlib.sha256(data).hexdigest()) != digest:
            raise StoreError(f"{self.path(digest)} is damaged: its sha256 is {found}; delete it and fetch it again")
        return data

    def delete(self, digest: str) -> bool:
        """Delete a file; say whether it was there."""
        try:
            self.path(digest).unlink()
        except FileNotFoundError:
            return False
        return True

    def digests(self) -> Iterator[str]:
        """Yield the digests of all files, sorted."""
        for folder in sorted(self.folder.glob("[0-9a-f][0-9a-f]")):
            yield from sorted(name for name in os.listdir(folder) if _DIGEST.fullmatch(name))

    def remove_leftovers(self) -> int:
        """Delete what killed processes left half written, and return how many files that were.

        Only while nobody writes to the store: the files of a living writer would go too (and its write would fail).
        """
        leftovers = list((self.folder / _INCOMING).glob("*"))
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)

    def _has(self, digest: str, size: int) -> bool:
        """Say whether the file is there; one of another size was cut off by a loss of power and is written again."""
        try:
            return self.path(digest).stat().st_size == size
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def _incoming(self) -> Iterator[Path]:
        """Give a name that nobody else has, for a file on the store's own file system."""
        folder = self.folder / _INCOMING
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{os.getpid()}-{os.urandom(8).hex()}"
        try:
            yield temporary
        finally:
            # Also after the renaming: where both names are links to one file, POSIX renames nothing and keeps both.
            temporary.unlink(missing_ok=True)

    def _name(self, temporary: Path, digest: str) -> None:
        target = self.path(digest)
        target.parent.mkdir(exist_ok=True)
        temporary.replace(target)
