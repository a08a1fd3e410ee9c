"""The signing process: `python -m smtpproxy.net.signer`. It alone has the CA's private key.

The proxy starts it (net/signing.py) with one end of a socket of datagrams, and asks it for one certificate a datagram.
It reads no octet of any SMTP peer: what it is asked is the `Likeness` that the proxy took from a server's certificate
and a public key, both bounded and checked anew here, because who asks does read hostile octets.

- The first datagram it sends is `Ready`: the CA's certificate, or why it can't sign. Then one `Answer` for each
  datagram it gets, in that order.
- How many it signs is bounded (a bucket of tokens): who took over the proxy can have certificates while that lasts,
  never the key, and each of them is in the log.
- It ends when the other end is closed, and only then: what stops the proxy (a service manager signals all processes of
  a service) must not stop this one before the proxy has finished what is in flight.
- It is not dumped and leaves no core file.

What must never happen: the key, or the passphrase, in an answer, in the log or in a traceback.
"""

import argparse
import ctypes
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
from cryptography import x509

from smtpproxy.tls import authority, minting
from smtpproxy.tls.authority import Authority, AuthorityError
from smtpproxy.tls.minting import Likeness

log = structlog.get_logger()

LARGEST = 65_536  # octets of a datagram
SHOWN = 10  # names of a certificate that the log shows
QUIET = 1.0  # seconds between two lines about what was refused
_PR_SET_DUMPABLE = 4

_Text = Annotated[str, msgspec.Meta(max_length=255)]


class Request(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One certificate is asked for. `number` is in the answer."""

    number: Annotated[int, msgspec.Meta(ge=1, lt=2**53)]
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


def serve(sock: socket.socket, signing: Signing) -> None:
    """Answer what is asked, until the other end is closed."""
    while True:
        try:
            datagram = sock.recv(LARGEST + 1)
            if not datagram:
                return
            sock.sendall(msgspec.msgpack.encode(signing.answer(datagram)))
        except (BrokenPipeError, ConnectionResetError):
            return


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


def main() -> None:
    """The process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="smtpproxy.net.signer", description="Started by the proxy, not by hand.")
    parser.add_argument("--socket", type=int, required=True, help="an inherited descriptor")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--passphrase-file", type=Path)
    parser.add_argument("--days", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--burst", type=int, required=True)
    parser.add_argument("--log-json", action="store_true")
    parser.add_argument("--log-level", default="info")
    options = parser.parse_args()
    _set_up_log(options.log_level, json=options.log_json)
    sock = socket.socket(fileno=options.socket)
    sock.setblocking(True)
    try:
        harden()
        ca = open_authority(options.directory, options.passphrase_file)
    except (AuthorityError, OSError) as error:
        _say(sock, Ready(why=str(error)[:4000]))
        sys.exit(2)
    signing = Signing(ca, options.days, Bucket(options.rate, options.burst))
    _say(sock, Ready(ca.pem))
    serve(sock, signing)
    log.info("the signer ends", minted=signing.minted, refused=signing.refused)


def _say(sock: socket.socket, ready: Ready) -> None:
    try:
        sock.sendall(msgspec.msgpack.encode(ready))
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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    main()
