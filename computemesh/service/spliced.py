"""Messages put together from bytes: where a message is nearly all payload, or the same pieces over and over, building a
protobuf object and serialising it costs more than everything else (docs/performance.md).

The encoding is protobuf's (https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc


def varint(number: int) -> bytes:
    """Base-128, least significant group first."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def bytes_field(number: int, data: bytes | memoryview, before: bytes = b"") -> bytes:
    """A `bytes` field behind the serialised fields `before`, in one copy."""
    return b"".join((before, varint(number << 3 | 2), varint(len(data)), data))


def take_bytes_field(number: int, message: bytes, at: int = 0) -> memoryview | None:
    """The content of a `bytes` field that begins at `at` and ends with the message, without a copy; None where there is
    something else, which the generated classes read."""
    tag = varint(number << 3 | 2)
    if not message.startswith(tag, at):
        return None
    length, start = take_varint(message, at + len(tag))
    return memoryview(message)[start:] if start + length == len(message) else None


def take_varint(message: bytes, at: int) -> tuple[int, int]:
    """(A number of at most 64 bits that begins at `at`, where it ends); (-1, at) where there is none."""
    number = 0
    for shift, byte in enumerate(message[at : at + 10]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return number, at + shift + 1
    return -1, at


def serialize(message: object) -> bytes:
    """Spliced messages are bytes already."""
    return message if isinstance(message, bytes) else message.SerializeToString()  # type: ignore[attr-defined]


def add(
    server: grpc.aio.Server, register: Callable[[Any], None], service: str, **spliced: grpc.RpcMethodHandler
) -> None:
    """Add what the generated `register` adds, but the methods `spliced` with handlers of their own."""
    collect = _Collect()
    register(collect)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, collect.handlers | spliced),))


class _Collect:
    """Stands for a server while the generated code registers its handlers."""

    def __init__(self) -> None:
        self.handlers: dict[str, grpc.RpcMethodHandler] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        pass

    def add_registered_method_handlers(self, service: str, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        self.handlers = dict(handlers)
