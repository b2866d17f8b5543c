"""Contact sheets: numbered pictures in PNG files and a table to fill in, for those who judge without a browser."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from data_prep.curation.rows import write_atomically
from data_prep.reviewing.review_items import Item, ReviewError, describe_scores, image_id, small_image

INDEX_NAME = "index.csv"
COLUMNS = ("number", "sheet", "id", "source", "reason", "scores", "caption", "keep", "new_caption", "image")
_ACROSS, _DOWN = 6, 5
_SIDE, _LABEL, _GAP = 224, 22, 8  # pixels
_ANSWERS = {"yes": True, "y": True, "1": True, "true": True, "keep": True} | {
    "no": False, "n": False, "0": False, "false": False, "reject": False
}  # fmt: skip


def write_sheets(items: Sequence[Item], folder: Path) -> None:
    """Write `sheet-001.png`, ... and `index.csv` with one row a picture, whose column `keep` is to be filled in."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    rows = io.StringIO()
    table = csv.writer(rows, lineterminator="\n")
    table.writerow(COLUMNS)
    per_sheet = _ACROSS * _DOWN
    for start in range(0, len(items), per_sheet):
        name = f"sheet-{start // per_sheet + 1:03d}.png"
        write_atomically(folder / name, _sheet(items[start : start + per_sheet], start + 1))
        for number, item in enumerate(items[start : start + per_sheet], start=start + 1):
            pair = item.pair
            cells = (pair.id, pair.source, item.reason, describe_scores(pair), pair.caption)
            table.writerow([number, name, *map(_as_text, cells), "", "", image_id(pair)])
    # A byte-order mark, so that spreadsheets read UTF-8.
    write_atomically(folder / INDEX_NAME, rows.getvalue().encode("utf-8-sig", "replace"))


def _as_text(cell: str) -> str:
    """Keep a spreadsheet from taking a cell for a formula and running it."""
    return f"'{cell}" if cell.lstrip().startswith(("=", "+", "-", "@")) or cell[:1] in ("\t", "\r") else cell


def _sheet(items: Sequence[Item], first: int) -> bytes:
    step_x, step_y = _SIDE + _GAP, _SIDE + _LABEL + _GAP
    rows = -(-len(items) // _ACROSS)
    sheet = Image.new("RGB", (_GAP + _ACROSS * step_x, 2 * _GAP + _LABEL + rows * step_y), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), "Private: do not share. Delete after use.", fill=(179, 38, 30))
    for place, item in enumerate(items):
        left = _GAP + place % _ACROSS * step_x
        top = 2 * _GAP + _LABEL + place // _ACROSS * step_y
        draw.text((left, top + 4), f"{first + place}  {item.reason}", fill="black")
        image = small_image(item, _SIDE)
        if image is not None:
            sheet.paste(image, (left, top + _LABEL))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def collect_verdicts(index: Path, source: str) -> tuple[bytes, int]:
    """Turn a table that was filled in into lines that `verdicts` reads; rows without an answer are left out.

    A rejection is said of the image too, and so of every other pair that shows it.

    Returns:
        The lines, and how many answers they are.

    Raises:
        ReviewError: No such table, other columns, or an answer that is neither yes nor no.
    """
    try:
        with index.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if missing := {"id", "keep", "new_caption", "image"} - set(reader.fieldnames or ()):
                raise ReviewError(
                    f"{index}: no column {', '.join(sorted(missing))}; expected the {INDEX_NAME} of a review"
                )
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReviewError(
            f"{index} cannot be read ({error}): expected the {INDEX_NAME} of a review, in UTF-8"
        ) from error
    lines, answers = [], 0
    for number, row in enumerate(rows, start=2):
        answer = (row["keep"] or "").strip().lower()
        if not answer:
            continue
        if answer not in _ANSWERS:
            raise ReviewError(f"{index} row {number}: expected yes, no or nothing in the column keep")
        answers += 1
        keep = _ANSWERS[answer]
        caption = (row["new_caption"] or "").strip() or None
        judged = {row["id"]: caption} if keep else {row["id"]: caption, row["image"]: None}
        for one, text in judged.items():
            line = {"id": one, "keep": keep, "caption": text, "reason": "", "source": source}
            lines.append(json.dumps(line) + "\n")
    return "".join(lines).encode(), answers
