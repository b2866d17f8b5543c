"""A download of a test image from this machine, shared by the tests of fetching."""

import dataclasses
import io

from PIL import Image

from data_prep.fetching import fetch
from data_prep.fetching.fetch import FetchSettings

LOOPBACK = FetchSettings(ports=(), private_networks=("127.0.0.1/32",), read_seconds=5.0, total_seconds=5.0)


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (180, 90, 160)).save(file, kind)
    return file.getvalue()


JPEG = encoded("JPEG")


def reason(url: str, **changes) -> str:
    fetched = fetch.fetch(url, dataclasses.replace(LOOPBACK, **changes))
    assert not (fetched.reason and fetched.data)
    return fetched.reason


def numbered_jpeg(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, number // 256, 90)).save(file, "JPEG")
    return file.getvalue() + number.to_bytes(4, "big")  # no two are equal
