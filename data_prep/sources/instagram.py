"""Instagram's web pages (GraphQL) as a stream of `Post`: hashtag and profile listings, and pages of single posts.

Owns the node of a post, which `instaloader` shares. The id of a post is its shortcode in all of Instagram's formats,
and the key of an image its place in the carousel. Two formats are two sources all the same: what they both hold are two
posts until the stage `duplicate` finds that their images are copies; only a deletion counts for both.

What is not read: comments (they are no replies with images); `accessibility_caption`, in which nobody can tell the
author's words from those that Instagram's classifier makes, author's name included. A listing may hold a carousel
without its children: then its first image is there, in `display_url`.

Edits: the formats hold the newest caption only, and a post may have been crawled twice. `Post.version` is the seconds
from the post to its caption where the caption has a time of its own, and at least 1 where it is flagged as edited.
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
from data_prep.sources.json_lines import read_documents
from data_prep.sources.post import Drop, Media, Post

LISTS = ("edge_hashtag_to_media", "edge_hashtag_to_top_posts", "edge_owner_to_timeline_media")
SINGLES = ("shortcode_media", "xdt_shortcode_media")  # the page of one post, before and since 2024

_TYPES = {"GraphImage": "photo", "GraphSidecar": "carousel", "GraphVideo": "video"}
_SHORTCODE_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@dataclasses.dataclass(frozen=True)
class InstagramSettings:
    """There is nothing to choose."""


def read_posts(path: Path, settings: InstagramSettings, *, source: str) -> Iterator[Post | Drop]:
    """Read a file of pages: one JSON document, or one a line.

    Args:
        path: The file, which may be compressed.
        settings: Of this reader.
        source: Name of the source, for the posts.

    Yields:
        A `Post` for each node, and a `Drop` for what is malformed, no post, or a page without a list of posts.
    """
    del settings
    for document in read_documents(path):
        if isinstance(document, Drop):
            yield document
            continue
        where, page = document
        found = False
        for name, value in find_keys(page, (*LISTS, *SINGLES)):
            found = True
            yield from _read_found(name, value, source=source, where=where)
        if not found:
            yield Drop("no_posts", where, detail=f"expected one of {', '.join((*LISTS, *SINGLES))}")


def _read_found(name: str, value: Any, *, source: str, where: str) -> Iterator[Post | Drop]:
    if name in SINGLES:
        yield from read_node(value, source=source, where=f"{where} {name}")
        return
    if isinstance(value, dict) and "count" in value and "edges" not in value:
        return  # a page of another kind tells only how many there are
    try:
        nodes = _edge_nodes(value, name)
    except MalformedError as error:
        yield Drop("malformed", where, detail=str(error))
        return
    for place, node in enumerate(nodes):
        yield from read_node(node, source=source, where=f"{where} {name}[{place}]")


def read_node(node: Any, *, source: str, where: str) -> Iterator[Post | Drop]:
    """Read the node of one post.

    Args:
        node: Parsed JSON, of any kind.
        source: Name of the source.
        where: Place of the node.

    Yields:
        At most one `Post`; a `Drop` instead of it, and one for each image of it that is malformed.
    """
    shortcode = ""
    try:
        node = expect_mapping(node, "node")
        shortcode = identifier(node.get("shortcode")) or shortcode_of(node.get("id"))
        if not shortcode:
            raise MalformedError("shortcode: expected a text")
        kind = _post_kind(node)
        if not kind:
            yield Drop("not_a_post", where, shortcode, f"__typename is none of {', '.join(_TYPES)}")
            return
        children = _children(node) if kind == "carousel" else []
        media = [] if children else [_media(node, "0", kind)]
        caption, captioned_at = _caption(node)
    except MalformedError as error:
        yield Drop("malformed", where, shortcode, str(error))
        return
    for place, child in enumerate(children):
        try:
            child = expect_mapping(child, "child")
            media.append(_media(child, str(place), _post_kind(child)))
        except MalformedError as error:
            yield Drop("malformed_media", f"{where} child {place}", shortcode, str(error))
    owner = node.get("owner")
    yield Post(
        id=shortcode,
        media=tuple(media),
        captions=(caption,) if caption else (),
        source=source,
        where=where,
        author=(identifier(owner.get("id")) or identifier(owner.get("username"))) if isinstance(owner, dict) else "",
        created_at=utc_time(node.get("taken_at_timestamp")),
        version=caption_version(node.get("taken_at_timestamp"), captioned_at, node.get("caption_is_edited")),
        likes=_likes(node),
        sensitive=is_covered(node),
        hashtags=find_hashtags(caption),
        permalink=permalink(shortcode),
    )


def shortcode_of(number: Any) -> str:
    """Return the shortcode of a post's number: its digits in base 64; empty where it is no number.

    Args:
        number: As a number, in digits, or as the mobile API's "NUMBER_USER".
    """
    whole = whole_number(number.split("_")[0]) if isinstance(number, str) else whole_number(number)
    if whole is None or not 0 < whole < 2**64:
        return ""
    digits = ""
    while whole:
        whole, digit = divmod(whole, 64)
        digits = _SHORTCODE_DIGITS[digit] + digits
    return digits


def permalink(shortcode: str) -> str:
    """Return the page of a post."""
    return f"https://www.instagram.com/p/{shortcode}/"


def caption_version(taken_at: Any, captioned_at: Any, edited: Any) -> int:
    """Return a number that grows with the edits of a caption, from times in seconds that may be missing."""
    first, last = whole_number(taken_at), whole_number(captioned_at)
    seconds = last - first if first is not None and last is not None else 0
    return max(seconds if 0 < seconds < 2**40 else 0, 1 if edited is True else 0)


def is_covered(node: dict[str, Any]) -> bool:
    """Say whether Instagram hides a post behind a warning of sensitive content."""
    return bool(node.get("sensitivity_friction_info") or node.get("media_overlay_info"))


def _post_kind(node: dict[str, Any]) -> str:
    """Return "photo", "video" or "carousel"; empty where the node is something else."""
    name = node.get("__typename")
    if name is None:  # pages before 2018 have none
        return "video" if node.get("is_video") is True else "photo"
    return _TYPES.get(name.removeprefix("XDT"), "") if isinstance(name, str) else ""


def _children(node: dict[str, Any]) -> list[Any]:
    value = node.get("edge_sidecar_to_children")
    return [] if value is None else _edge_nodes(value, "edge_sidecar_to_children")


def _media(node: dict[str, Any], key: str, kind: str) -> Media:
    url = web_address(node.get("display_url"))
    if kind == "video":
        return Media(key, web_address(node.get("video_url")) or url, kind="video")
    if not url or not kind:
        raise MalformedError("display_url: expected a web address" if kind else "__typename: not that of an image")
    return Media(key, url)


def _caption(node: dict[str, Any]) -> tuple[str, Any]:
    """Return the caption and its time; empty and None where the post has none."""
    name = "edge_media_to_caption"
    nodes = _edge_nodes(node[name], name) if name in node else []
    if not nodes:
        return "", None
    first = expect_mapping(nodes[0], f"{name}.edges[0].node")
    return expect_text(first.get("text"), f"{name}.edges[0].node.text"), first.get("created_at")


def _likes(node: dict[str, Any]) -> int | None:
    for name in ("edge_media_preview_like", "edge_liked_by"):
        value = node.get(name)
        if isinstance(value, dict) and (likes := count(value.get("count"))) is not None:
            return likes
    return None


def _edge_nodes(value: Any, name: str) -> list[Any]:
    """Return the nodes of the edges of a connection; None for an edge that holds none."""
    edges = expect_list(expect_mapping(value, name).get("edges"), f"{name}.edges")
    return [edge.get("node") if isinstance(edge, dict) else None for edge in edges]
