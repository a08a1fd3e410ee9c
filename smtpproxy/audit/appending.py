"""Appending whole lines to a file, several processes to one: what the audit and its journal have in common.

Several processes may write one file or pipe (`WriteLock`): each writes whole lines, and an end for one that was cut off
when the process that wrote it was killed. A line is only ever written once, and what was written of it when the disk
filled up is gone on with.

`Appender.flush` never blocks. A pipe or socket (standard output under a service manager) is written only where the
kernel says that there is room, a piece at a time, whether or not somebody made it non-blocking: a reader that hangs
must not keep the proxy from hearing a signal.
"""

import contextlib
import errno
import fcntl
import os
import select
import stat

PIECE = 4096  # octets a pipe with room for any takes without blocking (POSIX: PIPE_BUF)
TURNS = 50  # times that others are let go first, within one flush; a turn takes as long as a write
LINE_END = 10  # "\n", as bytes have it


def open_file(path: str) -> int:
    """The descriptor of an audit file, to be appended to. A line that was cut off by a crash is ended first.

    Whoever writes a file holds it locked together with the others who do (after a restart the old process drains while
    the new one writes). So the one who has it alone knows that a line without an end was left by a crash, and is not
    being written just now.

    Raises:
        OSError: it can't be opened.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o640)
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with open(path, "rb") as file:
                    file.seek(max(os.fstat(descriptor).st_size - 1, 0))
                    if file.read(1) not in (b"", b"\n"):
                        os.write(descriptor, b"\n")
            fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class WriteLock:
    """Whose turn it is to write, among the processes that have the same file of memory: those that were forked from the
    one that made it, and whoever is given its descriptor.

    It is had from the first octet of a line to the last, be that several flushes. The kernel takes it from a process
    that dies (fcntl(2): it belongs to the process, whatever was forked from it). One octet of the file tells whether
    a line is begun: who finds it so, and has not begun one, knows that the line was cut off.

    Args:
        descriptor: of such a file. Not said: a new one is made. No copy of it may be closed while the lock is had.

    Raises:
        OSError: there can be none.
    """

    def __init__(self, descriptor: int = -1) -> None:
        self._file = os.memfd_create("smtpproxy-audit") if descriptor < 0 else descriptor
        if descriptor < 0:
            os.write(self._file, b"\0")
        self._begun = False  # by us

    @property
    def begun(self) -> bool:
        """We are in the middle of a line."""
        return self._begun

    def fileno(self) -> int:
        """To be passed on; it is close-on-exec if it was made here."""
        return self._file

    def take(self) -> bool:
        """Our turn, from here to `leave`; True if a line was cut off, and needs an end first.

        Raises:
            BlockingIOError: it is another's, and will be for a while.
        """
        if self._begun:
            return False
        for _ in range(TURNS):
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
                return os.pread(self._file, 1, 0) == b"\1"
            except BlockingIOError:
                os.sched_yield()
        raise BlockingIOError(errno.EAGAIN, "another worker is in the middle of a line")

    def begin(self) -> None:
        """Something is about to be written."""
        if not self._begun:
            os.pwrite(self._file, b"\1", 0)

    def wrote(self, last: int) -> None:
        """It was; this is its last octet."""
        self._begun = last != LINE_END
        if not self._begun:
            os.pwrite(self._file, b"\0", 0)

    def wrote_nothing(self, *, cut_off: bool) -> None:
        """It was not; all is as it was before."""
        if not self._begun and not cut_off:
            os.pwrite(self._file, b"\0", 0)

    def leave(self) -> None:
        """The next one's turn, unless we are in the middle of a line."""
        if not self._begun:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1)


class Appender:
    """What is written to one place, in order.

    Args:
        descriptor: where; not closed here.
        lock: of those who write there too.
    """

    def __init__(self, descriptor: int, lock: WriteLock | None = None) -> None:
        self.descriptor = descriptor
        self._lock = lock
        self._poll: select.poll | None = None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLOUT)
        self._rest = b""  # what is not written yet
        self._at = 0  # where in it

    def add(self, octets: bytes) -> None:
        """Whole lines, to be written by the next `flush`."""
        self._rest = self._rest[self._at :] + octets
        self._at = 0

    def flush(self) -> None:
        """Write all that was added, or as much as there is room for.

        Raises:
            OSError: there is no room for more now; BlockingIOError if that is only because a reader is slow, or another
                process has not finished. Nothing is lost.
        """
        if not self._rest:
            return
        if self._lock is None:
            self._write()
        else:
            cut_off = self._lock.take()
            try:
                if not self._lock.begun:
                    self._begin()
                if cut_off:
                    self._put(b"\n", cut_off=True)
                self._write()
                self._end()
            finally:
                self._lock.leave()
        self._rest, self._at = b"", 0

    def _begin(self) -> None:
        """It is our turn, and no line is begun by us."""

    def _end(self) -> None:
        """All is written, and it is still our turn."""

    def _write(self) -> None:
        rest = memoryview(self._rest)
        while self._at < len(rest):
            self._at += self._put(rest[self._at :])

    def _put(self, octets: bytes | memoryview, *, cut_off: bool = False) -> int:
        """How many of these there was room for, at least one."""
        if self._poll is not None:
            if not self._poll.poll(0):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            octets = octets[:PIECE]
        if self._lock is None:
            return os.write(self.descriptor, octets)
        self._lock.begin()
        try:
            written = os.write(self.descriptor, octets)
        except OSError:
            self._lock.wrote_nothing(cut_off=cut_off)
            raise
        self._lock.wrote(octets[written - 1])
        return written
