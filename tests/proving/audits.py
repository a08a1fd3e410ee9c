"""Audits for tests: sessions that are really played, and recorded as the proxy does it.

A script has the inputs of a transcript (`C>`, `S>`, `!!`); what comes out is not compared here. Handshakes are done at
once, and what rules ask of the outside is answered.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smtpproxy.audit.appending import Appender
from smtpproxy.audit.log import AuditLog
from smtpproxy.policy.judge import Judge
from smtpproxy.policy.load import load_rules
from smtpproxy.proving.driving import TLS, Clock, Outputs, Outside
from smtpproxy.proving.history import Audit
from smtpproxy.proving.recorded import Record
from smtpproxy.proving.rehearsed import Rehearsed
from smtpproxy.proving.transcript import parse
from smtpproxy.session.records import AuditRecord, Kind
from smtpproxy.session.session import Session
from smtpproxy.session.state import Facts, Peer
from smtpproxy.smtp.errors import Side

BEGIN = datetime(2026, 11, 16, 10, 0, tzinfo=UTC).timestamp()
HELLO = """
    S> 220 mx.example ESMTP
    C> EHLO me.example
    S> 250-mx.example
    S> 250-PIPELINING
    S> 250-SIZE 10000000
    S> 250-8BITMIME
    S> 250-CHUNKING
    S> 250-DSN
    S> 250 ENHANCEDSTATUSCODES
"""
QUIT = """
    C> QUIT
    S> 221 2.0.0 Bye
"""


def mail(sender: str = "a@x.example", *recipients: str, lines: int = 1, reply: str = "250 2.0.0 Ok") -> str:
    """A whole transaction, all of it accepted by the server."""
    said = [f"C> MAIL FROM:<{sender}>", "S> 250 2.1.0 Ok"]
    for recipient in recipients or ("b@y.example",):
        said += [f"C> RCPT TO:<{recipient}>", "S> 250 2.1.5 Ok"]
    said += ["C> DATA", "S> 354 Go", "C> Subject: test", "C>", *["C> 0123456789"] * lines, "C> .", f"S> {reply}"]
    return "\n".join(said) + "\n"


def judge_of(rules: str, folder: Path, *, shipped: bool = False) -> Judge:
    """The judge of these rules."""
    (folder / "then.toml").write_text(rules)
    loaded = load_rules([folder / "then.toml"], shipped=shipped)
    assert loaded.ok, loaded.problems
    return Judge(loaded.rules, digest=loaded.digest)


def rehearsed(rules: str, folder: Path, *, shipped: bool = False) -> Rehearsed:
    """These rules, for a rehearsal."""
    (folder / "now.toml").write_text(rules)
    loaded = load_rules([folder / "now.toml"], shipped=shipped)
    assert loaded.ok, loaded.problems
    return Rehearsed(loaded.rules, digest=loaded.digest)


class Recording:
    """An audit file that grows by sessions that are played.

    Args:
        path: of the file.
        judge: the rules; without any, those of the registry.
    """

    def __init__(self, path: Path, judge: Judge | None = None) -> None:
        self.path = path
        self.judge = judge or Judge()
        self.clock = Clock()
        self._number = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._log = AuditLog([Appender(self._file)], wall=lambda at: BEGIN + at)

    def session(self, script: str, *, client: str = "192.0.2.1:4025", close: bool = True, **options: Any) -> str:
        """Play one; its name. `close`: its end is on record."""
        self._number += 1
        name = f"4d9d6b7a53-{self._number:x}"
        record = self._log.session(name)
        connect = {"listener": "mx", "client": client, "local": "192.0.2.9:25", "server": "mx.example:25"}
        if self.judge.digest:
            connect["ruleset"] = self.judge.digest
        record(AuditRecord(Kind.CONNECT, self.clock(), detail=connect))
        host, _, port = client.rpartition(":")
        session = Session(
            judge=self.judge,
            record=record,
            clock=self.clock,
            client=Peer(Side.CLIENT, client),
            server=Peer(Side.SERVER, "mx.example:25"),
            facts=Facts("mx", "", host, int(port), "mx.example", 25, lambda: BEGIN + self.clock()),
            **options,
        )
        outside = Outside(self.clock, dials=True)
        if session.begin():
            session.connected()
        self._collect(session, outside)
        for step in parse(script):
            self.clock.now += 0.01
            if step.tag == "!!":
                self.clock.now += float(step.words)
                continue
            (session.client_sent if step.tag == "C>" else session.server_sent)(step.octets)
            self._collect(session, outside)
        if close:
            record(AuditRecord(Kind.CLOSE, self.clock(), detail={"seconds": 1.0, "commands": session.commands}))
        assert self._log.flush()
        return name

    @staticmethod
    def _collect(session: Session, outside: Outside) -> None:
        Outputs(outside, lambda side: TLS).collect(session)

    def close(self) -> None:
        """No more is written."""
        os.close(self._file)


def records_of(*paths: Path) -> list[Record]:
    """What an audit holds."""
    return list(Audit(paths))


def never() -> None:
    """A function that a rule names, and that a rehearsal must not call."""
    raise AssertionError("called")
