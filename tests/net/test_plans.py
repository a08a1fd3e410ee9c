"""What is done with a session: names of servers, match blocks, and what each of them changes."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from smtpproxy.config import Config, parse_endpoint
from smtpproxy.net.origin import Origin
from smtpproxy.net.plans import REFRESH, Destination, Making, Plans
from smtpproxy.net.proxyheader import encode, parse
from smtpproxy.net.setup import Setup
from smtpproxy.session.verdicts import PassAll
from tests.net.rig import Server, rig

# ------------------------------------------------------------------------------------------------- names of servers


class Resolver(trio.abc.HostnameResolver):
    """What trio asks instead of the system."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        family: int = 0,
        type: int = 0,  # noqa: A002 - trio's name
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """The answer given, or the error."""
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return [(family, type, 6, "", address) for family, address in self.answer]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        """Not asked."""
        raise NotImplementedError


@pytest.fixture
async def resolver() -> AsyncIterator[Resolver]:
    made = Resolver([])
    before = trio.socket.set_custom_hostname_resolver(made)
    yield made
    trio.socket.set_custom_hostname_resolver(before)


async def test_a_name_with_two_families_of_which_the_first_refuses(tmp_path: Path, resolver: Resolver) -> None:
    """localhost: IPv6 first and nobody there, then IPv4."""
    async with rig(tmp_path) as r:
        destination = Destination(parse_endpoint(f"localhost:{r.server.port}"))
        resolver.answer = [(socket.AF_INET6, ("::1", r.server.port, 0, 0)), r.server.address, r.server.address]
        await destination.look_up()
        assert len(destination.addresses) == 2
        r.destination.addresses = destination.addresses
        client, server = await r.both()
        await client.hello(server)
        await client.ask(b"QUIT\r\n", server, b"221 Bye\r\n")
        assert (await r.record("link-close"))["server"] == server.name


async def test_a_zone_of_an_address_is_kept(resolver: Resolver) -> None:
    """fe80::1 without its interface is no address."""
    resolver.answer = [(socket.AF_INET6, ("fe80::1", 25, 0, 2))]
    destination = Destination(parse_endpoint("mx.example"))
    await destination.look_up()
    assert destination.addresses == [(socket.AF_INET6, ("fe80::1", 25, 0, 2))]


@pytest.mark.parametrize("error", [OSError("no such name"), UnicodeError("label too long")])
async def test_what_is_known_stays_when_the_resolver_fails(resolver: Resolver, error: Exception) -> None:
    destination = Destination(parse_endpoint("mx.example"))
    resolver.answer = error
    await destination.look_up()
    assert destination.addresses == []
    resolver.answer = [(socket.AF_INET, ("192.0.2.1", 25))]
    await destination.look_up()
    resolver.answer = error
    with structlog.testing.capture_logs() as log:
        await destination.look_up()
    assert destination.addresses == [(socket.AF_INET, ("192.0.2.1", 25))]
    assert log[0]["server"] == "mx.example:25"


async def test_a_name_is_looked_up_again(resolver: Resolver, autojump_clock: trio.testing.MockClock) -> None:
    """Every minute; every few seconds as long as there is no answer."""
    destination = Destination(parse_endpoint("mx.example"))
    with trio.move_on_after(14):
        await destination.keep_fresh()
    assert resolver.asked == 2
    resolver.answer = [(socket.AF_INET, ("192.0.2.1", 25))]
    with trio.move_on_after(6 + 2.5 * REFRESH):
        await destination.keep_fresh()
    assert resolver.asked == 5


@pytest.mark.parametrize("text", ["192.0.2.1:25", "[2001:db8::1]:25"])
async def test_an_address_is_not_looked_up(resolver: Resolver, text: str) -> None:
    destination = Destination(parse_endpoint(text))
    await destination.look_up()
    await destination.keep_fresh()
    assert resolver.asked == 0
    assert len(destination.addresses) == 1


# --------------------------------------------------------------------------------------------------- match blocks

GENERAL, OWN = PassAll(), PassAll()


def plans(*matches: dict[str, Any], server: str | None = "192.0.2.1:25", **listener: Any) -> Plans:
    """The plans of the first of two listeners."""
    first = {"name": "first", "listen": "127.0.0.1:0", **({"server": server} if server else {}), **listener}
    second = {"name": "second", "listen": "127.0.0.1:0", "server": "192.0.2.9"}
    config = Config.model_validate({"listener": [first, second], "match": list(matches)})
    return Making(Setup(config, {"": GENERAL, "own": OWN}), None).plans()[0]


def connection(client: str = "198.51.100.7", going: str = "203.0.113.5", port: int = 25) -> Origin:
    return Origin((client, 4711), (going, port), (client, 4711), (going, port))


@pytest.mark.parametrize(
    ("conditions", "fits"),
    [
        ({"clients": ["198.51.100.0/24"]}, True),
        ({"clients": ["192.0.2.0/24", "198.51.100.7"]}, True),
        ({"clients": ["192.0.2.0/24"]}, False),
        ({"clients": ["2001:db8::/32"]}, False),
        ({"servers": ["203.0.113.0/24"]}, True),
        ({"servers": ["203.0.113.6"]}, False),
        ({"ports": [25, 587]}, True),
        ({"ports": [587]}, False),
        ({"clients": ["198.51.100.0/24"], "ports": [587]}, False),
        ({"clients": ["198.51.100.0/24"], "servers": ["203.0.113.0/24"], "ports": [25]}, True),
        ({"listeners": ["first"]}, True),
        ({"listeners": ["second"], "ports": [25]}, False),
    ],
)
def test_all_conditions_have_to_hold(conditions: dict[str, Any], fits: bool) -> None:
    chosen = plans({"name": "own", "server": "192.0.2.2", **conditions}).choose(connection())
    assert (chosen.name == "own") is fits
    assert chosen.judge is (OWN if fits else GENERAL)
    assert str(chosen.destination) == ("192.0.2.2:25" if fits else "192.0.2.1:25")


def test_the_first_that_fits_counts() -> None:
    made = plans(
        {"name": "narrow", "clients": ["198.51.100.7"], "server": "192.0.2.2"},
        {"name": "wide", "clients": ["198.51.100.0/24"], "server": "192.0.2.3"},
    )
    assert made.choose(connection()).name == "narrow"
    assert made.choose(connection("198.51.100.8")).name == "wide"
    assert made.choose(connection("198.51.101.8")).name == ""


def test_a_server_that_is_named_twice_is_looked_up_once() -> None:
    config = Config.model_validate(
        {
            "listener": [
                {"name": "first", "listen": "127.0.0.1:0", "server": "mx.example"},
                {"name": "second", "listen": "127.0.0.1:0", "server": "mx.example:25"},
            ],
            "match": [{"name": "own", "ports": [587], "server": "mx.example:587"}],
        }
    )
    making = Making(Setup(config, {"": GENERAL}), None)
    making.plans()
    assert [str(one) for one in making.destinations] == ["mx.example:25", "mx.example:587"]


@pytest.mark.parametrize("going", ["203.0.113.5", "2001:db8::5"])
def test_without_a_server_it_goes_where_its_client_was_going(going: str) -> None:
    plan = plans(server=None, mode="tproxy").default
    said, addresses = plan.server(connection(going=going))
    family = socket.AF_INET6 if ":" in going else socket.AF_INET
    assert said == (f"[{going}]:25" if ":" in going else f"{going}:25")
    assert addresses == [(family, (going, 25))]


async def test_a_match_block_has_its_own_server(tmp_path: Path) -> None:
    """And the record says which block it was."""
    other = Server()
    block = {"name": "own", "clients": ["127.0.0.0/8"], "server": f"127.0.0.1:{other.port}"}
    async with rig(tmp_path, matches=[block]) as r:
        client = await r.connect()
        await client.hello(await other.accept())
        record = await r.record("link-connect")
        assert (record["match"], record["server"]) == ("own", f"127.0.0.1:{other.port}")
        client.close()
        await r.over()
        other.close()


async def test_exempted_sessions_pass_unseen_and_are_on_record(tmp_path: Path) -> None:
    """Octets that are no SMTP at all, both ways, the server's first or not."""
    block = {"name": "scanner", "clients": ["127.0.0.0/8"], "unseen": True}
    async with rig(tmp_path, matches=[block]) as r:
        client, server = await r.both()
        await client.send(b"\x00\xff not SMTP\n")
        await server.expect(b"\x00\xff not SMTP\n")
        await server.send(b"nor this\r")
        await client.expect(b"nor this\r")
        client.close()
        assert await server.ending() == "end"
        server.close()
        await r.over()
        record = await r.record("link-connect")
        assert (record["match"], record["unseen"]) == ("scanner", True)
        assert (await r.record("link-close"))["inspected"] is False
        assert not r.records("exchange")


def test_a_block_looks_at_the_client_and_not_at_its_load_balancer() -> None:
    header = parse(encode(2, ("198.51.100.7", 4711), ("203.0.113.5", 587)))
    assert header is not None
    told = connection("10.0.0.9").told(header)
    assert plans({"name": "own", "clients": ["198.51.100.7"], "server": "192.0.2.2"}).choose(told).name == "own"
    assert plans({"name": "own", "clients": ["10.0.0.9"], "server": "192.0.2.2"}).choose(told).name == ""
    assert plans({"name": "own", "ports": [587], "server": "192.0.2.2"}).choose(told).name == "own"
    assert plans({"name": "own", "ports": [25], "server": "192.0.2.2"}).choose(told).name == ""


async def test_tls_is_shared_by_nobody_but_a_listener_and_its_server(tmp_path: Path) -> None:
    """A ticket or a certificate of one is nothing to another."""
    async with rig(tmp_path, tls={}) as r:
        config = Config.model_validate(
            {
                "listener": [
                    {"name": "first", "listen": "127.0.0.1:0", "server": "192.0.2.1"},
                    {"name": "second", "listen": "127.0.0.1:0", "server": "192.0.2.1"},
                ],
                "match": [
                    {"name": "same", "ports": [587], "rules": ["x"]},
                    {"name": "other", "ports": [465], "server": "192.0.2.2"},
                ],
            }
        )
        first, second = Making(Setup(config, {"": GENERAL}), r.materials).plans()
        same, other = (plan for _, plan in first.matches)
        assert first.default.tls is not None
        assert first.default.tls is same.tls
        assert first.default.tls is not other.tls
        assert first.default.tls is not second.default.tls
