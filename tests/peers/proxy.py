"""The proxy under test as a process of its own, and the direct connection that stands in for it.

The proxy is known here by its command line only: `serve --listen --server --audit`, the line on stderr that
names its port, the audit file of JSON lines, and SIGTERM, which ends it with 0. With SMTPPROXY_PEERS_DIRECT=1
in the environment `between` leaves it out, to try the peers themselves. What the command line has no option for
(TLS, mostly) is said in a configuration file.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.peers import PeerError
from tests.peers.process import HOST, REPOSITORY, Scratch, find

DIRECT = os.environ.get("SMTPPROXY_PEERS_DIRECT") == "1"
LISTENING = re.compile(r"smtpproxy: listening on (\S+):(\d+) \(server ")
START, STOP = 20.0, 20.0
KIND = "kind"  # the member of a record that says what it is about


def toml(value: object) -> str:
    """A string, truth, list or table, as TOML writes it on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value)


def smtpproxy(*arguments: str) -> str:
    """What a command of the proxy's says that does its work and ends."""
    done = subprocess.run(
        [sys.executable, "-m", "smtpproxy", *arguments], capture_output=True, text=True, timeout=START, cwd=REPOSITORY
    )
    if done.returncode != 0:
        raise PeerError(f"smtpproxy {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


class Direct:
    """The same as `Proxy` with nothing between client and server, and therefore without records."""

    def __init__(self, server_host: str, server_port: int) -> None:
        self.host, self.port = server_host, server_port

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def records(self) -> list[dict[str, Any]]:
        return []

    def stderr(self) -> str:
        return ""


class Proxy:
    """A proxy in front of one server; leaving it stops it and asserts that it ended well."""

    def __init__(
        self,
        server_host: str,
        server_port: int,
        *,
        rules: Sequence[str | Path] = (),
        extra: Sequence[str] = (),
        tls: Mapping[str, object] | None = None,
        ca: Path | None = None,
    ) -> None:
        """`tls`: what stands in [listener.tls]; `ca`: the directory of the CA that certificates are minted by."""
        self.host, self.port = HOST, 0
        self._server = f"{server_host}:{server_port}"
        self._tls, self._ca = tls, ca
        self._options = [*(option for file in rules for option in ("--rules", str(file))), *extra]
        self._lines: list[str] = []
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._scratch = Scratch("proxy")
        self._audit = self._scratch.path / "audit.jsonl"
        serve = ["serve", "--listen", f"{HOST}:0", "--server", self._server]
        if self._tls is not None:
            serve = ["serve", "--config", str(self._configure(self._tls))]
        serve += ["--audit", str(self._audit)]
        python = [find("setpriv"), "--pdeathsig", "KILL", sys.executable]
        self._process = subprocess.Popen(
            [*python, "-m", "smtpproxy", *serve, *self._options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(START) or not self.port:
            self._end(signal.SIGKILL)
            self._scratch.remove()
            raise PeerError(f"the proxy did not say where it listens:\n{self.stderr()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code = self._end(signal.SIGTERM)
        said = self.stderr()
        self._final = self._load()
        self._scratch.remove()
        if error is not None:
            error.add_note(f"the proxy ended with {code}; it said:\n{said}")
        else:
            assert code == 0, f"the proxy ended with {code}:\n{said}"

    def _configure(self, tls: Mapping[str, object]) -> Path:
        listener = {"name": "peers", "listen": f"{HOST}:0", "server": self._server}
        lines = ["[[listener]]", *(f"{key} = {toml(value)}" for key, value in listener.items())]
        lines += ["[listener.tls]", *(f"{key} = {toml(value)}" for key, value in tls.items())]
        if self._ca is not None:
            lines += ["[ca]", f"directory = {toml(str(self._ca))}"]
        return self._scratch.write("smtpproxy.toml", "\n".join([*lines, ""]))

    def _read(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        with stream:
            for line in stream:
                self._lines.append(line.decode(errors="replace"))
                if not self.port and (found := LISTENING.search(self._lines[-1])):
                    self.host, self.port = found[1], int(found[2])
                    self._ready.set()
        self._ready.set()  # it ended; there is nothing more to wait for

    def _end(self, number: signal.Signals) -> int | str:
        if self._process.poll() is None:
            self._process.send_signal(number)
        code: int | str
        try:
            code = self._process.wait(STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP)
            code = f"a kill {STOP} s after SIGTERM"
        self._reader.join(STOP)
        return code

    def _load(self) -> list[dict[str, Any]]:
        if not self._audit.exists():
            return []
        complete = self._audit.read_bytes().rpartition(b"\n")[0]
        return [json.loads(line) for line in complete.splitlines()]

    def records(self) -> list[dict[str, Any]]:
        """The records that are completely written; all of them once the proxy has ended."""
        return self._final if hasattr(self, "_final") else self._load()

    def wait_for_records(self, kind: str, n: int, seconds: float) -> list[dict[str, Any]]:
        """The records of one kind once there are at least `n` of them."""
        deadline = time.monotonic() + seconds
        while len(found := self.of_kind(kind)) < n and time.monotonic() < deadline:
            time.sleep(0.02)
        if len(found) < n:
            raise PeerError(f"{len(found)} of {n} {kind} after {seconds} s:\n{self.stderr()}")
        return found

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records() if record[KIND] == kind]

    def stderr(self) -> str:
        return "".join(self._lines)


def between(server_host: str, server_port: int) -> Proxy | Direct:
    """What the clients of a test talk to."""
    return Direct(server_host, server_port) if DIRECT else Proxy(server_host, server_port)
