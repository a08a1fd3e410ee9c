"""Signed notes, their keys, and checkpoints: the examples of others, and everything that is not quite one."""

from base64 import b64decode, b64encode
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.audit.notes import (
    LARGEST,
    LONGEST_NAME,
    MOST_SIGNATURES,
    Checkpoint,
    NoteError,
    Signer,
    Verifier,
    checkpoint_text,
    decimal,
    decode64,
    is_name,
    open_note,
    parse_checkpoint,
    sign,
    unverified_text,
)
from tests.audit import independent

# The example of the package that the format comes from, golang.org/x/mod/sumdb/note.
NEUMANN = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
SAYING = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
SAID = f"{SAYING}\n— PeterNeumann {SIGNATURE}\n"

SIGNER = Signer("mail.example.org/audit", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = Signer("mail.example.org/audit", Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
WITNESS = Signer("witness.example.net", Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34))))
VERIFIER, OTHER_VERIFIER, WITNESS_VERIFIER = (Verifier(each.vkey) for each in (SIGNER, OTHER, WITNESS))
TEXT = checkpoint_text("mail.example.org/audit", 20852163, bytes(32))
NOTE = sign(TEXT, SIGNER)


def _signatures(*signers: Signer, text: str = TEXT) -> str:
    """A note with the signatures of all of these."""
    return text + "\n" + "".join(sign(text, each).removeprefix(text + "\n") for each in signers)


def test_the_example_of_go() -> None:
    verifier = Verifier(NEUMANN)
    assert (verifier.name, verifier.key_id.hex(), verifier.vkey) == ("PeterNeumann", "c74f20a3", NEUMANN)
    assert open_note(SAID, [verifier]) == SAYING
    assert independent.signed(SAID, NEUMANN) == SAYING


def test_the_examples_of_the_specifications_are_in_form() -> None:
    """Nobody handed out their keys: what can be read without."""
    poem = "Ognuno sta solo sul cuor della terra\ntrafitto da un raggio di sole:\n\ned è subito sera.\n"
    signature = "NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc="
    note = f"{poem}\n— quasimodo.example/salvatore {signature}\n"
    assert unverified_text(note) == poem  # an empty line in it
    with pytest.raises(NoteError, match="none of the keys that count"):
        open_note(note, [VERIFIER])
    sofa = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    root = b64decode("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=")
    assert parse_checkpoint(sofa) == Checkpoint("example.com/behind-the-sofa", 20852163, root)
    assert checkpoint_text("example.com/behind-the-sofa", 20852163, root) == sofa


def test_what_is_signed_can_be_opened() -> None:
    assert open_note(NOTE, [VERIFIER]) == TEXT
    assert independent.checkpoint(NOTE, SIGNER.vkey) == tuple(parse_checkpoint(TEXT))
    assert NOTE.startswith(TEXT + "\n— mail.example.org/audit ")
    assert len(SIGNER.sign(b"")) == 64


def test_a_text_may_look_like_a_note() -> None:
    for text in ("\n", "\n\n", "a\n\n", "a\n\n\n", NOTE, NOTE + "\n", "a\n\n— b c\nd\n", "— b c\n", "é — 日本\n"):
        assert open_note(sign(text, SIGNER), [VERIFIER]) == text
        assert independent.signed(sign(text, SIGNER), SIGNER.vkey) == text


def test_the_key_says_nothing_private() -> None:
    assert repr(SIGNER) == f"<Signer {SIGNER.vkey}>"
    assert repr(VERIFIER) == f"<Verifier {SIGNER.vkey}>"


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "PeterNeumann",
        "PeterNeumann+c74f20a3",
        NEUMANN.replace("c74f20a3", "c74f20a4"),  # not its id
        NEUMANN.replace("c74f20a3", "C74F20A3"),
        NEUMANN.replace("Peter", "Paul"),  # the name is in the id
        NEUMANN[1:],
        NEUMANN.removeprefix("PeterNeumann"),
        NEUMANN[:-4],
        NEUMANN + "\n",
        " " + NEUMANN,
        NEUMANN.replace("ARpc", "BRpc"),  # another type of signature
        f"a+{sha256(b'a' + bytes([10, 4]) + bytes(32)).hexdigest()[:8]}+{b64encode(bytes([4]) + bytes(32)).decode()}",
        "a b+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "a+c74f20a3+AA==",
        "a+c74f20a3+" + "é" * 44,
        "a+c74f20a3+\ud800",
    ],
)
def test_what_is_no_vkey(vkey: str) -> None:
    with pytest.raises(NoteError):
        Verifier(vkey)


def test_a_name_is_a_word_without_plus() -> None:
    assert all(map(is_name, ("a", "example.com/log42", "日本", "—")))
    assert not any(map(is_name, ("", "a b", "a+b", "a\n", "a\tb", "a\u00a0b", "a\u2003b", "a\0b", " ")))
    for name in ("", "a b", "a+b", "é" * (LONGEST_NAME // 2 + 1)):
        with pytest.raises(NoteError, match="is no name for a key"):
            Signer(name, Ed25519PrivateKey.generate())
    long = Signer("é" * (LONGEST_NAME // 2), Ed25519PrivateKey.generate())
    assert open_note(sign("a\n", long), [Verifier(long.vkey)]) == "a\n"


def test_signatures_of_strangers_are_passed_over() -> None:
    """Also those that share the name with one that counts, or the key id, and whatever they consist of."""
    both = _signatures(SIGNER, OTHER, WITNESS)
    for verifiers in ([VERIFIER], [OTHER_VERIFIER], [WITNESS_VERIFIER], [WITNESS_VERIFIER, VERIFIER]):
        assert open_note(both, verifiers) == TEXT
    junk = b64encode(b"\1\2\3\4" + b"x" * 5000).decode()  # as long as those that resist quantum computers
    same_id = b64encode(SIGNER.key_id + b"x").decode()
    strange = NOTE + f"— mail.example.org/audit {junk}\n— another {same_id}\n"
    assert open_note(strange, [VERIFIER]) == TEXT
    assert independent.signed(strange, SIGNER.vkey) == TEXT
    for verifiers in ([], [OTHER_VERIFIER], [WITNESS_VERIFIER]):
        with pytest.raises(NoteError, match="none of the keys that count"):
            open_note(NOTE, verifiers)


def test_a_wrong_signature_of_a_key_that_counts_makes_it_a_bad_note() -> None:
    """Even where another one that counts is right, and in whatever order."""
    wrong = b64encode(SIGNER.key_id + SIGNER.sign(b"another text\n")).decode()
    line = f"— {SIGNER.name} {wrong}\n"
    right = sign(TEXT, WITNESS)
    before = TEXT + "\n" + line + right.removeprefix(TEXT + "\n")
    for note in (right + line, before, NOTE + line):
        with pytest.raises(NoteError, match="is wrong"):
            open_note(note, [VERIFIER, WITNESS_VERIFIER])
    assert open_note(right + line, [WITNESS_VERIFIER]) == TEXT
    short = f"— {SIGNER.name} {b64encode(SIGNER.key_id + b'x').decode()}\n"
    with pytest.raises(NoteError, match="is wrong"):
        open_note(TEXT + "\n" + short, [VERIFIER])


def test_each_changed_bit_of_text_or_signature_is_found() -> None:
    octets = NOTE.encode()
    for at in range(len(octets)):
        for bit in range(8):
            bad = bytearray(octets)
            bad[at] ^= 1 << bit
            try:
                note = bad.decode()
            except UnicodeDecodeError:
                continue
            with pytest.raises(NoteError):
                open_note(note, [VERIFIER])


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n",
        "\n\n",
        TEXT,
        TEXT + "\n",
        NOTE[:-1],
        NOTE + "\n",
        NOTE + "\n\n",
        NOTE.replace("\n\n", "\n"),
        NOTE.replace("—", "-"),
        NOTE.replace("— ", "—"),
        NOTE.replace("— ", "—  "),
        NOTE.replace("— ", " — "),
        NOTE.replace("\n", "\r\n"),
        NOTE.replace("20852163", "20852163\r"),
        "\0" + NOTE,
        NOTE[:-2] + "\n",
        NOTE[:-1] + " \n",
        NOTE[:-1] + "\t\n",
        NOTE + "junk\n",
        NOTE + "nobody AAAAAAAA\n",
        NOTE + "— nobody\n",
        NOTE + "— nobody \n",
        NOTE + "— nobody AAAA\n",  # a key id without a signature
        NOTE + "— nobody AAAAAAA\n",
        NOTE + "— nobody AAAAAAA=AAAA\n",
        NOTE + "— no+body AAAAAAAA\n",
        NOTE + "— no\u2003body AAAAAAAA\n",
        "\ud800" + NOTE,
    ],
)
def test_what_is_no_note(note: str) -> None:
    with pytest.raises(NoteError):
        open_note(note, [VERIFIER])


def test_the_limits() -> None:
    assert open_note(_signatures(*[SIGNER] * MOST_SIGNATURES), [VERIFIER]) == TEXT
    with pytest.raises(NoteError, match="more than 64 signatures"):
        open_note(_signatures(*[SIGNER] * (MOST_SIGNATURES + 1)), [VERIFIER])
    for text in ("x" * LARGEST + "\n", "é" * (LARGEST // 2) + "\n"):
        with pytest.raises(NoteError, match="at most 131072 octets"):
            sign(text, SIGNER)
        with pytest.raises(NoteError, match="at most 131072 octets"):
            unverified_text(text)
    post_quantum = f"— witness.example.net/pq {b64encode(bytes(4 + 4900)).decode()}\n"
    assert open_note(NOTE + post_quantum * 16, [VERIFIER]) == TEXT


@pytest.mark.parametrize("text", ["", "a", "a\nb", "a\r\n", "a\tb\n", "\0\n", "\ud800\n"])
def test_what_is_not_signed(text: str) -> None:
    with pytest.raises(NoteError):
        sign(text, SIGNER)


@given(st.text())
def test_any_text_is_signed_and_opened_or_refused(text: str) -> None:
    try:
        note = sign(text, SIGNER)
    except NoteError:
        assert (
            not text.endswith("\n") or min(text.replace("\n", " ")) < " " or any("\ud800" <= c < "\ue000" for c in text)
        )
    else:
        assert open_note(note, [VERIFIER]) == text == independent.signed(note, SIGNER.vkey)


@given(st.text(alphabet="— \n\r+aZ0é=\0") | st.text())
def test_whatever_a_stranger_writes_is_refused(text: str) -> None:
    for note in (text, NOTE + text, TEXT + "\n" + text, NOTE + "— " + text + "\n"):
        if note != NOTE:
            try:
                opened = open_note(note, [VERIFIER])
            except NoteError:
                continue
            assert note.startswith(NOTE)  # lines of strangers
            assert opened == TEXT


def test_a_checkpoint_is_three_lines_and_perhaps_more() -> None:
    root = b64encode(bytes(32)).decode()
    assert parse_checkpoint(f"a\n0\n{root}\n") == Checkpoint("a", 0, bytes(32))
    assert parse_checkpoint(f"a b+c\n7\n{root}\nmore\nand more\n") == Checkpoint("a b+c", 7, bytes(32))
    assert parse_checkpoint(f"a\n{2**63 - 1}\n{root}\n").size == 2**63 - 1


_ROOT = b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n\n",
        f"a\n1\n{_ROOT}",
        f"a\n1\n{_ROOT}\nmore",
        "a\n1\n",
        f"\n1\n{_ROOT}\n",
        f"a\n\n{_ROOT}\n",
        f"a\n1\n{_ROOT}\n\n",
        f"a\n1\n{_ROOT}\n\nmore\n",
        f"a\n01\n{_ROOT}\n",
        f"a\n+1\n{_ROOT}\n",
        f"a\n-1\n{_ROOT}\n",
        f"a\n1 \n{_ROOT}\n",
        f"a\n1_0\n{_ROOT}\n",
        f"a\n٣\n{_ROOT}\n",
        f"a\n{2**63}\n{_ROOT}\n",
        f"a\n{'9' * 5000}\n{_ROOT}\n",
        f"a\n1\n{_ROOT[:-1]}\n",
        f"a\n1\n{_ROOT} \n",
        f"a\n1\n{b64encode(bytes(31)).decode()}\n",
        f"a\n1\n{b64encode(bytes(33)).decode()}\n",
        "a\n1\n" + _ROOT.replace("A=", "B=") + "\n",  # bits that mean nothing
        f"a\n1\n{bytes(32).hex()}\n",
        f"a\n1\n{b64encode(bytes([251] * 32), altchars=b'-_').decode()}\n",
    ],
)
def test_what_is_no_checkpoint(text: str) -> None:
    with pytest.raises(NoteError):
        parse_checkpoint(text)


@pytest.mark.parametrize(
    ("origin", "size", "root"),
    [("", 1, bytes(32)), ("a b", 1, bytes(32)), ("a\n9", 1, bytes(32)), ("a", -1, bytes(32)), ("a", 2**63, bytes(32)),
     ("a", 1, bytes(31)), ("a", 1, b"")],
)  # fmt: skip
def test_no_checkpoint_is_made_of_what_is_none(origin: str, size: int, root: bytes) -> None:
    with pytest.raises(NoteError, match="there is no checkpoint"):
        checkpoint_text(origin, size, root)


@given(st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_a_checkpoint_comes_back_as_it_was(size: int, root: bytes) -> None:
    text = checkpoint_text(SIGNER.name, size, root)
    assert parse_checkpoint(text) == (SIGNER.name, size, root)
    assert independent.checkpoint(sign(text, SIGNER), SIGNER.vkey) == (SIGNER.name, size, root)


@given(st.binary(), st.text())
def test_base64_and_numbers_have_one_form(octets: bytes, text: str) -> None:
    assert decode64(b64encode(octets).decode()) == octets
    for value in (text, b64encode(octets).decode()[:-1] + text):
        decoded = decode64(value)
        assert decoded is None or b64encode(decoded).decode() == value
    number = decimal(text)
    assert number is None or str(number) == text
