"""RFC 9162 section 2.1 Merkle trees over SHA-256 (docs/PROTOCOL.md section 2).

Everything here works on *leaf hashes* (32 bytes, `leaf_hash(data)`), so a tree never holds the data.

A tree is kept as levels: level 0 are the leaf hashes, and a last node without a sibling moves up unchanged.
Node `i` of level `l` is then the RFC's MTH over leaves `[i * 2^l, min((i + 1) * 2^l, n))`, which is every
range the RFC's PATH and SUBPROOF ever name.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from computemesh.trust.errors import InvalidProof

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()
_MANY = 16
"""Hashes from which on `lanes` costs less than as many calls of hashlib."""


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data), 32 bytes."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right), 32 bytes."""
    return sha256(b"\x01" + left + right).digest()


def hash_each(data: bytes, size: int, prefix: bytes = b"") -> bytes:
    """SHA-256 of `prefix` before each `size` bytes of `data`, 32 bytes each, joined. `len(data)` is a multiple."""
    if len(data) >= _MANY * size:
        from computemesh.trust import lanes  # here: it needs numpy and LLVM, and a command line tool neither

        return lanes.digests(data, size, prefix)
    return b"".join([sha256(prefix + data[at : at + size]).digest() for at in range(0, len(data), size)])


def prepare() -> None:
    """Makes the machine code for many hashes now, and not while the first batch waits for it: a quarter of a second."""
    hash_each(bytes(_MANY), 1)


def leaf_hashes(data: bytes, size: int) -> bytes:
    """`leaf_hash` of each `size` bytes of `data`, joined."""
    return hash_each(data, size, b"\x00")


def split(hashes: bytes) -> list[bytes]:
    """Joined hashes one by one."""
    return [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]


def _next_level(level: bytes) -> bytes:
    single = len(level) % (2 * HASH_BYTES)  # the last node has no sibling
    pairs = len(level) - single
    return hash_each(level[:pairs], 2 * HASH_BYTES, b"\x01") + level[pairs:]


def root(hashes: Sequence[bytes] | bytes) -> bytes:
    """MTH of these leaf hashes, one by one or joined (section 2.1.1); SHA-256 of nothing for no leaves."""
    if not hashes:
        return EMPTY_ROOT
    level = hashes if isinstance(hashes, bytes) else b"".join(hashes)
    while len(level) > HASH_BYTES:
        level = _next_level(level)
    return level


def inclusion_path(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """PATH(index, hashes) of section 2.1.3.1, from the leaf upwards. Raises IndexError outside the tree."""
    return Tree(hashes).path(index)


def consistency_path(hashes: Sequence[bytes], old: int) -> list[bytes]:
    """PROOF(old, hashes) of section 2.1.4.1. Raises IndexError unless 0 <= old <= len(hashes)."""
    return Tree(hashes).consistency_path(old)


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that `path` leads to from the leaf hash at `index` of a tree of `size` (section 2.1.3.2).

    Raises InvalidProof where index, size, a hash's length or the path's length cannot be. The caller compares
    the result with a root it trusts, or checks a signature over it.
    """
    if not 0 <= index < size:
        raise InvalidProof(f"leaf {index} is not in a tree of {size}")
    # Only 32-byte hashes keep the node hash injective: its two halves carry no lengths.
    if len(leaf) != HASH_BYTES or any(len(node) != HASH_BYTES for node in path):
        raise InvalidProof("a hash in the path does not have 32 bytes")
    position, last, node = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise InvalidProof("the inclusion path is too long")
        if position & 1 or position == last:
            node = node_hash(sibling, node)
            while not position & 1 and position:  # levels where this node had no sibling and moved up
                position >>= 1
                last >>= 1
        else:
            node = node_hash(node, sibling)
        position >>= 1
        last >>= 1
    if last != 0:
        raise InvalidProof("the inclusion path is too short")
    return node


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], expected_root: bytes) -> bool:
    """Whether the leaf hash stands at `index` of the tree of `size` with this root. Never raises."""
    try:
        return root_from_path(leaf, index, size, path) == expected_root
    except InvalidProof:
        return False


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether the tree of `old` leaves is a prefix of the tree of `new` leaves (section 2.1.4.2).

    Every tree extends the empty one, and equal sizes need equal roots; both with an empty path. Never raises.
    """
    if not 0 <= old <= new or any(len(h) != HASH_BYTES for h in (old_root, new_root, *path)):
        return False
    if old == new:
        return not path and old_root == new_root and (old > 0 or old_root == EMPTY_ROOT)
    if old == 0:
        return not path and old_root == EMPTY_ROOT
    nodes = [old_root, *path] if old & (old - 1) == 0 else list(path)
    if not path:
        return False
    first, last = old - 1, new - 1
    while first & 1:
        first >>= 1
        last >>= 1
    old_node = new_node = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            old_node = node_hash(node, old_node)
            new_node = node_hash(node, new_node)
            while not first & 1 and first:
                first >>= 1
                last >>= 1
        else:
            new_node = node_hash(new_node, node)
        first >>= 1
        last >>= 1
    return last == 0 and old_node == old_root and new_node == new_root


class Tree:
    """A complete tree in memory: O(n) to build, O(log n) for a root, node or path."""

    __slots__ = ("_levels", "size")

    def __init__(self, hashes: Sequence[bytes] | bytes) -> None:
        """`hashes` are the leaf hashes, one by one or joined."""
        level = hashes if isinstance(hashes, bytes) else b"".join(hashes)
        self.size = len(level) // HASH_BYTES
        self._levels = [level]
        while len(level) > HASH_BYTES:
            level = _next_level(level)
            self._levels.append(level)

    @property
    def levels(self) -> list[list[bytes]]:
        """All nodes, the leaf hashes first."""
        return [split(level) for level in self._levels]

    @property
    def root(self) -> bytes:
        """The root, 32 bytes."""
        return self._levels[-1] or EMPTY_ROOT

    def node(self, level: int, index: int) -> bytes:
        """MTH over leaves `[index * 2^level, (index + 1) * 2^level)`, cut at the tree's end. Else
        IndexError.
        """
        if level < 0 or index < 0:
            raise IndexError("no such node")
        found = self._levels[level][HASH_BYTES * index : HASH_BYTES * (index + 1)]
        if not found:
            raise IndexError(f"level {level} has no node {index}")
        return found

    def path(self, index: int, level: int = 0) -> list[bytes]:
        """The inclusion path of node `index` of `level`, upwards. Raises IndexError outside the tree.

        Above level 0 it is the path in the tree whose leaves are that level's nodes.
        """
        count = len(self._levels[level]) // HASH_BYTES
        if not 0 <= index < count:
            raise IndexError(f"node {index} is not among the {count} of level {level}")
        siblings = []
        for nodes in self._levels[level:]:
            at = HASH_BYTES * (index ^ 1)
            if at < len(nodes):
                siblings.append(nodes[at : at + HASH_BYTES])
            index >>= 1
        return siblings

    def consistency_path(self, old: int) -> list[bytes]:
        """PROOF(old, tree) of section 2.1.4.1; empty for 0 and for the whole tree."""
        if not 0 <= old <= self.size:
            raise IndexError(f"{old} leaves are not a prefix of {self.size}")
        if old in (0, self.size):
            return []
        start, width, known, steps = 0, self.size, True, []
        while old != width:
            split = 1 << (width - 1).bit_length() - 1
            if old <= split:
                steps.append(self._range(start + split, width - split))
                width = split
            else:
                steps.append(self._range(start, split))
                start, old, width, known = start + split, old - split, width - split, False
        if not known:
            steps.append(self._range(start, width))
        return steps[::-1]

    def _range(self, start: int, width: int) -> bytes:
        level = (width - 1).bit_length()
        return self.node(level, start >> level)


class CompactRange:
    """An append-only tree that keeps only the roots of its perfect subtrees: O(log n) memory.

    `hashes` (largest subtree first) and `size` are its whole state and may be stored and given back.
    """

    __slots__ = ("_hashes", "size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if size < 0 or len(hashes) != size.bit_count() or any(len(h) != HASH_BYTES for h in hashes):
            raise InvalidProof(f"{len(hashes)} hashes are not the state of a tree of {size}")
        self.size = size
        self._hashes = list(hashes)

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """The roots of the perfect subtrees, largest first: one per set bit of `size`."""
        return tuple(self._hashes)

    def append(self, leaf: bytes) -> None:
        """Append one leaf hash: O(1) amortised."""
        node, size = leaf, self.size
        while size & 1:
            node = node_hash(self._hashes.pop(), node)
            size >>= 1
        self._hashes.append(node)
        self.size += 1

    @property
    def root(self) -> bytes:
        """The RFC 9162 root of all leaves appended so far."""
        if not self._hashes:
            return EMPTY_ROOT
        node = self._hashes[-1]
        for left in self._hashes[-2::-1]:
            node = node_hash(left, node)
        return node
