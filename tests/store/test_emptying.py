"""The journal lets go of what the store has: with a recorder at work, without one, and in the way of others."""

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtpproxy.audit.journal import Journal, segment_path, segments
from smtpproxy.store import emptying
from smtpproxy.store.emptying import settled
from smtpproxy.store.errors import StoreError
from smtpproxy.store.owning import take
from smtpproxy.store.recorder import Recorder, Terms
from smtpproxy.store.store import Store
from tests.audit.forks import forked
from tests.store.filling import Writer
from tests.store.signing import ORIGIN, signer

SECRET = b"alice@example.org"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A store with a key, and a journal with a session that is not taken over yet."""
    (tmp_path / "journal").mkdir()
    Recorder(tmp_path, Terms(ORIGIN, signer())).close()
    with contextlib.closing(Journal(tmp_path / "journal")) as journal:
        for line in Writer().session(SECRET.decode()):
            journal.add(line + b"\n")
        journal.flush()
    yield tmp_path
    with contextlib.closing(Store(tmp_path)) as store:
        assert store.open_sessions == 0


def _journal_octets(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (directory / "journal").glob("*.jsonl"))


def _size(directory: Path) -> int:
    with contextlib.closing(Store(directory, indexes=False)) as store:
        return store.size


def test_without_a_recorder_it_is_done_here(directory: Path) -> None:
    assert SECRET in _journal_octets(directory)
    settled(directory)
    assert _journal_octets(directory) == b""
    size = _size(directory)
    assert size > 10
    settled(directory)
    assert _size(directory) == size


def test_it_signs_nothing_and_leaves_the_names_as_they_were(directory: Path) -> None:
    settled(directory)
    with contextlib.closing(Journal(directory / "journal")) as journal:  # now with what a recorder would sign at once
        journal.add(b'{"v":1,"kind":"note"}\n')
        journal.flush()
    settled(directory)
    with contextlib.closing(Store(directory)) as store:
        assert store.connection.execute("SELECT count(*) FROM checkpoint").fetchone() == (0,)
        assert (store.value("origin"), store.value("vkey")) == (ORIGIN, signer().vkey)


def test_a_session_that_goes_on_is_known_afterwards(directory: Path) -> None:
    lines = list(Writer("fedcba9876").session("late@x.example"))
    with contextlib.closing(Journal(directory / "journal")) as journal:
        journal.add(b"\n".join(lines[:6]) + b"\n")
        journal.flush()
        settled(directory)
        journal.add(b"\n".join(lines[6:]) + b"\n")
        journal.flush()
    settled(directory)
    with contextlib.closing(Store(directory)) as store:
        found = store.connection.execute("SELECT outcome FROM mail WHERE sender = 'example.x@late'").fetchall()
        assert found == [("accepted",)]


def test_a_recorder_at_work_does_it(directory: Path) -> None:
    reading, writing = os.pipe()

    def work() -> None:
        assert take(directory) is not None
        os.write(writing, b"x")
        recorder = Recorder(directory, Terms(ORIGIN, signer()))
        while True:
            recorder.step()

    with forked(work):
        assert os.read(reading, 1) == b"x"
        settled(directory)
        assert SECRET not in _journal_octets(directory)
    os.close(reading)
    os.close(writing)
    settled(directory)


def test_a_recorder_that_does_nothing_is_told_of(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emptying, "PATIENCE", 0.1)
    lock = take(directory)
    assert lock is not None
    with pytest.raises(StoreError, match="has not taken over"):
        settled(directory)
    assert SECRET in _journal_octets(directory)
    os.close(lock)
    settled(directory)
    assert _journal_octets(directory) == b""


def test_somebody_in_the_middle_of_a_line_is_waited_for_and_then_told_of(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emptying, "PATIENCE", 0.1)
    monkeypatch.setattr("smtpproxy.audit.journal.PATIENCE", 0.01)
    reading, writing = os.pipe()

    def hold() -> None:
        Journal(directory / "journal").state.lock.take()
        os.write(writing, b"x")
        signal.pause()

    with forked(hold) as pid:
        assert os.read(reading, 1) == b"x"
        with pytest.raises(StoreError, match="is busy"):
            settled(directory)
        monkeypatch.setattr(emptying, "PATIENCE", 20.0)
        monkeypatch.setattr("smtpproxy.store.emptying.time.sleep", lambda _: os.kill(pid, signal.SIGKILL))
        settled(directory)
    assert _journal_octets(directory) == b""
    os.close(reading)
    os.close(writing)


def test_what_is_written_meanwhile_stays(directory: Path) -> None:
    with contextlib.closing(Journal(directory / "journal")) as journal:
        settled(directory)
        journal.add(b'{"v":1,"new":1}\n')
        journal.flush()
        assert _journal_octets(directory) == b'{"v":1,"new":1}\n'
        number = journal.state.segment
    assert segments(directory / "journal") == [number]
    assert segment_path(directory / "journal", number).stat().st_size == 16


def test_a_copy_without_a_journal(tmp_path: Path) -> None:
    Store(tmp_path, create=True).close()
    settled(tmp_path)
    assert not (tmp_path / "journal").exists()


def test_a_journal_without_a_store(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    with contextlib.closing(Journal(tmp_path / "journal")) as journal:
        journal.add(b"{}\n")
        journal.flush()
    with pytest.raises(StoreError, match="there is no store"):
        settled(tmp_path)
    assert _journal_octets(tmp_path) == b"{}\n"
    lock = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it was let go
    os.close(lock)


def test_a_journal_that_cannot_be_written(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(emptying, "Journal", refused)
        with pytest.raises(StoreError, match="can't be written: Permission denied"):
            settled(directory)
    settled(directory)
