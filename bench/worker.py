"""The worker's own overhead: programs compiled, time between jobs on a device, time from start to first job.

    python -m bench.worker [--jobs 300] [--size 512] [--starts 3]

One executor process gets groups of one synthetic job each, of several tasks, two ahead as the agent does it: how many
programs XLA compiled for the first job and for all others (same shape, so none), and how long the device waited between
two jobs while one was in its queue. Then a whole worker of a mesh is stopped and started with its compile cache, a task
waiting for it: seconds from its start to the first result accepted. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.dispatch import percentile
from computemesh import workloads
from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.service.child import Child
from computemesh.v1 import ledger_pb2
from worker.answers import GroupDone
from worker.events import Event, Finished
from worker.lanes import AHEAD, Row, Run
from worker.process import ExecutorProcess

GAP_LIMIT_MS, START_LIMIT_S = 1.0, 5.0


def rows(size: int, jobs: int) -> Iterator[Row]:
    """Synthetic jobs of one shape, each of another task."""
    workload = workloads.get("synthetic")
    for number in range(jobs):
        params = workload.parse({"matrix_size": size, "iterations": 1, "seed": str(number)})
        spec = workload.split(params, number.to_bytes(32, "big"))[0]
        yield (spec.task_id, spec.index, spec.params, spec.binding)


async def groups(folder: Path, size: int, jobs: int) -> list[GroupDone]:
    """What an executor says of `jobs` groups of one job each, `AHEAD` of them in its hands at a time."""
    done: list[GroupDone] = []
    waiting, slots = list(rows(size, jobs)), asyncio.Semaphore(AHEAD)
    finished = asyncio.Event()

    def heard(event: Event) -> None:
        if isinstance(event, Finished):
            done.extend(event.groups)
            slots.release()
            if len(done) == jobs:
                finished.set()

    settings = {"lane": 0, "cache_dir": str(folder / "cache"), "scratch_dir": None}
    executor = ExecutorProcess(0, Child("worker.executor", settings, {"JAX_PLATFORMS": "cpu"}), heard)
    await executor.start()
    keeping = asyncio.create_task(executor.keep())
    for number, row in enumerate(waiting):
        await slots.acquire()
        executor.run(Run(0, number, "synthetic", [row]))
    await finished.wait()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    failures = [group.failures for group in done if group.failures]
    if failures:
        raise SystemExit(f"jobs failed: {failures[0]}")
    return done


def starts(size: int, count: int) -> list[float]:
    """Seconds from a worker's start to its first result, durable in the ledger, with a warm compile cache."""
    found = []
    with (tempfile.TemporaryDirectory(prefix="mesh-start-") as folder,
          Cluster(folder, workers=1, port_base=0) as cluster, Client(cluster.profile) as client):
        payload = {"matrix_size": size, "iterations": 1, "seed": "start"}
        client.submit("synthetic", payload, reward="0.1").wait(timeout=120)
        for _ in range(count):
            cluster.stop_process("worker-1")
            task = client.submit("synthetic", payload, reward="0.1")
            began = time.monotonic()
            cluster.start_process("worker-1", wait=False)
            request = ledger_pb2.GetEscrowRequest(task_id=task.task_id)
            while not client.ledger("GetEscrow", request).escrow.jobs_settled:
                time.sleep(0.02)
            found.append(time.monotonic() - began)
            task.wait(timeout=60)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--size", type=int, default=512, help="of the synthetic task's matrices")
    parser.add_argument("--starts", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mesh-worker-") as folder:
        cold = asyncio.run(groups(Path(folder), options.size, options.jobs))
        warm = asyncio.run(groups(Path(folder), options.size, 3))
    gaps = sorted(group.gap_us / 1000 for group in cold[1:] if group.gap_us)
    seconds = starts(options.size, options.starts)
    figures = {
        "bench": "worker", "jobs": options.jobs, "compiled_first": cold[0].compiled,
        "compiled_later": sum(group.compiled for group in cold[1:]),
        "compiled_with_warm_cache": sum(group.compiled for group in warm),
        "job_ms": round(statistics.median(group.wall_us for group in cold) / 1000, 2),
        "gap_p50_ms": percentile(gaps, 0.5), "gap_p99_ms": percentile(gaps, 0.99), "gap_limit_ms": GAP_LIMIT_MS,
        "start_to_result_s": round(statistics.median(seconds), 2), "start_limit_s": START_LIMIT_S,
        "load": round(os.getloadavg()[0], 2),
    }  # fmt: skip
    for name, value in figures.items():
        print(f"{name:26} {value}")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
