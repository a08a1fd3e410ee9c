"""A store is followed into PostgreSQL: all of it, once, whatever happens to the server and to us."""

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from smtpproxy.store import postgres
from smtpproxy.store.errors import StoreError
from smtpproxy.store.following import Followers
from smtpproxy.store.postgres import PostgresSink
from smtpproxy.store.postgres_link import Where, connect
from smtpproxy.store.postgres_schema import prepare
from smtpproxy.store.pruning import prune
from smtpproxy.store.reading import SQLiteReader
from smtpproxy.store.sinks import Pace, Policy, Positioned, Resting, SinkDownError
from smtpproxy.store.store import Store, time_of
from tests.store.filling import Writer, lines
from tests.store.pg_rig import Cluster, name_of, running
from tests.store.pg_stores import ORIGIN, bring, brought, checkpoint, empty, findings, same, stocked

PATIENCE = 60.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty one; its directory is tmp_path."""
    with contextlib.closing(empty(tmp_path)) as made:
        yield made


def of(server: Cluster, database: str, query: str) -> list[tuple[Any, ...]]:
    return server.execute(database, query)


def numbered(directory: Path, start: int = 0, stop: int | None = None) -> list[tuple[int, bytes]]:
    with contextlib.closing(SQLiteReader(directory)) as local:
        return list(local.lines(start, stop))


# ------------------------------------------------------------------------------------------------------ what is there


@pytest.mark.parametrize("batch", [1, 7, 100, 5000])
def test_what_is_there_is_what_the_store_has(tmp_path: Path, database: str, batch: int) -> None:
    with contextlib.closing(stocked(tmp_path, 60)) as store:
        store.append([b"no record at all", b'{"v":1,"kind":"of tomorrow"}', b'{"at":"0001-01-01T00:00:00Z"}'])
        checkpoint(store)
    brought(tmp_path, database, batch)
    same(tmp_path, database)
    assert findings(database) == []


def test_what_is_there_already_is_passed_over(tmp_path: Path, database: str) -> None:
    stocked(tmp_path, 30).close()
    with contextlib.closing(PostgresSink(database, tmp_path)) as sink:
        everything = numbered(tmp_path)
        sink.send(everything[:100])
        sink.send(everything[:100])
        sink.send(everything[50:200])
        assert sink.position() == 200
        sink.send(everything)
    same(tmp_path, database)


def test_who_connects_anew_goes_on(tmp_path: Path, database: str) -> None:
    """In the middle of sessions, subtrees and mails."""
    stocked(tmp_path, 40).close()
    everything, chance = numbered(tmp_path), random.Random(2)
    at = 0
    while at < len(everything):
        size = chance.randrange(1, 60)
        with contextlib.closing(PostgresSink(database, tmp_path)) as sink:
            assert sink.position() == at
            sink.send(everything[at : at + size])
        at += size
    same(tmp_path, database)


def test_a_session_that_goes_on_is_shown_so_and_changed_when_it_ends(
    store: Store, tmp_path: Path, server: Cluster, database: str
) -> None:
    rest = list(Writer().session(mails=2, tls="TLSv1.3", identity="ann"))
    store.append(rest[:12])
    with contextlib.closing(PostgresSink(database, tmp_path)) as sink:
        bring(sink, tmp_path)
        query = "SELECT until IS NULL, last IS NULL, how, mails FROM session"
        assert of(server, database, query) == [(True, True, None, 0)]
        same(tmp_path, database)
        store.append(rest[12:])
        bring(sink, tmp_path)
    same(tmp_path, database)
    assert of(server, database, query) == [(False, False, "closed", 2)]


def test_checkpoints_follow_also_where_no_lines_do(store: Store, tmp_path: Path, database: str) -> None:
    store.append(list(lines(10)))
    with contextlib.closing(PostgresSink(database, tmp_path)) as sink:
        sink.send(numbered(tmp_path)[:20])
        checkpoint(store)
        sink.rest()
        with pytest.raises(AssertionError):
            same(tmp_path, database)  # it is of records the database has not yet
        bring(sink, tmp_path)
        same(tmp_path, database)
        store.append(list(lines(5, seed=2, writer=Writer("abcdef"))))
        bring(sink, tmp_path)
        checkpoint(store)
        sink.rest()
        same(tmp_path, database)
    assert findings(database) == []


def test_texts_that_postgresql_can_not_keep_are_made_so_that_it_can(
    store: Store, tmp_path: Path, server: Cluster, database: str
) -> None:
    """A NUL, which no text there may have; and one longer than an index takes, which does not compress."""
    chance = random.Random(3)
    long = "".join(chr(chance.randrange(0x4E00, 0x9FFF)) for _ in range(5000))
    store.append(list(Writer().session(sender="a\0b@example.org", message_id=f"<{long}>")))
    brought(tmp_path, database)
    ((sender, message_id),) = of(server, database, "SELECT sender, message_id FROM mail")
    assert sender == "org.example@a\ufffdb"
    assert long.startswith(message_id[1:])
    assert 1990 < len(message_id.encode()) <= 2000
    same(tmp_path, database, but=["mail"])


def test_a_store_without_a_name_is_not_followed(tmp_path: Path, database: str) -> None:
    Store(tmp_path, create=True).close()
    with (
        contextlib.closing(PostgresSink(database, tmp_path)) as sink,
        pytest.raises(SinkDownError, match="the store has no name yet"),
    ):
        sink.position()


def test_the_name_of_a_key_that_took_over_follows(store: Store, tmp_path: Path, database: str) -> None:
    for vkey in ("one", "another"):
        with store.changing():
            store.keep("vkey", vkey)
        store.append(list(lines(5)))
        brought(tmp_path, database)
        same(tmp_path, database)


# ------------------------------------------------------------------------------------------------------------- days


def test_midnight_in_the_middle_of_a_batch(store: Store, tmp_path: Path, server: Cluster, database: str) -> None:
    """UTC's, on a server that lives far to the west. A session that goes on over it is one session."""
    writer = Writer(begin=datetime(2026, 11, 16, 23, 59, 59, 990_000, tzinfo=UTC))
    store.append(list(writer.session(mails=3)))
    brought(tmp_path, database)
    same(tmp_path, database)
    days = of(server, database, "SELECT day::text, count, first & 1099511627775 FROM block ORDER BY first")
    assert days == [("2026-11-16", 9, 0), ("2026-11-17", len(numbered(tmp_path)) - 9, 9)]
    assert of(server, database, "SELECT day::text, first FROM filing ORDER BY 1") == [
        ("2026-11-16", 0),
        ("2026-11-17", 9),
    ]
    there = of(server, database, "SELECT DISTINCT tableoid::regclass::text FROM mail ORDER BY 1")
    assert there == [("mail_20261116",), ("mail_20261117",)]
    assert of(server, database, "SELECT tableoid::regclass::text FROM session") == [("session_20261116",)]
    assert findings(database) == []


def test_tomorrow_has_its_partitions_before_it_comes(tmp_path: Path, server: Cluster, database: str) -> None:
    stocked(tmp_path, 2).close()
    brought(tmp_path, database)
    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%Y%m%d}"
    assert of(server, database, f"SELECT to_regclass('mail_{tomorrow}') IS NOT NULL") == [(True,)]


def test_a_clock_that_was_set_back(store: Store, tmp_path: Path, server: Cluster, database: str) -> None:
    """What is recorded as yesterday's after today's is filed with today's, and found by the time it states."""
    store.append(list(Writer("aa", datetime(2026, 11, 17, 0, 0, 1, tzinfo=UTC)).session()))
    store.append(list(Writer("bb", datetime(2026, 11, 16, 23, 0, tzinfo=UTC)).session()))
    store.append(list(Writer("cc", datetime(2026, 11, 18, 1, 0, tzinfo=UTC)).session()))
    brought(tmp_path, database)
    same(tmp_path, database)
    assert findings(database) == []
    assert of(server, database, "SELECT day::text, count(*) FROM block GROUP BY 1 ORDER BY 1") == [
        ("2026-11-17", 1),
        ("2026-11-18", 1),
    ]
    yesterday = datetime(2026, 11, 16, tzinfo=UTC).timestamp()
    query = f"SELECT count(*), min(tableoid::regclass::text) FROM mail WHERE at < {yesterday + 86_400}"
    assert of(server, database, query) == [(1, "mail_20261116")]


def test_a_clock_that_was_far_ahead(store: Store, tmp_path: Path, server: Cluster, database: str) -> None:
    """Else all that comes later would be filed under a day in 2038, and never go."""
    store.append(list(Writer("aa").session()))
    store.append(list(Writer("bb", datetime(2038, 1, 19, tzinfo=UTC)).session()))
    now = datetime.now(UTC)
    store.append(list(Writer("cc", now).session()))
    brought(tmp_path, database)
    same(tmp_path, database)
    ((latest,),) = of(server, database, "SELECT max(day) FROM block")
    assert latest <= now.date() + timedelta(days=2)


# ----------------------------------------------------------------------------------------------------- several gateways


def test_several_gateways_begin_at_once(tmp_path: Path, server: Cluster, database: str) -> None:
    """In a database that has nothing yet: tables, days and numbers are made once."""
    names = [f"mx{number}.example.org" for number in range(4)]
    failed: list[BaseException] = []
    ready = threading.Barrier(len(names))

    def follow(name: str) -> None:
        try:
            ready.wait(PATIENCE)
            brought(tmp_path / name, database, batch=40)
        except BaseException as error:
            failed.append(error)

    for seed, name in enumerate(names):
        (tmp_path / name).mkdir()
        stocked(tmp_path / name, 30, origin=name, seed=seed).close()
    threads = [threading.Thread(target=follow, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failed == []
    for name in names:
        same(tmp_path / name, database)
        assert findings(database, name) == []
    assert len({number for (number,) in of(server, database, "SELECT id FROM gateway")}) == len(names)


def test_two_of_one_name_do_not_mix(tmp_path: Path, server: Cluster, database: str) -> None:
    for name, seed in (("one", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        stocked(tmp_path / name, 20, seed=seed).close()
    sinks = [PostgresSink(database, tmp_path / name) for name in ("one", "other")]
    assert [sink.position() for sink in sinks] == [0, 0]
    sinks[0].send(numbered(tmp_path / "one", 0, 50))
    for text in (
        "somebody else wrote as mx1.example.org into the database",
        "has other records of mx1.example.org than this store",
    ):
        with pytest.raises(SinkDownError, match=text):
            sinks[1].send(numbered(tmp_path / "other"))
    bring(sinks[0], tmp_path / "one")
    same(tmp_path / "one", database)
    for sink in sinks:
        sink.close()


def test_a_store_restored_from_an_older_copy_changes_nothing(tmp_path: Path, database: str) -> None:
    """Neither while it has fewer records than the database, nor when it has more, and other ones."""
    everything = list(lines(30))
    for name, some in (("store", everything), ("copy", everything[:200])):
        (tmp_path / name).mkdir()
        with contextlib.closing(empty(tmp_path / name)) as store:
            store.append(some)
    brought(tmp_path / "store", database)
    with contextlib.closing(PostgresSink(database, tmp_path / "copy")) as sink:
        text = f"the database has {len(everything)} records of {ORIGIN}, and this store 200: it is an older copy"
        with pytest.raises(SinkDownError, match=text):
            sink.position()
        with contextlib.closing(Store(tmp_path / "copy")) as store:
            store.append(list(lines(60, seed=9)))
            assert store.size > len(everything)
        for act in (sink.position, lambda: sink.send(numbered(tmp_path / "copy"))):
            with pytest.raises(SinkDownError, match="it goes on from an older copy"):
                act()
    same(tmp_path / "store", database)


def test_a_database_restored_from_an_older_copy_gets_what_it_lacks(
    tmp_path: Path, server: Cluster, database: str
) -> None:
    stocked(tmp_path, 40).close()
    with contextlib.closing(PostgresSink(database, tmp_path)) as sink:
        sink.send(numbered(tmp_path, 0, 150))
        sink.close()
        copy = f"copy_{name_of(database)}"
        server.execute("postgres", f"CREATE DATABASE {copy} TEMPLATE {name_of(database)}")
        bring(sink, tmp_path)
    brought(tmp_path, server.conninfo(copy))
    same(tmp_path, server.conninfo(copy))


def test_what_the_store_has_no_more_is_skipped_and_counted(tmp_path: Path, server: Cluster, database: str) -> None:
    with contextlib.closing(stocked(tmp_path, 100)) as store:
        with contextlib.closing(PostgresSink(database, tmp_path)) as sink:
            sink.send(numbered(tmp_path, 0, 100))
            checkpoint(store)
            prune(store, time_of(numbered(tmp_path)[700][1]))
            bring(sink, tmp_path)
            first = store.first
            assert first > 256
            assert sink.position() == store.size
        same(tmp_path, database, but=["session", "mail", "recipient", "mark"])
    assert of(server, database, "SELECT first, skipped FROM gateway") == [(first, first - 100)]
    query = f"SELECT count(*) FROM session WHERE how = 'lost' AND last & 1099511627775 = {first}"
    lost = of(server, database, query)
    assert lost == [(1,)]
    assert findings(database) == []


def test_what_was_passed_over_is_skipped_from_a_whole_subtree_on(
    tmp_path: Path, server: Cluster, database: str
) -> None:
    """Else the first of what follows could not be proved."""
    stocked(tmp_path, 100).close()
    with contextlib.closing(PostgresSink(database, tmp_path)) as sink:
        sink.send(numbered(tmp_path, 0, 100))
        sink.send(numbered(tmp_path, 110, 120))
        assert sink.position() == 120
        assert of(server, database, "SELECT first, skipped FROM gateway") == [(0, 0)], "they are in the same subtree"
        sink.send(numbered(tmp_path, 700))
        assert of(server, database, "SELECT first, skipped FROM gateway") == [(512, 512 - 120)]
    same(tmp_path, database, but=["session", "mail", "recipient", "mark"])


def test_it_is_a_sink_as_the_followers_know_them(tmp_path: Path, database: str) -> None:
    """Behind it a store that grows, with a recorder's thread in between."""
    sink = PostgresSink(database, tmp_path)
    assert isinstance(sink, Positioned)
    assert isinstance(sink, Resting)
    with contextlib.closing(stocked(tmp_path, 60)) as store:
        followers = Followers(store, [(sink, Policy())], lambda name, why: None, pace=Pace(idle=0.02))
        _until(lambda: followers.states()[0].next == store.size)
        store.append(list(lines(20, seed=3, writer=Writer("bb"))))
        followers.write(at_once=True)
        _until(lambda: followers.states()[0].next == store.size)
        assert followers.stop() == []
        assert followers.floor() == store.size
    same(tmp_path, database)


def test_a_store_that_was_pruned_before_anybody_followed_it(tmp_path: Path, database: str) -> None:
    with contextlib.closing(stocked(tmp_path, 100)) as store:
        checkpoint(store)
        prune(store, time_of(numbered(tmp_path)[700][1]))
    brought(tmp_path, database)
    same(tmp_path, database, but=["session", "mail", "recipient", "mark"])
    assert findings(database) == []


# --------------------------------------------------------------------------------------------------------- trouble


def test_a_server_that_is_stopped_for_a_while(tmp_path: Path) -> None:
    stocked(tmp_path, 40).close()
    with running() as cluster:
        database = cluster.database()
        with contextlib.closing(PostgresSink(database, tmp_path)) as sink:
            sink.send(numbered(tmp_path, 0, 100))
            cluster.stop()
            with pytest.raises(SinkDownError, match=r"terminating connection|closed the connection"):
                sink.send(numbered(tmp_path, 100, 200))
            for act in (sink.position, lambda: sink.send(numbered(tmp_path, 100, 200))):
                with pytest.raises(SinkDownError, match=r"can't be reached: .*(No such file|refused)"):
                    act()
            cluster.start()
            assert sink.position() == 100
            bring(sink, tmp_path)
        same(tmp_path, database)


def test_a_server_killed_in_the_middle_of_a_transaction(tmp_path: Path) -> None:
    stocked(tmp_path, 40).close()
    with running(durable=True) as cluster:
        database = cluster.database()
        sink = PostgresSink(database, tmp_path)
        sink.send(numbered(tmp_path, 0, 100))
        said: list[str] = []

        def send() -> None:
            try:
                sink.send(numbered(tmp_path, 100, 500))
            except SinkDownError as error:
                said.append(str(error))

        with psycopg.connect(database) as blocker:
            blocker.execute("LOCK TABLE mail IN EXCLUSIVE MODE")  # what comes before it in the transaction is done
            thread = threading.Thread(target=send)
            thread.start()
            _until(lambda: cluster.execute(database, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'relation'"))
            cluster.kill()
            thread.join(PATIENCE)
            blocker.close()
        assert len(said) == 1
        cluster.start()
        assert sink.position() == 100
        bring(sink, tmp_path)
        sink.close()
        same(tmp_path, database)
        assert findings(database) == []


def test_a_server_killed_again_and_again(tmp_path: Path) -> None:
    """At any moment: what it said is committed is there, nothing is there twice."""
    stocked(tmp_path, 150).close()
    everything, chance = numbered(tmp_path), random.Random(5)
    with running(durable=True) as cluster:
        database = cluster.database()
        sink = PostgresSink(database, tmp_path)
        for _ in range(4):
            cluster.start()
            position = sink.position()
            killer = threading.Timer(chance.uniform(0.01, 0.2), cluster.kill)
            killer.start()
            try:
                for at in range(position, position + 300):
                    sink.send(everything[at : at + 1])
                    position = at + 1
            except SinkDownError:
                pass
            killer.join(PATIENCE)
            cluster.start()
            assert position <= sink.position() <= position + 1
        bring(sink, tmp_path)
        sink.close()
        same(tmp_path, database)


def test_a_commit_whose_answer_never_came(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stocked(tmp_path, 20).close()
    sink = PostgresSink(database, tmp_path)
    sink.position()
    take = postgres._Following.take

    def taken(self: Any, batch: Any) -> None:
        take(self, batch)
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(postgres._Following, "take", taken)
    with pytest.raises(SinkDownError, match="the connection is lost"):
        sink.send(numbered(tmp_path, 0, 100))
    monkeypatch.undo()
    sink.send(numbered(tmp_path, 0, 120))
    assert sink.position() == 120
    bring(sink, tmp_path)
    sink.close()
    same(tmp_path, database)


def test_a_server_that_says_nothing_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stocked(tmp_path, 20).close()
    with running() as cluster:
        database = cluster.database()
        with contextlib.closing(PostgresSink(f"{database}&connect_timeout=1", tmp_path)) as sink:
            sink.send(numbered(tmp_path, 0, 50))
            monkeypatch.setattr(postgres, "PATIENCE", 0.3)
            cluster.freeze()
            try:
                begun = time.monotonic()
                for _ in range(2):
                    with pytest.raises(SinkDownError, match=r"closed the connection|timeout"):
                        sink.send(numbered(tmp_path, 50, 100))
                assert time.monotonic() - begun < 20
            finally:
                cluster.thaw()
            monkeypatch.undo()
            bring(sink, tmp_path)
        same(tmp_path, database)


def test_a_lock_that_somebody_keeps(tmp_path: Path, database: str) -> None:
    stocked(tmp_path, 20).close()
    address = f"{database}&options=-c%20lock_timeout%3D100"
    with contextlib.closing(PostgresSink(address, tmp_path)) as sink:
        sink.send(numbered(tmp_path, 0, 50))
        with psycopg.connect(database) as blocker:
            blocker.execute("LOCK TABLE recipient")
            with pytest.raises(SinkDownError, match=r"canceling statement due to lock timeout \(55P03\)"):
                sink.send(numbered(tmp_path, 50, 100))
        bring(sink, tmp_path)
    same(tmp_path, database)


def test_a_partition_that_somebody_dropped_is_made_again(tmp_path: Path, server: Cluster, database: str) -> None:
    stocked(tmp_path, 20).close()
    with contextlib.closing(PostgresSink(database, tmp_path)) as sink:
        sink.send(numbered(tmp_path, 0, 50))
        server.execute(database, "DROP TABLE mark_20261116, mail_20261116, recipient_20261116, session_20261116")
        with pytest.raises(SinkDownError, match="no partition"):
            bring(sink, tmp_path)
        bring(sink, tmp_path)
        assert sink.position() == len(numbered(tmp_path))


def _until(holds: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        threading.Event().wait(0.01)


# ---------------------------------------------------------------------------------------------------------- rights


def test_a_role_with_no_more_rights_than_it_needs(tmp_path: Path, server: Cluster, database: str) -> None:
    with contextlib.closing(stocked(tmp_path, 40)) as store:
        role = f"gate_{name_of(database)}"
        server.execute("postgres", f"CREATE ROLE {role} LOGIN")
        address = server.conninfo(name_of(database), user=role)
        with contextlib.closing(PostgresSink(address, tmp_path)) as sink:
            with pytest.raises(SinkDownError, match="permission denied for schema public"):
                sink.position()
            with contextlib.closing(connect(Where(database), "a test")) as link:
                prepare(link, writers=(role,))
            bring(sink, tmp_path, batch=30)
            store.say("audit-erase", {"ranges": [[0, 20]], "records": 21})
            checkpoint(store)
            bring(sink, tmp_path)
    assert of(server, database, "SELECT count(*) FROM session WHERE client IS NULL") == [(2,)]


def test_a_password_is_in_no_word_of_it(tmp_path: Path, server: Cluster) -> None:
    stocked(tmp_path, 2).close()
    address = server.by_tcp("postgres", user="nobody_at_all", password="s3cr3t")
    sink = PostgresSink(address, tmp_path)
    with pytest.raises(SinkDownError, match="password authentication failed") as caught:
        sink.position()
    assert "s3cr3t" not in str(caught.value) + repr(caught.value) + repr(vars(sink))
    with pytest.raises(StoreError, match="no address") as unread:
        PostgresSink(f"{address}?pasword=s3cr3t", tmp_path)
    assert "s3cr3t" not in repr(unread.value)
