"""Stores with a record in them, made of lines as workers write them. The same arguments make the same lines, but for
their salts."""

import itertools
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from smtpproxy.audit.entries import salts
from smtpproxy.store.store import Store

BEGIN = datetime(2026, 11, 16, 10, 0, tzinfo=UTC)
WORKER = "0123456789"
REFUSED = "550 5.1.1 No such user"


class Writer:
    """One worker's lines: each call to `line` is a record, numbered and timed."""

    def __init__(self, worker: str = WORKER, begin: datetime = BEGIN, salt: Callable[[], str] | None = None) -> None:
        self.worker = worker
        self.now = begin
        self.up = 1000.0
        self.seq = 0
        self._salt = salt or salts()
        self._sessions = itertools.count(1)

    def new_session(self) -> str:
        """Its name."""
        return f"{self.worker}-{next(self._sessions):x}"

    def line(self, session: str, kind: str, public: dict[str, Any], personal: dict[str, Any] | None = None) -> bytes:
        """A record, a millisecond after the one before."""
        self.seq += 1
        self.now += timedelta(milliseconds=1)
        self.up += 0.001
        head = {"v": 1, "at": self.now, "up": round(self.up, 6), "seq": self.seq, "session": session, "kind": kind}
        behind = {"salt": self._salt(), **personal} if personal else {}
        return msgspec.json.encode({**head, **public, **behind})

    def exchange(
        self, session: str, verb: str, asked: str, got: str, *, code: int = 250, tx: int = 0, **more: Any
    ) -> bytes:
        """An exchange; `rule`, `anomalies` and so on are passed on, `told` and `mail` as personal."""
        personal: dict[str, Any] = {key: more.pop(key) for key in ("sent", "told", "mail") if key in more}
        public = {"verb": verb, "action": more.pop("action", "pass"), "code": code, **more}
        if tx:
            public["tx"] = tx
        public |= {"seconds": 0.002, "waited": 0.001}
        return self.line(session, "exchange", public, {"asked": asked, "got": got, **personal})

    def session(
        self,
        sender: str = "alice@example.org",
        recipients: tuple[str, ...] = ("bob@example.net",),
        *,
        client: str = "192.0.2.1",
        server: str = "198.51.100.25:25",
        mails: int = 1,
        size: int = 1000,
        tls: str = "",
        identity: str = "",
        message_id: str = "",
        refused: tuple[str, ...] = (),
        outcome: str = "accepted",
        rule: str = "",
        anomaly: str = "",
        close: bool = True,
    ) -> Iterator[bytes]:
        """A session with so many mails; `outcome` other than accepted is what the server did with all of them, or
        `refused` for a MAIL that was refused."""
        name = self.new_session()
        yield self.line(
            name,
            "link-connect",
            {"listener": "in", "server": server},
            {"client": f"{client}:40000", "local": "192.0.2.25:25"},
        )
        yield self.exchange(name, "GREETING", "(connect)", "220 mx.example.net ESMTP", code=220)
        if tls:
            yield self.exchange(name, "STARTTLS", "STARTTLS", "220 Go ahead", code=220)
            yield self.line(
                name,
                "link-tls",
                {"server": {"version": tls, "cipher": "TLS_AES_256_GCM_SHA384", "verified": True}},
                {"client": {"version": tls, "cipher": "TLS_AES_256_GCM_SHA384", "resumed": False}},
            )
        yield self.exchange(name, "EHLO", "EHLO client.example.org", "250 mx.example.net SIZE 1000000")
        if identity:
            yield self.exchange(name, "AUTH", "AUTH PLAIN <20 octets>", "235 2.7.0 Welcome", code=235)
            yield self.line(
                name, "link-auth", {"mechanism": "PLAIN", "accepted": True, "code": 235}, {"identity": identity}
            )
        for tx in range(1, mails + 1):
            yield from self._mail(
                name, tx, sender, recipients, size, message_id, refused, outcome=outcome, rule=rule, anomaly=anomaly
            )
        if close:
            yield self.exchange(name, "QUIT", "QUIT", "221 2.0.0 Bye", code=221)
            yield self.line(name, "link-close", {"seconds": 0.02, "commands": 6, "transactions": mails})

    def _mail(
        self,
        name: str,
        tx: int,
        sender: str,
        recipients: tuple[str, ...],
        size: int,
        message_id: str,
        refused: tuple[str, ...],
        *,
        outcome: str,
        rule: str,
        anomaly: str,
    ) -> Iterator[bytes]:
        asked = f"MAIL FROM:<{sender}> SIZE={size}"
        if outcome == "refused":
            told = "550 5.7.1 Not from you"
            more: dict[str, Any] = {"rule": rule} if rule else {}
            yield self.exchange(
                name, "MAIL", asked, told, code=550, tx=tx, action="answer", sent=None, mail=sender, **more
            )
            return
        yield self.exchange(name, "MAIL", asked, "250 2.1.0 Ok", tx=tx)
        yield self.line(name, "tx-begin", {"tx": tx}, {"mail": sender})
        for recipient in (*recipients, *refused):
            good = recipient not in refused
            reply = "250 2.1.5 Ok" if good else REFUSED
            yield self.exchange(name, "RCPT", f"RCPT TO:<{recipient}>", reply, code=250 if good else 550, tx=tx)
        yield self.exchange(name, "DATA", "DATA", "354 Go ahead", code=354, tx=tx)
        accepted = outcome == "accepted"
        reply, code = ("250 2.0.0 Ok: queued", 250) if accepted else ("554 5.7.1 No", 554)
        more = {"octets": size}
        if anomaly:
            more["anomalies"] = [anomaly]
        if rule:
            more |= {"rule": rule, "action": "rewrite" if accepted else "answer"}
        yield self.exchange(name, "END", "(end of data)", reply, code=code, tx=tx, **more)
        public = {"tx": tx, "code": code, "octets": size, "sha256": f"{tx:064x}"}
        if not accepted:
            public["why"] = outcome
        personal: dict[str, Any] = {"mail": sender, "rcpt": list(recipients), "reply": reply}
        if refused:
            personal["rcpt_refused"] = list(refused)
        if message_id:
            personal["message_id"] = message_id
        yield self.line(name, "tx-commit" if accepted else "tx-refused", public, personal)


def lines(mails: int = 100, *, seed: int = 1, writer: Writer | None = None) -> Iterator[bytes]:
    """Sessions of many kinds with about so many mails, in all; some have none, some are refused, some have TLS."""
    chance = random.Random(seed)
    writer = writer or Writer()
    made = 0
    while made < mails:
        here = chance.choice((1, 1, 1, 2, 5))
        sender = f"user{chance.randrange(500)}@sender{chance.randrange(50)}.example"
        recipients = tuple(
            f"user{chance.randrange(500)}@host{chance.randrange(50)}.example"
            for _ in range(chance.choice((1, 1, 1, 3)))
        )
        yield from writer.session(
            sender,
            recipients,
            client=f"192.0.2.{chance.randrange(256)}",
            mails=here if chance.random() > 0.05 else 0,
            size=chance.randrange(300, 50_000),
            tls=chance.choice(("", "TLSv1.2", "TLSv1.3", "TLSv1.3")),
            identity="ann" if chance.random() < 0.1 else "",
            message_id=f"<{made}.{seed}@client.example.org>",
            refused=("nobody@host1.example",) if chance.random() < 0.1 else (),
            outcome=chance.choices(("accepted", "server", "refused"), (90, 5, 5))[0],
            rule=chance.choices(("", "no-macros", "big-ones"), (90, 5, 5))[0],
            anomaly="stray-newline-normalised" if chance.random() < 0.02 else "",
        )
        made += here


def filled(directory: Path, mails: int = 100, *, seed: int = 1, batch: int = 1000) -> Store:
    """A store with such sessions in it."""
    store = Store(directory, create=True)
    rest = lines(mails, seed=seed)
    while found := list(itertools.islice(rest, batch)):
        store.append(found)
    return store
