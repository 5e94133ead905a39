"""A contest end to end through the command line: three validators do the job again and vote; who is wrong pays."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.trust.amount import CPC
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2
from tests import money
from tests.cli.golden import compare_shape
from tests.e2e.test_honesty import lying_worker

Mesh = Callable[..., CompletedProcess[str]]
# Blocks come every 50 ms while a dispute is open: eight seconds to vote, eight to open the votes.
RULES = {"ledger": {"dispute_window_blocks": 500, "vote_blocks": 160}, "orchestrator": {"beacon_epoch_ms": 1000}}
VALIDATORS = 3


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose dispute window stays open, with a contestant and three validators who have stake."""
    with Cluster(tmp_path_factory.mktemp("court"), workers=1, port_base=0, overrides=RULES) as cluster:
        for number in range(VALIDATORS + 1):
            key = PrivateKey.from_bytes(bytes([number + 1]) * 32)
            (cluster.data / f"party{number}.key").write_text(key.secret.hex())
        yield cluster


@pytest.fixture
def here(court: Cluster, mesh: Mesh) -> Mesh:
    return lambda *arguments: mesh(*arguments, profile=court.profile.path)


def ok(result: CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def fund(court: Cluster, here: Mesh) -> list[str]:
    """Key files of the contestant and the validators, each with 20 CPC at stake."""
    files = [str(court.data / f"party{number}.key") for number in range(VALIDATORS + 1)]
    for file in files:
        address = json.loads(ok(here("stake", "show", "--key", file, "--json")))["address"]
        ok(here("ledger", "faucet", "50.0", address))
        ok(here("stake", "add", "20.0", "--key", file))
    return files


def decide(
    court: Cluster, here: Mesh, dispute: str, files: list[str], tmp_path: Path,
    reveal: Callable[[], None] = lambda: None,
) -> ledger_pb2.Dispute:  # fmt: skip
    """Lets every validator look at the dispute until it is decided; `reveal` is called once, when votes are opened."""
    revealed = False
    deadline = time.monotonic() + 120
    with Client(court.profile) as client:
        while True:
            found = client.ledger("GetDispute", ledger_pb2.GetDisputeRequest(id=dispute)).dispute
            if found.status not in (ledger_pb2.DISPUTE_STATUS_VOTING, ledger_pb2.DISPUTE_STATUS_REVEALING):
                return found
            assert time.monotonic() < deadline, found
            if found.status == ledger_pb2.DISPUTE_STATUS_REVEALING and not revealed:
                revealed = True
                reveal()
            for number, file in enumerate(files):
                said = here("validator", "run", "--key", file, "--data", str(tmp_path / f"v{number}"), "--once")
                assert said.returncode == 0, said.stderr
            time.sleep(0.2)


def conserved(court: Cluster) -> bool:
    with Client(court.profile) as client:
        return money.conserved(client.ledger("GetSupply", ledger_pb2.GetSupplyRequest()))


@pytest.mark.timeout(120)
def test_the_seed_of_an_audit_is_what_its_epoch_was_committed_to_before(court: Cluster, here: Mesh) -> None:
    words = ("task", "submit", "synthetic", "matrix_size=1024", "--wait", "--timeout", "60", "--json")
    task_id = json.loads(ok(here(*words)))["task_id"]
    deadline = time.monotonic() + 60
    said = ""
    while "seed committed to in epoch" not in said:
        assert time.monotonic() < deadline, said
        time.sleep(0.2)
        said = ok(here("verify", task_id, "--replay"))
        assert "no beacon" not in said


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_contest_of_a_right_result_fails_and_costs_the_bond(court: Cluster, here: Mesh, tmp_path: Path) -> None:
    contestant, *validators = fund(court, here)
    words = ("task", "submit", "synthetic", "matrix_size=128", "--reward", "2.0", "--wait", "--timeout", "60", "--json")
    task_id = json.loads(ok(here(*words)))["task_id"]
    opened = json.loads(ok(here("dispute", "open", task_id, "0", "--key", contestant, "--json")))
    assert opened["status"] == "DISPUTE_STATUS_VOTING"
    assert "NOT_CONTESTABLE" in here("dispute", "open", task_id, "0", "--key", contestant).stderr
    decided = decide(court, here, opened["id"], validators, tmp_path)
    assert decided.status == ledger_pb2.DISPUTE_STATUS_REJECTED, decided
    assert [vote.revealed and vote.valid for vote in decided.votes] == [True] * VALIDATORS
    assert json.loads(ok(here("stake", "show", "--key", contestant, "--json")))["units"] == 19 * CPC
    assert conserved(court)


@pytest.mark.timeout(120)
def test_a_contest_of_a_wrong_result_slashes_the_worker_and_refunds_the_customer(
    court: Cluster, here: Mesh, tmp_path: Path
) -> None:
    contestant, *validators = fund(court, here)
    court.stop_process("worker-1")
    with lying_worker(court, tmp_path / "liar"):
        words = ("task", "submit", "synthetic", "matrix_size=256", "seed=lies", "--delivery",
                 "first-response", "--reward", "2.0")
        task = json.loads(ok(here(*words, "--wait", "--timeout", "60", "--json")))
    liar = PrivateKey.from_bytes(bytes.fromhex((tmp_path / "liar" / "worker.key").read_text().strip()))
    (tmp_path / "liar.key").write_text(liar.secret.hex())
    ok(here("ledger", "faucet", "10.0", liar.address))
    ok(here("stake", "add", "8.0", "--key", str(tmp_path / "liar.key")))
    with Client(court.profile) as client:
        before = client.account(task["customer"]).balance_units
    opened = json.loads(ok(here("dispute", "open", task["task_id"], "0", "--key", contestant, "--json")))
    assert opened["accused"] == liar.address
    compare_shape("json/dispute-open.json", opened)
    voter = validators.pop()
    ballot = json.loads(ok(here("dispute", "vote", opened["id"], "invalid", "--key", voter, "--json")))
    compare_shape("json/dispute-vote.json", ballot)

    def reveal() -> None:
        words = ("dispute", "reveal", opened["id"], "invalid", "--salt", ballot["salt"], "--key", voter, "--json")
        compare_shape("json/dispute-reveal.json", json.loads(ok(here(*words))))

    decided = decide(court, here, opened["id"], validators, tmp_path, reveal)
    assert sum(vote.revealed for vote in decided.votes) == VALIDATORS
    compare_shape("json/dispute-show.json", json.loads(ok(here("dispute", "show", opened["id"], "--json"))))
    compare_shape("json/dispute-list.json", json.loads(ok(here("dispute", "list", "--all", "--json"))))
    assert decided.status == ledger_pb2.DISPUTE_STATUS_UPHELD, decided
    assert not any(vote.valid for vote in decided.votes)
    assert decided.slashed_units == 4 * CPC
    with Client(court.profile) as client:
        assert client.account(task["customer"]).balance_units > before + 2 * CPC - 1000
    shown = ok(here("stake", "show", liar.address))
    assert "0 won, 1 lost" in shown
    assert "reputation  0 of 1000" in " ".join(shown.split("\n")) or "0 of 1000" in shown
    assert conserved(court)
