"""The two forms of a report: Markdown by its text, HTML by what a parser and a screen reader would find."""

import base64
import html.parser
import io

import numpy as np
import pytest
from PIL import Image

from plip_jax.evaluation.document import Bullets, Heading, Paragraph, Picture, Table, to_html, to_markdown


def as_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


BLOCKS = [
    Heading(1, "Report of <a & b>"),
    Paragraph("Weights `0123`, and a lone ` backquote & <tag>."),
    Heading(2, "Scores"),
    Table("Scores | of all", ("set", "answer", "F1"), (("kather", "a|b", "0.5"), ("<set>", "always TUM", "0.1")), 2),
    Bullets(("one", "two `x`")),
    Picture("a picture.png", as_png(np.full((8, 8, 3), 200, np.uint8)), 'a "picture" of scores'),
    Picture("noise.png", as_png(np.random.default_rng(0).integers(120, 140, (64, 64, 3), np.uint8)), "noise"),
]


class Page(html.parser.HTMLParser):
    """What is in a page: tags with their attributes, text by tag, and whether every tag is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == [], "tags that were never closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open:
            self.texts.append((self._open[-1], data))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(to_html(BLOCKS, title="A & B"))


def test_markdown_has_every_block():
    text = to_markdown(BLOCKS)
    assert text.startswith("# Report of <a & b>\n")
    assert "| set | answer | F1 |\n| --- | --- | ---: |\n| kather | a\\|b | 0.5 |\n" in text
    assert "- one\n- two `x`\n" in text
    assert '![a "picture" of scores](a%20picture.png)' in text


def test_the_page_needs_nothing_beside_it(page):
    plain, noise = (str(attributes["src"]) for attributes in page.of("img"))
    assert plain == "data:image/png;base64," + base64.b64encode(BLOCKS[5].png).decode()
    kind, data = noise.split(";base64,")
    assert kind == "data:image/jpeg"  # a PNG of grain is more than twice as large
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (64, 64)
    assert not page.of("script")
    assert not page.of("link")
    assert not any("http" in (value or "") for _, attributes in page.tags for value in attributes.values())


def test_the_page_can_be_read_aloud(page):
    assert page.of("html") == [{"lang": "en"}]
    assert ("title", "A & B") in page.texts
    assert [attributes["alt"] for attributes in page.of("img")] == ['a "picture" of scores', "noise"]
    assert [name for name, _ in page.tags if name in ("h1", "h2", "h3")] == ["h1", "h2"]
    assert len(page.of("caption")) == len(page.of("table")) == 1
    assert [attributes["scope"] for attributes in page.of("th")] == ["col"] * 3 + ["row"] * 2
    (region,) = page.of("div")
    assert (region["role"], region["tabindex"], region["aria-label"]) == ("region", "0", "Scores | of all")


def test_texts_are_escaped_and_code_is_marked(page):
    texts = [text for _, text in page.texts]
    assert "Report of <a & b>" in "".join(texts)
    assert ("th", "<set>") in page.texts
    assert ("code", "x") in page.texts
    assert "Weights `0123`, and a lone ` backquote & <tag>." in texts  # three backquotes: not pairs, so none is code
