"""Mails as events of the Open Cybersecurity Schema Framework, as tables. docs/audit-export.md shows them.

A mail is of the class Email Activity (4009), a session without one of Network Activity (4001), both with the profile
`security_control`. What is said of an action is what rules did, not what the server did: that is the status.

Email Activity wants a sender or a recipient in `email`. Where there is neither (a MAIL with the null reverse-path that
was refused, or what is personal was erased) `email.from` is an address that can't be (RFC 6761 §6.4). Network Activity
wants a client or a server; where there is neither, the client is a host that can't be. Nothing else is made up.
"""

from typing import Any, Final

from smtpproxy import __version__
from smtpproxy.inquiry import exporting
from smtpproxy.inquiry.exporting import Field, Mail

VERSION: Final = "1.8.0"
NETWORK, MAIL_CLASS, NETWORK_CLASS = 4, 4009, 4001
SCAN: Final = 3
_ACTIVITIES: Final = {"closed": (2, "Close"), "lost": (3, "Reset"), "refused": (5, "Refuse")}  # how sessions end
NOWHERE: Final = "unknown.invalid"
NOBODY: Final = f"unknown@{NOWHERE}"
ALLOWED, DENIED, MODIFIED = 1, 2, 4
_DISPOSITIONS: Final = {  # by the gravest that rules did: action, disposition and its name
    "pass": (ALLOWED, 1, "Allowed"),
    "rewrite": (MODIFIED, 11, "Corrected"),
    "redirect": (MODIFIED, 11, "Corrected"),
    "answer": (DENIED, 2, "Blocked"),
    "discard": (DENIED, 6, "Dropped"),
    "quarantine": (DENIED, 3, "Quarantined"),
    "hangup": (DENIED, 6, "Dropped"),
}
_STATUS: Final = {None: (0, "Unknown"), True: (1, "Success"), False: (2, "Failure")}
INFORMATIONAL, LOW = 1, 2
TCP: Final = 6


def _disposition(mail: Mail) -> tuple[int, int, str]:
    return _DISPOSITIONS["answer" if mail.session.how == "refused" else mail.found.verdict]


def _activity(mail: Mail) -> tuple[int, str]:
    return _ACTIVITIES.get(mail.session.how or "", (0, "Unknown"))


def _endpoint(text: str | None) -> dict[str, Any] | None:
    if not text:
        return None
    host, port = exporting.host_and_port(text)
    ip = exporting.address_ip(text)
    made: dict[str, Any] = {"ip": ip} if ip else {"hostname": host}
    return made if port is None or port > 65_535 else {**made, "port": port}


def _client(mail: Mail) -> dict[str, Any] | None:
    there = exporting.is_mail(mail) or mail.found.client or mail.found.server
    return _endpoint(mail.found.client) if there else {"hostname": NOWHERE}


def _nobody(mail: Mail) -> str | None:
    return mail.found.sender or (None if exporting.recipients(mail) else NOBODY)


def _connection(mail: Mail) -> dict[str, Any]:
    ip = exporting.address_ip(mail.found.client)
    version = {} if ip is None else {"protocol_ver_id": 6 if ":" in ip else 4}
    return {"direction_id": 0, "protocol_name": "tcp", "protocol_num": TCP, **version}


def _duration(mail: Mail) -> int | None:
    """In milliseconds; None if the clock was set back meanwhile."""
    seconds = mail.found.at - mail.session.began
    return None if seconds < 0 else round(seconds * 1000)


def _unmapped(mail: Mail) -> dict[str, Any]:
    found, is_mail = mail.found, exporting.is_mail(mail)
    whole = {
        "outcome": found.outcome,
        "verdict": found.verdict,
        "tx": found.tx,
        "session_ended": mail.session.how,
        "listener": found.listener,
        "hello": found.hello,
        "tls": found.tls if is_mail else None,  # which Email Activity has no attribute for
        "server_tls": mail.session.server_tls,
        "identity": found.identity,
        "sha256": found.sha256,
        "null_sender": True if is_mail and found.sender == "" else None,
        "rcpt_refused": exporting.recipients(mail, accepted=False),
        "anomalies": exporting.marks(mail, "anomaly"),
        "tags": exporting.marks(mail, "tag"),
        "rules": exporting.marks(mail, "rule"),
        "observed": exporting.marks(mail, "observed"),
        "erased": exporting.erased(mail),
    }
    return {key: value for key, value in whole.items() if value not in (None, [])}


BOTH: Final = (
    Field("category_uid", "4, Network Activity", lambda m: NETWORK),
    Field("category_name", "`Network Activity`", lambda m: "Network Activity"),
    Field("time", "`at`, milliseconds since 1970: when it was over", lambda m: round(m.found.at * 1000)),
    Field(
        "severity_id",
        "1, Informational; 2, Low, where a rule refused or took it away, or it was not let in",
        lambda m: LOW if _disposition(m)[0] == DENIED else INFORMATIONAL,
    ),
    Field("status_id", "1, Success; 2, Failure; 0, Unknown", lambda m: _STATUS[exporting.succeeded(m)][0]),
    Field("status", "its name", lambda m: _STATUS[exporting.succeeded(m)][1]),
    Field("status_code", "the code of the last reply", lambda m: str(m.found.code) if m.found.code else None),
    Field("status_detail", "the outcome, as `audit search` has it", lambda m: m.found.outcome),
    Field("action_id", "by what rules did: 1, Allowed; 2, Denied; 4, Modified", lambda m: _disposition(m)[0]),
    Field(
        "disposition_id", "1 Allowed, 2 Blocked, 3 Quarantined, 6 Dropped, 11 Corrected", lambda m: _disposition(m)[1]
    ),
    Field("disposition", "its name", lambda m: _disposition(m)[2]),
    Field("firewall_rule.name", "the rule whose verdict it is", lambda m: m.found.rule),
    Field("metadata.version", f"`{VERSION}`", lambda m: VERSION),
    Field("metadata.product.name", "`smtpproxy`", lambda m: "smtpproxy"),
    Field("metadata.product.vendor_name", "`smtpproxy`", lambda m: "smtpproxy"),
    Field("metadata.product.version", "of the program that exports", lambda m: __version__),
    Field("metadata.profiles", "`security_control`", lambda m: ["security_control"]),
    Field(
        "metadata.uid",
        "the log's origin, or if it has none the session, and the number of the record",
        exporting.unique,
    ),
    Field("metadata.sequence", "the number of the record", exporting.number_of),
    Field("metadata.correlation_uid", "the session", lambda m: m.found.session),
    Field("metadata.log_name", "the log's origin", lambda m: m.origin or None),
    Field("src_endpoint", f"the client: `ip`; of a session without client and server `{NOWHERE}`", _client),
    Field("dst_endpoint", "the server: `ip` or `hostname`, `port`", lambda m: _endpoint(m.found.server)),
    Field("unmapped", "what there is no field for, by the names of `audit search`; `erased`", _unmapped),
)

OF_MAILS: Final = (
    Field("activity_id", "3, Scan", lambda m: SCAN),
    Field("activity_name", "`Scan`", lambda m: "Scan"),
    Field("class_uid", "4009, Email Activity", lambda m: MAIL_CLASS),
    Field("class_name", "`Email Activity`", lambda m: "Email Activity"),
    Field("type_uid", "400903", lambda m: MAIL_CLASS * 100 + SCAN),
    Field("direction_id", "0, Unknown", lambda m: 0),
    Field("email.from", f"the reverse-path; `{NOBODY}` where there is neither sender nor recipient", _nobody),
    Field("email.to", "all recipients", exporting.recipients),
    Field("email.message_uid", "Message-ID, without `<>`", exporting.message_id),
    Field("email.size", "octets of the content", lambda m: m.found.size or None),
    Field("from", "the reverse-path", lambda m: m.found.sender or None),
    Field("to", "recipients that were accepted", lambda m: exporting.recipients(m, accepted=True)),
    Field("protocol_name", "`SMTP`", lambda m: "SMTP"),
)

OF_SESSIONS: Final = (
    Field(
        "activity_id", "2, Close; 3, Reset, where its worker died; 5, Refuse, never let in", lambda m: _activity(m)[0]
    ),
    Field("activity_name", "its name", lambda m: _activity(m)[1]),
    Field("class_uid", "4001, Network Activity", lambda m: NETWORK_CLASS),
    Field("class_name", "`Network Activity`", lambda m: "Network Activity"),
    Field("type_uid", "400100 and the activity", lambda m: NETWORK_CLASS * 100 + _activity(m)[0]),
    Field("start_time", "when it began", lambda m: round(m.session.began * 1000)),
    Field("end_time", "when it was over", lambda m: round(m.found.at * 1000)),
    Field("duration", "milliseconds", _duration),
    Field("app_protocol_name", "`smtp`", lambda m: "smtp"),
    Field("connection_info", "TCP; over IPv4 or IPv6", _connection),
    Field("tls.version", "of the client's link: `TLSv1.3`", lambda m: m.found.tls),
)

FIELDS: Final = (*BOTH, *OF_MAILS, *OF_SESSIONS)


def event(mail: Mail) -> dict[str, Any]:
    """One event."""
    return exporting.document((*BOTH, *(OF_MAILS if exporting.is_mail(mail) else OF_SESSIONS)), mail)
