"""Session: one proxied conversation. The only place where octets, ledger, verdicts and state meet.

A session is given octets (`client_sent`, `server_sent`) and appends octets to two buffers (`to_client`, `to_server`)
and effects to a list; it never does anything else. It has no clock, no log and no socket: it is given a judge, a
record function and a clock. Input methods never raise for what a peer did.

How it goes on, in four rules:

1. Everything that will get a reply goes into the ledger in the order the client asked it; replies leave from its head
   (I1). `settle` does that and never reads.
2. Nothing behind a *holding* command is parsed before its reply is told (I2): `holder` is that exchange, and while it
   is set `Reading.read` does not. Reading is one loop, never recursion: 20,000 pipelined refusals are 20,000 turns.
3. What the client's next octets are is chosen when the framing changes (reading.py), in `_reframe` and nowhere else.
4. What the grammar did not recognise in full does not pass (I3); what makes no sense as a reply is not told (I9).

How a session opens is in opening.py; what becomes of a command in commands.py, what a reply is taken for and what it
changes in outcomes.py, content on its way in content.py, and how it ends in closing.py.
"""

from collections.abc import Callable
from typing import Any

from smtpproxy.session import asking, closing, opening, outcomes, securing
from smtpproxy.session.announcing import SILENT, Announcement
from smtpproxy.session.chunks import Chunks, Swallowed
from smtpproxy.session.content import Incoming
from smtpproxy.session.effects import Effect
from smtpproxy.session.ledger import Exchange, Ledger
from smtpproxy.session.limits import LIMITS, PATIENCE, Limits, Patience
from smtpproxy.session.postures import MIRROR, ClientTLS, Posture
from smtpproxy.session.reading import Reading
from smtpproxy.session.records import AuditRecord, Kind, transcript
from smtpproxy.session.state import NO_FACTS, Facts, Gate, Peer, Phase, TLSInfo, Transaction, next_phase
from smtpproxy.session.verdicts import Judge, ReplyRule
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.commands import Command
from smtpproxy.smtp.errors import ProtocolError, Side
from smtpproxy.smtp.readers import ReplyReader
from smtpproxy.smtp.registry.rows import Framing
from smtpproxy.smtp.registry.verbs import GREETING
from smtpproxy.smtp.replies import OwnReply, Reply
from smtpproxy.smtp.values import Path, Secret


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
        posture: Posture = MIRROR,
        announcement: Announcement = SILENT,
        foreword: Callable[[TLSInfo | None], bytes] | None = None,
        client_first: bool = False,
        facts: Facts = NO_FACTS,
    ) -> None:
        self.judge = judge
        self.clock = clock
        self.limits = limits
        self.patience_table = patience
        self.newlines = newlines
        self.spool = spool
        self.posture = posture
        self.announcement = announcement
        self.foreword = foreword  # octets for the server before all else, given what is known of the client's TLS
        self.client_first = client_first  # its TLS, if that is implicit, comes before the foreword
        self.facts = facts
        self.variant: Any = None  # of the judge's rules about extensions: those whose conditions hold
        self._record = record
        self._notes: list[AuditRecord] | None = None  # noted while an exchange is concluded
        self.command_rules = judge.commands
        self._reply_rules = judge.replies

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
        self.accepted = 0  # mails
        self.rejected = 0  # recipients
        self.tags: dict[str, None] = {}  # labels that rules gave it, in order
        self.counts: dict[str, int] = {}  # what rules counted within it
        self.transcript = False  # a rule asked for a full one
        self.asking: dict[int, asking.Asked] = {}  # by ticket
        self.asked_so_far = 0
        self.kept_reply: Exchange | None = None  # the server's, at the head, while the outside is asked about it
        self.progress = 0  # grows whenever the conversation gets on; what patience is measured from
        self.inspected = True  # False from the point where an administrator's rule ended inspection

        self.ledger = Ledger()
        self.client_gone = False
        self.server_gone = False
        self.closed = False
        self.draining = False
        self.deaf = False  # no further octet of the client is read
        self.opaque = False  # octets pass unseen, by an administrator's word
        self.unseen = False  # from the first one
        self.begun: Transaction | None = None  # accepted by the server, not ended yet
        self.committed: Transaction | None = None  # the last one: what the client may not have heard of
        self.mechanism = b""  # of the AUTH under way
        self.authenticated = False
        self.identity = ""  # the user name of the log-in
        self.responses: list[Secret] = []  # of the log-in under way
        self.gate: Gate | None = securing.gate(posture)  # what has to wait, for TLS or for a hello
        self.unannounced = False  # it is on record that the server is not told of the client
        self._goodbye = False
        self._swallowed = 0  # octets read and thrown away
        self.farewell: Exchange | None = None  # told behind the next exchange, then both links close
        self._reader = ReplyReader(limits.reply_line, limits.reply_lines)
        self.securing: securing.Securing | None = None  # TLS that is being begun
        self.incoming: Incoming | Chunks | Swallowed | None = None
        self.reading = Reading(self)
        greeting = Exchange(GREETING, GREETING, clock())
        greeting.sent = GREETING
        self.holder: Exchange | None = greeting  # nothing behind it is read before it is told
        self.ledger.exchanges.append(greeting)

    # ------------------------------------------------------------------------------------------------ what comes in

    def client_sent(self, data: bytes) -> None:
        """Octets from the client; b"" when it will send no more."""
        if self.closed or self.client_gone:
            return
        if not data:
            self.reading.ended = True
            self.reading.read()
            closing.client_ended(self)
            return
        if self.opaque:
            self.progress += 1
            self.to_server += data
            return
        if self.deaf:
            return
        self.committed = None  # who talks on has taken what it was told
        self.reading.feed(data)
        self.reading.read()

    def server_sent(self, data: bytes) -> None:
        """Octets from the server; b"" when it will send no more."""
        if self.closed or self.server_gone:
            return
        if not data:
            closing.server_ended(self)
            self.reading.read()
            return
        if self.opaque:
            self.progress += 1
            self.to_client += data
            return
        if self.securing is not None:
            closing.server_violated(self, securing.spoke_too_soon(len(data)))
            return
        replies, broken = self._reader.feed_until_broken(data)
        last = len(replies) - 1
        try:
            for index, reply in enumerate(replies):
                outcomes.replied(self, reply, index < last or self._reader.pending)
                if self._server_silenced():
                    if not self.inspected:  # what stands behind it already is not for us to read
                        self.to_client += self._reader.rest(index)
                    break
            else:
                if broken is not None:
                    raise broken
        except ProtocolError as error:
            closing.server_violated(self, error)
        closing.read_on(self)

    def _server_silenced(self) -> bool:
        """Nothing the server says counts any more."""
        return self.closed or self.server_gone or not self.inspected

    def begin(self) -> bool:
        """A client has connected. True: the server is to be connected to now; else a `Dial` effect may say so."""
        return opening.begin(self)

    def decided(self, ticket: int, outcome: Any) -> None:
        """The answer an `Ask` effect asked for, or `Failed`."""
        asking.decided(self, ticket, outcome)
        closing.read_on(self)

    def connected(self) -> None:
        """The server's link is open."""
        opening.connected(self)

    def tls_ready(self, *, early: bool = False) -> None:
        """The certificate a `PrepareTLS` effect asked for is there. `early`: so are octets of the client, unread."""
        securing.ready(self, early=early)

    def tls_done(self, side: Side, info: TLSInfo) -> None:
        """The handshake a `StartTLS` effect asked for has succeeded."""
        securing.done(self, side, info)

    def tls_failed(self, why: str, result: str = "", known: TLSInfo | None = None) -> None:
        """What a `PrepareTLS` or `StartTLS` effect asked for has failed (`result`: RFC 8460 §4.3); what is known."""
        securing.failed(self, why, result, known)

    def client_lost(self) -> None:
        """The client's link broke: nothing can be read or told any more."""
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

    def stop(self) -> None:
        """Stop now, whatever is in flight."""
        closing.stop(self)

    def keep_alive(self) -> None:
        """Time has passed while content is held back here."""
        closing.keep_alive(self)

    def early_talk(self) -> None:
        """The client talked before the greeting (seen by the driver; the octets wait)."""
        if self.phase is Phase.CONNECTED and self.ledger.head is not None and not self.mute:
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
            return not self.server_gone and self.securing is None and len(self.to_client) <= self.limits.unsent
        return (
            self.holder is None
            and not self.deaf
            and not self.reading.ended
            and len(self.ledger.exchanges) < self.limits.pipelined
            and len(self.to_client) <= self.limits.unsent
            and len(self.to_server) <= self.limits.unsent
        )

    def patience(self) -> tuple[Side, float]:
        """Who is being waited for, and how many seconds at most without progress."""
        return closing.awaited(self)

    @property
    def holding(self) -> bool:
        """A command holds: nothing behind it is read."""
        return self.holder is not None

    @property
    def said_goodbye(self) -> bool:
        """The client said QUIT and was told 221: nothing more is to come from it."""
        return self._goodbye

    @property
    def tellable(self) -> bool:
        """The client is where a reply can be read: not within a TLS handshake, nor before it where it is implicit."""
        return not (self.client_gone or self.mute or self.opaque or securing.within(self))

    @property
    def mute(self) -> bool:
        """Nothing may be told yet: the client's link is to be encrypted from its first octet."""
        return self.posture.client is ClientTLS.IMPLICIT and self.client.tls is None

    @property
    def receiving(self) -> bool:
        """Content or octets are on their way from the client: worth larger reads."""
        return self.reading.receiving

    # ------------------------------------------------------------------------------------------------- the ledger

    def push(self, exchange: Exchange) -> None:
        """Put an exchange in its place, and tell what can be told."""
        exchanges = self.ledger.exchanges
        if exchange.waiting:  # it is there
            exchange.waiting, exchange.sent_at = False, self.clock()
        else:
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
                if head.told is None and not (head.lost and head.asked is None):
                    return
            elif head.got is None or head.kept:
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
                rule: ReplyRule | None = self._reply_rules.get(verb.name)
                if rule is not None:
                    told = outcomes.judged_reply(self, rule, exchange)
                    if told is None:  # at the head until that is decided
                        self.ledger.exchanges.appendleft(exchange)
                        return
            elif type(told) is OwnReply:
                told = self.form(told)
            exchange.told = None if self.mute else told
            if not self.client_gone and not self.mute:
                self.to_client += exchange.untold + told.raw
            if verb.name == "QUIT" and told.code == 221:
                self._goodbye = True
        if exchange.noise:
            exchange.anomalies += ("verbose-noise",)
        changed = outcomes.REPLIED.get(verb.name)
        notes: list[AuditRecord] | None = None
        if changed is not None:
            notes = self._notes = []
            changed(self, exchange)
            self._notes = None
        if told is not None:
            name = "BDAT LAST" if exchange.last_chunk else verb.name
            self.phase, ordered = next_phase(self.phase, name, told.code)
            if not ordered:
                exchange.anomalies += ("out-of-order",)
            if told.code == 421:
                exchange.closes = True
        if exchange is self.holder:
            self.holder = None
            if told is not None:
                self._reframe(exchange, verb.then.get(told.code, Framing.COMMANDS))
            held = verb.holds and exchange.sent is not None and type(exchange.asked) is Command
            if held and self.reading.left and not self.holding:
                exchange.anomalies += ("pipelined-behind-hold",)
        whole = transcript(exchange) if self.transcript else None
        self._record(AuditRecord(Kind.EXCHANGE, self.clock(), exchange, exchange.transaction, whole))
        if notes:
            for note in notes:  # what followed from it stands behind it
                self._record(note)
        if exchange.after is not None:
            exchange.after(exchange)
        if exchange.closes or (self.client_gone and self.ledger.awaited is None):
            closing.close_both(self)
        elif self.draining and not self.ledger.exchanges:
            closing.drain(self)

    def _reframe(self, exchange: Exchange, framing: Framing) -> None:
        """What the client's next octets are, now that this reply is told."""
        if framing is Framing.COMMANDS or framing is Framing.GREETING:
            self.reading.frame(Framing.COMMANDS)
        elif framing is Framing.CONTENT or framing is Framing.SASL or framing is Framing.COUNTED:
            self.reading.frame(framing, exchange)
        elif framing is Framing.TLS:
            securing.told(self, exchange)
        elif framing is Framing.OPAQUE:
            closing.end_inspection(self, exchange)
        else:
            closing.close_both(self)

    # --------------------------------------------------------------------------------- what content and closing need

    def hold(self, exchange: Exchange | None) -> None:
        """Nothing of the client is read before this exchange is told."""
        self.holder = exchange

    def send_own(self, exchange: Exchange, wire: bytes, *, hold: bool) -> None:
        """A command of our own; its reply is swallowed. What waits to be decided was not sent, and is behind it."""
        self.to_server += wire
        if hold and self.holder is None:
            self.holder = exchange
        exchanges = self.ledger.exchanges
        behind = exchanges.pop() if exchanges and exchanges[-1].waiting else None
        self.push(exchange)
        if behind is not None:
            exchanges.append(behind)

    def abort_server(self) -> None:
        """Cut the server's link so that what was begun on it can't look finished."""
        closing.abort_server(self)

    def client_violated(self, anomaly: str, why: str, reply: OwnReply | None = None) -> None:
        """The client broke framing."""
        closing.client_violated(self, anomaly, why, reply)

    def swallow(self, octets: int) -> None:
        """Count the octets of refused chunks in this session: there is an end to that too."""
        self._swallowed += octets
        if self._swallowed > self.limits.swallow:
            self.too_much()

    def too_much(self) -> None:
        """The client goes on sending what was refused."""
        self.client_violated("swallow-limit", f"over {self.limits.swallow} octets", say.TOO_BIG_TO_SWALLOW)

    def form(self, reply: OwnReply) -> Reply:
        """A reply of ours as this client may read it: with an enhanced code if it was offered them (RFC 2034 §4)."""
        return reply.form(b"ENHANCEDSTATUSCODES" in self.client.capabilities.keywords)

    def expect_noise(self) -> None:
        """VERB was accepted: lines of code 0yz may come before replies."""
        self._reader.noise = True

    # ------------------------------------------------------------------------------------------------- the record

    def note(self, kind: Kind, transaction: Any = None, about: Exchange | None = None, **detail: Any) -> None:
        """Put an event on the record, or an exchange (`about`) that comes to no reply."""
        record = AuditRecord(kind, self.clock(), about, transaction, detail or None)
        if self._notes is not None:
            self._notes.append(record)
        else:
            self._record(record)

    def begin_unasked(self) -> Transaction:
        """The server took content for a transaction nobody began; it is counted as one from the null reverse-path."""
        self.transactions += 1
        self.transaction = Transaction(self.transactions, Path(b"", b""), ())
        return self.transaction
