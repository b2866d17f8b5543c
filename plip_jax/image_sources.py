"""Where images to embed come from: a folder, a records folder or built set, a list of paths, a tar. One `ImageSource`.

Owns which images there are, in a fixed order, reading any of them by its place, and telling an image that is damaged
from a disk that is not there. Listing decodes nothing, and asks a file system for the names only. What an image becomes
is the caller's.
"""

import bisect
import collections
import concurrent.futures
import csv
import dataclasses
import errno
import itertools
import os
import re
import tarfile
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from plip_jax.data.example import Example
from plip_jax.data.examples import IMAGE_SUFFIXES, open_examples
from plip_jax.data.image import ImageError
from plip_jax.data.records import RecordError, is_records_folder, read_manifest, records_root
from plip_jax.data.tfds_folder import is_tfds_folder
from plip_jax.embedding_store import hash_names

# First bytes of a compressed tar -> what makes a plain one of it. (gzip RFC 1952; bzip2, xz, zstd file formats.)
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\x00": "unxz", b"\x28\xb5\x2f\xfd": "zstd -d"}
_LINKS = "links to folders (not followed; a text file with a path a line takes the images behind them)"
_EXPECTED = (
    f"expected a folder with images ({' '.join(IMAGE_SUFFIXES)}), a records folder or a built set, a text file with a "
    "path a line, a .csv with a column path (and x, y), or an uncompressed tar"
)
# Opening a path fails so where it names no file; anything else (EIO, ESTALE, EMFILE, EACCES) says nothing of the image.
_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
# On a network an opening is a round trip. Files read ahead are held in memory.
_THREADS = 16
_SIZES_AT_ONCE = 1024


class ImageSourceError(ValueError):
    """A path is no source of images, or is one no more; the message says what was found and what is expected."""


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image.

    Attributes:
        id: of the image, unique in its source.
        image: the file, or its bytes.
    """

    id: str
    image: Path | bytes


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Images in a fixed order.

    Attributes:
        kind: ``folder``, ``list``, ``tar`` or ``records``.
        path: where they are.
        fingerprint: SHA-256 (hex) of the ids in order, of a tar also of the places of its files, of records of their
            shards. What stands in the files of a folder or a list does not enter: see `sizes`.
        read: the image at a place. A file that cannot be read is found by `read_images`.
        sizes: the bytes of the images at these places, int64, -1 for none; asks the file system for each. None where
            the fingerprint has them.
        left_out: what was found beside images -> how often.
        coords: int64 [N, 2], x and y of each image, where a ``.csv`` gave them.
    """

    kind: str
    path: Path
    fingerprint: str
    count: int
    read: Callable[[int], SourceImage]
    sizes: Callable[[range], np.ndarray] | None = None
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    coords: np.ndarray | None = None

    def __len__(self) -> int:
        return self.count


def open_images(path: str | Path, split: str | None = None) -> ImageSource:
    """Open a source of images; what it is is told by its content.

    Args:
        path: a folder (searched through; ids are the paths below it, sorted), a records folder or built set (ids are
            those of the records), a text file with a path a line or a ``.csv`` with a column ``path`` (relative to the
            file's folder; ids are the paths as written), or an uncompressed tar (ids are the members' names).
        split: of a records folder or a built set; by default all splits of the one, the only split of the other.

    Raises:
        ImageSourceError: nothing of the kind, no image in it, an id that is there twice.
        ValueError: records that are damaged, or have no such split.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        if is_records_folder(path) or is_tfds_folder(path):
            return _open_records(path, split)
        source = _open_folder
    elif path.is_file():
        source = _file_opener(path)
    else:
        raise ImageSourceError(f"{path}: {_EXPECTED}; nothing is there")
    if split is not None:
        raise ImageSourceError(f"{path}: split {split!r} is of a records folder or a built set, and this is neither")
    found = source(path)
    if not len(found):
        others = ", ".join(f"{count} {what}" for what, count in found.left_out.items())
        raise ImageSourceError(f"{path}: {_EXPECTED}; no image is in it" + (f" (left out: {others})" if others else ""))
    return found


def _open_folder(root: Path) -> ImageSource:
    ids: list[str] = []
    left_out: collections.Counter[str] = collections.Counter()
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                # The kind of an entry comes with its name; only a link is asked for where it leads.
                if _is_hidden(entry.name):
                    left_out["hidden"] += 1
                elif entry.is_dir(follow_symlinks=False):
                    pending.append(f"{prefix}{entry.name}/")
                elif entry.is_symlink() and _leads_to_folder(entry):  # could lead round in a circle
                    left_out[_LINKS] += 1
                elif not _is_image_name(entry.name):
                    left_out["not named as images"] += 1
                elif not _is_file(entry):  # a pipe would be waited for
                    left_out["not files"] += 1
                else:
                    ids.append(prefix + entry.name)
    ids.sort()

    def read(index: int) -> SourceImage:
        return SourceImage(ids[index], root / ids[index])

    return ImageSource("folder", root, hash_names(ids), len(ids), read, _sizes_below(root, ids), dict(left_out))


def _open_list(file: Path) -> ImageSource:
    # surrogateescape: names of files are bytes, and need not be UTF-8.
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    ids = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    return _listed(file, ids, None)


def _open_csv(file: Path) -> ImageSource:
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.DictReader(lines)
        try:
            ids, coords = _read_rows(file, rows)
        except csv.Error as error:
            raise ImageSourceError(f"{file} line {rows.line_num}: expected a table of paths, {error}") from error
    if "" in ids:
        raise ImageSourceError(f"{file}: expected a path in every row, got none in row {ids.index('') + 1}")
    return _listed(file, ids, coords)


def _read_rows(file: Path, rows: csv.DictReader) -> tuple[list[str], np.ndarray | None]:
    columns = set(rows.fieldnames or ())
    if "path" not in columns or ("x" in columns) != ("y" in columns):
        raise ImageSourceError(f"{file}: expected the columns path or path, x, y, got {', '.join(sorted(columns))}")
    ids, coords = [], array("q")
    for row in rows:
        ids.append(row["path"] or "")
        if "x" in columns:
            coords.extend(_coordinate(file, rows.line_num, name, row[name]) for name in ("x", "y"))
    return ids, np.array(coords, np.int64).reshape(-1, 2) if "x" in columns else None


def _coordinate(file: Path, line: int, name: str, text: str | None) -> int:
    if text is None or not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text):
        raise ImageSourceError(f"{file} line {line}: {name}: expected a whole number of pixels, got {text!r}")
    return int(text)


def _listed(file: Path, ids: list[str], coords: np.ndarray | None) -> ImageSource:
    _check_unique(file, ids)

    def read(index: int) -> SourceImage:
        return SourceImage(ids[index], file.parent / ids[index])

    digest = hash_names(ids) if coords is None else hash_names([*ids, coords.tobytes().hex()])
    return ImageSource("list", file, digest, len(ids), read, _sizes_below(file.parent, ids), coords=coords)


def _open_tar(file: Path) -> ImageSource:
    ids: list[str] = []
    offsets, sizes = array("Q"), array("Q")
    left_out: collections.Counter[str] = collections.Counter()
    try:
        with tarfile.open(file, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] # not in the stubs; keeps 1 kB a file
                name = PurePosixPath(member.name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    left_out["links and devices"] += 1
                elif name.is_absolute() or ".." in name.parts:
                    left_out["names that lead outside"] += 1
                elif any(_is_hidden(part) for part in name.parts):
                    left_out["hidden"] += 1
                elif not _is_image_name(name.name):
                    left_out["not named as images"] += 1
                else:
                    ids.append(name.as_posix())  # without the ./ of `tar c .`, as the folder would name it
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ImageSourceError(f"{file}: expected a whole tar, {error}; copy it again") from error
    _check_unique(file, ids)
    content = os.open(file, os.O_RDONLY)  # once: on a network an opening is a round trip

    def read(index: int) -> SourceImage:
        data = os.pread(content, sizes[index], offsets[index])
        if len(data) != sizes[index]:
            raise ImageSourceError(f"image {ids[index]!r} of {file}: expected {sizes[index]} bytes, got {len(data)}")
        return SourceImage(ids[index], data)

    weakref.finalize(read, os.close, content)
    digest = hash_names([*ids, offsets.tobytes().hex(), sizes.tobytes().hex()])
    return ImageSource("tar", file, digest, len(ids), read, None, dict(left_out))


def _open_records(path: Path, split: str | None) -> ImageSource:
    splits = [split]
    if split is None and is_records_folder(path):
        splits = sorted(read_manifest(records_root(path)).splits)
    parts: list[Sequence[Example]] = []
    fingerprints: list[str] = []
    for name in splits:
        part = open_examples(path, name)
        parts.append(part)
        fingerprints.append(part.fingerprint)
    starts = list(itertools.accumulate((len(part) for part in parts), initial=0))

    def read(index: int) -> SourceImage:
        part = bisect.bisect_right(starts, index) - 1
        try:
            example = parts[part][index - starts[part]]
        except RecordError as error:
            # Not damage of the image: a disk that is not there reads so, too.
            raise ImageSourceError(f"{error}; is the disk there? If so, copy the shard again") from error
        return SourceImage(example.id, example.image)

    return ImageSource("records", path, hash_names(fingerprints), starts[-1], read)


def read_images(source: ImageSource, places: range) -> Iterator[tuple[str, bytes | ImageError]]:
    """The id of every image at these places, in order, and its bytes; files are read ahead by threads.

    Yields:
        Instead of the bytes an ImageError, where a listed path names no file.

    Raises:
        ImageSourceError: a file cannot be read, which says nothing of the image, or it went since it was listed.
        OSError: likewise, of a tar.
    """
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="plip-read")
    pending: collections.deque[tuple[str, Any]] = collections.deque()
    try:
        for place in places:
            found = source.read(place)
            image = found.image
            pending.append((found.id, image if isinstance(image, bytes) else pool.submit(_read_file, source, image)))
            while pending and (len(pending) > _THREADS or isinstance(pending[0][1], bytes)):
                yield _waited_for(*pending.popleft())
        while pending:
            yield _waited_for(*pending.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _waited_for(name: str, read: Any) -> tuple[str, bytes | ImageError]:
    return name, read if isinstance(read, bytes) else read.result()


def _read_file(source: ImageSource, file: Path) -> bytes | ImageError:
    try:
        return file.read_bytes()
    except ValueError as error:  # a NUL in the path
        return ImageError(f"{file}: expected a readable file, {error}")
    except OSError as error:
        if source.kind != "list" or error.errno not in _NO_FILE:  # what a folder holds was there when it was listed
            raise ImageSourceError(
                f"{file} cannot be read: {error.strerror}; this says nothing of the image: is the disk there? Run the "
                "same again"
            ) from error
        # A disk that is not there leaves the folder that it is mounted on empty, or takes that with it.
        folder = file.parent
        if not folder.is_dir() or next(folder.iterdir(), None) is None:
            raise ImageSourceError(
                f"{file}: {error.strerror}, and its folder is empty or not there: is the disk there? If it is, take "
                f"the paths in {folder} out of {source.path}"
            ) from error
        return ImageError(f"{file}: expected a readable file, got {error.strerror}")


def _sizes_below(root: Path, ids: Sequence[str]) -> Callable[[range], np.ndarray]:
    def ask(places: range) -> list[int]:
        return [_size(os.path.join(root, ids[place])) for place in places]

    def sizes(places: range) -> np.ndarray:
        parts = [places[start : start + _SIZES_AT_ONCE] for start in range(0, len(places), _SIZES_AT_ONCE)]
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            return np.fromiter(itertools.chain.from_iterable(pool.map(ask, parts)), np.int64, len(places))

    return sizes


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except ValueError:  # a NUL in the path
        return -1
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        return -1


def _file_opener(file: Path) -> Callable[[Path], ImageSource]:
    with file.open("rb") as content:
        head = content.read(4096)
    for magic, command in _COMPRESSED.items():
        if head.startswith(magic):
            raise ImageSourceError(
                f"{file} is compressed, and nothing in it can be reached without reading all before it: "
                f"unpack it with {command}"
            )
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        pass
    else:
        return _open_tar
    if b"\0" in head:
        raise ImageSourceError(f"{file}: {_EXPECTED}; got a file that begins {head[:8]!r}")
    return _open_csv if file.suffix.lower() == ".csv" else _open_list


def _check_unique(file: Path, ids: list[str]) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    twice = next(name for name in ids if name in seen or seen.add(name))
    raise ImageSourceError(f"{file}: expected each image once, got {twice!r} again; an embedding is found by its id")


def _is_hidden(name: str) -> bool:
    """What file managers and archivers leave behind."""
    return name.startswith(".") or name == "__MACOSX"


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)
