"""Where a request may go: redirects, public addresses, names, ports; and what is no address at all."""

import ipaddress
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_server import ImageServer, Response, redirect
from small_fetch import JPEG, LOOPBACK, reason

from data_prep.fetching import addresses, fetch
from data_prep.fetching.fetch import (
    FetchSettings,
)


@pytest.fixture(scope="module")
def server():
    with ImageServer() as server:
        yield server


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://127.0.0.2/x.jpg", "private_address"),
        ("http://10.0.0.1/x.jpg", "private_address"),
        ("http://169.254.169.254/latest/meta-data", "private_address"),
        ("file:///etc/passwd", "bad_url"),
        ("ftp://127.0.0.1/x.jpg", "bad_url"),
        ("http://user:password@127.0.0.1/x.jpg", "bad_url"),
        ("http://[::1/x.jpg", "bad_url"),
    ],
)
def test_where_a_redirect_leads_is_checked_like_the_first_url(server, location, expected):
    assert reason(server.add("/away", redirect(location))) == expected


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "0", "0.0.0.0", "localhost"),
        *(
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[::127.0.0.1]",
        ),
        *("10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "240.0.0.1"),
        *("255.255.255.255", "[fe80::1]", "[fc00::1]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]"),
    ],
)
def test_hosts_that_are_not_on_the_public_internet_are_refused_before_any_connection(host, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a connection was opened"))
    assert fetch.fetch(f"http://{host}/x.jpg", FetchSettings()).reason == "private_address"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("151.101.1.1", True),
        ("2606:4700::1", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),  # 8.8.8.8 as an IPv6-only network writes it
        ("2002:808:808::1", True),
        ("64:ff9b::a00:1", False),  # 10.0.0.1
        ("2002:a00:1::1", False),
        ("fe80::1%eth0", False),
        ("192.0.2.1", False),
        ("198.18.0.1", False),
    ],
)
def test_public_addresses(address, public):
    assert addresses.is_public(address) is public


def test_every_private_block_of_the_registries_is_refused_at_both_ends():
    # IANA's special-purpose registries, the rows that are not globally reachable
    blocks = "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.2.0/24 192.168.0.0/16 "
    blocks += "198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 ::1/128 ::/128 100::/64 "
    blocks += "2001:db8::/32 fc00::/7 fe80::/10 ff00::/8"
    for block in map(ipaddress.ip_network, blocks.split()):
        assert not addresses.is_public(str(block[0])), block
        assert not addresses.is_public(str(block[-1])), block


def test_a_name_with_one_private_address_is_refused(monkeypatch):
    monkeypatch.setattr(addresses, "resolve", lambda *_: ["8.8.8.8", "10.0.0.1"])
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a connection was opened"))
    assert fetch.fetch("http://images.test/x.jpg", FetchSettings()).reason == "private_address"


def test_the_address_that_was_checked_is_the_one_connected_to(server, monkeypatch):
    """A name that answers differently the second time (DNS rebinding) is asked once only."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    monkeypatch.setattr(addresses, "resolve", lambda *_: answers.pop(0))
    server.add("/named", Response(JPEG))
    port = server.host.split(":")[1]
    assert reason(f"http://images.test:{port}/named") == ""
    assert answers == [["127.0.0.2"]]
    assert server.asked[-1].headers["host"] == f"images.test:{port}"


def test_the_next_address_of_a_name_is_tried_where_one_does_not_answer(server, monkeypatch):
    monkeypatch.setattr(addresses, "resolve", lambda *_: ["127.0.0.9", "127.0.0.1"])
    server.add("/second", Response(JPEG))
    url = f"http://images.test:{server.host.split(':')[1]}/second"
    assert reason(url, private_networks=("127.0.0.0/8",)) == ""
    monkeypatch.setattr(addresses, "resolve", lambda *_: ["127.0.0.9", "127.0.0.8"])
    assert reason(url, private_networks=("127.0.0.0/8",)) == "connection"


def test_a_name_that_does_not_resolve(monkeypatch):
    def fails(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    fetched = fetch.fetch("http://images.test/x.jpg", FetchSettings())
    assert (fetched.reason, fetched.temporary) == ("dns", True)


@pytest.mark.parametrize(
    "url",
    [
        *("", " ", "x.jpg", "//127.0.0.1/x.jpg", "http://", "http:///x.jpg", "javascript:alert(1)", "data:image/png,x"),
        *("http://user@127.0.0.1/", "http://:@127.0.0.1/", "http://127.0.0.1:99999/", "http://127.0.0.1:0/"),
        *("http://127.0.0.1:x/", "http://[::1", "http://a..b/", f"http://{'a' * 64}.org/", "http://127.0.0.1/\udc80"),
        f"http://127.0.0.1/{'x' * 9000}",
    ],
)
def test_bad_urls_are_named_and_never_raise(url):
    fetched = fetch.fetch(url, LOOPBACK)
    assert (fetched.reason, fetched.temporary) == ("bad_url", False)
    assert fetch.host_key(url) == ""


@given(st.one_of(st.text(), st.text(":/?#[]@%.a1\udcff\0\r é", max_size=20).map("http://".__add__)))
@settings(max_examples=300, deadline=None)
def test_no_text_makes_it_raise(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a connection was opened"))
        patch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("10.0.0.1", 80))])
        refused = fetch.fetch(text, FetchSettings()).reason
    assert refused in ("bad_url", "refused_port", "private_address")
    assert (fetch.host_key(text) == "") == (refused == "bad_url")


def test_no_line_can_be_smuggled_into_a_request(server):
    server.add("/line%0D%0AX-Evil:%20yes", Response(JPEG))
    assert reason(f"{server.url}/line\r\nX-Evil: yes") == ""
    assert not any("x-evil" in asked.headers for asked in server.asked)
    assert reason(f"{server.url}\r\nX-Evil: yes/") == "bad_url"


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://PBS.twimg.com/media/x.jpg?name=large", "pbs.twimg.com:443"),
        ("http://example.org/", "example.org:80"),
        ("http://example.org:8080/", "example.org:8080"),
        ("http://[2606:4700::1]/", "[2606:4700::1]:80"),
    ],
)
def test_host_keys(url, key):
    assert fetch.host_key(url) == key


def test_ports_are_limited(server):
    url = server.add("/port", Response(JPEG))
    assert reason(url, ports=(80, 443)) == "refused_port"
    assert reason(url, ports=(80, int(server.host.split(":")[1]))) == ""
