"""What is taken for granted where the record does not say it: what a server said, what the listener was told to do.

Where the server was asked, its reply is on record. Where it was not, because a rule answered, it is taken to agree, and
that this is not known goes with it. What the proxy answered without a rule's word (no recipient left, a handshake that
failed) stays as it was: whoever says it now says the same.
"""

import tempfile
from collections.abc import Callable, Mapping
from typing import Any, Final

from smtpproxy.proving.rebuilding import reply_octets, tls_info
from smtpproxy.proving.recorded import TLS, Connect, Exchange, code_of
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from smtpproxy.session.session import Session
from smtpproxy.session.state import AUTHS, SECURERS, Facts, TLSInfo
from smtpproxy.smtp.errors import Side

_AGREES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("DATA", "XEXCH50"), "354 Go ahead"),
    **dict.fromkeys(SECURERS, "220 Go ahead"),
    **dict.fromkeys((*AUTHS, "SASL"), "235 Ok"),
    "GREETING": "220 server ESMTP",
    "QUIT": "221 Bye",
}


def agreeing(verb: str) -> str:
    """What a server that agrees says to this."""
    return _AGREES.get(verb, "250 Ok")


def replies_to(was: Exchange) -> tuple[list[bytes], bool]:
    """The server's replies to a recorded command, in their order; and whether they are made up."""
    verb = was.verb
    sent = (was.sent or "").partition(" ")[0]
    asked = (was.asked or "").partition(" ")[0]
    broken = verb not in SECURERS and not was.deciders and was.code >= 400 > code_of(was.got or "")  # a link, a framing
    if was.got is not None and not broken and (sent == asked or verb == "SASL"):
        before = () if verb == "GREETING" else was.got_before
        return [reply_octets(text, verb, was.answer) for text in (*before, was.got)], False
    if was.deciders and (was.refused or was.action != "pass"):
        return [reply_octets(agreeing(verb), verb)], True
    return [reply_octets(was.answer, verb)] if was.told is not None else [], False


def spool() -> Any:
    """What held-back content is kept in: of what is announced by BDAT, there are as many octets as were announced."""
    return tempfile.SpooledTemporaryFile(max_size=1 << 20)


def facts_of(connect: Connect, wall: Callable[[], float]) -> Facts:
    """How the session came about."""
    client, client_port = _parted(connect.client)
    server, server_port = _parted(connect.server)
    return Facts(connect.listener, connect.match, client, client_port, server, server_port, wall)


def _parted(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdecimal() else (address, 0)


def handshake(tls: TLS | None, side: Side) -> TLSInfo:
    """The handshake on this link; with nothing on record, one of which only is known that it was."""
    shown = None if tls is None else tls.client if side is Side.CLIENT else tls.server
    return tls_info(shown) or TLSInfo("TLSv1.3", "")


def posture_of(tls: TLS | None, own: Mapping[str, str]) -> Posture:
    """What the listener's posture must have been, by the links as they were before the greeting was told.

    Args:
        tls: the links then; None: in clear.
        own: replies to what the proxy asked by then, by verb.
    """
    client, server = ClientTLS.MIRROR, ServerTLS.MIRROR
    if tls is not None and tls.client is not None:
        client, server = ClientTLS.IMPLICIT, ServerTLS.NEVER
    if tls is not None and tls.server is not None:
        server = ServerTLS.UPGRADE if "STARTTLS" in own else ServerTLS.IMPLICIT
    return Posture(client, server)


def posture_by(session: Session, was: Exchange) -> Posture:
    """The same, by what the client was told of STARTTLS in a list, and who answered it: the server, or the proxy."""
    posture, client, server = session.posture, session.client.tls, session.server.tls
    if was.verb in SECURERS:
        alone = was.sent is None and was.code == 220 and server is None
        return posture._replace(client=ClientTLS.OFFER, server=ServerTLS.NEVER) if alone else posture
    offered, told = (was.got or "").split(), was.answer.split()
    if client is not None and server is None and "AUTH" in told:  # else no password would pass
        return posture._replace(server=ServerTLS.NEVER)
    if client is None and posture.client is ClientTLS.MIRROR and was.code == 250:
        if "STARTTLS" in told and "STARTTLS" not in offered and server is None:
            return posture._replace(client=ClientTLS.OFFER)
        if "STARTTLS" in offered and "STARTTLS" not in told:
            return posture._replace(client=ClientTLS.REFUSE)
    return posture
