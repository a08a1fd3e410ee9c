"""What a server says (attacks.md D01–D66, invariants I1 and I9): the client only ever reads clean replies, one for each
command; a reply that can't be trusted ends the session with 421, and none of its octets is passed on."""

import pytest

from smtpproxy.session.limits import Limits
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import Action, Verdict
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.registry.verbs import VERBS
from smtpproxy.smtp.replies import Reply, own
from tests.play import DATA, HELLO, MAIL, MismatchError, play
from tests.session.judges import (
    BROKEN,
    BROKEN_PLAIN,
    GREETING,
    LOST,
    LOST_PLAIN,
    NOOP,
    OPEN,
    QUIT,
    Says,
    again,
    allow,
    anomalies,
    deny,
    exchanges,
    hello,
)

# ------------------------------------------------------------------------- D01–D14, D18–D23: lines that are no replies

BAD_LINES = [
    ("codes differ", r"250-a\r\n251 b\r\n", "reply-codes-differ"),
    ("codes differ in class", r"250-a\r\n550 b\r\n", "reply-codes-differ"),
    ("codes differ at the end", r"250-a\r\n250-b\r\n354 c\r\n", "reply-codes-differ"),
    ("two digits", r"25 ok\r\n", "reply-malformed"),
    ("four digits", r"2500 ok\r\n", "reply-malformed"),
    ("one digit", r"2\r\n", "reply-malformed"),
    ("letters", r"abc ok\r\n", "reply-malformed"),
    ("a letter among digits", r"25O ok\r\n", "reply-malformed"),
    ("another script's digits", r"\xd9\xa2\xd9\xa5\xd9\xa0 ok\r\n", "reply-malformed"),
    ("superscript digits", r"\xb2\xb50 ok\r\n", "reply-malformed"),
    ("a sign", r"+250 ok\r\n", "reply-malformed"),
    ("a leading blank", r" 250 ok\r\n", "reply-malformed"),
    ("a leading TAB", r"\t250 ok\r\n", "reply-malformed"),
    ("TAB behind the code", r"250\tok\r\n", "reply-malformed"),
    ("text glued to the code", r"250ok\r\n", "reply-malformed"),
    ("underscore behind the code", r"250_ok\r\n", "reply-malformed"),
    ("an empty line", r"\r\n", "reply-malformed"),
    ("a blank line within", r"250-a\r\n\r\n250 b\r\n", "reply-malformed"),
    ("text without code within", r"250-a\r\nmore\r\n250 b\r\n", "reply-malformed"),
    ("first digit 0", r"050 noise\r\n", "reply-code-out-of-range"),
    ("first digit 1", r"150 wait\r\n", "reply-code-out-of-range"),
    ("first digit 6", r"600 what\r\n", "reply-code-out-of-range"),
    ("first digit 9", r"999 what\r\n", "reply-code-out-of-range"),
    ("000", r"000 what\r\n", "reply-code-out-of-range"),
    ("bare LF", r"250 ok\n", "reply-bare-lf"),
    ("bare LF within a reply", r"250-a\n250 b\r\n", "reply-bare-lf"),
    ("bare LF that hides a second reply", r"250 ok\n550 no\r\n", "reply-bare-lf"),
    ("bare CR", r"250 o\rk\r\n", "reply-bare-cr"),
    ("CR CR LF", r"250 ok\r\r\n", "reply-bare-cr"),
    ("bare CR that hides a second reply", r"250 ok\r550 no\r\n", "reply-bare-cr"),
    ("NUL", r"250 o\0k\r\n", "reply-nul"),
    ("NUL behind the code", r"250\0ok\r\n", "reply-nul"),
    ("NUL first", r"\0250 ok\r\n", "reply-nul"),
    ("LF CR", r"250 ok\n\r", "reply-bare-lf"),
    ("another protocol", r"HTTP/1.1 400 Bad Request\r\n", "reply-malformed"),
    ("POP3", r"+OK ready\r\n", "reply-malformed"),
    ("IMAP", r"* OK ready\r\n", "reply-malformed"),
    ("SSH", r"SSH-2.0-OpenSSH_9.2\r\n", "reply-malformed"),
]
CONTEXTS = {
    "a command": (HELLO, "NOOP", BROKEN),
    "MAIL": (HELLO, "MAIL FROM:<a@x.example>", BROKEN),
    "RCPT": (MAIL, "RCPT TO:<c@y.example>", BROKEN),
    "DATA": (MAIL, "DATA", BROKEN),
    "end of data": (DATA, ".", BROKEN),
    "EHLO": (GREETING, "EHLO me.example", BROKEN_PLAIN),
    "HELO": (GREETING, "HELO me.example", BROKEN_PLAIN),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("reply", "anomaly"), [row[1:] for row in BAD_LINES], ids=[row[0] for row in BAD_LINES])
def test_a_line_that_is_no_reply_ends_the_session(reply: str, anomaly: str, context: str) -> None:
    """D01–D14, D18–D22: 421, the server's link cut, and not one octet of what it said is told."""
    before, command, after = CONTEXTS[context]
    records = play(f"{before}\n    C> {command}\n    >S {command}\n    S> {reply}\\\n{after}")
    assert anomaly in anomalies(records)
    assert exchanges(records)[-1]["told"].startswith("421 ")


@pytest.mark.parametrize(("reply", "anomaly"), [row[1:] for row in BAD_LINES], ids=[row[0] for row in BAD_LINES])
def test_a_greeting_that_is_no_reply_ends_the_session(reply: str, anomaly: str) -> None:
    """D36–D42: the client gets a 421 in place of the greeting."""
    records = play(f"    S> {reply}\\\n{BROKEN_PLAIN}")
    assert anomalies(records)[0] == anomaly


@pytest.mark.parametrize(("reply", "anomaly"), [row[1:] for row in BAD_LINES], ids=[row[0] for row in BAD_LINES])
def test_a_line_that_is_no_reply_while_nobody_waits_ends_the_session(reply: str, anomaly: str) -> None:
    """D33: idle or not, a server that talks nonsense is not listened to any longer."""
    if reply.startswith("250 ok"):
        anomaly = anomalies(play(f"{HELLO}\n    S> {reply}\\\n{BROKEN}"))[-1]
    records = play(f"{HELLO}\n    S> {reply}\\\n{BROKEN}")
    assert anomaly in anomalies(records)


def test_replies_before_the_broken_one_are_told() -> None:
    """I1: what was whole before the violation has its place; what was owed behind it gets one 421."""
    play(
        HELLO
        + """
        C> MAIL FROM:<a@x.example>
        C> RCPT TO:<b@y.example>
        C> RCPT TO:<c@y.example>
        >S MAIL FROM:<a@x.example>
        >S RCPT TO:<b@y.example>
        >S RCPT TO:<c@y.example>
        S> 250 2.1.0 Ok
        S> 25O 2.1.5 Ok
        S> 250 2.1.5 Ok
        >C 250 2.1.0 Ok
        >C 421 4.3.0 The mail server broke the protocol, try again later
        -> abort server
        -> close client
    """
    )


# -------------------------------------------------------------------------------- D15–D17: replies that make no sense

SENSELESS = [
    (verb, code)
    for verb in ("NOOP", "RSET", "MAIL FROM:<a@x.example>", "RCPT TO:<c@y.example>", "HELP", "EHLO me", "HELO me")
    for code in (300, 334, 353, 354, 355, 399)
]
SENSELESS += [("DATA", code) for code in (200, 220, 250, 251, 300, 334, 353, 355)]


@pytest.mark.parametrize(("command", "code"), SENSELESS, ids=[f"{code} to {verb[:4]}" for verb, code in SENSELESS])
def test_a_go_ahead_where_none_is_due_ends_the_session(command: str, code: int) -> None:
    """D15–D17, I9: the client is never put into content or SASL mode by a server's whim; 2yz to DATA is senseless."""
    records = play(f"{MAIL}\n    C> {command}\n    >S {command}\n    S> {code} go\n{BROKEN}")
    assert "reply-impossible" in anomalies(records)


def test_nonsense_to_quit_costs_the_client_nothing() -> None:
    """G17: it is leaving: 221, whatever the server says."""
    for reply in ("334 go", "354 go", "2500 ok"):
        play(f"{HELLO}\n    C> QUIT\n    >S QUIT\n    S> {reply}\n    >C 221 2.0.0 Bye\n    -> abort server\n"
             "    -> close client\n")  # fmt: skip


@pytest.mark.parametrize("code", [334, 353, 354, 355])
def test_a_go_ahead_to_end_of_data_ends_the_session(code: int) -> None:
    """G09: 354 after end of data is not an acknowledgement, and no reason to send more content."""
    records = play(f"{DATA}\n    C> .\n    >S .\n    S> {code} go\n{BROKEN}")
    assert "reply-impossible" in anomalies(records)
    assert [r["kind"] for r in records if r["kind"].startswith("tx-")] == ["tx-begin", "tx-refused"]


@pytest.mark.parametrize("code", [220, 221, 235, 251])
def test_a_success_with_anothers_code_stays_a_success(code: int) -> None:
    """D17: 220 to NOOP begins no handshake, 221 to NOOP ends nothing, 235 to NOOP authenticates nobody."""
    play(f"{HELLO}\n    C> NOOP\n    >S NOOP\n    S> {code} what\n    >C {code} what\n{NOOP}{QUIT}")


# ------------------------------------------------------------------------------------------ D22–D24: control and 8-bit


@pytest.mark.parametrize(
    ("got", "told"),
    [
        (r"250 \x1b[2Jred", "250 ?[2Jred"),
        (r"250 bell\x07", "250 bell?"),
        (r"250 back\x08space", "250 back?space"),
        (r"250 del\x7f", "250 del?"),
        (r"250 vt\x0bff\x0c", "250 vt?ff?"),
        (r"550-one\x01\r\n550 two\x1f", "550-one?\\r\\n550 two?"),
    ],
)
def test_control_octets_are_replaced(got: str, told: str) -> None:
    """D23: a server can't write to the terminal or the log of who reads its replies."""
    records = play(f"{HELLO}\n    C> NOOP\n    >S NOOP\n    S> {got}\n    >C {told}\n{NOOP}")
    assert anomalies(records) == ["reply-control"]


@pytest.mark.parametrize("text", [r"caf\xe9", r"caf\xc3\xa9", r"\xff\xfe", "tab\\there", "", "-", " x", "%s%n{}"])
def test_text_beyond_ascii_is_passed_as_it_came(text: str) -> None:
    """D24: a reply's text is the server's own (RFC 6531 §3.7.4.2)."""
    play(f"{HELLO}\n    C> NOOP\n    >S NOOP\n    S> 250 {text}\n    >C 250 {text}\n{NOOP}")


def test_a_code_alone_is_a_reply() -> None:
    """RFC 5321 §4.2: the text may be missing; noted, and passed."""
    records = play(HELLO + "\n    C> NOOP\n    >S NOOP\n    S> 250\n    >C 250\n" + NOOP)
    assert anomalies(records) == ["reply-no-text"]


# ------------------------------------------------------------------------------------------------- D25–D31: how much


@pytest.mark.parametrize("length", [512, 513, 4090, 4096])
def test_a_long_reply_line_is_told_up_to_the_limit(length: int) -> None:
    """D25: 512 octets must do (RFC 5321 §4.5.3.1.5), and 4,096 do."""
    text = "x" * (length - 6)
    play(f"{HELLO}\n    C> NOOP\n    >S NOOP\n    S> 250 {text}\n    >C 250 {text}\n{NOOP}")


@pytest.mark.parametrize("length", [4097, 5000, 100_000])
def test_a_reply_line_beyond_the_limit_ends_the_session(length: int) -> None:
    """D26–D28: ended by CRLF or not."""
    for end in ("", "\\"):
        records = play(f"{HELLO}\n    C> NOOP\n    >S NOOP\n    S> 250 {'x' * (length - 6)}{end}\n{BROKEN}" if not end
                       else f"{HELLO}\n    C> NOOP\n    >S NOOP\n    S> 250 {'x' * length}\\\n{BROKEN}")  # fmt: skip
        assert "reply-line-too-long" in anomalies(records)


def test_a_reply_has_as_many_lines_as_the_limit() -> None:
    """D29."""
    lines = "".join(f"    S> 214-line {i}\n" for i in range(9)) + "    S> 214 end\n"
    script = f"{HELLO}\n    C> HELP\n    >S HELP\n{lines}{lines.replace('S>', '>C')}{NOOP}"
    play(script, limits=Limits(reply_lines=10))
    records = play(f"{HELLO}\n    C> HELP\n    >S HELP\n{lines}{BROKEN}", limits=Limits(reply_lines=9))
    assert "reply-too-many-lines" in anomalies(records)


def test_a_thousand_lines_are_told_and_no_more_are_kept() -> None:
    """D29–D30: the shipped limit."""
    lines = "".join(f"    S> 214-line {i}\n" for i in range(999)) + "    S> 214 end\n"
    play(f"{HELLO}\n    C> HELP\n    >S HELP\n{lines}{lines.replace('S>', '>C')}{NOOP}")
    records = play(f"{HELLO}\n    C> HELP\n    >S HELP\n    S> 214-x\n{lines}{BROKEN}")
    assert "reply-too-many-lines" in anomalies(records)


def test_memory_stays_flat_under_endless_replies() -> None:
    """D30–D31, I7: two million lines, or 30 MB in one: given up at the limit, and nothing kept behind it."""
    for piece in (b"214-line\r\n" * 1000, b"x" * 65_536):
        session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0)
        session.server_sent(b"220 mx\r\n")
        for _ in range(100):
            session.server_sent(piece)
            assert len(session.to_client) < 200
        assert session.closed


@pytest.mark.parametrize("part", [r"2", r"250", r"250 2.1.0 O", r"250-a\r\n", r"250-a\r\n250 b", r"250 ok\r"])
def test_a_reply_cut_by_close_is_not_told(part: str) -> None:
    """D31, G06: half a reply is none."""
    play(f"{HELLO}\n    C> NOOP\n    >S NOOP\n    S> {part}\\\n    !! end server\n{LOST}")
    play(f"    S> {part}\\\n    !! end server\n{LOST_PLAIN}")
    play(f"{DATA}\n    C> .\n    >S .\n    S> {part}\\\n    !! end server\n{LOST}")


# ----------------------------------------------------------------------------------------------- D32–D35: unsolicited


@pytest.mark.parametrize("second", ["250 again", "220 again", "354 go", "334 go", "221 bye", "235 in"])
def test_a_second_reply_to_one_command_ends_the_session(second: str) -> None:
    """D32, S2: it never becomes the next command's answer."""
    records = play(f"{HELLO}\n    C> NOOP\n    >S NOOP\n    S> 250 ok\n    S> {second}\n    >C 250 ok\n{BROKEN}")
    assert anomalies(records)[0] == "reply-unsolicited"


@pytest.mark.parametrize("reply", ["250 hi", "220 hi", "354 go", "221 bye"])
def test_a_success_while_nobody_waits_ends_the_session(reply: str) -> None:
    """D33."""
    records = play(f"{HELLO}\n    S> {reply}\n{BROKEN}")
    assert anomalies(records)[0] == "reply-unsolicited"


@pytest.mark.parametrize("reply", ["421 4.3.2 Shutting down", "421-a\\r\\n421 b", "450 4.3.0 x", "554 5.7.1 Go away"])
def test_a_refusal_while_nobody_waits_is_told_and_the_session_closed(reply: str) -> None:
    """D34: 421 may come at any time (RFC 5321 §3.8)."""
    records = play(f"{HELLO}\n    S> {reply}\n    >C {reply}\n    -> close server\n    -> close client\n")
    assert "reply-unsolicited" in anomalies(records)


def test_421_to_a_command_closes() -> None:
    """D35: told in its place; nothing follows it."""
    play(
        HELLO
        + """
        C> MAIL FROM:<a@x.example>
        C> RCPT TO:<b@y.example>
        >S MAIL FROM:<a@x.example>
        >S RCPT TO:<b@y.example>
        S> 421 4.3.2 Bye
        S> 421 4.3.2 Bye
        >C 421 4.3.2 Bye
        -> close server
        -> close client
    """
    )


@pytest.mark.parametrize(("before", "command"), [(HELLO, "MAIL FROM:<a@x.example>"), (MAIL, "DATA"), (DATA, ".")])
def test_421_at_each_step_closes(before: str, command: str) -> None:
    """D35, G16: relayed with its text."""
    play(f"{before}\n    C> {command}\n    >S {command}\n    S> 421 4.7.0 Later\n    >C 421 4.7.0 Later\n"
         "    -> close server\n    -> close client\n")  # fmt: skip


# --------------------------------------------------------------------------------------------------- D36–D50: greetings


@pytest.mark.parametrize("greeting", ["250 hello", "200 hello", "221 bye", "299 x", "334 x", "354 x"])
def test_a_greeting_with_another_code_is_none(greeting: str) -> None:
    """D36–D39."""
    records = play(f"    S> {greeting}\n{BROKEN_PLAIN}")
    assert anomalies(records)[0] == "greeting-malformed"


@pytest.mark.parametrize(
    "greeting",
    [
        "220 ********************************",  # PIX and ASA "fixup"
        "220 ****************200*****0*00",
        r"220-mx.example ESMTP\r\n220-No spam\r\n220 really",
        "220 ",
        "220 mx.example ESMTP Postfix (Debian/GNU)",
        r"220 \xe4\xf6\xfc",
    ],
)
def test_odd_greetings_are_served(greeting: str) -> None:
    """D40–D44: what follows 220 is text."""
    play(f"    S> {greeting}\n    >C {greeting}\n{again('PIPELINING')}{QUIT.replace('2.0.0 ', '')}")


def test_a_greeting_without_text_is_served() -> None:
    """RFC 5321 §4.2 again."""
    records = play("    S> 220\n    >C 220\n" + again())
    assert anomalies(records) == ["reply-no-text"]


@pytest.mark.parametrize("code", [521, 554, 550])
def test_a_refused_greeting_leaves_quit(code: int) -> None:
    """D45: RFC 5321 §3.1: the client may say QUIT, and the server answers the rest with 503."""
    play(
        f"""
        S> {code} No mail here
        >C {code} No mail here
        C> EHLO me
        >S EHLO me
        S> 503 No
        >C 503 No
        C> QUIT
        >S QUIT
        S> 221 Bye
        >C 221 Bye
        -> close server
        -> close client
    """
    )


@pytest.mark.parametrize("reply", ["421 busy", "450 busy", "421-busy\\r\\n421 very"])
def test_a_greeting_that_says_later_closes(reply: str) -> None:
    """D46: told, and both links closed."""
    play(f"    S> {reply}\n    >C {reply}\n    -> close server\n    -> close client\n")


@pytest.mark.parametrize("more", ["250 mx", "220 mx", "354 go", "nonsense"])
def test_a_greeting_glued_to_more_ends_the_session(more: str) -> None:
    """D47–D50: replies to commands nobody has sent."""
    play(f"    S> 220 mx\n    S> {more}\n    >C 220 mx\n{BROKEN_PLAIN}")


def test_no_greeting_at_all() -> None:
    """D48."""
    play(f"    !! end server\n{LOST_PLAIN}")
    play("    !! timeout server\n    >C 421 The mail server does not answer, try again later\n"
         "    -> abort server\n    -> close client\n")  # fmt: skip


def test_a_client_that_talks_first_waits() -> None:
    """F (early talk), I2: nothing is read before the greeting is told; recorded."""
    records = play(
        """
        !! early
        C> EHLO me
        S> 220 mx
        >C 220 mx
        >S EHLO me
        S> 250 mx
        >C 250 mx
    """
    )
    assert "early-talk" in anomalies(records)


# -------------------------------------------------------------------------------------------------- D51–D66: EHLO lists


def listing(*lines: str) -> str:
    """Lines the server offers, none of which the client is told."""
    return hello(*lines, told=())


@pytest.mark.parametrize(
    "line",
    [
        "XEXCH50", "X-UNHEARD-OF", "xfoo bar=baz", "XCLIENT NAME ADDR", "XFORWARD NAME", "VRFY", "EXPN", "ETRN", "TURN",
        "AUTH LOGIN PLAIN", "AUTH=LOGIN", "auth plain", "Auth=plain",
        "PIPECONNECT", "BINARYMIME", "BURL imap", "CHECKPOINT", "CONPERM", "UTF8SMTP", "OK", "Hello there", "IPV6",
        "X_PIPE_CONNECT", "X-EXPS NTLM", "X-LINK2STATE", "REQUIRETLS", "SUBMITTER", "MTRK",
    ],
)  # fmt: skip
def test_a_keyword_that_is_not_allowed_is_not_told(line: str) -> None:
    """D51–D58: the client sees an allow-list."""
    records = play(listing(line) + NOOP.replace("2.0.0 ", ""))
    assert "keyword-stripped" in anomalies(records)


@pytest.mark.parametrize(
    "line",
    [
        "",
        " SIZE",
        "-SIZE",
        "=AUTH",
        "*SIZE",
        r"SI\xc5\x98ZE",
        r"\xef\xbc\xb3IZE",
        "SIZE:100",
        "8BITMIME;",
        "PIPELINING,",
    ],
)
def test_a_line_that_is_no_keyword_is_not_told(line: str) -> None:
    """D59–D60."""
    records = play(listing(line) + NOOP.replace("2.0.0 ", ""))
    assert "ehlo-line-malformed" in anomalies(records)


def test_a_keyword_with_control_octets_is_not_told() -> None:
    """D61: what was replaced is no keyword any more."""
    records = play(
        GREETING + r"""
        C> EHLO me
        >S EHLO me
        S> 250-mx
        S> 250-SI\x1bZE 100
        S> 250 PIPELINING
        >C 250-mx
        >C 250 PIPELINING
    """)  # fmt: skip
    assert "ehlo-line-malformed" in anomalies(records)


def test_repeated_keywords_are_told_once() -> None:
    """D62."""
    offered = ("PIPELINING", "SIZE 100", "pipelining", "Size 200", "8BITMIME", "PIPELINING")
    records = play(hello(*offered, told=("PIPELINING", "SIZE 100", "8BITMIME")))
    assert "ehlo-keyword-repeated" in anomalies(records)


def test_hundreds_of_keywords_are_cut_to_what_is_allowed() -> None:
    """D63: fake-mail-server X_1 and more: no exception, and only what is allowed is told."""
    offered = (*tuple(f"XFOO{i} a b c" for i in range(150)), "PIPELINING")
    play(hello(*offered, told=("PIPELINING",)))
    # beyond the limit even what would be allowed is taken out
    offered = (*tuple(f"XFOO{i}" for i in range(20)), "PIPELINING")
    play(hello(*offered, told=()), limits=Limits(ehlo_lines=20))


def test_mixed_codes_in_the_list_end_the_session() -> None:
    """D64."""
    play(
        GREETING
        + """
        C> EHLO me
        >S EHLO me
        S> 250-mx
        S> 220-STARTTLS
        S> 250 SIZE
    """
        + BROKEN_PLAIN
    )


def test_a_list_under_another_success_code_is_filtered_too() -> None:
    """D65: what counts is the first digit."""
    play(
        GREETING
        + """
        C> EHLO me
        >S EHLO me
        S> 251-mx
        S> 251-XEXCH50
        S> 251 PIPELINING
        >C 251-mx
        >C 251 PIPELINING
    """
    )


def test_a_refused_hello_offers_nothing() -> None:
    """D66: keywords in a refusal are text; nothing of them may be used."""
    play(
        GREETING
        + """
        C> EHLO me
        >S EHLO me
        S> 502-CHUNKING
        S> 502 SIZE 100
        >C 502-CHUNKING
        >C 502 SIZE 100
        C> MAIL FROM:<a@x.example> SIZE=10
        >C 555 Parameter not offered here
    """
    )


def test_helo_is_answered_with_one_line() -> None:
    """D66: a list behind HELO is nobody's to use (RFC 5321 §4.1.1.1)."""
    records = play(
        GREETING
        + """
        C> HELO me
        >S HELO me
        S> 250-mx
        S> 250 SIZE 100
        >C 250 mx
        C> MAIL FROM:<a@x.example> SIZE=10
        >C 555 Parameter not offered here
    """
    )
    assert "helo-multiline" in anomalies(records)


# --------------------------------------------------------------------------------------------------- several replies


def lmtp(recipients: int) -> str:
    """An LMTP transaction with so many recipients accepted, up to the content."""
    script = hello("PIPELINING", verb="LHLO") + "\n    C> MAIL FROM:<a@x.example>\n    >S MAIL FROM:<a@x.example>\n"
    script += "    S> 250 Ok\n    >C 250 Ok\n"
    for i in range(recipients):
        script += f"    C> RCPT TO:<r{i}@y.example>\n    >S RCPT TO:<r{i}@y.example>\n    S> 250 Ok\n    >C 250 Ok\n"
    return script + "    C> DATA\n    >S DATA\n    S> 354 Go\n    >C 354 Go\n\n    C> x\n    C> .\n    >S x\n    >S .\n"


@pytest.mark.parametrize("recipients", [1, 2, 5])
def test_lmtp_gives_one_reply_a_recipient(recipients: int) -> None:
    """RFC 2033 §4.2: told as they come, and the next command's reply is its own."""
    replies = [f"{250 if i % 2 == 0 else 550} r{i}" for i in range(recipients)]
    script = lmtp(recipients)
    for reply in replies:
        script += f"\n    S> {reply}\n    >C {reply}\n"
    records = play(script + "\n    C> NOOP\n    >S NOOP\n    S> 250 n\n    >C 250 n\n", rules=allow("LHLO"))
    commits = [r for r in records if r["kind"] == "tx-commit"]
    assert len(commits) == 1
    if recipients > 1:
        assert commits[0]["each"] == [(f"r{i}@y.example", reply) for i, reply in enumerate(replies)]


def test_lmtp_counts_accepted_recipients_only() -> None:
    """Whom the server refused at RCPT gets no reply at end of data."""
    script = lmtp(1).replace("    C> DATA\n", "    C> RCPT TO:<no@y.example>\n    >S RCPT TO:<no@y.example>\n"
                             "    S> 550 No\n    >C 550 No\n    C> DATA\n")  # fmt: skip
    play(script + "\n    S> 250 a\n    >C 250 a\n    C> NOOP\n    >S NOOP\n    S> 250 n\n    >C 250 n\n",
         rules=allow("LHLO"))  # fmt: skip


def test_lmtp_by_bdat_gives_one_reply_a_recipient() -> None:
    """RFC 2033 and 3030: the same after BDAT LAST, but one alone to a chunk before it."""
    script = lmtp(2).partition("    C> DATA")[0].replace("PIPELINING", "CHUNKING")
    play(
        script
        + """
        C> BDAT 3
        C> abc\\
        >S BDAT 3
        >S abc\\
        S> 250 chunk
        >C 250 chunk
        C> BDAT 0 LAST
        >S BDAT 0 LAST
        S> 250 r0
        S> 450 r1
        >C 250 r0
        >C 450 r1
        C> NOOP
        >S NOOP
        S> 250 n
        >C 250 n
    """,
        rules=allow("LHLO"),
    )


def test_lmtp_where_no_recipient_was_accepted_gets_one_reply() -> None:
    """RFC 2033 §4.2 says 503 to DATA then; a server that says 354 all the same owes one reply."""
    script = lmtp(1).replace("S> 250 Ok\n    >C 250 Ok\n    C> DATA", "S> 550 No\n    >C 550 No\n    C> DATA")
    play(script + "\n    S> 503 No\n    >C 503 No\n    C> NOOP\n    >S NOOP\n    S> 250 n\n    >C 250 n\n",
         rules=allow("LHLO"))  # fmt: skip


def test_one_reply_too_many_from_an_lmtp_server_ends_the_session() -> None:
    """S2 holds for it too."""
    play(lmtp(2) + "\n    S> 250 r0\n    S> 250 r1\n    S> 250 r2\n    >C 250 r0\n    >C 250 r1\n" + BROKEN_PLAIN,
         rules=allow("LHLO"))  # fmt: skip


PRDR = hello("PRDR") + """
    C> MAIL FROM:<a@x.example> PRDR
    >S MAIL FROM:<a@x.example> PRDR
    S> 250 Ok
    >C 250 Ok
    C> RCPT TO:<b@y.example>
    >S RCPT TO:<b@y.example>
    S> 250 Ok
    >C 250 Ok
    C> RCPT TO:<c@y.example>
    >S RCPT TO:<c@y.example>
    S> 250 Ok
    >C 250 Ok
    C> DATA
    >S DATA
    S> 354 Go
    >C 354 Go
    C> .
    >S .
"""  # fmt: skip


def test_prdr_gives_a_reply_a_recipient_and_one_more() -> None:
    """commands.md §6: 353, one reply a recipient, and a final one."""
    records = play(
        PRDR
        + """
        S> 353 content analysis has started
        S> 250 b
        S> 550 c
        S> 250 queued
        >C 353 content analysis has started
        >C 250 b
        >C 550 c
        >C 250 queued
        C> NOOP
        >S NOOP
        S> 250 n
        >C 250 n
    """,
        rules=allow("PRDR"),
    )
    assert [r["kind"] for r in records if r["kind"].startswith("tx-")] == ["tx-begin", "tx-commit"]


def test_prdr_may_be_answered_with_one_ordinary_reply() -> None:
    """commands.md §6: the first digit decides."""
    for reply in ("250 queued", "550 no"):
        play(f"{PRDR}\n    S> {reply}\n    >C {reply}\n    C> NOOP\n    >S NOOP\n    S> 250 n\n    >C 250 n\n",
             rules=allow("PRDR"))  # fmt: skip


def test_prdr_all_refused_is_no_success() -> None:
    """S3: a 250 to one recipient and 550 at the end is no committed mail."""
    records = play(f"{PRDR}\n    S> 353 x\n    S> 550 b\n    S> 550 c\n    S> 550 no\n"
                   "    >C 353 x\n    >C 550 b\n    >C 550 c\n    >C 550 no\n", rules=allow("PRDR"))  # fmt: skip
    assert [r["kind"] for r in records if r["kind"].startswith("tx-")] == ["tx-begin", "tx-refused"]


def test_prdr_refused_in_the_final_reply_is_no_success() -> None:
    """S3: draft-hall-prdr: the last reply is the mail's; 550 there refuses it for everybody."""
    records = play(f"{PRDR}\n    S> 353 x\n    S> 250 b\n    S> 550 c\n    S> 550 no\n"
                   "    >C 353 x\n    >C 250 b\n    >C 550 c\n    >C 550 no\n", rules=allow("PRDR"))  # fmt: skip
    assert [r["kind"] for r in records if r["kind"].startswith("tx-")] == ["tx-begin", "tx-refused"]


def test_353_twice_ends_the_session() -> None:
    """I9: the second one is due to nobody."""
    play(f"{PRDR}\n    S> 353 x\n    S> 353 x\n    >C 353 x\n{BROKEN_PLAIN}", rules=allow("PRDR"))


VERBOSE = hello("VERB") + "\n    C> VERB\n    >S VERB\n    S> 250 Verbose\n    >C 250 Verbose\n"


def test_verb_noise_is_told_and_not_counted() -> None:
    """commands.md §6: 050 is no reply; it stands before the reply it belongs to."""
    records = play(
        VERBOSE
        + """
        C> NOOP
        >S NOOP
        S> 050 delivering
        S> 051 still
        S> 250 ok
        >C 050 delivering
        >C 051 still
        >C 250 ok
    """,
        rules=allow("VERB"),
    )
    assert exchanges(records)[-1]["noise"] == "050 delivering\r\n051 still\r\n"
    assert "verbose-noise" in anomalies(records)


def test_noise_keeps_its_place_behind_our_own_replies() -> None:
    """I1: what the server says about RCPT is not told before the 550 that stands in front of it."""
    play(
        VERBOSE
        + """
        C> MAIL FROM:<a@x.example>
        C> EXPN list
        C> RCPT TO:<b@y.example>
        >S MAIL FROM:<a@x.example>
        >S RCPT TO:<b@y.example>
        S> 250 m
        S> 050 looking
        S> 250 r
        >C 250 m
        >C 502 Command not implemented
        >C 050 looking
        >C 250 r
    """,
        rules=allow("VERB"),
    )


def test_noise_while_nobody_waits_is_told() -> None:
    """Sendmail delivers in the background."""
    play(VERBOSE + "\n    S> 050 delivering\n    >C 050 delivering\n", rules=allow("VERB"))


def test_noise_without_verb_ends_the_session() -> None:
    """D08: 0yz is out of range where nobody asked for it, or where it was refused."""
    play(HELLO + "\n    C> NOOP\n    >S NOOP\n    S> 050 x\n" + BROKEN)
    play(hello("VERB") + "\n    C> VERB\n    >S VERB\n    S> 502 No\n    >C 502 No\n    S> 050 x\n" + BROKEN_PLAIN,
         rules=allow("VERB"))  # fmt: skip


def test_checkpoint_answers_mail_with_355() -> None:
    """RFC 1845 §3: only where TRANSID was asked."""
    offered = hello("CHECKPOINT")
    mail = "MAIL FROM:<a@x.example> TRANSID=<1@x.example>"
    play(f"{offered}\n    C> {mail}\n    >S {mail}\n    S> 355 100 is the offset\n    >C 355 100 is the offset\n"
         "    C> NOOP\n    >S NOOP\n    S> 250 n\n    >C 250 n\n", rules=allow("CHECKPOINT"))  # fmt: skip
    mail = "MAIL FROM:<a@x.example>"
    play(f"{offered}\n    C> {mail}\n    >S {mail}\n    S> 355 100 is the offset\n{BROKEN_PLAIN}",
         rules=allow("CHECKPOINT"))  # fmt: skip


@pytest.mark.parametrize("code", [200, 201, 202, 209, 218, 231, 253, 260, 299, 400, 432, 458, 499, 541, 556, 571, 599])
def test_odd_but_legal_codes_are_passed(code: int) -> None:
    """commands.md §6: closed lists break; the first digit counts (RFC 5321 §4.2.1)."""
    play(f"{HELLO}\n    C> NOOP\n    >S NOOP\n    S> {code} x\n    >C {code} x\n{NOOP}")


# ------------------------------------------------------------------------------------------------- replies of our own

ENHANCED = hello("ENHANCEDSTATUSCODES")
PLAIN = hello("SIZE")
REFUSED = """
    C> EXPN list
    >C 502 5.5.1 Command not implemented
    C> XYZZY
    >C 500 5.5.1 Command unrecognized
    C> MAIL FROM:<a@x.example> FOO=1
    >C 555 5.5.4 Parameter not recognised
    C> AUTH PLAIN AGEAYg==
    >C 538 5.7.11 Encryption required for requested authentication mechanism
"""


def plain(script: str) -> str:
    """Without our enhanced codes."""
    for code in ("5.5.1 ", "5.5.4 ", "5.7.11 ", "5.5.2 "):
        script = script.replace(code, "")
    return script


@pytest.mark.parametrize(
    ("before", "enhanced"),
    [
        (ENHANCED, True),
        (PLAIN, False),
        (hello("enhancedstatuscodes"), True),
        (GREETING, False),
        (hello(verb="HELO"), False),
        (ENHANCED + again("SIZE"), False),
        (PLAIN + again("ENHANCEDSTATUSCODES"), True),
        (ENHANCED + again(verb="HELO"), False),
        (hello(verb="HELO") + again("ENHANCEDSTATUSCODES"), True),
    ],
)
def test_own_replies_carry_enhanced_codes_exactly_when_offered(before: str, enhanced: bool) -> None:
    """RFC 2034 §4: all or none."""
    play(before + (REFUSED if enhanced else plain(REFUSED)))


def test_own_replies_are_plain_where_the_extension_is_denied() -> None:
    """What the client was not told does not hold for it, whatever the server offered."""
    play(hello("ENHANCEDSTATUSCODES", told=()) + plain(REFUSED), rules=deny("ENHANCEDSTATUSCODES"))


# ---------------------------------------------------------------------------------------------------- rules on replies


def test_a_rule_rewrites_a_reply() -> None:
    """The told reply is the rule's, the record has both."""
    rules = Says(replies={"RCPT": Verdict(Action.REWRITE, Reply(550, b"550 5.1.1 No\r\n"), "r")})
    records = play(MAIL.replace(">C 250 2.1.5 Ok", ">C 550 5.1.1 No"), rules=rules)
    assert exchanges(records)[-1]["got"] == "250 2.1.5 Ok"
    assert exchanges(records)[-1]["told"] == "550 5.1.1 No"
    assert exchanges(records)[-1]["rule"] == "r"


def test_a_rule_answers_with_a_reply_of_ours() -> None:
    """In the form the client was offered."""
    rules = Says(replies={"NOOP": Verdict(Action.ANSWER, own("250 2.0.0 Fine"), "r")})
    play(HELLO + "\n    C> NOOP\n    >S NOOP\n    S> 250 x\n    >C 250 2.0.0 Fine\n", rules=rules)
    play(PLAIN + "\n    C> NOOP\n    >S NOOP\n    S> 250 x\n    >C 250 Fine\n", rules=rules)


def test_a_rule_hangs_up_on_a_reply() -> None:
    """Told, then both links closed."""
    rules = Says(replies={"NOOP": Verdict(Action.HANGUP, own("421 4.7.0 Enough"), "r")})
    play(HELLO + "\n    C> NOOP\n    >S NOOP\n    S> 250 x\n    >C 421 4.7.0 Enough\n    -> close server\n"
         "    -> close client\n", rules=rules)  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "command", "got", "value"),
    [
        ("DATA", "DATA", "354 Go", b"250 no\r\n"),
        ("DATA", "DATA", "354 Go", b"554 no\r\n"),
        ("DATA", "DATA", "554 No", b"354 go\r\n"),
    ],
)
def test_a_rule_can_not_change_the_framing(verb: str, command: str, got: str, value: bytes) -> None:
    """I9: a rule that would turn the client's next octets into something else is not followed, and said so."""
    rules = Says(replies={verb: Verdict(Action.REWRITE, Reply(int(value[:3]), value), "r")})
    script = f"{MAIL}\n    C> {command}\n    >S {command}\n    S> {got}\n    >C {got}\n"
    records = play(script, rules=rules)
    assert "rule-failed" in anomalies(records)


@pytest.mark.parametrize("value", [b"354 go\r\n", b"334 go\r\n"])
def test_a_rule_can_not_tell_a_go_ahead_where_none_is_due(value: bytes) -> None:
    """I9 for rules: 3yz to NOOP is as senseless from a rule as from a server."""
    rules = Says(replies={"NOOP": Verdict(Action.REWRITE, Reply(int(value[:3]), value), "r")})
    records = play(HELLO + "\n    C> NOOP\n    >S NOOP\n    S> 250 x\n    >C 250 x\n", rules=rules)
    assert "rule-failed" in anomalies(records)


def test_a_rule_that_fails_closes() -> None:
    """Architecture §9: fail closed, recorded."""

    class Fails(Says):
        def __init__(self) -> None:
            super().__init__()

            def fail(got: object, exchange: object, session: object) -> Verdict:
                raise ZeroDivisionError("secret detail")

            self.replies = {"NOOP": fail}

    records = play(HELLO + "\n    C> NOOP\n    >S NOOP\n    S> 250 x\n"
                   "    >C 451 4.3.0 Policy could not be decided, try again later\n"
                   "    -> close server\n    -> close client\n", rules=Fails())  # fmt: skip
    assert "rule-failed" in anomalies(records)
    assert "secret detail" not in str(records)


# ----------------------------------------------------------------------------------------------------------- patience


def test_the_server_is_always_read_while_its_link_lives() -> None:
    """A 421 of the server's own accord must reach the client promptly."""
    session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0)
    assert session.wants(Side.SERVER)
    session.server_sent(b"220 mx\r\n")
    assert session.wants(Side.SERVER)
    assert session.wants(Side.CLIENT)
    session.server_sent(b"421 bye\r\n")
    assert not session.wants(Side.SERVER)
    assert not session.wants(Side.CLIENT)


def test_every_3yz_of_the_registry_has_its_verb() -> None:
    """The table behind I9: only DATA, AUTH and their like have a 3yz."""
    go_aheads = {(name.decode(), code) for name, verb in VERBS.items() for code in verb.then if code // 100 == 3}
    assert go_aheads == {
        ("DATA", 354), ("AUTH", 334), ("X-EXPS", 334), ("XAUTH", 334), ("XEXCH50", 354), ("X-EXCH50", 354),
    }  # fmt: skip


def test_the_playbook_notices_a_missing_reply() -> None:
    """The test of the tests: an unfinished transcript is an error."""
    with pytest.raises(MismatchError):
        play(HELLO + "\n    C> NOOP\n    >S NOOP\n")
