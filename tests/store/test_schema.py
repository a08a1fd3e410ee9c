"""The tables: what they are made of, how an older store becomes a newer one, and the keys that things are found by."""

import re
import sqlite3
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from smtpproxy.store import schema
from smtpproxy.store.errors import StoreError
from smtpproxy.store.reading import open_reader
from smtpproxy.store.schema import (
    INDEXES,
    TABLES,
    VERSION,
    address_of,
    client_key,
    client_of,
    key_of,
    sqlite_statements,
)
from smtpproxy.store.store import DATABASE, Store
from tests.store.filling import filled, lines

DOCS = Path(__file__).parents[2] / "docs" / "audit.md"


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("alice@example.org", "org.example@alice"),
        ("Alice@Mail.EXAMPLE.org", "org.example.mail@Alice"),  # local-parts have a case (RFC 5321 §2.4)
        ("", ""),
        ("postmaster", "postmaster"),
        ('"a@b"@example.org', 'org.example@"a@b"'),
        ("a@localhost", "localhost@a"),
        ("a@[192.0.2.1]", "1].2.0.[192@a"),
        ("ü@BÜCHER.example", "example.bücher@ü"),
        ("a@", "@a"),
    ],
)
def test_addresses_stand_with_the_domain_first(address: str, key: str) -> None:
    assert key_of(address) == key
    local, at, domain = address.rpartition("@")
    assert address_of(key) == (f"{local}@{domain.lower()}" if at else address)


@given(some.text(), some.text().filter(lambda domain: "@" not in domain))
def test_an_address_can_be_had_back(local: str, domain: str) -> None:
    """In lower case, which may be longer than the text was (İ), but only once."""
    address = f"{local}@{domain.lower()}".replace("İ".lower(), "")
    assert address_of(key_of(address)) == f"{address.rpartition('@')[0]}@{address.rpartition('@')[2].lower()}"


def test_one_domain_and_those_below_it_are_one_range() -> None:
    found = sorted(
        map(key_of, ("a@example.org", "z@example.org", "b@mail.example.org", "c@example-x.org", "d@xexample.org"))
    )
    assert [key for key in found if key.startswith("org.example@")] == ["org.example@a", "org.example@z"]
    assert [key for key in found if "org.example." <= key < "org.example/"] == ["org.example.mail@b"]


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "4c0000201"),
        ("2001:db8::1", "620010db8000000000000000000000001"),
        ("::ffff:192.0.2.1", "4c0000201"),
        ("unix:/run/x", "unix:/run/x"),
        ("", ""),
    ],
)
def test_clients_have_keys(address: str, key: str) -> None:
    assert client_key(address) == key
    assert client_of(key) == ("192.0.2.1" if "ffff" in address else address)


@given(some.ip_addresses(), some.ip_addresses())
def test_clients_sort_as_the_numbers_they_are(one: object, two: object) -> None:
    first, second = ip_address(str(one)), ip_address(str(two))
    keys = client_key(str(one)), client_key(str(two))
    if first.version == second.version and not any(getattr(each, "ipv4_mapped", None) for each in (first, second)):
        assert (keys[0] < keys[1]) == (int(first) < int(second))
        assert ip_address(client_of(keys[0])) == first
    else:
        assert keys[0][0] in "46"


def test_a_network_is_one_range() -> None:
    network = ip_network("192.0.2.64/26")
    low, high = client_key(str(network[0])), client_key(str(network[-1]))
    inside = [n for n in range(256) if low <= client_key(f"192.0.2.{n}") <= high]
    assert inside == list(range(64, 128))


@pytest.mark.parametrize("key", ["4", "4xyz", "4c00002", "6c0000201", "620010db8", "é"])
def test_what_is_no_key_of_a_client_stays_as_it_is(key: str) -> None:
    assert client_of(key) == key


# ----------------------------------------------------------------------------------------------------- the tables


def test_a_database_has_just_these_tables_and_columns(tmp_path: Path) -> None:
    Store(tmp_path, create=True).close()
    connection = sqlite3.connect(tmp_path / DATABASE)
    there = {
        name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    indexes = {
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
    }
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    assert there == {name: [column for column, _ in columns] for name, (columns, _) in TABLES.items()}
    assert indexes == set(INDEXES)
    assert version == VERSION


def test_keys_and_indexes_name_columns_there_are() -> None:
    for name, (columns, key) in TABLES.items():
        assert set(key) <= {column for column, _ in columns}, name
        assert {kind for _, kind in columns} <= {"BIGINT", "TEXT", "DOUBLE PRECISION", "BLOB"}
    for name, (table, indexed, condition) in INDEXES.items():
        there = {column for column, _ in TABLES[table][0]}
        assert set(indexed.split(", ")) <= there, name
        assert not condition or condition.split()[0] in there, name


def test_the_documentation_names_every_table_and_column() -> None:
    text = DOCS.read_text(encoding="utf-8")
    part = text[text.index("### Its tables") :].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", part, re.MULTILINE))
    assert set(rows) == set(TABLES)
    for name, (columns, _) in TABLES.items():
        missing = [column for column, _ in columns if f"`{column}`" not in rows[name]]
        if name != "meta":
            assert not missing, f"{name}: {missing}"


def test_the_documentation_names_every_value_of_meta(tmp_path: Path) -> None:
    from smtpproxy.audit.journal import Journal
    from smtpproxy.store.recorder import Recorder, Terms
    from tests.store.signing import ORIGIN, signer

    (tmp_path / "journal").mkdir()
    journal = Journal(tmp_path / "journal")
    journal.add(b'{"v":1}\n')
    journal.flush()
    journal.turn()
    recorder = Recorder(tmp_path, Terms(ORIGIN, signer()))
    while recorder.step():
        pass
    there = {name for (name,) in recorder.store.connection.execute("SELECT name FROM meta")}
    recorder.close()
    journal.close()
    (row,) = re.findall(r"^\| `meta` \|.*$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name in there if name not in row} == set()
    assert {"position", "frontier", "origin"} <= there


# ---------------------------------------------------------------------------------------------- other versions


def test_a_newer_store_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    filled(tmp_path, 3).close()
    connection = sqlite3.connect(tmp_path / DATABASE)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.execute("ALTER TABLE mail ADD COLUMN mood TEXT")
    connection.close()
    before = sqlite3.connect(tmp_path / DATABASE).serialize()
    for create in (False, True):
        with pytest.raises(StoreError, match=f"of version {VERSION + 1}, made by a newer smtpproxy"):
            Store(tmp_path, create=create)
    with pytest.raises(StoreError, match=f"of version {VERSION + 1}"):
        open_reader(str(tmp_path))
    assert sqlite3.connect(tmp_path / DATABASE).serialize() == before


@pytest.fixture
def two_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smtpproxy whose schema is two versions ahead."""
    monkeypatch.setattr(schema, "VERSION", VERSION + 2)
    first = ("ALTER TABLE sink ADD COLUMN mood TEXT", "UPDATE sink SET mood = 'calm'")
    second = ("CREATE INDEX sink_mood ON sink (mood)",)
    monkeypatch.setattr(schema, "MIGRATIONS", {**schema.MIGRATIONS, VERSION: first, VERSION + 1: second})


@pytest.mark.usefixtures("two_more")
def test_an_older_store_is_migrated_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema, "VERSION", VERSION)
        store = filled(tmp_path, 10)
        with store.changing() as connection:
            connection.execute("INSERT INTO sink VALUES ('a', 1, 0, '')")
        size, root = store.size, store.frontier.root()
        store.close()
    with pytest.raises(StoreError, match=f"of version {VERSION}"):  # who only reads does not migrate
        open_reader(str(tmp_path))
    store = Store(tmp_path)
    assert (store.size, store.frontier.root()) == (size, root)
    assert store.connection.execute("SELECT name, mood FROM sink").fetchall() == [("a", "calm")]
    assert store.connection.execute("PRAGMA user_version").fetchone() == (VERSION + 2,)
    store.append(list(lines(2, seed=9)))
    store.close()
    Store(tmp_path).close()
    open_reader(str(tmp_path)).close()


@pytest.mark.usefixtures("two_more")
def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema, "VERSION", VERSION)
        filled(tmp_path, 3).close()
    monkeypatch.setitem(schema.MIGRATIONS, VERSION + 1, ("CREATE INDEX x ON sink (none_such)",))
    with pytest.raises(StoreError, match=r"no such column|has no column"):
        Store(tmp_path)
    connection = sqlite3.connect(tmp_path / DATABASE)
    assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
    assert "mood" not in {row[1] for row in connection.execute("PRAGMA table_info(sink)")}
    connection.close()


def test_each_version_has_a_way_to_the_next() -> None:
    assert set(schema.MIGRATIONS) == set(range(1, VERSION))


def test_statements_are_for_an_empty_database() -> None:
    connection = sqlite3.connect(":memory:")
    for statement in sqlite_statements():
        connection.execute(statement)
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        connection.execute(sqlite_statements()[0])
    connection.close()
