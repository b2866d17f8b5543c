"""Which posts and authors a platform says are gone, whichever of its dumps says so.

A deletion counts for all sources of its platform, and so does an author's leaving, or hiding of all posts. What undoes
one (`undrop`, `user_undelete`) does not: dumps come in no order, and what was once withdrawn stays out.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from data_prep.curation.conversations import drop_post
from data_prep.curation.pair import Decision
from data_prep.sources.post import Post

NOTICES = ("deletion", "departure")
"""Kinds of posts that say that something is gone; they give no pairs and end in the threads."""


@dataclasses.dataclass(frozen=True)
class Deletions:
    """What is gone on one platform.

    Attributes:
        posts: Ids, those of first versions among them.
        authors: Keyed hashes of those who left.
        hidden_authors: Of those who show their posts to some only.
    """

    posts: frozenset[str] = frozenset()
    authors: frozenset[str] = frozenset()
    hidden_authors: frozenset[str] = frozenset()


def find_deletions(posts: Iterable[Post], platforms: Mapping[str, str]) -> dict[str, Deletions]:
    """Find what is gone on each platform.

    Args:
        posts: Of all sources, authors hashed. They are passed through once; only ids and hashes of what is gone, and
            ids of edited posts, are held.
        platforms: Source to platform; a source without platforms of its own is one by itself.

    Returns:
        Platform to what is gone there; platforms without deletions are left out.
    """
    gone: dict[str, set[str]] = {}
    authors: dict[tuple[str, bool], set[str]] = {}
    first: dict[tuple[str, str], str] = {}
    for post in posts:
        platform = platforms[post.source]
        if post.kind == "deletion":
            gone.setdefault(platform, set()).add(post.id)
        elif post.kind == "departure" and post.author:
            authors.setdefault((platform, post.withheld), set()).add(post.author)
        elif post.first_version:
            first[platform, post.id] = post.first_version
    return {
        platform: Deletions(
            frozenset(
                one for post_id in gone.get(platform, ()) for one in (post_id, first.get((platform, post_id))) if one
            ),
            frozenset(authors.get((platform, False), ())),
            frozenset(authors.get((platform, True), ())),
        )
        for platform in sorted({*gone, *(platform for platform, _ in authors)})
    }


def judge_gone(post: Post, deletions: Deletions) -> Post | Decision:
    """End a post that is gone ("deleted"), mark one whose author hides all posts as withheld, and keep any other.

    Notices are kept: the threads count them.
    """
    if post.kind in NOTICES:
        return post
    if {post.id, post.first_version} & deletions.posts or post.author in deletions.authors:
        return drop_post(post, "deleted")
    return dataclasses.replace(post, withheld=True) if post.author in deletions.hidden_authors else post
