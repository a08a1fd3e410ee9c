"""The recorder's process: when it takes the store, lets it go, takes over what is left, and ends.

It runs in a process of its own, by itself: who tells it what to do is the test.
"""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.audit.journal import Journal
from smtpproxy.audit.keys import create
from smtpproxy.net.recordingprocess import FAILED, LEAVE, READY, STOP
from smtpproxy.store.owning import take
from smtpproxy.store.reading import open_reader
from tests.store.signing import verified

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 20.0
PROGRAM = """
import json, os, socket, sys
from smtpproxy.config import Config
from smtpproxy.net.privileges import Identity
from smtpproxy.net.recordingprocess import Task, run
orders = socket.socket(fileno=int(sys.argv[1]))
identity = Identity(os.geteuid(), os.getegid(), tuple(os.getgroups()))
sys.exit(run(Task(Config.model_validate(json.loads(sys.argv[2])), identity, sys.argv[3] == "left"), orders))
"""


def until(condition: Callable[[], Any], failure: str) -> None:
    """Nobody tells of it."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, failure
        time.sleep(0.005)


class Recording:
    """A recorder, and the supervisor's end of its socket."""

    def __init__(self, directory: Path, *, left: bool = False, **audit: Any) -> None:
        self.directory = directory
        self.orders, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        config = json.dumps({"audit": {"file": "", "store": str(directory), **audit}})
        with its:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(its.fileno()), config, "left" if left else ""],
                stdout=subprocess.PIPE,  # where the log goes, as nobody configured it
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                pass_fds=[its.fileno()],
            )

    def hears(self) -> bytes:
        """What it says to its supervisor; b"" if that is nothing any more."""
        ready, _, _ = select.select([self.orders], [], [], DEADLINE)
        assert ready, "it says nothing"
        return self.orders.recv(4096)

    def ends(self) -> tuple[int, str]:
        """Its exit code, and all that it logged."""
        said, _ = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, said.decode()

    def kinds(self) -> list[str]:
        """Of the records that are in the store."""
        return [json.loads(line)["kind"] for line in self.lines()]

    def lines(self) -> list[bytes]:
        """They themselves; none while there is no store."""
        if not (self.directory / "audit.db").exists():
            return []
        try:
            reader = open_reader(str(self.directory))
        except Exception:  # it is being made
            return []
        try:
            return [line for _, line in reader.lines(0)]
        finally:
            reader.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "store/journal").mkdir(parents=True)
    return tmp_path / "store"


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Recording]]:
    with contextlib.ExitStack() as stack:

        def started(**audit: Any) -> Recording:
            made = Recording(directory, **audit)
            stack.callback(made.process.communicate)
            stack.callback(made.process.kill)
            stack.callback(made.orders.close)
            return made

        yield started


@pytest.fixture
def journal(directory: Path) -> Iterator[Journal]:
    made = Journal(directory / "journal")
    yield made
    with contextlib.suppress(OSError):
        made.close()


def write(journal: Journal, *numbers: int) -> None:
    """Records, as a worker does."""
    for number in numbers:
        line = {"v": 1, "at": "2026-11-24T00:00:00Z", "seq": number, "session": "w-1", "kind": "note", "n": number}
        journal.add(json.dumps(line).encode() + b"\n")
    journal.flush()


Start = Callable[..., Recording]


def test_it_takes_over_what_is_written(start: Start, journal: Journal) -> None:
    """What was there before it, and what comes then."""
    write(journal, 1, 2)
    recorder = start()
    assert recorder.hears() == READY
    until(lambda: len(recorder.lines()) == 2, "what was there is not taken over")
    write(journal, 3)
    until(lambda: len(recorder.lines()) == 3, "what came is not taken over")
    assert [json.loads(line)["n"] for line in recorder.lines()] == [1, 2, 3]


def test_stop(start: Start, journal: Journal, directory: Path) -> None:
    """What is there is taken over, a checkpoint is made of it, and it ends."""
    recorder = start()
    assert recorder.hears() == READY
    until(lambda: (directory / "audit.db").exists(), "no store is made")
    write(journal, *range(1, 500))
    recorder.orders.send(STOP)
    assert recorder.ends()[0] == 0
    assert len(recorder.lines()) == 499
    report = verified(directory)
    assert report.findings == []
    assert report.records == 499
    reader = open_reader(str(directory))
    try:
        assert list(reader.rows("SELECT max(size) FROM checkpoint")) == [(499,)]
    finally:
        reader.close()


def test_without_its_supervisor_it_goes_on_while_somebody_writes(start: Start, journal: Journal) -> None:
    """And ends behind the last one, with all of it."""
    recorder = start()
    assert recorder.hears() == READY
    recorder.orders.close()
    write(journal, 1)
    until(lambda: len(recorder.lines()) == 1, "nothing is taken over any more")
    write(journal, 2)
    until(lambda: len(recorder.lines()) == 2, "nothing is taken over any more")
    assert recorder.process.poll() is None
    write(journal, 3)
    journal.close()
    assert recorder.ends()[0] == 0
    assert len(recorder.lines()) == 3


def test_only_one_is_at_work(start: Start, journal: Journal) -> None:
    """The second one waits for the lock, and goes on where the first one was."""
    first = start()
    assert first.hears() == READY
    write(journal, 1)
    until(lambda: len(first.lines()) == 1, "nothing is taken over")
    second = start()
    assert second.hears() == READY
    first.process.kill()
    write(journal, 2)
    until(lambda: len(second.lines()) == 2, "the second one does not go on")
    second.orders.send(STOP)
    assert second.ends()[0] == 0
    assert second.kinds() == ["note", "note"]


def test_leave(start: Start, journal: Journal, directory: Path) -> None:
    """Who waits for the lock has it then."""
    first = start()
    assert first.hears() == READY
    until(lambda: (directory / "audit.db").exists(), "no store is made")
    second = start()
    assert second.hears() == READY
    first.orders.send(LEAVE)
    until(lambda: _has(second, directory), "the next one does not get the store")
    assert not _has(first, directory)
    write(journal, 1)
    until(lambda: len(second.lines()) == 1, "nothing is taken over")
    second.orders.send(STOP)
    assert second.ends()[0] == 0


def test_leave_where_nobody_comes(start: Start, journal: Journal, directory: Path) -> None:
    """The next generation has another store: what the old one's sessions still say is taken over here."""
    recorder = start()
    assert recorder.hears() == READY
    until(lambda: _has(recorder, directory), "no store is made")
    recorder.orders.send(LEAVE)
    until(lambda: not _has(recorder, directory), "it does not let go")
    write(journal, 1)
    until(lambda: recorder.kinds() == ["note"], "nobody takes over what the old sessions say")
    recorder.orders.send(STOP)
    assert recorder.ends()[0] == 0


def test_one_that_is_started_behind_another_comes_second(start: Start, directory: Path) -> None:
    """It was started again in a generation that has left: who serves has the first word."""
    recorder = start(left=True)
    assert recorder.hears() == READY
    lock = take(directory)
    assert lock is not None, "it did not wait"
    try:
        assert not _has(recorder, directory)
    finally:
        os.close(lock)
    until(lambda: _has(recorder, directory), "it never takes it")


def _has(recorder: Recording, directory: Path) -> bool:
    """The database is open there."""
    found = []
    for link in Path(f"/proc/{recorder.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(link))
    return str(directory / "audit.db") in found


def test_a_key_that_cannot_be_read(start: Start, tmp_path: Path) -> None:
    """The supervisor is told why, and there is no recorder."""
    recorder = start(key=str(tmp_path / "none.key"))
    said = recorder.hears()
    assert said.startswith(FAILED)
    assert b"none.key" in said
    assert recorder.ends()[0] == 2


def test_checkpoints_are_signed(start: Start, journal: Journal, tmp_path: Path, directory: Path) -> None:
    """By the key's name; who keeps the other half sees that it was this gateway's."""
    vkey = create(tmp_path / "audit.key", "gw.example/audit")
    recorder = start(key=str(tmp_path / "audit.key"))
    assert recorder.hears() == READY
    write(journal, 1)
    until(lambda: len(recorder.lines()) == 1, "nothing is taken over")
    recorder.orders.send(STOP)
    assert recorder.ends()[0] == 0
    report = verified(directory, vkey=vkey)
    assert report.findings == []


def test_trouble_is_told_once_and_so_is_its_end(start: Start, journal: Journal, directory: Path) -> None:
    """The store can't be made: the journal keeps what there is."""
    (directory / "audit.db").mkdir()
    recorder = start()
    assert recorder.hears() == READY
    write(journal, 1)
    assert recorder.process.stdout is not None
    assert b"the journal keeps it" in recorder.process.stdout.readline()
    (directory / "audit.db").rmdir()
    until(lambda: len(recorder.lines()) == 1, "nothing is taken over")
    recorder.orders.send(STOP)
    code, said = recorder.ends()
    assert code == 0
    assert said.count("the journal keeps it") == 0
    assert said.count("taken over into the store again") == 1


def test_a_line_that_was_cut_off(start: Start, directory: Path) -> None:
    """By a crash of everybody: whoever writes next ends it, and it is on record with its digest."""
    first = Journal(directory / "journal")
    write(first, 1)
    os.write(first.descriptor, b'{"v":1,"kind":"no')
    first.close()
    second = Journal(directory / "journal")
    write(second, 2)
    recorder = start()
    assert recorder.hears() == READY
    recorder.orders.close()
    second.close()
    assert recorder.ends()[0] == 0
    assert recorder.kinds() == ["note", "audit-cut", "note"]
    assert json.loads(recorder.lines()[1])["octets"] == 17
