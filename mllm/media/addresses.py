"""Which internet addresses may be fetched for untrusted clients: only public ones.

A host is resolved once: `is_public` checks the addresses, and `pinned` makes the connection use just these.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from mllm.errors import MediaError

Find = Callable[[str, int], Awaitable[list[str]]]  # host, port -> addresses; OSError if there are none


class FetchError(MediaError):
    """A recording cannot be fetched; the message reveals nothing about the network inside."""

    code = "media_not_fetched"


_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Not public, although `is_global` is True for them in some versions of Python.
_NOT_PUBLIC = [
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001::/23", "3fff::/20")
]
# The same message for every such host, whether it exists, listens or answers, so that clients learn nothing.
REFUSED = (
    "its host has no address on the public internet: this server fetches from nowhere else "
    "(unless started with --allow-private-media)"
)


def is_public(address: str) -> bool:
    """Whether an IP address is public; an IPv4 address embedded in an IPv6 one decides."""
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is None and ip not in _PUBLIC_IPV6:
            return False
        ip = inner or ip
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)


def addresses_of(host: str, port: int) -> list[str]:
    """Addresses from the system's resolver, which also accepts every notation of an IP address."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def client_key(address: str) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 /64 network."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else str(ip)


class Resolver(AbstractResolver):
    """An aiohttp resolver that calls `find`."""

    def __init__(self, find: Find):
        self.find = find

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
            for address in await self.find(host, port)
        ]

    async def close(self) -> None:
        pass


def pinned(addresses: list[str]) -> Find:
    """A `find` that returns the checked addresses, whatever the name server would answer by now."""

    async def find(host: str, port: int) -> list[str]:
        return addresses

    return find


def plain_host(host: str) -> str:
    """A host name normalised for comparison."""
    return host.lower().rstrip(".")


def web_address(text: str, base: URL | None = None) -> URL:
    """An http(s) URL, or one relative to `base`.

    Raises:
        FetchError: if it is not a valid one.
    """
    try:
        url = URL(text) if base is None else base.join(URL(text))
        if url.scheme in ("http", "https") and url.raw_host and url.port is not None:
            return url
    except ValueError:  # also for invalid ports, hosts and characters
        pass
    where = "a redirect leads to what" if base is not None else "it"
    raise FetchError(f"{where} is no address on the web: http:// or https://, a host and a path")
