"""From the posts of a conversation to pairs: which posts count, and which reply describes an image.

A post that counts pairs its images with its own text; the most-liked reply gives each of them a second pair (PLIP,
Nature Medicine 2023, Methods). Nothing here depends on the order of the posts. What a text is worth is the next
stage's business, so a post with an image and no text still gives a pair. Which version of a post counts, and what
makes a conversation, is in `conversations`.
"""

import dataclasses
import datetime
import re
from collections.abc import Iterable, Mapping, Sequence

from data_prep.curation.conversations import conversation_of, drop_post, newest_versions
from data_prep.curation.pair import Decision, Pair, drop
from data_prep.sources.post import Media, Post

ROLES = {"tweet": "{}", "reply": "{}_reply", "laion": "laion"}
"""What the funnel calls a pair by the role that the source gives the post; other roles change nothing."""

_HASHTAG = re.compile(r"[#\uff03](\w+)")
_CHOICES = {"quotes": ("keep", "drop"), "replies": ("most_liked", "none"), "reply_scope": ("direct", "conversation")}


class ThreadSettingsError(ValueError):
    """A setting has a value that is not known; the message names those that are."""


@dataclasses.dataclass(frozen=True)
class ThreadSettings:
    """Which posts count.

    Attributes:
        start_date: First day in UTC, "2006-03-21" (PLIP); empty for no limit. A post whose date is not known is
            outside as soon as there is a limit.
        end_date: Last day in UTC, itself included, "2022-11-15" (PLIP); empty for no limit.
        hashtags: A post that is no reply needs one of these, without the sign, in any case; none are needed where
            this is empty. PLIP's are in `configs/data/openpath.py`.
        drop_sensitive: Leave out what the platform flags (PLIP).
        drop_withheld: Leave out what is not shown in some country or by its owner's choice. Ours.
        drop_reposts: Leave out reposts (PLIP). They repeat another's text and images.
        quotes: "keep" takes a quote with an own image for an original, "drop" leaves it out. Ours.
        replies: "most_liked" (PLIP) or "none".
        reply_scope: "direct" lets a reply describe the image of the post that it answers; "conversation" also that of
            the nearest post above it with an image. PLIP does not say; ours is "direct".
        replies_need_hashtag: Hold replies to `hashtags` too. Ours.
        self_replies: An author's reply to an own post can be the most-liked one. Ours.
        min_reply_likes: Least likes of such a reply; where they are not known they count as 0. Ours.
        media_kinds: What counts as an image; a "video" or an "animation" has an address of its first frame. Ours.
    """

    start_date: str = ""
    end_date: str = ""
    hashtags: tuple[str, ...] = ()
    drop_sensitive: bool = True
    drop_withheld: bool = True
    drop_reposts: bool = True
    quotes: str = "keep"
    replies: str = "most_liked"
    reply_scope: str = "direct"
    replies_need_hashtag: bool = False
    self_replies: bool = True
    min_reply_likes: int = 0
    media_kinds: tuple[str, ...] = ("photo",)

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ThreadSettingsError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        for name in ("start_date", "end_date"):
            if (day := getattr(self, name)) and not _is_day(day):
                raise ThreadSettingsError(f"{name} is {day!r}, expected a day like '2022-11-15', or nothing")


def judge_post(post: Post, settings: ThreadSettings) -> str | None:
    """Return why a post does not count, or None.

    A reply counts without an image, and without a hashtag unless the settings ask for one: what it answers has them.
    An image of LAION has neither date nor hashtag, and needs none.
    """
    is_reply, is_social = post.kind == "reply", post.role != "laion"
    needs_hashtag = is_social and (settings.replies_need_hashtag or not is_reply)
    if post.kind in ("deletion", "departure"):
        return "deletion_notice"
    if post.kind == "repost" and settings.drop_reposts:
        return "repost"
    if post.sensitive and settings.drop_sensitive:
        return "sensitive"
    if post.withheld and settings.drop_withheld:
        return "withheld"
    if is_social and not _is_within(post.created_at[:10], settings):
        return "outside_dates"
    if post.kind == "quote" and settings.quotes == "drop":
        return "quote"
    if needs_hashtag and not _has_hashtag(post, settings.hashtags):
        return "no_hashtag"
    if not is_reply and not images_of(post, settings):
        return "no_image"
    return None


def pair_thread(posts: Sequence[Post], settings: ThreadSettings) -> tuple[list[Pair], list[Decision]]:
    """Make the pairs of a conversation.

    Replies that have an image pair with that one; the others describe the image of the post that they answer, if they
    are the most-liked of its replies. Of equally liked ones the earlier counts, then the one with the lesser id.

    Args:
        posts: All posts of one source with one `conversation_of` (see `find_conversations`), in any order; authors
            are hashed.
        settings: Which of them count.

    Returns:
        The pairs, and the decisions about posts that give none and about pairs whose image has no address, both by
        id. Every post is in at least one of these pairs, or in exactly one decision about a post.
    """
    newest, decisions = newest_versions(posts)
    judged = {post.id: post for post in newest.values()}
    reasons = {post_id: judge_post(post, settings) for post_id, post in judged.items()}
    pairs = []
    candidates: dict[str, list[Post]] = {}
    for post in judged.values():
        if reason := reasons[post.id]:
            decisions.append(drop_post(post, reason))
        elif images := images_of(post, settings):
            pairs += [pair for image in images for pair in _pairs(post, post, image, post.role or "tweet")]
        elif problem := _why_not(post, answered := _answered(post, newest, settings), reasons, settings):
            decisions.append(drop_post(post, *problem))
        elif answered:
            candidates.setdefault(answered.id, []).append(post)
    for answered_id, replies in candidates.items():
        best = min(replies, key=_most_liked_first)
        answered = newest[answered_id]
        pairs += [pair for image in images_of(answered, settings) for pair in _pairs(best, answered, image, "reply")]
        decisions += [drop_post(reply, "not_most_liked", f"{best.id} is") for reply in replies if reply is not best]
    decisions += [drop(pair, "thread", "no_address") for pair in pairs if not pair.url and not pair.path]
    pairs = [pair for pair in pairs if pair.url or pair.path]
    decisions.sort(key=lambda one: (one.id, one.reason, one.detail, one.author, one.permalink, one.where))
    return sorted(pairs, key=lambda pair: pair.id), decisions


def images_of(post: Post, settings: ThreadSettings) -> list[Media]:
    """Return the media of a post that count as images."""
    return [one for one in post.media if one.kind in settings.media_kinds]


def _answered(reply: Post, newest: Mapping[str, Post], settings: ThreadSettings) -> Post | None:
    """Return the post whose image a reply may describe, whether that counts or not; None where there is none."""
    seen = {reply.id}
    while (parent := newest.get(reply.reply_to)) and parent.id not in seen:
        if settings.reply_scope == "direct" or images_of(parent, settings):
            return parent
        seen.add(parent.id)
        reply = parent
    return None


def _why_not(
    reply: Post, answered: Post | None, reasons: Mapping[str, str | None], settings: ThreadSettings
) -> tuple[str, str] | None:
    """Return why a reply without an image cannot describe that of the post it answers, and a detail; or None."""
    if settings.replies == "none":
        return "reply", ""
    if answered is None:
        return "no_image_in_thread", "the post that it answers is not in the dump"
    if reason := reasons[answered.id]:
        return "no_image_in_thread", f"the post that it answers does not count: {reason}"
    if not images_of(answered, settings):
        return "no_image_in_thread", "the post that it answers has no image"
    if not any(caption.strip() for caption in reply.captions):
        return "no_text", ""
    if not settings.self_replies and reply.author and reply.author == answered.author:
        return "self_reply", ""
    if (reply.likes or 0) < settings.min_reply_likes:
        return "too_few_likes", f"{reply.likes or 0} of {settings.min_reply_likes}"
    return None


def _most_liked_first(reply: Post) -> tuple[int, str, int, str]:
    # an unknown date is later than all others; ids of one length are compared as numbers
    return -(reply.likes or 0), reply.created_at or "~", len(reply.id), reply.id


def _pairs(text: Post, image: Post, media: Media, role: str) -> Iterable[Pair]:
    """Yield the pairs of an image with the texts of a post: its own, or a reply."""
    pair_id = f"{text.source}:{text.id}:{media.key}"
    for number, caption in enumerate(text.captions or ("",), 1):
        yield Pair(
            id=pair_id if number == 1 else f"{pair_id}#{number}",
            source=ROLES.get(role, "{}").format(text.source),
            post_id=text.id,
            image_post_id=image.id,
            media_key=media.key,
            conversation_id=f"{text.source}:{conversation_of(image)}",
            author=text.author,
            image_author=image.author,
            created_at=text.created_at,
            permalink=text.permalink,
            url=media.url,
            path=media.path,
            licence=image.licence or text.licence,
            raw_text=caption,
            language=text.language,
            hashtags=text.hashtags,
            label=image.label,
            given_group=image.group_id,
            safety=image.safety,
        )


def _has_hashtag(post: Post, wanted: Iterable[str]) -> bool:
    tags = post.hashtags or [tag for caption in post.captions for tag in _HASHTAG.findall(caption)]
    wanted = {tag.removeprefix("#").casefold() for tag in wanted}
    return not wanted or any(tag.casefold() in wanted for tag in tags)


def _is_within(day: str, settings: ThreadSettings) -> bool:
    """Compare days as texts: they are all "YYYY-MM-DD" in UTC, and an unknown one is empty."""
    if not day:
        return not settings.start_date and not settings.end_date
    return settings.start_date <= day <= (settings.end_date or day)


def _is_day(day: str) -> bool:
    try:
        return datetime.date.fromisoformat(day).isoformat() == day
    except ValueError:
        return False
