"""A TFDS dataset of labelled images as evaluation examples: what `data_prep.tfds` builds, or anything of that form.

Read through `tensorflow_datasets` as a data source, so the files must be ArrayRecord; TensorFlow is not needed. The
features: ``image``; ``label`` (a ClassLabel) and, where they exist, ``filename``, ``captions``, ``label_set``,
``patient_id``, ``slide_id``, ``group_id``; every other text is an attribute.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from plip_jax.data.example import Example
from plip_jax.data.split_manifest import SplitManifestError, find_part, read_schemes

_FIELDS = ("image", "label", "filename", "id", "captions", "label_set", "patient_id", "slide_id", "group_id")


def is_tfds_folder(path: Path) -> bool:
    """Say whether a path is a version folder of a TFDS dataset, or its parent with one version in it."""
    return version_folder(path) is not None


def version_folder(path: Path) -> Path | None:
    """The folder with ``dataset_info.json``: the path itself, or its only (newest) version."""
    if (path / "dataset_info.json").is_file():
        return path
    versions = [entry for entry in path.iterdir() if (entry / "dataset_info.json").is_file()] if path.is_dir() else []
    return max(versions, key=lambda entry: _version_key(entry.name)) if versions else None


def _version_key(name: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in name.split("."))


class TfdsFolder(Sequence[Example]):
    """The examples of one split, read one at a time.

    Attributes:
        path: the version folder.
        split: as asked for.
        fingerprint: of the files.
    """

    def __init__(self, path: Path, split: str | None) -> None:
        """Open a split.

        Args:
            path: the version folder, or its parent.
            split: ``SCHEME/PART`` or ``PART`` where the set has split manifests, else a split of the TFDS dataset; None
                takes its only one.

        Raises:
            SplitManifestError: no such split (the known ones are listed), or it names what the set does not hold.
        """
        import tensorflow_datasets as tfds  # seconds to import; only these sets need it

        folder = version_folder(path)
        assert folder is not None  # is_tfds_folder was asked first
        self.path = folder
        self.split = split
        self.fingerprint = _fingerprint(folder)
        builder = tfds.builder_from_directory(folder)
        self._features: Any = builder.info.features
        decoders = {"image": tfds.decode.SkipDecoding()}
        schemes = read_schemes(folder)
        self._labels: tuple[str, ...] = ()
        stored = sorted(builder.info.splits)
        wanted = stored if schemes else [_stored_split(folder, stored, split)]
        open_split: Any = builder.as_data_source  # its decorator hides the signature from the type checker
        self._sources: list[Any] = [open_split(name, decoders=decoders) for name in wanted]
        places = [(source, row) for source, data in enumerate(self._sources) for row in range(len(data))]
        if schemes:
            if split is None:
                raise SplitManifestError(f"{folder}: say which split; there are {_known(schemes)}")
            _, part = find_part(schemes, split)
            place_of = _places(folder, self.fingerprint, self._sources)
            missing = [name for name in part.filenames if name not in place_of]
            if missing:
                raise SplitManifestError(
                    f"{folder}: split {split} names {len(missing)} files that are not in the set, first {missing[0]!r}"
                )
            places = [place_of[name] for name in part.filenames]
            self._labels = part.labels
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        label = self._labels[index] if self._labels else None
        return self._example(*self._places[index], label=label)

    def _example(self, source: int, row: int, *, label: str | None = None) -> Example:
        found = self._sources[source][row]
        number = int(found["label"]) if "label" in found else -1
        stored = self._features["label"].int2str(number) if number >= 0 else ""
        others = {
            name: value for name, value in found.items() if name not in _FIELDS and isinstance(value, bytes | str)
        }
        return Example(
            id=_text(found.get("filename", found.get("id", f"{row}"))),
            image=_file_bytes(found["image"]),
            captions=tuple(_text(caption) for caption in found.get("captions", ())),
            label=stored if label is None else label,
            label_set=tuple(_text(one) for one in found.get("label_set", ())),
            patient_id=_text(found.get("patient_id", "")),
            slide_id=_text(found.get("slide_id", "")),
            group_id=_text(found.get("group_id", "")),
            attributes={name: _text(value) for name, value in others.items()},
        )


# By folder and fingerprint: every part of a set is found by one pass over its records.
_KNOWN_PLACES: dict[tuple[Path, str], dict[str, tuple[int, int]]] = {}


def _places(folder: Path, fingerprint: str, sources: Sequence[Any]) -> dict[str, tuple[int, int]]:
    """Where each file name is stored: number of the source, and row."""
    if (folder, fingerprint) not in _KNOWN_PLACES:
        _KNOWN_PLACES[folder, fingerprint] = {
            _text(source[row]["filename"]): (number, row)
            for number, source in enumerate(sources)
            for row in range(len(source))
        }
    return _KNOWN_PLACES[folder, fingerprint]


def _stored_split(folder: Path, stored: list[str], split: str | None) -> str:
    if split is None and len(stored) == 1:
        return stored[0]
    if split not in stored:
        raise SplitManifestError(f"{folder}: no split {split!r}; there are {', '.join(stored)}")
    return split


def _known(schemes: Any) -> str:
    return ", ".join(f"{scheme.name}/{part}" for scheme in schemes.values() for part in scheme.parts)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _file_bytes(image: Any) -> bytes:
    """An image as a file; TFDS hands out the stored bytes, or pixels where it could not skip decoding."""
    if isinstance(image, bytes):
        return image
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def _fingerprint(folder: Path) -> str:
    """Of the names, sizes and times of the shards: a rebuilt set is another one."""
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.glob("*.array_record*"))]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()
