"""Which images are left out, what the stored copies are, and that nothing but pixels and colours gets into them."""

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, PngImagePlugin, TiffImagePlugin

from data_prep.images import strip_metadata
from data_prep.images.clean_image import FAULTS, CleanImage, ImageFault, ImageSettings, clean_image
from data_prep.images.strip_metadata import rgb_profile, strip_jpeg, strip_png
from data_prep.shards import upright_rgb
from plip_jax.data.image import decode_image
from plip_jax.data.perceptual_hash import hash_image

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


def png_of(stream: bytes, side: int, interlaced: int = 0) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def rows_of(side: int) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (side, 3 * side), np.uint8)
    return b"".join(b"\0" + row.tobytes() for row in pixels)


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


def mpo() -> bytes:
    """A telephone's photograph: two JPEGs, the first of which counts."""
    return encoded(picture(), "MPO", save_all=True, append_images=[picture(seed=1)], quality=90)


KINDS: dict[str, Callable[[], bytes]] = {
    "grey JPEG": lambda: encoded(picture(mode="L"), "JPEG"),
    "CMYK JPEG": lambda: encoded(picture(mode="CMYK"), "JPEG"),
    "palette PNG": lambda: encoded(picture().quantize(64), "PNG"),
    "grey PNG": lambda: encoded(picture(mode="L"), "PNG"),
    "16-bit grey PNG": lambda: encoded(Image.fromarray(np.asarray(picture(mode="L")).astype(np.uint16)), "PNG"),
    "alpha PNG": lambda: encoded(picture(mode="RGBA"), "PNG"),
    "PNG with a transparent colour": lambda: encoded(picture(), "PNG", transparency=(3, 4, 5)),
    "BMP": lambda: encoded(picture(), "BMP"),
    "TIFF": lambda: encoded(picture(), "TIFF"),
    "WEBP": lambda: encoded(picture(), "WEBP", exif=secret_exif(), xmp=SECRETS["xmp"]),
    "GIF of one frame": lambda: encoded(picture(), "GIF", comment=SECRETS["comment"]),
    "MPO": mpo,
}


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


def test_bytes_behind_the_compressed_pixels_of_a_png_go() -> None:
    data = encoded(picture(), "PNG")
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    body = data[at + 4 : at + 4 + length] + SECRETS["text"]
    hidden = data[: at - 4] + chunk(b"IDAT", body) + data[at + 8 + length :]
    result = cleaned(hidden)
    assert_no_secret(result.data)
    assert cleaned(data).data == result.data


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


def frames(format: str) -> bytes:
    return encoded(picture(), format, save_all=True, append_images=[picture(seed=1)])


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


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="animation: expected drop or first, got 'last'"):
        ImageSettings(animation="last")
    with pytest.raises(ValueError, match="jpeg_quality"):
        ImageSettings(jpeg_quality=100)


def test_tiff_metadata_goes() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270], tags[315] = SECRETS["comment"].decode(), SECRETS["name"].decode()
    data = encoded(picture(), "TIFF", tiffinfo=tags)
    assert SECRETS["comment"] in data
    assert_no_secret(cleaned(data).data)
