"""Embeddings kept between runs: what was computed once for the same weights, preprocessing and data is read.

An entry is ``HASH.npy`` with the features as the encoder gave them and ``HASH.json`` with what they are of. HASH is of
the encoder's key and of the data. An entry is used only if both files say what they should and the features have the
hash that the JSON names; anything else is computed again, with a warning.
"""

import hashlib
import json
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.evaluation.embeddings import Embeddings, EvaluationError
from plip_jax.evaluation.examples import EncodeImages, Examples

FORMAT_VERSION = 1
"""Part of every entry: changes when the files' layout does."""
CHUNK = 1 << 14
"""Examples embedded and written at a time: 32 MB of 512 features, many batches of the device."""

_VERSIONED = ("jax", "numpy", "pillow")


class EmbeddingCacheWarning(UserWarning):
    """An entry was not trusted, and its embeddings are computed again."""


class EmbeddingCache:
    """A folder of embeddings.

    Attributes:
        folder: made when the first entry is written. Entries may be deleted at any time between runs.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def get_or_compute(
        self, examples: Examples, encoder_key: str, normalized: bool, compute: EncodeImages, *, chunk: int = CHUNK
    ) -> Embeddings:
        """Embeddings of the examples: read, or computed in chunks and kept. A subset is cut from its whole.

        Args:
            examples: where their fingerprint is empty, the images' bytes are read and hashed, and not decoded.
            encoder_key: hash of all that decides the features.
            normalized: whether the rows are scaled to length one; kept as they come.
            compute: image files and ids -> float [N, D].
            chunk: examples computed at a time.

        Raises:
            EvaluationError: the encoder gives other than a row for each image, or the data change meanwhile.
        """
        if examples.origin is not None:
            whole, rows = examples.origin
            return self.get_or_compute(whole, encoder_key, normalized, compute, chunk=chunk).take(rows)
        identity = {
            "kind": "images",
            "encoder": encoder_key,
            "ids": _hash_texts(examples.ids),
            "fingerprint": examples.fingerprint,
        }
        features = self._read(identity, lambda: "" if examples.fingerprint else hash_images(examples))
        if features is None:
            features = self._compute_images(identity, examples, compute, chunk)
        return Embeddings(examples.ids, features, normalized)

    def get_or_compute_text(
        self, texts: Sequence[str], encoder_key: str, compute: Callable[[Sequence[str]], np.ndarray]
    ) -> np.ndarray:
        """Features float32 [N, D] of a list of texts: read, or computed and kept.

        Args:
            texts: in order.
            encoder_key: hash of all that decides the features.
            compute: texts -> float [N, D].

        Raises:
            EvaluationError: the encoder gives other than a row for each text.
        """
        identity = {"kind": "texts", "encoder": encoder_key, "ids": _hash_texts(texts), "fingerprint": ""}
        features = self._read(identity, lambda: "")
        if features is None:
            rows = _checked(compute(texts), len(texts), None)
            features = self._write(identity, len(texts), [rows], lambda: "")
        return np.array(features)

    def _compute_images(
        self, identity: Mapping[str, str], examples: Examples, compute: EncodeImages, chunk: int
    ) -> np.ndarray:
        digest = None if examples.fingerprint else hashlib.sha256()

        def parts() -> Iterator[np.ndarray]:
            dim = None
            for start in range(0, len(examples), chunk):
                names = examples.ids[start : start + chunk]
                images = read_images(examples, start, start + len(names), digest)
                part = _checked(compute(images, names=names), len(names), dim)
                for _ in images:  # an encoder that leaves images unread would leave them out of the hash
                    pass
                dim = part.shape[1]
                yield part

        return self._write(identity, len(examples), parts(), lambda: "" if digest is None else digest.hexdigest())

    def _files(self, identity: Mapping[str, str]) -> tuple[Path, Path]:
        name = _hash_texts([str(FORMAT_VERSION), *(f"{key}={identity[key]}" for key in sorted(identity))])[:40]
        return self.folder / f"{name}.npy", self.folder / f"{name}.json"

    def _read(self, identity: Mapping[str, str], images_hash: Callable[[], str]) -> np.ndarray | None:
        """The features of an entry, mapped; None where there is none that can be trusted."""
        array_file, entry_file = self._files(identity)
        if not entry_file.is_file():
            return None
        try:
            entry = json.loads(entry_file.read_bytes())
            if not isinstance(entry, dict) or {key: entry.get(key) for key in identity} != dict(identity):
                raise ValueError("it is of something else")
            features = np.load(array_file, mmap_mode="r", allow_pickle=False)
            if list(features.shape) != entry.get("shape") or features.dtype != np.float32 or features.ndim != 2:
                raise ValueError(f"expected float32 {entry.get('shape')}, got {features.dtype} {list(features.shape)}")
            if _hash_array(features) != entry.get("features"):
                raise ValueError("the features are not those that were written")
            if images_hash() != entry.get("images"):
                raise ValueError("the images have changed since")
        except (ValueError, OSError, EOFError, RecursionError) as error:
            warnings.warn(
                f"{entry_file}: not used, the embeddings are computed again ({error})",
                EmbeddingCacheWarning,
                stacklevel=4,
            )
            return None
        return features

    def _write(
        self,
        identity: Mapping[str, str],
        num_rows: int,
        parts: Iterable[np.ndarray],
        images_hash: Callable[[], str],
    ) -> np.ndarray:
        """Write an entry under temporary names, rename, and map it; the JSON last, so that where it is the rest is."""
        array_file, entry_file = self._files(identity)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{array_file.name}.partial-{uuid.uuid4().hex}"
        try:
            kept: np.ndarray | None = None
            start = 0
            for part in parts:
                if kept is None:
                    kept = np.lib.format.open_memmap(partial, "w+", np.float32, (num_rows, part.shape[1]))
                kept[start : start + len(part)] = part
                start += len(part)
            if kept is None or start != num_rows:
                raise EvaluationError(f"expected {num_rows} rows to keep, got {start}")
            kept.flush()  # type: ignore[attr-defined] # open_memmap gives a memmap
            entry = {
                **identity,
                "format_version": FORMAT_VERSION,
                "shape": list(kept.shape),
                "features": _hash_array(kept),
                "images": images_hash(),
                "versions": {name: metadata.version(name) for name in _VERSIONED},
            }
            del kept
            partial.replace(array_file)
            partial.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
            partial.replace(entry_file)
        finally:
            partial.unlink(missing_ok=True)
        return np.load(array_file, mmap_mode="r", allow_pickle=False)


def compute_embeddings(examples: Examples, normalized: bool, compute: EncodeImages) -> Embeddings:
    """Embeddings of the examples without a cache, each image read once.

    Raises:
        EvaluationError: the encoder gives other than a row for each image, or the data change meanwhile.
    """
    return Embeddings(examples.ids, compute(read_images(examples, 0, len(examples)), names=examples.ids), normalized)


def read_images(examples: Examples, start: int, stop: int, digest: Any = None) -> Iterator[bytes]:
    """The image files of rows [start, stop), read one at a time.

    Args:
        examples: of which.
        start: first row.
        stop: behind the last row.
        digest: updated with the length and the bytes of each.

    Raises:
        EvaluationError: the records no longer come in the order of the ids.
    """
    if len(examples.records) != len(examples):
        raise EvaluationError(
            f"the data changed while they were read: expected {len(examples)} records, got {len(examples.records)}"
        )
    for row in range(start, stop):
        record = examples.records[row]
        if record.id != examples.ids[row]:
            raise EvaluationError(
                f"the data changed while they were read: expected {examples.ids[row]!r}, got {record.id!r}"
            )
        image = record.image
        if digest is not None:
            digest.update(len(image).to_bytes(8, "little"))
            digest.update(image)
        yield image


def hash_images(examples: Examples) -> str:
    """SHA-256 (hex) of the bytes of all images, in order; nothing is decoded."""
    digest = hashlib.sha256()
    for _ in read_images(examples, 0, len(examples), digest):
        pass
    return digest.hexdigest()


def _checked(features: np.ndarray, count: int, dim: int | None) -> np.ndarray:
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or len(features) != count or dim not in (None, features.shape[1]):
        wanted = "features" if dim is None else str(dim)
        raise EvaluationError(f"expected {count} rows of {wanted}, one an id, got an array {features.shape}")
    return features


def _hash_texts(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts), ensure_ascii=True).encode()).hexdigest()


def _hash_array(features: np.ndarray) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(features), CHUNK):
        digest.update(np.ascontiguousarray(features[start : start + CHUNK]).tobytes())
    return digest.hexdigest()
