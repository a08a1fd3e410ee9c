"""TLS settings, as the other end finds them (RFC 9325; attacks.md B56-B60, B76, H8, H9, H14, H15)."""

import ssl
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from smtpproxy.tls.contexts import ALPN, CertificateError, for_client, for_server, read_pair
from tests.tls.maker import Made, made, root, usage, weak_rsa
from tests.tls.talk import converse, purpose

NAME = "mx.example"
OLD = [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1]


@pytest.fixture(scope="module")
def good() -> Made:
    """For NAME."""
    return made(NAME, root(), names=(NAME,))


@pytest.fixture
def roots(tmp_path: Path) -> str:
    """The CA that is trusted."""
    path = tmp_path / "roots.pem"
    path.write_bytes(root().pem)
    return str(path)


def _client(change: Callable[[ssl.SSLContext], None] = lambda context: None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    change(context)
    return context


def _server(which: Made, change: Callable[[ssl.SSLContext], None] = lambda context: None) -> ssl.SSLContext:
    context = for_client(which.pem, which.key_pem)
    change(context)
    return context


def _only(version: ssl.TLSVersion) -> Callable[[ssl.SSLContext], None]:
    def change(context: ssl.SSLContext) -> None:
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version

    return change


def _suites(suites: str) -> Callable[[ssl.SSLContext], None]:
    def change(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(suites)

    return change


# -------------------------------------------------------------------------------------------------------- versions


def test_what_is_agreed_on(good: Made) -> None:
    client, server = converse(for_server(verify=False), for_client(good.pem, good.key_pem))
    assert client.version() == "TLSv1.3"
    assert server.selected_alpn_protocol() == ALPN == "smtp"


@pytest.mark.parametrize("version", OLD)
def test_old_versions_are_refused_on_both_links(good: Made, version: ssl.TLSVersion) -> None:
    with pytest.raises(ssl.SSLError):
        converse(_client(_only(version)), for_client(good.pem, good.key_pem))
    with pytest.raises(ssl.SSLError):
        converse(for_server(verify=False), _server(good, _only(version)))


def test_the_lowest_version_is_said_and_does_not_follow_from_the_suites(good: Made) -> None:
    for context in (for_client(good.pem, good.key_pem), for_server(verify=False), for_server(verify=True)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("version", OLD)
def test_a_legacy_listener_takes_them_and_the_new_ones(good: Made, version: ssl.TLSVersion) -> None:
    legacy = for_client(good.pem, good.key_pem, legacy=True)
    assert converse(_client(_only(version)), legacy)[1].version() == version.name.replace("_", ".")
    assert converse(_client(), legacy)[1].version() == "TLSv1.3"
    assert converse(for_server(verify=False, legacy=True), _server(good, _only(version)))[0].version()


def test_no_ssl_3_even_then(good: Made) -> None:
    for context in (for_client(good.pem, good.key_pem, legacy=True), for_server(verify=False, legacy=True)):
        assert context.options & ssl.OP_NO_SSLv3


# ------------------------------------------------------------------------------------------------------------ suites


@pytest.mark.parametrize(
    "suites", ["ECDHE+AES:!AESGCM:!AESCCM", "AES256-GCM-SHA384", "DHE+AESGCM", "ECDHE+AESCCM", "PSK", "aNULL", "eNULL"]
)
@pytest.mark.parametrize("key", ["ec", "rsa"])
def test_nothing_but_forward_secret_aead(suites: str, key: str) -> None:
    which = (
        made(NAME, root(), names=(NAME,))
        if key == "ec"
        else made(NAME, names=(NAME,), key=rsa.generate_private_key(65537, 2048))
    )
    with pytest.raises(ssl.SSLError):
        converse(_client(_suites(suites + ":@SECLEVEL=0")), for_client(which.pem, which.key_pem))


def test_tls_1_2_with_each_suite(good: Made) -> None:
    for suite in ("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"):
        client, _ = converse(_client(_suites(suite)), for_client(good.pem, good.key_pem))
        assert client.cipher()[0] == suite  # type: ignore[index]


def test_no_compression_and_no_renegotiation(good: Made) -> None:
    for context in (for_client(good.pem, good.key_pem), for_server(verify=False)):
        assert context.options & ssl.OP_NO_COMPRESSION
        assert context.options & ssl.OP_NO_RENEGOTIATION


def test_a_weak_key_of_a_server_is_refused(roots: str, tmp_path: Path) -> None:
    """OpenSSL's security level: 1024 bits are not enough where it verifies."""
    which = made(NAME, root(), names=(NAME,), key=weak_rsa())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.set_ciphers("ALL:@SECLEVEL=0")
    path = tmp_path / "weak.pem"
    path.write_bytes(which.pem + which.key_pem)
    server.load_cert_chain(path)
    with pytest.raises(ssl.SSLError):
        converse(for_server(verify=True, roots=roots), server, NAME)


# ------------------------------------------------------------------------------------------------- the server's name


@pytest.mark.parametrize(
    ("which", "fails"),
    [
        (made(NAME, root(), names=(NAME,)), ""),
        (made(NAME, root(), names=("other.example",)), "Hostname mismatch"),
        (made(NAME, root()), "Hostname mismatch"),  # a CN only: OpenSSL would take it
        (made(NAME, root(), names=(NAME,), since=-9, until=-1), "expired"),
        (made(NAME, names=(NAME,)), "self-signed"),
        (made(NAME, made("Somebody", ca=True), names=(NAME,)), "unable to get local issuer"),
        (made(NAME, root(), names=(NAME,), extras=[purpose(ExtendedKeyUsageOID.CLIENT_AUTH)]), "unsuitable"),
        (made(NAME, made("No CA", root(), extras=[usage("digital_signature")]), names=(NAME,)), "unable to get"),
    ],
)
def test_who_is_verified(roots: str, which: Made, fails: str) -> None:
    if not fails:
        converse(for_server(verify=True, roots=roots), _server(which), NAME)
        return
    with pytest.raises(ssl.SSLCertVerificationError, match=fails):
        converse(for_server(verify=True, roots=roots), _server(which), NAME)
    converse(for_server(verify=False), _server(which), NAME)  # and who is not asked for that


def test_an_address_is_a_name_too(roots: str) -> None:
    context = for_server(verify=True, roots=roots)
    converse(context, _server(made("", root(), names=("192.0.2.1",))), "192.0.2.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        converse(context, _server(made("", root(), names=("192.0.2.2",))), "192.0.2.1")


def test_a_client_certificate_is_shown_to_who_asks(good: Made, tmp_path: Path) -> None:
    ours = made("proxy.example", root(), names=("proxy.example",))
    server = _server(good)
    server.load_verify_locations(cadata=root().pem.decode())
    server.verify_mode = ssl.CERT_REQUIRED
    _, inside = converse(for_server(verify=False, chain=ours.pem, key=ours.key_pem), server)
    assert inside.getpeercert(binary_form=True) == ours.der
    with pytest.raises(ssl.SSLError):
        converse(for_server(verify=False), server)


# ---------------------------------------------------------------------------------------------------------- sessions


def test_a_ticket_is_good_for_its_own_context_only(good: Made) -> None:
    """B76: two listeners with the same certificate do not know each other's tickets."""
    mine, others = for_client(good.pem, good.key_pem), for_client(good.pem, good.key_pem)
    context = _client()
    session = converse(context, mine)[0].session
    assert session is not None
    assert session.has_ticket
    assert converse(context, mine, session=session)[0].session_reused
    assert not converse(context, others, session=session)[0].session_reused


def test_no_session_of_ours_is_resumed(good: Made) -> None:
    context, serves = for_server(verify=False), for_client(good.pem, good.key_pem)
    assert context.options & ssl.OP_NO_TICKET
    assert not any(converse(context, serves)[0].session_reused for _ in range(2))


def test_one_ticket_a_session(good: Made) -> None:
    assert for_client(good.pem, good.key_pem).num_tickets == 1


# ------------------------------------------------------------------------------------------------------- bad files


def _encrypted(which: Made) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return which.key.private_bytes(serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"secret"))


@pytest.mark.parametrize("which", ["no key", "no certificate", "another key", "empty", "noise", "passphrase"])
def test_what_can_not_be_used_is_told(good: Made, tmp_path: Path, which: str) -> None:
    noise = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    contents = {
        "no key": (good.pem, "no private key in it; say `key`"),
        "no certificate": (good.key_pem, "no certificate in it"),
        "another key": (good.pem + made(NAME).key_pem, "certificate and key do not belong together"),
        "empty": (b"", "no certificate in it"),
        "noise": (noise + good.key_pem, "not a certificate and its key: "),
        "passphrase": (good.pem + _encrypted(good), "the key is encrypted: `openssl pkey -in "),
    }
    path = tmp_path / "chain.pem"
    path.write_bytes(contents[which][0])
    with pytest.raises(CertificateError) as caught:
        read_pair(str(path))
    assert str(caught.value).startswith(f"{path}: {contents[which][1]}")
    assert "\n" not in str(caught.value)


def test_one_file_or_two(good: Made, tmp_path: Path) -> None:
    chain, key, both = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "both.pem"
    chain.write_bytes(good.pem)
    key.write_bytes(good.key_pem)
    both.write_bytes(good.key_pem + good.pem)
    assert read_pair(str(chain), str(key)) == (good.pem, good.key_pem)
    assert read_pair(str(both)) == (both.read_bytes(), both.read_bytes())
    key.write_bytes(made(NAME).key_pem)
    with pytest.raises(CertificateError, match=f"^{chain} and {key}: certificate and key do not belong together$"):
        read_pair(str(chain), str(key))
    key.write_bytes(good.pem)
    with pytest.raises(CertificateError, match=f"^{key}: no private key in it$"):
        read_pair(str(chain), str(key))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"none\.pem: No such file"):
        read_pair(str(tmp_path / "none.pem"))


def test_roots_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"none\.pem: No such file"):
        for_server(verify=True, roots=str(tmp_path / "none.pem"))
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    with pytest.raises(CertificateError, match=r"empty\.pem: no certificates: no certificate"):
        for_server(verify=True, roots=str(empty))


def test_the_key_log_has_the_sessions(good: Made, tmp_path: Path) -> None:
    log = tmp_path / "keys"
    converse(for_server(verify=False, keylog=str(log)), for_client(good.pem, good.key_pem))
    assert "CLIENT_TRAFFIC_SECRET_0" in log.read_text()
