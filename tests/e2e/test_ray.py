"""A worker in front of a Ray cluster of two nodes, one of which is killed with -9 (`make test-ray`)."""

from __future__ import annotations

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
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def processes(self) -> list[psutil.Process]:
        """Ray's daemons of this cluster; its workers end with them."""
        return [one for one in psutil.process_iter(["cmdline"]) if str(self.folder) in " ".join(one.info["cmdline"] or ())]

    def kill_second_node(self) -> None:
        (raylet,) = [one for one in self.processes() if f"--node_ip_address={SECOND}" in one.info["cmdline"]]
        os.kill(raylet.pid, signal.SIGKILL)


@pytest.fixture
def ray_cluster() -> Iterator[RayCluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: the names of Ray's sockets have little room
    (port,) = free_ports(1)
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    cluster = RayCluster(f"127.0.0.1:{port}", folder, {**os.environ, **access})
    try:
        cluster.start("--head", f"--port={port}", "--include-dashboard=false")
        cluster.start(f"--address={cluster.address}", f"--node-ip-address={SECOND}")
        yield cluster
    finally:
        for process in cluster.processes():
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def until(what: Callable[[], Any], worker: subprocess.Popen[bytes], log: Path, within_s: float = 600) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := what()):
        assert worker.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    return found


def test_a_lost_node_of_a_ray_cluster_costs_time_only(tmp_path: Path, ray_cluster: RayCluster) -> None:
    with Cluster(tmp_path / "mesh", workers=0, port_base=0, overrides=IMPATIENT) as mesh, Client(mesh.profile) as client:
        log = tmp_path / "worker.log"
        command = [sys.executable, "-m", "computemesh.cli.main", "worker", "join", mesh.profile.orchestrator,
                   "--data", str(tmp_path / "worker"), "--name", "front", "--types", "synthetic",
                   "--engine", "ray", "--ray-address", ray_cluster.address]  # fmt: skip
        with log.open("wb") as writing:
            worker = subprocess.Popen(command, env=ray_cluster.environment, stdout=writing, stderr=writing)
        try:
            def listed() -> Any:
                return client.orchestrator("ListWorkers", orchestrator_pb2.ListWorkersRequest()).workers

            (front,) = until(listed, worker, log)
            assert [device.platform for device in front.capabilities.devices] == ["cpu", "cpu"]
            assert f"node={SECOND}" in log.read_text().replace('"node": "', "node=")

            payload = {"matrix_size": 512, "iterations": 8, "jobs": JOBS, "seed": "ray"}
            handle = client.submit("synthetic", payload, reward="20.0")
            until(lambda: settled(client, handle.task_id) >= JOBS // 4, worker, log)
            ray_cluster.kill_second_node()
            until(lambda: "executor died" in log.read_text(), worker, log, 120)
            assert (left := JOBS - settled(client, handle.task_id)) > 0, "the task was over before the blow"
            until(lambda: client.get(handle.task_id).ended_ms, worker, log)

            task = client.get(handle.task_id)
            assert (task.status, task.jobs_settled, task.jobs_total) == ("completed", JOBS, JOBS), f"{left} were left"
            assert listed()[0].jobs_settled == JOBS, "each once, all of them by the one worker"
            receipt = client.receipt(handle.task_id)
            assert accepted(client.verify(receipt))
            assert len(receipt.jobs) == JOBS
            assert matured_supply(client).escrowed_units == 0
        finally:
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(timeout=60) == 0, log.read_text()
