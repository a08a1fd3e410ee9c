"""The audit file: whole lines in order, nothing lost, nothing twice, whatever becomes of the disk or the reader."""

import contextlib
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.audit.appending import PIECE, Appender, WriteLock, open_file
from smtpproxy.audit.entries import entry_of, is_erasable
from smtpproxy.audit.lines import Private
from smtpproxy.audit.log import PATIENT, AuditLog
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.state import Transaction
from smtpproxy.smtp.values import Path as MailPath
from tests.audit.forks import ended, fork
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


def _log(descriptor: int, told: Told | None = None, lock: WriteLock | None = None) -> AuditLog:
    return AuditLog([Appender(descriptor, lock)], wall=lambda at: 1_700_000_000 + at, trouble=told or Told())


@contextmanager
def _pipe(writes: int = 1) -> Iterator[tuple[int, int]]:
    """A pipe with room for so many writes, of up to 4096 octets each."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, writes * 4096)
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
        "v": 1, "at": "2023-11-14T22:13:21Z", "up": 1.0, "seq": 1, "session": "a-1", "kind": "note", "number": 1,
        "filler": "",
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
        "import sys; from smtpproxy.audit.appending import *; from smtpproxy.audit.log import *\n"
        "from smtpproxy.session.records import *\n"
        "log = AuditLog([Appender(open_file(sys.argv[1]))], wall=lambda at: at); record = log.session(sys.argv[2])\n"
        "for n in range(2000):\n record(AuditRecord(Kind.NOTE, 0.0, detail={'n': n, 'x': 'x' * 300})); log.flush()\n"
    )
    path = tmp_path / "audit"
    both = [subprocess.Popen([sys.executable, "-c", code, path, name]) for name in "ab"]
    assert [process.wait(30) for process in both] == [0, 0]
    lines = _lines(path.read_bytes())
    assert [line["n"] for line in lines if line["session"] == "a"] == list(range(2000))
    assert [line["n"] for line in lines if line["session"] == "b"] == list(range(2000))


# -------------------------------------------------------------------------------- several processes, one file or pipe


class Writer:
    """A forked process that writes with this lock when it is told to, and can be killed."""

    def __init__(self, descriptor: int, lock: WriteLock, session: str, size: int = 0) -> None:
        self._here, there = socket.socketpair()
        self._here.settimeout(20)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads behind
            self.pid = os.fork()
        if self.pid == 0:
            self._here.close()
            try:
                self._work(there, descriptor, lock, session, size)
            finally:
                os._exit(0)
        there.close()

    @staticmethod
    def _work(orders: socket.socket, descriptor: int, lock: WriteLock, session: str, size: int) -> None:
        told = Told()
        log = _log(descriptor, told, lock)
        record = log.session(session)
        number = 0
        while order := orders.recv(1):
            if order == b"r":
                record(_note(number, size))
                number += 1
            if order == b"w":  # as the reactor does, which waits a little in between
                while not log.flush():
                    pass
            orders.send(b"y" if order == b"r" or log.flush() else b"T" if told.errors else b"n")

    def __call__(self, order: str) -> str:
        """r: record something; f: flush; w: flush until that is done. y: it is; n: not yet; T: not, and told so."""
        self._here.sendall(order.encode())
        return self._here.recv(1).decode()

    def begin(self, order: str) -> None:
        """Have it done without waiting for it."""
        self._here.sendall(order.encode())

    def done(self) -> str:
        """What came of it."""
        return self._here.recv(1).decode()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._here.close()


@contextmanager
def _writers(descriptor: int, lock: WriteLock, *sizes: int) -> Iterator[list[Writer]]:
    writers = [Writer(descriptor, lock, f"{number}", size) for number, size in enumerate(sizes)]
    try:
        yield writers
    finally:
        for writer in writers:
            if writer._here.fileno() >= 0:
                writer.kill()


@pytest.fixture
def lock() -> Iterator[WriteLock]:
    lock = WriteLock()
    yield lock
    os.close(lock.fileno())


def _sessions(octets: bytes) -> list[tuple[str, int]]:
    return [(line["session"], line["number"]) for line in _lines(octets)]


def _read(descriptor: int) -> bytes:
    """All that is in the pipe."""
    got = b""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while octets := os.read(descriptor, 65_536):
            got += octets
    return got


def test_processes_take_turns(file: tuple[Path, int], lock: WriteLock) -> None:
    path, descriptor = file
    with _writers(descriptor, lock, 0, 0) as (one, two):
        for writer in (one, two, one):
            assert (writer("r"), writer("f")) == ("y", "y")
    assert _sessions(path.read_bytes()) == [("0", 0), ("1", 0), ("0", 1)]


def test_whole_lines_from_many_processes_through_a_full_pipe(lock: WriteLock) -> None:
    """Each line is longer than what a pipe takes at once, and the reader is slow: without the lock they would mix."""
    with _pipe(4) as (reading, writing), _writers(writing, lock, *[3 * PIECE] * 3) as writers:
        for writer in writers:
            for _ in range(20):
                assert writer("r") == "y"
            writer.begin("w")
        got = b""
        while got.count(b"\n") < 60:
            got += os.read(reading, 1000)
        assert [writer.done() for writer in writers] == ["y"] * 3
    assert sorted(_sessions(got)) == [(str(session), number) for session in range(3) for number in range(20)]


def test_who_is_in_the_middle_of_a_line_is_waited_for_without_blocking(lock: WriteLock) -> None:
    """Across flushes; and that is no trouble at first."""
    with _pipe(4) as (reading, writing), _writers(writing, lock, 6 * PIECE, 0) as (one, two):
        one("r"), two("r")
        assert one("f") == "n"  # half a line is in the pipe
        got = _read(reading)
        assert got.count(b"\n") == 0
        for _ in range(PATIENT - 1):
            assert two("f") == "n"  # there is room, and it is not its turn
        assert two("f") == "T"
        assert _read(reading) == b""
        while one("f") != "y":
            got += _read(reading)
        assert two("f") == "y"
        assert _sessions(got + _read(reading)) == [("0", 0), ("1", 0)]


def test_why_it_is_not_written_is_told(lock: WriteLock) -> None:
    with _pipe(4) as (reading, writing), _writers(writing, lock, 6 * PIECE) as (one,):
        one("r"), one("f")
        why: list[str] = []
        log = AuditLog([Appender(writing, lock)], wall=lambda at: at, trouble=lambda error: why.append(str(error)))
        log.session("a")(_note(1))
        for _ in range(PATIENT):
            assert not log.flush()
        assert why == ["[Errno 11] another worker is in the middle of a line"]
        got = _read(reading)
        while one("f") != "y":
            got += _read(reading)
        assert log.flush()
        assert why[1:] == ["None"]
        assert _sessions(got + _read(reading)) == [("0", 0), ("a", 1)]


def test_who_has_not_begun_a_line_lets_others_go_first(lock: WriteLock) -> None:
    """A pipe that has no room at all: nobody has the lock for it."""
    with _pipe(4) as (reading, writing), _writers(writing, lock, 0, 0) as (one, two):
        assert [os.write(writing, bytes(PIECE)) for _ in range(4)] == [PIECE] * 4
        one("r"), two("r")
        assert (one("f"), two("f")) == ("n", "n")
        os.read(reading, 4 * PIECE)
        assert (two("f"), one("f")) == ("y", "y")
        assert _sessions(_read(reading)) == [("1", 0), ("0", 0)]


def test_a_line_cut_off_by_a_kill_is_ended_by_the_next_who_writes(lock: WriteLock) -> None:
    """The cut stays visible, every other line can be read, and the lock is free."""
    with _pipe(4) as (reading, writing), _writers(writing, lock, 6 * PIECE, 0, 0) as (one, two, three):
        one("r"), two("r"), three("r")
        assert one("f") == "n"
        one.kill()
        assert two("f") == "n"  # there is no room for the end of that line
        assert three("f") == "n"
        cut = _read(reading)
        assert (three("f"), two("f")) == ("y", "y")
        got = _read(reading)
        assert cut + got[:1] == cut[: 4 * PIECE] + b"\n"
        assert _sessions(got[1:]) == [("2", 0), ("1", 0)]


def test_a_kill_between_lines_leaves_nothing_to_mend(file: tuple[Path, int], lock: WriteLock) -> None:
    path, descriptor = file
    with _writers(descriptor, lock, 0, 0) as (one, two):
        one("r"), one("f"), one("r")
        one.kill()
        two("r"), two("f")
    assert _sessions(path.read_bytes()) == [("0", 0), ("1", 0)]


def test_a_write_that_fails_begins_no_line(lock: WriteLock) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    with _writers(descriptor, lock, 0) as (one,), _pipe(4) as (reading, writing):
        one("r")
        assert one("f") == "T"
        other = _log(writing, lock=lock)
        other.session("a")(_note(1))
        assert other.flush()
        assert _sessions(_read(reading)) == [("a", 1)]
    os.close(descriptor)


def test_a_cut_that_could_not_be_ended_is_ended_by_the_next(lock: WriteLock) -> None:
    """The disk is full when somebody tries to."""
    full = os.open("/dev/full", os.O_WRONLY)
    with _pipe(4) as (reading, writing), _writers(writing, lock, 6 * PIECE) as (one,):
        one("r"), one("f")
        one.kill()
        _read(reading)
        unlucky, lucky = _log(full, lock=lock), _log(writing, lock=lock)
        for number, log in enumerate((unlucky, lucky)):
            log.session("a")(_note(number))
        assert not unlucky.flush()
        assert lucky.flush()
        assert _read(reading)[:1] == b"\n"
        os.dup2(writing, full)
        assert unlucky.flush()
        assert _sessions(_read(reading)) == [("a", 0)]
    os.close(full)


def test_a_disk_that_fills_up_in_the_middle_of_a_line_keeps_others_from_cutting_it(
    file: tuple[Path, int], lock: WriteLock
) -> None:
    path, descriptor = file
    log = _log(descriptor, lock=lock)
    record = log.session("a")
    for number in range(20):
        record(_note(number, 100))
    with _writers(descriptor, lock, 0) as (other,):
        other("r")
        with _file_size(1000):
            assert not log.flush()
        assert other("f") == "n"
        record(_note(20, 100))
        assert log.flush()
        assert other("f") == "y"
    assert _sessions(path.read_bytes()) == [*(("a", number) for number in range(21)), ("0", 0)]


def test_a_line_cut_off_by_a_full_disk_and_a_kill_is_ended(file: tuple[Path, int], lock: WriteLock) -> None:
    """It tried again in between, and nothing could be written."""
    path, descriptor = file
    with _file_size(1000), _writers(descriptor, lock, 2000) as (one,):
        one("r")
        assert [one("f"), one("f")] == ["T", "T"]
    log = _log(descriptor, lock=lock)
    log.session("a")(_note(1))
    assert log.flush()
    cut, whole = path.read_bytes().splitlines()
    assert (len(cut), json.loads(whole)["number"]) == (1000, 1)


def test_a_lock_can_be_passed_on_to_another_program(lock: WriteLock, file: tuple[Path, int]) -> None:
    """A new version takes over while the old one still writes: both have the same."""
    path, descriptor = file
    assert not os.get_inheritable(lock.fileno())
    code = (
        "import sys; from smtpproxy.audit.appending import *; from smtpproxy.audit.log import *\n"
        "from smtpproxy.session.records import *\n"
        "log = AuditLog([Appender(int(sys.argv[1]), WriteLock(int(sys.argv[2])))], wall=lambda at: at)\n"
        "log.session('b')(AuditRecord(Kind.NOTE, 0.0, detail={'number': 7}))\n"
        "while not log.flush(): print('waits', flush=True); sys.stdin.readline()\n"
    )
    log = _log(descriptor, lock=lock)
    log.session("a")(_note(0, 5000))
    with _file_size(1000):
        assert not log.flush()
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(descriptor), str(lock.fileno())],
        pass_fds=(descriptor, lock.fileno()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"waits\n"
        assert log.flush()
        other.communicate(b"go on\n", 20)
    assert _sessions(path.read_bytes()) == [("a", 0), ("b", 7)]


# ------------------------------------------------------------------------------------------- salts, places, the disk


class Place(Appender):
    """A file of its own that can fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(open_file(str(path)))
        self.error: OSError | None = None
        self.flushed = 0

    def flush(self) -> None:
        if self.error is not None:
            raise self.error
        self.flushed += 1
        super().flush()


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Place, Place]]:
    both = Place(tmp_path / "first"), Place(tmp_path / "second")
    yield both
    for place in both:
        os.close(place.descriptor)


def _content(place: Place) -> bytes:
    return Path(os.readlink(f"/proc/self/fd/{place.descriptor}")).read_bytes()


EXAMPLE = AuditRecord(Kind.CONNECT, 1.0, detail={"client": "192.0.2.1:9", "listener": "in", "server": "mx:25"})


def test_what_is_personal_stands_behind_a_fresh_salt(places: tuple[Place, Place]) -> None:
    log = AuditLog(places[:1], wall=lambda at: 1_700_000_000 + at, salted=True)
    record = log.session("a-1")
    for _ in range(200):
        record(EXAMPLE)
    record(_note(1))
    assert log.flush()
    *found, note = _content(places[0]).splitlines()
    for line in found:
        head = b'{"v":1,"at":"2023-11-14T22:13:21Z","up":1.0,"seq":'
        assert line.startswith(head)
        said = json.loads(line)
        assert list(said) == ["v", "at", "up", "seq", "session", "kind", "listener", "server", "salt", "client"]
        assert is_erasable(line)
        assert b"192.0.2.1" not in entry_of(line)
        assert json.loads(entry_of(line))["server"] == "mx:25"
    assert len({json.loads(line)["salt"] for line in found}) == 200
    assert b"salt" not in note, "there is nothing personal in it"


def test_without_a_store_there_is_no_salt(places: tuple[Place, Place]) -> None:
    log = AuditLog(places[:1], wall=lambda at: at)
    log.session("a-1")(EXAMPLE)
    assert log.flush()
    assert b"salt" not in _content(places[0])
    assert json.loads(_content(places[0]))["client"] == "192.0.2.1:9"


def test_forked_processes_have_salts_of_their_own(places: tuple[Place, Place]) -> None:
    """Made before the fork, they would be the same in both: then one may guess what is erased in the other."""
    for name in "ab":

        def work(name: str = name) -> None:
            log = AuditLog(places[:1], wall=lambda at: at, salted=True)
            record = log.session(name)
            for _ in range(100):
                record(EXAMPLE)
            assert log.flush()

        assert ended(fork(work)) == 0
    assert len({json.loads(line)["salt"] for line in _content(places[0]).splitlines()}) == 200


@pytest.mark.parametrize(
    "text", [',"salt":"', '","salt":"AAAA","x":"', '"}', "\\", '\\","salt":"', "\n\r\x00\x1b\u2028"]
)
def test_no_text_ends_what_is_public(places: tuple[Place, Place], text: str) -> None:
    """A rule's name, a Message-ID, a reply: whatever stands there, there is one salt, and the entry is JSON."""
    log = AuditLog(places[:1], wall=lambda at: at, salted=True)
    log.session(text)(AuditRecord(Kind.NOTE, 0.0, detail={text: text, "told": text, "client": text}))
    assert log.flush()
    (line,) = _content(places[0]).splitlines()
    said, entry = json.loads(line), json.loads(entry_of(line))
    assert (said["told"], said["client"], entry[text], entry["session"]) == (text, text, text, text)
    assert set(entry) == {"v", "at", "up", "seq", "session", "kind", text, "personal"}


def test_both_places_have_the_same_lines(places: tuple[Place, Place]) -> None:
    log = AuditLog(places, wall=lambda at: at, salted=True)
    record = log.session("a-1")
    for _ in range(10):
        record(EXAMPLE)
    assert log.flush()
    assert _content(places[0]) == _content(places[1]) != b""


@pytest.mark.parametrize("failing", [0, 1])
def test_one_place_that_fails_keeps_all_back_and_nothing_is_written_twice(
    places: tuple[Place, Place], failing: int
) -> None:
    told = Told()
    log = AuditLog(places, wall=lambda at: at, trouble=told)
    record = log.session("a-1")
    places[failing].error = OSError(errno.ENOSPC, "full")
    for number in range(3):
        record(_note(number))
        assert not log.flush()
    assert told.errors == [errno.ENOSPC]
    places[failing].error = None
    assert log.flush()
    for place in places:
        assert [line["number"] for line in _lines(_content(place))] == [0, 1, 2]
    assert told.errors == [errno.ENOSPC, None]


def test_nothing_to_write_asks_no_place(places: tuple[Place, Place]) -> None:
    log = AuditLog(places, wall=lambda at: at)
    assert log.flush()
    log.session("a")(_note(1))
    assert log.flush()
    assert log.flush()
    assert [place.flushed for place in places] == [1, 1]


def test_the_clocks(places: tuple[Place, Place]) -> None:
    """`at` follows the wall's, which may go back; `up` the machine's."""
    offset = 1_700_000_000.0
    log = AuditLog(places[:1], wall=lambda at: at + offset)
    record = log.session("a")
    record(_note(10))
    offset -= 3600
    record(AuditRecord(Kind.NOTE, 10.0000004, detail={}))
    assert log.flush()
    first, second = _lines(_content(places[0]))
    assert (first["at"], first["up"]) == ("2023-11-14T22:13:30Z", 10.0)
    assert (second["at"], second["up"]) == ("2023-11-14T21:13:30Z", 10.0)


def test_each_record_is_counted_too(places: tuple[Place, Place]) -> None:
    counted: list[AuditRecord] = []
    log = AuditLog(places[:1], wall=lambda at: at, meter=counted.append)
    log.session("a")(EXAMPLE)
    assert counted == [EXAMPLE]
    assert _content(places[0]) == b""


COMMITTED = AuditRecord(Kind.COMMIT, 2.0, None, Transaction(1, MailPath(b"a", b"x.example"), ()))


def _unsettled(log: AuditLog) -> bool:
    return log.unsettled


def test_a_mail_is_settled_before_it_is_told(places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    log = AuditLog(places, wall=lambda at: at, durable=places[1])
    record = log.session("a")
    record(EXAMPLE)
    assert log.flush()
    assert not _unsettled(log), "nothing depends on it"
    record(COMMITTED)
    assert not _unsettled(log)
    places[1].error = OSError(errno.ENOSPC, "full")
    assert not log.flush()
    assert not _unsettled(log), "it is not even written"
    places[1].error = None
    record(EXAMPLE)
    assert log.flush()
    assert _unsettled(log)
    assert log.flush()
    assert _unsettled(log)
    assert synced == []
    log.settle()
    assert synced == [places[1].descriptor]
    assert not _unsettled(log)
    record(EXAMPLE)
    assert log.flush()
    assert not _unsettled(log)


def test_who_does_not_ask_for_it_waits_for_no_disk(
    places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: pytest.fail("nobody asked for it"))
    log = AuditLog(places, wall=lambda at: at)
    log.session("a")(COMMITTED)
    assert log.flush()
    assert not _unsettled(log)
    log.settle()


def test_a_disk_that_fails_is_not_taken_for_one_that_has_it(
    places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fdatasync", broken)
    log = AuditLog(places, wall=lambda at: at, durable=places[0])
    log.session("a")(COMMITTED)
    assert log.flush()
    with pytest.raises(OSError, match="broken"):
        log.settle()


def test_what_one_session_keeps_private_another_does_not(places: tuple[Place, Place]) -> None:
    class Hidden:
        def path(self, path: MailPath) -> str:
            return "hidden"

        command = text = signing_in = identity = message_id = lambda self, text: "hidden"

    log = AuditLog(places[:1], wall=lambda at: at, salted=True)
    log.session("a", Private(Hidden()))(COMMITTED)
    log.session("b")(COMMITTED)
    assert log.flush()
    assert [line["mail"] for line in _lines(_content(places[0]))] == ["hidden", "a@x.example"]
