"""Instaloader's JSON files (`NAME.json`, `NAME.json.xz`) as a stream of `Post`.

A file holds one post: the node of Instagram's web pages under `node`, and what wrote it under `instaloader`. Images
that Instaloader fetched beside it (`NAME.jpg`; `NAME_1.jpg`, `NAME_2.jpg` ... of a carousel) are taken in place of
their addresses, which expire after some days; their paths are absolute, since each lies beside its own JSON file.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.sources.instagram import read_node
from data_prep.sources.json_lines import read_documents
from data_prep.sources.post import Drop, Media, Post

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclasses.dataclass(frozen=True)
class InstaloaderSettings:
    """What is taken from a folder that Instaloader wrote.

    Attributes:
        local_images: Take the image files that lie beside the JSON file, where they are there.
    """

    local_images: bool = True


def read_posts(path: Path, settings: InstaloaderSettings, *, source: str) -> Iterator[Post | Drop]:
    """Read a file of Instaloader's.

    Args:
        path: The file; it may hold several posts, a line each, and be compressed.
        settings: Of this reader.
        source: Name of the source, for the posts.

    Yields:
        A `Post`, and a `Drop` for what is malformed or no post (a profile, a hashtag, a story).
    """
    for document in read_documents(path):
        if isinstance(document, Drop):
            yield document
            continue
        where, value = document
        if "node" not in value:
            yield Drop("malformed", where, detail="expected an object with a node")
            continue
        written_by = value.get("instaloader")
        if isinstance(written_by, dict) and written_by.get("node_type", "Post") != "Post":
            yield Drop("not_a_post", where, detail="instaloader.node_type is not Post")
            continue
        for post in read_node(value["node"], source=source, where=where):
            if isinstance(post, Post) and settings.local_images:
                media = tuple(_with_file(one, path, alone=len(post.media) == 1) for one in post.media)
                post = dataclasses.replace(post, media=media)
            yield post


def _with_file(media: Media, path: Path, *, alone: bool) -> Media:
    """Return an image with its file beside the JSON file in place of its address, where there is one."""
    if media.kind != "photo":
        return media
    name = path.name.split(".json")[0]
    stems = [*([name] if alone else []), f"{name}_{int(media.key) + 1}"]
    for file in (path.parent / f"{stem}{suffix}" for stem in stems for suffix in _IMAGE_SUFFIXES):
        if file.is_file():
            return dataclasses.replace(media, url="", path=os.path.abspath(file))
    return media
