"""The real clients: each delivers given mails to host:port and raises `PeerError` with its output on failure.

Content is given as it is meant, with CRLF line ends and without dot-stuffing. A client whose interface is a
file gets LF line ends and turns them into CRLF itself; only swaks is handed what goes over the wire, since
its own preparation of the content rewrites headers. `CLIENTS` holds them behind one interface.
"""

from __future__ import annotations

import re
import smtplib
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from types import TracebackType
from typing import Protocol, Self

from tests.peers import PeerError
from tests.peers.process import HOST, STEP, Program, Scratch, find, free_port
from tests.peers.servers import start_postfix

SECONDS = 30.0
NAME = "client.src.example"


class Deliver(Protocol):
    """Delivers one mail."""

    def __call__(self, sender: str, recipients: Sequence[str], content: bytes) -> None: ...


Function = Callable[[str, int, str, Sequence[str], bytes], None]


def dot_stuffed(content: bytes) -> bytes:
    return re.sub(rb"(?m)^\.", b"..", content)


def run(argv: Sequence[str], feed: bytes = b"") -> str:
    """Runs a client to its end; its output, both streams, in the order it came."""
    try:
        done = subprocess.run(
            argv,
            input=feed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired as error:
        output = (error.output or b"").decode(errors="replace")
        raise PeerError(f"{argv[0]} took more than {SECONDS} s:\n{output}") from None
    output = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise PeerError(f"{argv[0]} ended with {done.returncode}:\n{output}")
    return output


def smtplib_client(host: str, port: int, sender: str, recipients: Sequence[str], content: bytes) -> None:
    try:
        with smtplib.SMTP(host, port, NAME, timeout=SECONDS) as client:
            client.ehlo()
            refused = client.sendmail(sender, list(recipients), content)
    except (OSError, smtplib.SMTPException) as error:
        raise PeerError(f"smtplib: {error!r}") from error
    if refused:
        raise PeerError(f"smtplib: {refused}")


class Wire:
    """A plain connection that sends octets as given and reads replies; for what no client offers."""

    def __init__(self, host: str, port: int, seconds: float = SECONDS) -> None:
        self._deadline = time.monotonic() + seconds
        self._conn = socket.create_connection((host, port), timeout=seconds)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._conn.close()

    def send(self, octets: bytes) -> None:
        self._conn.sendall(octets)

    def reply(self) -> tuple[int, str]:
        """The next reply, all lines; `EOFError` when the peer closed, `TimeoutError` at the deadline."""
        lines = list[str]()
        while not lines or lines[-1][3:4] == "-":
            while b"\n" not in self._buffer:
                self._conn.settimeout(max(0.01, self._deadline - time.monotonic()))
                received = self._conn.recv(4096)
                if not received:
                    raise EOFError(f"the peer closed after {lines}")
                self._buffer += received
            line, _, self._buffer = self._buffer.partition(b"\n")
            lines.append(line.decode("latin-1").rstrip("\r"))
        return int(lines[-1][:3]), "\n".join(lines)

    def expect(self, code: int) -> str:
        actual, text = self.reply()
        if actual != code:
            raise PeerError(f"{code} expected: {text}")
        return text

    def command(self, line: str, code: int) -> str:
        self.send(line.encode() + b"\r\n")
        return self.expect(code)


def bdat_client(host: str, port: int, sender: str, recipients: Sequence[str], content: bytes) -> None:
    """Two chunks and a last one, pipelined behind the envelope; the cuts are inside of lines."""
    cuts = [0, len(content) // 3, 2 * len(content) // 3, len(content)]
    chunks = [content[a:b] for a, b in pairwise(cuts)]
    try:
        with Wire(host, port) as wire:
            wire.expect(220)
            offered = wire.command(f"EHLO {NAME}", 250)
            if "CHUNKING" not in offered or "PIPELINING" not in offered:
                raise PeerError(f"no CHUNKING or no PIPELINING: {offered}")
            envelope = [f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{recipient}>" for recipient in recipients)]
            batch = "".join(line + "\r\n" for line in envelope).encode()
            for number, chunk in enumerate(chunks, 1):
                batch += b"BDAT %d%s\r\n" % (len(chunk), b" LAST" if number == len(chunks) else b"") + chunk
            wire.send(batch)
            for _ in (*envelope, *chunks):
                wire.expect(250)
            wire.command("QUIT", 221)
    except (OSError, EOFError) as error:
        raise PeerError(f"bdat: {error!r}") from error


def swaks(
    host: str, port: int, sender: str, recipients: Sequence[str], content: bytes, options: Sequence[str] = ()
) -> None:
    with tempfile.NamedTemporaryFile(prefix="peer-swaks-") as file:
        file.write(dot_stuffed(content) + b".")  # with --no-data-fixup it only adds the last CRLF
        file.flush()
        where = ["--server", host, "--port", str(port), "--ehlo", NAME, "--timeout", str(int(SECONDS))]
        what = ["--from", sender, "--to", ",".join(recipients), "--data", f"@{file.name}", "--no-data-fixup"]
        output = run([find("swaks"), *where, *what, *options])
        if "<** " in output:  # a refused recipient among others is no failure to it
            raise PeerError(f"swaks had a command refused:\n{output}")


def swaks_pipelining(host: str, port: int, sender: str, recipients: Sequence[str], content: bytes) -> None:
    swaks(host, port, sender, recipients, content, ["--pipeline"])


def msmtp(host: str, port: int, sender: str, recipients: Sequence[str], content: bytes) -> None:
    where = [f"--host={host}", f"--port={port}", f"--domain={NAME}", f"--timeout={int(SECONDS)}"]
    plain = ["--tls=off", "--auth=off"]
    keep = ["--set-from-header=off", "--set-date-header=off", "--set-msgid-header=off"]
    keep += ["--remove-bcc-headers=off", "--undisclosed-recipients=off"]
    argv = [find("msmtp"), *where, *plain, *keep, f"--from={sender}", "--", *recipients]
    run(argv, content.replace(b"\r\n", b"\n"))


def smtp_source(
    host: str,
    port: int,
    sender: str,
    recipients: Sequence[str],
    content: bytes,
    mails: int = 1,
    sessions: int = 1,
) -> None:
    """The same content `mails` times, in `sessions` sessions at once.

    It knows a single recipient only, and whatever it sends has an empty last line.
    """
    (recipient,) = recipients
    if not content.endswith(b"\r\n\r\n"):
        raise ValueError("smtp-source would add an empty line to this content")
    with tempfile.NamedTemporaryFile(prefix="peer-source-") as file:
        file.write(content.removesuffix(b"\r\n").replace(b"\r\n", b"\n"))
        file.flush()
        count = ["-m", str(mails), "-s", str(sessions), "-M", NAME]
        envelope = ["-f", sender, "-t", recipient, "-F", file.name]
        run([find("smtp-source"), *count, *envelope, f"inet:{host}:{port}"])


class PostfixRelay:
    """A private Postfix that hands every mail to host:port; a mail goes in through its own SMTP port."""

    def __init__(self, host: str, port: int) -> None:
        self._settings = f"""\
relayhost = [{host}]:{port}
smtpd_relay_restrictions = permit_mynetworks, reject
smtp_connection_cache_on_demand = no
minimal_backoff_time = 3600s
"""

    def __enter__(self) -> Self:
        self._scratch = Scratch("relay")
        self._program: Program | None = None
        self._port = free_port()
        try:
            self._program = start_postfix(self._scratch, self._port, self._settings)
            self._program.await_greeting(self._port, "ESMTP Postfix", SECONDS)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._program is not None:
            self._program.stop()
        self._scratch.remove()

    def log(self) -> str:
        log = self._scratch.path / "log.mail"
        return log.read_text(errors="replace") if log.exists() else ""

    def __call__(self, sender: str, recipients: Sequence[str], content: bytes) -> None:
        """Returns when the relay is rid of the mail; an error when its first attempt to pass it on fails."""
        with smtplib.SMTP(HOST, self._port, NAME, timeout=SECONDS) as client:
            client.ehlo()
            client.mail(sender)
            for recipient in recipients:
                client.rcpt(recipient)
            code, text = client.data(content)
        queued = re.search(rb"queued as (\w+)", text)
        if code != 250 or queued is None:
            raise PeerError(f"the relay refused the mail: {code} {text!r}\n{self.log()}")
        number = queued[1].decode()
        deadline = time.monotonic() + SECONDS
        while f" {number}: removed" not in (log := self.log()) and f"{number}: to=<" not in log:
            if time.monotonic() > deadline:
                raise PeerError(f"the relay still has {number} after {SECONDS} s:\n{log}")
            time.sleep(STEP)
        sent = re.compile(rf" {number}: to=<([^>]*)>.* status=(\w+)")
        while len(found := sent.findall(self.log())) < len(recipients) and time.monotonic() < deadline:
            time.sleep(STEP)
        if sorted(found) != sorted((recipient, "sent") for recipient in recipients):
            raise PeerError(f"the relay did not pass {number} on:\n{self.log()}")


def one_by_one(function: Function) -> Callable[[str, int], AbstractContextManager[Deliver]]:
    """A client that makes a connection of its own for each mail, behind the interface of `CLIENTS`."""

    @contextmanager
    def client(host: str, port: int) -> Iterator[Deliver]:
        def deliver(sender: str, recipients: Sequence[str], content: bytes) -> None:
            function(host, port, sender, recipients, content)

        yield deliver

    return client


CLIENTS: dict[str, Callable[[str, int], AbstractContextManager[Deliver]]] = {
    "smtplib": one_by_one(smtplib_client),
    "bdat": one_by_one(bdat_client),
    "swaks": one_by_one(swaks),
    "swakspipe": one_by_one(swaks_pipelining),
    "msmtp": one_by_one(msmtp),
    "smtpsource": one_by_one(smtp_source),
    "postfixrelay": PostfixRelay,
}
