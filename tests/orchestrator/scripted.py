"""A worker as a script: speaks the Work stream over real gRPC and does what the test says, honest or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import grpc

from computemesh import workloads
from computemesh.service.server import dial
from computemesh.trust import audit, envelope, merkle, statement
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import common_pb2, orchestrator_pb2_grpc
from computemesh.v1 import orchestrator_pb2 as pb

Digests = Callable[[bytes], bytes]


def honest(digests: bytes) -> bytes:
    return digests


class ScriptedWorker:
    """`await worker.next("jobs")` gives the next message of a kind; others that arrive meanwhile are kept."""

    def __init__(self, address: str, chain: str, key: PrivateKey | None = None, types: tuple[str, ...] = ()) -> None:
        self.address, self.chain, self.types = address, chain, types
        self.key = key or PrivateKey.generate()
        self.nonce = 0
        self.trees: dict[int, tuple[audit.JobTree, bytes]] = {}
        self.heard: asyncio.Queue[pb.WorkResponse | grpc.aio.AioRpcError | None] = asyncio.Queue()
        self._kept: list[pb.WorkResponse] = []

    async def __aenter__(self) -> ScriptedWorker:
        self._channel = dial(self.address)
        self.call: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(self._channel).Work()
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, a: type[BaseException] | None, b: BaseException | None, c: TracebackType | None) -> None:
        self.call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close()

    async def _read(self) -> None:
        try:
            async for response in self.call:
                self.heard.put_nowait(response)
            self.heard.put_nowait(None)
        except grpc.aio.AioRpcError as error:
            self.heard.put_nowait(error)

    async def next(self, kind: str, within_s: float = 10) -> Any:
        for kept in self._kept:
            if kept.WhichOneof("message") == kind:
                self._kept.remove(kept)
                return getattr(kept, kind)
        while True:
            response = await asyncio.wait_for(self.heard.get(), within_s)
            assert isinstance(response, pb.WorkResponse), response
            if response.WhichOneof("message") == kind:
                return getattr(response, kind)
            self._kept.append(response)

    async def ended(self, within_s: float = 10) -> grpc.aio.AioRpcError | None:
        """The status the stream ended with."""
        while True:
            response = await asyncio.wait_for(self.heard.get(), within_s)
            if not isinstance(response, pb.WorkResponse):
                return response

    async def send(self, **message: Any) -> None:
        await self.call.write(pb.WorkRequest(**message))

    async def join(
        self, credits: int = 0, memory: int = 0, spoil: bool = False,
        functions: Sequence[common_pb2.FunctionSpec] = (),
    ) -> ScriptedWorker:  # fmt: skip
        greeting = await self.next("greeting")
        capabilities = common_pb2.Capabilities(
            devices=[common_pb2.Device(kind="scripted", platform="cpu", memory_bytes=memory)],
            challenge_types=self.types, functions=functions,
        ).SerializeToString()
        body = statement.hello_body(greeting.nonce, greeting.public_key, self.key.public, capabilities)
        signature = envelope.sign(self.key, "hello", self.chain if not spoil else "other-chain", body)
        await self.send(
            hello=common_pb2.Hello(public_key=self.key.public, capabilities=capabilities, signature=signature)
        )
        if not spoil:
            await self.next("welcome")
            if credits:
                await self.send(ready=pb.Ready(credits=credits))
        return self

    async def jobs(self, count: int) -> list[pb.Job]:
        found: list[pb.Job] = []
        while len(found) < count:
            found += (await self.next("jobs")).jobs
        return found

    def batch(self, jobs: list[pb.Job], change: Digests = honest) -> pb.CommitmentBatch:
        """Execute for real, change the digests, commit to what came of it."""
        rows = []
        for job in jobs:
            spec = workloads.JobSpec(job.task_id, job.index, job.params, binding=job.binding)
            workload = workloads.get(job.challenge_type)
            digests = change(workload.execute(spec, workloads.Context()).digests)
            tree = audit.JobTree(workload.layout(spec), digests)
            self.nonce += 1
            row = statement.Commitment(
                job.task_id, job.index, job.task_epoch, job.attempt, self.key.public, tree.result_hash, self.nonce
            ).pack()
            self.trees[job.lease_id] = (tree, row)
            rows.append(row)
        batch = b"".join(rows)
        return pb.CommitmentBatch(
            lease_ids=[job.lease_id for job in jobs], commitments=batch,
            signature=statement.sign_commitments(self.key, self.chain, batch),
        )  # fmt: skip

    async def commit(self, jobs: list[pb.Job], change: Digests = honest) -> pb.CommitmentBatch:
        batch = self.batch(jobs, change)
        await self.send(commitments=batch)
        return batch

    def opening(self, challenge: pb.Challenge) -> pb.JobOpening:
        tree, row = self.trees[challenge.lease_id]
        units = audit.sample(challenge.seed, merkle.leaf_hash(row), tree.layout.count, challenge.k)
        opened = audit.openings_bytes([tree.open(unit) for unit in units])
        return pb.JobOpening(lease_id=challenge.lease_id, openings=opened)

    async def answer(self) -> None:
        """Open what is challenged next."""
        challenges = (await self.next("challenges")).challenges
        await self.send(openings=pb.OpeningBatch(openings=[self.opening(item) for item in challenges]))

    async def verdicts(self, count: int, within_s: float = 10) -> dict[int, tuple[int, str]]:
        found: dict[int, tuple[int, str]] = {}
        while len(found) < count:
            for verdict in (await self.next("verdicts", within_s)).verdicts:
                found |= dict.fromkeys(verdict.lease_ids, (verdict.kind, verdict.reason))
        return found
