"""`mesh` as people use it for money and trust, against a real cluster."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.trust.identity import PrivateKey

Mesh = Callable[..., CompletedProcess[str]]


@pytest.fixture
def here(cluster: Cluster, mesh: Mesh) -> Mesh:
    """`mesh` with the cluster's profile."""
    return lambda *arguments: mesh(*arguments, profile=cluster.profile.path)


def test_a_file_of_tasks_is_published_line_by_line(here: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"challenge_type": "noop", "payload": {"jobs": 2}, "reward": "1.0"}\n\n'
                    '{"challenge_type": "noop", "payload": {"jobs": 1}, "reward": "999999999.0", "deadline": "+1h"}\n')
    result = here("task", "submit", "--batch", str(file), "--json")
    first, dear = json.loads(result.stdout)["results"]
    assert result.returncode == 1
    assert first["task"]["reward"] == "1.0"
    assert (dear["task"], dear["reason"]) == (None, "INSUFFICIENT_FUNDS")
    file.write_text('{"challenge_type": "noop", "rewrad": "1.0"}')
    wrong = here("task", "submit", "--batch", str(file))
    assert "tasks[0]: rewrad is not a field of a task; known are challenge_type" in wrong.stderr


def test_a_customer_confirms_the_answer_it_waits_for(here: Mesh) -> None:
    words = ("task", "submit", "noop", "jobs=2", "--reward", "1.0", "--delivery", "manual", "--responses", "2",
             "--confirm-window", "1h")
    task_id = json.loads(here(*words, "--json").stdout)["task_id"]
    rows: list[dict[str, object]] = []
    for _ in range(200):
        rows = json.loads(here("task", "answers", task_id, "--json").stdout)["answers"]
        if len(rows) == 4:
            break
    assert [row["job"] for row in rows] == [0, 0, 1, 1]
    assert rows[0]["worker"] != rows[1]["worker"], "answers of two owners"
    late = here("task", "retract", task_id)
    assert "TASK_ALREADY_CLAIMED" in late.stderr
    assert "`mesh task cancel` ends a task somebody works on" in late.stderr
    assert json.loads(here("task", "get", task_id, "--json").stdout)["status"] == "in_progress"
    stranger = here("task", "confirm", task_id, "--worker", "cpc1nobody")
    assert "TASK_NOT_CLAIMED" in stranger.stderr
    second = here("task", "confirm", task_id, "--job", "0", "--worker", str(rows[1]["worker"]))
    assert f"job 0: answer of {rows[1]['worker']} confirmed" in second.stdout
    assert here("task", "confirm", task_id).returncode == 0
    watched = here("task", "watch", task_id, "--timeout", "60", "--json")
    assert json.loads(watched.stdout)["status"] == "completed", watched.stderr
    assert "has no answers that wait for you" in here("task", "confirm", task_id).stderr


def test_money_is_put_at_stake_and_begins_to_come_back(here: Mesh) -> None:
    before = json.loads(here("stake", "show", "--json").stdout)["units"]
    assert json.loads(here("stake", "add", "3.0", "--json").stdout)["units"] == before + 3_000_000
    dear = here("stake", "remove", "900000.0")
    assert "INSUFFICIENT_STAKE" in dear.stderr
    assert "900000.0 CPC, but cpc1" in dear.stderr
    left = here("stake", "remove", "1.0")
    assert "unbonding" in left.stdout
    assert "CPC, free at block" in left.stdout


def test_a_delegated_key_publishes_with_the_accounts_money_and_cannot_move_it(
    here: Mesh, cluster: Cluster, tmp_path: Path
) -> None:
    key = PrivateKey.from_bytes(hashlib.sha256(b"delegate").digest())
    file = tmp_path / "own.toml"
    profile = cluster.profile
    file.write_text(f'market = "{profile.market}"\nledger = "{profile.ledger}"\nchain_id = "{profile.chain_id}"\n'
                    'key_file = "delegate.key"\n')
    (tmp_path / "delegate.key").write_text(key.secret.hex())
    granted = here("key", "delegate", key.public.hex())
    payer = granted.stdout.split("--payer ")[1].strip()
    words = ("task", "submit", "noop", "jobs=1", "--reward", "1.0", "--profile", str(file))
    assert "INSUFFICIENT_FUNDS" in here(*words).stderr
    task = json.loads(here(*words, "--payer", payer, "--wait", "--json").stdout)
    assert (task["status"], task["payer"], task["customer"]) == ("completed", payer, key.address)
    assert here("key", "delegate", key.public.hex(), "--revoke").returncode == 0
    assert "UNAUTHORIZED" in here(*words, "--payer", payer).stderr
    assert "is not a public key" in here("key", "delegate", "abc").stderr


def test_the_authority_pauses_new_tasks_and_lets_them_on_again(here: Mesh) -> None:
    assert json.loads(here("authority", "pause", "--json").stdout) == {"paused": True}
    try:
        refused = here("task", "submit", "noop", "jobs=1")
        assert "PAUSED: the ledger refuses the order: the authority paused new escrows" in refused.stderr
    finally:
        assert "the chain is running" in here("authority", "resume").stdout
    assert here("task", "submit", "noop", "jobs=1", "--wait").returncode == 0


def test_what_does_not_fit_a_dispute_is_refused_in_words(here: Mesh) -> None:
    task_id = json.loads(here("task", "submit", "noop", "jobs=1", "--wait", "--json").stdout)["task_id"]
    assert "RESULT_NOT_FOUND" in here("dispute", "open", task_id, "7").stderr
    assert "DISPUTE_NOT_FOUND" in here("dispute", "show", "0" * 32).stderr
    assert "'maybe' is neither valid nor invalid" in here("dispute", "reveal", "0" * 32, "maybe", "--salt",
                                                           "0" * 64).stderr
    assert here("dispute", "list").stdout == "no disputes\n"


def test_a_worker_shows_its_reputation_with_the_grounds(here: Mesh) -> None:
    workers = json.loads(here("worker", "list", "--json").stdout)["workers"]
    shown = here("worker", "show", workers[0]["address"]).stdout
    assert "of 1000" in shown
    assert "results settled" in shown


def test_a_pool_is_opened_funded_used_and_emptied(here: Mesh) -> None:
    assert "active" in here("pool", "open", "frames", "--category", "rendering").stdout
    assert "5.0 CPC" in here("pool", "fund", "frames", "5.0").stdout
    task = json.loads(here("task", "submit", "noop", "jobs=1", "--reward", "2.0", "--pool", "frames", "--wait",
                           "--json").stdout)
    assert (task["status"], task["pool"]) == ("completed", "frames")
    (row,) = json.loads(here("pool", "list", "--category", "rendering", "--json").stdout)["pools"]
    assert (row["name"], row["balance"]) == ("frames", "3.0")
    assert "INSUFFICIENT_FUNDS" in here("pool", "withdraw", "frames", "9.0").stderr
    assert "0.0 CPC" in here("pool", "withdraw", "frames", "3.0").stdout
    assert "deactivated" in here("pool", "deactivate", "frames").stdout
    assert "POOL_INACTIVE" in here("task", "submit", "noop", "jobs=1", "--pool", "frames").stderr
    assert "POOL_NOT_FOUND" in here("pool", "activate", "flames").stderr
    kinds = [row["kind"] for row in json.loads(here("events", "--pool", "frames", "--json").stdout)["events"]]
    assert kinds[0] == "EVENT_KIND_POOL_OPENED"
    assert kinds[-1] == "EVENT_KIND_POOL_DEACTIVATED"
    assert {"EVENT_KIND_TASKS_ADDED", "EVENT_KIND_TASK_CLAIMED", "EVENT_KIND_TASK_SETTLED",
            "EVENT_KIND_TASK_ENDED"} <= set(kinds)


def test_events_and_webhooks_are_refused_in_words(here: Mesh) -> None:
    assert "'task-gone' is not a kind; known are tasks-added, " in here("events", "--kind", "task-gone").stderr
    assert "beyond the last event" in here("events", "--cursor", "999999999").stderr
    assert "leads to no address this market posts to" in here("webhook", "add", "http://localhost:1/").stderr
    assert here("webhook", "list").stdout == "no webhooks\n"


def test_a_model_with_terms_is_registered_shown_and_deactivated(here: Mesh, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w" * 100)
    digest = json.loads(here("artifact", "put", str(tmp_path / "weights"), "--json").stdout)["digest"]
    shown = here("model", "register", "toy", digest, "--price", "0.5", "--royalty", "10", "--memory", "1000")
    assert "0.5 CPC per task" in shown.stdout
    assert "10 % of the worker's share" in shown.stdout
    words = ("task", "submit", "noop", "jobs=1", "--model", "toy", "--reward")
    assert "below what model 'toy' asks: 0.5 CPC" in here(*words, "0.1").stderr
    assert here(*words, "1.0", "--wait").returncode == 0
    assert "deactivated" in here("model", "deactivate", "toy").stdout
    assert "MODEL_INACTIVE" in here(*words, "1.0").stderr
    assert "UNKNOWN_MODEL" in here("task", "submit", "noop", "jobs=1", "--model", "nothing").stderr
    assert "toy" in here("model", "list").stdout


def test_a_worker_sees_what_it_could_earn_on(here: Mesh) -> None:
    assert here("worker", "opportunities", "--types", "nothing-like-it").stdout == "nothing to do\n"
