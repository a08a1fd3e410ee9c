"""The store of one gateway: an SQLite database with the lines of the record, the tree over them, and their index.

One process writes at a time, by SQLite's own lock; each change reads the state first (`changing`), so that recorder and
command line can take turns. Lines are only ever added, in one transaction with what says how far the journal has been
read (`position`): a recorder that is killed goes on exactly where the last transaction ended.

    numbers   0 1 2 …                  a line's place, and its leaf's in the tree
    blocks    [0..41] [42..43] …       as many lines as came at once: a row each
    subtrees  [0..255] [256..511] …    their hashes, once they are whole; the rest of the tree is made from these
    frontier  the hashes of the perfect subtrees there are, left to right: all that is needed to go on

The database is in WAL mode without a sync at each commit: after a power failure it may be an older one, and the journal
still has what is missing. Who lets go of the journal calls `settle` first; what stands in no journal is `say`d, and
synced.

What must never happen: a line changed in its place other than to its entry (audit/entries.py), a number given twice.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from smtpproxy.audit import journal
from smtpproxy.audit.entries import entry_of
from smtpproxy.audit.tree import Frontier
from smtpproxy.store import schema
from smtpproxy.store.errors import StoreError
from smtpproxy.store.indexing import NO_RECORD, Index, Line, Rows, Time

DATABASE: Final = journal.DATABASE
SUBTREE: Final = 256  # leaves
LARGEST_BLOCK: Final = 262_144  # octets of the lines of a block, but for a line that alone is longer
BUSY: Final = 5.0  # seconds another one may hold the database
_PREFIX: Final = 8  # octets of a leaf hash that a block keeps

_INSERTS: Final = {
    table: f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 - names of our own
    for table, (columns, _) in schema.TABLES.items()
}
_END_SESSION: Final = (
    "UPDATE session SET until = ?, last = ?, how = ?, hello = ?, client_tls = ?, server_tls = ?, identity = ?,"
    " mails = ? WHERE id = ?"
)


class Store:
    """A store that is written to.

    Args:
        directory: where it is.
        create: make it, if there is none.
        indexes: lines will be appended, and their sessions indexed; else only `say` and `changing` are wanted.

    Attributes:
        size: the number of the next line.
        first: the number of the first line that is kept.

    Raises:
        StoreError: there is none, it is of a newer version, or can't be written.
    """

    def __init__(self, directory: Path, *, create: bool = False, indexes: bool = True) -> None:
        self.path = directory / DATABASE
        self.size = self.first = 0
        self.position = ""
        self._high, self._low = Frontier(), Frontier()
        self._index = Index()
        self._stale = False  # another process wrote since the index was made: it may have erased what stands in it
        if not create and not self.path.exists():
            raise StoreError(f"there is no store in {directory}")
        try:
            self.connection = sqlite3.connect(self.path, isolation_level=None, timeout=BUSY, check_same_thread=False)
        except sqlite3.Error as error:
            raise StoreError(f"the store {self.path} can't be opened: {error}") from error
        try:
            self._prepare(create)
            if indexes:
                self._restore_index()
        except sqlite3.Error as error:
            self.connection.close()
            raise StoreError(f"the store {self.path} can't be used: {error}") from error
        except (KeyError, ValueError) as error:
            self.connection.close()
            raise StoreError(f"the store {self.path} is broken: what it says of itself is no tree") from error
        except StoreError:
            self.connection.close()
            raise

    @property
    def frontier(self) -> Frontier:
        """Of the whole tree."""
        return Frontier(self.size, self._high.hashes + self._low.hashes)

    @property
    def octets(self) -> int:
        """Octets of the database that are in use.

        Raises:
            StoreError: it can't be read.
        """
        try:
            pages, free, size = (
                self.connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        except sqlite3.Error as error:
            raise StoreError(f"the store {self.path} can't be read: {error}") from error
        return int((pages - free) * size)

    @property
    def open_sessions(self) -> int:
        """Sessions that go on, as far as lines were appended."""
        return len(self._index)

    # -------------------------------------------------------------------------------------------------- opening

    def _prepare(self, create: bool) -> None:
        connection = self.connection
        if create and not connection.execute("PRAGMA user_version").fetchone()[0]:
            connection.execute("PRAGMA page_size = 8192")  # a fifth less work than 4096, with blocks as large as these
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")  # pages
        connection.execute("PRAGMA cache_size = -65536")  # KiB
        connection.execute("PRAGMA secure_delete = ON")  # what is erased is gone from the file, too
        with self._transaction():
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > schema.VERSION:
                raise StoreError(
                    f"the store {self.path} is of version {version}, made by a newer smtpproxy;"
                    f" this one knows versions up to {schema.VERSION}"
                )
            if version == 0:
                for statement in schema.sqlite_statements():
                    connection.execute(statement)
                self._keep_state()
                version = schema.VERSION
            for step in range(version, schema.VERSION):
                for statement in schema.MIGRATIONS[step]:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {schema.VERSION}")
            self._read_state()

    def _read_state(self) -> None:
        found = dict(self.connection.execute("SELECT name, value FROM meta").fetchall())
        self.size, self.first = int(found["size"]), int(found["first"])
        self.position = found["position"]
        hashes = Frontier.from_bytes(self.size, bytes.fromhex(found["frontier"])).hashes
        whole = (self.size // SUBTREE).bit_count()
        self._high = Frontier(self.size // SUBTREE, hashes[:whole])
        self._low = Frontier(self.size % SUBTREE, hashes[whole:])

    def _keep_state(self) -> None:
        values = {
            "size": str(self.size),
            "first": str(self.first),
            "position": self.position,
            "frontier": self.frontier.to_bytes().hex(),
        }
        self.connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def _restore_index(self) -> None:
        self._index, self._stale = Index(), True
        going = self.connection.execute("SELECT id, name FROM session WHERE until IS NULL ORDER BY id").fetchall()
        if going:
            self._index.restore(going, self.lines(going[0][0]))
        self._stale = False

    def lines(self, start: int, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Lines by their numbers, in order."""
        query = (
            "SELECT first, lines FROM block WHERE first >="
            " (SELECT coalesce(max(first), 0) FROM block WHERE first <= ?) ORDER BY first"
        )
        for first, lines in self.connection.execute(query, (start,)):
            for number, line in enumerate(lines.split(b"\n"), first):
                if stop is not None and number >= stop:
                    return
                if number >= start:
                    yield number, line

    # -------------------------------------------------------------------------------------------------- changing

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self.connection.in_transaction:  # SQLite itself goes back where the disk is full
                self.connection.execute("ROLLBACK")
            raise
        try:
            self.connection.execute("COMMIT")
        except sqlite3.Error:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction with the state as it is now, which is kept at its end.

        Raises:
            StoreError: the database is locked, full or broken; nothing has changed.
        """
        before = self.size, self.first, self.position, self._high.hashes, self._low.hashes
        try:
            with self._transaction():
                held = self.connection.execute("SELECT value FROM meta WHERE name = 'size'").fetchone()
                if held is None or int(held[0]) != self.size:
                    self._read_state()
                    self._stale = True
                yield self.connection
                self._keep_state()
        except sqlite3.Error as error:
            self._go_back(before)
            raise StoreError(f"the store {self.path} can't be changed: {error}") from error
        except BaseException:
            self._go_back(before)
            raise

    def _go_back(self, before: tuple[int, int, str, tuple[bytes, ...], tuple[bytes, ...]]) -> None:
        self.size, self.first, self.position, high, low = before
        self._high = Frontier(self.size // SUBTREE, high)
        self._low = Frontier(self.size % SUBTREE, low)

    def append(self, lines: Sequence[bytes], position: str = "", read: Sequence[Line | None] | None = None) -> int:
        """Add lines (without line ends), in one transaction; the number of the first.

        Args:
            lines: none of them has a LF in it.
            position: how far the journal has been read with them; "" is as before.
            read: what each of them says, if that is known.

        Raises:
            StoreError: nothing was added.
        """
        try:
            with self.changing():
                if self._stale:
                    self._restore_index()
                first = self.size
                self.position = position or self.position
                self._add(lines)
                take = self._index.take
                for number, values in enumerate(map(Index.read, lines) if read is None else read, first):
                    if values is not None:
                        take(number, values)
                self._insert(self._index.give())
            return first
        except Exception:
            with contextlib.suppress(sqlite3.Error):  # if even that fails, the next append tries again
                self._restore_index()
            raise

    def _add(self, lines: Sequence[bytes]) -> None:
        """To blocks and tree."""
        block: list[bytes] = []
        leaves: list[bytes] = []
        octets = 0
        first = self.size
        low = self._low
        for line in lines:
            if block and octets + len(line) > LARGEST_BLOCK:
                self.put_block(first, block, leaves)
                first, block, leaves, octets = self.size, [], [], 0
            leaf = sha256(b"\0" + entry_of(line)).digest()
            block.append(line)
            leaves.append(leaf[:_PREFIX])
            octets += len(line)
            low.append(leaf)
            self.size += 1
            if low.size == SUBTREE:
                whole = low.root()
                self.connection.execute(_INSERTS["subtree"], (self.size // SUBTREE - 1, whole))
                self._high.append(whole)
                low = self._low = Frontier()
        if block:
            self.put_block(first, block, leaves)

    def put_block(self, first: int, block: list[bytes], leaves: list[bytes]) -> None:
        """A row of lines, within a `changing`; of each leaf hash, what is kept of it."""
        self.connection.execute(
            _INSERTS["block"], (first, len(block), time_of(block[0]), b"\n".join(block), b"".join(leaves))
        )

    def _insert(self, rows: Rows) -> None:
        connection = self.connection
        for table, found in (
            ("session", rows.sessions),
            ("mail", rows.mails),
            ("recipient", rows.recipients),
            ("mark", rows.marks),
        ):
            if found:
                connection.executemany(_INSERTS[table], found)
        if rows.ended:
            connection.executemany(_END_SESSION, rows.ended)

    def say(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Add a record of our own, within a `changing` or in one of its own, synced.

        Raises:
            StoreError: it was not added.
        """
        line = own_line(kind, fields)
        if self.connection.in_transaction:
            self._add([line])
            return
        with self.on_disk(), self.changing():
            self._add([line])

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[None]:
        """What is committed here is synced, and with it all that was committed before."""
        self.connection.execute("PRAGMA synchronous = FULL")
        try:
            yield
        finally:
            self.connection.execute("PRAGMA synchronous = NORMAL")

    def keep(self, name: str, value: str) -> None:
        """A value of `meta`, within a `changing`."""
        self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def value(self, name: str) -> str:
        """A value of `meta`; "" if there is none."""
        found = self.connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(found[0]) if found is not None else ""

    def settle(self) -> None:
        """Have on the disk what was committed.

        Raises:
            StoreError: it can't be.
        """
        with self.on_disk(), self.changing():
            self.keep("settled", str(self.size))

    def close(self) -> None:
        """Let go of it."""
        self.connection.close()


def own_line(kind: str, fields: Mapping[str, Any]) -> bytes:
    """A record that is no session's, with the time of now."""
    now = {"v": 1, "at": datetime.now(UTC), "up": round(time.monotonic(), 6), "session": "", "kind": kind}
    return msgspec.json.encode({**now, **fields})


def rfc3339(at: float) -> str:
    """A time as records have it."""
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


class _At(msgspec.Struct):
    at: Time | None = None


_at = msgspec.json.Decoder(_At).decode


def time_of(line: bytes) -> float:
    """When a line was recorded, in seconds since 1970; 0.0 if it does not say so."""
    try:
        found = _at(line).at
    except NO_RECORD:
        return 0.0
    return found.timestamp() if found is not None else 0.0
