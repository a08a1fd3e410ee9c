"""Telling the server who the client is, where the link does not show it; and sessions that pass unseen.

The server sees our address, unless the link comes from the client's own. Three things tell it better:

    foreword   octets before everything else, TLS included: a PROXY header, made elsewhere
    XCLIENT    before the greeting is told: our EHLO, then XCLIENT; the server begins anew with the client's address in
               place of ours, and what it replies stands in the greeting's place (opening.py has the order)
    XFORWARD   before each MAIL that goes to the server, for its log

The rules:

1. XCLIENT and XFORWARD are said only to a server that offers them, with those attributes its list names. A server that
   does not is on record, once, and the session goes on.
2. A server that refused XCLIENT takes the client for us, and may trust us: the client is told the refusal in the
   greeting's place, and nothing of what it says then but QUIT goes on.
3. A refused XFORWARD is on record, and the mail goes on: it was for a log.
4. One line each, never two: behind an XCLIENT with ADDR the server looks anew at who may use it. With values of 255
   octets at most, which is Postfix's own bound, no line of ours comes near 512.
5. What a client says in these words is for the rules to decide, whether we use them or not: denied by default.
"""

import re
from collections.abc import Iterable
from enum import Enum
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, NamedTuple

from smtpproxy.session.ledger import Exchange
from smtpproxy.session.records import Kind
from smtpproxy.smtp.capabilities import Capabilities
from smtpproxy.smtp.commands import Command, compose
from smtpproxy.smtp.registry.rows import Verb
from smtpproxy.smtp.registry.verbs import VERBS
from smtpproxy.smtp.values import Attributes

if TYPE_CHECKING:
    from smtpproxy.session.session import Session

_XCLIENT: Final = VERBS[b"XCLIENT"]
_XFORWARD: Final = VERBS[b"XFORWARD"]
_UNKNOWN: Final = b"[UNAVAILABLE]"
_LONGEST: Final = 255  # octets of a value as it is sent: a longer one is 501 to Postfix
_NOT_XTEXT: Final = re.compile(rb"[^!-*,-<>-~]")


class Announce(Enum):
    """By which command the server is told."""

    NONE = "none"
    XCLIENT = "xclient"
    XFORWARD = "xforward"

    __hash__ = object.__hash__


class Announcement(NamedTuple):
    """What the server is told, and how: where the client is, and where it was going."""

    kind: Announce = Announce.NONE
    client_address: str = ""
    client_port: int = 0
    destination_address: str = ""
    destination_port: int = 0


SILENT: Final = Announcement()


def xclient(session: "Session", offered: Capabilities) -> Command | None:
    """The XCLIENT a server that gave this list is to get; None if that is not wanted, or (on record) not offered."""
    told = session.announcement
    if told.kind is not Announce.XCLIENT:
        return None
    values = (
        *_client(told),
        (b"DESTADDR", _address(told.destination_address)),
        (b"DESTPORT", _port(told.destination_port)),
    )
    command = _composed(_XCLIENT, offered, values, b"ADDR")
    if command is None:
        _not_offered(session, _XCLIENT)
    return command


def xforward(session: "Session", mail: Exchange, command: Command) -> bool:
    """Say XFORWARD before this MAIL, if that is wanted. True: the MAIL follows when it was answered, and not now."""
    told = session.announcement
    if told.kind is not Announce.XFORWARD:
        return False
    offered = session.server.capabilities
    values = (
        *_client(told),
        (b"PROTO", b"LMTP" if session.server.lmtp else b"ESMTP"),  # who says HELO has no list
        (b"HELO", _xtext(session.client.hello)),
        (b"SOURCE", b"REMOTE"),
    )
    own = _composed(_XFORWARD, offered, values)
    if own is None:
        _not_offered(session, _XFORWARD)
        return False
    exchange = Exchange(_XFORWARD, None, session.clock())
    exchange.sent = own
    exchange.transaction = mail.transaction
    session.send_own(exchange, own.wire, hold=False)
    if b"PIPELINING" in offered:
        return False

    def follow(head: Exchange) -> None:
        """One command at a time, for a server that takes no more (RFC 2920 §3)."""
        head.sent = command
        head.sent_at = session.clock()
        session.to_server += command.wire

    mail.conclude = follow
    session.hold(mail)
    session.push(mail)
    return True


def pass_unseen(session: "Session") -> None:
    """Said before anything else: octets pass as they are, both ways, and nothing of ours gets in between.

    No greeting is awaited, no limit but those of time and memory counts, and no 421 is told however it ends. When the
    client has ended its side the server still has a while for its last words (closing.awaited).
    """
    session.opaque = session.unseen = True
    session.inspected = False
    session.holder = None
    session.ledger.exchanges.clear()
    session.note(Kind.NOTE, anomaly="passed-unseen", inspected=False)


def _client(told: Announcement) -> Iterable[tuple[bytes, bytes]]:
    """Nobody looked its name up, so that must not be taken for the proxy's."""
    return (b"NAME", _UNKNOWN), (b"ADDR", _address(told.client_address)), (b"PORT", _port(told.client_port))


def _composed(
    verb: Verb, offered: Capabilities, values: Iterable[tuple[bytes, bytes]], *needed: bytes
) -> Command | None:
    """The command with those of the attributes that are offered; None where none is, or one of `needed` is not."""
    names = {name.upper() for name in offered.parameters(verb.name.encode())}
    pairs = tuple((name, value) for name, value in values if name in names)
    return compose(verb, Attributes(pairs)) if pairs and names.issuperset(needed) else None


def _not_offered(session: "Session", verb: Verb) -> None:
    if not session.unannounced:
        session.unannounced = True
        session.note(Kind.NOTE, anomaly="announce-not-offered", side="server", verb=verb.name)


def _address(text: str) -> bytes:
    """As Postfix writes addresses: IPv6 behind `IPV6:`, and no zone, which means nothing elsewhere."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return _UNKNOWN
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return f"IPV6:{address}".encode() if mapped is None else str(mapped).encode()
    return str(address).encode()


def _port(number: int) -> bytes:
    return b"%d" % number if number else _UNKNOWN


def _xtext(value: bytes) -> bytes:
    """RFC 3461 §4."""
    text = _NOT_XTEXT.sub(lambda found: b"+%02X" % ord(found[0]), value)
    return text if 0 < len(text) <= _LONGEST else _UNKNOWN
