"""Certificates as tests want them, good and bad, with real keys. Dates are days from now."""

import ipaddress
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import NameOID

NOW = int(time.time())  # also OpenSSL's, which can't be told another

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | dsa.DSAPrivateKey
Extra = tuple[x509.ExtensionType, bool]


class Made(NamedTuple):
    """A certificate with its key."""

    certificate: x509.Certificate
    key: Key

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key in PEM (PKCS #8)."""
        form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, form, none)


def days(count: float) -> datetime:
    """So many days from now, to the second."""
    return datetime.fromtimestamp(NOW, UTC) + timedelta(days=count)


def distinguished(name: str) -> x509.Name:
    """CN=name, or no name at all for ""."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])


def alternative(*names: str, critical: bool = False) -> Extra:
    """A subjectAltName of host names and addresses."""
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found), critical


def made(
    subject: str,
    issuer: Made | None = None,
    *,
    ca: bool = False,
    names: Sequence[str] = (),
    since: float = -1,
    until: float = 30,
    key: Key | None = None,
    public: rsa.RSAPublicKey | None = None,
    signer: Key | None = None,
    extras: Sequence[Extra] = (),
    subject_name: x509.Name | None = None,
    issuer_name: str = "",
    path_length: int | None = None,
) -> Made:
    """A certificate of `issuer`, or of its own; `signer` is a key that signs in the issuer's place.

    `public` is a key that the certificate names and nobody has.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    named = distinguished(issuer_name) if issuer_name else issuer.certificate.subject if issuer else None
    builder = (
        x509.CertificateBuilder()
        .subject_name(distinguished(subject) if subject_name is None else subject_name)
        .issuer_name(named if named is not None else distinguished(subject))
        .public_key(public or key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(days(since))
        .not_valid_after(days(until))
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    if names:
        builder = builder.add_extension(*alternative(*names))
    for extension, critical in extras:
        builder = builder.add_extension(extension, critical)
    by = signer or (issuer.key if issuer else key)
    return Made(builder.sign(by, None if isinstance(by, ed25519.Ed25519PrivateKey) else hashes.SHA256()), key)


def usage(*allowed: str) -> Extra:
    """A keyUsage with these and nothing else."""
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in allowed for name in every}), True


@cache
def weak_rsa() -> rsa.RSAPrivateKey:
    """1024 bits."""
    return rsa.generate_private_key(65537, 1024)


@cache
def root() -> Made:
    """The CA that tests trust."""
    return made("Root", ca=True, since=-90, until=300, extras=[usage("key_cert_sign", "crl_sign")])
