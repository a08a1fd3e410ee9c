"""The proxy as a process with a configuration of its own: several listeners, started and stopped as often as wanted.

For one listener before one server there is `Proxy` (proxy.py).
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from tests.gateway.namespaces import eventually
from tests.peers import PeerError
from tests.peers.process import REPOSITORY, Scratch, find
from tests.peers.proxy import KIND, toml

SECONDS = 20.0
LISTENING = re.compile(r"(?m)^smtpproxy: listening on \S+:(\d+) \(")


def written(tables: Iterable[tuple[str, Mapping[str, object]]]) -> str:
    """TOML of tables by their headings."""
    lines: list[str] = []
    for heading, table in tables:
        lines += [heading, *(f"{key} = {toml(value)}" for key, value in table.items()), ""]
    return "\n".join(lines)


class Serving:
    """`smtpproxy serve --config`."""

    def __init__(
        self,
        listeners: Sequence[Mapping[str, object]],
        tables: Mapping[str, Mapping[str, object]] | None = None,
        matches: Sequence[Mapping[str, object]] = (),
    ) -> None:
        self._scratch = Scratch("serving")
        self.audit = self._scratch.path / "audit.jsonl"
        self.control = self._scratch.path / "control"
        self._log = self._scratch.path / "log"
        self._names = [str(listener["name"]) for listener in listeners]
        self.ports: dict[str, int] = {}  # of each listener, by its name
        self._process: subprocess.Popen[bytes] | None = None
        given = dict(tables or {})
        given["process"] = {"workers": 2, "control": str(self.control), **given.get("process", {})}
        given["audit"] = {"file": str(self.audit)}
        settings = [("[[listener]]", listener) for listener in listeners]
        settings += [("[[match]]", match) for match in matches]
        settings += [(f"[{name}]", table) for name, table in given.items()]
        self.config = self._scratch.write("smtpproxy.toml", written(settings))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                error.add_note(f"the proxy said:\n{self.said()}\n{self.audit_text()[-8000:]}")
                self.kill()
            elif self._process is not None:
                self.stop()
        finally:
            self.kill()
            self._scratch.remove()

    def command(self, argv: list[str]) -> list[str]:
        """How it is started; for who has another way."""
        return argv

    def start(self) -> None:
        """Returns when it listens."""
        said = len(self.said())
        command = self.command([sys.executable, "-m", "smtpproxy", "serve", "--config", str(self.config)])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [find("setpriv"), "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
            )
        process = self._process

        def listens() -> bool:
            if process.poll() is not None:
                raise PeerError(f"the proxy ended with {process.returncode}:\n{self.said()}")
            found = LISTENING.findall(self.said()[said:])
            self.ports = dict(zip(self._names, map(int, found), strict=False))
            return len(found) == len(self._names)

        try:
            eventually("a proxy that listens", listens, SECONDS)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """As an administrator does, and it has to end well."""
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(SECONDS)
            raise PeerError(f"the proxy does not stop:\n{self.said()}") from None
        assert code == 0, f"the proxy ended with {code}:\n{self.said()}"

    def kill(self) -> None:
        """As a fault does: its first process ends, and says nothing to anybody."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(SECONDS)
            self._process = None

    def said(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def audit_text(self) -> str:
        return self.audit.read_text() if self.audit.exists() else ""

    def records(self) -> list[dict[str, Any]]:
        """Those that are completely written."""
        return [json.loads(line) for line in self.audit_text().rpartition("\n")[0].splitlines()]

    def sessions(self) -> list[list[dict[str, Any]]]:
        """The records by session, in the order they began; of those that are over."""
        found: dict[str, list[dict[str, Any]]] = {}
        for record in self.records():
            found.setdefault(record["session"], []).append(record)
        return [one for one in found.values() if one[-1][KIND] == "link-close"]

    def session_of(self, recipient: str) -> dict[str, dict[str, Any]]:
        """The last record of each kind, of the session that brought this mail, once it is over."""

        def look() -> list[dict[str, dict[str, Any]]]:
            return [
                by_kind
                for records in self.sessions()
                if recipient in (by_kind := {one[KIND]: one for one in records}).get("tx-commit", {}).get("rcpt", ())
            ]

        (found,) = eventually(f"a record of the mail to {recipient}", look, SECONDS)
        return found

    def refusals(self) -> list[dict[str, Any]]:
        """The connections that were refused."""
        return [record for record in self.records() if "refused" in record]
