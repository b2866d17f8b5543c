"""The funnel: how many posts and pairs came into each stage, were dropped for which reason, and were kept.

It is counted twice. The decisions alone say how many came into each stage: all that end there or later. The stages say
how many rows they read and wrote. Both must tell the same, source by source, or nothing is reported (`FunnelError`).

Two units are counted. A post ends at the stage `source` or `thread`, or gives pairs; a pair begins at `thread`.
`funnel.json` holds:

    {"format_version": 1,
     "units": {"post": {"twitter": [STEP, ...]}, "pair": {"twitter": [STEP, ...], "twitter_reply": [...]}},
     "totals": {"post": [STEP, ...], "pair": [STEP, ...]},
     "splits": {"train": {"twitter": 3, ...}, ...}}

where a STEP is `{"stage": "text", "in": 9, "kept": 7, "dropped": {"too_short": 2}}`, in = kept + sum of dropped, and
the steps of a unit and source follow each other: the next one's `in` is this one's `kept`.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from data_prep.curation.pair import KEPT, STAGES, Decision, Pair
from data_prep.seen_ids import SeenIds

FUNNEL_NAME = "funnel.json"
FORMAT_VERSION = 1
"""Of `funnel.json`: changes when a reader of the older layout would misread the newer one."""
UNITS = {"post": ("source", "thread"), "pair": STAGES[STAGES.index("thread") :]}
"""The stages that a unit passes. Behind the last of them posts have become pairs, and pairs are kept."""


class FunnelError(ValueError):
    """The numbers do not reconcile; the message names source, stage and both numbers."""


@dataclasses.dataclass(frozen=True)
class StageRows:
    """What a stage itself counted, by source.

    Attributes:
        read: Rows that came in: what a reader yielded for the stage `source`, posts for `thread`, pairs for the others.
        kept: Rows that went on: posts for the stage `source`, pairs for the others.
    """

    read: Mapping[str, int]
    kept: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Step:
    """One stage of one unit and source: `taken` is what came in, `dropped` counts by reason."""

    stage: str
    taken: int
    dropped: Mapping[str, int]

    @property
    def kept(self) -> int:
        """How many went on."""
        return self.taken - sum(self.dropped.values())


@dataclasses.dataclass(frozen=True)
class Funnel:
    """The whole account.

    Attributes:
        steps: By unit and source, in the order of the stages.
        splits: Kept pairs by split and source.
    """

    steps: Mapping[tuple[str, str], tuple[Step, ...]]
    splits: Mapping[str, Mapping[str, int]]

    def totals(self, unit: str) -> tuple[Step, ...]:
        """Return the steps of a unit over all sources."""
        columns = zip(*(steps for (of, _), steps in self.steps.items() if of == unit), strict=True)
        return tuple(
            Step(column[0].stage, sum(step.taken for step in column), _ordered(_sum(step.dropped for step in column)))
            for column in columns
        )

    @property
    def kept_pairs(self) -> int:
        """How many pairs are in the dataset."""
        return sum(sum(sources.values()) for sources in self.splits.values())

    def to_json(self) -> str:
        """Return the text of `funnel.json`."""
        units: dict[str, Any] = {
            unit: {source: _json(steps) for (of, source), steps in self.steps.items() if of == unit} for unit in UNITS
        }
        totals = {unit: _json(self.totals(unit)) for unit in UNITS}
        content = {"format_version": FORMAT_VERSION, "units": units, "totals": totals, "splits": self.splits}
        return json.dumps(content, indent=2) + "\n"


def post_source(pair: Pair) -> str:
    """Return the source of the posts of a pair, whose own source may be a part of it ("twitter_reply")."""
    return pair.conversation_id.partition(":")[0] or pair.source


def count_funnel(
    decisions: Iterable[Decision],
    rows: Mapping[str, StageRows],
    *,
    source_of_posts: Callable[[Pair], str] = post_source,
) -> Funnel:
    """Count where everything ended and check it against what the stages counted.

    Args:
        decisions: All of them, in any order: posts and pairs that were dropped, and the kept pairs as `KEPT`. They are
            read once; memory is 8 bytes a post that gave a pair. What ends at the stage `source` is a post, whatever
            its unit says.
        rows: By stage, for each stage that ran. A stage that did not run drops nothing.
        source_of_posts: The source that the posts of a pair were counted under.

    Raises:
        FunnelError: A stage and the decisions do not tell the same, or a decision names an unknown unit or stage.
    """
    drops: dict[tuple[str, str], dict[str, Counter[str]]] = {}
    ended: dict[tuple[str, str], Counter[str]] = {}
    splits: dict[str, Counter[str]] = {}
    used_posts = SeenIds()
    for decision in decisions:
        unit = "post" if decision.stage == "source" else decision.unit
        if decision.stage not in (*UNITS.get(unit, ()), KEPT) or (decision.stage == KEPT) != (not decision.reason):
            raise FunnelError(
                f"decision {decision.id!r}: a {decision.unit} cannot end at {decision.stage!r} with the reason "
                f"{decision.reason!r}; posts end at {UNITS['post']}, pairs at {UNITS['pair']} with one, or at {KEPT!r}"
            )
        key = (unit, decision.source)
        ended.setdefault(key, Counter())[decision.stage] += 1
        if decision.reason:
            drops.setdefault(key, {}).setdefault(decision.stage, Counter())[decision.reason] += 1
        pair = decision.pair
        if unit == "pair" and pair is None:
            raise FunnelError(f"decision {decision.id!r} at {decision.stage!r} is about a pair and has none")
        if unit == "pair" and pair is not None:
            if decision.stage == KEPT:
                splits.setdefault(pair.split, Counter())[pair.source] += 1
            posts = source_of_posts(pair)
            for post in {pair.post_id, pair.image_post_id}:
                if used_posts.add(f"{posts}\n{post}"):
                    ended.setdefault(("post", posts), Counter())[KEPT] += 1
    steps = {key: _steps(key[0], counts, drops.get(key, {})) for key, counts in sorted(ended.items())}
    funnel = Funnel(steps, {split: _ordered(splits[split]) for split in sorted(splits)})
    _reconcile(funnel, rows)
    return funnel


def _steps(unit: str, ended: Counter[str], drops: Mapping[str, Counter[str]]) -> tuple[Step, ...]:
    """Walk through the stages: what came in is all that ended at this stage or behind it."""
    left = ended.total()
    steps = []
    for stage in UNITS[unit]:
        steps.append(Step(stage, left, _ordered(drops.get(stage, Counter()))))
        left = steps[-1].kept
    return tuple(steps)


def _reconcile(funnel: Funnel, rows: Mapping[str, StageRows]) -> None:
    if unknown := sorted(rows.keys() - set(STAGES)):
        raise FunnelError(f"rows of an unknown stage {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    for number, stage in enumerate(STAGES):
        coming = "post" if number < 2 else "pair"
        going = "post" if number < 1 else "pair"
        here = rows.get(stage)
        if here is None:
            dropped = sum(sum(s.dropped.values()) for steps in funnel.steps.values() for s in steps if s.stage == stage)
            if dropped:
                raise FunnelError(f"stage {stage!r}: {dropped} decisions say that it dropped them, but it did not run")
            continue
        _compare(stage, coming, "read", here.read, _count(funnel, coming, stage, lambda step: step.taken))
        _compare(stage, going, "kept", here.kept, _count(funnel, going, stage, lambda step: step.kept))


def _count(funnel: Funnel, unit: str, stage: str, number: Callable[[Step], int]) -> dict[str, int]:
    return {
        source: number(step)
        for (of, source), steps in funnel.steps.items()
        if of == unit
        for step in steps
        if step.stage == stage
    }


def _compare(stage: str, unit: str, verb: str, counted: Mapping[str, int], decided: Mapping[str, int]) -> None:
    for source in sorted(counted.keys() | decided.keys()):
        in_rows, in_decisions = counted.get(source, 0), decided.get(source, 0)
        if in_rows != in_decisions:
            raise FunnelError(
                f"source {source!r}, stage {stage!r}: it {verb} {in_rows} {unit}s, the decisions account for "
                f"{in_decisions}; run this stage and those behind it again"
            )


def _json(steps: Iterable[Step]) -> list[dict[str, Any]]:
    return [{"stage": s.stage, "in": s.taken, "kept": s.kept, "dropped": s.dropped} for s in steps]


def _sum(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total


def _ordered(counts: Counter[str]) -> dict[str, int]:
    """The most frequent first, then by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
