"""One mail by BDAT, over all its chunks (RFC 3030 §2); and the octets of a BDAT that is refused.

The rules of content.py, and two more:

1. The octets of a chunk are taken whatever becomes of its BDAT, because they are already on their way.
2. Each BDAT has one reply. While content is held back (HEADER, WHOLE), the chunks that are held are told 250 here; the
   one that decides is sent as a chunk of our own size, and told the server's reply to that.
"""

from typing import TYPE_CHECKING

from smtpproxy.session.content import RSET, Inspected, Way, ours
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.state import Transaction
from smtpproxy.session.verdicts import Depth
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.commands import Command

if TYPE_CHECKING:
    from smtpproxy.session.session import Session


class Swallowed:
    """The octets behind a BDAT that is refused. What was begun before it is kept."""

    def __init__(self, session: "Session", octets: int) -> None:
        self._session = session
        self.left = octets
        self.over = octets == 0
        before = session.incoming
        self._before = before if isinstance(before, Chunks) else None

    def take(self, data: bytes, start: int) -> int:
        """Throw the chunk's octets away; gives where the rest begins."""
        end = min(len(data), start + self.left)
        self.left -= end - start
        self.over = self.left == 0
        self._session.swallow(end - start)
        return end

    def remains(self) -> "Chunks | None":
        """What was begun before."""
        return self._before

    def refill(self) -> None:
        """Nothing of it goes anywhere."""


class Chunks(Inspected):
    """One mail by BDAT. Between chunks it stays with the session."""

    def __init__(self, session: "Session", transaction: Transaction, depth: Depth) -> None:
        super().__init__(session, transaction, depth)
        self.exchange: Exchange | None = None
        self.left = 0
        self._last = False
        self._size = 0  # of this chunk

    def begin(self, exchange: Exchange, command: Command) -> None:
        """A BDAT that may go on."""
        session = self.session
        size, self._last = command.argument
        self.exchange = exchange
        self.left = self._size = size
        self.over = size == 0
        exchange.octets = size
        if self.way is not Way.SWALLOW and self._max and self.transaction.size + size > self._max:
            self.refuse(say.TOO_BIG, "over-size", rule=session.judge.owner(b"SIZE", session))
        if self.way is Way.PASSING:
            exchange.sent = command
            session.to_server += command.wire
        elif self.way is Way.SWALLOW:
            self._tell_refusal(exchange)
        session.push(exchange)
        if size == 0:
            self._chunk_over()

    def _tell_refusal(self, exchange: Exchange) -> None:
        self.mark(exchange)
        exchange.octets = self._size
        if self.action == "discard" and not self._last:
            exchange.told = say.CHUNK_HELD
            return
        exchange.told = self.reply
        if self.reset and not self.session.server_gone:
            self.reset = False
            exchange.sent = RSET
            self.session.to_server += RSET.wire

    def take(self, data: bytes, start: int) -> int:
        """The chunk's octets in `data` from `start`; gives where the rest begins."""
        end = min(len(data), start + self.left)
        piece = data if start == 0 and end == len(data) else data[start:end]
        self.left -= len(piece)
        if self.held:
            self._hold_back(piece)
        elif self.count(piece):
            self.session.to_server += piece
        if self.way is Way.SWALLOW and self.exchange is not None and self._undecided:
            self._tell_refusal(self.exchange)
            self.session.settle()
        if self.left == 0:
            self.over = True
            self._chunk_over()
        return end

    def _hold_back(self, piece: bytes) -> None:
        if self.way is Way.WHOLE:
            self.hold(piece)
            return
        end, whole = self.header_part(piece)
        self.hold_header(piece[:end])
        if not whole:
            return
        if self.way is Way.HEADER and self.judge_header():
            self._release(piece[end:])
        else:
            self.count(piece[end:])

    @property
    def _undecided(self) -> bool:
        return self.exchange is not None and self.exchange.sent is None and self.exchange.told is None

    def _release(self, rest: bytes) -> None:
        """HEADER: judged and passed. What is held goes as a chunk of our own, together with the rest of this one."""
        self.count(rest)
        self._send(bytes(self._held) + rest, self.left, last=self._last)
        self._held.clear()

    def _send(self, octets: bytes, more: int, *, last: bool) -> None:
        exchange = self.exchange
        if exchange is None:
            raise AssertionError("a chunk without its BDAT")
        command = ours(b"BDAT %d%s\r\n" % (len(octets) + more, b" LAST" if last else b""))
        exchange.sent = command
        exchange.sent_at = self.session.clock()
        self.mark(exchange)
        exchange.octets = self._size
        self.way = Way.PASSING
        self.session.to_server += command.wire + octets

    def _chunk_over(self) -> None:
        session, exchange = self.session, self.exchange
        if exchange is not None and self._undecided:
            if not self._last:
                exchange.told = say.CHUNK_HELD
                exchange.action = "answer"
            elif self.way is Way.HEADER:
                if self.judge_header():
                    self._release(b"")
                else:
                    self._tell_refusal(exchange)
            else:
                self.judge_content(exchange, self._judged)
                return
            session.settle()
        self._end()

    def _judged(self, passed: bool) -> None:
        """WHOLE: the last chunk's BDAT is decided."""
        exchange = self.exchange
        if exchange is None:
            raise AssertionError("a chunk without its BDAT")
        if exchange.waiting:
            exchange.waiting = False
            self.session.hold(None)
        if passed:
            self._send(self._spool.read(), 0, last=True)
            self._spool.close()
        else:
            self._tell_refusal(exchange)
        self._end()  # before its reply is told: it changes the record of the mail
        self.session.settle()

    def _end(self) -> None:
        session = self.session
        if self._last:
            self.finish()
            if session.transaction is self.transaction:
                session.transaction = None

    def remains(self) -> "Chunks | None":
        """Between chunks the mail stays."""
        return None if self._last else self

    @property
    def held(self) -> bool:
        """Chunks were told 250 here that the server has not seen."""
        return self.way in (Way.HEADER, Way.WHOLE)

    def refill(self) -> None:
        """Chunks are given to the server as they come."""

    def take_back(self) -> None:
        """The server gets RSET in place of the chunk that is refused (RFC 3030 §2: that ends the sequence)."""
        self.reset = True
