"""Write a records folder with smaller images, so that training decodes and resizes less.

    python -m data_prep.resize --records DIR --out DIR --short-side 512 [--format jpeg] [--quality 95] [--split NAME]

Images with a longer short side are reduced to it (bicubic, as training resizes); smaller ones keep their bytes. Ids,
captions, groups, labels, splits and order stay. PLIP's views of 224 px resize the short side to 512. From a cache of
512 px in PNG they are the same to the bit; in JPEG of quality 95 they differ by 0.8 levels in the mean and 17 at worst
(18 textbook micrographs), but JPEG takes a third of PNG's time to decode. From a cache of fewer pixels training
enlarges again: faster still, and blurred.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image
from tqdm import tqdm

from data_prep.build import REPORT_NAME as BUILD_REPORT_NAME
from data_prep.shards import RecordsWriter
from data_prep.workers import make_pool, num_cores
from plip_jax.data.image import ImageError, decode_image, resized_size
from plip_jax.data.records import Record, RecordError, open_records, read_manifest, records_root

REPORT_NAME = "resize_report.json"
FORMATS = ("jpeg", "png")
_RECORDS_A_TASK = 32  # some megabytes of images
_TASKS_AHEAD = 4  # for each process: what waits for the writer stays in memory

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Smaller:
    """How images are reduced.

    Attributes:
        short_side: Longest short side that is left, pixels.
        format: "jpeg" or "png".
        quality: Of JPEG, 1 to 100; its colours are not subsampled.
    """

    short_side: int
    format: str = "jpeg"
    quality: int = 95

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise ValueError(f"--short-side: expected a positive number of pixels, got {self.short_side}")
        if self.format not in FORMATS:
            raise ValueError(f"--format: expected {' or '.join(FORMATS)}, got {self.format!r}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality: expected 1 to 100, got {self.quality}")

    def encode(self, data: bytes, *, name: str) -> bytes:
        """Return an encoded image reduced, or its bytes as they are when its short side is short enough.

        Raises:
            ImageError: It does not decode; the message carries the name.
        """
        image = decode_image(data, name=name)
        if min(image.size) <= self.short_side:
            return data
        # The whole resize of `plip_jax.data.image`: its crops have the same bits.
        image = image.resize(resized_size(*image.size, self.short_side), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        if self.format == "png":
            # Level 1 is a tenth larger than the default, is read as fast and written much faster.
            image.save(buffer, "PNG", compress_level=1)
        else:
            image.save(buffer, "JPEG", quality=self.quality, subsampling=0)
        return buffer.getvalue()


def resize_records(
    records: Path,
    out: Path,
    smaller: Smaller,
    *,
    splits: Sequence[str] = (),
    workers: int = 1,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write the folder `out`, published whole; returns the number of records of each split.

    Args:
        records: The records folder to read.
        out: The folder to make.
        smaller: How images are reduced.
        splits: Which splits; all of them when empty.
        workers: Processes that decode and encode; 1 stays in this process.
        overwrite: Replace an existing records folder, once the new one is complete.

    Raises:
        ImageError: An image does not decode; the message names its record.
        RecordError: `records` is no records folder, has no such split, or is damaged.
        FileExistsError: See `RecordsWriter`.
        ValueError: `out` is `records`.
    """
    folder = records_root(records)
    if out.resolve() == folder.resolve():
        raise ValueError(f"--out {out} is the folder that is read: choose another place")
    chosen = tuple(dict.fromkeys(splits)) or tuple(read_manifest(folder).splits)
    opened = {split: open_records(folder, split) for split in chosen}
    tasks = [
        _Task(folder, split, start, min(start + _RECORDS_A_TASK, len(content)), smaller)
        for split, content in opened.items()
        for start in range(0, len(content), _RECORDS_A_TASK)
    ]
    total = sum(len(content) for content in opened.values())
    reduced = 0
    with RecordsWriter(out, overwrite=overwrite) as writer, tqdm(total=total, desc="records", disable=None) as progress:
        results = map_ahead(_resize_task, tasks, workers)
        for task, (written, changed) in zip(tasks, results, strict=True):
            for record in written:
                writer.write(record, task.split)
            reduced += changed
            progress.update(len(written))
        report = {
            **dataclasses.asdict(smaller),
            "from": {split: content.fingerprint for split, content in opened.items()},
            "kept": dict(sorted(writer.counts.items())),
            "reduced": reduced,
        }
        writer.add_file(REPORT_NAME, json.dumps(report, indent=2) + "\n")
        if (folder / BUILD_REPORT_NAME).is_file():
            writer.add_file(BUILD_REPORT_NAME, (folder / BUILD_REPORT_NAME).read_text(encoding="utf-8"))
        return dict(writer.counts)


@dataclasses.dataclass(frozen=True)
class _Task:
    """Records `start` to `stop` of one split."""

    folder: Path
    split: str
    start: int
    stop: int
    smaller: Smaller


def _resize_task(task: _Task) -> tuple[list[Record], int]:
    """The task's records with their images reduced, and how many were."""
    records, changed = open_records(task.folder, task.split), 0
    written = []
    for index in range(task.start, task.stop):
        record = records[index]
        image = task.smaller.encode(record.image, name=f"record {record.id!r} ({records.where(index)})")
        changed += image is not record.image
        written.append(dataclasses.replace(record, image=image))
    return written, changed


def map_ahead(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Results in order from several processes, of which only a few wait in memory at a time."""
    if workers == 1:
        yield from map(function, tasks)
        return
    waiting: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    with make_pool(workers) as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if len(waiting) >= workers * _TASKS_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:  # after an error nothing more is begun
                future.cancel()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status: 0, or 1 with a message when the folder could not be made."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.resize", description="Write a records folder with smaller images."
    )
    parser.add_argument("--records", type=Path, required=True, help="records folder to read")
    parser.add_argument("--out", type=Path, required=True, help="records folder to make")
    parser.add_argument("--short-side", type=int, required=True, help="longest short side that is left, pixels")
    parser.add_argument("--format", choices=FORMATS, default="jpeg", help="of reduced images (%(default)s)")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG (%(default)s)")
    parser.add_argument("--split", action="append", default=[], help="may be repeated (default: all)")
    parser.add_argument("--workers", type=int, default=num_cores(), help="processes (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the records in --out when all is written")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        if options.workers < 1:
            raise ValueError(f"--workers: expected a positive number, got {options.workers}")
        counts = resize_records(
            options.records,
            options.out,
            Smaller(options.short_side, options.format, options.quality),
            splits=options.split,
            workers=options.workers,
            overwrite=options.overwrite,
        )
    except ImageError as error:
        print(
            f"data_prep.resize: {error}\nAll such records: python -m data_prep.verify {options.records}",
            file=sys.stderr,
        )
        return 1
    except (RecordError, OSError, ValueError) as error:
        print(f"data_prep.resize: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - started
    splits = ", ".join(f"{split} {count}" for split, count in counts.items())
    print(f"wrote {sum(counts.values())} ({splits}) in {seconds:.1f} s -> {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
