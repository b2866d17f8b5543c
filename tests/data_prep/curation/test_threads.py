import collections
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.curation.pair import Decision
from data_prep.curation.threads import ThreadSettings, ThreadSettingsError, judge_post, pair_thread
from data_prep.sources.post import Media, Post

IMAGE = Media("3_1", "https://pbs.twimg.com/media/A.jpg")
OTHER = Media("3_2", "https://pbs.twimg.com/media/B.jpg")
VIDEO = Media("7_1", "https://pbs.twimg.com/v/C.jpg", kind="video")
ROOT = Post(
    "1",
    media=(IMAGE, OTHER),
    captions=("signet ring cells #GIpath",),
    source="twitter",
    conversation_id="1",
    author="a1",
    created_at="2021-03-04T05:06:07Z",
    language="en",
    permalink="https://x.com/i/web/status/1",
)


def reply(post_id, likes=None, to="1", **fields):
    values = {"captions": (f"text {post_id}",), "created_at": "2021-03-05T00:00:00Z", "author": f"b{post_id}", **fields}
    return Post(post_id, source="twitter", kind="reply", reply_to=to, conversation_id="1", likes=likes, **values)


def ends(posts, **choices):
    """The ids of the pairs, and what became of the posts."""
    pairs, decisions = pair_thread(posts, ThreadSettings(**choices))
    return [pair.id for pair in pairs], {(one.post_id or one.id): one.reason for one in decisions}


ROOT_PAIRS = ["twitter:1:3_1", "twitter:1:3_2"]


def test_the_most_liked_reply_makes_a_second_pair_of_each_image():
    pairs, decisions = pair_thread([reply("3", 2), ROOT, reply("2", 5), reply("4")], ThreadSettings())
    assert [pair.id for pair in pairs] == [*ROOT_PAIRS, "twitter:2:3_1", "twitter:2:3_2"]
    first, second = pairs[1], pairs[3]
    assert (first.source, first.raw_text, first.url) == ("twitter", "signet ring cells #GIpath", OTHER.url)
    assert (first.post_id, first.image_post_id, first.author, first.image_author) == ("1", "1", "a1", "a1")
    assert (second.source, second.raw_text, second.url) == ("twitter_reply", "text 2", OTHER.url)
    assert (second.post_id, second.image_post_id, second.author, second.image_author) == ("2", "1", "b2", "a1")
    assert {pair.conversation_id for pair in pairs} == {"twitter:1"}
    assert decisions == [
        Decision("post", f"twitter:{one}", "twitter", "thread", "not_most_liked", "2 is", None, one, f"b{one}")
        for one in ("3", "4")
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"created_at": "2021-03-05T00:00:00Z"}, {"created_at": "2021-03-05T00:00:01Z"}),
        ({"created_at": "2021-03-05T00:00:00Z"}, {"created_at": ""}),
        ({"likes": 0, "created_at": "2021-03-04T00:00:00Z"}, {"likes": None}),
        ({"likes": 1, "created_at": "2021-03-09T00:00:00Z"}, {"likes": None}),
    ],
)
def test_of_equally_liked_replies_the_earlier_wins(one, other):
    replies = [reply("99", **{"likes": 3, **one}), reply("2", **{"likes": 3, **other})]
    assert ends([ROOT, *replies])[1] == {"2": "not_most_liked"}


def test_then_the_lesser_id_wins_as_a_number():
    assert ends([ROOT, reply("10", 3), reply("9", 3)])[1] == {"10": "not_most_liked"}


@pytest.mark.parametrize(
    ("fields", "choices", "expected"),
    [
        ({"captions": (" \n",)}, {}, "no_text"),
        ({"captions": ()}, {}, "no_text"),
        ({"likes": 2}, {"min_reply_likes": 3}, "too_few_likes"),
        ({}, {"min_reply_likes": 1}, "too_few_likes"),
        ({"author": "a1"}, {"self_replies": False}, "self_reply"),
        ({}, {"replies": "none"}, "reply"),
        ({}, {"hashtags": ("gipath",), "replies_need_hashtag": True}, "no_hashtag"),
        ({"to": "77"}, {}, "no_image_in_thread"),
        ({"to": ""}, {"reply_scope": "conversation"}, "no_image_in_thread"),
        ({"sensitive": True}, {}, "sensitive"),
        ({"media": (VIDEO,), "to": "2"}, {}, "no_image_in_thread"),
        ({"created_at": "2023-01-01T00:00:00Z"}, {"end_date": "2022-11-15"}, "outside_dates"),
    ],
)
def test_replies_that_do_not_count(fields, choices, expected):
    assert ends([ROOT, reply("2", **fields)], **choices) == (ROOT_PAIRS, {"2": expected})


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        ({"author": "a1"}, {}),
        ({}, {"hashtags": ("GIPATH",)}),
        ({"likes": 3}, {"min_reply_likes": 3}),
        ({"author": "", "image_author": ""}, {"self_replies": False}),
    ],
)
def test_replies_that_count(fields, choices):
    root = dataclasses.replace(ROOT, author=fields.pop("image_author", "a1"))
    assert ends([root, reply("2", **fields)], **choices) == ([*ROOT_PAIRS, "twitter:2:3_1", "twitter:2:3_2"], {})


def test_a_reply_with_its_own_image_pairs_with_that_one():
    own = reply("2", 100, media=(Media("3_9", "https://pbs.twimg.com/media/D.jpg"),))
    posts = [ROOT, own, reply("3"), reply("4", to="2")]
    assert ends(posts) == ([*ROOT_PAIRS, "twitter:2:3_9", "twitter:3:3_1", "twitter:3:3_2", "twitter:4:3_9"], {})
    assert [pair.source for pair in pair_thread(posts, ThreadSettings())[0]] == [
        *("twitter", "twitter", "twitter", "twitter_reply", "twitter_reply", "twitter_reply")
    ]


def test_a_reply_to_a_reply_describes_the_image_only_where_the_conversation_counts():
    posts = [ROOT, reply("2", 1), reply("3", 9, to="2")]
    assert ends(posts)[1] == {"3": "no_image_in_thread"}
    assert ends(posts, reply_scope="conversation")[1] == {"2": "not_most_liked"}
    circle = [reply("2", to="3"), reply("3", to="2"), reply("4", to="4")]
    for scope in ("direct", "conversation"):
        assert ends(circle, reply_scope=scope) == ([], dict.fromkeys("234", "no_image_in_thread"))


def test_a_reply_to_a_post_that_does_not_count_has_no_image():
    root = dataclasses.replace(ROOT, sensitive=True)
    assert ends([root, reply("2")]) == ([], {"1": "sensitive", "2": "no_image_in_thread"})


def test_an_edited_post_pairs_once_and_replies_to_any_version_find_it():
    edited = dataclasses.replace(ROOT, id="5", first_version="1", version=1, captions=("new",))
    pairs, decisions = pair_thread([reply("2", 4), ROOT, edited, reply("6", 3, to="5")], ThreadSettings())
    assert [pair.id for pair in pairs] == ["twitter:2:3_1", "twitter:2:3_2", "twitter:5:3_1", "twitter:5:3_2"]
    assert {pair.image_post_id for pair in pairs} == {"5"}
    assert {one.post_id: one.reason for one in decisions} == {"1": "superseded", "6": "not_most_liked"}
    gone = Post("1", source="twitter", kind="deletion", conversation_id="1")
    pairs, decisions = pair_thread([reply("2", 4), ROOT, edited, gone], ThreadSettings())
    assert pairs == []
    assert sorted(one.reason for one in decisions) == ["deleted", "deleted", "deletion_notice", "no_image_in_thread"]


def test_a_table_may_give_an_image_several_texts():
    row = Post("f1", media=(Media("0", path="f1.jpg"),), captions=("one", "", "three"), source="figures", group_id="g")
    pairs, decisions = pair_thread([row], ThreadSettings())
    assert [(pair.id, pair.raw_text, pair.path, pair.given_group) for pair in pairs] == [
        ("figures:f1:0", "one", "f1.jpg", "g"),
        ("figures:f1:0#2", "", "f1.jpg", "g"),
        ("figures:f1:0#3", "three", "f1.jpg", "g"),
    ]
    assert decisions == []
    (bare,), _ = pair_thread([dataclasses.replace(row, captions=())], ThreadSettings())
    assert (bare.id, bare.raw_text) == ("figures:f1:0", "")


@pytest.mark.parametrize(
    ("role", "expected"), [("", "openpath"), ("tweet", "openpath"), ("reply", "openpath_reply"), ("laion", "laion")]
)
def test_the_role_that_a_source_gives_names_the_pairs(role, expected):
    row = Post("1", media=(IMAGE,), source="openpath", role=role)
    assert [pair.source for pair in pair_thread([row], ThreadSettings())[0]] == [expected]


def test_an_image_without_an_address_ends_its_pair_alone():
    root = dataclasses.replace(ROOT, media=(IMAGE, Media("3_8"), VIDEO))
    pairs, decisions = pair_thread([root], ThreadSettings())
    assert [pair.id for pair in pairs] == ["twitter:1:3_1"]
    assert [(one.unit, one.id, one.stage, one.reason) for one in decisions] == [
        ("pair", "twitter:1:3_8", "thread", "no_address")
    ]
    kinds = ThreadSettings(media_kinds=("photo", "video"))
    assert [pair.id for pair in pair_thread([root], kinds)[0]] == ["twitter:1:3_1", "twitter:1:7_1"]


@pytest.mark.parametrize(
    ("fields", "choices", "expected"),
    [
        ({}, {}, None),
        ({"kind": "repost"}, {}, "repost"),
        ({"kind": "repost"}, {"drop_reposts": False}, None),
        ({"sensitive": True}, {"drop_sensitive": False}, None),
        ({"withheld": True}, {}, "withheld"),
        ({"withheld": True}, {"drop_withheld": False}, None),
        ({"kind": "quote"}, {}, None),
        ({"kind": "quote"}, {"quotes": "drop"}, "quote"),
        ({"media": ()}, {}, "no_image"),
        ({"media": (VIDEO,)}, {}, "no_image"),
        ({}, {"hashtags": ("dermpath", "#gipath")}, None),
        ({}, {"hashtags": ("GI", "dermpath")}, "no_hashtag"),
        ({"hashtags": ("other",)}, {"hashtags": ("GIpath",)}, "no_hashtag"),
        ({"hashtags": ("gIPATH",)}, {"hashtags": ("GIpath",)}, None),
        ({"captions": ("see\uff03GIpath.",)}, {"hashtags": ("GIpath",)}, None),
        ({}, {"start_date": "2021-03-04", "end_date": "2021-03-04"}, None),
        ({}, {"start_date": "2021-03-05"}, "outside_dates"),
        ({}, {"end_date": "2021-03-03"}, "outside_dates"),
        ({"created_at": "2022-11-15T23:59:59Z"}, {"end_date": "2022-11-15"}, None),
        ({"created_at": "2022-11-16T00:00:00Z"}, {"end_date": "2022-11-15"}, "outside_dates"),
        ({"created_at": ""}, {"end_date": "2022-11-15"}, "outside_dates"),
        ({"created_at": ""}, {}, None),
        ({"role": "laion", "created_at": ""}, {"start_date": "2006-03-21", "hashtags": ("dermpath",)}, None),
        ({"role": "laion", "media": ()}, {}, "no_image"),
    ],
)
def test_which_posts_count(fields, choices, expected):
    assert judge_post(dataclasses.replace(ROOT, **fields), ThreadSettings(**choices)) == expected


@pytest.mark.parametrize(
    ("choices", "message"),
    [({"quotes": "drp"}, "quotes is 'drp', expected one of keep, drop"), ({"end_date": "15.11.2022"}, "2022-11-15")],
)
def test_unknown_settings_are_refused(choices, message):
    with pytest.raises(ThreadSettingsError, match=message):
        ThreadSettings(**choices)


SIX = st.sampled_from(["1", "2", "3", "4", "5", "6"])


@st.composite
def threads(draw):
    """Up to eight posts of six ids: copies, versions, deletions, circles and absent parents are common."""
    posts = []
    for number in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(["original", "reply", "reply", "reply", "quote", "repost", "deletion"]))
        post_id = draw(SIX)
        edited = draw(st.sampled_from(["", "", "", "1"]))
        posts.append(
            Post(
                post_id,
                source="x",
                where=f"line {number}",
                kind=kind,
                media=tuple(draw(st.lists(st.sampled_from([IMAGE, OTHER, VIDEO, Media("3_8")]), unique=True))),
                captions=draw(st.sampled_from([("a",), ("",), (), ("b", "c")])),
                conversation_id="1",
                reply_to=draw(SIX) if kind == "reply" else "",
                author=draw(st.sampled_from(["", "a", "b"])),
                first_version=edited,
                version=draw(st.integers(1, 2)) if edited else 0,
                likes=draw(st.none() | st.integers(0, 2)),
                sensitive=draw(st.sampled_from([False, False, True])),
            )
        )
    return posts


CHOICES = st.builds(
    ThreadSettings,
    reply_scope=st.sampled_from(["direct", "conversation"]),
    replies=st.sampled_from(["most_liked", "most_liked", "none"]),
    self_replies=st.booleans(),
    min_reply_likes=st.integers(0, 1),
    quotes=st.sampled_from(["keep", "drop"]),
)


@settings(max_examples=150, deadline=None)  # other work on the machine slows single examples
@given(posts=threads(), choices=CHOICES, random=st.randoms())
def test_every_post_ends_in_pairs_or_in_one_decision_in_any_order(posts, choices, random):
    pairs, decisions = pair_thread(posts, choices)
    ended = [one.pair for one in decisions if one.unit == "pair"]
    paired = {pair.post_id for pair in [*pairs, *ended]}
    # of the posts with one id, one is in the pairs and each other one in a decision; or each in a decision
    expected = collections.Counter(post.id for post in posts)
    decided = collections.Counter(one.post_id for one in decisions if one.unit == "post")
    for post_id, count in expected.items():
        assert decided[post_id] + (post_id in paired) == count
    assert len({pair.id for pair in pairs}) == len(pairs)
    shuffled = list(posts)
    random.shuffle(shuffled)
    assert pair_thread(shuffled, choices) == (pairs, decisions)


@settings(max_examples=100, deadline=None)  # other work on the machine slows single examples
@given(posts=threads())
def test_no_reply_that_counts_is_better_than_the_chosen_one(posts):
    pairs, _ = pair_thread(posts, ThreadSettings())
    by_id = collections.Counter(post.id for post in posts)
    # only posts that came once: what a copy adds is tested elsewhere
    once = {post.id: post for post in posts if by_id[post.id] == 1 and not post.first_version and post.id != "1"}
    for pair in pairs:
        if pair.post_id != pair.image_post_id and pair.post_id in once and pair.image_post_id in once:
            rivals = [
                post.likes or 0
                for post in once.values()
                if post.kind == "reply" and post.reply_to == pair.image_post_id and not post.sensitive
                if any(post.captions) and all(one.kind != "photo" for one in post.media)
            ]
            assert (once[pair.post_id].likes or 0) == max(rivals)
