"""`python -m tests.faults.million`: a million results at full rate, with kill -9 of every service all the while.

What the ledger lists as settled is written down as it comes, the services are killed in turn, the ledger once more at
the end, and then every result that was ever listed must be there and the same. With `--power` the whole machine's power
fails instead: all die at once, and their files hold what was synced and some of the rest (tests.faults.volatile). Exit
status 1 where a result is lost or a law broke.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from random import Random

from computemesh.client import Client
from computemesh.trust.errors import MeshError
from computemesh.v1 import ledger_pb2 as pb
from tests.faults.laws import require
from tests.faults.mesh import PATIENCE_S, Mesh
from tests.faults.volatile import Disk

VICTIMS = ("orchestrator", "ledger", "market", "worker-1", "worker-2")
PER_TASK = 50_000
PAGE = 1000


def listed(client: Client, task_id: str) -> dict[int, bytes]:
    """A task's settled results by job."""
    found: dict[int, bytes] = {}
    token = ""
    while True:
        request = pb.ListResultsRequest(task_id=task_id, page_size=PAGE, page_token=token)
        page = client.ledger("ListResults", request)
        found |= {result.job: bytes.fromhex(result.result_hash) for result in page.results}
        token = page.next_page_token
        if not token:
            return found


class Witness:
    """Writes down what the ledger lists as settled, for as long as it runs."""

    def __init__(self, client: Client) -> None:
        self.told: dict[str, dict[int, bytes]] = {}
        self._client, self._over = client, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        with Client(self._client.profile, timeout=5.0, retry_for=0.0) as client:
            while not self._over.wait(0.05):
                for task_id in list(self.told)[-1:]:
                    with contextlib.suppress(MeshError):  # killed just now
                        self.told[task_id] |= listed(client, task_id)

    def end(self) -> None:
        """Stops."""
        self._over.set()
        self._thread.join()

    def lost(self) -> int:
        """How many of the results it was told of are not there as they were."""
        lost = 0
        for task_id, told in self.told.items():
            now = listed(self._client, task_id)
            lost += sum(now.get(job) != result for job, result in told.items())
        return lost


def strike(mesh: Mesh, number: int) -> None:
    """Kills the next service, and starts it again."""
    victim = VICTIMS[number % len(VICTIMS)]
    mesh.cluster.kill(victim)
    mesh.cluster.start_process(victim)


def fail(mesh: Mesh, disk: Disk, number: int) -> int:
    """The power fails, and comes back; bytes that were not synced and are gone."""
    names = [name for name in mesh.cluster.names if name in mesh.cluster.pids]
    for name in names:
        os.kill(mesh.cluster.pids[name], signal.SIGSTOP)
    for name in names:
        mesh.cluster.kill(name)
    lost = disk.fail(number)
    for name in names:
        mesh.cluster.start_process(name)
    return lost


def going_on(mesh: Mesh, task_id: str, random: Random, every_s: float | None) -> bool:
    """Waits until the next blow: for a while, or, after a failure that took all down, until a part of the task more is
    settled. Whether the task goes on then. Raises Violation where nothing is settled for long."""
    if every_s is not None:
        time.sleep(random.uniform(0.2, 1.0) * every_s)
        return not mesh.client.get(task_id).ended
    task, until = mesh.client.get(task_id), time.monotonic() + PATIENCE_S
    enough = task.jobs_settled + random.uniform(0.05, 0.8) * task.jobs_total
    while not task.ended and task.jobs_settled < enough:
        require(time.monotonic() < until, "L", f"{task.jobs_settled} jobs settled, and no more for {PATIENCE_S} s")
        time.sleep(0.05)
        task = mesh.client.get(task_id)
    return not task.ended


def run(folder: Path, results: int, every_s: float, disk: Disk | None = None) -> dict[str, float]:
    """Figures of one run. Raises Violation."""
    random, blows, unsynced = Random(results), 0, 0
    per_task = min(PER_TASK, results)
    with Mesh(folder) as mesh:
        if disk is not None:
            disk.steady()
        witness, began = Witness(mesh.client), time.monotonic()
        try:
            for _ in range(results // per_task):
                task_id = mesh.submit("noop", {"jobs": per_task}, "5.0")
                witness.told[task_id] = {}
                while going_on(mesh, task_id, random, every_s if disk is None else None):
                    if disk is None:
                        strike(mesh, blows)
                    else:
                        unsynced += fail(mesh, disk, blows)
                    blows += 1
                witness.told[task_id] |= listed(mesh.client, task_id)
        finally:
            witness.end()
        took = time.monotonic() - began
        if disk is None:
            strike(mesh, VICTIMS.index("ledger"))
        else:
            unsynced += fail(mesh, disk, blows)
        seen = sum(map(len, witness.told.values()))
        lost = witness.lost()
        require(not lost, "C", f"{lost} results were acknowledged and are gone")
        mesh.laws.check(PATIENCE_S)
        mesh.fsck()
    figures = {"acknowledged": seen, "kills" if disk is None else "power_failures": blows + 1, "lost": lost,
               "seconds": round(took, 1)}  # fmt: skip
    return figures if disk is None else {**figures, "unsynced_bytes_gone": unsynced}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.million", description=__doc__)
    parser.add_argument("--results", type=int, default=1_000_000)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between two kills, at most (default 4)")
    parser.add_argument("--power", action="store_true", help="the machine's power fails, instead of one service")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mesh-million-") as folder:
        with Disk(Path(folder)) if chosen.power else contextlib.nullcontext() as disk:
            where = Path(folder) if disk is None else disk.path
            figures = run(where, chosen.results, chosen.every, disk)
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
