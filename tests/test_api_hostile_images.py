"""What the errors of unusable images say, through the public API; the right answers are in `test_hostile_files`."""

import io
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from hostile_images import HOSTILE_IMAGES, Content, encoded
from PIL import Image
from small_models import make_model

from plip_jax.answers import DamagedImagesWarning
from plip_jax.api import PLIP
from plip_jax.data.image import ImageError
from plip_jax.sharding import make_mesh


@pytest.fixture(scope="module")
def model() -> PLIP:
    return PLIP(make_model(), batch_size=8, mesh=make_mesh(jax.devices()[:1]))  # one device compiles faster


NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
DAMAGED: dict[str, tuple[Callable[[], Content] | None, str]] = {
    "bomb.png": (HOSTILE_IMAGES["bomb.png"].make, "expected at most 178956970 pixels"),
    "truncated.jpg": (lambda: encoded(NOISE, "JPEG")[:900], "damaged or truncated JPEG"),
    "truncated.png": (lambda: encoded(NOISE, "PNG")[:900], "damaged or truncated PNG"),
    "zero_bytes.png": (lambda: b"", r"an empty file \(0 bytes\)"),
    "text.png": (lambda: b"not an image, but a note to say so", "34 bytes that begin b'not an i'"),
    "page.png": (lambda: b"<!DOCTYPE html><title>404</title>", "33 bytes that begin b'<!DOCTYP'"),
    "script.eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of these"),
    "float.tif": (
        lambda: encoded(Image.new("F", (40, 40), 4000.0), "TIFF"),
        "values from 4000 to 4000, of unknown range",
    ),
    "folder.png": (None, "expected a readable file, got Is a directory"),
}


def write(folder: Path, name: str) -> Path:
    make, _ = DAMAGED[name]
    if make is None:
        (folder / name).mkdir()
    else:
        content = make()
        assert isinstance(content, bytes)
        (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("name", DAMAGED)
def test_an_unusable_image_is_named_with_its_reason(model: PLIP, tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    with pytest.raises(ImageError, match=DAMAGED[name][1]) as raised:
        model.encode_images([NOISE, path])
    assert str(path) in str(raised.value)


def test_one_warning_names_all_of_them_and_the_others_are_encoded(model: PLIP, tmp_path: Path) -> None:
    paths = [write(tmp_path, name) for name in DAMAGED]
    with pytest.warns(DamagedImagesWarning) as caught:
        features = model.encode_images([*paths, NOISE], damaged="nan")
    assert len(caught) == 1
    assert all(str(path) in str(caught[0].message) for path in paths)
    assert np.isnan(features).all(axis=1).tolist() == [True] * len(paths) + [False]


def test_an_image_in_memory_that_cannot_be_used_is_a_row_of_nan_too(model: PLIP) -> None:
    unusable = [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0, 3), np.uint8),
        Image.new("RGB", (0, 5)),
        Image.new("F", (5, 5), -1.0),
    ]
    with pytest.warns(DamagedImagesWarning, match="row 1: number 1 of the images.*0 x 5 pixels"):
        features = model.encode_images([*unusable, NOISE], damaged="nan")
    assert np.isnan(features).all(axis=1).tolist() == [True] * 4 + [False]
    for image in unusable:
        with pytest.raises(ImageError, match="number 0 of the images: expected"):
            model.encode_images([image])


def test_an_image_in_memory_is_upright_and_premultiplied_alpha_lies_on_white(model: PLIP) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(encoded(Image.fromarray(NOISE), "PNG", exif=exif.tobytes()))) as turned:
        features = model.encode_images([turned, Image.new("LA", (40, 40), (100, 0)).convert("La")])
    expected = model.encode_images([np.rot90(NOISE, -1).copy(), np.full((40, 40, 3), 255, np.uint8)])
    np.testing.assert_array_equal(features, expected)
