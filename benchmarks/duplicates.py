"""Grouping near-duplicate hashes on one core, beside all pairs in numpy and in imagehash; and the hashing of images.

    OMP_NUM_THREADS=1 python -m benchmarks.duplicates

groups a million hashes of which a tenth are near-copies of others, and as many of which a fifth are one value; then
each program at a size that it can do, where all must find the same groups. Images are hashed in memory by ours (with
flips and turns) and by imagehash, in turns. It prints a table and writes it with machine, versions and settings.
"""

import argparse
import hashlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image

from benchmarks.machine import describe_machine
from data_prep.grouping.components import components
from data_prep.grouping.duplicates import duplicate_groups
from plip_jax.data.perceptual_hash import dhash, distances, hash_image

ROOT = Path(__file__).parents[1]
RADIUS = 3
_NEAR_COPIES, _ONE_VALUE = 0.1, 0.2  # shares of the hashes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 1 where two programs find other groups."""
    parser = argparse.ArgumentParser(prog="benchmarks.duplicates", description=__doc__)
    parser.add_argument("--hashes", type=int, default=1_000_000, help="of the full size, ours alone")
    parser.add_argument("--numpy-hashes", type=int, default=20_000, help="of the comparison with all pairs in numpy")
    parser.add_argument("--imagehash-hashes", type=int, default=10_000, help="of that with imagehash (a minute)")
    parser.add_argument("--images", type=int, default=200, help="hashed by each side")
    parser.add_argument("--side", type=int, default=512, help="of the images, pixels")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the median counts")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "duplicates_cpu.json")
    flags = parser.parse_args(argv)
    settings = {name: value for name, value in vars(flags).items() if name != "out"}
    groups = [
        *measure_ours(flags.hashes, flags.repeats),
        *compare("numpy, all pairs", numpy_groups, flags.numpy_hashes, flags.repeats),
        *compare("imagehash, all pairs", imagehash_groups, flags.imagehash_hashes, 1),
    ]
    images = measure_hashing(flags.images, flags.side, flags.repeats)
    machine = describe_machine()
    machine["versions"] |= {name: metadata.version(name) for name in ("imagehash", "scipy")}
    print(f"{'hashes':>10}  {'of them':24}{'program':24}{'seconds':>10}{'groups':>10}")
    for one in groups:
        print(f"{one['hashes']:>10,}  {one['of']:24}{one['program']:24}{one['seconds']:10.3f}{one['groups']:>10,}")
    for one in images:
        print(f"{one['program']:24}{one['images_per_second']:10.0f} images/s")
    same = all(
        one["groups_sha256"] == two["groups_sha256"] for one, two in zip(groups[2::2], groups[3::2], strict=True)
    )
    print("groups are equal" if same else "groups DIFFER")
    result = {"machine": machine, "config": settings, "grouping": groups, "hashing": images, "equal_groups": same}
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {flags.out}")
    return 0 if same else 1


def draw_hashes(count: int, *, one_value: float = 0.0) -> np.ndarray:
    """Random hashes, a tenth of them replaced by copies of others with up to three bits set; uint64 [count].

    Args:
        count: Hashes.
        one_value: Share of them that are then set to one value.
    """
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    copies, of = rng.integers(0, count, (2, int(_NEAR_COPIES * count)))
    bits = np.uint64(1) << rng.integers(0, 64, (RADIUS, len(copies)), dtype=np.uint64)
    hashes[copies] = hashes[of] ^ np.bitwise_or.reduce(bits, axis=0)
    hashes[rng.permutation(count)[: int(one_value * count)]] = hashes[0]
    return hashes


def numpy_groups(hashes: np.ndarray, radius: int) -> np.ndarray:
    """Group as `duplicate_groups` does, from the distances of all pairs, a row of them at a time."""
    links = [np.flatnonzero(distances(hashes[row], hashes[row:]) <= radius) + row for row in range(len(hashes))]
    left = np.repeat(np.arange(len(hashes)), [len(others) for others in links])
    return components(len(hashes), left, np.concatenate(links))


def imagehash_groups(hashes: np.ndarray, radius: int) -> np.ndarray:
    """Group as `duplicate_groups` does, with imagehash's own distance of two hashes."""
    shown = [imagehash.hex_to_hash(f"{value:016x}") for value in hashes.tolist()]
    links = [
        (row, other)
        for row in range(len(shown))
        for other in range(row, len(shown))
        if shown[row] - shown[other] <= radius
    ]
    left, right = np.array(links).T
    return components(len(hashes), left, right)


def measure_ours(count: int, repeats: int) -> list[dict[str, Any]]:
    """Time ours at the full size: near-copies, and with one value that is often there."""
    return [
        _measure("ours", duplicate_groups, draw_hashes(count, one_value=share), name, repeats)
        for name, share in (("10 % near-copies", 0.0), ("20 % one value", _ONE_VALUE))
    ]


def compare(
    name: str, group: Callable[[np.ndarray, int], np.ndarray], count: int, repeats: int
) -> list[dict[str, Any]]:
    """Time another program and ours on the same hashes."""
    hashes = draw_hashes(count)
    results = [
        _measure(program, run, hashes, "10 % near-copies", repeats)
        for program, run in ((name, group), ("ours", duplicate_groups))
    ]
    for one in results:
        one["times_faster_than_all_pairs"] = results[0]["seconds"] / one["seconds"]
    return results


def _measure(
    program: str, group: Callable[[np.ndarray, int], np.ndarray], hashes: np.ndarray, of: str, repeats: int
) -> dict[str, Any]:
    seconds = []
    labels = np.empty(0, np.int64)
    for _ in range(repeats):
        began = time.process_time()  # of this process on all its cores
        labels = group(hashes, RADIUS)
        seconds.append(time.process_time() - began)
    return {
        "program": program,
        "hashes": len(hashes),
        "of": of,
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "groups": len(np.unique(labels)),
        "groups_sha256": hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest(),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,  # of the process so far; kB on Linux
    }


def measure_hashing(count: int, side: int, repeats: int) -> list[dict[str, Any]]:
    """Time the hashing of decoded images on both sides, in turns."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]
    programs: dict[str, Callable[[Image.Image], Any]] = {
        "imagehash, pHash": imagehash.phash,
        "ours, pHash of 8 turns": hash_image,
        "imagehash, dHash": imagehash.dhash,
        "ours, dHash": dhash,
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, run in programs.items():
            began = time.process_time()
            for image in images:
                run(image)
            seconds[name].append(time.process_time() - began)
    return [
        {"program": name, "images_per_second": count / statistics.median(taken), "all_seconds": taken}
        for name, taken in seconds.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
