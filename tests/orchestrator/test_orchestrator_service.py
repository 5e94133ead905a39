"""The real orchestrator between a real market and a real ledger, with workers that do what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import pytest

from computemesh import workloads
from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.service.auth import make_token
from computemesh.trust import envelope, statement
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import common_pb2, ledger_pb2, orchestrator_pb2_grpc
from computemesh.v1 import orchestrator_pb2 as pb
from orchestrator import events as e
from tests.orchestrator.scripted import ScriptedWorker

SYNTHETIC = {"matrix_size": 256, "seed": "s"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Ledger, market and orchestrator; the test brings the workers, which compute in this process: what JAX does once
    must not make a worker silent."""
    synthetic = workloads.get("synthetic")
    (job,) = synthetic.split(synthetic.parse(SYNTHETIC), bytes(32))[:1]
    synthetic.execute(job if SYNTHETIC.get("seed") else workloads.bind(job, bytes(32)), workloads.Context())
    overrides = {"orchestrator": {"opening_timeout_ms": 1_500, "wrong_streak": 1_000}}
    with Cluster(tmp_path_factory.mktemp("bare"), workers=0, port_base=0, overrides=overrides) as running:
        yield running


@pytest.fixture
def customer(bare: Cluster) -> Iterator[Client]:
    with Client(bare.profile) as connected:
        yield connected


def worker(bare: Cluster, *types: str, key: PrivateKey | None = None) -> ScriptedWorker:
    return ScriptedWorker(bare.profile.orchestrator, bare.profile.chain_id, key, types)


async def submit(customer: Client, kind: str, payload: dict[str, object]) -> str:
    task = await asyncio.to_thread(customer.submit, kind, payload, "1.0")
    return task.task.task_id


async def status(customer: Client, task_id: str, wanted: str, seconds: float = 10) -> None:
    for _ in range(int(seconds / 0.05)):
        found = await asyncio.to_thread(customer.get, task_id)
        if found.status == wanted:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{found.status}, not {wanted}: {found}")


async def completes(honest: ScriptedWorker, customer: Client, task_id: str) -> None:
    """A worker joins, does the task's one job and is believed."""
    await honest.join(credits=1)
    await honest.commit(await honest.jobs(1))
    await honest.answer()
    await honest.verdicts(1)
    await status(customer, task_id, "completed")


def flip(digests: bytes) -> bytes:
    return bytes([digests[0] ^ 1]) + digests[1:]


async def test_honest_worker_is_paid_and_its_transcript_is_served(bare: Cluster, customer: Client) -> None:
    async with worker(bare, "synthetic") as honest:
        await honest.join(credits=2)
        task_id = await submit(customer, "synthetic", SYNTHETIC)
        (job,) = await honest.jobs(1)
        await honest.commit([job])
        await honest.answer()
        assert await honest.verdicts(1) == {job.lease_id: (e.SETTLED, "")}
        await status(customer, task_id, "completed")
    transcript = customer.transcript(task_id, 0, bare.profile.orchestrator)
    assert (transcript.k, transcript.units, transcript.verdict) == (32, 64, pb.VERDICT_KIND_SETTLED)
    result = customer.ledger("GetResult", ledger_pb2.GetResultRequest(task_id=task_id)).result
    assert result.proof == transcript.digest.hex()
    assert result.worker_address == honest.key.address


async def test_liar_is_caught_unpaid_and_replaced(bare: Cluster, customer: Client) -> None:
    async with worker(bare, "synthetic") as liar, worker(bare, "synthetic") as honest:
        await liar.join(credits=5)
        task_id = await submit(customer, "synthetic", SYNTHETIC)
        (job,) = await liar.jobs(1)
        await liar.commit([job], lambda digests: bytes(len(digests)))
        await liar.answer()
        assert await liar.verdicts(1) == {job.lease_id: (e.WRONG, "")}
        await honest.join(credits=1)
        (again,) = await honest.jobs(1)
        assert again.index == job.index
        assert again.attempt > job.attempt
        await honest.commit([again])
        await honest.answer()
        await honest.verdicts(1)
        await status(customer, task_id, "completed")
        account = await asyncio.to_thread(customer.account, liar.key.address)
        assert account.balance_units == 0


async def test_flipped_noop_digest_is_caught_without_a_challenge(bare: Cluster, customer: Client) -> None:
    async with worker(bare, "noop") as liar, worker(bare, "noop") as honest:
        await liar.join(credits=3)
        task_id = await submit(customer, "noop", {"jobs": 3})
        jobs = await liar.jobs(3)
        lies = liar.batch(jobs[:1], flip)
        await liar.send(commitments=lies)
        await liar.commit(jobs[1:])
        found = await liar.verdicts(3)
        assert [found[job.lease_id][0] for job in jobs] == [e.WRONG, e.SETTLED, e.SETTLED]
        await honest.join(credits=1)
        await honest.commit(await honest.jobs(1))
        await honest.verdicts(1)
        await status(customer, task_id, "completed")


async def test_late_opening_fails_the_attempt(bare: Cluster, customer: Client) -> None:
    async with worker(bare, "synthetic") as late, worker(bare, "synthetic") as honest:
        await late.join(credits=1)
        task_id = await submit(customer, "synthetic", SYNTHETIC)
        (job,) = await late.jobs(1)
        await late.commit([job])
        challenge = (await late.next("challenges")).challenges[0]
        assert await late.verdicts(1) == {job.lease_id: (e.LATE, "")}
        await late.send(openings=pb.OpeningBatch(openings=[late.opening(challenge)]))
        await completes(honest, customer, task_id)


async def test_replayed_batch_is_stale_and_pays_nothing_twice(bare: Cluster, customer: Client) -> None:
    async with worker(bare, "noop") as greedy:
        await greedy.join(credits=2)
        task_id = await submit(customer, "noop", {"jobs": 2})
        batch = await greedy.commit(await greedy.jobs(2))
        await greedy.verdicts(2)
        await greedy.send(commitments=batch)
        assert {kind for kind, _ in (await greedy.verdicts(2)).values()} == {e.STALE}
        await status(customer, task_id, "completed")


async def test_reused_nonce_is_refused_by_the_ledger_and_the_job_done_again(bare: Cluster, customer: Client) -> None:
    async with worker(bare, "noop") as careless:
        await careless.join(credits=3)
        task_id = await submit(customer, "noop", {"jobs": 2})
        first, second = await careless.jobs(2)
        await careless.commit([first])
        await careless.verdicts(1)
        careless.nonce = 0
        await careless.commit([second])
        assert await careless.verdicts(1) == {second.lease_id: (e.REFUSED, "NONCE_REPLAYED")}
        careless.nonce = 10
        await careless.commit(await careless.jobs(1))
        await careless.verdicts(1)
        await status(customer, task_id, "completed")


async def test_silent_stream_gives_its_jobs_to_another(bare: Cluster, customer: Client) -> None:
    async with worker(bare, "noop") as heir:
        async with worker(bare, "noop") as silent:
            await silent.join(credits=4)
            task_id = await submit(customer, "noop", {"jobs": 4})
            await silent.jobs(4)
        await heir.join(credits=4)
        await heir.commit(await heir.jobs(4))
        await heir.verdicts(4)
        await status(customer, task_id, "completed")


async def test_cancelled_task_is_called_back(bare: Cluster, customer: Client) -> None:
    async with worker(bare, "noop") as held:
        await held.join(credits=2)
        task_id = await submit(customer, "noop", {"jobs": 2})
        jobs = await held.jobs(2)
        await asyncio.to_thread(customer.cancel, task_id)
        assert set((await held.next("revokes")).lease_ids) == {job.lease_id for job in jobs}


async def test_the_same_key_dialling_twice_ends_the_older_stream(bare: Cluster) -> None:
    key = PrivateKey.generate()
    async with worker(bare, key=key) as old:
        await old.join()
        async with worker(bare, key=key) as new:
            await new.join()
            error = await old.ended()
            assert error is not None
            assert error.code() == grpc.StatusCode.ABORTED
            assert "dialled again" in error.details()


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"ready": pb.Ready(credits=0)}, "ready.credits is 0"),
        ({"ready": pb.Ready(credits=70_000)}, "ready.credits is 70000"),
        ({"commitments": pb.CommitmentBatch(lease_ids=[1], commitments=b"x")}, "has 1 bytes, must be 1 * 118"),
        ({"commitments": pb.CommitmentBatch()}, "has 0 items, must be 1..4096"),
        ({}, "message is none of the known ones"),
    ],
)
async def test_broken_rules_end_the_stream_with_a_clear_status(bare: Cluster, message: dict, words: str) -> None:
    async with worker(bare, "none") as rude:
        await rude.join()
        await rude.send(**message)
        error = await rude.ended()
        assert error is not None
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert words in error.details()


async def test_hello_of_another_chain_is_refused(bare: Cluster) -> None:
    async with worker(bare) as stranger:
        await stranger.join(spoil=True)
        error = await stranger.ended()
        assert error is not None
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_hello_under_a_key_that_is_not_the_signers_is_refused(bare: Cluster) -> None:
    victim = PrivateKey.generate()
    async with worker(bare) as forger:
        greeting = await forger.next("greeting")
        body = statement.hello_body(greeting.nonce, greeting.public_key, victim.public, b"")
        await forger.send(hello=common_pb2.Hello(
            public_key=victim.public, signature=envelope.sign(forger.key, "hello", bare.profile.chain_id, body)))
        error = await forger.ended()
        assert error is not None
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_a_result_under_a_lease_of_another_is_stale_and_its_holder_is_paid(
    bare: Cluster, customer: Client
) -> None:
    async with worker(bare, "noop") as holder, worker(bare, "none") as thief:
        await holder.join(credits=1)
        await thief.join(credits=1)
        task_id = await submit(customer, "noop", {"jobs": 1})
        (job,) = await holder.jobs(1)
        await thief.commit([job])
        assert await thief.verdicts(1) == {job.lease_id: (e.STALE, "")}
        await holder.commit([job])
        assert await holder.verdicts(1) == {job.lease_id: (e.SETTLED, "")}
        await status(customer, task_id, "completed")
    result = customer.ledger("GetResult", ledger_pb2.GetResultRequest(task_id=task_id)).result
    assert result.worker_address == holder.key.address


async def test_an_opening_of_megabytes_is_wrong_and_another_does_the_job(bare: Cluster, customer: Client) -> None:
    async with worker(bare, "synthetic") as liar, worker(bare, "synthetic") as honest:
        await liar.join(credits=1)
        task_id = await submit(customer, "synthetic", SYNTHETIC)
        (job,) = await liar.jobs(1)
        await liar.commit([job])
        (challenge,) = (await liar.next("challenges")).challenges
        much = liar.opening(challenge).openings + bytes(3 << 20)
        await liar.send(openings=pb.OpeningBatch(openings=[pb.JobOpening(lease_id=job.lease_id, openings=much)]))
        assert await liar.verdicts(1) == {job.lease_id: (e.WRONG, "")}
        await completes(honest, customer, task_id)


async def test_unsigned_batch_is_refused(bare: Cluster, customer: Client) -> None:
    async with worker(bare, "noop") as forger:
        await forger.join(credits=1)
        task_id = await submit(customer, "noop", {"jobs": 1})
        batch = forger.batch(await forger.jobs(1))
        batch.signature = bytes(64)
        await forger.send(commitments=batch)
        error = await forger.ended()
        assert error is not None
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED
    await asyncio.to_thread(customer.cancel, task_id)


async def test_drain_needs_the_worker_or_the_operator(bare: Cluster, customer: Client) -> None:
    async with worker(bare, "noop") as one, grpc.aio.insecure_channel(bare.profile.orchestrator) as channel:
        await one.join(credits=1)
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        request = pb.DrainWorkerRequest(worker=one.key.address)
        for token, code in ((None, "UNAUTHENTICATED"), (PrivateKey.generate(), "PERMISSION_DENIED")):
            metadata = [] if token is None else [bearer(token, bare)]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.DrainWorker(request, metadata=metadata)
            assert refused.value.code().name == code
        drained = (await stub.DrainWorker(request, metadata=[bearer(one.key, bare)])).worker
        assert drained.status == pb.WORKER_STATUS_DRAINING
        assert (await one.next("drain")).cause
        listed = (await stub.ListWorkers(pb.ListWorkersRequest(page_size=1000))).workers
        assert one.key.address in [found.address for found in listed]
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await stub.GetWorker(pb.GetWorkerRequest(worker="nobody"))
        assert missing.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_worker_its_owner_drains_is_shown_so_and_ready_again_when_taken_back(bare: Cluster) -> None:
    async with worker(bare, "noop") as one, grpc.aio.insecure_channel(bare.profile.orchestrator) as channel:
        await one.join(credits=1)
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        for draining, shown in ((True, pb.WORKER_STATUS_DRAINING), (False, pb.WORKER_STATUS_READY)):
            await one.send(heartbeat=pb.Heartbeat(draining=draining))
            async with asyncio.timeout(10):
                while (await stub.GetWorker(pb.GetWorkerRequest(worker=one.key.address))).worker.status != shown:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)


def bearer(key: PrivateKey, bare: Cluster) -> tuple[str, str]:
    return ("authorization", f"Bearer {make_token(key, bare.profile.chain_id, 2**50)}")


async def test_jobs_are_listed_in_pages_while_and_after_the_task_runs(bare: Cluster, customer: Client) -> None:
    async with worker(bare, "noop") as one, grpc.aio.insecure_channel(bare.profile.orchestrator) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        await one.join(credits=2)
        task_id = await submit(customer, "noop", {"jobs": 3})
        jobs = await one.jobs(2)
        await one.commit(jobs[:1])
        await one.verdicts(1)
        page = await stub.ListJobs(pb.ListJobsRequest(task_id=task_id, page_size=2))
        assert [job.status for job in page.jobs] == [pb.JOB_STATUS_SETTLED, pb.JOB_STATUS_RUNNING]
        rest = await stub.ListJobs(pb.ListJobsRequest(task_id=task_id, page_token=page.next_page_token))
        assert [(job.index, job.status) for job in rest.jobs] == [(2, pb.JOB_STATUS_QUEUED)]
        await one.send(ready=pb.Ready(credits=1))
        await one.commit([jobs[1], *await one.jobs(1)])
        await one.verdicts(2)
        await status(customer, task_id, "completed")
        job = (await stub.GetJob(pb.GetJobRequest(task_id=task_id, index=2))).job
        assert (job.status, job.worker, job.attempts) == (pb.JOB_STATUS_SETTLED, one.key.address, 1)
        for method, request, reason in (
            (stub.GetJob, pb.GetJobRequest(task_id=task_id, index=3), "job 3"),
            (stub.ListJobs, pb.ListJobsRequest(task_id="0" * 64), "not held"),
            (stub.GetAuditTranscript, pb.GetAuditTranscriptRequest(task_id=task_id, job=9), "no audit"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as missing:
                await method(request)
            assert missing.value.code() == grpc.StatusCode.NOT_FOUND
            assert reason in missing.value.details()


async def test_killed_orchestrator_continues_and_settles_each_job_once(bare: Cluster, customer: Client) -> None:
    key = PrivateKey.generate()
    settled, nonce = 0, 0
    task_id = await submit(customer, "noop", {"jobs": 60})
    for round_ in range(3):
        async with worker(bare, "noop", key=key) as one:
            one.nonce = nonce
            await one.join(credits=20)
            jobs = await one.jobs(20)
            await one.commit(jobs)
            nonce = one.nonce
            if round_ == 1:
                settled += len(await one.verdicts(20))
        bare.kill("orchestrator")
        await asyncio.to_thread(bare.start_process, "orchestrator")
    async with worker(bare, "noop", key=key) as last:
        last.nonce = nonce
        await last.join(credits=60)
        for _ in range(60):
            found = await asyncio.to_thread(customer.get, task_id)
            if found.status == "completed":
                break
            try:
                await last.commit(list((await last.next("jobs", 0.5)).jobs))
            except TimeoutError:
                continue
        await status(customer, task_id, "completed")
    results = customer.ledger("ListResults", ledger_pb2.ListResultsRequest(task_id=task_id, page_size=1000)).results
    assert sorted(result.job for result in results) == list(range(60))
