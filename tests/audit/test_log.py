"""The audit file: whole lines in order, nothing lost, nothing twice, whatever becomes of the disk or the reader."""

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.audit.log import PATIENT, PIECE, AuditLog, open_file
from smtpproxy.session.records import AuditRecord, Kind
from tests.peers import unavailable


class Told:
    """What AuditLog says of trouble."""

    def __init__(self) -> None:
        self.errors: list[int | None] = []

    def __call__(self, error: OSError | None) -> None:
        """As `trouble`."""
        self.errors.append(error.errno if error else None)


def _note(number: int, size: int = 0) -> AuditRecord:
    return AuditRecord(Kind.NOTE, float(number), detail={"number": number, "filler": "x" * size})


def _log(descriptor: int, told: Told | None = None) -> AuditLog:
    return AuditLog(descriptor, wall=lambda at: 1_700_000_000 + at, trouble=told or Told())


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "audit.jsonl"
    descriptor = open_file(str(path))
    yield path, descriptor
    os.close(descriptor)


def _lines(octets: bytes) -> list[dict[str, Any]]:
    assert octets.endswith(b"\n")
    return [json.loads(line) for line in octets.splitlines()]


def test_a_record_is_a_line_with_version_time_sequence_and_session(file: tuple[Path, int]) -> None:
    path, descriptor = file
    log = _log(descriptor)
    log.session("a-1")(_note(1))
    log.session("a-2")(_note(2))
    assert path.read_bytes() == b""
    assert log.flush()
    first, second = _lines(path.read_bytes())
    assert first == {
        "v": 1, "at": "2023-11-14T22:13:21Z", "seq": 1, "session": "a-1", "kind": "note", "number": 1, "filler": "",
    }  # fmt: skip
    assert (second["seq"], second["session"]) == (2, "a-2")


def test_nothing_to_write_is_no_write(file: tuple[Path, int]) -> None:
    assert _log(file[1]).flush()
    assert file[0].read_bytes() == b""


def test_one_write_for_many_records(file: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    path, descriptor = file
    sizes: list[int] = []
    write = os.write

    def counted(descriptor: int, octets: bytes) -> int:
        sizes.append(len(octets))
        return write(descriptor, octets)

    monkeypatch.setattr(os, "write", counted)
    log = _log(descriptor)
    record = log.session("a")
    for number in range(100):
        record(_note(number))
    assert log.flush()
    assert log.flush()
    assert sizes == [path.stat().st_size]


def test_line_ends_and_controls_in_text_stay_one_line(file: tuple[Path, int]) -> None:
    """J8: CR, LF, ESC and JSON in what an attacker said."""
    path, descriptor = file
    log = _log(descriptor)
    text = 'a\r\nb\x1b[2J"} {"kind":"tx-commit"}\x00\x7f\u2028é'
    log.session("a")(AuditRecord(Kind.NOTE, 0.0, detail={"why": text}))
    assert log.flush()
    octets = path.read_bytes()
    assert octets.count(b"\n") == 1
    assert b"\x1b" not in octets
    assert _lines(octets)[0]["why"] == text


def test_a_full_device_is_told_once_and_nothing_is_lost() -> None:
    told = Told()
    descriptor = os.open("/dev/full", os.O_WRONLY)
    log = _log(descriptor, told)
    record = log.session("a")
    for number in range(5):
        record(_note(number))
        assert not log.flush()
    assert told.errors == [errno.ENOSPC]
    with _pipe() as (reading, writing):
        os.dup2(writing, descriptor)
        record(_note(5))
        assert log.flush()
        assert [line["number"] for line in _lines(os.read(reading, 65_536))] == [0, 1, 2, 3, 4, 5]
    assert told.errors == [errno.ENOSPC, None]
    assert log.flush()
    os.close(descriptor)


@contextmanager
def _file_size(limit: int) -> Iterator[None]:
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_disk_that_fills_up_in_the_middle_of_a_line_goes_on_in_the_middle_of_it(file: tuple[Path, int]) -> None:
    path, descriptor = file
    told = Told()
    log = _log(descriptor, told)
    record = log.session("a")
    for number in range(20):
        record(_note(number, 100))
    with _file_size(1000):
        assert not log.flush()
        assert path.stat().st_size == 1000
        assert not log.flush()
        record(_note(20, 100))
        assert not log.flush()
        assert path.stat().st_size == 1000
    assert told.errors == [errno.EFBIG]
    record(_note(21, 100))
    assert log.flush()
    assert [line["number"] for line in _lines(path.read_bytes())] == list(range(22))
    assert told.errors == [errno.EFBIG, None]


def test_a_small_file_system(tmp_path: Path) -> None:
    """A real one that is full, and then has room again."""
    if os.geteuid():
        unavailable("mounting a tmpfs takes root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", tmp_path], capture_output=True)
    if mounted.returncode:
        unavailable("a tmpfs can't be mounted here")
    try:
        ballast = tmp_path / "ballast"
        ballast.write_bytes(bytes(8192))
        descriptor = open_file(str(tmp_path / "audit"))
        told = Told()
        log = _log(descriptor, told)
        record = log.session("a")
        for number in range(80):
            record(_note(number, 50))
            if not log.flush():
                break
        assert told.errors == [errno.ENOSPC]
        ballast.unlink()
        assert log.flush()
        assert [line["number"] for line in _lines((tmp_path / "audit").read_bytes())] == list(range(number + 1))
        os.close(descriptor)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_full_pipe_is_waited_for_without_blocking(blocking: bool) -> None:
    """Standard output under a service manager: a reader that hangs must not stop the process from hearing signals."""
    with _pipe() as (reading, writing):
        os.set_blocking(writing, blocking)
        log = _log(writing)
        record = log.session("a")
        for number in range(200):
            record(_note(number, 200))
        # In a thread, so that a write that blocks is a failure and not the end of the tests.
        done: list[bool] = []
        thread = threading.Thread(target=lambda: done.append(log.flush()), daemon=True)
        thread.start()
        thread.join(3)
        assert done == [False]
        got = b""
        while not log.flush():
            got += os.read(reading, 3000)
        os.set_blocking(reading, False)
        while True:
            try:
                got += os.read(reading, 65_536)
            except BlockingIOError:
                break
        assert [line["number"] for line in _lines(got)] == list(range(200))


def test_a_slow_reader_is_no_trouble_but_one_that_hangs_is() -> None:
    told = Told()
    with _pipe() as (reading, writing):
        log = _log(writing, told)
        record = log.session("a")
        for number in range(100):
            record(_note(number, 200))
        for _ in range(PATIENT - 1):
            assert not log.flush()
        assert told.errors == []
        os.read(reading, 65_536)
        for _ in range(PATIENT + 5):
            assert not log.flush()
        assert told.errors == [errno.EAGAIN]
        while not log.flush():
            os.read(reading, 65_536)
        assert told.errors == [errno.EAGAIN, None]


def test_a_reader_that_is_gone_is_trouble() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    told = Told()
    log = _log(writing, told)
    log.session("a")(_note(1))
    assert not log.flush()
    assert not log.flush()
    assert told.errors == [errno.EPIPE]
    os.close(writing)


def test_a_socket_is_as_good_as_a_pipe() -> None:
    """journald gives one."""
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        log = _log(ours.fileno())
        record = log.session("a")
        for number in range(5000):
            record(_note(number, 200))
        got = b""
        while not log.flush():
            got += theirs.recv(1_000_000)
        while not got.endswith(b"\n") or got.count(b"\n") < 5000:
            got += theirs.recv(1_000_000)
        assert [line["number"] for line in _lines(got)] == list(range(5000))


def test_a_large_record_goes_through_a_pipe_in_pieces() -> None:
    with _pipe() as (reading, writing):
        log = _log(writing)
        log.session("a")(_note(1, 20 * PIECE))
        got = b""
        while not log.flush():
            got += os.read(reading, 65_536)
        while not got.endswith(b"\n"):
            got += os.read(reading, 65_536)
        assert len(_lines(got)[0]["filler"]) == 20 * PIECE


# ------------------------------------------------------------------------------------------------- the file


def test_a_new_file_is_not_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    os.close(open_file(str(path)))
    assert path.stat().st_mode & 0o007 == 0


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    path.write_bytes(b'{"old":1}\n')
    descriptor = open_file(str(path))
    log = _log(descriptor)
    log.session("a")(_note(1))
    assert log.flush()
    os.close(descriptor)
    assert [line.get("old") for line in _lines(path.read_bytes())] == [1, None]


def test_a_line_cut_off_by_a_crash_does_not_swallow_the_next_one(tmp_path: Path) -> None:
    """J7: the cut stays visible, and every other line can be read."""
    path = tmp_path / "audit"
    path.write_bytes(b'{"old":1}\n{"old":')
    descriptor = open_file(str(path))
    log = _log(descriptor)
    log.session("a")(_note(1))
    assert log.flush()
    os.close(descriptor)
    old, cut, new = path.read_bytes().splitlines()
    assert json.loads(old) == {"old": 1}
    assert cut == b'{"old":'
    assert json.loads(new)["number"] == 1


@pytest.mark.parametrize("name", ["missing/audit", "."])
def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path, name: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="directory"):
        open_file(str(tmp_path / name))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_fifo_nobody_reads_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device"):
        open_file(str(tmp_path / "fifo"))


def test_a_device_can_be_opened() -> None:
    os.close(open_file("/dev/null"))


def test_two_processes_do_not_cut_each_others_lines(tmp_path: Path) -> None:
    """A restart: the old process drains while the new one writes."""
    code = (
        "import sys; from smtpproxy.audit.log import *; from smtpproxy.session.records import *\n"
        "log = AuditLog(open_file(sys.argv[1]), wall=lambda at: at); record = log.session(sys.argv[2])\n"
        "for n in range(2000):\n record(AuditRecord(Kind.NOTE, 0.0, detail={'n': n, 'x': 'x' * 300})); log.flush()\n"
    )
    path = tmp_path / "audit"
    both = [subprocess.Popen([sys.executable, "-c", code, path, name]) for name in "ab"]
    assert [process.wait(30) for process in both] == [0, 0]
    lines = _lines(path.read_bytes())
    assert [line["n"] for line in lines if line["session"] == "a"] == list(range(2000))
    assert [line["n"] for line in lines if line["session"] == "b"] == list(range(2000))
