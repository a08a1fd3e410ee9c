"""What the supervisor waits for: descriptors and signals, and nothing else. Plain poll, one thread, never blocking.

It is no reactor: it has a handful of descriptors, and whoever is told may forget others, so each is looked up anew.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

Act = Callable[[], None]


class Loop:
    """Waits; tells who watches. `now` is the monotonic time of what was last waited for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.now = clock()
        self._poll = select.poll()
        self._acts: dict[int, Act] = {}
        self._heard: list[int] = []
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.watch(self._reading, self._read_signals)

    def hear(self, numbers: Iterable[signal.Signals]) -> None:
        """From here on these signals are collected, for `wait` to return them."""
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in numbers:
            self._before[number] = signal.signal(number, _heard)

    def watch(self, fd: int, act: Act, mask: int = select.POLLIN) -> None:
        """Call this whenever the descriptor is ready; a second call changes what is looked for."""
        self._acts[fd] = act
        self._poll.register(fd, mask)

    def forget(self, fd: int) -> None:
        """To be called before the descriptor is closed."""
        if self._acts.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def wait(self, seconds: float) -> list[int]:
        """Wait so long at most; tell whoever is concerned; the signals that came, in their order."""
        ready = self._poll.poll(max(seconds, 0.0) * 1000)
        self.now = self._clock()
        for fd, _ in ready:
            act = self._acts.get(fd)
            if act is not None:
                act()
        heard, self._heard = self._heard, []
        return heard

    def _read_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._heard += os.read(self._reading, 4096)

    def close(self) -> None:
        """Signals are as they were before."""
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        os.close(self._reading)
        os.close(self._writing)


def _heard(number: int, frame: object) -> None:
    """The signal's number is in the pipe by now."""
