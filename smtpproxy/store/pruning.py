"""Taking away the oldest records, so that what remains is proved as before.

Whole subtrees go (256 records); their hashes stay, a hundred octets for each. So the tree is what it was, and every
later root can still be made. A checkpoint in the middle of a subtree that goes gets a *bridge*: the hashes of its part
of the subtree, and those that lead from there to the subtree's own (RFC 9162 §2.1.4): it still proves that what came
after it goes on from what was before.

What is to go is decided in one transaction, with a record of it; the rows go in small ones afterwards, so that the
recorder waits for none of them long. Whoever is interrupted leaves rows that nobody reads, and the next one takes them.
"""

from functools import partial
from typing import Final, NamedTuple

from smtpproxy.audit.entries import leaf_of
from smtpproxy.audit.tree import Frontier, consistency_proof, root_of
from smtpproxy.store.store import SUBTREE, Store, rfc3339

STEP: Final = 64  # blocks that go at once
PAGES: Final = 2000  # of the database that are given back at once
_INDEX: Final = (
    "DELETE FROM recipient WHERE mail < ?",
    "DELETE FROM mark WHERE mail < ? AND session < ? AND session NOT IN (SELECT id FROM session WHERE until IS NULL)",
    "DELETE FROM mail WHERE id < ?",
    "DELETE FROM session WHERE last < ?",
)


class Pruned(NamedTuple):
    """What went, or would: the number of the first record that is kept, and how many go."""

    first: int
    records: int


def owed(store: Store) -> int | None:
    """The number of the first record that a sink has not had which is to have them all; None: there is no such sink."""
    names = set(store.value("owed").split("\n"))
    rows = store.connection.execute("SELECT name, next FROM sink").fetchall()
    return min((int(number) for name, number in rows if name in names), default=None)


def prune(store: Store, before: float, *, floor: int | None = None, dry_run: bool = False) -> Pruned:
    """Take away what was recorded before a time, in whole subtrees.

    Args:
        store: of this gateway.
        before: seconds since 1970.
        floor: the number of the first record that somebody has not had yet; it stays, and all behind it.
        dry_run: only say what would go.

    Raises:
        StoreError: the store can't be changed.
    """
    connection = store.connection
    found = connection.execute("SELECT min(first) FROM block WHERE at >= ?", (before,)).fetchone()[0]
    until = store.size if found is None else int(found)
    if floor is not None:
        until = min(until, floor)
    first = until // SUBTREE * SUBTREE
    pruned = Pruned(max(first, store.first), max(first - store.first, 0))
    if dry_run:
        return pruned
    if not pruned.records:
        _remove(store, store.first)  # what somebody left who was interrupted
        return pruned
    with store.on_disk(), store.changing():
        _bridge(store, first)
        _split(store, first)
        store.say("audit-prune", {"first": first, "before": rfc3339(before), "records": first - store.first})
        store.first = first
    _remove(store, first)
    return pruned


def _bridge(store: Store, first: int) -> None:
    """For each checkpoint in the middle of what goes."""
    connection = store.connection
    rows = connection.execute(
        "SELECT size FROM checkpoint WHERE size > ? AND size < ? AND size % ? <> 0 AND bridge IS NULL",
        (store.first, first, SUBTREE),
    ).fetchall()
    leaves: list[bytes] = []
    read = -1
    for (size,) in rows:
        n, within = divmod(int(size), SUBTREE)
        if n != read:
            leaves = [leaf_of(line) for _, line in store.lines(n * SUBTREE, (n + 1) * SUBTREE)]
            read = n
        if len(leaves) != SUBTREE:
            continue
        part = Frontier()
        for leaf in leaves[:within]:
            part.append(leaf)
        proof = consistency_proof(within, SUBTREE, partial(_root, leaves))
        connection.execute("UPDATE checkpoint SET bridge = ? WHERE size = ?", (b"".join((*part.hashes, *proof)), size))


def _root(leaves: list[bytes], a: int, b: int) -> bytes:
    return root_of(leaves[a:b])


def _split(store: Store, first: int) -> None:
    """The block that has the first record that is kept begins with it."""
    query = "SELECT first, lines, leaves FROM block WHERE first < ? ORDER BY first DESC LIMIT 1"
    for begin, lines, leaves in store.connection.execute(query, (first,)).fetchall():
        kept = lines.split(b"\n")[first - begin :]
        if kept:
            store.connection.execute("DELETE FROM block WHERE first = ?", (begin,))  # never a record in two places
            store.put_block(first, kept, [leaves[at : at + 8] for at in range(8 * (first - begin), len(leaves), 8)])


def _remove(store: Store, first: int) -> None:
    """All rows about what is gone."""
    connection = store.connection
    if not connection.execute(
        "SELECT 1 FROM block WHERE first < ? UNION ALL SELECT 1 FROM session WHERE last < ? LIMIT 1", (first, first)
    ).fetchone():
        return
    while True:
        with store.changing():
            gone = connection.execute(
                "DELETE FROM block WHERE first IN (SELECT first FROM block WHERE first < ? ORDER BY first LIMIT ?)",
                (store.first, STEP),
            ).rowcount
        if gone < STEP:
            break
    for statement in _INDEX:
        with store.changing():
            connection.execute(statement, (first,) * statement.count("?"))
    while connection.execute("PRAGMA freelist_count").fetchone()[0]:
        before = connection.execute("PRAGMA freelist_count").fetchone()[0]
        connection.execute(f"PRAGMA incremental_vacuum({PAGES})").fetchall()
        if connection.execute("PRAGMA freelist_count").fetchone()[0] >= before:
            break
