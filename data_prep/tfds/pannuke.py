"""PanNuke: H&E patches of 19 tissues with every nucleus outlined (Gamper et al. 2020, arXiv:2003.10778).

The label is PLIP's: malignant where at least 10 nuclei and more than 30 % of them are neoplastic, benign where none is.
The arrays name no slide and no patient: nobody can tell whether two folds share a slide.
"""

import functools
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files
from data_prep.tfds.splits import pandas_order
from plip_jax.data.split_manifest import Part, SplitScheme

CLASSES = ("benign", "malignant")
TISSUES = (
    "adrenal gland", "bile duct", "bladder", "breast", "cervix", "colon", "esophagus", "headneck", "kidney", "liver",
    "lung", "ovarian", "pancreatic", "prostate", "skin", "stomach", "testis", "thyroid", "uterus",
)  # fmt: skip
_FOLD = re.compile(r"fold[ _-]?([123])", re.IGNORECASE)
_FOLD_SPLITS = {1: "train", 2: "val", 3: "test"}
_NEOPLASTIC = 0
_CELL_CHANNELS = 5  # neoplastic, inflammatory, connective, dead, epithelial; the sixth is the background
_WITH_CELLS = "images with cells"


class PanNuke(EvaluationSet, skip_registration=True):
    """All images that some scheme labels; organ and fold as texts."""

    name = "pannuke"
    about = About(
        title="PanNuke: H&E patches of 19 tissues, benign or malignant by their nuclei",
        homepage="https://warwick.ac.uk/fac/cross_fac/tia/data/pannuke",
        licence="CC BY-NC-SA 4.0, for research only (as copies state it of the publisher's page)",
        citation="Gamper et al., PanNuke Dataset Extension, Insights and Baselines, arXiv:2003.10778, 2020",
        layout="the unpacked fold_1.zip, fold_2.zip and fold_3.zip: 'Fold 1/images/fold1/images.npy' and types.npy, "
        "'Fold 1/masks/fold1/masks.npy', and so on (blanks, underscores and nested folders as they come)",
        classes=CLASSES,
        verified_counts={
            "fold 1 images": {"": 2656},
            "fold 2 images": {"": 2523},
            "fold 3 images": {"": 2722},
            _WITH_CELLS: {"": 7558},
        },
        verified_schemes={
            "as_published/train": {"": 4346},
            "as_published/test": {"": 1888, "benign": 1019, "malignant": 869},
        },
        texts=("organ", "fold", "label_as_published"),
    )

    def find_items(self) -> Sequence[Item]:
        """Count the nuclei of every image, one at a time, and keep the images that either rule labels."""
        items = []
        with_cells = 0
        for fold in self._open_folds():
            self.more_counts[f"fold {fold.number} images"] = {"": len(fold.images)}
            for row in tqdm(range(len(fold.images)), desc=f"fold {fold.number}", unit="image", disable=None):
                numbers = _instance_numbers(fold.masks[row], f"fold {fold.number}, mask {row}")
                if not numbers[..., :_CELL_CHANNELS].any():
                    continue
                with_cells += 1
                label, published = label_by_nuclei(numbers), label_as_published(numbers)
                if not label and not published:
                    continue
                texts = {"organ": fold.organs[row], "fold": str(fold.number), "label_as_published": published}
                read = functools.partial(_read_png, fold.images, row)
                name = f"fold{fold.number}_{row:04d}.png"
                items.append(Item(name, read, part=f"fold {fold.number}", label=label, texts=texts))
        self.more_counts[_WITH_CELLS] = {"": with_cells}
        differ = sum(item.label != item.texts["label_as_published"] for item in items)
        self.notes.append(f"{differ:,} of {with_cells:,} images with cells have another label as published than ours")
        return items

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """The publisher's folds by default; PLIP's split with its labels, and with right ones."""
        by_fold = {}
        for number, part in _FOLD_SPLITS.items():
            names = tuple(item.filename for item in items if item.label and item.texts["fold"] == str(number))
            if names:
                by_fold[part] = Part(names)
        return [
            SplitScheme(
                "by_fold",
                "the publisher's folds: 1 to train, 2 to choose on, 3 to test; nuclei counted as they are. The "
                "default: the folds are fixed by the publisher, and nothing needs to be chosen on test images",
                by_fold,
                is_default=True,
            ),
            SplitScheme(
                "as_published",
                "PLIP's: instance numbers wrapped at 256, background counted as a cell, 70/30 at random within tissue "
                "and label; images of one slide can be on both sides",
                _published_parts([(i.filename, i.texts["organ"], i.texts["label_as_published"]) for i in items]),
            ),
            SplitScheme(
                "corrected",
                "PLIP's way to split, with nuclei counted as they are; images of one slide can be on both sides",
                _published_parts([(i.filename, i.texts["organ"], i.label) for i in items]),
            ),
        ]

    def _open_folds(self) -> list["_Fold"]:
        kinds = ("images", "types", "masks")
        found: dict[int, dict[str, Path]] = {}
        for kind in kinds:
            for path in find_files(self.manual_dir, f"{kind}.npy"):
                named = _FOLD.findall(path.relative_to(self.manual_dir).as_posix())
                if not named:
                    raise SetError(f"{path}: expected a folder that names the fold, such as 'Fold 1' or 'fold1'")
                fold = found.setdefault(int(named[-1]), {})
                if kind in fold:
                    raise SetError(f"fold {named[-1]} is there twice: {fold[kind]} and {path}; unpack it once")
                fold[kind] = path
        for number, paths in found.items():
            missing = [f"{kind}.npy" for kind in kinds if kind not in paths]
            if missing:
                raise SetError(
                    f"fold {number}: expected {', '.join(missing)} beside {', '.join(map(str, paths.values()))}"
                )
        return [_open_fold(number, found[number]) for number in sorted(found)]


class _Fold(NamedTuple):
    """One fold; its arrays stay on the disk."""

    number: int
    images: np.ndarray
    masks: np.ndarray
    organs: list[str]


def label_by_nuclei(numbers: np.ndarray) -> str:
    """PLIP's rule on the nuclei that are there: distinct instance numbers above 0 in the five channels of cells.

    Args:
        numbers: instance numbers [256, 256, 6].

    Returns:
        "malignant", "benign", or "" where the rule drops the image.
    """
    counts = [_distinct(numbers[..., channel]) - (not numbers[..., channel].all()) for channel in range(_CELL_CHANNELS)]
    return _label(counts[_NEOPLASTIC], sum(counts))


def label_as_published(numbers: np.ndarray) -> str:
    """PLIP's rule as its code has it: numbers above 255 wrap, every channel counts its distinct values less one.

    So a channel without a 0 counts one short, and the background, a sixth channel, adds up to one to the total.
    """
    wrapped = numbers & 0xFF  # as a cast to uint8 on the machines that PLIP ran on; the cast itself is up to the CPU
    counts = [_distinct(wrapped[..., channel]) - 1 for channel in range(wrapped.shape[-1])]
    return _label(counts[_NEOPLASTIC], sum(counts))


def _label(neoplastic: int, total: int) -> str:
    if neoplastic == 0:
        return "benign"
    return "malignant" if neoplastic >= 10 and neoplastic / total > 0.3 else ""


def _distinct(numbers: np.ndarray) -> int:
    return int(np.count_nonzero(np.bincount(numbers.ravel())))  # numbers are small: far faster than a sort


def _published_parts(labelled: Sequence[tuple[str, str, str]]) -> dict[str, Part]:
    """Folds 1, 2, 3 in order, malignant before benign, shuffled; then 70/30 within tissue and label, shuffled again.

    Args:
        labelled: (file name, organ, label) in the order of the folds; those without a label are left out.
    """
    ordered = [row for label in ("malignant", "benign") for row in labelled if row[2] == label]
    shuffled = [ordered[index] for index in pandas_order(len(ordered))]
    parts: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    for organ in TISSUES:
        for label in CLASSES:
            group = [row for row in shuffled if row[1:] == (organ, label)]
            group = [group[index] for index in pandas_order(len(group))]
            parts["train"] += group[: int(0.7 * len(group))]
            parts["test"] += group[int(0.7 * len(group)) :]
    return {
        name: Part(tuple(row[0] for row in rows), tuple(row[2] for row in rows)) for name, rows in parts.items() if rows
    }


def _open_fold(number: int, paths: dict[str, Path]) -> _Fold:
    images, masks, types = (_open_array(paths[kind]) for kind in ("images", "masks", "types"))
    for kind, array, channels in (("images", images, 3), ("masks", masks, 6)):
        if array.shape[1:] != (256, 256, channels):
            raise SetError(f"{paths[kind]}: expected the shape [N, 256, 256, {channels}], got {list(array.shape)}")
    if not len(images) == len(masks) == types.size:
        raise SetError(f"fold {number}: {len(images)} images, {len(masks)} masks, {types.size} types: fetch it again")
    organs = [_organ(value) for value in types.ravel().tolist()]
    unknown = sorted({organ for organ in organs if organ not in TISSUES})
    if unknown:
        raise SetError(f"{paths['types']}: unknown tissues {', '.join(unknown)}; expected {', '.join(TISSUES)}")
    return _Fold(number, images, masks, organs)


def _open_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise SetError(
            f"{path} cannot be mapped ({error}). An array of Python objects is a pickle, which can run code and is not "
            "opened: on a machine that may, save it again as an array of fixed-width text (array.astype(str))"
        ) from error


def _organ(tissue: str | bytes) -> str:
    text = tissue.decode() if isinstance(tissue, bytes) else str(tissue)
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())


def _instance_numbers(mask: np.ndarray, name: str) -> np.ndarray:
    """One mask, stored as floats, as int32 [256, 256, 6]; the background map is cut to integers."""
    numbers = np.asarray(mask).astype(np.int32)
    if numbers.min() < 0 or not np.array_equal(numbers[..., :_CELL_CHANNELS], mask[..., :_CELL_CHANNELS]):
        raise SetError(f"{name}: expected instance numbers 0, 1, 2, …, got {np.min(mask)} to {np.max(mask)}")
    return numbers


def _read_png(images: np.ndarray, row: int) -> bytes:
    pixels = np.asarray(images[row])
    if not (pixels.min() >= 0 and 1 < pixels.max() <= 255):
        raise SetError(f"image {row}: expected pixels of 0 to 255, got {pixels.min()} to {pixels.max()}")
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
