"""What the formats of X (Twitter) share: addresses, times, languages, and the events that are no posts.

The formats themselves are in `x_v2`, `x_v1` and `openpath_csv`.
"""

import datetime
from collections.abc import Iterator
from typing import Any

from data_prep.sources.post import Drop, Post

MEDIA_KINDS = {"photo": "photo", "video": "video", "animated_gif": "animation"}

_MAX_ID_DIGITS = 20  # of an unsigned integer of 64 bits
_FIRST_SNOWFLAKE = 30_000_000_000  # ids count milliseconds from 4 November 2010 on; smaller ones are serial numbers
_SNOWFLAKE_EPOCH_MS = 1_288_834_974_657  # twitter/snowflake, IdWorker.scala
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_OLD_LANGUAGES = {"in": "id", "iw": "he"}  # X writes codes that ISO 639 withdrew in 1989
_GONE_EVENTS = ("delete", "status_withheld", "withheld", "drop")  # a post that is withheld or dropped is not shown
_GONE_AUTHORS = {"user_delete": False, "user_suspend": False, "user_protect": True, "user_withheld": True}
_OTHER_EVENTS = (
    *("scrub_geo", "limit", "disconnect", "warning", "friends", "friends_str", "control", "event", "direct_message"),
    *("user_undelete", "user_unprotect", "user_unsuspend", "user_profile_modification"),
    *("undrop", "tweet_edit", "favorite_delete", "keep_alive"),
)


def permalink(post_id: str) -> str:
    """Return the page of a post; unlike the address in a browser it does not name the author."""
    return f"https://x.com/i/web/status/{post_id}"


def mapping(value: Any) -> dict[str, Any]:
    """Return a JSON object; an empty one where there is something else."""
    return value if isinstance(value, dict) else {}


def mappings(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a JSON list; an object by itself counts as a list of one."""
    return [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, dict)]


def texts(value: Any) -> list[str]:
    """Return the strings of a JSON list that are not empty."""
    return [entry for entry in (value if isinstance(value, list) else []) if isinstance(entry, str) and entry]


def text(value: Any) -> str:
    """Return a JSON string; an empty one where there is something else."""
    return value if isinstance(value, str) else ""


def identity(value: Any) -> str:
    """Return an id of X as its decimal digits; an empty string for what is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    value = text(value)
    return value if len(value) <= _MAX_ID_DIGITS and value.isascii() and value.isdigit() else ""


def count(value: Any) -> int | None:
    """Return a number of likes; None for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def language(code: Any) -> str:
    """Return X's judgement of the language as ISO 639-1, "und" where it found none ("qme": only media, "zxx" ...)."""
    code = text(code).lower().partition("-")[0]
    return _OLD_LANGUAGES.get(code, code if len(code) <= 2 else "und")


def utc(value: Any, post_id: str) -> str:
    """Return a time as "2021-03-04T05:06:07Z".

    Args:
        value: "2021-03-04T05:06:07.000Z" (v2) or "Thu Mar 04 05:06:07 +0000 2021" (v1.1); may be anything.
        post_id: Tells the time where the value does not: ids hold it since November 2010. Older ones give "".
    """
    try:
        time = _parse_time(text(value))
    except (ValueError, OverflowError):
        if not post_id or int(post_id) < _FIRST_SNOWFLAKE:
            return ""
        milliseconds = (int(post_id) >> 22) + _SNOWFLAKE_EPOCH_MS
        time = datetime.datetime.fromtimestamp(milliseconds // 1000, datetime.UTC)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _parse_time(value: str) -> datetime.datetime:
    if value[:1].isalpha():  # by hand, because strptime reads names of months in the language of the machine
        _, month, day, clock, zone, year = value.split()
        value = f"{year}-{_MONTHS.index(month) + 1:02d}-{day}T{clock}{zone}"
    time = datetime.datetime.fromisoformat(value)
    return time.replace(tzinfo=time.tzinfo or datetime.UTC).astimezone(datetime.UTC)


def read_event(document: dict[str, Any], *, source: str, where: str) -> Post | Drop | None:
    """Read a line that is no post: of a stream, of a compliance stream, or of the result of a compliance job.

    Returns:
        A deletion where a post is gone or no longer shown, a departure where all of an author are; a `Drop`
        "not_a_post" for every other event; None where the document is no event at all.
    """
    if "text" in document or "full_text" in document:
        return None
    if "action" in document:  # {"id": "1", "action": "delete", "reason": "suspended", ...}
        if document["action"] != "delete":
            return Drop("not_a_post", where, detail="compliance result that deletes nothing")
        return deletion(document.get("id"), source=source, where=where)
    for name in _GONE_EVENTS:
        if isinstance(event := document.get(name), dict):
            gone = event.get("tweet") or event.get("status") or event
            return deletion(mapping(gone).get("id_str") or mapping(gone).get("id"), source=source, where=where)
    for name, hides in _GONE_AUTHORS.items():
        if isinstance(event := document.get(name), dict):
            author = mapping(event.get("user") or event)
            found = identity(author.get("id_str")) or identity(author.get("id"))
            return departure(found, source=source, where=where, hides=hides)
    for name in _OTHER_EVENTS:
        if name in document:
            return Drop("not_a_post", where, detail=f"event {name}")
    return None


def deletion(post_id: Any, *, source: str, where: str) -> Post | Drop:
    """Return the notice that a post is gone."""
    if not (found := identity(post_id)):
        return Drop("malformed", where, detail="a deletion without the id of a post")
    return Post(found, source=source, where=where, kind="deletion", permalink=permalink(found))


def departure(author: str, *, source: str, where: str, hides: bool) -> Post | Drop:
    """Return the notice that an author is gone, or hides all posts."""
    if not author:
        return Drop("malformed", where, detail="an author's leaving without the author's id")
    return Post(where, source=source, where=where, kind="departure", author=author, withheld=hides)


def once(items: Iterator[Post | Drop]) -> Iterator[Post | Drop]:
    """Leave out notices about an author that repeat an earlier one of the file: each page names its authors."""
    seen: set[tuple[str, bool]] = set()
    for item in items:
        if isinstance(item, Post) and item.kind == "departure":
            if (item.author, item.withheld) in seen:
                continue
            seen.add((item.author, item.withheld))
        yield item
