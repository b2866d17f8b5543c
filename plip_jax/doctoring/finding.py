"""What a probe is asked and what it answers: `Asked`, `Finding`, and the guard that no probe gets past.

Owns no probe. The table of the probes, and the page that is made of their findings, are in `plip_jax.doctor`.
"""

import contextlib
import dataclasses
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

Status = Literal["ok", "note", "warning", "problem"]
# A message longer than this is a listing, and hides what stands below it.
_LONGEST_MESSAGE = 600


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that a probe found.

    Attributes:
        status: ``ok``; ``note``, worth knowing; ``warning``, something will be slow, missing or different; ``problem``,
            something asked for does not work.
        what: what is so, or what is wrong.
        advice: what to do; empty where there is nothing to do.
    """

    status: Status
    what: str
    advice: str = ""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the doctor was asked to look at besides the machine.

    Attributes:
        data: images: records, built sets, class folders, and all else that `plip_jax.image_sources` opens.
        checkpoint: a model's source, see `plip_jax.convert.load.load_model`; None for none.
        timeout_seconds: of each probe that could hang.
    """

    data: tuple[str, ...] = ()
    checkpoint: str | None = None
    timeout_seconds: float = 180.0


Probe = Callable[[Asked], Iterable[Finding]]


def guarded(findings: Iterable[Finding], *, of: str = "this", status: Status = "warning") -> Iterator[Finding]:
    """The findings as they come; what is raised in their place becomes the last of them.

    Args:
        findings: of a probe or a part of one.
        of: what is looked at.
        status: ``problem`` where somebody asked for it.
    """
    try:
        yield from findings
    except Exception as error:  # whatever a broken installation raises; all else must still be looked at
        yield Finding(status, f"{of} could not be looked at: {one_line(error)}", "the rest of the page still counts")


def one_line(error: BaseException | str) -> str:
    """An error as one line of at most 600 characters, with its type where it is an exception."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " …"


def as_gib(count: float) -> str:
    """Bytes as GiB, for a person."""
    return f"{count / 2**30:,.1f} GiB"


def read_text(path: str | Path) -> str:
    """A small file of the system; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# Pattern -> what stands for it, in this order.
_PRIVATE = (
    (r"/(?:home|Users)/[^/\s'\":,;)]+", "~"),
    (r"(?<=://)[^/\s@]+@", ""),  # user:password@ of a URL
    (r"(?<![A-Za-z0-9])(?:hf_|api_org_|gh[pousr]_|github_pat_|sk-)[A-Za-z0-9_-]{8,}", "TOKEN"),
    (r"(?i)([\w-]*(?:token|key|secret|passw(?:or)?d)[\w-]*=['\"]?)[^\s&'\",;)]+", r"\1SECRET"),
    (r"(?i)\b(bearer )\S+", r"\1SECRET"),
    (r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", "EMAIL"),
    # The one version in four parts that the page has is Pillow's decoder's.
    (r"(?<![\w.])(?<!libjpeg-turbo )\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\w)", "ADDRESS"),
)
# May be one of IPv6; also where gRPC has written its bracket as %5B.
_GROUPS = re.compile(r"(?:(?<=%5B)|(?<![\w:]))(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?!\w)")


def without_private(text: str, *, home: str, user: str, host: str) -> str:
    """A text without what is known to be private; read it all the same before it is published.

    Left out are home folders, the user's and the host's name, e-mail and IP addresses (and with them a version in four
    parts), the user and password of a URL, ``NAME=VALUE`` where the name says token, key, secret or password, and
    tokens that begin as those of Hugging Face, GitHub and OpenAI do. Names in the path of a data set, another user's
    name outside a home folder, and secrets that look like any other word are not known.

    Args:
        text: any.
        home: path of the home folder; it becomes ``~``, as does anybody's under /home and /Users.
        user: its owner's name, replaced where it is a word of its own, or begins a folder's or file's name (root, which
            names nobody, stays); of one or two letters, in a path only.
        host: the machine's name, replaced the same way.
    """
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?![\w-])", "~", text)
    for pattern, stand_in in _PRIVATE:
        text = re.sub(pattern, stand_in, text)
    text = _GROUPS.sub(_without_address, text)
    for name, stand_in in ((user, "USER"), (host, "HOST"), (host.partition(".")[0], "HOST")):
        if name and name not in ("root", "localhost"):
            text = re.sub(rf"(?<=[/\\]){re.escape(name)}(?![A-Za-z0-9])", stand_in, text)
            if len(name) > 2:
                text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", stand_in, text)
    return text


def _without_address(found: re.Match[str]) -> str:
    for text in (found[0], found[0].removesuffix(":")):  # a message may go on with a colon
        with contextlib.suppress(ValueError):
            address = ipaddress.IPv6Address(text)
            return found[0] if address.is_unspecified else "ADDRESS" + found[0][len(text) :]
    return found[0]
