"""The signing process: `python -m smtpproxy.net.signer`. It alone has the CA's private key.

The supervisor starts it (net/signingprocess.py) with one socket of datagrams for each worker, and a worker asks it for
one certificate a datagram (net/signing.py). It reads no octet of any SMTP peer: what it is asked is the `Likeness` that
the worker took from a server's certificate and a public key, both bounded and checked anew here, because who asks does
read hostile octets.

- Of all who ask at once each has one answer in turn. Who does not take its answers is not read from until it has.
- How many it signs is bounded (a bucket of tokens, for all workers together): who took over a worker can have
  certificates while that lasts, never the key, and each of them is in the log. What such a worker does to its socket
  ends that socket, not this process.
- Its life is a socket, too: there it says `Ready`, the CA's certificate or why it can't sign, then one octet for each
  that comes; and when the other end, which nobody has but the supervisor, is closed, it ends. So it does when the
  supervisor is no longer its parent, and only then: what stops the proxy (a service manager signals all processes of a
  service) must not stop this one before the workers have finished what is in flight.
- It is not dumped and leaves no core file. Started as root it may become another user, once it has read the key.

What must never happen: the key, or the passphrase, in an answer, in the log or in a traceback.
"""

import argparse
import ctypes
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
from cryptography import x509

from smtpproxy.net.privileges import Identity, PrivilegeError, drop
from smtpproxy.tls import authority, minting
from smtpproxy.tls.authority import Authority, AuthorityError
from smtpproxy.tls.minting import Likeness

log = structlog.get_logger()

LARGEST = 65_536  # octets of a datagram
SHOWN = 10  # names of a certificate that the log shows
QUIET = 1.0  # seconds between two lines about what was refused
LOOK = 1.0  # seconds between looks at who the parent is
_PR_SET_DUMPABLE = 4
_ASKED = select.POLLIN | select.POLLRDHUP
_CLOSED = select.POLLHUP | select.POLLRDHUP

_Text = Annotated[str, msgspec.Meta(max_length=255)]


class Request(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One certificate is asked for. `number` is in the answer."""

    number: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    names: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=minting.MOST_NAMES)]
    subject: Annotated[tuple[tuple[_Text, _Text], ...], msgspec.Meta(max_length=minting.MOST_ATTRIBUTES)]
    not_before: int
    not_after: int
    spki: Annotated[bytes, msgspec.Meta(max_length=255)]


class Answer(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """The certificate (DER), or why not. `number` is 0 where the request could not be read."""

    number: int
    der: bytes = b""
    why: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class Ready(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """The CA's certificate (PEM), or why nothing will be signed."""

    certificate: bytes = b""
    why: Annotated[str, msgspec.Meta(max_length=4000)] = ""


class Bucket:
    """Tokens: `burst` at first and at most, `rate` more each second."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._at = clock()

    def take(self) -> bool:
        """One of them, if there is one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Signing:
    """Answers requests. Counts and logs what it signs, and, in summary, what it refuses."""

    def __init__(
        self,
        ca: Authority,
        days: int,
        bucket: Bucket,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ca = ca
        self._days = days
        self._bucket = bucket
        self._wall = wall
        self._clock = clock
        self._said_at = float("-inf")
        self._unsaid = 0
        self.minted = 0
        self.refused = 0

    def answer(self, datagram: bytes) -> Answer:
        """What to answer to this datagram, whatever it is."""
        if len(datagram) > LARGEST:
            return self._refuse(0, f"more than {LARGEST} octets")
        try:
            asked = msgspec.msgpack.decode(datagram, type=Request)
        except (msgspec.MsgspecError, ValueError) as error:  # the second: text that is no UTF-8
            return self._refuse(0, f"not a request: {error}")
        if not self._bucket.take():
            return self._refuse(asked.number, "more certificates are asked for than may be signed just now")
        like = Likeness(asked.names, asked.subject, asked.not_before, asked.not_after)
        try:
            der = minting.mint(self._ca, like, asked.spki, self._wall(), self._days)
        except ValueError as error:
            return self._refuse(asked.number, str(error))
        except Exception as error:  # our own bug: this one is refused, the next may do
            log.error("signing failed", exc_info=error)
            return self._refuse(asked.number, "signing failed")
        self.minted += 1
        more = {"more_names": len(like.names) - SHOWN} if len(like.names) > SHOWN else {}
        log.info("minted", names=like.names[:SHOWN], **more, serial=serial(der), number=self.minted)
        return Answer(asked.number, der)

    def _refuse(self, number: int, why: str) -> Answer:
        """Refuse; in a flood not every one has a line of the log."""
        self.refused += 1
        self._unsaid += 1
        now = self._clock()
        if now - self._said_at >= QUIET:
            log.warning("not minted", why=why[:200], since_last=self._unsaid, refused=self.refused)
            self._said_at = now
            self._unsaid = 0
        return Answer(number, why=why[:1000])


def serial(der: bytes) -> str:
    """The serial number of a certificate, as the log writes it."""
    return f"{x509.load_der_x509_certificate(der).serial_number:x}"


class Desk:
    """The workers, and who answers them. `serve` returns when the supervisor is gone."""

    def __init__(self, life: socket.socket, sockets: Iterable[socket.socket], signing: Signing) -> None:
        self._life = life
        self._sockets = {sock.fileno(): sock for sock in sockets}
        self._signing = signing
        self._held: dict[int, bytes] = {}  # answers there was no room for
        self._poll = select.poll()
        self._poll.register(life, select.POLLIN)
        for descriptor in self._sockets:
            self._poll.register(descriptor, _ASKED)

    def serve(self, parent: int) -> None:
        """Answer all who ask, while the parent is this one and the other end of life is open."""
        while os.getppid() == parent and self.turn(LOOK):
            pass

    def turn(self, patience: float) -> bool:
        """Wait so many seconds for who asks, then answer each of them once; False: the supervisor is gone."""
        life = self._life.fileno()
        lives = True
        for descriptor, mask in self._poll.poll(patience * 1000):
            if descriptor == life:
                lives = self._lives()
            else:
                self._answer(descriptor, mask)
        return lives

    def _lives(self) -> bool:
        """The supervisor has asked whether we are there, and is told; False: it is gone."""
        try:
            octets = self._life.recv(LARGEST, socket.MSG_DONTWAIT)
            if octets:
                self._life.send(octets, socket.MSG_DONTWAIT)
        except BlockingIOError:  # it does not listen: one answer less
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False
        return bool(octets)

    def _answer(self, descriptor: int, mask: int) -> None:
        """One worker's next question; or the answer that waits for room."""
        sock = self._sockets[descriptor]
        answer = self._held.pop(descriptor, b"")
        if not answer:
            try:
                datagram = sock.recv(LARGEST + 1, socket.MSG_DONTWAIT)
            except BlockingIOError:  # somebody else has taken it
                return
            except ConnectionResetError:
                datagram = b""
            if not datagram and mask & _CLOSED:  # else it is empty, and no request
                self._let_go(descriptor)
                return
            answer = msgspec.msgpack.encode(self._signing.answer(datagram))
        try:
            sock.send(answer, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._held[descriptor] = answer
            self._poll.modify(descriptor, select.POLLOUT)
        except (BrokenPipeError, ConnectionResetError):
            self._let_go(descriptor)
        else:
            self._poll.modify(descriptor, _ASKED)

    def _let_go(self, descriptor: int) -> None:
        """The supervisor keeps both ends open: it is the worker that has shut it down, which ours do not."""
        self._poll.unregister(descriptor)
        self._sockets.pop(descriptor).close()
        log.warning("a worker's socket to the signer was shut down", left=len(self._sockets))


def open_authority(directory: Path, passphrase_file: Path | None) -> Authority:
    """The CA, by the files it is in.

    Raises:
        AuthorityError: it can't be used.
    """
    return authority.load(directory, authority.read_passphrase(passphrase_file) if passphrase_file else b"")


def harden() -> None:
    """Nobody may look into this process: no core file, no debugger of the same user, no /proc/PID/mem."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the process can't be made undumpable")


def identity(text: str) -> Identity:
    """`UID:GID:GROUP,GROUP` as it is on the command line.

    Raises:
        ValueError: it is not that.
    """
    uid, gid, groups = text.split(":")
    return Identity(int(uid), int(gid), tuple(int(group) for group in groups.split(",") if group))


def main() -> None:
    """The process."""
    parent = os.getppid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="smtpproxy.net.signer", description="Started by the proxy, not by hand.")
    parser.add_argument("--life", type=int, required=True, help="an inherited descriptor")
    parser.add_argument("--sockets", type=int, nargs="+", required=True, help="inherited descriptors, one a worker")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--passphrase-file", type=Path)
    parser.add_argument("--fingerprint", default="", help="SHA-256 of the CA's certificate (PEM), if it is known")
    parser.add_argument("--identity", type=identity, help="who to be, once the key was read: UID:GID:GROUP,GROUP")
    parser.add_argument("--days", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--burst", type=int, required=True)
    parser.add_argument("--log-json", action="store_true")
    parser.add_argument("--log-level", default="info")
    options = parser.parse_args()
    _set_up_log(options.log_level, json=options.log_json)
    life = socket.socket(fileno=options.life)
    try:
        harden()
        ca = open_authority(options.directory, options.passphrase_file)
        if options.fingerprint not in ("", sha256(ca.pem).hexdigest()):
            raise AuthorityError(f"{options.directory} has another CA than when the proxy read it: reload the proxy")
        if options.identity is not None:
            drop(*options.identity)
            harden()  # with the user the kernel sets that anew, as fs.suid_dumpable says
    except (AuthorityError, PrivilegeError, OSError) as error:
        _say(life, Ready(why=str(error)[:4000]))
        sys.exit(2)
    signing = Signing(ca, options.days, Bucket(options.rate, options.burst))
    desk = Desk(life, [socket.socket(fileno=descriptor) for descriptor in options.sockets], signing)
    _say(life, Ready(ca.pem))
    desk.serve(parent)
    log.info("the signer ends", minted=signing.minted, refused=signing.refused)


def _say(life: socket.socket, ready: Ready) -> None:
    try:
        life.sendall(msgspec.msgpack.encode(ready))
    except (BrokenPipeError, ConnectionResetError):  # gone before we were ready
        sys.exit(0)


def _set_up_log(level: str, *, json: bool) -> None:
    """Standard error, as the proxy's own log; tracebacks without the values of variables."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if json else []),
            structlog.processors.JSONRenderer()
            if json
            else structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    main()
