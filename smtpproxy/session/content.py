"""Content on its way through a session: what all of it has in common, and one mail by DATA (`Incoming`).

How deep it is looked into is asked of the judge when it begins (architecture §7) and decides when the server hears of
it:

- STREAM: DATA went to the server, 354 was told; the octets follow as they come.
- HEADER: DATA was answered here; the header section is held back, judged, edited; then our own DATA goes to the
  server, and what was held and what comes follow its 354.
- WHOLE: the same, with all of the content held back (in a spool).

The rules, whatever the depth:

1. A mail that is refused here never completes at the server (S4): in STREAM its link is aborted, for nothing can be
   taken back; before our own DATA was sent, RSET takes the transaction back and the session lives on.
2. What is refused is read on to its end and thrown away, up to a bound: stopping early would turn it into commands.
3. 250 to an end of data is told only after the server's own 250 to that end of data.

One mail by BDAT is in chunks.py; the rules are the same.
"""

import hashlib
import io
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from smtpproxy.session import asking
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.records import CONTENT
from smtpproxy.session.state import Transaction
from smtpproxy.session.verdicts import Action, Depth, Effects, Verdict
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.commands import Command, parse_command
from smtpproxy.smtp.messageid import MessageId
from smtpproxy.smtp.readers import Content, stuffed
from smtpproxy.smtp.registry.verbs import END, VERBS
from smtpproxy.smtp.replies import OwnReply, Reply

if TYPE_CHECKING:
    from smtpproxy.session.session import Session

PIECE: Final = 262_144  # octets of held-back content given to the server at a time


def ours(line: bytes) -> Command:
    command = parse_command(line)
    if not isinstance(command, Command):
        raise AssertionError(line)
    return command


class Way(Enum):
    """Where the octets go."""

    PASSING = "passing"  # to the server
    HEADER = "header"  # held back until the header section is whole
    WHOLE = "whole"  # held back until the end
    ASKED = "asked"  # all of it is held back, and the outside is asked about it
    WAITING = "waiting"  # judged; the server's go-ahead is awaited
    SWALLOW = "swallow"  # nowhere

    __hash__ = object.__hash__


class Inspected:
    """What DATA and BDAT have in common: counting, holding back, judging, refusing."""

    def __init__(self, session: "Session", transaction: Transaction, depth: Depth) -> None:
        self.session = session
        self.transaction = transaction
        self.way = {Depth.STREAM: Way.PASSING, Depth.HEADER: Way.HEADER, Depth.WHOLE: Way.WHOLE}[depth]
        self.over = False
        self.reply: OwnReply | Reply = say.DISCARDED  # what is told at the end of swallowed content
        self.action = "answer"
        self.rule = ""
        self.anomalies: tuple[str, ...] = ()
        self.came = 0  # octets, without dot-stuffing
        self.reset = False  # the server still has the transaction: RSET takes it back
        self.hangup = False
        self.pumping = False  # all has come; what was held back is on its way to the server
        self._digest = hashlib.sha256()
        self.effects: Effects | None = None
        self.asked_end: Exchange | None = None  # the end of data, while rules ask the outside about the mail
        self._held = bytearray()  # HEADER: the header section so far, and what came with its end
        self._spool: Any = None
        self._max = session.judge.max_size(session)
        self._shown = bytearray()  # for a transcript
        self._message_id = MessageId()
        if transaction.discarded:
            self.refuse(say.DISCARDED, rule=transaction.discarded, action="discard")

    def finish(self) -> None:
        """All of the content has come."""
        self.transaction.digest = self._digest.hexdigest()
        self.transaction.message_id = self._message_id.found or b""

    def refuse(self, reply: OwnReply | Reply, anomaly: str = "", *, rule: str = "", action: str = "answer") -> None:
        """The rest is swallowed and `reply` told at the end."""
        if anomaly:
            self.anomalies += (anomaly,)
        self.reply = reply
        self.action = action
        self.rule = rule
        self._held.clear()
        if self.way is not Way.ASKED:  # else somebody outside may be reading it
            self.discard()
        self.take_back()
        self.way = Way.SWALLOW

    def discard(self) -> None:
        """Let go of what was held back."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def take_back(self) -> None:
        """See to it that what the server has of the mail never completes."""

    def count(self, plain: bytes) -> bool:
        """Count and digest a piece, refused or not; False where it goes nowhere (any more)."""
        self.came += len(plain)
        self.transaction.size += len(plain)
        self._digest.update(plain)
        if self._message_id.found is None:
            self._message_id.take(plain)
        if self.session.transcript and len(self._shown) < CONTENT:
            self._shown += plain[: CONTENT - len(self._shown)]
        if self.way is not Way.SWALLOW and self._max and self.came > self._max:
            self.refuse(say.TOO_BIG, "over-size", rule=self.session.judge.owner(b"SIZE", self.session))
        if self.way is not Way.SWALLOW:
            return True
        if self.came > self.session.limits.swallow + self._max:
            self.session.too_much()
        return False

    def hold(self, plain: bytes) -> None:
        """WHOLE: keep a piece back."""
        if self.count(plain):
            if self._spool is None:
                self._spool = self.session.spool() if self.session.spool is not None else io.BytesIO()
            self._spool.write(plain)

    def header_part(self, plain: bytes) -> tuple[int, bool]:
        """HEADER: how much of a piece belongs to the header section, and whether that is whole with it."""
        held = self._held
        tail = bytes(held[-3:]) + plain
        if not held and plain.startswith(b"\r\n"):
            return 2, True
        if bytes(held) == b"\r" and plain.startswith(b"\n"):
            return 1, True
        found = tail.find(b"\r\n\r\n")
        if found < 0:
            return len(plain), False
        return found + 4 - (len(tail) - len(plain)), True

    def hold_header(self, plain: bytes) -> None:
        """HEADER: keep a piece of the header section back."""
        if self.count(plain):
            self._held += plain
            if len(self._held) > self.session.limits.header:
                self.refuse(say.HEADER_TOO_BIG, "header-too-big")

    def judge_header(self) -> bool:
        """Have the header section judged; False when that refused the mail."""
        judge = self.session.judge.header
        if judge is None:
            return True
        verdict = asking.judged(self.session, "header", judge, bytes(self._held), self.session)
        self._heed(verdict)
        if verdict.action is Action.REWRITE and _clean(verdict.value):
            self.action = verdict.action.value
            self.transaction.size += len(verdict.value) - len(self._held)
            self._digest = hashlib.sha256(verdict.value)
            self._held = bytearray(verdict.value)
            return True
        return self._apply(verdict)

    def judge_content(self, exchange: Exchange | None, then: Callable[[bool], None]) -> None:
        """Have the whole content judged; `then` is told, now or later, whether the mail may go on.

        Args:
            exchange: the one that stands for the end of the mail; None: there is none yet.
            then: what follows.
        """
        session = self.session
        if self._spool is None:
            self._spool = io.BytesIO()
        self._spool.seek(0)
        self.finish()
        judge = session.judge.content
        if judge is None:
            then(True)
            return
        verdict = asking.judged(session, "content", judge, self._spool, session)
        self._heed(verdict)
        if verdict.action is not Action.ASK:
            then(self._settle(verdict))
            return
        self.way = Way.ASKED
        if exchange is None:
            exchange = self.asked_end = Exchange(END, END, session.clock())
            exchange.transaction = self.transaction
            session.ledger.exchanges.append(exchange)
        exchange.waiting = True
        session.hold(exchange)
        asking.ask(session, verdict.value, self._heed, lambda verdict: then(self._settle(verdict)))

    def _settle(self, verdict: Verdict) -> bool:
        """What becomes of the whole content; False when it is refused."""
        if self.way is Way.SWALLOW:  # the server was lost while the outside was asked
            self.discard()
            if verdict.action in (Action.DISCARD, Action.QUARANTINE):  # no server is needed for that
                self.reply = say.DISCARDED if verdict.action is Action.DISCARD else verdict.value
                self.action = verdict.action.value
            return False
        self.way = Way.WHOLE
        spool = self._spool
        if verdict.action is Action.REWRITE:
            octets, value = verdict.value if isinstance(verdict.value, tuple) else (None, verdict.value)
            if _clean(value):
                self.action = verdict.action.value
                self._replace(octets, value)
                return True
        spool.seek(0)
        return self._apply(verdict)

    def _replace(self, octets: int | None, value: bytes) -> None:
        """So many octets at the beginning (None: all) become `value`; size and digest are of what is sent on."""
        before, spool = self._spool, self.session.spool() if self.session.spool is not None else io.BytesIO()
        self._digest = hashlib.sha256(value)
        spool.write(value)
        size = len(value)
        if octets is not None:
            before.seek(octets)
            while piece := before.read(PIECE):
                self._digest.update(piece)
                spool.write(piece)
                size += len(piece)
        before.close()
        spool.seek(0)
        self.transaction.size = size
        self._spool = spool

    def _heed(self, verdict: Verdict) -> None:
        """Remember what is put on record at the end of data."""
        self.rule = verdict.rule or self.rule
        self.anomalies += verdict.anomalies
        self.effects = asking.merged(self.effects, verdict.effects)

    def _apply(self, verdict: Verdict) -> bool:
        """What rules decided; False when that refused the mail."""
        if verdict.action is Action.PASS:
            return True
        reply = say.DISCARDED if verdict.action is Action.DISCARD else verdict.value
        action = verdict.action.value
        if not isinstance(reply, OwnReply):  # ASK where nothing can wait, or octets that are no content
            reply, action = say.RULE_FAILED, Action.ANSWER.value
            self.anomalies += ("rule-failed",)
        self.hangup = verdict.action is Action.HANGUP
        self.refuse(reply, rule=verdict.rule, action=action)
        return False

    def mark(self, exchange: Exchange) -> None:
        """Put what became of the content on its exchange."""
        if self.way is Way.SWALLOW or self.action == Action.REWRITE.value:
            exchange.action = self.action
        exchange.rule = self.rule or exchange.rule
        exchange.anomalies += self.anomalies
        exchange.effects = asking.merged(exchange.effects, self.effects)
        exchange.octets = self.transaction.size
        exchange.content = bytes(self._shown)
        if self.hangup:
            exchange.closes = self.session.deaf = True


def _clean(octets: bytes) -> bool:
    """What a rule made has whole lines and nothing astray: it is sent on as it is."""
    rest = octets.replace(b"\r\n", b"")
    return (not octets or octets.endswith(b"\r\n")) and not any(stray in rest for stray in (b"\r", b"\n", b"\0"))


class Incoming(Inspected):
    """One mail by DATA."""

    def __init__(self, session: "Session", transaction: Transaction, depth: Depth) -> None:
        super().__init__(session, transaction, depth)
        self._content = Content()
        self._rest = b""  # WAITING: what came behind the header section in the same read
        self._rest_astray = -1
        self._end: Exchange | None = None  # the end of data, while the spool is being sent
        self._carried = b""
        self.told = False  # the end of data has its exchange: nothing of the mail is to be decided any more

    def take(self, data: bytes, start: int) -> int:
        """Content in `data` from `start`; gives where the rest begins."""
        content = self._content
        body, after = content.take(data, start)
        if body:
            plain = content.plain
            if self.way is Way.HEADER:
                self._hold_header(plain)
            else:
                if content.stray_at >= 0:
                    self._astray(content.stray_at)
                if self.way is Way.WHOLE:
                    self.hold(plain)
                elif self.count(plain):
                    self.session.to_server += body
        if content.done and not self.session.deaf:
            self.over = True
            self._ended()
        return after

    def _astray(self, at: int) -> None:
        """An octet stands alone at this place of the piece; too big before it is too big."""
        if self.way is not Way.SWALLOW and self.session.newlines == "refuse" and not 0 < self._max < self.came + at:
            self.refuse(say.STRAY_NEWLINE, "stray-newline-refused")

    def _hold_header(self, plain: bytes) -> None:
        """Up to the end of the header section; what is behind it is looked at only when that was judged."""
        end, whole = self.header_part(plain)
        stray = self._content.stray_at
        if 0 <= stray < end:
            self._astray(stray)
        self.hold_header(plain[:end])
        if not whole:
            return
        rest = plain[end:]
        if self.way is Way.HEADER and self.judge_header():
            self._rest, self._rest_astray = rest, stray - end
            self._begin()
        else:
            self.count(rest)

    def _begin(self) -> None:
        """What was held back may go: ask the server with our own DATA, and wait for its go-ahead."""
        self.way = Way.WAITING
        exchange = Exchange(VERBS[b"DATA"], None, self.session.clock())
        exchange.sent = DATA
        exchange.transaction = self.transaction
        exchange.after = self._answered
        self.session.send_own(exchange, DATA.wire, hold=True)

    def _answered(self, exchange: Exchange) -> None:
        """The server's reply to our own DATA; none if its link is gone."""
        session = self.session
        if self.way is Way.SWALLOW:
            self.count(self._rest)
        elif exchange.got is None or exchange.got.code != 354:
            self.refuse(exchange.got or say.CONTENT_LOST, "server-lost" if exchange.got is None else "early-refusal")
            self.count(self._rest)
        else:
            self.way = Way.PASSING
            rest, self._rest = self._rest, b""
            if self.over and self._spool is not None:
                self._tell()
                self.refill()
                return
            if self._rest_astray >= 0:
                self._astray(self._rest_astray)
            if self.count(rest):
                session.to_server += stuffed(bytes(self._held) + rest)
                self._held.clear()
        if self.over:
            self._tell()

    def _ended(self) -> None:
        """The end of data has come."""
        if self.way is Way.WHOLE:
            self.judge_content(None, self._judged)
        else:
            self._judged(self.way is Way.HEADER and self.judge_header())

    def _judged(self, begin: bool) -> None:
        if begin:
            self._begin()
        if self.way is not Way.WAITING:
            self._tell()

    def _tell(self) -> None:
        """Put the end of data into the ledger: sent, refused, or waiting for the spool."""
        session = self.session
        self.told = True
        if self._content.stray and self.way is not Way.SWALLOW:
            self.anomalies += ("stray-newline-normalised",)
        self.finish()
        exchange = self.asked_end or Exchange(END, END, session.clock())
        exchange.transaction = self.transaction
        self.mark(exchange)
        session.transaction = session.incoming = None  # DATA held: nothing was asked since
        if self.way is Way.SWALLOW:
            exchange.told = self.reply
            if self.reset and not session.server_gone:
                exchange.sent = RSET
                session.to_server += RSET.wire
        elif self._spool is not None:
            self._end = exchange
            session.incoming = self
            self.pumping = True
            session.hold(exchange)
        else:
            exchange.sent, exchange.sent_at = END, session.clock()
            session.to_server += b".\r\n"
        session.push(exchange)

    def refill(self) -> None:
        """A piece more of the spool, for a server that has taken all there was."""
        if self._end is None or self._spool is None or self._end.lost:
            return
        while True:
            first = self._spool.tell() == 0
            read = self._spool.read(PIECE)
            piece = self._carried + read
            if not read:
                break
            # What may be the beginning of CRLF . is kept for the next piece, so that a line's first dot is seen.
            keep = 2 if piece.endswith(b"\r\n") else 1 if piece.endswith(b"\r") else 0
            self._carried = piece[len(piece) - keep :]
            piece = piece[: len(piece) - keep].replace(b"\r\n.", b"\r\n..")
            self.session.to_server += b"." + piece if first and piece.startswith(b".") else piece
            if self.session.to_server:
                return
        self.session.to_server += piece + b".\r\n"
        self._spool.close()
        self._spool = None
        self._end.sent, self._end.sent_at = END, self.session.clock()
        self.pumping = False
        self.session.incoming = None

    def remains(self) -> "Incoming | None":
        """It stays until the end of data has its exchange, and that is decided."""
        return self if self.way in (Way.WAITING, Way.ASKED) or self.pumping else None

    def lost(self, reply: OwnReply | Reply, anomaly: str) -> None:
        """The server will not take it any more: what comes is swallowed, and `reply` told at the end."""
        if self.way is not Way.SWALLOW:
            self.refuse(reply, anomaly)

    def take_back(self) -> None:
        """STREAM: half a mail is at the server, and only its link's end keeps it from being one."""
        if self.way is Way.PASSING:
            self.session.abort_server()
        else:
            self.reset = True


DATA: Final = ours(b"DATA\r\n")
RSET: Final = ours(b"RSET\r\n")
NOOP: Final = ours(b"NOOP\r\n")
