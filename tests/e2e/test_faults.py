"""Real processes, killed with -9 in the middle of a task: nothing is lost, nothing is paid twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.trust.receipt import accepted
from computemesh.v1 import ledger_pb2
from tests.money import matured_supply

JOBS = 200
VICTIMS = ("worker-1", "orchestrator", "market", "ledger")
# Short leases, so that what a dead worker held is soon given to another.
IMPATIENT = {
    "orchestrator": {"worker_lease_ms": 2000, "heartbeat_interval_ms": 500, "job_lease_ms": 5000},
    "market": {"lease_ms": 3000, "heartbeat_interval_ms": 500},
}


def settled(client: Client, task_id: str) -> int:
    """Jobs settled so far, from the ledger itself; asked again while it is being restarted."""
    deadline = time.monotonic() + 30
    while True:
        try:
            request = ledger_pb2.GetEscrowRequest(task_id=task_id)
            return client.ledger("GetEscrow", request).escrow.jobs_settled
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def wait_for(client: Client, task_id: str, jobs: int, within_s: float = 60) -> int:
    deadline = time.monotonic() + within_s
    while (now := settled(client, task_id)) < jobs:
        assert time.monotonic() < deadline, f"{now} of {JOBS} settled, waiting for {jobs}"
        time.sleep(0.05)
    return now


@pytest.mark.timeout(300)
def test_killing_each_process_in_turn_loses_nothing_and_settles_each_job_once(tmp_path: Path) -> None:
    with Cluster(tmp_path, workers=2, port_base=0, overrides=IMPATIENT) as cluster, Client(cluster.profile) as client:
        before = client.ledger("GetSupply", ledger_pb2.GetSupplyRequest())
        handle = client.submit(
            "synthetic", {"matrix_size": 512, "iterations": 4, "jobs": JOBS, "seed": "faults"}, reward="20.0")
        struck_at = []
        for number, victim in enumerate(VICTIMS, 1):
            struck_at.append(wait_for(client, handle.task_id, number * JOBS // 6))
            cluster.kill(victim)
            cluster.start_process(victim)
        assert struck_at[-1] < JOBS, f"the task was over before the last blow: {struck_at}"
        task = handle.wait(timeout=180)
        assert (task.status, task.jobs_settled, task.jobs_total) == ("completed", JOBS, JOBS)

        supply = matured_supply(client)
        assert supply.minted_units == before.minted_units
        assert supply.burned_units - before.burned_units == 12_000_000
        assert supply.escrowed_units == 0
        receipt = client.receipt(handle.task_id)
        assert accepted(client.verify(receipt)), [c for c in client.verify(receipt) if not c.ok]
        assert len(receipt.jobs) == JOBS
        ledger_config = next(tmp_path.rglob("ledger.toml"))
    check = subprocess.run([sys.executable, "-m", "ledger", "fsck", "--config", str(ledger_config)],
                           capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert check.returncode == 0, check.stdout + check.stderr


def test_the_reward_is_divided_60_25_10_5_and_nothing_appears_or_vanishes(cluster: Cluster, mesh) -> None:
    profile = str(cluster.data / "profile.toml")
    order = ("synthetic", "matrix_size=256", "--reward", "10.0")
    done = mesh("task", "submit", *order, "--wait", "--json", profile=profile)
    assert done.returncode == 0, done.stderr
    task = json.loads(done.stdout)
    assert task["status"] == "completed"
    block = json.loads(mesh("ledger", "block", str(task["block_height"]), "--json", profile=profile).stdout)
    with Client(cluster.profile) as client:
        found = client.ledger("GetResult", ledger_pb2.GetResultRequest(task_id=task["task_id"], job=0)).result
        supply = matured_supply(client)
        page = client.ledger("ListAccounts", ledger_pb2.ListAccountsRequest(page_size=1000))
    assert found.worker_units == 2_500_000
    assert block["result_count"] >= 1
    assert block["compute_root"] != "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sum(account.balance_units for account in page.accounts) == supply.accounts_units
