"""Make a records folder from raw data.

    python -m data_prep.build --source csv --table captions.csv --images DIR --out DIR

A source yields posts; each post becomes a record or a counted drop; records are written to shards. Posts are handled
one at a time, so memory does not grow with the table (8 bytes a record for the check of ids). `build_report.json` in
the folder says what was kept, what was dropped and why.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.shards import DuplicateIdError, RecordsWriter, dataset_name, upright_rgb
from data_prep.sources import csv_table
from data_prep.sources.post import Drop, Post
from plip_jax.data.image import ImageError
from plip_jax.data.records import DATASET_VERSION, Record

REPORT_NAME = "build_report.json"
_MAX_LISTED_DROPS = 10_000  # a reason; all are counted
_MAX_IMAGE_BYTES = 2**29


class BuildError(ValueError):
    """The build cannot be done at all; the message says what to change."""


class _DroppedError(Exception):
    """A post does not become a record."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def _csv_posts(options: argparse.Namespace) -> Iterator[Post | Drop]:
    columns = csv_table.Columns(
        image=options.image_column,
        captions=tuple(options.caption_column or ["caption"]),
        id=options.id_column,
        group=options.group_column,
        label=options.label_column,
    )
    return csv_table.read_posts(options.table, columns, source=options.source_name or options.table.stem)


@dataclasses.dataclass(frozen=True)
class Holdout:
    """Which part of the groups goes to which split instead of `train`.

    Attributes:
        shares: Split name and share of the groups, in order.
        seed: Another seed holds out other groups.
    """

    shares: tuple[tuple[str, float], ...] = ()
    seed: int = 0

    def split_of(self, record: Record) -> str:
        """Return the record's split: a function of its group (its id where it has none), the shares and the seed."""
        key = f"{self.seed}\n{record.group_id or record.id}".encode()
        place = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
        for split, share in self.shares:
            if place < share:
                return split
            place -= share
        return "train"


def make_record(post: Post, images: Path) -> Record:
    """Read a post's image and turn both into a record.

    Raises:
        _DroppedError: The post has no id, no caption or no usable image.
    """
    captions = tuple(dict.fromkeys(text for caption in post.captions if (text := caption.strip())))
    if not post.id:
        raise _DroppedError("empty_id")
    if not captions:
        raise _DroppedError("empty_caption")
    image_path = post.media[0].path
    if not image_path:
        raise _DroppedError("missing_file", "the image column is empty")
    path = Path(os.path.normpath(images / image_path))
    if not path.is_relative_to(os.path.normpath(images)):
        raise _DroppedError("outside_images", f"{image_path} leads out of the images folder")
    try:
        if not path.is_file():
            raise _DroppedError("missing_file", f"no file {image_path} in the images folder")
        if path.stat().st_size > _MAX_IMAGE_BYTES:
            raise _DroppedError("bad_image", f"{image_path} has {path.stat().st_size} bytes, over {_MAX_IMAGE_BYTES}")
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise _DroppedError("missing_file", f"{image_path!r} cannot be read: {error}") from error
    try:
        image = upright_rgb(data, name=image_path)
    except ImageError as error:
        raise _DroppedError("bad_image", str(error)) from error
    return Record(post.id, image, captions, post.group_id, post.source, post.label)


def build(
    posts: Iterable[Post | Drop], images: Path, out: Path, *, holdout: Holdout, overwrite: bool = False, **about: Any
) -> dict[str, Any]:
    """Write a records folder from posts and return the report that is written beside it.

    Args:
        posts: What a source yields.
        images: Folder the posts' image paths are relative to.
        out: The folder to make.
        holdout: Which groups go to which split.
        overwrite: Replace an existing records folder, once the new one is complete.
        **about: Facts for the report (JSON values).

    Raises:
        BuildError: Nothing was kept.
        FileExistsError: See `RecordsWriter`.
    """
    dropped: Counter[str] = Counter()
    listed: list[dict[str, str]] = []
    with RecordsWriter(out, overwrite=overwrite) as writer:
        for post in tqdm(posts, desc="records", unit="", disable=None):
            drop = post if isinstance(post, Drop) else _write_post(post, images, writer, holdout)
            if drop is not None:
                dropped[drop.reason] += 1
                if dropped[drop.reason] <= _MAX_LISTED_DROPS:
                    listed.append(dataclasses.asdict(drop))
        report = {
            **about,
            "holdout": {"shares": dict(holdout.shares), "seed": holdout.seed},
            "read": sum(writer.counts.values()) + dropped.total(),
            "kept": dict(sorted(writer.counts.items())),
            "dropped": dict(sorted(dropped.items())),
            "drops": listed,
            "drops_not_listed": dropped.total() - len(listed),
        }
        if not writer.counts:
            raise BuildError(f"nothing was kept. {describe_drops(report)}")
        writer.add_file(REPORT_NAME, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def _write_post(post: Post, images: Path, writer: RecordsWriter, holdout: Holdout) -> Drop | None:
    try:
        record = make_record(post, images)
        writer.write(record, holdout.split_of(record))
    except _DroppedError as dropped:
        return Drop(dropped.reason, post.where, post.id, dropped.detail)
    except DuplicateIdError:
        return Drop("duplicate_id", post.where, post.id, "an earlier record has this id")
    return None


def describe_drops(report: dict[str, Any]) -> str:
    """Say how many posts were dropped for which reason, with the first of each."""
    if not report["dropped"]:
        return f"{report['read']} read, none dropped."
    lines = [f"{report['read']} read, dropped:"]
    for reason, count in report["dropped"].items():
        first = next(drop for drop in report["drops"] if drop["reason"] == reason)
        lines.append(f"  {count} {reason}, first: {first['where']}: {first['id'] or '-'} {first['detail']}".rstrip())
    return "\n".join(lines)


def _parse_holdouts(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    shares: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name == "train" or name in shares or not 0 < share < 1:
            raise BuildError(f"--holdout {text}: expected NAME=SHARE, e.g. test=0.1; NAME once each and not train")
        shares[name] = share
    if sum(shares.values()) >= 1:
        raise BuildError(f"--holdout: the shares add up to {sum(shares.values()):g}, nothing is left for train")
    return tuple(shares.items())


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data_prep.build", description="Make a records folder.")
    parser.add_argument("--source", choices=["csv"], required=True, help="kind of raw data")
    parser.add_argument("--table", type=Path, required=True, help="table with a header line: .csv, or .tsv for tabs")
    parser.add_argument("--images", type=Path, required=True, help="folder that image paths are relative to")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace the records in --out when all is written")
    parser.add_argument("--image-column", default="image", metavar="NAME", help="image path (default: image)")
    parser.add_argument(
        "--caption-column", action="append", metavar="NAME", help="text; may be repeated (default: caption)"
    )
    parser.add_argument("--id-column", metavar="NAME", help="unique id (default: from the image path)")
    parser.add_argument("--group-column", metavar="NAME", help="what stays on one side of a split (default: image)")
    parser.add_argument("--label-column", metavar="NAME", help="class name")
    parser.add_argument("--source-name", metavar="NAME", help="field `source` of each record (default: table name)")
    parser.add_argument(
        "--holdout", action="append", default=[], metavar="NAME=SHARE", help="held-out split by hash of group or id"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed holds out others (default: 0)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status: 0, or 1 with a message when nothing could be made."""
    options = _parse_arguments(arguments)
    started = time.monotonic()
    try:
        if not options.images.is_dir():
            raise BuildError(f"--images {options.images}: no such folder")
        holdout = Holdout(_parse_holdouts(options.holdout), options.seed)
        about = {"source": options.source, "table": options.table.name}
        posts = _csv_posts(options)
        report = build(posts, options.images, options.out, holdout=holdout, overwrite=options.overwrite, **about)
    except (BuildError, csv_table.TableError, OSError) as error:
        print(f"data_prep.build: {error}", file=sys.stderr)
        return 1
    print(describe_drops(report))
    for split, _ in holdout.shares:
        if split not in report["kept"]:
            print(f"warning: split {split!r} is empty: no group fell into its share; raise it or change --seed")
    _print_result(options.out, report, time.monotonic() - started)
    return 0


def _print_result(out: Path, report: dict[str, Any], seconds: float) -> None:
    kept = sum(report["kept"].values())
    splits = ", ".join(f"{split} {count}" for split, count in report["kept"].items())
    print(f"kept {kept} ({splits}) in {seconds:.1f} s, {kept / seconds:.0f} records/s -> {out}")
    print(f"check:  python -m data_prep.verify {out}")
    print(f'TFDS:   tfds.builder_from_directory("{out}").as_data_source()')
    place = Path(os.path.abspath(out))
    folder = place.parent if place.name == DATASET_VERSION else place
    if folder.name == dataset_name(place):  # TFDS looks a dataset up by the name of its folder
        print(f'        tfds.data_source("{folder.name}", data_dir="{folder.parent}")')


if __name__ == "__main__":
    sys.exit(main())
