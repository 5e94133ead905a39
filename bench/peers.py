"""Job queues on one machine, in one run: ours, Ray, Dask, Celery with Redis, NATS JetStream, PostgreSQL SKIP LOCKED.

    make bench-peers        (python -m bench.peers [--jobs 50000] [--seconds 5] [--rounds 3] [--latency 200])

Every system does the same work: jobs of 200 pseudo-random bytes, two workers, and the 32-byte result
BLAKE3(SHA-256(job)) of each back with whoever asked. Only ours verifies and pays. Systems take turns in each round, so
that what else the machine does hits all of them. A peer gets as many jobs as it does in about `--seconds` (found in a
short warm-up), at most `--jobs`; ours always `--jobs`. `p50` is one job in flight, from handing it over to its result;
ours is from dispatch to the verified result durable in the ledger. Peers live in a virtual environment of their own
(`build/peers`), their servers in a temporary folder; bench/peer_systems.py has them.

The last line is that of `python -m bench.dispatch`, with `ratio_over_peer` filled.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import dispatch
from bench.transport import ceiling

PEERS = ("ray actors", "ray tasks", "dask", "celery", "nats", "postgres")
PYTHON = Path("build/peers/bin/python")


@dataclass
class Peer:
    """A system in its own process; it speaks JSON lines. One that does not start says why, and is left out."""

    name: str
    process: subprocess.Popen[str]
    durable: str = ""
    jobs: int = 0
    rates: list[float] = field(default_factory=list)
    p50_ms: float = 0.0

    @classmethod
    def start(cls, name: str) -> Peer:
        command = [str(PYTHON), str(Path(__file__).with_name("peer_systems.py")), name]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        peer = cls(name, process)
        peer.durable = peer._read()["durable"]
        return peer

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # some systems print to standard output
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"{self.name} ended with status {self.process.wait()}")

    def stop(self) -> None:
        """End it and its servers."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def warm(peer: Peer, seconds: float, most: int) -> None:
    """Find how many jobs keep a peer busy for `seconds`."""
    peer.ask(jobs=100)
    rate = peer.ask(jobs=500)["jobs_per_s"]
    peer.jobs = max(200, min(most, int(rate * seconds)))


def row(name: str, rates: list[float], p50_ms: float, durable: str, verified: str) -> str:
    """A line of the table."""
    spread = f"{min(rates):,.0f}..{max(rates):,.0f}"
    return f"{name:14} {statistics.median(rates):9,.0f}  {spread:>18}  {p50_ms:8.2f}  {durable:44} {verified}"


def compare(options: argparse.Namespace, peers: list[Peer]) -> None:
    """All rounds, then latencies, then the table."""
    for peer in peers:
        warm(peer, options.seconds, options.jobs)
    ours: list[float] = []
    ceilings: list[float] = []
    with dispatch.mesh() as (cluster, client):
        before = dispatch.cpu_seconds(cluster)
        for number in range(options.rounds):
            ours.append(dispatch.throughput(client, options.jobs))
            print(f"round {number + 1}: computemesh {ours[-1]:,.0f}", end="", flush=True)
            for peer in peers:
                peer.rates.append(peer.ask(jobs=peer.jobs)["jobs_per_s"])
                print(f", {peer.name} {peer.rates[-1]:,.0f}", end="", flush=True)
            ceilings.append(ceiling(jobs=100_000, job_bytes=dispatch.JOB_BYTES))
            print(flush=True)
        after = dispatch.cpu_seconds(cluster)
        waits = dispatch.latencies(cluster, client, options.latency)
        for peer in peers:
            peer.p50_ms = peer.ask(latency=options.latency)["p50_ms"]
    cost = {part: 1e6 * (after[part] - before.get(part, 0.0)) / (options.jobs * options.rounds) for part in after}
    found = dispatch.Figures(ours, ceilings, cost, waits)
    print(f"\n{'':14} {'jobs/s':>9}  {'lowest..highest':>18}  {'p50 ms':>8}  {'durable':44} verified")
    print(row("computemesh", ours, dispatch.percentile(waits.durable, 0.5), "market, orchestrator, ledger: fsync each",
              "every job recomputed, paid, proven"))
    for peer in peers:
        print(row(peer.name, peer.rates, peer.p50_ms, peer.durable, "nothing"))
    ratios = {peer.name.replace(" ", "_"): round(found.rate / statistics.median(peer.rates), 2) for peer in peers}
    if "ray_actors" in ratios:  # the faster way to use it
        ratios["ray"] = min(ratios["ray_actors"], ratios.get("ray_tasks", ratios["ray_actors"]))
    print(found.json(ratios))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=int, default=200, help="jobs for the latency of one in flight")
    parser.add_argument("--only", nargs="*", default=list(PEERS), choices=PEERS)
    options = parser.parse_args()
    peers: list[Peer] = []
    try:
        for name in options.only:
            print(f"starting {name}", flush=True)
            peers.append(Peer.start(name))
        compare(options, peers)
    finally:
        for peer in peers:
            peer.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
