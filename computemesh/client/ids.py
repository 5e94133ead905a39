"""Time-ordered 128-bit ids made by the client (UUIDv7, RFC 9562 section 5.7)."""

from __future__ import annotations

import secrets
import time
import uuid

from computemesh.trust.errors import InvalidArgument


def uuid7() -> bytes:
    """48 bits of Unix milliseconds, version and variant, 74 random bits: 16 bytes."""
    raw = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + secrets.token_bytes(10))
    raw[6] = raw[6] & 0x0F | 0x70
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)


def request_id_bytes(text: str | None) -> bytes:
    """The 16 bytes of a caller's request id, a new UUIDv7 for None. Raises InvalidArgument naming the field."""
    if text is None:
        return uuid7()
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        problem = f"{text[:64]!r} is not a UUID (32 hexadecimal digits, dashes allowed)"
        raise InvalidArgument(f"request_id {problem}", violations=[("request_id", problem)]) from None
