"""Tables of figures of articles and books (PubMed, ARCH and their like) as a stream of `Post`.

A row is an image with its caption: a figure, or one lettered part of it. Figures of one article stay together
(`group_id`); where no article is named, the parts of one figure do.

The columns are those of ARCH (`figure_id`, `letter`, `caption`, `uuid`; Gamper and Rajpoot 2021, CVPR) and names that
other tables use; each setting lists the names that are tried, in order, whatever their case, blanks, `_` and `-`.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.seen_ids import SeenIds
from data_prep.sources.fields import MalformedError, expect_cell, hashed_id, identifier, web_address
from data_prep.sources.post import Drop, Media, Post
from data_prep.sources.tabular import Row, cell, read_rows


@dataclasses.dataclass(frozen=True)
class FigureSettings:
    """Which columns hold what; an empty tuple reads none.

    Attributes:
        id: Unique id of the image. Where there is none: article, figure and letter, joined by "-", or else a hash of
            the image's name.
        article: The article or book; what no split may cut.
        figure: The figure in its article.
        letter: The part of the figure.
        caption: The text.
        image: File name, relative to the images folder.
        url: Address of the image, used where the row names no file.
        licence: Of the figure.
        image_suffix: Put behind a file name that has no suffix, e.g. ".png" for ARCH's books, whose images are named
            by `uuid`; empty to leave the name as it is.
    """

    id: tuple[str, ...] = ("uuid", "id", "image_id")
    article: tuple[str, ...] = ("article_id", "pmcid", "pmid", "article", "book", "doi")
    figure: tuple[str, ...] = ("figure_id", "figure", "fig_id", "figure_number")
    letter: tuple[str, ...] = ("letter", "subfigure", "panel", "label")
    caption: tuple[str, ...] = ("caption", "text")
    image: tuple[str, ...] = ("image", "file_name", "image_path", "file", "path", "uuid")
    url: tuple[str, ...] = ("url", "image_url", "link")
    licence: tuple[str, ...] = ("licence", "license")
    image_suffix: str = ""


def read_posts(path: Path, settings: FigureSettings, *, source: str) -> Iterator[Post | Drop]:
    """Read a table of figures (`tabular` names the formats).

    Args:
        path: The table.
        settings: Of this reader.
        source: Name of the source, for the posts.

    Yields:
        A `Post` for each row, and a `Drop` for one that is malformed.

    Raises:
        TableError: The table cannot be read, or has no column for the caption or the image.
    """
    needs = {"caption": settings.caption, "image or its address": (*settings.image, *settings.url)}
    seen = SeenIds()
    for found in read_rows(path, needs):
        if isinstance(found, Drop):
            yield found
            continue
        where, row = found
        try:
            post = _post(row, settings, source=source, where=where)
        except MalformedError as error:
            yield Drop("malformed", where, detail=str(error))
            continue
        copies = 1
        while not seen.add(post.id if copies == 1 else f"{post.id}#{copies}"):
            copies += 1
        yield post if copies == 1 else dataclasses.replace(post, id=f"{post.id}#{copies}")


def _post(row: Row, settings: FigureSettings, *, source: str, where: str) -> Post:
    def text(names: tuple[str, ...], what: str) -> str:
        value: Any = cell(row, names)
        return expect_cell(value, what)

    article, figure = text(settings.article, "article"), text(settings.figure, "figure")
    parts = (article, figure, text(settings.letter, "letter"))
    image, url = text(settings.image, "image"), text(settings.url, "url")
    given = text(settings.id, "id") or "-".join(part for part in parts if part)
    name = identifier(given or (hashed_id(image) if image else ""))
    if not name:
        raise MalformedError("id: expected one, or an article, a figure or a file name")
    if image and settings.image_suffix and not Path(image).suffix:
        image += settings.image_suffix
    if not image and not web_address(url):
        raise MalformedError("image: expected a file name or a web address")
    caption = text(settings.caption, "caption")
    return Post(
        id=name,
        media=(Media(path=image) if image else Media(url=web_address(url)),),
        captions=(caption,) if caption else (),
        source=source,
        where=where,
        licence=text(settings.licence, "licence"),
        group_id=article or figure,
    )
