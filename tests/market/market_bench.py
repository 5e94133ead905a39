"""A market in process on port 0 with real SQLite, in front of a ledger in memory or the real one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from pathlib import Path

import grpc
from google.protobuf import struct_pb2

from computemesh.service.server import dial
from computemesh.trust import envelope, statement
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import common_pb2, market_pb2, market_pb2_grpc
from market.app import Market, build
from market.callers import account_of
from market.config import Config
from tests.databases import location
from tests.market.toy_ledger import ToyLedger

CHAIN = "computemesh-test"
API_KEY = "secret-key-of-alice"
OTHER_API_KEY = "secret-key-of-bob"


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


ALICE = bearer(API_KEY)
BOB = bearer(OTHER_API_KEY)


def struct(**values: object) -> struct_pb2.Struct:
    message = struct_pb2.Struct()
    message.update(values)
    return message


def create_request(**values: object) -> market_pb2.CreateTaskRequest:
    fields: dict[str, object] = {"challenge_type": "noop", "payload": struct(jobs=4), "reward": "1.0"}
    return market_pb2.CreateTaskRequest(**{**fields, **values})


class Bench:
    """A market that can be stopped and started again over the same data, its ledger, and ways to speak to it."""

    def __init__(self, folder: Path, ledger: ToyLedger | None, ledger_address: str, **settings: object) -> None:
        self.folder = folder
        self.ledger = ledger
        self.key = PrivateKey.from_bytes(hashlib.sha256(b"market").digest())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "market.key").write_text(self.key.secret.hex())
        digest = [hashlib.sha256(k.encode()).hexdigest() for k in (API_KEY, OTHER_API_KEY)]
        self.config = Config(**{
            "data_dir": str(folder), "chain_id": CHAIN, "key_file": str(folder / "market.key"),
            "ledger": ledger_address, "listen": "127.0.0.1:0", "api_keys": (f"alice:{digest[0]}", f"bob:{digest[1]}"),
            "lease_ms": 1000, "heartbeat_interval_ms": 200, **location(folder), **settings})
        self.alice = account_of(self.key.secret, "alice")
        self.bob = account_of(self.key.secret, "bob")
        self.market: Market | None = None

    async def start(self) -> None:
        self.market = build(self.config)
        self._stop = asyncio.Event()
        self._run = asyncio.create_task(self.market.run(self._stop))
        self._channel = dial(f"127.0.0.1:{self.market.port}")
        self.stub = market_pb2_grpc.MarketServiceStub(self._channel)
        await self.stub.QuoteTask(
            market_pb2.QuoteTaskRequest(challenge_type="noop", payload=struct(jobs=1)), metadata=ALICE,
            wait_for_ready=True, timeout=10)

    async def stop(self) -> None:
        self._stop.set()
        await self._run
        await self._channel.close()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def create(self, metadata=ALICE, **values: object) -> market_pb2.Task:
        response = await self.stub.CreateTask(create_request(**values), metadata=metadata, timeout=10)
        return response.task

    async def get(self, task_id: str, metadata=ALICE) -> market_pb2.Task:
        response = await self.stub.GetTask(market_pb2.GetTaskRequest(task_id=task_id), metadata=metadata, timeout=10)
        return response.task

    async def reach(self, task_id: str, status: int, timeout_s: float = 8) -> market_pb2.Task:
        """The task once it has this status."""
        async with asyncio.timeout(timeout_s):
            while True:
                task = await self.get(task_id)
                if task.status == status:
                    return task
                await asyncio.sleep(0.02)

    async def watch(self, task_id: str, cursor: int = 0, metadata=ALICE) -> list[market_pb2.WatchTaskResponse]:
        """Every event from `cursor` to the end."""
        call = self.stub.WatchTask(
            market_pb2.WatchTaskRequest(task_id=task_id, cursor=cursor), metadata=metadata, timeout=15)
        return [event async for event in call]

    def orchestrator(self, name: str = "one") -> Orchestrator:
        return Orchestrator(self, PrivateKey.from_bytes(hashlib.sha256(name.encode()).digest()))


class Orchestrator:
    """A client that speaks Dispatch on a real stream."""

    def __init__(self, bench: Bench, key: PrivateKey) -> None:
        self.bench = bench
        self.key = key
        self._writing = asyncio.Lock()  # a stream takes one write at a time, and heartbeats are written beside the test

    async def dial(self, held: list[tuple[bytes, int]] | None = None, signature: bytes | None = None) -> None:
        self.call = self.bench.stub.Dispatch()
        greeting = (await self.read()).greeting
        info = market_pb2.OrchestratorInfo(address="127.0.0.1:7103", held=[
            market_pb2.HeldTask(task_id=task_id, epoch=epoch) for task_id, epoch in held or []]).SerializeToString()
        body = statement.hello_body(greeting.nonce, greeting.public_key, self.key.public, info)
        await self.write(hello=common_pb2.Hello(
            public_key=self.key.public, capabilities=info,
            signature=signature or envelope.sign(self.key, "hello", greeting.chain_id, body)))
        self.welcome = (await self.read()).welcome

    async def write(self, **message: object) -> None:
        async with self._writing:
            await self.call.write(market_pb2.DispatchRequest(**message))

    async def read(self, timeout_s: float = 5) -> market_pb2.DispatchResponse:
        async with asyncio.timeout(timeout_s):
            message = await self.call.read()
        if message is grpc.aio.EOF:
            raise await _error(self.call)
        return message

    async def ready(self, credits: int = 1) -> None:
        await self.write(ready=market_pb2.DispatchReady(credits=credits))

    async def lease(self) -> market_pb2.TaskLease:
        """The next batch of leases, which must hold one."""
        message = await self.read()
        assert message.WhichOneof("message") == "leases", message
        (lease,) = message.leases.leases
        return lease

    async def progress(self, lease: market_pb2.TaskLease, settled: int, running: int) -> None:
        await self.write(progress=market_pb2.ProgressBatch(progress=[market_pb2.TaskProgress(
            task_id=lease.task_id, epoch=lease.epoch, jobs_settled=settled, jobs_running=running)]))

    async def outcome(self, lease: market_pb2.TaskLease, status: int = market_pb2.TASK_STATUS_COMPLETED,
                      result_hash: bytes = b"r" * 32, detail: str = "") -> None:
        await self.write(outcomes=market_pb2.OutcomeBatch(outcomes=[market_pb2.TaskOutcome(
            task_id=lease.task_id, epoch=lease.epoch, status=status, detail=detail, result_hash=result_hash,
            block_height=7, jobs_settled=lease.jobs)]))

    async def beat(self) -> None:
        """Heartbeats for ever, for a task of its own."""
        with contextlib.suppress(Exception):
            while True:
                await self.write(heartbeat=market_pb2.DispatchHeartbeat())
                await asyncio.sleep(0.2)


async def _error(call) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details())
