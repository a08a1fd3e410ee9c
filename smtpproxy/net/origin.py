"""Who a client is, and where it was going, when its connection did not come to us by its own will.

A listener has a mode, which says how connections reach it:

    forward    addressed to us. Where the client was going is where it came in; the server is the configured one
    redirect   led here by the kernel's NAT, which tells where they were going (SO_ORIGINAL_DST)
    tproxy     taken up by a transparent socket (IP_TRANSPARENT): our end of the connection has the server's address

A load balancer in front of any of them says in a PROXY header (proxyheader.py) who its client is; what it says of the
client's destination is put on record and can be matched, and is never connected to.

Where `server` is configured, everything goes there. Where it is not, a session goes where its client was going, if
`Reach` lets it: the mode would be an open door to whatever the gateway itself can reach otherwise. A destination that
is one of our own listeners is a loop, and so is a connection that is one of our own on its way out (`outgoing_key`):
interception caught what the proxy sends. Both are refused before anybody is connected to.

What must never happen: a client that is led to this machine's own services, or to addresses that mean something else
here than there (loopback, link-local), without an administrator having written that network down.
"""

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from smtpproxy.config import ListenerConfig
from smtpproxy.net.machine import Machine, Where, plain
from smtpproxy.net.proxyheader import ProxyHeader

# linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h, linux/in6.h; not in Python's socket module
SO_ORIGINAL_DST: Final = 80
IP6T_SO_ORIGINAL_DST: Final = 80
IPV6_TRANSPARENT: Final = 75
_SOCKADDR_IN: Final = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6: Final = struct.Struct("!2xHI16sI")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Origin(NamedTuple):
    """One connection: who, from where to where."""

    peer: Where  # the other end of the connection: the client, or a load balancer
    local: Where  # our end of it
    client: Where
    destination: Where | None  # where the client was going; None: the kernel does not know it
    header: ProxyHeader | None = None

    @property
    def going(self) -> Where:
        """Where the connection was going."""
        return self.destination or self.local

    @property
    def aim(self) -> Where:
        """Where the client was going, by a load balancer's word if there is one: to be matched, told and recorded."""
        said = self.header.destination if self.header is not None and not self.header.local else None
        return said or self.going

    def told(self, header: ProxyHeader) -> "Origin":
        """The same, with what a load balancer says."""
        if header.local or header.client is None:  # the balancer on its own account: a health check
            return self._replace(header=header)
        return self._replace(client=header.client, header=header)


def origin_of(mode: str, sock: socket.socket, peer: Where) -> Origin:
    """What the kernel knows of an accepted connection. Raises OSError if it is gone already."""
    local = plain(sock.getsockname())
    destination: Where | None = local
    if mode == "redirect":
        try:
            destination = original_destination(sock)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOPROTOOPT, errno.EOPNOTSUPP):
                raise
            destination = None  # nobody led it here
    return Origin(peer, local, peer, destination)


def original_destination(sock: socket.socket) -> Where:
    """Where a connection was going before NAT led it here.

    Raises:
        OSError: ENOENT, the kernel does not track it.
    """
    if (
        sock.family == socket.AF_INET6
        and ipaddress.IPv6Address(sock.getpeername()[0].partition("%")[0]).ipv4_mapped is None
    ):
        port, _, packed, _ = _SOCKADDR_IN6.unpack(
            sock.getsockopt(socket.IPPROTO_IPV6, IP6T_SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
        )
        return plain((socket.inet_ntop(socket.AF_INET6, packed), port))
    port, packed = _SOCKADDR_IN.unpack(sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, _SOCKADDR_IN.size))
    return socket.inet_ntop(socket.AF_INET, packed), port


def make_transparent(sock: socket.socket) -> None:
    """May have, and be found by, addresses that are not this machine's.

    Raises:
        PermissionError: that takes CAP_NET_RAW or CAP_NET_ADMIN.
    """
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)


def bind_as(sock: socket.socket, client: Where) -> None:
    """Give our end of the server's link the client's own address, and its port where that is free; port 0 is any.

    Raises:
        OSError: it can't be had at all.
    """
    make_transparent(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port may be waiting out an older connection
    if client[1]:
        try:
            sock.bind(client)
            return
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):  # the second: a port below 1024
                raise
    # The port is chosen when it is connected, so that one port can be used towards many servers (ip(7)).
    sock.setsockopt(socket.SOL_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((client[0], 0))


class Reach:
    """Where clients may be led."""

    def __init__(self, networks: Iterable[Network], machine: Machine) -> None:
        self._networks = tuple(networks)
        self._machine = machine

    def why_not(self, where: Where) -> str:
        """Why a client is not led there; "" if it may be."""
        address = ipaddress.ip_address(where[0])
        if self._networks:
            inside = any(address in network for network in self._networks)
            return "" if inside else f"{address} is in none of the networks of `reach`"
        for kind, word in (
            ("is_loopback", "a loopback address"),
            ("is_unspecified", "no address"),
            ("is_link_local", "a link-local address"),
            ("is_multicast", "a multicast address"),
        ):
            if getattr(address, kind):
                return f"{address} is {word}"
        if address == _BROADCAST or (address.version == 4 and address in _THIS_NETWORK):
            return f"{address} is no host's address"
        if self._machine.has(str(address)):
            return f"{address} is this machine's own"
        return ""


_BROADCAST = ipaddress.ip_address("255.255.255.255")
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")  # RFC 1122 §3.2.1.3; Linux takes 0.0.0.0 for itself


class Loops:
    """What would be a connection to ourselves."""

    def __init__(self, listening: Iterable[Where], machine: Machine) -> None:
        self.machine = machine
        self._hosts: dict[int, list[str]] = {}  # by port
        for host, port in listening:
            self._hosts.setdefault(port, []).append(host)

    def listens(self, where: Where) -> bool:
        """One of our own listeners is there."""
        host, port = where
        for own in self._hosts.get(port, ()):
            if own == host or (ipaddress.ip_address(own).is_unspecified and self.machine.has(host)):
                return True
        return False


def outgoing_key(source: Where, target: Where) -> bytes:
    """What a connection is known by, from whichever end it is seen."""
    return f"{source[0]} {source[1]} {target[0]} {target[1]}".encode()


def open_sockets(entry: ListenerConfig) -> list[socket.socket]:
    """The listening sockets of a listener (`localhost` has two); port 0 is any free one.

    Raises:
        OSError: one can't be had; with `tproxy` also because that takes CAP_NET_RAW or CAP_NET_ADMIN.
        UnicodeError: the name is not a host's.
    """
    host, wanted = entry.listen.host, entry.listen.port
    found = socket.getaddrinfo(host or None, wanted, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if entry.mode == "tproxy":
                make_transparent(sock)
            sock.bind(address)
            sock.listen(4096)
    except OSError as error:
        for sock in sockets:
            sock.close()
        if entry.mode == "tproxy" and isinstance(error, PermissionError):
            why = "a transparent socket takes CAP_NET_RAW or CAP_NET_ADMIN (`smtpproxy doctor` says how)"
            raise PermissionError(error.errno or errno.EPERM, why) from error
        raise
    return sockets
