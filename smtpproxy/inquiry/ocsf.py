"""Mails as events of the Open Cybersecurity Schema Framework: class Email Activity (4009), with the profile
`security_control`, as a table. docs/audit-export.md shows it.

The class wants a sender or a recipient in `email`. Where there is neither (a MAIL with the null reverse-path that was
refused, or what is personal was erased) `email.from` is an address that can't be (RFC 6761 §6.4), and nothing else is
made up. A session without a mail is no event of this class.
"""

from typing import Any, Final

from smtpproxy import __version__
from smtpproxy.inquiry import exporting
from smtpproxy.inquiry.exporting import Field, Mail

VERSION: Final = "1.8.0"
CATEGORY, CLASS, SCAN = 4, 4009, 3
NOBODY: Final = "unknown@unknown.invalid"
ALLOWED, DENIED = 1, 2
_DISPOSITIONS: Final = {  # of a mail that rules did something about, by the gravest
    "rewrite": (11, "Corrected"),
    "redirect": (11, "Corrected"),
    "answer": (2, "Blocked"),
    "discard": (6, "Dropped"),
    "quarantine": (3, "Quarantined"),
    "hangup": (6, "Dropped"),
}
INFORMATIONAL, LOW = 1, 2
_TAKEN_AWAY: Final = frozenset({"answer", "discard", "quarantine", "hangup"})


def _disposition(mail: Mail) -> tuple[int, str]:
    if mail.found.verdict in _DISPOSITIONS:
        return _DISPOSITIONS[mail.found.verdict]
    return (1, "Allowed") if exporting.succeeded(mail) else (2, "Blocked")


def _endpoint(text: str | None) -> dict[str, Any] | None:
    if not text:
        return None
    host, port = exporting.host_and_port(text)
    ip = exporting.address_ip(text)
    made: dict[str, Any] = {"ip": ip} if ip else {"hostname": host}
    return made if port is None else {**made, "port": port}


def _nobody(mail: Mail) -> str | None:
    return mail.found.sender or (None if mail.found.recipients else NOBODY)


def _unmapped(mail: Mail) -> dict[str, Any]:
    found = mail.found
    whole = {
        "outcome": found.outcome,
        "verdict": found.verdict,
        "tx": found.tx,
        "listener": found.listener,
        "hello": found.hello,
        "tls": found.tls,
        "identity": found.identity,
        "sha256": found.sha256,
        "rcpt_refused": exporting.recipients(mail, accepted=False),
        "anomalies": list(mail.marks.get("anomaly", ())),
        "tags": list(mail.marks.get("tag", ())),
        "rules": list(mail.marks.get("rule", ())),
        "observed": list(mail.marks.get("observed", ())),
    }
    return {key: value for key, value in whole.items() if value not in (None, [])}


FIELDS: Final = (
    Field("activity_id", "3, Scan", lambda m: SCAN),
    Field("activity_name", "`Scan`", lambda m: "Scan"),
    Field("category_uid", "4, Network Activity", lambda m: CATEGORY),
    Field("category_name", "`Network Activity`", lambda m: "Network Activity"),
    Field("class_uid", "4009, Email Activity", lambda m: CLASS),
    Field("class_name", "`Email Activity`", lambda m: "Email Activity"),
    Field("type_uid", "400903", lambda m: CLASS * 100 + SCAN),
    Field("time", "`at`, milliseconds since 1970: when it was over", lambda m: round(m.found.at * 1000)),
    Field(
        "severity_id",
        "1, Informational; 2, Low, where a rule refused or took it away",
        lambda m: LOW if m.found.verdict in _TAKEN_AWAY else INFORMATIONAL,
    ),
    Field("status_id", "1, Success; 2, Failure", lambda m: 1 if exporting.succeeded(m) else 2),
    Field("status_code", "the code of the last reply", lambda m: str(m.found.code) if m.found.code else None),
    Field("status_detail", "the outcome, as `audit search` has it", lambda m: m.found.outcome),
    Field("direction_id", "0, Unknown", lambda m: 0),
    Field("action_id", "1, Allowed; 2, Denied", lambda m: ALLOWED if exporting.succeeded(m) else DENIED),
    Field(
        "disposition_id", "1 Allowed, 2 Blocked, 3 Quarantined, 6 Dropped, 11 Corrected", lambda m: _disposition(m)[0]
    ),
    Field("disposition", "its name", lambda m: _disposition(m)[1]),
    Field("firewall_rule.name", "the rule whose verdict it is", lambda m: m.found.rule),
    Field("metadata.version", f"`{VERSION}`", lambda m: VERSION),
    Field("metadata.product.name", "`smtpproxy`", lambda m: "smtpproxy"),
    Field("metadata.product.vendor_name", "`smtpproxy`", lambda m: "smtpproxy"),
    Field("metadata.product.version", "of the program that exports", lambda m: __version__),
    Field("metadata.profiles", "`security_control`", lambda m: ["security_control"]),
    Field("metadata.uid", "the log's origin and the number of the record", exporting.unique),
    Field("metadata.sequence", "the number of the record", exporting.number_of),
    Field("metadata.correlation_uid", "the session", lambda m: m.found.session),
    Field("metadata.log_name", "the log's origin", lambda m: m.origin or None),
    Field("email.from", f"the reverse-path; `{NOBODY}` where there is neither sender nor recipient", _nobody),
    Field("email.to", "all recipients", exporting.recipients),
    Field("email.smtp_from", "the reverse-path", lambda m: m.found.sender or None),
    Field("email.smtp_to", "recipients that were accepted", lambda m: exporting.recipients(m, accepted=True)),
    Field("email.message_uid", "Message-ID, without `<>`", exporting.message_id),
    Field("email.size", "octets of the content", lambda m: m.found.size or None),
    Field("email.uid", "the session and the transaction", lambda m: f"{m.found.session}/{m.found.tx}"),
    Field("from", "the reverse-path", lambda m: m.found.sender or None),
    Field("to", "recipients that were accepted", lambda m: exporting.recipients(m, accepted=True)),
    Field("protocol_name", "`SMTP`", lambda m: "SMTP"),
    Field("src_endpoint", "the client: `ip`", lambda m: _endpoint(m.found.client)),
    Field("dst_endpoint", "the server: `ip` or `hostname`, `port`", lambda m: _endpoint(m.found.server)),
    Field("unmapped", "what there is no field for, by the names of `audit search`", _unmapped),
)


def event(mail: Mail) -> dict[str, Any] | None:
    """One event; None: it is none of this class."""
    return exporting.document(FIELDS, mail) if exporting.is_mail(mail) else None
