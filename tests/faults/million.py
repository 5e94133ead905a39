"""`python -m tests.faults.million`: a million results at full rate, with kill -9 of every service all the while.

What the ledger lists as settled is written down as it comes, the services are killed in turn, the ledger once more at
the end, and then every result that was ever listed must be there and the same. Exit status 1 where one is lost or a law
broke.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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


def run(folder: Path, results: int, every_s: float) -> dict[str, float]:
    """Figures of one run. Raises Violation."""
    random, killed = Random(results), 0
    per_task = min(PER_TASK, results)
    with Mesh(folder) as mesh:
        witness, began = Witness(mesh.client), time.monotonic()
        try:
            for _ in range(results // per_task):
                task_id = mesh.submit("noop", {"jobs": per_task}, "5.0")
                witness.told[task_id] = {}
                while not mesh.client.get(task_id).ended:
                    time.sleep(random.uniform(0.2, 1.0) * every_s)
                    victim = VICTIMS[killed % len(VICTIMS)]
                    if not mesh.client.get(task_id).ended:
                        mesh.cluster.kill(victim)
                        mesh.cluster.start_process(victim)
                        killed += 1
                witness.told[task_id] |= listed(mesh.client, task_id)
        finally:
            witness.end()
        took = time.monotonic() - began
        mesh.cluster.kill("ledger")
        mesh.cluster.start_process("ledger")
        seen = sum(map(len, witness.told.values()))
        lost = witness.lost()
        require(not lost, "C", f"{lost} results were acknowledged and are gone")
        mesh.laws.check(PATIENCE_S)
        mesh.fsck()
    return {"acknowledged": seen, "kills": killed + 1, "lost": lost, "seconds": round(took, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.million", description=__doc__)
    parser.add_argument("--results", type=int, default=1_000_000)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between two kills, at most (default 4)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mesh-million-") as folder:
        print(json.dumps(run(Path(folder), chosen.results, chosen.every)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
