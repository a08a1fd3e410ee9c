"""Proof files: what is written is read, by others too, and nothing else is."""

from base64 import b64encode
from hashlib import sha256

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.audit.entries import entry_of, leaf_of
from smtpproxy.audit.keys import SUCCESSION, follow, open_checkpoint
from smtpproxy.audit.notes import NoteError, Signer, checkpoint_text, sign
from smtpproxy.audit.proofs import MOST_HASHES, Proof, parse_proof, proof_text
from smtpproxy.audit.tree import check_inclusion, inclusion_proof, root_of
from tests.audit import independent

SIGNER = Signer("mail.example.org/audit", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
LINES = [
    b'{"v":1,"session":"a-1","kind":"exchange","code":250,"salt":"AAAAAAAAAAAAAAAAAAAA%02d","asked":"RCPT TO:<%d@b>"}'
    % (number, number)
    for number in range(21)
]
LINES[5] = entry_of(LINES[5])  # erased
LINES[6] = b'{"v":1,"session":"a-1","kind":"link-close","seconds":1.5}'
LEAVES = [leaf_of(line) for line in LINES]
NOTE = sign(checkpoint_text(SIGNER.name, len(LINES), root_of(LEAVES)), SIGNER)
HASHES = [sha256(bytes([number])).digest() for number in range(30)]
TEXT = proof_text(73894, HASHES[:3], NOTE)


def _proof(number: int) -> str:
    hashes = inclusion_proof(number, len(LEAVES), lambda a, b: root_of(LEAVES[a:b]))
    return proof_text(number, hashes, NOTE)


def test_each_record_is_proved_to_both_verifiers_and_by_its_own_proof_alone() -> None:
    terms = follow(SIGNER.vkey, [])
    for number, line in enumerate(LINES):
        for other in range(len(LINES)):
            text = _proof(other)
            proof = parse_proof(text)
            checkpoint = open_checkpoint(proof.note, terms)
            proved = check_inclusion(leaf_of(line), proof.number, checkpoint.size, proof.hashes, checkpoint.root)
            assert proved is (number == other)
            assert bool(independent.proved(line, text, SIGNER.vkey)) is proved


def test_an_erased_record_has_the_proof_it_had() -> None:
    for number, line in enumerate(LINES):
        assert independent.proved(entry_of(line), _proof(number), SIGNER.vkey)
        if line != entry_of(line):
            assert not independent.proved(line.replace(b"RCPT", b"SEND"), _proof(number), SIGNER.vkey)


_KEYS = st.text().filter(lambda key: key != "salt")


@given(
    st.dictionaries(_KEYS, st.text()), st.dictionaries(_KEYS, st.text() | st.sampled_from(['","salt":"', ',"salt":"']))
)
def test_both_make_one_leaf_of_a_line(public: dict[str, str], personal: dict[str, str]) -> None:
    """Whatever people write into it; its entry has the same."""
    for record in ({"v": "1", **public}, {"v": "1", **public, "salt": "AAAA", **personal}, {"v": "1", **personal}):
        line = msgspec.json.encode(record)
        assert leaf_of(line) == independent.leaf(line) == leaf_of(entry_of(line)) == independent.leaf(entry_of(line))
        assert (entry_of(line) == line) is ("salt" not in record)


def test_the_form() -> None:
    assert TEXT.split("\n")[:6] == [
        "c2sp.org/tlog-proof@v1",
        "index 73894",
        *(b64encode(each).decode() for each in HASHES[:3]),
        "",
    ]
    assert TEXT.endswith("\n\n" + NOTE)
    assert parse_proof(TEXT) == Proof(73894, HASHES[:3], NOTE)
    assert parse_proof(proof_text(0, [], NOTE)) == Proof(0, [], NOTE)


def test_successions_go_along() -> None:
    notes = tuple(f"{SUCCESSION}\nsize {number}\n\n— a AAAA\n" for number in range(3))
    for some in (notes, notes[:1], ()):
        text = proof_text(73894, HASHES[:3], NOTE, some)
        assert parse_proof(text) == parse_proof(TEXT)._replace(successions=some)


@pytest.mark.parametrize("extra", ["", "AAA", "=", "//8=", "x" * 1000])
def test_extras_that_are_nothing(extra: str) -> None:
    assert parse_proof(TEXT.replace("index", f"extra {extra}\nindex")) == parse_proof(TEXT)


def test_extras_of_others_are_passed_over() -> None:
    assert parse_proof(TEXT.replace("index", "extra AAAA\nindex")) == parse_proof(TEXT)


def test_it_is_small() -> None:
    """Of 10^9 records, of a log with a long name."""
    signer = Signer("a-rather-long-hostname.mail.example.org/audit/2026", Ed25519PrivateKey.generate())
    note = sign(checkpoint_text(signer.name, 10**9, HASHES[0]), signer)
    hashes = inclusion_proof(5 * 10**8, 10**9, lambda a, b: HASHES[0])
    assert len(hashes) == 30
    assert len(proof_text(5 * 10**8, hashes, note).encode()) < 2048


@pytest.mark.parametrize(
    "text",
    [
        "",
        NOTE,
        TEXT[1:],
        TEXT.replace("@v1", "@v2"),
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("\n\n", "\n"),
        TEXT.replace("index 73894\n", ""),
        TEXT.replace("index 73894", "index"),
        TEXT.replace("index 73894", "index "),
        TEXT.replace("index 73894", "73894"),
        TEXT.replace("73894", "073894"),
        TEXT.replace("73894", "-1"),
        TEXT.replace("73894", str(2**63)),
        TEXT.replace("index", "extra AAAA\nextra AAAA\nindex"),
        TEXT.replace("index", "\nindex"),
        TEXT.replace(b64encode(HASHES[1]).decode(), b64encode(HASHES[1][1:]).decode()),
        TEXT.replace(b64encode(HASHES[1]).decode(), HASHES[1].hex()),
        TEXT.replace(b64encode(HASHES[1]).decode(), b64encode(HASHES[1]).decode() + " "),
        proof_text(1, [HASHES[0]] * (MOST_HASHES + 1), NOTE),
        "c2sp.org/tlog-proof@v1",
        "c2sp.org/tlog-proof@v1\n\n" + NOTE,
        "c2sp.org/tlog-proof@v1\nextra AAAA\n\n" + NOTE,
        TEXT + "x" * 300_000,
    ],
)
def test_what_is_no_proof(text: str) -> None:
    with pytest.raises(NoteError):
        parse_proof(text)


@given(st.text())
def test_whatever_a_stranger_writes_is_read_or_refused(text: str) -> None:
    for given_text in (text, "c2sp.org/tlog-proof@v1\n" + text, TEXT[:40] + text + TEXT[40:]):
        try:
            proof = parse_proof(given_text)
        except NoteError:
            continue
        assert all(len(each) == 32 for each in proof.hashes)
        assert given_text.endswith("\n\n" + proof.note)


@given(st.integers(0, 2**63 - 1), st.lists(st.binary(min_size=32, max_size=32), max_size=MOST_HASHES), st.text())
def test_a_proof_comes_back_as_it_was(number: int, hashes: list[bytes], note: str) -> None:
    assert parse_proof(proof_text(number, hashes, note)) == Proof(number, hashes, note)
