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
from ipaddress import ip_address
from typing import Final, NamedTuple

from smtpproxy.audit.entries import SALT, entry_of
from smtpproxy.store.errors import StoreError
from smtpproxy.store.schema import key_of
from smtpproxy.store.store import Store

RANGES: Final = 500  # of records, told by one `audit-erase`
_BEFORE: Final = rb"(?<![A-Za-z0-9.+_-])"  # else it is the end of another one's; what is rarer counts as no part of it

_ESCAPED: Final = re.compile(rb"\\(?:u[0-9a-fA-F]{4}|.)")


class Erased(NamedTuple):
    """How many records lost what was personal in them; whether no octet of it is left in the database's files."""

    records: int
    gone: bool


def pattern_of(*, address: str = "", client: str = "", identity: str = "") -> re.Pattern[bytes]:
    """What names a person in a line of the record, without the escapes of JSON (`names`): a mail address, in the forms
    that commands and replies have it; a client's IP address; the name of a log-in. Letters count as equal in both
    cases."""
    forms: list[bytes] = []
    if address:
        local, _, domain = address.rpartition("@")
        texts = {address, f"{_xtext(local)}@{domain}", f"{_xtext(local)}+40{domain}", f"{local}%40{domain}"}
        if not local.startswith('"'):
            texts.add(f'"{local}"@{domain}')
        forms += [
            rb"%b%b(?![A-Za-z0-9-]|\.[A-Za-z0-9])" % (_BEFORE, re.escape(text.encode())) for text in sorted(texts)
        ]
    if client:
        text = re.escape(_host(client).encode())
        if ":" in client:
            forms.append(rb"(?:(?<![0-9A-Za-z:.])|(?<=IPv6:))%b(?![0-9A-Za-z:])" % text)
        else:
            forms.append(rb"(?<![0-9A-Za-z.])%b(?![0-9A-Za-z]|\.[0-9])" % text)
    if identity:
        forms.append(rb'"identity":"%b"' % re.escape(identity.encode()))
    if not forms:
        raise ValueError("nobody is named")
    return re.compile(b"|".join(forms), re.IGNORECASE)


def _host(client: str) -> str:
    """An IP address as records have it: RFC 5952 has one way to write it."""
    try:
        return ip_address(client).compressed
    except ValueError:
        return client


def _plain(line: bytes) -> bytes:
    """The line without the escapes of JSON: the letter of one, as in a folded `To:`, is no part of an address."""
    return _ESCAPED.sub(_octets_of, line) if b"\\" in line else line


def _octets_of(found: re.Match[bytes]) -> bytes:
    what = found[0][1:2]
    if what == b"u":
        return chr(int(found[0][2:], 16)).encode("utf-8", "replace")
    return what if what in b'"\\/' else b" "


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
            if number >= start and (stop is None or number < stop) and names(pattern, line)
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
        where = start, store.size if stop is None else stop

        def forget(statement: str, value: str) -> None:
            connection.execute(statement, (value, *where))

        if address:
            key = key_of(address)
            forget("UPDATE mail SET sender = NULL WHERE sender = ? COLLATE NOCASE AND id >= ? AND id < ?", key)
            forget("UPDATE recipient SET address = '' WHERE address = ? COLLATE NOCASE AND mail >= ? AND mail < ?", key)
        for value in filter(None, (identity, address)):
            for table in ("mail", "session"):
                same = "identity = ? COLLATE NOCASE AND id >= ? AND id < ?"
                forget(f"UPDATE {table} SET identity = NULL WHERE {same}", value)  # noqa: S608 - names of our own
        if client:
            host = _host(client)
            of = "(SELECT id FROM session WHERE client = ?)"
            same = f"session IN {of} AND id >= ? AND id < ?"
            forget(f"UPDATE mail SET client = NULL, hello = NULL WHERE {same}", host)  # noqa: S608 - as above
            forget("UPDATE session SET client = NULL, hello = NULL WHERE client = ? AND id >= ? AND id < ?", host)
    return Erased(total, gone=emptied(store))


def _blocks(store: Store, start: int, stop: int | None) -> Iterator[tuple[int, list[bytes]]]:
    """One after the other, each read when it is its turn: they are changed meanwhile."""
    number = max(start, store.first)  # before it there is what somebody did not come to take away
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


def names(pattern: re.Pattern[bytes], line: bytes) -> bool:
    """Whether what is personal in a line names the person."""
    at = line.find(SALT)
    return at >= 0 and pattern.search(_plain(line[at:])) is not None


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
