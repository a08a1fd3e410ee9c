"""The proof that one record is in the tree, as a text to be kept or sent: c2sp.org/tlog-proof.

    c2sp.org/tlog-proof@v1
    extra c210cHByb3h5IGtleSBzdWNjZXNzaW9uIHYxCi…    where the key was replaced: how, base64
    index 73894                                       the record's number
    gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=      the inclusion proof, the leaf's neighbour first
    …
                                                      one empty line
    mail.example.org/audit                            the checkpoint, with its signatures
    …

What is proved, the record itself, goes beside it. For a tree of 10^9 records it has less than 2 KB.

A proof that was read proves nothing yet: keys.open_checkpoint, then tree.check_inclusion with the record's leaf hash.
"""

from base64 import b64encode
from collections.abc import Sequence
from typing import Final, NamedTuple

from smtpproxy.audit.keys import SUCCESSION
from smtpproxy.audit.notes import LARGEST, NoteError, decimal, decode64

HEADER: Final = "c2sp.org/tlog-proof@v1"
MOST_HASHES: Final = 63  # no tree is higher
_EXTRA, _INDEX = "extra ", "index "


class Proof(NamedTuple):
    """What a proof file says."""

    number: int  # of the record, from 0
    hashes: list[bytes]  # the inclusion proof, 32 octets each
    note: str  # the checkpoint, not verified
    successions: tuple[str, ...] = ()  # keys.succeed: from the first key to the one that signed it, not verified


def proof_text(number: int, hashes: Sequence[bytes], note: str, successions: Sequence[str] = ()) -> str:
    """The text of a proof.

    Args:
        number: of the record, from 0.
        hashes: the inclusion proof (tree.inclusion_proof).
        note: a signed checkpoint.
        successions: how its key came to sign, for who has an earlier one.
    """
    extra = [f"{_EXTRA}{b64encode(''.join(successions).encode()).decode()}"] if successions else []
    lines = [HEADER, *extra, f"{_INDEX}{number}", *(b64encode(each).decode() for each in hashes), "", note]
    return "\n".join(lines)


def parse_proof(text: str) -> Proof:
    """What a proof says. Extras that are none of ours are passed over.

    Raises:
        NoteError: it is no proof in this form.
    """
    if len(text) > 2 * LARGEST:
        raise NoteError("that is too long for a proof of one record")
    head, gap, note = text.partition("\n\n")
    lines = head.split("\n")
    if lines[0] != HEADER or not gap:
        raise NoteError(f"this is no proof: it begins with {HEADER}, and has a checkpoint behind an empty line")
    extra = lines[1].removeprefix(_EXTRA) if len(lines) > 1 and lines[1].startswith(_EXTRA) else None
    rest = lines[1:] if extra is None else lines[2:]
    number = decimal(rest[0].removeprefix(_INDEX)) if rest and rest[0].startswith(_INDEX) else None
    if number is None:
        raise NoteError("the proof does not say which record it is about: `index NUMBER`")
    if len(rest) - 1 > MOST_HASHES:
        raise NoteError(f"the proof has more than {MOST_HASHES} hashes")
    hashes = []
    for line in rest[1:]:
        octets = decode64(line)
        if octets is None or len(octets) != 32:
            raise NoteError(f"{line[:80]!r} is no hash: base64 of 32 octets")
        hashes.append(octets)
    return Proof(number, hashes, note, _successions(extra or ""))


def _successions(extra: str) -> tuple[str, ...]:
    """The notes in the line of extras, which stand one behind the other."""
    text = (decode64(extra) or b"").decode("utf-8", "replace")
    if not text.startswith(SUCCESSION):
        return ()
    return tuple(SUCCESSION + each for each in text.split(SUCCESSION)[1:])
