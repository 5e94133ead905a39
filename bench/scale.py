"""How the orchestrator bears many workers and many tasks.

    python -m bench.scale [--workers 10000] [--tasks 100] [--open 10000] [--queued 100000]

- connected: `--workers` idle workers, each with its own key, connection, stream, credits and heartbeats, in other
  processes. Memory of the orchestrator per worker, its CPU for their heartbeats, and the latency of one-job tasks on
  one active worker beside them against the same without them. The idle ones offer another task type, so that placement
  has to pass them by.
- curves: CPU of one step of the scheduler, in this process: jobs given to a worker that has become free among
  more and more open tasks (`--queued` jobs in all, every task another customer's), and a one-job task given out among
  more and more idle workers.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import psutil

from bench.dispatch import latencies, percentile
from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.service.server import dial
from computemesh.trust import envelope, statement
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import common_pb2, orchestrator_pb2_grpc
from computemesh.v1 import orchestrator_pb2 as pb
from computemesh.workloads import noop
from orchestrator import events as e
from orchestrator.core import Core
from orchestrator.model import Task

KIB_LIMIT, LATENCY_LIMIT = 100, 2.0
PER_PROCESS = 2_500
AT_ONCE = 64


# ---- idle workers ----------------------------------------------------------------------------------------------------
async def idle_worker(
    address: str, chain: str, key: PrivateKey, joined: Callable[[], None], slots: asyncio.Semaphore
) -> None:
    """Join, grant credits, and send a heartbeat as often as the orchestrator wants one; nothing ever comes. Raises what
    ends the stream."""
    capabilities = common_pb2.Capabilities(
        devices=[common_pb2.Device(kind="idle", platform="cpu", memory_bytes=1 << 34)], challenge_types=["synthetic"],
    ).SerializeToString()  # fmt: skip
    async with dial(address, own_connection=True) as channel:
        async with slots:
            call: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(channel).Work()  # type: ignore[no-untyped-call]
            greeting = (await call.read()).greeting
            body = statement.hello_body(greeting.nonce, greeting.public_key, key.public, capabilities)
            await call.write(pb.WorkRequest(hello=common_pb2.Hello(
                public_key=key.public, capabilities=capabilities,
                signature=envelope.sign(key, "hello", chain, body))))
            welcome = (await call.read()).welcome
            await call.write(pb.WorkRequest(ready=pb.Ready(credits=2)))
        joined()
        while True:
            await asyncio.sleep(welcome.heartbeat_interval_ms / 1000)
            await call.write(pb.WorkRequest(heartbeat=pb.Heartbeat(utilisation=[0.0])))


async def idle(address: str, chain: str, count: int) -> None:
    """`count` idle workers; says "joined" once all are, and ends with its standard input."""
    there, slots = 0, asyncio.Semaphore(AT_ONCE)

    def joined() -> None:
        nonlocal there
        there += 1
        if there == count:
            print("joined", flush=True)

    workers = [asyncio.create_task(idle_worker(address, chain, PrivateKey.generate(), joined, slots))
               for _ in range(count)]  # fmt: skip
    done, _ = await asyncio.wait(
        [*workers, asyncio.create_task(asyncio.to_thread(sys.stdin.read))], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        if task in workers:
            print(f"an idle worker ended: {task.exception()!r}".replace("\n", " "), flush=True)
    os._exit(0)


class Crowd:
    """Idle workers in processes of their own."""

    def __init__(self, address: str, chain: str, count: int) -> None:
        sizes = [PER_PROCESS] * (count // PER_PROCESS) + ([count % PER_PROCESS] if count % PER_PROCESS else [])
        self._processes = [
            subprocess.Popen([sys.executable, "-m", "bench.scale", "--idle", address, chain, str(size)],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for size in sizes
        ]  # fmt: skip
        for process in self._processes:
            assert process.stdout is not None
            said = process.stdout.readline().strip()
            if said != "joined":
                raise SystemExit(f"idle workers could not join: {said}")

    def leave(self) -> None:
        """End them."""
        for process in self._processes:
            process.terminate()
            process.wait()


def connected(count: int, tasks: int) -> dict[str, float]:
    """Figures of one active worker, alone and beside `count` idle ones."""
    with (tempfile.TemporaryDirectory(prefix="mesh-scale-") as folder,
          Cluster(folder, workers=1, port_base=0) as cluster, Client(cluster.profile) as client):
        process = psutil.Process(cluster.pids["orchestrator"])
        latencies(cluster, client, 20)
        alone = latencies(cluster, client, tasks)
        before = process.memory_info().rss
        began = time.monotonic()
        crowd = Crowd(cluster.address("orchestrator"), cluster.profile.chain_id, count)
        try:
            joined_s = time.monotonic() - began
            cpu, since = sum(process.cpu_times()[:2]), time.monotonic()
            time.sleep(12)  # two rounds of heartbeats
            busy = (sum(process.cpu_times()[:2]) - cpu) / (time.monotonic() - since)
            grown = process.memory_info().rss - before
            beside = latencies(cluster, client, tasks)
        finally:
            crowd.leave()
    one, many = percentile(alone.durable, 0.5), percentile(beside.durable, 0.5)
    return {
        "workers": count, "joined_s": round(joined_s, 1), "kib_per_worker": round(grown / 1024 / count, 1),
        "heartbeat_cpu_share": round(busy, 3), "p50_ms_alone": one, "p50_ms_beside": many,
        "p99_ms_alone": percentile(alone.durable, 0.99), "p99_ms_beside": percentile(beside.durable, 0.99),
        "latency_ratio": round(many / one, 2),
    }  # fmt: skip


# ---- the scheduler alone ---------------------------------------------------------------------------------------------
def _task(number: int, jobs: int) -> Task:
    task_id = number.to_bytes(32, "big")
    specs = noop.TASK.split(noop.Params(jobs=jobs, bytes=8), task_id)
    return Task(task_id, 1, "noop", specs, customer=f"customer {number}", created_ms=number)


def _worker(core: Core, number: int, types: frozenset[str], credits: int) -> None:
    core.step(e.WorkerJoined(number, number.to_bytes(33, "big"), types, 1 << 34), 1)
    if credits:
        core.step(e.CreditsGranted(number, credits), 1)


def among_tasks(open_tasks: int, queued: int, steps: int = 500) -> float:
    """CPU microseconds to give one job to a worker that has become free."""
    core = Core(1)
    for number in range(open_tasks):
        core.step(e.TaskLeased(_task(number, max(queued // open_tasks, 2))), 1)
    _worker(core, 1, frozenset(), 0)
    began = time.process_time()
    for at in range(steps):
        assert core.step(e.CreditsGranted(1, 1), 1 + at).send
    return 1e6 * (time.process_time() - began) / steps


def among_workers(idle_workers: int, steps: int = 500) -> float:
    """CPU microseconds to lease a one-job task and give it to the one worker that may have it."""
    core = Core(1)
    for number in range(2, idle_workers + 2):
        _worker(core, number, frozenset(["synthetic"]), 2)
    _worker(core, 1, frozenset(["noop"]), steps)
    tasks = [_task(number, 1) for number in range(steps)]
    began = time.process_time()
    for task in tasks:
        assert core.step(e.TaskLeased(task), 1).send
    return 1e6 * (time.process_time() - began) / steps


def tick(open_tasks: int, idle_workers: int) -> float:
    """CPU milliseconds of the scheduler's tick, which comes five times a second."""
    core = Core(1)
    for number in range(2, idle_workers + 2):
        _worker(core, number, frozenset(["synthetic"]), 2)
    for number in range(open_tasks):
        core.step(e.TaskLeased(_task(number, 2)), 1)
    began = time.process_time()
    for _ in range(10):
        core.step(e.Tick(), 2)
    return 1e3 * (time.process_time() - began) / 10


def curve(name: str, most: int, measure: Callable[[int], float]) -> dict[int, float]:
    """A figure at 1/1000, 1/100, 1/10 of `most`, and at it; the best of three each."""
    found = {}
    for size in sorted({max(most // 1000, 1), max(most // 100, 1), max(most // 10, 1), most}):
        found[size] = round(min(measure(size) for _ in range(3)), 2)
        print(f"{name:40} {size:7,}  {found[size]:9.2f} us", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=10_000, help="idle workers")
    parser.add_argument("--tasks", type=int, default=100, help="one-job tasks for each latency")
    parser.add_argument("--open", type=int, default=10_000, help="open tasks at the end of the curve")
    parser.add_argument("--queued", type=int, default=100_000, help="jobs queued in all")
    parser.add_argument("--idle", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.idle:
        address, chain, count = options.idle
        asyncio.run(idle(address, chain, int(count)))
        return 0
    tasks = curve("one job to a free worker, open tasks", options.open, lambda size: among_tasks(size, options.queued))
    workers = curve("one-job task, idle workers", options.workers, among_workers)
    tick_ms = round(tick(options.open, options.workers), 2)
    print(f"tick with {options.open:,} open tasks and {options.workers:,} idle workers: {tick_ms} ms, 5 a second")
    figures = connected(options.workers, options.tasks)
    for name, value in figures.items():
        print(f"{name:24} {value}")
    print(json.dumps({
        "bench": "scale", **figures, "kib_limit": KIB_LIMIT, "latency_ratio_limit": LATENCY_LIMIT,
        "step_us_by_open_tasks": tasks, "step_us_by_idle_workers": workers, "tick_ms": tick_ms,
        "load": round(os.getloadavg()[0], 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
