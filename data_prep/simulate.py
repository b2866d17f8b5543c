"""Simulated tissue with compositional captions: the demo's data, made from nothing.

    python -m data_prep.simulate --out DIR --train 4000 --test 800 --seed 0 [--size 96]

Owns what is drawn and said. A tile shows a tissue in one of its variants, perhaps a second tissue in part of the field,
in the stain of its slide; its captions say so in several wordings. About a fifth of the combinations (tissue,
variant, second tissue) are held out: they make up the test split and occur nowhere else, while training shows
every tissue in each of its variants and beside each second tissue. So the test asks for what was learned, not for
what was seen. A tile is a pure function of (seed, split, index, size). Pictures: `data_prep.tissue`.
"""

import argparse
import dataclasses
import functools
import io
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from data_prep.canvas import make_stain, stain
from data_prep.tissue import CENTRAL, LAYOUTS, TISSUES, draw_tile
from data_prep.workers import make_pool, num_cores

SPLITS = ("train", "test")

CLASSES: dict[str, tuple[str, ...]] = {
    "adipose": ("adipose tissue", "fat tissue"),
    "lymphocytes": ("lymphoid tissue", "lymphocytes"),
    "mucus": ("mucus", "extracellular mucin"),
    "smooth_muscle": ("smooth muscle", "muscle tissue"),
    "stroma": ("fibrous stroma", "connective tissue"),
    "necrosis": ("necrosis", "necrotic debris"),
    "normal_mucosa": ("normal colonic mucosa", "benign colonic mucosa"),
    "adenocarcinoma": ("adenocarcinoma", "malignant epithelium"),
    "vessel": ("a blood vessel", "vascular tissue"),
}
"""label -> what captions and prompts call it. The order is that of the classes."""

_VARIANT_WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("adipose", "small"): ("with small fat cells", "made of small adipocytes"),
    ("adipose", "large"): ("with large fat cells", "made of large adipocytes"),
    ("lymphocytes", "sheets"): ("in diffuse sheets", "forming monotonous sheets"),
    ("lymphocytes", "follicle"): ("with a germinal centre", "forming a follicle"),
    ("mucus", "acellular"): ("without cells", "in an acellular pool"),
    ("mucus", "floating"): ("with floating clusters of cells", "containing floating tumour cells"),
    ("smooth_muscle", "lengthwise"): ("cut lengthwise", "in longitudinal section"),
    ("smooth_muscle", "crosswise"): ("cut crosswise", "in cross section"),
    ("stroma", "loose"): ("of loose texture", "loose and oedematous"),
    ("stroma", "dense"): ("of dense collagen", "dense and collagenous"),
    ("necrosis", "dust"): ("with nuclear dust", "with karyorrhexis"),
    ("necrosis", "ghosts"): ("with ghost cells", "with ghost outlines of cells"),
    ("normal_mucosa", "crosswise"): ("with round crypts", "with crypts in cross section"),
    ("normal_mucosa", "lengthwise"): ("with long straight crypts", "with crypts cut lengthwise"),
    ("adenocarcinoma", "glands"): ("forming irregular glands", "with a glandular pattern"),
    ("adenocarcinoma", "cribriform"): ("with a cribriform pattern", "forming cribriform islands"),
    ("adenocarcinoma", "solid"): ("in solid nests", "with a solid pattern"),
    ("vessel", "full"): ("full of red cells", "congested with blood"),
    ("vessel", "empty"): ("with an empty lumen", "dilated and empty"),
    ("vessel", "capillaries"): ("as many small capillaries", "with scattered capillaries"),
}

# The second tissue: None, or how it is drawn and called.
_SECONDS: dict[str | None, tuple[str, tuple[str, ...]]] = {
    None: ("", ()),
    "lymphocytes": ("sheets", ("lymphocytes", "an inflammatory infiltrate")),
    "adipose": ("small", ("fat", "adipose tissue")),
    "mucus": ("acellular", ("mucin", "a pool of mucus")),
    "necrosis": ("dust", ("necrosis", "necrotic debris")),
    "stroma": ("dense", ("fibrosis", "collagenous stroma")),
    "smooth_muscle": ("lengthwise", ("muscle fibres", "smooth muscle")),
}

# Tissues that are drawn inside stroma would hide it.
_STROMAL = ("stroma", "adenocarcinoma", "vessel")

_LAYOUT_WORDS: dict[str, tuple[str, ...]] = {
    "edge": ("along one edge", "at the margin", "at the periphery"),
    "corner": ("in one corner", "in the corner", "filling one corner"),
    "band": ("as a band across the field", "crossing it as a band", "as a strip through the middle"),
    "centre": ("in the centre", "as a central focus", "surrounded on all sides"),
}

_OPENINGS = ("An H&E image of", "A photomicrograph of", "Haematoxylin and eosin:", "Microscopic view of", "Biopsy with")
_HEADINGS = (
    "Histology",
    "Microscopy",
    "Pathology slide",
    "Surgical resection",
    "High magnification",
    "Formalin fixed, paraffin embedded",
)

# name -> (strength of the dyes, words)
_STAINS: dict[str, tuple[float, tuple[str, ...]]] = {
    "pale": (0.60, ("pale stain", "weakly stained", "faintly coloured")),
    "usual": (1.00, ("standard stain", "well stained", "regular colour")),
    "dark": (1.55, ("dark stain", "strongly stained", "deeply coloured")),
}


@dataclasses.dataclass(frozen=True)
class Composition:
    """What one tile shows; captions and picture are both made from it."""

    tissue: str
    variant: str
    second: str | None
    layout: str
    stain: str
    slide: int


@dataclasses.dataclass(frozen=True)
class Tile:
    """One simulated example: an RGB image of size x size pixels, its captions, and its class in `CLASSES`."""

    image: Image.Image
    captions: tuple[str, ...]
    label: str
    composition: Composition


@functools.cache
def combinations(tissue: str, split: str) -> tuple[tuple[str, str | None], ...]:
    """The (variant, second tissue) pairs that `split` draws of `tissue`; those of train and test are disjoint."""
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    first = list(TISSUES).index(tissue)
    pairs = []
    for place, variant in enumerate(TISSUES[tissue][1]):
        for other, second in enumerate(_SECONDS):
            if second == tissue or (second == "stroma" and tissue in _STROMAL):
                continue
            # 2 * place: beside one second tissue at most one variant is held out, so training shows the pair.
            is_held_out = (2 * place + other + first) % 5 == 0
            if is_held_out == (split == "test"):
                pairs.append((variant, second))
    return tuple(pairs)


def compose(seed: int, index: int, split: str = "train") -> Composition:
    """Choose what tile `index` shows. Nine tiles in a row, one of each class, are a slide and share its stain."""
    slide = index // len(TISSUES)
    tissue = tuple(TISSUES)[index % len(TISSUES)]
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 0])
    pairs = combinations(tissue, split)
    variant, second = pairs[int(rng.integers(len(pairs)))]
    layouts = LAYOUTS[:2] if (tissue, variant) in CENTRAL else LAYOUTS
    stains = tuple(_STAINS)
    return Composition(
        tissue=tissue,
        variant=variant,
        second=second,
        layout=layouts[rng.integers(len(layouts))],
        stain=stains[_slide_rng(seed, split, slide).integers(len(stains))],
        slide=slide,
    )


def describe(composition: Composition, rng: np.random.Generator) -> tuple[str, ...]:
    """Say what a tile shows, in five captions of different wording; each names tissue, variant and second tissue."""

    def words(choices: Sequence[str]) -> str:
        return choices[int(rng.integers(len(choices)))]

    def scene() -> tuple[str, str, str, str]:
        name = words(CLASSES[composition.tissue])
        variant = words(_VARIANT_WORDS[composition.tissue, composition.variant])
        dye = words(_STAINS[composition.stain][1])
        second = ""
        if composition.second is not None:
            second = f"{words(_SECONDS[composition.second][1])} {words(_LAYOUT_WORDS[composition.layout])}"
        return name, variant, second, dye

    captions = []
    name, variant, second, dye = scene()
    captions.append(f"{words(_OPENINGS)} {name} {variant}{second and f', with {second}'}, {dye}.")
    name, variant, second, dye = scene()
    captions.append(f"{_upper(name)} {variant}{second and f'. {_upper(second)}'}. {_upper(dye)}.")
    name, variant, second, _ = scene()
    rest = f" and {second}" if second else ", nothing else in the field"
    captions.append(f"{words(_HEADINGS)}: {name} {variant}{rest}.")
    name, variant, second, dye = scene()
    start = f"{second} beside {name}" if second else f"only {name}"
    captions.append(f"{_upper(dye)} section showing {start} {variant}.")
    name, variant, second, _ = scene()
    captions.append(f"{_upper(second or name)}{f'; the rest is {name}' if second else ''} {variant}.")
    return tuple(captions)


def simulate(seed: int, index: int, *, split: str = "train", size: int = 96) -> Tile:
    """Draw and describe one tile: a pure function of its arguments.

    Args:
        seed: of the whole data set.
        index: of the tile in its split, from 0.
        split: ``train`` or ``test``; they share no combination of tissue, variant and second tissue.
        size: side of the image, pixels; the field shown is the same for every size.
    """
    composition = compose(seed, index, split)
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 1])
    captions = describe(composition, rng)
    second = composition.second and (composition.second, _SECONDS[composition.second][0])
    dyes = draw_tile((composition.tissue, composition.variant), second or None, composition.layout, size, rng)
    slide_rng = _slide_rng(seed, split, composition.slide)
    slide_rng.integers(len(_STAINS))  # compose's draw: the stain's name
    image = stain(dyes, make_stain(_STAINS[composition.stain][0], slide_rng), rng)
    return Tile(image, captions, composition.tissue, composition)


def write_records(
    out: str, *, train: int, test: int, seed: int, size: int, workers: int, overwrite: bool = False
) -> dict[str, int]:
    """Write both splits as one records folder; returns the number of records of each."""
    # Here, not at the top: drawing processes import this module, and the writer's imports take seconds.
    from data_prep.shards import RecordsWriter
    from plip_jax.data.records import Record

    with RecordsWriter(out, overwrite=overwrite) as writer:
        for split, count in (("train", train), ("test", test)):
            encoded = _encode_all(seed, split, count, size, workers)
            for index, (image, captions, label, slide) in enumerate(encoded):
                record = Record(
                    id=f"simulated-{split}-{index:06d}",
                    image=image,
                    captions=captions,
                    group_id=f"simulated-{split}-slide-{slide:05d}",
                    source="simulated",
                    label=label,
                )
                writer.write(record, split)
        return dict(writer.counts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.simulate", description="Write a records folder of simulated tissue with captions."
    )
    parser.add_argument("--out", required=True, help="records folder to write")
    parser.add_argument("--train", type=int, default=4000, help="tiles in the split train (%(default)s)")
    parser.add_argument("--test", type=int, default=800, help="tiles in the split test, all compositions unseen")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same data (%(default)s)")
    parser.add_argument("--size", type=int, default=96, help="side of a tile, pixels (%(default)s)")
    parser.add_argument("--workers", type=int, default=num_cores(), help="processes (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a records folder that is there")
    options = parser.parse_args(arguments)
    for name in ("train", "test", "size", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected a positive number, got {getattr(options, name)}")
    if options.seed < 0:
        parser.error(f"--seed: expected 0 or more, got {options.seed}")
    try:
        counts = write_records(**vars(options))
    except FileExistsError as error:
        parser.error(str(error))
    print(f"{options.out}: {counts['train']} train and {counts['test']} test records of {options.size} px")
    return 0


_Encoded = tuple[bytes, tuple[str, ...], str, int]


def _encode(index: int, seed: int, split: str, size: int) -> _Encoded:
    tile = simulate(seed, index, split=split, size=size)
    buffer = io.BytesIO()
    tile.image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue(), tile.captions, tile.label, tile.composition.slide


def _encode_all(seed: int, split: str, count: int, size: int, workers: int) -> Iterator[_Encoded]:
    """Tiles 0 to `count` in order, drawn in parallel; small jobs stay in this process."""
    encode = functools.partial(_encode, seed=seed, split=split, size=size)
    if workers == 1 or count < 200:
        yield from map(encode, range(count))
        return
    with make_pool(workers) as pool:
        yield from pool.map(encode, range(count), chunksize=50)


def _slide_rng(seed: int, split: str, slide: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), slide, 2])


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    sys.exit(main())
