"""A ledger's log and its blocks' trees as static files, for any web server (c2sp.org/tlog-tiles, docs/PROTOCOL.md 10).

The folder is the prefix `<chain>/blocks`: `checkpoint` and `tile/...` are the log's, `<height>/checkpoint` and
`<height>/tile/...` those of a block. No checkpoint is written before its tiles are there and under the root it signs: a
copy that broke off goes on where it was, and serves its old checkpoint until then.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from computemesh.trust import merkle, paths, statement, tiles
from computemesh.trust.checkpoint import Checkpoint, NoteVerifier, block_checkpoint, log_origin, open_checkpoint
from computemesh.trust.errors import InvalidArgument, InvalidProof, InvalidState
from computemesh.v1 import ledger_pb2 as pb

Ledger = Callable[[str, Any], Any]
"""Calls a method of LedgerService by name with its request message."""


class Mirror:
    """The copy in `folder` of the log of `chain` whose key is `vkey`."""

    def __init__(self, ledger: Ledger, folder: Path, vkey: str, chain: str) -> None:
        self._ledger, self._folder, self._chain = ledger, folder, chain
        self._verifier = NoteVerifier(vkey)

    def update(self, progress: Callable[[int, int], None] = lambda done, total: None) -> tuple[int, int]:
        """Copies what is new; (blocks before, blocks now). `progress` hears blocks done and to do.

        Raises InvalidState where the ledger is behind the copy, InvalidProof where it contradicts it or itself,
        InvalidArgument where the folder cannot be written or holds another log.
        """
        note = self._ledger("GetCheckpoint", pb.GetCheckpointRequest()).checkpoint.note
        point, kept = open_checkpoint(note, self._verifier, log_origin(self._chain)), self._kept()
        if point.size < kept.size:
            raise InvalidState(
                f"the ledger shows {point.size} blocks and this copy has {kept.size}: it was rolled back, or this is "
                f"an old answer", reason="LEDGER_ROLLED_BACK")
        with _writable(self._folder):
            self._grow(self._folder, None, kept.size, point)
            self._same_history(kept, point)
            header = lru_cache(maxsize=4)(lambda index: self._bundle(index, point.size))
            for height in range(kept.size, point.size):
                self._block(height, header(height // tiles.WIDTH)[height % tiles.WIDTH])
                progress(height + 1 - kept.size, point.size - kept.size)
            write(self._folder / "checkpoint", note.encode())
            _drop_partial(self._folder, kept.size, point.size)
        return kept.size, point.size

    def _kept(self) -> Checkpoint:
        path, origin = self._folder / "checkpoint", log_origin(self._chain)
        try:
            return open_checkpoint(path.read_text("utf-8"), self._verifier, origin)
        except FileNotFoundError:
            return Checkpoint(origin, 0, merkle.EMPTY_ROOT)
        except (OSError, UnicodeDecodeError, InvalidProof) as error:
            raise InvalidArgument(f"{path} is not a checkpoint of this log: {error}") from None

    def _block(self, height: int, packed: bytes) -> None:
        folder = self._folder / str(height)
        if (folder / "checkpoint").exists():
            return  # it is written last
        expected = block_checkpoint(self._chain, statement.Header.unpack(packed))
        note = self._ledger("GetCheckpoint", pb.GetCheckpointRequest(block_height=height)).checkpoint.note
        if open_checkpoint(note, self._verifier, expected.origin) != expected:
            raise InvalidProof(f"the checkpoint of block {height} is not the tree its header names")
        self._grow(folder, height, 0, expected)
        write(folder / "checkpoint", note.encode())

    def _grow(self, folder: Path, height: int | None, old: int, point: Checkpoint) -> None:
        for tile in tiles.new_tiles(old, point.size):
            if tile.level:
                first = tile.index * tiles.WIDTH
                below = (_read(folder, tiles.Tile(tile.level - 1, first + at)) for at in range(tile.width))
                write(folder / tile.path, b"".join(merkle.root(_hashes(data)) for data in below))
                continue
            entries = self._entries(height, tile)
            write(folder / tile.bundle_path, tiles.bundle(entries))
            write(folder / tile.path, tiles.hashes_of(entries))
        if paths.root(tiles.nodes(lambda tile: _read(folder, tile), point.size), point.size) != point.root:
            raise InvalidProof(f"the entries that the ledger lists are not those it signed for {point.origin}")

    def _entries(self, height: int | None, tile: tiles.Tile) -> list[bytes]:
        request = pb.ListEntriesRequest(block_height=height, start=tile.index * tiles.WIDTH, count=tile.width)
        entries = list(self._ledger("ListEntries", request).entries)
        if len(entries) != tile.width:
            raise InvalidProof(f"the ledger lists {len(entries)} entries where it signed for {tile.width}")
        return entries

    def _same_history(self, kept: Checkpoint, point: Checkpoint) -> None:
        node = tiles.nodes(lambda tile: _read(self._folder, tile), point.size)
        if paths.root(node, kept.size) != kept.root:
            raise InvalidProof(
                f"the ledger's first {kept.size} blocks are not those of this copy: it signed two histories. Keep this "
                f"folder's `checkpoint`: with the ledger's own it proves that")

    def _bundle(self, index: int, size: int) -> list[bytes]:
        return tiles.parse_bundle((self._folder / tiles.tile_of(0, index, size).bundle_path).read_bytes())


def _read(folder: Path, tile: tiles.Tile) -> bytes:
    return (folder / tile.path).read_bytes()


def _hashes(data: bytes) -> list[bytes]:
    return [data[at : at + merkle.HASH_BYTES] for at in range(0, len(data), merkle.HASH_BYTES)]


def _drop_partial(folder: Path, old: int, size: int) -> None:
    """Partial tiles that are full now, as the specification allows once the full ones are served."""
    for tile in tiles.new_tiles(old, size):
        if tile.width == tiles.WIDTH:
            for path in (tile.path, tile.bundle_path):
                shutil.rmtree(folder / f"{path}.p", ignore_errors=True)


@contextlib.contextmanager
def _writable(folder: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise InvalidArgument(f"the copy in {folder}: {error.strerror or error} ({error.filename})") from None


def write(path: Path, data: bytes) -> None:
    """A file that is there whole and durably, or not at all; the same content again is no write."""
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
