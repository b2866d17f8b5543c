import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_posts import x_posts
from write_x import v1_status

from data_prep.sources import x_v1
from data_prep.sources.post import Drop, Media, Post
from data_prep.sources.x_v1 import XV1Settings

STATUS = {
    "created_at": "Wed Oct 10 20:19:24 +0000 2018",
    "id": 1050118621198921728,
    "id_str": "1050118621198921728",
    "text": "Signet ring cells in a gastric biopsy, and the rest is cut o… https://t.co/x",
    "truncated": True,
    "extended_tweet": {
        "full_text": "Signet ring cells in a gastric biopsy, and the rest is not cut off #GIpath https://t.co/y",
        "display_text_range": [0, 73],
        "entities": {"hashtags": [{"text": "GIpath", "indices": [67, 74]}]},
        "extended_entities": {
            "media": [
                {"id": 3, "id_str": "3", "media_url_https": "https://pbs.twimg.com/media/A.jpg", "type": "photo"},
                {"id": 4, "id_str": "4", "media_url_https": "https://pbs.twimg.com/tweet_video_thumb/B.jpg"}
                | {"type": "animated_gif", "ext_alt_text": "a fly through"},
            ]
        },
    },
    "entities": {"hashtags": [], "media": [{"id_str": "9", "media_url_https": "https://wrong", "type": "photo"}]},
    "user": {"id": 6253282, "id_str": "6253282", "screen_name": "secretname", "protected": False},
    "in_reply_to_status_id": None,
    "favorite_count": 12,
    "lang": "en",
    "possibly_sensitive": True,
}


def read(tmp_path, *documents, settings=None):
    path = tmp_path / "stream.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return list(x_v1.read_posts(path, settings, source="twitter"))


def test_a_truncated_post_of_a_stream_field_by_field(tmp_path):
    assert read(tmp_path, STATUS) == [
        Post(
            id="1050118621198921728",
            media=(
                Media("3", "https://pbs.twimg.com/media/A.jpg"),
                Media("4", "https://pbs.twimg.com/tweet_video_thumb/B.jpg", kind="animation", alt_text="a fly through"),
            ),
            captions=("Signet ring cells in a gastric biopsy, and the rest is not cut off #GIpath https://t.co/y",),
            source="twitter",
            where="stream.jsonl line 1",
            author="6253282",
            created_at="2018-10-10T20:19:24Z",
            language="en",
            likes=12,
            sensitive=True,
            hashtags=("GIpath",),
            permalink="https://x.com/i/web/status/1050118621198921728",
        )
    ]


def test_the_three_envelopes_give_the_same_posts(tmp_path):
    statuses = [{"id_str": str(number), "full_text": f"text {number}"} for number in (1, 2, 3)]
    line_by_line = read(tmp_path, *statuses)
    assert [post.captions for post in line_by_line] == [("text 1",), ("text 2",), ("text 3",)]
    for envelope in (statuses, {"statuses": statuses, "search_metadata": {"count": 3}}):
        found = read(tmp_path, envelope)
        assert [dataclasses.replace(post, where="") for post in found] == [
            dataclasses.replace(post, where="") for post in line_by_line
        ]
    assert found[2].where == "stream.jsonl line 1 post 3"


def test_reposts_and_quotes_bring_the_post_they_hold(tmp_path):
    inner = {"id_str": "1", "full_text": "the image"}
    items = read(
        tmp_path,
        {"id_str": "2", "full_text": "RT @a: the image", "retweeted_status": inner},
        {"id_str": "3", "full_text": "look", "quoted_status": inner, "is_quote_status": True},
        {"id_str": "4", "full_text": "gone", "quoted_status_id_str": "7"},
        {"id_str": "5", "full_text": "both", "quoted_status_id_str": "7", "in_reply_to_status_id": 8},
    )
    assert [(post.id, post.kind, post.reply_to) for post in items] == [
        ("2", "repost", "1"),
        ("1", "original", ""),
        ("3", "quote", ""),
        ("1", "original", ""),
        ("4", "quote", ""),
        ("5", "reply", "8"),
    ]


@pytest.mark.parametrize(
    ("written", "start", "expected"),
    [
        ("@one @two agreed @three", 10, "agreed @three"),
        ("see @one agreed", 9, "see @one agreed"),  # more than names stands before
        ("@one agreed", 0, "@one agreed"),
        ("@one agreed", 99, "@one agreed"),
        ("@one agreed", "5", "@one agreed"),
    ],
)
def test_the_names_before_a_reply_are_left_out(tmp_path, written, start, expected):
    status = {"id_str": "2", "full_text": written, "display_text_range": [start, 20], "in_reply_to_status_id_str": "1"}
    assert read(tmp_path, status)[0].captions == (expected,)
    assert read(tmp_path, status, settings=XV1Settings(strip_reply_mentions=False))[0].captions == (written,)
    assert read(tmp_path, {**status, "in_reply_to_status_id_str": None})[0].captions == (written,)


@pytest.mark.parametrize(
    "withheld",
    [
        {"withheld_in_countries": ["DE"]},
        {"withheld_copyright": True},
        {"user": {"withheld_in_countries": ["DE"]}},
        {"user": {"protected": True}},
    ],
)
def test_withheld_and_protected_posts_are_marked(tmp_path, withheld):
    plain = {"id_str": "1", "text": "x", "withheld_in_countries": [], "user": {"id": 4, "protected": False}}
    posts = [post for post in read(tmp_path, plain, {**plain, **withheld}) if post.kind == "original"]
    assert [post.withheld for post in posts] == [False, True]


def test_a_protected_author_is_told_for_the_other_posts(tmp_path):
    status = {"id_str": "1", "text": "x", "user": {"id": 4, "protected": True}}
    told = [(one.kind, one.author) for one in read(tmp_path, status, {**status, "id_str": "2"})]
    assert told == [("departure", "4"), ("original", "4"), ("original", "4")]


def test_the_lines_of_a_stream_that_are_no_posts(tmp_path):
    items = read(
        tmp_path,
        {"delete": {"status": {"id": 1234, "id_str": "1234", "user_id": 3}}},
        {"delete": {"status": {"id": 1235}}},
        {"status_withheld": {"id": 1236, "user_id": 4, "withheld_in_countries": ["DE"]}},
        {"scrub_geo": {"user_id": 14090452, "up_to_status_id": 23260136625}},
        {"limit": {"track": 1234}},
        {"user_unsuspend": {"id": 123456}},
        {"disconnect": {"code": 4}},
        {"delete": {"status": {}}},
        {"something": "new"},
    )
    assert [(item.kind, item.id) for item in items[:3]] == [
        ("deletion", "1234"),
        ("deletion", "1235"),
        ("deletion", "1236"),
    ]
    assert [(item.reason, item.where[-6:]) for item in items[3:]] == [
        ("not_a_post", "line 4"),
        ("not_a_post", "line 5"),
        ("not_a_post", "line 6"),
        ("not_a_post", "line 7"),
        ("malformed", "line 8"),
        ("not_a_post", "line 9"),
    ]


@settings(max_examples=60, deadline=None)  # the first example pays for imports
@given(posts=st.lists(x_posts(versions=False, conversations=False), max_size=4))
def test_what_is_written_is_read(tmp_path_factory, posts):
    found = read(tmp_path_factory.mktemp("x"), *[v1_status(dataclasses.replace(post, source="")) for post in posts])
    found = [dataclasses.replace(item, where="", source="x") for item in found if not item.where.endswith("_status")]
    assert found == posts


@settings(max_examples=200, deadline=None)  # the first example pays for imports
@given(data=st.data())
def test_no_value_anywhere_raises(tmp_path_factory, data):
    values = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([]) | st.just([1]) | st.just({})
    status = json.loads(json.dumps({**STATUS, "retweeted_status": {**STATUS, "id_str": "7"}}))
    for _ in range(data.draw(st.integers(1, 3))):
        holder = status
        while True:
            key = data.draw(st.sampled_from(sorted(holder)))
            if not isinstance(holder[key], dict) or not holder[key] or data.draw(st.booleans()):
                break
            holder = holder[key]
        holder[key] = data.draw(values)
    items = read(tmp_path_factory.mktemp("x"), status)
    assert all(isinstance(item, Post | Drop) and item.where for item in items)
