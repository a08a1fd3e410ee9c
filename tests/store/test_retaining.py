"""What is kept for how long: looked at once an hour, by days and by octets, and never what somebody still wants."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from smtpproxy.store.retaining import DAY, EVERY, Bounds, Retention
from smtpproxy.store.store import Store
from tests.store.filling import BEGIN, Writer, lines
from tests.store.signing import signed, signer, verified

NOW = BEGIN.timestamp()


class Clock:
    """One that is set by hand."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def _store(directory: Path, days: int = 4) -> Store:
    """So many days, the last of them today, with 600 records each."""
    store = Store(directory, create=True)
    for ago in range(days - 1, -1, -1):
        writer = Writer(f"{ago}" * 10, BEGIN - timedelta(days=ago, hours=1))
        store.append(list(lines(80, writer=writer))[:600])
    assert store.size == 600 * days
    return store


def _first(store: Store) -> int:
    return next(store.lines(0))[0]


def test_without_bounds_all_is_kept(tmp_path: Path) -> None:
    store = _store(tmp_path)
    assert Retention(Bounds(), clock=Clock(NOW + 1e9)).check(store) is False
    assert store.first == 0
    store.close()


def test_by_days(tmp_path: Path) -> None:
    """In whole subtrees of 256: what is younger is never touched."""
    store = _store(tmp_path)
    assert Retention(Bounds(days=2), clock=Clock()).check(store) is True
    assert store.first == _first(store) == 600 * 2 // 256 * 256
    store.close()


def test_one_that_is_old_enough_in_all(tmp_path: Path) -> None:
    store = _store(tmp_path, 2)
    Retention(Bounds(days=1), clock=Clock(NOW + 10 * DAY)).check(store)
    assert store.first == 1200 // 256 * 256
    kinds = [json.loads(line)["kind"] for _, line in store.lines(1200)]
    assert kinds == ["audit-prune"]
    store.close()


def test_once_an_hour(tmp_path: Path) -> None:
    store = _store(tmp_path)
    clock = Clock(NOW - 2 * DAY)
    retention = Retention(Bounds(days=2), clock=clock)
    assert retention.check(store) is True
    assert store.first == 0
    clock.now += EVERY - 1
    assert retention.check(store) is False
    clock.now += 1
    assert retention.check(store) is True
    clock.now = NOW - 30 * DAY  # set back: not until it has come there again
    assert retention.check(store) is True
    clock.now = NOW
    assert retention.check(store) is True
    assert store.first > 0
    store.close()


def test_by_octets(tmp_path: Path) -> None:
    store = _store(tmp_path)
    bound = store.octets // 2
    Retention(Bounds(octets=bound), clock=Clock()).check(store)
    assert 600 < store.first < 2000
    assert store.octets < bound * 1.5
    before = store.first
    Retention(Bounds(octets=store.octets + 1), clock=Clock()).check(store)
    assert store.first == before
    store.close()


def test_by_octets_it_comes_to_its_bound(tmp_path: Path) -> None:
    """A share of the records is not that share of the octets; after some hours it fits, and then it stays."""
    store = _store(tmp_path)
    clock = Clock()
    bound = store.octets // 3
    retention = Retention(Bounds(octets=bound), clock=clock)
    seen = []
    for _ in range(6):
        retention.check(store)
        seen.append(store.first)
        clock.now += EVERY
    assert store.octets <= bound * 1.2
    assert seen[-1] == seen[-2], "it never comes to an end"
    store.close()


def test_what_somebody_has_not_had_yet_stays(tmp_path: Path) -> None:
    store = _store(tmp_path)
    floor = 300
    retention = Retention(Bounds(days=1, octets=1), floor=lambda: floor, clock=Clock(NOW + 10 * DAY))
    retention.check(store)
    assert store.first == 256
    store.close()


def test_both_bounds(tmp_path: Path) -> None:
    store = _store(tmp_path)
    octets = store.octets
    Retention(Bounds(days=3, octets=octets // 2), clock=Clock()).check(store)
    assert store.first > 600
    store.close()


def test_an_empty_store(tmp_path: Path) -> None:
    store = Store(tmp_path, create=True)
    assert Retention(Bounds(days=1, octets=1), clock=Clock()).check(store) is True
    assert (store.first, store.size) == (0, 0)
    store.close()


@pytest.mark.parametrize("bounds", [Bounds(days=1), Bounds(octets=1)])
def test_what_remains_is_proved(tmp_path: Path, bounds: Bounds) -> None:
    notes = signed(tmp_path / "store", every=100)
    store = Store(tmp_path / "store")
    Retention(bounds, clock=Clock(NOW + 10 * DAY)).check(store)
    assert store.first > 0
    store.close()
    report = verified(tmp_path / "store", vkey=signer().vkey, kept=tuple(notes))
    assert not report.findings
