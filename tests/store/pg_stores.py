"""Stores for the tests of PostgreSQL, brought there, and compared with what is there."""

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from smtpproxy.store import schema
from smtpproxy.store.postgres import PostgresSink
from smtpproxy.store.postgres_reading import NUMBER, PostgresReader
from smtpproxy.store.reading import SQLiteReader
from smtpproxy.store.store import Store
from smtpproxy.store.verifying import Verifying
from tests.store.filling import filled

ORIGIN: Final = "mx1.example.org"
_NUMBERS: Final = {
    "session": ("id", "last"),
    "mail": ("id", "session"),
    "recipient": ("mail",),
    "mark": ("session", "mail"),
}


def empty(directory: Path, origin: str = ORIGIN) -> Store:
    """A store with a name and nothing in it."""
    return _named(Store(directory, create=True), origin)


def stocked(directory: Path, mails: int, *, origin: str = ORIGIN, seed: int = 1) -> Store:
    """One with a record in it."""
    return _named(filled(directory, mails, seed=seed), origin)


def _named(store: Store, origin: str) -> Store:
    with store.changing():
        store.keep("origin", origin)
    return store


def checkpoint(store: Store) -> None:
    """An unsigned one, of all there is."""
    with store.changing() as connection:
        row = (store.size, 0.0, store.frontier.root(), f"of {store.size}", None)
        connection.execute("INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?, ?, ?)", row)


def bring(sink: PostgresSink, directory: Path, batch: int = 500) -> None:
    """All the sink has not, in batches."""
    with contextlib.closing(SQLiteReader(directory)) as local:
        rest = local.lines(sink.position())
        while some := list(itertools.islice(rest, batch)):
            sink.send(some)


def brought(directory: Path, database: str, batch: int = 500) -> None:
    """The same, with a sink of its own."""
    with contextlib.closing(PostgresSink(database, directory)) as sink:
        bring(sink, directory, batch)


def rows_of(rows: Iterable[Sequence[Any]], table: str) -> list[tuple[Any, ...]]:
    """Rows without the gateway in their numbers, in an order."""
    columns = [name for name, _ in schema.TABLES[table][0]]
    numbers = {columns.index(name) for name in _NUMBERS[table]}
    plain = (
        tuple(value & NUMBER if at in numbers and value is not None else value for at, value in enumerate(row))
        for row in rows
    )
    return sorted(plain, key=repr)


def same(directory: Path, database: str, *, but: Sequence[str] = ()) -> None:
    """Whether the database has what the store has: lines, tree, index, all of it once.

    Args:
        directory: of the store, whose gateway the database has, perhaps among others.
        database: its address.
        but: tables that are not looked at.
    """
    with contextlib.closing(SQLiteReader(directory)) as local:
        address = f"{database}&gateway={local.meta('origin')}"
        with contextlib.closing(PostgresReader(address)) as reader:
            first = int(reader.meta("first"))
            assert list(reader.lines(first)) == list(local.lines(first))
            for name in ("size", "frontier", "origin", "vkey"):
                assert reader.meta(name) == local.meta(name)
            for query in (
                "SELECT n, hash FROM subtree ORDER BY n",
                "SELECT size, at, root, note FROM checkpoint ORDER BY size",
            ):
                assert list(reader.rows(query)) == list(local.rows(query))
            for table in _NUMBERS.keys() - set(but):
                query = f"SELECT {', '.join(name for name, _ in schema.TABLES[table][0])} FROM {table}"
                assert rows_of(reader.rows(query), table) == rows_of(local.rows(query), table)


def findings(database: str, origin: str = ORIGIN) -> list[str]:
    """What is not as it was, and what was pruned there."""
    with contextlib.closing(PostgresReader(f"{database}&gateway={origin}")) as reader:
        report = Verifying(reader, copy=True).run()
        return [found.text for found in report.findings] + [note for note in report.notes if "pruned" in note]
