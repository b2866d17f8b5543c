"""A records folder small enough to make in a test, shared by the tests that train."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.shards import RecordsWriter
from plip_jax.data.records import Record

COLOURS = {"red": (200, 40, 40), "blue": (40, 40, 200), "pink": (230, 150, 190), "white": (240, 240, 240)}


def write_tiles(folder: Path, *, count: int = 40, tests: int = 8) -> Path:
    """Small images whose caption names their colour; the last ``tests`` are the split ``test``."""
    rng = np.random.default_rng(0)
    with RecordsWriter(folder) as writer:
        for index in range(count):
            name, colour = list(COLOURS.items())[index % len(COLOURS)]
            pixels = np.clip(np.asarray(colour) + rng.normal(0, 20, (40, 44, 3)), 0, 255).astype(np.uint8)
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            split = "test" if index >= count - tests else "train"
            captions = (f"a {name} tile number {index}", f"{name} tissue, section {index}")
            record = Record(
                id=f"tile{index}", image=png.getvalue(), captions=captions, group_id=f"slide{index // 2}", label=name
            )
            writer.write(record, split)
    return folder
