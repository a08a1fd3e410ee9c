"""Mail through a gateway that nobody sees: the proxy, the shipped rules, real clients before it, real servers behind.

Each gateway below is one way of running it. Clients are given nothing but the server's address, and the server has to
be what they meet: peer address, greeting, the names of its certificate. What the server sees is the client's own
address, or the gateway's where that is configured.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.gateway.mail import NUMBERS, SECONDS, GatewayProxy, Route, Sender, loaded
from tests.gateway.namespaces import (
    CLIENT,
    FAR,
    GATEWAY,
    GATEWAY_OUTSIDE,
    OTHER_CLIENT,
    OTHER_SERVER,
    SERVER,
    Addresses,
    Namespace,
    Network,
    eventually,
)
from tests.peers import PeerUnavailable, unavailable
from tests.peers.clients import Wire, swaks
from tests.peers.contents import CONTENTS, HEADER
from tests.peers.process import Scratch
from tests.peers.proxy import smtpproxy
from tests.peers.servers import Exim, Postfix, Server
from tests.peers.tls import Authority, Identity, Trust, careless_context, strict_context

pytestmark = pytest.mark.peers

Family = socket.AddressFamily

PORT = 2525
CONTENT = HEADER + CONTENTS["dots"]
LARGE = HEADER + b"%076d\r\n" % 0 * 60_000  # 4.7 MB
SERVERS: dict[str, Addresses] = {"postfix": SERVER, "exim": OTHER_SERVER}
LOOP = "the proxy's own connection came back to it"


class Kind(NamedTuple):
    """A way of running it. `ca`: what clients are shown is of a CA they know, and they look; else it is self-signed."""

    mode: str
    source: str
    ca: bool
    process: dict[str, object]


KINDS = {
    "tproxy": Kind("tproxy", "client", True, {"user": "nobody"}),
    "tproxy, own address": Kind("tproxy", "own", False, {}),
    "redirect": Kind("redirect", "own", False, {"user": "nobody"}),
    "redirect, client's address": Kind("redirect", "client", True, {"workers": 1}),
}


def of(**said: str) -> pytest.MarkDecorator:
    """Only with the gateways of which this is true."""
    names = [name for name, kind in KINDS.items() if said.items() <= kind._asdict().items()]
    return pytest.mark.parametrize("gateway", names, indirect=True)


class Site:
    """Everything but the proxy."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.network = stack.enter_context(Network())
        scratch = Scratch("site")
        stack.callback(scratch.remove)
        self.authority = Authority(scratch.path)
        self.ca = scratch.path / "ca"
        self.roots = scratch.path / "proxy.crt"
        smtpproxy("ca", "init", "--directory", str(self.ca))
        smtpproxy("ca", "export", "--directory", str(self.ca), "--out", str(self.roots))
        self.roots.chmod(0o644)
        ports = "smtpd_client_port_logging = yes\n"
        self.servers: dict[str, Server] = {
            "postfix": self._serve(Postfix, self.network.server, SERVER, ports),
            "exim": self._serve(Exim, self.network.server, OTHER_SERVER),
        }
        self.routes = {
            domain(name, family, verified): Route(addresses.of(family), self.servers[name].hostname, verified)
            for name, addresses in SERVERS.items()
            for family in (socket.AF_INET, socket.AF_INET6)
            for verified in (False, True)
        }
        self.sender = stack.enter_context(Sender(self.network.client, self.routes, self.roots))

    def _serve(self, kind: type[Server], machine: Namespace, at: Addresses, settings: str = "") -> Server:
        identity = self.authority.identity(kind.hostname, *at)
        with machine.inside():
            server = kind(identity, at=at, settings=settings)
            return self._stack.enter_context(server)

    def far(self) -> Server:
        """A server one router further: the server's machine, whose way there is narrow."""
        return self._serve(Exim, self.network.beyond(self.network.server, 1300), FAR)


class Gateway(NamedTuple):
    """A proxy that runs, and everything around it."""

    kind: Kind
    proxy: GatewayProxy
    site: Site

    @property
    def network(self) -> Network:
        return self.site.network

    @property
    def keeps(self) -> bool:
        return self.kind.source == "client"

    def seen(self, family: Family) -> str:
        """What the server sees."""
        return CLIENT.of(family) if self.keeps else GATEWAY_OUTSIDE.of(family)

    def call(self, family: Family, host: str, port: int = 25, own: int = 0) -> Wire:
        """The client's connection; from its port `own`."""
        sock = self.network.client.connect(host, port, (CLIENT.of(family), own))
        return Wire("", 0, SECONDS, conn=sock)

    def refused(self, why: str, wire: Wire) -> None:
        """It is told so, the connection is over, and the reason is on record."""
        with wire:
            code, _ = wire.reply()
            assert code in (421, 554)
            with pytest.raises(EOFError):
                wire.reply()
        found = [record["refused"] for record in self.proxy.refusals()]
        assert found
        assert why in found[-1]


def domain(server: str, family: Family, verified: bool) -> str:
    return f"{'verified' if verified else 'any'}.{'v6' if family == socket.AF_INET6 else 'v4'}.{server}.example"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        try:
            made = Site(stack)
        except PeerUnavailable as error:
            unavailable(error)
        yield made


@pytest.fixture(scope="module")
def far(site: Site) -> Server:
    return site.far()


@pytest.fixture(scope="module", params=KINDS)
def gateway(request: pytest.FixtureRequest, site: Site) -> Iterator[Gateway]:
    kind = KINDS[request.param]
    listeners = [
        {"name": name, "listen": f"{host}:{PORT}", "mode": kind.mode, "source": kind.source}
        for name, host in (("v4", "0.0.0.0"), ("v6", "[::]"))
    ]
    exempt = {"name": "exempt", "clients": OTHER_CLIENT, "unseen": True}
    tables, matches = {"process": kind.process}, list[dict[str, object]]([exempt])
    if kind.ca:
        tables["ca"] = {"directory": site.ca}
        for name, server in site.servers.items():  # whom each has to be, where a client's aim is an address
            tls = {"verify": "verify", "roots": site.authority.roots, "server_name": server.hostname}
            matches.append({"name": name, "servers": SERVERS[name], "tls": tls})
    with GatewayProxy(site.network.gateway, listeners, tables, matches) as proxy:
        text = loaded(site.network, proxy)
        yield Gateway(kind, proxy, site)
        site.network.unload(text)


# --------------------------------------------------------------------------------------------------------------- mail


@pytest.mark.parametrize("server_name", SERVERS)
@pytest.mark.parametrize("client", ["swaks", "postfix"])
def test_a_mail_arrives_whole_and_once(gateway: Gateway, client: str, server_name: str, family: Family) -> None:
    site, verified = gateway.site, gateway.kind.ca
    server, address = site.servers[server_name], SERVERS[server_name].of(family)
    number = next(NUMBERS)
    sender, recipient = f"from-{number}@src.example", f"to-{number}@{domain(server_name, family, verified)}"
    if client == "postfix":
        site.sender(sender, [recipient], CONTENT)
    else:
        trust = Trust(site.roots, server.hostname) if verified else None
        with gateway.network.client.inside():
            swaks(address, 25, sender, [recipient], CONTENT, trust=trust, options=[] if verified else ["--tls"])

    (mail,) = server.wait_for(1, SECONDS, to=recipient)
    assert (mail.sender, mail.wire) == (sender, CONTENT)
    assert mail.encrypted

    records = gateway.proxy.session_of(recipient)
    connect, tls, commit = records["link-connect"], records["link-tls"], records["tx-commit"]
    host, _, port = connect["client"].rpartition(":")
    assert host.strip("[]") == CLIENT.of(family)
    seen, seen_port = seen_by(server, commit["reply"])
    assert seen == gateway.seen(family)
    if gateway.keeps:
        assert seen_port == (port if server_name == "postfix" else ""), "Exim logs none"

    goal = f"[{address}]:25" if family == socket.AF_INET6 else f"{address}:25"
    own = f"[{GATEWAY.v6}]:{PORT}" if family == socket.AF_INET6 else f"{GATEWAY.v4}:{PORT}"
    assert connect.get("match") == (server_name if verified else None)
    assert connect["listener"] == ("v6" if family == socket.AF_INET6 else "v4")
    assert connect["server"] == records["link-close"]["server"] == goal
    assert (connect["local"], connect.get("destination")) == (
        (goal, None) if gateway.kind.mode == "tproxy" else (own, goal)
    )
    if client == "swaks":  # Postfix puts a Received of its own before it
        assert commit["octets"] == len(CONTENT)
    assert records["link-close"]["inspected"]
    assert {tls["client"]["version"], tls["server"]["version"]} == {"TLSv1.3"}
    assert tls["client"]["shown"] == ("minted" if verified else "self-signed")
    assert tls["server"]["verified"] is verified
    assert tls["server"]["certificate"]["names"] == [server.hostname, *SERVERS[server_name]]


def seen_by(server: Server, reply: str) -> tuple[str, str]:
    """Address and port of the client, by the server's log of the mail that it accepted so."""
    found = re.search(r"(?:queued as |id=)(\S+)", reply)
    assert found is not None
    number = re.escape(found[1])

    def look() -> list[tuple[str, str]]:
        return re.findall(rf"(?m) {number}(?:: client=| <= .* )[^\[\n]*\[([^\]]*)\](?::(\d+))?", server.log())

    (seen,) = eventually(f"{server.name} logs {number}", look)
    return seen


def test_no_mail_came_twice(gateway: Gateway) -> None:
    """Runs after those above, each of which has addresses of its own."""
    commits = [rcpt for one in gateway.proxy.records() if one["kind"] == "tx-commit" for rcpt in one["rcpt"]]
    assert len(commits) == len(set(commits))
    stored = [rcpt for server in gateway.site.servers.values() for mail in server.mails() for rcpt in mail.recipients]
    assert len(stored) == len(set(stored))


@pytest.mark.parametrize("server_name", SERVERS)
def test_what_the_client_meets_is_the_server(gateway: Gateway, server_name: str, family: Family) -> None:
    site, address = gateway.site, SERVERS[server_name].of(family)
    server = site.servers[server_name]
    with site.network.server.inside(), Wire(address, 25) as direct:
        own = direct.expect(220)
    sock = site.network.client.connect(address, 25)
    assert sock.getpeername()[:2] == (address, 25)
    with Wire("", 0, SECONDS, conn=sock) as wire:
        assert undated(wire.expect(220)) == undated(own)
        offered = wire.command("EHLO client.src.example", 250)
        assert "STARTTLS" in offered
        if server_name == "exim":  # it says whom it sees
            assert f"[{gateway.seen(family)}]" in offered
        wire.command("STARTTLS", 220)
        trusting = gateway.kind.ca
        context = strict_context(Trust(site.roots, server.hostname)) if trusting else careless_context()
        with context.wrap_socket(sock) as secure:
            shown = secure.getpeercert(binary_form=True)
    assert shown is not None
    assert server.identity is not None
    assert names(x509.load_der_x509_certificate(shown)) == names(leaf(server.identity))


def test_who_is_exempt_passes_unseen(gateway: Gateway, family: Family) -> None:
    """TLS is between the two ends then; who sees whom stays as it is."""
    server = gateway.site.servers["exim"]
    sock = gateway.network.client.connect(OTHER_SERVER.of(family), 25, (OTHER_CLIENT.of(family), 0))
    with Wire("", 0, SECONDS, conn=sock) as wire:
        wire.expect(220)
        offered = wire.command("EHLO client.src.example", 250)
        assert "PIPECONNECT" in offered  # nobody else is offered that
        assert f"[{OTHER_CLIENT.of(family) if gateway.keeps else GATEWAY_OUTSIDE.of(family)}]" in offered
        wire.command("STARTTLS", 220)
        with careless_context().wrap_socket(sock) as secure:
            shown = secure.getpeercert(binary_form=True)
    assert server.identity is not None
    assert shown == leaf(server.identity).public_bytes(Encoding.DER)
    connect = connects(gateway)[-1]
    assert (connect["match"], connect["unseen"]) == ("exempt", True)


def undated(greeting: str) -> str:
    return re.sub(r"\w{3}, \d+ \w{3} \d{4} [\d:]{8} [+-]\d{4}", "(date)", greeting)


def leaf(identity: Identity) -> x509.Certificate:
    return x509.load_pem_x509_certificates(identity.chain)[0]


def names(certificate: x509.Certificate) -> tuple[str, list[str]]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return certificate.subject.rfc4514_string(), [str(name.value) for name in found]


# -------------------------------------------------------------------------------------------------- ports, packet sizes


@of(source="client")
def test_the_clients_port_is_kept_where_it_is_free(gateway: Gateway, family: Family) -> None:
    """Again at once, too, however the connection before it ended; and towards two servers at the same time."""
    server = gateway.site.servers["postfix"]
    own = 40_025
    known = ports(server, family).count(own)
    with gateway.call(family, SERVER.of(family), own=own) as wire:
        wire.expect(220)
        seen = logged(server, family, lambda ports: ports.count(own) > known)
        wire.command("QUIT", 221)
        with pytest.raises(EOFError):
            wire.reply()

    taken = gateway.call(family, SERVER.of(family), own=PORT)  # the proxy itself listens there, at all addresses
    with taken:
        taken.expect(220)
        (kept,) = logged(server, family, lambda ports: len(ports) > len(seen))[len(seen) :]
        assert kept not in (PORT, own)
        taken.command("QUIT", 221)

    for _ in range(5):
        sock = gateway.network.client.connect(SERVER.of(family), 25, (CLIENT.of(family), own))
        with Wire("", 0, SECONDS, conn=sock) as wire:
            wire.expect(220)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # gone without a word

    one = gateway.network.client.connect(SERVER.of(family), 25, (CLIENT.of(family), own))
    with Wire("", 0, SECONDS, conn=one) as first, gateway.call(family, OTHER_SERVER.of(family), own=own) as second:
        assert "Postfix" in first.expect(220)
        assert "Exim" in second.expect(220)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def ports(server: Server, family: Family) -> list[int]:
    """The ports that it saw of the client."""
    return [
        int(port) for port in re.findall(rf" connect from \S+\[{re.escape(CLIENT.of(family))}\]:(\d+)", server.log())
    ]


def logged(server: Server, family: Family, there: Callable[[list[int]], bool]) -> list[int]:
    """These ports, once that is so: the log is written in its order, but not before the greeting is told."""
    deadline = time.monotonic() + SECONDS
    while not there(found := ports(server, family)):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


def test_a_large_mail_gets_through_a_path_of_small_packets(gateway: Gateway, far: Server, family: Family) -> None:
    """A router behind the gateway says so, to whose address the packets have: the client's, if that is kept."""
    network, number = gateway.network, next(NUMBERS)
    network.gateway.ip("-6" if family == socket.AF_INET6 else "-4", "route", "flush", "cache")
    before = too_big(network.server, family)
    recipient = f"large-{number}@dst.example"
    with network.client.inside():
        swaks(FAR.of(family), 25, f"from-{number}@src.example", [recipient], LARGE, options=["--tls"])
    (mail,) = far.wait_for(1, SECONDS, to=recipient)
    assert mail.wire == LARGE
    assert too_big(network.server, family) > before, "no router had anything against large packets"


def too_big(machine: Namespace, family: Family) -> int:
    """How often a router said that a packet is too big."""
    file, key = ("snmp6", "Icmp6OutPktTooBigs") if family == socket.AF_INET6 else ("snmp", "OutDestUnreachs")
    with machine.inside():
        text = Path("/proc/thread-self/net", file).read_text()
    if file == "snmp6":
        return int(dict(line.split() for line in text.splitlines())[key])
    heading, values = (line.split() for line in text.splitlines() if line.startswith("Icmp: "))
    return int(values[heading.index(key)])


# ----------------------------------------------------------------------------------------------------------- refusals


def test_a_connection_to_the_proxy_itself_is_refused(gateway: Gateway, family: Family) -> None:
    wire = gateway.call(family, GATEWAY.of(family), PORT)
    gateway.refused("its destination is this proxy itself", wire)


def test_a_destination_on_no_network_is_refused(gateway: Gateway) -> None:
    """Addresses that mean something else here than where the client is; its machine sends them here all the same."""
    gateway.refused("169.254.9.9 is a link-local address", gateway.call(socket.AF_INET, "169.254.9.9"))


@of(mode="redirect")
@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("127.0.0.2", "127.0.0.2 is a loopback address"),
        ("::1", "::1 is a loopback address"),
        (GATEWAY.v4, f"{GATEWAY.v4} is this machine's own"),
        (GATEWAY_OUTSIDE.v6, f"{GATEWAY_OUTSIDE.v6} is this machine's own"),
    ],
)
def test_no_way_into_the_gateway_itself(gateway: Gateway, host: str, why: str) -> None:
    """Rules that somebody else made lead what is for this machine's own services to the proxy as well.

    To a transparent listener the kernel leads nothing of that kind.
    """
    with misled(gateway):
        sock = gateway.network.gateway.connect(host, 25)
        gateway.refused(why, Wire("", 0, SECONDS, conn=sock))


@of(source="own")
def test_what_comes_back_is_refused_at_once(gateway: Gateway, family: Family) -> None:
    """Misconfigured: what this machine itself sends is intercepted too.

    Where it sends with the client's address, answers go to the client's machine, and no connection comes to be.
    """
    turns = len(connects(gateway))
    with misled(gateway), gateway.call(family, SERVER.of(family)) as wire:
        began = time.monotonic()
        assert wire.reply()[0] in (421, 554)
        assert time.monotonic() - began < SECONDS / 2
    last = gateway.proxy.refusals()[-1]
    assert last["refused"] == LOOP
    assert len(connects(gateway)) - turns <= 4, "a session for each turn, and more than a few"


def connects(gateway: Gateway) -> list[dict[str, Any]]:
    return [record for record in gateway.proxy.records() if record["kind"] == "link-connect"]


MISLEADING = {
    "tproxy": ("route hook output priority mangle", "tcp dport 25 meta mark set 0x25"),
    "redirect": ("nat hook output priority -100", f"tcp dport 25 redirect to :{PORT}"),
}


@contextmanager
def misled(gateway: Gateway) -> Iterator[None]:
    """Rules on the gateway that catch what it sends itself."""
    machine = gateway.network.gateway
    hook, rule = MISLEADING[gateway.kind.mode]
    machine.nft(f"table inet misled {{\nchain output {{\ntype {hook}; policy accept;\n{rule}\n}}\n}}\n")
    try:
        yield
    finally:
        machine.nft("delete table inet misled")
