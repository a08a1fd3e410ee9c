"""A session's records as lines of JSON: one flat object a record, the same shape for every reader.

Render gives the keys in two parts (entries.py): what is public, and what is about persons or what peers wrote.

The four hops of an exchange are `asked`, `sent`, `got` and `told`. Most often what was sent is what was asked and what
was told is what was got, so `sent` and `told` stand there only where they differ: `"sent": null` says that nothing went
to the server, `"told": null` that nothing went to the client. docs/audit.md lists every key.

A secret never gets here: it is unprintable by type, and `describe` prints commands by their values (I8).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from smtpproxy.session.ledger import Exchange
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.state import MAILS, Transaction
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


# Keys of a record that are about persons, or are what peers wrote; the others are public (entries.py).
_ENDS: Final = frozenset({"client", "local", "peer", "destination", "proxy"})  # of links: no mail address is in them
_PATHS: Final = frozenset({"mail", "rcpt", "rcpt_refused"})
_TEXTS: Final = frozenset({"asked", "sent", "got", "told", "got_before", "noise", "reply", "each", "observed"})
_COMMANDS: Final = frozenset({"asked", "sent"})
_SIGNING_IN: Final = frozenset({"AUTH", "SASL"})  # verbs whose replies may name who it is, before a record does
_HANDSHAKE: Final = frozenset({"sni", "ja4"})  # of one that failed; of one that did not, they stand in its `client`
PERSONAL: Final = _ENDS | _PATHS | _TEXTS | _HANDSHAKE | {"identity", "message_id", "transcript"}
_WRITTEN: Final = frozenset({Kind.VIOLATION, Kind.NOTE})  # their `why` may quote a peer


class Addresses(Protocol):
    """Keeps the addresses of one session from being read."""

    def path(self, path: Path) -> str:
        """As `path_text`."""

    def command(self, text: str) -> str:
        """A command, or what stands in its place: all replaced that may name somebody."""

    def text(self, text: str) -> str:
        """A reply, or anything else: every address in it replaced."""

    def signing_in(self, text: str) -> str:
        """A reply to AUTH."""

    def identity(self, text: str) -> str:
        """A user name."""

    def message_id(self, text: str) -> str:
        """A Message-ID."""


class Private(NamedTuple):
    """What is done to what is personal before it is written anywhere.

    Attributes:
        addresses: replaced by this.
        seal: makes octets unreadable but for an auditor; the second argument binds them to their record.
    """

    addresses: Addresses | None = None
    seal: Callable[[bytes, bytes], str] | None = None


def render(record: AuditRecord, line: dict[str, Any], private: Private | None = None) -> dict[str, Any]:
    """One record as a flat object: what is public is added to `line`, what is personal is what comes back."""
    line["kind"] = record.kind.value
    personal: dict[str, Any] = {}
    path = path_text if private is None or private.addresses is None else private.addresses.path
    if record.exchange is not None:
        _exchange(record.exchange, line, personal, path)
        line["seconds"] = round(record.at - record.exchange.asked_at, 6)
    elif record.transaction is not None:
        _transaction(record.transaction, line, personal, path)
    if record.detail:
        for key, value in record.detail.items():
            if key == "each":
                personal[key] = [(path(one), text) for one, text in value]
            elif key in PERSONAL or (key == "why" and record.kind in _WRITTEN):
                personal[key] = value
            else:
                line[key] = value
    return _kept_private(line, personal, private) if private is not None and personal else personal


def rendered(record: AuditRecord) -> dict[str, Any]:
    """One record as a flat object, in one piece: for who looks at it here, and writes it nowhere."""
    line: dict[str, Any] = {}
    personal = render(record, line)
    return line | personal


def exchange_fields(exchange: Exchange) -> dict[str, Any]:
    """The keys of one exchange, but for those that say when it was."""
    line: dict[str, Any] = {}
    personal: dict[str, Any] = {}
    _exchange(exchange, line, personal, path_text)
    return line | personal


def _exchange(exchange: Exchange, line: dict[str, Any], personal: dict[str, Any], path: Callable[[Path], str]) -> None:
    """The keys of one exchange."""
    sent, asked, got, told = exchange.sent, exchange.asked, exchange.got, exchange.told
    line["verb"] = exchange.verb.name
    personal["asked"] = words(asked)
    if sent is not asked:
        personal["sent"] = words(sent)
    elif type(asked) is Command and asked.wire is not asked.line:
        personal["sent"] = describe(asked._replace(line=asked.wire))
    if got is not None:
        personal["got"] = reply_text(got)
    if exchange.replies_before:
        personal["got_before"] = [str(reply) for reply in exchange.replies_before]
    if told is not got or got is None:
        personal["told"] = words(told)
    if exchange.noise:
        personal["noise"] = exchange.noise.decode("utf-8", "backslashreplace")
    line["action"] = exchange.action
    if told is not None:
        line["code"] = told.code
        if told.code >= 400 and exchange.verb.name in MAILS and exchange.transaction is not None:
            personal["mail"] = path(exchange.transaction.reverse_path)
    if exchange.rule:
        line["rule"] = exchange.rule
    if exchange.effects is not None:
        for key, value in exchange.effects.shown().items():
            (personal if key in PERSONAL else line)[key] = value
    if exchange.anomalies:
        line["anomalies"] = list(exchange.anomalies)
    if exchange.octets:
        line["octets"] = exchange.octets
    if exchange.transaction is not None:
        line["tx"] = exchange.transaction.number
    if exchange.got_at:
        line["waited"] = round(exchange.got_at - exchange.sent_at, 6)


def _transaction(
    transaction: Transaction, line: dict[str, Any], personal: dict[str, Any], path: Callable[[Path], str]
) -> None:
    """The keys of one transaction, as far as it has come."""
    line["tx"] = transaction.number
    personal["mail"] = path(transaction.reverse_path)
    if transaction.recipients:
        accepted = [path(r.path) for r in transaction.recipients if r.accepted]
        refused = [path(r.path) for r in transaction.recipients if r.accepted is False]
        if accepted:
            personal["rcpt"] = accepted
        if refused:
            personal["rcpt_refused"] = refused
    if transaction.digest:
        line["octets"] = transaction.size
        line["sha256"] = transaction.digest
        if transaction.message_id:
            personal["message_id"] = transaction.message_id.decode("utf-8", "backslashreplace")
    if transaction.outcome is not None:
        line["code"] = transaction.outcome.code
        personal["reply"] = str(transaction.outcome)


def _kept_private(line: dict[str, Any], personal: dict[str, Any], private: Private) -> dict[str, Any]:
    """What is personal, its transcript sealed for the auditor as it is, and the addresses of all else replaced."""
    transcript = personal.pop("transcript", None)
    if private.addresses is not None:
        replies = private.addresses.signing_in if line.get("verb") in _SIGNING_IN else private.addresses.text
        personal = {key: _replaced(key, value, private.addresses, replies) for key, value in personal.items()}
    if transcript is not None:
        if private.seal is not None:
            about = f"{line.get('session', '')}:{line.get('seq', 0)}".encode()
            transcript = {"sealed": private.seal(msgspec.json.encode(transcript), about)}
        elif private.addresses is not None:
            transcript = _hidden(transcript, private.addresses, replies)
        personal["transcript"] = transcript
    return personal


def _hidden(transcript: dict[str, str], addresses: Addresses, replies: Callable[[str], str]) -> dict[str, str]:
    """A transcript that nobody seals: of what a mail says there is its length alone, for names are everywhere in it."""
    shown = {}
    for key, text in transcript.items():
        if key == "content":
            shown[key] = f"<{len(text)} characters>"
        else:
            shown[key] = addresses.command(text) if key == "asked_octets" else replies(text)
    return shown


def _replaced(key: str, value: Any, addresses: Addresses, replies: Callable[[str], str]) -> Any:
    """A value of a record with every address in it replaced; what was made of paths is so already."""
    if key in _PATHS or key in _ENDS or value is None:
        return value
    if isinstance(value, str):
        if key == "identity":
            return addresses.identity(value)
        if key in _COMMANDS:
            return addresses.command(value)
        return addresses.message_id(value) if key == "message_id" else replies(value)
    if isinstance(value, list | tuple):
        return [_replaced("", one, addresses, replies) for one in value]
    if isinstance(value, dict):
        kinds = {name: name if name in _COMMANDS else "" for name in value}
        return {name: _replaced(kinds[name], one, addresses, replies) for name, one in value.items()}
    return value
