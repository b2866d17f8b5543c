"""What docs/troubleshooting.md quotes as a message of the program is one: it stands in a string of the source.

A quoted message is a heading that is all `code`. Words in capitals (``DIR``, ``N``) stand for what is filled in.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
HOLE = "\0"  # what a program fills in
# Words that stand for it on the page; others in capitals are themselves, such as HOST:PORT in a help text.
_FILLED_IN = "N|DIR|STEP|NAME|FIELD|REASON|LIST|PLACE|HASH|LAYOUT"


def quoted_messages() -> list[str]:
    return re.findall(r"^### `([^`]+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def as_template(node: ast.expr) -> str:
    """A string's text with a hole for every part that is not written there."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(as_template(part) for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return as_template(left) + as_template(right)
    return HOLE


def templates_in(tree: ast.AST) -> Iterator[str]:
    """Every string of a program but its docstrings and its single words."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp) and id(node) not in docstrings:
            text = as_template(node)
            if " " in text:
                yield text


@functools.cache
def all_templates() -> str:
    files = [path for folder in ("plip_jax", "data_prep") for path in sorted((ROOT / folder).rglob("*.py"))]
    return "\n\n".join(text for path in files for text in templates_in(ast.parse(path.read_text(encoding="utf-8"))))


def is_said(message: str) -> bool:
    """Whether the source has the message; a word in capitals is one hole or more, with what joins them."""
    parts = [
        rf"[^\n{HOLE}]{{0,2}}{HOLE}[^\n]{{0,12}}?" if re.fullmatch(_FILLED_IN, part) else re.escape(part)
        for part in re.split(rf"'?\b({_FILLED_IN})\b'?", message)
        if part
    ]
    return re.search("".join(parts), all_templates()) is not None


@pytest.mark.parametrize("message", quoted_messages())
def test_a_quoted_message_is_in_the_source(message: str):
    assert is_said(message)


def test_enough_is_quoted_and_what_nobody_says_is_found():
    assert len(quoted_messages()) >= 50
    assert not is_said("DIR: another process is sleeping there; wait, or use another")
    assert not is_said("an epoch has N examples, fewer than one local batch of N")
    assert is_said("the newest whole checkpoint is of step N")


def test_no_message_is_quoted_twice():
    messages = quoted_messages()
    assert sorted(set(messages)) == sorted(messages)
