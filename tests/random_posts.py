"""Posts of X at random, for the properties that its readers and the threads are tested by."""

import datetime

from hypothesis import strategies as st

from data_prep.sources.post import Media, Post

IDS = st.integers(100, 2**62).map(str)
DATES = st.datetimes(datetime.datetime(2006, 3, 21), datetime.datetime(2030, 1, 1)).map(
    lambda date: date.strftime("%Y-%m-%dT%H:%M:%SZ")
)
WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)


@st.composite
def x_posts(draw: st.DrawFn, *, versions: bool = True, conversations: bool = True) -> Post:
    """A post as the readers of X give it, without its place."""
    post_id = draw(IDS)
    permalink = f"https://x.com/i/web/status/{post_id}"
    kind = draw(st.sampled_from(["original", "original", "reply", "quote", "repost", "deletion"]))
    if kind == "deletion":
        return Post(post_id, source="x", kind="deletion", permalink=permalink)
    first_version, version = "", 0
    if versions and draw(st.booleans()):
        version = draw(st.integers(1, 3))
        first_version = str(int(post_id) - 50)
    keys = draw(st.lists(st.integers(10, 2**60).map(str), max_size=4, unique=True))
    media = tuple(
        Media(
            key=key,
            url=f"https://pbs.twimg.com/media/{key}.jpg",
            # made from the key: posts of a page that share one share its description
            kind=["photo", "photo", "video", "animation"][int(key) % 4],
            alt_text=["", "nests of cells"][int(key) % 3 % 2],
        )
        for key in keys
    )
    conversation = draw(IDS) if kind == "reply" else first_version or post_id
    return Post(
        id=post_id,
        media=media,
        # a text of more than 280 characters has another place in API v2
        captions=(draw(WORDS) * draw(st.sampled_from([1, 40])),),
        source="x",
        kind=kind,
        conversation_id=conversation if conversations else "",
        reply_to=draw(IDS) if kind in ("reply", "repost") else "",
        author=draw(IDS),
        created_at=draw(DATES),
        first_version=first_version,
        version=version,
        language=draw(st.sampled_from(["en", "es", "und", "ja"])),
        likes=draw(st.none() | st.integers(0, 10**6)),
        sensitive=draw(st.booleans()),
        withheld=draw(st.booleans()),
        hashtags=tuple(draw(st.lists(st.sampled_from(["GIpath", "dermpath", "日本"]), max_size=3))),
        permalink=permalink,
    )
