"""Tests of `plip_jax.batching`: images of every form as batches of one shape."""

import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from plip_jax.batching import Batch, Batcher
from plip_jax.data.image import ImageError
from plip_jax.sharding import make_mesh

SIDE = 4


def _png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def _batches(images: Any, **options: Any) -> list[Batch]:
    return list(Batcher(8).image_batches(images, None, to_pixels=np.asarray, side=SIDE, **options))


def test_damaged_images_become_rows_of_zeros_and_are_told_in_order(tmp_path: Path) -> None:
    truncated = Image.open(io.BytesIO(_png(5)[:-30]))
    images = [_png(1), b"no image", _png(3), truncated, str(tmp_path / "missing.png"), *map(_png, range(6, 11)), b""]
    told: list[tuple[int, ImageError]] = []

    batches = _batches(images, on_damaged=lambda index, error: told.append((index, error)))

    assert [count for count, _ in batches] == [8, 3]
    levels = np.concatenate([rows[:count, 0, 0, 0] for count, rows in batches])
    np.testing.assert_array_equal(levels, [1, 0, 3, 0, 0, 6, 7, 8, 9, 10, 0])
    assert [index for index, _ in told] == [1, 3, 4, 10]
    assert "number 1 of the images" in str(told[0][1])
    assert "missing.png" in str(told[2][1])


def test_a_damaged_image_is_an_error_without_on_damaged() -> None:
    with pytest.raises(ImageError, match="number 1 of the images"):
        _batches([_png(1), b"no image"])


def test_what_is_no_image_stays_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"number 1 of the images.*got int"):
        _batches([_png(1), 3], on_damaged=lambda index, error: None)


@pytest.mark.parametrize(("rows", "devices", "seen"), [(64, 1, 16), (48, 1, 16), (16, 1, 16), (40, 1, 40), (64, 8, 64)])
def test_a_cpu_takes_a_batch_in_parts_and_in_order(rows: int, devices: int, seen: int) -> None:
    sizes: list[int] = []

    def function(part: jax.Array) -> jax.Array:
        sizes.append(len(part))
        return part.sum(axis=(1, 2)) + 1

    batch = np.arange(rows * 6, dtype=np.float32).reshape(rows, 1, 2, 3)
    found = Batcher(rows, make_mesh(jax.devices()[:devices])).in_parts(function, jax.numpy.asarray(batch))
    np.testing.assert_array_equal(found, batch.sum(axis=(1, 2)) + 1)
    assert set(sizes) == {seen}
