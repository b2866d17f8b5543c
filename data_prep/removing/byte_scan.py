"""Looks for given bytes in every file of some folders: the proof of a takedown.

A file is searched as it lies, by its path, and in every decoded form it has: records of ArrayRecord shards (which are
compressed), columns of parquet, rows of SQLite, members of gzip, xz, bzip2, zstandard and zip, Base64 in pages. A text
is looked for as UTF-8, 16 and 32, and escaped as JSON, HTML and URLs do; a hexadecimal digest also as its bytes.
"""

import base64
import bz2
import contextlib
import dataclasses
import gzip
import html
import io
import json
import lzma
import re
import sqlite3
import tempfile
import urllib.parse
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from plip_jax.data.records import RecordError, open_shard_reader

_MOST_LAYERS = 4  # of one file in another: a page in an archive, an image in the page
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{64,}={0,2}")
_PAYLOAD = 64  # bytes of an image that are looked for


@dataclasses.dataclass(frozen=True, order=True)
class Hit:
    """A needle that was found.

    Attributes:
        path: The file.
        needle: Name of the needle.
        form: How the file was read: "as it lies", "path", "record 3", "gzip" ...
    """

    path: str
    needle: str
    form: str


def text_needles(text: str) -> tuple[bytes, ...]:
    """Return the forms in which a text may lie in a file."""
    plain = text.encode(errors="surrogatepass")
    forms = [
        plain,
        json.dumps(text)[1:-1].encode(),
        json.dumps(text, ensure_ascii=False)[1:-1].encode(errors="surrogatepass"),
        html.escape(text).encode(errors="surrogatepass"),
        html.escape(text, quote=False).encode(errors="surrogatepass"),
        urllib.parse.quote(plain, safe="").encode(),
        text.encode("utf-16-le", errors="surrogatepass"),
        text.encode("utf-32-le", errors="surrogatepass"),  # numpy's arrays of text
    ]
    if re.fullmatch(r"(?:[0-9a-f]{2}){16,}", text):
        forms.append(bytes.fromhex(text))
    return tuple(dict.fromkeys(forms))


def image_needles(data: bytes) -> tuple[bytes, ...]:
    """Return pieces of an image file's payload: behind its headers, which others share, and still there when stripped.

    Two pieces of 64 bytes, from the middle and the last quarter of what follows the last start-of-scan marker of a
    JPEG, the first data chunk of a PNG, or the beginning of any other file.
    """
    marker = data.rfind(b"\xff\xda") if data[:2] == b"\xff\xd8" else data.find(b"IDAT")
    length = len(data) - max(marker, 0)
    starts = (len(data) - length // 2, len(data) - length // 4)
    return tuple(dict.fromkeys(data[start : start + _PAYLOAD] for start in starts if start < len(data)))


def byte_scan(roots: Iterable[Path], needles: Mapping[str, Iterable[bytes]]) -> list[Hit]:
    """Look for needles in every file below some folders (or in some files), hidden ones too.

    Args:
        roots: Folders and files.
        needles: By a name for the report, the forms of each (`text_needles`, `image_needles`).

    Returns:
        One hit for each file, needle and form, sorted.
    """
    forms = [(form, name) for name, several in needles.items() for form in several if form]
    hits: set[Hit] = set()
    for root in roots:
        files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
        for path in [*files, *(p for p in sorted(root.rglob("*")) if p.is_dir())]:
            place = str(path.relative_to(root)) if path != root else path.name
            hits |= {Hit(str(path), name, "path") for form, name in forms if form in place.encode(errors="replace")}
            if path.is_file():
                for form_name, data in _forms(path):
                    hits |= {Hit(str(path), name, form_name) for form, name in forms if form in data}
    return sorted(hits)


def _forms(path: Path) -> Iterator[tuple[str, bytes]]:
    data = path.read_bytes()
    yield "as it lies", data
    with contextlib.suppress(RecordError):
        yield from _records(path)
    if data[:16] == b"SQLite format 3\0":
        # By its path: a write-ahead log beside it belongs to it.
        yield from _sqlite_rows(path)
    elif len(data) > 0:
        yield from _decoded(data, _MOST_LAYERS)


def _records(path: Path) -> Iterator[tuple[str, bytes]]:
    if "array_record" not in path.name:
        return
    reader = open_shard_reader(path)
    try:
        for place in range(reader.num_records()):
            yield f"record {place}", reader.read([place])[0]
    finally:
        reader.close()


def _decoded(data: bytes, layers: int) -> Iterator[tuple[str, bytes]]:
    """Yield what is inside of a file's bytes, layer by layer."""
    if not layers:
        return
    for form, inner in _layer(data):
        yield form, inner
        if form != "parquet":
            yield from ((f"{form}, {deeper}", deepest) for deeper, deepest in _decoded(inner, layers - 1))


def _layer(data: bytes) -> Iterator[tuple[str, bytes]]:
    # A file cut short or of another kind has no inside; it was searched as it lies.
    with contextlib.suppress(OSError, EOFError, ValueError, lzma.LZMAError, zipfile.BadZipFile):
        if data[:2] == b"\x1f\x8b":
            yield "gzip", gzip.decompress(data)
        elif data[:6] == b"\xfd7zXZ\0":
            yield "xz", lzma.decompress(data)
        elif data[:3] == b"BZh":
            yield "bzip2", bz2.decompress(data)
        elif data[:4] == b"\x28\xb5\x2f\xfd":
            import zstandard

            yield "zstandard", zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
        elif data[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for name in archive.namelist():
                    yield f"zip {name}", archive.read(name)
        elif data[:4] == b"PAR1":
            yield "parquet", _parquet_values(data)
        elif data[:16] == b"SQLite format 3\0":
            with tempfile.NamedTemporaryFile(suffix=".sqlite") as file:
                file.write(data)
                file.flush()
                yield from _sqlite_rows(Path(file.name))
        else:
            yield from _base64_runs(data)


def _base64_runs(data: bytes) -> Iterator[tuple[str, bytes]]:
    for run in _BASE64.finditer(data):
        text = run.group().rstrip(b"=")
        yield "Base64", base64.b64decode(text[: len(text) // 4 * 4])


def _parquet_values(data: bytes) -> bytes:
    import pyarrow.parquet as pq

    found: list[bytes] = []
    for batch in pq.ParquetFile(io.BytesIO(data)).iter_batches():
        found.extend(_as_bytes(row) for row in batch.to_pylist())
    return b"\n".join(found)


def _sqlite_rows(path: Path) -> Iterator[tuple[str, bytes]]:
    with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(sqlite3.connect(path)) as database:
        database.text_factory = bytes
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            name = table.decode().replace('"', '""')
            for row in database.execute(f'SELECT * FROM "{name}"'):
                yield f"table {name}", b"\0".join(_as_bytes(value) for value in row)


def _as_bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return b"\0".join(_as_bytes(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return b"\0".join(_as_bytes(inner) for inner in value)
    return str(value).encode(errors="surrogatepass")
