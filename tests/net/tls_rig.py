"""Ends that speak TLS, driven by hand, and certificates in files for a rig (rig.py) with TLS.

`TLSEnd` is an `End` whose octets are encrypted; how the peer ended it, by close_notify or without, is in `how`. It may
send its octets one at a time (`drip`), and send clear ones where none belong (`raw`). `start_tls` is the whole of
STARTTLS on both links, in the order of architecture §8.
"""

import contextlib
import socket
import ssl
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import trio
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from smtpproxy.tls.contexts import for_client
from tests.net.rig import DEADLINE, End, Rig
from tests.tls.maker import Extra, Made, made, root

NAME = "mx.example"
ALTERNATE = "mail.example"
STARTTLS = b"STARTTLS\r\n"
GO = b"220 2.0.0 go\r\n"
GREETING = b"220 mx.example ESMTP\r\n"
OFFER = b"250-mx.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 STARTTLS\r\n"
PLAIN = b"250-mx.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n"  # without it
INSIDE = b"250-mx.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 50000000\r\n"  # what is offered under TLS
EHLO = b"EHLO me.example\r\n"


# ---------------------------------------------------------------------------------------------------- certificates


def purpose(*oids: x509.ObjectIdentifier) -> Extra:
    """An extendedKeyUsage."""
    return x509.ExtendedKeyUsage(oids), False


@cache
def good() -> Made:
    """The server's certificate: of the CA that is trusted, for NAME and 127.0.0.1."""
    return made(NAME, root(), names=(NAME, "127.0.0.1"), extras=[purpose(ExtendedKeyUsageOID.SERVER_AUTH)])


@cache
def other() -> Made:
    """Another good one, for ALTERNATE and a wildcard."""
    return made(ALTERNATE, root(), names=(ALTERNATE, "*.wild.example"))


@cache
def _stranger() -> Made:
    return made("Somebody", ca=True)


# What is wrong with it: the certificate.
BAD: Mapping[str, Made] = {
    "wrong name": made("elsewhere", root(), names=("elsewhere.example",)),
    "expired": made(NAME, root(), names=(NAME,), since=-30, until=-1),
    "not yet valid": made(NAME, root(), names=(NAME,), since=2, until=30),
    "untrusted": made(NAME, _stranger(), names=(NAME,)),
    "self-signed": made(NAME, names=(NAME,)),
    "CN only": made(NAME, root()),
    "clientAuth only": made(NAME, root(), names=(NAME,), extras=[purpose(ExtendedKeyUsageOID.CLIENT_AUTH)]),
}


@cache
def serving(which: Made) -> ssl.SSLContext:
    """A server's context with this certificate, that offers ALPN smtp."""
    return for_client(which.pem, which.key_pem)


def asking(
    *,
    trusted: Sequence[Made] = (),
    alpn: Sequence[str] = (),
    shows: Made | None = None,
    folder: Path | None = None,
    highest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
) -> ssl.SSLContext:
    """A client's context; with `trusted` it verifies."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = bool(trusted)
    context.verify_mode = ssl.CERT_REQUIRED if trusted else ssl.CERT_NONE
    for certificate in trusted:
        context.load_verify_locations(cadata=certificate.pem.decode())
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if shows is not None and folder is not None:
        context.load_cert_chain(put(folder, "shown.pem", shows))
    context.maximum_version = highest
    return context


def aged(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """The same for this old version only. Python warns of it, as it should."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    return context


def put(folder: Path, name: str, which: Made, *, key: bool = True) -> str:
    """A file with it, and its key."""
    path = folder / name
    path.write_bytes(which.pem + (which.key_pem if key else b""))
    path.chmod(0o600)
    return str(path)


def table(folder: Path, client: str = "mirror", server: str = "mirror", **more: Any) -> dict[str, Any]:
    """`[listener.tls]` with a given certificate (ALTERNATE's; `certificates=()` for none), and the tests' root."""
    given: dict[str, Any] = {
        "client": client,
        "server": server,
        "server_name": NAME,
        "hello": "proxy.example",
        "roots": put(folder, "roots.pem", root(), key=False),
        "certificates": [{"chain": put(folder, "given.pem", other())}],
    }
    return given | more


# ------------------------------------------------------------------------------------------------------------- ends


class TLSEnd(End):
    """An end under TLS. The end it was made from is not to be used any more."""

    def __init__(
        self,
        end: End,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        hostname: str | None = NAME,
        session: ssl.SSLSession | None = None,
        drip: bool = False,
    ) -> None:
        super().__init__(end.socket)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # Nagle would wait behind our tickets
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._in.write(end.received)
        end.received.clear()
        self.object = context.wrap_bio(
            self._in, self._out, server_side=server_side, server_hostname=None if server_side else hostname
        )
        if session is not None:
            self.object.session = session
        self.drip = drip
        self.failed = False  # the handshake: what still comes is no TLS
        self.how = ""  # "notify", "cut" or "reset", once the peer ended it

    async def handshake(self) -> "TLSEnd":
        """All of it; ssl.SSLError if it fails, EOFError if the peer ends it."""
        while True:
            try:
                self.object.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._take()
            except ssl.SSLError:
                self.failed = True
                await self._flush()
                raise
            else:
                try:
                    await self._flush()
                except (ConnectionResetError, BrokenPipeError):  # tickets, and the peer is gone already
                    self.how = "reset"
                return self

    async def _take(self, size: int = 65_536) -> None:
        try:
            with trio.fail_after(DEADLINE):
                octets = await self.socket.recv(size)
        except ConnectionResetError:
            self.how = "reset"
            raise
        if not octets:
            self.how = "cut"
            raise EOFError
        self._in.write(octets)

    async def _flush(self) -> None:
        octets = self._out.read()
        if octets:
            await self.raw(octets)

    async def raw(self, octets: bytes) -> None:
        """These octets as they are."""
        if not self.drip:
            await super().send(octets)
            return
        for octet in octets:
            await super().send(bytes([octet]))
            await trio.sleep(0)

    def encrypted(self, octets: bytes) -> bytes:
        """What stands for them on the wire; to be sent in this order."""
        view = memoryview(octets)
        while view:
            view = view[self.object.write(view) :]
        return self._out.read()

    async def send(self, octets: bytes) -> None:
        """All of it."""
        await self.raw(self.encrypted(octets))

    async def _more(self, size: int = 65_536) -> bool:
        while True:
            try:
                data = self.object.read(16_384)
            except ssl.SSLWantReadError:
                try:
                    await self._take(size)
                except EOFError:
                    return False
                continue
            except ssl.SSLZeroReturnError:
                data = b""
            if not data:
                self.how = "notify"
            self.received += data
            return bool(data)

    async def ending(self) -> str:
        """How the peer ends it, whatever comes before, and an alert too: "notify", "cut" or "reset"."""
        with contextlib.suppress(ConnectionResetError, EOFError):
            try:
                while not (self.failed or self.how) and await self._more():
                    pass
            except ssl.SSLError:
                self.failed = True
            while self.failed and not self.how:
                await self._take()
        return self.how

    def farewell(self) -> bytes:
        """close_notify, as it goes over the wire."""
        with contextlib.suppress(ssl.SSLError):  # the peer's own is not there yet
            self.object.unwrap()
        return self._out.read()

    @property
    def shown(self) -> bytes:
        """The peer's certificate, DER."""
        return self.object.getpeercert(binary_form=True) or b""


async def as_server(end: End, which: Made | None = None, context: ssl.SSLContext | None = None, **more: Any) -> TLSEnd:
    """A handshake as the server: with this certificate, or with the good one."""
    return await TLSEnd(end, context or serving(which or good()), server_side=True, **more).handshake()


async def as_client(end: End, context: ssl.SSLContext | None = None, **more: Any) -> TLSEnd:
    """A handshake as the client."""
    return await TLSEnd(end, context or asking(), **more).handshake()


async def greet(client: End, server: End, listed: bytes = OFFER) -> None:
    """Greeting and EHLO."""
    await server.send(GREETING)
    await client.expect(GREETING)
    await client.ask(EHLO, server, listed)


class Pair(NamedTuple):
    """A session's two ends."""

    client: TLSEnd
    server: TLSEnd


async def start_tls(
    client: End,
    server: End,
    *,
    which: Made | None = None,
    context: ssl.SSLContext | None = None,
    serves: ssl.SSLContext | None = None,
    drip: bool = False,
    session: ssl.SSLSession | None = None,
    hostname: str | None = NAME,
) -> Pair:
    """STARTTLS on both links, the server's first."""
    await client.send(STARTTLS)
    await server.expect(STARTTLS)
    await server.send(GO)
    inside = await as_server(server, which, serves, drip=drip)
    await client.expect(GO)
    return Pair(await as_client(client, context, drip=drip, session=session, hostname=hostname), inside)


async def within(r: Rig, listed: bytes = INSIDE, **more: Any) -> Pair:
    """A session whose links are both under TLS, and whose hello was said there."""
    client, server = await r.both()
    await greet(client, server)
    pair = await start_tls(client, server, **more)
    await pair.client.ask(EHLO, pair.server, listed)
    return pair


async def send_mail(client: End, server: End, body: bytes) -> None:
    """A transaction; what the server is given must be the body octet for octet. The body ends with CRLF."""
    await client.mail(server)
    await client.ask(b"DATA\r\n", server, b"354 Go\r\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, body + b".\r\n")
        await server.expect(body + b".\r\n")
    await server.send(b"250 queued\r\n")
    await client.expect(b"250 queued\r\n")


async def leave(client: End, server: End) -> None:
    """QUIT, and the end of both links."""
    await client.ask(b"QUIT\r\n", server, b"221 Bye\r\n")
    assert await client.rest() == b""
    assert await server.rest() == b""
