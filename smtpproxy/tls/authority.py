"""The local CA: two files in a directory, and what they are made into.

    ca.key   the private key: PKCS#8, mode 0600, encrypted if there is a passphrase
    ca.crt   the certificate that clients are given to trust

Every installation makes its own; none comes with the software. The key is read by `load` alone, which only the signing
process calls (net/signer.py) and which refuses a key that others could have read. Whoever only wants the certificate
reads that (`certificate`).

What must never happen: a file overwritten; a key written where others can read it; a key or passphrase in a text.

A passphrase is stretched as little as the library does it (PBKDF2, 2048 rounds), so it must be a long one. A key that
`openssl pkcs8 -topk8 -iter 600000` encrypted anew is read as well.
"""

import contextlib
import os
import secrets
import stat
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

KEY, CERTIFICATE = "ca.key", "ca.crt"
LARGEST = 65_536  # octets of a file that is read
SHORTEST = 12  # octets of a passphrase that is taken for a new key
LONGEST = 1024
LONGEST_NAME = 64  # octets; RFC 5280 appendix A.1, ub-common-name, means characters, the library does not
_BACKDATED = timedelta(days=1)  # for clients whose clock is behind

_PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class AuthorityError(Exception):
    """The CA can't be used, or made. Its text names the file, and what mends it."""


class Authority:
    """A CA that can sign.

    Attributes:
        certificate: its own.
        pem: the same as it is sent along with what it signs.
        not_before: Unix seconds.
        not_after: Unix seconds.
    """

    __slots__ = ("_identifier", "_key", "certificate", "not_after", "not_before", "pem")

    def __init__(self, certificate: x509.Certificate, key: _PrivateKey) -> None:
        self._key = key
        self.certificate = certificate
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.not_before = int(certificate.not_valid_before_utc.timestamp())
        self.not_after = int(certificate.not_valid_after_utc.timestamp())
        try:
            own = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            self._identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
        except x509.ExtensionNotFound:
            self._identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())

    def __repr__(self) -> str:
        return f"<Authority {self.certificate.subject.rfc4514_string()}>"

    def sign(self, builder: x509.CertificateBuilder) -> bytes:
        """What this builder makes, issued and signed by this CA (DER)."""
        issued = builder.issuer_name(self.certificate.subject).add_extension(self._identifier, critical=False)
        return issued.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def create(directory: Path, name: str, days: int, passphrase: bytes = b"") -> Authority:
    """Make a CA in this directory, which is made if it is not there. Nothing is overwritten.

    Args:
        directory: where its two files go.
        name: its common name; a random number beside it keeps two CAs of one name apart.
        days: how long it is good for.
        passphrase: what the key is encrypted with; b"" for not.

    Raises:
        AuthorityError: it can't be made, or there is one already.
    """
    if not name.isprintable() or not 0 < len(name.encode()) <= LONGEST_NAME:
        raise AuthorityError(f"{name!r} is no name for a CA: 1 to {LONGEST_NAME} octets, all printable")
    if passphrase and not SHORTEST <= len(passphrase) <= LONGEST:
        raise AuthorityError(f"the passphrase has {len(passphrase)} octets: take {SHORTEST} to {LONGEST}")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certify(key, name, days)
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    try:
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True)
        for path in (directory / KEY, directory / CERTIFICATE):
            if os.path.lexists(path):
                raise AuthorityError(f"{path} is there already and is not overwritten: choose another directory")
        _write(directory / KEY, pem, 0o600)
        try:
            _write(directory / CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        except OSError:
            (directory / KEY).unlink()  # ours, of just now: half a CA is none
            raise
    except FileExistsError as error:  # somebody else was quicker
        raise AuthorityError(f"{error.filename} is there already and is not overwritten") from error
    except OSError as error:
        raise AuthorityError(f"{error.filename or directory} can't be written: {error.strerror}") from error
    return Authority(certificate, key)


def load(directory: Path, passphrase: bytes = b"", now: float | None = None) -> Authority:
    """The CA of this directory, ready to sign.

    Args:
        directory: where its two files are.
        passphrase: b"" if the key is not encrypted.
        now: Unix seconds; the clock's if None.

    Raises:
        AuthorityError: anything is wrong with its files.
    """
    path = directory / KEY
    found = certificate(directory)
    key = _load_key(path, _read(path, secret=True), passphrase)
    public = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if found.public_key().public_bytes(*public) != key.public_key().public_bytes(*public):
        raise AuthorityError(
            f"{path} is not the key of {directory / CERTIFICATE}: put back the one that is, "
            "or make a new CA with `smtpproxy ca init` in another directory"
        )
    made = Authority(found, key)
    at = time.time() if now is None else now
    if at >= made.not_after:
        raise AuthorityError(
            f"{directory / CERTIFICATE} expired at {found.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}: make a new CA with "
            "`smtpproxy ca init` in another directory"
        )
    if at < made.not_before:
        raise AuthorityError(
            f"{directory / CERTIFICATE} is not valid before {found.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}: "
            "look at this machine's clock with `date -u`"
        )
    return made


def certificate(directory: Path) -> x509.Certificate:
    """The CA's certificate. The key is not looked at.

    Raises:
        AuthorityError: it can't be read, or is not a CA's.
    """
    path = directory / CERTIFICATE
    try:
        found = x509.load_pem_x509_certificate(_read(path))
        extensions = found.extensions
    except AuthorityError:
        raise
    except Exception as error:  # its parser has many words for what is wrong with a certificate
        raise AuthorityError(
            f"{path} is not a PEM certificate: put back the one that `smtpproxy ca init` made"
        ) from error
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        may = constraints.ca and usage.key_cert_sign
    except x509.ExtensionNotFound:
        may = False
    if not may:
        raise AuthorityError(f"{path} is not a CA's certificate: it may not sign others; `smtpproxy ca init` makes one")
    return found


def read_passphrase(path: Path) -> bytes:
    """The passphrase in this file: its first line.

    Raises:
        AuthorityError: it can't be read, others can read it, or it is empty.
    """
    try:
        line = _read(path, secret=True, group=True).partition(b"\n")[0].removesuffix(b"\r")
    except AuthorityError as error:
        raise AuthorityError(f"the passphrase file {error}") from error
    if not 0 < len(line) <= LONGEST:
        raise AuthorityError(
            f"the passphrase file {path} has no passphrase in its first line, or a longer one than {LONGEST} octets"
        )
    return line


def _certify(key: ec.EllipticCurvePrivateKey, name: str, days: int) -> x509.Certificate:
    """The CA's own certificate (RFC 5280 §4.2.1): it may sign leaves, and no further CA."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, secrets.token_hex(8)),
        ]
    )
    now = datetime.now(UTC).replace(microsecond=0)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    return builder.sign(key, hashes.SHA256())


def _load_key(path: Path, pem: bytes, passphrase: bytes) -> _PrivateKey:
    """Said in our own words, and without a cause: nobody knows what a parser quotes."""
    encrypted = b"ENCRYPTED" in pem
    if encrypted and not passphrase:
        raise AuthorityError(f"{path} is encrypted: say where its passphrase is with `passphrase_file` in [ca]")
    if passphrase and not encrypted:
        raise AuthorityError(
            f"{path} is not encrypted, but there is a passphrase for it: take out `passphrase_file`, or encrypt it "
            f"with `openssl pkcs8 -topk8 -iter 600000 -in {path} -out NEW`"
        )
    key: object = None
    with contextlib.suppress(Exception):
        key = serialization.load_pem_private_key(pem, passphrase or None)
    if key is None and encrypted:
        raise AuthorityError(f"{path} is not opened by the passphrase: look at the file that `passphrase_file` names")
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in ("secp256r1", "secp384r1"):
        return key
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return key
    raise AuthorityError(
        f"{path} is no private key that is used (P-256, P-384, RSA from 2048 bits; PEM): put back the one that "
        "`smtpproxy ca init` made"
    )


def _read(path: Path, *, secret: bool = False, group: bool = False) -> bytes:
    """A small file. A secret one must be closed to others; `group`: its group may read it, as service managers hand
    out secrets."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hold us up
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            mode = stat.S_IMODE(status.st_mode)
            if not stat.S_ISREG(status.st_mode):
                raise AuthorityError(f"{path} is not a file")
            if secret and mode & (0o037 if group else 0o077):
                raise AuthorityError(f"{path} is open to others (mode {mode:04o}): `chmod 600 {path}`")
            data = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        mend = (
            "" if path.name not in (KEY, CERTIFICATE) else f": `smtpproxy ca init --directory {path.parent}` makes a CA"
        )
        raise AuthorityError(f"{path} is not there{mend}") from error
    except OSError as error:
        raise AuthorityError(f"{path} can't be read: {error.strerror}; look at it with `ls -l {path}`") from error
    if len(data) > LARGEST:
        raise AuthorityError(f"{path} has more than {LARGEST} octets")
    return data


def _write(path: Path, data: bytes, mode: int) -> None:
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
