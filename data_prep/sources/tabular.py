"""Rows of a table of any format as dicts, and the column that goes by one of several names.

Owns the formats (`.csv`, `.tsv`, `.xlsx`, `.parquet`, and JSON, which `json_lines` reads) and the naming of columns;
knows nothing of what is in them. `csv_table` reads the tables of `build`, which name their columns exactly.
"""

import contextlib
import functools
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.sources.delimited import DELIMITERS, TableError, read_header, read_lines
from data_prep.sources.json_lines import read_documents
from data_prep.sources.post import Drop

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")

_BATCH_ROWS = 4096

Row = dict[str, Any]
Needs = Mapping[str, tuple[str, ...]]


def read_rows(path: Path, needs: Needs, *, strict: bool = False) -> Iterator[tuple[str, Row] | Drop]:
    """Read a table row by row, in memory that does not grow with it.

    A JSON document is one row an object, in a list, a line each, or as the values of one object that has only objects
    (ARCH's `captions.json`).

    Args:
        path: The table; its suffix tells the format, `.gz` and the like behind it are skipped for JSON.
        needs: What is needed, and the names that a column with it may have. Checked where there is a header; in JSON
            each row has its own names.
        strict: Damage of a comma- or tab-separated table is an error, see `delimited.read_lines`.

    Yields:
        The place ("figures.csv line 17") and the row under the names of the table's own; or a `Drop`.

    Raises:
        TableError: No such table, an unknown format, no column of some need, or damage behind which no row is sure.
    """
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        header = read_header(path)
        check_columns(path, header, needs)
        for found in read_lines(path, strict=strict):
            yield found if isinstance(found, Drop) else (found[0], dict(zip(header, found[1], strict=True)))
    elif suffix == ".xlsx":
        yield from _read_spreadsheet(path, needs)
    elif suffix == ".parquet":
        yield from _read_parquet(path, needs)
    elif any(one.lower() in JSON_SUFFIXES for one in path.suffixes):
        yield from _read_json(path)
    else:
        known = ", ".join((*DELIMITERS, ".xlsx", ".parquet", *JSON_SUFFIXES))
        raise TableError(f"{path}: expected a table ({known}), got {suffix or 'no suffix'}")


def find_column(header: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the first column that has one of the names, as the table spells it.

    The order of the names decides; a spelling that is the same goes before one that differs in case, blanks, `_`, `-`.
    """
    for name in names:
        if name in header:
            return name
        for column in header:
            if _plain(column) == _plain(name):
                return column
    return None


def cell(row: Row, names: tuple[str, ...]) -> Any:
    """Return what a row has in the column of one of these names; None where there is no such column."""
    column = _find_column(tuple(row), names)
    return None if column is None else row[column]


def check_columns(path: Path, header: Sequence[str], needs: Needs) -> None:
    """Check that a header has what is needed.

    Raises:
        TableError: It has not, or a column that is needed is there twice.
    """
    problems = []
    for need, names in needs.items():
        column = find_column(header, names)
        if column is None:
            problems.append(f"no column for the {need} (looked for {', '.join(names) or 'none'})")
        elif list(header).count(column) > 1:
            problems.append(f"{list(header).count(column)} columns named {column!r}")
    if problems:
        found = ", ".join(map(repr, header)) or "none"
        raise TableError(f"{path}: {'; '.join(problems)}. Columns found: {found}. Name the right ones in the settings.")


@functools.cache
def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


@functools.lru_cache(maxsize=1024)
def _find_column(header: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    return find_column(header, names)


def _read_spreadsheet(path: Path, needs: Needs) -> Iterator[tuple[str, Row] | Drop]:
    """Read the first sheet; empty rows are no rows."""
    try:
        import openpyxl  # few tables are spreadsheets
    except ImportError as error:
        raise TableError(f"{path}: reading .xlsx needs openpyxl: pip install openpyxl") from error
    try:
        workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
        with contextlib.closing(workbook):
            rows = workbook.worksheets[0].iter_rows(values_only=True)
            header = ["" if name is None else str(name).strip() for name in next(rows, ())]
            check_columns(path, header, needs)
            for line, row in enumerate(rows, start=2):
                if any(value is not None for value in row):
                    # a sheet's rows may end before its header does
                    yield f"{path.name} row {line}", dict.fromkeys(header) | dict(zip(header, row, strict=False))
    except TableError:
        raise
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    except (zipfile.BadZipFile, KeyError, ValueError, IndexError, SyntaxError) as error:
        # SyntaxError: the XML parser's own
        raise TableError(f"{path} is not a whole .xlsx file ({type(error).__name__}): fetch it again") from error


def _read_parquet(path: Path, needs: Needs) -> Iterator[tuple[str, Row] | Drop]:
    import pyarrow  # slow to import, and needed for this format alone
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check_columns(path, file.schema_arrow.names, needs)
            number = 0
            for batch in file.iter_batches(_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name} row {number}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise TableError(f"{path} is not a whole parquet file ({type(error).__name__}): fetch it again") from error


def _read_json(path: Path) -> Iterator[tuple[str, Row] | Drop]:
    for document in read_documents(path):
        if isinstance(document, Drop):
            yield document
            continue
        where, row = document
        if row and all(isinstance(value, dict) for value in row.values()):
            for number, value in enumerate(row.values(), start=1):
                yield f"{where} row {number}", value
        else:
            yield where, row
