"""Percentile bootstrap over independent units: seeded, vectorised, paired between models by construction.

Each resample draws as many units as there are, with replacement (Efron & Tibshirani 1993, chapter 13); every example of
a drawn unit counts as often as the unit was drawn. The draws depend on the seed and the number of units alone, so two
models measured on the same units share them, and the differences of their replicates are a paired bootstrap.

Scores of a confusion matrix take the short way: `confusion_replicates` counts cells, a few numbers a resample, where
weights of single examples would be as many numbers as there are examples.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from scipy import sparse

from plip_jax.evaluation import statistics
from plip_jax.evaluation.units import Units

# Weights held at a time, int32: bounds memory at any number of examples, with room for a statistic's float64 copies.
_BLOCK_WEIGHTS = 4 * 2**20
# Below this many units a percentile interval covers less than it says (Cameron, Gelbach & Miller 2008).
_FEW_UNITS = 20


@dataclasses.dataclass(frozen=True)
class BootstrapConfig:
    """How intervals are made.

    Attributes:
        resamples: R.
        seed: of the draws.
        level: of the interval; 0.95 cuts 2.5 % at each side.
    """

    resamples: int = 2000
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0 < self.level < 1:
            raise ValueError(
                f"bootstrap: expected 1 or more resamples and a level in (0, 1), got {self.resamples} and {self.level}"
            )


def item_weights(units: Units, config: BootstrapConfig) -> Iterator[np.ndarray]:
    """How often each example counts in each resample: int32 [r, N] blocks, R rows in all."""
    one_each = _one_item_a_unit(units)
    for weights in _unit_weights(units.count, max(units.count, len(units.of_item)), config):
        yield weights if one_each else weights[:, units.of_item]


def replicate(
    units: Units, config: BootstrapConfig, statistic: Callable[[np.ndarray], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Compute statistics on every resample.

    Args:
        units: of the examples.
        config: how many, which seed.
        statistic: from weights int32 [r, N] to named float64 [r]; NaN where it is not defined.

    Returns:
        Named float64 [R].
    """
    blocks = [
        {
            name: np.array(values, np.float64) for name, values in statistic(weights).items()
        }  # a copy: no view keeps them
        for weights in item_weights(units, config)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def confusion_replicates(
    label_ids: np.ndarray, predicted_ids: np.ndarray, num_classes: int, units: Units, config: BootstrapConfig
) -> np.ndarray:
    """The confusion matrix of every resample; the draws are those of `item_weights`.

    Args:
        label_ids: integers in [0, num_classes), [N].
        predicted_ids: the same.
        num_classes: K.
        units: of the N examples.
        config: how many, which seed.

    Returns:
        int64 [R, K, K], rows actual.

    Raises:
        ValueError: ids that `statistics.confusion_matrix` refuses, or units of other examples.
    """
    statistics.confusion_matrix(label_ids, predicted_ids, num_classes)  # checks the ids
    cells = np.asarray(label_ids, np.int64) * num_classes + np.asarray(predicted_ids, np.int64)
    return count_replicates(cells, num_classes**2, units, config).reshape(-1, num_classes, num_classes)


def count_replicates(values: np.ndarray, num_values: int, units: Units, config: BootstrapConfig) -> np.ndarray:
    """How often each value occurs in every resample; the draws are those of `item_weights`.

    Args:
        values: integers in [0, num_values), [N], one an example (whether it is right, say, or its cell of a matrix).
        num_values: V.
        units: of the N examples.
        config: how many, which seed.

    Returns:
        int64 [R, V].

    Raises:
        ValueError: units of other examples.
    """
    if len(values) != len(units.of_item):
        raise ValueError(f"expected the units of {len(values)} examples, got those of {len(units.of_item)}")
    # Most cells of a large matrix are empty: only values that occur are counted.
    found, value_of_item = np.unique(values, return_inverse=True)
    counts = np.zeros((config.resamples, num_values), np.int64)
    if units.count == len(values):
        # One example a unit: its value is looked up for each draw, with no table of weights in between.
        value_of_unit = np.empty(units.count, np.int64)
        value_of_unit[units.of_item] = value_of_item
        for row, drawn in enumerate(_draws(units.count, config)):
            counts[row, found] = np.bincount(value_of_unit.take(drawn), minlength=len(found))
        return counts
    of_unit = sparse.coo_array(
        (np.ones(len(values), np.int64), (value_of_item, units.of_item)), shape=(len(found), units.count)
    ).tocsr()  # adds up what is at one place
    start = 0
    for weights in _unit_weights(units.count, units.count, config):
        rows = np.arange(start, start + len(weights))
        counts[rows[:, None], found] = (of_unit @ weights.T.astype(np.int64)).T
        start += len(weights)
    return counts


def classification_bootstrap(
    label_ids: np.ndarray, predicted_ids: np.ndarray, num_classes: int, units: Units, config: BootstrapConfig
) -> dict[str, np.ndarray]:
    """Replicates of every field of `statistics.ClassificationMetrics`.

    Args:
        label_ids: integers in [0, num_classes), [N].
        predicted_ids: the same.
        num_classes: K.
        units: of the N examples.
        config: how many, which seed.

    Returns:
        Named float64 [R], fit for `summarize` and `task.TaskResult.replicates`.
    """
    return statistics.metrics_of(confusion_replicates(label_ids, predicted_ids, num_classes, units, config))


def mean_replicates(hits: np.ndarray, units: Units, config: BootstrapConfig) -> np.ndarray:
    """The share of hits (bool [N]) in every resample, float64 [R]."""
    counts = count_replicates(np.asarray(hits, bool).astype(np.int64), 2, units, config)
    return counts[:, 1] / counts.sum(axis=1)


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """The percentile interval of those replicates that are defined.

    Args:
        values: float64 [R]; NaN where a resample does not define the statistic (no positive example in it, say).
        level: of the interval.

    Returns:
        Its ends; None where more than half of the replicates are not defined, as those left tell little.
    """
    defined = values[np.isfinite(values)]
    if 2 * len(defined) < len(values) or not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarize(replicates: Mapping[str, np.ndarray], units: Units, config: BootstrapConfig) -> dict[str, Any]:
    """The ``bootstrap`` block of a task's report.

    A resample in which a metric is not defined is left out of that metric's interval, and counted under
    ``undefined_resamples``. One unit cannot vary: it gets no interval.
    """
    intervals = {name: interval(values, config.level) for name, values in replicates.items()}
    undefined = {name: int((~np.isfinite(values)).sum()) for name, values in replicates.items()}
    return {
        "unit": units.label,
        "num_units": units.count,
        "resamples": config.resamples,
        "seed": config.seed,
        "level": config.level,
        "method": "percentile",
        "warning": f"{units.count} units: too few, the intervals are too narrow" if units.count < _FEW_UNITS else None,
        "intervals": {
            name: None if found is None or units.count < 2 else list(found) for name, found in intervals.items()
        },
        "undefined_resamples": {name: count for name, count in undefined.items() if count},
    }


def _draws(count: int, config: BootstrapConfig) -> Iterator[np.ndarray]:
    """The units of each resample, int64 [count]; every other function draws through this one."""
    rng = np.random.default_rng(config.seed)
    for _ in range(config.resamples):
        yield rng.integers(0, count, count)


def _unit_weights(count: int, width: int, config: BootstrapConfig) -> Iterator[np.ndarray]:
    """How often each unit was drawn: int32 [r, count] blocks, r such that r rows of ``width`` stay bounded."""
    block = max(1, _BLOCK_WEIGHTS // width)
    draws = _draws(count, config)
    for start in range(0, config.resamples, block):
        weights = np.empty((min(block, config.resamples - start), count), np.int32)
        for row in weights:
            row[:] = np.bincount(next(draws), minlength=count)
        yield weights


def _one_item_a_unit(units: Units) -> bool:
    return units.count == len(units.of_item) and bool((units.of_item == np.arange(units.count)).all())
