"""Splits: by date and by hold-outs of a stated size, with whatever must stay together on one side of them.

Pairs that share a value of a kind in `keep_together` (a duplicate group, a conversation, ...) are one group, and so are
those that such pairs connect; no split cuts a group. `split_proof` counts afterwards what the splits share.
"""

import dataclasses
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.curation.pair import Decision, Pair, drop
from data_prep.grouping.components import components, hash_text, link_equal

STAGE = "split"
TRAIN, TEST = "train", "test"
STRADDLING = ("train", "drop")
UNDATED = ("train", "drop")
# Of a hold-out, the last pairs, whose groups are chosen to meet its size exactly.
_FITTED_PAIRS = 500
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # what TFDS takes for a split

KINDS: dict[str, Callable[[Pair], tuple[str, ...]]] = {
    "duplicates": lambda pair: (pair.duplicate_group,),
    "conversations": lambda pair: (pair.conversation_id,),
    "authors": lambda pair: (pair.author, pair.image_author),
    "urls": lambda pair: (pair.url or local_name(pair),),
    # Two tables may both number their groups from 1.
    "given_groups": lambda pair: (f"{pair.source}\0{pair.given_group}" if pair.given_group else "",),
}
"""What pairs can share, and a pair's values of it; empty ones are not known and link nothing."""


def local_name(pair: Pair) -> str:
    """Name the local file of a pair, "" where it has none: two sources may both have a `1.png`."""
    return f"{pair.id.partition(':')[0]}\0{pair.path}" if pair.path else ""


class SplitError(ValueError):
    """The splits cannot be made at all; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class SplitSettings:
    """How the pairs are split.

    Attributes:
        train_until: Last day of `train`, "2022-11-15"; empty for the day before `test_from`. OpenPath's is 2022-11-15.
        test_from: First day of `test`; empty for no such split. OpenPath's is 2022-11-16.
        test_until: Last day of `test`; empty for no end. OpenPath's is 2023-01-15.
        undated: What becomes of a pair without a date in a split by date: "train" sends it where the dated ones of its
            group are, and to `train` where there are none; "drop" drops it (ours).
        straddling: What becomes of a group with pairs on both sides of the border: "train" leaves its earlier pairs in
            `train` and drops the later ones, "drop" drops it whole (ours).
        holdouts: Splits taken out of `train`: name and pairs, in order. IPATH's is ("retrieval", 5000).
        seed: Another seed holds out other groups.
        keep_together: Names of `KINDS` (ours). With "authors" a few busy ones may connect most of the pairs.
    """

    train_until: str = ""
    test_from: str = ""
    test_until: str = ""
    undated: str = "train"
    straddling: str = "train"
    holdouts: tuple[tuple[str, int], ...] = ()
    seed: int = 0
    keep_together: tuple[str, ...] = ("duplicates", "conversations", "urls", "given_groups")

    def __post_init__(self) -> None:
        dates = [date for date in (self.train_until, self.test_from, self.test_until) if date]
        for date in dates:
            if not _DATE.fullmatch(date):
                raise SplitError(f"expected a date as 2022-11-15, got {date!r}")
        if dates != sorted(dates) or (self.train_until and self.train_until == self.test_from):
            raise SplitError(f"expected train_until < test_from <= test_until, got {', '.join(dates)}")
        if self.test_until and not self.test_from:
            raise SplitError("test_until: expected test_from with it")
        for name, known in (("undated", UNDATED), ("straddling", STRADDLING)):
            if getattr(self, name) not in known:
                raise SplitError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if unknown := [kind for kind in self.keep_together if kind not in KINDS]:
            raise SplitError(f"keep_together: expected some of {', '.join(KINDS)}, got {', '.join(unknown)}")
        taken = {TRAIN, TEST} if self.test_from else {TRAIN}
        for name, count in self.holdouts:
            if not _NAME.fullmatch(name) or name in taken or count < 1:
                raise SplitError(f"holdouts: expected new names with 1 pair or more, got {name!r} with {count}")
            taken.add(name)

    def side_of(self, date: str) -> str:
        """Return the split that a day belongs to, "" where that is neither of the two or where there is no day."""
        if not date or not (self.train_until or self.test_from):
            return ""
        if date <= self.train_until or (not self.train_until and date < self.test_from):
            return TRAIN
        inside = self.test_from and self.test_from <= date and (not self.test_until or date <= self.test_until)
        return TEST if inside else ""


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """What becomes of each pair.

    Attributes:
        row_of: Id of a pair -> its place in the lists.
        groups: Group ids.
        splits: Names of splits; empty where the pair is dropped.
        reasons: Of the drops; empty elsewhere.
        report: Counts, for the funnel.
    """

    row_of: dict[str, int]
    groups: list[str]
    splits: list[str]
    reasons: list[str]
    report: dict[str, Any]


def union_groups(pairs: Iterable[Pair], keep_together: Sequence[str]) -> list[str]:
    """Return the group id of each pair: a function of the least pair id in its component, not of the order.

    Args:
        pairs: Behind the stage `duplicate`.
        keep_together: Names of `KINDS`.
    """
    ids, values, _ = _read_columns(pairs, keep_together)
    return _name_groups(ids, _connect(values, len(ids)))


def plan_splits(pairs: Iterable[Pair], settings: SplitSettings) -> SplitPlan:
    """Decide about all pairs from one pass over them, of which 0.5 kB each are held.

    Raises:
        SplitError: Two pairs have one id.
    """
    ids, values, dates = _read_columns(pairs, settings.keep_together)
    row_of = {name: row for row, name in enumerate(ids)}
    if len(row_of) < len(ids):
        raise SplitError(f"expected pairs of different ids, got {len(ids)} with {len(row_of)} ids")
    labels = _connect(values, len(ids))
    groups = _name_groups(ids, labels)
    splits, reasons, straddling = _split_by_date(labels, dates, settings)
    held = _hold_out(groups, splits, settings)
    report = {
        "settings": dataclasses.asdict(settings),
        "pairs": dict(sorted(Counter(split for split in splits if split).items())),
        "dropped": dict(sorted(Counter(reason for reason in reasons if reason).items())),
        "groups": len(set(groups)),
        "largest_group": max(Counter(groups).values(), default=0),
        "straddling_groups": straddling,
        "holdouts": held,
    }
    return SplitPlan(row_of, groups, splits, reasons, report)


def judge_split(pair: Pair, plan: SplitPlan) -> Pair | Decision:
    """Give a pair its group and its split, or end it."""
    row = plan.row_of[pair.id]
    pair = dataclasses.replace(pair, group_id=plan.groups[row], split=plan.splits[row])
    return drop(pair, STAGE, plan.reasons[row]) if plan.reasons[row] else pair


def assign_splits(pairs: Sequence[Pair], settings: SplitSettings) -> tuple[list[Pair], list[Decision]]:
    """Plan and judge pairs that fit in memory; both lists are in the order of the pairs."""
    plan = plan_splits(pairs, settings)
    judged = [judge_split(pair, plan) for pair in pairs]
    kept = [one for one in judged if isinstance(one, Pair)]
    return kept, [one for one in judged if isinstance(one, Decision)]


def _read_columns(
    pairs: Iterable[Pair], keep_together: Sequence[str]
) -> tuple[list[str], dict[str, np.ndarray], list[str]]:
    """Ids, by kind the hashes of the shared values, uint64 [N, V], and days."""
    ids: list[str] = []
    dates: list[str] = []
    values = {kind: array("Q") for kind in keep_together}
    days: dict[str, str] = {}  # one string a day, not one a pair
    for pair in pairs:
        ids.append(pair.id)
        day = pair.created_at[:10]
        dates.append(days.setdefault(day, day))
        for kind, column in values.items():
            column.extend(map(hash_text, KINDS[kind](pair)))
    count = max(1, len(ids))
    columns = {kind: np.array(column, np.uint64) for kind, column in values.items()}
    return ids, {kind: column.reshape(len(ids), len(column) // count) for kind, column in columns.items()}, dates


def _connect(values: dict[str, np.ndarray], count: int) -> np.ndarray:
    """The least row of each row's component, int64 [N]."""
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for column in values.values():
        if not count:
            continue
        for side, ends in zip((left, right), link_equal(column.reshape(-1)), strict=True):
            side.append(ends // column.shape[1])
    return components(count, np.concatenate(left), np.concatenate(right))


def _name_groups(ids: Sequence[str], labels: np.ndarray) -> list[str]:
    least: dict[int, str] = {}
    for name, label in zip(ids, labels.tolist(), strict=True):
        if label not in least or name < least[label]:
            least[label] = name
    names = {label: f"g{hash_text(name):016x}" for label, name in least.items()}
    return [names[label] for label in labels.tolist()]


def _split_by_date(
    labels: np.ndarray, dates: Sequence[str], settings: SplitSettings
) -> tuple[list[str], list[str], int]:
    """Splits, reasons of drops, and the number of groups with pairs on both sides."""
    if not (settings.train_until or settings.test_from):
        return [TRAIN] * len(dates), [""] * len(dates), 0
    side_of = {date: settings.side_of(date) for date in set(dates)}
    sides = [side_of[date] for date in dates]
    found: dict[int, set[str]] = {}
    for label, side in zip(labels.tolist(), sides, strict=True):
        found.setdefault(label, set()).update([side] if side else [])
    splits, reasons = [], []
    for label, date, side in zip(labels.tolist(), dates, sides, strict=True):
        straddles = len(found[label]) == 2
        split, reason = side or (min(found[label]) if len(found[label]) == 1 else TRAIN), ""
        if not date:
            reason = "undated" if settings.undated == "drop" else ""
        elif not side:
            reason = "outside_dates"
        if not reason and straddles and (settings.straddling == "drop" or split == TEST):
            reason = "straddles_dates"
        splits.append("" if reason else split)
        reasons.append(reason)
    return splits, reasons, sum(len(both) == 2 for both in found.values())


def _hold_out(groups: Sequence[str], splits: list[str], settings: SplitSettings) -> dict[str, dict[str, int]]:
    """Move whole groups from `train` to the hold-outs, in the order of a keyed hash, until each has its pairs.

    The last of them are chosen so that the size is met exactly, if groups of such sizes are there.
    """
    sizes = Counter(group for group, split in zip(groups, splits, strict=True) if split == TRAIN)
    split_of: dict[str, str] = {}
    report = {}
    for name, asked in settings.holdouts:
        taken = _choose_groups(sizes, asked, f"{settings.seed}\n{name}")
        report[name] = {"asked": asked, "reached": sum(sizes[group] for group in taken), "groups": len(taken)}
        for group in taken:
            split_of[group] = name
            del sizes[group]
    for row, group in enumerate(groups):
        if splits[row] == TRAIN:
            splits[row] = split_of.get(group, TRAIN)
    return report


def _choose_groups(sizes: Mapping[str, int], asked: int, key: str) -> list[str]:
    """Groups of `asked` pairs together, or of as many as can be had below it."""

    def place(group: str) -> tuple[int, str]:
        return hash_text(f"{key}\n{group}"), group

    taken: list[str] = []
    others: list[str] = []
    missing = asked
    of_size: Counter[int] = Counter()
    for group in sorted(sizes, key=place):
        size = sizes[group]
        if missing > _FITTED_PAIRS and size <= missing - _FITTED_PAIRS:
            taken.append(group)
            missing -= size
        elif of_size[size] < asked // size:  # more of one size cannot be of use
            of_size[size] += 1
            others.append(group)
    return taken + [others[row] for row in _choose_sum([sizes[group] for group in others], missing)]


def _choose_sum(sizes: Sequence[int], target: int) -> list[int]:
    """Rows whose sizes add up to the target, or to the most below it: exact, with a bit for each sum within reach."""
    within = [1]
    for size in sizes:
        within.append((within[-1] | within[-1] << size) & ((2 << target) - 1))
        if within[-1] >> target & 1:
            break
    left = within[-1].bit_length() - 1
    chosen = []
    for row in reversed(range(len(within) - 1)):
        if not within[row] >> left & 1:  # out of reach without this row
            chosen.append(row)
            left -= sizes[row]
    return chosen
