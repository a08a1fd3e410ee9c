"""Proofs of single records, checked by the program itself and by somebody else's reading of the RFC."""

from base64 import b64decode
from pathlib import Path

import pytest

from smtpproxy.audit.entries import leaf_of
from smtpproxy.audit.notes import parse_checkpoint, unverified_text
from smtpproxy.audit.proofs import parse_proof
from smtpproxy.audit.tree import check_consistency, check_inclusion, consistency_proof
from smtpproxy.store.errors import StoreError
from smtpproxy.store.proving import newest, prove, range_hash
from smtpproxy.store.pruning import prune
from smtpproxy.store.reading import Reader, open_reader
from smtpproxy.store.store import Store
from tests.store.signing import signed


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    directory = tmp_path_factory.mktemp("proved")
    return directory, signed(directory)


@pytest.mark.parametrize("number", [0, 1, 255, 256, 257, 1023, 1024, 1500])
def test_a_record_is_in_the_log(store: tuple[Path, list[str]], number: int) -> None:
    reader = open_reader(str(store[0]))
    text = prove(reader, number)
    assert len(text) < 2048
    proof = parse_proof(text)
    signed_tree = parse_checkpoint(unverified_text(proof.note))
    ((_, line),) = reader.lines(number, number + 1)
    assert check_inclusion(leaf_of(line), proof.number, signed_tree.size, proof.hashes, signed_tree.root)
    assert not check_inclusion(leaf_of(line + b" "), proof.number, signed_tree.size, proof.hashes, signed_tree.root)
    reader.close()


@pytest.mark.parametrize(("m", "n"), [(1, 300), (256, 600), (300, 900), (600, 1024), (1024, 1800), (1799, 1800)])
def test_one_tree_is_the_beginning_of_another(store: tuple[Path, list[str]], m: int, n: int) -> None:
    reader = open_reader(str(store[0]))
    root = range_hash(reader)
    proof = consistency_proof(m, n, root)
    assert check_consistency(m, n, proof, root(0, m), root(0, n))
    reader.close()


def test_the_roots_are_those_that_were_signed(store: tuple[Path, list[str]]) -> None:
    reader = open_reader(str(store[0]))
    for note in store[1]:
        found = parse_checkpoint(unverified_text(note))
        assert range_hash(reader)(0, found.size) == found.root
    assert newest(reader) == store[1][-1]
    reader.close()


def test_what_was_pruned_can_be_in_no_proof_but_counts_in_others(tmp_path: Path) -> None:
    signed(tmp_path)
    writing = Store(tmp_path)
    first = prune(writing, 2e9).first
    writing.close()
    reader = open_reader(str(tmp_path))
    with pytest.raises(StoreError, match="there is no record 5"):
        prove(reader, 5)
    assert _holds(reader, first)
    reader.close()


def _holds(reader: Reader, number: int) -> bool:
    proof = parse_proof(prove(reader, number))
    found = parse_checkpoint(unverified_text(proof.note))
    ((_, line),) = reader.lines(number, number + 1)
    return check_inclusion(leaf_of(line), number, found.size, proof.hashes, found.root)


def test_nothing_is_signed_yet(tmp_path: Path) -> None:
    store = Store(tmp_path, create=True)
    store.append([b'{"v":1}'])
    store.close()
    reader = open_reader(str(tmp_path))
    assert newest(reader) == ""
    with pytest.raises(StoreError, match="no checkpoint is about record 0 yet"):
        prove(reader, 0)
    reader.close()


def test_hashes_that_are_missing(tmp_path: Path) -> None:
    signed(tmp_path)
    writing = Store(tmp_path)
    writing.connection.execute("DELETE FROM subtree WHERE n = 1")
    writing.connection.execute("DELETE FROM block WHERE first = 300")
    writing.close()
    reader = open_reader(str(tmp_path))
    root = range_hash(reader)
    with pytest.raises(StoreError, match="hashes of the records 0 to 511 are missing"):
        root(0, 512)
    with pytest.raises(StoreError, match="some are not there any more"):
        root(300, 310)
    reader.close()


def test_a_note_is_base64(store: tuple[Path, list[str]]) -> None:
    assert len(b64decode(store[1][0].splitlines()[2])) == 32
