"""Every planted identifier is masked, and nothing that only looks like one."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.text.clean_text import TextSettings, clean_text
from data_prep.text.masks import mask_identifiers

CASES = json.loads((Path(__file__).parent / "identifiers.json").read_text(encoding="utf-8"))


def test_there_are_enough_of_both():
    assert len({case["text"] for case in CASES["planted"]}) == 50
    assert len(set(CASES["lookalikes"])) >= 40


@pytest.mark.parametrize("case", CASES["planted"], ids=lambda case: case["text"][:30])
def test_what_is_planted_is_masked(case):
    masked, counts = mask_identifiers(case["text"])
    assert counts == {case["kind"]: 1}
    assert case["identifier"] not in masked
    digits = re.findall(r"\d{2,}", case["identifier"])
    assert not any(run in masked for run in digits)
    # the words behind it are the caption
    assert masked.endswith(case["text"].split(" ")[-1]) or case["text"].endswith(case["identifier"])


@pytest.mark.parametrize("case", CASES["planted"], ids=lambda case: case["text"][:30])
def test_the_whole_cleaning_masks_it_too_and_counts_it(case):
    clean = clean_text(case["text"], TextSettings(questions="keep"))
    assert case["identifier"] not in clean.caption
    assert clean.notes[f"masked_{case['kind']}s"] == 1
    nothing = clean_text(case["text"], TextSettings(questions="keep", mask_with="nothing"))
    assert case["identifier"] not in nothing.caption
    assert "[" not in nothing.caption
    assert "over 89" not in nothing.caption


@pytest.mark.parametrize("text", CASES["lookalikes"])
def test_what_looks_like_one_stays(text):
    assert mask_identifiers(text) == (text, {})


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("92-year-old woman, 88-year-old man", "over 89-year-old woman, 88-year-old man"),
        ("92F, biopsy", "over 89 F, biopsy"),
        ("aged 90 to 95", "aged over 89 to 95"),  # a second end joined by a word is not read
        ("Dr. Smith Melanoma in situ", "[name] Melanoma in situ"),
        ("Dr. Paget saw it", "[name] saw it"),
        ("Dr. Paget's disease", "Dr. Paget's disease"),
        ("Drs. Wong and melanoma", "[name] and melanoma"),
        ("Jane Doe MD: great, patient named John Smith", "[name] MD: great, patient named [name]"),
        ("signed by J. Doe, Pt name - Jane Doe", "signed by [name], Pt name - [name]"),
        ("Name: GIST", "Name: GIST"),
        (
            "Path no. 1234/19, lab no 20/12345, HISTO NO. H/1234/19",
            "Path no. [number], lab no [number], HISTO NO. [number]",
        ),
        ("Case no 12/15, s19-12345, 22H12345", "Case no 12/15, [number], [number]"),
        ("Patient: Female with GIST", "Patient: Female with GIST"),
        ("Patient Underwent Total Gastrectomy", "Patient Underwent Total Gastrectomy"),
        ("the patient Jane Doe", "the patient [name]"),
        ("on 3-5 March 2019 and in May 2019", "on [date] and in [date]"),
        ("jane (at) hospital (dot) org", "[email]"),
        ("jane_doe AT gmail DOT com", "[email]"),
        ("Pt John Smith, 45M with mass", "Pt [name], 45M with mass"),
        ("Pt Abc Kulkarni, 45M and Pt. Jane Doe with", "Pt [name], 45M and Pt. [name] with"),
        ("seen by dr john smith, then dr jones saw it", "seen by [name], then [name] saw it"),
        ("Miss Mary Jane Watson has melanoma", "[name] has melanoma"),
        ("Jane Doe, 45F: Jane Doe 45 F and Jane Doe, 95F", "[name], 45F: [name] 45 F and [name], over 89 F"),
        ("Mme Dupont biopsy, Herr Mueller, Frau Dr. Müller", "[name] biopsy, [name], [name]"),
        ("F94 with lymphoma", "F over 89 with lymphoma"),
        ("S21:12345 core", "[number] core"),
        ("Hosp # 45 67 89 mass", "Hosp # [number] mass"),
        ("31/12/99 and 12/31/1999 and 31/31/99", "[date] and [date] and 31/31/99"),
    ],
)
def test_decisions(text, masked):
    assert mask_identifiers(text)[0] == masked


@given(st.integers(1, 12), st.integers(1, 28), st.integers(1930, 2029), st.sampled_from("-/."))
def test_every_day_of_a_calendar_is_masked(month, day, year, separator):
    forms = [
        f"{year}{separator}{month:02}{separator}{day:02}",
        f"{day}{separator}{month}{separator}{year}",
        f"{month:02}{separator}{day:02}{separator}{year}",
        f"{day:02}{separator}{month:02}{separator}{year % 100:02}",
    ]
    for form in forms:
        assert mask_identifiers(f"Biopsy {form}, skin") == ("Biopsy [date], skin", {"date": 1})


@given(st.integers(0, 125))
def test_exactly_the_ages_over_89_are_masked(age):
    for form in ("{}-year-old woman", "{} yo F", "{} y/o", "aged {} with", "{}M,", "age: {},"):
        text = form.format(age)
        assert mask_identifiers(text) == ((text, {}) if age < 90 else (mask_identifiers(text)[0], {"age": 1}))
        assert (str(age) in mask_identifiers(text)[0]) == (age < 90)


@given(st.text(alphabet="Dr. JaneDo92yMF/-:@19305x", max_size=60))
def test_a_masked_text_is_masked_no_further_after_a_few_rounds(text):
    for _ in range(6):
        masked, _ = mask_identifiers(text)
        if masked == text:
            break
        text = masked
    assert mask_identifiers(text)[0] == text
