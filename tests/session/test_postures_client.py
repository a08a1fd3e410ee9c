"""Postures, when the client asks: TLS on its link alone, TLS before all else, and TLS between the two peers."""

from collections.abc import Callable
from functools import partial

import pytest

from smtpproxy.session.chunks import Chunks
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from smtpproxy.session.records import AuditRecord
from smtpproxy.session.session import Session
from smtpproxy.session.state import TLSInfo
from smtpproxy.session.verdicts import Action, Depth, PassAll, Verdict
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.replies import own
from tests.play import play
from tests.session.judges import (
    BROKEN_PLAIN,
    ENVELOPE,
    GREETING,
    NOOP,
    OPEN,
    PASSED_BY_RULE,
    QUIT,
    Looks,
    Says,
    again,
    allow,
    anomalies,
    effects,
    exchanges,
    hello,
)

INFO = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
AUTH = "AUTH PLAIN AGEAYg=="


def posture(client: str, server: str) -> Posture:
    return Posture(ClientTLS(client), ServerTLS(server), b"proxy.example")


ALONE = posture("offer", "never")
FIRST = posture("require", "mirror")
BLIND = posture("passthrough", "mirror")

OFFERED = hello("CHUNKING", told=("CHUNKING", "STARTTLS"))
IMPLICIT = "\n    !! connected\n    -> start-tls server\n\n    !! tls-done server\n"
ASK = """
    C> STARTTLS
    -> prepare-tls client
"""
GO = """
    !! tls-ready
    >C 220 Ready to start TLS
    -> start-tls client

    !! tls-done client
"""
RESET = """
    >S RSET

    S> 250 forgotten
"""
OVER = "    -> close server\n    -> close client\n"
CUT = "    -> abort server\n    -> close client\n"


# --------------------------------------------------------------------------------------- the client's link alone: order

one_sided = pytest.mark.parametrize(
    ("wanted", "before"),
    [
        (posture("offer", "never"), OFFERED),
        (posture("require", "never"), OFFERED),
        (posture("offer", "mirror"), OFFERED),
        (posture("offer", "upgrade"), "\n    S> 220 mx.example\n    >S EHLO proxy.example\n\n    S> 250 mx.example\n"
            "    >C 220 mx.example\n" + again("CHUNKING", told=("CHUNKING", "STARTTLS"))),
        (posture("mirror", "implicit"), IMPLICIT + OFFERED),
        (posture("require", "implicit"), IMPLICIT + OFFERED),
    ],
    ids=["offer-never", "require-never", "offer-mirror", "offer-upgrade", "mirror-implicit", "require-implicit"],
)  # fmt: skip


@one_sided
def test_starttls_that_is_ours_to_answer(wanted: Posture, before: str) -> None:
    """Nothing of it reaches the server; a hello comes first, and it is not offered again."""
    records = play(before + ASK + GO + again("DSN") + NOOP, posture=wanted)
    (starttls,) = [r for r in exchanges(records) if r["verb"] == "STARTTLS"]
    assert (starttls["sent"], starttls["action"], starttls["told"]) == (None, "answer", "220 Ready to start TLS")
    assert [r["client"]["version"] for r in records if r["kind"] == "link-tls" and r.get("client")] == ["TLSv1.3"]


def test_the_220_has_an_enhanced_code_where_those_were_offered() -> None:
    """RFC 2034 §4."""
    before = hello("ENHANCEDSTATUSCODES", told=("ENHANCEDSTATUSCODES", "STARTTLS"))
    play(before + ASK + GO.replace("220 ", "220 2.0.0 "), posture=ALONE)


@one_sided
def test_a_hello_comes_first_after_it(wanted: Posture, before: str) -> None:
    """The server has heard one in clear and would go on from there: 503 to all but hello, NOOP, RSET, QUIT."""
    script = before + ASK + GO
    refused = "\n    C> {}\n    >C 503 EHLO comes first\n"
    for line in ("MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>", "DATA", "VRFY a", "XYZZY", "STARTTLS", AUTH):
        play(script + refused.format(line) + NOOP + again("DSN") + ENVELOPE, posture=wanted)
    play(script + "\n    C> BDAT 6 LAST\n    C> QUIT\\r\\n\\\n    >C 503 EHLO comes first\n" + NOOP,
        posture=wanted)  # fmt: skip
    play(
        script + "\n    C> RSET\n    >S RSET\n    S> 250 r\n    >C 250 r\n" + refused.format("MAIL FROM:<>"),
        posture=wanted,
    )
    play(script + QUIT, posture=wanted)
    play(script + again(verb="HELO") + ENVELOPE, posture=wanted)


def test_a_hello_that_is_refused_opens_nothing() -> None:
    """The server's word counts."""
    play(OFFERED + ASK + GO + "\n    C> EHLO x\n    >S EHLO x\n    S> 501 no\n    >C 501 no\n\n    C> MAIL FROM:<>\n"
        "    >C 503 EHLO comes first\n" + again() + ENVELOPE, posture=ALONE)  # fmt: skip


@one_sided
def test_a_transaction_from_before_is_over(wanted: Posture, before: str) -> None:
    """B22: the server is told RSET, its reply is swallowed, and the mail begun in clear comes to nothing."""
    if wanted.client is ClientTLS.REQUIRE:
        return  # nothing was begun
    records = play(before + ENVELOPE + ASK + GO + RESET + again("CHUNKING") + "\n    C> BDAT 4 LAST\n    C> abcd\\\n"
        "    >C 503 Need MAIL and RCPT first\n" + ENVELOPE + QUIT, posture=wanted)  # fmt: skip
    kinds = [r["kind"] for r in records if r["kind"].startswith("tx-")]
    assert kinds == ["tx-begin", "tx-refused", "tx-begin", "tx-refused"]
    reset = next(r for r in exchanges(records) if r["verb"] == "RSET")
    assert (reset["asked"], reset["told"]) == (None, None)


def test_a_hello_behind_our_reset() -> None:
    """Replies keep their order: the server's to RSET is not the client's to EHLO."""
    play(OFFERED + ENVELOPE + ASK + GO + """
        >S RSET

        C> EHLO me.example
        >S EHLO me.example

        S> 250 forgotten
        S> 250-mx.example
        S> 250 DSN
        >C 250-mx.example
        >C 250 DSN
    """ + NOOP, posture=ALONE)  # fmt: skip


@pytest.mark.parametrize("reply", ["500 what", "502 no", "421 bye"])
def test_a_server_that_does_not_reset(reply: str) -> None:
    """Nothing of the mail from before can go on: a hello comes first, and ends it too (RFC 5321 §4.1.4)."""
    play(OFFERED + ENVELOPE + ASK + GO + f"\n    >S RSET\n\n    S> {reply}\n\n    C> RCPT TO:<c@y.example>\n"
        "    >C 503 EHLO comes first\n" + again("CHUNKING") + "\n    C> BDAT 4 LAST\n    C> abcd\\\n"
        "    >C 503 Need MAIL and RCPT first\n" + ENVELOPE, posture=ALONE)  # fmt: skip


def test_a_mail_that_was_refused_needs_no_reset() -> None:
    """Nothing is under way."""
    refused = "\n    C> MAIL FROM:<>\n    >S MAIL FROM:<>\n    S> 550 no\n    >C 550 no\n"
    play(OFFERED + refused + ASK + GO + again("DSN"), posture=ALONE)


@pytest.mark.parametrize(("wanted", "told"), [(ALONE, ()), (posture("mirror", "mirror"), ("STARTTLS",))])
def test_chunks_held_back_in_clear_are_dropped(wanted: Posture, told: tuple[str, ...]) -> None:
    """I5: octets that came in clear are part of no mail inside TLS, however the server answers."""
    session = Session(judge=Looks(Depth.WHOLE), record=lambda r: None, clock=lambda: 0.0, posture=wanted)
    for client, server in (
        (b"", b"220 mx\r\n"), (b"EHLO me\r\n", b"250-mx\r\n250-CHUNKING\r\n250 STARTTLS\r\n"),
        (b"MAIL FROM:<a@x>\r\n", b"250 m\r\n"), (b"RCPT TO:<b@y>\r\n", b"250 r\r\n"),
    ):  # fmt: skip
        if client:
            session.client_sent(client)
        session.server_sent(server)
    session.client_sent(b"BDAT 4\r\nevil")
    assert held_back(session)
    session.client_sent(b"STARTTLS\r\n")
    if told:
        session.server_sent(b"220 go\r\n")
        session.tls_done(Side.SERVER, INFO)
    session.tls_ready()
    session.tls_done(Side.CLIENT, INFO)
    assert not held_back(session)
    assert session.transaction is None
    if not told:
        session.server_sent(b"500 RSET? what\r\n")
    session.client_sent(b"EHLO me\r\n")
    session.server_sent(b"500 no\r\n")
    assert not held_back(session)
    assert b"evil" not in session.to_server


def held_back(session: Session) -> bool:
    """Octets of a chunk are."""
    return isinstance(session.incoming, Chunks) and session.incoming.held


def test_what_was_asked_before_is_answered_before_it() -> None:
    """I1: in clear, in order; then the 220."""
    play(hello("PIPELINING", told=("PIPELINING", "STARTTLS")) + """
        C> NOOP
        C> VRFY x
        C> NOOP
        C> STARTTLS
        >S NOOP
        >S NOOP

        S> 250 n
        >C 250 n
        >C 252 Cannot VRFY user, but will accept message and attempt delivery

        S> 250 n
        >C 250 n
        -> prepare-tls client
    """ + GO + again("DSN"), posture=ALONE)  # fmt: skip


# ------------------------------------------------------------------------------------------ the client's link alone: I5


@pytest.mark.parametrize("tail", ["E", "EHLO x\\r\\n", "MAIL FROM:<evil@x.example>\\r\\n", "\\0", "\\x16\\x03\\x01",
                                  "STARTTLS\\r\\n", "QUIT\\r\\n"])  # fmt: skip
@pytest.mark.parametrize("wanted", [ALONE, posture("offer", "mirror"), posture("require", "never")])
def test_octets_behind_starttls(tail: str, wanted: Posture) -> None:
    """CVE-2011-0411: also where the server is not asked: no 220, nothing forwarded, both links closed."""
    script = f"\n    C> STARTTLS\n    C> {tail}\\\n    -> prepare-tls client\n\n    !! tls-ready\n"
    records = play(OFFERED + script + CUT, posture=wanted)
    assert "octets-behind-starttls" in anomalies(records)
    assert "evil" not in str(records)


@pytest.mark.parametrize("tail", [b"E", b"EHLO x\r\n", b"MAIL FROM:<evil@x.example>\r\n", b"\x16\x03\x01"])
@pytest.mark.parametrize("when", range(3))
def test_octets_that_come_later_never_act(tail: bytes, when: int) -> None:
    """While a certificate is had, and within the handshake: the client is not read, and what was read is no command."""
    session = asked(ALONE)
    if when == 0:
        session.client_sent(tail)
    session.tls_ready()
    if when == 1:
        session.client_sent(tail)
    session.tls_done(Side.CLIENT, INFO)
    if when == 2:
        assert session.wants(Side.CLIENT)
        return
    assert session.closed
    assert b"evil" not in session.to_server
    assert "Abort server" in effects(session)


def asked(wanted: Posture, judge: PassAll | None = None) -> Session:
    """STARTTLS was asked, and is ours to answer."""
    session = Session(judge=judge or allow(), record=lambda r: None, clock=lambda: 0.0, posture=wanted)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"EHLO me\r\n")
    session.server_sent(b"250-mx\r\n250 DSN\r\n")
    session.client_sent(b"STARTTLS\r\n")
    session.to_client.clear()
    session.to_server.clear()
    return session


@pytest.mark.parametrize("step", ["certificate", "client"])
def test_neither_peer_is_read_meanwhile(step: str) -> None:
    """And a server that talks all the same is cut."""
    session = asked(ALONE)
    if step == "client":
        session.tls_ready()
        session.to_client.clear()
    assert not session.wants(Side.CLIENT)
    assert not session.wants(Side.SERVER)
    assert session.patience() == (Side.CLIENT, 60.0)
    session.server_sent(b"250 evil\r\n")
    assert session.closed
    assert b"evil" not in session.to_client
    assert bool(session.to_client) is (step == "certificate")


# ----------------------------------------------------------------------------- the client's link alone: what goes wrong


@one_sided
def test_no_certificate(wanted: Posture, before: str) -> None:
    """454, in time or not; the session goes on as it was, and may try again; `require` still has 530."""
    for how in ("tls-failed", "timeout client"):
        script = before + ASK + f"\n    !! {how}\n    >C 454 TLS not available\n"
        records = play(script + NOOP + ASK + GO + again("DSN"), posture=wanted)
        assert "tls-failed" in anomalies(records)
        after = "\n    C> MAIL FROM:<a@x.example>\n    >C 530 STARTTLS comes first here\n"
        play(script + (after if wanted.client is ClientTLS.REQUIRE else ENVELOPE), posture=wanted)


@pytest.mark.parametrize(
    "how", ["tls-failed", "timeout client", "timeout server", "end client", "lost", "end server", "stop"]
)
def test_within_the_clients_handshake_nothing_can_be_told(how: str) -> None:
    """220 was: both links close."""
    session = asked(ALONE)
    session.tls_ready()
    assert session.to_client == b"220 Ready to start TLS\r\n"
    session.to_client.clear()
    happen(session, how)
    assert session.closed
    assert not session.to_client
    assert not session.to_server


def happen(session: Session, how: str) -> None:
    match how:
        case "tls-failed":
            session.tls_failed("x")
        case "timeout client":
            session.timed_out(Side.CLIENT)
        case "timeout server":
            session.timed_out(Side.SERVER)
        case "end client":
            session.client_sent(b"")
        case "end server":
            session.server_sent(b"")
        case "lost":
            session.client_lost()
        case _:
            session.stop()


@pytest.mark.parametrize(("how", "told"), [
    ("end server", b"421 Connection to the mail server lost, try again later\r\n"),
    ("stop", b"421 Service shutting down, try again later\r\n"),
    ("lost", b""),
])  # fmt: skip
def test_while_a_certificate_is_had(how: str, told: bytes) -> None:
    """In clear still: 421 is STARTTLS's answer."""
    session = asked(ALONE)
    happen(session, how)
    assert session.closed
    assert session.to_client == told
    session.tls_ready()
    assert session.to_client == told
    assert "StartTLS client" not in effects(session)


def test_a_client_that_ends_while_a_certificate_is_had() -> None:
    """Its 454 is told, then both links close; with a certificate, the 220, and its handshake can only fail."""
    session = asked(ALONE)
    session.client_sent(b"")
    assert not effects(session)[1:]
    session.tls_failed("x")
    assert session.to_client == b"454 TLS not available\r\n"
    assert session.closed
    session = asked(ALONE)
    session.client_sent(b"")
    session.tls_ready()
    session.tls_done(Side.CLIENT, INFO)
    assert session.closed


def test_a_rule_that_hangs_up_on_the_servers_220() -> None:
    """No handshake is begun with a client whose link is being closed."""
    judge = Says(replies={"STARTTLS": Verdict(Action.HANGUP, own("421 4.7.0 Not today"), "r")})
    play(hello("STARTTLS") + "\n    C> STARTTLS\n    >S STARTTLS\n    S> 220 go\n    -> start-tls server\n\n"
        "    !! tls-done server\n    -> prepare-tls client\n\n    !! tls-ready\n    >C 421 Not today\n" + OVER,
        rules=judge)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- drain and stop


@pytest.mark.parametrize("when", ["asked", "ready"])
@pytest.mark.parametrize("begun", [False, True])
def test_drain_while_the_client_is_encrypted(when: str, begun: bool) -> None:
    """What is in flight is the handshake: then 421, inside TLS; with a mail from before, behind our RSET."""
    first, second = ("    !! drain\n\n", "") if when == "asked" else ("", "    !! drain\n\n")
    told = "\n    >C 421 Service shutting down, try again later\n" + OVER
    script = OFFERED + (ENVELOPE if begun else "") + ASK + f"""
{first}
        !! tls-ready
        >C 220 Ready to start TLS
        -> start-tls client

{second}
        !! tls-done client
    """ + (RESET.rstrip() + told if begun else told)  # fmt: skip
    play(script, posture=ALONE)


@pytest.mark.parametrize("step", range(4))
def test_drain_and_stop_at_each_step_of_a_mirrored_starttls(step: int) -> None:
    """Drain: 421 inside TLS when it is done. Stop: 421 in clear, until the client's handshake is under way."""
    for how in ("drain", "stop"):
        session = Session(judge=OPEN, record=lambda r: None, clock=lambda: 0.0)
        session.server_sent(b"220 mx\r\n")
        session.client_sent(b"EHLO me\r\n")
        session.server_sent(b"250-mx\r\n250 STARTTLS\r\n")
        session.client_sent(b"STARTTLS\r\n")
        session.to_client.clear()
        does: list[Callable[[], None]] = [
            partial(session.server_sent, b"220 go\r\n"),
            partial(session.tls_done, Side.SERVER, INFO),
            session.tls_ready,
            partial(session.tls_done, Side.CLIENT, INFO),
        ]
        for act in does[:step]:
            act()
        session.to_client.clear()
        getattr(session, how)()
        if how == "stop":
            assert session.closed
            assert bytes(session.to_client) == (b"421 Service shutting down, try again later\r\n" if step < 3 else b"")
            continue
        for act in does[step:]:
            assert "Close client" not in effects(session)
            assert b"421" not in session.to_client
            act()
        assert session.closed
        assert session.to_client.endswith(b"421 Service shutting down, try again later\r\n")


# ------------------------------------------------------------------------------------------------------------ passwords


def test_a_log_in_from_before() -> None:
    """RFC 4954 §4: the server can't forget it, for its link goes on as it is: 503."""
    for reply in ("235 in", "235 2.7.0 in"):
        play(hello("AUTH PLAIN", told=("AUTH PLAIN", "STARTTLS")) + f"\n    C> {AUTH}\n    >S {AUTH}\n    S> {reply}\n"
            f"    >C {reply}\n\n    C> STARTTLS\n    >C 503 STARTTLS comes before AUTH\n" + NOOP,
            rules=allow("AUTH"), posture=ALONE)  # fmt: skip


def test_a_log_in_that_failed_is_none() -> None:
    """Nothing to forget."""
    play(hello("AUTH PLAIN", told=("AUTH PLAIN", "STARTTLS")) + f"\n    C> {AUTH}\n    >S {AUTH}\n    S> 535 no\n"
        f"    >C 535 no\n" + ASK + GO, rules=allow("AUTH"), posture=ALONE)  # fmt: skip


def test_xclient_from_before() -> None:
    """As good as a log-in: the server took the client for somebody else, and goes on doing so."""
    play(hello("XCLIENT NAME ADDR", told=("XCLIENT NAME ADDR", "STARTTLS"))
        + "\n    C> XCLIENT ADDR=192.0.2.1\n    >S XCLIENT ADDR=192.0.2.1\n    S> 220 mx\n    >C 220 mx\n"
        + again("STARTTLS")
        + "\n    C> STARTTLS\n    >C 503 STARTTLS comes before AUTH\n",
        rules=allow("XCLIENT"), posture=ALONE)  # fmt: skip


def test_a_log_in_from_before_a_mirrored_starttls_is_forgotten() -> None:
    """The server's link is new too: a later STARTTLS would be refused only for a log-in inside TLS."""
    session = Session(judge=allow("AUTH"), record=lambda r: None, clock=lambda: 0.0)
    for client, server in ((b"", b"220 mx\r\n"), (b"EHLO me\r\n", b"250-mx\r\n250-AUTH PLAIN\r\n250 STARTTLS\r\n"),
                           (AUTH.encode() + b"\r\n", b"235 in\r\n"), (b"STARTTLS\r\n", b"220 go\r\n")):  # fmt: skip
        session.client_sent(client) if client else None
        session.server_sent(server)
    assert session.authenticated
    session.tls_done(Side.SERVER, INFO)
    session.tls_ready()
    session.tls_done(Side.CLIENT, INFO)
    assert not session.authenticated


LISTED = again("AUTH PLAIN", told=("AUTH PLAIN",)) + f"\n    C> {AUTH}\n    >S {AUTH}\n    S> 235 in\n    >C 235 in\n"
UNLISTED = (
    again("AUTH PLAIN", told=())
    + f"\n    C> {AUTH}\n    >C 538 Encryption required for requested authentication mechanism\n"
)


def test_auth_where_the_servers_link_is_in_clear() -> None:
    """Only where the administrator said that it never is to be encrypted; the parameter of MAIL goes with it."""
    for server, after in (("never", LISTED), ("mirror", UNLISTED)):
        play(OFFERED + ASK + GO + after, posture=posture("offer", server))
    play(OFFERED + ASK + GO + UNLISTED + "\n    C> MAIL FROM:<a@x.example> AUTH=<>\n"
        "    >C 555 Parameter not offered here\n", posture=posture("offer", "mirror"))  # fmt: skip


def test_auth_where_the_clients_link_is_in_clear() -> None:
    """However well the server's is encrypted."""
    up = IMPLICIT + GREETING
    play(up + UNLISTED, posture=posture("refuse", "implicit"))
    play(up + hello("DSN", told=("DSN", "STARTTLS")).removeprefix(GREETING) + ASK + GO + LISTED,
         posture=posture("mirror", "implicit"))  # fmt: skip


# -------------------------------------------------------------------------------------------------- TLS before all else

MUST = "    >C 530 STARTTLS comes first here\n"


@pytest.mark.parametrize("line", [
    "MAIL FROM:<a@x.example>", "RCPT TO:<b@y.example>", "DATA", "VRFY a", "EXPN l", "HELP", "ETRN x", "TURN", "BURL imap://h/x",
    "AUTH PLAIN CANARYcanary17==", "AUTH LOGIN", "X-EXPS NTLM CANARYcanary17==", "XYZZY", "XCLIENT NAME=x",
    "BDAT 0 LAST",
    "XEXCH50 4 2", "SEND FROM:<a@x.example>", "VERB", "TICK 1",
])  # fmt: skip
@pytest.mark.parametrize("server", ["mirror", "never"])
@pytest.mark.parametrize("before", [GREETING, hello("DSN", told=("DSN", "STARTTLS")), hello(verb="HELO")])
def test_530_before_tls(line: str, server: str, before: str) -> None:
    """RFC 3207 §4: nothing of it reaches the server, and no password the record."""
    records = play(before + f"\n    C> {line}\n" + MUST + NOOP, posture=posture("require", server))
    assert "CANARY" not in str(records)
    if "DSN" not in before:
        play(before + f"\n    C> {line}\n" + MUST, posture=posture("require", server), rules=OPEN)


def test_what_may_be_said_before_tls() -> None:
    """EHLO, HELO, LHLO, NOOP, RSET, QUIT; STARTTLS where it was offered."""
    play(hello("DSN", told=("DSN", "STARTTLS")) + hello(verb="HELO").removeprefix(GREETING) + NOOP + """
        C> RSET
        >S RSET
        S> 250 r
        >C 250 r
        C> STARTTLS
        >C 502 Command not offered here
    """ + again(told=("STARTTLS",)) + QUIT, posture=FIRST)  # fmt: skip
    play(GREETING + "\n    C> LHLO me\n    >S LHLO me\n    S> 250 mx\n    >C 250 mx\n", posture=FIRST, rules=OPEN)


def test_the_octets_of_a_refused_bdat_are_no_commands() -> None:
    """commands.md §7."""
    play(
        OFFERED + "\n    C> BDAT 6 LAST\n    C> QUIT\\r\\n\\\n    >C 530 STARTTLS comes first here\n" + NOOP,
        posture=FIRST,
    )


def test_a_refused_mail_begins_nothing() -> None:
    """Nor does what follows it in one segment."""
    records = play(OFFERED + """
        C> MAIL FROM:<a@x.example>
        C> RCPT TO:<b@y.example>
        C> DATA
        >C 530 STARTTLS comes first here
        >C 530 STARTTLS comes first here
        >C 530 STARTTLS comes first here
    """, posture=FIRST)  # fmt: skip
    assert all(r.get("transaction") is None for r in exchanges(records) if r["verb"] == "RCPT")


def test_a_rule_lets_no_malformed_line_through_in_clear() -> None:
    """Where a rule passes lines nobody could parse, that is for behind TLS."""
    judge = Says({"UNKNOWN": PASSED_BY_RULE}, malformed=PASSED_BY_RULE)
    script = GREETING + "\n    C> MAIL FROM: a@x.example <\n    >C 501 Syntax error in parameters or arguments\n"
    play(script + "\n    C> XYZZY\n" + MUST, posture=FIRST, rules=judge)


def test_malformed_lines_have_their_limit_before_tls_too() -> None:
    """A line that is no command is answered like anywhere."""
    play(GREETING + "\n    C> \\x01bad\n    >C 500 Syntax error, command unrecognized\n", posture=FIRST)


def test_after_tls_everything_may_be_said() -> None:
    """On both links; a hello is the server's business then."""
    play(hello("STARTTLS") + """
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

        C> MAIL FROM:<a@x.example>
        >S MAIL FROM:<a@x.example>
        S> 503 EHLO first
        >C 503 EHLO first
    """ + again("DSN") + ENVELOPE, posture=FIRST)  # fmt: skip


@pytest.mark.parametrize("code", ["454 later", "502 no", "554 no"])
def test_a_server_that_refuses_has_no_mail_in_clear(code: str) -> None:
    """B24–B30, B51: its reply is told; and 530 goes on."""
    play(hello("STARTTLS") + f"\n    C> STARTTLS\n    >S STARTTLS\n    S> {code}\n    >C {code}\n\n"
        "    C> MAIL FROM:<a@x.example>\n" + MUST, posture=FIRST)  # fmt: skip


def test_a_server_that_lacks_it_has_no_mail_in_clear() -> None:
    """Offered to the client all the same, so that it learns why: 454."""
    play(OFFERED + "\n    C> STARTTLS\n    >C 454 TLS not available\n\n    C> MAIL FROM:<a@x.example>\n" + MUST
        + NOOP, posture=FIRST)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- X-ANONYMOUSTLS


def test_x_anonymoustls_by_the_same_row() -> None:
    """Offered where the server lists it, ours to answer where its link is not to be encrypted; never added."""
    listed = hello("X-ANONYMOUSTLS", told=("X-ANONYMOUSTLS", "STARTTLS"))
    play(listed + ASK.replace("STARTTLS", "X-ANONYMOUSTLS") + GO + again("X-ANONYMOUSTLS", told=()), posture=ALONE)
    play(OFFERED + "\n    C> X-ANONYMOUSTLS\n    >C 502 Command not offered here\n", posture=ALONE)
    play(hello("X-ANONYMOUSTLS", told=()), posture=posture("refuse", "mirror"))
    play(listed + "\n    C> MAIL FROM:<>\n" + MUST + "\n    C> X-ANONYMOUSTLS\n    >S X-ANONYMOUSTLS\n    S> 454 no\n"
        "    >C 454 no\n", posture=FIRST)  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- REQUIRETLS

REQUIRE = "MAIL FROM:<a@x.example> REQUIRETLS"
BOTH = """
    C> STARTTLS
    >S STARTTLS
    S> 220 go
    -> start-tls server

    !! tls-done server{}
    -> prepare-tls client

    !! tls-ready
    >C 220 go
    -> start-tls client

    !! tls-done client
"""


def test_requiretls() -> None:
    """RFC 8689 §2, §4.1: offered where both links are encrypted and the server is verified; 550 5.7.30 elsewhere."""
    no = f"\n    C> {REQUIRE}\n    >C 550 REQUIRETLS support required\n"
    start = hello("STARTTLS", "REQUIRETLS", told=("STARTTLS",)) + no
    yes = f"\n    C> {REQUIRE}\n    >S {REQUIRE}\n    S> 250 m\n    >C 250 m\n"
    play(start + BOTH.format(" verified") + again("REQUIRETLS") + yes)
    play(start + BOTH.format("") + again("REQUIRETLS", told=()) + no, rules=allow("REQUIRETLS"))
    play(start + BOTH.format(" verified") + again("DSN") + no)
    first = IMPLICIT.replace("done server", "done server verified") + hello("REQUIRETLS", told=("STARTTLS",))
    play(first + no + ASK + GO + again("REQUIRETLS"), posture=posture("mirror", "implicit"))
    play(OFFERED + ASK + GO + again("REQUIRETLS", told=()) + no, posture=ALONE)


# ---------------------------------------------------------------------------------------------------------- passthrough

PASSED = hello("STARTTLS") + "\n    C> STARTTLS\n    >S STARTTLS\n    S> 220 go\n    >C 220 go\n"


def test_passthrough_is_opaque_from_the_servers_220_on() -> None:
    """Both ways, octet for octet; and the record says so."""
    records = play(PASSED + """
        C> \\x16\\x03\\x01\\n\\r\\n.\\r\\n\\
        >S \\x16\\x03\\x01\\n\\r\\n.\\r\\n\\
        S> \\x16\\x03\\x03\\0250 x\\n\\
        >C \\x16\\x03\\x03\\0250 x\\n\\
        C> QUIT
        >S QUIT

        !! end client
        -> close server
        -> close client
    """, posture=BLIND)  # fmt: skip
    assert [r["passthrough"] for r in records if r["kind"] == "link-tls"] == [True]
    (event,) = [r for r in records if r.get("anomaly") == "inspection-ended"]
    assert event["verb"] == "STARTTLS"
    assert [r["verb"] for r in exchanges(records)] == ["GREETING", "EHLO", "STARTTLS"]


def test_before_it_passthrough_inspects_like_all_else() -> None:
    """Rules, lists, and what the server refuses."""
    play(hello("STARTTLS", "XCLIENT NAME", told=("STARTTLS",)) + "\n    C> EXPN l\n    >C 502 Command not implemented\n"
        "\n    C> STARTTLS\n    >S STARTTLS\n    S> 454 later\n    >C 454 later\n" + NOOP, posture=BLIND)  # fmt: skip
    play(hello("DSN") + "\n    C> STARTTLS\n    >C 502 Command not offered here\n" + NOOP, posture=BLIND)
    play(hello("STARTTLS") + "\n    C> STARTTLS\n    >S STARTTLS\n    S> 250 go\n" + BROKEN_PLAIN, posture=BLIND)


@pytest.mark.parametrize("tail", ["E", "EHLO x\\r\\n", "\\x16\\x03\\x01"])
def test_passthrough_takes_no_octets_of_the_client_behind_starttls(tail: str) -> None:
    """They came in clear, and a server with CVE-2011-0411 would act on them."""
    records = play(hello("STARTTLS") + f"\n    C> STARTTLS\n    C> {tail}\\\n    >S STARTTLS\n\n    S> 220 go\n" + CUT,
                   posture=BLIND)  # fmt: skip
    assert "octets-behind-starttls" in anomalies(records)


@pytest.mark.parametrize("tail", [b"2", b"250 mx\r\n", b"\x16"])
def test_passthrough_takes_no_octets_of_the_server_behind_220(tail: bytes) -> None:
    """In the same segment. (In a later one they can't be told from TLS: they are the client's to refuse.)"""
    session = Session(judge=OPEN, record=lambda r: None, clock=lambda: 0.0, posture=BLIND)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"EHLO me\r\n")
    session.server_sent(b"250-mx\r\n250 STARTTLS\r\n")
    session.client_sent(b"STARTTLS\r\n")
    session.to_client.clear()
    session.server_sent(b"220 go\r\n" + tail)
    assert session.to_client == b"421 The mail server broke the protocol, try again later\r\n"
    assert session.closed


@pytest.mark.parametrize(
    "how", ["timeout client", "timeout server", "timeout client session-too-long", "stop", "end server"]
)
def test_nothing_of_ours_gets_between_two_peers_that_talk_tls(how: str) -> None:
    """A 421 in clear would be an octet neither of them said: the links close, and that is all."""
    verb, _, rest = how.partition(" ")
    play(
        PASSED
        + f"\n    C> \\x16\\x03\\x01\\\n    >S \\x16\\x03\\x01\\\n\n    !! {verb} {rest}\n"
        + (CUT if how == "timeout server" else OVER),
        posture=BLIND,
    )


def test_a_blind_session_is_not_drained_in_the_middle_of_a_mail() -> None:
    """Nobody knows where it is: it goes on until it ends, or until drain's own time is over."""
    play(PASSED + "\n    !! drain\n\n    C> \\x17\\\n    >S \\x17\\\n    S> \\x17\\\n    >C \\x17\\\n\n    !! stop\n"
        + OVER, posture=BLIND)  # fmt: skip


def test_opaque_octets_are_progress() -> None:
    """Patience is for peers that say nothing."""
    session = Session(judge=allow("TURN"), record=lambda r: None, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"TURN\r\n")
    session.server_sent(b"250 ok\r\n")
    for say in (session.client_sent, session.server_sent):
        before = session.progress
        say(b"\x17")
        assert session.progress > before


# ---------------------------------------------------------------------------------------------------- effects, in order


def test_the_220_stands_before_its_handshake() -> None:
    """The driver carries an effect out behind the octets that stand before it."""
    session = asked(ALONE)
    assert effects(session) == ["PrepareTLS client"]
    assert not session.to_client
    session.tls_ready()
    assert effects(session) == ["PrepareTLS client", "StartTLS client"]
    assert session.to_client == b"220 Ready to start TLS\r\n"
    session.tls_ready()  # once is enough
    assert len(session.effects) == 2
    session.tls_failed("x")
    assert effects(session)[2:] == ["Abort server", "Close client"]


def test_why_there_is_no_tls_is_on_record() -> None:
    """`require` before a server that has none: 454, and the reason."""
    before = hello("SIZE", told=("SIZE", "STARTTLS"))
    records = play(before + "\n    C> STARTTLS\n    >C 454 TLS not available\n", posture=posture("require", "mirror"))
    (note,) = [r for r in records if r.get("anomaly") == "tls-failed"]
    assert (note["side"], note["result"]) == ("server", "starttls-not-supported")
    assert note["why"] == "the server does not offer STARTTLS"


@pytest.mark.parametrize("shown", ["minted", "self-signed", "given"])
def test_requiretls_through_a_certificate_of_ours_is_noted(shown: str) -> None:
    """RFC 8689 §4.1: the promise is kept on both links, and the client does not know who is in between."""
    records: list[AuditRecord] = []
    session = Session(judge=allow("REQUIRETLS"), record=records.append, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"EHLO me\r\n")
    session.server_sent(b"250-mx\r\n250 STARTTLS\r\n")
    session.client_sent(b"STARTTLS\r\n")
    session.server_sent(b"220 go\r\n")
    session.tls_done(Side.SERVER, INFO._replace(verified=True))
    session.tls_ready()
    session.tls_done(Side.CLIENT, INFO._replace(shown=shown))
    assert session.server.capabilities.keywords == frozenset()  # nothing said in clear counts (RFC 3207 §4.2)
    session.client_sent(b"EHLO me\r\n")
    session.server_sent(b"250-mx\r\n250 REQUIRETLS\r\n")
    session.client_sent(REQUIRE.encode() + b"\r\n")
    session.server_sent(b"250 ok\r\n")
    (mail,) = [r.exchange for r in records if r.exchange is not None and r.exchange.verb.name == "MAIL"]
    assert mail.anomalies == (() if shown == "given" else ("requiretls-intercepted",))
