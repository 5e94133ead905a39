"""Every crash point of every service, some seeds each: what dies there costs nothing but time."""

from __future__ import annotations

import time
from concurrent.futures import Future
from random import Random
from typing import Any

from computemesh.service.crashpoints import POINTS, WORKER
from computemesh.trust.errors import Unavailable
from tests.faults.mesh import PATIENCE_S, Mesh

# Passed at the start of a process only, or once in a long while.
AT_START = {
    "store.opened", "worker.step.durable", "ledger.start.replayed", "ledger.start.anchored", "market.start.restored",
    "market.start.recovered", "market.orchestrator.connected", "orchestrator.start.restored",
    "orchestrator.market.welcomed", "orchestrator.worker.joined", "worker.start.opened", "worker.stream.opened",
    "worker.nonce.begins", "worker.nonce.written", "worker.nonce.synced", "worker.nonce.renamed",
}  # fmt: skip
# Passed with a worker's first results: it has to be there before the work is.
AT_FIRST_RESULT = {point for point in AT_START if point.startswith("worker.nonce.")} | {"worker.step.durable"}
ROUNDS = 8
ROWS = [(service, point) for point, services in POINTS.items() for service in services]
"""(service, point): a point in shared code counts for each service that comes by."""


class Missed(Exception):
    """The process did not come to the point."""


def crash(mesh: Mesh, service: str, point: str, seed: int) -> None:
    """One run: work begins, the process dies at its point, comes back, and everything accepted ends. Raises
    Violation, Missed."""
    random = Random(f"{service} {point} {seed}")
    name = "worker-1" if service == WORKER else service
    if point in AT_START:
        mesh.cluster.kill(name)
        mesh.arm(name, point, 1)
        mesh.cluster.start_process(name, wait=point in AT_FIRST_RESULT)
    else:
        mesh.arm(name, point, random.choice((1, 1, 2, 3, 5)))
    work: list[Future[Any]] = []
    with mesh.laws.watching():
        for _ in range(ROUNDS):
            work += mesh.load(random)
            if _died(mesh, name, work):
                break
        reached = mesh.dead(name)
        mesh.arm(name, point, 0)
        mesh.revive(name)
        for one in work:
            one.result(PATIENCE_S)
    mesh.laws.check()
    if not reached:
        raise Missed(f"{service} did not come to {point}")


def _died(mesh: Mesh, name: str, work: list[Future[Any]]) -> bool:
    """Waits until the process has died; False where its work is over and it has not."""
    until = time.monotonic() + PATIENCE_S
    while not mesh.dead(name) and time.monotonic() < until:
        if all(one.done() for one in work) and _idle(mesh):
            break
        time.sleep(0.01)
    return mesh.dead(name)


def _idle(mesh: Mesh) -> bool:
    """Whether every task has ended, as far as anybody answers."""
    try:
        return all(mesh.client_at_once.get(one).ended for one in list(mesh.laws.open))
    except Unavailable:
        return False
