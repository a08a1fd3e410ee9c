"""Certificates for clients, made after the server's own.

A client behind the proxy must see what it would have seen without it: the server's names and subject, and a validity
that is never longer than the server's. So a certificate is made from a `Likeness`, which is what may be taken over from
the server's certificate, checked and bounded; nothing else of that certificate gets into ours.

- `mint` signs for a key whose public part it is given. It is called by the signing process alone (net/signer.py), which
  checks the likeness and the key anew, because who asks reads hostile octets.
- `self_signed` needs no CA. It is for a server that failed verification: a client that verifies must fail as well.
- A leaf has a key of its own, never the CA's, and is good for a server's TLS and nothing else.
- The common name is not another place for a name: in what the CA signs, one that reads as a host's and is not among the
  names is left out, because there are clients that believe it (RFC 9525 §2).

What must never happen: the CA's signature under a certificate without names; a key in a repr.
"""

import ipaddress
import re
import ssl
import warnings
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from smtpproxy.tls.authority import Authority

LARGEST = 65_536  # octets of a server's certificate that is looked at
MOST_NAMES = 250  # a mail provider's certificate has up to a hundred or so
MOST_OCTETS = 32_768  # of all names together
MOST_ATTRIBUTES = 20
DAY = 86_400
BACKDATED = DAY  # seconds: for clients whose clock is behind
_EARLIEST, _LATEST = -631_152_000, 253_402_300_799  # 1950 and 9999, where the times of X.509 begin and end
_COMMON_NAME = "2.5.4.3"

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")  # with the underscores that hosts do have
_PRINTABLE = re.compile(r"[A-Za-z0-9 '()+,./:=?-]+")  # PrintableString
_ASCII = re.compile(r"[ -~]+")

# What is taken of a subject: the kind's OID, how many octets (RFC 5280 appendix A.1,
# which means characters; not so the library), the alphabet where there is one.
_KINDS: dict[str, tuple[int, re.Pattern[str] | None]] = {
    _COMMON_NAME: (64, None),
    "2.5.4.5": (64, _PRINTABLE),  # serial number
    "2.5.4.6": (2, re.compile("[A-Z]{2}")),  # country
    "2.5.4.7": (128, None),  # locality
    "2.5.4.8": (128, None),  # state or province
    "2.5.4.9": (128, None),  # street
    "2.5.4.10": (64, None),  # organization
    "2.5.4.11": (64, None),  # organizational unit
    "2.5.4.15": (128, None),  # business category
    "2.5.4.17": (40, None),  # postal code
    "2.5.4.97": (128, None),  # organization identifier
    "0.9.2342.19200300.100.1.25": (63, _ASCII),  # domain component
    "1.2.840.113549.1.9.1": (255, _ASCII),  # mail address
    "1.3.6.1.4.1.311.60.2.1.1": (128, None),  # jurisdiction: locality, state, country
    "1.3.6.1.4.1.311.60.2.1.2": (128, None),
    "1.3.6.1.4.1.311.60.2.1.3": (2, re.compile("[A-Z]{2}")),
}


class Likeness(NamedTuple):
    """What a certificate of ours takes from the server's. All of it was checked: see `checked`."""

    names: tuple[str, ...]  # DNS names in lower case, IP addresses as text
    subject: tuple[tuple[str, str], ...]  # OID in dots, value
    not_before: int  # Unix seconds
    not_after: int


def likeness(der: bytes) -> Likeness:
    """What can be taken from this certificate. Names that are none, and odd parts of its subject, are left out.

    Raises:
        ValueError: it can't be read, or has more names than anybody needs.
    """
    if len(der) > LARGEST:
        raise ValueError(f"the certificate has more than {LARGEST} octets")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations: what is wrong with it is not for us to say here
            certificate = x509.load_der_x509_certificate(der)
            try:
                found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            except x509.ExtensionNotFound:
                found = x509.SubjectAlternativeName([])
            names = [str(name).lower() for name in found.get_values_for_type(x509.DNSName)]
            names = [name for name in names if _is_host(name)]  # "192.0.2.1" as a DNS name is not an address
            names += [str(address) for address in found.get_values_for_type(x509.IPAddress)]
            before = int(certificate.not_valid_before_utc.timestamp())
            after = int(certificate.not_valid_after_utc.timestamp())
            parts = [(part.oid.dotted_string, part.value) for part in certificate.subject]
    except Exception as error:  # its parser has many words for what is wrong with a certificate
        raise ValueError(f"the certificate can't be read: {error}") from error
    return checked(
        Likeness(
            tuple(dict.fromkeys(name for name in names if _general_name(name) is not None)),
            tuple((kind, str(value)) for kind, value in parts if _is_attribute(kind, value))[:MOST_ATTRIBUTES],
            min(max(before, _EARLIEST), _LATEST),
            min(max(after, _EARLIEST), _LATEST),
        )
    )


def likeness_of(host: str, now: float) -> Likeness:
    """What is certified for a server that shows no certificate: the name or address it is configured by.

    Raises:
        ValueError: that is neither.
    """
    try:
        name = str(ipaddress.ip_address(host))
    except ValueError:
        try:
            name = host.rstrip(".").encode("idna").decode().lower()
        except UnicodeError:
            name = ""
    if _general_name(name) is None:
        raise ValueError(f"{host!r} is not the name of a host")
    subject = ((_COMMON_NAME, name),) if _is_attribute(_COMMON_NAME, name) else ()
    return Likeness((name,), subject, int(now) - BACKDATED, _LATEST)


def checked(like: Likeness) -> Likeness:
    """The same, if everything in it is as `likeness` would have made it.

    Raises:
        ValueError: it is not; says what.
    """
    if len(like.names) > MOST_NAMES or sum(map(len, like.names)) > MOST_OCTETS:
        raise ValueError(f"the certificate has more than {MOST_NAMES} names, or very long ones")
    if not all(_general_name(name) is not None for name in like.names):
        raise ValueError("one of the names is neither a host's nor an address")
    if len(like.subject) > MOST_ATTRIBUTES or not all(_is_attribute(kind, value) for kind, value in like.subject):
        raise ValueError("the subject is not one that is taken over")
    if not (_EARLIEST <= like.not_before <= _LATEST and _EARLIEST <= like.not_after <= _LATEST):
        raise ValueError("the time is none that a certificate can have")
    return like


class Leaf:
    """A certificate for clients, what is to be sent along with it, and its key.

    Attributes:
        chain: PEM, the leaf first.
        key: PEM. Not to be printed.
    """

    __slots__ = ("chain", "key")

    def __init__(self, chain: bytes, key: bytes) -> None:
        self.chain = chain
        self.key = key

    def __repr__(self) -> str:
        return f"<Leaf, {self.chain.count(b'-----BEGIN')} certificates>"


class KeyPair:
    """A fresh P-256 key of a leaf. `spki` is its public part (DER, SubjectPublicKeyInfo)."""

    __slots__ = ("_key", "public", "spki")

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.public = self._key.public_key()
        self.spki = _spki(self.public)

    def leaf(self, der: bytes, above: bytes) -> Leaf:
        """This key with the certificate that was minted for it.

        Args:
            der: the certificate.
            above: PEM of what is sent along with it.

        Raises:
            ValueError: this is no certificate, or another key's.
        """
        try:
            fits = _spki(x509.load_der_x509_certificate(der).public_key()) == self.spki
        except Exception as error:
            raise ValueError(f"what was minted can't be read: {error}") from error
        if not fits:
            raise ValueError("what was minted is for another key")
        return Leaf(ssl.DER_cert_to_PEM_cert(der).encode() + above, self._pem())

    def self_signed(self, builder: x509.CertificateBuilder) -> Leaf:
        """This key with a certificate it signs itself."""
        certificate = builder.sign(self._key, hashes.SHA256())
        return Leaf(certificate.public_bytes(serialization.Encoding.PEM), self._pem())

    def _pem(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def self_signed(like: Likeness, now: float, days: int) -> Leaf:
    """A certificate that vouches for itself, so that a client that verifies must fail.

    It ends when the server's does, so that a client which says why says what is the matter with the server's, too.
    """
    subject = _name(like.subject)
    if not like.subject and like.names and _is_attribute(_COMMON_NAME, like.names[0]):
        subject = _name([(_COMMON_NAME, like.names[0])])  # there must be an issuer (RFC 5280 §4.1.2.4)
    elif not like.subject:
        subject = _name([(_COMMON_NAME, "unnamed")])
    after = min(like.not_after, int(now) + days * DAY)
    before = min(max(like.not_before, int(now) - BACKDATED), after - 1)
    pair = KeyPair()
    builder = _builder(like.names, subject, pair.public, max(before, _EARLIEST), after)
    return pair.self_signed(builder.issuer_name(subject))


def mint(authority: Authority, like: Likeness, spki: bytes, now: float, days: int) -> bytes:
    """A certificate for this public key, signed by the CA (DER). It ends with the server's, the CA's, or after `days`.

    Raises:
        ValueError: something asked for is not to be had: no names, no P-256 key, a time that is over.
    """
    checked(like)
    if not like.names:
        raise ValueError("a certificate without names is not signed")
    try:
        public = serialization.load_der_public_key(spki)
    except Exception as error:
        raise ValueError(f"not a public key: {error}") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
        raise ValueError("not a P-256 key")
    if public == authority.certificate.public_key():
        raise ValueError("the CA's own key is not a leaf's")
    if now >= authority.not_after:
        raise ValueError("the CA's certificate has expired")
    before = max(like.not_before, int(now) - BACKDATED, authority.not_before)
    after = min(like.not_after, int(now) + days * DAY, authority.not_after)
    if after <= max(before, now):
        raise ValueError("the server's certificate has expired")
    subject = _name(part for part in like.subject if not _overloads(part, like.names))
    builder = _builder(like.names, subject, public, before, after)
    return authority.sign(builder)


def _builder(
    names: Iterable[str], subject: x509.Name, public: ec.EllipticCurvePublicKey, before: int, after: int
) -> x509.CertificateBuilder:
    """All of a leaf but its issuer (RFC 5280 §4.2.1)."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(before, UTC))
        .not_valid_after(datetime.fromtimestamp(after, UTC))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    general = [name for name in map(_general_name, names) if name is not None]
    if not general:
        return builder
    bare = not list(subject)  # without a subject the names are all there is (RFC 5280 §4.2.1.6)
    return builder.add_extension(x509.SubjectAlternativeName(general), critical=bare)


def _spki(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("not a P-256 key")
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _is_host(name: str) -> bool:
    """A DNS name, perhaps with * for its first label and then two more at least (RFC 9525 §6.3)."""
    labels = name.removeprefix("*.")
    if len(name) > 253 or (labels != name and "." not in labels) or not _HOST.fullmatch(labels):
        return False
    return not labels.rpartition(".")[2].isdigit()  # what ends in a number is an address, perhaps a malformed one


def _general_name(name: str) -> x509.GeneralName | None:
    if _is_host(name):
        return x509.DNSName(name)
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    return x509.IPAddress(address) if str(address) == name and "%" not in name else None


def _is_attribute(kind: str, value: object) -> bool:
    longest, alphabet = _KINDS.get(kind, (0, None))
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value.encode()) <= longest:
        return False
    return alphabet is None or alphabet.fullmatch(value) is not None


def _name(subject: Iterable[tuple[str, str]]) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.ObjectIdentifier(kind), value) for kind, value in subject])


def _overloads(part: tuple[str, str], names: tuple[str, ...]) -> bool:
    """It is a common name that some client could take for one more name."""
    kind, value = part
    name = value.strip().lower()
    return kind == _COMMON_NAME and name not in names and _general_name(name) is not None
