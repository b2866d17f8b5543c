"""Reddit's submissions (dumps of JSON lines such as Pushshift's, and the API's listings) as a stream of `Post`.

The images are, in this order: those of the gallery, in its order; those put into the text; the linked image; the image
of Reddit's preview of the link. Captions of single gallery images and comments are not read. A submission that was
removed, or deleted with or without its author's account, is a deletion, and nothing else of it is taken.
"""

import dataclasses
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_prep.sources.fields import (
    MalformedError,
    count,
    expect_text,
    find_hashtags,
    identifier,
    utc_time,
    web_address,
    whole_number,
)
from data_prep.sources.json_lines import read_documents
from data_prep.sources.post import Drop, Media, Post

CAPTIONS = ("title", "title_and_text")
"""What a caption is made of; see `RedditSettings`."""
GONE = ("[deleted]", "[removed]", "[deleted by user]")

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_METADATA_KINDS = {"Image": "photo", "AnimatedImage": "animation", "RedditVideo": "video"}


class RedditError(ValueError):
    """A setting cannot be used; the message says what is expected."""


@dataclasses.dataclass(frozen=True)
class RedditSettings:
    """What of a submission is taken.

    Attributes:
        caption: One of `CAPTIONS`; both have a blank line between title and text.
        preview: Take Reddit's preview where a link is no image itself. It is then the linked page's image.
    """

    caption: str = "title_and_text"
    preview: bool = True

    def __post_init__(self) -> None:
        """Check the choice.

        Raises:
            RedditError: The setting `caption` is none of `CAPTIONS`.
        """
        if self.caption not in CAPTIONS:
            raise RedditError(f"caption={self.caption!r}: expected one of {', '.join(CAPTIONS)}")


def read_posts(path: Path, settings: RedditSettings, *, source: str) -> Iterator[Post | Drop]:
    """Read a dump.

    Args:
        path: One JSON object a line, or a document; it may be compressed (`.zst` with Pushshift's long window too).
        settings: Of this reader.
        source: Name of the source, for the posts.

    Yields:
        A `Post` for each submission, and a `Drop` for what is malformed or no submission.
    """
    for document in read_documents(path):
        if isinstance(document, Drop):
            yield document
            continue
        where, value = document
        for place, submission in _submissions(value, where):
            yield from _read_submission(submission, settings, source=source, where=place)


def _submissions(value: dict[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Yield the submissions of a line or of a listing of the API."""
    data = value.get("data") if "kind" in value else None
    if not isinstance(data, dict):
        yield where, value
    elif isinstance(data.get("children"), list):
        for place, child in enumerate(data["children"]):
            yield f"{where} children[{place}]", child.get("data") if isinstance(child, dict) else None
    else:
        yield where, data


def _read_submission(value: Any, settings: RedditSettings, *, source: str, where: str) -> Iterator[Post | Drop]:
    if not isinstance(value, dict):
        yield Drop("malformed", where, detail="expected an object")
        return
    name = identifier(value.get("id")) or identifier(value.get("name")).removeprefix("t3_")
    if not name:
        yield Drop("malformed", where, detail="id: expected a text")
        return
    if "title" not in value and ("body" in value or "link_id" in value):
        yield Drop("not_a_submission", where, name)
        return
    try:
        if _is_gone(value):
            yield Post(name, source=source, where=where, kind="deletion")
            return
        caption = _caption(value, settings)
    except MalformedError as error:
        yield Drop("malformed", where, name, str(error))
        return
    media: list[Media] = []
    for found in _media(value, settings):
        if isinstance(found, Media):
            media.append(found)
        else:
            yield Drop("malformed_media", where, name, found)
    link = value.get("permalink")
    yield Post(
        id=name,
        media=tuple(media),
        captions=(caption,) if caption else (),
        source=source,
        where=where,
        kind="repost" if value.get("crosspost_parent") or value.get("crosspost_parent_list") else "original",
        author=identifier(value.get("author_fullname")) or identifier(value.get("author")),
        created_at=utc_time(_seconds(value.get("created_utc"))),
        version=_version(value.get("edited")),
        likes=count(value.get("score")),
        sensitive=value.get("over_18") is True,
        hashtags=find_hashtags(caption),
        permalink=web_address(f"https://www.reddit.com{link}") if isinstance(link, str) and link[:1] == "/" else "",
    )


def _is_gone(value: dict[str, Any]) -> bool:
    return bool(value.get("removed_by_category")) or any(
        value.get(name) in GONE for name in ("author", "title", "selftext")
    )


def _caption(value: dict[str, Any], settings: RedditSettings) -> str:
    title = expect_text(value.get("title"), "title").strip()
    text = "" if value.get("selftext") is None else expect_text(value["selftext"], "selftext").strip()
    return title if settings.caption == "title" else "\n\n".join(part for part in (title, text) if part)


def _seconds(value: Any) -> Any:
    """Return a time of the API as a number of seconds; dumps before 2018 have it in digits."""
    return whole_number(value) if isinstance(value, str) else value


def _version(edited: Any) -> int:
    """Return the time of the last edit, seconds; 0 where there is none (`false`)."""
    number = whole_number(edited)
    return number if number is not None and 0 < number < 2**40 else 0


def _media(value: dict[str, Any], settings: RedditSettings) -> Iterator[Media | str]:
    """Yield the images, and what is wrong with those that cannot be had."""
    metadata = value.get("media_metadata")
    if isinstance(metadata, dict) and metadata:
        yield from _described_media(value, metadata)
        return
    if value.get("is_video") is True:
        yield Media(kind="video")
        return
    linked = web_address(html.unescape(_text(value.get("url_overridden_by_dest")) or _text(value.get("url"))))
    if linked and (kind := _kind_of_link(linked, value.get("post_hint"))):
        yield Media(url=linked, kind=kind)
    elif settings.preview and (preview := _preview_url(value.get("preview"))):
        yield Media(url=preview)


def _described_media(value: dict[str, Any], metadata: dict[str, Any]) -> Iterator[Media | str]:
    """Yield the images of a gallery, or, where there is none, those put into the text."""
    gallery = value.get("gallery_data")
    items = gallery.get("items") if isinstance(gallery, dict) else None
    if isinstance(items, list):
        keys = [item.get("media_id") if isinstance(item, dict) else None for item in items]
    else:
        keys = list(metadata)
    for place, key in enumerate(dict.fromkeys(key for key in keys if isinstance(key, str))):
        described = metadata.get(key)
        kind = _METADATA_KINDS.get(_text(described.get("e")), "") if isinstance(described, dict) else ""
        shown = described.get("s") if isinstance(described, dict) else None
        addresses = (shown.get("u"), shown.get("gif"), shown.get("mp4")) if isinstance(shown, dict) else ()
        url = next(filter(None, (web_address(html.unescape(_text(one))) for one in addresses)), "")
        if kind and identifier(key) == key and (url or kind == "video"):
            yield Media(key, url, kind=kind)
        else:
            yield f"image {place}: media_metadata has no address of it"  # its status is "failed" or "unprocessed"
    if missing := sum(not isinstance(key, str) for key in keys):
        yield f"{missing} items of gallery_data without a media_id"


def _kind_of_link(url: str, hint: Any) -> str:
    """Return the kind of the image or video that an address leads to; empty where it leads to a page."""
    try:
        address = urlsplit(url)
        suffix = re.search(r"\.\w+$", address.path)
        is_image_host = address.hostname == "i.redd.it"
    except ValueError:  # brackets that hold no IPv6 address
        return ""
    ending = suffix.group().lower() if suffix else ""
    if ending in (".gifv", ".mp4", ".webm"):
        return "video"
    if ending == ".gif":
        return "animation"
    return "photo" if ending in _IMAGE_SUFFIXES or is_image_host or hint == "image" else ""


def _preview_url(preview: Any) -> str:
    images = preview.get("images") if isinstance(preview, dict) else None
    first = images[0] if isinstance(images, list) and images else None
    shown = first.get("source") if isinstance(first, dict) else None
    return web_address(html.unescape(_text(shown.get("url")))) if isinstance(shown, dict) else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
