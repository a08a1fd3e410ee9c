"""How a session opens: what happens between the server's link and the greeting that is told to the client.

As little as the listener asks for; most often nothing. In this order:

    0  the rules about clients that connect; who is refused by them is told so here, and no server hears of it
    1  the client's implicit TLS, if the server is to be told of it (`client_first`)
    2  the foreword: octets in clear, before everything on the server's link, its TLS included
    3  the server's implicit TLS
    4  the server's greeting, which is kept
    5  our own EHLO, STARTTLS and handshake, where the posture has the server's link encrypted by now
    6  our own EHLO, on the link as it is now, and XCLIENT, whose reply takes the greeting's place
    7  the client's implicit TLS, if it was not the first
    8  the greeting is told

So nothing of the client waits half-way, and its list is always the one the server gives on the link it has then. What
we say here is on record as ours: asked by nobody, told to nobody, judged by no rule.

What must never happen: a client told of a greeting that was not meant for it; one served under our name and address
where the server was to know its own (a server that does not offer XCLIENT is another matter, and on record); a word to
the server before a client's handshake that was to be the first.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from smtpproxy.session import announcing, asking, securing
from smtpproxy.session.announcing import Announce
from smtpproxy.session.content import ours
from smtpproxy.session.effects import Dial, PrepareTLS, StartTLS
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.postures import ClientTLS, ServerTLS
from smtpproxy.session.securing import Securing, Step
from smtpproxy.session.state import HELLO_FIRST, REFUSED
from smtpproxy.session.verdicts import Action, Verdict
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.capabilities import NO_CAPABILITIES, Capabilities
from smtpproxy.smtp.commands import Command
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.replies import Reply

if TYPE_CHECKING:
    from smtpproxy.session.session import Session

# The server did not understand us, or not now: no reason for a client to give its mail up.
_OUR_FAULT: Final = frozenset({500, 501, 502, 503, 504})
_STARTTLS: Final = ours(b"STARTTLS\r\n")


def begin(session: "Session") -> bool:
    """What the rules say of a client that has connected. True: the server may be connected to now."""
    judge = session.judge.connect
    if judge is None or session.opaque:
        return True
    verdict = asking.judged(session, "connect", judge, session)
    heed = asking.heeds(securing.untold_greeting(session))
    heed(verdict)
    if verdict.action is Action.ASK:
        asking.ask(session, verdict.value, heed, lambda verdict: _begun(session, verdict))
    elif verdict.action is not Action.PASS:
        _begun(session, verdict)
    return verdict.action is Action.PASS


def _begun(session: "Session", verdict: Verdict) -> None:
    """What the rules decided about a client that has connected."""
    greeting = securing.untold_greeting(session)
    if verdict.action is Action.PASS:
        session.effects.append(Dial())
    elif verdict.action is Action.REDIRECT:
        host, port = verdict.value
        greeting.action = verdict.action.value
        session.facts = session.facts._replace(server=host, server_port=port)
        session.effects.append(Dial(host, port))
    else:
        session.server_gone = True
        greeting.action = verdict.action.value
        greeting.told = verdict.value
        greeting.lost = greeting.closes = True
        session.settle()


def connected(session: "Session") -> None:
    """The server's link is open: it is spoken to at once, or when the client's TLS is there, of which it is told."""
    if session.closed:
        return
    if session.client_first and session.posture.client is ClientTLS.IMPLICIT and not session.opaque:
        _secure_client(session, lambda: _begin(session))
    else:
        _begin(session)


def _begin(session: "Session") -> None:
    """The foreword; then the server's TLS where that is implicit (RFC 8314 §3)."""
    if session.foreword is not None:
        session.to_server[:0] = session.foreword(session.client.tls)  # a client that passes unseen may have talked
    if session.posture.server is ServerTLS.IMPLICIT and not session.opaque:
        securing.handshake(session, Securing(Step.SERVER), StartTLS(Side.SERVER))


def _secure_client(session: "Session", then: Callable[[], None]) -> None:
    """The client's implicit TLS, and what follows it."""
    securing.handshake(session, Securing(Step.CERTIFICATE, then=then), PrepareTLS(Side.CLIENT))


def _demanded(session: "Session") -> bool:
    """The server's link has still to be encrypted before the greeting, or there is no session."""
    client, server, _ = session.posture
    demands = server is ServerTLS.REQUIRE or (server is ServerTLS.MIRROR and client is ClientTLS.IMPLICIT)
    return demands and session.server.tls is None


def _wanted(session: "Session") -> bool:
    """It has, or should be where it can."""
    return _demanded(session) or (session.posture.server is ServerTLS.UPGRADE and session.server.tls is None)


def greeted(session: "Session", greeting: Exchange, reply: Reply) -> None:
    """The greeting came. It is told when all is as it should be by then."""
    greeting.got = reply
    if reply.code == 220 and (_wanted(session) or session.announcement.kind is Announce.XCLIENT):
        greeting.kept = True
        _hello(session)
    else:
        greeting.closes = _demanded(session)  # refused: nothing more is said in clear (RFC 5321 §3.1 asks for QUIT)
        if session.announcement.kind is Announce.XCLIENT:  # nor under our name
            session.gate = REFUSED
        _tell(session)


def _hello(session: "Session") -> None:
    """Our own EHLO, for the list."""
    hello = ours(b"EHLO " + session.posture.hello + b"\r\n")
    _say(session, hello, _listed)


def _say(session: "Session", command: Command, answered: Callable[["Session", Reply], None]) -> None:
    """A command of our own before the greeting is told: the first that awaits a reply."""

    def after(exchange: Exchange) -> None:
        """Without a reply the session is over."""
        if exchange.got is not None and not exchange.lost:
            answered(session, exchange.got)

    exchange = Exchange(command.verb, None, session.clock())
    exchange.sent = command
    exchange.after = after
    session.to_server += command.wire
    session.ledger.exchanges.appendleft(exchange)


def _listed(session: "Session", got: Reply) -> None:
    """The list the server gave to our EHLO."""
    offered = Capabilities.from_reply(got) if got.digit == 2 else NO_CAPABILITIES
    if _wanted(session) and b"STARTTLS" in offered:
        _say(session, _STARTTLS, _answered)
    elif _demanded(session):
        securing.no_session(session, "the server does not offer STARTTLS", "starttls-not-supported")
    elif (command := announcing.xclient(session, offered)) is not None:
        _say(session, command, _announced)
    else:
        session.gate = session.gate or HELLO_FIRST  # the hello the server knows is ours
        _tell(session)


def _answered(session: "Session", got: Reply) -> None:
    """Our STARTTLS was answered; if by 220, the handshake has been done by now."""
    if got.digit != 2:  # offered and then refused: somebody may want it in clear
        securing.no_session(session, f"the server refused STARTTLS with {got.code}", "starttls-not-supported")
        return
    securing.on_record(session)
    if session.announcement.kind is Announce.XCLIENT:
        _hello(session)  # the list it gave in clear does not count (RFC 3207 §4.2)
    else:
        _tell(session)


def _announced(session: "Session", got: Reply) -> None:
    """XCLIENT was answered: the server began anew (Postfix XCLIENT_README), or will not have this client."""
    greeting = securing.untold_greeting(session)
    if greeting.got is None:
        raise AssertionError("XCLIENT before the greeting")
    greeting.replies_before = (greeting.got,)  # what it opened with was for us
    greeting.got = got
    if got.digit != 2:
        session.gate = REFUSED
    if got.code in _OUR_FAULT:
        greeting.told = say.NOT_INTRODUCED
        greeting.action = "answer"
    _tell(session)


def _tell(session: "Session") -> None:
    """The server's link is as it should be: now the client's, and then the greeting."""
    greeting = securing.untold_greeting(session)

    def tell() -> None:
        greeting.kept = False
        session.settle()

    if session.posture.client is ClientTLS.IMPLICIT and session.client.tls is None:
        greeting.kept = True
        _secure_client(session, tell)
    else:
        tell()
