"""Image embeddings for the gates, computed once for each image and each model.

Owns which numbers name a model (`fingerprint_of`) and how embeddings lie on disk: a pair of files `NAME.npy` (float32
[N, D]) and `NAME.json` (`{"model", "fingerprint", "digests", "row_hashes"}`, the lists with an entry a row, in order).
So whoever must forget an image finds its row by its digest (`forget`), or takes the row out of all three.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.curation.rows import write_atomically

# Images whose bytes are held at a time.
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class ImageEncoder:
    """A function from images to features, and what it is.

    Attributes:
        model: Name, for people.
        fingerprint: From `fingerprint_of`; two encoders of one fingerprint give the same features.
        encode: Files' bytes to float [N, D].
    """

    model: str
    fingerprint: str
    encode: Callable[[Sequence[bytes]], np.ndarray]


def plip_encoder(checkpoint: str, *, batch_size: int = 32) -> ImageEncoder:
    """Load the image tower of a checkpoint, as `plip_jax.PLIP.from_pretrained` takes it.

    Raises:
        SourceError: Nothing there that is a model (a ValueError for damaged files).
    """
    from plip_jax import PLIP  # it loads jax, which nothing else here needs

    plip = PLIP.from_pretrained(checkpoint, batch_size=batch_size)
    fingerprint = fingerprint_of(plip.weights_hash, plip.encoder.preprocessing.to_dict())
    return ImageEncoder(str(checkpoint), fingerprint, lambda images: plip.encode_images(list(images)))


def fingerprint_of(weights_hash: str, preprocessing: Mapping[str, Any]) -> str:
    """Name the pair of weights and preprocessing that features depend on, 16 hexadecimal digits."""
    text = json.dumps([weights_hash, dict(preprocessing)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def embed(encoder: ImageEncoder, images: Mapping[str, Path], cache: Path | None = None) -> np.ndarray:
    """Return the features of images, float32 [N, D] in the order given; D is 0 where there are none.

    Args:
        encoder: The model.
        images: Digest of an image's bytes to its file.
        cache: Path without suffix of the pair of files to read from and add to. Each worker needs its own.

    Raises:
        OSError: A file cannot be read.
        ImageError: A file is no image, from the encoder.
    """
    known = {} if cache is None else load_embeddings(cache, encoder.fingerprint)
    missing = [digest for digest in images if digest not in known]
    for start in range(0, len(missing), _CHUNK):
        chunk = missing[start : start + _CHUNK]
        features = encoder.encode([images[digest].read_bytes() for digest in chunk])
        known.update(zip(chunk, np.asarray(features, np.float32), strict=True))
    if cache is not None and missing:
        save_embeddings(cache, encoder, known)
    return np.stack([known[digest] for digest in images]) if images else np.zeros((0, 0), np.float32)


def save_embeddings(cache: Path, encoder: ImageEncoder, embeddings: Mapping[str, np.ndarray]) -> None:
    """Write embeddings by digest as the pair of files."""
    about = {"model": encoder.model, "fingerprint": encoder.fingerprint}
    _write(cache, about, sorted(embeddings.items()))


def load_embeddings(cache: Path, fingerprint: str) -> dict[str, np.ndarray]:
    """Read the embeddings of one model by digest, float32 [D] each; none where they are another model's."""
    stored, known = _read(cache)
    return known if stored.get("fingerprint") == fingerprint else {}


def forget(cache: Path, digests: Collection[str]) -> int:
    """Remove the rows of images from a pair of files, and return how many there were.

    Files that do not fit each other are removed as a whole: it is a cache.
    """
    about, known = _read(cache)
    if not about:
        for path in _files(cache):
            path.unlink(missing_ok=True)
    kept = [(digest, row) for digest, row in known.items() if digest not in digests]
    if len(kept) < len(known):
        _write(cache, {"model": about["model"], "fingerprint": about["fingerprint"]}, kept)
    return len(known) - len(kept)


def _read(cache: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    vectors, list_file = _files(cache)
    try:
        about = json.loads(list_file.read_text(encoding="utf-8"))
        rows = np.load(vectors, allow_pickle=False)
        if about["row_hashes"] != [_hash_row(row) for row in rows]:
            return {}, {}
        return about, dict(zip(about["digests"], rows, strict=True))
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return {}, {}  # a cache: what cannot be read is computed again


def _write(cache: Path, about: dict[str, Any], rows: Sequence[tuple[str, np.ndarray]]) -> None:
    values = np.stack([row for _, row in rows]) if rows else np.zeros((0, 0), np.float32)
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    # A kill between the two leaves rows that are not those of the list; the hashes tell.
    about = {**about, "digests": [digest for digest, _ in rows], "row_hashes": [_hash_row(row) for row in values]}
    vectors, list_file = _files(cache)
    write_atomically(vectors, buffer.getvalue())
    write_atomically(list_file, json.dumps(about).encode())


def _files(cache: Path) -> tuple[Path, Path]:
    return cache.with_name(f"{cache.name}.npy"), cache.with_name(f"{cache.name}.json")


def _hash_row(row: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=8).hexdigest()
