"""Traces of the record: a span for each session, and for each mail transaction one below it.

A span is made of rows of the store's index, when the record that ends it comes by: nothing is kept of sessions that go
on, so there is nothing to lose at a restart and no bound on how many there are. What the index does not have is when a
transaction began. That is remembered from its `tx-begin` (of the newest `MOST` ones), and looked for in the records
before its end where it is not known: after a restart. Where it is not found either, nothing is guessed: the span has no
length then, and says so (`smtpproxy.began_unknown`).

The ids are digests of the gateway's name, the session's and the transaction's number: a span that is made twice is the
same one, and the records of a session can name its trace before there is one.
"""

from collections.abc import Iterator
from datetime import datetime
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec

from smtpproxy.audit.entries import entry_of
from smtpproxy.store.reading import Reader
from smtpproxy.store.wording import OURS, Value, attributes, end, tls_version

MOST: Final = 100_000  # transactions whose beginning is remembered
LOOK_BACK: Final = 20_000  # records before its end that a beginning is looked for in
_SESSION: Final = (
    "SELECT name, at, until, how, listener, client, server, hello, client_tls, server_tls, identity, mails"
    " FROM session WHERE "
)
_MAIL: Final = "SELECT session, at, outcome, code, verdict, rule FROM mail WHERE id = ?"
_REFUSED: Final = frozenset({"refused", "lost"})  # how a session ended that is an error
_NO_TROUBLE: Final = frozenset({"accepted", "RSET", "hello", "another MAIL"})  # how a transaction ends as one wants


class Span(NamedTuple):
    """One span.

    Attributes:
        trace, id, parent: its ids; `parent` is 0 for a session's.
        begin, end: nanoseconds since 1970.
        trouble: why it is an error; "": it is none.
    """

    trace: int
    id: int
    parent: int
    name: str
    begin: int
    end: int
    attributes: dict[str, Value]
    trouble: str


def trace_id(origin: str, session: str) -> int:
    """Of a session: 16 octets."""
    return int.from_bytes(_digest(origin, session)[:16]) or 1


def span_id(origin: str, session: str, tx: int = 0) -> int:
    """Of a session, or of a transaction of it: 8 octets."""
    return int.from_bytes(_digest(origin, session, str(tx))[:8]) or 1


def _digest(*names: str) -> bytes:
    return sha256("\0".join(names).encode()).digest()


class _Line(msgspec.Struct):
    kind: str = ""
    session: str = ""
    at: datetime | None = None
    tx: int = 0
    refused: str = ""


_read: Final = msgspec.json.Decoder(_Line).decode
_facts: Final = msgspec.json.Decoder(dict[str, Any]).decode


class Tracer:
    """Makes spans of the records that end something, in the order they come.

    Args:
        personal: names, addresses and what peers said are among the attributes.
    """

    def __init__(self, origin: str, *, personal: bool = True) -> None:
        self._origin = origin
        self._personal = personal
        self._begun: dict[tuple[str, int], int] = {}

    def take(self, number: int, line: bytes, reader: Reader) -> Iterator[Span]:
        """The spans that this record ends.

        Args:
            reader: of the store the record is in.

        Raises:
            StoreError: it can't be read.
        """
        if b'"kind":"exchange"' in line:
            return
        try:
            read = _read(line)
        except msgspec.MsgspecError:
            return
        if read.kind == "tx-begin":
            self._begun[read.session, read.tx] = _nanoseconds(read.at)
            if len(self._begun) > MOST:
                del self._begun[next(iter(self._begun))]
        elif read.kind in ("tx-commit", "tx-refused"):
            yield from self._mail(number, line, read, reader)
        elif read.kind == "link-close":
            yield from self._sessions("name = ? AND last = ?", (read.session, number), reader, line)
        elif read.kind == "link-connect" and read.refused:
            yield from self._sessions("id = ?", (number,), reader, line)
        elif read.kind in ("worker-died", "service-start"):
            yield from self._sessions("last = ?", (number,), reader, b"{}")

    def _sessions(self, which: str, values: tuple[Any, ...], reader: Reader, line: bytes) -> Iterator[Span]:
        for row in reader.rows(_SESSION + which, values):
            name, at, until, how, listener, client, server, hello, client_tls, server_tls, identity, mails = row
            found = self._common(name, line) | end("server", server or "") | tls_version(client_tls or "")
            found |= _told(listener=listener, how=how, mails=mails, server_tls=server_tls)
            if self._personal:
                found |= end("client", client or "") | _told(hello=hello)
                found |= {"user.name": identity} if identity else {}
            yield self._span(name, 0, (_whole(at), _whole(until)), found, how if how in _REFUSED else "")

    def _mail(self, number: int, line: bytes, read: _Line, reader: Reader) -> Iterator[Span]:
        for session, at, outcome, code, verdict, rule in reader.rows(_MAIL, (number,)):
            found = self._common(read.session, line)
            found |= _told(outcome=outcome, code=code, verdict=verdict, rule=rule)
            begin = self._begun.pop((read.session, read.tx), 0) or self._look_back(number, session, read, reader)
            if not begin:
                found[OURS + "began_unknown"] = True
            finish = _nanoseconds(read.at) or _whole(at)
            trouble = "" if outcome in _NO_TROUBLE else f"{outcome}: {code}" if code else outcome
            yield self._span(read.session, read.tx, (begin or finish, finish), found, trouble)

    def _look_back(self, number: int, session: int, read: _Line, reader: Reader) -> int:
        """When a transaction began, as its record has it; 0: it is not found."""
        for _, line in reader.lines(max(session, number - LOOK_BACK), number):
            if b'"kind":"tx-begin"' in line:
                begin = _read(line)
                if (begin.session, begin.tx) == (read.session, read.tx):
                    return _nanoseconds(begin.at)
        return 0

    def _common(self, session: str, line: bytes) -> dict[str, Value]:
        """What each has: what its last record says."""
        return {
            **attributes(_facts(line if self._personal else entry_of(line))),
            "network.protocol.name": "smtp",
            "network.transport": "tcp",
            OURS + "session": session,
        }

    def _span(self, session: str, tx: int, times: tuple[int, int], found: dict[str, Value], trouble: str) -> Span:
        begin, finish = times
        name, parent = ("SMTP mail", span_id(self._origin, session)) if tx else ("SMTP session", 0)
        ids = trace_id(self._origin, session), span_id(self._origin, session, tx), parent
        return Span(*ids, name, min(begin, finish), finish, found, trouble)


def _told(**facts: Any) -> dict[str, Value]:
    return {OURS + key: value for key, value in facts.items() if value not in (None, "")}


def _nanoseconds(at: datetime | None) -> int:
    """A record has whole microseconds."""
    return round(at.timestamp() * 1_000_000) * 1_000 if at is not None else 0


def _whole(seconds: float) -> int:
    return round(seconds * 1_000_000) * 1_000
