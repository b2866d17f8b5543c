"""The on-disk record: field names, types, version. The contract between `data_prep` and everything that reads.

A records folder holds ArrayRecord shards of `tf.train.Example` (`group_size:1`, so that any record is one seek away),
TFDS metadata and a manifest:

    atlas/
      atlas-train.array_record-00000-of-00002 ...   the shards
      features.json, dataset_info.json              TFDS: `tfds.builder_from_directory("atlas")`
      1.0.0/features.json, 1.0.0/dataset_info.json  the same for `tfds.data_source("atlas", data_dir=<parent>)`
      records.json                                  version, and file name, count, size and sha256 of every shard

Reading needs no TensorFlow: TFDS ships a copy of the Example message that the protobuf runtime decodes. Images are
stored encoded (JPEG or PNG), upright and RGB, so that every reader sees the same pixels. The writer of whole folders
is `data_prep.shards`.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from array_record.python import (
    array_record_data_source,
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue] # compiled, no stubs
)
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_generated_pb2

FORMAT_VERSION = 1
"""Changes when a reader of the older format would misread the newer one."""

DATASET_VERSION = f"{FORMAT_VERSION}.0.0"
MANIFEST_NAME = "records.json"
TEXT_FIELDS = ("id", "group_id", "source", "label")
WRITER_OPTIONS = "group_size:1"

# The message class is made at run time by protobuf's builder, which a type checker cannot see.
_Example: Any = tf_example_generated_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_]+")


class RecordError(ValueError):
    """A record, a shard or a records folder is not what the format says; the message names which and why."""


class MissingRecordsSplitError(RecordError):
    """A records folder does not hold the split that is asked for."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with its captions.

    Attributes:
        id: Unique in the folder.
        image: Encoded JPEG or PNG, upright RGB.
        captions: One or more texts, any of which describes the image.
        group_id: What must stay on one side of a split (slide, patient, post); empty when there is none.
        source: Where the pair comes from, e.g. the name of the table.
        label: Class name; empty when there is none.
    """

    id: str
    image: bytes
    captions: tuple[str, ...]
    group_id: str = ""
    source: str = ""
    label: str = ""


def encode_record(record: Record) -> bytes:
    """Serialise a record as `tf.train.Example`; equal records give equal bytes."""
    example = _Example()
    feature = example.features.feature
    for name in TEXT_FIELDS:
        feature[name].bytes_list.value.append(getattr(record, name).encode())
    feature["image"].bytes_list.value.append(record.image)
    feature["captions"].bytes_list.value.extend(caption.encode() for caption in record.captions)
    return example.SerializeToString(deterministic=True)


def decode_record(data: bytes, *, where: str) -> Record:
    """Parse a serialised `tf.train.Example`.

    Args:
        data: The bytes as stored.
        where: What to call the record in an error.

    Raises:
        RecordError: The bytes are not an Example, or a field is missing, has another type or is not UTF-8.
    """
    try:
        example = _Example.FromString(data)
    except DecodeError as error:
        raise RecordError(f"{where}: not a tf.train.Example ({len(data)} bytes): {error}") from error
    feature = example.features.feature
    fields: dict[str, Sequence[bytes]] = {}
    for name in (*TEXT_FIELDS, "image", "captions"):
        if name not in feature:
            raise RecordError(f"{where}: field {name!r} is missing; found {sorted(feature)}")
        kind = feature[name].WhichOneof("kind")
        # TFDS and we write an empty list of texts as a feature without a kind.
        if kind not in ("bytes_list", None):
            raise RecordError(f"{where}: field {name!r} holds a {kind}, expected a bytes_list")
        fields[name] = feature[name].bytes_list.value
        if name != "captions" and len(fields[name]) != 1:
            raise RecordError(f"{where}: field {name!r} holds {len(fields[name])} values, expected 1")
    try:
        texts = {name: fields[name][0].decode() for name in TEXT_FIELDS}
        captions = tuple(caption.decode() for caption in fields["captions"])
    except UnicodeDecodeError as error:
        raise RecordError(f"{where}: a text field is not UTF-8: {error}") from error
    return Record(image=fields["image"][0], captions=captions, **texts)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file of a split, as the manifest lists it.

    Attributes:
        file: Its name in the folder.
        num_examples: Records in it.
        num_bytes: Its size.
        sha256: Hash of its bytes, hexadecimal.
    """

    file: str
    num_examples: int
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `records.json` says.

    Attributes:
        name: Of the dataset, as TFDS knows it.
        splits: Name -> its shards, in order.
        format_version: See `FORMAT_VERSION`.
    """

    name: str
    splits: Mapping[str, tuple[Shard, ...]]
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the text of `records.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `records.json`."""
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check `records.json`.

    Raises:
        RecordError: There is none, it is damaged, or another format version wrote it.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(_no_records_message(Path(folder))) from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise RecordError(f"{path} is not a records manifest: it has no 'format_version'")
    if content["format_version"] != FORMAT_VERSION:
        raise RecordError(
            f"{path} has format version {content['format_version']!r}; this plip_jax reads version {FORMAT_VERSION}. "
            "Build the records again, or use the version of plip_jax that wrote them."
        )
    try:
        splits = {
            split: tuple(Shard(**{**shard, "file": _plain_name(shard["file"])}) for shard in shards)
            for split, shards in content["splits"].items()
        }
        manifest = Manifest(name=str(content["name"]), splits=splits)
        bad = [s for shards in splits.values() for s in shards if not _is_typed(s)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path} is not a records manifest: {error!r}") from error
    if bad or not splits or not all(_SPLIT_NAME.fullmatch(split) for split in splits):
        raise RecordError(f"{path} is not a records manifest: splits {sorted(splits)}, ill-typed shards {bad}")
    return manifest


def _plain_name(file: str) -> str:
    """Return the file name, or raise ValueError: a manifest must not point outside its folder."""
    if not file or Path(file).name != file:
        raise ValueError(f"{file!r} is not a plain file name")
    return file


def _is_typed(shard: Shard) -> bool:
    counts = all(type(count) is int and count >= 0 for count in (shard.num_examples, shard.num_bytes))
    return counts and isinstance(shard.sha256, str)


def _no_records_message(folder: Path) -> str:
    found = "the folder does not exist"
    if folder.is_dir():
        names = sorted(entry.name for entry in folder.iterdir())[:5]
        found = f"the folder has no {MANIFEST_NAME} (it holds {', '.join(names) if names else 'nothing'})"
    return (
        f"No records in {folder}: {found}. Make records from an image-caption table with\n"
        f"  python -m data_prep.build --source csv --table captions.csv --images DIR --out {folder}\n"
        f"or simulated tissue with\n"
        f"  python -m data_prep.simulate --out {folder}"
    )


def records_root(path: str | Path) -> Path:
    """Return the records folder that a path names: itself, or its parent when given TFDS's version folder."""
    path = Path(path)
    is_version_folder = path.name == DATASET_VERSION and not (path / MANIFEST_NAME).exists()
    return path.parent if is_version_folder and (path.parent / MANIFEST_NAME).exists() else path


def is_records_folder(path: str | Path) -> bool:
    """Say whether a path names a folder made by `data_prep` (its manifest is there; it may still be damaged)."""
    return (records_root(path) / MANIFEST_NAME).is_file()


@dataclasses.dataclass  # not frozen: the protocol it fills declares writable attributes
class _ShardSlice:
    """A whole shard in the form `ArrayRecordDataSource` takes without opening it to count (TFDS's FileInstruction)."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class RecordFolder(Sequence[Record]):
    """Random access to the records of one split: `folder[i]` is a `Record`; picklable, safe to read from threads.

    Attributes:
        path: The records folder.
        split: The split that is read.
        shards: Its shards, in order.
        fingerprint: Hash of the split's content (counts, sizes and sha256 of its shards, in order); the folder's name
            and place do not enter.
    """

    def __init__(self, path: Path, split: str, shards: tuple[Shard, ...]) -> None:
        self.path = path
        self.split = split
        self.shards = shards
        content = [(shard.num_examples, shard.num_bytes, shard.sha256) for shard in shards]
        self.fingerprint = hashlib.sha256(json.dumps([FORMAT_VERSION, content]).encode()).hexdigest()
        self._source = array_record_data_source.ArrayRecordDataSource(
            [_ShardSlice(os.fspath(path / s.file), 0, s.num_examples, s.num_examples) for s in shards]
        )

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """Read and decode.

        Raises:
            RecordError: The record is damaged; the message names shard and position.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return decode_record(self.read_bytes(index), where=self.where(index))

    def read_bytes(self, index: int) -> bytes:
        """Return one serialised Example.

        Raises:
            RecordError: The shard is damaged there.
        """
        index = self._checked(index)
        try:
            return self._source[index]
        except Exception as error:  # the C++ reader raises several types; each means the shard cannot be read here
            raise RecordError(f"{self.where(index)}: cannot be read from the shard: {error}") from error

    def where(self, index: int) -> str:
        """Return the place of a record for messages: shard file and position in it."""
        index = self._checked(index)
        for shard in self.shards:
            if index < shard.num_examples:
                return f"{self.path / shard.file} record {index}"
            index -= shard.num_examples
        raise AssertionError("the counts of the shards add up to the length")

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {self.path} split {self.split!r}, which has {len(self)}")
        return index % len(self)


def open_records(path: str | Path, split: str = "train") -> RecordFolder:
    """Open one split of a records folder for random access.

    Sizes and the group size of every shard are checked here; contents by `python -m data_prep.verify`.

    Raises:
        MissingRecordsSplitError: No such split; what there is is listed.
        RecordError: Not a records folder, another version, or a shard that is missing, cut short or not
            `group_size:1`. The message says what was found and what to do.
    """
    folder = records_root(path)
    manifest = read_manifest(folder)
    if split not in manifest.splits:
        raise MissingRecordsSplitError(f"{folder} has no split {split!r}; it has {sorted(manifest.splits)}")
    shards = manifest.splits[split]
    if not sum(shard.num_examples for shard in shards):
        raise RecordError(f"{folder} split {split!r} is empty")
    problems = [problem for shard in shards for problem in check_shard_header(folder, shard)]
    if problems:
        raise RecordError("\n".join([f"{folder} split {split!r} is damaged:", *problems]))
    return RecordFolder(folder, split, shards)


def check_shard_header(folder: Path, shard: Shard) -> list[str]:
    """Compare a shard's size, count and group size with the manifest, without reading its records.

    Returns:
        What is wrong, one line each; empty when nothing is.
    """
    path = folder / shard.file
    if not path.is_file():
        return [f"{path}: the shard is missing"]
    if path.stat().st_size != shard.num_bytes:
        return [f"{path}: {path.stat().st_size} bytes, the manifest says {shard.num_bytes}"]
    try:
        reader = open_shard_reader(path)
    except RecordError as error:
        return [str(error)]
    try:
        count, options = reader.num_records(), reader.writer_options_string() or ""
    finally:
        reader.close()
    problems = []
    if count != shard.num_examples:
        problems.append(f"{path}: {count} records, the manifest says {shard.num_examples}")
    # Grain reads any group size without complaint, but only 1 is random access.
    if not re.search(r"(^|,)group_size:1(,|$)", options):
        problems.append(f"{path}: written with {options!r}, expected group_size:1")
    return problems


def open_shard_reader(path: Path) -> Any:
    """Open an ArrayRecord file for random access.

    Raises:
        RecordError: The file has no readable ArrayRecord footer (cut short, overwritten, or another format).
    """
    try:
        reader = array_record_module.ArrayRecordReader(
            os.fspath(path), options="readahead_buffer_size:0,max_parallelism:0"
        )
    except Exception as error:  # pybind maps C++ failures to several types; each means that it cannot be opened
        raise RecordError(f"{path}: cannot be opened as ArrayRecord: {error}") from error
    # A damaged footer does not raise: the reader comes back not ok, with no records.
    if not reader.ok():
        raise RecordError(f"{path}: not a readable ArrayRecord file (its footer is damaged or missing)")
    return reader


def open_shard_writer(path: Path) -> Any:
    """Open an ArrayRecord file for writing: `write(bytes)` per record, then `close()`."""
    return array_record_module.ArrayRecordWriter(os.fspath(path), WRITER_OPTIONS)
