"""The phase and its table: every (phase, verb, digit) moves as the table says, or leaves the phase where it was and
is flagged exactly where the server accepted what it should not have."""

import pytest

from smtpproxy.session.session import Session
from smtpproxy.session.state import (
    MOVING,
    TRANSITIONS,
    Peer,
    Phase,
    Recipient,
    TLSInfo,
    Transaction,
    next_phase,
)
from smtpproxy.smtp.capabilities import NO_CAPABILITIES, Capabilities
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.registry.verbs import VERBS
from smtpproxy.smtp.values import Parameter, Path
from tests.session.judges import OPEN

NAMES = [name.decode() for name in VERBS] + ["GREETING", "SASL", "END", "OCTETS", "UNKNOWN", "BDAT LAST"]


@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.value)
@pytest.mark.parametrize("digit", [2, 3, 4, 5])
def test_every_combination_is_in_the_table_or_leaves_the_phase(phase: Phase, digit: int) -> None:
    """Table: no combination is forgotten, and none raises."""
    for name in NAMES:
        after, in_order = next_phase(phase, name, digit * 100 + 50)
        if (phase, name, digit) in TRANSITIONS:
            assert (after, in_order) == (TRANSITIONS[phase, name, digit], True)
        else:
            assert after is phase
            assert in_order is ((name, digit) not in MOVING)


@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.value)
def test_421_closes_from_anywhere(phase: Phase) -> None:
    """RFC 5321 §4.2.1."""
    for name in NAMES:
        assert next_phase(phase, name, 421) == (Phase.CLOSED, True)


def test_quit_closes_from_anywhere() -> None:
    """221."""
    assert {next_phase(phase, "QUIT", 221) for phase in Phase} == {(Phase.CLOSED, True)}


def test_a_refusal_never_moves_but_where_content_or_sasl_end() -> None:
    """4yz and 5yz."""
    moves = {(phase, verb) for (phase, verb, digit), after in TRANSITIONS.items() if digit > 3 and after is not phase}
    assert moves == {
        (Phase.CONTENT, "END"),
        (Phase.CONTENT, "BDAT LAST"),
        (Phase.RCPT, "BDAT LAST"),
        (Phase.AUTH, "SASL"),
    }


def test_the_table_names_only_verbs_there_are() -> None:
    """No row for nobody."""
    assert {verb for _, verb, _ in TRANSITIONS} <= set(NAMES)
    assert {verb for verb, _ in MOVING} <= set(NAMES)
    assert all(
        (verb, digit) in MOVING or verb in ("GREETING", "RSET", "QUIT", "SASL", "END", "BDAT LAST")
        for _, verb, digit in TRANSITIONS
    )


@pytest.mark.parametrize("name", [name for name in NAMES if name in {verb for verb, _ in MOVING}])
def test_every_moving_verb_moves_from_somewhere(name: str) -> None:
    """Flagged in one phase, in order in another."""
    digits = {digit for verb, digit in MOVING if verb == name}
    for digit in digits:
        assert any((phase, name, digit) in TRANSITIONS for phase in Phase)


def test_the_phases_of_an_ordinary_conversation() -> None:
    """From greeting to close."""
    session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0)
    seen = [session.phase]
    for command, reply in (
        ("", "220 mx"), ("EHLO me", ("250-mx\r\n250-AUTH PLAIN\r\n"
        "250 CHUNKING")), ("AUTH LOGIN", "334 x"), ("YQ==", "235 in"),
        ("MAIL FROM:<a@x>", "250 m"), ("RCPT TO:<b@y>", "250 r"), ("RCPT TO:<c@y>", "550 no"), ("DATA", "354 go"),
        ("x\r\n.", "250 q"),
        ("MAIL FROM:<a@x>", "250 m"), ("RCPT TO:<b@y>", "250 r"), ("BDAT 3\r\nx", "250 c"), (("BDAT 3 LAST\r\n"
        "x"), "250 l"),
        ("MAIL FROM:<a@x>", "250 m"), ("RSET", "250 r"), ("NOOP", "250 n"), ("HELO me", "250 mx"), ("QUIT", "221 b"),
    ):  # fmt: skip
        if command:
            session.client_sent(command.encode() + b"\r\n")
        session.server_sent(reply.encode() + b"\r\n")
        seen.append(session.phase)
    p = Phase
    assert seen == [
        p.CONNECTED, p.GREETED, p.READY, p.AUTH, p.READY, p.MAIL, p.RCPT, p.RCPT, p.CONTENT, p.READY, p.MAIL, p.RCPT,
        p.CONTENT, p.READY,
        p.MAIL, p.READY, p.READY, p.READY, p.CLOSED,
    ]  # fmt: skip
    assert session.said_goodbye


def test_the_phases_of_a_handshake() -> None:
    """SECURING from the told 220 until the client's own handshake is done."""
    session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0)
    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"EHLO me\r\n")
    session.server_sent(b"250-mx\r\n250 STARTTLS\r\n")
    session.client_sent(b"STARTTLS\r\n")
    session.server_sent(b"220 go\r\n")
    session.tls_done(Side.SERVER, TLSInfo("TLSv1.3", "x"))
    seen = [session.phase]
    session.tls_ready()
    seen.append(session.phase)
    quiet = session.tellable
    session.tls_done(Side.CLIENT, TLSInfo("TLSv1.3", "x"))
    seen.append(session.phase)
    assert seen == [Phase.READY, Phase.SECURING, Phase.GREETED]
    assert (quiet, session.tellable) == (False, True)


def test_a_refused_greeting_leaves_connected() -> None:
    """RFC 5321 §3.1."""
    session = Session(judge=OPEN, record=lambda record: None, clock=lambda: 0.0)
    session.server_sent(b"554 no\r\n")
    assert session.phase is Phase.CONNECTED


def test_a_peer_forgets() -> None:
    """RFC 3207 §4.2: hello and list, not the handshake itself."""
    peer = Peer(Side.CLIENT, "192.0.2.1")
    peer.tls = TLSInfo("TLSv1.3", "x")
    peer.hello, peer.esmtp, peer.lmtp = b"me", True, True
    peer.capabilities = Capabilities(b"mx")
    peer.forget()
    assert (peer.hello, peer.esmtp, peer.lmtp, peer.capabilities) == (b"", False, False, NO_CAPABILITIES)
    assert peer.tls is not None
    assert peer.address == "192.0.2.1"


def test_a_transaction_counts_its_recipients() -> None:
    """Accepted ones only; None is not yet."""
    transaction = Transaction(1, Path(b"a", b"x"), (Parameter(b"SIZE", b"10"), Parameter(b"SMTPUTF8", None)))
    for accepted in (True, False, None, True):
        recipient = Recipient(Path(b"b", b"y"), ())
        recipient.accepted = accepted
        transaction.recipients.append(recipient)
    assert transaction.accepted == 2
    assert transaction.parameter(b"SIZE") == b"10"
    assert transaction.parameter(b"SMTPUTF8") == b""
    assert transaction.parameter(b"RET") is None
