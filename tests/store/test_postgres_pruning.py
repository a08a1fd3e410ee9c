"""Old days go from the database, and what is left is proved as before."""

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from smtpproxy.audit.tree import Frontier, check_consistency, root_of
from smtpproxy.store.errors import StoreError
from smtpproxy.store.postgres import PostgresSink
from smtpproxy.store.postgres_pruning import Pruned, bridge, prune_postgres
from smtpproxy.store.postgres_schema import BY_DAY
from smtpproxy.store.store import Store
from tests.store.filling import Writer, lines
from tests.store.pg_rig import Cluster, name_of
from tests.store.pg_stores import ORIGIN, bring, brought, checkpoint, empty, findings, same

BEGIN = datetime(2026, 11, 16, 12, 0, tzinfo=UTC)
SAID = "are gone: they were pruned here, and the gateway may have them"


def days(directory: Path, number: int, mails: int = 40, origin: str = ORIGIN) -> Store:
    """A store with a record of so many days from BEGIN on, and checkpoints in it."""
    store = empty(directory, origin)
    for day in range(number):
        writer = Writer(f"{day:x}a", BEGIN + timedelta(days=day))
        for part in range(4):
            store.append(list(lines(mails // 4, seed=10 * day + part, writer=writer)))
            checkpoint(store)
    return store


def midnight(day: int) -> float:
    """When a day of these begins."""
    return (BEGIN.replace(hour=0) + timedelta(days=day)).timestamp()


def partitions(server: Cluster, database: str) -> set[str]:
    """Those of the days that there are records of."""
    found = server.execute(database, "SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class p ON"
                           " p.oid = inhparent WHERE p.relkind = 'p' ORDER BY 1")  # fmt: skip
    return {name for (name,) in found if name.endswith(tuple(f"202611{day}" for day in range(16, 24)))}


def test_whole_days_go_and_the_rest_is_proved(tmp_path: Path, server: Cluster, database: str) -> None:
    with contextlib.closing(days(tmp_path, 4)) as store:
        brought(tmp_path, database)
        assert prune_postgres(database, midnight(0)) == [Pruned(ORIGIN, 0, 0)]
        assert prune_postgres(database, midnight(1) - 1) == [Pruned(ORIGIN, 0, 0)], "the day is not over"
        assert findings(database) == []
        same(tmp_path, database)
        for day in (1, 3):
            ((began,),) = server.execute(database, f"SELECT first FROM filing WHERE day = '2026-11-{16 + day}'")
            ((before, now),) = [(one.before, one.now) for one in prune_postgres(database, midnight(day))]
            assert before < now == began // 256 * 256
            ((oldest,),) = server.execute(database, "SELECT min(first) & 1099511627775 FROM block")
            assert oldest == now
            expected = {f"{t}_202611{16 + d}" for t in BY_DAY for d in range(day, 4)}
            there = partitions(server, database)
            assert there >= expected
            assert {name.split("_")[0] for name in there - expected} <= {"session"}, "of lines before the cut"
            same(tmp_path, database, but=["session", "mail", "recipient", "mark"])
            assert [text.partition(f"{now - 1} ")[2] for text in findings(database)] == [SAID]
            ((mails, since),) = server.execute(database, "SELECT count(*), min(at) FROM mail")
            assert since >= midnight(day)
            assert mails == store.connection.execute("SELECT count(*) FROM mail WHERE at >= ?", (since,)).fetchone()[0]
        ((bridged, open_ones),) = server.execute(
            database,
            "SELECT count(bridge), count(*) FILTER (WHERE bridge IS NULL AND size % 256 <> 0) FROM checkpoint"
            f" WHERE size < {now}",
        )
        assert bridged > 0 == open_ones, "each checkpoint of what is gone still proves what came after it"
        with contextlib.closing(PostgresSink(database, tmp_path)) as sink:
            store.append(list(lines(20, seed=99, writer=Writer("ff", BEGIN + timedelta(days=4)))))
            checkpoint(store)
            bring(sink, tmp_path)
        same(tmp_path, database, but=["session", "mail", "recipient", "mark"])
        assert [text.partition(f"{now - 1} ")[2] for text in findings(database)] == [SAID]


def test_a_bridge_leads_from_a_checkpoint_to_its_subtree() -> None:
    leaves = [bytes([n]) * 32 for n in range(256)]
    for within in (1, 2, 77, 128, 255):
        hashes = [bridge(leaves, within)[at : at + 32] for at in range(0, len(bridge(leaves, within)), 32)]
        peaks, proof = hashes[: within.bit_count()], hashes[within.bit_count() :]
        root = Frontier(within, peaks).root()
        assert root == root_of(leaves[:within])
        assert check_consistency(within, 256, proof, root, root_of(leaves))


def test_everything_may_go(tmp_path: Path, server: Cluster, database: str) -> None:
    """But for what the tree can't be cut in; who follows goes on."""
    with contextlib.closing(days(tmp_path, 2)) as store, contextlib.closing(PostgresSink(database, tmp_path)) as sink:
        bring(sink, tmp_path)
        size = store.size
        assert prune_postgres(database, midnight(5)) == [Pruned(ORIGIN, 0, size // 256 * 256)]
        assert server.execute(database, "SELECT count(*) FROM mail") == [(0,)]
        store.append(list(lines(40, seed=8, writer=Writer("ff", BEGIN + timedelta(days=6)))))
        for _ in range(3):  # its partitions and its day are others than it knew
            with contextlib.suppress(Exception):
                bring(sink, tmp_path)
        assert sink.position() == store.size
        same(tmp_path, database, but=["session", "mail", "recipient", "mark"])
        assert [text.partition(" are ")[2] for text in findings(database)] == [SAID.removeprefix("are ")]


def test_a_session_stays_until_its_last_record_goes(tmp_path: Path, server: Cluster, database: str) -> None:
    """It began on one day and ended on the next, where its mails are."""
    late = Writer("bb", datetime(2026, 11, 16, 23, 59, 59, 995_000, tzinfo=UTC))
    with contextlib.closing(days(tmp_path, 1)) as store:
        store.append(list(late.session(mails=2)))
        store.append(list(lines(60, seed=5, writer=Writer("cc", BEGIN + timedelta(days=1)))))
        store.append(list(lines(60, seed=6, writer=Writer("dd", BEGIN + timedelta(days=2)))))
    brought(tmp_path, database)
    joined = "SELECT count(*) FROM mail JOIN session ON session.id = mail.session WHERE name = 'bb-1'"
    prune_postgres(database, midnight(1))
    assert server.execute(database, joined)[0][0] > 0
    assert server.execute(database, "SELECT count(*) FROM mail WHERE NOT EXISTS"
                          " (SELECT 1 FROM session WHERE id = mail.session)") == [(0,)]  # fmt: skip
    prune_postgres(database, midnight(2))
    assert server.execute(database, joined) == [(0,)]
    assert server.execute(database, "SELECT count(*) FROM session WHERE name = 'bb-1'") == [(0,)]
    assert "session_20261116" in partitions(server, database), "it was not empty when its day went"
    prune_postgres(database, midnight(2))
    assert "session_20261116" not in partitions(server, database)


def test_each_gateway_has_its_own_cut(tmp_path: Path, server: Cluster, database: str) -> None:
    """One of them was quiet for days, and one never had anything."""
    for name, number in (("busy", 3), ("quiet", 1), ("new", 0)):
        (tmp_path / name).mkdir()
        days(tmp_path / name, number, origin=name).close()
        with contextlib.closing(PostgresSink(database, tmp_path / name)) as sink:
            bring(sink, tmp_path / name)
    found = {one.origin: one.now for one in prune_postgres(database, midnight(2))}
    firsts = dict(server.execute(database, "SELECT origin, next / 256 * 256 FROM gateway"))
    assert found["quiet"] == firsts["quiet"] > 0
    assert 0 < found["busy"] < firsts["busy"]
    assert found["new"] == 0
    for name in ("busy", "quiet"):
        same(tmp_path / name, database, but=["session", "mail", "recipient", "mark"])
        assert [text.partition(" are ")[2] for text in findings(database, name)] == [SAID.removeprefix("are ")]


def test_what_a_clock_that_was_ahead_left_goes_with_its_records(tmp_path: Path, server: Cluster, database: str) -> None:
    with contextlib.closing(empty(tmp_path)) as store:
        store.append(list(Writer("aa", BEGIN).session()))
        store.append(list(Writer("bb", datetime(2037, 1, 1, tzinfo=UTC)).session()))
        store.append(list(lines(60, writer=Writer("cc", BEGIN + timedelta(days=1)))))
    brought(tmp_path, database)
    prune_postgres(database, (datetime.now(UTC) + timedelta(days=3)).timestamp())
    ahead = datetime(2036, 1, 1, tzinfo=UTC).timestamp()
    for table in ("mail", "recipient", "session"):
        assert server.execute(database, f"SELECT count(*) FROM {table} WHERE at > {ahead}") == [(0,)], table


def test_who_reads_is_not_cut_off(tmp_path: Path, database: str) -> None:
    days(tmp_path, 2).close()
    brought(tmp_path, database)
    with psycopg.connect(database) as reader:
        reader.execute("SELECT count(*) FROM mail")
        with pytest.raises(StoreError, match=r"can't be pruned: canceling statement due to lock timeout"):
            prune_postgres(f"{database}&options=-c%20lock_timeout%3D100", midnight(1))
    same(tmp_path, database)
    assert findings(database) == []
    ((_, before, now),) = prune_postgres(database, midnight(1))
    assert before == 0 < now


def test_who_writes_can_not_prune(tmp_path: Path, server: Cluster, database: str) -> None:
    days(tmp_path, 2).close()
    brought(tmp_path, database)
    role = f"gate_{name_of(database)}"
    server.execute("postgres", f"CREATE ROLE {role} LOGIN")
    server.execute(database, f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
    server.execute(database, f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}")
    with pytest.raises(StoreError, match="can't be pruned: must be owner of table"):
        prune_postgres(server.conninfo(name_of(database), user=role), midnight(1))
    same(tmp_path, database)
