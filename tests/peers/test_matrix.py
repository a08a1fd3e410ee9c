"""Every client through the proxy to every server: each mail arrives once, unchanged, and is recorded once."""

from __future__ import annotations

import smtplib
from collections import Counter
from itertools import count

import pytest

from tests.peers import PeerUnavailable, unavailable
from tests.peers.clients import CLIENTS, smtp_source
from tests.peers.conftest import Servers
from tests.peers.proxy import Direct, Proxy, between
from tests.peers.servers import SERVERS, Server

pytestmark = pytest.mark.peers

SECONDS = 20.0
NUMBERS = count(1)  # makes every address of this run unique, so that servers can be shared

HEADER = (
    b"From: Sender <sender@src.example>\r\n"
    b"To: recipient@dst.example\r\n"
    b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n"
    b"Date: Mon, 02 Jan 2023 03:04:05 +0000\r\n"
    b"Message-ID: <matrix@src.example>\r\n"
    b"MIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n"
    b"X-Folded: one\r\n two\r\n\tthree\r\n"
    b"\r\n"
)
OCTETS = bytes(set(range(1, 256)) - set(b"\r\n"))
CONTENTS = {
    "plain": b"hello\r\n",
    "empty": b"",
    "dots": b".\r\n..\r\n...\r\n.x\r\n .\r\n. \r\n.\t\r\n\r\n.\r\n\r\n..\r\n.\r\n",
    "octets": b"gr\xc3\xbc\xc3\x9fe\r\nlatin \xe4\xf6\xfc\r\n" + OCTETS + b"\r\n",
    "long": b"".join(b"%0*d\r\n.%0*d\r\n" % (998, n, 997, n) for n in range(100)),
    "lines": b"\r\n\r\nFrom somebody\r\n>From somebody\r\nRSET\r\nQUIT\r\n \r\n\t\r\n\r\n\r\n",
}

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
            smtp_source(proxy.host, proxy.port, "many@src.example", [recipient], content, 40, 8)
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
        assert {keyword.upper() for keyword in client.esmtp_features} == server.offers
    assert server.pids
