"""The whole agent in this process, its executor in a real one, against a scripted orchestrator on a real port."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from computemesh.service.server import dial
from computemesh.trust.errors import InvalidArgument, InvalidState
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.v1 import worker_pb2
from computemesh.v1.worker_pb2_grpc import WorkerServiceStub
from computemesh.workloads import JobSpec
from tests.worker.scripted import Orchestrator, job_of, jobs_of, until
from worker.agent import Agent, load_key
from worker.config import WorkerConfig
from worker.service import ControlServer

LONG = {"matrix_size": 512, "iterations": 1024}


@pytest.fixture
async def orchestrator() -> AsyncIterator[Orchestrator]:
    scripted = Orchestrator()
    await scripted.start()
    yield scripted
    await scripted.stop()


@asynccontextmanager
async def working(
    orchestrator: Orchestrator, folder: Path, drain_timeout_ms: int = 5000, **settings: object
) -> AsyncIterator[Agent]:
    config = WorkerConfig(
        f"127.0.0.1:{orchestrator.port}", str(folder), platform="cpu", drain_timeout_ms=drain_timeout_ms,
        **settings,  # type: ignore[arg-type]
    )  # fmt: skip
    agent, stop = Agent(config), asyncio.Event()
    try:
        await agent.start()
        running = asyncio.create_task(agent.run(stop))
        try:
            await until(lambda: orchestrator.capabilities)
            yield agent
        finally:
            stop.set()
            await asyncio.wait_for(running, 20)
    finally:
        await agent.close()


def executor_pid(agent: Agent) -> int:
    pid = agent.executors[0].pid
    assert pid is not None
    return pid


def gone(pid: int) -> Callable[[], bool]:
    return lambda: not Path(f"/proc/{pid}").exists()


async def test_thousands_of_jobs_are_each_committed_once_and_few_signatures_cover_them(
    orchestrator: Orchestrator, tmp_path: Path
) -> None:
    orchestrator.challenge_all = False
    orchestrator.queue.extend(jobs_of("noop", bytes(32), jobs=4000))
    async with working(orchestrator, tmp_path) as agent:
        await until(lambda: len(orchestrator.settled) == 4000)
        await until(lambda: agent.describe().jobs_settled == 4000)
    assert sorted(c.job for c in orchestrator.settled) == list(range(4000))
    assert sorted(orchestrator.nonces) == list(range(1, 4001))
    assert len(orchestrator.batches) < 400
    assert orchestrator.goodbyes == ["drained"]


async def test_a_matrix_product_passes_its_audit(orchestrator: Orchestrator, tmp_path: Path) -> None:
    for number in range(3):
        orchestrator.queue.extend(jobs_of("synthetic", bytes([number]) * 32, matrix_size=256, iterations=3))
    async with working(orchestrator, tmp_path):
        await until(lambda: len(orchestrator.settled) == 3, 60)
    assert orchestrator.openings == 3
    capabilities = orchestrator.capabilities[0]
    assert capabilities.devices[0].platform == "cpu"
    assert capabilities.devices[0].memory_bytes > 2**30
    assert "synthetic" in capabilities.challenge_types
    assert capabilities.jaxlib_version


async def test_a_job_that_raises_is_poison_and_says_why(orchestrator: Orchestrator, tmp_path: Path) -> None:
    orchestrator.queue.append(job_of("synthetic", JobSpec(bytes(32), 0, b"not a layout"), bytes(32)))
    orchestrator.queue.extend(jobs_of("noop", bytes(32), jobs=10))
    async with working(orchestrator, tmp_path):
        await until(lambda: len(orchestrator.settled) == 10 and orchestrator.nacks)
    (nack,) = orchestrator.nacks
    assert (nack.kind, nack.reason) == (pb.NACK_KIND_POISON, "INVALID_ARGUMENT")
    assert "12" in nack.detail


async def test_a_worker_redials_when_the_orchestrator_dies_and_comes_back(
    orchestrator: Orchestrator, tmp_path: Path
) -> None:
    async with working(orchestrator, tmp_path) as agent:
        orchestrator.queue.extend(jobs_of("noop", bytes(32), jobs=50))
        orchestrator.feed()
        await until(lambda: len(orchestrator.settled) == 50)
        await orchestrator.stop()
        await until(lambda: agent.describe().status == worker_pb2.WORKER_AGENT_STATUS_DISCONNECTED)
        orchestrator.queue.extend(jobs_of("noop", bytes([1]) * 32, jobs=50))
        await orchestrator.start(orchestrator.port)
        await until(lambda: len(orchestrator.settled) == 100)
        assert agent.describe().reconnects >= 1
    assert len(set(orchestrator.nonces)) == 100


async def test_a_restarted_worker_keeps_its_key_and_repeats_no_nonce(
    orchestrator: Orchestrator, tmp_path: Path
) -> None:
    addresses = set()
    for round_number in range(2):
        orchestrator.queue.extend(jobs_of("noop", bytes([round_number]) * 32, jobs=20))
        async with working(orchestrator, tmp_path) as agent:
            addresses.add(agent.key.address)
            await until(lambda count=20 * (round_number + 1): len(orchestrator.settled) == count)
    assert len(addresses) == 1
    assert len(set(orchestrator.nonces)) == 40


async def test_a_killed_executor_hands_its_job_back_and_the_next_one_serves(
    orchestrator: Orchestrator, tmp_path: Path
) -> None:
    orchestrator.requeue_nacks = False
    async with working(orchestrator, tmp_path) as agent:
        orchestrator.queue.extend(jobs_of("synthetic", bytes(32), **LONG))
        orchestrator.feed()
        await until(lambda: agent.describe().jobs_held)
        await asyncio.sleep(0.3)
        first = executor_pid(agent)
        os.kill(first, signal.SIGKILL)
        await until(lambda: orchestrator.nacks)
        orchestrator.queue.extend(jobs_of("noop", bytes(32), jobs=5))
        orchestrator.feed()
        await until(lambda: len(orchestrator.settled) == 5)
        assert executor_pid(agent) != first
    assert (orchestrator.nacks[0].kind, orchestrator.nacks[0].reason) == (pb.NACK_KIND_RETRYABLE, "EXECUTOR_DIED")


async def test_signals_to_the_group_do_not_reach_the_executor(orchestrator: Orchestrator, tmp_path: Path) -> None:
    async with working(orchestrator, tmp_path) as agent:
        before = executor_pid(agent)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(before, number)
        orchestrator.queue.extend(jobs_of("noop", bytes(32), jobs=5))
        orchestrator.feed()
        await until(lambda: len(orchestrator.settled) == 5)
        assert executor_pid(agent) == before
    await until(gone(before))


async def test_a_revoked_long_job_frees_the_device(orchestrator: Orchestrator, tmp_path: Path) -> None:
    orchestrator.requeue_nacks = False
    async with working(orchestrator, tmp_path) as agent:
        orchestrator.queue.extend(jobs_of("synthetic", bytes(32), **LONG))
        orchestrator.feed()
        await until(lambda: agent.describe().jobs_held)
        await asyncio.sleep(0.3)
        orchestrator.push(revokes=pb.RevokeBatch(lease_ids=list(orchestrator.held)))
        orchestrator.queue.extend(jobs_of("noop", bytes(32), jobs=5))
        await until(lambda: len(orchestrator.settled) == 5)
    assert orchestrator.nacks[0].reason == "REVOKED"


async def test_heartbeats_come_while_a_long_job_runs(orchestrator: Orchestrator, tmp_path: Path) -> None:
    async with working(orchestrator, tmp_path, drain_timeout_ms=0):
        orchestrator.queue.extend(jobs_of("synthetic", bytes(32), **LONG))
        orchestrator.feed()
        await until(lambda: sum(bool(beat.running_lease_ids) for beat in orchestrator.heartbeats) >= 3)
        assert orchestrator.heartbeats[-1].utilisation[0] > 0.5
    await until(lambda: orchestrator.goodbyes)
    assert orchestrator.nacks[-1].reason == "DRAINING"


async def test_the_owner_drains_and_resumes_over_the_control_port(orchestrator: Orchestrator, tmp_path: Path) -> None:
    async with working(orchestrator, tmp_path) as agent:
        control = ControlServer(agent, "127.0.0.1:0")
        await control.start()
        async with dial(f"127.0.0.1:{control.port}") as channel:
            stub = WorkerServiceStub(channel)
            drained = await stub.Drain(worker_pb2.DrainRequest())
            assert drained.worker.status == worker_pb2.WORKER_AGENT_STATUS_DRAINING
            orchestrator.queue.extend(jobs_of("noop", bytes(32), jobs=5))
            await asyncio.sleep(0.3)
            assert not orchestrator.settled
            await stub.Resume(worker_pb2.ResumeRequest())
            await until(lambda: len(orchestrator.settled) == 5)
            described = (await stub.Describe(worker_pb2.DescribeRequest())).worker
            assert described.address == agent.key.address
            assert described.status == worker_pb2.WORKER_AGENT_STATUS_CONNECTED
            assert described.capabilities.devices[0].platform == "cpu"
        await control.stop()


async def test_before_the_devices_are_open_the_owner_is_told_to_wait(tmp_path: Path) -> None:
    control = ControlServer(Agent(WorkerConfig("127.0.0.1:1", str(tmp_path))), "127.0.0.1:0")
    await control.start()
    async with dial(f"127.0.0.1:{control.port}") as channel:
        stub = WorkerServiceStub(channel)
        described = (await stub.Describe(worker_pb2.DescribeRequest())).worker
        assert described.status == worker_pb2.WORKER_AGENT_STATUS_STARTING
        with pytest.raises(grpc.RpcError) as refused:
            await stub.Drain(worker_pb2.DrainRequest())
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    await control.stop()


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    key = load_key(tmp_path / "new")
    assert load_key(tmp_path / "new").secret == key.secret
    assert (tmp_path / "new" / "worker.key").stat().st_mode & 0o077 == 0
    assert isinstance(key, PrivateKey)


def test_a_bad_key_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "worker.key").write_text("zz")
    with pytest.raises(InvalidArgument, match=r"worker\.key is not a private key of 64 hex"):
        load_key(tmp_path)


def test_an_unknown_task_type_in_the_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="rendring"):
        Agent(WorkerConfig("127.0.0.1:1", str(tmp_path), challenge_types=("rendring",)))


async def test_two_devices_share_the_jobs(
    orchestrator: Orchestrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [{"JAX_PLATFORMS": "cpu"}, {"JAX_PLATFORMS": "cpu"}]
    monkeypatch.setattr("worker.engine.environments", lambda platform: two)
    monkeypatch.setattr("worker.engine.one_is_enough", lambda description: False)
    async with working(orchestrator, tmp_path) as agent:
        assert len(orchestrator.capabilities[0].devices) == 2
        for number in range(4):
            orchestrator.queue.extend(jobs_of("synthetic", bytes([number]) * 32, matrix_size=256, iterations=20))
        orchestrator.feed()
        await until(lambda: all(lane.groups for lane in agent.core.lanes.lanes))
        await until(lambda: len(orchestrator.settled) == 4, 60)


async def test_a_large_answer_is_opened_while_the_stream_goes_on(
    orchestrator: Orchestrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.core.QUICK_UNITS", 10)
    orchestrator.queue.extend(jobs_of("synthetic", bytes(32), matrix_size=256, iterations=2))
    async with working(orchestrator, tmp_path):
        await until(lambda: len(orchestrator.settled) == 1, 60)
    assert orchestrator.openings == 1


async def test_a_key_used_twice_is_reported_and_not_fought_over(
    orchestrator: Orchestrator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with working(orchestrator, tmp_path) as agent:
        orchestrator.abort_with = InvalidState("the same key dialled again", reason="SUPERSEDED")
        orchestrator.push()
        await until(lambda: agent.describe().reconnects == 1)
        await asyncio.sleep(0.5)
        assert orchestrator.streams == 1
    assert "another worker uses this key" in "".join(capsys.readouterr())
