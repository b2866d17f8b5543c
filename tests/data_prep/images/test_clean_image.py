"""Which images are left out, what the stored copies are, and that nothing but pixels and colours gets into them."""

import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from planted_images import (
    KINDS,
    SETTINGS,
    assert_no_secret,
    chunk,
    cleaned,
    encoded,
    fault,
    frames,
    mpo,
    picture,
    secret_jpeg,
    secret_png,
)

from data_prep.images.clean_image import CleanImage, ImageFault, ImageSettings, clean_image
from data_prep.shards import upright_rgb
from plip_jax.data.image import decode_image
from plip_jax.data.perceptual_hash import hash_image


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_plain_upright_rgb_with_the_same_pixels(kind: str) -> None:
    data = KINDS[kind]()
    result = cleaned(data)
    assert upright_rgb(result.data, name=kind) is result.data
    stored = decode_image(result.data, name=kind)
    np.testing.assert_array_equal(np.asarray(stored), np.asarray(decode_image(data, name=kind)))
    assert_no_secret(result.data)
    assert result.sha256 == hashlib.sha256(result.data).hexdigest()
    assert (result.width, result.height) == stored.size == (160, 140)
    assert int(result.phash, 16) == int(hash_image(stored).bits[0])
    assert (len(result.phash), result.is_flat) == (16, False)
    assert result == cleaned(data)
    assert cleaned(result.data).data == result.data


def test_sixteen_bit_rgb_is_no_plain_rgb() -> None:
    rows = np.asarray(picture()).astype(">u2") * 257
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 160, 140, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    result = cleaned(data)
    assert result.made_by == "png"
    np.testing.assert_array_equal(np.asarray(decode_image(result.data, name="16")), np.asarray(picture()))


def test_damage_anywhere_gives_a_fault_or_a_sound_copy() -> None:
    rng = np.random.default_rng(0)
    kinds = [secret_jpeg(), secret_jpeg(progressive=True), secret_png(), KINDS["WEBP"](), KINDS["TIFF"](), mpo()]
    results = set()
    for number in range(150):
        damaged = bytearray(kinds[number % len(kinds)])
        for at in rng.integers(0, len(damaged) if number % 2 else 800, 3):
            damaged[at] = rng.integers(0, 256)
        result = clean_image(bytes(damaged), SETTINGS)
        if isinstance(result, CleanImage):
            assert upright_rgb(result.data, name=str(number)) is result.data
            assert result.data.count(b"PK\x03\x04") == 0
        results.add(result.reason if isinstance(result, ImageFault) else result.made_by)
    assert {"bad_image", "stripped"} <= results


def test_only_lossy_images_above_a_size_become_jpeg() -> None:
    small_limit = ImageSettings(jpeg_above_pixels=160 * 140 - 1)
    webp, png = encoded(picture(), "WEBP", quality=90), encoded(picture(mode="RGBA"), "PNG")
    assert cleaned(webp).made_by == "png"
    assert cleaned(png, small_limit).made_by == "png"
    result = cleaned(webp, small_limit)
    assert result.made_by == "jpeg"
    assert upright_rgb(result.data, name="webp") is result.data
    difference = np.asarray(decode_image(result.data, name="j"), np.int16) - np.asarray(
        decode_image(webp, name="w"), np.int16
    )
    assert np.abs(difference).max() <= 8  # quality 95 of a smooth picture: a few levels of 255


def test_frames_and_pages_end_an_image_or_give_the_first() -> None:
    for format, reason in [("GIF", "animated"), ("PNG", "animated"), ("WEBP", "animated"), ("TIFF", "several_pages")]:
        data = frames(format)
        assert fault(data).reason == reason
        result = cleaned(data, ImageSettings(animation="first"))
        assert upright_rgb(result.data, name=format) is result.data
        np.testing.assert_array_equal(
            np.asarray(decode_image(result.data, name="out")), np.asarray(decode_image(data, name="in"))
        )


def test_damaged_and_foreign_files_are_bad_images() -> None:
    jpeg, png = encoded(picture(), "JPEG"), encoded(picture(), "PNG")
    for data in (b"", b"<html>Not found</html>", jpeg[: len(jpeg) // 2], png[: len(png) // 2], jpeg[:30], png[:20]):
        assert fault(data).reason == "bad_image"
    assert fault(encoded(picture(), "BMP"), ImageSettings(formats=("JPEG",))).reason == "bad_image"


@pytest.mark.parametrize(
    ("size", "reason"),
    [((111, 200), "too_small"), ((112, 112), None), ((600, 120), None), ((601, 120), "extreme_aspect")],
)
def test_sizes_at_their_limits(size: tuple[int, int], reason: str | None) -> None:
    result = clean_image(encoded(picture(*size), "PNG"), SETTINGS)
    assert (result.reason if isinstance(result, ImageFault) else None) == reason


def test_an_image_that_is_too_large_is_refused_before_its_pixels_are_read() -> None:
    settings = ImageSettings(max_pixels=160 * 140)
    cleaned(encoded(picture(), "PNG"), settings)
    data = encoded(picture(161, 140), "PNG")
    damaged = data[: data.index(b"IDAT") + 4]
    assert fault(damaged, settings).reason == "too_large"
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    assert fault(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")).reason == "too_large"


def test_blank_and_nearly_blank_images_have_low_information() -> None:
    page = Image.new("RGB", (400, 300), "white")
    assert fault(encoded(page, "PNG")).reason == "low_information"
    ImageDraw.Draw(page).text((10, 10), "404: image not available", fill="black")
    assert fault(encoded(page, "PNG")).reason == "low_information"
    noise = np.random.default_rng(0).normal(240, 3, (200, 200, 3)).clip(0, 255).astype(np.uint8)
    assert fault(encoded(Image.fromarray(noise), "PNG")).reason == "low_information"


@pytest.mark.realdata
def test_adipose_tissue_passes_and_bare_glass_does_not(realdata: Path) -> None:
    regions = realdata / "colon_regions3"
    for kind, expected in [("ADI", CleanImage), ("BACK", ImageFault), ("NORM", CleanImage)]:
        for path in sorted(regions.glob(f"*/{kind}/*.jpg"))[::4]:
            result = clean_image(path.read_bytes(), SETTINGS)
            assert isinstance(result, expected), path
    for path in sorted((realdata / "kather2016_100" / "07_ADIPOSE").iterdir()):
        assert cleaned(path.read_bytes()).made_by == "stripped"


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="animation: expected drop or first, got 'last'"):
        ImageSettings(animation="last")
    with pytest.raises(ValueError, match="jpeg_quality"):
        ImageSettings(jpeg_quality=100)
