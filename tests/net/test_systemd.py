"""What a service manager is told, octet for octet, and the sockets it gives; against a manager of our own."""

import contextlib
import fcntl
import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from smtpproxy.net.systemd import MOMENT, Notifier, activated, called


class Manager:
    """Who listens at NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(10)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def hear(self) -> list[str]:
        """The lines of the next datagram."""
        return self.socket.recv(65_536).decode().split("\n")

    def hear_with_descriptors(self) -> tuple[list[str], list[int]]:
        """And what came along."""
        said, descriptors, _flags, _address = socket.recv_fds(self.socket, 65_536, 256)
        return said.decode().split("\n"), list(descriptors)

    @property
    def idle(self) -> bool:
        """Nothing more was said."""
        return not select.select([self.socket], [], [], 0)[0]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    with manager.socket:
        yield manager


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    notifier = Notifier(manager.address)
    yield notifier
    notifier.close()


# --------------------------------------------------------------------------------------------------------- telling


def test_what_is_said_is_said_as_systemd_wants_it(manager: Manager, notifier: Notifier) -> None:
    assert notifier.ready("serving")
    assert manager.hear() == ["READY=1", "STATUS=serving"]
    assert notifier.ready()
    assert manager.hear() == ["READY=1"]
    assert notifier.stopping("draining: 3 sessions")
    assert manager.hear() == ["STOPPING=1", "STATUS=draining: 3 sessions"]
    assert notifier.status("12 sessions")
    assert manager.hear() == ["STATUS=12 sessions"]
    assert notifier.alive()
    assert manager.hear() == ["WATCHDOG=1"]
    assert notifier.mainpid(4711)
    assert manager.hear() == ["MAINPID=4711"]
    assert notifier.unstore("=127.0.0.1:25")
    assert manager.hear() == ["FDSTOREREMOVE=1", "FDNAME==127.0.0.1_25"]


def test_a_reload_says_since_when(manager: Manager, notifier: Notifier) -> None:
    """Type=notify-reload: systemd takes no READY that was sent before this for the end of this one."""
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert notifier.reloading("reading")
    first, since, status = manager.hear()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert (first, status) == ("RELOADING=1", "STATUS=reading")
    name, _, value = since.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= after


def test_a_status_stays_one_line(manager: Manager, notifier: Notifier) -> None:
    """What is in it must not become a line of its own."""
    notifier.status("a\nREADY=1\0\x1b[2Jé")
    assert manager.hear() == ["STATUS=a READY=1  [2Jé"]


def test_a_name_without_a_file(tmp_path: Path) -> None:
    manager = Manager(f"@smtpproxy-test-{os.getpid()}-{tmp_path.name}")
    with manager.socket, contextlib.closing(Notifier(manager.address)) as notifier:
        assert notifier.ready()
        assert manager.hear() == ["READY=1"]


@pytest.mark.parametrize("address", ["", "notify", "vsock:2:1234"])
def test_without_a_manager_nothing_is_told(address: str) -> None:
    notifier = Notifier(address)
    assert not notifier.ready()
    assert not notifier.store([("a", 0)])
    assert not notifier.alive()
    notifier.close()


def test_a_manager_that_is_gone_is_no_trouble(manager: Manager, notifier: Notifier) -> None:
    manager.socket.close()
    assert not notifier.ready()
    Path(manager.address).unlink()
    assert not notifier.ready()


def test_after_the_end_nothing_is_told(manager: Manager, notifier: Notifier) -> None:
    notifier.close()
    assert not notifier.ready()
    assert manager.idle
    notifier.close()


def test_a_busy_manager_is_waited_for_a_moment_and_no_longer(manager: Manager, notifier: Notifier) -> None:
    """Its queue is full. With what is said again soon it is not waited for at all."""
    heard = 0
    while notifier.alive():
        heard += 1
    assert heard > 0
    before = time.monotonic()
    assert not notifier.status("too much")
    assert time.monotonic() - before < MOMENT / 2
    assert not notifier.ready()
    assert MOMENT * 0.9 <= time.monotonic() - before < MOMENT * 5
    assert [manager.hear() for _ in range(heard)] == [["WATCHDOG=1"]] * heard
    assert manager.idle
    assert notifier.ready()


# ---------------------------------------------------------------------------------------------------------- fd store


def test_descriptors_go_into_the_store_by_name(manager: Manager, notifier: Notifier) -> None:
    """One datagram a name; the sockets of one listener (IPv4, IPv6) share it."""
    with contextlib.ExitStack() as stack:
        one, two, three = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3))
        assert notifier.store([("=b", two.fileno()), ("a:1", one.fileno()), ("=b", three.fileno())])
        kept: dict[str, set[tuple[str, int]]] = {}
        for _ in range(2):
            (order, name), descriptors = manager.hear_with_descriptors()
            assert order == "FDSTORE=1"
            for descriptor in descriptors:
                sock = stack.enter_context(socket.socket(fileno=descriptor))
                kept.setdefault(name, set()).add(sock.getsockname())
        assert manager.idle
        assert kept == {
            "FDNAME==b": {two.getsockname(), three.getsockname()},
            "FDNAME=a_1": {one.getsockname()},
        }


def test_more_descriptors_than_a_datagram_takes(manager: Manager, notifier: Notifier) -> None:
    with open(os.devnull, "rb") as file:
        assert notifier.store([("many", file.fileno())] * 300)
        counts = []
        for _ in range(2):
            _, descriptors = manager.hear_with_descriptors()
            counts.append(len(descriptors))
            for descriptor in descriptors:
                os.close(descriptor)
    assert counts == [253, 47]


def test_what_could_not_be_stored_is_told(manager: Manager, notifier: Notifier) -> None:
    with open(os.devnull, "rb") as file:
        assert not notifier.store([("a", 1_000_000), ("b", file.fileno())])  # no such descriptor
        assert manager.hear_with_descriptors()[0] == ["FDSTORE=1", "FDNAME=b"]


@pytest.mark.parametrize(
    ("name", "so"),
    [("smtp-in", "smtp-in"), ("=[::1]:25", "=[__1]_25"), ("a b\nc", "a_b_c"), ("é", "_"), ("", "unknown")],
)
def test_names_are_made_fit(name: str, so: str) -> None:
    assert called(name) == so
    assert called(called(name)) == so
    assert len(called("x" * 300)) == 255


# ---------------------------------------------------------------------------------------------------------- watchdog


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid())}, 2.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),  # another's: we were started by who is watched
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_the_watchdog_is_the_one_that_is_meant_for_this_process(environ: dict[str, str], seconds: float) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "/run/none", **environ})
    assert notifier.watchdog == seconds
    notifier.close()
    assert Notifier.from_environment(environ).watchdog == 0.0


# --------------------------------------------------------------------------------------------------------- activation


class Given(NamedTuple):
    """What a started program finds."""

    found: list[list[Any]]  # name, address, whether it blocks, whether it is inherited
    variables: list[str]  # what is left of them
    open: list[int]  # descriptors
    log: str


_SHOW = """
import json, os
from smtpproxy.net.systemd import activated
found = activated()
shown = [[name, list(sock.getsockname()[:2]), sock.getblocking(), sock.get_inheritable()] for name, sock in found]
variables = sorted(name for name in os.environ if name.startswith("LISTEN_"))
still = [fd for fd in range(3, 100) if os.path.lexists(f"/proc/self/fd/{fd}")]
print(json.dumps([shown, variables, still]))
"""
_START = """
import os, sys
for at, descriptor in enumerate(map(int, sys.argv[3:]), 3):
    os.dup2(descriptor, at)
os.closerange(3 + len(sys.argv[3:]), 1000)
os.environ["LISTEN_PID"] = sys.argv[2] or str(os.getpid())
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""


def start(given: list[int], *, pid: str = "", **environ: str) -> Given:
    """Start a program with these descriptors at 3 and up, as a service manager does."""
    away = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 100) for descriptor in given]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _START, _SHOW, pid, *map(str, away)],
            env={**os.environ, "LISTEN_FDS": str(len(given)), **environ},
            pass_fds=away,
            capture_output=True,
            text=True,
            timeout=30,
        )
    finally:
        for descriptor in away:
            os.close(descriptor)
    assert done.returncode == 0, done.stderr
    *log, last = done.stdout.splitlines()
    found, variables, still = json.loads(last)
    return Given(found, variables, still, "\n".join(log))


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]


def _numbers(sockets: list[socket.socket]) -> list[int]:
    return [sock.fileno() for sock in sockets]


def _addresses(sockets: list[socket.socket]) -> list[list[Any]]:
    return [list(sock.getsockname()) for sock in sockets]


def test_sockets_are_found_with_their_names(sockets: list[socket.socket]) -> None:
    """Non-blocking, and for no child."""
    given = start(_numbers(sockets), LISTEN_FDNAMES="in:=127.0.0.1_25")
    one, two = _addresses(sockets)
    assert given.found == [["in", one, False, False], ["=127.0.0.1_25", two, False, False]]
    assert (given.variables, given.open) == ([], [3, 4])


def test_newer_managers_say_who_is_meant_by_more_than_a_number(sockets: list[socket.socket]) -> None:
    given = start(_numbers(sockets), LISTEN_PIDFDID="12345")
    assert len(given.found) == 2
    assert given.variables == []


@pytest.mark.parametrize(
    ("names", "shown"), [("in", ["in", "unknown"]), ("", ["unknown"] * 2), (":a:b", ["unknown", "a"])]
)
def test_names_may_be_missing(sockets: list[socket.socket], names: str, shown: list[str]) -> None:
    given = start(_numbers(sockets), LISTEN_FDNAMES=names)
    assert [name for name, *_ in given.found] == shown


@pytest.mark.parametrize(
    ("pid", "count"), [("1", "2"), ("", "none"), ("", "-1"), ("", "0")], ids=["another's", "text", "negative", "none"]
)
def test_what_is_not_for_us_is_left_alone(sockets: list[socket.socket], pid: str, count: str) -> None:
    """A child inherits the variables of its parent; they are not meant for it, and not for its children."""
    given = start(_numbers(sockets), pid=pid, LISTEN_FDS=count)
    assert (given.found, given.variables, given.open) == ([], [], [3, 4])


def test_without_a_manager_there_are_none() -> None:
    environ = {"PATH": "/bin"}
    assert activated(environ) == []
    assert environ == {"PATH": "/bin"}


def test_what_is_no_listening_tcp_socket_is_closed_and_said(sockets: list[socket.socket], tmp_path: Path) -> None:
    """A connection (Accept=yes), UDP, a UNIX socket, a file, and a number that is nothing at all."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(sockets[0].getsockname()))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(tmp_path / "unix"))
        unix.listen()
        file = stack.enter_context(open(os.devnull, "rb"))
        wrong = [connection.fileno(), udp.fileno(), unix.fileno(), file.fileno()]
        names = "connection:udp:unix:good:file:nothing"
        given = start([*wrong[:3], sockets[1].fileno(), wrong[3]], LISTEN_FDS="6", LISTEN_FDNAMES=names)
    assert [(name, address) for name, address, *_ in given.found] == [("good", list(sockets[1].getsockname()))]
    assert given.open == [6]
    said = [name for name in names.split(":") if f"name={name}" in re.sub(r"\x1b\[\d*m", "", given.log)]
    assert said == ["connection", "udp", "unix", "file", "nothing"]
