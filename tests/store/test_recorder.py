"""The recorder: from the journal to the store exactly once, whoever is killed when, and what it signs."""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.audit.appending import WriteLock
from smtpproxy.audit.journal import Journal, State, segment_path, segments
from smtpproxy.audit.notes import Verifier, open_note, parse_checkpoint
from smtpproxy.store import recorder as module
from smtpproxy.store import store as store_module
from smtpproxy.store.errors import StoreError
from smtpproxy.store.recorder import Recorder, Terms
from smtpproxy.store.store import DATABASE, Store
from tests.audit.forks import ended, fork
from tests.store.filling import Writer, lines
from tests.store.signing import ORIGIN, signer, verified

NEVER = Terms(ORIGIN, records=1 << 60, seconds=float("inf"))
CUT = b'{"v":1,"at":"2026-11-16T10:00:00Z","kind":"exch'


class Clock:
    """One that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A directory with a journal that is written here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.journal_directory = directory / "journal"
        self.journal_directory.mkdir(parents=True)
        self.clock = Clock()
        self.opened: list[Recorder] = []
        self.journal = Journal(self.journal_directory)

    def recorder(self, terms: Terms = NEVER) -> Recorder:
        made = Recorder(self.directory, terms, clock=self.clock)
        self.opened.append(made)
        return made

    def write(self, *found: bytes) -> None:
        self.journal.add(b"".join(line + b"\n" for line in found))
        self.journal.flush()

    def taken(self) -> list[bytes]:
        """What is in the store."""
        return _lines(self.directory)

    @property
    def segments(self) -> list[int]:
        return segments(self.journal_directory)

    def close(self) -> None:
        for recorder in self.opened:
            with contextlib.suppress(OSError, ValueError, sqlite3.Error):
                recorder.close()
        self.journal.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "store")
    yield bench
    bench.close()


def _lines(directory: Path) -> list[bytes]:
    store = Store(directory)
    found = list(store.lines(0))
    store.close()
    assert [number for number, _ in found] == list(range(len(found)))
    return [line for _, line in found]


def _all(recorder: Recorder) -> int:
    """Steps until there is nothing."""
    return sum(1 for _ in iter(recorder.step, False))


def _numbered(count: int, start: int = 0) -> list[bytes]:
    return [b'{"n":%d}' % n for n in range(start, start + count)]


# --------------------------------------------------------------------------------------------------- taking over


def test_lines_come_over_in_order(bench: Bench) -> None:
    recorder = bench.recorder()
    assert recorder.step() is False
    bench.write(*_numbered(3))
    assert recorder.step() is True
    assert recorder.step() is False
    bench.write(*_numbered(2, 3))
    _all(recorder)
    assert bench.taken() == _numbered(5)
    assert recorder.progress.waiting == 0


def test_without_a_journal_there_is_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    recorder = Recorder(tmp_path, NEVER)
    assert recorder.step() is False
    journal = Journal(tmp_path / "journal")
    journal.add(b"{}\n")
    journal.flush()
    assert recorder.step() is True
    recorder.close()
    journal.close()
    assert _lines(tmp_path) == [b"{}"]


def test_half_a_line_is_waited_for(bench: Bench) -> None:
    recorder = bench.recorder()
    descriptor = os.open(segment_path(bench.journal_directory, 1), os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b'{"n":0}\n{"n"')
    assert recorder.step() is True
    assert recorder.step() is False
    assert bench.taken() == [b'{"n":0}']
    os.write(descriptor, b":1}\n")
    assert recorder.step() is True
    assert bench.taken() == _numbered(2)
    os.close(descriptor)


def test_a_step_takes_no_more_than_its_bound(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP", 100)
    bench.write(*_numbered(100))
    recorder = bench.recorder()
    recorder.step()
    assert 5 < recorder.store.size < 20
    _all(recorder)
    assert bench.taken() == _numbered(100)


def test_a_line_longer_than_a_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP", 10)
    long = b'{"x":"%b"}' % (b"x" * 5000)
    bench.write(b'{"n":0}', long, b'{"n":1}')
    recorder = bench.recorder()
    _all(recorder)
    assert bench.taken() == [b'{"n":0}', long, b'{"n":1}']


def test_what_never_ends_is_not_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that gives back something else than was written must not stop everything."""
    monkeypatch.setattr(module, "STEP", 10)
    monkeypatch.setattr(module, "LONGEST", 1000)
    with segment_path(bench.journal_directory, 1).open("ab") as file:
        file.write(b"x" * 10_000 + b"\n")
    bench.write(b'{"n":0}')
    recorder = bench.recorder()
    _all(recorder)
    *cut, last = bench.taken()
    assert last == b'{"n":0}'
    assert sum(json.loads(line)["octets"] for line in cut) == 10_000
    assert {json.loads(line)["kind"] for line in cut} == {"audit-cut"}


def test_sessions_are_indexed(bench: Bench) -> None:
    bench.write(*lines(50))
    recorder = bench.recorder()
    _all(recorder)
    mails = recorder.store.connection.execute("SELECT count(*) FROM mail WHERE outcome = 'accepted'").fetchone()[0]
    assert mails == sum(b'"kind":"tx-commit"' in line for line in bench.taken())
    assert mails > 10


# ------------------------------------------------------------------------------------------------ lines that are none


def _cut(line: bytes) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(line)
    assert said["kind"] == "audit-cut"
    return said


def test_a_line_that_was_cut_off_is_told_of(bench: Bench) -> None:
    recorder = bench.recorder()
    bench.write(b'{"n":0}', CUT, b'{"n":1}')
    _all(recorder)
    before, cut, behind = bench.taken()
    assert (before, behind) == (b'{"n":0}', b'{"n":1}')
    said = _cut(cut)
    assert (said["octets"], said["sha256"], said["session"]) == (len(CUT), sha256(CUT).hexdigest(), "")
    assert CUT not in cut


@pytest.mark.parametrize(
    "line",
    [b"\x00" * 50, b"5", b"[]", b"x" * 100_000, b'{"kind":"\xff"}', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000,
     CUT[:-3] + b"\xc3"],
    ids=["zeros", "a number", "a list", "text", "no text", "octets", "deep", "deeper", "half a letter"],
)  # fmt: skip
def test_whatever_stands_there_the_next_line_is_taken(bench: Bench, line: bytes) -> None:
    recorder = bench.recorder()
    bench.write(line, b'{"n":1}')
    _all(recorder)
    cut, behind = bench.taken()
    assert _cut(cut)["octets"] == len(line)
    assert behind == b'{"n":1}'


@pytest.mark.parametrize(
    "line", [b'{"v":2,"kind":["new"]}', b'{"v":1,"tx":99999999999999999999}', b'{"at":"yesterday","session":{"a":1}}']
)
def test_a_line_of_another_version_is_kept(bench: Bench, line: bytes) -> None:
    recorder = bench.recorder()
    bench.write(line)
    _all(recorder)
    assert bench.taken() == [line]


def test_empty_lines_are_none(bench: Bench) -> None:
    """The end of a line that was cut off before its first octet."""
    recorder = bench.recorder()
    bench.write(b"", b"")
    _all(recorder)
    assert bench.taken() == []
    bench.write(b"", b'{"n":0}', b"", b'{"n":1}')
    _all(recorder)
    assert bench.taken() == _numbered(2)
    bench.write(b"")
    bench.journal.turn()
    _all(recorder)
    assert bench.segments == [2]


def test_a_line_still_being_written_is_no_cut_one(bench: Bench) -> None:
    """In the segment that is written to; in one that is left nobody ends it."""
    recorder = bench.recorder()
    bench.write(b'{"n":0}')
    with segment_path(bench.journal_directory, 1).open("ab") as file:
        file.write(CUT)
    _all(recorder)
    assert bench.taken() == [b'{"n":0}']
    bench.journal.turn()
    bench.write(b'{"n":1}')
    _all(recorder)
    before, cut, behind = bench.taken()
    assert (before, behind) == (b'{"n":0}', b'{"n":1}')
    assert _cut(cut)["octets"] == len(CUT)
    assert bench.segments == [2]


# ------------------------------------------------------------------------------------------------------- segments


def test_segments_that_were_taken_over_go(bench: Bench) -> None:
    recorder = bench.recorder()
    for number in range(4):
        bench.write(*_numbered(2, 2 * number))
        bench.journal.turn()
    assert bench.segments == [1, 2, 3, 4, 5]
    _all(recorder)
    assert bench.segments == [5]
    assert recorder.store.position == "5:0"
    bench.write(*_numbered(2, 8))
    _all(recorder)
    assert bench.taken() == _numbered(10)


def test_a_segment_stays_until_the_disk_has_what_was_in_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = bench.recorder()
    bench.write(*_numbered(3))
    bench.journal.turn()
    order: list[str] = []
    settle, unlink = Store.settle, Path.unlink

    def settled(store: Store) -> None:
        assert store.position == "2:0"
        assert bench.segments == [1, 2]
        order.append("settle")
        settle(store)

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        order.append(path.name)
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "settle", lambda store: (_ for _ in ()).throw(StoreError("no room")))
        for _ in range(2):
            with pytest.raises(StoreError):
                _all(recorder)
        assert bench.segments == [1, 2]
        patch.setattr(Store, "settle", settled)
        patch.setattr(Path, "unlink", unlinked)
        _all(recorder)
    assert order == ["settle", "00000001.jsonl"]
    assert bench.segments == [2]
    assert bench.taken() == _numbered(3)


def test_segments_left_by_one_that_was_killed_go_with_the_next(bench: Bench) -> None:
    recorder = bench.recorder()
    bench.write(*_numbered(3))
    bench.journal.turn()
    kept = segment_path(bench.journal_directory, 1).read_bytes()
    _all(recorder)
    recorder.close()
    segment_path(bench.journal_directory, 1).write_bytes(kept)  # killed before it was unlinked
    again = bench.recorder()
    bench.write(*_numbered(1, 3))
    _all(again)
    assert bench.segments == [2]
    assert bench.taken() == _numbered(4)


# -------------------------------------------------------------------------------------------- exactly once, killed


def _expected(found: list[bytes]) -> list[tuple[str, object]]:
    return [("cut", sha256(line).hexdigest()) if line == CUT else ("line", line) for line in found]


def _seen(directory: Path) -> list[tuple[str, object]]:
    found = _lines(directory)
    return [("cut", json.loads(line)["sha256"]) if b"audit-cut" in line else ("line", line) for line in found]


def _record_until(directory: Path, deadly: Callable[[], bool], signed: bool) -> Callable[[], None]:
    """A recorder that asks before each statement to its database, and before each file that goes, whether to die."""

    def die(*_: object) -> None:
        if deadly():
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        connect, unlink = sqlite3.connect, Path.unlink

        def connected(*args: Any, **more: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*args, **more)
            connection.set_trace_callback(die)
            return connection

        def unlinked(path: Path, missing_ok: bool = False) -> None:
            die()
            unlink(path, missing_ok=missing_ok)

        sqlite3.connect = connected  # type: ignore[assignment]
        Path.unlink = unlinked  # type: ignore[assignment]
        module.STEP = 700  # type: ignore[misc]
        terms = Terms(ORIGIN, signer(), records=10, seconds=1e9) if signed else NEVER
        recorder = Recorder(directory, terms)
        _all(recorder)
        if signed:
            recorder.checkpoint()
        recorder.close()

    return work


def _journal(directory: Path) -> list[bytes]:
    """Some segments, with a cut line and empty ones; all there is in it."""
    (directory / "journal").mkdir(parents=True)
    found = [*itertools.islice(lines(50, writer=Writer()), 24)]
    found[7:7] = [CUT]
    journal = Journal(directory / "journal", segment=3000)
    for line in found:
        journal.add(line + b"\n\n")
        journal.flush()
    journal.close()
    assert len(segments(directory / "journal")) > 2
    return found


def test_killed_at_any_point_nothing_is_lost_or_there_twice(tmp_path: Path) -> None:
    """Before each statement there is, and each file that goes: then another one goes on."""
    original = tmp_path / "original"
    found = _journal(original)
    killed = 0
    for point in itertools.count(1, 3):
        directory = tmp_path / "copy"
        shutil.copytree(original, directory)
        at = itertools.count(1)
        ending = ended(fork(_record_until(directory, lambda at=at, point=point: next(at) == point, True)))  # type: ignore[misc]
        if ending == -signal.SIGKILL:
            killed += 1
            assert ended(fork(_record_until(directory, lambda: False, True))) == 0
        assert _seen(directory) == _expected(found), f"killed at {point}"
        assert not verified(directory, vkey=signer().vkey).findings
        assert len(segments(directory / "journal")) == 1
        shutil.rmtree(directory)
        if ending == 0:
            break
    assert killed > 20


def test_killed_again_and_again(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    found = _journal(directory)
    chance = random.Random(11)
    killed = 0
    while True:
        point = chance.randrange(20, 120)
        at = itertools.count(1)
        if ended(fork(_record_until(directory, lambda at=at, point=point: next(at) == point, False))) == 0:  # type: ignore[misc]
            break
        killed += 1
        seen = _seen(directory) if (directory / DATABASE).exists() else []
        assert seen == _expected(found)[: len(seen)]
        assert killed < 100
    assert _seen(directory) == _expected(found)


def test_while_others_write_and_are_killed(tmp_path: Path) -> None:
    """Writers and recorder at once, each of them killed now and then; what was flushed is there, once."""
    directory = tmp_path / "store"
    (directory / "journal").mkdir(parents=True)
    holder = Journal(directory / "journal", segment=5000)

    def write(name: int) -> None:
        fate = random.Random(name)
        real = os.write
        journal = Journal(directory / "journal", segment=5000)

        def deadly(file: int, octets: bytes) -> int:
            if file == journal.descriptor and fate.random() < 0.01:
                real(file, octets[: len(octets) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(file, octets)

        os.write = deadly  # type: ignore[assignment]
        for n in range(150):
            journal.add(b'{"v":1,"session":"%d-1","seq":%d,"x":"%b"}\n' % (name, n + 1, b"x" * 30))
            while True:
                with contextlib.suppress(BlockingIOError):
                    journal.flush()
                    break

    chance = random.Random(5)
    writers = [fork(lambda name=name: write(name)) for name in range(6)]  # type: ignore[misc]
    for _ in range(6):
        point = chance.randrange(30, 150)
        at = itertools.count(1)
        ended(fork(_record_until(directory, lambda at=at, point=point: next(at) == point, False)))  # type: ignore[misc]
    endings = [ended(pid) for pid in writers]
    holder.add(b'{"v":1,"last":1}\n')
    holder.flush()
    assert ended(fork(_record_until(directory, lambda: False, False))) == 0
    holder.close()
    found: dict[str, list[int]] = {}
    cut = 0
    for line in _lines(directory):
        said = json.loads(line)
        cut += said.get("kind") == "audit-cut"
        if "seq" in said:
            found.setdefault(said["session"], []).append(said["seq"])
    assert cut <= sum(ending != 0 for ending in endings)
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in found.values())
    assert [len(found[f"{name}-1"]) for name, ending in enumerate(endings) if ending == 0] == [150] * endings.count(0)
    assert _lines(directory)[-1] == b'{"v":1,"last":1}'


# ------------------------------------------------------------------------------------ what a power failure leaves


def _powered_down(bench: Bench) -> None:
    """All processes are gone."""
    for recorder in bench.opened:
        recorder.close()
    bench.opened.clear()
    bench.journal.close()


def test_a_journal_that_lost_what_the_store_has(bench: Bench) -> None:
    """The disk has the store's last transactions, and not the end of the segment: what comes then is not left out."""
    bench.write(*_numbered(100))
    _all(bench.recorder())
    _powered_down(bench)
    os.truncate(segment_path(bench.journal_directory, 1), 203)
    bench.journal = Journal(bench.journal_directory)
    bench.write(*_numbered(3, 100))
    _all(bench.recorder())
    assert bench.taken() == _numbered(103)


def test_a_store_that_lost_what_the_journal_has(bench: Bench) -> None:
    bench.write(*_numbered(5))
    _all(bench.recorder())
    _powered_down(bench)
    older = bench.directory / "older"
    shutil.copy(bench.directory / DATABASE, older)
    bench.journal = Journal(bench.journal_directory)
    assert bench.segments == [1, 2]
    bench.write(*_numbered(5, 5))
    recorder = bench.recorder()
    recorder.step()
    recorder.step()
    _powered_down(bench)
    shutil.copy(older, bench.directory / DATABASE)
    bench.journal = Journal(bench.journal_directory)
    bench.write(*_numbered(1, 10))
    _all(bench.recorder())
    assert bench.taken()[-6:] == _numbered(6, 5)


def test_a_store_without_its_journal(bench: Bench) -> None:
    """Put back from a copy of `audit.db`: the journal is a new one, and begins beyond all that was there."""
    for number in range(3):
        bench.write(*_numbered(2, 2 * number))
        bench.journal.turn()
    _all(bench.recorder())
    assert bench.recorder().store.position == "4:0"
    _powered_down(bench)
    shutil.rmtree(bench.journal_directory)
    bench.journal_directory.mkdir()
    recorder = bench.recorder()
    assert recorder.step() is False
    bench.journal = Journal(bench.journal_directory)
    bench.write(*_numbered(2, 6))
    _all(recorder)
    bench.journal.turn()
    bench.write(*_numbered(2, 8))
    _all(recorder)
    assert bench.taken() == _numbered(10)
    assert bench.segments[0] > 1_000_000_000


def test_a_new_journal_is_not_taken_for_the_one_that_was_read(bench: Bench) -> None:
    """Its first segment is longer than the store had read of the one before, which was the first, too."""
    bench.write(*_numbered(3))
    _all(bench.recorder())
    assert bench.recorder().store.position.startswith("1:")
    _powered_down(bench)
    shutil.rmtree(bench.journal_directory)
    bench.journal_directory.mkdir()
    bench.journal = Journal(bench.journal_directory)
    bench.write(*_numbered(20, 3))
    recorder = bench.recorder()
    _all(recorder)
    assert bench.taken() == _numbered(23)
    assert recorder.progress.waiting == 0


def test_an_older_store_with_a_newer_journal(bench: Bench) -> None:
    bench.write(*_numbered(2))
    recorder = bench.recorder()
    _all(recorder)
    recorder.close()
    bench.opened.clear()
    for number in range(2):
        bench.journal.turn()
        bench.write(*_numbered(2, 2 + 2 * number))
    segment_path(bench.journal_directory, 1).unlink()
    again = bench.recorder()
    assert again.step() is True
    _all(again)
    assert bench.taken() == _numbered(6)
    assert bench.segments == [3]


def test_a_segments_name_is_on_the_disk_before_it_is_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power failure might take the file away and leave how far it was read: a new one of that name would be
    taken for read."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    bench.write(*_numbered(2))
    recorder = bench.recorder()
    recorder.step()
    assert synced == [str(bench.journal_directory)]
    bench.journal.turn()
    _all(recorder)
    bench.write(*_numbered(2, 2))
    _all(recorder)
    assert synced == [str(bench.journal_directory)] * 2


# ----------------------------------------------------------------------------------------------------- checkpoints


def _checkpoints(recorder: Recorder) -> list[tuple[int, float, bytes, str]]:
    return recorder.store.connection.execute("SELECT size, at, root, note FROM checkpoint ORDER BY size").fetchall()


def test_a_checkpoint_after_so_many_records(bench: Bench) -> None:
    """And at the beginning: a store that nothing was signed of can't be told from one whose checkpoints were taken."""
    recorder = bench.recorder(Terms(ORIGIN, signer(), records=10, seconds=1e9))
    assert recorder.progress.checkpoint == bench.clock.now
    bench.write(b'{"n":-1}')
    _all(recorder)
    assert [row[0] for row in _checkpoints(recorder)] == [1]
    bench.write(*_numbered(9))
    _all(recorder)
    assert [row[0] for row in _checkpoints(recorder)] == [1]
    bench.write(*_numbered(1, 9))
    _all(recorder)
    _, (size, at, root, note) = _checkpoints(recorder)
    assert (size, at) == (11, bench.clock.now)
    assert parse_checkpoint(open_note(note, [Verifier(signer().vkey)])) == (ORIGIN, 11, root)
    assert root == recorder.store.frontier.root()
    assert (recorder.progress.signed, recorder.progress.checkpoints) == (11, 2)


def test_a_checkpoint_after_so_long_and_only_if_there_is_something(bench: Bench) -> None:
    recorder = bench.recorder(Terms(ORIGIN, signer(), records=1000, seconds=30.0))
    bench.clock.now += 100
    _all(recorder)
    assert _checkpoints(recorder) == []
    bench.write(b'{"n":0}')
    recorder.step()  # the last one was long ago
    assert [row[0] for row in _checkpoints(recorder)] == [1]
    bench.write(b'{"n":1}')
    bench.clock.now += 29.9
    _all(recorder)
    assert [row[0] for row in _checkpoints(recorder)] == [1]
    bench.clock.now += 0.2
    recorder.step()
    assert [row[0] for row in _checkpoints(recorder)] == [1, 2]
    bench.clock.now += 1000
    recorder.step()
    assert [row[0] for row in _checkpoints(recorder)] == [1, 2]


def test_a_clock_that_was_set_back_does_not_put_it_off(bench: Bench) -> None:
    recorder = bench.recorder(Terms(ORIGIN, signer(), records=1000, seconds=30.0))
    bench.clock.now -= 1e6
    bench.write(b'{"n":0}')
    _all(recorder)
    assert len(_checkpoints(recorder)) == 1


def test_one_by_hand_and_none_twice(bench: Bench) -> None:
    recorder = bench.recorder(Terms(ORIGIN, signer(), records=1000, seconds=1e9))
    bench.write(*_numbered(3))
    _all(recorder)
    recorder.checkpoint()
    recorder.checkpoint()
    assert [row[0] for row in _checkpoints(recorder)] == [3]
    recorder.close()
    again = bench.recorder(Terms(ORIGIN, signer(), records=1000, seconds=1e9))
    again.checkpoint()
    assert (again.progress.signed, again.progress.checkpoints) == (3, 0)


def test_without_a_key_nobody_signs(bench: Bench) -> None:
    recorder = bench.recorder(Terms(ORIGIN, None, records=1))
    bench.write(b'{"n":0}')
    _all(recorder)
    ((_, _, root, note),) = _checkpoints(recorder)
    assert parse_checkpoint(note) == (ORIGIN, 1, root)
    assert recorder.store.value("vkey") == ""


def test_a_checkpoint_is_synced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be told to others at once."""
    recorder = bench.recorder(Terms(ORIGIN, signer(), records=1000, seconds=1e9))
    bench.write(b'{"n":0}')
    _all(recorder)
    bench.write(b'{"n":1}')
    _all(recorder)
    levels: list[int] = []
    changing = Store.changing

    def watched(store: Store) -> Any:
        levels.append(store.connection.execute("PRAGMA synchronous").fetchone()[0])
        return changing(store)

    monkeypatch.setattr(Store, "changing", watched)
    recorder.checkpoint()
    assert levels == [2]


def test_one_that_could_not_be_made_is_made_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = bench.recorder(Terms(ORIGIN, signer(), records=2, seconds=1e9))
    bench.write(*_numbered(2))
    real = Recorder.checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "checkpoint", lambda self: (_ for _ in ()).throw(StoreError("no room")))
        with pytest.raises(StoreError):
            recorder.step()
        assert real is not Recorder.checkpoint
    assert recorder.step() is False
    assert [row[0] for row in _checkpoints(recorder)] == [2]
    assert bench.taken() == _numbered(2)


def test_every_checkpoint_is_of_the_tree_there_was(bench: Bench) -> None:
    recorder = bench.recorder(Terms(ORIGIN, signer(), records=7, seconds=1e9))
    for line in itertools.islice(lines(100), 300):
        bench.write(line)
        recorder.step()
    assert [row[0] for row in _checkpoints(recorder)] == list(range(1, 300, 7))
    recorder.checkpoint()
    report = verified(bench.directory, vkey=signer().vkey)
    assert not report.findings
    assert report.anchored == 300


# ------------------------------------------------------------------------------------------------------ who signs


def test_another_key_is_refused(bench: Bench) -> None:
    bench.recorder(Terms(ORIGIN, signer(1))).close()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreError, match="is signed by another key"):
        bench.recorder(Terms(ORIGIN, signer(2)))
    assert len(os.listdir("/proc/self/fd")) == before, "something was left open"
    recorder = bench.recorder(Terms(ORIGIN, signer(1)))
    assert recorder.store.value("vkey") == signer(1).vkey
    recorder.close()
    unsigned = bench.recorder(Terms(ORIGIN, None))  # who has no key takes over all the same
    assert unsigned.store.value("vkey") == signer(1).vkey


def test_a_key_can_be_had_later(bench: Bench) -> None:
    bench.recorder(Terms(ORIGIN, None)).close()
    recorder = bench.recorder(Terms(ORIGIN, signer(1)))
    assert (recorder.store.value("vkey"), recorder.store.value("origin")) == (signer(1).vkey, ORIGIN)


# --------------------------------------------------------------------------------------------------- back-pressure


def _state(bench: Bench) -> bool:
    return bench.journal.state.behind


def test_too_much_that_waits_is_told_to_all_writers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And taken back when half of the bound is free."""
    monkeypatch.setattr(module, "STEP", 100)
    recorder = bench.recorder(Terms(ORIGIN, queue=1000))
    line = b'{"x":"%b"}' % (b"x" * 91)  # 100 octets with its end
    bench.write(*[line] * 10)
    recorder.look_behind()
    assert not _state(bench)
    bench.write(line)
    recorder.look_behind()
    assert _state(bench)
    seen = []
    while recorder.step():
        seen.append((recorder.progress.waiting, _state(bench)))
    assert [waiting for waiting, behind in seen if behind] == [1000, 900, 800, 700, 600, 500]
    assert [waiting for waiting, behind in seen if not behind][:5] == [400, 300, 200, 100, 0]


def test_what_waits_is_in_all_segments(bench: Bench) -> None:
    recorder = bench.recorder(Terms(ORIGIN, queue=1000))
    for number in range(3):
        bench.write(*_numbered(100, 100 * number))
        bench.journal.turn()
    size = sum(path.stat().st_size for path in bench.journal_directory.glob("*.jsonl"))
    assert recorder.progress.waiting == size > 1000
    assert recorder.progress.journal == size
    recorder.look_behind()
    assert recorder.progress.full
    _all(recorder)
    progress = recorder.progress
    assert (progress.waiting, progress.journal, progress.full) == (0, 0, False)


def test_a_store_that_fails_makes_it_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BUSY", 0.01)
    recorder = bench.recorder(Terms(ORIGIN, queue=1000))
    other = sqlite3.connect(bench.directory / DATABASE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    bench.write(*_numbered(200))
    for _ in range(2):
        bench.clock.now += 5
        with pytest.raises(StoreError, match="locked"):
            recorder.step()
        recorder.look_behind()
    assert _state(bench)
    assert recorder.progress.lag == 10.0
    other.execute("ROLLBACK")
    other.close()
    _all(recorder)
    assert not _state(bench)
    assert recorder.progress.lag == 0.0
    assert bench.taken() == _numbered(200)


def test_what_a_dead_recorder_said_is_taken_back(bench: Bench) -> None:
    state = State(bench.journal_directory)
    state.behind = True
    recorder = bench.recorder()
    recorder.step()
    assert not _state(bench)
    state.close()


# ------------------------------------------------------------------------------------------------------------ gaps


def _of(worker: str, seq: int) -> bytes:
    return b'{"v":1,"session":"%b-1","seq":%d}' % (worker.encode(), seq)


def test_records_that_never_came_are_counted(bench: Bench) -> None:
    recorder = bench.recorder()
    bench.write(_of("a", 5), _of("a", 6), _of("b", 1), _of("a", 9), _of("b", 2))
    _all(recorder)
    assert recorder.progress.gaps == 2
    bench.write(_of("b", 4), b'{"v":1,"session":""}', _of("a", 10))
    _all(recorder)
    assert recorder.progress.gaps == 3


def test_a_worker_that_died_is_forgotten(bench: Bench) -> None:
    recorder = bench.recorder()
    for n in range(50):
        worker = f"w{n}"
        bench.write(_of(worker, 1), b'{"v":1,"session":"","kind":"worker-died","worker":"%b"}' % worker.encode())
    _all(recorder)
    assert recorder._sequences == {}
    assert recorder.progress.gaps == 0


def test_nobodys_turn_is_taken(bench: Bench) -> None:
    """The recorder reads: a writer in the middle of a line goes on undisturbed."""
    lock = bench.journal.state.lock
    assert isinstance(lock, WriteLock)
    lock.take()
    lock.begin()
    os.write(bench.journal.descriptor, b'{"n":0')
    lock.wrote(ord("0"))
    recorder = bench.recorder()
    _all(recorder)
    os.write(bench.journal.descriptor, b"}\n")
    lock.wrote(10)
    lock.leave()
    _all(recorder)
    assert bench.taken() == [b'{"n":0}']
