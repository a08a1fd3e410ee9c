"""Rows as PostgreSQL takes them: with the gateway in their numbers, as COPY has them, without texts it can't keep."""

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import Any, Final

from smtpproxy.store import schema
from smtpproxy.store.indexing import Rows
from smtpproxy.store.postgres_link import Connection
from smtpproxy.store.postgres_schema import BY_DAY, BY_GATEWAY

LONGEST_TEXT: Final = 2_000  # octets of a text in the index: PostgreSQL can't index one of 2,704
AT: Final = {"session": 2, "mail": 3, "recipient": 4, "mark": 4}  # which column it is
_OIDS: Final = {"BIGINT": "int8", "TEXT": "text", "DOUBLE PRECISION": "float8", "BLOB": "bytea"}
_MORE: Final = {"block": (("day", "date"),), **dict.fromkeys(BY_GATEWAY, (("gateway", "int8"),))}
_COLUMNS: Final = {
    table: [*((name, _OIDS[kind]) for name, kind in schema.TABLES[table][0]), *_MORE.get(table, ())]
    for table in (*BY_DAY, *BY_GATEWAY)
}
_FIRST_DAY: Final = date(1970, 1, 1)

Row = tuple[Any, ...]


def date_of(day: int) -> date:
    """A day that is counted from 1970."""
    return _FIRST_DAY + timedelta(days=day)


def copy(link: Connection, table: str, rows: Sequence[Row]) -> None:
    """Add rows to a table, in the order of its columns; the day or the gateway that PostgreSQL has beside them last."""
    if rows:
        columns = _COLUMNS[table]
        names = ", ".join(name for name, _ in columns)
        with link.cursor().copy(f"COPY {table} ({names}) FROM STDIN (FORMAT BINARY)".encode()) as copying:
            copying.set_types([kind for _, kind in columns])
            for row in rows:
                copying.write_row(row)


def indexed(rows: Rows, base: int, going: dict[int, float]) -> tuple[dict[str, list[Row]], list[Row]]:
    """What came of lines, as rows by table, and as changes of sessions whose row is there already.

    Args:
        rows: of an index.
        base: what the gateway adds to numbers.
        going: sessions that go on, by their id, and when they began; it is brought up to date.

    Returns:
        The rows; and of each session that ended, its facts, its id, and when it began.
    """
    sessions = {base | row[0]: [base | row[0], *row[1:]] for row in rows.sessions}
    for row in sessions.values():
        if row[4] is None:
            going[row[0]] = row[2]
        else:
            row[4] |= base
    later = []
    for until, last, how, hello, client_tls, server_tls, identity, mails, number in rows.ended:
        key = base | number
        began = going.pop(key)
        facts = (hello, client_tls, server_tls, identity, mails)
        if key in sessions:
            sessions[key][3:6] = until, base | last, how
            sessions[key][9:] = facts
        else:
            later.append(_storable((until, base | last, how, *facts, key, began)))
    marks = ((*row[:2], base | row[2], row[3] and base | row[3], *row[4:]) for row in rows.marks)
    tables: dict[str, Iterable[Sequence[Any]]] = {
        "session": sessions.values(),
        "mail": ((base | row[0], base | row[1], *row[2:]) for row in rows.mails),
        "recipient": ((base | row[0], *row[1:]) for row in rows.recipients),
        "mark": marks,
    }
    return {table: [_storable(row) for row in some] for table, some in tables.items()}, later


def _storable(row: Sequence[Any]) -> Row:
    """A row whose texts PostgreSQL can keep: without NUL, and none too long for an index."""
    return tuple(_text(value) if isinstance(value, str) else value for value in row)


def _text(text: str) -> str:
    text = text.replace("\0", "\ufffd")
    if len(text) * 4 <= LONGEST_TEXT:
        return text
    return text.encode()[:LONGEST_TEXT].decode(errors="ignore")
