"""What runs through the pipeline behind the sources: an image-text pair, and the decision about it.

A pair starts with what its post said; each stage fills its own fields with `dataclasses.replace` and keeps the pair, or
ends it with a `Decision`. Authors are keyed hashes from here on. The raw text is kept for provenance in the work folder
and goes into no output.
"""

import dataclasses

STAGES = ("source", "thread", "text", "hydrate", "image", "gate", "verdict", "duplicate", "split")
"""In the order of the pipeline. A pair that passes all of them is kept."""

KEPT = "kept"
"""In place of a stage, of what is kept."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and a text about it.

    Attributes:
        id: "SOURCE:POST_ID:MEDIA_KEY", with the id of the post whose text it is; unique in the dataset.
        source: What the funnel counts by and the record's field `source`: "twitter", "twitter_reply", "laion" ...
        post_id: Of the post whose text it is, in its source.
        image_post_id: Of the post whose image it is; differs from `post_id` where a reply describes the image.
        media_key: Of the image in its post.
        conversation_id: "SOURCE:ID" of the thread; the post's own where it has none.
        author: Keyed hash of the author of the text, hexadecimal; empty where nobody is named.
        image_author: The same of the author of the image.
        created_at: Of the post whose text it is, "2021-03-04T05:06:07Z"; empty where it is not known.
        permalink: Page of the post whose text it is.
        url: Where the image comes from; empty for a local file.
        path: File of the image, relative to the images folder of its source; empty for a URL.
        licence: Of the image and the text; "unknown" where the source says that nobody knows.
        raw_text: As posted. For provenance only.
        language: The platform's judgement of the text, or "".
        hashtags: Of the post whose text it is, without the sign, as written.
        label: Class name, where a table says so.
        given_group: What a table says must stay together; empty where it says nothing.
        safety: The source's score of being unsafe, 0-1; None where there is none.
        caption: The cleaned text; empty until the stage `text`.
        text_notes: What cleaning found (counts of what was masked, the language), flat and JSON-able.
        digest: sha256 of the image's bytes as fetched, hexadecimal; empty until the stage `hydrate`.
        clean_digest: sha256 of the stored, stripped image; empty until the stage `image`.
        width: Of the stripped image, pixels.
        height: Likewise.
        phash: 64-bit perceptual hash, 16 hexadecimal digits.
        scores: Of the gates, by name.
        duplicate_group: The least id of the pairs whose images are copies of each other; empty until `duplicate`.
        group_id: What no split may cut, "g" and 16 hexadecimal digits; empty until `split`.
        split: Name of the split; empty until `split`.
    """

    id: str
    source: str
    post_id: str
    image_post_id: str
    media_key: str
    conversation_id: str = ""
    author: str = ""
    image_author: str = ""
    created_at: str = ""
    permalink: str = ""
    url: str = ""
    path: str = ""
    licence: str = ""
    raw_text: str = ""
    language: str = ""
    hashtags: tuple[str, ...] = ()
    label: str = ""
    given_group: str = ""
    safety: float | None = None
    caption: str = ""
    text_notes: dict[str, int | float | str] = dataclasses.field(default_factory=dict)
    digest: str = ""
    clean_digest: str = ""
    width: int = 0
    height: int = 0
    phash: str = ""
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    duplicate_group: str = ""
    group_id: str = ""
    split: str = ""


@dataclasses.dataclass(frozen=True)
class Decision:
    """Where a post or a pair ended, and why.

    Attributes:
        unit: "post" (it gave no pair) or "pair".
        id: Of the pair; of the post as "SOURCE:POST_ID"; of what could not be read "SOURCE:" and a keyed hash of its
            place, which may name a person or point to what must not be found.
        source: What the funnel counts by.
        stage: One of `STAGES`, or `KEPT`.
        reason: One of a few words, e.g. "repost", "too_short"; empty where it is kept.
        detail: What was found, for a person. Never the text of a post, nor a name.
        pair: The pair as far as it came; None for a post.
        post_id: Of a post that gave no pair (a pair has its own).
        author: Likewise.
        permalink: Likewise.
        where: Place in the source, for the work folder only; empty where nothing may point to it.
    """

    unit: str
    id: str
    source: str
    stage: str
    reason: str = ""
    detail: str = ""
    pair: Pair | None = None
    post_id: str = ""
    author: str = ""
    permalink: str = ""
    where: str = ""


def drop(pair: Pair, stage: str, reason: str, detail: str = "") -> Decision:
    """End a pair at a stage."""
    return Decision("pair", pair.id, pair.source, stage, reason, detail, pair)
