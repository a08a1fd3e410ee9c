"""Every client through the proxy to every server: each mail arrives once, unchanged, and is recorded once."""

from __future__ import annotations

import smtplib
from collections import Counter
from itertools import count

import pytest

from tests.peers import PeerUnavailable, unavailable
from tests.peers.clients import CLIENTS, smtp_source
from tests.peers.conftest import Servers
from tests.peers.contents import CONTENTS, HEADER
from tests.peers.proxy import Direct, Proxy, between
from tests.peers.servers import SERVERS, Server

pytestmark = pytest.mark.peers

SECONDS = 20.0
NUMBERS = count(1)  # makes every address of this run unique, so that servers can be shared

CELLS = [
    pytest.param(client, server, id=f"{client}-{server}")
    for server, kind in SERVERS.items()
    for client in CLIENTS
    if client != "bdat" or "CHUNKING" in kind.offers
]


def assert_commits(proxy: Proxy | Direct, n: int) -> None:
    """Exactly `n` mails are recorded as committed, by a proxy that has ended."""
    if isinstance(proxy, Proxy):
        assert len(proxy.of_kind("tx-commit")) == n, proxy.records()


@pytest.mark.parametrize(("client", "server_name"), CELLS)
def test_mails_arrive_once_and_unchanged(client: str, server_name: str, servers: Servers) -> None:
    server = servers[server_name]
    expected = dict[str, tuple[str, bytes]]()
    proxy = between(server.host, server.port)
    try:
        with proxy, CLIENTS[client](proxy.host, proxy.port) as deliver:
            for body in CONTENTS.values():
                number = next(NUMBERS)
                sender = f"sender-{number}@src.example"
                recipients = [f"first-{number}@dst.example", f"second-{number}@sub.dst.example"]
                content = HEADER + body
                if client == "smtpsource":  # it knows one recipient only and ends with an empty line
                    recipients.pop()
                    content = HEADER + body + b"\r\n" if body else HEADER
                expected |= dict.fromkeys(recipients, (sender, content))
                deliver(sender, recipients, content)
            for recipient in expected:
                server.wait_for(1, SECONDS, to=recipient)
    except PeerUnavailable as error:
        unavailable(error)
    for recipient, (sender, content) in expected.items():
        mails = server.wait_for(1, SECONDS, to=recipient)
        assert [(mail.sender, mail.wire) for mail in mails] == [(sender, content)]
    assert_commits(proxy, len(CONTENTS))


@pytest.mark.parametrize("server_name", SERVERS)
def test_sessions_at_once(server_name: str, servers: Servers) -> None:
    server = servers[server_name]
    recipient = f"many-{next(NUMBERS)}@dst.example"
    content = HEADER + CONTENTS["dots"] + b"\r\n"
    proxy = between(server.host, server.port)
    try:
        with proxy:
            smtp_source(proxy.host, proxy.port, "many@src.example", [recipient], content, mails=40, sessions=8)
            server.wait_for(40, SECONDS, to=recipient)
    except PeerUnavailable as error:
        unavailable(error)
    assert [mail.wire for mail in server.wait_for(40, SECONDS, to=recipient)] == [content] * 40
    assert_commits(proxy, 40)


def test_nothing_arrived_again_later(servers: Servers) -> None:
    """Runs after those above, whose recipients are unique: each still has one mail."""
    for server in servers.running():
        seen = Counter(recipient for mail in server.mails() for recipient in mail.recipients)
        again = {who: n for who, n in seen.items() if n > 1 and who.startswith(("first-", "second-"))}
        assert not again


@pytest.mark.parametrize("server_name", SERVERS)
def test_a_server_offers_what_it_says(server_name: str, servers: Servers) -> None:
    """Without the proxy: the matrix leaves cells out by `offers`, so it has to be true."""
    server: Server = servers[server_name]
    with smtplib.SMTP(server.host, server.port, timeout=SECONDS) as client:
        client.ehlo("client.src.example")
        assert {keyword.upper() for keyword in client.esmtp_features} == server.offered
    assert server.pids
