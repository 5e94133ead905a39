"""Paths in a tree from its stored perfect nodes: O(log^2 n) reads, nothing in memory (RFC 9162 section 2.1).

`node(level, index)` gives the hash over leaves [index * 2^level, (index + 1) * 2^level).
"""

from __future__ import annotations

from collections.abc import Callable

from computemesh.trust import merkle

Node = Callable[[int, int], bytes]


def subtree(node: Node, start: int, end: int) -> bytes:
    """MTH(D[start:end]) of a range the RFC's algorithms name: its start is a multiple of its width's power of two."""
    width = end - start
    level = width.bit_length() - 1
    if width == 1 << level:
        return node(level, start >> level)
    split = start + (1 << level)
    return merkle.node_hash(node(level, start >> level), subtree(node, split, end))


def root(node: Node, size: int) -> bytes:
    """The root of the first `size` leaves."""
    return subtree(node, 0, size) if size else merkle.EMPTY_ROOT


def inclusion(node: Node, index: int, size: int) -> list[bytes]:
    """PATH(index, D[0:size]) of section 2.1.3.1, from the leaf upwards. Raises IndexError outside the tree."""
    if not 0 <= index < size:
        raise IndexError(f"leaf {index} is not in a tree of {size}")
    start, end, path = 0, size, []
    while end - start > 1:
        split = start + (1 << ((end - start - 1).bit_length() - 1))
        if index < split:
            path.append(subtree(node, split, end))
            end = split
        else:
            path.append(subtree(node, start, split))
            start = split
    return path[::-1]


def consistency(node: Node, old: int, new: int) -> list[bytes]:
    """PROOF(old, D[0:new]) of section 2.1.4.1; empty for equal sizes. Raises IndexError unless 1 <= old <= new."""
    if not 1 <= old <= new:
        raise IndexError(f"{old} leaves are not a prefix of {new}")
    start, end, whole, path = 0, new, True, []
    while old != end:
        split = start + (1 << ((end - start - 1).bit_length() - 1))
        if old <= split:
            path.append(subtree(node, split, end))
            end = split
        else:
            path.append(subtree(node, start, split))
            start, whole = split, False
    if not whole:
        path.append(subtree(node, start, end))
    return path[::-1]
