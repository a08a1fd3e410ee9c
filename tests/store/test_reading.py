"""Reading a store: what is asked for, and nothing is ever written."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtpproxy.audit.entries import leaf_of
from smtpproxy.store.errors import StoreError
from smtpproxy.store.reading import Reader, open_reader
from smtpproxy.store.store import DATABASE, Store
from tests.peers import unavailable
from tests.store.filling import Writer, filled, lines


@pytest.fixture
def record() -> list[bytes]:
    return list(lines(40))


@pytest.fixture
def directory(tmp_path: Path, record: list[bytes]) -> Path:
    """Blocks of 1, 2, 3 … lines."""
    directory = tmp_path / "store"
    directory.mkdir()
    store = Store(directory, create=True)
    at, size = 0, 1
    while at < len(record):
        store.append(record[at : at + size])
        at, size = at + size, size + 1
    store.close()
    return directory


@pytest.fixture
def reader(directory: Path) -> Iterator[Reader]:
    reader = open_reader(str(directory))
    yield reader
    reader.close()


def test_all_lines_by_their_numbers(reader: Reader, record: list[bytes]) -> None:
    assert list(reader.lines()) == list(enumerate(record))


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (1, 3), (2, 7), (5, 5), (7, 6), (100, 150), (149, None)])
def test_some_lines(reader: Reader, record: list[bytes], start: int, stop: int | None) -> None:
    end = len(record) if stop is None else stop
    assert list(reader.lines(start, stop)) == [(n, record[n]) for n in range(start, min(end, len(record)))]


def test_what_is_not_there_is_not_found(reader: Reader, record: list[bytes]) -> None:
    assert list(reader.lines(len(record))) == []
    assert list(reader.lines(1 << 50, None)) == []
    assert reader.session_lines(1 << 40) == []
    assert reader.meta("nothing") == ""


def test_blocks_that_have_to_do_with_these_numbers(reader: Reader, record: list[bytes]) -> None:
    found = list(reader.blocks(4, 11))  # 3 to 5, 6 to 9, 10 to 14
    assert [(first, count) for first, count, _, _ in found] == [(3, 3), (6, 4), (10, 5)]
    for first, count, here, leaves in found:
        assert here == record[first : first + count]
        assert leaves == b"".join(leaf_of(line)[:8] for line in here)
    assert [first for first, _, _, _ in reader.blocks(6, 10)] == [6]
    assert sum(count for _, count, _, _ in reader.blocks()) == len(record)


def test_records_that_are_gone_leave_a_gap(directory: Path, record: list[bytes]) -> None:
    connection = sqlite3.connect(directory / DATABASE)
    connection.execute("DELETE FROM block WHERE first IN (0, 1, 6)")
    connection.commit()
    connection.close()
    reader = open_reader(str(directory))
    assert [number for number, _ in reader.lines(0, 12)] == [3, 4, 5, 10, 11]
    assert [number for number, _ in reader.lines(7, 12)] == [10, 11]
    reader.close()


def test_the_lines_of_a_session_are_its_own(tmp_path: Path) -> None:
    """Three at once, one of which goes on; a name in a text is no session's name."""
    store = Store(tmp_path, create=True)
    writers = [Writer(name * 10) for name in "abc"]
    sessions = [
        list(writer.session("liar@x.example", message_id=f'"session":"{"b" * 10}-1",', close=writer is not writers[2]))
        for writer in writers
    ]
    mixed = [line for group in zip(*sessions, strict=False) for line in group]
    mixed += [line for session in sessions for line in session[len(sessions[2]) :]]
    for line in mixed:
        store.append([line])
    store.append(list(Writer("d" * 10).session()))
    store.close()
    reader = open_reader(str(tmp_path))
    for number, session in enumerate(sessions):
        assert [line for _, line in reader.session_lines(number)] == session
        assert reader.session_lines(number) == [(mixed.index(line), line) for line in session]
    assert reader.session_lines(5) == []
    reader.close()


def test_questions_have_parameters(reader: Reader) -> None:
    one = next(reader.rows("SELECT sender FROM mail WHERE outcome = ? AND sender > ? LIMIT 1", ("accepted", "")))
    assert one[0].startswith("example.")
    assert list(reader.rows("SELECT 1 WHERE 1 = ?", (2,))) == []
    with pytest.raises(StoreError, match="can't be read"):
        list(reader.rows("SELECT nothing FROM nowhere"))


def test_values_by_their_names(reader: Reader, record: list[bytes]) -> None:
    assert (reader.meta("size"), reader.meta("first")) == (str(len(record)), "0")


def test_nothing_can_be_written(reader: Reader, directory: Path) -> None:
    for statement in ("DELETE FROM block", "CREATE TABLE x (y)", "UPDATE meta SET value = ''"):
        with pytest.raises(StoreError, match=r"readonly|read-only"):
            list(reader.rows(statement))
    Store(directory).close()


def test_it_sees_what_is_new_and_writers_do_not_wait_for_it(directory: Path, reader: Reader) -> None:
    going = reader.lines()
    next(going)
    store = Store(directory)
    size = store.size
    store.append([b'{"v":1}'] * 3)
    assert len(list(going)) == size - 1, "one question is of one moment"
    assert len(list(reader.lines())) == size + 3
    store.close()


def test_the_same_answer_to_one_question_though_records_are_pruned_meanwhile(directory: Path, reader: Reader) -> None:
    going = reader.blocks()
    next(going)
    store = Store(directory)
    with store.changing() as connection:
        connection.execute("DELETE FROM block")
    assert len(list(going)) > 5
    assert list(reader.blocks()) == []
    store.close()


# ------------------------------------------------------------------------------------------------- what can't be had


def test_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store in"):
        open_reader(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("octets", [b"", b"no database " * 100, b"SQLite format 3\0" + b"\xff" * 4000])
def test_what_is_none(tmp_path: Path, octets: bytes) -> None:
    (tmp_path / DATABASE).write_bytes(octets)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreError, match=f"the store {tmp_path / DATABASE}"):
        open_reader(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_broken_page(directory: Path) -> None:
    path = directory / DATABASE
    octets = bytearray(path.read_bytes())
    octets[8192:] = b"\x5a" * (len(octets) - 8192)
    path.write_bytes(octets)
    reader = open_reader(str(directory))
    with pytest.raises(StoreError, match="can't be read"):
        list(reader.lines())
    reader.close()


def test_an_odd_name(tmp_path: Path) -> None:
    directory = tmp_path / "a b%20?mode=rwc#ü"
    directory.mkdir()
    filled(directory, 3).close()
    reader = open_reader(str(directory))
    assert len(list(reader.lines())) > 10
    reader.close()


def test_on_a_medium_that_cannot_be_written(tmp_path: Path) -> None:
    """A copy on a file system mounted read-only."""
    if os.geteuid():
        unavailable("mounting a tmpfs takes root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", tmp_path], capture_output=True).returncode:
        unavailable("a tmpfs can't be mounted here")
    try:
        store = filled(tmp_path, 20)
        size = store.size
        store.close()
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        reader = open_reader(str(tmp_path))
        assert len(list(reader.lines())) == size
        reader.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_copy_of_the_file_alone(directory: Path, tmp_path: Path, record: list[bytes]) -> None:
    """A closed store is in one file."""
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(directory / DATABASE, copy)
    reader = open_reader(str(copy))
    assert [line for _, line in reader.lines()] == record
    reader.close()


def test_postgres_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "smtpproxy.store.postgres_reading", None)
    for where in ("postgresql://nobody@nowhere.invalid/x", "postgres://nobody@nowhere.invalid/x"):
        with pytest.raises(StoreError, match=r"smtpproxy\[postgres\]"):
            open_reader(where)
