"""The rules of a takedown: which rows go, and what the rows that stay must no longer say.

A request names posts, authors, addresses or images. What follows from it:

- The post goes, with every pair that has its text. Its images go, with every pair that shows them: also pairs of
  replies, whose text is another's, and every copy (same bytes, same perceptual hash, same duplicate group).
- A reply that is removed takes its own pairs along, not the image it was about: that stays with its author's own text,
  and goes where no other row shows it.
- A post goes too when nothing of it is left: all its images are removed, or all its pairs are; and a repost of a
  removed post, whose text it repeats.
- A post goes from all sources of its platform (`run_facts.read_platforms`): one may name an author, another not.
- A row that stays keeps no address or id of a removed one: its thread and its duplicate group get a salted pseudonym,
  on which the others of the thread or group still agree; addresses in texts and a decision's detail are blanked.

Rules see values only through `has(kind, value)`: plain sets while searching, salted hashes (`tombstones`)
while purging and in later runs. An empty value is never matched.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable

from data_prep.curation.pair import Decision, Pair
from data_prep.sources.post import Post
from plip_jax.data.records import Record

Has = Callable[[str, str], bool]
"""Says whether a value of a kind (`data_prep.removing.tombstones.KINDS`) is removed; False for the empty value."""
Pseudonym = Callable[[str, str], str]

TAKEDOWN = "takedown"
"""Reason of the decision that stands for a removed post."""

_URL = re.compile(r"https?://\S+")
_BETWEEN = re.compile(r"[\s,;()<>'\"]+")


def has_post(has: Has, source: str, post_id: str) -> bool:
    """Say whether a post is removed, by its source and id or by its id alone."""
    return bool(post_id) and (has("post", f"{source}:{post_id}") or has("post", f":{post_id}"))


def source_of(pair: Pair) -> str:
    """Return the source of a pair's posts, which its id begins with (`pair.source` may say "..._reply")."""
    source, found, _ = pair.id.partition(f":{pair.post_id}:")
    return source if found else pair.source


def post_goes(post: Post, has: Has) -> bool:
    """Say whether a post is removed: by id, an edited version's, that of what it reposts, author, page, all images."""
    return (
        has_post(has, post.source, post.id)
        or has_post(has, post.source, post.first_version)
        or has("author", post.author)
        or has("url", post.permalink)
        or (post.kind == "repost" and has_post(has, post.source, post.reply_to))
        or (bool(post.media) and all(has("url", media.url) for media in post.media))
    )


def text_goes(pair: Pair, has: Has) -> bool:
    """Say whether the text of a pair is removed."""
    return (
        has_post(has, source_of(pair), pair.post_id)
        or has_post(has, pair.source, pair.post_id)
        or has("author", pair.author)
        or has("url", pair.permalink)
    )


def is_about_others(post: Post) -> bool:
    """Say whether a post's images are another's: a table's row for a reply has the image that it was about."""
    return post.role == "reply"


def has_owner(pair: Pair) -> bool:
    """Say whether the post of a pair's image is its owner's, which it is but for such rows (`is_about_others`)."""
    return pair.image_post_id != pair.post_id or not pair.source.endswith("_reply")


def image_goes(pair: Pair, has: Has) -> bool:
    """Say whether the image of a pair is removed."""
    owned = has_owner(pair)
    return (
        (owned and has_post(has, source_of(pair), pair.image_post_id))
        or (owned and has("author", pair.image_author))
        or has("url", pair.url)
        or has("image", pair.digest)
        or has("image", pair.clean_digest)
        or has("phash", pair.phash)
    )


def pair_goes(pair: Pair, has: Has) -> bool:
    """Say whether a pair is removed."""
    return has("pair", pair.id) or text_goes(pair, has) or image_goes(pair, has)


def decision_goes(decision: Decision, has: Has) -> bool:
    """Say whether a decision is about something removed."""
    if decision.pair is not None:
        return pair_goes(decision.pair, has)
    return (
        has_post(has, decision.source, decision.post_id)
        or has("post", decision.id)
        or has("pair", decision.id)
        or has("author", decision.author)
        or has("url", decision.permalink)
    )


def record_goes(record: Record, has: Has) -> bool:
    """Say whether a record of a dataset is removed: by its id, that of its post in it, or its image.

    So it goes from a dataset whose rows the work folder no longer has.
    """
    parts = record.id.split(":")  # with more colons nobody can say where the post's id ends
    return (
        has("pair", record.id)
        or (len(parts) == 3 and has_post(has, parts[0], parts[1]))  # SOURCE:POST_ID:MEDIA_KEY
        or has("image", hashlib.sha256(record.image).hexdigest())
    )


def redact_post(post: Post, has: Has, pseudonym: Pseudonym) -> Post:
    """Return a post that stays, without what it says of removed ones."""

    def renamed(post_id: str) -> str:
        known = has_post(has, post.source, post_id)
        return pseudonym("post", f"{post.source}:{post_id}") if known else post_id

    return dataclasses.replace(
        post,
        media=tuple(media for media in post.media if not has("url", media.url)),
        captions=tuple(_redact_text(caption, post.source, has) for caption in post.captions),
        conversation_id=renamed(post.conversation_id),
        reply_to=renamed(post.reply_to),
    )


def redact_pair(pair: Pair, has: Has, pseudonym: Pseudonym) -> Pair:
    """Return a pair that stays, without what it says of removed ones.

    `group_id` stays, as it is in the records: what no split may cut must not change under the pairs that stay. It is a
    hash without salt of the least pair id of its group, so whoever knows the id of a removed pair can find out that it
    was the least of a group, and which of the others were in it. It tells the id to nobody who does not have it.
    """
    source = source_of(pair)
    thread_source, _, thread = pair.conversation_id.partition(":")
    in_removed_thread = has_post(has, thread_source, thread)
    return dataclasses.replace(
        pair,
        raw_text=_redact_text(pair.raw_text, source, has),
        caption=_redact_text(pair.caption, source, has),
        conversation_id=f"{thread_source}:{pseudonym('post', pair.conversation_id)}"
        if in_removed_thread
        else pair.conversation_id,
        duplicate_group=pseudonym("pair", pair.duplicate_group)
        if has("pair", pair.duplicate_group)
        else pair.duplicate_group,
    )


def redact_decision(decision: Decision, has: Has, pseudonym: Pseudonym) -> Decision:
    """Return a decision that stays, without what it says of removed posts and pairs."""
    pair = None if decision.pair is None else redact_pair(decision.pair, has, pseudonym)
    sources = {decision.source} if decision.pair is None else {decision.source, source_of(decision.pair)}
    named = any(names_removed(decision.detail, source, has) for source in sources)
    return dataclasses.replace(decision, pair=pair, detail="" if named else decision.detail)


def names_removed(text: str, source: str, has: Has) -> bool:
    """Say whether a line about rows (not a caption) names something removed, as a word or in the path of an address."""
    for word in _BETWEEN.split(text):
        word = word.strip(".")
        if any(has(kind, word) for kind in ("pair", "post", "url", "image", "phash")) or has_post(has, source, word):
            return True
        if any(has_post(has, source, part) for part in re.split(r"[/:?#=&]", word) if part != word):
            return True
    return False


def _redact_text(text: str, source: str, has: Has) -> str:
    def kept(found: re.Match[str]) -> str:
        return "" if names_removed(found.group(), source, has) else found.group()

    return _URL.sub(kept, text) if "://" in text else text
