"""A file of texts: a text a line, or a table with a column of them."""

import csv
from pathlib import Path


class TextListError(ValueError):
    """A file that holds no texts; the message says what is expected."""


def read_texts(file: Path) -> list[str]:
    """The different texts of a file, in order: a line each, or the column ``text`` or ``caption`` of a ``.csv``.

    Raises:
        TextListError: no such column, no text, or a file that is not UTF-8.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix.lower() == ".csv":
                rows = csv.DictReader(lines)
                column = next((name for name in ("text", "caption") if name in (rows.fieldnames or ())), None)
                if column is None:
                    raise TextListError(f"{file}: expected a column text or caption, got {rows.fieldnames}")
                found = [row[column] or "" for row in rows]
            else:
                found = [line.rstrip("\r") for line in lines.read().split("\n")]
    except (UnicodeDecodeError, csv.Error) as error:
        raise TextListError(f"{file}: expected texts in UTF-8, {error}") from error
    texts = list(dict.fromkeys(text for text in found if text.strip()))
    if not texts:
        raise TextListError(f"{file}: expected a text a line, got none")
    return texts
