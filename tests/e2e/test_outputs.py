"""What jobs leave, through the whole mesh: assembled, downloaded, held against commitments, the same whoever dies."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.client.replay import replay
from computemesh.trust.receipt import accepted
from computemesh.v1 import orchestrator_pb2

ROOT = Path(__file__).parents[2]
JOBS = 12
PAYLOAD = {"system": "nbody", "steps": 4000, "ensemble": JOBS * 4, "frames": 8, "jobs": JOBS, "seed": "outputs"}


@pytest.fixture
def customer(mesh_cluster: Cluster) -> Iterator[Client]:
    with Client(mesh_cluster.profile) as connected:
        yield connected


@pytest.fixture(scope="module")
def undisturbed(mesh_cluster: Cluster) -> dict[str, str]:
    """Digest of each file of the task when nothing goes wrong."""
    with Client(mesh_cluster.profile) as client:
        task = client.run("simulation", PAYLOAD, reward="1.0", timeout=150)
    assert (task.status, task.jobs_settled) == ("completed", JOBS)
    return {file.name: file.digest for file in task.artifacts}


def wait_for(client: Client, task_id: str, jobs: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while client.get(task_id).jobs_settled < jobs:
        assert time.monotonic() < deadline, client.get(task_id)
        time.sleep(0.05)


@contextmanager
def faker(cluster: Cluster, folder: Path, way: str) -> Iterator[None]:
    """A worker that uploads another output than the one it committed to."""
    folder.mkdir()
    (folder / "worker.toml").write_text(
        f'orchestrator = "{cluster.address("orchestrator")}"\ndata_dir = "{folder}"\n'
        'platform = "cpu"\ndisplay_name = "faker"\nchallenge_types = ["simulation"]\n')
    search = os.pathsep.join((str(Path(__file__).parent / "faker"), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": search, "FAKER": way}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "worker", "--config", str(folder / "worker.toml")],
                                   cwd=ROOT, env=environment, stderr=log)
        try:
            yield
        finally:
            process.kill()
            process.wait(40)


@pytest.mark.timeout(240)
def test_two_workers_results_become_files_that_a_customer_downloads(
    mesh_cluster: Cluster, customer: Client, undisturbed: dict[str, str], tmp_path: Path, mesh
) -> None:
    profile = str(mesh_cluster.data / "profile.toml")
    task_id = next(iter(customer.list(challenge_type="simulation"))).task_id
    workers = {job.worker for job in customer.orchestrator(
        "ListJobs", orchestrator_pb2.ListJobsRequest(task_id=task_id)).jobs}
    assert len(workers) == 2
    done = mesh("task", "download", task_id, "--output", str(tmp_path / "files"), "--json", profile=profile)
    assert done.returncode == 0, done.stderr
    found = {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()}
    assert {name: sha256(data).hexdigest() for name, data in found.items()} == undisturbed
    states = np.load(io.BytesIO(found["results.npz"]))["states"]
    assert states.shape[:2] == (8, JOBS * 4) or states.shape[:2] == (JOBS * 4, 8)
    assert json.loads(mesh("task", "get", task_id, "--json", profile=profile).stdout)["artifacts"]
    receipt = customer.receipt(task_id)
    assert accepted(customer.verify(receipt))
    checks = replay(customer, receipt)
    assert all(check.ok for check in checks), checks
    assert "leads to the result" in checks[0].detail


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("way", "why"), [
    ("flip", "output's units do not lead|of the output is not what was committed|broken"),
    ("long", "has 1 byte|bytes, at most"),
])  # fmt: skip
def test_an_output_that_is_not_what_was_committed_is_caught(
    mesh_cluster: Cluster, customer: Client, undisturbed: dict[str, str], tmp_path: Path, way: str, why: str
) -> None:
    for name in ("worker-1", "worker-2"):
        mesh_cluster.stop_process(name)
    with faker(mesh_cluster, tmp_path / "faker", way):
        handle = customer.submit("simulation", PAYLOAD, reward="1.0")
        deadline = time.monotonic() + 100
        while True:
            everybody = customer.orchestrator("ListWorkers", orchestrator_pb2.ListWorkersRequest()).workers
            (liar,) = [one for one in everybody if one.capabilities.display_name == "faker"] or [None]
            if liar and liar.jobs_wrong >= 2:
                break
            assert time.monotonic() < deadline, liar
            time.sleep(0.2)
        assert liar.jobs_settled == 0
    for name in ("worker-1", "worker-2"):
        mesh_cluster.start_process(name)
    task = handle.wait(timeout=150)
    assert {file.name: file.digest for file in task.artifacts} == undisturbed
    lines = [json.loads(line) for line in mesh_cluster.log("orchestrator").read_text().splitlines()]
    reasons = [line["why"] for line in lines if line["event"] == "audit failed"]
    assert any(re.search(why, reason) for reason in reasons), reasons


@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", ["worker-1", "orchestrator"])
def test_whoever_is_killed_the_files_are_the_same(
    mesh_cluster: Cluster, customer: Client, undisturbed: dict[str, str], victim: str
) -> None:
    handle = customer.submit("simulation", PAYLOAD, reward="1.0")
    wait_for(customer, handle.task_id, 2)
    assert customer.get(handle.task_id).status == "in_progress"
    mesh_cluster.kill(victim)
    mesh_cluster.start_process(victim)
    task = handle.wait(timeout=150)
    assert (task.status, task.jobs_settled) == ("completed", JOBS)
    assert {file.name: file.digest for file in task.artifacts} == undisturbed


def test_an_artifact_that_is_not_there_is_refused_before_the_money(mesh_cluster: Cluster, customer: Client) -> None:
    before = customer.account(customer.own_address()).escrow_units
    with pytest.raises(Exception, match="is not here"):
        customer.submit("rendering", {"scene": "0" * 64, "width": 64, "height": 64, "samples_per_pixel": 1})
    assert customer.account(customer.own_address()).escrow_units == before


def test_a_name_stands_for_its_artifact_and_keeps_it(customer: Client) -> None:
    stored = customer.put_artifact(b"a model", name="model.bin")
    assert customer.register_model("tiny/model", stored.digest).artifact == stored.digest
    customer.delete_artifact(stored.digest)
    assert customer.read_artifact(stored.digest) == b"a model"
    assert [model.model_id for model in customer.models()] == ["tiny/model"]
    with pytest.raises(Exception, match="is not here"):
        customer.register_model("other", "1" * 64)
