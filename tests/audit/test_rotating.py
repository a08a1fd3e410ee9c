"""The audit file that is moved away: by size, by age, by several processes, and by somebody else meanwhile."""

import contextlib
import errno
import json
import os
import random
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from smtpproxy.audit.appending import WriteLock, open_file
from smtpproxy.audit.rotating import RotatingFile
from tests.audit.forks import ended, fork

NOW = 1_800_000_000.0


class Clock:
    """One that is set by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Bench:
    """A file, and who writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.lock = WriteLock()
        self._open: list[RotatingFile] = []
        self._descriptors: list[int] = []

    def file(self, *, size: int = 0, age: float = 0.0) -> RotatingFile:
        """As another worker of another generation has it."""
        descriptor = open_file(str(self.path))
        self._descriptors.append(descriptor)
        made = RotatingFile(descriptor, self.path, self.lock, size=size, age=age, clock=self.clock)
        self._open.append(made)
        return made

    def line(self, name: str = "x", size: int = 0) -> bytes:
        """A record of now."""
        at = datetime.fromtimestamp(self.clock.now, UTC).isoformat()
        return json.dumps({"at": at, "name": name, "filler": "x" * size}).encode() + b"\n"

    def write(self, file: RotatingFile, name: str, size: int = 0) -> None:
        """A record."""
        file.add(self.line(name, size))
        file.flush()

    def names(self) -> dict[str, list[str]]:
        """What is in which file, by its ending."""
        start = len(self.path.name)
        return {
            path.name[start:]: [json.loads(line)["name"] for line in path.read_bytes().splitlines() if b"name" in line]
            for path in sorted(self.path.parent.iterdir())
            if path.name.startswith(self.path.name)
        }

    def close(self) -> None:
        for file in self._open:
            file.close()
        for descriptor in (*self._descriptors, self.lock.fileno()):
            os.close(descriptor)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    before = len(os.listdir("/proc/self/fd"))
    bench = Bench(tmp_path / "audit.jsonl")
    yield bench
    bench.close()
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"


def test_a_large_file_is_moved_before_the_next_line(bench: Bench) -> None:
    file = bench.file(size=200)
    for name in "abcdefg":
        bench.write(file, name, 50)
    assert bench.names() == {".1": ["a", "b"], ".2": ["c", "d"], ".3": ["e", "f"], "": ["g"]}


def test_one_that_is_just_large_enough_is_moved(bench: Bench) -> None:
    file = bench.file(size=len(bench.line("a")))
    bench.write(file, "a")
    bench.write(file, "b")
    assert bench.names() == {".1": ["a"], "": ["b"]}


def test_without_bounds_it_stays(bench: Bench) -> None:
    file = bench.file()
    for name in "abc":
        bench.clock.now += 1e9
        bench.write(file, name, 10_000)
    assert bench.names() == {"": ["a", "b", "c"]}


def test_an_old_file_is_moved(bench: Bench) -> None:
    file = bench.file(age=3600.0)
    bench.write(file, "a")
    bench.clock.now += 3599
    bench.write(file, "b")
    bench.clock.now += 1
    bench.write(file, "c")
    bench.clock.now += 3599
    bench.write(file, "d")
    bench.clock.now += 1
    bench.write(file, "e")
    assert bench.names() == {".1": ["a", "b"], ".2": ["c", "d"], "": ["e"]}


def test_the_age_is_that_of_its_first_line(bench: Bench) -> None:
    """It was begun by a process that is gone."""
    bench.path.write_bytes(bench.line("a"))
    bench.clock.now += 3000
    file = bench.file(age=3600.0)
    bench.write(file, "b")
    bench.clock.now += 600
    bench.write(file, "c")
    assert bench.names() == {".1": ["a", "b"], "": ["c"]}


@pytest.mark.parametrize(
    "first", [b"", b"\n", b"no record\n", b'{"at":5}\n', b"{}\n", b'{"at":"2027-01-15T08:00:00"}\n', b"\xff" * 70_000],
    ids=["empty", "a blank line", "text", "no time", "no key", "no zone", "endless"],
)  # fmt: skip
def test_a_first_line_that_says_nothing_begins_now(bench: Bench, first: bytes) -> None:
    bench.path.write_bytes(first)
    file = bench.file(age=3600.0)
    bench.clock.now += 3599
    bench.write(file, "a")
    assert not bench.path.with_name("audit.jsonl.1").exists()
    bench.clock.now += 1
    bench.write(file, "b")
    assert bench.names()[""] == ["b"]


def test_an_empty_file_is_not_moved(bench: Bench) -> None:
    file = bench.file(age=1.0)
    bench.clock.now += 100
    bench.write(file, "a")
    assert bench.names() == {"": ["a"]}


@pytest.mark.parametrize(
    ("there", "number"),
    [
        (["audit.jsonl.1"], 2),
        (["audit.jsonl.9", "audit.jsonl.10"], 11),
        (["audit.jsonl.7"], 8),
        (["audit.jsonl.3.gz", "audit.jsonl.2"], 4),
        (["audit.jsonl.old", "audit.jsonl.", "audit.jsonl.²", "audit.jsonl.-5", "other.jsonl.7", "audit.jsonl2.9"], 1),
    ],
)
def test_the_highest_number_is_the_newest(bench: Bench, there: list[str], number: int) -> None:
    for name in there:
        bench.path.with_name(name).write_text("mine")
    file = bench.file(size=1)
    bench.write(file, "a")
    bench.write(file, "b")
    moved = bench.path.with_name(f"audit.jsonl.{number}")
    assert json.loads(moved.read_bytes())["name"] == "a"
    assert all(bench.path.with_name(name).read_text() == "mine" for name in there)


def test_a_name_that_looks_like_a_pattern(tmp_path: Path) -> None:
    """What was moved away before is not written over."""
    bench = Bench(tmp_path / "audit[1].jsonl")
    file = bench.file(size=1)
    for name in "abc":
        bench.write(file, name)
    assert bench.names() == {".1": ["a"], ".2": ["b"], "": ["c"]}
    bench.close()


def test_others_go_over_to_the_new_one(bench: Bench) -> None:
    one, two = bench.file(size=200), bench.file(size=200)
    for number in range(9):
        bench.write((one, two)[number % 2], f"{number}", 50)
    assert bench.names() == {".1": ["0", "1"], ".2": ["2", "3"], ".3": ["4", "5"], ".4": ["6", "7"], "": ["8"]}


def test_one_that_slept_is_not_behind_what_is_newer(bench: Bench) -> None:
    one, two = bench.file(size=100), bench.file(size=100)
    for name in "abcd":
        bench.write(one, name, 60)
    bench.write(two, "e", 60)
    assert bench.names() == {".1": ["a"], ".2": ["b"], ".3": ["c"], ".4": ["d"], "": ["e"]}


def test_moved_away_and_opened_anew_by_somebody_else(bench: Bench) -> None:
    """logrotate, and SIGHUP: the new generation has a new file, and the old one goes over to that."""
    old = bench.file(size=10_000)
    bench.write(old, "a")
    bench.path.rename(bench.path.with_name("audit.jsonl-20261124"))
    new = bench.file(size=10_000)
    bench.write(new, "b")
    bench.write(old, "c")
    assert bench.names() == {"-20261124": ["a"], "": ["b", "c"]}


def test_one_that_is_gone_is_made_anew(bench: Bench) -> None:
    """Who moved it away was killed before there was another."""
    file = bench.file(size=100)
    bench.write(file, "a", 100)
    bench.path.rename(bench.path.with_name("audit.jsonl.1"))
    for name in "bc":
        bench.write(file, name, 100)
    assert bench.names() == {".1": ["a"], ".2": ["b"], "": ["c"]}


def _refuse(what: str, error: int) -> object:
    def refused(*_: object) -> None:
        raise OSError(error, os.strerror(error), what)

    return refused


def test_where_it_cannot_be_moved_it_is_gone_on_with(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is another's."""
    file = bench.file(size=1)
    monkeypatch.setattr(os, "rename", _refuse("rename", errno.EACCES))
    for name in "abc":
        bench.write(file, name)
    assert bench.names() == {"": ["a", "b", "c"]}


def test_where_there_can_be_no_new_one_the_old_one_is_gone_on_with(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail does not wait for that."""
    file = bench.file(size=1)
    with monkeypatch.context() as patch:
        patch.setattr("smtpproxy.audit.rotating.open_file", _refuse("open", errno.EMFILE))
        for name in "ab":
            bench.write(file, name)
    bench.write(file, "c")
    assert bench.names() == {".1": ["a", "b", "c"]}


def test_a_line_is_never_in_two_files(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full in the middle of one, and the file is large enough by then."""
    file = bench.file(size=80)
    real = os.write
    room = 100

    def write(descriptor: int, octets: bytes) -> int:
        nonlocal room
        if os.readlink(f"/proc/self/fd/{descriptor}") != str(bench.path):
            return real(descriptor, octets)
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, octets[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", write)
    file.add(bench.line("a", 100))
    with pytest.raises(OSError, match="No space"):
        file.flush()
    assert bench.path.stat().st_size == 100
    with pytest.raises(OSError, match="No space"):
        file.flush()
    room = 10_000
    file.add(bench.line("b"))
    file.flush()
    bench.write(file, "c")
    assert bench.names() == {".1": ["a", "b"], "": ["c"]}


def test_what_is_no_file_is_not_moved(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    path = tmp_path / "audit"
    path.write_text("another one")
    lock = WriteLock()
    file = RotatingFile(writing, path, lock, size=1)
    for line in (b"one\n", b"two\n"):
        file.add(line)
        file.flush()
    assert os.read(reading, 100) == b"one\ntwo\n"
    assert [each.name for each in tmp_path.iterdir()] == ["audit"]
    file.close()
    for descriptor in (reading, writing, lock.fileno()):
        os.close(descriptor)


def test_several_processes_some_killed(bench: Bench) -> None:
    """Every line is in one file, in order, also where the processes that move it are killed."""

    def write(name: int) -> None:
        fate = random.Random(name)
        rename = os.rename

        def deadly(source: Path, target: Path) -> None:
            assert not target.exists()
            rename(source, target)
            if fate.random() < 0.05:
                os.kill(os.getpid(), signal.SIGKILL)

        os.rename = deadly  # type: ignore[assignment]
        file = bench.file(size=2000)
        for number in range(200):
            file.add(b'{"name":"%d.%d","filler":"%b"}\n' % (name, number, b"x" * fate.randrange(100)))
            while True:
                with contextlib.suppress(BlockingIOError):
                    file.flush()
                    break

    pids = [fork(lambda name=name: write(name)) for name in range(6)]  # type: ignore[misc]
    endings = [ended(pid) for pid in pids]
    assert set(endings) == {0, -signal.SIGKILL}
    bench.write(bench.file(size=2000), "6.0")
    found: dict[int, list[int]] = {name: [] for name in range(7)}
    files = bench.names()
    assert len(files) > 10
    for ending in sorted(files, key=lambda ending: int(ending[1:] or 1 << 30)):
        for name in files[ending]:
            writer, number = name.split(".")
            found[int(writer)].append(int(number))
    assert all(numbers == list(range(len(numbers))) for numbers in found.values())
    assert [len(found[name]) for name, ending in enumerate(endings) if ending == 0] == [200] * endings.count(0)
