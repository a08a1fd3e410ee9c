"""The server is told of the client mail by mail (Postfix XFORWARD_README); and sessions that pass unseen."""

from typing import Any

import pytest

from smtpproxy.session.announcing import Announcement, pass_unseen
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import Depth
from smtpproxy.smtp.errors import Side
from tests.play import play
from tests.session.judges import (
    BROKEN_PLAIN,
    ENVELOPE,
    LOST_PLAIN,
    OPEN,
    PASSED_BY_RULE,
    QUIT,
    XCLIENT,
    XFORWARD,
    Looks,
    Says,
    again,
    allow,
    anomalies,
    answers,
    exchanges,
    hello,
    introduced,
)


def posture(client: str = "mirror", server: str = "mirror") -> Posture:
    return Posture(ClientTLS(client), ServerTLS(server), b"proxy.example")


CLOSES = "    -> close server\n    -> close client\n"
POSTFIX = "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT"
BOTH = """
    C> STARTTLS
    >S STARTTLS

    S> 220 go
    -> start-tls server

    !! tls-done server
    -> prepare-tls client

    !! tls-ready
    >C 220 go
    -> start-tls client

    !! tls-done client
"""

# ------------------------------------------------------------------------------------------------------------ XFORWARD

FORWARD = "XFORWARD NAME ADDR PROTO HELO SOURCE PORT IDENT"  # as Postfix lists it
SENT = "XFORWARD NAME=[UNAVAILABLE] ADDR=192.0.2.7 PORT=40123 PROTO=ESMTP HELO=me.example SOURCE=REMOTE"
FORWARDED = f"""
    C> MAIL FROM:<a@x.example>
    >S {SENT}
    >S MAIL FROM:<a@x.example>

    S> 250 2.0.0 Ok
    S> 250 2.1.0 Ok
    >C 250 2.1.0 Ok
"""
PIPELINED = hello("PIPELINING", FORWARD, told=("PIPELINING",))
REST = """
    C> RCPT TO:<b@y.example>
    C> DATA
    >S RCPT TO:<b@y.example>
    >S DATA
    S> 250 r
    S> 354 go
    >C 250 r
    >C 354 go
    C> .
    >S .
    S> 250 q
    >C 250 q
"""


def test_xforward_comes_before_each_mail() -> None:
    """Postfix forgets it with the mail; the client hears nothing of it."""
    records = play(PIPELINED + FORWARDED + REST + FORWARDED + REST + QUIT, announcement=XFORWARD)
    said = [r for r in exchanges(records) if r["verb"] == "XFORWARD"]
    assert [(r["asked"], r["sent"], r["got"], r["told"], r["tx"]) for r in said] == [
        (None, SENT, "250 2.0.0 Ok", None, number) for number in (1, 2)
    ]
    assert [r["tx"] for r in records if r["kind"] == "tx-commit"] == [1, 2]
    assert not [name for name in anomalies(records) if name.startswith("announce")]


def test_xforward_within_a_pipelining_group() -> None:
    """Where the MAIL stands; each reply goes to who asked."""
    play(
        PIPELINED
        + f"""
        C> RSET
        C> MAIL FROM:<a@x.example>
        C> RCPT TO:<b@y.example>
        C> DATA
        >S RSET
        >S {SENT}
        >S MAIL FROM:<a@x.example>
        >S RCPT TO:<b@y.example>
        >S DATA

        S> 250 reset
        S> 250 xforward
        S> 250 mail
        S> 250 rcpt
        S> 354 go
        >C 250 reset
        >C 250 mail
        >C 250 rcpt
        >C 354 go
    """,
        announcement=XFORWARD,
    )


def test_two_mails_in_one_group() -> None:
    """RFC 3030: BDAT LAST and the next MAIL without waiting; XFORWARD stands between them."""
    line = "    >S MAIL FROM:<a@x.example>\n    >S RCPT TO:<b@y.example>\n    >S BDAT 1 LAST\n    >S x\\\n"
    said = "    C> MAIL FROM:<a@x.example>\n    C> RCPT TO:<b@y.example>\n    C> BDAT 1 LAST\n    C> x\\\n"
    forward = f"    >S {SENT}\n"
    replies = "    S> 250 x\n    S> 250 m\n    S> 250 r\n    S> 250 q\n"
    heard = "    >C 250 m\n    >C 250 r\n    >C 250 q\n"
    records = play(
        hello("PIPELINING", "CHUNKING", FORWARD, told=("PIPELINING", "CHUNKING"))
        + f"\n{said}{said}{forward}{line}{forward}{line}\n{replies}{replies}{heard}{heard}",
        announcement=XFORWARD,
    )
    assert len([r for r in records if r["kind"] == "tx-commit"]) == 2


# Listed, the hello, and what is said before the MAIL.
WORDS = [
    ("XFORWARD ADDR", "me.example", "XFORWARD ADDR=192.0.2.7"),
    ("xforward helo proto", "me.example", "XFORWARD PROTO=ESMTP HELO=me.example"),
    ("XFORWARD HELO", "[192.0.2.9]", "XFORWARD HELO=[192.0.2.9]"),
    ("XFORWARD HELO", "[IPv6:2001:db8::1]", "XFORWARD HELO=[IPv6:2001:db8::1]"),
    ("XFORWARD HELO", "a_b+c", "XFORWARD HELO=a_b+2Bc"),
    ("XFORWARD HELO", "x=y", "XFORWARD HELO=x+3Dy"),
    ("XFORWARD HELO", "x" * 255, "XFORWARD HELO=" + "x" * 255),
    ("XFORWARD HELO", "+" * 86, "XFORWARD HELO=[UNAVAILABLE]"),
    ("XFORWARD SOURCE\n    S> 250-XFORWARD PORT", "me.example", "XFORWARD PORT=40123 SOURCE=REMOTE"),
]


@pytest.mark.parametrize(("offered", "name", "line"), WORDS)
def test_what_xforward_says(offered: str, name: str, line: str) -> None:
    """The attributes listed, the client's hello in xtext (RFC 3461 §4): whatever it says, it is one word."""
    play(
        f"""
        S> 220 mx.example
        >C 220 mx.example
        C> EHLO {name}
        >S EHLO {name}
        S> 250-mx
        S> 250-{offered}
        S> 250 PIPELINING
        >C 250-mx
        >C 250 PIPELINING
        C> MAIL FROM:<>
        >S {line}
        >S MAIL FROM:<>
        S> 250 x
        S> 250 m
        >C 250 m
    """,
        announcement=XFORWARD,
    )


def test_xforward_over_ipv6_and_lmtp() -> None:
    """The protocol is the client's own word."""
    line = "XFORWARD NAME=[UNAVAILABLE] ADDR=IPV6:2001:db8::7 PROTO=LMTP"
    play(
        hello("PIPELINING", "XFORWARD NAME ADDR PROTO", told=("PIPELINING",), verb="LHLO")
        + f"\n    C> MAIL FROM:<>\n    >S {line}\n    >S MAIL FROM:<>\n    S> 250 x\n    S> 250 m\n    >C 250 m\n",
        rules=allow("LHLO"),
        announcement=introduced("xforward", ("2001:db8::7", 1)),
    )


def test_a_rewritten_list_is_not_what_the_server_offers() -> None:
    """What counts is what it said, not what the client was told; and the hello it took, not one it refused."""
    refused = "\n    C> EHLO you.example\n    >S EHLO you.example\n    S> 550 no\n    >C 550 no\n"
    play(PIPELINED + refused + FORWARDED, announcement=XFORWARD)


@pytest.mark.parametrize(
    "opening",
    [
        hello("PIPELINING", POSTFIX, told=("PIPELINING",)),
        hello("XFORWARD", told=()),
        hello("XFORWARD IDENT", told=()),
        hello(verb="HELO"),
        "\n    S> 220 mx.example\n    >C 220 mx.example\n",
    ],
)
def test_a_server_that_does_not_offer_xforward(opening: str) -> None:
    """On record once a session; a client of HELO was given no list."""
    records = play(opening + ENVELOPE + "\n    C> RSET\n    >S RSET\n    S> 250 r\n    >C 250 r\n" + ENVELOPE,
                   announcement=XFORWARD)  # fmt: skip
    (note,) = [r for r in records if r.get("anomaly") == "announce-not-offered"]
    assert (note["verb"], note["side"]) == ("XFORWARD", "server")


@pytest.mark.parametrize("reply", ["501 5.5.4 Bad", "503 in transaction", "550 not you", "451 later", "421 bye"])
def test_a_server_that_refuses_xforward(reply: str) -> None:
    """It was for a log: on record, and the mail goes on."""
    refused = FORWARDED.replace("S> 250 2.0.0 Ok", f"S> {reply}")
    records = play(PIPELINED + refused + REST, announcement=XFORWARD)
    xforward = next(r for r in exchanges(records) if r["verb"] == "XFORWARD")
    assert (xforward["got"], xforward["anomalies"]) == (reply, ["announce-refused"])
    assert "tx-commit" in [r["kind"] for r in records]


@pytest.mark.parametrize("reply", ["354 go", "334 x", "what"])
def test_what_is_no_reply_to_xforward(reply: str) -> None:
    """A violation: told to the MAIL."""
    play(PIPELINED + FORWARDED.split("    S> ")[0] + f"    S> {reply}\n" + BROKEN_PLAIN, announcement=XFORWARD)
    lock_step = ALONE + f"    S> {reply}\n" + BROKEN_PLAIN
    play(lock_step, announcement=XFORWARD)


@pytest.mark.parametrize(
    ("how", "ends"),
    [("end server", LOST_PLAIN), ("timeout server", BROKEN_PLAIN.replace("broke the protocol", "does not answer"))],
)
def test_the_server_goes_before_it_has_answered(how: str, ends: str) -> None:
    """One 421, to the MAIL; in lock-step the MAIL was never sent."""
    play(PIPELINED + FORWARDED.split("\n\n")[0] + f"\n\n    !! {how}\n{ends}", announcement=XFORWARD)
    records = play(ALONE + f"    !! {how}\n{ends}", announcement=XFORWARD)
    mail = exchanges(records)[-1]
    assert (mail["verb"], mail["sent"]) == ("MAIL", None)


def test_a_mail_that_is_not_forwarded_is_not_announced() -> None:
    """Refused by a rule, for a parameter, before the hello; malformed."""
    rules = Says({"MAIL": answers("550 no")})
    play(PIPELINED.replace(">C 250 PIPELINING", f">C 250-PIPELINING\n    >C 250 {FORWARD}").replace(
        "    >C 250-mx.example\n    >C 250-", "    >C 250-mx.example\n    >C 250-")
        + "\n    C> MAIL FROM:<a@x.example>\n    >C 550 no\n", rules=rules, announcement=XFORWARD)  # fmt: skip
    play(PIPELINED + "\n    C> MAIL FROM:<a@x.example> SIZE=1\n    >C 555 Parameter not offered here\n"
        "    C> MAIL FROM a\n    >C 501 Syntax error in parameters or arguments\n" + FORWARDED,
        announcement=XFORWARD)  # fmt: skip


def test_a_malformed_mail_that_a_rule_lets_pass() -> None:
    """The server may take it for a mail, and log it."""
    rules = Says(malformed=PASSED_BY_RULE)
    line = "MAIL FROM a@x.example"
    forwarded = f"\n    C> {line}\n    >S {SENT}\n    >S {line}\n    S> 250 x\n    S> 250 m\n    >C 250 m\n"
    play(hello("PIPELINING", FORWARD) + forwarded, rules=rules, announcement=XFORWARD)
    alone = f"\n    C> {line}\n    >S {SENT}\n\n    S> 250 x\n    >S {line}\n\n    S> 250 m\n    >C 250 m\n"
    play(hello(FORWARD) + alone, rules=rules, announcement=XFORWARD)
    play(hello(FORWARD) + "\n    C> RCPT TO b\n    >S RCPT TO b\n    S> 503 no\n    >C 503 no\n", rules=rules,
         announcement=XFORWARD)  # fmt: skip


def test_a_mail_within_a_mail() -> None:
    """Which the server refuses, XFORWARD first; the transaction there is goes on."""
    play(PIPELINED + FORWARDED + f"""
        C> MAIL FROM:<c@x.example>
        >S {SENT}
        >S MAIL FROM:<c@x.example>
        S> 503 nested
        S> 503 nested
        >C 503 nested
    """ + REST, announcement=XFORWARD)  # fmt: skip


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE])
def test_content_that_is_held_back(depth: Depth) -> None:
    """XFORWARD goes with the MAIL; what becomes of DATA is another matter."""
    play(
        hello("PIPELINING", FORWARD)
        + FORWARDED
        + """
        C> RCPT TO:<b@y.example>
        >S RCPT TO:<b@y.example>
        S> 250 r
        >C 250 r
        C> DATA
        >C 354 Start mail input; end with <CRLF>.<CRLF>
        C> A: b
        C>
        C> .
        >S DATA
        S> 354 go
        >S A: b
        >S
        >S .
        S> 250 q
        >C 250 q
    """,
        rules=Looks(depth),
        announcement=XFORWARD,
    )


# ------------------------------------------------------------------------------------- XFORWARD, one command at a time

ALONE = hello(FORWARD, told=()) + f"\n    C> MAIL FROM:<a@x.example>\n    >S {SENT}\n\n"


def test_a_server_without_pipelining_gets_one_command_at_a_time() -> None:
    """RFC 2920 §3: the MAIL waits for XFORWARD's reply; so does the client, whatever it has sent already."""
    play(ALONE + "    S> 250 x\n    >S MAIL FROM:<a@x.example>\n\n    S> 250 m\n    >C 250 m\n" + QUIT,
         announcement=XFORWARD)  # fmt: skip
    play(
        ALONE.removesuffix("\n").replace("    >S XF", "    C> RCPT TO:<b@y.example>\n    C> NOOP\n    >S XF")
        + """
        S> 550 no
        >S MAIL FROM:<a@x.example>

        S> 250 m
        >C 250 m
        >S RCPT TO:<b@y.example>
        >S NOOP

        S> 250 r
        S> 250 n
        >C 250 r
        >C 250 n
    """,
        announcement=XFORWARD,
    )


def test_a_mail_that_waits_is_refused_by_the_server() -> None:
    """No transaction then, and the next MAIL is announced anew."""
    refused = "    S> 250 x\n    >S MAIL FROM:<a@x.example>\n\n    S> 550 m\n    >C 550 m\n"
    again_ = f"\n    C> MAIL FROM:<a@x.example>\n    >S {SENT}\n\n"
    records = play(ALONE + refused + again_ + refused.replace("550", "250"), announcement=XFORWARD)
    assert [r["kind"] for r in records if r["kind"].startswith("tx-")] == ["tx-begin"]


def test_a_mail_that_waits_and_the_client_goes() -> None:
    """Nothing more is said to the server."""
    records = play(ALONE + "    !! lost client\n    -> close server\n    -> close client\n", announcement=XFORWARD)
    assert [(r["verb"], r["sent"]) for r in exchanges(records)[-2:]] == [("XFORWARD", SENT), ("MAIL", None)]
    assert [r["anomalies"] for r in exchanges(records)[-2:]] == [["unanswered"], ["unanswered"]]


def test_a_mail_that_waits_and_the_client_has_ended_its_side() -> None:
    """What it asked is answered."""
    play(ALONE + "    !! end client\n\n    S> 250 x\n    >S MAIL FROM:<a@x.example>\n\n    S> 250 m\n    >C 250 m\n"
        "    -> close server\n    -> close client\n", announcement=XFORWARD)  # fmt: skip


def test_drain_while_a_mail_waits() -> None:
    """It is in flight; nothing was begun by its refusal."""
    refused = "    S> 250 x\n    >S MAIL FROM:<a@x.example>\n\n    S> 450 m\n    >C 450 m\n"
    play(ALONE + "    !! drain\n\n" + refused + "    >C 421 Service shutting down, try again later\n" + CLOSES,
         announcement=XFORWARD)  # fmt: skip


def test_nothing_of_the_client_is_read_while_its_mail_waits() -> None:
    """I2."""
    session = Session(judge=OPEN, record=lambda r: None, clock=lambda: 0.0, announcement=XFORWARD)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"EHLO me\r\n")
    session.server_sent(b"250-mx\r\n250 XFORWARD ADDR\r\n")
    session.client_sent(b"MAIL FROM:<>\r\n")
    assert not session.wants(Side.CLIENT)
    assert session.patience() == (Side.SERVER, 300.0)
    session.server_sent(b"250 x\r\n")
    assert not session.wants(Side.CLIENT)
    session.server_sent(b"250 m\r\n")
    assert session.wants(Side.CLIENT)


def test_xforward_behind_starttls() -> None:
    """Nothing of the list given in clear counts; the new hello's does."""
    start = hello("STARTTLS", FORWARD, told=("STARTTLS",)) + BOTH
    records = play(start + again("DSN") + ENVELOPE, announcement=XFORWARD)
    assert "announce-not-offered" in anomalies(records)
    play(start + again("PIPELINING", FORWARD, told=("PIPELINING",)) + FORWARDED, announcement=XFORWARD)


@pytest.mark.parametrize("kind", ["xclient", "xforward"])
def test_the_longest_line(kind: str) -> None:
    """RFC 5321 §4.5.3.1.4: 512 octets. Behind an XCLIENT with ADDR no second one may be allowed: it has to be one."""
    longest = "2001:db8:1111:2222:3333:4444:5555:6666"
    session = Session(judge=OPEN, record=lambda r: None, clock=lambda: 0.0,
                      announcement=introduced(kind, (longest, 65535), (longest, 65535)))  # fmt: skip
    session.server_sent(b"220 mx\r\n")
    names = b"NAME ADDR PORT PROTO HELO IDENT SOURCE DESTADDR DESTPORT"
    if kind == "xforward":
        session.client_sent(b"EHLO " + b"x" * 255 + b"\r\n")
    session.to_server.clear()
    session.server_sent(b"250-mx\r\n250-PIPELINING\r\n250 " + kind.upper().encode() + b" " + names + b"\r\n")
    session.client_sent(b"MAIL FROM:<>\r\n")
    lines = bytes(session.to_server).splitlines(keepends=True)
    assert lines[0].startswith(kind.upper().encode())
    assert (b"x" * 255 in lines[0]) is (kind == "xforward")
    assert 140 < len(lines[0]) <= 512


# -------------------------------------------------------------------------------------------------------------- unseen


def unseen(script: str, **options: Any) -> list[dict[str, Any]]:
    """The records of a session that passes unseen, behind the one that says so."""
    first, *rest = play("\n    !! connected\n" + script, unseen=True, **options)
    assert first == {"kind": "note", "anomaly": "passed-unseen", "inspected": False}
    return rest


@pytest.mark.parametrize("pair", [("mirror", "mirror"), ("implicit", "implicit"), ("require", "require"),
                                  ("passthrough", "mirror"), ("mirror", "upgrade")])  # fmt: skip
@pytest.mark.parametrize("announcement", [XCLIENT, XFORWARD])
def test_octets_pass_unseen(pair: tuple[str, str], announcement: Announcement) -> None:
    """From the first one, both ways, octet for octet; posture and announcement are nothing to it."""
    records = unseen(
        """
        C> PROXY TCP4 x\\n\\0\\r
        >S PROXY TCP4 x\\n\\0\\r
        S> 999-what\\n\\
        >C 999-what\\n\\
        C> EHLO x\\n.\\r\\
        >S EHLO x\\n.\\r\\
        S> \\x16\\x03\\x03
        >C \\x16\\x03\\x03

        !! end server
        -> close server
        -> close client
    """,
        posture=posture(*pair),
        announcement=announcement,
        client_first=True,
    )
    assert records == []


def test_a_greeting_that_passes_unseen_is_not_our_business() -> None:
    """Nor is a server that says nothing, a client that talks early, or a mail that no rule would let pass."""
    unseen(
        """
        !! early

        C> MAIL FROM:<a@x.example>
        >S MAIL FROM:<a@x.example>

        !! keep-alive

        S> 554 no
        >C 554 no
    """,
        rules=Says({"MAIL": answers("550 no")}, {"GREETING": answers("220 yes")}),
    )


@pytest.mark.parametrize(
    ("how", "ends", "noted"),
    [
        ("stop", CLOSES, ["shutting-down"]),
        ("timeout client", CLOSES, ["idle", "idle"]),
        ("timeout client session-too-long", CLOSES, ["session-too-long", "session-too-long"]),
        ("timeout server", "    -> abort server\n    -> close client\n", ["idle", "idle"]),
        ("lost", CLOSES, ["client-lost"]),
        ("end server", CLOSES, []),
    ],
)
def test_however_an_unseen_session_ends_no_word_is_told(how: str, ends: str, noted: list[str]) -> None:
    """Neither peer knows of us; and nothing is on record as told."""
    for script in ("", "\n    C> EHLO\n    >S EHLO\n    S> 250\n    >C 250\n"):
        records = unseen(f"{script}\n    !! {how}\n{ends}")
        assert anomalies(records) == noted
        assert not [r for r in records if "told" in r]


def test_nobody_is_there() -> None:
    """The client's link closes without a word."""
    records = play("\n    !! unreachable\n    -> close client\n", unseen=True)
    assert anomalies(records) == ["passed-unseen", "server-unreachable"]


def test_an_unseen_session_is_not_drained() -> None:
    """Nobody knows where it is: it goes on until it ends, or is stopped."""
    talk = "\n    C> \\x17\\\n    >S \\x17\\\n    S> \\x17\\\n    >C \\x17\\\n"
    unseen("\n    !! drain\n" + talk + "\n    !! end server\n" + CLOSES)
    unseen("\n    !! drain\n" + talk + "\n    !! stop\n" + CLOSES)


def test_a_client_that_has_ended_its_side_still_hears_the_server() -> None:
    """`QUIT` and the end of the link in one segment: the 221 comes all the same."""
    unseen("""
        C> QUIT
        >S QUIT

        !! end client
        -> shut server

        S> 221 bye
        >C 221 bye

        !! end server
        -> close server
        -> close client
    """)
    session = Session(judge=OPEN, record=lambda r: None, clock=lambda: 0.0)
    pass_unseen(session)
    session.connected()
    assert session.patience() == (Side.CLIENT, session.patience_table.client)
    session.client_sent(b"")
    assert not session.wants(Side.CLIENT)
    assert session.wants(Side.SERVER)
    assert session.patience() == (Side.SERVER, session.patience_table.end)


def test_a_client_that_passes_unseen_may_talk_first() -> None:
    """It is read before the server's link is open; a foreword stands before it all the same."""
    session = Session(judge=OPEN, record=lambda r: None, clock=lambda: 0.0, foreword=lambda tls: b"PROXY\r\n")
    pass_unseen(session)
    assert session.wants(Side.CLIENT)
    session.client_sent(b"\x16\x03\x01")
    session.connected()
    session.client_sent(b"\x17")
    assert session.to_server == b"PROXY\r\n\x16\x03\x01\x17"


def test_unseen_octets_are_progress_and_bounded() -> None:
    """I7: a peer that does not take what it is sent holds the other back."""
    session = Session(judge=OPEN, record=lambda r: None, clock=lambda: 0.0)
    pass_unseen(session)
    session.connected()
    for say, side in ((session.client_sent, Side.SERVER), (session.server_sent, Side.CLIENT)):
        before = session.progress
        say(b"x" * (session.limits.unsent + 1))
        assert session.progress > before
        assert not session.wants(Side.CLIENT)
        assert session.wants(Side.SERVER) is (side is Side.SERVER)
    assert not session.holding
    assert not session.tellable
