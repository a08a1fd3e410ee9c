"""BDAT (attacks.md E01–E53, RFC 3030): a chunk's octets are always taken or the session is closed; what is forwarded is
canonical; and no octet of a chunk is ever read as a command, by us or by the server."""

from typing import Any

import pytest

from smtpproxy.policy.judge import Judge
from smtpproxy.session.limits import Limits
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import Action, Depth, Verdict
from smtpproxy.smtp.replies import own
from tests.play import HELLO, MAIL, octets_of, play
from tests.session.judges import (
    BROKEN,
    ENVELOPE,
    NOOP,
    OPEN,
    QUIT,
    Looks,
    allow,
    anomalies,
    deny,
    exchanges,
    hello,
    limit_size,
)

CLOSED = """
    >C 521 5.5.4 Syntax error in BDAT, closing connection
    -> close server
    -> close client
"""

# --------------------------------------------------------------------------------------- E01–E31: counts that are none

BAD_COUNTS = [
    "", " ", " +5", " -5", " -1", " 0x5", " 5.0", " 5e1", " 1_000", " 1,000", " 5h", " five", " 5LAST", " 5 LAST LAST",
    " 5 LASTX", " 5 LAS", " 5 FOO", " LAST", " LAST 5", " 5,LAST", " 5 5", " 2147483648", " 4294967301",
    " 18446744073709551621", " 99999999999999999999999999", " 5\\0", " \\x005", " 5\\x0bLAST", " 5\\xa0LAST", " .",
    " $5", " '5'", ' "5"', " (5)", " 5;", " \\xef\\xbc\\x95", " \\xd9\\xa5", " \\xb2", " 5 LAST\\0", " 5\\x1b[A", "5",
    "\\t", ":5", "-5", "\\x005",
]  # fmt: skip


@pytest.mark.parametrize("count", BAD_COUNTS)
def test_a_count_that_can_not_be_read_closes(count: str) -> None:
    """E01–E31: how many octets follow is unknown, so nothing behind it can be read: 521, closed, nothing forwarded."""
    records = play(f"{MAIL}\n    C> BDAT{count}\n    C> MAIL FROM:<smuggled@x.example>\n{CLOSED}")
    assert "chunk-size-unknown" in anomalies(records)
    assert [r for r in exchanges(records) if "smuggled" in str(r)] == []


@pytest.mark.parametrize(
    "line", [" BDAT 5", "\\tBDAT 5", "BDAT\\0 5", "\\xa0BDAT 5", "BD\\0AT 5", "\\x0bBDAT 5", "bdat5", "BDAT\\x0b5"]
)
def test_a_bdat_that_is_hidden_closes(line: str) -> None:
    """E29: a server that drops the octet reads BDAT, and then content as commands or commands as content."""
    records = play(f"{MAIL}\n    C> {line}\n    C> abcde\\\n{CLOSED}")
    assert "chunk-size-unknown" in anomalies(records)


def test_a_bad_count_is_answered_in_its_turn() -> None:
    """I1: behind what is owed, and then closed."""
    play(
        HELLO
        + """
        C> MAIL FROM:<a@x.example>
        C> BDAT x LAST
        C> QUIT
        >S MAIL FROM:<a@x.example>

        S> 250 2.1.0 Ok
        >C 250 2.1.0 Ok
        >C 521 5.5.4 Syntax error in BDAT, closing connection
        -> close server
        -> close client
    """
    )


# ----------------------------------------------------------------------------------------- E32–E35: leniencies, E36–E41


@pytest.mark.parametrize(
    ("line", "sent", "name"),
    [
        ("BDAT 005 LAST", "BDAT 5 LAST", "leading-zeros"),
        ("BDAT 00000000000000000005 LAST", "BDAT 5 LAST", "leading-zeros"),
        ("BDAT  5 LAST", "BDAT 5 LAST", "odd-separator"),
        ("BDAT 5  LAST", "BDAT 5 LAST", "odd-separator"),
        ("BDAT\\t5\\tLAST", "BDAT 5 LAST", "odd-separator"),
        ("BDAT 5 last", "BDAT 5 LAST", "odd-case"),
        ("BDAT 5 LAST ", "BDAT 5 LAST", "trailing-blank"),
        ("bdat 5 LAST", "bdat 5 LAST", ""),
    ],
)
def test_odd_spellings_are_sent_on_canonically(line: str, sent: str, name: str) -> None:
    """E32–E35: five octets for us and for the server, in one spelling."""
    records = play(f"{MAIL}\n    C> {line}\n    C> abcde\\\n    >S {sent}\n    >S abcde\\\n\n    S> 250 Ok\n"
        f"    >C 250 Ok\n"
                   + NOOP)  # fmt: skip
    assert anomalies(records) == ([name] if name else [])


@pytest.mark.parametrize(
    "octets",
    [
        "abcde", ".\\r\\n.\\r", "\\r\\n.\\r\\n", "QUIT\\r", "\\0\\0\\0\\0\\0", "\\n\\n.\\n\\n", "\\r\\r\\r\\r\\r",
        "\\xff\\xfe\\x80\\x81\\x82",
        "BDAT ", "\\n.\\nab", "\\r\\nNOO",
    ],
)  # fmt: skip
def test_octets_are_exact(octets: str) -> None:
    """E36, A65: never looked at for an end, a dot or a command."""
    records = play(
        f"{MAIL}\n    C> BDAT {len_of(octets)} LAST\n    C> {octets}\\\n    >S BDAT {len_of(octets)} LAST\n"
        f"    >S {octets}\\\n"
        f"\n    S> 250 Ok\n    >C 250 Ok\n{NOOP}"
    )
    commit = next(r for r in records if r["kind"] == "tx-commit")
    assert commit["octets"] == len_of(octets)


def len_of(octets: str) -> int:
    """Octets of a transcript line."""
    return len(octets_of(octets + "\\"))


def test_zero_chunks() -> None:
    """E37–E39: BDAT 0, and BDAT 0 LAST, which ends the mail."""
    records = play(
        MAIL
        + """
        C> BDAT 0
        >S BDAT 0
        S> 250 a
        >C 250 a
        C> BDAT 3
        C> abc\\
        >S BDAT 3
        >S abc\\
        S> 250 b
        >C 250 b
        C> BDAT 0 LAST
        >S BDAT 0 LAST
        S> 250 c
        >C 250 c
    """
        + NOOP
    )
    assert [r["kind"] for r in records if r["kind"].startswith("tx-")] == ["tx-begin", "tx-commit"]
    assert next(r for r in records if r["kind"] == "tx-commit")["octets"] == 3


def test_the_shortest_mail() -> None:
    """E38: BDAT 0 LAST alone is a mail without content."""
    play(MAIL + "\n    C> BDAT 0 LAST\n    >S BDAT 0 LAST\n    S> 250 Ok\n    >C 250 Ok\n" + QUIT)


def test_a_thousand_tiny_chunks() -> None:
    """E40: counted over all of them."""
    chunks = "".join("    C> BDAT 1\n    C> x\\\n" for _ in range(500))
    sent = chunks.replace("C>", ">S")
    records = play(
        f"{MAIL}\n{chunks}{sent}\n{'    S> 250 Ok' * 0}" + "".join("    S> 250 Ok\n" for _ in range(500))
        + "".join("    >C 250 Ok\n" for _ in range(500))
        + "\n    C> BDAT 0 LAST\n    >S BDAT 0 LAST\n    S> 250 Ok\n    >C 250 Ok\n"
    )  # fmt: skip
    assert next(r for r in records if r["kind"] == "tx-commit")["octets"] == 500


def test_everything_pipelined() -> None:
    """E41: BDAT may stand anywhere in a group (RFC 3030 §4.2); its octets don't disturb the order."""
    play(
        HELLO
        + """
        C> MAIL FROM:<a@x.example>
        C> RCPT TO:<b@y.example>
        C> BDAT 6
        C> abc\\r\\nd\\
        C> BDAT 8 LAST
        C> QUIT\\r\\n.\\r\\
        C> NOOP
        C> QUIT
        >S MAIL FROM:<a@x.example>
        >S RCPT TO:<b@y.example>
        >S BDAT 6
        >S abc\\r\\nd\\
        >S BDAT 8 LAST
        >S QUIT\\r\\n.\\r\\
        >S NOOP
        >S QUIT

        S> 250 m
        S> 250 r
        S> 250 c
        S> 250 l
        S> 250 n
        S> 221 q
        >C 250 m
        >C 250 r
        >C 250 c
        >C 250 l
        >C 250 n
        >C 221 q
        -> close server
        -> close client
    """
    )


# -------------------------------------------------------------------------------------------- E42–E46: in wrong states


def swallowed(before: str, told: str, rules: Judge | None = None) -> list[dict[str, Any]]:
    """BDAT answered here, its octets swallowed, and NOOP behind it served."""
    return play(
        f"""{before}
        C> BDAT 6 LAST
        C> QUIT\\r\\n\\
        C> NOOP
        >C {told}
        >S NOOP
        S> 250 n
        >C 250 n
    """,
        rules=rules,
    )


def test_without_a_transaction() -> None:
    """E42: the server must have no reason to read octets as commands: 503 here, octets thrown away."""
    swallowed(HELLO, "503 5.5.1 Need MAIL and RCPT first")


def test_without_a_recipient() -> None:
    """E43."""
    swallowed(HELLO + ENVELOPE.partition("    C> RCPT")[0], "503 5.5.1 Need MAIL and RCPT first")


def test_before_hello_and_after_helo() -> None:
    """E44: nothing was offered."""
    greeting = "    S> 220 mx\n    >C 220 mx\n"
    assert "verb-not-offered" in anomalies(swallowed(greeting, "502 Command not offered here"))
    swallowed(hello(verb="HELO") + ENVELOPE, "502 Command not offered here")


def test_where_it_was_not_offered() -> None:
    """E45: an EHLO without CHUNKING."""
    assert "verb-not-offered" in anomalies(swallowed(hello("SIZE") + ENVELOPE, "502 Command not offered here"))
    swallowed(hello("CHUNKING") + ENVELOPE.join(("", ("\n    C> EHLO me\n    >S EHLO me\n    S> 250 mx\n"
        "    >C 250 mx\n")))
              + ENVELOPE, "502 Command not offered here")  # fmt: skip


def test_refused_by_rule() -> None:
    """E46: keyword gone, verb refused, octets thrown away."""
    before = MAIL.replace("    >C 250-CHUNKING\n", "")
    records = swallowed(before, "502 5.5.1 Command not implemented", deny("CHUNKING"))
    assert exchanges(records)[-2]["rule"] == "deny-chunking"
    records = swallowed(before, "502 5.5.1 Command not implemented", deny("BDAT"))
    assert exchanges(records)[-2]["rule"] == "deny-bdat"


def test_a_refused_bdat_of_nothing() -> None:
    """E46: no octets follow, and the next line is a command."""
    play(HELLO + "\n    C> BDAT 0 LAST\n    C> NOOP\n    >C 503 5.5.1 Need MAIL and RCPT first\n    >S NOOP\n\n"
         "    S> 250 n\n    >C 250 n\n")  # fmt: skip


def test_a_large_refused_chunk_is_thrown_away() -> None:
    """E47: as many octets as announced, and no more, in any cut."""
    play(HELLO + "\n    C> BDAT 100000 LAST\n    C> *100000 x\\\n    C> NOOP\n"
        "    >C 503 5.5.1 Need MAIL and RCPT first\n"
         "    >S NOOP\n\n    S> 250 n\n    >C 250 n\n")  # fmt: skip


def test_swallowing_has_an_end() -> None:
    """I7: what is thrown away is bounded, too."""
    records = play(HELLO + "\n    C> BDAT 2000 LAST\n    C> *2000 x\\\n    >C 503 5.5.1 Need MAIL and RCPT first\n"
                   "    >C 421 4.7.0 Too much refused content, closing\n    -> close server\n    -> close client\n",
                   limits=Limits(swallow=1000))  # fmt: skip
    assert "swallow-limit" in anomalies(records)


def test_after_rset_and_after_the_end() -> None:
    """E42: the transaction is over; BDAT needs another one."""
    rset = "\n    C> RSET\n    >S RSET\n    S> 250 Ok\n    >C 250 Ok\n"
    swallowed(MAIL + rset, "503 5.5.1 Need MAIL and RCPT first")
    last = "\n    C> BDAT 1 LAST\n    C> x\\\n    >S BDAT 1 LAST\n    >S x\\\n\n    S> 250 Ok\n    >C 250 Ok\n"
    swallowed(MAIL + last, "503 5.5.1 Need MAIL and RCPT first")


FIRST = "\n    C> BDAT 3\n    C> abc\\\n    >S BDAT 3\n    >S abc\\\n\n    S> 250 c\n    >C 250 c\n"
LAST = "\n    C> BDAT 2 LAST\n    C> de\\\n    >S BDAT 2 LAST\n    >S de\\\n\n    S> 250 l\n    >C 250 l\n"


def test_rset_between_chunks() -> None:
    """E48: RSET gives up the sequence; a chunk behind it has nowhere to go."""
    records = swallowed(
        MAIL + FIRST + "\n    C> RSET\n    >S RSET\n    S> 250 Ok\n    >C 250 Ok\n",
        "503 5.5.1 Need MAIL and RCPT first",
    )
    assert [r["kind"] for r in records if str(r["kind"]).startswith("tx-")] == ["tx-begin", "tx-refused"]


def test_rset_pipelined_between_chunks() -> None:
    """E48: RSET within a transaction holds: what the octets behind it belong to, only its reply tells."""
    play(
        MAIL
        + """
        C> BDAT 3
        C> abc\\
        C> RSET
        C> BDAT 4 LAST
        C> defg\\
        C> NOOP
        >S BDAT 3
        >S abc\\
        >S RSET

        S> 250 c
        S> 250 r
        >C 250 c
        >C 250 r
        >C 503 5.5.1 Need MAIL and RCPT first
        >S NOOP

        S> 250 n
        >C 250 n
    """
    )


@pytest.mark.parametrize("command", ["NOOP", "HELP", "RCPT TO:<c@y.example>", "VRFY b"])
def test_other_commands_between_chunks(command: str) -> None:
    """E49: they go their way, and the sequence goes on."""
    if command.startswith("VRFY"):
        between = (
            f"\n    C> {command}\n    >C 252 2.5.0 Cannot VRFY user, but will accept message and attempt delivery\n"
        )
    else:
        between = f"\n    C> {command}\n    >S {command}\n    S> 503 n\n    >C 503 n\n"
    records = play(MAIL + FIRST + between + LAST)
    assert next(r for r in records if r["kind"] == "tx-commit")["octets"] == 5


@pytest.mark.parametrize("command", ["MAIL FROM:<z@x.example>", "DATA", "EHLO me", "MAIL FROM:<z@x.example> FOO=1"])
def test_a_refused_command_between_chunks_changes_nothing(command: str) -> None:
    """E49, G18: state equal on both sides: what the server refused has not touched the sequence."""
    if "FOO" in command:
        between = f"\n    C> {command}\n    >C 555 5.5.4 Parameter not recognised\n"
    else:
        between = f"\n    C> {command}\n    >S {command}\n    S> 503 n\n    >C 503 n\n"
    records = play(MAIL + FIRST + between + LAST)
    commit = next(r for r in records if r["kind"] == "tx-commit")
    assert (commit["mail"], commit["octets"]) == ("a@x.example", 5)


def test_quit_between_chunks() -> None:
    """S4: no LAST is made up; the server sees the session end."""
    records = play(MAIL + FIRST + QUIT)
    assert [r["kind"] for r in records if r["kind"].startswith("tx-")] == ["tx-begin", "tx-refused"]


# ---------------------------------------------------------------------------------------- E50–E53: the server's replies


def test_the_server_refuses_chunk_one_while_two_and_three_are_under_way() -> None:
    """E50: RFC 3030 §4.2: every BDAT has its reply; the mail is refused."""
    records = play(
        MAIL
        + """
        C> BDAT 3
        C> abc\\
        C> BDAT 3
        C> def\\
        C> BDAT 3 LAST
        C> ghi\\
        C> NOOP
        >S BDAT 3
        >S abc\\
        >S BDAT 3
        >S def\\
        >S BDAT 3 LAST
        >S ghi\\
        >S NOOP

        S> 452 full
        S> 503 no
        S> 503 no
        S> 250 n
        >C 452 full
        >C 503 no
        >C 503 no
        >C 250 n
    """
    )
    assert [r["kind"] for r in records if r["kind"].startswith("tx-")] == ["tx-begin", "tx-refused"]


@pytest.mark.parametrize("code", [452, 554, 552])
def test_a_chunk_refused_before_its_end(code: int) -> None:
    """E51: a refusal may come early; the octets are sent on all the same, for the server counts them."""
    play(
        MAIL
        + f"""
        C> BDAT 6 LAST
        C> abc\\
        >S BDAT 6 LAST
        >S abc\\
        S> {code} no
        >C {code} no
        C> def\\
        >S def\\
    """
        + NOOP
    )


@pytest.mark.parametrize("size", ["6", "6 LAST"])
def test_a_chunk_acknowledged_before_its_end(size: str) -> None:
    """E52, G10: 250 before the octets is not an acknowledgement: 421, and the server's link cut."""
    records = play(
        f"{MAIL}\n    C> BDAT {size}\n    C> abc\\\n    >S BDAT {size}\n    >S abc\\\n\n    S> 250 ok\n{BROKEN}"
    )
    assert "reply-before-end" in anomalies(records)
    assert "tx-commit" not in [r["kind"] for r in records]


def test_the_second_chunk_acknowledged_before_its_end() -> None:
    """E52: 250 for each of two, of which one is not whole."""
    play(
        MAIL
        + """
        C> BDAT 3
        C> abc\\
        C> BDAT 6 LAST
        C> d\\
        >S BDAT 3
        >S abc\\
        >S BDAT 6 LAST
        >S d\\

        S> 250 one
        S> 250 two
        >C 250 one
    """
        + BROKEN
    )


@pytest.mark.parametrize("code", [334, 354, 355, 300])
def test_a_go_ahead_to_bdat(code: int) -> None:
    """D15: BDAT knows no 3yz."""
    play(f"{MAIL}\n    C> BDAT 0 LAST\n    >S BDAT 0 LAST\n    S> {code} go\n{BROKEN}")


@pytest.mark.parametrize("reply", ["450 later", "554 no"])
def test_last_refused(reply: str) -> None:
    """E53: relayed, refused on record, and BDAT needs another transaction."""
    script = f"{MAIL}\n    C> BDAT 0 LAST\n    >S BDAT 0 LAST\n    S> {reply}\n    >C {reply}\n"
    records = swallowed(script, "503 5.5.1 Need MAIL and RCPT first")
    assert [r["kind"] for r in records if str(r["kind"]).startswith("tx-")] == ["tx-begin", "tx-refused"]


# ------------------------------------------------------------------------------------------------------------- size

SMALL = hello("SIZE 1000", "CHUNKING", told=("SIZE 20", "CHUNKING")) + ENVELOPE


def test_size_over_all_chunks() -> None:
    """The limit counts over chunks; RSET takes the transaction back and the session lives on."""
    records = play(
        SMALL
        + """
        C> BDAT 15
        C> *15 x\\
        >S BDAT 15
        >S *15 x\\
        S> 250 c
        >C 250 c
        C> BDAT 6 LAST
        C> QUIT\\r\\n\\
        >S RSET
        S> 250 r
        >C 552 Message too big
    """
        + NOOP,
        rules=limit_size(20),
    )
    assert "over-size" in anomalies(records)
    assert [r["kind"] for r in records if r["kind"].startswith("tx-")] == ["tx-begin", "tx-refused"]


def test_size_exactly_at_the_limit() -> None:
    """20 of 20 pass."""
    play(SMALL + "\n    C> BDAT 20 LAST\n    C> *20 x\\\n    >S BDAT 20 LAST\n    >S *20 x\\\n\n    S> 250 c\n"
        "    >C 250 c\n",
         rules=limit_size(20))  # fmt: skip


def test_chunks_behind_one_that_was_too_big() -> None:
    """One RSET; every chunk of the lost sequence is answered, none forwarded."""
    play(
        SMALL
        + """
        C> BDAT 15
        C> *15 x\\
        C> BDAT 10
        C> *10 y\\
        C> BDAT 10
        C> *10 z\\
        C> BDAT 4 LAST
        C> abcd\\
        C> NOOP
        >S BDAT 15
        >S *15 x\\
        >S RSET
        >S NOOP

        S> 250 c
        S> 250 r
        S> 250 n
        >C 250 c
        >C 552 Message too big
        >C 552 Message too big
        >C 552 Message too big
        >C 250 n
    """,
        rules=limit_size(20),
    )


def test_a_new_transaction_after_one_that_was_too_big() -> None:
    """The next mail is counted from nothing."""
    play(
        SMALL
        + "\n    C> BDAT 25 LAST\n    C> *25 x\\\n    >S RSET\n\n    S> 250 r\n    >C 552 Message too big\n"
        + ENVELOPE
        + "\n    C> BDAT 20 LAST\n    C> *20 x\\\n    >S BDAT 20 LAST\n    >S *20 x\\\n\n    S> 250 c\n    >C 250 c\n",
        rules=limit_size(20),
    )


def test_data_after_a_chunk_sequence_that_was_too_big_and_not_ended() -> None:
    """RSET was sent for the refused chunk, so the server has no transaction: DATA gets the server's own 503."""
    play(
        SMALL
        + "\n    C> BDAT 25\n    C> *25 x\\\n    >S RSET\n\n    S> 250 r\n    >C 552 Message too big\n"
        + "\n    C> DATA\n    >S DATA\n    S> 503 no\n    >C 503 no\n" + NOOP,
        rules=limit_size(20),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------- held-back chunks


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE])
def test_chunks_held_back_go_as_chunks_of_our_own(depth: Depth) -> None:
    """Architecture §7: 250 here for the chunks held; then our own sizes."""
    rules = Looks(depth)
    records = play(
        MAIL
        + """
        C> BDAT 4
        C> A: b\\
        >C 250 2.0.0 Octets received
        C> BDAT 7 LAST
        C> \\r\\n\\r\\nxyz\\
        >S BDAT 11 LAST
        >S A: b\\r\\n\\r\\nxyz\\
        S> 250 l
        >C 250 l
    """
        + NOOP,
        rules=rules,
    )
    assert rules.seen[0] == (b"A: b\r\n\r\n" if depth is Depth.HEADER else b"A: b\r\n\r\nxyz")
    assert next(r for r in records if r["kind"] == "tx-commit")["octets"] == 11


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE])
@pytest.mark.parametrize("action", [Action.ANSWER, Action.DISCARD])
def test_chunks_refused_by_content(depth: Depth, action: Action) -> None:
    """Architecture §7: RSET for the client's LAST; the session lives on."""
    told = "550 5.7.1 No" if action is Action.ANSWER else "250 2.0.0 Ok"
    records = play(
        MAIL
        + f"""
        C> BDAT 4
        C> A: b\\
        >C 250 2.0.0 Octets received
        C> BDAT 4 LAST
        C> \\r\\n\\r\\n\\
        >S RSET
        S> 250 r
        >C {told}
    """
        + NOOP,
        rules=Looks(depth, Verdict(action, own("550 5.7.1 No"), "r")),
    )
    assert "tx-commit" not in [r["kind"] for r in records]


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE])
def test_data_behind_held_chunks(depth: Depth) -> None:
    """RFC 3030 §2: DATA behind BDAT is out of order; the octets already acknowledged must not be lost by it."""
    play(
        MAIL
        + """
        C> BDAT 4
        C> A: b\\
        >C 250 2.0.0 Octets received
        C> DATA
        >C 503 5.5.1 Need MAIL and RCPT first
    """.replace("Need MAIL and RCPT first", "BDAT was begun"),
        rules=Looks(depth),
    )


def test_our_own_bdat_refused() -> None:
    """Architecture §7: that reply is told at the exchange of the LAST."""
    records = play(
        MAIL
        + """
        C> BDAT 3 LAST
        C> abc\\
        >S BDAT 3 LAST
        >S abc\\
        S> 452 full
        >C 452 full
    """
        + NOOP,
        rules=Looks(Depth.WHOLE),
    )
    assert "tx-commit" not in [r["kind"] for r in records]


def test_quit_with_chunks_held_back() -> None:
    """S4: nothing of the mail reaches the server."""
    play(MAIL + "\n    C> BDAT 3\n    C> abc\\\n    >C 250 2.0.0 Octets received\n" + QUIT, rules=Looks(Depth.WHOLE))


# ------------------------------------------------------------------------------------------------------- binary mails


def test_binarymime() -> None:
    """RFC 3030 §3: where it is allowed, raw octets pass, and only by BDAT."""
    play(
        hello("CHUNKING", "BINARYMIME", "8BITMIME")
        + """
        C> MAIL FROM:<a@x.example> BODY=BINARYMIME
        >S MAIL FROM:<a@x.example> BODY=BINARYMIME
        S> 250 m
        >C 250 m
        C> RCPT TO:<b@y.example>
        >S RCPT TO:<b@y.example>
        S> 250 r
        >C 250 r
        C> BDAT 8 LAST
        C> \\0\\r\\n.\\r\\n\\n\\r\\
        >S BDAT 8 LAST
        >S \\0\\r\\n.\\r\\n\\n\\r\\
        S> 250 l
        >C 250 l
    """,
        rules=allow("BINARYMIME"),
    )


def test_binarymime_is_not_offered_without_chunking() -> None:
    """An extension without what it needs makes no sense, and would end in DATA."""
    play(hello("CHUNKING", "BINARYMIME", told=()), rules=deny("CHUNKING"))


def test_memory_stays_flat_in_a_large_chunk() -> None:
    """I7: octets go on as they come."""
    session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"EHLO me\r\n")
    session.server_sent(b"250-mx\r\n250 CHUNKING\r\n")
    session.client_sent(b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nBDAT 2000000000 LAST\r\n")
    session.to_server.clear()
    piece = b"x" * 65_536
    for _ in range(100):
        session.client_sent(piece)
        assert len(session.to_server) == len(piece)
        session.to_server.clear()
    assert session.receiving


# ----------------------------------------------------------------------- replies that come while octets are under way


@pytest.mark.parametrize(
    "refused",
    ["250 m\r\n550 r\r\n", "550 m\r\n503 r\r\n", "421 bye\r\n", "250 m\r\n421 bye\r\n", "250 m\r\n250 r\r\n452 c\r\n"],
)
@pytest.mark.parametrize("when", range(6))
def test_replies_while_octets_are_under_way(refused: str, when: int) -> None:
    """E50: everything pipelined, and the server refuses MAIL, RCPT or the chunk after so many octets of it: they are
    taken all the same, the next line is a command, and no exception."""
    for commands in (
        b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nBDAT 5 LAST\r\n",
        b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nBDAT 5\r\n",
    ):
        for depth in (Depth.STREAM, Depth.HEADER, Depth.WHOLE):
            session = Session(judge=Looks(depth), record=lambda record: None, clock=lambda: 0.0)
            session.server_sent(b"220 mx\r\n")
            session.client_sent(b"EHLO me\r\n")
            session.server_sent(b"250-mx\r\n250 CHUNKING\r\n")
            session.client_sent(commands + b"QUIT!"[:when])
            session.to_server.clear()
            replies = refused.encode()
            if depth is not Depth.STREAM and replies.count(b"\r\n") > 2:
                replies = b"250 m\r\n250 r\r\n"
            session.server_sent(replies)
            session.client_sent(b"QUIT!"[when:] + b"NOOP behind\r\n")
            if not session.closed:
                for _ in range(5):
                    if b"NOOP behind" in session.to_server or session.ledger.awaited is None:
                        break
                    session.server_sent(b"503 x\r\n")
                assert session.to_server.endswith(b"NOOP behind\r\n")
                assert session.to_server.count(b"QUIT!") <= 1


def test_a_refusal_of_mail_while_octets_are_under_way() -> None:
    """The same by transcript."""
    play(
        hello("CHUNKING")
        + """
        C> MAIL FROM:<a@x.example>
        C> RCPT TO:<b@y.example>
        C> BDAT 5 LAST
        C> ab\\
        >S MAIL FROM:<a@x.example>
        >S RCPT TO:<b@y.example>
        >S BDAT 5 LAST
        >S ab\\

        S> 550 m
        S> 503 r
        >C 550 m
        >C 503 r

        C> cde\\
        C> NOOP
        >S cde\\
        >S NOOP

        S> 503 b
        S> 250 n
        >C 503 b
        >C 250 n
    """
    )
    play(
        hello("CHUNKING")
        + """
        C> MAIL FROM:<a@x.example>
        C> BDAT 5 LAST
        C> ab\\
        >S MAIL FROM:<a@x.example>

        S> 550 m
        >C 550 m
        >C 503 Need MAIL and RCPT first

        C> cde\\
        C> NOOP
        >S NOOP

        S> 250 n
        >C 250 n
    """
    )


def test_the_first_chunk_refused_while_the_second_is_half_sent() -> None:
    """E50: the outcome is that of LAST; the octets under way are sent on."""
    records = play(
        MAIL
        + """
        C> BDAT 3
        C> abc\\
        C> BDAT 6
        C> def\\
        >S BDAT 3
        >S abc\\
        >S BDAT 6
        >S def\\

        S> 452 full
        >C 452 full

        C> ghi\\
        >S ghi\\
        S> 503 no
        >C 503 no
        C> BDAT 0 LAST
        >S BDAT 0 LAST
        S> 503 no
        >C 503 no
    """
        + NOOP
    )
    assert [r["kind"] for r in records if r["kind"].startswith("tx-")] == ["tx-begin", "tx-refused"]


@pytest.mark.parametrize("octets", [30, 200, 5000])
def test_a_chunk_that_is_too_big_is_refused_alike_in_any_cut(octets: int) -> None:
    """I6: with its header section held back, the size is known from the line: refused at once, nothing sent."""
    play(
        MAIL
        + f"""
        C> BDAT {octets} LAST
        C> A: b\\r\\n\\r\\n\\
        C> *{octets - 8} x\\
        >S RSET

        S> 250 r
        >C 552 5.3.4 Message too big
    """
        + NOOP,
        rules=Looks(Depth.HEADER, most=20),
    )
