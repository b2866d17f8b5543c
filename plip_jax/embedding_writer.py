"""Writing embeddings in chunks, by any number of processes that may be killed at any moment.

Owns the safety of a folder of the layout in `plip_jax.embedding_store`: a chunk gets its name when it is all
written, so it is there whole or not at all; so are the final files, joined when no chunk is missing. Processes share no
more than the folder.
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.embedding_folder import make_folder, replace, write_array, write_once
from plip_jax.embedding_store import (
    FORMAT_VERSION,
    KINDS,
    EmbeddingStoreError,
    differences,
    hash_names,
    read_manifest,
)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Features of a run of consecutive images or texts.

    Attributes:
        features: [N, D], in the dtype of the folder, without the damaged ones.
        names: ids or texts, N of them.
        damaged: id and reason of what could not be read.
        coords: int64 [N, 2], where the source has them.
        sizes: int64, bytes of every image, damaged ones too; None where the settings tell images apart.
    """

    features: np.ndarray
    names: Sequence[str]
    damaged: Sequence[tuple[str, str]] = ()
    coords: np.ndarray | None = None
    sizes: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder that is being written, or has been.

    Attributes:
        folder: with a manifest.
        settings: what decides the features: a run with others is refused.
        chunk_size: images, or texts, of a chunk.
    """

    folder: Path
    settings: Mapping[str, Any]
    chunk_size: int

    @property
    def key(self) -> bytes:
        """SHA-256 of what decides a chunk; it is in each."""
        return hashlib.sha256(json.dumps([self.settings, self.chunk_size], sort_keys=True).encode()).digest()

    @property
    def finished(self) -> dict[str, Any] | None:
        """Counts and hashes of the final files; None until they are all there."""
        return read_manifest(self.folder)["finished"]

    def chunks(self, kind: str) -> list[range]:
        """The places of every chunk of ``images`` or ``texts``."""
        count = self.settings[kind]["count"] if self.settings[kind] else 0
        return [range(start, min(start + self.chunk_size, count)) for start in range(0, count, self.chunk_size)]

    def part(self, kind: str, number: int) -> Path:
        """The file of a chunk."""
        return self.folder / "parts" / f"{kind}-{number:08d}.npz"

    def missing(self, kind: str) -> list[int]:
        """The numbers of the chunks that are not there."""
        there = set(os.listdir(self.folder / "parts")) if (self.folder / "parts").is_dir() else set()
        return [number for number in range(len(self.chunks(kind))) if self.part(kind, number).name not in there]


def begin(
    folder: Path,
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
    metadata: Mapping[str, Any],
    chunk_size: int,
    *,
    moved: bool = False,
) -> Store:
    """Begin a folder, or take it up again; several processes may at once.

    Args:
        folder: new, empty, or begun with the same settings.
        settings: ``model`` (`describe_model`), ``images`` and ``texts`` (each with ``count``, or None), ``dtype``,
            ``feature_dim`` and all else that decides the features, fit for JSON.
        about: where model and images come from, versions: told, not compared but for the place of the ``images``.
        metadata: for ``metadata.json``.
        chunk_size: of a new folder; one that was begun keeps its own.
        moved: the same images may be in another place now.

    Raises:
        EmbeddingStoreError: the folder holds something else, or was begun with other settings; they are named.
    """
    settings = json.loads(json.dumps(settings))
    manifest = folder / "manifest.json"
    if not manifest.exists():
        make_folder(folder)
        chunks = next((folder / "parts").glob("*.npz"), None)
        if chunks is not None and not manifest.exists():  # another process may have begun
            raise EmbeddingStoreError(
                f"{folder} has chunks in parts/, and no manifest.json that says which model made them: put it back, or "
                "remove parts/"
            )
        content = {
            "format_version": FORMAT_VERSION,
            "settings": settings,
            "chunk_size": chunk_size,
            "about": about,
            "metadata": metadata,
            "finished": None,
        }
        write_once(manifest, _json(content))
    found = read_manifest(folder)
    differing = list(differences(found["settings"], settings))
    if differing:
        raise EmbeddingStoreError(
            f"{folder} was begun with other settings: {'; '.join(differing)}. Give it the same ones, or choose another "
            "--out (nothing in it is lost)"
        )
    was, now = found.get("about", {}).get("images"), about.get("images")
    if was != now and not moved:
        raise EmbeddingStoreError(
            f"{folder} was begun with the images of {was}, got those of {now}: choose another --out; or, if these are "
            "the same images in another place, say --images-moved"
        )
    return Store(folder, found["settings"], found["chunk_size"])


def write_chunk(store: Store, kind: str, number: int, chunk: Chunk) -> None:
    """Write a chunk; it is there whole, or not at all.

    Raises:
        EmbeddingStoreError: features that are not finite.
    """
    if not np.isfinite(chunk.features).all():
        place = int(np.argmin(np.isfinite(chunk.features).all(axis=1)))
        raise EmbeddingStoreError(
            f"the features of {chunk.names[place]!r} are not finite in {chunk.features.dtype}: look at the checkpoint "
            "(or, with float16, choose --dtype float32)"
        )
    names = np.frombuffer(json.dumps([list(chunk.names), list(chunk.damaged)]).encode(), np.uint8)
    arrays = {"settings": np.frombuffer(store.key, np.uint8), "features": chunk.features, "names": names}
    arrays |= {} if chunk.coords is None else {"coords": chunk.coords}
    arrays |= {} if chunk.sizes is None else {"sizes": np.asarray(chunk.sizes, np.int64)}
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType] # it takes a name for allow_pickle
    replace(store.part(kind, number), content.getvalue(), store.folder)


def chunks_to_write(
    store: Store, kind: str, mine: range, sizes: Callable[[range], np.ndarray] | None, *, keep_damaged: bool
) -> list[int]:
    """The numbers of the chunks that are missing, or have to be made again.

    Args:
        store: the folder.
        kind: ``images`` or ``texts``.
        mine: the numbers that this process is asked for.
        sizes: of the images at these places now; None where the settings tell images apart.
        keep_damaged: whether images that could not be read stay left out.

    Raises:
        EmbeddingStoreError: a chunk is damaged, or was made with other settings.
    """
    missing = set(store.missing(kind))

    def is_outdated(number: int) -> bool:
        try:
            with _open_part(store, kind, number) as arrays:
                if not keep_damaged and json.loads(arrays["names"].tobytes())[1]:
                    return True
                return sizes is not None and not np.array_equal(arrays["sizes"], sizes(store.chunks(kind)[number]))
        except FileNotFoundError:
            return False  # another process has joined them all since

    return [number for number in mine if number in missing or is_outdated(number)]


def finish(store: Store, then: Callable[[], None] | None = None) -> bool:
    """Join the chunks into the final files, if none is missing and nobody has; whether the folder is finished.

    Processes that do so at the same time write the same bytes.

    Args:
        store: the folder.
        then: writes what else is to be there before the parts go, and processes that wait for that leave.

    Raises:
        EmbeddingStoreError: a chunk is damaged, an id occurs twice, or no image could be read.
    """
    done = bool(store.finished) or _join_all(store)
    if done:
        if then is not None:
            then()
        shutil.rmtree(store.folder / "parts", ignore_errors=True)
    return done


def check_unchanged(store: Store, sizes: np.ndarray | None) -> None:
    """Refuse images that are other ones than those of a finished folder.

    Raises:
        EmbeddingStoreError: their files have other sizes.
    """
    finished = store.finished
    if sizes is not None and finished and _hash_sizes([sizes]) != finished["images"].get("sizes_sha256"):
        raise EmbeddingStoreError(
            f"{store.folder} is finished, and its images have changed since (files of other sizes, or that are gone): "
            "choose another --out"
        )


def _join_all(store: Store) -> bool:
    kinds = [kind for kind in KINDS if store.settings[kind]]
    if any(store.missing(kind) for kind in kinds):
        return bool(store.finished)  # or another process has joined them, and removed them since
    try:
        counts = {kind: _join(store, kind) for kind in kinds}
        manifest = read_manifest(store.folder)
        replace(store.folder / "metadata.json", _json(manifest["metadata"]), store.folder)
        replace(store.folder / "manifest.json", _json(manifest | {"finished": counts}), store.folder)
    except FileNotFoundError:
        if not store.finished:
            raise
    return True


def _join(store: Store, kind: str) -> dict[str, Any]:
    """Write the final files of one kind; their counts and hashes."""
    array, names_stem = KINDS[kind]
    names: list[str] = []
    damaged: list[tuple[str, str]] = []
    coords: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    for part in _parts(store, kind):
        names += part.names
        damaged += part.damaged
        coords += [] if part.coords is None else [part.coords]
        sizes += [] if part.sizes is None else [part.sizes]
    if not names:
        raise EmbeddingStoreError(f"{store.folder}: none of the {len(damaged)} {kind} could be read; {damaged[0][1]}")
    if len(set(names)) != len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise EmbeddingStoreError(f"{store.folder}: expected each id once, got {twice!r} again; make the ids unique")
    rows = (part.features for part in _parts(store, kind))  # read again: only the names fit in memory
    shape = (len(names), store.settings["feature_dim"])
    digest = write_array(store.folder, array, rows, shape, store.settings["dtype"])
    if coords:
        write_array(store.folder, "coords.npy", coords, (len(names), 2), "int64")
    if damaged:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("id", "reason"), *damaged])
        replace(store.folder / "damaged.csv", text.getvalue().encode("utf-8", "backslashreplace"), store.folder)
    suffix = ".json" if kind == "texts" or any(map(_needs_json, names)) else ".txt"
    listed = json.dumps(names, indent=0) if suffix == ".json" else "".join(f"{name}\n" for name in names)
    replace(store.folder / f"{names_stem}{suffix}", listed.encode(), store.folder)
    return {
        "rows": len(names),
        "damaged": len(damaged),
        "names_file": f"{names_stem}{suffix}",
        "names_sha256": hash_names(names),
        "features_sha256": digest,
        "sizes_sha256": _hash_sizes(sizes) if sizes else None,
    }


def _parts(store: Store, kind: str) -> Iterator[Chunk]:
    for number, places in enumerate(store.chunks(kind)):
        with _open_part(store, kind, number) as arrays:
            names, damaged = json.loads(arrays["names"].tobytes())
            damaged = [(name, reason) for name, reason in damaged]
            chunk = Chunk(arrays["features"], names, damaged, arrays.get("coords"), arrays.get("sizes"))
        if len(chunk.names) != len(chunk.features) or len(chunk.names) + len(chunk.damaged) != len(places):
            file = store.part(kind, number)
            raise EmbeddingStoreError(f"{file}: expected {len(places)} {kind}; remove it and run the same again")
        yield chunk


@contextlib.contextmanager
def _open_part(store: Store, kind: str, number: int) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of a chunk, read when they are asked for; every array's CRC is checked."""
    file = store.part(kind, number)
    try:
        # Opened here: numpy leaves a damaged file open.
        with file.open("rb") as content, np.load(content, allow_pickle=False) as arrays:
            if arrays["settings"].tobytes() != store.key:
                raise EmbeddingStoreError(
                    f"{file} was made with other settings than the manifest's: remove {file.parent} and run the same "
                    "again"
                )
            yield arrays
    except (FileNotFoundError, EmbeddingStoreError):
        raise
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        file.unlink(missing_ok=True)
        raise EmbeddingStoreError(f"{file} was damaged ({error}) and is removed; run the same again") from error


def _hash_sizes(sizes: Iterable[np.ndarray]) -> str:
    """SHA-256 (hex) of the sizes of files in order, however they are parted."""
    return hashlib.sha256(b"".join(np.asarray(part, "<i8").tobytes() for part in sizes)).hexdigest()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _needs_json(name: str) -> bool:
    """Whether a name cannot stand in a line of a text file."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return "\n" in name or "\r" in name
