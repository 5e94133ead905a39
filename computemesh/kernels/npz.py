"""Named arrays of an .npz that a stranger wrote: sizes are read from its headers and bounded before anything is
allocated; object arrays, which would be pickles, are refused by their dtype."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from computemesh.trust.errors import InvalidArgument

MAX_HEADER_BYTES = 10_000


def refused(field: str, text: str) -> InvalidArgument:
    """A refusal of the file that a payload's `field` names."""
    return InvalidArgument(f"{field}: {text}", violations=[(field, text)])


def read_arrays(
    path: Path, names: Sequence[str], field: str, most: int, kinds: str = "fiub"
) -> dict[str, np.ndarray]:
    """These arrays of the file, each of at most `most` bytes and of a dtype of one of these kinds (numpy's letters).

    Raises InvalidArgument on `field`, saying which array is wrong and what would be right.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _array(archive, name, names, field, most, kinds) for name in names}
    except (zipfile.BadZipFile, zlib.error, ValueError, SyntaxError, EOFError, OSError, RuntimeError) as error:
        raise refused(field, f"the file is not a readable .npz: {str(error)[:100]}") from None


def _array(
    archive: zipfile.ZipFile, name: str, names: Sequence[str], field: str, most: int, kinds: str
) -> np.ndarray:
    """One member, its header held against limits and against the member's length before it is read."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise refused(field, f"the file has no array {name!r}; it must have {' and '.join(names)}") from None
    with archive.open(info) as stream:
        version = npy.read_magic(stream)
        reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if reader is None:
            raise refused(field, f"array {name!r} has npy version {version}; 1.0 and 2.0 are read")
        shape, fortran, dtype = reader(stream, max_header_size=MAX_HEADER_BYTES)
        if dtype.kind not in kinds or dtype.itemsize > 8:
            what = "floating-point numbers" if kinds == "f" else "numbers"
            raise refused(field, f"array {name!r} has dtype {str(dtype)[:40]}; {what} of at most 8 bytes are read")
        size = math.prod(shape) * dtype.itemsize
        if size > most:
            text = f"array {name!r} of shape {list(shape)[:8]} has {size:,} bytes"
            raise refused(field, f"{text}; at most {most:,} are read")
        if (held := info.file_size - stream.tell()) != size:
            raise refused(field, f"array {name!r} declares {size:,} bytes of data, its member holds {held:,}")
        data = stream.read(size)
    if len(data) != size:
        raise refused(field, f"array {name!r} ends after {len(data):,} of {size:,} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
