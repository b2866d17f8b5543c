"""Reads the spreadsheets that come with archives; `tables` reads text."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.tfds.base import SetError


def read_spreadsheet(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read the first sheet of an .xlsx file, whose first row holds the column names, one dict a row.

    Values become texts without blanks around them, whole numbers without decimals, empty cells "". Empty rows are
    left out.

    Args:
        path: the file.
        columns: that must be there.

    Raises:
        SetError: it is missing or not a spreadsheet, a column is missing, or openpyxl is.
    """
    if not path.is_file():
        raise SetError(f"{path}: expected a spreadsheet with the columns {', '.join(columns)}, found no such file")
    try:
        import openpyxl  # only two sets come with spreadsheets
    except ImportError as error:
        raise SetError(f"{path}: reading .xlsx needs openpyxl; install it with: pip install openpyxl") from error
    try:
        workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise SetError(f"{path} is not an .xlsx file ({error}): fetch it again") from error
    try:
        header, *rows = [
            [_text(value) for value in row] for row in workbook.worksheets[0].iter_rows(values_only=True)
        ] or [[]]
    finally:
        workbook.close()
    missing = [column for column in columns if column not in header]
    if missing:
        raise SetError(f"{path}: expected the columns {', '.join(columns)}, got {', '.join(header) or 'none'}")
    # A sheet's rows may end before its header does.
    return [dict.fromkeys(header, "") | dict(zip(header, row, strict=False)) for row in rows if any(row)]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
