"""Whether a server's certificate is what it should be, after the handshake and without a connection.

A server's chain is verified when the listener asks for it, and also when it does not: the record then says why it
would have failed (opportunistic TLS, RFC 7435). Rules:

- Whether there is a path to a root is decided by `cryptography.x509.verification` and by nothing written here. Its
  profile is that of the public web, and many a mail server has a certificate of a private CA: its rules about which
  extensions a certificate must have are set aside, and what OpenSSL asks for takes their place. What is left is a
  little stricter: a CA has basicConstraints (no version 1) and an RSA or NIST curve key (no Ed25519), and extensions
  that are critical and not among the usual ones are refused.
- The rest is asked here of each certificate on that path: keys and digests that are not weak (RFC 9325 §4.5), and of
  the first one its dates, its use for TLS servers, and the name (RFC 9525: subjectAltName only, never the subject).
- `why` is found only when the answer is no. Finding none changes nothing: the answer stays no.
- Nothing a server shows raises, and what it can cost is bounded: certificates, octets, signatures checked.
"""

import contextlib
import ipaddress
import ssl
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from smtpproxy.tls.certificates import moment, names_of, printable, quiet, read, sections
from smtpproxy.tls.verdict import EXPIRED, FAILED, HOST_MISMATCH, NOT_TRUSTED, Verdict

MAX_CHAIN = 20  # certificates
MAX_VERDICTS = 1024  # kept for each set of roots
FRESH = 3600  # seconds a verdict is kept

_SIGNATURES = 16  # checked to find out why there is no path
_RSA_BITS = (2048, 8192)  # RFC 9325 §4.5, and OpenSSL's security level 2; more costs more than it gives
_CURVE_BITS = 224
_WEAK_DIGESTS = ("md5", "sha1")
_NAMES_SHOWN = 5

Problem = tuple[str, str]  # result type (RFC 8460 §4.3), why
Extension = TypeVar("Extension", bound=x509.ExtensionType)


class Roots:
    """Certificates that are trusted, each of them for all that stands under it. They need not be self-signed."""

    def __init__(self, certificates: Sequence[x509.Certificate]) -> None:
        """At least one; ValueError if there is none."""
        self.store = verification.Store(list(certificates))
        self.all = dict.fromkeys(certificates)  # in their order
        self.verdicts = _Verdicts()

    @classmethod
    def system(cls) -> "Roots":
        """Those OpenSSL uses (SSL_CERT_FILE and SSL_CERT_DIR count); ValueError if there are none."""
        paths = ssl.get_default_verify_paths()
        found: dict[x509.Certificate, None] = {}
        try:
            files = [Path(paths.cafile)] if paths.cafile else sorted(Path(paths.capath or "").glob("*.[0-9]"))
            for der in [der for file in files for der in sections(file.read_bytes())]:
                with contextlib.suppress(ValueError):  # one of a hundred that nobody here chose: it is not trusted
                    found[read(der)] = None
        except OSError as error:
            raise ValueError(f"the trusted certificates of this system: {error}") from error
        if not found:
            raise ValueError("this system has no trusted certificates; its package of them may be missing")
        return cls(list(found))

    @classmethod
    def file(cls, path: Path | str) -> "Roots":
        """All certificates of a PEM file; ValueError if it can't be read, has none, or one that can't be read."""
        try:
            found = sections(Path(path).read_bytes())
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error
        if not found:
            raise ValueError(f"{path}: no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
        try:
            return cls.given(found)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def given(cls, anchors: Sequence[bytes]) -> "Roots":
        """Certificates as DER, at least one; ValueError if one can't be read."""
        certificates = []
        for number, der in enumerate(anchors, 1):
            try:
                certificates.append(read(der))
            except ValueError as error:
                raise ValueError(f"certificate {number} of {len(anchors)}: {error}") from error
        return cls(certificates)

    def __len__(self) -> int:
        return len(self.all)


class _Verdicts:
    """The latest verdicts on one set of roots: a server shows the same chain at every connection."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[bytes, str], tuple[float, float, Verdict]] = OrderedDict()

    def get(self, key: tuple[bytes, str], at: float) -> Verdict | None:
        """What was found and holds at the time `at`."""
        since, until, verdict = self._kept.get(key, (at, at, None))
        if verdict is None or not since <= at < until:
            return None
        self._kept.move_to_end(key)
        return verdict

    def put(self, key: tuple[bytes, str], since: float, until: float, verdict: Verdict) -> None:
        """Keep it from `since` to before `until`; the one not asked for longest goes."""
        self._kept[key] = (since, until, verdict)
        self._kept.move_to_end(key)
        if len(self._kept) > MAX_VERDICTS:
            self._kept.popitem(last=False)


def verify_chain(chain: Sequence[bytes], name: str, roots: Roots, at: float) -> Verdict:
    """Whether `chain` (DER, the server's own first) is good for `name` under `roots` at the time `at` (Unix, s).

    `name` is a DNS name in ASCII or an address; with "" any name will do. Never raises.
    """
    if not chain:
        return Verdict(False, FAILED, "the server shows no certificate")
    if len(chain) > MAX_CHAIN:
        return Verdict(False, FAILED, f"the server shows more than {MAX_CHAIN} certificates")
    key = (b"".join(sha256(der).digest() for der in chain), name)
    verdict = roots.verdicts.get(key, at)
    if verdict is None:
        with quiet():
            verdict, until = _judge(chain, name, roots, at)
        roots.verdicts.put(key, at, until, verdict)
    return verdict


def _judge(chain: Sequence[bytes], name: str, roots: Roots, at: float) -> tuple[Verdict, float]:
    """The verdict, and until when it may be kept: FRESH, or a date of one of the certificates."""
    certificates = []
    for number, der in enumerate(chain, 1):
        try:
            certificates.append(read(der))
        except ValueError as error:
            return Verdict(False, FAILED, f"certificate {number} of {len(chain)}: {error}"), at + FRESH
    leaf = certificates[0]
    now = datetime.fromtimestamp(at, UTC)
    try:
        trusted_at = min(max(now, leaf.not_valid_before_utc), leaf.not_valid_after_utc)  # dates are a problem apart
        problems = [  # in OpenSSL's order: the first is what the result is called after
            _flaw(leaf, _leaf_use),
            _trouble_with_path(certificates, roots, trusted_at),
            _misnamed(leaf, name),
            _out_of_date(leaf, now),
        ]
    except Exception as error:  # what can't be understood is not verified
        problems = [(FAILED, f"the certificate can't be verified: {printable(str(error), 200)}")]
    found = [problem for problem in problems if problem is not None]
    turns = [turn for certificate in certificates for turn in _turns(certificate)]
    until = min([at + FRESH, *(turn for turn in turns if turn > at)])
    if not found:
        return Verdict(True), until
    return Verdict(False, found[0][0], "; ".join(why for _, why in found)), until


def _turns(certificate: x509.Certificate) -> tuple[float, ...]:
    """When a verdict on it may become another one; none if its dates are none (there is no year 0)."""
    try:
        return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    except ValueError:
        return ()


# ------------------------------------------------------------------------------------------------- the path


def _trouble_with_path(certificates: list[x509.Certificate], roots: Roots, at: datetime) -> Problem | None:
    """None if there is a path from the first certificate through some of the others to a root."""
    every = verification.ExtensionPolicy.permit_all()
    either = verification.Criticality.AGNOSTIC
    verifier = (
        verification.PolicyBuilder()
        .store(roots.store)
        .time(at)
        .extension_policies(
            ee_policy=every,
            ca_policy=every.require_present(x509.BasicConstraints, either, _check_authority),
        )
        .build_client_verifier()  # the one that leaves the name to us; all its rules about clients are set aside
    )
    try:
        verifier.verify(certificates[0], certificates[1:])
    except verification.VerificationError as error:
        return _why_no_path(certificates, roots, at, str(error))
    return None


def _check_authority(_policy: verification.Policy, issuer: x509.Certificate, _basic: x509.BasicConstraints) -> None:
    """What is asked about each issuer beside what the library asks; ValueError: there is no path through it."""
    if flaw := _flaw(issuer, _authority_use):
        raise ValueError(flaw[1])


def _why_no_path(certificates: list[x509.Certificate], roots: Roots, at: datetime, said: str) -> Problem:
    """Goes the way a path would go, to where it ends. `said` is what the library gave as its reason."""
    current = certificates[0]
    checks = _SIGNATURES
    while True:  # as long as there are signatures to be checked
        named = [one for one in (*roots.all, *certificates) if one.subject == current.issuer and one != current]
        named = named[:checks]
        checks -= len(named)
        if not named:
            break
        if weak := _weak_signature(current):
            return NOT_TRUSTED, weak if current is certificates[0] else f"issuer {_shown(current.subject)}: {weak}"
        issuer = next((one for one in named if _signed(current, one)), None)
        if issuer is None and current.subject == current.issuer:
            break
        if issuer is None:
            return NOT_TRUSTED, f"not signed by the {_shown(current.issuer)} that is known"
        if problem := _out_of_date(issuer, at) or _no_authority(issuer):
            return problem[0], f"issuer {_shown(issuer.subject)}: {problem[1]}"
        current = issuer
        if issuer in roots.all:
            break
    if current in roots.all or not checks:  # the path is there, and something about it is not as it must be
        return NOT_TRUSTED, "no path to a trusted certificate: " + printable(said, 200)
    if current.subject != current.issuer:
        return NOT_TRUSTED, f"issued by {_shown(current.issuer)}, which is not trusted"
    if current is certificates[0]:
        return NOT_TRUSTED, "self-signed"
    return NOT_TRUSTED, f"issued under {_shown(current.subject)}, which is self-signed and not trusted"


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # a wrong signature, or one of a kind that is not known
        return False
    return True


def _no_authority(issuer: x509.Certificate) -> Problem | None:
    basic = _extension(issuer, x509.BasicConstraints)
    if basic is None or not basic.ca:
        return NOT_TRUSTED, "not a CA (basicConstraints)"
    return _flaw(issuer, _authority_use)


# ------------------------------------------------------------------------------------------------- one certificate


def _flaw(certificate: x509.Certificate, use: Callable[[x509.KeyUsage], bool]) -> Problem | None:
    """A key that is weak or too large, or not for this (RFC 5280 §4.2.1); `use` says whether keyUsage will do."""
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        weak = "" if _RSA_BITS[0] <= key.key_size <= _RSA_BITS[1] else f"RSA with {key.key_size} bits"
    elif isinstance(key, ec.EllipticCurvePublicKey):
        weak = f"curve {key.curve.name}" if key.curve.key_size < _CURVE_BITS else ""
    else:
        good = isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey)
        weak = "" if good else "neither RSA nor an elliptic curve"
    if weak:
        return NOT_TRUSTED, f"unfit key: {weak}"
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    if purposes is not None and ExtendedKeyUsageOID.SERVER_AUTH not in purposes:
        return NOT_TRUSTED, "not for TLS servers (extendedKeyUsage)"
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not use(usage):
        return NOT_TRUSTED, "not for this use (keyUsage)"
    return None


def _leaf_use(usage: x509.KeyUsage) -> bool:
    return usage.digital_signature or usage.key_encipherment or usage.key_agreement


def _authority_use(usage: x509.KeyUsage) -> bool:
    return usage.key_cert_sign


def _extension(certificate: x509.Certificate, kind: type[Extension]) -> Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _weak_signature(certificate: x509.Certificate) -> str:
    digest = certificate.signature_hash_algorithm
    return f"weak signature: {digest.name}" if digest is not None and digest.name in _WEAK_DIGESTS else ""


def _out_of_date(certificate: x509.Certificate, now: datetime) -> Problem | None:
    if now > certificate.not_valid_after_utc:
        return EXPIRED, f"expired at {moment(certificate.not_valid_after_utc)}"
    if now < certificate.not_valid_before_utc:  # RFC 8460 has no name for it
        return NOT_TRUSTED, f"not valid before {moment(certificate.not_valid_before_utc)}"
    return None


def _misnamed(leaf: x509.Certificate, name: str) -> Problem | None:
    """RFC 9525 §6: an address is one of its addresses; a name is one of its names, or fits one with a wildcard."""
    if not name:
        return None
    hosts, addresses = names_of(leaf)
    try:
        if ipaddress.ip_address(name) in addresses:
            return None
    except ValueError:
        wanted = name.lower().removesuffix(".")
        if any(fits(wanted, host.lower()) for host in hosts):
            return None
    has = [printable(text, 100) for text in (*hosts, *map(str, addresses))]
    if not has:
        return HOST_MISMATCH, f"not for {name}: it has no name (subjectAltName)"
    more = f" and {len(has) - _NAMES_SHOWN} more" if len(has) > _NAMES_SHOWN else ""
    return HOST_MISMATCH, f"not for {name} but for {', '.join(has[:_NAMES_SHOWN])}{more}"


def fits(name: str, host: str) -> bool:
    """A `*` stands for the whole first label and nothing else, and not right under a top-level domain."""
    if not host.startswith("*."):
        return name == host
    first, _, rest = name.partition(".")
    return bool(first) and rest == host[2:] and "." in rest


def _shown(name: x509.Name) -> str:
    return printable(name.rfc4514_string(), 100)


# ------------------------------------------------------------------------------------------------- OpenSSL

# OpenSSL's x509_vfy.h: what a refused handshake says.
_CODES: dict[int, Problem] = {
    9: (NOT_TRUSTED, "not valid yet"),
    10: (EXPIRED, "expired"),
    18: (NOT_TRUSTED, "self-signed"),
    19: (NOT_TRUSTED, "issued under a CA that is self-signed and not trusted"),
    **dict.fromkeys((2, 20, 21), (NOT_TRUSTED, "its issuer is not trusted")),
    7: (NOT_TRUSTED, "a signature is wrong"),
    **dict.fromkeys((24, 79), (NOT_TRUSTED, "an issuer is not a CA")),
    26: (NOT_TRUSTED, "not for TLS servers"),
    **dict.fromkeys((66, 67), (NOT_TRUSTED, "weak key")),
    68: (NOT_TRUSTED, "weak signature"),
    **dict.fromkeys((62, 64), (HOST_MISMATCH, "")),
}


def openssl_verdict(error: ssl.SSLCertVerificationError) -> Verdict:
    """The verdict of a handshake that OpenSSL refused because of the certificate."""
    code: int = getattr(error, "verify_code", 0)  # not there if Python itself refused
    said = printable(str(getattr(error, "verify_message", "") or error), 200)
    result, why = _CODES.get(code, (NOT_TRUSTED if code else FAILED, said))
    return Verdict(False, result, why or said)
