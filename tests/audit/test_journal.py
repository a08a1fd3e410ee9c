"""The journal: whole lines in one order from several processes, segment after segment, whatever is killed or full."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smtpproxy.audit.appending import WriteLock
from smtpproxy.audit.journal import ROOMY, Journal, State, alone, segment_path, segments
from tests.audit.forks import ended, fork, forked
from tests.peers import unavailable

LARGE = 1 << 30


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "journal").mkdir()
    return tmp_path / "journal"


def _descriptors() -> list[str]:
    """What this process has open of a journal."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return [path for path in found if "/journal/" in path]


@contextmanager
def _journal(directory: Path, *, segment: int = LARGE, reserve: int = 0, durable: bool = False) -> Iterator[Journal]:
    journal = Journal(directory, segment=segment, reserve=reserve, durable=durable)
    try:
        yield journal
    finally:
        journal.close()


def _write(journal: Journal, *lines: bytes) -> None:
    journal.add(b"".join(line + b"\n" for line in lines))
    journal.flush()


def _error(journal: Journal) -> int | None:
    """Of a `flush`."""
    try:
        journal.flush()
    except OSError as error:
        return error.errno
    return None


def _lines(directory: Path) -> list[bytes]:
    """Of all segments, in order."""
    return b"".join(segment_path(directory, number).read_bytes() for number in segments(directory)).splitlines()


def test_lines_are_in_the_first_segment(directory: Path) -> None:
    with _journal(directory) as journal:
        _write(journal, b"one", b"two")
        _write(journal, b"three")
    assert segment_path(directory, 1).name == "00000001.jsonl"
    assert _lines(directory) == [b"one", b"two", b"three"]
    assert segments(directory) == [1]


def test_nobody_else_can_read_it(directory: Path) -> None:
    with _journal(directory, reserve=4096) as journal:
        _write(journal, b"one")
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o640}
    assert {path.name for path in directory.iterdir()} == {"00000001.jsonl", "state", "writers", "reserve"}


def test_other_files_are_no_segments(directory: Path) -> None:
    for name in ("00000003.jsonl", "00000001.jsonl", "12345678901.jsonl", "x.jsonl", "².jsonl", "4.jsonl.gz"):
        (directory / name).touch()
    assert segments(directory) == [1, 3, 12_345_678_901]


def test_without_a_directory_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Journal(tmp_path / "journal")
    assert _descriptors() == []


# ------------------------------------------------------------------------------------------------------ segments


def test_a_segment_that_is_long_enough_is_left(directory: Path) -> None:
    with _journal(directory, segment=100) as journal:
        for number in range(10):
            _write(journal, b"%d" % number * 39)
    assert _lines(directory) == [b"%d" % number * 39 for number in range(10)]
    assert [len(segment_path(directory, number).read_bytes()) for number in segments(directory)] == [120] * 3 + [40]


def test_all_that_was_added_at_once_is_in_one_segment(directory: Path) -> None:
    """Lines are never torn apart, however long they are."""
    with _journal(directory, segment=100) as journal:
        _write(journal, *[b"x" * 50] * 10)
        assert segments(directory) == [1, 2]
        assert journal.state.segment == 2
        _write(journal, b"y")
    assert segment_path(directory, 2).read_bytes() == b"y\n"


def test_who_was_not_there_when_the_segment_changed_goes_over_to_it(directory: Path) -> None:
    with _journal(directory, segment=100) as one, _journal(directory, segment=100) as two:
        _write(two, b"a")
        _write(one, b"b" * 100)
        assert segments(directory) == [1, 2]
        _write(two, b"c")
        _write(one, b"d")
    assert segment_path(directory, 2).read_bytes() == b"c\nd\n"


def test_turn_begins_the_next_one(directory: Path) -> None:
    with _journal(directory) as one, _journal(directory) as two:
        _write(one, b"a")
        assert one.turn() == 2
        assert two.turn() == 3
        assert one.turn() == 4
        _write(two, b"b")
        assert segment_path(directory, 4).read_bytes() == b"b\n"
        assert one.state.segment == 4
    assert segments(directory) == [1, 2, 3, 4]


def test_turn_does_not_wait_for_who_is_in_the_middle_of_a_line(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpproxy.audit.journal.PATIENCE", 0.01)
    reading, writing = os.pipe()

    def half() -> None:
        journal = Journal(directory)
        journal.state.lock.take()
        journal.state.lock.begin()
        os.write(journal.descriptor, b"half")
        journal.state.lock.wrote(ord("f"))
        os.write(writing, b"x")
        signal.pause()

    with _journal(directory) as journal:
        with forked(half):
            assert os.read(reading, 1) == b"x"
            with pytest.raises(BlockingIOError):
                journal.turn()
            before = _descriptors()
            with pytest.raises(BlockingIOError):
                Journal(directory)
            assert _descriptors() == before
            assert segments(directory) == [1]
        assert journal.turn() == 2
        _write(journal, b"whole")
    assert segment_path(directory, 1).read_bytes() == b"half"  # nobody writes there any more
    assert segment_path(directory, 2).read_bytes().strip(b"\n") == b"whole"
    os.close(reading)
    os.close(writing)


def test_a_segment_that_cannot_be_made_costs_no_line(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is written by then, and once: what is added later goes on where it can."""
    real = os.open

    def refused(path: Path, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith("00000002.jsonl"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, flags, mode)

    with _journal(directory, segment=10) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refused)
            journal.add(b"0123456789\n")
            with pytest.raises(OSError, match="Too many"):
                journal.flush()
        journal.add(b"more\n")
        journal.flush()
    assert _lines(directory) == [b"0123456789", b"more"]
    assert segments(directory) == [1, 2]


# --------------------------------------------------------------------------------------------- opened once more


def test_who_opens_it_alone_begins_a_segment(directory: Path) -> None:
    """The store may say that it has read more of the last one than a power failure left."""
    with _journal(directory) as journal:
        _write(journal, b"one")
        with _journal(directory) as beside:
            _write(beside, b"two")
    with _journal(directory) as journal:
        _write(journal, b"three")
    assert segment_path(directory, 1).read_bytes() == b"one\ntwo\n"
    assert segment_path(directory, 2).read_bytes() == b"three\n"


def test_segments_the_state_does_not_know_of_are_not_written_behind(directory: Path) -> None:
    """`state` is not synced: after a power failure it may be an older one, or none."""
    with _journal(directory) as journal:
        _write(journal, b"one")
    segment_path(directory, 7).write_bytes(b"seven\n")
    (directory / "state").unlink()
    with _journal(directory) as journal:
        _write(journal, b"eight")
    assert segments(directory) == [1, 7, 8]
    assert segment_path(directory, 8).read_bytes() == b"eight\n"


def test_numbers_are_not_used_again_when_all_segments_are_gone(directory: Path) -> None:
    with _journal(directory) as journal:
        journal.turn()
        _write(journal, b"one")
    for number in segments(directory):
        segment_path(directory, number).unlink()
    with _journal(directory) as journal:
        _write(journal, b"two")
    assert segments(directory) == [3]


def test_a_line_that_was_cut_off_is_not_gone_on_with(directory: Path) -> None:
    """While others write: it is ended, by who opens it or by who writes next."""

    def cut() -> None:
        journal = Journal(directory)
        lock = journal.state.lock
        lock.take()
        lock.begin()
        os.write(journal.descriptor, b'{"cut":')
        os.kill(os.getpid(), signal.SIGKILL)

    with _journal(directory) as journal:
        _write(journal, b"one")
        assert ended(fork(cut)) == -signal.SIGKILL
        _write(journal, b"two")
        assert ended(fork(cut)) == -signal.SIGKILL
        with _journal(directory) as other:
            _write(other, b"three")
        _write(journal, b"four")
    assert _lines(directory) == [b"one", b'{"cut":', b"two", b'{"cut":', b"three", b"four"]


def test_a_new_segment_does_not_begin_with_the_end_of_an_old_line(directory: Path) -> None:
    """All are gone, and the last one was killed while it wrote."""

    def cut() -> None:
        journal = Journal(directory)
        lock = journal.state.lock
        lock.take()
        lock.begin()
        os.write(journal.descriptor, b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(fork(cut)) == -signal.SIGKILL
    with _journal(directory) as journal:
        _write(journal, b"one")
    assert segment_path(directory, 1).read_bytes() == b"half"
    assert segment_path(directory, 2).read_bytes() == b"one\n"


def test_who_begins_waits_for_its_turn(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another one who begins has its reserve made: that takes longer than a line."""
    reading, writing = os.pipe()

    def hold() -> None:
        Journal(directory).state.lock.take()
        os.write(writing, b"x")
        signal.pause()

    with forked(hold) as pid:
        assert os.read(reading, 1) == b"x"
        monkeypatch.setattr("smtpproxy.audit.journal.time.sleep", lambda _: os.kill(pid, signal.SIGKILL))
        with _journal(directory) as journal:
            _write(journal, b"one")
    assert _lines(directory) == [b"one"]
    os.close(reading)
    os.close(writing)


def test_alone(directory: Path) -> None:
    assert alone(directory)
    reading, writing = os.pipe()

    def write() -> None:
        Journal(directory)
        os.write(writing, b"x")
        signal.pause()

    with forked(write):
        assert os.read(reading, 1) == b"x"
        assert not alone(directory)
        with _journal(directory):
            pass
        assert not alone(directory)
    assert alone(directory)
    os.close(reading)
    os.close(writing)


def test_a_journal_that_could_not_be_opened_is_nobody(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder would wait for it for ever."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space"):
            Journal(directory, reserve=1000)
    assert _descriptors() == []
    assert alone(directory)
    assert not (directory / "reserve").exists()
    with _journal(directory, reserve=1000) as journal:
        _write(journal, b"one")


def test_state_is_seen_by_all_and_stays(directory: Path) -> None:
    one, two = State(directory), State(directory)
    assert (one.segment, one.refusing, one.behind) == (0, False, False)
    one.segment, one.behind = 1 << 40, True
    assert (two.segment, two.refusing, two.behind) == (1 << 40, False, True)
    two.refusing, two.behind = True, False
    assert (one.segment, one.refusing, one.behind) == (1 << 40, True, False)

    def elsewhere() -> None:
        two.segment = 3

    assert ended(fork(elsewhere)) == 0
    assert one.segment == 3
    one.close()
    two.close()
    again = State(directory)
    assert (again.segment, again.refusing, again.behind) == (3, True, False)
    again.close()


def test_the_state_leaves_the_octet_of_the_lock_alone(directory: Path) -> None:
    state = State(directory)
    lock = WriteLock(os.open(directory / "state", os.O_RDWR))
    lock.begin()
    state.segment, state.refusing, state.behind = (1 << 64) - 1, True, True
    assert state.lock.take() is True
    state.lock.leave()
    os.close(lock.fileno())
    state.close()


# ---------------------------------------------------------------------------------------------- several processes


def _writes(directory: Path, name: int, lines: int, segment: int, deadly: float) -> Callable[[], None]:
    """So many lines, with short writes; killed at some of them."""

    def write() -> None:
        fate = random.Random(name)
        real = os.write
        journal: list[Journal] = []

        def short(file: int, octets: bytes) -> int:
            ours = bool(journal) and file == journal[0].descriptor
            if ours and fate.random() < deadly:
                real(file, octets[: fate.randrange(len(octets) + 1)])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(file, octets[: fate.randrange(1, 200)] if ours else octets)

        os.write = short  # type: ignore[assignment]
        journal.append(Journal(directory, segment=segment))
        for number in range(lines):
            journal[0].add(b'{"name":%d,"n":%d,"x":"%b"}\n' % (name, number, b"x" * fate.randrange(150)))
            while fate.random() < 0.7:
                try:
                    journal[0].flush()
                    break
                except BlockingIOError:
                    os.sched_yield()
        while True:
            try:
                journal[0].flush()
                return
            except BlockingIOError:
                os.sched_yield()

    return write


def _account(directory: Path) -> tuple[dict[int, list[int]], int]:
    """Each one's numbers in the order of the journal, and how many lines are none."""
    found: dict[int, list[int]] = {}
    cut = 0
    for number in segments(directory):
        for line in segment_path(directory, number).read_bytes().splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                cut += bool(line)
            else:
                found.setdefault(said["name"], []).append(said["n"])
    return found, cut


def test_several_processes_and_many_segments(directory: Path) -> None:
    with _journal(directory):
        pids = [fork(_writes(directory, name, 400, 5000, 0.0)) for name in range(4)]
        assert [ended(pid) for pid in pids] == [0] * 4
    assert len(segments(directory)) > 20
    assert all(segment_path(directory, n).read_bytes()[-1:] == b"\n" for n in segments(directory)[:-1])
    assert _account(directory) == ({name: list(range(400)) for name in range(4)}, 0)


def test_several_processes_killed_at_any_point(directory: Path) -> None:
    """Nothing twice, nothing out of order, nothing of who was not killed is missing, and the rest goes on."""
    chance = random.Random(3)
    with _journal(directory) as journal:
        running = {fork(_writes(directory, name, 200, 3000, 0.004)): name for name in range(4)}
        whole = []
        for name in range(4, 24):
            pid = chance.choice(list(running))
            ending = ended(pid)
            assert ending in (0, -signal.SIGKILL)
            if ending == 0:
                whole.append(running[pid])
            del running[pid]
            running[fork(_writes(directory, name, 200, 3000, 0.004))] = name
        deaths = 20 - len(whole)
        for pid, name in running.items():
            if ended(pid) == 0:
                whole.append(name)
            else:
                deaths += 1
        _write(journal, b'{"name":99,"n":0}')
    found, cut = _account(directory)
    assert deaths > 2
    assert cut <= deaths
    assert all(numbers == list(range(len(numbers))) for numbers in found.values())
    assert {name: len(found[name]) for name in whole} == dict.fromkeys(whole, 200)
    assert found[99] == [0]


# ------------------------------------------------------------------------------------------------------- no room


class Disk:
    """Full for every journal's segments, but for this many octets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, error: int = errno.ENOSPC) -> None:
        self.free = free
        self.error = error
        self._write, self._unlink = os.write, os.unlink
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "unlink", self.unlink)

    def write(self, descriptor: int, octets: bytes) -> int:
        if not os.readlink(f"/proc/self/fd/{descriptor}").endswith(".jsonl"):
            return self._write(descriptor, octets)
        if self.free <= 0:
            raise OSError(self.error, os.strerror(self.error))
        written = self._write(descriptor, octets[: self.free])
        self.free -= written
        return written

    def unlink(self, path: Path) -> None:
        size = path.stat().st_size
        self._unlink(path)
        self.free += size


def test_the_reserve_is_there(directory: Path) -> None:
    with _journal(directory, reserve=50_000):
        there = (directory / "reserve").stat()
        assert there.st_size == 50_000
        assert there.st_blocks * 512 >= 50_000, "a hole is no reserve"
    with _journal(directory, reserve=50_000) as journal:
        assert not journal.is_full()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_the_reserve_is_for_saying_that_there_is_no_room(
    directory: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    with _journal(directory, reserve=1000) as journal, _journal(directory, reserve=1000) as other:
        disk = Disk(monkeypatch, 25, error)
        _write(journal, b"x" * 19)
        assert not other.is_full()
        _write(journal, b"y" * 19)  # in the middle of it, the reserve goes
        assert (journal.is_full(), other.is_full()) == (True, True)
        assert not (directory / "reserve").exists()
        assert disk.free == 985
        _write(other, b"z" * 900)
        other.add(b"w" * 99 + b"\n")
        with pytest.raises(OSError, match=os.strerror(error)):
            other.flush()
        disk.free = 10_000
        other.flush()
    assert _lines(directory) == [b"x" * 19, b"y" * 19, b"z" * 900, b"w" * 99]


def test_no_reserve_no_refusing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _journal(directory) as journal:
        disk = Disk(monkeypatch, 5)
        journal.add(b"0123456789\n")
        with pytest.raises(OSError, match="No space"):
            journal.flush()
        assert not journal.is_full()
        assert not journal.state.refusing
        disk.free = 100
        journal.flush()
    assert _lines(directory) == [b"0123456789"]


def test_another_error_does_not_cost_the_reserve(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _journal(directory, reserve=1000) as journal:
        Disk(monkeypatch, 0, errno.EIO)
        journal.add(b"one\n")
        with pytest.raises(OSError, match="Input/output"):
            journal.flush()
        assert not journal.is_full()
        assert (directory / "reserve").exists()


def test_the_reserve_is_taken_again_when_there_is_room(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 0

    class Room:
        f_frsize = 1

        @property
        def f_bavail(self) -> int:
            return free

    with _journal(directory, reserve=1000) as journal:
        Disk(monkeypatch, 0)
        _write(journal, b"one")
        monkeypatch.setattr(os, "statvfs", lambda path: Room())
        free = ROOMY * 1000 - 1
        journal.check()
        assert journal.is_full()
        free += 1
        with monkeypatch.context() as patch:  # somebody else was faster
            patch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
            journal.check()
        assert journal.is_full()
        assert not (directory / "reserve").exists()
        journal.check()
        assert not journal.is_full()
        assert (directory / "reserve").stat().st_size == 1000
        _write(journal, b"two")


def test_a_full_disk_is_remembered(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By who is started then, who must not need a reserve to do so."""
    with _journal(directory, reserve=1000) as journal, monkeypatch.context() as patch:
        Disk(patch, 0)
        _write(journal, b"one")
    with _journal(directory, reserve=1000) as journal:
        assert journal.is_full()
        assert not (directory / "reserve").exists()


def test_a_store_that_is_behind_makes_mail_wait(directory: Path) -> None:
    with _journal(directory) as journal:
        journal.state.behind = True
        assert not journal.is_full()
        journal.add(b"one\n")
        with pytest.raises(BlockingIOError, match="behind"):
            journal.flush()
        assert _lines(directory) == []
        journal.state.behind = False
        journal.flush()
    assert _lines(directory) == [b"one"]


def test_a_store_that_is_behind_makes_mail_be_refused(directory: Path) -> None:
    """What is said then goes on record all the same."""
    with _journal(directory, reserve=1000) as journal:
        journal.state.behind = True
        assert journal.is_full()
        _write(journal, b"one")
        journal.state.behind = False
        assert not journal.is_full()
    assert _lines(directory) == [b"one"]


def test_a_small_file_system(tmp_path: Path) -> None:
    """A real one that is full, and has room again: nothing is lost, and the reserve is where it should be."""
    if os.geteuid():
        unavailable("mounting a tmpfs takes root")
    directory = tmp_path / "journal"
    directory.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", directory], capture_output=True).returncode:
        unavailable("a tmpfs can't be mounted here")
    try:
        ballast = directory / "ballast"
        ballast.write_bytes(bytes(300_000))
        with _journal(directory, reserve=65_536) as journal:
            written = 0
            while not journal.is_full():
                _write(journal, b"%d" % written + b"x" * 2000)
                written += 1
                assert written < 1000
            assert not (directory / "reserve").exists()
            refusals = 0
            while True:
                journal.add(b"refused %d " % refusals + b"x" * 100 + b"\n")
                refusals += 1
                if _error(journal):
                    break
            assert refusals > 300, "the reserve was not for them"
            journal.check()
            assert journal.is_full()
            ballast.unlink()
            journal.check()
            assert not journal.is_full()
            assert (directory / "reserve").stat().st_blocks * 512 >= 65_536
            journal.flush()
        lines = _lines(directory)
        assert [line.rstrip(b"x") for line in lines[:written]] == [b"%d" % number for number in range(written)]
        assert [line.split()[1] for line in lines[written:]] == [b"%d" % number for number in range(refusals)]
    finally:
        subprocess.run(["umount", directory], check=True)


def test_a_file_that_may_not_grow(directory: Path) -> None:
    """EFBIG is no full disk, and is survived as any other error."""

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        journal = Journal(directory, reserve=100)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        journal.add(b"x" * 1500 + b"\n")
        assert [_error(journal), _error(journal)] == [errno.EFBIG] * 2
        assert not journal.is_full()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        journal.flush()

    assert ended(fork(write)) == 0
    assert _lines(directory) == [b"x" * 1500]


# -------------------------------------------------------------------------------------------------------- durable


def test_a_segment_that_is_left_is_on_the_disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mail is told 250 once its record is there; `settle` syncs the segment that is written to by then."""
    synced: list[str] = []
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with _journal(directory, segment=10, durable=True) as journal:
        _write(journal, b"0123456789")
        assert synced == ["00000001.jsonl"]
        _write(journal, b"x")
        assert synced == ["00000001.jsonl"]
    with _journal(directory, segment=10) as journal:
        _write(journal, b"0123456789")
    assert synced == ["00000001.jsonl"]
