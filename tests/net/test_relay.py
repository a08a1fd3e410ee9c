"""The relay: one session over two links, with everything that can happen to a link."""

import os
import resource
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import structlog
import trio

from smtpproxy.net.relay import KEEP_ALIVE, LINGER
from smtpproxy.session.limits import PATIENCE
from smtpproxy.session.session import Session
from smtpproxy.session.state import Transaction
from smtpproxy.session.verdicts import PASS, Action, Depth, PassAll, Verdict
from smtpproxy.smtp.commands import Command
from smtpproxy.smtp.replies import own
from tests.net.rig import EHLO_REPLY, ENVELOPE, End, Rig, Server, dead_address, rig, settled, until

CLOSED = "link-close"


class Whole(PassAll):
    """Everything is held back to be looked at, and passed."""

    def depth(self, transaction: Transaction, session: Session) -> Depth:
        """All of it."""
        return Depth.WHOLE

    def content(self, file: Any, session: Session) -> Verdict:  # type: ignore[override]
        """Looked at and passed."""
        file.read()
        return PASS


# ------------------------------------------------------------------------------------------------- conversations


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_whole_conversation(tmp_path: Path, host: str) -> None:
    async with rig(tmp_path, host=host) as r:
        client, server = await r.both()
        await client.data(server)
        await client.ask(b"Subject: x\r\n\r\n..dot\r\n.\r\n", server, b"250 queued as 1\r\n")
        await client.ask(b"QUIT\r\n", server, b"221 Bye\r\n")
        assert await client.rest() == b""
        assert await server.rest() == b""
        await r.over()
        commit = await r.record("tx-commit")
        assert commit["reply"] == "250 queued as 1"
        farewell = await r.record(CLOSED)
        assert farewell["octets_from_client"] == farewell["octets_to_server"]
        assert farewell["octets_from_server"] == farewell["octets_to_client"]
        assert farewell["server"] == server.name
        assert r.records("link-connect")[0]["client"] == client.name


async def test_a_command_and_a_reply_are_never_sent_in_two(tmp_path: Path) -> None:
    """One write a group: what came in one read goes out in one send, and can be read by one read."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        group = ENVELOPE + b"DATA\r\n"
        await client.send(group)
        assert await server.socket.recv(65_536) == group
        await server.send(b"250 1\r\n250 2\r\n354 3\r\n")
        assert await client.socket.recv(65_536) == b"250 1\r\n250 2\r\n354 3\r\n"


async def test_octet_by_octet(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        for sock in (client.socket, server.socket):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        async def drip(end: End, octets: bytes) -> None:
            for octet in octets:
                await end.send(bytes([octet]))
                await trio.sleep(0)

        await drip(server, b"220-mx\r\n220 example\r\n")
        await client.expect(b"220-mx\r\n220 example\r\n")
        await drip(client, b"EHLO me.example\r\n")
        await server.expect(b"EHLO me.example\r\n")
        await drip(server, EHLO_REPLY)
        await client.expect(EHLO_REPLY)
        await client.mail(server)
        await drip(client, b"DATA\r\n")
        await server.expect(b"DATA\r\n")
        await drip(server, b"354 Go\r\n")
        await client.expect(b"354 Go\r\n")
        await drip(client, b"a\r\n..\r\n.x\r\n\r\n.\r\n")
        await server.expect(b"a\r\n..\r\n.x\r\n\r\n.\r\n")
        await drip(server, b"250 Ok\r\n")
        await client.expect(b"250 Ok\r\n")


async def test_tiny_buffers_on_every_side(tmp_path: Path) -> None:
    """Partial sends in both directions: nothing lost, nothing out of order."""
    async with rig(tmp_path, server=Server(receive=1)) as r:
        client, server = await r.both(send=1, receive=1)
        relay = r.relay
        assert relay.server is not None
        for link in (relay.client, relay.server):
            link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        await client.data(server)
        body = b"".join(b"%06d %s\r\n" % (i, b"x" * 60) for i in range(4000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, body + b".\r\n")
            await server.expect(body + b".\r\n")
        await server.send(b"250-Ok\r\n" * 900 + b"250 Ok\r\n")
        assert await client.reply() == b"250-Ok\r\n" * 900 + b"250 Ok\r\n"


async def test_ten_megabytes_in_small_reads_are_equal(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.data(server)
        body = bytearray()
        for i in range(10 * 1024 * 1024 // 64):
            body += b"%010d" % i + bytes(range(128, 180)) + b"\r\n"
        got = bytearray()

        async def read() -> None:
            while len(got) < len(body) + 3:
                got.extend(await server.socket.recv(4096))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                view = memoryview(body + b".\r\n")
                while view:
                    view = view[await client.socket.send(view) :]
        assert got == body + b".\r\n"
        await server.send(b"250 Ok\r\n")
        await client.expect(b"250 Ok\r\n")
        assert (await r.record("tx-commit"))["octets"] == len(body)


@pytest.mark.parametrize("size", [0, 10, 1_000_000, 3_000_000])
async def test_content_held_back_goes_through_the_spool_unchanged(tmp_path: Path, size: int) -> None:
    spools: list[Any] = []

    def spool() -> Any:
        spools.append(tempfile.SpooledTemporaryFile(max_size=1_048_576))  # noqa: SIM115 - the session closes it
        return spools[-1]

    body = (b".." + b"x" * 96 + b"\r\n") * (size // 100) if size else b""
    async with rig(tmp_path, judge=Whole(), spool=spool) as r:
        client, server = await r.both()
        await client.hello(server)
        await client.mail(server)
        await client.send(b"DATA\r\n")
        assert (await client.reply()).startswith(b"354")
        await server.nothing()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, body + b".\r\n")
            await server.expect(b"DATA\r\n")
            if size > 1_048_576:
                assert spools[0]._rolled
        await server.nothing()
        await server.send(b"354 Go\r\n")
        await server.expect(body + b".\r\n")
        await server.send(b"250 Ok\r\n")
        await client.expect(b"250 Ok\r\n")
        assert all(file.closed for file in spools)


@pytest.mark.parametrize("how", ["reset", "close", "stop", "abandon", "fault"])
async def test_a_spool_does_not_outlive_its_session(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spools: list[Any] = []

    def spool() -> Any:
        spools.append(tempfile.SpooledTemporaryFile(max_size=1000))  # noqa: SIM115 - the listener closes it
        return spools[-1]

    async with rig(tmp_path, judge=Whole(), spool=spool, faults=how == "fault") as r:
        client, server = await r.both()
        await client.hello(server)
        await client.mail(server)
        await client.send(b"DATA\r\n")
        await client.reply()
        await client.send(b"x" * 98 + b"\r\n" + b"y" * 50_000)
        await until(lambda: spools and spools[0].tell() > 90, "not held")
        if how in ("reset", "close"):
            getattr(client, how)()
        elif how == "fault":
            monkeypatch.delattr(r.session, "incoming")
            await client.send(b"z" * 1000)
        else:
            getattr(r.relay, how)()
            r.reactor.wake()
        if how in ("stop", "fault"):
            await client.line()
            client.close()
        await r.over()
        assert spools[0].closed


# ------------------------------------------------------------------------------------------------- back-pressure


async def test_a_server_that_stops_reading_holds_the_client_back(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.data(server)
        line = b"x" * 998 + b"\r\n"
        sent = 0
        while True:
            with trio.move_on_after(0.25) as scope:
                sent += await client.socket.send(line * 64)
            if scope.cancelled_caught:
                break
            assert len(r.session.to_server) <= r.session.limits.unsent + 300_000
            assert sent < 200_000_000
        assert not r.session.wants(r.session.client.side)
        turns = r.relay.client.received
        await settled()
        assert r.relay.client.received == turns  # not read any more

        async with trio.open_nursery() as nursery:  # and it goes on where it was
            rest = b"\r\n" if sent % 1000 else b""
            rest = line[sent % 1000 :] + b".\r\n" if sent % 1000 else b".\r\n"
            nursery.start_soon(client.send, rest)
            got = 0
            while got < sent + len(rest):
                with trio.fail_after(5):
                    got += len(await server.socket.recv(1_000_000))
        await server.send(b"250 Ok\r\n")
        await client.expect(b"250 Ok\r\n")


async def test_a_client_that_does_not_read_its_replies_is_not_read_either(tmp_path: Path) -> None:
    """F44: pipelined NOOPs whose replies nobody reads. Memory stays flat, and all come when it reads."""
    async with rig(tmp_path) as r:
        client, server = await r.both(receive=4096)
        await client.hello(server)
        count = 300_000 if os.environ.get("SMTPPROXY_SOAK") else 50_000
        told = b"250 2.0.0 " + b"x" * 300 + b"\r\n"
        peak = 0

        async def flood() -> None:
            view = memoryview(b"NOOP\r\n" * count)
            while view:
                view = view[await client.socket.send(view) :]

        async def answer() -> None:
            left = b""
            while True:
                data = await server.socket.recv(65_536)
                if not data:
                    return
                octets = left + data
                number = octets.count(b"\n")
                left = octets[octets.rfind(b"\n") + 1 :]
                view = memoryview(told * number)
                while view:  # without a deadline: it is held back too
                    view = view[await server.socket.send(view) :]

        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                nursery.start_soon(answer)
                quiet = 0
                before = -1
                while quiet < 5:
                    await trio.sleep(0.02)
                    session = r.session
                    peak = max(peak, len(session.to_client), len(session.to_server))
                    quiet = quiet + 1 if r.relay.client.received == before else 0
                    before = r.relay.client.received
                assert before < count * 6  # it was held back
                assert peak <= r.session.limits.unsent + 65_536
                assert len(r.session.ledger) <= r.session.limits.pipelined
                got = 0
                while got < count * len(told):
                    data = await client.socket.recv(1_000_000)
                    assert data
                    got += len(data)
                    session = r.session
                    peak = max(peak, len(session.to_client), len(session.to_server))
                nursery.cancel_scope.cancel()
        assert got == count * len(told)
        assert peak <= r.session.limits.unsent + 65_536
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss < 60_000  # KiB


async def test_a_client_that_never_takes_its_replies_is_given_up(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both(receive=4096)
        await client.hello(server)
        r.relay.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await client.send(b"NOOP\r\n" * 900)
        await server.expect(b"NOOP\r\n" * 900)
        await server.send(b"250 " + b"x" * 1000 + b"\r\n")
        for _ in range(899):
            await server.send(b"250 " + b"x" * 1000 + b"\r\n")
        await until(lambda: r.session.to_client and r.relay.client.blocked, "never blocked")
        moved = -1.0
        while moved != r.relay.client.moved_at:  # the kernel still makes room for a moment
            moved = r.relay.client.moved_at
            await trio.sleep(0.1)
        r.wait(PATIENCE.content - 5)
        await settled()
        assert not r.session.closed
        r.wait(10)
        await settled()
        r.wait(LINGER + 1)
        await r.over()
        assert r.records("violation", anomaly="idle", side="client")


async def test_a_server_that_takes_nothing_is_given_up(tmp_path: Path) -> None:
    """G15: it is the server's doing, and the client hears 451 or 421, never a 250."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.data(server)
        await _fill(r, client)
        r.wait(PATIENCE.content - 5)
        assert not r.records("violation")
        r.wait(10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"\r\n.\r\n")
            assert (await client.reply())[:1] == b"4"
        assert await server.ending() == "reset"
        assert r.records("violation", anomaly="idle", side="server")
        assert not r.records("tx-commit")


async def _fill(r: Rig, client: End) -> None:
    """Send content until nobody takes any more."""
    while True:
        with trio.move_on_after(0.2) as scope:
            await client.socket.send(b"x" * 998 + b"\r\n" + (b"y" * 998 + b"\r\n") * 64)
        if scope.cancelled_caught:
            return


async def test_a_server_that_takes_content_too_slowly_is_blamed_for_it(tmp_path: Path) -> None:
    """Not the client, which is held back and could not send any faster."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.data(server)
        await _fill(r, client)
        relay = r.relay
        assert relay.server is not None
        for _ in range(400):
            relay.server.moved_at = r.reactor.now  # it took an octet
            r.wait(170)
            await settled()
            if r.records("violation"):
                break
        assert [(v["side"], v["anomaly"]) for v in r.records("violation")] == [("server", "too-slow")]


# ------------------------------------------------------------------------------------------------- clients that go

Walk = Callable[[End, End], Awaitable[None]]


async def _connected(client: End, server: End) -> None:
    await settled()


async def _greeted(client: End, server: End) -> None:
    await server.send(b"220 mx.example\r\n")
    await client.reply()


async def _helloed(client: End, server: End) -> None:
    await client.hello(server)


async def _mail_asked(client: End, server: End) -> None:
    await client.hello(server)
    await client.send(b"MAIL FROM:<a@x.example>\r\n")
    await server.expect(b"MAIL FROM:<a@x.example>\r\n")


async def _enveloped(client: End, server: End) -> None:
    await client.hello(server)
    await client.mail(server)


async def _data_asked(client: End, server: End) -> None:
    await client.hello(server)
    await client.mail(server)
    await client.send(b"DATA\r\n")
    await server.expect(b"DATA\r\n")


async def _going_ahead(client: End, server: End) -> None:
    await client.data(server)


async def _in_content(client: End, server: End) -> None:
    await client.data(server)
    await client.send(b"Subject: x\r\n\r\nhalf a li")
    await server.expect(b"Subject: x\r\n\r\nhalf ")


async def _almost_ended(client: End, server: End) -> None:
    await client.data(server)
    await client.send(b"x\r\n.\r")
    await server.expect(b"x")


async def _ended(client: End, server: End) -> None:
    await client.data(server)
    await client.send(b"x\r\n.\r\n")
    await server.expect(b"x\r\n.\r\n")


async def _quit_asked(client: End, server: End) -> None:
    await client.hello(server)
    await client.send(b"QUIT\r\n")
    await server.expect(b"QUIT\r\n")


POINTS: dict[str, Walk] = {
    "connected": _connected,
    "greeted": _greeted,
    "helloed": _helloed,
    "mail asked": _mail_asked,
    "enveloped": _enveloped,
    "data asked": _data_asked,
    "going ahead": _going_ahead,
    "in content": _in_content,
    "almost ended": _almost_ended,
    "ended": _ended,
    "quit asked": _quit_asked,
}
points = pytest.mark.parametrize("walk", POINTS.values(), ids=POINTS)


@points
async def test_a_client_that_resets_ends_both_links_and_no_mail_completes(tmp_path: Path, walk: Walk) -> None:
    """G13, F52: at once, at every point but one: what was sent whole is awaited."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await walk(client, server)
        client.reset()
        if walk is _ended:
            await settled()
            assert len(r.sessions.relays) == 1
            await server.send(b"250 queued\r\n")
            assert await server.ending() == "end"
            commit = await r.record("tx-commit")
            assert commit["reply"] == "250 queued"
            end = await r.record("exchange", verb="END")
            assert end["anomalies"] == ["unacknowledged"]
        else:
            try:
                left = await server.rest()
            except ConnectionResetError:
                left = b""
            assert b"\n.\r\n" not in left
            assert not r.records("tx-commit")
        await r.over()
        assert r.records(CLOSED)


@points
async def test_a_client_that_closes_ends_both_links_and_no_mail_completes(tmp_path: Path, walk: Walk) -> None:
    """F51: what was asked is awaited; half a mail is not made a whole."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await walk(client, server)
        client.close()
        waiting = {
            _connected: b"220 mx.example\r\n",
            _mail_asked: b"250 Ok\r\n",
            _data_asked: b"354 Go\r\n",
            _ended: b"250 queued\r\n",
            _quit_asked: b"221 Bye\r\n",
        }
        if walk in waiting:
            await settled()
            await server.send(waiting[walk])
        try:
            left = await server.rest()
        except ConnectionResetError:
            left = b""
        assert b"\n.\r\n" not in left
        await settled()
        r.wait(LINGER + 1)
        await r.over()
        assert len(r.records("tx-commit")) == (walk is _ended)
        if walk in (_going_ahead, _in_content, _almost_ended, _data_asked):
            assert r.records("note", anomaly="client-lost")


async def test_half_a_mail_is_ended_by_reset_so_that_nobody_takes_it_for_a_whole(tmp_path: Path) -> None:
    for leave in (End.close, End.reset, End.shut):
        async with rig(tmp_path) as r:
            client, server = await r.both()
            await _in_content(client, server)
            leave(client)
            assert await server.ending() == "reset"
            await r.over(1)


async def test_everything_in_one_go_and_then_no_more(tmp_path: Path) -> None:
    """printf … | nc: all replies still come, then the end."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        group = b"EHLO me.example\r\n" + ENVELOPE + b"DATA\r\nSubject: x\r\n\r\nhi\r\n.\r\nQUIT\r\n"
        await client.send(group)
        client.shut()
        await server.send(b"220 mx.example\r\n")
        await server.expect(b"EHLO me.example\r\n")
        await server.send(EHLO_REPLY)
        await server.expect(ENVELOPE + b"DATA\r\n")
        await server.send(b"250 1\r\n250 2\r\n354 3\r\n")
        await server.expect(b"Subject: x\r\n\r\nhi\r\n.\r\n")
        await settled()
        await server.send(b"250 4\r\n")
        await server.expect(b"QUIT\r\n")
        await server.send(b"221 5\r\n")
        told = b"250 1\r\n250 2\r\n354 3\r\n250 4\r\n221 5\r\n"
        assert await client.rest() == b"220 mx.example\r\n" + EHLO_REPLY + told
        await r.over()
        assert r.records("tx-commit")
        assert r.records("exchange", verb="GREETING")[0]["anomalies"] == ["early-talk"]


async def test_everything_in_one_go_without_quit(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        await client.send(b"NOOP\r\nNOOP\r\n")
        client.shut()
        await server.expect(b"NOOP\r\nNOOP\r\n")
        await settled()
        await server.send(b"250 1\r\n")
        await client.expect(b"250 1\r\n")
        await server.send(b"250 2\r\n")
        assert await client.rest() == b"250 2\r\n"
        assert await server.ending() == "end"


async def test_a_mail_whose_reply_was_taken_is_not_unacknowledged_later(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both(receive=4096)
        await client.data(server)
        await client.ask(b"x\r\n.\r\n", server, b"250 queued\r\n")
        await client.ask(b"NOOP\r\n", server, b"250 Ok\r\n")
        r.relay.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await client.send(b"NOOP\r\n" * 200)
        await server.expect(b"NOOP\r\n" * 200)
        await server.send((b"250 " + b"x" * 1000 + b"\r\n") * 200)
        await until(lambda: r.relay.client.blocked and r.session.to_client, "not blocked")
        client.reset()
        await r.over()
        assert not r.records("note", anomaly="unacknowledged")


async def test_a_client_that_is_held_back_and_resets_is_noticed(tmp_path: Path) -> None:
    """The server takes nothing, so nothing is read: the reset must be seen all the same, and half a mail aborted."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.data(server)
        await _fill(r, client)
        client.reset()
        await r.record("note", anomaly="client-lost")
        assert await server.ending() == "reset"
        await r.over()


async def test_a_client_that_half_closed_and_then_resets_while_the_end_is_awaited(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await _ended(client, server)
        client.shut()
        await settled()
        client.reset()
        await settled()
        await server.send(b"250 queued\r\n")
        await r.record("tx-commit")
        assert (await r.record("exchange", verb="END"))["anomalies"] == ["unacknowledged"]
        await r.over()


async def test_a_mail_is_committed_though_its_client_went_while_it_was_on_its_way(tmp_path: Path) -> None:
    """The client has sent all of it: what was still here is sent on, and its outcome recorded."""
    async with rig(tmp_path, server=Server(receive=4096)) as r:
        client, server = await r.both()
        await client.data(server)
        body = b"x" * 98 + b"\r\n"
        await client.send(body * 1500 + b".\r\n")
        await until(lambda: r.relay.client.received > 150_000, "not read")
        await settled()
        client.close()
        await settled()
        await server.expect(body * 1500 + b".\r\n")
        await server.send(b"250 queued\r\n")
        await r.record("tx-commit")
        await r.over()


# ------------------------------------------------------------------------------------------------- servers that go


def _leaves(end: End, how: str) -> None:
    {"close": end.close, "reset": end.reset, "half-close": end.shut}[how]()


hows = pytest.mark.parametrize("how", ["close", "reset", "half-close"])


@hows
@points
async def test_a_server_that_goes_is_told_as_421_at_once(tmp_path: Path, walk: Walk, how: str) -> None:
    """G04, G05, G14, G17: 421 (451 for content), whoever's turn it is, within a second; never a 250, never a 5yz."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await walk(client, server)
        started = time.monotonic()
        _leaves(server, how)
        if walk in (_going_ahead, _in_content, _almost_ended):
            await r.record("note", anomaly="server-lost")
            await client.send({_in_content: b"\r\n.\r\n", _almost_ended: b"\n"}.get(walk, b".\r\n"))
        told = await client.reply()
        assert time.monotonic() - started < 1
        if walk is _quit_asked:
            assert told.startswith(b"221")
        elif walk in (_going_ahead, _in_content, _almost_ended):
            assert told.startswith(b"451")
            await client.send(b"QUIT\r\n")
            assert (await client.reply()).startswith(b"221")
        else:
            assert told.startswith(b"421")
        assert await client.ending() == "end"
        client.close()
        r.wait(LINGER + 1)
        await r.over()
        assert not r.records("tx-commit")


async def test_what_a_server_says_before_it_goes_is_told(tmp_path: Path) -> None:
    """Its 421 and its close come together, and the client hears the server's own words, once."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        await server.send(b"421 mx.example going down\r\n")
        server.close()
        assert await client.rest() == b"421 mx.example going down\r\n"


async def test_a_quiet_clients_server_says_421(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        started = time.monotonic()
        await server.send(b"421 4.4.2 Timeout\r\n")
        assert await client.line() == b"421 4.4.2 Timeout\r\n"
        assert time.monotonic() - started < 0.5
        assert await client.ending() == "end"


async def test_what_a_server_said_before_it_reset_is_told_though_content_was_on_its_way(tmp_path: Path) -> None:
    """Our send fails on the reset; the server's words are in the kernel and are read first."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.data(server)
        await client.send(b"x" * 998 + b"\r\n")
        await server.expect(b"x" * 990)
        await server.send(b"552 5.3.4 Too big for us\r\n")
        server.reset()
        await settled()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, (b"y" * 998 + b"\r\n") * 500 + b".\r\n")
            assert await client.reply() == b"552 5.3.4 Too big for us\r\n"


async def test_the_send_that_finds_a_server_gone_reads_its_last_words_first(tmp_path: Path) -> None:
    """The same, where the send comes before epoll has said anything of it."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        await client.send(b"NOOP\r\n")
        await server.expect(b"NOOP\r\n")
        relay = r.relay
        link = relay.server
        assert link is not None
        os.write(server.socket.fileno(), b"421 4.3.2 Last words\r\n")  # not awaited: no turn comes between
        server.reset()
        assert not link.readable
        r.session.to_server += b"NOOP\r\n"
        relay.write()
        r.reactor.wake()
        assert await client.line() == b"421 4.3.2 Last words\r\n"


async def test_a_421_is_not_lost_to_a_reset_while_the_client_is_still_sending(tmp_path: Path) -> None:
    """Closing with unread octets makes the kernel send RST, which wipes out what the client has not read yet."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        server.close()
        await settled()
        client_told = await client.line()
        await client.send(b"MAIL FROM:<a@x.example>\r\n" * 2000)
        assert client_told.startswith(b"421")
        assert await client.rest() == b""
        client.close()
        await r.over()


async def test_a_client_that_sends_while_it_is_told_421_reads_it(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.data(server)
        await client.send(b"x" * 500_000)
        await until(lambda: r.relay.client.received >= 500_000 - 4, "not read")
        r.relay.stop()
        r.reactor.wake()
        await client.send(b"y\r\n" * 100_000)
        assert (await client.line()).startswith(b"421 ")
        assert await client.ending() == "end"
        client.close()
        await r.over()


async def test_a_client_that_talks_on_after_421_is_cut_off(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        server.close()
        assert (await client.line()).startswith(b"421")
        await until(lambda: r.relay.client.state.name == "LINGERING", "not shut")
        r.wait(LINGER - 0.5)
        assert len(r.sessions.relays) == 1
        r.wait(1)
        await r.over()


async def test_after_quit_the_link_is_closed_without_lingering(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        await client.ask(b"QUIT\r\n", server, b"221 Bye\r\n")
        await r.over()


async def test_a_reply_nobody_asked_for_ends_the_session(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        await server.send(b"250 2.0.0 I say\r\n")
        assert (await client.line()).startswith(b"421")
        assert await server.ending() == "reset"


# ------------------------------------------------------------------------------------------------- connecting


async def test_a_server_that_refuses_connections(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.destination.addresses = [dead_address()]
        client = await r.connect()
        assert (await client.rest()).startswith(b"421 ")
        note = await r.record("note", anomaly="server-unreachable")
        assert "Connection refused" in note["why"]
        client.close()
        await r.over()


async def test_a_name_that_has_no_address(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.destination.addresses = []
        client = await r.connect()
        assert (await client.rest()).startswith(b"421 ")
        assert "no address" in (await r.record("note", anomaly="server-unreachable"))["why"]


async def test_the_addresses_are_tried_in_turn(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.destination.addresses = [dead_address(), dead_address("::1"), r.server.address, dead_address()]
        client, server = await r.both()
        await client.hello(server)
        await client.ask(b"QUIT\r\n", server, b"221 Bye\r\n")
        assert (await r.record(CLOSED))["server"] == server.name


async def test_a_server_at_ipv6(tmp_path: Path) -> None:
    async with rig(tmp_path, server=Server("::1")) as r:
        client, server = await r.both()
        await client.hello(server)
        await client.ask(b"QUIT\r\n", server, b"221 Bye\r\n")
        assert (await r.record(CLOSED))["server"] == server.name


async def test_addresses_that_cannot_even_be_tried(tmp_path: Path) -> None:
    """A zone that is no interface is an error of connect itself; the next address is tried."""
    async with rig(tmp_path) as r:
        r.destination.addresses = [
            (socket.AF_INET6, ("fe80::1%nowhere", 25)),
            (12345, ("192.0.2.1", 1)),
            r.server.address,
        ]
        client, server = await r.both()
        await client.hello(server)


async def test_an_address_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    """A full backlog: the kernel drops the SYN and nobody ever answers."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        async with rig(tmp_path) as r:
            r.destination.addresses = [(socket.AF_INET, deaf.getsockname()), r.server.address]
            client = await r.connect()
            await until(lambda: r.sessions.relays, "not accepted")
            await settled()
            r.wait(PATIENCE.connect - 1)
            await settled()
            assert r.session.server.address.endswith(str(deaf.getsockname()[1]))
            r.wait(2)
            server = await r.server.accept()
            await client.hello(server)

            r.destination.addresses = [(socket.AF_INET, deaf.getsockname())]
            client = await r.connect()
            await until(lambda: len(r.sessions.relays) == 2, "not accepted")
            await settled()
            r.wait(PATIENCE.connect + 1)
            assert (await client.rest()).startswith(b"421 ")
            assert "no answer" in (await r.record("note", anomaly="server-unreachable"))["why"]
        for filler in fillers:
            filler.close()


async def test_a_client_that_goes_while_the_server_is_being_connected(tmp_path: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        async with rig(tmp_path) as r:
            r.destination.addresses = [(socket.AF_INET, deaf.getsockname())]
            client = await r.connect()
            await until(lambda: r.sessions.relays, "not accepted")
            client.reset()
            await r.over()
        for filler in fillers:
            filler.close()


async def test_an_early_talker_is_on_record_and_does_no_harm(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.send(b"EHLO me.example\r\n")
        await settled()
        await server.nothing()
        await server.send(b"220 mx.example\r\n")
        await client.expect(b"220 mx.example\r\n")
        await server.expect(b"EHLO me.example\r\n")
        assert (await r.record("exchange", verb="GREETING"))["anomalies"] == ["early-talk"]


@pytest.mark.parametrize("leave", [End.shut, End.close])
async def test_who_closes_before_the_greeting_has_not_talked(tmp_path: Path, leave: Callable[[End], None]) -> None:
    """A health check: connect and close."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        leave(client)
        await settled()
        await server.send(b"220 mx.example\r\n")
        assert "anomalies" not in await r.record("exchange", verb="GREETING")
        assert await server.ending() == "end"


# ------------------------------------------------------------------------------------------------- patience


@pytest.mark.parametrize(
    ("walk", "seconds", "side"),
    [
        (_connected, PATIENCE.greeting, "server"),
        (_greeted, PATIENCE.client, "client"),
        (_helloed, PATIENCE.client, "client"),
        (_mail_asked, PATIENCE.command, "server"),
        (_enveloped, PATIENCE.client, "client"),
        (_data_asked, PATIENCE.data, "server"),
        (_going_ahead, PATIENCE.content, "client"),
        (_in_content, PATIENCE.content, "client"),
        (_ended, PATIENCE.end, "server"),
    ],
)
async def test_patience(tmp_path: Path, walk: Walk, seconds: float, side: str) -> None:
    """Each row of the table: before its time nothing happens, after it 421 and both links close."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await walk(client, server)
        await settled()
        r.wait(seconds - 1)
        await client.nothing()
        assert len(r.sessions.relays) == 1
        r.wait(2)
        assert (await client.line()).startswith(b"421 ")
        assert await client.ending() == "end"
        assert await server.ending() in ("end", "reset")
        assert [(v["side"], v["anomaly"]) for v in r.records("violation")] == [(side, "idle")]
        assert not r.records("tx-commit")
        client.close()
        await r.over()


async def test_what_is_said_renews_patience(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        for _ in range(5):
            await settled()
            r.wait(PATIENCE.client - 5)
            await client.ask(b"NOOP\r\n", server, b"250 Ok\r\n")


async def test_octets_of_a_command_that_never_ends_do_not(tmp_path: Path) -> None:
    """F46: a slow drip is no progress."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        for _ in range(60):
            await client.send(b"N")
            await settled()
            r.wait(PATIENCE.client / 50)
            await settled()
            if r.records("violation"):
                break
        assert (await client.line()).startswith(b"421 ")
        assert r.relay.client.received < 17 + 53


@pytest.mark.parametrize(("rate", "given_up"), [(1, True), (450, True), (550, False)])
async def test_content_below_the_minimum_rate_is_given_up(tmp_path: Path, rate: int, given_up: bool) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.data(server)
        step = 100  # seconds
        for _ in range(60):
            await client.send((b"x" * 98 + b"\r\n") * (rate * step // 100) if rate > 1 else b"x" * step)
            with trio.move_on_after(0.5):
                await server.socket.recv(1_000_000)
            await settled()
            r.wait(step)
            await settled()
            if r.records("violation"):
                break
        assert bool(r.records("violation", anomaly="too-slow", side="client")) is given_up
        if given_up:
            assert (await client.line()).startswith(b"421 ")
            assert await server.ending() == "reset"


async def test_each_mail_has_its_own_time(tmp_path: Path) -> None:
    """The minimum rate counts from where this content began, not from the first mail of the session."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        for _ in range(5):
            await client.mail(server)
            await client.ask(b"DATA\r\n", server, b"354 Go\r\n")
            await client.send(b"x\r\n")
            await server.expect(b"x")
            await settled()
            r.wait(PATIENCE.content - 5)
            await client.send(b".\r\n")
            await server.expect(b"\r\n.\r\n")
            await server.send(b"250 Ok\r\n")
            await client.expect(b"250 Ok\r\n")
        assert not r.records("violation")


async def test_a_session_has_an_end(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        for _ in range(int(PATIENCE.session // 200) + 1):
            await settled()
            r.wait(200)
            await settled()
            if r.records("violation"):
                break
            await client.ask(b"NOOP\r\n", server, b"250 Ok\r\n")
        assert (await client.line()).startswith(b"421 ")
        assert [v["anomaly"] for v in r.records("violation")] == ["session-too-long"]


async def test_a_server_that_waits_for_held_back_content_is_kept_awake(tmp_path: Path) -> None:
    """However steadily the client sends: what counts is how long the server has heard nothing."""
    async with rig(tmp_path, judge=Whole()) as r:
        client, server = await r.both()
        await client.hello(server)
        await client.mail(server)
        await client.send(b"DATA\r\n")
        await client.reply()
        heard = 0
        for _ in range(20):
            await client.send((b"x" * 98 + b"\r\n") * 150)
            await settled()
            r.wait(KEEP_ALIVE / 4)
            await settled()
            with trio.move_on_after(0.02):
                await server.expect(b"NOOP\r\n")
                heard += 1
                await server.send(b"250 Ok\r\n")
                await settled()
        assert 3 <= heard <= 6
        await client.send(b".\r\n")
        await server.expect(b"DATA\r\n")
        await client.nothing()
        assert not r.records("violation")


async def test_patience_does_not_run_while_the_record_cannot_be_written(tmp_path: Path) -> None:
    """A full disk for a quarter of an hour is not the peers' doing: they were not heard."""
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        flush, r.audit.flush = r.audit.flush, lambda: False  # type: ignore[method-assign]
        await client.send(b"NOOP\r\n")
        await until(lambda: r.reactor.stalled, "not stalled")
        r.wait(900)
        await settled()
        assert not r.session.closed
        r.audit.flush = flush  # type: ignore[method-assign]
        await server.expect(b"NOOP\r\n")
        r.wait(1)
        await server.send(b"250 Ok\r\n")
        await client.expect(b"250 Ok\r\n")
        assert not r.records("violation")
        r.wait(PATIENCE.client + 1)
        assert (await client.line()).startswith(b"421")


# ------------------------------------------------------------------------------------------------- stopping


async def test_stop_says_421_once_and_is_recorded_once(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await client.hello(server)
        r.relay.stop()
        r.relay.stop()
        r.reactor.wake()
        assert (await client.rest()).count(b"421 ") == 1
        client.close()
        await r.over()
        assert len(r.records("note", anomaly="shutting-down")) == 1


async def test_who_takes_nothing_gets_its_time_from_when_it_was_told(tmp_path: Path) -> None:
    """Not from when it last took something, which may be long ago."""
    async with rig(tmp_path) as r:
        client, server = await r.both(receive=4096)
        await client.hello(server)
        r.relay.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await client.send(b"NOOP\r\n" * 200)
        await server.expect(b"NOOP\r\n" * 200)
        await server.send((b"250 " + b"x" * 1000 + b"\r\n") * 200)
        await until(lambda: r.relay.client.blocked, "not blocked")
        moved = -1.0
        while moved != r.relay.client.moved_at:
            moved = r.relay.client.moved_at
            await trio.sleep(0.1)
        r.wait(100)
        r.relay.stop()
        r.reactor.wake()
        await settled()
        r.wait(LINGER / 2)
        await settled()
        assert len(r.sessions.relays) == 1
        r.wait(LINGER / 2 + 0.5)
        await r.over()


async def test_stop_in_the_middle_of_content_aborts_it(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await _in_content(client, server)
        r.relay.stop()
        r.reactor.wake()
        assert await server.ending() == "reset"
        assert (await client.line()).startswith(b"421")


async def test_abandon_drops_both_and_half_a_mail_by_reset(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        client, server = await r.both()
        await _in_content(client, server)
        r.relay.abandon()
        assert await server.ending() == "reset"
        assert await client.ending() in ("end", "reset")
        assert not r.sessions.relays


# ------------------------------------------------------------------------------------------------- our own bugs


class Broken(PassAll):
    """A judge that fails outside of where rules are guarded."""

    def max_size(self, session: Session) -> int:
        """Asked when content begins."""
        raise RuntimeError("a bug of ours")


async def test_a_fault_of_ours_ends_that_session_and_no_other(tmp_path: Path) -> None:
    async with rig(tmp_path, faults=1) as r:
        other, others = await r.both()
        await other.hello(others)
        r.judge = Broken()
        client, server = await r.both()
        await client.hello(server)
        await client.mail(server)
        with structlog.testing.capture_logs() as log:
            await client.send(b"DATA\r\n")
            await server.expect(b"DATA\r\n")
            await server.send(b"354 Go\r\n")
            assert await client.rest() == b"421 Internal error, try again later\r\n"
            assert await server.ending() == "reset"
        client.close()
        await r.over(1)
        (entry,) = [line for line in log if line["log_level"] == "error"]
        assert isinstance(entry["exc_info"], RuntimeError)
        note = await r.record("note", anomaly="internal-error")
        assert note["why"] == "RuntimeError"
        assert entry["session"] == note["session"]
        assert r.records(CLOSED, session=note["session"])
        await other.ask(b"NOOP\r\n", others, b"250 Ok\r\n")


@pytest.mark.parametrize("place", ["client_sent", "server_sent", "drained", "wants", "timed_out", "drain", "stop"])
async def test_a_fault_anywhere_in_a_session(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(tmp_path, faults=1, judge=Whole() if place == "drained" else PassAll()) as r:
        other, others = await r.both()
        await other.hello(others)
        first = r.session
        client, server = await r.both()
        await client.hello(server)
        (relay,) = [relay for relay in r.sessions.relays if relay.session is not first]

        def fail(*args: Any) -> Any:
            raise ZeroDivisionError(place)

        monkeypatch.setattr(relay.session, place, fail)
        if place == "timed_out":
            await settled()
            relay._since = r.reactor.now - 1000
            r.wait(0)
        elif place in ("drain", "stop"):
            getattr(relay, place)()
            r.reactor.wake()
        elif place == "drained":
            await client.send(ENVELOPE + b"DATA\r\n")
            await server.expect(ENVELOPE)
            await server.send(b"250 1\r\n250 2\r\n")
            await client.send(b"x\r\n.\r\n")
            for _ in range(3):
                await client.reply()
        else:
            await client.send(b"NOOP\r\n")
            if place == "server_sent":
                await server.expect(b"NOOP\r\n")
                await server.send(b"250 Ok\r\n")
        assert await client.rest() == b"421 Internal error, try again later\r\n"
        assert await server.ending() == "reset"
        client.close()
        await r.over(1)
        await other.ask(b"NOOP\r\n", others, b"250 Ok\r\n")


async def test_a_reply_that_is_not_on_record_is_not_told_by_a_session_that_failed(tmp_path: Path) -> None:
    """S8: `told` is appended before `record` is called; where record fails, the reply must not go out."""
    async with rig(tmp_path, faults=1) as r:
        client, server = await r.both()
        await client.hello(server)
        good = r.session._record

        def fail(item: Any) -> None:
            raise RuntimeError("can't be rendered")

        r.session._record = fail
        await client.send(b"NOOP\r\n")
        await server.expect(b"NOOP\r\n")
        await server.send(b"250 not on record\r\n")
        assert await client.rest() == b"421 Internal error, try again later\r\n"
        assert good is not fail


async def test_a_fault_while_the_client_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets its time to hear of it, and no more."""
    async with rig(tmp_path, faults=1) as r:
        client, server = await r.both(receive=4096)
        await client.hello(server)
        r.relay.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await client.send(b"NOOP\r\n" * 300)
        await server.expect(b"NOOP\r\n" * 300)
        await server.send((b"250 " + b"x" * 1000 + b"\r\n") * 200)
        await until(lambda: r.relay.client.blocked, "not blocked")
        await settled()

        def fail(*args: Any) -> Any:
            raise ZeroDivisionError

        monkeypatch.setattr(r.session, "server_sent", fail)
        await server.send((b"250 " + b"x" * 1000 + b"\r\n") * 10)
        await until(lambda: r.faults, "no fault")
        await settled()
        r.wait(LINGER + 0.5)
        await r.over()


async def test_a_rule_that_fails_is_no_fault_of_the_session(tmp_path: Path) -> None:
    def fail(command: Command, session: Session) -> Verdict:
        raise ZeroDivisionError

    class Failing(PassAll):
        commands = MappingProxyType({"MAIL": fail})

    async with rig(tmp_path, judge=Failing()) as r:
        client, server = await r.both()
        await client.hello(server)
        await client.send(b"MAIL FROM:<a@x.example>\r\n")
        assert (await client.reply()).startswith(b"451")
        await client.ask(b"NOOP\r\n", server, b"250 Ok\r\n")
        assert (await r.record("exchange", verb="MAIL"))["anomalies"] == ["rule-failed"]


# ------------------------------------------------------------------------------------------------- numbers of links


async def test_a_closed_link_does_not_take_events_from_whoever_has_its_number_now(tmp_path: Path) -> None:
    """Patience looks at a session whose server link was closed long ago; its number is another session's by then."""
    async with rig(tmp_path) as r:
        lingering, gone = await r.both()
        await lingering.hello(gone)
        assert r.relay.server is not None
        number = r.relay.server.fd
        client = End(trio.socket.socket())  # takes its own number while those are in use
        gone.close()
        assert (await lingering.line()).startswith(b"421")
        (relay,) = r.sessions.relays
        await until(lambda: relay.server is not None and relay.server.state.name == "CLOSED", "not closed")
        r.clients.append(client)
        await client.socket.connect(r.address)
        server = await r.server.accept()
        (other,) = r.sessions.relays - {relay}  # it was given the lowest free numbers
        assert other.server is not None
        assert number in (other.client.fd, other.server.fd)
        await client.hello(server)
        r.wait(LINGER + 1)  # the first session is dropped
        await until(lambda: relay not in r.sessions.relays, "still there")
        await client.ask(b"NOOP\r\n", server, b"250 Ok\r\n")
        await server.send(b"421 Bye\r\n")
        await client.expect(b"421 Bye\r\n")


async def test_a_verdict_to_hang_up_closes_both(tmp_path: Path) -> None:
    class HangsUp(PassAll):
        def _up(self, command: Command, session: Session) -> Verdict:
            return Verdict(Action.HANGUP, own("554 5.7.1 Go away"), "r")

        @property
        def commands(self) -> Any:  # type: ignore[override]
            """MAIL is enough."""
            return {"MAIL": self._up}

    async with rig(tmp_path, judge=HangsUp()) as r:
        client, server = await r.both()
        await client.hello(server)
        await client.send(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n")
        assert await client.rest() == b"554 Go away\r\n"
        assert await server.rest() == b""
        client.close()
        await r.over()
