"""Patience: who a session waits for, and whether that has gone on for too long (RFC 5321 §4.5.3.2).

Time is counted from when the conversation last got on, and not while this machine itself was asleep. A peer that takes
octets too slowly is waited for like one that sends none.
"""

from typing import TYPE_CHECKING

from smtpproxy.smtp.errors import Side

if TYPE_CHECKING:
    from smtpproxy.net.relay import Relay


def out_of_patience(relay: "Relay", now: float) -> tuple[Side | None, str]:
    """Who was waited for beyond patience, and for what: "idle", "too-slow", "session-too-long". None: nobody."""
    session, table = relay.session, relay.session.patience_table
    since = relay.waiting_since
    if now - relay.started > table.session:
        return Side.CLIENT, "session-too-long"
    if session.to_client and now - max(relay.client.moved_at, since) > table.content:
        return Side.CLIENT, "idle"
    server = relay.server
    if session.to_server and server is not None and now - max(server.moved_at, since) > table.content:
        return Side.SERVER, "idle"
    side, seconds = session.patience()
    if now - since > seconds and not (side is Side.CLIENT and session.to_server):
        return side, "idle"
    if relay.content_at:
        octets = relay.client.received - relay.content_from
        begun = max(relay.content_at, relay.reactor.resumed_at)
        if session.receiving and now - begun > table.content + octets / table.rate:
            held_up = len(session.to_server) > session.limits.unsent  # then the client is not read
            return Side.SERVER if held_up else Side.CLIENT, "too-slow"
    return None, ""
