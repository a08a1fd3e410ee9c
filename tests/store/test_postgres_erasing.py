"""What was erased from a store is erased from the database that follows it, and the proof stays whole."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtpproxy.store.erasing import erase, pattern_of
from smtpproxy.store.postgres import PostgresSink
from smtpproxy.store.postgres_erasing import erased_by
from smtpproxy.store.store import Store
from tests.store.filling import Writer
from tests.store.pg_rig import Cluster
from tests.store.pg_stores import bring, checkpoint, empty, findings, same

ANN, BOB, HER_CLIENT = "ann@example.org", "bob@example.net", "192.0.2.77"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Mails from and to Ann, and others', with something else around them; its directory is tmp_path."""
    writer = Writer()
    with contextlib.closing(empty(tmp_path)) as made:
        for sender, recipient, client in (
            (ANN, BOB, HER_CLIENT),
            (BOB, ANN, "192.0.2.1"),
            ("eve@example.com", BOB, "192.0.2.2"),
        ):
            made.append(list(writer.session(sender, (recipient,), client=client, identity=sender, message_id="<1@x>")))
        yield made


def left(server: Cluster, database: str, what: str) -> int:
    """Rows and lines in which a text is left, in all tables."""
    blocks = server.execute(database, f"SELECT count(*) FROM block WHERE position('{what}'::bytea in lines) > 0")
    rows = server.execute(
        database,
        f"SELECT (SELECT count(*) FROM mail WHERE mail::text LIKE '%{what}%')"
        f" + (SELECT count(*) FROM recipient WHERE recipient::text LIKE '%{what}%')"
        f" + (SELECT count(*) FROM session WHERE session::text LIKE '%{what}%')",
    )
    return int(blocks[0][0]) + int(rows[0][0])


@pytest.mark.parametrize("when", ["before it was sent", "after", "in the middle"])
def test_an_address_is_erased(store: Store, tmp_path: Path, server: Cluster, database: str, when: str) -> None:
    with contextlib.closing(PostgresSink(database, tmp_path)) as sink:
        if when == "after":
            bring(sink, tmp_path)
            assert left(server, database, ANN) > 0
        elif when == "in the middle":
            bring(sink, tmp_path, batch=5)
            store.append(list(Writer("cc").session(ANN)))
        pattern = pattern_of(address=ANN)
        assert erase(store, pattern, address=ANN).records > 5
        checkpoint(store)
        bring(sink, tmp_path, batch=7)
    for what in (ANN, "org.example@ann", "<1@x>"):
        assert left(server, database, what) == (0 if what != "<1@x>" else 2), what
    assert left(server, database, BOB) > 0
    same(tmp_path, database, but=["mail", "recipient", "session"])
    assert findings(database) == []
    others = "SELECT sender, message_id, identity FROM mail WHERE sender = 'com.example@eve'"
    assert server.execute(database, others) == [("com.example@eve", "<1@x>", "eve@example.com")]


def test_a_client_is_erased_from_its_session_and_its_mails(
    store: Store, tmp_path: Path, server: Cluster, database: str
) -> None:
    with contextlib.closing(PostgresSink(database, tmp_path)) as sink:
        bring(sink, tmp_path)
        erase(store, pattern_of(client=HER_CLIENT), client=HER_CLIENT)
        bring(sink, tmp_path)
    same(tmp_path, database)
    assert left(server, database, HER_CLIENT) == 0
    query = "SELECT client IS NULL, hello IS NULL, identity FROM session ORDER BY id LIMIT 2"
    assert server.execute(database, query) == [(True, True, ANN), (False, False, BOB)]
    assert findings(database) == []


def test_a_session_that_goes_on_does_not_bring_it_back(
    store: Store, tmp_path: Path, server: Cluster, database: str
) -> None:
    rest = list(Writer("dd").session(ANN, client=HER_CLIENT, mails=2, close=False))
    with contextlib.closing(PostgresSink(database, tmp_path)) as sink:
        store.append(rest[:12])
        bring(sink, tmp_path)
        erase(store, pattern_of(client=HER_CLIENT), client=HER_CLIENT)
        bring(sink, tmp_path)
        store.append(rest[12:])
        bring(sink, tmp_path)
    query = "SELECT count(*), count(client) FROM mail WHERE session IN (SELECT id FROM session WHERE name LIKE 'dd-%')"
    assert server.execute(database, query) == [(2, 0)]


@pytest.mark.parametrize(
    ("line", "runs"),
    [
        (b'{"v":1,"session":"","kind":"audit-erase","ranges":[[3,5],[9,9]],"records":4}', [(3, 5), (9, 9)]),
        (b'{"v":1,"session":"aa-1","kind":"audit-erase","ranges":[[3,5]]}', []),
        (b'{"v":1,"session":"","kind":"note","why":"\\"kind\\":\\"audit-erase\\"","ranges":[[3,5]]}', []),
        (b'{"v":1,"session":"","kind":"note","x":{"kind":"audit-erase"},"ranges":[[3,5]]}', []),
        (b'{"v":1,"session":"","kind":"audit-erase","ranges":"all"}', []),
        (b'{"v":1,"session":"","kind":"audit-erase"', []),
    ],
)
def test_only_the_recorders_own_word_counts(line: bytes, runs: list[tuple[int, int]]) -> None:
    assert erased_by(line) == runs
