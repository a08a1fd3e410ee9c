"""Mails one after the other, and records: which, in what order, and that nobody waits for who reads them."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from smtpproxy.inquiry import exporting
from smtpproxy.inquiry.exporting import mails, records
from smtpproxy.inquiry.searching import Search
from smtpproxy.store.reading import Reader, open_reader
from smtpproxy.store.store import DATABASE, Store
from tests.inquiry.awkward import of
from tests.inquiry.mails import asked, varied
from tests.store.filling import BEGIN, WORKER, Writer


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    directory = tmp_path_factory.mktemp("export") / "store"
    varied(directory).close()
    found = open_reader(str(directory))
    yield found
    found.close()


# ------------------------------------------------------------------------------------------------ which, in what order


@pytest.mark.parametrize("page", [1, 7, 100, 20_000])
def test_all_of_them_in_order(reader: Reader, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    monkeypatch.setattr(exporting, "PAGE", page)
    monkeypatch.setattr(exporting, "AT_ONCE", max(1, page // 3))
    found = [mail.found for mail in mails(reader, asked())]
    assert [(one.at, one.id) for one in found] == sorted((one.at, one.id) for one in found)
    assert sorted(found) == sorted(Search(reader, asked()).newest())
    assert len(found) > 150


@pytest.mark.parametrize("page", [1, 2, 3, 20])
def test_many_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    """All sessions of a worker are over when it dies: more of them than a page has, and some before and behind."""
    monkeypatch.setattr(exporting, "PAGE", page)
    writer = Writer()
    lines = [line for _ in range(3) for line in writer.session()]
    lines += [line for _ in range(9) for line in writer.session(mails=0, close=False)]
    lines += [writer.line("", "worker-died", {"worker": WORKER, "how": "signal 9", "sessions": 9})]
    lines += [line for _ in range(2) for line in writer.session()]
    found = [mail.found for mail in of(tmp_path, *lines)]
    assert len(found) == len({one.id for one in found}) == 14
    assert len({one.at for one in found}) == 6


def test_no_question_is_open_while_who_reads_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is erased or comes between two pages is as it is then; and the recorder's file can be made shorter."""
    monkeypatch.setattr(exporting, "PAGE", 3)
    monkeypatch.setattr(exporting, "AT_ONCE", 2)
    monkeypatch.setattr(exporting, "STRETCH", 5)
    writer = Writer()
    store = Store(tmp_path, create=True)
    store.append([line for _ in range(6) for line in writer.session()])
    opened = open_reader(str(tmp_path))
    for going in (mails(opened, asked()), records(opened, asked()), records(opened, asked(sender="alice@example.org"))):
        assert next(going) is not None
        with closing(sqlite3.connect(tmp_path / DATABASE, timeout=0)) as other:
            busy, *_ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 0
    first = mails(opened, asked())
    next(first)
    store.append(list(writer.session("late@example.org")))
    assert [mail.found.sender for mail in first][-1] == "late@example.org"
    opened.close()
    store.close()


@pytest.mark.parametrize("words", [{"rule": "no-macros"}, {"recipient": "*@host1.example"}, {"anomaly": "odd-hello"}])
def test_those_that_pass(reader: Reader, words: dict[str, str]) -> None:
    found = {mail.found.id for mail in mails(reader, asked(**words))}
    assert found == {one.id for one in Search(reader, asked(**words)).newest()}
    assert found


@pytest.mark.parametrize("near", [0, 200])
@pytest.mark.parametrize("some", [7, 500])
def test_marks(reader: Reader, monkeypatch: pytest.MonkeyPatch, some: int, near: int) -> None:
    """Those of the index, each with its mail, however many are asked for together, and in both ways."""
    monkeypatch.setattr(exporting, "AT_ONCE", some)
    monkeypatch.setattr(exporting, "NEAR", near)
    expected: dict[int, set[tuple[str, str]]] = {}
    for mail, what, name in reader.rows("SELECT mail, what, name FROM mark WHERE mail > 0"):
        if what in ("rule", "observed", "anomaly", "tag"):
            expected.setdefault(mail, set()).add((what, name))
    found = {
        one.found.id: {(what, name) for what, names in one.marks.items() for name in names}
        for one in mails(reader, asked())
        if one.marks
    }
    assert found == expected
    assert len(expected) > 10


def test_the_records_themselves(reader: Reader) -> None:
    assert list(records(reader, asked())) == [line for _, line in reader.lines()]


@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("2026-11-16T10:00:00.500", "2026-11-16T10:00:01"),
        ("2026-11-16T10:00:00.500", None),
        (None, "2026-11-16T10:00:01"),
        ("2026-11-16T10:00:00.500", "2026-11-16T10:00:00.501"),
        ("2026-11-16T09:00:00", "2026-11-16T10:00:00"),
        ("2026-11-16T11:00:00", None),
        (None, "2026-11-16T09:00:00"),
    ],
)
def test_the_records_of_a_time(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, since: str | None, until: str | None
) -> None:
    everything = [line for _, line in reader.lines()]
    expected = [
        line
        for line in everything
        if (since is None or json.loads(line)["at"] >= since) and (until is None or json.loads(line)["at"] < until)
    ]
    for stretch in (7, 20_000):
        monkeypatch.setattr(exporting, "STRETCH", stretch)
        assert list(records(reader, asked(since, until))) == expected
    assert len(expected) < len(everything)


def test_the_records_of_a_time_where_the_clock_was_set_back(tmp_path: Path) -> None:
    """Blocks of one time stand in several places then."""
    store = Store(tmp_path, create=True)
    for minutes in (0, 10, 4, 20):
        writer = Writer(worker=f"{minutes:010}", begin=BEGIN + timedelta(minutes=minutes))
        store.append(list(writer.session()))
    store.close()
    opened = open_reader(str(tmp_path))
    for since, until, number in (("10:04", "10:05", 1), ("10:03", "10:11", 2), ("10:00", "10:30", 4), ("10:10", "", 2)):
        which = asked(f"2026-11-16T{since}", f"2026-11-16T{until}" if until else None)
        found = [json.loads(line)["at"] for line in records(opened, which)]
        assert len({at[:16] for at in found}) == number
        assert all(since <= at[11:] for at in found)
    opened.close()


def test_the_records_of_sessions(reader: Reader) -> None:
    """All of each session that has such a mail, once."""
    found = [json.loads(line) for line in records(reader, asked(rule="no-macros"))]
    names = {one.session for one in Search(reader, asked(rule="no-macros")).newest()}
    assert {record["session"] for record in found} == names
    everything = [json.loads(line) for _, line in reader.lines()]
    assert len(found) == sum(record["session"] in names for record in everything)


# ------------------------------------------------------------------------------------------------------------- details


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mx.example:25", ("mx.example", 25)),
        ("mx.example", ("mx.example", None)),
        ("192.0.2.1:2525", ("192.0.2.1", 2525)),
        ("[2001:db8::1]:25", ("2001:db8::1", 25)),
        ("[2001:db8::1]", ("2001:db8::1", None)),
        ("2001:db8::1", ("2001:db8::1", None)),
        ("", ("", None)),
    ],
)
def test_hosts_and_ports(text: str, expected: tuple[str, int | None]) -> None:
    assert exporting.host_and_port(text) == expected


def test_what_was_seen() -> None:
    """By a bit for each number, of each gateway."""
    seen = exporting._Seen()
    numbers = [0, 1, 7, 8, 70_000, 5 << 40, (5 << 40) + 8]
    assert [seen.add(number) for number in numbers] == [True] * len(numbers)
    assert [seen.add(number) for number in numbers] == [False] * len(numbers)
    assert seen.add(9)
