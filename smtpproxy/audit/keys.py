"""The keys that sign checkpoints: their files, and how one key hands over to the next.

A key file has the key's name and the private key (PKCS#8), which `openssl pkey` reads as well. Beside it stands what
may be given to anybody, FILE.vkey.

    name: mail.example.org/audit
    -----BEGIN PRIVATE KEY-----
    …

All keys of one log have its origin as their name. When a key is replaced, the old one signs a last note, the
*succession*: from this tree on, that key. Who trusts the first key follows the successions to the present one
(`follow`), and each key counts only for the sizes of its own term (`open_checkpoint`). Once the old key is destroyed,
nobody can sign anything for the time before, not even who takes the machine later.

What must never happen: a key file overwritten, or written where others can read it; a key in a text; a key that counts
after its term.
"""

import contextlib
import os
import stat
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from smtpproxy.audit.notes import (
    Checkpoint,
    NoteError,
    Signer,
    Verifier,
    decimal,
    decode64,
    open_note,
    parse_checkpoint,
    sign,
    unverified_text,
)

SUCCESSION: Final = "smtpproxy key succession v1"
VKEY: Final = ".vkey"  # what the name of a verifier file ends in
LARGEST: Final = 65_536  # octets of a file that is read
_NAME = b"name: "
_LABELS = ("size ", "root ", "key ")


class KeyFileError(Exception):
    """A key file can't be read, or made. Its text names the file, and what mends it."""


class Term(NamedTuple):
    """A key, and from where on it counts."""

    verifier: Verifier
    start: Checkpoint | None  # the tree when it took over; None: it was the first


def create(path: Path, name: str) -> str:
    """Make a key: the file, and beside it FILE.vkey. Nothing is overwritten.

    Args:
        path: of the key file.
        name: of the key, which is the origin of the log.

    Returns:
        The vkey.

    Raises:
        KeyFileError: they can't be written, or one is there already.
        NoteError: that is no name for a key.
    """
    key = Ed25519PrivateKey.generate()
    vkey = Signer(name, key).vkey
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = path.with_name(path.name + VKEY)
    try:
        for each in (path, public):
            if os.path.lexists(each):
                raise KeyFileError(f"{each} is there already and is not overwritten: choose another name")
        write_file(path, _NAME + name.encode() + b"\n" + pem, 0o600)
        try:
            write_file(public, vkey.encode() + b"\n", 0o644)
        except OSError:
            path.unlink()  # ours, of just now: half a key is none
            raise
        keep_names(path.parent)
    except FileExistsError as error:  # somebody else was quicker
        raise KeyFileError(f"{error.filename} is there already and is not overwritten") from error
    except OSError as error:
        raise KeyFileError(f"{error.filename or path} can't be written: {error.strerror}") from error
    return vkey


def load(path: Path) -> Signer:
    """The key of this file, ready to sign.

    Raises:
        KeyFileError: it can't be read, others can read it, or it is no key.
    """
    first, _, pem = read_file(path, secret=True).partition(b"\n")
    key: object = None
    with contextlib.suppress(Exception):  # said in our own words: nobody knows what a parser quotes
        key = load_pem_private_key(pem, None)
    if not first.startswith(_NAME) or not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} is no key of the audit: a line `name: …`, and an Ed25519 key in PEM, not encrypted")
    try:
        return Signer(first.removeprefix(_NAME).decode().rstrip("\r"), key)
    except (NoteError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: what stands behind `name:` is no name for a key") from error


def load_verifiers(path: Path) -> list[Verifier]:
    """The keys of a verifier file: one vkey a line; empty lines and those that begin with # are passed over.

    Raises:
        KeyFileError: it can't be read, or has no key, or something else.
    """
    try:
        lines = read_file(path).decode().splitlines()
        found = [Verifier(line.strip()) for line in lines if line.strip() and not line.startswith("#")]
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path} is no verifier file: it is not text") from error
    except NoteError as error:
        raise KeyFileError(f"{path} is no verifier file: {error}") from error
    if not found:
        raise KeyFileError(f"{path} has no key in it")
    return found


def succeed(old: Signer, new_vkey: str, at: Checkpoint) -> str:
    """The succession, a note that the old key signs. It is to be kept where verifiers find it.

    Args:
        old: the key that was good so far.
        new_vkey: the one that goes on, of the same name.
        at: the tree as it is now. Later checkpoints are the new key's.

    Raises:
        NoteError: it is the same key, or one of another log.
    """
    new = Verifier(new_vkey)
    if not old.name == new.name == at.origin:
        raise NoteError(f"the keys of a log have its name: {at.origin}, {old.name} and {new.name} are not one")
    if new_vkey == old.vkey:
        raise NoteError(f"{new_vkey} can't go on from itself: make a new key")
    values = (str(at.size), b64encode(at.root).decode(), new_vkey)
    lines = (SUCCESSION, *(label + value for label, value in zip(_LABELS, values, strict=True)))
    return sign("".join(f"{line}\n" for line in lines), old)


def follow(trusted: str, successions: Sequence[str]) -> list[Term]:
    """The keys of a log from the one that is trusted to the present one.

    Args:
        trusted: the vkey that was handed out.
        successions: the notes, in their order; none if the key was never replaced.

    Raises:
        NoteError: one of them is not signed by the key before it, or does not go on from there.
    """
    terms = [Term(Verifier(trusted), None)]
    for number, note in enumerate(successions, 1):
        before = terms[-1]
        try:
            term = _succession(open_note(note, [before.verifier]), before.verifier.name)
        except NoteError as error:
            raise NoteError(f"succession {number}: {error}") from error
        start, earlier = term.start, before.start
        if any(term.verifier.vkey == each.verifier.vkey for each in terms):
            raise NoteError(f"succession {number}: a key comes back that had its term, {term.verifier.vkey}")
        if earlier and start and (start.size < earlier.size or (start.size == earlier.size and start != earlier)):
            raise NoteError(f"succession {number}: its tree does not go on from that of the one before")
        terms.append(term)
    return terms


def follow_from(trusted: str, successions: Sequence[str]) -> list[Term]:
    """As `follow`, from a key that may have had its term in between: what was before it does not count.

    Raises:
        NoteError: what this key handed over does not go on from there.
    """
    verifier = Verifier(trusted)
    for number, note in enumerate(successions):
        try:
            open_note(note, [verifier])
        except NoteError:
            continue
        return follow(trusted, successions[number:])
    return [Term(verifier, None)]


def open_checkpoint(note: str, terms: Sequence[Term]) -> Checkpoint:
    """What a checkpoint says, if the key signed it whose term it falls into.

    Where a key took over, the tree that was handed over is a checkpoint of this log as well, and proofs of consistency
    start from it (`Term.start`).

    Raises:
        NoteError: it is no checkpoint, of another log, or not signed by that key.
    """
    claimed = parse_checkpoint(unverified_text(note))  # its size says whose signature it needs
    if claimed.origin != terms[0].verifier.name:
        raise NoteError(f"the checkpoint is of the log {claimed.origin[:100]!r}, not of {terms[0].verifier.name}")
    due = []
    for number, term in enumerate(terms):
        until = terms[number + 1].start if number + 1 < len(terms) else None
        if (term.start and claimed.size < term.start.size) or (until and claimed.size > until.size):
            continue
        for handed in (term.start, until):
            if handed and handed.size == claimed.size and handed != claimed:
                raise NoteError(f"the checkpoint has another root for {claimed.size} records than a key vouched for")
        due.append(term.verifier)
    return parse_checkpoint(open_note(note, due))


def _succession(text: str, name: str) -> Term:
    """What a succession says of the keys of this name."""
    lines = text.split("\n")
    if len(lines) != 5 or lines[0] != SUCCESSION:
        raise NoteError(f"this is no succession: `{SUCCESSION}`, and then size, root and key on a line each")
    values = [
        line.removeprefix(label) if line.startswith(label) else ""
        for line, label in zip(lines[1:4], _LABELS, strict=True)
    ]
    size, root, new = decimal(values[0]), decode64(values[1]), Verifier(values[2])
    if size is None or root is None or len(root) != 32:
        raise NoteError("its size is no number, or its root is not base64 of 32 octets")
    if new.name != name:
        raise NoteError(f"the key is one of {new.name[:100]!r}, not of {name}")
    return Term(new, Checkpoint(name, size, root))


def read_file(path: Path, *, secret: bool = False) -> bytes:
    """A small file. A secret one must be closed to others; its group may read it, as service managers hand secrets
    out."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hold us up
        try:
            status = os.fstat(descriptor)
            mode = stat.S_IMODE(status.st_mode)
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{path} is not a file")
            if secret and mode & 0o037:
                raise KeyFileError(f"{path} is open to others (mode {mode:04o}): `chmod 600 {path}`")
            data = os.read(descriptor, LARGEST + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise KeyFileError(f"{path} is not there") from error
    except OSError as error:
        raise KeyFileError(f"{path} can't be read: {error.strerror}; look at it with `ls -l {path}`") from error
    if len(data) > LARGEST:
        raise KeyFileError(f"{path} has more than {LARGEST} octets")
    return data


def write_file(path: Path, data: bytes, mode: int) -> None:
    """A new file, on the disk when this returns; nothing is left of one that can't be written whole."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def keep_names(directory: Path) -> None:
    """The names of new files are on the disk too."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
