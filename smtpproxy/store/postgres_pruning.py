"""What is old goes from PostgreSQL by whole days: their partitions are dropped, which takes no longer for a million
rows than for one.

What stays: the hashes of subtrees and the checkpoints, so that what is kept is proved as before. The tree is cut
between subtrees, so up to 255 lines before the first kept one stay with it, filed under its day; a checkpoint within
what goes gets a bridge (pruning.py). A session stays until its last record goes.

Who does this owns the tables. It is one day after the other, the oldest first, each in a transaction. What the database
keeps has nothing to do with what the gateways keep, and no record of theirs says so: `gateway.first` does.
"""

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from smtpproxy.audit.entries import leaf_of
from smtpproxy.audit.tree import Frontier, consistency_proof, root_of
from smtpproxy.store import schema
from smtpproxy.store.errors import StoreError
from smtpproxy.store.postgres_link import Connection, Where, connect, words
from smtpproxy.store.postgres_reading import blocks_of, lines_in
from smtpproxy.store.postgres_rows import copy, date_of
from smtpproxy.store.postgres_schema import BY_DAY, DAY, check
from smtpproxy.store.store import SUBTREE, time_of

_PREFIX: Final = 8  # octets of a leaf hash that a block keeps
_LONGEST_SESSION: Final = 7  # days: what was never said to have ended is over by then


class Pruned(NamedTuple):
    """A gateway, and the number of its first record that is kept: before and now."""

    origin: str
    before: int
    now: int


def prune_postgres(address: str, until: float) -> list[Pruned]:
    """Take away the days that were over before a moment.

    Args:
        address: of the database, for who owns the tables. All its gateways are meant.
        until: seconds since 1970.

    Raises:
        StoreError: it could not be done; the days before the one it failed at are gone.
    """
    where = Where(address)
    link = connect(where, "smtpproxy audit prune")
    try:
        check(link)
        before = _firsts(link)
        for day in _days(link):
            if (day + 1) * DAY <= until:
                with link.transaction():
                    _drop(link, day)
        return [Pruned(origin, before.get(origin, 0), now) for origin, now in _firsts(link).items()]
    except psycopg.Error as error:
        raise StoreError(f"the database ({where}) can't be pruned: {words(error)}") from None
    finally:
        link.close()


def _firsts(link: Connection) -> dict[str, int]:
    return dict(link.execute("SELECT origin, first FROM gateway ORDER BY origin").fetchall())


def _days(link: Connection) -> list[int]:
    """Those that have partitions."""
    query = (
        "SELECT DISTINCT to_date(right(child.relname, 8), 'YYYYMMDD') - date '1970-01-01' FROM pg_inherits"
        " JOIN pg_class child ON child.oid = inhrelid WHERE inhparent = ANY(%s::regclass[]) ORDER BY 1"
    )
    return [day for (day,) in link.execute(query, (list(BY_DAY),)).fetchall()]


def _drop(link: Connection, day: int) -> None:
    """Take away a day; all days before it are gone."""
    gateways = link.execute("SELECT id, first, next FROM gateway ORDER BY id FOR UPDATE").fetchall()
    for gateway, first, size in gateways:
        _cut(link, gateway, day, first, size)
    stale = (day - _LONGEST_SESSION) * DAY
    link.execute("DELETE FROM session WHERE until IS NULL AND at < %s", (stale,))
    name = f"{date_of(day):%Y%m%d}"
    for table in BY_DAY:
        partition = sql.Identifier(f"{table}_{name}")
        there = link.execute("SELECT to_regclass(%s)", (f"{table}_{name}",)).fetchone()
        if there == (None,):
            continue
        if table == "session":
            left = link.execute(sql.SQL("SELECT 1 FROM {} LIMIT 1").format(partition)).fetchone()
            if left is not None:  # sessions of which there are records of later days
                continue
        link.execute(sql.SQL("DROP TABLE {}").format(partition))


def _cut(link: Connection, gateway: int, day: int, first: int, size: int) -> None:
    """What a gateway's records of a day leave behind."""
    base = gateway << schema.GATEWAY_SHIFT
    following = link.execute(
        "SELECT day - date '1970-01-01', first FROM filing WHERE gateway = %s AND day > %s ORDER BY day LIMIT 1",
        (gateway, date_of(day)),
    ).fetchone()
    later, cut = following or (day + 1, size)
    keep = max(first, cut // SUBTREE * SUBTREE)
    _bridge(link, gateway, first, keep)
    if keep < cut:
        _refile(link, gateway, keep, cut, date_of(later))
    link.execute("DELETE FROM filing WHERE gateway = %s AND day <= %s", (gateway, date_of(day)))
    link.execute(
        "UPDATE gateway SET first = %s, day = greatest(day, %s) WHERE id = %s", (keep, date_of(later), gateway)
    )
    for table, number in (("mail", "id"), ("recipient", "mail")):  # of a clock that was ahead
        link.execute(
            f"DELETE FROM {table} WHERE {number} >= %s AND {number} < %s AND at >= %s".encode(),  # noqa: S608
            (base, base | keep, (day + 1) * DAY),
        )
    link.execute("DELETE FROM session WHERE id >= %s AND id < %s AND last < %s", (base, base | keep, base | keep))


def _refile(link: Connection, gateway: int, start: int, stop: int, day: date) -> None:
    """File lines under a later day, before those that are."""
    link.execute("SELECT smtpproxy_days(%s)", ([day],))
    lines, leaves = [], []
    for first, _, some, prefixes in blocks_of(_asking(link), gateway, start, stop):
        for number, line in enumerate(some, first):
            if start <= number < stop:
                lines.append(line)
                leaves.append(prefixes[(number - first) * _PREFIX :][:_PREFIX])
    if not lines:  # they were skipped
        return
    number = gateway << schema.GATEWAY_SHIFT | start
    copy(link, "block", [(number, len(lines), time_of(lines[0]), b"\n".join(lines), b"".join(leaves), day)])
    link.execute(
        "INSERT INTO filing (gateway, day, first) VALUES (%s, %s, %s)"
        " ON CONFLICT (gateway, day) DO UPDATE SET first = EXCLUDED.first",
        (gateway, day, start),
    )


def _bridge(link: Connection, gateway: int, first: int, keep: int) -> None:
    """Let checkpoints of what goes be followed by the hashes of subtrees alone (verifying.py reads them)."""
    found = link.execute(
        "SELECT size FROM checkpoint WHERE gateway = %s AND size > %s AND size < %s AND size %% %s <> 0"
        " AND bridge IS NULL ORDER BY size",
        (gateway, first, keep, SUBTREE),
    ).fetchall()
    known, leaves = -1, [b""]
    for (size,) in found:
        n, within = divmod(size, SUBTREE)
        if n != known:
            low, high = n * SUBTREE, (n + 1) * SUBTREE
            leaves = [leaf_of(line) for _, line in lines_in(blocks_of(_asking(link), gateway, low, high), low, high)]
            known = n
        if len(leaves) == SUBTREE:
            link.execute(
                "UPDATE checkpoint SET bridge = %s WHERE gateway = %s AND size = %s",
                (bridge(leaves, within), gateway, size),
            )


def bridge(leaves: Sequence[bytes], within: int) -> bytes:
    """The perfect subtrees of the first so many leaves, and what leads from them to all (RFC 9162 §2.1.4)."""
    low = Frontier()
    for leaf in leaves[:within]:
        low.append(leaf)
    proof = consistency_proof(within, len(leaves), lambda a, b: root_of(leaves[a:b]))
    return b"".join((*low.hashes, *proof))


def _asking(link: Connection) -> Any:
    def ask(query: str, parameters: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        return iter(link.execute(query.encode(), parameters).fetchall())

    return ask
