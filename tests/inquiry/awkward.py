"""Mails, and sessions without one, that are not like most: what an export must be able to say."""

from pathlib import Path
from typing import Any

from smtpproxy.audit.entries import entry_of
from smtpproxy.inquiry.exporting import Mail, mails
from smtpproxy.store.reading import open_reader
from smtpproxy.store.store import Store
from tests.inquiry.mails import asked
from tests.store.filling import WORKER, Writer


def of(directory: Path, *lines: bytes) -> list[Mail]:
    """What a store with these lines has."""
    directory.mkdir(exist_ok=True)
    store = Store(directory, create=True)
    store.append(list(lines))
    store.close()
    return all_of(directory)


def all_of(directory: Path) -> list[Mail]:
    """What a store has."""
    reader = open_reader(str(directory))
    found = list(mails(reader, asked()))
    reader.close()
    return found


def sessions() -> dict[str, list[bytes]]:
    """One mail each, or one session without."""
    writer = Writer()

    def session(**more: Any) -> list[bytes]:
        return list(writer.session(**more))

    name = writer.new_session()
    cut = [writer.line(name, "link-connect", {"listener": "in", "server": "mx"}, {"client": "[::1]:5"})]
    cut += [
        writer.exchange(name, "MAIL", "MAIL FROM:<>", "550 No", code=550, tx=1, mail="", action="answer", sent=None)
    ]
    away = writer.new_session()
    unseen = writer.new_session()
    lost = session(mails=0, close=False)
    died = writer.line("", "worker-died", {"worker": WORKER, "how": "signal 9", "sessions": 1})
    connect = {"listener": "in", "server": "192.0.2.25:25", "refused": "too many"}
    return {
        "a null reverse-path": session(sender=""),
        "one that was refused": session(sender="", outcome="refused"),
        "of a session that goes on": cut,
        "erased": [entry_of(line) for line in session(tls="TLSv1.3", identity="ann", message_id="<1@x>")],
        "erased, and no mail": [entry_of(line) for line in session(mails=0)],
        "IPv6": session(client="2001:db8::1", server="[2001:db8::25]:587"),
        "of a server by its name": session(server="mx.example:25"),
        "TLS 1.0": session(tls="TLSv1"),
        "no mail": session(mails=0),
        "no mail, over TLS": session(mails=0, tls="TLSv1.3"),
        "never let in": [
            writer.line(away, "link-connect", connect, {"client": "192.0.2.9:5"}),
            writer.line(away, "link-close", {"seconds": 0.0}),
        ],
        "of a worker that died": [*lost, died],
        "nobody and nowhere": [
            writer.line(unseen, "link-connect", {"listener": "in"}),
            writer.line(unseen, "link-close", {"seconds": 0.1}),
        ],
        "addresses as nobody has them": session(sender='"a b"@x.example', recipients=("postmaster", "~k1.abc@~k1.def")),
        "texts as nobody writes them": session(message_id="<\x00\x1b\u202e>", identity="\ud7ff" * 500),
        "cut off by the client": session(outcome="closed"),
        "answered by a rule": session(outcome="answer", rule="no-macros"),
        "rewritten by a rule": session(rule="disclaimer", anomaly="stray-newline-normalised"),
    }


WITHOUT_MAIL = frozenset(
    {
        "no mail",
        "no mail, over TLS",
        "never let in",
        "of a worker that died",
        "nobody and nowhere",
        "erased, and no mail",
    }
)
