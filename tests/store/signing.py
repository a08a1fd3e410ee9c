"""Stores that are signed: as a recorder does it, without one."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from smtpproxy.audit.notes import Signer, checkpoint_text, sign
from smtpproxy.store.reading import open_reader
from smtpproxy.store.sayings import Report
from smtpproxy.store.store import Store
from smtpproxy.store.verifying import Verifying
from tests.store.filling import Writer, lines

ORIGIN = "gw1.example.org/audit"


def signer(seed: int = 1) -> Signer:
    """A key that is the same each time."""
    return Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def checkpoint(store: Store, key: Signer | None = None, at: float = 0.0) -> str:
    """Sign what there is; the note."""
    text = checkpoint_text(key.name if key is not None else ORIGIN, store.size, store.frontier.root())
    note = sign(text, key) if key is not None else text
    with store.changing() as connection:
        row = (store.size, at, store.frontier.root(), note)
        connection.execute("INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?, ?, NULL)", row)
    return note


def signed(
    directory: Path, mails: int = 200, *, every: int = 300, key: Signer | None = None, writer: Writer | None = None
) -> list[str]:
    """A store with a checkpoint every so many records, and one at the end; their notes."""
    directory.mkdir(exist_ok=True)
    key = key or signer()
    store = Store(directory, create=True)
    with store.changing():
        store.keep("origin", ORIGIN)
        store.keep("vkey", key.vkey)
    notes = []
    all_lines = list(lines(mails, writer=writer))
    for at in range(0, len(all_lines), every):
        store.append(all_lines[at : at + every])
        notes.append(checkpoint(store, key))
    store.close()
    return notes


def verified(directory: Path, *, vkey: str = "", kept: tuple[str, ...] = (), start: int = 0) -> Report:
    """What a look at it comes to."""
    reader = open_reader(str(directory))
    try:
        return Verifying(reader, vkey=vkey, kept=kept, start=start).run()
    finally:
        reader.close()


def tampered(directory: Path, act: Callable[[sqlite3.Connection], object]) -> None:
    """Change the database behind everybody's back."""
    connection = sqlite3.connect(directory / "audit.db")
    act(connection)
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def edited(directory: Path, number: int, act: Callable[[list[bytes], int], object]) -> None:
    """Change the lines of the block that has a record; `act` gets them, and which of them it is."""

    def change(connection: sqlite3.Connection) -> None:
        query = "SELECT first, lines FROM block WHERE first <= ? ORDER BY first DESC LIMIT 1"
        first, blob = connection.execute(query, (number,)).fetchone()
        found = blob.split(b"\n")
        act(found, number - first)
        connection.execute("UPDATE block SET lines = ? WHERE first = ?", (b"\n".join(found), first))

    tampered(directory, change)
