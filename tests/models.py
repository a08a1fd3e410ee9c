r"""Model servers that read what the proxy sends as real servers do, each in its own lenient way.

A model is a small server: it answers, so that a whole conversation can be driven through a session (`converse`), and it
counts what *it* understood: its commands and its mails. The proxy is right when every model understands the same, and
that is what the records say (architecture §15; attacks.md, S1: one reading).

How a model reads:

- `line`: what ends a line. `crlf` CRLF alone · `lf` LF, and one CR before it goes · `lf-cr*` LF, and every CR before it
  goes (Postfix) · `lf-no-cr` LF, and CRs are dropped everywhere · `any` CR, LF and CRLF each.
- `nul`: NULs are dropped before anything else is looked at.
- `ends`: the content does not end at a line that is a dot, but at the first of these octet strings, wherever.
- `chunking`: it knows BDAT.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from smtpproxy.audit.lines import rendered
from smtpproxy.policy.judge import default_judge
from smtpproxy.session.effects import Abort, Close
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.session import Session
from smtpproxy.session.state import Transaction
from smtpproxy.session.verdicts import PASS, Depth, Judge, PassAll, Verdict
from smtpproxy.smtp.commands import Command
from smtpproxy.smtp.errors import Side

END_OF_DATA: Final = b"\r\n.\r\n"


# ------------------------------------------------------------------------------------------------ the hostile sequences


def _lookalikes() -> dict[str, bytes]:
    """A01–A53: every way tools and papers have found to write an end of data that is none (attacks.md, table A)."""
    before = (b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\r\n", b"\n\r", b"\r\n\0", b"\0\n")
    after = (b"\n", b"\r", b"\r\n", b"\r\r\n", b"\n\r", b"\0\r\n")
    found = [b + b"." + a for b in before for a in after]
    found = [sequence for sequence in found if END_OF_DATA not in sequence] + [b"\n\n.\n\n"]
    return {f"A{number:02}": sequence for number, sequence in enumerate(found, 1)}


LOOKALIKES: Final = _lookalikes()


def shown(sequence: bytes) -> str:
    """A sequence for a test's id."""
    return sequence.decode("latin-1").encode("unicode_escape").decode().replace("\\x00", "\\0")


# ----------------------------------------------------------------------------------------------------------- the models


@dataclass
class Mail:
    """One mail as a server understood it. `content` is without dot-stuffing, its lines ending in CRLF."""

    sender: bytes
    recipients: tuple[bytes, ...]
    content: bytes

    @property
    def sha256(self) -> str:
        """Of the content."""
        return hashlib.sha256(self.content).hexdigest()


_LINE_ENDS = {
    "crlf": (re.compile(rb"\r\n"), re.compile(rb"\r\0*\n")),
    "lf": (re.compile(rb"\n"), re.compile(rb"\n")),
    "lf-cr*": (re.compile(rb"\n"), re.compile(rb"\n")),
    "lf-no-cr": (re.compile(rb"\n"), re.compile(rb"\n")),
    "any": (re.compile(rb"[\r\n]"), re.compile(rb"[\r\n]")),
}


class Model:
    """One server. `feed` gives its answers; `commands`, `mails` and `broken` are what it understood."""

    def __init__(
        self,
        name: str,
        line: str = "crlf",
        *,
        nul: bool = False,
        ends: tuple[bytes, ...] = (),
        chunking: bool = True,
        answers: dict[bytes, bytes] | None = None,
    ) -> None:
        self.name = name
        self.line = line
        self.nul = nul
        self.ends = ends
        self.chunking = chunking
        self.answers = dict(answers or {})  # by verb, "." for end of data: what it says in place of its own reply
        self.commands: list[bytes] = []
        self.mails: list[Mail] = []
        self.closed = False
        self._end = _LINE_ENDS[line][nul]
        self._buffer = b""
        self._after_cr = False
        self._sender: bytes | None = None
        self._recipients: list[bytes] = []
        self._content = b""
        self._reading = "commands"
        self._left = 0
        self._last = False

    def __repr__(self) -> str:
        return self.name

    def fresh(self, answers: dict[bytes, bytes] | None = None) -> "Model":
        """The same model, that has heard nothing yet."""
        return Model(
            self.name, self.line, nul=self.nul, ends=self.ends, chunking=self.chunking, answers=answers or self.answers
        )

    @property
    def greeting(self) -> bytes:
        """What it opens with."""
        return b"220 model.example ESMTP\r\n"

    @property
    def idle(self) -> bool:
        """It has heard whole commands and whole mails only."""
        return not self._buffer.strip(b"\n") and self._reading == "commands"

    def feed(self, octets: bytes) -> bytes:
        """What it answers to these octets."""
        self._buffer += octets
        said = b""
        while not self.closed:
            if self._after_cr and self._buffer:
                self._after_cr = False
                self._buffer = re.sub(rb"\A\0*\n" if self.nul else rb"\A\n", b"", self._buffer)
            if self._reading == "chunk":
                answer = self._chunk()
            elif self._reading == "content" and self.ends:
                answer = self._searched()
            else:
                answer = self._lined()
            if answer is None:
                break
            said += answer
        return said

    def _lined(self) -> bytes | None:
        found = self._end.search(self._buffer)
        if found is None:
            return None
        line, self._buffer = self._buffer[: found.start()], self._buffer[found.end() :]
        if self.line == "any" and found.group() == b"\r":
            self._after_cr = not self._buffer
            self._buffer = self._buffer.removeprefix(b"\n")
        if self.nul:
            line = line.replace(b"\0", b"")
        if self.line == "lf":
            line = line.removesuffix(b"\r")
        elif self.line == "lf-cr*":
            line = line.rstrip(b"\r")
        elif self.line == "lf-no-cr":
            line = line.replace(b"\r", b"")
        if self._reading == "commands":
            return self._command(line)
        if line == b".":
            return self._ended()
        self._content += line.removeprefix(b".") + b"\r\n"
        return b""

    def _searched(self) -> bytes | None:
        """Content that ends at an octet string, the start of the content counting as behind a CRLF."""
        data = b"\r\n" + self._buffer
        hits = [(at, len(end)) for end in self.ends if (at := data.find(end)) >= 0]
        if not hits:
            return None
        at, length = min(hits)
        self._buffer = data[at + length :]
        self._after_cr = data[at + length - 1] == 0x0D
        body = data[2:at] + b"\r\n" if at > 0 else b""
        self._content = (b"\r\n" + body).replace(b"\r\n.", b"\r\n")[2:]
        return self._ended()

    def _chunk(self) -> bytes | None:
        piece = self._buffer[: self._left]
        self._buffer = self._buffer[self._left :]
        self._left -= len(piece)
        self._content += piece
        if self._left:
            return None
        self._reading = "commands"
        if self._last:
            return self._ended()
        return b"250 2.0.0 chunk\r\n"

    def _ended(self) -> bytes:
        self._reading = "commands"
        answer = self.answers.get(b".", b"250 2.0.0 queued\r\n")
        if answer.startswith(b"2"):
            self.mails.append(Mail(self._sender or b"", tuple(self._recipients), self._content))
        self._forget()
        return answer

    def _forget(self) -> None:
        self._sender = None
        self._recipients = []
        self._content = b""

    def _command(self, line: bytes) -> bytes:
        self.commands.append(line)
        verb, _, rest = line.partition(b" ")
        verb = verb.upper()
        said = self.answers.get(verb)
        if said is not None and not said.startswith((b"2", b"3")):
            if verb == b"BDAT" and self.chunking:
                raise AssertionError("a model that refuses BDAT is one without chunking")
            return said
        if verb == b"EHLO":
            self._forget()
            chunking = b"250-CHUNKING\r\n" if self.chunking else b""
            return (
                b"250-model.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n" + chunking + b"250 ENHANCEDSTATUSCODES\r\n"
            )
        if verb == b"MAIL":
            if self._sender is not None:
                return b"503 5.5.1 Nested MAIL\r\n"
            self._sender = rest.partition(b"<")[2].partition(b">")[0]
            return b"250 2.1.0 Ok\r\n"
        if verb == b"RCPT":
            if self._sender is None:
                return b"503 5.5.1 MAIL first\r\n"
            self._recipients.append(rest.partition(b"<")[2].partition(b">")[0])
            return b"250 2.1.5 Ok\r\n"
        if verb == b"DATA":
            if not self._recipients:
                return b"503 5.5.1 RCPT first\r\n"
            self._reading = "content"
            self._content = b""
            return b"354 Go\r\n"
        if verb == b"BDAT" and self.chunking:
            return self._bdat(rest)
        if verb in (b"RSET", b"HELO"):
            self._forget()
            return b"250 2.0.0 Ok\r\n"
        if verb == b"QUIT":
            self.closed = True
            return b"221 2.0.0 Bye\r\n"
        return b"250 2.0.0 Ok\r\n" if verb == b"NOOP" else b"500 5.5.1 What?\r\n"

    def _bdat(self, rest: bytes) -> bytes:
        size, _, last = rest.partition(b" ")
        if not self._recipients:
            raise AssertionError("BDAT outside a transaction: a server may read its octets as commands")
        self._left, self._last = int(size), last.upper() == b"LAST"
        self._reading = "chunk"
        return self._chunk() or b""


MODELS: Final = (
    Model("strict"),
    Model("strict-without-chunking", chunking=False),
    Model("strict-nul", nul=True),
    Model("lf", "lf"),
    Model("lf-nul", "lf", nul=True),
    Model("postfix", "lf-cr*"),
    Model("cr-dropped", "lf-no-cr"),
    Model("cr-and-nul-dropped", "lf-no-cr", nul=True),
    Model("any", "any"),
    Model("any-nul", "any", nul=True),
    Model("ends-lf-lf", ends=(b"\n.\n", END_OF_DATA)),
    Model("ends-lf-crlf", ends=(b"\n.\r\n", END_OF_DATA)),  # aiosmtpd 1.4.4
    Model("ends-crlf-lf", ends=(b"\r\n.\n", END_OF_DATA)),
    Model("ends-cr-cr", ends=(b"\r.\r", END_OF_DATA)),
    Model("ends-crlf-cr", ends=(b"\r\n.\r", END_OF_DATA)),
    Model("ends-crcrlf", ends=(b"\r\n.\r\r\n", b"\r\r\n.\r\r\n", END_OF_DATA)),
)


# ---------------------------------------------------------------------------------------------------------------- judge


class Looker(PassAll):
    """A judge that looks into every mail, keeps what it saw, and gives one verdict."""

    def __init__(self, depth: Depth, verdict: Callable[[bytes], Verdict] = lambda seen: PASS, limit: int = 0) -> None:
        self._depth = depth
        self._verdict = verdict
        self._limit = limit
        self.seen: list[bytes] = []
        self.header = self._judged  # type: ignore[assignment]  # PassAll has none
        self.content = self._judged_content  # type: ignore[assignment]

    def depth(self, transaction: Transaction, session: Session) -> Depth:
        """The one depth."""
        return self._depth

    def max_size(self, session: Any) -> int:
        """The one limit."""
        return self._limit

    def _judged(self, header: bytes, session: Any) -> Verdict:
        self.seen.append(header)
        return self._verdict(header)

    def _judged_content(self, content: Any, session: Any) -> Verdict:
        return self._judged(content.read(), session)


# -------------------------------------------------------------------------------------------------------- conversations


@dataclass
class Talk:
    """A conversation that was had: what the client was told, what the records say, what the server understood."""

    session: Session
    model: Model
    told: bytes = b""
    records: list[dict[str, Any]] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)  # the command lines that went to the server, as recorded
    to_server: bytes = b""
    aborted: bool = False
    closed: bool = False

    @property
    def codes(self) -> list[int]:
        """The code of each reply told, a multi-line one counting once."""
        return [int(line[:3]) for line in self.told.split(b"\r\n") if line and line[3:4] != b"-"]

    def of(self, kind: Kind) -> list[dict[str, Any]]:
        """The records of one kind."""
        return [record for record in self.records if record["kind"] == kind.value]

    @property
    def committed(self) -> list[tuple[str, tuple[str, ...], str]]:
        """Sender, recipients and digest of each mail that is recorded as accepted."""
        return [(r["mail"], tuple(r.get("rcpt", ())), r.get("sha256", "")) for r in self.of(Kind.COMMIT)]

    @property
    def understood(self) -> list[tuple[str, tuple[str, ...], str]]:
        """The same of each mail the model accepted."""
        return [(m.sender.decode(), tuple(r.decode() for r in m.recipients), m.sha256) for m in self.model.mails]

    def assert_one_reading(self) -> None:
        """What the records say is what the server understood: every command, every mail, nothing else."""
        assert self.model.commands == self.sent, f"{self.model} read other commands than were recorded"
        assert self.understood == self.committed, f"{self.model} read other mails than were recorded"


def octet_by_octet(octets: bytes) -> Iterator[bytes]:
    """The finest cut."""
    return (octets[i : i + 1] for i in range(len(octets)))


def cut_at_random(octets: bytes, seed: int) -> Iterator[bytes]:
    """Pieces of 1 to 4096 octets, most of them small."""
    source = random.Random(seed)
    at = 0
    while at < len(octets):
        size = source.choice((1, 1, 2, 3, 5, 8, 13, 89, 512, 4096))
        yield octets[at : at + size]
        at += size


def converse(
    session: Callable[[Callable[[AuditRecord], None]], Session] | None,
    model: Model,
    client_octets: bytes,
    *,
    cut: Callable[[bytes], Iterator[bytes]] | None = None,
    judge: Judge | None = None,
    **options: Any,
) -> Talk:
    """A client that says all of `client_octets` (in pieces as `cut`), through a session, to a model.

    `session` makes the session from a record function; None makes one of `judge` and `options`.
    """
    records: list[AuditRecord] = []
    if session is None:
        made = Session(judge=judge or default_judge(), record=records.append, clock=lambda: 0.0, **options)
    else:
        made = session(records.append)
    talk = Talk(made, model)
    _hear(talk, model.greeting)
    for piece in cut(client_octets) if cut is not None else (client_octets,):
        if talk.closed:
            break
        made.client_sent(piece)
        _pump(talk)
    talk.records = [rendered(record) for record in records]
    talk.sent = [
        bytes(record.exchange.sent.wire).removesuffix(b"\r\n")
        for record in records
        if record.kind is Kind.EXCHANGE and isinstance(record.exchange.sent, Command)
    ]
    return talk


def _hear(talk: Talk, octets: bytes) -> None:
    talk.session.server_sent(octets)
    _pump(talk)


def _pump(talk: Talk) -> None:
    """Carry octets to and fro until both are quiet."""
    session = talk.session
    while True:
        talk.told += bytes(session.to_client)
        session.to_client.clear()
        octets = bytes(session.to_server)
        session.to_server.clear()
        for effect in session.effects:
            if isinstance(effect, Abort) and effect.side is Side.SERVER:
                talk.aborted = True
                octets = b""
            if isinstance(effect, Abort | Close) and effect.side is Side.CLIENT:
                talk.closed = True
        session.effects.clear()
        talk.to_server += octets
        answer = talk.model.feed(octets) if octets else b""
        if answer:
            session.server_sent(answer)
        elif not octets:
            session.drained()  # as the driver does: when nothing comes of it, nothing more is asked for
            if not (session.to_server or session.to_client or session.effects):
                return
