"""DigestPath 2019, colonoscopy tissue: crops at five scales, benign or malignant by the tumour's share of the crop.

The crops are PLIP's. Its code and its paths disagree on the share from which a crop is malignant (0.5, 0.3): both are
here by name, and the build says which gives the published 6,690 and 56,023.
"""

import dataclasses
import functools
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, JpegImagePlugin
from tqdm import tqdm

from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files, find_folder
from data_prep.tfds.splits import random_parts, unit_parts
from plip_jax.data.split_manifest import SplitScheme

CLASSES = ("benign", "malignant")
SCALES = (2, 4, 8, 16, 32)
THRESHOLDS = (0.3, 0.5)
SIDE = 224
_STRIDE = 201.6  # 10 % overlap
_BACKGROUND = 200  # R, G and B from here on
_MIN_TISSUE = 0.5
_MASK_ABOVE = 10  # masks are JPEG: what compression leaves around 0 is no tumour
MAX_PIXELS = 2**29  # 23,170 x 23,170: 1.6 GB decoded
_PUBLISHED = {"malignant": 6690, "benign": 56023}
_CROPS = "crops at the threshold nearest to the published"
# Case and time before the place, as in 18-00530B_2019-05-07 22_56_22-lv1-…; from memory.
_CASE = re.compile(r"(?P<case>.+?)[A-Z]?_\d{4}-\d{2}-\d{2}[ _]\d{2}_\d{2}_\d{2}-.*")


class DigestPath(EvaluationSet, skip_registration=True):
    """Every crop that some scheme uses, with its scale and its share of tumour."""

    name = "digestpath"
    about = About(
        title="DigestPath 2019, colonoscopy tissue: crops at five scales, benign or malignant",
        homepage="https://digestpath2019.grand-challenge.org",
        licence="database use agreement, to be signed: digestpath2019.grand-challenge.org/Download",
        citation="Da et al., Medical Image Analysis 80: 102485, 2022, doi:10.1016/j.media.2022.102485",
        layout="tissue-train-neg/*.jpg and tissue-train-pos-v1/NAME.jpg with NAME_mask.jpg, from "
        "Colonoscopy_tissue_segment_dataset",
        classes=CLASSES,
        verified_counts={"images": {"malignant": 250}, _CROPS: _PUBLISHED},
        unverified_counts={"images": {"benign": 410}},
        texts=("scale", "tumour_share"),
    )

    def find_items(self) -> Sequence[Item]:
        """Look at every image once, scale by scale; crops are cut again, in the same order, when they are written."""
        sources = self._find_sources()
        cases = [_CASE.fullmatch(source.image.stem) for source in sources]
        case_of = {s.image.stem: case["case"] for s, case in zip(sources, cases, strict=True) if case}
        if len(case_of) < len(sources):
            self.notes.append("the names do not all tell the case: split by source image, which may share a patient")
            case_of = {}
        reader = _Reader()
        items = []
        for source in tqdm(sources, desc="images", disable=None):
            stem = source.image.stem
            for crop in self._find_crops(reader, source):
                read = functools.partial(reader.read_png, source.image, crop.scale, crop.left, crop.top)
                items.append(
                    Item(
                        f"{stem}/x{crop.scale}_{crop.left}_{crop.top}.png",
                        read,
                        label="malignant" if crop.tumour else "benign",
                        slide_id=stem,
                        patient_id=case_of.get(stem, ""),
                        texts={"scale": str(crop.scale), "tumour_share": f"{crop.tumour / SIDE**2:.6f}"},
                    )
                )
        positive = sum(source.mask is not None for source in sources)
        self.more_counts["images"] = {"malignant": positive, "benign": len(sources) - positive}
        self.more_counts[_CROPS] = self._choose_threshold(items)
        return items

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """For each threshold by source image and, as published, at random."""
        nearest, _ = _nearest_threshold(items)
        schemes = []
        for threshold in THRESHOLDS:
            used = _used(items, threshold)
            names, labels = [item.filename for item in used], [item.label for item in used]
            units = [item.patient_id or item.slide_id for item in used]
            rule = f"malignant from a tumour share of {threshold} on, benign at 0, between dropped"
            schemes.append(
                SplitScheme(
                    f"by_image_{threshold}",
                    f"70/30 by source image (by case where every name tells it); {rule}",
                    unit_parts(names, units, labels, {"train": 0.7, "test": 0.3}),
                    is_default=threshold == nearest,
                )
            )
            description = (
                f"PLIP's: all crops shuffled, 70/30, so one image is on both sides, at five scales; {rule}. Its members"
                " depend on a listing order that was not published: ours is by name. Published test: 2,033 malignant, "
                "16,781 benign"
            )
            published = [f"as_published_{threshold}"] + ["as_published"] * (threshold == nearest)
            schemes += [SplitScheme(name, description, random_parts(names)) for name in published]
        return schemes

    def _find_sources(self) -> list["_Source"]:
        sources = []
        for name, masked in (("tissue-train-neg", False), ("tissue-train-pos-v1", True)):
            files = {path.stem: path for path in find_files(find_folder(self.manual_dir, name), "*.jpg")}
            images = [stem for stem in files if not stem.endswith("_mask")]
            missing = [stem for stem in images if masked and f"{stem}_mask" not in files]
            if missing:
                raise SetError(
                    f"{name}: {len(missing)} masks are missing, first {missing[0]}_mask.jpg; unpack it again"
                )
            sources += [_Source(files[stem], files[f"{stem}_mask"] if masked else None) for stem in images]
        stems = [source.image.stem for source in sources]
        if len(set(stems)) != len(stems):
            raise SetError(f"{len(stems) - len(set(stems))} image names are in both folders: unpack the archives again")
        return sources

    def _find_crops(self, reader: "_Reader", source: "_Source") -> Iterator["_Crop"]:
        mask = None if source.mask is None else _decode(source.mask, "L")
        for scale in SCALES:
            image = reader.scaled(source.image, scale)
            if image is None:
                continue
            background = np.all(np.asarray(image) >= _BACKGROUND, axis=-1)
            tumour = np.zeros(background.shape, bool)
            if mask is not None:
                if mask.size != reader.size(source.image):
                    raise SetError(f"{source.mask}: expected the size of its image, got {mask.size}")
                tumour = np.asarray(mask.resize(image.size, Image.Resampling.NEAREST)) > _MASK_ABOVE
            for top in _corners(image.size[1]):
                for left in _corners(image.size[0]):
                    cut = np.s_[top : top + SIDE, left : left + SIDE]
                    pixels = int(tumour[cut].sum())
                    is_used = pixels == 0 or pixels / SIDE**2 >= min(THRESHOLDS)
                    if is_used and 1 - background[cut].mean() >= _MIN_TISSUE:
                        yield _Crop(scale, left, top, pixels)

    def _choose_threshold(self, items: Sequence[Item]) -> dict[str, int]:
        nearest, counts = _nearest_threshold(items)
        for threshold in THRESHOLDS:
            got = _counts(items, threshold)
            verdict = "as published" if got == _PUBLISHED else "published are 6,690 and 56,023"
            default = "; the nearer one, the default" if threshold == nearest else ""
            self.notes.append(
                f"threshold {threshold}: {got['malignant']:,} malignant and {got['benign']:,} benign crops, {verdict}"
                f"{default}"
            )
        return counts


@dataclasses.dataclass(frozen=True)
class _Source:
    image: Path
    mask: Path | None


@dataclasses.dataclass(frozen=True)
class _Crop:
    """Where a crop lies in the image at its scale, and how many of its pixels are tumour."""

    scale: int
    left: int
    top: int
    tumour: int


class _Reader:
    """Cuts crops; the last image and its last scale stay decoded, so crops in order decode each image once."""

    def __init__(self) -> None:
        self._open = functools.lru_cache(maxsize=1)(lambda path: _decode(path, "RGB"))
        self.scaled = functools.lru_cache(maxsize=1)(self._scaled)

    def size(self, path: Path) -> tuple[int, int]:
        """Width and height of the whole image."""
        return self._open(path).size

    def _scaled(self, path: Path, scale: int) -> Image.Image | None:
        """The image at 1/scale by Pillow's default filter (bicubic); None where a side gets shorter than a crop."""
        image = self._open(path)
        size = (round(image.size[0] / scale), round(image.size[1] / scale))
        return None if min(size) < SIDE else image.resize(size)

    def read_png(self, path: Path, scale: int, left: int, top: int) -> bytes:
        """One crop."""
        image = self.scaled(path, scale)
        assert image is not None  # or there were no crop
        buffer = io.BytesIO()
        image.crop((left, top, left + SIDE, top + SIDE)).save(buffer, "PNG")
        return buffer.getvalue()


def open_jpeg(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a JPEG of up to ``max_pixels``, undecoded.

    `Image.open` would hold it to half a global limit (`Image.MAX_IMAGE_PIXELS`), which is not ours to change or remove.

    Raises:
        SetError: not a JPEG, or larger.
    """
    try:
        image = JpegImagePlugin.JpegImageFile(path)
    except (SyntaxError, OSError) as error:
        raise SetError(f"{path} is not a JPEG ({error}): unpack it again") from error
    if image.size[0] * image.size[1] > max_pixels:
        image.close()
        raise SetError(f"{path}: expected at most {max_pixels:,} pixels, got {image.size[0]} x {image.size[1]}")
    return image


def _decode(path: Path, mode: str) -> Image.Image:
    try:
        with open_jpeg(path) as image:
            return image.convert(mode)
    except OSError as error:
        raise SetError(f"{path} does not decode ({error}): unpack it again") from error


def _corners(length: int) -> list[int]:
    """int(k * 201.6) while the crop ends before the last pixel: PLIP leaves out a crop that reaches the edge."""
    corners = (int(k * _STRIDE) for k in range(length // int(_STRIDE) + 1))
    return [corner for corner in corners if corner + SIDE < length]


def _used(items: Sequence[Item], threshold: float) -> list[Item]:
    return [i for i in items if i.label == "benign" or float(i.texts["tumour_share"]) >= threshold]


def _counts(items: Sequence[Item], threshold: float) -> dict[str, int]:
    labels = [item.label for item in _used(items, threshold)]
    return {label: labels.count(label) for label in _PUBLISHED}


def _nearest_threshold(items: Sequence[Item]) -> tuple[float, dict[str, int]]:
    counts = {threshold: _counts(items, threshold) for threshold in THRESHOLDS}
    nearest = min(THRESHOLDS, key=lambda threshold: abs(counts[threshold]["malignant"] - _PUBLISHED["malignant"]))
    return nearest, counts[nearest]
