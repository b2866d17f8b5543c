"""Percentile bootstrap over independent units: seeded, vectorised, paired between models by construction.

Each resample draws as many units as there are, with replacement (Efron & Tibshirani 1993, chapter 13); every example of
a drawn unit counts as often as the unit was drawn. The draws depend on the seed and the number of units alone, so two
models measured on the same units share them, and the differences of their replicates are a paired bootstrap.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from plip_jax.evaluation.units import Units

# Weights held at a time, int32: bounds memory at any number of examples.
_BLOCK_WEIGHTS = 16 * 2**20


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
    rng = np.random.default_rng(config.seed)
    block = max(1, _BLOCK_WEIGHTS // max(units.count, len(units.of_item)))
    for start in range(0, config.resamples, block):
        weights = np.empty((min(block, config.resamples - start), units.count), np.int32)
        for row in weights:
            row[:] = np.bincount(rng.integers(0, units.count, units.count, dtype=np.int32), minlength=units.count)
        yield weights if units.kind == "patch" else weights[:, units.of_item]


def replicate(
    units: Units, config: BootstrapConfig, statistic: Callable[[np.ndarray], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Compute statistics on every resample.

    Args:
        units: of the examples.
        config: how many, which seed.
        statistic: from weights int32 [r, N] to named float64 [r].

    Returns:
        Named float64 [R].
    """
    blocks = [statistic(weights) for weights in item_weights(units, config)]
    return {name: np.concatenate([np.asarray(block[name], np.float64) for block in blocks]) for name in blocks[0]}


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """The percentile interval of replicates; None where one of them is not defined."""
    if not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarize(replicates: Mapping[str, np.ndarray], units: Units, config: BootstrapConfig) -> dict[str, Any]:
    """The ``bootstrap`` block of a task's report."""
    intervals = {name: interval(values, config.level) for name, values in replicates.items()}
    return {
        "unit": units.label,
        "num_units": units.count,
        "resamples": config.resamples,
        "seed": config.seed,
        "level": config.level,
        "method": "percentile",
        "intervals": {name: None if found is None else list(found) for name, found in intervals.items()},
    }
