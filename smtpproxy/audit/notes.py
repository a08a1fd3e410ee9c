"""Signed notes and checkpoints, as c2sp.org/signed-note and c2sp.org/tlog-checkpoint have them. docs/audit-format.md
says what ours hold.

    mail.example.org/audit                            the text: every line of it ends in LF
    20852163
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
                                                      one empty line, the last of the note
    — mail.example.org/audit Az3grlgtzPICa5OS8npV…    signatures: key name, base64 of key id (4 octets) and signature

Keys are Ed25519 (signature type 0x01). Who may check has a *vkey*: `name+c74f20a3+ARpc2Qc…`, the name, the key id, and
base64 of 0x01 and the public key. Signatures of others, as witnesses add them, are of no concern; a wrong one of a key
that is known makes the note a bad one.

What must never happen: a text believed before its signature was checked. Only `open_note` gives one that was;
`unverified_text` says what it is.
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ED25519: Final = b"\x01"  # the signature type
LARGEST: Final = 131_072  # octets of a note: 16 signatures of any kind fit, which the specification asks for
MOST_SIGNATURES: Final = 64
LONGEST_NAME: Final = 255  # octets of one of our key names; others' may be as long as they like
_MARK: Final = "— "
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_MOST: Final = 1 << 63  # leaves that no tree has


class NoteError(Exception):
    """It is no such note, key or text, or nobody who counts signed it; the text says which."""


class Checkpoint(NamedTuple):
    """What a log says of its tree at one time."""

    origin: str  # which log
    size: int  # leaves
    root: bytes  # hash, 32 octets


class Verifier:
    """Who can tell whether a key signed.

    Attributes:
        name: of the key.
        key_id: 4 octets: the beginning of SHA-256(name || LF || 0x01 || public key).
        vkey: the same as text, to be handed out.

    Args:
        vkey: such a text.

    Raises:
        NoteError: it is none, or its key is of another type.
    """

    __slots__ = ("_public", "key_id", "name", "vkey")

    def __init__(self, vkey: str) -> None:
        parts = vkey.split("+", 2)  # base64 has + as well, names have not
        if len(parts) != 3 or not is_name(parts[0]):
            raise NoteError(f"{vkey[:100]!r} is no key: it reads NAME+8 hexadecimal digits+base64")
        name, digits, encoded = parts
        key = decode64(encoded)
        if key is None or key[:1] != ED25519 or len(key) != 33:
            raise NoteError(f"the key of {name} is not an Ed25519 one in base64, type 0x01 and 32 octets")
        key_id = sha256(name.encode() + b"\n" + key).digest()[:4]
        if digits != key_id.hex():
            raise NoteError(f"the key of {name} has the id {key_id.hex()}, not {digits[:16]!r}: a digit of it is wrong")
        self.name = name
        self.key_id = key_id
        self.vkey = vkey
        self._public = Ed25519PublicKey.from_public_bytes(key[1:])

    def __repr__(self) -> str:
        return f"<Verifier {self.vkey}>"

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether the key signed this (RFC 8032)."""
        try:
            self._public.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class Signer:
    """A key that signs notes.

    Attributes:
        name: of the key.
        key_id: 4 octets.
        vkey: what others check it with.

    Args:
        name: what it is to be called: without white space, control characters and +.
        key: the private key.

    Raises:
        NoteError: that is no name.
    """

    __slots__ = ("_key", "key_id", "name", "vkey")

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        if not is_name(name) or len(name.encode()) > LONGEST_NAME:
            raise NoteError(
                f"{name[:100]!r} is no name for a key: 1 to {LONGEST_NAME} octets without blanks, control characters "
                "and +, such as mail.example.org/audit"
            )
        public = ED25519 + key.public_key().public_bytes_raw()
        self._key = key
        self.name = name
        self.key_id = sha256(name.encode() + b"\n" + public).digest()[:4]
        self.vkey = f"{name}+{self.key_id.hex()}+{b64encode(public).decode()}"

    def __repr__(self) -> str:
        return f"<Signer {self.vkey}>"

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 octets."""
        return self._key.sign(message)


def sign(text: str, signer: Signer) -> str:
    """The note that consists of this text and one signature.

    Raises:
        NoteError: the text is not one that can be signed: it has to end in LF and to have no other control character.
    """
    message = _octets(text)
    if not text.endswith("\n"):
        raise NoteError("a text to be signed must end in a line end")
    signature = b64encode(signer.key_id + signer.sign(message)).decode()
    return f"{text}\n{_MARK}{signer.name} {signature}\n"


def unverified_text(note: str) -> str:
    """The text of a note, which anybody may have written: to find out what its key is, and nothing else.

    Raises:
        NoteError: it is not in the form of a note.
    """
    _octets(note)
    text, gap, signatures = note.rpartition("\n\n")
    if not gap or not signatures.endswith("\n"):
        raise NoteError("this is no signed note: a text, an empty line, and lines that begin with —")
    return text + "\n"


def open_note(note: str, verifiers: Sequence[Verifier]) -> str:
    """The text of a note that at least one of these keys signed, and none of them wrongly.

    Raises:
        NoteError: it is no note, none of them signed it, or a signature of one of them is wrong.
    """
    text = unverified_text(note)
    message = text.encode()
    lines = note[len(text) + 1 : -1].split("\n")
    if len(lines) > MOST_SIGNATURES:
        raise NoteError(f"the note has more than {MOST_SIGNATURES} signatures")
    signed = False
    for line in lines:
        name, _, encoded = line.removeprefix(_MARK).partition(" ")
        signature = decode64(encoded)
        if not line.startswith(_MARK) or not is_name(name) or signature is None or len(signature) < 5:
            raise NoteError(f"{line[:100]!r} is no line of a signature")
        for verifier in verifiers:
            if (verifier.name, verifier.key_id) != (name, signature[:4]):
                continue
            if not verifier.verify(message, signature[4:]):
                raise NoteError(f"the signature of {name} is wrong: the text was changed, or another key signed")
            signed = True
    if not signed:
        wanted = ", ".join(verifier.vkey for verifier in verifiers) or "there are none"
        raise NoteError(f"none of the keys that count signed the note: {wanted}")
    return text


def checkpoint_text(origin: str, size: int, root: bytes) -> str:
    """The text of a checkpoint, to be signed.

    Raises:
        NoteError: the values are none of a checkpoint.
    """
    if not is_name(origin) or not 0 <= size < _MOST or len(root) != 32:
        raise NoteError(f"there is no checkpoint of {origin[:100]!r} with {size} leaves and {len(root)} octets of root")
    return f"{origin}\n{size}\n{b64encode(root).decode()}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """What a checkpoint says; lines that extend it are passed over.

    Args:
        text: of a note, with its last line end.

    Raises:
        NoteError: it is no checkpoint.
    """
    lines = text.split("\n")
    if len(lines) < 4 or lines.pop() or not all(lines):
        raise NoteError("this is no checkpoint: origin, size and root, each on a line of its own")
    size = decimal(lines[1])
    if size is None:
        raise NoteError(f"the size of a checkpoint is a number without leading zeroes, not {lines[1][:40]!r}")
    root = decode64(lines[2])
    if root is None or len(root) != 32:
        raise NoteError(f"the root of a checkpoint is base64 of 32 octets, not {lines[2][:80]!r}")
    return Checkpoint(lines[0], size, root)


def is_name(name: str) -> bool:
    """Whether a key may be called this."""
    return bool(name) and "+" not in name and not any(each.isspace() or each < " " for each in name)


def decimal(text: str) -> int | None:
    """The number of 0 to 2^63 - 1 that this is in ASCII digits without leading zeroes; None if it is not."""
    number = int(text) if _DECIMAL.fullmatch(text) else _MOST
    return number if number < _MOST else None


def decode64(text: str) -> bytes | None:
    """What this is base64 of (RFC 4648 §4); None if it is not, or if it is not how an encoder writes it."""
    try:
        octets = b64decode(text)
    except ValueError:
        return None
    return octets if b64encode(octets).decode() == text else None


def _octets(text: str) -> bytes:
    """A note or its text as UTF-8.

    Raises:
        NoteError: it can't be, it is too long, or there are control characters in it.
    """
    try:
        octets = text.encode()
    except UnicodeEncodeError as error:
        raise NoteError("a note is UTF-8") from error
    if len(octets) > LARGEST:
        raise NoteError(f"a note has at most {LARGEST} octets, this one {len(octets)}")
    if any(each < " " and each != "\n" for each in text):
        raise NoteError("there are control characters in the note")
    return octets
