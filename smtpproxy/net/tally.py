"""What the workers count together: sessions in all and of each client, and which connections are our own.

One anonymous shared memory, made by the supervisor before it forks. Each worker has a region of it that it alone
writes; everybody reads all of them. So there are no locks, and what a worker that was killed had counted goes when the
supervisor takes its region back.

- A client is a slot of a table, by a hash whose key only these processes know: nobody can choose addresses that share
  a slot. Two that share one by chance are counted as one, so a bound may be met early, never late.
- Two workers that look at the same moment may both find the last place free: a bound on all may be passed by as many
  as there are workers, less one.
- A connection of our own is known by 64 bits of such a hash: taking a client for one of them is as likely as guessing.
- The other end of a connection of ours may be another worker's and ask at once, so it is marked as soon as its port is
  known. A mark that comes late lets a loop go round once more, not for ever.

What must never happen: a region that two processes write; a region that is taken back while its worker lives.
"""

import mmap
import os
from collections.abc import Iterable
from hashlib import blake2b
from itertools import compress

SLOTS = 65_536  # of each table of a region
PROBES = 64  # entries looked at for a connection; as good as never more than two, with a tenth of the table in use
FULL = 0xFFFF  # what a slot can count to
_CLIENTS = SLOTS * 2  # octets: u16 each
_OUTGOING = SLOTS * 8  # octets: u64 each
_REGION = _CLIENTS + _OUTGOING
_PAGE = 65_536  # the largest there are
_FREE, _GONE = 0, 1  # entries that stand for no connection; behind the second the search goes on


class TallyError(Exception):
    """No region is left."""


class Tallies:
    """The memory, as the supervisor sees it. The workers' numbers are lists with one entry a region.

    Pages of it exist from when they are written to, so regions to spare cost next to nothing.

    Raises:
        OSError: the system has not as much memory.
    """

    def __init__(self, regions: int) -> None:
        self.regions = regions
        self.key = os.urandom(32)
        numbers = 8 * regions
        head = -(-25 * regions // _PAGE) * _PAGE
        self._memory = mmap.mmap(-1, head + regions * _REGION)
        whole = memoryview(self._memory)
        self.session_counts = whole[:numbers].cast("Q")
        self.accepted_counts = whole[numbers : 2 * numbers].cast("Q")
        self.beaten_at = whole[2 * numbers : 3 * numbers].cast("d")
        self.live = whole[3 * numbers : 3 * numbers + regions]
        self._starts = [head + region * _REGION for region in range(regions)]
        self.clients = [whole[start : start + _CLIENTS].cast("H") for start in self._starts]
        self.outgoing = [whole[start + _CLIENTS : start + _REGION].cast("Q") for start in self._starts]
        self._before = 0  # accepted by workers whose regions were taken back

    def claim(self) -> int:
        """A region for a worker that is about to be forked; all zero.

        Raises:
            TallyError: there is none: too many workers are still draining.
        """
        for region, taken in enumerate(self.live):
            if not taken:
                self.live[region] = 1
                return region
        raise TallyError(f"there are {self.regions} workers already, those that drain included")

    def release(self, region: int) -> None:
        """Take a region back: its worker is no more, nor are its sessions."""
        self.live[region] = 0
        self._before += self.accepted_counts[region]
        self.session_counts[region] = self.accepted_counts[region] = 0
        self.beaten_at[region] = 0.0
        self._memory.madvise(mmap.MADV_REMOVE, self._starts[region], _REGION)  # what is read there next is zero

    def open(self, region: int) -> "Tally":
        """The view of the one worker that has this region; called in the worker.

        Raises:
            ValueError: nobody has claimed it.
        """
        return Tally(self, region)

    def sessions(self) -> list[int]:
        """How many each has now."""
        return self.session_counts.tolist()

    def accepted(self) -> list[int]:
        """How many each has taken since it began."""
        return self.accepted_counts.tolist()

    def accepted_ever(self) -> int:
        """How many were taken by all there have been."""
        return self._before + sum(self.accepted_counts)

    def beats(self) -> list[float]:
        """When each last said that it is well, by the monotonic clock; 0.0 before it first did."""
        return list(self.beaten_at)


class Tally:
    """The memory, as one worker sees it: it counts in its own region, and is told of all."""

    def __init__(self, tallies: Tallies, region: int) -> None:
        if not tallies.live[region]:
            raise ValueError(f"region {region} is nobody's")
        self._region = region
        self._live = tallies.live
        self._key = tallies.key
        self._sessions = tallies.session_counts
        self._accepted = tallies.accepted_counts
        self._beaten_at = tallies.beaten_at
        self._all_clients = tallies.clients
        self._all_outgoing = tallies.outgoing
        self._clients = tallies.clients[region]
        self._outgoing = tallies.outgoing[region]
        self._beyond: dict[int, int] = {}  # slot: what it can't count

    @classmethod
    def alone(cls) -> "Tally":
        """For a process that shares nothing."""
        tallies = Tallies(1)
        return tallies.open(tallies.claim())

    def add(self, client: str) -> None:
        """A session of this client begins."""
        slot = self._slot(client)
        count = self._clients[slot]
        if count < FULL:
            self._clients[slot] = count + 1
        else:
            self._beyond[slot] = self._beyond.get(slot, 0) + 1
        self._sessions[self._region] += 1
        self._accepted[self._region] += 1

    def remove(self, client: str) -> None:
        """One that was added is over.

        Raises:
            ValueError: none was.
        """
        slot = self._slot(client)
        beyond = self._beyond.pop(slot, 0)
        if beyond > 1:
            self._beyond[slot] = beyond - 1
        elif not beyond:
            self._clients[slot] -= 1
        self._sessions[self._region] -= 1

    def total(self) -> int:
        """Sessions of all workers."""
        return sum(self._sessions)

    def of(self, client: str) -> int:
        """Sessions of this client, all workers'."""
        slot = self._slot(client)
        return sum([clients[slot] for clients in compress(self._all_clients, self._live)])

    def beat(self, monotonic: float) -> None:
        """Say that this worker is well."""
        self._beaten_at[self._region] = monotonic

    def outgoing(self, key: bytes) -> bool:
        """Mark a connection of our own; False if there is no room to keep it in mind.

        Args:
            key: both its addresses and ports; the same octets as who accepts it will ask for.
        """
        table, entry = self._outgoing, self._entry(key)
        room = -1
        for at in _places(entry):
            found = table[at]
            if found == entry:
                return True
            if found <= _GONE and room < 0:
                room = at
            if found == _FREE:
                break
        if room < 0:
            return False
        table[room] = entry
        return True

    def over(self, key: bytes) -> None:
        """A connection of our own is over; nothing happens if it was not marked."""
        table, entry = self._outgoing, self._entry(key)
        at = _find(table, entry)
        if at < 0:
            return
        table[at] = _GONE
        if table[(at + 1) % SLOTS] == _FREE:  # no search goes on behind it: these can be free again
            while table[at] == _GONE:
                table[at] = _FREE
                at = (at - 1) % SLOTS

    def ours(self, key: bytes) -> bool:
        """Whether it is a connection of our own, any worker's."""
        entry = self._entry(key)
        return any(_find(table, entry) >= 0 for table in compress(self._all_outgoing, self._live))

    def _slot(self, client: str) -> int:
        digest = blake2b(client.encode(), key=self._key, digest_size=8, person=b"client").digest()
        return int.from_bytes(digest, "little") % SLOTS

    def _entry(self, key: bytes) -> int:
        digest = blake2b(key, key=self._key, digest_size=8, person=b"outgoing").digest()
        return max(int.from_bytes(digest, "little"), _GONE + 1)


def _places(entry: int) -> Iterable[int]:
    """Where in a table it may be, beginning anew behind the end."""
    first = entry % SLOTS
    beyond = first + PROBES - SLOTS
    return range(first, first + PROBES) if beyond <= 0 else (*range(first, SLOTS), *range(beyond))


def _find(table: memoryview, entry: int) -> int:
    """Where it is in the table; -1 if it is not there."""
    for at in _places(entry):
        found = table[at]
        if found == entry:
            return at
        if found == _FREE:
            return -1
    return -1
