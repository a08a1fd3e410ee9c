"""What the workers count together, across forks: what one adds the others see, and what a dead one added is gone."""

import os
import random
import re
import signal
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from smtpproxy.net import tally as module
from smtpproxy.net.tally import FULL, PROBES, SLOTS, Tallies, Tally, TallyError


@pytest.fixture
def two() -> tuple[Tallies, Tally, Tally]:
    tallies = Tallies(3)
    return tallies, tallies.open(tallies.claim()), tallies.open(tallies.claim())


def _in_child(task: Callable[[], object]) -> int:
    """Have a forked process do it; its exit code, negative for a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads behind
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            task()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _resident(tallies: Tallies) -> int:
    """How many kB of it are there."""
    mappings = Path("/proc/self/smaps").read_text(encoding="utf-8").split("\nVmFlags:")
    wanted = re.compile(rf"/dev/zero.*\nSize: +{len(tallies._memory) // 1024} kB\n(?:.*\n)*?Rss: +(\d+) kB")
    (found,) = [match[1] for mapping in mappings if (match := wanted.search(mapping))]
    return int(found)


# ------------------------------------------------------------------------------------------------------- sessions


def test_sessions_are_counted_over_all_workers(two: tuple[Tallies, Tally, Tally]) -> None:
    tallies, one, other = two
    one.add("192.0.2.1")
    one.add("192.0.2.1")
    other.add("192.0.2.1")
    other.add("2001:db8::1")
    for tally in (one, other):
        assert (tally.total(), tally.of("192.0.2.1"), tally.of("2001:db8::1"), tally.of("192.0.2.2")) == (4, 3, 1, 0)
    assert (tallies.sessions(), tallies.accepted()) == ([2, 2, 0], [2, 2, 0])
    one.remove("192.0.2.1")
    other.remove("2001:db8::1")
    assert (one.total(), one.of("192.0.2.1"), one.of("2001:db8::1")) == (2, 2, 0)
    assert (tallies.sessions(), tallies.accepted()) == ([1, 1, 0], [2, 2, 0])


def test_what_another_process_counts_is_seen() -> None:
    """Made before the fork: the memory, and the key of the hashes."""
    tallies = Tallies(2)
    here, there = tallies.open(tallies.claim()), tallies.claim()

    def worker() -> None:
        tally = tallies.open(there)
        tally.add("192.0.2.1")
        tally.outgoing(b"theirs")
        tally.beat(12.5)

    assert _in_child(worker) == 0
    assert (here.total(), here.of("192.0.2.1"), here.ours(b"theirs")) == (1, 1, True)
    assert (tallies.sessions(), tallies.beats()) == ([0, 1], [0.0, 12.5])


def test_many_processes_at_once_lose_nothing() -> None:
    """No locks, because nobody writes where another does."""
    tallies = Tallies(4)
    regions = [tallies.claim() for _ in range(4)]
    reading, writing = os.pipe()
    pids = []
    for region in regions:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            tally = tallies.open(region)
            os.close(writing)
            os.read(reading, 1)  # all begin together
            for number in range(3000):
                tally.add("192.0.2.1")
                tally.outgoing(b"%d %d" % (region, number))
            for number in range(1000):
                tally.remove("192.0.2.1")
                tally.over(b"%d %d" % (region, number))
            os._exit(0)
        pids.append(pid)
    os.close(writing)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0, 0]
    os.close(reading)
    assert tallies.sessions() == [2000] * 4
    assert tallies.accepted() == [3000] * 4
    watcher = tallies.open(regions[0])
    assert (watcher.of("192.0.2.1"), watcher.total()) == (8000, 8000)
    known = [number for number in range(3000) for region in regions if watcher.ours(b"%d %d" % (region, number))]
    assert Counter(known) == dict.fromkeys(range(1000, 3000), 4)


def test_a_killed_worker_takes_its_counts_along() -> None:
    tallies = Tallies(2)
    here, there = tallies.open(tallies.claim()), tallies.claim()

    def worker() -> None:
        tally = tallies.open(there)
        for number in range(100):
            tally.add("192.0.2.1")
            tally.outgoing(b"%d" % number)
        tally.beat(7.0)
        os.kill(os.getpid(), signal.SIGKILL)

    assert _in_child(worker) == -signal.SIGKILL
    here.add("192.0.2.1")
    assert (here.total(), here.of("192.0.2.1"), here.ours(b"7")) == (101, 101, True)
    tallies.release(there)
    assert (here.total(), here.of("192.0.2.1"), here.ours(b"7")) == (1, 1, False)
    assert (tallies.sessions(), tallies.accepted(), tallies.beats()) == ([1, 0], [1, 0], [0.0, 0.0])
    assert tallies.accepted_ever() == 101


def test_the_next_worker_in_a_region_begins_with_nothing() -> None:
    tallies = Tallies(1)
    before = tallies.open(tallies.claim())
    before.add("192.0.2.1")
    before.outgoing(b"key")
    tallies.release(0)
    after = tallies.open(tallies.claim())
    assert (after.total(), after.of("192.0.2.1"), after.ours(b"key")) == (0, 0, False)
    after.add("192.0.2.1")
    assert (after.of("192.0.2.1"), tallies.accepted(), tallies.accepted_ever()) == (1, [1], 2)


def test_regions_are_given_one_by_one_and_again_when_they_are_taken_back() -> None:
    tallies = Tallies(3)
    assert [tallies.claim() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TallyError, match="there are 3 workers already"):
        tallies.claim()
    tallies.release(1)
    assert tallies.claim() == 1


def test_a_region_of_nobody_cannot_be_opened() -> None:
    tallies = Tallies(2)
    tallies.claim()
    with pytest.raises(ValueError, match="region 1 is nobody's"):
        tallies.open(1)


def test_regions_of_nobody_are_not_read() -> None:
    """They would come into being by that, and take time: a supervisor makes many to spare."""
    tallies = Tallies(64)
    here = tallies.open(tallies.claim())
    tallies.clients[5][here._slot("192.0.2.1")] = 9
    tallies.outgoing[5][here._entry(b"key") % SLOTS] = here._entry(b"key")
    assert (here.of("192.0.2.1"), here.ours(b"key")) == (0, False)
    tallies.live[5] = 1
    assert (here.of("192.0.2.1"), here.ours(b"key")) == (9, True)


def test_regions_to_spare_take_no_memory() -> None:
    """Nor does one that was taken back."""
    tallies = Tallies(61)  # as many as no other test has
    here = tallies.open(tallies.claim())
    here.add("192.0.2.1")
    assert 0 < _resident(tallies) < 200
    busy = tallies.open(tallies.claim())
    for number in range(20_000):
        busy.outgoing(b"%d" % number)
    assert _resident(tallies) > 500
    tallies.release(1)
    assert _resident(tallies) < 200


def test_one_client_too_many_for_its_slot_is_counted_all_the_same() -> None:
    """What others see of it stops at 65535; what this worker has is never counted down to less than it is."""
    tally = Tally.alone()
    slot = tally._slot("192.0.2.1")
    tally._clients[slot] = FULL - 1
    for _ in range(3):
        tally.add("192.0.2.1")
    assert (tally.of("192.0.2.1"), tally.total()) == (FULL, 3)
    tally.remove("192.0.2.1")
    tally.remove("192.0.2.1")
    assert tally.of("192.0.2.1") == FULL
    tally.remove("192.0.2.1")
    assert (tally.of("192.0.2.1"), tally.total()) == (FULL - 1, 0)


def test_a_session_that_never_was_cannot_be_over() -> None:
    tally = Tally.alone()
    with pytest.raises(ValueError, match="invalid value"):
        tally.remove("192.0.2.1")
    assert tally.total() == 0


def test_nobody_else_knows_which_clients_share_a_slot() -> None:
    clients = [f"192.0.2.{number}" for number in range(256)]
    slots = [[Tally.alone()._slot(client) for client in clients] for _ in range(2)]
    assert slots[0] != slots[1]
    assert len(set(slots[0])) > 250


# -------------------------------------------------------------------------------------------------- our own connections


def test_a_connection_of_ours_is_known_to_all_workers_while_it_lasts(two: tuple[Tallies, Tally, Tally]) -> None:
    _, one, other = two
    assert not other.ours(b"key")
    assert one.outgoing(b"key")
    assert (one.ours(b"key"), other.ours(b"key"), other.ours(b"kex")) == (True, True, False)
    other.over(b"key")  # it is not this one's
    assert other.ours(b"key")
    one.over(b"key")
    assert not other.ours(b"key")


def test_marking_it_twice_is_marking_it_once() -> None:
    tally = Tally.alone()
    assert tally.outgoing(b"key")
    assert tally.outgoing(b"key")
    tally.over(b"key")
    assert not tally.ours(b"key")


def test_one_that_was_never_marked_can_be_over() -> None:
    tally = Tally.alone()
    tally.outgoing(b"key")
    tally.over(b"other")
    assert tally.ours(b"key")


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Tally:
    """A tally in which the key says where it would like to be: its first octets as a number, modulo the table."""
    tally = Tally.alone()
    monkeypatch.setattr(tally, "_entry", lambda key: (int.from_bytes(key[:4]) % SLOTS) + (key[4] + 1) * SLOTS)
    return tally


def _key(place: int, number: int = 0) -> bytes:
    return (place % SLOTS).to_bytes(4) + bytes([number])


@pytest.mark.parametrize("place", [0, 1, 100, SLOTS - PROBES, SLOTS - PROBES + 1, SLOTS - 1])
def test_those_that_would_share_a_place_do_not_lose_each_other(crowded: Tally, place: int) -> None:
    """At the end of the table it goes on at its beginning."""
    keys = [_key(place, number) for number in range(PROBES)]
    assert all(crowded.outgoing(key) for key in keys)
    assert all(crowded.ours(key) for key in keys)
    assert not crowded.outgoing(_key(place, PROBES))  # there is no room: it is not kept in mind, and hurts nobody
    assert not crowded.ours(_key(place, PROBES))
    crowded.over(_key(place, PROBES))
    assert all(crowded.ours(key) for key in keys)
    for key in keys[::2]:
        crowded.over(key)
    assert [crowded.ours(key) for key in keys] == [False, True] * (PROBES // 2)
    assert crowded.outgoing(_key(place, PROBES))
    assert crowded.ours(_key(place, PROBES))


def test_one_behind_another_that_is_over_is_still_found(crowded: Tally) -> None:
    crowded.outgoing(_key(10, 1))
    crowded.outgoing(_key(10, 2))
    crowded.outgoing(_key(10, 3))
    crowded.over(_key(10, 2))
    assert crowded.ours(_key(10, 3))
    assert crowded.outgoing(_key(10, 3))  # it is there already, behind a place that is free
    crowded.over(_key(10, 3))
    assert not crowded.ours(_key(10, 3))


def test_places_are_all_free_again_when_nothing_is_left(crowded: Tally) -> None:
    """Else a table would get slower with every connection there ever was."""
    random.seed(4)
    keys = [_key(random.choice([5, 6, 9, SLOTS - 2]), number) for number in range(40)]
    for _ in range(20):
        random.shuffle(keys)
        for key in keys:
            crowded.outgoing(key)
        random.shuffle(keys)
        for key in keys:
            crowded.over(key)
            assert not crowded.ours(key)
    assert not any(crowded._outgoing)


def test_a_busy_table_stays_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a set, in a table so small that it is half full all the time."""
    monkeypatch.setattr(module, "SLOTS", 128)
    monkeypatch.setattr(module, "_OUTGOING", 128 * 8)
    monkeypatch.setattr(module, "_CLIENTS", 65_536 - 1024)
    monkeypatch.setattr(module, "_REGION", 65_536)
    tally = Tally.alone()
    random.seed(2525)
    model: set[bytes] = set()
    for _ in range(20_000):
        key = random.randbytes(1)
        if key in model:
            model.discard(key)
            tally.over(key)
        elif len(model) < 64:
            model.add(key)
            assert tally.outgoing(key)
        other = random.randbytes(1)
        assert tally.ours(other) == (other in model)


@pytest.mark.parametrize("digest", [bytes(8), b"\1" + bytes(7)])
def test_no_hash_is_taken_for_an_empty_place(digest: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hash:
        def __init__(self, *_: object, **__: object) -> None: ...

        def digest(self) -> bytes:
            return digest

    monkeypatch.setattr(module, "blake2b", Hash)
    tally = Tally.alone()
    assert not tally.ours(b"key")
    tally.outgoing(b"key")
    assert tally.ours(b"key")
    tally.over(b"key")
    assert not tally.ours(b"key")
