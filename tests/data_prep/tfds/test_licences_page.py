"""docs/licences.md names the terms of every set, and the same as its builder."""

import re
from pathlib import Path

import pytest

from data_prep.tfds.build import SETS

PAGE = (Path(__file__).parents[3] / "docs" / "licences.md").read_text(encoding="utf-8")
UNSURE = "**?**"
# What a builder may say behind the terms: what they mean, who says so, or what of them is not said.
_BEHIND = re.compile(r"(: .+| \(as .+\)|, as the paper says; .+)?")
_NO_LICENCE = re.compile(r"not known: .+|.+; no licence is known|the terms are on .+")


def rows() -> list[tuple[str, str]]:
    section = PAGE[PAGE.index("## Evaluation sets") : PAGE.index("## What you may share")]
    found = re.findall(r"^\| (`.*?`) \| (.*?) \|", section, re.MULTILINE)
    return [(name, terms) for names, terms in found for name in re.findall(r"`(\w+)`", names)]


def agree(page: str, builder: str) -> bool:
    """Whether a row of the page and a builder say the same, in the same doubt."""
    terms = page.replace(UNSURE, "").strip()
    if not terms:
        return bool(_NO_LICENCE.fullmatch(builder))
    terms = re.sub(", signed$", ", to be signed", terms)
    if not builder.startswith(terms) or not _BEHIND.fullmatch(builder[len(terms) :]):
        return False
    return UNSURE not in page or " (as " in builder  # an unsure licence is somebody's word, and the builder says whose


def test_every_set_has_its_row():
    assert sorted(name for name, _ in rows()) == sorted(SETS)


@pytest.mark.parametrize("name", SETS)
def test_the_builder_says_the_same(name):
    page = dict(rows())[name]
    assert agree(page, SETS[name].about.licence), (page, SETS[name].about.licence)


@pytest.mark.parametrize(
    ("page", "builder"),
    [
        ("CC BY 4.0", "CC BY 4.0, for research only"),
        ("CC BY", "CC BY-NC 4.0"),
        ("CC BY 4.0", "not known: read the terms on its page"),
        ("CC BY 4.0 **?**", "CC BY 4.0"),
        ("research use agreement", "research use agreement, to be signed: example.org"),
        ("**?**", "MIT"),
        ("**?**", "CC BY 4.0 (as others say)"),
    ],
)
def test_a_difference_is_seen(page, builder):
    assert not agree(page, builder)
