"""Takes records out of a records folder: only the shards that hold them are written anew.

File names, the order of what stays, and every other file stay as they were, byte for byte (hard links). The folder is
made beside the old one and takes its place by two renames; a run that is killed between them leaves the old one under a
hidden name, which the next call puts back before it does anything.
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_prep.shards import restore_folder as restore_published
from data_prep.shards import sha256_of, write_tfds_metadata
from plip_jax.data.records import (
    DATASET_VERSION,
    MANIFEST_NAME,
    Manifest,
    Record,
    Shard,
    decode_record,
    is_records_folder,
    open_shard_reader,
    open_shard_writer,
    read_manifest,
    records_root,
    write_manifest,
)

_TFDS_FILES = ("features.json", "dataset_info.json")

IsRemoved = Callable[[Record], bool]


def remove_records(folder: Path, is_removed: IsRemoved) -> int:
    """Remove the records of a folder that are removed, and return how many there were; none changes nothing.

    A split that is left without a record is left out, as a reader expects; without any split there is no manifest.

    Raises:
        RecordError: A shard or the manifest is damaged.
    """
    restore_folder(folder)
    if not is_records_folder(folder):
        return 0
    folder = Path(os.path.abspath(records_root(folder)))
    manifest = read_manifest(folder)
    partial = _beside(folder, "takedown")
    partial.mkdir()
    try:
        splits = {
            split: [_without(folder, shard, partial, is_removed) for shard in shards]
            for split, shards in manifest.splits.items()
        }
        count = sum(
            old.num_examples - new.num_examples
            for split, shards in manifest.splits.items()
            for old, new in zip(shards, splits[split], strict=True)
        )
        if count:
            _finish(folder, partial, manifest, splits)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count


def restore_folder(folder: Path) -> None:
    """Put a folder back whose replacement, here or by a build, was killed half way; remove what the one here left."""
    folder = Path(os.path.abspath(folder))
    restore_published(folder)
    retired = _beside(folder, "takedown-old")
    if retired.is_dir() and not folder.exists():
        retired.rename(folder)
    for leftover in (retired, _beside(folder, "takedown")):
        if leftover.exists():
            shutil.rmtree(leftover)


def record_ids(folder: Path, split: str) -> Iterator[str]:
    """Yield the ids of a split's records, in order; every record is read.

    Raises:
        RecordError: A shard or the manifest is damaged.
    """
    for shard in read_manifest(folder).splits[split]:
        for record, _ in _read(folder / shard.file):
            yield record.id


def _without(folder: Path, shard: Shard, partial: Path, is_removed: IsRemoved) -> Shard:
    """Put a shard without removed records into the new folder: a link to the old file where it holds none."""
    old, new = folder / shard.file, partial / shard.file
    if not any(is_removed(record) for record, _ in _read(old)):
        _link(old, new)
        return shard
    kept = 0
    writer = open_shard_writer(new)
    try:
        for record, data in _read(old):
            if not is_removed(record):
                writer.write(data)
                kept += 1
    finally:
        writer.close()
    return dataclasses.replace(shard, num_examples=kept, num_bytes=new.stat().st_size, sha256=sha256_of(new))


def _read(path: Path) -> Iterator[tuple[Record, bytes]]:
    reader: Any = open_shard_reader(path)
    try:
        for place in range(reader.num_records()):
            data = reader.read([place])[0]
            yield decode_record(data, where=f"{path} record {place}"), data
    finally:
        reader.close()


def _finish(folder: Path, partial: Path, manifest: Manifest, splits: dict[str, list[Shard]]) -> None:
    """Complete the new folder and put it in the old one's place."""
    kept = {split: tuple(shards) for split, shards in splits.items() if any(shard.num_examples for shard in shards)}
    for split in splits.keys() - kept.keys():
        for shard in splits[split]:
            (partial / shard.file).unlink()
    made_new = {MANIFEST_NAME, *_TFDS_FILES, *(shard.file for shards in manifest.splits.values() for shard in shards)}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            ignored = shutil.ignore_patterns(*_TFDS_FILES) if path.name == DATASET_VERSION else None
            if path.name != DATASET_VERSION or any(entry.name not in _TFDS_FILES for entry in path.iterdir()):
                shutil.copytree(path, partial / path.name, ignore=ignored, copy_function=_link)
        elif path.name not in made_new:
            _link(path, partial / path.name)
    if kept:
        write_manifest(partial, dataclasses.replace(manifest, splits=kept))
        write_tfds_metadata(partial, manifest.name, kept, in_version_folder=folder.name == DATASET_VERSION)
    retired = _beside(folder, "takedown-old")
    folder.rename(retired)
    partial.rename(folder)
    shutil.rmtree(retired)


def _link(old: str | Path, new: str | Path) -> None:
    """Link a file, or copy it where the file system has no links."""
    with contextlib.suppress(OSError):
        os.link(old, new)
        return
    shutil.copy2(old, new)


def _beside(folder: Path, what: str) -> Path:
    return folder.parent / f".{folder.name}.{what}"
