"""What a service manager is told, and the sockets it gives: systemd's protocol, without its library (sd_notify(3),
sd_listen_fds(3)). Others speak it too; where none does, telling is nothing.

What must never happen: that the proxy waits for its manager longer than a moment, or fails for it.
"""

import array
import contextlib
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from itertools import groupby
from typing import NamedTuple

import structlog

log = structlog.get_logger()

FIRST = 3  # the descriptor of the first socket given
MOMENT = 1.0  # seconds a manager that is busy is waited for, with what it must hear
_NOTIFY = "NOTIFY_SOCKET"
_WATCHDOG = ("WATCHDOG_USEC", "WATCHDOG_PID")
_LISTEN = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
_MOST = 253  # descriptors of one datagram (SCM_MAX_FD)


class Activated(NamedTuple):
    """A listening socket that was given, and what it is called."""

    name: str
    socket: socket.socket


class Notifier:
    """Tells the manager. Each call says whether it was heard; that it was not is no reason to stop.

    Attributes:
        watchdog: seconds within which `alive` must be said again and again, 0.0 if the manager does not mind.

    Args:
        address: of the manager's socket, as NOTIFY_SOCKET has it: a path, or @ and a name. Empty: there is none.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self.watchdog = watchdog
        self._socket: socket.socket | None = None
        self._address = "\0" + address[1:] if address.startswith("@") else address
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Notifier":
        """As the manager that started this process wants it. The variables stay, for who is to take our place."""
        address = environ.get(_NOTIFY, "")
        return cls(address, _interval(environ) if address else 0.0)

    def ready(self, status: str = "") -> bool:
        """Everything is open and connections are served; also behind `reloading`."""
        return self._tell("READY=1", *_status(status))

    def reloading(self, status: str = "") -> bool:
        """The configuration is being read again; `ready` is said when that is done, whatever came of it."""
        now = time.monotonic_ns() // 1000
        return self._tell("RELOADING=1", f"MONOTONIC_USEC={now}", *_status(status))

    def stopping(self, status: str = "") -> bool:
        """No connection is accepted any more."""
        return self._tell("STOPPING=1", *_status(status))

    def status(self, text: str) -> bool:
        """A line for who asks how it goes."""
        return self._tell(*_status(text), wait=0.0)

    def alive(self) -> bool:
        """The watchdog need not bark."""
        return self._tell("WATCHDOG=1", wait=0.0)

    def mainpid(self, pid: int) -> bool:
        """Another process is the service from now on. Said by the one that has been it so far."""
        return self._tell(f"MAINPID={pid}")

    def store(self, sockets: Iterable[tuple[str, int]]) -> bool:
        """Have the manager keep these descriptors (name, number) for who is started next. It needs
        FileDescriptorStoreMax=, and what it has already is not kept twice."""
        heard = True
        for name, of_name in groupby(sorted(sockets), lambda named: named[0]):
            numbers = [number for _, number in of_name]
            for at in range(0, len(numbers), _MOST):
                told = self._tell("FDSTORE=1", f"FDNAME={called(name)}", descriptors=numbers[at : at + _MOST])
                heard = told and heard
        return heard

    def unstore(self, name: str) -> bool:
        """What it keeps by this name is not needed any more."""
        return self._tell("FDSTOREREMOVE=1", f"FDNAME={called(name)}")

    def close(self) -> None:
        """Tell nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, *lines: str, descriptors: Iterable[int] = (), wait: float = MOMENT) -> bool:
        if self._socket is None:
            return False
        rights = array.array("i", descriptors)
        more = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        self._socket.settimeout(wait)
        try:
            self._socket.sendmsg(["\n".join(lines).encode()], more, 0, self._address)
        except OSError as error:
            log.debug("the service manager did not hear", what=lines[0], why=str(error))
            return False
        return True


def activated(environ: MutableMapping[str, str] = os.environ) -> list[Activated]:
    """The listening sockets that the manager gave to this process, opened for it or kept for it in the store:
    close-on-exec and non-blocking. What else is given is closed, and said. The variables go: they are not for our
    children."""
    said = {name: environ.pop(name, "") for name in _LISTEN}
    if said["LISTEN_PID"] != str(os.getpid()) or not said["LISTEN_FDS"].isdecimal():
        return []
    names = said["LISTEN_FDNAMES"].split(":")
    found = []
    for number in range(int(said["LISTEN_FDS"])):
        name = names[number] if number < len(names) and names[number] else "unknown"
        sock = _listening(FIRST + number)
        if sock is None:
            log.warning("what was given is no listening TCP socket, and not used", name=name, descriptor=FIRST + number)
        else:
            found.append(Activated(name, sock))
    return found


def called(name: str) -> str:
    """A name as the protocol can have it: printable ASCII without a colon, 255 characters."""
    return "".join(c if "!" <= c <= "~" and c != ":" else "_" for c in name)[:255] or "unknown"


def _interval(environ: Mapping[str, str]) -> float:
    """Seconds of the watchdog that is meant for this process."""
    interval, pid = (environ.get(name, "") for name in _WATCHDOG)
    mine = pid in ("", str(os.getpid()))
    return int(interval) / 1e6 if mine and interval.isdecimal() else 0.0


def _status(text: str) -> Iterator[str]:
    if text:
        yield "STATUS=" + "".join(c if c.isprintable() else " " for c in text)


def _listening(descriptor: int) -> socket.socket | None:
    """The socket at this descriptor. None, and it is closed, if that is no listening TCP socket."""
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
    except OSError:  # a file, or nothing at all
        with contextlib.suppress(OSError):
            os.close(descriptor)
        return None
    tcp = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
    if not tcp or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        return None
    sock.setblocking(False)
    return sock
