"""Transcripts sealed to an auditor."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from smtpproxy.audit.keys import KeyFileError
from smtpproxy.audit.sealing import SealError, create, opener, sealer


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "auditor.key"
    create(path)
    return path


def test_only_the_auditor_reads_it(key: Path, tmp_path: Path) -> None:
    seal, opened = sealer(key.with_name("auditor.key.pub")), opener(key)
    text = seal(b"the content", b"a-1:7")
    assert b"content" not in text.encode()
    assert seal(b"the content", b"a-1:7") != text
    assert opened(text, b"a-1:7") == b"the content"
    create(tmp_path / "other.key")
    with pytest.raises(SealError):
        opener(tmp_path / "other.key")(text, b"a-1:7")


def test_it_belongs_to_its_record(key: Path) -> None:
    text = sealer(key.with_name("auditor.key.pub"))(b"x", b"a-1:7")
    for about in (b"a-1:8", b"", b"a-2:7"):
        with pytest.raises(SealError):
            opener(key)(text, about)


@pytest.mark.parametrize("text", ["", "AAAA", "not base64!", "A" * 64])
def test_what_is_not_sealed(key: Path, text: str) -> None:
    with pytest.raises(SealError):
        opener(key)(text, b"")


def test_files(key: Path, tmp_path: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyFileError, match="already"):
        create(key)
    with pytest.raises(KeyFileError, match="can't be written"):
        create(tmp_path / "no" / "key")
    with pytest.raises(KeyFileError, match="no auditor's public key"):
        sealer(key)
    with pytest.raises(KeyFileError, match="open to others"):
        opener(key.with_name("auditor.key.pub"))
    (tmp_path / "bad").write_text("x")
    (tmp_path / "bad").chmod(0o600)
    with pytest.raises(KeyFileError, match="no auditor's key"):
        opener(tmp_path / "bad")


def test_another_kind_of_hpke_text_is_not_needed(tmp_path: Path) -> None:
    """Any X25519 public key in PEM will do."""
    public = X25519PrivateKey.generate().public_key()
    (tmp_path / "pub").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert sealer(tmp_path / "pub")(b"x", b"")
