"""Shards as functions of their pairs: which pair stands where is said by a keyed hash of its id and nothing else.

A split has a fixed number of shards; the hash picks a pair's shard and its place in it, so that a shard is shuffled,
comes out byte for byte the same whatever the order and the number of workers, and can be written by one task or written
anew (`rewrite_shards`, after a takedown) without the others. Images are read from the store one at a time, as they are
appended. What a records folder is made of besides shards is `data_prep.shards`.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_prep.curation.pair import Pair
from data_prep.shards import (
    check_out,
    check_record,
    check_split_name,
    dataset_name,
    publish_folder,
    restore_folder,
    sha256_of,
    shard_file,
    write_tfds_metadata,
)
from plip_jax.data.records import (
    DATASET_VERSION,
    MANIFEST_NAME,
    Manifest,
    Record,
    Shard,
    encode_record,
    open_shard_writer,
    read_manifest,
    write_manifest,
)

ShardKey = tuple[str, int]
"""A split and the number of a shard in it."""

_METADATA = {MANIFEST_NAME, DATASET_VERSION, "features.json", "dataset_info.json"}


class CuratedShardsError(ValueError):
    """Shards cannot be written or put together; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """How the pairs are spread.

    Attributes:
        shards: Of each split. [ours] OpenPath's 208,414 pairs at 60 kB an image make files of 200 MB; a small split has
            small or empty ones, which every reader takes.
        key: Of the hash, at most 64 bytes; another key shuffles in another way. [ours]
    """

    shards: int = 64
    key: str = "plip_jax"

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= 99_999:
            raise CuratedShardsError(f"shards is {self.shards}: expected 1 to 99999, what file names have digits for")
        if not 1 <= len(self.key.encode()) <= 64:
            raise CuratedShardsError(f"the key of the shards has {len(self.key.encode())} bytes: expected 1 to 64")


def shard_of(pair_id: str, settings: ShardSettings) -> int:
    """Return the number of the shard of a pair in its split."""
    return _hash(pair_id, settings, b"shard") % settings.shards


def shard_key(pair: Pair, settings: ShardSettings) -> ShardKey:
    """Return the split and the shard that a pair goes to."""
    return pair.split, shard_of(pair.id, settings)


def group_by_shard(pairs: Iterable[Pair], settings: ShardSettings) -> dict[ShardKey, list[Pair]]:
    """Collect pairs by shard, in memory; every shard of every split that occurs is there, also the empty ones."""
    grouped: dict[ShardKey, list[Pair]] = {}
    for pair in pairs:
        key = shard_key(pair, settings)
        if key not in grouped:
            for number in range(settings.shards):
                grouped.setdefault((pair.split, number), [])
        grouped[key].append(pair)
    return grouped


def stored_path(store: Path, digest: str) -> Path:
    """Return the place of a file in a content-addressed store."""
    return store / digest[:2] / digest


def file_of(out: Path, key: ShardKey, settings: ShardSettings) -> str:
    """Return the file name that a shard has in the folder `out`."""
    split, number = key
    return shard_file(dataset_name(Path(os.path.abspath(out))), split, number, settings.shards)


def write_shard(pairs: Iterable[Pair], store_clean: Path, path: Path, settings: ShardSettings) -> Shard:
    """Write a shard: what one worker does, with one image in memory.

    Args:
        pairs: All pairs of the shard, in any order.
        store_clean: The store of stripped images.
        path: File to make, whole or not at all; one that is there is replaced.
        settings: Those that spread the pairs.

    Raises:
        CuratedShardsError: An id comes twice, a pair has no image or caption, or the store's file is missing or is not
            what its name says.
    """
    ordered = sorted(pairs, key=lambda pair: (_hash(pair.id, settings, b"place"), pair.id))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        writer = open_shard_writer(temporary)
        try:
            for number, pair in enumerate(ordered):
                if number and ordered[number - 1].id == pair.id:
                    raise CuratedShardsError(f"{path.name}: two pairs have the id {pair.id!r}; ids must be unique")
                writer.write(encode_record(_record(pair, store_clean)))
        finally:
            writer.close()
        shard = Shard(path.name, len(ordered), temporary.stat().st_size, sha256_of(temporary))
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return shard


def finish_folder(
    out: Path, staged: Path, shards: Mapping[str, Sequence[Shard]], *, reports: Path | None = None, overwrite: bool
) -> Manifest:
    """Put written shards together to a records folder, made visible by one rename, and remove `staged`.

    A run that is killed before the rename leaves `out` and `staged` as they were; one killed behind it leaves `out`
    whole. What an older `out` held is gone: no stale shard stays behind.

    Args:
        out: The folder to make.
        staged: Where `write_shard` wrote, under the names of `file_of`.
        shards: All shards of each split, in order; splits without a single record are left out.
        reports: A folder whose files go along (`funnel.html`, `datasheet.md` ...).
        overwrite: Replace an existing records folder.

    Raises:
        FileExistsError: `out` exists and may not be replaced.
        CuratedShardsError: A shard is missing, cut short or listed in the wrong place, or there is no record at all.
    """
    out = Path(os.path.abspath(out))
    restore_folder(out)
    check_out(out, overwrite=overwrite)
    filled = {split: tuple(shards[split]) for split in sorted(shards) if any(s.num_examples for s in shards[split])}
    if not filled:
        raise CuratedShardsError(f"nothing was kept: there is no record to put into {out}")
    manifest = Manifest(name=dataset_name(out), splits=filled)
    files = {}
    for split, listed in filled.items():
        check_split_name(split)
        for number, shard in enumerate(listed):
            _check_staged(staged, shard, expected=shard_file(manifest.name, split, number, len(listed)))
            files[shard.file] = staged / shard.file
    others = {path.name: path for path in sorted(reports.iterdir())} if reports else {}
    if reserved := sorted(others.keys() & (files.keys() | _METADATA)):
        raise CuratedShardsError(f"{reports}: {reserved[0]} is the name of what makes the folder, not of a report")
    _publish(out, manifest, files, others)
    shutil.rmtree(staged, ignore_errors=True)
    return manifest


def _check_staged(staged: Path, shard: Shard, *, expected: str) -> None:
    if shard.file != expected:
        raise CuratedShardsError(f"{staged}: a shard is {shard.file} where {expected} was expected")
    path = staged / shard.file
    size = path.stat().st_size if path.is_file() else None
    if size != shard.num_bytes:
        raise CuratedShardsError(f"{path} has {size} bytes, expected {shard.num_bytes}: write this shard again")


def rewrite_shards(
    folder: Path, changed: Mapping[ShardKey, Iterable[Pair]], store_clean: Path, settings: ShardSettings
) -> Manifest:
    """Write some shards of a folder anew; the other files stay as they are, byte for byte.

    Args:
        folder: A records folder that `finish_folder` made.
        changed: All pairs that each of these shards is to hold from now on, which may be none.
        store_clean: The store of stripped images.
        settings: Those that the folder was made with.

    Returns:
        The new manifest; it appears with the new shards by one rename. A split that has no records left is gone.

    Raises:
        CuratedShardsError: The folder has no such shard, a pair is of another shard, or nothing is left.
        RecordError: Not a records folder.
    """
    folder = Path(os.path.abspath(folder))
    restore_folder(folder)
    manifest = read_manifest(folder)
    _check_same_shards(folder, manifest, changed, settings)
    staged = folder.parent / f".{folder.name}.changed"
    shutil.rmtree(staged, ignore_errors=True)
    try:
        new: dict[ShardKey, Shard] = {}
        for key in sorted(changed):
            pairs = list(changed[key])
            strays = [pair.id for pair in pairs if shard_key(pair, settings) != key]
            if strays:
                raise CuratedShardsError(f"pair {strays[0]!r} is not of shard {key}: other settings made {folder}")
            new[key] = write_shard(pairs, store_clean, staged / manifest.splits[key[0]][key[1]].file, settings)
        splits = {
            split: tuple(new.get((split, number), shard) for number, shard in enumerate(listed))
            for split, listed in manifest.splits.items()
        }
        splits = {split: listed for split, listed in splits.items() if any(shard.num_examples for shard in listed)}
        if not splits:
            raise CuratedShardsError(f"nothing is left in {folder}: remove the folder instead")
        written = {shard.file for shard in new.values()}
        files = {
            shard.file: (staged if shard.file in written else folder) / shard.file
            for listed in splits.values()
            for shard in listed
        }
        made_here = {shard.file for listed in manifest.splits.values() for shard in listed} | _METADATA
        others = {path.name: path for path in folder.iterdir() if path.is_file() and path.name not in made_here}
        renewed = Manifest(name=manifest.name, splits=splits)
        _publish(folder, renewed, files, others)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return renewed


def _check_same_shards(
    folder: Path, manifest: Manifest, changed: Mapping[ShardKey, Iterable[Pair]], settings: ShardSettings
) -> None:
    for split, listed in manifest.splits.items():
        if len(listed) != settings.shards:
            raise CuratedShardsError(f"{folder}: split {split!r} has {len(listed)} shards, settings {settings.shards}")
    unknown = sorted(key for key in changed if key[0] not in manifest.splits or not 0 <= key[1] < settings.shards)
    if unknown:
        raise CuratedShardsError(f"{folder} has no shard {unknown[0]}; its splits are {sorted(manifest.splits)}")


def _record(pair: Pair, store_clean: Path) -> Record:
    try:
        image = stored_path(store_clean, pair.clean_digest).read_bytes()
    except OSError as error:
        raise CuratedShardsError(f"pair {pair.id!r}: its image is not in the store: {error}") from error
    if hashlib.sha256(image).hexdigest() != pair.clean_digest:
        raise CuratedShardsError(
            f"pair {pair.id!r}: {stored_path(store_clean, pair.clean_digest)} was changed or damaged after it was "
            "stored; remove it and run the stage 'image' again"
        )
    record = Record(pair.id, image, (pair.caption,), pair.group_id, pair.source, pair.label)
    try:
        check_record(record)
    except ValueError as error:
        raise CuratedShardsError(str(error)) from error
    return record


def _publish(out: Path, manifest: Manifest, shards: Mapping[str, Path], others: Mapping[str, Path]) -> None:
    """Make the folder from finished files beside its place, then rename it there; shards are linked, not copied."""
    # One fixed name: what a killed run left is found and removed, for it may hold what was taken down since.
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, path in shards.items():
            try:
                os.link(path, partial / name)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(path, partial / name)
        for name, path in others.items():
            shutil.copyfile(path, partial / name)
        write_manifest(partial, manifest)
        write_tfds_metadata(
            partial, manifest.name, dict(manifest.splits), in_version_folder=out.name == DATASET_VERSION
        )
        publish_folder(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _hash(pair_id: str, settings: ShardSettings, use: bytes) -> int:
    digest = hashlib.blake2b(pair_id.encode(), digest_size=8, key=settings.key.encode(), person=use)
    return int.from_bytes(digest.digest(), "big")
