"""A hand-over: the program is started anew, perhaps in another version, and takes the place of the one that runs.

The one that runs passes its listening sockets on, by an environment variable that says which descriptor is which, and
keeps its own copies until the new one is ready to the last worker; so there is no moment at which nobody listens. What
passes between the two, over a pair of sockets that lives as long as both:

    new → old   READY   everything is prepared; nothing is accepted yet
    old → new   GO      accept: the old one has told its workers to drain, and ends with the last session
    new → old   STOP    the service is to stop: what is in flight is finished within the drain time, 421 to the rest
    new → old   END     everything is dropped

Its end tells each that the other is gone. A new one that is not ready in time is killed, and then nothing has happened;
one that loses the old one before it was told to go takes its place all the same, for nobody else is there.
"""

import contextlib
import os
import socket
import subprocess
from collections.abc import MutableMapping, Sequence

import msgspec
import structlog

from smtpproxy.audit.appending import WriteLock
from smtpproxy.net.founding import Shared
from smtpproxy.net.generation import Record
from smtpproxy.net.listening import Held
from smtpproxy.net.loop import Loop

log = structlog.get_logger()

VARIABLE = "SMTPPROXY_HANDOVER"
READY_IN = 60.0  # seconds
ENDS_IN = 1.0  # seconds for one that has let go of us to end
READY, GO, STOP, END = b"READY", b"GO", b"STOP", b"END"
# What service managers set for one process, which is not the new one.
_NOT_PASSED = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID")


class _Passed(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One listener's sockets."""

    name: str
    listen: str
    sockets: tuple[int, ...]
    unit: bool


class _Inheritance(msgspec.Struct, frozen=True):
    """What is passed on: descriptors by number. Fields may be added; who does not know them leaves them alone."""

    talk: int
    lock: int
    file: tuple[int, int]  # device and inode of the audit that the lock is for
    held: tuple[_Passed, ...]


class _Talk:
    """One end of the pair."""

    def __init__(self, sock: socket.socket, loop: Loop) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._loop = loop
        self.heard: list[bytes] = []  # and not looked at yet
        self.ended = False  # the other one is gone
        loop.watch(sock.fileno(), self._hear)

    def say(self, word: bytes) -> None:
        """If it is gone that will be heard."""
        with contextlib.suppress(OSError):
            self._socket.send(word, socket.MSG_NOSIGNAL)

    def _hear(self) -> None:
        try:
            word = self._socket.recv(64)
        except BlockingIOError:
            return
        except OSError:
            word = b""
        if word:
            self.heard.append(word)
        else:
            self.ended = True
            self._loop.forget(self._socket.fileno())

    def close(self) -> None:
        """Nothing more is said."""
        self._loop.forget(self._socket.fileno())
        self._socket.close()


class Successor(_Talk):
    """The new one, as the old one sees it.

    Args:
        command: what starts the program as this one was started.

    Raises:
        OSError: it can't be started.
    """

    def __init__(self, command: Sequence[str], held: Sequence[Held], record: Record, loop: Loop) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        passed = tuple(
            _Passed(one.name, one.listen, tuple(sock.fileno() for sock in one.sockets), one.unit) for one in held
        )
        inheritance = _Inheritance(its.fileno(), record.lock.fileno(), record.file, passed)
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED}
        environment[VARIABLE] = msgspec.json.encode(inheritance).decode()
        descriptors = [its.fileno(), record.lock.fileno(), *(fd for one in passed for fd in one.sockets)]
        try:
            with its:
                self._process = subprocess.Popen(  # noqa: S603 - as this process was started
                    list(command), pass_fds=descriptors, env=environment
                )
        except BaseException:
            ours.close()
            raise
        self._until = loop.now + READY_IN
        super().__init__(ours, loop)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def ready(self) -> bool:
        """It can go."""
        return READY in self.heard

    def wish(self) -> bytes:
        """What it wants of us, who have gone: STOP, END, or nothing."""
        wishes = [word for word in self.heard if word in (STOP, END)]
        self.heard.clear()
        return wishes[-1] if wishes else b""

    def failure(self) -> str:
        """Why it will not take over; "" as long as it may."""
        code = self._process.poll()
        if code is not None:
            return f"it ended with {code}" if code >= 0 else f"it was killed by signal {-code}"
        if self.ended:  # as a rule because it is about to end, and how says more
            self._until = min(self._until, self._loop.now + ENDS_IN)
        if self._loop.now < self._until:
            return ""
        return "it lost its way to us" if self.ended else f"it was not ready within {READY_IN:.0f} s"

    def go(self) -> None:
        """It is the service from now on, and nobody's child."""
        self.say(GO)
        self._process.returncode = 0

    def kill(self) -> None:
        """It is not to take over: its workers end when they see that it is gone."""
        self._process.kill()
        self._process.wait()
        self.close()


class Predecessor(_Talk):
    """The old one, as the new one sees it; and what it passed on."""

    def __init__(self, sock: socket.socket, held: Sequence[Held], lock: WriteLock, file: tuple[int, int], loop: Loop):
        super().__init__(sock, loop)
        self.held = tuple(held)
        self.shared = Shared(lock, file)
        self._is_ready = False

    def ready(self) -> None:
        """Say so, once."""
        if not self._is_ready:
            self._is_ready = True
            self.say(READY)

    @property
    def lets_go(self) -> bool:
        """We are the service."""
        return self.ended or GO in self.heard


def inherited(loop: Loop, environ: MutableMapping[str, str] = os.environ) -> Predecessor | None:
    """Whose place this process is to take, if it was started for that. The variable goes: it is not for others."""
    said = environ.pop(VARIABLE, "")
    if not said:
        return None
    try:
        passed = msgspec.json.decode(said, type=_Inheritance)
        held = [
            Held(one.name, one.listen, tuple(socket.socket(fileno=_ours(fd)) for fd in one.sockets), one.unit)
            for one in passed.held
        ]
        for sock in (sock for one in held for sock in one.sockets):
            sock.setblocking(False)
        talk, lock = socket.socket(fileno=_ours(passed.talk)), WriteLock(_ours(passed.lock))
    except (msgspec.MsgspecError, OSError) as error:
        log.error("what was passed on at a hand-over is of no use", why=str(error))
        return None
    return Predecessor(talk, held, lock, passed.file, loop)


def _ours(descriptor: int) -> int:
    """It is not for programs that we start."""
    os.set_inheritable(descriptor, False)
    return descriptor
