import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.curation.conversations import (
    conversation_of,
    find_conversations,
    newest_version,
    newest_versions,
    tell_apart,
)
from data_prep.sources.post import Media, Post

URL = "https://pbs.twimg.com/media/A.jpg"


def post(post_id, **fields):
    return Post(post_id, source="x", captions=("a",), **fields)


def deletion(post_id):
    return Post(post_id, source="x", kind="deletion")


def reply(post_id, to, **fields):
    return post(post_id, kind="reply", reply_to=to, **fields)


@pytest.mark.parametrize("step", [1, -1])
def test_conversations_are_found_along_the_answers(step):
    posts = [
        post("1"),
        reply("2", "1"),
        reply("3", "2"),
        reply("5", "4"),  # whose parent is not in the dump
        reply("6", "5"),
        post("7"),
        deletion("3"),
        deletion("9"),
    ]
    assert find_conversations(posts[::step]) == {"2": "1", "3": "1", "5": "4", "6": "4"}


@pytest.mark.parametrize("step", [1, -1])
def test_what_is_stated_holds_for_those_who_do_not_state_it(step):
    posts = [
        post("11", conversation_id="10"),
        reply("12", "11"),
        deletion("11"),
        post("11"),  # a copy of another format
        post("21", conversation_id="20", first_version="20", version=1),
        reply("22", "21"),
        reply("23", "20"),
        deletion("21"),
        post("31", first_version="30", version=1),
        deletion("31"),
    ]
    assert find_conversations(posts[::step]) == {
        "11": "10",
        "12": "10",
        "21": "20",
        "22": "20",
        "23": "20",
        "31": "30",
    }


def test_answers_in_a_circle_and_a_long_chain_end():
    circle = [reply("1", "2"), reply("2", "3"), reply("3", "2"), reply("4", "4")]
    assert find_conversations(circle) == {"1": "2", "3": "2"}
    chain = [reply(str(number), str(number - 1)) for number in range(5000, 0, -1)]
    assert set(find_conversations(chain).values()) == {"0"}


@settings(deadline=None)  # other work on the machine slows single examples
@given(
    st.lists(
        st.builds(
            lambda post_id, to, stated, first: post(
                post_id, reply_to=to, conversation_id=stated, first_version=first, version=bool(first)
            ),
            *(st.sampled_from(["1", "2", "3", "4"]), st.sampled_from(["", "1", "2", "3", "4", "5"])),
            *(st.sampled_from(["", "", "", "1", "8"]), st.sampled_from(["", "", "", "1", "2"])),
        ),
        max_size=7,
    ).flatmap(lambda posts: st.tuples(st.just(posts), st.permutations(posts)))
)
def test_the_order_of_a_broken_dump_does_not_matter_and_copies_stay_together(posts):
    written, shuffled = posts
    found = find_conversations(written)
    assert find_conversations(shuffled) == found
    keys = {}
    for one in written:
        keys.setdefault(one.id, set()).add(found.get(one.id, conversation_of(one)))
    assert all(len(of_an_id) == 1 for of_an_id in keys.values())


def reasons(decisions):
    return sorted((one.post_id, one.reason) for one in decisions)


def test_the_newest_version_wins():
    versions = [
        post("4"),
        post("6", first_version="4", version=2),
        post("5", first_version="4", version=1, likes=9),
    ]
    newest, decisions = newest_version(versions)
    assert newest == versions[1]
    assert reasons(decisions) == [("4", "superseded"), ("5", "superseded")]
    chosen, _ = newest_versions(versions)
    assert {post_id: one.id for post_id, one in chosen.items()} == {"4": "6", "5": "6", "6": "6"}


def test_of_copies_the_one_with_addresses_wins_and_takes_what_is_graver():
    referred = post("4", media=(Media("3_1"),), likes=8, sensitive=True, where="a", conversation_id="4", language="en")
    whole = post("4", media=(Media("3_1", URL),), likes=7, where="b")
    newest, decisions = newest_version([referred, whole])
    assert newest == dataclasses.replace(whole, likes=8, sensitive=True)
    assert [(one.id, one.reason, one.detail, one.where) for one in decisions] == [("x:4", "repeated", "", "a")]
    same = [dataclasses.replace(whole, where=place) for place in ("c", "a", "b")]
    assert [newest_version(posts)[0].where for posts in (same, same[::-1])] == ["c", "c"]


@pytest.mark.parametrize("gone", ["4", "5", "6"])
def test_a_deletion_of_any_version_ends_all(gone):
    versions = [
        post("4"),
        post("5", first_version="4", version=1),
        post("6", first_version="4", version=2),
        deletion(gone),
    ]
    chosen, decisions = newest_versions(versions)
    assert chosen == {}
    expected = [*((post_id, "deleted") for post_id in "456"), (gone, "deletion_notice")]
    assert reasons(decisions) == sorted(expected)


def row(where, text, path="1.png", post_id="1"):
    return Post(post_id, (Media(path=path),), (text,), source="t", where=where)


def test_different_rows_of_one_id_are_told_apart_and_repeats_are_not():
    rows = [
        row("a line 2", "x"),
        row("b line 2", "y"),
        row("c line 2", "x"),
        row("c line 9", "y"),
        row("a", "x", post_id="2"),
    ]
    found = {one.where: one.id for one in tell_apart(rows)}
    assert found == {one.where: one.id for one in tell_apart(rows[::-1])}
    other = found["b line 2"]
    assert found == {"a line 2": "1", "b line 2": other, "c line 2": "1", "c line 9": other, "a": "2"}
    assert len(other) == 18
    assert other.startswith("1#")
    more = {one.where: one.id for one in tell_apart([*rows, row("d line 2", "x", "2.png")])}
    assert found.items() <= more.items()
    assert more["d line 2"] not in found.values()


def test_a_tweet_and_its_reply_in_two_files_are_told_apart_and_stay_together():
    tweet = Post("7", captions=("x",), source="t", where="a", conversation_id="7", role="tweet")
    found = tell_apart([dataclasses.replace(tweet, where="b", role="reply"), tweet])
    assert sorted((one.role, one.id == "7", one.conversation_id) for one in found) == [
        ("reply", False, "7"),
        ("tweet", True, "7"),
    ]
