"""Unit bytes of finished jobs that wait for their challenge: in memory while they are few, else on disk."""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable
from pathlib import Path

MEMORY_BYTES = 1 << 20
UNFINISHED = ".part"


class Spooled:
    """The units of one job, one after the other in a file. Whoever receives it from another process owns the file,
    which goes with the last reference to it."""

    __slots__ = ("__weakref__", "_ends", "path")

    def __init__(self, path: str, ends: array[int]) -> None:
        """`ends` is where each unit ends, in bytes from the start."""
        self.path, self._ends = path, ends

    def __getitem__(self, unit: int) -> bytes:
        begin = self._ends[unit - 1] if unit else 0
        with open(self.path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), self._ends[unit] - begin, begin)
        if len(data) != self._ends[unit] - begin:
            raise OSError(f"{self.path} is shorter than it was")
        return data

    @property
    def size(self) -> int:
        """Bytes of all units."""
        return self._ends[-1] if self._ends else 0

    @property
    def memory_bytes(self) -> int:
        """What the index takes."""
        return len(self._ends) * self._ends.itemsize

    def __reduce__(self) -> tuple[object, ...]:
        return _adopted, (self.path, self._ends)


def _adopted(path: str, ends: array[int]) -> Spooled:
    found = Spooled(path, ends)
    weakref.finalize(found, _remove, path)
    return found


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def begin(folder: str) -> None:
    """Makes the folder of one executor; what one that died was writing goes."""
    os.makedirs(folder, exist_ok=True)
    for left in Path(folder).glob(f"*{UNFINISHED}"):
        left.unlink(missing_ok=True)


def collect(units: Iterable[bytes], folder: str | None) -> list[bytes] | Spooled:
    """Takes the units as they are made; from `MEMORY_BYTES` on they go to a file in `folder` (None: the system's)."""
    kept: list[bytes] = []
    size = 0
    rest = iter(units)
    for unit in rest:
        kept.append(unit)
        size += len(unit)
        if size > MEMORY_BYTES:
            break
    else:
        return kept
    ends = array("Q")
    descriptor, path = tempfile.mkstemp(dir=folder, suffix=UNFINISHED)
    try:
        with open(descriptor, "wb", buffering=1 << 20) as file:
            for some in (kept, rest):
                for unit in some:
                    file.write(unit)
                    ends.append(file.tell())
        whole = path.removesuffix(UNFINISHED)
        os.rename(path, whole)
    except BaseException:
        _remove(path)
        raise
    return Spooled(whole, ends)
