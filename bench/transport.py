"""The transport's ceiling: the mesh's own messages over grpc.aio between processes, with nothing behind them.

A server process streams JobBatches of 200-byte jobs to two client processes; each parses them and answers every batch
with a CommitmentBatch of the same number of 118-byte rows. Nobody computes, signs, stores or checks. Whatever the
complete path reaches, it cannot pass this on the same machine.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from multiprocessing.connection import Connection

import grpc

from computemesh.service.server import build_server, dial
from computemesh.trust.statement import COMMITMENT_SIZE
from computemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc

SERVICE = "computemesh.v1.OrchestratorService"
_WINDOW = 16  # batches in flight per client: enough that nobody waits for a round trip


class _Source(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    def __init__(self, batches_per_client: int, batch_jobs: int, job_bytes: int) -> None:
        self.batches = batches_per_client
        self.batch_jobs = batch_jobs
        self.job_bytes = job_bytes

    async def Work(self, requests, context):
        window = asyncio.Semaphore(_WINDOW)

        async def answers() -> None:
            async for request in requests:
                assert len(request.commitments.commitments) == COMMITMENT_SIZE * self.batch_jobs
                window.release()

        reader = asyncio.create_task(answers())
        params = bytes(self.job_bytes)
        for number in range(self.batches):
            await window.acquire()
            base = number * self.batch_jobs
            await context.write(orchestrator_pb2.WorkResponse(jobs=orchestrator_pb2.JobBatch(jobs=[
                orchestrator_pb2.Job(lease_id=base + i, task_id=params[:32], index=base + i, task_epoch=1, attempt=1,
                                     challenge_type="noop", params=params, lease_ms=60_000)
                for i in range(self.batch_jobs)])))
        await reader


def _serve(pipe: Connection, batches: int, batch_jobs: int, job_bytes: int) -> None:
    async def main() -> None:
        source = _Source(batches, batch_jobs, job_bytes)
        server, port = build_server(
            "127.0.0.1:0",
            lambda s: orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(source, s), [SERVICE])
        await server.start()
        pipe.send(port)
        await asyncio.to_thread(pipe.recv)
        await server.stop(None)
    asyncio.run(main())


def _work(pipe: Connection, port: int, batches: int, batch_jobs: int) -> None:
    async def main() -> None:
        rows = bytes(COMMITMENT_SIZE * batch_jobs)
        async with dial(f"127.0.0.1:{port}") as channel:
            await channel.channel_ready()
            pipe.send("ready")
            await asyncio.to_thread(pipe.recv)
            stream = orchestrator_pb2_grpc.OrchestratorServiceStub(channel).Work()
            started = time.perf_counter()
            for _ in range(batches):
                response = await stream.read()
                assert response is not grpc.aio.EOF
                await stream.write(orchestrator_pb2.WorkRequest(commitments=orchestrator_pb2.CommitmentBatch(
                    lease_ids=[job.lease_id for job in response.jobs.jobs], commitments=rows, signature=rows[:64])))
            await stream.done_writing()
            pipe.send(time.perf_counter() - started)
    asyncio.run(main())


def ceiling(jobs: int = 200_000, batch_jobs: int = 128, job_bytes: int = 200, clients: int = 2) -> float:
    """Jobs per second of the bare streams, all clients together."""
    spawn = multiprocessing.get_context("spawn")
    batches = max(1, jobs // clients // batch_jobs)
    here, there = spawn.Pipe()
    server = spawn.Process(target=_serve, args=(there, batches, batch_jobs, job_bytes), daemon=True)
    server.start()
    port = here.recv()
    pipes, processes = [], []
    for _ in range(clients):
        mine, theirs = spawn.Pipe()
        process = spawn.Process(target=_work, args=(theirs, port, batches, batch_jobs), daemon=True)
        process.start()
        pipes.append(mine)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    for pipe in pipes:
        pipe.send("go")
    slowest = max(pipe.recv() for pipe in pipes)
    here.send("stop")
    for process in (*processes, server):
        process.join(10)
    return batches * batch_jobs * clients / slowest


if __name__ == "__main__":
    print(f"{ceiling():,.0f} jobs/s")
