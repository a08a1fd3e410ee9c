"""What the published schemas want of a document, as far as documents of mails have to do with it; and a check by that.

Of the Elastic Common Schema 9.4.0 (generated/csv/fields.csv): the type of each field, whether it is an array, and the
values that are allowed; for the two categories that mails are of also the types of events that are expected of them
(generated/ecs/ecs_flat.yml). Of OCSF 1.8.0 (events/network/email_activity.json and network_activity.json, network.json,
events/base_event.json, the objects, and profiles/security_control.json): the attributes, their types, which are
required, of which one at least must be there.
"""

import ipaddress
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

# ------------------------------------------------------------------------------------------------------------------ ECS

ECS_REQUIRED: Final = ("@timestamp", "ecs.version")
KEYWORD, ARRAY = "keyword", "array"
ECS: Final[Mapping[str, tuple[str, str]]] = {
    "@timestamp": ("date", ""),
    "ecs.version": (KEYWORD, ""),
    "event.kind": (KEYWORD, ""),
    "event.category": (KEYWORD, ARRAY),
    "event.type": (KEYWORD, ARRAY),
    "event.outcome": (KEYWORD, ""),
    "event.action": (KEYWORD, ""),
    "event.code": (KEYWORD, ""),
    "event.id": (KEYWORD, ""),
    "event.sequence": ("long", ""),
    "event.start": ("date", ""),
    "event.end": ("date", ""),
    "event.duration": ("long", ""),
    "event.module": (KEYWORD, ""),
    "event.dataset": (KEYWORD, ""),
    "email.from.address": (KEYWORD, ARRAY),
    "email.sender.address": (KEYWORD, ""),
    "email.to.address": (KEYWORD, ARRAY),
    "email.message_id": ("wildcard", ""),
    "email.local_id": (KEYWORD, ""),
    "source.address": (KEYWORD, ""),
    "source.ip": ("ip", ""),
    "destination.address": (KEYWORD, ""),
    "destination.domain": (KEYWORD, ""),
    "destination.ip": ("ip", ""),
    "destination.port": ("long", ""),
    "network.protocol": (KEYWORD, ""),
    "network.transport": (KEYWORD, ""),
    "network.type": (KEYWORD, ""),
    "tls.established": ("boolean", ""),
    "tls.version": (KEYWORD, ""),
    "tls.version_protocol": (KEYWORD, ""),
    "user.name": (KEYWORD, ""),
    "rule.name": (KEYWORD, ""),
    "tags": (KEYWORD, ARRAY),
    "related.ip": ("ip", ARRAY),
    "related.hosts": (KEYWORD, ARRAY),
    "related.user": (KEYWORD, ARRAY),
    "related.hash": (KEYWORD, ARRAY),
    "observer.name": (KEYWORD, ""),
    "observer.product": (KEYWORD, ""),
    "observer.type": (KEYWORD, ""),
    "observer.version": (KEYWORD, ""),
}
ECS_VALUES: Final[Mapping[str, frozenset[str]]] = {
    "event.kind": frozenset({"alert", "asset", "enrichment", "event", "metric", "state", "pipeline_error", "signal"}),
    "event.category": frozenset(
        {"api", "authentication", "configuration", "database", "driver", "email", "file", "host", "iam", "library"}
        | {"intrusion_detection", "malware", "network", "package", "process", "registry", "session", "threat"}
        | {"vulnerability", "web"}
    ),
    "event.type": frozenset(
        {
            "access",
            "admin",
            "allowed",
            "change",
            "connection",
            "creation",
            "deletion",
            "denied",
            "device",
            "end",
            "error",
        }
        | {"group", "indicator", "info", "installation", "protocol", "start", "user"}
    ),
    "event.outcome": frozenset({"failure", "success", "unknown"}),
}
ECS_TYPES: Final[Mapping[str, frozenset[str]]] = {  # event.type that is expected by event.category
    "email": frozenset({"info"}),
    "network": frozenset({"access", "allowed", "connection", "denied", "end", "info", "protocol", "start"}),
}
OURS: Final = "smtpproxy."  # fields of others stand under a name of theirs


def flat(document: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Its fields by their paths with dots."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def wrong_as_ecs(document: Mapping[str, Any]) -> list[str]:
    """What in it is not as the schema wants it."""
    fields = dict(flat(document))
    found = [f"{name} is missing" for name in ECS_REQUIRED if name not in fields]
    for name, value in fields.items():
        if name.startswith(OURS):
            continue
        if name not in ECS:
            found.append(f"there is no field {name}")
            continue
        kind, array = ECS[name]
        if isinstance(value, list) != (array == ARRAY):
            found.append(f"{name} is an array or should be one")
        for one in value if isinstance(value, list) else [value]:
            if not _is_of_ecs(kind, one):
                found.append(f"{name}: {one!r} is no {kind}")
            elif name in ECS_VALUES and one not in ECS_VALUES[name]:
                found.append(f"{name}: {one!r} is not one of its values")
    expected = {one for category in fields.get("event.category", ()) for one in ECS_TYPES.get(category, ())}
    found += [f"event.type: {one!r} is not expected" for one in fields.get("event.type", ()) if one not in expected]
    return found


def _is_of_ecs(kind: str, value: Any) -> bool:
    if kind in (KEYWORD, "wildcard"):
        return isinstance(value, str) and len(value) <= 32_766  # octets of the longest term of an index
    if kind == "long":
        return type(value) is int and -(2**63) <= value < 2**63
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "ip":
        try:
            ipaddress.ip_address(value)
        except ValueError:
            return False
        return True
    return kind == "date" and isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None


# ----------------------------------------------------------------------------------------------------------------- OCSF

STRING, INTEGER, LONG, STAMP, EMAIL, IP = "string_t", "integer_t", "long_t", "timestamp_t", "email_t", "ip_t"
PORT: Final = "port_t"
OBJECT: Final = "object"
Attributes = Mapping[str, tuple[str, bool]]  # type, required
_BASE: Final[Attributes] = {
    "activity_id": (INTEGER, True),
    "activity_name": (STRING, False),
    "category_uid": (INTEGER, True),
    "category_name": (STRING, False),
    "class_uid": (INTEGER, True),
    "class_name": (STRING, False),
    "type_uid": (LONG, True),
    "time": (STAMP, True),
    "start_time": (STAMP, False),
    "end_time": (STAMP, False),
    "duration": (LONG, False),
    "severity_id": (INTEGER, True),
    "status_id": (INTEGER, False),
    "status": (STRING, False),
    "status_code": (STRING, False),
    "status_detail": (STRING, False),
    "action_id": (INTEGER, False),  # by the profile security_control, as the next three
    "disposition_id": (INTEGER, False),
    "disposition": (STRING, False),
    "firewall_rule": (OBJECT, False),
    "metadata": (OBJECT, True),
    "src_endpoint": (OBJECT, False),
    "dst_endpoint": (OBJECT, False),
    "unmapped": (OBJECT, False),
}
CLASSES: Final[Mapping[int, Attributes]] = {
    4009: {
        **_BASE,
        "direction_id": (INTEGER, True),
        "email": (OBJECT, True),
        "from": (EMAIL, False),
        "to": (EMAIL + "[]", False),
        "protocol_name": (STRING, False),
    },
    4001: {
        **_BASE,
        "app_protocol_name": (STRING, False),
        "connection_info": (OBJECT, False),
        "tls": (OBJECT, False),
    },
}
OCSF: Final[Mapping[str, Attributes]] = {  # of the objects
    "metadata": {
        "version": (STRING, True),
        "product": (OBJECT, True),
        "profiles": (STRING + "[]", False),
        "uid": (STRING, False),
        "sequence": (INTEGER, False),
        "correlation_uid": (STRING, False),
        "log_name": (STRING, False),
    },
    "metadata.product": {"name": (STRING, False), "vendor_name": (STRING, False), "version": (STRING, False)},
    "email": {
        "from": (EMAIL, False),
        "to": (EMAIL + "[]", False),
        "message_uid": (STRING, False),
        "size": (LONG, False),
    },
    "firewall_rule": {"name": (STRING, False)},
    "src_endpoint": {"ip": (IP, False), "hostname": (STRING, False), "port": (PORT, False)},
    "dst_endpoint": {"ip": (IP, False), "hostname": (STRING, False), "port": (PORT, False)},
    "connection_info": {
        "direction_id": (INTEGER, True),
        "protocol_name": (STRING, False),
        "protocol_num": (INTEGER, False),
        "protocol_ver_id": (INTEGER, False),
    },
    "tls": {"version": (STRING, True)},
}
OCSF_ONE_OF: Final[Mapping[str, frozenset[str]]] = {
    "email": frozenset({"from", "to"}),
    "firewall_rule": frozenset({"name", "uid"}),
    "metadata.product": frozenset({"name", "uid"}),
    "src_endpoint": frozenset({"ip", "hostname"}),
    "dst_endpoint": frozenset({"ip", "hostname"}),
}
_NAMES_OF_DISPOSITIONS: Final = (
    "Unknown", "Allowed", "Blocked", "Quarantined", "Isolated", "Deleted", "Dropped", "Custom Action", "Approved",
    "Restored", "Exonerated", "Corrected", "Partially Corrected", "Uncorrected", "Delayed", "Detected", "No Action",
    "Logged", "Tagged", "Alert", "Count", "Reset", "Captcha", "Challenge", "Access Revoked", "Rejected", "Unauthorized",
    "Error",
)  # fmt: skip
OCSF_VALUES: Final[Mapping[str, frozenset[int]]] = {
    "category_uid": frozenset({4}),
    "class_uid": frozenset(CLASSES),
    "severity_id": frozenset({0, 1, 2, 3, 4, 5, 6, 99}),
    "direction_id": frozenset({0, 1, 2, 3, 99}),
    "action_id": frozenset({0, 1, 2, 3, 4, 99}),
}
OCSF_NAMES: Final[Mapping[str, tuple[str, Mapping[int, str]]]] = {  # values that have a name beside them
    "status_id": ("status", {0: "Unknown", 1: "Success", 2: "Failure", 99: "Other"}),
    "disposition_id": ("disposition", {**dict(enumerate(_NAMES_OF_DISPOSITIONS)), 99: "Other"}),
}
ACTIVITIES: Final[Mapping[int, Mapping[int, str]]] = {
    4009: {0: "Unknown", 1: "Send", 2: "Receive", 3: "Scan", 4: "Trace", 5: "MTA Relay", 99: "Other"},
    4001: dict(enumerate(("Unknown", "Open", "Close", "Reset", "Fail", "Refuse", "Traffic", "Listen"))) | {99: "Other"},
}
FREE: Final = "unmapped"


def wrong_as_ocsf(event: Mapping[str, Any], place: str = "") -> list[str]:
    """What in it is not as the class wants it."""
    known = OCSF[place] if place else CLASSES.get(event.get("class_uid", 0), _BASE)
    here = f"{place}." if place else ""
    found = [f"{here}{name} is missing" for name, (_, must) in known.items() if must and name not in event]
    if place in OCSF_ONE_OF and not OCSF_ONE_OF[place] & set(event):
        found.append(f"{place} has none of {sorted(OCSF_ONE_OF[place])}")
    for name, value in event.items():
        if name not in known:
            found.append(f"there is no attribute {here}{name}")
            continue
        kind, _ = known[name]
        if kind == OBJECT:
            if not isinstance(value, dict) or not value:
                found.append(f"{here}{name} is no object")
            elif name != FREE:
                found += wrong_as_ocsf(value, f"{here}{name}")
        elif kind.endswith("[]") != isinstance(value, list):
            found.append(f"{here}{name} is an array or should be one")
        else:
            found += [
                f"{here}{name}: {one!r} is no {kind}"
                for one in (value if isinstance(value, list) else [value])
                if not _is_of_ocsf(kind.removesuffix("[]"), one)
            ]
        if not place and name in OCSF_VALUES and value not in OCSF_VALUES[name]:
            found.append(f"{name}: {value!r} is not one of its values")
    return found if place else found + _wrong_together(event)


def _wrong_together(event: Mapping[str, Any]) -> list[str]:
    """What attributes of an event don't have to do with each other."""
    found = []
    number = event.get("class_uid", 0)
    if event.get("type_uid") != number * 100 + event.get("activity_id", 0):
        found.append("type_uid is not class_uid * 100 + activity_id")
    if number == 4001 and not {"src_endpoint", "dst_endpoint"} & set(event):
        found.append("there is none of src_endpoint, dst_endpoint")
    names = {**OCSF_NAMES, "activity_id": ("activity_name", ACTIVITIES.get(number, {}))}
    for value, (name, known) in names.items():
        if value in event and event[value] not in known:
            found.append(f"{value}: {event[value]!r} is not one of its values")
        elif name in event and event[name] != known.get(event.get(value, -1)):
            found.append(f"{name}: {event[name]!r} is not the name of {event.get(value)}")
    return found


def _is_of_ocsf(kind: str, value: Any) -> bool:
    if kind == STRING:
        return isinstance(value, str)
    if kind == EMAIL:
        return isinstance(value, str) and value != ""  # the schema has a pattern, which not all mailboxes fit
    if kind == INTEGER:
        return type(value) is int and -(2**31) <= value < 2**63
    if kind == PORT:
        return type(value) is int and 0 <= value <= 65_535
    if kind == IP:
        return _is_of_ecs("ip", value)
    return kind in (LONG, STAMP) and type(value) is int
