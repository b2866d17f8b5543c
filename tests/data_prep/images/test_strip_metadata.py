"""Nothing but pixels and colours is left of a file, and the pixels are the file's own."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from planted_images import (
    SECRETS,
    SETTINGS,
    assert_no_secret,
    chunk,
    cleaned,
    encoded,
    picture,
    png_of,
    rows_of,
    secret_jpeg,
    secret_png,
    segment,
    srgb_profile,
)

from data_prep.images import strip_metadata
from data_prep.images.clean_image import CleanImage, clean_image
from data_prep.images.strip_metadata import rgb_profile, strip_jpeg, strip_png
from plip_jax.data.image import decode_image


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("make", [secret_jpeg, secret_png])
def test_no_planted_metadata_is_left_and_the_colour_profile_is(make: Callable[..., bytes], orientation: int) -> None:
    data = make(orientation=orientation)
    for name in ("name", "xmp", "unknown"):  # that the plant took: Pillow put them in
        assert SECRETS[name] in data
    result = cleaned(data)
    assert_no_secret(result.data)
    assert b"PK\x03\x04" not in result.data
    with Image.open(io.BytesIO(result.data)) as image:
        assert image.info["icc_profile"] == srgb_profile()
    assert (result.width, result.height) == ((140, 160) if orientation == 6 else (160, 140))
    np.testing.assert_array_equal(
        np.asarray(decode_image(result.data, name="out")), np.asarray(decode_image(data, name="in"))
    )
    assert result.made_by == ("stripped" if orientation == 1 else "png")
    assert cleaned(result.data).data == result.data


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_a_plain_jpeg_keeps_its_coded_pixels(options: dict[str, object]) -> None:
    data = encoded(picture(), "JPEG", quality=80, **options)
    result = cleaned(data)
    assert result.made_by == "stripped"
    scan = data[data.index(b"\xff\xda") :]
    assert result.data.endswith(scan)
    assert cleaned(result.data).data == result.data


def test_the_bits_of_a_large_profile_survive_in_several_segments() -> None:
    profile = srgb_profile()
    large = (len(profile) + 150_000).to_bytes(4, "big") + profile[4:] + bytes(range(250)) * 600
    result = cleaned(encoded(picture(), "JPEG", icc_profile=large))
    assert result.data.count(b"ICC_PROFILE\0") == 3
    with Image.open(io.BytesIO(result.data)) as image:
        assert image.info["icc_profile"] == large


def test_a_thumbnail_in_the_jfif_header_goes() -> None:
    data = encoded(picture(), "JPEG")
    assert data[2:4] == b"\xff\xe0"
    thumbnail = (SECRETS["name"] + SECRETS["text"])[:27]  # 3 x 3 pixels
    header = segment(0xE0, b"JFIF\0\x01\x02\x01\x01\x2c\x01\x2c\x03\x03" + thumbnail)
    result = cleaned(data[:2] + header + data[20:])
    assert result.made_by == "stripped"
    assert SECRETS["name"] not in result.data
    assert result.data == cleaned(data).data


def test_profiles_of_other_colours_and_what_hides_behind_a_profile_go() -> None:
    profile = srgb_profile()
    assert rgb_profile(profile + b"Jane-Q-Patient") == profile
    assert rgb_profile(profile[:16] + b"CMYK" + profile[20:]) is None
    assert rgb_profile(b"Jane-Q-Patient" * 20) is None
    assert rgb_profile(None) is None
    huge = (2**22 + 1).to_bytes(4, "big") + profile[4:] + bytes(2**22)
    assert rgb_profile(huge) is None


def test_what_is_hidden_behind_the_last_row_goes() -> None:
    secret, rows = b"Jane-Q-Patient", rows_of(130)
    plain = cleaned(png_of(zlib.compress(rows, 0), 130))
    assert plain.made_by == "stripped"
    for hidden in (secret, bytes(50_000), b"\0"):
        result = cleaned(png_of(zlib.compress(rows + hidden, 0), 130))
        assert result.made_by == "png"
        assert secret not in result.data
        np.testing.assert_array_equal(
            np.asarray(decode_image(result.data, name="out")), np.asarray(decode_image(plain.data, name="plain"))
        )
    assert strip_png(png_of(zlib.compress(rows[:-1]), 130), None) is None


def test_no_more_than_the_rows_is_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(130)
    data = png_of(zlib.compress(rows + bytes(30_000_000)), 130)
    inflated = []

    class Counting:
        def __init__(self) -> None:
            self.real = decompressobj()

        def decompress(self, data: bytes, most: int) -> bytes:
            piece = self.real.decompress(data, most)
            inflated.append(len(piece))
            return piece

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

    decompressobj = zlib.decompressobj
    monkeypatch.setattr(strip_metadata.zlib, "decompressobj", Counting)
    assert strip_png(data, None) is None
    assert sum(inflated) <= len(rows) + 1


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (8, 8), (13, 9), (1, 20), (20, 1)])
def test_an_interlaced_image_is_as_long_as_its_passes(size: tuple[int, int]) -> None:
    """The passes as the standard draws them: a number for each pixel of a square of eight."""
    drawing = ["16462646", "77777777", "56565656", "77777777", "36463646", "77777777", "56565656", "77777777"]
    passes: dict[str, dict[int, int]] = {}
    for y in range(size[1]):
        for x in range(size[0]):
            rows = passes.setdefault(drawing[y % 8][x % 8], {})
            rows[y] = rows.get(y, 0) + 1
    length = sum(1 + 3 * pixels for rows in passes.values() for pixels in rows.values())
    head = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 1)
    exact = png_of(zlib.compress(bytes(length)), 1).replace(struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0), head)
    more = png_of(zlib.compress(bytes(length + 1)), 1).replace(struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0), head)
    assert strip_png(exact, None) is not None
    assert strip_png(more, None) is None


def test_bytes_behind_the_compressed_pixels_of_a_png_go() -> None:
    data = encoded(picture(), "PNG")
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    body = data[at + 4 : at + 4 + length] + SECRETS["text"]
    hidden = data[: at - 4] + chunk(b"IDAT", body) + data[at + 8 + length :]
    result = cleaned(hidden)
    assert_no_secret(result.data)
    assert cleaned(data).data == result.data


@pytest.mark.realdata
def test_real_figures_are_stripped_without_loss(realdata: Path) -> None:
    for path in sorted((realdata / "openstax_histology" / "images_768").iterdir())[:6]:
        data = path.read_bytes()
        result = clean_image(data, SETTINGS)
        if isinstance(result, CleanImage):
            assert result.made_by == "stripped"
            assert decode_image(result.data, name="out").tobytes() == decode_image(data, name="in").tobytes()


def test_files_that_break_the_standard_are_not_stripped() -> None:
    jpeg, png = encoded(picture(), "JPEG"), encoded(picture(), "PNG")
    assert strip_jpeg(jpeg, None) is not None
    assert strip_png(png, None) is not None
    for cut in range(0, len(jpeg) - 1, 97):
        assert strip_jpeg(jpeg[:cut], None) is None
    for cut in range(0, len(png) - 12, 211):
        assert strip_png(png[:cut], None) is None
    assert strip_jpeg(jpeg[:2] + b"garbage" + jpeg[2:], None) is None
    assert strip_jpeg(png, None) is strip_png(jpeg, None) is None


def test_garbage_between_segments_is_resolved_by_encoding_again() -> None:
    jpeg = encoded(picture(), "JPEG", quality=90)
    quantisation = jpeg.index(b"\xff\xdb")
    data = jpeg[:quantisation] + segment(0xFE, SECRETS["comment"]) + SECRETS["text"] + jpeg[quantisation:]
    result = cleaned(data)
    assert result.made_by == "png"
    assert_no_secret(result.data)
    assert decode_image(result.data, name="out").tobytes() == decode_image(jpeg, name="in").tobytes()


def test_tiff_metadata_goes() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270], tags[315] = SECRETS["comment"].decode(), SECRETS["name"].decode()
    data = encoded(picture(), "TIFF", tiffinfo=tags)
    assert SECRETS["comment"] in data
    assert_no_secret(cleaned(data).data)
