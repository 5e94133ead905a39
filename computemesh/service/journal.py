"""The journal of administrative acts: who drained, paused, minted or gave out a token, and when.

One JSON object a line: {"at_ms", "act", "by", ..., "previous"}, where `previous` is the SHA-256 of the line before as
it stands in the file, without its newline (64 zeros before the first). Whoever changes, removes or inserts a line has
to change every later one; who keeps the hash of the last line notices that too, and a cut end.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from computemesh.trust.errors import DigestMismatch, NotFound

NAME = "audit.jsonl"
START = "0" * 64
MAX_LINE_BYTES = 64 * 1024


def record(folder: Path, act: str, by: str, **about: str | int) -> str:
    """Adds a line to the journal in `folder` and makes it durable; its hash. Processes may share a journal."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, MAX_LINE_BYTES, max(0, size - MAX_LINE_BYTES))
        ended = not tail or tail.endswith(b"\n")  # else a crash left half a line, which stays and is hashed as it is
        last = tail.rstrip(b"\n").rpartition(b"\n")[2]
        line = json.dumps({"at_ms": time.time_ns() // 1_000_000, "act": act, "by": by, **about,
                           "previous": _hash(last) if last else START}).encode()  # fmt: skip
        os.write(descriptor, (b"" if ended else b"\n") + line + b"\n")
        os.fsync(descriptor)
        return _hash(line)
    finally:
        os.close(descriptor)


def read(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """(Act, hash of its line), each checked against the line before. Raises NotFound, DigestMismatch that names
    the line."""
    previous = START
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise NotFound(f"the journal {path} cannot be read: {error.strerror}", reason="JOURNAL_NOT_FOUND") from None
    for number, line in enumerate(lines[:-1] if lines[-1] == b"" else lines, 1):
        try:
            act = json.loads(line)
            named = act["previous"]
        except (ValueError, KeyError, TypeError):
            act, named = {"act": "unreadable"}, previous  # a line that a crash cut, if the next one names it
        if named != previous:
            text = f"{path}, line {number}: it follows a line with SHA-256 {named}, the one before has {previous}"
            raise DigestMismatch(f"{text}: lines were changed, removed or inserted",
                                 violations=[(f"line {number}", text)])  # fmt: skip
        previous = _hash(line)
        yield act, previous


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
