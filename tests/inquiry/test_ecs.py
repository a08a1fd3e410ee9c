"""Mails as documents of the Elastic Common Schema: by what is published, and by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.inquiry import ecs
from tests.inquiry.awkward import WITHOUT_MAIL, all_of, of, sessions
from tests.inquiry.mails import varied
from tests.inquiry.published import flat, wrong_as_ecs


def fields(tmp_path: Path, which: str) -> dict[str, Any]:
    """The one document of these lines, by paths."""
    (mail,) = of(tmp_path, *sessions()[which])
    return dict(flat(ecs.document(mail)))


def test_every_mail_is_as_the_schema_wants_it(tmp_path: Path) -> None:
    varied(tmp_path / "store").close()
    found = all_of(tmp_path / "store")
    assert [wrong for mail in found for wrong in wrong_as_ecs(ecs.document(mail))] == []
    assert {mail.found.outcome for mail in found} >= {"accepted", "refused", "server", "RSET", "closed", "none"}


@pytest.mark.parametrize("which", sessions())
def test_awkward_ones(tmp_path: Path, which: str) -> None:
    (mail,) = of(tmp_path, *sessions()[which])
    document = ecs.document(mail)
    assert wrong_as_ecs(document) == []
    assert (document["event"]["category"] == ["network"]) == (which in WITHOUT_MAIL)
    json.dumps(document).encode()


def test_what_stands_where(tmp_path: Path) -> None:
    """One mail, field by field."""
    varied(tmp_path / "store").close()
    (mail,) = (one for one in all_of(tmp_path / "store") if one.found.message_id == "<one@example.org>")
    document = dict(flat(ecs.document(mail)))
    expected = {
        "ecs.version": "9.4.0",
        "event.kind": "event",
        "event.category": ["email", "network"],
        "event.type": ["info", "allowed"],
        "event.outcome": "success",
        "event.action": "pass",
        "event.code": "250",
        "email.from.address": ["Ann@sub.example.org"],
        "email.sender.address": "Ann@sub.example.org",
        "email.to.address": ["bob@example.org", "carl@deep.sub.example.org"],
        "email.message_id": "one@example.org",
        "source.address": "2001:db8::7",
        "source.ip": "2001:db8::7",
        "destination.ip": "198.51.100.25",
        "destination.port": 25,
        "network.type": "ipv6",
        "tls.established": True,
        "tls.version": "1.3",
        "user.name": "ann",
        "related.user": ["ann", "Ann@sub.example.org", "bob@example.org", "carl@deep.sub.example.org"],
        "related.hosts": ["client.example.org"],
        "smtpproxy.octets": 3_000_000,
        "smtpproxy.session": mail.found.session,
        "smtpproxy.session_ended": "closed",
        "smtpproxy.server_tls": "TLSv1.3",
        "smtpproxy.tx": 1,
        "event.sequence": mail.found.id,
    }
    assert {key: document.get(key) for key in expected} == expected
    assert document["@timestamp"].startswith("2026-11-16T10:00:")
    assert not {"smtpproxy.erased", "smtpproxy.null_sender", "event.start", "rule.name"} & set(document)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("one that was refused", {"event.outcome": "failure", "event.type": ["info", "denied"], "event.code": "550"}),
        ("cut off by the client", {"event.outcome": "failure", "smtpproxy.outcome": "closed"}),
        ("answered by a rule", {"event.action": "answer", "rule.name": "no-macros", "smtpproxy.rules": ["no-macros"]}),
        ("rewritten by a rule", {"event.action": "rewrite", "smtpproxy.anomalies": ["stray-newline-normalised"]}),
        (
            "a null reverse-path",
            {"smtpproxy.null_sender": True, "email.sender.address": None, "smtpproxy.erased": None},
        ),
        (
            "no mail",
            {"event.type": ["connection", "end", "allowed"], "event.outcome": "success", "email.local_id": None},
        ),
        ("never let in", {"event.outcome": "failure", "smtpproxy.session_ended": "refused"}),
        ("of a worker that died", {"event.outcome": "unknown", "event.type": ["connection", "end"]}),
        ("of a session that goes on", {"smtpproxy.session_ended": None, "event.outcome": "failure"}),
        ("TLS 1.0", {"tls.version": "1.0", "tls.version_protocol": "tls"}),
        ("of a server by its name", {"destination.domain": "mx.example", "destination.ip": None}),
        ("IPv6", {"destination.address": "2001:db8::25", "destination.port": 587, "network.type": "ipv6"}),
    ],
)
def test_details(tmp_path: Path, which: str, expected: dict[str, Any]) -> None:
    document = fields(tmp_path, which)
    assert {key: document.get(key) for key in expected} == expected


def test_a_session_without_mail_has_its_times(tmp_path: Path) -> None:
    document = fields(tmp_path, "no mail")
    assert document["event.start"] < document["event.end"] == document["@timestamp"]
    assert document["event.duration"] == 4_000_000  # a millisecond a record


def test_nobody_is_made_up_for_what_was_erased(tmp_path: Path) -> None:
    document = fields(tmp_path, "erased")
    gone = ("email.from", "email.sender", "email.to", "email.message_id", "user", "related.user", "source")
    assert not [field for field in document if field.startswith(gone)]
    assert document["smtpproxy.erased"] == ["client", "sender"]


def test_the_check_itself_finds_something(tmp_path: Path) -> None:
    """What is checked by would be of no use otherwise."""
    (mail,) = of(tmp_path, *sessions()["IPv6"])
    whole = ecs.document(mail)
    assert wrong_as_ecs(whole) == []
    for broken in (
        {**whole, "@timestamp": "2026-11-24"},
        {**whole, "sender": "x"},
        {**whole, "ecs": {}},
        {**whole, "tags": "x"},
        {**whole, "source": {"ip": "x"}},
        {**whole, "event": {**whole["event"], "category": ["mail"]}},
        {**whole, "event": {**whole["event"], "category": ["email"]}},  # of which `allowed` is not expected
    ):
        assert wrong_as_ecs(broken)
