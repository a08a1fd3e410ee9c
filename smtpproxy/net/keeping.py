"""What the quarantine is told of a mail it keeps: how it came, its envelope, and by whose word it is kept.

docs/quarantine.md has the keys. `server` is whom the mail was meant for, so that it can be sent there later.
"""

from collections.abc import Iterable
from typing import Any

from smtpproxy.config import Endpoint
from smtpproxy.session.session import Session
from smtpproxy.session.state import Transaction
from smtpproxy.session.verdicts import Keep
from smtpproxy.smtp.values import Parameter, Path, Secret


def facts(session_id: str, session: Session, keep: Keep) -> dict[str, Any]:
    """The record of a mail, as far as it is known before its content has been read."""
    about, client, server = session.facts, session.client, session.server
    found: dict[str, Any] = {
        "session": session_id,
        "listener": about.listener,
        "match": about.match,
        "client": client.address,
        "server": str(Endpoint(about.server, about.server_port)) if about.server else server.address,
        "address": server.address,
        "hello": _text(client.hello),
        "lmtp": client.lmtp,
        "tls": {side: peer.tls.version for side, peer in (("client", client), ("server", server)) if peer.tls},
        "identity": session.identity,
    }
    transaction = getattr(session.incoming, "transaction", None) or session.transaction
    found = {key: value for key, value in found.items() if value}
    if transaction is not None:
        found |= _envelope(transaction)
    return {**found, "rule": keep.rule, "why": keep.why, **keep.facts}


def _envelope(transaction: Transaction) -> dict[str, Any]:
    """Recipients are those the server accepted."""
    accepted = [recipient for recipient in transaction.recipients if recipient.accepted]
    return {
        "tx": transaction.number,
        "mail": address(transaction.reverse_path),
        "rcpt": [address(recipient.path) for recipient in accepted],
        "parameters": _said(transaction.parameters),
        "rcpt_parameters": {address(one.path): _said(one.parameters) for one in accepted if _said(one.parameters)},
        **({"tags": list(transaction.tags)} if transaction.tags else {}),
    }


def address(path: Path) -> str:
    """As it stands on the wire, without angle brackets; octets that are no UTF-8 can be had back (surrogateescape)."""
    return _text(path.encode()[1:-1])


def _said(parameters: Iterable[Parameter]) -> dict[str, str]:
    """Parameters by keyword. A secret one is for the server it was said to."""
    return {_text(keyword): _text(value or b"") for keyword, value in parameters if not isinstance(value, Secret)}


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")
