import dataclasses
import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_posts import x_posts
from write_x import flat_v2, v2_page

from data_prep.sources import x_v2
from data_prep.sources.post import Drop, Media, Post

PAGE = {
    "data": [
        {
            "id": "1402000000000000001",
            "text": "Signet ring cells #GIpath https://t.co/x",
            "author_id": "11",
            "conversation_id": "1402000000000000001",
            "created_at": "2021-06-07T21:00:00.000Z",
            "lang": "en",
            "possibly_sensitive": False,
            "public_metrics": {"like_count": 7, "retweet_count": 1},
            "attachments": {"media_keys": ["3_2", "3_1", "7_9"]},
            "entities": {"hashtags": [{"start": 18, "end": 25, "tag": "GIpath"}]},
        },
        {
            "id": "1402000000000000002",
            "text": "Diffuse type",
            "author_id": "12",
            "conversation_id": "1402000000000000001",
            "in_reply_to_user_id": "11",
            "referenced_tweets": [{"type": "replied_to", "id": "1402000000000000001"}],
            "lang": "qme",
            "withheld": {"copyright": False, "country_codes": ["FR"]},
        },
        {
            "id": "1402000000000000003",
            "text": "RT @someone: Signet",
            "referenced_tweets": [{"type": "retweeted", "id": "1402000000000000009"}],
        },
        {
            "id": "1402000000000000006",
            "text": "now with margin",
            "edit_history_tweet_ids": ["1402000000000000004", "1402000000000000005", "1402000000000000006"],
            "conversation_id": "1402000000000000004",
            "possibly_sensitive": True,
            "referenced_tweets": [{"type": "quoted", "id": "1402000000000000001"}],
        },
    ],
    "includes": {
        "media": [
            {"media_key": "3_1", "type": "photo", "url": "https://pbs.twimg.com/media/A.jpg", "alt_text": "cells"},
            {"media_key": "3_2", "type": "photo", "url": "https://pbs.twimg.com/media/B.png"},
            {"media_key": "7_9", "type": "video", "preview_image_url": "https://pbs.twimg.com/v/C.jpg"},
        ],
        "users": [{"id": "11", "username": "somebody"}, {"id": "12", "username": "x", "protected": True}],
        "tweets": [
            {"id": "1402000000000000009", "text": "Signet", "author_id": "12", "attachments": {"media_keys": ["3_7"]}}
        ],
    },
    "errors": [
        {
            "value": "1402000000000000008",
            "resource_id": "1402000000000000008",
            "resource_type": "tweet",
            "parameter": "referenced_tweets.id",
            "detail": "Could not find tweet",
            "type": "https://api.twitter.com/2/problems/resource-not-found",
        },
        {
            "value": "secretname",
            "resource_type": "user",
            "detail": "Could not find user with username: [secretname]",
            "type": "https://api.twitter.com/2/problems/resource-not-found",
        },
    ],
    "meta": {"result_count": 4},
}


def read(tmp_path, *documents, source="twitter"):
    path = tmp_path / "page3.json"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return list(x_v2.read_posts(path, source=source))


def test_a_page_field_by_field(tmp_path):
    protected, first, reply, repost, edited, included, gone, other = read(tmp_path, PAGE)
    assert first == Post(
        id="1402000000000000001",
        media=(
            Media("3_2", "https://pbs.twimg.com/media/B.png"),
            Media("3_1", "https://pbs.twimg.com/media/A.jpg", alt_text="cells"),
            Media("7_9", "https://pbs.twimg.com/v/C.jpg", kind="video"),
        ),
        captions=("Signet ring cells #GIpath https://t.co/x",),
        source="twitter",
        where="page3.json line 1 post 1",
        conversation_id="1402000000000000001",
        author="11",
        created_at="2021-06-07T21:00:00Z",
        language="en",
        likes=7,
        hashtags=("GIpath",),
        permalink="https://x.com/i/web/status/1402000000000000001",
    )
    assert (reply.kind, reply.reply_to, reply.language, reply.likes) == ("reply", "1402000000000000001", "und", None)
    assert reply.withheld
    assert (repost.kind, repost.reply_to) == ("repost", "1402000000000000009")
    assert (edited.kind, edited.first_version, edited.version) == ("quote", "1402000000000000004", 2)
    assert edited.sensitive
    assert (included.id, included.media) == ("1402000000000000009", (Media("3_7"),))
    assert included.where == "page3.json line 1 included post 1"
    assert included.withheld  # its author's posts are protected
    assert (protected.kind, protected.author, protected.withheld) == ("departure", "12", True)
    assert (gone.kind, gone.id) == ("deletion", "1402000000000000008")
    assert (other.reason, other.detail) == ("api_error", "resource-not-found")


def test_a_lookup_of_one_post_and_an_empty_page(tmp_path):
    single = {"data": {"id": "20", "text": "just", "withheld": {"country_codes": ["FR"]}}}
    assert [(post.id, post.withheld) for post in read(tmp_path, single, {"meta": {"result_count": 0}})] == [
        ("20", True)
    ]


def test_a_flattened_post_carries_its_references(tmp_path):
    inner = {
        "type": "replied_to",
        "id": "31",
        "text": "the image",
        "attachments": {"media": [{"media_key": "3_5", "type": "photo", "url": "https://pbs.twimg.com/media/D.jpg"}]},
        "author": {"id": "41", "username": "u"},
        "referenced_tweets": [{"type": "quoted", "id": "30"}],
    }
    outer = {"id": "32", "text": "an answer", "author": {"id": "42"}, "referenced_tweets": [inner]}
    reply, parent = read(tmp_path, outer)
    assert (reply.id, reply.kind, reply.reply_to, reply.author) == ("32", "reply", "31", "42")
    assert (parent.id, parent.kind, parent.author) == ("31", "quote", "41")
    assert parent.media == (Media("3_5", "https://pbs.twimg.com/media/D.jpg"),)
    assert parent.where == "page3.json line 1 reference 1"


def test_a_long_post_is_read_whole(tmp_path):
    note = {"text": "the whole of it", "entities": {"hashtags": [{"tag": "late"}]}}
    (post,) = read(tmp_path, {"id": "1", "text": "the wh…", "note_tweet": note, "entities": {"hashtags": []}})
    assert post.captions == ("the whole of it",)
    assert post.hashtags == ("late",)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"conversation_id": "7"}, "reply"),
        ({"conversation_id": "1"}, "original"),
        ({"conversation_id": "1", "in_reply_to_user_id": "9"}, "original"),
        ({"in_reply_to_user_id": "9"}, "reply"),
        ({}, "original"),
        ({"referenced_tweets": [{"type": "quoted", "id": "3"}, {"type": "replied_to", "id": "4"}]}, "reply"),
    ],
)
def test_kinds_where_the_dump_asked_for_few_fields(tmp_path, fields, expected):
    assert read(tmp_path, {"id": "1", "text": "x", **fields})[0].kind == expected


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"id": "5", "action": "delete", "created_at": "2019-10-29T17:02:47.000Z", "reason": "suspended"}, "5"),
        ({"id": "5", "action": "scrub_geo", "reason": "scrub_geo"}, None),
        ({"data": {"delete": {"tweet": {"id": "5", "author_id": "6"}, "event_at": "2021-07-06T18:40:40.000Z"}}}, "5"),
        ({"data": {"withheld": {"tweet": {"id": "5"}, "withheld_in_countries": ["XY"]}}}, "5"),
        ({"data": {"user_unprotect": {"user": {"id": "5"}}}}, None),
        ({"data": {"undrop": {"tweet": {"id": "5"}}}}, None),
        ({"hello": 1}, None),
    ],
)
def test_events(tmp_path, event, expected):
    (item,) = read(tmp_path, event)
    if expected is None:
        assert (item.reason, item.where) == ("not_a_post", "page3.json line 1")
    else:
        assert (item.kind, item.id, item.media) == ("deletion", expected, ())


@pytest.mark.parametrize(
    ("event", "hides"),
    [
        ({"data": {"user_delete": {"user": {"id": "5"}, "event_at": "2021-07-06T18:40:40.000Z"}}}, False),
        ({"user_delete": {"id": 5}}, False),
        ({"data": {"user_suspend": {"user": {"id": "5"}}}}, False),
        ({"data": {"user_protect": {"user": {"id": "5"}}}}, True),
    ],
)
def test_an_author_who_leaves_is_told_once_a_file_without_being_named_in_an_id(tmp_path, event, hides):
    (item,) = read(tmp_path, event, event)
    assert item == Post(
        "page3.json line 1", source="twitter", where="page3.json line 1", kind="departure", author="5", withheld=hides
    )


def test_broken_posts_are_named_and_cost_no_other(tmp_path):
    page = {"data": [{"id": "1", "text": "a"}, {"id": "2"}, {"text": "secret"}, "x", None, {"id": "6", "text": "b"}]}
    items = read(tmp_path, page)
    assert [item.id for item in items if isinstance(item, Post)] == ["1", "6"]
    bad = [item for item in items if isinstance(item, Drop)]
    assert [(one.reason, one.where, one.id) for one in bad] == [
        ("malformed", "page3.json line 1 post 2", "2"),
        ("malformed", "page3.json line 1 post 3", ""),
        ("malformed", "page3.json line 1 post 4", ""),
        ("malformed", "page3.json line 1 post 5", ""),
    ]


def without_place(items):
    return [dataclasses.replace(item, where="") for item in items]


@settings(max_examples=60, deadline=None)  # the first example pays for imports
@given(posts=st.lists(x_posts(), max_size=4, unique_by=lambda post: post.id), packed=st.booleans())
def test_what_is_written_is_read(tmp_path_factory, posts, packed):
    path = tmp_path_factory.mktemp("x") / "page.json"
    pages, lines = [v2_page(posts)], [flat_v2(post) for post in posts]
    for documents in (pages, lines):
        data = "".join(json.dumps(document) + "\n" for document in documents).encode()
        path.write_bytes(gzip.compress(data) if packed else data)
        found = without_place(x_v2.read_posts(path, source="x"))
        assert sorted(found, key=lambda post: post.id) == sorted(posts, key=lambda post: post.id)


def test_included_posts_are_written_and_read(tmp_path):
    post = Post(
        "20", captions=("a",), source="twitter", conversation_id="20", permalink="https://x.com/i/web/status/20"
    )
    other = dataclasses.replace(post, id="21", conversation_id="21", permalink="https://x.com/i/web/status/21")
    assert without_place(read(tmp_path, v2_page([post], included=[other]))) == [
        dataclasses.replace(post, language=""),
        dataclasses.replace(other, language=""),
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def places_of(value, path=()):
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places_of(inner, (*path, key))


@settings(max_examples=300, deadline=None)  # the first example pays for imports
@given(data=st.data())
def test_no_value_anywhere_raises(tmp_path_factory, data):
    page = json.loads(json.dumps(PAGE))
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from([place for place in places_of(page) if place]))
        holder = page
        for key in way:
            holder = holder[key]
        holder[last] = data.draw(JSON)
    items = read(tmp_path_factory.mktemp("x"), page)
    assert all(isinstance(item, Post | Drop) and item.where for item in items)
    assert not any("secretname" in item.detail for item in items if isinstance(item, Drop))
