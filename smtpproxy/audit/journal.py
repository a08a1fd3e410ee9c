"""The journal: what workers write for the store, and the recorder has not taken over yet.

Segments of JSON lines in one directory, `00000001.jsonl` and on, written by several processes one after the other. The
highest is written to; one that is long enough is left for the next. Only the recorder takes segments away, once the
store has them for good. So the journal is the queue between the mail path and the store: on the disk, in order, and
what is in it outlives any process.

The processes share the file `state`, mapped into the memory of each (`State`): whose turn it is to write (the lock of
appending.py), which segment is written to, and whether there is room. Where mail is to be refused when there is none
(`on_full = "refuse"`), the file `reserve` keeps some octets of the disk: they are let go when the disk is full, so that
the refusals can be put on record, and taken again when there is room.

Whoever opens a journal that nobody has open begins a segment: after a power failure the last one may be shorter than
the store says that it has read, and what came behind that would be taken for read.

A journal that is new beside a store that is not (somebody took it away) begins at a number beyond all that the store
can have read: the seconds since 1970. Else what the store knows of another segment 1 would be taken for read.

What must never happen: a line in a segment behind the one that is written to; two files for one number.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Final

from smtpproxy.audit.appending import LINE_END, Appender, WriteLock

SEGMENT: Final = 67_108_864  # octets after which the next segment is begun
RESERVE: Final = 4_194_304  # octets kept for what is to be said when the disk is full
PATIENCE: Final = 5.0  # seconds that who begins waits for its turn
DATABASE: Final = "audit.db"  # the store's, in the directory above
ROOMY: Final = 3  # times the reserve that must be free before mail is taken again
Owner = tuple[int, int]  # user, group
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_STATE: Final = 64  # octets
_NUMBER: Final = struct.Struct("=Q")


class State:
    """What the writers of one journal and its recorder share.

    Octet 0 is the lock's. The others are written by one process at a time, or are single octets.
    """

    def __init__(self, directory: Path, owner: Owner | None = None) -> None:
        self._descriptor = _open(directory / "state", os.O_RDWR, owner)
        if os.fstat(self._descriptor).st_size < _STATE:
            os.ftruncate(self._descriptor, _STATE)
        self._map = mmap.mmap(self._descriptor, _STATE)
        self.lock = WriteLock(self._descriptor)

    @property
    def segment(self) -> int:
        """The number of the segment that is written to; 0: there is none yet."""
        return int(_NUMBER.unpack_from(self._map, 8)[0])

    @segment.setter
    def segment(self, number: int) -> None:
        _NUMBER.pack_into(self._map, 8, number)

    @property
    def refusing(self) -> bool:
        """The disk is full, and the reserve is being used."""
        return self._map[1] != 0

    @refusing.setter
    def refusing(self, value: bool) -> None:
        self._map[1] = value

    @property
    def behind(self) -> bool:
        """The store is so far behind that no mail is to be taken until it has caught up."""
        return self._map[2] != 0

    @behind.setter
    def behind(self, value: bool) -> None:
        self._map[2] = value

    def close(self) -> None:
        """Let go of it."""
        self._map.close()
        os.close(self._descriptor)


def alone(directory: Path) -> bool:
    """Whether nobody has this journal open to write it."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(directory / "writers", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _nobody(descriptor)
        finally:
            os.close(descriptor)
    return True


def _nobody(writers: int) -> bool:
    try:
        fcntl.flock(writers, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_patiently(lock: WriteLock) -> None:
    """Whoever begins may wait: another one who begins has the lock while the disk gives it its reserve.

    Raises:
        BlockingIOError: it is another's for longer than that takes.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            lock.take()
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise
        time.sleep(0.005)


def _open(path: Path, flags: int, owner: Owner | None) -> int:
    """A file that is made if it is not there."""
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    except FileExistsError:
        return os.open(path, flags | os.O_CLOEXEC)
    if owner is not None:
        os.fchown(descriptor, *owner)
    return descriptor


def segment_path(directory: Path, number: int) -> Path:
    """The file of a segment."""
    return directory / f"{number:08}.jsonl"


def segments(directory: Path) -> list[int]:
    """The numbers of the segments there are, in order."""
    return sorted(int(path.stem) for path in directory.glob("*.jsonl") if path.stem.isdecimal())


class Journal(Appender):
    """A journal to be written to.

    Args:
        directory: its own; it is there.
        segment: octets after which the next one is begun.
        reserve: octets to be kept on the disk; 0: mail waits when it is full.
        durable: `settle` is to be relied on (log.py): a segment that is left is on the disk.
        owner: whose files that are made are to be; None: who makes them.

    Raises:
        OSError: it can't be written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        segment: int = SEGMENT,
        reserve: int = 0,
        durable: bool = False,
        owner: Owner | None = None,
    ) -> None:
        self.directory = directory
        self.state = State(directory, owner)
        self._owner = owner
        self._segment = segment
        self._reserve = reserve
        self._durable = durable
        self._number = 0
        with contextlib.ExitStack() as undo:
            undo.callback(self.state.close)
            self._present = _open(directory / "writers", os.O_RDONLY, owner)
            undo.callback(os.close, self._present)
            first = _nobody(self._present)
            fcntl.flock(self._present, fcntl.LOCK_SH)  # the recorder sees by it that somebody may write
            lock = self.state.lock
            _take_patiently(lock)
            undo.callback(lock.leave)
            known = max(self.state.segment, *segments(directory), 0 if first else 1)
            if not known and (directory.parent / DATABASE).exists():
                known = int(time.time())
            self.state.segment = known + first
            super().__init__(self._open(self.state.segment), lock)
            undo.callback(os.close, self.descriptor)
            self._number = self.state.segment
            if durable:
                self._keep_name()
            self._end_cut_line()
            if reserve and not self.state.refusing:
                self._take_reserve()
            undo.pop_all()
            lock.leave()

    def is_full(self) -> bool:
        """No mail is to be taken: there is too little room, or the store is too far behind. Only where it is to be
        refused then; else `flush` waits."""
        return self._reserve > 0 and (self.state.refusing or self.state.behind)

    def flush(self) -> None:
        """As any appender's; where mail waits, it waits for the store, too."""
        if not self._reserve and self.state.behind:
            raise BlockingIOError(errno.EAGAIN, "the store is too far behind")
        super().flush()

    def turn(self) -> int:
        """Begin the next segment now; its number.

        Raises:
            OSError: it is another one's turn to write, or there is no room.
        """
        lock = self.state.lock
        lock.take()
        try:
            self._begin()
            self._turn_to(self._number + 1)
            self.state.segment = self._number
        finally:
            lock.leave()
        return self._number

    def check(self) -> None:
        """Called about once a second: have a reserve again, if there is room."""
        if not self.state.refusing or not self._reserve:
            return
        free = os.statvfs(self.directory)
        if free.f_bavail * free.f_frsize < ROOMY * self._reserve:
            return
        with contextlib.suppress(OSError):  # another one's turn, or full again: in a second
            self.state.lock.take()
            try:
                self._take_reserve()
                self.state.refusing = False
            finally:
                self.state.lock.leave()

    def close(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)
        os.close(self._present)
        self.state.close()

    # --------------------------------------------------------------------------------------------- in our turn

    def _open(self, number: int) -> int:
        return _open(segment_path(self.directory, number), os.O_RDWR | os.O_APPEND, self._owner)

    def _end_cut_line(self) -> None:
        """After a power failure nobody may know of it any more."""
        size = os.fstat(self.descriptor).st_size
        if size and os.pread(self.descriptor, 1, size - 1) != b"\n":
            os.write(self.descriptor, b"\n")
        self.state.lock.wrote(LINE_END)

    def _begin(self) -> None:
        """Another one may have begun the next segment."""
        if self._number != self.state.segment:
            self._turn_to(self.state.segment)

    def _turn_to(self, number: int) -> None:
        descriptor = self._open(number)
        if self._durable:
            try:
                os.fdatasync(self.descriptor)
                self._keep_name()
            except OSError:
                os.close(descriptor)
                raise
        os.close(self.descriptor)
        self.descriptor, self._number = descriptor, number

    def _keep_name(self) -> None:
        """What is on the disk in a file that the disk has no name of is lost (fsync(2))."""
        directory = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _end(self) -> None:
        if os.lseek(self.descriptor, 0, os.SEEK_CUR) >= self._segment:
            self._turn_to(self._number + 1)
            self.state.segment = self._number

    def _put(self, octets: bytes | memoryview, *, cut_off: bool = False) -> int:
        try:
            return super()._put(octets, cut_off=cut_off)
        except OSError as error:
            if error.errno not in FULL or not self._reserve or self.state.refusing:
                raise
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.directory / "reserve")
        self.state.refusing = True
        return super()._put(octets, cut_off=cut_off)

    def _take_reserve(self) -> None:
        descriptor = _open(self.directory / "reserve", os.O_RDWR, self._owner)
        try:
            os.posix_fallocate(descriptor, 0, self._reserve)
        except OSError:
            os.unlink(self.directory / "reserve")
            raise
        finally:
            os.close(descriptor)
