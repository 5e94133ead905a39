"""Calls that wait in the transport: how many are refused for it, by a simulated queue and by a real server."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from computemesh.service.errors import from_rpc_error
from computemesh.service.exposure import Exposure
from computemesh.service.pressure import LEAST, SAMPLE_S, WINDOW, Calls, Pressure, counters, newest_server
from computemesh.trust.errors import MeshError, ResourceExhausted
from computemesh.v1 import market_pb2, market_pb2_grpc
from tests.service.serving import serving


class Queue:
    """A transport whose calls arrive and end as told, and its time."""

    def __init__(self, most_ms: int) -> None:
        self.now, self.calls = 0.0, Calls(0, 0)
        self.pressure = Pressure(most_ms, lambda: self.calls, lambda: self.now)

    def pass_time(self, arrive: int, end: int, samples: int = 1, *, begins: bool = True) -> None:
        for _ in range(samples):
            self.now += SAMPLE_S
            if begins:
                asyncio.run(self._begin())
            self.calls = Calls(self.calls.started + arrive, self.calls.ended + end)
            self.pressure.sample()

    async def _begin(self) -> None:
        self.pressure.begins()

    def refused(self, of: int = 10_000) -> int:
        count = 0
        for _ in range(of):
            try:
                self.pressure.admit()
            except ResourceExhausted:
                count += 1
        return count


def test_a_burst_that_is_served_at_once_is_not_refused() -> None:
    queue = Queue(most_ms=100)
    queue.pass_time(arrive=1000, end=0)
    queue.pass_time(arrive=0, end=1000)
    queue.pass_time(arrive=0, end=0, samples=WINDOW)
    assert queue.refused() == 0


def test_a_queue_that_stands_is_cut_to_what_is_served_in_time() -> None:
    queue = Queue(most_ms=100)
    queue.pass_time(arrive=500, end=0)
    queue.pass_time(arrive=50, end=50, samples=2 * WINDOW)  # 1,000 calls a second: 100 of them in 100 ms
    assert queue.refused() == 400
    assert queue.refused() == 0, "each is refused once, until the next look"


def test_a_few_calls_may_wait_however_long() -> None:
    queue = Queue(most_ms=1)
    queue.pass_time(arrive=LEAST, end=0, samples=1)
    queue.pass_time(arrive=0, end=0, samples=WINDOW)
    assert queue.refused() == 0


async def test_calls_that_the_service_has_begun_do_not_wait() -> None:
    calls, free = Calls(500, 0), asyncio.Event()
    pressure = Pressure(100, lambda: calls)

    async def call() -> None:
        pressure.begins()
        await free.wait()

    async with asyncio.TaskGroup() as begun:
        for _ in range(500):
            begun.create_task(call())
        await asyncio.sleep(0)
        for _ in range(WINDOW):
            pressure.sample()
        pressure.admit()
        free.set()


def test_what_waits_while_nothing_is_begun_is_lost_to_the_count() -> None:
    queue = Queue(most_ms=100)
    queue.pass_time(arrive=500, end=0)
    queue.pass_time(arrive=0, end=0, samples=WINDOW)
    assert queue.refused() == 500 - LEAST
    queue.pass_time(arrive=0, end=0, samples=2 * WINDOW, begins=False)
    assert queue.refused() == 0
    queue.pass_time(arrive=100, end=0, samples=2 * WINDOW)
    assert queue.refused() == 800 - LEAST - 100 * (WINDOW - 1), "what comes after counts again"


def test_without_a_bound_nothing_is_refused() -> None:
    queue = Queue(most_ms=0)
    asyncio.run(asyncio.wait_for(queue.pressure.run(), 1))
    assert queue.refused() == 0


class Slow(market_pb2_grpc.MarketServiceServicer):
    """A read that takes 3 ms of the processor, during which the service sees no other."""

    async def GetMarket(self, request, context):
        time.sleep(0.003)  # noqa: ASYNC251
        return market_pb2.GetMarketResponse(chain_id="here")


async def test_more_calls_on_a_connection_than_it_takes_streams_wait_for_each_other() -> None:
    class Quick(market_pb2_grpc.MarketServiceServicer):
        async def GetMarket(self, request, context):
            return market_pb2.GetMarketResponse(chain_id="here")

    async with serving(Quick(), Exposure(calls_at_once=0), 4) as (_, stub):
        calls = [stub.GetMarket(market_pb2.GetMarketRequest(), timeout=60) for _ in range(200)]
        assert {(await call).chain_id for call in calls} == {"here"}


@pytest.mark.parametrize("most_ms", [0, 20])
async def test_calls_behind_a_busy_processor_are_refused_and_told_when_to_come_back(most_ms: int) -> None:
    async with serving(Slow(), Exposure(calls_wait_ms=most_ms), 1000) as (server, stub):
        sampling = asyncio.create_task(server.computemesh_pressure.run())

        async def outcome() -> MeshError | None:
            try:
                await stub.GetMarket(market_pb2.GetMarketRequest(), timeout=60)
            except grpc.aio.AioRpcError as error:
                return from_rpc_error(error)
            return None

        found = await asyncio.gather(*(outcome() for _ in range(600)))
        while await outcome() is not None:  # noqa: ASYNC110 - until the next look the queue is what it was
            await asyncio.sleep(SAMPLE_S)
        seen = counters(newest_server())
        sampling.cancel()
    refused = [error for error in found if error is not None]
    assert seen.started == seen.ended > 600
    assert all(error.reason == "OVERLOADED" and error.retry_after_ms for error in refused)
    assert bool(refused) == bool(most_ms)
    assert len(refused) < 600
