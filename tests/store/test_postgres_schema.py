"""The tables in PostgreSQL: made once by whoever comes first, made newer, in partitions by day; and who may do what."""

import threading
from datetime import date, timedelta

import psycopg
import pytest

from smtpproxy.store import postgres_schema, schema
from smtpproxy.store.errors import StoreError
from smtpproxy.store.postgres_link import Connection, Where, connect
from smtpproxy.store.postgres_schema import BY_DAY, BY_GATEWAY, check, prepare, version_of
from tests.store.pg_rig import Cluster, name_of

MIDNIGHT = 1_795_478_400  # 2026-11-24T00:00:00Z


def opened(address: str) -> Connection:
    return connect(Where(address), "a test")


def in_parallel(*acts: "threading.Thread") -> None:
    for act in acts:
        act.start()
    for act in acts:
        act.join(60)
        assert not act.is_alive()


def with_roles(server: Cluster, database: str, *roles: str) -> None:
    """Roles of this name and a database's: they are the server's, not a database's."""
    for role in roles:
        server.execute("postgres", f"CREATE ROLE {role}_{name_of(database)} LOGIN")


def as_role(server: Cluster, database: str, role: str) -> str:
    return server.conninfo(name_of(database), user=f"{role}_{name_of(database)}")


def test_the_tables_are_those_of_the_plan(database: str) -> None:
    with opened(database) as link:
        assert version_of(link) == 0
        with pytest.raises(StoreError, match="there are no tables of the record in the database"):
            check(link)
        assert prepare(link) == 0
        assert version_of(link) == schema.VERSION
        check(link)
        assert prepare(link) == schema.VERSION, "and once more it is no trouble"
        for table in (*BY_DAY, *BY_GATEWAY):
            described = link.execute(
                "SELECT column_name, data_type, collation_name FROM information_schema.columns WHERE table_name = %s"
                " ORDER BY ordinal_position",
                (table,),
            ).fetchall()
            more = {"block": ["day"]}.get(table, [])
            before = ["gateway"] if table in BY_GATEWAY else []
            assert [name for name, _, _ in described] == [*before, *(n for n, _ in schema.TABLES[table][0]), *more]
            assert {collation for _, kind, collation in described if kind == "text"} <= {"C"}, "sorted by octets"
        indexes = {name for (name,) in link.execute("SELECT indexname FROM pg_indexes").fetchall()}
        assert {name for name, (table, _, _) in schema.INDEXES.items() if table in BY_DAY} <= indexes


def test_several_make_them_at_once(database: str) -> None:
    before: list[int] = []

    def make() -> None:
        with opened(database) as link:
            before.append(prepare(link))

    in_parallel(*(threading.Thread(target=make) for _ in range(6)))
    assert sorted(before) == [0, *[schema.VERSION] * 5]


def test_older_tables_are_made_newer_in_steps(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(database) as link:
        prepare(link)
        monkeypatch.setattr(schema, "VERSION", 3)
        monkeypatch.setattr(schema, "MIGRATIONS", {1: ("ALTER TABLE mail ADD COLUMN one BIGINT",), 2: ("no SQL",)})
        with pytest.raises(StoreError, match="are of version 1, and this smtpproxy needs 3"):
            check(link)
        with pytest.raises(StoreError, match=r"can't be made: syntax error"):
            prepare(link)
        assert version_of(link) == 1, "and nothing has changed"
        schema.MIGRATIONS[2] = ("ALTER TABLE mail ADD COLUMN two BIGINT",)
        assert prepare(link) == 1
        assert version_of(link) == 3
        assert link.execute("SELECT one, two FROM mail").fetchall() == []


def test_newer_tables_are_left_alone(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(database) as link:
        prepare(link)
        monkeypatch.setattr(schema, "VERSION", 0)
        for act in (check, prepare):
            with pytest.raises(StoreError, match="made by a newer smtpproxy; this one knows versions up to 0"):
                act(link)


def test_tables_of_somebody_else_are_left_alone(server: Cluster, database: str) -> None:
    server.execute(database, "CREATE TABLE session (theirs TEXT)")
    with opened(database) as link:
        with pytest.raises(StoreError, match='relation "session" already exists'):
            prepare(link)
        assert version_of(link) == 0
    server.execute(database, 'CREATE SCHEMA "The Record"')
    with opened(f'{database}&options=-c%20search_path%3D"The\\%20Record"') as link:
        assert prepare(link) == 0
        link.execute("SELECT smtpproxy_days('{2026-11-24}')")
        assert link.execute("""SELECT count(*) FROM "The Record".mail_20261124""").fetchall() == [(0,)]


def test_without_a_schema_that_is_said(database: str) -> None:
    with opened(f"{database}&options=-c%20search_path%3Dnowhere") as link, pytest.raises(StoreError, match="no schema"):
        prepare(link)


def test_a_day_begins_at_midnight_utc(database: str) -> None:
    """Whatever time zone the server has, which here is one far to the west."""
    with opened(f"{database}&options=-c%20TimeZone%3DAmerica/Caracas") as link:
        prepare(link)
        link.execute("SELECT smtpproxy_days('{2026-11-23, 2026-11-24}')")
        for at in (MIDNIGHT - 0.001, float(MIDNIGHT), MIDNIGHT + 86_399.999):
            link.execute("INSERT INTO mail (id, at) VALUES (%s, %s)", (round(at * 1000), at))
        found = link.execute("SELECT tableoid::regclass::text, count(*) FROM mail GROUP BY 1 ORDER BY 1").fetchall()
        assert found == [("mail_20261123", 1), ("mail_20261124", 2)]
        with pytest.raises(psycopg.errors.CheckViolation, match="no partition"):
            link.execute("INSERT INTO mail (id, at) VALUES (1, %s)", (MIDNIGHT + 86_400.0,))
        for day in ("2026-11-23", "2026-11-24"):
            link.execute("INSERT INTO block (first, day) VALUES (1, %s)", (day,))
        found = link.execute("SELECT tableoid::regclass::text, day FROM block ORDER BY 1").fetchall()
        assert found == [("block_20261123", date(2026, 11, 23)), ("block_20261124", date(2026, 11, 24))]


def test_days_are_made_while_others_make_them_and_write(server: Cluster, database: str) -> None:
    days = [date(2026, 12, 1) + timedelta(days=each) for each in range(4)]
    failed: list[BaseException] = []

    def make() -> None:
        try:
            with opened(database) as link:
                for day in days:
                    link.execute("SELECT smtpproxy_days(%s)", ([day],))
        except psycopg.Error as error:
            failed.append(error)

    with opened(database) as link, opened(database) as other:
        prepare(link)
        link.execute("SELECT smtpproxy_days('{2026-11-24}')")
        with other.transaction(), link.transaction():
            other.execute("SELECT count(*) FROM mail")
            link.execute("INSERT INTO mail (id, at) VALUES (1, %s)", (MIDNIGHT,))
            in_parallel(*(threading.Thread(target=make) for _ in range(3)))  # nobody has to wait for us
    assert failed == []
    found = server.execute(database, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'recipient'::regclass")
    assert found == [(5,)]


def test_who_writes_may_do_that_and_no_more(server: Cluster, database: str) -> None:
    with_roles(server, database, "gate", "look")
    roles = {role: f"{role}_{name_of(database)}" for role in ("gate", "look")}
    with opened(database) as link:
        prepare(link, writers=(roles["gate"],), readers=(roles["look"],))
        prepare(link, writers=(roles["gate"],), readers=(roles["look"],))
    with opened(as_role(server, database, "gate")) as link:
        link.execute("SELECT smtpproxy_days('{2026-11-24}')")
        link.execute("INSERT INTO mail (id, at) VALUES (1, %s)", (MIDNIGHT,))
        for statement in (
            "DELETE FROM mail",
            "DELETE FROM block",
            "DELETE FROM checkpoint",
            "UPDATE checkpoint SET note = ''",
            "UPDATE subtree SET hash = ''",
            "UPDATE block SET leaves = ''",
            "TRUNCATE mail",
            "DROP TABLE mail_20261124",
            "ALTER TABLE mail DETACH PARTITION mail_20261124",
            "DELETE FROM smtpproxy_migration",
            "DELETE FROM gateway",
            "CREATE TABLE more (n BIGINT)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                link.execute(statement)
        with pytest.raises(StoreError, match="only who owns the tables"):
            prepare(link, readers=(roles["gate"],))


def test_who_only_reads_may_do_that_and_no_more(server: Cluster, database: str) -> None:
    with_roles(server, database, "look")
    with opened(database) as link:
        prepare(link, readers=(f"look_{name_of(database)}",))
    with opened(as_role(server, database, "look")) as link:
        check(link)
        for table in (*BY_DAY, *BY_GATEWAY, "gateway", "filing"):
            assert link.execute(f"SELECT * FROM {table}".encode()).fetchall() == []
            for statement in (f"INSERT INTO {table} DEFAULT VALUES", f"DELETE FROM {table}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    link.execute(statement.encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            link.execute("SELECT smtpproxy_days('{2026-11-24}')")


def test_who_may_make_no_tables_is_told_so(server: Cluster, database: str) -> None:
    with_roles(server, database, "gate")
    with (
        opened(as_role(server, database, "gate")) as link,
        pytest.raises(StoreError, match=r"can't be made: permission denied for schema public"),
    ):
        prepare(link)


def test_a_role_that_is_none_changes_nothing(database: str) -> None:
    with opened(database) as link:
        with pytest.raises(StoreError, match='role "no; body" does not exist'):
            prepare(link, readers=("no; body",))
        assert version_of(link) == 0


def test_a_number_with_its_gateway_fits_into_its_column() -> None:
    assert postgres_schema.MOST_GATEWAYS << schema.GATEWAY_SHIFT == 1 << 63
