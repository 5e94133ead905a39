"""Where received bytes go: memory or a file, hashed on the way."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from pathlib import Path

BLOCK_BYTES = 4 << 20


class BytesSink:
    """Received bytes in memory."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.chunks: list[bytes] = []
        self.size = 0
        self._hash = hashlib.sha256()

    def write(self, data: memoryview) -> None:
        self._hash.update(data)
        self.chunks.append(bytes(data))
        self.size += len(data)

    def digest(self) -> str:
        return self._hash.hexdigest()


class FileSink:
    """Received bytes in a file that may hold the beginning already; one process at a time writes it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._file = path, descriptor
        self._hash = hashlib.sha256()
        self.size = 0
        self._whole = False

    @classmethod
    def open(cls, path: Path) -> FileSink:
        """Continues the file at `path`, or begins another beside it where somebody else writes that one."""
        sink = cls(path, os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
        try:
            fcntl.flock(sink._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(sink._file)
            path = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            sink = cls(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
        while block := os.read(sink._file, BLOCK_BYTES):
            sink._hash.update(block)
            sink.size += len(block)
        return sink

    def restart(self) -> None:
        os.ftruncate(self._file, 0)
        self.size, self._hash = 0, hashlib.sha256()

    def write(self, data: memoryview) -> None:
        at = 0
        while at < len(data):
            at += os.pwrite(self._file, data[at:], self.size + at)
        self._hash.update(data)
        self.size += len(data)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def move(self, to: Path) -> None:
        """Makes the file durable and gives it its name."""
        os.fsync(self._file)
        os.replace(self._path, to)
        self._whole = True

    def close(self) -> None:
        """An empty beginning is not worth keeping."""
        if not self._whole and not self.size:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
        os.close(self._file)
