"""The record in PostgreSQL as well: a sink that follows the store of a gateway, so that a fleet has one place to ask.

It takes the lines of the store in order and does with them what the store did: blocks, tree, index. All that comes of
a batch is one transaction, together with how far the gateway has come (`gateway.next`). That number alone says where to
go on: whatever this side believed, and however the last connection ended, nothing is left out or taken twice.

Anything that goes wrong ends the connection, and all that was known with it. Who connects anew reads it from the
database: the tree, the day, the sessions that go on and their lines.

    what is there already     is passed over
    what is gone here         (the store was pruned while the database was away) is counted as skipped, with a new start
    what is other there       a store that was restored from an older copy, two gateways of one name: nothing is written

Erasing follows: an `audit-erase` among the lines erases the same records there (postgres_erasing.py). Pruning
does not: a database keeps what it keeps (postgres_pruning.py).

What must never happen: a record of another changed. A gateway's number is part of all it writes, and it is given once,
by the database.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg

from smtpproxy.audit.entries import leaf_of
from smtpproxy.audit.tree import Frontier
from smtpproxy.store import schema
from smtpproxy.store.errors import StoreError
from smtpproxy.store.indexing import Index, Line
from smtpproxy.store.postgres_erasing import erase, erased_by
from smtpproxy.store.postgres_link import PATIENCE, Connection, Where, connect, within, words
from smtpproxy.store.postgres_reading import NUMBER, blocks_of, lines_in
from smtpproxy.store.postgres_rows import AT, Row, copy, date_of, indexed
from smtpproxy.store.postgres_schema import DAY, check, prepare, version_of
from smtpproxy.store.reading import SQLiteReader
from smtpproxy.store.sinks import SinkDownError
from smtpproxy.store.store import LARGEST_BLOCK, SUBTREE, time_of

_RESTORED: Final = 16_384  # numbers of records that are looked through at once
_PREFIX: Final = 8  # octets of a leaf hash that a block keeps
_END_SESSION: Final = (
    "UPDATE session SET until = %s, last = %s, how = %s, hello = %s, client_tls = %s, server_tls = %s, identity = %s,"
    " mails = %s WHERE id = %s AND at = %s"
)
T = TypeVar("T")


class PostgresSink:
    """Follows a store into a database.

    Args:
        address: postgresql://…
        directory: of the store.

    Raises:
        StoreError: the address can't be read.
    """

    name: Final = "postgresql"

    def __init__(self, address: str, directory: Path) -> None:
        self._where = Where(address)
        self._directory = directory
        self._following: _Following | None = None

    def position(self) -> int:
        """The number of the record the database wants next.

        Raises:
            SinkDownError: it can't be asked.
        """
        return self._do(lambda following: following.next)

    def send(self, batch: Sequence[tuple[int, bytes]]) -> None:
        """Put lines there, by their numbers and in order. When this returns they are committed.

        Raises:
            SinkDownError: it is not known whether they are; `position` is, next time.
        """
        self._do(lambda following: following.take(batch))

    def rest(self) -> None:
        """What is to be done where there are no lines to send: checkpoints that were signed since.

        Raises:
            SinkDownError: it can't be done.
        """
        self._do(lambda following: following.take(()))

    def close(self) -> None:
        """Let go of the database; what comes next connects anew."""
        following, self._following = self._following, None
        if following is not None:
            following.close()

    def _do(self, act: Callable[["_Following"], T]) -> T:
        try:
            if self._following is None:
                self._following = _Following(self._where, self._directory)
            return act(self._following)
        except psycopg.Error as error:
            self.close()
            raise SinkDownError(f"the database ({self._where}): {words(error)}") from None
        except StoreError as error:
            self.close()
            raise SinkDownError(str(error)) from None


class _Following:
    """One connection, and what is known as long as it lasts.

    Attributes:
        next: the number of the record the database wants next.
    """

    def __init__(self, where: Where, directory: Path) -> None:
        self._local = SQLiteReader(directory)
        try:
            self._origin = self._local.meta("origin")
            if not self._origin:
                raise StoreError("the store has no name yet: nothing was recorded")
            self._link: Connection = connect(where, f"smtpproxy {self._origin}")
        except StoreError:
            self._local.close()
            raise
        self.next = 0
        self._index = Index()
        self._going: dict[int, float] = {}  # sessions that go on, and when they began
        self._days: set[int] = set()  # that have partitions; days are counted from 1970
        self._day = 0  # what the last record is filed under
        self._today = 0
        try:
            with within(self._link, PATIENCE):
                if version_of(self._link) < schema.VERSION:
                    prepare(self._link)
                check(self._link)
            self._introduce()
            self._restore()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._link.close()
        self._local.close()

    def _ask(self, query: str, parameters: Sequence[Any] = ()) -> Iterator[Row]:
        with within(self._link, PATIENCE):
            return iter(self._link.execute(query.encode(), parameters).fetchall())

    # ------------------------------------------------------------------------------------------------------ connecting

    def _introduce(self) -> None:
        """Be known to the database, and know how far it is."""
        self._look_at_clock()
        known = "SELECT id, vkey, next, frontier, day - date '1970-01-01' FROM gateway WHERE origin = %s"
        vkey = self._local.meta("vkey")
        found = list(self._ask(known, (self._origin,)))
        if not found:
            first = int(self._local.meta("first"))
            tree = b"".join(hash_ for part in self._tree_here(first) for hash_ in part.hashes)
            self._ask_nothing(
                "INSERT INTO gateway (origin, vkey, first, next, frontier) VALUES (%s, %s, %s, %s, %s)"
                " ON CONFLICT (origin) DO NOTHING",  # another process may have been faster
                (self._origin, vkey, first, first, tree),
            )
            found = list(self._ask(known, (self._origin,)))
        self._gateway, known_vkey, self.next, tree, day = found[0]
        self._base = self._gateway << schema.GATEWAY_SHIFT
        self._day = day or 0
        hashes = Frontier.from_bytes(self.next, tree).hashes
        whole = (self.next // SUBTREE).bit_count()
        self._high = Frontier(self.next // SUBTREE, hashes[:whole])
        self._low = Frontier(self.next % SUBTREE, hashes[whole:])
        self._compare()
        if vkey not in ("", known_vkey):
            self._ask_nothing("UPDATE gateway SET vkey = %s WHERE id = %s", (vkey, self._gateway))
        (self._subtrees,), (self._checkpoints,) = self._ask(
            "SELECT coalesce(max(n) + 1, 0) FROM subtree WHERE gateway = %s"
            " UNION ALL SELECT coalesce(max(size) + 1, 0) FROM checkpoint WHERE gateway = %s",
            (self._gateway, self._gateway),
        )

    def _ask_nothing(self, statement: str, parameters: Sequence[Any]) -> None:
        with within(self._link, PATIENCE):
            self._link.execute(statement.encode(), parameters)

    def _look_at_clock(self) -> None:
        """Which day it is for the database, by its own clock."""
        ((self._today,),) = self._ask("SELECT (now() AT TIME ZONE 'UTC')::date - date '1970-01-01'")

    def _tree_here(self, size: int) -> tuple[Frontier, Frontier]:
        """The store's tree as it was with so many records: of whole subtrees, and of the leaves behind them.

        Raises:
            StoreError: the records are gone that it is made of.
        """
        high = Frontier()
        for (hash_,) in self._local.rows("SELECT hash FROM subtree WHERE n < ? ORDER BY n", (size // SUBTREE,)):
            high.append(hash_)
        low = Frontier()
        for _, line in self._local.lines(high.size * SUBTREE, size):
            low.append(leaf_of(line))
        if high.size * SUBTREE + low.size != size:
            raise StoreError(
                f"the records before {size} are gone from the store, and with them its tree as it was then"
            )
        return high, low

    def _compare(self) -> None:
        """Whether the database has the same records, as far as it has any."""
        size = int(self._local.meta("size"))
        if self.next > size:
            raise StoreError(
                f"the database has {self.next} records of {self._origin}, and this store {size}: it is an older copy,"
                " or another gateway has the same name"
            )
        if int(self._local.meta("first")) > self.next // SUBTREE * SUBTREE:
            return  # pruned: nothing is left to compare
        if tuple(part.hashes for part in self._tree_here(self.next)) != (self._high.hashes, self._low.hashes):
            raise StoreError(
                f"the database has other records of {self._origin} than this store: it goes on from an older copy, or"
                " another gateway has the same name"
            )

    def _restore(self) -> None:
        """Know again the sessions that go on."""
        found = list(
            self._ask(
                "SELECT id, name, at FROM session WHERE until IS NULL AND id >= %s AND id <= %s ORDER BY id",
                (self._base, self._base | NUMBER),
            )
        )
        self._going = {number: at for number, _, at in found}
        self._index = Index()
        if found:
            names = [(number & NUMBER, name) for number, name, _ in found]
            self._index.restore(names, self._lines(names[0][0]))

    def _lines(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Those the database has, from this one on."""
        for low in range(start, self.next, _RESTORED):
            high = min(low + _RESTORED, self.next)
            yield from lines_in(blocks_of(self._ask, self._gateway, low, high), low, high)

    # ---------------------------------------------------------------------------------------------------------- taking

    def take(self, batch: Sequence[tuple[int, bytes]]) -> None:
        """Put there what is not, and what was signed of it."""
        fresh = [(number, line) for number, line in batch if number >= self.next]
        if fresh and fresh[0][0] > self.next:  # it goes on with a whole subtree, so that it can be proved
            start = max(fresh[0][0] // SUBTREE * SUBTREE, self.next)
            fresh = [*self._local.lines(start, fresh[0][0]), *fresh]
        for _, run in itertools.groupby(enumerate(fresh), lambda each: each[1][0] - each[0]):
            numbered = [each for _, each in run]
            self._put(numbered[0][0], [line for _, line in numbered])
        if not fresh:
            with within(self._link, PATIENCE), self._link.transaction():
                self._put_checkpoints(self.next)

    def _put(self, first: int, lines: list[bytes]) -> None:
        """Put lines there, the first of which has this number."""
        stop, skipped = first + len(lines), first - self.next
        if skipped:
            self._high, self._low = self._tree_here(first)
            self._index, self._going = Index(), {}
        read = [Index.read(line) for line in lines]
        days = self._filed(read)
        subtrees = self._older_subtrees()
        blocks = self._blocks(first, lines, days, subtrees)
        tables, ended = self._indexed(first, read)
        moments = ((table, AT[table]) for table in tables)
        self._have_partitions({*days, *(int(row[at] // DAY) for table, at in moments for row in tables[table])})
        with within(self._link, PATIENCE), self._link.transaction():
            self._come_to(stop, first, skipped)
            if skipped:
                self._lose_sessions(first, time_of(lines[0]))
            copy(self._link, "block", blocks)
            copy(self._link, "subtree", subtrees)
            for table, rows in tables.items():
                copy(self._link, table, rows)
            if ended:
                self._link.cursor().executemany(_END_SESSION, ended)
            self._put_filing(first, days)
            erased = [run for line in lines for run in erased_by(line)]
            erase(self._link, self._ask, self._gateway, erased)
            self._put_checkpoints(stop)
        self.next, self._day = stop, days[-1]
        if erased:
            self._restore()  # what is known of sessions that go on may be what was erased

    def _come_to(self, stop: int, first: int, skipped: int) -> None:
        """Say how far it is. Nobody else writes as this gateway until the transaction is over."""
        state = (stop, b"".join((*self._high.hashes, *self._low.hashes)), skipped, skipped, first)
        changed = self._link.execute(
            "UPDATE gateway SET next = %s, frontier = %s, skipped = skipped + %s, seen = now(), first ="
            " CASE WHEN %s = 0 THEN first ELSE %s END WHERE id = %s AND next = %s AND day IS NOT DISTINCT FROM %s",
            (*state, self._gateway, first - skipped, date_of(self._day) if self._day else None),
        )
        if changed.rowcount != 1:
            raise StoreError(f"somebody else wrote as {self._origin} into the database, or pruned it")

    def _lose_sessions(self, last: int, at: float) -> None:
        """Those that went on when records were skipped: how they ended is not known here."""
        self._link.execute(
            "UPDATE session SET until = %s, last = %s, how = 'lost' WHERE until IS NULL AND id >= %s AND id <= %s",
            (at, self._base | last, self._base, self._base | NUMBER),
        )

    def _put_checkpoints(self, size: int) -> None:
        """Those the store has by now, of records that the database has."""
        query = "SELECT size, at, root, note, bridge FROM checkpoint WHERE size >= ? AND size <= ? ORDER BY size"
        rows = [(*row, self._gateway) for row in self._local.rows(query, (self._checkpoints, size))]
        copy(self._link, "checkpoint", rows)
        if rows:
            self._checkpoints = rows[-1][0] + 1

    # ----------------------------------------------------------------------------------------------- lines and the tree

    def _filed(self, read: Sequence[Line | None]) -> list[int]:
        """The day each line is filed under: its own, but never one before that of the lines before it, and, because a
        clock that is wrong for a moment would be right for ever, none that for the database is still to come."""
        days, day = [], self._day
        looked = False
        for line in read:
            if line is not None and line.at is not None:
                stated = int(line.at.timestamp() // DAY)
                if stated > day:
                    if stated > self._today and not looked:
                        self._look_at_clock()
                        looked = True
                    day = max(day, min(stated, self._today + 1))
            days.append(day or self._today)
        return days

    def _older_subtrees(self) -> list[Row]:
        """Those of records that were pruned before the database could have them."""
        query = "SELECT n, hash FROM subtree WHERE n >= ? AND n < ? ORDER BY n"
        return [(*row, self._gateway) for row in self._local.rows(query, (self._subtrees, self._high.size))]

    def _blocks(self, first: int, lines: list[bytes], days: list[int], subtrees: list[Row]) -> list[Row]:
        """Blocks of lines filed under one day, and the subtrees that they end."""
        blocks: list[Row] = []
        block: list[bytes] = []
        leaves: list[bytes] = []
        begun, octets = first, 0

        def end(day: int) -> None:
            at, text = time_of(block[0]), b"\n".join(block)
            blocks.append((self._base | begun, len(block), at, text, b"".join(leaves), date_of(day)))

        for number, (line, day) in enumerate(zip(lines, days, strict=True), first):
            if block and (octets + len(line) > LARGEST_BLOCK or day != days[number - first - 1]):
                end(days[number - first - 1])
                begun, octets = number, 0
                block, leaves = [], []
            leaf = leaf_of(line)
            block.append(line)
            leaves.append(leaf[:_PREFIX])
            octets += len(line)
            self._low.append(leaf)
            if self._low.size == SUBTREE:
                whole = self._low.root()
                subtrees.append((self._high.size, whole, self._gateway))
                self._high.append(whole)
                self._low = Frontier()
        end(days[-1])
        self._subtrees = self._high.size
        return blocks

    def _put_filing(self, first: int, days: list[int]) -> None:
        """From which line on they are filed under a new day."""
        before = self._day
        for number, day in enumerate(days, first):
            if day != before:
                self._link.execute(
                    "INSERT INTO filing (gateway, day, first) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                    (self._gateway, date_of(day), number),
                )
                self._link.execute("UPDATE gateway SET day = %s WHERE id = %s", (date_of(day), self._gateway))
            before = day

    def _have_partitions(self, days: set[int]) -> None:
        """Make those there are none of yet, and tomorrow's. One at a time: each takes some forty locks."""
        wanted = {*days, self._today, self._today + 1} - self._days
        for day in sorted(wanted):
            self._ask_nothing("SELECT smtpproxy_days(%s)", ([date_of(day)],))
        self._days |= wanted

    # -------------------------------------------------------------------------------------------------------- the index

    def _indexed(self, first: int, read: Sequence[Line | None]) -> tuple[dict[str, list[Row]], list[Row]]:
        """The rows of lines, by table, and what is changed in those of sessions that are there already."""
        take = self._index.take
        for number, line in enumerate(read, first):
            if line is not None:
                take(number, line)
        return indexed(self._index.give(), self._base, self._going)
