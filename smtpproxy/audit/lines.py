"""A session's records as lines of JSON: one flat object a record, the same shape for every reader.

The four hops of an exchange are `asked`, `sent`, `got` and `told`. Most often what was sent is what was asked and what
was told is what was got, so `sent` and `told` stand there only where they differ: `"sent": null` says that nothing went
to the server, `"told": null` that nothing went to the client. docs/audit.md lists every key.

A secret never gets here: it is unprintable by type, and `describe` prints commands by their values (I8).
"""

from functools import lru_cache
from typing import Any

from smtpproxy.session.ledger import Exchange
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.state import Transaction
from smtpproxy.smtp.commands import Command, Malformed, describe
from smtpproxy.smtp.registry.rows import Verb
from smtpproxy.smtp.replies import OwnReply, Reply
from smtpproxy.smtp.values import Path

PSEUDO = {"GREETING": "(connect)", "END": "(end of data)", "OCTETS": "(octets)"}


@lru_cache(maxsize=1024)
def _often(reply: Reply) -> str:
    return str(reply)


def reply_text(reply: Reply) -> str:
    """A reply for people. Servers say the same few things again and again."""
    return _often(reply) if len(reply.raw) <= 256 else str(reply)


def words(value: Any) -> str | None:
    """A command, a reply or a pseudo-verb for people."""
    if value is None:
        return None
    if isinstance(value, Verb):
        return PSEUDO.get(value.name, value.name)
    if isinstance(value, Command | Malformed):
        return describe(value)
    if isinstance(value, Reply):
        return reply_text(value)
    if isinstance(value, OwnReply):
        return reply_text(value.full)
    return str(value)


def path_text(path: Path) -> str:
    """`a@b.example`, or `` for the null reverse-path."""
    local = path.local.decode("utf-8", "backslashreplace")
    return f"{local}@{path.domain.decode('utf-8', 'backslashreplace')}" if path.domain else local


def exchange_fields(exchange: Exchange) -> dict[str, Any]:
    """The keys of one exchange."""
    fields: dict[str, Any] = {"verb": exchange.verb.name, "asked": words(exchange.asked)}
    sent, asked = exchange.sent, exchange.asked
    if sent is not asked:
        fields["sent"] = words(sent)
    elif type(asked) is Command and asked.wire is not asked.line:
        fields["sent"] = describe(asked._replace(line=asked.wire))
    got: Reply | None = exchange.got
    if got is not None:
        fields["got"] = reply_text(got)
    if exchange.replies_before:
        fields["got_before"] = [str(reply) for reply in exchange.replies_before]
    if exchange.told is not got or got is None:
        fields["told"] = words(exchange.told)
    if exchange.noise:
        fields["noise"] = exchange.noise.decode("utf-8", "backslashreplace")
    fields["action"] = exchange.action
    if exchange.rule:
        fields["rule"] = exchange.rule
    if exchange.effects is not None:
        fields.update(exchange.effects.shown())
    if exchange.anomalies:
        fields["anomalies"] = list(exchange.anomalies)
    if exchange.octets:
        fields["octets"] = exchange.octets
    if exchange.transaction is not None:
        fields["tx"] = exchange.transaction.number
    return fields


def transaction_fields(transaction: Transaction) -> dict[str, Any]:
    """The keys of one transaction, as far as it has come."""
    fields: dict[str, Any] = {"tx": transaction.number, "mail": path_text(transaction.reverse_path)}
    if transaction.recipients:
        accepted = [path_text(r.path) for r in transaction.recipients if r.accepted]
        refused = [path_text(r.path) for r in transaction.recipients if r.accepted is False]
        if accepted:
            fields["rcpt"] = accepted
        if refused:
            fields["rcpt_refused"] = refused
    if transaction.digest:
        fields["octets"] = transaction.size
        fields["sha256"] = transaction.digest
    if transaction.outcome is not None:
        fields["reply"] = str(transaction.outcome)
    return fields


def render(record: AuditRecord) -> dict[str, Any]:
    """One record as a flat object, without the session's own keys (id, sequence, wall time)."""
    fields: dict[str, Any] = {"kind": record.kind.value}
    if record.exchange is not None:
        fields.update(exchange_fields(record.exchange))
        fields["seconds"] = round(record.at - record.exchange.asked_at, 6)
    elif record.transaction is not None:
        fields.update(transaction_fields(record.transaction))
    if record.detail:
        for key, value in record.detail.items():
            fields[key] = [(path_text(p), text) for p, text in value] if key == "each" else value
    return fields


__all__ = ["Kind", "render"]
