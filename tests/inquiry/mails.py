"""A store with mails of every kind, and a second way to say which of them pass a question: one after the other."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from smtpproxy.inquiry.filters import Question, Value, question
from smtpproxy.store.reading import Reader
from smtpproxy.store.store import Store
from tests.store.filling import BEGIN, Writer, lines

NOW = BEGIN.timestamp() + 3600


def asked(since: str | None = None, until: str | None = None, **words: str | list[str]) -> Question:
    """A question as the command line makes it; `_` stands for `-`."""
    filters = {name.replace("_", "-"): [value] if isinstance(value, str) else value for name, value in words.items()}
    return question(filters, since=since, until=until, now=NOW)


def varied(directory: Path, mails: int = 150) -> Store:
    """Mails as they come, and some that are rare; among them one with ranges and marks of its session."""
    directory.mkdir()
    store = Store(directory, create=True)
    writer = Writer()
    store.append(list(lines(mails, writer=writer)))
    store.append(list(special(writer)))
    store.append(list(lines(mails // 3, seed=2, writer=writer)))
    return store


def special(writer: Writer) -> Iterator[bytes]:
    """What does not come by chance."""
    yield from writer.session(
        "Ann@sub.Example.ORG", ("bob@example.org", "carl@deep.sub.example.org"), client="2001:db8::7", size=3_000_000,
        message_id="<one@example.org>", identity="ann", tls="TLSv1.3",
    )  # fmt: skip
    yield from writer.session("", ("postmaster", "bob@example.org"), client="10.1.2.3", refused=("x@example.org",))
    yield from writer.session("eve@notexample.org", ("a@b.example", "b@b.example"), server="[2001:db8::25]:587")
    yield from writer.session("eve@notexample.org", ("a@b.example", "a@b.example"), outcome="RSET")
    # A session with marks outside any mail: some before its mails, some behind them.
    name = writer.new_session()
    yield writer.line(
        name, "link-connect", {"listener": "out", "server": "mx.example:25"}, {"client": "198.51.100.9:1", "local": ""}
    )
    yield writer.exchange(name, "GREETING", "(connect)", "220 mx", code=220, rules=["greeted"], tags=["odd"])
    yield writer.exchange(name, "EHLO", "EHLO me*you", "250 mx", anomalies=["odd-hello"])
    for tx in (1, 2):
        yield writer.exchange(name, "MAIL", "MAIL FROM:<m@x.example>", "250 Ok", tx=tx)
        yield writer.line(name, "tx-begin", {"tx": tx}, {"mail": "m@x.example"})
        seen = [{"rule": "watching", "action": "answer", "told": "550 no"}] if tx == 1 else []
        yield writer.exchange(name, "RCPT", "RCPT TO:<o@x.example>", "450 4.2.1 Later", code=450, tx=tx, observed=seen)
        public = {"tx": tx, "code": 450, "why": "closed"}
        yield writer.line(name, "tx-refused", public, {"mail": "m@x.example", "rcpt_refused": ["o@x.example"]})
    yield writer.exchange(name, "UNKNOWN", "FOO", "502 no", code=502, action="answer", rule="default")
    yield writer.line(name, "note", {"anomaly": "tls-failed", "side": "client"}, {"why": "bad"})
    yield writer.line(name, "link-close", {"seconds": 1.0})
    refused = writer.new_session()
    yield writer.line(
        refused, "link-connect", {"listener": "in", "server": "x:25", "refused": "too many"}, {"client": "10.9.9.9:1"}
    )


def by_hand(reader: Reader, which: Question) -> list[int]:
    """The ids of the mails that pass, the newest first: each row of the index, as fields, held against the question."""
    recipients: dict[int, set[Value]] = {}
    for mail, address in reader.rows("SELECT mail, address FROM recipient"):
        recipients.setdefault(mail, set()).add(address)
    marks: dict[tuple[int, int], dict[str, set[Value]]] = {}
    for what, name, session, mail in reader.rows("SELECT what, name, session, mail FROM mark"):
        marks.setdefault((session, mail), {}).setdefault(what, set()).add(name)
    names = dict(reader.rows("SELECT id, name FROM session"))
    columns = (
        "id", "session", "at", "outcome", "sender", "size", "code", "verdict", "message_id", "client", "server",
        "listener", "client_tls", "hello", "identity",
    )  # fmt: skip
    found = []
    for row in reader.rows(f"SELECT {', '.join(columns)} FROM mail ORDER BY at DESC, id DESC"):
        mail = dict(zip(columns, row, strict=True))
        view: dict[str, set[Value]] = {field: {value} for field, value in mail.items() if value is not None}
        view |= {"recipient": recipients.get(mail["id"], set()), "session": {names[mail["session"]]}}
        for key in (mail["id"], 0):
            for what, some in marks.get((mail["session"], key), {}).items():
                view[what] = view.get(what, set()) | some
        if which.holds(mail["at"], view):
            found.append(mail["id"])
    return found


def of_the_page(directory: Path) -> None:
    """The record that docs/audit-asking.md is about: the evening before, and the morning of, 24 November 2026."""
    directory.mkdir()
    store = Store(directory, create=True)
    evening = datetime(2026, 11, 23, 21, 40, tzinfo=UTC)
    ann, bob, news = "ann@example.org", "bob@partner.example", "news@shop.example"
    sessions: tuple[tuple[int, str, tuple[str, ...], dict[str, Any]], ...] = (
        (0, bob, (ann,), {"client": "192.0.2.7", "tls": "TLSv1.3", "message_id": "<4711@partner.example>"}),
        (9, bob, (ann, "carl@example.org"), {"client": "192.0.2.7", "tls": "TLSv1.3", "size": 2_411_300}),
        (11, news, (ann,), {"client": "198.51.100.3", "outcome": "refused", "rule": "no-bulk"}),
        (640, bob, ("carl@example.org",), {"client": "192.0.2.7", "tls": "TLSv1.3", "refused": ("karl@example.org",)}),
        (655, news, (ann,), {"client": "198.51.100.3", "outcome": "server", "rule": "no-macros", "size": 88_200}),
        (658, "", (bob,), {"client": "203.0.113.80", "anomaly": "stray-newline-normalised"}),
        (671, news, (), {"client": "198.51.100.3", "mails": 0}),
        (700, ann, (bob,), {"client": "203.0.113.5", "tls": "TLSv1.3", "identity": "ann", "size": 31_000}),
        (702, ann, ("dora@lists.partner.example",), {"client": "203.0.113.5", "identity": "ann", "rule": "disclaimer"}),
    )
    for minutes, sender, recipients, more in sessions:
        writer = Writer(worker=f"4d9d6b{minutes:04x}", begin=evening + timedelta(minutes=minutes))
        store.append(list(writer.session(sender, recipients, **more)))
    store.close()
