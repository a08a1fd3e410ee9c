"""What is done to a listener's records before they are written: keys are read once, each listener has its own way."""

from pathlib import Path

import pytest

from smtpproxy.audit import privacy, sealing
from smtpproxy.audit.keys import KeyFileError
from smtpproxy.audit.lines import Private
from smtpproxy.config import AuditConfig
from smtpproxy.net.discretion import Discretion
from smtpproxy.smtp import values

ALICE = values.Path(b"alice", b"example.org")


@pytest.fixture
def pseudonym_key(tmp_path: Path) -> str:
    privacy.create(tmp_path / "pseudonym.key")
    return str(tmp_path / "pseudonym.key")


@pytest.fixture
def auditor(tmp_path: Path) -> str:
    sealing.create(tmp_path / "auditor.key")
    (public,) = (path for path in tmp_path.iterdir() if path.name.startswith("auditor") and path.suffix == ".pub")
    return str(public)


def private(config: AuditConfig, addresses: str) -> Private:
    """What the next session of such a listener gets."""
    found = Discretion(config).of(addresses)()
    assert found is not None
    return found


def path(one: Private) -> str:
    """What it calls somebody."""
    assert one.addresses is not None
    return one.addresses.path(ALICE)


def test_in_clear_nothing_is_done() -> None:
    assert Discretion(AuditConfig()).of("clear")() is None


def test_domain_only() -> None:
    """No key is needed for it."""
    one = private(AuditConfig(), "domain-only")
    assert path(one) == "~@example.org"
    assert one.seal is None


def test_pseudonyms(pseudonym_key: str) -> None:
    """The same in each session, and another one by another key."""
    config = AuditConfig(pseudonym_key=pseudonym_key)
    shown = path(private(config, "pseudonym"))
    assert "alice" not in shown
    assert "example" not in shown
    assert path(private(config, "pseudonym")) == shown
    Path(pseudonym_key).unlink()
    privacy.create(Path(pseudonym_key))
    assert path(private(config, "pseudonym")) != shown


def test_listeners_differ(pseudonym_key: str) -> None:
    """One of a gateway may be in clear while another is not."""
    discretion = Discretion(AuditConfig(pseudonym_key=pseudonym_key))
    assert discretion.of("clear")() is None
    assert discretion.of("domain-only")() is not None
    assert discretion.of("pseudonym")() is not None


def test_sessions_do_not_share_what_they_saw() -> None:
    """Each remembers whom it has seen, so that texts can be looked through; not what another one's were."""
    of = Discretion(AuditConfig()).of("domain-only")
    first, second = of(), of()
    assert first is not None
    assert second is not None
    assert first.addresses is not second.addresses


@pytest.mark.parametrize("addresses", ["clear", "domain-only"])
def test_transcripts_are_sealed(auditor: str, addresses: str) -> None:
    """Whatever becomes of addresses; who has the other half can read them, bound to their record."""
    one = private(AuditConfig(auditor=auditor), addresses)
    assert (one.addresses is None) == (addresses == "clear")
    assert one.seal is not None
    sealed = one.seal(b"a canary", b"record 1")
    assert "canary" not in sealed
    opened = sealing.opener(Path(auditor).with_name("auditor.key"))
    assert opened(sealed, b"record 1") == b"a canary"


@pytest.mark.parametrize("which", ["pseudonym_key", "auditor"])
def test_a_key_that_cannot_be_had(tmp_path: Path, which: str) -> None:
    """Told when the service starts, and not at the first record."""
    with pytest.raises(KeyFileError, match=r"none\.key"):
        Discretion(AuditConfig.model_validate({which: str(tmp_path / "none.key")}))
