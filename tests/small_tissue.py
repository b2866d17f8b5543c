"""Pictures with structure at every scale, as tissue has it: each seed another one."""

import io

import numpy as np
from PIL import Image


def tissue(seed: int, side: int = 128) -> Image.Image:
    """Noise at several scales, in the colours of haematoxylin and eosin."""
    rng = np.random.default_rng(seed)
    field = np.zeros((side, side))
    for cells in (3, 6, 12, 24, 48):
        noise = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
        field += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC)) / cells**0.5
    share = np.clip((field - field.min()) / np.ptp(field), 0, 1)[..., None]
    return Image.fromarray((share * (225, 150, 195) + (1 - share) * (90, 50, 130)).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """The image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
