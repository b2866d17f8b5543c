"""Takes the metadata out of JPEG and PNG files without touching their pixels.

Owns which segments (JPEG) and chunks (PNG) stay: those that the pixels and their colours need, each written anew in its
plainest form. All others go, known or not: EXIF, XMP, IPTC, comments, thumbnails, makers' notes, text, times, and what
stands behind the end of the image. Judges nothing about the image; `images` checks that the pixels are the same.

A file that is not built as its standard says gives None: then it is to be encoded again.

References: ITU-T T.81 annex B (JPEG), T.871 (JFIF), ICC.1:2022 annex B (profiles in JPEG), W3C PNG (third edition).
"""

import re
import zlib

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
# Frame headers of the baseline, extended and progressive processes with Huffman codes: those that are in use.
_SOF = {0xC0, 0xC1, 0xC2}
_DHT, _DQT, _DRI = 0xC4, 0xDB, 0xDD
_APP0, _APP2, _APP14 = 0xE0, 0xE2, 0xEE
_DROPPED = {*range(0xE0, 0xF0), 0xFE}  # application data and comments
# What ends entropy-coded data: in it, 0xFF is followed by a zero or a restart number.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")
_JFIF = b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"  # version 1.1, square pixels, no thumbnail
_ADOBE_BYTES = 12  # "Adobe", version, two words of flags, the colour transform: what decoders read
_ICC_MARK = b"ICC_PROFILE\0"
_MOST_ICC_BYTES = 2**22  # far above those in use; a JPEG holds four times as much
_ICC_PART_BYTES = 65_519  # what a segment of 65,535 bytes leaves beside its length, the mark and two numbers

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What changes how the pixels look is kept where it has the length of the standard: numbers, no text.
_COLOUR_CHUNKS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4}
# Of each pass of an interlaced image: its first column and row, and the steps to the next (W3C PNG, section 8.2).
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def rgb_profile(profile: bytes | None) -> bytes | None:
    """Return an ICC profile of RGB colours cut to the length it states; None for any other, or what is no profile.

    A profile of CMYK or grey describes pixels that are no longer there once they are RGB.
    """
    if not profile or len(profile) < 132 or profile[36:40] != b"acsp" or profile[16:20] != b"RGB ":
        return None
    size = int.from_bytes(profile[:4], "big")
    return profile[:size] if 132 <= size <= min(len(profile), _MOST_ICC_BYTES) else None


def strip_jpeg(data: bytes, profile: bytes | None) -> bytes | None:
    """Return a JPEG with its image data bit by bit, a plain JFIF or Adobe header where it had one, and the profile.

    Args:
        data: A JPEG, or an MPO (several JPEGs in a row), of which the first stays.
        profile: From `rgb_profile`.
    """
    if data[:2] != bytes((0xFF, _SOI)):
        return None
    headers, body = [], bytearray()
    at = 2
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _EOI:
            return b"".join([bytes((0xFF, _SOI)), *headers, *_icc_segments(profile), body, bytes((0xFF, _EOI))])
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        content = data[at + 4 : end]
        if end < at + 4 or end > len(data):
            return None
        if marker == _APP0 and content.startswith(b"JFIF\0"):
            headers.append(_segment(_APP0, _JFIF))
        elif marker == _APP14 and content.startswith(b"Adobe") and len(content) >= _ADOBE_BYTES:
            headers.append(_segment(_APP14, content[:_ADOBE_BYTES]))
        elif marker in _SOF or marker in (_DHT, _DQT, _DRI):
            body += data[at:end]
        elif marker == _SOS:
            found = _MARKER.search(data, end)
            end = found.start() if found else len(data)
            body += data[at:end]
        elif marker not in _DROPPED:
            return None
        at = end
    return None


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


def _icc_segments(profile: bytes | None) -> list[bytes]:
    parts = [profile[at : at + _ICC_PART_BYTES] for at in range(0, len(profile), _ICC_PART_BYTES)] if profile else []
    return [
        _segment(_APP2, _ICC_MARK + bytes((number, len(parts))) + part) for number, part in enumerate(parts, start=1)
    ]


def strip_png(data: bytes, profile: bytes | None) -> bytes | None:
    """Return a PNG of 8-bit RGB with its image data bit by bit, its colour chunks, and the profile.

    Args:
        data: The file. Other kinds of pixels than 8-bit RGB without transparency give None.
        profile: From `rgb_profile`.
    """
    if not data.startswith(_PNG_SIGNATURE):
        return None
    head, colours, pixels = b"", [], []
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        content, end = data[at + 8 : at + 8 + length], at + 12 + length
        if end > len(data):
            return None
        if kind == b"IHDR":
            if length != 13 or content[8:10] != b"\x08\x02":
                return None
            head = content
        elif kind == b"tRNS":
            return None
        elif kind == b"IDAT":
            pixels.append(content)
        elif kind in _COLOUR_CHUNKS and length == _COLOUR_CHUNKS[kind]:
            colours.append(_chunk(kind, content))
        elif kind == b"IEND":
            stream = _zlib_stream(b"".join(pixels), _raw_bytes(head)) if head else None
            if stream is None:
                return None
            # Stored, not compressed: the same bytes whatever the version of zlib.
            icc = [_chunk(b"iCCP", b"ICC\0\0" + zlib.compress(profile, 0))] if profile else []
            return b"".join(
                [_PNG_SIGNATURE, _chunk(b"IHDR", head), *icc, *colours, _chunk(b"IDAT", stream), _chunk(b"IEND", b"")]
            )
        at = end
    return None


def _raw_bytes(head: bytes) -> int:
    """How many bytes the pixels of an 8-bit RGB PNG have before they are compressed: each row, and one for its filter.

    Args:
        head: Content of IHDR: width, height, five more bytes, of which the last says whether it is interlaced.
    """
    width, height = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big")
    passes = _ADAM7 if head[12] else ((0, 0, 1, 1),)
    sizes = ((-(-(width - x) // step_x), -(-(height - y) // step_y)) for x, y, step_x, step_y in passes)
    return sum(rows * (3 * columns + 1) for columns, rows in sizes if columns > 0 and rows > 0)


def _zlib_stream(data: bytes, raw_bytes: int) -> bytes | None:
    """The stream without what was put behind its end; None where it does not end with the last row of the image.

    No more than that is ever inflated: two megabytes can hold two gigabytes, or what somebody hid there.
    """
    reader = zlib.decompressobj()
    waiting, left = data, raw_bytes
    try:
        while left:
            piece = reader.decompress(waiting, min(left, 2**20))  # a piece at a time: nobody needs the pixels
            if not piece:
                return None
            waiting, left = reader.unconsumed_tail, left - len(piece)
        if not reader.eof and reader.decompress(waiting, 1):  # reads the checksum, or finds one byte more
            return None
    except zlib.error:
        return None
    return data[: len(data) - len(reader.unused_data)] if reader.eof else None


def _chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
