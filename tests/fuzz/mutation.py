"""Bytes that are almost right: what fuzzers without coverage feed, and what spoils serialised messages."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63,
           2**64 - 1)  # fmt: skip
WORDS = ("", "0", "-1", "1e999", "NaN", "null", "true", "[]", "{}", "\x00", "..", "../../etc/passwd", "a" * 300, "é",
         "\ud7ff", "’; DROP TABLE tasks; --", "${jndi:ldap://x}", "%s%n", "0" * 64, "f" * 64, "00:00",
         "1" * 400)  # fmt: skip
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), 2.0**53, 2.0**63, 2.0**64)


def mutate(rng: random.Random, data: bytes, others: tuple[bytes, ...] = (b"",)) -> bytes:
    """`data` with one to eight small damages; pieces of `others` may be spliced in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        _damage(rng, out, others)
    return bytes(out)


def _damage(rng: random.Random, out: bytearray, others: tuple[bytes, ...]) -> None:
    at, few = rng.randrange(len(out) + 1), rng.randrange(1, 9)
    match rng.randrange(8):
        case 0 if out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        case 1 if out:
            out[at % len(out)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        case 2:
            del out[at : at + few]
        case 3:
            out[at:at] = rng.randbytes(few)
        case 4:
            form, width = rng.choice((("B", 1), ("H", 2), ("I", 4), ("Q", 8)))
            number = rng.choice(NUMBERS) & (1 << 8 * width) - 1
            out[at : at + width] = struct.pack(rng.choice("<>") + form, number)
        case 5:
            out[at:at] = out[at : at + rng.choice((1, 8, 64))] * rng.choice((1, 2, 16))
        case 6:
            other = rng.choice(others)
            out[at:] = other[rng.randrange(len(other) + 1) :]
        case 7:
            out[at : at + few] = rng.choice(WORDS).encode()


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """A JSON document with one or two values replaced, doubled, renamed or left out."""
    document = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        document = _changed(rng, document)
    return json.dumps(document).encode()


def _changed(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        rest = {key: item for key, item in value.items() if key != name}
        match rng.randrange(8):
            case 0:
                return rest
            case 1:
                return {**rest, name + "x": value[name]}
            case _:
                return {**value, name: _changed(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        match rng.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value * rng.choice((2, 50))
            case _:
                return [*value[:at], _changed(rng, value[at]), *value[at + 1 :]]
    return any_json(rng)


def any_json(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value of any kind; numbers that JSON does not know among them, because a Struct has them."""
    match rng.randrange(9 if depth < 3 else 6):
        case 0:
            return rng.choice(WORDS)
        case 1:
            return rng.choice(FLOATS)
        case 2:
            return rng.choice(NUMBERS) * rng.choice((1, -1))
        case 3:
            return rng.choice((None, True, False))
        case 4 | 5:
            return rng.randrange(-3, 300)
        case 6 | 7:
            return {rng.choice(WORDS): any_json(rng, depth + 1) for _ in range(rng.randrange(4))}
        case _:
            return [any_json(rng, depth + 1) for _ in range(rng.randrange(5))]
