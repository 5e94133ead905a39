"""Many digests at once are those of hashlib, one at a time."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from computemesh.trust import lanes, merkle


def one_by_one(data: bytes, size: int, prefix: bytes) -> bytes:
    return b"".join(sha256(prefix + data[at : at + size]).digest() for at in range(0, len(data), size))


def test_this_machine_hashes_in_lanes() -> None:
    assert lanes._kernel() is not None


def test_the_constants_are_those_of_fips_180_4() -> None:
    assert lanes.INITIAL[0] == 0x6A09E667
    assert lanes.INITIAL[7] == 0x5BE0CD19
    assert (lanes.CONSTANTS[0], lanes.CONSTANTS[63]) == (0x428A2F98, 0xC67178F2)


@pytest.mark.parametrize("prefix", [b"", b"\x01", bytes(range(129))])
@pytest.mark.parametrize("size", [1, 32, 54, 55, 56, 63, 64, 65, 118, 119, 120, 174, 1000])
def test_every_length_and_count_gives_the_digests_of_hashlib(size: int, prefix: bytes) -> None:
    data = sha256(prefix).digest() * (size * 100 // 32 + 1)
    for count in (1, 15, 16, 17, 100):
        some = data[: size * count]
        assert lanes.digests(some, size, prefix) == one_by_one(some, size, prefix)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.binary(max_size=70), st.randoms(use_true_random=False))
def test_any_data_gives_the_digests_of_hashlib(size: int, count: int, prefix: bytes, chance) -> None:
    data = chance.randbytes(size * count)
    assert lanes.digests(data, size, prefix) == one_by_one(data, size, prefix)


def test_a_machine_without_a_compiler_hashes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> lanes.Kernel:
        raise RuntimeError("no executable memory")

    data = bytes(range(256)) * 25
    found = lanes.digests(data, 64, b"\x01")
    monkeypatch.setattr(lanes, "_compiled", refuse)
    lanes._kernel.cache_clear()
    try:
        assert lanes._kernel() is None
        assert lanes.digests(data, 64, b"\x01") == found
    finally:
        monkeypatch.undo()
        lanes._kernel.cache_clear()


def test_a_miscompiled_kernel_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "CONSTANTS", [1, *lanes.CONSTANTS[1:]])
    lanes._kernel.cache_clear()
    try:
        assert lanes._kernel() is None
    finally:
        monkeypatch.undo()
        lanes._kernel.cache_clear()


def test_a_tree_is_the_same_joined_and_in_pieces() -> None:
    leaves = merkle.leaf_hashes(bytes(range(200)) * 10, 2)
    whole = merkle.Tree(leaves)
    assert whole.root == merkle.root(leaves) == merkle.root(merkle.split(leaves))
    assert whole.path(777) == merkle.Tree(merkle.split(leaves)).path(777)
    assert merkle.verify_inclusion(merkle.split(leaves)[777], 777, 1000, whole.path(777), whole.root)
