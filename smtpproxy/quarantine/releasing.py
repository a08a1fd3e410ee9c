"""Releasing a mail: it is sent on to where it was meant to go, and then counts as released. Never twice by accident.

Who releases has the mail claimed, so that two at once do not send it twice; and it is looked at again once it is. It
moves after the server's 250, not before: a crash in between leaves it to be released again, which is the lesser harm.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from smtpproxy.quarantine.sending import Encryption, Envelope, NotSent, Sent, send
from smtpproxy.quarantine.store import RELEASED, QuarantineError, Store


class Way(NamedTuple):
    """How mails are released: where to and to whom, in place of what their records say; TLS; even a second time."""

    server: tuple[str, int] | None = None
    to: Sequence[str] = ()
    encryption: Encryption = "offered"
    again: bool = False


class Released(NamedTuple):
    """Where it went, and what the server said; None: it had been released before, and nothing was sent."""

    server: str
    sent: Sent


def release(store: Store, name: str, way: Way, now: float) -> Released | None:
    """Send a mail on.

    Args:
        now: seconds since 1970, for its record.

    Raises:
        QuarantineError: it is not here, another has it, or it can't be read.
        NotSent: it was not sent; or it was, and could not be moved, which the text says.
    """
    with store.claimed(name) as mail:
        if mail.state == RELEASED and not way.again:
            return None
        host, port = way.server or server_of(mail.record)
        envelope = envelope_of(mail.record, way.to)
        tls = mail.record.get("tls")
        with store.content(mail) as content:
            sent = send(
                host,
                port,
                content,
                envelope,
                encryption=way.encryption,
                encrypted_before=isinstance(tls, Mapping) and "server" in tls,
            )
        server = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        at = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        try:
            store.release(mail, {"at": at, "server": server, "rcpt": list(envelope.recipients), "reply": sent.reply})
        except QuarantineError as error:
            raise NotSent(f"it was sent ({sent.reply}), and does not count as released: {error}") from error
    return Released(server, sent)


def server_of(record: Mapping[str, Any]) -> tuple[str, int]:
    """The server a mail was meant for.

    Raises:
        NotSent: its record does not say.
    """
    host, _, port = str(record.get("server", "")).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit():
        raise NotSent("its record names no server: say --server")
    return host, int(port)


def envelope_of(record: Mapping[str, Any], to: Sequence[str] = ()) -> Envelope:
    """From whom to whom; `to` in place of its recipients.

    Raises:
        NotSent: its record does not say.
    """
    sender, recipients = record.get("mail"), list(to) or _texts(record.get("rcpt"))
    if not isinstance(sender, str) or not recipients:
        raise NotSent("its record does not say from whom and to whom it is")
    said = record.get("rcpt_parameters")
    of_recipients = {str(one): _table(its) for one, its in said.items()} if isinstance(said, dict) else {}
    return Envelope(sender, recipients, _table(record.get("parameters")), of_recipients)


def _texts(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _table(value: object) -> dict[str, str]:
    return {str(key): str(its) for key, its in value.items()} if isinstance(value, dict) else {}
