"""Ways to split a set that several builders share: at random as PLIP does, and by whole units.

Both draw from `numpy.random.RandomState`, whose stream numpy keeps for good, so a manifest made today is made again
tomorrow.
"""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from plip_jax.data.split_manifest import Part


def pandas_order(count: int, seed: int = 1) -> np.ndarray:
    """The rows in the order of pandas' ``sample(frac=1, random_state=seed)``: int64 [count].

    pandas (pandas/core/sample.py) draws ``RandomState(seed).choice(count, count, replace=False)``, and that method
    (numpy/random/mtrand.pyx) returns ``permutation(count)``: so pandas itself is not needed.
    Compared with pandas 3.1.1.
    """
    return np.random.RandomState(seed).permutation(count)


def random_rows(count: int, share: float = 0.7, seed: int = 1) -> tuple[list[int], list[int]]:
    """PLIP's split: shuffle, the first int(share * count) rows to train, the rest to test."""
    order = pandas_order(count, seed).tolist()
    return order[: int(share * count)], order[int(share * count) :]


def random_parts(filenames: Sequence[str], labels: Sequence[str] = ()) -> dict[str, Part]:
    """`random_rows` of file names: 70 % train, 30 % test, seed 1; ``labels`` where the scheme has its own."""
    train, test = random_rows(len(filenames))
    return {
        name: Part(tuple(filenames[row] for row in rows), tuple(labels[row] for row in rows) if labels else ())
        for name, rows in (("train", train), ("test", test))
    }


def unit_rows(
    units: Sequence[str], labels: Sequence[str], shares: Mapping[str, float], seed: int = 1
) -> dict[str, list[int]]:
    """Split rows by whole units so that every class comes close to its share in every part.

    Units are visited from the largest to the smallest, equal ones in a seeded order; each goes to the part that lacks
    most of what it holds, each class counted relative to its size in the set (after Sechidis et al. 2011,
    doi:10.1007/978-3-642-23808-6_10, with units in the place of examples).

    Args:
        units: of each row, such as its slide.
        labels: of each row.
        shares: of each part; they sum to 1.
        seed: of the order among equals.

    Returns:
        Part -> rising rows; a part without any row is left out.
    """
    held: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for unit, label in zip(units, labels, strict=True):
        held[unit][label] += 1
    totals = collections.Counter(labels)
    lacking = {part: {label: share * count for label, count in totals.items()} for part, share in shares.items()}
    names = sorted(held)
    shuffled = [names[index] for index in pandas_order(len(names), seed)]
    part_of: dict[str, str] = {}
    for unit in sorted(shuffled, key=lambda unit: -held[unit].total()):
        counts = held[unit]
        needs = {
            part: sum(count * lacks[label] / totals[label] for label, count in counts.items())
            for part, lacks in lacking.items()
        }
        chosen = max(needs, key=lambda part: needs[part])
        part_of[unit] = chosen
        for label, count in counts.items():
            lacking[chosen][label] -= count
    rows = {part: [row for row, unit in enumerate(units) if part_of[unit] == part] for part in shares}
    return {part: found for part, found in rows.items() if found}


def unit_parts(
    filenames: Sequence[str],
    units: Sequence[str],
    labels: Sequence[str],
    shares: Mapping[str, float],
    *,
    own_labels: bool = False,
) -> dict[str, Part]:
    """`unit_rows` of file names; with ``own_labels`` the scheme labels its files by ``labels``."""
    return {
        part: Part(tuple(filenames[row] for row in rows), tuple(labels[row] for row in rows) if own_labels else ())
        for part, rows in unit_rows(units, labels, shares).items()
    }
