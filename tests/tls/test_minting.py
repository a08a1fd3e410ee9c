"""Certificates made after a server's: what is taken over, what never is, and what clients make of them."""

import contextlib
import ipaddress
import ssl
import warnings
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.tls import minting
from smtpproxy.tls.authority import Authority, create
from smtpproxy.tls.minting import (
    BACKDATED,
    DAY,
    MOST_ATTRIBUTES,
    MOST_NAMES,
    KeyPair,
    Leaf,
    Likeness,
    checked,
    likeness,
    likeness_of,
    mint,
    self_signed,
)

NOW = int(datetime.now(UTC).timestamp())  # OpenSSL looks at the clock itself
SUBJECT = (("2.5.4.6", "DE"), ("2.5.4.10", "Müller & Söhne"), ("2.5.4.3", "mx.example"))
LIKE = Likeness(("mx.example", "*.mail.example", "192.0.2.1", "2001:db8::1"), SUBJECT, NOW - 40 * DAY, NOW + 60 * DAY)
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return create(tmp_path_factory.mktemp("ca"), "test CA", 3650)


def certificate(
    names: Sequence[x509.GeneralName] = (x509.DNSName("mx.example"),),
    subject: Iterable[tuple[str, str]] = SUBJECT,
    before: int = NOW - DAY,
    after: int = NOW + 30 * DAY,
    *others: x509.ExtensionType,
) -> bytes:
    """A server's, as odd as wanted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is meant to be odd
        parts = [x509.NameAttribute(x509.ObjectIdentifier(kind), text, None, _validate=False) for kind, text in subject]
    name = x509.Name(parts)
    builder = (
        x509.CertificateBuilder(name, name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(before, UTC))
        .not_valid_after(datetime.fromtimestamp(after, UTC))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension in others:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def minted(ca: Authority, like: Likeness = LIKE, now: float = NOW, days: int = 30) -> x509.Certificate:
    return x509.load_der_x509_certificate(mint(ca, like, KeyPair().spki, now, days))


def leaf_of(ca: Authority, like: Likeness) -> Leaf:
    pair = KeyPair()
    return pair.leaf(mint(ca, like, pair.spki, NOW, 30), ca.pem)


def shake_hands(leaf: Leaf, trusted: bytes, name: str, tmp_path: Path) -> None:
    """What a client that verifies does; ssl.SSLCertVerificationError if it is not content."""
    (tmp_path / "leaf.pem").write_bytes(leaf.key + leaf.chain)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "leaf.pem")
    client = ssl.create_default_context(cadata=trusted.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname=name), server.wrap_bio(up, down, server_side=True)]
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    assert ends[0].version() == "TLSv1.3"


# ------------------------------------------------------------------------------------------- what is taken over


def test_names_subject_and_validity_are_taken_over() -> None:
    names = [
        x509.DNSName("MX.example"),
        x509.DNSName("*.mail.example"),
        x509.DNSName("mx.example"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
        x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
    ]
    assert likeness(certificate(names, SUBJECT, NOW - 40 * DAY, NOW + 60 * DAY)) == LIKE._replace(
        names=("mx.example", "*.mail.example", "192.0.2.1", "2001:db8::1")
    )


def test_somebody_elses_certificate_is_understood() -> None:
    issued = trustme.CA().issue_cert("mx.example", "192.0.2.1")
    der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
    assert likeness(der).names == ("mx.example", "192.0.2.1")


@pytest.mark.parametrize(
    "name",
    [
        "*",
        "*.example",
        "a.*.example",
        "mx*.example",
        "mx..example",
        ".example",
        "mx.example.",
        "mx example",
        "-mx.example",
        "mx.example\0.evil.example",
        "mx.example\r\nX",
        "192.0.2.1",
        "1.2.3",
        "2001:db8::1",
        "a" * 64 + ".example",
        ".".join(["a" * 60] * 5),
        "",
    ],
)
def test_what_is_no_name_is_left_out(name: str) -> None:
    """An address among the DNS names is none: it must not become one."""
    like = likeness(certificate([x509.DNSName("mx.example"), x509.DNSName(name)]))
    assert like.names == ("mx.example",)
    with pytest.raises(ValueError, match="neither"):
        checked(like._replace(names=(name, "")))


@pytest.mark.parametrize("name", ["mx", "a-b.example", "mail_1.example", "xn--mx-via.example", "a" * 63 + ".example"])
def test_names_that_hosts_have_are_taken(name: str) -> None:
    assert likeness(certificate([x509.DNSName(name)])).names == (name,)


def test_names_of_other_kinds_are_left_out() -> None:
    others = [
        x509.RFC822Name("a@mx.example"),
        x509.UniformResourceIdentifier("https://mx.example/"),
        x509.DirectoryName(x509.Name([])),
        x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"),
    ]
    assert likeness(certificate(others)).names == ()
    assert likeness(certificate([])).names == ()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("2.5.4.3", "a" * 65),
        ("2.5.4.3", ""),
        ("2.5.4.3", "a\nb"),
        ("2.5.4.3", "a\u202eb"),
        ("2.5.4.6", "de"),
        ("2.5.4.6", "DEU"),
        ("2.5.4.5", "1" * 65),
        ("1.2.840.113549.1.9.1", "ä@example"),
        ("2.5.4.4", "surname"),
        ("1.2.3.4", "unheard of"),
    ],
)
def test_odd_parts_of_a_subject_are_left_out(kind: str, value: str) -> None:
    assert likeness(certificate(subject=[("2.5.4.10", "Ours"), (kind, value)])).subject == (("2.5.4.10", "Ours"),)
    with pytest.raises(ValueError, match="subject"):
        checked(LIKE._replace(subject=((kind, value),)))


def test_a_subject_has_a_bound() -> None:
    part = ("2.5.4.11", "unit")
    assert len(likeness(certificate(subject=[part] * 30)).subject) == MOST_ATTRIBUTES
    with pytest.raises(ValueError, match="subject"):
        checked(LIKE._replace(subject=(part,) * (MOST_ATTRIBUTES + 1)))


def test_too_many_names_are_refused() -> None:
    """Leaving some out could leave out the one that counts."""
    names = [x509.DNSName(f"mx{number}.example") for number in range(MOST_NAMES + 1)]
    assert len(likeness(certificate(names[:-1])).names) == MOST_NAMES
    with pytest.raises(ValueError, match="more than 250 names"):
        likeness(certificate(names))
    long = [x509.DNSName(f"{number:03}." + ".".join(["a" * 60] * 4)) for number in range(200)]
    with pytest.raises(ValueError, match="very long"):
        likeness(certificate(long))


def test_a_huge_certificate_is_not_looked_at() -> None:
    with pytest.raises(ValueError, match="octets"):
        likeness(bytes(minting.LARGEST + 1))


_GOOD = certificate()


@given(st.data())
def test_whatever_a_server_shows_is_understood_or_a_value_error(data: st.DataObject) -> None:
    """Everything from peers is hostile. What comes through is fit to be minted."""
    spoilt = bytearray(_GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    try:
        like = likeness(bytes(spoilt[: data.draw(st.integers(0, len(spoilt)))] if data.draw(st.booleans()) else spoilt))
    except ValueError:
        return
    assert checked(like) == like
    self_signed(like, NOW, 30)


@given(st.binary(max_size=300))
def test_garbage_is_a_value_error(garbage: bytes) -> None:
    with pytest.raises(ValueError, match="can't be read"):
        likeness(garbage)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("mx.example", "mx.example"),
        ("MX.Example.", "mx.example"),
        ("mail_1", "mail_1"),
        ("müller.example", "xn--mller-kva.example"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
    ],
)
def test_a_server_without_a_certificate_is_certified_by_its_name(host: str, name: str) -> None:
    like = likeness_of(host, NOW)
    assert checked(like) == like
    assert like.names == (name,)
    assert like.subject == (("2.5.4.3", name),)
    assert like.not_before < NOW < like.not_after


def test_a_name_too_long_for_a_subject_is_among_the_names_alone(ca: Authority, tmp_path: Path) -> None:
    like = likeness_of("a" * 60 + ".mail.example", NOW)
    assert like.subject == ()
    shake_hands(leaf_of(ca, like), ca.pem, like.names[0], tmp_path)


@pytest.mark.parametrize("host", ["", "mx example", "fe80::1%lo", "a..b", "a" * 300, "192.0.2", "\udc80"])
def test_what_is_no_host_is_certified_by_nothing(host: str) -> None:
    with pytest.raises(ValueError, match="not the name of a host"):
        likeness_of(host, NOW)


# ------------------------------------------------------------------------------------------------------- minted


def test_a_minted_certificate_has_the_servers_names_and_subject(ca: Authority) -> None:
    found = minted(ca)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["mx.example", "*.mail.example"]
    assert [str(one) for one in names.value.get_values_for_type(x509.IPAddress)] == ["192.0.2.1", "2001:db8::1"]
    assert not names.critical
    assert tuple((part.oid.dotted_string, part.value) for part in found.subject) == SUBJECT
    assert found.issuer == ca.certificate.subject
    found.verify_directly_issued_by(ca.certificate)


def test_a_minted_certificate_is_a_servers_and_nothing_else(ca: Authority) -> None:
    """RFC 5280 §4.2.1; the CA's key is never a leaf's."""
    first, second = minted(ca), minted(ca)
    get = first.extensions.get_extension_for_class
    assert get(x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
    assert get(x509.BasicConstraints).critical
    usage = get(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign
    assert list(get(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    own = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert get(x509.AuthorityKeyIdentifier).value.key_identifier == own.digest
    assert get(x509.SubjectKeyIdentifier).value == x509.SubjectKeyIdentifier.from_public_key(first.public_key())
    assert first.serial_number != second.serial_number
    assert first.serial_number.bit_length() > 64
    assert len({_der(one) for one in (first, second, ca.certificate)}) == 3


@pytest.mark.parametrize(
    ("before", "after", "days", "gives"),
    [
        (-40, 60, 30, (-1, 30)),  # no longer than we certify
        (-40, 7, 30, (-1, 7)),  # no longer than the server's
        (-40, 6000, 5000, (-1, 3650)),  # no longer than the CA
        (0, 7, 30, (0, 7)),  # no earlier than the server's
        (1, 7, 30, (1, 7)),  # what is not valid yet is not made so
    ],
)
def test_the_time_is_the_servers_within_bounds(
    ca: Authority, before: int, after: int, days: int, gives: tuple[int, int]
) -> None:
    like = LIKE._replace(not_before=NOW + before * DAY, not_after=NOW + after * DAY)
    found = minted(ca, like, days=days)
    times = [found.not_valid_before_utc.timestamp() - NOW, found.not_valid_after_utc.timestamp() - NOW]
    assert times == pytest.approx([days * DAY for days in gives], abs=3600)  # the CA was made a while after NOW
    assert found.not_valid_after_utc.timestamp() <= min(like.not_after, ca.not_after)
    assert found.not_valid_before_utc.timestamp() >= ca.not_before


@pytest.mark.parametrize("name", ["mx.example", "a.mail.example", "192.0.2.1", "2001:db8::1"])
def test_a_client_that_trusts_the_ca_is_content(ca: Authority, name: str, tmp_path: Path) -> None:
    leaf = leaf_of(ca, LIKE)
    assert leaf.chain.count(b"BEGIN CERTIFICATE") == 2
    shake_hands(leaf, ca.pem, name, tmp_path)


@pytest.mark.parametrize("name", ["other.example", "mail.example", "192.0.2.2"])
def test_a_client_finds_no_other_name_in_it(ca: Authority, name: str, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
        shake_hands(leaf_of(ca, LIKE), ca.pem, name, tmp_path)


def test_without_a_subject_the_names_are_critical(ca: Authority, tmp_path: Path) -> None:
    """RFC 5280 §4.2.1.6."""
    like = LIKE._replace(subject=())
    assert minted(ca, like).extensions.get_extension_for_class(x509.SubjectAlternativeName).critical
    shake_hands(leaf_of(ca, like), ca.pem, "mx.example", tmp_path)


@pytest.mark.parametrize("name", ["bank.example", "Bank.Example", " bank.example ", "192.0.2.9", "localhost"])
def test_a_common_name_is_not_another_name(ca: Authority, name: str, tmp_path: Path) -> None:
    """H3. With addresses alone among the names, OpenSSL looks for a host's in the common name."""
    like = LIKE._replace(names=("192.0.2.1",), subject=(("2.5.4.10", "Ours"), ("2.5.4.3", name)))
    found = minted(ca, like)
    assert [part.oid for part in found.subject] == [NameOID.ORGANIZATION_NAME]
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(leaf_of(ca, like), ca.pem, name.strip(), tmp_path)


def test_a_common_name_that_is_no_hosts_stays(ca: Authority) -> None:
    like = LIKE._replace(subject=(("2.5.4.3", "Mail Server No 1"),))
    assert minted(ca, like).subject.rfc4514_string() == "CN=Mail Server No 1"


def test_every_kind_of_subject_can_be_minted(ca: Authority) -> None:
    """What `likeness` lets through the library must be able to write, as long as it may be."""
    for kind, (longest, alphabet) in minting._KINDS.items():
        value = "A" * longest if alphabet else "ü" * (longest // 2)
        found = minted(ca, LIKE._replace(subject=((kind, value),)))
        assert [part.value for part in found.subject] == [value]
        assert likeness(found.public_bytes(Encoding.DER)).subject == ((kind, value),)


def _der(key: object) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("spki", "why"),
    [
        (b"", "not a public key"),
        (bytes(91), "not a public key"),
        (KeyPair().spki[:-1] + b"\0", "not a public key"),  # no point of the curve
        (KeyPair().spki + b"\0", "not a public key"),
        (_der(ec.generate_private_key(ec.SECP384R1())), "not a P-256 key"),
        (_der(ec.generate_private_key(ec.SECP256K1())), "not a P-256 key"),
        (_der(ed25519.Ed25519PrivateKey.generate()), "not a P-256 key"),
        (_der(rsa.generate_private_key(65537, 2048)), "not a P-256 key"),
    ],
    ids=["empty", "zeros", "off the curve", "too long", "P-384", "secp256k1", "Ed25519", "RSA"],
)
def test_nothing_is_signed_but_a_leafs_key(ca: Authority, spki: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        mint(ca, LIKE, spki, NOW, 30)


def test_the_cas_own_key_is_not_a_leafs(ca: Authority) -> None:
    own = ca.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(ValueError, match="the CA's own key"):
        mint(ca, LIKE, own, NOW, 30)


@pytest.mark.parametrize(
    ("like", "now", "why"),
    [
        (LIKE._replace(names=()), NOW, "without names"),
        (LIKE._replace(names=("mx example",)), NOW, "neither"),
        (LIKE._replace(not_after=NOW), NOW, "server's certificate has expired"),
        (LIKE._replace(not_before=LIKE.not_after), NOW, "server's certificate has expired"),
        (LIKE._replace(not_after=10**18), NOW, "the time"),
        (LIKE._replace(not_before=-(10**18)), NOW, "the time"),
        (LIKE, NOW + 4000 * DAY, "the CA's certificate has expired"),
    ],
    ids=["no name", "bad name", "over", "never", "late", "early", "CA over"],
)
def test_what_should_not_be_is_not_signed(ca: Authority, like: Likeness, now: float, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        mint(ca, like, KeyPair().spki, now, 30)


# -------------------------------------------------------------------------------------------------- self-signed


def test_a_self_signed_certificate_is_refused_by_who_verifies(ca: Authority, tmp_path: Path) -> None:
    """H2, H11: even if the server gives itself the CA's name."""
    plain = self_signed(LIKE, NOW, 30)
    assert plain.chain.count(b"BEGIN CERTIFICATE") == 1
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        shake_hands(plain, ca.pem, "mx.example", tmp_path)
    name = tuple((part.oid.dotted_string, str(part.value)) for part in ca.certificate.subject)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(self_signed(LIKE._replace(subject=name), NOW, 30), ca.pem, "mx.example", tmp_path)


def test_a_self_signed_certificate_is_like_the_servers(tmp_path: Path) -> None:
    leaf = self_signed(LIKE, NOW, 30)
    found = x509.load_pem_x509_certificate(leaf.chain)
    like = likeness(found.public_bytes(Encoding.DER))
    assert like == LIKE._replace(not_before=NOW - BACKDATED, not_after=NOW + 30 * DAY)
    assert found.issuer == found.subject
    shake_hands(leaf, leaf.chain, "mx.example", tmp_path)  # who pins this very certificate is content


def test_a_self_signed_certificate_has_expired_when_the_servers_has() -> None:
    """The client sees what is the matter."""
    like = LIKE._replace(not_before=NOW - 60 * DAY, not_after=NOW - 30 * DAY)
    found = x509.load_pem_x509_certificate(self_signed(like, NOW, 30).chain)
    assert found.not_valid_after_utc.timestamp() == like.not_after


@pytest.mark.parametrize("times", [(0, -DAY * 365 * 10), (2**33, 2**32), (253_402_300_799,) * 2, (-631_152_000,) * 2])
def test_a_self_signed_certificate_can_always_be_made(times: tuple[int, int], tmp_path: Path) -> None:
    like = Likeness((), (), *times)
    found = x509.load_pem_x509_certificate(self_signed(like, NOW, 30).chain)
    assert found.subject.rfc4514_string() == "CN=unnamed"
    long = Likeness(("a" * 60 + ".mail.example",), (), *times)
    assert x509.load_pem_x509_certificate(self_signed(long, NOW, 30).chain).subject.rfc4514_string() == "CN=unnamed"
    short = Likeness(("mx.example",), (), *times)
    assert x509.load_pem_x509_certificate(self_signed(short, NOW, 30).chain).subject.rfc4514_string() == "CN=mx.example"


# ---------------------------------------------------------------------------------------------------------- keys


def test_a_key_is_not_printed(ca: Authority) -> None:
    """I8."""
    pair = KeyPair()
    leaf = pair.leaf(mint(ca, LIKE, pair.spki, NOW, 30), ca.pem)
    assert leaf.key.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert repr(leaf) == "<Leaf, 2 certificates>"
    assert "BEGIN" not in f"{leaf}{pair!r}{ca!r}"


def test_only_its_own_certificate_goes_with_a_key(ca: Authority) -> None:
    pair = KeyPair()
    with pytest.raises(ValueError, match="another key"):
        pair.leaf(mint(ca, LIKE, KeyPair().spki, NOW, 30), ca.pem)
    with pytest.raises(ValueError, match="can't be read"):
        pair.leaf(b"garbage", ca.pem)
    rsas = trustme.CA(key_type=trustme.KeyType.RSA)
    der = ssl.PEM_cert_to_DER_cert(rsas.cert_pem.bytes().decode())
    with pytest.raises(ValueError, match="can't be read"):
        pair.leaf(der, ca.pem)
