"""The datasheet: what is missing is said at its top, what is known is in it."""

import re

import pytest
from curated_pairs import kept_pair

from data_prep.curation.pair import KEPT, Decision, drop
from data_prep.reports.composition import measure_composition
from data_prep.reports.datasheet import (
    REQUIRED,
    DatasheetError,
    DatasheetSettings,
    check_datasheet,
    missing_fields,
    write_datasheet,
)
from data_prep.reports.funnel import StageRows, count_funnel

COMPLETE = DatasheetSettings(
    title="A set <of> pairs",
    lawful_basis="GDPR Art. 6(1)(e)",
    source_terms="the platform's terms for researchers",
    source_terms_date="2022-11-15",
    ethics_reference="EK 2022/17",
    contact="data@lab.example",
)


@pytest.fixture
def sheet(tmp_path):
    pairs = [kept_pair(number, tmp_path / "store", hashtags=("GI|Path",)) for number in range(3)]
    pairs.append(kept_pair(7, tmp_path / "store", source="laion", licence="CC-BY", hashtags=(), created_at=""))
    decisions = [Decision("pair", pair.id, pair.source, KEPT, pair=pair) for pair in pairs]
    decisions.append(drop(kept_pair(9, tmp_path / "store"), "text", "too_short"))
    rows = {"text": StageRows({"twitter": 4, "laion": 1}, {"twitter": 3, "laion": 1})}

    def write(settings: DatasheetSettings) -> str:
        path = tmp_path / "out" / "datasheet.md"
        write_datasheet(
            path,
            settings,
            funnel=count_funnel(decisions, rows),
            composition=measure_composition(pairs),
            proof={"digest": 0, "caption": {"shared": 2}},
            run_settings={"text": {"min_words": 3, "mask": True}, "versions": {"plip_jax": "0.5.0"}},
        )
        return path.read_text()

    return write


def test_sections_and_counts(sheet):
    text = sheet(COMPLETE)
    assert re.findall(r"^## (.*)$", text, re.M) == [
        "Motivation",
        "Composition",
        "Collection",
        "Preprocessing",
        "Uses",
        "Distribution",
        "Maintenance",
    ]
    assert "Gebru et al." in text
    for row in (
        "| train | 4 | 1 | 3 |",
        "| twitter | 3 | 4 |",
        "| all | 4 | 4 |",
        r"| GI\|Path | 3 |",
        "| CC-BY | 1 |",
        "| caption.shared | 2 |",
        "| pair | text | 5 | 4 | too_short 1 |",
        "| text.min_words | 3 |",
        "| text.mask | yes |",
        "| versions.plip_jax | 0.5.0 |",
    ):
        assert row in text.splitlines()
    assert "The licence of 3 of 4 pairs is unknown." in text
    assert "The posts are of 2021-01 to 2021-03; 1 pairs have no date." in text
    assert "not for clinical use" in text
    assert "python -m data_prep.takedown" in text
    assert "data@lab.example" in text
    assert text.startswith("# Datasheet: A set &lt;of> pairs\n")


def test_no_caption_author_or_address_is_in_it(sheet):
    text = sheet(COMPLETE)
    for written in ("a gland number", "raw words", "someone", "images.example", f"{1:032x}"):
        assert written not in text


def test_a_complete_datasheet_has_no_warning(sheet):
    assert missing_fields(COMPLETE) == ()
    check_datasheet(COMPLETE, acknowledge_missing=False)
    assert "missing" not in sheet(COMPLETE)


@pytest.mark.parametrize("field", REQUIRED)
@pytest.mark.parametrize("blank", ["", " \n"])
def test_each_required_field_is_asked_for_and_named_at_the_top(sheet, field, blank):
    settings = DatasheetSettings(
        **{name: "2022-11-15" if name.endswith("date") else "said" for name in REQUIRED if name != field},
        **{field: blank},
    )
    assert missing_fields(settings) == (field,)
    with pytest.raises(DatasheetError, match=f"lacks {field}: .*--acknowledge-missing"):
        check_datasheet(settings, acknowledge_missing=False)
    check_datasheet(settings, acknowledge_missing=True)
    assert sheet(settings).splitlines()[2:5] == [
        "> **Required and missing.** Whoever built this acknowledged it:",
        ">",
        next(line for line in sheet(settings).splitlines() if line.startswith(f"> - `{field}`: ")),
    ]


@pytest.mark.parametrize("day", ["15.11.2022", "2022-02-30", "soon"])
def test_terms_need_a_day(day):
    settings = DatasheetSettings(**{name: day if name == "source_terms_date" else "said" for name in REQUIRED})
    assert missing_fields(settings) == ("source_terms_date",)


def test_nothing_said_names_everything(sheet):
    assert missing_fields(DatasheetSettings()) == REQUIRED
    assert sheet(DatasheetSettings()).count("> - `") == len(REQUIRED)
