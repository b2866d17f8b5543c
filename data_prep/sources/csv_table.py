"""Any image-caption table (comma- or tab-separated) as a stream of `Post`.

How lines are read, and what is done with damaged ones, is in `delimited`.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.seen_ids import SeenIds
from data_prep.sources.delimited import TableError, read_header, read_lines
from data_prep.sources.post import Drop, Media, Post


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column holds what.

    Attributes:
        image: Path of the image, relative to the images folder.
        captions: One or more columns of text.
        id: Unique id. Where empty: the image path, followed by `#LINE` for a further row about the same image.
        group: What must stay on one side of a split; the image path where empty.
        label: Class name; empty for none.
    """

    image: str = "image"
    captions: tuple[str, ...] = ("caption",)
    id: str | None = ""
    group: str | None = ""
    label: str | None = ""


def read_posts(table: Path, columns: Columns, *, source: str, strict: bool = True) -> Iterator[Post | Drop]:
    """Read a table row by row; `.tsv` and `.tab` files are split at tabs, all others at commas.

    Args:
        table: UTF-8 text with a header line.
        columns: Names in the header.
        source: Name of the source, for the posts.
        strict: A line that is not UTF-8, and a quote that is not closed, are errors.

    Yields:
        A `Post` per row, or a `Drop` for a damaged row (see `delimited.read_lines`), or one that repeats the image
        and the captions of an earlier one (only where there is no id column, which then decides).

    Raises:
        TableError: No such file, no header, a column that is missing or ambiguous; where `strict`, a damaged line.
    """
    header = read_header(table)
    if not header:
        raise TableError(f"{table} is empty: expected a header line with the names of the columns")
    places = _find_columns(table, header, columns)
    images, pairs = SeenIds(), SeenIds()
    for found in read_lines(table, strict=strict):
        if isinstance(found, Drop):
            yield found
            continue
        where, row = found
        post = _post(row, columns, places, source=source, where=where)
        if not columns.id:
            image = post.media[0].path
            if not images.add(image):
                post = dataclasses.replace(post, id=f"{image}#{where.rpartition(' ')[2]}")
            if not pairs.add("\0".join((image, *post.captions))):
                yield Drop("duplicate_row", where, image, "an earlier row has this image and its captions")
                continue
        yield post


def _post(row: Sequence[str], columns: Columns, places: dict[str, int], *, source: str, where: str) -> Post:
    def field(name: str | None) -> str:
        return row[places[name]].strip() if name else ""

    image = field(columns.image)
    return Post(
        id=field(columns.id) if columns.id else image,
        media=(Media(path=image),),
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
            f"{table}: {'; '.join(problems)}. Columns found: {', '.join(map(repr, names))}. Name the right ones: the "
            "column of the image, of the captions, of the id, of the group or of the label (settings image, captions, "
            "id, group, label)."
        )
    return {name: names.index(name) for name in wanted if name}
