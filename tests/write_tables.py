"""Writes posts as Reddit's dumps have them, and tables as LAION's are: the inverse of the readers."""

import datetime
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from data_prep.sources.post import Post


def reddit_submission(post: Post) -> dict[str, Any]:
    """One submission; its caption's first line is the title, what stands behind a blank line the text."""
    if post.kind == "deletion":
        return {"id": post.id, "title": "A title", "selftext": "[deleted]", "author": "[deleted]"}
    title, _, text = post.captions[0].partition("\n\n")
    submission: dict[str, Any] = {
        "id": post.id,
        "name": f"t3_{post.id}",
        "title": title,
        "selftext": text,
        "author": "someone",
        "author_fullname": post.author,
        "created_utc": int(datetime.datetime.fromisoformat(post.created_at).timestamp()),
        "edited": post.version or False,
        "score": post.likes,
        "over_18": post.sensitive,
        "subreddit": "pathology",
        "permalink": post.permalink.removeprefix("https://www.reddit.com"),
        "removed_by_category": None,
        "num_comments": 3,
    }
    if post.kind == "repost":
        submission["crosspost_parent"] = "t3_earlier"
    if len(post.media) == 1:
        submission |= {"post_hint": "image", "url": post.media[0].url, "url_overridden_by_dest": post.media[0].url}
    elif post.media:
        described = {
            one.key: {"status": "valid", "e": "Image", "m": "image/jpg", "s": {"u": html.escape(one.url)}}
            for one in sorted(post.media, key=lambda one: one.key)
        }
        items = [{"media_id": one.key, "id": number} for number, one in enumerate(post.media)]
        submission |= {"is_gallery": True, "media_metadata": described, "gallery_data": {"items": items}}
    return submission


def laion_table(path: Path, rows: Sequence[dict[str, Any]], *, group_rows: int = 4) -> Path:
    """A parquet file of rows with LAION's columns, a few rows a group; what a row lacks is null."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    pyarrow.parquet.write_table(table, path, row_group_size=group_rows)
    return path
