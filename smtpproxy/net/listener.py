"""Listeners: accept, find out who it is and where it goes, count, and give each connection a relay.

What is bounded here: connections in all and for each client address, over all workers. One beyond a bound is told 421
and closed as soon as that is on record; so is one that would come back to us, or that goes where it must not
(origin.py). Where the system has no descriptor left, nothing is accepted until the next look.
"""

import contextlib
import errno
import itertools
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import structlog

from smtpproxy.audit.lines import Private
from smtpproxy.audit.log import AuditLog
from smtpproxy.net.arriving import Arriving
from smtpproxy.net.dialling import Dial
from smtpproxy.net.introducing import announcement_of, client_first, foreword_of
from smtpproxy.net.machine import plain, printable
from smtpproxy.net.origin import Loops, Origin, Reach, origin_of, outgoing_key
from smtpproxy.net.plans import Plan, Plans, is_in
from smtpproxy.net.proxyheader import shown
from smtpproxy.net.reactor import Reactor
from smtpproxy.net.relay import Relay
from smtpproxy.net.tally import Tally
from smtpproxy.session.announcing import pass_unseen
from smtpproxy.session.effects import Ask
from smtpproxy.session.limits import Limits, Patience
from smtpproxy.session.postures import ClientTLS
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.session import Session
from smtpproxy.session.state import Facts, Peer
from smtpproxy.smtp import replies as say
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.replies import OwnReply

log = structlog.get_logger()

ACCEPTS = 64  # connections taken in one turn by a worker that is alone; else few, so that each gets its share
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Refusal(NamedTuple):
    """Why a connection is refused, for the record, and what it is told."""

    why: str
    reply: OwnReply


class Sessions:
    """All relays of this worker, and the bounds on those of all workers."""

    def __init__(self, *, connections: int, per_client: int, tally: Tally, name: str = "") -> None:
        self.relays: set[Relay] = set()
        self.arriving: set[Arriving] = set()
        self.tally = tally
        self._connections = connections
        self._per_client = per_client
        self._prefix = name or os.urandom(5).hex()
        self._numbers = itertools.count(1)
        self.changed: Callable[[], None] = lambda: None

    def new_id(self) -> str:
        """What the record calls a session; what stands before the hyphen is this worker's alone."""
        return f"{self._prefix}-{next(self._numbers):x}"

    @property
    def none(self) -> bool:
        """Nobody is here."""
        return not self.relays and not self.arriving

    def full(self, client: str) -> str:
        """Why a further connection of this client is refused; "" if it is not."""
        if crowded := self.crowded:
            return crowded
        if self.tally.of(client) >= self._per_client:
            return f"{self._per_client} connections of one client"
        return ""

    @property
    def crowded(self) -> str:
        """Why nobody else is served, or ""."""
        full = self.tally.total() + len(self.arriving) >= self._connections
        return f"{self._connections} connections in all" if full else ""

    def add(self, relay: Relay, client: str) -> None:
        """Count it."""
        self.relays.add(relay)
        self.tally.add(client)

    def remove(self, relay: Relay, client: str) -> None:
        """It is over."""
        self.relays.discard(relay)
        self.tally.remove(client)
        self.changed()

    def check(self, now: float) -> None:
        """Called about once a second: everybody's patience."""
        for relay in tuple(self.relays):
            relay.check()
        for arriving in tuple(self.arriving):
            arriving.check(now)

    def abandon(self) -> None:
        """Drop everybody: the proxy ends."""
        for relay in tuple(self.relays):
            relay.abandon()
        self.drop_arriving()

    def drop_arriving(self) -> None:
        """Drop who has not said yet whom it brings: no session has begun."""
        for arriving in tuple(self.arriving):
            arriving.drop()
        self.arriving.clear()


class Listener:
    """One listening socket, and what is done with who connects to it."""

    def __init__(
        self,
        plans: Plans,
        sock: socket.socket,
        reactor: Reactor,
        sessions: Sessions,
        audit: AuditLog,
        *,
        loops: Loops,
        limits: Limits,
        patience: Patience,
        spool: Callable[[], Any],
        accepts: int = ACCEPTS,
        ask: Callable[[str, Relay, Ask], None] | None = None,
        full: Callable[[], bool] | None = None,
        private: Callable[[], Private | None] = lambda: None,
    ) -> None:
        self._plans = plans
        self._entry = plans.entry
        self._socket = sock
        self._reactor = reactor
        self._sessions = sessions
        self._audit = audit
        self._loops = loops
        self._limits = limits
        self._patience = patience
        self._spool = spool
        self._accepts = accepts
        self._ask = ask
        self._full = full or bool
        self._private = private
        self._reach = Reach(self._entry.reach, loops.machine)
        self._refused: list[tuple[socket.socket, bytes]] = []  # to be told so once that is on record
        self._paused = False
        self.queued = False
        self.address = printable(sock.getsockname())
        reactor.watch_level(sock.fileno(), self)

    def event(self, fd: int, mask: int) -> None:
        """Somebody wants to connect."""
        for _ in range(self._accepts):
            try:
                client, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:  # the client is gone already, or no descriptor is left
                log.warning("a connection could not be accepted", listener=self._entry.name, why=error.strerror)
                if error.errno in EXHAUSTED:  # the next try would fail as well, and the next
                    self._paused = True
                    self._reactor.forget(self._socket.fileno())
                return
            self._guard(client, self._accepted, client, address)

    def _guard(self, client: socket.socket, act: Callable[..., None], *given: Any) -> None:
        """Our own bug: this connection ends, the proxy goes on."""
        try:
            act(*given)
        except Exception as error:
            log.error("a connection failed", listener=self._entry.name, exc_info=error)
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
        for client, octets in refused:
            if octets:
                with contextlib.suppress(OSError):
                    client.send(octets)
            client.close()

    def _accepted(self, client: socket.socket, address: Any) -> None:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        entry = self._entry
        try:
            origin = origin_of(entry.mode, client, plain(address))
        except OSError:  # it is gone already
            client.close()
            return
        if self._sessions.tally.ours(outgoing_key(origin.peer, origin.going)):
            self._begin(client, origin, Refusal("the proxy's own connection came back to it", say.LOOP))
        elif not is_in(origin.peer[0], entry.proxy_from):
            alone = entry.proxy_only and bool(entry.proxy_from)
            why = Refusal("its address is in none of the networks of `proxy_from`", say.NO_ACCESS)
            self._begin(client, origin, why if alone else None)
        elif crowded := self._sessions.crowded:  # decided once: asked again, there may be room, and no header was read
            self._begin(client, origin, Refusal(crowded, say.TOO_MANY_SESSIONS))
        else:
            self._sessions.arriving.add(Arriving(self._reactor, client, origin, self._arrived))

    def _arrived(self, arriving: Arriving, origin: Origin, why: str) -> None:
        """What a load balancer says of its client is known, or why not."""
        client = arriving.socket
        self._sessions.arriving.discard(arriving)
        self._guard(client, self._begin, client, origin, Refusal(why, say.NO_HEADER) if why else None)
        self._sessions.changed()

    def _begin(self, client: socket.socket, origin: Origin, refusal: Refusal | None = None) -> None:
        """The session, or its refusal; either is on record."""
        plan = self._plans.choose(origin)
        host = origin.client[0]
        session_id = self._sessions.new_id()
        record = self._audit.session(session_id, self._private())
        refusal = refusal or self._refusal(plan, origin)
        server, addresses = plan.server(origin)
        facts = self._facts(plan, origin, server, refusal)
        record(AuditRecord(Kind.CONNECT, self._reactor.now, detail=facts))
        if refusal is not None:
            mute = plan.posture.client is ClientTLS.IMPLICIT or plan.unseen  # never a word in clear there
            self._refused.append((client, b"" if mute else refusal.reply.plain.raw))
            self._reactor.ready(self)
            return
        spools: list[Any] = []  # what content is held back in, of one mail at a time

        def spool() -> Any:
            spools[:] = [self._spool()]
            return spools[0]

        session = Session(
            judge=plan.judge,
            record=record,
            clock=lambda: self._reactor.now,
            limits=self._limits,
            patience=self._patience,
            client=Peer(Side.CLIENT, printable(origin.client)),
            server=Peer(Side.SERVER, server),
            newlines=plan.entry.newlines,
            spool=spool,
            posture=plan.posture,
            announcement=announcement_of(plan.entry, origin),
            foreword=foreword_of(plan.entry, origin),
            client_first=client_first(plan.entry),
            facts=Facts(self._entry.name, plan.name, *origin.client, *plan.going(origin), time.time, self._full),
        )
        if plan.unseen:
            pass_unseen(session)
        dial = Dial(self._loops, self._sessions.tally, origin.client if plan.entry.keeps_client else None)

        def closed(relay: Relay) -> None:
            for file in spools:  # a mail that came to no end leaves it open
                file.close()
            dial.over()
            self._sessions.remove(relay, host)
            record(AuditRecord(Kind.CLOSE, self._reactor.now, detail=farewell(relay, self._reactor.now)))

        def failed(relay: Relay, error: BaseException) -> None:
            log.error("a session failed", session=session_id, exc_info=error)
            record(
                AuditRecord(
                    Kind.NOTE, self._reactor.now, detail={"anomaly": "internal-error", "why": type(error).__name__}
                )
            )

        relay = Relay(
            self._reactor,
            session,
            client,
            addresses,
            closed=closed,
            failed=failed,
            tls=plan.tls_for(origin),
            dial=dial,
            elsewhere=plan.elsewhere,
            ask=None if self._ask is None else partial(self._ask, session_id),
        )
        self._sessions.add(relay, host)

    def _refusal(self, plan: Plan, origin: Origin) -> Refusal | None:
        """Why this one is not served."""
        if full := self._sessions.full(origin.client[0]):
            return Refusal(full, say.TOO_MANY_SESSIONS)
        if plan.destination is not None:
            return None
        if origin.destination is None:
            return Refusal("nobody led it here: it has no destination but this proxy", say.LOOP)
        if self._loops.listens(origin.destination):
            return Refusal("its destination is this proxy itself", say.LOOP)
        if why := self._reach.why_not(origin.destination):
            return Refusal(why, say.NO_ACCESS)
        return None

    def _facts(self, plan: Plan, origin: Origin, server: str, refusal: Refusal | None) -> dict[str, Any]:
        """What is put on record of a connection."""
        facts: dict[str, Any] = {
            "listener": self._entry.name,
            "client": printable(origin.client),
            "local": printable(origin.local),
            "server": server,
        }
        if origin.peer != origin.client:
            facts["peer"] = printable(origin.peer)
        if origin.aim != origin.local:
            facts["destination"] = printable(origin.aim)
        if origin.header is not None:
            facts["proxy"] = shown(origin.header)
        if plan.name:
            facts["match"] = plan.name
        if plan.unseen:
            facts["unseen"] = True
        elif plan.judge.digest:
            facts["ruleset"] = plan.judge.digest
        if refusal is not None:
            facts["refused"] = refusal.why
        return facts

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
