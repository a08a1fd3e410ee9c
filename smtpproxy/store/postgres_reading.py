"""Reading the record in PostgreSQL: the same questions as to a store in a directory (reading.py).

Where there are several gateways, questions about mails are about all of them, and those about the tree about one:
`postgresql://…?gateway=NAME` says which, and then everything is about that one. Numbers of records are those of a
gateway; what is asked with `rows` has them as they are in the tables, with the gateway in its upper bits.

A question is turned for PostgreSQL in two ways only: `?` becomes a parameter of its kind, and each table that a gateway
restricts is put before it as what is left of it (WITH). All of one question, and those asked while its answers are
still being read, see the same moment. Answers come from a cursor of the server, some hundreds at a time.
"""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

import psycopg

from smtpproxy.store import schema
from smtpproxy.store.errors import StoreError
from smtpproxy.store.postgres_link import Where, connect, words
from smtpproxy.store.postgres_schema import check

AT_ONCE: Final = 500  # rows that are fetched together
BLOCKS_AT_ONCE: Final = 16
NUMBER: Final = (1 << schema.GATEWAY_SHIFT) - 1
_SETTINGS: Final = {
    "statement_timeout": "600000",  # ms: a question may be about all there is
    "idle_in_transaction_session_timeout": "3600000",  # and its answers read at leisure
    "default_transaction_read_only": "on",
}
_OF_GATEWAY: Final = {"block": "first", "session": "id", "mail": "id", "recipient": "mail", "mark": "session"}
_OF_TREE: Final = {table: ", ".join(name for name, _ in schema.TABLES[table][0]) for table in ("subtree", "checkpoint")}
_MENTIONED: Final = re.compile(r"\b(?:FROM|JOIN)\s+(\w+)|,\s*(\w+)", re.IGNORECASE)
_PARTS: Final = re.compile(r"'[^']*'|[^'?%]+|[?%]")

Block = tuple[int, int, list[bytes], bytes]  # the first number, how many it says, lines, what it has of leaves
Ask = Callable[[str, Sequence[Any]], Iterator[tuple[Any, ...]]]  # with PostgreSQL's own %s


class PostgresReader:
    """A database, read.

    Args:
        address: postgresql://…

    Raises:
        StoreError: it can't be had, or has no such gateway.
    """

    def __init__(self, address: str) -> None:
        self._where = Where(address)
        self._connection = connect(self._where, "smtpproxy audit", **_SETTINGS)
        self._cursors = itertools.count(1)
        self._asking = 0
        try:
            check(self._connection)
            self._gateways = dict(self._ask("SELECT origin, id FROM gateway ORDER BY origin"))
            if self._where.gateway and self._where.gateway not in self._gateways:
                raise StoreError(f"the database has no records of {self._where.gateway}: {self._names()}")
        except psycopg.Error as error:
            self._connection.close()
            raise StoreError(f"the database ({self._where}) can't be read: {words(error)}") from None
        except StoreError:
            self._connection.close()
            raise
        chosen = self._where.gateway or (next(iter(self._gateways)) if len(self._gateways) == 1 else "")
        self._gateway: int | None = self._gateways.get(chosen)

    def _names(self) -> str:
        return f"there are {', '.join(self._gateways)}" if self._gateways else "nobody has written there"

    def _one(self) -> int:
        """The gateway that is asked about."""
        if self._gateway is None:
            raise StoreError(f"say of which gateway, with ?gateway=NAME behind the address: {self._names()}")
        return self._gateway

    # --------------------------------------------------------------------------------------------------- the interface

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """What a query finds.

        Raises:
            StoreError: it can't be asked; or it is about the tree, and nobody said of which gateway.
        """
        yield from self._ask(self._turned(sql), parameters)

    def lines(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Lines of a gateway by their numbers, in order."""
        yield from lines_in(self.blocks(start, stop), start, stop)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Blocks of a gateway that have to do with these numbers."""
        gateway = self._one()
        with self._as_of_now():
            yield from self._blocks(gateway, start, stop)

    def session_lines(self, number: int) -> list[tuple[int, bytes]]:
        """The lines of a session, by its id, with the numbers they have in its gateway."""
        gateway, start = number >> schema.GATEWAY_SHIFT, number & NUMBER
        with self._as_of_now():
            for name, last in self._ask("SELECT name, last FROM session WHERE id = %s", (number,)):
                mark = b'"session":"%b",' % name.encode()
                stop = None if last is None else (last & NUMBER) + 1
                found = lines_in(self._blocks(gateway, start, stop), start, stop)
                return [(at, line) for at, line in found if mark in line]
        return []

    def meta(self, name: str) -> str:
        """A value by its name."""
        if name == "schema":
            return str(schema.VERSION)
        if name not in _META:
            return ""
        query = f"SELECT {_META[name]} FROM gateway WHERE id = %s"  # noqa: S608 - of our own table
        return next((str(value) for (value,) in self._ask(query, (self._one(),))), "")

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()

    # ---------------------------------------------------------------------------------------------------------- asking

    def _turned(self, sql: str) -> str:
        """A query for both databases, as PostgreSQL's, about this gateway."""
        text, tables = _translated(sql)
        chosen = self._gateway if self._where.gateway else None
        before = []
        for table in tables:
            if table in _OF_TREE:
                left = f"SELECT {_OF_TREE[table]} FROM {table} WHERE gateway = {self._one()}"  # noqa: S608
            elif chosen is not None:
                column, low = _OF_GATEWAY[table], chosen << schema.GATEWAY_SHIFT
                left = f"SELECT * FROM {table} WHERE {column} >= {low} AND {column} <= {low | NUMBER}"  # noqa: S608
            else:
                continue
            before.append(f"{table} AS NOT MATERIALIZED ({left})")
        return f"WITH {', '.join(before)} {text}" if before else text

    def snapshot(self) -> contextlib.AbstractContextManager[None]:
        """All that is asked meanwhile is answered as of one moment."""
        return self._as_of_now()

    @contextlib.contextmanager
    def _as_of_now(self) -> Iterator[None]:
        """What is asked meanwhile sees one moment."""
        try:
            if self._asking == 0:
                self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            self._asking += 1
            try:
                yield
            finally:
                self._asking -= 1
                if self._asking == 0 and not self._connection.closed:
                    self._connection.rollback()
        except psycopg.Error as error:
            raise StoreError(f"the database ({self._where}) can't be read: {words(error)}") from None

    def _ask(self, query: str, parameters: Sequence[Any] = (), at_once: int = AT_ONCE) -> Iterator[tuple[Any, ...]]:
        """Rows, from a cursor of the server."""
        with self._as_of_now():
            cursor = self._connection.cursor(name=f"c{next(self._cursors)}")
            try:
                cursor.execute(query.encode(), parameters)
                while rows := cursor.fetchmany(at_once):
                    yield from rows
            finally:
                with contextlib.suppress(psycopg.Error):  # the server closed it: a query failed, or it is gone itself
                    cursor.close()

    def _blocks(self, gateway: int, start: int, stop: int | None) -> Iterator[Block]:
        return blocks_of(lambda query, parameters: self._ask(query, parameters, BLOCKS_AT_ONCE), gateway, start, stop)


_META: Final = {
    "origin": "origin",
    "vkey": "vkey",
    "first": "first",
    "size": "next",
    "frontier": "encode(frontier, 'hex')",
}


def blocks_of(ask: Ask, gateway: int, start: int, stop: int | None) -> Iterator[Block]:
    """Blocks of a gateway that have to do with these numbers, from the days they are filed under."""
    base = gateway << schema.GATEWAY_SHIFT
    low, high = base | start, base | (NUMBER if stop is None else stop)
    days = (
        "SELECT (SELECT max(day) FROM filing WHERE gateway = %s AND first <= %s),"
        " (SELECT min(day) FROM filing WHERE gateway = %s),"
        " (SELECT max(day) FROM filing WHERE gateway = %s AND first < %s)"
    )
    blocks = (
        "SELECT first, count, lines, leaves FROM block WHERE day >= %s AND day <= %s AND first < %s AND first >="
        " coalesce((SELECT max(first) FROM block WHERE day = %s AND first <= %s AND first >= %s), %s) ORDER BY first"
    )
    for there, earliest, latest in ask(days, (gateway, start, gateway, gateway, high - base)):
        day = there or earliest
        for first, count, lines, leaves in ask(blocks, (day, latest, high, day, low, base, base)):
            yield first - base, count, lines.split(b"\n"), leaves


def lines_in(blocks: Iterator[Block], start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """The lines in blocks that have these numbers."""
    for first, _, lines, _ in blocks:
        for number, line in enumerate(lines, first):
            if number >= start and (stop is None or number < stop):
                yield number, line


@lru_cache(maxsize=256)
def _translated(sql: str) -> tuple[str, tuple[str, ...]]:
    """A query with PostgreSQL's parameters, and the tables of ours that it mentions."""
    text = "".join({"?": "%s"}.get(part, part.replace("%", "%%")) for part in _PARTS.findall(sql))
    mentioned = {name for pair in _MENTIONED.findall(sql) for name in pair}
    return text, tuple(table for table in (*_OF_GATEWAY, *_OF_TREE) if table in mentioned)
