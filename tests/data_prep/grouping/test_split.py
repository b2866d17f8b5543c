"""Groups and splits: nothing that must stay together is apart, sizes are met, the order of pairs changes nothing."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.curation.pair import Pair
from data_prep.grouping.split import KINDS, SplitError, SplitSettings, assign_splits, plan_splits, union_groups
from data_prep.grouping.split_proof import prove_disjoint

OPENPATH = SplitSettings(train_until="2022-11-15", test_from="2022-11-16", test_until="2023-01-15")


def pair(number: int, date: str = "", **fields) -> Pair:
    name = f"twitter:{number:03}:a"
    created_at = f"{date}T23:59:59Z" if date else ""
    values = {"conversation_id": f"twitter:{number}", "duplicate_group": name, "url": f"http://x/{number}", **fields}
    return Pair(name, "twitter", str(number), str(number), "a", created_at=created_at, **values)


def placed(pairs: list[Pair], how: SplitSettings) -> dict[str, str]:
    """Split, or reason in brackets, by post id."""
    kept, decisions = assign_splits(pairs, how)
    assert len(kept) + len(decisions) == len(pairs)
    assert all(one.stage == "split" and one.pair is not None and one.pair.group_id for one in decisions)
    dropped = {one.pair.post_id: f"({one.reason})" for one in decisions if one.pair}
    return {one.post_id: one.split for one in kept} | dropped


def test_openpaths_days():
    dates = ["2006-03-21", "2022-11-15", "2022-11-16", "2023-01-15", "2023-01-16", ""]
    assert list(placed([pair(number, date) for number, date in enumerate(dates)], OPENPATH).values()) == [
        "train", "train", "test", "test", "train", "(outside_dates)",
    ]  # fmt: skip


def test_days_between_the_splits_and_pairs_without_a_day_can_be_left_out():
    how = SplitSettings(train_until="2020-01-01", test_from="2020-02-01", undated="drop")
    pairs = [pair(1, "2020-01-02"), pair(2), pair(3, "2020-02-01"), pair(4, "2030-01-01")]
    assert placed(pairs, how) == {"1": "(outside_dates)", "2": "(undated)", "3": "test", "4": "test"}
    assert placed(pairs, SplitSettings(test_from="2020-02-01"))["1"] == "train"
    assert placed(pairs, SplitSettings()) == dict.fromkeys("1234", "train")


def test_a_group_on_both_sides_of_the_border_is_not_cut():
    pairs = [
        pair(1, "2022-01-01", conversation_id="twitter:1"),
        pair(2, "2022-12-01", conversation_id="twitter:1"),
        pair(3, conversation_id="twitter:1"),
        pair(4, "2022-12-01"),
        pair(5, url="http://x/4"),  # no date; it shows what a test pair shows
    ]
    expected = {"1": "train", "2": "(straddles_dates)", "3": "train", "4": "test", "5": "test"}
    assert placed(pairs, OPENPATH) == expected
    dropped = placed(pairs, dataclasses.replace(OPENPATH, straddling="drop"))
    assert dropped == {**dict.fromkeys("123", "(straddles_dates)"), "4": "test", "5": "test"}
    assert plan_splits(pairs, OPENPATH).report["straddling_groups"] == 1


SHARED = st.integers(0, 5).map(lambda value: str(value) if value else "")


@st.composite
def worlds(draw) -> list[Pair]:
    """Pairs that share authors, conversations, URLs, groups of tables and of duplicates, some of all unknown."""
    return [
        pair(
            number,
            draw(st.sampled_from(["", "2022-01-01", "2022-12-01", "2024-01-01"])),
            conversation_id=draw(SHARED),
            author=draw(SHARED),
            image_author=draw(SHARED),
            url=draw(SHARED),
            given_group=draw(SHARED),
            duplicate_group=draw(SHARED),
            caption=draw(SHARED),
        )
        for number in range(draw(st.integers(1, 14)))
    ]


def kinds() -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(list(KINDS)), unique=True).map(tuple)


@settings(deadline=None)  # other processes share the core
@given(worlds(), kinds())
def test_groups_are_the_transitive_closure_of_what_pairs_share(pairs, keep_together):
    def related(one: Pair, other: Pair) -> bool:
        return any(set(KINDS[kind](one)) & set(KINDS[kind](other)) - {""} for kind in keep_together)

    reach = np.array([[one is other or related(one, other) for other in pairs] for one in pairs])
    for _ in pairs:
        reach = reach @ reach
    groups = union_groups(pairs, keep_together)
    assert [[one == other for other in groups] for one in groups] == reach.tolist()
    assert union_groups(pairs[::-1], keep_together) == groups[::-1]


@settings(deadline=None)  # other processes share the core
@given(worlds(), kinds(), st.sampled_from(["train", "drop"]), st.integers(1, 5))
def test_no_split_shares_what_is_kept_together(pairs, keep_together, straddling, count):
    how = dataclasses.replace(
        OPENPATH, keep_together=keep_together, straddling=straddling, holdouts=(("retrieval", count), ("val", 2))
    )
    kept, _ = assign_splits(pairs, how)
    for one, other in itertools.combinations(kept, 2):
        if one.split != other.split:
            for kind in keep_together:
                assert not set(KINDS[kind](one)) & set(KINDS[kind](other)) - {""}
    assert prove_disjoint(kept, keep_together, 3, str.lower)["holds"]
    again, _ = assign_splits(pairs[::-1], how)
    assert again[::-1] == kept


def test_a_holdout_has_its_size_and_cuts_no_group():
    pairs = [pair(number, conversation_id=f"twitter:{number // 5}") for number in range(200)]  # groups of five
    pairs += [pair(number) for number in range(1000, 1010)]
    how = SplitSettings(holdouts=(("retrieval", 48), ("val", 11)))
    kept, _ = assign_splits(pairs, how)
    report = plan_splits(pairs, how).report
    assert report["holdouts"]["retrieval"]["reached"] == 48
    assert report["holdouts"]["val"]["reached"] == 11
    assert report["pairs"] == {"retrieval": 48, "train": 151, "val": 11}
    assert len({(one.group_id, one.split) for one in kept}) == report["groups"] == 50
    other = plan_splits(pairs, dataclasses.replace(how, seed=1))
    assert other.splits != plan_splits(pairs, how).splits


def test_a_size_that_whole_groups_cannot_meet_is_reported():
    pairs = [pair(number, conversation_id=f"twitter:{number // 5}") for number in range(50)]
    found = plan_splits(pairs, SplitSettings(holdouts=(("retrieval", 12),))).report
    assert found["holdouts"] == {"retrieval": {"asked": 12, "reached": 10, "groups": 2}}


@settings(deadline=None)  # other processes share the core
@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 40), st.sampled_from([0, 5, 500]))
def test_a_holdout_comes_as_near_to_its_size_as_whole_groups_can(sizes, asked, fitted):
    pairs = [
        pair(10 * group + row, conversation_id=f"c{group}") for group, size in enumerate(sizes) for row in range(size)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.grouping.split._FITTED_PAIRS", fitted)
        found = plan_splits(pairs, SplitSettings(holdouts=(("val", asked),))).report["holdouts"]["val"]["reached"]
    sums = {sum(chosen) for count in range(len(sizes) + 1) for chosen in itertools.combinations(sizes, count)}
    best = max(one for one in sums if one <= asked)
    assert found <= best
    if fitted >= asked:
        assert found == best


def test_a_group_is_named_by_its_least_pair_alone():
    first, second, third = (pair(number, url="http://x") for number in (1, 2, 3))
    alone = union_groups([first], ("urls",))
    assert union_groups([third, first, second], ("urls",)) == alone * 3
    assert alone[0].startswith("g")
    assert len(alone[0]) == 17
    assert int(alone[0][1:], 16) > 0


def test_groups_of_two_tables_are_not_mixed():
    one, other = pair(1, given_group="1"), dataclasses.replace(pair(2, given_group="1"), source="atlas")
    assert len(set(union_groups([one, other], ("given_groups",)))) == 2


def test_the_proof_counts_what_is_shared():
    train = [
        dataclasses.replace(pair(1, digest="d1", clean_digest="c1", author="ann", caption="Lung"), group_id="g1"),
        dataclasses.replace(
            pair(2, digest="d2", clean_digest="c2", image_author="bob", caption="Liver"), group_id="g2"
        ),
    ]
    test = [
        dataclasses.replace(pair(3, digest="d1", clean_digest="c3", author="bob", caption="LUNG"), group_id="g3"),
        dataclasses.replace(pair(4, digest="d4", clean_digest="c4", caption="Skin", url="http://x/1"), group_id="g4"),
    ]
    for number, one in enumerate((0b1111, 0b1 << 40, 0b1110, 0xFFFF << 40)):
        side, row = (train, test)[number // 2], number % 2
        side[row] = dataclasses.replace(side[row], phash=f"{one:016x}", split=("train", "test")[number // 2])
    found = prove_disjoint([*train, *test], ("conversations", "duplicates"), 3, str.lower)
    assert {name: (one["values"], one["shared"]) for name, one in found["shared"].items()} == {
        "group": (4, 0),
        "bytes": (3, 1),
        "stripped_bytes": (4, 0),
        "duplicate_group": (4, 0),
        "conversation": (4, 0),
        "author": (2, 1),
        "url": (3, 1),
        "given_group": (0, 0),
        "caption": (3, 1),
        "hash": (4, 2),
    }
    assert {name for name, one in found["shared"].items() if one["must_be_0"]} == {
        "group", "bytes", "stripped_bytes", "duplicate_group", "conversation", "hash",
    }  # fmt: skip
    assert found["pairs"] == {"test": 2, "train": 2}
    assert not found["holds"]
    assert prove_disjoint([*train, *test], ("conversations",), 3, str.lower)["holds"]
    assert prove_disjoint([], ("conversations",), 3, str.lower)["holds"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test_from": "16.11.2022"}, "a date as 2022-11-15"),
        ({"train_until": "2022-11-16", "test_from": "2022-11-16"}, "train_until < test_from"),
        ({"test_until": "2022-11-16"}, "test_from with it"),
        ({"straddling": "cut"}, "train, drop"),
        ({"keep_together": ("hosts",)}, "duplicates, conversations"),
        ({"holdouts": (("train", 5),)}, "'train' with 5"),
        ({"holdouts": (("a", 5), ("a", 5))}, "'a' with 5"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change, said):
    with pytest.raises(SplitError, match=said):
        SplitSettings(**change)


def test_one_id_twice_is_refused():
    with pytest.raises(SplitError, match="2 with 1 ids"):
        plan_splits([pair(1), pair(1)], SplitSettings())
