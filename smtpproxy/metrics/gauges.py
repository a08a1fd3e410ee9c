"""What the recorder says of itself: numbers in a piece of shared memory that it alone writes.

Each number is one aligned word of memory, which the machine writes at once, so no lock is needed; numbers that belong
together may be of two moments. The memory has a descriptor, so that it outlives a process that is started anew, and can
be passed to one that is not forked.
"""

import mmap
import os
from collections.abc import Iterator
from typing import Final, NamedTuple

MOST_SINKS: Final = 16
NAME: Final = 64  # octets of a sink's name; what is longer is cut off
FIELDS: Final = (
    "present",  # 1.0: there is a recorder, and the numbers are its
    "journal_octets",  # all of the journal
    "pending_octets",  # of it, what the store has still to take
    "lag_seconds",  # how old the oldest of that is
    "records",  # in the store's tree
    "store_octets",
    "full",  # 1.0: no room for the record of further mails
    "checkpoints",  # made since the service was started
    "checkpoint_at",  # seconds since 1970
    "checkpoint_records",  # how many the last one covers
    "gaps",  # records that were lost
)
_SINK: Final = ("lag_records", "lag_seconds", "failing")
_NUMBERS: Final = len(FIELDS) + MOST_SINKS * len(_SINK)
_SIZE: Final = 8 * _NUMBERS + MOST_SINKS * NAME


class Sink(NamedTuple):
    """How far one is behind."""

    name: str
    lag_records: float
    lag_seconds: float
    failing: float


class RecorderGauges:
    """The numbers.

    Args:
        descriptor: of such a memory. Not said: a new one is made, whose descriptor is close-on-exec.

    Raises:
        OSError: there can be none.
    """

    def __init__(self, descriptor: int = -1) -> None:
        self._file = descriptor
        if descriptor < 0:
            self._file = os.memfd_create("smtpproxy-recorder")
            os.ftruncate(self._file, _SIZE)
        self._memory = mmap.mmap(self._file, _SIZE)
        with memoryview(self._memory) as whole, whole[: 8 * _NUMBERS] as numbers:
            self._numbers = numbers.cast("d")
            self._names = whole[8 * _NUMBERS : _SIZE]

    def fileno(self) -> int:
        """To be passed on."""
        return self._file

    def set(self, **numbers: float) -> None:
        """These of `FIELDS`.

        Raises:
            ValueError: one is none of them.
        """
        for name, number in numbers.items():
            self._numbers[FIELDS.index(name)] = number

    def add(self, **numbers: float) -> None:
        """To these of `FIELDS`: what only grows goes on where another process left it.

        Raises:
            ValueError: one is none of them.
        """
        for name, number in numbers.items():
            self._numbers[FIELDS.index(name)] += number

    def get(self, name: str) -> float:
        """One of `FIELDS`.

        Raises:
            ValueError: it is none of them.
        """
        return self._numbers[FIELDS.index(name)]

    def set_sink(self, index: int, name: str, *, lag_records: float, lag_seconds: float, failing: bool = False) -> None:
        """How far this one is behind; beyond `MOST_SINKS` nobody is told. An empty name is no sink."""
        if index < MOST_SINKS:
            word = name.encode()[:NAME]
            self._names[index * NAME : (index + 1) * NAME] = word.ljust(NAME, b"\0")
            at = len(FIELDS) + index * len(_SINK)
            for offset, number in enumerate((lag_records, lag_seconds, float(failing))):
                self._numbers[at + offset] = number

    def sinks(self) -> Iterator[Sink]:
        """Those there are."""
        for index in range(MOST_SINKS):
            name = bytes(self._names[index * NAME : (index + 1) * NAME]).rstrip(b"\0").decode(errors="replace")
            if name:
                at = len(FIELDS) + index * len(_SINK)
                yield Sink(name, *self._numbers[at : at + len(_SINK)])

    def close(self) -> None:
        """Let go of the memory and its descriptors: the map has one of its own."""
        for view in (self._numbers, self._names):
            view.release()
        self._memory.close()
        os.close(self._file)
