"""Mails as documents of the Elastic Common Schema: what stands where, as a table. docs/audit-export.md shows it.

The schema has no place for the envelope of SMTP; its sender and recipients stand where those of the header would, which
the record does not have. What the schema has no field for is under `smtpproxy`, as it wants its own fields of others.
"""

from typing import Any, Final

from smtpproxy import __version__
from smtpproxy.inquiry import exporting
from smtpproxy.inquiry.exporting import Field, Mail
from smtpproxy.inquiry.wording import moment_text

VERSION: Final = "9.4.0"


def _category(mail: Mail) -> list[str]:
    return ["email", "network"] if exporting.is_mail(mail) else ["network"]


def _type(mail: Mail) -> list[str]:
    good = exporting.succeeded(mail)
    ended = [] if good is None else ["allowed" if good else "denied"]
    return [*(["info"] if exporting.is_mail(mail) else ["connection", "end"]), *ended]


def _outcome(mail: Mail) -> str:
    good = exporting.succeeded(mail)
    return "unknown" if good is None else "success" if good else "failure"


def _start(mail: Mail) -> str | None:
    return None if _duration(mail) is None else moment_text(mail.session.began)


def _end(mail: Mail) -> str | None:
    return None if exporting.is_mail(mail) else moment_text(mail.found.at)


def _duration(mail: Mail) -> int | None:
    """In nanoseconds, to the microsecond that a moment has; None if the clock was set back meanwhile."""
    seconds = mail.found.at - mail.session.began
    return None if exporting.is_mail(mail) or seconds < 0 else round(seconds * 1_000_000) * 1000


def _kind_of_network(mail: Mail) -> str | None:
    ip = exporting.address_ip(mail.found.client)
    return None if ip is None else "ipv6" if ":" in ip else "ipv4"


def _tls(mail: Mail) -> str | None:
    version = (mail.found.tls or "").removeprefix("TLSv")
    return {"": None, "1": "1.0"}.get(version, version)


def _related_ips(mail: Mail) -> list[str]:
    both = (exporting.address_ip(mail.found.client), exporting.address_ip(mail.found.server))
    return list(dict.fromkeys(ip for ip in both if ip))


def _related_users(mail: Mail) -> list[str]:
    people = [mail.found.identity, mail.found.sender, *exporting.recipients(mail)]
    return list(dict.fromkeys(one for one in people if one))


def _related_hosts(mail: Mail) -> list[str]:
    return list(dict.fromkeys(name for name in (mail.found.hello, _domain(mail)) if name))


def _host(mail: Mail) -> str | None:
    return exporting.host_and_port(mail.found.server)[0] if mail.found.server else None


def _domain(mail: Mail) -> str | None:
    return _host(mail) if exporting.address_ip(mail.found.server) is None else None


def _port(mail: Mail) -> int | None:
    return exporting.host_and_port(mail.found.server)[1] if mail.found.server else None


def _local_id(mail: Mail) -> str | None:
    return f"{mail.found.session}/{mail.found.tx}" if exporting.is_mail(mail) else None


def _null_sender(mail: Mail) -> bool | None:
    return True if mail.found.sender == "" and exporting.is_mail(mail) else None


FIELDS: Final = (
    Field("@timestamp", "`at`: when it was over", lambda m: moment_text(m.found.at)),
    Field("ecs.version", f"`{VERSION}`", lambda m: VERSION),
    Field("event.kind", "`event`", lambda m: "event"),
    Field("event.category", "`email` and `network`; of a session without mail `network`", _category),
    Field("event.type", "`info`, of a session without mail `connection` and `end`; `allowed` or `denied`", _type),
    Field("event.outcome", "`success`, `failure`; `unknown` of a session without mail whose worker died", _outcome),
    Field("event.action", "the gravest thing rules did: `pass`, `rewrite`, `answer` …", lambda m: m.found.verdict),
    Field("event.code", "the code of the last reply", lambda m: str(m.found.code) if m.found.code else None),
    Field(
        "event.id", "the log's origin, or if it has none the session, and the number of the record", exporting.unique
    ),
    Field("event.sequence", "the number of the record", exporting.number_of),
    Field("event.start", "of a session without mail: when it began", _start),
    Field("event.end", "of a session without mail: when it was over", _end),
    Field("event.duration", "of a session without mail, in nanoseconds", _duration),
    Field("event.module", "`smtpproxy`", lambda m: "smtpproxy"),
    Field("event.dataset", "`smtpproxy.audit`", lambda m: "smtpproxy.audit"),
    Field("email.from.address", "the reverse-path", lambda m: [m.found.sender] if m.found.sender else None),
    Field("email.sender.address", "the reverse-path", lambda m: m.found.sender or None),
    Field("email.to.address", "all recipients", exporting.recipients),
    Field("email.message_id", "Message-ID, without `<>`", exporting.message_id),
    Field("email.local_id", "of a mail: the session and the transaction", _local_id),
    Field("source.address", "the client", lambda m: m.found.client or None),
    Field("source.ip", "the client", lambda m: exporting.address_ip(m.found.client)),
    Field("destination.address", "the server's host", _host),
    Field("destination.domain", "the same, if it is a name", _domain),
    Field("destination.ip", "the same, if it is an address", lambda m: exporting.address_ip(m.found.server)),
    Field("destination.port", "the server's port", _port),
    Field("network.protocol", "`smtp`", lambda m: "smtp"),
    Field("network.transport", "`tcp`", lambda m: "tcp"),
    Field("network.type", "`ipv4`, `ipv6`", _kind_of_network),
    Field("tls.established", "the client's link was encrypted", lambda m: m.found.tls is not None),
    Field("tls.version", "of the client's link: `1.3`", _tls),
    Field("tls.version_protocol", "`tls`, where it was", lambda m: "tls" if m.found.tls else None),
    Field("user.name", "whom the client logged in as", lambda m: m.found.identity),
    Field("rule.name", "the rule whose verdict it is", lambda m: m.found.rule),
    Field("tags", "tags that rules put on", lambda m: exporting.marks(m, "tag")),
    Field("related.ip", "client and server", _related_ips),
    Field("related.hosts", "what the client called itself; the server, if it is a name", _related_hosts),
    Field("related.user", "log-in, sender, recipients", _related_users),
    Field("related.hash", "SHA-256 of the content", lambda m: [m.found.sha256] if m.found.sha256 else None),
    Field("observer.name", "the log's origin", lambda m: m.origin or None),
    Field("observer.product", "`smtpproxy`", lambda m: "smtpproxy"),
    Field("observer.type", "`proxy`", lambda m: "proxy"),
    Field("observer.version", "of the program that exports", lambda m: __version__),
    Field("smtpproxy.session", "the session", lambda m: m.found.session),
    Field("smtpproxy.session_ended", "`closed`, `refused`, `lost`; nothing while it goes on", lambda m: m.session.how),
    Field("smtpproxy.tx", "the transaction in it; 0: refused at MAIL, or no mail", lambda m: m.found.tx),
    Field("smtpproxy.outcome", "as `audit search` has it", lambda m: m.found.outcome),
    Field("smtpproxy.listener", "the listener", lambda m: m.found.listener),
    Field("smtpproxy.hello", "what the client called itself", lambda m: m.found.hello),
    Field("smtpproxy.server_tls", "TLS of the server's link: `TLSv1.3`", lambda m: m.session.server_tls),
    Field("smtpproxy.octets", "of the content", lambda m: m.found.size or None),
    Field("smtpproxy.null_sender", "true where the reverse-path is `<>`", _null_sender),
    Field("smtpproxy.rcpt_refused", "recipients that were refused", lambda m: exporting.recipients(m, accepted=False)),
    Field("smtpproxy.anomalies", "anomalies", lambda m: exporting.marks(m, "anomaly")),
    Field("smtpproxy.rules", "rules that acted", lambda m: exporting.marks(m, "rule")),
    Field("smtpproxy.observed", "rules that would have", lambda m: exporting.marks(m, "observed")),
    Field("smtpproxy.erased", "what was there and was erased: `client`, `sender`, `recipient`", exporting.erased),
)


def document(mail: Mail) -> dict[str, Any]:
    """One document."""
    return exporting.document(FIELDS, mail)
