"""Which machine a name leads to, and whether it is one of the public internet.

A data set's URLs are written by strangers. One that leads to this machine or its network would make a download read
what only insiders may (server-side request forgery), so whoever opens a connection asks here first.
"""

import functools
import ipaddress
import socket
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: how an IPv6-only network writes IPv4 addresses


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name (or of a number in any of its spellings), in the order to be tried."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: str) -> bool:
    """Say whether an IP address is one of the public internet: not this machine, its networks, or a reserved range.

    An IPv6 address that stands for an IPv4 one is judged as that.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])  # without the zone of a link-local one
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64 or int(ip) >> 32 == 0:  # the second: "IPv4-compatible", RFC 4291, 2.5.5.1
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def is_in(address: str, among: Iterable[Network]) -> bool:
    """Say whether an address is in one of some networks."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return any(ip in network for network in among)


@functools.cache
def networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """Read networks as in "10.1.0.0/16".

    Raises:
        ValueError: One is no network.
    """
    return tuple(ipaddress.ip_network(text) for text in texts)
