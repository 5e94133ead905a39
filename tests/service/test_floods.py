"""Connections of which nothing comes are ended and their address is turned away; whoever uses a service is not."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest

from computemesh.cli.certificates import Authority
from computemesh.service.access import Caller, Role
from computemesh.service.doors import MOST, Doors, plain, program
from computemesh.service.exposure import Exposure
from computemesh.service.server import FLOOD_BYTES, begin, build_server, dial, end
from computemesh.v1 import artifact_pb2, artifact_pb2_grpc, market_pb2, market_pb2_grpc
from tests.attacks.frames import ATTACKS, block
from tests.attacks.rig import PORTS, connects, flood, strangers

STRANGERS = strangers(1)


class Answering(market_pb2_grpc.MarketServiceServicer):
    async def GetMarket(self, request, context):
        return market_pb2.GetMarketResponse(chain_id="here")


class Counting(artifact_pb2_grpc.ArtifactServiceServicer):
    """Takes what it is sent, and counts it."""

    def __init__(self) -> None:
        self.received = 0

    async def UploadArtifact(self, requests, context):
        async for one in requests:
            self.received += one.ByteSize()
        yield artifact_pb2.UploadArtifactResponse()


@asynccontextmanager
async def market(host: str = "127.0.0.1", **exposed: float | str) -> AsyncIterator[tuple[Counting, int]]:
    counting = Counting()

    def register(server: grpc.aio.Server) -> None:
        market_pb2_grpc.add_MarketServiceServicer_to_server(Answering(), server)
        artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(counting, server)

    server, port = build_server(
        f"{host}:0", register, ["computemesh.v1.MarketService"], exposure=Exposure(**exposed),
        identify=lambda context: Caller("anybody", frozenset(Role)))  # fmt: skip
    await begin(server)
    try:
        yield counting, port
    finally:
        await end(server, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::]"])
@pytest.mark.parametrize("pieces", [1 << 30, 20_000])
async def test_an_address_that_resets_without_end_is_turned_away_others_are_not(host: str, pieces: int) -> None:
    async with market(host) as (_, port), dial(f"127.0.0.1:{port}", own_connection=True) as channel:
        stub = market_pb2_grpc.MarketServiceStub(channel)
        attacker, neighbour = next(STRANGERS)[0], next(STRANGERS)[0]
        attack = asyncio.create_task(asyncio.to_thread(flood, port, PORTS["market"], attacker, 60, pieces))
        while not attack.done():
            await stub.GetMarket(market_pb2.GetMarketRequest(), timeout=30)
        await attack
        assert not await asyncio.to_thread(connects, port, attacker)
        assert await asyncio.to_thread(connects, port, neighbour)
        await stub.GetMarket(market_pb2.GetMarketRequest(), timeout=30)


async def test_a_flood_under_tls_is_one_too(tmp_path: Path) -> None:
    certificate, key = map(str, Authority(tmp_path / "tls").certificate("server", ("127.0.0.1",)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    async with market(tls_cert_file=certificate, tls_key_file=key) as (_, port):
        await asyncio.to_thread(flood, port, PORTS["market"], next(STRANGERS)[0], 60, secure=context)


async def test_headers_without_end_are_a_flood() -> None:
    async with market() as (_, port):
        await asyncio.to_thread(flood, port, PORTS["market"], next(STRANGERS)[0], 60, name="header bomb")


async def test_who_was_turned_away_may_come_back_when_its_time_is_over() -> None:
    async with market(turned_away_s=3.0) as (_, port):
        own = next(STRANGERS)[0]
        await asyncio.to_thread(flood, port, PORTS["market"], own, 60)
        assert await asyncio.to_thread(connects, port, own, 30)  # the kernel tries again by itself


async def test_nobody_is_turned_away_where_addresses_are_shared() -> None:
    async with market(turned_away_s=0) as (_, port):
        own = next(STRANGERS)[0]

        def ended() -> None:
            with socket.create_connection(("127.0.0.1", port), 5, (own, 0)) as connection:
                for part in ATTACKS["rapid reset"].stream(block(PORTS["market"]), 1 << 30):
                    connection.sendall(part)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(asyncio.to_thread(ended), 60)
        assert await asyncio.to_thread(connects, port, own)


@pytest.mark.parametrize("size", [1000, 4_000_000])
async def test_whoever_sends_messages_may_send_as_many_as_it_likes(size: int) -> None:
    async with market() as (counting, port), dial(f"127.0.0.1:{port}", own_connection=True) as channel:
        chunk, until = artifact_pb2.UploadArtifactRequest(chunk=bytes(size)), time.monotonic() + 3

        async def chunks() -> AsyncIterator[artifact_pb2.UploadArtifactRequest]:
            while time.monotonic() < until or counting.received < 3 * FLOOD_BYTES:
                yield chunk

        async for _ in artifact_pb2_grpc.ArtifactServiceStub(channel).UploadArtifact(chunks(), timeout=120):
            pass
    assert counting.received > 3 * FLOOD_BYTES


def runs(code: list[tuple[int, int, int, int]], packet: bytes) -> bool:
    """Whether the filter lets a packet pass: a machine for the six instructions, after the kernel's document."""
    at, accumulator = 0, 0
    while True:
        operation, then, otherwise, value = code[at]
        at += 1
        offset = value - (0x100000000 - 0x100000)
        if operation == 0x30:
            accumulator = packet[offset]
        elif operation == 0x20:
            accumulator = int.from_bytes(packet[offset : offset + 4])
        elif operation == 0x74:
            accumulator >>= value
        elif operation == 0x15:
            at += then if accumulator == value else otherwise
        elif operation == 0x05:
            at += value
        else:
            return bool(value)


def packet(source: str) -> bytes:
    address = ip_address(source)
    if address.version == 4:
        return bytes([0x45, *bytes(11)]) + address.packed + bytes(4)
    return bytes([0x60, *bytes(7)]) + address.packed + bytes(16)


@pytest.mark.parametrize("away", [
    [], ["192.0.2.1"], ["2001:db8::1"], ["192.0.2.1", "2001:db8::1", "2001:db8:0:1::5", "198.51.100.7"],
    [f"10.0.{at}.1" for at in range(MOST)], [f"2001:db8:0:{at:x}::1" for at in range(MOST)]])
def test_the_filter_drops_whom_it_names_and_nobody_else(away: list[str]) -> None:
    code = program([plain(one) for one in away])
    assert len(code) <= 4096, "more than the kernel takes"
    assert not any(runs(code, packet(one)) for one in away)
    others = ["192.0.2.2", "2001:db9::1", "2002:db8::1", "2001:db8:1::1", "10.1.0.1", "127.0.0.1", "::1"]
    assert all(runs(code, packet(one)) for one in others)


def test_the_longest_filter_is_one_the_kernel_takes() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        port = listening.getsockname()[1]
        doors = Doors(port, 60)
        assert all(doors.turn_away(f"2001:db8:{at:x}::1") for at in range(MOST + 10))
        socket.create_connection(("::1", port), 5).close()


def test_the_machines_own_address_is_never_turned_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert not Doors(port, 60).turn_away("127.0.0.1")
        assert not Doors(port, 60).turn_away("::ffff:127.0.0.1")
        assert connects(port, "127.0.0.1")
