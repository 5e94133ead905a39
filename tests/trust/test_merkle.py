"""RFC 9162 trees, held against pymerkle and the RFC's own vectors."""

from __future__ import annotations

import random
import time
from hashlib import sha256

import pymerkle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from computemesh.trust import merkle
from computemesh.trust.errors import InvalidProof

DATA = [i.to_bytes(4, "big") for i in range(5000)]
LEAVES = [merkle.leaf_hash(data) for data in DATA]
LARGE = sorted(random.Random(9162).sample(range(301, 5000), 6))


@pytest.fixture(scope="module")
def reference() -> pymerkle.InmemoryTree:
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for data in DATA:
        tree.append_entry(data)
    return tree


def inclusion(tree: pymerkle.InmemoryTree, index: int, size: int) -> list[bytes]:
    return list(tree.prove_inclusion(index + 1, size).path[1:])  # its first node is the leaf itself


# The eight leaves of the Certificate Transparency reference tests (google/certificate-transparency).
CT_LEAVES = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def test_roots_are_those_of_the_certificate_transparency_vectors() -> None:
    leaves = [merkle.leaf_hash(bytes.fromhex(text)) for text in CT_LEAVES]
    assert [merkle.root(leaves[:size]).hex() for size in range(9)] == CT_ROOTS


def test_root_agrees_with_pymerkle_for_every_size(reference: pymerkle.InmemoryTree) -> None:
    running = merkle.CompactRange()
    for size in range(301):
        expected = reference.get_root(size)
        assert merkle.root(LEAVES[:size]) == expected
        assert merkle.Tree(LEAVES[:size]).root == expected
        assert running.root == expected
        running.append(LEAVES[size])


@pytest.mark.parametrize("size", LARGE)
def test_large_trees_agree_with_pymerkle(reference: pymerkle.InmemoryTree, size: int) -> None:
    tree, chance = merkle.Tree(LEAVES[:size]), random.Random(size)
    assert tree.root == reference.get_root(size)
    for index in chance.sample(range(size), 20):
        assert tree.path(index) == inclusion(reference, index, size)
    for old in chance.sample(range(1, size), 20):
        path = tree.consistency_path(old)
        assert merkle.verify_consistency(old, size, reference.get_root(old), tree.root, path)


def test_inclusion_proof_agrees_with_pymerkle_for_every_size(reference: pymerkle.InmemoryTree) -> None:
    for size in range(1, 301):
        tree = merkle.Tree(LEAVES[:size])
        for index in range(size):
            path = tree.path(index)
            assert path == inclusion(reference, index, size)
            assert merkle.verify_inclusion(LEAVES[index], index, size, path, tree.root)


def test_pymerkle_accepts_our_inclusion_paths(reference: pymerkle.InmemoryTree) -> None:
    for size in (1, 2, 3, 7, 64, 100):
        for index in range(size):
            proof = reference.prove_inclusion(index + 1, size)
            proof.path = [LEAVES[index], *merkle.inclusion_path(LEAVES[:size], index)]
            pymerkle.verify_inclusion(LEAVES[index], merkle.root(LEAVES[:size]), proof)


def subproof(old: int, hashes: list[bytes], known: bool) -> list[bytes]:
    """SUBPROOF as RFC 9162 section 2.1.4.1 writes it; pymerkle names other nodes in its consistency
    proofs.
    """
    if old == len(hashes):
        return [] if known else [merkle.root(hashes)]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    if old <= split:
        return [*subproof(old, hashes[:split], known), merkle.root(hashes[split:])]
    return [*subproof(old - split, hashes[split:], False), merkle.root(hashes[:split])]


def test_consistency_proof_is_the_rfcs_recursion() -> None:
    for new in [*range(1, 48), 100, 255, 256, 257]:
        tree = merkle.Tree(LEAVES[:new])
        for old in range(1, new + 1):
            assert tree.consistency_path(old) == subproof(old, LEAVES[:new], True)


def test_consistency_proof_links_pymerkles_roots_for_every_size(reference: pymerkle.InmemoryTree) -> None:
    roots = [reference.get_root(size) for size in range(301)]
    for new in range(1, 301):
        tree = merkle.Tree(LEAVES[:new])
        for old in range(new + 1):
            path = tree.consistency_path(old)
            assert merkle.verify_consistency(old, new, roots[old], roots[new], path)
            # Every tree whatever extends the empty one; nothing else extends to a root out of thin air.
            assert merkle.verify_consistency(old, new, roots[old], bytes(32), path) == (old == 0)


def test_every_tree_extends_the_empty_tree_and_itself_only_with_an_empty_path() -> None:
    root = merkle.root(LEAVES[:5])
    assert merkle.verify_consistency(0, 5, merkle.EMPTY_ROOT, root, [])
    assert merkle.verify_consistency(5, 5, root, root, [])
    assert merkle.verify_consistency(0, 0, merkle.EMPTY_ROOT, merkle.EMPTY_ROOT, [])
    assert not merkle.verify_consistency(0, 5, root, root, [])
    assert not merkle.verify_consistency(0, 5, merkle.EMPTY_ROOT, root, [root])
    assert not merkle.verify_consistency(5, 5, root, LEAVES[0], [])
    assert not merkle.verify_consistency(0, 0, root, root, [])
    assert not merkle.verify_consistency(6, 5, root, root, [])
    assert not merkle.verify_consistency(4, 5, root, root, [])


@given(st.integers(1, 200), st.data())
def test_tampered_inclusion_proof_is_refused(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    tree = merkle.Tree(LEAVES[:size])
    path = tree.path(index)
    leaf = LEAVES[index]

    def holds(leaf: bytes, index: int, size: int, path: list[bytes]) -> bool:
        return merkle.verify_inclusion(leaf, index, size, path, tree.root)

    assert holds(leaf, index, size, path)
    assert not holds(bytes(32), index, size, path)
    assert not holds(leaf, index, size, [*path, bytes(32)])
    assert not holds(leaf, -1, size, path)
    assert not holds(leaf, size, size, path)
    assert not holds(leaf[:31], index, size, path)
    other = data.draw(st.integers(0, size - 1))
    assert holds(leaf, other, size, path) == (other == index)
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        flipped = bytes([path[at][0] ^ 1]) + path[at][1:]
        assert not holds(leaf, index, size, [*path[:at], flipped, *path[at + 1 :]])
        assert not holds(leaf, index, size, path[:at] + path[at + 1 :])
        assert not holds(leaf, index, size, [*path[:at], path[at][:31], *path[at + 1 :]])


@given(st.integers(2, 200), st.data())
def test_tampered_consistency_proof_is_refused(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new - 1))
    tree, old_root = merkle.Tree(LEAVES[:new]), merkle.root(LEAVES[:old])
    path = tree.consistency_path(old)
    at = data.draw(st.integers(0, len(path) - 1))
    flipped = bytes([path[at][0] ^ 1]) + path[at][1:]
    assert merkle.verify_consistency(old, new, old_root, tree.root, path)
    for bad in ([*path[:at], flipped, *path[at + 1 :]], path[:at] + path[at + 1 :], [*path, bytes(32)], []):
        assert not merkle.verify_consistency(old, new, old_root, tree.root, bad)
    assert not merkle.verify_consistency(old, new, bytes(32), tree.root, path)
    assert not merkle.verify_consistency(old, new, old_root, bytes(32), path)


def test_a_forked_log_has_no_consistency_proof() -> None:
    honest, forked = LEAVES[:20], [*LEAVES[:9], bytes(32), *LEAVES[10:20]]
    old_root, new_root = merkle.root(honest[:10]), merkle.root(forked)
    for path in (merkle.consistency_path(honest, 10), merkle.consistency_path(forked, 10)):
        assert not merkle.verify_consistency(10, 20, old_root, new_root, path)


def test_a_node_cannot_pass_as_a_leaf() -> None:
    tree = merkle.Tree(LEAVES[:4])
    inner = tree.node(1, 0)
    assert merkle.leaf_hash(LEAVES[0] + LEAVES[1]) != inner
    assert not merkle.verify_inclusion(inner, 0, 4, [tree.node(1, 1)], tree.root)


def test_wrong_path_length_says_which_way_it_is_wrong() -> None:
    path = merkle.inclusion_path(LEAVES[:8], 3)
    with pytest.raises(InvalidProof, match="too short"):
        merkle.root_from_path(LEAVES[3], 3, 8, path[:-1])
    with pytest.raises(InvalidProof, match="too long"):
        merkle.root_from_path(LEAVES[3], 3, 8, [*path, bytes(32)])
    with pytest.raises(IndexError):
        merkle.inclusion_path(LEAVES[:8], 8)
    with pytest.raises(IndexError):
        merkle.inclusion_path([], 0)
    with pytest.raises(IndexError):
        merkle.consistency_path(LEAVES[:8], 9)
    with pytest.raises(IndexError):
        merkle.Tree(LEAVES[:8]).node(0, -1)


@given(st.integers(1, 130))
def test_node_of_a_level_is_the_root_over_its_leaves(size: int) -> None:
    tree = merkle.Tree(LEAVES[:size])
    for level in range(len(tree.levels)):
        for index in range(len(tree.levels[level])):
            start, stop = index << level, min((index + 1) << level, size)
            assert tree.node(level, index) == merkle.root(LEAVES[start:stop])


@given(st.integers(0, 300), st.integers(0, 100))
def test_compact_range_continues_from_its_stored_state(first: int, more: int) -> None:
    running = merkle.CompactRange()
    for leaf in LEAVES[:first]:
        running.append(leaf)
    resumed = merkle.CompactRange(running.size, running.hashes)
    for leaf in LEAVES[first : first + more]:
        resumed.append(leaf)
    assert resumed.root == merkle.root(LEAVES[: first + more])
    assert len(resumed.hashes) == (first + more).bit_count()


@pytest.mark.parametrize(
    ("size", "hashes"), [(1, []), (0, [bytes(32)]), (3, [bytes(32)]), (1, [b"x"]), (-1, [])]
)
def test_compact_range_refuses_an_impossible_state(size: int, hashes: list[bytes]) -> None:
    with pytest.raises(InvalidProof):
        merkle.CompactRange(size, hashes)


def test_a_tree_of_16384_leaves_builds_in_milliseconds() -> None:
    leaves = [sha256(i.to_bytes(4, "big")).digest() for i in range(16384)]
    best = min(_seconds(leaves) for _ in range(5))
    assert best < 0.1  # about 0.015 s on an idle core; the slack is for shared machines


def _seconds(leaves: list[bytes]) -> float:
    start = time.perf_counter()
    merkle.Tree(leaves)
    return time.perf_counter() - start
