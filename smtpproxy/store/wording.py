"""A record in the words of others: how grave it is (RFC 5424 §6.2.1), and its attributes by OpenTelemetry's semantic
conventions, where there are some; `smtpproxy.…` where there are none.

Attributes are made of what a record's keys are, not of a list of all of them: one that is added to the record is an
attribute at once. What is text of peers stays in the line itself, which is sent along.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final

from smtpproxy.store.indexing import Line

OURS: Final = "smtpproxy."
Value = str | bool | int | float | list[str]


class Severity(IntEnum):
    """As syslog numbers them (RFC 5424 §6.2.1): a smaller one is graver."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFORMATIONAL = 6


_KINDS: Final = {
    "worker-died": Severity.ERROR,
    "audit-cut": Severity.ERROR,
    "audit-skipped": Severity.WARNING,
    "violation": Severity.WARNING,
    "audit-erase": Severity.NOTICE,
    "audit-key": Severity.NOTICE,
    "audit-prune": Severity.NOTICE,
    "audit-start": Severity.NOTICE,
    "service-start": Severity.NOTICE,
    "tx-refused": Severity.NOTICE,
}
_ACTIONS: Final = {
    "answer": Severity.NOTICE,
    "discard": Severity.WARNING,
    "hangup": Severity.WARNING,
    "quarantine": Severity.WARNING,
}
_ANOMALIES: Final = {"tls-failed": Severity.WARNING}


def severity(line: Line) -> Severity:
    """The gravest of what a record says; an anomaly, a refusal is worth a notice, a server's 4yz or 5yz too."""
    found = min(_KINDS.get(line.kind, Severity.INFORMATIONAL), _ACTIONS.get(line.action, Severity.INFORMATIONAL))
    if line.anomaly:
        found = min(found, _ANOMALIES.get(line.anomaly, Severity.NOTICE))
    if line.anomalies or line.refused or line.code >= 400:
        found = min(found, Severity.NOTICE)
    return found


_ENDS: Final = {"client": "client", "server": "server"}  # key: namespace of address and port
_NAMES: Final = {"identity": "user.name"}
_ELSEWHERE: Final = frozenset({"v", "at", "up", "kind", "salt", "personal"})  # said in another way
_TEXTS: Final = frozenset(
    {"asked", "sent", "got", "told", "got_before", "noise", "reply", "each", "observed", "proxy", "transcript"}
)
_TLS: Final = {"version": "tls.protocol.version", "cipher": "tls.cipher", "resumed": "tls.resumed"}


def attributes(record: Mapping[str, Any]) -> dict[str, Value]:
    """Of a record, or of what else has keys of that kind."""
    found: dict[str, Value] = {}
    for key, value in record.items():
        if key in _ELSEWHERE or key in _TEXTS:
            continue
        if key in _ENDS and isinstance(value, str):
            found |= end(_ENDS[key], value)
        elif isinstance(value, dict):
            found |= _link(key, value)
        elif (simple := _simple(value)) is not None:
            found[_NAMES.get(key, OURS + key)] = simple
    return found


def end(namespace: str, text: str) -> dict[str, Value]:
    """`192.0.2.1:25`, `[2001:db8::1]:25` or `mx.example:25` as address and port."""
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdecimal()) or (":" in host and not host.startswith("[")):
        return {f"{namespace}.address": text} if text else {}
    return {f"{namespace}.address": host.strip("[]"), f"{namespace}.port": int(port)}


def tls_version(text: str) -> dict[str, Value]:
    """`TLSv1.3` as the conventions have it."""
    return {"tls.protocol.name": "tls", "tls.protocol.version": text.removeprefix("TLSv")} if text else {}


def _link(key: str, facts: Mapping[str, Any]) -> dict[str, Value]:
    """What is known of a link's TLS. The conventions know one link, and it is the client's: we are its server."""
    found: dict[str, Value] = {}
    for name, value in facts.items():
        simple = _simple(value)
        if simple is None:
            continue
        if key == "client" and name in _TLS:
            found |= tls_version(str(value)) if name == "version" else {_TLS[name]: simple}
        else:
            found[f"{OURS}{key}.{name}"] = simple
    return found


def _simple(value: Any) -> Value | None:
    """A value that an attribute may have; None: it is none."""
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value):
        return list(value)
    return None
