"""The way to a PostgreSQL database: addresses, timeouts, errors, TLS; and that a password is in no text."""

import socket
import time
from decimal import Decimal

import psycopg
import pytest
import trustme

from smtpproxy.store.errors import StoreError
from smtpproxy.store.postgres_link import Where, connect, within
from tests.store.pg_rig import HOST, Cluster, name_of, running

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://ann@db.example:5433/audit", "user=ann host=db.example port=5433 dbname=audit"),
        (f"postgresql://ann:{SECRET}@db.example/audit", "user=ann host=db.example dbname=audit"),
        (f"postgres://ann@db.example/audit?password={SECRET}&sslmode=require", "user=ann host=db.example dbname=audit"),
        (f"postgresql://ann:{SECRET}%20x@%2Frun%2Fpg/audit", "user=ann host=/run/pg dbname=audit"),
        (f"postgresql:///audit?host=/run/pg&sslpassword={SECRET}", "host=/run/pg dbname=audit"),
        (f"postgresql://?host=/run/pg&user=ann&password={SECRET}", "user=ann host=/run/pg"),
        ("postgresql://a.example,b.example:5433/audit", "host=a.example,b.example port=,5433 dbname=audit"),
        (
            "postgresql://db.example/audit?gateway=mx1.example.org",
            "host=db.example dbname=audit gateway=mx1.example.org",
        ),
        ("postgresql://db.example/audit?gateway=mx%201", "host=db.example dbname=audit gateway=mx 1"),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, said: str) -> None:
    where = Where(address)
    parts = sorted(said.split(" gateway=")[0].split())
    for text in (repr(where), str(where), f"{where}", "%s" % where):  # noqa: UP031 - that, too
        assert SECRET not in text
        assert sorted(text.split(" gateway=")[0].split()) == parts
    assert not hasattr(where, "__dict__")
    assert where.gateway == (said.split("gateway=")[1] if "gateway=" in said else "")
    assert (SECRET in where.conninfo("us", {})) == (SECRET in address)
    assert "gateway" not in where.conninfo("us", {})


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://ann:{SECRET}%zz@db.example/audit",
        f"postgresql://ann@db.example/audit?pasword={SECRET}",
        f"postgresql://ann@db.example/audit?{SECRET}",
        f"postgresql://ann:{SECRET}@[db.example/audit",
        f"postgresql://ann@db.example:5432/audit?password={SECRET}&connect_timeout",
    ],
)
def test_an_address_that_can_not_be_read_is_not_repeated(address: str) -> None:
    with pytest.raises(StoreError, match="no address of a PostgreSQL database") as caught:
        Where(address)
    assert SECRET not in f"{caught.value!r}{caught.value}"
    assert caught.value.__context__ is None, "an error of libpq has the address in it"


def test_what_the_address_says_counts(database: str) -> None:
    def shown(address: str, *names: str) -> list[str]:
        with connect(Where(address), "us", work_mem="1234kB") as connection:
            return [connection.execute(f"SHOW {name}".encode()).fetchall()[0][0] for name in names]

    names = ("statement_timeout", "TimeZone", "work_mem", "application_name", "client_encoding")
    assert shown(database, *names) == ["30s", "UTC", "1234kB", "us", "UTF8"]
    said = f"{database}&options=-c%20statement_timeout%3D7000&application_name=them&client_encoding=latin1"
    assert shown(said, *names) == ["7s", "UTC", "1234kB", "them", "LATIN1"]
    assert "tcp_user_timeout=30000" in Where(database).conninfo("us", {})
    assert "tcp_user_timeout=5" in Where(f"{database}&tcp_user_timeout=5").conninfo("us", {})


def test_a_database_that_is_not_there_is_said_in_the_servers_words(server: Cluster) -> None:
    with pytest.raises(StoreError, match=r'can\'t be reached: .*database "nowhere" does not exist'):
        connect(Where(server.conninfo("nowhere")), "us")


def test_a_wrong_password_is_said_without_it(server: Cluster) -> None:
    server.execute("postgres", "CREATE ROLE somebody LOGIN PASSWORD 'right'")
    try:
        connect(Where(server.by_tcp("postgres", user="somebody", password="right")), "us").close()
        with pytest.raises(StoreError, match="password authentication failed") as caught:
            connect(Where(server.by_tcp("postgres", user="somebody", password=SECRET)), "us")
        assert SECRET not in str(caught.value)
    finally:
        server.execute("postgres", "DROP ROLE somebody")


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    with pytest.raises(StoreError, match=r"can't be reached: .*refused"):
        connect(Where(f"postgresql://ann:{SECRET}@{HOST}:{port}/audit"), "us")


def test_who_listens_and_says_nothing_is_not_waited_for() -> None:
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        begun = time.monotonic()
        with pytest.raises(StoreError, match=r"can't be reached: .*timeout"):
            connect(Where(f"postgresql://{HOST}:{port}/audit?connect_timeout=1"), "us")
        assert time.monotonic() - begun < 10


def test_a_server_that_stops_answering_is_not_waited_for() -> None:
    with running() as cluster, connect(Where(cluster.database()), "us") as connection:
        with within(connection, 30.0):
            assert connection.execute("SELECT 1").fetchall() == [(1,)]
        cluster.freeze()
        try:
            begun = time.monotonic()
            with pytest.raises(psycopg.OperationalError), within(connection, 0.3):
                connection.execute("SELECT 1")
            assert 0.3 <= time.monotonic() - begun < 10
        finally:
            cluster.thaw()


def test_only_a_database_in_utf8_will_do(server: Cluster) -> None:
    with pytest.raises(StoreError, match="is encoded in LATIN1; it has to be UTF8"):
        connect(Where(server.database(encoding="LATIN1")), "us")


def test_numbers_are_as_those_of_sqlite(database: str) -> None:
    with connect(Where(database), "us") as connection:
        found = connection.execute(
            "SELECT sum(n), avg(n), sum(n) / 4.0, -sum(n), sum(n) FILTER (WHERE n > 9), 1e30::numeric, 'NaN'::numeric"
            " FROM generate_series(1, 4) n"
        ).fetchone()
    assert found is not None
    assert found[:5] == (10, 2.5, 2.5, -10, None)
    assert found[5] == 10**30
    assert not any(isinstance(value, Decimal) for value in found)


def test_over_tls_a_server_must_be_who_it_says() -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    identity = authority.issue_cert(HOST)
    files = {
        "server.pem": b"".join(part.bytes() for part in identity.cert_chain_pems),
        "server.key": identity.private_key_pem.bytes(),
    }
    settings = ("ssl=on", "ssl_cert_file=server.pem", "ssl_key_file=server.key")
    with running(settings=settings, files=files) as cluster:
        database = name_of(cluster.database())
        cluster.execute("postgres", f"CREATE ROLE somebody LOGIN PASSWORD '{SECRET}'")
        address = cluster.by_tcp(database, user="somebody", password=SECRET)
        with authority.cert_pem.tempfile() as ours, stranger.cert_pem.tempfile() as theirs:
            with connect(Where(f"{address}?sslmode=verify-full&sslrootcert={ours}"), "us") as connection:
                query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
                assert connection.execute(query).fetchall() == [(True,)]
            with pytest.raises(StoreError, match="certificate verify failed") as caught:
                connect(Where(f"{address}?sslmode=verify-full&sslrootcert={theirs}"), "us")
    assert SECRET not in str(caught.value)
