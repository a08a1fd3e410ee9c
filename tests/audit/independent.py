"""A second verifier, to hold the first one against. It imports nothing of the package, and is written from the texts
alone: RFC 9162 §2.1.1 (trees), §2.1.3.1 and §2.1.4.1 (what proofs consist of), RFC 4648 §4 and §5, signed-note,
tlog-checkpoint and tlog-proof of c2sp.org, and docs/audit-format.md for how a line becomes an entry.

Where the package follows the RFC's loops for verifiers, this goes down the recursive definitions of the proofs and puts
the roots together on the way back, so that a mistake in one is not a mistake in the other. It is slow and short.

There is a package of others for the same (aics-tlog); it could not be installed where these tests were made.
"""

import base64
import hashlib
import re
from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

Tree = tuple[str, int, bytes]  # origin, size, root


def leaf(line: bytes) -> bytes:
    """The leaf hash of a line as it was kept, whole or erased."""
    parts = re.fullmatch(rb'(\{.*?),("salt":".*)\}', line, re.DOTALL)
    if parts:
        public, personal = parts.groups()
        hidden = base64.b64encode(hashlib.sha256(personal).digest()).translate(bytes.maketrans(b"+/", b"-_"))
        line = public + b',"personal":"' + hidden.rstrip(b"=") + b'"}'
    return hashlib.sha256(bytes([0]) + line).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """MTH of §2.1.1, as it is written there."""
    match len(leaves):
        case 0:
            return hashlib.sha256(b"").digest()
        case 1:
            return leaves[0]
        case n:
            k = _k(n)
            return _above(root(leaves[:k]), root(leaves[k:]))


def included(hashed: bytes, m: int, n: int, path: Sequence[bytes], top: bytes) -> bool:
    """Whether `path` is PATH(m, D_n) of a tree that has this leaf at m and this root."""
    rest = list(path)

    def climb(m: int, n: int) -> bytes:
        if n == 1:
            return hashed
        other, k = rest.pop(), _k(n)  # the definition puts the topmost at the end
        return _above(climb(m, k), other) if m < k else _above(other, climb(m - k, n - k))

    try:
        return 0 <= m < n and climb(m, n) == top and not rest
    except IndexError:
        return False


def consistent(m: int, n: int, path: Sequence[bytes], old: bytes, new: bytes) -> bool:
    """Whether `path` is PROOF(m, D_n) of trees with these roots. A tree is consistent with itself, and with the empty
    one, by a path of nothing."""
    rest = list(path)

    def climb(m: int, n: int, known: bool) -> tuple[bytes, bytes]:
        if m == n:
            both = old if known else rest.pop()
            return both, both
        other, k = rest.pop(), _k(n)
        if m <= k:
            before, after = climb(m, k, known)
            return before, _above(after, other)
        before, after = climb(m - k, n - k, False)
        return _above(other, before), _above(other, after)

    if m == 0:
        return n >= 0 and not rest and old == root([]) and (n > 0 or new == old)
    try:
        return 0 < m <= n and climb(m, n, True) == (old, new) and not rest
    except IndexError:
        return False


def signed(note: str, vkey: str) -> str | None:
    """The text of a note, if this key signed it."""
    name, digits, encoded = vkey.split("+", 2)
    typed = base64.b64decode(encoded)
    identity = hashlib.sha256(b"%b\n%b" % (name.encode(), typed)).digest()[:4]
    if identity.hex() != digits or typed[0] != 1:
        return None
    parts = re.fullmatch(r"(.*\n)\n((?:— [^ \n]+ [^ \n]+\n)+)", note, re.DOTALL)
    if not parts:
        return None
    text, lines = parts.groups()
    for signer, signature in re.findall(r"— (\S+) (\S+)\n", lines):
        octets = base64.b64decode(signature)
        if signer == name and octets[:4] == identity:
            try:
                ed25519.Ed25519PublicKey.from_public_bytes(typed[1:]).verify(octets[4:], text.encode())
            except InvalidSignature:
                return None
            return str(text)
    return None


def checkpoint(note: str, vkey: str) -> Tree | None:
    """What a checkpoint says, if the key signed it and is that of its log."""
    text = signed(note, vkey)
    parts = re.fullmatch(r"(.+)\n(0|[1-9][0-9]*)\n([A-Za-z0-9+/]{43}=)\n(?:.+\n)*", text or "")
    if not parts or parts[1] != vkey.split("+")[0]:
        return None
    return parts[1], int(parts[2]), base64.b64decode(parts[3])


def proved(line: bytes, proof: str, vkey: str) -> Tree | None:
    """The tree of a proof file, if it proves that this line is in it."""
    parts = re.fullmatch(r"c2sp\.org/tlog-proof@v1\n(?:extra .*\n)?index (\d+)\n((?:.+\n)*)\n((?s:.*))", proof)
    if not parts:
        return None
    number, path, note = int(parts[1]), [base64.b64decode(each) for each in parts[2].split()], parts[3]
    found = checkpoint(note, vkey)
    return found if found and included(leaf(line), number, found[1], path, found[2]) else None


def _above(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"".join((bytes([1]), left, right))).digest()


def _k(n: int) -> int:
    """The largest power of two smaller than n."""
    k = 1
    while k * 2 < n:
        k *= 2
    return k
