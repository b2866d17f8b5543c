"""What an answer is taken for, and how long and how much of it is waited for."""

import datetime
import gzip
import socket
import ssl
import threading
import time
import zlib

import pytest
from image_server import ImageServer, Response, gzip_bomb, redirect
from small_fetch import JPEG, LOOPBACK, encoded, reason

from data_prep.fetching import addresses, fetch
from data_prep.fetching.fetch import (
    FetchError,
    FetchSettings,
    image_format,
    refused_by_robots_tags,
    retry_after_seconds,
)


@pytest.fixture(scope="module")
def server():
    with ImageServer() as server:
        yield server


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WebP", "TIFF", "BMP"])
def test_an_image_comes_whole_and_is_known_by_its_bytes(server, kind):
    data = encoded(kind)
    url = server.add(f"/{kind}", Response(data, headers={"Content-Type": "text/plain"}))
    fetched = fetch.fetch(url, LOOPBACK)
    assert (fetched.reason, fetched.data, fetched.http_status, fetched.url) == ("", data, 200, url)
    assert image_format(data[:32]) == kind.lower()


@pytest.mark.parametrize(
    "head",
    [b"", b"<html>", b"BMW is a maker of cars, and this is its page", b"RIFF\0\0\0\0WAVE", b"\xff\xd8", b"%PDF-1.7"],
)
def test_what_is_no_image_is_known_by_its_bytes(head):
    assert image_format(head[:32]) == ""


def test_the_request_says_who_asks_and_asks_for_no_encoding(server):
    url = server.add("/who?size=large&x=%20", Response(JPEG))
    assert reason(url, contact="mailto:lab@example.org") == ""
    asked = next(asked for asked in server.asked if asked.path == "/who?size=large&x=%20")
    assert asked.headers["user-agent"] == "plip-jax-data-prep (mailto:lab@example.org)"
    assert asked.headers["accept-encoding"] == "identity"
    assert asked.headers["host"] == server.host


@pytest.mark.parametrize(
    ("status", "temporary"),
    [
        *((status, False) for status in (204, 302, 304, 401, 403, 404, 410, 451)),
        *((status, True) for status in (408, 425, 429, 500, 502, 503, 504)),
    ],
)
def test_a_status_is_named_and_said_to_pass_or_not(server, status, temporary):
    length = -1 if status in (204, 304) else None  # 302: without a Location it leads nowhere
    fetched = fetch.fetch(server.add(f"/{status}", Response(status=status, length=length)), LOOPBACK)
    assert (fetched.reason, fetched.http_status, fetched.temporary) == (f"http_{status}", status, temporary)


def test_an_error_page_that_says_200_is_no_image(server):
    assert reason(server.add("/page", Response(b"<html>We could not find it</html>"))) == "not_an_image"
    assert reason(server.add("/empty", Response(b""))) == "not_an_image"


def test_no_more_of_a_long_page_is_read_than_it_takes_to_know_it(server):
    started = time.monotonic()
    url = server.add("/endless", Response(b"<html>" + b" " * 2**16, length=10**7, drip_seconds=0))
    assert reason(url, read_seconds=5.0) == "not_an_image"
    assert time.monotonic() - started < 4  # the other 9.9 MB never come: reading on would wait for them


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server, status):
    image = server.add("/image", Response(JPEG))
    url = server.add(f"/from{status}", redirect("/image", status))
    fetched = fetch.fetch(url, LOOPBACK)
    assert (fetched.reason, fetched.data, fetched.url) == ("", JPEG, image)


def test_a_location_may_be_relative_or_written_in_utf_8(server):
    server.add("/a/caf%C3%A9.jpg", Response(JPEG))
    assert reason(server.add("/a/b", redirect("café.jpg"))) == ""
    assert reason(server.add("/a/c", redirect("./../a/caf%C3%A9.jpg#top"))) == ""


def test_a_chain_of_redirects_has_an_end(server):
    for step in range(4):
        server.add(f"/chain{step}", redirect(f"/chain{step + 1}"))
    server.add("/chain4", Response(JPEG))
    assert reason(f"{server.url}/chain0", max_redirects=4) == ""
    assert reason(f"{server.url}/chain0", max_redirects=3) == "too_many_redirects"
    assert reason(server.add("/loop", redirect("/loop"))) == "too_many_redirects"


def test_a_body_over_the_limit_is_refused_by_its_declared_and_by_its_real_length(server):
    big = JPEG + bytes(200_000)
    assert reason(server.add("/exact", Response(big)), max_bytes=len(big)) == ""
    assert reason(server.add("/declared", Response(JPEG, length=10**9)), max_bytes=len(big)) == "too_large"
    assert reason(server.add("/undeclared", Response(big, length=-1)), max_bytes=len(big) - 1) == "too_large"
    endless = Response(JPEG + bytes(2**16), length=-1, repeat=10_000)
    assert reason(server.add("/endless", endless), max_bytes=10**6) == "too_large"
    assert reason(server.add("/chunked", Response(big, chunked=True)), max_bytes=10**5) == "too_large"


def test_a_chunked_body_and_one_of_unsaid_length_come_whole(server):
    assert fetch.fetch(server.add("/chunks", Response(JPEG, chunked=True)), LOOPBACK).data == JPEG
    assert fetch.fetch(server.add("/unsaid", Response(JPEG, length=-1)), LOOPBACK).data == JPEG


def test_a_gzip_bomb_is_refused_without_being_unpacked(server):
    url = server.add("/bomb", gzip_bomb(50_000_000))
    assert reason(url, max_bytes=1_000_000) == "too_large"


def test_an_encoded_image_is_decoded_within_the_limit(server):
    for name, body in (("gzip", gzip.compress(JPEG)), ("deflate", zlib.compress(JPEG))):
        url = server.add(f"/{name}", Response(body, headers={"Content-Encoding": name}))
        assert fetch.fetch(url, LOOPBACK).data == JPEG
    cut = server.add("/cut", Response(gzip.compress(JPEG)[:-9], headers={"Content-Encoding": "gzip"}))
    assert reason(cut) == "truncated"
    assert reason(server.add("/lie", Response(JPEG, headers={"Content-Encoding": "gzip"}))) == "content_encoding"
    assert reason(server.add("/br", Response(JPEG, headers={"Content-Encoding": "br"}))) == "content_encoding"


def test_a_body_that_ends_early_is_not_taken_for_whole(server):
    fetched = fetch.fetch(server.add("/short", Response(JPEG, length=len(JPEG) + 100)), LOOPBACK)
    assert (fetched.reason, fetched.temporary) == ("truncated", True)


def test_a_reset_connection_and_a_closed_port(server):
    assert reason(server.add("/reset", Response(reset=True))) == "connection"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert reason(f"http://127.0.0.1:{unused.getsockname()[1]}/") == "connection"


@pytest.mark.parametrize(
    "response",
    [
        Response(JPEG, delay_seconds=30),
        Response(JPEG, drip_seconds=0.02),
        Response(JPEG, drip_seconds=0.02, length=-1),
        Response(JPEG, header_drip_seconds=0.02),
    ],
    ids=["silent", "slow body", "slow body of unsaid length", "slow headers"],
)
def test_a_slow_server_is_cut_off_at_the_total_time(server, response):
    url = server.add("/slow", response)
    started = time.monotonic()
    assert reason(url, total_seconds=0.25) == "timeout"
    assert 0.2 < time.monotonic() - started < 2


def test_a_single_wait_is_limited_too(server):
    started = time.monotonic()
    assert reason(server.add("/silent", Response(JPEG, delay_seconds=30)), read_seconds=0.2) == "timeout"
    assert time.monotonic() - started < 2


def test_a_server_that_speaks_no_http():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"220 smtp.example.org ESMTP\r\n")
                connection.recv(1000)

        thread = threading.Thread(target=answer)
        thread.start()
        assert reason(f"http://127.0.0.1:{listener.getsockname()[1]}/") == "connection"
        thread.join()


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ([], False),
        (["noarchive"], False),
        (["noai"], True),
        (["nofollow, NoImageAI"], True),
        (["noarchive", "noindex"], True),
        (["none"], True),
        (["somebot: noai"], False),
        (["plip-jax-data-prep: noai"], True),
        (["PLIP-JAX-data-prep: nofollow, noindex"], True),
        (["somebot: noai, noindex, plip-jax-data-prep: nofollow"], False),
        (["somebot: noarchive, plip-jax-data-prep: noai"], True),
        (["max-image-preview: none"], False),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"], True),
        (["unavailable_after: Friday, 25-Jun-10 15:00:00 GMT"], False),
    ],
)
def test_robots_tags(headers, refused):
    assert refused_by_robots_tags(headers, "plip-jax-data-prep", FetchSettings().refused_robots_tags) is refused


def test_an_image_that_its_owner_keeps_out_is_not_read(server):
    tags = {"X-Robots-Tag": ("noarchive", "noai, noimageai")}
    url = server.add("/kept-out", Response(JPEG, headers=tags))
    assert reason(url) == "robots_tag"
    assert reason(url, refused_robots_tags=("noindex",)) == ""
    assert reason(url, refused_robots_tags=()) == ""


# 2015-10-21 07:28:00 UTC, the example of RFC 9110, 10.2.3, is 1445412480 seconds since 1970
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("120", 120.0),
        (" 0 ", 0.0),
        ("-5", None),
        ("1.5", None),
        ("9" * 5000, None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 80.0),
        ("Wed, 21 Oct 2015 07:26:00 GMT", 0.0),
        ("Wed, 21 Oct 2015 09:28:00 +0200", 80.0),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
    ],
)
def test_retry_after(value, seconds):
    assert retry_after_seconds(value, now=1445412400) == seconds


def test_retry_after_reaches_the_caller(server):
    url = server.add("/busy", Response(status=503, headers={"Retry-After": "7"}))
    assert fetch.request(url, LOOPBACK).retry_after == 7.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_bytes": 0}, "max_bytes is 0"),
        ({"total_seconds": -1.0}, "total_seconds"),
        ({"contact": "a\r\nX-Evil: yes"}, "contact"),
        ({"contact": "Zoë"}, "contact"),
        ({"agent": "two words"}, "agent"),
        ({"private_networks": ("10.0.0.1/8",)}, "private_networks"),
        ({"private_networks": ("localhost",)}, "private_networks"),
    ],
)
def test_settings_that_cannot_be_used(changes, message):
    with pytest.raises(FetchError, match=message):
        FetchSettings(**changes)


def certificate_for(name, folder):
    """A self-signed certificate and its key, in one file."""
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography makes the certificate of the test")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_https_asks_for_the_name_at_the_checked_address(tmp_path, monkeypatch):
    pem = certificate_for("images.test", tmp_path)
    trusted = ssl.create_default_context(cafile=str(pem))
    monkeypatch.setattr(fetch, "_tls", lambda: trusted)
    monkeypatch.setattr(addresses, "resolve", lambda *_: ["127.0.0.1"])
    names = []
    with ImageServer() as server:
        server.encrypt(pem, names.append)
        port = server.host.split(":")[1]
        server.add("/x.jpg", Response(JPEG))
        assert fetch.fetch(f"https://images.test:{port}/x.jpg", LOOPBACK).data == JPEG
        assert names == ["images.test"]
        assert server.asked[0].headers["host"] == f"images.test:{port}"
        server.add("/slow", Response(JPEG, drip_seconds=0.02))
        assert reason(f"https://images.test:{port}/slow", total_seconds=0.3) == "timeout"
        assert reason(f"https://other.test:{port}/x.jpg") == "certificate"
        monkeypatch.setattr(fetch, "_tls", ssl.create_default_context)
        assert reason(f"https://images.test:{port}/x.jpg") == "certificate"


def test_a_handshake_that_never_ends_is_cut_off(monkeypatch):
    monkeypatch.setattr(addresses, "resolve", lambda *_: ["127.0.0.1"])
    done = threading.Event()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def drip():
            connection, _ = listener.accept()
            with connection:
                # a handshake record of 16 kB, byte by byte: no single wait is long
                for byte in b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc" + bytes(1000):
                    if done.wait(0.02):
                        return
                    try:
                        connection.sendall(bytes([byte]))
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        started = time.monotonic()
        assert reason(f"https://images.test:{listener.getsockname()[1]}/", total_seconds=0.3) == "timeout"
        assert time.monotonic() - started < 2
        done.set()
        thread.join()
