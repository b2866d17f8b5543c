"""Random JSON, and valid posts with something in them replaced by it: a reader answers with posts and drops alone."""

import copy
import dataclasses
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from write_instagram import graphql_page, instaloader_node, mobile_page
from write_tables import reddit_submission

from data_prep.curation.rows import decode_row, encode_row
from data_prep.sources.post import KINDS, MEDIA_KINDS, Drop, Media, Post
from data_prep.sources.table import SOURCES

SECRET = "Xyzzy"
"""Stands in every caption, name and address of the valid posts; no drop may show it."""

MEDIA = tuple(Media(str(n), f"https://{SECRET}.example/{n}.jpg") for n in range(3))
INSTAGRAM = Post("Cbu", MEDIA, (f"{SECRET} #tag",), author="77", created_at="2021-03-04T05:06:07Z", likes=3)
REDDIT = dataclasses.replace(
    INSTAGRAM, captions=(f"{SECRET}\n\n{SECRET}",), author=SECRET, permalink="https://www.reddit.com/r/x/"
)

VALID = {
    "instagram": graphql_page([INSTAGRAM, dataclasses.replace(INSTAGRAM, media=MEDIA[:1])]),
    "instaloader": instaloader_node(INSTAGRAM),
    "instagram_mobile": mobile_page([INSTAGRAM, dataclasses.replace(INSTAGRAM, media=MEDIA[:1])]),
    "reddit": reddit_submission(REDDIT) | {"preview": {"images": [{"source": {"url": MEDIA[0].url}}]}},
    "figures": {"id": 1, "article_id": SECRET, "figure_id": "2", "caption": SECRET, "image": f"{SECRET}.png"},
    "ipath": {"id": 1, "caption": SECRET, "image": f"{SECRET}.png", "post_id": "7"},
}

FIELD_NAMES = sorted({name for document in VALID.values() for name in re.findall(r'"(\w+)":', json.dumps(document))})
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["https://x.example/a.jpg", "GraphImage", 1, 2, 8]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELD_NAMES), inner, max_size=4),
    max_leaves=12,
)


def places(value, place=()):
    """All places in a document at which something stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*place, key)
        yield from places(one, (*place, key))


def replaced(document, place, value):
    document = copy.deepcopy(document)
    inside = document
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return document


def check(found):
    """What every reader's answer must be, whatever it read."""
    assert type(found) in (Post, Drop)
    assert decode_row(type(found), encode_row(found)) == found
    found.id.encode()
    assert found.where
    if isinstance(found, Drop):
        assert found.reason
        assert SECRET not in str(found)
        return
    assert found.id
    assert found.kind in KINDS
    assert found.created_at == "" or re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found.created_at)
    assert 0 <= found.version < 2**63
    assert found.likes is None or 0 <= found.likes < 2**63
    assert all(isinstance(caption, str) for caption in found.captions)
    assert len({one.key for one in found.media}) == len(found.media)
    for one in found.media:
        assert one.kind in MEDIA_KINDS
        assert one.kind != "photo" or bool(one.url) != bool(one.path)
        assert one.url == "" or re.match("https?://", one.url, re.IGNORECASE)


def read(kind, folder, documents):
    path = folder / "t.jsonl"
    path.write_text("".join(f"{json.dumps(one)}\n" for one in documents))
    return list(SOURCES[kind].read(path, SOURCES[kind].settings(), source="s"))


@pytest.mark.parametrize("kind", VALID)
def test_the_valid_posts_are_read(tmp_path, kind):
    found = read(kind, tmp_path, [VALID[kind]])
    assert {type(one) for one in found} == {Post}
    for one in found:
        check(one)


@pytest.mark.parametrize("kind", VALID)
def test_random_json(tmp_path_factory, kind):
    folder = tmp_path_factory.mktemp(kind)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.dictionaries(st.sampled_from(FIELD_NAMES), JSON, max_size=4), min_size=1, max_size=3))
    def run(documents):
        for found in read(kind, folder, documents):
            check(found)

    run()


@pytest.mark.parametrize("kind", VALID)
def test_a_valid_post_with_something_replaced(tmp_path_factory, kind):
    folder, everywhere = tmp_path_factory.mktemp(kind), sorted(places(VALID[kind]), key=str)

    @settings(max_examples=120, deadline=None)
    @given(st.sampled_from(everywhere), JSON)
    def run(place, value):
        found = read(kind, folder, [replaced(VALID[kind], place, value), VALID[kind] | {"id": 2}])
        for one in found:
            check(one)
        assert isinstance(found[-1], Post)  # the whole one behind it is read all the same

    run()


@pytest.mark.parametrize("kind", VALID)
@pytest.mark.parametrize("value", [None, [], {}, SECRET, 7, True])
def test_each_place_in_turn_takes_each_kind_of_value(tmp_path, kind, value):
    for place in places(VALID[kind]):
        for one in read(kind, tmp_path, [replaced(VALID[kind], place, value)]):
            check(one)
