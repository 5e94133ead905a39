"""Request ids as callers write them."""

from __future__ import annotations

import uuid

from computemesh.service.transactions import uuid7
from computemesh.trust.errors import InvalidArgument


def request_id_bytes(text: str | None) -> bytes:
    """The 16 bytes of a caller's request id, a new UUIDv7 for None. Raises InvalidArgument naming the field."""
    if text is None:
        return uuid7()
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        problem = f"{text[:64]!r} is not a UUID (32 hexadecimal digits, dashes allowed)"
        raise InvalidArgument(f"request_id {problem}", violations=[("request_id", problem)]) from None
