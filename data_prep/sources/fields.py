"""What a reader takes from a parsed value that may be anything: texts, numbers, ids, times, hashtags.

Owns how foreign values are judged; knows no format. Functions named after what they return give an empty value where
there is none to be had; `expect_*` raise `MalformedError`, which a reader turns into a `Drop`.
"""

import dataclasses
import datetime
import hashlib
import itertools
import math
import re
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

from data_prep.sources.post import Drop, Media, Post

_MAX_ID_CHARACTERS = 512  # ours; platforms give 40 at most, paths in a folder are longer
_HASHED_ID_DIGITS = 32  # 128 bits: among a billion names, two share an id with probability 1.5e-21
_MAX_URL_CHARACTERS = 8192  # ours; signed addresses of Instagram have about 700
_END_OF_TIME = 253_402_300_800  # 10000-01-01, seconds: beyond it a year has five digits
_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"  # U+FFFD, as Unicode has it (The Unicode Standard, 5.22)
# A sign inside a word, an address or an entity (`page#top`, `/#top`, `&#39;`) begins none; one of digits is a number.
_HASHTAG = re.compile(r"(?<![\w&/])[#\uFF03](\w*[^\W\d_]\w*)")

Item = TypeVar("Item", bound=Post | Drop)


class MalformedError(ValueError):
    """An item is not what its format says; the message names the field and its kind, and never shows its value."""


def expect_mapping(value: Any, name: str) -> dict[str, Any]:
    """Return a JSON object as it is.

    Raises:
        MalformedError: It is something else.
    """
    if not isinstance(value, dict):
        raise MalformedError(f"{name}: expected an object, got {_kind(value)}")
    return value


def expect_list(value: Any, name: str) -> list[Any]:
    """Return a list as it is.

    Raises:
        MalformedError: It is something else.
    """
    if not isinstance(value, list):
        raise MalformedError(f"{name}: expected a list, got {_kind(value)}")
    return value


def expect_text(value: Any, name: str) -> str:
    """Return a text as it is.

    Raises:
        MalformedError: It is something else.
    """
    if not isinstance(value, str):
        raise MalformedError(f"{name}: expected a text, got {_kind(value)}")
    return value


def expect_cell(value: Any, name: str) -> str:
    """Return a cell of a table as text without blanks around it; empty for null and for a float that is no number.

    Raises:
        MalformedError: It is neither a text nor a number.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise MalformedError(f"{name}: expected a text or a number, got {_kind(value)}")
    return str(value).strip()


def identifier(value: Any) -> str:
    """Return an id given as a text or a whole number; empty where it is neither, unprintable or too long."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**30:
        return str(value)
    text = value.strip() if isinstance(value, str) else ""
    return text if text.isprintable() and len(text) <= _MAX_ID_CHARACTERS else ""


def hashed_id(name: str) -> str:
    """Return an id made of an address or the name of a file, which may name a person: 32 digits of its sha256."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASHED_ID_DIGITS]


def whole_number(value: Any) -> int | None:
    """Return a whole number given as such, as a float without a fraction, or in digits; else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,30}", value):
        return int(value)
    return value if isinstance(value, int) else None


def count(value: Any) -> int | None:
    """Return a number of likes; None where it is not known (platforms write -1 for one that is hidden)."""
    number = whole_number(value)
    return number if number is not None and 0 <= number < 2**63 else None


def utc_time(seconds: Any) -> str:
    """Return seconds since 1970, whole or not, as "2021-03-04T05:06:07Z"; empty where they are no time."""
    if isinstance(seconds, float) and math.isfinite(seconds):
        seconds = math.floor(seconds)
    whole = whole_number(seconds)
    if whole is None or not 0 < whole < _END_OF_TIME:
        return ""
    return datetime.datetime.fromtimestamp(whole, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def web_address(value: Any) -> str:
    """Return an http or https address; empty where it is none."""
    text = value.strip() if isinstance(value, str) else ""
    fits = text.isprintable() and " " not in text and len(text) <= _MAX_URL_CHARACTERS
    return text if fits and re.match(r"https?://[^/]", text, re.IGNORECASE) else ""


def encodable(item: Item) -> Item:
    """Return a post or a drop with U+FFFD for each lone surrogate, which JSON can hold and UTF-8 cannot.

    Keys of media that become equal by that are told apart; the others stay as they are.
    """
    cleaned: dict[str, Any] = {
        field.name: _encodable(getattr(item, field.name)) for field in dataclasses.fields(item) if field.name != "media"
    }
    if isinstance(item, Post):
        media = [Media(*map(_encodable, dataclasses.astuple(one))) for one in item.media]
        keys = unique_keys([one.key for one in media])
        cleaned["media"] = tuple(dataclasses.replace(one, key=key) for one, key in zip(media, keys, strict=True))
    return dataclasses.replace(item, **cleaned)


def unique_keys(keys: list[str]) -> list[str]:
    """Return keys of which an empty one has become its place, or the next number not used, and a repeated one too."""
    found: dict[str, None] = {}
    for place, key in enumerate(keys):
        if not key or key in found:
            key = next(name for number in itertools.count(place) if (name := str(number)) not in {*found, *keys})
        found[key] = None
    return list(found)


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub(_REPLACEMENT, value)
    return tuple(map(_encodable, value)) if isinstance(value, tuple) else value


def find_hashtags(text: str) -> tuple[str, ...]:
    """Return the hashtags of a text without the sign, as written, each once, in order."""
    return tuple(dict.fromkeys(_HASHTAG.findall(text)))


def find_keys(document: Any, names: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Find what stands under some keys anywhere in a parsed document, in its order.

    What stands under a found key is not searched. The depth of the document does not matter.

    Yields:
        The key and its value.
    """
    stack: list[tuple[str, Any]] = [("", document)]
    while stack:
        key, value = stack.pop()
        if key in names:
            yield key, value
        elif isinstance(value, dict):
            stack.extend(reversed(value.items()))
        elif isinstance(value, list):
            stack.extend(("", one) for one in reversed(value))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
