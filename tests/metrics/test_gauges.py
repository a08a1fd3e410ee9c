"""What the recorder says of itself, for another process."""

import os

import pytest

from smtpproxy.metrics.gauges import FIELDS, MOST_SINKS, NAME, RecorderGauges, Sink


def test_what_is_set_is_read_in_another_process() -> None:
    gauges = RecorderGauges()
    child = os.fork()
    if not child:
        try:
            gauges.set(present=1.0, records=17.0)
            gauges.add(gaps=2)
            gauges.set_sink(0, "siem", lag_records=3, lag_seconds=1.5, failing=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    other = RecorderGauges(os.dup(gauges.fileno()))
    for read in (gauges, other):
        assert [read.get(name) for name in ("present", "records", "gaps", "lag_seconds")] == [1.0, 17.0, 2.0, 0.0]
        assert list(read.sinks()) == [Sink("siem", 3.0, 1.5, 1.0)]
    gauges.add(gaps=1)
    assert other.get("gaps") == 3.0
    gauges.close()
    other.close()


def test_sinks_that_are_too_many_or_gone() -> None:
    gauges = RecorderGauges()
    for index in range(MOST_SINKS + 3):
        gauges.set_sink(index, "n" * 100, lag_records=index, lag_seconds=0.0)
    assert len(list(gauges.sinks())) == MOST_SINKS
    assert {sink.name for sink in gauges.sinks()} == {"n" * NAME}
    gauges.set_sink(0, "", lag_records=0, lag_seconds=0)
    assert len(list(gauges.sinks())) == MOST_SINKS - 1
    gauges.close()


def test_no_such_number() -> None:
    gauges = RecorderGauges()
    with pytest.raises(ValueError, match="not in tuple"):
        gauges.set(nothing=1.0)
    assert [gauges.get(name) for name in FIELDS] == [0.0] * len(FIELDS)
    gauges.close()
