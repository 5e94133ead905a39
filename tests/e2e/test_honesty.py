"""Who lies is caught and not paid; who does not is never accused. Real cluster, real worker processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.service import transactions
from computemesh.trust import acts, statement
from computemesh.trust.identity import PrivateKey, decode_address
from computemesh.v1 import ledger_pb2, orchestrator_pb2
from tests.money import matured_supply

ROOT = Path(__file__).parents[2]
LIES = 200
STAKE = 20_000_000
HONEST_JOBS = 1000
# A liar is usually given nothing more after three lies; here it must get its 200 chances.
PATIENT = {"orchestrator": {"wrong_streak": 1_000_000}}


@contextmanager
def lying_worker(cluster: Cluster, folder: Path) -> Iterator[None]:
    config = folder / "worker.toml"
    folder.mkdir()
    config.write_text(
        f'orchestrator = "{cluster.address("orchestrator")}"\ndata_dir = "{folder}"\n'
        'platform = "cpu"\ndisplay_name = "liar"\nchallenge_types = ["synthetic"]\n')
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent / "liar"), str(ROOT)))}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "worker", "--config", str(config)],
                                   cwd=ROOT, env=environment, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(40)


def key_in(folder: Path) -> PrivateKey | None:
    """A worker's key, once it has made one."""
    path = folder / "worker.key"
    return PrivateKey.from_bytes(bytes.fromhex(path.read_text())) if path.exists() else None


def until(found: Callable[[], PrivateKey | None]) -> PrivateKey:
    """What comes about within a while."""
    deadline = time.monotonic() + 60
    while (value := found()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def stake(client: Client, cluster: Cluster, key: PrivateKey) -> None:
    """Gives a key a stake of `STAKE`."""
    chain, plan = cluster.profile.chain_id, cluster.plan
    body = statement.deposit_body(decode_address(key.address), STAKE)
    tx_id = transactions.uuid7()
    deposit = ledger_pb2.Transaction(
        id=tx_id, public_key=plan.keys["authority"].public,
        signature=plan.keys["authority"].sign(statement.transaction_digest("deposit", chain, tx_id, body)),
        deposit=ledger_pb2.Deposit(to=key.address, amount_units=STAKE))
    put_up = transactions.signed(key, chain, "stake", acts.Stake(STAKE).pack())
    reply = client.ledger("SubmitTransactions", ledger_pb2.SubmitTransactionsRequest(transactions=[deposit, put_up]))
    assert all(one.kind == ledger_pb2.OUTCOME_KIND_APPLIED for one in reply.outcomes), reply


def standing(client: Client, address: str) -> ledger_pb2.Stake:
    return client.ledger("GetStake", ledger_pb2.GetStakeRequest(address=address)).stake


def workers(client: Client) -> dict[str, orchestrator_pb2.Worker]:
    found = client.orchestrator("ListWorkers", orchestrator_pb2.ListWorkersRequest())
    return {worker.capabilities.display_name: worker for worker in found.workers}


@pytest.mark.timeout(240)
def test_a_bit_flipped_in_a_tenth_of_the_tiles_is_caught_and_unpaid(tmp_path: Path) -> None:
    with (Cluster(tmp_path / "mesh", workers=1, port_base=0, overrides=PATIENT) as cluster,
          Client(cluster.profile) as client):
        cluster.stop_process("worker-1")
        stake(client, cluster, cluster.plan.keys["orchestrator"])
        with lying_worker(cluster, tmp_path / "liar"):
            stake(client, cluster, until(lambda: key_in(tmp_path / "liar")))
            handle = client.submit("synthetic", {"matrix_size": 256, "jobs": LIES, "seed": "lies"}, reward="20.0")
            deadline = time.monotonic() + 120
            while True:
                liar = workers(client).get("liar")
                if liar and liar.jobs_wrong + liar.jobs_settled == LIES:
                    break
                assert time.monotonic() < deadline, f"{liar}"
                time.sleep(0.2)
        matured_supply(client)
        paid = client.account(liar.address).balance_units
        print(f"\n{liar.jobs_wrong} of {LIES} lies caught")
        assert liar.jobs_wrong >= 0.96 * LIES
        assert paid == liar.jobs_settled * 25_000  # a quarter of 0.1 CPC for what got through, nothing for the rest

        cluster.start_process("worker-1")
        task = handle.wait(timeout=100)
        assert (task.status, task.jobs_settled) == ("completed", LIES)
        everybody = client.orchestrator("ListWorkers", orchestrator_pb2.ListWorkersRequest()).workers
        (honest,) = (worker for worker in everybody if worker.address != liar.address)
        assert honest.jobs_settled == LIES - liar.jobs_settled
        assert honest.jobs_wrong == 0
        lost = standing(client, liar.address)
        assert lost.disputes_lost >= 1
        assert lost.units < STAKE / 2 < lost.slashed_units
        assert standing(client, honest.address).disputes_lost == 0
        matured_supply(client)


@pytest.mark.timeout(240)
def test_an_honest_worker_is_never_accused(cluster: Cluster, client: Client) -> None:
    before = {name: worker.jobs_wrong for name, worker in workers(client).items()}
    # 36 tiles of which 32 are drawn, so that each job is challenged and opened rather than recomputed whole.
    payload = {"matrix_size": 192, "jobs": HONEST_JOBS, "seed": "honest"}
    task = client.run("synthetic", payload, reward="1.0", timeout=200)
    assert (task.status, task.jobs_settled) == ("completed", HONEST_JOBS)
    assert {name: worker.jobs_wrong for name, worker in workers(client).items()} == before
    assert set(before.values()) == {0}
