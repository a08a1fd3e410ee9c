"""A generation: the workers that serve one setup, as the supervisor sees them.

A reload makes a new one. It is `COMING` until all its workers are ready, and then goes all at once; the one before it
is `RETIRED`: it accepts no more, and ends with its last session. While it serves, a worker that dies is replaced from
the same setup: the first time at once, then after a while (doubled each time, until one has lasted). One that gives no
sign of life for `HUNG` is killed, which makes it one that died.

What must never happen: two workers with one region of the tally, or in one slot of the signing process.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, NamedTuple

import structlog
import trio

from smtpproxy.audit.appending import WriteLock
from smtpproxy.net import forking
from smtpproxy.net.listening import Held
from smtpproxy.net.loop import Loop
from smtpproxy.net.metering import Metering
from smtpproxy.net.privileges import Identity
from smtpproxy.net.recording import Recording
from smtpproxy.net.service import DRAINED, FAILED, READY, Order, Outfit, work
from smtpproxy.net.setup import Setup
from smtpproxy.net.signingprocess import SigningProcess
from smtpproxy.net.tally import Tallies, TallyError

log = structlog.get_logger()

READY_IN = 50.0  # seconds a worker may take to be ready
HUNG = 30.0  # seconds without a sign of life
ASLEEP = 5.0  # seconds between two looks that mean that we were stopped ourselves, and the workers perhaps as well
LASTED = 60.0  # seconds a worker lived: if it dies after that, it is another trouble
SOON, LATE = 0.5, 30.0  # seconds until a worker is replaced that died soon after another did, doubled each time
END_IN = 3.0  # seconds to end at once; then it is killed
SAID, MOST_SAID = 4096, 16  # octets of the longest thing a worker says; how much of it is heard in one turn
WRONG = 2  # the exit code where what is configured can't be had


class Phase(Enum):
    """Where a generation is in its life; it only ever goes on."""

    COMING = "coming"
    SERVING = "serving"
    RETIRED = "retired"  # accepts no more; sessions go on to their own end
    STOPPING = "stopping"  # and are told 421 as soon as nothing is in flight


class Failure(NamedTuple):
    """Why a generation can't serve, and the exit code if it was to be the first."""

    code: int
    text: str


class Record(NamedTuple):
    """Where the audit goes."""

    descriptor: int
    lock: WriteLock
    file: tuple[int, int]  # which file that is: device, inode


class Worker:
    """One process."""

    def __init__(self, pid: int, name: str, region: int, orders: socket.socket, born: float) -> None:
        self.pid = pid
        self.name = name  # in the record: what its sessions are called begins with it
        self.region = region
        self.orders = orders
        self.born = born
        self.ready_at: float | None = None
        self.accepts = True  # or will, when it is told to go
        self.failure: Failure | None = None  # what it said
        self.given_up = False  # killed by us


class Slot:
    """The place of a worker, which others may have had before."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.worker: Worker | None = None
        self.again_at = 0.0  # when there is to be another one
        self.deaths = 0  # in a row


class Generation:
    """The workers of one setup.

    Attributes:
        failure: why it can't serve, while it is coming.
        deaths: workers that died while it served.
        unclean: one died while it was to end in order.
    """

    def __init__(
        self,
        number: int,
        setup: Setup,
        held: Sequence[Held],
        record: Record,
        *,
        loop: Loop,
        tallies: Tallies,
        metering: Metering,
        signing: SigningProcess | None,
        recording: Recording | None = None,
        identity: Identity,
    ) -> None:
        self.number = number
        self.setup = setup
        self.held = tuple(held)
        self.record = record
        self.signing = signing
        self.recording = recording
        self.phase = Phase.COMING
        self.failure: Failure | None = None
        self.deaths = 0
        self.unclean = False
        self.slots = [Slot(number) for number in range(setup.config.worker_count)]
        self._loop = loop
        self._tallies = tallies
        self._metering = metering
        self._identity = identity
        self._looked_at: float | None = None
        self._forgiven_at = float("-inf")  # silence before this does not count
        self._kill_at = float("inf")

    @property
    def workers(self) -> Iterator[Worker]:
        """Those there are."""
        return (slot.worker for slot in self.slots if slot.worker is not None)

    @property
    def ready(self) -> bool:
        """All of them are."""
        return all(slot.worker is not None and slot.worker.ready_at is not None for slot in self.slots)

    @property
    def accepts(self) -> bool:
        """One of them does, as far as is known."""
        return any(worker.accepts for worker in self.workers)

    @property
    def over(self) -> bool:
        """None is left, and there will be none; what they recorded is in the store."""
        if self.phase is Phase.SERVING or any(self.workers):
            return False
        return self.recording is None or self.recording.ended

    @property
    def sessions(self) -> int:
        """Of all its workers."""
        counts = self._tallies.sessions()
        return sum(counts[worker.region] for worker in self.workers)

    @property
    def healthy(self) -> bool:
        """One of its workers, at least, gives signs of life."""
        return any(worker.ready_at is not None and self._silent_for(worker) < HUNG for worker in self.workers)

    # ---------------------------------------------------------------------------------------------------- orders

    def start(self) -> None:
        """Fork all workers. What keeps one from being forked is a `failure`, as what a worker says is."""
        for slot in self.slots:
            self._fork(slot)
            if self.failure is not None:
                return

    def go(self) -> None:
        """Accept."""
        self.phase = Phase.SERVING
        self._order(Order.GO)

    def retire(self) -> None:
        """Accept no more; sessions go on to their own end."""
        self.phase = Phase.RETIRED
        self._order(Order.DRAIN)
        if self.recording is not None:
            self.recording.leave()

    def stop(self) -> None:
        """What is in flight is finished within the drain time; 421 to the rest."""
        if self.phase is not Phase.STOPPING:
            self.phase = Phase.STOPPING
            self._order(Order.STOP)

    def end(self) -> None:
        """Drop everything."""
        self.phase = Phase.STOPPING
        self._order(Order.END)
        self._kill_at = min(self._kill_at, self._loop.now + END_IN)

    def _order(self, order: Order) -> None:
        for worker in self.workers:
            _tell(worker, order)

    # ------------------------------------------------------------------------------------------------- processes

    def _fork(self, slot: Slot) -> None:
        """A worker for a slot that has none."""
        try:
            region = self._tallies.claim()
        except TallyError as error:
            self._not_forked(slot, str(error))
            return
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            its.setblocking(False)
            its_signer = self.signing.socket_of(slot.number) if self.signing is not None else None
            keep = [its.fileno(), self.record.descriptor, self.record.lock.fileno()]
            keep += [sock.fileno() for held in self.held for sock in held.sockets]
            keep += [its_signer.fileno()] if its_signer is not None else []
            quiet = slot.number > 0 or self.phase is not Phase.COMING  # one of them tells what all could
            certificate = self.signing.certificate if self.signing is not None else b""
            name = os.urandom(5).hex()

            def task() -> int:
                outfit = Outfit(
                    self.setup,
                    tuple(held.sockets for held in self.held),
                    self.record.descriptor,
                    self._tallies.open(region),
                    self.record.lock,
                    its_signer,
                    certificate,
                    self._identity,
                    quiet,
                    name,
                    self._metering.meter(self.setup.config.metrics, region),
                )
                return trio.run(work, outfit, its)

            pid = forking.fork(task, keep)
        except OSError as error:
            ours.close()
            self._tallies.release(region)
            self._not_forked(slot, error.strerror or str(error))
            return
        finally:
            its.close()
        worker = Worker(pid, name, region, ours, self._loop.now)
        slot.worker = worker
        self._loop.watch(ours.fileno(), lambda: self._hear(worker))

    def _not_forked(self, slot: Slot, why: str) -> None:
        why = f"no worker can be started: {why}"
        if self.phase is Phase.COMING:
            self.failure = Failure(1, why)
            return
        delay = self._again_in(slot)
        slot.again_at = self._loop.now + delay
        log.error(why, again_in=delay)

    def _hear(self, worker: Worker) -> None:
        """What it says. At its end it is watched no more; that it has died is for `reap` to see.

        It reads what peers send, and may have been taken over by one: nothing it says makes this process wait or fail.
        """
        for _ in range(MOST_SAID):
            try:
                said = worker.orders.recv(SAID)
            except BlockingIOError:
                return
            except OSError:
                said = b""
            if not said:
                self._loop.forget(worker.orders.fileno())
                return
            if said == READY and worker.ready_at is None:
                worker.ready_at = self._loop.now
                if self.phase is Phase.SERVING:
                    _tell(worker, Order.GO)
            elif said == DRAINED:
                worker.accepts = False
            elif said.startswith(FAILED):
                code, _, text = said.removeprefix(FAILED).decode(errors="replace").partition(" ")
                words = "".join(c if c.isprintable() else " " for c in text)
                worker.failure = Failure(WRONG if code == str(WRONG) else 1, words)

    def reap(self) -> None:
        """See who has died."""
        for slot in self.slots:
            worker = slot.worker
            if worker is None:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._hear(worker)  # its last words
                self._died(slot, worker, status)

    def _died(self, slot: Slot, worker: Worker, status: int) -> None:
        lived = self._loop.now - worker.born
        sessions = self._tallies.sessions()[worker.region]
        self._loop.forget(worker.orders.fileno())
        worker.orders.close()
        self._metering.fold(worker.region)
        self._tallies.release(worker.region)
        slot.worker = None
        how = forking.how(status)
        if worker.failure is not None:
            how = f"{how}: {worker.failure.text}"
        if self.recording is not None and status != 0:
            self.recording.say("worker-died", {"worker": worker.name, "how": how, "sessions": sessions})
        facts: dict[str, Any] = {"pid": worker.pid, "how": how, "lived": round(lived, 1)}
        if self.phase is Phase.COMING:
            self.failure = self.failure or worker.failure or Failure(1, f"a worker {how} before it was ready")
        elif self.phase is Phase.SERVING:
            if lived >= LASTED:
                slot.deaths = 0
            self.deaths += 1
            delay = self._again_in(slot)
            facts |= {"sessions": sessions, "in_a_row": slot.deaths}
            if status == 0:  # SIGTERM; perhaps to all, and the supervisor's own is on its way
                delay = max(delay, SOON)
                log.warning("a worker has ended, and not by order", **facts, again_in=delay)
            else:
                log.error("a worker died", **facts, again_in=delay)
            slot.again_at = self._loop.now + delay
        elif status != 0 and self._kill_at == float("inf"):
            self.unclean = True
            log.error("a worker died while it was draining", **facts, sessions=sessions)

    @staticmethod
    def _again_in(slot: Slot) -> float:
        """How long until there is to be another one."""
        slot.deaths += 1
        return float(min(SOON * 2 ** min(slot.deaths - 2, 30), LATE)) if slot.deaths > 1 else 0.0

    def check(self) -> None:
        """Called at least once a second: who is missing is replaced, who hangs is killed."""
        now = self._loop.now
        if self._looked_at is not None and now - self._looked_at > ASLEEP:
            self._forgiven_at = now
        self._looked_at = now
        if self.signing is not None:
            self.signing.check(now)
        if self.recording is not None:
            if self.phase in (Phase.RETIRED, Phase.STOPPING) and not any(self.workers):
                self.recording.stop()
            self.recording.check()
        for slot in self.slots:
            if slot.worker is not None:
                self._look_at(slot.worker)
            elif self.phase is Phase.SERVING and now >= slot.again_at:
                self._fork(slot)

    def _look_at(self, worker: Worker) -> None:
        if worker.given_up:
            return
        if self._loop.now >= self._kill_at:
            self._kill(worker)
        elif worker.ready_at is None:
            if self._loop.now - max(worker.born, self._forgiven_at) > READY_IN:
                worker.failure = Failure(1, f"a worker was not ready within {READY_IN:.0f} s")
                log.error("a worker is not ready: it is killed", pid=worker.pid, after=READY_IN)
                self._kill(worker)
        elif (silent := self._silent_for(worker)) > HUNG:
            log.error("a worker gives no sign of life: it is killed", pid=worker.pid, silent_for=round(silent, 1))
            self._kill(worker)

    def _silent_for(self, worker: Worker) -> float:
        """Seconds since it last gave a sign of life."""
        beat = self._tallies.beats()[worker.region]
        return self._loop.now - max(beat, worker.ready_at or worker.born, self._forgiven_at)

    @staticmethod
    def _kill(worker: Worker) -> None:
        worker.given_up = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of what it alone had; its workers are over."""
        if self.signing is not None:
            self.signing.close()
        if self.recording is not None:
            self.recording.close()


def _tell(worker: Worker, order: Order) -> None:
    with contextlib.suppress(OSError):  # it has died, which will be seen
        worker.orders.send(order.value)
