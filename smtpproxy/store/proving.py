"""Proofs out of a store: that a record is in the tree of a checkpoint, that one tree is the beginning of another."""

from collections.abc import Callable
from typing import Final

import msgspec

from smtpproxy.audit.entries import leaf_of
from smtpproxy.audit.notes import NoteError, parse_checkpoint, unverified_text
from smtpproxy.audit.proofs import proof_text
from smtpproxy.audit.tree import Frontier, inclusion_proof
from smtpproxy.store.errors import StoreError
from smtpproxy.store.reading import Reader
from smtpproxy.store.store import SUBTREE

SUCCESSIONS: Final = "successions"  # in `meta`


def range_hash(reader: Reader) -> Callable[[int, int], bytes]:
    """What proofs are made of: the root of the tree of the records a to b - 1, by itself. More than 256 of them begin
    at a multiple of 256.

    Raises:
        StoreError: what it takes was pruned.
    """

    def root(a: int, b: int) -> bytes:
        whole = range(a // SUBTREE, b // SUBTREE) if a % SUBTREE == 0 else range(0)
        high = Frontier()
        if whole:
            query = "SELECT hash FROM subtree WHERE n >= ? AND n < ? ORDER BY n"
            for (digest,) in reader.rows(query, (whole.start, whole.stop)):
                high.append(bytes(digest))
        if high.size != len(whole):
            raise StoreError(f"hashes of the records {a} to {b - 1} are missing")
        start = whole.stop * SUBTREE if whole else a
        low = Frontier()
        for _, line in reader.lines(start, b):
            low.append(leaf_of(line))
        if low.size != b - start:
            raise StoreError(f"among the records {start} to {b - 1} some are not there any more")
        return Frontier(b - a, high.hashes + low.hashes).root()

    return root


def prove(reader: Reader, number: int) -> str:
    """A proof file (proofs.py) for one record, by the newest checkpoint that has it.

    Raises:
        StoreError: there is no such record, no checkpoint is about it yet, or nobody signs them.
    """
    if not any(True for _ in reader.lines(number, number + 1)):
        raise StoreError(f"there is no record {number}")
    note = newest(reader)
    try:
        size = parse_checkpoint(unverified_text(note)).size if note else 0
    except NoteError as error:
        raise StoreError(f"the newest checkpoint proves nothing, a proof needs a key that signs: {error}") from error
    if size <= number:
        raise StoreError(f"no checkpoint is about record {number} yet; the newest is of {size} records")
    return proof_text(number, inclusion_proof(number, size, range_hash(reader)), note, successions(reader.meta))


def successions(meta: Callable[[str], str]) -> list[str]:
    """How the key of a store came to sign, from the first one on; none if it was never replaced, or nobody kept it."""
    kept = meta(SUCCESSIONS)
    return msgspec.json.decode(kept, type=list[str]) if kept else []


def newest(reader: Reader) -> str:
    """The newest checkpoint; "" if there is none."""
    for (note,) in reader.rows("SELECT note FROM checkpoint ORDER BY size DESC LIMIT 1"):
        return str(note)
    return ""
