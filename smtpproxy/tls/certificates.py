"""What a certificate says, as text for the record.

A certificate comes from a peer: its names may be long, many, wrong or made to look like something else in a terminal.
So everything here is bounded and printable, and what can't be read is said in `trouble` beside what can. None of it is
a judgement: verifying.py judges.
"""

import base64
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from cryptography import x509

MAX_DER = 65536  # octets of one certificate; those of the public CAs have 1,000 to 2,000
MAX_NAMES = 100
MAX_NAME = 255  # characters
MAX_DN = 1000

Address = IPv4Address | IPv6Address


_PEM = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----([^-]*)-----END (?:X509 )?CERTIFICATE-----")


class Facts(NamedTuple):
    """One certificate. Every text is printable; "" stands for what could not be read."""

    subject: str  # RFC 4514
    issuer: str
    names: tuple[str, ...]  # subjectAltName: its host names, then its addresses
    sha256: str  # of the DER, hexadecimal
    not_before: str  # ISO 8601, UTC
    not_after: str
    trouble: str  # why this is not all; "" if it is


def read(der: bytes) -> x509.Certificate:
    """The certificate; ValueError, and nothing else, if it is none. Its extensions are read when they are asked for."""
    if len(der) > MAX_DER:
        raise ValueError(f"a certificate of more than {MAX_DER} octets")
    try:
        with quiet():
            return x509.load_der_x509_certificate(der)
    except Exception as error:
        raise ValueError(f"no certificate: {printable(str(error), 200)}") from error


def sections(pem: bytes) -> list[bytes]:
    """The certificates of a PEM file as DER, or b"" for one that is none. What stands between them does not count."""
    found: list[bytes] = []
    for body in _PEM.findall(pem):
        try:
            found.append(base64.b64decode(body))
        except ValueError:
            found.append(b"")
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of the library about odd certificates: they are a peer's, nobody here can mend them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def facts(der: bytes) -> Facts:
    """What is in a certificate. Never raises."""
    if len(der) > MAX_DER:
        return _nothing(der, f"a certificate of more than {MAX_DER} octets")
    with quiet():
        return _facts(der)


def printable(text: str, most: int) -> str:
    """`text` with what can't be printed as \\xx of its UTF-8 octets (RFC 4514 §2.4), cut to `most` characters."""
    shown = "".join(
        char if char.isprintable() else "".join(f"\\{octet:02x}" for octet in char.encode(errors="replace"))
        for char in text[: most + 1]
    )
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def moment(when: datetime) -> str:
    """ISO 8601, UTC, to the second."""
    return when.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


@lru_cache(maxsize=256)
def _facts(der: bytes) -> Facts:
    try:
        certificate = read(der)
    except ValueError as error:
        return _nothing(der, str(error))
    trouble: list[str] = []

    def said(what: str, text: Callable[[], str]) -> str:
        try:
            return text()
        except Exception as error:  # whatever it is, it is in the certificate
            trouble.append(f"{what} can't be read: {printable(str(error), 200)}")
            return ""

    def distinguished(what: str, name: Callable[[], x509.Name]) -> str:
        full = said(what, lambda: name().rfc4514_string())
        if len(full) > MAX_DN:
            trouble.append(f"{what} has more than {MAX_DN} characters")
        return printable(full, MAX_DN)

    subject = distinguished("subject", lambda: certificate.subject)
    issuer = distinguished("issuer", lambda: certificate.issuer)
    alternative: list[str] = []
    try:
        hosts, addresses = names_of(certificate)
        alternative = [*hosts, *map(str, addresses)]
    except ValueError as error:
        trouble.append(str(error))
    if len(alternative) > MAX_NAMES:
        trouble.append(f"more than {MAX_NAMES} names")
    if any(len(name) > MAX_NAME for name in alternative):
        trouble.append(f"a name of more than {MAX_NAME} characters")
    names = tuple(printable(name, MAX_NAME) for name in alternative[:MAX_NAMES])
    not_before = said("notBefore", lambda: moment(certificate.not_valid_before_utc))
    not_after = said("notAfter", lambda: moment(certificate.not_valid_after_utc))
    return Facts(subject, issuer, names, sha256(der).hexdigest(), not_before, not_after, "; ".join(trouble))


def names_of(certificate: x509.Certificate) -> tuple[list[str], list[Address]]:
    """Host names and addresses of subjectAltName, as they are; ValueError if it can't be read."""
    try:
        with quiet():
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            addresses = [value for value in names.get_values_for_type(x509.IPAddress) if isinstance(value, Address)]
            return names.get_values_for_type(x509.DNSName), addresses
    except x509.ExtensionNotFound:
        return [], []
    except Exception as error:  # whatever it is, it is in the certificate
        raise ValueError(f"subjectAltName can't be read: {printable(str(error), 200)}") from error


def _nothing(der: bytes, trouble: str) -> Facts:
    return Facts("", "", (), sha256(der).hexdigest(), "", "", trouble)
