"""Attacks on the transport of a real service, bounded and over loopback: an honest client is answered all the while."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

import grpc
import psutil
import pytest

from computemesh.cli.cluster import Cluster
from computemesh.service.errors import from_rpc_error
from computemesh.trust.errors import InvalidArgument, ResourceExhausted
from computemesh.v1 import market_pb2, market_pb2_grpc

PATH = "/computemesh.v1.MarketService/GetMarket"
DATA, HEADERS, RST, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
ATTACK_S = 1.0
MAX_GROWTH_BYTES = 512 << 20


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


def block(*more: tuple[bytes, bytes]) -> bytes:
    """The headers of a call, each a literal that is not indexed."""
    named = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", PATH.encode()), (b":authority", b"a"),
             (b"content-type", b"application/grpc"), (b"te", b"trailers"), *more]  # fmt: skip
    return b"".join(b"\0" + text(name) + text(value) for name, value in named)


Attack = Callable[[int], bytes]


def rapid_reset(at: int) -> bytes:
    stream = 2 * at + 1
    return frame(HEADERS, 4, stream, block()) + frame(RST, 0, stream, struct.pack(">I", 8))


def ping_flood(at: int) -> bytes:
    return frame(PING, 0, 0, struct.pack(">Q", at)) * 32


def slow_read(at: int) -> bytes:
    """Calls whose answers have no window to come through."""
    return frame(HEADERS, 4, 2 * at + 1, block()) + frame(DATA, 1, 2 * at + 1, bytes(5))


def header_bomb(at: int) -> bytes:
    """Headers without end."""
    more = frame(CONTINUATION, 0, 1, (b"\0" + text(b"x%d" % at) + text(b"y" * 8000)))
    return frame(HEADERS, 0, 1, block()) + more if at == 0 else more


def assail(address: str, attack: Attack, window: int = 65535) -> int:
    """Sends an attack's pieces for `ATTACK_S`, dialling again where the server hangs up; how many were sent."""
    host, _, port = address.partition(":")
    until, sent = time.monotonic() + ATTACK_S, 0
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5) as connection:
            connection.settimeout(0.2)
            settings = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, window))
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
            for at in range(2000):
                if time.monotonic() > until:
                    break
                connection.sendall(attack(at))
                sent += 1
    return sent


@pytest.mark.parametrize(("attack", "window"), [
    (rapid_reset, 65535), (ping_flood, 65535), (slow_read, 0), (header_bomb, 65535)])
def test_an_honest_client_is_answered_during_an_attack(cluster: Cluster, attack: Attack, window: int) -> None:
    address, process = cluster.address("market"), psutil.Process(cluster.pids["market"])
    before, sent = process.memory_info().rss, []
    attackers = [threading.Thread(target=lambda: sent.append(assail(address, attack, window))) for _ in range(2)]
    with grpc.insecure_channel(address) as channel:
        stub = market_pb2_grpc.MarketServiceStub(channel)
        stub.GetMarket(market_pb2.GetMarketRequest(), timeout=20)
        for one in attackers:
            one.start()
        answered = 0
        while any(one.is_alive() for one in attackers):
            stub.GetMarket(market_pb2.GetMarketRequest(), timeout=20)
            answered += 1
        for one in attackers:
            one.join()
        stub.GetMarket(market_pb2.GetMarketRequest(), timeout=20)
    grown = process.memory_info().rss - before
    print(f"{attack.__name__}: {sum(sent):,} pieces, {answered} honest calls answered, {grown / 2**20:.1f} MiB more")
    assert sum(sent) > 50
    assert answered > 0
    assert grown < MAX_GROWTH_BYTES


def refusal(cluster: Cluster, request: bytes, **how: object) -> Exception:
    metadata = [("authorization", f"Bearer {cluster.plan.api_key}")]
    with grpc.insecure_channel(cluster.address("market")) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/computemesh.v1.MarketService/QuoteTask")(request, metadata=metadata, timeout=30, **how)
    return from_rpc_error(refused.value)


def test_a_message_that_unpacks_to_more_than_the_limit_is_refused(cluster: Cluster) -> None:
    process = psutil.Process(cluster.pids["market"])
    before = process.memory_info().rss
    for _ in range(3):
        error = refusal(cluster, b"\x0a" + bytes(64 << 20), compression=grpc.Compression.Gzip)
        assert isinstance(error, ResourceExhausted), error
    assert process.memory_info().rss - before < MAX_GROWTH_BYTES


def test_deep_nesting_is_refused_as_no_message(cluster: Cluster) -> None:
    def varint(value: int) -> bytes:
        out = bytearray()
        while value >= 128:
            out.append(value % 128 + 128)
            value //= 128
        return bytes([*out, value])

    value = b""
    for _ in range(5000):  # Value{struct_value{fields{value: Value{...}}}}, inside out
        entry = b"\x0a\x01a\x12" + varint(len(value)) + value
        structure = b"\x0a" + varint(len(entry)) + entry
        value = b"\x2a" + varint(len(structure)) + structure
    entry = b"\x0a\x01a\x12" + varint(len(value)) + value
    structure = b"\x0a" + varint(len(entry)) + entry
    field = market_pb2.QuoteTaskRequest.DESCRIPTOR.fields_by_name["payload"].number
    error = refusal(cluster, bytes([field << 3 | 2]) + varint(len(structure)) + structure)
    assert isinstance(error, InvalidArgument), error
    assert error.reason == "MALFORMED_MESSAGE"
