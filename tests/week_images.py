"""Images and captions of a made-up week of posts: no two images alike but those that are meant to be."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from plip_jax.data.perceptual_hash import distances, hash_image

_ORGANS = ("colon", "breast", "lung", "kidney", "skin", "thyroid", "liver", "ovary", "prostate", "stomach", "spleen")
_FINDINGS = (
    "infiltrating nests of pleomorphic tumor cells",
    "chronic inflammation with scattered lymphoid follicles",
    "fibrosis around the residual glands",
    "a well circumscribed spindle cell lesion",
    "focal necrosis with karyorrhectic debris",
    "papillary fronds lined by columnar epithelium",
    "granulomas with multinucleated giant cells",
    "cribriform architecture and luminal secretions",
    "mucin pools containing signet ring cells",
)
_PLACES = ("at low power", "in the superficial part", "near the margin", "in a core biopsy", "in the deep stroma")
_ENDS = ("seen on routine section", "confirmed by the second reader", "a lovely teaching example", "with clean margins")


def caption_texts() -> Iterator[str]:
    """English captions of about a dozen words, each another one."""
    for number in range(10**6):
        organ, rest = number % len(_ORGANS), number // len(_ORGANS)
        finding, rest = rest % len(_FINDINGS), rest // len(_FINDINGS)
        place, rest = rest % len(_PLACES), rest // len(_PLACES)
        end, rest = rest % len(_ENDS), rest // len(_ENDS)
        block = f", block {chr(65 + rest % 26)}{rest // 26}" if rest else ""
        yield f"Section of {_ORGANS[organ]} showing {_FINDINGS[finding]} {_PLACES[place]}, {_ENDS[end]}{block}"


def jpeg(image: Image.Image, quality: int = 90, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def simulated_images(seed: int = 0, side: int = 160) -> Iterator[Image.Image]:
    """Coloured clouds: no two of them alike."""
    rng = np.random.default_rng(seed)
    while True:
        coarse = Image.fromarray(rng.integers(60, 250, (9, 9, 3), np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (side, side, 1))
        yield Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def tiles_of(folder: Path) -> Iterator[Image.Image]:
    """Quarters of real micrographs, enlarged."""
    for path in sorted(folder.rglob("*.jpg")):
        with Image.open(path) as image:
            tile = image.convert("RGB")
        half = tile.width // 2
        for left in (0, half):
            for top in (0, half):
                yield tile.crop((left, top, left + half, top + half)).resize((224, 224), Image.Resampling.BICUBIC)


class DistinctImages:
    """Images whose hashes are far from all others', so that the only duplicates are the planted ones."""

    def __init__(self, images: Iterator[Image.Image], least_distance: int = 8) -> None:
        self._images = images
        self._least = least_distance
        self._hashes = np.empty(0, np.uint64)

    def __next__(self) -> Image.Image:
        for image in self._images:
            grey = np.asarray(image.convert("L"))
            own = hash_image(image).bits[0]
            if grey.std() > 12 and (not len(self._hashes) or distances(self._hashes, own).min() >= self._least):
                self._hashes = np.append(self._hashes, own)
                return image
        raise ValueError("no more images: fewer posts, or another folder")

    def near_copies(self) -> tuple[bytes, bytes]:
        """A new image, and the same a little smaller and compressed again: other bytes, a hash within 2 bits."""
        while True:
            image = next(self)
            first = jpeg(image)
            for quality in (60, 75, 85, 95):
                copy = jpeg(image.resize((image.width * 7 // 8, image.height * 7 // 8)), quality)
                if (_hash_of(first) ^ _hash_of(copy)).bit_count() <= 2:
                    return first, copy


def _hash_of(data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as image:
        return int(hash_image(image).bits[0])
