"""Where there is no room for the record of a mail (`Facts.full`), MAIL is answered 451 4.3.1 and nothing else changes;
and what the record says of time: how long the server was waited for, how long it was ours."""

from typing import Any

import pytest

from smtpproxy.audit.lines import rendered
from smtpproxy.session.closing import server_ended
from smtpproxy.session.records import AuditRecord
from smtpproxy.session.session import Session
from smtpproxy.session.state import Facts
from tests.play import HELLO, play
from tests.session.judges import NOOP, OPEN, QUIT

FULL = Facts(full=lambda: True)
NOT_NOW = "451 4.3.1 Insufficient system storage, try again later"


def asked(records: list[dict[str, Any]], verb: str) -> list[dict[str, Any]]:
    """The exchanges of a verb."""
    return [record for record in records if record["kind"] == "exchange" and record["verb"] == verb]


# --------------------------------------------------------------------------------------------------------------- full


def test_mail_is_answered_here() -> None:
    """The server hears nothing of it, and the record says why; the mail that was not taken is on it by its sender."""
    records = play(HELLO + f"\n    C> MAIL FROM:<a@x.example>\n    >C {NOT_NOW}\n", facts=FULL)
    (mail,) = asked(records, "MAIL")
    assert (mail["told"], mail["sent"], mail["action"]) == (NOT_NOW, None, "answer")
    assert mail["anomalies"] == ["record-full"]
    assert (mail["mail"], mail["code"]) == ("a@x.example", 451)
    assert not [record for record in records if record["kind"].startswith("tx-")]


def test_a_server_without_enhanced_codes_is_not_made_one_that_has_them() -> None:
    """RFC 2034 §4: only where they were offered."""
    play(
        """
    S> 220 mx.example
    >C 220 mx.example
    C> EHLO me.example
    >S EHLO me.example
    S> 250 mx.example
    >C 250 mx.example
    C> MAIL FROM:<a@x.example>
    >C 451 Insufficient system storage, try again later
""",
        facts=FULL,
    )


def test_what_is_no_mail_goes_on() -> None:
    """A client may ask and leave."""
    records = play(HELLO + NOOP + QUIT, facts=FULL)
    assert all("anomalies" not in record for record in records)


def test_what_is_pipelined_behind_it() -> None:
    """As behind any MAIL that is answered here: the server has no mail for it, and says so."""
    records = play(
        HELLO
        + f"""
    C> MAIL FROM:<a@x.example>
    C> RCPT TO:<b@y.example>
    C> DATA
    >S RCPT TO:<b@y.example>
    >S DATA
    >C {NOT_NOW}

    S> 503 5.5.1 MAIL first
    S> 503 5.5.1 RCPT first
    >C 503 5.5.1 MAIL first
    >C 503 5.5.1 RCPT first
""",
        facts=FULL,
    )
    assert [record["code"] for record in records if record["kind"] == "exchange"][-3:] == [451, 503, 503]


def test_a_mail_that_was_begun_is_taken() -> None:
    """It is asked at MAIL alone: what the server took then is on record to its end."""
    full = [False]
    session, told, sent = conversation(Facts(full=lambda: full[0]))
    session.client_sent(b"MAIL FROM:<a@x.example>\r\n")
    full[0] = True
    session.server_sent(b"250 2.1.0 Ok\r\n")
    for command, reply in ((b"RCPT TO:<b@y.example>\r\n", b"250 2.1.5 Ok\r\n"), (b"DATA\r\n", b"354 Go\r\n")):
        session.client_sent(command)
        session.server_sent(reply)
    told()
    sent()
    session.client_sent(b"Subject: x\r\n\r\n.\r\n")
    assert sent() == b"Subject: x\r\n\r\n.\r\n"
    session.server_sent(b"250 2.0.0 Queued\r\n")
    assert told() == b"250 2.0.0 Queued\r\n"


def test_it_is_over_when_there_is_room() -> None:
    """The next MAIL of the same session passes."""
    full = [True]
    session, told, sent = conversation(Facts(full=lambda: full[0]))
    session.client_sent(b"MAIL FROM:<a@x.example>\r\n")
    assert told() == NOT_NOW.encode() + b"\r\n"
    assert sent() == b""
    full[0] = False
    session.client_sent(b"MAIL FROM:<a@x.example>\r\n")
    assert sent() == b"MAIL FROM:<a@x.example>\r\n"


# ------------------------------------------------------------------------------------------------------------- times


class Clock:
    """Goes on when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def records() -> list[AuditRecord]:
    return []


def times(records: list[AuditRecord], verb: str) -> tuple[float | None, float]:
    """What its record says: `waited` and `seconds`."""
    (found,) = asked([rendered(record) for record in records], verb)
    return found.get("waited"), found["seconds"]


def test_the_time_the_server_took(records: list[AuditRecord]) -> None:
    """From the octets going out to the reply coming in; all of it is in `seconds`."""
    clock = Clock()
    session, _, _ = conversation(Facts(), records.append, clock)
    session.client_sent(b"NOOP\r\n")
    clock.now += 0.25
    session.server_sent(b"250 n\r\n")
    assert times(records, "NOOP") == (0.25, 0.25)
    (exchange,) = (record.exchange for record in records if record.exchange and record.exchange.verb.name == "NOOP")
    assert (exchange.asked_at, exchange.sent_at, exchange.got_at, exchange.waited) == (100.0, 100.0, 100.25, 0.25)


def test_a_reply_in_pieces(records: list[AuditRecord]) -> None:
    """It is there with its last octet."""
    clock = Clock()
    session, _, _ = conversation(Facts(), records.append, clock)
    session.client_sent(b"VRFY x\r\n")
    for piece in (b"252-Per", b"haps\r\n25", b"2 Perhaps\r\n"):
        clock.now += 1.0
        session.server_sent(piece)
    assert times(records, "VRFY") == (3.0, 3.0)


def test_pipelined_commands_are_each_waited_for(records: list[AuditRecord]) -> None:
    """The second reply took as long as it took from the time when both were sent."""
    clock = Clock()
    session, _, _ = conversation(Facts(), records.append, clock)
    session.client_sent(b"NOOP\r\nVRFY x\r\n")
    clock.now += 1.0
    session.server_sent(b"250 n\r\n")
    clock.now += 1.0
    session.server_sent(b"252 v\r\n")
    assert times(records, "NOOP") == (1.0, 1.0)
    assert times(records, "VRFY") == (2.0, 2.0)


def test_content_is_sent_with_its_end(records: list[AuditRecord]) -> None:
    """What the client takes to say it is not the server's time, nor is it of the exchange that ends with it."""
    clock = Clock()
    session, _, _ = conversation(Facts(), records.append, clock)
    for command, reply in (
        (b"MAIL FROM:<a@x.example>\r\n", b"250 2.1.0 Ok\r\n"),
        (b"RCPT TO:<b@y.example>\r\n", b"250 2.1.5 Ok\r\n"),
        (b"DATA\r\n", b"354 Go\r\n"),
    ):
        session.client_sent(command)
        session.server_sent(reply)
    session.client_sent(b"Subject: x\r\n\r\n")
    clock.now += 10.0
    session.client_sent(b".\r\n")
    clock.now += 0.5
    session.server_sent(b"250 2.0.0 Queued\r\n")
    waited, seconds = times(records, "END")
    assert (waited, seconds) == (0.5, 0.5)


def test_what_the_server_never_heard_was_not_waited_for(records: list[AuditRecord]) -> None:
    """Answered here: no `waited` at all."""
    session, _, _ = conversation(FULL, records.append, Clock())
    session.client_sent(b"MAIL FROM:<a@x.example>\r\n")
    assert times(records, "MAIL") == (None, 0.0)


def test_what_never_came_to_a_reply(records: list[AuditRecord]) -> None:
    """The server goes: nothing was got, so nothing is said of how long that took."""
    clock = Clock()
    session, _, _ = conversation(Facts(), records.append, clock)
    session.client_sent(b"NOOP\r\n")
    clock.now += 2.0
    server_ended(session)
    assert times(records, "NOOP") == (None, 2.0)


def conversation(facts: Facts, record: Any = lambda item: None, clock: Any = lambda: 1.0) -> tuple[Session, Any, Any]:
    """A session behind EHLO, what it tells next, and what it sends next."""
    session = Session(judge=OPEN, record=record, clock=clock, facts=facts)

    def taken(buffer: bytearray) -> bytes:
        octets = bytes(buffer)
        buffer.clear()
        return octets

    session.server_sent(b"220 mx\r\n")
    session.client_sent(b"EHLO me\r\n")
    session.server_sent(b"250-mx\r\n250-PIPELINING\r\n250 ENHANCEDSTATUSCODES\r\n")
    taken(session.to_client)
    taken(session.to_server)
    return session, lambda: taken(session.to_client), lambda: taken(session.to_server)


def test_a_transcript_has_no_value_of_auth(records: list[AuditRecord]) -> None:
    """I8 holds for a full transcript as well: AUTH= of MAIL (RFC 4954 §5) is hidden there as in `asked`."""
    session, _, _ = conversation(Facts(), records.append)
    session.transcript = True
    session.client_sent(b"MAIL FROM:<a@x.example> AUTH=canary BODY=7BIT\r\n")
    (mail,) = asked([rendered(record) for record in records], "MAIL")
    assert mail["transcript"]["asked_octets"] == "MAIL FROM:<a@x.example> AUTH=<6 octets> BODY=7BIT\r\n"
    assert "canary" not in str(mail)
