"""What curation takes: posts, captions and images a second, grouping of copies, and memory at N and 4N images.

    OMP_NUM_THREADS=1 python -m benchmarks.curation [--folder IMAGES]

writes pages of X's API v2 and times the stages source, thread and text on them, in one process and in two; times the
stage `image` in turns with Pillow's bare decoding and encoding, on clouds of noise that it draws or on the images of a
folder; cleans the captions of the tests, without and with the detector of languages; groups hashes beside imagehash
(more of that: `benchmarks.duplicates`); and curates folders of N and 4N images in processes of their own, whose memory
is read. It prints a table and writes it with machine, versions and settings. Nothing is fetched.
"""

import argparse
import io
import itertools
import json
import re
import resource
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.duplicates import compare, imagehash_groups, measure_ours
from benchmarks.machine import describe_machine
from data_prep.curate import Curation, curate
from data_prep.curation import stages
from data_prep.curation.authors import KEY_BYTES, AuthorKey
from data_prep.curation.config import CurationConfig
from data_prep.curation.engine import Engine
from data_prep.curation.pair import Pair
from data_prep.fetching.store import Store
from data_prep.images.clean_image import CleanImage, ImageSettings, clean_image
from data_prep.removing.tombstones import Tombstones
from data_prep.text.clean_text import TextSettings, clean_text
from plip_jax.config_file import load_config

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "data"
CAPTIONS = ROOT / "tests" / "data_prep" / "text" / "captions.json"
_PAGE = 100  # posts: the most that X gives in one
_DUMP_FILES = 8
_FIRST_ID = 1_500_000_000_000_000_000
_PACKAGES = ("apache-beam", "ftfy", "emoji", "imagehash", "py3langid", "pyarrow")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.curation", description=__doc__)
    parser.add_argument("--posts", type=int, default=20_000, help="of the dump of X")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="that read the dump")
    parser.add_argument("--images", type=int, default=2000, help="of the larger curation; a quarter elsewhere")
    parser.add_argument("--side", type=int, default=512, help="of the images that are drawn, pixels")
    parser.add_argument("--folder", type=Path, help="time the stage `image` on the images below this folder")
    parser.add_argument("--captions", type=int, default=5000, help="of a run; those of the tests are repeated")
    parser.add_argument("--hashes", type=int, default=1_000_000, help="of the full size, ours alone")
    parser.add_argument("--imagehash-hashes", type=int, default=5000, help="of the comparison (half a minute)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the median counts")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "curation_cpu.json")
    parser.add_argument("--measure-memory", type=int, metavar="IMAGES", help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.measure_memory:
        print(json.dumps(measure_memory(flags.measure_memory, flags.side)))
        return 0
    few = max(1, flags.images // 4)
    images = read_images(flags.folder, few) if flags.folder else list(itertools.islice(draw_images(flags.side), few))
    results: dict[str, Any] = {
        "metadata": [measure_metadata(flags.posts, workers) for workers in flags.processes],
        "images": measure_images(images, flags.repeats),
        "captions": measure_captions(flags.captions, flags.repeats),
        "duplicates": [
            *measure_ours(flags.hashes, flags.repeats),
            *compare("imagehash, all pairs", imagehash_groups, flags.imagehash_hashes, 1),
        ],
        "memory": [measure_apart(count, flags.side) for count in (few, 4 * few)],
    }
    results["memory_ratio"] = results["memory"][1]["peak_mib"] / results["memory"][0]["peak_mib"]
    machine = describe_machine()
    machine["versions"] |= {name: metadata.version(name) for name in _PACKAGES}
    settings = {name: value for name, value in vars(flags).items() if name not in ("out", "measure_memory", "folder")}
    settings["images_from"] = "a folder" if flags.folder else "drawn"
    _print(results)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps({"machine": machine, "config": settings, **results}, indent=2) + "\n")
    print(f"written to {flags.out}")
    return 0


def _print(results: dict[str, Any]) -> None:
    for one in results["metadata"]:
        for stage, seconds in one["seconds"].items():
            rate = one["rows"][stage] / seconds
            print(f"{stage:10}{one['workers']} process(es){one['rows'][stage]:>10,} rows{rate:>10,.0f} rows/s")
        print(
            f"{'together':10}{one['workers']} process(es){one['posts']:>10,} posts{one['posts_per_second']:>9,.0f} /s"
        )
    for one in results["images"]:
        print(
            f"{one['program']:44}{one['images_per_second']:>8.0f} images/s{one['times_pillow']:>8.2f} x Pillow's time"
        )
    for one in results["captions"]:
        print(f"{one['program']:44}{one['captions_per_second']:>8,.0f} captions/s")
    for one in results["duplicates"]:
        print(f"{one['program']:24}{one['hashes']:>10,} hashes, {one['of']:18}{one['seconds']:>9.3f} s")
    for one in results["memory"]:
        print(f"{one['images']:>6,} images: peak {one['peak_mib']:,.0f} MiB (before {one['start_mib']:,.0f} MiB)")
    print(f"memory at 4N over that at N: {results['memory_ratio']:.2f}")


# Posts


def write_pages(folder: Path, posts: int) -> None:
    """Write posts as pages of X's API v2, in several files: of ten, one is a repost and one a reply."""
    written = [case["raw"] for case in json.loads(CAPTIONS.read_text(encoding="utf-8"))]
    per_file = -(-posts // _DUMP_FILES)
    folder.mkdir(parents=True)
    for file, first in enumerate(range(0, posts, per_file)):
        with (folder / f"pages{file}.jsonl").open("w", encoding="utf-8") as lines:
            for start in range(first, min(first + per_file, posts), _PAGE):
                numbers = range(start, min(start + _PAGE, first + per_file, posts))
                lines.write(json.dumps(_page([(number, written[number % len(written)]) for number in numbers])) + "\n")


def _page(posts: Sequence[tuple[int, str]]) -> dict[str, Any]:
    media = [
        {"media_key": f"3_{number}", "type": "photo", "url": f"https://pbs.example/{number}.jpg"} for number, _ in posts
    ]
    return {
        "data": [_tweet(number, text) for number, text in posts],
        "includes": {"media": media, "users": [{"id": str(9000 + n), "username": f"user{n}"} for n in range(_PAGE)]},
        "meta": {"result_count": len(posts)},
    }


def _tweet(number: int, text: str) -> dict[str, Any]:
    """One post; every tenth is a repost, and the one behind it answers the one two before it."""
    tweet = {
        "id": str(_FIRST_ID + number),
        "text": f"{text} #dermpath",
        "author_id": str(9000 + number % _PAGE),
        "conversation_id": str(_FIRST_ID + number),
        "created_at": "2021-03-04T05:06:07.000Z",
        "lang": "en",
        "public_metrics": {"like_count": number % 7},
        "entities": {"hashtags": [{"tag": "dermpath"}]},
        "attachments": {"media_keys": [f"3_{number}"]},
    }
    if number % 10 == 5:
        tweet["referenced_tweets"] = [{"type": "retweeted", "id": str(_FIRST_ID + number - 1)}]
    if number % 10 == 6:
        tweet["referenced_tweets"] = [{"type": "replied_to", "id": str(_FIRST_ID + number - 2)}]
        tweet["conversation_id"] = str(_FIRST_ID + number - 2)
        del tweet["attachments"]
    return tweet


class TimedCuration(Curation):
    """The stages that need no image, each timed."""

    def run(self) -> None:
        """Run them and note the seconds."""
        self.seconds: dict[str, float] = {}
        for name, stage in (("source", self._source), ("thread", self._thread), ("text", self._text)):
            began = time.perf_counter()
            stage()
            self.seconds[name] = time.perf_counter() - began


def measure_metadata(posts: int, workers: int) -> dict[str, Any]:
    """Time the stages that need no image on a dump of X, from its files to the rows of the last.

    Returns:
        ``posts``, ``workers`` (processes), ``posts_per_second`` of the three stages together, and by stage ``seconds``
        (with the start of the workers in each) and ``rows`` that came into it.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pages(folder / "dump", posts)
        changes = [f"sources.twitter.path={folder / 'dump'}", f"engine.workers={workers}"]
        config = CurationConfig.read(load_config(str(CONFIGS / "openpath.py"), changes))
        with Engine(config.engine) as engine:
            curation = TimedCuration(config, folder / "work", AuthorKey(secrets.token_bytes(KEY_BYTES)), engine)
            curation.run()
        counts = {stage: sum(curation.folder(stage).counts().values()) for stage in ("source", "text")}
        rows = {
            "source": counts["source"],
            "thread": curation.folder("source").counts()["kept"],
            "text": counts["text"],
        }
    seconds = curation.seconds
    return {
        "posts": posts,
        "workers": workers,
        "posts_per_second": posts / sum(seconds.values()),
        "seconds": seconds,
        "rows": rows,
    }


# Images


def draw_images(side: int, seed: int = 0) -> Iterator[bytes]:
    """Coloured clouds with grain, no two alike, as JPEGs with Exif data, which the stage takes out."""
    rng = np.random.default_rng(seed)
    while True:
        coarse = Image.fromarray(rng.integers(40, 250, (16, 16, 3), np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (side, side, 1))
        exif = Image.Exif()
        exif[0x010E] = "written by the benchmark"  # ImageDescription
        buffer = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90, exif=exif)
        yield buffer.getvalue()


def read_images(folder: Path, count: int) -> list[bytes]:
    """The first images below a folder that the stage keeps."""
    files = (path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    kept = (data for data in files if isinstance(clean_image(data, ImageSettings()), CleanImage))
    images = list(itertools.islice(kept, count))
    if not images:
        raise SystemExit(f"{folder}: expected images, found none that the stage keeps")
    return images


def measure_images(images: Sequence[bytes], repeats: int) -> list[dict[str, Any]]:
    """Time the stage `image`, what it does without the store, and Pillow alone, in turns, on one core.

    Returns:
        A line a program: ``images_per_second`` of processor time (median), ``all_seconds`` of it, ``wall_seconds``
        (median) and ``times_pillow``, its time over that of Pillow's decoding and encoding.
    """
    settings = ImageSettings()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        originals = Store(work / "store" / "originals")
        digests = [originals.put(data) for data in images]
        pairs = [Pair(str(n), "folder", str(n), str(n), "0", digest=digest) for n, digest in enumerate(digests)]
        tombstones = Tombstones.load(work)

        def run_stage() -> None:
            shutil.rmtree(work / "store" / "clean", ignore_errors=True)
            for _ in stages.clean_images(0, pairs, settings=settings, work=work, tombstones=tombstones):
                pass

        programs: dict[str, Callable[[], object]] = {
            "Pillow: decode, encode": lambda: [_encode(_decode(data), settings) for data in images],
            "Pillow: decode": lambda: [_decode(data) for data in images],
            "ours: decode, judge, strip, hash": lambda: [clean_image(data, settings) for data in images],
            "ours: the stage, with reading and writing": run_stage,
        }
        processor: dict[str, list[float]] = {name: [] for name in programs}
        wall: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(repeats):
            for name, run in programs.items():
                began, processor_began = time.perf_counter(), time.process_time()
                run()
                processor[name].append(time.process_time() - processor_began)
                wall[name].append(time.perf_counter() - began)
    baseline = statistics.median(processor["Pillow: decode, encode"])
    return [
        {
            "program": program,
            "images": len(images),
            "images_per_second": len(images) / statistics.median(seconds),
            "times_pillow": statistics.median(seconds) / baseline,
            "all_seconds": seconds,
            "wall_seconds": statistics.median(wall[program]),
        }
        for program, seconds in processor.items()
    ]


def _decode(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _encode(image: Image.Image, settings: ImageSettings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=settings.jpeg_quality, subsampling=0)
    return buffer.getvalue()


# Captions


def measure_captions(captions: int, repeats: int) -> list[dict[str, Any]]:
    """Time cleaning, masking and judging on one core, without and with the detector of languages."""
    written = [case["raw"] for case in json.loads(CAPTIONS.read_text(encoding="utf-8"))]
    texts = list(itertools.islice(itertools.cycle(written), captions))
    results = []
    for program, settings in (
        ("clean_text, any language", TextSettings(language="")),
        ("clean_text, with the detector of languages", TextSettings()),
    ):
        clean_text("A first text loads the model of the detector.", settings)
        seconds = []
        for _ in range(repeats):
            began = time.process_time()
            for text in texts:
                clean_text(text, settings)
            seconds.append(time.process_time() - began)
        rate = captions / statistics.median(seconds)
        results.append({"program": program, "captions_per_second": rate, "all_seconds": seconds})
    return results


# Memory


def measure_apart(images: int, side: int) -> dict[str, Any]:
    """`measure_memory` in a new process, whose memory is that of nothing else."""
    command = [sys.executable, "-m", "benchmarks.curation", "--measure-memory", str(images), "--side", str(side)]
    done = subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(images: int, side: int) -> dict[str, Any]:
    """Curate a folder of images with a caption each, from its files to the records, in this process.

    Returns:
        ``images``, ``kept`` pairs, ``seconds``, and this process's resident memory in MiB at its highest
        (``peak_mib``) and, at its highest, before the curation began (``start_mib``). Where it had children, the
        largest of them is in the peak.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for number, data in enumerate(itertools.islice(draw_images(side), images)):
            (folder / "images" / f"{number:06d}.jpg").write_bytes(data)
            text = f"Section {number} of the colon with chronic inflammation and scattered lymphoid follicles."
            (folder / "images" / f"{number:06d}.txt").write_text(text)
        changes = [f"sources.folder.path={folder / 'images'}", "split.holdouts=()"]
        config = CurationConfig.read(load_config(str(CONFIGS / "ipath.py"), changes))
        key = AuthorKey(secrets.token_bytes(KEY_BYTES))
        start, began = _peak_mib(), time.perf_counter()
        manifest = curate(config, folder / "work", folder / "out", key, acknowledge_missing=True)
        seconds = time.perf_counter() - began
    return {
        "images": images,
        "kept": sum(shard.num_examples for shards in manifest.splits.values() for shard in shards),
        "seconds": seconds,
        "start_mib": start,
        "peak_mib": _peak_mib() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10,  # KiB on Linux
    }


def _peak_mib() -> float:
    # Not ru_maxrss, which a process inherits: it starts from the memory of the one that made it.
    status = Path("/proc/self/status").read_text()
    [kib] = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kib) / 2**10


if __name__ == "__main__":
    sys.exit(main())
