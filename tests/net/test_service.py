"""The service: signals, reloading, exit codes; a full disk; and a proxy that is killed (G19, G20, G21)."""

import fcntl
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from smtpproxy.config import Config, parse_endpoint
from smtpproxy.net.listener import open_sockets
from smtpproxy.net.service import Service, run
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.verdicts import Action, Judge, PassAll, Verdict
from smtpproxy.smtp.replies import own
from tests.net.rig import DEADLINE, ENVELOPE, End, Process, Store, running, settled, until

LISTENING = re.compile(r"listening on (\S+):(\d+) \(server ")


class Refuses(PassAll):
    """Answers MAIL itself, with a number that says which rules these are."""

    def __init__(self, generation: int) -> None:
        verdict = Verdict(Action.ANSWER, own(f"550 5.7.1 generation {generation}"), "r")
        self.commands = {"MAIL": lambda command, session: verdict}


class Running:
    """`service.run` in this process."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.ports: list[int] = []
        self.audit = Path()

    async def connect(self) -> End:
        """A client."""
        sock = trio.socket.socket()
        with trio.fail_after(DEADLINE):
            await sock.connect(("127.0.0.1", self.ports[0]))
        return End(sock)

    def records(self, kind: str = "") -> list[dict[str, Any]]:
        """What is on record."""
        lines = self.audit.read_bytes().splitlines()
        return [record for record in map(json.loads, lines) if kind in ("", record["kind"])]

    async def ended(self) -> int:
        """The exit code."""
        await until(lambda: self.code is not None, "it does not end")
        assert self.code is not None
        return self.code


def _config(port: int, audit: Path, **patience: float) -> Config:
    listener = {"name": "smtp", "listen": "127.0.0.1:0", "server": f"127.0.0.1:{port}"}
    return Config.model_validate(
        {"listener": [listener], "audit": {"file": str(audit)}, "patience": patience}, by_alias=True
    )


@asynccontextmanager
async def service(
    folder: Path,
    store: Store,
    capsys: pytest.CaptureFixture[str],
    load: Callable[[], Judge | None] = PassAll,
    **patience: float,
) -> AsyncIterator[Running]:
    """A service that runs; signals to this process reach it from here on."""
    made = Running()
    made.audit = folder / "audit.jsonl"
    config = _config(store.port, made.audit, **patience)

    async def serve() -> None:
        made.code = await run(config, load)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        nursery.start_soon(serve)
        said = ""
        with trio.fail_after(DEADLINE):
            while not (found := LISTENING.findall(said)):
                await trio.sleep(0.001)
                said += capsys.readouterr().err
        made.ports = [int(port) for _, port in found]
        await settled()
        yield made
        nursery.cancel_scope.cancel()
    store.close()


async def _hello(client: End) -> None:
    assert (await client.reply()).startswith(b"220")
    await client.send(b"EHLO me.example\r\n")
    assert (await client.reply()).startswith(b"250")


async def _to_content(client: End) -> None:
    await _hello(client)
    await client.send(ENVELOPE + b"DATA\r\n")
    for code in (b"250", b"250", b"354"):
        assert (await client.reply()).startswith(code)


def _kill(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


# ------------------------------------------------------------------------------------------------- ending


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_service_ends_at_once_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    async with service(tmp_path, Store(), capsys) as s:
        _kill(number)
        with trio.fail_after(1):
            assert await s.ended() == 0


async def test_idle_sessions_are_told_421(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with service(tmp_path, Store(), capsys) as s:
        clients = [await s.connect() for _ in range(3)]
        for client in clients:
            await _hello(client)
        _kill(signal.SIGTERM)
        for client in clients:
            assert (await client.rest()).startswith(b"421 ")
            client.close()
        assert await s.ended() == 0
        assert len(s.records("link-close")) == 3


async def test_a_mail_in_flight_is_finished_then_421(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """G20: no accepted mail is cut; new connections find nobody."""
    async with service(tmp_path, store := Store(), capsys) as s:
        client = await s.connect()
        await _to_content(client)
        await client.send(b"Subject: x\r\n")
        _kill(signal.SIGTERM)
        await until(lambda: _refuses(s.ports[0]), "it still accepts")
        await client.send(b"\r\nhi\r\n.\r\n")
        assert (await client.reply()).startswith(b"250 2.0.0 queued")
        assert (await client.reply()).startswith(b"421 ")
        assert await client.rest() == b""
        client.close()
        assert await s.ended() == 0
        assert store.mails == [b"Subject: x\r\n\r\nhi\r\n"]
        assert len(s.records("tx-commit")) == 1


def _refuses(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


async def test_an_envelope_in_flight_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with service(tmp_path, store := Store(), capsys) as s:
        client = await s.connect()
        await _hello(client)
        await client.send(b"MAIL FROM:<a@x.example>\r\n")
        assert (await client.reply()).startswith(b"250")
        _kill(signal.SIGTERM)
        await until(lambda: _refuses(s.ports[0]), "it still accepts")
        await client.send(b"RCPT TO:<b@y.example>\r\nDATA\r\n")
        for code in (b"250", b"354"):
            assert (await client.reply()).startswith(code)
        await client.send(b"x\r\n.\r\n")
        assert (await client.reply()).startswith(b"250 2.0.0 queued")
        assert (await client.rest()).startswith(b"421 ")
        client.close()
        assert await s.ended() == 0
        assert len(store.mails) == 1


async def test_when_the_drain_time_is_over_the_rest_is_told_421(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with service(tmp_path, store := Store(), capsys, drain=0.2) as s:
        sending, waiting = await s.connect(), await s.connect()
        await _to_content(sending)
        await sending.send(b"half a mail")
        store.go = trio.Event()
        await _to_content(waiting)
        await waiting.send(b"x\r\n.\r\n")
        await until(lambda: store.mails, "no mail")
        _kill(signal.SIGTERM)
        for client in (sending, waiting):
            assert (await client.rest()).startswith(b"421 ")
            client.close()
        assert await s.ended() == 0
        await until(lambda: store.halves, "the server still waits")
        assert store.halves == [b"half a "] or store.halves[0] in b"half a mail"
        assert len(s.records("tx-refused")) == 2
        assert not s.records("tx-commit")


async def test_who_does_not_go_when_told_is_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with service(tmp_path, Store(), capsys, drain=0.1) as s:
        client = await s.connect()
        await _hello(client)
        _kill(signal.SIGTERM)
        assert (await client.line()).startswith(b"421 ")
        assert await s.ended() == 0  # though the client has not closed
        client.close()


async def test_a_second_signal_ends_at_once_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with service(tmp_path, store := Store(), capsys) as s:
        client = await s.connect()
        await _to_content(client)
        await client.send(b"half a mail")
        _kill(signal.SIGTERM)
        await until(lambda: _refuses(s.ports[0]), "it still accepts")
        await settled()
        assert s.code is None
        _kill(signal.SIGTERM)
        with trio.fail_after(1):
            assert await s.ended() == 1
        assert await client.ending() in ("end", "reset")
        client.close()
        await until(lambda: store.halves, "the server still waits")
        assert not store.mails
        assert s.records("link-close")


async def test_nothing_is_left_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with service(tmp_path, Store(), capsys) as s:
        client = await s.connect()
        await _to_content(client)
        _kill(signal.SIGTERM)
        await settled()
        _kill(signal.SIGTERM)
        assert await s.ended() == 1
        await client.ending()
        client.close()
    # the audit's own descriptor is the process's until its end
    assert len(os.listdir("/proc/self/fd")) <= before + 1


# ------------------------------------------------------------------------------------------------- reloading


async def test_new_sessions_are_judged_by_new_rules_and_running_ones_by_the_old(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generation = 0

    def load() -> Judge | None:
        nonlocal generation
        generation += 1
        if generation == 3:
            return None
        if generation == 4:
            raise RuntimeError("a bug in reading rules")
        return Refuses(generation)

    async def told(client: End) -> bytes:
        await client.send(b"MAIL FROM:<a@x.example>\r\n")
        return await client.reply()

    async with service(tmp_path, Store(), capsys, load) as s:
        first = await s.connect()
        await _hello(first)
        for expected in (2, 2, 2, 5):
            before = generation
            _kill(signal.SIGHUP)
            await until(lambda now=before: generation > now, "not read again")  # type: ignore[misc]
            await settled()
            client = await s.connect()
            await _hello(client)
            assert await told(client) == b"550 generation %d\r\n" % expected
            client.close()
            assert await told(first) == b"550 generation 1\r\n"
        _kill(signal.SIGTERM)
        assert (await first.line()).startswith(b"421 ")
        first.close()
        assert await s.ended() == 0


async def test_rules_that_are_bad_from_the_beginning_are_2(tmp_path: Path) -> None:
    assert await run(_config(25, tmp_path / "audit"), lambda: None) == 2
    assert not (tmp_path / "audit").exists()


# ------------------------------------------------------------------------------------------------- starting


async def test_a_listener_that_cannot_be_opened_is_3_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (taken,) = open_sockets(parse_endpoint("127.0.0.1:0"))
    where = f"127.0.0.1:{taken.getsockname()[1]}"
    listeners = [
        {"name": "one", "listen": "127.0.0.1:0", "server": "127.0.0.1:25"},
        {"name": "two", "listen": where, "server": "127.0.0.1:25"},
    ]
    before = len(os.listdir("/proc/self/fd"))
    config = Config.model_validate({"listener": listeners, "audit": {"file": str(tmp_path / "audit")}}, by_alias=True)
    assert await run(config, PassAll) == 3
    assert f"smtpproxy: can't listen on {where}: Address already in use" in capsys.readouterr().err
    taken.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example", "192.0.2.1"])
async def test_an_address_that_is_not_ours_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str) -> None:
    listener = {"name": "one", "listen": f"{host}:2525", "server": "127.0.0.1:25"}
    config = Config.model_validate({"listener": [listener], "audit": {"file": str(tmp_path / "audit")}}, by_alias=True)
    assert await run(config, PassAll) == 3
    assert re.search(rf"smtpproxy: can't listen on {host}:2525: \S+", capsys.readouterr().err)


async def test_an_audit_that_cannot_be_opened_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(_config(25, tmp_path / "missing" / "audit"), PassAll) == 3
    assert "can't be opened: No such file" in capsys.readouterr().err


async def test_two_listeners_and_two_families(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has its own server, and its own name on the record."""
    stores = [Store(), Store("::1")]
    listeners = [
        {"name": "four", "listen": "127.0.0.1:0", "server": f"127.0.0.1:{stores[0].port}"},
        {"name": "six", "listen": "[::1]:0", "server": f"[::1]:{stores[1].port}"},
    ]
    config = Config.model_validate({"listener": listeners, "audit": {"file": str(tmp_path / "audit")}}, by_alias=True)
    async with trio.open_nursery() as nursery:
        for store in stores:
            nursery.start_soon(store.run)
        nursery.start_soon(run, config, PassAll)
        said = ""
        while len(found := LISTENING.findall(said)) < 2:
            await trio.sleep(0.001)
            said += capsys.readouterr().err
        for (host, port), family in zip(found, (socket.AF_INET, socket.AF_INET6), strict=True):
            client = End(trio.socket.socket(family))
            await client.socket.connect((host.strip("[]"), int(port)))
            await _hello(client)
            client.close()
        await until(lambda: all(store.sessions == 1 for store in stores), "not both")
        await until(lambda: (tmp_path / "audit").read_bytes().count(b"link-close") == 2, "not both ended")
        records = [json.loads(line) for line in (tmp_path / "audit").read_bytes().splitlines()]
        assert {r["listener"] for r in records if r["kind"] == "link-connect"} == {"four", "six"}
        nursery.cancel_scope.cancel()
    for store in stores:
        store.close()


# ------------------------------------------------------------------------------------------------- the record


async def test_nothing_is_told_before_it_is_on_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """S8. The record is a pipe that this test reads: while it is full nobody is told anything; then all is there."""
    fifo = tmp_path / "audit.jsonl"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 16_384)
    os.set_blocking(reading, False)
    seen = b""

    def drain() -> bytes:
        nonlocal seen
        try:
            while data := os.read(reading, 65_536):
                seen += data
        except BlockingIOError:
            pass
        return seen

    with structlog.testing.capture_logs() as log:
        async with service(tmp_path, store := Store(), capsys) as s:
            client = await s.connect()
            await _hello(client)
            drain()
            for number in range(200):
                command = b"NOOP " + b"x" * 200 + b"%d\r\n" % number
                await client.send(command)
                with trio.move_on_after(0.2) as scope:
                    reply = await client.reply()
                    assert reply == b"250 Ok\r\n"
                if scope.cancelled_caught:
                    break
            assert 5 < number < 100
            assert seen.count(b"\n") == 3  # nobody has read
            drain()
            with trio.fail_after(DEADLINE):  # the pipe has room again: it goes on by itself
                assert await client.reply() == b"250 Ok\r\n"
            await settled()
            lines = drain().splitlines()
            assert sum(json.loads(line)["kind"] == "exchange" for line in lines) == number + 3
            assert store.mails == []

            # The same with nobody reading for long, and a signal: it is heard although the record is stuck.
            for _ in range(100):
                await client.send(b"NOOP " + b"x" * 300 + b"\r\n")
            await until(lambda: any("can't be written" in line["event"] for line in log), "no trouble was told")
            _kill(signal.SIGTERM)
            await until(lambda: any("draining" in line["event"] for line in log), "the signal was not heard")
            while s.code is None:
                drain()
                await trio.sleep(0.01)
            assert s.code == 0
            assert any("can be written again" in line["event"] for line in log)
            client.close()
    drain()
    assert all(json.loads(line) for line in seen.splitlines())
    os.close(reading)


async def test_a_full_disk_holds_mail_back_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """G21: fail closed. Nobody is told anything that is not on record; when there is room it goes on."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        async with service(tmp_path, store := Store(), capsys) as s:
            client = await s.connect()
            await _to_content(client)
            await client.send(b"Subject: x\r\n\r\n")
            await settled()
            resource.setrlimit(resource.RLIMIT_FSIZE, (s.audit.stat().st_size + 50, hard))
            await client.send(b"hi\r\n.\r\n")
            await until(lambda: store.mails, "the server has it not")
            await client.nothing()
            assert b"tx-commit" not in s.audit.read_bytes()
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert (await client.reply()).startswith(b"250 2.0.0 queued")
            assert len(s.records("tx-commit")) == 1
            await client.send(b"QUIT\r\n")
            assert (await client.rest()).startswith(b"221")
            client.close()
            _kill(signal.SIGTERM)
            assert await s.ended() == 0
            assert [r["seq"] for r in s.records()] == list(range(1, len(s.records()) + 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


async def test_a_disk_that_stays_full_can_be_given_up_by_a_second_signal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "audit.jsonl").symlink_to("/dev/full")
    async with service(tmp_path, Store(), capsys, drain=0.1) as s:
        client = await s.connect()
        await client.nothing()
        _kill(signal.SIGTERM)
        await trio.sleep(0.3)
        assert s.code is None
        _kill(signal.SIGTERM)
        assert await s.ended() == 1
        client.close()


async def test_the_sweep_looks_at_everybody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one test that waits for real time: patience of a fraction of a second."""
    async with service(tmp_path, Store(), capsys, client=0.3) as s:
        client = await s.connect()
        await _hello(client)
        with trio.fail_after(3):
            assert (await client.rest()).startswith(b"421 ")
        client.close()


def test_the_service_is_made_of_the_configuration(tmp_path: Path) -> None:
    config = _config(25, tmp_path / "audit", client=7.0)
    made = Service(config, PassAll(), PassAll, os.open("/dev/null", os.O_WRONLY))
    assert made.config.patience_table().client == 7.0
    made.close()


# ------------------------------------------------------------------------------------------------- processes


@asynccontextmanager
async def _stored() -> AsyncIterator[Store]:
    store = Store()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        yield store
        nursery.cancel_scope.cancel()
    store.close()


async def test_sigterm_of_a_process(tmp_path: Path) -> None:
    async with _stored() as store, running(store, tmp_path / "audit") as process:
        client = await process.connect()
        await _to_content(client)
        await client.send(b"x\r\n")
        process.signal(signal.SIGTERM)
        await until(lambda: _refuses(process.port), "it still accepts")
        await client.send(b".\r\n")
        assert (await client.reply()).startswith(b"250")
        assert (await client.rest()).startswith(b"421")
        client.close()
        assert await process.code() == 0
        assert store.mails == [b"x\r\n"]


async def test_a_signal_right_behind_the_listening_line_is_not_missed(tmp_path: Path) -> None:
    async with _stored() as store, running(store, tmp_path / "audit") as process:
        process.signal(signal.SIGTERM)
        assert await process.code() == 0


async def test_signals_are_listened_for_before_anybody_is_told_that_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads that line may send one at once."""
    handlers: list[Any] = []
    monkeypatch.setattr(
        "smtpproxy.net.service.print", lambda *a, **o: handlers.append(signal.getsignal(signal.SIGTERM)), raising=False
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, _config(25, tmp_path / "audit"), PassAll)
        await until(lambda: handlers, "it does not listen")
        nursery.cancel_scope.cancel()
    assert handlers[0] is not signal.SIG_DFL


async def test_a_second_signal_to_a_process(tmp_path: Path) -> None:
    async with _stored() as store, running(store, tmp_path / "audit") as process:
        client = await process.connect()
        await _to_content(client)
        process.signal(signal.SIGINT)
        await until(lambda: _refuses(process.port), "it still accepts")
        process.signal(signal.SIGINT)
        assert await process.code() == 1
        client.close()


async def test_a_process_that_cannot_listen(tmp_path: Path) -> None:
    async with _stored() as store:
        process = Process(store.port, tmp_path / "audit", "--listen", f"127.0.0.1:{store.port}")
        assert await process.code() == 3
        process.close()
        assert f"can't listen on 127.0.0.1:{store.port}: Address already in use" in process.said


KILLS = 30
ANNOUNCED = re.compile(r"pid (\d+)\n.* on \S+:(\d+) \(server ")
_HERD = """
import ctypes, os, sys, trio
from smtpproxy.config import Config
from smtpproxy.net.service import run
from smtpproxy.session.verdicts import PassAll
folder, *ports = sys.argv[1:]
for number, port in enumerate(ports):
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(1, 9)  # it ends with its parent
        os.dup2(os.open(f"{folder}/said-{number}", os.O_WRONLY | os.O_CREAT), 2)
        print("pid", os.getpid(), file=sys.stderr, flush=True)
        listener = {"name": "smtp", "listen": "127.0.0.1:0", "server": f"127.0.0.1:{port}"}
        audit = {"file": f"{folder}/audit-{number}"}
        trio.run(run, Config.model_validate({"listener": [listener], "audit": audit}, by_alias=True), PassAll)
for _ in ports:
    os.wait()
"""


async def test_killed_at_any_point_no_mail_is_cut_short_and_none_is_made_up(tmp_path: Path) -> None:
    """G19, S3, S4: SIGKILL after a random number of octets of a session of three mails.

    One process starts them all, because starting Python takes longer than the rest.
    """
    chance = random.Random(19)
    bodies = [b"".join(b"%d line %d\r\n" % (chance.getrandbits(200), i) for i in range(n)) for n in (3, 900, 9000)]
    whole = b"".join(ENVELOPE + b"DATA\r\n" + body + b".\r\n" for body in bodies)
    points = [0, *range(len(whole) - 4, len(whole) + 1)]
    points += [whole.index(b"\r\n.\r\n") + i for i in range(6)]
    points += [chance.randrange(len(whole)) for _ in range(KILLS - len(points))]
    stores = [Store() for _ in points]
    herd = subprocess.Popen([sys.executable, "-c", _HERD, str(tmp_path), *(str(store.port) for store in stores)])
    try:
        async with trio.open_nursery() as nursery:
            for store in stores:
                nursery.start_soon(store.run)
            for number, (store, point) in enumerate(zip(stores, points, strict=True)):
                said = tmp_path / f"said-{number}"
                with trio.fail_after(20):
                    while not said.exists() or not (found := ANNOUNCED.search(said.read_text())):
                        await trio.sleep(0.01)
                await _killed(int(found[1]), int(found[2]), store, tmp_path / f"audit-{number}", bodies, point)
            nursery.cancel_scope.cancel()
    finally:
        herd.kill()
        herd.wait()
        for store in stores:
            store.close()


async def _killed(pid: int, port: int, store: Store, audit: Path, bodies: list[bytes], point: int) -> None:
    client = End(trio.socket.socket())
    await client.socket.connect(("127.0.0.1", port))
    await _hello(client)
    told = 0
    left = point

    async def send(octets: bytes) -> bool:
        """All of it; or as much of it as is to be sent."""
        nonlocal left
        part = octets[:left]
        left -= len(part)
        await client.send(part)
        return left > 0

    for body in bodies:
        if not await send(ENVELOPE + b"DATA\r\n"):
            break
        for _ in range(3):
            await client.reply()
        if not await send(body) or not await send(b".\r\n"):
            break
        assert (await client.reply()).startswith(b"250 2.0.0 queued")
        told += 1
    os.kill(pid, signal.SIGKILL)
    try:
        rest = await client.rest()
    except ConnectionResetError:
        rest = b""
    client.close()
    told += rest.count(b"250 2.0.0 queued")
    await settled()
    assert store.mails == bodies[: len(store.mails)]  # each of them whole
    assert told <= len(store.mails)  # nothing was made up
    octets = audit.read_bytes()
    lines = [json.loads(line) for line in octets[: octets.rfind(b"\n") + 1].splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    commits = sum(line["kind"] == "tx-commit" for line in lines)
    assert told <= commits <= len(store.mails)  # on record before it was told


async def test_a_clock_that_is_set_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """The record's time of day is today's, however long the proxy runs: a set clock or a machine that slept."""
    descriptor = os.open(tmp_path / "audit", os.O_WRONLY | os.O_CREAT)
    service = Service(Config(), PassAll(), PassAll, descriptor)
    try:
        record = service.audit.session("s")
        monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
        with trio.move_on_after(1.5):
            await service._sweep()
        record(AuditRecord(Kind.NOTE, time.monotonic()))
        assert service.audit.flush()
    finally:
        service.close()
        os.close(descriptor)
    assert json.loads((tmp_path / "audit").read_text())["at"].startswith("2033-05-18T03:33:")
