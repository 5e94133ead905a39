"""Folders: manifests that are canonical, and paths that stay where they belong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from computemesh.service import folders
from computemesh.service.artifacts import Artifacts
from computemesh.trust import folder
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.trust.folder import Entry

from .conftest import As

FILE = {"digest": "ab" * 32, "size": 3}


def manifest(files: Any) -> bytes:
    return json.dumps({"files": files}, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize(("path", "text"), [
    ("/etc/passwd", "is absolute"), ("../x", "contains the segment '..'"), ("a/../../x", "contains the segment '..'"),
    ("a/./b", "contains the segment '.'"), ("a//b", "contains the segment ''"), ("a/", "contains the segment ''"),
    ("", "has 0 bytes"), ("a\\..\\b", "backslash"), ("a\x00b", "control character"), ("a\nb", "control character"),
    ("x" * 1025, "has 1,025 bytes, must be 1..1,024"), ("x" * 256, "a segment of more than 255 bytes"),
])  # fmt: skip
def test_paths_that_leave_the_folder_are_refused(path: str, text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        folder.parse(manifest({path: FILE}))
    assert text in refused.value.message
    with pytest.raises(InvalidArgument):
        folder.encode({path: Entry(bytes(32), 1)})


@pytest.mark.parametrize(("data", "text"), [
    (b"", "is not JSON"), (b"\xff", "is not JSON"), (b"[" * 100_000, "is not JSON"), (b"[]", 'is not {"files"'),
    (b'{"files":{},"more":1}', 'is not {"files"'), (manifest([]), 'is not {"files"'),
    (b'{"files":{"a":{"digest":"' + b"ab" * 32 + b'","size":1},"a":{"digest":"' + b"cd" * 32 + b'","size":1}}}',
     "names 'a' twice"),
    (manifest({"a": {"digest": "AB" * 32, "size": 1}}), "lower-case"), (manifest({"a": {**FILE, "size": -1}}), "size"),
    (manifest({"a": {**FILE, "size": True}}), "size"), (manifest({"a": {**FILE, "size": 1.5}}), "size"),
    (manifest({"a": {**FILE, "size": 2**63}}), "size"),
    (manifest({"a": {**FILE, "mode": 7}}), "exactly digest and size"),
    (manifest({"a": FILE, "a/b": FILE}), "needs 'a' to be a folder"), (manifest({"a": FILE}) + b" ", "canonical"),
    (json.dumps({"files": {"a": FILE}}).encode(), "canonical"),
    (manifest({"\u00e9": FILE, "e\u0301": FILE}), "there twice"),
    (b'{"files":{"\\ud800":{"digest":"' + b"ab" * 32 + b'","size":1}}}', "not valid Unicode"),
    (manifest({str(n): FILE for n in range(10_001)}), "names 10,001 files, at most 10,000"),
    (bytes(folder.MAX_MANIFEST_BYTES + 1), "at most 8,388,608"),
])  # fmt: skip
def test_what_is_no_canonical_manifest_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        folder.parse(data)
    assert text in refused.value.message


SEGMENT = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/\\"), min_size=1, max_size=20)


@given(st.dictionaries(st.lists(SEGMENT, min_size=1, max_size=3).map("/".join),
                       st.builds(Entry, st.binary(min_size=32, max_size=32), st.integers(0, 2**63 - 1)), max_size=8))
def test_a_manifest_reads_back_as_it_was_written(files: dict[str, Entry]) -> None:
    try:
        data = folder.encode(files)
    except InvalidArgument:
        return
    assert folder.parse(data) == files
    assert folder.encode(dict(reversed(files.items()))) == data


async def test_a_folder_is_stored_and_fetched(caller: As, tmp_path: Path) -> None:
    source = tmp_path / "model"
    (source / "sub").mkdir(parents=True)
    contents = {"config.json": b"{}", "sub/weights": os.urandom(3_000_000), "empty": b"", "\u00fc": b"u"}
    for name, data in contents.items():
        (source / name).write_bytes(data)
    (source / "linked").symlink_to(source / "sub" / "weights")
    seen: list[tuple[int, int]] = []
    stored = await folders.put_folder(caller(), source, progress=lambda *at: seen.append(at))
    assert (stored.name, stored.media_type, seen[-1]) == ("model", folder.MEDIA_TYPE, (6_000_003, 6_000_003))
    assert (await folders.put_folder(caller(), source)).digest == stored.digest
    target = await folders.get_folder(caller(), stored.digest, tmp_path / "out")
    got = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert got == {**contents, "linked": contents["sub/weights"]}
    with pytest.raises(InvalidArgument, match="exists already"):
        await folders.get_folder(caller(), stored.digest, tmp_path / "out")
    assert names(tmp_path) == ["model", "out", "store"]


async def test_a_hostile_manifest_writes_nothing(caller: As, store: Artifacts, tmp_path: Path) -> None:
    alice = caller()
    hostile = await alice.put(manifest({"../escaped": FILE}))  # as plain bytes it may be stored
    with pytest.raises(InvalidArgument, match="contains the segment"):
        await folders.get_folder(alice, hostile.digest, tmp_path / "in" / "out")
    with pytest.raises(InvalidArgument, match="contains the segment"):
        await alice.put(manifest({"../escaped": FILE}), media_type=folder.MEDIA_TYPE)
    assert names(tmp_path) == ["store"]


async def test_sizes_in_a_manifest_are_held_against_the_files(caller: As, tmp_path: Path) -> None:
    alice = caller()
    inside = await alice.put(b"12345")
    for size in (4, 6):
        data = folder.encode({"f": Entry(bytes.fromhex(inside.digest), size)})
        whole = await alice.put(data, media_type=folder.MEDIA_TYPE)
        with pytest.raises((InvalidArgument, InvalidProof), match="5 bytes"):
            await folders.get_folder(alice, whole.digest, tmp_path / "out")
        assert not (tmp_path / "out").exists()


async def test_folders_of_other_things_than_files_are_refused(caller: As, tmp_path: Path) -> None:
    for make, text in [(lambda path: os.mkfifo(path), "not a regular file"),
                       (lambda path: path.symlink_to(tmp_path), "links to a folder"),
                       (lambda path: path.symlink_to("nowhere"), "not a regular file")]:  # fmt: skip
        source = tmp_path / text.replace(" ", "-") / make.__qualname__
        source.mkdir(parents=True, exist_ok=True)
        for old in source.iterdir():
            old.unlink()
        make(source / "thing")
        with pytest.raises(InvalidArgument, match=text):
            await folders.put_folder(caller(), source)
