"""An image server on the loopback interface that misbehaves as it is told, for tests of downloads.

    with ImageServer() as server:
        good = server.add("/good.jpg", Response(jpeg))
        later = server.add("/later.jpg", Response(status=429, headers={"Retry-After": "1"}), Response(jpeg))

Each request for a path is answered with the path's next response; the last one repeats. Several servers are several
hosts: limits are counted by host and port.
"""

import dataclasses
import gzip
import http.client
import http.server
import os
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Response:
    """What to answer.

    Attributes:
        body: As sent.
        status: Of HTTP.
        headers: In addition to Content-Length; a value that is a tuple is sent as several headers.
        length: Declared Content-Length: the body's where None; any number; -1 for none at all.
        chunked: Send the body in two chunks, without a length.
        delay_seconds: Before the status line.
        drip_seconds: Before each byte of the body.
        header_drip_seconds: Before each byte of the status line and the headers.
        repeat: Send the body this many times over (an oversize answer from a small body).
        reset: Reset the connection instead of answering.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    length: int | None = None
    chunked: bool = False
    delay_seconds: float = 0.0
    drip_seconds: float = 0.0
    header_drip_seconds: float = 0.0
    repeat: int = 1
    reset: bool = False


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request that came: when (`time.monotonic`), for what, and with which headers (names in lower case)."""

    time: float
    path: str
    headers: dict[str, str]


def redirect(location: str, status: int = 302) -> Response:
    """An answer that leads elsewhere."""
    return Response(b"elsewhere", status, {"Location": location})


def gzip_bomb(decoded_bytes: int, head: bytes = b"\xff\xd8\xff") -> Response:
    """A small body that says it is gzip and decodes to a great one that begins like a JPEG."""
    body = gzip.compress(head + bytes(decoded_bytes - len(head)), mtime=0)
    return Response(body, headers={"Content-Encoding": "gzip"})


class ImageServer:
    """A server on 127.0.0.1 (or another loopback address), at a free port, from `with` to the end of it.

    Attributes:
        url: "http://127.0.0.1:PORT".
        host: "127.0.0.1:PORT".
        asked: Every request in the order it came.
        most_open: Requests that were being answered at the same time, at most.
    """

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.asked: list[Asked] = []
        self._responses: dict[str, list[Response]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open = 0
        self.most_open = 0
        self._http = _QuietServer((address, port), _handler(self))
        self.host = f"{address}:{self._http.server_address[1]}"
        self.url = f"http://{self.host}"
        # the poll is how long the end of the test waits
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> "ImageServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def add(self, path: str, *responses: Response) -> str:
        """Plant the answers of a path (with its query) and return its URL; a path that was not planted is 404."""
        with self._lock:
            self._responses[path] = list(responses)
        return self.url + path

    def counts(self) -> Counter[str]:
        """How often each path was asked for."""
        return Counter(request.path for request in list(self.asked))

    def times(self, path: str = "") -> list[float]:
        """When requests came, in seconds of `time.monotonic`: all, or those for a path."""
        return [request.time for request in list(self.asked) if path in ("", request.path)]

    def encrypt(self, certificate: str | os.PathLike[str], on_name: Callable[[str | None], Any]) -> None:
        """Speak TLS from now on; each client's server name goes to `on_name`. `url` still says http."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.sni_callback = lambda _socket, name, _context: on_name(name)
        # the handshake is made by the handler's thread, so that one client cannot hold up the next
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        with self._lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            self.asked.append(Asked(time.monotonic(), handler.path, headers))
            planned = self._responses.get(handler.path) or [Response(b"no such page", 404)]
            response = planned.pop(0) if len(planned) > 1 else planned[0]
            self._open += 1
            self.most_open = max(self.most_open, self._open)
        try:
            self._send(handler, response)
        finally:
            with self._lock:
                self._open -= 1

    def _send(self, handler: http.server.BaseHTTPRequestHandler, response: Response) -> None:
        handler.close_connection = True
        self._closing.wait(response.delay_seconds)
        if response.reset:
            # closed with unsent data thrown away: the other side sees a reset
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            return
        length = len(response.body) * response.repeat if response.length is None else response.length
        lines = [f"HTTP/1.1 {response.status} {http.client.responses.get(response.status, 'Odd')}", "Connection: close"]
        lines += ["Transfer-Encoding: chunked"] if response.chunked else [f"Content-Length: {length}"] * (length >= 0)
        for name, values in response.headers.items():
            lines += [f"{name}: {value}" for value in ([values] if isinstance(values, str) else values)]
        self._drip(handler, "\r\n".join([*lines, "", ""]).encode(), response.header_drip_seconds)
        if response.chunked:
            half = len(response.body) // 2
            for part in (response.body[:half], response.body[half:], b""):
                handler.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            return
        for _ in range(response.repeat):
            self._drip(handler, response.body, response.drip_seconds)

    def _drip(self, handler: http.server.BaseHTTPRequestHandler, data: bytes, seconds: float) -> None:
        if not seconds:
            handler.wfile.write(data)
            return
        for place in range(len(data)):
            if self._closing.wait(seconds):
                return
            handler.wfile.write(data[place : place + 1])


class _QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients hang up on purpose here."""


def _handler(server: ImageServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server._answer(self)

        def log_message(self, *_: object) -> None:
            """Keep the output of the tests clean."""

    return Handler
