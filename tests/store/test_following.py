"""Who follows the store for sinks: nothing left out, nobody waiting, and what was passed over is said."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from smtpproxy.store.following import MOST_TOLD, Follower, Followers
from smtpproxy.store.pruning import prune
from smtpproxy.store.sinks import Batch, Cursor, Noting, Pace, Policy, Positioned, Resting, SinkDownError, Skip
from smtpproxy.store.store import Store
from tests.store.filling import Writer, lines
from tests.store.signing import checkpoint, signer

DEADLINE = 20.0
FAST = Pace(soon=0.001, late=0.002, idle=0.01, records=50, octets=100_000)


class Fake:
    """A sink that keeps what it is sent, and is down when it is told to be."""

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.got: list[tuple[int, bytes]] = []
        self.batches: list[int] = []
        self.down = ""
        self.refuses = 0
        self.failures = self.closed = 0
        self.changed = threading.Condition()

    def send(self, batch: Batch) -> int:
        with self.changed:
            self.changed.notify_all()
            if self.down:
                self.failures += 1
                raise SinkDownError(self.down)
            self.got += batch
            self.batches.append(len(batch))
            return self.refuses

    def close(self) -> None:
        with self.changed:
            self.closed += 1
            self.changed.notify_all()

    def wait(self, what: Callable[[], object]) -> None:
        with self.changed:
            assert self.changed.wait_for(what, DEADLINE)

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.got]


def until(what: Callable[[], object]) -> None:
    """Look again and again, where nobody tells."""
    end, pause = time.monotonic() + DEADLINE, threading.Event()
    while not what():
        assert time.monotonic() < end
        pause.wait(0.002)


class Site:
    """A store, and those who follow it."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory, create=True)
        self.writer = Writer()
        self.told: list[tuple[str, str]] = []
        self.followers: Followers | None = None

    def grow(self, mails: int = 10) -> None:
        self.store.append(list(lines(mails, writer=self.writer)))

    def follow(
        self, *sinks: Fake, policy: Policy | None = None, pace: Pace = FAST, **more: Callable[[], float]
    ) -> None:
        pairs = [(sink, policy or Policy(history=True)) for sink in sinks]
        self.followers = Followers(
            self.store, pairs, lambda name, why: self.told.append((name, why)), pace=pace, **more
        )

    def write(self) -> Followers:
        assert self.followers is not None
        self.followers.write(at_once=True)
        return self.followers

    def stop(self) -> list[str]:
        followers, self.followers = self.followers, None
        assert followers is not None
        return followers.stop()

    def cursor(self, name: str = "fake") -> tuple[int, int, str]:
        query = "SELECT next, skipped, detail FROM sink WHERE name = ?"
        found: tuple[int, int, str] = self.store.connection.execute(query, (name,)).fetchone()
        return found

    def skips(self) -> list[dict[str, object]]:
        found = [msgspec.json.decode(line) for _, line in self.store.lines(0) if b'"kind":"audit-skipped"' in line]
        return [{key: one[key] for key in ("sink", "first", "until", "records", "why")} for one in found]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    if made.followers is not None:
        made.followers.stop()
    made.store.close()


# ---------------------------------------------------------------------------------------- what is sent


def test_all_in_order_and_once(site: Site) -> None:
    site.grow(40)
    sink = Fake()
    site.follow(sink)
    sink.wait(lambda: len(sink.got) == site.store.size)
    site.grow(3)
    site.write()
    sink.wait(lambda: len(sink.got) == site.store.size)
    assert site.stop() == []
    assert sink.got == list(site.store.lines(0))
    assert max(sink.batches) == FAST.records
    assert site.cursor() == (site.store.size, 0, "")
    assert sink.closed == 1


def test_a_batch_is_no_longer_than_that(site: Site) -> None:
    """A line that alone is longer goes alone."""
    site.grow(5)
    sink = Fake()
    site.follow(sink, pace=FAST._replace(octets=1))
    sink.wait(lambda: len(sink.got) == site.store.size)
    assert set(sink.batches) == {1}


def test_without_history_it_begins_with_what_comes(site: Site) -> None:
    site.grow()
    before = site.store.size
    sink = Fake()
    site.follow(sink, policy=Policy())
    assert site.cursor() == (before, 0, "")
    site.grow()
    site.write()
    sink.wait(lambda: len(sink.got) == site.store.size - before)
    assert sink.numbers[0] == before


def test_it_goes_on_where_it_was(site: Site) -> None:
    """After a restart, also of one that had nothing to send."""
    site.grow()
    sink = Fake()
    site.follow(sink)
    sink.wait(lambda: len(sink.got) == site.store.size)
    site.stop()
    site.grow()
    again = Fake()
    site.follow(again, policy=Policy())  # history or not: it has a place
    again.wait(lambda: len(again.got) == site.store.size - len(sink.got))
    assert sink.numbers + again.numbers == list(range(site.store.size))


def test_what_was_not_written_down_is_sent_twice(site: Site) -> None:
    """A crash: at least once, and nothing left out."""
    site.grow()
    sink = Fake()
    site.follow(sink)
    sink.wait(lambda: len(sink.got) == site.store.size)
    assert site.cursor() == (0, 0, "")  # nobody came by: so much may come again
    again = Fake()
    site.stop()
    with site.store.changing() as connection:
        connection.execute("UPDATE sink SET next = 0")
    site.follow(again)
    again.wait(lambda: len(again.got) == site.store.size)
    assert again.numbers == sink.numbers


def test_a_store_that_is_an_older_copy(site: Site) -> None:
    """It goes on from the end of what there is."""
    site.grow()
    with site.store.changing() as connection:
        connection.execute("INSERT INTO sink (name, next, skipped, detail) VALUES ('fake', 1000000, 0, '')")
    sink = Fake()
    site.follow(sink)
    before = site.store.size
    site.grow()
    site.write()
    sink.wait(lambda: len(sink.got) == site.store.size - before)
    assert sink.numbers[0] == before


# ---------------------------------------------------------------------------------------- when it is down


def test_it_is_tried_again_and_the_same_is_sent(site: Site) -> None:
    site.grow(20)
    sink = Fake()
    sink.down = "nobody is there"
    site.follow(sink)
    sink.wait(lambda: sink.failures >= 3)
    (state,) = site.write().states()
    assert (state.failing, state.why, state.next, state.lag) == (True, "nobody is there", 0, site.store.size)
    assert site.told == [("fake", "nobody is there")]
    sink.down = ""
    sink.wait(lambda: len(sink.got) == site.store.size)
    site.stop()
    assert sink.got == list(site.store.lines(0))
    assert sink.closed > 3  # each failure let go of the connection


def test_it_is_told_once_that_it_is_there_again(site: Site) -> None:
    site.grow()
    sink = Fake()
    sink.down = "x"
    site.follow(sink)
    sink.wait(lambda: sink.failures)
    follower = site.write()._followers[0]
    sink.down = ""
    sink.wait(lambda: sink.got)
    until(lambda: not follower.why)
    site.write()
    site.write()
    assert site.told == [("fake", "x"), ("fake", "")]
    site.stop()


def test_mistakes_of_libraries_do_not_end_it(site: Site) -> None:
    class Odd(Fake):
        def send(self, batch: Batch) -> int:
            if self.failures < 2:
                self.failures += 1
                raise ZeroDivisionError("of a library")
            return super().send(batch)

    site.grow()
    sink = Odd()
    site.follow(sink)
    sink.wait(lambda: len(sink.got) == site.store.size)
    assert sink.failures == 2


def test_keep_keeps_it_from_being_pruned(site: Site) -> None:
    site.grow(100)
    sink = Fake()
    sink.down = "x"
    site.follow(sink)
    sink.wait(lambda: sink.failures)
    followers = site.write()
    assert followers.floor() == 0
    prune(site.store, 4e9, floor=followers.floor())
    assert site.store.first == 0
    sink.down = ""
    sink.wait(lambda: len(sink.got) >= site.store.size)
    site.stop()
    assert site.cursor()[1] == 0


def test_skip_passes_over_what_waits_and_says_so(site: Site) -> None:
    """Once it is there again; the numbers are right, and what comes next is sent."""
    clock = [0.0]
    site.grow()
    waited = site.store.size
    sink = Fake()
    sink.down = "x"
    site.follow(sink, policy=Policy("skip", 60.0, history=True), clock=lambda: clock[0])
    sink.wait(lambda: sink.failures >= 2)
    assert site.write().states()[0].lag == waited
    assert site.followers is not None
    assert site.followers.floor() is None
    clock[0] = 61.0
    follower = site.followers._followers[0]
    until(lambda: follower.cursor.next == waited)
    assert follower.cursor == Cursor(waited, waited, Skip(0, waited, waited, "down"))
    assert site.skips() == []  # it is not there yet
    site.write()
    assert site.cursor()[:2] == (waited, waited)
    sink.down = ""
    site.grow()
    site.write()
    sink.wait(lambda: len(sink.got) == site.store.size - waited)
    site.stop()
    assert site.skips() == [{"sink": "fake", "first": 0, "until": waited, "records": waited, "why": "down"}]
    assert sink.numbers[0] == waited


def test_what_was_passed_over_is_remembered_over_a_restart(site: Site) -> None:
    site.grow()
    waited = site.store.size
    with site.store.changing() as connection:
        passed = msgspec.json.encode(Skip(0, waited, waited, "down")).decode()
        connection.execute("INSERT INTO sink VALUES ('fake', ?, ?, ?)", (waited, waited, passed))
    sink = Fake()
    site.follow(sink)
    site.grow()
    site.write()
    sink.wait(lambda: sink.got)
    site.stop()
    assert [skip["records"] for skip in site.skips()] == [waited]
    assert site.cursor()[1:] == (waited, "")


def test_what_was_pruned_before_it_could_have_it(site: Site) -> None:
    site.grow(100)
    prune(site.store, 4e9)
    first = site.store.first
    assert first > 0
    with site.store.changing() as connection:
        connection.execute("INSERT INTO sink (name, next, skipped, detail) VALUES ('fake', 3, 0, '')")
    sink = Fake()
    site.follow(sink)
    sink.wait(lambda: sink.got)
    site.stop()
    assert sink.numbers[0] == first
    assert site.skips()[0] == {"sink": "fake", "first": 3, "until": first, "records": first - 3, "why": "pruned"}


def test_what_the_other_side_refused(site: Site) -> None:
    site.grow(2)
    sink = Fake()
    sink.refuses = 3
    site.follow(sink, pace=FAST._replace(records=10_000))
    sink.wait(lambda: sink.got)
    sent = len(sink.got)
    site.stop()
    assert site.skips() == [{"sink": "fake", "first": 0, "until": sent, "records": 3, "why": "refused"}]
    assert site.cursor()[1] == 3


def test_what_is_to_be_said_is_bounded(site: Site, tmp_path: Path) -> None:
    follower = Follower(tmp_path, Fake(), Policy(), Cursor(0), FAST)
    for number in range(100):
        follower._say(Skip(number, number + 1, 1, "refused"))
    assert len(follower.told) == MOST_TOLD
    assert sum(skip.records for skip in follower.told) == 100
    assert follower.told[-1] == Skip(MOST_TOLD - 1, 100, 100 - MOST_TOLD + 1, "refused")


def test_two_skips_are_one() -> None:
    assert Skip(5, 9, 4, "down").and_then(Skip(9, 12, 3, "pruned")) == Skip(5, 12, 7, "down, pruned")
    assert Skip(5, 9, 4, "down").and_then(Skip(1, 3, 2, "down")) == Skip(1, 9, 6, "down")


# ----------------------------------------------------------------------------------------------- sinks that can do more


class Knowing(Fake):
    """Its other side knows how far it is."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def position(self) -> int:
        if self.down:
            raise SinkDownError(self.down)
        return self.at


def test_one_that_knows_is_asked(site: Site) -> None:
    site.grow()
    sink = Knowing(7)
    assert isinstance(sink, Positioned)
    site.follow(sink, policy=Policy())
    sink.wait(lambda: len(sink.got) == site.store.size - 7)
    assert sink.numbers[0] == 7


class Keeping(Fake):
    """Keeps checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[tuple[int, str]] = []

    def note(self, size: int, note: str) -> None:
        with self.changed:
            self.notes.append((size, note))
            self.changed.notify_all()


class Quiet(Fake):
    """Has something to do at checkpoints."""

    rests = 0

    def rest(self) -> None:
        with self.changed:
            self.rests += 1
            self.changed.notify_all()


def test_checkpoints_go_along(site: Site) -> None:
    """Each once, and none of what it has not had."""
    site.grow()
    first = checkpoint(site.store, signer())
    sink, quiet = Keeping(), Quiet("quiet")
    assert isinstance(sink, Noting)
    assert isinstance(quiet, Resting)
    site.follow(sink, quiet)
    sink.wait(lambda: sink.notes)
    assert sink.notes == [(site.store.size, first)]
    quiet.wait(lambda: quiet.rests)
    site.grow()
    second = checkpoint(site.store, signer())
    site.write()
    sink.wait(lambda: len(sink.notes) == 2)
    quiet.wait(lambda: quiet.rests == 2)
    site.stop()
    assert sink.notes[1][1] == second
    assert quiet.rests == 2


# ---------------------------------------------------------------------------------------- ends


def test_one_that_hangs_is_left_behind(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does after that changes nothing."""
    monkeypatch.setattr("smtpproxy.store.following.STOP", 0.05)
    entered, go = threading.Event(), threading.Event()

    class Hanging(Fake):
        def send(self, batch: Batch) -> int:
            entered.set()
            go.wait(DEADLINE)
            return super().send(batch)

    site.grow()
    sink = Hanging()
    site.follow(sink)
    assert entered.wait(DEADLINE)
    assert site.stop() == ["fake"]
    before = site.cursor()
    go.set()
    sink.wait(lambda: sink.got)
    assert site.cursor() == before == (0, 0, "")


def test_a_store_that_can_t_be_written_now(site: Site, tmp_path: Path) -> None:
    """What was to be said is said with the next call that can."""
    site.grow(2)
    sink = Fake()
    sink.refuses = 1
    site.follow(sink, pace=FAST._replace(records=10_000))
    sink.wait(lambda: sink.got)
    other = Store(tmp_path)
    other.connection.execute("BEGIN IMMEDIATE")
    site.store.connection.execute("PRAGMA busy_timeout = 0")
    follower = site.followers._followers[0] if site.followers else None
    assert follower is not None
    until(lambda: follower.told)
    with pytest.raises(Exception, match="locked"):
        site.write()
    other.connection.execute("ROLLBACK")
    other.close()
    site.stop()
    assert [skip["why"] for skip in site.skips()] == ["refused"]
