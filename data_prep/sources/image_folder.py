"""Any folder of images as a stream of `Post`: captions from files beside them or from their names.

The images folder of the posts is the folder itself. Ids are hashes of the paths: names of files are ids of patients
often enough, and ids are given away. Links to folders are not followed; hidden files and folders are
not looked into.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.sources.fields import MalformedError, expect_mapping, expect_text, hashed_id, identifier
from data_prep.sources.post import Drop, Media, Post

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SIDECAR_SUFFIXES = (".txt", ".caption", ".json")  # the first that is there
CAPTIONS = ("sidecar", "file_name", "sidecar_or_file_name")
"""Where captions come from; see `FolderSettings`."""
LABELS = ("none", "folder")
"""Where labels come from; see `FolderSettings`."""

_MAX_SIDECAR_BYTES = 2**20  # ours; what is longer is no caption


class FolderError(ValueError):
    """The folder cannot be read as it is asked for; the message says what was found and what to do."""


@dataclasses.dataclass(frozen=True)
class FolderSettings:
    """Where captions and labels come from.

    Attributes:
        caption: One of `CAPTIONS`. A sidecar is a file of the image's name with `.txt` or `.caption` (the text) or
            `.json` (its field `caption`) in place of its suffix. A file name has `_` and `-` turned into blanks.
        label: One of `LABELS`; "folder" takes the name of the folder that the image is in, if it is not the outermost.
        licence: Of all images; empty where it is not known.
    """

    caption: str = "sidecar"
    label: str = "none"
    licence: str = ""

    def __post_init__(self) -> None:
        """Check the choices.

        Raises:
            FolderError: A setting is not one of those listed.
        """
        for name, value, known in (("caption", self.caption, CAPTIONS), ("label", self.label, LABELS)):
            if value not in known:
                raise FolderError(f"{name}={value!r}: expected one of {', '.join(known)}")


def read_posts(folder: Path, settings: FolderSettings, *, source: str) -> Iterator[Post | Drop]:
    """Read the images of a folder and the folders in it, in the order of their paths.

    Args:
        folder: The outermost.
        settings: Of this reader.
        source: Name of the source, for the posts.

    Yields:
        A `Post` for each image file, whose id is a hash of its path in the folder; a `Drop` for a name that cannot be
        written, and for a sidecar that is damaged. Whether a file is an image is found out later.

    Raises:
        FolderError: No such folder.
    """
    if not folder.is_dir():
        raise FolderError(f"{folder}: expected a folder of images, found no such folder")
    for path in _image_files(folder):
        relative = path.relative_to(folder)
        name = identifier(relative.as_posix())
        if not name or name != relative.as_posix():
            yield Drop("unreadable_name", f"a file in {folder.name}", detail="too long, or not in printable UTF-8")
            continue
        try:
            caption = _sidecar_text(path) if settings.caption != "file_name" else ""
        except MalformedError as error:
            yield Drop("malformed", f"sidecar of {name}", hashed_id(name), str(error))
            continue
        if not caption and settings.caption != "sidecar":
            caption = re.sub(r"[\s_-]+", " ", path.stem).strip()
        yield Post(
            id=hashed_id(name),
            media=(Media(path=name),),
            captions=(caption,) if caption else (),
            source=source,
            where=name,
            licence=settings.licence,
            label=path.parent.name if settings.label == "folder" and path.parent != folder else "",
        )


def _image_files(folder: Path) -> Iterator[Path]:
    """Yield the image files, in an order that is the same on every machine."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(root, name)


def _sidecar_text(image: Path) -> str:
    """Return the text beside an image; empty where there is none.

    Raises:
        MalformedError: It is too long, not UTF-8, or JSON without a caption.
    """
    for path in (image.with_suffix(suffix) for suffix in SIDECAR_SUFFIXES):
        if path.is_file():
            break
    else:
        return ""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_SIDECAR_BYTES + 1)
        if len(data) > _MAX_SIDECAR_BYTES:
            raise MalformedError(f"more than {_MAX_SIDECAR_BYTES} bytes")
        text = data.decode("utf-8-sig")
        if path.suffix == ".json":
            text = expect_text(expect_mapping(json.loads(text), "JSON").get("caption"), "caption")
    except OSError as error:
        raise MalformedError(f"cannot be read: {error.strerror}") from error
    except MalformedError:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"not UTF-8, or not JSON ({type(error).__name__})") from error
    return text.strip()
