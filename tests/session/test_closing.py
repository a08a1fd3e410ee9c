"""How a session ends (F42–F55, G01–G18; S2–S4): whoever goes, falls silent or breaks the protocol, at any point,
the client gets one clear 4xx or a close and never a 250 that the server did not give, and the server never sees
an end of data or a LAST that the client did not send."""

from collections.abc import Callable
from typing import Any

import pytest

from smtpproxy.session.effects import Close
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import PASS, Depth, PassAll, Verdict
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.replies import own
from tests.play import DATA, HELLO, MAIL, play
from tests.session.judges import BROKEN, LOST, NOOP, OPEN, QUIT, Looks, anomalies, answers, effects, exchanges
from tests.session.judges import GREETING as OPENING
from tests.session.strict_server import StrictServer

CLOSES = """
    -> close server
    -> close client
"""
CUT = """
    -> abort server
    -> close client
"""
SILENT = """
    >C 421 4.4.2 The mail server does not answer, try again later
    -> abort server
    -> close client
"""
SENT = DATA + "\n    C> x\n    C> .\n    >S x\n    >S .\n"
CONTENT = DATA + "\n    C> Subject: x\n    C> hal\\\n    >S Subject: x\n    >S hal\\\n"
CHUNK = MAIL + "\n    C> BDAT 6 LAST\n    C> abc\\\n    >S BDAT 6 LAST\n    >S abc\\\n"
GONE = """
    C> NOOP
    >C 421 4.4.2 The session to the mail server is over, try again later
    -> close client
"""


def outcome(records: list[dict[str, Any]]) -> list[str]:
    """What became of the transactions."""
    return [record["kind"] for record in records if record["kind"].startswith("tx-")]


# ---------------------------------------------------------------------------------- F51–F55, G13: the client goes


def test_client_ends_before_the_greeting() -> None:
    """What it asked is answered (the greeting), then both close."""
    play("    !! end client\n\n    S> 220 mx\n    >C 220 mx\n" + CLOSES)


def test_client_ends_idle() -> None:
    """Clean on both sides."""
    play(HELLO + "\n    !! end client\n" + CLOSES)
    play(MAIL + "\n    !! end client\n" + CLOSES)


def test_client_ends_with_replies_owed() -> None:
    """A client may shut its sending side behind a group: every reply is told first."""
    play(
        HELLO
        + """
        C> NOOP
        C> EXPN x
        C> NOOP
        >S NOOP
        >S NOOP

        !! end client

        S> 250 a
        >C 250 a
        >C 502 5.5.1 Command not implemented
        S> 250 b
        >C 250 b
        -> close server
        -> close client
    """.replace("        S> 250 b", "\n        S> 250 b").replace("        S> 250 a\n        >C 250 a\n        >C 502",
                                                                  "        S> 250 a\n        >C 250 a\n        >C 502")
    )  # fmt: skip


def test_client_ends_within_a_command() -> None:
    """Half a line is no command."""
    play(HELLO + "\n    C> QUI\\\n\n    !! end client\n" + CLOSES)


@pytest.mark.parametrize(
    "part", ["x", "x\\r\\n.", "x\\r\\n.\\r", "x\\r\\n", ".", ".\\r", "\\r\\n.\\r", "QUIT\\r\\n", "x\\n.\\n"]
)
@pytest.mark.parametrize("how", ["end client", "lost"])
def test_client_goes_within_content(part: str, how: str) -> None:
    """F51–F55, S4: even CR short of the end, no mail completes: the server's link is cut."""
    session, records = opened()
    session.client_sent(part.encode().decode("unicode_escape").encode())
    sent = bytes(session.to_server)
    session.client_sent(b"") if how == "end client" else session.client_lost()
    assert effects(session) == ["Abort server", "Close client"]
    assert b"\r\n.\r\n" not in b"\r\n" + sent + bytes(session.to_server)
    assert "client-lost" in str(records)
    assert "tx-refused" in str(records) or "Kind.REFUSED" in str(records)


def opened(judge: Any = OPEN) -> tuple[Session, list[Any]]:
    """A session within content."""
    records: list[Any] = []
    session = Session(judge=judge, record=records.append, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"HELO me\r\n")
    session.server_sent(b"250 mx\r\n")
    session.client_sent(b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n")
    session.server_sent(b"250 m\r\n250 r\r\n354 go\r\n")
    session.to_client.clear()
    session.to_server.clear()
    return session, records


def test_client_ends_after_the_end_of_data() -> None:
    """What it asked is answered, the mail stands."""
    records = play(SENT + "\n    !! end client\n\n    S> 250 q\n    >C 250 q\n" + CLOSES)
    assert outcome(records) == ["tx-begin", "tx-commit"]


def test_client_lost_before_the_acknowledgement() -> None:
    """G13: "accepted, acknowledgement undelivered" is on record."""
    records = play(SENT + "\n    !! lost\n\n    S> 250 q\n" + CLOSES)
    assert outcome(records) == ["tx-begin", "tx-commit"]
    assert "unacknowledged" in anomalies(records)


def test_client_lost_before_the_acknowledgement_of_last() -> None:
    """G13 by BDAT."""
    script = (
        MAIL + "\n    C> BDAT 3 LAST\n    C> abc\\\n    >S BDAT 3 LAST\n    >S abc\\\n\n    !! lost\n\n    S> 250 q\n"
    )
    records = play(script + CLOSES)
    assert outcome(records) == ["tx-begin", "tx-commit"]
    assert "unacknowledged" in anomalies(records)


def test_client_lost_with_the_acknowledgement_unsent() -> None:
    """G13: the 250 lay in our buffer when the link broke."""
    session, records = opened()
    session.client_sent(b"x\r\n.\r\n")
    session.server_sent(b"250 q\r\n")
    assert session.to_client
    session.client_lost()
    session.client_lost()
    assert "unacknowledged" in str(records)
    assert not session.to_client


def test_client_lost_idle_and_owed() -> None:
    """Both links close."""
    play(HELLO + "\n    !! lost\n" + CLOSES)
    play(HELLO + "\n    C> NOOP\n    >S NOOP\n\n    !! lost\n" + CLOSES)


def test_client_goes_within_a_chunk() -> None:
    """S4: a chunk that is not whole is never filled up."""
    for how in ("end client", "lost"):
        records = play(f"{CHUNK}\n    !! {how}\n{CUT}")
        assert outcome(records) == ["tx-begin", "tx-refused"]


def test_client_goes_between_chunks() -> None:
    """No LAST is made up."""
    first = MAIL + "\n    C> BDAT 3\n    C> abc\\\n    >S BDAT 3\n    >S abc\\\n\n    S> 250 c\n    >C 250 c\n"
    for how in ("end client", "lost"):
        assert outcome(play(f"{first}\n    !! {how}\n{CLOSES}")) == ["tx-begin", "tx-refused"]


def test_client_ends_behind_data() -> None:
    """354 to nobody: cut, or the server would wait for content."""
    play(MAIL + "\n    C> DATA\n    >S DATA\n\n    !! end client\n\n    S> 354 go\n    >C 354 go\n" + CUT)


def test_client_ends_behind_a_whole_mail_sent_at_once() -> None:
    """All of it was sent before the 354: it is a mail, and is delivered."""
    records = play(
        MAIL
        + """
        C> DATA
        C> x
        C> .
        >S DATA

        !! end client

        S> 354 go
        >C 354 go
        >S x
        >S .

        S> 250 q
        >C 250 q
    """
        + CLOSES
    )
    assert outcome(records) == ["tx-begin", "tx-commit"]


def test_client_ends_within_swallowed_octets() -> None:
    """Octets thrown away have no end either."""
    play(
        HELLO
        + "\n    C> BDAT 9 LAST\n    C> abc\\\n    >C 503 5.5.1 Need MAIL and RCPT first\n\n    !! end client\n"
        + CUT
    )


def test_quit_text_within_content_is_content() -> None:
    """F55: smtp-gated 002."""
    play(DATA + "\n    C> QUIT\n    C> .\n    >S QUIT\n    >S .\n\n    S> 250 q\n    >C 250 q\n" + QUIT)


def test_octets_behind_quit_are_not_read() -> None:
    """RFC 5321 §4.1.1.10: the session is over."""
    play(HELLO + "\n    C> QUIT\n    C> MAIL FROM:<a@x.example>\n    >S QUIT\n\n    S> 221 b\n    >C 221 b\n" + CLOSES)


def test_quit_refused_goes_on() -> None:
    """A server that says 500 to QUIT has not closed."""
    play(HELLO + "\n    C> QUIT\n    >S QUIT\n    S> 500 no\n    >C 500 no\n" + NOOP + QUIT)


# ---------------------------------------------------------------------------------------- G04–G17: the server goes


def test_server_ends_before_the_greeting() -> None:
    """421, close."""
    play("    !! end server\n    >C 421 Connection to the mail server lost, try again later\n" + CLOSES)


def test_server_ends_idle() -> None:
    """The client is told at once (RFC 5321 §3.8), not at its next command."""
    records = play(HELLO + "\n    !! end server\n" + LOST)
    assert "server-lost" in anomalies(records)


@pytest.mark.parametrize(
    "command",
    ["NOOP", "MAIL FROM:<a@x.example>", "RSET", "EHLO me", "HELP"],
)
def test_server_ends_with_a_reply_owed(command: str) -> None:
    """421 for the first that is owed; nothing follows it."""
    play(f"{HELLO}\n    C> {command}\n    C> NOOP\n    >S {command}\n"
         + ("" if command.startswith("EHLO") else "    >S NOOP\n") + f"\n    !! end server\n{LOST}")  # fmt: skip


def test_server_ends_behind_our_own_answer() -> None:
    """I1: our 502 was waiting behind the owed reply: the 421 takes the first place, and ends it."""
    play(HELLO + "\n    C> NOOP\n    C> EXPN x\n    >S NOOP\n\n    !! end server\n" + LOST)


@pytest.mark.parametrize("command", ["DATA", "RCPT TO:<c@y.example>"])
def test_server_ends_within_a_transaction(command: str) -> None:
    """G16."""
    records = play(f"{MAIL}\n    C> {command}\n    >S {command}\n\n    !! end server\n{LOST}")
    assert outcome(records) == ["tx-begin", "tx-refused"]


def test_server_ends_within_content() -> None:
    """G14: the rest is read to its end, then 451; QUIT gets 221, anything else 421."""
    script = (
        CONTENT
        + """
        !! end server
        -> close server

        C> f a mail
        C> .
        >C 451 4.4.2 Connection to the mail server lost, try again later
    """
    )
    records = play(script + GONE)
    assert outcome(records) == ["tx-begin", "tx-refused"]
    play(script + "\n    C> QUIT\n    >C 221 2.0.0 Bye\n    -> close client\n")
    play(script + "\n    C> MAIL FROM:<a@x.example>\n    C> RCPT TO:<b@x.example>\n"
         "    >C 421 4.4.2 The session to the mail server is over, try again later\n    -> close client\n")  # fmt: skip
    play(script + "\n    C> garbage\\0\n    >C 421 4.4.2 The session to the mail server is over, try again later\n"
         "    -> close client\n")  # fmt: skip
    play(script + "\n    !! end client\n    -> close client\n")


def test_server_ends_after_the_end_of_data() -> None:
    """G04, S3, RFC 1047: a lost acknowledgement is 4xx, never 250 and never 5xx."""
    records = play(SENT + "\n    !! end server\n" + LOST)
    assert outcome(records) == ["tx-begin", "tx-refused"]


@pytest.mark.parametrize("part", ["2", "25", "250", "250 ", "250 2.0.0 queued", "250 2.0.0 queued\\r", "250-a\\r\\n"])
def test_half_an_acknowledgement(part: str) -> None:
    """G06."""
    records = play(f"{SENT}\n    S> {part}\\\n\n    !! end server\n{LOST}")
    assert outcome(records) == ["tx-begin", "tx-refused"]


@pytest.mark.parametrize(
    "reply", ["garbage", "25O queued", "250-a\\r\\n550 b", "354 go", "334 go", "650 x", "250 a\\n"]
)
def test_a_broken_acknowledgement(reply: str) -> None:
    """G07–G09."""
    records = play(f"{SENT}\n    S> {reply}\n{BROKEN}")
    assert outcome(records) == ["tx-begin", "tx-refused"]


@pytest.mark.parametrize(
    "reply", ["250 2.0.0 queued as ABC123", "451 4.3.0 later", "554 5.7.1 spam", "250-a\\r\\n250 b"]
)
def test_the_acknowledgement_is_relayed_with_its_text(reply: str) -> None:
    """G01–G03: the queue id reaches the client; the session goes on."""
    records = play(f"{SENT}\n    S> {reply}\n    >C {reply}\n{NOOP}")
    assert outcome(records) == ["tx-begin", "tx-commit" if reply.startswith("250") else "tx-refused"]


def test_250_before_the_end_of_data() -> None:
    """G10: not an acknowledgement: the server's link is cut, the client told 451 at its end."""
    records = play(
        CONTENT
        + """
        S> 250 queued
        -> abort server

        C> f
        C> .
        >C 451 4.3.0 The mail server broke the protocol, try again later
    """
        + GONE
    )
    assert "reply-before-end" in anomalies(records)
    assert outcome(records) == ["tx-begin", "tx-refused"]


@pytest.mark.parametrize(
    "reply", ["552 5.3.4 Too big", "451 4.3.0 Later", "421 4.3.2 Shutting down", "554-a\\r\\n554 b"]
)
def test_a_refusal_before_the_end_of_data(reply: str) -> None:
    """A62: kept, and told at the end; the session with this server is over."""
    after = "    -> close client\n" if reply.startswith("421") else GONE
    records = play(f"{CONTENT}\n    S> {reply}\n    -> abort server\n\n    C> f\n    C> .\n    >C {reply}\n{after}")
    assert "early-refusal" in anomalies(records)
    assert outcome(records) == ["tx-begin", "tx-refused"]


def test_a_refusal_before_the_end_and_more_of_them() -> None:
    """Once cut, nothing of the server is read."""
    play(f"{CONTENT}\n    S> 552 a\n    S> 250 b\n    S> garbage\n    -> abort server\n\n    C> f\n    C> .\n"
        f"    C> NOOP\n    >C 552 a\n"
         "    >C 421 4.4.2 The session to the mail server is over, try again later\n    -> close client\n")  # fmt: skip


def test_garbage_within_content() -> None:
    """A violation within content: cut, 451 at the end."""
    play(f"{CONTENT}\n    S> garbage\n    -> abort server\n\n    C> f\n    C> .\n"
         f"    >C 451 4.3.0 The mail server broke the protocol, try again later\n{GONE}")  # fmt: skip


def test_server_ends_at_quit() -> None:
    """G17: 221 all the same: the client is leaving, and nothing is lost."""
    play(
        HELLO + "\n    C> QUIT\n    >S QUIT\n\n    !! end server\n    >C 221 2.0.0 Bye\n    -> close server\n"
        "    -> close client\n"
    )


def test_server_ends_within_a_chunk() -> None:
    """G14 by BDAT."""
    records = play(CHUNK + "\n    !! end server\n" + LOST)
    assert outcome(records) == ["tx-begin", "tx-refused"]


def test_server_ends_between_chunks() -> None:
    """No reply is owed: 421 unasked."""
    first = MAIL + "\n    C> BDAT 3\n    C> abc\\\n    >S BDAT 3\n    >S abc\\\n\n    S> 250 c\n    >C 250 c\n"
    records = play(first + "\n    !! end server\n" + LOST)
    assert outcome(records) == ["tx-begin", "tx-refused"]


def test_server_ends_while_refused_octets_are_swallowed() -> None:
    """The client has its 503; told 421 when the link ends."""
    play(
        HELLO
        + "\n    C> BDAT 9 LAST\n    C> abc\\\n    >C 503 5.5.1 Need MAIL and RCPT first\n\n    !! end server\n"
        + LOST
    )


def test_server_is_not_read_after_its_end() -> None:
    """Octets behind the end are nobody's."""
    session, _ = opened()
    session.server_sent(b"")
    session.server_sent(b"250 ok\r\n")
    session.server_sent(b"")
    assert session.to_client == b""
    assert not session.wants(Side.SERVER)


# ------------------------------------------------------------------------------------------ F48–F50, G11–G15: silence


@pytest.mark.parametrize("before", [HELLO, MAIL])
def test_client_idle(before: str) -> None:
    """F50: 421 and close."""
    records = play(f"{before}\n    !! timeout client\n    >C 421 4.4.2 Idle for too long, closing\n{CLOSES}")
    assert "idle" in anomalies(records)


def test_client_idle_before_hello() -> None:
    """Before ENHANCEDSTATUSCODES was offered."""
    play(OPENING + "\n    !! timeout client\n    >C 421 Idle for too long, closing\n" + CLOSES)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("idle", "421 4.4.2 Idle for too long, closing"),
        ("too-slow", "421 4.4.2 Too slow, closing"),
        ("session-too-long", "421 4.4.2 Session open for too long, closing"),
    ],
)
def test_client_silent_within_content(word: str, told: str) -> None:
    """F49, S4: the mail never completes."""
    for before in (CONTENT, CHUNK):
        records = play(f"{before}\n    !! timeout client {word}\n    >C {told}\n{CUT}")
        assert word in anomalies(records)
        assert outcome(records) == ["tx-begin", "tx-refused"]


def test_client_silent_within_a_sasl_dialogue() -> None:
    """421 is a reply there, too."""
    play(
        OPENING
        + """
        C> EHLO me
        >S EHLO me
        S> 250-mx
        S> 250 AUTH PLAIN
        >C 250-mx
        >C 250 AUTH PLAIN
        C> AUTH PLAIN
        >S AUTH PLAIN
        S> 334
        >C 334

        !! timeout client
        >C 421 Idle for too long, closing
        -> close server
        -> close client
    """,
        rules=OPEN,
    )


@pytest.mark.parametrize(
    ("before", "command"), [(HELLO, "NOOP"), (HELLO, "MAIL FROM:<a@x.example>"), (MAIL, "DATA"), (DATA, ".")]
)
def test_server_silent(before: str, command: str) -> None:
    """G12: 4xx after patience, never 250."""
    records = play(f"{before}\n    C> {command}\n    >S {command}\n\n    !! timeout server\n{SILENT}")
    assert "idle" in anomalies(records)


def test_server_silent_at_quit() -> None:
    """G17."""
    play(f"{HELLO}\n    C> QUIT\n    >S QUIT\n\n    !! timeout server\n    >C 221 2.0.0 Bye\n{CUT}")


def test_server_silent_within_content() -> None:
    """G15: it takes no more: swallowed to the end, then 451."""
    play(f"{CONTENT}\n    !! timeout server\n    -> abort server\n\n    C> f\n    C> .\n"
         f"    >C 451 4.4.2 Connection to the mail server lost, try again later\n{GONE}")  # fmt: skip


def test_an_acknowledgement_that_is_late_is_told() -> None:
    """G11: patience is the driver's; a late 250 is a 250."""
    play(SENT + "\n    S> 250 q\n    >C 250 q\n" + NOOP)


def test_server_unreachable() -> None:
    """421 4.4.1 in place of the greeting (without its enhanced code, for nothing was offered yet)."""
    records = play(
        "    !! unreachable\n    >C 421 Cannot reach the mail server, try again later\n    -> close client\n"
    )
    assert "server-unreachable" in anomalies(records)


# -------------------------------------------------------------------------------------------------------- stopping

STOPPING = "    >C 421 4.3.2 Service shutting down, try again later\n"


def test_drain_idle() -> None:
    """At once."""
    play(HELLO + "\n    !! drain\n" + STOPPING + CLOSES)
    play(OPENING + "\n    !! drain\n" + STOPPING.replace("4.3.2 ", "") + CLOSES)


def test_drain_within_a_transaction() -> None:
    """It may be finished; then 421 behind the acknowledgement."""
    records = play(
        MAIL
        + """
        !! drain

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
        + STOPPING
        + CLOSES
    )
    assert outcome(records) == ["tx-begin", "tx-commit"]


def test_drain_within_content_and_within_a_chunk() -> None:
    """The same, from further in."""
    play(
        CONTENT
        + "\n    !! drain\n\n    C> f\n    C> .\n    >S f\n    >S .\n\n    S> 250 q\n    >C 250 q\n"
        + STOPPING
        + CLOSES
    )
    play(CHUNK + "\n    !! drain\n\n    C> def\\\n    >S def\\\n    S> 250 q\n    >C 250 q\n" + STOPPING + CLOSES)


def test_drain_with_a_reply_owed() -> None:
    """The reply first."""
    play(HELLO + "\n    C> NOOP\n    >S NOOP\n\n    !! drain\n\n    S> 250 n\n    >C 250 n\n" + STOPPING + CLOSES)


def test_drain_before_the_greeting() -> None:
    """The greeting first: a client can't read anything before it."""
    play("    !! drain\n\n    S> 220 mx\n    >C 220 mx\n" + STOPPING.replace("4.3.2 ", "") + CLOSES)


@pytest.mark.parametrize("command", ["NOOP", "MAIL FROM:<z@x.example>", "nonsense\\0"])
def test_drain_answers_what_comes_behind_what_is_owed(command: str) -> None:
    """421 to anything but QUIT."""
    play(
        f"{HELLO}\n    C> NOOP\n    >S NOOP\n\n    !! drain\n\n    C> {command}\n\n    S> 250 n\n    >C 250 n\n"
        f"{STOPPING}{CLOSES}"
    )


def test_drain_lets_quit_through() -> None:
    """221."""
    play(
        f"{HELLO}\n    C> NOOP\n    >S NOOP\n\n    !! drain\n\n    C> QUIT\n\n    S> 250 n\n    >C 250 n\n"
        f"    >C 221 2.0.0 Bye\n{CLOSES}"
    )


def test_drain_within_a_transaction_that_is_given_up() -> None:
    """RSET ends it, and with it the session."""
    play(MAIL + "\n    !! drain\n\n    C> RSET\n    >S RSET\n    S> 250 r\n    >C 250 r\n" + STOPPING + CLOSES)


def test_stop_at_each_point() -> None:
    """Stop does not wait; within content the server's link is cut (S4)."""
    session, _ = opened()
    session.client_sent(b"half")
    session.stop()
    assert effects(session) == ["Abort server", "Close client"]
    assert bytes(session.to_client) == b"421 Service shutting down, try again later\r\n"
    session.stop()
    assert len(session.effects) == 2
    session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0)
    session.stop()
    assert effects(session) == ["Close server", "Close client"]


# ----------------------------------------------------------------------------------------- rules that end the session


def test_hangup_by_rule() -> None:
    """Told, then both closed; what came behind it is not read."""
    from smtpproxy.session.verdicts import Action
    from tests.session.judges import Says

    rules = Says({"EXPN": Verdict(Action.HANGUP, own("521 5.7.1 Go away"), "r")})
    play(HELLO + "\n    C> NOOP\n    C> EXPN x\n    C> NOOP\n    >S NOOP\n\n    S> 250 n\n    >C 250 n\n"
        "    >C 521 5.7.1 Go away\n"
         + CLOSES, rules=rules)  # fmt: skip


def test_a_refusal_of_421_by_rule_closes() -> None:
    """RFC 5321 §4.2.1: whoever says 421 closes."""
    from tests.session.judges import Says

    play(HELLO + "\n    C> EXPN x\n    C> NOOP\n    >C 421 4.7.0 Enough\n" + CLOSES,
         rules=Says({"EXPN": answers("421 4.7.0 Enough")}))  # fmt: skip


# --------------------------------------------------------------------------------------- held-back content and the end


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE])
def test_server_ends_while_content_is_held_back(depth: Depth) -> None:
    """Nothing was sent: 451 at the end."""
    held = MAIL + "\n    C> DATA\n    >C 354 Start mail input; end with <CRLF>.<CRLF>\n\n    C> A: b\n"
    play(held + "\n    !! end server\n    -> close server\n\n    C> c\n    C> .\n"
         f"    >C 451 4.4.2 Connection to the mail server lost, try again later\n"
         f"{GONE}", rules=Looks(depth))  # fmt: skip


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE])
@pytest.mark.parametrize(("how", "effect"), [("end server", "close server"), ("timeout server", "abort server")])
def test_server_goes_while_our_own_data_is_owed(depth: Depth, how: str, effect: str) -> None:
    """451 to the end of data that waits for it; the rest of the session is an orphan."""
    script = (
        MAIL
        + """
        C> DATA
        >C 354 Start mail input; end with <CRLF>.<CRLF>
        C> A: b
        C>
        C> .
        >S DATA
    """
    )
    told = "451 4.4.2 Connection to the mail server lost, try again later"
    records = play(f"{script}\n    !! {how}\n    >C {told}\n    -> {effect}\n{GONE}", rules=Looks(depth))
    assert outcome(records) == ["tx-begin", "tx-refused"]


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE])
@pytest.mark.parametrize("reply", ["garbage", "250 ok", "334 x", "221 bye"])
def test_nonsense_to_our_own_data(depth: Depth, reply: str) -> None:
    """I9 holds for our own commands: the link is cut, the end of data told 451."""
    records = play(
        MAIL
        + f"""
        C> DATA
        >C 354 Start mail input; end with <CRLF>.<CRLF>
        C> A: b
        C>
        C> .
        >S DATA
        S> {reply}
        >C 451 4.3.0 The mail server broke the protocol, try again later
        -> abort server
    """
        + GONE,
        rules=Looks(depth),
    )
    assert outcome(records) == ["tx-begin", "tx-refused"]


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE])
def test_keep_alive_while_content_is_held_back(depth: Depth) -> None:
    """Architecture §7: NOOP of our own, its reply swallowed; not twice at once."""
    script = (
        MAIL
        + """
        C> DATA
        >C 354 Start mail input; end with <CRLF>.<CRLF>
        C> A: b

        !! keep-alive
        >S NOOP

        !! keep-alive

        S> 250 n

        !! keep-alive
        >S NOOP
        S> 250 n

        C>
        C> .
        >S DATA
        S> 354 go
        >S A: b
        >S
        >S .
        S> 250 q
        >C 250 q
    """
    )
    play(script, rules=Looks(depth))
    play(HELLO + "\n    !! keep-alive\n" + NOOP)


# -------------------------------------------------------------------------------- every point, every fault (S3 and S4)

MAIL_BY_DATA = (
    b"EHLO me\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\nA: b\r\n\r\n..dot\r\nQUIT\r\n.\r\n"
    b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nBDAT 8\r\n\r\n.\r\nQUIBDAT 5 LAST\r\nabcde"
    b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n.\r\nNOOP\r\nQUIT\r\n"
)
# Mails that are complete when so many octets have been sent.
COMPLETE = [
    MAIL_BY_DATA.index(b"QUIT\r\n.\r\n") + 9,
    MAIL_BY_DATA.index(b"abcde") + 5,
    MAIL_BY_DATA.index(b"DATA\r\n.\r\n") + 9,
]
FAULTS: dict[str, Callable[[Session], None]] = {
    "client ends": lambda session: session.client_sent(b""),
    "client is lost": Session.client_lost,
    "client is silent": lambda session: session.timed_out(Side.CLIENT),
    "client is slow": lambda session: session.timed_out(Side.CLIENT, "too-slow"),
    "server ends": lambda session: session.server_sent(b""),
    "server is silent": lambda session: session.timed_out(Side.SERVER),
    "server says garbage": lambda session: session.server_sent(b"garbage\r\n"),
    "server says 421": lambda session: session.server_sent(b"421 bye\r\n"),
    "server says 250": lambda session: session.server_sent(b"250 ok\r\n"),
    "server says 354": lambda session: session.server_sent(b"354 go\r\n"),
    "server says half": lambda session: session.server_sent(b"250 hal"),
    "client says garbage": lambda session: session.client_sent(b"\0\n\r\xff"),
    "stop": Session.stop,
    "drain": Session.drain,
}
JUDGES: dict[str, Callable[[], PassAll]] = {
    "stream": PassAll,
    "header": lambda: Looks(Depth.HEADER),
    "whole": lambda: Looks(Depth.WHOLE),
    "refused": lambda: Looks(Depth.WHOLE, answers("550 5.7.1 No")),
}


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("prompt", [True, False], ids=["prompt server", "server behind"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_at_every_octet(fault: str, prompt: bool, judge: str) -> None:
    """S3, S4, G04–G19: no mail completes at the server that the client did not send whole (or a rule refused), and the
    client is not told of more deliveries than there were."""
    step = 1 if prompt and judge == "stream" else 3
    for at in range(0, len(MAIL_BY_DATA) + 1, step):
        run_until_fault(at, FAULTS[fault], prompt, JUDGES[judge](), fault)


def run_until_fault(at: int, fault: Callable[[Session], None], prompt: bool, judge: PassAll, name: str) -> None:
    """Play the octets up to `at`, then the fault, then whatever the two still say."""
    records: list[Any] = []
    server = StrictServer()
    session = Session(judge=judge, record=records.append, clock=lambda: 0.0)
    told = b""

    def exchange_octets(deliver: bool) -> None:
        nonlocal told
        for _ in range(50):
            told += bytes(session.to_client)
            session.to_client.clear()
            cut = "Abort server" in effects(session)
            octets = b"" if cut else bytes(session.to_server)
            session.to_server.clear()
            session.drained()
            replies.append(server.feed(octets))
            if not deliver or not any(replies):
                return
            said = b"".join(replies)
            replies.clear()
            session.server_sent(said)

    replies: list[bytes] = [server.greet()]
    exchange_octets(True)
    for position in range(at):
        session.client_sent(MAIL_BY_DATA[position : position + 1])
        # a server that lags says nothing until it must: while a command holds, or before every tenth octet
        exchange_octets(prompt or session.holding or position % 10 == 0)
    fault(session)
    exchange_octets(True)
    for position in range(at, len(MAIL_BY_DATA)):  # a client that has not noticed goes on
        if name.startswith("client") and name != "client says garbage":
            break
        session.client_sent(MAIL_BY_DATA[position : position + 1])
        exchange_octets(True)
    accepted = told.count(b"250 queued")
    stopped = name.startswith("client") and name != "client says garbage"
    sent_whole = sum(1 for end in COMPLETE if end <= (at if stopped else len(MAIL_BY_DATA)))
    assert len(server.mails) <= sent_whole, (at, name, server.mails)
    assert accepted <= len(server.mails), (at, name, told)
    assert told.count(b"250 2.0.0 queued") == 0
    commits = sum(1 for record in records if record.kind.value == "tx-commit")
    assert accepted <= commits <= len(server.mails), (at, name)
    if any(isinstance(effect, Close) and effect.side is Side.CLIENT for effect in session.effects):
        assert session.closed
        assert not session.wants(Side.CLIENT)
    if isinstance(judge, Looks) and judge._verdict is not PASS:
        assert server.mails == []
    elif name != "client says garbage":  # which is content, within content
        whole = [b"A: b\r\n\r\n..dot\r\nQUIT\r\n", b"\r\n.\r\nQUIabcde", b""]
        assert server.mails == whole[: len(server.mails)]


# -------------------------------------------------------------------------------------------------------------- corners


def test_server_ends_while_chunks_are_held_back_and_a_noop_of_ours_is_owed() -> None:
    """Our own command is nobody's reply: the client is told 421 unasked, once."""
    play(
        MAIL
        + """
        C> BDAT 3
        C> abc\\
        >C 250 2.0.0 Octets received

        !! keep-alive
        >S NOOP

        !! end server
    """
        + LOST,
        rules=Looks(Depth.WHOLE),
    )


@pytest.mark.parametrize(("how", "effect"), [("end server", "close server"), ("timeout server", "abort server")])
def test_server_goes_while_refused_content_is_swallowed(how: str, effect: str) -> None:
    """The refusal stands: 550 at the end, not 451."""
    play(
        MAIL
        + f"""
        C> DATA
        >C 354 Start mail input; end with <CRLF>.<CRLF>
        C> A: b
        C>
        C> more

        !! {how}
        -> {effect}

        C> and more
        C> .
        >C 550 5.7.1 No
    """
        + GONE,
        rules=Looks(Depth.HEADER, answers("550 5.7.1 No")),
    )


def test_the_driver_may_not_fail_to_connect_twice() -> None:
    """A driver's mistake is an error of ours, not a reply to a client."""
    session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    with pytest.raises(AssertionError):
        session.connect_failed("x")


def test_what_has_no_reply_when_the_session_ends_is_on_record() -> None:
    """It was sent: the record says so, and that nothing was told of it."""
    records = play(
        HELLO
        + """
        C> NOOP
        C> VRFY a
        C> EXPN b
        >S NOOP
        >S VRFY a
        >S EXPN b

        S> 421 bye
        >C 421 bye
        -> close server
        -> close client
    """,
        rules=OPEN,
    )
    last = [(r["verb"], r.get("got"), r.get("told", "-"), r.get("anomalies", [])) for r in exchanges(records)][-3:]
    assert last == [
        ("NOOP", "421 bye", "-", []),
        ("VRFY", None, None, ["unanswered"]),
        ("EXPN", None, None, ["unanswered"]),
    ]
