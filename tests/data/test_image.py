"""Decoding and the evaluation transform: bit-equal to Pillow as Hugging Face uses it, and no damage goes unnamed."""

import concurrent.futures
import io
import struct
import warnings
import zlib
from collections.abc import Callable

import jax
import numpy as np
import pytest
from PIL import Image, ImageFile

from plip_jax.data import image as image_module
from plip_jax.data.image import (
    ImageError,
    Preprocessing,
    decode_image,
    normalize_pixels,
    preprocess_image,
    resize_and_crop,
    to_rgb,
)


def make_hf_processor(size: int):
    """transformers' processor on Pillow; its default backend since version 5 is torchvision."""
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Processor
    except ImportError:
        from transformers.models.clip.image_processing_clip import CLIPImageProcessor as Processor
    return Processor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def random_pixels(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: Image.Image, container: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, container, **options)
    return buffer.getvalue()


# Where rounding, enlargement and odd margins matter: 1 pixel, smaller than the crop, equal, odd, long strips.
SIZES = [(1, 1), (2, 3), (3, 500), (37, 37), (100, 333), (224, 224), (225, 224), (512, 511), (640, 481), (301, 97)]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("size", [224, 64, 37])
def test_pixels_equal_those_of_transformers_bit_by_bit(width: int, height: int, size: int):
    image = Image.fromarray(random_pixels(width, height))
    reference = make_hf_processor(size)(image, do_rescale=False, do_normalize=False, return_tensors="np")
    ours = preprocess_image(image, Preprocessing(image_size=size))
    assert ours.dtype == np.uint8
    assert ours.shape == (size, size, 3)
    np.testing.assert_array_equal(ours, reference["pixel_values"][0].transpose(1, 2, 0))


@pytest.mark.parametrize("where", ["numpy", "jax", "jit"])
def test_normalised_pixels_equal_those_of_transformers(where: str):
    image = Image.fromarray(random_pixels(300, 280))
    reference = make_hf_processor(224)(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    preprocessing = Preprocessing()
    pixels = preprocess_image(image, preprocessing)
    if where == "numpy":
        ours = normalize_pixels(pixels, preprocessing)
    elif where == "jax":
        ours = normalize_pixels(jax.numpy.asarray(pixels), preprocessing)
    else:
        ours = jax.jit(lambda values: normalize_pixels(values, preprocessing))(pixels)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-6)  # the bound


@pytest.mark.parametrize(
    ("mode", "container"),
    [("L", "PNG"), ("1", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("F", "TIFF")],
)
def test_opaque_modes_become_rgb_as_pillow_converts_them(mode: str, container: str):
    data = encode(Image.fromarray(random_pixels(40, 30)).convert(mode), container)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    decoded = decode_image(data, name="tile")
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), expected)


def grey_tiff(bits: int, values: bytes, byte_order: str) -> bytes:
    """A TIFF of three grey pixels; Pillow writes none of 12 bits."""
    tags = [(256, 3), (257, 1), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(values))]
    entries = b"".join(struct.pack(byte_order + "HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    start = {"<": b"II*\0", ">": b"MM\0*"}[byte_order] + struct.pack(byte_order + "I", 8 + len(values))
    return start + values + struct.pack(byte_order + "H", len(tags)) + entries + bytes(4)


# 0, 100 and 255 in 8 bits; 16 bits are those times 257, with rest in the lower bits of the second.
DEEP_GREY = {
    "PNG": encode(Image.fromarray(np.array([[0, 25_727, 65_535]], np.uint16)), "PNG"),
    "TIFF, little-endian": grey_tiff(16, struct.pack("<3H", 0, 25_727, 65_535), "<"),
    "TIFF, big-endian": grey_tiff(16, struct.pack(">3H", 0, 25_727, 65_535), ">"),
    "TIFF of 12 bits": grey_tiff(12, bytes.fromhex("000649fff000"), "<"),
    "PGM": b"P5 3 1 65535\n" + struct.pack(">3H", 0, 25_727, 65_535),
}


@pytest.mark.parametrize("name", DEEP_GREY)
def test_grey_of_more_than_8_bits_is_scaled(name: str):
    decoded = decode_image(DEEP_GREY[name], name=name)
    assert (decoded.mode, np.asarray(decoded)[0].tolist()) == ("RGB", [[0] * 3, [100] * 3, [255] * 3])


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_16_bits_in_memory_are_scaled_in_any_byte_order(mode: str):
    order = {"I;16": "<", "I;16L": "<", "I;16B": ">", "I;16N": "="}[mode]
    image = Image.frombytes(mode, (2, 1), struct.pack(f"{order}2H", 25_700, 65_535))
    assert np.asarray(to_rgb(image))[0].tolist() == [[100] * 3, [255] * 3]


def test_16_bit_grey_is_turned_upright_and_its_transparent_value_lies_on_white():
    exif = Image.Exif()
    exif[0x0112] = 3
    grey = Image.fromarray(np.array([[257, 514, 25_700]], np.uint16))
    decoded = decode_image(encode(grey, "PNG", exif=exif.tobytes(), transparency=514), name="tile")
    assert np.asarray(decoded)[0, :, 0].tolist() == [100, 255, 1]


@pytest.mark.parametrize(("mode", "value"), [("I", 4000), ("I", -1), ("F", 255.5), ("F", float("nan"))])
def test_32_bits_of_unknown_range_are_refused_by_name(mode: str, value: float):
    data = encode(Image.new(mode, (2, 2), value), "TIFF")
    with pytest.raises(ImageError, match=r"'tile'.*values from .* of unknown range: scale them"):
        decode_image(data, name="tile")


def transparent_images() -> dict[str, bytes]:
    """Pixels: opaque red; red that is fully transparent."""
    rgba = Image.fromarray(np.array([[[200, 0, 0, 255], [200, 0, 0, 0]]], np.uint8))
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    return {
        "RGBA PNG": encode(rgba, "PNG"),
        "RGBA WebP": encode(rgba, "WEBP", lossless=True),
        "P PNG, one index": encode(palette, "PNG", transparency=1),
        "P PNG, alpha per index": encode(palette, "PNG", transparency=b"\xff\x00"),
        "P GIF": encode(palette, "GIF", transparency=1),
        "RGB PNG, one colour": encode(
            Image.fromarray(np.array([[[200, 0, 0], [1, 2, 3]]], np.uint8)), "PNG", transparency=(1, 2, 3)
        ),
    }


@pytest.mark.parametrize("name", transparent_images())
def test_transparency_lies_on_white_as_glass_does(name: str):
    decoded = np.asarray(decode_image(transparent_images()[name], name=name))
    np.testing.assert_array_equal(decoded, [[[200, 0, 0], [255, 255, 255]]])


def test_half_transparent_grey_is_blended():
    grey = Image.new("LA", (1, 1), (100, 51))  # alpha 0.2: 0.2 * 100 + 0.8 * 255 = 224
    assert decode_image(encode(grey, "PNG"), name="tile").getpixel((0, 0)) == (224, 224, 224)


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),  # the camera was turned: the row 0 of the file is the right side
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("container", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, container: str):
    pixels = random_pixels(5, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if container == "WEBP" else {}
    data = encode(Image.fromarray(pixels), container, exif=exif.tobytes(), **options)
    np.testing.assert_array_equal(np.asarray(decode_image(data, name="tile")), UPRIGHT[orientation](pixels))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_a_damaged_exif_block_counts_as_upright(exif: bytes):
    image = Image.fromarray(random_pixels(16, 8))
    assert decode_image(encode(image, "JPEG", exif=exif), name="tile").size == (16, 8)


@pytest.mark.parametrize("container", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(container: str):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    options = {"lossless": True} if container == "WEBP" else {}
    data = encode(frames[0], container, save_all=True, append_images=frames[1:], **options)
    assert decode_image(data, name="tile").getpixel((3, 3)) == (250, 0, 0)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0")
    chunks = [struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


WHOLE_JPEG = encode(Image.fromarray(random_pixels(64, 48)), "JPEG")


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"", "empty file"),
        (b"<html>404 Not Found</html>", "<html>"),
        (WHOLE_JPEG[: len(WHOLE_JPEG) // 2], "truncated"),
        (WHOLE_JPEG[:20], "damaged header|none of these"),
        (png_header(30_000, 30_000), "Pillow's own limit"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of these"),  # never handed to Ghostscript
    ],
)
def test_an_unusable_image_gives_an_error_that_names_it(data: bytes, got: str):
    with pytest.raises(ImageError, match=f"image 'slide 7/tile 3': expected .*({got})"):
        decode_image(data, name="slide 7/tile 3")


def test_max_pixels_is_checked_before_decoding():
    data = png_header(2000, 1000)
    with pytest.raises(ImageError, match=r"'big': expected at most 1999999 pixels, got 2000 x 1000.*max_pixels"):
        decode_image(data, name="big", max_pixels=1_999_999)
    with pytest.raises(ImageError, match="truncated"):
        decode_image(data, name="big", max_pixels=2_000_000)


def test_nothing_global_changes_and_no_warning_leaks_from_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)  # Pillow warns from here on and refuses at twice that
    good = encode(Image.fromarray(random_pixels(200, 200)), "PNG")
    with pytest.raises(Image.DecompressionBombWarning):  # under pytest a warning is an error, so a leak would show
        Image.open(io.BytesIO(good))
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sizes = pool.map(lambda index: decode_image(good, name=str(index)).size, range(64))
        assert set(sizes) == {(200, 200)}
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    assert Image.MAX_IMAGE_PIXELS == 30_000


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    kind = rng.integers(5)
    values = bytearray(data)
    if kind == 0:
        return bytes(values[: rng.integers(len(values))])
    if kind == 1:  # flipped bits anywhere
        for place in rng.integers(len(values), size=rng.integers(1, 30)):
            values[place] ^= 1 << rng.integers(8)
    elif kind == 2:  # flipped bits in the header
        for place in rng.integers(min(64, len(values)), size=3):
            values[place] = rng.integers(256)
    elif kind == 3:  # a block of zeros
        start = rng.integers(len(values))
        values[start : start + 40] = bytes(len(values[start : start + 40]))
    else:  # another format's first bytes
        values[:12] = [b"\x89PNG\r\n\x1a\n\0\0\0\r", b"GIF89a\xff\xff\xff\xff\0\0", b"BM" + b"\xff" * 10][
            rng.integers(3)
        ]
    return bytes(values)


def test_200_damaged_images_each_decode_or_are_named():
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(random_pixels(60, 44))
    smooth = pixels.resize((90, 70), Image.Resampling.BICUBIC)
    whole = [
        encode(smooth, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
        encode(smooth, "JPEG", progressive=True),
        encode(pixels, "PNG"),
        encode(pixels.convert("P"), "PNG", transparency=3),
        encode(pixels, "GIF", save_all=True, append_images=[smooth.resize((60, 44))]),
        encode(smooth, "WEBP"),
        encode(pixels, "TIFF", compression="tiff_lzw"),
        encode(pixels, "BMP"),
        encode(pixels, "PPM"),
        encode(smooth, "JPEG2000"),
    ]
    named: list[bool] = []
    for index in range(200):
        data = damaged(whole[index % len(whole)], rng)
        try:
            image = decode_image(data, name=f"record-{index}", max_pixels=2_000_000)
        except ImageError as error:
            named.append(f"'record-{index}'" in str(error))
        else:
            array = preprocess_image(image, Preprocessing(image_size=32))
            assert (image.mode, array.shape, array.dtype) == ("RGB", (32, 32, 3), np.uint8)
    assert all(named)
    assert 20 < len(named) < 180  # both ways were taken


@pytest.mark.parametrize("size", [(7, 900), (900, 7), (200, 3000), (3000, 51)])
def test_a_long_strip_is_sampled_without_making_it_whole(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    image = Image.fromarray(random_pixels(*size))
    whole = preprocess_image(image, Preprocessing(image_size=48))
    monkeypatch.setattr(image_module, "_MAX_RESIZED_PIXELS", 1000)
    part = preprocess_image(image, Preprocessing(image_size=48))
    # One level: Pillow takes the source box in single precision and rounds to 8 bits.
    np.testing.assert_allclose(part.astype(int), whole.astype(int), rtol=0, atol=1)
    monkeypatch.undo()
    strip = Image.new("RGB", (100_000, 1), (9, 8, 7))  # resized whole it would be 15 GB
    assert preprocess_image(strip, Preprocessing())[5, 5].tolist() == [9, 8, 7]


def whole_resize_and_crop(image: Image.Image, short_side: int, left: int, top: int, side: int) -> np.ndarray:
    """What resize_and_crop must equal: Pillow's resize of everything, then its crop."""
    size = image_module.resized_size(*image.size, short_side)
    whole = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(whole.crop((left, top, left + side, top + side)))


# PLIP's sizes: square, both orientations, odd, short side smaller and equal, one axis unchanged, large, a long strip.
@pytest.mark.parametrize(
    ("width", "height"),
    [(640, 480), (480, 640), (600, 600), (511, 1023), (256, 256), (512, 512), (512, 700), (2592, 1944), (90, 1201)],
)
def test_a_crop_has_the_pixels_of_the_whole_resize_at_plips_size(width: int, height: int):
    image = Image.fromarray(random_pixels(width, height))
    across, down = (length - 224 for length in image_module.resized_size(width, height, 512))
    for left, top in [(0, 0), (across, down), (across // 2, down // 3), (across, 0)]:
        ours = np.asarray(resize_and_crop(image, 512, left, top, 224))
        np.testing.assert_array_equal(ours, whole_resize_and_crop(image, 512, left, top, 224))


def test_a_crop_has_the_pixels_of_the_whole_resize_at_any_size():
    rng = np.random.default_rng(0)
    exact = 0
    for case in range(600):
        width, height = (int(n) for n in rng.integers(1, 300, 2))
        side = int(rng.integers(1, 64))
        short_side = 2 ** int(rng.integers(6, 9)) if case % 3 == 0 else side + int(rng.integers(0, 140))
        across, down = (length - side for length in image_module.resized_size(width, height, short_side))
        if (across + side) * (down + side) > 2**20:
            continue  # thin strips: slow, and covered above
        left, top = int(rng.integers(0, across, endpoint=True)), int(rng.integers(0, down, endpoint=True))
        image = Image.fromarray(random_pixels(width, height, case))
        ours = np.asarray(resize_and_crop(image, short_side, left, top, side))
        expected = whole_resize_and_crop(image, short_side, left, top, side)
        np.testing.assert_array_equal(ours, expected, err_msg=f"{image.size} -> {short_side}, {side} at {left}, {top}")
        exact += image_module._is_exact_scale(width, across + side)
    assert 100 < exact < 500  # both ways of resizing were taken


def test_an_rgb_image_is_not_copied_and_outlives_its_file():
    pixels = random_pixels(40, 30)
    decoded = decode_image(encode(Image.fromarray(pixels), "PNG"), name="x")
    assert to_rgb(decoded) is decoded
    np.testing.assert_array_equal(np.asarray(decoded), pixels)
    np.testing.assert_array_equal(np.asarray(decoded.crop((3, 4, 30, 20))), pixels[4:20, 3:30])


def test_the_array_is_writable_and_any_mode_is_taken():
    array = preprocess_image(Image.new("RGBA", (30, 30), (0, 0, 0, 0)), Preprocessing(image_size=30))
    assert array.flags.writeable
    assert (array == 255).all()
    assert to_rgb(Image.new("1", (2, 2), 1)).getpixel((0, 0)) == (255, 255, 255)


def test_preprocessing_survives_json_and_checks_itself():
    preprocessing = Preprocessing(image_size=64, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    again = Preprocessing.from_dict(preprocessing.to_dict())
    assert again == preprocessing
    assert hash(again) == hash(preprocessing)
    with pytest.raises(ValueError, match="image_size: expected a positive integer, got 0"):
        Preprocessing(image_size=0)
    with pytest.raises(ValueError, match="std: expected positive values"):
        Preprocessing(std=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"mean: expected 3 values .* got 2"):
        Preprocessing.from_dict({"mean": [0.5, 0.5]})
    with pytest.raises(TypeError, match="crop"):
        Preprocessing.from_dict({"crop": 3})
