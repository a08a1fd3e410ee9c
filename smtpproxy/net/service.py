"""The service: everything a running proxy is, from the configuration to the exit code.

Signals: the first SIGTERM or SIGINT drains (no new connections; what is in flight is finished within the drain time;
421 to the rest), a second one stops at once; SIGHUP reads the rules again for new sessions, all or nothing.

Exit codes: 0 ended in order · 1 stopped at once, or failed while running · 3 a listener could not be opened.
"""

import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import structlog
import trio

from smtpproxy.audit.log import AuditLog, open_file
from smtpproxy.config import Config
from smtpproxy.net.listener import Destination, Listener, Sessions, open_sockets, printable
from smtpproxy.net.materials import MaterialError, Materials
from smtpproxy.net.reactor import Reactor
from smtpproxy.session.verdicts import Judge

log = structlog.get_logger()

SWEEP = 1.0  # seconds between looks at everybody's patience
SPOOL = 1_048_576  # octets of held-back content kept in memory before a file is used


def _spool() -> Any:
    return tempfile.SpooledTemporaryFile(max_size=SPOOL, prefix="smtpproxy-")


class Service:
    """One running proxy."""

    def __init__(self, config: Config, judge: Judge, load: Callable[[], Judge | None], audit_fd: int) -> None:
        self.config = config
        self.judge = judge
        self._load = load
        self._offset = 0.0
        self.set_wall_clock()
        self.audit = AuditLog(audit_fd, wall=lambda at: at + self._offset, trouble=self._trouble)
        self.reactor = Reactor(self.audit)
        self.materials = Materials(config, self.reactor, time.time)
        self.sessions = Sessions(connections=config.connections, per_client=config.connections_per_client)
        self.listeners: list[Listener] = []
        self._destinations: list[Destination] = []
        self._drained = trio.Event()
        self.exit_code = 0

    def set_wall_clock(self) -> None:
        """What the time of day is by the monotonic clock. Looked at again and again: clocks are set, machines sleep."""
        self._offset = time.time() - time.monotonic()

    @staticmethod
    def _trouble(error: OSError | None) -> None:
        if error is None:
            log.info("the audit can be written again")
        else:
            log.error("the audit can't be written: mail waits until it can", why=error.strerror)

    async def open(self, announce: Callable[[str], None]) -> None:
        """Open every listener.

        Raises:
            OSError: one of them can't be opened; `filename` says which.
            MaterialError: what is configured for TLS can't work.
        """
        await self.materials.start()
        for entry in self.config.listeners:
            tls = await trio.to_thread.run_sync(self.materials.listener, entry)
            destination = Destination(entry.server)
            await destination.look_up()
            self._destinations.append(destination)
            try:
                sockets = await trio.to_thread.run_sync(open_sockets, entry.listen)
            except (OSError, UnicodeError) as error:
                why = (error.errno, error.strerror) if isinstance(error, OSError) else (0, "the name is not a host's")
                raise OSError(*why, str(entry.listen)) from error
            for sock in sockets:
                self.listeners.append(
                    Listener(
                        entry,
                        sock,
                        destination,
                        self.reactor,
                        self.sessions,
                        self.audit,
                        judge=lambda: self.judge,
                        limits=self.config.limits_table(),
                        patience=self.config.patience_table(),
                        spool=_spool,
                        tls=tls,
                    )
                )
                announce(f"smtpproxy: listening on {printable(sock.getsockname())} (server {entry.server})")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until stopped."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.reactor.run)
                nursery.start_soon(self._sweep)
                nursery.start_soon(self.materials.run)
                for destination in self._destinations:
                    nursery.start_soon(destination.keep_fresh)
                task_status.started()
                await self._drained.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.close()
        while not self.audit.flush() and self.exit_code == 0:  # noqa: ASYNC110 - a full disk tells nobody
            await trio.sleep(0.5)

    def close(self) -> None:
        """Let go of every socket; who is still there is dropped."""
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()
        for relay in tuple(self.sessions.relays):
            relay.abandon()
        self.materials.close()
        self.reactor.close()

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP)
            self.set_wall_clock()
            self.reactor.tick()
            for relay in tuple(self.sessions.relays):
                relay.check()
            for listener in self.listeners:
                listener.check()
            try:
                self.materials.check()
            except Exception as error:  # our own bug, and no reason to end
                log.error("looking after certificates failed", exc_info=error)
            self.reactor.wake()

    def reload(self) -> None:
        """Read the rules again; sessions that run keep theirs."""
        try:
            judge = self._load()
        except Exception as error:  # our own bug, and no reason to end
            log.error("reading the rules failed", exc_info=error)
            judge = None
        if judge is None:
            log.error("the rules were not reloaded: the ones in force stay")
        else:
            self.judge = judge
            log.info("rules reloaded")

    def drain(self) -> None:
        """Accept no more; stop when what is in flight is done."""
        self.reactor.tick()
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()
        self.sessions.changed = self._look_whether_drained
        for relay in tuple(self.sessions.relays):
            relay.drain()
        self.reactor.wake()
        self._look_whether_drained()

    def _look_whether_drained(self) -> None:
        if not self.sessions.relays:
            self._drained.set()

    async def stop(self, *, grace: float) -> None:
        """421 to whoever is still there after `grace` seconds, then end."""
        with trio.move_on_after(grace):
            await self._drained.wait()
        self.reactor.tick()
        for relay in tuple(self.sessions.relays):
            relay.stop()
        self.reactor.wake()
        with trio.move_on_after(3.0):
            await self._drained.wait()
        self._drained.set()

    def end_at_once(self) -> None:
        """Drop everything."""
        self.exit_code = 1
        self._drained.set()


async def _signals(
    service: Service, nursery: trio.Nursery, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        task_status.started()
        stopping = False
        async for number in received:
            if number == signal.SIGHUP:
                service.reload()
            elif stopping:
                log.warning("stopping at once")
                service.end_at_once()
            else:
                stopping = True
                count = len(service.sessions.relays)
                log.info("draining; a second signal stops at once", sessions=count)
                service.drain()
                nursery.start_soon(lambda: service.stop(grace=service.config.patience_table().drain))


async def run(config: Config, load: Callable[[], Judge | None]) -> int:
    """Serve as configured until told to stop; the exit code.

    Args:
        config: checked already.
        load: reads the rules (again); None when they are bad, and then it has said why.
    """
    judge = load()
    if judge is None:
        return 2
    descriptor = 1
    if config.audit.file != "-":
        try:
            descriptor = open_file(config.audit.file)
        except OSError as error:
            print(f"smtpproxy: the audit {config.audit.file} can't be opened: {error.strerror}", file=sys.stderr)
            return 3
    service = Service(config, judge, load, descriptor)
    async with trio.open_nursery() as nursery:
        await nursery.start(_signals, service, nursery)
        try:
            await service.open(lambda line: print(line, file=sys.stderr, flush=True))
        except OSError as error:
            service.close()
            service.exit_code = 3
            print(f"smtpproxy: can't listen on {error.filename}: {error.strerror}", file=sys.stderr)
        except MaterialError as error:
            service.close()
            service.exit_code = 2
            print(f"smtpproxy: {error}", file=sys.stderr)
        else:
            await service.run()
        nursery.cancel_scope.cancel()
    return service.exit_code
