"""STARTTLS on both sides, as far as it is the session's: the order of events, and what must not cross the boundary.

Server first: the client is told 220 only when the far link *is* encrypted. The handshakes are the driver's, asked for
by `StartTLS` effects and answered by `tls_done` or `tls_failed`; all that time the client is held. Octets that came in
clear behind STARTTLS, or behind the server's 220 to it, never act inside TLS, on either side, in whatever piece they
came: the session ends there (CVE-2011-0411, CVE-2021-38371). A handshake that fails is 454, never clear text instead.
"""

from typing import TYPE_CHECKING

from smtpproxy.session import closing
from smtpproxy.session.effects import StartTLS
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.records import Kind
from smtpproxy.session.state import Phase, TLSInfo
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.replies import Reply

if TYPE_CHECKING:
    from smtpproxy.session.session import Session


def begin(session: "Session", exchange: Exchange, reply: Reply) -> None:
    """The server said 220 to a TLS command: not told yet, its handshake comes first."""
    session.securing = exchange, reply
    session.effects.append(StartTLS(Side.SERVER))


def done(session: "Session", side: Side, info: TLSInfo) -> None:
    """A handshake succeeded: the client's comes next, or all that was known is forgotten (RFC 3207 §4.2)."""
    if session.closed or session.securing is None or _injected(session):
        return
    exchange, reply = session.securing
    if side is Side.SERVER:
        session.server.tls = info
        exchange.got = reply
        session.settle()
        session.effects.append(StartTLS(Side.CLIENT))
        return
    session.client.tls = info
    session.securing = None
    session.client.forget()
    session.server.forget()
    session.transaction = None
    session.phase = Phase.GREETED
    server = session.server.tls
    session.note(Kind.TLS, client=info._asdict(), server=server._asdict() if server is not None else None)
    session.hold(None)
    session.reading.read()


def failed(session: "Session", side: Side, why: str) -> None:
    """A handshake failed: 454 to the client while that can still be told, else both links are cut."""
    if session.closed or session.securing is None:
        return
    exchange, _ = session.securing
    session.securing = None
    session.note(Kind.NOTE, anomaly="tls-failed", side=side.value, why=why)
    if side is Side.CLIENT:
        closing.close_both(session, abort=True)
        return
    closing.abort_server(session)
    exchange.told = say.TLS_NOT_AVAILABLE
    exchange.lost = True
    session.settle()
    session.reading.read()


def _injected(session: "Session") -> bool:
    """Octets came in clear behind STARTTLS."""
    if not session.reading.left:
        return False
    closing.abort_server(session)
    session.client_violated("octets-behind-starttls", f"{session.reading.left} octets")
    return True
