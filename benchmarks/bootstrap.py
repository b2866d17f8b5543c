"""What intervals take: the vectorised bootstrap beside a plain loop of scikit-learn's ``f1_score``, from equal draws.

    python -m benchmarks.bootstrap

resamples simulated answers, prints a table and writes it with machine, versions and settings as JSON. Both sides give
weighted F1 of the same resamples, and how far they differ is written beside the times; ours gives accuracy, macro F1,
balanced accuracy and Matthews' coefficient from the same counts. The sides take turns, so that what else the machine
does falls on both.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from benchmarks.machine import describe_machine
from plip_jax.evaluation.bootstrap import BootstrapConfig, classification_bootstrap
from plip_jax.evaluation.units import Units

ROOT = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.bootstrap", description=__doc__)
    parser.add_argument("--labels", type=int, default=100_000, help="examples")
    parser.add_argument("--classes", type=int, default=9)
    parser.add_argument("--units", type=int, default=86, help="slides, for the resampling of slides")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the median counts")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "bootstrap_cpu.json")
    flags = parser.parse_args(argv)
    settings = {name: getattr(flags, name) for name in ("labels", "classes", "units", "resamples", "repeats")}
    results = measure(**settings)
    machine = describe_machine()
    machine["versions"] |= {name: metadata.version(name) for name in ("scikit-learn", "scipy")}
    print(f"{'resampled':12}{'side':24}{'seconds':>10}{'x':>8}")
    for result in results:
        print(f"{result['resampled']:12}{result['side']:24}{result['seconds']:10.3f}{result['speedup']:8.1f}")
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps({"machine": machine, "config": settings, "results": results}, indent=2) + "\n")
    print(f"written to {flags.out}")
    return 0


def measure(labels: int, classes: int, units: int, resamples: int, repeats: int) -> list[dict[str, Any]]:
    """Time both sides, for resampled examples and for resampled slides.

    Args:
        labels: N examples.
        classes: K.
        units: slides that the examples are spread over.
        resamples: R.
        repeats: runs of each side.

    Returns:
        A line a side: what is resampled, ``seconds`` (median), ``all_seconds``, ``speedup`` over the loop and
        ``largest_difference`` of its weighted F1 to the loop's.
    """
    rng = np.random.default_rng(0)
    actual = rng.integers(0, classes, labels)
    predicted = np.where(rng.random(labels) < 0.6, actual, rng.integers(0, classes, labels))
    config = BootstrapConfig(resamples)
    results = []
    for resampled in (Units("patch", np.arange(labels), labels), Units("slide", rng.integers(0, units, labels), units)):

        def ours(resampled: Units = resampled) -> np.ndarray:
            return classification_bootstrap(actual, predicted, classes, resampled, config)["weighted_f1"]

        def loop(resampled: Units = resampled) -> np.ndarray:
            return _loop(actual, predicted, resampled, config)

        name = "examples" if resampled.kind == "patch" else "slides"
        results += _take_turns(name, {"plain loop of f1_score": loop, "plip_jax": ours}, repeats)
    return results


def _loop(actual: np.ndarray, predicted: np.ndarray, units: Units, config: BootstrapConfig) -> np.ndarray:
    """What one writes without a library: draw, gather, score."""
    members = np.split(np.argsort(units.of_item, kind="stable"), np.bincount(units.of_item).cumsum()[:-1])
    draws = np.random.default_rng(config.seed)
    values = np.empty(config.resamples)
    for row in range(config.resamples):
        drawn = draws.integers(0, units.count, units.count)
        rows = drawn if units.kind == "patch" else np.concatenate([members[unit] for unit in drawn])
        values[row] = f1_score(actual[rows], predicted[rows], average="weighted")
    return values


def _take_turns(name: str, sides: dict[str, Callable[[], np.ndarray]], repeats: int) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    values: dict[str, np.ndarray] = {}
    for _ in range(repeats):
        for side, run in sides.items():
            began = time.perf_counter()
            values[side] = run()
            seconds[side].append(time.perf_counter() - began)
    baseline = next(iter(sides))
    return [
        {
            "resampled": name,
            "side": side,
            "seconds": statistics.median(taken),
            "all_seconds": taken,
            "speedup": statistics.median(seconds[baseline]) / statistics.median(taken),
            "largest_difference": float(np.abs(values[side] - values[baseline]).max()),
        }
        for side, taken in seconds.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
