"""STARTTLS (architecture §8, attacks.md B01–B18, B37–B46; S5, I5): server first, and no octet of either side crosses
the boundary. What other postures than "as the server" do is in test_postures.py."""

from collections.abc import Callable
from functools import partial

import pytest

from smtpproxy.session.records import AuditRecord
from smtpproxy.session.securing import cut_short, shown
from smtpproxy.session.session import Session
from smtpproxy.session.state import TLSInfo
from smtpproxy.smtp.errors import Side
from tests.play import play
from tests.session.judges import (
    BROKEN_PLAIN,
    ENVELOPE,
    GREETING,
    OPEN,
    again,
    allow,
    anomalies,
    deny,
    exchanges,
    hello,
)

OFFER = {"STARTTLS": hello("STARTTLS"), "X-ANONYMOUSTLS": hello("X-ANONYMOUSTLS")}
INFO = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
GO = """
    C> {verb}
    >S {verb}
    S> 220 go
    -> start-tls server
"""
DONE = """
    !! tls-done server
    -> prepare-tls client

    !! tls-ready
    >C 220 go
    -> start-tls client

    !! tls-done client
"""
AGAIN = """
    C> EHLO me.example
    >S EHLO me.example
    S> 250 mx.example
    >C 250 mx.example
"""
CUT = """
    -> abort server
    -> close client
"""
both = pytest.mark.parametrize("verb", list(OFFER))
NOOP = "\n    C> NOOP\n    >S NOOP\n    S> 250 n\n    >C 250 n\n"


# ------------------------------------------------------------------------------------------------------- as it should


@both
def test_the_order_of_things(verb: str) -> None:
    """§8: the server's 220 is told only when its link is encrypted; then the client's handshake; then a new hello."""
    records = play(OFFER[verb] + GO.format(verb=verb) + DONE + AGAIN + NOOP, rules=OPEN)
    event = next(r for r in records if r["kind"] == "link-tls")
    assert event["client"]["version"] == event["server"]["version"] == "TLSv1.3"
    assert [r["verb"] for r in exchanges(records)] == ["GREETING", "EHLO", verb, "EHLO", "NOOP"]


@both
def test_what_was_said_before_is_forgotten(verb: str) -> None:
    """RFC 3207 §4.2: hello, list and transaction: a parameter offered in clear is not offered any more."""
    play(
        hello(verb, "SIZE 100", "ENHANCEDSTATUSCODES")
        + ENVELOPE
        + GO.format(verb=verb)
        + DONE
        + """
        C> MAIL FROM:<a@x.example> SIZE=10
        >C 555 Parameter not offered here
    """
        + AGAIN
        + """
        C> MAIL FROM:<a@x.example> SIZE=10
        >C 555 Parameter not offered here
    """,
        rules=OPEN,
    )


def test_a_transaction_from_before_is_over() -> None:
    """B22: BDAT inside TLS for a MAIL before it: 503 here."""
    play(
        hello("STARTTLS", "CHUNKING")
        + ENVELOPE
        + GO.format(verb="STARTTLS")
        + DONE
        + hello("CHUNKING").removeprefix(GREETING)
        + "\n    C> BDAT 4 LAST\n    C> NOOP\\\n    >C 503 Need MAIL and RCPT first\n"
        + NOOP,
        rules=OPEN,
    )


def test_the_abandoned_transaction_is_on_record() -> None:
    """B22: begun in clear, and come to no end."""
    records = play(hello("STARTTLS") + ENVELOPE + GO.format(verb="STARTTLS") + DONE + AGAIN, rules=OPEN)
    assert [r["kind"] for r in records if r["kind"].startswith("tx-")] == ["tx-begin", "tx-refused"]


def test_pipelined_before_it_is_answered_before_it() -> None:
    """I1: what was asked in clear is told in clear, and first."""
    play(
        hello("STARTTLS")
        + """
        C> NOOP
        C> EXPN x
        C> STARTTLS
        >S NOOP
        >S EXPN x
        >S STARTTLS

        S> 250 n
        >C 250 n

        S> 502 x
        >C 502 x

        S> 220 go
        -> start-tls server
    """
        + DONE,
        rules=OPEN,
    )


@both
@pytest.mark.parametrize("reply", ["454 4.7.0 later", "502 no", "501 syntax", "503 order", "421 bye", "554 x"])
def test_refused_by_the_server(verb: str, reply: str) -> None:
    """B24–B30: its reply is told; the session goes on in clear if the client wants to."""
    closes = "    -> close server\n    -> close client\n" if reply.startswith("421") else NOOP
    play(f"{OFFER[verb]}\n    C> {verb}\n    >S {verb}\n    S> {reply}\n    >C {reply}\n{closes}", rules=OPEN)


@both
@pytest.mark.parametrize("code", [200, 221, 235, 250, 251, 299, 300, 334, 353, 354, 355])
def test_accepted_with_a_wrong_code(verb: str, code: int) -> None:
    """B31–B36 (striptls StripWithInvalidResponseCode, O_4): neither TLS nor clear text: 421 and close."""
    records = play(f"{OFFER[verb]}\n    C> {verb}\n    >S {verb}\n    S> {code} ok\n{BROKEN_PLAIN}", rules=OPEN)
    assert "reply-impossible" in anomalies(records)


@both
def test_the_server_goes_instead(verb: str) -> None:
    """B33–B36: 421; never clear text."""
    asked = f"{OFFER[verb]}\n    C> {verb}\n    >S {verb}\n"
    play(f"{asked}\n    !! end server\n    >C 421 Connection to the mail server lost, try again later\n"
        f"    -> close server\n"
         "    -> close client\n", rules=OPEN)  # fmt: skip
    play(
        f"{asked}\n    !! timeout server\n    >C 421 The mail server does not answer, try again later\n{CUT}",
        rules=OPEN,
    )


# ----------------------------------------------------------------------------------------------------- B01–B18: client

TAILS = [
    "E",
    "EHLO x\\r\\n",
    "MAIL FROM:<a@x.example>\\r\\n",
    "\\0",
    "\\n",
    "\\x16\\x03\\x01",
    "QUIT\\r\\n",
    "STARTTLS\\r\\n",
    "AUTH PLAIN x",
]


@both
@pytest.mark.parametrize("tail", TAILS)
def test_octets_of_the_client_behind_starttls(verb: str, tail: str) -> None:
    """B01–B15, I5 (CVE-2011-0411): read in clear, so they never act: closed, nothing of them forwarded."""
    records = play(
        f"""{OFFER[verb]}
        C> {verb}
        C> {tail}\\
        >S {verb}

        S> 220 go
        -> start-tls server

        !! tls-done server
        -> abort server
        -> close client
    """,
        rules=OPEN,
    )
    assert "octets-behind-starttls" in anomalies(records)
    assert "MAIL" not in [r.get("verb") for r in records]


@pytest.mark.parametrize("tail", [b"E", b"EHLO x\r\n", b"\x16\x03\x01"])
def test_octets_of_the_client_in_a_second_segment(tail: bytes) -> None:
    """B16–B18: before 220 was told; between the two handshakes the client is not read at all."""
    for when in range(4):
        session = ready()
        if when == 0:
            session.client_sent(tail)
        session.server_sent(b"220 go\r\n")
        assert not session.wants(Side.CLIENT)
        if when == 1:
            session.client_sent(tail)
        session.to_server.clear()
        session.tls_done(Side.SERVER, INFO)
        assert not session.wants(Side.CLIENT)
        assert not session.to_client
        if when == 2:
            session.client_sent(tail)
        session.tls_ready()
        if when < 3:
            assert session.closed
            assert session.to_client == session.to_server == b""
            continue
        assert not session.wants(Side.CLIENT)
        assert session.to_client == b"220 go\r\n"


def ready(record: Callable[[object], None] = lambda record: None, verb: bytes = b"STARTTLS") -> Session:
    """STARTTLS was asked."""
    session = Session(judge=OPEN, record=record, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"EHLO me\r\n")
    session.server_sent(b"250-mx\r\n250 " + verb + b"\r\n")
    session.client_sent(verb + b"\r\n")
    session.to_client.clear()
    return session


def test_octets_given_between_the_handshakes_never_act() -> None:
    """I5: a driver that read too much gives octets between the 220 and the client's handshake: they are no commands."""
    session = ready()
    session.server_sent(b"220 go\r\n")
    session.tls_done(Side.SERVER, INFO)
    session.tls_ready()
    session.to_server.clear()
    session.client_sent(b"MAIL FROM:<evil@x.example>\r\n")
    session.tls_done(Side.CLIENT, INFO)
    assert b"evil" not in session.to_server
    assert session.closed


def test_no_octet_between_effect_and_done() -> None:
    """§8: nothing is appended to a side while its handshake is under way; nobody is read either."""
    session = ready()
    session.to_server.clear()
    steps: list[Callable[[], None]] = [
        partial(session.server_sent, b"220 go\r\n"),
        partial(session.tls_done, Side.SERVER, INFO),
        session.tls_ready,
    ]
    for step in steps:
        session.to_client.clear()
        step()
        session.keep_alive()
        session.drain()
        session.drained()
        session.early_talk()
        assert bytes(session.to_client) in (b"", b"220 go\r\n")
        assert not session.to_server
        assert not session.wants(Side.CLIENT)
        assert not session.wants(Side.SERVER)


def test_a_handshake_has_its_own_time() -> None:
    """Whoever is waited for, a minute for a whole handshake; beyond it 454, in clear to a client that is in clear."""
    for patient in (Side.CLIENT, Side.SERVER):
        session = ready()
        session.server_sent(b"220 go\r\n")
        progress = session.progress
        assert session.patience() == (Side.SERVER, 60.0)
        session.tls_done(Side.SERVER, INFO)
        assert session.patience() == (Side.CLIENT, 60.0)
        session.tls_ready()
        assert session.patience() == (Side.CLIENT, 60.0)
        assert session.progress >= progress + 2
        late = ready()
        late.server_sent(b"220 go\r\n")
        late.timed_out(patient)
        assert late.to_client == b"454 TLS not available\r\n"
        assert not late.closed
        assert late.server_gone


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_session_that_is_too_long_ends_within_a_handshake_too(step: int) -> None:
    """Its own word is on record, not one about the handshake; told while the client is in clear."""
    records: list[object] = []
    session = ready(records.append)
    session.server_sent(b"220 go\r\n")
    if step > 0:
        session.tls_done(Side.SERVER, INFO)
    if step > 1:
        session.tls_ready()
        session.to_client.clear()
    session.timed_out(Side.CLIENT, "session-too-long")
    assert session.closed
    assert bytes(session.to_client) == (b"421 Session open for too long, closing\r\n" if step < 2 else b"")
    assert "session-too-long" in str(records)
    assert "tls-failed" not in str(records)


@pytest.mark.parametrize("line", ["STARTTLS now", "STARTTLS STARTTLS", "X-ANONYMOUSTLS 1"])
def test_with_an_argument(line: str) -> None:
    """B19: 501 (RFC 3207 §4), and no handshake."""
    play(f"{OFFER['STARTTLS']}\n    C> {line}\n    >C 501 Syntax error in parameters or arguments\n", rules=OPEN)


@pytest.mark.parametrize("before", [GREETING, hello("SIZE"), hello(verb="HELO")])
def test_where_it_was_not_offered(before: str) -> None:
    """B21: before EHLO, after HELO, not in the list."""
    for verb in OFFER:
        records = play(f"{before}\n    C> {verb}\n    >C 502 Command not offered here\n", rules=OPEN)
        assert "verb-not-offered" in anomalies(records)


def test_twice() -> None:
    """B20, B48: inside TLS it is offered again by nobody who keeps to RFC 3207 §4.2; without an offer it is refused."""
    play(OFFER["STARTTLS"] + GO.format(verb="STARTTLS") + DONE + AGAIN + "\n    C> STARTTLS\n"
        "    >C 502 Command not offered here\n",
         rules=OPEN)  # fmt: skip


def test_offered_inside_tls() -> None:
    """B48: STARTTLS in the list inside TLS is not told, and not begun twice."""
    script = OFFER["STARTTLS"] + GO.format(verb="STARTTLS") + DONE
    script += hello("STARTTLS", told=()).removeprefix(GREETING)
    play(script, rules=allow("STARTTLS"))


# ---------------------------------------------------------------------------------------------------- B37–B46: server


@both
@pytest.mark.parametrize(
    "tail", ["2", "250 mx\\r\\n", "250-mx\\r\\n250 AUTH PLAIN\\r\\n", "\\x16\\x03\\x03", "x", "\\r\\n", "220 go\\r\\n"]
)
def test_octets_of_the_server_behind_220(verb: str, tail: str) -> None:
    """B37–B46, I5 (CVE-2021-38371): in the same segment: nothing of them reaches the client, ever."""
    session = ready(verb=verb.encode())
    octets = tail.encode().decode("unicode_escape").encode("latin-1")
    session.server_sent(b"220 go\r\n" + octets)
    assert session.closed
    assert bytes(session.to_client) == b"421 The mail server broke the protocol, try again later\r\n"


@pytest.mark.parametrize("tail", [b"2", b"250 mx\r\n", b"\x16\x03\x03", b"x"])
@pytest.mark.parametrize("cut", [1, 2, 3, 8])
def test_octets_of_the_server_behind_220_in_any_cut(tail: bytes, cut: int) -> None:
    """B37–B46: also in a read of their own, before the handshake: they are never taken for replies."""
    octets = b"220 go\r\n" + tail
    records: list[object] = []
    session = ready(records.append)
    for at in range(0, len(octets), cut):
        session.server_sent(octets[at : at + cut])
    if not session.closed:
        session.tls_done(Side.SERVER, INFO)
    assert session.closed
    assert b"220" not in session.to_client
    assert "octets-behind-220" in str(records)


def test_a_220_of_several_lines() -> None:
    """RFC 5321 §4.2.1: still one reply, with nothing behind it."""
    lines = "\n    C> STARTTLS\n    >S STARTTLS\n    S> 220-go\n    S> 220 on\n    -> start-tls server\n"
    play(OFFER["STARTTLS"] + lines + DONE.replace(">C 220 go", ">C 220-go\n    >C 220 on"), rules=OPEN)


# -------------------------------------------------------------------------------------------------------- failures


@both
def test_the_handshake_with_the_server_fails(verb: str) -> None:
    """§8: 454 to the client, the server's link cut, never clear text instead: the rest of the session is an orphan."""
    failed = (
        OFFER[verb] + GO.format(verb=verb) + "\n    !! tls-failed\n    >C 454 TLS not available\n    -> abort server\n"
    )
    records = play(failed + "\n    C> MAIL FROM:<a@x.example>\n"
                   "    >C 421 The session to the mail server is over, try again later\n"
                   "    -> close client\n", rules=OPEN)  # fmt: skip
    assert "tls-failed" in anomalies(records)
    play(failed + "\n    C> QUIT\n    >C 221 Bye\n    -> close client\n", rules=OPEN)
    play(failed + "\n    !! end client\n    -> close client\n", rules=OPEN)


@both
def test_the_handshake_with_the_client_fails(verb: str) -> None:
    """220 was told already: nothing can be told any more; both links close."""
    script = OFFER[verb] + GO.format(verb=verb) + DONE.replace("!! tls-done client", "!! tls-failed") + CUT.strip("\n")
    records = play(script, rules=OPEN)
    assert "tls-failed" in anomalies(records)


def test_results_nobody_waits_for_are_no_results() -> None:
    """A driver that says tls-done out of turn changes nothing."""
    play(GREETING + "\n    !! tls-done server\n\n    !! tls-failed\n\n    !! tls-done client\n" + NOOP, rules=OPEN)


@pytest.mark.parametrize("how", ["end client", "lost", "end server", "timeout client", "timeout server"])
@pytest.mark.parametrize("step", ["server", "certificate", "client"])
def test_a_link_lost_within_a_handshake(how: str, step: str) -> None:
    """No reply can be read within the client's handshake; and 220 is never told in place of one."""
    session = ready()
    session.server_sent(b"220 go\r\n")
    if step != "server":
        session.tls_done(Side.SERVER, INFO)
    if step == "client":
        session.tls_ready()
    session.to_client.clear()
    match how:
        case "end client":
            session.client_sent(b"")
        case "lost":
            session.client_lost()
        case "end server":
            session.server_sent(b"")
        case "timeout client":
            session.timed_out(Side.CLIENT)
        case _:
            session.timed_out(Side.SERVER)
    assert b"220" not in session.to_client
    if step == "client":
        assert session.to_client == b""
        assert session.closed
    elif how == "end server":
        assert session.to_client == b"421 Connection to the mail server lost, try again later\r\n"
    elif how.startswith("timeout"):
        assert session.to_client == b"454 TLS not available\r\n"


@pytest.mark.parametrize("step", ["server", "certificate"])
def test_a_client_that_ended_its_side_is_not_waited_for(step: str) -> None:
    """STARTTLS, then nothing more: 454 answers it, and nobody waits for another command."""
    session = ready()
    session.server_sent(b"220 go\r\n")
    if step == "certificate":
        session.tls_done(Side.SERVER, INFO)
    session.client_sent(b"")
    assert not session.closed
    session.tls_failed("x")
    assert session.to_client == b"454 TLS not available\r\n"
    assert session.closed


# ----------------------------------------------------------------------------------------------------- shipped rules


@both
def test_the_shipped_rules_offer_it_where_the_server_does(verb: str) -> None:
    """Once: inside TLS it is taken out."""
    records = play(OFFER[verb] + GO.format(verb=verb) + DONE + again(verb, "DSN", told=("DSN",)) + NOOP)
    assert all(not r.get("rule") for r in exchanges(records) if r["verb"] == verb)
    play(hello("DSN") + f"\n    C> {verb}\n    >C 502 Command not offered here\n" + NOOP)


@both
def test_a_rule_takes_it_out_and_answers_454(verb: str) -> None:
    """A rule that denies it: stripped, in every EHLO, and 454 to whoever tries."""
    records = play(
        hello(verb, "SIZE 100", told=("SIZE 100",))
        + f"""
        C> {verb}
        >C 454 TLS not available
        C> {verb.lower()}
        >C 454 TLS not available
    """
        + NOOP
        + hello(verb, "SIZE 100", told=("SIZE 100",)).removeprefix(GREETING),
        rules=deny(verb),
    )
    assert all(r["sent"] is None for r in exchanges(records) if r["verb"] == verb)


def test_octets_behind_a_refused_starttls_are_commands() -> None:
    """B01 where STARTTLS is refused here: no boundary, no injection: each line is answered in clear."""
    play(
        hello()
        + "\n    C> STARTTLS\n    C> NOOP\n    >C 454 TLS not available\n    >S NOOP\n\n    S> 250 n\n    >C 250 n\n",
        rules=deny("STARTTLS"),
    )


# ------------------------------------------------------------------------------------------------- what is on record


def test_what_is_on_record_of_each_leg() -> None:
    """What there is to say; of a certificate always whether it verified, so that nobody takes silence for a yes."""
    certificate = (("subject", "CN=mx.example"), ("names", ("mx.example",)), ("trouble", ""))
    for info, facts in (
        (INFO, {"resumed": False}),
        (INFO._replace(resumed=True, ja4="t13d"), {"resumed": True, "ja4": "t13d"}),
        (INFO._replace(certificate=certificate, result="certificate-expired", why="since May"),
         {"resumed": False, "verified": False, "result": "certificate-expired", "why": "since May",
          "certificate": {"subject": "CN=mx.example", "names": ("mx.example",)}}),
        (INFO._replace(certificate=certificate, verified=True),
         {"resumed": False, "verified": True, "certificate": {"subject": "CN=mx.example", "names": ("mx.example",)}}),
    ):  # fmt: skip
        assert shown(info) == {"version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384", **facts}
    assert shown(None) is None


# ------------------------------------------------------------------------------------------- a link without its end

BEGUN = [("MAIL FROM:<a@x.example>", "250"), ("RCPT TO:<b@y.example>", "250"), ("DATA", "354")]


@pytest.mark.parametrize(
    ("said", "cut"),
    [
        ([], False),
        (BEGUN[:1], True),
        ([("NOOP", "")], True),  # a reply is owed
        ([*BEGUN, ("half a mail", "")], True),
        ([*BEGUN, (".", "")], True),
        ([*BEGUN, (".", "250")], False),
        ([("MAIL FROM:<a@x.example>", "550")], False),
        ([("QUIT", "221")], False),
    ],
)
def test_a_link_that_ends_without_close_notify(said: list[tuple[str, str]], cut: bool) -> None:
    """RFC 8446 §6.1: a habit of many between transactions; within one, somebody may have cut it (B52–B55)."""
    for side in Side:
        records: list[object] = []
        session = Session(judge=OPEN, record=records.append, clock=lambda: 0.0)
        session.server_sent(b"220 mx\r\n")
        for line, code in said:
            session.client_sent(line.encode() + b"\r\n")
            if code:
                session.server_sent(code.encode() + b" x\r\n")
        assert cut_short(session, side) is cut
        assert ("tls-truncated" in str(records)) is cut


def test_octets_that_wait_on_the_link_behind_starttls() -> None:
    """B18: the driver sees them, unread, before the 220 is told: they had to wait for it."""
    records: list[object] = []
    session = ready(records.append)
    session.server_sent(b"220 go\r\n")
    session.tls_done(Side.SERVER, INFO)
    session.tls_ready(early=True)
    assert session.closed
    assert session.to_client == b""
    assert "octets-behind-starttls" in str(records)


@pytest.mark.parametrize("said", ["220 mx.example", "250-mx.example\n    S> 250 AUTH PLAIN", "235 in", "354 go"])
def test_a_server_that_speaks_unasked_inside_tls(said: str) -> None:
    """B49: there is no greeting inside TLS (RFC 3207 §4.2): nothing of it is told."""
    script = OFFER["STARTTLS"] + GO.format(verb="STARTTLS") + DONE
    records = play(f"{script}\n    S> {said}\n{BROKEN_PLAIN}", rules=OPEN)
    assert "reply-unsolicited" in anomalies(records)


def test_a_reply_of_ours_in_place_of_a_220_is_an_answer() -> None:
    """Whoever looks for what the proxy did finds it by `action`; what the server said is there too."""
    script = OFFER["STARTTLS"] + GO.format(verb="STARTTLS")
    records = play(
        script + "\n    !! tls-failed\n    >C 454 TLS not available\n    -> abort server\n\n    .. open\n", rules=OPEN
    )
    (starttls,) = [r for r in exchanges(records) if r["verb"] == "STARTTLS"]
    assert (starttls["action"], starttls["got"], starttls["told"]) == ("answer", "220 go", "454 TLS not available")


def test_what_is_known_of_a_peer_whose_handshake_failed_is_on_record() -> None:
    """Its JA4, what it was shown; a result of RFC 8460 is the server's alone."""
    records: list[AuditRecord] = []
    session = ready(records.append)  # type: ignore[arg-type]
    session.server_sent(b"220 go\r\n")
    session.tls_done(Side.SERVER, INFO)
    session.tls_ready()
    session.tls_failed("unknown ca", "validation-failure", TLSInfo("", "", "mx.example", shown="minted", ja4="t13d"))
    (note,) = [r.detail for r in records if r.detail and r.detail.get("anomaly") == "tls-failed"]
    facts = {"sni": "mx.example", "shown": "minted", "ja4": "t13d"}
    assert note == {"anomaly": "tls-failed", "side": "client", "why": "unknown ca", **facts}
