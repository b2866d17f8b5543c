"""Which conversation a post belongs to, and which of several copies of a post counts.

A format without conversations (API v1.1) says only what a reply answers, and a deletion says nothing but an id; both
get their conversation from the other posts of the dump, so that a whole conversation can be looked at together.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

from data_prep.curation.pair import Decision
from data_prep.curation.rows import encode_row
from data_prep.sources.post import Post

_CONTENT_DIGITS = 16  # 64 bits: of those that share an id, hardly ever a hundred


def conversation_of(post: Post) -> str:
    """Return what the posts of a conversation share; a post without one has its own."""
    return post.conversation_id or post.first_version or post.id


def find_conversations(posts: Iterable[Post]) -> dict[str, str]:
    """Find the conversation of each post of a source.

    Where a post does not state it, it is that of the post it answers, of another version or copy of it, or the topmost
    id that the chain of answers leads to. Only ids are held, some 500 bytes a post.

    Returns:
        Id of the post to its conversation, for the posts whose `conversation_of` is another one. The order of the
        posts does not matter.
    """
    first: dict[str, str] = {}  # id of a version to that of the first one
    stated: dict[str, str] = {}
    parents: dict[str, str] = {}
    own: dict[str, set[str]] = {}
    for post in posts:
        own.setdefault(post.id, set()).add(conversation_of(post))
        # of contradicting copies the least counts, so that their order does not
        for known, value in ((first, post.first_version), (stated, post.conversation_id), (parents, post.reply_to)):
            if value:
                known[post.id] = min(value, known.get(post.id, value))
    for known in (stated, parents):
        of_versions = {version: known[version] for version in first if version in known}
        for version, value in of_versions.items():
            known[first[version]] = min(value, known.get(first[version], value))
    found: dict[str, str] = {}
    for post_id in own:
        _follow(first.get(post_id, post_id), first, stated, parents, found)
    conversations = {post_id: found[first.get(post_id, post_id)] for post_id in own}
    return {post_id: conversation for post_id, conversation in conversations.items() if own[post_id] != {conversation}}


def _follow(post_id: str, first: dict[str, str], stated: dict[str, str], parents: dict[str, str], found: dict) -> None:
    """Put the conversation of a post, and of all on the way up from it, into `found`."""
    way: dict[str, None] = {}
    while post_id not in found:
        if post_id in way:  # answers that go round in a circle, in a broken dump
            circle = list(way)[list(way).index(post_id) :]
            found[post_id] = min(circle)
        elif post_id in stated:
            found[post_id] = stated[post_id]
        elif post_id not in parents:
            found[post_id] = post_id
        else:
            way[post_id] = None
            post_id = first.get(parents[post_id], parents[post_id])
    found.update(dict.fromkeys(way, found[post_id]))


def tell_apart(posts: Iterable[Post]) -> list[Post]:
    """Give posts of one id and different contents further ids; for sources whose ids mean something in one file only.

    Of the posts of an id the first by place keeps it, with all that repeat it; behind that of another stand "#" and a
    hash of its content. So the order of the posts does not matter, nor does a further file change ids that are there
    already, if its name sorts behind theirs.

    Args:
        posts: Of one source; all that have an id must be among them.

    Returns:
        The posts, in another order.
    """
    by_id: dict[str, list[Post]] = {}
    for post in posts:
        by_id.setdefault(post.id, []).append(post)
    told = []
    for group in by_id.values():
        group.sort(key=lambda post: (post.where, encode_row(post)))
        contents = [_content(post) for post in group]
        for post, content in zip(group, contents, strict=True):
            told.append(post if content == contents[0] else dataclasses.replace(post, id=f"{post.id}#{content}"))
    return told


def _content(post: Post) -> str:
    """Return a hash of what makes a post of a table another one: its images, its texts and its role."""
    content = Post("", post.media, post.captions, role=post.role)
    return hashlib.sha256(encode_row(content).encode()).hexdigest()[:_CONTENT_DIGITS]


def newest_versions(posts: Sequence[Post]) -> tuple[dict[str, Post], list[Decision]]:
    """Choose one post among the versions and copies of each.

    Args:
        posts: Of a conversation.

    Returns:
        Every id that a post has or had, with the post that counts; and a decision for each post that does not,
        "deleted" (with "deletion_notice" for the notices), "superseded" by a later version, or "repeated".
    """
    edited = sorted((post for post in posts if post.first_version), key=_order)
    first = {post.id: post.first_version for post in edited}
    groups: dict[str, list[Post]] = {}
    for post in posts:
        groups.setdefault(first.get(post.id, post.id), []).append(post)
    chosen: dict[str, Post] = {}
    decisions = []
    for group_id, group in groups.items():
        newest, dropped = newest_version(group)
        decisions.extend(dropped)
        if newest:
            chosen.update(dict.fromkeys([group_id, *(post.id for post in group)], newest))
    return chosen, decisions


def newest_version(posts: Sequence[Post]) -> tuple[Post | None, list[Decision]]:
    """Choose among the versions and copies of one post; see `newest_versions`.

    Of copies of the newest version the one that tells most counts (a post that is only referred to comes without the
    addresses of its images); it is sensitive or withheld where one of them says so, and has the most likes of any.
    """
    if len(posts) == 1 and posts[0].kind != "deletion":
        return posts[0], []
    if any(post.kind == "deletion" for post in posts):
        reasons = {True: "deletion_notice", False: "deleted"}
        return None, [drop_post(post, reasons[post.kind == "deletion"]) for post in posts]
    *others, best = sorted(posts, key=_order)
    copies = [post for post in posts if post.version == best.version]
    newest = dataclasses.replace(
        best,
        sensitive=any(post.sensitive for post in copies),
        withheld=any(post.withheld for post in copies),
        likes=max((post.likes for post in copies if post.likes is not None), default=None),
    )
    reasons = {True: "superseded", False: "repeated"}
    return newest, [drop_post(post, reasons[post.version < best.version]) for post in others]


def drop_post(post: Post, reason: str, detail: str = "") -> Decision:
    """End a post that gives no pair."""
    return Decision(
        unit="post",
        id=f"{post.source}:{post.id}",
        source=post.source,
        stage="thread",
        reason=reason,
        detail=detail,
        post_id=post.id,
        author=post.author,
        permalink=post.permalink,
        where=post.where,
    )


def _order(post: Post) -> tuple[int, int, int, int, str]:
    """Order versions, and copies of a version by how much they tell, in the end by anything that differs."""
    addresses = sum(bool(one.url or one.path) for one in post.media)
    told = sum(value not in ("", (), None) for value in dataclasses.asdict(post).values())
    return post.version, addresses, told, -1 if post.likes is None else post.likes, encode_row(post)
