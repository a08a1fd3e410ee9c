"""How a server is told who the client is, on real links."""

from pathlib import Path
from typing import Any

import pytest

from smtpproxy.config import Config, ListenerConfig
from smtpproxy.net.introducing import announcement_of, client_first, foreword_of
from smtpproxy.net.origin import Origin
from smtpproxy.net.proxyheader import encode, parse, shown
from smtpproxy.session.announcing import SILENT, Announce
from smtpproxy.session.state import TLSInfo
from tests.net.rig import rig

CLIENT, GOING, BALANCER = ("198.51.100.7", 4711), ("203.0.113.5", 25), ("10.0.0.9", 999)
PLAIN = Origin(CLIENT, GOING, CLIENT, GOING)


def entry(announce: str, **tls: Any) -> ListenerConfig:
    listener = {"name": "smtp", "listen": "127.0.0.1:0", "server": "192.0.2.1", "announce": announce, "tls": tls}
    return Config.model_validate({"listener": [listener]}).listeners[0]


@pytest.mark.parametrize("version", [1, 2])
def test_a_header_has_both_addresses(version: int) -> None:
    foreword = foreword_of(entry(f"proxy-v{version}"), PLAIN)
    assert foreword is not None
    header = parse(foreword(None))
    assert header is not None
    assert (header.version, header.client, header.destination) == (version, CLIENT, GOING)


@pytest.mark.parametrize("announce", ["none", "xclient", "xforward"])
def test_no_header_where_none_is_wanted(announce: str) -> None:
    assert foreword_of(entry(announce), PLAIN) is None


def test_what_a_load_balancer_said_goes_on() -> None:
    """Of its client, who may speak TLS to it: not of itself."""
    said = parse(encode(2, CLIENT, GOING, [(0x02, b"mx.example"), (0x30, b"ns")]))
    assert said is not None
    foreword = foreword_of(entry("proxy-v2"), Origin(BALANCER, BALANCER, BALANCER, BALANCER).told(said))
    assert foreword is not None
    header = parse(foreword(None))
    assert header is not None
    assert header.client == CLIENT
    assert shown(header)["authority"] == "mx.example"
    assert "netns" not in shown(header)


def test_what_is_known_of_the_client_s_tls_is_told() -> None:
    foreword = foreword_of(entry("proxy-v2"), PLAIN)
    assert foreword is not None
    header = parse(foreword(TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", "mx.example")))
    assert header is not None
    told = shown(header)
    assert told["authority"] == "mx.example"
    assert told["ssl"]["version"] == "TLSv1.3"
    assert told["ssl"]["cipher"] == "TLS_AES_256_GCM_SHA384"


@pytest.mark.parametrize(("announce", "kind"), [("xclient", Announce.XCLIENT), ("xforward", Announce.XFORWARD)])
def test_what_is_told_by_commands(announce: str, kind: Announce) -> None:
    assert announcement_of(entry(announce), PLAIN) == (kind, *CLIENT, *GOING)
    assert announcement_of(entry("proxy-v1"), PLAIN) is SILENT


@pytest.mark.parametrize(
    ("announce", "tls", "first"),
    [
        ("proxy-v2", {"client": "implicit", "server": "never"}, True),
        ("proxy-v2", {"client": "implicit", "certificates": [{"chain": "mx.pem"}]}, True),
        ("proxy-v2", {"client": "implicit"}, False),  # it is shown what the server shows
        ("proxy-v2", {"client": "offer", "server": "never"}, False),
        ("proxy-v1", {"client": "implicit", "server": "never"}, False),  # has no room for it
    ],
)
def test_the_client_s_tls_comes_first_where_it_can_be_told(announce: str, tls: dict[str, Any], first: bool) -> None:
    assert client_first(entry(announce, **tls)) is first


@pytest.mark.parametrize("version", [1, 2])
async def test_a_header_goes_before_everything(version: int, tmp_path: Path) -> None:
    async with rig(tmp_path, settings={"announce": f"proxy-v{version}"}) as r:
        client, server = await r.both()
        host, port = client.name.rpartition(":")[::2]
        await server.expect(encode(version, (host, int(port)), (r.address[0], r.address[1])))
        await client.hello(server)
        await client.ask(b"QUIT\r\n", server, b"221 Bye\r\n")


async def test_a_header_comes_in_and_another_goes_out(tmp_path: Path) -> None:
    settings = {"proxy_from": ["127.0.0.0/8"], "announce": "proxy-v2"}
    async with rig(tmp_path, settings=settings) as r:
        client = await r.connect()
        await client.send(encode(1, CLIENT, GOING))
        server = await r.server.accept()
        await server.expect(encode(2, CLIENT, GOING))
        await client.hello(server)


async def test_xforward_tells_of_the_client(tmp_path: Path) -> None:
    """The session's own tests have the rest."""
    async with rig(tmp_path, settings={"announce": "xforward"}) as r:
        client, server = await r.both()
        await server.send(b"220 mx.example\r\n")
        await client.reply()
        await client.send(b"EHLO me.example\r\n")
        await server.expect(b"EHLO me.example\r\n")
        await server.send(b"250-mx.example\r\n250 XFORWARD NAME ADDR PORT HELO\r\n")
        await client.reply()
        await client.send(b"MAIL FROM:<a@x.example>\r\n")
        line = await server.line()
        assert line.startswith(b"XFORWARD ")
        assert b" ADDR=127.0.0.1 " in line
        assert b" HELO=me.example" in line
