"""A log as static files: names and contents of its tiles, c2sp.org/tlog-tiles (docs/PROTOCOL.md section 10).

A tile holds up to 256 consecutive hashes of every eighth level of the tree, an entry bundle the entries below a tile
of level 0. A tile once full never changes; a partial one has its width in its name, so no file ever changes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from computemesh.trust import merkle
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.trust.paths import Node

HEIGHT = 8
WIDTH = 1 << HEIGHT
_LENGTH = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class Tile:
    """Hashes `index * 256 .. index * 256 + width` of tree level `8 * level`."""

    level: int
    index: int
    width: int = WIDTH

    @property
    def path(self) -> str:
        """`tile/<L>/<N>[.p/<W>]`."""
        return f"tile/{self.level}/{self._place()}"

    @property
    def bundle_path(self) -> str:
        """`tile/entries/<N>[.p/<W>]`: the entries below this tile of level 0."""
        return f"tile/entries/{self._place()}"

    def _place(self) -> str:
        groups = [f"{self.index % 1000:03d}"]
        rest = self.index // 1000
        while rest:
            groups.append(f"x{rest % 1000:03d}")
            rest //= 1000
        return "/".join(reversed(groups)) + ("" if self.width == WIDTH else f".p/{self.width}")


def tile_of(level: int, index: int, size: int) -> Tile:
    """The tile at this place as the tree of `size` leaves has it, whole or partial. Raises IndexError."""
    width = min(WIDTH, (size >> HEIGHT * level) - index * WIDTH)
    if index < 0 or width < 1:
        raise IndexError(f"a tree of {size} has no tile {index} of level {level}")
    return Tile(level, index, width)


def new_tiles(old: int, size: int) -> Iterator[Tile]:
    """The tiles of a tree of `size` leaves that its beginning of `old` leaves does not have, lowest level first."""
    level = 0
    while size >> HEIGHT * level:
        before, now = old >> HEIGHT * level, size >> HEIGHT * level
        if now > before:
            for index in range(before // WIDTH, -(-now // WIDTH)):
                yield tile_of(level, index, size)
        level += 1


def nodes(read: Callable[[Tile], bytes], size: int) -> Node:
    """The perfect nodes of the tree of `size` leaves from its tiles. `read` gives a tile's bytes.

    Raises InvalidProof where a tile has another length than its width says.
    """

    def node(level: int, position: int) -> bytes:
        tiled, above = divmod(level, HEIGHT)
        first = position << above
        tile = tile_of(tiled, first // WIDTH, size)
        data = read(tile)
        if len(data) != tile.width * merkle.HASH_BYTES:
            raise InvalidProof(f"{tile.path} has {len(data)} bytes, not {tile.width * merkle.HASH_BYTES}")
        start = first % WIDTH
        return merkle.root([data[at * 32 : at * 32 + 32] for at in range(start, start + (1 << above))])

    return node


def bundle(entries: Iterable[bytes]) -> bytes:
    """Entries as a bundle: u16 length and bytes each. Raises InvalidArgument on one of more than 65,535 bytes."""
    try:
        return b"".join(_LENGTH.pack(len(entry)) + entry for entry in entries)
    except struct.error:
        raise InvalidArgument("an entry of a bundle has more than 65535 bytes") from None


def parse_bundle(data: bytes) -> list[bytes]:
    """The entries of a bundle. Raises InvalidProof where it ends inside one."""
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        end = at + 2 + (_LENGTH.unpack_from(data, at)[0] if at + 2 <= len(data) else 0)
        if at + 2 > len(data) or end > len(data):
            raise InvalidProof(f"the entry bundle ends inside entry {len(entries)}")
        entries.append(data[at + 2 : end])
        at = end
    return entries


def hashes_of(entries: Sequence[bytes]) -> bytes:
    """The tile of level 0 over these entries."""
    return b"".join(map(merkle.leaf_hash, entries))
