"""Embeddings that another program wrote, read from files: any model can be compared, whatever it runs in.

The layout of a folder (all but the images is optional):

    images.npy   float [N, D]        image_ids.txt | .json | .csv    the examples' ids, a row each
    texts.npy    float [T, D]        texts.txt | .json | .csv        the texts themselves, a row each
    logit_scale.txt                  one number: what cosines are multiplied by (exp of the learned parameter)
    metadata.json                    {"name": …, "logit_scale": …, "normalized": false where rows stay as they are}

or ``images.npz`` / ``images.h5`` (and ``texts.npz`` / ``texts.h5``) with the arrays ``ids`` and ``features``. One such
file alone, instead of a folder, holds images. A ``.txt`` has one entry a line, a ``.json`` a list of strings, a
``.csv`` a header with a column ``id`` or ``text``. Nothing is unpickled.
"""

import csv
import dataclasses
import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Rows hashed or compared at a time.
_CHUNK = 1 << 14
# Rows of one text that is there twice may differ by what batching does to float16 features, relative to their length.
_SAME_TEXT = 1e-2


class EmbeddingFilesError(ValueError):
    """Embedding files that are absent, damaged, or lack what is asked of them; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class EmbeddingTable:
    """Features and whose they are.

    Attributes:
        file: where they come from.
        features: [N, D], any float type; may be a mapped file.
        rows: name -> row.
    """

    file: Path
    features: np.ndarray
    rows: dict[str, int]

    def take(self, names: Sequence[str], *, what: str) -> np.ndarray:
        """The rows of these names, float32 [len(names), D].

        Args:
            names: ids or texts.
            what: to call them in the error.

        Raises:
            EmbeddingFilesError: names that are not there; they are counted and the first is named.
        """
        missing = [name for name in names if name not in self.rows]
        if missing:
            raise EmbeddingFilesError(
                f"{self.file} has {len(self.rows)} {what}, but not {len(missing)} of the {len(names)} asked for, first "
                f"{missing[0]!r}; it has e.g. {next(iter(self.rows), '(nothing)')!r}: write them with the same names"
            )
        rows = np.asarray([self.rows[name] for name in names], np.int64)
        return np.asarray(self.features[rows], np.float32)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of names and features."""
        digest = hashlib.sha256(json.dumps([list(self.rows.items()), list(self.features.shape)]).encode())
        digest.update(self.features.dtype.str.encode())
        for start in range(0, len(self.features), _CHUNK):
            digest.update(np.ascontiguousarray(self.features[start : start + _CHUNK]).tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class EmbeddingFiles:
    """What a folder (or file) holds.

    Attributes:
        images: by example id.
        texts: by the text itself; None where there are none.
        logit_scale: what cosines are multiplied by; None where it is not told.
        normalized: whether rows are to be scaled to length one.
        name: of the model, "" where it is not told.
    """

    images: EmbeddingTable
    texts: EmbeddingTable | None = None
    logit_scale: float | None = None
    normalized: bool = True
    name: str = ""


def read_embedding_files(path: str | Path) -> EmbeddingFiles:
    """Read a folder of the layout above, or one ``.npz`` or ``.h5`` of images.

    Raises:
        EmbeddingFilesError: files that are absent, twice there, damaged, or that do not fit each other.
    """
    path = Path(path).expanduser()
    if path.is_file():
        if path.suffix not in _PAIRED:
            raise EmbeddingFilesError(f"{path}: expected a folder, .npz or .h5, got {path.suffix or 'no suffix'}")
        return EmbeddingFiles(_table(path, *_PAIRED[path.suffix](path), texts=False))
    if not path.is_dir():
        raise EmbeddingFilesError(f"{path}: expected a folder of embedding files, or one .npz or .h5; nothing is there")
    images = _find(path, "images", "image_ids", texts=False)
    if images is None and (path / "parts").is_dir() and (path / "manifest.json").is_file():
        raise EmbeddingFilesError(f"{path} is not finished: run the command that began it again, it goes on")
    if images is None:
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:12])
        raise EmbeddingFilesError(
            f"{path}: expected images.npy with image_ids.txt (or .json, .csv), images.npz or images.h5, found "
            f"{found or 'an empty folder'}"
        )
    texts = _find(path, "texts", "texts", texts=True)
    if texts is not None and texts.features.shape[1] != images.features.shape[1]:
        raise EmbeddingFilesError(
            f"{path}: expected images and texts of one space, got {images.features.shape[1]} and "
            f"{texts.features.shape[1]} features"
        )
    return EmbeddingFiles(images, texts, **_read_metadata(path))


def _find(folder: Path, stem: str, names_stem: str, *, texts: bool) -> EmbeddingTable | None:
    files = [file for suffix in (".npy", *_PAIRED) if (file := folder / f"{stem}{suffix}").is_file()]
    if not files:
        return None
    if len(files) > 1:
        raise EmbeddingFilesError(f"{folder}: expected {stem} once, got {', '.join(file.name for file in files)}")
    if files[0].suffix in _PAIRED:
        return _table(files[0], *_PAIRED[files[0].suffix](files[0]), texts=texts)
    lists = [file for suffix in _LISTS if (file := folder / f"{names_stem}{suffix}").is_file()]
    if len(lists) != 1:
        raise EmbeddingFilesError(
            f"{folder}: expected one of {', '.join(names_stem + suffix for suffix in _LISTS)} beside {files[0].name}, "
            f"got {', '.join(file.name for file in lists) or 'none'}"
        )
    try:
        names = _LISTS[lists[0].suffix](lists[0])
    except (ValueError, csv.Error, RecursionError) as error:
        raise EmbeddingFilesError(f"{lists[0]}: {error}") from None
    return _table(files[0], names, _load(files[0]), texts=texts)


def _table(file: Path, names: Sequence[str], features: Any, *, texts: bool) -> EmbeddingTable:
    if not isinstance(features, np.ndarray) or features.ndim != 2 or features.dtype.kind != "f":
        got = (
            f"{features.dtype} {list(features.shape)}" if isinstance(features, np.ndarray) else type(features).__name__
        )
        raise EmbeddingFilesError(f"{file}: expected features of floats [rows, features], got {got}")
    if len(names) != len(features):
        raise EmbeddingFilesError(f"{file}: expected a name for each of {len(features)} rows, got {len(names)}")
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        first = rows.setdefault(name, row)
        if first == row:
            continue
        # A caption of several images may be listed once for each.
        if not texts or not _alike(features[first], features[row]):
            differ = " with different features" if texts else ""
            raise EmbeddingFilesError(f"{file}: expected each name once, got {name!r} twice{differ}")
    return EmbeddingTable(file, features, rows)


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return bool(np.linalg.norm(a - b) <= _SAME_TEXT * np.linalg.norm(a))


def _load(file: Path) -> Any:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise EmbeddingFilesError(f"{file}: expected an array saved by numpy.save, {error}") from None


def _read_npz(file: Path) -> tuple[list[str], np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            ids, features = arrays["ids"], arrays["features"]
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise EmbeddingFilesError(
            f"{file}: expected the arrays ids (strings, not objects) and features, {error}"
        ) from None
    if ids.dtype.kind not in "US" or ids.ndim != 1:
        raise EmbeddingFilesError(f"{file}: expected ids to be one string a row, got {ids.dtype} {list(ids.shape)}")
    return [name.decode() if isinstance(name, bytes) else str(name) for name in ids], features


def _read_h5(file: Path) -> tuple[list[str], np.ndarray]:
    try:
        import h5py  # an extra
    except ImportError as error:
        raise EmbeddingFilesError(f"{file}: reading .h5 needs h5py: pip install h5py") from error
    try:
        with h5py.File(file, "r") as content:
            ids: Any = content["ids"]
            features: Any = content["features"]
            return [str(name) for name in ids.asstr(errors="surrogateescape")[:]], features[:]
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise EmbeddingFilesError(f"{file}: expected the datasets ids (strings) and features, {error}") from None


_PAIRED: dict[str, Callable[[Path], tuple[list[str], np.ndarray]]] = {".npz": _read_npz, ".h5": _read_h5}


def _read_txt(file: Path) -> list[str]:
    # Not splitlines: a caption may hold a form feed or another of its dozen line ends.
    lines = file.read_text(encoding="utf-8").replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _read_json(file: Path) -> list[str]:
    names = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("expected a list of strings")
    return names


def _read_csv(file: Path) -> list[str]:
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines)
        column = next((name for name in ("id", "text") if name in (rows.fieldnames or ())), None)
        if column is None:
            raise ValueError(f"expected a column id or text, got {rows.fieldnames}")
        return [row[column] for row in rows]


_LISTS: dict[str, Callable[[Path], list[str]]] = {".txt": _read_txt, ".json": _read_json, ".csv": _read_csv}


def _read_metadata(folder: Path) -> dict[str, Any]:
    file = folder / "metadata.json"
    found: dict[str, Any] = {}
    if file.is_file():
        try:
            found = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise EmbeddingFilesError(f"{file}: expected a JSON object, {error}") from None
        if not isinstance(found, dict):
            raise EmbeddingFilesError(f"{file}: expected a JSON object, got a {type(found).__name__}")
    metadata = {name: found[name] for name in ("name", "logit_scale", "normalized") if name in found}
    if (folder / "logit_scale.txt").is_file():
        file = folder / "logit_scale.txt"
        try:
            metadata["logit_scale"] = float(file.read_text())
        except ValueError:
            raise EmbeddingFilesError(f"{file}: expected one number") from None
    scale = metadata.get("logit_scale")
    if isinstance(scale, bool) or not isinstance(scale, int | float | None):
        raise EmbeddingFilesError(f"{file}: logit_scale: expected a number, got {scale!r}")
    if scale is not None and not 0 < scale < math.inf:
        raise EmbeddingFilesError(f"{file}: logit_scale: expected a positive number (exp of the learned), got {scale}")
    if not isinstance(metadata.get("normalized", True), bool) or not isinstance(metadata.get("name", ""), str):
        raise EmbeddingFilesError(f"{file}: expected normalized to be true or false and name a string")
    return metadata
