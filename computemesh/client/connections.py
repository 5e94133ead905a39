"""The services of one mesh as one customer reaches them: addresses, who calls, and unary calls by name."""

# ruff: noqa: ASYNC109 (a timeout is part of what callers say, and spans several tries)

from __future__ import annotations

import time
from typing import Any

import grpc

from computemesh.client.profile import Profile
from computemesh.client.rpc import Interceptors, Transport, no_interceptors, signed_token
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2_grpc, market_pb2, market_pb2_grpc, orchestrator_pb2_grpc, worker_pb2_grpc


class Connections:
    """Channels to market, ledger, orchestrators and workers; made when first needed.

    `market` and `ledger` are HOST:PORT (an empty ledger is asked of the market), `timeout` and `retry_for` seconds per
    call, `interceptors(address)` see the calls of that channel. Every method raises `MeshError` or one of its kinds.
    """

    def __init__(
        self, profile: Profile, market: str, ledger: str, api_key: str, key: PrivateKey | None, timeout: float,
        retry_for: float, interceptors: Interceptors = no_interceptors,
    ) -> None:  # fmt: skip
        self.profile, self.key = profile, key
        self.market_address, self.ledger_address = market, ledger
        self.transport = Transport(api_key, key, timeout, retry_for, interceptors, profile.trust)
        self._known: market_pb2.GetMarketResponse | None = None
        self._clock_offset_ms = 0

    @property
    def market_peer(self) -> str:
        """What messages call the market."""
        return f"market at {self.market_address}"

    async def market_info(self) -> market_pb2.GetMarketResponse:
        """Chain id, keys and task types of the market, asked once."""
        if self._known is None:
            request = market_pb2.GetMarketRequest()
            known = await self.transport.call(self._market_stub().GetMarket, request, peer=self.market_peer)
            self._clock_offset_ms = known.now_ms - time.time_ns() // 1_000_000
            self._known = known
        return self._known

    def now_ms(self) -> int:
        """The market's clock, as far as it is known: deadlines are judged by it."""
        return time.time_ns() // 1_000_000 + self._clock_offset_ms

    async def chain(self) -> str:
        """The chain id, from the profile or else the market."""
        return self.profile.chain_id or (await self.market_info()).chain_id

    async def credentials(self) -> tuple[tuple[str, str], ...]:
        """Metadata that tells the market who calls."""
        return self.transport.credentials(await self.chain() if self.key else "")

    async def market(self, method: str, request: Any, timeout: float | None = None) -> Any:
        """A unary call of `MarketService` as the customer."""
        stub, metadata = self._market_stub(), await self.credentials()
        return await self.transport.call(getattr(stub, method), request, metadata, peer=self.market_peer,
                                         timeout=timeout)  # fmt: skip

    async def watch_task(self, task_id: str, cursor: int, timeout: float) -> Any:
        """An open `WatchTask` stream of at most `timeout` seconds."""
        request = market_pb2.WatchTaskRequest(task_id=task_id, cursor=cursor)
        return self._market_stub().WatchTask(request, timeout=timeout, metadata=await self.credentials())

    async def watch_events(self, cursor: int, wanted: market_pb2.EventFilter, follow: bool, timeout: float) -> Any:
        """An open `WatchEvents` stream of at most `timeout` seconds."""
        request = market_pb2.WatchEventsRequest(cursor=cursor, filter=wanted, only_past=not follow)
        return self._market_stub().WatchEvents(request, timeout=timeout, metadata=await self.credentials())

    def market_channel(self) -> grpc.aio.Channel:
        """The channel to the market."""
        channel: grpc.aio.Channel = self.transport.stub(lambda channel: channel, self.market_address, "market")
        return channel

    async def ledger(self, method: str, request: Any, timeout: float | None = None) -> Any:
        """A unary call of `LedgerService`."""
        if not self.ledger_address:
            self.ledger_address = (await self.market_info()).ledger_address
        stub = self.transport.stub(ledger_pb2_grpc.LedgerServiceStub, self.ledger_address, "ledger")
        peer = f"ledger at {self.ledger_address}"
        return await self.transport.call(getattr(stub, method), request, peer=peer, timeout=timeout)

    async def orchestrator(
        self, method: str, request: Any, address: str | None = None, as_key: PrivateKey | None = None,
        timeout: float | None = None,
    ) -> Any:  # fmt: skip
        """A unary call of `OrchestratorService`; `as_key` signs a token for it. The API key is never sent."""
        address = address or self.profile.orchestrator
        stub = self.transport.stub(orchestrator_pb2_grpc.OrchestratorServiceStub, address, "orchestrator")
        metadata: tuple[tuple[str, str], ...] = ()
        if as_key is not None:
            metadata = (("authorization", f"Bearer {signed_token(as_key, await self.chain())}"),)
        peer = f"orchestrator at {address}"
        return await self.transport.call(getattr(stub, method), request, metadata, peer=peer, timeout=timeout)

    async def worker(self, method: str, request: Any, address: str) -> Any:
        """A unary call of `WorkerService` at a worker's control HOST:PORT."""
        stub = self.transport.stub(worker_pb2_grpc.WorkerServiceStub, address, "worker")
        return await self.transport.call(getattr(stub, method), request, peer=f"worker at {address}")

    def _market_stub(self) -> Any:
        return self.transport.stub(market_pb2_grpc.MarketServiceStub, self.market_address, "market")
