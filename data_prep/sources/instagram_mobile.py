"""Instagram's mobile API (and the web's since 2022) as a stream of `Post`: feeds, hashtag sections, single posts.

Ids, keys, versions and what is not read are those of `instagram`: a post found in both formats is one post.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.sources.fields import (
    MalformedError,
    count,
    expect_list,
    expect_mapping,
    expect_text,
    find_hashtags,
    find_keys,
    identifier,
    utc_time,
    web_address,
    whole_number,
)
from data_prep.sources.instagram import caption_version, is_covered, permalink, shortcode_of
from data_prep.sources.json_lines import read_documents
from data_prep.sources.post import Drop, Media, Post

LISTS = ("items", "ranked_items", "medias", "fill_items", "feed_items")
WRAPPERS = ("media", "media_or_ad")

_PHOTO, _VIDEO, _CAROUSEL = 1, 2, 8  # media_type


@dataclasses.dataclass(frozen=True)
class InstagramMobileSettings:
    """There is nothing to choose."""


def read_posts(path: Path, settings: InstagramMobileSettings, *, source: str) -> Iterator[Post | Drop]:
    """Read a file of responses, or of single posts: one JSON document, or one a line.

    Args:
        path: The file, which may be compressed.
        settings: Of this reader.
        source: Name of the source, for the posts.

    Yields:
        A `Post` for each item, and a `Drop` for what is malformed, or a response without a list of posts.
    """
    del settings
    for document in read_documents(path):
        if isinstance(document, Drop):
            yield document
            continue
        where, response = document
        yield from _read_response(response, source=source, where=where)


def _read_response(value: dict[str, Any], *, source: str, where: str) -> Iterator[Post | Drop]:
    if not {"media_type", "image_versions2", "carousel_media"}.isdisjoint(value):
        yield from read_item(value, source=source, where=where)
        return
    found = False
    for name, items in find_keys(value, (*LISTS, *WRAPPERS)):
        found = True
        if name in WRAPPERS:
            yield from read_item(items, source=source, where=f"{where} {name}")
        elif not isinstance(items, list):
            yield Drop("malformed", where, detail=f"{name}: expected a list")
        else:
            for place, item in enumerate(items):
                yield from read_item(item, source=source, where=f"{where} {name}[{place}]")
    if not found:
        yield Drop("no_posts", where, detail=f"expected one of {', '.join((*LISTS, *WRAPPERS))}")


def read_item(item: Any, *, source: str, where: str) -> Iterator[Post | Drop]:
    """Read one post, bare or under `media`.

    Args:
        item: Parsed JSON, of any kind.
        source: Name of the source.
        where: Place of the item.

    Yields:
        At most one `Post`; a `Drop` instead of it, and one for each image of it that is malformed.
    """
    code = ""
    try:
        item = expect_mapping(item, "item")
        for name in WRAPPERS:
            if name in item:
                item = expect_mapping(item[name], name)
                break
        code = identifier(item.get("code")) or shortcode_of(item.get("pk")) or shortcode_of(item.get("id"))
        if not code:
            raise MalformedError("code and pk: expected a text or a number")
        children: list[Any] = []
        if item.get("media_type") == _CAROUSEL:
            children = expect_list(item.get("carousel_media"), "carousel_media")
        media = [] if children else [_media(item, "0")]
        caption, captioned_at = _caption(item)
    except MalformedError as error:
        yield Drop("malformed", where, code, str(error))
        return
    for place, child in enumerate(children):
        try:
            media.append(_media(expect_mapping(child, "child"), str(place)))
        except MalformedError as error:
            yield Drop("malformed_media", f"{where} child {place}", code, str(error))
    hidden = item.get("like_and_view_counts_disabled") is True
    yield Post(
        id=code,
        media=tuple(media),
        captions=(caption,) if caption else (),
        source=source,
        where=where,
        author=_author(item),
        created_at=utc_time(item.get("taken_at")),
        version=caption_version(item.get("taken_at"), captioned_at, item.get("caption_is_edited")),
        likes=None if hidden else count(item.get("like_count")),
        sensitive=is_covered(item),
        hashtags=find_hashtags(caption),
        permalink=permalink(code),
    )


def _media(item: dict[str, Any], key: str) -> Media:
    kind = item.get("media_type", _PHOTO)
    if kind == _VIDEO:
        versions = item.get("video_versions")
        url = _largest_url(versions) if isinstance(versions, list) else ""
        return Media(key, url, kind="video")
    if isinstance(kind, bool) or kind not in (_PHOTO, _CAROUSEL):
        raise MalformedError("media_type: expected 1, 2 or 8")
    versions = expect_mapping(item.get("image_versions2"), "image_versions2")
    url = _largest_url(expect_list(versions.get("candidates"), "image_versions2.candidates"))
    if not url:
        raise MalformedError("image_versions2.candidates: none has a web address")
    return Media(key, url)


def _largest_url(candidates: list[Any]) -> str:
    """Return the address of the candidate of the most pixels, the first of several; empty where none has one."""
    best, best_pixels = "", -1
    for candidate in candidates:
        if not isinstance(candidate, dict):
            continue
        url = web_address(candidate.get("url"))
        pixels = (whole_number(candidate.get("width")) or 0) * (whole_number(candidate.get("height")) or 0)
        if url and pixels > best_pixels:
            best, best_pixels = url, pixels
    return best


def _caption(item: dict[str, Any]) -> tuple[str, Any]:
    """Return the caption and its time; empty and None where the post has none."""
    if item.get("caption") is None:
        return "", None
    caption = expect_mapping(item["caption"], "caption")
    return expect_text(caption.get("text"), "caption.text"), caption.get("created_at")


def _author(item: dict[str, Any]) -> str:
    for owner in (item.get("user"), item.get("owner")):
        if isinstance(owner, dict):
            for name in ("pk", "id", "username"):
                if author := identifier(owner.get(name)):
                    return author
    return ""
