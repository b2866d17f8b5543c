"""Reads files of JSON as a stream of objects: one a line, or documents that span lines, compressed or not.

Every source whose dumps are JSON reads through here, so that damage is counted and named in one way. What an object
means is the source's business.
"""

import bz2
import contextlib
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.sources.post import Drop

MAX_BYTES = 2**28
"""Of a line, and of a file whose documents span lines (ours): parsed, this takes some 2 GB of memory."""

_UTF8_MARK = b"\xef\xbb\xbf"
_ZSTD_WINDOW_BYTES = 2**31  # Reddit's dumps are packed with `zstd --long=31`, which the default refuses
_NOT_BLANK = re.compile(r"[^ \t\r\n]")
_CHUNK_BYTES = 2**14
_DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)


class DocumentsError(ValueError):
    """The file as a whole cannot be used; the message says what was found and what to do."""


def read_documents(path: Path, *, max_bytes: int = MAX_BYTES) -> Iterator[tuple[str, Any] | Drop]:
    """Read the JSON objects of a file one by one; a list gives its entries.

    A file of lines is streamed and never held in memory. gzip, bzip2, xz and zstd are told by their first bytes,
    whatever the file is called. Blank lines and a byte-order mark are skipped.

    Args:
        path: Objects or lists one a line, or documents that span lines.
        max_bytes: Largest line; largest file where documents span lines.

    Yields:
        The place ("page3.json line 17", "page3.json line 1 item 4") and the object, always a dict; or a `Drop` with
        the reason "malformed" for what is no JSON, no UTF-8, no object or too long, and "truncated" at the place
        where a compressed file breaks off. Reading goes on behind the first and ends at the second.

    Raises:
        DocumentsError: No such file, a folder, or not allowed to be read.
    """
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise DocumentsError(f"{path} cannot be read: {error.strerror}; expected a file of JSON") from error
    documents = _read_whole(path, max_bytes) if _spans_lines(path, max_bytes) else None
    yield from _read_lines(path, max_bytes) if documents is None else documents


def _read_lines(path: Path, max_bytes: int) -> Iterator[tuple[str, Any] | Drop]:
    for where, line in _lines(path, max_bytes):
        if isinstance(line, Drop):
            yield line
            continue
        try:
            document = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            yield Drop("malformed", where, detail=_position(error))
        else:
            yield from _entries(document, where)


def _lines(path: Path, max_bytes: int) -> Iterator[tuple[str, bytes | Drop]]:
    """Yield the place of each line that is not blank with its bytes, or with why they cannot be had."""
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(max_bytes + 1):
                number += 1
                where = f"{path.name} line {number}"
                if len(line) > max_bytes and not line.endswith(b"\n"):
                    while (rest := file.readline(_CHUNK_BYTES)) and not rest.endswith(b"\n"):
                        pass
                    yield where, Drop("malformed", where, detail=f"more than {max_bytes} bytes in a line")
                    continue
                if number == 1:
                    line = line.removeprefix(_UTF8_MARK)
                if line := line.strip(b" \t\r\n"):
                    yield where, line
    except _damage() as error:
        where = f"{path.name} line {number + 1}"
        yield where, Drop("truncated", where, detail=_damage_detail(error))


def _read_whole(path: Path, max_bytes: int) -> list[tuple[str, Any] | Drop] | None:
    """Return the entries of documents that span lines; None where the file proves to be lines all the same."""
    try:
        with _open(path) as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            detail = f"a document over several lines in more than {max_bytes} bytes; write one object a line"
            return [Drop("malformed", path.name, detail=detail)]
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return [Drop("malformed", path.name, detail=_position(error))]
    except _damage() as error:
        return [Drop("truncated", path.name, detail=_damage_detail(error))]
    found: list[tuple[str, Any] | Drop] = []
    decoder, line, end = json.JSONDecoder(), 1, 0
    while match := _NOT_BLANK.search(text, end):
        line += text.count("\n", end, match.start())
        where = f"{path.name} line {line}" if found else path.name
        try:
            document, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError) as error:
            if not found and _fails_at_an_object(error):
                return None  # the first line was cut off, and whole lines follow
            return [*found, Drop("malformed", where, detail=_position(error))]
        found.extend(_entries(document, where))
        line += text.count("\n", match.start(), end)
    return found


def _entries(document: Any, where: str) -> Iterator[tuple[str, Any] | Drop]:
    places = [(where, document)]
    if isinstance(document, list):
        places = ((f"{where} item {number}", entry) for number, entry in enumerate(document, 1))
    for place, entry in places:
        if isinstance(entry, dict):
            yield place, entry
        else:
            yield Drop("malformed", place, detail=f"expected an object, got {type(entry).__name__}")


def _spans_lines(path: Path, max_bytes: int) -> bool:
    """Say whether the first line begins a document that goes on behind it.

    A line that is broken by itself fails before its end; the beginning of a document fails at its end, and so do its
    first two lines together, while a line that was cut off fails where the next one begins.
    """
    lines = [line for _, line in itertools.islice(_lines(path, max_bytes), 2)]
    if len(lines) < 2 or not isinstance(first := lines[0], bytes):
        return False
    both = first + b"\n" + lines[1] if isinstance(lines[1], bytes) else first
    return _ends_early(first) and (_ends_early(both) or _is_object(both))


def _ends_early(data: bytes) -> bool:
    """Say whether this is the beginning of a JSON document, and no whole one."""
    text = data.decode("utf-8", errors="replace")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except (ValueError, RecursionError):
        pass
    return False


def _fails_at_an_object(error: Exception) -> bool:
    """Say whether parsing failed at the beginning of a line that is an object by itself."""
    if not isinstance(error, json.JSONDecodeError) or error.colno > 1:
        return False
    return _is_object(error.doc[error.pos :].partition("\n")[0])


def _is_object(text: str | bytes) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        return isinstance(json.loads(text), dict | list)
    return False


def _position(error: Exception) -> str:
    """Say where and why parsing failed, in words that hold nothing of the text."""
    match error:
        case json.JSONDecodeError():
            return f"{error.msg} at line {error.lineno} column {error.colno}"
        case UnicodeDecodeError():
            return f"not UTF-8 at byte {error.start}"
        case RecursionError():
            return "nested too deeply"
        case _:
            return "a number of too many digits"


def _damage_detail(error: Exception) -> str:
    return f"{type(error).__name__}: the compressed file breaks off or is damaged here"


def _damage() -> tuple[type[Exception], ...]:
    """Return what reading a damaged file raises; zstandard is an extra and need not be there."""
    try:
        import zstandard
    except ImportError:
        return _DAMAGE
    return (*_DAMAGE, zstandard.ZstdError)


def _open(path: Path) -> io.BufferedIOBase:
    """Open a file for reading, unpacked as its first bytes say."""
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.open(path, "rb")
    if magic.startswith(b"BZh"):
        return bz2.open(path, "rb")
    if magic.startswith(b"\xfd7zXZ\0"):
        return lzma.open(path, "rb")
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return io.BufferedReader(_ZstdStream(path), _CHUNK_BYTES)
    return path.open("rb")


class _ZstdStream(io.RawIOBase):
    """The unpacked bytes of a zstd file; unlike zstandard's own stream it says where a file breaks off."""

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise DocumentsError(f"{path} is packed with zstd: pip install zstandard") from error
        self._file = path.open("rb")
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._frame: Any = None
        self._pending = b""  # packed bytes behind the frame before
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unpacked:
            packed = self._pending or self._file.read(_CHUNK_BYTES)
            self._pending = b""
            if not packed:
                if self._frame and not self._frame.eof:
                    raise EOFError("zstd file ended within a frame")
                return 0
            if not self._frame or self._frame.eof:
                self._frame = self._decompressor.decompressobj()
            self._unpacked = memoryview(self._frame.decompress(packed))
            self._pending = self._frame.unused_data
        count = min(len(buffer), len(self._unpacked))
        buffer[:count], self._unpacked = self._unpacked[:count], self._unpacked[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
