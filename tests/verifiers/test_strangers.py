"""Software that others wrote accepts what our ledger gives out, and refuses every forgery of it."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from computemesh.trust.checkpoint import NoteSigner, block_origin, log_origin
from computemesh.trust.tlog_proof import TlogProof
from tests.ledger import parties
from tests.verifiers.conftest import SIZES, History, Verifier

LOG = log_origin(parties.CHAIN)
STRANGER = NoteSigner(LOG, b"s" * 32)


def flipped(data: bytes, at: int) -> bytes:
    """One bit of one byte changed."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def damaged(note: str, line: int) -> str:
    """One bit changed in the base64 at the end of a note's line: 2 the root, 4 the signature."""
    lines = note.split("\n")
    before, _, encoded = lines[line].rpartition(" ")
    raw = base64.b64decode(encoded)
    changed = base64.b64encode(flipped(raw, len(raw) - 1)).decode()
    lines[line] = f"{before} {changed}".lstrip()
    return "\n".join(lines)


def size_of(note: str) -> int:
    return int(note.split("\n")[1])


def forgeries(origin: str, proof: TlogProof, history: History) -> Iterator[tuple[str, str, TlogProof]]:
    """(what was done, origin to ask for, proof) of everything a liar may try with a true proof."""
    note, size = proof.note, size_of(proof.note)
    yield "entry's first byte", origin, replace(proof, entry=flipped(proof.entry, 0))
    yield "entry's last byte", origin, replace(proof, entry=flipped(proof.entry, len(proof.entry) - 1))
    yield "root", origin, replace(proof, note=damaged(note, 2))
    yield "signature", origin, replace(proof, note=damaged(note, 4))
    yield "size", origin, replace(proof, note=note.replace(f"\n{size}\n", f"\n{size + 1}\n", 1))
    yield "index beyond the tree", origin, replace(proof, index=size)
    yield "a hash too many", origin, replace(proof, path=(*proof.path, bytes(32)))
    if proof.path:
        yield "wrong index", origin, replace(proof, index=proof.index ^ 1 if proof.index ^ 1 < size else 0)
        yield "hash", origin, replace(proof, path=(flipped(proof.path[0], 5), *proof.path[1:]))
        yield "a hash too few", origin, replace(proof, path=proof.path[:-1])
    other = block_origin(parties.CHAIN, 10**6)
    yield "asked for another tree", other, proof
    yield "origin rewritten", other, replace(proof, note=note.replace(origin, other, 1))
    swapped = next(one.note for name, one in history.proofs if name != origin and size_of(one.note) != size)
    yield "another tree's checkpoint", origin, replace(proof, note=swapped)
    if origin == LOG and size > 1:
        yield "old checkpoint", origin, replace(proof, note=history.notes[size - 1])


def test_the_sizes_are_seventy_or_more_and_the_awkward_ones() -> None:
    assert len(SIZES) >= 70
    assert {1, 2, 255, 256, 257} <= set(SIZES)


@pytest.mark.parametrize("name", ["go", "npm", "pypi"])
def test_true_proofs_are_accepted_and_forged_ones_refused(name: str, history: History, request: Any) -> None:
    verifier: Verifier = request.getfixturevalue(name)
    of_log = {size_of(proof.note) for origin, proof in history.proofs if origin == LOG}
    of_blocks = {size_of(proof.note) for origin, proof in history.proofs if origin != LOG}
    assert of_log == of_blocks == set(SIZES)
    forged: set[str] = set()
    for at, (origin, proof) in enumerate(history.proofs):
        path = history.file(f"{name}.tlog-proof", proof.text())
        assert verifier("proof", history.vkey, origin, path) == "ok", (origin, at)
        assert verifier("proof", STRANGER.vkey, origin, path) != "ok", "another key"
        for what, asked, forgery in forgeries(origin, proof, history):
            path = history.file(f"{name}.tlog-proof", forgery.text())
            assert verifier("proof", history.vkey, asked, path) != "ok", (what, origin, at)
            forged.add(what)
    assert len(forged) == 14


def test_each_size_of_the_log_begins_the_newest(history: History, go: Verifier) -> None:
    """Go checks the ledger's own consistency proofs, and makes its own from the tiles."""
    newest = history.file("newest", history.notes[SIZES[-1]])
    for size in SIZES:
        old, path = history.file("old", history.notes[size]), history.paths[size]
        hashes = [base64.b64encode(one).decode() for one in path]
        assert go("consistency", history.vkey, LOG, old, newest, history.file("path", "\n".join(hashes))) == "ok", size
        assert go("grown", history.vkey, LOG, old, str(history.tiles)) == "ok", size
        if not path:
            continue
        wrong = history.file("path", "\n".join([base64.b64encode(flipped(path[0], 0)).decode(), *hashes[1:]]))
        assert go("consistency", history.vkey, LOG, old, newest, wrong) != "ok", size
        right = history.file("path", "\n".join(hashes))
        assert go("consistency", history.vkey, LOG, newest, old, right) != "ok", "the old one as the newer"
        other = history.file("old", history.notes[size + 1])
        assert go("consistency", history.vkey, LOG, other, newest, right) != "ok", "another size's proof"
        swapped = history.file("old", history.notes[size].replace(LOG, f"{LOG}/0"))
        assert go("consistency", history.vkey, LOG, swapped, newest, right) != "ok", "rewritten origin"


def test_tiles_are_one_tree_with_their_checkpoint_at_each_size(history: History, go: Verifier) -> None:
    assert history.grown == dict.fromkeys(SIZES, "ok")
    blocks = [path for path in history.tiles.iterdir() if path.name.isdecimal()]
    assert len(blocks) == SIZES[-1]
    for block in blocks:
        assert go("tiles", history.vkey, f"{LOG}/{block.name}", str(block)) == "ok", block.name
    assert not list(history.tiles.rglob("*.new"))
    assert not (history.tiles / "tile/0/000.p").exists()  # the full one is there


def test_a_changed_file_of_the_copy_is_refused(history: History, go: Verifier) -> None:
    height = str(1 + SIZES.index(257))
    files = {(history.tiles, LOG): ["tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/000",
                                    "tile/entries/001.p/44", "checkpoint"],
             (history.tiles / height, f"{LOG}/{height}"): ["tile/0/000", "tile/0/001.p/1", "tile/entries/000"],
             }  # fmt: skip
    for (folder, origin), names in files.items():
        for path in (folder / name for name in names):
            with Changed(path):
                assert go("tiles", history.vkey, origin, str(folder)) != "ok", path
            assert go("tiles", history.vkey, origin, str(folder)) == "ok", path


class Changed:
    """A file with one bit wrong, put right again."""

    def __init__(self, path: Path) -> None:
        self._path, self._data = path, path.read_bytes()

    def __enter__(self) -> None:
        self._path.write_bytes(flipped(self._data, len(self._data) // 2))

    def __exit__(self, *_: object) -> None:
        self._path.write_bytes(self._data)


def test_an_old_folder_cannot_pass_for_the_newest(history: History, go: Verifier) -> None:
    for old, new in itertools.pairwise(SIZES[-6:]):
        with Written(history.tiles / "checkpoint", history.notes[old]):
            older = history.file("newer", history.notes[new])
            assert go("grown", history.vkey, LOG, older, str(history.tiles)) != "ok"


class Written(Changed):
    """A file with other content, put right again."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(path)
        self._text = text

    def __enter__(self) -> None:
        self._path.write_text(self._text)
