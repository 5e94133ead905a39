"""Attacks on the transport of a real service, bounded and over loopback: an honest client is answered all the while."""

from __future__ import annotations

import asyncio

import grpc
import psutil
import pytest

from computemesh.cli.cluster import Cluster
from computemesh.service.errors import from_rpc_error
from computemesh.service.exposure import Exposure
from computemesh.service.limits import Slots
from computemesh.trust.errors import InvalidArgument, MeshError, ResourceExhausted
from computemesh.v1 import market_pb2, market_pb2_grpc
from tests.attacks.frames import ATTACKS
from tests.attacks.rig import ONE_STRANGER, PORTS, compare, connects, flood
from tests.service.serving import serving

MAX_GROWTH_BYTES = 256 << 20


@pytest.mark.parametrize(("port", "attack"), [
    *(("market", attack) for attack in ATTACKS),
    *((port, "rapid reset") for port in ("ledger", "orchestrator", "worker-1", "edge"))])
def test_an_honest_client_is_answered_during_an_attack(cluster: Cluster, port: str, attack: str) -> None:
    """Each call has to be answered within rig.CALL_S; how many are is what `make attacks` measures."""
    found = compare(cluster, port, attack, seconds=0.5)
    print(found.row())
    assert sum(one.pieces for one in found.attacked) > 10
    assert found.grown < MAX_GROWTH_BYTES


def test_who_breaches_http_at_the_edge_again_and_again_is_turned_away(cluster: Cluster) -> None:
    port, attacker = int(cluster.address("edge").rpartition(":")[2]), next(ONE_STRANGER)[0]
    flood(port, PORTS["edge"], attacker, 60, pieces=20_000)
    assert not connects(port, attacker)
    assert connects(port, next(ONE_STRANGER)[0])


async def test_who_is_refused_by_a_full_service_is_told_when_to_come_back_and_reads_do_not_wait_for_writes() -> None:
    free = asyncio.Event()

    class Waiting(market_pb2_grpc.MarketServiceServicer):
        async def CreateTask(self, request, context):
            await free.wait()
            return market_pb2.CreateTaskResponse()

        async def GetMarket(self, request, context):
            return market_pb2.GetMarketResponse(chain_id="here")

    order = market_pb2.CreateTaskRequest(challenge_type="noop", reward="1")
    async with serving(Waiting(), Exposure(calls_at_once=4)) as (_, stub):
        calls = [stub.CreateTask(order, timeout=30) for _ in range(12)]
        refused, waiting = await asyncio.wait([asyncio.ensure_future(_outcome(call)) for call in calls], timeout=0.5)
        while len(waiting) > 4:
            more, waiting = await asyncio.wait(waiting, timeout=0.5)
            refused |= more
        assert (await stub.GetMarket(market_pb2.GetMarketRequest(), timeout=30)).chain_id == "here"
        free.set()
        errors = [await one for one in refused]
        assert len(errors) == 8
        assert all(error is not None and error.reason == "OVERLOADED" and error.retry_after_ms for error in errors)
        assert [await one for one in waiting] == [None] * 4


async def test_more_streams_than_a_service_takes_are_refused_until_one_ends() -> None:
    class Waiting(market_pb2_grpc.MarketServiceServicer):
        async def WatchTask(self, request, context):
            yield market_pb2.WatchTaskResponse()
            await asyncio.Event().wait()

    async with serving(Waiting(), Exposure(streams_at_once=4)) as (_, stub):

        async def opened() -> grpc.aio.UnaryStreamCall:
            call = stub.WatchTask(market_pb2.WatchTaskRequest(task_id="0" * 64), timeout=60)
            await call.read()
            return call

        held = [await opened() for _ in range(4)]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await opened()
        error = from_rpc_error(refused.value)
        assert (error.reason, bool(error.retry_after_ms)) == ("OVERLOADED", True)
        held[0].cancel()
        async with asyncio.timeout(20):
            while True:
                try:
                    held.append(await opened())
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.01)
        for call in held:
            call.cancel()


async def _outcome(call: grpc.aio.UnaryUnaryCall) -> MeshError | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return None


def test_a_slot_is_free_again_when_its_call_ends_in_whatever_way() -> None:
    slots = Slots(2)
    with slots.one():
        with pytest.raises(KeyError), slots.one():
            raise KeyError
        with slots.one(), pytest.raises(ResourceExhausted) as refused, slots.one():
            pass
    assert refused.value.reason == "OVERLOADED"
    assert 500 <= (refused.value.retry_after_ms or 0) <= 1500
    with slots.one(), slots.one():
        pass


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
