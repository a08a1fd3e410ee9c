"""What comes before the greeting is told: a foreword, the client's TLS, and XCLIENT: in which order and in which words,
and what becomes of the session where the server will not hear it (Postfix XCLIENT_README)."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpproxy.audit.lines import rendered
from smtpproxy.session.announcing import Announce, Announcement
from smtpproxy.session.limits import Limits
from smtpproxy.session.postures import MIRROR, ClientTLS, Posture, ServerTLS
from smtpproxy.session.records import AuditRecord
from smtpproxy.session.session import Session
from smtpproxy.session.state import TLSInfo
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.registry.verbs import GREETING
from tests.play import play
from tests.session.judges import (
    BROKEN_PLAIN,
    ENVELOPE,
    LOST_PLAIN,
    NOOP,
    OPEN,
    PASSED_BY_RULE,
    QUIT,
    XCLIENT,
    XFORWARD,
    Says,
    again,
    allow,
    anomalies,
    answers,
    effects,
    exchanges,
    hello,
    introduced,
    listed,
)
from tests.session.strict_server import StrictServer
from tests.session.test_invariants import POSTURES, drive, replies_of
from tests.session.test_invariants import SAID as ANYTHING


def posture(client: str = "mirror", server: str = "mirror") -> Posture:
    return Posture(ClientTLS(client), ServerTLS(server), b"proxy.example")


DENIED = "502 Command not implemented"
ALL = "XCLIENT NAME ADDR PORT DESTADDR DESTPORT"  # what is said of it
POSTFIX = "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT"
LINE = "XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7 PORT=40123 DESTADDR=198.51.100.25 DESTPORT=25"
# ------------------------------------------------------------------------------------------------------------- XCLIENT

GREETED = "\n    S> 220 mx.example\n    >S EHLO localhost.localdomain\n\n"


def asked(*offered: str) -> str:
    """Up to our XCLIENT."""
    return GREETED + listed("S>", (POSTFIX, *offered)) + f"    >S {LINE}\n"


TAKEN = asked("DSN") + "\n    S> 220 mx.example again\n    >C 220 mx.example again\n"


def test_xclient_comes_before_the_greeting() -> None:
    """Its reply is the greeting the client hears; the hello the server hears next is the client's own."""
    records = play(TAKEN + again(POSTFIX, "DSN", told=("DSN",)) + ENVELOPE + QUIT, announcement=XCLIENT)
    first, second, greeting, *rest = exchanges(records)
    assert (first["verb"], first["asked"], first["sent"], first["told"]) == (
        "EHLO", None, "EHLO localhost.localdomain", None,
    )  # fmt: skip
    assert (second["verb"], second["asked"], second["sent"], second["told"]) == ("XCLIENT", None, LINE, None)
    assert second["got"] == greeting["got"] == "220 mx.example again"
    assert greeting["got_before"] == ["220 mx.example"]
    assert [r["verb"] for r in rest] == ["EHLO", "MAIL", "RCPT", "QUIT"]
    assert not [name for name in anomalies(records) if name.startswith("announce")]


def test_a_client_of_helo() -> None:
    """What it says is up to it; nothing of ours remains with the server."""
    play(TAKEN + again(verb="HELO") + ENVELOPE, announcement=XCLIENT)
    play(TAKEN + ENVELOPE, announcement=XCLIENT)  # and whether a hello must be said is up to the server


def test_a_client_that_pipelines() -> None:
    """The group goes as it came."""
    play(
        TAKEN
        + again("PIPELINING")
        + """
        C> MAIL FROM:<a@x.example>
        C> RCPT TO:<b@y.example>
        C> DATA
        >S MAIL FROM:<a@x.example>
        >S RCPT TO:<b@y.example>
        >S DATA
        S> 250 m
        S> 250 r
        S> 354 go
        >C 250 m
        >C 250 r
        >C 354 go
        C> .
        >S .
        S> 250 q
        >C 250 q
    """,
        announcement=XCLIENT,
    )


def test_a_greeting_of_several_lines() -> None:
    """Told as it is."""
    play(
        asked() + "\n    S> 220-mx.example\n    S> 220 no spam\n    >C 220-mx.example\n    >C 220 no spam\n" + again(),
        announcement=XCLIENT,
    )


# What the server lists, and what it is told of 192.0.2.7:40123 on its way to 198.51.100.25:25.
NAMES = [
    (ALL, LINE),
    ("XCLIENT ADDR", "XCLIENT ADDR=192.0.2.7"),
    ("XCLIENT PORT ADDR", "XCLIENT ADDR=192.0.2.7 PORT=40123"),
    ("XCLIENT addr Name", "XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7"),
    ("xclient ADDR", "XCLIENT ADDR=192.0.2.7"),
    ("XCLIENT ADDR ADDR ADDR=1 X\x7e =", "XCLIENT ADDR=192.0.2.7"),
    ("XCLIENT NAME\n    S> 250-XCLIENT ADDR", "XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7"),
    ("XCLIENT ADDR LOGIN HELO PROTO REVERSE_NAME", "XCLIENT ADDR=192.0.2.7"),
]


@pytest.mark.parametrize(("offered", "line"), NAMES)
def test_what_is_listed_is_said_and_nothing_else(offered: str, line: str) -> None:
    """An attribute a server does not know is 501 to all of them."""
    script = f"{GREETED}    S> 250-mx.example\n    S> 250-{offered}\n    S> 250 DSN\n    >S {line}\n"
    play(script + "\n    S> 220 mx\n    >C 220 mx\n" + NOOP, announcement=XCLIENT)


# An address, and how Postfix has it.
ADDRESSES = [
    ("192.0.2.1", "192.0.2.1"),
    ("2001:db8::1", "IPV6:2001:db8::1"),
    ("2001:DB8:0:0:0:0:0:1", "IPV6:2001:db8::1"),
    ("::ffff:192.0.2.1", "192.0.2.1"),
    ("fe80::1%eth0", "IPV6:fe80::1"),
    ("", "[UNAVAILABLE]"),
    ("a.example", "[UNAVAILABLE]"),
    ("192.0.2.1\r\nQUIT", "[UNAVAILABLE]"),
]


@pytest.mark.parametrize(("address", "words"), ADDRESSES)
def test_addresses(address: str, words: str) -> None:
    """Of the client and of where it was going."""
    announcement = introduced("xclient", (address, 40123), (address, 0))
    line = f"XCLIENT NAME=[UNAVAILABLE] ADDR={words} PORT=40123 DESTADDR={words} DESTPORT=[UNAVAILABLE]"
    play(asked().replace(LINE, line) + "\n    S> 220 mx\n    >C 220 mx\n", announcement=announcement)


# --------------------------------------------------------------------------------------------------------- not offered

NOT_OFFERED = [
    "250 mx.example",
    "250-mx.example\n    S> 250 XFORWARD NAME ADDR",
    "250-mx.example\n    S> 250 XCLIENT",
    "250-mx.example\n    S> 250 XCLIENT NAME PORT DESTADDR",
    "250-mx.example\n    S> 250 X-XCLIENT ADDR",
    "250-mx.example XCLIENT ADDR\n    S> 250 DSN",
    "500 what",
    "502 no",
    "550 no",
    "421 bye",
]


@pytest.mark.parametrize("reply", NOT_OFFERED)
def test_a_server_that_does_not_offer_xclient(reply: str) -> None:
    """On record; and the hello the server knows is ours: the client's own comes first."""
    records = play(
        f"{GREETED}    S> {reply}\n    >C 220 mx.example\n"
        "\n    C> MAIL FROM:<a@x.example>\n    >C 503 EHLO comes first\n" + NOOP + again() + ENVELOPE,
        announcement=XCLIENT,
    )
    (note,) = [r for r in records if r.get("anomaly") == "announce-not-offered"]
    assert (note["verb"], note["side"]) == ("XCLIENT", "server")
    assert "got_before" not in next(r for r in exchanges(records) if r["verb"] == "GREETING")


def test_nothing_is_said_where_nothing_is_to_be_told() -> None:
    """Whatever the server offers."""
    records = play(hello(POSTFIX, "XFORWARD NAME ADDR", told=()) + ENVELOPE)
    assert [r["verb"] for r in exchanges(records)] == ["GREETING", "EHLO", "MAIL", "RCPT"]
    assert not [name for name in anomalies(records) if name.startswith("announce")]


@pytest.mark.parametrize("greeting", ["421 busy", "450 later", "554 no"])
def test_a_refused_greeting_is_the_servers_word_about_the_proxy(greeting: str) -> None:
    """It is told; nobody introduces anybody."""
    ends = "" if greeting.startswith("554") else "    -> close server\n    -> close client\n"
    records = play(f"\n    S> {greeting}\n    >C {greeting}\n" + ends, announcement=XCLIENT)
    assert [r["verb"] for r in exchanges(records)] == ["GREETING"]


# ------------------------------------------------------------------------------------------------------------- refused

CLOSES = "    -> close server\n    -> close client\n"
NO = "503 The mail server refused this session"


@pytest.mark.parametrize("reply", ["550 5.7.0 not you", "554 go away", "521 none"])
def test_a_server_that_refuses_xclient(reply: str) -> None:
    """It takes the client for us, and may trust us: what it said is the greeting, and nothing but QUIT reaches it."""
    script = asked() + f"\n    S> {reply}\n    >C {reply}\n"
    lines = ("EHLO me.example", "HELO me.example", "NOOP", "RSET", "MAIL FROM:<a@x.example>", "STARTTLS", "VRFY b")
    refused = "".join(f"\n    C> {line}\n    >C {NO}\n" for line in lines)
    records = play(script + refused + QUIT, announcement=XCLIENT)
    xclient = next(r for r in exchanges(records) if r["verb"] == "XCLIENT")
    assert xclient["anomalies"] == ["announce-refused"]
    greeting = next(r for r in exchanges(records) if r["verb"] == "GREETING")
    assert (greeting["got"], greeting["got_before"]) == (reply, ["220 mx.example"])


@pytest.mark.parametrize("reply", ["500 what", "501 5.5.4 Bad ADDR", "502 no", "503 order", "504 no such attribute"])
def test_a_server_that_does_not_understand_xclient(reply: str) -> None:
    """Postfix without IPv6 says 501 to every client with such an address. That is no reason to give a mail up."""
    records = play(
        asked() + f"\n    S> {reply}\n    >C 421 The mail server can't be told of this connection, try again later\n"
        + CLOSES, announcement=XCLIENT)  # fmt: skip
    greeting = next(r for r in exchanges(records) if r["verb"] == "GREETING")
    assert greeting["got"] == reply
    assert greeting["told"].startswith("421 ")


def test_what_rules_let_pass_does_not_pass_a_refusal() -> None:
    """Unknown verbs and malformed lines; AUTH; a pipelined mail; BDAT with its octets."""
    rules = Says({"UNKNOWN": PASSED_BY_RULE}, malformed=PASSED_BY_RULE)
    script = asked() + "\n    S> 550 no\n    >C 550 no\n"
    play(script + f"\n    C> XYZZY\n    >C {NO}\n    C> AUTH PLAIN AAAA\n    >C {NO}\n", rules=rules,
         announcement=XCLIENT)  # fmt: skip
    play(script + "\n    C> MAIL FROM: x y z <a>\n    >C 501 Bad sender address syntax\n", rules=rules,
         announcement=XCLIENT)  # fmt: skip
    play(script + f"""
        C> MAIL FROM:<a@x.example>
        C> RCPT TO:<b@y.example>
        C> BDAT 6 LAST
        C> QUIT
        C> NOOP
        >C {NO}
        >C {NO}
        >C {NO}
        >C {NO}
    """, announcement=XCLIENT)  # fmt: skip


@pytest.mark.parametrize("reply", ["421 too many", "450 later", "451 4.7.1 greylisted"])
def test_a_server_that_will_not_have_the_client_now(reply: str) -> None:
    """4yz in the greeting's place, and both links close."""
    records = play(asked() + f"\n    S> {reply}\n    >C {reply}\n" + CLOSES, announcement=XCLIENT)
    assert "announce-refused" in anomalies(records)


# ------------------------------------------------------------------------------------------------------ hostile servers

IMPOSSIBLE = ["200 ok", "221 bye", "250 2.0.0 Ok", "299 x", "334 x", "354 go", "355 x"]


@pytest.mark.parametrize("reply", IMPOSSIBLE)
def test_wrong_codes_to_xclient(reply: str) -> None:
    """220 alone opens a session: nobody knows who the client is to a server that says anything else."""
    records = play(asked() + f"\n    S> {reply}\n" + BROKEN_PLAIN, announcement=XCLIENT, posture=MIRROR)
    assert "reply-impossible" in anomalies(records)


@pytest.mark.parametrize("reply", ["050 noise", "199 x", "what", "220\\x00 x", "999 x", "\\x16\\x03\\x01"])
def test_what_is_no_reply(reply: str) -> None:
    """A violation, at our EHLO and at our XCLIENT."""
    play(asked() + f"\n    S> {reply}\n" + BROKEN_PLAIN, announcement=XCLIENT, posture=MIRROR)
    play(f"{GREETED}    S> {reply}\n" + BROKEN_PLAIN, announcement=XCLIENT, posture=MIRROR)


@pytest.mark.parametrize("tail", ["250 more", "220 mx.example", "354 go"])
def test_a_reply_too_many_behind_xclients_220(tail: str) -> None:
    """Nobody asked for it."""
    records = play(
        asked() + f"\n    S> 220 mx.example\n    S> {tail}\n    >C 220 mx.example\n" + BROKEN_PLAIN,
        announcement=XCLIENT,
        posture=MIRROR,
    )
    assert "reply-unsolicited" in anomalies(records)


def test_a_server_that_does_not_wait_for_us() -> None:
    """All its replies at once, in any cut: each answers what was asked, and nothing of ours is said twice."""
    play(
        "\n    S> 220 mx.example\n    S> 250-mx.example\n"
        f"    S> 250 {ALL}\n    S> 220 again\n    >S EHLO localhost.localdomain\n    >S {LINE}\n    >C 220 again\n"
        + NOOP,
        announcement=XCLIENT,
    )


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize(
    ("how", "ends"),
    [
        ("end server", LOST_PLAIN),
        ("timeout server", BROKEN_PLAIN.replace("broke the protocol", "does not answer")),
        ("stop", LOST_PLAIN.replace("Connection to the mail server lost", "Service shutting down")),
        ("lost", CLOSES),
    ],
)
def test_the_session_ends_in_the_middle(steps: int, how: str, ends: str) -> None:
    """At the greeting, our EHLO, our XCLIENT: one 421 in the greeting's place, and a 220 never."""
    script = ["", GREETED.replace("\n\n", "\n"), asked()][steps]
    play(script + f"\n    !! {how}\n{ends}", announcement=XCLIENT, posture=MIRROR)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_drain_before_the_greeting(steps: int) -> None:
    """What is in flight is the greeting."""
    parts = TAKEN.split("\n\n")
    script = "\n\n".join([*parts[:steps], "    !! drain", *parts[steps:]])
    play(
        script + "    >C 421 Service shutting down, try again later\n" + CLOSES,
        announcement=XCLIENT,
    )


# ------------------------------------------------------------------------------------------------------ hostile clients


def test_a_client_that_talks_early() -> None:
    """It is answered behind the greeting, and noted; nothing of it stands among our own words."""
    records = play(
        """
        !! early

        C> EHLO me.example
        C> MAIL FROM:<a@x.example>

    """
        + TAKEN
        + """    >S EHLO me.example

        S> 250 mx.example
        >C 250 mx.example
        >S MAIL FROM:<a@x.example>

        S> 250 m
        >C 250 m
    """,
        announcement=XCLIENT,
    )
    assert "early-talk" in anomalies(records)


@pytest.mark.parametrize("announcement", [XCLIENT, XFORWARD])
def test_the_client_may_not_say_it_itself(announcement: Announcement) -> None:
    """C47: neither the keyword nor the verb, whether we use it or not; nor is there a PROXY header here."""
    own = announcement is XCLIENT
    offers = (POSTFIX, "XFORWARD NAME ADDR", "DSN")
    start = TAKEN + again(*offers, told=("DSN",)) if own else hello(*offers, told=("DSN",))
    records = play(
        start
        + f"""
        C> XCLIENT ADDR=127.0.0.1
        >C {DENIED}
        C> xclient NAME=localhost ADDR=127.0.0.1 LOGIN=root
        >C {DENIED}
        C> XFORWARD ADDR=127.0.0.1 SOURCE=LOCAL
        >C {DENIED}
        C>  XCLIENT ADDR=127.0.0.1
        >C 500 Syntax error, command unrecognized
        C> PROXY TCP4 127.0.0.1 127.0.0.1 1 25
        >C 521 This is SMTP
        -> close server
        -> close client
    """,
        announcement=announcement,
    )
    assert [r["verb"] for r in exchanges(records) if r["verb"] == "XCLIENT"] == ["XCLIENT"] * (4 if own else 3)


def test_a_client_that_is_allowed_to_say_it() -> None:
    """An administrator's word: the last XCLIENT counts, as with any server."""
    play(
        TAKEN + again("XCLIENT ADDR") + "\n    C> XCLIENT ADDR=192.0.2.99\n    >S XCLIENT ADDR=192.0.2.99\n"
        "    S> 220 once more\n    >C 220 once more\n" + again(),
        rules=allow("XCLIENT"),
        announcement=XCLIENT,
    )


# --------------------------------------------------------------------------------------------------------------- rules


def test_no_rule_is_asked_about_what_we_say() -> None:
    """They are about the client; and to it the reply to XCLIENT is the greeting."""
    rules = Says({"EHLO": answers("550 no"), "XCLIENT": answers("550 no")}, {"EHLO": answers("550 no"),
                 "XCLIENT": answers("550 no"), "GREETING": answers("220 elsewhere.example")})  # fmt: skip
    records = play(
        asked() + "\n    S> 220 mx.example again\n    >C 220 elsewhere.example\n", rules=rules, announcement=XCLIENT
    )
    ehlo, xclient, greeting = exchanges(records)
    assert "rule" not in ehlo
    assert "rule" not in xclient
    assert (greeting["rule"], greeting["got"]) == ("r", "220 mx.example again")


# ---------------------------------------------------------------------------------------------- beside TLS, by posture

CLEAR = f"""
    S> 220 mx.example
    >S EHLO proxy.example

    S> 250-mx.example
    S> 250-STARTTLS
    S> 250 {ALL}
"""
SAID = f"    >S {LINE}\n\n    S> 220 again\n"
AGAIN = "    >C 220 again\n"
UP = "    >S STARTTLS\n\n    S> 220 go\n    -> start-tls server\n\n    !! tls-done server\n"
SECOND = f"    >S EHLO proxy.example\n\n    S> 250-mx.example\n    S> 250 {ALL}\n"
SHOWN = "    -> prepare-tls client\n\n    !! tls-ready\n    -> start-tls client\n\n    !! tls-done client\n"
DIRECT = "\n    !! connected\n    -> start-tls server\n\n    !! tls-done server\n\n    S> 220 mx.example\n" + SECOND
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
HERE = """
    C> STARTTLS
    -> prepare-tls client

    !! tls-ready
    >C 220 Ready to start TLS
    -> start-tls client

    !! tls-done client
"""

# Client, server, and what comes before the client says its first word.
OPENINGS = [
    ("mirror", "mirror", CLEAR + SAID + AGAIN),
    ("offer", "mirror", CLEAR + SAID + AGAIN),
    ("refuse", "mirror", CLEAR + SAID + AGAIN),
    ("require", "mirror", CLEAR + SAID + AGAIN),
    ("passthrough", "mirror", CLEAR + SAID + AGAIN),
    ("mirror", "upgrade", CLEAR + UP + SECOND + SAID + AGAIN),
    ("require", "require", CLEAR + UP + SECOND + SAID + AGAIN),
    ("refuse", "require", CLEAR + UP + SECOND + SAID + AGAIN),
    ("mirror", "implicit", DIRECT + SAID + AGAIN),
    ("offer", "never", CLEAR + SAID + AGAIN),
    ("implicit", "mirror", CLEAR + UP + SECOND + SAID + SHOWN + AGAIN),
    ("implicit", "upgrade", CLEAR + UP + SECOND + SAID + SHOWN + AGAIN),
    ("implicit", "require", CLEAR + UP + SECOND + SAID + SHOWN + AGAIN),
    ("implicit", "implicit", DIRECT + SAID + SHOWN + AGAIN),
    ("implicit", "never", CLEAR + SAID + SHOWN + AGAIN),
]


@pytest.mark.parametrize(("client", "server", "script"), OPENINGS)
def test_every_posture(client: str, server: str, script: str) -> None:
    """The server's TLS first, where the posture has it by then; the client's last; each list is that of its link."""
    secure = server in ("upgrade", "require", "implicit") or (client, server) == ("implicit", "mirror")
    records = play(script, posture=posture(client, server), announcement=XCLIENT)
    assert [r["verb"] for r in exchanges(records)] == [
        "EHLO", *(["STARTTLS", "EHLO"] if secure and server != "implicit" else []), "XCLIENT", "GREETING",
    ]  # fmt: skip
    refused = script.replace("    S> 220 again\n", "    S> 550 no\n").replace(AGAIN, "    >C 550 no\n")
    play(refused + f"\n    C> STARTTLS\n    >C {NO}\n    C> NOOP\n    >C {NO}\n" + QUIT,
         posture=posture(client, server), announcement=XCLIENT)  # fmt: skip


def test_the_clients_starttls_behind_xclient() -> None:
    """Attributes survive it (XCLIENT_README: TLS is not reset, nor resets them): no second XCLIENT, and no log-in was
    taken for one."""
    start = CLEAR + SAID + AGAIN
    play(start + again("STARTTLS", POSTFIX, told=("STARTTLS",)) + BOTH + again("DSN") + ENVELOPE, posture=posture(),
         announcement=XCLIENT)  # fmt: skip
    play(start + again("DSN", told=("DSN", "STARTTLS")) + HERE + "\n    C> MAIL FROM:<a@x.example>\n"
         "    >C 503 EHLO comes first\n" + again("DSN") + ENVELOPE, posture=posture("offer", "never"),
         announcement=XCLIENT)  # fmt: skip
    play(start + "\n    C> MAIL FROM:<a@x.example>\n    >C 530 STARTTLS comes first here\n" + again("STARTTLS") + BOTH
         + again("DSN"), posture=posture("require", "mirror"), announcement=XCLIENT)  # fmt: skip


def test_passed_through_the_clients_tls_is_the_servers() -> None:
    """XCLIENT was said in clear before it."""
    play(CLEAR + SAID + AGAIN + again("STARTTLS") + """
        C> STARTTLS
        >S STARTTLS
        S> 220 go
        >C 220 go
        C> \\x16\\x03\\x01\\
        >S \\x16\\x03\\x01\\
    """, posture=posture("passthrough"), announcement=XCLIENT)  # fmt: skip


@pytest.mark.parametrize("client", ["mirror", "require"])
def test_upgrade_where_there_is_no_tls(client: str) -> None:
    """One EHLO is enough for both."""
    script = CLEAR.replace("    S> 250-STARTTLS\n", "")
    play(script + SAID + AGAIN, posture=posture(client, "upgrade"), announcement=XCLIENT)
    plain = script.replace(ALL, "DSN") + "    >C 220 mx.example\n"
    first = "530 STARTTLS comes first here" if client == "require" else "503 EHLO comes first"
    records = play(plain + f"\n    C> MAIL FROM:<a@x.example>\n    >C {first}\n", posture=posture(client, "upgrade"),
                   announcement=XCLIENT)  # fmt: skip
    assert "announce-not-offered" in anomalies(records)


def test_an_offer_in_clear_is_none_inside_tls() -> None:
    """RFC 3207 §4.2: what counts is the list of the encrypted link; there, the server may not offer it to us."""
    inside = "    >S EHLO proxy.example\n\n    S> 250-mx.example\n    S> 250 DSN\n    >C 220 mx.example\n"
    records = play(CLEAR + UP + inside + "\n    C> MAIL FROM:<a@x.example>\n    >C 503 EHLO comes first\n"
                   + again("DSN", told=("DSN", "STARTTLS")),
                   posture=posture("mirror", "require"), announcement=XCLIENT)  # fmt: skip
    assert "announce-not-offered" in anomalies(records)
    play(CLEAR.replace(ALL, "DSN") + UP + SECOND + SAID + AGAIN, posture=posture("mirror", "require"),
         announcement=XCLIENT)  # fmt: skip


def test_starttls_offered_inside_tls_is_not_taken_up() -> None:
    """A server that lists it again is not asked again."""
    play(CLEAR + UP + SECOND.replace("    S> 250 ", "    S> 250-STARTTLS\n    S> 250 ") + SAID + AGAIN,
         posture=posture("mirror", "require"), announcement=XCLIENT)  # fmt: skip


def test_no_tls_no_xclient() -> None:
    """Where TLS is demanded and fails, the client's address is not told in clear either."""
    failed = """
        >C 421 TLS to the mail server not available, try again later
        -> abort server
        -> close client
    """
    start = (
        CLEAR + "    >S STARTTLS\n\n    S> 220 go\n    -> start-tls server\n\n    !! tls-failed validation-failure\n"
    )
    play(start + failed, posture=posture("mirror", "upgrade"), announcement=XCLIENT)
    play(CLEAR.replace("    S> 250-STARTTLS\n", "") + failed, posture=posture("mirror", "require"),
         announcement=XCLIENT)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ foreword

INFO = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", sni="mx.example")


def header(info: TLSInfo | None) -> bytes:
    """A foreword that says what it knew."""
    return b"PROXY %s\r\n" % (info.cipher.encode() if info is not None else b"in-clear")


HEADER = "    >S PROXY in-clear\n"


def test_a_foreword_comes_before_everything() -> None:
    """As the link opens; it is no command, has no reply, and no exchange of its own."""
    records = play("\n    !! connected\n" + HEADER + hello("DSN") + ENVELOPE + QUIT, foreword=header)
    assert [r["verb"] for r in exchanges(records)] == ["GREETING", "EHLO", "MAIL", "RCPT", "QUIT"]


@pytest.mark.parametrize(("client", "server"), [(client, server) for client, server, _ in OPENINGS])
def test_a_foreword_in_every_posture(client: str, server: str) -> None:
    """In clear, also where the server's TLS is implicit: it stands before the handshake. Nothing else changes."""
    tls = "    -> start-tls server\n\n    !! tls-done server\n" if server == "implicit" else ""
    script = next(script for c, s, script in OPENINGS if (c, s) == (client, server))
    script = script.removeprefix(DIRECT[: DIRECT.index("    S> 220")]) if server == "implicit" else script
    play("\n    !! connected\n" + HEADER + tls + "\n" + script, posture=posture(client, server), foreword=header,
         announcement=XCLIENT)  # fmt: skip
    plain = "\n    !! connected\n" + HEADER + tls
    session = Session(judge=OPEN, record=lambda r: None, clock=lambda: 0.0, posture=posture(client, server),
                      foreword=header, client_first=client != "implicit")  # fmt: skip
    assert not session.to_server
    session.connected()
    assert session.to_server == b"PROXY in-clear\r\n"
    assert effects(session) == (["StartTLS server"] if server == "implicit" else [])
    play(plain + "\n    .. open\n", posture=posture(client, server), foreword=header)


def test_a_foreword_and_nobody_to_say_it_to() -> None:
    """A session that is over before the server is there."""
    play(
        "\n    !! stop\n    >C 421 Service shutting down, try again later\n" + CLOSES + "\n    !! connected\n",
        foreword=header,
    )
    play("\n    !! unreachable\n    >C 421 Cannot reach the mail server, try again later\n    -> close client\n"
        "\n    !! connected\n", foreword=header)  # fmt: skip


def test_a_foreword_before_a_session_that_passes_unseen() -> None:
    """The server expects it all the same."""
    play("\n    !! connected\n" + HEADER + "\n    S> 220 x\n    >C 220 x\n    C> QUIT\n    >S QUIT\n",
         posture=posture("implicit", "implicit"), unseen=True, foreword=header, client_first=True)  # fmt: skip


# ------------------------------------------------------------------------------------------- the client's TLS before it

FIRST = """
    !! connected
    -> prepare-tls client

    !! tls-ready
    -> start-tls client
"""
KNOWN = FIRST + "\n    !! tls-done client\n    >S PROXY TLS_AES_256_GCM_SHA384\n"

# What the server's link is to be, and what comes between the foreword and the greeting.
LATER = {
    "never": "\n    S> 220 mx.example\n",
    "mirror": CLEAR + UP,
    "upgrade": CLEAR + UP,
    "require": CLEAR + UP,
    "implicit": "    -> start-tls server\n\n    !! tls-done server\n\n    S> 220 mx.example\n",
}


@pytest.mark.parametrize("server", LATER)
def test_the_clients_tls_comes_first(server: str) -> None:
    """So that the server is told of it; the greeting then has nothing to wait for on that side."""
    options: dict[str, Any] = {"posture": posture("implicit", server), "foreword": header, "client_first": True}
    records = play(KNOWN + LATER[server] + "    >C 220 mx.example\n" + again("DSN") + ENVELOPE, **options)
    legs = [r for r in records if r["kind"] == "link-tls"]
    assert [(r.get("client") is not None, r.get("server") is not None) for r in legs] == (
        [(True, False)] if server == "never" else [(True, False), (True, True)]
    )
    refused = LATER[server].replace("S> 220 mx.example", "S> 554 no").split("    >S EHLO")[0]
    open_end = CLOSES if server in ("mirror", "require") else ""
    play(KNOWN + refused + "    >C 554 no\n" + open_end, **options)


@pytest.mark.parametrize("server", LATER)
def test_the_clients_tls_comes_first_and_xclient_last(server: str) -> None:
    """Both are possible: what a server makes of both is its own affair."""
    second = "" if server in ("mirror", "upgrade", "require") else "    >S EHLO proxy.example\n"
    script = LATER[server] + (SECOND if not second else second + SECOND.split("proxy.example\n")[1])
    play(KNOWN + script + SAID + AGAIN + again("DSN"), posture=posture("implicit", server), foreword=header,
         client_first=True, announcement=XCLIENT)  # fmt: skip


def test_it_changes_nothing_where_the_clients_tls_is_not_implicit() -> None:
    """STARTTLS comes when it comes."""
    for client in ("mirror", "offer", "require", "refuse", "passthrough"):
        play("\n    !! connected\n" + HEADER + "\n    S> 220 mx.example\n    >C 220 mx.example\n",
             posture=posture(client), foreword=header, client_first=True)  # fmt: skip


def test_no_foreword_is_needed_for_the_clients_tls_to_come_first() -> None:
    """The order is one thing, what is said another."""
    play(FIRST + "\n    !! tls-done client\n\n    S> 220 mx.example\n    >C 220 mx.example\n",
         posture=posture("implicit", "never"), client_first=True)  # fmt: skip


ABORT = "    -> abort server\n    -> close client\n"


@pytest.mark.parametrize("server", LATER)
@pytest.mark.parametrize(
    ("how", "ends"),
    [
        ("tls-failed", ABORT),
        ("timeout client", ABORT),
        ("timeout client session-too-long", CLOSES),
        ("stop", CLOSES),
        ("lost", CLOSES),
        ("end server", CLOSES),
    ],
)
def test_the_clients_handshake_comes_to_nothing(server: str, how: str, ends: str) -> None:
    """Both links close; not an octet was sent to the server, nor one to the client in clear."""
    options: dict[str, Any] = {"posture": posture("implicit", server), "foreword": header, "client_first": True}
    play(f"\n    !! connected\n    -> prepare-tls client\n\n    !! {how}\n{ends}", **options)
    play(f"{FIRST}\n    !! {how}\n{ends}", **options)


@pytest.mark.parametrize("server", LATER)
@pytest.mark.parametrize(
    ("how", "reply"),
    [("end server", "421 Connection to the mail server lost, try again later"),
     ("stop", "421 Service shutting down, try again later")],
)  # fmt: skip
def test_what_goes_wrong_behind_the_clients_handshake_is_told_inside_it(server: str, how: str, reply: str) -> None:
    """A client that is there in TLS hears why."""
    tls = "    -> start-tls server\n" if server == "implicit" else ""
    play(f"{KNOWN}{tls}\n    !! {how}\n    >C {reply}\n{CLOSES}", posture=posture("implicit", server),
         foreword=header, client_first=True)  # fmt: skip


def test_the_servers_tls_fails_behind_the_clients() -> None:
    """421 inside the client's."""
    failed = "    >C 421 TLS to the mail server not available, try again later\n" + ABORT
    options: dict[str, Any] = {"foreword": header, "client_first": True}
    play(KNOWN + "    -> start-tls server\n\n    !! tls-failed validation-failure\n" + failed,
         posture=posture("implicit", "implicit"), **options)  # fmt: skip
    play(KNOWN + "\n    S> 220 mx.example\n    >S EHLO proxy.example\n\n    S> 250 mx.example\n" + failed,
         posture=posture("implicit", "mirror"), **options)  # fmt: skip
    play(KNOWN + CLEAR + "    >S STARTTLS\n\n    S> 454 later\n" + failed, posture=posture("implicit", "require"),
         **options)  # fmt: skip


def test_a_server_that_talks_before_it_was_spoken_to() -> None:
    """It waits, unread; the greeting it sent early is the greeting."""
    session = Session(judge=OPEN, record=lambda r: None, clock=lambda: 0.0, posture=posture("implicit", "never"),
                      foreword=header, client_first=True)  # fmt: skip
    assert session.wants(Side.SERVER)
    session.connected()
    for ready in (False, True):
        assert not session.wants(Side.SERVER)
        assert not session.wants(Side.CLIENT)
        assert session.patience() == (Side.CLIENT, 60.0)
        assert not session.to_server
        if ready:
            session.tls_done(Side.CLIENT, INFO)
        else:
            session.tls_ready()
    assert session.wants(Side.SERVER)
    assert session.to_server == header(INFO)
    session.server_sent(b"220 mx\r\n")
    assert session.to_client == b"220 mx\r\n"


@pytest.mark.parametrize("ready", [False, True])
def test_a_driver_that_reads_it_all_the_same(ready: bool) -> None:
    """I5: a violation, and the session is over."""
    records: list[object] = []
    session = Session(judge=OPEN, record=records.append, clock=lambda: 0.0, posture=posture("implicit", "never"),
                      foreword=header, client_first=True)  # fmt: skip
    session.connected()
    if ready:
        session.tls_ready()
    session.server_sent(b"220 mx\r\n")
    assert session.closed
    assert not session.to_client
    assert not session.to_server
    assert "octets-behind-220" in str(records)


@pytest.mark.parametrize("early", [b"E", b"EHLO evil\r\n", b"\x16\x03\x01"])
def test_octets_in_clear_before_the_clients_handshake(early: bytes) -> None:
    """I5: they never act inside it, and the server hears nothing at all."""
    records: list[object] = []
    session = Session(judge=OPEN, record=records.append, clock=lambda: 0.0, posture=posture("implicit", "never"),
                      foreword=header, client_first=True)  # fmt: skip
    session.client_sent(early)
    session.connected()
    session.tls_ready()
    session.tls_done(Side.CLIENT, INFO)
    assert session.closed
    assert not session.to_server
    assert "octets-behind-starttls" in str(records)


def test_results_nobody_asked_for_say_nothing_twice() -> None:
    """A driver that reports a handshake again, or connects again after the end."""
    session = Session(judge=OPEN, record=lambda r: None, clock=lambda: 0.0, posture=posture("implicit", "never"),
                      foreword=header, client_first=True)  # fmt: skip
    session.tls_done(Side.CLIENT, INFO)
    assert not session.to_server
    session.connected()
    session.tls_ready()
    session.tls_done(Side.CLIENT, INFO)
    session.tls_done(Side.CLIENT, INFO)
    session.tls_ready()
    assert session.to_server == header(INFO)
    session.stop()
    session.connected()
    assert session.to_server == header(INFO)


# ------------------------------------------------------------------------------------------------------------- garbage


class Postfix(StrictServer):
    """It takes both commands."""

    def _command(self, line: bytes) -> bytes:
        if line.startswith((b"XCLIENT ", b"XFORWARD ")):
            return b"220 mx anew\r\n" if line.startswith(b"XC") else b"250 ok\r\n"
        return super()._command(line)


@given(
    kind=st.sampled_from(Announce),
    wanted=st.sampled_from(POSTURES),
    first=st.booleans(),
    said=st.lists(ANYTHING, max_size=30),
    cut=st.integers(1, 5000),
)
@settings(max_examples=settings().max_examples * 3)
def test_garbage(kind: Announce, wanted: Posture, first: bool, said: list[tuple[str, bytes | str]], cut: int) -> None:
    """Any octets and anything a driver says, at any time: no exception leaves an input method; what the client is told
    parses as replies; the foreword is said once, first, and not before a client's handshake that was to be; behind a
    refused XCLIENT nothing of the client's is sent but QUIT."""
    records: list[AuditRecord] = []
    server = Postfix((b"PIPELINING", b"CHUNKING", b"STARTTLS", b"XCLIENT NAME ADDR", b"XFORWARD ADDR HELO"))
    session = Session(judge=OPEN, record=records.append, clock=lambda: 0.0, posture=wanted, foreword=header,
                      client_first=first, limits=Limits(endless_line=5000, malformed=50, pipelined=20),
                      announcement=introduced(kind.value, ("192.0.2.7", 40123)))  # fmt: skip
    session.connected()
    told = sent = b""
    waits = first and wanted.client is ClientTLS.IMPLICIT
    opening: list[tuple[str, bytes | str]] = [("D", "tls goes well")] if waits and len(said) % 2 else []
    for who, what in [*opening, ("S", b"220 mx\r\n"), *said]:
        taken = bytes(session.to_server)
        sent += taken
        session.to_server.clear()
        if who == "D":
            assert isinstance(what, str)
            drive(session, what)
        else:
            octets = server.feed(taken.removeprefix(header(None))) if isinstance(what, str) else what
            feed = session.client_sent if who == "C" else session.server_sent
            for at in range(0, len(octets), cut):
                feed(octets[at : at + cut])
        told += bytes(session.to_client)
        session.to_client.clear()
        if session.inspected:
            replies_of(told)
        if waits and session.client.tls is None:
            assert not session.to_server
            assert not sent
    if sent:
        assert sent.startswith(b"PROXY ")
        assert sent.count(b"PROXY ") == 1
    exchanged = [record.exchange for record in records if record.exchange is not None]
    refused = False
    for exchange in exchanged:
        forwarded = exchange.asked is not None and exchange.sent is not None and exchange.verb is not GREETING
        assert not (refused and forwarded and exchange.verb.name != "QUIT")
        own = exchange.asked is None and exchange.verb.name == "XCLIENT"
        refused |= own and exchange.got is not None and exchange.got.code != 220
        assert kind is Announce.XCLIENT or not own
    for record in records:
        rendered(record)


def test_a_greeting_that_refuses_is_no_way_round_xclient() -> None:
    """The server was never told who the client is, so nothing of it but QUIT goes on under our name."""
    play(
        f"S> 554 not now\n>C 554 not now\n\nC> EHLO me.example\n>C {NO}\nC> MAIL FROM:<a@x.example>\n>C {NO}\n" + QUIT,
        announcement=XCLIENT,
    )
