"""The reactor: turns, and that nothing is sent before the record of it is written (S8)."""

import os
import select
import socket
import time
from collections.abc import Iterator

import pytest
import trio

from smtpproxy.net.reactor import RETRY, Reactor
from tests.net.rig import DEADLINE, settled, until


class Disk:
    """A record that can be full."""

    def __init__(self) -> None:
        self.full = False
        self.unsettled = False
        self.flushes = 0
        self.settled: list[int] = []  # after which flush

    def settle(self) -> None:
        """As AuditLog."""
        self.unsettled = False
        self.settled.append(self.flushes)

    def flush(self) -> bool:
        """As AuditLog."""
        self.flushes += 1
        return not self.full


class Steps:
    """A worker and handler that notes what is done with it."""

    def __init__(self, reactor: Reactor, disk: Disk) -> None:
        self.queued = False
        self.done: list[tuple[str, int]] = []
        self._reactor = reactor
        self._disk = disk

    def event(self, fd: int, mask: int) -> None:
        """An edge: a turn is wanted."""
        self.done.append(("event", mask))
        self._reactor.ready(self)

    def read(self) -> None:
        """The first half of a turn."""
        self.done.append(("read", self._disk.flushes))

    def write(self) -> None:
        """The second half."""
        self.done.append(("write", self._disk.flushes))


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def reactor(disk: Disk) -> Iterator[Reactor]:
    made = Reactor(disk)
    yield made
    made.close()


async def test_a_turn_reads_then_writes_the_record_then_sends(reactor: Reactor, disk: Disk) -> None:
    steps = Steps(reactor, disk)
    reactor.ready(steps)
    reactor.ready(steps)  # once a turn
    await reactor.turn([])
    assert steps.done == [("read", 0), ("write", 1)]
    await reactor.turn([])
    assert len(steps.done) == 2


async def test_one_record_write_for_all_of_a_turn(reactor: Reactor, disk: Disk) -> None:
    workers = [Steps(reactor, disk) for _ in range(3)]
    for worker in workers:
        reactor.ready(worker)
    await reactor.turn([])
    assert [worker.done for worker in workers] == [[("read", 0), ("write", 1)]] * 3


async def test_who_becomes_ready_while_reading_is_in_the_next_turn(reactor: Reactor, disk: Disk) -> None:
    first, second = Steps(reactor, disk), Steps(reactor, disk)
    first.read = lambda: reactor.ready(second)  # type: ignore[method-assign]
    reactor.ready(first)
    await reactor.turn([])
    assert second.done == []
    await reactor.turn([])
    assert second.done == [("read", 1), ("write", 2)]


async def test_nothing_is_sent_while_the_record_cannot_be_written(reactor: Reactor, disk: Disk) -> None:
    steps = Steps(reactor, disk)
    disk.full = True
    reactor.ready(steps)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reactor.turn, [])
        await until(lambda: disk.flushes > 3, "not tried again")
        assert steps.done == [("read", 0)]
        assert reactor.stalled
        before = reactor.now
        disk.full = False
    assert [name for name, _ in steps.done] == ["read", "write"]
    assert reactor.resumed_at == reactor.now > before
    await reactor.turn([])
    assert not reactor.stalled


async def test_a_record_that_fails_is_tried_soon_and_then_ever_less_often(
    reactor: Reactor, disk: Disk, autojump_clock: trio.testing.MockClock
) -> None:
    """A slow reader costs a millisecond, a full disk no processor."""
    disk.full = True
    started = trio.current_time()
    with trio.move_on_after(100):
        await reactor.turn([])
    assert trio.current_time() - started == pytest.approx(100)
    assert 100 / RETRY <= disk.flushes <= 100 / RETRY + 15


async def test_edges_are_reported_to_whom_they_belong(reactor: Reactor, disk: Disk) -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        steps = Steps(reactor, disk)
        reactor.watch(ours.fileno(), steps)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reactor.run)
            await until(lambda: steps.done, "no event")
            steps.done.clear()
            peer.send(b"x")
            await until(lambda: len(steps.done) >= 3, "no event")
            _, mask = steps.done[0]
            assert mask & select.EPOLLIN
            count = len(steps.done)
            await settled()
            assert len(steps.done) == count  # an edge, not a level: nobody has read, and nothing is said again
            reactor.forget(ours.fileno())
            peer.send(b"x")
            await settled()
            assert len(steps.done) == count
            nursery.cancel_scope.cancel()


async def test_forgetting_what_is_not_watched_is_no_error(reactor: Reactor) -> None:
    reactor.forget(-1)
    reactor.forget(12345)


async def test_an_idle_reactor_sleeps(reactor: Reactor, disk: Disk) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reactor.run)
        await settled()
        before, turns = time.process_time(), disk.flushes
        await trio.sleep(0.1)
        assert disk.flushes == turns
        assert time.process_time() - before < 0.05
        nursery.cancel_scope.cancel()


async def test_wake_makes_a_turn_for_who_became_ready_outside_of_one(reactor: Reactor, disk: Disk) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reactor.run)
        await settled()
        steps = Steps(reactor, disk)
        reactor.ready(steps)
        for _ in range(3):
            reactor.wake()
        await until(lambda: len(steps.done) == 2, "no turn")
        nursery.cancel_scope.cancel()
    reactor.event(reactor._wake, select.EPOLLIN)  # woken for nothing: no error


async def test_the_time_is_that_of_the_turn(disk: Disk) -> None:
    times = iter([1.0, 2.0, 3.0])
    reactor = Reactor(disk, clock=lambda: next(times))
    assert reactor.now == 1.0
    await reactor.turn([])
    assert reactor.now == 2.0
    assert reactor.tick() == reactor.now == 3.0
    reactor.close()


async def test_other_tasks_get_their_turn_while_there_is_always_something_to_do(reactor: Reactor, disk: Disk) -> None:
    busy = Steps(reactor, disk)
    busy.write = lambda: reactor.ready(busy)  # type: ignore[method-assign]
    reactor.ready(busy)
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reactor.run)
            await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert len(busy.done) > 10


def test_close_lets_go_of_the_descriptors(disk: Disk) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reactor = Reactor(disk)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    reactor.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_what_is_recorded_while_sending_is_written_before_the_reactor_sleeps(
    reactor: Reactor, disk: Disk
) -> None:
    """The end of the last session must not wait for the next one to be on record."""
    steps = Steps(reactor, disk)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reactor.run)
        reactor.ready(steps)
        reactor.wake()
        await until(lambda: len(steps.done) == 2, "no turn")
        await settled()
        _, flushes = steps.done[1]
        assert disk.flushes > flushes
        nursery.cancel_scope.cancel()
