"""The table of encoders, and `open_encoder`, which makes one of a string.

A source is ``KIND:PATH`` with a kind of `ENCODERS`, or a plain path or hub id, which is a CLIP. A new kind is a file
with a class and a line here.
"""

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plip_jax.convert.load import SourceError
from plip_jax.encoders.baseline import BaselineEncoder, OpenOptions
from plip_jax.encoders.clip import ClipEncoder
from plip_jax.encoders.files import FilesEncoder
from plip_jax.encoders.image_network import open_densenet, open_vit
from plip_jax.encoders.siglip import SiglipEncoder

ENCODERS: dict[str, Callable[..., BaselineEncoder]] = {
    "clip": ClipEncoder.open,
    "siglip": SiglipEncoder,
    "vit": open_vit,
    "densenet": open_densenet,
    "files": FilesEncoder,
}
"""Kind -> what opens it: (path, `OpenOptions`, name) -> encoder."""

_KIND = re.compile(r"([A-Za-z][\w-]*):(?!//)(.*)", re.DOTALL)


def open_encoder(source: str | Path, *, name: str = "", **options: Any) -> BaselineEncoder:
    """Open any model.

    Args:
        source: ``KIND:PATH`` with a key of `ENCODERS`; without a kind a CLIP.
        name: its own in tables; made from the path by default.
        options: fields of `OpenOptions`.

    Raises:
        SourceError: an unknown kind, or nothing there that is such a model.
        ValueError: damaged files, or files that do not fit each other.
    """
    kind, path = split_source(str(source))
    return ENCODERS[kind](path, OpenOptions(**options), name=name)


def split_source(source: str) -> tuple[str, str]:
    """Kind and path of a source.

    Raises:
        SourceError: an unknown kind; the known ones are listed.
    """
    found = _KIND.fullmatch(source)
    # A folder whose name has a colon in it, and the drive of a Windows path, are no kinds.
    if found is None or (found[1] not in ENCODERS and (Path(source).exists() or len(found[1]) == 1)):
        return "clip", source
    if found[1] not in ENCODERS:
        near = difflib.get_close_matches(found[1], ENCODERS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise SourceError(f"{source}: unknown kind of encoder {found[1]!r}{hint}; known: {', '.join(ENCODERS)}")
    if not found[2]:
        raise SourceError(f"{source}: expected a path or hub id behind {found[1]}:")
    return found[1], found[2]
