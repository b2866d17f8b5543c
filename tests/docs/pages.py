"""The pages a reader sees, and what the tests of them look at: blocks of code, prose, headings, titled files.

Reads Markdown by its lines; fences may be indented (in a tab or a note), and are taken out by their own indent.
"""

import dataclasses
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^(?P<indent> *)(?P<marks>```+|~~~+) *(?P<language>[\w+-]*)(?P<rest>.*)$")
_TITLE = re.compile(r'title="([^"]+)"')


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: the file it is in.
        line: number of the first line of the code, from 1.
        language: the word behind the fence.
        title: the file that it is the text of; empty for most.
        text: the code, without the indent of the fence.
    """

    page: Path
    line: int
    language: str
    title: str
    text: str

    @property
    def place(self) -> str:
        """Page and line, as an editor opens them."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """README.md and every page of docs/, in the order of their names."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of these languages, of all without any, from top to bottom."""
    return [block for block in _read(page)[0] if not languages or block.language in languages]


def prose(page: Path) -> str:
    """The page with its blocks of code left out, line by line: the numbers of the lines stay."""
    return "\n".join(_read(page)[1])


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of every line of the ``sh`` and ``yaml`` blocks; continued lines are one, comments are gone."""
    for block in blocks(page, "sh", "yaml"):
        lines = block.text.split("\n")
        number = 0
        while number < len(lines):
            first, line = number, lines[number]
            while line.endswith("\\") and number + 1 < len(lines):
                number += 1
                line = line[:-1] + " " + lines[number]
            number += 1
            if line := re.sub(r"(^|\s)#.*", "", line).strip():
                yield f"{page.relative_to(ROOT)}:{block.line + first}", line


def headings(page: Path) -> list[str]:
    """The text of every heading."""
    return [match.group(1) for match in re.finditer(r"^#{1,6} +(.*?) *#*$", prose(page), re.MULTILINE)]


def _read(page: Path) -> tuple[list[Block], list[str]]:
    found: list[Block] = []
    outside: list[str] = []
    opened: re.Match[str] | None = None
    inside: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), 1):
        if opened is None:
            opened = _FENCE.match(line)
            outside.append("" if opened else line)
            inside = []
            continue
        outside.append("")
        if line.strip() == opened["marks"]:
            title = _TITLE.search(opened["rest"])
            text = textwrap.dedent("\n".join(inside)) + "\n"
            found.append(Block(page, number - len(inside), opened["language"], title[1] if title else "", text))
            opened = None
        else:
            inside.append(line)
    if opened is not None:
        raise ValueError(f"{page}: a block of code is never closed: {opened.group().strip()}")
    return found, outside
