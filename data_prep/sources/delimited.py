"""Lines of comma- or tab-separated tables, and what is done where such a table is damaged.

Quoted fields may hold newlines; a byte-order mark is skipped; the table is never held in memory. What the columns mean
is the readers' business.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.sources.post import Drop

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}

_MAX_FIELD_CHARACTERS = 2**24  # a text of 16 million characters is an unclosed quote
_BYTE_OF_NO_TEXT = re.compile("[\udc80-\udcff]")  # as `surrogateescape` decodes it (PEP 383)


class TableError(ValueError):
    """The table as a whole cannot be used; the message says what was found and what to do."""


def read_header(path: Path) -> list[str]:
    """Return the names of the columns without blanks around them; none where the table is empty.

    Raises:
        TableError: The table cannot be read, or its first line is damaged.
    """
    _, header, _ = next(_lines(path, strict=False), (1, [], ""))
    return [name.strip() for name in header]


def read_lines(path: Path, *, strict: bool = False) -> Iterator[tuple[str, list[str]] | Drop]:
    """Read the rows below the header, blank lines excepted.

    Args:
        path: UTF-8 text; `DELIMITERS` tells by the suffix where it is split, other files are split at commas.
        strict: Damage is an error.

    Yields:
        The place ("figures.csv line 17") and as many fields as the header has. A `Drop` for a row with another number
        ("wrong_number_of_fields") or that is not UTF-8 ("malformed"); and one, "truncated", at a quote that is not
        closed or not doubled: nothing behind it is read, for there no line is sure to be one.

    Raises:
        TableError: The table cannot be read, its header is damaged; where `strict`, any other line is.
    """
    width = 0
    for line, row, problem in _lines(path, strict=strict):
        where = f"{path.name} line {line}"
        if problem:
            yield Drop("truncated", where, detail=problem)
        elif not width:
            width = len(row)
        elif row and any(map(_BYTE_OF_NO_TEXT.search, row)):
            yield Drop("malformed", where, detail="not UTF-8")
        elif row and len(row) != width:
            yield Drop("wrong_number_of_fields", where, detail=f"{len(row)} fields, the header has {width}")
        elif row:
            yield where, row


def _lines(path: Path, *, strict: bool) -> Iterator[tuple[int, list[str], str]]:
    """Yield the first line, the fields of each row, the header among them, and what is wrong behind the last one."""
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    line, errors = 1, "strict" if strict else "surrogateescape"
    try:
        with path.open(encoding="utf-8-sig", errors=errors, newline="") as file:
            # strict: text behind a closing quote, or a quote never closed, is an error and not a guess
            rows = csv.reader(file, delimiter=DELIMITERS.get(path.suffix.lower(), ","), strict=True)
            next_line = 1
            try:
                for row in rows:
                    line, next_line = next_line, rows.line_num + 1
                    if line == 1 and any(map(_BYTE_OF_NO_TEXT.search, row)):
                        raise TableError(f"{path} is not UTF-8 (its header): convert it first")
                    yield line, row, ""
            except csv.Error as error:
                if strict or next_line == 1:
                    raise
                unread = rows.line_num - next_line + sum(1 for _ in file)
                yield (
                    next_line,
                    [],
                    f"{error}: a quote is not closed or not doubled; {unread} lines behind it were not read",
                )
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it first") from error
    except csv.Error as error:
        raise TableError(f"{path}, near line {line}: {error}; is a quote not closed or not doubled?") from error
