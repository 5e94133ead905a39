"""A server of the market's service that answers as a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from computemesh.service.access import Caller, Role
from computemesh.service.exposure import Exposure
from computemesh.service.server import build_server, dial
from computemesh.v1 import market_pb2_grpc


@asynccontextmanager
async def serving(
    servicer: market_pb2_grpc.MarketServiceServicer, exposure: Exposure, max_concurrent_streams: int = 16
) -> AsyncIterator[tuple[grpc.aio.Server, market_pb2_grpc.MarketServiceStub]]:
    """It, open to everybody, and a stub on a connection of its own."""
    server, port = build_server(
        "127.0.0.1:0", lambda s: market_pb2_grpc.add_MarketServiceServicer_to_server(servicer, s),
        ["computemesh.v1.MarketService"], identify=lambda context: Caller("anybody", frozenset(Role)),
        exposure=exposure, max_concurrent_streams=max_concurrent_streams)  # fmt: skip
    await server.start()
    try:
        async with dial(f"127.0.0.1:{port}", own_connection=True) as channel:
            yield server, market_pb2_grpc.MarketServiceStub(channel)
    finally:
        await server.stop(None)
