"""PatchCamelyon: lymph node patches with or without metastasis in their centre (Veeling et al. 2018, MICCAI).

Images and labels are HDF5 arrays, 7 GB for the training images, published gzipped. A gzipped array cannot be read in
parts, so it is unpacked into a folder beside the set for the time of the build; the patches are read in blocks.
"""

import contextlib
import functools
import gzip
import hashlib
import importlib.resources
import io
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files, warn
from data_prep.tfds.tables import read_table
from plip_jax.data.split_manifest import Part, SplitScheme

CLASSES = ("normal", "tumor")  # 0: no tumour in the centre 32 x 32
_PARTS = ("train", "valid", "test")
_SIDE = 96
_BLOCK = 1024  # patches, 28 MB
_COPIED = 16 * 2**20  # bytes at a time


class PatchCamelyon(EvaluationSet, skip_registration=True):
    """Patches by part and place in its array; slides from the tables that were published later."""

    about = About(
        title="PatchCamelyon: H&E patches of lymph nodes, with or without metastasis",
        homepage="https://zenodo.org/records/2546921",
        licence="CC0",
        citation="Veeling et al., Rotation Equivariant CNNs for Digital Pathology, MICCAI 2018, arXiv:1806.03962",
        layout="camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5.gz, gzipped or unpacked, and the tables "
        "camelyonpatch_level_2_split_{train,valid,test}_meta.csv where you have them",
        classes=CLASSES,
        verified_counts={"train": {"": 262_144}, "valid": {"": 32_768}, "test": {"": 32_768}},
    )

    def find_items(self) -> Sequence[Item]:
        """Every patch of every part that is there; what is gzipped is held against its published checksum."""
        items = []
        for part in _PARTS:
            images, labels = (find_array(self.manual_dir, part, axis) for axis in "xy")
            if images is None or labels is None:
                if images or labels:
                    raise SetError(f"{self.manual_dir}: of {part} only {images or labels} is there: x and y are needed")
                continue
            for path in (images, labels):
                if path.suffix == ".gz" and not self.allow_counts:
                    check_sha256(path, published_checksums())
            numbers = read_labels(labels)
            slides = self._read_slides(part, len(numbers))
            items += [
                Item(
                    f"{part}/{row:06d}.png",
                    functools.partial(self._read_patch, images, len(numbers), row),
                    part=part,
                    label=CLASSES[number],
                    slide_id=slides[row] if slides else "",
                )
                for row, number in enumerate(numbers)
            ]
        return items

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """The published one."""
        parts = {
            name: Part(tuple(item.filename for item in items if item.part == part))
            for name, part in (("train", "train"), ("val", "valid"), ("test", "test"))
            if any(item.part == part for item in items)
        }
        description = "as published, by slide; the published valid is val"
        return [SplitScheme("as_published", description, parts, is_default=True)]

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with contextlib.ExitStack() as self._open:
            self._source, self._blocks = None, None
            yield from super()._generate_examples()

    def _read_patch(self, path: Path, count: int, row: int) -> bytes:
        if self._blocks is None or path != self._source:
            self._open.close()  # the part before, and what it was unpacked to
            unpacked = path
            if path.suffix == ".gz":
                out = Path(self.data_dir).parents[1]
                unpacked = unpack(path, Path(self._open.enter_context(tempfile.TemporaryDirectory(dir=out))))
            self._source = path
            self._blocks = self._open.enter_context(contextlib.closing(_Blocks(unpacked, path, count)))
        return self._blocks.read_png(row)

    def _read_slides(self, part: str, count: int) -> list[str]:
        """The slide of each patch; none without the table."""
        tables = find_files(self.manual_dir, f"camelyonpatch_level_2_split_{part}_meta.csv")
        if not tables:
            self.notes.append(f"{part}: camelyonpatch_level_2_split_{part}_meta.csv is not there, so no slide is known")
            return []
        slides = [row["wsi"] for row in read_table(tables[0], ("wsi",))]
        if len(slides) != count:
            raise SetError(f"{tables[0]}: expected a row for each of {count:,} patches, got {len(slides):,}")
        return slides


class _Blocks:
    """The patches of an array, a block of which is in memory."""

    def __init__(self, path: Path, origin: Path, count: int) -> None:
        self._file = open_hdf5(path)
        self._array = self._file.get("x")
        self._first, self._held = 0, np.empty((0, _SIDE, _SIDE, 3), np.uint8)
        expected = (count, _SIDE, _SIDE, 3)
        if self._array is None or self._array.shape != expected or self._array.dtype != np.uint8:
            found = "no x" if self._array is None else f"{self._array.dtype} {self._array.shape}"
            self.close()
            raise SetError(f"{origin}: expected x, uint8 {expected}, as many as its labels, got {found}")

    def read_png(self, row: int) -> bytes:
        """A patch as a PNG file; rows are asked for in order."""
        if not self._first <= row < self._first + len(self._held):
            self._first = row - row % _BLOCK
            self._held = self._array[self._first : self._first + _BLOCK]
        buffer = io.BytesIO()
        Image.fromarray(self._held[row - self._first]).save(buffer, "PNG")
        return buffer.getvalue()

    def close(self) -> None:
        self._file.close()


def find_array(folder: Path, part: str, axis: str) -> Path | None:
    """The file of a part's images (x) or labels (y), unpacked rather than gzipped; None if neither is there."""
    name = f"camelyonpatch_level_2_split_{part}_{axis}.h5"
    found = find_files(folder, name) or find_files(folder, f"{name}.gz")
    return found[0] if found else None


def read_labels(path: Path) -> list[int]:
    """The labels of a part, small enough to be unpacked in memory.

    Raises:
        SetError: they are not y, [N, 1, 1, 1] of 0 and 1.
    """
    with contextlib.ExitStack() as stack:
        source = io.BytesIO(stack.enter_context(gzip.open(path)).read()) if path.suffix == ".gz" else path
        file = stack.enter_context(contextlib.closing(open_hdf5(source)))
        labels = np.asarray(file["y"]) if "y" in file else np.empty(0)
    if labels.ndim != 4 or labels.shape[1:] != (1, 1, 1) or not np.isin(labels, (0, 1)).all():
        raise SetError(f"{path}: expected y, [N, 1, 1, 1] of 0 and 1, got {labels.dtype} {labels.shape}")
    return labels.reshape(-1).astype(int).tolist()


def open_hdf5(source: Path | io.BytesIO) -> Any:
    """An open h5py file.

    Raises:
        SetError: h5py is missing, or this is not such a file.
    """
    try:
        import h5py  # only this set needs it
    except ImportError as error:
        raise SetError(f"reading HDF5 needs h5py; install it with: pip install h5py ({error})") from error
    try:
        return h5py.File(source, "r")
    except OSError as error:
        raise SetError(f"{source} is not an HDF5 file ({error}); get it again") from error


def unpack(path: Path, folder: Path) -> Path:
    """Unpack a .gz file into a folder, a piece at a time."""
    target = folder / path.stem
    with gzip.open(path) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file, _COPIED)
    return target


def published_checksums() -> dict[str, str]:
    """File name -> sha256, from the list that ships with tensorflow_datasets; empty where it does not."""
    listed = importlib.resources.files("tensorflow_datasets").joinpath("datasets/patch_camelyon/checksums.tsv")
    if not listed.is_file():
        warn("tensorflow_datasets ships no checksums of PatchCamelyon here: the archives are not checked")
        return {}
    rows = [line.split("\t") for line in listed.read_text(encoding="utf-8").splitlines() if line]
    return {row[0].rsplit("/", 1)[-1]: row[2] for row in rows}


def check_sha256(path: Path, published: dict[str, str]) -> None:
    """Hold a file against its published sha256, where there is one.

    Raises:
        SetError: it is another.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    expected = published.get(path.name, found)
    if found != expected:
        raise SetError(
            f"{path}: expected the sha256 {expected}, got {found}: get it again, or build what is there with "
            "--allow-counts"
        )
