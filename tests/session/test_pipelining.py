"""Pipelining (I1, I2): one reply for each command, in the order asked, whoever gives it; and nothing behind a command
that may change the framing is read before its reply is told."""

import pytest

from smtpproxy.session.limits import Limits
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import Action, Depth, Verdict
from smtpproxy.smtp.commands import Command, Malformed, parse_command
from smtpproxy.smtp.errors import Side
from tests.play import DATA, HELLO, MAIL, play
from tests.session.judges import (
    GREETING,
    NOOP,
    OPEN,
    PASSED_BY_RULE,
    Looks,
    Says,
    anomalies,
    answers,
    deny,
    exchanges,
    hello,
)

# ------------------------------------------------------------------------------------------ our replies in their turn


def test_a_refused_recipient_is_answered_in_its_turn() -> None:
    """I1: our own 550 stands between the server's two 250s, though it was known first."""
    rules = Says({"VRFY": answers("550 5.7.1 Not here")})
    records = play(
        HELLO
        + """
        C> MAIL FROM:<a@x.example>
        C> VRFY b
        C> RCPT TO:<c@ok.example>
        >S MAIL FROM:<a@x.example>
        >S RCPT TO:<c@ok.example>

        S> 250 2.1.0 Ok
        S> 250 2.1.5 Ok
        >C 250 2.1.0 Ok
        >C 550 5.7.1 Not here
        >C 250 2.1.5 Ok
    """,
        rules=rules,
    )
    assert [r["verb"] for r in exchanges(records)] == ["GREETING", "EHLO", "MAIL", "VRFY", "RCPT"]
    assert exchanges(records)[3]["sent"] is None


def test_each_reply_is_told_as_soon_as_it_may() -> None:
    """A local answer at the head is told at once, and the server's as they come."""
    play(
        HELLO
        + """
        C> EXPN a
        C> NOOP 1
        C> EXPN b
        C> EXPN c
        C> NOOP 2
        C> EXPN d
        >C 502 5.5.1 Command not implemented
        >S NOOP 1
        >S NOOP 2

        S> 250 1
        >C 250 1
        >C 502 5.5.1 Command not implemented
        >C 502 5.5.1 Command not implemented

        S> 250 2
        >C 250 2
        >C 502 5.5.1 Command not implemented
    """
    )


def test_every_kind_of_local_answer_waits() -> None:
    """Refused by rule, unknown, malformed, too long, a parameter nobody offered: all behind what was asked before."""
    play(
        HELLO
        + """
        C> NOOP
        C> EXPN a
        C> XYZZY
        C> MAIL
        C> *600 NOOP
        C> MAIL FROM:<a@x.example> FOO
        C> a\\rb
        C> RCPT TO:<\\xc3\\xa9@y.example>
        >S NOOP

        S> 250 n
        >C 250 n
        >C 502 5.5.1 Command not implemented
        >C 500 5.5.1 Command unrecognized
        >C 501 5.5.4 Syntax error in parameters or arguments
        >C 500 5.5.2 Line too long
        >C 555 5.5.4 Parameter not recognised
        >C 500 5.5.2 CR without LF in a command
        >C 553 5.6.7 Address needs SMTPUTF8
    """
    )


def test_a_rewritten_command_is_sent_as_the_rule_says() -> None:
    """REWRITE of a command: the server gets the rule's, the record has both."""
    other = parse_command(b"NOOP other\r\n")
    assert isinstance(other, Command)
    records = play(HELLO + "\n    C> NOOP this\n    >S NOOP other\n    S> 250 x\n    >C 250 x\n",
                   rules=Says({"NOOP": Verdict(Action.REWRITE, other, "r")}))  # fmt: skip
    assert (exchanges(records)[-1]["asked"], exchanges(records)[-1]["sent"]) == ("NOOP this", "NOOP other")


def test_discard_of_a_command_fails_closed() -> None:
    """There is nothing to discard in a command: 451, and said so."""
    records = play(HELLO + "\n    C> NOOP\n    >C 451 4.3.0 Policy could not be decided, try again later\n",
                   rules=Says({"NOOP": Verdict(Action.DISCARD, None, "r")}))  # fmt: skip
    assert "rule-failed" in anomalies(records)


def test_a_rule_that_fails_is_a_451() -> None:
    """Architecture §9: fail closed; the session lives on."""

    class Fails(Says):
        def __init__(self) -> None:
            super().__init__()

            def fail(command: object, session: object) -> Verdict:
                raise KeyError("secret detail")

            self.commands = {"NOOP": fail}

    records = play(
        HELLO + "\n    C> NOOP\n    >C 451 4.3.0 Policy could not be decided, try again later\n", rules=Fails()
    )
    assert "rule-failed" in anomalies(records)
    assert "secret detail" not in str(records)


# ------------------------------------------------------------------------------------------------------ holding verbs


@pytest.mark.parametrize("verb", ["EHLO me", "HELO me", "DATA", "QUIT"])
def test_nothing_behind_a_holding_command_is_read(verb: str) -> None:
    """I2: what stands behind it is not parsed, not judged and not sent before its reply is told."""
    records = play(
        f"""{HELLO}
        C> {verb}
        C> NOOP behind
        >S {verb}

        S> 503 no
        >C 503 no
        >S NOOP behind

        S> 250 n
        >C 250 n
    """
    )
    assert "pipelined-behind-hold" in exchanges(records)[-2]["anomalies"]


def test_unknown_verbs_hold_where_a_rule_passes_them() -> None:
    """Architecture §6: because we can't tell what they do."""
    rules = Says({"UNKNOWN": PASSED_BY_RULE})
    play(HELLO + "\n    C> XYZZY a\n    C> NOOP\n    >S XYZZY a\n\n    S> 250 x\n    >C 250 x\n    >S NOOP\n\n"
        "    S> 250 n\n"
         "    >C 250 n\n", rules=rules)  # fmt: skip


def test_lines_nobody_could_parse_hold_where_a_rule_passes_them() -> None:
    """Architecture §12: kept whole, in lock-step."""
    rules = Says(malformed=PASSED_BY_RULE)
    records = play(
        HELLO
        + """
        C> MAIL TO:<a@x.example>
        C> NOOP
        >S MAIL TO:<a@x.example>

        S> 501 x
        >C 501 x
        >S NOOP

        S> 250 n
        >C 250 n
    """,
        rules=rules,
    )
    assert exchanges(records)[-2]["rule"] == "r"
    play(
        HELLO + "\n    C> MAIL TO:<a@x.example>\n    >C 501 5.5.4 Syntax error in parameters or arguments\n",
        rules=Says(),
    )


def test_a_malformed_line_passed_by_a_rule_gets_no_3yz() -> None:
    """I9: what nobody could parse can't begin content."""
    play(HELLO + "\n    C> DATA now\n    >S DATA now\n    S> 354 go\n"
        "    >C 421 4.3.0 The mail server broke the protocol, try "
         "again later\n    -> abort server\n    -> close client\n", rules=Says(malformed=PASSED_BY_RULE))  # fmt: skip


def test_a_rule_can_not_pass_a_line_that_hides_framing() -> None:
    """BDAT without a count and other protocols close, whatever a rule says."""
    play(MAIL + "\n    C> BDAT x\n    >C 521 5.5.4 Syntax error in BDAT, closing connection\n    -> close server\n"
         "    -> close client\n", rules=Says(malformed=PASSED_BY_RULE))  # fmt: skip


def test_a_rule_on_malformed_lines_that_fails_decides_nothing() -> None:
    """Fail closed: the line is answered here."""

    class Fails(Says):
        def malformed(self, line: Malformed, session: Session) -> Verdict:  # type: ignore[override]
            raise KeyError("x")

    play(HELLO + "\n    C> MAIL\n    >C 501 5.5.4 Syntax error in parameters or arguments\n", rules=Fails())


ALL_AT_ONCE = """
        C> MAIL FROM:<a@x.example>
        C> RCPT TO:<b@y.example>
        C> DATA
        C> Subject: one
        C>
        C> ..one
        C> .
        C> MAIL FROM:<c@x.example>
        C> RCPT TO:<d@y.example>
        C> DATA
        C> Subject: two
        C> .
        C> QUIT
"""


def test_everything_in_one_write() -> None:
    """A66, I2: a second transaction behind a conforming end of data is its own; counts agree; recorded."""
    records = play(
        HELLO
        + ALL_AT_ONCE
        + """
        >S MAIL FROM:<a@x.example>
        >S RCPT TO:<b@y.example>
        >S DATA

        S> 250 m
        S> 250 r
        S> 354 go
        >C 250 m
        >C 250 r
        >C 354 go
        >S Subject: one
        >S
        >S ..one
        >S .
        >S MAIL FROM:<c@x.example>
        >S RCPT TO:<d@y.example>
        >S DATA

        S> 250 q
        S> 250 m
        S> 250 r
        S> 354 go
        >C 250 q
        >C 250 m
        >C 250 r
        >C 354 go
        >S Subject: two
        >S .
        >S QUIT

        S> 250 q
        S> 221 b
        >C 250 q
        >C 221 b
        -> close server
        -> close client
    """
    )
    assert anomalies(records).count("pipelined-behind-hold") == 2
    assert [(r["mail"], r["rcpt"]) for r in records if r["kind"] == "tx-commit"] == [
        ("a@x.example", ["b@y.example"]),
        ("c@x.example", ["d@y.example"]),
    ]


def test_data_refused_and_its_content_sent_all_the_same() -> None:
    """A client that didn't wait for 354: what it took for content are commands, and none of them is a mail."""
    play(
        HELLO
        + """
        C> DATA
        C> Subject: x
        C> .
        C> NOOP
        >S DATA

        S> 503 no
        >C 503 no
        >C 500 5.5.2 Syntax error, command unrecognized
        >C 500 5.5.2 Syntax error, command unrecognized
        >S NOOP

        S> 250 n
        >C 250 n
    """
    )


def test_354_with_no_recipient_left() -> None:
    """commands.md §7.2: a server may say 354 though every RCPT failed; the client then sends the dot alone."""
    records = play(
        HELLO
        + """
        C> MAIL FROM:<a@x.example>
        C> RCPT TO:<b@y.example>
        C> DATA
        >S MAIL FROM:<a@x.example>
        >S RCPT TO:<b@y.example>
        >S DATA
        S> 250 m
        S> 550 r
        S> 354 go
        >C 250 m
        >C 550 r
        >C 354 go
        C> .
        >S .
        S> 554 no
        >C 554 no
    """
    )
    assert [r["kind"] for r in records if r["kind"].startswith("tx-")] == ["tx-begin", "tx-refused"]


# ------------------------------------------------------------------------------------------------------- transactions


def test_mail_rset_mail_in_one_segment_do_not_mix() -> None:
    """Architecture §6: each exchange keeps its own transaction; RSET within one holds, for only its reply tells
    whether it is over."""
    records = play(
        HELLO
        + """
        C> MAIL FROM:<one@x.example>
        C> RCPT TO:<one@y.example>
        C> RSET
        C> MAIL FROM:<two@x.example>
        C> RCPT TO:<two@y.example>
        C> DATA
        >S MAIL FROM:<one@x.example>
        >S RCPT TO:<one@y.example>
        >S RSET

        S> 250 m1
        S> 250 r1
        S> 250 rset
        >C 250 m1
        >C 250 r1
        >C 250 rset
        >S MAIL FROM:<two@x.example>
        >S RCPT TO:<two@y.example>
        >S DATA

        S> 250 m2
        S> 250 r2
        S> 354 go
        >C 250 m2
        >C 250 r2
        >C 354 go

        C> .
        >S .
        S> 250 q
        >C 250 q
    """
    )
    assert [r.get("tx") for r in exchanges(records)][2:] == [1, 1, 1, 2, 2, 2, 2]
    assert [(r["kind"], r["mail"]) for r in records if r["kind"].startswith("tx-")] == [
        ("tx-begin", "one@x.example"),
        ("tx-refused", "one@x.example"),
        ("tx-begin", "two@x.example"),
        ("tx-commit", "two@x.example"),
    ]


REFUSALS = {
    "a second MAIL": ("MAIL FROM:<z@x.example>", "503 nested", ""),
    "EHLO": ("EHLO me", "503 no", ""),
    "HELO": ("HELO me", "503 no", ""),
    "RSET": ("RSET", "451 no", ""),
    "a second MAIL with a parameter": ("MAIL FROM:<z@x.example> FOO", "555 5.5.4 Parameter not recognised", "here"),
    "a second MAIL that is malformed": ("MAIL FROM:z", "501 5.1.7 Bad sender address syntax", "here"),
    "a second MAIL in UTF-8": ("MAIL FROM:<\\xc3\\xa9@x.example>", "553 5.6.7 Address needs SMTPUTF8", "here"),
    "SEND": ("SEND FROM:<z@x.example>", "502 5.5.1 Command not implemented", "here"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("content", ["DATA", "BDAT 3 LAST"])
def test_a_refused_command_does_not_touch_the_transaction(refusal: str, content: str) -> None:
    """G18 turned round: what was refused has changed nothing at the server, so nothing here: the mail is still that of
    the first MAIL, on record and for every rule."""
    command, reply, here = REFUSALS[refusal]
    passed = "" if here else f"    >S {command}\n    S> {reply}\n"
    script = f"{MAIL}\n    C> {command}\n{passed}    >C {reply}\n"
    if content == "DATA":
        script += DATA.removeprefix(MAIL) + "\n    C> .\n    >S .\n    S> 250 q\n    >C 250 q\n"
    else:
        script += f"\n    C> {content}\n    C> abc\\\n    >S {content}\n    >S abc\\\n\n    S> 250 q\n    >C 250 q\n"
    records = play(script)
    commits = [(r["mail"], r["rcpt"]) for r in records if r["kind"] == "tx-commit"]
    assert commits == [("a@x.example", ["b@y.example"])]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refused_command_does_not_switch_inspection_off(refusal: str) -> None:
    """The content rules of the transaction at the server apply, whatever was refused between MAIL and DATA."""
    command, reply, here = REFUSALS[refusal]
    if refusal == "SEND":
        here, reply = "", "502 no"
    passed = "" if here else f"    >S {command}\n    S> {reply}\n"
    rules = Looks(Depth.WHOLE, answers("550 5.7.1 No"))
    play(
        f"""{MAIL}
        C> {command}
{passed}        >C {reply}
        C> DATA
        >C 354 Start mail input; end with <CRLF>.<CRLF>
        C> virus
        C> .
        >S RSET
        S> 250 r
        >C 550 5.7.1 No
    """,
        rules=rules,
    )
    assert rules.seen[0] == b"virus\r\n"


def test_data_without_a_transaction_is_inspected_all_the_same() -> None:
    """A server that takes content nobody announced: no way around the content rules."""
    rules = Looks(Depth.WHOLE, answers("550 5.7.1 No"))
    session = Session(judge=rules, record=lambda record: None, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"HELO me\r\n")
    session.server_sent(b"250 mx\r\n")
    session.client_sent(b"DATA\r\n")
    for _ in range(3):
        if b"DATA" in session.to_server:
            session.to_server.clear()
            session.server_sent(b"354 go\r\n")
        session.client_sent(b"virus\r\n.\r\n")
    assert b"virus" not in session.to_server


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE])
def test_deferred_data_without_an_accepted_recipient(depth: Depth) -> None:
    """Architecture §7: 554, as the server would have said; told in its turn."""
    play(
        HELLO
        + """
        C> MAIL FROM:<a@x.example>
        C> RCPT TO:<b@y.example>
        C> DATA
        C> NOOP
        >S MAIL FROM:<a@x.example>
        >S RCPT TO:<b@y.example>

        S> 250 m
        S> 550 r
        >C 250 m
        >C 550 r
        >C 554 5.5.1 No valid recipients
        >S NOOP

        S> 250 n
        >C 250 n
    """,
        rules=Looks(depth),
    )


# ---------------------------------------------------------------------------------------------------------- how much


@pytest.mark.parametrize("command", [b"EXPN x\r\n", b"DATA\r\n", b"STARTTLS\r\n", b"BDAT 0\r\n"])
def test_twenty_thousand_local_answers(command: bytes) -> None:
    """Architecture §5: 20,000 turns of a loop, not 20,000 stack frames; in one read, one reply each."""
    session = Session(judge=deny("DATA", "CHUNKING"), record=lambda record: None, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.to_client.clear()
    session.client_sent(command * 20_000)
    assert session.to_client.count(b"\r\n") == 20_000
    assert session.to_server == b""
    assert len(session.ledger) == 0


def test_twenty_thousand_refused_data_in_lock_step() -> None:
    """The same where each one holds: a reply of the server lets one more out, and the stack does not grow."""
    session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"DATA\r\n" * 5_000)
    for _ in range(5_000):
        assert session.to_server == b"DATA\r\n"
        session.to_server.clear()
        session.server_sent(b"503 no\r\n")
    assert session.to_client.count(b"503") == 5_000


def test_deferred_data_in_numbers() -> None:
    """Each deferred DATA without a recipient is answered here and holds for no time at all."""
    session = Session(judge=Looks(Depth.WHOLE), record=lambda record: None, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"MAIL FROM:<a@x>\r\n" + b"DATA\r\n" * 5_000)
    session.server_sent(b"250 m\r\n")
    assert session.to_client.count(b"554 ") == 5_000


def test_the_ledger_is_bounded_and_resumes() -> None:
    """I7, F43: beyond the limit the client is not read; nothing is lost, and it goes on when replies come."""
    session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0, limits=Limits(pipelined=10))
    session.server_sent(b"220 mx\r\n")
    session.to_client.clear()
    session.client_sent(b"".join(b"NOOP %d\r\n" % i for i in range(25)))
    assert session.to_server.count(b"NOOP") == 10
    assert not session.wants(Side.CLIENT)
    for i in range(25):
        session.server_sent(b"250 %d\r\n" % i)
        assert len(session.ledger) <= 10
    assert session.to_server == b"".join(b"NOOP %d\r\n" % i for i in range(25))
    assert bytes(session.to_client) == b"".join(b"250 %d\r\n" % i for i in range(25))
    assert session.wants(Side.CLIENT)


def test_unsent_octets_hold_the_client_back() -> None:
    """F45: 300,000 pipelined NOOPs whose replies nobody reads: the client is not read any longer."""
    for full in ("to_client", "to_server"):
        session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0, limits=Limits(unsent=100))
        session.server_sent(b"220 mx\r\n")
        assert session.wants(Side.CLIENT)
        getattr(session, full).extend(b"x" * 101)
        assert not session.wants(Side.CLIENT)


def test_the_client_is_not_read_while_something_holds() -> None:
    """I2: backpressure."""
    session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0)
    assert not session.wants(Side.CLIENT)
    session.server_sent(b"220 mx\r\n")
    assert session.wants(Side.CLIENT)
    session.client_sent(b"EHLO me\r\n")
    assert session.holding
    assert not session.wants(Side.CLIENT)
    session.server_sent(b"250 mx\r\n")
    assert session.wants(Side.CLIENT)


def test_what_was_read_behind_a_hold_is_kept_in_any_number_of_pieces() -> None:
    """I2, I6."""
    session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0)
    for i in range(10):
        session.client_sent(b"NOOP %d\r\n" % i)
    assert session.to_server == b""
    session.server_sent(b"220 mx\r\n")
    assert session.to_server.count(b"NOOP") == 10


def test_out_of_order_is_noted() -> None:
    """A server that accepts what the state does not allow: recorded, and told."""
    records = play(
        GREETING + "\n    C> RCPT TO:<b@y.example>\n    >S RCPT TO:<b@y.example>\n    S> 250 r\n    >C 250 r\n" + NOOP
    )
    assert "out-of-order" in anomalies(records)


def test_content_nobody_announced_is_on_record() -> None:
    """A server that says 354 to DATA out of the blue: counted as a mail from the null reverse-path."""
    records = play(
        hello()
        + """
        C> DATA
        >S DATA
        S> 354 go
        >C 354 go
        C> x
        C> .
        >S x
        >S .
        S> 250 q
        >C 250 q
    """
    )
    assert "out-of-order" in anomalies(records)
    assert [(r["mail"], r["octets"]) for r in records if r["kind"] == "tx-commit"] == [("", 3)]
