"""DANE: which certificates fit which TLSA records (RFC 6698, 7671, 7672)."""

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256, sha512

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.tls.dane import MOST, TLSA, check_dane, key_of, usable
from smtpproxy.tls.verdict import EXPIRED, FAILED, HOST_MISMATCH, NOT_TRUSTED, TLSA_INVALID, Verdict

NAME = "mx.example.com"
NOW = datetime.now(UTC)
AT = NOW.timestamp()
OK = Verdict(True)
CA = trustme.CA()
MIDDLE = CA.create_child_ca()
OTHER = trustme.CA()


def der(pem: bytes) -> bytes:
    """PEM to DER."""
    return ssl.PEM_cert_to_DER_cert(pem.decode())


def chain_of(authority: trustme.CA, name: str = NAME, since: int = 0, until: int = 9) -> list[bytes]:
    """What a server shows whose certificate is of `authority`; the dates in days from now."""
    issued = authority.issue_cert(name, not_before=NOW + timedelta(days=since), not_after=NOW + timedelta(days=until))
    shown = [der(pem.bytes()) for pem in issued.cert_chain_pems]
    return shown if authority is OTHER else [*shown, der(CA.cert_pem.bytes())]


CHAIN = chain_of(MIDDLE)
LEAF, ISSUER, ROOT = CHAIN
EXPIRED_CHAIN = chain_of(MIDDLE, since=-9, until=-2)
EARLY_CHAIN = chain_of(MIDDLE, since=2)
STRANGER = chain_of(OTHER)


def key(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo, as somebody else reads it."""
    public = x509.load_der_x509_certificate(certificate).public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def record(usage: int, selector: int, matching: int, certificate: bytes) -> TLSA:
    """The record for a certificate."""
    data = certificate if selector == 0 else key(certificate)
    return TLSA(usage, selector, matching, {0: data, 1: sha256(data).digest(), 2: sha512(data).digest()}[matching])


EVERY_FORM = [(selector, matching) for selector in (0, 1) for matching in (0, 1, 2)]


# ------------------------------------------------------------------------------------------------- usage 3


@pytest.mark.parametrize(("selector", "matching"), EVERY_FORM)
def test_the_leaf_is_named(selector: int, matching: int) -> None:
    assert check_dane([record(3, selector, matching, LEAF)], CHAIN, NAME, AT) == OK
    verdict = check_dane([record(3, selector, matching, LEAF)], STRANGER, NAME, AT)
    assert (verdict.verified, verdict.result) == (False, TLSA_INVALID)


@pytest.mark.parametrize("chain", [EXPIRED_CHAIN, EARLY_CHAIN, chain_of(MIDDLE, "other.example"), chain_of(OTHER)])
def test_a_leaf_that_is_named_needs_no_dates_no_name_and_no_authority(chain: list[bytes]) -> None:
    """RFC 7671 §5.1."""
    assert check_dane([record(3, 1, 1, chain[0])], chain, NAME, AT) == OK
    assert check_dane([record(3, 1, 1, chain[0])], chain[:1], "", AT) == OK


def test_usage_3_is_about_the_leaf_only() -> None:
    verdict = check_dane([record(3, 0, 1, ISSUER), record(3, 1, 1, ROOT)], CHAIN, NAME, AT)
    assert verdict.result == TLSA_INVALID


def test_one_of_several_records_is_enough() -> None:
    """As while a key is changed (RFC 7671 §8.1)."""
    records = [record(3, 1, 1, STRANGER[0]), record(2, 0, 1, STRANGER[0]), record(3, 1, 1, LEAF)]
    assert check_dane(records, CHAIN, NAME, AT) == OK


# ------------------------------------------------------------------------------------------------- usage 2


@pytest.mark.parametrize(("selector", "matching"), EVERY_FORM)
@pytest.mark.parametrize("anchor", [ISSUER, ROOT])
def test_an_issuer_is_named(selector: int, matching: int, anchor: bytes) -> None:
    """Also one that is no root: the anchor need not be self-signed."""
    assert check_dane([record(2, selector, matching, anchor)], CHAIN, NAME, AT) == OK


def test_an_anchor_that_the_record_holds_need_not_be_shown() -> None:
    assert check_dane([record(2, 0, 0, ROOT)], CHAIN[:2], NAME, AT) == OK
    assert check_dane([record(2, 0, 0, ISSUER)], CHAIN[:1], NAME, AT) == OK
    assert check_dane([record(2, 0, 0, ROOT)], CHAIN[:1], NAME, AT).result == NOT_TRUSTED


def test_an_anchor_by_digest_or_key_must_be_shown() -> None:
    for selector, matching in EVERY_FORM[1:]:
        verdict = check_dane([record(2, selector, matching, ROOT)], CHAIN[:2], NAME, AT)
        assert (verdict.verified, verdict.result) == (False, TLSA_INVALID)


@pytest.mark.parametrize(
    ("chain", "name", "result"),
    [
        (EXPIRED_CHAIN, NAME, EXPIRED),
        (EARLY_CHAIN, NAME, NOT_TRUSTED),
        (CHAIN, "mx.example.net", HOST_MISMATCH),
        (chain_of(MIDDLE, "example.com"), NAME, HOST_MISMATCH),
        (CHAIN, "", HOST_MISMATCH),
        ([STRANGER[0], ISSUER, ROOT], NAME, NOT_TRUSTED),
        ([STRANGER[0], *CHAIN], NAME, NOT_TRUSTED),
        ([LEAF, ROOT], NAME, NOT_TRUSTED),
        ([ISSUER, ROOT], NAME, HOST_MISMATCH),
        ([ROOT, ROOT], NAME, TLSA_INVALID),
    ],
)
def test_usage_2_checks_the_way_the_name_and_the_dates(chain: list[bytes], name: str, result: str) -> None:
    """What an attacker may show beside a certificate of his own: the real issuers, and the real leaf too."""
    verdict = check_dane([record(2, 0, 1, ROOT)], chain, name, AT)
    assert (verdict.verified, verdict.result) == (False, result)
    assert verdict.why


def test_a_wildcard_certificate_under_a_named_issuer() -> None:
    assert check_dane([record(2, 1, 1, ROOT)], chain_of(MIDDLE, "*.example.com"), NAME, AT) == OK


def test_the_leaf_is_no_anchor() -> None:
    """Usage 2 names who issued it; what names the leaf is usage 3."""
    for named in (record(2, 0, 1, LEAF), record(2, 0, 0, LEAF), record(2, 1, 1, LEAF)):
        assert check_dane([named], CHAIN, NAME, AT).result == TLSA_INVALID
        assert check_dane([named], [LEAF, LEAF], NAME, AT).result == TLSA_INVALID


def test_an_issuer_that_cannot_be_read_is_no_anchor() -> None:
    broken = b"\x30\x03\x02\x01\x01"
    hashed = TLSA(2, 0, 1, sha256(broken).digest())
    assert check_dane([hashed], [LEAF, broken], NAME, AT).result == TLSA_INVALID
    shown = [LEAF, ISSUER, broken, ROOT]
    assert check_dane([hashed], shown, NAME, AT).result == TLSA_INVALID
    assert not check_dane([TLSA(2, 1, 1, sha256(b"").digest())], [LEAF, broken], NAME, AT).verified


# ------------------------------------------------------------------------------------------------- usable


@pytest.mark.parametrize(
    "bad",
    [
        TLSA(0, 0, 1, bytes(32)),
        TLSA(1, 1, 1, bytes(32)),
        TLSA(4, 1, 1, bytes(32)),
        TLSA(255, 1, 1, bytes(32)),
        TLSA(3, 2, 1, bytes(32)),
        TLSA(3, 1, 3, bytes(32)),
        TLSA(3, 1, 1, bytes(31)),
        TLSA(3, 1, 1, bytes(64)),
        TLSA(3, 1, 2, bytes(32)),
        TLSA(3, 1, 1, b""),
        TLSA(3, 1, 0, b""),
        TLSA(3, 0, 0, b""),
        TLSA(3, 0, 0, LEAF[:-1]),
        TLSA(3, 0, 0, LEAF + b"\x00"),
        TLSA(3, 0, 0, key(LEAF)),
        TLSA(3, 1, 0, key(LEAF) + b"\x00"),
        TLSA(3, 1, 0, b"\x31\x00"),
    ],
)
def test_a_record_that_cannot_be_checked_is_unusable(bad: TLSA) -> None:
    good = record(3, 1, 1, LEAF)
    assert usable([bad]) == ()
    assert usable([bad, good, bad, good]) == (good,)
    verdict = check_dane([bad], CHAIN, NAME, AT)
    assert verdict == Verdict(False, TLSA_INVALID, "no usable TLSA record")


def test_the_weaker_digest_does_not_count_beside_the_stronger() -> None:
    """RFC 7671 §9: else who can break the weaker one has broken both. Of the same usage and selector only."""
    weak, strong = record(3, 1, 1, LEAF), record(3, 1, 2, STRANGER[0])
    assert usable([weak, strong]) == (strong,)
    assert not check_dane([weak, strong], CHAIN, NAME, AT).verified
    assert check_dane([weak, record(3, 0, 2, STRANGER[0])], CHAIN, NAME, AT).verified
    assert check_dane([weak, record(2, 1, 2, STRANGER[0])], CHAIN, NAME, AT).verified
    assert check_dane([record(3, 1, 0, LEAF), strong], CHAIN, NAME, AT).verified
    assert check_dane([weak, TLSA(3, 1, 2, b"broken")], CHAIN, NAME, AT).verified


def test_records_are_looked_at_up_to_a_bound() -> None:
    many = [TLSA(3, 1, 1, number.to_bytes(32, "big")) for number in range(MOST)]
    assert len(usable([*many, record(3, 1, 1, LEAF)])) == MOST
    verdict = check_dane(many, CHAIN, NAME, AT)
    assert "3 1 1 00000000…" in verdict.why
    assert "and 97 more" in verdict.why


def test_no_records_and_no_certificate() -> None:
    assert check_dane([], CHAIN, NAME, AT).result == TLSA_INVALID
    assert check_dane([record(3, 1, 1, LEAF)], [], NAME, AT) == Verdict(
        False, FAILED, "the server shows no certificate"
    )


# ------------------------------------------------------------------------------------------------- the key


def _certificate(private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x" * 60)])
    builder = x509.CertificateBuilder(name, name, private.public_key(), 1, NOW, NOW + timedelta(days=1))
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return builder.sign(private, None).public_bytes(Encoding.DER)
    if isinstance(private, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(SHA256()), 32)
        return builder.sign(private, SHA256(), rsa_padding=pss).public_bytes(Encoding.DER)
    return builder.sign(private, SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "private",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65_537, 3072),
    ],
)
def test_the_key_is_found_whatever_its_kind(
    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    certificate = _certificate(private)
    assert key_of(certificate) == key(certificate)


def test_the_keys_of_all_certificates_here() -> None:
    for certificate in (*CHAIN, *STRANGER, *EXPIRED_CHAIN):
        assert key_of(certificate) == key(certificate)


def _wrapped(*elements: bytes) -> bytes:
    inside = b"".join(elements)
    assert len(inside) < 0x80
    return b"\x30" + bytes((len(inside),)) + inside


_EMPTY = b"\x30\x00"
_KEY = b"\x30\x02\x05\x00"
_FIELDS = (b"\x02\x01\x01", _EMPTY, _EMPTY, _EMPTY, _EMPTY, _KEY)


def test_a_certificate_without_a_version_has_its_key_one_place_further_on() -> None:
    """Version 1: the field is not there (RFC 5280 §4.1.2.1)."""
    assert key_of(_wrapped(_wrapped(*_FIELDS))) == _KEY
    assert key_of(_wrapped(_wrapped(b"\xa0\x03\x02\x01\x02", *_FIELDS))) == _KEY


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x30",
        b"\x30\x00",
        b"\x31\x00",
        b"\x30\x80" + _wrapped(*_FIELDS) + b"\x00\x00",  # indefinite length: BER
        b"\x30\x81\x16" + _wrapped(*_FIELDS),  # a length that fits one octet, in two
        b"\x30\x82\x00\x16" + _wrapped(*_FIELDS),
        b"\x30\x85\x00\x00\x00\x00\x16" + _wrapped(*_FIELDS),
        b"\x30\xff" + bytes(300),
        b"\x30\x84\xff\xff\xff\xff" + _wrapped(*_FIELDS),
        b"\x30\x82\x01",
        _wrapped(_wrapped(*_FIELDS)) + b"\x00",
        _wrapped(_wrapped(*_FIELDS[:5])),
        _wrapped(_wrapped(*_FIELDS[:5]), _KEY),  # behind the end of what it should be in
        _wrapped(_wrapped(*_FIELDS[:5], b"\x30\x7f")),
        _wrapped(_wrapped(*_FIELDS[1:])),
        _wrapped(_wrapped(*_FIELDS[:4], b"\x31\x00", _KEY)),
        _wrapped(_wrapped(b"\xa1\x03\x02\x01\x02", *_FIELDS)),
        LEAF[:-1],
    ],
)
def test_what_is_no_der_has_no_key(octets: bytes) -> None:
    with pytest.raises(ValueError):
        key_of(octets)
    assert not check_dane([record(3, 1, 1, LEAF)], [octets], NAME, AT).verified


_RECORDS = st.lists(
    st.builds(
        TLSA,
        st.integers(0, 4),
        st.integers(0, 2),
        st.integers(0, 3),
        st.binary(max_size=70) | st.sampled_from([LEAF, ROOT, key(LEAF), sha256(ROOT).digest()]),
    ),
    max_size=6,
)
_CHAINS = st.lists(st.binary(max_size=80) | st.sampled_from([LEAF, ISSUER, ROOT, STRANGER[0]]), max_size=4)


@given(_RECORDS, _CHAINS)
def test_whatever_is_shown_nothing_is_raised_and_only_what_fits_is_verified(
    records: Sequence[TLSA], chain: Sequence[bytes]
) -> None:
    verdict = check_dane(records, chain, NAME, AT)
    if not verdict.verified:
        assert verdict.result
        assert verdict.why
        return
    named = {one.data for one in records}
    shown = {data for certificate in (*chain, *named) for data in (certificate, sha256(certificate).digest())}
    assert chain[0] == LEAF
    assert named & (shown | {key(LEAF)})
