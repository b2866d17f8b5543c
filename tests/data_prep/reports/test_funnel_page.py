"""The page of the funnel: complete, self-contained, and safe to open."""

import html.parser
import re
import xml.etree.ElementTree as ET
from collections import Counter

import pytest
from curated_pairs import kept_pair

from data_prep.curation.pair import KEPT, Decision, drop
from data_prep.reports.composition import measure_composition
from data_prep.reports.funnel import StageRows, Step, count_funnel
from data_prep.reports.funnel_page import funnel_page
from data_prep.reports.svg_charts import bar_chart, column_chart, step_chart
from data_prep.reports.thumbnails import choose_thumbnails

HOSTILE = '<script>alert("1")</script>&\'"'
VOID = {"meta", "img", "rect", "line"}


class Checker(html.parser.HTMLParser):
    """Collects the tags, attributes and texts of a page whose tags must be nested rightly."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture
def parts(tmp_path):
    store = tmp_path / "store"
    source = f"x{HOSTILE}"
    good = [
        kept_pair(number, store, source=source, conversation_id="", hashtags=(f"tag{HOSTILE}",)) for number in range(4)
    ]
    bad = kept_pair(9, store, source=source, conversation_id="", caption="what was dropped")
    decisions = [Decision("pair", pair.id, source, KEPT, pair=pair) for pair in good]
    decisions.append(drop(bad, "gate", f"not{HOSTILE}", "what was found"))
    five, four = {source: 5}, {source: 4}
    rows = {"source": StageRows(five, five), "thread": StageRows(five, five), "gate": StageRows(five, four)}
    return {
        "title": f"OpenPath {HOSTILE}",
        "funnel": count_funnel(decisions, rows),
        "composition": measure_composition(good),
        "thumbnails": choose_thumbnails(decisions, store, may_show=lambda decision: True),
        "proof": {"digest": 0, "caption": {HOSTILE: 3}},
        "settings": {"text": {"min_words": 3, "mask": True, "tags": ("a", HOSTILE), "none": ()}},
    }


def test_the_page_is_well_formed_and_runs_and_loads_nothing(parts):
    page = funnel_page(**parts)
    checker = read(page)
    assert checker.tags["script"] == 0
    assert "<script" not in page
    for tag, name, value in checker.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href"):
            assert value.startswith("data:image/jpeg;base64,")
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert f"OpenPath {HOSTILE}" in checker.text  # shown as written
    assert checker.tags["h1"] == 1


def test_what_was_found_stands_on_it(parts):
    checker = read(funnel_page(**parts))
    words = re.sub(r"\s+", " ", checker.text)
    for shown in ("rows read", "gate", "80.0 %", "text.min_words", "caption." + HOSTILE, "median 4", "2021-01"):
        assert shown in words, shown
    digests = [value for tag, name, value in checker.attributes if name == "data-digest"]
    expected = {one.clean_digest for group in parts["thumbnails"].values() for one in group}
    assert set(digests) == expected
    assert len(expected) == 5


def test_no_text_of_a_post_and_no_name_stands_on_it(parts):
    page = funnel_page(**parts)
    for written in ("a gland number", "what was dropped", "what was found", "raw words", "someone", "images.example"):
        assert written not in page


def test_the_same_input_gives_the_same_page(parts):
    assert funnel_page(**parts) == funnel_page(**parts)


def test_a_set_with_nothing_in_it_still_has_a_page():
    empty = count_funnel([], {})
    page = funnel_page(
        title="x", funnel=empty, composition=measure_composition([]), thumbnails={}, proof={}, settings={}
    )
    assert "Nothing was dropped" in read(page).text


def rects(svg: str, colour: str) -> list[dict[str, float]]:
    root = ET.fromstring(svg)
    return [
        {name: float(one.attrib[name]) for name in ("x", "width", "height")}
        for one in root.iter("rect")
        if one.attrib["fill"] == colour
    ]


def test_lengths_in_charts_are_in_proportion():
    bars = rects(bar_chart([("a", 10), ("b", 5), ("c", 0)], label="l"), "#0b6e75")
    assert bars[0]["width"] == pytest.approx(2 * bars[1]["width"], abs=0.2)  # coordinates have one decimal
    assert bars[2]["width"] == 0
    columns = rects(column_chart([("a", 30), ("", 10)], label="l"), "#0b6e75")
    assert columns[0]["height"] == pytest.approx(3 * columns[1]["height"], abs=0.3)  # the same
    svg = step_chart([Step("text", 100, {"a": 20, "b": 5}), Step("gate", 75, {})], label="l")
    kept, lost = rects(svg, "#0b6e75"), rects(svg, "#e3b6a6")
    assert kept[0]["width"] == pytest.approx(3 * lost[0]["width"], abs=0.3)  # the same
    assert lost[0]["x"] == pytest.approx(kept[0]["x"] + kept[0]["width"], abs=0.2)  # the same
    assert kept[0]["width"] == kept[1]["width"]


@pytest.mark.parametrize("values", [[], [0], [1], [3, 0], [999_999_999]])
def test_charts_of_any_numbers_are_well_formed_and_stay_inside(values):
    items = [(f"<{HOSTILE}{value}", value) for value in values]
    steps = [Step(name, value, {}) for name, value in items]
    for svg in (
        bar_chart(items, label=HOSTILE),
        column_chart(items, label=HOSTILE, median=(0.5, "median")),
        step_chart(steps, label=HOSTILE),
    ):
        root = ET.fromstring(svg)
        for one in root.iter():
            for name in ("x", "x1", "x2"):
                assert 0 <= float(one.attrib.get(name, 0)) <= float(root.attrib["width"])
