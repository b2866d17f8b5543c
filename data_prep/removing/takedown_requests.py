"""Reads what is to be taken down: our own requests (JSON lines or CSV), and X's compliance events as they come.

A request has `kind` (post, author, url, image) and `value`, and may have `source`, `platform`, `request` (its name) and
`time`. An image is said by its sha256, by `phash:` and 16 hexadecimal digits, or by a file, relative to the requests'
folder. A link to the page of a post asks for the post too. A source may be named by its platform, and an author's
platform by one of its sources. Events are lines of X's batch compliance results and of its compliance streams (v1.1 and
v2): posts that were deleted or dropped, and users who deleted, protected or lost their account. An id without a source
means posts of that id in every source.
"""

import collections
import csv
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.removing.run_facts import read_platforms
from plip_jax.data.image import ImageError, decode_image
from plip_jax.data.perceptual_hash import hash_image

REQUEST_KINDS = ("post", "author", "url", "image")
_BATCH_ACTIONS = ("delete", "deactivate", "protect", "suspend")
_USER_EVENTS = ("user_delete", "user_protect", "user_suspend")
_IGNORED_EVENTS = (
    *("scrub_geo", "limit", "warning", "disconnect", "undelete", "undrop", "tweet_edit"),
    *("user_undelete", "user_unprotect", "user_unsuspend", "user_withheld", "status_withheld", "withheld"),
)

_LINKS = (  # of pages of posts; what else asks for the same, as the readers of the sources say it
    (r"(?:twitter|x)\.com/(?:i/web|i|\w+)/status(?:es)?/(\d+)", "post", "x:{}"),
    (r"instagram\.com/(?:[\w.]+/)?(?:p|reel|reels|tv)/([\w-]+)", "url", "https://www.instagram.com/p/{}/"),
    # A link with one more part is about a comment.
    (r"reddit\.com/(?:r|u|user)/[\w-]+/comments/(\w+)(?:/[^/?#]*)?/?(?:[?#].*)?$", "post", "reddit:{}"),
)

HashAuthor = Callable[[str, str], str]
"""Keyed hash of (platform, author)."""


class RequestError(ValueError):
    """The requests cannot be followed; the message names each line that is malformed, without its values."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One thing to remove.

    Attributes:
        kind: "post" ("SOURCE:ID", with an empty source for any), "author" (keyed hash), "url", "image" (sha256) or
            "phash".
        value: Of that kind.
        time: As given.
        request: As given.
        line: Of a request of our own, from 1; 0 for an event, which comes whether the post is ours or not.
    """

    kind: str
    value: str
    time: str = ""
    request: str = ""
    line: int = dataclasses.field(default=0, compare=False)


@dataclasses.dataclass(frozen=True)
class Requests:
    """What a file of requests says.

    Attributes:
        requests: In its order.
        ignored: Events that ask for no removal, counted by name.
        malformed: Places and what is wrong there.
    """

    requests: tuple[Request, ...]
    ignored: dict[str, int]
    malformed: tuple[str, ...]


class _MalformedError(Exception):
    """A line is no request."""


@dataclasses.dataclass(frozen=True)
class _Reader:
    folder: Path
    source: str
    events_of: str
    hash_author: HashAuthor | None
    platforms: Mapping[str, str]


def read_requests(
    path: Path,
    *,
    hash_author: HashAuthor | None = None,
    source: str = "",
    events_of: str = "posts",
    platforms: Mapping[str, str] | None = None,
) -> Requests:
    """Read a file of requests and compliance events.

    Args:
        path: A table with a header where it ends in .csv, else JSON lines.
        hash_author: The keyed hash of (platform, author); without it, requests about authors are malformed.
        source: Of posts for which a line names none; empty for any.
        events_of: "posts" or "users": what the ids of a batch compliance job are, which its lines do not say.
        platforms: By the names of platforms and sources (`read_platforms`); None for those that need no work folder.

    Raises:
        RequestError: The file cannot be read.
    """
    reader = _Reader(path.parent, source, events_of, hash_author, read_platforms() if platforms is None else platforms)
    requests: list[Request] = []
    ignored: collections.Counter[str] = collections.Counter()
    malformed: list[str] = []
    try:
        for number, line in _lines(path):
            try:
                found = _requests_of(line, reader)
            except _MalformedError as error:
                malformed.append(f"{path.name} line {number}: {error}")
            else:
                is_ours = isinstance(line, dict) and "kind" in line
                about = [] if isinstance(found, str) else found
                requests.extend(dataclasses.replace(one, line=number if is_ours else 0) for one in about)
                ignored.update([found] if isinstance(found, str) else [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path} cannot be read: {error}") from error
    return Requests(tuple(requests), dict(sorted(ignored.items())), tuple(malformed))


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".csv":
            table = csv.DictReader(file)
            for row in table:
                yield table.line_num, {name: value for name, value in row.items() if isinstance(name, str) and value}
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError):
                    yield number, None


def _requests_of(line: Any, reader: _Reader) -> list[Request] | str:
    """Return a line's requests, or the name of an event that asks for no removal."""
    if not isinstance(line, dict):
        raise _MalformedError("not a JSON object")
    if "kind" in line:
        return _own_requests(line, reader)
    if "action" in line:
        return _batch_event(line, reader)
    return _stream_event(line["data"] if isinstance(line.get("data"), dict) else line, reader)


def _own_requests(line: dict[str, Any], reader: _Reader) -> list[Request]:
    kind, value = line["kind"], _text(line, "value")
    about = (_optional(line, "time"), _optional(line, "request"))
    if kind == "post":
        return [Request("post", f"{_optional(line, 'source') or reader.source}:{value}", *about)]
    if kind == "author":
        platform = reader.platforms.get(_optional(line, "platform") or _optional(line, "source"))
        if not platform:
            raise _MalformedError(f"an author needs a platform or source, one of {', '.join(sorted(reader.platforms))}")
        return [Request("author", _hashed(reader, platform, value), *about)]
    if kind == "url":
        return [Request("url", value, *about), *_posts_of_link(value, about)]
    if kind == "image":
        return _image_requests(value, reader.folder, about)
    raise _MalformedError(f"its kind is not one of {', '.join(REQUEST_KINDS)}")


def _posts_of_link(url: str, about: tuple[str, str]) -> list[Request]:
    for pattern, kind, form in _LINKS:
        if found := re.match(rf"https?://(?:[\w-]+\.)?{pattern}", url, re.IGNORECASE):
            value = form.format(found.group(1))
            return [Request(kind, value, *about)] if value != url else []
    return []


def _image_requests(value: str, folder: Path, about: tuple[str, str]) -> list[Request]:
    low = value.lower()
    if re.fullmatch(r"(sha256:)?[0-9a-f]{64}", low):
        return [Request("image", low.removeprefix("sha256:"), *about)]
    if low.startswith("phash:"):
        if not re.fullmatch(r"phash:[0-9a-f]{16}", low):
            raise _MalformedError("phash: needs 16 hexadecimal digits behind it")
        return [Request("phash", low.removeprefix("phash:"), *about)]
    try:
        data = (folder / value).read_bytes()
    except (OSError, ValueError) as error:
        raise _MalformedError("its image is neither a sha256, nor phash:..., nor a file that can be read") from error
    by_bytes = Request("image", hashlib.sha256(data).hexdigest(), *about)
    try:
        found = hash_image(decode_image(data, name="the image"))
    except ImageError:
        return [by_bytes]
    # The hash of a blank image is noise: it is no copy of another blank one.
    return [by_bytes] if found.is_flat else [by_bytes, Request("phash", f"{int(found.bits[0]):016x}", *about)]


def _batch_event(line: dict[str, Any], reader: _Reader) -> list[Request] | str:
    """A line of a batch compliance job's result: `{"id", "action", "created_at", "reason"}`."""
    action, time = _text(line, "action"), _optional(line, "created_at")
    if action in _IGNORED_EVENTS:
        return action
    if action not in _BATCH_ACTIONS:
        raise _MalformedError("an unknown action of a compliance event")
    if reader.events_of == "users":
        return [Request("author", _hashed(reader, "x", _text(line, "id")), time)]
    return [Request("post", f"{reader.source}:{_text(line, 'id')}", time)]


def _stream_event(line: dict[str, Any], reader: _Reader) -> list[Request] | str:
    """A message of a compliance stream: `{"delete": {"status": {...}}}`, `{"user_protect": {"id": ...}}` ...

    A post that is dropped is one that nobody can see for now: it is removed like a deleted one.
    """
    for name, event in line.items():
        if name in _IGNORED_EVENTS:
            return name
        if not isinstance(event, dict):
            continue
        time = _optional(event, "timestamp_ms") or _optional(event, "event_at")
        if name in ("delete", "tweet_delete", "drop"):
            post = event.get("status", event.get("tweet"))
            if not isinstance(post, dict):
                raise _MalformedError(f"a {name} event without its post")
            return [Request("post", f"{reader.source}:{_text(post, 'id_str', 'id')}", time)]
        if name in _USER_EVENTS:
            user = event["user"] if isinstance(event.get("user"), dict) else event
            return [Request("author", _hashed(reader, "x", _text(user, "id_str", "id", "user_id")), time)]
    raise _MalformedError("neither a request (kind, value) nor a compliance event that is known")


def _hashed(reader: _Reader, platform: str, author: str) -> str:
    if reader.hash_author is None:
        raise _MalformedError("it is about an author: pass --author-key")
    return reader.hash_author(platform, author)


def _text(line: dict[str, Any], *names: str) -> str:
    for name in names:
        value = line.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
    raise _MalformedError(f"it has no {names[0]}")


def _optional(line: dict[str, Any], name: str) -> str:
    value = line.get(name)
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
