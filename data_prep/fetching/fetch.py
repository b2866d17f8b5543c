"""One request for an image: what is asked of a server, what is refused, and what came back.

Owns the network. Addresses are checked where the connection is made: the name is resolved once, every address it has
must be public, and the socket is opened to an address that was checked, so a name that resolves to another address a
moment later gains nothing. Redirects are not followed by the library: `request` hands back where they lead, so that
the caller counts the next request for the host that gets it. When to ask whom is `hydrate`'s.

One connection a request, closed behind it: the deadline can then cut everything off, the handshake and the headers of
a slow-drip server too. No proxy is used and no cookie kept.
"""

import contextlib
import dataclasses
import datetime
import email.utils
import functools
import http.client
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from urllib.parse import urljoin

from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Url, parse_url

from data_prep.fetching import addresses

REDIRECT = "redirect"
"""The reason of an answer that only says where to ask next."""

_TEMPORARY = {"timeout", "connection", "dns", "truncated", "http_408", "http_425", "http_429"}
_REDIRECTS = (301, 302, 303, 307, 308)  # RFC 9110, 15.4, those with a Location
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_URL_CHARACTERS = 8192  # RFC 9110, 4.1: at least 8000 octets should be supported
_CHUNK_BYTES = 2**16
# RFC 9309's product token. A directive of X-Robots-Tag with a value of its own looks the same.
_AGENT = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_ROBOTS_VALUES = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}


class FetchError(ValueError):
    """The settings cannot be used; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class FetchSettings:
    """What a request may cost and whom it may ask.

    Attributes:
        agent: Product token of the User-Agent, and the name that `X-Robots-Tag` may address. Ours.
        contact: Page or mail address behind it, for those who run the server.
        connect_seconds: Limit for opening a connection to one address. Ours.
        read_seconds: Limit for any single wait for bytes. Ours.
        total_seconds: Limit for a whole request, the resolving of the name excepted. Ours.
        max_bytes: Of the body, as sent and as decoded. Ours: twice what X takes for an animated GIF (15 MB).
        max_redirects: In a row. Ours; browsers stop at 20.
        ports: Which may be asked; empty for any. Ours: those of the web.
        private_networks: Addresses that are asked although they are not public, e.g. "10.1.0.0/16" for a lab's own
            server.
        refused_robots_tags: Directives of `X-Robots-Tag` that keep an image out. "none" means "noindex, nofollow"
            (Google's specification); "noai" and "noimageai" are DeviantArt's. Ours: the four that img2dataset names,
            and "none".
    """

    agent: str = "plip-jax-data-prep"
    contact: str = ""
    connect_seconds: float = 10.0
    read_seconds: float = 20.0
    total_seconds: float = 60.0
    max_bytes: int = 30_000_000
    max_redirects: int = 5
    ports: tuple[int, ...] = (80, 443)
    private_networks: tuple[str, ...] = ()
    refused_robots_tags: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex", "none")

    def __post_init__(self) -> None:
        for name in ("connect_seconds", "read_seconds", "total_seconds", "max_bytes"):
            if not getattr(self, name) > 0:
                raise FetchError(f"{name} is {getattr(self, name)}: expected more than 0")
        if not _AGENT.fullmatch(self.agent):
            raise FetchError(f"agent is {self.agent!r}: expected one word of letters, digits, '-' and '_'")
        if not self.contact.isascii() or not self.contact.isprintable():
            raise FetchError(f"contact is {self.contact!r}: expected printable ASCII, for it goes into a header")
        try:
            addresses.networks(tuple(self.private_networks))
        except ValueError as error:
            raise FetchError(f"private_networks: {error}; expected a network as in 10.1.0.0/16") from error

    @property
    def user_agent(self) -> str:
        """The header."""
        return f"{self.agent} ({self.contact})" if self.contact else self.agent


@dataclasses.dataclass(frozen=True)
class Fetched:
    """What came of a request.

    Attributes:
        reason: Empty where `data` is an image; else why not: "http_404" and the like, "timeout", "connection" (refused,
            reset, not HTTP), "truncated", "dns", "certificate", "too_large", "robots_tag", "private_address",
            "refused_port", "not_an_image", "content_encoding", "too_many_redirects", "bad_url", or `REDIRECT`.
        data: The body.
        url: That was asked.
        http_status: Of the answer; 0 where none came.
        location: Where a redirect leads, absolute.
        retry_after: Seconds the server asks to wait; None where it says nothing.
    """

    reason: str = ""
    data: bytes = b""
    url: str = ""
    http_status: int = 0
    location: str = ""
    retry_after: float | None = None

    @property
    def temporary(self) -> bool:
        """Whether the same request may do better later."""
        return self.reason in _TEMPORARY or self.reason.startswith("http_5")


class _FailedError(Exception):
    """A request ends here."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def fetch(url: str, settings: FetchSettings) -> Fetched:
    """Fetch an image, following redirects without regard to the limits of the hosts they lead to."""
    fetched = request(url, settings)
    for _ in range(settings.max_redirects):
        if fetched.reason != REDIRECT:
            return fetched
        fetched = request(fetched.location, settings)
    if fetched.reason != REDIRECT:
        return fetched
    return dataclasses.replace(fetched, reason="too_many_redirects", location="")


def request(url: str, settings: FetchSettings) -> Fetched:
    """Ask for an image once, and hand a redirect back as the reason `REDIRECT`; nothing a server does is raised."""
    deadline = time.monotonic() + settings.total_seconds
    try:
        parsed = parse(url, settings)
        found = _checked_addresses(parsed, settings)
        deadline = time.monotonic() + settings.total_seconds  # the system's resolver has limits of its own
        with _opened(parsed, found, settings, deadline) as connection:
            fetched = _ask(connection, parsed, url, settings)
        # what was cut off at the deadline can look like the end of a body of unsaid length
        return fetched if time.monotonic() < deadline else Fetched("timeout", url=url)
    except _FailedError as failed:
        reason = failed.reason
    except ssl.SSLCertVerificationError:
        reason = "certificate"
    except (OSError, HTTPError, http.client.HTTPException) as error:
        # urllib3 wraps what the socket raised
        late = time.monotonic() >= deadline or isinstance(error.__cause__ or error, TimeoutError)
        cut = isinstance(error.__cause__ or error, http.client.IncompleteRead)
        reason = "timeout" if late else "truncated" if cut else "connection"
    return Fetched(reason, url=url)


def host_key(url: str) -> str:
    """Return what limits are counted by, "host:port"; empty where the URL is none that can be asked."""
    try:
        parsed = parse(url, None)
    except _FailedError:
        return ""
    return f"{parsed.host}:{port_of(parsed)}"


def parse(url: str, settings: FetchSettings | None) -> Url:
    """Split a URL and refuse what is no plain address of the web (with settings: at a port that may be asked)."""
    try:
        parsed = parse_url(url) if len(url) <= _MAX_URL_CHARACTERS else Url()
        url.encode()
        (parsed.host or "").encode("idna")  # as the resolver will do
    except (HTTPError, ValueError) as error:  # ValueError: lone surrogates, labels over 63 characters
        raise _FailedError("bad_url") from error
    if parsed.scheme not in _DEFAULT_PORTS or not parsed.host or parsed.auth is not None or parsed.port == 0:
        raise _FailedError("bad_url")
    if settings and settings.ports and port_of(parsed) not in settings.ports:
        raise _FailedError("refused_port")
    return parsed


def port_of(parsed: Url) -> int:
    """Return the port of a parsed URL, said or not."""
    return parsed.port or _DEFAULT_PORTS[str(parsed.scheme)]


def image_format(head: bytes) -> str:
    """Return "jpeg", "png", "gif", "webp", "tiff" or "bmp" by the first 32 bytes; empty where it is none of them."""
    for name, magic in (
        ("jpeg", b"\xff\xd8\xff"),
        ("png", b"\x89PNG\r\n\x1a\n"),
        ("gif", b"GIF87a"),
        ("gif", b"GIF89a"),
        ("tiff", b"II*\0"),
        ("tiff", b"MM\0*"),
        ("tiff", b"II+\0"),  # BigTIFF
        ("tiff", b"MM\0+"),
    ):
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    # "BM" alone begins many texts; the size of the second header is one of few
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in (12, 40, 52, 56, 64, 108, 124):
        return "bmp"
    return ""


def refused_by_robots_tags(headers: Iterable[str], agent: str, refused: Iterable[str]) -> bool:
    """Say whether an `X-Robots-Tag` keeps us out.

    Args:
        headers: Values of all such headers: "noindex, nofollow", or for one agent "somebot: noindex, noai".
        agent: Our product token; what is said to another agent does not count.
        refused: The directives that do.
    """
    refused = {directive.lower() for directive in refused}
    for header in headers:
        addressed = ""
        for part in header.lower().split(","):
            name, colon, rest = (piece.strip() for piece in part.partition(":"))
            directive = part.strip()
            if colon and _AGENT.fullmatch(name) and name not in _ROBOTS_VALUES:
                addressed, directive = name, rest
            if directive in refused and addressed in ("", agent.lower()):
                return True
    return False


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """Return the wait that a `Retry-After` asks for; None where it is absent or cannot be read.

    Args:
        value: Seconds or an HTTP date (RFC 9110, 10.2.3).
        now: Seconds since 1970, to count a date from.
    """
    value = (value or "").strip()
    if re.fullmatch(r"[0-9]{1,12}", value):
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:  # "-0000": UTC, from nobody knows where
        date = date.replace(tzinfo=datetime.UTC)
    return max(0.0, date.timestamp() - now)


def _checked_addresses(parsed: Url, settings: FetchSettings) -> list[str]:
    try:
        found = addresses.resolve(str(parsed.host).strip("[]"), port_of(parsed))
    except OSError as error:  # gaierror
        raise _FailedError("dns") from error
    except ValueError as error:  # a name with an empty or over-long label
        raise _FailedError("bad_url") from error
    allowed = addresses.networks(tuple(settings.private_networks))
    if not all(addresses.is_public(address) or addresses.is_in(address, allowed) for address in found):
        raise _FailedError("private_address")
    return found


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


@contextlib.contextmanager
def _opened(parsed: Url, found: list[str], settings: FetchSettings, deadline: float) -> Iterator[HTTPConnection]:
    """Connect to the first of the checked addresses that answers, and cut the connection off at the deadline."""
    port = port_of(parsed)
    host = str(parsed.host).strip("[]")
    with contextlib.ExitStack() as stack:
        end: socket.socket = stack.enter_context(_connect(found, port, settings, deadline))
        if parsed.scheme == "https":
            # the name, not the address, is what the certificate must be for
            encrypted = _tls().wrap_socket(end, server_hostname=host, do_handshake_on_connect=False)
            end = stack.enter_context(encrypted)
        watch = threading.Timer(max(0.0, deadline - time.monotonic()), _shut_down, [end])
        watch.daemon = True
        watch.start()
        stack.callback(watch.cancel)
        end.settimeout(settings.read_seconds)
        if isinstance(end, ssl.SSLSocket):
            end.do_handshake()
        connection = HTTPConnection(host, port, timeout=settings.read_seconds)
        connection.sock = end
        yield connection


def _connect(found: list[str], port: int, settings: FetchSettings, deadline: float) -> socket.socket:
    for address in found:
        limit = min(settings.connect_seconds, deadline - time.monotonic())
        if limit <= 0:
            raise TimeoutError
        try:
            return socket.create_connection((address, port), timeout=limit)
        except OSError:
            if address == found[-1]:
                raise
    raise _FailedError("dns")  # a name without addresses


def _shut_down(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed in this moment
        # of the class socket: SSLSocket's own also takes the decryption away from under the reader
        socket.socket.shutdown(end, socket.SHUT_RDWR)


def _ask(connection: HTTPConnection, parsed: Url, url: str, settings: FetchSettings) -> Fetched:
    headers = {
        "Host": parsed.netloc or "",
        "User-Agent": settings.user_agent,
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    connection.request("GET", parsed.request_uri, headers=headers, preload_content=False)
    with contextlib.closing(connection.getresponse()) as response:
        return _judge(response, url, settings)


def _judge(response: BaseHTTPResponse, url: str, settings: FetchSettings) -> Fetched:
    retry_after = retry_after_seconds(response.headers.get("Retry-After"), time.time())
    answer = Fetched("", b"", url, response.status, "", retry_after)
    location = response.headers.get("Location")
    if response.status in _REDIRECTS and location:
        # http.client reads headers as latin-1, and servers write UTF-8
        location = location.encode("latin-1", "replace").decode("utf-8", "replace")
        try:
            return dataclasses.replace(answer, reason=REDIRECT, location=urljoin(url, location))
        except ValueError:  # a broken IPv6 address
            return dataclasses.replace(answer, reason="bad_url")
    if response.status != http.client.OK:
        return dataclasses.replace(answer, reason=f"http_{response.status}")
    tags = response.headers.getlist("X-Robots-Tag")
    if refused_by_robots_tags(tags, settings.agent, settings.refused_robots_tags):
        return dataclasses.replace(answer, reason="robots_tag")
    try:
        return dataclasses.replace(answer, data=_read_image(response, settings.max_bytes))
    except _FailedError as failed:
        return dataclasses.replace(answer, reason=failed.reason)


def _read_image(response: BaseHTTPResponse, max_bytes: int) -> bytes:
    declared = response.headers.get("Content-Length", "")
    if declared.isdecimal() and int(declared[:18]) > max_bytes:
        raise _FailedError("too_large")
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise _FailedError("content_encoding")  # we asked for none
    encoded = encoding not in ("", "identity")
    data = bytearray()
    while chunk := response.read(_CHUNK_BYTES, decode_content=False):
        data += chunk
        if len(data) > max_bytes:
            raise _FailedError("too_large")
        if not encoded and not image_format(bytes(data[:32])):
            raise _FailedError("not_an_image")  # an error page: the rest of it is not worth fetching
    if encoded:
        data = _decompress(bytes(data), max_bytes)
    if not image_format(bytes(data[:32])):
        raise _FailedError("not_an_image")
    return bytes(data)


def _decompress(data: bytes, max_bytes: int) -> bytes:
    """Undo gzip or zlib, and stop where a small body turns out to be a huge one."""
    decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: the header says which of the two it is
    try:
        decoded = decompressor.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise _FailedError("content_encoding") from error
    if len(decoded) > max_bytes:
        raise _FailedError("too_large")
    if not decompressor.eof:
        raise _FailedError("truncated")
    return decoded
