"""The service: what one worker runs, from what its supervisor gives it to its exit code.

It prepares everything, gives up its privileges, says `READY`, and accepts when it is told `GO`. From then on:

    DRAIN   another generation serves: no new connections, which it confirms with `DRAINED`; sessions go on to their own
            end, and it ends with the last
    STOP    what is in flight is finished within the drain time, 421 to the rest; SIGTERM means the same, and so does
            the end of the supervisor, which is seen by the end of the order socket
    END     everything is dropped

Each of them can be told after those above it. What keeps it from serving it says as `FAILED`, with an exit code.

Exit codes: 0 ended in order · 1 stopped at once, or failed · 2 what is configured can't be had.
"""

import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import structlog
import trio

from smtpproxy.audit.appending import Appender, WriteLock
from smtpproxy.audit.journal import RESERVE, Journal, Owner
from smtpproxy.audit.keys import KeyFileError
from smtpproxy.audit.log import AuditLog
from smtpproxy.audit.rotating import RotatingFile
from smtpproxy.metrics.meter import Meter
from smtpproxy.net import privileges
from smtpproxy.net.asking import Asking, tidy
from smtpproxy.net.discretion import Discretion
from smtpproxy.net.forking import hear_sigterm
from smtpproxy.net.listener import ACCEPTS, Listener, Sessions
from smtpproxy.net.machine import Machine, plain
from smtpproxy.net.materials import MaterialError, Materials
from smtpproxy.net.origin import Loops
from smtpproxy.net.plans import Destination, Making, Plans
from smtpproxy.net.privileges import Identity, PrivilegeError
from smtpproxy.net.reactor import Reactor
from smtpproxy.net.setup import Setup
from smtpproxy.net.signing import Signer
from smtpproxy.net.tally import Tally
from smtpproxy.quarantine.folders import Folders
from smtpproxy.quarantine.store import Bounds, QuarantineError, Store

log = structlog.get_logger()

SWEEP = 1.0  # seconds between looks at everybody's patience
SPOOL = 1_048_576  # octets of held-back content kept in memory before a file is used
SHARED_ACCEPTS = 4  # connections taken in one turn where there are other workers: each is to have its share
LAST_WORDS = 3.0  # seconds for the 421 of who is told to go
LAST_RECORD = 0.5  # seconds for the record of who was dropped

STDOUT = "-"  # as a file of the audit
READY, FAILED, DRAINED = b"READY", b"FAILED ", b"DRAINED"


class Order(Enum):
    """What a worker is told."""

    GO = b"GO"
    DRAIN = b"DRAIN"
    STOP = b"STOP"
    END = b"END"


class Outfit(NamedTuple):
    """What a worker is given.

    Attributes:
        sockets: those of each listener, in the order of the configuration.
        audit: a descriptor.
        lock: who writes there, where others do as well.
        signer, certificate: its end of a pair with the signing process, and the CA's certificate; None, b"" without.
        identity: who it becomes; None: who it is.
        quiet: another worker has said already what could be said of what is configured.
        name: what its sessions begin with in the record; "": any.
        meter: what it counts with; None: it does not.
    """

    setup: Setup
    sockets: Sequence[Sequence[socket.socket]]
    audit: int
    tally: Tally
    lock: WriteLock | None = None
    signer: socket.socket | None = None
    certificate: bytes = b""
    identity: Identity | None = None
    quiet: bool = False
    name: str = ""
    meter: Meter | None = None


def _spool() -> Any:
    return tempfile.SpooledTemporaryFile(max_size=SPOOL, prefix="smtpproxy-")


class Service:
    """One worker."""

    def __init__(self, outfit: Outfit) -> None:
        self.config = outfit.setup.config
        self._outfit = outfit
        self._offset = 0.0
        self.set_wall_clock()
        self.journal = self._journal()
        self.audit = AuditLog(
            self._places(),
            wall=lambda at: at + self._offset,
            trouble=self._trouble,
            salted=self.journal is not None,
            durable=self.journal if self.config.audit.durable else None,
            meter=outfit.meter.count if outfit.meter is not None else None,
        )
        self.reactor = Reactor(self.audit, measure=outfit.meter.turned if outfit.meter is not None else None)
        signer = None
        if outfit.signer is not None:
            signer = Signer(self.reactor, outfit.signer, outfit.certificate)
        self.materials = Materials(self.config, self.reactor, time.time, signer)
        self.sessions = Sessions(
            connections=self.config.connections,
            per_client=self.config.connections_per_client,
            tally=outfit.tally,
            name=outfit.name,
        )
        self.store: Store | None = None  # of the quarantine
        self.asking = Asking(self.reactor)
        self.listeners: list[Listener] = []
        self._plans: list[Plans] = []
        self._destinations: list[Destination] = []
        self._draining = False
        self._drained = trio.Event()
        self.exit_code = 0

    def _journal(self) -> Journal | None:
        """Where the store's recorder looks for what is recorded here.

        Raises:
            OSError: it can't be written.
        """
        said = self.config.audit
        if not said.store:
            return None
        reserve = RESERVE if said.on_full == "refuse" else 0
        return Journal(Path(said.store) / "journal", reserve=reserve, durable=said.durable, owner=self._owner)

    def _places(self) -> list[Appender]:
        """What is recorded goes there: first where it is proved."""
        places: list[Appender] = [self.journal] if self.journal is not None else []
        said, given = self.config.audit, self._outfit
        if said.file and said.file != STDOUT and given.lock is not None and (said.rotate_size or said.rotate_age):
            path, size, age = Path(said.file), said.rotate_size, said.rotate_age
            places.append(RotatingFile(given.audit, path, given.lock, size=size, age=age, owner=self._owner))
        elif said.file:
            places.append(Appender(given.audit, given.lock))
        return places

    @property
    def _owner(self) -> Owner | None:
        """Whose files that are made here are to be, while others than the workers make them."""
        identity = self._outfit.identity
        return (identity.uid, identity.gid) if identity is not None and os.geteuid() == 0 else None

    def set_wall_clock(self) -> None:
        """What the time of day is by the monotonic clock. Looked at again and again: clocks are set, machines sleep."""
        self._offset = time.time() - time.monotonic()

    def _trouble(self, error: OSError | None) -> None:
        if self._outfit.meter is not None:
            self._outfit.meter.blocked(error is not None)
        if error is None:
            log.info("the audit can be written again")
        else:
            log.error("the audit can't be written: mail waits until it can", why=error.strerror)

    async def prepare(self) -> None:
        """Make everything that can fail. Files first, while they can be read: whoever looks up names has no privileges,
        nor has any thread.

        Raises:
            MaterialError: what is configured for TLS can't work.
            PrivilegeError: it can't become who it is to be.
            QuarantineError: nothing can be kept where mails are to be.
            KeyFileError: a key for the record can't be had.
        """
        self._discretion = Discretion(self.config.audit)
        self._open_quarantine()
        await self.materials.start()
        making = Making(self._outfit.setup, self.materials)
        self._plans = making.plans()
        self._destinations = making.destinations
        if self._outfit.identity is not None:
            self.materials.give_to(self._outfit.identity)
            privileges.drop(*self._outfit.identity, privileges.needed(self.config))
        if self.store is not None:
            self.store.usable()
        async with trio.open_nursery() as nursery:
            for destination in self._destinations:
                nursery.start_soon(destination.look_up)

    def _open_quarantine(self) -> None:
        said = self.config.quarantine
        if said.directory:
            identity = self._outfit.identity
            owner = None if identity is None else (identity.uid, identity.gid)
            folders = Folders(Path(said.directory), make=True, owner=owner)
            self.store = Store(folders, bounds=Bounds(said.size, said.mails))
            self.asking = Asking(self.reactor, self.store, self._outfit.meter)

    def accept(self) -> None:
        """Accept from here on."""
        if self._draining or self._drained.is_set():
            return
        sockets = self._outfit.sockets
        where = [plain(sock.getsockname()) for group in sockets for sock in group]
        loops = Loops(where, Machine(lambda: self.reactor.now))
        for plans, group in zip(self._plans, sockets, strict=True):
            self.listeners += [
                Listener(
                    plans,
                    sock,
                    self.reactor,
                    self.sessions,
                    self.audit,
                    loops=loops,
                    limits=self.config.limits_table(),
                    patience=self.config.patience_table(),
                    spool=_spool,
                    ask=self.asking.ask,
                    full=None if self.journal is None else self.journal.is_full,
                    private=self._discretion.of(plans.entry.addresses),
                    accepts=ACCEPTS if self.config.worker_count == 1 else SHARED_ACCEPTS,
                )
                for sock in group
            ]
        self.reactor.wake()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until stopped."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.reactor.run)
                nursery.start_soon(self._sweep)
                nursery.start_soon(self.materials.run)
                await nursery.start(self.asking.run)
                if self.store is not None:
                    nursery.start_soon(tidy, self.store, self.config.quarantine.days)
                for destination in self._destinations:
                    nursery.start_soon(destination.keep_fresh)
                task_status.started()
                await self._drained.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.close()
        await self._last_record()
        if self._outfit.meter is not None:
            self._outfit.meter.publish()

    async def _last_record(self) -> None:
        """Nothing is lost of it, but for who ends at once and for a disk that is full for good."""
        with trio.move_on_after(LAST_RECORD if self.exit_code else float("inf")):
            delay = 0.001
            while not self.audit.flush():
                await trio.sleep(delay)
                delay = min(delay * 2, LAST_RECORD)

    def close(self) -> None:
        """Let go of every socket; who is still there is dropped."""
        self._close_listeners()
        self.sessions.abandon()
        self.materials.close()
        if self.store is not None:
            self.store.close()
        self.reactor.close()

    def _close_listeners(self) -> None:
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()

    async def _sweep(self) -> None:
        while True:
            self._outfit.tally.beat(time.monotonic())
            if self._outfit.meter is not None:
                self._outfit.meter.publish()
            await trio.sleep(SWEEP)
            self.set_wall_clock()
            self.sessions.check(self.reactor.tick())
            self.asking.check()
            if self.journal is not None:
                self.journal.check()
            for listener in self.listeners:
                listener.check()
            try:
                self.materials.check()
            except Exception as error:  # our own bug, and no reason to end
                log.error("looking after certificates failed", exc_info=error)
            self.reactor.wake()

    def retire(self) -> None:
        """Accept no more; end when the last session has come to its own end."""
        self._draining = True
        self._close_listeners()
        self.sessions.changed = self._look_whether_drained
        self._look_whether_drained()

    def drain(self) -> None:
        """Accept no more; every session ends when nothing of it is in flight."""
        if self._drained.is_set():  # it has ended, and let go of everything
            return
        self.reactor.tick()
        self.sessions.drop_arriving()
        self.retire()
        for relay in tuple(self.sessions.relays):
            relay.drain()
        self.reactor.wake()

    def _look_whether_drained(self) -> None:
        if self.sessions.none:
            self._drained.set()

    async def stop(self, *, grace: float) -> None:
        """421 to whoever is still there after `grace` seconds, then end."""
        with trio.move_on_after(grace):
            await self._drained.wait()
            return
        self.reactor.tick()
        for relay in tuple(self.sessions.relays):
            relay.stop()
        self.reactor.wake()
        with trio.move_on_after(LAST_WORDS):
            await self._drained.wait()
        self._drained.set()

    def end_at_once(self) -> None:
        """Drop everything."""
        if not self._drained.is_set():
            self.exit_code = 1
        self._drained.set()


async def work(outfit: Outfit, orders: socket.socket) -> int:
    """Be a worker, until it is over; the exit code."""
    try:
        service = Service(outfit)
    except OSError as error:
        _say(orders, FAILED + f"3 the record can't be written: {error.strerror}".encode())
        return 3
    async with trio.open_nursery() as nursery:
        hearing = _Hearing(service, orders, nursery)
        await nursery.start(hearing.signals)
        nursery.start_soon(hearing.orders)
        try:
            with hearing.preparing, _hushed(outfit.quiet):
                await service.prepare()
        except (MaterialError, PrivilegeError, QuarantineError, KeyFileError) as error:
            service.close()
            service.exit_code = 2
            _say(orders, FAILED + f"2 {error}".encode())
        else:
            if hearing.preparing.cancelled_caught:
                service.close()
            else:
                _say(orders, READY)
                await service.run()
        nursery.cancel_scope.cancel()
    return service.exit_code


class _Hearing:
    """What a worker is told by orders and signals."""

    def __init__(self, service: Service, orders: socket.socket, nursery: trio.Nursery) -> None:
        self.preparing = trio.CancelScope()
        self._service = service
        self._orders = orders
        self._nursery = nursery
        self._stopping = False

    async def signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """SIGTERM may come again and again: a service manager tells all processes, and so does the supervisor."""
        with trio.open_signal_receiver(signal.SIGTERM) as received:
            hear_sigterm()
            task_status.started()
            async for _ in received:
                self._stop()

    async def orders(self) -> None:
        """Until the supervisor is gone."""
        while True:
            await trio.lowlevel.wait_readable(self._orders)
            try:
                order = self._orders.recv(64)
            except OSError:
                order = b""
            if order == Order.GO.value:
                self._service.accept()
            elif order == Order.DRAIN.value:
                self._service.retire()
                _say(self._orders, DRAINED)
            elif order == Order.END.value:
                self.preparing.cancel()
                self._service.end_at_once()
            else:
                self._stop()
            if not order:
                return

    def _stop(self) -> None:
        self.preparing.cancel()
        if not self._stopping:
            self._stopping = True
            self._service.drain()
            self._nursery.start_soon(lambda: self._service.stop(grace=self._service.config.patience_table().drain))


def _say(orders: socket.socket, octets: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody is there: which `orders` sees
        orders.send(octets[:4000])


@contextlib.contextmanager
def _hushed(quiet: bool) -> Any:
    """While it prepares, a worker that is not the first says only what is an error."""
    before = structlog.get_config()["wrapper_class"]
    if quiet:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    try:
        yield
    finally:
        if quiet:
            structlog.configure(wrapper_class=before)
