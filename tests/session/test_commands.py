"""Commands as lines (attacks.md C01–C120; I1, I3): one reply each, in sync; what no grammar has in full is never
forwarded; what took a leniency is forwarded in its canonical spelling and says so on record."""

from typing import Any

import pytest

from smtpproxy.audit.lines import rendered
from smtpproxy.session.limits import Limits
from smtpproxy.session.session import Session
from tests.play import HELLO, MAIL, play
from tests.session.judges import GREETING, NOOP, OPEN, Says, allow, anomalies, answers, exchanges, hello

UNREADABLE = "500 5.5.2 Syntax error, command unrecognized"
UNKNOWN = "500 5.5.1 Command unrecognized"
BAD = "501 5.5.4 Syntax error in parameters or arguments"
SENDER = "501 5.1.7 Bad sender address syntax"
RECIPIENT = "501 5.1.3 Bad recipient address syntax"
DENIED = "502 5.5.1 Command not implemented"
CLOSED = "    -> close server\n    -> close client\n"


def refused(line: str, told: str, before: str = HELLO) -> list[dict[str, Any]]:
    """Answered here, nothing forwarded, and the next command served."""
    records = play(f"{before}\n    C> {line}\n    >C {told}\n{NOOP}")
    assert exchanges(records)[-2].get("sent") is None
    return records


# -------------------------------------------------------------------------------------------- C01–C12: blanks and verbs


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", UNREADABLE),
        (" ", UNREADABLE),
        ("\\t", UNREADABLE),
        (" NOOP", UNREADABLE),
        ("\\tNOOP", UNREADABLE),
        ("\\x0bNOOP", UNREADABLE),
        ("NOOP\\x0bx", UNREADABLE),
        ("NOOP\\x0cx", UNREADABLE),
        ("X", UNKNOWN),
        ("NOO", UNKNOWN),
        ("NOOPX", UNKNOWN),
        ("X" * 300, UNKNOWN),
        ("XYZZY with words", UNKNOWN),
        ("X-Y-Z", UNKNOWN),
        ("MAIL", BAD),
        ("RCPT", BAD),
        ("EHLO", BAD),
        ("HELO", BAD),
        ("VRFY", BAD),
        ("DATA x", BAD),
        ("RSET now", BAD),
        ("QUIT now", BAD),
        ("MAILFROM:<a@x.example>", UNREADABLE),
        ("HELO:", UNREADABLE),
        ("GREETING", UNKNOWN),
        ("SASL YQ==", UNKNOWN),
        ("END", UNKNOWN),
        ("UNKNOWN", UNKNOWN),
        ("OCTETS", UNKNOWN),
        (".", UNREADABLE),
        ("..", UNREADABLE),
        ("Subject: x", UNREADABLE),
        ("SIZE 100", UNKNOWN),
        ("8BITMIME", UNKNOWN),
        ("CHUNKING", UNKNOWN),
        ("PIPELINING", UNKNOWN),
    ],
)
def test_lines_that_are_no_command(line: str, told: str) -> None:
    """C01–C12: one reply each, nothing forwarded, in sync."""
    refused(line, told)


@pytest.mark.parametrize("verb", ["NOOP", "noop", "NooP", "nOOp"])
def test_verbs_in_any_case_are_served(verb: str) -> None:
    """C09: RFC 5321 §2.4; byte for byte."""
    play(f"{HELLO}\n    C> {verb}\n    >S {verb}\n    S> 250 n\n    >C 250 n\n")


@pytest.mark.parametrize(
    ("line", "sent", "name"),
    [
        ("NOOP ", "NOOP", "trailing-blank"),
        ("NOOP\\t", "NOOP", "trailing-blank"),
        ("NOOP\\tx", "NOOP x", "odd-separator"),
        ("NOOP  x", "NOOP x", "odd-separator"),
        ("RSET   ", "RSET", "trailing-blank"),
        ("QUIT \\t", "QUIT", "trailing-blank"),
        ("EHLO  me.example", "EHLO me.example", "odd-separator"),
        ("EHLO my_host", "EHLO my_host", "odd-hello"),
        ("HELO [300.1.1.1]", "HELO [300.1.1.1]", "odd-hello"),
        ("MAIL FROM: <a@x.example>", "MAIL FROM:<a@x.example>", "blank-after-colon"),
        ("MAIL FROM:a@x.example", "MAIL FROM:<a@x.example>", "bare-path"),
        ("MAIL FROM:<a@x.example> ", "MAIL FROM:<a@x.example>", "trailing-blank"),
        ("MAIL  FROM:<a@x.example>", "MAIL FROM:<a@x.example>", "odd-separator"),
        ("mail from: a@x.example", "MAIL FROM:<a@x.example>", "blank-after-colon"),
        ("MAIL FROM:<a..b@x.example>", "MAIL FROM:<a..b@x.example>", "odd-local-part"),
        ("MAIL FROM:<a.@x.example>", "MAIL FROM:<a.@x.example>", "odd-local-part"),
        ("MAIL FROM:<a@x_y.example>", "MAIL FROM:<a@x_y.example>", "odd-domain"),
        ("MAIL FROM:<a@-x.example>", "MAIL FROM:<a@-x.example>", "odd-domain"),
        ("MAIL FROM:<a@x.example>  BODY=8BITMIME", "MAIL FROM:<a@x.example> BODY=8BITMIME", "odd-separator"),
    ],
)
def test_leniencies_are_forwarded_canonically(line: str, sent: str, name: str) -> None:
    """Architecture §12: server and proxy can't read it differently; named on record."""
    records = play(f"{HELLO}\n    C> {line}\n    >S {sent}\n    S> 250 k\n    >C 250 k\n")
    assert name in anomalies(records)


# --------------------------------------------------------------------------------------------- C13–C24: odd octets


@pytest.mark.parametrize(
    "line",
    [
        "\\xcd\\xc1\\xc9\\xcc FROM:<a@x.example>",  # 8-bit verb
        "MA\\xc4\\xb0L FROM:<a@x.example>",  # dotted capital I
        "MA\\xc4\\xb1L FROM:<a@x.example>",  # dotless i
        "\\xef\\xbc\\xad\\xef\\xbc\\xa1\\xef\\xbc\\xa9\\xef\\xbc\\xac FROM:<a@x.example>",  # fullwidth
        "\\xff\\xfe",
        "NO\\0OP",
        "NOOP\\0",
        "\\0NOOP",
        "NOOP\\0\\0x",
        "NO\\x08OP",
        "\\x1b[2JNOOP",
        "NOOP\\x7f",
        "\\xa0NOOP",
        "\\xc2\\x85NOOP",
        "{NOOP}",
        "$(reboot)",
    ],
)
def test_odd_octets_in_the_verb(line: str) -> None:
    """C13–C24: 500, never forwarded."""
    refused(line, UNREADABLE)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("NOOP x\\0y", BAD),
        ("NOOP x\\x1b[2J", BAD),
        ("NOOP x\\x08", BAD),
        ("NOOP x\\x7f", BAD),
        ("MAIL FROM:<a\\0b@x.example>", BAD),
        ("MAIL FROM:<a@x.example>\\0", BAD),
        ("RCPT TO:<b@y.example>\\x1b", BAD),
        ("EHLO me\\0.example", BAD),
        ("HELP \\x07", BAD),
    ],
)
def test_control_octets_in_the_argument(line: str, told: str) -> None:
    """C16–C22: NUL, ESC and their like never reach the server; the record shows them escaped, on one line."""
    records = refused(line, told)
    assert all(c.isprintable() for c in str(exchanges(records)[-2]["asked"]))


def test_records_are_printable_whatever_came() -> None:
    """J8: one record an event, whatever octet is in the line."""
    said: list[dict[str, object]] = []
    session = Session(
        judge=Says({"NOOP": answers("250 n")}),
        record=lambda record: said.append(rendered(record)),
        clock=lambda: 0.0,
        limits=Limits(malformed=10**6),
    )
    session.server_sent(b"220 mx\r\n")
    for octet in set(range(256)) - {10, 13}:
        session.client_sent(b"NOOP a%cb\r\n%c\r\nMAIL FROM:<%c>\r\n" % (octet, octet, octet))
    for fields in said:
        for value in (fields["asked"], fields.get("sent")):
            assert value is None or str(value).isprintable()


# ----------------------------------------------------------------------------------------------- C25–C30: ends of lines


@pytest.mark.parametrize(
    "line", ["NOOP\\n\\", "\\n\\", "NOOP\\nNOOP", "MAIL FROM:<a@x.example>\\nRCPT TO:<b@y.example>", "\\n\\r\\"]
)
def test_bare_lf_closes(line: str) -> None:
    """C25–C26: two readings of the same octets: 521, closed, nothing forwarded."""
    records = play(f"{HELLO}\n    C> {line}\n    C> NOOP\n    >C 521 5.5.2 Lines end with CR LF, closing\n{CLOSED}")
    assert "bare-lf-in-command" in anomalies(records)
    assert "out" not in [r.get("sent") for r in exchanges(records)]


def test_bare_lf_closes_in_its_turn() -> None:
    """I1: what was asked before is answered before."""
    play(f"{HELLO}\n    C> NOOP\n    C> NOOP\\nQUIT\n    >S NOOP\n\n    S> 250 n\n    >C 250 n\n"
         f"    >C 521 5.5.2 Lines end with CR LF, closing\n{CLOSED}")  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "NO\\rOP",
        "NOOP\\r",
        "\\rNOOP",
        "NOOP\\rQUIT",
        "MAIL FROM:<a@x.example>\\rRCPT TO:<b@y.example>",
        "\\r",
        "\\r\\r",
    ],
)
def test_bare_cr_is_refused(line: str) -> None:
    """C27–C29 (CR CR LF among them): one reply, never forwarded, in sync."""
    records = refused(line, "500 5.5.2 CR without LF in a command")
    assert "bare-cr-in-command" in anomalies(records)


# ----------------------------------------------------------------------------------------------------- C31–C38: lengths


@pytest.mark.parametrize("octets", [510, 512, 513, 1000, 2000, 2048])
def test_long_lines_are_served_up_to_the_limit(octets: int) -> None:
    """C31–C33: 512 must be (RFC 5321 §4.5.3.1.4), extensions add."""
    line = "NOOP " + "x" * (octets - 7)
    play(f"{HELLO}\n    C> {line}\n    >S {line}\n    S> 250 n\n    >C 250 n\n")


@pytest.mark.parametrize(
    ("octets", "start"),
    [(2049, "NOOP "), (4096, "MAIL FROM:<"), (12_352, "AUTHX "), (12_353, ""), (12_354, "\\0"), (12_355, "NOOP "),
    (65_536, "MAIL FROM:<"), (500_000, "")],
)  # fmt: skip
def test_longer_lines_are_refused(octets: int, start: str) -> None:
    """C34–C35: one 500, as much thrown away, and the next line is a command; in any cut the same record."""
    rest = octets - 2 - len(start.replace("\\0", "0"))
    line = f"{start}\\\n    C> *{rest} x"
    records = refused(line, "500 5.5.2 Line too long")
    assert "line-too-long" in anomalies(records)
    assert len(str(exchanges(records)[-2]["asked"])) < 300


def test_endless_lines_close() -> None:
    """C36–C38: 10 MB without an end: closed, and memory flat."""
    for piece in (b"x" * 65_536, b"\0" * 65_536, b"\r" * 65_536, b"AUTH PLAIN " + b"A" * 60_000):
        session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0)
        session.server_sent(b"220 mx\r\n")
        for _ in range(160):
            session.client_sent(piece)
            assert session.reading.left < 70_000
        assert session.closed
        assert session.to_client.endswith(b"521 Line too long, closing\r\n")
        assert session.to_server == b""


def test_an_endless_line_in_one_read_closes() -> None:
    """C37: the same however it is cut."""
    records = play(f"{HELLO}\n    C> *300000 x\\\n    >C 521 5.5.2 Line too long, closing\n{CLOSED}",
                   limits=Limits(endless_line=200_000))  # fmt: skip
    assert "endless-line" in anomalies(records)
    records = play(f"{HELLO}\n    C> *300000 x\n    >C 521 5.5.2 Line too long, closing\n{CLOSED}",
                   limits=Limits(endless_line=200_000))  # fmt: skip
    assert "endless-line" in anomalies(records)


@pytest.mark.parametrize("verb", ["HELO", "EHLO"])
@pytest.mark.parametrize("octets", [1200, 12_000])
def test_a_long_hello(verb: str, octets: int) -> None:
    """Exim CVE-2019-16928: a name longer than a domain may be is refused here."""
    told = BAD if octets < 2000 else "500 5.5.2 Line too long"
    refused(f"{verb} {'a' * octets}", told)


def test_a_long_line_that_ends_in_lf_alone() -> None:
    """C25 and C35 together: closed."""
    play(f"{HELLO}\n    C> *20000 x\\\n    C> \\n\\\n    >C 521 5.5.2 Lines end with CR LF, closing\n{CLOSED}")


# ------------------------------------------------------------------------------------ C39–C52: others' protocols, verbs


@pytest.mark.parametrize(
    "line",
    ["GET / HTTP/1.1", "POST / HTTP/1.1", "PUT /x", "HEAD /", "CONNECT x:25", "OPTIONS *", "get /", "DELETE /",
    "TRACE /", "PATCH /",
     "PROXY TCP4 1.2.3.4 5.6.7.8 1 25", "PROXY UNKNOWN", "GET", " GET / HTTP/1.1"],
)  # fmt: skip
def test_another_protocol_closes(line: str) -> None:
    """C39–C44: the commands may stand in what follows."""
    records = play(
        f"{HELLO}\n    C> {line}\n    C> Host: x\n    C> MAIL FROM:<a@x.example>\n    >C 521 5.5.1 This is SMTP\n"
        f"{CLOSED}"
    )
    assert "foreign-protocol" in anomalies(records)


def test_a_tls_client_hello_on_the_plain_port() -> None:
    """B60: refused or closed, never forwarded."""
    session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2)
    assert session.to_server == b""
    assert session.closed


@pytest.mark.parametrize(
    "line",
    ["XCLIENT ADDR=127.0.0.1", "xclient NAME=x ADDR=127.0.0.1", "XFORWARD NAME=x", "TURN", "ATRN x.example",
    "ETRN x.example", "ETRN @x.example",
     "ETRN #q", "EXPN list", "SOML FROM:<a@x.example>", "SEND FROM:<a@x.example>", "SAML FROM:<a@x.example>", "DEBUG",
     "WIZ", "WIZ x", "VERB",
     "ONEX", "XUSR", "QUEU", "TICK 1", "TIME", "TURNME x.example", "IDENT", "EMAL FROM:<a@x.example>", "ESND FROM:<>",
     "ESOM FROM:<>",
     "ESAM FROM:<>", "EVFY x", "XADR x", "XCIR", "XGEN", "XSTA", "XQUE", "XTRN", "XLICENSE", "Z-IDENT", "Z-DEBUG",
     "Z-REPORT",
     "XSHADOW", "XPROXY", "XPROXYFROM x", "XPROXYTO x", "XRSETPROXYTO", "XSESSIONPARAMS x", "XQDISCARD x",
     "XSHADOWREQUEST",
     "WELLKNOWN x", "X-ADAT", "X-DRCP", "X-ERCP", "XAUTH PLAIN", "X-EXPS NTLM", "LHLO me.example",
     "BURL imap://x/y LAST"],
)  # fmt: skip
def test_dangerous_verbs_are_denied(line: str) -> None:
    """C45–C52: XCLIENT and XFORWARD above all: the server trusts our address."""
    refused(line, DENIED)


def test_vrfy_is_answered_252() -> None:
    """Architecture §17."""
    for line in ("VRFY b", "vrfy <b@y.example>", "VRFY b SMTPUTF8"):
        refused(line, "252 2.5.0 Cannot VRFY user, but will accept message and attempt delivery")


# ----------------------------------------------------------------------------------------------- C53–C95: the envelope


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("MAIL FROM", BAD),
        ("MAIL FROM:", SENDER),
        ("MAIL TO:<a@x.example>", BAD),
        ("MAIL FROM:<", SENDER),
        ("MAIL FROM:<a@x.example", SENDER),
        ("MAIL FROM:a@x.example>", SENDER),
        ("MAIL FROM:<<a@x.example>>", SENDER),
        ("MAIL FROM:<a@x.example><b@x.example>", BAD),
        ("MAIL FROM:<a@>", SENDER),
        ("MAIL FROM:<@x.example>", SENDER),
        ("MAIL FROM:<a>", SENDER),
        ("MAIL FROM:<a b@x.example>", SENDER),
        ('MAIL FROM:<"a@x.example>', SENDER),
        ("MAIL FROM:<a@x.example>BODY=8BITMIME", BAD),
        ("MAIL FROM:<" + "a" * 201 + "@x.example>", SENDER),
        ("MAIL FROM:<a@" + "x" * 256 + ">", SENDER),
        ("RCPT TO:", RECIPIENT),
        ("RCPT TO:<>", RECIPIENT),
        ("RCPT FROM:<b@y.example>", BAD),
        ("RCPT TO:<b>", RECIPIENT),
        ("RCPT TO:<b@y.example> <c@y.example>", BAD),
        ("MAIL FROM:<a@x.example> =", BAD),
        ("MAIL FROM:<a@x.example> =x", BAD),
        ("MAIL FROM:<a@x.example> SIZE", "501 5.5.4 Bad value for SIZE"),
        ("MAIL FROM:<a@x.example> SIZE=", "501 5.5.4 Bad value for SIZE"),
        ("MAIL FROM:<a@x.example> SIZE=+10", "501 5.5.4 Bad value for SIZE"),
        ("MAIL FROM:<a@x.example> SIZE=-10", "501 5.5.4 Bad value for SIZE"),
        ("MAIL FROM:<a@x.example> SIZE=1_000", "501 5.5.4 Bad value for SIZE"),
        ("MAIL FROM:<a@x.example> SIZE=0x10", "501 5.5.4 Bad value for SIZE"),
        ("MAIL FROM:<a@x.example> SIZE=" + "9" * 21, "501 5.5.4 Bad value for SIZE"),
        ("MAIL FROM:<a@x.example> SIZE=" + "9" * 2000, "501 5.5.4 Bad value for SIZE"),
        ("MAIL FROM:<a@x.example> SIZE=\\xef\\xbc\\x91", "501 5.5.4 Bad value for SIZE"),
        ("MAIL FROM:<a@x.example> SIZE=1 SIZE=2", "501 5.5.4 Duplicate parameter"),
        ("MAIL FROM:<a@x.example> SIZE=1 size=1", "501 5.5.4 Duplicate parameter"),
        ("MAIL FROM:<a@x.example> BODY=9BIT", "501 5.5.4 Bad value for BODY"),
        ("MAIL FROM:<a@x.example> BODY", "501 5.5.4 Bad value for BODY"),
        ("MAIL FROM:<a@x.example> RET=MAYBE", "501 5.5.4 Bad value for RET"),
        ("MAIL FROM:<a@x.example> ENVID=a+4", "501 5.5.4 Bad value for ENVID"),
        ("MAIL FROM:<a@x.example> SMTPUTF8=yes", "501 5.5.4 Bad value for SMTPUTF8"),
    ],
)
def test_malformed_envelopes(line: str, told: str) -> None:
    """C53–C85: 501 each, nothing forwarded; numbers are [0-9]+ and nothing else."""
    refused(line, told)


@pytest.mark.parametrize(
    "line",
    ["MAIL FROM:<a@x.example> FOO", "MAIL FROM:<a@x.example> FOO=1", "MAIL FROM:<a@x.example> X-Y=z",
    "MAIL FROM:<a@x.example> NOTIFY=NEVER",
     "MAIL FROM:<a@x.example> SIZE=1 FOO=2"],
)  # fmt: skip
def test_unknown_parameters(line: str) -> None:
    """C86–C89: 555 (RFC 5321 §4.1.1.11)."""
    records = refused(line, "555 5.5.4 Parameter not recognised")
    assert "unknown-parameter" in anomalies(records)
    refused("RCPT TO:<b@y.example> SIZE=1", "555 5.5.4 Parameter not recognised", MAIL)


@pytest.mark.parametrize(
    "parameter",
    ["SIZE=1", "BODY=8BITMIME", "BODY=BINARYMIME", "SMTPUTF8", "RET=HDRS", "ENVID=x", "BY=100;R", "AUTH=<>",
    "PRDR", "MT-PRIORITY=3",
     "HOLDFOR=1", "TRANSID=<a@b>", "CONPERM", "MTRK=abcd", "SUBMITTER=x", "SOLICIT=x.y", "XVERP", "XVERP=+=", "XOORG=x",
     "XMSGID=1"],
)  # fmt: skip
def test_parameters_nobody_offered(parameter: str) -> None:
    """C90–C93: 555, whether the server knows them or not."""
    for before in (hello("ENHANCEDSTATUSCODES"), hello(verb="HELO")):
        told = "555 5.5.4 Parameter not offered here" if "EHLO" in before else "555 Parameter not offered here"
        records = refused(f"MAIL FROM:<a@x.example> {parameter}", told, before)
        assert "parameter-not-offered" in anomalies(records)


def test_requiretls_that_nobody_offered() -> None:
    """B50: 550 5.7.30 (RFC 8689 §4.1): the promise can't be kept here."""
    for before, told in ((hello("ENHANCEDSTATUSCODES"), "550 5.7.30"), (hello(verb="HELO"), "550")):
        records = refused("MAIL FROM:<a@x.example> REQUIRETLS", f"{told} REQUIRETLS support required", before)
        assert "parameter-not-offered" in anomalies(records)


@pytest.mark.parametrize(
    "parameter",
    ["NOTIFY=NEVER", "ORCPT=rfc822;x@y", "CONNEG", "XORAR=x", "XRDST=x", "RRVS=2020-01-01T00:00:00Z", "ALT-ADDRESS=x"],
)
def test_recipient_parameters_nobody_offered(parameter: str) -> None:
    """C90–C93 for RCPT; no recipient is counted for it."""
    script = hello("ENHANCEDSTATUSCODES") + MAIL.removeprefix(HELLO)
    records = refused(f"RCPT TO:<c@y.example> {parameter}", "555 5.5.4 Parameter not offered here", script)
    assert "parameter-not-offered" in anomalies(records)


def test_an_extension_needs_what_it_needs() -> None:
    """BODY=BINARYMIME needs BINARYMIME, not 8BITMIME; SMTPUTF8 is not offered without 8BITMIME."""
    refused("MAIL FROM:<a@x.example> BODY=BINARYMIME", "555 5.5.4 Parameter not offered here")
    play(hello("SMTPUTF8", told=()))
    play(hello("SMTPUTF8", "8BITMIME"))


@pytest.mark.parametrize(
    ("line", "served"),
    [
        ("MAIL FROM:<\\xc3\\xa9@x.example>", False),
        ("MAIL FROM:<a@\\xc3\\xa9.example>", False),
        ("MAIL FROM:<\\xc3\\xa9@x.example> BODY=8BITMIME", False),
        ("MAIL FROM:<\\xc3\\xa9@x.example> SMTPUTF8", True),
        ("MAIL FROM:<a@x.example> SMTPUTF8", True),
        ("MAIL FROM:<a@\\xc3\\xa9.example> BODY=8BITMIME SMTPUTF8", True),
    ],
)
def test_addresses_beyond_ascii(line: str, served: bool) -> None:
    """C94: 553 without SMTPUTF8 (RFC 6531 §3.5)."""
    if served:
        play(f"{HELLO}\n    C> {line}\n    >S {line}\n    S> 250 m\n    >C 250 m\n"
        f"    C> RCPT TO:<\\xc3\\xa9@y.example>\n"
             "    >S RCPT TO:<\\xc3\\xa9@y.example>\n    S> 250 r\n    >C 250 r\n")  # fmt: skip
    else:
        records = refused(line, "553 5.6.7 Address needs SMTPUTF8")
        assert "non-ascii-without-smtputf8" in anomalies(records)
    refused("RCPT TO:<\\xc3\\xa9@y.example>", "553 5.6.7 Address needs SMTPUTF8", MAIL)
    refused("MAIL FROM:<\\xff\\xfe@x.example> SMTPUTF8", SENDER)


def test_too_many_recipients() -> None:
    """C95: 452 (RFC 5321 §4.5.3.1.10); those before it stand."""
    records = play(
        MAIL
        + """
        C> RCPT TO:<c@y.example>
        >S RCPT TO:<c@y.example>
        S> 550 r
        >C 550 r
        C> RCPT TO:<d@y.example>
        >C 452 4.5.3 Too many recipients
        C> DATA
        >S DATA
        S> 354 go
        >C 354 go
        C> .
        >S .
        S> 250 q
        >C 250 q
    """,
        limits=Limits(recipients=2),
    )
    assert "too-many-recipients" in anomalies(records)
    assert next(r["rcpt"] for r in records if r["kind"] == "tx-commit") == ["b@y.example"]


# ------------------------------------------------------------------------------------ C96–C120: legal but odd addresses


@pytest.mark.parametrize(
    "address",
    ["a+b@x.example", "!#$%&'*+-/=?^_`{|}~@x.example", '"a b"@x.example', '"a\\\\"b"@x.example', '"@"@x.example',
    '""@x.example', '">"@x.example',
     "a@[127.0.0.1]", "a@[IPv6:::1]", "a@[IPv6:2001:db8::1]", "a@x", "a@xn--9ca.example", "A.B.C@X.EXAMPLE",
     "@r.example:a@x.example",
     "@r.example,@s.example:a@x.example", "a" * 64 + "@x.example", "1@1.example", "a-@x.example", "a@x.y.z.example",
     '"."@x.example',
     '" "@x.example', "a@x.museum", "'@x.example", "a/b=c@x.example"],
)  # fmt: skip
def test_legal_but_odd_addresses(address: str) -> None:
    """C96–C119: served, byte for byte, without remark."""
    records = play(f"{HELLO}\n    C> MAIL FROM:<{address}>\n    >S MAIL FROM:<{address}>\n    S> 250 m\n    >C 250 m\n"
                   f"    C> RCPT TO:<{address}>\n    >S RCPT TO:<{address}>\n    S> 250 r\n    >C 250 r\n")  # fmt: skip
    assert anomalies(records) == []


def test_postmaster_needs_no_domain() -> None:
    """C120: RFC 5321 §4.1.1.3."""
    for name in ("Postmaster", "POSTMASTER", "postmaster"):
        play(f"{MAIL}\n    C> RCPT TO:<{name}>\n    >S RCPT TO:<{name}>\n    S> 250 r\n    >C 250 r\n")


# ------------------------------------------------------------------------------------------------------ too many errors


@pytest.mark.parametrize("line", ["XYZZY", "", "MAIL", "a\\rb", "\\0", "EHLO"])
def test_too_many_malformed_lines(line: str) -> None:
    """F43: the last one gets its own reply, then 421 and close; counted over kinds."""
    session_limit = 3
    script = HELLO + f"\n    C> {line}\n    C> {line}\n    C> {line}\n    C> NOOP\n"
    told = {
        "XYZZY": UNKNOWN,
        "": UNREADABLE,
        "MAIL": BAD,
        "a\\rb": "500 5.5.2 CR without LF in a command",
        "\\0": UNREADABLE,
        "EHLO": BAD,
    }
    records = play(script + f"    >C {told[line]}\n" * 3 + "    >C 421 4.7.0 Too many errors, closing\n" + CLOSED,
                   limits=Limits(malformed=session_limit))  # fmt: skip
    assert "too-many-errors" in anomalies(records)


def test_refusals_by_rule_are_no_errors() -> None:
    """What is well-formed may be asked as often as one likes."""
    script = HELLO + "".join("\n    C> EXPN x\n    >C 502 5.5.1 Command not implemented\n" for _ in range(5))
    play(script, limits=Limits(malformed=2))


def test_the_shipped_limit_of_errors() -> None:
    """Postfix: hard error limit 20."""
    session = Session(judge=allow(), record=lambda record: None, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"XYZZY\r\n" * 50)
    assert session.to_client.count(b"500 ") == 20
    assert session.to_client.endswith(b"421 Too many errors, closing\r\n")
    assert session.closed


def test_too_many_errors_within_what_is_owed() -> None:
    """I1: the 421 stands behind what was asked before it."""
    play(f"{GREETING}\n    C> NOOP\n    C> XYZZY\n    >S NOOP\n\n    S> 250 n\n    >C 250 n\n"
        f"    >C 500 Command unrecognized\n"
         f"    >C 421 Too many errors, closing\n{CLOSED}", limits=Limits(malformed=1))  # fmt: skip


def test_a_long_line_with_a_bare_cr_in_it() -> None:
    """C27 and C35 together: one reply, in sync."""
    line = "NOOP " + "x" * 3000 + "\\rx"
    records = refused(line, "500 5.5.2 Line too long")
    assert anomalies(records) == ["line-too-long"]
