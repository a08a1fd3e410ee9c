"""The reactor: one epoll for all links, driven by one trio task.

A session is half-duplex but for two moments (content on its way, a quiet client behind whom the server speaks), and in
both the two links must be watched at once. A task for each session would need a second one for those; here every link
is watched all the time and nothing is scheduled for it: the session is sans-IO, so an event is a plain function call.
Measured (bench/README.md), that is the cheapest driver there is under trio; what awaits (names, timers, signals) stays
in trio tasks.

One turn: what the kernel reports is marked on its links; every relay concerned reads once a side and feeds its session;
*then the record is written*; then every relay sends. So no peer ever sees the effect of a decision that is not on
record, at one write a turn. If the record can't be written, nothing is sent and nothing is read: mail waits, and
nobody's patience runs out meanwhile (`stalled`, `resumed_at`).
"""

import contextlib
import os
import select
import time
from collections.abc import Callable
from typing import Protocol

import trio

WATCH = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
EVENTS = 256  # looked at in one turn
RETRY_SOON, RETRY = 0.001, 0.5  # seconds until a record that could not be written is tried again, doubled each time


class Record(Protocol):
    """Where records go."""

    unsettled: bool  # what was flushed has to be on the disk before anything is sent

    def flush(self) -> bool:
        """Write what was recorded; False if it could not be."""

    def settle(self) -> None:
        """Have it on the disk. Blocks; raises OSError if the disk failed."""


class Handler(Protocol):
    """Who is told of a file descriptor's events."""

    def event(self, fd: int, mask: int) -> None:
        """What epoll reported."""


class Worker(Protocol):
    """Who takes part in a turn: reads before the record is written, sends after."""

    queued: bool  # the reactor's

    def read(self) -> None:
        """Take in what there is. Must not raise."""

    def write(self) -> None:
        """Let out what is on record now. Must not raise."""


class Reactor:
    """Turns events into calls. `now` is the monotonic time of this turn; `measure` is told how long each one took."""

    def __init__(
        self,
        record: Record,
        clock: Callable[[], float] = time.monotonic,
        measure: Callable[[float], None] | None = None,
    ) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._record = record
        self._clock = clock
        self._measure = measure
        self._ready: list[Worker] = []  # have something to do without any event
        self.now = clock()
        self.stalled = False  # the record can't be written just now
        self._asleep = False  # waiting for an event
        self.resumed_at = float("-inf")  # when it last could again
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch_level(self._wake, self)

    def watch(self, fd: int, handler: Handler) -> None:
        """Report edges of this descriptor to the handler."""
        self._handlers[fd] = handler
        self._epoll.register(fd, WATCH)

    def watch_level(self, fd: int, handler: Handler) -> None:
        """Report as long as it is readable (listening sockets)."""
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """Report no more; to be called before the descriptor is closed."""
        if self._handlers.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def ready(self, worker: Worker) -> None:
        """Have it read and write in the next turn."""
        if not worker.queued:
            worker.queued = True
            self._ready.append(worker)

    def wake(self) -> None:
        """Have a turn now: called by who made somebody ready, perhaps outside a turn."""
        if self._asleep:
            self._asleep = False
            os.eventfd_write(self._wake, 1)

    def event(self, fd: int, mask: int) -> None:
        """Somebody called `wake`."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)

    def tick(self) -> float:
        """The time, for who acts outside a turn."""
        self.now = self._clock()
        return self.now

    async def run(self) -> None:
        """Turn for ever."""
        descriptor = self._epoll.fileno()
        poll = self._epoll.poll
        while True:
            events = poll(0, EVENTS)
            if not events and not self._ready:
                if self._record.flush():  # what was recorded while sending: sessions that ended
                    self._asleep = True
                    await trio.lowlevel.wait_readable(descriptor)
                    self._asleep = False
                else:
                    await self._stall()
                continue
            await self.turn(events)
            await trio.lowlevel.checkpoint()

    async def turn(self, events: list[tuple[int, int]]) -> None:
        """One turn: events, reads, the record, writes."""
        began = self.now = self._clock()
        handlers = self._handlers
        for fd, mask in events:
            handler = handlers.get(fd)
            if handler is not None:
                handler.event(fd, mask)
        workers, self._ready = self._ready, []
        for worker in workers:
            worker.queued = False
            worker.read()
        if not self._record.flush():
            await self._stall()
        if self._record.unsettled:
            await trio.to_thread.run_sync(self._record.settle)
        for worker in workers:
            worker.write()
        if self._measure is not None:
            self._measure(self._clock() - began)

    async def _stall(self) -> None:
        """Wait until the record can be written: a full disk tells nobody when there is room again."""
        self.stalled = True
        delay = RETRY_SOON
        while not self._record.flush():
            await trio.sleep(delay)
            delay = min(delay * 2, RETRY)
        self.stalled = False
        self.resumed_at = self.tick()

    def close(self) -> None:
        """Let go of the descriptors."""
        self._epoll.close()
        os.close(self._wake)
