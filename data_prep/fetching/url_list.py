"""Lists of URLs of any length, read from a file and freed of repetitions, in memory that does not grow with them."""

import contextlib
import csv
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

_MAX_FIELD_CHARACTERS = 2**24  # a field of 16 million characters is an unclosed quote
_TAB_SUFFIXES = (".tsv", ".tab")


class UrlListError(ValueError):
    """The file as a whole cannot be used; the message says what was found."""


def read_urls(path: Path) -> Iterator[str]:
    """Read URLs from a file with one a line, or from the column `url` of a `.csv`, `.tsv` or `.tab` table.

    Raises:
        UrlListError: It is a table without that column, or with a field that never ends.
        OSError: It cannot be read.
    """
    table = path.suffix.lower() in (".csv", *_TAB_SUFFIXES)
    # a line that is no UTF-8 is one bad URL and not the end of the run
    with path.open(encoding="utf-8-sig", errors="backslashreplace", newline="" if table else None) as file:
        if not table:
            yield from (url for line in file if (url := line.strip()))
            return
        csv.field_size_limit(_MAX_FIELD_CHARACTERS)
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() in _TAB_SUFFIXES else ",")
        try:
            if "url" not in (rows.fieldnames or ()):
                raise UrlListError(f"{path}: no column 'url'; found {', '.join(map(repr, rows.fieldnames or ()))}")
            yield from (url for row in rows if (url := (row["url"] or "").strip()))
        except csv.Error as error:
            raise UrlListError(f"{path}, line {rows.line_num}: {error}; is a quote not closed?") from error


def distinct(urls: Iterable[str]) -> Iterator[str]:
    """Leave out what came before; the memory of it is a temporary file when it grows."""
    with contextlib.closing(sqlite3.connect("", isolation_level=None)) as seen:
        seen.execute("PRAGMA journal_mode = OFF")
        seen.execute("CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")
        for url in urls:
            key = hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount:
                yield url
