"""What stands in for the proxy, and for who talks through it: plain sockets, each in its namespace."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from typing import Any

from smtpproxy.config import Config
from smtpproxy.gateway.nft import Options, modes_of, text
from tests.gateway.namespaces import SERVER, Namespace, Network, eventually

PORT = 2525
SMTP = 25
ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "[::]"}
FAMILIES = (socket.AF_INET, socket.AF_INET6)


def listener(mode: str, family: socket.AddressFamily, **said: Any) -> dict[str, Any]:
    """A listener of the configuration, as TOML would have it."""
    name = f"{mode}-{'v6' if family == socket.AF_INET6 else 'v4'}"
    return {"name": name, "listen": f"{ANY[family]}:{PORT}", "mode": mode, **said}


def config(*listeners: Mapping[str, Any], **said: Any) -> Config:
    return Config.model_validate({"listener": listeners, **said})


def both(mode: str, **said: Any) -> Config:
    """A listener of each family."""
    return config(*(listener(mode, family, **said) for family in FAMILIES))


def printed(settings: Config, **options: Any) -> str:
    """What all its listeners need."""
    return text(settings, Options(modes_of(settings), **options), "smtpproxy.toml")


class Proxy:
    """The proxy's listener on the gateway."""

    def __init__(self, network: Network, family: socket.AddressFamily, mode: str = "tproxy", port: int = PORT) -> None:
        self._network = network
        self._family = family
        self._mode = mode
        self._listener = network.gateway.listen(family, port, transparent=mode == "tproxy")

    def accept(self) -> socket.socket:
        return self._network.gateway.accept(self._listener)

    def destination(self, accepted: socket.socket) -> tuple[str, int]:
        """Where the client was going."""
        if self._mode == "tproxy":
            host, port, *_ = accepted.getsockname()
            return host, port
        v6 = self._family == socket.AF_INET6  # SO_ORIGINAL_DST is 80 in both: linux/netfilter_ipv4.h, ip6_tables.h
        octets = accepted.getsockopt(socket.IPPROTO_IPV6 if v6 else socket.SOL_IP, 80, 28 if v6 else 16)
        host = socket.inet_ntop(self._family, octets[8:24] if v6 else octets[4:8])
        return host, int.from_bytes(octets[2:4], "big")

    def dial(self, accepted: socket.socket, *, keep: bool = True) -> socket.socket:
        """The server's link, from the client's address and port."""
        source = accepted.getpeername()[:2] if keep else None
        return self._network.gateway.connect(*self.destination(accepted), source, transparent=keep)

    def stop(self) -> None:
        self._listener.close()


def carries(one: socket.socket, other: socket.socket, octets: int = 1) -> bool:
    """Octets pass both ways between the two ends of a connection."""
    for sender, receiver in ((one, other), (other, one)):
        sender.sendall(b"x" * octets)
        left = octets
        while left:
            got = len(receiver.recv(left))
            assert got, "the connection ended"
            left -= got
    return True


def ends(one: socket.socket, other: socket.socket) -> bool:
    """The connection is closed in order, by `one` first."""
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    other.close()
    assert one.recv(1) == b""
    one.close()
    return True


def call(network: Network, family: socket.AddressFamily, port: int = SMTP, host: str = "") -> socket.socket:
    """The client connects; OSError as connect(2) has it."""
    return network.client.connect(host or SERVER.of(family), port)


def refused(network: Network, family: socket.AddressFamily, port: int = SMTP, host: str = "") -> bool:
    try:
        call(network, family, port, host)
    except ConnectionRefusedError:
        return True
    return False


def begin(network: Network, family: socket.AddressFamily, port: int = SMTP) -> socket.socket:
    """The client's connection, begun and not waited for."""
    sock = network.client.tcp(family)
    sock.setblocking(False)
    assert sock.connect_ex((SERVER.of(family), port)) == errno.EINPROGRESS
    return sock


def established(sock: socket.socket) -> bool:
    """Fails if it was refused."""
    assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def connects(sock: socket.socket) -> bool:
    """What was begun comes to be, by itself; TCP asks again after a second, then two."""
    return eventually("a connection that was held back", lambda: established(sock))


def held(network: Network, chain: str) -> int:
    """A first packet was dropped."""
    return eventually("a packet that is dropped", lambda: packets(network.gateway, chain, "drop"))


def packets(machine: Namespace, chain: str, verdict: str) -> int:
    """How often the counted rule of a chain of ours that ends so was met."""
    for item in machine.nft_json("list", "chain", "inet", "smtpproxy", chain):
        words = {key: value for word in item.get("rule", {}).get("expr", ()) for key, value in word.items()}
        if verdict in words and "counter" in words:
            return int(words["counter"]["packets"])
    raise AssertionError(f"{chain} has no counted rule that ends with {verdict}")


def watchdog_silent(network: Network) -> None:
    """The element that says that the proxy is well has ended."""
    network.gateway.nft("flush set inet smtpproxy alive")


def watchdog_speaks(network: Network) -> None:
    network.gateway.nft("add element inet smtpproxy alive { tcp timeout 1m }")
