"""What a market signs of each of its events: one fixed layout (docs/PROTOCOL.md section 4)."""

from __future__ import annotations

import struct
from hashlib import sha256

from computemesh.trust import envelope
from computemesh.trust.identity import PrivateKey

_LAYOUT = struct.Struct(">QBQ32s32s32s32sI32s")
DOMAIN = "event"


def body(
    cursor: int, kind: int, time_ms: int, task_id: str, customer: str, pool: str, challenge_type: str, jobs: int,
    detail: str,
) -> bytes:  # fmt: skip
    """The 205 bytes: numbers as they are, the task's id (zeros where there is none), and each text as SHA-256."""
    texts = [sha256(text.encode()).digest() for text in (customer, pool, challenge_type, detail)]
    task = bytes.fromhex(task_id) or bytes(32)
    return _LAYOUT.pack(cursor, kind, time_ms, task, *texts[:3], jobs, texts[3])


def sign(key: PrivateKey, chain: str, packed: bytes) -> bytes:
    """The market's 64-byte signature."""
    return envelope.sign(key, DOMAIN, chain, packed)


def verify(market_key: bytes, chain: str, packed: bytes, signature: bytes) -> bool:
    """Whether this market said so."""
    return envelope.verify(market_key, DOMAIN, chain, packed, signature)
