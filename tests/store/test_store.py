"""The store: one transaction or nothing, the tree over all of it, and what happens when it can't be written."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from smtpproxy.audit.entries import entry_of, leaf_of
from smtpproxy.audit.tree import EMPTY_ROOT, root_of
from smtpproxy.store import store as module
from smtpproxy.store.errors import StoreError
from smtpproxy.store.reading import open_reader
from smtpproxy.store.store import DATABASE, LARGEST_BLOCK, SUBTREE, Store, own_line, rfc3339, time_of
from tests.audit.forks import ended, fork, forked
from tests.peers import unavailable
from tests.store.filling import Writer, filled, lines


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path, create=True)
    yield store
    store.close()


def _all(store: Store) -> list[tuple[int, bytes]]:
    return list(store.lines(0))


def _tables(directory: Path) -> dict[str, list[tuple[object, ...]]]:
    """All there is, but for what is in `meta`."""
    connection = sqlite3.connect(directory / DATABASE)
    found = {
        table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
        for table in ("block", "subtree", "checkpoint", "session", "mail", "recipient", "mark", "sink")
    }
    connection.close()
    return found


def _same(store: Store) -> None:
    """The state that is kept in memory is that on the disk, and the tree is that of its lines."""
    size, frontier, position = store.size, store.frontier, store.position
    reopened = Store(store.path.parent)
    assert (reopened.size, reopened.frontier.hashes, reopened.position) == (size, frontier.hashes, position)
    found = list(reopened.lines(0))
    reopened.close()
    assert [number for number, _ in found] == list(range(size))
    leaves = [leaf_of(line) for _, line in found]
    assert frontier.root() == root_of(leaves)
    rows = store.connection.execute("SELECT n, hash FROM subtree ORDER BY n").fetchall()
    assert rows == [(n, root_of(leaves[n * SUBTREE : (n + 1) * SUBTREE])) for n in range(size // SUBTREE)]
    for first, count, octets, prefixes in store.connection.execute("SELECT first, count, lines, leaves FROM block"):
        assert octets.split(b"\n") == [line for _, line in found[first : first + count]]
        assert prefixes == b"".join(leaf[:8] for leaf in leaves[first : first + count])


# --------------------------------------------------------------------------------------------------------- opening


def test_a_new_one_is_empty(store: Store) -> None:
    assert (store.size, store.first, store.position, store.open_sessions) == (0, 0, "", 0)
    assert store.frontier.root() == EMPTY_ROOT
    assert _all(store) == []
    _same(store)


def test_what_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store in"):
        Store(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="can't be opened"):
        Store(tmp_path / "missing", create=True)


@pytest.mark.parametrize(
    "octets", [b"this is no database " * 100, b"SQLite format 3\0" + b"\xff" * 5000], ids=["text", "broken"]
)
def test_what_is_no_database_is_an_error(tmp_path: Path, octets: bytes) -> None:
    (tmp_path / DATABASE).write_bytes(octets)
    with pytest.raises(StoreError, match="can't be used"):
        Store(tmp_path, create=True)
    assert (tmp_path / DATABASE).read_bytes() == octets


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM meta",
        "UPDATE meta SET value = 'many' WHERE name = 'size'",
        "UPDATE meta SET value = '7' WHERE name = 'size'",
        "UPDATE meta SET value = 'xyz' WHERE name = 'frontier'",
        "UPDATE meta SET value = '' WHERE name = 'frontier'",
    ],
)
def test_a_state_that_is_none_is_an_error(tmp_path: Path, statement: str) -> None:
    filled(tmp_path, 3).close()
    connection = sqlite3.connect(tmp_path / DATABASE)
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="is broken"):
        Store(tmp_path)


def test_an_error_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"no database " * 100)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreError):
        Store(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


# ------------------------------------------------------------------------------------------------------- appending


def test_lines_get_numbers_in_order(store: Store) -> None:
    assert store.append([b'{"a":1}', b'{"a":2}']) == 0
    assert store.append([]) == 2
    assert store.append([b'{"a":3}']) == 2
    assert _all(store) == [(0, b'{"a":1}'), (1, b'{"a":2}'), (2, b'{"a":3}')]
    assert list(store.lines(1, 2)) == [(1, b'{"a":2}')]
    assert list(store.lines(3)) == []
    _same(store)


def test_the_position_is_kept_with_them(store: Store) -> None:
    store.append([b"{}"], "1:17")
    store.append([b"{}"])
    assert store.position == "1:17"
    store.append([], "2:0")
    _same(store)
    assert Store(store.path.parent).position == "2:0"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some.lists(some.integers(0, 700), min_size=1, max_size=6))
def test_the_tree_is_that_of_the_lines_however_they_come(tmp_path: Path, sizes: list[int]) -> None:
    """Blocks and subtrees begin and end anywhere."""
    for path in tmp_path.iterdir():
        path.unlink()
    store = Store(tmp_path, create=True)
    number = 0
    for size in sizes:
        store.append([b'{"n":%d}' % n for n in range(number, number + size)])
        number += size
    assert store.size == number
    _same(store)
    store.close()


def test_blocks_are_not_larger_than_they_may_be(store: Store) -> None:
    half = b'{"x":"%b"}' % (b"x" * (LARGEST_BLOCK // 2))
    huge = b'{"x":"%b"}' % (b"x" * (3 * LARGEST_BLOCK))
    store.append([b"{}", half, half, huge, b"{}", b"{}"])
    assert store.connection.execute("SELECT first, count FROM block ORDER BY first").fetchall() == [
        (0, 2), (2, 1), (3, 1), (4, 2),
    ]  # fmt: skip
    _same(store)


def test_all_kinds_of_octets_come_back(store: Store) -> None:
    odd = [b"", b"\xff\x00\r", b"[" * 100_000, b"5", b'{"at":"no time"}', '{"a":"ü\u2028"}'.encode(), b'{"tx":1e400}',
           b'{"kind":"link-connect","session":"a","client":{"x":[1]},"listener":"in"}',
           b'{"kind":"tx-commit","session":"a","tx":99999999999999999999}',
           b'{"kind":"tx-commit","session":"a","octets":-1}']  # fmt: skip
    store.append(odd)
    assert [line for _, line in _all(store)] == odd
    _same(store)


def test_a_block_has_the_time_of_its_first_line(store: Store) -> None:
    store.append([b'{"at":"2026-11-16T10:00:00.5Z"}', b"{}"])
    store.append([b"{}"])
    assert store.connection.execute("SELECT at FROM block ORDER BY first").fetchall() == [(1_794_823_200.5,), (0.0,)]


@pytest.mark.parametrize(
    ("line", "at"),
    [
        (b'{"at":"2026-11-16T10:00:00Z"}', 1_794_823_200.0),
        (b'{"at":"2026-11-16T11:00:00+01:00"}', 1_794_823_200.0),
        (b'{"at":"2026-11-16T10:00:00"}', 0.0),
        (b"\xff", 0.0),
        (b'{"at":"\xff"}', 0.0),
        (b"[" * 100_000, 0.0),
        (b'{"at":null}', 0.0),
        (b"", 0.0),
    ],
    ids=["UTC", "elsewhere", "nowhere", "no JSON", "no text", "deep", "null", "empty"],
)
def test_when_a_line_was_recorded(line: bytes, at: float) -> None:
    assert time_of(line) == at


def test_times_are_written_as_in_records() -> None:
    assert rfc3339(1_794_823_200.0) == "2026-11-16T10:00:00Z"
    assert rfc3339(0.25) == "1970-01-01T00:00:00.250000Z"


def test_erased_lines_have_the_same_tree(store: Store) -> None:
    found = list(lines(50))
    store.append(found)
    root = store.frontier.root()
    other = Store(store.path.parent, indexes=False)
    assert root == root_of([leaf_of(entry_of(line)) for line in found])
    other.close()


# ------------------------------------------------------------------------------------------- what is said, and kept


def test_what_is_said_is_a_record_of_now(store: Store) -> None:
    before = time.time()
    store.say("audit-prune", {"first": 0, "why": "ü\n"})
    ((number, line),) = _all(store)
    said = json.loads(line)
    assert number == 0
    assert list(said) == ["v", "at", "up", "session", "kind", "first", "why"]
    assert (said["v"], said["session"], said["kind"], said["why"]) == (1, "", "audit-prune", "ü\n")
    assert before <= time_of(line) <= time.time()
    assert said["at"].endswith("Z")
    _same(store)


def test_within_a_change_it_is_part_of_it(store: Store) -> None:
    with contextlib.suppress(RuntimeError), store.changing():
        store.say("audit-prune", {})
        store.keep("origin", "x")
        raise RuntimeError
    assert (store.size, store.value("origin"), _all(store)) == (0, "", [])
    with store.changing():
        store.say("audit-prune", {})
        store.keep("origin", "x")
        store.say("audit-erase", {})
    assert store.value("origin") == "x"
    assert [json.loads(line)["kind"] for _, line in _all(store)] == ["audit-prune", "audit-erase"]
    _same(store)


def test_a_value_is_kept_until_there_is_another(store: Store) -> None:
    for value in ("one", "two", ""):
        with store.changing():
            store.keep("origin", value)
        assert store.value("origin") == value
    assert store.value("nothing") == ""


def test_the_first_that_is_kept_is_kept_in_mind(store: Store) -> None:
    store.append([b"{}"] * 300)
    with store.changing():
        store.first = 256
    again = Store(store.path.parent)
    assert again.first == 256
    again.close()


def test_two_take_turns(store: Store) -> None:
    """The recorder and somebody at the command line, who each have a state of their own."""
    other = Store(store.path.parent, indexes=False)
    store.append([b'{"n":0}'] * 200, "1:7")
    other.say("audit-prune", {})
    store.append([b'{"n":1}'] * 200)
    other.say("audit-erase", {})
    with store.changing():
        assert store.size == 402
    assert (store.position, store.frontier.root()) == ("1:7", other.frontier.root())
    _same(store)
    other.close()


def test_a_session_is_indexed_though_somebody_else_says_something_in_between(store: Store) -> None:
    other = Store(store.path.parent, indexes=False)
    session = list(Writer().session())
    for line in session:
        store.append([line])
        other.say("audit-erase", {"ranges": []})
    other.close()
    assert store.open_sessions == 0
    ((number, outcome),) = store.connection.execute("SELECT id, outcome FROM mail").fetchall()
    assert outcome == "accepted"
    assert json.loads(dict(_all(store))[number])["kind"] == "tx-commit"


# ------------------------------------------------------------------------------------------------------ durability


def _synced(store: Store) -> int:
    return int(store.connection.execute("PRAGMA synchronous").fetchone()[0])


def test_on_disk_syncs_each_commit_and_only_there(store: Store) -> None:
    normal, full = 1, 2
    assert _synced(store) == normal
    with store.on_disk():
        assert _synced(store) == full
    with pytest.raises(RuntimeError), store.on_disk():
        raise RuntimeError
    assert _synced(store) == normal


@pytest.mark.parametrize("act", [lambda store: store.settle(), lambda store: store.say("audit-prune", {})])
def test_settling_and_saying_are_synced(tmp_path: Path, act: object) -> None:
    """As the kernel sees it: a commit of another kind syncs nothing."""
    strace = shutil.which("strace")
    if strace is None:
        unavailable("there is no strace")
    filled(tmp_path, 3).close()
    reading, writing = os.pipe()
    there, here = os.pipe()

    def work() -> None:
        store = Store(tmp_path)
        store.append([b"{}"])
        os.write(writing, b"x")
        os.read(there, 1)
        store.append([b"{}"])
        assert callable(act)
        act(store)
        os._exit(0)

    log = tmp_path / "trace"
    pid = fork(work)
    assert os.read(reading, 1) == b"x"
    tracer = subprocess.Popen(
        [strace, "-f", "-y", "-e", "trace=fsync,fdatasync,pwrite64", "-o", log, "-p", str(pid)],
        stderr=subprocess.PIPE,
    )
    with tracer:
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        if b"attached" not in said:
            os.write(here, b"x")
            ended(pid)
            unavailable(f"a process can't be traced here: {said.decode()}")
        os.write(here, b"x")
        assert ended(pid) == 0
        tracer.wait(20)
    for descriptor in (reading, writing, there, here):
        os.close(descriptor)
    calls = [line.split()[1].partition("(")[0] for line in log.read_text().splitlines() if "audit.db-wal>" in line]
    syncs = [at for at, name in enumerate(calls) if name in ("fsync", "fdatasync")]
    assert syncs, "nothing was synced"
    assert syncs[0] > 0, "the plain commit was not to be synced"
    assert syncs[-1] == len(calls) - 1, "something was written behind it"


# -------------------------------------------------------------------------------------------------- what goes wrong


def test_a_locked_database_is_an_error_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY", 0.01)
    store = filled(tmp_path, 20)
    before = _tables(tmp_path)
    state = store.size, store.frontier.hashes, store.position, store.open_sessions
    other = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    more = list(lines(5, seed=2))
    with pytest.raises(StoreError, match="locked"):
        store.append(more, "1:1")
    with pytest.raises(StoreError, match="locked"):
        store.say("audit-prune", {})
    with pytest.raises(StoreError, match="locked"):
        store.settle()
    with pytest.raises(StoreError, match=r"can't be used: .*locked"):
        Store(tmp_path)
    assert (store.size, store.frontier.hashes, store.position, store.open_sessions) == state
    other.execute("ROLLBACK")
    other.close()
    assert _tables(tmp_path) == before
    store.append(more, "1:1")
    _same(store)
    store.close()


def test_a_full_disk_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    """In the middle of a session: when it goes on, nothing is missing and nothing is there twice."""
    twin = tmp_path / "twin"
    twin.mkdir()
    record = list(lines(150, seed=5))
    store, other = Store(tmp_path, create=True), Store(twin, create=True)
    half = len(record) // 2
    for each in (store, other):
        each.append(record[:half], "1:1")
    before, state = _tables(tmp_path), (store.size, store.frontier.hashes, store.position, store.open_sessions)
    (pages,) = store.connection.execute("PRAGMA page_count").fetchone()
    store.connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    for _ in range(2):
        with pytest.raises(StoreError, match="database or disk is full"):
            store.append(record[half:], "1:2")
    assert (store.size, store.frontier.hashes, store.position, store.open_sessions) == state
    assert not store.connection.in_transaction
    assert _tables(tmp_path) == before
    store.connection.execute("PRAGMA max_page_count = 1000000")
    for each in (store, other):
        each.append(record[half:], "1:2")
        _same(each)
        each.close()
    assert _tables(tmp_path) == _tables(twin)


def test_a_real_full_disk(tmp_path: Path) -> None:
    """The database's files don't fit, and then they do."""
    if os.geteuid():
        unavailable("mounting a tmpfs takes root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], capture_output=True).returncode:
        unavailable("a tmpfs can't be mounted here")
    try:
        store = Store(tmp_path, create=True)
        ballast = tmp_path / "ballast"
        ballast.write_bytes(bytes(400_000))
        line = b'{"x":"%b"}' % (b"x" * 5000)
        with contextlib.suppress(StoreError):
            for _ in range(100):
                store.append([line] * 5)
        size = store.size
        assert size < 500
        assert size > 0
        ballast.unlink()
        store.append([b"{}"])
        assert store.size == size + 1
        _same(store)
        store.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_any_error_in_between_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of our own, too: the index is as it was before the lines."""
    store = filled(tmp_path, 5)
    session = list(Writer("fedcba9876").session(mails=2))
    store.append(session[:8])
    assert store.open_sessions == 1
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_insert", lambda self, rows: (_ for _ in ()).throw(OverflowError("too large")))
        with pytest.raises(OverflowError):
            store.append(session[8:])
    assert store.open_sessions == 1
    mails = store.connection.execute("SELECT count(*) FROM mail").fetchone()[0]
    store.append(session[8:])
    assert store.open_sessions == 0
    assert store.connection.execute("SELECT count(*) FROM mail").fetchone()[0] == mails + 2
    _same(store)
    store.close()


@pytest.mark.parametrize("name", ["lines", "octets"])
def test_a_closed_one_does_not_look_like_an_empty_one(store: Store, name: str) -> None:
    other = Store(store.path.parent)
    other.close()
    with pytest.raises((StoreError, sqlite3.ProgrammingError)):
        list(other.lines(0)) if name == "lines" else other.octets


def test_killed_at_any_moment_it_has_all_of_a_transaction_or_nothing(tmp_path: Path) -> None:
    """Each transaction is 7 lines; who is killed may have told of one less than there are."""
    Store(tmp_path, create=True).close()
    for turn in range(8):
        reading, writing = os.pipe()

        def work(writing: int = writing) -> None:
            store = Store(tmp_path)
            while True:
                store.append([b'{"n":%d}' % store.size] * 7, f"1:{store.size + 7}")
                os.write(writing, b"x")

        with forked(work) as pid:
            told = sum(len(os.read(reading, 1)) for _ in range(3 + 5 * turn))
            os.kill(pid, signal.SIGKILL)
        os.close(writing)
        while octets := os.read(reading, 4096):
            told += len(octets)
        os.close(reading)
        store = Store(tmp_path)
        assert store.size % 7 == 0
        assert store.position == f"1:{store.size}"
        assert store.size >= 7 * told
        _same(store)
        store.close()


def test_octets_in_use(tmp_path: Path) -> None:
    store = filled(tmp_path, 300)
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert store.octets == (tmp_path / DATABASE).stat().st_size
    with store.changing() as connection:
        connection.execute("DELETE FROM block")
    assert store.octets < (tmp_path / DATABASE).stat().st_size * 3 // 4
    store.close()


def test_what_is_erased_is_not_in_the_file_any_more(tmp_path: Path) -> None:
    store = Store(tmp_path, create=True)
    for _ in range(10):
        store.append([b'{"x":"CANARY"}'] * 100)
    with store.changing() as connection:
        connection.execute("UPDATE block SET lines = 'x' WHERE first < 500")
        connection.execute("DELETE FROM block WHERE first >= 500")
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    assert b"CANARY" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_reader_sees_what_was_committed(store: Store) -> None:
    reader = open_reader(str(store.path.parent))
    with store.changing():
        store.say("audit-prune", {})
        assert list(reader.lines()) == []
    assert len(list(reader.lines())) == 1
    reader.close()


def test_a_record_of_our_own_is_one_line() -> None:
    line = own_line("audit-cut", {"why": "a\r\nb\x00"})
    assert b"\n" not in line
    assert json.loads(line)["why"] == "a\r\nb\x00"
