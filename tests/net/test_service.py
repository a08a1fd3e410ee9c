"""One worker: what it is told, what it prepares, how it ends; a full disk; and one that is killed (G19, G20, G21)."""

import fcntl
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from smtpproxy.audit.appending import open_file
from smtpproxy.config import Config
from smtpproxy.net.origin import open_sockets
from smtpproxy.net.privileges import Identity
from smtpproxy.net.service import READY, Order, Outfit, Service, work
from smtpproxy.net.setup import Setup
from smtpproxy.net.tally import Tallies, Tally
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.verdicts import PassAll
from tests.net.rig import DEADLINE, ENVELOPE, End, Store, settled, until


class Running:
    """A worker in this process, and the supervisor's end of its orders."""

    def __init__(self, config: Config, audit: Path) -> None:
        self.code: int | None = None
        self.audit = audit
        self.tallies = Tallies(1)
        self.orders, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.orders.setblocking(False)
        its.setblocking(False)
        self._its = its
        self._sockets = [open_sockets(entry) for entry in config.listeners]
        self.ports = [int(sock.getsockname()[1]) for group in self._sockets for sock in group]
        self._descriptor = open_file(str(audit))
        self.outfit = Outfit(
            Setup(config, {"": PassAll()}), self._sockets, self._descriptor, self.tallies.open(self.tallies.claim())
        )

    async def run(self) -> None:
        """What the process does."""
        self.code = await work(self.outfit, self._its)
        self._its.close()

    async def said(self) -> bytes:
        """What it says next; b"" is its end."""
        with trio.fail_after(DEADLINE):
            await trio.lowlevel.wait_readable(self.orders)
        return self.orders.recv(4096)

    def tell(self, order: Order) -> None:
        """As its supervisor."""
        self.orders.send(order.value)

    async def accepts(self) -> None:
        """From here on: there is one listener to be seen at the first port."""
        self.tell(Order.GO)
        await settled()

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

    def close(self) -> None:
        """Let go of what a process would have taken with it."""
        self.orders.close()
        self._its.close()
        for sock in (sock for group in self._sockets for sock in group):
            sock.close()
        os.close(self._descriptor)


def _config(port: int, **settings: Any) -> Config:
    listener = {"name": "smtp", "listen": "127.0.0.1:0", "server": f"127.0.0.1:{port}"}
    return Config.model_validate({"listener": [listener], **settings}, by_alias=True)


@asynccontextmanager
async def preparing(config: Config, audit: Path, **outfit: Any) -> AsyncIterator[Running]:
    """A worker that was told nothing yet; signals to this process reach it as soon as it has said something."""
    made = Running(config, audit)
    made.outfit = made.outfit._replace(**outfit)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            yield made
            nursery.cancel_scope.cancel()
    finally:
        made.close()


@asynccontextmanager
async def service(folder: Path, store: Store, **patience: float) -> AsyncIterator[Running]:
    """A worker that accepts."""
    async with (
        trio.open_nursery() as nursery,
        preparing(_config(store.port, patience=patience), folder / "audit.jsonl") as made,
    ):
        nursery.start_soon(store.run)
        assert await made.said() == READY
        await made.accepts()
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


def _sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# ------------------------------------------------------------------------------------------------- ending


@pytest.mark.parametrize("how", ["order", "signal", "lost"])
async def test_an_idle_worker_ends_at_once_with_0(tmp_path: Path, how: str) -> None:
    """By order, by SIGTERM, and when its supervisor is gone."""
    async with service(tmp_path, Store()) as s:
        if how == "order":
            s.tell(Order.STOP)
        elif how == "signal":
            _sigterm()
        else:
            s.orders.close()
        with trio.fail_after(1):
            assert await s.ended() == 0


async def test_idle_sessions_are_told_421(tmp_path: Path) -> None:
    async with service(tmp_path, Store()) as s:
        clients = [await s.connect() for _ in range(3)]
        for client in clients:
            await _hello(client)
        _sigterm()
        for client in clients:
            assert (await client.rest()).startswith(b"421 ")
            client.close()
        assert await s.ended() == 0
        assert len(s.records("link-close")) == 3


async def test_a_mail_in_flight_is_finished_then_421(tmp_path: Path) -> None:
    """G20: no accepted mail is cut; new connections find nobody."""
    async with service(tmp_path, store := Store()) as s:
        client = await s.connect()
        await _to_content(client)
        await client.send(b"Subject: x\r\n")
        _sigterm()
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


async def test_an_envelope_in_flight_is_finished(tmp_path: Path) -> None:
    async with service(tmp_path, store := Store()) as s:
        client = await s.connect()
        await _hello(client)
        await client.send(b"MAIL FROM:<a@x.example>\r\n")
        assert (await client.reply()).startswith(b"250")
        _sigterm()
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


async def test_when_the_drain_time_is_over_the_rest_is_told_421(tmp_path: Path) -> None:
    async with service(tmp_path, store := Store(), drain=0.2) as s:
        sending, waiting = await s.connect(), await s.connect()
        await _to_content(sending)
        await sending.send(b"half a mail")
        store.go = trio.Event()
        await _to_content(waiting)
        await waiting.send(b"x\r\n.\r\n")
        await until(lambda: store.mails, "no mail")
        _sigterm()
        for client in (sending, waiting):
            assert (await client.rest()).startswith(b"421 ")
            client.close()
        assert await s.ended() == 0
        await until(lambda: store.halves, "the server still waits")
        assert store.halves == [b"half a "] or store.halves[0] in b"half a mail"
        assert len(s.records("tx-refused")) == 2
        assert not s.records("tx-commit")


async def test_who_does_not_go_when_told_is_cut_off(tmp_path: Path) -> None:
    async with service(tmp_path, Store(), drain=0.1) as s:
        client = await s.connect()
        await _hello(client)
        _sigterm()
        assert (await client.line()).startswith(b"421 ")
        assert await s.ended() == 0  # though the client has not closed
        client.close()


async def test_sigterm_may_come_again_and_again(tmp_path: Path) -> None:
    """A service manager tells all processes, and the supervisor does, too."""
    async with service(tmp_path, store := Store()) as s:
        client = await s.connect()
        await _to_content(client)
        for _ in range(3):
            _sigterm()
            s.tell(Order.STOP)
            await settled()
        await client.send(b"x\r\n.\r\n")
        assert (await client.reply()).startswith(b"250 2.0.0 queued")
        assert (await client.rest()).startswith(b"421 ")
        client.close()
        assert await s.ended() == 0
        assert len(store.mails) == 1


@pytest.mark.parametrize("before", [(), (Order.STOP,), (Order.DRAIN,), (Order.DRAIN, Order.STOP)])
async def test_the_order_to_end_is_obeyed_at_once_with_1(tmp_path: Path, before: tuple[Order, ...]) -> None:
    async with service(tmp_path, store := Store()) as s:
        client = await s.connect()
        await _to_content(client)
        await client.send(b"half a mail")
        for order in before:
            s.tell(order)
        await settled()
        assert s.code is None
        s.tell(Order.END)
        with trio.fail_after(1):
            assert await s.ended() == 1
        assert await client.ending() in ("end", "reset")
        client.close()
        await until(lambda: store.halves, "the server still waits")
        assert not store.mails
        assert s.records("link-close")


async def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with service(tmp_path, Store()) as s:
        client = await s.connect()
        await _to_content(client)
        s.tell(Order.END)
        assert await s.ended() == 1
        await client.ending()
        client.close()
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------------------------------------- another generation


async def test_told_to_drain_it_accepts_no_more_and_leaves_its_sessions_alone(tmp_path: Path) -> None:
    """A reload: nobody who is there notices, not even between two mails."""
    async with service(tmp_path, store := Store()) as s:
        sending, idle = await s.connect(), await s.connect()
        await _to_content(sending)
        await _hello(idle)
        s.tell(Order.DRAIN)
        await until(lambda: _refuses(s.ports[0]), "it still accepts")
        await idle.nothing()
        await sending.send(b"x\r\n.\r\n")
        assert (await sending.reply()).startswith(b"250 2.0.0 queued")
        for client in (sending, idle):
            await client.send(ENVELOPE + b"DATA\r\n")
            for code in (b"250", b"250", b"354"):
                assert (await client.reply()).startswith(code)
            await client.send(b"y\r\n.\r\n")
            assert (await client.reply()).startswith(b"250 2.0.0 queued")
            assert s.code is None
            await client.send(b"QUIT\r\n")
            assert (await client.rest()).startswith(b"221")
            client.close()
        assert await s.ended() == 0
        assert store.mails == [b"x\r\n", b"y\r\n", b"y\r\n"]


async def test_drained_without_sessions_it_ends_at_once(tmp_path: Path) -> None:
    async with service(tmp_path, Store()) as s:
        s.tell(Order.DRAIN)
        with trio.fail_after(1):
            assert await s.ended() == 0


@pytest.mark.parametrize("order", [Order.DRAIN, Order.STOP])
async def test_a_load_balancer_that_has_not_said_yet_whom_it_brings(tmp_path: Path, order: Order) -> None:
    """Accepted is accepted when another generation takes over; when the proxy stops, no session has begun."""
    store = Store()
    listener = {"name": "a", "listen": "127.0.0.1:0", "server": f"127.0.0.1:{store.port}", "proxy_from": ["127.0.0.1"]}
    async with (
        trio.open_nursery() as nursery,
        preparing(_config(25, listener=[listener]), tmp_path / "audit") as s,
    ):
        nursery.start_soon(store.run)
        await s.accepts()
        balancer = await s.connect()
        await balancer.nothing()
        s.tell(order)
        await until(lambda: _refuses(s.ports[0]), "it still accepts")
        if order is Order.DRAIN:
            await balancer.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1025 25\r\n")
            await _hello(balancer)
            await balancer.send(b"QUIT\r\n")
            assert (await balancer.rest()).startswith(b"221")
        else:
            assert await balancer.ending() == "end"
        balancer.close()
        assert await s.ended() == 0
        nursery.cancel_scope.cancel()
    store.close()


async def test_what_it_is_told_while_it_ends_changes_nothing(tmp_path: Path) -> None:
    """The supervisor can't know that it has nobody left."""
    for order in (Order.STOP, Order.END, Order.GO, Order.DRAIN):
        async with service(tmp_path, Store()) as s:
            for told in (Order.DRAIN, order, order):
                s.tell(told)
            assert await s.ended() in ((0, 1) if order is Order.END else (0,))


async def test_a_drain_is_bounded_by_a_later_stop(tmp_path: Path) -> None:
    async with service(tmp_path, Store()) as s:
        client = await s.connect()
        await _hello(client)
        s.tell(Order.DRAIN)
        await settled()
        s.tell(Order.STOP)
        assert (await client.rest()).startswith(b"421 ")
        client.close()
        assert await s.ended() == 0


# -------------------------------------------------------------------------------------------------- preparing


async def test_nobody_is_accepted_before_it_is_told_to_go(tmp_path: Path) -> None:
    store = Store()
    async with trio.open_nursery() as nursery, preparing(_config(store.port), tmp_path / "audit") as s:
        nursery.start_soon(store.run)
        assert await s.said() == READY
        client = await s.connect()  # the queue is the socket's
        await client.nothing()
        assert store.sessions == 0
        s.tell(Order.GO)
        await _hello(client)
        client.close()
        nursery.cancel_scope.cancel()
    store.close()


@pytest.mark.parametrize("order", [Order.STOP, Order.END, Order.DRAIN])
async def test_told_to_end_before_it_is_told_to_go(tmp_path: Path, order: Order) -> None:
    async with preparing(_config(25), tmp_path / "audit") as s:
        assert await s.said() == READY
        s.tell(order)
        s.tell(Order.GO)  # too late
        assert await s.ended() == (1 if order is Order.END else 0)


async def test_told_to_end_while_it_prepares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that does not answer keeps nobody from stopping it."""
    asked = trio.Event()

    async def look_up(*args: object, **options: object) -> list[Any]:
        asked.set()
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr("trio.socket.getaddrinfo", look_up)
    config = _config(25, listener=[{"name": "a", "listen": "127.0.0.1:0", "server": "mx.example"}])
    async with preparing(config, tmp_path / "audit") as s:
        with trio.fail_after(DEADLINE):
            await asked.wait()
        s.tell(Order.STOP)
        assert await s.ended() == 0
        assert s.orders.recv(100) == b""  # never ready


async def test_what_can_not_be_had_is_said_with_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "roots.pem").write_text("none")
    listener = {"name": "a", "listen": "127.0.0.1:0", "server": "mx.example"}
    config = _config(25, listener=[{**listener, "tls": {"roots": str(tmp_path / "roots.pem")}}])
    async with preparing(config, tmp_path / "audit") as s:
        said = await s.said()
        assert said.startswith(b"FAILED 2 listener a: ")
        assert b"roots.pem" in said
        assert await s.ended() == 2


async def test_who_it_can_not_become_is_said_with_its_exit_code(tmp_path: Path) -> None:
    """It has threads here, for one thing; in a process of its own it has none yet (test_workers.py)."""
    async with preparing(_config(25), tmp_path / "audit", identity=Identity(os.getuid(), os.getgid(), ())) as s:
        await trio.to_thread.run_sync(time.sleep, 0)
        assert (await s.said()).startswith(b"FAILED 2 ")
        assert await s.ended() == 2


@pytest.mark.parametrize("quiet", [False, True])
async def test_one_worker_tells_of_tls_for_all(tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: bool) -> None:
    async with preparing(_config(25), tmp_path / "audit", quiet=quiet) as s:
        assert await s.said() == READY
        structlog.get_logger().info("from here on it speaks")
        s.tell(Order.STOP)
        assert await s.ended() == 0
    said = capsys.readouterr().out
    assert ("shows=" in said) is not quiet
    assert "from here on it speaks" in said


async def test_two_listeners_and_two_families(tmp_path: Path) -> None:
    """Each has its own server, and its own name on the record."""
    stores = [Store(), Store("::1")]
    listeners = [
        {"name": "four", "listen": "127.0.0.1:0", "server": f"127.0.0.1:{stores[0].port}"},
        {"name": "six", "listen": "[::1]:0", "server": f"[::1]:{stores[1].port}"},
    ]
    async with (
        trio.open_nursery() as nursery,
        preparing(_config(25, listener=listeners), tmp_path / "audit") as s,
    ):
        for store in stores:
            nursery.start_soon(store.run)
        await s.accepts()
        for host, port, family in zip(("127.0.0.1", "::1"), s.ports, (socket.AF_INET, socket.AF_INET6), strict=True):
            client = End(trio.socket.socket(family))
            await client.socket.connect((host, port))
            await _hello(client)
            client.close()
        await until(lambda: all(store.sessions == 1 for store in stores), "not both")
        await until(lambda: len(s.records("link-close")) == 2, "not both ended")
        assert {r["listener"] for r in s.records("link-connect")} == {"four", "six"}
        nursery.cancel_scope.cancel()
    for store in stores:
        store.close()


# ------------------------------------------------------------------------------------------------- the record


async def test_nothing_is_told_before_it_is_on_record(tmp_path: Path) -> None:
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
        async with service(tmp_path, store := Store()) as s:
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
            _sigterm()
            await until(lambda: _refuses(s.ports[0]), "the signal was not heard")
            while s.code is None:
                drain()
                await trio.sleep(0.01)
            assert s.code == 0
            assert any("can be written again" in line["event"] for line in log)
            client.close()
    drain()
    assert all(json.loads(line) for line in seen.splitlines())
    os.close(reading)


async def test_a_full_disk_holds_mail_back_and_loses_nothing(tmp_path: Path) -> None:
    """G21: fail closed. Nobody is told anything that is not on record; when there is room it goes on."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        async with service(tmp_path, store := Store()) as s:
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
            _sigterm()
            assert await s.ended() == 0
            assert [r["seq"] for r in s.records()] == list(range(1, len(s.records()) + 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


async def test_a_disk_that_stays_full_is_given_up_by_the_order_to_end(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").symlink_to("/dev/full")
    async with service(tmp_path, Store(), drain=0.1) as s:
        client = await s.connect()
        await client.nothing()
        _sigterm()
        await trio.sleep(0.3)
        assert s.code is None
        s.tell(Order.END)
        assert await s.ended() == 1
        client.close()


async def test_the_sweep_looks_at_everybody(tmp_path: Path) -> None:
    """The one test that waits for real time: patience of a fraction of a second."""
    async with service(tmp_path, Store(), client=0.3) as s:
        client = await s.connect()
        await _hello(client)
        with trio.fail_after(3):
            assert (await client.rest()).startswith(b"421 ")
        client.close()


async def test_it_gives_signs_of_life_and_counts_its_sessions(tmp_path: Path) -> None:
    """In its region of what the workers share, where the supervisor sees both."""
    async with service(tmp_path, Store()) as s:
        assert 0 < s.tallies.beats()[0] <= time.monotonic()
        client = await s.connect()
        await _hello(client)
        assert s.tallies.sessions() == [1]
        client.close()
        await until(lambda: s.tallies.sessions() == [0], "it still counts it")


def test_the_service_is_made_of_the_configuration(tmp_path: Path) -> None:
    config = _config(25, patience={"client": 7.0})
    descriptor = os.open(tmp_path / "audit", os.O_WRONLY | os.O_CREAT)
    made = Service(Outfit(Setup(config, {"": PassAll()}), [], descriptor, Tally.alone()))
    assert made.config.patience_table().client == 7.0
    made.close()
    os.close(descriptor)


# ------------------------------------------------------------------------------------------------------- killed


KILLS = 30
_HERD = """
import ctypes, os, socket, sys, trio
from smtpproxy.audit.appending import open_file
from smtpproxy.config import Config
from smtpproxy.net.origin import open_sockets
from smtpproxy.net.service import Order, Outfit, work
from smtpproxy.net.setup import Setup
from smtpproxy.net.tally import Tally
from smtpproxy.session.verdicts import PassAll
folder, *ports = sys.argv[1:]
for number, port in enumerate(ports):
    listener = {"name": "smtp", "listen": "127.0.0.1:0", "server": f"127.0.0.1:{port}"}
    config = Config.model_validate({"listener": [listener]}, by_alias=True)
    sockets = [open_sockets(config.listeners[0])]
    if (pid := os.fork()) == 0:
        ctypes.CDLL(None).prctl(1, 9)  # it ends with its parent
        descriptor = open_file(f"{folder}/audit-{number}")
        os.dup2(2, 1)
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.send(Order.GO.value)
        trio.run(work, Outfit(Setup(config, {"": PassAll()}), sockets, descriptor, Tally.alone(), quiet=True), its)
        os._exit(0)
    print(pid, sockets[0][0].getsockname()[1], flush=True)
    sockets[0][0].close()
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
    herd = subprocess.Popen(
        [sys.executable, "-c", _HERD, str(tmp_path), *(str(store.port) for store in stores)], stdout=subprocess.PIPE
    )
    assert herd.stdout is not None
    try:
        async with trio.open_nursery() as nursery:
            for store in stores:
                nursery.start_soon(store.run)
            for number, (store, point) in enumerate(zip(stores, points, strict=True)):
                with trio.fail_after(20):
                    pid, port = (await trio.to_thread.run_sync(herd.stdout.readline)).split()
                await _killed(int(pid), int(port), store, tmp_path / f"audit-{number}", bodies, point)
            nursery.cancel_scope.cancel()
    finally:
        herd.kill()
        herd.wait()
        herd.stdout.close()
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
    service = Service(Outfit(Setup(Config(), {"": PassAll()}), [], descriptor, Tally.alone()))
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


# ----------------------------------------------------------------------------------------------------- the quarantine


async def test_mails_are_kept_where_it_is_configured(tmp_path: Path) -> None:
    """It is made before the worker is ready, and looked after from then on."""
    (tmp_path / "q").mkdir()
    left = tmp_path / "q" / "new" / "20251123T101500Z-0123456789ab.eml"
    left.parent.mkdir()
    left.write_bytes(b"left by a crash")
    config = _config(1, quarantine={"directory": str(tmp_path / "q"), "mails": 7})
    async with preparing(config, tmp_path / "audit.jsonl") as made:
        assert await made.said() == READY
        assert {path.name for path in (tmp_path / "q").iterdir()} == {"tmp", "new", "released", "lock"}
        await made.accepts()
        await until(lambda: not left.exists(), "nobody looks after it")
        made.tell(Order.STOP)
        assert await made.ended() == 0


async def test_without_a_place_for_mails_it_does_not_start(tmp_path: Path) -> None:
    config = _config(1, quarantine={"directory": str(tmp_path / "no" / "where")})
    async with preparing(config, tmp_path / "audit.jsonl") as made:
        why = f"FAILED 2 the quarantine {tmp_path}/no/where can't be opened: No such file or directory"
        assert await made.said() == why.encode()
        assert await made.ended() == 2
