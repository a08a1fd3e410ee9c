"""A worker's process, as it comes out of the supervisor's: what it keeps, what it hears, how it ends.

- It keeps the descriptors that it is given and no other. A copy of another worker's order socket, above all, would keep
  that worker from seeing that the supervisor is gone.
- Ctrl-C reaches the whole group of processes, and what it means is the supervisor's to say: SIGINT, SIGHUP and SIGUSR2
  are ignored. SIGTERM waits until the worker is there to hear it (`hear_sigterm`), and means nothing any more once it
  has heard: it does not cut off who is about to end.
- It ends where its task ends, without a look at anything it has inherited.

What must never happen: a fork while a thread runs.
"""

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import NoReturn

HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)  # by the supervisor
_IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
BROKEN = 70  # the exit code of a worker with a fault of our own (EX_SOFTWARE)


def fork(task: Callable[[], int], keep: Iterable[int]) -> int:
    """Have a new process do the task, whose result is its exit code; its id.

    Raises:
        OSError: there can't be one now.
    """
    kept = sorted({0, 1, 2, *keep})
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    gc.freeze()  # what is there already is left alone by the worker's collector, and so its memory stays shared
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    try:
        pid = os.fork()
        if pid == 0:
            _become_worker(task, kept)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        gc.unfreeze()


def hear_sigterm() -> None:
    """To be called by who has a handler for it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _become_worker(task: Callable[[], int], kept: list[int]) -> NoReturn:
    code = BROKEN
    try:
        signal.set_wakeup_fd(-1)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _is_ending)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM})
        _close_all_but(kept)
        code = task()
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        finally:
            os._exit(code)


def _is_ending(_number: int, _frame: object) -> None:
    """What is there before a worker has a handler of its own, which is before it hears the signal, and behind that one:
    a service manager tells all processes to end, and this one may be about to, told by the supervisor."""


def _close_all_but(kept: list[int]) -> None:
    """By number: objects that own some of these live on in the supervisor's frames, and are never looked at again."""
    first = 0
    for fd in kept:
        if first < fd:  # of an empty range, Python 3.11 takes the end for the highest number there is
            os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, max(os.sysconf("SC_OPEN_MAX"), first + 1))


def how(status: int) -> str:
    """What waitpid says of an ended process, in words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
