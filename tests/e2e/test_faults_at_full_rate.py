"""kill -9 of every service in the middle of the benchmark, at full rate: what was acknowledged is there after."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.trust.errors import NotFound
from computemesh.v1 import ledger_pb2
from tests.e2e.test_faults import IMPATIENT, settled
from tests.money import matured_supply

JOBS = 300_000
VICTIMS = ("orchestrator", "ledger", "market", "worker-1", "orchestrator", "ledger")


def told(client: Client, task_id: str, jobs: range) -> dict[int, str]:
    """Result hashes of those of `jobs` that are settled, each durable once it is read."""
    found = {}
    for job in jobs:
        with contextlib.suppress(NotFound):
            request = ledger_pb2.GetResultRequest(task_id=task_id, job=job)
            found[job] = client.ledger("GetResult", request).result.result_hash
    return found


def under_way(client: Client, task_id: str, after: int) -> int:
    """Wait until more than `after` jobs are settled; how many are."""
    until = time.monotonic() + 120
    while (now := settled(client, task_id)) <= after:
        assert time.monotonic() < until, f"{now} jobs settled, and no more"
        time.sleep(0.02)
    return now


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killing_each_service_at_full_rate_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with Cluster(tmp_path, workers=2, port_base=0, overrides=IMPATIENT) as cluster, Client(cluster.profile) as client:
        client.submit("noop", {"jobs": 2_000}, reward="1.0").wait(timeout=120)
        before = client.ledger("GetSupply", ledger_pb2.GetSupplyRequest())
        handle = client.submit("noop", {"jobs": JOBS}, reward="20.0")
        acknowledged: dict[int, str] = {}
        now = 0
        for victim in VICTIMS:
            now = under_way(client, handle.task_id, now + 1_000)
            assert now < JOBS, f"the task was over before {victim} was killed"
            acknowledged |= told(client, handle.task_id, range(max(now - 2_000, 0), now + 2_000, 100))
            cluster.kill(victim)
            cluster.start_process(victim)
            assert settled(client, handle.task_id) >= now
        task = handle.wait(timeout=600)
        assert (task.status, task.jobs_settled, task.jobs_total) == ("completed", JOBS, JOBS)
        assert len(acknowledged) > 20
        for job, result_hash in acknowledged.items():
            assert told(client, handle.task_id, range(job, job + 1)) == {job: result_hash}
        supply = matured_supply(client)
        assert supply.minted_units == before.minted_units
        config = next(tmp_path.rglob("ledger.toml"))
    check = subprocess.run([sys.executable, "-m", "ledger", "fsck", "--config", str(config)],
                           capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)  # fmt: skip
    assert check.returncode == 0, check.stdout + check.stderr
