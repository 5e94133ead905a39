"""Array types as customers write them (`float32[128,10]`, `int32[]`), and the container of an exported program."""

from __future__ import annotations

import hashlib
import re
import struct
from math import prod
from typing import NamedTuple

import numpy as np

DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
INTEGERS = frozenset(name for name in DTYPES if "float" not in name)
MAX_RANK = 8
MAX_EXTENT = 2**32 - 1
MAX_ARRAYS = 64
FORMAT = "NAME[EXTENTS], e.g. float32[128,10] or int32[], with NAME one of " + ", ".join(DTYPES)
_PATTERN = re.compile(r"([a-z]+[0-9]*)\[([0-9, ]*)\]")

MAGIC = b"CMPROG1\n"
CONTAINER = struct.Struct(">8sQ32s")


class ArrayType(NamedTuple):
    """A dtype by numpy's name and a static shape; bytes are row-major and little-endian."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def text(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def parse_type(text: str) -> ArrayType:
    """The type a text names. Raises ValueError saying what it must look like."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None or match[1] not in DTYPES:
        raise ValueError(f"{text[:60]!r} is not {FORMAT}")
    parts = [part.strip() for part in match[2].split(",")] if match[2].strip() else []
    fit = all(part.isdecimal() and len(part) <= 10 and int(part) <= MAX_EXTENT for part in parts)
    if len(parts) > MAX_RANK or not fit:
        raise ValueError(f"{text[:60]!r} has more than {MAX_RANK} extents, or one that is not 0 to {MAX_EXTENT:,}")
    return ArrayType(match[1], tuple(map(int, parts)))


def pack_program(exported: bytes) -> bytes:
    """A program artifact: 8 magic | u64 length | 32 SHA-256 | what `jax.export` serialised."""
    return CONTAINER.pack(MAGIC, len(exported), hashlib.sha256(exported).digest()) + exported


def unpack_program(data: bytes) -> bytes:
    """The serialised export in an artifact. Raises ValueError on one that is no program, cut short or damaged.

    That keeps accidents away from the parser, which crashes on them; it keeps no attacker away.
    """
    if len(data) < CONTAINER.size or not data.startswith(MAGIC):
        raise ValueError(f"these {len(data):,} bytes are not a program (`mesh program push` makes one)")
    _, length, digest = CONTAINER.unpack_from(data)
    body = data[CONTAINER.size :]
    if len(body) != length:
        raise ValueError(f"the program is truncated: it has {len(body):,} of {length:,} bytes")
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("the program is corrupt: its bytes do not have the SHA-256 that it states")
    return body
