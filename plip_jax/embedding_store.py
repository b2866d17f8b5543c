"""Embeddings on disk: the layout of a folder, the check that features and a model belong together, and reading.

The layout, which ``--checkpoint NAME=files:FOLDER`` of the evaluation reads as it is:

    manifest.json    which model, images and settings; "finished" is null until all is there
    parts/           while it is written: images-00000012.npz, a chunk with its names, whole or not there
    images.npy       [N, D], in the order of the source, without damaged images; may be mapped into memory
    image_ids.txt    N ids, a line each (image_ids.json where an id holds a line end or is no UTF-8)
    damaged.csv      id and reason of what could not be read, where there was any
    coords.npy       int64 [N, 2], x and y of each image, where the source has them
    texts.npy, texts.json    likewise, where texts were embedded
    metadata.json    the model's name and scale, for `plip_jax.convert.embedding_files`

`plip_jax.embedding_writer` writes it. Nothing is unpickled.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 1
"""Of ``manifest.json``; no other is read."""
DTYPES = ("float32", "float16")
KINDS = {"images": ("images.npy", "image_ids"), "texts": ("texts.npy", "texts")}
"""What is embedded -> its array, and the stem of its list of names."""
_AGAIN = "copy the folder again, or embed the images again"


class EmbeddingStoreError(ValueError):
    """A folder that cannot be written or read as embeddings; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Finished embeddings.

    Attributes:
        folder: where they are.
        features: [N, D] float32 or float16, mapped into memory and read-only.
        ids: of the images, N of them.
        normalized: whether every row was made of length one.
        model: which model made them, see `describe_model`.
        coords: int64 [N, 2], x and y of each image; None where the source had none.
        text_features: [T, D], like `features`; None where no texts were embedded.
        texts: T of them.
        manifest: all that is known of them.
    """

    folder: Path
    features: np.ndarray
    ids: list[str]
    normalized: bool
    model: dict[str, Any]
    coords: np.ndarray | None
    text_features: np.ndarray | None
    texts: list[str]
    manifest: dict[str, Any]

    def check(self, model: Any) -> None:
        """Refuse what is not the model that made these, see `check_model`.

        Raises:
            EmbeddingStoreError: it is another one; what differs is named.
        """
        check_model(self.model, model, self.folder)


def describe_model(model: Any) -> dict[str, Any]:
    """What decides a model's features, fit for JSON.

    Args:
        model: a `LoadedModel`, or a `PLIP`.
    """
    parts = getattr(model, "encoder", model)
    config = parts.config.to_dict()
    config["text"].pop("eot_pooling")  # the same model has either, by the file it was read from
    return {
        "weights_hash": model.weights_hash,
        "config": config,
        "preprocessing": parts.preprocessing.to_dict(),
        "tokenizer": parts.tokenizer.fingerprint,
    }


def check_model(made_by: dict[str, Any], model: Any, folder: Path) -> None:
    """Refuse a model whose features cannot be compared with those of a folder.

    Args:
        made_by: see `describe_model`.
        model: a `PLIP`, a `LoadedModel`, or its ``weights_hash``, which says nothing of activation and preprocessing.
        folder: to name in the error.

    Raises:
        EmbeddingStoreError: it is another one; what differs is named.
    """
    wanted = {"weights_hash": model} if isinstance(model, str) else json.loads(json.dumps(describe_model(model)))
    differing = list(differences({name: made_by.get(name) for name in wanted}, wanted, "made with", "the model has"))
    if differing:
        raise EmbeddingStoreError(
            f"{folder} holds embeddings of another model, which cannot be compared with this one's: "
            f"{'; '.join(differing)}. Embed the images again with this model, or load the other one"
        )


def open_embeddings(folder: str | Path, *, model: Any = None, check_content: bool = False) -> Embeddings:
    """Open what ``python -m plip_jax.embed`` wrote.

    Args:
        folder: the ``--out`` of the program.
        model: what the features are to be used with: a `PLIP`, a `LoadedModel`, or its ``weights_hash``. Another one is
            refused; None checks nothing.
        check_content: read all features and compare their hash, too.

    Raises:
        EmbeddingStoreError: unfinished, damaged, or of another model than `model`; what differs is named.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    if not manifest["finished"]:
        raise EmbeddingStoreError(f"{folder} is not finished: run the command that began it again, it goes on")
    try:
        found = _open_finished(folder, manifest, check_content)
    except (KeyError, TypeError, AttributeError) as error:
        raise EmbeddingStoreError(f"{folder / 'manifest.json'} is damaged: {error!r}; {_AGAIN}") from error
    if model is not None:
        found.check(model)
    return found


def _open_finished(folder: Path, manifest: dict[str, Any], check_content: bool) -> Embeddings:
    settings = manifest["settings"]
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, list[str]] = {}
    for kind, expected in manifest["finished"].items():
        array, stem = KINDS[kind]
        shape = (expected["rows"], settings["feature_dim"])
        arrays[kind] = _open_array(folder / array, shape, settings["dtype"])
        if expected["names_file"] not in (f"{stem}.txt", f"{stem}.json"):  # it could lead anywhere
            raise KeyError(expected["names_file"])
        names[kind] = _read_names(folder / expected["names_file"])
        if hash_names(names[kind]) != expected["names_sha256"]:
            raise EmbeddingStoreError(f"{folder / expected['names_file']} was changed after it was written; {_AGAIN}")
        if check_content and _hash_file(folder / array) != expected["features_sha256"]:
            raise EmbeddingStoreError(f"{folder / array} was changed after it was written; {_AGAIN}")
    coords = folder / "coords.npy"
    return Embeddings(
        folder=folder,
        features=arrays["images"],
        ids=names["images"],
        normalized=settings["normalized"],
        model=dict(**settings["model"]),
        coords=_open_array(coords, (len(names["images"]), 2), "int64") if settings["images"].get("coords") else None,
        text_features=arrays.get("texts"),
        texts=names.get("texts", []),
        manifest=manifest,
    )


def write_h5(embeddings: Embeddings, file: Path) -> bool:
    """Write what CLAM's and TRIDENT's readers take: ``features`` [N, D], ``coords`` [N, 2] where known, and ``ids``.

    Returns:
        Whether it was written; a file that holds these embeddings already is left as it is.

    Raises:
        EmbeddingStoreError: h5py is not installed, or the file exists and holds something else; what differs is named.
    """
    h5py = import_h5py()
    images = embeddings.manifest["finished"]["images"]
    attributes = {
        "weights_hash": embeddings.model["weights_hash"],
        "normalized": embeddings.normalized,
        "shape": str(list(embeddings.features.shape)),
        "ids_sha256": images["names_sha256"],
        "features_sha256": images["features_sha256"],
    }
    if file.exists():
        _check_h5(h5py, file, attributes)
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    # Names of files are bytes, and need not be UTF-8: the same bytes, for `asstr(errors="surrogateescape")`.
    ids = [name.encode("utf-8", "surrogateescape") for name in embeddings.ids]
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as scratch:
        with h5py.File(Path(scratch) / "new.h5", "w") as content:
            content["features"] = embeddings.features
            if embeddings.coords is not None:
                content["coords"] = embeddings.coords
            content.create_dataset("ids", data=ids, dtype=h5py.string_dtype("utf-8"))
            content.attrs.update(attributes)
        (Path(scratch) / "new.h5").replace(file)
    return True


def _check_h5(h5py: Any, file: Path, attributes: dict[str, Any]) -> None:
    """Refuse a file that other embeddings are in."""
    try:
        with h5py.File(file, "r") as content:
            found = {name: content.attrs.get(name) for name in attributes}
            found["shape"] = str(list(content["features"].shape))
    except (OSError, KeyError, AttributeError) as error:
        raise EmbeddingStoreError(f"{file} exists and cannot be read: {error}; remove it, or choose another") from error
    differing = [name for name, value in attributes.items() if found[name] != value]
    if differing:
        raise EmbeddingStoreError(
            f"{file} exists and holds other embeddings, or was written by something else ({', '.join(differing)} "
            "differ); remove it, or choose another name"
        )


def import_h5py() -> Any:
    """The module h5py.

    Raises:
        EmbeddingStoreError: it is not installed.
    """
    try:
        import h5py  # an extra
    except ImportError as error:
        raise EmbeddingStoreError("writing .h5 needs h5py: pip install h5py") from error
    return h5py


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of ``manifest.json``.

    Raises:
        EmbeddingStoreError: there is none, it is damaged, or another version wrote it.
    """
    file = folder / "manifest.json"
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise EmbeddingStoreError(
            f"{folder}: expected embeddings written by python -m plip_jax.embed; it has no manifest.json"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise EmbeddingStoreError(f"{file} cannot be read: {error}; {_AGAIN}") from error
    if not isinstance(found, dict) or found.get("format_version") != FORMAT_VERSION:
        version = found.get("format_version") if isinstance(found, dict) else None
        raise EmbeddingStoreError(f"{file}: expected format_version {FORMAT_VERSION}, got {version!r}")
    missing = [name for name in ("settings", "chunk_size", "metadata", "finished") if name not in found]
    if missing:
        raise EmbeddingStoreError(f"{file} is damaged: it lacks {', '.join(missing)}; {_AGAIN}")
    kinds = {"settings": dict, "chunk_size": int, "metadata": dict, "finished": dict | None}
    wrong = [name for name, kind in kinds.items() if not isinstance(found[name], kind)]
    if wrong:
        raise EmbeddingStoreError(f"{file} is damaged: {', '.join(wrong)}; {_AGAIN}")
    return found


def differences(old: Any, new: Any, was: str = "it was", now: str = "now", path: str = "") -> Iterator[str]:
    """What differs between two JSON values, a line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from differences(old.get(name), new.get(name), was, now, f"{path}/{name}" if path else name)
    elif old != new:
        short = [f"{json.dumps(value)[:40]}" for value in (old, new)]
        yield f"{path}: {was} {short[0]}, {now} {short[1]}"


def hash_names(names: Sequence[str]) -> str:
    """SHA-256 (hex) of ids or texts in order."""
    digest = hashlib.sha256()
    for name in names:
        data = name.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _open_array(file: Path, shape: tuple[int, int], dtype: str) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise EmbeddingStoreError(f"{file} cannot be read: {error}; {_AGAIN}") from error
    if not isinstance(array, np.memmap) or (array.shape, array.dtype) != (shape, np.dtype(dtype)):
        raise EmbeddingStoreError(f"{file}: expected {dtype} {list(shape)}, got {array.dtype} {list(array.shape)}")
    size = os.path.getsize(file)
    if size != array.offset + array.nbytes:
        raise EmbeddingStoreError(f"{file}: expected {array.offset + array.nbytes} bytes, got {size}; {_AGAIN}")
    return array


def _read_names(file: Path) -> list[str]:
    try:
        text = file.read_bytes().decode()
        return json.loads(text) if file.suffix == ".json" else text.split("\n")[:-1]
    except (OSError, ValueError) as error:
        raise EmbeddingStoreError(f"{file} cannot be read: {error}; {_AGAIN}") from error


def _hash_file(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
