"""SMTP smuggling: what looks like the end of a message to a server must not let a second mail pass the proxy.

The servers are real and lenient: Postfix with Debian 12's defaults, and aiosmtpd 1.4.4. Each look-alike of
CRLF.CRLF stands in the body, and at the very start of the content, before a complete transaction; the true
end of data comes behind it. What the proxy does with the message is its own affair: the server gets one mail
or none.
`test_the_server_alone_is_vulnerable` shows that the other tests can fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count

import pytest

from tests.peers import PeerUnavailable, unavailable
from tests.peers.clients import NAME, Wire, smtplib_client
from tests.peers.conftest import Servers
from tests.peers.proxy import DIRECT, Proxy
from tests.peers.servers import SERVERS, Server

pytestmark = pytest.mark.peers

SECONDS = 20.0
NUMBERS = count(1)
SMUGGLED = "smuggled@evil.example"
LENIENT = ("postfix", "aiosmtpd")

LOOK_ALIKES = [
    b"\n.\n",
    b"\n.\r",
    b"\r.\n",
    b"\r.\r",
    b"\n.\r\n",
    b"\r.\r\n",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n\x00.\r\n",
    b"\r\n.\x00\r\n",
    b"\n\n.\n\n",
]


def named(look_alike: bytes) -> str:
    names = {0: "nul", 10: "lf", 13: "cr", 46: "dot"}
    return "-".join(names[octet] for octet in look_alike)


BODY = b"Subject: honest\r\n\r\nbody"
# At the very start the line end before the dot is that of DATA, so the look-alike also comes without one.
STARTS = [*LOOK_ALIKES, *sorted({look_alike.lstrip(b"\r\n") for look_alike in LOOK_ALIKES} - {b".\r\n"})]
CONTENTS = [
    *(pytest.param(BODY + look_alike, id="body-" + named(look_alike)) for look_alike in LOOK_ALIKES),
    *(pytest.param(look_alike, id="start-" + named(look_alike)) for look_alike in STARTS),
]
HIDDEN = (
    f"MAIL FROM:<{SMUGGLED}>\r\nRCPT TO:<victim@dst.example>\r\nDATA\r\n"
    "From: admin@dst.example\r\nSubject: smuggled\r\n\r\nsmuggled\r\n.\r\n"
).encode()


def attack(host: str, port: int, sender: str, content: bytes) -> str:
    """Sends `content`, the hidden transaction and QUIT in one go; all replies until the peer closes."""
    replies = list[str]()
    with Wire(host, port, SECONDS) as wire:
        wire.expect(220)
        wire.command(f"EHLO {NAME}", 250)
        wire.command(f"MAIL FROM:<{sender}>", 250)
        wire.command("RCPT TO:<victim@dst.example>", 250)
        wire.command("DATA", 354)
        try:
            wire.send(content + HIDDEN + b"QUIT\r\n")
            while True:
                replies.append(wire.reply()[1])
        except (EOFError, ConnectionError):
            return "\n".join(replies)
        except TimeoutError:
            raise AssertionError(f"nobody closed the connection after QUIT: {replies}") from None


def settle(server: Server) -> None:
    """Returns when the server has stored a mail that was given to it after all others."""
    recipient = f"marker-{next(NUMBERS)}@dst.example"
    smtplib_client(server.host, server.port, "marker@src.example", [recipient], b"Subject: marker\r\n\r\n")
    server.wait_for(1, SECONDS, to=recipient)


def senders(server: Server) -> list[str]:
    return [mail.sender for mail in server.mails()]


def smuggled(server: Server) -> int:
    """How often a mail was smuggled; Postfix's log tells of one that is still on its way."""
    return senders(server).count(SMUGGLED) + server.log().count(f"from=<{SMUGGLED}>")


@pytest.fixture(scope="module")
def proxies(servers: Servers) -> Iterator[dict[str, Proxy]]:
    """A proxy before each lenient server; they end, and must end well, with the module."""
    if DIRECT:
        pytest.skip("there is no proxy to test with SMTPPROXY_PEERS_DIRECT=1")
    with ExitStack() as stack:
        yield {name: stack.enter_context(Proxy(servers[name].host, servers[name].port)) for name in LENIENT}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("server_name", LENIENT)
def test_nothing_is_smuggled(server_name: str, content: bytes, servers: Servers, proxies: dict[str, Proxy]) -> None:
    server, proxy = servers[server_name], proxies[server_name]
    sender = f"honest-{next(NUMBERS)}@src.example"
    before = smuggled(server)  # by now; each case is to fail for itself only
    replies = attack(proxy.host, proxy.port, sender, content)
    settle(server)
    assert smuggled(server) == before, replies
    assert senders(server).count(sender) <= 1, replies


@pytest.mark.parametrize("server_name", LENIENT)
def test_an_honest_mail_passes(server_name: str, servers: Servers, proxies: dict[str, Proxy]) -> None:
    """The other side of the coin: the proxies of this module do let mails through."""
    server, proxy = servers[server_name], proxies[server_name]
    recipient = f"honest-{next(NUMBERS)}@dst.example"
    content = b"Subject: honest\r\n\r\n.\r\n" + HIDDEN.replace(b"\r\n.\r\n", b"\r\n")
    smtplib_client(proxy.host, proxy.port, "honest@src.example", [recipient], content)
    assert [mail.wire for mail in server.wait_for(1, SECONDS, to=recipient)] == [content]


@pytest.mark.parametrize(
    ("server_name", "content"),
    [
        pytest.param("postfix", BODY + b"\n.\n", id="postfix-lf"),
        pytest.param("postfix", BODY + b"\n.\r\n", id="postfix-lf-crlf"),
        pytest.param("postfix", b".\n", id="postfix-start"),
        pytest.param("aiosmtpd", BODY + b"\n.\r\n", id="aiosmtpd-lf-crlf"),
    ],
)
def test_the_server_alone_is_vulnerable(server_name: str, content: bytes) -> None:
    """Always without the proxy, and with a server of its own that may be soiled."""
    try:
        with SERVERS[server_name]() as server:
            replies = attack(server.host, server.port, "honest@src.example", content)
            server.wait_for(2, SECONDS)
            assert sorted(senders(server)) == ["honest@src.example", SMUGGLED], replies
    except PeerUnavailable as error:
        unavailable(error)
