"""This machine's own addresses, asked of the kernel (rtnetlink), and what is never a server's address.

They change while the proxy runs (an interface comes up, a virtual address moves to another gateway), so they are asked
for anew when the answer is older than `FRESH`. Where the kernel can't be asked (a sandbox without AF_NETLINK) no
address is known not to be ours: nobody is led anywhere that `reach` does not name, and the log says so once.
"""

import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final

import structlog

log = structlog.get_logger()

Where = tuple[str, int]  # address and port
FRESH = 5.0  # seconds

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
_RTM_NEWADDR: Final = 20
_RTM_GETADDR: Final = 22
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_REQUEST_DUMP: Final = 0x001 | 0x300
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr
_ADDRESS: Final = struct.Struct("=BBBBI")  # ifaddrmsg
_ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr
_PIECE: Final = 262_144


class Machine:
    """Which addresses are ours."""

    def __init__(self, clock: Callable[[], float], ask: Callable[[], frozenset[str]] | None = None) -> None:
        self._clock = clock
        self._ask = ask or own_addresses
        self._known: frozenset[str] | None = None
        self._asked_at = float("-inf")
        self._told = False

    def has(self, host: str) -> bool:
        """The address (in its canonical form) is one of this machine's, or may be."""
        now = self._clock()
        if now - self._asked_at > FRESH:
            self._asked_at = now
            try:
                self._known = self._ask()
            except OSError as error:
                if not self._told:
                    self._told = True
                    log.error("this machine's addresses can't be known: any may be its own", why=error.strerror)
        return self._known is None or host in self._known or ipaddress.ip_address(host).is_loopback


def own_addresses() -> frozenset[str]:
    """The addresses of all interfaces, in their canonical form.

    Raises:
        OSError: the kernel can't be asked.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.settimeout(1.0)
        link.send(_HEADER.pack(_HEADER.size + _ADDRESS.size, _RTM_GETADDR, _REQUEST_DUMP, 1, 0) + bytes(_ADDRESS.size))
        found: list[str] = []
        while True:
            for kind, body in _messages(link.recv(_PIECE)):
                if kind == _NLMSG_DONE:
                    return frozenset(found)
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    raise OSError(code, os.strerror(code))
                if kind == _RTM_NEWADDR:
                    found += _address(body)


def _messages(octets: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(octets):
        length, kind, _, _, _ = _HEADER.unpack_from(octets, at)
        if length < _HEADER.size:
            return
        yield kind, octets[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _address(body: bytes) -> list[str]:
    """Of one interface: the local address; of a point-to-point link IFA_ADDRESS is the peer's."""
    found: dict[int, bytes] = {}
    at = _ADDRESS.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS) or b""
    return [str(ipaddress.ip_address(packed))] if len(packed) in (4, 16) else []


def plain(address: Any) -> Where:
    """A socket address as it is written: IPv4 in IPv6 (`::ffff:192.0.2.1`) is IPv4, and a zone is no part of it."""
    return _plain(address[0]), address[1]


@lru_cache(maxsize=4096)
def _plain(host: str) -> str:
    found = ipaddress.ip_address(host.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def printable(address: Any) -> str:
    """`192.0.2.1:25` or `[2001:db8::1]:25`."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def family_of(host: str) -> socket.AddressFamily:
    """Of an address as it is written."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
