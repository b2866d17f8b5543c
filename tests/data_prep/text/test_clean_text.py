"""Captions come out as a person would have cleaned them, once and for all, in a time that grows with their length."""

import csv
import dataclasses
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.text.clean_text import CleanText, TextError, TextSettings, caption_key, clean_text

CAPTIONS = json.loads((Path(__file__).parent / "captions.json").read_text(encoding="utf-8"))
ANY = TextSettings(language="", questions="keep")


def test_there_are_fifty_captions_each_with_its_reason():
    assert len({case["raw"] for case in CAPTIONS}) == 50
    assert all(case["why"] for case in CAPTIONS)


@pytest.mark.parametrize("case", CAPTIONS, ids=lambda case: case["raw"][:30].encode("unicode_escape").decode())
def test_captions_written_by_hand(case):
    clean = clean_text(case["raw"], language=case["language"])
    assert (clean.caption, clean.reason) == (case["expected"], case["reason"]), case["why"]
    if not clean.reason:
        again = clean_text(clean.caption, language=case["language"])
        assert (again.caption, again.reason) == (clean.caption, "")


_WORDS = """
    #GIST #GIPath #pathology @jane via cc RT https://t.co/aB3dE5gH7j www.x.org pic.twitter.com/ab &amp;
    &amp;lt; <b> <br> &lt;b&gt; </b> < > CD20+ ( ) [ ] . ... … !!! ? ?! , ; : - -- --- • | * ** _ Dr.
    Jane Doe MD Patient: Name: March 3 2019 12/03/2019 92 yo F aged 95 MRN 1234567 S19-12345
    555-123-4567 a@b.org [date] over 89 Ã© â€™ 5 μm µ 😀 ➡️ ♀️ 1️⃣ 👩‍⚕️ ﬁ follow us like and share link
    in bio stock photo read more great case credit: photo courtesy of DM for thanks
    """
_SIGNS = [
    "\u200b",
    "\u202e",
    "\ufeff",
    "\ufffd",
    "e\u0301",
    "\U0001d5d5",
    "\uff03",
    "\uff20",
    "\x00",
    "\ud800",
    "\n.\n",
]
_PIECES = st.sampled_from([*_WORDS.split(), *_SIGNS, "'", '"', " ", "\n", "\t"])
_TEXTS = st.lists(_PIECES, max_size=14).flatmap(
    lambda pieces: st.sampled_from(["", " ", "\n"]).map(lambda joint: joint.join(pieces))
) | st.text(max_size=40)


@settings(max_examples=400, deadline=None)
@given(
    _TEXTS, st.sampled_from([ANY, TextSettings(language="", questions="keep", hashtags="unhash", mask_with="nothing")])
)
def test_a_clean_caption_is_clean(raw, chosen):
    clean = clean_text(raw, chosen)
    assert clean.reason != "unstable"
    again = clean_text(clean.caption, chosen)
    assert again.caption == clean.caption
    if not clean.reason:
        assert again.reason == ""
    clean.caption.encode("utf-8")
    assert clean.caption == " ".join(clean.caption.split())


def test_reasons_and_notes():
    assert clean_text("") == CleanText("", "empty", "nothing is left", {"words": 0})
    assert clean_text("x" * 20_001) == CleanText("", "too_long", "20001 characters > 20000")
    assert clean_text("a b " * 201, ANY).reason == "too_long"
    assert clean_text("a b " * 200, ANY).reason == ""
    assert clean_text("H&E", ANY).reason == "too_short"
    assert clean_text("seen by Dr. Doe", TextSettings(language="", min_words=3)).reason == "too_short"
    kept = clean_text("Nevus seen by Dr. Jane Doe on 12/03/2019 and 13/03/2019", language="en")
    assert kept.caption == "Nevus seen by [name] on [date] and [date]"
    assert kept.notes == {
        "masked_dates": 2,
        "masked_names": 1,
        "words": 5,
        "language": "en",
        "language_judge": "platform",
    }
    assert clean_text("Nevus, 12/03/2019", TextSettings(mask=False)).caption == "Nevus, 12/03/2019"


@pytest.mark.parametrize("mark", ["?", "？", "؟", "⁇", "❓", "‽", "؟!", "⁉️"])  # noqa: RUF001 # marks of other scripts
def test_questions(mark):
    text = f"What could this be{mark} Skin of the heel"
    assert clean_text(text, TextSettings(language="")).reason == "question"
    assert clean_text(text, ANY).reason == ""


def test_a_question_mark_of_a_link_is_none():
    assert clean_text("Nevus https://x.org/?id=7 of the heel", language="en") == CleanText(
        "Nevus of the heel", notes={"words": 4, "language": "en", "language_judge": "platform"}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hashtags": "keep"}, "expected one of trailing"),
        ({"questions": "ask"}, "expected one of drop, keep"),
        ({"mask_with": "star"}, "expected one of token"),
        ({"strip_all_hashtags": True}, "needs hashtags"),
        ({"min_words": 5, "max_words": 4}, "min <= max"),
        ({"language_threshold": 90.0}, "a probability"),
        ({"boilerplate": ("(",)}, "no regular expression"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(TextError, match=message):
        TextSettings(**changes)


def test_settings_are_added_to_the_tables():
    chosen = dataclasses.replace(ANY, topic_tags=("#MyClub",), boilerplate=(r"our lab presents:?",))
    assert clean_text("Our lab presents: schwannoma #myclub", chosen).caption == "schwannoma"
    assert clean_text("OUR LAB PRESENTS", chosen).reason == "boilerplate"


def test_caption_key():
    assert caption_key("Lobular CARCINOMA, (grade 2)!") == caption_key("lobular carcinoma grade 2")
    assert caption_key("ﬁbroma ①") == caption_key("FIBROMA 1")
    assert caption_key("Straße") == caption_key("STRASSE")
    assert caption_key("CD20") != caption_key("CD3")
    assert caption_key(" … ") == ""


# Each once took seconds or minutes, or is near to what did.
_HOSTILE = [
    *("👨\u200d", '"', "via @a ", "a.", "@a.", "<a b='", "&amp;", "#a#", "92-", "A. B ", "Jane ", "( ", " …", "!? "),
    *("\n.", "1 ", "Photo credit: ", "royalty free stock photo and "),
]


@pytest.mark.parametrize("unit", _HOSTILE, ids=lambda unit: unit.encode("unicode_escape").decode())
def test_hostile_text_takes_less_than_a_second(unit):
    text = (unit * 100_000)[:100_000]
    start = time.process_time()
    clean_text(text, TextSettings(max_characters=len(text), language=""))
    assert time.process_time() - start < 1


@pytest.mark.realdata
def test_captions_of_textbooks_keep_their_words(realdata):
    """Real captions have nothing to lose: no caption of the textbook is dropped or loses a tenth of its letters."""
    with (realdata / "openstax_histology" / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    column = next(name for name in rows[0] if "caption" in name.lower())
    for row in rows:
        clean = clean_text(row[column], ANY)
        assert clean.reason == ""
        assert len(caption_key(clean.caption)) > 0.9 * len(caption_key(row[column]))
