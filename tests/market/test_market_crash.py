"""kill -9 of a real market process at the points that matter; the ledger's memory stays."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from computemesh.service.server import dial
from computemesh.v1 import market_pb2 as pb
from computemesh.v1 import market_pb2_grpc
from tests.market.market_bench import ALICE, CHAIN, Bench
from tests.market.real_ledger import free_port, spawn
from tests.market.toy_ledger import ToyLedger, serve


class ProcessBench(Bench):
    """A market that is a process."""

    port = 0

    async def start(self) -> None:
        if not self.port:
            self.port = free_port()
            self._channel = dial(f"127.0.0.1:{self.port}")
            self.stub = market_pb2_grpc.MarketServiceStub(self._channel)
        path = self.folder / "market.toml"
        values = {**dataclasses.asdict(self.config), "listen": f"127.0.0.1:{self.port}"}
        path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items()))
        self.process = spawn("market", path)
        async with asyncio.timeout(20):
            while True:
                try:
                    await self.stub.GetMarket(pb.GetMarketRequest(), wait_for_ready=True)
                    return
                except grpc.aio.AioRpcError:  # the stream that the kill broke
                    await asyncio.sleep(0.02)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    async def stop(self) -> None:
        self.kill()

    async def close(self) -> None:
        self.kill()
        await self._channel.close()


@pytest.fixture
async def crash(tmp_path: Path) -> AsyncIterator[ProcessBench]:
    ledger = ToyLedger(CHAIN)
    server, port = await serve(ledger)
    bench = ProcessBench(tmp_path / "market", ledger, f"127.0.0.1:{port}", lease_ms=3000)
    ledger.balances[bench.alice.address] = 100_000_000
    await bench.start()
    yield bench
    await bench.close()
    await server.stop(0)


async def test_money_held_without_its_task_becomes_the_task_at_the_retry(crash: ProcessBench) -> None:
    request_id = str(uuid.uuid4())
    crash.ledger.after["open"] = crash.kill
    with pytest.raises(grpc.aio.AioRpcError):
        await crash.create(request_id=request_id)
    (task_id,) = crash.ledger.escrows
    await asyncio.sleep(1.1)  # the deadline the market would choose now is another second: another order
    await crash.restart()
    task = await crash.create(request_id=request_id)
    assert task.task_id == task_id
    assert crash.ledger.balances[crash.alice.address] == 99_000_000
    assert (await crash.create(request_id=request_id)).task_id == task_id


async def test_money_held_without_its_task_becomes_the_task_without_a_retry_too(crash: ProcessBench) -> None:
    crash.ledger.after["open"] = crash.kill
    with pytest.raises(grpc.aio.AioRpcError):
        await crash.create(request_id=str(uuid.uuid4()))
    (task_id,) = crash.ledger.escrows
    await crash.restart()
    assert (await wait_for_task(crash, task_id)).status == pb.TASK_STATUS_PENDING


async def test_money_held_for_a_request_nobody_can_repeat_is_given_back(crash: ProcessBench) -> None:
    """Without a request_id the customer was told UNAVAILABLE and may have ordered again under another id."""
    crash.ledger.after["open"] = crash.kill
    with pytest.raises(grpc.aio.AioRpcError):
        await crash.create()
    (task_id,) = crash.ledger.escrows
    await crash.restart()
    await wait_for_task(crash, task_id)
    await crash.reach(task_id, pb.TASK_STATUS_CANCELLED)
    assert crash.ledger.balances[crash.alice.address] == 100_000_000


async def wait_for_task(crash: ProcessBench, task_id: str) -> pb.Task:
    async with asyncio.timeout(10):
        while True:
            try:
                return await crash.get(task_id)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                await asyncio.sleep(0.05)


async def test_an_assignment_the_ledger_has_and_the_market_forgot_is_the_same_lease(crash: ProcessBench) -> None:
    task = await crash.create()
    one = crash.orchestrator()
    await one.dial()
    crash.ledger.after["assign"] = crash.kill
    await one.ready()
    with pytest.raises(grpc.aio.AioRpcError):
        await one.read()
    await crash.restart()
    await one.dial()
    lease = await one.lease()
    assert (lease.task_id.hex(), lease.epoch) == (task.task_id, 1)
    assert crash.ledger.escrows[task.task_id].epoch == 1


async def test_a_refund_the_ledger_has_and_the_market_forgot_ends_the_task(crash: ProcessBench) -> None:
    task = await crash.create()
    crash.ledger.after["refund"] = crash.kill
    with pytest.raises(grpc.aio.AioRpcError):
        await crash.stub.CancelTask(pb.CancelTaskRequest(task_id=task.task_id), metadata=ALICE)
    await crash.restart()
    ended = await crash.reach(task.task_id, pb.TASK_STATUS_CANCELLED)
    assert ended.refunded == "1.0"
    assert crash.ledger.balances[crash.alice.address] == 100_000_000


async def test_a_watch_resumes_over_a_kill_without_gap_or_repetition(crash: ProcessBench) -> None:
    task = await crash.create()
    one = crash.orchestrator()
    await one.dial()
    await one.ready()
    lease = await one.lease()
    await one.progress(lease, 1, 1)
    await crash.reach(task.task_id, pb.TASK_STATUS_IN_PROGRESS)
    call = crash.stub.WatchTask(pb.WatchTaskRequest(task_id=task.task_id), metadata=ALICE)
    first = [await call.read(), await call.read()]
    await crash.restart()
    await one.dial(held=[(lease.task_id, lease.epoch)])
    again = await one.lease()
    assert again.epoch == lease.epoch
    crash.ledger.settle(task.task_id, 4)
    await one.outcome(lease)
    rest = await crash.watch(task.task_id, first[-1].cursor)
    cursors = [event.cursor for event in (*first, *rest)]
    assert cursors == list(range(1, len(cursors) + 1))
    assert rest[-1].task.status == pb.TASK_STATUS_COMPLETED


async def test_tasks_survive_kills_at_any_moment(crash: ProcessBench) -> None:
    """Customers repeat their requests, an orchestrator dials again; every order ends up as one completed task."""
    requests = [str(uuid.uuid4()) for _ in range(30)]
    stop = asyncio.Event()

    async def customer(request_id: str) -> str:
        while True:
            try:
                return (await crash.create(request_id=request_id)).task_id
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)

    async def orchestrate() -> None:
        held: dict[bytes, pb.TaskLease] = {}
        while not stop.is_set():
            one = crash.orchestrator()
            try:
                await one.dial([(lease.task_id, lease.epoch) for lease in held.values()])
                await one.ready(5)
                for lease in held.values():
                    await one.outcome(lease)
                while True:
                    message = await one.read(60)
                    for lease in message.leases.leases:
                        held[lease.task_id] = lease
                        if crash.ledger.escrows[lease.task_id.hex()].jobs_settled == 0:
                            crash.ledger.settle(lease.task_id.hex(), 4)
                        await one.outcome(lease)
                    for task_id in (*message.acks.task_ids, *(r.task_id for r in message.revokes.revokes)):
                        if held.pop(task_id, None):
                            await one.ready()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await asyncio.sleep(0.05)

    worker = asyncio.create_task(orchestrate())
    customers = [asyncio.create_task(customer(request_id)) for request_id in requests]
    for pause in (0.05, 0.15, 0.3, 0.02):
        await asyncio.sleep(pause)
        await crash.restart()
    task_ids = await asyncio.gather(*customers)
    assert len(set(task_ids)) == 30
    assert set(task_ids) == set(crash.ledger.escrows)
    began = time.monotonic()
    for task_id in task_ids:
        await crash.reach(task_id, pb.TASK_STATUS_COMPLETED, 20)
    assert time.monotonic() - began < 20
    stop.set()
    worker.cancel()
    assert crash.ledger.balances[crash.alice.address] == 70_000_000
