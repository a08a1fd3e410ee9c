"""A worker's process: what it keeps, what it hears, how it ends.

The forks are made in a process of their own: this one may have threads.
"""

import os
import signal
import subprocess
import sys

import pytest

from smtpproxy.net.forking import how

_BEGIN = """
import os, signal, sys, threading, time
from smtpproxy.net.forking import BROKEN, HEARD, fork, hear_sigterm
def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def _run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", _BEGIN + program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_it_ends_with_what_its_task_returns_and_nothing_else_is_run() -> None:
    said = _run(
        """
import atexit
atexit.register(lambda: print("at exit", os.getpid() == parent))
parent = os.getpid()
print("before", end="")
assert end(fork(lambda: 42, [])) == 42
print(", and once")
"""
    )
    assert said == "before, and once\nat exit True\n"


def test_what_goes_wrong_is_told_and_is_an_exit_code_of_its_own() -> None:
    said = _run("assert end(fork(lambda: [][1], [])) == BROKEN")
    assert "IndexError" in said


def test_it_keeps_what_it_is_given_and_no_other_descriptor() -> None:
    """Nor are those of the supervisor closed twice, when they have been given another meaning."""
    _run(
        """
import socket
kept, other = socket.socketpair()
a, b = socket.socketpair()
os.dup2(b.fileno(), 200)
def task():
    mine = set(map(int, os.listdir("/proc/self/fd")))
    mine -= {fd for fd in mine if not os.path.exists(f"/proc/self/fd/{fd}")}  # of the listing itself
    assert mine == {0, 1, 2, kept.fileno()}, mine
    return 0
assert end(fork(task, [kept.fileno()])) == 0
assert end(fork(lambda: 0 if os.listdir("/proc/self/fd") else 1, [])) == 0
assert os.fstat(200)
"""
    )


def test_what_it_hears_and_what_it_does_not() -> None:
    _run(
        """
heard = []
for number in HEARD:
    signal.signal(number, lambda n, f: heard.append(n))
def task():
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        assert signal.getsignal(number) == signal.SIG_IGN
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGTERM)  # waits until somebody hears it
    assert heard == []
    signal.signal(signal.SIGTERM, lambda n, f: heard.append(n))
    hear_sigterm()
    assert heard == [signal.SIGTERM]
    return 0
reading, writing = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(writing)
assert end(fork(task, [writing])) == 0
assert heard == [signal.SIGCHLD], heard  # none of the child's
assert os.read(reading, 100) == bytes([signal.SIGCHLD])
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
"""
    )


def test_a_late_sigterm_does_not_cut_off_who_is_about_to_end() -> None:
    """Its handler is gone by then, and what was before it is there again."""
    _run(
        """
def task():
    before = signal.signal(signal.SIGTERM, lambda n, f: None)
    hear_sigterm()
    os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    os.kill(os.getpid(), signal.SIGTERM)
    return 0
assert end(fork(task, [])) == 0
"""
    )


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ended with 0"),
        (3 << 8, "ended with 3"),
        (int(signal.SIGKILL), "killed by SIGKILL"),
        (int(signal.SIGSEGV) | 128, "killed by SIGSEGV"),
        (40, "killed by signal 40"),
    ],
)
def test_how_it_ended(status: int, words: str) -> None:
    assert how(status) == words


def test_the_words_are_about_this_system() -> None:
    pid = os.spawnv(os.P_NOWAIT, "/bin/sh", ["sh", "-c", "kill -9 $$"])
    assert how(os.waitpid(pid, 0)[1]) == "killed by SIGKILL"
