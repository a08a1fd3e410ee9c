"""The local CA's files: made once, closed to others, and refused with a word that mends it."""

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from smtpproxy.tls.authority import AuthorityError, certificate, create, load, read_passphrase

WORD = b"correct horse battery"
DAY = 86_400


def secret_of(path: Path, passphrase: bytes | None = None) -> bytes:
    """The key's private value."""
    key = serialization.load_pem_private_key((path / "ca.key").read_bytes(), passphrase)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.private_numbers().private_value.to_bytes(32, "big")


def replace_key(directory: Path, key: object) -> None:
    """Another private key in ca.key."""
    pem = key.private_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "ca.key").write_bytes(pem)


def certify(
    directory: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *extensions: x509.ExtensionType
) -> None:
    """A certificate of somebody else's making in ca.crt, its key in ca.key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "theirs")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=9))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    (directory / "ca.crt").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    replace_key(directory, key)


def usage(*, sign: bool = True) -> x509.KeyUsage:
    return x509.KeyUsage(False, False, False, False, False, sign, True, False, False)


def ca(*, may: bool = True) -> x509.BasicConstraints:
    return x509.BasicConstraints(may, None)


# ---------------------------------------------------------------------------------------------------------- made


def test_a_ca_is_made_and_read_back(tmp_path: Path) -> None:
    made = create(tmp_path / "new" / "ca", "our CA", 365)
    read = load(tmp_path / "new" / "ca")
    assert read.certificate == made.certificate == certificate(tmp_path / "new" / "ca")
    assert read.pem == (tmp_path / "new" / "ca" / "ca.crt").read_bytes()
    assert read.not_after - datetime.now(UTC).timestamp() == pytest.approx(365 * DAY, abs=60)


def test_its_certificate_is_a_cas_and_nothing_else(tmp_path: Path) -> None:
    """RFC 5280 §4.2.1: it signs leaves, no further CA."""
    found = create(tmp_path, "our CA", 365).certificate
    found.verify_directly_issued_by(found)
    get = found.extensions.get_extension_for_class
    assert get(x509.BasicConstraints).value == x509.BasicConstraints(ca=True, path_length=0)
    assert get(x509.BasicConstraints).critical
    assert get(x509.KeyUsage).value == usage()
    assert get(x509.KeyUsage).critical
    identifier = x509.SubjectKeyIdentifier.from_public_key(found.public_key())
    assert get(x509.SubjectKeyIdentifier).value == identifier
    assert get(x509.AuthorityKeyIdentifier).value.key_identifier == identifier.digest


def test_no_two_installations_are_alike(tmp_path: Path) -> None:
    """H7."""
    one, other = (create(tmp_path / name, "our CA", 365) for name in ("one", "other"))
    assert one.certificate.subject != other.certificate.subject
    assert one.certificate.serial_number != other.certificate.serial_number
    assert secret_of(tmp_path / "one") != secret_of(tmp_path / "other")
    assert all("CN=our CA" in ca.certificate.subject.rfc4514_string() for ca in (one, other))


def test_its_files_are_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create(tmp_path / "ca", "our CA", 365)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (tmp_path / "ca", *(tmp_path / "ca").iterdir())}
    assert modes == {"ca": 0o700, "ca.key": 0o600, "ca.crt": 0o644}


def test_a_passphrase_encrypts_the_key(tmp_path: Path) -> None:
    create(tmp_path, "our CA", 365, WORD)
    assert (tmp_path / "ca.key").read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert load(tmp_path, WORD).certificate == certificate(tmp_path)
    secret_of(tmp_path, WORD)


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(AuthorityError, match=f"{name} is there already and is not overwritten"):
        create(tmp_path, "our CA", 365)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]


def test_a_link_to_nowhere_is_something_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "ca.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuthorityError, match="there already"):
        create(tmp_path, "our CA", 365)
    assert not (tmp_path / "elsewhere").exists()


def test_of_two_who_make_it_at_once_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(tmp_path, "our CA", 365)
    before = secret_of(tmp_path)
    monkeypatch.setattr(os.path, "lexists", lambda path: False)  # the other one was not there yet
    with pytest.raises(AuthorityError, match=r"ca\.key is there already"):
        create(tmp_path, "our CA", 365)
    assert secret_of(tmp_path) == before


def test_half_a_ca_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        if len(list(tmp_path.iterdir())) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AuthorityError, match=r"ca\.crt can't be written: No space left on device"):
        create(tmp_path, "our CA", 365)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "passphrase", "why"),
    [
        ("", b"", "no name for a CA"),
        ("a" * 65, b"", "no name for a CA"),
        ("ä" * 33, b"", "no name for a CA"),
        ("a\nb", b"", "no name for a CA"),
        ("our CA", b"short", "5 octets: take 12 to 1024"),
        ("our CA", b"a" * 1025, "1025 octets"),
    ],
)
def test_what_is_asked_for_must_make_sense(tmp_path: Path, name: str, passphrase: bytes, why: str) -> None:
    with pytest.raises(AuthorityError, match=why):
        create(tmp_path, name, 365, passphrase)
    assert list(tmp_path.iterdir()) == []


def test_where_there_can_be_no_directory_there_is_no_ca(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AuthorityError, match=r"file.* can't be written: "):
        create(tmp_path / "file" / "ca", "our CA", 365)
    with pytest.raises(AuthorityError, match=r"file is there already"):
        create(tmp_path / "file", "our CA", 365)


# ---------------------------------------------------------------------------------------------------------- read


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o601, 0o777])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    create(tmp_path, "our CA", 365)
    (tmp_path / "ca.key").chmod(mode)
    with pytest.raises(AuthorityError, match=f"ca.key is open to others \\(mode {mode:04o}\\): `chmod 600 .*ca.key`"):
        load(tmp_path)
    (tmp_path / "ca.key").chmod(0o400)
    load(tmp_path)


@pytest.mark.parametrize(
    ("made_with", "read_with", "why"),
    [
        (WORD, b"", r"ca\.key is encrypted: say where its passphrase is"),
        (WORD, b"another passphrase", r"ca\.key is not opened by the passphrase"),
        (b"", WORD, r"ca\.key is not encrypted, but there is a passphrase.*openssl pkcs8 -topk8"),
    ],
)
def test_a_wrong_passphrase_is_refused(tmp_path: Path, made_with: bytes, read_with: bytes, why: str) -> None:
    create(tmp_path, "our CA", 365, made_with)
    with pytest.raises(AuthorityError, match=why) as raised:
        load(tmp_path, read_with)
    assert WORD.decode() not in str(raised.value)
    assert raised.value.__cause__ is raised.value.__context__ is None


def _spoil(name: str, data: bytes) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        (directory / name).write_bytes(data)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda directory: (directory / "ca.key").unlink(), r"ca\.key is not there: `smtpproxy ca init --directory /"),
        (lambda directory: (directory / "ca.crt").unlink(), r"ca\.crt is not there: `smtpproxy ca init --directory /"),
        (_spoil("ca.key", b""), r"ca\.key is no private key that is used"),
        (_spoil("ca.key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "is no private key"),
        (_spoil("ca.key", b"\xff" * 70_000), r"ca\.key has more than 65536 octets"),
        (_spoil("ca.crt", b"garbage"), r"ca\.crt is not a PEM certificate"),
        (lambda directory: replace_key(directory, ec.generate_private_key(ec.SECP256R1())), "not the key of"),
        (lambda directory: replace_key(directory, rsa.generate_private_key(65537, 2048)), "not the key of"),
        (lambda directory: replace_key(directory, rsa.generate_private_key(65537, 1024)), "no private key that is"),
        (lambda directory: replace_key(directory, ec.generate_private_key(ec.SECP256K1())), "no private key that is"),
        (lambda directory: replace_key(directory, ed25519.Ed25519PrivateKey.generate()), "no private key that is"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path: Path, spoil: Callable[[Path], None], why: str) -> None:
    create(tmp_path, "our CA", 365)
    spoil(tmp_path)
    with pytest.raises(AuthorityError, match=why):
        load(tmp_path)


@pytest.mark.parametrize("what", ["directory", "fifo", "loop"])
def test_what_is_no_file_does_not_hold_it_up(tmp_path: Path, what: str) -> None:
    create(tmp_path, "our CA", 365)
    path = tmp_path / "ca.key"
    path.unlink()
    if what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(path)
    with pytest.raises(AuthorityError, match=r"ca\.key (is not a file|can't be read: )"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("days", "why"), [(366, r"ca\.crt expired at 20.*Z: make a new CA"), (-2, r"ca\.crt is not valid before .*date -u")]
)
def test_a_ca_out_of_its_time_is_refused(tmp_path: Path, days: int, why: str) -> None:
    create(tmp_path, "our CA", 365)
    with pytest.raises(AuthorityError, match=why):
        load(tmp_path, now=datetime.now(UTC).timestamp() + days * DAY)


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)], ids=["P-384", "RSA"]
)
def test_a_ca_of_somebody_elses_making_is_taken(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> None:
    """One that a company's own CA has signed, say; without a key identifier in this case."""
    create(tmp_path, "our CA", 365)
    certify(tmp_path, key, ca(), usage())
    made = load(tmp_path)
    assert repr(made) == "<Authority CN=theirs>"
    name = x509.Name([])
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(None, name, leaf_key.public_key(), 1, now, now)
    leaf = x509.load_der_x509_certificate(made.sign(builder))
    leaf.verify_directly_issued_by(made.certificate)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    assert leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value == identifier


@pytest.mark.parametrize(
    "extensions", [(), (ca(),), (usage(),), (ca(may=False), usage(sign=False)), (ca(), usage(sign=False))]
)
def test_a_certificate_that_may_not_sign_is_no_cas(tmp_path: Path, extensions: tuple[x509.ExtensionType, ...]) -> None:
    create(tmp_path, "our CA", 365)
    certify(tmp_path, ec.generate_private_key(ec.SECP256R1()), *extensions)
    with pytest.raises(AuthorityError, match=r"ca\.crt is not a CA's certificate"):
        load(tmp_path)


def test_the_certificate_is_read_without_the_key(tmp_path: Path) -> None:
    made = create(tmp_path, "our CA", 365)
    (tmp_path / "ca.key").unlink()
    assert certificate(tmp_path) == made.certificate


def test_the_key_is_unprintable(tmp_path: Path) -> None:
    """I8."""
    made = create(tmp_path, "our CA", 365)
    said = f"{made} {made!r} {[made]}"
    assert "our CA" in said
    assert secret_of(tmp_path).hex() not in said
    assert "Private" not in said


# ---------------------------------------------------------------------------------------------------- passphrases


@pytest.mark.parametrize("octets", [WORD, WORD + b"\n", WORD + b"\r\n", WORD + b"\nnothing of this\n"])
def test_a_passphrase_is_the_first_line(tmp_path: Path, octets: bytes) -> None:
    (tmp_path / "word").write_bytes(octets)
    (tmp_path / "word").chmod(0o440)  # as service managers hand them out
    assert read_passphrase(tmp_path / "word") == WORD


@pytest.mark.parametrize(
    ("octets", "mode", "why"),
    [
        (WORD, 0o444, r"word is open to others \(mode 0444\): `chmod 600"),
        (WORD, 0o460, "open to others"),
        (b"", 0o600, "no passphrase in its first line"),
        (b"\n" + WORD, 0o600, "no passphrase in its first line"),
        (b"a" * 1025, 0o600, "longer one than 1024 octets"),
    ],
)
def test_a_passphrase_that_is_none_is_refused(tmp_path: Path, octets: bytes, mode: int, why: str) -> None:
    (tmp_path / "word").write_bytes(octets)
    (tmp_path / "word").chmod(mode)
    with pytest.raises(AuthorityError, match=why):
        read_passphrase(tmp_path / "word")


def test_a_passphrase_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match=r"^the passphrase file /.*word is not there$"):
        read_passphrase(tmp_path / "word")


def test_a_file_that_may_not_be_read_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(tmp_path, "our CA", 365)

    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(AuthorityError, match=r"ca\.crt can't be read: Permission denied; look at it with `ls -l "):
        load(tmp_path)


def test_the_package_imports_no_connection() -> None:
    """The floor `tls` is no connection: what reads the key does not know how to send it."""
    code = "import sys, smtpproxy.tls.authority; assert not {'trio', 'structlog', 'smtpproxy.net'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
