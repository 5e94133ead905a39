"""A worker killed with -9 in the middle of a task of each type: nothing changes but the time.

The long tests do it to every task of `make demo-all` (`make test-kill`), the short one to an exact program;
`test_faults.py` does it to the synthetic type, `test_outputs.py` to simulation.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.client.model import Task
from computemesh.sandbox.arrays import parse_type
from computemesh.sandbox.exporting import export_program
from computemesh.trust.errors import NotFound
from computemesh.trust.receipt import accepted
from computemesh.v1 import orchestrator_pb2
from computemesh.v1.orchestrator_pb2 import JOB_STATUS_QUEUED, JOB_STATUS_RUNNING
from examples.demo_all import run_step
from examples.demo_tasks import CHAINS, SENTENCES, Demo, Step
from tests.workloads import inference_models

TRIES = 6
STEPS = {step.name: step for chain in CHAINS for step in chain}


def orbits(start: Any) -> Any:
    """Integers that take a while: 2,048 congruential generators, each half a million steps on."""
    import jax
    import jax.numpy as jnp

    lanes = jnp.arange(2048, dtype=jnp.uint32) + start
    return jax.lax.fori_loop(0, 500_000, lambda _, x: x * jnp.uint32(1664525) + jnp.uint32(1013904223), lanes)


def long_program(demo: Demo) -> dict[str, Any]:
    path, inputs = demo.scratch / "orbits.program", io.BytesIO()
    path.write_bytes(export_program(orbits, [parse_type("uint32[]")], exact=True))
    np.savez(inputs, arg0=np.arange(8, dtype=np.uint32))
    put = demo.client.put_artifact
    return {"program": put(path).digest, "inputs": put(inputs.getvalue()).digest, "map": True,
            "outputs": ["uint32[2048]"], "items": 8, "items_per_job": 2, "exact": True}  # fmt: skip


def integer_text(demo: Demo) -> dict[str, Any]:
    folder = Path(demo.scratch) / "gpt2"
    inference_models.gpt2(folder, n_layer=1)
    return {"model_id": demo.client.put_artifact(folder).digest, "prompts": ["A worker"] * 64, "max_tokens": 384,
            "temperature": 1.0, "seed": "kills", "precision": "exact", "model_parameters": 1_000_000}  # fmt: skip


# What the demo asks of these is over before anybody can be killed.
MORE: dict[str, Callable[[Demo], dict[str, Any]]] = {
    "synthetic": lambda demo: {**STEPS["synthetic"].payload(demo), "jobs": 40, "seed": "kills"},
    "function": lambda demo: {"function_name": "readability", "items": SENTENCES * 300},
    "program": long_program,
}

def unseen(demo: Demo, folder: Path) -> str:
    return ""



@pytest.fixture(scope="module")
def demo(mesh_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("kills")
    (folder / "inputs").mkdir()
    with Client(mesh_cluster.profile) as client:
        yield Demo(client, folder / "answers", folder / "inputs", limit_s=600)


def jobs_of(client: Client, task_id: str) -> list[orchestrator_pb2.JobState]:
    try:
        request = orchestrator_pb2.ListJobsRequest(task_id=task_id, page_size=1000)
        return list(client.orchestrator("ListJobs", request).jobs)
    except NotFound:
        return []  # not leased yet


def busy_worker(client: Client, task_id: str) -> str:
    """The process name of a worker that holds a job of the task now; empty where none does."""
    held = {job.worker for job in jobs_of(client, task_id) if job.status == JOB_STATUS_RUNNING}
    everybody = client.orchestrator("ListWorkers", orchestrator_pb2.ListWorkersRequest()).workers
    names = [one.capabilities.display_name for one in everybody if held & {one.address, one.public_key}]
    return min(names, default="")


def lost_a_job(client: Client, task_id: str) -> bool:
    """Whether an attempt at a job of the running task came to nothing."""
    while not client.get(task_id).ended_ms:
        if any(job.attempts > (job.status != JOB_STATUS_QUEUED) for job in jobs_of(client, task_id)):
            return True
        time.sleep(0.02)
    return False


def run_and_kill(cluster: Cluster, client: Client, step: Step, payload: dict[str, Any], wait_s: float) -> Task:
    """The task, with the -9 some `wait_s` after a worker began; sooner where it would be over by then."""
    for _ in range(TRIES):
        handle = client.submit(step.challenge_type, payload, client.quote(step.challenge_type, payload).price)
        until = time.monotonic() + 120
        while not busy_worker(client, handle.task_id) and not client.get(handle.task_id).ended_ms:
            assert time.monotonic() < until, f"nobody works on {client.get(handle.task_id)}"
        time.sleep(wait_s)
        hit = False
        if victim := busy_worker(client, handle.task_id):
            cluster.kill(victim)
            hit = lost_a_job(client, handle.task_id)
            cluster.start_process(victim)
        task = handle.wait(timeout=600)
        if hit:
            return task
        assert task.status == "completed", task
        wait_s /= 3
    raise AssertionError(f"{step.name} was over before the blow, {TRIES} times")


def killing_changes_nothing(cluster: Cluster, demo: Demo, step: Step) -> None:
    payload = step.payload(demo)
    row = run_step(demo, replace(step, payload=lambda demo: payload))
    assert not row.problem, row.problem
    task = run_and_kill(cluster, demo.client, step, payload, row.seconds / 3)
    assert (task.status, task.jobs_settled) == ("completed", row.jobs)
    undisturbed = {path.name: sha256(path.read_bytes()).hexdigest() for path in (demo.output / step.name).iterdir()}
    assert {Path(file.name).name: file.digest for file in task.artifacts}.items() <= undisturbed.items()
    assert len(task.artifacts) == row.files
    checks = demo.client.verify(demo.client.receipt(task.task_id))
    assert accepted(checks), [check for check in checks if not check.ok]


@pytest.mark.timeout(240)
def test_killing_a_worker_leaves_an_exact_answer_byte_for_byte(mesh_cluster: Cluster, demo: Demo) -> None:
    killing_changes_nothing(mesh_cluster, demo, Step("program-exact", "program", long_program, unseen))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", STEPS)  # in the order of the chains: the text needs the model that training left
def test_killing_a_worker_in_each_demo_changes_nothing_but_the_time(
    mesh_cluster: Cluster, demo: Demo, name: str
) -> None:
    step = STEPS[name]
    if name in MORE:
        step = replace(step, payload=MORE[name], look=unseen)
    killing_changes_nothing(mesh_cluster, demo, step)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killing_a_worker_that_generates_in_integers_changes_no_byte(mesh_cluster: Cluster, demo: Demo) -> None:
    killing_changes_nothing(mesh_cluster, demo, Step("inference-exact", "inference", integer_text, unseen))
