"""TLS on both links of the proxy, with real clients and servers.

Through a proxy that verifies the server and shows a certificate of its CA, every client delivers to every server, in
TLS on both links, each mail once and octet for octet; the clients insist on TLS, on the proxy's CA and on the
server's name. Then each pair of postures, and what happens when the server is not who it should be: no client's mail
gets through, least of all in clear.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.peers import PeerError, PeerUnavailable, unavailable
from tests.peers.clients import TLS_CLIENTS, Wire, run, smtplib_client
from tests.peers.conftest import Servers
from tests.peers.contents import CONTENTS, HEADER
from tests.peers.process import Scratch, find
from tests.peers.proxy import DIRECT, KIND, Proxy, smtpproxy
from tests.peers.servers import SERVERS, TLS_SERVERS, Postfix, Server
from tests.peers.tls import Authority, Trust, careless_context

pytestmark = pytest.mark.peers

SECONDS = 20.0
NUMBERS = count(1)
CONTENT = HEADER + CONTENTS["dots"]
MODERN = ("TLSv1.2", "TLSv1.3")

CELLS = [
    pytest.param(client, server, id=f"{client}-{server}")
    for server in TLS_SERVERS
    for client in TLS_CLIENTS
    if client != "bdat" or "CHUNKING" in SERVERS[server].offers
]
needs_proxy = pytest.mark.skipif(DIRECT, reason="there is no proxy to test with SMTPPROXY_PEERS_DIRECT=1")


class Minting(NamedTuple):
    """The proxy's own CA."""

    directory: Path
    roots: Path  # its certificate, where every client can read it


@pytest.fixture(scope="module")
def ca() -> Iterator[Minting]:
    scratch = Scratch("ca")
    made = Minting(scratch.path / "ca", scratch.path / "proxy.crt")
    smtpproxy("ca", "init", "--directory", str(made.directory))
    smtpproxy("ca", "export", "--directory", str(made.directory), "--out", str(made.roots))
    made.roots.chmod(0o644)
    yield made
    scratch.remove()


@pytest.fixture(scope="module")
def strangers() -> Iterator[Authority]:
    """A CA that made no certificate of the servers here."""
    scratch = Scratch("strangers")
    yield Authority(scratch.path, "strangers")
    scratch.remove()


def verifying(servers: Servers, server: Server) -> dict[str, object]:
    """The settings of a proxy that knows who the server is."""
    return {"verify": "verify", "roots": servers.authority.roots, "server_name": server.hostname}


class Proxies:
    """A proxy before each server; they end, and must end well, with the module."""

    def __init__(self, servers: Servers, ca: Minting, stack: ExitStack) -> None:
        self._servers, self._ca, self._stack = servers, ca, stack
        self._started: dict[str, Proxy] = {}

    def __getitem__(self, name: str) -> Proxy:
        if name not in self._started:
            server = self._servers.starttls(name)
            proxy = Proxy(server.host, server.port, tls=verifying(self._servers, server), ca=self._ca.directory)
            self._started[name] = self._stack.enter_context(proxy)
        return self._started[name]


@pytest.fixture(scope="module")
def proxies(servers: Servers, ca: Minting) -> Iterator[Proxies]:
    with ExitStack() as stack:
        yield Proxies(servers, ca, stack)


def links(proxy: Proxy, sender: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What is on record of the client's and the server's link of the one mail of `sender`; None: in clear."""
    deadline = time.monotonic() + SECONDS
    while not (commits := [record for record in proxy.of_kind("tx-commit") if sender in record["mail"]]):
        assert time.monotonic() < deadline, proxy.records()
        time.sleep(0.02)
    assert len(commits) == 1, commits
    session = [record for record in proxy.records() if record["session"] == commits[0]["session"]]
    notes = [record for record in session[: session.index(commits[0])] if record[KIND] == "link-tls"]
    return (notes[-1]["client"], notes[-1]["server"]) if notes else (None, None)


def assert_verified_and_minted(proxy: Proxy, sender: str, hostname: str) -> None:
    client, server = links(proxy, sender)
    assert client is not None
    assert server is not None
    assert (client["version"] in MODERN, server["version"] in MODERN) == (True, True)
    assert (client["shown"], server["verified"], server["certificate"]["names"]) == ("minted", True, [hostname])


@pytest.mark.parametrize(("client", "server_name"), CELLS)
def test_mails_in_tls_arrive_once_and_unchanged(
    client: str, server_name: str, servers: Servers, ca: Minting, request: pytest.FixtureRequest
) -> None:
    server = servers.starttls(server_name)
    target: Server | Proxy = server
    if not DIRECT:
        target = request.getfixturevalue("proxies")[server_name]
    trust = Trust(servers.authority.roots if DIRECT else ca.roots, server.hostname)
    expected = dict[str, tuple[str, bytes]]()
    try:
        with TLS_CLIENTS[client](target.host, target.port, trust) as deliver:
            for body in CONTENTS.values():
                number = next(NUMBERS)
                sender = f"secure-{number}@src.example"
                recipients = [f"secure-{number}@dst.example", f"secure-{number}@sub.dst.example"]
                expected |= dict.fromkeys(recipients, (sender, HEADER + body))
                deliver(sender, recipients, HEADER + body)
    except PeerUnavailable as error:
        unavailable(error)
    for recipient, (sender, content) in expected.items():
        mails = server.wait_for(1, SECONDS, to=recipient)
        assert [(mail.sender, mail.encrypted, mail.wire) for mail in mails] == [(sender, True, content)]
        if isinstance(target, Proxy):
            assert_verified_and_minted(target, sender, server.hostname)


# -------------------------------------------------------------------------------------------------- postures


class Row(NamedTuple):
    """A pair of postures, the peers' links, and what is to become of them."""

    client: str
    server: str
    of_server: str  # what the server has: clear, starttls or implicit
    of_client: str  # what the client insists on: the same words
    encrypted: bool  # the server's link
    given: bool = False  # the proxy has a certificate: nobody vouches for a server that shows none


POSTURES = [
    Row("mirror", "mirror", "starttls", "starttls", True),
    Row("mirror", "mirror", "starttls", "clear", False),
    Row("mirror", "mirror", "clear", "clear", False),
    Row("mirror", "upgrade", "starttls", "starttls", True),
    Row("mirror", "upgrade", "starttls", "clear", True),
    Row("mirror", "upgrade", "clear", "clear", False),
    Row("mirror", "implicit", "implicit", "starttls", True),
    Row("mirror", "implicit", "implicit", "clear", True),
    Row("offer", "mirror", "starttls", "starttls", True),
    Row("offer", "mirror", "clear", "starttls", False, given=True),
    Row("offer", "upgrade", "clear", "starttls", False, given=True),
    Row("offer", "never", "starttls", "starttls", False),
    Row("offer", "never", "clear", "starttls", False),
    Row("require", "require", "starttls", "starttls", True),
    Row("require", "never", "clear", "starttls", False, given=True),
    Row("implicit", "mirror", "starttls", "implicit", True),
    Row("implicit", "implicit", "implicit", "implicit", True),
    Row("implicit", "never", "clear", "implicit", False),
    Row("refuse", "upgrade", "starttls", "clear", True),
    Row("refuse", "require", "starttls", "clear", True),
    Row("refuse", "implicit", "implicit", "clear", True),
    Row("refuse", "never", "starttls", "clear", False),
]


def the_server(servers: Servers, link: str) -> Server:
    """Exim: its TLS is GnuTLS, the proxy's is OpenSSL."""
    return {"clear": servers.__getitem__, "starttls": servers.starttls, "implicit": servers.implicit}[link]("exim")


@pytest.fixture(scope="module")
def given(servers: Servers) -> Iterator[tuple[Path, Path]]:
    """Certificate and key for the proxy itself, under the server's name."""
    scratch = Scratch("given")
    yield servers.authority.identity(SERVERS["exim"].hostname).write(scratch.path)
    scratch.remove()


@needs_proxy
@pytest.mark.parametrize("row", POSTURES, ids=lambda row: "-".join(row[:4]))
def test_posture(row: Row, servers: Servers, ca: Minting, given: tuple[Path, Path]) -> None:
    server = the_server(servers, row.of_server)
    settings: dict[str, object] = {
        "client": row.client,
        "server": row.server,
        "roots": servers.authority.roots,
        "server_name": server.hostname,
        "hello": "proxy.dst.example",
    }
    roots = ca.roots
    if row.given:
        chain, key = given
        settings["certificates"] = [{"chain": chain, "key": key}]
        roots = servers.authority.roots
    trust = None if row.of_client == "clear" else Trust(roots, server.hostname, row.of_client == "implicit")
    number = next(NUMBERS)
    sender, recipient = f"posture-{number}@src.example", f"posture-{number}@dst.example"
    with Proxy(server.host, server.port, tls=settings, ca=ca.directory) as proxy:
        smtplib_client(proxy.host, proxy.port, sender, [recipient], CONTENT, trust=trust)
        mails = server.wait_for(1, SECONDS, to=recipient)
        assert [(mail.encrypted, mail.wire) for mail in mails] == [(row.encrypted, CONTENT)]
        client_link, server_link = links(proxy, sender)
        assert (client_link is not None, server_link is not None) == (trust is not None, row.encrypted)


@needs_proxy
def test_given_certificate(servers: Servers, strangers: Authority) -> None:
    """The proxy shows what it was given, by the name the client asks for, whatever the server has."""
    server = servers.starttls("postfix")
    names = ("mx.dst.example", "mail.dst.example")
    scratch = Scratch("given")
    try:
        pairs = [strangers.identity(name).write(scratch.path, name) for name in names]
        settings = verifying(servers, server)
        settings["certificates"] = [{"chain": chain, "key": key} for chain, key in pairs]
        with Proxy(server.host, server.port, tls=settings) as proxy:
            for name in names:
                recipient = f"given-{next(NUMBERS)}@dst.example"
                trust = Trust(strangers.roots, name)
                smtplib_client(proxy.host, proxy.port, recipient, [recipient], CONTENT, trust=trust)
                (mail,) = server.wait_for(1, SECONDS, to=recipient)
                assert (mail.encrypted, mail.wire) == (True, CONTENT)
                client, _ = links(proxy, recipient)
                assert client is not None
                assert (client["shown"], client["sni"]) == ("given", name)
    finally:
        scratch.remove()


@needs_proxy
@pytest.mark.parametrize("client", [name for name in TLS_CLIENTS if name != "bdat"])
def test_passthrough(client: str, servers: Servers) -> None:
    """The client sees the server's own certificate; the record says that nothing else was seen."""
    server = servers.starttls("postfix")
    recipient = f"passthrough-{next(NUMBERS)}@dst.example"
    with Proxy(server.host, server.port, tls={"client": "passthrough"}) as proxy:
        try:
            with TLS_CLIENTS[client](
                proxy.host, proxy.port, Trust(servers.authority.roots, server.hostname)
            ) as deliver:
                deliver("blind@src.example", [recipient], CONTENT)
        except PeerUnavailable as error:
            unavailable(error)
        (mail,) = server.wait_for(1, SECONDS, to=recipient)
        assert (mail.encrypted, mail.wire) == (True, CONTENT)
        (note,) = proxy.wait_for_records("link-tls", 1, SECONDS)
        assert note["passthrough"] is True
        (end,) = proxy.wait_for_records("link-close", 1, SECONDS)
        assert end["inspected"] is False


@needs_proxy
def test_require_answers_530(servers: Servers, ca: Minting) -> None:
    server = servers.starttls("postfix")
    settings = verifying(servers, server) | {"client": "require"}
    with Proxy(server.host, server.port, tls=settings, ca=ca.directory) as proxy, Wire(proxy.host, proxy.port) as wire:
        assert "STARTTLS" in wire.greeted()
        assert " 5.7.0 " in wire.command("MAIL FROM:<in.clear@src.example>", 530)
        wire.command("QUIT", 221)
    assert "in.clear@src.example" not in server.log()


# -------------------------------------------------------------------------------------------------- failures


class Wrong(NamedTuple):
    """What is wrong with the server: the proxy has other roots, or another name in mind."""

    strange_roots: bool
    name: str
    result: str


WRONGS = [
    Wrong(True, Postfix.hostname, "certificate-not-trusted"),
    Wrong(False, "other.dst.example", "certificate-host-mismatch"),
]


@needs_proxy
@pytest.mark.parametrize("wrong", WRONGS, ids=lambda wrong: wrong.result)
def test_no_mail_for_a_server_that_is_somebody_else(
    wrong: Wrong, servers: Servers, strangers: Authority, ca: Minting
) -> None:
    """Every client, in one proxy: STARTTLS fails for each, and none sends in clear what it was to send in TLS."""
    server = servers.starttls("postfix")
    roots = strangers.roots if wrong.strange_roots else servers.authority.roots
    settings: dict[str, object] = {"verify": "verify", "roots": roots, "server_name": wrong.name}
    before = len(server.mails())
    with Proxy(server.host, server.port, tls=settings, ca=ca.directory) as proxy:
        with Wire(proxy.host, proxy.port) as wire:
            assert "STARTTLS" in wire.greeted()
            assert " 4.7.0 " in wire.command("STARTTLS", 454)
        for name, client in TLS_CLIENTS.items():
            sender = f"{name}-{next(NUMBERS)}@src.example"
            try:
                with (
                    pytest.raises(PeerError) as refused,
                    client(proxy.host, proxy.port, Trust(ca.roots, wrong.name)) as deliver,
                ):
                    deliver(sender, ["refused@dst.example"], CONTENT)
                if isinstance(refused.value, PeerUnavailable):
                    raise refused.value
            except PeerUnavailable as error:
                unavailable(error)
            assert sender not in server.log()
        assert not proxy.of_kind("tx-begin")
        failed = [note for note in proxy.of_kind("note") if note["anomaly"] == "tls-failed"]
        assert {note["result"] for note in failed} == {wrong.result}
        assert len(failed) >= len(TLS_CLIENTS)
    assert len(server.mails()) == before


@needs_proxy
@pytest.mark.parametrize("link", ["starttls", "implicit", "clear"])
def test_what_did_not_verify_never_verifies(link: str, servers: Servers, strangers: Authority, ca: Minting) -> None:
    """With `record` the server may be anybody; a client that verifies must fail as it would without the proxy."""
    server = the_server(servers, link)
    settings: dict[str, object] = {"client": "offer", "roots": strangers.roots, "server_name": server.hostname}
    if link == "implicit":
        settings["server"] = "implicit"
    recipient = f"unverified-{next(NUMBERS)}@dst.example"
    with Proxy(server.host, server.port, tls=settings, ca=ca.directory) as proxy:
        for roots in (ca.roots, servers.authority.roots, strangers.roots):
            trust = Trust(roots, server.hostname)
            with pytest.raises(PeerError, match="CERTIFICATE_VERIFY_FAILED"):
                smtplib_client(proxy.host, proxy.port, recipient, [recipient], CONTENT, trust=trust)
        assert not proxy.of_kind("tx-begin")
    assert recipient not in server.log()


# -------------------------------------------------------------------------------------------------- weak servers

WEAK = "tls_medium_cipherlist = {ciphers}:@SECLEVEL=0\nsmtpd_tls_ciphers = medium\nsmtpd_tls_protocols = {protocols}\n"
WEAK_SERVERS = {
    "TLS 1.0": ("ALL", "TLSv1"),
    "TLS 1.1": ("ALL", "TLSv1.1"),
    "anonymous": ("aNULL", "TLSv1.2"),
    "no encryption": ("eNULL", "TLSv1.2"),
    "RSA key exchange": ("kRSA+AESGCM", "TLSv1.2"),
    "CBC and SHA-1": ("ECDHE-RSA-AES128-SHA:AES128-SHA", "TLSv1.2"),
    "DH of 1024 bits": ("DHE-RSA-AES128-GCM-SHA256", "TLSv1.2"),
}
LEGACY = ("TLS 1.0", "TLS 1.1")
DH = "smtpd_tls_dh1024_param_file = {}\n"


@pytest.fixture(scope="module")
def short_dh() -> Iterator[Path]:
    """Diffie-Hellman parameters of 1024 bits."""
    scratch = Scratch("dh")
    path = scratch.path / "dh.pem"
    run([find("openssl"), "dhparam", "-out", str(path), "1024"])
    yield path
    scratch.remove()


def assert_lax_handshake(server: Server) -> None:
    """Somebody who takes everything does get TLS: it is not broken, but weak."""
    context = careless_context()
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    with socket.create_connection((server.host, server.port), SECONDS) as conn:
        for said in (b"", b"EHLO client.src.example\r\n", b"STARTTLS\r\n"):
            conn.sendall(said)
            conn.recv(4096)
        with context.wrap_socket(conn) as secure:
            secure.sendall(b"EHLO client.src.example\r\n")
            assert secure.recv(4096).startswith(b"250")


@needs_proxy
@pytest.mark.parametrize("weakness", WEAK_SERVERS)
def test_weak_server(weakness: str, servers: Servers, ca: Minting, short_dh: Path) -> None:
    """No TLS with it, and nothing in clear either; where the listener says `legacy`, what is merely old works."""
    identity = servers.authority.identity(Postfix.hostname, rsa=True)
    ciphers, protocols = WEAK_SERVERS[weakness]
    weak = WEAK.format(ciphers=ciphers, protocols=protocols) + DH.format(short_dh)
    try:
        with Postfix(identity, settings=weak) as server:
            assert_lax_handshake(server)
            settings = verifying(servers, server)
            recipient = f"weak-{next(NUMBERS)}@dst.example"
            trust = Trust(ca.roots, server.hostname)
            with Proxy(server.host, server.port, tls=settings, ca=ca.directory) as proxy:
                with Wire(proxy.host, proxy.port) as wire:
                    wire.greeted()
                    wire.command("STARTTLS", 454)
                with pytest.raises(PeerError, match="454"):
                    smtplib_client(proxy.host, proxy.port, recipient, [recipient], CONTENT, trust=trust)
                assert not proxy.of_kind("tx-begin")
            if weakness in LEGACY:
                settings["legacy"] = True
                with Proxy(server.host, server.port, tls=settings, ca=ca.directory) as proxy:
                    smtplib_client(proxy.host, proxy.port, recipient, [recipient], CONTENT, trust=trust)
                    _, link = links(proxy, recipient)
                    assert link is not None
                    assert link["version"] == {"TLS 1.0": "TLSv1", "TLS 1.1": "TLSv1.1"}[weakness]
                (mail,) = server.wait_for(1, SECONDS, to=recipient)
                assert mail.wire == CONTENT
    except PeerUnavailable as error:
        unavailable(error)
