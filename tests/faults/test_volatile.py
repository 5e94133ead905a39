"""The file system that loses what was not synced does, and keeps the rest."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.faults.volatile import Disk

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("fusermount3") is None,
    reason="needs /dev/fuse and Debian's fuse3")


def test_what_was_synced_stays_and_the_rest_is_what_the_seed_says(tmp_path: Path) -> None:
    found = set()
    with Disk(tmp_path) as disk:
        for seed in range(12):
            path = disk.path / f"file-{seed}"
            with path.open("wb") as file:
                file.write(b"a" * 10_000)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                file.write(b"b" * 20_000)
            assert path.read_bytes() == b"b" * 20_000
            disk.fail(seed)
            after = path.read_bytes()
            assert after[:10_000].strip(b"ab") == b""
            found.add(after)
    assert b"a" * 10_000 in found
    assert len(found) > 3


@pytest.mark.parametrize(("synchronous", "kept"), [("FULL", True), ("OFF", False)])
def test_a_commit_of_sqlite_survives_if_it_was_synced(tmp_path: Path, synchronous: str, kept: bool) -> None:
    complete = []
    with Disk(tmp_path) as disk:
        for seed in range(8):
            path = disk.path / f"{seed}.db"
            with sqlite3.connect(path, isolation_level=None) as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("CREATE TABLE numbers (value INTEGER)")
                disk.steady()
                database.execute(f"PRAGMA synchronous={synchronous}")
                for value in range(50):
                    database.execute("INSERT INTO numbers VALUES (?)", (value,))
                copy = [(name, (disk.path / name).read_bytes()) for name in (f"{seed}.db", f"{seed}.db-wal")]
                assert len(copy[1][1]) > 50 * 4096
                disk.fail(seed)  # SQLite still has them open, and writes nothing
                lost = tmp_path / "lost"
                lost.mkdir(exist_ok=True)
                for name, _ in copy:
                    shutil.copy(disk.path / name, lost / name)
            database.close()
            with sqlite3.connect(lost / f"{seed}.db") as after:
                complete.append(after.execute("SELECT count(*) FROM numbers").fetchone()[0] == 50)
    assert all(complete) if kept else not all(complete)
