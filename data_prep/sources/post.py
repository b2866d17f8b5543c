"""The common record of every raw source: a post with its images and texts, before anything is fetched or judged."""

import dataclasses

KINDS = ("original", "reply", "quote", "repost", "deletion", "departure")
"""Of posts; see `Post`."""
MEDIA_KINDS = ("photo", "video", "animation")
"""Of media; see `Media`."""
UNSAFE_REASONS = ("unsafe_score", "no_safety_score")
"""Reasons of drops that are counted and nothing more: their places would lead to what they were dropped for."""


@dataclasses.dataclass(frozen=True)
class Media:
    """One image (or video) of a post.

    Attributes:
        key: Unique in the post: the platform's media key, or the place ("0", "1", ...).
        url: Where to get it; empty where there is a path.
        path: File, relative to the source's images folder; empty where there is a URL.
        kind: One of `MEDIA_KINDS`.
        alt_text: What the author wrote for those who cannot see it; no caption.
    """

    key: str = "0"
    url: str = ""
    path: str = ""
    kind: str = "photo"
    alt_text: str = ""


@dataclasses.dataclass(frozen=True)
class Post:
    """A post, a row of a table or a figure, as a source tells it.

    Attributes:
        id: Unique in the source.
        media: Its images, in the author's order.
        captions: Texts about its images; one in a social post, raw; may be empty or blank.
        source: Name of the source.
        where: Place in the source, for the report ("page3.json line 17").
        kind: One of `KINDS`. A `repost` repeats another's post; a `deletion` says that the post of this id is gone. A
            `departure` says that its author is gone, or, with `withheld`, hides all posts; its id is its place.
        conversation_id: What replies share with the post they answer; empty where the source has no threads.
        reply_to: Id of the post that is answered, or that a repost repeats, where that is known.
        author: The platform's id of the author (its name where there is no id). The first stage of the pipeline
            replaces it by a keyed hash; nothing behind that sees it.
        created_at: "2021-03-04T05:06:07Z", always UTC; empty where it is not known.
        first_version: Id of the first version of an edited post, which its versions share; empty where never edited.
        version: Grows with each edit; of several posts of one id or first version the greatest wins.
        language: The platform's own judgement, an ISO 639-1 code in lower case; empty or "und" where it has none.
        likes: None where it is not known.
        sensitive: The platform's flag.
        withheld: Not shown in some country, or by its owner's choice.
        hashtags: Without the sign, as written, in order.
        permalink: Page of the post.
        licence: What the source says; "unknown" is said, and empty is not known to us.
        role: What the pair is called in the dataset, where the source itself says so ("tweet", "reply", "laion").
        safety: The source's score of being unsafe, 0-1 (LAION's punsafe); None where there is none.
        group_id: What must stay on one side of a split, where a table says so.
        label: Class name, where a table says so.
    """

    id: str
    media: tuple[Media, ...] = ()
    captions: tuple[str, ...] = ()
    source: str = ""
    where: str = ""
    kind: str = "original"
    conversation_id: str = ""
    reply_to: str = ""
    author: str = ""
    created_at: str = ""
    first_version: str = ""
    version: int = 0
    language: str = ""
    likes: int | None = None
    sensitive: bool = False
    withheld: bool = False
    hashtags: tuple[str, ...] = ()
    permalink: str = ""
    licence: str = ""
    role: str = ""
    safety: float | None = None
    group_id: str = ""
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Drop:
    """Something that is left out of the dataset, and why.

    Attributes:
        reason: One of a few words that the report counts by, e.g. "missing_file".
        where: Place in the source.
        id: Its id, when that much was readable.
        detail: What was found, for a person. Never the text of a post, nor a name.
    """

    reason: str
    where: str
    id: str = ""
    detail: str = ""
