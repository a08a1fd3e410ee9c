"""PROXY headers on real connections: from whom one is asked for, what becomes of what is none."""

from pathlib import Path
from typing import Any

import pytest

from smtpproxy.net.arriving import PATIENCE
from smtpproxy.net.dialling import Dial
from smtpproxy.net.proxyheader import encode
from tests.net.rig import End, Rig, rig, settled

CLIENT, GOING = ("198.51.100.7", 4711), ("203.0.113.5", 25)
SIX, GOING_SIX = ("2001:db8::7", 4711), ("2001:db8::5", 25)
V1 = encode(1, CLIENT, GOING)
V2 = encode(2, CLIENT, GOING)
FROM_HERE: dict[str, Any] = {"proxy_from": ["127.0.0.0/8"]}
FROM_ELSEWHERE: dict[str, Any] = {"proxy_from": ["192.0.2.0/24"]}


async def refused(r: Rig, client: End, why: str) -> None:
    """421, on record, and no server was asked."""
    assert (await client.reply()).startswith(b"421 ")
    await client.ending()
    record = await r.record("link-connect")
    assert why in record["refused"]
    assert not r.server.ends
    assert r.sessions.none


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
async def test_the_client_is_who_the_header_says(header: bytes, tmp_path: Path) -> None:
    async with rig(tmp_path, settings=FROM_HERE) as r:
        client = await r.connect()
        await client.send(header)
        server = await r.server.accept()
        await client.hello(server)
        record = await r.record("link-connect")
        assert (record["client"], record["peer"]) == ("198.51.100.7:4711", client.name)
        assert record["destination"] == "203.0.113.5:25"
        assert record["proxy"]["version"] == (1 if header is V1 else 2)
        assert r.session.client.address == "198.51.100.7:4711"


@pytest.mark.parametrize("header", [V1, V2, encode(2, SIX, GOING_SIX), encode(1, SIX, GOING_SIX)])
async def test_a_header_comes_in_any_pieces(header: bytes, tmp_path: Path) -> None:
    """Nothing is answered and nobody connected to before it is whole, and what follows it is the client's."""
    async with rig(tmp_path, settings=FROM_HERE) as r:
        client = await r.connect()
        for octet in header[:-1]:
            await client.send(bytes([octet]))
            await settled()
        assert not r.server.ends
        await client.send(header[-1:])
        server = await r.server.accept()
        await client.hello(server)


async def test_octets_behind_the_header_are_the_client_s(tmp_path: Path) -> None:
    """In one piece with it: they wait for the greeting, as an early talker's do."""
    async with rig(tmp_path, settings=FROM_HERE) as r:
        client = await r.connect()
        await client.send(V2 + b"EHLO me.example\r\n")
        server = await r.server.accept()
        await server.send(b"220 mx.example\r\n")
        await client.expect(b"220 mx.example\r\n")
        await server.expect(b"EHLO me.example\r\n")


async def test_a_health_check_is_the_load_balancer_s_own(tmp_path: Path) -> None:
    async with rig(tmp_path, settings=FROM_HERE) as r:
        client = await r.connect()
        await client.send(encode(2, None, None))
        await client.hello(await r.server.accept())
        record = await r.record("link-connect")
        assert record["client"] == client.name
        assert "peer" not in record
        assert record["proxy"]["local"] is True


@pytest.mark.parametrize(
    "octets",
    [
        b"EHLO me.example\r\n",
        b"PROXY TCP4 198.51.100.7 203.0.113.5 04711 25\r\n",
        b"PROXY TCP4 198.51.100.7\n",
        b"PROXY " + b"x" * 200,
        V2[:12] + b"\x11" + V2[13:],
        V2[:14] + b"\xff\xff" + V2[16:],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["none", "leading zero", "bare LF", "endless", "version 1 in 2", "too long", "TLS"],
)
async def test_what_is_no_header_is_refused(octets: bytes, tmp_path: Path) -> None:
    async with rig(tmp_path, settings=FROM_HERE) as r:
        client = await r.connect()
        await client.send(octets)
        await refused(r, client, "no PROXY header")


async def test_an_end_in_place_of_a_header_is_on_record(tmp_path: Path) -> None:
    async with rig(tmp_path, settings=FROM_HERE) as r:
        client = await r.connect()
        await client.send(V1[:10])
        client.shut()
        await refused(r, client, "ended before")


async def test_a_reset_in_place_of_a_header_is_on_record(tmp_path: Path) -> None:
    async with rig(tmp_path, settings=FROM_HERE) as r:
        client = await r.connect()
        await client.send(V1[:10])
        await settled()
        client.reset()
        assert "before a PROXY header" in (await r.record("link-connect"))["refused"]
        assert r.sessions.none


async def test_a_header_has_its_time(tmp_path: Path) -> None:
    async with rig(tmp_path, settings=FROM_HERE) as r:
        client = await r.connect()
        await client.send(V1[:10])
        await settled()
        r.wait(PATIENCE / 2)
        assert r.sessions.arriving
        r.wait(PATIENCE / 2 + 0.5)
        await refused(r, client, "within")


async def test_who_is_not_listed_is_refused(tmp_path: Path) -> None:
    """Its header is not looked at: anybody could say anything."""
    async with rig(tmp_path, settings=FROM_ELSEWHERE) as r:
        client = await r.connect()
        await client.send(V1)
        await refused(r, client, "proxy_from")


async def test_who_is_not_listed_is_itself_where_that_is_wanted(tmp_path: Path) -> None:
    async with rig(tmp_path, settings={**FROM_ELSEWHERE, "proxy_only": False}) as r:
        client, server = await r.both()
        await client.hello(server)
        assert (await r.record("link-connect"))["client"] == client.name


@pytest.mark.parametrize("settings", [{}, {**FROM_ELSEWHERE, "proxy_only": False}], ids=["none asked", "not listed"])
async def test_nobody_else_s_header_counts(settings: dict[str, Any], tmp_path: Path) -> None:
    """PROXY is no verb: the line gets its answer and does not reach the server."""
    async with rig(tmp_path, settings=settings) as r:
        client, server = await r.both()
        await client.hello(server)
        await client.send(V1)
        assert (await client.reply())[:1] == b"5"
        assert b"PROXY" not in await server.rest()
        assert (await r.record("link-connect"))["client"] == client.name


async def test_waiting_for_headers_is_bounded(tmp_path: Path) -> None:
    """They count among the connections in all, as nobody knows yet whose they are."""
    async with rig(tmp_path, settings=FROM_HERE, connections=3) as r:
        waiting = [await r.connect() for _ in range(3)]
        await settled()
        client = await r.connect()
        assert (await client.reply()).startswith(b"421 ")
        assert (await r.record("link-connect"))["refused"] == "3 connections in all"
        waiting[0].reset()
        await settled()
        again = await r.connect()
        await again.send(V1)
        await again.hello(await r.server.accept())


async def test_one_client_behind_a_load_balancer_is_one_client(tmp_path: Path) -> None:
    """The bound is on who the header names, not on the balancer."""
    async with rig(tmp_path, settings=FROM_HERE, per_client=1) as r:
        first, second, third = [await r.connect() for _ in range(3)]
        await first.send(V1)
        await r.server.accept()
        await second.send(encode(1, ("198.51.100.8", 1), GOING))
        await r.server.accept()
        await third.send(encode(1, ("198.51.100.7", 1), GOING))
        assert (await third.reply()).startswith(b"421 ")
        assert len(r.sessions.relays) == 2


async def test_the_end_of_the_proxy_ends_who_arrives(tmp_path: Path) -> None:
    async with rig(tmp_path, settings=FROM_HERE) as r:
        client = await r.connect()
        await settled()
        (arriving,) = r.sessions.arriving
        r.sessions.abandon()
        assert await client.ending() in ("end", "reset")
        with pytest.raises(OSError, match="Bad file"):
            arriving.socket.getsockname()


async def test_the_link_comes_from_the_client_and_not_from_its_load_balancer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources: list[Any] = []

    class Told(Dial):
        def __init__(self, loops: Any, tally: Any, source: Any = None) -> None:
            sources.append(source)
            super().__init__(loops, tally)

    monkeypatch.setattr("smtpproxy.net.listener.Dial", Told)
    async with rig(tmp_path, settings={**FROM_HERE, "source": "client"}) as r:
        client = await r.connect()
        await client.send(V1)
        await client.hello(await r.server.accept())
        assert sources == [CLIENT]


async def test_at_the_bound_nobody_is_served_as_the_load_balancer(tmp_path: Path) -> None:
    """Other workers' sessions may end between two looks at how many there are: it is decided once."""
    async with rig(tmp_path, settings=FROM_HERE, connections=5) as r:
        answers = [5, 4, 4, 4]
        r.sessions.tally.total = lambda: answers.pop(0) if answers else 4  # type: ignore[method-assign]
        client = await r.connect()
        await client.send(V1)
        assert (await client.reply()).startswith(b"421 ")
        assert (await r.record("link-connect"))["refused"] == "5 connections in all"
        assert not r.server.ends


async def test_a_header_s_time_does_not_pass_while_the_record_can_not_be_written(tmp_path: Path) -> None:
    async with rig(tmp_path, settings=FROM_HERE) as r:
        client = await r.connect()
        await settled()
        r.reactor.stalled = True
        r.wait(PATIENCE + 1)
        assert r.sessions.arriving
        r.reactor.stalled = False
        r.reactor.resumed_at = r.reactor.now
        r.wait(PATIENCE / 2)
        assert r.sessions.arriving
        await client.send(V1)
        await client.hello(await r.server.accept())
