"""Reads the tables that come with archives."""

import csv
from collections.abc import Sequence
from pathlib import Path

from data_prep.tfds.base import SetError


def read_table(path: Path, columns: Sequence[str], *, delimiter: str = ",") -> list[dict[str, str]]:
    """Read a text table with a header, one dict a row; blanks around names and values are dropped.

    Args:
        path: UTF-8, with or without a byte order mark.
        columns: that must be there.
        delimiter: between values.

    Raises:
        SetError: it is not text, a column is missing, or a row has too few or too many values.
    """
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            missing = [column for column in columns if column not in names]
            if missing:
                raise SetError(f"{path}: expected the columns {', '.join(columns)}, got {', '.join(names) or 'none'}")
            reader.fieldnames = names
            for row in reader:
                if None in row or None in row.values():
                    raise SetError(f"{path}, line {reader.line_num}: expected {len(names)} values")
                rows.append({name: value.strip() for name, value in row.items()})
    except (UnicodeDecodeError, csv.Error) as error:
        raise SetError(f"{path} is not a table in UTF-8 ({error}): fetch it again") from error
    return rows
