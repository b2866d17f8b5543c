"""Labelled or captioned images for evaluation: a records folder, a built TFDS set, or a folder of class folders.

Each opens as a sequence of `Example`, in a fixed order, read one at a time, with a ``fingerprint`` of its images.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from plip_jax.data.example import Example
from plip_jax.data.records import RecordFolder, is_records_folder, open_records, read_manifest, records_root
from plip_jax.data.tfds_folder import TfdsFolder, is_tfds_folder

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".avif", ".ppm")


class ExamplesError(ValueError):
    """A path holds no examples; the message says what was found and what is expected."""


class MissingFolderError(ExamplesError):
    """A folder of class folders has no such split."""


class Records(Sequence[Example]):
    """A records folder's split as examples.

    Attributes:
        fingerprint: of the shards' content.
    """

    def __init__(self, folder: RecordFolder) -> None:
        self._folder = folder
        self.fingerprint = folder.fingerprint

    def __len__(self) -> int:
        return len(self._folder)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        record = self._folder[index]
        attributes = {"source": record.source}
        return Example(record.id, record.image, record.captions, record.label, (), "", "", record.group_id, attributes)


class ClassFolders(Sequence[Example]):
    """Images in class folders as examples: the id is the path below the root, the label the class folder's name.

    Attributes:
        path: The folder of class folders.
        class_names: Names of the class folders with at least one image, sorted.
        fingerprint: Of the files' places, sizes and times.
    """

    def __init__(self, path: Path, files: Sequence[tuple[str, Path]]) -> None:
        self.path = path
        self.class_names = tuple(sorted({label for label, _ in files}))
        self._files = tuple(files)
        known = [(f.relative_to(path).as_posix(), f.stat().st_size, f.stat().st_mtime_ns) for _, f in files]
        self.fingerprint = hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        label, file = self._files[index]
        return Example(file.relative_to(self.path).as_posix(), file.read_bytes(), label=label)


def open_examples(path: str | Path, split: str | None = None) -> Records | TfdsFolder | ClassFolders:
    """Open a records folder, a built TFDS set, or a folder of class folders.

    Args:
        path: For class folders, `path/CLASS/**/IMAGE`, or `path/SPLIT/CLASS/**/IMAGE` when a split is named. Hidden
            files, `__MACOSX` and files without an image suffix are passed over.
        split: Of a records folder; None takes its only split. Of a built set ``SCHEME/PART``, or a part of its default
            scheme.

    Raises:
        ExamplesError: None of these kinds of folder, no image in it, or splits and none named.
        RecordError: The records folder has no such split, or is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise ExamplesError(f"{path} is not a folder. {_EXPECTED}")
    if is_records_folder(path):
        return Records(open_records(path, split or _only_split(path)))
    if is_tfds_folder(path):
        return TfdsFolder(path, split)
    root = path if split is None else path / split
    if not root.is_dir():
        raise MissingFolderError(f"{path} has no folder {split!r}; found {_listing(path)}. {_EXPECTED}")
    folders = [entry for entry in _visible(root) if entry.is_dir()]
    if split is None and _are_splits(folders):
        names = [folder.name for folder in folders]
        raise ExamplesError(
            f"The folders {', '.join(names)} of {path} hold class folders of their own, so they look like splits: "
            f"say which with split, e.g. split={names[0]!r}"
        )
    files = [
        (folder.name, file)
        for folder in folders
        for file in sorted(_images(folder), key=lambda file: file.relative_to(root).as_posix())
    ]
    if not files:
        raise ExamplesError(f"{root} holds no image in a class folder; found {_listing(root)}. {_EXPECTED}")
    return ClassFolders(root, files)


_EXPECTED = (
    "Expected a records folder (made by python -m data_prep.build), a set built by python -m data_prep.tfds.build, "
    "or a folder with one folder of images a class: "
    f"PATH/CLASS/NAME with one of the suffixes {' '.join(IMAGE_SUFFIXES)}."
)


def _only_split(path: Path) -> str:
    splits = sorted(read_manifest(records_root(path)).splits)
    if len(splits) > 1:
        raise ExamplesError(
            f"{path} has the splits {', '.join(splits)}: say which with split, e.g. split={splits[0]!r}"
        )
    return splits[0]


def _are_splits(folders: Sequence[Path]) -> bool:
    """Say whether folders are splits and not classes: no image directly in them, and the same class folders in all."""
    below = [[entry for entry in _visible(folder) if entry.is_dir() or _is_image(entry)] for folder in folders]
    if not folders or not all(entries and all(entry.is_dir() for entry in entries) for entries in below):
        return False
    return bool(set.intersection(*({entry.name for entry in entries} for entries in below)))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _visible(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted by name, without what file managers and archivers leave behind."""
    return sorted(
        (entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != "__MACOSX"),
        key=lambda entry: entry.name,
    )


def _images(folder: Path) -> list[Path]:
    found: list[Path] = []
    for entry in _visible(folder):
        if entry.is_dir():
            found.extend(_images(entry))
        elif _is_image(entry):
            found.append(entry)
    return found


def _listing(folder: Path) -> str:
    names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in sorted(folder.iterdir())]
    shown = ", ".join(names[:8]) if names else "nothing"
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
