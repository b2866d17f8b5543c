"""X (Twitter) API v1.1: lists of posts (REST), search results, and streams with their lines that are no posts.

Posts that are reposted or quoted are inlined and become posts too. Replies say which post they answer but not which
conversation they belong to; `data_prep.curation.conversations.find_conversations` finds that.
Fields: https://developer.x.com/en/docs/x-api/v1/data-dictionary/object-model/tweet.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.sources import x_post
from data_prep.sources.json_lines import read_documents
from data_prep.sources.post import Drop, Media, Post
from data_prep.sources.x_post import mapping, mappings

_MENTIONS = re.compile(r"(?:@\w+\s+)+")


@dataclasses.dataclass(frozen=True)
class XV1Settings:
    """How the text of a v1.1 post is taken.

    Attributes:
        strip_reply_mentions: Leave out the names that the platform puts before a reply and does not display
            (`display_text_range`). Ours.
    """

    strip_reply_mentions: bool = True


def read_posts(path: Path, settings: XV1Settings | None = None, *, source: str) -> Iterator[Post | Drop]:
    """Read a file of v1.1 objects: posts one by one or as lists, search results, and lines of a stream.

    Args:
        path: See `read_documents`.
        settings: The defaults where None.
        source: Name of the source, for the posts.

    Yields:
        A `Post` per post, and one of the kind "deletion" per post that the stream says is gone, and "departure" per
        author who is gone or protected; a `Drop` for what is no post ("not_a_post") or broken ("malformed",
        "truncated").
    """
    yield from x_post.once(_read_file(path, settings or XV1Settings(), source=source))


def _read_file(path: Path, settings: XV1Settings, *, source: str) -> Iterator[Post | Drop]:
    for item in read_documents(path):
        if isinstance(item, Drop):
            yield item
        else:
            yield from _read_object(item[1], settings, source=source, where=item[0])


def _read_object(document: dict[str, Any], settings: XV1Settings, *, source: str, where: str) -> Iterator[Post | Drop]:
    if isinstance(statuses := document.get("statuses"), list):
        for number, status in enumerate(statuses, 1):
            yield from _read_status(status, settings, source=source, where=f"{where} post {number}")
    elif "full_text" in document or "text" in document:
        yield from _read_status(document, settings, source=source, where=where)
    elif event := x_post.read_event(document, source=source, where=where):
        yield event
    else:
        yield Drop("not_a_post", where, detail="neither a search result, nor a post, nor an event")


def _read_status(status: Any, settings: XV1Settings, *, source: str, where: str) -> Iterator[Post | Drop]:
    """Read a post and, behind it, the post that it repeats or quotes."""
    if not isinstance(status, dict):
        yield Drop("malformed", where, detail=f"expected a post, got {type(status).__name__}")
        return
    post_id = x_post.identity(status.get("id_str")) or x_post.identity(status.get("id"))
    extended = mapping(status.get("extended_tweet"))  # of a stream: what is more than 140 characters
    texts = [one.get(name) for one in (extended, status) for name in ("full_text", "text")]
    if not post_id or not any(isinstance(one, str) for one in texts):
        yield Drop("malformed", where, post_id, detail="a post without " + ("text" if post_id else "id"))
        return
    written = next(one for one in texts if isinstance(one, str))
    kind, reply_to = _kind(status)
    if kind == "reply" and settings.strip_reply_mentions:
        written = _without_mentions(written, extended.get("display_text_range") or status.get("display_text_range"))
    user = mapping(status.get("user"))
    author = x_post.identity(user.get("id_str")) or x_post.identity(user.get("id"))
    is_protected = user.get("protected") is True
    if is_protected and author:
        yield x_post.departure(author, source=source, where=f"{where} user", hides=True)
    hashtags = mapping(extended.get("entities") or status.get("entities")).get("hashtags")
    yield Post(
        id=post_id,
        media=_media(status, extended),
        captions=(written,),
        source=source,
        where=where,
        kind=kind,
        reply_to=reply_to,
        author=author,
        created_at=x_post.utc(status.get("created_at"), post_id),
        language=x_post.language(status.get("lang")),
        likes=x_post.count(status.get("favorite_count")),
        sensitive=status.get("possibly_sensitive") is True,
        withheld=_is_withheld(status) or _is_withheld(user) or is_protected,
        hashtags=tuple(tag for one in mappings(hashtags) if (tag := x_post.text(one.get("text")))),
        permalink=x_post.permalink(post_id),
    )
    for name in ("retweeted_status", "quoted_status"):
        if status.get(name) is not None:
            yield from _read_status(status[name], settings, source=source, where=f"{where} {name}")


def _kind(status: dict[str, Any]) -> tuple[str, str]:
    """Return the kind of a post and the id of the one it answers or repeats; a reply that also quotes is a reply."""
    if (repeated := status.get("retweeted_status")) is not None:
        known = repeated if isinstance(repeated, dict) else {}
        return "repost", x_post.identity(known.get("id_str") or known.get("id"))
    replied = x_post.identity(status.get("in_reply_to_status_id_str") or status.get("in_reply_to_status_id"))
    if replied:
        return "reply", replied
    quotes = any(status.get(name) for name in ("quoted_status", "quoted_status_id_str", "quoted_status_id"))
    return ("quote" if quotes else "original"), ""


def _without_mentions(written: str, displayed: Any) -> str:
    """Return a reply from where it is displayed, if nothing but names stands before that."""
    start = displayed[0] if isinstance(displayed, list) and displayed else 0
    if isinstance(start, int) and 0 < start <= len(written) and _MENTIONS.fullmatch(written[:start]):
        return written[start:]
    return written


def _is_withheld(thing: dict[str, Any]) -> bool:
    return any(thing.get(name) for name in ("withheld_in_countries", "withheld_copyright", "withheld_scope"))


def _media(status: dict[str, Any], extended: dict[str, Any]) -> tuple[Media, ...]:
    """Return the media in the author's order; `entities` holds the first one only, and calls every kind a photo."""
    media: dict[str, Media] = {}
    for holder in (extended, status):
        for name in ("extended_entities", "entities"):
            for place, one in enumerate(mappings(mapping(holder.get(name)).get("media"))):
                key = x_post.identity(one.get("id_str")) or x_post.identity(one.get("id")) or str(place)
                media.setdefault(
                    key,
                    Media(
                        key=key,
                        url=x_post.text(one.get("media_url_https")) or x_post.text(one.get("media_url")),
                        kind=x_post.MEDIA_KINDS.get(x_post.text(one.get("type")), "photo"),
                        alt_text=x_post.text(one.get("ext_alt_text")),
                    ),
                )
            if media:
                return tuple(media.values())
    return ()
