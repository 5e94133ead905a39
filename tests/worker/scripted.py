"""An orchestrator for tests: a real server that leases the jobs it is given and judges what comes back."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import deque
from collections.abc import Sequence

import grpc

from computemesh import workloads
from computemesh.service.errors import abort
from computemesh.trust import envelope
from computemesh.trust.audit import JobTree, fold_opening, parse_openings, sample, verify_previous
from computemesh.trust.errors import MeshError
from computemesh.trust.identity import PrivateKey
from computemesh.trust.statement import (
    COMMITMENT_SIZE,
    Commitment,
    commitment_root,
    hello_body,
    leaves,
    verify_commitments,
)
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.v1.common_pb2 import Capabilities, DrainNotice, Greeting
from computemesh.v1.orchestrator_pb2_grpc import (
    OrchestratorServiceServicer,
    add_OrchestratorServiceServicer_to_server,
)
from computemesh.workloads import Claim, JobSpec

CHAIN = "computemesh-test"


def job_of(challenge_type: str, spec: JobSpec, binding: bytes = b"") -> pb.Job:
    return pb.Job(
        task_id=spec.task_id, index=spec.index, task_epoch=1, attempt=1, challenge_type=challenge_type,
        params=spec.params, binding=binding, lease_ms=60_000,
    )  # fmt: skip


def jobs_of(challenge_type: str, task_id: bytes, **payload: object) -> list[pb.Job]:
    workload = workloads.get(challenge_type)
    params = workload.parse(payload)
    return [job_of(challenge_type, spec, bytes(32)) for spec in workload.split(params, task_id)[:]]


class Orchestrator(OrchestratorServiceServicer):
    """`queue` holds jobs to lease; what comes back lands in `settled`, `nacks`, `events`."""

    def __init__(self) -> None:
        self.key = PrivateKey.from_bytes(bytes([7]) * 32)
        self.queue: deque[pb.Job] = deque()
        self.settled: list[Commitment] = []
        self.nacks: list[pb.Nack] = []
        self.openings = 0
        self.batches: list[int] = []
        self.nonces: list[int] = []
        self.heartbeats: list[pb.Heartbeat] = []
        self.goodbyes: list[str] = []
        self.capabilities: list[Capabilities] = []
        self.credits = 0
        self.held: dict[int, pb.Job] = {}
        self.requeue_nacks = True
        self.challenge_all = True
        self.streams = 0
        self.abort_with: MeshError | None = None
        self._outbox: asyncio.Queue[pb.WorkResponse] | None = None
        self._leases = itertools.count(1)
        self._waiting: dict[int, tuple[pb.Job, Commitment, bytes, bytes]] = {}
        self.server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self, port: int = 0) -> None:
        self.server = grpc.aio.server()
        add_OrchestratorServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(0)
            self.server = None

    async def Work(self, requests, context):
        self.streams += 1
        outbox: asyncio.Queue[pb.WorkResponse] = asyncio.Queue()
        self._outbox, self.credits = outbox, 0
        self.held.clear()
        self._waiting.clear()
        nonce = os.urandom(32)
        greeting = Greeting(nonce=nonce, public_key=self.key.public, chain_id=CHAIN)
        await context.write(pb.WorkResponse(greeting=greeting))
        reader = asyncio.create_task(self._read(requests, nonce))
        try:
            while True:
                take = asyncio.create_task(outbox.get())
                await asyncio.wait((take, reader), return_when=asyncio.FIRST_COMPLETED)
                if reader.done():
                    take.cancel()
                    reader.result()
                    return
                if self.abort_with is not None:
                    await abort(context, self.abort_with)
                await context.write(take.result())
        finally:
            reader.cancel()

    async def _read(self, requests, nonce: bytes) -> None:
        async for request in requests:
            what = request.WhichOneof("message")
            if what == "hello":
                self._hello(request.hello, nonce)
            elif what == "ready":
                self.credits += request.ready.credits
            elif what == "commitments":
                self._commitments(request.commitments)
            elif what == "openings":
                self._openings(request.openings.openings)
            elif what == "nacks":
                for nack in request.nacks.nacks:
                    job = self.held.pop(nack.lease_id)
                    self.nacks.append(nack)
                    if self.requeue_nacks and nack.kind == pb.NACK_KIND_RETRYABLE:
                        self.queue.append(job)
            elif what == "heartbeat":
                self.heartbeats.append(request.heartbeat)
            elif what == "goodbye":
                self.goodbyes.append(request.goodbye.cause)
                return
            self.feed()

    def push(self, **message: object) -> None:
        assert self._outbox is not None
        self._outbox.put_nowait(pb.WorkResponse(**message))

    def drain(self) -> None:
        self.push(drain=DrainNotice(cause="test"))

    def _hello(self, hello, nonce: bytes) -> None:
        body = hello_body(nonce, self.key.public, hello.public_key, hello.capabilities)
        assert envelope.verify(hello.public_key, "hello", CHAIN, body, hello.signature)
        self.worker_key = hello.public_key
        self.capabilities.append(Capabilities.FromString(hello.capabilities))
        self.push(welcome=pb.Welcome(heartbeat_interval_ms=100, lease_ms=5000, opening_timeout_ms=5000))

    def feed(self) -> None:
        batch = []
        while self.queue and self.credits and len(batch) < 128:
            job = pb.Job()
            job.CopyFrom(self.queue.popleft())
            job.lease_id = next(self._leases)
            self.held[job.lease_id] = job
            batch.append(job)
            self.credits -= 1
        if batch:
            self.push(jobs=pb.JobBatch(jobs=batch))
            self.feed()

    def _commitments(self, batch: pb.CommitmentBatch) -> None:
        count = len(batch.lease_ids)
        assert len(batch.commitments) == count * COMMITMENT_SIZE
        assert len(batch.compute_us) == count
        root = commitment_root(batch.commitments)
        assert verify_commitments(self.worker_key, CHAIN, count, root, batch.signature)
        self.batches.append(count)
        challenges, settled = [], []
        for at, (lease, leaf) in enumerate(
            zip(batch.lease_ids, leaves(batch.commitments, COMMITMENT_SIZE), strict=True)
        ):
            commitment = Commitment.unpack(batch.commitments[at * COMMITMENT_SIZE :][:COMMITMENT_SIZE])
            job = self.held.pop(lease)
            assert (commitment.task_id, commitment.job, commitment.attempt) == (job.task_id, job.index, job.attempt)
            assert commitment.worker_key == self.worker_key
            self.nonces.append(commitment.nonce)
            workload = workloads.get(job.challenge_type)
            layout = workload.layout(_spec(job))
            if layout.count <= workload.sample_size and not self.challenge_all:
                tree = JobTree(layout, workload.recompute([_spec(job)])[0])
                assert tree.result_hash == commitment.result_hash
                self.settled.append(commitment)
                settled.append(lease)
            else:
                seed = os.urandom(32)
                self._waiting[lease] = (job, commitment, leaf, seed)
                challenges.append(pb.Challenge(lease_id=lease, seed=seed, k=workload.sample_size))
        if challenges:
            self.push(challenges=pb.ChallengeBatch(challenges=challenges))
        self._settle(settled)

    def _openings(self, openings: Sequence[pb.JobOpening]) -> None:
        settled = []
        for answer in openings:
            job, commitment, leaf, seed = self._waiting.pop(answer.lease_id)
            self.openings += 1
            workload, spec = workloads.get(job.challenge_type), _spec(job)
            layout = workload.layout(spec)
            opened = parse_openings(answer.openings)
            assert [o.index for o in opened] == sample(seed, leaf, layout.count, workload.sample_size)
            claims = [Claim(o.index, o.unit, verify_previous(layout, o, commitment.result_hash)) for o in opened]
            for o, digest in zip(opened, workload.expected_digests(spec, claims), strict=True):
                assert digest is not None
                assert fold_opening(layout, o, digest) == commitment.result_hash
            self.settled.append(commitment)
            settled.append(answer.lease_id)
        self._settle(settled)

    def _settle(self, leases: list[int]) -> None:
        if leases:
            verdict = pb.Verdict(lease_ids=leases, kind=pb.VERDICT_KIND_SETTLED)
            self.push(verdicts=pb.VerdictBatch(verdicts=[verdict]))


def _spec(job: pb.Job) -> JobSpec:
    return JobSpec(task_id=job.task_id, index=job.index, params=job.params, binding=job.binding)


async def until(condition, seconds: float = 20.0) -> None:
    """Wait for `condition()`; TimeoutError where it stays false."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
