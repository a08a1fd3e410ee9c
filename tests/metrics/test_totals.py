"""What was counted, as values: added up, bounded, and put into octets that nobody has to trust."""

import contextlib
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.metrics.catalogue import OTHER
from smtpproxy.metrics.regions import ROOM
from smtpproxy.metrics.totals import RESERVE, Totals, TotalsError, totals_of


def test_there_and_back() -> None:
    totals = Totals(ROOM)
    totals.count("verdicts_total", "no-macros", "answer")
    totals.count("verdicts_total", "no-macros", "answer", by=2)
    totals.histogram("turn_seconds")[0] += 0.5
    totals.gauges["sessions_open",] = 7.0
    again = totals_of(totals.octets(), ROOM)
    assert again.counters == {("verdicts_total", "no-macros", "answer"): 3}
    assert again.histograms == totals.histograms
    assert again.gauges == {("sessions_open",): 7.0}


def test_of_several() -> None:
    whole = Totals(ROOM)
    for number in (1, 2):
        one = Totals(ROOM)
        one.count("transactions_begun_total", by=number)
        one.histogram("turn_seconds")[3] += number
        one.gauges["audit_blocked_workers",] = 1.0
        whole.add(one, gauges=True)
        whole.add(one)  # what he had is not what others have
    assert whole.counters["transactions_begun_total",] == 6
    assert whole.histograms["turn_seconds",][3] == 6
    assert whole.gauges["audit_blocked_workers",] == 2


def test_names_without_an_end_are_other() -> None:
    """However many rules there are, it takes no more room than it has, and nothing is lost."""
    totals = Totals(RESERVE + 20_000)
    for number in range(10_000):
        totals.count("verdicts_total", f"rule-{number}", "answer")
    assert len(totals.octets()) <= RESERVE + 20_000
    assert sum(totals.counters.values()) == 10_000
    assert totals.counters["verdicts_total", OTHER, OTHER] > 9_000


@pytest.mark.parametrize(
    "written",
    [
        ([(("no_such_total",), 1.0)], [], []),
        ([(("verdicts_total", "x"), 1.0)], [], []),
        ([(("turn_seconds",), 1.0)], [], []),
        ([((), 1.0)], [], []),
        ([(("transactions_begun_total",), -1.0)], [], []),
        ([(("transactions_begun_total",), math.inf)], [], []),
        ([], [], [(("turn_seconds",), [1.0])]),
        ([], []),
    ],
)
def test_octets_that_are_none(written: object) -> None:
    with pytest.raises(TotalsError):
        totals_of(msgspec.msgpack.encode(written), ROOM)


@given(st.binary())
def test_any_octets(octets: bytes) -> None:
    """A worker may have been taken over."""
    with contextlib.suppress(TotalsError):
        totals_of(octets, ROOM)
