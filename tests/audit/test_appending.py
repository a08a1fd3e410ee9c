"""Appending whole lines: with writes that are short or fail, and processes that are killed at any point.

What the audit makes of it is in test_log.py, with pipes and full disks.
"""

import contextlib
import errno
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from smtpproxy.audit.appending import TURNS, Appender, WriteLock, open_file
from tests.audit.forks import ended, fork, forked


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    descriptor = open_file(str(tmp_path / "file"))
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def lock() -> Iterator[WriteLock]:
    lock = WriteLock()
    yield lock
    os.close(lock.fileno())


class Watched(Appender):
    """One that says what it was asked for."""

    def __init__(self, descriptor: int, lock: WriteLock | None = None) -> None:
        super().__init__(descriptor, lock)
        self.seen: list[str] = []

    def _begin(self) -> None:
        self.seen.append("begin")

    def _end(self) -> None:
        self.seen.append("end")


class Disk:
    """Takes so many octets of each write, in turn; an error's number instead is that error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: int, script: list[int]) -> None:
        self.script = script
        self._write = os.write
        self._file = file
        monkeypatch.setattr(os, "write", self)

    def __call__(self, descriptor: int, octets: bytes) -> int:
        if descriptor != self._file or not self.script:
            return self._write(descriptor, octets)
        take = self.script.pop(0)
        if take <= 0:
            raise OSError(-take, os.strerror(-take))
        return self._write(descriptor, octets[:take])


def _content(descriptor: int) -> bytes:
    return Path(f"/proc/self/fd/{descriptor}").read_bytes()


def test_what_is_added_is_written_by_flush_and_once(descriptor: int) -> None:
    appender = Appender(descriptor)
    appender.add(b"one\n")
    appender.add(b"two\n")
    assert _content(descriptor) == b""
    appender.flush()
    appender.flush()
    assert _content(descriptor) == b"one\ntwo\n"


def test_our_turn_begins_and_ends_once_a_flush(descriptor: int, lock: WriteLock) -> None:
    appender = Watched(descriptor, lock)
    appender.flush()
    assert appender.seen == []
    appender.add(b"one\n")
    appender.flush()
    assert appender.seen == ["begin", "end"]


def test_in_the_middle_of_a_line_nothing_new_is_begun(
    descriptor: int, lock: WriteLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who goes over to another file in its turn must not do so there: a line would be in two files."""
    Disk(monkeypatch, descriptor, [6, -errno.ENOSPC, 2, -errno.ENOSPC])
    appender = Watched(descriptor, lock)
    appender.add(b"one\ntwo\nthree\n")
    with pytest.raises(OSError, match="No space"):
        appender.flush()
    assert (appender.seen, lock.begun) == (["begin"], True)
    with pytest.raises(OSError, match="No space"):  # "tw" and "o\n" is a whole line: another one may write now
        appender.flush()
    assert (appender.seen, lock.begun) == (["begin"], False)
    appender.flush()
    assert appender.seen == ["begin", "begin", "end"]
    assert _content(descriptor) == b"one\ntwo\nthree\n"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=some.lists(some.one_of(some.integers(1, 9), some.just(-errno.ENOSPC), some.just(-errno.EIO)), max_size=40),
    locked=some.booleans(),
    chance=some.randoms(use_true_random=False),
)
def test_whatever_the_disk_does_each_line_is_there_once_and_in_order(
    tmp_path: Path, script: list[int], locked: bool, chance: random.Random
) -> None:
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    descriptor = open_file(str(path))
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, descriptor)
        lock = WriteLock() if locked else None
        if lock is not None:
            undo.callback(os.close, lock.fileno())
        patch = undo.enter_context(pytest.MonkeyPatch.context())
        disk = Disk(patch, descriptor, script)
        appender = Appender(descriptor, lock)
        expected = b""
        for number in range(15):
            if chance.random() < 0.7:
                line = b"%d" % number * chance.randrange(1, 9) + b"\n"
                appender.add(line)
                expected += line
            with contextlib.suppress(OSError):
                appender.flush()
        disk.script.clear()
        appender.flush()
        assert path.read_bytes() == expected


def _held(lock: WriteLock, pipe: int) -> Callable[[], None]:
    def hold() -> None:
        lock.take()
        os.write(pipe, b"x")
        signal.pause()

    return hold


def test_another_ones_turn_is_not_waited_for_long(
    descriptor: int, lock: WriteLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    appender = Appender(descriptor, lock)
    appender.add(b"one\n")
    turns = []
    monkeypatch.setattr(os, "sched_yield", lambda: turns.append(1))
    with forked(_held(lock, writing)):
        assert os.read(reading, 1) == b"x"
        with pytest.raises(BlockingIOError, match="middle of a line"):
            appender.flush()
        assert len(turns) == TURNS
        assert _content(descriptor) == b""
    appender.flush()  # the kernel took it from the one that died
    assert _content(descriptor) == b"one\n"
    os.close(reading)
    os.close(writing)


def test_a_line_cut_off_by_a_kill_gets_its_end_and_only_one(descriptor: int, lock: WriteLock) -> None:
    def cut() -> None:
        lock.take()
        lock.begin()
        os.write(descriptor, b'{"cut":')
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(fork(cut)) == -signal.SIGKILL
    for line in (b"one\n", b"two\n"):
        appender = Appender(descriptor, lock)
        appender.add(line)
        appender.flush()
    assert _content(descriptor) == b'{"cut":\none\ntwo\n'


def test_processes_killed_at_any_point_leave_whole_lines_but_their_last(descriptor: int, lock: WriteLock) -> None:
    """Short writes make the middle of a line a likely place; who is killed there loses that line, and only that one."""
    chance = random.Random(7)

    def write(name: int) -> None:
        fate = random.Random(name)
        real = os.write

        def short(file: int, octets: bytes) -> int:
            if file == descriptor and fate.random() < 0.004:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(file, octets[: fate.randrange(1, 60)] if file == descriptor else octets)

        os.write = short  # type: ignore[assignment]
        appender = Appender(descriptor, lock)
        for number in range(300):
            appender.add(b'{"name":%d,"n":%d,"x":"%b"}\n' % (name, number, b"x" * fate.randrange(80)))
            while True:
                try:
                    appender.flush()
                    break
                except BlockingIOError:
                    os.sched_yield()

    running = [fork(lambda name=name: write(name)) for name in range(4)]  # type: ignore[misc]
    for name in range(4, 16):
        assert ended(running.pop(chance.randrange(len(running)))) in (0, -signal.SIGKILL)
        running.append(fork(lambda name=name: write(name)))  # type: ignore[misc]
    assert {ended(pid) for pid in running} <= {0, -signal.SIGKILL}
    last = Appender(descriptor, lock)
    last.add(b'{"name":99,"n":0}\n')
    last.flush()

    content = _content(descriptor)
    assert content.endswith(b"\n")
    found: dict[int, list[int]] = {}
    cut = 0
    for line in content.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            cut += bool(line)
            continue
        found.setdefault(said["name"], []).append(said["n"])
    assert len(found) > 10
    assert all(numbers == list(range(len(numbers))) for numbers in found.values()), "lost, twice or out of order"
    assert 0 < cut <= 16, "more cut lines than killed processes"
