"""client – gateway – server: three machines on one, each a network namespace, joined by veth pairs.

      client                        gateway                        server
    192.0.2.10  ─── clients ──  192.0.2.1   198.51.100.1  ── servers ───  198.51.100.25
    2001:db8:1::10              2001:db8:1::1  2001:db8:2::1              2001:db8:2::25

The gateway forwards, the two others have it for their default route. The links are made inside the namespaces and the
names hold the number of this process: nothing here is seen by, or changes, the machine's own network, and many of them
may be there at once. `Network` takes all of it away at its end; what a killed process left is taken away by the next.

A namespace is used in two ways. `run` and `start` are for programs. `inside` moves this thread there, so sockets made
in it are that machine's and stay so: one test holds client, proxy and server in its hands and needs no threads.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from tests.peers import PeerError, PeerUnavailable
from tests.peers.process import find, need_root

T = TypeVar("T")

NEEDED = ("ip", "nft", "nsenter", "setpriv")
DEADLINE = 10.0
STEP = 0.02
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_PREFIX = "smtpproxy"
_counter = itertools.count(1)


class Addresses(NamedTuple):
    """The same place in both families."""

    v4: str
    v6: str

    def of(self, family: socket.AddressFamily) -> str:
        return self.v6 if family == socket.AF_INET6 else self.v4


CLIENT = Addresses("192.0.2.10", "2001:db8:1::10")
OTHER_CLIENT = Addresses("192.0.2.11", "2001:db8:1::11")
GATEWAY = Addresses("192.0.2.1", "2001:db8:1::1")  # as the client sees it
GATEWAY_OUTSIDE = Addresses("198.51.100.1", "2001:db8:2::1")  # as the server sees it
SERVER = Addresses("198.51.100.25", "2001:db8:2::25")
OTHER_SERVER = Addresses("198.51.100.26", "2001:db8:2::26")
CLIENTS = "clients"  # the gateway's interface where clients are
SERVERS = "servers"
FAR = Addresses("203.0.113.25", "2001:db8:3::25")
_FAR_ROUTER = Addresses("203.0.113.1", "2001:db8:3::1")

_SETTINGS = {  # before there are interfaces. All three forward: who does waits for no router
    "net.ipv4.ip_forward": 1,
    "net.ipv6.conf.all.forwarding": 1,
    "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv6.conf.all.accept_dad": 0,
    "net.ipv6.conf.default.accept_ra": 0,
    "net.ipv6.conf.default.router_solicitations": 0,
    # IPv4's come from the machine: here they are always the same, the strict ones where there is a choice.
    **{
        f"net.ipv4.conf.{where}.{name}": value
        for where in ("all", "default")
        for name, value in {"rp_filter": 1, "src_valid_mark": 0, "accept_local": 0, "route_localnet": 0}.items()
    },
}


def eventually(what: str, look: Callable[[], T], seconds: float = DEADLINE) -> T:
    """What `look` says as soon as it is anything; fails when it was nothing for too long."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(STEP)
    return found


class Namespace:
    """One of the machines. What is made in it is closed, or ended, by `stack`."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        self.name = name
        self.path = Path("/run/netns", name)
        self._stack = stack

    def add(self) -> None:
        """Makes it, with nothing but `lo`."""
        _ip(f"netns add {self.name}")
        self._stack.callback(_ip, f"netns delete {self.name}")
        for name, value in _SETTINGS.items():
            self.sysctl(name, value)
        _ip(f"-n {self.name} link set lo up")

    def run(
        self, *argv: str | Path, stdin: str = "", check: bool = True, seconds: float = DEADLINE, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """A program, to its end."""
        done = subprocess.run(
            self.command(argv),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, **env},
            check=False,
        )
        if check and done.returncode:
            said = f"{done.stdout}{done.stderr}".strip()
            raise PeerError(f"{self.name}: {' '.join(map(str, argv))}: {done.returncode}: {said}\n{stdin}")
        return done

    def start(self, *argv: str | Path, log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """A program that goes on until the end."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                [find("setpriv"), "--pdeathsig", "KILL", "--", *self.command(argv)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )
        self._stack.callback(end, process)
        return process

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """What runs a program here; for who starts it in another way."""
        # nsenter rather than `ip netns exec`: no mount namespace, no /sys of its own, half the time
        return [find("nsenter"), f"--net={self.path}", "--", *map(str, argv)]

    def ip(self, *words: str) -> None:
        self.run(find("ip"), *words)

    def nft(self, text: str) -> None:
        """Loads, as `nft -f` does."""
        self.run(find("nft"), "-f", "-", stdin=text)

    def nft_json(self, *words: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run(find("nft"), "-j", *words).stdout)["nftables"]
        return found

    def sysctl(self, name: str, value: int) -> None:
        with self.inside():
            Path("/proc/thread-self/root/proc/sys", *name.split(".")).write_text(f"{value}\n")

    def link_local(self, interface: str) -> str:
        with self.inside():
            lines = _lines("/proc/thread-self/net/if_inet6")
        found = next(line for line in lines if line.startswith("fe80") and line.endswith(f" {interface}"))
        return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(found.split()[0]))

    def has_socket_in_state(self, state: str) -> bool:
        """By the number the kernel shows, of net/tcp_states.h."""
        with self.inside():
            lines = [line for name in ("tcp", "tcp6") for line in _lines("/proc/thread-self/net/" + name)]
        return any(line.split()[3] == state for line in lines)

    @contextmanager
    def inside(self) -> Iterator[Self]:
        """This thread is in the namespace: sockets, files of /proc/sys/net and children that are made belong to it."""
        with open("/proc/thread-self/ns/net", "rb") as home, self.path.open("rb") as there:
            _enter(there.fileno())
            try:
                yield self
            finally:
                _enter(home.fileno())

    def tcp(self, family: socket.AddressFamily, *, transparent: bool = False) -> socket.socket:
        """A TCP socket of this machine, with a deadline."""
        with self.inside():
            sock = self._stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.settimeout(DEADLINE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if transparent:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, 75, 1)  # IPV6_TRANSPARENT, linux/in6.h
            else:
                sock.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
        return sock

    def listen(
        self, family: socket.AddressFamily, port: int, address: str = "", *, transparent: bool = False
    ) -> socket.socket:
        sock = self.tcp(family, transparent=transparent)
        sock.bind((address, port))
        sock.listen()
        return sock

    def accept(self, listener: socket.socket) -> socket.socket:
        sock, _ = listener.accept()
        sock.settimeout(DEADLINE)
        return self._stack.enter_context(sock)

    def connect(
        self, address: str, port: int, source: tuple[str, int] | None = None, *, transparent: bool = False
    ) -> socket.socket:
        """Raises OSError as `connect` does."""
        sock = self.tcp(socket.AF_INET6 if ":" in address else socket.AF_INET, transparent=transparent)
        if source:
            sock.bind(source)
        sock.connect((address, port))
        return sock


class Network:
    """The three of them. A context manager; `stack` is for what a test starts in them."""

    def __init__(self) -> None:
        for program in NEEDED:
            find(program)
        need_root("a network namespace")
        number = f"{_PREFIX}-{os.getpid()}-{next(_counter)}"
        self.stack = ExitStack()
        self.client = Namespace(f"{number}-client", self.stack)
        self.gateway = Namespace(f"{number}-gateway", self.stack)
        self.server = Namespace(f"{number}-server", self.stack)

    def __enter__(self) -> Self:
        _sweep()
        try:
            for namespace in (self.client, self.gateway, self.server):
                namespace.add()
            _ip(*self._links())
        except BaseException as error:
            self.stack.close()
            if isinstance(error, PeerError) and "not permitted" in str(error):
                raise PeerUnavailable(f"network namespaces can't be made here: {error}") from None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def beyond(self, host: Namespace, mtu: int) -> Namespace:
        """A machine at FAR, behind `host`, which sends it no larger packets. The far one does not know that."""
        far = Namespace(f"{host.name.rpartition('-')[0]}-far", self.stack)
        far.add()
        near, gateway = host.name, self.gateway.name
        via = SERVER if host is self.server else CLIENT
        macs = "02:00:00:00:09:01", "02:00:00:00:09:02"
        _ip(
            f"-n {far.name} link add uplink address {macs[0]} type veth peer name far address {macs[1]} netns {near}",
            f"-n {near} link set far mtu {mtu}",
        )
        for name, interface, own, other, mac in (
            (far.name, "uplink", FAR, _FAR_ROUTER, macs[1]),
            (near, "far", _FAR_ROUTER, FAR, macs[0]),
        ):
            _ip(
                f"-n {name} link set {interface} up",
                f"-n {name} address add {own.v4}/24 dev {interface}",
                f"-n {name} address add {own.v6}/64 dev {interface} nodad",
                f"-n {name} neighbour add {other.v4} lladdr {mac} dev {interface} nud permanent",
                f"-n {name} neighbour add {other.v6} lladdr {mac} dev {interface} nud permanent",
            )
        _ip(
            f"-n {far.name} route add default via {_FAR_ROUTER.v4}",
            f"-n {far.name} route add default via {_FAR_ROUTER.v6}",
            f"-n {gateway} route add 203.0.113.0/24 via {via.v4}",
            f"-n {gateway} route add 2001:db8:3::/64 via {via.v6}",
        )
        return far

    def load(self, text: str) -> None:
        """Does on the gateway what a text of `smtpproxy nft` tells in its comments, and loads it."""
        for heading in ("This machine", "Packets with the mark"):
            for command in commands(text, heading):
                if command[0] == "sysctl":
                    name, _, value = command[2].partition("=")
                    self.gateway.sysctl(name, int(value))
                else:
                    self.gateway.run(*command)
        self.gateway.nft(text)

    def unload(self, text: str) -> None:
        """Takes it away in the way it tells."""
        self.follow(text, "Take it away")

    def follow(self, text: str, heading: str) -> None:
        """Runs the commands of its comments, behind a line that begins so."""
        found = commands(text, heading)
        assert found, f"nothing is told of {heading!r}"
        for command in found:
            self.gateway.run(*command)

    def _links(self) -> Iterator[str]:
        """Neighbours are told, not found: who is up first would lose its question, and asks again a second later."""
        gateway = self.gateway.name
        for number, (host, at, own, router) in enumerate(
            (
                (self.client, CLIENTS, (CLIENT, OTHER_CLIENT), GATEWAY),
                (self.server, SERVERS, (SERVER, OTHER_SERVER), GATEWAY_OUTSIDE),
            )
        ):
            macs = f"02:00:00:00:{number:02}:01", f"02:00:00:00:{number:02}:02"
            yield (
                f"-n {host.name} link add uplink address {macs[0]} type veth"
                f" peer name {at} address {macs[1]} netns {gateway}"
            )
            for namespace, interface, addresses, mac, others in (
                (host.name, "uplink", own, macs[1], (router,)),
                (gateway, at, (router,), macs[0], own),
            ):
                yield f"-n {namespace} link set {interface} up"
                for address in addresses:
                    second = (
                        "" if address is addresses[0] else " preferred_lft 0"
                    )  # not for connections of its own will
                    yield f"-n {namespace} address add {address.v4}/24 dev {interface}"
                    yield f"-n {namespace} address add {address.v6}/64 dev {interface} nodad{second}"
                for other in itertools.chain.from_iterable(others):
                    yield f"-n {namespace} neighbour add {other} lladdr {mac} dev {interface} nud permanent"
            yield f"-n {host.name} route add default via {router.v4}"
            yield f"-n {host.name} route add default via {router.v6}"


def commands(text: str, heading: str) -> list[list[str]]:
    """The commands that a printed text has in its comments, indented, behind a line that begins so."""
    _, _, rest = text.partition(f"\n# {heading}")
    found = itertools.takewhile(
        lambda line: line.startswith("# ") and not line[2:].startswith("#"), rest.splitlines()[1:]
    )
    return [line[1:].split() for line in found if line.startswith("#     ")]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends what was started here, at once."""
    process.kill()
    process.wait(DEADLINE)


def _ip(*commands: str) -> None:
    for command in commands:
        done = subprocess.run([find("ip"), *command.split()], capture_output=True, text=True, timeout=DEADLINE)
        if done.returncode:
            raise PeerError(f"ip {command}: {done.stderr.strip()}")


def _sweep() -> None:
    """Namespaces of test processes that were killed."""
    for path in Path("/run/netns").glob(f"{_PREFIX}-*-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            subprocess.run([find("ip"), "netns", "delete", path.name], capture_output=True, timeout=DEADLINE)


_libc = ctypes.CDLL(None, use_errno=True)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
