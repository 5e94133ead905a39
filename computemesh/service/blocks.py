"""Memory that a transfer fills again and again."""

from __future__ import annotations


class Blocks:
    """Bytes that arrive in pieces, copied into two blocks of `size` bytes in turns: one fills, one is being stored.

    A transfer of any length touches the same pages. Keeping the pieces costs fresh pages for each, which the system has
    to find and clear: that takes longer than the copy (docs/performance.md).
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._block = self._other = bytearray()
        self.filled = 0
        """Bytes in the block that is filling."""

    def add(self, piece: bytes | memoryview) -> None:
        """Copies a piece behind what is there; a block that is too small for it is replaced by a larger one."""
        end = self.filled + len(piece)
        if end > len(self._block):
            larger = bytearray(max(end, self._size))
            larger[: self.filled] = memoryview(self._block)[: self.filled]
            self._block = larger
        self._block[self.filled : end] = piece
        self.filled = end

    def take(self) -> memoryview:
        """What came since the last take. It stays as it is until the next take."""
        taken = memoryview(self._block)[: self.filled]
        self._block, self._other, self.filled = self._other, self._block, 0
        return taken
