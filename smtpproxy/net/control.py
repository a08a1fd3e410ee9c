"""The control socket: how `smtpproxy status` learns how it goes. A connection is answered with one JSON object, and
closed; nothing is asked, and nothing is read.

The supervisor does it beside its real work, in its own thread: it watches one descriptor (`fileno`), calls `handle`
when that is readable and `check` about once a second. Neither ever waits, and who is slow to read is given up.

Only root and the user the supervisor runs as are answered: the socket is open to nobody else (0600), and the kernel
says who connected.

What must never happen: that a client of it holds the supervisor up, or has it keep more than `MOST` answers.
"""

import contextlib
import errno
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import structlog

log = structlog.get_logger()

MOST = 16  # clients that have not read their answer yet
ACCEPTS = 16  # connections taken at once
PATIENCE = 5.0  # seconds: for a client to read, and for the supervisor to answer
LARGEST = 4_194_304  # octets of an answer
SILENT = 10.0  # seconds without a beat, after which a worker is not well
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)


class ControlError(Exception):
    """The socket can't be opened, or nobody answers there; its text says why."""


class Worker(msgspec.Struct, frozen=True):
    """One worker: what it does is starting, serving or draining."""

    pid: int
    generation: int
    state: str
    sessions: int = 0
    accepted: int = 0
    uptime: float = 0.0  # seconds
    beat: float | None = None  # seconds since it last said that it is well; None: not yet


class Bound(msgspec.Struct, frozen=True):
    """One listener, and where it listens."""

    name: str
    mode: str
    addresses: tuple[str, ...] = ()
    server: str = ""  # empty: where the client was going


class Status(msgspec.Struct, frozen=True):
    """How it goes: what is answered. What is not known is left out; who asks may be of another version."""

    version: str
    pid: int
    since: float  # seconds since 1970
    generation: int
    state: str = "serving"  # or starting, draining
    loaded: float = 0.0  # when the configuration in force was read, seconds since 1970
    ruleset: str = ""  # which rules are in force: a digest, as on record
    sessions: int = 0
    accepted: int = 0
    restarts: int = 0  # workers that had to be replaced
    workers: tuple[Worker, ...] = ()
    listeners: tuple[Bound, ...] = ()


class _Slow(NamedTuple):
    """Who has not taken all of its answer yet."""

    socket: socket.socket
    rest: bytes
    until: float


class Control:
    """The supervisor's end.

    Args:
        path: of the socket. What a supervisor that is gone left there is replaced.
        answer: how it goes, asked for each client.
        take_over: replace it though somebody answers there, whose place we take.

    Raises:
        ControlError: it can't be opened.
    """

    def __init__(
        self,
        path: str,
        answer: Callable[[], Status],
        *,
        take_over: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._answer = answer
        self._clock = clock
        self._slow: dict[int, _Slow] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._inode = _bind(self._socket, path, take_over)
        except OSError as error:
            self._socket.close()
            mend = f" (there is no {os.path.dirname(path)}: make it)" if error.errno == errno.ENOENT else ""
            raise ControlError(f"the control socket {path} can't be opened: {error.strerror or error}{mend}") from error
        self._epoll = select.epoll()
        self._epoll.register(self._socket, select.EPOLLIN)
        self._paused = False

    def fileno(self) -> int:
        """Readable when there is something to handle."""
        return self._epoll.fileno()

    def handle(self) -> None:
        """Do what can be done now."""
        for descriptor, _ in self._epoll.poll(0):
            if descriptor in self._slow:
                self._send(self._forget(descriptor))
            else:
                self._accept()

    def check(self) -> None:
        """Give up who is too slow; accept again, if that had to be given up."""
        now = self._clock()
        for descriptor, slow in tuple(self._slow.items()):
            if now >= slow.until:
                self._forget(descriptor).socket.close()
        if self._paused:
            self._paused = False
            self._epoll.register(self._socket, select.EPOLLIN)

    def _forget(self, descriptor: int) -> _Slow:
        self._epoll.unregister(descriptor)
        return self._slow.pop(descriptor)

    def close(self) -> None:
        """Answer no more, and take the socket away if it is still ours."""
        with contextlib.suppress(OSError):
            if _inode(self._path) == self._inode:
                os.unlink(self._path)
        for slow in self._slow.values():
            slow.socket.close()
        self._slow.clear()
        self._socket.close()
        self._epoll.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                client, _address = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor is left: the next try would fail as well
                self._paused = True
                self._epoll.unregister(self._socket)
                return
            client.setblocking(False)
            if len(self._slow) >= MOST or not _may_ask(client):
                client.close()
                continue
            try:
                answer = msgspec.json.encode(self._answer())
            except Exception as error:  # our own bug, and no reason to end
                log.error("the status can't be told", exc_info=error)
                client.close()
                continue
            self._send(_Slow(client, answer, self._clock() + PATIENCE))

    def _send(self, slow: _Slow) -> None:
        """As much as it takes; the rest is kept."""
        client, rest = slow.socket, slow.rest
        try:
            rest = rest[client.send(rest) :]
        except BlockingIOError:
            pass
        except OSError:  # it is gone
            rest = b""
        if rest:
            self._slow[client.fileno()] = slow._replace(rest=rest)
            self._epoll.register(client, select.EPOLLOUT)
        else:
            client.close()


def ask(path: str, patience: float = PATIENCE) -> dict[str, Any]:
    """What is answered at this path: a `Status`, as the one who answers knows it.

    Raises:
        ControlError: nothing that could be understood, in this time.
    """
    until = time.monotonic() + patience
    said = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(patience)
            sock.connect(path)
            while octets := sock.recv(65_536):
                said += octets
                if len(said) > LARGEST:
                    raise ControlError(f"who answers at {path} is no smtpproxy: it does not come to an end")
                sock.settimeout(max(until - time.monotonic(), 0.001))
    except OSError as error:
        mend = " (root may ask, and the user the proxy runs as)" if error.errno == errno.EACCES else ""
        raise ControlError(f"nobody answers at {path}: {error.strerror or error}{mend}") from error
    if not said:
        raise ControlError(f"no answer at {path}: it has too many to answer, or does not answer this user")
    try:
        return msgspec.json.decode(said, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ControlError(f"who answers at {path} is no smtpproxy: {error}") from error


def understood(answer: Mapping[str, Any]) -> Status:
    """What `ask` brought, as far as this version knows it.

    Raises:
        ControlError: that is not enough.
    """
    try:
        return msgspec.convert(answer, Status)
    except msgspec.ValidationError as error:
        raise ControlError(f"who answers is an smtpproxy that this one does not understand: {error}") from error


def unwell(status: Status) -> str:
    """Why a proxy that is so is not well, or ""."""
    current = [worker for worker in status.workers if worker.generation == status.generation]
    serving = [worker for worker in current if worker.state == "serving"]
    if any(worker.beat is not None and worker.beat < SILENT for worker in serving):
        return ""
    if serving:
        return f"no worker has said that it is well for {SILENT:.0f} s"
    if current:
        return f"no worker serves: {', '.join(sorted({worker.state for worker in current}))}"
    return "there is no worker of the configuration in force" if status.workers else "there is no worker"


def _bind(sock: socket.socket, path: str, take_over: bool) -> tuple[int, int]:
    """Listen at this path; there is never a moment at which nobody does, if somebody did. What it is known by.

    Raises:
        OSError: it can't be done.
    """
    if _taken(path) and not take_over:
        raise OSError("another smtpproxy answers there")
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(new).st_mode):  # of one that was killed just here
            os.unlink(new)
    os.fchmod(sock.fileno(), 0o600)  # before there is a name: nobody else ever gets in
    sock.bind(new)
    try:
        sock.listen(ACCEPTS)
        os.rename(new, path)
        return _inode(path)
    except OSError:
        os.unlink(new)
        raise


def _taken(path: str) -> bool:
    """Whether somebody listens there.

    Raises:
        OSError: what is there is no socket.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError("there is something else by this name, which is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except BlockingIOError:  # somebody does, and has too many to answer
        pass
    return True


def _inode(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _may_ask(client: socket.socket) -> bool:
    """Whether it is root or our own user that connected."""
    said = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(said)
    return uid in (0, os.geteuid())
