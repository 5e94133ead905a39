"""No-op jobs through the complete path, next to the transport's ceiling in the same run.

Complete means: published and paid into escrow, leased, streamed to two workers, results signed per batch, audited,
durable in orchestrator and ledger, in a block, settled. Measured:

- throughput: one task of many 200-byte jobs, from CreateTask to its terminal event;
- latency: tasks of one job, one job in flight, from dispatch (the orchestrator has the task's lease) to the verified
  result durable in the ledger, both as the orchestrator logs them;
- from the same dispatch to the job's inclusion proof in the customer's hands, which comes after the block;
- from CreateTask to the terminal event.

The ceiling is the same messages over bare grpc.aio streams (bench/transport.py). The last line is one JSON object.
`python -m bench.peers` runs this among job queues and fills `ratio_over_peer`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import psutil

from bench.transport import ceiling
from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.v1 import ledger_pb2

JOB_BYTES = 200


def throughput(client: Client, jobs: int) -> float:
    """Jobs per second of one task of `jobs` no-op jobs."""
    started = time.perf_counter()
    task = client.submit("noop", {"jobs": jobs, "bytes": JOB_BYTES}, reward="10.0").wait(timeout=300)
    elapsed = time.perf_counter() - started
    if task.status != "completed" or task.jobs_settled != jobs:
        raise SystemExit(f"the task ended {task.status} with {task.jobs_settled} of {jobs} jobs: {task.status_detail}")
    return jobs / elapsed


@dataclass
class Waits:
    """Milliseconds of one-job tasks, one in flight."""

    durable: list[float]
    proven: list[float]
    ended: list[float]


def latencies(cluster: Cluster, client: Client, tasks: int) -> Waits:
    """Publish `tasks` one-job tasks, each after the proof of the one before."""
    ended, proofs = [], {}
    for _ in range(tasks):
        started = time.perf_counter()
        task = client.submit("noop", {"jobs": 1, "bytes": JOB_BYTES}, reward="0.001").wait(timeout=60)
        ended.append((time.perf_counter() - started) * 1000)
        if task.status != "completed":
            raise SystemExit(f"a task ended {task.status}: {task.status_detail}")
        client.ledger("GetInclusionProof", ledger_pb2.GetInclusionProofRequest(task_id=task.task_id, job=0))
        proofs[task.task_id] = time.time()
    leased, settled = {}, {}
    task_id = ""
    for line in cluster.log("orchestrator").read_text().splitlines():
        row = json.loads(line) if line.startswith("{") else {}
        if row.get("event") == "task leased":
            task_id = row["task"]
            leased[task_id] = _seconds(row)
        elif row.get("event") == "settled":
            settled[task_id] = _seconds(row)  # one in flight: it can only be the last one leased
    return Waits(
        sorted((settled[task] - leased[task]) * 1000 for task in proofs),
        sorted((proof - leased[task]) * 1000 for task, proof in proofs.items()), sorted(ended))


def _seconds(row: dict[str, str]) -> float:
    return datetime.fromisoformat(row["timestamp"]).timestamp()


def percentile(found: list[float], share: float) -> float:
    """The value below which `share` of a sorted list lies."""
    return round(found[min(int(len(found) * share), len(found) - 1)], 2)


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


@dataclass
class Figures:
    """One run; rates in jobs/s."""

    rates: list[float]
    ceilings: list[float]
    cpu_us: dict[str, float]
    waits: Waits

    def show(self) -> None:
        """For people."""
        rate, top, cost, waits = self.rate, statistics.median(self.ceilings), self.cpu_us, self.waits
        print(f"throughput  {rate:,.0f} jobs/s (median of {len(self.rates)}, "
              f"{min(self.rates):,.0f}..{max(self.rates):,.0f}), goal 20,000")
        print(f"ceiling     {top:,.0f} jobs/s of bare streams, of which the complete path reaches {rate / top:.1%}")
        print("CPU         " + ", ".join(f"{part} {us:.1f}" for part, us in sorted(cost.items(), key=lambda i: -i[1]))
              + f"; together {sum(cost.values()):.1f} us per job")
        for name, found, goal in (("dispatch to durable result", waits.durable, "goal p50 2, p99 10"),
                                  ("dispatch to proof", waits.proven, "goal 250"), ("publish to end", waits.ended, "")):
            p50, p95, p99 = (percentile(found, share) for share in (0.5, 0.95, 0.99))
            print(f"{name:28} p50 {p50} ms, p95 {p95} ms, p99 {p99} ms, one job in flight{goal and '; ' + goal}")

    @property
    def rate(self) -> float:
        """Median jobs/s."""
        return statistics.median(self.rates)

    def json(self, peers: dict[str, float]) -> str:
        """The last line."""
        top, waits = statistics.median(self.ceilings), self.waits
        return json.dumps({
            "jobs_per_s": round(self.rate), "p50_ms": percentile(waits.durable, 0.5),
            "p99_ms": percentile(waits.durable, 0.99), "ratio_over_peer": peers,
            "share_of_transport_ceiling": round(self.rate / top, 4), "transport_jobs_per_s": round(top),
            "proof_p50_ms": percentile(waits.proven, 0.5), "proof_p99_ms": percentile(waits.proven, 0.99),
            "end_p50_ms": percentile(waits.ended, 0.5), "end_p99_ms": percentile(waits.ended, 0.99),
            "cpu_us_per_job": {part: round(us, 2) for part, us in self.cpu_us.items()},
            "load": round(os.getloadavg()[0], 2)})


@contextlib.contextmanager
def mesh() -> Iterator[tuple[Cluster, Client]]:
    """A cluster with two workers whose connections, caches and credits are warm."""
    with (tempfile.TemporaryDirectory(prefix="mesh-bench-") as folder,
          Cluster(folder, workers=2, port_base=0) as cluster, Client(cluster.profile) as client):
        throughput(client, 2_000)
        latencies(cluster, client, 5)
        yield cluster, client


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50_000, help="jobs of each throughput round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=200, help="one-job tasks for the latency")
    options = parser.parse_args()
    with mesh() as (cluster, client):
        rates, ceilings = [], []
        before = cpu_seconds(cluster)
        for number in range(options.rounds):
            rates.append(throughput(client, options.jobs))
            ceilings.append(ceiling(jobs=100_000, job_bytes=JOB_BYTES))
            print(f"round {number + 1}: {rates[-1]:9,.0f} jobs/s   ceiling {ceilings[-1]:9,.0f} jobs/s", flush=True)
        after = cpu_seconds(cluster)
        waits = latencies(cluster, client, options.tasks)
    cost = {part: 1e6 * (after[part] - before.get(part, 0.0)) / (options.jobs * options.rounds) for part in after}
    found = Figures(rates, ceilings, cost, waits)
    found.show()
    print(found.json({}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
