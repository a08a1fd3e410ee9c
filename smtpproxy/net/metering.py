"""The supervisor's side of the metrics (smtpproxy/metrics): the memory they are in, and the process that tells them.

Where `[metrics] listen` is said, each worker counts into a region of its own (by its number in the tally), and one
process, forked like a worker and with no privileges at all, answers whoever asks. The socket is held here: a process
that dies is replaced by one that goes on with it, after a while that is doubled each time until one has lasted.

- A reload keeps the socket and its process where the address stays as it is written; another address is opened before
  anything else of the new generation is, and the one before it is closed when the new one serves. What was counted
  stays counted, whatever is reloaded.
- At a hand-over the old supervisor has the address until it lets go. The new one tries again until then; it counts from
  zero, as after a start.

What must never happen: that mail waits for any of this, or ends because of it.
"""

import contextlib
import os
import platform
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from smtpproxy import __version__
from smtpproxy.config import Endpoint, MetricsConfig
from smtpproxy.metrics.catalogue import STATES
from smtpproxy.metrics.gauges import RecorderGauges
from smtpproxy.metrics.meter import Meter
from smtpproxy.metrics.regions import OUR_ROOM, ROOM, Regions
from smtpproxy.metrics.totals import Totals, TotalsError, totals_of
from smtpproxy.net import forking, privileges
from smtpproxy.net.control import Status
from smtpproxy.net.listening import ListenError
from smtpproxy.net.machine import printable
from smtpproxy.net.privileges import Identity, PrivilegeError

log = structlog.get_logger()

OFTEN = 1.0  # seconds between two tellings of how it goes
RETRY_SOON, RETRY = 0.5, 60.0  # seconds until a process that died is replaced, doubled each time
LASTED = 60.0  # seconds one was there: what comes then is another trouble
NAME = "smtp-metrics"  # of the process, in proc(5)
BACKLOG = 16  # scrapes that wait


class Door(NamedTuple):
    """An address, and who answers there."""

    listen: Endpoint
    sock: socket.socket
    identity: Identity


class Metering:
    """The metrics of this supervisor.

    Args:
        workers: how many regions there are to be, as in the tally.

    Attributes:
        recorder: what the recorder says of itself, whoever that is just now.
    """

    def __init__(self, workers: int) -> None:
        self.recorder = RecorderGauges()
        self._workers = workers
        self._regions: Regions | None = None
        self._gone = Totals(OUR_ROOM - 4096)  # counted by workers that are gone; beside it there is how it goes
        self._door: Door | None = None
        self._coming: Door | None = None
        self._late: tuple[Endpoint, Identity] | None = None  # an address that a predecessor still has
        self._coming_late: tuple[Endpoint, Identity] | None = None  # the same, of a generation that is to come
        self._pid = 0
        self._born = 0.0
        self._delay = RETRY_SOON
        self._again_at = 0.0
        self._told_at = float("-inf")

    # ------------------------------------------------------------------------------------------------- the address

    def open(self, config: MetricsConfig, identity: Identity, *, patient: bool) -> None:
        """Have the address of a generation that is to come; `switch` or `stay` says what becomes of it.

        Args:
            patient: it may be a predecessor's still, and then it is tried again later.

        Raises:
            ListenError: it can't be had.
            OSError: there is no memory.
        """
        self._coming = self._coming_late = None
        if config.listen is None:
            return
        if self._regions is None:
            self._regions = Regions(self._workers)
        if self._door is not None and self._door.listen == config.listen:
            self._coming = self._door._replace(identity=identity)
            return
        try:
            self._coming = Door(config.listen, _open(config.listen), identity)
        except OSError as error:
            if not patient:
                raise ListenError(f"can't listen on {config.listen} for metrics: {error.strerror}") from error
            self._coming_late = config.listen, identity

    def switch(self) -> None:
        """The generation that was to come serves."""
        coming, self._coming = self._coming, None
        self._late, self._coming_late = self._coming_late, None
        before, self._door = self._door, coming
        same = before is not None and coming is not None and before.sock is coming.sock
        if not same:
            self._end()
            if before is not None:
                before.sock.close()
            if coming is not None:
                self._announce(coming)

    def stay(self) -> None:
        """It will not come."""
        coming, self._coming = self._coming, None
        self._coming_late = None
        if coming is not None and (self._door is None or coming.sock is not self._door.sock):
            coming.sock.close()

    @staticmethod
    def _announce(door: Door) -> None:
        log.info("metrics are told", on=printable(door.sock.getsockname()))

    # ----------------------------------------------------------------------------------------------------- workers

    def meter(self, config: MetricsConfig, region: int) -> Meter | None:
        """What the worker of this region counts with; None: nothing is counted. Called in the worker."""
        regions = self._regions
        if regions is None or config.listen is None:
            return None
        return Meter(lambda octets: regions.write(region, octets), ROOM)

    def fold(self, region: int) -> None:
        """A worker is gone: what it had counted stays counted."""
        if self._regions is None:
            return
        octets = self._regions.read(region)
        if not octets:
            return
        try:
            self._gone.add(totals_of(octets, OUR_ROOM))
        except TotalsError as error:
            log.error("what a worker had counted makes no sense: it is lost", why=str(error))
        with self._regions.moving():
            self._regions.write(None, self._gone.octets())
            self._regions.clear(region)
        self._told_at = float("-inf")  # how it goes is told at once

    # ------------------------------------------------------------------------------------------------- the process

    def check(self, now: float, status: Callable[[], Status]) -> None:
        """Called whenever the supervisor looks at everything: tell how it goes, and see whether the process is there.

        Args:
            now: the monotonic time.
            status: how it goes; asked for about once a second.
        """
        try:
            self._check(now, status)
        except Exception as error:  # our own bug, and no reason to end
            self._told_at, self._again_at = now, now + RETRY
            log.error("looking after the metrics failed", exc_info=error)

    def _check(self, now: float, status: Callable[[], Status]) -> None:
        if self._late is not None and self._door is None:
            listen, identity = self._late
            with contextlib.suppress(OSError):
                self._door, self._late = Door(listen, _open(listen), identity), None
                self._announce(self._door)
        if self._regions is None or self._door is None:
            return
        if now - self._told_at >= OFTEN:
            self._told_at = now
            self._tell(self._regions, status(), now)
        if self._pid:
            self._reap(now)
        if not self._pid and now >= self._again_at:
            self._start(self._regions, self._door, now)

    def _tell(self, regions: Regions, status: Status, now: float) -> None:
        """How it goes, and what was counted by those that are gone."""
        gauges, counters = self._gone.gauges, self._gone.counters
        gauges.clear()
        states = [worker.state for worker in status.workers]
        for state in STATES:
            gauges["workers", state] = float(states.count(state))
        gauges["sessions_open",] = float(status.sessions)
        gauges["start_time_seconds",] = status.since
        gauges["config_loaded_time_seconds",] = status.loaded
        gauges["build_info", __version__, platform.python_version()] = 1.0
        gauges["generation_info", str(status.generation), status.ruleset] = 1.0
        counters["worker_deaths_total",] = float(status.restarts)
        regions.write(None, self._gone.octets())
        regions.tell(now)

    def _start(self, regions: Regions, door: Door, now: float) -> None:
        parent = os.getpid()

        def task() -> int:
            return _answer(door, regions, self.recorder, parent)

        self._born = now
        try:
            self._pid = forking.fork(task, [door.sock.fileno()])
        except OSError as error:
            self._lost(error.strerror or str(error), now)

    def _reap(self, now: float) -> None:
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            self._pid = 0
            self._lost(forking.how(status), now)

    def _lost(self, how: str, now: float) -> None:
        if now - self._born >= LASTED:
            self._delay = RETRY_SOON
        self._again_at = now + self._delay
        log.error("the process that tells the metrics is lost", how=how, again_in=self._delay)
        self._delay = min(self._delay * 2, RETRY)

    def _end(self) -> None:
        """Of the process; it has nothing to finish."""
        pid, self._pid = self._pid, 0
        self._again_at, self._delay = 0.0, RETRY_SOON
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def leave(self) -> None:
        """Nobody is answered any more, and the address is free."""
        self.stay()
        self._late = None
        self._end()
        door, self._door = self._door, None
        if door is not None:
            door.sock.close()

    def close(self) -> None:
        """Let go of everything."""
        self.leave()
        self.recorder.close()


def _open(listen: Endpoint) -> socket.socket:
    """A socket that listens there.

    Raises:
        OSError: there can't be one.
    """
    six = ":" in listen.host
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((listen.host, listen.port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _answer(door: Door, regions: Regions, recorder: RecorderGauges, parent: int) -> int:
    """Be the process that answers. SIGTERM waits for ever: a service that is drained is looked at to its end."""
    from smtpproxy.metrics.serving import FRESH, serve  # here alone: nobody else needs prometheus_client

    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(NAME)
    os.nice(10)  # mail comes first
    try:
        privileges.drop(*door.identity)
    except PrivilegeError as error:
        log.error("the metrics can't be told", why=str(error))
        return 2

    def healthy() -> bool:
        fresh = time.monotonic() - regions.told_at < FRESH
        return fresh and _serving(regions) > 0

    serve(door.sock, regions, recorder, healthy, lambda: os.getppid() == parent)
    return 0


def _serving(regions: Regions) -> float:
    """How many workers serve."""
    try:
        return totals_of(regions.read(None), OUR_ROOM).gauges.get(("workers", "serving"), 0.0)
    except TotalsError:
        return 0.0
