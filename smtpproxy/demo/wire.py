"""What crossed the wires: at the client's socket, at the server's socket, and what the record says in between.

Nothing here knows what ought to happen. A client's octets are read strictly, as RFC 5321 has it (`Seen`); the server
says itself how it read them (`server.Conversation`). A conversation (`Talk`) takes the audit records in order and puts
beside each exchange the turn of either side it is about; where the record and a wire don't say the same, `disagreement`
tells.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

END = b"\r\n.\r\n"
Record = dict[str, Any]


class What(Enum):
    """What a side said."""

    GREETING = "greeting"  # nothing: the server speaks first
    COMMAND = "command"
    CONTENT = "content"  # with its end of data
    ODD = "odd"  # octets that were answered before they were a line

    __hash__ = object.__hash__


@dataclass(slots=True)
class Turn:
    """A command or content, and the reply to it. `segment` counts the reads or writes it came by."""

    what: What
    octets: bytes = b""
    chunk: bytes = b""  # what BDAT brought
    reply: bytes = b""
    segment: int = 0

    @property
    def line(self) -> bytes:
        """The command without its line end."""
        return self.octets.rstrip(b"\r\n")

    @property
    def verb(self) -> bytes:
        """In capitals."""
        return self.line.partition(b" ")[0].upper()


def chunk_size(line: bytes) -> int:
    """The octets a BDAT announces; 0 if that can't be said."""
    words = line.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() and len(words[1]) < 20 else 0


class Seen:
    """A client's side of a conversation, read from the octets on its socket."""

    def __init__(self) -> None:
        self.turns = [Turn(What.GREETING)]
        self.told: list[bytes] = []  # every reply
        self.surplus: list[bytes] = []  # those nobody asked for
        self._segments = 0
        self._out = b""
        self._in = b""
        self._answered = 0
        self._content = False  # what comes next is content
        self._chunk = 0  # octets of a chunk still to come

    @property
    def odd(self) -> bytes:
        """What the client sent that was never a line, or never answered."""
        unanswered = b"".join(turn.octets for turn in self.turns[self._answered :]) + self._out
        return next((turn.octets for turn in self.turns if turn.what is What.ODD), unanswered)

    @property
    def to_be_secured(self) -> bool:
        """The last thing the client was told is that TLS begins."""
        last = self.turns[self._answered - 1]
        return last.verb == b"STARTTLS" and last.reply.startswith(b"220")

    def sent(self, octets: bytes) -> None:
        """The client sent this, in one write."""
        self._segments += 1
        self._out += octets
        self._read()

    def received(self, octets: bytes) -> None:
        """The client was told this."""
        self._in += octets
        while (reply := self._reply()) is not None:
            self.told.append(reply)
            if self._answered == len(self.turns) and self._out:
                self.turns.append(Turn(What.ODD, self._out, segment=self._segments))
                self._out = b""
            if self._answered == len(self.turns):
                self.surplus.append(reply)
                continue
            turn = self.turns[self._answered]
            turn.reply = reply
            self._answered += 1
            self._content = turn.verb == b"DATA" and reply.startswith(b"354") and turn.what is What.COMMAND
            self._read()

    def _reply(self) -> bytes | None:
        at = 0
        while (end := self._in.find(b"\n", at)) >= 0:
            last = self._in[at + 3 : at + 4] != b"-"
            at = end + 1
            if last:
                reply, self._in = self._in[:at], self._in[at:]
                return reply
        return None

    def _read(self) -> None:
        while self._out:
            last = self.turns[-1]
            if self._chunk:
                piece, self._out = self._out[: self._chunk], self._out[self._chunk :]
                self._chunk -= len(piece)
                last.chunk += piece
            elif self._content:
                end = (b"\r\n" + self._out).find(END)
                if end < 0:
                    return
                self._take(What.CONTENT, end + 3)
                self._content = False
            elif last.verb == b"DATA" and last.what is What.COMMAND and not last.reply:
                return  # its reply decides what comes next
            else:
                end = self._out.find(b"\r\n")
                if end < 0:
                    return
                self._take(What.COMMAND, end + 2)
                turn = self.turns[-1]
                self._chunk = chunk_size(turn.line) if turn.verb == b"BDAT" else 0

    def _take(self, what: What, size: int) -> None:
        self.turns.append(Turn(what, self._out[:size], segment=self._segments))
        self._out = self._out[size:]


@dataclass(slots=True)
class Row:
    """One exchange on record, and where it stands in either side's turns (-1: that side had no part in it)."""

    record: Record
    talk: "Talk"
    asked: int
    sent: int
    after: list[Record] = field(default_factory=list)  # the records that follow from it

    @property
    def client(self) -> Turn | None:
        """The client's turn."""
        turns = self.talk.client.turns
        return turns[self.asked] if 0 <= self.asked < len(turns) else None

    @property
    def server(self) -> Turn | None:
        """The server's turn."""
        turns = self.talk.server
        return turns[self.sent] if 0 <= self.sent < len(turns) else None

    @property
    def complete(self) -> bool:
        """Both sides have asked and answered."""
        client, server = self.client, self.server
        if self.last_word and not self.talk.client.surplus and not self.talk.blind:
            return False
        if client is not None and client.verb == b"STARTTLS" and client.reply.startswith(b"220") and not self.after:
            return False  # what became of it is still to come
        asked = self.asked < 0 or (client is not None and bool(client.reply))
        return asked and (self.sent < 0 or (server is not None and bool(server.reply)))

    @property
    def last_word(self) -> bool:
        """An event that was told to the client though it had asked nothing."""
        return self.record["kind"] == "note" and self.record.get("side") == "client" and bool(self.record.get("told"))

    @property
    def refused(self) -> bool:
        """The proxy answered, and what it said is no."""
        return self.record["action"] != "pass" and self.told[:1] in ("4", "5")

    @property
    def told(self) -> str:
        """What the client was told, as the record has it."""
        told = self.record.get("told", self.record.get("got"))
        return str(told) if told else ""

    def disagreement(self) -> str:
        """Where the record says something else than the wires; "" if it doesn't."""
        client, server, record = self.client, self.server, self.record
        pairs: list[tuple[str, str, str]] = []
        if client is not None:
            pairs.append(("told", _flat(client.reply), self.told))
            if client.what is What.COMMAND:
                pairs.append(("asked", _said(client), str(record["asked"])))
        if server is not None:
            pairs.append(("got", _flat(server.reply), str(record.get("got"))))
            if server.what is What.COMMAND:
                pairs.append(("sent", _said(server), str(record.get("sent", record["asked"]))))
        wrong = [f"{hop} {said!r} on record, {wire!r} on the wire" for hop, wire, said in pairs if wire != said]
        if (self.asked >= 0) != (client is not None) or (self.sent >= 0) != (server is not None):
            wrong.append(f"{record['verb']} is on record, and not on both wires")
        return "; ".join(wrong)


class Talk:
    """One conversation through the proxy: the client's turns, the server's, and the records that join them.

    Where somebody only listens in (`tapped`), the client's wire can't be read once it is encrypted (`blind`): what it
    says then is taken from the record.
    """

    def __init__(self, client: Seen, server: list[Turn], *, tapped: bool = False) -> None:
        self.client = client
        self.server = server
        self.tapped = tapped
        self.blind = False
        self.explained: set[str] = set()  # why it is so was said already
        self.rows: list[Row] = []
        self.shown = 0  # rows that were shown already
        self.closed = False  # the proxy has closed it
        self.ended = False  # it has been shown to its end
        self._asked = self._sent = 0

    def record(self, record: Record) -> None:
        """The next record of this session."""
        if record["kind"] == "link-close":
            self.closed = True
        if record["kind"] == "link-tls":
            self.blind = self.tapped
        if record["kind"] != "exchange":
            row = Row(record, self, -1, -1)
            if len(self.rows) > self.shown and not row.last_word:
                self.rows[-1].after.append(record)
            else:
                self.rows.append(row)
            return
        row = Row(record, self, -1, -1)
        if record["asked"] is not None:
            row.asked, self._asked = self._asked, self._asked + 1
        if record.get("sent", record["asked"]) is not None:
            row.sent, self._sent = self._sent, self._sent + 1
        if self.blind and row.asked >= 0:
            what = What.CONTENT if record["verb"] in ("END", "OCTETS") else What.COMMAND
            asked = b"" if what is What.CONTENT else str(record["asked"]).encode() + b"\r\n"
            told = unflat(row.told, row.server.reply if row.server is not None else b"")
            self.client.turns.append(Turn(what, asked, reply=told, segment=-len(self.rows)))
        self.rows.append(row)

    def take(self, *, all_of_it: bool = False) -> list[Row]:
        """The rows not shown yet, as far as they are whole: both sides have answered everything of a segment."""
        fresh = self.rows[self.shown :]
        if not all_of_it:
            waiting = {turn.segment for turn in self.client.turns[self._asked :]}
            waiting |= {row.client.segment for row in fresh if row.client is not None and not row.complete}
            for at, row in enumerate(fresh):
                if not row.complete or (row.client is not None and row.client.segment in waiting):
                    fresh = fresh[:at]  # the rest of its group is still to come
                    break
        self.shown += len(fresh)
        return fresh


class Tail:
    """Reads the audit file as it grows."""

    def __init__(self, path: Path) -> None:
        self.lines: list[str] = []
        self._file = path.open("rb")
        self._rest = b""

    def records(self) -> Iterator[Record]:
        """What is new."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            self.lines.append(line.decode())
            yield json.loads(line)

    def close(self) -> None:
        """Read no more."""
        self._file.close()


def text(octets: bytes) -> str:
    """For people; what can't be printed is escaped, so that no peer writes to the terminal."""
    decoded = octets.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in decoded)


def _said(turn: Turn) -> str:
    """A command as the record has it: of a password its length."""
    words = text(turn.line).split(" ", 2)
    return f"{words[0]} {words[1]} <{len(words[2])} octets>" if turn.verb == b"AUTH" and words[2:] else text(turn.line)


def unflat(told: str, got: bytes) -> bytes:
    """A reply of the record, where all lines are one, in its lines again: those of the server's, some of them left out
    or with another value."""
    if not told or _flat(got) == told:
        return got if told else b""
    rest, lines = told[4:], []
    for line in got.removesuffix(b"\r\n").split(b"\r\n"):
        words = text(line[4:]).split(" ")
        mine = rest.split(" ")[: len(words)]
        if mine[0] == words[0]:
            lines.append(" ".join(mine))
            rest = rest.removeprefix(lines[-1]).lstrip(" ")
    if rest or not lines:
        lines = [told[4:]]
    *first, last = lines
    return "".join(f"{told[:3]}-{line}\r\n" for line in first).encode() + f"{told[:3]} {last}\r\n".encode()


def _flat(reply: bytes) -> str:
    lines = reply.removesuffix(b"\r\n").split(b"\r\n")
    return f"{lines[0][:3].decode('latin-1')} {' '.join(text(line[4:]) for line in lines)}".rstrip()
