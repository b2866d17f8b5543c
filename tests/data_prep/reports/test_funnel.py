"""The funnel against a hand-counted set of posts, and its refusal of numbers that do not reconcile."""

import dataclasses
import itertools
import json
import random

import pytest

from data_prep.curation.pair import KEPT, STAGES, Decision, Pair, drop
from data_prep.reports.funnel import FunnelError, StageRows, count_funnel


def pair(number: int, source: str = "x", *, image_post: int | None = None, split: str = "train") -> Pair:
    image = number if image_post is None else image_post
    return Pair(f"{source}:{number}:0", source, str(number), str(image), "0", conversation_id=f"x:{image}", split=split)


def kept(one: Pair) -> Decision:
    return Decision("pair", one.id, one.source, KEPT, pair=one)


@pytest.fixture
def decisions() -> list[Decision]:
    """Eight lines of x and one of lab; posts 1-4 have images, 5 answers 1, and 6 and 7 are no use."""
    return [
        kept(pair(1)),
        kept(pair(5, "x_reply", image_post=1, split="test")),
        drop(pair(2), "text", "too_short"),
        drop(pair(3), "image", "flat"),
        drop(pair(4), "image", "flat"),
        Decision("post", "x:6", "x", "thread", "repost"),
        Decision("post", "x:7", "x", "thread", "not_most_liked"),
        Decision("post", "page1.json line 3", "x", "source", "malformed"),
        drop(dataclasses.replace(pair(9, "lab"), conversation_id=""), "duplicate", "same_bytes"),
    ]


@pytest.fixture
def rows() -> dict[str, StageRows]:
    made = {"x": 4, "x_reply": 1, "lab": 1}
    cleaned = {"x": 3, "x_reply": 1, "lab": 1}
    good = {"x": 1, "x_reply": 1, "lab": 1}
    whole = {"x": 1, "x_reply": 1}
    return {
        "source": StageRows({"x": 8, "lab": 1}, {"x": 7, "lab": 1}),
        "thread": StageRows({"x": 7, "lab": 1}, made),
        "text": StageRows(made, cleaned),
        "hydrate": StageRows(cleaned, cleaned),
        "image": StageRows(cleaned, good),
        # the stages gate and verdict did not run
        "duplicate": StageRows(good, whole),
        "split": StageRows(whole, whole),
    }


def test_every_number_is_the_hand_counted_one(decisions, rows):
    content = json.loads(count_funnel(decisions, rows).to_json())
    assert content["units"]["post"]["x"] == [
        {"stage": "source", "in": 8, "kept": 7, "dropped": {"malformed": 1}},
        {"stage": "thread", "in": 7, "kept": 5, "dropped": {"not_most_liked": 1, "repost": 1}},
    ]
    steps = {step["stage"]: step for step in content["units"]["pair"]["x"]}
    assert list(steps) == ["thread", "text", "hydrate", "image", "gate", "verdict", "duplicate", "split"]
    assert steps["thread"] == {"stage": "thread", "in": 4, "kept": 4, "dropped": {}}
    assert steps["text"] == {"stage": "text", "in": 4, "kept": 3, "dropped": {"too_short": 1}}
    assert steps["image"] == {"stage": "image", "in": 3, "kept": 1, "dropped": {"flat": 2}}
    assert steps["split"] == {"stage": "split", "in": 1, "kept": 1, "dropped": {}}
    totals = {step["stage"]: step for step in content["totals"]["pair"]}
    assert totals["thread"]["in"] == 6
    assert totals["image"] == {"stage": "image", "in": 5, "kept": 3, "dropped": {"flat": 2}}
    assert totals["split"]["kept"] == 2
    assert content["splits"] == {"test": {"x_reply": 1}, "train": {"x": 1}}


def test_in_is_kept_plus_dropped_everywhere_and_steps_follow_each_other(decisions, rows):
    content = json.loads(count_funnel(decisions, rows).to_json())
    for unit in content["units"].values():
        for steps in unit.values():
            assert all(step["in"] == step["kept"] + sum(step["dropped"].values()) for step in steps)
            assert all(one["kept"] == after["in"] for one, after in itertools.pairwise(steps))


def test_order_does_not_matter(decisions, rows):
    first = count_funnel(decisions, rows).to_json()
    for seed in range(5):
        assert count_funnel(iter(random.Random(seed).sample(decisions, len(decisions))), rows).to_json() == first


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("gate", "verdict")])
@pytest.mark.parametrize("field", ["read", "kept"])
def test_a_row_more_at_any_stage_is_found_and_named(decisions, rows, stage, field):
    counts = dict(getattr(rows[stage], field))
    counts["x"] += 1
    rows[stage] = dataclasses.replace(rows[stage], **{field: counts})
    with pytest.raises(FunnelError, match=f"source 'x', stage '{stage}': it {field} {counts['x']} "):
        count_funnel(decisions, rows)


@pytest.mark.parametrize("lost", range(9))
def test_a_lost_decision_is_found(decisions, rows, lost):
    source = "x" if lost == 1 else decisions[lost].source  # the reply that made a pair is a post of x
    stage = "thread" if lost == 0 else "source"  # post 1 is in the reply's pair, too
    with pytest.raises(FunnelError, match=f"source '{source}', stage '{stage}'"):
        count_funnel([one for number, one in enumerate(decisions) if number != lost], rows)


def test_a_decision_too_many_or_at_another_stage_is_found(decisions, rows):
    with pytest.raises(FunnelError, match=r"source 'x', stage 'thread': it kept 4 pairs, .* 5"):
        count_funnel([*decisions, decisions[0]], rows)
    moved = [drop(pair(3), "hydrate", "http_404") if one.id == "x:3:0" else one for one in decisions]
    with pytest.raises(FunnelError, match=r"source 'x', stage 'hydrate': it kept 3 pairs, .* 2"):
        count_funnel(moved, rows)
    moved = [drop(pair(3), "gate", "not_pathology") if one.id == "x:3:0" else one for one in decisions]
    with pytest.raises(FunnelError, match="stage 'image'"):
        count_funnel(moved, rows)


def test_a_stage_that_did_not_run_cannot_drop(decisions, rows):
    del rows["text"]
    with pytest.raises(FunnelError, match=r"'text': 1 decisions .* did not run"):
        count_funnel(decisions, rows)


@pytest.mark.parametrize(
    ("unit", "stage", "reason"),
    [
        ("post", "text", "a"),
        ("pair", "elsewhere", "a"),
        ("pair", "text", ""),
        ("pair", KEPT, "a"),
        ("row", "text", "a"),
    ],
)
def test_impossible_decisions_are_refused(unit, stage, reason):
    with pytest.raises(FunnelError, match="cannot end at"):
        count_funnel([Decision(unit, "x:1:0", "x", stage, reason, pair=pair(1))], {})


def test_a_takedown_counts_at_the_source(rows):
    removed = Decision("pair", "takedown:00ff", "x", "source", "takedown")
    funnel = count_funnel([removed], {"source": StageRows({"x": 1}, {})})
    assert funnel.steps["post", "x"][0].dropped == {"takedown": 1}
    assert funnel.kept_pairs == 0


def test_rows_of_an_unknown_stage_are_refused():
    with pytest.raises(FunnelError, match="unknown stage 'polish'"):
        count_funnel([], {"polish": StageRows({}, {})})
