"""The keys of pseudonyms: files that are made, added to, and read."""

import stat
from pathlib import Path as FilePath

import pytest

from smtpproxy.audit.hiding import Addresses
from smtpproxy.audit.keys import KeyFileError
from smtpproxy.audit.privacy import Key, Pseudonyms, create, load, rotate
from smtpproxy.smtp.values import Path

KEY = Key("k1", b"k" * 32)


def test_keys(tmp_path: FilePath) -> None:
    path = tmp_path / "key"
    create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (key,) = load(path)
    assert rotate(path) == "k2"
    first, second = load(path)
    assert first == key
    assert second.octets != key.octets
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    pseudonyms = Pseudonyms([first, second])
    shown = Addresses(pseudonyms).session().path(Path(b"alice", b"example.org"))
    assert pseudonyms.of("alice@example.org")["k2"] == shown
    assert pseudonyms.of("alice@example.org")["k1"].startswith("~k1.")
    assert pseudonyms.of("postmaster")["k1"].startswith("~k1.")
    with pytest.raises(KeyFileError, match="already"):
        create(path)
    assert b"k" * 5 not in repr(KEY).encode()


@pytest.mark.parametrize(
    ("text", "why"), [("nonsense", "a line is"), ("# nothing\n\n", "has no key"), ("k1 AAAA", "a line is")]
)
def test_key_files_that_are_none(tmp_path: FilePath, text: str, why: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=why):
        load(path)


def test_a_key_that_others_can_read(tmp_path: FilePath) -> None:
    path = tmp_path / "key"
    create(path)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="open to others"):
        load(path)


def test_a_key_that_can_not_be_written(tmp_path: FilePath) -> None:
    with pytest.raises(KeyFileError, match="can't be written"):
        create(tmp_path / "no" / "key")
