"""Key files, and how one key hands over to the next."""

import os
import stat
import subprocess
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from smtpproxy.audit.keys import (
    SUCCESSION,
    KeyFileError,
    create,
    follow,
    follow_from,
    load,
    load_verifiers,
    open_checkpoint,
    succeed,
)
from smtpproxy.audit.notes import Checkpoint, NoteError, Signer, checkpoint_text, open_note, parse_checkpoint, sign

NAME = "mail.example.org/audit"
KEYS = [Signer(NAME, Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in range(5)]
FIRST, SECOND, THIRD, STRANGER, _ = KEYS


def _tree(size: int, branch: int = 0) -> Checkpoint:
    """The log at this size; another branch of it has other records."""
    return Checkpoint(NAME, size, bytes([size % 256, branch]) * 16)


def _checkpoint(signer: Signer, size: int, branch: int = 0, name: str = NAME) -> str:
    return sign(checkpoint_text(name, size, _tree(size, branch).root), signer)


HANDED = [succeed(FIRST, SECOND.vkey, _tree(100)), succeed(SECOND, THIRD.vkey, _tree(200))]


# Key files


def test_a_key_is_made_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    vkey = create(path, NAME)
    signer = load(path)
    assert (signer.name, signer.vkey) == (NAME, vkey)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith(f"name: {NAME}\n-----BEGIN PRIVATE KEY-----\n")
    public = tmp_path / "audit.key.vkey"
    assert public.read_text() == vkey + "\n"
    assert open_note(sign("a\n", signer), load_verifiers(public)) == "a\n"
    assert create(tmp_path / "another", NAME) != vkey
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "another", "another.vkey", "audit.key", "audit.key.vkey",
    ]  # fmt: skip


def test_a_new_key_and_its_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    create(tmp_path / "audit.key", NAME)
    assert synced == [(tmp_path / name).stat().st_ino for name in ("audit.key", "audit.key.vkey", ".")]


def test_the_file_is_one_that_openssl_reads(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    create(path, NAME)
    done = subprocess.run(["openssl", "pkey", "-in", path, "-noout", "-text"], capture_output=True, timeout=30)
    assert done.stdout.startswith(b"ED25519 Private-Key")


@pytest.mark.parametrize("taken", ["audit.key", "audit.key.vkey"])
@pytest.mark.parametrize("as_what", ["file", "link"])
def test_nothing_is_overwritten(tmp_path: Path, taken: str, as_what: str) -> None:
    if as_what == "file":
        (tmp_path / taken).write_text("mine")
    else:
        (tmp_path / taken).symlink_to(tmp_path / "nowhere")
    with pytest.raises(KeyFileError, match=f"{taken} is there already"):
        create(tmp_path / "audit.key", NAME)
    assert [file.name for file in tmp_path.iterdir()] == [taken]


def test_who_was_quicker_keeps_his_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "audit.key").write_text("his")
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    with pytest.raises(KeyFileError, match=r"audit\.key is there already"):
        create(tmp_path / "audit.key", NAME)
    assert (tmp_path / "audit.key").read_text() == "his"


@pytest.mark.parametrize("fails_at", [1, 2])
def test_half_a_key_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    """A disk that is full at the first file, or at the second."""
    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KeyFileError, match=r"can't be written: No space left on device"):
        create(tmp_path / "audit.key", NAME)
    assert list(tmp_path.iterdir()) == []


def test_a_key_goes_to_a_directory_that_is_there_and_has_a_name(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"nowhere/audit\.key can't be written: No such file"):
        create(tmp_path / "nowhere" / "audit.key", NAME)
    with pytest.raises(NoteError, match="is no name for a key"):
        create(tmp_path / "audit.key", "two words")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o660, 0o644, 0o601, 0o620])
def test_a_key_that_others_can_get_at_is_not_taken(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "audit.key"
    create(path, NAME)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"is open to others.*chmod 600 {path}"):
        load(path)
    path.chmod(0o440)  # as service managers hand it to one group
    assert load(path).name == NAME


def _pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, passphrase: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


GOOD = _pem(Ed25519PrivateKey.generate())


NO_KEY_FILES = {
    "empty": b"",
    "a name alone": b"name: a\n",
    "a key alone": GOOD,
    "a name without blank": b"name:a\n" + GOOD,
    "an empty name": b"name: \n" + GOOD,
    "a name of two words": b"name: a b\n" + GOOD,
    "a name that is no text": b"name: a\xff\n" + GOOD,
    "half a key": b"name: a\n" + GOOD[:60],
    "a key of another kind": b"name: a\n" + _pem(ec.generate_private_key(ec.SECP256R1())),
    "a passphrase": b"name: a\n" + _pem(Ed25519PrivateKey.generate(), b"a passphrase"),
    "too long": b"\0" * 70_000,
}


@pytest.mark.parametrize("octets", NO_KEY_FILES.values(), ids=NO_KEY_FILES)
def test_what_is_no_key_file(tmp_path: Path, octets: bytes) -> None:
    path = tmp_path / "audit.key"
    path.write_bytes(octets)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=str(path)) as caught:
        load(path)
    assert "PRIVATE KEY" not in str(caught.value)


def test_a_key_file_that_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "directory").mkdir(0o700)
    for name, why in (("nothing", "is not there"), ("fifo", "is not a file"), ("directory", "is not a file")):
        with pytest.raises(KeyFileError, match=why):
            load(tmp_path / name)
        with pytest.raises(KeyFileError, match=why):
            load_verifiers(tmp_path / name)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(KeyFileError, match=r"can't be read: Too many levels"):
        load(tmp_path / "loop")


def test_a_verifier_file_may_have_several_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# the gateway\n{FIRST.vkey}\n\n# its witness\n  {SECOND.vkey}\n")
    assert [each.vkey for each in load_verifiers(path)] == [FIRST.vkey, SECOND.vkey]


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        pytest.param(b"", "has no key in it", id="empty"),
        pytest.param(b"# none\n", "has no key in it", id="a comment"),
        pytest.param(b"\xff\n", "is not text", id="no text"),
        pytest.param(b"a+b\n", "is no key", id="no key"),
        pytest.param(FIRST.vkey.encode() + b"\nx\n", "is no key", id="no second key"),
        pytest.param(b"\0" * 70_000, "has more than", id="too long"),
    ],
)
def test_what_is_no_verifier_file(tmp_path: Path, octets: bytes, why: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(octets)
    with pytest.raises(KeyFileError, match=f"{path}.*{why}"):
        load_verifiers(path)


# Successions


def test_what_a_succession_says() -> None:
    text = open_note(HANDED[0], [follow(FIRST.vkey, [])[0].verifier])
    assert text.split("\n") == [
        "smtpproxy key succession v1",
        "size 100",
        f"root {b64encode(_tree(100).root).decode()}",
        f"key {SECOND.vkey}",
        "",
    ]


def test_the_keys_are_followed_from_the_one_that_is_trusted() -> None:
    terms = follow(FIRST.vkey, HANDED)
    assert [(term.verifier.vkey, term.start) for term in terms] == [
        (FIRST.vkey, None), (SECOND.vkey, _tree(100)), (THIRD.vkey, _tree(200)),
    ]  # fmt: skip
    assert [term.verifier.vkey for term in follow(SECOND.vkey, HANDED[1:])] == [SECOND.vkey, THIRD.vkey]
    assert [term.start for term in follow(FIRST.vkey, [])] == [None]


def test_each_key_counts_in_its_term_alone() -> None:
    terms = follow(FIRST.vkey, HANDED)
    for size, good in (
        (0, {0}),
        (99, {0}),
        (100, {0, 1}),
        (101, {1}),
        (199, {1}),
        (200, {1, 2}),
        (201, {2}),
        (2**40, {2}),
    ):
        for number, signer in enumerate((FIRST, SECOND, THIRD, STRANGER)):
            note = _checkpoint(signer, size)
            if number in good:
                assert open_checkpoint(note, terms) == _tree(size)
            else:
                with pytest.raises(NoteError, match="none of the keys that count"):
                    open_checkpoint(note, terms)


def test_a_stolen_key_does_not_change_what_was_before_its_term() -> None:
    """Whoever has the second key can't say anything of sizes up to 100 but what the first one handed over; who kept the
    first one can't go on beyond."""
    terms = follow(FIRST.vkey, HANDED)
    for signer, size in ((SECOND, 99), (SECOND, 100), (FIRST, 101), (FIRST, 100), (SECOND, 200), (SECOND, 201)):
        with pytest.raises(NoteError):
            open_checkpoint(_checkpoint(signer, size, branch=1), terms)
    with pytest.raises(NoteError, match="another root for 100 records"):
        open_checkpoint(_checkpoint(FIRST, 100, branch=1), terms)


def test_a_checkpoint_of_another_log_is_none_of_this() -> None:
    with pytest.raises(NoteError, match=r"of the log 'mail\.example\.net', not of mail\.example\.org/audit"):
        open_checkpoint(_checkpoint(FIRST, 7, name="mail.example.net"), follow(FIRST.vkey, []))
    with pytest.raises(NoteError, match="the size of a checkpoint"):
        open_checkpoint(HANDED[0], follow(FIRST.vkey, []))


def test_a_changed_checkpoint_is_none() -> None:
    note = _checkpoint(FIRST, 7).replace("\n7\n", "\n8\n")
    with pytest.raises(NoteError, match="is wrong"):
        open_checkpoint(note, follow(FIRST.vkey, []))


def _by_hand(signer: Signer, *lines: str) -> str:
    return sign("".join(f"{line}\n" for line in lines), signer)


ROOT = b64encode(_tree(100).root).decode()
SAID = (SUCCESSION, "size 100", f"root {ROOT}", f"key {SECOND.vkey}")


@pytest.mark.parametrize(
    ("successions", "why"),
    [
        ([HANDED[1]], "succession 1: none of the keys"),
        (HANDED[::-1], "succession 1: none of the keys"),
        ([HANDED[0], HANDED[0]], "succession 2: none of the keys"),
        ([HANDED[0].replace("size 100", "size 101")], "succession 1: the signature .* is wrong"),
        ([HANDED[0].replace(SECOND.vkey, THIRD.vkey)], "succession 1: the signature .* is wrong"),
        ([succeed(STRANGER, SECOND.vkey, _tree(100))], "succession 1: none of the keys"),
        ([HANDED[0], succeed(SECOND, FIRST.vkey, _tree(200))], "succession 2: a key comes back"),
        ([HANDED[0], succeed(SECOND, THIRD.vkey, _tree(99))], "succession 2: its tree does not go on"),
        ([HANDED[0], succeed(SECOND, THIRD.vkey, _tree(100, branch=1))], "succession 2: its tree does not go on"),
        ([_by_hand(FIRST, *SAID[:3], f"key {FIRST.vkey}")], "a key comes back"),
        ([_by_hand(FIRST, *SAID[:3], "key nothing")], "succession 1: 'nothing' is no key"),
        ([_by_hand(FIRST, *SAID[:3], SECOND.vkey)], "is no key"),
        ([_by_hand(FIRST, *SAID[:3])], "is no succession"),
        ([_by_hand(FIRST, *SAID, "more")], "is no succession"),
        ([_by_hand(FIRST, "key succession", *SAID[1:])], "is no succession"),
        ([_by_hand(FIRST, SUCCESSION, "size 0100", *SAID[2:])], "its size is no number"),
        ([_by_hand(FIRST, SUCCESSION, "100", *SAID[2:])], "its size is no number"),
        ([_by_hand(FIRST, *SAID[:2], f"root {ROOT[:-1]}", SAID[3])], "not base64 of 32 octets"),
        ([_by_hand(FIRST, *SAID[:2], "root AAAA", SAID[3])], "not base64 of 32 octets"),
        (
            [_by_hand(FIRST, *SAID[:3], f"key {Signer('a', Ed25519PrivateKey.generate()).vkey}")],
            "is one of 'a', not of mail",
        ),
        ([_checkpoint(FIRST, 100)], "is no succession"),
        (["junk"], "succession 1: this is no signed note"),
    ],
)
def test_what_does_not_hand_over(successions: list[str], why: str) -> None:
    with pytest.raises(NoteError, match=why):
        follow(FIRST.vkey, successions)


def test_from_any_of_the_keys() -> None:
    whole = [FIRST.vkey, SECOND.vkey, THIRD.vkey]
    assert [term.verifier.vkey for term in follow_from(FIRST.vkey, HANDED)] == whole
    assert [term.verifier.vkey for term in follow_from(SECOND.vkey, HANDED)] == [SECOND.vkey, THIRD.vkey]
    assert [term.verifier.vkey for term in follow_from(THIRD.vkey, HANDED)] == [THIRD.vkey]
    assert [term.verifier.vkey for term in follow_from(FIRST.vkey, [])] == [FIRST.vkey]
    assert [term.verifier.vkey for term in follow_from(STRANGER.vkey, [*HANDED, "nothing"])] == [STRANGER.vkey]
    with pytest.raises(NoteError, match="succession 2"):
        follow_from(FIRST.vkey, [HANDED[0], "nothing"])


def test_a_key_may_be_replaced_before_a_record_comes() -> None:
    again = [HANDED[0], succeed(SECOND, THIRD.vkey, _tree(100))]
    terms = follow(FIRST.vkey, again)
    assert open_checkpoint(_checkpoint(SECOND, 100), terms) == _tree(100)
    assert open_checkpoint(_checkpoint(THIRD, 101), terms) == _tree(101)
    with pytest.raises(NoteError):
        open_checkpoint(_checkpoint(SECOND, 101), terms)


def test_a_key_does_not_hand_over_to_itself_or_to_another_log() -> None:
    with pytest.raises(NoteError, match="can't go on from itself"):
        succeed(FIRST, FIRST.vkey, _tree(1))
    for new, at in (
        (Signer("a", Ed25519PrivateKey.generate()).vkey, _tree(1)),
        (SECOND.vkey, Checkpoint("a", 1, bytes(32))),
    ):
        with pytest.raises(NoteError, match="the keys of a log have its name"):
            succeed(FIRST, new, at)
    with pytest.raises(NoteError, match="is no key"):
        succeed(FIRST, "nothing", _tree(1))


def test_a_succession_is_no_checkpoint_and_the_other_way_round() -> None:
    """One key signs both, so no text may be read as either."""
    terms = follow(FIRST.vkey, [])
    with pytest.raises(NoteError):
        parse_checkpoint(open_note(HANDED[0], [terms[0].verifier]))
    with pytest.raises(NoteError, match="there is no checkpoint"):
        checkpoint_text(SUCCESSION, 1, bytes(32))
