"""One recorded session, put through rules: a real Session is driven by what both sides said, as it is on record.

The client's commands and the server's replies are the recorded ones, in lock-step: a command, then its reply. Of the
content there is only size and digest, so a stand-in of a few octets takes its place, and the judge is one that knows
better (rehearsed.py). The rules:

- **Nothing is made up that would be counted.** Where the server was not asked then and would be now, it is taken to
  agree, and the step says that this is not known.
- **What only follows is no difference.** If MAIL is refused that was accepted, the recorded RCPT and DATA no longer
  fit; they are passed over up to the next transaction, as are parameters of an extension the client is not told of now.
- **Time is the record's.** Clock and time of day are those of each record, and the records of all sessions come in
  their order: so rates count as they would have.
- **Nobody is asked.** A wait is over at once, a mail for the quarantine is kept nowhere, and no function is called.
"""

from collections.abc import Callable
from typing import Any, Final

from smtpproxy.audit.lines import exchange_fields
from smtpproxy.proving.assuming import agreeing, facts_of, handshake, posture_by, posture_of, replies_to, spool
from smtpproxy.proving.rebuilding import command_octets, hello_lines, reply_octets, sasl_octets
from smtpproxy.proving.recorded import TLS, Auth, Commit, Connect, Exchange, Note, Record, Refused, code_of
from smtpproxy.proving.rehearsed import Informed
from smtpproxy.proving.steps import Difference, Kind, Step, compare, deciders, told
from smtpproxy.session.content import Incoming
from smtpproxy.session.effects import Ask, PrepareTLS, StartTLS
from smtpproxy.session.limits import LIMITS, Limits
from smtpproxy.session.postures import MIRROR, Posture
from smtpproxy.session.records import AuditRecord
from smtpproxy.session.records import Kind as Told
from smtpproxy.session.session import Session
from smtpproxy.session.state import AUTHS, HELLOS, MAILS, SECURERS, Peer
from smtpproxy.session.verdicts import Call, Failed, Judge, Keep
from smtpproxy.smtp.capabilities import Capabilities
from smtpproxy.smtp.commands import Command, parse_command
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.verbs import VERBS
from smtpproxy.smtp.replies import multiline

STAND_IN: Final = b"Subject: not on record\r\n\r\n"
_END: Final = STAND_IN + b".\r\n"
_PIECE: Final = 1 << 18
_WITHIN: Final = frozenset({"RCPT", "DATA", "END", "BDAT", "BURL", "XEXCH50", "X-EXCH50", "OCTETS"})  # a transaction
_COUNTED: Final = frozenset({"XEXCH50", "X-EXCH50"})
_CONTENT: Final = frozenset({"DATA", "BDAT", "BURL"})


class Clock:
    """The time of the record, in seconds since 1970; it never goes back."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Player:
    """Plays one session, record by record. Each is played when the next is known, which says what came of it.

    Args:
        connect: its first record.
        judge: the rules.
        clock: the time of the whole replay.
        step: told what came of each exchange.
        posture: of its listener, if it is known; else it is concluded from the record.
        about: called with the session when a mail's content has come to its end, before rules are asked about it.
    """

    def __init__(
        self,
        connect: Connect,
        judge: Judge,
        clock: Clock,
        step: Callable[[Step], None],
        *,
        limits: Limits = LIMITS,
        posture: Posture | None = None,
        about: Callable[[Session], None] | None = None,
    ) -> None:
        self._clock = clock
        self._step = step
        self._about = about
        self._judge = Informed(judge)
        self._waiting: list[Exchange] = []
        self._records: list[AuditRecord] = []  # of the session, since the last step
        self._own: dict[str, str] = {}  # replies to what the proxy itself asked, by verb
        self._tls: TLS | None = None
        self._posture = posture
        self._replies: list[bytes] = []  # to the command at hand, in their order
        self._verb = ""
        self._tls_failed = False  # the handshakes it asks for
        self._unknown = False
        self._following: Record | None = None
        self._cause = ""  # the rule because of which what comes is passed over
        self._scope = ""  # "transaction", "hello" or "session"
        self._taken = ""  # the rule that takes the mail under way
        self._lost: frozenset[bytes] = frozenset()  # keywords the client was told then and is not now
        self._lost_by = ""
        self._tls_then: list[Note] = []  # what rules said of links just encrypted
        self._tls_now: list[dict[str, Any]] = []
        self._counted = 0  # octets announced by XEXCH50
        self._name = connect.session
        self._at = connect.at
        self.unread = 0  # lines that could not be had back
        self.session = Session(
            judge=self._judge,
            record=self._records.append,
            clock=clock,
            limits=limits,
            client=Peer(Side.CLIENT, connect.client),
            server=Peer(Side.SERVER, connect.server),
            posture=posture or MIRROR,
            spool=spool,
            facts=facts_of(connect, clock),
        )
        self._tick(connect)
        self.session.begin()
        self._serve()

    # ------------------------------------------------------------------------------------------------ what comes in

    def feed(self, record: Record) -> None:
        """The next record of this session."""
        if type(record) is Exchange:
            waiting = self._waiting
            if waiting and waiting[0].verb == "DATA" and len(waiting) == 1 and waiting[0].code == 354:
                if record.asked is None:
                    self._own_said(record)
                    return
                if record.verb == "END":
                    waiting.append(record)
                    return
            self._flush(record)
            self._tick(record)
            self._waiting.append(record)
            return
        if type(record) is Note and self._waiting and self._waiting[-1].code == 354:
            return  # content is coming in
        if type(record) is TLS:
            self._tls = record
        self._flush(record)
        self._tick(record)
        if type(record) is Note and record.subject == "tls":
            self._tls_then.append(record)

    def finish(self) -> None:
        """There are no more records of it."""
        self._flush(None)
        self._compare_tls()

    def _tick(self, record: Record) -> None:
        self._at = record.at
        self._clock.now = max(self._clock.now, record.at.timestamp())

    def _flush(self, following: Record | None) -> None:
        waiting, self._waiting = self._waiting, []
        self._following = following
        if len(waiting) == 2 or (waiting and waiting[0].verb == "BDAT"):
            last = waiting[-1]
            size, digest = last.octets, ""
            if isinstance(following, Commit | Refused):
                size, digest = following.octets, following.sha256
            self._judge.size, self._judge.digest = size, digest
        for exchange in waiting:
            self._play(exchange)
        self._judge.size, self._judge.digest = 0, ""

    def _own_said(self, exchange: Exchange) -> None:
        """What the proxy itself asked then: its reply may be wanted again."""
        if exchange.got is not None:
            self._own[exchange.verb] = exchange.got

    # ------------------------------------------------------------------------------------------------ one exchange

    def _play(self, was: Exchange) -> None:
        if was.asked is None:
            self._own_said(was)
            return
        if was.verb != "GREETING" and was.verb not in SECURERS:  # what rules say of TLS comes with these
            self._compare_tls()
        if self._passed_over(was):
            self._step(Step(was, None, follows=self._cause))
            return
        if was.verb != "GREETING":  # what a rule about who connects made of that came before
            self._records.clear()
        self._verb = was.verb
        self._tls_failed = was.verb in SECURERS and was.refused and not was.deciders
        self._replies, self._unknown = replies_to(was)
        if was.verb == "GREETING":
            self._greet(was)
        elif not self._say(was):
            return
        self._tls_now += [
            record.detail for record in self._records if record.detail and record.detail.get("subject") == "tls"
        ]
        now = self._now()
        if now is None:
            now = {"asked": was.asked, "action": "pass", "told": None}
            if was.told is not None:
                self.unread += 1
                return
        self._judged(was, now)

    def _passed_over(self, was: Exchange) -> bool:
        """It only follows from what was decided otherwise before."""
        if self._scope == "transaction" and was.verb not in _WITHIN:
            if was.verb in MAILS or was.verb in HELLOS or was.verb == "RSET":
                self._scope = self._cause = ""
        elif self._scope == "hello" and was.verb in HELLOS:
            self._scope = self._cause = ""
        if self._scope == "transaction":
            return was.verb in _WITHIN
        if self._scope:
            return True
        transaction = self.session.transaction
        if was.verb in _CONTENT and self._cause and transaction is not None and not transaction.accepted:
            self._scope = "transaction"  # all its recipients were refused
            return True
        if was.verb in MAILS:
            self._cause = self._taken = ""
        if was.verb == "OCTETS" and not self.session.reading.within_octets:  # what announced them was not accepted
            return bool(self._cause)
        return self._lacks(was)

    def _lacks(self, was: Exchange) -> bool:
        """It needs an extension of which the client is not told now."""
        verb = VERBS.get(was.verb.encode())
        if not self._lost or verb is None or verb.extension.encode() not in self._lost or was.verb == "BDAT":
            return False
        self._cause = self._lost_by
        if was.verb in AUTHS or was.verb in SECURERS:
            self._scope = "session"
        return True

    def _say(self, was: Exchange) -> bool:
        """Say the recorded command; False where that can't be, or was seen to."""
        session = self.session
        asked = was.asked or ""
        if was.verb == "END":
            return self._content()
        if was.verb == "OCTETS":
            self._pour(self._counted)
            self._counted = 0
        elif was.verb == "SASL":
            session.client_sent(sasl_octets(asked))
        else:
            if self._posture is None and (was.verb in HELLOS or was.verb in SECURERS) and not was.deciders:
                session.posture = posture_by(session, was)
            line = command_octets(asked, was.anomalies)
            if line is None:
                self.unread += 1
                return False
            if was.verb == "BDAT" and b"CHUNKING" in self._lost:
                return self._chunk_by_data(was)
            if was.verb in _COUNTED and was.code == 354:
                self._counted = int(asked.split()[1])
            session.client_sent(self._still_offered(line, was) if self._lost else line)
            self._serve(before_octets=was.verb == "BDAT")
            if was.verb == "BDAT" and session.receiving and session.incoming is not None:
                if asked.upper().endswith(" LAST") and self._about is not None:
                    self._about(session)
                self._pour(getattr(session.incoming, "left", 0))
        self._serve()
        return True

    def _content(self) -> bool:
        session = self.session
        if not isinstance(session.incoming, Incoming):
            self.unread += 1
            return False
        if self._about is not None:
            self._about(session)
        session.client_sent(_END)
        self._serve()
        return True

    def _pour(self, count: int) -> None:
        """So many octets, the first of them a header section."""
        first = STAND_IN
        while count > 0 and not self.session.closed:
            piece = (first + b"x" * (min(count, _PIECE) - len(first)))[:count]
            first = b""
            count -= len(piece)
            self.session.client_sent(piece)

    def _chunk_by_data(self, was: Exchange) -> bool:
        """CHUNKING is not offered any more: the client would have said DATA. The last chunk stands for that."""
        if not (was.asked or "").upper().endswith(" LAST"):
            self._step(Step(was, None, follows=self._lost_by))
            return False
        replies, self._replies = self._replies, [reply_octets(agreeing("DATA"))]
        self._verb = "DATA"
        self.session.client_sent(b"DATA\r\n")
        self._serve()
        self._replies, self._verb = replies, "END"
        return isinstance(self.session.incoming, Incoming) and self._content()

    def _still_offered(self, line: bytes, was: Exchange) -> bytes:
        """Without the parameters of extensions the client is not told of now: it would not have said them."""
        command = parse_command(line)
        if type(command) is not Command or (was.verb not in MAILS and was.verb != "RCPT"):
            return line
        place = b"RCPT" if was.verb == "RCPT" else b"MAIL"
        kept = []
        for parameter in command.argument.parameters:
            row = PARAMETERS.get((place, parameter.keyword))
            if row is None or not {name.encode() for name in row.extensions} <= self._lost:
                kept.append(parameter)
        value = command.argument._replace(parameters=tuple(kept))
        return was.verb.encode() + b" " + bytes(value.encode()) + b"\r\n"

    # --------------------------------------------------------------------------------------------- the driver's part

    def _serve(self, *, before_octets: bool = False) -> None:
        """Carry out what the session wants, and say what the server said, until all is said."""
        session = self.session
        for _ in range(10_000):
            while session.effects:
                effects, session.effects = session.effects, []
                for effect in effects:
                    self._carry_out(effect)
            session.to_client.clear()
            session.to_server.clear()
            session.drained()
            if session.to_server or session.effects:
                continue
            awaited = session.ledger.awaited
            if session.closed or awaited is None or session.securing is not None:
                break
            if before_octets and awaited.verb.name == "BDAT" and awaited.asked is not None:
                break
            reply = self._reply(awaited)
            if not reply:
                break
            session.server_sent(reply)

    def _reply(self, awaited: Any) -> bytes:
        verb = awaited.verb.name
        if awaited.asked is None:
            return reply_octets(self._own.get(verb) or agreeing(verb), verb)
        if verb == "GREETING" and self._verb != "GREETING":
            return b""  # it is not on record yet
        if len(self._replies) > 1:
            return self._replies.pop(0)
        return self._replies[0] if self._replies else b""

    def _carry_out(self, effect: Any) -> None:
        session = self.session
        if type(effect) is Ask:
            about = effect.question.about
            answer: Any = None
            if type(about) is Keep:
                answer = "replayed"
            elif type(about) is Call:
                answer = Failed("functions are not called in a replay")
            session.decided(effect.ticket, answer)
        elif type(effect) in (PrepareTLS, StartTLS) and self._tls_failed:
            session.tls_failed("as it was recorded")
        elif type(effect) is PrepareTLS:
            session.tls_ready()
        elif type(effect) is StartTLS:
            session.tls_done(effect.side, handshake(self._tls, effect.side))

    # ------------------------------------------------------------------------------------------------- the opening

    def _greet(self, was: Exchange) -> None:
        session = self.session
        if session.closed or session.server_gone:  # by a rule about who connects
            return
        if self._posture is None:
            session.posture = posture_of(self._tls, self._own)
        session.connected()
        self._serve()

    def _listed(self, was: Exchange, now: dict[str, Any]) -> None:
        """The client was told a list: what of it the rules take away now."""
        then, listed = (
            Capabilities.from_reply(multiline(250, hello_lines(text[4:].encode()))).keywords
            for text in (was.answer, told(now))
        )
        self._lost = then - listed
        self._lost_by = (" ".join(deciders(now.get("rule", ""))) or "default") if self._lost else ""

    # ------------------------------------------------------------------------------------------------- the outcome

    def _now(self) -> dict[str, Any] | None:
        """What the audit would have of the exchange that was just played."""
        for record in reversed(self._records):
            exchange = record.exchange
            if record.kind is Told.EXCHANGE and exchange.asked is not None:
                return exchange_fields(exchange)
        return None

    def _judged(self, was: Exchange, now: dict[str, Any]) -> None:
        found = compare(was, now)
        if self._tls_now:  # a rule about the server's link speaks through the answer to STARTTLS
            by = self._tls_now[-1].get("rule", "")
            found = tuple(one if one.rule or one.kind is not Kind.REFUSED else one._replace(rule=by) for one in found)
        if self._taken and any(one.kind is Kind.TAKEN and one.rule == self._taken for one in found):
            self._step(Step(was, None, follows=self._taken))  # the mail was counted when that was decided
            return
        for one in found:
            if one.kind is Kind.TAKEN:
                self._taken = one.rule
            elif one.kind is Kind.REFUSED:
                self._refused(was.verb, one.rule)
        self._step(Step(was, now, found, unknown=self._unknown and any(one.kind is Kind.PASSED for one in found)))
        if was.verb in HELLOS and code_of(told(now)) == 250 and not was.refused:
            self._listed(was, now)
        if type(self._following) is Auth and self._following.accepted and self.session.authenticated:
            self.session.identity = self._following.identity or self.session.identity

    def _refused(self, verb: str, rule: str) -> None:
        """What comes after it no longer fits."""
        self._cause = rule
        if self.session.closed or verb in ("GREETING", "SASL") or verb in AUTHS or verb in SECURERS:
            self._scope = "session"
        elif verb in HELLOS:
            self._scope = "hello"
        elif verb in MAILS or verb in _CONTENT:
            self._scope = "transaction"

    def _compare_tls(self) -> None:
        """What rules said of links just encrypted, beside what is on record of that."""
        then, self._tls_then = self._tls_then, []
        now, self._tls_now = self._tls_now, []
        for said in now:
            same = [one for one in then if one.side == said["side"] and one.rule == said.get("rule", "")]
            found = [
                Difference(Kind.OBSERVED, one["rule"], one["action"])
                for one in said.get("observed", ())
                if not any(before.rule == one["rule"] for record in then for before in record.observed)
            ]
            if not same and said.get("rule"):
                found.append(Difference(Kind.REFUSED, said["rule"], said.get("action", "")))
                if not self._cause:
                    self._refused("STARTTLS", said["rule"])
            if found:
                was = Note(at=self._at, session=self._name, subject="tls", side=said["side"])
                self._step(Step(was, said, tuple(found)))
        for record in then:
            if record.rule and not any(said.get("rule") == record.rule for said in now):
                self._step(Step(record, {}, (Difference(Kind.PASSED, record.rule, "pass"),)))
                self._refused("STARTTLS", record.rule)  # what the client was told from there on rests on it
