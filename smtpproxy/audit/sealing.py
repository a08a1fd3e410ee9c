"""Transcripts for an auditor's eyes alone: encrypted to a public key before they are written anywhere.

HPKE (RFC 9180), base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. The context (`info`) names the
record it belongs to, so that a sealed transcript can't be put into another one. Text: base64 of enc || ciphertext.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from smtpproxy.audit.keys import KeyFileError, keep_names, read_file, write_file

PUBLIC: Final = ".pub"
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_ABOUT: Final = b"smtpproxy transcript 1 "


class SealError(Exception):
    """It can't be opened: another key, another record, or it was changed."""


def create(path: Path) -> None:
    """Make an auditor's key: FILE, which the auditor keeps, and FILE.pub for the proxy.

    Raises:
        KeyFileError: they can't be written, or are there already.
    """
    key = X25519PrivateKey.generate()
    try:
        write_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        write_file(path.with_name(path.name + PUBLIC), public, 0o644)
        keep_names(path.parent)
    except FileExistsError as error:
        raise KeyFileError(f"{error.filename} is there already and is not overwritten") from error
    except OSError as error:
        raise KeyFileError(f"{error.filename or path} can't be written: {error.strerror}") from error


def sealer(path: Path) -> Callable[[bytes, bytes], str]:
    """What seals to the public key of this file; the second argument says what record it is in.

    Raises:
        KeyFileError: it can't be read, or is no such key.
    """
    try:
        key = load_pem_public_key(read_file(path))
    except ValueError:
        key = None
    if not isinstance(key, X25519PublicKey):
        raise KeyFileError(f"{path} is no auditor's public key: `smtpproxy audit auditor-key init FILE` makes FILE.pub")
    public = key
    return lambda octets, about: b64encode(_SUITE.encrypt(octets, public, _ABOUT + about)).decode()


def opener(path: Path) -> Callable[[str, bytes], bytes]:
    """What opens with the private key of this file; it raises SealError.

    Raises:
        KeyFileError: it can't be read, others can read it, or it is no such key.
    """
    try:
        key = load_pem_private_key(read_file(path, secret=True), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, X25519PrivateKey):
        raise KeyFileError(f"{path} is no auditor's key: an X25519 key in PEM, not encrypted")
    private = key

    def opened(text: str, about: bytes) -> bytes:
        try:
            return _SUITE.decrypt(b64decode(text, validate=True), private, _ABOUT + about)
        except (InvalidTag, ValueError) as error:
            raise SealError("it was sealed to another key, for another record, or was changed") from error

    return opened
