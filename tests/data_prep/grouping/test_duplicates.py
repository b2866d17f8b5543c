"""Groups of copies against brute force, what stays of them, and what is only counted."""

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.curation.pair import Pair
from data_prep.grouping.duplicates import (
    DuplicateError,
    DuplicateSettings,
    count_equal_captions,
    duplicate_groups,
    plan_duplicates,
    report_close_embeddings,
    resolve_duplicates,
)
from plip_jax.data.perceptual_hash import dhash
from tests.small_tissue import encoded, tissue


def brute_groups(hashes: list[int], radius: int) -> list[int]:
    """Flood fill over all pairs."""
    labels = [-1] * len(hashes)
    for start in range(len(hashes)):
        stack = [start] if labels[start] < 0 else []
        while stack:
            row = stack.pop()
            labels[row] = start
            stack += [
                other
                for other, value in enumerate(hashes)
                if labels[other] < 0 and (value ^ hashes[row]).bit_count() <= radius
            ]
    return labels


@st.composite
def chains(draw) -> list[int]:
    """Hashes, most of them an earlier one with up to four bits changed."""
    hashes = [draw(st.integers(0, 2**64 - 1))]
    for _ in range(draw(st.integers(0, 25))):
        value = draw(st.sampled_from(hashes) | st.integers(0, 2**64 - 1))
        for bit in draw(st.lists(st.integers(0, 63), max_size=4)):
            value ^= 1 << bit
        hashes.append(value)
    return hashes


@settings(max_examples=150, deadline=None)  # deadline: other processes share the core
@given(chains(), st.integers(0, 5))
def test_groups_are_those_of_brute_force(hashes, radius):
    assert duplicate_groups(np.array(hashes, np.uint64), radius).tolist() == brute_groups(hashes, radius)


def test_a_chain_is_one_group_though_its_ends_are_far():
    hashes = np.array([(1 << 3 * step) - 1 for step in range(20)], np.uint64)
    assert duplicate_groups(hashes, 3).tolist() == [0] * 20
    assert duplicate_groups(hashes, 2).tolist() == list(range(20))


def test_a_value_that_is_there_200000_times_costs_no_more_than_one():
    hashes = np.concatenate([np.full(200_000, 7, np.uint64), np.array([6, 0b11 << 40], np.uint64)])
    began = time.process_time()
    groups = duplicate_groups(hashes, 3)
    assert time.process_time() - began < 2  # all pairs would be 2e10
    assert groups[:-1].max() == 0
    assert groups[-1] == 200_001


def test_nothing_has_no_groups():
    assert duplicate_groups(np.empty(0, np.uint64), 3).tolist() == []


BASE = 0x0123456789ABCDEF


def pair(name: str, phash: int | None, digest: str = "", **fields) -> Pair:
    post, key = name.split(":")
    digest = digest or f"bytes of {name}"
    return Pair(
        **{
            "id": f"twitter:{name}",
            "source": "twitter",
            "post_id": post,
            "image_post_id": post,
            "media_key": key,
            "conversation_id": f"twitter:{fields.get('image_post_id', post)}",
            "image_author": "somebody",
            "url": f"https://images.test/{fields.get('image_post_id', post)}/{key}",
            "digest": digest,
            "clean_digest": f"clean {digest}",
            "phash": "" if phash is None else f"{phash:016x}",
            **fields,
        }
    )


def test_the_earliest_image_stays_with_all_its_pairs():
    late = pair("9:a", BASE, created_at="2020-01-02T00:00:00Z")
    early = pair("5:a", BASE ^ 0b111, created_at="2020-01-01T00:00:00Z")
    reply = pair("7:a", BASE ^ 0b111, "bytes of 5:a", image_post_id="5", created_at="2020-02-01T00:00:00Z")
    undated = pair("1:a", BASE ^ 0b110)
    other = pair("3:a", BASE ^ 0xFFFF)
    kept, decisions = resolve_duplicates([late, early, reply, undated, other], DuplicateSettings())
    assert [(one.id, one.duplicate_group) for one in kept] == [
        ("twitter:5:a", "twitter:1:a"),
        ("twitter:7:a", "twitter:1:a"),
        ("twitter:3:a", "twitter:3:a"),
    ]
    assert [(one.id, one.stage, one.reason, one.detail) for one in decisions] == [
        ("twitter:9:a", "duplicate", "near_duplicate", "twitter:5:a"),
        ("twitter:1:a", "duplicate", "near_duplicate", "twitter:5:a"),
    ]
    assert all(one.pair is not None and one.pair.duplicate_group == "twitter:1:a" for one in decisions)


def test_equal_bytes_are_copies_whatever_the_hash_says():
    first, again = pair("1:a", None, "same"), pair("2:a", None, "same")
    stripped = pair("3:a", None, clean_digest="clean same")
    flat = pair("4:a", None)
    kept, decisions = resolve_duplicates([flat, stripped, again, first], DuplicateSettings())
    assert {one.id for one in kept} == {"twitter:1:a", "twitter:4:a"}  # two flat images are no copies for being flat
    assert {(one.id, one.reason) for one in decisions} == {
        ("twitter:2:a", "same_bytes"), ("twitter:3:a", "same_bytes"),
    }  # fmt: skip


def test_grouping_drops_nothing():
    pairs = [pair("2:a", BASE), pair("1:a", BASE)]
    kept, decisions = resolve_duplicates(pairs, DuplicateSettings(policy="group"))
    assert decisions == []
    assert kept == [dataclasses.replace(one, duplicate_group="twitter:1:a") for one in pairs]


def test_the_largest_image_may_stay():
    small = pair("1:a", BASE, width=300, height=200, created_at="2020-01-01T00:00:00Z")
    large = pair("2:a", BASE, width=600, height=400, created_at="2021-01-01T00:00:00Z")
    kept, _ = resolve_duplicates([small, large], DuplicateSettings(keep="largest"))
    assert [one.id for one in kept] == ["twitter:2:a"]


def test_the_order_of_the_pairs_changes_nothing():
    rng = np.random.default_rng(0)
    pairs = [pair(f"{row}:a", BASE ^ (1 << int(rng.integers(40))), f"b{rng.integers(30)}") for row in range(40)]
    pairs += [pair(f"{row}:a", int(rng.integers(2**63))) for row in range(40, 60)]
    plan = plan_duplicates(pairs, DuplicateSettings(radius=1))
    again = plan_duplicates([pairs[row] for row in rng.permutation(60)], DuplicateSettings(radius=1))
    assert (again.group_of, again.dropped, again.report) == (plan.group_of, plan.dropped, plan.report)
    assert plan.report["pairs"] == 60
    assert len(plan.dropped) > 5
    # What stays for a dropped pair stays, and is of its group.
    for name, (_, stays) in plan.dropped.items():
        assert stays not in plan.dropped
        assert plan.group_of[stays] == plan.group_of[name]


def test_dhash_is_taken_from_the_stored_images(tmp_path):
    pictures = {"1:a": tissue(0), "2:a": tissue(0).resize((100, 100)), "3:a": tissue(1)}
    pairs = []
    for name, picture in pictures.items():
        one = pair(name, 2 ** len(pairs) - 1 << 20, clean_digest=f"ab{len(pairs)}")
        (tmp_path / "ab").mkdir(exist_ok=True)
        (tmp_path / "ab" / one.clean_digest).write_bytes(encoded(picture))
        pairs.append(one)
    assert (dhash(pictures["1:a"]) ^ dhash(pictures["2:a"])).bit_count() <= 3
    kept, _ = resolve_duplicates(pairs, DuplicateSettings(hash="dhash"), tmp_path)
    assert [one.id for one in kept] == ["twitter:1:a", "twitter:3:a"]
    with pytest.raises(DuplicateError, match="the folder of the stripped images"):
        resolve_duplicates(pairs, DuplicateSettings(hash="dhash"))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"hash": "md5"}, "phash, dhash"), ({"policy": "merge"}, "drop, group"), ({"radius": 65}, "0 to 64")],
)
def test_settings_that_cannot_be_meant_are_refused(change, said):
    with pytest.raises(DuplicateError, match=said):
        DuplicateSettings(**change)


def test_close_embeddings_are_counted_and_quoted(monkeypatch):
    monkeypatch.setattr("data_prep.grouping.duplicates._BLOCK", 3)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(10, 4)).astype(np.float32)
    features[[2, 7]] = features[1] + 0.01 * rng.normal(size=(2, 4))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    groups = [str(row) for row in range(10)]
    groups[2] = "1"
    cosines = features @ features.T
    close = [(one, other) for one in range(10) for other in range(one + 1, 10) if cosines[one, other] >= 0.99]
    assert {(1, 2), (1, 7), (2, 7)} <= set(close)
    found = report_close_embeddings([f"id{row}" for row in range(10)], features, 0.99, groups)
    assert found["close_pairs"] == len(close)
    assert found["close_pairs_in_two_groups"] == len(close) - 1
    assert found["images_with_a_close_one"] == len({row for one in close for row in one})
    assert sorted(one["ids"] for one in found["listed"]) == sorted(
        [f"id{one}", f"id{other}"] for one, other in close if (one, other) != (1, 2)
    )


def test_equal_captions_are_counted():
    found = count_equal_captions(["a", "b", "a", "", "c", "a", "b"])
    assert found == {"captions": 6, "distinct": 3, "captions_equal_to_another": 5, "most_of_one": 3}


def test_one_id_twice_is_refused():
    with pytest.raises(DuplicateError, match="2 with 1 ids"):
        plan_duplicates([pair("1:a", BASE), pair("1:a", BASE)], DuplicateSettings())


def table_row(name: str, path: str, source: str = "atlas") -> Pair:
    """A pair of a table, which names nobody."""
    return pair(
        f"{name}:0",
        BASE,
        id=f"{source}:{name}:0",
        source=source,
        image_author="",
        url="",
        path=path,
        conversation_id=name,
    )


def test_two_captions_of_one_file_stay_and_files_of_two_tables_are_copies():
    rows = [table_row("1", "1.png"), table_row("1.png#2", "1.png"), table_row("1", "1.png", "other")]
    kept, decisions = resolve_duplicates(rows, DuplicateSettings())
    assert [one.id for one in kept] == ["atlas:1:0", "atlas:1.png#2:0"]
    assert [one.id for one in decisions] == ["other:1:0"]


def test_a_reply_that_is_a_row_of_its_own_stays_with_its_image():
    """As in OpenPath's released table: the reply has its own id, and the conversation and address of the tweet."""
    tweet = pair("1:77", BASE)
    reply = pair("2:77", BASE, conversation_id="twitter:1", url=tweet.url)
    elsewhere = pair("3:77", BASE, url=tweet.url)
    kept, decisions = resolve_duplicates([elsewhere, reply, tweet], DuplicateSettings())
    assert [one.id for one in kept] == ["twitter:2:77", "twitter:1:77"]
    assert [one.id for one in decisions] == ["twitter:3:77"]
