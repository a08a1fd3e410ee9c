"""Who is asked: a DNS server, a server of MTA-STS policies, the signing process.

The first two are on the loopback and say what a test wants, however wrong it is. Both run in the test's nursery, on
ports the kernel chose, and keep what they were asked. `known` asks a `Trust` as a session does. Nothing sleeps: what
has to wait waits for an event. `Signed` is the real signing process, with both its supervisor and its one worker here.
"""

import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import trio
import trustme

from smtpproxy.config import Config
from smtpproxy.net.reactor import Reactor
from smtpproxy.net.resolving import Resolver
from smtpproxy.net.signing import Signer
from smtpproxy.net.signingprocess import SigningProcess
from smtpproxy.net.trust import Knowledge, Trust

DEADLINE = 10.0
HOST = "mx.example.com"
TLSA_NAME = f"_25._tcp.{HOST}"
DOMAIN = "example.com"
TXT_NAME = f"_mta-sts.{DOMAIN}"
POLICY_HOST = f"mta-sts.{DOMAIN}"
POLICY = b"version: STSv1\r\nmode: enforce\r\nmx: mx.example.com\r\nmx: *.example.net\r\nmax_age: 86400\r\n"


class Authority:
    """A validating resolver: what is in `records` is what there is.

    `records` is by name and type; `ttl` in seconds. `ad`: DNSSEC vouches. `rcode` for all answers, with an extended
    error of RFC 8914; `failing`: types that are SERVFAIL. `silent`: no answer, until `speak`. `noise`: datagrams sent
    ahead of each answer. `cut`: answers by UDP say that there is more by TCP. `answer`: the octets, in place of all.
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.ttl = 300
        self.ad = True
        self.rcode = dns.rcode.NOERROR
        self.extended: dns.edns.EDECode | None = None
        self.failing: tuple[str, ...] = ()
        self.silent = False
        self.cut = False
        self.noise: Callable[[bytes], list[bytes]] = lambda _query: []
        self.answer: Callable[[dns.message.Message], bytes] | None = None
        self.asked: list[tuple[str, str, str]] = []  # by, name, type
        self.queries: list[dns.message.Message] = []
        self._news = trio.Event()
        self._speak = trio.Event()
        self.udp, self.tcp, self.port = self._open()

    @staticmethod
    def _open() -> tuple[trio.socket.SocketType, trio.SocketListener, int]:
        """One port for both: the kernel chooses for UDP until TCP has it free, too."""
        while True:
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            udp.bind(("127.0.0.1", 0))
            port = udp.getsockname()[1]
            try:
                tcp.bind(("127.0.0.1", port))
            except OSError:
                udp.close()
                tcp.close()
                continue
            tcp.listen(10)
            return (
                trio.socket.from_stdlib_socket(udp),
                trio.SocketListener(trio.socket.from_stdlib_socket(tcp)),
                port,
            )

    @property
    def resolver(self) -> Resolver:
        """To be asked by a `Trust`."""
        return Resolver((("127.0.0.1", self.port),))

    def put(self, name: str, kind: str, *records: str) -> None:
        """What there is at a name from now on."""
        self.records[name, kind] = list(records)

    def speak(self) -> None:
        """Answer all that was asked in the meantime."""
        self.silent = False
        self._speak.set()

    async def questions(self, count: int) -> None:
        """Waits for so many in all."""
        while len(self.asked) < count:
            self._news = trio.Event()
            await self._news.wait()

    async def run(self) -> None:
        """Answers until cancelled."""
        with self.udp:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve_udp, nursery)
                nursery.start_soon(trio.serve_listeners, self._serve_tcp, [self.tcp])

    async def _serve_udp(self, nursery: trio.Nursery) -> None:
        while True:
            octets, address = await self.udp.recvfrom(65_535)
            nursery.start_soon(self._answer_udp, octets, address)

    async def _answer_udp(self, octets: bytes, address: Any) -> None:
        answer = await self._answered("udp", octets)
        for datagram in (*self.noise(octets), answer):
            await self.udp.sendto(datagram, address)

    async def _serve_tcp(self, stream: trio.SocketStream) -> None:
        async with stream:
            octets = b""
            while len(octets) < 2 or len(octets) < 2 + struct.unpack_from("!H", octets)[0]:
                more = await stream.receive_some()
                if not more:
                    return
                octets += more
            answer = await self._answered("tcp", octets[2:])
            await stream.send_all(struct.pack("!H", len(answer)) + answer)

    async def _answered(self, by: str, octets: bytes) -> bytes:
        query = dns.message.from_wire(octets)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.queries.append(query)
        self.asked.append((by, name, kind))
        self._news.set()
        if self.silent:
            await self._speak.wait()
        if self.answer is not None:
            return self.answer(query)
        response = dns.message.make_response(query, recursion_available=True)
        if self.extended is not None:
            response.use_edns(0, options=[dns.edns.EDEOption(self.extended, "not\nprinted")])
        response.set_rcode(dns.rcode.SERVFAIL if kind in self.failing else self.rcode)
        if self.ad:
            response.flags |= dns.flags.AD
        if self.cut and by == "udp":
            response.flags |= dns.flags.TC
            return response.to_wire()
        if response.rcode() == dns.rcode.NOERROR:
            self._fill(response, name, kind)
        return response.to_wire(max_size=65_535)

    def _fill(self, response: dns.message.Message, name: str, kind: str) -> None:
        while (name, "CNAME") in self.records:
            to = self.records[name, "CNAME"][0]
            response.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", "CNAME", f"{to}."))
            name = to
        if (name, kind) in self.records:
            response.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", kind, *self.records[name, kind]))
        else:
            soa = f"a. b. 1 2 3 4 {self.ttl}"  # whose last number is for how long there is nothing (RFC 2308 §5)
            response.authority.append(dns.rrset.from_text("com.", self.ttl, "IN", "SOA", soa))
            if not any(known == name for known, _ in self.records):
                response.set_rcode(dns.rcode.NXDOMAIN)


class PolicyServer:
    """HTTPS with a certificate for `name`; `answer` is what it says, octet for octet, then it closes.

    `held`: it says nothing until `release`. `certificate`: of the test's CA, or any other.
    """

    def __init__(self, authority: trustme.CA, **certificate: Any) -> None:
        self.answer = http(POLICY)
        self.requests: list[bytes] = []
        self.held = False
        self.ragged = False  # the connection ends without close_notify
        self._release = trio.Event()
        self._news = trio.Event()
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.show(authority, **certificate)
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen(10)
        self.port: int = sock.getsockname()[1]
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))

    def show(self, authority: trustme.CA, *names: str, **certificate: Any) -> None:
        """Another certificate from now on."""
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(*(names or (POLICY_HOST,)), **certificate).configure_cert(self.context)

    def release(self) -> None:
        """Say what was held back."""
        self.held = False
        self._release.set()

    async def fetches(self, count: int) -> None:
        """Waits for so many requests in all."""
        while len(self.requests) < count:
            self._news = trio.Event()
            await self._news.wait()

    async def run(self) -> None:
        """Serves until cancelled."""
        await trio.serve_listeners(self._serve, [self._listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, self.context, server_side=True)
        try:
            await self._speak_http(secured)
        except (trio.BrokenResourceError, ssl.SSLError):
            pass  # who does not like the certificate or the answer goes
        finally:
            await trio.aclose_forcefully(stream)

    async def _speak_http(self, secured: "trio.SSLStream[trio.SocketStream]") -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            octets = await secured.receive_some()
            if not octets:
                return
            request += octets
        self.requests.append(request)
        self._news.set()
        if self.held:
            await self._release.wait()
        await secured.send_all(self.answer)
        if not self.ragged:
            await secured.unwrap()


class Signed:
    """The signing process of a configuration, started, and a worker's side of it; neither, where nothing is signed.

    Where the reactor is closed before this, `signer` is closed before it, as `Materials.close` does.
    """

    def __init__(self, config: Config, reactor: Reactor) -> None:
        """Waits for it.

        Raises:
            SignerError: it can't be started.
        """
        self.process = SigningProcess.of(config, 1)
        self.signer: Signer | None = None
        if self.process is not None:
            self.process.start()
            self.signer = Signer(reactor, self.process.socket_of(0), self.process.certificate)

    def check(self) -> None:
        """As the supervisor does once a second; `Materials.check` looks at the worker's side."""
        if self.process is not None:
            self.process.check(time.monotonic())

    def close(self) -> None:
        """End it; twice is once."""
        if self.signer is not None:
            self.signer.close()
        if self.process is not None:
            self.process.close()


def http(body: bytes, status: bytes = b"200 OK", kind: bytes = b"text/plain", *fields: bytes) -> bytes:
    """An answer of HTTP/1.1."""
    head = (b"HTTP/1.1 " + status, b"Content-Type: " + kind, b"Content-Length: %d" % len(body), *fields)
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def ask(trust: Trust) -> list[Knowledge]:
    """What comes back, one day, to a session that asks now."""
    told: list[Knowledge] = []
    trust.ask(told.append)
    return told


async def known(trust: Trust) -> Knowledge:
    """What a session that asks now is told."""
    told: list[Knowledge] = []
    answered = trio.Event()

    def done(knowledge: Knowledge) -> None:
        told.append(knowledge)
        answered.set()

    trust.ask(done)
    await answered.wait()
    assert len(told) == 1
    return told[0]


@asynccontextmanager
async def running(*tasks: Any) -> AsyncIterator[trio.Nursery]:
    """Servers and `Trust`s run while the test does."""
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task.run)
        yield nursery
        nursery.cancel_scope.cancel()
