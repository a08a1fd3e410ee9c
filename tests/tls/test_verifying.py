"""Is the server who it should be? Every kind of certificate that is not (attacks.md B61–B75, H1, H9), with the right
result type and a reason; and OpenSSL, asked in a handshake with the same certificates, thinks the same."""

import base64
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.tls import verifying
from smtpproxy.tls.verdict import EXPIRED, FAILED, HOST_MISMATCH, NOT_TRUSTED, Verdict
from smtpproxy.tls.verifying import FRESH, MAX_CHAIN, Roots, fits, openssl_verdict, verify_chain
from tests.tls.maker import NOW, Made, alternative, days, made, root, usage, weak_rsa

MX = "mx.example"


class Case(NamedTuple):
    """What a server shows, what is trusted, and what comes of it."""

    chain: Sequence[Made]
    result: str = ""
    why: str = ""
    name: str = MX
    trusted: Sequence[Made] = (root(),)
    openssl: str | None = None  # what OpenSSL says if that is something else; "-": it can't be asked


def eku(*oids: x509.ObjectIdentifier) -> tuple[x509.ExtensionType, bool]:
    return x509.ExtendedKeyUsage(oids), False


def iso(count: float) -> str:
    return f"{days(count):%Y-%m-%dT%H:%M:%SZ}"


SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
UNKNOWN = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\0"), True)

SUB = made("Sub", root(), ca=True)
SUBSUB = made("Sub of Sub", SUB, ca=True)
OTHER = made("Other", ca=True)
TWIN = made("Root", ca=True)  # the trusted one's name, another key
OLD_ROOT = made("Old Root", ca=True, since=-60, until=-2)
OLD_SUB = made("Old Sub", root(), ca=True, since=-60, until=-2)
NEW_SUB = made("New Sub", root(), ca=True, since=2)
NO_CA = made("No CA", root(), names=["evil.example"])
NOT_CA = made("Not a CA", root(), extras=[(x509.BasicConstraints(ca=False, path_length=None), True)])
NO_SIGN = made("No Sign", root(), ca=True, extras=[usage("digital_signature")])
CLIENTS = made("Clients", root(), ca=True, extras=[eku(CLIENT)])
SHORT = made("Short", root(), ca=True, path_length=0)
BELOW_SHORT = made("Below", SHORT, ca=True)
WEAK_SUB = made("Weak Sub", root(), ca=True, key=weak_rsa())
ONLY_ORG = made("Only", root(), ca=True, extras=[(x509.NameConstraints([x509.DNSName("example.org")], None), True)])
ODD_SUB = made("Odd Sub", root(), ca=True, extras=[UNKNOWN])
ALONE = made(MX, names=[MX])
ALONE_CA = made(MX, names=[MX], ca=True)
ALONE_OLD = made(MX, names=[MX], since=-60, until=-2)
LEAF = made(MX, root(), names=[MX])
FORGED = made(MX, names=[MX], issuer_name="Root")  # says it is the root's, and signed itself
FORGED_SUB = made("Sub", ca=True, issuer_name="Root")

GOOD: dict[str, Case] = {
    "of a root": Case([LEAF]),
    "with the root": Case([LEAF, root()]),
    "with more than is needed": Case([made(MX, SUB, names=[MX]), OTHER, SUB, OLD_SUB, root()]),
    "of a CA below": Case([made(MX, SUB, names=[MX]), SUB]),
    "two below, in disorder": Case([made(MX, SUBSUB, names=[MX]), SUB, SUBSUB]),
    "of one of two roots of one name": Case([LEAF], trusted=[TWIN, root()], openssl=NOT_TRUSTED),  # it tries one
    "trusted itself": Case([ALONE], trusted=[ALONE]),
    "trusted itself, a CA": Case([ALONE_CA], trusted=[root(), ALONE_CA]),
    "below a CA that is trusted and no root": Case([made(MX, SUB, names=[MX])], trusted=[SUB], openssl=NOT_TRUSTED),
    "no subject": Case([made("", root(), names=[MX])]),
    "critical names": Case([made("", root(), extras=[alternative(MX, critical=True)])]),
    "critical use": Case([made(MX, root(), names=[MX], extras=[(x509.ExtendedKeyUsage([SERVER]), True)])]),
    "for servers": Case([made(MX, root(), names=[MX], extras=[eku(SERVER, CLIENT), usage("digital_signature")])]),
    "RSA": Case([made(MX, root(), names=[MX], key=rsa.generate_private_key(65537, 2048))]),
    "P-521": Case([made(MX, root(), names=[MX], key=ec.generate_private_key(ec.SECP521R1()))]),
    "Ed25519": Case([made(MX, root(), names=[MX], key=ed25519.Ed25519PrivateKey.generate())]),
    "no name asked": Case([made("x", root())], name=""),
    "one of several names": Case([made("x", root(), names=["a.example", MX])]),
    "capitals": Case([made("x", root(), names=["MX.example"])], name="mx.EXAMPLE"),
    "a dot at the end": Case([LEAF], name="mx.example.", openssl=HOST_MISMATCH),
    "a wildcard": Case([made("x", root(), names=["*.mail.example"])], name="mx.mail.example"),
    "an address": Case([made("x", root(), names=["192.0.2.1"])], name="192.0.2.1"),
    "an IPv6 address": Case([made("x", root(), names=["2001:db8::1"])], name="2001:DB8:0::1"),
    "a name that its CA may": Case([made("x", ONLY_ORG, names=["mx.example.org"]), ONLY_ORG], name="mx.example.org"),
}

BAD: dict[str, Case] = {
    "self-signed": Case([ALONE], NOT_TRUSTED, "self-signed"),
    "self-signed as a CA": Case([ALONE_CA], NOT_TRUSTED, "self-signed"),
    "self-signed for another name": Case(
        [made("x", names=["x.example"])], NOT_TRUSTED, "self-signed; not for mx.example but for x.example"
    ),
    "self-signed and expired": Case([ALONE_OLD], NOT_TRUSTED, f"self-signed; expired at {iso(-2)}"),
    "another CA": Case([made(MX, OTHER, names=[MX])], NOT_TRUSTED, "issued by CN=Other, which is not trusted"),
    "another CA, shown": Case(
        [made(MX, OTHER, names=[MX]), OTHER],
        NOT_TRUSTED,
        "issued under CN=Other, which is self-signed and not trusted",
    ),
    "a CA is missing": Case(
        [made(MX, SUBSUB, names=[MX])], NOT_TRUSTED, "issued by CN=Sub of Sub, which is not trusted"
    ),
    "a CA is missing higher up": Case(
        [made(MX, SUBSUB, names=[MX]), SUBSUB], NOT_TRUSTED, "issued by CN=Sub, which is not trusted"
    ),
    "signed by a twin of the root": Case(
        [made(MX, TWIN, names=[MX])], NOT_TRUSTED, "not signed by the CN=Root that is known"
    ),
    "signed by a twin, shown": Case(
        [made(MX, TWIN, names=[MX]), TWIN],
        NOT_TRUSTED,
        "issued under CN=Root, which is self-signed and not trusted",
    ),
    "signed by itself in the root's name": Case([FORGED], NOT_TRUSTED, "not signed by the CN=Root that is known"),
    "a CA that says it is the root's": Case(
        [made(MX, FORGED_SUB, names=[MX]), FORGED_SUB], NOT_TRUSTED, "not signed by the CN=Root that is known"
    ),
    "another's certificate above it": Case([ALONE, SUB], NOT_TRUSTED, "self-signed"),
    "expired": Case([made(MX, root(), names=[MX], since=-60, until=-2)], EXPIRED, f"expired at {iso(-2)}"),
    "expired a second ago": Case(
        [made(MX, root(), names=[MX], until=-1 / 86400)], EXPIRED, f"expired at {iso(-1 / 86400)}"
    ),
    "not yet valid": Case([made(MX, root(), names=[MX], since=2)], NOT_TRUSTED, f"not valid before {iso(2)}"),
    "expired, and another name": Case(
        [made("x", root(), names=["x.example"], since=-60, until=-2)],
        HOST_MISMATCH,
        f"not for mx.example but for x.example; expired at {iso(-2)}",
    ),
    "an expired CA": Case(
        [made(MX, OLD_SUB, names=[MX]), OLD_SUB], EXPIRED, f"issuer CN=Old Sub: expired at {iso(-2)}"
    ),
    "an expired root": Case(
        [made(MX, OLD_ROOT, names=[MX])],
        EXPIRED,
        f"issuer CN=Old Root: expired at {iso(-2)}",
        trusted=[OLD_ROOT],
    ),
    "a CA not yet valid": Case(
        [made(MX, NEW_SUB, names=[MX]), NEW_SUB], NOT_TRUSTED, f"issuer CN=New Sub: not valid before {iso(2)}"
    ),
    "trusted itself, expired": Case([ALONE_OLD], EXPIRED, f"expired at {iso(-2)}", trusted=[ALONE_OLD]),
    "issued by a server": Case(
        [made(MX, NO_CA, names=[MX]), NO_CA], NOT_TRUSTED, "issuer CN=No CA: not a CA (basicConstraints)"
    ),
    "issued by no CA": Case(
        [made(MX, NOT_CA, names=[MX]), NOT_CA], NOT_TRUSTED, "issuer CN=Not a CA: not a CA (basicConstraints)"
    ),
    "a CA that may not sign": Case(
        [made(MX, NO_SIGN, names=[MX]), NO_SIGN], NOT_TRUSTED, "issuer CN=No Sign: not for this use (keyUsage)"
    ),
    "a CA for clients": Case(
        [made(MX, CLIENTS, names=[MX]), CLIENTS],
        NOT_TRUSTED,
        "issuer CN=Clients: not for TLS servers (extendedKeyUsage)",
    ),
    "a CA too far down": Case(
        [made(MX, BELOW_SHORT, names=[MX]), BELOW_SHORT, SHORT], NOT_TRUSTED, "no path to a trusted certificate: "
    ),
    "a CA with a weak key": Case(
        [made(MX, WEAK_SUB, names=[MX]), WEAK_SUB],
        NOT_TRUSTED,
        "issuer CN=Weak Sub: unfit key: RSA with 1024 bits",
    ),
    "a CA that may only for others": Case(
        [made(MX, ONLY_ORG, names=[MX]), ONLY_ORG], NOT_TRUSTED, "no path to a trusted certificate: "
    ),
    "a CA with an unknown critical extension": Case(
        [made(MX, ODD_SUB, names=[MX]), ODD_SUB], NOT_TRUSTED, "no path to a trusted certificate: "
    ),
    "an unknown critical extension": Case(
        [made(MX, root(), names=[MX], extras=[UNKNOWN])], NOT_TRUSTED, "no path to a trusted certificate: "
    ),
    "for clients": Case(
        [made(MX, root(), names=[MX], extras=[eku(CLIENT)])], NOT_TRUSTED, "not for TLS servers (extendedKeyUsage)"
    ),
    "a key for certificates only": Case(
        [made(MX, root(), names=[MX], extras=[usage("key_cert_sign")])], NOT_TRUSTED, "not for this use (keyUsage)"
    ),
    "a weak key": Case([made(MX, root(), names=[MX], key=weak_rsa())], NOT_TRUSTED, "unfit key: RSA with 1024 bits"),
    "a weak curve": Case(
        [made(MX, root(), names=[MX], key=ec.generate_private_key(ec.SECP192R1()))],
        NOT_TRUSTED,
        "unfit key: curve secp192r1",
        openssl="-",  # no key exchange with it either
    ),
    "a DSA key": Case(
        [made(MX, root(), names=[MX], key=dsa.generate_private_key(2048))],
        NOT_TRUSTED,
        "unfit key: neither RSA nor an elliptic curve",
        openssl="-",
    ),
    "a key that is too large": Case(
        [made(MX, root(), names=[MX], public=rsa.RSAPublicNumbers(65537, 2**16383 + 1).public_key())],
        NOT_TRUSTED,
        "unfit key: RSA with 16384 bits",
        openssl="-",
    ),
    "trusted itself, weak": Case(
        [made(MX, names=[MX], key=weak_rsa())], NOT_TRUSTED, "unfit key: RSA with 1024 bits; self-signed"
    ),
    "another name": Case(
        [made(MX, root(), names=["a.example", "b.example"])],
        HOST_MISMATCH,
        "not for mx.example but for a.example, b.example",
    ),
    "many other names": Case(
        [made(MX, root(), names=[f"mx{number}.example" for number in range(9)])],
        HOST_MISMATCH,
        "not for mx.example but for mx0.example, mx1.example, mx2.example, mx3.example, mx4.example and 4 more",
    ),
    "the name in the subject only": Case(
        [made(MX, root())], HOST_MISMATCH, "not for mx.example: it has no name (subjectAltName)"
    ),
    "the name in the subject, others beside it": Case(
        [made(MX, root(), names=["192.0.2.1"])], HOST_MISMATCH, "not for mx.example but for 192.0.2.1"
    ),
    "a name below": Case([LEAF], HOST_MISMATCH, "not for a.mx.example but for mx.example", name="a.mx.example"),
    "a name above": Case([LEAF], HOST_MISMATCH, "not for example but for mx.example", name="example"),
    "a name that ends like it": Case([LEAF], HOST_MISMATCH, "", name="evilmx.example"),
    "an address as a host name": Case(
        [made("x", root(), names=[], extras=[(x509.SubjectAlternativeName([x509.DNSName("192.0.2.1")]), False)])],
        HOST_MISMATCH,
        "not for 192.0.2.1 but for 192.0.2.1",
        name="192.0.2.1",
    ),
    "another address": Case(
        [made("x", root(), names=["192.0.2.1"])], HOST_MISMATCH, "not for 192.0.2.2 but for 192.0.2.1", name="192.0.2.2"
    ),
    "a wildcard two labels up": Case([made("x", root(), names=["*.example"])], HOST_MISMATCH, "", name="a.b.example"),
    "a wildcard and its parent": Case(
        [made("x", root(), names=["*.mail.example"])], HOST_MISMATCH, "", name="mail.example"
    ),
    "a wildcard of a top-level domain": Case([made("x", root(), names=["*.example"])], HOST_MISMATCH, ""),
    "a wildcard in a label": Case([made("x", root(), names=["m*.mail.example"])], HOST_MISMATCH, "", "mx.mail.example"),
    "a wildcard in the second label": Case(
        [made("x", root(), names=["mx.*.example"])], HOST_MISMATCH, "", "mx.mail.example"
    ),
    "two wildcards": Case([made("x", root(), names=["*.*.example"])], HOST_MISMATCH, "", "mx.mail.example"),
    "a wildcard alone": Case([made("x", root(), names=["*"])], HOST_MISMATCH, "", "example"),
    "NUL in the name": Case(
        [made("x", root(), names=["mx.example\0.evil.example"])],
        HOST_MISMATCH,
        "not for mx.example but for mx.example\\00.evil.example",
    ),
    "names that can't be read": Case(
        [made(MX, root(), extras=[(x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\x30\x05"), False)])],
        FAILED,
        "the certificate can't be verified: ",
        openssl="-",  # it is not shown: a context does not take it
    ),
}

CASES = {**GOOD, **BAD}


def verified(case: Case, at: float = NOW) -> Verdict:
    roots = Roots.given([one.der for one in case.trusted])
    return verify_chain([one.der for one in case.chain], case.name, roots, at)


@pytest.mark.parametrize("name", GOOD)
def test_a_certificate_that_is_good(name: str) -> None:
    assert verified(GOOD[name]) == Verdict(True)


@pytest.mark.parametrize("name", BAD)
def test_a_certificate_that_is_bad(name: str) -> None:
    case = BAD[name]
    verdict = verified(case)
    assert not verdict.verified
    assert verdict.result == case.result, verdict.why
    whole = case.why and not case.why.endswith(": ")
    assert verdict.why == case.why if whole else verdict.why.startswith(case.why or "not for ")
    assert verdict.why.isprintable()
    assert len(verdict.why) < 400


def handshake(case: Case, path: Path) -> ssl.SSLCertVerificationError | None:
    """A handshake in memory, in which OpenSSL verifies."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.set_ciphers("ALL:@SECLEVEL=0")
    (path / "chain").write_bytes(b"".join(one.pem for one in case.chain))
    (path / "key").write_bytes(case.chain[0].key_pem)
    server.load_cert_chain(path / "chain", path / "key")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = bool(case.name)
    client.hostname_checks_common_name = False
    client.load_verify_locations(cadata="".join(one.pem.decode() for one in case.trusted))
    one, two = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(one, two, server_hostname=case.name or None),
        server.wrap_bio(two, one, server_side=True),
    ]
    for _ in range(6):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return error
    assert ends[0].version() == "TLSv1.3"
    return None


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.openssl != "-"])
def test_openssl_thinks_the_same(name: str, tmp_path: Path) -> None:
    """The same answer, and the same result type, from a verifier that shares nothing with ours."""
    case = CASES[name]
    error = handshake(case, tmp_path)
    wanted = case.result if case.openssl is None else case.openssl
    assert (error is None) == (wanted == ""), error
    if error is not None:
        verdict = openssl_verdict(error)
        assert (verdict.verified, verdict.result) == (False, wanted), verdict.why
        assert verdict.why
        assert verdict.why.isprintable()


def test_a_weak_digest() -> None:
    """SHA-1, made by the openssl program: the library no longer signs with it. No dates before 2126 matter."""
    chain = [base64.b64decode(SHA1_LEAF)]
    at = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    verdict = verify_chain(chain, MX, Roots.given([base64.b64decode(SHA1_ROOT)]), at)
    assert verdict == Verdict(False, NOT_TRUSTED, "weak signature: sha1")


def test_somebody_elses_ca() -> None:
    """trustme: a CA of two floors, critical subjectAltName."""
    authority = trustme.CA()
    below = authority.create_child_ca()
    issued = below.issue_cert(MX, "192.0.2.1")
    chain = [ssl.PEM_cert_to_DER_cert(pem.bytes().decode()) for pem in issued.cert_chain_pems]
    roots = Roots.given([ssl.PEM_cert_to_DER_cert(authority.cert_pem.bytes().decode())])
    for name in (MX, "192.0.2.1", ""):
        assert verify_chain(chain, name, roots, NOW) == Verdict(True)
    assert verify_chain(chain[:1], MX, roots, NOW).result == NOT_TRUSTED
    assert verify_chain(chain, "x.example", roots, NOW).result == HOST_MISMATCH


# ------------------------------------------------------------------------------------------------- hostile chains


def test_no_certificate() -> None:
    assert verify_chain([], MX, ROOTS, NOW) == Verdict(False, FAILED, "the server shows no certificate")


def test_too_many_certificates() -> None:
    chain = [LEAF.der] * (MAX_CHAIN + 1)
    assert verify_chain(chain, MX, ROOTS, NOW) == Verdict(False, FAILED, "the server shows more than 20 certificates")
    assert verify_chain(chain[:-1], MX, ROOTS, NOW).verified


@pytest.mark.parametrize("der", [b"", b"\x30\x80", LEAF.der[:-1], LEAF.der + b"\0", LEAF.der + bytes(65536)])
def test_what_is_no_certificate(der: bytes) -> None:
    for chain, number in (([der], "1 of 1"), ([LEAF.der, der], "2 of 2")):
        verdict = verify_chain(chain, MX, ROOTS, NOW)
        assert (verdict.verified, verdict.result) == (False, FAILED)
        assert verdict.why.startswith(f"certificate {number}: ")


@given(st.integers(0, len(LEAF.der) - 1), st.binary(min_size=1, max_size=6))
def test_a_damaged_certificate_is_never_verified(at: int, octets: bytes) -> None:
    """Whatever is changed, and whatever that makes of it: no exception, and no other certificate passes."""
    changed = LEAF.der[:at] + octets + LEAF.der[at + len(octets) :]
    verdict = verify_chain([changed], MX, ROOTS, NOW)
    assert verdict.verified is (changed == LEAF.der)
    assert bool(verdict.why) is not verdict.verified


@pytest.mark.parametrize("where", ["leaf", "behind it"])
def test_a_year_that_is_none(where: str) -> None:
    """What the library only says when it is asked for the date: not verified, and nothing raised."""
    odd = made("mx", names=("mx.example",), until=365 * 60)
    at = odd.der.index(b"\x18\x0f")  # a GeneralizedTime
    der = odd.der[: at + 2] + b"00000101000000Z" + odd.der[at + 17 :]
    chain = [der] if where == "leaf" else [odd.der, der]
    assert not verify_chain(chain, "mx.example", Roots.given([root().der]), NOW).verified


def test_what_a_maze_of_cas_costs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """CAs of one name that all sign each other: there are very many paths, and all of them lead nowhere."""
    signatures = []
    monkeypatch.setattr(verifying, "_signed", lambda *pair: signatures.append(pair))
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(MAX_CHAIN)]
    maze = [made("Maze", ca=True, key=key, signer=keys[index - 1]) for index, key in enumerate(keys)]
    chain = [made(MX, maze[0], names=[MX]), *maze[: MAX_CHAIN - 1]]
    verdict = verified(Case(chain))
    assert (verdict.verified, verdict.result) == (False, NOT_TRUSTED)
    assert len(signatures) <= 16


def test_cas_in_a_circle() -> None:
    one, two = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    first = made("One", ca=True, key=one, signer=two, issuer_name="Two")
    second = made("Two", ca=True, key=two, signer=one, issuer_name="One")
    verdict = verified(Case([made(MX, first, names=[MX]), first, second]))
    assert (verdict.verified, verdict.result) == (False, NOT_TRUSTED)


def test_a_key_that_nobody_knows_is_not_verified() -> None:
    """A failure of the library while a certificate is looked at is a no."""
    oid = bytes.fromhex("06072a8648ce3d0201")  # id-ecPublicKey
    changed = LEAF.der.replace(oid, oid[:-1] + b"\x63")
    verdict = verify_chain([changed], MX, ROOTS, NOW)
    assert (verdict.verified, verdict.result) == (False, FAILED)
    assert verdict.why.startswith("the certificate can't be verified: ")


# ------------------------------------------------------------------------------------------------- kept verdicts


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which something was really verified."""
    times: list[float] = []
    judge = verifying._judge

    def counting(chain: Sequence[bytes], name: str, roots: Roots, at: float) -> tuple[Verdict, float]:
        times.append(at)
        return judge(chain, name, roots, at)

    monkeypatch.setattr(verifying, "_judge", counting)
    return times


def test_a_verdict_is_kept_for_an_hour(counted: list[float]) -> None:
    roots = Roots.given([root().der])
    for at in (NOW, NOW + 1, NOW + FRESH - 1, NOW + FRESH, NOW + FRESH + 1):
        assert verify_chain([LEAF.der], MX, roots, at).verified
    assert counted == [NOW, NOW + FRESH]


def test_a_verdict_is_for_one_name_and_one_chain_and_one_set_of_roots(counted: list[float]) -> None:
    roots = Roots.given([root().der])
    assert verify_chain([LEAF.der], MX, roots, NOW).verified
    assert not verify_chain([LEAF.der], "x.example", roots, NOW).verified
    assert verify_chain([LEAF.der, SUB.der], MX, roots, NOW).verified
    assert not verify_chain([LEAF.der], MX, Roots.given([OTHER.der]), NOW).verified
    assert len(counted) == 4


def test_a_verdict_does_not_outlive_a_certificate(counted: list[float]) -> None:
    roots = Roots.given([root().der])
    soon = made(MX, root(), names=[MX], until=60 / 86400)
    later = made(MX, root(), names=[MX], since=60 / 86400)
    assert verify_chain([soon.der], MX, roots, NOW).verified
    assert verify_chain([soon.der], MX, roots, NOW + 59).verified
    assert verify_chain([soon.der], MX, roots, NOW + 61).result == EXPIRED
    assert verify_chain([later.der], MX, roots, NOW).result == NOT_TRUSTED
    assert verify_chain([later.der], MX, roots, NOW + 60).verified
    assert counted == [NOW, NOW + 61, NOW, NOW + 60]


def test_a_clock_that_is_set_back(counted: list[float]) -> None:
    roots = Roots.given([root().der])
    assert verify_chain([LEAF.der], MX, roots, NOW).verified
    assert not verify_chain([LEAF.der], MX, roots, NOW - 3 * 86400).verified
    assert counted == [NOW, NOW - 3 * 86400]


def test_kept_verdicts_are_bounded(monkeypatch: pytest.MonkeyPatch, counted: list[float]) -> None:
    monkeypatch.setattr(verifying, "MAX_VERDICTS", 2)
    roots = Roots.given([root().der])
    for name in (MX, "a.example", MX, "b.example", MX, "a.example"):
        verify_chain([LEAF.der], name, roots, NOW)
    assert len(counted) == 4, "the one that was not asked for longest went"


# ------------------------------------------------------------------------------------------------- roots


def test_roots_of_a_file(tmp_path: Path) -> None:
    """One or several, with whatever people write between them."""
    file = tmp_path / "roots.pem"
    file.write_bytes(b"# ours\r\n" + OTHER.pem.replace(b"\n", b"\r\n") + b"\nCN=Root\n" + root().pem + root().key_pem)
    roots = Roots.file(file)
    assert len(roots) == 2
    assert verify_chain([LEAF.der], MX, roots, NOW).verified


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory"),
        (b"", "no certificate in PEM form"),
        (root().der, "no certificate in PEM form"),
        (root().key_pem, "no certificate in PEM form"),
        (
            root().pem + b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            "certificate 2 of 2: no certif",
        ),
        (b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", "certificate 1 of 1: no certificate"),
        (b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n", "certificate 1 of 1: no certificate"),
    ],
)
def test_a_file_that_is_no_good(tmp_path: Path, content: bytes | None, why: str) -> None:
    file = tmp_path / "roots.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=f"roots.pem: {why}"):
        Roots.file(str(file))


def test_no_roots() -> None:
    with pytest.raises(ValueError, match="empty"):
        Roots.given([])
    with pytest.raises(ValueError, match=r"^certificate 2 of 2: no certificate"):
        Roots.given([root().der, b"x"])


def test_the_roots_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenSSL finds them: one file, or a folder of files with hashed names."""
    file = tmp_path / "all.pem"
    broken = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    file.write_bytes(root().pem + broken + OTHER.pem + root().pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    assert len(Roots.system()) == 2
    assert verify_chain([LEAF.der], MX, Roots.system(), NOW).verified
    file.unlink()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "1a2b3c4d.0").write_bytes(root().pem)
    (folder / "README").write_bytes(OTHER.pem)
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    assert len(Roots.system()) == 1
    (folder / "1a2b3c4d.0").unlink()
    with pytest.raises(ValueError, match="no trusted certificates"):
        Roots.system()
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no trusted certificates"):
        Roots.system()
    (folder / "1a2b3c4d.0").mkdir()
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    with pytest.raises(ValueError, match="trusted certificates of this system: "):
        Roots.system()


# ------------------------------------------------------------------------------------------------- OpenSSL's words


def refused(code: int, message: str = "what OpenSSL said") -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, message
    return error


@pytest.mark.parametrize(
    ("code", "result"),
    [(9, NOT_TRUSTED), (10, EXPIRED), (18, NOT_TRUSTED), (20, NOT_TRUSTED), (62, HOST_MISMATCH), (64, HOST_MISMATCH)],
)
def test_a_refused_handshake(code: int, result: str) -> None:
    verdict = openssl_verdict(refused(code))
    assert (verdict.verified, verdict.result) == (False, result)
    assert verdict.why


def test_a_refusal_that_has_no_name_here() -> None:
    assert openssl_verdict(refused(23, "revoked\n")) == Verdict(False, NOT_TRUSTED, "revoked\\0a")
    assert openssl_verdict(refused(62, "mismatch")).why == "mismatch"
    bare = openssl_verdict(ssl.SSLCertVerificationError("odd"))
    assert (bare.verified, bare.result) == (False, FAILED)
    assert bare.why


ROOTS = Roots.given([root().der])
SHA1_ROOT = """
MIIBfDCCASKgAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlBbiBvbGQgQ0EwIBcNMjYxMTIzMTYwODQ5WhgPMjEyNjEw
MzAxNjA4NDlaMBQxEjAQBgNVBAMMCUFuIG9sZCBDQTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABLe/zY9kimwEPbpqykqOssHz
9Cd3MBUr8wrr/7eyNNq85rHlwFiiwtMdDft0qnyKYH8WXCe6JU679lmpc8sX9tqjYzBhMB0GA1UdDgQWBBSt+hiIPQ7p+T5fZBkA
Xah55vJ4hDAfBgNVHSMEGDAWgBSt+hiIPQ7p+T5fZBkAXah55vJ4hDAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwICBDAK
BggqhkjOPQQDAgNIADBFAiAljCUYrEdkJatKoi3x6ynQanVapyA/AYSQOdUyIYbMyAIhAIx6CNnc5gRV2yY6Eq8f5aEcv3ra1IyG
0BXoqEXiG5v1
"""
SHA1_LEAF = """
MIIBezCCASOgAwIBAgIBAjAJBgcqhkjOPQQBMBQxEjAQBgNVBAMMCUFuIG9sZCBDQTAgFw0yNjExMjMxNjA4NDlaGA8yMTI2MTAz
MDE2MDg0OVowFTETMBEGA1UEAwwKbXguZXhhbXBsZTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABIR6CIMXcnjetyvl9xSzQC3C
Kr4i6TOipSgWcM7G+VrA2kMeZHXCvItXOUMtLO+4FHh4jbZF176pQ+etBszVUnCjZDBiMBUGA1UdEQQOMAyCCm14LmV4YW1wbGUw
CQYDVR0TBAIwADAdBgNVHQ4EFgQUlbjmj81lAfWs19R7mutduBfaKGwwHwYDVR0jBBgwFoAUrfoYiD0O6fk+X2QZAF2oeebyeIQw
CQYHKoZIzj0EAQNHADBEAiBqpP9L0DKDWwW93SmzQNchxeQChUYvxgKTSYSwd92xOQIgdcs9AKLBfNVxgxCEBv+Qh194/ZvWz0Dg
yRI9LOxAkdw=
"""


@pytest.mark.parametrize(
    ("pattern", "name", "is_so"),
    [
        ("mx.example", "mx.example", True),
        ("*.mx.example", "a.mx.example", True),
        ("*.example", "mx.example", False),
        ("*.example", "a.mx.example", False),
        ("*.mx.example", ".mx.example", False),
        ("*.mx.example", "mx.example", False),
        ("m*.example", "mx.example", False),
        ("*", "example", False),
    ],
)
def test_which_names_fit(pattern: str, name: str, is_so: bool) -> None:
    assert fits(name, pattern) is is_so
