"""What clients are shown: given certificates that are reloaded, made ones that are made once (H2, H10, H11)."""

import errno
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from smtpproxy.config import CertificateConfig
from smtpproxy.net.identities import GOOD, KEPT, Given, Identity, Made, first_certificate
from smtpproxy.net.signing import Signer
from smtpproxy.tls.authority import create
from smtpproxy.tls.contexts import CertificateError, for_server
from smtpproxy.tls.minting import KeyPair, Leaf, Likeness, mint
from tests.net.tls_rig import ALTERNATE, NAME, good, other, put
from tests.tls import maker
from tests.tls.maker import made, root
from tests.tls.talk import converse

_PEM = Encoding.PEM


def _given(*paths: str, key: str = "") -> Given:
    return Given([CertificateConfig(chain=path, key=key) for path in paths], legacy=False, keylog="")


def _shown(identity: Identity, name: str) -> bytes:
    """What a client that asks for this name sees."""
    client, _ = converse(for_server(verify=False), identity.choose(name).context, name or None)
    found = client.getpeercert(binary_form=True)
    assert found
    return found


# -------------------------------------------------------------------------------------------------------------- given


@pytest.mark.parametrize(
    ("name", "second"),
    [(NAME, False), (ALTERNATE, True), ("a.wild.example", True), ("wild.example", False), ("a.b.wild.example", False),
     ("", False), ("unknown.example", False)],
)  # fmt: skip
def test_one_is_chosen_by_the_name_and_the_first_where_none_fits(tmp_path: Path, name: str, second: bool) -> None:
    identity = _given(put(tmp_path, "1.pem", good()), put(tmp_path, "2.pem", other())).identity()
    assert identity.shown == "given"
    assert _shown(identity, name) == (other() if second else good()).der
    assert identity.choose(name).leaf == (other() if second else good()).der


def test_a_certificate_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = put(tmp_path, "1.pem", good())
    given = _given(path)
    before = given.identity()
    given.check()
    assert given.identity().choose("").context is before.choose("").context  # nothing changed: nothing was read
    renewed = made(NAME, root(), names=(NAME,))
    put(tmp_path, "1.pem", renewed)
    with capture_logs() as logs:
        given.check()
    assert [entry["event"] for entry in logs] == ["certificates reloaded"]
    assert _shown(given.identity(), NAME) == renewed.der
    assert _shown(before, NAME) == good().der  # who began with it ends with it


def test_a_certificate_that_is_replaced_by_another_file(tmp_path: Path) -> None:
    """As renewals do it: a new file under the old name, perhaps by a link."""
    real = put(tmp_path, "first.pem", good())
    link = tmp_path / "live.pem"
    link.symlink_to(real)
    given = _given(str(link))
    put(tmp_path, "second.pem", other())
    link.unlink()
    link.symlink_to(tmp_path / "second.pem")
    given.check()
    assert _shown(given.identity(), NAME) == other().der


@pytest.mark.parametrize("harm", ["gone", "noise", "another key", "half of two"])
def test_a_bad_one_leaves_the_old_one_in_force_and_is_told_once(tmp_path: Path, harm: str) -> None:
    first, second = put(tmp_path, "1.pem", good()), put(tmp_path, "2.pem", other())
    given = _given(first, second)
    if harm == "gone":
        os.unlink(second)
    else:
        Path(second).write_bytes(b"noise" if harm == "noise" else other().pem + good().key_pem)
    if harm == "half of two":  # one is renewed, and the other can't be used: both stay as they are
        put(tmp_path, "1.pem", made(NAME, root(), names=(NAME,)))
    with capture_logs() as logs:
        given.check()
        given.check()
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert second in logs[0]["why"]
    assert _shown(given.identity(), ALTERNATE) == other().der
    assert _shown(given.identity(), NAME) == good().der
    put(tmp_path, "2.pem", other())
    with capture_logs() as logs:
        given.check()
    assert [entry["log_level"] for entry in logs] == ["info"]


def test_one_that_can_not_be_read_just_now_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is left: nothing is raised into whoever looks, and the next look finds it."""
    given = _given(put(tmp_path, "1.pem", good()))
    put(tmp_path, "1.pem", other())

    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr("os.memfd_create", none_left)
        given.check()
        given.check()
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert _shown(given.identity(), NAME) == good().der
    given.check()
    assert _shown(given.identity(), NAME) == other().der


def test_a_bad_one_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="none"):
        _given(str(tmp_path / "none.pem"))


def test_the_first_certificate_of_a_file() -> None:
    assert first_certificate(good().key_pem + good().pem + root().pem) == good().der
    for bad in (
        b"",
        good().key_pem,
        b"-----BEGIN CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\n\xff\n-----END CERT",
    ):
        with pytest.raises(CertificateError):
            first_certificate(bad)


# --------------------------------------------------------------------------------------------------------------- made


class Clock:
    """The time of day."""

    def __init__(self) -> None:
        self.now = float(maker.NOW)

    def __call__(self) -> float:
        """Unix seconds."""
        return self.now


class FakeSigner:
    """A signer that signs when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.authority = create(folder / "ca", "Test", 100)
        self.asked: list[tuple[Likeness, Callable[[Leaf | str], None]]] = []

    def mint(self, like: Likeness, done: Callable[[Leaf | str], None]) -> None:
        """As Signer."""
        self.asked.append((like, done))

    def sign(self) -> None:
        """What was asked for."""
        asked, self.asked = self.asked, []
        for like, done in asked:
            pair = KeyPair()
            der = mint(self.authority, like, pair.spki, time.time(), 30)
            done(pair.leaf(der, self.authority.certificate.public_bytes(_PEM)))

    def refuse(self) -> None:
        """All of it."""
        asked, self.asked = self.asked, []
        for _, done in asked:
            done("no")


def _maker(signer: FakeSigner | None, *, host: str = NAME, trusted: bool = False, clock: Clock | None = None) -> Made:
    wall = clock or Clock()
    return Made(cast(Signer, signer), host, trusted=trusted, legacy=False, keylog="", wall=wall)


def _have(makes: Made, leaf: bytes, verified: bool = True) -> list[Identity | str]:
    """Ask; what the answer will be put in."""
    answers: list[Identity | str] = []
    makes.prepare(leaf, verified, answers.append)
    return answers


def _identity(answers: list[Identity | str]) -> Identity:
    (answer,) = answers
    assert isinstance(answer, Identity)
    return answer


def _certificate(identity: Identity) -> x509.Certificate:
    return x509.load_der_x509_certificate(_shown(identity, NAME))


def test_a_verified_server_has_one_of_the_ca(tmp_path: Path) -> None:
    signer = FakeSigner(tmp_path)
    answers = _have(_maker(signer), good().der)
    assert answers == []
    signer.sign()
    identity = _identity(answers)
    assert identity.shown == "minted"
    found = _certificate(identity)
    assert found.issuer == signer.authority.certificate.subject
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NAME]
    roots = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    roots.load_verify_locations(cadata=signer.authority.certificate.public_bytes(_PEM).decode())
    converse(roots, identity.choose(NAME).context, NAME)


def test_who_is_verified_by_dane_is_certified_for_its_name_alone(tmp_path: Path) -> None:
    """RFC 7671 §5.1: nobody has looked at the other names of such a certificate; whoever made it chose them."""
    signer = FakeSigner(tmp_path)
    makes = Made(cast(Signer, signer), NAME, trusted=False, legacy=False, keylog="", wall=Clock(), vouched=False)
    claims = made(NAME, root(), names=(NAME, "bank.example", "*.gov.example", "192.0.2.7"))
    answers = _have(makes, claims.der)
    signer.sign()
    found = _certificate(_identity(answers))
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [NAME]


@pytest.mark.parametrize("there", [True, False])  # a CA
def test_one_that_failed_is_never_certified(tmp_path: Path, there: bool) -> None:
    signer = FakeSigner(tmp_path) if there else None
    identity = _identity(_have(_maker(signer), good().der, verified=False))
    assert identity.shown == "self-signed"
    found = _certificate(identity)
    assert found.issuer == found.subject
    assert signer is None or not signer.asked


def test_the_same_certificate_verified_and_not_are_two_things(tmp_path: Path) -> None:
    signer = FakeSigner(tmp_path)
    makes = _maker(signer)
    answers = _have(makes, good().der)
    signer.sign()
    assert _identity(_have(makes, good().der, verified=False)).shown == "self-signed"
    assert _identity(_have(makes, good().der)) is _identity(answers)


@pytest.mark.parametrize(("trusted", "shown"), [(True, "minted"), (False, "self-signed")])
def test_a_server_without_a_certificate_has_one_for_its_name(tmp_path: Path, trusted: bool, shown: str) -> None:
    signer = FakeSigner(tmp_path)
    answers = _have(_maker(signer, trusted=trusted), b"", verified=False)
    signer.sign()
    assert _identity(answers).shown == shown
    assert _identity(answers).choose("").names == (NAME,)


def test_a_server_by_a_link_local_address(tmp_path: Path) -> None:
    identity = _identity(_have(_maker(None, host="fe80::1%lo"), b"", verified=False))
    assert identity.choose("").names == ("fe80::1",)


@pytest.mark.parametrize("leaf", [b"\x30\x00", b"noise", made(NAME).der])
def test_one_that_can_not_be_read_or_has_no_name_is_nothing_to_certify(tmp_path: Path, leaf: bytes) -> None:
    signer = FakeSigner(tmp_path)
    with capture_logs():
        answers = _have(_maker(signer), leaf)
    assert not signer.asked
    assert _identity(answers).shown == "self-signed"


def test_one_whose_time_is_over_is_nothing_to_certify(tmp_path: Path) -> None:
    """DANE-EE verifies without a look at dates (RFC 7671 §5.1); the CA signs none that has expired."""
    signer = FakeSigner(tmp_path)
    old = made(NAME, names=(NAME,), since=-30, until=-1)
    identity = _identity(_have(_maker(signer), old.der))
    assert identity.shown == "self-signed"
    assert not signer.asked


def test_many_who_ask_at_once_have_one_made(tmp_path: Path) -> None:
    signer = FakeSigner(tmp_path)
    makes = _maker(signer)
    waiting = [_have(makes, good().der) for _ in range(50)]
    assert len(signer.asked) == 1
    signer.sign()
    assert len({id(_identity(answers)) for answers in waiting}) == 1
    assert _have(makes, good().der) == waiting[0]
    assert not signer.asked


def test_who_waits_is_told_when_it_fails_and_the_next_one_asks_again(tmp_path: Path) -> None:
    signer = FakeSigner(tmp_path)
    makes = _maker(signer)
    waiting = [_have(makes, good().der) for _ in range(3)]
    signer.refuse()
    assert waiting == [["no certificate from the CA: no"]] * 3
    answers = _have(makes, good().der)
    signer.sign()
    assert _identity(answers).shown == "minted"


def test_it_is_made_again_when_its_time_is_over(tmp_path: Path) -> None:
    clock = Clock()
    makes = _maker(None, clock=clock)
    first = _identity(_have(makes, good().der))
    clock.now += GOOD - 1
    assert _identity(_have(makes, good().der)) is first
    clock.now += 2
    assert _identity(_have(makes, good().der)) is not first


def test_it_is_not_used_beyond_the_servers_own_time(tmp_path: Path) -> None:
    clock = Clock()
    makes = _maker(None, clock=clock)
    short = made(NAME, root(), names=(NAME,), until=1 / 24)
    first = _identity(_have(makes, short.der))
    clock.now += 3500
    assert _identity(_have(makes, short.der)) is first
    clock.now += 50
    assert _identity(_have(makes, short.der)) is not first


def test_how_many_are_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpproxy.net.identities.KEPT", 3)
    makes = _maker(None)
    leaves = [made(f"{number}.example", names=(f"{number}.example",)).der for number in range(4)]
    kept = {leaf: _identity(_have(makes, leaf)) for leaf in leaves[:3]}
    assert _identity(_have(makes, leaves[0])) is kept[leaves[0]]  # asked for again: it is not the oldest any more
    _have(makes, leaves[3])
    assert _identity(_have(makes, leaves[0])) is kept[leaves[0]]
    assert _identity(_have(makes, leaves[2])) is kept[leaves[2]]
    assert _identity(_have(makes, leaves[1])) is not kept[leaves[1]]
    assert KEPT == 1000


def test_nothing_is_logged_of_keys(tmp_path: Path) -> None:
    with capture_logs() as logs:
        identity = _identity(_have(_maker(None), good().der))
    assert "PRIVATE" not in repr(identity)
    assert "PRIVATE" not in repr(logs)
