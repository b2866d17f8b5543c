"""Judges the image of a pair and makes the copy that is stored: upright RGB JPEG or PNG without metadata.

Owns the gates that need nothing but the file (`FAULTS`), and what the stored bytes are; what is taken out of a file is
`strip_metadata`, whether it shows pathology is `gates`. Plain functions on bytes: nothing is read or written here.
"""

import dataclasses
import hashlib
import io
import math
import warnings
from collections.abc import Callable

from PIL import Image

from data_prep.images.strip_metadata import rgb_profile, strip_jpeg, strip_png
from data_prep.shards import is_plain_rgb
from plip_jax.data.image import ImageError, decode_image
from plip_jax.data.perceptual_hash import hash_image

FAULTS = ("bad_image", "too_large", "too_small", "extreme_aspect", "animated", "several_pages", "low_information")
"""Reasons why an image is left out, in the order in which they are looked for."""

# How the containers whose metadata can be taken out in place are stripped. An MPO is a photograph of a telephone: a
# JPEG followed by previews or depth maps, which are no further frames.
_STRIPPERS: dict[str, Callable[[bytes, bytes | None], bytes | None]] = {
    "JPEG": strip_jpeg,
    "MPO": strip_jpeg,
    "PNG": strip_png,
}
# What photographs come in. Their pixels were rounded before, and a PNG of them is five to ten times as large.
_LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """What an image must be, and how it is stored. OpenPath and IPATH published none of these numbers: all are ours.

    Attributes:
        formats: Containers, by Pillow's names, of those that `decode_image` reads. Any other is a `bad_image`.
        min_short_side: Pixels. Half of PLIP's view of 224: what is smaller is enlarged more than twofold.
        max_pixels: Width x height, 8192 x 8192. Checked before anything is decoded: it bounds the memory.
        max_aspect: Long side over short side. PLIP cuts the centre square: of a longer strip it sees less than a fifth.
        animation: "drop" ends an image of several frames or pages; "first" takes the first of them.
        min_grey_deviation: Standard deviation of the grey levels (0-255, ITU-R 601) of all pixels. Adipose tissue,
            mostly white, is far above it (of 211 tiles the least has 13.6, of 18 others 15.5) and bare glass below
            (of 300 tiles the greatest has 4.3).
        max_level_share: Share of pixels of the commonest grey level, 0-1: an empty page with a line or a mark on it.
            Of the 211 tiles of adipose tissue the greatest has 0.56, of 72 textbook figures 0.71.
        jpeg_above_pixels: An image that must be encoded again, and was in a lossy format, becomes JPEG above so many
            pixels (one megapixel) and PNG below; others always become PNG, which loses nothing.
        jpeg_quality: Pillow's scale, 1-95, without subsampling of the colours.
    """

    formats: tuple[str, ...] = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF")
    min_short_side: int = 112
    max_pixels: int = 2**26
    max_aspect: float = 5.0
    animation: str = "drop"
    min_grey_deviation: float = 5.0
    max_level_share: float = 0.98
    jpeg_above_pixels: int = 2**20
    jpeg_quality: int = 95

    def __post_init__(self) -> None:
        if self.animation not in ("drop", "first"):
            raise ValueError(f"ImageSettings.animation: expected drop or first, got {self.animation!r}")
        if not 1 <= self.jpeg_quality <= 95:
            raise ValueError(f"ImageSettings.jpeg_quality: expected 1 to 95, got {self.jpeg_quality}")


@dataclasses.dataclass(frozen=True)
class CleanImage:
    """The copy of an image that is stored.

    Attributes:
        data: Upright RGB JPEG or PNG, which `shards.upright_rgb` returns unchanged.
        sha256: Of `data`, hexadecimal.
        width: Pixels.
        height: Pixels.
        phash: Of the stored pixels, `plip_jax.data.perceptual_hash`; 16 hexadecimal digits.
        is_flat: Whether the hash is noise; then nothing may be concluded from it.
        made_by: "stripped" (the pixels are the file's, bit by bit), "png" (encoded again without loss) or "jpeg".
    """

    data: bytes
    sha256: str
    width: int
    height: int
    phash: str
    is_flat: bool
    made_by: str


@dataclasses.dataclass(frozen=True)
class ImageFault:
    """Why an image is left out.

    Attributes:
        reason: One of `FAULTS`.
        detail: What was found: numbers with their units.
    """

    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class _Header:
    """What a file says of itself before its pixels are decoded."""

    format: str
    width: int
    height: int
    has_frames: bool
    profile: bytes | None


def clean_image(data: bytes, settings: ImageSettings) -> CleanImage | ImageFault:
    """Judge the bytes of an image file and make the copy that is stored.

    The same bytes give the same copy. Where they must be encoded again, that holds for one version of Pillow.
    """
    header = _read_header(data, settings.formats)
    if isinstance(header, ImageFault):
        return header
    if fault := _fault_of_header(header, settings):
        return fault
    try:
        image = decode_image(data, name="the file", max_pixels=settings.max_pixels)
    except ImageError:
        return ImageFault("bad_image", f"{len(data)} bytes of {header.format}, damaged or cut off")
    if fault := _fault_of_levels(image, settings):
        return fault
    stored, pixels, made_by = _stored(data, image, header, settings)
    image_hash = hash_image(pixels)
    return CleanImage(
        data=stored,
        sha256=hashlib.sha256(stored).hexdigest(),
        width=pixels.width,
        height=pixels.height,
        phash=f"{int(image_hash.bits[0]):016x}",
        is_flat=image_hash.is_flat,
        made_by=made_by,
    )


def _read_header(data: bytes, formats: tuple[str, ...]) -> _Header | ImageFault:
    Image.init()
    known = [name for name in formats if name in Image.OPEN]  # AVIF and JPEG2000 are not in every build of Pillow
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is an error here, or found by decode_image
            with Image.open(io.BytesIO(data), formats=known) as image:
                has_frames = image.format != "MPO" and bool(getattr(image, "is_animated", False))
                profile = rgb_profile(image.info.get("icc_profile"))
                return _Header(str(image.format), *image.size, has_frames, profile)
    except Image.DecompressionBombError:
        return ImageFault("too_large", f"more than Pillow's {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels")
    except Exception:  # Pillow's header parsers raise a dozen unrelated types
        return ImageFault("bad_image", f"{len(data)} bytes that are no image of {', '.join(known)}")


def _fault_of_header(header: _Header, settings: ImageSettings) -> ImageFault | None:
    width, height = header.width, header.height
    size = f"{width} x {height} pixels"
    if width * height > settings.max_pixels:
        return ImageFault("too_large", f"{size}, at most {settings.max_pixels}")
    if min(width, height) < settings.min_short_side:
        return ImageFault("too_small", f"{size}, short side at least {settings.min_short_side}")
    if max(width, height) > settings.max_aspect * min(width, height):
        return ImageFault("extreme_aspect", f"{size}, at most {settings.max_aspect:g} to 1")
    if header.has_frames and settings.animation == "drop":
        return ImageFault("several_pages" if header.format == "TIFF" else "animated", f"a {header.format} of {size}")
    return None


def _fault_of_levels(image: Image.Image, settings: ImageSettings) -> ImageFault | None:
    counts = image.convert("L").histogram()
    total = sum(counts)
    mean = sum(level * count for level, count in enumerate(counts)) / total
    deviation = math.sqrt(sum((level - mean) ** 2 * count for level, count in enumerate(counts)) / total)
    share = max(counts) / total
    if deviation < settings.min_grey_deviation:
        return ImageFault("low_information", f"grey levels deviate by {deviation:.2f} of 255")
    if share > settings.max_level_share:
        return ImageFault("low_information", f"a share of {share:.4f} of the pixels has one grey level")
    return None


def _stored(
    data: bytes, image: Image.Image, header: _Header, settings: ImageSettings
) -> tuple[bytes, Image.Image, str]:
    """The bytes to store, what they decode to, and how they were made."""
    stripped = _stripped(data, header)
    if stripped is not None:
        pixels = _decoded(stripped)
        if pixels is not None and pixels.size == image.size and pixels.tobytes() == image.tobytes():
            return stripped, pixels, "stripped"
    as_jpeg = header.format in _LOSSY and image.width * image.height > settings.jpeg_above_pixels
    encoded = _encoded(image, header.profile, settings.jpeg_quality if as_jpeg else None)
    return encoded, decode_image(encoded, name="the copy"), "jpeg" if as_jpeg else "png"


def _stripped(data: bytes, header: _Header) -> bytes | None:
    strip = None if header.has_frames else _STRIPPERS.get(header.format)
    stripped = None if strip is None else strip(data, header.profile)
    # A turned image, palettes, grey and CMYK come out of stripping as they were, and are no plain RGB. The orientation
    # is among the metadata: a turned image is told by its pixels, which then differ from the decoded ones.
    return stripped if stripped is not None and is_plain_rgb(stripped) else None


def _decoded(data: bytes) -> Image.Image | None:
    try:
        return decode_image(data, name="the copy")
    except ImageError:
        return None


def _encoded(image: Image.Image, profile: bytes | None, jpeg_quality: int | None) -> bytes:
    """Encode an image; stripping what Pillow wrote puts it, and the profile, into the form that strips to itself."""
    bare = image.copy()
    bare.info = {}  # Pillow writes comments, resolutions and more from here
    buffer = io.BytesIO()
    if jpeg_quality is None:
        bare.save(buffer, "PNG")
        return strip_png(buffer.getvalue(), profile) or buffer.getvalue()
    bare.save(buffer, "JPEG", quality=jpeg_quality, subsampling=0)
    return strip_jpeg(buffer.getvalue(), profile) or buffer.getvalue()
