"""The rows of an .npz that a job's items read, without ever holding more than one item's. Runs in the child."""

from __future__ import annotations

import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from computemesh.sandbox.arrays import ArrayType
from computemesh.sandbox.child import Refused


class Inputs:
    """arg0.npy .. argN.npy of an .npz. With `items` > 0 an array with one leading axis more than the program's
    argument, of that length, is mapped: item i gets its row i. The others go whole to every item.

    Raises Refused where the arrays do not fit the program.
    """

    def __init__(self, path: Path | None, types: tuple[ArrayType, ...], items: int) -> None:
        self._types = types
        self._open = ExitStack()
        self._columns: list[tuple[IO[bytes], int, bool]] = []
        self._whole: dict[int, Any] = {}
        if path is None:
            if types:
                raise _bad(f"the program takes {len(types)} arguments, and the task names no inputs")
            return
        try:
            archive = self._open.enter_context(zipfile.ZipFile(path))
            found = set(archive.namelist())
            if found != (names := {f"arg{i}.npy" for i in range(len(types))}):
                missing, extra = sorted(names - found)[:4], sorted(name[:40] for name in found - names)[:4]
                raise _bad(f"the .npz must hold {len(types)} arrays arg0, arg1 ..: missing {missing}, unknown {extra}")
            for i, kind in enumerate(types):
                stream = self._open.enter_context(archive.open(f"arg{i}.npy"))
                self._columns.append((stream, *_place(stream, f"arg{i}", kind, items)))
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
            raise _bad(f"the inputs are not a readable .npz: {error}") from None
        if items and not any(mapped for _, _, mapped in self._columns):
            raise _bad(f"map is on, and no input has a leading axis of {items:,} items")

    def item(self, index: int) -> list[Any]:
        """The arguments of one item; ascending indices are read fastest."""
        return [self._read(i, kind, index) for i, kind in enumerate(self._types)]

    def _read(self, i: int, kind: ArrayType, index: int) -> Any:
        stream, start, mapped = self._columns[i]
        if not mapped and i in self._whole:
            return self._whole[i]
        try:
            stream.seek(start + (index * kind.bytes if mapped else 0))
            data = stream.read(kind.bytes)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise _bad(f"arg{i} cannot be read: {error}") from None
        if len(data) != kind.bytes:
            raise _bad(f"arg{i} ends before item {index:,}")
        array = np.frombuffer(data, np.dtype(kind.dtype).newbyteorder("<")).reshape(kind.shape)
        if not mapped:
            self._whole[i] = array
        return array

    def close(self) -> None:
        self._open.close()


def _bad(text: str) -> Refused:
    return Refused("INPUTS", text)


def _place(stream: IO[bytes], name: str, kind: ArrayType, items: int) -> tuple[int, bool]:
    """(offset of the first element, whether the array is mapped), from an .npy header."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype != np.dtype(kind.dtype).newbyteorder("<"):
        raise _bad(f"{name} has dtype {str(dtype)[:40]}; the program takes {kind.text}")
    if fortran and len(shape) > 1:
        raise _bad(f"{name} is in Fortran order; save np.ascontiguousarray of it")
    if items and shape == (items, *kind.shape):
        return stream.tell(), True
    if shape == kind.shape:
        return stream.tell(), False
    wanted = f"{kind.text}, or {items:,} of them along a leading axis" if items else kind.text
    raise _bad(f"{name} has shape {str(shape)[:60]}; the program takes {wanted}")
