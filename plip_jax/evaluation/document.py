"""A report as a list of blocks, written as Markdown or as one self-contained, accessible HTML page.

Owns the two forms, not what stands in them (`report`). The page needs no network and no script: pictures are inlined,
each with a text that says what it shows; tables have captions and header cells with a scope; headings descend in order;
colours keep a contrast of 4.5 to 1 (WCAG 2.2, AA) and never carry a meaning alone.
"""

import base64
import dataclasses
import html
import io
from collections.abc import Sequence

from PIL import Image


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading of level 1 (the page) to 4."""

    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Running text; words between backquotes are code."""

    text: str


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: what it shows.
        head: names of the columns.
        rows: cells as texts, the first of each names the row.
        text_columns: how many columns, from the left, are words; the others are numbers, aligned right.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG.

    Attributes:
        name: of the file beside the Markdown report.
        png: its bytes.
        alt: what it shows, for those who do not see it.
    """

    name: str
    png: bytes
    alt: str


Block = Heading | Paragraph | Bullets | Table | Picture


def to_markdown(blocks: Sequence[Block]) -> str:
    """Write blocks as Markdown; pictures are links to the files beside it."""
    parts = []
    for block in blocks:
        match block:
            case Heading():
                parts.append(f"{'#' * block.level} {block.text}")
            case Paragraph():
                parts.append(block.text)
            case Bullets():
                parts.append("\n".join(f"- {item}" for item in block.items))
            case Table():
                rule = ["---"] * block.text_columns + ["---:"] * (len(block.head) - block.text_columns)
                rows = [block.head, rule, *block.rows]
                lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
                parts += [block.caption, "\n".join(lines)]
            case Picture():
                parts.append(f"![{block.alt}]({block.name.replace(' ', '%20')})")
    return "\n\n".join(parts) + "\n"


def to_html(blocks: Sequence[Block], *, title: str) -> str:
    """Write blocks as one HTML page that needs nothing beside it."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        "<!doctype html>\n"
        f'<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2328; background: #fff; margin: 0; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem; }
h1, h2, h3, h4 { line-height: 1.25; margin: 2rem 0 .6rem; }
h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: .2rem; }
p { max-width: 48rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #d1d9e0; text-align: right; white-space: nowrap; }
th.words, td.words { text-align: left; white-space: normal; min-width: 6rem; }
thead th { background: #f6f8fa; vertical-align: bottom; }
tbody th { font-weight: 600; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; }
code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
"""


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{_inline(block.text)}</h{block.level}>"
        case Paragraph():
            return f"<p>{_inline(block.text)}</p>"
        case Bullets():
            return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in block.items) + "</ul>"
        case Table():
            return _table(block)
        case Picture():
            kind, data = _inlined(block.png)
            return f'<figure><img src="data:image/{kind};base64,{data}" alt="{html.escape(block.alt)}"></figure>'


def _inlined(png: bytes) -> tuple[str, str]:
    """A picture's kind and base64: JPEG where that takes less than half, as for pictures of micrographs."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=88, subsampling=0)
    jpeg = buffer.getvalue()
    kind, data = ("jpeg", jpeg) if len(jpeg) < len(png) / 2 else ("png", png)
    return kind, base64.b64encode(data).decode()


def _table(table: Table) -> str:
    def words(column: int) -> str:
        return ' class="words"' if column < table.text_columns else ""

    head = "".join(f'<th scope="col"{words(n)}>{_inline(cell)}</th>' for n, cell in enumerate(table.head))
    rows = "".join(
        f'<tr><th scope="row"{words(0)}>{_inline(row[0])}</th>'
        + "".join(f"<td{words(n)}>{_inline(cell)}</td>" for n, cell in enumerate(row[1:], start=1))
        + "</tr>\n"
        for row in table.rows
    )
    # A wide table scrolls by itself, and the keyboard reaches it.
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{html.escape(table.caption)}"><table>'
        f"<caption>{_inline(table.caption)}</caption><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>"
    )


def _inline(text: str) -> str:
    """Escape, and turn what stands between backquotes into code."""
    parts = html.escape(text).split("`")
    if len(parts) % 2 == 0:  # a lone backquote is a character
        return html.escape(text)
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))
