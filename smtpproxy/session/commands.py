"""What becomes of a command: judged, checked against what was offered, forwarded or answered.

The order matters. First the rules, so that a refusal carries the rule's name; then what the session itself must see to,
rule or no rule: no parameter and no verb that changes framing without its extension having been offered, no address
beyond ASCII without SMTPUTF8, no more recipients than the limit, and no line that no grammar recognised.

`ASKED` is what a forwarded command changes at once: rules see the transaction as asked so far (architecture §6).
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from smtpproxy.session import announcing, asking, closing, securing
from smtpproxy.session.chunks import Chunks, Swallowed
from smtpproxy.session.content import RSET
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.records import Kind
from smtpproxy.session.state import HELLOS, MAILS, SECURERS, Recipient, Transaction
from smtpproxy.session.verdicts import PASS, Action, CommandRule, Depth, Verdict
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.commands import Command, Malformed
from smtpproxy.smtp.registry.parameters import PARAMETERS
from smtpproxy.smtp.registry.rows import Argument, Framing, FramingClass
from smtpproxy.smtp.registry.verbs import UNKNOWN
from smtpproxy.smtp.replies import OwnReply
from smtpproxy.smtp.values import Chunk, Text

if TYPE_CHECKING:
    from smtpproxy.session.session import Session

# Verbs of an extension that may be used only where the client was offered it, because they change framing. (VRFY, HELP
# and their like are often served unannounced and can do no harm to framing.)
_OFFERED_FIRST: Final = frozenset({FramingClass.BDAT, FramingClass.GO_OCTETS, FramingClass.SASL, FramingClass.TLS})
_ENVELOPE: Final = frozenset({Argument.MAIL, Argument.RCPT})
_PASS: Final = Action.PASS


def asked(session: "Session", command: Command) -> None:
    """Judge a command; forward it or answer it."""
    verb = command.verb
    session.commands += 1
    exchange = Exchange(verb, command, session.clock())
    if command.leniencies:
        exchange.anomalies = command.leniencies
    if closing.orphaned(session):
        closing.answer_orphan(session, exchange)
        return
    argument = verb.argument
    if argument is Argument.MAIL:
        session.transactions += 1
        path, parameters = command.argument
        exchange.before = session.transaction, session.incoming
        session.transaction = Transaction(session.transactions, path, parameters)
    exchange.transaction = session.transaction
    gate = session.gate
    if gate is not None and verb.name not in gate.open_to:
        exchange.action = "answer"
        refuse(session, exchange, gate.reply)
        return
    rule: CommandRule | None = session.command_rules.get(verb.name)
    if rule is None:
        _permitted(session, exchange, command)
        return
    verdict = asking.judged(session, verb.name, rule, command, session)
    if verdict is PASS:
        _permitted(session, exchange, command)
        return
    asking.heed(exchange, verdict)
    if verdict.action is not Action.ASK:
        _heeded(session, exchange, command, verdict)
        return
    exchange.waiting = True
    session.hold(exchange)
    session.ledger.exchanges.append(exchange)

    def then(verdict: Verdict) -> None:
        session.hold(None)
        if closing.orphaned(session):  # the proxy has begun to stop
            closing.answer_orphan(session, exchange)
            return
        _heeded(session, exchange, command, verdict)

    asking.ask(session, verdict.value, asking.heeds(exchange), then)


def _heeded(session: "Session", exchange: Exchange, command: Command, verdict: Verdict) -> None:
    """What the rules decided is done."""
    action = verdict.action
    if action is not _PASS:
        exchange.action = action.value
    if action is Action.REWRITE:
        command = verdict.value
        if command.verb.argument is Argument.MAIL and exchange.transaction is not None:  # as the server has it
            exchange.transaction.reverse_path, exchange.transaction.parameters = command.argument
    elif action is Action.DISCARD:
        if session.transaction is None:
            exchange.action = "answer"
            exchange.anomalies += ("rule-failed",)
            refuse(session, exchange, say.RULE_FAILED)
            return
        session.transaction.discarded = verdict.rule
        if isinstance(session.incoming, Chunks):  # some of it came before
            session.incoming.refuse(say.DISCARDED, rule=verdict.rule, action=action.value)
    elif action is not _PASS:
        exchange.closes = action is Action.HANGUP
        refuse(session, exchange, verdict.value)
        return
    _permitted(session, exchange, command)


def _permitted(session: "Session", exchange: Exchange, command: Command) -> None:
    """No rule is against it: now what the session itself must see to, rule or no rule."""
    verb = command.verb
    argument = verb.argument
    if verb is UNKNOWN and not exchange.rule:
        _count_malformed(session, exchange, "unknown-verb")
        refuse(session, exchange, say.own(UNKNOWN.refusal))
        return
    if argument in _ENVELOPE and (refusal := _envelope(session, exchange, command)) is not None:
        exchange.action = "answer"
        refuse(session, exchange, refusal)
        return
    if verb.framing in _OFFERED_FIRST and verb.extension and verb.extension.encode() not in session.client.capabilities:
        exchange.anomalies += ("verb-not-offered",)
        exchange.action = "answer"
        refuse(session, exchange, say.VERB_NOT_OFFERED)
        return
    noted = ASKED.get(verb.name)
    if noted is not None and noted(session, exchange, command):
        return
    exchange.sent = command
    session.to_server += command.wire
    if verb.holds or (exchange.before is not None and exchange.before[0] is not None):
        # MAIL or RSET within a transaction: which one the next commands belong to, only the server's reply tells.
        session.hold(exchange)
    session.push(exchange)


def _envelope(session: "Session", exchange: Exchange, command: Command) -> OwnReply | None:
    """What is wrong with a MAIL or RCPT that its grammar can't tell: parameters nobody offered, addresses, counts."""
    path, parameters = command.argument
    place = b"MAIL" if command.verb.argument is Argument.MAIL else b"RCPT"
    if place == b"MAIL" and session.facts.full():
        exchange.anomalies += ("record-full",)
        return say.RECORD_FULL
    for keyword, value in parameters:
        row = PARAMETERS.get((place, keyword))
        if row is None:
            exchange.anomalies += ("unknown-parameter",)
            return say.UNKNOWN_PARAMETER
        names = row.extensions
        if keyword == b"BODY":  # the one parameter whose value says which extension it needs (RFC 3030 §3)
            names = ("BINARYMIME",) if value is not None and value.upper() == b"BINARYMIME" else ("8BITMIME",)
        offered = session.client.capabilities.keywords
        if not any(name.encode() in offered for name in names):
            exchange.anomalies += ("parameter-not-offered",)
            exchange.rule = exchange.rule or session.judge.owner(names[0].encode(), session)
            return say.own(row.refusal) if row.refusal else say.NOT_NEGOTIATED
        if keyword == b"REQUIRETLS" and session.client.tls is not None and session.client.tls.shown != "given":
            exchange.anomalies += ("requiretls-intercepted",)  # RFC 8689 §4.1: a promise we are not named in
    transaction = session.transaction
    if not (path.local.isascii() and path.domain.isascii()) and (
        transaction is None or transaction.parameter(b"SMTPUTF8") is None
    ):
        exchange.anomalies += ("non-ascii-without-smtputf8",)
        return say.NEEDS_SMTPUTF8
    if place == b"RCPT" and transaction is not None and len(transaction.recipients) >= session.limits.recipients:
        exchange.anomalies += ("too-many-recipients",)
        return say.TOO_MANY_RECIPIENTS
    return None


def refuse(session: "Session", exchange: Exchange, reply: OwnReply) -> None:
    """Answer a command here. The octets behind a refused BDAT are swallowed all the same (commands.md §7)."""
    exchange.told = reply
    if exchange.closes:
        session.deaf = True
    command = exchange.asked
    if type(command) is Command and type(command.argument) is Chunk:
        session.incoming = Swallowed(session, command.argument.size)
        chunk_follows(session)
    elif exchange.before is not None:
        session.transaction, session.incoming = exchange.before
    session.push(exchange)


def chunk_follows(session: "Session") -> None:
    """BDAT's octets come next; none at all when it announced none."""
    if session.incoming is not None and session.incoming.over:
        session.reading.content_over()
    else:
        session.reading.frame(Framing.CHUNK)


def malformed(session: "Session", line: Malformed) -> None:
    """A line that matched no grammar: answered here, in its turn, unless a rule says otherwise."""
    judge = session.judge.malformed
    if judge is not None and not line.fatal and session.gate is None and not closing.orphaned(session):
        verdict = asking.judged(session, line.verb.name, judge, line, session)
        exchange = Exchange(line.verb, line, session.clock())
        asking.heed(exchange, verdict)
        if verdict.action is _PASS and verdict.rule:
            exchange.anomalies += ("malformed-command",)
            passed = Command(UNKNOWN, Text(b""), line.line, line.line, ())
            if line.verb.name in MAILS and announcing.xforward(session, exchange, passed):
                return
            exchange.sent = passed
            session.to_server += line.line
            session.hold(exchange)
            session.push(exchange)
            return
        if verdict.action in (Action.ANSWER, Action.HANGUP) and verdict is not asking.FAILED:
            _count_malformed(session, exchange, "malformed-command")
            exchange.action = verdict.action.value
            exchange.closes = verdict.action is Action.HANGUP
            refuse(session, exchange, verdict.value)
            return
    name = "malformed-command"
    if line.fatal:
        name = "chunk-size-unknown" if line.verb.framing is FramingClass.BDAT else "foreign-protocol"
    answer_malformed(session, line, line.why, say.own(line.reply), name)


def answer_malformed(session: "Session", asked: Malformed | bytes, why: str, reply: OwnReply, anomaly: str) -> None:
    """One reply to a line that is no command, in its turn."""
    line = asked if isinstance(asked, Malformed) else Malformed(UNKNOWN, why, "", asked, False)
    exchange = Exchange(line.verb, line, session.clock())
    if closing.orphaned(session):
        closing.answer_orphan(session, exchange)
        return
    exchange.told = reply
    if line.fatal:
        exchange.closes = session.deaf = True
    _count_malformed(session, exchange, anomaly)
    session.push(exchange)


def _count_malformed(session: "Session", exchange: Exchange, anomaly: str) -> None:
    """Note it; one too many, and 421 stands behind its reply."""
    exchange.anomalies += (anomaly,)
    exchange.action = "answer"
    session.malformed += 1
    if session.malformed >= session.limits.malformed and not exchange.closes:
        farewell = Exchange(UNKNOWN, None, session.clock())
        farewell.closes = session.deaf = True
        farewell.told = say.TOO_MANY_ERRORS
        farewell.anomalies = ("too-many-errors",)
        session.farewell = farewell


# ------------------------------------------------------------------------------- what a forwarded command changes


def _asked_reset(session: "Session", exchange: Exchange, command: Command) -> bool:
    """RSET and a new hello take the transaction back (RFC 5321 §4.1.1.5, §4.1.4)."""
    exchange.before = session.transaction, session.incoming
    session.transaction = None
    session.incoming = None
    return False


def _asked_mail(session: "Session", exchange: Exchange, command: Command) -> bool:
    session.incoming = None
    return announcing.xforward(session, exchange, command)


def _asked_rcpt(session: "Session", exchange: Exchange, command: Command) -> bool:
    if session.transaction is not None:
        path, parameters = command.argument
        recipient = Recipient(path, parameters)
        session.transaction.recipients.append(recipient)
        exchange.subject = recipient
    return False


def _asked_data(session: "Session", exchange: Exchange, command: Command) -> bool:
    """How deep the content is looked into decides who answers DATA (architecture §7)."""
    if isinstance(session.incoming, Chunks) and session.incoming.held:
        exchange.action = "answer"  # the server has not seen the BDAT that was told 250 here: it can't say this itself
        refuse(session, exchange, say.MIXED)
        return True
    # With no transaction known the server will say 503; should it not, the content is looked at like any other.
    transaction = exchange.transaction = session.transaction or session.begin_unasked()
    depth = Depth.HEADER if transaction.discarded else _depth(session, transaction)
    if depth is None:
        _fail_closed(session, exchange)
        return True
    if depth is Depth.STREAM:
        return False
    exchange.conclude = _tell_deferred
    exchange.subject = depth
    session.hold(exchange)
    session.push(exchange)
    return True


def _depth(session: "Session", transaction: Transaction) -> Depth | None:
    """How deep content is looked into; None if the rules failed to say so."""
    try:
        return session.judge.depth(transaction, session)
    except Exception as error:
        session.note(Kind.NOTE, anomaly="rule-failed", subject="content", why=type(error).__name__)
        return None


def _fail_closed(session: "Session", exchange: Exchange) -> None:
    exchange.action = "answer"
    exchange.anomalies += ("rule-failed",)
    refuse(session, exchange, say.RULE_FAILED)


def _tell_deferred(exchange: Exchange) -> None:
    """A deferred DATA at the head: go ahead if the server has accepted a recipient by now."""
    transaction = exchange.transaction
    if exchange.action == "pass":
        exchange.action = "answer"
    exchange.told = say.GO_AHEAD if transaction is not None and transaction.accepted else say.NO_RECIPIENTS


def _asked_bdat(session: "Session", exchange: Exchange, command: Command) -> bool:
    """BDAT: only where there is a recipient, so that no server has a reason to read its octets as commands."""
    transaction = session.transaction
    if transaction is None or not transaction.recipients:
        exchange.action = "answer"
        refuse(session, exchange, say.NO_TRANSACTION)
        return True
    chunks = session.incoming
    if not isinstance(chunks, Chunks):
        depth = Depth.HEADER if transaction.discarded else _depth(session, transaction)
        if depth is None:
            _fail_closed(session, exchange)
            return True
        chunks = Chunks(session, transaction, depth)
        session.incoming = chunks
    chunks.begin(exchange, command)
    chunk_follows(session)
    return True


def _asked_burl(session: "Session", exchange: Exchange, command: Command) -> bool:
    """BURL takes the place of a chunk: only where there is a mail it could belong to."""
    transaction = session.transaction
    if transaction is None or not transaction.recipients:
        exchange.action = "answer"
        refuse(session, exchange, say.NO_TRANSACTION)
        return True
    if transaction.discarded:
        exchange.action = "discard"
        if not command.argument.last:
            refuse(session, exchange, say.CHUNK_HELD)
            return True
        session.transaction = session.incoming = None
        exchange.told, exchange.sent = say.DISCARDED, RSET
        session.to_server += RSET.wire
        session.push(exchange)
        return True
    if command.argument.last:
        exchange.before = session.transaction, session.incoming
        session.transaction = session.incoming = None
    return False


Asked = Callable[["Session", Exchange, Command], bool]

# True: the command was dealt with whole and is not forwarded as it stands.
ASKED: Final[MappingProxyType[str, Asked]] = MappingProxyType(
    {
        **dict.fromkeys((*HELLOS, "RSET"), _asked_reset),
        **dict.fromkeys(MAILS, _asked_mail),
        "RCPT": _asked_rcpt,
        "DATA": _asked_data,
        "BDAT": _asked_bdat,
        "BURL": _asked_burl,
        **dict.fromkeys(SECURERS, securing.asked),
    }
)
