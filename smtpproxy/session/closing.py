"""How a session ends: a peer goes, is silent, breaks the protocol, or the proxy is told to stop.

Whatever ends it, three things hold: the client gets one clear reply or a clean close and never a 250 for a mail the
server did not accept (S3); no end of data, LAST or padding is made up (S4): a server link with half a mail on it is
aborted; and the record says what happened.
"""

import math
from collections import deque
from typing import TYPE_CHECKING, Any

from smtpproxy.session import asking
from smtpproxy.session.chunks import Chunks, Swallowed
from smtpproxy.session.content import NOOP, Incoming, Way
from smtpproxy.session.effects import Abort, Close, Shut
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.records import Kind
from smtpproxy.session.state import Phase
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.errors import ProtocolError, Side
from smtpproxy.smtp.registry.verbs import GREETING, UNKNOWN
from smtpproxy.smtp.replies import OwnReply, Reply

if TYPE_CHECKING:
    from smtpproxy.session.session import Session


def half_done(session: "Session") -> bool:
    """Content is on its way to the server and not at its end: the link must not be closed in order."""
    incoming = session.incoming
    if session.reading.within_octets:
        return True
    if isinstance(incoming, Incoming):
        return incoming.way is Way.PASSING
    return isinstance(incoming, Chunks) and incoming.way is Way.PASSING and incoming.left > 0


def close_both(session: "Session", *, abort: bool = False) -> None:
    """End it: the client's link in order, the server's too unless half a mail is on it."""
    if session.closed:
        return
    if asking.let_go(session):
        return
    abort = abort or half_done(session)
    session.closed = True
    session.phase = Phase.CLOSED
    _record_unanswered(session)
    if isinstance(session.incoming, Incoming | Chunks):
        session.incoming.discard()
    if session.begun is not None:
        session.note(Kind.REFUSED, session.begun, why="closed")
        session.begun = None
    if not session.server_gone:
        session.effects.append(Abort(Side.SERVER) if abort else Close(Side.SERVER))
    session.effects.append(Close(Side.CLIENT))


def _record_unanswered(session: "Session") -> None:
    """What was asked, or sent, and will have no reply: it happened all the same."""
    exchanges, session.ledger.exchanges = session.ledger.exchanges, deque()
    for exchange in exchanges:
        if exchange.verb is not GREETING:
            exchange.told = None
            exchange.anomalies += ("unanswered",)
            session.note(Kind.EXCHANGE, exchange.transaction, exchange)


def abort_server(session: "Session") -> None:
    """Cut the server's link so that what was begun on it can't look finished."""
    session.to_server.clear()
    if not session.server_gone:
        session.server_gone = True
        session.effects.append(Abort(Side.SERVER))


def orphaned(session: "Session") -> bool:
    """No further command is taken: the server's link is gone, or the proxy stops and no mail is under way."""
    return session.server_gone or (session.draining and session.begun is None)


def answer_orphan(session: "Session", exchange: Exchange) -> None:
    """A command after the server's link is gone, or while the proxy stops: 221 to QUIT, 421 to all else, and close."""
    reply = say.SHUTTING_DOWN if session.draining else say.OVER
    exchange.told = say.BYE if exchange.verb.name == "QUIT" else reply
    exchange.action = "answer"
    exchange.closes = session.deaf = True
    session.push(exchange)


def tell_unasked(session: "Session", reply: OwnReply, anomaly: str, side: Side) -> None:
    """421 to a client that asked nothing (RFC 5321 §3.8), then close."""
    if asking.let_go(session):
        return
    form = session.form(reply)
    told: dict[str, Any] = {}
    if session.tellable:
        session.to_client += form.raw
        told["told"] = str(form)
    session.note(Kind.NOTE, anomaly=anomaly, side=side.value, **told)
    close_both(session)


def lose_server(session: "Session", reply: OwnReply, anomaly: str, *, abort: bool) -> None:
    """No further reply will come: what is owed first is told `reply`, and both links close."""
    if abort:
        abort_server(session)
    if asking.let_go(session):
        return
    for exchange in session.ledger:
        if exchange.asked is None:
            exchange.lost = True
            continue
        exchange.lost = True
        exchange.anomalies += (anomaly,)
        if exchange.verb.name == "QUIT":
            exchange.told = say.BYE
        elif exchange.told is None or exchange.owed:
            exchange.told = reply
        exchange.closes = True
        session.settle()
        close_both(session)
        return
    tell_unasked(session, reply, anomaly, Side.SERVER)


def lose_content(session: "Session", reply: OwnReply, anomaly: str) -> bool:
    """Content is coming in, and nothing else is owed to the client: it is swallowed to its end, and `reply` told there.

    Told earlier, the reply would reach a client that is sending and does not listen. False if it is not so.
    """
    incoming = session.incoming
    if not isinstance(incoming, Incoming) or incoming.told:
        return False
    incoming.lost(reply, anomaly)
    abort_server(session)
    for exchange in session.ledger:  # our own DATA or NOOP: no reply will come
        exchange.lost = True
    session.settle()
    return True


def server_ended(session: "Session") -> None:
    """The server's link has ended."""
    if session.opaque:
        close_both(session)
        return
    session.server_gone = True
    session.effects.append(Close(Side.SERVER))
    if lose_content(session, say.CONTENT_LOST, "server-lost"):
        session.note(Kind.NOTE, anomaly="server-lost", side="server")
        return
    lose_server(session, say.SERVER_LOST, "server-lost", abort=False)


def client_ended(session: "Session") -> None:
    """The client will send no more: what it has asked is still answered, then both links close."""
    if session.opaque:
        if session.unseen:  # nobody knows what it has asked: the server does
            session.effects.append(Shut(Side.SERVER))
        else:
            close_both(session)
        return
    if session.ledger.exchanges:
        incoming = session.incoming
        if isinstance(incoming, Chunks | Swallowed) and incoming.left and not session.holding:
            session.note(Kind.NOTE, anomaly="client-lost", side="client")
            close_both(session, abort=True)
        return
    if session.receiving and not session.holding:
        session.note(Kind.NOTE, anomaly="client-lost", side="client")
        close_both(session, abort=True)
        return
    close_both(session)


def read_on(session: "Session") -> None:
    """Read what was held back; a client that has ended its side meanwhile is not waited for."""
    if not session.closed:
        session.reading.read()
    if session.reading.ended and not session.closed:
        client_ended(session)


def end_inspection(session: "Session", exchange: Exchange) -> None:
    """From here on octets pass unseen, both ways, and nothing of ours gets in between."""
    session.opaque = True
    session.inspected = False
    rule = {"rule": exchange.rule} if exchange.rule else {}  # none: by the listener's posture
    session.note(Kind.NOTE, None, None, anomaly="inspection-ended", verb=exchange.verb.name, **rule)


def client_lost(session: "Session") -> None:
    """The client's link broke: nothing can be told any more, but what the server was asked is awaited and recorded."""
    if session.client_gone:
        return
    session.client_gone = True
    if session.committed is not None and session.to_client:
        session.note(Kind.NOTE, session.committed, anomaly="unacknowledged", side="client")
    session.to_client.clear()
    if not session.closed:
        session.deaf = True
        awaited = session.ledger.awaited
        if awaited is None or awaited.verb.name not in ("END", "BDAT") or half_done(session):
            session.note(Kind.NOTE, anomaly="client-lost", side="client")
            close_both(session)


def server_violated(session: "Session", error: ProtocolError) -> None:
    """The server broke the protocol: nothing it says can be trusted any more."""
    session.note(Kind.VIOLATION, anomaly=error.anomaly, side="server", why=error.why)
    if lose_content(session, say.CONTENT_BROKEN, error.anomaly):
        return
    lose_server(session, say.SERVER_BROKEN, error.anomaly, abort=True)


def unsolicited(session: "Session", reply: Reply) -> None:
    """A reply nobody asked for. Raises ProtocolError where only a violation explains it."""
    incoming = session.incoming
    if isinstance(incoming, Incoming) and not incoming.told:
        if reply.digit in (4, 5):
            incoming.lost(reply, "early-refusal")
            abort_server(session)
            return
        raise ProtocolError(Side.SERVER, "reply-before-end", str(reply.code))
    if reply.digit in (4, 5):
        session.to_client += b"" if session.mute else reply.raw
        session.note(Kind.NOTE, anomaly="reply-unsolicited", side="server", told=str(reply))
        close_both(session)
        return
    raise ProtocolError(Side.SERVER, "reply-unsolicited", str(reply.code))


def client_violated(session: "Session", anomaly: str, why: str, reply: OwnReply | None = None) -> None:
    """The client broke framing: told in its turn, and nothing behind it is read."""
    session.deaf = True
    if reply is None:
        close_both(session, abort=True)  # what was asked before it stands before it on record
        session.note(Kind.VIOLATION, anomaly=anomaly, side="client", why=why)
        return
    exchange = Exchange(UNKNOWN, None, session.clock())
    exchange.told = reply
    exchange.action = "answer"
    exchange.anomalies = (anomaly,)
    exchange.closes = True
    # In its turn, like the reply: when it was read depends on the cut.
    exchange.after = lambda _: session.note(Kind.VIOLATION, anomaly=anomaly, side="client", why=why)
    session.push(exchange)


def awaited(session: "Session") -> tuple[Side, float]:
    """Who is being waited for, and for how many seconds at most (RFC 5321 §4.5.3.2)."""
    table = session.patience_table
    if session.securing is not None:
        return session.securing.side, table.tls
    if session.asking:  # questions have deadlines of their own
        return Side.CLIENT, math.inf
    if session.receiving and not session.holding:
        return Side.CLIENT, table.content
    if session.unseen and session.reading.ended:  # the last word it waits for may be that about a mail
        return Side.SERVER, table.end
    exchange = session.ledger.awaited
    if exchange is None:
        return Side.CLIENT, table.client
    name = exchange.verb.name
    if name == "GREETING":
        return Side.SERVER, table.greeting
    if name == "DATA":
        return Side.SERVER, table.data
    return Side.SERVER, table.end if name == "END" or exchange.last_chunk else table.command


def timed_out(session: "Session", side: Side, anomaly: str) -> None:
    """`side` was waited for beyond patience (RFC 5321 §4.5.3.2)."""
    if session.closed:
        return
    if session.securing is not None and anomaly == "idle":
        session.tls_failed(f"not done within {session.patience_table.tls:g} s")
        return
    session.note(Kind.VIOLATION, anomaly=anomaly, side=side.value, why="patience is over")
    if side is Side.SERVER:
        if lose_content(session, say.CONTENT_LOST, anomaly):
            return
        lose_server(session, say.SERVER_SILENT, anomaly, abort=True)
        return
    reply = {"too-slow": say.TOO_SLOW, "session-too-long": say.SESSION_TOO_LONG}.get(anomaly, say.IDLE)
    tell_unasked(session, reply, anomaly, side)


def connect_failed(session: "Session", why: str) -> None:
    """No address of the server could be reached: 421 4.4.1 in place of the greeting."""
    session.server_gone = True
    session.note(Kind.NOTE, anomaly="server-unreachable", side="server", why=why)
    if session.opaque:
        close_both(session)
        return
    greeting = session.ledger.head
    if greeting is None or greeting.verb is not GREETING:
        raise AssertionError("the greeting was told already")
    greeting.told = say.CANNOT_REACH
    greeting.lost = True
    greeting.closes = True
    session.settle()


def drain(session: "Session") -> None:
    """Stop when what is in flight is done: at once if nothing is, and not as long as nobody knows."""
    session.draining = True
    if (
        not session.closed
        and not session.opaque
        and not session.ledger.exchanges
        and session.begun is None
        and session.incoming is None
        and session.phase not in (Phase.AUTH, Phase.SECURING)
        and not session.receiving
    ):
        tell_unasked(session, say.SHUTTING_DOWN, "shutting-down", Side.CLIENT)


def stop(session: "Session") -> None:
    """Stop now: 421 for what is under way, and never a made-up end of it."""
    session.draining = True
    if not session.closed:
        if half_done(session):
            abort_server(session)
        tell_unasked(session, say.SHUTTING_DOWN, "shutting-down", Side.CLIENT)


def keep_alive(session: "Session") -> None:
    """Content is held back: a NOOP of ours, so that the server's patience does not run out (architecture §7)."""
    incoming = session.incoming
    if (
        isinstance(incoming, Incoming | Chunks)
        and incoming.way in (Way.HEADER, Way.WHOLE)
        and not session.server_gone
        and session.ledger.awaited is None
    ):
        exchange = Exchange(NOOP.verb, None, session.clock())
        exchange.sent = NOOP
        session.send_own(exchange, NOOP.wire, hold=False)
