"""The real clients: each delivers given mails to host:port and raises `PeerError` with its output on failure.

Content is given as it is meant, with CRLF line ends and without dot-stuffing. A client whose interface is a
file gets LF line ends and turns them into CRLF itself; only swaks is handed what goes over the wire, since
its own preparation of the content rewrites headers. `CLIENTS` holds them behind one interface.

With a `Trust` a client insists on TLS, by STARTTLS or from the first octet, and on a certificate of those roots
and for that name; swaks alone does not look at the name.
"""

from __future__ import annotations

import re
import smtplib
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Protocol, Self

from tests.peers import PeerError
from tests.peers.process import (
    HOST,
    STEP,
    USERS,
    Program,
    Scratch,
    find,
    find_unpacked,
    free_port,
    private_files,
    private_libraries,
)
from tests.peers.servers import start_postfix
from tests.peers.tls import Trust, strict_context

SECONDS = 30.0
NAME = "client.src.example"


class Deliver(Protocol):
    """Delivers one mail."""

    def __call__(self, sender: str, recipients: Sequence[str], content: bytes) -> None: ...


class Function(Protocol):
    """Delivers one mail in a session of its own."""

    def __call__(
        self,
        host: str,
        port: int,
        sender: str,
        recipients: Sequence[str],
        content: bytes,
        *,
        trust: Trust | None = None,
    ) -> None: ...


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


def smtplib_client(
    host: str, port: int, sender: str, recipients: Sequence[str], content: bytes, *, trust: Trust | None = None
) -> None:
    context = None if trust is None else strict_context(trust)
    try:
        with (
            smtplib.SMTP_SSL(host, port, NAME, timeout=SECONDS, context=context)
            if trust is not None and trust.implicit
            else smtplib.SMTP(host, port, NAME, timeout=SECONDS)
        ) as client:
            client.ehlo()
            if trust is not None and not trust.implicit:
                client.starttls(context=context)
                client.ehlo()
            refused = client.sendmail(sender, list(recipients), content)
    except (OSError, smtplib.SMTPException) as error:
        raise PeerError(f"smtplib: {error!r}") from error
    if refused:
        raise PeerError(f"smtplib: {refused}")


class Wire:
    """A connection that sends octets as given and reads replies; for what no client offers."""

    def __init__(self, host: str, port: int, seconds: float = SECONDS, *, conn: socket.socket | None = None) -> None:
        self._deadline = time.monotonic() + seconds
        self._conn = conn or socket.create_connection((host, port), timeout=seconds)
        self._conn.settimeout(seconds)
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

    def secure(self, trust: Trust) -> None:
        """TLS from the next octet on."""
        if self._buffer:
            raise PeerError(f"something came before the handshake: {self._buffer!r}")
        self._conn = strict_context(trust).wrap_socket(self._conn)

    def greeted(self, trust: Trust | None = None) -> str:
        """From the first octet to the last reply to EHLO before a mail: that one's text."""
        if trust is not None and trust.implicit:
            self.secure(trust)
        self.expect(220)
        offered = self.command(f"EHLO {NAME}", 250)
        if trust is not None and not trust.implicit:
            self.command("STARTTLS", 220)
            self.secure(trust)
            offered = self.command(f"EHLO {NAME}", 250)
        return offered


def bdat_client(
    host: str, port: int, sender: str, recipients: Sequence[str], content: bytes, *, trust: Trust | None = None
) -> None:
    """Two chunks and a last one, pipelined behind the envelope; the cuts are inside of lines."""
    cuts = [0, len(content) // 3, 2 * len(content) // 3, len(content)]
    chunks = [content[a:b] for a, b in pairwise(cuts)]
    try:
        with Wire(host, port) as wire:
            offered = wire.greeted(trust)
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


def openssl_client(
    host: str, port: int, sender: str, recipients: Sequence[str], content: bytes, *, trust: Trust | None = None
) -> None:
    """`openssl s_client` sees to the TLS, and to the EHLO before it; the rest is said through its standard input."""
    if trust is None:
        raise ValueError("s_client is for TLS only")
    verify = ["-CAfile", str(trust.roots), "-verify_return_error", "-verify_hostname", trust.name]
    argv = [find("openssl"), "s_client", "-connect", f"{host}:{port}", "-servername", trust.name, *verify]
    argv += ["-quiet", "-nocommands", *([] if trust.implicit else ["-starttls", "smtp", "-name", NAME])]
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryFile() as said, ours:
        with theirs:
            process = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=said)
        try:
            with Wire(host, port, conn=ours) as wire:
                if trust.implicit:
                    wire.expect(220)
                wire.command(f"EHLO {NAME}", 250)
                wire.command(f"MAIL FROM:<{sender}>", 250)
                for recipient in recipients:
                    wire.command(f"RCPT TO:<{recipient}>", 250)
                wire.command("DATA", 354)
                wire.send(dot_stuffed(content) + b".\r\n")
                wire.expect(250)
                wire.command("QUIT", 221)
            process.wait(SECONDS)
        except (OSError, EOFError, subprocess.TimeoutExpired) as error:
            said.seek(0)
            raise PeerError(f"s_client: {error!r}\n{said.read().decode(errors='replace')}") from error
        finally:
            process.kill()
            process.wait(SECONDS)


def swaks(
    host: str,
    port: int,
    sender: str,
    recipients: Sequence[str],
    content: bytes,
    *,
    trust: Trust | None = None,
    options: Sequence[str] = (),
) -> None:
    secure = list[str]()
    if trust is not None:
        secure = ["--tls-on-connect" if trust.implicit else "--tls", "--tls-sni", trust.name]
        secure += ["--tls-verify", "--tls-ca-path", str(trust.roots)]
    with tempfile.NamedTemporaryFile(prefix="peer-swaks-") as file:
        file.write(dot_stuffed(content) + b".")  # with --no-data-fixup it only adds the last CRLF
        file.flush()
        where = ["--server", host, "--port", str(port), "--ehlo", NAME, "--timeout", str(int(SECONDS))]
        what = ["--from", sender, "--to", ",".join(recipients), "--data", f"@{file.name}", "--no-data-fixup"]
        output = run([find("swaks"), *where, *what, *secure, *options])
        if "<** " in output:  # a refused recipient among others is no failure to it
            raise PeerError(f"swaks had a command refused:\n{output}")


def swaks_pipelining(
    host: str, port: int, sender: str, recipients: Sequence[str], content: bytes, *, trust: Trust | None = None
) -> None:
    swaks(host, port, sender, recipients, content, trust=trust, options=["--pipeline"])


def msmtp(
    host: str, port: int, sender: str, recipients: Sequence[str], content: bytes, *, trust: Trust | None = None
) -> None:
    where = [f"--host={host}", f"--port={port}", f"--domain={NAME}", f"--timeout={int(SECONDS)}"]
    secure = ["--tls=off"]
    if trust is not None:
        secure = ["--tls=on", f"--tls-starttls={'off' if trust.implicit else 'on'}", "--tls-certcheck=on"]
        secure += [f"--tls-trust-file={trust.roots}", f"--tls-host-override={trust.name}"]
    keep = ["--set-from-header=off", "--set-date-header=off", "--set-msgid-header=off"]
    keep += ["--remove-bcc-headers=off", "--undisclosed-recipients=off"]
    argv = [find("msmtp"), *where, *secure, "--auth=off", *keep, f"--from={sender}", "--", *recipients]
    run(argv, content.replace(b"\r\n", b"\n"))


def smtp_source(
    host: str,
    port: int,
    sender: str,
    recipients: Sequence[str],
    content: bytes,
    *,
    mails: int = 1,
    sessions: int = 1,
    trust: Trust | None = None,
) -> None:
    """The same content `mails` times, in `sessions` sessions at once.

    It knows a single recipient only and no TLS, and whatever it sends has an empty last line.
    """
    if trust is not None:
        raise ValueError("smtp-source knows no TLS")
    (recipient,) = recipients
    if not content.endswith(b"\r\n\r\n"):
        raise ValueError("smtp-source would add an empty line to this content")
    with tempfile.NamedTemporaryFile(prefix="peer-source-") as file:
        file.write(content.removesuffix(b"\r\n").replace(b"\r\n", b"\n"))
        file.flush()
        count = ["-m", str(mails), "-s", str(sessions), "-M", NAME]
        envelope = ["-f", sender, "-t", recipient, "-F", file.name]
        run([find("smtp-source"), *count, *envelope, f"inet:{host}:{port}"])


class Relay(ABC):
    """A private MTA that hands every mail to host:port; a mail goes in through its own SMTP port, in clear."""

    greeting: ClassVar[str]

    def __init__(self, host: str, port: int, trust: Trust | None = None) -> None:
        self._host, self._server_port, self._trust = host, port, trust

    def __enter__(self) -> Self:
        self._scratch = Scratch("relay")
        self._program: Program | None = None
        self._port = free_port()
        try:
            self._program = self.start(self._scratch)
            self._program.await_greeting(self._port, self.greeting, SECONDS)
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

    @abstractmethod
    def start(self, scratch: Scratch) -> Program:
        """Configures and starts it on `self._port`."""

    @abstractmethod
    def done(self, number: str, log: str) -> bool:
        """Whether `log` tells of an attempt to pass on the mail `number`, or that it is gone."""

    @abstractmethod
    def sent(self, number: str, log: str) -> list[str]:
        """The recipients to whom the server accepted the mail `number`."""

    @property
    @abstractmethod
    def log_file(self) -> Path: ...

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def submit(self, sender: str, recipients: Sequence[str], content: bytes) -> str:
        """The number of the mail in its queue."""
        with smtplib.SMTP(HOST, self._port, NAME, timeout=SECONDS) as client:
            client.ehlo()
            client.mail(sender)
            for recipient in recipients:
                client.rcpt(recipient)
            code, text = client.data(content)
        queued = re.search(r"(?:queued as |id=)([\w-]+)", text.decode(errors="replace"))
        if code != 250 or queued is None:
            raise PeerError(f"the relay refused the mail: {code} {text!r}\n{self.log()}")
        return queued[1]

    def __call__(self, sender: str, recipients: Sequence[str], content: bytes) -> None:
        """Returns when the relay is rid of the mail; an error when its first attempt to pass it on fails."""
        number = self.submit(sender, recipients, content)
        deadline = time.monotonic() + SECONDS
        while not self.done(number, log := self.log()):
            if time.monotonic() > deadline:
                raise PeerError(f"the relay still has {number} after {SECONDS} s:\n{log}")
            time.sleep(STEP)
        if sorted(self.sent(number, log)) != sorted(recipients):
            raise PeerError(f"the relay did not pass {number} on:\n{log}")


class PostfixRelay(Relay):
    greeting = "ESMTP Postfix"

    def start(self, scratch: Scratch) -> Program:
        settings = POSTFIX_RELAY
        if self._trust is None:
            settings += f"relayhost = [{self._host}]:{self._server_port}\nsmtp_tls_security_level =\n"
            return start_postfix(scratch, self._port, settings)
        settings += POSTFIX_RELAY_TLS.format(name=self._trust.name, port=self._server_port, roots=self._trust.roots)
        if self._trust.implicit:
            settings += "smtp_tls_wrappermode = yes\n"
        return start_postfix(scratch, self._port, settings, self._trust.name)

    @property
    def log_file(self) -> Path:
        return self._scratch.path / "log.mail"

    def done(self, number: str, log: str) -> bool:
        return f" {number}: removed" in log or re.search(rf" {number}: to=<.* status=(?!sent)", log) is not None

    def sent(self, number: str, log: str) -> list[str]:
        return re.findall(rf" {number}: to=<([^>]*)>.* status=sent", log)


POSTFIX_RELAY = """\
smtpd_relay_restrictions = permit_mynetworks, reject
smtp_connection_cache_on_demand = no
minimal_backoff_time = 3600s
"""
POSTFIX_RELAY_TLS = """\
relayhost = [{name}]:{port}
smtp_tls_security_level = secure
smtp_tls_CAfile = {roots}
smtp_tls_secure_cert_match = hostname
smtp_tls_servername = hostname
smtp_tls_loglevel = 1
"""


class EximRelay(Relay):
    greeting = "relay.src.example ESMTP Exim"

    def start(self, scratch: Scratch) -> Program:
        exim = find_unpacked("usr/sbin/exim4")
        for folder in ("spool", "logs"):
            scratch.mkdir(folder, owner=USERS["Debian-exim"])
        host = self._host if self._trust is None else self._trust.name
        settings = EXIM_RELAY.format(dir=scratch.path, exim=exim, host=host, port=self._server_port)
        settings += "  hosts_avoid_tls = *\n" if self._trust is None else EXIM_RELAY_TLS.format(roots=self._trust.roots)
        if self._trust is not None and self._trust.implicit:
            settings += "  protocol = smtps\n"
        config = scratch.write("exim.conf", settings)
        return Program(
            [str(exim), "-bdf", "-oX", str(self._port), "-C", str(config)],
            log=scratch.path / "log",
            binds=private_files(scratch, host) | private_libraries(scratch),
        )

    @property
    def log_file(self) -> Path:
        return self._scratch.path / "logs/main"

    def done(self, number: str, log: str) -> bool:
        return re.search(rf" {number} (?:Completed|== |\*\* )", log) is not None

    def sent(self, number: str, log: str) -> list[str]:
        return re.findall(rf" {number} [=-]> (\S+)", log)


EXIM_RELAY = """\
exim_path = {exim}
spool_directory = {dir}/spool
log_file_path = {dir}/logs/%s
pid_file_path = {dir}/spool/pid
primary_hostname = relay.src.example
local_interfaces = 127.0.0.1
host_lookup =
rfc1413_query_timeout = 0s
tls_advertise_hosts =
deliver_drop_privilege = true
keep_environment =
acl_smtp_rcpt = accept
begin routers
all:
  driver = manualroute
  route_list = * {host} byname
  self = send
  transport = out
begin transports
out:
  driver = smtp
  port = {port}
  hosts_try_dane =
"""
EXIM_RELAY_TLS = """\
  hosts_require_tls = *
  tls_verify_certificates = {roots}
  tls_verify_hosts = *
  tls_verify_cert_hostnames = *
  tls_sni = $host
"""


class Client(Protocol):
    """A client for one server, and one kind of link to it."""

    def __call__(self, host: str, port: int, trust: Trust | None = None) -> AbstractContextManager[Deliver]: ...


def one_by_one(function: Function) -> Client:
    """A client that makes a connection of its own for each mail, behind the interface of `CLIENTS`."""

    @contextmanager
    def client(host: str, port: int, trust: Trust | None = None) -> Iterator[Deliver]:
        def deliver(sender: str, recipients: Sequence[str], content: bytes) -> None:
            function(host, port, sender, recipients, content, trust=trust)

        yield deliver

    return client


CLIENTS: dict[str, Client] = {
    "smtplib": one_by_one(smtplib_client),
    "bdat": one_by_one(bdat_client),
    "swaks": one_by_one(swaks),
    "swakspipe": one_by_one(swaks_pipelining),
    "msmtp": one_by_one(msmtp),
    "smtpsource": one_by_one(smtp_source),
    "postfixrelay": PostfixRelay,
    "eximrelay": EximRelay,
}
TLS_CLIENTS: dict[str, Client] = {
    "openssl": one_by_one(openssl_client),
    **{name: client for name, client in CLIENTS.items() if name != "smtpsource"},
}
NAMELESS = frozenset({"swaks", "swakspipe"})  # they verify the chain, and take any name
