"""IPATH's own release (Zenodo record 14278846) as a stream of `Post`: a table of captions beside a folder of images.

The record's columns are not written down anywhere that we know of. So each setting lists names that are tried in order,
whatever their case, blanks, `_` and `-`, and the error for a table that has none of them lists what it has.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from data_prep.sources.fields import MalformedError, expect_cell, find_hashtags, hashed_id, identifier, web_address
from data_prep.sources.post import Drop, Media, Post
from data_prep.sources.tabular import Row, cell, read_rows

_WEB = ("http://", "https://")


@dataclasses.dataclass(frozen=True)
class IpathSettings:
    """Which columns hold what (ours, see the module); an empty tuple reads none.

    Attributes:
        image: File, relative to the images folder, or a web address.
        caption: The text.
        id: Unique id; a hash of the image's name where there is none.
        group: What no split may cut: the Instagram post of several images.
        licence: The text of the field `licence` of all posts; that of the record, as Zenodo shows it.
    """

    image: tuple[str, ...] = (
        "image",
        "image_path",
        "filename",
        "file",
        "image_name",
        "img",
        "path",
        "image_url",
        "url",
    )
    caption: tuple[str, ...] = ("caption", "captions", "text", "description", "title")
    id: tuple[str, ...] = ("id", "image_id", "index")
    group: tuple[str, ...] = ("post_id", "shortcode", "post", "post_url", "permalink")
    licence: str = ""


def read_posts(path: Path, settings: IpathSettings, *, source: str) -> Iterator[Post | Drop]:
    """Read the table (`tabular` names the formats).

    Args:
        path: The table.
        settings: Of this reader.
        source: Name of the source, for the posts.

    Yields:
        A `Post` for each row, and a `Drop` for one that is malformed.

    Raises:
        TableError: The table cannot be read, or has no column for the image or the caption.
    """
    for found in read_rows(path, {"image": settings.image, "caption": settings.caption}):
        if isinstance(found, Drop):
            yield found
            continue
        where, row = found
        try:
            yield _post(row, settings, source=source, where=where)
        except MalformedError as error:
            yield Drop("malformed", where, detail=str(error))


def _post(row: Row, settings: IpathSettings, *, source: str, where: str) -> Post:
    image = expect_cell(cell(row, settings.image), "image")
    is_web = image.lower().startswith(_WEB)
    name = identifier(expect_cell(cell(row, settings.id), "id")) or (hashed_id(image) if image else "")
    if not image or not name or (is_web and not web_address(image)):
        raise MalformedError("image: expected a file name or a web address")
    caption = expect_cell(cell(row, settings.caption), "caption")
    return Post(
        id=name,
        media=(Media(url=image) if is_web else Media(path=image),),
        captions=(caption,) if caption else (),
        source=source,
        where=where,
        hashtags=find_hashtags(caption),
        licence=settings.licence,
        group_id=expect_cell(cell(row, settings.group), "group"),
    )
