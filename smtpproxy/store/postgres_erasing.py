"""What was erased from a gateway's store is erased from PostgreSQL: its record of it, `audit-erase`, says which records
those were, and is followed like any other.

Of an erased line its entry is left (audit/entries.py), so blocks, tree and proofs stay as they are. In the index, all
goes that was taken from these records. They don't say any more whom it was about: so a mail whose record was erased is
found by none of its addresses.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from smtpproxy.audit.entries import entry_of
from smtpproxy.store import schema
from smtpproxy.store.indexing import Index, Line
from smtpproxy.store.postgres_link import Connection
from smtpproxy.store.postgres_reading import NUMBER, Ask, blocks_of

KIND: Final = "audit-erase"
_OF_MAIL: Final = (
    "UPDATE mail SET sender = NULL, message_id = NULL WHERE id = %s",
    "UPDATE recipient SET address = '' WHERE mail = %s",
)
_OF_SESSION: Final = {"link-connect": ("client", "hello"), "link-auth": ("identity",)}  # columns, by the kind of record
_HELLO: Final = ("EHLO", "HELO", "LHLO")


class _Erased(msgspec.Struct):
    kind: str
    session: str
    ranges: list[tuple[int, int]]


_decode = msgspec.json.Decoder(_Erased).decode


def erased_by(line: bytes) -> list[tuple[int, int]]:
    """The first and the last of each run of records that this record says were erased; none, if it is no such one."""
    if b'"kind":"audit-erase"' not in line:
        return []
    try:
        found = _decode(line)
    except msgspec.MsgspecError:
        return []
    return found.ranges if found.kind == KIND and not found.session else []


def erase(link: Connection, ask: Ask, gateway: int, runs: Sequence[tuple[int, int]]) -> None:
    """Take away what is personal in these records, as far as they are there; within a transaction."""
    base = gateway << schema.GATEWAY_SHIFT
    for first, last in runs:
        for begin, _, lines, _ in blocks_of(ask, gateway, first, last + 1):
            left = [entry_of(line) if first <= at <= last else line for at, line in enumerate(lines, begin)]
            if left != lines:
                link.execute("UPDATE block SET lines = %s WHERE first = %s", (b"\n".join(left), base | begin))
            for number, line in enumerate(left, begin):
                if first <= number <= last and (read := Index.read(line)) is not None:
                    _forget(link, base, number, read)


def _forget(link: Connection, base: int, number: int, line: Line) -> None:
    """What the index has from a record, of which the entry is left."""
    if line.tx:
        for statement in _OF_MAIL:
            link.execute(statement.encode(), (base | number,))
    columns = ("hello",) if line.verb in _HELLO else _OF_SESSION.get(line.kind, ())
    if columns:
        nothing = ", ".join(f"{column} = NULL" for column in columns)
        theirs = "(SELECT id FROM session WHERE name = %s AND id >= %s AND id <= %s)"
        for table, number_of in (("mail", "session"), ("session", "id")):
            statement = f"UPDATE {table} SET {nothing} WHERE {number_of} IN {theirs}"  # noqa: S608 - names of our own
            link.execute(statement.encode(), (line.session, base, base | NUMBER))
