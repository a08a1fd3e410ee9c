"""What a certificate says: as text that is bounded and printable, whoever made it."""

import hashlib

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from smtpproxy.tls.certificates import MAX_DER, MAX_DN, MAX_NAME, MAX_NAMES, Facts, facts, names_of, printable, read
from tests.tls.maker import alternative, days, made, root

ORGANIZATION = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "o" * 60)
LEAF = made("mx.example", root(), names=["mx.example", "192.0.2.1", "*.example.org", "2001:db8::1"])


def test_all_of_it() -> None:
    found = facts(LEAF.der)
    assert found == Facts(
        subject="CN=mx.example",
        issuer="CN=Root",
        names=("mx.example", "*.example.org", "192.0.2.1", "2001:db8::1"),
        sha256=hashlib.sha256(LEAF.der).hexdigest(),
        not_before=f"{days(-1):%Y-%m-%dT%H:%M:%SZ}",
        not_after=f"{days(30):%Y-%m-%dT%H:%M:%SZ}",
        trouble="",
    )
    assert facts(LEAF.der) is found, "a server shows the same certificate again and again"


def test_somebody_elses_certificate() -> None:
    issued = trustme.CA().issue_cert("mx.example", "192.0.2.1", organization_name='A "B", C')
    der = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes()).public_bytes(serialization.Encoding.DER)
    found = facts(der)
    assert found.names == ("mx.example", "192.0.2.1")
    assert 'O=A \\"B\\"\\, C' in found.subject
    assert found.trouble == ""


def test_without_a_name() -> None:
    found = facts(made("", root()).der)
    assert (found.subject, found.names, found.trouble) == ("", (), "")


def test_many_names_and_long_ones() -> None:
    long = f"{'a' * 60}." * 5 + "example"
    found = facts(made("x", root(), names=[long, *(f"mx{number}.example" for number in range(150))]).der)
    assert len(found.names) == MAX_NAMES
    assert len(found.names[0]) == MAX_NAME
    assert found.names[0].endswith("…")
    assert found.trouble == f"more than {MAX_NAMES} names; a name of more than {MAX_NAME} characters"


def test_a_long_subject() -> None:
    found = facts(made("", root(), subject_name=x509.Name([ORGANIZATION] * 40)).der)
    assert len(found.subject) == MAX_DN
    assert found.issuer == "CN=Root"
    assert found.trouble == f"subject has more than {MAX_DN} characters"


def test_nothing_in_it_reaches_a_terminal_or_ends_a_line() -> None:
    """A name is a peer's text: it must not look like something else in a log."""
    found = facts(made("mx\x1b[2J\r\nQUIT\u202e", root(), names=["a\x1b[2J.example", "b\0.example"]).der)
    assert found.subject == "CN=mx\\1b[2J\\0d\\0aQUIT\\e2\\80\\ae"
    assert found.names == ("a\\1b[2J.example", "b\\00.example")
    assert all(text.isprintable() for text in (found.subject, found.issuer, *found.names))


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [
        ("mx.example", 10, "mx.example"),
        ("mx.example", 9, "mx.examp…"),
        ("münchen", 10, "münchen"),
        ("a\nb", 10, "a\\0ab"),
        ("\n\n\n\n", 7, "\\0a\\0a…"),
        ("\ud800", 10, "\\3f"),
        ("", 10, ""),
    ],
)
def test_printable(text: str, most: int, shown: str) -> None:
    assert printable(text, most) == shown


def test_what_can_be_read_is_read() -> None:
    """An extension that is broken does not hide whose certificate it is."""
    oid = x509.SubjectAlternativeName.oid
    broken = made("mx.example", root(), extras=[(x509.UnrecognizedExtension(oid, b"\x30\x05"), False)])
    found = facts(broken.der)
    assert found.subject == "CN=mx.example"
    assert found.names == ()
    assert found.trouble.startswith("subjectAltName can't be read: ")
    with pytest.raises(ValueError, match="subjectAltName can't be read"):
        names_of(broken.certificate)


def test_what_is_no_certificate() -> None:
    for der in (b"", b"\x30\x03\x02\x01\x01", LEAF.der[:-1], LEAF.der + b"\0", LEAF.pem):
        found = facts(der)
        assert found == Facts("", "", (), hashlib.sha256(der).hexdigest(), "", "", found.trouble)
        assert found.trouble.startswith("no certificate: ")
        with pytest.raises(ValueError, match=r"^no certificate: "):
            read(der)


def test_what_is_too_large_is_not_read() -> None:
    large = LEAF.der + bytes(MAX_DER)
    assert facts(large).trouble == f"a certificate of more than {MAX_DER} octets"
    with pytest.raises(ValueError, match=f"^a certificate of more than {MAX_DER} octets$"):
        read(large)


def test_addresses_are_no_host_names() -> None:
    hosts, addresses = names_of(LEAF.certificate)
    assert hosts == ["mx.example", "*.example.org"]
    assert [str(address) for address in addresses] == ["192.0.2.1", "2001:db8::1"]
    text = made("x", root(), extras=[alternative()], names=())
    assert names_of(text.certificate) == ([], [])


@given(st.integers(0, len(LEAF.der) - 1), st.binary(min_size=1, max_size=6))
@example(0, b"\x30\x80")
def test_damaged_certificates(at: int, octets: bytes) -> None:
    """Whatever is changed in it, it is described, and never raises (warnings are errors here)."""
    found = facts(LEAF.der[:at] + octets + LEAF.der[at + len(octets) :])
    for text in (found.subject, found.issuer, *found.names, found.trouble):
        assert text.isprintable()
        assert len(text) <= 2 * MAX_DN


@given(st.binary(max_size=200))
def test_any_octets_at_all(octets: bytes) -> None:
    assert facts(octets).sha256 == hashlib.sha256(octets).hexdigest()
