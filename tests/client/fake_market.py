"""A market whose answers a test writes: real gRPC on a free port, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

from computemesh.client.ids import request_id_bytes
from computemesh.client.model import payload_of
from computemesh.service.access import Caller, Role
from computemesh.service.server import build_server
from computemesh.trust.amount import parse_cpc
from computemesh.trust.digest import payload_digest
from computemesh.trust.errors import MeshError
from computemesh.trust.identity import PrivateKey
from computemesh.trust.statement import Order, challenge_type_hash
from computemesh.v1 import market_pb2, market_pb2_grpc

CHAIN = "fake-chain"
MARKET_KEY = PrivateKey.from_bytes(b"\x05" * 32)
ACCOUNT_KEY = PrivateKey.from_bytes(b"\x06" * 32)


class FakeMarket(market_pb2_grpc.MarketServiceServicer):
    """Creates tasks honestly unless told otherwise, and notes what it was asked.

    `faults`: errors raised by the next calls. `watches`: per opened stream, the events to send, an error or None to
    break it with; the last entry repeats.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.tokens: list[str] = []
        self.faults: list[MeshError] = []
        self.watches: list[list[Any]] = []
        self.change_order: dict[str, Any] = {}
        self.tasks: dict[bytes, market_pb2.Task] = {}

    def _note(self, name: str, request: Any, context: Any) -> None:
        self.calls.append((name, request))
        self.tokens += [value for key, value in context.invocation_metadata() if key == "authorization"]
        if self.faults:
            raise self.faults.pop(0)

    def named(self, name: str) -> list[Any]:
        return [request for called, request in self.calls if called == name]

    async def GetMarket(self, request: Any, context: Any) -> market_pb2.GetMarketResponse:
        self._note("GetMarket", request, context)
        return market_pb2.GetMarketResponse(
            chain_id=CHAIN, market_key=MARKET_KEY.public.hex(), now_ms=time.time_ns() // 1_000_000
        )

    async def CreateTask(self, request: Any, context: Any) -> market_pb2.CreateTaskResponse:
        values = {
            "request_id": request_id_bytes(request.request_id),
            "customer_key": bytes.fromhex(request.customer_key) or ACCOUNT_KEY.public,
            "market_key": MARKET_KEY.public,
            "challenge_type_hash": challenge_type_hash(request.challenge_type),
            "payload_digest": payload_digest(payload_of(request.payload)),
            "reward_units": parse_cpc(request.reward),
            "deadline_ms": (request.deadline or int(time.time()) + 3600) * 1000,
            "priority": request.priority,
        }
        order = Order(**{**values, **self.change_order})
        task = self.tasks.setdefault(order.request_id, market_pb2.Task(
            task_id=order.task_id(CHAIN).hex(), order=order.pack(), reward=request.reward, status=1, jobs_total=4,
            challenge_type=request.challenge_type, payload=request.payload,
        ))  # fmt: skip
        self._note("CreateTask", request, context)  # after the task exists: a fault here loses the answer
        return market_pb2.CreateTaskResponse(task=task)

    async def GetTask(self, request: Any, context: Any) -> market_pb2.GetTaskResponse:
        self._note("GetTask", request, context)
        return market_pb2.GetTaskResponse(task=market_pb2.Task(task_id=request.task_id, status=3))

    async def ListTasks(self, request: Any, context: Any) -> market_pb2.ListTasksResponse:
        self._note("ListTasks", request, context)
        first = int(request.page_token or 0)
        size = request.limit or 50
        ids = [f"{number:064x}" for number in range(7)][first : first + size]
        more = str(first + size) if first + size < 7 else ""
        return market_pb2.ListTasksResponse(
            tasks=[market_pb2.Task(task_id=one) for one in ids], next_page_token=more, total=7
        )

    async def WatchTask(self, request: Any, context: Any) -> AsyncIterator[market_pb2.WatchTaskResponse]:
        self._note("WatchTask", request, context)
        script = self.watches.pop(0) if len(self.watches) > 1 else self.watches[0]
        for step in script:
            if isinstance(step, MeshError):
                raise step
            if step == "wait":
                await asyncio.sleep(60)
            elif step.cursor > request.cursor:
                yield step


class Running:
    """A fake market that serves until closed."""

    def __init__(self) -> None:
        self.market = FakeMarket()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.address = f"127.0.0.1:{self._run(self._start())}"

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _start(self) -> int:
        self._server, port = build_server(
            "127.0.0.1:0", lambda server: market_pb2_grpc.add_MarketServiceServicer_to_server(self.market, server), [],
            identify=lambda context: Caller("anybody", frozenset(Role)),
        )
        await self._server.start()
        return port

    def close(self) -> None:
        self._run(self._server.stop(None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def event(cursor: int, kind: int = 4, status: int = 2) -> market_pb2.WatchTaskResponse:
    """Progress of a task in progress, unless told otherwise."""
    task = market_pb2.Task(status=status, task_id="ab" * 32)
    return market_pb2.WatchTaskResponse(cursor=cursor, kind=kind, task=task)


def ended(cursor: int, status: int = 3) -> market_pb2.WatchTaskResponse:
    return event(cursor, market_pb2.TASK_EVENT_KIND_ENDED, status)
