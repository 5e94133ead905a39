"""`python -m tests.faults.crowd --workers 1000`: the orchestrator is killed under a thousand connected workers.

They are idle ones with a key, connection and stream each, which dial again as a worker's agent does, and take
`synthetic` jobs that they never answer, beside two real ones in the middle of three tasks. Prints how long it takes
until all are back; exit status 1 where that is more than 30 s, or a law broke.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import grpc

from bench.scale import AT_ONCE, idle_worker
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import orchestrator_pb2 as pb
from tests.faults.mesh import PATIENCE_S, Mesh
from worker.agent import FIRST_PAUSE_S, LONGEST_PAUSE_S

LIMIT_S = 30.0
JOBS = 4000
TEXTS = ["idle workers take none of these jobs"] * 40


async def _stay(address: str, chain: str, slots: asyncio.Semaphore) -> None:
    """A worker that joins again whenever its stream ends, as often as an agent would."""
    key, pause_s = PrivateKey.generate(), FIRST_PAUSE_S

    def joined() -> None:
        nonlocal pause_s
        pause_s = FIRST_PAUSE_S

    while True:
        try:
            await idle_worker(address, chain, key, joined, slots)
        except (grpc.RpcError, asyncio.InvalidStateError, AttributeError):  # the last: EOF where a message should be
            await asyncio.sleep(random.uniform(0, pause_s))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


def _crowd(address: str, chain: str, count: int, until: Connection) -> None:
    async def run() -> None:
        slots = asyncio.Semaphore(AT_ONCE)
        workers = [asyncio.create_task(_stay(address, chain, slots)) for _ in range(count)]
        await asyncio.to_thread(until.recv)
        for worker in workers:
            worker.cancel()

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(run())


def _connected(mesh: Mesh) -> int:
    gone, token, count = pb.WORKER_STATUS_GONE, "", 0
    while True:
        page = mesh.client.orchestrator("ListWorkers", pb.ListWorkersRequest(page_size=1000, page_token=token))
        count += sum(worker.status != gone for worker in page.workers)
        token = page.next_page_token
        if not token:
            return count


def _until_all(mesh: Mesh, count: int) -> float:
    began = time.monotonic()
    while (there := _connected(mesh)) < count:
        if time.monotonic() - began > PATIENCE_S:
            raise SystemExit(f"after {PATIENCE_S:.0f} s {there} of {count} workers are there")
        time.sleep(0.2)
    return time.monotonic() - began


def run(folder: Path, count: int, kills: int) -> dict[str, float | list[float]]:
    """Seconds from the start of each killed orchestrator until everybody is back. Raises Violation."""
    spawn, back = multiprocessing.get_context("spawn"), list[float]()
    ours, theirs = spawn.Pipe()
    with Mesh(folder) as mesh:
        chain = mesh.cluster.profile.chain_id
        crowd = spawn.Process(target=_crowd, args=(mesh.cluster.address("orchestrator"), chain, count, theirs))
        crowd.start()
        try:
            _until_all(mesh, count + 2)
            with mesh.laws.watching():
                for _ in range(kills):
                    mesh.submit("noop", {"jobs": JOBS})
                    mesh.readability(TEXTS)
                    mesh.submit("synthetic", {"matrix_size": 256, "iterations": 4, "jobs": 40, "seed": "crowd"})
                    time.sleep(random.uniform(0.2, 0.6))
                    mesh.cluster.kill("orchestrator")
                    began = time.monotonic()
                    mesh.cluster.start_process("orchestrator", wait=False)
                    _until_all(mesh, count + 2)
                    back.append(round(time.monotonic() - began, 1))
            mesh.laws.check()
        finally:
            ours.send(None)
            crowd.join()
        mesh.fsck()
    return {"workers": count, "kills": kills, "back_s": back, "limit_s": LIMIT_S}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.crowd", description=__doc__)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mesh-crowd-") as folder:
        figures = run(Path(folder), chosen.workers, chosen.kills)
    print(json.dumps(figures))
    worst = max(figures["back_s"])  # type: ignore[arg-type]
    print(f"{chosen.workers} workers, {chosen.kills} kills of the orchestrator: all back within {worst} s")
    return worst > LIMIT_S


if __name__ == "__main__":
    sys.exit(main())
