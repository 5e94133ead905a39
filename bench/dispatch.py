"""No-op jobs through the complete path, next to the transport's ceiling in the same run.

Complete means: published and paid into escrow, leased, streamed to two workers, results signed per batch, audited,
durable in orchestrator and ledger, in a block, settled. Two figures:

- throughput: one task of many 200-byte jobs, from CreateTask to its terminal event;
- latency: tasks of one job, one at a time, from CreateTask to the terminal event, which comes after the block.

The ceiling is the same messages over bare grpc.aio streams (bench/transport.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time

import psutil

from bench.transport import ceiling
from computemesh.cli.cluster import Cluster
from computemesh.client import Client

JOB_BYTES = 200


def throughput(client: Client, jobs: int) -> float:
    """Jobs per second of one task of `jobs` no-op jobs."""
    started = time.perf_counter()
    task = client.submit("noop", {"jobs": jobs, "bytes": JOB_BYTES}, reward="10.0").wait(timeout=300)
    elapsed = time.perf_counter() - started
    if task.status != "completed" or task.jobs_settled != jobs:
        raise SystemExit(f"the task ended {task.status} with {task.jobs_settled} of {jobs} jobs: {task.status_detail}")
    return jobs / elapsed


def latencies(client: Client, tasks: int) -> list[float]:
    """Milliseconds from publishing a one-job task to its terminal event, one in flight."""
    found = []
    for _ in range(tasks):
        started = time.perf_counter()
        task = client.submit("noop", {"jobs": 1, "bytes": JOB_BYTES}, reward="0.001").wait(timeout=60)
        found.append((time.perf_counter() - started) * 1000)
        if task.status != "completed":
            raise SystemExit(f"a task ended {task.status}: {task.status_detail}")
    return found


def cpu_seconds(cluster: Cluster) -> dict[str, float]:
    """User and system seconds of each process so far, children (executors) included, the workers' added up."""
    found: dict[str, float] = {}
    for name, pid in cluster.pids.items():
        root = psutil.Process(pid)
        role = name.split("-")[0]
        for process in (root, *root.children(recursive=True)):
            times = process.cpu_times()
            part = role if process is root else f"{role} executor"
            found[part] = found.get(part, 0.0) + times.user + times.system
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50_000, help="jobs of each throughput round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=200, help="one-job tasks for the latency")
    options = parser.parse_args()
    with (tempfile.TemporaryDirectory(prefix="mesh-bench-") as folder,
          Cluster(folder, workers=2, port_base=0) as cluster, Client(cluster.profile) as client):
        throughput(client, 2_000)  # connections, caches and credits are warm after this
        latencies(client, 5)
        rates, ceilings = [], []
        before = cpu_seconds(cluster)
        for number in range(options.rounds):
            rates.append(throughput(client, options.jobs))
            ceilings.append(ceiling(jobs=100_000, job_bytes=JOB_BYTES))
            print(f"round {number + 1}: {rates[-1]:9,.0f} jobs/s   ceiling {ceilings[-1]:9,.0f} jobs/s", flush=True)
        after = cpu_seconds(cluster)
        waits = sorted(latencies(client, options.tasks))
    cost = {part: 1e6 * (after[part] - before.get(part, 0.0)) / (options.jobs * options.rounds) for part in after}
    cuts = statistics.quantiles(waits, n=100)
    rate, top = statistics.median(rates), statistics.median(ceilings)
    print(f"throughput  {rate:,.0f} jobs/s (median of {options.rounds}, {min(rates):,.0f}..{max(rates):,.0f})")
    print(f"ceiling     {top:,.0f} jobs/s of bare streams, of which the complete path reaches {rate / top:.1%}")
    print("CPU         " + ", ".join(f"{part} {us:.1f}" for part, us in sorted(cost.items(), key=lambda i: -i[1]))
          + f"; together {sum(cost.values()):.1f} us per job")
    print(f"latency     p50 {cuts[49]:.1f} ms, p95 {cuts[94]:.1f} ms, p99 {cuts[98]:.1f} ms, "
          "published to block, one in flight")
    print(json.dumps({
        "jobs_per_s": round(rate),
        "p50_ms": round(cuts[49], 2), "p95_ms": round(cuts[94], 2), "p99_ms": round(cuts[98], 2),
        "cpu_us_per_job": {part: round(us, 2) for part, us in cost.items()},
        "transport_jobs_per_s": round(top), "share_of_transport_ceiling": round(rate / top, 4)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
