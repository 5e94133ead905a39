"""A mesh under mixed load for a long time: does memory grow, is money kept, does everything end?

Four customers publish tasks of three types, wait for each and publish the next; one in ten is cancelled at some moment
of its life, and for one task in twenty a worker is lost: killed, or asked to leave. Every ten seconds the memory
of each service is written down (resident set, its children included) and the ledger asked where all money is. At the
end every task must be terminal. The last line is one JSON object; exit status 1 where a promise was broken.

The slope is that of a line fitted to the second half of the samples. It is no promise: caches fill, and a service
that keeps an index in memory grows with what it has to remember. Tasks and slope together say how much that is.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.trust.errors import MeshError
from computemesh.v1 import ledger_pb2

CUSTOMERS = 4
WORKERS = 3
CANCELLED = 0.10
CHURN = 0.05
SAMPLE_S = 10.0
PAUSE_S = 0.5
TASKS = (
    ("noop", lambda random_: {"jobs": random_.choice([1, 8, 64, 256]), "bytes": 200}),
    ("synthetic", lambda random_: {"matrix_size": 64, "jobs": random_.choice([1, 4])}),
    ("simulation", lambda random_: {
        "system": "reaction_diffusion", "steps": 100, "frames": 2, "seed": str(random_.random()),
        "parameters": {"width": 32, "height": 32}}),
)  # fmt: skip
# What is cancelled must last long enough for that.
LONG = ("synthetic", {"matrix_size": 512, "jobs": 200}, "0.01")


@dataclass
class Soak:
    """What happened so far."""

    cluster: Cluster
    until: float
    ended: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    lost_workers: int = 0
    jobs: int = 0
    minutes: list[float] = field(default_factory=list)
    memory: dict[str, list[float]] = field(default_factory=dict)
    churning: threading.Lock = field(default_factory=threading.Lock)

    def customer(self, number: int) -> None:
        """Publish, perhaps cancel, wait; until the time is over."""
        chance = random.Random(number)
        with Client(self.cluster.profile) as client:
            while time.monotonic() < self.until:
                try:
                    self._task(client, chance)
                except MeshError as error:
                    self.broken.append(f"customer {number}: {error}")
                time.sleep(PAUSE_S)

    def _task(self, client: Client, chance: random.Random) -> None:
        kind, payload = chance.choice(TASKS)
        doomed = chance.random() < CANCELLED
        handle = client.submit(*LONG) if doomed else client.submit(kind, payload(chance), reward="0.01")
        if doomed:
            time.sleep(chance.random())
            handle.cancel()
        if chance.random() < CHURN:
            self._lose_a_worker(chance)
        task = handle.wait(timeout=300)
        self.ended[task.status] += 1
        self.jobs += task.jobs_settled
        if task.status not in ("completed", "cancelled"):
            self.broken.append(f"task {task.task_id} ended {task.status}: {task.status_detail}")

    def _lose_a_worker(self, chance: random.Random) -> None:
        with self.churning:
            name = f"worker-{chance.randint(1, WORKERS)}"
            (self.cluster.kill if chance.random() < 0.5 else self.cluster.stop_process)(name)
            self.cluster.start_process(name)
            self.lost_workers += 1

    def sample(self, client: Client, began: float) -> None:
        """Memory of every service, and the sum of all money."""
        self.minutes.append((time.monotonic() - began) / 60)
        for name, pid in self.cluster.pids.items():
            if not name.startswith("worker"):
                root = psutil.Process(pid)
                size = sum(one.memory_info().rss for one in (root, *root.children(recursive=True)))
                self.memory.setdefault(name, []).append(size / 2**20)
        supply = client.ledger("GetSupply", ledger_pb2.GetSupplyRequest())
        parts = (supply.accounts_units, supply.escrowed_units, supply.maturing_units, supply.staked_units,
                 supply.burned_units)  # fmt: skip
        if sum(parts) != supply.minted_units:
            self.broken.append(f"the parts of the supply sum to {sum(parts)}, {supply.minted_units} were minted")


def slope(minutes: list[float], sizes: list[float]) -> float:
    """MiB an hour over the second half of the samples, by least squares."""
    half = len(minutes) // 2
    return float(np.polyfit(minutes[half:], sizes[half:], 1)[0] * 60) if len(minutes) - half > 1 else 0.0


def plot(soak: Soak, path: Path) -> None:
    """Memory over time, a line for each service."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=120)
    axes = figure.add_subplot()
    for name, sizes in soak.memory.items():
        axes.plot(soak.minutes[: len(sizes)], sizes, label=f"{name}, {slope(soak.minutes, sizes):+.1f} MiB/h")
    axes.set(xlabel="minutes", ylabel="resident memory, MiB", ylim=(0, None))
    axes.set_title(f"{sum(soak.ended.values()):,} tasks, {soak.ended['cancelled']:,} of them cancelled, "
                   f"{soak.lost_workers:,} workers lost")
    axes.legend(loc="best")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def run(minutes: float, folder: str) -> Soak:
    """The whole of it, with a line a minute."""
    with Cluster(folder, workers=WORKERS, port_base=0) as cluster, Client(cluster.profile) as client:
        client.submit("noop", {"jobs": 8}, reward="0.01").wait(timeout=120)
        began = time.monotonic()
        soak = Soak(cluster, began + 60 * minutes)
        people = [threading.Thread(target=soak.customer, args=(number,)) for number in range(CUSTOMERS)]
        for one in people:
            one.start()
        while time.monotonic() < soak.until:
            time.sleep(SAMPLE_S)
            soak.sample(client, began)
            if len(soak.minutes) % 6 == 0:
                sizes = ", ".join(f"{name} {found[-1]:.0f}" for name, found in soak.memory.items())
                print(f"{soak.minutes[-1]:5.1f} min  {sum(soak.ended.values()):6,} tasks  MiB: {sizes}", flush=True)
        for one in people:
            one.join()
        soak.sample(client, began)
        live = [task for task in client.list() if not task.ended]
        soak.broken += [f"task {task.task_id} is {task.status} at the end" for task in live]
    return soak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--plot", type=Path, help="PNG file for the plot of memory over time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mesh-soak-") as folder:
        soak = run(options.minutes, folder)
    if options.plot is not None:
        plot(soak, options.plot)
    for line in soak.broken[:20]:
        print(f"BROKEN {line}")
    print(json.dumps({
        "minutes": options.minutes, "tasks": dict(soak.ended), "jobs_settled": soak.jobs,
        "workers_lost": soak.lost_workers, "broken": len(soak.broken),
        "memory_mib": {name: [round(sizes[0]), round(sizes[-1])] for name, sizes in soak.memory.items()},
        "slope_mib_per_hour": {name: round(slope(soak.minutes, found), 2) for name, found in soak.memory.items()},
    }))  # fmt: skip
    return 1 if soak.broken else 0


if __name__ == "__main__":
    sys.exit(main())
