"""Listeners: bounds, names, and that nothing is lost between accepting and the end."""

import gc
import os
import resource
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from smtpproxy.net.listener import Sessions
from smtpproxy.net.origin import outgoing_key
from smtpproxy.net.tally import Tally
from smtpproxy.session.session import Session
from smtpproxy.session.verdicts import PassAll
from tests.net.rig import ENVELOPE, End, Rig, Store, dead_address, rig, settled, until


def _descriptors() -> int:
    gc.collect()  # what other tests left behind goes now, not meanwhile
    return len(os.listdir("/proc/self/fd"))


# ------------------------------------------------------------------------------------------------- bounds


async def test_connections_in_all_are_bounded(tmp_path: Path) -> None:
    async with rig(tmp_path, connections=2) as r:
        (first, server), _ = await r.both(), await r.both()
        third = await r.connect()
        assert await third.rest() == b"421 Too many connections, try again later\r\n"
        record = await r.record("link-connect", client=third.name)
        assert record["refused"] == "2 connections in all"
        first.close()
        await server.send(b"220 mx.example\r\n")
        await r.over(1)
        await r.both()  # there is room again


async def test_connections_of_one_client_are_bounded(tmp_path: Path) -> None:
    async with rig(tmp_path, per_client=1) as r:
        await r.both()
        second = await r.connect()
        assert (await second.rest()).startswith(b"421 ")
        assert (await r.record("link-connect", client=second.name))["refused"] == "1 connections of one client"
        other = trio.socket.socket()
        await other.bind(("127.0.0.2", 0))
        await other.connect(r.address)
        await r.server.accept()
        other.close()


def test_what_is_counted_is_forgotten() -> None:
    sessions = Sessions(connections=10, per_client=2, tally=Tally.alone())
    calls: list[int] = []
    sessions.changed = lambda: calls.append(len(sessions.relays))
    relays: list[Any] = [object(), object()]
    for relay in relays:
        sessions.add(relay, "192.0.2.1")
    assert sessions.full("192.0.2.1")
    assert not sessions.full("192.0.2.2")
    for relay in relays:
        sessions.remove(relay, "192.0.2.1")
    assert not sessions.full("192.0.2.1")
    assert sessions.none
    assert sessions.tally.total() == 0
    assert calls == [1, 0]


async def test_a_refusal_is_told_only_when_it_is_on_record(tmp_path: Path) -> None:
    """S8 holds for whom we refuse, too."""
    async with rig(tmp_path, connections=1) as r:
        await r.both()
        flush, r.audit.flush = r.audit.flush, lambda: False  # type: ignore[method-assign]
        refused = await r.connect()
        await refused.nothing()
        assert not r.records("link-connect", client=refused.name)
        r.audit.flush = flush  # type: ignore[method-assign]
        assert (await refused.rest()).startswith(b"421 ")
        assert r.records("link-connect", client=refused.name)


async def test_without_descriptors_nothing_is_accepted_and_nothing_spins(tmp_path: Path) -> None:
    """A listening socket stays readable when accept fails: it must not be asked again and again."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        waiting = End(trio.socket.socket())
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with structlog.testing.capture_logs() as log:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                await waiting.socket.connect(r.address)
                before = time.process_time()
                await trio.sleep(0.1)
                spent = time.process_time() - before
                r.wait(1)
                await settled()
                await client.ask(b"NOOP\r\n", server, b"250 Ok\r\n")  # who is there is served
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert spent < 0.05
        assert [line["why"] for line in log] == ["Too many open files"] * 2  # once at each look
        r.wait(1)
        other = await r.server.accept()
        await waiting.hello(other)
        waiting.close()


async def test_a_server_socket_that_cannot_be_had_is_421(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client was accepted with the last descriptor."""
    async with rig(tmp_path) as r:
        client = End(trio.socket.socket())
        made = socket.socket

        def none_left(*args: Any, **options: Any) -> Any:
            if options.get("fileno") is None and len(args) < 4:
                raise OSError(24, "Too many open files")
            return made(*args, **options)

        monkeypatch.setattr("smtpproxy.net.relay.socket.socket", none_left)
        await client.socket.connect(r.address)
        told = await client.rest()
        monkeypatch.undo()
        assert told.startswith(b"421 ")
        assert "Too many open files" in (await r.record("note", anomaly="server-unreachable"))["why"]
        client.close()


# ------------------------------------------------------------------------------------------------- many


async def test_two_hundred_sessions_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        pairs = [await r.both() for _ in range(200)]
        assert len(r.sessions.relays) == 200

        async def talk(number: int, client: End, server: End) -> None:
            await client.data(server)
            body = b"%d\r\n" % number * 200
            await client.send(body + b".\r\n")
            await server.expect(body + b".\r\n")
            await server.send(b"250 queued as %d\r\n" % number)
            await client.expect(b"250 queued as %d\r\n" % number)
            await client.ask(b"QUIT\r\n", server, b"221 Bye\r\n")
            assert await client.rest() == b""

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for number, (client, server) in enumerate(pairs):
                    nursery.start_soon(talk, number, client, server)
        await r.over()
        assert len(r.records("tx-commit")) == 200
        assert len({record["session"] for record in r.records()}) == 200


async def test_descriptors_do_not_leak(tmp_path: Path) -> None:
    """500 sessions, each ended in another way."""
    async with rig(tmp_path) as r:
        await _some_sessions(r, 10)
        before = _descriptors()
        await _some_sessions(r, 500)
        await settled()
        assert _descriptors() == before
        assert not r.reactor._handlers.keys() - {r.reactor._wake, r.listener._socket.fileno()}
        assert len(r.records("link-close")) == len(r.records("link-connect")) == 510


async def _some_sessions(r: Rig, count: int) -> None:
    for number in range(count):
        client, server = await r.both()
        way = number % 8
        if way == 0:
            client.reset()
        elif way == 1:
            server.reset()
        elif way == 2:
            await client.hello(server)
            server.close()
        elif way == 3:
            await client.hello(server)
            await client.ask(b"QUIT\r\n", server, b"221 Bye\r\n")
        elif way == 4:
            await client.data(server)
            await client.send(b"half a mail")
            client.close()
        elif way == 5:
            await client.hello(server)
            r.relay.stop()
            r.reactor.wake()
        elif way == 6:
            await client.hello(server)
            r.wait(301)
        else:
            r.relay.abandon()
        if way in (1, 2, 5, 6):
            await client.ending()
        client.close()
        server.close()
        await until(lambda: not r.sessions.relays, f"way {way} does not end")
    r.clients.clear()
    r.server.ends.clear()


# ------------------------------------------------------------------------------------------------- our own bugs


async def test_a_fault_while_accepting_ends_that_connection_only(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        judge = r.judge

        class NoJudge:
            def __getattr__(self, name: str) -> Any:
                raise RuntimeError("no judge")

        r.judge = NoJudge()
        with structlog.testing.capture_logs() as log:
            unlucky = await r.connect()
            assert await unlucky.ending() in ("end", "reset")
        assert [line["log_level"] for line in log] == ["error"]
        r.judge = judge
        await client.ask(b"NOOP\r\n", server, b"250 Ok\r\n")
        other, others = await r.both()
        await other.hello(others)
        assert len(r.sessions.relays) == 2


async def test_a_fault_while_the_server_is_connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(tmp_path, faults=1) as r:
        client, server = await r.both()
        await client.hello(server)

        def fail(*args: Any) -> Any:
            raise RuntimeError("a bug of ours")

        monkeypatch.setattr(Session, "connect_failed", fail)
        r.destination.addresses = [dead_address()]
        unlucky = await r.connect()
        assert await unlucky.rest() == b"421 Internal error, try again later\r\n"
        unlucky.close()
        await r.over(1)
        await client.ask(b"NOOP\r\n", server, b"250 Ok\r\n")


async def test_a_session_is_judged_by_the_rules_of_its_beginning(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        first = r.judge
        client, server = await r.both()
        r.judge = PassAll()
        await client.hello(server)
        assert r.session.judge is first
        await r.both()
        assert sum(relay.session.judge is r.judge for relay in r.sessions.relays) == 1


# ------------------------------------------------------------------------------------------------- ends


async def test_a_closed_listener_accepts_no_more(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        r.listener.close()
        with pytest.raises(ConnectionRefusedError):
            await r.connect()
        await client.hello(server)
        r.listener._socket = socket.socket()  # for the rig to close


async def test_a_store_behind_it_all(tmp_path: Path) -> None:
    """The rig's own server, which other tests rely on."""
    store = Store()
    async with rig(tmp_path, server=store.server) as r, trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        client = await r.connect()
        await client.reply()
        await client.send(b"EHLO me.example\r\n")
        await client.reply()
        await client.send(ENVELOPE + b"DATA\r\n")
        for _ in range(3):
            await client.reply()
        await client.send(b"..x\r\n\r\n.\r\nQUIT\r\n")
        assert await client.rest() == b"250 2.0.0 queued as 1\r\n221 Bye\r\n"
        assert store.mails == [b"..x\r\n\r\n"]
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------------------------------ refused, and how it is told


async def test_who_nobody_led_here_is_refused(tmp_path: Path) -> None:
    """On a listener of redirect, without NAT: there is nowhere it could have been going."""
    async with rig(tmp_path, settings={"mode": "redirect", "server": None}) as r:
        client = await r.connect()
        assert (await client.rest()).startswith(b"421 ")
        assert (await r.record("link-connect"))["refused"].startswith(("nobody led it here", "its destination is"))
        assert r.sessions.none


async def test_a_refusal_is_never_said_in_clear_where_tls_is_implicit(tmp_path: Path) -> None:
    async with rig(tmp_path, tls={"client": "implicit", "server": "never"}, connections=1) as r:
        await r.both()
        client = await r.connect()
        assert await client.rest() == b""
        assert (await r.record("link-connect", client=client.name))["refused"]


async def test_a_refusal_is_not_said_to_who_passes_unseen(tmp_path: Path) -> None:
    """It may not speak SMTP at all."""
    block = {"name": "own", "clients": ["127.0.0.0/8"], "unseen": True}
    async with rig(tmp_path, matches=[block], connections=1) as r:
        await r.both()
        client = await r.connect()
        assert await client.rest() == b""
        assert (await r.record("link-connect", client=client.name))["refused"]


async def test_a_session_s_mark_ends_with_it(tmp_path: Path) -> None:
    """Else a client that came from that port later would be taken for the proxy."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        host, port = server.socket.getpeername()[:2]
        key = outgoing_key((host, port), (r.server.host, r.server.port))
        assert r.sessions.tally.ours(key)
        client.close()
        server.close()
        await r.over()
        assert not r.sessions.tally.ours(key)
