"""Every number of the table does what it says (S7); patience names who is waited for, and for how long."""

from dataclasses import fields

import pytest

from smtpproxy.session.limits import LIMITS, PATIENCE, Limits, Patience
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import Depth
from smtpproxy.smtp.errors import Side
from tests.play import DATA, HELLO, MAIL, play
from tests.session.judges import OPEN, Looks, anomalies


def session_of(*said: tuple[str, bytes], judge: object = OPEN) -> Session:
    """A session that far."""
    session = Session(judge=judge, record=lambda record: None, clock=lambda: 0.0)  # type: ignore[arg-type]
    for who, octets in said:
        (session.client_sent if who == "C" else session.server_sent)(octets)
    return session


def test_nothing_is_unlimited() -> None:
    """Every limit is a positive number, and no smaller than its RFC asks for."""
    for limit in fields(Limits):
        assert getattr(LIMITS, limit.name) > 0
    for patience in fields(Patience):
        assert getattr(PATIENCE, patience.name) > 0
    assert LIMITS.command_line >= 512  # RFC 5321 §4.5.3.1.4
    assert LIMITS.reply_line >= 512  # §4.5.3.1.5
    assert LIMITS.recipients >= 100  # §4.5.3.1.8
    assert LIMITS.auth_line >= 12_288  # RFC 4954 §4


def test_patience_is_that_of_the_rfc() -> None:
    """RFC 5321 §4.5.3.2."""
    assert (PATIENCE.greeting, PATIENCE.command, PATIENCE.data, PATIENCE.content, PATIENCE.end, PATIENCE.client) == (
        300, 300, 120, 180, 600, 300,
    )  # fmt: skip


GREETED = [("S", b"220 mx\r\n")]
HELLOED = [*GREETED, ("C", b"EHLO me\r\n"), ("S", b"250-mx\r\n250 CHUNKING\r\n")]
MAILED = [*HELLOED, ("C", b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\n"), ("S", b"250 m\r\n250 r\r\n")]
IN_CONTENT = [*MAILED, ("C", b"DATA\r\n"), ("S", b"354 go\r\n")]


@pytest.mark.parametrize(
    ("said", "side", "seconds"),
    [
        ([], Side.SERVER, PATIENCE.greeting),
        (GREETED, Side.CLIENT, PATIENCE.client),
        ([*GREETED, ("C", b"EHLO me\r\n")], Side.SERVER, PATIENCE.command),
        (HELLOED, Side.CLIENT, PATIENCE.client),
        ([*HELLOED, ("C", b"MAIL FROM:<a@x>\r\n")], Side.SERVER, PATIENCE.command),
        ([*MAILED, ("C", b"DATA\r\n")], Side.SERVER, PATIENCE.data),
        (IN_CONTENT, Side.CLIENT, PATIENCE.content),
        ([*IN_CONTENT, ("C", b"half a mail")], Side.CLIENT, PATIENCE.content),
        ([*IN_CONTENT, ("C", b".\r\n")], Side.SERVER, PATIENCE.end),
        ([*IN_CONTENT, ("C", b".\r\n"), ("S", b"250 q\r\n")], Side.CLIENT, PATIENCE.client),
        ([*MAILED, ("C", b"BDAT 9\r\nabc")], Side.CLIENT, PATIENCE.content),
        ([*MAILED, ("C", b"BDAT 3\r\nabc")], Side.SERVER, PATIENCE.command),
        ([*MAILED, ("C", b"BDAT 3 LAST\r\nabc")], Side.SERVER, PATIENCE.end),
    ],
)
def test_who_is_waited_for(said: list[tuple[str, bytes]], side: Side, seconds: float) -> None:
    """And how long."""
    assert session_of(*said).patience() == (side, seconds)


def test_progress_grows_with_the_conversation() -> None:
    """What a driver measures silence by."""
    session = session_of()
    seen = [session.progress]
    for octets in (b"NOOP\r\n", b"EXPN x\r\n", b"bad\0\r\n"):
        session = session_of(*GREETED)
        before = session.progress
        session.client_sent(octets)
        session.server_sent(b"250 ok\r\n")
        assert session.progress > before
    assert seen == [0]


def test_receiving_tells_content_from_commands() -> None:
    """Worth larger reads."""
    assert not session_of(*MAILED).receiving
    assert session_of(*IN_CONTENT).receiving
    assert session_of(*MAILED, ("C", b"BDAT 9\r\nabc")).receiving
    assert not session_of(*IN_CONTENT, ("C", b".\r\n")).receiving


def test_the_header_section_is_bounded() -> None:
    """F16–F20: held back up to the limit, then refused; the rest is read to its end; nothing reached the server."""
    rules = Looks(Depth.HEADER)
    records = play(
        MAIL
        + """
        C> DATA
        >C 354 Start mail input; end with <CRLF>.<CRLF>
        C> A: *2000 x
        C> B: y
        C>
        C> body
        C> .
        >S RSET
        S> 250 r
        >C 552 5.3.4 Header section too big
    """.replace("A: *2000 x", "A: " + "x" * 2000),
        rules=rules,
        limits=Limits(header=1000),
    )
    assert "header-too-big" in anomalies(records)
    assert rules.seen == []


def test_swallowed_content_is_bounded() -> None:
    """I7: what is refused may not be sent for ever."""
    refused = Looks(Depth.STREAM, most=100)
    records = play(
        DATA
        + """
        C> *5000 x
        -> abort server
        >C 421 4.7.0 Too much refused content, closing
        -> close client
    """,
        rules=refused,
        limits=Limits(swallow=1000),
    )
    assert "swallow-limit" in anomalies(records)


def test_limits_are_the_sessions_own() -> None:
    """Each session may have others."""
    play(
        HELLO + "\n    C> NOOP " + "x" * 100 + "\n    >C 500 5.5.2 Line too long\n",
        limits=Limits(command_line=100, auth_line=100),
    )


@pytest.mark.parametrize("depth", [Depth.HEADER, Depth.WHOLE])
@pytest.mark.parametrize("octets", [20, 300, 20_000])
def test_size_is_counted_alike_in_any_cut(depth: Depth, octets: int) -> None:
    """I6: over the limit by what comes behind the header section: one 552 at the end, and the same records."""
    session = "    >S RSET\n    S> 250 r\n    >C 552 5.3.4 Message too big\n"
    script = f"""{MAIL}
        C> DATA
        >C 354 Start mail input; end with <CRLF>.<CRLF>
        C> A: b
        C>
        C> *{octets} x
        C> .
"""
    if depth is Depth.WHOLE:
        records = play(script + session, rules=Looks(depth, most=20))
        assert "over-size" in anomalies(records)
        return
    # the header section fits: our own DATA goes out before the rest is counted, and half a mail can only be cut
    content = b"A: b\r\n\r\n" + b"x" * octets + b"\r\n.\r\n"
    for first in (9, 12, len(content) - 5, len(content)):
        talk = Session(judge=Looks(depth, most=20), record=lambda record: None, clock=lambda: 0.0)
        for who, said in MAILED:
            (talk.client_sent if who == "C" else talk.server_sent)(said)
        talk.client_sent(b"DATA\r\n" + content[:first])
        talk.client_sent(content[first:])
        if talk.to_server.endswith(b"DATA\r\n"):
            talk.server_sent(b"354 go\r\n")
        if talk.to_server.endswith(b"RSET\r\n"):
            talk.server_sent(b"250 r\r\n")
        assert b"xxxxxxxxxxxxxxxxxxxx" not in talk.to_server
        assert b"552" in talk.to_client
        assert b"\r\n.\r\n" not in talk.to_server
