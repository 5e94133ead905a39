"""Replicas over one PostgreSQL: what serves is killed with -9, or the server restarted, in the middle of a task."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.trust.receipt import accepted
from computemesh.v1 import ledger_pb2
from tests.databases import Server
from tests.e2e.conftest import IMPATIENT
from tests.e2e.test_faults import wait_for
from tests.money import matured_supply

JOBS = 100_000
PATIENT_START = {"overrides": IMPATIENT, "start_timeout_s": 300.0}
pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server().start()
    yield running
    running.remove()


def check_settled_once(cluster: Cluster, client: Client, task_id: str, before: ledger_pb2.GetSupplyResponse) -> None:
    """Every job is settled once, to the unit, and a replay of the log agrees."""
    supply = matured_supply(client)
    assert supply.minted_units == before.minted_units
    assert supply.burned_units - before.burned_units == 12_000_000
    assert supply.escrowed_units == 0
    receipt = client.receipt(task_id)
    assert accepted(client.verify(receipt)), [one for one in client.verify(receipt) if not one.ok]
    assert len(receipt.jobs) == JOBS
    config = cluster.data / "ledger.toml"
    check = subprocess.run([sys.executable, "-m", "ledger", "fsck", "--config", str(config)],
                           capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert check.returncode == 0, check.stdout + check.stderr


def test_a_task_completes_though_one_of_each_service_is_killed_and_stays_dead(server: Server, tmp_path: Path) -> None:
    settings = {**PATIENT_START, "database": server.url, "replicas": 2}
    with (Cluster(tmp_path, workers=2, port_base=0, **settings) as cluster,
          Client(cluster.profile, retry_for=60, timeout=90) as client):  # fmt: skip
        before = client.ledger("GetSupply", ledger_pb2.GetSupplyRequest())
        handle = client.submit("noop", {"jobs": JOBS}, reward="20.0")
        wait_for(client, handle.task_id, 1, within_s=300)
        holder = handle.refresh().orchestrator_address
        (orchestrator,) = (name for name in ("orchestrator", "orchestrator-2") if cluster.address(name) == holder)
        struck_at = []
        for number, victim in enumerate((orchestrator, "market", "ledger"), 1):
            struck_at.append(wait_for(client, handle.task_id, number * JOBS // 5, within_s=300))
            cluster.kill(victim)
        assert struck_at[-1] < JOBS, f"the task was over before the last blow: {struck_at}"
        for heir in ("market-2", "ledger-2"):
            cluster.wait_healthy(heir, 300)
        task = handle.wait(timeout=400)
        assert (task.status, task.jobs_settled, task.jobs_total) == ("completed", JOBS, JOBS)
        check_settled_once(cluster, client, handle.task_id, before)


def test_a_restart_of_the_server_in_the_middle_of_a_task_loses_nothing(server: Server, tmp_path: Path) -> None:
    settings = {**PATIENT_START, "database": server.url, "supervise": True}
    with (Cluster(tmp_path, workers=2, port_base=0, **settings) as cluster,
          Client(cluster.profile, retry_for=60, timeout=90) as client):  # fmt: skip
        before = client.ledger("GetSupply", ledger_pb2.GetSupplyRequest())
        handle = client.submit("noop", {"jobs": JOBS}, reward="20.0")
        struck_at = []
        for part, crash in ((4, True), (2, False)):
            struck_at.append(wait_for(client, handle.task_id, JOBS // part, within_s=300))
            server.stop(crash=crash)
            time.sleep(1)
            server.start()
        assert struck_at[-1] < JOBS, f"the task was over before the last restart: {struck_at}"
        task = handle.wait(timeout=400)
        assert (task.status, task.jobs_settled, task.jobs_total) == ("completed", JOBS, JOBS)
        check_settled_once(cluster, client, handle.task_id, before)
