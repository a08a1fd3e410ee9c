"""The file of JSON lines, moved away when it is large or old enough: `file.1`, `file.2` and on, the highest the newest.

Whoever writes a line when it is time moves it, in its turn to write; the others see that the name stands for another
file and go over to that. So no line is in two files, and none is behind one that is newer.
"""

import contextlib
import os
import stat
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec

from smtpproxy.audit.appending import Appender, WriteLock, open_file
from smtpproxy.audit.journal import Owner

_LONGEST = 65_536  # octets of a first line that are looked at


class _First(msgspec.Struct):
    at: datetime


_first = msgspec.json.Decoder(_First).decode


class RotatingFile(Appender):
    """A file that several processes append to and move away.

    Args:
        descriptor: of the file, as it was opened for all; not closed here.
        path: its name.
        lock: of those who write there.
        size: octets after which it is moved; 0: however large it is.
        age: seconds after which it is; 0: however old it is.
        owner: whose the new one is to be; None: who makes it.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        descriptor: int,
        path: Path,
        lock: WriteLock,
        *,
        size: int = 0,
        age: float = 0.0,
        owner: Owner | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(descriptor, lock)
        self._path = path
        self._size = size
        self._age = age
        self._owner = owner
        self._clock = clock
        self._own = -1  # a descriptor that was opened here
        self._may = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._begun = self._begun_at()

    def _begin(self) -> None:
        """Go over to the file of that name, if it is another one by now; move it away, if it is time."""
        if not self._may:
            return
        here = os.fstat(self.descriptor)
        try:
            there = os.stat(self._path)
        except FileNotFoundError:  # who moved it away was killed before there was another
            self._go_over()
            return
        if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            if not self._go_over():
                return
            here = os.fstat(self.descriptor)
        large = self._size and here.st_size >= self._size
        old = self._age and here.st_size and self._clock() - self._begun >= self._age
        if large or old:
            self._move()

    def _move(self) -> None:
        """Where it can't be moved (the directory is another's), it is gone on with."""
        start = f"{self._path.name}."
        try:
            endings = [name.removeprefix(start) for name in os.listdir(self._path.parent) if name.startswith(start)]
            numbers = [int(number) for number in (ending.partition(".")[0] for ending in endings) if number.isdecimal()]
            os.rename(self._path, self._path.with_name(f"{start}{max(numbers, default=0) + 1}"))
        except OSError:
            self._may = False
            return
        self._go_over()

    def _go_over(self) -> bool:
        """Where the other file can't be had, this one is gone on with: a line in it is better than none."""
        try:
            descriptor = open_file(str(self._path))
        except OSError:
            self._may = False
            return False
        if self._owner is not None:
            with contextlib.suppress(OSError):
                os.fchown(descriptor, *self._owner)
        if self._own >= 0:
            os.close(self._own)
        self.descriptor = self._own = descriptor
        self._begun = self._begun_at()
        return True

    def _begun_at(self) -> float:
        """When its first line was recorded; one that does not say so begins now."""
        with contextlib.suppress(OSError, msgspec.MsgspecError), open(self._path, "rb") as file:
            return _first(file.readline(_LONGEST)).at.timestamp()
        return self._clock()

    def close(self) -> None:
        """Let go of what was opened here."""
        if self._own >= 0:
            os.close(self._own)
            self._own = -1
