"""From the bytes of one image to the pixels CLIP sees.

Owns decoding (every container Pillow reads safely, upright, RGB), the evaluation transform and the normalisation.
The reference is Pillow's bicubic as Hugging Face's PIL ``CLIPImageProcessor`` uses it: uint8 pixels are bit-equal
to it; grey values of more than 8 bits are not (see `to_rgb`). Random augmentation lives in `plip_jax.data.augment`.
Imports neither jax nor transformers.
"""

import contextlib
import dataclasses
import functools
import io
import math
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Pixel statistics of OpenAI's CLIP training set, RGB in [0, 1] (openai/CLIP, clip.py)."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Their standard deviation, likewise."""

# Pillow refuses above this by itself (twice its Image.MAX_IMAGE_PIXELS), so a larger limit would have no effect.
DEFAULT_MAX_PIXELS = 178_956_970

# The containers tried, in this order. Others are refused by name: EPS would start Ghostscript, and the rest
# (icons, fonts, scientific stubs) do not hold micrographs.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF")

# A resized image above this many pixels is never made whole (a strip of 1 x 20,000 would become 224 x 4,480,000).
_MAX_RESIZED_PIXELS = 2**26

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# TIFF's tag of that name; Pillow opens 12 bits as the mode of 16, not scaled.
_BITS_PER_SAMPLE = 258

# warnings.catch_warnings swaps process-wide filters; decoding threads must not interleave their swaps.
_WARNINGS_LOCK = threading.Lock()

Pixels = TypeVar("Pixels", bound=Any)


class ImageError(ValueError):
    """An image that cannot be used. The message names the record and says expected, got, and what to do."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What stands between a decoded image and the image tower; kept with every checkpoint.

    Attributes:
        image_size: the short side is resized to this and the centre square of this side is kept, pixels.
        mean: subtracted per RGB channel, of values in [0, 1].
        std: divided by per RGB channel, positive.
    """

    image_size: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"Preprocessing.image_size: expected a positive integer, got {self.image_size}")
        for field in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, field))
            if len(values) != 3:
                raise ValueError(f"Preprocessing.{field}: expected 3 values (R, G, B), got {len(values)}")
            if not all(map(math.isfinite, values)):
                raise ValueError(f"Preprocessing.{field}: expected finite values, got {values}")
            object.__setattr__(self, field, values)  # lists, as JSON gives them, become tuples: hashable
        if min(self.std) <= 0:
            raise ValueError(f"Preprocessing.std: expected positive values, got {self.std}")

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, fit for JSON."""
        return {"image_size": self.image_size, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Inverse of `to_dict`; raises TypeError on an unknown field."""
        return cls(**values)


def decode_image(data: bytes, *, name: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decode an encoded image to upright RGB.

    The EXIF orientation is applied (an unreadable EXIF block counts as upright), the first frame of an animation
    or page of a TIFF is taken, and the mode is converted as `to_rgb` does. Safe in threads: Pillow's warnings are
    silenced under a lock, the pixels are decoded outside it, and no global setting of Pillow is touched.

    Args:
        data: the bytes of the file.
        name: the record or path, for the error.
        max_pixels: width x height above which the image is refused before any pixel is decoded.

    Raises:
        ImageError: no bytes, not an image, an unknown container, damaged or truncated, or larger than `max_pixels`.
    """
    if not data:
        raise _error(name, "an empty file (0 bytes)")
    try:
        with _silenced():
            image = Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError as error:
        raise _too_large(name, f"more than Pillow's own limit ({error})", max_pixels) from error
    except Image.UnidentifiedImageError as error:
        raise _error(name, f"{len(data)} bytes that begin {data[:8]!r} and are none of these") from error
    except Exception as error:  # Pillow's parsers raise a dozen unrelated types on damaged headers
        raise _error(name, f"a damaged header ({_reason(error)})") from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise _too_large(name, f"{width} x {height} = {width * height} pixels", max_pixels)
        if min(width, height) < 1:
            raise _error(name, f"an image of {width} x {height} pixels")
        try:
            image.load()
        except Exception as error:  # as above, for the decoders: OSError, SyntaxError, ValueError, struct.error, …
            raise _error(name, f"a damaged or truncated {image.format} ({_reason(error)})") from error
        try:
            return upright_rgb(image)
        except Exception as error:  # Pillow has no conversion, or `to_rgb` knows of none that keeps the picture
            raise _error(
                name, f"a {image.format} of mode {image.mode} that cannot be shown ({_reason(error)})"
            ) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """`to_rgb`, and the EXIF orientation applied; call after ``load()``.

    In this order: of a transposed or copied image nothing says any more how many bits its file had.
    """
    converted, method = to_rgb(image), _transposition(image)
    return converted if method is None else converted.transpose(method)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, as transformers does; only grey of more than 8 bits is scaled and not clipped.

    Transparency is laid on white, which is what glass looks like on a slide (transformers since 5.x; its earlier
    versions and OpenAI's code dropped the alpha channel and showed whatever colour lay under it). Of 16-bit grey
    values the upper 8 bits are taken, which is what Pillow does with 16-bit RGB (and of 12-bit TIFFs their upper 8).
    32-bit integers and floats have no range that the file tells: those within 0 to 255 are taken as they are. An image
    that is plain RGB already is returned itself.

    Raises:
        ValueError: 32-bit values outside 0 to 255, or a mode that Pillow cannot convert.
    """
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image  # convert() would copy every pixel
    # departs: transformers' processor calls convert("RGB") here, which clips at 255: nearly all of a 16-bit
    # micrograph becomes white, and its features are those of an empty image.
    if (bits := _grey_bits(image)) is not None:
        return _scaled_grey(image, bits)
    if image.mode in ("I", "F"):
        lowest, highest = (float(value) for value in image.getextrema())  # pyright: ignore[reportArgumentType] # one band
        if not (lowest >= 0 and highest <= 255):
            raise ValueError(f"values from {lowest:g} to {highest:g}, of unknown range: scale them to 8 or 16 bits")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow's only way out of it
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _grey_bits(image: Image.Image) -> int | None:
    """Bits of the grey values where they are more than 8 and known."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
        return bits if 8 < bits < 16 else 16
    # Pillow's PPM reader, and the PNG reader of its older versions, put 16 bits into the mode of 32.
    return 16 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _scaled_grey(image: Image.Image, bits: int) -> Image.Image:
    values = np.asarray(image)
    levels = (values >> (bits - 8)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels[values == transparent] = 255  # on white, as in `to_rgb`
    return Image.fromarray(levels).convert("RGB")


def resized_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) after the short side becomes `short_side`; the long side is cut, not rounded (as torchvision)."""
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def resize_and_crop(image: Image.Image, short_side: int, left: int, top: int, side: int) -> Image.Image:
    """Resize the short side to `short_side` (bicubic) and cut the square of `side` at (left, top) of the result.

    Bit-equal to Pillow's ``resize`` followed by ``crop``, without computing most of what the crop throws away: PLIP's
    view keeps 14 % of the resized pixels of a 640 x 480 image. An `image` that is not RGB must have a mode that
    ``resize`` filters (not P or 1).

    A strip so long that the resized image would not fit in memory is sampled only inside the square; there a value
    may differ by one level from the whole resize.
    """
    width, height = resized_size(*image.size, short_side)
    if image.size == (width, height):
        return image.crop((left, top, left + side, top + side))
    if width * height > _MAX_RESIZED_PIXELS:
        return _sample_square(image, (width, height), left, top, side)
    # Pillow filters along the rows first, to 8 bits, then along the columns; so does this, in two calls.
    first, last = _rows_needed(image.size[1], height, top, side)
    all_rows = first == 0 and last == image.size[1]
    source = image if all_rows else image.crop((0, first, image.size[0], last))
    rows = _resize_columns(source, width, left, side)
    if image.size[1] == height:
        return rows
    if _is_exact_scale(image.size[1], height):
        scale = image.size[1] / height
        box = (0, top * scale - first, side, (top + side) * scale - first)
        return rows.resize((side, side), Image.Resampling.BICUBIC, box=box)
    # The filter's weights are those of the whole height only if the image has the whole height; what stands outside
    # the rows needed does not enter the square.
    column = rows
    if not all_rows:
        column = Image.new(image.mode, (side, image.size[1]))
        column.paste(rows, (0, first))
    return column.resize((side, height), Image.Resampling.BICUBIC).crop((0, top, side, top + side))


def _resize_columns(rows: Image.Image, width: int, left: int, side: int) -> Image.Image:
    """Resize along the rows only, to `width`, and keep `side` columns from `left` on."""
    length, height = rows.size
    if length == width:
        return rows.crop((left, 0, left + side, height))
    if _is_exact_scale(length, width):
        scale = length / width
        return rows.resize(
            (side, height), Image.Resampling.BICUBIC, box=(left * scale, 0, (left + side) * scale, height)
        )
    return rows.resize((width, height), Image.Resampling.BICUBIC).crop((left, 0, left + side, height))


def _is_exact_scale(length: int, resized: int) -> bool:
    """Say whether a box of the source gives Pillow the very weights of the whole resize.

    Pillow keeps boxes in float32 and computes weights in float64 from places like ``box + (x + 0.5) * scale``. Where
    length / resized has a power of two below, and both parts fit in 24 bits, every place is exact in both. So it is
    for PLIP's short side of 512; elsewhere the weights differ in the last bits, and a few pixels in ten thousand by a
    level or two (measured).
    """
    denominator = resized // math.gcd(length, resized)
    return denominator & (denominator - 1) == 0 and length * denominator < 2**24


def _rows_needed(height: int, resized: int, top: int, side: int) -> tuple[int, int]:
    """Rows [first, last) of the source that `side` rows of the resized image from `top` on are filtered from."""
    if height == resized:
        return top, top + side
    scale = height / resized
    reach = 2 * max(scale, 1) + 1  # bicubic's support, and a row for the rounding
    first, last = math.floor((top + 0.5) * scale - reach), math.ceil((top + side - 0.5) * scale + reach)
    return max(0, first), min(height, last)


def _sample_square(image: Image.Image, resized: tuple[int, int], left: int, top: int, side: int) -> Image.Image:
    """Resize only the source of one square of the image at size `resized`."""
    # The source of the square with what the bicubic kernel reaches around it, cut out first: float32 box
    # coordinates are too coarse far from the origin.
    across, down = image.size[0] / resized[0], image.size[1] / resized[1]
    reach_x, reach_y = math.ceil(2 * max(across, 1)) + 1, math.ceil(2 * max(down, 1)) + 1
    box = (left * across, top * down, (left + side) * across, (top + side) * down)
    first_x, first_y = max(0, math.floor(box[0]) - reach_x), max(0, math.floor(box[1]) - reach_y)
    last_x, last_y = min(image.size[0], math.ceil(box[2]) + reach_x), min(image.size[1], math.ceil(box[3]) + reach_y)
    source = image.crop((first_x, first_y, last_x, last_y))
    box = (
        box[0] - first_x,
        box[1] - first_y,
        min(box[2] - first_x, source.size[0]),
        min(box[3] - first_y, source.size[1]),
    )
    return source.resize((side, side), Image.Resampling.BICUBIC, box=box)


def preprocess_image(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Resize the short side and cut the centre square: uint8 [image_size, image_size, 3], not yet normalised.

    Bit-equal to Hugging Face's PIL ``CLIPImageProcessor`` before its rescaling. An image smaller than the crop is
    enlarged. `image` may have any mode; the array is a writable copy.
    """
    if image.mode != "RGB":
        image = to_rgb(image)
    size = preprocessing.image_size
    width, height = resized_size(*image.size, size)
    return np.array(resize_and_crop(image, size, (width - size) // 2, (height - size) // 2, size))


def normalize_pixels(image: Pixels, preprocessing: Preprocessing) -> Pixels:
    """uint8 [..., 3] -> float32 [..., 3], (image / 255 - mean) / std.

    Takes a numpy or a jax array, also traced: the same expression runs on the host and on the device.
    """
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    return (image.astype(np.float32) / np.float32(255) - mean) / std


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` this build of Pillow has a plugin for; an unknown name would be a KeyError in Image.open."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _transposition(image: Image.Image) -> Image.Transpose | None:
    """What the EXIF orientation asks for; call after ``load()``, because PNG may keep EXIF behind the pixels."""
    try:
        with _silenced():
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels; its parser raises many types
        orientation = 1
    return _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keep Pillow's warnings (half-bombs, odd metadata) from the caller: what matters becomes an ImageError."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _error(name: str, got: str) -> ImageError:
    return ImageError(
        f"image {name!r}: expected a whole {', '.join(_formats())} file, got {got}; "
        "fetch or export it again, or remove it"
    )


def _too_large(name: str, got: str, max_pixels: int) -> ImageError:
    return ImageError(
        f"image {name!r}: expected at most {max_pixels} pixels, got {got}; "
        "cut the slide into tiles, shrink it, or raise max_pixels if it is to be trusted"
    )
