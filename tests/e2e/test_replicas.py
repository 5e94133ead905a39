"""Three workers of three owners offer the same function, and one of them lies."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.service.config import load
from computemesh.service.database import open_reader
from computemesh.trust.amount import format_cpc
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2, orchestrator_pb2
from orchestrator import store
from orchestrator.config import Config
from tests import money
from tests.e2e.conftest import FUNCTIONS

WRONG = Path(__file__).parent / "wrong" / FUNCTIONS.name
TEXTS = [f"Nobody has to trust the seller number {number}." for number in range(6)]
FUNDS = 50_000_000
OWNERS = {
    "orchestrator": {"replica_percent": 100},
    "worker-1": {"owner": "ann", "functions": [str(FUNCTIONS)]},
    "worker-2": {"owner": "bob", "functions": [str(FUNCTIONS)]},
    "worker-3": {"owner": "eve", "functions": [str(WRONG)]},
}


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "owners", workers=3, port_base=0, overrides=OWNERS) as running:
        yield running


def rewards(cluster: Cluster) -> list[tuple[bytes, int]]:
    """(worker key, state) of each replica's transfer."""
    config = load(Config, str(cluster.plan.nodes["orchestrator"].config), "orchestrator")
    with contextlib.closing(open_reader(config, Path(config.data_dir) / store.FILE)) as tables:
        return [(bytes(key), state) for key, state in tables.execute("SELECT worker_key, state FROM rewards")]


def owns(client: Client, key: PrivateKey) -> int:
    """Base units, free or not yet."""
    found = client.ledger("GetAccount", ledger_pb2.GetAccountRequest(address=key.address)).account
    return found.balance_units + found.pending_units


def offered_by_all(client: Client) -> None:
    deadline = time.monotonic() + 60
    request = orchestrator_pb2.ListWorkersRequest()
    while True:
        workers = client.orchestrator("ListWorkers", request).workers
        if sum(bool(one.capabilities.functions) for one in workers) == 3:
            return
        assert time.monotonic() < deadline, workers
        time.sleep(0.1)


@pytest.mark.timeout(180)
def test_a_lie_about_a_function_is_outvoted_and_unpaid_and_both_honest_owners_are_paid(
    owners: Cluster, mesh, tmp_path: Path
) -> None:
    profile = str(owners.data / "profile.toml")
    keys = {name: owners.plan.keys[name] for name in ("orchestrator", "worker-1", "worker-2", "worker-3")}
    assert mesh("ledger", "faucet", format_cpc(FUNDS), keys["orchestrator"].address, profile=profile).returncode == 0
    with Client(owners.profile) as client:
        offered_by_all(client)
        payload = {"function_name": "readability", "items": [{"text": text} for text in TEXTS]}
        handle = client.submit("function", payload, "60.0")
        handle.wait(120)
        (file,) = client.download(handle.task.task_id, tmp_path)
        assert [json.loads(line)["words"] for line in file.read_text().splitlines()] == [7] * len(TEXTS)
        request = ledger_pb2.ListResultsRequest(task_id=handle.task.task_id, page_size=100)
        results = client.ledger("ListResults", request).results
        honest = {keys["worker-1"].address, keys["worker-2"].address}
        assert {one.worker_address for one in results} <= honest
        for job in range(len(TEXTS)):
            asked = orchestrator_pb2.GetAuditTranscriptRequest(task_id=handle.task.task_id, job=job)
            transcript = client.orchestrator("GetAuditTranscript", asked).transcript
            assert transcript.replication == orchestrator_pb2.REPLICATION_AGREED
            assert transcript.digest.hex() == results[job].proof, "the transcript is of the answer that settled"
        deadline = time.monotonic() + 60
        while any(state == 0 for _, state in rewards(owners)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        paid = rewards(owners)
        assert len(paid) == len(TEXTS), "a replica for each job"
        assert {state for _, state in paid} == {1}
        assert {key for key, _ in paid} <= {keys["worker-1"].public, keys["worker-2"].public}
        liar = client.orchestrator(
            "GetWorker", orchestrator_pb2.GetWorkerRequest(worker=keys["worker-3"].address)).worker
        assert liar.jobs_wrong > 0
        share, validated = results[0].worker_units, sum(one.reward_units // 10 for one in results)
        assert owns(client, keys["orchestrator"]) == FUNDS - share * len(TEXTS) + validated
        assert owns(client, keys["worker-3"]) == 0
        assert owns(client, keys["worker-1"]) + owns(client, keys["worker-2"]) == 2 * share * len(TEXTS)
        assert min(owns(client, keys["worker-1"]), owns(client, keys["worker-2"])) > 0
        assert money.conserved(client.ledger("GetSupply", ledger_pb2.GetSupplyRequest()))
