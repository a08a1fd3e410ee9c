"""The record in PostgreSQL gives the same answers as the store it came from."""

import contextlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from smtpproxy.inquiry.counting import NAMES, Counting
from smtpproxy.inquiry.filters import question
from smtpproxy.inquiry.searching import Found, Search, occurring
from smtpproxy.store import schema
from smtpproxy.store.errors import StoreError
from smtpproxy.store.postgres import PostgresSink
from smtpproxy.store.postgres_link import Where, connect
from smtpproxy.store.postgres_reading import NUMBER, PostgresReader
from smtpproxy.store.postgres_schema import prepare
from smtpproxy.store.reading import Reader, SQLiteReader, open_reader
from smtpproxy.store.store import Store
from tests.store.filling import filled
from tests.store.pg_rig import Cluster, name_of, running

NOW = 1_795_478_400.0  # the lines are of the week before


def named(directory: Path, name: str, mails: int, seed: int) -> Store:
    store = filled(directory, mails, seed=seed)
    store.keep("origin", name)
    store.keep("vkey", f"{name}+key")
    return store


def copied(directory: Path, database: str, batch: int = 500) -> None:
    sink = PostgresSink(database, directory)
    with contextlib.closing(SQLiteReader(directory)) as local, contextlib.closing(sink):
        rest = local.lines(sink.position())
        while some := list(itertools.islice(rest, batch)):
            sink.send(some)


class Two(NamedTuple):
    """Two gateways' stores, and the database that has both."""

    stores: dict[str, SQLiteReader]
    database: str
    cluster: Cluster


@pytest.fixture(scope="module")
def two(server: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Stores of 400 and of 60 mails."""
    database = server.database()
    stores = {}
    for name, mails in (("mx1.example.org", 400), ("mx2.example.org", 60)):
        directory = tmp_path_factory.mktemp("store")
        named(directory, name, mails, seed=mails).close()
        copied(directory, database)
        stores[name] = SQLiteReader(directory)
    yield Two(stores, database, server)
    for store in stores.values():
        store.close()


@pytest.fixture
def one(two: Two) -> Iterator[tuple[SQLiteReader, PostgresReader]]:
    """The first gateway's, here and there."""
    with contextlib.closing(PostgresReader(f"{two.database}&gateway=mx1.example.org")) as reader:
        yield two.stores["mx1.example.org"], reader


QUESTIONS: list[dict[str, list[str]]] = [
    {},
    {"sender": ["*@sender7.example"]},
    {"sender": ["user*@sender7.example"]},
    {"sender": ["<>"]},
    {"recipient": ["user1*@*"]},
    {"domain": [".example"]},
    {"domain": ["*.example"]},
    {"address": ["nobody@host1.example"]},
    {"client": ["192.0.2.0/26"]},
    {"client": ["192.0.2.7"]},
    {"server": ["198.51.100.25"]},
    {"server": ["198.51*25"]},
    {"listener": ["i*"]},
    {"verdict": ["rewrite", "answer"]},
    {"outcome": ["server"]},
    {"outcome": ["accepted"]},
    {"outcome": ["none", "refused"]},
    {"rule": ["no-macros"]},
    {"rule": ["*o*"]},
    {"anomaly": ["stray-newline-normalised"]},
    {"tls": ["1.3"]},
    {"tls": ["none"]},
    {"tls": ["any"]},
    {"size": ["10k..20k"]},
    {"size": [">30k"]},
    {"reply": ["5xx"]},
    {"reply": ["550"]},
    {"reply": ["2xx"]},
    {"identity": ["ann"]},
    {"identity": ["*"]},
    {"hello": ["CLIENT*"]},
    {"hello": ["client.*.org"]},
    {"message-id": ["<1.400@*"]},
    {"message-id": ["*.400@client.example.org"]},
    {"session": ["0123456789-1*"]},
    {"session": ["0123456789-a"]},
    {"sender": ["*@sender7.example"], "tls": ["1.3"], "rule": ["no-macros", "big-ones"]},
    {"size": [">1k"], "verdict": ["pass"], "client": ["192.0.2.128/25"]},
]


def without_gateway(mails: Iterator[Found]) -> list[Found]:
    return [mail._replace(id=mail.id & NUMBER) for mail in mails]


@pytest.mark.parametrize("words", QUESTIONS, ids=repr)
@pytest.mark.parametrize("window", [{}, {"since": "2026-11-16T10:00:00.5"}, {"until": "2026-11-16T10:00:01"}], ids=repr)
def test_a_search_finds_the_same(
    one: tuple[SQLiteReader, PostgresReader], words: dict[str, list[str]], window: dict[str, str]
) -> None:
    asked = question(words, now=NOW, **window)
    here, there = (Search(reader, asked) for reader in one)
    for limit, oldest in ((0, False), (7, False), (7, True)):
        assert without_gateway(there.newest(limit, oldest=oldest)) == list(here.newest(limit, oldest=oldest))


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_the_same(one: tuple[SQLiteReader, PostgresReader], name: str) -> None:
    for words in ({}, {"tls": ["1.3"]}):
        here, there = (Counting(reader, question(words, now=NOW)) for reader in one)
        assert there.total() == here.total() > 0
        assert there.by(name) == here.by(name)


def test_all_gateways_are_searched_if_none_is_named(two: Two) -> None:
    with contextlib.closing(PostgresReader(two.database)) as reader:
        for words in QUESTIONS:
            asked = question(words, now=NOW)
            expected = [mail for store in two.stores.values() for mail in Search(store, asked).newest()]
            found = without_gateway(Search(reader, asked).newest())
            assert sorted(found) == sorted(expected), words
            assert [mail.at for mail in found] == sorted((mail.at for mail in found), reverse=True)
        names = {name for store in two.stores.values() for name in occurring(store, "rule")}
        assert list(occurring(reader, "rule")) == sorted(names)


def test_the_tree_is_of_one_gateway(two: Two) -> None:
    with contextlib.closing(PostgresReader(two.database)) as reader:
        for ask in (
            lambda: list(reader.rows("SELECT n, hash FROM subtree")),
            lambda: list(reader.lines()),
            lambda: list(reader.blocks()),
            lambda: reader.meta("size"),
        ):
            with pytest.raises(StoreError, match=r"gateway=NAME .*there are mx1\.example\.org, mx2\.example\.org"):
                ask()
        assert reader.meta("schema") == str(schema.VERSION)
    with pytest.raises(StoreError, match=r"no records of mx3: there are mx1\.example\.org, mx2\.example\.org"):
        PostgresReader(f"{two.database}&gateway=mx3")
    for name, store in two.stores.items():
        with contextlib.closing(open_reader(f"{two.database}&gateway={name}")) as found:
            for query in ("SELECT n, hash FROM subtree ORDER BY n", "SELECT count(*), max(n) FROM subtree"):
                assert list(found.rows(query)) == list(store.rows(query))
            for value in ("origin", "vkey", "first", "size", "frontier"):
                assert found.meta(value) == store.meta(value)
            assert found.meta("settled") == ""


def test_lines_are_the_same_from_anywhere_to_anywhere(two: Two) -> None:
    chance = random.Random(4)
    for name, store in two.stores.items():
        with contextlib.closing(PostgresReader(f"{two.database}&gateway={name}")) as reader:
            size = int(store.meta("size"))
            assert list(reader.lines()) == list(store.lines())
            assert [line for _, line in reader.lines(size - 1)] == [line for _, line in store.lines(size - 1)]
            assert list(reader.lines(size)) == list(reader.lines(size + 5)) == []
            for _ in range(20):
                start = chance.randrange(size)
                stop = chance.randrange(start, size + 5)
                assert list(reader.lines(start, stop)) == list(store.lines(start, stop))
                here = {
                    number
                    for first, count, _, _ in reader.blocks(start, stop)
                    for number in range(first, first + count)
                }
                assert set(range(start, min(stop, size))) <= here or start == stop
            leaves = b"".join(each for _, _, _, each in reader.blocks())
            assert leaves == b"".join(each for _, _, _, each in store.blocks())


def test_a_sessions_lines_are_its_own(two: Two) -> None:
    """Both gateways have sessions of the same names."""
    with contextlib.closing(PostgresReader(two.database)) as reader:
        theirs = {(key >> schema.GATEWAY_SHIFT, name): key for key, name in reader.rows("SELECT id, name FROM session")}
        for gateway, store in enumerate(two.stores.values(), 1):
            for number, name in store.rows("SELECT id, name FROM session LIMIT 20"):
                key = theirs[gateway, name]
                assert key & NUMBER == number
                assert reader.session_lines(key) == store.session_lines(number)
        assert reader.session_lines(1) == reader.session_lines((1 << schema.GATEWAY_SHIFT) | 1) == []


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("SELECT count(*) FROM mail WHERE sender LIKE '%@user1%' AND code >= ?", (200,)),
        ("SELECT '?', '%s', '100%', ? || ''", ("a?b%c",)),
        ("SELECT sum(size), avg(size), min(at), max(size) FROM mail", ()),
        ("SELECT a.id, b.id FROM mail a CROSS JOIN mail b WHERE a.id = b.id AND a.session = b.session LIMIT 0", ()),
        ("SELECT count(*) FROM session, mail WHERE mail.session = session.id", ()),
        ("SELECT name FROM session WHERE client IS NULL OR mails > ? ORDER BY name LIMIT 3", (1,)),
        ("SELECT count(*) FROM mail WHERE EXISTS (SELECT 1 FROM recipient r WHERE r.mail = mail.id AND r.n > ?)", (0,)),
        ("SELECT name, times FROM mark WHERE what = 'reply' AND mail = 0 ORDER BY at, name, times", ()),
        (
            "SELECT sender FROM mail WHERE sender >= ? AND sender < ? ORDER BY sender",
            ("example.sender1@", "example.sender1A"),
        ),
    ],
)
def test_queries_mean_the_same(
    one: tuple[SQLiteReader, PostgresReader], query: str, parameters: tuple[Any, ...]
) -> None:
    here, there = (list(reader.rows(query, parameters)) for reader in one)
    assert there == here
    assert [[type(value) for value in row] for row in there] == [[type(value) for value in row] for row in here]


def test_answers_may_be_read_by_turns_or_not_to_the_end(two: Two) -> None:
    with contextlib.closing(PostgresReader(two.database)) as reader:
        mails = reader.rows("SELECT id FROM mail ORDER BY id")
        first = list(itertools.islice(mails, 3))
        recipients = reader.rows("SELECT mail FROM recipient ORDER BY mail")
        next(recipients)
        assert next(mails) > first[-1]
        del mails
        assert len(list(recipients)) > 500
        with pytest.raises(StoreError, match=r'column "nothing" does not exist'):
            list(reader.rows("SELECT nothing FROM mail"))
        with pytest.raises(StoreError, match="division by zero"):
            list(reader.rows("SELECT 1 / 0"))
        assert len(list(reader.rows("SELECT 1 FROM mail LIMIT 2"))) == 2
        next(reader.rows("SELECT id FROM mail"))


def test_all_of_an_answer_is_of_one_moment(two: Two) -> None:
    """What is deleted meanwhile is still there for who began before."""
    with contextlib.closing(PostgresReader(two.database)) as reader:
        mails = reader.rows("SELECT id FROM mail ORDER BY id")
        next(mails)
        two.cluster.execute(two.database, "CREATE TABLE kept AS SELECT * FROM mail", "DELETE FROM mail")
        try:
            (number,) = next(reader.rows("SELECT count(*) FROM mail"))
            assert len(list(mails)) + 1 == number > 200
            assert list(reader.rows("SELECT count(*) FROM mail")) == [(0,)], "and a new question sees what is now"
        finally:
            two.cluster.execute(two.database, "INSERT INTO mail SELECT * FROM kept", "DROP TABLE kept")


def test_a_reader_can_not_write(two: Two) -> None:
    with contextlib.closing(PostgresReader(two.database)) as reader:
        with pytest.raises(StoreError, match="syntax error"):
            list(reader.rows("DELETE FROM mail RETURNING id"))
        with pytest.raises(StoreError, match="read-only transaction"):
            list(reader.rows("SELECT smtpproxy_days('{2001-01-01}')"))


def test_who_may_only_read_can_do_so(two: Two) -> None:
    role = f"auditor_{name_of(two.database)}"
    two.cluster.execute("postgres", f"CREATE ROLE {role} LOGIN")
    with contextlib.closing(connect(Where(two.database), "a test")) as link:
        prepare(link, readers=(role,))
    address = two.cluster.conninfo(name_of(two.database), user=role)
    with contextlib.closing(PostgresReader(f"{address}&gateway=mx2.example.org")) as reader:
        store = two.stores["mx2.example.org"]
        assert list(reader.lines()) == list(store.lines())
        assert list(reader.rows("SELECT n, hash FROM subtree")) == list(store.rows("SELECT n, hash FROM subtree"))
        assert without_gateway(Search(reader, question({}, now=NOW)).newest()) == list(
            Search(store, question({}, now=NOW)).newest()
        )


def test_a_database_without_the_tables_is_no_store(database: str) -> None:
    with pytest.raises(StoreError, match="there are no tables of the record"):
        open_reader(database)


def test_a_database_nobody_has_written_to(database: str) -> None:
    with contextlib.closing(connect(Where(database), "a test")) as link:
        prepare(link)
    with contextlib.closing(PostgresReader(database)) as reader:
        assert list(reader.rows("SELECT * FROM mail")) == []
        with pytest.raises(StoreError, match="nobody has written there"):
            reader.meta("size")


def test_a_server_that_goes_away_is_said_so(tmp_path: Path) -> None:
    named(tmp_path, "mx1", 200, seed=1).close()
    with running() as cluster:
        database = cluster.database()
        copied(tmp_path, database)
        reader: Reader = open_reader(database)
        lines = reader.lines()
        next(lines)
        cluster.stop()
        for ask in (lambda: list(lines), lambda: list(reader.rows("SELECT 1")), lambda: reader.meta("size")):
            with pytest.raises(StoreError, match=r"can't be read: .*(terminat|clos|lost)"):
                ask()
        reader.close()
