"""DANE for SMTP: whether a server's certificate is the one its domain's TLSA records name (RFC 6698, 7671, 7672).

The records come from whoever asked the DNS, and only if DNSSEC vouches for them; here they are values.

- Usages 2 (DANE-TA) and 3 (DANE-EE) count. 0 and 1 lean on public CAs, of which a mail server has no agreed list:
  they are unusable (RFC 7672 §3.1.3).
- Usage 3 is about the leaf alone. Its names and dates do not matter: the record says both, by where it stands and by
  how long it stands there (RFC 7671 §5.1).
- Usage 2 is about a certificate that issued the leaf. The way to it, the name and the dates are checked, by
  verifying.py. The issuer is among what the server shows, or the record holds it whole (2 0 0). A bare key (2 1 0)
  counts only where the server shows its certificate.
- A weaker digest is not looked at where there is a stronger one of the same usage and selector (RFC 7671 §9).

Selector 1 compares the key's octets as they stand in the certificate, not as somebody would write them again; they
are found by walking the DER. The walk takes only what DER allows, definite and shortest lengths, so it can't come out
elsewhere than OpenSSL does. What must never happen: a verdict of verified where no record fits.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from smtpproxy.tls.verdict import FAILED, HOST_MISMATCH, TLSA_INVALID, Verdict
from smtpproxy.tls.verifying import MAX_CHAIN, Roots, verify_chain

MOST = 100  # records that are looked at
TA, EE = 2, 3  # usages
WHOLE, KEY = 0, 1  # selectors
_DIGESTS = {1: hashlib.sha256, 2: hashlib.sha512}  # matching types: the stronger, the higher
_SIZES = {1: 32, 2: 64}
_SEQUENCE, _INTEGER, _VERSION = 0x30, 0x02, 0xA0
_BEFORE_THE_KEY = (_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE)  # serial, signature, issuer, validity, subject


class TLSA(NamedTuple):
    """One record (RFC 6698 §2.1)."""

    usage: int
    selector: int
    matching: int
    data: bytes

    def __str__(self) -> str:
        """As a zone file has it, the data by its beginning."""
        return f"{self.usage} {self.selector} {self.matching} {self.data[:4].hex()}…"


def usable(records: Iterable[TLSA]) -> tuple[TLSA, ...]:
    """Those that can be checked, in their order, without weaker digests beside stronger ones."""
    sound = [record for record in dict.fromkeys(records) if _sound(record)][:MOST]
    strongest: dict[tuple[int, int], int] = {}
    for usage, selector, matching, _ in sound:
        strongest[usage, selector] = max(matching, strongest.get((usage, selector), 0))
    return tuple(record for record in sound if record.matching in (0, strongest[record.usage, record.selector]))


def check_dane(records: Iterable[TLSA], chain: Sequence[bytes], name: str, at: float) -> Verdict:
    """Whether one of `records` fits what the server showed. Never raises.

    `chain` is DER, leaf first; `name`, the server's DNS name, and `at`, the time in Unix seconds, are for usage 2.
    """
    good = usable(records)
    if not good:
        return Verdict(False, TLSA_INVALID, "no usable TLSA record")
    if not chain:
        return Verdict(False, FAILED, "the server shows no certificate")
    leaf, issuers = chain[0], chain[1:MAX_CHAIN]
    if any(_fits(record, leaf) for record in good if record.usage == EE):
        return Verdict(True)
    authorities = [record for record in good if record.usage == TA]
    anchors = [issuer for issuer in issuers if any(_fits(record, issuer) for record in authorities)]
    anchors += [record.data for record in authorities if record.selector == WHOLE and record.matching == 0]
    anchors = [anchor for anchor in dict.fromkeys(anchors) if anchor != leaf and _roots((anchor,)) is not None]
    roots = _roots(tuple(anchors)) if anchors else None
    if roots is None:
        return Verdict(False, TLSA_INVALID, f"the certificate fits none of the TLSA records {_listed(good)}")
    if not name:
        return Verdict(False, HOST_MISMATCH, "a TLSA record of usage 2 is about a name, and there is none")
    return verify_chain(chain, name, roots, at)


def key_of(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a DER certificate, octet for octet (RFC 5280 §4.1).

    Raises:
        ValueError: it is no certificate, or not in DER.
    """
    inside, end = _element(certificate, 0, len(certificate), _SEQUENCE)
    if end != len(certificate):
        raise ValueError("octets behind the certificate")
    at, end = _element(certificate, inside, end, _SEQUENCE)  # TBSCertificate
    if certificate[at : at + 1] == bytes((_VERSION,)):
        _, at = _element(certificate, at, end, _VERSION)
    for tag in _BEFORE_THE_KEY:
        _, at = _element(certificate, at, end, tag)
    _, behind = _element(certificate, at, end, _SEQUENCE)
    return certificate[at:behind]


def _element(octets: bytes, at: int, limit: int, tag: int) -> tuple[int, int]:
    """Where the content of the DER element at `at` begins and where it ends."""
    if at + 2 > limit or octets[at] != tag:
        raise ValueError(f"no element of type {tag:#04x} at {at}")
    begin, size = at + 2, octets[at + 1]
    if size >= 0x80:
        count = size & 0x7F
        begin += count
        size = int.from_bytes(octets[at + 2 : begin], "big")
        if not 1 <= count <= 4 or begin > limit or size < 0x80 or size < 1 << 8 * (count - 1):
            raise ValueError(f"a length that DER does not allow at {at}")
    if begin + size > limit:
        raise ValueError(f"cut short at {at}")
    return begin, begin + size


def _sound(record: TLSA) -> bool:
    """Whether it can be checked at all."""
    if record.usage not in (TA, EE) or record.selector not in (WHOLE, KEY):
        return False
    if record.matching != 0:
        return len(record.data) == _SIZES.get(record.matching)
    try:
        if record.selector == WHOLE:
            key_of(record.data)
            return True
        _, end = _element(record.data, 0, len(record.data), _SEQUENCE)
    except ValueError:
        return False
    return end == len(record.data)


def _fits(record: TLSA, certificate: bytes) -> bool:
    """Whether a usable record is about this certificate."""
    if record.selector == KEY:
        try:
            certificate = key_of(certificate)
        except ValueError:
            return False
    digest = _DIGESTS.get(record.matching)
    return record.data == (digest(certificate).digest() if digest else certificate)


@lru_cache(64)
def _roots(anchors: tuple[bytes, ...]) -> Roots | None:
    """Made once for the same anchors: verdicts are remembered by them. None if one can't be read."""
    try:
        return Roots.given(anchors)
    except ValueError:
        return None


def _listed(records: Sequence[TLSA]) -> str:
    """A few of them for a text."""
    more = f" and {len(records) - 3} more" if len(records) > 3 else ""
    return ", ".join(str(record) for record in records[:3]) + more
