"""Workers that are killed, lose their device or stand still: others do their work, and the zombie is paid nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from random import Random

import psutil

from computemesh.trust.errors import MeshError
from computemesh.v1 import ledger_pb2, orchestrator_pb2
from tests.faults.laws import require
from tests.faults.mesh import PATIENCE_S, Mesh
from tests.faults.points import Missed

WITHIN_S = 15.0
WORK = {"matrix_size": 256, "iterations": 8, "jobs": 100}
# As services are configured by default: nothing here is impatient.
USUAL = {
    "orchestrator": {"worker_lease_ms": 15_000, "heartbeat_interval_ms": 3000, "job_lease_ms": 60_000,
                     "drain_ms": 500},
    "market": {"lease_ms": 15_000, "heartbeat_interval_ms": 3000},
}  # fmt: skip


def _jobs(mesh: Mesh, task_id: str) -> dict[int, orchestrator_pb2.JobState]:
    request = orchestrator_pb2.ListJobsRequest(task_id=task_id, page_size=1000)
    return {job.index: job for job in mesh.client.orchestrator("ListJobs", request).jobs}


def _address(mesh: Mesh, name: str) -> str:
    return next(address for address, known in mesh.cluster.plan.names.items() if known == name)


def _held(mesh: Mesh, task_id: str, address: str) -> set[int]:
    running = orchestrator_pb2.JOB_STATUS_RUNNING
    return {index for index, job in _jobs(mesh, task_id).items() if job.status == running and job.worker == address}


def _busy(mesh: Mesh, task_id: str, address: str) -> Iterator[set[int]]:
    """What the worker holds of the task, asked again for as long as the task runs."""
    while not mesh.client.get(task_id).ended:
        try:
            yield _held(mesh, task_id, address)
        except MeshError:  # not leased yet
            time.sleep(0.02)


def _elsewhere(mesh: Mesh, task_id: str, address: str, jobs: set[int]) -> float:
    """Seconds until none of these jobs is the worker's any more."""
    began = time.monotonic()
    while jobs & _held(mesh, task_id, address):
        require(time.monotonic() - began < PATIENCE_S, "L", f"{len(jobs)} jobs of a silent worker are given to nobody")
        time.sleep(0.05)
    return time.monotonic() - began


def strike(mesh: Mesh, seed: int, blow: int, victim: str = "worker-1") -> dict[str, float]:
    """A worker gets a signal in the middle of a task: SIGSTOP past its lease, then SIGCONT; or SIGKILL."""
    random, address = Random(seed), _address(mesh, victim)
    with mesh.laws.watching():
        task_id = mesh.submit("synthetic", {**WORK, "seed": f"{seed}"}, "9.0")
        for held in _busy(mesh, task_id, address):
            if len(held) > 1:
                break
        else:
            raise Missed("the task was over before the worker held two jobs")
        time.sleep(random.uniform(0.0, 0.3))
        os.killpg(mesh.cluster.pids[victim], blow)
        time.sleep(0.5)  # what had left it by then counts
        lost = _held(mesh, task_id, address) if blow == signal.SIGSTOP else held
        seconds = _elsewhere(mesh, task_id, address, lost)
        if blow == signal.SIGSTOP:
            mesh.laws.check()  # others have done all of it before the zombie wakes
            os.killpg(mesh.cluster.pids[victim], signal.SIGCONT)
            mesh.cluster.wait_healthy(victim)
            _paid_nothing(mesh, task_id, address, lost)
        mesh.revive(victim)
    mesh.laws.check()
    require(seconds <= WITHIN_S + 1.0, "L", f"jobs of a silent worker went elsewhere after {seconds:.1f} s")
    return {"jobs": len(lost), "elsewhere_s": round(seconds, 1)}


def _paid_nothing(mesh: Mesh, task_id: str, address: str, jobs: set[int]) -> None:
    for job in jobs:
        result = mesh.client.ledger("GetResult", ledger_pb2.GetResultRequest(task_id=task_id, job=job)).result
        require(result.worker_address != address, "P", f"job {job} was settled for a worker that had lost its lease")


def lose_device(mesh: Mesh, seed: int) -> None:
    """The process that owns a worker's device dies with its jobs."""
    with mesh.laws.watching():
        task_id = mesh.submit("synthetic", {**WORK, "seed": f"{seed}"}, "9.0")
        for held in _busy(mesh, task_id, _address(mesh, "worker-1")):
            if held:
                break
        else:
            raise Missed("the task was over before the worker held a job")
        agent = psutil.Process(mesh.cluster.pids["worker-1"])
        executor = next(child for child in agent.children(recursive=True) if "worker.executor" in child.cmdline())
        executor.kill()
    mesh.laws.check()
