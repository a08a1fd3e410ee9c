"""PROXY headers between HAProxy and us: what it sends we read, what we send it reads, and both mean the same.

HAProxy is the protocol's own implementation. It stands before a socket that captures what it sends, header and all;
behind `accept-proxy` it tells by its own header what it understood of ours. Postfix takes ours as it would HAProxy's.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import pytest
import trustme

from smtpproxy.net.proxyheader import (
    ALPN,
    AUTHORITY,
    CRC32C,
    SENT,
    TLV,
    UNIQUE_ID,
    Address,
    HeaderError,
    ProxyHeader,
    encode,
    parse,
    passed_on,
    shown,
    tls_tlvs,
)
from tests.net.proxy_headers import CLIENT, CLIENT_6, DESTINATION, DESTINATION_6, GOOD
from tests.peers import PeerError, PeerUnavailable, unavailable
from tests.peers.process import HOST, STEP, Program, Scratch, find, free_port
from tests.peers.servers import start_postfix
from tests.peers.tls import Authority, Trust, strict_context

pytestmark = pytest.mark.peers

SECONDS = 20.0
HELLO = b"EHLO client.src.example\r\n"
NAME = "mx.dst.example"

GLOBAL = """\
global
    nbthread 1
defaults
    mode tcp
    timeout connect 20s
    timeout client 20s
    timeout server 20s
"""
# Each listens at {bind}, for clients by which it says to {server} who they are.
TLS = "ssl crt {pem} alpn smtp ca-file {clients} verify optional"
ALL = "send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c,unique-id"
UNDERSTOOD = "unique-id-format %[fc_pp_authority]/%[fc_pp_unique_id]"
WAYS: dict[str, tuple[str, str, str]] = {  # what stands behind `bind`, behind `server`, and besides
    "v1": ("", "send-proxy", ""),
    "v2": ("", "send-proxy-v2", ""),
    "v2-all": ("", ALL, "unique-id-format id-%cp"),
    "v2-ssl-cn": (TLS, "send-proxy-v2-ssl-cn", ""),
    "v2-all-tls": (TLS, ALL, "unique-id-format id-%cp"),
    "from-us-v1": ("accept-proxy", "send-proxy", ""),
    "from-us-v2": ("accept-proxy", "send-proxy-v2 proxy-v2-options unique-id,crc32c", UNDERSTOOD),
}
SECTION = """\
listen {way}
    bind {host}:{port} {bind}
    bind ::1:{port} {bind}
    bind :::{both} v4v6 {bind}
    bind unix@{directory}/{way}.sock {bind}
    {besides}
    server captured {server} {options}
"""
CHECKS = """\
listen checks-{way}
    bind unix@{directory}/checks-{way}.sock
    option tcp-check
    tcp-check connect default
    tcp-check expect string 220
    server captured {server} {way} check inter 500ms
"""
READY = """\
listen ready
    bind {host}:{port}
    tcp-request connection reject
"""


class Heard(NamedTuple):
    """What came to the socket behind HAProxy, and both ends of the link of HAProxy's client."""

    octets: bytes
    ours: Address
    theirs: Address

    @property
    def header(self) -> ProxyHeader:
        """Read in any cut; what the client said stands behind it."""
        found = parse(self.octets)
        assert found is not None
        assert [parse(self.octets[:end]) for end in range(found.length)] == [None] * found.length
        assert self.octets[found.length :] == HELLO
        return found


class HAProxy:
    """One HAProxy with all WAYS."""

    def __enter__(self) -> Self:
        program = find("haproxy")
        self._stack = ExitStack()
        with self._stack:  # until all of it stands
            self._scratch = Scratch("haproxy")
            self._stack.callback(self._scratch.remove)
            self._backend = self._stack.enter_context(socket.create_server((HOST, 0)))
            self._backend.settimeout(SECONDS)
            self.checked = {
                way: self._stack.enter_context(socket.create_server((HOST, 0)))
                for way in ("send-proxy", "send-proxy-v2")
            }
            self._identities()
            for attempt in (1, 2, 3):  # somebody else may take a port before it does
                try:
                    self._start(program)
                    break
                except PeerError:
                    if attempt == 3:
                        raise
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _identities(self) -> None:
        self.authority = Authority(self._scratch.path)
        chain, key = self.authority.identity(NAME, rsa=True)
        self._pem = self._scratch.write("server.pem", (chain + key).decode(), 0o600)
        clients = trustme.CA()
        self._clients = self._scratch.path / "clients.pem"
        clients.cert_pem.write_to_path(self._clients)
        leaf = clients.issue_cert("client.src.example", common_name="client.src.example")
        self.client_pem = self._scratch.path / "client.pem"
        leaf.private_key_and_cert_chain_pem.write_to_path(self.client_pem)

    def _start(self, program: str) -> None:
        self._ports = {way: (free_port(), free_port()) for way in WAYS}
        ready = free_port()
        text = GLOBAL
        for way, (bind, options, besides) in WAYS.items():
            port, both = self._ports[way]
            text += SECTION.format(
                way=way,
                host=HOST,
                port=port,
                both=both,
                bind=bind.format(pem=self._pem, clients=self._clients),
                directory=self._scratch.path,
                besides=besides,
                server=self._server(self._backend),
                options=options,
            )
        for way, sock in self.checked.items():
            text += CHECKS.format(way=way, directory=self._scratch.path, server=self._server(sock))
        text += READY.format(host=HOST, port=ready)  # the last one that is bound
        config = self._scratch.write("haproxy.cfg", text)
        running = Program([program, "-db", "-f", str(config)], log=self._scratch.path / "log")
        try:
            self._await(running, ready)
        except BaseException:
            running.stop()
            raise
        self._stack.enter_context(running)

    def _await(self, running: Program, port: int) -> None:
        deadline = time.monotonic() + SECONDS
        while running.running and time.monotonic() < deadline:
            try:
                socket.create_connection((HOST, port), timeout=SECONDS).close()
                return
            except OSError:
                time.sleep(STEP)
        raise PeerError(f"HAProxy does not listen:\n{running.log.read_text(errors='replace')}")

    @staticmethod
    def _server(sock: socket.socket) -> str:
        host, port = sock.getsockname()
        return f"{host}:{port}"

    def connect(self, way: str, host: str = HOST) -> socket.socket:
        """As a client. `host`: where it listens; "unix", or "both" for the socket that has both families."""
        if host == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(SECONDS)
            sock.connect(str(self._scratch.path / f"{way}.sock"))
            return sock
        port, both = self._ports[way]
        return socket.create_connection((HOST, both) if host == "both" else (host, port), timeout=SECONDS)

    def heard(self, client: socket.socket, octets: bytes = HELLO) -> Heard:
        """What comes of it that a client says something, HELLO last."""
        client.sendall(octets)
        captured, _ = self._backend.accept()
        with captured:
            captured.settimeout(SECONDS)
            return Heard(captured_octets(captured, HELLO), end(client.getsockname()), end(client.getpeername()))

    def understood(self, header: bytes, way: str = "from-us-v2") -> Heard | None:
        """What it makes of a header of ours; None: it wants no such client."""
        with self.connect(way) as client, selectors.DefaultSelector() as selector:
            client.sendall(header + HELLO)
            for sock in (client, self._backend):
                selector.register(sock, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(SECONDS)]
            assert ready, "it neither closes nor connects"
            if self._backend not in ready:
                return None
            captured, _ = self._backend.accept()
            with captured:
                captured.settimeout(SECONDS)
                octets = captured_octets(captured, HELLO)
            return Heard(octets, end(client.getsockname()), end(client.getpeername()))


def end(name: object) -> Address:
    """One end of a link of TCP; of another, nothing that could be one."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else ("", 0)


def captured_octets(sock: socket.socket, last: bytes) -> bytes:
    octets = b""
    while not octets.endswith(last):
        more = sock.recv(4096)
        assert more, f"it ended behind {octets!r}"
        octets += more
    return octets


@pytest.fixture(scope="module")
def haproxy() -> Iterator[HAProxy]:
    with ExitStack() as stack:
        try:
            balancer = stack.enter_context(HAProxy())
        except PeerUnavailable as error:
            unavailable(error)
        yield balancer


def without_sum(tlvs: Sequence[TLV]) -> tuple[TLV, ...]:
    return tuple(tlv for tlv in tlvs if tlv[0] != CRC32C)


# ------------------------------------------------------------------------------------------------- read


@pytest.mark.parametrize("host", [HOST, "::1", "both"])
@pytest.mark.parametrize("way", ["v1", "v2"])
def test_the_client_is_who_haproxy_says_it_is(way: str, host: str, haproxy: HAProxy) -> None:
    with haproxy.connect(way, host) as client:
        heard = haproxy.heard(client)
    header = heard.header
    assert (header.version, header.local, header.tlvs) == (int(way[1]), False, ())
    assert (header.client, header.destination) == (heard.ours, heard.theirs)


@pytest.mark.parametrize("way", ["v1", "v2"])
def test_a_client_that_has_no_address(way: str, haproxy: HAProxy) -> None:
    """Of a UNIX socket: UNKNOWN, LOCAL."""
    with haproxy.connect(way, "unix") as client:
        header = haproxy.heard(client).header
    assert (header.version, header.local, header.client, header.destination) == (int(way[1]), True, None, None)


def test_the_checks_of_haproxy(haproxy: HAProxy) -> None:
    """Version 1 says the addresses of the check itself, version 2 LOCAL."""
    for way, version in (("send-proxy", 1), ("send-proxy-v2", 2)):
        sock = haproxy.checked[way]
        sock.settimeout(SECONDS)
        captured, peer = sock.accept()
        with captured:
            captured.settimeout(SECONDS)
            octets = b""
            while (header := parse(octets)) is None:
                more = captured.recv(1)  # there is nothing behind it
                assert more
                octets += more
            captured.sendall(b"220 mx.dst.example\r\n")
        assert (header.version, header.local, header.length) == (version, version == 2, len(octets))
        if version == 1:
            assert (header.client, header.destination) == (end(peer), end(sock.getsockname()))


def test_all_options_for_a_client_in_clear(haproxy: HAProxy) -> None:
    """HAProxy says of TLS that there is none, and how a certificate was verified nevertheless."""
    with haproxy.connect("v2-all") as client:
        heard = haproxy.heard(client)
    header = heard.header
    assert (header.client, header.destination) == (heard.ours, heard.theirs)
    assert [kind for kind, _ in header.tlvs].count(CRC32C) == 1
    record = shown(header)
    assert record["unique-id"] == f"id-{heard.ours[1]}"
    assert record["ssl"] == {"client": [], "verify": 0}
    assert "authority" not in record


@pytest.mark.parametrize("certificate", [False, True])
@pytest.mark.parametrize("way", ["v2-ssl-cn", "v2-all-tls"])
def test_tls_that_ends_at_haproxy(way: str, certificate: bool, haproxy: HAProxy) -> None:
    context = strict_context(Trust(haproxy.authority.roots, NAME))
    context.set_alpn_protocols(["smtp"])
    if certificate:
        context.load_cert_chain(haproxy.client_pem)
    with context.wrap_socket(haproxy.connect(way)) as client:
        heard = haproxy.heard(client)
        version, cipher = client.version(), client.cipher()
    header = heard.header
    assert (header.client, header.destination) == (heard.ours, heard.theirs)
    record = shown(header)
    tls = record["ssl"]
    assert tls["client"] == ["tls", *(["certificate", "certificate-in-session"] if certificate else [])]
    assert (tls["verify"], tls["version"]) == (0, version)
    assert tls.get("cn") == ("client.src.example" if certificate else None)
    assert record["alpn"] == "smtp"
    if way == "v2-all-tls":
        assert cipher is not None
        assert (tls["cipher"], tls["sig-alg"], tls["key-alg"]) == (cipher[0], "ecdsa-with-SHA256", "RSA2048")
        assert (record["authority"], record["unique-id"]) == (NAME, f"id-{heard.ours[1]}")
    changed = bytearray(heard.octets)
    changed[16] ^= 1
    if way == "v2-all-tls":
        with pytest.raises(HeaderError, match="checksum"):
            parse(bytes(changed))
    else:
        assert parse(bytes(changed)) != header


# ------------------------------------------------------------------------------------------------- written


PAIRS = {
    "IPv4": (CLIENT, DESTINATION),
    "IPv6": (CLIENT_6, DESTINATION_6),
    "from IPv4 to IPv6": (CLIENT, DESTINATION_6),
    "from IPv6 to IPv4": (CLIENT_6, DESTINATION),
}


@pytest.mark.parametrize("way", ["from-us-v1", "from-us-v2"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("pair", PAIRS)
def test_haproxy_understands_whom_we_mean(pair: str, version: int, way: str, haproxy: HAProxy) -> None:
    client, destination = PAIRS[pair]
    heard = haproxy.understood(encode(version, client, destination), way)
    assert heard is not None
    assert (heard.header.client, heard.header.destination) == (client, destination)


@pytest.mark.parametrize("version", [1, 2])
def test_haproxy_understands_that_it_is_us(version: int, haproxy: HAProxy) -> None:
    heard = haproxy.understood(encode(version, None, None))
    assert heard is not None
    assert (heard.header.client, heard.header.destination) == (heard.ours, heard.theirs)


def test_haproxy_understands_what_else_we_say(haproxy: HAProxy) -> None:
    tlvs = [(UNIQUE_ID, b"session-7"), *tls_tlvs("TLSv1.3", "TLS_AES_256_GCM_SHA384", NAME, "smtp")]
    octets = encode(2, CLIENT_6, DESTINATION_6, tlvs)
    heard = haproxy.understood(octets)
    assert heard is not None
    assert dict(heard.header.tlvs)[UNIQUE_ID] == f"{NAME}/session-7".encode()
    for at in (16, 51, len(octets) - 1):  # an address, a port, a name
        changed = octets[:at] + bytes([octets[at] ^ 1]) + octets[at + 1 :]
        assert haproxy.understood(changed) is None, "the checksum was not looked at"


def test_what_haproxy_said_is_passed_on_to_another(haproxy: HAProxy) -> None:
    context = strict_context(Trust(haproxy.authority.roots, NAME))
    context.set_alpn_protocols(["smtp"])
    with context.wrap_socket(haproxy.connect("v2-all-tls")) as client:
        header = haproxy.heard(client).header
    octets = encode(2, header.client, header.destination, passed_on(header))
    again = parse(octets)
    assert again is not None
    assert without_sum(again.tlvs) == passed_on(header)
    assert {kind for kind, _ in again.tlvs} >= {ALPN, AUTHORITY, UNIQUE_ID}
    heard = haproxy.understood(octets)
    assert heard is not None
    assert (heard.header.client, heard.header.destination) == (header.client, header.destination)
    assert dict(heard.header.tlvs)[UNIQUE_ID] == b"/".join(dict(header.tlvs)[kind] for kind in (AUTHORITY, UNIQUE_ID))


# ------------------------------------------------------------------------------------------------- the same meaning

# Where HAProxy 2.6 takes less: nothing behind UNKNOWN, which by the specification is to be ignored, and no connection
# of AF_UNSPEC, which may be refused by it.
STRICTER = {name for name in GOOD if name.startswith(("UNKNOWN ", "UNKNOWN, ", "v2 UNSPEC"))}


@pytest.mark.parametrize("name", GOOD)
def test_a_header_means_to_us_what_it_means_to_haproxy(name: str, haproxy: HAProxy) -> None:
    octets, ours = GOOD[name]
    heard = haproxy.understood(octets)
    if heard is None:
        assert name in STRICTER
        return
    expected = (heard.ours, heard.theirs) if ours.local else (ours.client, ours.destination)
    assert (heard.header.client, heard.header.destination) == expected


@pytest.mark.parametrize("name", ["TCP4", "TCP6", "TCP6, ::ffff:192.0.2.1"])
def test_no_header_means_something_else_to_haproxy(name: str, haproxy: HAProxy) -> None:
    """With one character changed, most are none for us; of those that are one, it thinks the same."""
    octets, _ = GOOD[name]
    tried = 0
    for at in range(11, len(octets) - 2):
        for character in b"0", b"9", b":", b".", b" ", b"f", b"::", b"00":
            changed = octets[:at] + character + octets[at + 1 :]
            try:
                ours = parse(changed)
            except HeaderError:
                continue
            assert ours is not None
            heard = haproxy.understood(changed)
            assert heard is not None, changed
            assert (heard.header.client, heard.header.destination) == (ours.client, ours.destination), changed
            tried += 1
    assert tried > 40


# ------------------------------------------------------------------------------------------------- Postfix

POSTFIX = """\
inet_protocols = all
smtpd_relay_restrictions = reject_unauth_destination
smtpd_upstream_proxy_protocol = haproxy
"""


@pytest.fixture(scope="module")
def postfix() -> Iterator[tuple[int, Path]]:
    """Its port, and its log."""
    scratch, port = Scratch("postfix"), free_port()
    with ExitStack() as stack:
        stack.callback(scratch.remove)
        try:
            stack.enter_context(start_postfix(scratch, port, POSTFIX))
        except PeerUnavailable as error:
            unavailable(error)
        yield port, scratch.path / "log.mail"


def greeting(port: int, header: bytes) -> bytes:
    """What it greets such a client with, once it is there."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            sock = socket.create_connection((HOST, port), timeout=SECONDS)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(STEP)
    with sock, sock.makefile("rb") as lines:
        sock.sendall(header)
        said = lines.readline()
        sock.sendall(b"QUIT\r\n")
        assert lines.readline().startswith(b"221 ")
        return said


def full(client: Address, destination: Address) -> bytes:
    """A header as long as any that we send."""
    room = SENT - len(encode(2, client, destination))
    octets = encode(2, client, destination, [(AUTHORITY, b"x" * (room - 3))])
    assert len(octets) == SENT
    return octets


TOLD = {  # and the address that it is to log
    "version 1": (encode(1, ("192.0.2.11", 4321), DESTINATION), "192.0.2.11"),
    "version 1, IPv6": (encode(1, ("2001:db8::12", 4321), DESTINATION_6), "2001:db8::12"),
    "version 1, from IPv4 to IPv6": (encode(1, ("192.0.2.13", 4321), DESTINATION_6), "192.0.2.13"),
    "version 2": (encode(2, ("192.0.2.14", 4321), DESTINATION), "192.0.2.14"),
    "version 2, longest": (full(("192.0.2.15", 4321), DESTINATION), "192.0.2.15"),
    "version 2, IPv6, longest": (full(("2001:db8::16", 4321), DESTINATION_6), "2001:db8::16"),
    "version 2, our own": (encode(2, None, None), HOST),
}


@pytest.mark.parametrize("name", TOLD)
def test_postfix_understands_whom_we_mean(name: str, postfix: tuple[int, Path]) -> None:
    octets, client = TOLD[name]
    port, log = postfix
    assert greeting(port, octets).startswith(b"220 ")
    deadline = time.monotonic() + SECONDS
    while f" connect from unknown[{client}]\n" not in log.read_text():  # it logs when it gets to it
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(STEP)
