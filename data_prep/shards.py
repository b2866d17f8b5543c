"""Writes records folders: ArrayRecord shards, TFDS metadata, manifest, made visible by one rename.

Owns how a folder comes to be; what is in it is `plip_jax.data.records`. The metadata is what
`tfds.folder_dataset.write_metadata` would write (that function reads an example back through TensorFlow).
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import re
import shutil
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tensorflow_datasets.core import dataset_info
from tensorflow_datasets.core import splits as tfds_splits

from data_prep.seen_ids import SeenIds
from plip_jax.data.image import decode_image
from plip_jax.data.records import (
    DATASET_VERSION,
    MANIFEST_NAME,
    Manifest,
    Record,
    Shard,
    encode_record,
    open_shard_writer,
    write_manifest,
)

MAX_SHARD_BYTES = 256 * 2**20
_EXIF_ORIENTATION = 0x0112
_FILE_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def upright_rgb(data: bytes, *, name: str) -> bytes:
    """Return the image's bytes unchanged if they are plain upright RGB JPEG or PNG, else as a lossless PNG.

    So every reader (Pillow, TFDS, OpenCV) sees the same pixels: EXIF orientation, palettes, transparency, grey,
    CMYK and animation are resolved once, here, by `plip_jax.data.image.decode_image`.

    Raises:
        ImageError: The bytes do not decode; the message carries the name.
    """
    decoded = decode_image(data, name=name)
    if is_plain_rgb(data):
        return data
    buffer = io.BytesIO()
    decoded.save(buffer, "PNG")
    return buffer.getvalue()


def is_plain_rgb(data: bytes) -> bool:
    """Say whether any reader gets upright RGB from a decodable image; when its header raises doubt, it does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decode_image has judged the image; oddities of its EXIF block are no news
            with Image.open(io.BytesIO(data)) as image:
                return (
                    image.format in ("JPEG", "PNG")
                    and image.mode == "RGB"
                    and "transparency" not in image.info
                    and getattr(image, "n_frames", 1) == 1
                    and image.getexif().get(_EXIF_ORIENTATION, 1) == 1
                )
    except Exception:  # Pillow's header parsers raise a dozen unrelated types
        return False


@dataclasses.dataclass
class _OpenSplit:
    """The shards of one split while they are being written."""

    shards: list[Shard] = dataclasses.field(default_factory=list)
    writer: Any = None
    num_examples: int = 0
    num_bytes: int = 0


class DuplicateIdError(ValueError):
    """An id was already written to the folder."""


class RecordsWriter:
    """Writes one records folder; use it in a `with` block.

    Shards fill in the order of writing, so equal input gives equal bytes. Everything goes to a hidden folder beside
    `out`; leaving the block renames it to `out`, and an exception removes it and leaves an older `out` as it was.

    Attributes:
        out: The folder to make. Its last part names the dataset (made a valid TFDS name); in `NAME/1.0.0`, `NAME` does.
        counts: Records written to each split so far.

    Raises:
        FileExistsError: `out` exists and `overwrite` is false, or it is not a records folder (that is never removed).
        ValueError: An id is written twice, a record has no caption or no image, or nothing was written at all.
    """

    def __init__(self, out: str | Path, *, overwrite: bool = False, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        self.out = Path(os.path.abspath(out))
        self.counts: dict[str, int] = {}
        self._max_shard_bytes = max_shard_bytes
        self._name = dataset_name(self.out)
        self._partial = self.out.parent / f".{self.out.name}.partial-{os.getpid()}"
        self._splits: dict[str, _OpenSplit] = {}
        self._seen = SeenIds()
        check_out(self.out, overwrite=overwrite)

    def __enter__(self) -> Self:
        self._partial.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for split in self._splits.values():
                if split.writer is not None:
                    with contextlib.suppress(Exception):  # the first error is the one to report
                        split.writer.close()
            shutil.rmtree(self._partial, ignore_errors=True)

    def write(self, record: Record, split: str = "train") -> None:
        """Append a record to a split.

        Raises:
            DuplicateIdError: Its id was written before.
            ValueError: No image, no caption, a blank one, or a name that no split may have.
        """
        check_record(record)
        check_split_name(split)
        if not self._seen.add(record.id):
            raise DuplicateIdError(f"record id {record.id!r} is written twice: ids must be unique in a folder")
        opened = self._splits.setdefault(split, _OpenSplit())
        if opened.writer is None:
            opened.writer = open_shard_writer(self._shard_path(split, len(opened.shards)))
        data = encode_record(record)
        opened.writer.write(data)
        opened.num_examples += 1
        opened.num_bytes += len(data)
        self.counts[split] = self.counts.get(split, 0) + 1
        if opened.num_bytes >= self._max_shard_bytes:
            self._close_shard(split)

    def add_file(self, name: str, text: str) -> None:
        """Put a text file (a report, a licence) into the folder."""
        (self._partial / name).write_text(text, encoding="utf-8")

    def _shard_path(self, split: str, index: int) -> Path:
        return self._partial / f"{split}-{index:05d}"

    def _close_shard(self, split: str) -> None:
        opened = self._splits[split]
        opened.writer.close()
        path = self._shard_path(split, len(opened.shards))
        opened.shards.append(Shard(path.name, opened.num_examples, path.stat().st_size, sha256_of(path)))
        opened.writer, opened.num_examples, opened.num_bytes = None, 0, 0

    def _finish(self) -> None:
        if not self.counts:
            raise ValueError(f"nothing was written to {self.out}: there is no record to keep")
        splits: dict[str, tuple[Shard, ...]] = {}
        for split in sorted(self._splits):
            opened = self._splits[split]
            if opened.writer is not None:
                self._close_shard(split)
            named = []
            for index, shard in enumerate(opened.shards):
                file = shard_file(self._name, split, index, len(opened.shards))
                (self._partial / shard.file).rename(self._partial / file)
                named.append(dataclasses.replace(shard, file=file))
            splits[split] = tuple(named)
        write_manifest(self._partial, Manifest(name=self._name, splits=splits))
        write_tfds_metadata(self._partial, self._name, splits, in_version_folder=self.out.name == DATASET_VERSION)
        publish_folder(self._partial, self.out)


def check_out(out: Path, *, overwrite: bool) -> None:
    """Make sure that a records folder may be made at a place.

    Raises:
        FileExistsError: It exists and `overwrite` is false, or it is not a records folder (that is never removed).
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / MANIFEST_NAME).is_file():
            raise FileExistsError(f"{out} exists and is not a records folder: choose another place")
        if not overwrite:
            raise FileExistsError(f"{out} already holds records: choose another place, or pass --overwrite")


def publish_folder(partial: Path, out: Path) -> None:
    """Put a complete folder in the place of `out`; the older one steps aside until then and is removed.

    Two renames: a kill between them leaves no `out`, and `restore_folder` puts the older one back.
    """
    retired = _retired(out)
    if out.exists():
        shutil.rmtree(retired, ignore_errors=True)  # of a run that was killed behind its second rename
        out.rename(retired)
    try:
        partial.rename(out)
    except OSError:
        if retired.exists():
            retired.rename(out)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def restore_folder(out: Path) -> None:
    """Put the older folder back where a kill came between the two renames of `publish_folder`."""
    if _retired(out).exists() and not out.exists():
        _retired(out).rename(out)


def _retired(out: Path) -> Path:
    return out.parent / f".{out.name}.old"


def shard_file(name: str, split: str, index: int, shards: int) -> str:
    """Return the file name of a split's shard, as TFDS's template wants it."""
    return f"{name}-{split}.array_record-{index:05d}-of-{shards:05d}"


def check_split_name(split: str) -> None:
    """Raise ValueError unless TFDS and the manifest take this name of a split."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", split):
        raise ValueError(f"split {split!r} is not a name of letters, digits and underscores")


def check_record(record: Record) -> None:
    """Raise ValueError where a record has no image bytes, no caption or a blank one."""
    if not record.captions or not all(caption.strip() for caption in record.captions):
        raise ValueError(f"record {record.id!r} has an empty caption or none")
    if not record.image:
        raise ValueError(f"record {record.id!r} has no image bytes")


def dataset_name(out: Path) -> str:
    """Return the TFDS name for a folder: its last part in lower case, other characters as underscores."""
    part = out.parent.name if out.name == DATASET_VERSION else out.name
    name = re.sub(r"[^a-z0-9_]+", "_", part.lower()).strip("_")
    return name if name[:1].isalpha() else f"records_{name}".rstrip("_")


def sha256_of(path: Path) -> str:
    """Hash a file in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tfds_features() -> tfds.features.FeaturesDict:
    """Return the features of a record, in TFDS's terms."""
    text = tfds.features.Text
    return tfds.features.FeaturesDict(
        {
            "id": text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "captions": tfds.features.Sequence(text()),
            "group_id": text(),
            "source": text(),
            "label": text(),
        }
    )


def write_tfds_metadata(
    folder: Path, name: str, splits: dict[str, tuple[Shard, ...]], *, in_version_folder: bool
) -> None:
    """Write `features.json` and `dataset_info.json`, so that TFDS opens the folder without our code.

    `tfds.builder_from_directory(folder)` reads the metadata beside the shards, `tfds.data_source(name,
    data_dir=parent)` those in `parent/name/VERSION`: unless the folder already is one, that subfolder holds the same
    metadata with a file template that points one level up.
    """
    _write_tfds_metadata(folder, folder, name, splits, _FILE_TEMPLATE)
    if not in_version_folder:
        version_folder = folder / DATASET_VERSION
        version_folder.mkdir()
        _write_tfds_metadata(folder, version_folder, name, splits, f"../{_FILE_TEMPLATE}")


def _write_tfds_metadata(
    folder: Path, metadata_folder: Path, name: str, splits: dict[str, tuple[Shard, ...]], template: str
) -> None:
    identity = dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(DATASET_VERSION), data_dir=os.fspath(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=tfds_features(), description="Image-caption records for plip_jax."
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    split_infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.num_examples for shard in shards],
            num_bytes=sum(shard.num_bytes for shard in shards),
            filename_template=tfds.core.ShardedFileTemplate(
                template=template,
                data_dir=epath.Path(metadata_folder),
                dataset_name=name,
                split=split,
                filetype_suffix="array_record",
            ),
        )
        for split, shards in splits.items()
    ]
    info.set_splits(tfds_splits.SplitDict(split_infos))
    info.write_to_directory(metadata_folder)
