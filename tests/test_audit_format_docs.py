"""docs/audit-format.md is so: its example is what the package makes, and its program verifies that and nothing else."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from smtpproxy.audit.entries import entry_of, is_erasable, leaf_of
from smtpproxy.audit.keys import follow, open_checkpoint, succeed
from smtpproxy.audit.notes import LARGEST, MOST_SIGNATURES, Signer, checkpoint_text, sign
from smtpproxy.audit.proofs import parse_proof, proof_text
from smtpproxy.audit.tree import inclusion_proof, root_of
from tests.audit import independent

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "audit-format.md").read_text(encoding="utf-8")


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


(PROOF,) = _blocks("tlog-proof")
(PROGRAM,) = _blocks("python")
LINES = _blocks("jsonl")[0].encode().splitlines()
LINE, ENTRY = (block.strip().encode() for block in _blocks("json"))
VKEY, SUCCESSION = _blocks("text")
SIGNER, NEXT = (
    Signer("mail.example.org/audit", Ed25519PrivateKey.from_private_bytes(bytes(range(first, first + 32))))
    for first in (0, 1)
)


def test_the_example_is_what_is_made() -> None:
    leaves = [leaf_of(line) for line in LINES]
    assert (LINES[2], entry_of(LINE)) == (LINE, ENTRY)
    assert [is_erasable(line) for line in LINES] == [True, False, True, False, False]
    assert b'"personal"' in LINES[1]
    assert SIGNER.vkey + "\n" == VKEY
    note = sign(checkpoint_text(SIGNER.name, len(LINES), root_of(leaves)), SIGNER)
    assert proof_text(2, inclusion_proof(2, len(LINES), lambda a, b: root_of(leaves[a:b])), note) == PROOF
    checkpoint = open_checkpoint(note, follow(SIGNER.vkey, []))
    assert succeed(SIGNER, NEXT.vkey, checkpoint) == SUCCESSION
    assert follow(SIGNER.vkey, [SUCCESSION])[1].verifier.vkey == NEXT.vkey


def test_the_numbers_are_those_of_the_package() -> None:
    assert f"at least {LARGEST} octets and {MOST_SIGNATURES} signatures" in PAGE


def test_the_second_implementation_reads_the_example() -> None:
    found = independent.proved(LINE, PROOF, SIGNER.vkey)
    assert found == ("mail.example.org/audit", 5, independent.root([independent.leaf(line) for line in LINES]))


@pytest.mark.parametrize(
    ("line", "proof", "vkey", "said"),
    [
        (LINE, PROOF, VKEY, "record 2 of mail.example.org/audit, which had 5 then\n"),
        (ENTRY, PROOF, VKEY, "record 2 of mail.example.org/audit, which had 5 then\n"),
        (LINE.replace(b"bob", b"eve"), PROOF, VKEY, ""),
        (LINES[3], PROOF, VKEY, ""),
        (LINE, PROOF.replace("index 2", "index 3"), VKEY, ""),
        (LINE, PROOF.replace("\n5\n", "\n6\n"), VKEY, ""),
        (LINE, PROOF, NEXT.vkey, ""),
        (LINE, PROOF.replace(parse_proof(PROOF).note, sign(checkpoint_text("other", 5, bytes(32)), SIGNER)), VKEY, ""),
    ],
)
def test_the_program_verifies_the_record_and_nothing_else(
    tmp_path: Path, line: bytes, proof: str, vkey: str, said: str
) -> None:
    (tmp_path / "verify.py").write_text(PROGRAM)
    (tmp_path / "line").write_bytes(line + b"\n")
    (tmp_path / "proof").write_text(proof)
    (tmp_path / "vkey").write_text(vkey)
    done = subprocess.run(
        [sys.executable, "verify.py", "vkey", "line", "proof"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.returncode == 0) == (said, bool(said)), done.stderr
    assert bool(independent.proved(line, proof, vkey.strip())) is bool(said)
