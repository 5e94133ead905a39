"""Who may call what: the table against the contracts, and every row of it against the running services."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc
import pytest

from computemesh.cli.cluster import Cluster
from computemesh.service import access
from computemesh.service.access import ACCESS, Proof, Role
from computemesh.service.auth import READ_ONLY, make_token, read_token
from computemesh.service.errors import from_rpc_error
from computemesh.service.exposure import Exposure
from computemesh.service.limits import MAX_CALLERS, Rates
from computemesh.service.server import build_server, dial
from computemesh.trust.errors import MeshError, ResourceExhausted, Unauthenticated, Unauthorized
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import artifact_pb2, ledger_pb2, market_pb2, market_pb2_grpc, orchestrator_pb2, worker_pb2
from worker.service import ControlServer

CONTRACTS = (market_pb2, orchestrator_pb2, worker_pb2, artifact_pb2, ledger_pb2)
MOUNTED = {"market": ("MarketService", "ArtifactService"), "orchestrator": ("OrchestratorService", "ArtifactService"),
           "ledger": ("LedgerService",)}  # fmt: skip
# An empty request of these would be answered when something happens.
ENDING = {"/computemesh.v1.MarketService/WatchEvents": market_pb2.WatchEventsRequest(only_past=True)}
NOT_ADMITTED = {"MISSING_CREDENTIALS", "ROLE_NEEDED", "NO_ACCESS", "TOKEN_SCOPE"}


def rpcs() -> Iterator[object]:
    for module in CONTRACTS:
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def path_of(method) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


METHODS = {path_of(method): method for method in rpcs()}


def test_every_rpc_has_a_row_and_every_row_an_rpc() -> None:
    assert set(ACCESS) == set(METHODS)
    assert all((row.proof is Proof.NONE) == (row.roles == {Role.ANONYMOUS}) for row in ACCESS.values())


async def answer(channel: grpc.aio.Channel, path: str, metadata: tuple = ()) -> MeshError | None:
    """What an empty request gets: None for an answer, else the error."""
    method, request = METHODS[path], ENDING[path].SerializeToString() if path in ENDING else b""
    inwards, outwards = method.client_streaming, method.server_streaming
    kind = f"{'stream' if inwards else 'unary'}_{'stream' if outwards else 'unary'}"

    async def no_requests() -> AsyncIterator[bytes]:
        for nothing in ():
            yield nothing

    call = getattr(channel, kind)(path)(no_requests() if inwards else request, metadata=metadata, timeout=20)
    try:
        await (call.read() if outwards else call)
        if inwards and (code := await call.code()) is not grpc.StatusCode.OK:
            return from_rpc_error(grpc.aio.AioRpcError(code, await call.initial_metadata(),
                                                       await call.trailing_metadata(), await call.details()))
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    finally:
        call.cancel()
    return None


def token(key: PrivateKey, chain: str, scope: int = 0) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {make_token(key, chain, time.time_ns() // 1_000_000 + 60_000, scope)}"),)


async def check_row(channel, path: str, metadata: tuple, roles: frozenset[Role]) -> None:
    """`roles`: what the caller is there; empty metadata is an anonymous caller."""
    row = ACCESS[path]
    error = await answer(channel, path, metadata)
    reason = error.reason if error else ""
    if row.proof is not Proof.BEARER or roles & row.roles:
        assert reason not in NOT_ADMITTED, (path, roles, str(error))
        return
    expected = Unauthorized if metadata else Unauthenticated
    assert isinstance(error, expected), (path, roles, str(error))
    assert error.status == ("PERMISSION_DENIED" if metadata else "UNAUTHENTICATED")
    assert path.rpartition("/")[2] in error.message if metadata else "authorization" in error.message


@pytest.mark.parametrize("service", MOUNTED)
async def test_the_services_hold_the_table(cluster: Cluster, service: str) -> None:
    keys, chain = cluster.plan.keys, cluster.profile.chain_id
    customer = frozenset({Role.CUSTOMER})
    operator = frozenset({Role.ORCHESTRATOR, Role.OPERATOR})
    there = {"orchestrator": {"customer": frozenset(), "worker-1": frozenset({Role.WORKER}), "orchestrator": operator}}
    paths = [path for path in ACCESS if path.split(".")[-1].split("/")[0] in MOUNTED[service]]
    async with dial(cluster.address(service)) as channel:
        for path in paths:
            await check_row(channel, path, (), frozenset())
            if ACCESS[path].proof is Proof.BEARER:
                for name, roles in there.get(service, dict.fromkeys(("customer", "worker-1"), customer)).items():
                    await check_row(channel, path, token(keys[name], chain), roles)
                api_key = (("authorization", f"Bearer {cluster.plan.api_key}"),)
                if service == "market":
                    await check_row(channel, path, api_key, customer)
                else:
                    error = await answer(channel, path, api_key)
                    assert isinstance(error, Unauthenticated), (path, str(error))


async def test_a_read_only_token_reads_and_changes_nothing(cluster: Cluster) -> None:
    key, chain = cluster.plan.keys["customer"], cluster.profile.chain_id
    async with dial(cluster.address("market")) as channel:
        for path in (path for path, row in ACCESS.items() if path.split("/")[1].split(".")[-1] in MOUNTED["market"]):
            row = ACCESS[path]
            if row.proof is not Proof.BEARER:
                continue
            error = await answer(channel, path, token(key, chain, READ_ONLY))
            assert (error is not None and error.reason == "TOKEN_SCOPE") == row.writes, (path, str(error))


@pytest.mark.parametrize(("service", "method"), [("market", "MarketService/Dispatch"),
                                                 ("orchestrator", "OrchestratorService/Work")])  # fmt: skip
async def test_a_stream_that_does_not_say_whose_it_is_gets_nothing(cluster: Cluster, service: str, method: str) -> None:
    async with dial(cluster.address(service)) as channel:
        async def ready() -> AsyncIterator[bytes]:
            kind = market_pb2.DispatchRequest if service == "market" else orchestrator_pb2.WorkRequest
            yield kind(ready={"credits": 5}).SerializeToString()

        call = channel.stream_stream(f"/computemesh.v1.{method}")(ready(), timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in call:
                pass
        assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED,
                                        grpc.StatusCode.PERMISSION_DENIED)  # fmt: skip


class Owned:
    """What a control port needs of an agent."""

    def __init__(self) -> None:
        self.key, self.chain, self.paused = PrivateKey.generate(), "c", 0

    def describe(self) -> worker_pb2.WorkerDescription:
        return worker_pb2.WorkerDescription()

    async def pause(self) -> None:
        self.paused += 1

    async def resume(self) -> None:
        pass


async def test_from_another_machine_only_the_workers_key_controls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Owned()
    control = ControlServer(agent, "127.0.0.1:0")
    await control.start()
    async with dial(f"127.0.0.1:{control.port}") as channel:
        drain = "/computemesh.v1.WorkerService/Drain"
        assert await answer(channel, drain) is None
        monkeypatch.setattr(access, "is_local", lambda context: False)
        for path in (drain, "/computemesh.v1.WorkerService/Resume", "/computemesh.v1.WorkerService/Describe"):
            await check_row(channel, path, (), frozenset())
            await check_row(channel, path, token(PrivateKey.generate(), "c"), frozenset())
            await check_row(channel, path, token(agent.key, "c"), frozenset({Role.WORKER}))
        assert agent.paused == 2
    await control.stop()


@pytest.mark.parametrize(("peer", "local"), [
    ("ipv4:127.0.0.1:40000", True), ("ipv6:%5B::1%5D:40000", True), ("ipv6:[::1]:40000", True), ("unix:", True),
    ("ipv4:10.0.0.1:127", False), ("ipv4:1.127.0.1:5", False), ("ipv6:%5B2001:db8::1%5D:40000", False)])  # fmt: skip
def test_who_is_on_this_machine_is_known_by_its_address(peer: str, local: bool) -> None:
    class Context:
        def peer(self) -> str:
            return peer

    assert access.is_local(Context()) == local


@asynccontextmanager
async def markets(exposure: Exposure) -> AsyncIterator[grpc.aio.Channel]:
    class Market(market_pb2_grpc.MarketServiceServicer):
        async def GetMarket(self, request, context):
            return market_pb2.GetMarketResponse()

    server, port = build_server(
        "127.0.0.1:0", lambda it: market_pb2_grpc.add_MarketServiceServicer_to_server(Market(), it),
        ["computemesh.v1.MarketService"], exposure=exposure)  # fmt: skip
    await server.start()
    async with dial(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


@pytest.mark.parametrize("asked", [False, True])
async def test_reflection_and_channelz_answer_only_where_asked_for(asked: bool) -> None:
    async with markets(Exposure(introspection=asked)) as channel:
        for path in ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/grpc.channelz.v1.Channelz/"
                     "GetServers"):  # fmt: skip
            code = await channel.unary_unary(path)(b"", timeout=20).code()
            assert code is (grpc.StatusCode.OK if asked else grpc.StatusCode.UNIMPLEMENTED)


async def test_too_many_calls_are_refused_and_told_when_to_return() -> None:
    path = "/computemesh.v1.MarketService/GetMarket"
    async with markets(Exposure(calls_per_s=0.5, calls_burst=3)) as channel:
        answers = [await answer(channel, path) for _ in range(6)]
    assert answers[:3] == [None] * 3
    last = answers[-1]
    assert isinstance(last, ResourceExhausted)
    assert last.reason == "RATE_LIMITED"
    assert 0 < (last.retry_after_ms or 0) <= 2000


def test_a_refused_caller_who_waits_as_told_is_admitted() -> None:
    now = [0.0]
    rates = Rates(2.0, 4, clock=lambda: now[0])
    for _ in range(4):
        rates.take("a")
    with pytest.raises(ResourceExhausted) as refused:
        rates.take("a")
    rates.take("b")
    now[0] += (refused.value.retry_after_ms or 0) / 1000
    rates.take("a")
    with pytest.raises(ResourceExhausted):
        rates.take("a")
    for stranger in range(2 * MAX_CALLERS):
        rates.take(str(stranger))
    assert len(rates._buckets) == MAX_CALLERS


def test_a_scoped_token_is_good_for_its_scope_alone() -> None:
    key = PrivateKey.generate()
    text = make_token(key, "c", 1000, READ_ONLY)
    read = read_token(text, "c", 999)
    assert (read.key, read.read_only) == (key.public, True)
    assert not read_token(make_token(key, "c", 1000), "c", 999).read_only
    for wrong in (make_token(key, "c", 1000, 7), "cm1." + text[4:], "cm3." + text[4:]):
        with pytest.raises(Unauthenticated):
            read_token(wrong, "c", 999)
