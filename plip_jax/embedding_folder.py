"""A folder that several processes write at once: files that are there whole or not at all, and who waits for whom.

Owns the changes of the disk under `plip_jax.embedding_writer`, which knows what the files are. All that is on its way
to its name, and all that processes tell each other, is in ``parts/``, and goes with it.
"""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from plip_jax.embedding_store import EmbeddingStoreError


@dataclasses.dataclass(frozen=True)
class Stop:
    """When to stop, and what the processes of a run tell each other, by files in ``parts/``, which go with it.

    Attributes:
        interrupted: set by a signal.
        run: a number that all processes of this start of the program share; None where there is only one.
        process: which one this is, from 0.
        processes: how many there are.
    """

    interrupted: threading.Event
    run: int | None = None
    process: int = 0
    processes: int = 1

    def here(self, folder: Path) -> bool:
        """Whether to stop after the chunk: a signal came, here or in another process, or another one cannot go on."""
        return self.interrupted.is_set() or (self.run is not None and self._notice(folder, "stopped").exists())

    def tell(self, folder: Path) -> None:
        """Let the other processes know that this one stops, at whatever point: they would wait for its chunks."""
        if self.run is not None:
            with contextlib.suppress(OSError, EmbeddingStoreError):  # what is in its way is in the way of all
                self._leave(folder, "stopped")

    def arrive(self, folder: Path) -> None:
        """Let the process that joins the chunks know that this one's are written; it waits for all to arrive."""
        if self.run is not None:
            self._leave(folder, f"waiting-{self.process}")

    def all_arrived(self, folder: Path) -> bool:
        """Whether every process has."""
        return self.run is None or all(
            self._notice(folder, f"waiting-{process}").exists() for process in range(self.processes)
        )

    def released(self, folder: Path) -> bool:
        """Whether all is written, `finish` has removed the parts, and this process may leave."""
        return self.run is None or not self._notice(folder, f"waiting-{self.process}").exists()

    def _leave(self, folder: Path, what: str) -> None:
        if not (folder / "manifest.json").exists():
            make_folder(folder)
        (folder / "parts").mkdir(exist_ok=True)
        self._notice(folder, what).touch()

    def _notice(self, folder: Path, what: str) -> Path:
        return folder / "parts" / f"{what}-of-{self.run}"


def make_folder(folder: Path) -> None:
    """Make a folder with a ``parts/``, unless it is there.

    Raises:
        EmbeddingStoreError: a file is in its place, or the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise EmbeddingStoreError(f"{folder}: expected a folder, or a name that is free, got a file")
    found = sorted({path.name for path in folder.iterdir()} - {"manifest.json", "parts"}) if folder.exists() else []
    if found:
        raise EmbeddingStoreError(
            f"{folder}: expected a new or empty folder, or one begun by this program, found {', '.join(found[:8])}"
        )
    (folder / "parts").mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _scratch(folder: Path, content: bytes | memoryview = b"") -> Iterator[Path]:
    """A file on its way to a name in a folder, among the parts: what a killed process leaves goes with them."""
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", dir=parts)
    try:
        os.fchmod(handle, 0o666 & ~_UMASK)  # mkstemp's is for one user only
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a name must not outlive a power cut that its content does not
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def replace(target: Path, content: bytes | memoryview, folder: Path) -> None:
    """Write a file in place of what may be there."""
    with _scratch(folder, content) as scratch:
        scratch.replace(target)


def write_once(target: Path, content: bytes) -> None:
    """Write a file unless another process has; a reader sees the whole of one of them."""
    with _scratch(target.parent, content) as scratch:
        try:
            os.link(scratch, target)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not target.exists():
                scratch.replace(target)


def write_array(folder: Path, name: str, parts: Iterable[np.ndarray], shape: tuple[int, int], dtype: str) -> str:
    """Write arrays below each other as one ``.npy``; the SHA-256 of the file."""
    digest = hashlib.sha256()
    header = io.BytesIO()
    kind = np.dtype(dtype).newbyteorder("<")
    described = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    with _scratch(folder) as scratch:
        with scratch.open("wb") as file:
            rows = (np.ascontiguousarray(part, kind).tobytes() for part in parts)
            for data in itertools.chain([header.getvalue()], rows):
                digest.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(folder / name)
    return digest.hexdigest()


def _read_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_UMASK = _read_umask()  # at import, when there is one thread: it can be read only by setting it
