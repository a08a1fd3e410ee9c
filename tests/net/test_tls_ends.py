"""How a link under TLS ends, at every place and on either side, and what a full window means (B52-B55, S3, S4)."""

import contextlib
import socket
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from smtpproxy.session.limits import LIMITS, PATIENCE
from tests.net.rig import ENVELOPE, End, Rig, Server, rig, settled, until
from tests.net.tls_rig import (
    EHLO,
    GO,
    INSIDE,
    STARTTLS,
    Pair,
    TLSEnd,
    as_client,
    as_server,
    greet,
    leave,
    send_mail,
    table,
    within,
)

CLEAR = b"MAIL FROM:<clear@x.example>\r\nRCPT TO:<clear@y.example>\r\nDATA\r\nclear\r\n.\r\n"
MB = 1_048_576
BUFFER = 65_536  # of the kernel's: smaller ones are filled so slowly that it is the kernel that is tested
CHUNKING = b"250-mx.example\r\n250 CHUNKING\r\n"


class Cut(NamedTuple):
    """How a peer ends its side."""

    notify: bool
    behind: bytes  # octets in clear
    shut: bool  # FIN follows

    async def by(self, end: TLSEnd) -> None:
        """Do it."""
        if self.notify or self.behind:
            await end.raw((end.farewell() if self.notify else b"") + self.behind)
        if self.shut:
            with contextlib.suppress(OSError):  # it may be closed by now
                end.shut()


CUTS = {
    "close_notify": Cut(True, b"", False),
    "close_notify and FIN": Cut(True, b"", True),
    "close_notify and clear octets": Cut(True, CLEAR, False),
    "clear octets": Cut(False, CLEAR, False),
    "FIN alone": Cut(False, b"", True),
}
cuts = pytest.mark.parametrize("cut", CUTS.values(), ids=list(CUTS))
DATA = b"Subject: x\r\n\r\nhalf a "


async def _in_data(pair: Pair, content: bytes = DATA) -> None:
    await pair.client.mail(pair.server)
    await pair.client.ask(b"DATA\r\n", pair.server, b"354 Go\r\n")
    await pair.client.send(content)


async def _chunk(pair: Pair) -> None:
    await pair.client.mail(pair.server)
    await pair.client.send(b"BDAT 100 LAST\r\n" + DATA)


# --------------------------------------------------------------------------------------------------- the client's side


async def _nothing_of_it_was_read(r: Rig) -> None:
    assert not [record for record in r.records() if "clear@" in str(record)]
    assert not r.records("tx-commit")


@cuts
@pytest.mark.parametrize("content", [DATA, DATA + b"\r\n", DATA + b"\r\n.", DATA + b"\r\n.\r"])
async def test_in_the_middle_of_content(tmp_path: Path, cut: Cut, content: bytes) -> None:
    """CVE-2026-45185: an end, or a break, and no more is read; the server's link is reset, whatever it has by then."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r)
        await _in_data(pair, content)
        await cut.by(pair.client)
        assert await pair.server.ending() == "reset"
        assert b"\r\n.\r\n" not in pair.server.received
        assert b"clear" not in pair.server.received
        assert await pair.client.ending() in ("notify", "cut", "reset")
        pair.client.close()
        await r.over()
        await _nothing_of_it_was_read(r)
        assert r.records("note", anomaly="client-lost")
        truncated = bool(r.records("note", anomaly="tls-truncated"))
        assert truncated is (not cut.notify and not cut.behind)


@cuts
async def test_in_the_middle_of_a_chunk(tmp_path: Path, cut: Cut) -> None:
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r, CHUNKING)
        await _chunk(pair)
        await cut.by(pair.client)
        assert await pair.server.ending() == "reset"
        assert b"clear" not in pair.server.received
        await pair.client.ending()
        pair.client.close()
        await r.over()
        await _nothing_of_it_was_read(r)


@cuts
@pytest.mark.parametrize("where", ["hello", "mail", "half a line", "after a mail"])
async def test_outside_content(tmp_path: Path, cut: Cut, where: str) -> None:
    """Many end it without close_notify between transactions; within one that is on record."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r)
        if where == "mail":
            await pair.client.mail(pair.server)
        elif where == "after a mail":
            await send_mail(*pair, b"x\r\n")
        elif where == "half a line":
            await pair.client.send(b"MAIL FROM:<a@x.exa")
        await cut.by(pair.client)
        assert await pair.server.ending() in ("notify", "reset")
        assert not pair.server.received
        await pair.client.ending()
        pair.client.close()
        await r.over()
        assert not [record for record in r.records() if "clear@" in str(record)]
        assert bool(r.records("note", anomaly="tls-truncated")) is (where == "mail" and cut is CUTS["FIN alone"])


@cuts
async def test_after_quit(tmp_path: Path, cut: Cut) -> None:
    """221 is told where it can be; nothing is amiss, however the client goes."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r)
        await pair.client.send(b"QUIT\r\n")
        await pair.server.expect(b"QUIT\r\n")
        await pair.server.send(b"221 Bye\r\n")
        await pair.client.expect(b"221 Bye\r\n")
        await cut.by(pair.client)
        assert await pair.server.ending() == "notify"
        pair.client.close()
        await r.over()
        assert not r.records("note")
        assert not r.records("violation")


async def test_what_was_asked_before_close_notify_is_still_answered(tmp_path: Path) -> None:
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r)
        octets = pair.client.encrypted(b"NOOP\r\nQUIT\r\n")
        await pair.client.raw(octets + pair.client.farewell())
        await pair.server.expect(b"NOOP\r\nQUIT\r\n")
        await pair.server.send(b"250 Ok\r\n221 Bye\r\n")
        await pair.client.expect(b"250 Ok\r\n221 Bye\r\n")
        assert await pair.client.ending() == "notify"
        assert await pair.server.ending() == "notify"


async def test_a_mail_whose_end_came_before_the_cut_is_awaited(tmp_path: Path) -> None:
    """The server has all of it: what becomes of it is on record, though nobody can be told."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r)
        await _in_data(pair, b"x\r\n.\r\n")
        await pair.server.expect(b"x\r\n.\r\n")
        pair.client.shut()
        await settled()
        await pair.server.send(b"250 queued\r\n")
        await r.record("tx-commit")
        pair.client.close()
        await r.over()


# --------------------------------------------------------------------------------------------------- the server's side

SERVER_CUTS = {name: cut._replace(behind=b"250 clear\r\n" if cut.behind else b"") for name, cut in CUTS.items()}
server_cuts = pytest.mark.parametrize("cut", SERVER_CUTS.values(), ids=list(SERVER_CUTS))


async def _no_clear_reply(client: TLSEnd) -> bytes:
    told = await client.rest()
    assert b"clear" not in told
    return told


@server_cuts
async def test_the_server_ends_it_while_a_command_waits(tmp_path: Path, cut: Cut) -> None:
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r)
        await pair.client.send(b"MAIL FROM:<a@x.example>\r\n")
        await pair.server.expect(b"MAIL FROM:<a@x.example>\r\n")
        await cut.by(pair.server)
        assert (await _no_clear_reply(pair.client)).startswith(b"421")
        assert pair.client.how == "notify"
        pair.client.close()
        await r.over()


@server_cuts
async def test_the_server_ends_it_in_the_middle_of_content(tmp_path: Path, cut: Cut) -> None:
    """The content is read to its end, and then told that it was lost."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r)
        await _in_data(pair)
        await pair.server.expect(DATA)
        await cut.by(pair.server)
        await r.record("note", anomaly="server-lost")
        await pair.client.send(b"mail\r\n.\r\n")
        told = await pair.client.reply()
        assert told[:1] == b"4"
        assert b"clear" not in told
        assert not r.records("tx-commit")


@server_cuts
@pytest.mark.parametrize("half", [b"", b"250 que"])
async def test_the_server_ends_it_before_it_acknowledged(tmp_path: Path, cut: Cut, half: bytes) -> None:
    """S3: never a 250 that was not whole."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r)
        await _in_data(pair, b"x\r\n.\r\n")
        await pair.server.expect(b"x\r\n.\r\n")
        if half:
            await pair.server.send(half)
        await cut.by(pair.server)
        assert (await _no_clear_reply(pair.client))[:1] == b"4"
        assert not r.records("tx-commit")


async def test_half_a_record_of_the_acknowledgement_is_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r)
        await _in_data(pair, b"x\r\n.\r\n")
        await pair.server.expect(b"x\r\n.\r\n")
        await pair.server.raw(pair.server.encrypted(b"250 queued\r\n")[:-3])
        pair.server.shut()
        assert (await pair.client.rest())[:1] == b"4"
        assert (await r.record("note", anomaly="tls-truncated"))["side"] == "server"
        assert not r.records("tx-commit")


@server_cuts
async def test_the_server_ends_it_between_transactions(tmp_path: Path, cut: Cut) -> None:
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r)
        await send_mail(*pair, b"x\r\n")
        await cut.by(pair.server)
        assert (await _no_clear_reply(pair.client)).startswith(b"421")
        assert not r.records("note", anomaly="tls-truncated")


@server_cuts
async def test_the_server_ends_it_after_quit(tmp_path: Path, cut: Cut) -> None:
    """With its 221 or without."""
    for said in (b"221 Bye\r\n", b""):
        async with rig(tmp_path, tls=table(tmp_path)) as r:
            pair = await within(r)
            await pair.client.send(b"QUIT\r\n")
            await pair.server.expect(b"QUIT\r\n")
            if said:
                await pair.server.send(said)
            await cut.by(pair.server)
            assert (await _no_clear_reply(pair.client)).startswith(b"221")
            assert pair.client.how == "notify"
            pair.client.close()
            await r.over()


# ------------------------------------------------------------------------------------------------------ full windows


def _body(size: int) -> bytes:
    line = bytes(range(128, 190))
    return b"".join(b"%010d" % number + line + b"\r\n" for number in range(size // 74))


async def _small(r: Rig) -> Pair:
    """Both links under TLS, small buffers everywhere."""
    client, server = await r.both(send=BUFFER, receive=BUFFER)
    await greet(client, server)
    for link in (r.relay.client, r.relay.server):
        assert link is not None
        link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    await client.send(STARTTLS)
    await server.expect(STARTTLS)
    await server.send(GO)
    inside = await as_server(server)
    await client.expect(GO)
    pair = Pair(await as_client(client), inside)
    await pair.client.ask(EHLO, pair.server, INSIDE)
    return pair


async def test_ten_megabytes_of_content_wait_for_a_server_that_does_not_read(tmp_path: Path) -> None:
    """What waits is bounded, the client is held back, and every octet arrives once."""
    body = _body(10 * MB)
    async with rig(tmp_path, tls=table(tmp_path), server=Server(receive=BUFFER)) as r:
        pair = await _small(r)
        await pair.client.mail(pair.server)
        await pair.client.ask(b"DATA\r\n", pair.server, b"354 Go\r\n")
        relay = r.relay
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.client.send, body + b".\r\n")
            await until(lambda: len(relay.session.to_server) > LIMITS.unsent, "it is not held up")
            await settled()
            assert relay.server is not None
            assert relay.server.blocked
            assert relay.server.unsent
            assert len(relay.session.to_server) <= LIMITS.unsent + 262_144 + MB // 16
            assert not relay.session.wants(relay.session.client.side)
            await pair.server.expect(body + b".\r\n")
        await pair.server.send(b"250 queued\r\n")
        await pair.client.expect(b"250 queued\r\n")
        assert (await r.record("tx-commit"))["octets"] == len(body)
        await leave(*pair)


async def test_ten_megabytes_of_replies_wait_for_a_client_that_does_not_read(tmp_path: Path) -> None:
    line = b"250-" + b"x" * 3000 + b"\r\n"
    reply = line * 999 + b"250 end\r\n"
    async with rig(tmp_path, tls=table(tmp_path), server=Server(receive=BUFFER)) as r:
        pair = await _small(r)
        relay = r.relay
        await pair.client.send(b"NOOP\r\n" * 4)
        await pair.server.expect(b"NOOP\r\n" * 4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.server.send, reply * 4)
            await until(lambda: len(relay.session.to_client) > LIMITS.unsent, "it is not held up")
            await settled()
            assert relay.client.blocked
            assert relay.client.unsent
            assert len(relay.session.to_client) <= LIMITS.unsent + len(reply) + 262_144
            assert not relay.session.wants(relay.session.server.side)
            await pair.client.expect(reply * 4)
        await leave(*pair)


async def _stuffed(r: Rig) -> tuple[End, TLSEnd, bytes]:
    """A client that takes nothing, whose 220 stands behind a long reply; the server's link is under TLS."""
    client, server = await r.both(receive=4096)
    await greet(client, server)
    r.relay.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    await client.send(b"NOOP\r\n" + STARTTLS)
    await server.expect(b"NOOP\r\n" + STARTTLS)
    reply = (b"250-" + b"x" * 1000 + b"\r\n") * 500 + b"250 end\r\n"
    await server.send(reply + GO)
    return client, await as_server(server), reply


async def test_a_client_that_does_not_take_the_220(tmp_path: Path) -> None:
    """The handshake begins when all of it has been taken, and not an octet of TLS stands before."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, inside, reply = await _stuffed(r)
        await until(lambda: r.relay.session.to_client.endswith(GO), "no 220")
        await settled()
        assert r.relay.client.blocked
        await client.expect(reply + GO)
        outside = await as_client(client)
        await outside.ask(EHLO, inside, INSIDE)
        await send_mail(outside, inside, b"x\r\n")


async def test_a_client_that_never_takes_the_220(tmp_path: Path) -> None:
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        _, inside, _ = await _stuffed(r)
        await until(lambda: r.relay.session.to_client.endswith(GO), "no 220")
        r.wait(PATIENCE.tls + 1)
        assert (await r.record("note", anomaly="tls-failed"))["side"] == "client"
        assert await inside.ending() == "reset"
        r.wait(3)
        await r.over()


async def test_a_server_that_does_not_take_the_client_hello(tmp_path: Path) -> None:
    """Silent, its window shut: as any handshake that stalls."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        client, server = await r.both()
        await greet(client, server)
        await client.send(STARTTLS)
        await server.expect(STARTTLS)
        await server.send(GO)
        await until(lambda: r.relay.session.securing is not None, "no handshake")
        await settled()
        r.wait(PATIENCE.tls + 1)
        assert (await client.reply()).startswith(b"454")
        assert await server.ending() == "reset"


@pytest.mark.parametrize("size", [1, 100, 5000, 16_384])
async def test_content_in_records_of_any_size(tmp_path: Path, size: int) -> None:
    """Ends of records are nobody's ends of lines."""
    body = _body(20 * size if size < 100 else 200_000)
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r)
        await pair.client.ask(ENVELOPE, pair.server, b"250 Ok\r\n250 Ok\r\n")
        await pair.client.ask(b"DATA\r\n", pair.server, b"354 Go\r\n")
        wire = b"".join(
            pair.client.encrypted(body[at : at + size]) for at in range(0, len(body), size)
        ) + pair.client.encrypted(b".\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.client.raw, wire)
            await pair.server.expect(body + b".\r\n")


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_record_that_was_changed_on_its_way(tmp_path: Path, side: str) -> None:
    """RFC 8446 §5.2: the link is broken, and that is another thing on record than a peer that went."""
    async with rig(tmp_path, tls=table(tmp_path)) as r:
        pair = await within(r)
        end, other = (pair.client, pair.server) if side == "client" else (pair.server, pair.client)
        await End.send(end, b"\x17\x03\x03\x00\x20" + bytes(32))
        violation = await r.record("violation")
        assert (violation["anomaly"], violation["side"]) == ("tls-broken", side)
        await other.ending()
