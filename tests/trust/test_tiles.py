"""Tiles as c2sp.org/tlog-tiles has them, and proofs made of nothing but tiles."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from computemesh.trust import merkle, paths, tiles
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.trust.tiles import Tile

LEAVES = [merkle.leaf_hash(number.to_bytes(4, "big")) for number in range(66_000)]
WHOLE = merkle.Tree(LEAVES)


def tile_data(tile: Tile) -> bytes:
    """A tile straight from the whole tree, whose perfect nodes are the tree's of any size."""
    start = tile.index * tiles.WIDTH
    return b"".join(WHOLE.levels[tiles.HEIGHT * tile.level][start : start + tile.width])


def test_paths_are_those_of_the_specification() -> None:
    assert Tile(3, 1234067).path == "tile/3/x001/x234/067"
    assert Tile(0, 0, 5).path == "tile/0/000.p/5"
    assert Tile(0, 1000, 255).bundle_path == "tile/entries/x001/000.p/255"


def test_a_tree_of_70000_has_the_tiles_of_the_specifications_example() -> None:
    found = Counter((tile.level, tile.width) for tile in tiles.new_tiles(0, 70_000))
    assert found == {(0, 256): 273, (0, 112): 1, (1, 256): 1, (1, 17): 1, (2, 1): 1}
    assert list(tiles.new_tiles(0, 0)) == []


@given(st.integers(0, 70_000), st.integers(0, 70_000))
def test_growing_in_two_steps_leaves_the_tiles_of_one(a: int, b: int) -> None:
    old, size = sorted((a, b))
    both = {*tiles.new_tiles(0, old), *tiles.new_tiles(old, size)}
    direct = set(tiles.new_tiles(0, size))
    assert direct <= both
    assert all(tile.width < tiles.WIDTH for tile in both - direct)  # what was partial and has grown
    assert not set(tiles.new_tiles(size, size))


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 511, 512, 513, 1000, 65_535, 65_536, 65_537, 66_000])
def test_root_and_paths_from_tiles_are_the_trees(size: int) -> None:
    node, tree = tiles.nodes(tile_data, size), merkle.Tree(LEAVES[:size])
    assert paths.root(node, size) == tree.root
    for index in {0, size // 2, size - 1}:
        assert paths.inclusion(node, index, size) == tree.path(index)
    for old in {1, size // 2 or 1, size}:
        assert paths.consistency(node, old, size) == tree.consistency_path(old)


def test_a_tile_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidProof, match=r"tile/0/000\.p/5 has 128 bytes, not 160"):
        paths.root(tiles.nodes(lambda tile: tile_data(tile)[:-32], 5), 5)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_bundles_read_back(entries: list[bytes]) -> None:
    packed = tiles.bundle(entries)
    assert tiles.parse_bundle(packed) == entries


def test_a_bundle_that_ends_inside_an_entry_is_refused() -> None:
    packed = tiles.bundle([b"abc", b"d"])
    assert tiles.parse_bundle(packed[:5]) == [b"abc"]
    for cut in (1, 2, 4, 6, 7):
        with pytest.raises(InvalidProof, match="ends inside entry"):
            tiles.parse_bundle(packed[:cut])


def test_an_entry_too_long_for_a_bundle_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="65535"):
        tiles.bundle([bytes(65_536)])
