"""Commit, challenge, open: which units are asked for, and what an opening proves (docs/PROTOCOL.md sections
5, 6).

A job's result is `segments` segments of `units` units. The tree over the unit digests has the result hash as
its root; with several segments each is padded to a power of two, so that a segment's root is an inner node.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from mmap import mmap

from computemesh.trust import merkle
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument, InvalidProof

DIGEST_BYTES = 32
INLINE_BYTES = 15 << 18
"""Openings of so many bytes travel in a message (gRPC's limit is 4 MiB); larger ones are an artifact that it names."""
PADDING_LEAF = merkle.leaf_hash(bytes(DIGEST_BYTES))
MAX_PATH_NODES = 64

_HEAD = struct.Struct(">QI")
_U32 = struct.Struct(">I")
_FOUR = struct.Struct(">QQQQ")


def _stream(seed: bytes, leaf: bytes) -> Iterator[int]:
    prefix = sha256(tagged("computemesh.v1/challenge", seed + leaf))
    for counter in range(2**32):
        block = prefix.copy()
        block.update(_U32.pack(counter))
        yield from _FOUR.unpack(block.digest())


def sample(seed: bytes, leaf: bytes, n: int, k: int) -> list[int]:
    """`k` distinct unit indices below `n`, uniform over the k-subsets: Floyd's algorithm (CACM 30:9, 1987).

    `seed` is the auditor's 32 random bytes drawn after the commitment, `leaf` the commitment's 32-byte leaf
    hash. The order is the order of drawing, and the worker answers in it. With `k >= n` it is 0..n-1; with `k
    <= 0` nothing. Raises InvalidArgument on a seed or leaf of another length.
    """
    if len(seed) != 32 or len(leaf) != 32:
        raise InvalidArgument("seed and leaf have 32 bytes each")
    if k >= n:
        return list(range(n))
    words = _stream(seed, leaf)
    taken: dict[int, None] = {}
    for top in range(n - max(k, 0), n):
        bound = top + 1
        limit = (2**64 // bound) * bound  # reject the incomplete last stretch: no modulo bias
        word = next(words)
        while word >= limit:
            word = next(words)
        drawn = word % bound
        taken[top if drawn in taken else drawn] = None
    return list(taken)


def transcript_digest(
    result_hash: bytes, seed: bytes | None, k: int, n: int, openings: bytes, accepted: bool
) -> bytes:
    """A result's 32-byte `proof_hash`: what was asked, what was answered, what was decided.

    `seed` is None where nothing was opened; `openings` are the canonical bytes of `openings_bytes`.
    """
    return transcript_of(result_hash, seed, k, n, sha256(openings).digest(), accepted)


def transcript_of(
    result_hash: bytes, seed: bytes | None, k: int, n: int, openings_digest: bytes, accepted: bool
) -> bytes:
    """As `transcript_digest`, from the SHA-256 of the openings: the name of the artifact they are."""
    drawn = bytes(32) if seed is None else seed
    if len(result_hash) != 32 or len(drawn) != 32 or len(openings_digest) != 32:
        raise InvalidArgument("result_hash, seed and the digest of the openings have 32 bytes each")
    try:
        numbers = struct.pack(">IQ", k, n)
    except struct.error:
        raise InvalidArgument(f"k={k} or n={n} is out of range") from None
    body = result_hash + drawn + numbers + openings_digest + bytes([accepted])
    return tagged("computemesh.v1/transcript", body)


@dataclass(frozen=True, slots=True)
class Opening:
    """One challenged unit with the path from its leaf to the result hash.

    `unit` are the unit's canonical bytes (empty where the auditor recomputes them); `previous_root` and
    `previous_path` lead from the previous segment's root to the result hash, and are empty in the first
    segment.
    """

    index: int
    unit: bytes
    path: tuple[bytes, ...]
    previous_root: bytes = b""
    previous_path: tuple[bytes, ...] = ()


def openings_bytes(openings: Sequence[Opening]) -> bytes:
    """The canonical bytes of an answer, in the order of the sample."""
    return b"".join(piece for opening in openings for piece in opening_pieces(opening))


def opening_pieces(opening: Opening) -> tuple[bytes, bytes, bytes]:
    """One opening's canonical bytes: head, unit, paths."""
    path = b"".join(opening.path)
    previous = opening.previous_root + b"".join(opening.previous_path)
    paths = _U32.pack(len(path)) + path + _U32.pack(len(previous)) + previous
    return _HEAD.pack(opening.index, len(opening.unit)), opening.unit, paths


def openings_limit(k: int, unit_bytes: int) -> int:
    """The most bytes that `k` openings of units of at most `unit_bytes` have."""
    return k * (_HEAD.size + unit_bytes + 2 * (_U32.size + (MAX_PATH_NODES + 1) * DIGEST_BYTES))


def parse_openings(data: bytes) -> list[Opening]:
    """Read `openings_bytes` back. Raises InvalidProof on bytes that it would not have written."""
    return list(read_openings(data))


def read_openings(data: bytes | mmap) -> Iterator[Opening]:
    """As `parse_openings`, one after the other: of a mapped file only the opening at hand is in memory."""
    count = at = 0
    while at < len(data):
        if at + _HEAD.size > len(data):
            raise InvalidProof(f"openings end inside opening {count}")
        index, length = _HEAD.unpack_from(data, at)
        unit, at = _cut(data, at + _HEAD.size, length)
        path, at = _hashes(data, at)
        previous, at = _hashes(data, at)
        root = previous[0] if previous else b""
        yield Opening(index, unit, path, root, previous[1:])
        count += 1


def _cut(data: bytes | mmap, at: int, length: int) -> tuple[bytes, int]:
    if at + length > len(data):
        raise InvalidProof("openings end inside an opening")
    return data[at : at + length], at + length


def _hashes(data: bytes | mmap, at: int) -> tuple[tuple[bytes, ...], int]:
    prefix, at = _cut(data, at, _U32.size)
    length = _U32.unpack(prefix)[0]
    if length % DIGEST_BYTES or length > (MAX_PATH_NODES + 1) * DIGEST_BYTES:
        raise InvalidProof(f"an opening's path has {length} bytes, no possible number of hashes")
    joined, at = _cut(data, at, length)
    return tuple(joined[i : i + DIGEST_BYTES] for i in range(0, length, DIGEST_BYTES)), at


@dataclass(frozen=True, slots=True)
class Layout:
    """How a job's units lie in its tree: `segments` segments of `units` units each, both at least 1."""

    segments: int
    units: int

    def __post_init__(self) -> None:
        if self.segments < 1 or self.units < 1:
            raise InvalidArgument(f"a layout of {self.segments} segments of {self.units} units is empty")

    @property
    def padded(self) -> int:
        """Leaves per segment: `units`, rounded up to a power of two where there are several segments."""
        return self.units if self.segments == 1 else 1 << (self.units - 1).bit_length()

    @property
    def leaves(self) -> int:
        """Leaves of the whole tree, padding included."""
        return self.segments * self.padded

    @property
    def count(self) -> int:
        """Units of the job, padding excluded: the `n` of the sample."""
        return self.segments * self.units

    def leaf_index(self, unit_index: int) -> int:
        """The leaf of a unit. Raises InvalidProof outside 0..count-1."""
        return self.segment_of(unit_index) * self.padded + unit_index % self.units

    def segment_of(self, unit_index: int) -> int:
        """The segment of a unit. Raises InvalidProof outside 0..count-1."""
        if not 0 <= unit_index < self.count:
            raise InvalidProof(f"unit {unit_index} is not one of {self.count}")
        return unit_index // self.units


class JobTree:
    """The tree over all units of one result: built once by the worker, opened where challenged."""

    __slots__ = ("_tree", "layout")

    def __init__(self, layout: Layout, digests: bytes) -> None:
        """`digests` are the `layout.count` 32-byte unit digests, concatenated in order. Else
        InvalidArgument.
        """
        if len(digests) != layout.count * DIGEST_BYTES:
            raise InvalidArgument(f"{len(digests)} bytes are not the digests of {layout.count} units")
        hashes = merkle.split(merkle.leaf_hashes(digests, DIGEST_BYTES))
        units, padding = layout.units, [PADDING_LEAF] * (layout.padded - layout.units)
        if padding:
            hashes = [h for at in range(0, layout.count, units) for h in (*hashes[at : at + units], *padding)]
        self.layout = layout
        self._tree = merkle.Tree(hashes)

    @property
    def result_hash(self) -> bytes:
        """The tree's root, 32 bytes."""
        return self._tree.root

    @property
    def _level(self) -> int:
        return (self.layout.padded - 1).bit_length()

    def segment_root(self, segment: int) -> bytes:
        """The root over one segment's units and padding. Raises IndexError outside the layout."""
        return self._tree.node(self._level, segment)

    def open(self, unit_index: int, unit: bytes = b"") -> Opening:
        """The opening of one unit; `unit` are its bytes where the task type is not exact. Raises
        InvalidProof.
        """
        layout = self.layout
        path = tuple(self._tree.path(layout.leaf_index(unit_index)))
        segment = layout.segment_of(unit_index)
        if segment == 0:
            return Opening(unit_index, unit, path)
        previous_path = tuple(self._tree.path(segment - 1, self._level))
        return Opening(unit_index, unit, path, self.segment_root(segment - 1), previous_path)


def fold_opening(layout: Layout, opening: Opening, unit_digest: bytes) -> bytes:
    """The root that the opening's path leads to from the recomputed unit's 32-byte digest.

    The caller compares it with the committed result hash. Raises InvalidProof where the index or a length
    cannot be.
    """
    if len(unit_digest) != DIGEST_BYTES:
        raise InvalidProof(f"a unit digest has {DIGEST_BYTES} bytes, not {len(unit_digest)}")
    leaf = merkle.leaf_hash(unit_digest)
    return merkle.root_from_path(leaf, layout.leaf_index(opening.index), layout.leaves, opening.path)


def verify_previous(layout: Layout, opening: Opening, result_hash: bytes) -> bytes | None:
    """The previous segment's root, proved to lie under `result_hash`; None in the first segment, which has
    none.

    Raises InvalidProof where the opening's previous path does not lead to `result_hash`, or where the first
    segment's opening carries one.
    """
    segment = layout.segment_of(opening.index)
    if segment == 0:
        if opening.previous_root or opening.previous_path:
            raise InvalidProof("an opening in the first segment names a previous segment")
        return None
    root = merkle.root_from_path(opening.previous_root, segment - 1, layout.segments, opening.previous_path)
    if root != result_hash:
        raise InvalidProof(f"the root of segment {segment - 1} does not lead to the result hash")
    return opening.previous_root
