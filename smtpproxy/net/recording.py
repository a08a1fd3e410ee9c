"""The supervisor's side of the recorder: its directory is made, its process is started, watched and ended.

Each generation has one, and one at a time is at work on a store: the one that has its lock (`DIR/lock`). One whose
generation no longer serves lets go of the lock, and takes it again only if nobody else did: the next generation may
have another store. What is not taken over when one ends is in the journal, and the next one goes on with it.

What must never happen: two recorders at work on one store.
"""

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from smtpproxy.audit.journal import Journal, alone
from smtpproxy.config import Config
from smtpproxy.metrics.gauges import RecorderGauges
from smtpproxy.net import forking
from smtpproxy.net.privileges import Identity
from smtpproxy.net.recordingprocess import FAILED, LEAVE, READY, STOP, Task, run
from smtpproxy.store.errors import StoreError
from smtpproxy.store.owning import take
from smtpproxy.store.store import own_line

log = structlog.get_logger()

SOON, LATE = 0.5, 30.0  # seconds until one that died is started again, doubled each time
LASTED = 60.0  # seconds one was there: what comes then is another trouble
START = 30.0  # seconds for its first start
PATIENCE = 20.0  # seconds for it to take over what is left, at the end


class RecordingError(Exception):
    """The store's directory can't be used; the text says why."""


class Recording:
    """The recorder of one generation.

    Args:
        config: with a store.
        identity: who it becomes.
        first: there is no other process of this service yet.
        gauges: what its process says of itself.

    Raises:
        RecordingError: the directory can't be used, or another service uses it.
    """

    def __init__(
        self, config: Config, identity: Identity, *, first: bool, gauges: RecorderGauges | None = None
    ) -> None:
        self.directory = Path(config.audit.store)
        self._config = config
        self._identity = identity
        self._gauges = gauges
        self._pid = 0
        self._orders: socket.socket | None = None
        self._born = 0.0
        self._deaths = 0  # in a row
        self._again_at = 0.0
        self._left = False
        self._stopped_at: float | None = None
        owner = (identity.uid, identity.gid) if os.geteuid() == 0 else None
        try:
            for directory in (self.directory, self.directory / "journal"):
                with contextlib.suppress(FileExistsError):
                    directory.mkdir(mode=0o750)
                    if owner is not None:
                        os.chown(directory, *owner)
            if first:
                lock = take(self.directory)
                if lock is None:
                    raise RecordingError(f"another smtpproxy keeps its record in {self.directory}")
                if owner is not None:
                    os.fchown(lock, *owner)
                os.close(lock)
            nobody = alone(self.directory / "journal")
            self._journal = Journal(self.directory / "journal", owner=owner)
        except StoreError as error:
            raise RecordingError(str(error)) from error
        except OSError as error:
            raise RecordingError(f"the store {self.directory} can't be used: {error.strerror}") from error
        if first:
            self.say("service-start", {"alone": nobody})

    @classmethod
    def of(
        cls, config: Config, identity: Identity, *, first: bool, gauges: RecorderGauges | None = None
    ) -> "Recording | None":
        """As it is configured; None where there is no store."""
        return cls(config, identity, first=first, gauges=gauges) if config.audit.store else None

    @property
    def ended(self) -> bool:
        """It was stopped, and has come to its end."""
        return self._stopped_at is not None and self._pid == 0

    def say(self, kind: str, fields: Mapping[str, Any]) -> None:
        """A record of the service itself."""
        self._journal.add(own_line(kind, fields) + b"\n")
        try:
            self._journal.flush()
        except OSError as error:
            log.warning("a record of the service waits until it can be written", kind=kind, why=error.strerror)

    def start(self) -> None:
        """Start its process.

        Raises:
            OSError: there can't be one now.
        """
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            task = Task(self._config, self._identity, self._left, self._gauges)
            self._pid = forking.fork(lambda: run(task, its), [its.fileno()])
        except OSError:
            ours.close()
            raise
        finally:
            its.close()
        self._orders = ours
        self._born = time.monotonic()

    def started(self) -> None:
        """Wait until it is ready: with a key that can't be used the service is not to start.

        Raises:
            RecordingError: it never will be.
        """
        if self._orders is None:
            raise AssertionError("nothing was started")
        ready, _, _ = select.select([self._orders], [], [], START)
        said = self._orders.recv(4096) if ready else b""
        if said != READY:
            why = said.removeprefix(FAILED).decode(errors="replace") or f"no answer within {START:.0f} s"
            raise RecordingError(f"the recorder can't be started: {why}")

    def check(self) -> None:
        """Called at least once a second: one that died is replaced, one that does not end is given up."""
        now = time.monotonic()
        with contextlib.suppress(OSError):
            self._journal.flush()
        if self._pid:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if not pid:
                if self._stopped_at is not None and now - self._stopped_at > PATIENCE:
                    log.warning("the recorder has not finished: the next start goes on with the journal")
                    os.kill(self._pid, signal.SIGKILL)
                    os.waitpid(self._pid, 0)
                    self._ended_now()
                return
            self._ended_now()
            if self._stopped_at is not None:
                return
            self._deaths = 1 if now - self._born > LASTED else self._deaths + 1
            delay = min(SOON * 2 ** min(self._deaths - 1, 30), LATE)
            self._again_at = now + delay
            log.error("the recorder died", how=forking.how(status), again_in=delay)
        elif self._stopped_at is None and now >= self._again_at:
            try:
                self.start()
            except OSError as error:
                self._again_at = now + LATE
                log.error("no recorder can be started", why=error.strerror, again_in=LATE)

    def _ended_now(self) -> None:
        self._pid = 0
        if self._orders is not None:
            self._orders.close()
            self._orders = None

    def leave(self) -> None:
        """Another generation serves."""
        self._left = True
        self._tell(LEAVE)

    def stop(self) -> None:
        """Nobody writes any more: take over what is left, and end. `check` sees to it."""
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
            self._tell(STOP)

    def _tell(self, order: bytes) -> None:
        if self._orders is not None:
            with contextlib.suppress(OSError):
                self._orders.send(order)

    def close(self) -> None:
        """Let go of everything; the process ends of its own."""
        if self._orders is not None:
            self._orders.close()
            self._orders = None
        self._journal.close()
