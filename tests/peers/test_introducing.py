"""Who the client is, told from one to the next: swaks, HAProxy before the proxy, the proxy, Postfix behind it.

HAProxy says it to the proxy in a PROXY header; the proxy says it to Postfix in a PROXY header, by XCLIENT or by
XFORWARD. In the end Postfix's own log has to name the client, by address, port and HELO, as if it had come by itself.
Addresses are of 127.0.0.0/8, and where HAProxy says that clients have others, it says so and nothing more.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from smtpproxy.net.proxyheader import parse, shown
from tests.gateway.namespaces import eventually
from tests.peers import PeerError, PeerUnavailable, unavailable
from tests.peers.clients import NAME, Wire, swaks
from tests.peers.contents import CONTENTS, HEADER
from tests.peers.process import HOST, Program, Scratch, find, free_port
from tests.peers.servers import Postfix
from tests.peers.serving import SECONDS, Serving
from tests.peers.tls import Authority, Trust, strict_context

pytestmark = pytest.mark.peers

NUMBERS = count(1)
CONTENT = HEADER + CONTENTS["dots"]
CLIENT = "127.0.0.7"
CLIENT_6, DESTINATION_6 = "2001:db8::7", "2001:db8::25"
LOCAL_NAME = "mx.dst.example"  # what HAProxy's certificate, and one of the proxy's own, are for

# What each listener of Postfix says besides. It trusts this machine with XCLIENT and XFORWARD, or, in `strict`, nobody.
SERVICES = {
    "proxied": "-o smtpd_upstream_proxy_protocol=haproxy",
    "proxied-tls": "-o smtpd_upstream_proxy_protocol=haproxy -o smtpd_tls_wrappermode=yes",
    "strict": "-o smtpd_authorized_xclient_hosts= -o smtpd_authorized_xforward_hosts=",
}
SETTINGS = """\
inet_protocols = all
smtpd_client_port_logging = yes
smtpd_authorized_xclient_hosts = 127.0.0.0/8
smtpd_authorized_xforward_hosts = 127.0.0.0/8
smtpd_sender_restrictions = check_client_access static:{{ INFO met }}
header_checks = regexp:{checks}
"""
# How the proxy tells, and the listener of Postfix that is told so.
ANNOUNCED = {
    "proxy-v1": "proxied",
    "proxy-v2": "proxied",
    "xclient": "trusting",
    "xforward": "trusting",
}
# How the proxy is told: what HAProxy says behind `server`, and besides.
ELSEWHERE = f"""\
    tcp-request connection set-src ipv6({CLIENT_6})
    tcp-request connection set-dst ipv6({DESTINATION_6})
    tcp-request connection set-src-port int(4711)
"""
TOLD = {
    "v1": ("send-proxy", ""),
    "v2": ("send-proxy-v2", ""),
    "v1-ipv6": ("send-proxy", ELSEWHERE),
    "v2-ipv6": ("send-proxy-v2", ELSEWHERE),
}
HAPROXY = """\
global
    nbthread 1
defaults
    mode tcp
    timeout connect 20s
    timeout client 20s
    timeout server 20s
"""
SECTION = """\
listen {name}
    bind {host}:{port} {bind}
{besides}
    server proxy {host}:{server} {options}
"""


class Told(Postfix):
    """It has a listener for each way in which it can be told."""

    def services(self) -> str:
        self.ports = {name: free_port() for name in SERVICES}
        lines = [f"{HOST}:{port} inet n - n - - smtpd {SERVICES[name]}\n" for name, port in self.ports.items()]
        self.ports["trusting"] = self.port
        return "".join(lines)


class Met(NamedTuple):
    """A client as Postfix's log has it."""

    host: str
    port: str
    protocol: str
    hello: str


class Rig:
    """All of them."""

    def __init__(self, stack: ExitStack) -> None:
        scratch = Scratch("introducing")
        stack.callback(scratch.remove)
        self.authority = Authority(scratch.path)
        chain, key = self.authority.identity(LOCAL_NAME).write(scratch.path)
        pem = scratch.write("both.pem", chain.read_text() + key.read_text(), 0o600)
        settings = SETTINGS.format(checks=scratch.write("checks", "/^Subject:/ INFO\n"))
        self.postfix = stack.enter_context(Told(self.authority.identity(Postfix.hostname), settings=settings))
        self.catcher = stack.enter_context(socket.create_server((HOST, 0)))
        self.catcher.settimeout(SECONDS)
        own = {"client": "implicit", "certificates": [{"chain": chain, "key": key}]}
        servers = {announce: self.postfix.ports[service] for announce, service in ANNOUNCED.items()}
        listeners = [
            {**self._listener(f"{announce}{behind}", port, announce), **told}
            for announce, port in servers.items()
            for behind, told in (("", {}), ("-behind", {"proxy_from": ["127.0.0.0/8"]}))
        ]
        proxied, strict = self.postfix.ports["proxied-tls"], self.postfix.ports["strict"]
        listeners += [
            {**self._listener("shown-own", proxied, "proxy-v2"), "tls": {**own, "server": "implicit"}},
            {**self._listener("shown-like", proxied, "proxy-v2"), "tls": {"client": "implicit", "server": "implicit"}},
            {**self._listener("xclient-strict", strict, "xclient")},
            {**self._listener("xforward-strict", strict, "xforward")},
            {**self._listener("caught", self.catcher.getsockname()[1], "proxy-v2"), "tls": {**own, "server": "never"}},
            {
                **self._listener("caught-behind", self.catcher.getsockname()[1], "proxy-v2"),
                "proxy_from": [HOST],
            },
        ]
        self.proxy = stack.enter_context(Serving(listeners))
        self._balance(stack, scratch, pem)

    @staticmethod
    def _listener(name: str, port: int, announce: str) -> dict[str, object]:
        return {"name": name, "listen": f"{HOST}:0", "server": f"{HOST}:{port}", "announce": announce}

    def _balance(self, stack: ExitStack, scratch: Scratch, pem: Path) -> None:
        """HAProxy, before the listeners that are behind one."""
        program = find("haproxy")
        for _ in (1, 2, 3):  # somebody else may take a port before it does
            self.ports = {(told, announce): free_port() for told in TOLD for announce in ANNOUNCED}
            self.ports["tls", "caught"] = free_port()
            text = HAPROXY
            for (told, announce), port in self.ports.items():
                options, besides = TOLD.get(told, ("send-proxy-v2 proxy-v2-options ssl,ssl-cipher,authority", ""))
                text += SECTION.format(
                    name=f"{told}-{announce}",
                    host=HOST,
                    port=port,
                    bind=f"ssl crt {pem}" if told == "tls" else "",
                    besides=besides,
                    server=self.proxy.ports[f"{announce}-behind"],
                    options=options,
                )
            running = Program(
                [program, "-db", "-f", str(scratch.write("haproxy.cfg", text))], log=scratch.path / "haproxy.log"
            )
            try:
                eventually("HAProxy", partial(self._settled, running), SECONDS)
            except BaseException:
                running.stop()
                raise
            if running.running:
                stack.enter_context(running)
                return
        raise PeerError(f"HAProxy does not start:\n{running.log.read_text(errors='replace')}")

    def _settled(self, running: Program) -> bool:
        """It ended, or its last socket is there, by which all are."""
        try:
            socket.create_connection((HOST, self.ports["tls", "caught"]), timeout=SECONDS).close()
        except OSError:
            return not running.running
        return True

    def deliver(self, port: int, *options: str, trust: Trust | None = None) -> str:
        """One mail by swaks, from the client's address: its recipient, when the server has it, whole and once."""
        number = next(NUMBERS)
        sender, recipient = f"from-{number}@src.example", f"to-{number}@dst.example"
        swaks(HOST, port, sender, [recipient], CONTENT, trust=trust, options=["--local-interface", CLIENT, *options])
        (mail,) = self.postfix.wait_for(1, SECONDS, to=recipient)
        assert (mail.sender, mail.wire) == (sender, CONTENT)
        return recipient

    def met(self, recipient: str) -> Met:
        """Whom it got that mail from."""
        return self._logged(rf"info: RCPT from \S+\[([^\]]*)\]:(\d+): .*to=<{recipient}> proto=(\S+) helo=<(.*)>")

    def logged(self, recipient: str) -> Met:
        """The same of its log about the content, which is where XFORWARD counts."""
        return self._logged(
            rf"info: header Subject: .* from \S+\[([^\]]*)\]:(\d+); .*to=<{recipient}> proto=(\S+) helo=<(.*)>"
        )

    def _logged(self, pattern: str) -> Met:
        (found,) = eventually(pattern, lambda: re.findall(pattern, self.postfix.log()), SECONDS)
        return Met(*found)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with ExitStack() as stack:
        try:
            made = Rig(stack)
        except PeerUnavailable as error:
            unavailable(error)
        yield made


HELLOS = {"HELO": ("--protocol", "SMTP"), "EHLO": (), "STARTTLS": ("--tls",)}


def expected(rig: Rig, recipient: str, hello: str) -> Met:
    """The client as the proxy's own record has it."""
    host, _, port = rig.proxy.session_of(recipient)["link-connect"]["client"].rpartition(":")
    return Met(host.strip("[]"), port, "SMTP" if hello == "HELO" else "ESMTP", NAME)


@pytest.mark.parametrize("hello", HELLOS)
@pytest.mark.parametrize("announce", ANNOUNCED)
def test_the_server_knows_the_client(rig: Rig, announce: str, hello: str) -> None:
    recipient = rig.deliver(rig.proxy.ports[announce], *HELLOS[hello])
    client = expected(rig, recipient, hello)
    assert client.host == CLIENT
    records = rig.proxy.session_of(recipient)
    if announce != "xforward":
        assert rig.met(recipient) == rig.logged(recipient) == client
    elif hello != "HELO":  # for the log alone
        assert rig.met(recipient).host == HOST
        assert rig.logged(recipient) == client
    else:  # who says HELO is given no list, and nothing is said that is not on one
        assert rig.logged(recipient).host == HOST
        assert (records["note"]["anomaly"], records["note"]["verb"]) == ("announce-not-offered", "XFORWARD")
    assert ("link-tls" in records) is (hello == "STARTTLS")
    if hello == "STARTTLS":
        assert records["link-tls"]["client"]["version"]
        assert records["link-tls"]["server"]["version"]
    assert ("note" in records) is (announce == "xforward" and hello == "HELO")


@pytest.mark.parametrize("hello", HELLOS)
@pytest.mark.parametrize("announce", ANNOUNCED)
@pytest.mark.parametrize("told", TOLD)
def test_the_server_knows_the_client_of_a_load_balancer(rig: Rig, told: str, announce: str, hello: str) -> None:
    """By the balancer's word, and nobody between them is taken for the client."""
    recipient = rig.deliver(rig.ports[told, announce], *HELLOS[hello])
    client = expected(rig, recipient, hello)
    assert client.host == (CLIENT_6 if "ipv6" in told else CLIENT)
    if announce != "xforward":
        assert rig.met(recipient) == client
    if announce != "xforward" or hello != "HELO":
        assert rig.logged(recipient) == client
    connect = rig.proxy.session_of(recipient)["link-connect"]
    assert connect["peer"].startswith(f"{HOST}:")
    assert connect["proxy"]["version"] == int(told[1])
    goal = f"[{DESTINATION_6}]" if "ipv6" in told else HOST
    assert connect["destination"] == connect["proxy"]["destination"] == f"{goal}:{rig.ports[told, announce]}"


@pytest.mark.parametrize("listener", ["shown-own", "shown-like"])
def test_the_header_stands_before_the_servers_tls(rig: Rig, listener: str) -> None:
    """Both links in TLS from their first octet: the client's comes first where its certificate is the proxy's own."""
    recipient = rig.deliver(rig.proxy.ports[listener], "--tls-on-connect")
    assert rig.met(recipient) == expected(rig, recipient, "EHLO")
    tls = rig.proxy.session_of(recipient)["link-tls"]
    assert tls["client"]["shown"] == ("given" if listener == "shown-own" else "self-signed")
    assert tls["server"]["version"]


@pytest.mark.parametrize("announce", ["xclient", "xforward"])
def test_a_server_that_does_not_trust_us_gets_the_mail_all_the_same(rig: Rig, announce: str) -> None:
    """It meets the proxy then; that it was to be told of the client is on record."""
    recipient = rig.deliver(rig.proxy.ports[f"{announce}-strict"])
    assert rig.met(recipient).host == rig.logged(recipient).host == HOST
    note = rig.proxy.session_of(recipient)["note"]
    assert (note["anomaly"], note["verb"]) == ("announce-not-offered", announce.upper())


def test_who_has_to_say_it_and_does_not_is_refused(rig: Rig) -> None:
    """A client that came round the balancer, with its EHLO where a header should be."""
    with Wire(HOST, rig.proxy.ports["xclient-behind"], SECONDS) as wire:
        wire.send(f"EHLO {NAME}\r\n".encode())
        code, _ = wire.reply()
        assert code in (421, 554)
        with pytest.raises((EOFError, ConnectionResetError)):
            wire.reply()
    (why,) = {record["refused"] for record in rig.proxy.refusals()}
    assert "no PROXY header" in why


def caught(rig: Rig) -> dict[str, Any]:
    """The header of the next connection to a server that is none."""
    server, _ = rig.catcher.accept()
    with server:
        server.settimeout(SECONDS)
        octets = b""
        while (header := parse(octets)) is None:
            more = server.recv(4096)
            assert more, f"it ended behind {octets!r}"
            octets += more
    return shown(header)


@pytest.mark.parametrize("where", ["here", "at the balancer"])
def test_the_server_is_told_of_tls_that_ended_before_it(rig: Rig, where: str) -> None:
    """In the proxy itself, or at HAProxy, which the proxy passes on."""
    port = rig.proxy.ports["caught"] if where == "here" else rig.ports["tls", "caught"]
    plain = socket.create_connection((HOST, port), SECONDS, (CLIENT, 0))
    own = plain.getsockname()
    with strict_context(Trust(rig.authority.roots, LOCAL_NAME)).wrap_socket(plain) as client:
        cipher = client.cipher()
        assert cipher is not None
        header = caught(rig)
        tls = header["ssl"]
        assert header["client"] == f"{CLIENT}:{own[1]}"
        assert header["authority"] == LOCAL_NAME
        assert "tls" in tls["client"]
        assert (tls["version"], tls["cipher"]) == (client.version(), cipher[0])
