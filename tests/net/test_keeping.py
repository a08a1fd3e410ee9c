"""What the quarantine is told of a mail: all that is needed to send it on, and nothing that is secret."""

import json
from typing import Any

from smtpproxy.net.keeping import address, facts
from smtpproxy.session.session import Session
from smtpproxy.session.state import Facts, Recipient, TLSInfo, Transaction
from smtpproxy.session.verdicts import Keep, PassAll
from smtpproxy.smtp.values import Parameter, Path, Secret

KEEP = Keep("r", "because", None, {"told": "250 Ok"})


def _session(**more: Any) -> Session:
    return Session(judge=PassAll(), record=lambda item: None, clock=lambda: 0.0, **more)


def test_of_a_session_without_anything_there_is_little() -> None:
    assert facts("s-1", _session(), KEEP) == {"session": "s-1", "rule": "r", "why": "because", "told": "250 Ok"}


def test_all_of_it() -> None:
    session = _session(facts=Facts("inbound", "printers", "192.0.2.1", 4025, "2001:db8::1", 25))
    session.client.address, session.server.address = "192.0.2.1:4025", "[2001:db8::1]:25"
    session.client.hello, session.client.lmtp = b"me.example", True
    session.client.tls = session.server.tls = TLSInfo("TLSv1.3", "x")
    session.identity = "ann"
    transaction = session.transaction = Transaction(
        2, Path(b"a", b"x.example"), (Parameter(b"BODY", b"8BITMIME"), Parameter(b"SMTPUTF8", None))
    )
    transaction.tags["odd"] = None
    for local, accepted in ((b"b", True), (b"c", False), (b"d", None), (b"e f", True)):
        recipient = Recipient(Path(local, b"y.example"), (Parameter(b"NOTIFY", b"NEVER"),) * (local == b"b"))
        recipient.accepted = accepted
        transaction.recipients.append(recipient)
    found = facts("s-1", session, KEEP)
    assert found == {
        "session": "s-1",
        "listener": "inbound",
        "match": "printers",
        "client": "192.0.2.1:4025",
        "server": "[2001:db8::1]:25",
        "address": "[2001:db8::1]:25",
        "hello": "me.example",
        "lmtp": True,
        "tls": {"client": "TLSv1.3", "server": "TLSv1.3"},
        "identity": "ann",
        "tx": 2,
        "mail": "a@x.example",
        "rcpt": ["b@y.example", '"e f"@y.example'],
        "parameters": {"BODY": "8BITMIME", "SMTPUTF8": ""},
        "rcpt_parameters": {"b@y.example": {"NOTIFY": "NEVER"}},
        "tags": ["odd"],
        "rule": "r",
        "why": "because",
        "told": "250 Ok",
    }
    json.dumps(found)


def test_a_secret_parameter_is_not_kept() -> None:
    session = _session()
    session.transaction = Transaction(1, Path(b"", b""), (Parameter(b"XSECRET", Secret(b"hunter2")),))
    found = facts("s-1", session, KEEP)
    assert (found["mail"], found["parameters"]) == ("", {})
    assert "hunter2" not in repr(found)


def test_an_address_is_as_on_the_wire() -> None:
    assert address(Path(b"", b"")) == ""
    assert address(Path(b"Postmaster", b"")) == "Postmaster"
    assert address(Path("jörg".encode(), b"y.example")) == "jörg@y.example"
    assert address(Path(b"\xff", b"y.example")).encode("utf-8", "surrogateescape").endswith(b"@y.example")
