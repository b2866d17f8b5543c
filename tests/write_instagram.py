"""Writes posts as Instagram's web pages, its mobile API and Instaloader have them: the inverse of the readers."""

import datetime
from collections.abc import Sequence
from typing import Any

from data_prep.sources.post import Media, Post


def graphql_page(posts: Sequence[Post], *, hashtag: str = "dermpath") -> dict[str, Any]:
    """A page of a hashtag listing."""
    edges = [{"node": graphql_node(post)} for post in posts]
    listing = {"count": len(edges), "page_info": {"has_next_page": False, "end_cursor": None}, "edges": edges}
    return {"data": {"hashtag": {"id": "17843", "name": hashtag, "edge_hashtag_to_media": listing}}, "status": "ok"}


def graphql_node(post: Post) -> dict[str, Any]:
    """The node of one post; several images make it a carousel."""
    first = post.media[0]
    node: dict[str, Any] = {
        "__typename": "GraphSidecar" if len(post.media) > 1 else _typename(first),
        "shortcode": post.id,
        "edge_media_to_caption": {"edges": [_caption_edge(post)] if post.captions else []},
        "edge_media_to_comment": {"count": 2},
        "comments_disabled": False,
        "taken_at_timestamp": _seconds(post),
        "caption_is_edited": post.version > 0,
        "edge_media_preview_like": {"count": -1 if post.likes is None else post.likes},
        "owner": {"id": post.author},
        "accessibility_caption": "Photo by A. Person on March 04, 2021. May be an image of text.",
        "sensitivity_friction_info": {"title": "Sensitive content"} if post.sensitive else None,
        **_graphql_addresses(first),
    }
    if len(post.media) > 1:
        children = [{"__typename": _typename(one), **_graphql_addresses(one)} for one in post.media]
        node["edge_sidecar_to_children"] = {"edges": [{"node": child} for child in children]}
    return node


def instaloader_node(post: Post) -> dict[str, Any]:
    """What Instaloader writes about one post."""
    return {"node": graphql_node(post), "instaloader": {"version": "4.9.6", "node_type": "Post"}}


def mobile_page(posts: Sequence[Post]) -> dict[str, Any]:
    """A page of hashtag sections, three posts a row as the grid shows them."""
    rows = [posts[first : first + 3] for first in range(0, len(posts), 3)]
    sections = [
        {"layout_type": "media_grid", "layout_content": {"medias": [mobile_item(post) for post in row]}} for row in rows
    ]
    return {"sections": sections, "more_available": False, "status": "ok"}


def mobile_item(post: Post) -> dict[str, Any]:
    """One post as the mobile API has it, under `media`."""
    caption = {"text": post.captions[0], "created_at": _seconds(post) + post.version} if post.captions else None
    media: dict[str, Any] = {
        "pk": 2521112223334445556,
        "code": post.id,
        "taken_at": _seconds(post),
        "caption": caption,
        "caption_is_edited": post.version > 0,
        "like_count": post.likes or 0,
        "like_and_view_counts_disabled": post.likes is None,
        "user": {"pk": int(post.author), "username": "someone"},
        "media_overlay_info": {"title": "Sensitive content"} if post.sensitive else None,
    }
    if len(post.media) > 1:
        return {"media": media | {"media_type": 8, "carousel_media": [_mobile_media(one) for one in post.media]}}
    return {"media": media | _mobile_media(post.media[0])}


def _typename(media: Media) -> str:
    return "GraphVideo" if media.kind == "video" else "GraphImage"


def _graphql_addresses(media: Media) -> dict[str, Any]:
    if media.kind == "video":
        return {"is_video": True, "display_url": "https://cdn.example/still.jpg", "video_url": media.url}
    return {"is_video": False, "display_url": media.url}


def _mobile_media(media: Media) -> dict[str, Any]:
    stills = {
        "candidates": [
            {"width": 320, "height": 320, "url": "https://cdn.example/small.jpg"},
            {"width": 1080, "height": 1080, "url": media.url},
            {"width": 640, "height": 640, "url": "https://cdn.example/middle.jpg"},
        ]
    }
    if media.kind == "video":
        versions = [{"width": 720, "height": 720, "url": media.url}]
        return {"media_type": 2, "image_versions2": stills, "video_versions": versions}
    return {"media_type": 1, "image_versions2": stills}


def _caption_edge(post: Post) -> dict[str, Any]:
    return {"node": {"text": post.captions[0], "created_at": str(_seconds(post) + post.version)}}


def _seconds(post: Post) -> int:
    return int(datetime.datetime.fromisoformat(post.created_at).timestamp())
