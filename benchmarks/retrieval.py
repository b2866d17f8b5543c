"""Exact retrieval ranks: seconds and peak memory of ours, beside a blockwise argsort in numpy.

    python -m benchmarks.retrieval

ranks 100,000 images for each of 100,000 texts, then both programs at a smaller common size, each in its own process;
it prints a table and writes it with machine, versions and settings as JSON. The features are small integers, so that
every product is exact in float32 in any order of summation and both must agree on every rank, ties included.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loss_memory import _memory as memory_in_use

ROOT = Path(__file__).parents[1]
# Scores that the reference sorts at a time: 64 MiB of them, 128 MiB of their order.
_REFERENCE_BLOCK = 2**24


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 1 where the two disagree on a rank."""
    parser = argparse.ArgumentParser(prog="benchmarks.retrieval", description=__doc__)
    parser.add_argument("--n", type=int, default=100_000, help="images, and texts, of the full size; 0 leaves it out")
    parser.add_argument("--common-n", type=int, default=20_000, help="of the size at which both are measured")
    parser.add_argument("--dim", type=int, default=512, help="of the features")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs, after one that is not; the median counts")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/retrieval_PLATFORM.json")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one measurement, in the process that is measured
    flags = parser.parse_args(argv)
    if flags.measure:
        print(json.dumps(measure(**json.loads(flags.measure))))
        return 0
    machine = json.loads(_run(["-m", "benchmarks.machine"]))
    plan = [("numpy", flags.common_n), ("ours", flags.common_n), *([("ours", flags.n)] if flags.n else [])]
    results = []
    print(_line("program", "n", "seconds", "peak GiB", "of that before", "median rank"))
    for program, n in plan:
        request = {"program": program, "n": n, "dim": flags.dim, "repeats": flags.repeats}
        found = json.loads(_run(["-m", "benchmarks.retrieval", "--measure", json.dumps(request)]).splitlines()[-1])
        results.append(found)
        numbers = [f"{found[key]:.3f}" for key in ("seconds", "peak_gib", "start_gib")]
        print(_line(program, f"{n:,}", *numbers, f"{found['median_rank']:g}"), flush=True)
    reference, ours = results[:2]
    same = reference["ranks_sha256"] == ours["ranks_sha256"]
    summary = {"equal_ranks": same, "times_faster": reference["seconds"] / ours["seconds"]}
    print(f"at {flags.common_n:,}: ranks {'equal' if same else 'DIFFER'}, {summary['times_faster']:.2f} times as fast")
    out = flags.out or ROOT / "benchmarks" / "results" / f"retrieval_{machine['platform']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine, "results": results, "summary": summary}, indent=2) + "\n")
    print(f"written to {out}")
    return 0 if same else 1


def measure(program: str, n: int, dim: int, repeats: int) -> dict[str, Any]:
    """Rank n images for n texts in this process.

    Args:
        program: "ours" or "numpy".
        n: images, and texts.
        dim: of the features.
        repeats: timed runs, behind one that is not timed; 0 times that one.

    Returns:
        The arguments, ``seconds`` (median of the timed runs), ``peak_gib`` and ``start_gib`` (memory of the device, or
        of this process where it has none, at its highest and before the first run), ``median_rank`` and
        ``ranks_sha256``.
    """
    from plip_jax.evaluation import retrieval

    texts, images = draw_features(n, dim)
    targets = [np.asarray([row]) for row in range(n)]
    start = memory_in_use()
    seconds, ranks = [], np.empty(0, np.int64)
    for _ in range(repeats + 1):
        began = time.perf_counter()
        ranks = retrieval.first_ranks(texts, images, targets) if program == "ours" else argsort_ranks(texts, images)
        seconds.append(time.perf_counter() - began)
    return {
        "program": program,
        "n": n,
        "dim": dim,
        "repeats": repeats,
        "seconds": statistics.median(seconds[1:] or seconds),
        "peak_gib": memory_in_use(peak=True) / 2**30,
        "start_gib": start / 2**30,
        "median_rank": float(np.median(ranks)),
        "ranks_sha256": hashlib.sha256(np.asarray(ranks, "<i8").tobytes()).hexdigest(),
    }


def draw_features(n: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts and images of small integers, each text a noisy copy of its image; float32 [n, dim] both."""
    rng = np.random.default_rng(0)
    images = rng.integers(-4, 5, (n, dim)).astype(np.float32)
    texts = images + rng.integers(-60, 61, (n, dim)).astype(np.float32)
    return texts, images


def argsort_ranks(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Rank candidate i for query i by sorting every score; ties count against it. int64 [Q]."""
    ranks = np.empty(len(queries), np.int64)
    block = max(1, _REFERENCE_BLOCK // len(candidates))
    for start in range(0, len(queries), block):
        scores = queries[start : start + block] @ candidates.T
        order = np.argsort(scores, axis=1)
        for row, (own, by_score) in enumerate(zip(scores, order, strict=True)):
            below = np.searchsorted(own, own[start + row], side="left", sorter=by_score)
            ranks[start + row] = len(candidates) - below
    return ranks


def _run(arguments: list[str]) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout


def _line(*cells: object) -> str:
    return f"{cells[0]!s:10}" + "".join(f"{cell!s:>16}" for cell in cells[1:])


if __name__ == "__main__":
    sys.exit(main())
