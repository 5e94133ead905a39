"""A folder as an artifact: a manifest that names the files by digest (docs/artifacts.md).

    {"files":{"config.json":{"digest":"<64 hex>","size":812}, ...}}      sorted keys, no blanks, UTF-8

The encoding is canonical: a reader refuses any other bytes for the same folder, so a folder has one digest.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from computemesh.trust.errors import InvalidArgument

MEDIA_TYPE = "application/vnd.computemesh.folder+json"
MAX_FILES = 10_000
MAX_PATH_BYTES = 1024
MAX_SEGMENT_BYTES = 255
MAX_MANIFEST_BYTES = 8 * 1024 * 1024
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: SHA-256 of its bytes, and how many there are."""

    digest: bytes
    size: int


Manifest = Mapping[str, Entry]


def encode(files: Manifest) -> bytes:
    """The canonical manifest of relative paths (forward slashes). Raises InvalidArgument as `parse` does."""
    _check(files)
    document = {"files": {path: {"digest": entry.digest.hex(), "size": entry.size} for path, entry in files.items()}}
    data = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    if len(data) > MAX_MANIFEST_BYTES:
        raise _bad("manifest", f"has {len(data):,} bytes, at most {MAX_MANIFEST_BYTES:,} are taken")
    return data


def parse(data: bytes) -> dict[str, Entry]:
    """The files of a manifest, in path order.

    Raises InvalidArgument, naming path and limit, for bytes that are not a canonical manifest, more than 10,000 files,
    and paths that are absolute, empty, contain `.`, `..`, backslashes or control characters, or that name something
    both as file and as folder.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise _bad("manifest", f"has {len(data):,} bytes, at most {MAX_MANIFEST_BYTES:,} are taken")
    try:
        document = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _bad("manifest", f"is not JSON: {str(error)[:120]}") from None
    rows = document.get("files") if isinstance(document, dict) and len(document) == 1 else None
    if not isinstance(rows, dict):
        raise _bad("manifest", 'is not {"files": {...}}')
    if len(rows) > MAX_FILES:
        raise _bad("manifest", f"names {len(rows):,} files, at most {MAX_FILES:,} are taken")
    files = {path: _entry(path, row) for path, row in rows.items()}
    if encode(files) != data:
        raise _bad("manifest", "is not in canonical form: sorted keys, no blanks, UTF-8")
    return dict(sorted(files.items()))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _bad("manifest", f"names {twice[:80]!r} twice")
    return found


def _entry(path: str, row: object) -> Entry:
    if not isinstance(row, dict) or set(row) != {"digest", "size"}:
        raise _bad(path, "needs exactly digest and size")
    digest, size = row["digest"], row["size"]
    if not isinstance(digest, str) or not _HEX.fullmatch(digest):
        raise _bad(path, f"has digest {str(digest)[:80]!r}, not 64 lower-case hexadecimal characters")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
        raise _bad(path, f"has size {str(size)[:80]!r}, not a number of bytes")
    return Entry(bytes.fromhex(digest), size)


def _check(files: Manifest) -> None:
    if len(files) > MAX_FILES:
        raise _bad("manifest", f"names {len(files):,} files, at most {MAX_FILES:,} are taken")
    for path in files:
        problem = _path_problem(path)
        if problem:
            raise _bad(path, problem)
    _check_distinct(files)


def _path_problem(path: str) -> str:
    """What is wrong with a relative path; empty where nothing is."""
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if not path or len(raw) > MAX_PATH_BYTES:
        return f"has {len(raw):,} bytes, must be 1..{MAX_PATH_BYTES:,}"
    if path.startswith("/"):
        return "is absolute"
    if "\\" in path or any(unicodedata.category(character) == "Cc" for character in path):
        return "contains a backslash or a control character"
    for segment in path.split("/"):
        if segment in ("", ".", ".."):
            return f"contains the segment {segment!r}"
        if len(segment.encode()) > MAX_SEGMENT_BYTES:
            return f"has a segment of more than {MAX_SEGMENT_BYTES} bytes"
    return ""


def _check_distinct(files: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for path in files:
        same = seen.setdefault(unicodedata.normalize("NFC", path), path)
        if same != path:
            raise _bad(path, "is there twice, in two Unicode normal forms")
    for path in seen:
        parts = path.split("/")
        for count in range(1, len(parts)):
            if "/".join(parts[:count]) in seen:
                raise _bad(path, f"needs {'/'.join(parts[:count])!r} to be a folder, which is a file")


def _bad(what: str, problem: str) -> InvalidArgument:
    shown = what if len(what) <= 120 else f"{what[:120]}.."
    return InvalidArgument(
        f"folder: {shown!r} {problem}", violations=[("folder", f"{shown!r} {problem}")], reason="INVALID_FOLDER"
    )
