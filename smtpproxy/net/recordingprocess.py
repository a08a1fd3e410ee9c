"""The recorder's process: what it has to do with the world around `store.recorder`.

It reads keys and secrets while it may, becomes who workers are, says `READY`, and waits for the store's lock. From then
on it takes steps, and sinks follow; where there is nothing to do it sleeps for `IDLE`, or until it is told something.
`LEAVE`: the lock goes to
whoever wants it, and is taken again if nobody does. `STOP`: what is there is taken over, the last checkpoint made, and
it ends. Without its supervisor it does so as soon as nobody writes the journal any more.
"""

import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import structlog

from smtpproxy.audit.journal import alone
from smtpproxy.audit.keys import KeyFileError, load
from smtpproxy.config import Config
from smtpproxy.metrics.gauges import MOST_SINKS, RecorderGauges
from smtpproxy.net import privileges
from smtpproxy.net.privileges import Identity, PrivilegeError
from smtpproxy.net.sinks import Planned, SinkError, plan
from smtpproxy.store.errors import StoreError
from smtpproxy.store.following import Followers
from smtpproxy.store.owning import take
from smtpproxy.store.recorder import Recorder, Terms
from smtpproxy.store.retaining import Bounds, Retention

log = structlog.get_logger()

LEAVE: Final = b"LEAVE"
STOP: Final = b"STOP"
READY: Final = b"READY"
FAILED: Final = b"FAILED "
IDLE: Final = 0.1  # seconds between two looks at a journal that has nothing new
PACE: Final = 0.1  # seconds between two transactions, unless so much waits that it does not fit into one
SOON, LATE = 0.1, 2.0  # seconds until what failed is tried again, doubled each time
LET_GO: Final = 1.0  # seconds that another one has to take the lock
SHOW: Final = 1.0  # seconds between two writings of the gauges
LAST: Final = 3.0  # seconds that sinks have at the end for what is new


_Result = TypeVar("_Result")


class Task(NamedTuple):
    """What it is to do.

    Attributes:
        identity: who it becomes.
        left: its generation no longer serves: another one comes first.
        gauges: what it says of itself.
    """

    config: Config
    identity: Identity
    left: bool = False
    gauges: RecorderGauges | None = None


def run(task: Task, orders: socket.socket) -> int:
    """Be the recorder, until it is over; the exit code."""
    audit = task.config.audit
    try:
        signer = load(Path(audit.key)) if audit.key else None
        origin = signer.name if signer is not None else f"smtpproxy/{socket.gethostname()}"
        sinks = plan(audit, origin, socket.gethostname())
        privileges.drop(*task.identity)
    except (KeyFileError, PrivilegeError, SinkError) as error:
        orders.send(FAILED + str(error).encode()[:4000])
        return 2
    os.umask(0o027)
    orders.send(READY)
    terms = Terms(origin, signer, audit.checkpoint_records, audit.checkpoint_seconds, audit.queue)
    return _Work(task, terms, sinks, orders).run()


class _Work:
    """One recorder's life."""

    def __init__(self, task: Task, terms: Terms, sinks: list[Planned], orders: socket.socket) -> None:
        self._directory = Path(task.config.audit.store)
        self._bounds = Bounds(task.config.audit.keep, task.config.audit.keep_size)
        self._terms = terms
        self._sinks = sinks
        self._gauges = task.gauges
        self._shown_at = float("-inf")
        self._counted = 0, 0  # checkpoints and gaps that were added to the gauges
        self._orders = orders
        self._left = task.left
        self._stopping = False
        self._orphaned = False
        self._trouble = ""
        self._delay = SOON

    def run(self) -> int:
        """Until it is over; the exit code."""
        while not self._over:
            if self._left:
                self._hear(LET_GO)
            lock = self._attempt(lambda: take(self._directory))
            if lock is None:
                self._hear(IDLE)
                continue
            try:
                self._serve()
            finally:
                os.close(lock)
        return 0

    @property
    def _over(self) -> bool:
        return self._stopping or (self._orphaned and alone(self._directory / "journal"))

    def _serve(self) -> None:
        """With the lock: until it is to be let go."""
        recorder = self._attempt(lambda: Recorder(self._directory, self._terms))
        if recorder is None:
            self._hear(self._delay)
            return
        try:
            sinks = [(one.make(), one.policy) for one in self._sinks]
            followers = self._attempt(lambda: Followers(recorder.store, sinks, _tell))
            if followers is None:
                self._hear(self._delay)
            else:
                self._record(recorder, followers)
        finally:
            recorder.close()

    def _record(self, recorder: Recorder, followers: Followers) -> None:
        retention = Retention(self._bounds, floor=followers.floor)
        self._counted = 0, 0
        left, self._left = self._left, False
        try:
            while not self._left:
                over = self._over  # before the step: what was written by then is taken over
                worked = self._attempt(recorder.step)
                self._attempt(followers.write)
                self._show(recorder, followers)
                if worked is None:
                    recorder.look_behind()
                    self._hear(self._delay)
                    if over:
                        return
                elif not worked:
                    if over:
                        self._attempt(recorder.checkpoint)
                        self._send_last(followers)
                        return
                    self._attempt(lambda: retention.check(recorder.store))
                    self._hear(IDLE)
                else:  # many records in one transaction cost half of what few in each do
                    self._hear(0.0 if over or recorder.more else PACE)
        finally:
            self._left = self._left or left
            for name in self._attempt(followers.stop) or ():
                log.warning("a sink does not answer, and was left behind", sink=name)

    def _send_last(self, followers: Followers) -> None:
        """Let those sinks that are there have what is new: else they would have it with the next start."""
        until = time.monotonic() + LAST
        while any(state.lag and not state.failing for state in followers.states()) and time.monotonic() < until:
            self._attempt(followers.write)
            time.sleep(0.02)

    def _show(self, recorder: Recorder, followers: Followers) -> None:
        """Say how far it is, to who asks for metrics."""
        now = time.monotonic()
        if self._gauges is None or now - self._shown_at < SHOW:
            return
        self._shown_at = now
        progress = self._attempt(lambda: recorder.progress)
        if progress is None:
            return
        checkpoints, gaps = self._counted
        self._counted = progress.checkpoints, progress.gaps
        self._gauges.add(checkpoints=progress.checkpoints - checkpoints, gaps=progress.gaps - gaps)
        self._gauges.set(
            present=1.0,
            journal_octets=progress.journal,
            pending_octets=progress.waiting,
            lag_seconds=progress.lag,
            records=progress.size,
            store_octets=progress.octets,
            full=float(progress.full),
            checkpoint_at=progress.checkpoint,
            checkpoint_records=progress.signed,
        )
        states = dict(enumerate(followers.states()))
        for index in range(MOST_SINKS):
            if (state := states.get(index)) is None:
                self._gauges.set_sink(index, "", lag_records=0, lag_seconds=0)
            else:
                self._gauges.set_sink(
                    index, state.name, lag_records=state.lag, lag_seconds=state.lag_seconds, failing=state.failing
                )

    def _attempt(self, act: Callable[[], _Result]) -> _Result | None:
        """What it gives; None if it failed, which is told once."""
        try:
            result = act()
        except (StoreError, OSError) as error:
            self._delay = min(self._delay * 2, LATE)
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.error("the record is not in the store yet: the journal keeps it", why=str(error))
            return None
        self._delay = SOON
        if self._trouble:
            self._trouble = ""
            log.info("the record is taken over into the store again")
        return result

    def _hear(self, patience: float) -> None:
        """What it is told, within this time."""
        if self._orphaned:
            time.sleep(patience)
            return
        ready, _, _ = select.select([self._orders], [], [], patience)
        if not ready:
            return
        try:
            order = self._orders.recv(64)
        except OSError:
            order = b""
        if order == LEAVE:
            self._left = True
        elif order == STOP:
            self._stopping = True
        elif not order:
            self._orphaned = True


def _tell(name: str, why: str) -> None:
    """A sink went down, or is there again."""
    if why:
        log.error("a sink is down: the store keeps what it has not had", sink=name, why=why)
    else:
        log.info("a sink is there again", sink=name)
