"""Whatever dies, fills up or is in the way: no record is lost, none is false, and the tree is whole.

Real gateways under load; who is killed is killed by SIGKILL, at any moment or (outside.py) in the middle of a write.
What a mail's client was told is compared with the store and with the log of the server behind the gateway: `compare`.
"""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.gateway import ROOT, Account, Clients, Gateway, Server, compare, the_same, until
from tests.store.outside import Disk, Shim

NOT_NOW = "451 4.3.1 "
KILLED = "killed by SIGKILL"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        yield one


@pytest.fixture
def shim(base: Path) -> Iterator[Shim]:
    with Shim(base) as one:
        yield one


def clients(gateway: Gateway, sessions: int = 8) -> Clients:
    """At work, wherever the gateway listens by now."""
    return Clients(lambda: gateway.port, sessions=sessions)


def ended(gateway: Gateway, server: Server, load: Clients) -> Account:
    """The gateway's account behind an orderly end, compared with the others."""
    load.stop()
    gateway.recorder()  # it is there: one that died a moment ago leaves the journal to the next start
    assert gateway.stop() == 0
    account = gateway.account()
    compare(account, server, load)
    account.sound()
    assert account.waiting == 0, "the journal was not taken over"
    return account


def verify(directory: Path) -> subprocess.CompletedProcess[str]:
    """As anybody would."""
    argv = [sys.executable, "-m", "smtpproxy", "audit", "verify", "--store", str(directory)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)


# ----------------------------------------------------------------------------------------------------- who is killed


def test_workers_are_killed(base: Path, server: Server) -> None:
    """Again and again, the one or the other; the sessions it had are on record as lost."""
    with Gateway(base, server.port) as gateway, clients(gateway) as load:
        for turn in range(6):
            load.goes_on(20)
            workers = until(lambda: found if len(found := gateway.workers) == 2 else None, "no two workers")
            gateway.kill(workers[turn % 2])
        load.goes_on()
        account = ended(gateway, server, load)
    assert len(account.of("worker-died")) == 6
    assert all(KILLED in line["how"] for line in account.of("worker-died"))
    assert account.lost
    assert verify(account.directory).returncode == 0


def test_a_worker_is_killed_in_mid_write(base: Path, server: Server, shim: Shim) -> None:
    """Half a line is in the journal: the next one who writes ends it, and it is on record as cut off."""
    with Gateway(base, server.port, shim=shim) as gateway, clients(gateway) as load:
        for turn in range(1, 4):
            load.goes_on(20)
            shim.tear(".jsonl")
            until(lambda: shim.torn == turn, "no write was cut off")  # noqa: B023 - called within this turn
            gateway.hears(r"a worker died(?:.|\n)*" * turn)
        load.goes_on()
        account = ended(gateway, server, load)
    cut = account.of("audit-cut")
    assert len(cut) == 3
    assert all(line["octets"] > 0 and len(line["sha256"]) == 64 for line in cut)
    assert len(account.of("worker-died")) == 3


def test_the_supervisor_is_killed(base: Path, server: Server) -> None:
    """Its workers end their sessions, the recorder takes over what they wrote, and the next start goes on."""
    with Gateway(base, server.port) as gateway, clients(gateway) as load:
        for _ in range(3):
            load.goes_on(20)
            gateway.kill(gateway.pid)
            gateway.all_gone()
            gateway.start()
        load.goes_on()
        account = ended(gateway, server, load)
    assert [line["alone"] for line in account.of("service-start")] == [True] * 4
    assert not account.of("audit-cut")


def test_the_supervisor_is_killed_in_mid_write(base: Path, server: Server, shim: Shim) -> None:
    """While it puts the death of its only worker on record. Whoever comes next ends the line."""
    with Gateway(base, server.port, workers=1, shim=shim) as gateway:
        with clients(gateway) as load:
            load.goes_on(20)
        (worker,) = until(lambda: found if len(found := gateway.workers) == 1 else None, "no worker")
        until(lambda: gateway.account().waiting == 0, "the journal is not taken over")
        shim.tear(".jsonl")
        os.kill(worker, signal.SIGKILL)
        until(lambda: shim.torn == 1, "the supervisor wrote nothing")
        gateway.all_gone()
        gateway.start()
        with clients(gateway) as more:
            more.goes_on(20)
        account = ended(gateway, server, more)
        compare(account, server, load)
    assert len(account.of("audit-cut")) == 1
    assert not account.of("worker-died")
    assert len(account.of("service-start")) == 2


def test_all_are_killed_at_once(base: Path, server: Server) -> None:
    """As when the machine's OOM killer, or an operator, has had enough. Nothing but the page cache outlives it."""
    with Gateway(base, server.port) as gateway, clients(gateway) as load:
        for _ in range(3):
            load.goes_on(20)
            gateway.kill_all()
            gateway.start()
        load.goes_on()
        account = ended(gateway, server, load)
    assert account.lost


def test_the_recorder_is_killed(base: Path, server: Server) -> None:
    """Nobody else sees it: the store has each content exactly once, as if nothing had been."""
    with Gateway(base, server.port, audit="checkpoint_records = 50") as gateway, clients(gateway) as load:
        for turn in range(5):
            load.goes_on(5 + turn)
            gateway.kill(gateway.recorder())
        load.stop()  # it is started again later and later
        account = ended(gateway, server, load)
        assert "the recorder died" in gateway.said
    the_same(account, server)
    assert set(account.sessions.values()) == {"closed"}
    assert not account.of("audit-cut", "worker-died")


@pytest.mark.parametrize("file", ["audit.db-wal", "audit.db"])
def test_the_recorder_is_killed_in_mid_write(base: Path, server: Server, shim: Shim, file: str) -> None:
    """Half a page in the write-ahead log, or in the database while the log is taken back into it."""
    with Gateway(base, server.port, shim=shim) as gateway, clients(gateway) as load:
        for turn in range(1, 4):
            load.goes_on(20)
            shim.tear(file, skip=turn)
            if file == "audit.db":  # which the recorder writes once in a while; asked for, here, by another connection
                until(lambda: len(gateway.recorders) == 1, "no recorder")
                _take_back(gateway, shim, turn)
            until(lambda: shim.torn == turn, "no write was cut off")  # noqa: B023 - called within this turn
        load.goes_on()
        account = ended(gateway, server, load)
    the_same(account, server)
    assert set(account.sessions.values()) == {"closed"}


def _take_back(gateway: Gateway, shim: Shim, turn: int) -> None:
    """Have a process that is killed in the middle take the write-ahead log back into the database."""
    program = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA wal_checkpoint(FULL)').fetchall()"
    for _ in range(20):
        argv = [sys.executable, "-c", program, str(gateway.directory / "audit.db")]
        done = subprocess.run(argv, env={**os.environ, **shim.env}, timeout=60, capture_output=True, check=False)
        if shim.torn == turn:
            assert done.returncode in (0, -signal.SIGKILL)
            return
    raise AssertionError("nothing was written")


# ------------------------------------------------------------------------------------------------- no room on the disk


def test_the_disk_is_full_and_mail_waits(base: Path, server: Server) -> None:
    """Nobody is told anything until there is room; then all is on record, once."""
    with (
        Disk(base / "disk", 16) as disk,
        Gateway(base, server.port, disk=disk) as gateway,
        clients(gateway) as load,
    ):
        for _ in range(2):
            load.goes_on(20)
            behind = len(gateway.said)
            disk.fill()
            gateway.hears("the audit can't be written: mail waits until it can .*No space left", behind=behind)
            told = len(load.accepted)
            link = socket.create_connection(("127.0.0.1", gateway.port), timeout=0.3)
            with link, contextlib.suppress(TimeoutError):
                assert link.recv(100) == b"", "somebody is greeted, and that is on no record"
            assert len(load.accepted) <= told + 8, "mail was taken"
            disk.empty()
            gateway.hears("the audit can be written again", behind=behind)
        load.goes_on()
        account = ended(gateway, server, load)
        assert load.errors == 0
    the_same(account, server)
    assert set(account.sessions.values()) == {"closed"}
    assert not account.of("audit-cut", "worker-died")


def test_the_disk_is_full_and_mail_is_refused(base: Path, server: Server) -> None:
    """`on_full = "refuse"`: MAIL gets 451 4.3.1, that is on record, and is over when there is room."""
    with (
        Disk(base / "disk", 48) as disk,
        Gateway(base, server.port, disk=disk, audit='on_full = "refuse"') as gateway,
        clients(gateway) as load,
    ):
        load.goes_on(20)
        assert (disk.path / "store/journal/reserve").stat().st_size == 4 << 20
        disk.fill()
        until(lambda: any(told.reply.startswith(NOT_NOW) for told in load.told), "no MAIL is refused")
        seen = len(load.told)
        until(lambda: len(load.told) > seen + 100, "nobody is answered any more")
        late = [told for told in load.told[seen + 50 :] if told.verb == "MAIL"]
        assert late
        assert all(told.reply.startswith(NOT_NOW) for told in late), "a mail was taken that has no room"
        assert not (disk.path / "store/journal/reserve").exists()
        disk.empty()
        load.goes_on()
        until(lambda: (disk.path / "store/journal/reserve").exists(), "the reserve is not taken again")
        account = ended(gateway, server, load)
        assert load.errors == 0
    the_same(account, server)
    refused = [line for line in account.of("exchange") if (line.get("told") or "").startswith(NOT_NOW)]
    assert len(refused) == sum(told.verb == "MAIL" and told.reply.startswith(NOT_NOW) for told in load.told)
    assert all("record-full" in line["anomalies"] and line["sent"] is None for line in refused)
    assert set(account.sessions.values()) == {"closed"}


def test_a_worker_is_killed_while_the_disk_is_full(base: Path, server: Server) -> None:
    """It may have written part of a line: nobody writes anything into that one."""
    with (
        Disk(base / "disk", 16) as disk,
        Gateway(base, server.port, disk=disk) as gateway,
        clients(gateway) as load,
    ):
        load.goes_on(20)
        disk.fill()
        gateway.hears("the audit can't be written: mail waits until it can")
        for pid in gateway.workers:
            gateway.kill(pid)
        disk.empty()
        load.goes_on()
        account = ended(gateway, server, load)
    assert len(account.of("worker-died")) >= 2
    assert len(account.of("audit-cut")) <= 1


# ------------------------------------------------------------------------------------------- a store that can't be had


def test_a_directory_that_cannot_be_written_is_told_of_at_the_start(base: Path, server: Server) -> None:
    """Nothing is served whose record nobody could keep."""
    with Disk(base / "disk", 16) as disk:
        gateway = Gateway(base, server.port, disk=disk)
        subprocess.run([*disk.prefix(ROOT), "mount", "-o", "remount,ro", str(disk.at)], check=True, timeout=10)
        with pytest.raises(AssertionError, match="can't be used: Read-only file system"):
            gateway.start()
        assert not gateway.group()
        assert not server.log


def test_a_database_that_cannot_be_written_any_more(base: Path, server: Server) -> None:
    """A new recorder finds it read-only. The journal can be written: mail goes on, and nothing is lost of it."""
    with Gateway(base, server.port) as gateway, clients(gateway) as load:
        load.goes_on(20)
        for name in ("audit.db", "audit.db-wal", "audit.db-shm"):
            (gateway.directory / name).chmod(0o444)
        gateway.directory.chmod(0o555)
        gateway.kill(gateway.recorder())
        gateway.hears("the record is not in the store yet: the journal keeps it")
        load.goes_on(50)
        gateway.directory.chmod(0o750)
        for name in ("audit.db", "audit.db-wal", "audit.db-shm"):
            (gateway.directory / name).chmod(0o640)
        gateway.hears("the record is taken over into the store again")
        account = ended(gateway, server, load)
        assert load.errors == 0
    the_same(account, server)
    assert set(account.sessions.values()) == {"closed"}


@contextlib.contextmanager
def locked(gateway: Gateway) -> Iterator[None]:
    """Somebody else has the database, from here on."""
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20);"
        "c.execute('BEGIN IMMEDIATE'); print('had', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", program, str(gateway.directory / "audit.db")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        try:
            assert holder.stdout.readline() == b"had\n"
            yield
        finally:
            holder.stdin.close()
            holder.wait(20)


def test_a_locked_database(base: Path, server: Server) -> None:
    """Mail goes on; the store has all of it when the lock is gone."""
    with Gateway(base, server.port) as gateway, clients(gateway) as load:
        load.goes_on(20)
        with locked(gateway):
            load.goes_on(50)
            gateway.hears("the record is not in the store yet: the journal keeps it .*database is locked")
            load.goes_on(50)
        gateway.hears("the record is taken over into the store again")
        load.goes_on(5)
        account = ended(gateway, server, load)
        assert load.errors == 0
    the_same(account, server)


def test_the_gateway_ends_while_the_database_is_locked(base: Path, server: Server) -> None:
    """It gives up after a while; the next one goes on with the journal."""
    with Gateway(base, server.port) as gateway:
        with clients(gateway) as load:
            load.goes_on(20)
            with locked(gateway):
                load.goes_on(50)
                load.stop()
                assert gateway.stop() == 0
            assert gateway.account().waiting > 0
        gateway.start()
        assert gateway.stop() == 0
        account = gateway.account()
        assert account.waiting == 0
        the_same(account, server)
        account.sound()
        assert len(load.accepted) == len(server.log)


@pytest.mark.parametrize("on_full", ["wait", "refuse"])
def test_the_store_is_too_far_behind(base: Path, server: Server, on_full: str) -> None:
    """More than `queue` waits for a locked database: mail waits, or is refused, as where the disk is full."""
    audit = f'queue = 65536\non_full = "{on_full}"'
    with Gateway(base, server.port, audit=audit) as gateway, clients(gateway) as load:
        load.goes_on(20)
        with locked(gateway):
            if on_full == "wait":
                gateway.hears("the audit can't be written: mail waits until it can .*")
                told = len(load.accepted)
                with contextlib.suppress(AssertionError):
                    until(lambda: len(load.accepted) > told + 8, "", seconds=1.0)
                assert len(load.accepted) <= told + 8, "mail was taken"
            else:
                until(lambda: any(told.reply.startswith(NOT_NOW) for told in load.told), "no MAIL is refused")
        load.goes_on()
        account = ended(gateway, server, load)
        assert load.errors == 0
    the_same(account, server)


# ------------------------------------------------------------------------------------------------ clocks and disks


def test_the_clock_is_set_back(base: Path, server: Server, shim: Shim) -> None:
    """By an hour, under load. Nothing is lost, the numbers go on, and `up` tells what was done; checkpoints go on."""
    audit = "checkpoint_seconds = 1.0\ncheckpoint_records = 100_000"
    with Gateway(base, server.port, shim=shim, audit=audit) as gateway, clients(gateway) as load:
        account = gateway.account
        until(lambda: _checkpoints(account()), "no checkpoint is made")
        shim.later = -3600
        load.goes_on(20)
        until(lambda: _signed(account()) >= 2, "no checkpoint is made while the clock is behind")
        gateway.kill(gateway.recorder())
        load.goes_on(20)
        before = _signed(account())
        load.goes_on(20)
        until(lambda: _signed(account()) > before, "no checkpoint is made any more")
        found = ended(gateway, server, load)
    the_same(found, server)
    ups: dict[str, float] = {}
    back = 0
    latest = ""
    for line in found.lines:
        worker = line["session"].partition("-")[0]
        assert line["up"] >= ups.get(worker, 0.0), "`up` went back"
        ups[worker] = line["up"]
        back += line["at"] < latest[:13]
        latest = max(latest, line["at"])
    assert back, "the clock was not set back"
    assert verify(found.directory).returncode == 0


def _signed(account: Account) -> int:
    """Checkpoints made while the clock was behind."""
    times = _checkpoints(account)
    return sum(at < times[0] - 1800 for at in times)


def _checkpoints(account: Account) -> list[float]:
    with contextlib.closing(sqlite3.connect(account.directory / "audit.db")) as connection:
        return [row[0] for row in connection.execute("SELECT at FROM checkpoint ORDER BY size")]


def test_250_waits_for_the_disk(base: Path, server: Server, shim: Shim) -> None:
    """`durable = true`: the server has taken the mail, its record is written; the client is told once it is synced."""
    with Gateway(base, server.port, workers=1, shim=shim, audit="durable = true") as gateway:
        with _at_the_end(gateway) as link:
            shim.hold_syncs(".jsonl")
            link.sendall(b".\r\n")
            until(lambda: shim.held, "nothing is synced")
            assert len(server.log) == 1
            lines = b"".join(path.read_bytes() for path in (gateway.directory / "journal").glob("*.jsonl"))
            assert b'"kind":"tx-commit"' in lines or gateway.account().of("tx-commit")
            link.settimeout(0.3)
            with pytest.raises(TimeoutError):
                link.recv(1)
            shim.go_on()
            link.settimeout(20)
            assert link.recv(100).decode() == server.log[0].reply + "\r\n"
        assert gateway.stop() == 0


def test_without_durable_nothing_is_synced(base: Path, server: Server, shim: Shim) -> None:
    """So the test above can fail."""
    with Gateway(base, server.port, workers=1, shim=shim) as gateway:
        with _at_the_end(gateway) as link:
            shim.hold_syncs(".jsonl")
            link.sendall(b".\r\n")
            assert link.recv(100).decode() == server.log[0].reply + "\r\n"
            assert shim.held == 0
        shim.go_on()
        assert gateway.stop() == 0


def test_a_sync_that_fails(base: Path, server: Server, shim: Shim) -> None:
    """Nobody is told 250 on the strength of it."""
    with Gateway(base, server.port, workers=1, shim=shim, audit="durable = true") as gateway:
        with _at_the_end(gateway) as link:
            shim.fail_syncs(".jsonl")
            link.sendall(b".\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert link.recv(100) == b"", "a client was told something"
            shim.go_on()
        gateway.hears("a worker died")
        with clients(gateway) as load:
            load.goes_on(5)
        account = ended(gateway, server, load)
    assert len(account.commits()) == len(server.log)


@contextlib.contextmanager
def _at_the_end(gateway: Gateway) -> Iterator[socket.socket]:
    """A client whose content lacks its last line."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as link:
        file = link.makefile("rb")
        for command in (b"", b"EHLO me\r\n", b"MAIL FROM:<a@x.example>\r\n", b"RCPT TO:<b@y.example>\r\n", b"DATA\r\n"):
            link.sendall(command)
            while file.readline()[3:4] == b"-":
                pass
        link.sendall(b"Subject: slow\r\n\r\ntext\r\n")
        yield link
