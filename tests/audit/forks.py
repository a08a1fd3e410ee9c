"""Processes of the audit's tests: forked, killed, waited for."""

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DEADLINE = 30  # seconds; a process that takes longer is ended by its alarm


def fork(work: Callable[[], object]) -> int:
    """A process that does this and ends, 0 if nothing was raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads behind
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(DEADLINE)
        work()
        status = 0
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """What came of it: 0, or the number of the signal, below 0."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def forked(work: Callable[[], object]) -> Iterator[int]:
    """One that is killed at the end, if it is still there."""
    pid = fork(work)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)  # a zombie until it is waited for: the number is nobody else's
        os.waitpid(pid, 0)
