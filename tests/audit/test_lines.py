"""Records as flat objects: which keys stand there, and what they say."""

import json
import re
from pathlib import Path as FilePath
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.audit.lines import PERSONAL, Private, path_text, render, rendered, reply_text, words
from smtpproxy.session.ledger import Exchange
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.state import Recipient, Transaction
from smtpproxy.session.verdicts import Effects, Observed
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
    return rendered(AuditRecord(Kind.EXCHANGE, 10.25, exchange, exchange.transaction))


def test_an_exchange_that_passed_is_short() -> None:
    assert _fields(_exchange()) == {
        "kind": "exchange", "verb": "NOOP", "asked": "NOOP", "got": "250 2.0.0 Ok", "action": "pass", "code": 250,
        "seconds": 0.25,
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
    fields = rendered(
        AuditRecord(Kind.COMMIT, 0.0, None, transaction, {"each": [(Path(b"b", b"y.example"), "250 Ok")]})
    )
    assert fields == {
        "kind": "tx-commit", "tx": 2, "mail": "a@x.example", "rcpt": ["b0@y.example", "b2@y.example"],
        "rcpt_refused": ["b1@y.example"], "octets": 7, "sha256": "ab", "code": 250, "reply": "250 2.0.0 Ok",
        "each": [("b@y.example", "250 Ok")],
    }  # fmt: skip


def test_a_transaction_that_has_just_begun() -> None:
    fields = rendered(AuditRecord(Kind.BEGIN, 0.0, None, Transaction(1, Path(b"", b""), ())))
    assert fields == {"kind": "tx-begin", "tx": 1, "mail": ""}


def test_a_recipient_not_yet_answered_is_not_refused() -> None:
    """MAIL and RCPT in one write: when MAIL is answered, RCPT is on its way."""
    transaction = Transaction(1, Path(b"a", b"x.example"), ())
    transaction.recipients.append(Recipient(Path(b"b", b"y.example"), ()))
    fields = rendered(AuditRecord(Kind.BEGIN, 0.0, None, transaction))
    assert "rcpt_refused" not in fields
    assert not fields.get("rcpt")


def test_a_link() -> None:
    fields = rendered(AuditRecord(Kind.CONNECT, 0.0, detail={"client": "192.0.2.1:1"}))
    assert fields == {"kind": "link-connect", "client": "192.0.2.1:1"}


# ------------------------------------------------------------------------------------ what is public, what personal

DOCS = (FilePath(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")


def _parts(record: AuditRecord, private: Private | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    line: dict[str, Any] = {"session": "a-1", "seq": 7}
    personal = render(record, line, private)
    del line["session"], line["seq"]
    return line, personal


def test_the_documentation_names_what_is_personal() -> None:
    found = re.search(r"Behind the salt stand (.*?) a TLS\nhandshake that failed (.*?), and the `why`", DOCS, re.DOTALL)
    assert found is not None
    assert set(re.findall(r"`(\w+)`", found[1] + found[2])) == PERSONAL


def test_every_key_of_an_exchange_is_documented() -> None:
    part = (
        DOCS[DOCS.index("## Exchanges") : DOCS.index("## TLS")] + DOCS[DOCS.index("## Records") :].split("## Kinds")[0]
    )
    line, personal = _parts(_full())
    named = set(re.findall(r"`(\w+)`", part)) | {"asked", "sent", "got", "told", "kind"}
    assert {*line, *personal} <= named


def _full() -> AuditRecord:
    """An exchange that has every key there is."""
    exchange = _exchange(b"MAIL FROM:<alice@x.example>\r\n")
    exchange.sent = _command(b"MAIL FROM:<bob@x.example>\r\n")
    exchange.told = Reply(550, b"550 alice@x.example? No\r\n")
    exchange.replies_before = (OK,)
    exchange.noise = b"050 noise\r\n"
    exchange.anomalies = ("odd",)
    exchange.octets = 9
    exchange.rule, exchange.action = "main", "rewrite"
    exchange.transaction = Transaction(3, Path(b"alice", b"x.example"), ())
    exchange.sent_at, exchange.got_at = 10.0, 10.125
    exchange.effects = Effects(("beside",), (Observed("trial", "answer", "550 alice@x"),), ("tagged",))
    return AuditRecord(Kind.EXCHANGE, 10.25, exchange, exchange.transaction)


def test_an_exchange_in_its_parts() -> None:
    line, personal = _parts(_full())
    assert line == {
        "kind": "exchange", "verb": "MAIL", "action": "rewrite", "rule": "main", "rules": ["beside"],
        "tags": ["tagged"], "anomalies": ["odd"], "octets": 9, "tx": 3, "code": 550, "seconds": 0.25, "waited": 0.125,
    }  # fmt: skip
    assert set(personal) == {"asked", "sent", "got", "got_before", "told", "noise", "mail", "observed"}
    assert personal["mail"] == "alice@x.example"


@pytest.mark.parametrize(
    ("kind", "detail", "public"),
    [
        (Kind.CONNECT, {"client": "192.0.2.1:9", "local": "a", "peer": "b", "destination": "c", "proxy": {"d": 1},
                        "listener": "in", "server": "mx:25", "match": "m", "refused": "full", "ruleset": "ab"},
         {"listener", "server", "match", "refused", "ruleset"}),
        (Kind.TLS, {"client": {"sni": "x"}, "server": {"version": "TLSv1.3"}, "passthrough": True},
         {"server", "passthrough"}),
        (Kind.AUTH, {"mechanism": "PLAIN", "accepted": True, "reply": 235, "identity": "ann"},
         {"mechanism", "accepted"}),
        (Kind.NOTE, {"anomaly": "tls-failed", "side": "client", "why": "x", "sni": "y", "ja4": "z", "told": "421"},
         {"anomaly", "side"}),
        (Kind.VIOLATION, {"anomaly": "bare-lf", "side": "client", "why": "x"}, {"anomaly", "side"}),
        (Kind.CLOSE, {"seconds": 1.0, "commands": 2, "transactions": 0, "inspected": True},
         {"seconds", "commands", "transactions", "inspected"}),
        (Kind.REFUSED, {"why": "RSET"}, {"why"}),
    ],
    ids=lambda value: value.value if isinstance(value, Kind) else "",
)  # fmt: skip
def test_each_kind_in_its_parts(kind: Kind, detail: dict[str, Any], public: set[str]) -> None:
    line, personal = _parts(AuditRecord(kind, 0.0, detail=detail))
    assert set(line) == {"kind", *public}
    assert line | personal == {"kind": kind.value, **detail}
    assert set(personal) == set(detail) - public


def test_a_transaction_in_its_parts() -> None:
    transaction = _transaction()
    transaction.size, transaction.digest, transaction.outcome = 7, "ab", OK
    transaction.message_id = b"<\xff@x.example>"
    line, personal = _parts(AuditRecord(Kind.REFUSED, 0.0, None, transaction, {"why": "server"}))
    assert line == {"kind": "tx-refused", "tx": 2, "octets": 7, "sha256": "ab", "code": 250, "why": "server"}
    assert set(personal) == {"mail", "rcpt", "rcpt_refused", "reply", "message_id"}
    assert personal["message_id"] == "<\\xff@x.example>"


@pytest.mark.parametrize(("code", "named"), [(250, False), (399, False), (400, True), (550, True)])
def test_a_sender_that_was_refused_is_named(code: int, named: bool) -> None:
    exchange = _exchange(b"MAIL FROM:<a@x.example>\r\n")
    exchange.transaction = Transaction(1, Path(b"a", b"x.example"), ())
    exchange.told = Reply(code, b"%d x\r\n" % code)
    fields = _fields(exchange)
    assert ("mail" in fields) is named
    assert fields["code"] == code


def test_what_was_not_told_has_no_code() -> None:
    exchange = _exchange()
    exchange.asked = exchange.told = None
    exchange.got_at = 0.0
    fields = _fields(exchange)
    assert "code" not in fields
    assert "waited" not in fields


# --------------------------------------------------------------------------------------------------- kept private


class Hidden:
    """Replaces what has an x in it, and says so."""

    def path(self, path: Path) -> str:
        """As of Addresses."""
        return f"path({path_text(path)})"

    def command(self, text: str) -> str:
        return f"command({text})"

    def text(self, text: str) -> str:
        return f"text({text})"

    def signing_in(self, text: str) -> str:
        return f"signing_in({text})"

    def identity(self, text: str) -> str:
        return f"identity({text})"

    def message_id(self, text: str) -> str:
        return f"id({text})"


def test_every_text_is_replaced_once_and_by_its_kind() -> None:
    line, personal = _parts(_full(), Private(Hidden()))
    assert personal == {
        "asked": "command(MAIL FROM:<alice@x.example>)", "sent": "command(MAIL FROM:<bob@x.example>)",
        "got": "text(250 2.0.0 Ok)", "got_before": ["text(250 2.0.0 Ok)"], "told": "text(550 alice@x.example? No)",
        "noise": "text(050 noise\r\n)", "mail": "path(alice@x.example)",
        "observed": [{"rule": "text(trial)", "action": "text(answer)", "told": "text(550 alice@x)"}],
    }  # fmt: skip
    assert "alice" not in repr(line)


def test_what_is_told_to_auth_is_replaced_by_a_rule_of_its_own() -> None:
    exchange = _exchange(b"AUTH LOGIN\r\n")
    exchange.told = exchange.got = Reply(235, b"235 welcome, alice\r\n")
    _, personal = _parts(AuditRecord(Kind.EXCHANGE, 10.25, exchange, None), Private(Hidden()))
    assert personal["asked"] == "command(AUTH LOGIN)"
    assert personal["got"] == "signing_in(235 welcome, alice)"


def test_paths_of_a_transaction_are_replaced() -> None:
    transaction = _transaction()
    transaction.digest, transaction.outcome, transaction.message_id = "ab", OK, b"<1@x>"
    detail = {"each": [(Path(b"b", b"y.example"), "250 b@y.example ok")]}
    _, personal = _parts(AuditRecord(Kind.COMMIT, 0.0, None, transaction, detail), Private(Hidden()))
    assert personal == {
        "mail": "path(a@x.example)", "rcpt": ["path(b0@y.example)", "path(b2@y.example)"],
        "rcpt_refused": ["path(b1@y.example)"], "message_id": "id(<1@x>)", "reply": "text(250 2.0.0 Ok)",
        "each": [["text(path(b@y.example))", "text(250 b@y.example ok)"]],
    }  # fmt: skip


def test_who_logged_in_is_replaced_and_where_from_is_not() -> None:
    _, personal = _parts(AuditRecord(Kind.AUTH, 0.0, detail={"identity": "ann", "reply": 235}), Private(Hidden()))
    assert personal == {"identity": "identity(ann)", "reply": 235}
    _, personal = _parts(AuditRecord(Kind.CONNECT, 0.0, detail={"client": "192.0.2.1:1"}), Private(Hidden()))
    assert personal == {"client": "192.0.2.1:1"}


TRANSCRIPT = {"asked_octets": "MAIL FROM:<alice@x.example>\r\n", "content": "To: bob@x.example"}


def test_a_transcript_is_sealed_to_its_record() -> None:
    sealed: list[tuple[bytes, bytes]] = []

    def seal(octets: bytes, about: bytes) -> str:
        sealed.append((octets, about))
        return "sealed"

    record = AuditRecord(Kind.NOTE, 0.0, detail={"transcript": TRANSCRIPT, "told": "421 x"})
    for private in (Private(None, seal), Private(Hidden(), seal)):
        _, personal = _parts(record, private)
        assert personal["transcript"] == {"sealed": "sealed"}
        octets, about = sealed.pop()
        assert json.loads(octets) == TRANSCRIPT  # as it was: that is what the auditor is to read
        assert about == b"a-1:7"
    assert personal["told"] == "text(421 x)"


def test_of_a_transcript_that_nobody_seals_what_the_mail_says_is_left_out() -> None:
    record = AuditRecord(Kind.NOTE, 0.0, detail={"transcript": TRANSCRIPT | {"got_octets": "250 bob\r\n"}})
    _, personal = _parts(record, Private(Hidden()))
    assert personal["transcript"] == {
        "asked_octets": "command(MAIL FROM:<alice@x.example>\r\n)",
        "got_octets": "text(250 bob\r\n)",
        "content": "<17 characters>",
    }
    record = AuditRecord(Kind.NOTE, 0.0, detail={"transcript": TRANSCRIPT})
    assert _parts(record)[1]["transcript"] == TRANSCRIPT
    assert _parts(record, Private())[1]["transcript"] == TRANSCRIPT


def test_private_with_nothing_in_it_changes_nothing() -> None:
    for record in (_full(), AuditRecord(Kind.COMMIT, 0.0, None, _transaction())):
        assert _parts(record, Private()) == _parts(record)


# -------------------------------------------------------------------------------------------------- hostile text


@given(st.binary(max_size=40))
def test_whatever_a_peer_writes_is_text_in_one_line(octets: bytes) -> None:
    asked = parse_command(b"NOOP " + octets.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n")
    reply = Reply(250, b"250 " + octets + b"\r\n")
    exchange = Exchange(GREETING, GREETING, 0.0)
    exchange.asked, exchange.got, exchange.told = asked, reply, reply
    exchange.noise = octets
    transaction = Transaction(1, Path(octets, octets), ())
    transaction.digest, transaction.message_id, transaction.outcome = "ab", octets, reply
    for record in (
        AuditRecord(Kind.EXCHANGE, 0.0, exchange),
        AuditRecord(Kind.COMMIT, 0.0, None, transaction, {"each": [(Path(octets, b""), str(reply))]}),
    ):
        encoded = msgspec.json.encode(rendered(record))
        assert not set(encoded) & set(range(32))
        assert isinstance(json.loads(encoded), dict)
