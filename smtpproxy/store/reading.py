"""Reading a store: the same questions to SQLite and to PostgreSQL.

A reader sees the store as it was when it began to ask, and never writes; the recorder goes on meanwhile.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from smtpproxy.store import schema
from smtpproxy.store.errors import StoreError
from smtpproxy.store.store import DATABASE

POSTGRES: Final = ("postgresql://", "postgres://")
PATIENCE: Final = 5.0  # seconds a writer may keep us waiting


class Reader(Protocol):
    """Asks a store. Its methods raise StoreError if it can't be read (any more)."""

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """What a query finds; `?` stands for a parameter."""

    def lines(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Lines by their numbers, in order, those that are there; `stop` is not among them."""

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, list[bytes], bytes]]:
        """Blocks that have to do with these numbers: the first, how many it says, the lines, what it has of leaves."""

    def session_lines(self, number: int) -> list[tuple[int, bytes]]:
        """The lines of a session, by its id."""

    def meta(self, name: str) -> str:
        """A value by its name; "" if there is none."""

    def snapshot(self) -> contextlib.AbstractContextManager[None]:
        """All that is asked meanwhile is answered as of one moment. What is written then takes room until it ends."""

    def close(self) -> None:
        """Let go of it."""


class SQLiteReader:
    """A store in a directory, read."""

    def __init__(self, directory: Path) -> None:
        path = directory / DATABASE
        if not path.exists():
            raise StoreError(f"there is no store in {directory}")
        uri = f"{path.absolute().as_uri()}?mode=ro"
        try:
            self._connection = _connect(uri)
        except sqlite3.OperationalError as error:
            wal = path.with_name(f"{DATABASE}-wal")
            if wal.exists() and wal.stat().st_size:
                raise StoreError(f"the store {path} can't be opened: {error}") from error
            try:  # on a medium that can't be written, and nobody writes it
                self._connection = _connect(f"{uri}&immutable=1")
            except sqlite3.Error as worse:
                raise StoreError(f"the store {path} can't be opened: {worse}") from worse
        except sqlite3.Error as error:
            raise StoreError(f"the store {path} can't be read: {error}") from error
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version != schema.VERSION:
            self._connection.close()
            raise StoreError(f"the store {path} is of version {version}, and this smtpproxy reads {schema.VERSION}")

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """What a query finds."""
        try:
            yield from self._connection.execute(sql, parameters)
        except sqlite3.Error as error:
            raise StoreError(f"the store can't be read: {error}") from error

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, list[bytes], bytes]]:
        """Blocks that have to do with these numbers."""
        query = (
            "SELECT first, count, lines, leaves FROM block WHERE first >="
            " (SELECT coalesce(max(first), 0) FROM block WHERE first <= ?) AND first < ? ORDER BY first"
        )
        for first, count, lines, leaves in self.rows(query, (start, 2**62 if stop is None else stop)):
            yield first, count, lines.split(b"\n"), leaves

    def lines(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Lines by their numbers, in order."""
        for first, _, lines, _ in self.blocks(start, stop):
            for number, line in enumerate(lines, first):
                if number >= start and (stop is None or number < stop):
                    yield number, line

    def session_lines(self, number: int) -> list[tuple[int, bytes]]:
        """The lines of a session, by its id."""
        for name, last in self.rows("SELECT name, last FROM session WHERE id = ?", (number,)):
            mark = b'"session":"%b",' % name.encode()
            stop = None if last is None else last + 1
            found = []
            for first, _, lines, _ in self.blocks(number, stop):
                found += [(at, line) for at, line in enumerate(lines, first) if mark in line]
            return [(at, line) for at, line in found if at >= number and (stop is None or at < stop)]
        return []

    def meta(self, name: str) -> str:
        """A value by its name."""
        for (value,) in self.rows("SELECT value FROM meta WHERE name = ?", (name,)):
            return str(value)
        return ""

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that is asked meanwhile is answered as of one moment."""
        try:
            self._connection.execute("BEGIN")
        except sqlite3.Error as error:
            raise StoreError(f"the store can't be read: {error}") from error
        try:
            yield
        finally:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=PATIENCE, check_same_thread=False)
    try:
        connection.execute("PRAGMA mmap_size = 2147418112")  # random look-ups are three times as fast
        connection.execute("PRAGMA query_only = 1")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def open_reader(where: str) -> Reader:
    """A store by its directory, or by the address of a PostgreSQL database.

    Raises:
        StoreError: it can't be had.
    """
    if where.startswith(POSTGRES):
        try:
            from smtpproxy.store.postgres_reading import PostgresReader  # an extra: not needed for a directory
        except ImportError as error:
            raise StoreError("for a PostgreSQL database psycopg is needed: install smtpproxy[postgres]") from error
        return PostgresReader(where)
    return SQLiteReader(Path(where))
