"""The tree of RFC 9162: known answers, every small pair of sizes, and whatever a stranger could say instead."""

import os
from collections.abc import Callable, Sequence
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.audit.tree import (
    EMPTY_ROOT,
    Frontier,
    check_consistency,
    check_inclusion,
    consistency_proof,
    inclusion_proof,
    node_hash,
    root_of,
)
from tests.audit import independent

# The tests of Certificate Transparency: eight entries, and the roots of the trees of the first one to eight of them.
ENTRIES = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
CT = [sha256(b"\0" + bytes.fromhex(each)).digest() for each in ENTRIES]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
MOST = 70
LEAVES = [sha256(b"leaf %d" % number).digest() for number in range(MOST)]
HASHES = st.binary(min_size=32, max_size=32)


def _ranges(leaves: Sequence[bytes]) -> Callable[[int, int], bytes]:
    return lambda a, b: root_of(leaves[a:b])


def _grown(leaves: Sequence[bytes]) -> Frontier:
    made = Frontier()
    for leaf in leaves:
        made.append(leaf)
    return made


def test_the_roots_of_certificate_transparency() -> None:
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for size in range(9):
        wanted = ROOTS[size - 1] if size else EMPTY_ROOT.hex()
        assert root_of(CT[:size]).hex() == wanted
        assert _grown(CT[:size]).root().hex() == wanted


def test_the_proofs_of_certificate_transparency() -> None:
    """The paths that its tests have, by hand from the same leaves."""
    left, right = node_hash(CT[0], CT[1]), node_hash(CT[2], CT[3])
    four = node_hash(node_hash(CT[4], CT[5]), node_hash(CT[6], CT[7]))
    assert inclusion_proof(0, 8, _ranges(CT)) == [CT[1], right, four]
    assert [each.hex()[:8] for each in inclusion_proof(0, 8, _ranges(CT))] == ["96a296d2", "5f083f0a", "6b47aaf2"]
    assert inclusion_proof(5, 8, _ranges(CT))[0].hex() == (
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
    )
    assert inclusion_proof(2, 3, _ranges(CT)) == [left]
    assert [each.hex()[:8] for each in consistency_proof(6, 8, _ranges(CT))] == ["0ebc5d34", "ca854ea1", "d37ee418"]


def test_the_example_of_the_rfc() -> None:
    """RFC 9162 §2.1.5, a tree of seven leaves: its letters."""
    a, b, c, d, e, f, j = LEAVES[:7]
    g, h, i = node_hash(a, b), node_hash(c, d), node_hash(e, f)
    k, l = node_hash(g, h), node_hash(i, j)  # noqa: E741 - the RFC's
    assert root_of(LEAVES[:7]) == node_hash(k, l)
    ranges = _ranges(LEAVES)
    assert inclusion_proof(0, 7, ranges) == [b, h, l]
    assert inclusion_proof(3, 7, ranges) == [c, g, l]
    assert inclusion_proof(4, 7, ranges) == [f, j, k]
    assert inclusion_proof(6, 7, ranges) == [i, k]
    assert consistency_proof(3, 7, ranges) == [c, d, g, l]
    assert consistency_proof(4, 7, ranges) == [l]
    assert consistency_proof(6, 7, ranges) == [i, j, k]


def test_every_leaf_of_every_small_tree_is_proved() -> None:
    for size in range(1, MOST):
        root = independent.root(LEAVES[:size])
        assert root_of(LEAVES[:size]) == root
        for n in range(size):
            proof = inclusion_proof(n, size, _ranges(LEAVES))
            assert check_inclusion(LEAVES[n], n, size, proof, root), (n, size)
            assert independent.included(LEAVES[n], n, size, proof, root), (n, size)


def test_every_small_tree_is_the_beginning_of_every_greater_one() -> None:
    roots = [root_of(LEAVES[:size]) for size in range(MOST)]
    for n in range(MOST):
        for m in range(n + 1):
            proof = consistency_proof(m, n, _ranges(LEAVES))
            assert check_consistency(m, n, proof, roots[m], roots[n]), (m, n)
            assert independent.consistent(m, n, proof, roots[m], roots[n]), (m, n)


def test_a_proof_is_good_for_its_place_alone() -> None:
    for size in range(1, 20):
        root = root_of(LEAVES[:size])
        for n in range(size):
            proof = inclusion_proof(n, size, _ranges(LEAVES))
            for at in range(-2, size + 3):
                for of in range(-1, size + 3):
                    wanted = (at, of) == (n, size)
                    said = check_inclusion(LEAVES[n], at, of, proof, root)
                    assert said is independent.included(LEAVES[n], at, of, proof, root), (n, size, at, of)
                    # Leaf 0 of a tree of 5 and of one of 6 to 8 have paths of one form: those differ in the root alone.
                    assert said or not wanted
                    if said:
                        assert _shape(at, of) == _shape(n, size)
            assert not check_inclusion(LEAVES[n], n, size, proof, sha256(root).digest())
            assert not check_inclusion(sha256(LEAVES[n]).digest(), n, size, proof, root)


def _shape(n: int, size: int) -> list[str]:
    """On which side the other one is, from the leaf up."""
    return [side.decode() for side in inclusion_proof(n, size, lambda a, b: b"left" if a < n else b"right")]


def test_each_flipped_bit_of_a_proof_is_found() -> None:
    root = root_of(LEAVES[:45])
    for n in (0, 17, 31, 44):
        proof = inclusion_proof(n, 45, _ranges(LEAVES))
        for bad in _flipped(proof):
            assert not check_inclusion(LEAVES[n], n, 45, bad, root)
    for m in (1, 2, 13, 32, 44):
        proof = consistency_proof(m, 45, _ranges(LEAVES))
        for bad in _flipped(proof):
            assert not check_consistency(m, 45, bad, root_of(LEAVES[:m]), root)


def _flipped(proof: list[bytes]) -> list[list[bytes]]:
    found = []
    for at, each in enumerate(proof):
        for bit in range(256):
            other = (int.from_bytes(each, "big") ^ (1 << bit)).to_bytes(32, "big")
            found.append([*proof[:at], other, *proof[at + 1 :]])
    return found


def test_a_proof_of_another_length_is_none() -> None:
    for size in range(1, 40):
        root = root_of(LEAVES[:size])
        for n in (0, size // 2, size - 1):
            proof = inclusion_proof(n, size, _ranges(LEAVES))
            for bad in _resized(proof):
                assert not check_inclusion(LEAVES[n], n, size, bad, root), (n, size)
        for m in (0, 1, size // 2, size - 1, size):
            proof = consistency_proof(m, size, _ranges(LEAVES))
            for bad in _resized(proof):
                assert not check_consistency(m, size, bad, root_of(LEAVES[:m]), root), (m, size)


def _resized(proof: list[bytes]) -> list[list[bytes]]:
    longer = [[*proof, LEAVES[0]], [LEAVES[0], *proof], proof + proof[-1:] if proof else [EMPTY_ROOT]]
    shorter = (
        [proof[:-1], proof[1:], [], [*proof[:-1], proof[-1][:-1]], [*proof[:-1], proof[-1] + b"\0"]] if proof else []
    )
    return longer + shorter


def test_trees_that_differ_are_not_consistent() -> None:
    """Whatever the proof of the other tree is: a record changed, taken out, put in, or two of them exchanged."""
    for m, n in ((3, 7), (8, 40), (13, 45), (32, 33), (1, 2)):
        whole, root_m = LEAVES[:n], root_of(LEAVES[:m])
        changed = [EMPTY_ROOT, *whole[1:]]
        missing = [*whole[: m - 1], *whole[m:], LEAVES[-1]]
        more = [EMPTY_ROOT, *whole[:-1]]
        exchanged = [*whole[: m - 1], whole[m], whole[m - 1], *whole[m + 1 :]]
        for other in (changed, missing, more, exchanged):
            proof = consistency_proof(m, n, _ranges(other))
            assert not check_consistency(m, n, proof, root_m, root_of(other)), (m, n)
            assert not independent.consistent(m, n, proof, root_m, root_of(other)), (m, n)
        assert not check_consistency(n, m, [], root_of(whole), root_m)
        assert not check_consistency(m, n, [], root_m, root_m)


def test_the_empty_tree_is_the_beginning_of_all_and_has_one_root() -> None:
    root = root_of(LEAVES[:5])
    assert consistency_proof(0, 5, _ranges(LEAVES)) == []
    assert check_consistency(0, 5, [], EMPTY_ROOT, root)
    assert check_consistency(0, 0, [], EMPTY_ROOT, EMPTY_ROOT)
    assert not check_consistency(0, 5, [], root, root)
    assert not check_consistency(0, 5, [root], EMPTY_ROOT, root)
    assert not check_consistency(0, 0, [], root, root)
    assert not check_inclusion(LEAVES[0], 0, 0, [], EMPTY_ROOT)


def test_the_same_size_has_the_same_root() -> None:
    root = root_of(LEAVES[:5])
    assert check_consistency(5, 5, [], root, root)
    assert not check_consistency(5, 5, [], root, EMPTY_ROOT)
    assert not check_consistency(5, 5, [root], root, root)


def test_there_are_no_proofs_of_what_is_not() -> None:
    for n, size in ((0, 0), (5, 5), (6, 5), (-1, 5)):
        with pytest.raises(ValueError, match="has no leaf"):
            inclusion_proof(n, size, _ranges(LEAVES))
    for m, n in ((6, 5), (-1, 5)):
        with pytest.raises(ValueError, match="not the beginning"):
            consistency_proof(m, n, _ranges(LEAVES))


def test_whoever_answers_is_asked_for_whole_trees_and_the_right_edge_only() -> None:
    for size in range(1, 200):
        asked: list[tuple[int, int]] = []

        def answer(a: int, b: int, asked: list[tuple[int, int]] = asked) -> bytes:
            asked.append((a, b))
            return EMPTY_ROOT

        for n in range(size):
            inclusion_proof(n, size, answer)
            consistency_proof(n, size, answer)
        for a, b in asked:
            power = 1 << (b - a - 1).bit_length()
            assert a % power == 0
            assert b - a == power or b == size


@pytest.mark.parametrize("size", range(MOST))
def test_a_tree_grows_as_it_is_made_at_once(size: int) -> None:
    grown = _grown(LEAVES[:size])
    assert (grown.size, grown.root()) == (size, root_of(LEAVES[:size]))
    whole, first = [], 0
    for bit in reversed(range(size.bit_length())):
        if size >> bit & 1:
            whole.append(independent.root(LEAVES[first : first + (1 << bit)]))
            first += 1 << bit
    assert grown.hashes == tuple(whole)
    again = Frontier.from_bytes(size, grown.to_bytes())
    assert (again.size, again.hashes) == (grown.size, grown.hashes)
    again.append(LEAVES[size])
    assert again.root() == root_of(LEAVES[: size + 1])
    assert grown.root() == root_of(LEAVES[:size])  # it is another one


@pytest.mark.parametrize(("size", "octets"), [(0, 32), (1, 0), (3, 32), (4, 64), (1, 31), (1, 33), (3, 63), (-1, 32)])
def test_a_frontier_of_another_size_is_refused(size: int, octets: int) -> None:
    with pytest.raises(ValueError, match="is not made of"):
        Frontier.from_bytes(size, bytes(octets))


@given(st.lists(HASHES, max_size=300), st.data())
def test_both_implementations_agree(leaves: list[bytes], data: st.DataObject) -> None:
    n = len(leaves)
    root = root_of(leaves)
    assert root == independent.root(leaves) == _grown(leaves).root()
    m = data.draw(st.integers(0, n))
    path = consistency_proof(m, n, _ranges(leaves))
    assert check_consistency(m, n, path, root_of(leaves[:m]), root)
    assert independent.consistent(m, n, path, root_of(leaves[:m]), root)
    if m < n:
        path = inclusion_proof(m, n, _ranges(leaves))
        assert check_inclusion(leaves[m], m, n, path, root)
        assert independent.included(leaves[m], m, n, path, root)


_SIZES = st.one_of(st.integers(-3, 20), st.integers(-(2**70), 2**70))


@given(_SIZES, _SIZES, st.lists(st.sampled_from(LEAVES[:3]), max_size=80), st.sampled_from(LEAVES[:3]), HASHES)
def test_strangers_are_answered_and_by_both_alike(m: int, n: int, path: list[bytes], one: bytes, other: bytes) -> None:
    assert check_inclusion(one, m, n, path, other) is independent.included(one, m, n, path, other)
    assert check_consistency(m, n, path, one, other) is independent.consistent(m, n, path, one, other)


@given(st.integers(1, 200), st.data())
def test_a_proof_with_one_thing_changed_is_judged_by_both_alike(n: int, data: st.DataObject) -> None:
    leaves = [sha256(b"%d" % number).digest() for number in range(n)]
    m = data.draw(st.integers(0, n - 1))
    inclusion, consistency = (make(m, n, _ranges(leaves)) for make in (inclusion_proof, consistency_proof))
    at, of = m + data.draw(st.integers(-2, 2)), n + data.draw(st.integers(-2, 2))
    for proof in (inclusion, consistency):
        at_hash = data.draw(st.integers(-1, len(proof) - 1))
        if at_hash >= 0:
            proof[at_hash] = data.draw(HASHES)
    roots = root_of(leaves[:m]), root_of(leaves)
    said = check_inclusion(leaves[m], at, of, inclusion, roots[1])
    assert said is independent.included(leaves[m], at, of, inclusion, roots[1])
    said = check_consistency(at, of, consistency, *roots)
    assert said is independent.consistent(at, of, consistency, *roots)


def test_a_hash_that_is_none_proves_nothing() -> None:
    leaf = os.urandom(31)
    assert not check_inclusion(leaf, 0, 1, [], leaf)
    assert not check_consistency(3, 3, [], leaf, leaf)
