"""Taking one person's fields out of the record, and leaving its proof whole.

Every record whose personal part names the person is replaced by its entry (audit/entries.py): the leaf is the same, and
without the salt nobody can find out by trying what was there. All that is personal in such a record goes, also what is
about others: the recipients of a mail stand together in the record of its end. What each of them was told has a record
of its own, which stays.

SQLite overwrites what is deleted (`secure_delete`), and the write-ahead log is emptied. Before that, the journal has to
let go of what it still has: lines are in it until the recorder is through with their segment.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from smtpproxy.audit.entries import SALT, entry_of
from smtpproxy.store.errors import StoreError
from smtpproxy.store.schema import key_of
from smtpproxy.store.store import Store

RANGES: Final = 500  # of records, told by one `audit-erase`
_BEFORE: Final = (
    rb"(?<![A-Za-z0-9.+_\\-])"  # else it is the end of another one's; what is rarer counts as no part of it
)


class Erased(NamedTuple):
    """How many records lost what was personal in them; whether no octet of it is left in the database's files."""

    records: int
    gone: bool


def pattern_of(*, address: str = "", client: str = "", identity: str = "") -> re.Pattern[bytes]:
    """What names a person in a line of the record: a mail address, in the forms that commands and replies have it; a
    client's IP address; the name of a log-in. Letters count as equal in both cases."""
    forms: list[bytes] = []
    if address:
        local, _, domain = address.rpartition("@")
        texts = {address, f"{_xtext(local)}@{domain}", f"{_xtext(local)}+40{domain}", f"{local}%40{domain}"}
        forms += [rb"%b%b(?![A-Za-z0-9-]|\.[A-Za-z0-9])" % (_BEFORE, re.escape(_json(text))) for text in sorted(texts)]
    if client:
        forms.append(rb'"\[?%b\]?(?::[0-9]+)?"' % re.escape(client.encode()))
    if identity:
        forms.append(rb'"identity":"%b"' % re.escape(_json(identity)))
    if not forms:
        raise ValueError("nobody is named")
    return re.compile(b"|".join(forms), re.IGNORECASE)


def _json(text: str) -> bytes:
    return text.replace("\\", "\\\\").replace('"', '\\"').encode()


def _xtext(text: str) -> str:
    """RFC 3461 §4."""
    return "".join(c if "!" <= c <= "~" and c not in "+=" else "".join(f"+{b:02X}" for b in c.encode()) for c in text)


def erase(
    store: Store,
    pattern: re.Pattern[bytes],
    *,
    address: str = "",
    client: str = "",
    identity: str = "",
    start: int = 0,
    stop: int | None = None,
    why: str = "",
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda number: None,
) -> Erased:
    """Take what is personal out of every record that names the person.

    Args:
        store: of this gateway.
        pattern: what names the person, of `pattern_of`.
        address, client, identity: as given to it; the index forgets them.
        start, stop: numbers of the records that are looked at.
        why: put on record, beside how many records it was. It should name nobody.
        dry_run: only count.
        progress: told how far it is.

    Raises:
        StoreError: the store can't be changed; some records may have been erased, and that is on record.
    """
    total = 0
    for first, lines in _blocks(store, start, stop):
        numbers = [
            number
            for number, line in enumerate(lines, first)
            if number >= start and (stop is None or number < stop) and _names(pattern, line)
        ]
        progress(first)
        if not numbers:
            continue
        total += len(numbers)
        if not dry_run:
            _take_out(store, first, numbers, pattern, why)
    if dry_run:
        return Erased(total, gone=False)
    with store.changing() as connection:
        if address:
            key = key_of(address)
            connection.execute("UPDATE mail SET sender = NULL WHERE sender = ? COLLATE NOCASE", (key,))
            connection.execute("UPDATE recipient SET address = '' WHERE address = ? COLLATE NOCASE", (key,))
        for column, value in (("identity", identity), ("identity", address)):
            if value:
                connection.execute(f"UPDATE mail SET {column} = NULL WHERE {column} = ?", (value,))  # noqa: S608
                connection.execute(f"UPDATE session SET {column} = NULL WHERE {column} = ?", (value,))  # noqa: S608
        if client:
            of = "(SELECT id FROM session WHERE client = ?)"
            connection.execute(f"UPDATE mail SET client = NULL, hello = NULL WHERE session IN {of}", (client,))  # noqa: S608
            connection.execute("UPDATE session SET client = NULL, hello = NULL WHERE client = ?", (client,))
    return Erased(total, gone=emptied(store))


def _blocks(store: Store, start: int, stop: int | None) -> Iterator[tuple[int, list[bytes]]]:
    """One after the other, each read when it is its turn: they are changed meanwhile."""
    number = start
    query = (
        "SELECT first, count, lines FROM block WHERE first >="
        " (SELECT coalesce(max(first), 0) FROM block WHERE first <= ?) ORDER BY first LIMIT 1"
    )
    while stop is None or number < stop:
        try:
            found = store.connection.execute(query, (number,)).fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"the store can't be read: {error}") from error
        if found is None or found[0] + found[1] <= number:
            return
        yield found[0], found[2].split(b"\n")
        number = found[0] + found[1]


def _names(pattern: re.Pattern[bytes], line: bytes) -> bool:
    at = line.find(SALT)
    return at >= 0 and pattern.search(line, at) is not None


def _take_out(store: Store, first: int, numbers: list[int], pattern: re.Pattern[bytes], why: str) -> None:
    """These lines of a block become their entries, with a record of it in the same transaction."""
    with store.on_disk(), store.changing() as connection:
        found = connection.execute("SELECT lines FROM block WHERE first = ?", (first,)).fetchone()
        if found is None:  # pruned meanwhile
            return
        lines = found[0].split(b"\n")
        ranges: list[list[int]] = []
        for number in numbers:
            lines[number - first] = entry_of(lines[number - first])
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
        connection.execute("UPDATE block SET lines = ? WHERE first = ?", (b"\n".join(lines), first))
        marks = ",".join("?" * len(numbers))
        connection.execute(f"UPDATE mail SET message_id = NULL WHERE id IN ({marks})", numbers)  # noqa: S608 - ?, ?, …
        for at in range(0, len(ranges), RANGES):
            part = ranges[at : at + RANGES]
            said = {"ranges": part, "records": sum(b - a + 1 for a, b in part)}
            store.say("audit-erase", {**said, "why": why} if why else said)


def emptied(store: Store) -> bool:
    """Empty the write-ahead log; False if somebody who reads just now keeps it from being."""
    busy = store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    return not busy
