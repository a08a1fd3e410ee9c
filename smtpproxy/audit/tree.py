"""The Merkle tree of RFC 9162 §2.1 over leaf hashes: its root, growing it, proofs, and checking them. No I/O.

A tree of seven leaves; its frontier is the perfect trees it consists of, from left to right: h, i and g.

            root
           /    \\
          h      \\
        /   \\     \\        append(leaf) joins from the right as many perfect trees of equal height as there are:
       .     .     i  g     as many as the number of leaves has one-bits at its end, so on average one.
      / \\   / \\   / \\  \\
      0  1  2  3  4  5   6

The checks follow the RFC's algorithms step by step, so that they can be read beside it. They are for what strangers
say: whatever the numbers and hashes are, they answer True or False and never raise or go on for ever.

What must never happen: a leaf taken for a node. Leaves come in hashed with 0x00 before them (entries.leaf_of), nodes
are hashed with 0x01 before them, here.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final

OCTETS: Final = 32  # of a hash
EMPTY_ROOT: Final = sha256().digest()  # RFC 9162 §2.1.1: the hash of nothing

RangeHash = Callable[[int, int], bytes]  # (a, b): the root of the tree of the leaves a to b - 1, by itself


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node above these two."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """A tree that grows: all of it that later roots depend on, at most 64 hashes.

    Attributes:
        size: leaves so far.

    Args:
        size: leaves of the tree to go on with.
        hashes: roots of the perfect trees it consists of, from left to right.

    Raises:
        ValueError: these are not as many hashes as a tree of this size has.
    """

    __slots__ = ("_hashes", "size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if size < 0 or len(hashes) != size.bit_count() or any(len(each) != OCTETS for each in hashes):
            raise ValueError(f"a tree of {size} leaves is not made of {len(hashes)} such hashes")
        self.size = size
        self._hashes = list(hashes)

    def append(self, leaf_hash: bytes) -> None:
        """Add a leaf. Called for every record there is, so nothing is looked at twice."""
        hashes = self._hashes
        size = self.size
        self.size = size + 1
        while size & 1:
            leaf_hash = sha256(b"\x01" + hashes.pop() + leaf_hash).digest()
            size >>= 1
        hashes.append(leaf_hash)

    def root(self) -> bytes:
        """The root hash (RFC 9162 §2.1.1)."""
        if not self._hashes:
            return EMPTY_ROOT
        root = self._hashes[-1]
        for left in self._hashes[-2::-1]:
            root = node_hash(left, root)
        return root

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """The roots of the perfect trees, from left to right: one for each one-bit of `size`, the greatest first."""
        return tuple(self._hashes)

    def to_bytes(self) -> bytes:
        """The hashes one behind the other; `size` goes with them."""
        return b"".join(self._hashes)

    @classmethod
    def from_bytes(cls, size: int, octets: bytes) -> "Frontier":
        """What `to_bytes` made.

        Raises:
            ValueError: it is not of a tree of this size.
        """
        return cls(size, [octets[at : at + OCTETS] for at in range(0, len(octets), OCTETS)])


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root hash of a tree of these leaf hashes (RFC 9162 §2.1.1, MTH).

    Level by level: a hash without a neighbour goes up as it is. That is the RFC's tree, which splits at the largest
    power of two: only at the right edge there is less than a perfect tree.
    """
    if not leaves:
        return EMPTY_ROOT
    level = list(leaves)
    while len(level) > 1:
        above = [sha256(b"\x01" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        if len(level) & 1:
            above.append(level[-1])
        level = above
    return level[0]


def _split(size: int) -> int:
    """The largest power of two smaller than this size, which is two or more."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_proof(n: int, size: int, range_hash: RangeHash) -> list[bytes]:
    """The proof that a leaf is in the tree (RFC 9162 §2.1.3.1, PATH), beginning with the leaf's neighbour.

    Args:
        n: number of the leaf, from 0.
        size: of the tree.
        range_hash: asked for what the RFC's splits come to: `a` is a multiple of the least power of two that is not
            smaller than `b - a`, and `b - a` is a power of two but at the right edge, where `b` is `size`.

    Raises:
        ValueError: the tree has no such leaf.
    """
    if not 0 <= n < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {n}")
    proof = []
    first, stop = 0, size
    while stop - first > 1:
        middle = first + _split(stop - first)
        if n < middle:
            proof.append(range_hash(middle, stop))
            stop = middle
        else:
            proof.append(range_hash(first, middle))
            first = middle
    proof.reverse()
    return proof


def consistency_proof(m: int, n: int, range_hash: RangeHash) -> list[bytes]:
    """The proof that a tree of `m` leaves is the beginning of that of `n` (RFC 9162 §2.1.4.1, PROOF). Of an empty tree,
    and of one and the same, there is nothing to prove, and the proof is empty.

    Args:
        m: size of the earlier tree.
        n: of the later one.
        range_hash: as for `inclusion_proof`.

    Raises:
        ValueError: the earlier one is not smaller.
    """
    if not 0 <= m <= n:
        raise ValueError(f"a tree of {m} leaves is not the beginning of one of {n}")
    proof: list[bytes] = []
    if m in (0, n):
        return proof
    first, stop = 0, n
    while m < stop:
        middle = first + _split(stop - first)
        if m <= middle:
            proof.append(range_hash(middle, stop))
            stop = middle
        else:
            proof.append(range_hash(first, middle))
            first = middle
    if first:  # otherwise the earlier tree is one of the later one's nodes, and its root is known to who checks
        proof.append(range_hash(first, stop))
    proof.reverse()
    return proof


def check_inclusion(leaf: bytes, n: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether this proves that the tree with this root has this leaf hash at place `n` (RFC 9162 §2.1.3.2)."""
    if not 0 <= n < size or not _are_hashes((leaf, root, *proof)):
        return False
    fn, sn = n, size - 1
    r = leaf
    for p in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root


def check_consistency(m: int, n: int, proof: Sequence[bytes], root_m: bytes, root_n: bytes) -> bool:
    """Whether this proves that the tree of `m` leaves with the one root is the beginning of that of `n` leaves with the
    other (RFC 9162 §2.1.4.2). An empty tree, which the RFC leaves out, is the beginning of every tree."""
    if not 0 <= m <= n or not _are_hashes((root_m, root_n, *proof)):
        return False
    if m == n:
        return not proof and root_m == root_n and (n > 0 or root_n == EMPTY_ROOT)
    if m == 0:
        return not proof and root_m == EMPTY_ROOT
    if not proof:
        return False
    path = list(proof)
    if m & (m - 1) == 0:
        path.insert(0, root_m)
    fn, sn = m - 1, n - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    return fr == root_m and sr == root_n and sn == 0


def _are_hashes(values: Sequence[bytes]) -> bool:
    return all(len(value) == OCTETS for value in values)
