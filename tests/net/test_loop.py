"""What the supervisor waits for."""

import os
import select
import signal
import socket

from smtpproxy.net.loop import Loop


def test_who_watches_is_told_as_long_as_there_is_something() -> None:
    loop = Loop()
    one, other = socket.socketpair()
    told: list[str] = []
    loop.watch(one.fileno(), lambda: told.append("one"))
    assert loop.wait(0) == []
    assert told == []
    other.send(b"x")
    loop.wait(0)
    loop.wait(0)
    assert told == ["one", "one"]
    loop.watch(one.fileno(), lambda: told.append("room"), select.POLLOUT)
    loop.wait(0)
    assert told == ["one", "one", "room"]
    loop.forget(one.fileno())
    loop.forget(one.fileno())  # not watched any more, which is no mistake
    loop.wait(0)
    assert told == ["one", "one", "room"]
    for end in (one, other):
        end.close()
    loop.close()


def test_who_is_forgotten_in_the_same_turn_is_not_told() -> None:
    """Whoever is told may close what others watch."""
    loop = Loop()
    pairs = [socket.socketpair(), socket.socketpair()]
    told: list[int] = []

    def act(number: int) -> None:
        told.append(number)
        loop.forget(pairs[1 - number][0].fileno())

    for number, (one, other) in enumerate(pairs):
        loop.watch(one.fileno(), lambda number=number: act(number))  # type: ignore[misc]
        other.send(b"x")
    loop.wait(0)
    assert len(told) == 1
    for end in (*pairs[0], *pairs[1]):
        end.close()
    loop.close()


def test_signals_are_returned_in_their_order_and_once() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    loop = Loop()
    loop.hear((signal.SIGUSR2, signal.SIGHUP))
    for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGUSR2):
        os.kill(os.getpid(), number)
    assert loop.wait(0) == [signal.SIGHUP, signal.SIGUSR2, signal.SIGUSR2]
    assert loop.wait(0) == []
    os.kill(os.getpid(), signal.SIGHUP)
    assert loop.wait(60) == [signal.SIGHUP]  # at once
    loop.close()
    assert signal.getsignal(signal.SIGUSR2) is before


def test_the_time_is_that_of_what_was_waited_for() -> None:
    times = iter([1.0, 2.0, 3.0])
    loop = Loop(lambda: next(times))
    one, other = socket.socketpair()
    seen: list[float] = []
    loop.watch(one.fileno(), lambda: seen.append(loop.now))
    other.send(b"x")
    assert loop.now == 1.0
    loop.wait(-5)
    assert (seen, loop.now) == ([2.0], 2.0)
    for end in (one, other):
        end.close()
    loop.close()
