"""The peers with TLS, without the proxy: that a test with them can pass, and that it can fail.

Every server takes a mail in TLS and says so itself; every client delivers in TLS, and delivers nothing where the
certificate is of other roots, or for another name, or where there is no TLS. Each is tried with one partner that is
known to work.
"""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count

import pytest

from tests.peers import PeerError, PeerUnavailable, unavailable
from tests.peers.clients import NAMELESS, TLS_CLIENTS
from tests.peers.conftest import Servers
from tests.peers.contents import CONTENTS, HEADER
from tests.peers.process import Scratch
from tests.peers.servers import TLS_SERVERS, Server
from tests.peers.tls import Authority, Trust

pytestmark = pytest.mark.peers

SECONDS = 20.0
NUMBERS = count(1)
CONTENT = HEADER + CONTENTS["dots"]


@pytest.fixture(scope="module")
def strangers() -> Iterator[Authority]:
    """A CA that made nobody's certificate."""
    scratch = Scratch("strangers")
    yield Authority(scratch.path, "strangers")
    scratch.remove()


def deliver_one(client: str, server: Server, trust: Trust) -> str:
    """The recipient of the mail that `client` delivered."""
    recipient = f"tls-{next(NUMBERS)}@dst.example"
    try:
        with TLS_CLIENTS[client](server.host, server.port, trust) as deliver:
            deliver("sender@src.example", [recipient], CONTENT)
    except PeerUnavailable as error:
        unavailable(error)
    return recipient


def assert_arrived_encrypted(server: Server, recipient: str) -> None:
    mails = server.wait_for(1, SECONDS, to=recipient)
    assert [(mail.wire, mail.encrypted) for mail in mails] == [(CONTENT, True)]


@pytest.mark.parametrize("server_name", TLS_SERVERS)
def test_server_with_starttls(server_name: str, servers: Servers) -> None:
    server = servers.starttls(server_name)
    with smtplib.SMTP(server.host, server.port, timeout=SECONDS) as client:
        client.ehlo("client.src.example")
        assert {keyword.upper() for keyword in client.esmtp_features} == server.offered
    recipient = deliver_one("smtplib", server, Trust(servers.authority.roots, server.hostname))
    assert_arrived_encrypted(server, recipient)


@pytest.mark.parametrize("server_name", TLS_SERVERS)
def test_server_with_implicit_tls(server_name: str, servers: Servers) -> None:
    server = servers.implicit(server_name)
    recipient = deliver_one("smtplib", server, Trust(servers.authority.roots, server.hostname, implicit=True))
    assert_arrived_encrypted(server, recipient)


@pytest.mark.parametrize("client", TLS_CLIENTS)
def test_client_by_starttls(client: str, servers: Servers) -> None:
    server = servers.starttls("postfix")
    recipient = deliver_one(client, server, Trust(servers.authority.roots, server.hostname))
    assert_arrived_encrypted(server, recipient)


@pytest.mark.parametrize("client", TLS_CLIENTS)
def test_client_by_implicit_tls(client: str, servers: Servers) -> None:
    server = servers.implicit("postfix")
    recipient = deliver_one(client, server, Trust(servers.authority.roots, server.hostname, implicit=True))
    assert_arrived_encrypted(server, recipient)


@pytest.mark.parametrize("client", TLS_CLIENTS)
def test_client_refuses(client: str, servers: Servers, strangers: Authority) -> None:
    """A client that would put up with anything could not show that a certificate is right."""
    server = servers.starttls("postfix")
    before = len(server.mails())
    with pytest.raises(PeerError):
        deliver_one(client, server, Trust(strangers.roots, server.hostname))
    if client not in NAMELESS:
        with pytest.raises(PeerError):
            deliver_one(client, server, Trust(servers.authority.roots, "other.dst.example"))
    clear = servers["postfix"]
    clear_before = len(clear.mails())
    with pytest.raises(PeerError):
        deliver_one(client, clear, Trust(servers.authority.roots, clear.hostname))
    assert (len(server.mails()), len(clear.mails())) == (before, clear_before)


def test_a_mail_in_clear_is_not_taken_for_encrypted(servers: Servers) -> None:
    with ExitStack() as stack:
        for name in TLS_SERVERS:
            server = servers.starttls(name)
            recipient = f"clear-{next(NUMBERS)}@dst.example"
            client = stack.enter_context(smtplib.SMTP(server.host, server.port, timeout=SECONDS))
            client.sendmail("sender@src.example", [recipient], CONTENT)
            assert [mail.encrypted for mail in server.wait_for(1, SECONDS, to=recipient)] == [False], name
