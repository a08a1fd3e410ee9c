"""Audit records: what a session says of itself, as values.

One record an exchange, not one a hop, and one for each event of the links and of the transactions (the names are
OpenSMTPD's where it has one). A record holds the values themselves; the audit floor turns them into text, and a secret
among them is unprintable by type.
"""

from enum import Enum
from typing import Any, Final, NamedTuple

from smtpproxy.session.ledger import Exchange
from smtpproxy.smtp.commands import Command, Malformed, octets_of

CONTENT: Final = 65_536  # octets of a mail in a transcript


class Kind(Enum):
    """What a record is about; the value is its stable name."""

    CONNECT = "link-connect"
    TLS = "link-tls"
    AUTH = "link-auth"
    CLOSE = "link-close"
    EXCHANGE = "exchange"
    BEGIN = "tx-begin"
    COMMIT = "tx-commit"
    REFUSED = "tx-refused"
    VIOLATION = "violation"
    NOTE = "note"

    __hash__ = object.__hash__


class AuditRecord(NamedTuple):
    """One record. `exchange` and `transaction` are the session's own objects, no longer changed when recorded."""

    kind: Kind
    at: float  # the session's clock
    exchange: Any = None  # Exchange
    transaction: Any = None  # Transaction
    detail: dict[str, Any] | None = None


def transcript(exchange: Exchange) -> dict[str, Any]:
    """What a full transcript has beside the record of an exchange: its octets as they were, but for secrets."""
    asked = exchange.asked
    octets: dict[str, Any] = {
        "asked_octets": shown(octets_of(asked)) if isinstance(asked, Command | Malformed) else "",
        "got_octets": shown(b"".join(reply.raw for reply in (*exchange.replies_before, exchange.got) if reply)),
        "content": shown(exchange.content),
    }
    return {"transcript": {key: value for key, value in octets.items() if value}}


def shown(octets: bytes) -> str:
    """Octets as text from which they can be had back."""
    return octets.decode("utf-8", "backslashreplace")
