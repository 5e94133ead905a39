"""How a child and its parent talk: u8 kind, u64 length, bytes. Nothing is unpickled: a child may be hostile."""

from __future__ import annotations

import json
import socket
import struct
from enum import IntEnum
from typing import Any

HEAD = struct.Struct(">BQ")
MAX_DOCUMENT_BYTES = 64 * 1024


class Kind(IntEnum):
    """REQUEST goes down; all others come up. PHASE names what the child begins now, for error messages."""

    REQUEST = 1
    READY = 2
    PHASE = 3
    DOCUMENT = 4
    OUTPUT = 5
    DONE = 6
    FAILED = 7


def send(sock: socket.socket, kind: Kind, data: bytes | memoryview = b"") -> None:
    """Write one frame. Raises OSError where the other side is gone."""
    sock.sendall(HEAD.pack(kind, len(data)))
    sock.sendall(data)


def document(value: Any) -> bytes:
    """A JSON document as a frame carries it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
