"""Images with planted metadata, and what must not be left of it; shared by the tests of stored images."""

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from data_prep.images.clean_image import FAULTS, CleanImage, ImageFault, ImageSettings, clean_image

SETTINGS = ImageSettings()


SECRETS = {
    "gps": b"GPSMAPDATUM-9471",
    "name": b"Jane-Q-Patient",
    "xmp": b"xmp-creator-Dr-Who",
    "iptc": b"iptc-byline-Smith",
    "comment": b"comment-accession-S21-4711",
    "text": b"png-text-MRN-8812345",
    "time": b"2021:03:04 05:06:07",
    "zip": b"zip-behind-the-end",
    "unknown": b"private-app-segment",
}


def picture(width: int = 160, height: int = 140, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth random colours: they survive JPEG, and no two corners are alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def cleaned(data: bytes, settings: ImageSettings = SETTINGS) -> CleanImage:
    result = clean_image(data, settings)
    assert isinstance(result, CleanImage), result
    return result


def fault(data: bytes, settings: ImageSettings = SETTINGS) -> ImageFault:
    result = clean_image(data, settings)
    assert isinstance(result, ImageFault)
    assert result.reason in FAULTS
    return result


@functools.cache  # it holds the second it was made in
def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def secret_exif(orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x013B], exif[0x0132] = orientation, SECRETS["name"].decode(), SECRETS["time"].decode()
    exif.get_ifd(0x8825)[0x0012] = SECRETS["gps"].decode()
    return exif.tobytes()


def secret_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("notes.txt", SECRETS["zip"])
    return buffer.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def secret_jpeg(*, orientation: int = 1, progressive: bool = False) -> bytes:
    """A JPEG with every kind of metadata in it, and a zip archive behind its end."""
    data = encoded(
        picture(),
        "JPEG",
        quality=90,
        exif=secret_exif(orientation),
        icc_profile=srgb_profile(),
        comment=SECRETS["comment"],
        progressive=progressive,
    )
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + SECRETS["xmp"] + b"</x:xmpmeta>")
    iptc = segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\x20" + b"\x1c\x02\x50\0\x11" + SECRETS["iptc"])
    thumbnail = segment(0xE0, b"JFXX\0\x10" + encoded(picture(32, 32), "JPEG", comment=SECRETS["comment"]))
    other = segment(0xEB, SECRETS["unknown"])
    return data[:2] + thumbnail + xmp + iptc + other + data[2:] + secret_zip()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def secret_png(*, orientation: int = 1) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", SECRETS["name"].decode())
    info.add_text("Comment", SECRETS["comment"].decode() * 40, zip=True)
    info.add_itxt("XML:com.adobe.xmp", SECRETS["xmp"].decode())
    info.add_itxt("Patient", SECRETS["text"].decode() * 40, zip=True)
    info.add(b"tIME", b"\x07\xe5\x03\x04\x05\x06\x07")
    info.add(b"prVt", SECRETS["unknown"])
    data = encoded(picture(), "PNG", pnginfo=info, exif=secret_exif(orientation), icc_profile=srgb_profile())
    return data[:-12] + chunk(b"tEXt", b"Late\0" + SECRETS["text"]) + data[-12:] + secret_zip()


def assert_no_secret(data: bytes) -> None:
    """Neither as it stands, nor in any chunk of a PNG once that is inflated, nor by what Pillow reads."""
    for name, secret in SECRETS.items():
        assert secret not in data, name
    at = 8
    while data.startswith(b"\x89PNG") and at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        assert data[at + 4 : at + 8] in (b"IHDR", b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"IDAT", b"IEND")
        at += 12 + length
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert dict(image.getexif()) == {}
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "icc_profile", "adobe",
                                   "adobe_transform", "progressive", "progression", "gamma", "srgb"}  # fmt: skip


def png_of(stream: bytes, side: int, interlaced: int = 0) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def rows_of(side: int) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (side, 3 * side), np.uint8)
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def mpo() -> bytes:
    """A telephone's photograph: two JPEGs, the first of which counts."""
    return encoded(picture(), "MPO", save_all=True, append_images=[picture(seed=1)], quality=90)


KINDS: dict[str, Callable[[], bytes]] = {
    "grey JPEG": lambda: encoded(picture(mode="L"), "JPEG"),
    "CMYK JPEG": lambda: encoded(picture(mode="CMYK"), "JPEG"),
    "palette PNG": lambda: encoded(picture().quantize(64), "PNG"),
    "grey PNG": lambda: encoded(picture(mode="L"), "PNG"),
    "16-bit grey PNG": lambda: encoded(Image.fromarray(np.asarray(picture(mode="L")).astype(np.uint16) * 257), "PNG"),
    "alpha PNG": lambda: encoded(picture(mode="RGBA"), "PNG"),
    "PNG with a transparent colour": lambda: encoded(picture(), "PNG", transparency=(3, 4, 5)),
    "BMP": lambda: encoded(picture(), "BMP"),
    "TIFF": lambda: encoded(picture(), "TIFF"),
    "WEBP": lambda: encoded(picture(), "WEBP", exif=secret_exif(), xmp=SECRETS["xmp"]),
    "GIF of one frame": lambda: encoded(picture(), "GIF", comment=SECRETS["comment"]),
    "MPO": mpo,
}


def frames(format: str) -> bytes:
    return encoded(picture(), format, save_all=True, append_images=[picture(seed=1)])
