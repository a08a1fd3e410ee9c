"""The record by syslog: RFC 5424 messages over TLS (RFC 5425), over TCP (RFC 6587 §3.4.1) or to a local socket.

    <22>1 2026-11-16T10:00:00.001Z mx1 smtpproxy 4d9d6b7a53-1 tx-commit [smtpproxy@32473 n="41" leaf="9f…"] {"v":1,…}

Each record is a message of its own: PROCID is its session, MSGID its kind, MSG the line as it is. `n` is its number and
`leaf` its place in the tree (audit-format.md): with these, whoever has the message can prove that it is what the
gateway signed, and see from the numbers whether one is missing. Checkpoints go along as `audit-checkpoint`.

A line that makes the message too long is sent as its entry (audit/entries.py), which is what the leaf is of; if that is
too long as well it is cut off. `octets` then says how long the line is, `as` what was made of it: never silently.

Syslog has no acknowledgements. What counts as arrived is what the other side's kernel has acknowledged (SIOCOUTQ is 0)
while the connection is still there behind it; else the whole batch is sent again on a new one. So what can be lost is
what a receiver has in its buffers when it is killed, and what can come twice is a batch whose connection broke.

What must never happen: a message that is two to a receiver. On a stream each is preceded by its length, and a
connection on which a message was cut off is not used again.
"""

import contextlib
import fcntl
import os
import re
import select
import socket
import ssl
import struct
import termios
import time
from typing import Final, NamedTuple

from smtpproxy.audit.entries import entry_of, leaf_of
from smtpproxy.store.indexing import Index, Line
from smtpproxy.store.sinks import Batch, SinkDownError
from smtpproxy.store.wording import Severity, severity

APP_NAME: Final = "smtpproxy"
SD_ID: Final = "smtpproxy@32473"  # a private enterprise number for examples and documentation (RFC 5612)
FACILITIES: Final = {  # RFC 5424 §6.2.1
    name: number
    for number, name in enumerate(
        (
            *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
            *("ntp", "audit", "alert", "clock"),
            *(f"local{number}" for number in range(8)),
        )
    )
}
PATIENCE: Final = 30.0  # seconds for a batch to be taken
CONNECT: Final = 10.0  # seconds for a connection, and again for its handshake
FIRST_WORD: Final = 1.0  # seconds in which a server may say that it does not want us, after the handshake
SMALLEST: Final = 1_024  # octets of a message, at the least: everything but MSG is far less
_PIECE: Final = 65_536
_WORDS: Final = 16  # pieces of what a peer says, where it has nothing to say, that are read at once
_BOM: Final = b"\xef\xbb\xbf"
_NAME: Final = re.compile(r"[!-~]+")


class Target(NamedTuple):
    """Where it goes.

    Attributes:
        host, port: of a server; `path`: of a local datagram socket, in their place.
        context: TLS, with what the server is verified by; None: in clear.
        server_name: whom its certificate is for; "": `host`.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    context: ssl.SSLContext | None = None
    server_name: str = ""

    def __str__(self) -> str:
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")


class Form(NamedTuple):
    """What the messages are like.

    Attributes:
        hostname: of this machine, as HOSTNAME.
        facility: by its number.
        longest: octets of a message.
        personal: lines are sent as they are; else as their entries, without what is about persons.
        bom: before MSG, which then says of itself that it is UTF-8 (RFC 5424 §6.4).
    """

    hostname: str
    facility: int = FACILITIES["mail"]
    longest: int = 8_192
    personal: bool = True
    bom: bool = False


def message(number: int, line: bytes, form: Form) -> bytes:
    """A record as a message (RFC 5424 §6)."""
    read = Index.read(line) or Line(kind="audit-cut")
    at = "-" if read.at is None else read.at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    named = f'n="{number}" leaf="{leaf_of(line).hex()}"'
    text, made = (line, "") if form.personal else _entry(line)
    head = _head(form, severity(read), at, read.session, read.kind)
    whole = _whole(head, named, made, text, form)
    if len(whole) > form.longest:
        text, made = _entry(line)
        whole = _whole(head, named, made, text, form)
    if len(whole) > form.longest:
        made = f' octets="{len(line)}" as="beginning"'
        room = max(form.longest - len(_whole(head, named, made, b"", form)), 0)
        whole = _whole(head, named, made, text[:room].decode(errors="ignore").encode(), form)
    return whole


def _entry(line: bytes) -> tuple[bytes, str]:
    entry = entry_of(line)
    return entry, f' octets="{len(line)}" as="entry"' if entry != line else ""


def checkpoint_message(size: int, note: str, at: str, form: Form) -> bytes:
    """A checkpoint as a message: the note is MSG. It is short, whatever its length."""
    head = _head(form, Severity.NOTICE, at, "", "audit-checkpoint")
    return _whole(head, f'size="{size}"', "", note.encode(), form)


def _head(form: Form, grade: Severity, at: str, session: str, kind: str) -> str:
    return (
        f"<{form.facility * 8 + grade}>1 {at} {_name(form.hostname, 255)} {APP_NAME} {_name(session, 128)}"
        f" {_name(kind, 32)} [{SD_ID} "
    )


def _whole(head: str, named: str, made: str, text: bytes, form: Form) -> bytes:
    return b"%b%b%b] %b%b" % (head.encode(), named.encode(), made.encode(), _BOM if form.bom else b"", text)


def _name(text: str, longest: int) -> str:
    """PRINTUSASCII of at most so many characters; `-` stands for what is none (RFC 5424 §6)."""
    return text if len(text) <= longest and _NAME.fullmatch(text) else "-"


class SyslogSink:
    """Sends the record to a syslog server, or to this machine's."""

    def __init__(
        self,
        name: str,
        target: Target,
        form: Form,
        *,
        checkpoints: bool = True,
        patience: float = PATIENCE,
    ) -> None:
        self.name: Final = name
        self._target = target
        self._form = form
        self._checkpoints = checkpoints
        self._patience = patience
        self._socket: socket.socket | None = None

    def send(self, batch: Batch) -> None:
        """Send lines. When this returns the other side's kernel has them.

        Raises:
            SinkDownError: it is not known whether it has all of them.
        """
        self._deliver([message(number, line, self._form) for number, line in batch])

    def note(self, size: int, note: str) -> None:
        """Send a checkpoint.

        Raises:
            SinkDownError: it is not known whether it has arrived.
        """
        if self._checkpoints:
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self._deliver([checkpoint_message(size, note, at, self._form)])

    def close(self) -> None:
        """Let go of the connection. Nothing is waited for, a goodbye neither: what was sent has arrived."""
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def _deliver(self, messages: list[bytes]) -> None:
        try:
            deadline = time.monotonic() + self._patience
            sock = self._connected()
            if self._target.path:
                for one in messages:
                    sock.settimeout(_left(deadline))
                    sock.send(one)
            else:
                _write(sock, b"".join(b"%d %b" % (len(one), one) for one in messages), deadline)
                _wait_until_taken(sock, deadline)
        except (OSError, UnicodeError) as error:  # the latter: a host name that can't be one
            self.close()
            raise SinkDownError(f"syslog {self._target}: {_words(error)}") from None

    def _connected(self) -> socket.socket:
        """A connection that is there, as far as one can know."""
        if self._socket is not None and not self._target.path:
            try:
                _look(self._socket)
            except OSError:
                self.close()
        if self._socket is None:
            self._socket = _connect(self._target)
        return self._socket


def _connect(target: Target) -> socket.socket:
    if target.path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(CONNECT)
            sock.connect(target.path)
        except OSError:
            sock.close()
            raise
        return sock
    sock = socket.create_connection((target.host, target.port), timeout=CONNECT)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(PATIENCE * 1000))
        if target.context is not None:
            sock = target.context.wrap_socket(sock, server_hostname=target.server_name or target.host)
            # With TLS 1.3 a server refuses our certificate only after the handshake: by an alert, where one that takes
            # it sends tickets. What is written before the alert is read would look as if it had arrived.
            if select.select([sock], [], [], FIRST_WORD)[0]:
                _look(sock)
    except OSError:
        sock.close()
        raise
    return sock


def _left(deadline: float) -> float:
    """Seconds until then.

    Raises:
        TimeoutError: there are none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("it does not take what it is sent")
    return left


def _write(sock: socket.socket, octets: bytes, deadline: float) -> None:
    whole = memoryview(octets)
    while whole:
        sock.settimeout(_left(deadline))
        whole = whole[sock.send(whole[:_PIECE]) :]


def _wait_until_taken(sock: socket.socket, deadline: float) -> None:
    """Wait until the other side's kernel has acknowledged all that was written, and the connection is there still.

    There is nothing that tells of it, so it is looked again and again; a sign of the peer ends the waiting at once.
    """
    pause = 0.0005
    while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0]:
        if select.select([sock], [], [], min(pause, _left(deadline)))[0]:
            _look(sock)
        pause = min(pause * 2, 0.05)
    _look(sock)


def _look(sock: socket.socket) -> None:
    """What the peer said: a syslog server has nothing to say, but TLS may, and either may be at its end.

    Raises:
        OSError: it is at its end.
    """
    sock.settimeout(0.0)
    with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
        for _ in range(_WORDS):
            if not sock.recv(_PIECE):
                raise ConnectionResetError("it has closed the connection")


def _words(error: OSError | UnicodeError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower() if not isinstance(error, socket.gaierror) else str(error.strerror)
    return str(error)
