"""Records as flat objects: which keys stand there, and what they say."""

import json
from typing import Any

import msgspec
import pytest

from smtpproxy.audit.lines import path_text, render, reply_text, words
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.state import Recipient, Transaction
from smtpproxy.smtp.commands import Command, parse_command
from smtpproxy.smtp.registry.verbs import END, GREETING
from smtpproxy.smtp.replies import Reply, own
from smtpproxy.smtp.values import Path

OK = Reply(250, b"250 2.0.0 Ok\r\n")


def _command(line: bytes) -> Command:
    command = parse_command(line)
    assert isinstance(command, Command)
    return command


def _exchange(line: bytes = b"NOOP\r\n") -> Exchange:
    command = _command(line)
    exchange = Exchange(command.verb, command, 10.0)
    exchange.sent = command
    exchange.got = exchange.told = OK
    return exchange


def _fields(exchange: Exchange) -> dict[str, Any]:
    return render(AuditRecord(Kind.EXCHANGE, 10.25, exchange, exchange.transaction))


def test_an_exchange_that_passed_is_short() -> None:
    assert _fields(_exchange()) == {
        "kind": "exchange", "verb": "NOOP", "asked": "NOOP", "got": "250 2.0.0 Ok", "action": "pass", "seconds": 0.25,
    }  # fmt: skip


def test_answered_here() -> None:
    exchange = _exchange()
    exchange.sent = exchange.got = None
    exchange.told = own("550 5.7.1 No").full
    exchange.action, exchange.rule = "answer", "no-noop"
    fields = _fields(exchange)
    assert fields["sent"] is None
    assert "got" not in fields
    assert (fields["told"], fields["rule"], fields["action"]) == ("550 5.7.1 No", "no-noop", "answer")


def test_asked_one_thing_sent_another_told_a_third() -> None:
    exchange = _exchange(b"MAIL FROM:<a@x.example>\r\n")
    exchange.sent = _command(b"MAIL FROM:<b@x.example>\r\n")
    exchange.told = Reply(250, b"250 Fine\r\n")
    fields = _fields(exchange)
    assert fields["asked"] == "MAIL FROM:<a@x.example>"
    assert fields["sent"] == "MAIL FROM:<b@x.example>"
    assert (fields["got"], fields["told"]) == ("250 2.0.0 Ok", "250 Fine")


def test_what_was_sent_otherwise_than_written_is_shown() -> None:
    exchange = _exchange(b"MAIL FROM: <a@x.example>\r\n")
    fields = _fields(exchange)
    assert fields["sent"] == "MAIL FROM:<a@x.example>"


def test_our_own_command() -> None:
    exchange = _exchange()
    exchange.asked = exchange.told = None
    fields = _fields(exchange)
    assert (fields["asked"], fields["sent"], fields["got"], fields["told"]) == (None, "NOOP", "250 2.0.0 Ok", None)


def test_everything_that_can_stand_on_an_exchange() -> None:
    exchange = _exchange()
    exchange.replies_before = (OK, OK)
    exchange.noise = b"050 noise \xff\r\n"
    exchange.anomalies = ("early-talk",)
    exchange.octets = 7
    exchange.transaction = Transaction(3, Path(b"", b""), ())
    fields = _fields(exchange)
    assert fields["got_before"] == ["250 2.0.0 Ok"] * 2
    assert fields["noise"] == "050 noise \\xff\r\n"
    assert (fields["anomalies"], fields["octets"], fields["tx"]) == (["early-talk"], 7, 3)
    json.loads(msgspec.json.encode(fields))


@pytest.mark.parametrize(("verb", "text"), [(GREETING, "(connect)"), (END, "(end of data)")])
def test_pseudo_verbs_have_words(verb: Any, text: str) -> None:
    assert words(verb) == text


def test_a_secret_is_never_written() -> None:
    """I8."""
    for line in (b"AUTH PLAIN AGNhbmFyeQBjYW5hcnk=\r\n", b"AUTH LOGIN Y2FuYXJ5\r\n"):
        fields = _fields(_exchange(line))
        assert "Y2FuYXJ5" not in repr(fields)
        assert "AGNhbmFyeQ" not in repr(fields)
        assert "octets>" in fields["asked"]


def test_odd_octets_are_escaped() -> None:
    odd = parse_command(b"NOOP \xff\x1b\r\n")
    assert words(odd) is not None
    assert reply_text(Reply(250, b"250 \xff\x00\r\n")) == "250 \\xff\x00"
    assert path_text(Path(b"\xff", b"x.example")) == "\\xff@x.example"
    assert path_text(Path("ä".encode(), "ü.example".encode())) == "ä@ü.example"
    json.loads(msgspec.json.encode({"a": words(odd)}))


def test_long_replies_are_not_remembered() -> None:
    long = Reply(250, b"250 " + b"x" * 400 + b"\r\n")
    assert reply_text(long) == "250 " + "x" * 400
    assert words(own("421 4.3.2 Bye")) == "421 4.3.2 Bye"
    assert words(None) is None


def _transaction() -> Transaction:
    transaction = Transaction(2, Path(b"a", b"x.example"), ())
    for number, accepted in enumerate((True, False, True)):
        recipient = Recipient(Path(b"b%d" % number, b"y.example"), ())
        recipient.accepted = accepted
        transaction.recipients.append(recipient)
    return transaction


def test_a_transaction() -> None:
    transaction = _transaction()
    transaction.size, transaction.digest, transaction.outcome = 7, "ab", OK
    fields = render(AuditRecord(Kind.COMMIT, 0.0, None, transaction, {"each": [(Path(b"b", b"y.example"), "250 Ok")]}))
    assert fields == {
        "kind": "tx-commit", "tx": 2, "mail": "a@x.example", "rcpt": ["b0@y.example", "b2@y.example"],
        "rcpt_refused": ["b1@y.example"], "octets": 7, "sha256": "ab", "reply": "250 2.0.0 Ok",
        "each": [("b@y.example", "250 Ok")],
    }  # fmt: skip


def test_a_transaction_that_has_just_begun() -> None:
    fields = render(AuditRecord(Kind.BEGIN, 0.0, None, Transaction(1, Path(b"", b""), ())))
    assert fields == {"kind": "tx-begin", "tx": 1, "mail": ""}


def test_a_recipient_not_yet_answered_is_not_refused() -> None:
    """MAIL and RCPT in one write: when MAIL is answered, RCPT is on its way."""
    transaction = Transaction(1, Path(b"a", b"x.example"), ())
    transaction.recipients.append(Recipient(Path(b"b", b"y.example"), ()))
    fields = render(AuditRecord(Kind.BEGIN, 0.0, None, transaction))
    assert "rcpt_refused" not in fields
    assert not fields.get("rcpt")


def test_a_link() -> None:
    fields = render(AuditRecord(Kind.CONNECT, 0.0, detail={"client": "192.0.2.1:1"}))
    assert fields == {"kind": "link-connect", "client": "192.0.2.1:1"}
