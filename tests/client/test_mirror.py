"""The copy of a log as static files: never a checkpoint without its tiles, whatever breaks off or lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from computemesh.client import mirror
from computemesh.client.mirror import Mirror
from computemesh.trust import merkle, paths, statement, tiles
from computemesh.trust.checkpoint import Checkpoint, NoteSigner, block_checkpoint, log_origin, sign_note
from computemesh.trust.errors import InvalidArgument, InvalidProof, InvalidState
from computemesh.v1 import ledger_pb2 as pb

CHAIN = "computemesh-test"
SIGNER = NoteSigner(log_origin(CHAIN), bytes(range(32)))


class Log:
    """A ledger's answers about blocks of `sizes` results; `salt` makes another history."""

    def __init__(self, sizes: list[int], salt: bytes = b"") -> None:
        self.results = [[b"%d/%d" % (height, job) + salt for job in range(size)] for height, size in enumerate(sizes)]
        self.headers = [self._header(height, results) for height, results in enumerate(self.results)]
        self.lie: bytes | None = None

    def _header(self, height: int, results: list[bytes]) -> bytes:
        root = merkle.root([merkle.leaf_hash(one) for one in results])
        return statement.Header(
            statement.chain_hash(CHAIN), height, bytes(32), 1, bytes(32), root, bytes(32), 0, len(results)).pack()

    def __call__(self, method: str, request: Any) -> Any:
        height = request.block_height if request.HasField("block_height") else None
        if method == "GetCheckpoint":
            root = merkle.root([merkle.leaf_hash(one) for one in self.headers])
            point = Checkpoint(SIGNER.name, len(self.headers), root)
            if height is not None:
                point = block_checkpoint(CHAIN, statement.Header.unpack(self.headers[height]))
            return pb.GetCheckpointResponse(checkpoint=pb.Checkpoint(note=sign_note(point.body(), SIGNER)))
        entries = self.headers if height is None else self.results[height]
        found = [*entries[request.start : request.start + request.count]]
        if self.lie is not None and found:
            found[-1:] = [self.lie] if self.lie else []
        return pb.ListEntriesResponse(entries=found)


SIZES = [0, 3, 1, 257, 0, 256, 2]


def copy(log: Log, folder: Path) -> tuple[int, int]:
    return Mirror(log, folder, SIGNER.vkey, CHAIN).update()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sound(folder: Path) -> int:
    """Size of the tree of the folder's checkpoint, all of it there; 0 where there is none yet."""
    if not (folder / "checkpoint").exists():
        return 0
    point = Checkpoint.parse((folder / "checkpoint").read_text().partition("\n\n")[0] + "\n")
    node = tiles.nodes(lambda tile: (folder / tile.path).read_bytes(), point.size)
    assert paths.root(node, point.size) == point.root
    for index in range(-(-point.size // tiles.WIDTH)):
        tile = tiles.tile_of(0, index, point.size)
        entries = tiles.parse_bundle((folder / tile.bundle_path).read_bytes())
        assert tiles.hashes_of(entries) == (folder / tile.path).read_bytes()
    return point.size


def test_a_copy_broken_off_at_any_write_is_sound_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = Log(SIZES[:3]), Log(SIZES)
    copy(new, tmp_path / "whole")
    write, left = mirror.write, [0]

    def breaking(path: Path, data: bytes) -> None:
        left[0] -= 1
        if left[0] == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f"{path.name}.new").write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(mirror, "write", breaking)
    broken = 0
    for nth in range(1, 1000):
        folder = tmp_path / str(nth)
        left[0] = 0
        copy(old, folder)
        left[0] = nth
        try:
            copy(new, folder)
        except KeyboardInterrupt:
            broken += 1
        else:
            break
        assert sound(folder) == 3
        for height in range(len(SIZES)):
            assert sound(folder / str(height)) in (0, SIZES[height])
        left[0] = 0
        assert copy(new, folder) == (3, 7)
        copied = {name: data for name, data in files(folder).items() if ".new" not in name}
        assert {name: copied[name] for name in files(tmp_path / "whole")} == files(tmp_path / "whole")
    assert broken > 10


def test_what_is_there_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(SIZES)
    assert copy(log, tmp_path) == (0, 7)
    monkeypatch.setattr(Path, "replace", lambda *_: pytest.fail("a file was written"))
    assert copy(log, tmp_path) == (7, 7)


def test_partial_tiles_go_once_the_full_ones_are_served(tmp_path: Path) -> None:
    copy(Log([0] * 255), tmp_path)
    assert (tmp_path / "tile/0/000.p/255").exists()
    copy(Log([0] * 257), tmp_path)
    assert not (tmp_path / "tile/0/000.p").exists()
    assert not (tmp_path / "tile/entries/000.p").exists()
    assert sound(tmp_path) == 257


def test_a_ledger_that_was_rolled_back_is_told_from_one_that_forked(tmp_path: Path) -> None:
    copy(Log(SIZES), tmp_path)
    before = files(tmp_path)
    with pytest.raises(InvalidState, match="shows 3 blocks and this copy has 7"):
        copy(Log(SIZES[:3]), tmp_path)
    with pytest.raises(InvalidProof, match="signed two histories"):
        copy(Log([*SIZES, 5], salt=b"!"), tmp_path)
    assert files(tmp_path)["checkpoint"] == before["checkpoint"]


@pytest.mark.parametrize(("lie", "problem"), [(b"x", "not those it signed"), (b"", "lists 6 entries")])
def test_entries_that_were_not_signed_for_are_never_served(tmp_path: Path, lie: bytes, problem: str) -> None:
    log = Log(SIZES)
    log.lie = lie
    with pytest.raises(InvalidProof, match=problem):
        copy(log, tmp_path)
    assert not (tmp_path / "checkpoint").exists()


def test_a_folder_of_another_log_or_without_room_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("something else")
    with pytest.raises(InvalidArgument, match="not a checkpoint of this log"):
        copy(Log(SIZES), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="Not a directory"):
        copy(Log(SIZES), tmp_path / "file" / "below")
