import datetime
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.sources.fields import (
    MalformedError,
    count,
    encodable,
    expect_cell,
    expect_mapping,
    find_hashtags,
    find_keys,
    identifier,
    unique_keys,
    utc_time,
    web_address,
    whole_number,
)
from data_prep.sources.post import Drop, Media, Post

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("#dermpath and #GIPath!", ("dermpath", "GIPath")),
        ("#dermpath #Dermpath #dermpath", ("dermpath", "Dermpath")),
        ("case #1, #2b", ("2b",)),
        ("a&#39;s page#top https://x.example/#here", ()),
        ("#病理 #pâté_de_foie (#ki67)", ("病理", "pâté_de_foie", "ki67")),
        ("##twice # alone #", ("twice",)),
        ("＃wide", ("wide",)),  # noqa: RUF001 # the fullwidth sign is what is tested
    ],
)
def test_hashtags(text, tags):
    assert find_hashtags(text) == tags


def test_whole_numbers_ids_and_counts():
    assert [whole_number(v) for v in (7, 7.0, "7", "-7")] == [7, 7, 7, -7]
    assert [whole_number(v) for v in (True, 7.5, float("nan"), "7.0", " 7", "", None, [], "٣")] == [None] * 9
    assert [identifier(v) for v in (0, 17, " a1 ", "x" * 513, "a\nb", "\ud800", True, -1, None, {})] == (
        ["0", "17", "a1", *[""] * 7]
    )
    assert [count(v) for v in (0, 3, "4", -1, 2**63, None, True)] == [0, 3, 4, None, None, None, None]


@pytest.mark.parametrize("value", [None, 0, -1, True, "", "soon", [], float("inf"), 253_402_300_800, 10**400])
def test_what_is_no_time_is_none(value):
    assert utc_time(value) == ""


@given(st.integers(1, 253_402_300_799))
def test_times_are_those_of_datetime(seconds):
    epoch = datetime.datetime(1970, 1, 1)
    assert utc_time(seconds) == f"{(epoch + datetime.timedelta(seconds=seconds)).isoformat()}Z"
    assert utc_time(str(seconds)) == utc_time(seconds)


def test_a_time_with_a_fraction_is_cut():
    assert utc_time(1_614_834_367.9) == "2021-03-04T05:06:07Z"


@pytest.mark.parametrize(
    ("value", "address"),
    [
        (" https://x.example/a.jpg?b=1&c ", "https://x.example/a.jpg?b=1&c"),
        ("HTTP://x.example", "HTTP://x.example"),
        ("//x.example/a.jpg", ""),
        ("file:///etc/passwd", ""),
        ("https:///a.jpg", ""),
        ("https://x.example/a b", ""),
        ("https://x.example/a\nb", ""),
        ("https://x.example/" + "a" * 9000, ""),
        (None, ""),
        ({"url": "https://x.example"}, ""),
    ],
)
def test_web_addresses(value, address):
    assert web_address(value) == address


def test_cells():
    assert [expect_cell(v, "x") for v in (None, float("nan"), 3.0, 3.5, 12, " a ")] == ["", "", "3", "3.5", "12", "a"]
    for value in (True, [], {}):
        with pytest.raises(MalformedError, match=r"^x: expected a text or a number, got "):
            expect_cell(value, "x")


def test_errors_name_the_field_and_not_its_value():
    with pytest.raises(MalformedError) as caught:
        expect_mapping("Dr. Secret", "owner")
    assert str(caught.value) == "owner: expected an object, got a text"


def _find_by_recursion(value, names):
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in names:
                yield key, inner
            else:
                yield from _find_by_recursion(inner, names)
    elif isinstance(value, list):
        for inner in value:
            yield from _find_by_recursion(inner, names)


@given(st.recursive(st.integers(), lambda x: st.lists(x) | st.dictionaries(st.sampled_from("abcd"), x), max_leaves=20))
def test_find_keys_is_the_recursion(document):
    assert list(find_keys(document, ("a", "b"))) == list(_find_by_recursion(document, ("a", "b")))


def test_find_keys_reaches_any_depth():
    deep = {"a": 1}
    for _ in range(10_000):
        deep = {"x": [deep]}
    assert list(find_keys(deep, ("a",))) == [("a", 1)]


@given(JSON)
def test_whatever_comes_gives_a_value_of_the_right_kind(value):
    assert isinstance(identifier(value), str)
    assert isinstance(utc_time(value), str)
    assert isinstance(web_address(value), str)
    assert count(value) is None or count(value) >= 0
    json.dumps(identifier(value)).encode("utf-8")
    identifier(value).encode("utf-8")  # a lone surrogate would raise


def test_lone_surrogates_become_replacement_characters_everywhere():
    broken = Post(
        "a\ud800", (Media("3_\ud800", "https://h/\udfff"), Media("3_\udc00")), ("b\ud83d c",), hashtags=("d\udfff",)
    )
    assert encodable(broken) == Post(
        "a\ufffd", (Media("3_\ufffd", "https://h/\ufffd"), Media("1")), ("b\ufffd c",), hashtags=("d\ufffd",)
    )
    assert encodable(Drop("malformed", "\ud800.json", "e\ud800")) == Drop("malformed", "\ufffd.json", "e\ufffd")


@given(st.builds(Post, st.text(), captions=st.tuples(st.text()), licence=st.text(), likes=st.none() | st.integers()))
def test_what_can_be_encoded_stays(post):
    assert encodable(post) == post


def test_a_key_that_is_missing_is_a_number_not_used():
    assert unique_keys(["", "7", "", ""]) == ["0", "7", "2", "3"]
    assert unique_keys(["1", "", ""]) == ["1", "2", "3"]
    assert unique_keys(["a", "a", "1"]) == ["a", "2", "1"]
