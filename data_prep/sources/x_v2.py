"""X (Twitter) API v2: pages of a search or lookup, posts flattened by twarc, and compliance results.

The three are told apart by what an object holds, so a file may mix them. Posts that are only referred to
(`includes.tweets`, or inlined) are posts too: the image that a reply is about may be nowhere else.
Fields: https://docs.x.com/x-api/fundamentals/data-dictionary.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.sources import x_post
from data_prep.sources.json_lines import read_documents
from data_prep.sources.post import Drop, Media, Post
from data_prep.sources.x_post import mapping, mappings

_GONE_PROBLEMS = ("resource-not-found", "not-authorized-for-resource")


@dataclasses.dataclass(frozen=True)
class XV2Settings:
    """This format leaves nothing to choose."""


@dataclasses.dataclass(frozen=True)
class _Page:
    """What the posts of a page share: media by key, and the ids of the authors whose posts are protected."""

    media: dict[str, dict[str, Any]]
    protected: frozenset[str]
    source: str


def read_posts(path: Path, settings: XV2Settings | None = None, *, source: str) -> Iterator[Post | Drop]:
    """Read a file of v2 objects, one by one or as lists.

    Args:
        path: See `read_documents`.
        settings: None to set.
        source: Name of the source, for the posts.

    Yields:
        A `Post` per post, and one of the kind "deletion" per post that the platform says is gone, and "departure"
        per author who is gone or protected; a `Drop` for what is no post ("not_a_post", "api_error") or broken
        ("malformed", "truncated").
    """
    del settings
    yield from x_post.once(_read_file(path, source=source))


def _read_file(path: Path, *, source: str) -> Iterator[Post | Drop]:
    for item in read_documents(path):
        if isinstance(item, Drop):
            yield item
        else:
            yield from _read_object(item[1], source=source, where=item[0])


def _read_object(document: dict[str, Any], *, source: str, where: str) -> Iterator[Post | Drop]:
    if {"data", "includes", "errors", "meta"} & document.keys():
        yield from _read_page(document, source=source, where=where)
    elif event := x_post.read_event(document, source=source, where=where):
        yield event
    elif "text" in document:
        yield from _read_flat(document, source=source, where=where)
    else:
        yield Drop("not_a_post", where, detail="neither a page, nor a post, nor an event")


def _read_page(page: dict[str, Any], *, source: str, where: str) -> Iterator[Post | Drop]:
    includes = mapping(page.get("includes"))
    users = mappings(includes.get("users"))
    shared = _Page(
        media={x_post.text(one.get("media_key")): one for one in mappings(includes.get("media"))},
        protected=frozenset(x_post.identity(one.get("id")) for one in users if one.get("protected") is True) - {""},
        source=source,
    )
    for number, author in enumerate(sorted(shared.protected), 1):
        yield x_post.departure(author, source=source, where=f"{where} protected user {number}", hides=True)
    data = page.get("data")
    if isinstance(data, dict) and (event := x_post.read_event(data, source=source, where=where)):
        yield event
        data = None
    for name, tweets in (("post", data), ("included post", includes.get("tweets"))):
        tweets = [] if tweets is None else tweets if isinstance(tweets, list) else [tweets]
        for number, tweet in enumerate(tweets, 1):
            yield _read_tweet(tweet, shared, f"{where} {name} {number}")
    for number, problem in enumerate(mappings(page.get("errors")), 1):
        yield _read_problem(problem, source=source, where=f"{where} error {number}")


def _read_problem(problem: dict[str, Any], *, source: str, where: str) -> Post | Drop:
    """Read an entry of `errors`; its own words are left out, since they hold names."""
    kind = x_post.text(problem.get("type")).rpartition("/")[2]
    if problem.get("resource_type") == "tweet" and kind in _GONE_PROBLEMS:
        return x_post.deletion(problem.get("resource_id") or problem.get("value"), source=source, where=where)
    return Drop("api_error", where, detail=kind if kind.replace("-", "").isalpha() else "")


def _read_flat(tweet: dict[str, Any], *, source: str, where: str) -> Iterator[Post | Drop]:
    """Read a post that has its author, its media and the posts it refers to inside."""
    media = mappings(mapping(tweet.get("attachments")).get("media"))
    author = mapping(tweet.get("author"))
    author_id = x_post.identity(tweet.get("author_id")) or x_post.identity(author.get("id"))
    shared = _Page(
        media={x_post.text(one.get("media_key")): one for one in media},
        protected=frozenset([author_id] if author.get("protected") is True else []) - {""},
        source=source,
    )
    for protected in shared.protected:
        yield x_post.departure(protected, source=source, where=f"{where} author", hides=True)
    yield _read_tweet({**tweet, "author_id": author_id}, shared, where)
    for number, reference in enumerate(mappings(tweet.get("referenced_tweets")), 1):
        if "text" in reference:
            yield from _read_flat(reference, source=source, where=f"{where} reference {number}")


def _read_tweet(tweet: Any, shared: _Page, where: str) -> Post | Drop:
    if not isinstance(tweet, dict):
        return Drop("malformed", where, detail=f"expected a post, got {type(tweet).__name__}")
    post_id = x_post.identity(tweet.get("id"))
    if not post_id or not isinstance(tweet.get("text"), str):
        return Drop("malformed", where, post_id, detail="a post without " + ("text" if post_id else "id"))
    versions = x_post.texts(tweet.get("edit_history_tweet_ids"))
    versions = versions if len(versions) > 1 and post_id in versions else [post_id]
    note = mapping(tweet.get("note_tweet"))  # a post of more than 280 characters; `text` is its beginning
    hashtags = mapping(note.get("entities") or tweet.get("entities")).get("hashtags")
    conversation = x_post.identity(tweet.get("conversation_id"))
    kind, reply_to = _kind(tweet, conversation, versions)
    author = x_post.identity(tweet.get("author_id"))
    return Post(
        id=post_id,
        media=_media(tweet, shared),
        captions=(x_post.text(note.get("text")) or tweet["text"],),
        source=shared.source,
        where=where,
        kind=kind,
        conversation_id=conversation,
        reply_to=reply_to,
        author=author,
        created_at=x_post.utc(tweet.get("created_at"), post_id),
        first_version=versions[0] if len(versions) > 1 else "",
        version=versions.index(post_id),
        language=x_post.language(tweet.get("lang")),
        likes=x_post.count(mapping(tweet.get("public_metrics")).get("like_count")),
        sensitive=tweet.get("possibly_sensitive") is True,
        withheld=bool(tweet.get("withheld")) or author in shared.protected,
        hashtags=tuple(tag for one in mappings(hashtags) if (tag := x_post.text(one.get("tag")))),
        permalink=x_post.permalink(post_id),
    )


def _kind(tweet: dict[str, Any], conversation: str, versions: list[str]) -> tuple[str, str]:
    """Return the kind of a post and the id of the one it answers or repeats.

    A reply that also quotes is a reply. Where the dump has no `referenced_tweets`, the conversation tells a reply (to
    an unknown post), and where it has no conversation either, the user that is answered does.
    """
    references = {x_post.text(one.get("type")): one for one in mappings(tweet.get("referenced_tweets"))}
    if "retweeted" in references:
        return "repost", x_post.identity(references["retweeted"].get("id"))
    if "replied_to" in references:
        return "reply", x_post.identity(references["replied_to"].get("id"))
    if "quoted" in references:
        return "quote", ""
    if conversation:
        return ("original" if conversation in versions else "reply"), ""
    return ("reply" if tweet.get("in_reply_to_user_id") else "original"), ""


def _media(tweet: dict[str, Any], shared: _Page) -> tuple[Media, ...]:
    """Return the media in the author's order; one that the page does not describe is a photo without an address."""
    attachments = mapping(tweet.get("attachments"))
    inlined = [one.get("media_key") for one in mappings(attachments.get("media"))]
    media = []
    for key in dict.fromkeys(x_post.texts(attachments.get("media_keys")) or x_post.texts(inlined)):
        one = shared.media.get(key, {})
        media.append(
            Media(
                key=key,
                url=x_post.text(one.get("url")) or x_post.text(one.get("preview_image_url")),
                kind=x_post.MEDIA_KINDS.get(x_post.text(one.get("type")), "photo"),
                alt_text=x_post.text(one.get("alt_text")),
            )
        )
    return tuple(media)
