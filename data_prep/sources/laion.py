"""LAION's tables of image addresses and captions as a stream of `Post`.

Owns what may be taken from such a table before anything is downloaded. A table is read only if its rows have a score of
being unsafe, or if it is said to be a release that was cleaned (Re-LAION-5B research-safe): LAION-5B as first released
held addresses of abuse material (Thiel, Stanford Internet Observatory, 2023). A row above the limit ends here, and
neither its address nor anything made from it is written down.

Nobody knows the licence of these images: it is always "unknown", whatever a column says.

`rows_file` restricts the reading to neighbours found by `data_prep.expand`, whose row numbers run over all files of the
table, in the order of their paths.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from data_prep.sources.delimited import DELIMITERS, TableError, read_header
from data_prep.sources.fields import (
    MalformedError,
    expect_cell,
    expect_text,
    hashed_id,
    identifier,
    web_address,
    whole_number,
)
from data_prep.sources.post import Drop, Media, Post
from data_prep.sources.tabular import Row, cell, find_column, read_rows

SUFFIXES = (".parquet", *DELIMITERS)

_BATCH_ROWS = 8192
_MAX_CACHED_TABLES = 4


class LaionError(ValueError):
    """The table as a whole may not or cannot be used; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class LaionSettings:
    """Which columns hold what, in any case, and which rows are taken.

    Attributes:
        url: Names of the column of addresses, tried in order; LAION-5B's "URL".
        text: Of captions; LAION-5B's "TEXT".
        safety: Of the score of being unsafe, 0-1; LAION-5B's "punsafe".
        language: Of a language code; laion2B-multi's "LANGUAGE".
        id: Of an id of the table's own, such as LAION-5B's "hash"; empty: sha256 of the address, 32 digits of it.
        max_unsafe: Rows whose score is not below it are dropped, and so is a row without a score. 0.5 is ours.
        cleaned_release: The table is of a release that was cleaned as a whole, and may lack a score.
        rows_file: Table of the rows to take (`.csv` or `.parquet` with a column `row`); empty takes all.
        root: Folder whose files the row numbers run over; empty: the folder of the file that is read. A curation puts
            the source's folder here.
    """

    url: tuple[str, ...] = ("URL",)
    text: tuple[str, ...] = ("TEXT", "caption")
    safety: tuple[str, ...] = ("punsafe",)
    language: tuple[str, ...] = ("LANGUAGE", "lang")
    id: tuple[str, ...] = ()
    max_unsafe: float = 0.5
    cleaned_release: bool = False
    rows_file: str = ""
    root: str = ""


def read_posts(path: Path, settings: LaionSettings, *, source: str) -> Iterator[Post | Drop]:
    """Read a file of a table.

    Args:
        path: A `.parquet`, `.csv` or `.tsv` file.
        settings: Of this reader.
        source: Name of the source, for the posts.

    Yields:
        A `Post` for each row that is taken. A `Drop` for one that is malformed, "unsafe_score" (or without a score) or
        "no_web_address"; its place is its number in the file, from 0.

    Raises:
        LaionError: The file cannot be read, lacks a column, or may not be used; `rows_file` is that of another table.
    """
    if settings.rows_file and path.resolve() == Path(settings.rows_file).resolve():
        return  # it may lie beside the table
    names = _columns(path, settings)
    wanted = _wanted_rows(path, settings)
    found = _parquet_rows if path.suffix.lower() == ".parquet" else _delimited_rows
    for number, row in found(path, tuple(name for name in names.values() if name), wanted):
        where = f"{path.name} row {number}"
        if isinstance(row, Drop):
            yield row
            continue
        try:
            yield _post(row, names, settings, source=source, where=where)
        except MalformedError as error:
            yield Drop("malformed", where, detail=str(error))


def table_files(root: Path) -> list[Path]:
    """Return the files of a table, in the order that row numbers run over: that of their paths in the folder."""
    files = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _post(row: Row, names: dict[str, str], settings: LaionSettings, *, source: str, where: str) -> Post | Drop:
    safety = _score(row[names["safety"]]) if names["safety"] else None
    if names["safety"] and (safety is None or safety >= settings.max_unsafe):
        # before anything else of the row is looked at, and without an id, which would be made from the address
        return Drop("unsafe_score", where)
    url = web_address(expect_text(row[names["url"]], "url")) if row[names["url"]] is not None else ""
    if not url:
        return Drop("no_web_address", where)
    text = expect_text(row[names["text"]], "text").strip() if row[names["text"]] is not None else ""
    given = identifier(expect_cell(row[names["id"]], "id")) if names["id"] else ""
    if names["id"] and not given:
        raise MalformedError("id: expected one")
    language = row[names["language"]] if names["language"] else None
    return Post(
        id=given or hashed_id(url),
        media=(Media(url=url),),
        captions=(text,) if text else (),
        source=source,
        where=where,
        language=language.lower() if isinstance(language, str) and re.fullmatch("[A-Za-z]{2,3}", language) else "",
        licence="unknown",
        role="laion",
        safety=safety,
    )


def _score(value: object) -> float | None:
    """Return a score; None for what is no number between 0 and 1."""
    try:
        score = float(value)  # pyright: ignore[reportArgumentType] # whatever the table holds; TypeError is caught
    except (TypeError, ValueError, OverflowError):
        return None
    return score if 0 <= score <= 1 else None


def _columns(path: Path, settings: LaionSettings) -> dict[str, str]:
    """Return the table's own names of the columns that are read, empty for one that it has not."""
    header = _header(path)
    wanted = {name: getattr(settings, name) for name in ("url", "text", "safety", "language", "id")}
    names = {name: find_column(header, spellings) or "" for name, spellings in wanted.items()}
    missing = [name for name in ("url", "text", *(["id"] if settings.id else [])) if not names[name]]
    if missing:
        looked = "; ".join(f"no column for the {name} (looked for {', '.join(wanted[name])})" for name in missing)
        raise LaionError(f"{path}: {looked}. Columns found: {', '.join(map(repr, header)) or 'none'}.")
    if not names["safety"] and not settings.cleaned_release:
        raise LaionError(
            f"{path} has no score of being unsafe (looked for {', '.join(settings.safety) or 'none'}) and may hold "
            "addresses of illegal images: nothing is read from it. Use a table with such a column, or one of a release "
            "that was cleaned (Re-LAION-5B research-safe) and say so with cleaned_release=True."
        )
    return names


def _header(path: Path) -> list[str]:
    if path.suffix.lower() in DELIMITERS:
        try:
            return read_header(path)
        except TableError as error:
            raise LaionError(str(error)) from error
    with _open_parquet(path) as file:
        return list(file.schema_arrow.names)


def _open_parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise LaionError(f"{path} is not a whole parquet file ({type(error).__name__}): fetch it again") from error


def _parquet_rows(path: Path, columns: Sequence[str], wanted: np.ndarray | None) -> Iterator[tuple[int, Row | Drop]]:
    """Yield number and row; groups of rows that hold none of the wanted ones are not read."""
    with _open_parquet(path) as file:
        first = 0
        for group in range(file.metadata.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if wanted is None or _any_within(wanted, first, end):
                yield from _group_rows(path, file, group, first, columns, wanted)
            first = end


def _group_rows(
    path: Path,
    file: pyarrow.parquet.ParquetFile,
    group: int,
    first: int,
    columns: Sequence[str],
    wanted: np.ndarray | None,
) -> Iterator[tuple[int, Row | Drop]]:
    try:
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=list(columns)):
            numbers = np.arange(first, first + batch.num_rows)
            first += batch.num_rows
            if wanted is not None:
                numbers = numbers[np.isin(numbers, wanted)]
                batch = batch.take(pyarrow.array(numbers - (first - batch.num_rows)))
            yield from zip(numbers.tolist(), batch.to_pylist(), strict=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise LaionError(f"{path} is damaged ({type(error).__name__}): fetch it again") from error


def _delimited_rows(path: Path, columns: Sequence[str], wanted: np.ndarray | None) -> Iterator[tuple[int, Row | Drop]]:
    try:
        needs = {name: (name,) for name in columns}
        # behind a damaged line the numbers of rows are not sure
        for number, found in enumerate(read_rows(path, needs, strict=wanted is not None or not columns)):
            if wanted is None or _any_within(wanted, number, number + 1):
                yield number, found if isinstance(found, Drop) else found[1]
    except TableError as error:
        raise LaionError(str(error)) from error


def _any_within(sorted_numbers: np.ndarray, first: int, end: int) -> bool:
    return bool(np.searchsorted(sorted_numbers, first) < np.searchsorted(sorted_numbers, end))


def _wanted_rows(path: Path, settings: LaionSettings) -> np.ndarray | None:
    """Return the wanted rows of a file, sorted and numbered from its first; None for all."""
    if not settings.rows_file:
        return None
    root = Path(settings.root) if settings.root else path.parent
    rows_file = Path(settings.rows_file)
    firsts = _first_rows(root, rows_file)
    if path.resolve() not in firsts:
        raise LaionError(f"{path} is not in {root}, whose rows {settings.rows_file} numbers: set root to their folder")
    first, end, total = firsts[path.resolve()]
    rows = _read_rows_file(rows_file, rows_file.stat().st_mtime_ns if rows_file.exists() else 0)
    if len(rows) and not 0 <= rows[0] <= rows[-1] < total:
        raise LaionError(
            f"{settings.rows_file} names rows {rows[0]} to {rows[-1]}, the table in {root} has {total}: "
            "these are the neighbours in another table"
        )
    return rows[np.searchsorted(rows, first) : np.searchsorted(rows, end)] - first


@functools.lru_cache(maxsize=_MAX_CACHED_TABLES)
def _first_rows(root: Path, rows_file: Path) -> dict[Path, tuple[int, int, int]]:
    """Return the first row of each file of a table, the one behind its last, and the number of all rows."""
    counts = {path.resolve(): _count_rows(path) for path in table_files(root)}
    counts.pop(rows_file.resolve(), None)  # it may lie beside the table
    ends = np.cumsum(list(counts.values())).tolist()
    return {path: (end - count, end, ends[-1]) for (path, count), end in zip(counts.items(), ends, strict=True)}


def _count_rows(path: Path) -> int:
    if path.suffix.lower() == ".parquet":
        with _open_parquet(path) as file:
            return file.metadata.num_rows
    return sum(1 for _ in _delimited_rows(path, (), None))


@functools.lru_cache(maxsize=_MAX_CACHED_TABLES)
def _read_rows_file(path: Path, written: int) -> np.ndarray:
    """Return the numbers in the column `row`, sorted, each once.

    Args:
        path: The table.
        written: When, in nanoseconds, so that a table that was written anew is read anew.
    """
    del written
    names, rows = ("row",), []
    try:
        for found in read_rows(path, {"row": names}, strict=True):
            number = None if isinstance(found, Drop) else whole_number(cell(found[1], names))
            if number is None or abs(number) >= 2**63:
                where = found.where if isinstance(found, Drop) else found[0]
                raise LaionError(f"{where}: expected the whole number of a row in the column 'row' of {path}")
            rows.append(number)
    except TableError as error:
        raise LaionError(f"expected a table with the numbers of rows in a column 'row': {error}") from error
    return np.unique(np.asarray(rows, np.int64))
