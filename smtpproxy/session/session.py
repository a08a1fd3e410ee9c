"""Session: one proxied conversation. The only place where octets, ledger, verdicts and state meet.

A session is given octets (`client_sent`, `server_sent`) and appends octets to two buffers (`to_client`, `to_server`) and
effects to a list; it never does anything else. It has no clock, no log and no socket: it is given a judge, a record
function and a clock. Input methods never raise for what a peer did.

How it goes on, in four rules:

1. Everything that will get a reply goes into the ledger in the order the client asked it; replies leave from its head
   (I1). `settle` does that and never reads.
2. Nothing behind a *holding* command is parsed before its reply is told (I2): `_hold` is that exchange, and while it is
   set `_read_client` does not read. Reading is one loop, never recursion: 20,000 pipelined refusals are 20,000 turns.
3. What the client's next octets are is `_take`: a bound method chosen when the framing changes.
4. What the grammar did not recognise in full does not pass (I3); what makes no sense as a reply is not told (I9).

What each reply changes is in outcomes.py, content on its way in content.py, closing in closing.py.
"""

from collections.abc import Callable
from typing import Any, Final

from smtpproxy.session import closing, outcomes
from smtpproxy.session.content import Chunks, Incoming
from smtpproxy.session.effects import Effect, StartTLS
from smtpproxy.session.ledger import Exchange, Ledger
from smtpproxy.session.limits import LIMITS, PATIENCE, Limits, Patience
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.state import Peer, Phase, TLSInfo, Transaction, next_phase
from smtpproxy.session.verdicts import Action, CommandRule, Judge, ReplyRule, Verdict
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.values import Chunk, Path, Secret, Text
from smtpproxy.smtp.commands import Command, Malformed, parse_command
from smtpproxy.smtp.errors import ProtocolError, Side
from smtpproxy.smtp.readers import ReplyReader, is_sasl_line
from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.rows import Argument, Framing, FramingClass, Verb
from smtpproxy.smtp.registry.verbs import GREETING, OCTETS, SASL, UNKNOWN
from smtpproxy.smtp.replies import OwnReply, Reply

CANCEL: Final = Command(SASL, Text(b"*"), b"*\r\n", b"*\r\n", ())

# Verbs of an extension that may be used only where the client was offered it, because they change framing. (VRFY, HELP
# and their like are often served unannounced and can do no harm to framing.)
_OFFERED_FIRST: Final = frozenset({FramingClass.BDAT, FramingClass.GO_OCTETS, FramingClass.SASL, FramingClass.TLS})
_ENVELOPE: Final = frozenset({Argument.MAIL, Argument.RCPT})
_PASS: Final = Action.PASS


class Session:
    """One conversation between a client and a server."""

    def __init__(
        self,
        *,
        judge: Judge,
        record: Callable[[AuditRecord], None],
        clock: Callable[[], float],
        limits: Limits = LIMITS,
        patience: Patience = PATIENCE,
        client: Peer | None = None,
        server: Peer | None = None,
        newlines: str = "normalise",
        spool: Callable[[], Any] | None = None,
    ) -> None:
        self.judge = judge
        self.clock = clock
        self.limits = limits
        self.patience_table = patience
        self.newlines = newlines
        self.spool = spool
        self._record = record
        self._commands: Any = judge.commands
        self._replies: Any = judge.replies

        self.to_client = bytearray()
        self.to_server = bytearray()
        self.effects: list[Effect] = []
        self.client = client or Peer(Side.CLIENT)
        self.server = server or Peer(Side.SERVER)
        self.phase = Phase.CONNECTED
        self.transaction: Transaction | None = None  # as asked so far
        self.transactions = 0
        self.commands = 0
        self.malformed = 0
        self.progress = 0  # grows whenever the conversation gets on; what patience is measured from
        self.inspected = True  # False from the point where an administrator's rule ended inspection

        self.ledger = Ledger()
        self.client_gone = False
        self.server_gone = False
        self.closed = False
        self.draining = False
        self.deaf = False  # no further octet of the client is read
        self.opaque = False  # octets pass unseen, by an administrator's word
        self.begun: Transaction | None = None  # accepted by the server, not ended yet
        self.committed: Transaction | None = None  # the last one: what the client may not have heard of
        self.mechanism = b""  # of the AUTH under way
        self.null_path = Path(b"", b"")
        self.farewell: Exchange | None = None  # told behind the next exchange, then both links close
        self._in = b""  # what the client sent and has not been parsed
        self._at = 0
        self._skipping = 0  # octets of an over-long line thrown away so far
        self._head = b""  # how that line began
        self._client_eof = False
        self._reader = ReplyReader(limits.reply_line, limits.reply_lines)
        self._securing: tuple[Exchange, Reply] | None = None  # a TLS command and the server's 220 to it
        self.incoming: Incoming | Chunks | None = None
        self._counted = 0
        self._take: Callable[[], bool] = self._take_line
        greeting = Exchange(GREETING, None, clock())
        greeting.asked = GREETING  # type: ignore[assignment]  # a pseudo-verb is asked by being there
        greeting.sent = GREETING
        self._hold: Exchange | None = greeting
        self.ledger.exchanges.append(greeting)

    # ------------------------------------------------------------------------------------------------ what comes in

    def client_sent(self, data: bytes) -> None:
        """Octets from the client; b"" when it will send no more."""
        if self.closed or self.client_gone:
            return
        if not data:
            self._client_eof = True
            self._read_client()
            closing.client_ended(self)
            return
        if self.opaque:
            self.to_server += data
            return
        if self.deaf:
            return
        self._in = self._in[self._at :] + data if self._at < len(self._in) else data
        self._at = 0
        self._read_client()

    def server_sent(self, data: bytes) -> None:
        """Octets from the server; b"" when it will send no more."""
        if self.closed or self.server_gone:
            return
        if not data:
            closing.server_ended(self)
            self._read_client()
            return
        if self.opaque:
            self.to_client += data
            return
        replies, broken = self._reader.feed_until_broken(data)
        last = len(replies) - 1
        try:
            for index, reply in enumerate(replies):
                self._replied(reply, index < last or self._reader.pending)
                if self.closed or self.server_gone:
                    return
            if broken is not None:
                raise broken
        except ProtocolError as error:
            closing.server_violated(self, error)
        self._read_client()
        if self._client_eof and not self.closed:
            closing.client_ended(self)

    def tls_done(self, side: Side, info: TLSInfo) -> None:
        """The handshake a `StartTLS` effect asked for has succeeded."""
        if self.closed or self._securing is None:
            return
        exchange, reply = self._securing
        if side is Side.SERVER:
            self.server.tls = info
            if self._at < len(self._in):
                self.client_violated("octets-behind-starttls", f"{len(self._in) - self._at} octets")
                closing.abort_server(self)
                return
            exchange.got = reply
            self.settle()
            self.effects.append(StartTLS(Side.CLIENT))
            return
        self.client.tls = info
        self._securing = None
        self.client.forget()
        self.server.forget()
        self.transaction = None
        self.phase = Phase.GREETED
        self.note(Kind.TLS, client=self.client.tls._asdict(), server=self.server.tls._asdict() if self.server.tls else None)
        self._hold = None
        self._read_client()

    def tls_failed(self, side: Side, why: str) -> None:
        """The handshake failed: never clear text instead (454 to the client while that is still possible)."""
        if self.closed or self._securing is None:
            return
        exchange, _ = self._securing
        self._securing = None
        self.note(Kind.NOTE, anomaly="tls-failed", side=side.value, why=why)
        if side is Side.CLIENT:
            closing.close_both(self, abort=True)
            return
        closing.abort_server(self)
        exchange.told = say.TLS_NOT_AVAILABLE
        exchange.lost = True
        self.settle()
        self._read_client()

    def client_lost(self) -> None:
        """The client's link broke: nothing more can be read from it or told."""
        closing.client_lost(self)

    def connect_failed(self, why: str) -> None:
        """No address of the server could be reached."""
        closing.connect_failed(self, why)

    def timed_out(self, side: Side, anomaly: str = "idle") -> None:
        """`side` was waited for beyond patience: `idle`, `too-slow` or `session-too-long`."""
        closing.timed_out(self, side, anomaly)

    def drain(self) -> None:
        """Finish what is in flight, answer 421 to the rest."""
        closing.drain(self)

    def keep_alive(self) -> None:
        """Time has passed while content is held back here."""
        closing.keep_alive(self)

    def early_talk(self) -> None:
        """The client talked before the greeting (seen by the driver; the octets wait)."""
        if self.phase is Phase.CONNECTED and self.ledger.head is not None:
            self.ledger.head.anomalies += ("early-talk",)

    def drained(self) -> None:
        """Everything for the server has been sent: held-back content goes on, a piece at a time."""
        if self.incoming is not None and not self.closed and not self.server_gone:
            self.incoming.refill()

    def wants(self, side: Side) -> bool:
        """The driver may read this side. False holds the peer back: its octets wait unparsed in the kernel."""
        if self.closed:
            return False
        if side is Side.SERVER:
            return not self.server_gone
        return (
            self._hold is None
            and not self.deaf
            and not self._client_eof
            and len(self.ledger.exchanges) < self.limits.pipelined
            and len(self.to_client) <= self.limits.unsent
            and len(self.to_server) <= self.limits.unsent
        )

    def patience(self) -> tuple[Side, float]:
        """Who is being waited for, and how many seconds at most without progress."""
        table = self.patience_table
        awaited = self.ledger.awaited
        if self.receiving and not self.holding:
            return Side.CLIENT, table.content
        if awaited is None:
            return Side.CLIENT, table.client
        name = awaited.verb.name
        if name == "GREETING":
            return Side.SERVER, table.greeting
        if name == "DATA":
            return Side.SERVER, table.data
        return Side.SERVER, table.end if name == "END" or outcomes.bdat_last(awaited) else table.command

    @property
    def holding(self) -> bool:
        """A command holds: nothing behind it is read."""
        return self._hold is not None

    @property
    def tellable(self) -> bool:
        """The client is where a reply can be read: not within a TLS handshake."""
        return self._securing is None and not self.client_gone

    @property
    def receiving(self) -> bool:
        """Content or octets are on their way from the client: worth larger reads."""
        return self._take != self._take_line and self._take != self._take_sasl

    # ---------------------------------------------------------------------------------------------- reading a client

    def _read_client(self) -> None:
        """Parse what is there until something holds or more is needed. The only reader; nothing it calls calls it."""
        while self._hold is None and self._at < len(self._in) and not self.deaf and not self.closed:
            if self.opaque:
                self.to_server += self._in[self._at :]
                self._in, self._at = b"", 0
                return
            if len(self.ledger.exchanges) >= self.limits.pipelined or not self._take():
                return

    def _take_line(self) -> bool:
        data, start = self._in, self._at
        end = data.find(b"\n", start) + 1
        if end == 0:
            return self._unended_line()
        self._at = end
        line = data if start == 0 and end == len(data) else data[start:end]
        if self._skipping or line.find(b"\r") != len(line) - 2:
            return self._odd_line(line)
        if len(line) > self.limits.command_line:
            long = self.limits.auth_line if line[:5].upper() == b"AUTH " or line[:7].upper() == b"X-EXPS " else 0
            if len(line) > long:
                return self._long_line(line[:64], len(line), ended=True)
        command = parse_command(line)
        if type(command) is Malformed:
            self._malformed(command)
        else:
            self._asked(command)  # type: ignore[arg-type]  # the other half of the union
        return True

    def _odd_line(self, line: bytes) -> bool:
        """A line with LF alone or CR alone in it, or the end of one that is being thrown away."""
        if not line.endswith(b"\r\n"):
            self.client_violated("bare-lf-in-command", "", say.BARE_LF)
            return False
        if self._skipping:
            length = self._skipping + len(line)
            self._skipping = 0
            return self._long_line(self._head, length, ended=True)
        if len(line) > self.limits.command_line:
            return self._long_line(line[:64], len(line), ended=True)
        self._answer_malformed(line, "CR inside the line", say.BARE_CR, "bare-cr-in-command")
        return True

    def _unended_line(self) -> bool:
        """No LF yet. What is beyond every limit is thrown away as it comes; one reply when (if) the line ends."""
        kept = len(self._in) - self._at
        if self._skipping or kept > max(self.limits.command_line, self.limits.auth_line):
            if not self._skipping:
                self._head = self._in[self._at : self._at + 64]
            # One octet stays, so that the CR of the end is seen, in any cut.
            self._skipping += kept - 1
            self._in, self._at = self._in[-1:], 0
            return self._long_line(self._head, self._skipping, ended=False)
        return False

    def _long_line(self, head: bytes, length: int, *, ended: bool) -> bool:
        if length > self.limits.endless_line:
            self.client_violated("endless-line", f"over {self.limits.endless_line} octets", say.LINE_ENDLESS)
            return False
        if ended:
            self._answer_malformed(head + b"\r\n", "line too long", say.LINE_TOO_LONG, "line-too-long")
        return ended

    def _take_sasl(self) -> bool:
        """One SASL line (RFC 4954 §4): base64, `*` or nothing; a secret whatever it holds."""
        end = self._in.find(b"\n", self._at) + 1
        if end == 0:
            return self._unended_line()
        line = self._in[self._at : end]
        self._at = end
        if not line.endswith(b"\r\n"):
            self.client_violated("bare-lf-in-command", "in a SASL line", say.BARE_LF)
            return False
        exchange = Exchange(SASL, Command(SASL, Secret(line[:-2]), Secret(line), line, ()), self.clock())
        if self._skipping or len(line) > self.limits.auth_line or not is_sasl_line(line[:-2]):
            self._skipping = 0
            exchange.anomalies = ("sasl-malformed",)
            exchange.action = "answer"
            exchange.told = say.SASL_SYNTAX
            exchange.sent = CANCEL
            self.to_server += CANCEL.wire
        else:
            exchange.sent = exchange.asked
            self.to_server += line
        self._hold = exchange
        self.push(exchange)
        return True

    def _take_counted(self) -> bool:
        """Octets announced by a command and called for by the server (XEXCH50): passed on, as many and no more."""
        piece = self._in[self._at : self._at + self._counted]
        self._at += len(piece)
        self._counted -= len(piece)
        self.to_server += piece
        if self._counted == 0:
            exchange = Exchange(OCTETS, None, self.clock())
            exchange.asked = exchange.sent = OCTETS  # type: ignore[assignment]  # a pseudo-verb
            self._hold = exchange
            self._take = self._take_line
            self.push(exchange)
        return True

    def _take_content(self) -> bool:
        incoming = self.incoming
        if incoming is None:
            raise AssertionError("content without a mail")
        before = self._at
        self._at = incoming.take(self._in, before)
        if incoming.over:
            self.incoming = incoming.remains()
            self._take = self._take_line
        return self._at > before

    # --------------------------------------------------------------------------------------- commands, and what of them

    def _asked(self, command: Command) -> None:
        """Judge a command; forward it or answer it."""
        verb = command.verb
        self.commands += 1
        self.progress += 1
        exchange = Exchange(verb, command, self.clock())
        if command.leniencies:
            exchange.anomalies = command.leniencies
        if self.server_gone or (self.draining and self.begun is None):
            closing.answer_orphan(self, exchange)
            return
        argument = verb.argument
        if argument is Argument.MAIL:
            self.transactions += 1
            path, parameters = command.argument
            self.transaction = Transaction(self.transactions, path, parameters)
        exchange.transaction = self.transaction
        rule: CommandRule | None = self._commands.get(verb.name)
        if rule is not None:
            verdict = self._judged(rule, command)
            exchange.rule = verdict.rule
            if verdict.anomalies:
                exchange.anomalies += verdict.anomalies
            if verdict.action is not _PASS:
                exchange.action = verdict.action.value
                if verdict.action is Action.REWRITE:
                    command = verdict.value
                elif verdict.action is Action.DISCARD:
                    self.refuse(exchange, say.DISCARDED)
                    return
                else:
                    exchange.closes = verdict.action is Action.HANGUP
                    self.refuse(exchange, verdict.value)
                    return
        elif verb is UNKNOWN:
            self._count_malformed(exchange, "unknown-verb")
            self.refuse(exchange, say.own(UNKNOWN.refusal))
            return
        if argument in _ENVELOPE and (refusal := self._envelope(exchange, command)) is not None:
            exchange.action = "answer"
            self.refuse(exchange, refusal)
            return
        if verb.framing in _OFFERED_FIRST and verb.extension.encode() not in self.client.capabilities:
            exchange.anomalies += ("verb-not-offered",)
            exchange.action = "answer"
            self.refuse(exchange, say.VERB_NOT_OFFERED)
            return
        self._forward(exchange, command)

    def _judged(self, rule: CommandRule, command: Command) -> Verdict:
        """A rule that fails decides nothing: fail closed (architecture §9)."""
        try:
            return rule(command, self)
        except Exception as error:
            self.note(Kind.NOTE, anomaly="rule-failed", verb=command.verb.name, why=type(error).__name__)
            return Verdict(Action.ANSWER, say.RULE_FAILED, anomalies=("rule-failed",))

    def _envelope(self, exchange: Exchange, command: Command) -> OwnReply | None:
        """What is wrong with a MAIL or RCPT that its grammar can't tell: parameters nobody offered, addresses, counts."""
        path, parameters = command.argument
        place = b"MAIL" if command.verb.argument is Argument.MAIL else b"RCPT"
        offered = self.client.capabilities.keywords
        for keyword, value in parameters:
            row = PARAMETERS.get((place, keyword))
            if row is None:
                exchange.anomalies += ("unknown-parameter",)
                return say.UNKNOWN_PARAMETER
            names = row.extensions
            if keyword == b"BODY":  # the one parameter whose value says which extension it needs (RFC 3030 §3)
                names = ("BINARYMIME",) if value is not None and value.upper() == b"BINARYMIME" else ("8BITMIME",)
            for name in names:
                if name.encode() in offered:
                    break
            else:
                exchange.anomalies += ("parameter-not-offered",)
                exchange.rule = exchange.rule or self.judge.owner(names[0].encode())
                return say.NOT_NEGOTIATED
        transaction = self.transaction
        if not (path.local.isascii() and path.domain.isascii()) and (
            transaction is None or transaction.parameter(b"SMTPUTF8") is None
        ):
            exchange.anomalies += ("non-ascii-without-smtputf8",)
            return say.NEEDS_SMTPUTF8
        if place == b"RCPT" and transaction is not None and len(transaction.recipients) >= self.limits.recipients:
            exchange.anomalies += ("too-many-recipients",)
            return say.TOO_MANY_RECIPIENTS
        return None

    def _forward(self, exchange: Exchange, command: Command) -> None:
        """Send a command on; what it means for the transaction is noted as asked (architecture §6)."""
        verb = command.verb
        asked = outcomes.ASKED.get(verb.name)
        if asked is not None and asked(self, exchange, command):
            return
        exchange.sent = command
        self.to_server += command.wire
        if verb.holds:
            self._hold = exchange
        self.push(exchange)

    def refuse(self, exchange: Exchange, reply: OwnReply) -> None:
        """Answer a command here. The octets behind a refused BDAT are swallowed all the same (commands.md §7)."""
        exchange.told = reply
        if exchange.closes:
            self.deaf = True
        command = exchange.asked
        if type(command) is Command and type(command.argument) is Chunk:
            self.incoming = Chunks.swallow(self, exchange, command.argument, reply)
            self.chunk_follows()
        elif exchange.verb.argument is Argument.MAIL and exchange.transaction is self.transaction:
            self.transaction = None
        self.push(exchange)

    def chunk_follows(self) -> None:
        """BDAT's octets come next; none at all when it announced none."""
        self._take = self._take_content
        if self.incoming is not None and self.incoming.over:
            self.incoming = self.incoming.remains()
            self._take = self._take_line

    def _malformed(self, malformed: Malformed) -> None:
        """A line that matched no grammar: answered here, in its turn, unless a rule says otherwise."""
        if self.judge.malformed is not None and not malformed.fatal and not self.server_gone:
            verdict = self.judge.malformed(malformed, self)
            if verdict.action is _PASS and verdict.rule:
                exchange = Exchange(malformed.verb, malformed, self.clock())
                exchange.rule = verdict.rule
                exchange.anomalies = ("malformed-command",)
                exchange.sent = Command(UNKNOWN, Text(b""), malformed.line, malformed.line, ())
                self.to_server += malformed.line
                self._hold = exchange
                self.push(exchange)
                return
        name = "malformed-command"
        if malformed.fatal:
            name = "chunk-size-unknown" if malformed.verb.framing is FramingClass.BDAT else "foreign-protocol"
        self._answer_malformed(malformed, malformed.why, say.own(malformed.reply), name, fatal=malformed.fatal)

    def _answer_malformed(
        self, asked: Malformed | bytes, why: str, reply: OwnReply, anomaly: str, *, fatal: bool = False
    ) -> None:
        malformed = asked if isinstance(asked, Malformed) else Malformed(UNKNOWN, why, "", asked, False)
        exchange = Exchange(malformed.verb, malformed, self.clock())
        exchange.action = "answer"
        self.progress += 1
        if self.server_gone or (self.draining and self.begun is None):
            closing.answer_orphan(self, exchange)
            return
        exchange.told = reply
        if fatal:
            exchange.closes = self.deaf = True
        self._count_malformed(exchange, anomaly)
        self.push(exchange)

    def _count_malformed(self, exchange: Exchange, anomaly: str) -> None:
        exchange.anomalies += (anomaly,)
        exchange.action = "answer"
        self.malformed += 1
        if self.malformed >= self.limits.malformed and not exchange.closes:
            closing = Exchange(UNKNOWN, None, self.clock())
            closing.closes = self.deaf = True
            closing.told = say.TOO_MANY_ERRORS
            closing.anomalies = ("too-many-errors",)
            self.farewell = closing

    # ------------------------------------------------------------------------------------------------- the ledger

    def push(self, exchange: Exchange) -> None:
        """Put an exchange in its place, and tell what can be told."""
        exchanges = self.ledger.exchanges
        exchanges.append(exchange)
        if self.farewell is not None:
            exchanges.append(self.farewell)
            self.farewell = None
        if exchanges[0] is exchange or exchange.sent is None:
            self.settle()

    def settle(self) -> None:
        """Tell what can be told, from the head. Never reads."""
        exchanges = self.ledger.exchanges
        while exchanges:
            head = exchanges[0]
            if head.sent is None or head.lost:
                if head.told is None and head.conclude is not None:
                    conclude, head.conclude = head.conclude, None
                    conclude(head)
                if head.told is None:
                    return
            elif head.got is None:
                return
            exchanges.popleft()
            self._conclude(head)
            if self.closed:
                return

    def _conclude(self, exchange: Exchange) -> None:
        """An exchange leaves the ledger: tell it, let it change the one thing it changes, record it."""
        verb = exchange.verb
        got: Reply | None = exchange.got
        told: Any = exchange.told
        self.progress += 1
        if exchange.asked is not None or exchange.closes:
            if told is None:
                told = got
                rule: ReplyRule | None = self._replies.get(verb.name)
                if rule is not None:
                    told = outcomes.judged_reply(self, rule, got, exchange)
            elif type(told) is OwnReply:
                told = told.form(b"ENHANCEDSTATUSCODES" in self.client.capabilities.keywords)
            exchange.told = told
            self.to_client += told.raw
        changed = outcomes.REPLIED.get(verb.name)
        if changed is not None:
            changed(self, exchange)
        if got is not None and exchange.asked is not None and not exchange.lost:
            name = verb.name if verb.name != "BDAT" else outcomes.bdat_name(exchange)
            self.phase, ordered = next_phase(self.phase, name, got.code)
            if not ordered:
                exchange.anomalies += ("out-of-order",)
            if got.code == 421:
                exchange.closes = True
        if exchange is self._hold:
            self._hold = None
            if told is not None:
                self._reframe(exchange, verb.then.get(told.code, Framing.COMMANDS))
            if self._hold is None and self._at < len(self._in) and verb.holds and not verb.kind.value == "pseudo":
                exchange.anomalies += ("pipelined-behind-hold",)
        self._record(AuditRecord(Kind.EXCHANGE, self.clock(), exchange, exchange.transaction))
        if exchange.closes:
            closing.close_both(self)
        elif self.draining and not self.ledger.exchanges:
            closing.drain(self)

    def _reframe(self, exchange: Exchange, framing: Framing) -> None:
        """What the client's next octets are, now that this reply is told."""
        if framing is Framing.COMMANDS or framing is Framing.GREETING:
            self._take = self._take_line
        elif framing is Framing.CONTENT:
            self._take = self._take_content
        elif framing is Framing.SASL:
            self._take = self._take_sasl
        elif framing is Framing.COUNTED:
            self._counted = exchange.asked.argument.size  # type: ignore[union-attr]  # such verbs carry a count
            self._take = self._take_counted
            if self._counted == 0:
                self._take_counted()
        elif framing is Framing.TLS:
            self._hold = exchange  # until the client's own handshake is done
        elif framing is Framing.OPAQUE:
            self.opaque = True
            self.inspected = False
            self.note(Kind.NOTE, anomaly="inspection-ended", verb=exchange.verb.name, rule=exchange.rule)
        else:
            closing.close_both(self)

    # ------------------------------------------------------------------------------------------------- replies

    def _replied(self, reply: Reply, more: bool) -> None:
        """One reply of the server. `more`: octets stand behind it already.

        Raises:
            ProtocolError: it makes no sense where it arrived (I9).
        """
        if reply.code < 100:
            self.to_client += reply.raw
            awaited = self.ledger.awaited
            if awaited is not None:
                awaited.noise += reply.raw
            return
        exchange = self.ledger.awaited
        if exchange is None:
            closing.unsolicited(self, reply)
            return
        verb: Verb = exchange.sent if type(exchange.sent) is Verb else exchange.sent.verb
        outcomes.check_sensible(self, exchange, verb, reply)
        if reply.odd:
            exchange.anomalies += reply.odd
        if verb.then.get(reply.code) is Framing.TLS and exchange.asked is not None:
            if more:
                raise ProtocolError(Side.SERVER, "octets-behind-220", verb.name)
            self._securing = exchange, reply
            self.effects.append(StartTLS(Side.SERVER))
            return
        exchange.due += outcomes.further_replies(self, exchange, reply)
        exchange.due -= 1
        if exchange.due > 0:
            exchange.replies_before += (reply,)
            self.to_client += reply.raw
            return
        exchange.got = reply
        self.settle()

    # --------------------------------------------------------------------------------- what content and closing need

    def hold(self, exchange: Exchange | None) -> None:
        """Nothing of the client is read before this exchange is told."""
        self._hold = exchange

    def send_own(self, exchange: Exchange, wire: bytes, *, hold: bool) -> None:
        """A command of our own; its reply is swallowed."""
        self.to_server += wire
        if hold:
            self._hold = exchange
        self.push(exchange)

    def abort_server(self) -> None:
        """Cut the server's link so that what was begun on it can't look finished."""
        closing.abort_server(self)

    def client_violated(self, anomaly: str, why: str, reply: OwnReply | None = None) -> None:
        """The client broke framing."""
        closing.client_violated(self, anomaly, why, reply)

    def expect_noise(self) -> None:
        """VERB was accepted: lines of code 0yz may come before replies."""
        self._reader.noise = True

    # ------------------------------------------------------------------------------------------------- the record

    def note(self, kind: Kind, transaction: Transaction | None = None, **detail: Any) -> None:
        """Put an event on the record."""
        self._record(AuditRecord(kind, self.clock(), None, transaction, detail or None))

    def begin_unasked(self) -> Transaction:
        """The server took content for a transaction nobody began; it is counted as one from the null reverse-path."""
        self.transactions += 1
        self.transaction = Transaction(self.transactions, Path(b"", b""), ())
        return self.transaction

