"""What a reply is taken for, and the one thing it changes: a table by verb, applied in reply order.

`check_sensible` is I9: a reply that makes no sense where it arrived is never told.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from smtpproxy.session import asking, closing, opening, securing
from smtpproxy.session.chunks import Chunks
from smtpproxy.session.content import Incoming
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.records import Kind
from smtpproxy.session.state import AUTHS, HELLO_FIRST, HELLOS, MAILS, Recipient, Transaction
from smtpproxy.session.verdicts import Action, Depth, Failed, ReplyRule, Verdict
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.capabilities import NO_CAPABILITIES, Capabilities
from smtpproxy.smtp.commands import Command
from smtpproxy.smtp.errors import ProtocolError, Side
from smtpproxy.smtp.identity import identity
from smtpproxy.smtp.registry.replycodes import REPLY_CODES
from smtpproxy.smtp.registry.rows import Argument, Framing, Verb
from smtpproxy.smtp.registry.verbs import GREETING
from smtpproxy.smtp.replies import OwnReply, Reply

if TYPE_CHECKING:
    from smtpproxy.session.session import Session


# ------------------------------------------------------------------------------------------------------ as replied


def _done(exchange: Exchange) -> bool:
    return exchange.got is not None and exchange.got.digit == 2 and not exchange.lost


def _undo(session: "Session", exchange: Exchange) -> None:
    """The server did not do what was taken for done as asked: the transaction is what it was before."""
    if exchange.before is not None and not exchange.lost:
        as_asked = exchange.transaction if exchange.verb.argument is Argument.MAIL else None
        if session.transaction is as_asked:
            session.transaction = exchange.before[0]
            if not session.reading.receiving:  # what is being taken is taken to its end
                session.incoming = exchange.before[1]


def _let_go(exchange: Exchange) -> None:
    """What was held back of the mail before is not wanted any more."""
    if exchange.before is not None and isinstance(exchange.before[1], Incoming | Chunks):
        exchange.before[1].discard()


def _replied_hello(session: "Session", exchange: Exchange) -> None:
    if not _done(exchange) or not isinstance(exchange.asked, Command):
        _undo(session, exchange)
        return
    _let_go(exchange)
    got, told = exchange.got, exchange.told
    esmtp = exchange.verb.name != "HELO"
    session.client.hello = exchange.asked.argument.domain
    if session.gate is HELLO_FIRST:
        session.gate = None
    session.server.esmtp = session.client.esmtp = esmtp
    session.server.lmtp = session.client.lmtp = exchange.verb.name == "LHLO"
    session.server.capabilities = Capabilities.from_reply(got) if esmtp and got is not None else NO_CAPABILITIES
    session.client.capabilities = Capabilities.from_reply(told) if esmtp and told.digit == 2 else NO_CAPABILITIES
    _abandon(session, "hello")


def _replied_mail(session: "Session", exchange: Exchange) -> None:
    if _done(exchange) and exchange.transaction is not None:
        _abandon(session, "another MAIL")
        exchange.transaction.begun = True
        _let_go(exchange)
        session.begun = exchange.transaction
        session.note(Kind.BEGIN, exchange.transaction)
    else:
        _undo(session, exchange)


def _replied_rcpt(session: "Session", exchange: Exchange) -> None:
    if isinstance(exchange.subject, Recipient):
        exchange.subject.accepted = _done(exchange)
    if exchange.told is not None and exchange.told.digit >= 4:
        session.rejected += 1


def _replied_rset(session: "Session", exchange: Exchange) -> None:
    if _done(exchange):
        _let_go(exchange)
        _abandon(session, "RSET")
    else:
        _undo(session, exchange)


def _abandon(session: "Session", why: str) -> None:
    """A transaction that was begun and came to no end of data."""
    if session.begun is not None:
        session.note(Kind.REFUSED, session.begun, why=why)
        session.begun = None


def _replied_data(session: "Session", exchange: Exchange) -> None:
    told = exchange.told
    if exchange.asked is None or told is None or told.code != 354:
        return
    transaction = exchange.transaction or session.begin_unasked()
    depth = exchange.subject if isinstance(exchange.subject, Depth) else Depth.STREAM
    session.incoming = Incoming(session, transaction, depth)


def _replied_end(session: "Session", exchange: Exchange) -> None:
    """The mail's outcome: committed only by the server's own 250 to this end of data (S3)."""
    transaction = exchange.transaction
    if transaction is None:
        raise AssertionError("an end of data without a mail")
    replies = [*exchange.replies_before, exchange.told]
    transaction.outcome = exchange.told
    if session.begun is transaction:
        session.begun = None
    own_end = exchange.sent is not None and (
        isinstance(exchange.sent, Verb) or exchange.sent.verb.name in ("BDAT", "BURL")
    )
    # LMTP: any recipient's 250 is a delivery. PRDR: the last reply is the mail's, whatever was said of recipients.
    decisive = replies[-1:] if replies[0].code == 353 else replies
    accepted = False
    if own_end and not exchange.lost and any(reply.digit == 2 for reply in decisive):
        if session.client_gone:
            exchange.anomalies += ("unacknowledged",)
        session.committed = transaction
        session.accepted += 1
        accepted = True
        session.note(Kind.COMMIT, transaction, None, **_each(session, transaction, replies))
    else:
        session.note(Kind.REFUSED, transaction, why=exchange.action if exchange.action != "pass" else "server")
    ended = session.judge.ended
    if ended is not None:
        asking.heed(exchange, asking.judged(session, "transaction", ended, exchange, accepted, session))


def _each(session: "Session", transaction: Transaction, replies: list[Reply]) -> dict[str, object]:
    """LMTP and PRDR: what became of each accepted recipient."""
    if len(replies) < 2:
        return {}
    accepted = [recipient for recipient in transaction.recipients if recipient.accepted]
    texts = [reply for reply in replies if reply.code != 353]
    return {"each": [(r.path, str(reply)) for r, reply in zip(accepted, texts, strict=False)]}


def _replied_bdat(session: "Session", exchange: Exchange) -> None:
    """Whatever became of earlier chunks, LAST brings the mail's outcome."""
    if exchange.last_chunk and exchange.transaction is not None and exchange.transaction.outcome is None:
        _replied_end(session, exchange)


def _replied_burl(session: "Session", exchange: Exchange) -> None:
    """BURL LAST ends the mail as BDAT LAST does; the content never came by here (RFC 4468 §3.3)."""
    if isinstance(exchange.asked, Command) and exchange.asked.argument.last:
        if _done(exchange):
            _replied_end(session, exchange)
        else:
            _undo(session, exchange)


def _replied_auth(session: "Session", exchange: Exchange) -> None:
    if isinstance(exchange.asked, Command) and exchange.verb.name != "SASL":
        session.mechanism, initial = exchange.asked.argument
        session.responses = [] if initial is None else [initial]
    elif isinstance(exchange.asked, Command):
        session.responses.append(exchange.asked.argument)
    if exchange.got is not None and exchange.got.digit == 3 and not exchange.lost:
        return
    responses, session.responses = session.responses, []
    if exchange.got is None or exchange.lost:
        return
    if exchange.got.digit == 2:
        session.authenticated = True
        session.identity = identity(session.mechanism, responses)
    facts: dict[str, Any] = {
        "mechanism": session.mechanism.decode("ascii", "backslashreplace").upper(),
        "accepted": exchange.got.digit == 2,
        "reply": exchange.got.code,
    }
    if facts["accepted"] and session.identity:
        facts["identity"] = session.identity
    session.note(Kind.AUTH, **facts)


def _replied_verb(session: "Session", exchange: Exchange) -> None:
    if _done(exchange):
        session.expect_noise()


def _replied_xclient(session: "Session", exchange: Exchange) -> None:
    """XCLIENT's 220 is a new greeting: hello and list are forgotten, TLS stays (Postfix XCLIENT_README)."""
    if exchange.asked is None:  # our own, before the greeting: there is nothing to forget
        _announced(session, exchange)
    elif _done(exchange):
        session.authenticated = True  # the server took the client for somebody, as by a log-in
        session.transaction = None
        session.incoming = None
        session.variant = None
        session.client.forget()
        session.server.forget()


def _announced(session: "Session", exchange: Exchange) -> None:
    """The server would not be told of the client by us."""
    if exchange.asked is None and exchange.got is not None and exchange.got.digit != 2:
        exchange.anomalies += ("announce-refused",)


def _replied_greeting(session: "Session", exchange: Exchange) -> None:
    if exchange.got is not None and exchange.got.digit == 4:
        exchange.closes = True


Replied = Callable[["Session", Exchange], None]

REPLIED: Final[MappingProxyType[str, Replied]] = MappingProxyType(
    {
        "GREETING": _replied_greeting,
        **dict.fromkeys(HELLOS, _replied_hello),
        **dict.fromkeys(MAILS, _replied_mail),
        "RCPT": _replied_rcpt,
        "RSET": _replied_rset,
        "DATA": _replied_data,
        "END": _replied_end,
        "BDAT": _replied_bdat,
        "BURL": _replied_burl,
        **dict.fromkeys((*AUTHS, "SASL"), _replied_auth),
        "VERB": _replied_verb,
        "XCLIENT": _replied_xclient,
        "XFORWARD": _announced,
    }
)


# ---------------------------------------------------------------------------------------------------------- replies


def replied(session: "Session", reply: Reply, more: bool) -> None:
    """One reply of the server. `more`: octets stand behind it already.

    Raises:
        ProtocolError: it makes no sense where it arrived (I9).
    """
    exchange = session.ledger.awaited
    if reply.code < 100:
        session.to_client += b"" if session.mute else reply.raw
        if exchange is not None:
            exchange.noise += reply.raw
        return
    if exchange is None:
        closing.unsolicited(session, reply)
        return
    exchange.got_at = session.clock()
    verb: Verb = exchange.sent if type(exchange.sent) is Verb else exchange.sent.verb
    check_sensible(session, exchange, verb, reply)
    if reply.odd:
        exchange.anomalies += reply.odd
    if reply.code not in REPLY_CODES:
        exchange.anomalies += ("unknown-reply-code",)
    if verb.then.get(reply.code) is Framing.TLS:
        if more:
            raise securing.spoke_too_soon(0)
        securing.begin(session, exchange, reply)
        return
    if verb is GREETING:
        opening.greeted(session, exchange, reply)
        return
    exchange.due += further_replies(session, exchange, reply)
    exchange.due -= 1
    if exchange.due > 0:
        exchange.replies_before += (reply,)
        if exchange is session.ledger.head:
            session.to_client += reply.raw
        else:
            exchange.untold += reply.raw
        return
    if isinstance(exchange.subject, Recipient):  # how many replies a mail has follows from it (LMTP)
        exchange.subject.accepted = reply.digit == 2
    exchange.got = reply
    session.settle()


def check_sensible(session: "Session", exchange: Exchange, verb: Verb, reply: Reply) -> None:
    """I9. 3yz only where the verb's row has that code, 2yz never to DATA, 220 alone opens a session or a handshake.

    Raises:
        ProtocolError: the reply makes no sense where it arrived.
    """
    digit = reply.code // 100
    if digit >= 4:
        return
    name = verb.name
    if name == "GREETING":
        if reply.code != 220:
            raise ProtocolError(Side.SERVER, "greeting-malformed", str(reply.code))
        return
    if digit == 3:
        if reply.code in verb.then or _agreed(exchange, name, reply.code):
            return
        raise ProtocolError(Side.SERVER, "reply-impossible", f"{reply.code} to {name}")
    if verb.then:
        framings = verb.then.values()
        opens = Framing.TLS in framings or Framing.GREETING in framings
        if name == "DATA" or (reply.code not in verb.then and opens):
            raise ProtocolError(Side.SERVER, "reply-impossible", f"{reply.code} to {name}")
    chunks = session.incoming
    if name == "BDAT" and isinstance(chunks, Chunks) and chunks.exchange is exchange and chunks.left:
        raise ProtocolError(Side.SERVER, "reply-before-end", f"{chunks.left} octets of the chunk have not been sent")


def _agreed(exchange: Exchange, name: str, code: int) -> bool:
    """3yz codes an extension permits where the client asked for it: 353 (PRDR), 355 (CHECKPOINT)."""
    transaction = exchange.transaction
    if transaction is None:
        return False
    if code == 353:
        return name == "END" and transaction.parameter(b"PRDR") is not None and not exchange.replies_before
    return code == 355 and name == "MAIL" and transaction.parameter(b"TRANSID") is not None


def further_replies(session: "Session", exchange: Exchange, reply: Reply) -> int:
    """How many replies more the server owes than was thought: LMTP gives one a recipient, PRDR after 353 one more."""
    transaction = exchange.transaction
    name = exchange.verb.name
    if transaction is None or exchange.replies_before or (name != "END" and not exchange.last_chunk):
        return 0
    if reply.code == 353:
        return transaction.accepted + 1
    return max(1, transaction.accepted) - 1 if session.server.lmtp else 0


def judged_reply(session: "Session", rule: ReplyRule, exchange: Exchange) -> Reply | None:
    """The reply as the rules have it told; None: they ask the outside first, and it stays at the head until then."""
    got = exchange.got
    if got is None:
        raise AssertionError("no reply to judge")
    verdict = asking.judged(session, f"{exchange.verb.name} reply", rule, got, exchange, session)
    while verdict.action is Action.ASK and exchange.verb.then.get(got.code) is Framing.TLS:
        asking.heed(exchange, verdict)  # its handshake begins at once
        failed = Failed("a reply that begins TLS can't wait")
        verdict = asking.judged(session, "resumed", verdict.value.resume, failed)
    asking.heed(exchange, verdict)
    if verdict.action is not Action.ASK:
        return _heeded(session, exchange, got, verdict)
    exchange.kept = True
    session.kept_reply = exchange

    def then(verdict: Verdict) -> None:
        session.kept_reply = None
        exchange.kept = False
        exchange.told = _heeded(session, exchange, got, verdict)
        session.settle()

    asking.ask(session, verdict.value, asking.heeds(exchange), then)
    return None


def _heeded(session: "Session", exchange: Exchange, got: Reply, verdict: Verdict) -> Reply:
    """What is told by the rules' word. They may not change what the client's next octets are."""
    ended = verdict is asking.FAILED or verdict.action is Action.HANGUP
    if ended and got.digit == 2 and (exchange.verb.name == "END" or exchange.last_chunk):
        exchange.closes = True  # the mail is taken, and nothing else may be told
        return got
    if verdict is asking.FAILED:
        exchange.closes = True
        return session.form(say.RULE_FAILED)
    if verdict.action is Action.PASS:
        return got
    exchange.action = verdict.action.value
    value = got if verdict.value is None else verdict.value
    told: Reply = session.form(value) if type(value) is OwnReply else value
    if verdict.action is Action.HANGUP:
        exchange.closes = True
        return told
    then = exchange.verb.then
    # What the client takes from it must be what the server meant: the same framing, and no go-ahead where none is due.
    if then.get(told.code) is not then.get(got.code) or (told.digit == 3) is not (got.digit == 3):
        exchange.anomalies += ("rule-failed",)
        exchange.action = "pass"
        return got
    return told
