"""The proxy's side of the signing process (net/signer.py): asks, waits, starts it again when it has died.

Everything is by callbacks in the reactor's thread, and nothing blocks: the socket is watched like a peer's, time is
looked at by `check`, which is called about once a second. Whoever asks is always answered, exactly once: with a `Leaf`,
or with a text that says why not. While the signer is down that is at once.

- A leaf's key is made here and stays here; the signer is told its public part.
- A signer that is silent for `PATIENCE`, or that says what makes no sense, is as good as dead: it is ended, all who
  wait are told, and after a while (doubled each time, until one has signed something) a new one is started.
- Its first start is waited for: with a bad key or a wrong passphrase the proxy is not to start at all.

What must never happen: the CA's private key, or its passphrase, in this process.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog
import trio

from smtpproxy.net.reactor import Reactor
from smtpproxy.net.signer import LARGEST, Answer, Ready, Request
from smtpproxy.tls.minting import KeyPair, Leaf, Likeness, checked

log = structlog.get_logger()

PATIENCE = 10.0  # seconds for an answer, and for a signer that is started again
START = 30.0  # seconds for the first start
RETRY_SOON, RETRY = 1.0, 60.0  # seconds until a signer that died is started again, doubled each time
MOST_ASKED = 2000  # that wait for an answer
HEARD = 256  # answers taken in one turn
GRACE = 1.0  # seconds for it to end of its own when the proxy ends

Done = Callable[[Leaf | str], None]


class SignerError(Exception):
    """The signer can't be started; its text says why, in the signer's own words."""


class _Asked(NamedTuple):
    pair: KeyPair
    done: Done
    until: float  # monotonic


class Signer:
    """The signing process, started, asked, watched and ended.

    Attributes:
        program: the command that runs it, before its options.
        pid: the process; 0 while there is none.
        ready: it can be asked.
    """

    program: tuple[str, ...] = (sys.executable, "-P", "-m", "smtpproxy.net.signer")

    def __init__(
        self,
        reactor: Reactor,
        directory: Path,
        passphrase_file: Path | None = None,
        *,
        days: int = 30,
        rate: float = 100,
        burst: int = 1000,
        log_level: str = "info",
        log_json: bool = False,
    ) -> None:
        self._reactor = reactor
        self._options = ["--directory", str(directory.absolute()), f"--days={days}", f"--rate={rate}"]
        self._options += [f"--burst={burst}", f"--log-level={log_level}", *(["--log-json"] if log_json else [])]
        if passphrase_file is not None:
            self._options += ["--passphrase-file", str(passphrase_file.absolute())]
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ended: list[subprocess.Popen[bytes]] = []  # not reaped yet
        self._asked: dict[int, _Asked] = {}  # the oldest first
        self._unsent: deque[bytes] = deque()
        self._number = 0
        self._above = b""  # PEM of the CA's certificate
        self._delay = RETRY_SOON
        self._start_at = float("inf")  # when it is started again
        self._ready_by = float("inf")  # when one that was started again is given up
        self._closed = False
        self.ready = False

    @property
    def pid(self) -> int:
        """The process; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def certificate(self) -> bytes:
        """The CA's certificate (PEM), b"" before the first start."""
        return self._above

    async def start(self) -> None:
        """Start it, and wait until it can be asked.

        Raises:
            SignerError: it can't; the process is gone again.
        """
        try:
            sock = self._spawn()
            with trio.fail_after(START):
                await trio.lowlevel.wait_readable(sock)
            self._above = _hear_ready(sock)
        except (SignerError, OSError, trio.TooSlowError) as error:
            self.close()
            why = f"nothing was heard of it for {START:.0f} s" if isinstance(error, trio.TooSlowError) else str(error)
            raise SignerError(f"the signing process can't be started: {why}") from error
        except BaseException:  # cancelled
            self.close()
            raise
        self.ready = True
        self._reactor.watch_level(sock.fileno(), self)

    def mint(self, like: Likeness, done: Done) -> None:
        """Have a certificate of this likeness made. `done` is called once: with it, or with why not.

        Where it is refused at once, that is before this returns.
        """
        if not self.ready:
            self._tell(done, "the signing process is not running")
            return
        if len(self._asked) >= MOST_ASKED:
            self._tell(done, f"{MOST_ASKED} certificates are waited for already")
            return
        pair = KeyPair()
        self._number += 1
        try:
            checked(like)
            request = msgspec.msgpack.encode(Request(self._number, *like, spki=pair.spki))
        except Exception as error:  # whatever a caller takes for a likeness
            self._tell(done, str(error))
            return
        self._asked[self._number] = _Asked(pair, done, self._reactor.now + PATIENCE)
        self._unsent.append(request)
        self._send()

    def event(self, fd: int, mask: int) -> None:
        """The signer has said something, or is gone."""
        self._hear()
        self._send()

    def check(self) -> None:
        """Called about once a second: who waited too long is told, what has died is reaped and started again."""
        self._ended = [process for process in self._ended if process.poll() is None]
        if self._closed:
            return
        now = self._reactor.now
        if self.pid == 0:
            if now >= self._start_at:
                self._start_again()
            return
        self._hear(MOST_ASKED)  # while the record can't be written no event is, and that is not the signer's fault
        self._send()
        oldest = next(iter(self._asked.values()), None)
        if self._socket is None:  # lost meanwhile
            return
        if not self.ready and now >= self._ready_by:
            self._lost(f"it was not ready within {PATIENCE:.0f} s")
        elif oldest is not None and now >= oldest.until:
            self._lost(f"it did not answer within {PATIENCE:.0f} s")

    def close(self) -> None:
        """End it and reap it. Who still waits is told; so is who asks after this."""
        if self._closed:
            return
        self._closed = True
        process = self._drop()
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it ends when it sees the closed socket
                process.wait(GRACE)
            process.kill()
            self._ended.append(process)
        for ended in self._ended:
            ended.wait()
        self._ended.clear()
        self._tell_all("the proxy is ending")

    # ------------------------------------------------------------------------------------------- the process

    def _spawn(self) -> socket.socket:
        """A new process, and our end of the socket to it.

        Raises:
            OSError: there can't be one.
        """
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with its:
                ours.setblocking(False)
                self._process = subprocess.Popen(  # noqa: S603 - our own program, options of the configuration
                    [*self.program, f"--socket={its.fileno()}", *self._options],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[its.fileno()],
                    process_group=0,  # Ctrl-C is for the proxy
                    # It looks for modules where this process does; not where it was started (-P), unless we do.
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
        except BaseException:
            ours.close()
            raise
        self._socket = ours
        return ours

    def _start_again(self) -> None:
        """Start a new one; it is watched, and asked when it says that it is ready."""
        log.info("the signing process is started again")
        self._ready_by = self._reactor.now + PATIENCE
        try:
            sock = self._spawn()
            self._reactor.watch_level(sock.fileno(), self)
        except OSError as error:
            self._lost(error.strerror or str(error))

    def _lost(self, why: str) -> None:
        """It is of no more use: end it, tell who waits, and start another one after a while."""
        process = self._drop()
        if process is not None:
            process.kill()
            self._ended.append(process)
        self._start_at = self._reactor.now + self._delay
        log.error("the signing process is lost", why=why, waiting=len(self._asked), again_in=self._delay)
        self._delay = min(self._delay * 2, RETRY)
        self._tell_all(f"the signing process is lost: {why}")

    def _drop(self) -> subprocess.Popen[bytes] | None:
        """Let go of the socket; the process that was behind it."""
        self.ready = False
        self._unsent.clear()
        sock, self._socket = self._socket, None
        if sock is not None:
            self._reactor.forget(sock.fileno())
            sock.close()
        process, self._process = self._process, None
        return process

    # --------------------------------------------------------------------------------------- what is said

    def _send(self) -> None:
        """What it has not been asked yet. Where it has no room the rest goes when it has answered something."""
        while self._unsent and self._socket is not None:
            try:
                self._socket.send(self._unsent[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError as error:
                self._lost(error.strerror or str(error))
                return
            self._unsent.popleft()

    def _hear(self, most: int = HEARD) -> None:
        """What it has said. The socket is reported as long as there is something, so not all need be taken now."""
        for _ in range(most):
            sock = self._socket
            if sock is None:  # lost, by what somebody did who was told
                return
            try:
                datagram = sock.recv(LARGEST + 1)
            except BlockingIOError:
                return
            except OSError:  # ended with something unread
                datagram = b""
            if not datagram:
                self._lost("it has ended")
                return
            try:
                if self.ready:
                    self._answered(msgspec.msgpack.decode(datagram, type=Answer))
                else:
                    self._above = _ready(datagram)
                    self.ready = True
                    log.info("the signing process is back")
            except SignerError as error:
                self._lost(str(error))
            except (msgspec.MsgspecError, ValueError) as error:
                self._lost(f"it said what is no answer: {error}")

    def _answered(self, answer: Answer) -> None:
        asked = self._asked.pop(answer.number, None)
        if asked is None:
            raise SignerError(f"it answered what nobody asked: {answer.why}" if answer.why else "nobody asked that")
        if answer.why:
            self._tell(asked.done, answer.why)
            return
        try:
            leaf = asked.pair.leaf(answer.der, self._above)
        except ValueError as error:
            self._tell(asked.done, str(error))
            return
        self._delay = RETRY_SOON
        self._tell(asked.done, leaf)

    def _tell_all(self, why: str) -> None:
        asked, self._asked = self._asked, {}
        for waiting in asked.values():
            self._tell(waiting.done, why)

    @staticmethod
    def _tell(done: Done, what: Leaf | str) -> None:
        try:
            done(what)
        except Exception as error:  # our own bug: the others are told all the same
            log.error("a minted certificate could not be used", exc_info=error)


def _hear_ready(sock: socket.socket) -> bytes:
    """The first datagram of a signer.

    Raises:
        SignerError: it can't sign, or has died.
        OSError: the socket is broken.
    """
    datagram = sock.recv(LARGEST + 1)
    if not datagram:
        raise SignerError("it ended at once; what it wrote to standard error says why")
    return _ready(datagram)


def _ready(datagram: bytes) -> bytes:
    """The CA's certificate, if the signer is ready.

    Raises:
        SignerError: it is not.
    """
    try:
        ready = msgspec.msgpack.decode(datagram, type=Ready)
    except (msgspec.MsgspecError, ValueError) as error:
        raise SignerError(f"it said what makes no sense: {error}") from error
    if ready.why:
        raise SignerError(ready.why)
    return ready.certificate
