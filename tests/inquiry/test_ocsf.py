"""Mails as events of OCSF: by what is published, and by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.inquiry import ocsf
from smtpproxy.inquiry.filters import VERDICTS
from tests.inquiry.awkward import WITHOUT_MAIL, all_of, of, sessions
from tests.inquiry.mails import varied
from tests.inquiry.published import CLASSES, flat, wrong_as_ocsf


def fields(tmp_path: Path, which: str) -> dict[str, Any]:
    """The one event of these lines, by paths."""
    (mail,) = of(tmp_path, *sessions()[which])
    return dict(flat(ocsf.event(mail)))


def test_every_mail_is_as_the_schema_wants_it(tmp_path: Path) -> None:
    varied(tmp_path / "store").close()
    found = all_of(tmp_path / "store")
    assert [wrong for mail in found for wrong in wrong_as_ocsf(ocsf.event(mail))] == []
    assert {mail.found.outcome for mail in found} >= {"accepted", "refused", "server", "RSET", "closed", "none"}


@pytest.mark.parametrize("which", sessions())
def test_awkward_ones(tmp_path: Path, which: str) -> None:
    (mail,) = of(tmp_path, *sessions()[which])
    event = ocsf.event(mail)
    assert wrong_as_ocsf(event) == []
    assert event["class_uid"] == (4001 if which in WITHOUT_MAIL else 4009)
    json.dumps(event).encode()


def test_every_verdict_of_a_mail_has_its_disposition(tmp_path: Path) -> None:
    for number, outcome in enumerate(("accepted", "server")):
        (mail,) = of(tmp_path / str(number), *sessions()["IPv6"])
        for verdict in VERDICTS:
            some = mail._replace(found=mail.found._replace(verdict=verdict, outcome=outcome))
            event = ocsf.event(some)
            assert wrong_as_ocsf(event) == []
            assert (event["disposition"] == "Allowed") == (verdict == "pass")
            assert (event["severity_id"] == 2) == (event["action_id"] == 2)


def test_what_stands_where(tmp_path: Path) -> None:
    varied(tmp_path / "store").close()
    (mail,) = (one for one in all_of(tmp_path / "store") if one.found.message_id == "<one@example.org>")
    event = ocsf.event(mail)
    expected = {
        "class_uid": 4009,
        "category_uid": 4,
        "activity_id": 3,
        "type_uid": 400903,
        "severity_id": 1,
        "status_id": 1,
        "direction_id": 0,
        "action_id": 1,
        "disposition": "Allowed",
        "time": round(mail.found.at * 1000),
        "from": "Ann@sub.example.org",
        "to": ["bob@example.org", "carl@deep.sub.example.org"],
        "email": {
            "from": "Ann@sub.example.org",
            "to": ["bob@example.org", "carl@deep.sub.example.org"],
            "message_uid": "one@example.org",
            "size": 3_000_000,
        },
        "src_endpoint": {"ip": "2001:db8::7"},
        "dst_endpoint": {"ip": "198.51.100.25", "port": 25},
    }
    assert {key: event[key] for key in expected} == expected
    assert event["metadata"]["sequence"] == mail.found.id
    assert event["metadata"]["correlation_uid"] == mail.found.session
    assert event["unmapped"]["tls"] == event["unmapped"]["server_tls"] == "TLSv1.3"
    assert event["unmapped"]["identity"] == "ann"


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("one that was refused", {"status_id": 2, "action_id": 2, "email.from": ocsf.NOBODY, "from": None}),
        ("cut off by the client", {"status_id": 2, "action_id": 1, "disposition_id": 1}),
        ("answered by a rule", {"action_id": 2, "disposition_id": 2, "firewall_rule.name": "no-macros"}),
        ("rewritten by a rule", {"status_id": 1, "action_id": 4, "disposition_id": 11}),
        ("a null reverse-path", {"email.from": None, "email.to": ["bob@example.net"], "unmapped.null_sender": True}),
        ("no mail", {"activity_id": 2, "type_uid": 400102, "status_id": 1, "tls.version": None}),
        ("no mail, over TLS", {"tls.version": "TLSv1.3", "connection_info.protocol_num": 6}),
        ("never let in", {"activity_id": 5, "status_id": 2, "action_id": 2, "severity_id": 2}),
        ("of a worker that died", {"activity_id": 3, "status_id": 0, "status": "Unknown"}),
        ("nobody and nowhere", {"src_endpoint.hostname": ocsf.NOWHERE, "dst_endpoint.ip": None}),
        ("of a server by its name", {"dst_endpoint.hostname": "mx.example", "dst_endpoint.port": 25}),
        ("erased", {"email.from": ocsf.NOBODY, "from": None, "unmapped.erased": ["client", "sender"]}),
        ("erased, and no mail", {"src_endpoint.ip": None, "unmapped.erased": ["client"]}),
    ],
)
def test_details(tmp_path: Path, which: str, expected: dict[str, Any]) -> None:
    event = fields(tmp_path, which)
    assert {key: event.get(key) for key in expected} == expected


def test_the_check_itself_finds_something(tmp_path: Path) -> None:
    """What is checked by would be of no use otherwise."""
    for number, which in enumerate(("IPv6", "no mail, over TLS")):
        (mail,) = of(tmp_path / str(number), *sessions()[which])
        event = ocsf.event(mail)
        assert wrong_as_ocsf(event) == []
        for name, (_, must) in CLASSES[event["class_uid"]].items():
            assert not must or wrong_as_ocsf({key: value for key, value in event.items() if key != name}), name
        for broken in (
            {**event, "mail": 1},
            {**event, "email": {"size": 3}},
            {**event, "severity_id": 7},
            {**event, "disposition": "Blocked"},
            {**event, "activity_id": 0},
            {**event, "tls": {"cipher": "x"}},
            {**event, "src_endpoint": {"port": 70_000, "ip": "::1"}},
            {**event, "src_endpoint": {"port": 7}},
            {**event, "metadata": {"version": "1.8.0"}},
        ):
            assert wrong_as_ocsf(broken), broken
    ends = {key: value for key, value in event.items() if not key.endswith("_endpoint")}
    assert wrong_as_ocsf(ends)
