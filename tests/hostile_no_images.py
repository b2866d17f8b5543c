"""What has the name of an image and is none: files of other kinds, and paths that are no files.

Owns `OTHER_FILES` and `NO_FILES`. None of it may be waited for, read without end, or run.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

OTHER_FILES: dict[str, bytes] = {
    "nothing.png": b"",
    "one_byte.jpg": b"\xff",
    "zeros.jpg": bytes(10_000),
    "note.png": b"not an image, but a note to say so",
    "page.jpg": b"<!DOCTYPE html><title>404</title>",
    "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file closefile\n",
    "document.png": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
    "pickle.png": b"\x80\x04cos\nsystem\nX\x0c\0\0\0touch canary\x85R.",
    "program.jpg": b"\x7fELF" + bytes(99),
    "archive.png": b"PK\x03\x04" + bytes(99),
    # An icon, which the library does not open.
    "icon.png": b"\0\0\1\0\1\0" + bytes(99),
    "only_a_signature.png": b"\x89PNG\r\n\x1a\n",
    "only_a_start.jpg": b"\xff\xd8\xff",
    "fill_bytes.jpg": b"\xff\xd8" + b"\xff" * 100_000,
    "loop.tif": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
}


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket has 108 bytes at most
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "folder.jpg": Path.mkdir,
    "pipe.jpg": os.mkfifo,
    "socket.jpg": _socket,
    "link_to_nothing.jpg": lambda path: path.symlink_to("nowhere"),
    "link_to_itself.jpg": lambda path: path.symlink_to(path.name),
    "link_to_a_folder.jpg": lambda path: path.symlink_to("/"),
    "link_to_zeros.jpg": lambda path: path.symlink_to("/dev/zero"),
    "gone.jpg": lambda path: None,
}
