"""A worker in front of a Ray cluster of two nodes, one of which is killed with -9 (`make test-ray`)."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from computemesh.cli.cluster import Cluster
from computemesh.cli.plan import free_ports
from computemesh.client import Client
from computemesh.trust.receipt import accepted
from computemesh.v1 import orchestrator_pb2
from tests.e2e.conftest import IMPATIENT
from tests.e2e.test_faults import settled
from tests.money import matured_supply

pytest.importorskip("ray")
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]
JOBS = 100
SECOND = "127.0.0.2"
STARTS = 3
"""Ray gives its daemons 30 s to start, which is not always enough for a machine under load."""
RAY = Path(sys.executable).parent / "ray"


@dataclass(frozen=True)
class RayCluster:
    """Two nodes of one CPU each: the head, and one at `SECOND`."""

    address: str
    folder: Path
    environment: dict[str, str]

    def start(self, *options: str) -> None:
        command = [str(RAY), "start", *options, "--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000",
                   f"--temp-dir={self.folder}"]  # fmt: skip
        subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)

    def end(self) -> None:
        for process in self.processes():
            process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """Ray's daemons of this cluster; its workers end with them."""
        everything = psutil.process_iter(["cmdline"])
        return [one for one in everything if str(self.folder) in " ".join(one.info["cmdline"] or ())]

    def kill_second_node(self) -> None:
        (raylet,) = [one for one in self.processes() if f"--node_ip_address={SECOND}" in one.info["cmdline"]]
        os.kill(raylet.pid, signal.SIGKILL)


def started() -> RayCluster:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: the names of Ray's sockets have little room
    (port,) = free_ports(1)
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    cluster = RayCluster(f"127.0.0.1:{port}", folder, {**os.environ, **settings})
    try:
        cluster.start("--head", f"--port={port}", "--include-dashboard=false")
        cluster.start(f"--address={cluster.address}", f"--node-ip-address={SECOND}")
    except BaseException:
        cluster.end()
        raise
    return cluster


@pytest.fixture
def ray_cluster() -> Iterator[RayCluster]:
    for _ in range(STARTS - 1):
        with contextlib.suppress(subprocess.CalledProcessError):
            cluster = started()
            break
    else:
        cluster = started()
    yield cluster
    cluster.end()


class Front:
    """A worker that joined with one command, in front of the cluster."""

    def __init__(self, folder: Path, orchestrator: str, ray_cluster: RayCluster) -> None:
        self._log = folder / "worker.log"
        command = [sys.executable, "-m", "computemesh.cli.main", "worker", "join", orchestrator, "--name", "front",
                   "--data", str(folder / "worker"), "--types", "synthetic", "--engine", "ray",
                   "--ray-address", ray_cluster.address]  # fmt: skip
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, env=ray_cluster.environment, stdout=log, stderr=log)

    def says(self, text: str) -> bool:
        return text in self._log.read_text()

    def until(self, what: Callable[[], Any], within_s: float = 600) -> Any:
        deadline = time.monotonic() + within_s
        while not (found := what()):
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.2)
        return found

    def leave(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "mesh", workers=0, port_base=0, overrides=IMPATIENT, start_timeout_s=180) as running:
        yield running


@pytest.fixture
def front(tmp_path: Path, mesh: Cluster, ray_cluster: RayCluster) -> Iterator[Front]:
    worker = Front(tmp_path, mesh.profile.orchestrator, ray_cluster)
    yield worker
    worker.process.kill()
    worker.process.wait()


def test_a_lost_node_of_a_ray_cluster_costs_time_only(mesh: Cluster, ray_cluster: RayCluster, front: Front) -> None:
    with Client(mesh.profile) as client:
        def workers() -> Any:
            return client.orchestrator("ListWorkers", orchestrator_pb2.ListWorkersRequest()).workers

        (joined,) = front.until(workers)
        assert [device.platform for device in joined.capabilities.devices] == ["cpu", "cpu"]
        assert front.says(f'"node": "{SECOND}"')

        payload = {"matrix_size": 512, "iterations": 8, "jobs": JOBS, "seed": "ray"}
        handle = client.submit("synthetic", payload, reward="20.0")
        front.until(lambda: settled(client, handle.task_id) >= JOBS // 4)
        ray_cluster.kill_second_node()
        struck = time.monotonic()
        front.until(lambda: front.says("executor died"), 120)
        print(f"noticed after {time.monotonic() - struck:.1f} s")
        left = JOBS - settled(client, handle.task_id)
        assert left, "the task was over before the blow"
        assert not front.says('"lane": 0, "status"'), "only the lane of that node"
        front.until(lambda: client.get(handle.task_id).ended_ms)

        task = client.get(handle.task_id)
        assert (task.status, task.jobs_settled, task.jobs_total) == ("completed", JOBS, JOBS), f"{left} were left"
        assert workers()[0].jobs_settled == JOBS, "each once"
        assert matured_supply(client).escrowed_units == 0
        receipt = client.receipt(handle.task_id)
        assert accepted(client.verify(receipt))
        assert len(receipt.jobs) == JOBS
    assert front.leave() == 0
