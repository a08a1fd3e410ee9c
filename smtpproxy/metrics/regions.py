"""The memory in which processes leave what they have counted, for others to read.

One anonymous shared memory, made by the supervisor before it forks. Each worker has a region that it alone writes, by
the number it has in the tally; the supervisor has one of its own, in which there is also what those have counted that
are gone. So there is no lock, and nobody waits for anybody.

- A region is two buffers, written in turn, each with its number and a check sum. Who reads takes the newer one that is
  whole: never one that is half written, not even where its writer was killed over it.
- What a dead worker has counted moves from its region into the supervisor's. Meanwhile the number at the head of the
  memory is odd, and it is another one afterwards: who reads all regions begins again where it was so. So nothing is
  counted twice or not at all, and no counter ever goes back.

What must never happen: a region that two processes write.
"""

import contextlib
import mmap
import struct
import time
from collections.abc import Iterator
from typing import Final
from zlib import crc32

PAGE: Final = 65_536  # octets; the largest pages there are
WORKERS: Final = 4 * PAGE  # octets of a buffer of a worker's
OURS: Final = 16 * PAGE  # and of the supervisor's
_HEAD = struct.Struct("=QII")  # number, length, check sum
ROOM: Final = WORKERS - _HEAD.size
OUR_ROOM: Final = OURS - _HEAD.size
_TRIES, _PAUSE = 200, 0.001  # to see all regions as they are between two moves; seconds between two tries


class RegionsError(Exception):
    """They can't be read: the supervisor was ended in the middle of a move."""


class Regions:
    """The memory.

    Pages of it exist from when they are written to, so regions to spare cost next to nothing.

    Raises:
        OSError: the system has not as much memory.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._memory = mmap.mmap(-1, PAGE + 2 * OURS + workers * 2 * WORKERS)
        self._whole = memoryview(self._memory)
        self._moves = self._whole[:8].cast("Q")
        self._told_at = self._whole[8:16].cast("d")
        self._numbers: dict[int, int] = {}  # of what this process has written last

    def _place(self, region: int | None) -> tuple[int, int]:
        """Where it begins, and octets of one of its buffers."""
        if region is None:
            return PAGE, OURS
        if not 0 <= region < self.workers:
            raise ValueError(f"there is no region {region}")
        return PAGE + 2 * OURS + region * 2 * WORKERS, WORKERS

    def write(self, region: int | None, octets: bytes) -> None:
        """Leave this there; None is the supervisor's region.

        Raises:
            ValueError: it does not fit.
        """
        start, size = self._place(region)
        if len(octets) > size - _HEAD.size:
            raise ValueError(f"{len(octets)} octets do not fit")
        key = -1 if region is None else region
        number = self._numbers[key] = self._numbers.get(key, 0) + 1
        at = start + size * (number % 2)
        body = at + _HEAD.size
        self._whole[body : body + len(octets)] = octets
        _HEAD.pack_into(self._memory, at, number, len(octets), crc32(octets, number & 0xFFFF_FFFF))

    def read(self, region: int | None) -> bytes:
        """What is there; b"" if nothing is."""
        start, size = self._place(region)
        places = (start, start + size)
        for _ in range(_TRIES):  # one does, unless it is written to twice while we read
            for at in sorted(places, key=lambda at: -_HEAD.unpack_from(self._memory, at)[0]):
                number, length, check = _HEAD.unpack_from(self._memory, at)
                if not number or length > size - _HEAD.size:
                    continue
                octets = bytes(self._whole[at + _HEAD.size : at + _HEAD.size + length])
                if crc32(octets, number & 0xFFFF_FFFF) == check:
                    return octets
            if not any(_HEAD.unpack_from(self._memory, at)[0] for at in places):
                break
        return b""

    def clear(self, region: int) -> None:
        """Its worker is no more; the next one finds it empty."""
        start, size = self._place(region)
        self._memory.madvise(mmap.MADV_REMOVE, start, 2 * size)  # what is read there next is zero
        self._numbers.pop(region, None)

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """The supervisor moves what is in one region into another."""
        self._moves[0] += 1
        try:
            yield
        finally:
            self._moves[0] += 1

    def read_all(self) -> list[bytes]:
        """What is in all of them, as it was at one moment as far as moves go.

        Raises:
            RegionsError: no such moment came.
        """
        for _ in range(_TRIES):
            before = self._moves[0]
            if not before % 2:
                found = [self.read(None), *map(self.read, range(self.workers))]
                if self._moves[0] == before:
                    return [octets for octets in found if octets]
            time.sleep(_PAUSE)
        raise RegionsError("the supervisor is not done with its moves")

    def tell(self, monotonic: float) -> None:
        """The supervisor has looked after everything."""
        self._told_at[0] = monotonic

    @property
    def told_at(self) -> float:
        """When it last said so, by the monotonic clock."""
        return self._told_at[0]
