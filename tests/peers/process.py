"""Starting and ending the programs that the tests talk to.

A program either runs as it is, or in a namespace of its own: mounts that put private files over /etc/passwd
and the like, so that programs with built-in paths and users run unchanged and see no DNS, and a process id
space that ends as a whole. Whatever was started dies with the test process, even when that is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.peers import PeerError, PeerUnavailable
from tests.peers.tls import careless_context

HOST = "127.0.0.1"
REPOSITORY = Path(__file__).resolve().parents[2]
TREE = Path(os.environ.get("SMTPPROXY_PEERS") or REPOSITORY / ".peers")
STEP = 0.02
STOP = 10.0

# Users that the unpacked servers look up. They exist inside the namespace only.
USERS = {"Debian-exim": 64901, "opensmtpd": 64902, "opensmtpq": 64903, "vmail": 64904}
MOUNT = """set -e
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
shift
"$@" &
wait $!
"""


def find(program: str) -> str:
    """The path of an installed program."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        raise PeerUnavailable(f"{program} is not installed")
    return path


def find_unpacked(program: str) -> Path:
    """The path of a program of the unpacked tree."""
    path = TREE / program
    if not path.exists():
        raise PeerUnavailable(f"{program} is not in {TREE}")
    need_root(program)
    return path


def need_root(program: str) -> None:
    if os.geteuid() != 0:
        raise PeerUnavailable(f"{program} needs root")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Scratch:
    """A temporary directory that every user may pass through (pytest's own is closed to other users)."""

    def __init__(self, name: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"peer-{name}-", dir="/tmp"))
        self.path.chmod(0o755)

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.path / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def mkdir(self, name: str, mode: int = 0o755, owner: int = 0) -> Path:
        path = self.path / name
        path.mkdir(parents=True)
        path.chmod(mode)
        if owner:
            os.chown(path, owner, owner)
        return path

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits for init to notice its end does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


class Program:
    """A running program; `binds` (private file or directory -> path it covers) asks for a namespace."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        binds: Mapping[Path, str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        command = [find("setpriv"), "--pdeathsig", "KILL"]
        if binds is not None:
            need_root(argv[0])
            flags = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
            command += [find("unshare"), *flags, "sh", "-c", MOUNT, "sh"]
            for source, target in binds.items():
                if os.path.exists(target):  # what is not there needs no cover
                    command += [str(source), target]
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd="/",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pids(self) -> frozenset[int]:
        """The program and everything below it."""
        parents = dict[int, int]()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it has just ended
        found, size = {self._process.pid}, 0
        while size != len(found):
            size = len(found)
            found |= {pid for pid, parent in parents.items() if parent in found}
        return frozenset(found)

    def stop(self) -> None:
        """At once: the kernel ends the rest of a namespace together with its first process."""
        if not self.running:
            return
        pids = self.pids
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(STOP)
        deadline = time.monotonic() + STOP
        while any(map(alive, pids)) and time.monotonic() < deadline:
            time.sleep(STEP)

    def await_greeting(self, port: int, name: str, seconds: float, tls: bool = False, host: str = HOST) -> None:
        """Returns when the program greets on `port`, in TLS if so, with `name` in its greeting."""
        deadline = time.monotonic() + seconds
        greeting = b""
        while time.monotonic() < deadline and self.running:
            try:
                with socket.create_connection((host, port), timeout=2) as plain, ExitStack() as stack:
                    conn = stack.enter_context(careless_context().wrap_socket(plain)) if tls else plain
                    greeting = conn.recv(512)
                    conn.sendall(b"QUIT\r\n")
                    if greeting.startswith(b"220") and name.encode() in greeting:
                        conn.recv(512)
                        return
            except OSError:
                pass
            time.sleep(STEP)
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        state = "gave no greeting" if self.running else f"ended with {self._process.returncode}"
        raise PeerError(f"{name} on port {port} {state} ({greeting!r}):\n{text}")


def private_files(scratch: Scratch, *names: str) -> dict[Path, str]:
    """Covers for the files by which a program learns of users and hosts: itself, and `names`, which are here too."""
    for file in ("passwd", "group"):
        lines = Path("/etc", file).read_text()
        for user, number in USERS.items():
            rest = f"{number}:{user}:/nonexistent:/usr/sbin/nologin" if file == "passwd" else ""
            lines += f"{user}:x:{number}:{rest}\n"
        scratch.write(file, lines)
    scratch.write("hosts", "".join(f"127.0.0.1 {name}\n" for name in ("localhost", *names)))
    databases = ("passwd", "group", "shadow", "hosts", "services")
    scratch.write("nsswitch.conf", "".join(f"{database}: files\n" for database in databases))
    scratch.write("resolv.conf", "nameserver 127.0.0.1\nlookup file\noptions timeout:1 attempts:1\n")
    files = ("passwd", "group", "hosts", "nsswitch.conf", "resolv.conf")
    return {scratch.path / file: f"/etc/{file}" for file in files}


def private_libraries(scratch: Scratch) -> dict[Path, str]:
    """A cover for the loader's cache that knows the libraries of the unpacked tree as well."""
    folders = sorted({str(library.parent) for library in TREE.glob("**/lib*.so*")})
    config = scratch.write("ld.so.conf", "\n".join(["include /etc/ld.so.conf", *folders, ""]))
    cache = scratch.path / "ld.so.cache"
    command = [find("ldconfig"), "-X", "-f", str(config), "-C", str(cache)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return {cache: "/etc/ld.so.cache"}
