"""The ledger by itself: four slots, one truth table, and who the server's next reply belongs to."""

import pytest

from smtpproxy.session.ledger import Exchange, Ledger
from smtpproxy.smtp.commands import Command, parse_command
from smtpproxy.smtp.registry.verbs import VERBS
from smtpproxy.smtp.replies import Reply, own

NOOP = parse_command(b"NOOP\r\n")
assert isinstance(NOOP, Command)
GOT = Reply(250, b"250 ok\r\n")
TOLD = own("550 5.7.1 No")


def exchange(asked: bool, sent: bool, got: bool, told: bool, lost: bool = False) -> Exchange:
    """An exchange with these slots filled."""
    made = Exchange(VERBS[b"NOOP"], NOOP if asked else None, 1.5)
    made.sent = NOOP if sent else None
    made.got = GOT if got else None
    made.told = TOLD if told else None
    made.lost = lost
    return made


@pytest.mark.parametrize(
    ("asked", "sent", "got", "told", "owed"),
    [
        (True, True, False, False, True),  # forwarded
        (True, True, True, False, False),  # … and answered
        (True, False, False, True, False),  # answered here
        (False, True, False, False, True),  # our own command
        (False, True, True, False, False),
        (True, True, False, True, True),  # asked one thing, sent another: got is awaited
        (True, True, True, True, False),
        (True, False, False, False, False),  # undecided yet
    ],
)
def test_the_truth_table(asked: bool, sent: bool, got: bool, told: bool, owed: bool) -> None:
    """Owed means: sent, and not got."""
    ledger = Ledger()
    ledger.exchanges.append(exchange(asked, sent, got, told))
    assert (ledger.awaited is not None) is owed


def test_a_lost_exchange_is_not_awaited() -> None:
    """The server will not reply any more."""
    ledger = Ledger()
    ledger.exchanges.append(exchange(True, True, False, False, lost=True))
    assert ledger.awaited is None


def test_the_next_reply_belongs_to_the_first_that_is_owed_one() -> None:
    """Answered here, undecided, our own: passed over in order."""
    ledger = Ledger()
    assert (ledger.head, ledger.awaited, len(ledger)) == (None, None, 0)
    rows = [
        exchange(True, False, False, True),
        exchange(True, False, False, False),
        exchange(True, True, True, False),
        exchange(False, True, False, False),
        exchange(True, True, False, False),
    ]
    ledger.exchanges.extend(rows)
    assert ledger.head is rows[0]
    assert ledger.awaited is rows[3]
    assert list(ledger) == rows
    assert len(ledger) == 5


def test_a_new_exchange_is_plain() -> None:
    """Nothing is preset."""
    made = Exchange(VERBS[b"NOOP"], NOOP, 1.5)
    assert (made.action, made.rule, made.anomalies, made.due, made.closes) == ("pass", "", (), 1, False)
    assert made.asked_at == 1.5
