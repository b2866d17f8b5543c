"""Any image-caption table (comma- or tab-separated) as a stream of `Post`.

Quoted fields may hold newlines; a byte-order mark is skipped; the table is never held in memory.
"""

import csv
import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.seen_ids import SeenIds
from data_prep.sources.post import Drop, Post

_MAX_FIELD_CHARACTERS = 2**24  # a caption of 16 million characters is an unclosed quote
_TAB_SUFFIXES = (".tsv", ".tab")


class TableError(ValueError):
    """The table as a whole cannot be used; the message says what was found and what to do."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column holds what.

    Attributes:
        image: Path of the image, relative to the images folder.
        captions: One or more columns of text.
        id: Unique id. Where None: the image path, followed by `#LINE` for a further row about the same image.
        group: What must stay on one side of a split; the image path where None.
        label: Class name.
    """

    image: str = "image"
    captions: tuple[str, ...] = ("caption",)
    id: str | None = None
    group: str | None = None
    label: str | None = None


def read_posts(table: Path, columns: Columns, *, source: str) -> Iterator[Post | Drop]:
    """Read a table row by row; `.tsv` and `.tab` files are split at tabs, all others at commas.

    Args:
        table: UTF-8 text with a header line.
        columns: Names in the header.
        source: Name of the source, for the posts.

    Yields:
        A `Post` per row, or a `Drop` for a row whose number of fields is not the header's, or that repeats the image
        and the captions of an earlier one (only where there is no id column, which then decides).

    Raises:
        TableError: No such file, no header, a column that is missing or ambiguous, not UTF-8, or an unclosed quote.
    """
    delimiter = "\t" if table.suffix.lower() in _TAB_SUFFIXES else ","
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    line = 1
    images, pairs = SeenIds(), SeenIds()
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            # strict: text behind a closing quote, or a quote never closed, is an error and not a guess
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(rows, None)
            if header is None:
                raise TableError(f"{table} is empty: expected a header line with the names of the columns")
            places = _find_columns(table, header, columns)
            next_line = rows.line_num + 1
            for row in rows:
                line, next_line = next_line, rows.line_num + 1
                where = f"{table.name} line {line}"
                if not row:
                    continue  # a blank line
                if len(row) != len(header):
                    detail = f"{len(row)} fields, the header has {len(header)}"
                    yield Drop("wrong_number_of_fields", where, detail=detail)
                    continue
                post = _post(row, columns, places, source=source, where=where)
                if columns.id is None:
                    if not images.add(post.image):
                        post = dataclasses.replace(post, id=f"{post.image}#{line}")
                    if not pairs.add("\0".join((post.image, *post.captions))):
                        yield Drop("duplicate_row", where, post.image, "an earlier row has this image and its captions")
                        continue
                yield post
    except OSError as error:
        raise TableError(f"{table} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise TableError(f"{table} is not UTF-8 ({error}): convert it first") from error
    except csv.Error as error:
        raise TableError(f"{table}, near line {line}: {error}; is a quote not closed or not doubled?") from error


def _post(row: Sequence[str], columns: Columns, places: dict[str, int], *, source: str, where: str) -> Post:
    def field(name: str | None) -> str:
        return row[places[name]].strip() if name else ""

    image = field(columns.image)
    return Post(
        id=field(columns.id) if columns.id else image,
        image=image,
        captions=tuple(field(name) for name in columns.captions),
        group_id=field(columns.group) if columns.group else image,
        source=source,
        label=field(columns.label),
        where=where,
    )


def _find_columns(table: Path, header: Sequence[str], columns: Columns) -> dict[str, int]:
    names = [name.strip() for name in header]
    wanted = [columns.image, *columns.captions, columns.id, columns.group, columns.label]
    problems = []
    for name in dict.fromkeys(name for name in wanted if name):
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            problems.append(f"no column {name!r}" + (f" (nearest: {near[0]!r})" if near else ""))
        elif names.count(name) > 1:
            problems.append(f"{names.count(name)} columns named {name!r}")
    if problems:
        raise TableError(
            f"{table}: {'; '.join(problems)}. Columns found: {', '.join(map(repr, names))}. Name the right ones with "
            "--image-column, --caption-column, --id-column, --group-column or --label-column."
        )
    return {name: names.index(name) for name in wanted if name}
