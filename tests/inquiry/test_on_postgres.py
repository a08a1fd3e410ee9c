"""The same questions to PostgreSQL have the same answers: its own way with types, parameters and text is no matter."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest

from smtpproxy.inquiry import searching
from smtpproxy.inquiry.counting import NAMES, Counting
from smtpproxy.inquiry.filters import Question
from smtpproxy.inquiry.searching import Found, Search, occurring
from smtpproxy.store import schema
from smtpproxy.store.postgres_reading import PostgresReader
from smtpproxy.store.postgres_schema import prepare
from smtpproxy.store.reading import Reader, open_reader
from tests.inquiry.mails import asked, varied
from tests.inquiry.test_searching import QUESTIONS, named
from tests.store.pg_rig import Cluster

_TABLES = {"session": ("id",), "mail": ("id", "session"), "recipient": ("mail",), "mark": ("session", "mail")}
_GATEWAY = 3


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reader, Reader]]:
    directory = tmp_path_factory.mktemp("audit") / "store"
    varied(directory).close()
    with Cluster() as cluster, contextlib.closing(open_reader(str(directory))) as here:
        where = cluster.database()
        with psycopg.connect(where, autocommit=True) as connection:
            prepare(connection)
            _copy(here, connection)
        with contextlib.closing(PostgresReader(where)) as there:
            yield here, there


def _copy(reader: Reader, connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """The rows of the index, as a gateway's."""
    connection.execute(
        "INSERT INTO gateway (id, origin, vkey, first, next, frontier) VALUES (%s, 'mx', '', 0, 0, '')", (_GATEWAY,)
    )
    (days,) = reader.rows("SELECT min(at), max(at) FROM session")
    connection.execute(
        "SELECT smtpproxy_days(%s::date[])", (sorted({datetime.fromtimestamp(at, UTC).date() for at in days}),)
    )
    for table, numbers in _TABLES.items():
        columns = [name for name, _ in schema.TABLES[table][0]]
        query = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})"
        for row in reader.rows(f"SELECT {', '.join(columns)} FROM {table}"):
            cells = dict(zip(columns, row, strict=True))
            for name in numbers:
                cells[name] = cells[name] and cells[name] | _GATEWAY << schema.GATEWAY_SHIFT
            connection.execute(query.encode(), list(cells.values()))
    connection.execute("ANALYZE")


def _there(one: Found) -> Found:
    return one._replace(id=one.id | _GATEWAY << schema.GATEWAY_SHIFT)


@pytest.mark.parametrize("bounds", [(5000, 10_000, 300_000), (0, 10, 300_000), (0, 0, 20)], ids=str)
def test_the_same_is_found(
    both: tuple[Reader, Reader], bounds: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip(("FEW", "NEAR", "MANY"), bounds, strict=True):
        monkeypatch.setattr(searching, name, value)
    here, there = both
    for question in QUESTIONS:
        for limit, oldest in ((0, False), (7, False), (7, True)):
            expected = [_there(one) for one in Search(here, question).newest(limit, oldest=oldest)]
            assert list(Search(there, question).newest(limit, oldest=oldest)) == expected, (named(question), limit)
    base = _GATEWAY << schema.GATEWAY_SHIFT
    assert len(list(Search(there, asked()).over(base, base + 1000))) == len(list(Search(here, asked()).over(0, 1000)))


@pytest.mark.parametrize(
    "question", [asked(), asked(rule="greeted"), asked(tls="1.3"), asked(tag="none-such")], ids=named
)
def test_the_same_is_counted(both: tuple[Reader, Reader], question: Question) -> None:
    here, there = both
    assert Counting(here, question).total() == Counting(there, question).total()
    for name in NAMES:
        assert Counting(there, question).by(name) == Counting(here, question).by(name), name


def test_the_same_names_occur(both: tuple[Reader, Reader]) -> None:
    for what in ("rule", "anomaly"):
        assert list(occurring(both[0], what)) == list(occurring(both[1], what)) != []
