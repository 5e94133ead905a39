"""Tagged hashes and the digest of a task's payload (docs/PROTOCOL.md section 1)."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from computemesh.trust.errors import InvalidArgument

if TYPE_CHECKING:
    from hashlib import _Hash

MAX_DEPTH = 32
"""Deepest nesting of structs and lists in a payload, the payload itself being depth 1."""

MAX_SAFE_INTEGER = 2**53
"""Above this not every integer has a binary64 of its own, so two payloads would share a digest."""

_LENGTH = struct.Struct(">BI")
_U32 = struct.Struct(">I")
_NUMBER = struct.Struct(">Bd")


def sha256(data: bytes) -> bytes:
    """SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()


def tag_prefix(tag: str) -> bytes:
    """The 64 bytes that `tagged` puts before the data, for whoever hashes many at once."""
    return hashlib.sha256(tag.encode()).digest() * 2


@lru_cache(maxsize=256)
def _tag_state(tag: str) -> _Hash:
    return hashlib.sha256(tag_prefix(tag))


def tagged(tag: str, data: bytes) -> bytes:
    """SHA-256(SHA-256(tag) || SHA-256(tag) || data), 32 bytes: the tagged hash of BIP 340.

    The 64-byte prefix is exactly one SHA-256 block, so its state is computed once per tag and copied.
    """
    state = _tag_state(tag).copy()
    state.update(data)
    return state.digest()


def payload_digest(value: Mapping[str, Any]) -> bytes:
    """The 32-byte digest of a payload's values, whatever order or encoding they came in.

    `value` is what `MessageToDict` makes of a `google.protobuf.Struct`: dicts, lists, strings, floats, ints,
    bools and None. An int and the float equal to it are the same number. Raises InvalidArgument naming the
    path of a value that a Struct cannot hold exactly: NaN, an infinity, an int beyond 2^53, text that is not
    Unicode, another type, or nesting deeper than `MAX_DEPTH`.
    """
    if not isinstance(value, Mapping):
        raise _refuse("payload", "must be a struct")
    out = bytearray()
    _struct(out, value, "payload", 1)
    return tagged("computemesh.v1/payload", bytes(out))


def _refuse(path: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"{path} {problem}", violations=[(path, problem)])


def _text(text: str, path: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise _refuse(path, "must be valid Unicode text") from None


def _number(number: float, path: str) -> bytes:
    if isinstance(number, int) and abs(number) > MAX_SAFE_INTEGER:
        raise _refuse(path, "is an integer beyond 2^53, which a binary64 cannot hold exactly; use a string")
    binary = float(number)
    if not math.isfinite(binary):
        raise _refuse(path, "must be a finite number")
    return _NUMBER.pack(3, binary + 0.0)  # -0.0 + 0.0 is +0.0


def _struct(out: bytearray, value: Mapping[str, Any], path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _refuse(path, f"is nested deeper than {MAX_DEPTH}")
    keys: list[tuple[bytes, str]] = []
    for key in value:
        if not isinstance(key, str):
            raise _refuse(path, "must have text keys")
        keys.append((_text(key, path), key))
    keys.sort()
    out += _LENGTH.pack(6, len(keys))
    for encoded, key in keys:
        out += _U32.pack(len(encoded)) + encoded
        _value(out, value[key], f"{path}.{key}", depth)


def _value(out: bytearray, value: Any, path: str, depth: int) -> None:
    if value is None:
        out.append(0)
    elif isinstance(value, bool):  # before int: True is an int in Python
        out.append(2 if value else 1)
    elif isinstance(value, int | float):
        out += _number(value, path)
    elif isinstance(value, str):
        encoded = _text(value, path)
        out += _LENGTH.pack(4, len(encoded)) + encoded
    elif isinstance(value, Mapping):
        _struct(out, value, path, depth + 1)
    elif isinstance(value, list | tuple):
        if depth + 1 > MAX_DEPTH:
            raise _refuse(path, f"is nested deeper than {MAX_DEPTH}")
        out += _LENGTH.pack(5, len(value))
        for position, item in enumerate(value):
            _value(out, item, f"{path}[{position}]", depth + 1)
    else:
        raise _refuse(path, f"has type {type(value).__name__}, which a Struct cannot hold")
