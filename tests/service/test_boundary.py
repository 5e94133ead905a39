"""What a caller sees of bad bytes, broken rules, domain errors and accidents: a real server and channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import structlog

from computemesh.service import telemetry
from computemesh.service.access import Caller, Role
from computemesh.service.errors import BROKEN, abort, from_rpc_error
from computemesh.service.server import build_server, dial, set_serving
from computemesh.trust.errors import InsufficientFunds, InvalidArgument, MeshError, ResourceExhausted
from computemesh.v1 import market_pb2, market_pb2_grpc

SERVICE = "computemesh.v1.MarketService"


class Scripted(market_pb2_grpc.MarketServiceServicer):
    async def GetTask(self, request, context):
        if request.task_id.startswith("a"):
            raise InsufficientFunds("reward 10.0 CPC, but the account holds 3.2 CPC", metadata={"short": "6.8"})
        if request.task_id.startswith("b"):
            await abort(context, ResourceExhausted("queue full", retry_after_ms=1500))
        raise KeyError("secret-of-the-server")

    async def WatchTask(self, request, context):
        yield market_pb2.WatchTaskResponse(cursor=1)
        raise KeyError("secret-of-the-server")

    async def Dispatch(self, request_iterator, context):
        async for _ in request_iterator:
            yield market_pb2.DispatchResponse()


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    server, port = build_server(
        "127.0.0.1:0", lambda s: market_pb2_grpc.add_MarketServiceServicer_to_server(Scripted(), s), [SERVICE],
        identify=lambda context: Caller("anybody", frozenset(Role)))
    await server.start()
    await set_serving(server, True)
    async with dial(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def failure(call) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


@pytest.mark.parametrize(("text", "status"), [(BROKEN, "UNAVAILABLE"), ("a bug", "INTERNAL")])
def test_a_connection_that_broke_under_a_message_is_unavailable(text: str, status: str) -> None:
    none = grpc.aio.Metadata()
    assert from_rpc_error(grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, none, none, text)).status == status


async def test_a_domain_error_arrives_with_type_reason_and_metadata(channel) -> None:
    error = await failure(market_pb2_grpc.MarketServiceStub(channel).GetTask(
        market_pb2.GetTaskRequest(task_id="a" * 64)))
    assert isinstance(error, InsufficientFunds)
    assert error.message == "reward 10.0 CPC, but the account holds 3.2 CPC"
    assert error.metadata == {"short": "6.8"}


async def test_a_refusal_says_when_to_retry(channel) -> None:
    error = await failure(market_pb2_grpc.MarketServiceStub(channel).GetTask(
        market_pb2.GetTaskRequest(task_id="b" * 64)))
    assert error.status == "RESOURCE_EXHAUSTED"
    assert error.retry_after_ms == 1500


async def test_an_accident_does_not_leak_its_text(channel) -> None:
    stub = market_pb2_grpc.MarketServiceStub(channel)
    error = await failure(stub.GetTask(market_pb2.GetTaskRequest(task_id="c" * 64)))
    assert error.status == "INTERNAL"
    assert "secret" not in error.message
    assert error.metadata["incident"] in error.message
    stream = stub.WatchTask(market_pb2.WatchTaskRequest(task_id="c" * 64))
    assert (await stream.read()).cursor == 1
    error = await failure(stream.read())
    assert error.status == "INTERNAL"
    assert "secret" not in error.message


def test_the_log_of_an_accident_has_no_values_of_variables(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure("canary")
    try:
        api_key = "mesh_" + "canary"
        try:
            raise KeyError("name of a field")
        except KeyError as error:
            structlog.get_logger("canary").error("unexpected exception", exc_info=error)
    finally:
        structlog.reset_defaults()
    said = capsys.readouterr().err
    assert "name of a field" in said
    assert "test_boundary.py" in said
    assert api_key not in said


async def test_a_caller_that_hangs_up_under_an_answer_is_no_accident(capsys: pytest.CaptureFixture[str]) -> None:
    gone = asyncio.Event()

    class Answering(market_pb2_grpc.MarketServiceServicer):
        async def Dispatch(self, request_iterator, context):
            try:
                while True:
                    await context.write(market_pb2.DispatchResponse())
                    await asyncio.sleep(0)
            finally:
                gone.set()

    server, port = build_server(
        "127.0.0.1:0", lambda s: market_pb2_grpc.add_MarketServiceServicer_to_server(Answering(), s), [SERVICE])
    await server.start()
    for _ in range(20):
        gone.clear()
        async with dial(f"127.0.0.1:{port}", own_connection=True) as channel:
            call = market_pb2_grpc.MarketServiceStub(channel).Dispatch()
            await call.read()
            call.cancel()
        await asyncio.wait_for(gone.wait(), 10)
    await server.stop(None)
    assert "unexpected exception" not in capsys.readouterr().out


async def test_a_broken_rule_names_field_value_and_limit(channel) -> None:
    error = await failure(market_pb2_grpc.MarketServiceStub(channel).GetTask(
        market_pb2.GetTaskRequest(task_id="XYZ")))
    assert isinstance(error, InvalidArgument)
    assert error.violations[0][0] == "task_id"
    assert "XYZ" in error.message
    assert "[0-9a-f]{64}" in error.message


@pytest.mark.parametrize("method", ["GetTask", "Dispatch"])
async def test_bytes_that_are_no_message_are_the_callers_fault(channel, method: str) -> None:
    if method == "GetTask":
        call = channel.unary_unary(f"/{SERVICE}/{method}")(b"\xff\xff\xff")
    else:
        async def requests():
            yield b"\xff\xff\xff"
        call = channel.stream_stream(f"/{SERVICE}/{method}")(requests()).read()
    error = await failure(call)
    assert isinstance(error, InvalidArgument)
    assert error.reason == "MALFORMED_MESSAGE"
    assert method in error.message


async def test_a_message_over_the_limit_is_refused(channel) -> None:
    error = await failure(channel.unary_unary(f"/{SERVICE}/GetTask")(b"\x0a" + b"x" * 5 * 1024 * 1024))
    assert error.status == "RESOURCE_EXHAUSTED"


def test_a_taken_port_is_said_clearly() -> None:
    async def both() -> None:
        first, port = build_server("127.0.0.1:0", lambda _: None, [])
        await first.start()
        with pytest.raises(InvalidArgument, match=f"127.0.0.1:{port}"):
            build_server(f"127.0.0.1:{port}", lambda _: None, [])
        await first.stop(None)
    import asyncio
    asyncio.run(both())
