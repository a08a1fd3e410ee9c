"""Reading a client: its octets, one framing at a time.

What the next octets are is `_take`, a bound method chosen when the framing changes; each takes one thing (a line, a
SASL line, a piece of content) and says whether it got anywhere. `read` is the only loop over them, nothing it calls
calls it, and it stops at once where a command holds (I2). What is kept between two calls is bounded: a line's limit,
or what one read of the driver brought behind a holding command.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from smtpproxy.session import commands
from smtpproxy.session.ledger import Exchange
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.commands import Command, parse_command
from smtpproxy.smtp.readers import is_sasl_line
from smtpproxy.smtp.registry.rows import Framing
from smtpproxy.smtp.registry.verbs import OCTETS, SASL
from smtpproxy.smtp.values import Secret, Text

if TYPE_CHECKING:
    from smtpproxy.session.session import Session

CANCEL: Final = Command(SASL, Text(b"*"), b"*\r\n", b"*\r\n", ())
AROUND: Final = 64  # octets round the base64 of an AUTH line: verb, mechanism, blanks, CRLF
SHOWN: Final = 64  # octets of an over-long line that are put on record


class Reading:
    """The client's side of the conversation, as octets."""

    __slots__ = ("_at", "_counted", "_head", "_octets", "_session", "_skipped", "_take", "ended", "receiving")

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._octets = b""  # what came and has not been parsed
        self._at = 0
        self._skipped = 0  # octets of an over-long line thrown away so far
        self._head = b""  # how that line began
        self._counted = 0  # octets still to come of those announced (XEXCH50)
        self._take: Callable[[], bool] = self._take_line
        self.receiving = False  # content or counted octets are next
        self.ended = False  # the client will send no more

    @property
    def within_octets(self) -> bool:
        """Some of the octets a command announced (XEXCH50) are still to come."""
        return self._counted > 0

    @property
    def left(self) -> int:
        """Octets that came and have not been parsed."""
        return len(self._octets) - self._at

    def feed(self, data: bytes) -> None:
        """More octets."""
        self._octets = self._octets[self._at :] + data if self._at < len(self._octets) else data
        self._at = 0

    def rest(self) -> bytes:
        """Everything that has not been parsed, taken out: it will not be."""
        octets = self._octets[self._at :]
        self._octets, self._at = b"", 0
        return octets

    def frame(self, framing: Framing, exchange: Exchange | None = None) -> None:
        """What the client's next octets are."""
        self.receiving = False
        if framing is Framing.CONTENT or framing is Framing.CHUNK:
            self._take = self._take_content
            self.receiving = True
        elif framing is Framing.SASL:
            self._take = self._take_sasl
        elif framing is Framing.COUNTED and exchange is not None:
            self._take = self._take_counted
            self._counted = exchange.asked.argument.size
            self.receiving = True
        else:
            self._take = self._take_line

    def read(self) -> None:
        """Parse what is there until something holds or more is needed."""
        session = self._session
        exchanges = session.ledger.exchanges
        while session.holder is None and not session.deaf and not session.closed:
            if self._at >= len(self._octets) and not (
                self.receiving and self._take == self._take_counted and not self._counted
            ):
                return
            if session.opaque:
                session.to_server += self.rest()
                return
            if len(exchanges) >= session.limits.pipelined or not self._take():
                return

    # ------------------------------------------------------------------------------------------------------- lines

    def _take_line(self) -> bool:
        data, start = self._octets, self._at
        end = data.find(b"\n", start) + 1
        if end == 0:
            return self._unended()
        self._at = end
        line = data if start == 0 and end == len(data) else data[start:end]
        if self._skipped or line.find(b"\r") != len(line) - 2 or len(line) < 2:
            return self._odd_line(line)
        session = self._session
        if len(line) > session.limits.command_line and (
            len(line) > session.limits.auth_line + AROUND or not line[:7].upper().startswith((b"AUTH ", b"X-EXPS "))
        ):
            return self._long_line(line[:SHOWN], len(line), ended=True)
        command = parse_command(line)
        if type(command) is Command:
            commands.asked(session, command)
        else:
            commands.malformed(session, command)  # type: ignore[arg-type]  # the other half of the union
        return True

    def _odd_line(self, line: bytes) -> bool:
        """A line with LF alone or CR alone in it, or the end of one that is being thrown away."""
        if not line.endswith(b"\r\n"):
            self._session.client_violated("bare-lf-in-command", "", say.BARE_LF)
            return False
        if self._skipped:
            length = self._skipped + len(line)
            self._skipped = 0
            return self._long_line(self._head, length, ended=True)
        if len(line) > self._session.limits.command_line:
            return self._long_line(line[:SHOWN], len(line), ended=True)
        commands.answer_malformed(self._session, line, "CR inside the line", say.BARE_CR, "bare-cr-in-command")
        return True

    def _unended(self) -> bool:
        """No LF yet. What is beyond every limit is thrown away as it comes; one reply when (if) the line ends."""
        kept = self.left
        limits = self._session.limits
        if self._skipped or kept > max(limits.command_line, limits.auth_line + AROUND):
            if not self._skipped:
                self._head = self._octets[self._at : self._at + SHOWN]
            self._skipped += kept - 1
            self._octets, self._at = self._octets[-1:], 0
            return self._long_line(self._head, self._skipped, ended=False)
        return False

    def _long_line(self, head: bytes, length: int, *, ended: bool) -> bool:
        session = self._session
        if length > session.limits.endless_line:
            why = f"over {session.limits.endless_line} octets"
            session.client_violated("endless-line", why, say.LINE_ENDLESS)
            return False
        if ended:
            commands.answer_malformed(session, head + b"\r\n", "line too long", say.LINE_TOO_LONG, "line-too-long")
        return ended

    def _take_sasl(self) -> bool:
        """One SASL line (RFC 4954 §4): base64, `*` or nothing; a secret whatever it holds."""
        session = self._session
        end = self._octets.find(b"\n", self._at) + 1
        if end == 0:
            return self._unended()
        line = self._octets[self._at : end]
        self._at = end
        if not line.endswith(b"\r\n"):
            session.client_violated("bare-lf-in-command", "in a SASL line", say.BARE_LF)
            return False
        long = self._skipped or len(line) > session.limits.auth_line + 2
        shown = Secret((self._head if self._skipped else line[:SHOWN]) if long else line)
        self._skipped = 0
        exchange = Exchange(SASL, Command(SASL, Secret(line[:-2]), shown, Secret(line), ()), session.clock())
        if long or not is_sasl_line(line[:-2]):
            exchange.anomalies = ("sasl-malformed",)
            exchange.action = "answer"
            exchange.told = say.SASL_SYNTAX
            exchange.sent = CANCEL
            session.to_server += CANCEL.wire
        else:
            exchange.sent = exchange.asked
            session.to_server += line
        session.hold(exchange)
        session.push(exchange)
        return True

    # ------------------------------------------------------------------------------------------------------ octets

    def _take_counted(self) -> bool:
        """Octets announced by a command and called for by the server (XEXCH50): passed on, as many and no more."""
        session = self._session
        piece = self._octets[self._at : self._at + self._counted]
        self._at += len(piece)
        self._counted -= len(piece)
        session.to_server += piece
        if self._counted == 0:
            exchange = Exchange(OCTETS, OCTETS, session.clock())
            exchange.sent = OCTETS
            session.hold(exchange)
            self.frame(Framing.COMMANDS)
            session.push(exchange)
        return True

    def _take_content(self) -> bool:
        incoming = self._session.incoming
        if incoming is None:
            raise AssertionError("content without a mail")
        before = self._at
        self._at = incoming.take(self._octets, before)
        if incoming.over:
            self.content_over()
        return self._at > before

    def content_over(self) -> None:
        """The end of content or of a chunk has been taken (or there was nothing to take)."""
        session = self._session
        if session.incoming is not None:
            session.incoming = session.incoming.remains()
        self.frame(Framing.COMMANDS)
