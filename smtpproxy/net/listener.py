"""Listeners: accept, count, and give each connection a relay.

What is bounded here: connections in all and for each client address. One beyond a bound is told 421 and closed as soon
as that is on record. Where the system has no descriptor left, nothing is accepted until the next look. A server given
by name is looked up before it is needed and again every minute; its addresses are tried in turn.
"""

import contextlib
import errno
import ipaddress
import itertools
import os
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

import structlog
import trio

from smtpproxy.audit.log import AuditLog
from smtpproxy.config import Endpoint, ListenerConfig
from smtpproxy.net.handshakes import ListenerTLS
from smtpproxy.net.reactor import Reactor
from smtpproxy.net.relay import Address, Relay
from smtpproxy.session.limits import Limits, Patience
from smtpproxy.session.postures import ClientTLS, Posture, ServerTLS
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.session import Session
from smtpproxy.session.state import Peer
from smtpproxy.session.verdicts import Judge
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.errors import Side

log = structlog.get_logger()

ACCEPTS = 64  # connections taken in one turn
REFRESH = 60.0  # seconds a looked-up name is good for
_WITHOUT_TLS = Posture(ClientTLS.REFUSE, ServerTLS.NEVER)
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Destination:
    """A server by address or name. `addresses` are in the resolver's order."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.addresses: list[Address] = []
        self.literal = False
        with contextlib.suppress(ValueError):
            version = ipaddress.ip_address(endpoint.host).version
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            self.addresses = [(family, (endpoint.host, endpoint.port))]
            self.literal = True

    async def look_up(self) -> None:
        """Ask the resolver; what was known stays if it does not answer."""
        if self.literal:
            return
        try:
            found = await trio.socket.getaddrinfo(self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            log.warning("the server's name can't be looked up", server=str(self.endpoint), why=str(error))
            return
        self.addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))

    async def keep_fresh(self) -> None:
        """Look the name up again and again."""
        while not self.literal:
            await trio.sleep(REFRESH if self.addresses else 5.0)
            await self.look_up()


class Sessions:
    """All relays of the process, and the bounds on them."""

    def __init__(self, *, connections: int, per_client: int) -> None:
        self.relays: set[Relay] = set()
        self._connections = connections
        self._per_client = per_client
        self._clients: Counter[str] = Counter()
        self.changed: Callable[[], None] = lambda: None

    def full(self, client: str) -> str:
        """Why a further connection of this client is refused; "" if it is not."""
        if len(self.relays) >= self._connections:
            return f"{self._connections} connections in all"
        if self._clients[client] >= self._per_client:
            return f"{self._per_client} connections of one client"
        return ""

    def add(self, relay: Relay, client: str) -> None:
        """Count it."""
        self.relays.add(relay)
        self._clients[client] += 1

    def remove(self, relay: Relay, client: str) -> None:
        """It is over."""
        self.relays.discard(relay)
        self._clients[client] -= 1
        if self._clients[client] <= 0:
            del self._clients[client]
        self.changed()


class Listener:
    """One listening socket and the server behind it."""

    def __init__(
        self,
        config: ListenerConfig,
        sock: socket.socket,
        destination: Destination,
        reactor: Reactor,
        sessions: Sessions,
        audit: AuditLog,
        *,
        judge: Callable[[], Judge],
        limits: Limits,
        patience: Patience,
        spool: Callable[[], Any],
        tls: ListenerTLS | None = None,
    ) -> None:
        self._config = config
        self._socket = sock
        self._destination = destination
        self._reactor = reactor
        self._sessions = sessions
        self._audit = audit
        self._judge = judge
        self._limits = limits
        self._patience = patience
        self._spool = spool
        self._tls = tls
        self._posture = config.posture() if tls is not None else _WITHOUT_TLS
        self._prefix = os.urandom(5).hex()
        self._numbers = itertools.count(1)
        self._refused: list[socket.socket] = []  # to be told 421 once that is on record
        self._paused = False
        self.queued = False
        self.address = printable(sock.getsockname())
        reactor.watch_level(sock.fileno(), self)

    def event(self, fd: int, mask: int) -> None:
        """Somebody wants to connect."""
        for _ in range(ACCEPTS):
            try:
                client, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:  # the client is gone already, or no descriptor is left
                log.warning("a connection could not be accepted", listener=self._config.name, why=error.strerror)
                if error.errno in EXHAUSTED:  # the next try would fail as well, and the next
                    self._paused = True
                    self._reactor.forget(self._socket.fileno())
                return
            try:
                self._accepted(client, address)
            except Exception as error:  # our own bug: this connection ends, the proxy goes on
                log.error("a connection failed", listener=self._config.name, exc_info=error)
                client.close()

    def check(self) -> None:
        """Called about once a second: accept again, if that had to be given up."""
        if self._paused:
            self._paused = False
            self._reactor.watch_level(self._socket.fileno(), self)

    def read(self) -> None:
        """Nothing is read from who is refused."""

    def write(self) -> None:
        """421 to who was refused."""
        refused, self._refused = self._refused, []
        for client in refused:
            if self._posture.client is not ClientTLS.IMPLICIT:  # never a word in clear there
                with contextlib.suppress(OSError):
                    client.send(say.TOO_MANY_SESSIONS.plain.raw)
            client.close()

    def _accepted(self, client: socket.socket, address: Any) -> None:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = printable(address)
        host = address[0]
        session_id = f"{self._prefix}-{next(self._numbers):x}"
        record = self._audit.session(session_id)
        now = self._reactor.now
        facts = {
            "listener": self._config.name,
            "client": name,
            "local": self.address,
            "server": str(self._destination.endpoint),
        }
        refused = self._sessions.full(host)
        record(AuditRecord(Kind.CONNECT, now, detail={**facts, **({"refused": refused} if refused else {})}))
        if refused:
            self._refused.append(client)
            self._reactor.ready(self)
            return
        spools: list[Any] = []  # what content is held back in, of one mail at a time

        def spool() -> Any:
            spools[:] = [self._spool()]
            return spools[0]

        session = Session(
            judge=self._judge(),
            record=record,
            clock=lambda: self._reactor.now,
            limits=self._limits,
            patience=self._patience,
            client=Peer(Side.CLIENT, name),
            server=Peer(Side.SERVER, str(self._destination.endpoint)),
            newlines=self._config.newlines,
            spool=spool,
            posture=self._posture,
        )

        def closed(relay: Relay) -> None:
            for file in spools:  # a mail that came to no end leaves it open
                file.close()
            self._sessions.remove(relay, host)
            record(AuditRecord(Kind.CLOSE, self._reactor.now, detail=farewell(relay, self._reactor.now)))

        def failed(relay: Relay, error: BaseException) -> None:
            log.error("a session failed", session=session_id, exc_info=error)
            record(
                AuditRecord(
                    Kind.NOTE, self._reactor.now, detail={"anomaly": "internal-error", "why": type(error).__name__}
                )
            )

        addresses = list(self._destination.addresses)
        relay = Relay(self._reactor, session, client, addresses, closed=closed, failed=failed, tls=self._tls)
        self._sessions.add(relay, host)

    def close(self) -> None:
        """Accept no more."""
        self._reactor.forget(self._socket.fileno())
        self._paused = False
        self._socket.close()


def farewell(relay: Relay, now: float) -> dict[str, Any]:
    """What a session came to, for its last record."""
    session, client, server = relay.session, relay.client, relay.server
    return {
        "server": session.server.address,
        "seconds": round(now - relay.started, 6),
        "commands": session.commands,
        "transactions": session.transactions,
        "octets_from_client": client.received,
        "octets_to_client": client.sent,
        "octets_from_server": server.received if server is not None else 0,
        "octets_to_server": server.sent if server is not None else 0,
        "inspected": session.inspected,
    }


def printable(address: Any) -> str:
    """`192.0.2.1:25` or `[2001:db8::1]:25`."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def open_sockets(endpoint: Endpoint) -> list[socket.socket]:
    """Listening sockets for an address or name (`localhost` has two), port 0 for any.

    Raises:
        OSError: it can't be bound.
    """
    found = socket.getaddrinfo(endpoint.host or None, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(4096)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets
