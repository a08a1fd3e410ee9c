"""Starting, watching and ending the programs of a run.

A program runs in a process session of its own, and who is in that session belongs to it, whoever its parent is: that is
whose CPU and memory is counted, and who is ended. Nothing else is touched.
"""

import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Self

from peers import HOST, PATH, Place, find

REPOSITORY = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
GREETING = 20.0  # seconds a program has to begin
GOODBYE = 5.0  # seconds it has to end
ATTEMPTS = 3  # at a port: another program may take it first


class BenchError(Exception):
    """A run did not come to its end; the text says why."""


def _stat(pid: str) -> list[str]:
    """The fields of /proc/pid/stat from the third on; none if the process has ended."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Started:
    """A program and its process session."""

    def __init__(self, argv: Sequence[str], directory: Path) -> None:
        self.log = directory / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [find("setpriv") or "setpriv", "--pdeathsig", "KILL", "--", *argv],  # nothing outlives the bench
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**os.environ, "PATH": PATH, "PYTHONPATH": str(REPOSITORY), "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """SIGTERM to the program; SIGKILL to who is left of its session."""
        self.process.terminate()
        deadline = time.monotonic() + GOODBYE
        while self.members() and time.monotonic() < deadline:
            self.process.poll()
            time.sleep(0.01)
        for pid in self.members():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self.process.wait(GOODBYE)

    def members(self) -> dict[str, list[str]]:
        """Every living process of the session: its /proc/pid/stat from the third field on."""
        session = str(self.process.pid)
        found = ((pid, _stat(pid)) for pid in os.listdir("/proc") if pid.isdigit())
        return {pid: fields for pid, fields in found if fields[3:4] == [session] and fields[0] not in "ZX"}

    def cpu(self) -> float:
        """Seconds of CPU of the session so far, user and system, with the children that have ended."""
        return sum(int(tick) for fields in self.members().values() for tick in fields[11:15]) / TICKS

    def memory(self) -> int:
        """KiB of memory: proportional set size, which counts a shared page once."""
        total = 0
        for pid in self.members():
            lines = Path("/proc", pid, "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total

    def await_greeting(self, port: int) -> None:
        """Return when an SMTP greeting is told on the port."""
        deadline = time.monotonic() + GREETING
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with socket.create_connection((HOST, port), timeout=2) as link:
                    if link.recv(512).startswith(b"220"):
                        link.sendall(b"QUIT\r\n")
                        link.recv(512)
                        return
            except OSError:
                pass
            time.sleep(0.02)
        raise BenchError(f"no greeting:\n{self.log.read_text(errors='replace')[-2000:]}")


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def listening(command: Callable[[Place], list[str]], server: int = 0) -> Iterator[tuple[Started, Place]]:
    """A program that greets on a free port, in an empty directory."""
    for attempt in count(1):
        with tempfile.TemporaryDirectory(prefix="smtpproxy-bench-") as name, ExitStack() as stack:
            Path(name).chmod(0o755)  # servers change their user
            place = Place(Path(name), free_port(), server)
            program = stack.enter_context(Started(command(place), place.directory))
            try:
                program.await_greeting(place.port)
            except BenchError:
                if attempt == ATTEMPTS:
                    raise
                continue
            yield program, place
            return


def sink_command(at: Place) -> list[str]:
    """The server that takes everything and keeps nothing."""
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    return [find("smtp-sink") or "", *user, "-m", "4000", "-t", "600", f"{HOST}:{at.port}", "1000"]


def machine_cpu() -> float:
    """Seconds of CPU anybody had, those the hypervisor kept for itself among them."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def children_cpu() -> float:
    """Seconds of CPU of the bench and of what it has waited for."""
    uses = resource.getrusage(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_SELF)
    return sum(use.ru_utime + use.ru_stime for use in uses)
