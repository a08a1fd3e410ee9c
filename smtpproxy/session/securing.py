"""TLS on both links, as far as it is the session's: the order of events, and what must not cross the boundary.

Two things bring a link under TLS. The client asks (STARTTLS), or the posture of the listener demands it before the
greeting is told (`upgrade`, `require` and `implicit`, on either side). The handshakes are the driver's: an effect asks
for one, `tls_done` or `tls_failed` answers, and all that time neither peer is read.

The client asks, and the server's link can be encrypted:

    1  STARTTLS is forwarded and holds
    2  220 of the server is not told yet; nothing may stand behind it   StartTLS(SERVER)   -> tls_done(SERVER)
    3  a certificate like the server's is made ready                    PrepareTLS(CLIENT) -> tls_ready
    4  nothing of the client may stand behind its STARTTLS; 220 is told StartTLS(CLIENT)   -> tls_done(CLIENT)
    5  hello, lists, log-in and transaction are forgotten on both sides (RFC 3207 §4.2)

Where the server's link is encrypted already, or is not to be, 1 and 2 fall away and we answer 220 ourselves. What comes
before the greeting is in opening.py.

What must never happen: an octet that came in clear acting inside TLS, on either side, in whatever piece it came
(CVE-2011-0411, CVE-2021-38371); clear text in place of a handshake that failed (454, or 421 where the greeting would
stand); a word in clear on a link that is to be encrypted from its first octet.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpproxy.session import asking, closing
from smtpproxy.session.chunks import Chunks
from smtpproxy.session.content import RSET
from smtpproxy.session.effects import PrepareTLS, StartTLS
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from smtpproxy.session.records import Kind
from smtpproxy.session.state import HELLO_FIRST, ONLY_QUIT, TLS_FIRST, Gate, Phase, TLSInfo
from smtpproxy.session.verdicts import Action
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.commands import Command
from smtpproxy.smtp.errors import ProtocolError, Side
from smtpproxy.smtp.registry.verbs import GREETING
from smtpproxy.smtp.replies import OwnReply, Reply

if TYPE_CHECKING:
    from smtpproxy.session.session import Session


class Step(Enum):
    """What is under way."""

    SERVER = auto()  # the handshake with the server
    CERTIFICATE = auto()  # one to show to the client is being had
    CLIENT = auto()  # the handshake with the client

    __hash__ = object.__hash__


class Securing(NamedTuple):
    """A link that is being encrypted: by which command (None: none, it is implicit), and the server's 220 to it."""

    step: Step
    exchange: Exchange | None = None
    reply: Reply | None = None
    then: Callable[[], None] | None = None  # what follows the client's handshake, where no command asked for it

    @property
    def side(self) -> Side:
        """Whose handshake it is, or will be."""
        return Side.SERVER if self.step is Step.SERVER else Side.CLIENT


def gate(posture: Posture) -> Gate | None:
    """What a session begins with."""
    return TLS_FIRST if posture.client is ClientTLS.REQUIRE else None


class Offering(Enum):
    """Whether the client is told of STARTTLS."""

    NO = "no"
    AS_SERVER = "as the server"
    ALWAYS = "always"

    __hash__ = object.__hash__


def offer(session: "Session") -> Offering:
    """By the posture, and by what is encrypted already."""
    client, server, _ = session.posture
    if session.client.tls is not None or client is ClientTLS.REFUSE or client is ClientTLS.IMPLICIT:
        return Offering.NO
    if client is ClientTLS.OFFER or client is ClientTLS.REQUIRE:
        return Offering.ALWAYS
    if client is ClientTLS.MIRROR:
        if session.server.tls is not None:
            return Offering.ALWAYS
        if server is ServerTLS.NEVER:
            return Offering.NO
    return Offering.AS_SERVER


def within(session: "Session") -> bool:
    """The client's handshake is under way: what is told now would not be read as a reply."""
    return session.securing is not None and session.securing.step is Step.CLIENT


def encrypted(session: "Session") -> bool:
    """A password may pass: the client's link is encrypted, and the server's too unless that is not wanted."""
    return session.client.tls is not None and (
        session.server.tls is not None or session.posture.server is ServerTLS.NEVER
    )


def verified(session: "Session") -> bool:
    """Both links are encrypted, and the server is known to be who it should be (RFC 8689 §2)."""
    server = session.server.tls
    return session.client.tls is not None and server is not None and server.verified


# ------------------------------------------------------------------------------------------------ before the greeting


def untold_greeting(session: "Session") -> Exchange:
    """The server's: it is the last, for nothing of the client is read before it is told."""
    greeting = session.ledger.exchanges[-1]
    if greeting.verb is not GREETING:
        raise AssertionError("the greeting was told already")
    return greeting


def no_session(session: "Session", why: str, result: str, known: TLSInfo | None = None) -> None:
    """421 in place of the greeting: RFC 5321 §3.1 has no 454 there."""
    _note_failure(session, Side.SERVER, why, result, known)
    closing.abort_server(session)
    greeting = untold_greeting(session)
    greeting.told = say.TLS_TO_SERVER_FAILED
    greeting.action = "answer"
    greeting.lost = greeting.closes = True
    for exchange in session.ledger:
        exchange.lost = True
    session.settle()


# -------------------------------------------------------------------------------------------------- the client asks


def asked(session: "Session", exchange: Exchange, command: Command) -> bool:
    """STARTTLS: forwarded where the server's link goes under TLS with the client's; else answered here (True)."""
    client, server, _ = session.posture
    keyword = command.verb.name.encode()
    can = session.server.tls is None and keyword in session.server.capabilities.keywords
    if can and server is not ServerTLS.NEVER:
        return False
    if session.server.tls is None and server is not ServerTLS.NEVER and client is not ClientTLS.OFFER:
        _note_failure(session, Side.SERVER, "the server does not offer STARTTLS", "starttls-not-supported")
        return _answer(session, exchange, say.TLS_NOT_AVAILABLE)  # the server's link can't be, so the client's is not
    if session.authenticated:
        return _answer(session, exchange, say.TLS_AFTER_AUTH)  # the server goes on as it is and can't forget that
    exchange.action = "answer"
    exchange.conclude = lambda head: handshake(session, Securing(Step.CERTIFICATE, exchange), PrepareTLS(Side.CLIENT))
    session.hold(exchange)
    session.push(exchange)
    return True


def _answer(session: "Session", exchange: Exchange, reply: OwnReply) -> bool:
    exchange.action = "answer"
    exchange.told = reply
    session.hold(exchange)
    session.push(exchange)
    return True


def begin(session: "Session", exchange: Exchange, reply: Reply) -> None:
    """The server said 220 to a TLS command: not told yet, its handshake comes first."""
    if session.posture.client is not ClientTLS.PASSTHROUGH:
        handshake(session, Securing(Step.SERVER, exchange, reply), StartTLS(Side.SERVER))
    elif not _injected(session):
        exchange.got = reply
        session.settle()


def told(session: "Session", exchange: Exchange) -> None:
    """220 was told to the client: its octets are TLS from here on."""
    if session.posture.client is not ClientTLS.PASSTHROUGH:
        session.hold(exchange)  # until its handshake is done
    else:
        session.note(Kind.TLS, passthrough=True)
        closing.end_inspection(session, exchange)


# ------------------------------------------------------------------------------------------------ what the driver says


def handshake(session: "Session", securing: Securing, effect: PrepareTLS | StartTLS) -> None:
    """Have the driver do this, and wait for it."""
    session.securing = securing
    session.progress += 1  # a handshake has its own time
    session.effects.append(effect)


def ready(session: "Session", *, early: bool) -> None:
    """A certificate for the client is there: the 220 is told, if a command asked for it, and the handshake begins."""
    securing = session.securing
    if session.closed or securing is None or securing.step is not Step.CERTIFICATE:
        return
    exchange = securing.exchange
    if _injected(session, early=early and exchange is not None):  # a ClientHello, perhaps: it has to wait for the 220
        return
    session.securing = Securing(Step.CLIENT, exchange, then=securing.then)
    if exchange is not None:
        if securing.reply is not None:
            exchange.got = securing.reply
        else:
            exchange.told = say.TLS_GO_AHEAD
        session.settle()
    if not session.closed:  # a rule may hang up on a 220
        handshake(session, session.securing, StartTLS(Side.CLIENT))


def done(session: "Session", side: Side, info: TLSInfo) -> None:
    """A handshake succeeded."""
    securing = session.securing
    step = Step.SERVER if side is Side.SERVER else Step.CLIENT
    if session.closed or securing is None or securing.step is not step:
        return
    exchange, reply = securing.exchange, securing.reply
    if side is Side.CLIENT:
        session.securing = None
        session.client.tls = info
        _client_done(session, securing)
        if not session.closed:
            closing.read_on(session)
        return
    session.server.tls = info
    if _judged(session, Side.SERVER):
        return
    if exchange is None:  # implicit: the greeting comes next
        session.securing = None
        on_record(session)
    elif exchange.asked is None:  # our own STARTTLS
        session.securing = None
        exchange.got = reply
        session.settle()
        closing.read_on(session)
    elif not _injected(session):
        handshake(session, Securing(Step.CERTIFICATE, exchange, reply), PrepareTLS(Side.CLIENT))


def _client_done(session: "Session", securing: Securing) -> None:
    on_record(session)
    if _injected(session):
        return
    exchange = securing.exchange
    if exchange is None:  # implicit
        if securing.then is None:
            raise AssertionError("a handshake nobody asked for")
        if not _judged(session, Side.CLIENT):
            securing.then()
        return
    alone = exchange.got is None  # the server's link is as it was: it must be made to forget
    if session.gate is None or session.gate.open_to is not ONLY_QUIT:  # else a rule's word about the server's link
        session.gate = HELLO_FIRST if alone else None
    if alone and (session.begun is not None or session.transaction is not None):
        reset = Exchange(RSET.verb, None, session.clock())
        reset.sent = RSET
        session.send_own(reset, RSET.wire, hold=False)
    session.client.forget()
    session.server.forget()
    session.variant = None
    session.transaction = None
    if isinstance(session.incoming, Chunks):  # octets held back here, which came in clear
        session.incoming.discard()
    session.incoming = None
    session.authenticated = False
    session.phase = Phase.GREETED
    session.hold(None)
    if not _judged(session, Side.CLIENT) and session.draining:
        closing.drain(session)


def _judged(session: "Session", side: Side) -> bool:
    """What the rules say of a link that has just been encrypted; True: the session is over."""
    judge = session.judge.tls
    if judge is None:
        return False
    verdict = asking.judged(session, "tls", judge, side, session)
    asking.on_record(session, "tls", verdict, side=side.value)
    if verdict.action is Action.HANGUP or verdict is asking.FAILED:
        session.securing = None
        reply = say.RULE_FAILED_CLOSING if verdict is asking.FAILED else verdict.value
        closing.lose_server(session, reply, "tls-refused", abort=True)
        return True
    if verdict.action is Action.ANSWER:
        session.gate = Gate(ONLY_QUIT, verdict.value)
    return False


def failed(session: "Session", why: str, result: str = "", known: TLSInfo | None = None) -> None:
    """A handshake failed, or there is no certificate for the client: 454 while that can still be told in clear."""
    securing = session.securing
    if session.closed or securing is None:
        return
    session.securing = None
    side = securing.side
    own = securing.exchange is None or securing.exchange.asked is None
    if own and side is Side.SERVER:
        no_session(session, why, result, known)
        return
    _note_failure(session, side, why, result, known)
    exchange = securing.exchange
    if securing.step is Step.CLIENT or exchange is None:
        closing.close_both(session, abort=True)
        return
    _got(securing)
    exchange.told = say.TLS_NOT_AVAILABLE
    exchange.action = "answer"
    if exchange.sent is not None:  # the server is, or was to be, under TLS: it can't go on in clear
        closing.abort_server(session)
        exchange.lost = True
    session.settle()
    closing.read_on(session)


def on_record(session: "Session") -> None:
    """Both legs, as they are now."""
    session.note(Kind.TLS, client=shown(session.client.tls), server=shown(session.server.tls))


def _note_failure(session: "Session", side: Side, why: str, result: str, known: TLSInfo | None = None) -> None:
    """What went wrong, and what is known of the peer; RFC 8460's results are of servers."""
    facts = {**(shown(known) or {}), "result": result if side is Side.SERVER else ""}
    detail = {name: value for name, value in facts.items() if value and name not in ("resumed", "verified")}
    session.note(Kind.NOTE, None, None, anomaly="tls-failed", side=side.value, **{**detail, "why": why})


def shown(info: TLSInfo | None) -> dict[str, Any] | None:
    """What is put on record of an encrypted link: what there is to say; of a certificate always whether it verified."""
    if info is None:
        return None
    facts = {name: value for name, value in info._asdict().items() if value or name == "resumed"}
    if info.certificate:
        facts["verified"] = info.verified
        facts["certificate"] = {name: value for name, value in info.certificate if value}
    return facts


def _injected(session: "Session", *, early: bool = False) -> bool:
    """Octets came in clear behind STARTTLS; `early`: they wait on the link."""
    if not session.reading.left and not early:
        return False
    _got(session.securing)
    session.securing = None
    closing.abort_server(session)
    why = f"{session.reading.left} octets" if session.reading.left else "before the 220"
    session.client_violated("octets-behind-starttls", why)
    return True


def _got(securing: Securing | None) -> None:
    """The server's 220 is not told, and was got all the same."""
    if securing is not None and securing.exchange is not None and securing.reply is not None:
        securing.exchange.got = securing.reply


def cut_short(session: "Session", side: Side) -> bool:
    """A link under TLS ended without close_notify. Between transactions that is a habit of many; within one, and while
    a reply is owed, somebody may have cut it: True, and it is taken for a broken link (RFC 8446 §6.1)."""
    quiet = session.begun is None and session.transaction is None and not session.ledger.exchanges
    if session.closed or session.said_goodbye or (quiet and not session.receiving):
        return False
    session.note(Kind.NOTE, anomaly="tls-truncated", side=side.value)
    return True


def spoke_too_soon(count: int) -> ProtocolError:
    """Octets of the server behind its 220: in one piece with it (0), or so many within a handshake."""
    return ProtocolError(Side.SERVER, "octets-behind-220", f"{count} octets" if count else "in one piece with it")
