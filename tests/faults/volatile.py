"""A file system that forgets what no fsync covered when its power fails (FUSE; below it an ordinary folder).

    python -m tests.faults.volatile FOLDER MOUNTPOINT

Written to its file `.power`, the words `steady` (all that was written is durable from now on) and `fail SEED` rule
it. After a failure each file holds what its last fsync covered and, of what was written since, nothing, a beginning, or
any of the 4 KiB pieces, torn apart and out of order. Names are durable at once: a crash between a file's creation and
the fsync of its folder is not played.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

import mfusepy as fuse

PIECE = 4096
POWER = "/.power"
ANSWER = 32


@dataclass(slots=True)
class Unsynced:
    """What was done to a file since its last fsync, by a descriptor of our own."""

    number: int
    size: int
    changes: list[tuple[int, bytes, bytes | None]] = field(default_factory=list)
    """(at, the bytes before, the bytes after; None: cut off there)."""

    def lose(self, random: Random) -> int:
        """As if the power failed; how many bytes are gone."""
        for at, before, _ in reversed(self.changes):
            os.pwrite(self.number, before, at)
        os.ftruncate(self.number, self.size)
        pieces = [(at + first, after[first : first + PIECE]) for at, _, after in self.changes if after
                  for first in range(0, len(after), PIECE)]  # fmt: skip
        kept = random.choice(([], pieces[: random.randint(0, len(pieces))],
                              [piece for piece in pieces if random.random() < 0.5]))  # fmt: skip
        for at, piece in kept:
            os.pwrite(self.number, piece, at)
        return sum(len(piece) for _, piece in pieces) - sum(len(piece) for _, piece in kept)


class Volatile(fuse.Operations):
    """The folder, as it is while the power is on."""

    use_ns = True

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._unsynced: dict[int, Unsynced] = {}  # by inode
        self.lost = 0

    def _at(self, path: str) -> str:
        return self._folder + path

    # ---- what a failure undoes

    def _since(self, number: int) -> Unsynced:
        found = os.fstat(number)
        if found.st_ino not in self._unsynced:
            own = os.open(f"/proc/self/fd/{number}", os.O_RDWR)
            self._unsynced[found.st_ino] = Unsynced(own, found.st_size)
        return self._unsynced[found.st_ino]

    def _durable(self, inode: int) -> None:
        if inode in self._unsynced:
            os.close(self._unsynced.pop(inode).number)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if path == POWER:
            self._rule(data.decode().split())
            return len(data)
        self._since(fh).changes.append((offset, os.pread(fh, len(data), offset), data))
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        if path == POWER:
            return
        number = os.open(self._at(path), os.O_RDWR)
        try:
            size = os.fstat(number).st_size
            if size != length:
                self._since(number).changes.append((length, os.pread(number, max(size - length, 0), length), None))
            os.ftruncate(number, length)
        finally:
            os.close(number)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        self._durable(os.fstat(fh).st_ino)

    def _rule(self, words: list[str]) -> None:
        if words[0] == "fail":
            random = Random(words[1])
            self.lost = sum(one.lose(random) for one in self._unsynced.values())
        for inode in list(self._unsynced):
            self._durable(inode)

    # ---- what it does not

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.lstat(self._at(path)) if fh is None else os.fstat(fh)
        names = ("st_atime", "st_ctime", "st_gid", "st_mode", "st_mtime", "st_nlink", "st_size", "st_uid", "st_ino",
                 "st_blocks")  # fmt: skip
        return {name: getattr(found, name) for name in names}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._at(path))]

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

    def open(self, path: str, flags: int) -> int:
        # The kernel reads pages that are written in part, and appends by itself.
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        return os.open(self._at(path), os.O_RDWR if writes else os.O_RDONLY)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return f"{self.lost:<{ANSWER}}".encode()[offset:] if path == POWER else os.pread(fh, size, offset)

    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    def unlink(self, path: str) -> None:
        found = os.lstat(self._at(path))
        os.unlink(self._at(path))
        if found.st_nlink == 1:
            self._durable(found.st_ino)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        os.rename(self._at(old), self._at(new))

    def link(self, target: str, source: str) -> None:
        os.link(self._at(source), self._at(target))

    def symlink(self, target: str, source: str) -> None:
        os.symlink(source, self._at(target))

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def chmod(self, path: str, mode: int, fh: int | None = None) -> None:
        os.chmod(self._at(path), mode)

    def utimens(self, path: str, times: Any = None, fh: int | None = None) -> None:
        os.utime(self._at(path), ns=times)

    def statfs(self, path: str) -> dict[str, Any]:
        found = os.statvfs(self._at(path))
        names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize",
                 "f_namemax")  # fmt: skip
        return {name: getattr(found, name) for name in names}


class Disk:
    """The file system as a process of its own, mounted for as long as the body runs."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disk"
        self._below = folder / "below"

    def __enter__(self) -> Disk:
        self.path.mkdir()
        self._below.mkdir()
        (self._below / POWER[1:]).write_text(" " * ANSWER)
        self._process = subprocess.Popen([sys.executable, "-m", __name__, str(self._below), str(self.path)])
        until = time.monotonic() + 30
        while not os.path.ismount(self.path):
            if self._process.poll() is not None or time.monotonic() > until:
                raise OSError(f"{self.path}: nothing was mounted; FUSE needs /dev/fuse and Debian's fuse3")
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["fusermount3", "-u", "-z", str(self.path)], check=False)
        self._process.wait(30)

    def steady(self) -> None:
        """All that was written is durable, as it is after a while anyway."""
        (self.path / POWER[1:]).write_text("steady")

    def fail(self, seed: int) -> int:
        """The power fails and comes back: nobody may have a file open. Bytes that are gone."""
        (self.path / POWER[1:]).write_text(f"fail {seed}")
        return int((self.path / POWER[1:]).read_text())


if __name__ == "__main__":
    fuse.FUSE(Volatile(Path(sys.argv[1]).resolve()), sys.argv[2], foreground=True, nothreads=True, attr_timeout=0,
              entry_timeout=0, hard_remove=True)  # fmt: skip
