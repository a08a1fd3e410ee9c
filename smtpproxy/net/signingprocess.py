"""The supervisor's side of the signing process (net/signer.py): starts it, watches it, starts it again.

There is one for all workers. For each of them there is a pair of sockets, and both ends of each are kept here: so a
worker that is replaced and a signer that is started again go on with the same sockets, and what was asked meanwhile
waits in them. Nothing is asked or answered here. The code is synchronous: `start` waits, all else is `check`, which is
called about once a second.

- Its first start is waited for: with a bad key or a wrong passphrase the proxy is not to start at all.
- One that dies, or that is silent for `PATIENCE`, is ended, and after a while (doubled each time, until one has lasted)
  another is started. It signs for the CA that the first one did, or not at all: the workers show that certificate.
- It ends with the supervisor, however that ends: its life is a socket whose other end nobody else has. Where somebody
  has it all the same, it sees a moment later that its parent is another one.
- A worker keeps its end of its own pair, and none of the other descriptors here (forking.py): it must not read others'
  certificates, nor pass for the signer or its supervisor. One worker at a time has a pair; two would take each other's
  answers.

What must never happen: the CA's private key, or its passphrase, in this process.
"""

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from smtpproxy.config import Config
from smtpproxy.net.privileges import Identity
from smtpproxy.net.signer import LARGEST, Ready

log = structlog.get_logger()

PATIENCE = 10.0  # seconds for a sign of life, and for a signer that is started again
START = 30.0  # seconds for the first start
RETRY_SOON, RETRY = 1.0, 60.0  # seconds until a signer that died is started again, doubled each time
LASTED = 60.0  # seconds one was there that was ready: what comes then is another trouble
GRACE = 1.0  # seconds for it to end of its own
HEARD = 100  # datagrams taken in one look
_PING = b"?"


class SignerError(Exception):
    """The signer can't be started; its text says why, in the signer's own words."""


class _Pair(NamedTuple):
    workers: socket.socket
    signers: socket.socket

    def close(self) -> None:
        self.workers.close()
        self.signers.close()


class _Running(NamedTuple):
    process: subprocess.Popen[bytes]
    life: socket.socket


class SigningProcess:
    """The signing process, started, watched and ended.

    Attributes:
        program: the command that runs it, before its options.
        certificate: the CA's (PEM), b"" before the first start.
        ready: it has said so, and is there as far as is known.
    """

    program: tuple[str, ...] = (sys.executable, "-P", "-m", "smtpproxy.net.signer")

    def __init__(
        self,
        directory: Path,
        passphrase_file: Path | None = None,
        *,
        slots: int,
        days: int = 30,
        rate: float = 100,
        burst: int = 1000,
        log_level: str = "info",
        log_json: bool = False,
        user: Identity | None = None,
    ) -> None:
        """What is started by `start`.

        Args:
            directory, passphrase_file: where the CA is.
            slots: pairs of sockets, one for each worker there can be at a time.
            days: of validity, at most.
            rate, burst: certificates a second for all workers together, and how many at once.
            log_level, log_json: how it logs, to the standard error of this process.
            user: who it becomes, once it has read the key.
        """
        self._options = ["--directory", str(directory.absolute()), f"--days={days}", f"--rate={rate}"]
        self._options += [f"--burst={burst}", f"--log-level={log_level}", *(["--log-json"] if log_json else [])]
        if passphrase_file is not None:
            self._options += ["--passphrase-file", str(passphrase_file.absolute())]
        if user is not None:
            self._options.append(f"--identity={user.uid}:{user.gid}:{','.join(map(str, user.groups))}")
        self._slots = slots
        self._pairs: list[_Pair] = []
        self._running: _Running | None = None
        self._ended: list[subprocess.Popen[bytes]] = []  # not reaped yet
        self._delay = RETRY_SOON
        self._start_at = float("inf")  # when it is started again
        self._since = 0.0  # when it was started
        self._pinged_at: float | None = None  # and no answer yet
        self._closed = False
        self.certificate = b""
        self.ready = False

    @classmethod
    def of(cls, config: Config, slots: int, user: Identity | None = None) -> "SigningProcess | None":
        """As it is configured; None where nothing is to be signed."""
        ca = config.ca
        if not ca.directory or not any(variant.entry.tls.makes_certificates for variant in config.variants()):
            return None
        return cls(
            Path(ca.directory),
            Path(ca.passphrase_file) if ca.passphrase_file else None,
            slots=slots,
            days=ca.days,
            rate=ca.rate,
            burst=ca.burst,
            log_level=config.log.level,
            log_json=config.log.format == "json",
            user=user,
        )

    @property
    def pid(self) -> int:
        """The process; 0 while there is none."""
        return self._running.process.pid if self._running is not None else 0

    def start(self) -> None:
        """Start it, and wait until it can be asked.

        Raises:
            SignerError: it can't; the process is gone again.
        """
        try:
            self._pairs = [_pair() for _ in range(self._slots)]
            life = self._spawn().life
            waiting = select.poll()
            waiting.register(life, select.POLLIN)
            if not waiting.poll(START * 1000):
                raise SignerError(f"nothing was heard of it for {START:.0f} s")
            datagram = life.recv(LARGEST + 1)
            if not datagram:
                raise SignerError("it ended at once; what it wrote to standard error says why")
            self.certificate = _certificate(datagram)
        except (SignerError, OSError) as error:
            self.close()
            raise SignerError(f"the signing process can't be started: {error}") from error
        except BaseException:
            self.close()
            raise
        self._options.append(f"--fingerprint={sha256(self.certificate).hexdigest()}")
        self._since = time.monotonic()
        self.ready = True

    def socket_of(self, slot: int) -> socket.socket:
        """The end for the worker in this slot. It does not block, and stays this object's."""
        return self._pairs[slot].workers

    def check(self, now: float) -> None:
        """Called about once a second, and before a worker is forked: what has died is reaped, and started again.

        Args:
            now: the monotonic time.
        """
        self._ended = [process for process in self._ended if process.poll() is None]
        if self._closed:
            return
        if self._running is None:
            if now >= self._start_at:
                self._start_again(now)
            return
        try:
            self._hear(self._running.life)
            self._look(self._running.life, now)
        except SignerError as error:
            self._lost(str(error), now)

    def close(self) -> None:
        """End it and reap it."""
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
        for pair in self._pairs:
            pair.close()

    # ------------------------------------------------------------------------------------------- the process

    def _spawn(self) -> _Running:
        """A new process, and our end of its life.

        Raises:
            OSError: there can't be one.
        """
        ours, its = _pair()
        try:
            with its:
                handed = [pair.signers.fileno() for pair in self._pairs]
                process = subprocess.Popen(  # noqa: S603 - our own program, options of the configuration
                    [*self.program, f"--life={its.fileno()}", "--sockets", *map(str, handed), *self._options],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[its.fileno(), *handed],
                    process_group=0,  # Ctrl-C is for the proxy
                    # It looks for modules where this process does; not where it was started (-P), unless we do.
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
        except BaseException:
            ours.close()
            raise
        self._running = _Running(process, ours)
        return self._running

    def _start_again(self, now: float) -> None:
        log.info("the signing process is started again")
        self._since = now
        try:
            self._spawn()
        except OSError as error:
            self._lost(error.strerror or str(error), now)

    def _lost(self, why: str, now: float) -> None:
        """It is of no more use: end it, and start another one after a while."""
        if self.ready and now - self._since >= LASTED:
            self._delay = RETRY_SOON
        process = self._drop()
        if process is not None:
            process.kill()
            self._ended.append(process)
        self._start_at = now + self._delay
        log.error("the signing process is lost", why=why, again_in=self._delay)
        self._delay = min(self._delay * 2, RETRY)

    def _drop(self) -> subprocess.Popen[bytes] | None:
        """Let go of its life; the process that had it."""
        self.ready = False
        running, self._running = self._running, None
        if running is None:
            return None
        running.life.close()
        return running.process

    def _hear(self, life: socket.socket) -> None:
        """What it has said: first that it is ready, then that it is there.

        Raises:
            SignerError: that it can't sign, or it has ended.
        """
        for _ in range(HEARD):
            try:
                datagram = life.recv(LARGEST + 1)
            except BlockingIOError:
                return
            except OSError:  # ended with something unread
                datagram = b""
            if not datagram:
                raise SignerError("it has ended")
            if not self.ready:
                _certificate(datagram)
                self.ready = True
                log.info("the signing process is back")
            self._pinged_at = None

    def _look(self, life: socket.socket, now: float) -> None:
        """Whether it is there, and its sockets are.

        Raises:
            SignerError: no.
        """
        self._mend()
        if not self.ready:
            if now >= self._since + PATIENCE:
                raise SignerError(f"it was not ready within {PATIENCE:.0f} s")
        elif self._pinged_at is None:
            self._pinged_at = now
            try:
                life.send(_PING, socket.MSG_NOSIGNAL)
            except OSError as error:
                raise SignerError(error.strerror or str(error)) from error
        elif now >= self._pinged_at + PATIENCE:
            raise SignerError(f"it was silent for {PATIENCE:.0f} s")

    def _mend(self) -> None:
        """A worker that was taken over can shut down its pair, for all who have it: the next is to have another.

        Raises:
            SignerError: one was, and the signer must have the new one.
        """
        looked = select.poll()
        for pair in self._pairs:
            looked.register(pair.workers, select.POLLRDHUP)
            looked.register(pair.signers, select.POLLRDHUP)
        shut = {descriptor for descriptor, _ in looked.poll(0)}
        if not shut:
            return
        for slot, pair in enumerate(self._pairs):
            if shut & {pair.workers.fileno(), pair.signers.fileno()}:
                self._pairs[slot] = _pair()
                pair.close()
        raise SignerError("a worker has shut down its socket")


def _pair() -> _Pair:
    """Two ends of a connection of datagrams; neither blocks."""
    made = _Pair(*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    for end in made:
        end.setblocking(False)
    return made


def _certificate(datagram: bytes) -> bytes:
    """The CA's certificate, if the signer says that it is ready.

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
