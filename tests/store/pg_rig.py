"""A real PostgreSQL server for tests: Debian's, in a directory of its own, on a unix socket and on a loopback port that
the kernel picks, as a user that is not root. It ends with the tests, even with killed ones.

    with Cluster() as cluster:
        where = cluster.database()         # a new, empty one: postgresql://…
        cluster.kill()                     # as if the machine had lost its power; or stop(), freeze(), thaw()
        cluster.start()
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psycopg

from tests.peers import PeerError, PeerUnavailable, unavailable

HOST = "127.0.0.1"
OWNER = "owner"  # who databases belong to, and a superuser
PATIENCE = 60.0
STEP = 0.02
_FAST = ("fsync=off", "full_page_writes=off")
_SETTINGS = (
    f"listen_addresses={HOST}",
    "shared_buffers=32MB",
    "max_connections=40",
    "autovacuum=off",
    "log_statement=none",
    "timezone=America/Caracas",  # what is meant by a day must not hang on it
)


@functools.cache
def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise PeerUnavailable("PostgreSQL is not installed")
    return found[-1].parent


@functools.cache
def _user() -> pwd.struct_passwd | None:
    """Who it runs as; None: we are nobody special ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PeerUnavailable("there is no user to run PostgreSQL as")


def _command(argv: Sequence[str]) -> list[str]:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise PeerUnavailable("setpriv is not there")
    user = _user()
    who = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"] if user else []
    return [setpriv, *who, "--pdeathsig", "KILL", "--", *argv]


class Cluster:
    """One server and its databases.

    Args:
        durable: what is committed is on the disk, as on a real one.
        settings: more of them, `name=value`.
        files: that they name, kept from everybody else; in the directory the server starts in.
    """

    def __init__(
        self, *, durable: bool = False, settings: Sequence[str] = (), files: Mapping[str, bytes] | None = None
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.data = self.directory / "data"
        self.port = 0
        self._files = files or {}
        self._settings = (*_SETTINGS, *(() if durable else _FAST), *settings)
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def __enter__(self) -> Self:
        try:
            self._make()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _make(self) -> None:
        user = _user()
        if user:
            os.chown(self.directory, user.pw_uid, user.pw_gid)
        self.directory.chmod(0o755)  # whoever runs the tests may use the socket
        initdb = [str(_programs() / "initdb"), "--pgdata", str(self.data), "--username", OWNER]
        initdb += ["--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"]
        initdb += ["--no-sync"]
        done = subprocess.run(_command(initdb), capture_output=True, text=True, cwd="/", timeout=PATIENCE)
        if done.returncode:
            raise PeerError(f"initdb: {done.stdout}{done.stderr}")
        for name, content in self._files.items():
            path = self.data / name
            path.write_bytes(content)
            path.chmod(0o600)
            if user:
                os.chown(path, user.pw_uid, user.pw_gid)

    # ------------------------------------------------------------------------------------------------ running and not

    def start(self) -> None:
        """Returns when it takes connections. The port stays the same."""
        if self._process is not None:
            return
        for _ in range(5):
            port = self.port or _free_port()
            argv = [str(_programs() / "postgres"), "-D", str(self.data), "-k", str(self.directory), "-p", str(port)]
            for setting in self._settings:
                argv += ["-c", setting]
            with (self.directory / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    _command(argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
                )
            if self._answers(port):
                self.port = port
                return
        raise PeerError(f"PostgreSQL does not start:\n{self.log()}")

    def _answers(self, port: int) -> bool:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.conninfo("postgres", port=port), connect_timeout=5).close()
                return True
            time.sleep(STEP)
        self.kill()  # somebody else has the port, perhaps
        return False

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def stop(self) -> None:
        """In order: what is under way is broken off, and the disk is as it should be."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(PATIENCE)
            self._process = None

    def kill(self) -> None:
        """At once, all of it: nothing more is written."""
        if self._process is None:
            return
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(PATIENCE)
        self._process = None

    def pids(self) -> list[int]:
        """The server, then the processes it has made."""
        if self._process is None:
            return []
        return [self._process.pid, *_children(self._process.pid)]

    def freeze(self) -> None:
        """It is there and answers nothing."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    # -------------------------------------------------------------------------------------------------- its databases

    def conninfo(self, database: str, *, user: str = OWNER, port: int | None = None) -> str:
        return f"postgresql://{user}@/{database}?host={self.directory}&port={port or self.port}"

    def by_tcp(self, database: str, *, user: str, password: str) -> str:
        return f"postgresql://{user}:{password}@{HOST}:{self.port}/{database}"

    def database(self, *, encoding: str = "UTF8") -> str:
        """A new one. Its texts sort as people sort them, which is not what the record needs."""
        self._databases += 1
        name = f"test{self._databases}"
        sorting = "LOCALE_PROVIDER icu ICU_LOCALE 'en-US'" if encoding == "UTF8" else "LOCALE 'C'"
        self.execute("postgres", f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' {sorting}")
        return self.conninfo(name)

    def execute(self, database: str, *statements: str) -> list[tuple[Any, ...]]:
        """As its superuser; the rows of the last one. `database`: a name, or what database() gave."""
        where = database if ":" in database else self.conninfo(database)
        with psycopg.connect(where, autocommit=True, connect_timeout=10) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


def name_of(where: str) -> str:
    """The database of what database() gave."""
    found = re.search(r"@[^/]*/(\w+)", where)
    assert found is not None
    return found[1]


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):  # it has just ended
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(
    *, durable: bool = False, settings: Sequence[str] = (), files: Mapping[str, bytes] | None = None
) -> Iterator[Cluster]:
    """A server for a test, or the test is skipped."""
    try:
        cluster = Cluster(durable=durable, settings=settings, files=files).__enter__()
    except PeerUnavailable as error:
        unavailable(error)
    with contextlib.closing(cluster):
        yield cluster
