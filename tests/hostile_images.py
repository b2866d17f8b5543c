"""Hostile images: odd but sound ones with the pixels that are right, and damaged ones.

Owns `HOSTILE_IMAGES`: by file name, what the file holds and what must come of it. All of it is deterministic.
"""

import dataclasses
import functools
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hostile_no_images import NO_FILES, OTHER_FILES
from PIL import Image, PngImagePlugin, TiffImagePlugin

# Bytes of a file, or what makes something else than a plain file at the path.
Content = bytes | Callable[[Path], object]

_EXACT, _LOSSY = 1e-6, 5e-3  # of a feature: another place in the batch; a level or two of every pixel (measured: 2e-3)


@dataclasses.dataclass(frozen=True)
class HostileImage:
    """What a file holds, and what is right.

    Attributes:
        make: its content.
        pixels: uint8 RGB [height, width, 3] of the picture; None where nothing can be right.
        may_fail: an ImageError is right, too.
        tolerance: of a normalised feature.
    """

    make: Callable[[], Content]
    pixels: Callable[[], np.ndarray] | None = None
    may_fail: bool = False
    tolerance: float = _EXACT


_RNG = np.random.default_rng(0)
# Coarse, so that JPEG keeps it; not square, so that no turn is right by chance.
PICTURE = np.kron(_RNG.integers(0, 256, (5, 6, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
GREY = PICTURE[..., 0]
RED = np.full((40, 48, 3), (255, 0, 0), np.uint8)
_MASK = np.indices(GREY.shape)[0] < 20


def _rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def encoded(image: Image.Image | np.ndarray, container: str, **options: Any) -> bytes:
    # A copy: saving leaves settings of one container on an image, and the next stumbles over them.
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image.copy()
    others = [other.copy() for other in options.pop("append_images", ())]
    stream = io.BytesIO()
    image.save(stream, container, **options, **({"append_images": others} if others else {}))
    return stream.getvalue()


@functools.cache
def jpeg(**options: Any) -> bytes:
    return encoded(PICTURE, "JPEG", quality=95, **options)


@functools.cache
def _jpeg_pixels() -> np.ndarray:
    """What the plain JPEG shows."""
    return np.asarray(Image.open(io.BytesIO(jpeg())))


def _exact(make: Callable[[], bytes], pixels: np.ndarray = PICTURE, tolerance: float = _EXACT) -> HostileImage:
    return HostileImage(make, lambda: pixels, tolerance=tolerance)


def _damaged(content: Content) -> HostileImage:
    return HostileImage(lambda: content)


# ---- modes and depths -----------------------------------------------------------------------------------------------


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, *others: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write; `rows` without the filter bytes (PNG specification, 11.2)."""
    per_row = len(rows) // height
    filtered = b"".join(b"\0" + rows[start : start + per_row] for start in range(0, len(rows), per_row))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), *others, chunk(b"IDAT", zlib.compress(filtered)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _palette(**options: Any) -> Image.Image:
    image = Image.new("P", (48, 40))
    image.putdata(_MASK.astype(np.uint8).ravel().tolist())
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.info.update(options)
    return image


_TWO_COLOURS = np.where(_MASK[..., None], np.array([255, 0, 0], np.uint8), np.array([0, 0, 255], np.uint8))
_ON_WHITE = np.where(_MASK[..., None], PICTURE, np.uint8(255))
_ALPHA = np.where(_MASK, 255, 0).astype(np.uint8)
# The upper eight bits, which are seen, are GREY.
_SIXTEEN = GREY.astype(np.uint16) * 257 + np.where(_MASK, 0, 255 - GREY).astype(np.uint16)


def _cmyk(pixels: np.ndarray) -> Image.Image:
    """Without black: each ink is what its colour lacks."""
    return Image.merge("CMYK", [*Image.fromarray(255 - pixels).split(), Image.new("L", pixels.shape[1::-1])])


def _without_adobe(data: bytes) -> bytes:
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4]) :]


def _modes() -> Iterator[tuple[str, HostileImage]]:
    image = Image.fromarray
    yield "grey.png", _exact(lambda: encoded(GREY, "PNG"), _rgb(GREY))
    yield "one_bit.png", _exact(lambda: encoded(image(_MASK), "PNG"), _rgb(_MASK * 255))
    yield "one_bit.tif", _exact(lambda: encoded(image(_MASK), "TIFF"), _rgb(_MASK * 255))
    yield "one_bit.bmp", _exact(lambda: encoded(image(_MASK), "BMP"), _rgb(_MASK * 255))
    yield (
        "two_bits.png",
        _exact(lambda: png(48, 40, 2, 0, b"\x1b" * 12 * 40), _rgb(np.tile([0, 85, 170, 255], (40, 12)))),
    )
    yield "palette.png", _exact(lambda: encoded(_palette(), "PNG"), _TWO_COLOURS)
    hidden = np.where(_MASK[..., None], np.array([255, 0, 0], np.uint8), np.uint8(255))
    yield "palette_transparent.png", _exact(lambda: encoded(_palette(transparency=0), "PNG"), hidden)
    yield "palette_alpha.png", _exact(lambda: encoded(_palette(), "PNG", transparency=b"\0\xff"), hidden)
    yield "palette.tif", _exact(lambda: encoded(_palette(), "TIFF"), _TWO_COLOURS)
    yield "transparent.gif", _exact(lambda: encoded(_palette(), "GIF", transparency=0), hidden)
    grey_on_white = _rgb(np.where(_MASK, GREY, 255))
    yield "grey_alpha.png", _exact(lambda: encoded(np.dstack([GREY, _ALPHA]), "PNG"), grey_on_white)
    rgba = np.dstack([PICTURE, _ALPHA])
    for container in ("PNG", "TIFF"):
        yield f"alpha.{container}".lower(), _exact(lambda c=container: encoded(rgba, c), _ON_WHITE)
    yield "alpha.webp", _exact(lambda: encoded(rgba, "WEBP", lossless=True, exact=True), _ON_WHITE)
    upper = _rgb((_SIXTEEN // 256).astype(np.uint8))
    yield "sixteen_bit.png", _exact(lambda: encoded(_SIXTEEN, "PNG"), upper)
    yield "sixteen_bit.tif", _exact(lambda: encoded(_SIXTEEN, "TIFF"), upper)
    yield (
        "sixteen_bit.ppm",
        HostileImage(lambda: b"P5 48 40 65535\n" + _SIXTEEN.astype(">u2").tobytes(), lambda: upper),
    )
    deep = (PICTURE.astype(np.uint16) * 256 + 99).astype(">u2").tobytes()
    yield "sixteen_bit_colour.png", _exact(lambda: png(48, 40, 16, 2, deep))
    yield "float.tif", _exact(lambda: encoded(GREY.astype(np.float32), "TIFF"), _rgb(GREY))
    yield "cmyk.tif", _exact(lambda: encoded(_cmyk(PICTURE), "TIFF"))
    yield "cmyk_adobe.jpg", _exact(lambda: encoded(_cmyk(PICTURE), "JPEG", quality=100), tolerance=_LOSSY)
    inverted = lambda: _without_adobe(encoded(_cmyk(255 - RED), "JPEG", quality=100))  # noqa: E731 # a maker, as the others
    yield "cmyk_plain.jpg", HostileImage(inverted, may_fail=True)
    for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield f"{kind}.tif", _exact(lambda k=kind: encoded(PICTURE, "TIFF", compression=k))
    yield "lossless.jp2", _exact(lambda: encoded(PICTURE, "JPEG2000"))
    yield "ascii.ppm", _exact(lambda: b"P3 # note\n48 40 255\n" + " ".join(map(str, PICTURE.ravel())).encode())
    yield "plain.bmp", _exact(lambda: encoded(PICTURE, "BMP"))
    yield "progressive.jpg", HostileImage(lambda: jpeg(progressive=True), _jpeg_pixels)
    yield "grey.jpg", _exact(lambda: encoded(GREY, "JPEG", quality=100), _rgb(GREY), _LOSSY)
    yield "a_png_named.jpg", _exact(lambda: encoded(PICTURE, "PNG"))
    yield "a_jpeg_named.tif", HostileImage(jpeg, _jpeg_pixels)


# ---- several frames -------------------------------------------------------------------------------------------------


def _frames() -> Iterator[tuple[str, HostileImage]]:
    others = [Image.fromarray(RED), Image.new("RGB", (48, 40), (0, 255, 0))]
    several = {"save_all": True, "append_images": others}
    first = Image.new("RGB", (48, 40), (0, 0, 255))
    blue = np.asarray(first)
    yield "animated.gif", _exact(lambda: encoded(first, "GIF", **several), blue)
    yield "animated.png", _exact(lambda: encoded(first, "PNG", **several), blue)
    yield "animated.webp", _exact(lambda: encoded(first, "WEBP", lossless=True, **several), blue)
    yield "pages.tif", _exact(lambda: encoded(first, "TIFF", **several), blue)
    yield "frames_mpo.jpg", _exact(lambda: encoded(first, "MPO", quality=100, **several), blue, _LOSSY)
    endless = {"save_all": True, "append_images": [first, others[0]] * 500, "loop": 0, "duration": 20}
    yield "thousand_frames.gif", _exact(lambda: encoded(first, "GIF", **endless), blue)


# ---- sizes ----------------------------------------------------------------------------------------------------------

_SIDE = 20_000


def _webp_of(width: int, height: int) -> bytes:
    """An extended header (RFC 9649, 2.7) of this canvas, and no picture."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _claiming(container: str, side: int) -> bytes:
    """A small picture whose header says that it is `side` pixels wide and high."""
    data = bytearray(encoded(PICTURE, container))
    if container == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    elif container == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    else:
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def _tiff_of(side: int) -> bytes:
    tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: side, 279: 100}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def _sizes() -> Iterator[tuple[str, HostileImage]]:
    for container in ("PNG", "GIF", "BMP", "TIFF", "PPM"):
        one = RED[:1, :1]
        yield f"one_pixel.{container}".lower(), _exact(lambda c=container, o=one: encoded(o, c), one)
    yield "one_pixel.jpg", _exact(lambda: encoded(RED[:1, :1], "JPEG", quality=100), RED[:1, :1], _LOSSY)
    yield "one_pixel.webp", _exact(lambda: encoded(RED[:1, :1], "WEBP", lossless=True), RED[:1, :1])
    for container in ("PNG", "JPEG", "TIFF", "BMP"):
        for shape in ((1, _SIDE), (_SIDE, 1)):
            name = f"{shape[1]}_x_{shape[0]}.{container}".lower()
            strip = np.full((*shape, 3), (255, 0, 0), np.uint8)
            yield name, _exact(lambda c=container, s=strip: encoded(s, c), strip, _LOSSY)
    yield "bomb.png", _damaged(_png_of(_SIDE))
    yield "bomb_of_bits.png", _damaged(_png_of((1 << 31) - 1))
    yield "bomb.jpg", _damaged(_claiming("JPEG", 65_500))
    yield "bomb.gif", _damaged(_claiming("GIF", 65_535))
    yield "bomb.bmp", _damaged(_claiming("BMP", _SIDE))
    yield "bomb.webp", _damaged(_webp_of(_SIDE, _SIDE))
    yield "bomb.tif", _damaged(_tiff_of(_SIDE))
    yield "bomb.ppm", _damaged(b"P6 20000 20000 255\n" + bytes(100))
    # Pillow fills with grey what a whole JPEG does not say.
    yield "claims_more.jpg", HostileImage(lambda: _claiming("JPEG", 2_000), lambda: ANYTHING, may_fail=True)
    yield "negative.bmp", _damaged(_claiming("BMP", -5_000))
    yield "no_pixels.png", _damaged(_png_of(0))
    yield "no_pixels.ppm", _damaged(b"P6 0 0 255\n")
    yield "endless_text.png", HostileImage(_endless_text, lambda: PICTURE, may_fail=True)


def _png_of(side: int) -> bytes:
    """A header of this size, and pixels that end at once."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def _endless_text() -> bytes:
    """16 MB of letters in 16 kB of a compressed comment."""
    content = b"Comment\0\0" + zlib.compress(bytes(16 << 20))
    return png(48, 40, 8, 2, PICTURE.tobytes(), chunk(b"zTXt", content))


# ---- what stands beside the pixels ----------------------------------------------------------------------------------

# EXIF orientation -> what to do with the stored pixels to see them upright (EXIF 2.3, table 6).
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
    0: lambda a: a,
    9: lambda a: a,
    65_535: lambda a: a,
}


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _beside() -> Iterator[tuple[str, HostileImage]]:
    for orientation, upright in _UPRIGHT.items():
        yield (
            f"orientation_{orientation}.jpg",
            HostileImage(lambda o=orientation: jpeg(exif=_exif(o)), lambda u=upright: u(_jpeg_pixels())),
        )
    for container in ("PNG", "WEBP"):
        yield (
            f"orientation_6.{container}".lower(),
            _exact(lambda c=container: encoded(PICTURE, c, lossless=True, exif=_exif(6)), np.rot90(PICTURE, -1)),
        )
    blocks = {
        "huge": b"Exif\0\0" + bytes(65_000),
        "of_noise": b"Exif\0\0II*\0" + _RNG.bytes(5_000),
        "cut": _exif(6)[:12],
        "that_loops": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0",
        "of_a_billion_entries": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\x7f\x06\0\0\0" * 9,
    }
    for what, block in blocks.items():
        yield f"exif_{what}.jpg", HostileImage(lambda b=block: jpeg(exif=b), _jpeg_pixels)
    for what, profile in {"of_noise": _RNG.bytes(3_000), "huge": bytes(500_000), "of_a_byte": b"x"}.items():
        yield f"icc_{what}.jpg", HostileImage(lambda p=profile: jpeg(icc_profile=p), _jpeg_pixels)
        yield f"icc_{what}.png", _exact(lambda p=profile: encoded(PICTURE, "PNG", icc_profile=p))
    yield "comment.jpg", HostileImage(lambda: jpeg(comment=b"\xff\xd8" * 30_000), _jpeg_pixels)
    yield "behind_the_end.jpg", HostileImage(lambda: jpeg() + _RNG.bytes(5_000), _jpeg_pixels)
    yield "behind_the_end.png", _exact(lambda: encoded(PICTURE, "PNG") + b"PK\x03\x04" * 99)
    info = PngImagePlugin.PngInfo()
    info.add_text("x" * 70, "__import__('os').system('touch canary')")
    yield "text.png", _exact(lambda: encoded(PICTURE, "PNG", pnginfo=info))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "x" * 100_000
    yield "long_tag.tif", _exact(lambda: encoded(PICTURE, "TIFF", tiffinfo=tags))


# ---- damage ---------------------------------------------------------------------------------------------------------


@functools.cache
def _sound(suffix: str) -> bytes:
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}}.get(suffix, {})
    container = {"jpg": "JPEG", "jp2": "JPEG2000", "tif": "TIFF"}.get(suffix, suffix.upper())
    return encoded(Image.fromarray(PICTURE), container, **options)


@functools.cache
def _sound_pixels(suffix: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(_sound(suffix))).convert("RGB"))


def _flip(suffix: str, seed: int) -> bytes:
    data = bytearray(_sound(suffix))
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, len(data), 3):
        data[place] ^= int(rng.integers(1, 256))
    return bytes(data)


ANYTHING = np.empty((0, 0, 3), np.uint8)  # a flipped byte of a pixel is seen by nobody: any picture is right


def _damage() -> Iterator[tuple[str, HostileImage]]:
    for suffix in ("jpg", "png", "gif", "webp", "tif", "bmp", "jp2", "ppm"):
        for share in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99):
            cut = HostileImage(lambda x=suffix, s=share: _sound(x)[: max(1, int(len(_sound(x)) * s))])
            # JPEG 2000 is made to be cut: a smaller file is a coarser picture.
            anything = HostileImage(cut.make, lambda: ANYTHING, may_fail=True)
            whole = HostileImage(cut.make, lambda x=suffix: _sound_pixels(x), may_fail=True)
            yield f"cut_at_{share:.0%}.{suffix}".replace("%", ""), anything if suffix == "jp2" else whole
        for seed in range(6):
            yield (
                f"flipped_{seed}.{suffix}",
                HostileImage(lambda x=suffix, s=seed: _flip(x, s), lambda: ANYTHING, may_fail=True),
            )
    for name, content in {**OTHER_FILES, **NO_FILES}.items():
        yield name, _damaged(content)
    # Root reads it all the same.
    yield "no_permission.png", HostileImage(lambda: _unreadable, lambda: PICTURE, may_fail=True)


def _unreadable(path: Path) -> None:
    path.write_bytes(_sound("png"))
    path.chmod(0)


HOSTILE_IMAGES: dict[str, HostileImage] = {
    **dict(_modes()),
    **dict(_frames()),
    **dict(_sizes()),
    **dict(_beside()),
    **dict(_damage()),
}


def write_images(folder: Path) -> None:
    """Make them all."""
    for name, image in HOSTILE_IMAGES.items():
        content = image.make()
        if callable(content):
            content(folder / name)
        else:
            (folder / name).write_bytes(content)
