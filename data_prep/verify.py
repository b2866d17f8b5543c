"""Check a records folder and print everything that is wrong with it.

    python -m data_prep.verify DIR

Every shard is hashed and every record is read and its image decoded; the manifest, the TFDS metadata and the shards
must tell the same. Each problem is one line that names shard, record and id. The exit status is 1 if there is any.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.seen_ids import SeenIds
from data_prep.shards import is_plain_rgb, sha256_of, tfds_features
from plip_jax.data.image import ImageError, decode_image
from plip_jax.data.records import (
    DATASET_VERSION,
    MANIFEST_NAME,
    Manifest,
    Record,
    RecordError,
    Shard,
    check_shard_header,
    decode_record,
    open_shard_reader,
    read_manifest,
    records_root,
)


def find_problems(path: str | Path) -> Iterator[str]:
    """Check a records folder; nothing is held in memory but 8 bytes an id.

    Yields:
        One line for each thing that is wrong.
    """
    folder = records_root(path)
    try:
        manifest = read_manifest(folder)
    except RecordError as error:
        yield str(error)
        return
    yield from _unlisted_shards(folder, manifest)
    yield from _tfds_problems(folder, manifest)
    seen = SeenIds()
    for split, shards in manifest.splits.items():
        if not sum(shard.num_examples for shard in shards):
            yield f"{folder}: split {split!r} has no records"
        for shard in shards:
            yield from _shard_problems(folder, shard, seen)


def record_problems(data: bytes, where: str, seen: SeenIds) -> Iterator[str]:
    """Check one serialised record.

    Args:
        data: The Example as stored.
        where: Its shard and position.
        seen: Ids of the folder so far; this record's is added.

    Yields:
        One line for each thing that is wrong.
    """
    try:
        record = decode_record(data, where=where)
    except RecordError as error:
        yield str(error)
        return
    where = f"{where} (id {record.id!r})"
    if not record.id:
        yield f"{where}: the id is empty"
    if not seen.add(record.id):
        yield f"{where}: an earlier record has this id"
    if not record.captions:
        yield f"{where}: it has no caption"
    for number, caption in enumerate(record.captions):
        if not caption.strip():
            yield f"{where}: caption {number} is empty"
    yield from _image_problems(record, where)


def _image_problems(record: Record, where: str) -> Iterator[str]:
    try:
        decode_image(record.image, name=where)
    except ImageError as error:
        yield str(error)
        return
    if not is_plain_rgb(record.image):
        yield f"{where}: the image is not stored as plain upright RGB JPEG or PNG, so readers may see other pixels"


def _shard_problems(folder: Path, shard: Shard, seen: SeenIds) -> Iterator[str]:
    path = folder / shard.file
    header_problems = check_shard_header(folder, shard)
    yield from header_problems
    try:
        if not header_problems and sha256_of(path) != shard.sha256:
            yield f"{path}: its sha256 is not the manifest's: the file was changed or damaged after it was written"
        reader = open_shard_reader(path)
    except (OSError, RecordError) as error:
        if not header_problems:
            yield f"{path}: cannot be read: {error}"
        return
    try:
        for position in tqdm(range(reader.num_records()), desc=shard.file, leave=False, disable=None):
            where = f"{path} record {position}"
            try:
                data = reader.read([position])[0]
            except Exception as error:  # the C++ reader raises several types; each means this record is damaged
                yield f"{where}: cannot be read from the shard: {error}"
                continue
            yield from record_problems(data, where, seen)
    finally:
        reader.close()


def _unlisted_shards(folder: Path, manifest: Manifest) -> Iterator[str]:
    listed = {shard.file for shards in manifest.splits.values() for shard in shards}
    for path in sorted(folder.glob("*.array_record*")):
        if path.name not in listed:
            yield f"{path}: {MANIFEST_NAME} does not list this shard; no reader will open it"


def _tfds_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Compare what TFDS understands with the manifest, by both ways TFDS finds a folder."""
    by_name = [] if folder.name == DATASET_VERSION else [folder / DATASET_VERSION]
    for place in [folder, *by_name]:
        try:
            info = tfds.builder_from_directory(place).info
            found = {
                "version": str(info.version),
                "name": info.name,
                "features": repr(info.features),
                "splits": {
                    name: (list(split.shard_lengths), [_resolved(file) for file in split.filepaths])
                    for name, split in info.splits.items()
                },
            }
        except Exception as error:  # TFDS raises many types on damaged metadata; each means it cannot open the folder
            yield f"{place}: TFDS cannot open the folder: {type(error).__name__}: {error}"
            continue
        expected = {
            "version": DATASET_VERSION,
            "name": manifest.name,
            "features": repr(tfds_features()),
            "splits": {
                split: ([s.num_examples for s in shards], [_resolved(folder / s.file) for s in shards])
                for split, shards in manifest.splits.items()
            },
        }
        for field, value in expected.items():
            if found[field] != value:
                yield f"{place}: TFDS reads {field} {found[field]}, expected {value}"


def _resolved(path: str | os.PathLike[str]) -> str:
    return str(Path(path).resolve())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status: 0 when all is well, 1 when anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.verify", description="Check a records folder.")
    parser.add_argument("folder", type=Path, help="the folder that --out named")
    options = parser.parse_args(arguments)
    count = 0
    for problem in find_problems(options.folder):
        print(problem)
        count += 1
    if count:
        print(f"{options.folder}: {count} problem{'s' * (count > 1)} found", file=sys.stderr)
        return 1
    manifest = read_manifest(records_root(options.folder))
    splits = ", ".join(f"{k} {sum(s.num_examples for s in shards)}" for k, shards in manifest.splits.items())
    print(f"{options.folder}: all records are sound ({splits})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
