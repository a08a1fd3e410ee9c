"""From records to the rows one finds them by: sessions, mails, recipients and marks (schema.py).

Lines are taken in order. What is known of a session that goes on is kept here (`_Going`), and nothing else is; a mail's
row is made once, of the record at which it was over. After a restart, the lines of the sessions that went on are taken
once more and what comes of them is thrown away (`Index.restore`).

A line is looked at as far as it is understood. What is no record of ours (a line cut off, one of a later version) is
kept and proved like any other, and makes no rows.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec

from smtpproxy.store.schema import client_key, key_of

GRAVITY: Final = {  # how much a verdict did: a mail has the gravest of its exchanges
    name: grade
    for grade, name in enumerate(("pass", "rewrite", "redirect", "answer", "discard", "quarantine", "hangup"))
}
MOST_MARKS: Final = 256  # different ones of a session or mail; what comes behind is in the records alone
_QUIET: Final = ("default", "posture")  # what decides where no rule does


Time = Annotated[datetime, msgspec.Meta(tz=True)]
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]  # SQLite and PostgreSQL take it


class Line(msgspec.Struct, gc=False):
    """What the index needs of a record."""

    kind: str = ""
    session: str = ""
    at: Time | None = None
    verb: str = ""
    action: str = "pass"
    code: Number = 0
    tx: Number = 0
    rule: str = ""
    rules: tuple[str, ...] = ()
    observed: tuple[dict[str, Any], ...] = ()
    anomalies: tuple[str, ...] = ()
    anomaly: str = ""
    tags: tuple[str, ...] = ()
    listener: str = ""
    client: Any = None
    server: Any = None
    refused: str = ""
    asked: str | None = None
    mail: str | None = None
    rcpt: tuple[str, ...] = ()
    rcpt_refused: tuple[str, ...] = ()
    octets: Number = 0
    sha256: str = ""
    message_id: str = ""
    why: str = ""
    accepted: bool = False
    seq: Number = 0
    identity: str = ""
    worker: str = ""
    alone: bool = False


decode: Final = msgspec.json.Decoder(Line).decode
NO_RECORD: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # raised for what is none of ours


class Rows:
    """What is to be put into the tables; `ended` are sessions whose row is to be changed, with their columns."""

    __slots__ = ("ended", "mails", "marks", "recipients", "sessions")

    def __init__(self) -> None:
        self.sessions: list[tuple[Any, ...]] = []
        self.ended: list[tuple[Any, ...]] = []
        self.mails: list[tuple[Any, ...]] = []
        self.recipients: list[tuple[Any, ...]] = []
        self.marks: list[tuple[Any, ...]] = []


class _Part:
    """What is told of a mail while it goes on, or of its session outside any mail."""

    __slots__ = ("code", "grade", "marks", "rule", "verdict")

    def __init__(self) -> None:
        self.code = 0
        self.grade = 0
        self.verdict = "pass"
        self.rule: str | None = None
        self.marks: dict[tuple[str, str], int] = {}

    def mark(self, what: str, name: str) -> None:
        key = what, name
        times = self.marks.get(key)
        if times is not None:
            self.marks[key] = times + 1
        elif len(self.marks) < MOST_MARKS:
            self.marks[key] = 1


class _Going:
    """A session that goes on."""

    __slots__ = (
        "client",
        "client_tls",
        "hello",
        "id",
        "identity",
        "latest",
        "listener",
        "mails",
        "own",
        "parts",
        "server",
        "server_tls",
    )

    def __init__(self, number: int, line: Line) -> None:
        self.id = number
        self.client = _address(line.client) if isinstance(line.client, str) else None
        self.server = line.server if isinstance(line.server, str) else None
        self.listener = line.listener
        self.hello: str | None = None
        self.identity: str | None = None
        self.client_tls: str | None = None
        self.server_tls: str | None = None
        self.mails = 0
        self.latest = 0.0  # time of its mails: where the clock is set back, its end may be before that
        self.own = _Part()
        self.parts: dict[int, _Part] = {}  # by transaction


class Index:
    """Takes lines, gives rows."""

    def __init__(self) -> None:
        self._going: dict[str, _Going] = {}
        self.rows = Rows()

    def __len__(self) -> int:
        """Sessions that go on."""
        return len(self._going)

    def give(self) -> Rows:
        """What came of the lines since the last time."""
        rows, self.rows = self.rows, Rows()
        return rows

    def restore(self, sessions: Iterable[tuple[int, str]], lines: Iterable[tuple[int, bytes]]) -> None:
        """Know again what was known of sessions that go on.

        Args:
            sessions: id and name of each.
            lines: all lines from the first of them on, in order.
        """
        names = {name: number for number, name in sessions}
        for number, line in lines:
            found = self.read(line)
            if found is not None and names.get(found.session, number + 1) <= number:
                self.take(number, found)
        self._going = {name: going for name, going in self._going.items() if names.get(name) == going.id}
        self.rows = Rows()

    @staticmethod
    def read(line: bytes) -> Line | None:
        """What it says; None if it is no record of ours."""
        try:
            return decode(line)
        except NO_RECORD:
            return None

    def take(self, number: int, line: Line) -> None:
        """The next line."""
        kind = line.kind
        if kind == "exchange":
            going = self._going.get(line.session)
            if going is not None:
                self._exchange(number, line, going)
        elif kind == "link-connect":
            self._connect(number, line)
        elif kind == "worker-died" or (kind == "service-start" and line.alone):
            self._lost(number, line)
        else:
            going = self._going.get(line.session)
            if going is not None and (act := _KINDS.get(kind)) is not None:
                act(self, number, line, going)

    def _connect(self, number: int, line: Line) -> None:
        at = _seconds(line)
        going = _Going(number, line)
        over = (at, number, "refused") if line.refused else (None, None, None)
        self.rows.sessions.append(
            (number, line.session, at, *over, line.listener, going.client, going.server, None, None, None, None, 0)
        )
        if line.refused:
            self._none(number, at, going, "refused")
        else:
            self._going[line.session] = going

    def _exchange(self, number: int, line: Line, going: _Going) -> None:
        verb = line.verb
        if line.tx:
            part = going.parts.get(line.tx)
            if part is None:
                part = going.parts[line.tx] = _Part()
        else:
            part = going.own
        if line.code:
            part.code = line.code
        if line.action != "pass" or line.rule or line.code >= 400:
            self._decided(line, part)
        if line.anomalies or line.tags or line.observed or line.rules:
            self._marked(line, part)
        if verb == "MAIL":
            if line.code >= 400 and line.tx:
                self._mail(number, line, going, "refused")
        elif verb in ("EHLO", "HELO", "LHLO") and line.code // 100 == 2 and line.asked:
            going.hello = line.asked.partition(" ")[2]

    @staticmethod
    def _decided(line: Line, part: _Part) -> None:
        grade = GRAVITY.get(line.action, 0)
        names = [name for name in line.rule.split() if name not in _QUIET]
        if grade > part.grade:
            part.grade, part.verdict = grade, line.action
            part.rule = names[0] if names else None
        elif part.rule is None and names and grade == part.grade:
            part.rule = names[0]
        for name in names:
            part.mark("rule", name)
        if line.code >= 400:
            part.mark("reply", str(line.code))

    @staticmethod
    def _marked(line: Line, part: _Part) -> None:
        for name in line.anomalies:
            part.mark("anomaly", name)
        for name in line.tags:
            part.mark("tag", name)
        for name in line.rules:
            part.mark("rule", name)
        for seen in line.observed:
            part.mark("observed", str(seen.get("rule", "")))

    def _anomaly(self, number: int, line: Line, going: _Going) -> None:
        if line.anomaly:
            part = going.parts.get(line.tx, going.own) if line.tx else going.own
            part.mark("anomaly", line.anomaly)

    def _over(self, number: int, line: Line, going: _Going) -> None:
        outcome = "accepted" if line.kind == "tx-commit" else line.why or "server"
        self._mail(number, line, going, outcome)

    def _mail(self, number: int, line: Line, going: _Going, outcome: str) -> None:
        at = _seconds(line)
        part = going.parts.pop(line.tx, None) or _Part()
        going.mails += 1
        going.latest = max(going.latest, at)
        self.rows.mails.append(
            (
                number,
                going.id,
                line.tx,
                at,
                outcome,
                None if line.mail is None else key_of(line.mail),
                line.octets if line.kind != "exchange" else 0,
                line.code or part.code,
                part.verdict,
                part.rule,
                line.message_id or None,
                line.sha256 or None,
                *_of_session(going),
            )
        )
        recipients = [(address, 1) for address in line.rcpt] + [(address, 0) for address in line.rcpt_refused]
        for n, (address, accepted) in enumerate(recipients):
            self.rows.recipients.append((number, n, key_of(address), accepted, at))
        for (what, name), times in part.marks.items():
            self.rows.marks.append((what, name, going.id, number, at, times))

    def _tls(self, number: int, line: Line, going: _Going) -> None:
        if isinstance(line.client, dict):
            going.client_tls = str(line.client.get("version", "")) or None
        if isinstance(line.server, dict):
            going.server_tls = str(line.server.get("version", "")) or None

    def _auth(self, number: int, line: Line, going: _Going) -> None:
        if line.accepted and line.identity:
            going.identity = line.identity

    def _close(self, number: int, line: Line, going: _Going) -> None:
        del self._going[line.session]
        self._end(number, _seconds(line), going, "closed")

    def _lost(self, number: int, line: Line) -> None:
        """Sessions whose worker died (each one's name begins with its worker's), or all of them at a new start,
        with no worker left of before."""
        mark = f"{line.worker}-" if line.kind == "worker-died" else ""
        for name in [name for name in self._going if name.startswith(mark)]:
            self._end(number, _seconds(line), self._going.pop(name), "lost")

    def _end(self, number: int, at: float, going: _Going, how: str) -> None:
        for part in going.parts.values():  # asked, and never over: of a worker that died, or cut off before a reply
            for (what, name), times in part.marks.items():
                going.own.marks[what, name] = going.own.marks.get((what, name), 0) + times
            if part.grade > going.own.grade:
                going.own.grade, going.own.verdict, going.own.rule = part.grade, part.verdict, part.rule
        if not going.mails:
            self._none(number, at, going, how)
        for (what, name), times in going.own.marks.items():
            self.rows.marks.append((what, name, going.id, 0, max(at, going.latest), times))
        self.rows.ended.append(
            (at, number, how, going.hello, going.client_tls, going.server_tls, going.identity, going.mails, going.id)
        )

    def _none(self, number: int, at: float, going: _Going, how: str) -> None:
        """The row that stands for a session without any mail. Its number is free: no mail was over with that record,
        but for several sessions that are lost at once, each of which has its own id."""
        own = going.own
        self.rows.mails.append(
            (
                number if how != "lost" else going.id,
                going.id,
                0,
                at,
                "none",
                None,
                0,
                own.code,
                own.verdict,
                own.rule,
                None,
                None,
                *_of_session(going),
            )
        )


_KINDS: Final = {
    "tx-commit": Index._over,
    "tx-refused": Index._over,
    "link-tls": Index._tls,
    "link-auth": Index._auth,
    "link-close": Index._close,
    "violation": Index._anomaly,
    "note": Index._anomaly,
}


def _of_session(going: _Going) -> tuple[str | None, ...]:
    client = None if going.client is None else client_key(going.client)
    return client, going.server, going.listener, going.client_tls, going.hello, going.identity


def _seconds(line: Line) -> float:
    return line.at.timestamp() if line.at is not None else 0.0


def _address(text: str) -> str:
    """`192.0.2.1:25` or `[2001:db8::1]:25` without the port."""
    host, colon, port = text.rpartition(":")
    return host.strip("[]") if colon and port.isdigit() else text
