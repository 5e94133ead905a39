"""The `mesh` command against a real cluster: exit statuses, one JSON document, and errors people can act on."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.trust.identity import PrivateKey

Mesh = Callable[..., CompletedProcess[str]]
Start = Callable[..., Popen[str]]


@pytest.fixture
def here(cluster: Cluster, mesh: Mesh) -> Mesh:
    """`mesh` with the cluster's profile."""
    return lambda *arguments: mesh(*arguments, profile=cluster.profile.path)


@pytest.fixture(scope="module")
def done(cluster: Cluster) -> Iterator[str]:
    """A completed task of two jobs."""
    with Client(cluster.profile) as client:
        task = client.run("synthetic", {"matrix_size": 256, "jobs": 2}, "10.0", timeout=120)
        assert task.status == "completed", task.status_detail
        yield task.task_id


def name_of(worker: dict[str, Any]) -> str:
    """As it calls itself, empty once it has left."""
    return str(worker.get("capabilities", {}).get("display_name", ""))


def document(result: CompletedProcess[str]) -> Any:
    """The one JSON document on stdout: anything else there fails the test."""
    return json.loads(result.stdout)


def test_submit_and_wait_completes_and_prints_one_document(cluster: Cluster, mesh_process: Start) -> None:
    words = ("task", "submit", "synthetic", "matrix_size=128", "--reward", "2.5", "--wait", "--json")
    process = mesh_process(*words, profile=cluster.profile.path)
    out, err = process.communicate(timeout=120)
    result = CompletedProcess(words, process.returncode, out, err)
    assert result.returncode == 0, result.stderr
    task = document(result)
    assert (task["status"], task["reward"], task["jobs_settled"]) == ("completed", "2.5", task["jobs_total"])
    assert len(task["result_hash"]) == 64
    assert result.stderr == ""


def test_the_same_request_id_is_the_same_task(here: Mesh) -> None:
    words = ("task", "submit", "noop", "jobs=1", "--deadline", "+1h", "--json")
    request_id = "0198c0de-0000-7000-8000-00000000000a"
    deadline = str(json.loads(here(*words).stdout)["deadline"])
    same = ("task", "submit", "noop", "jobs=1", "--deadline", deadline, "--request-id", request_id, "--json")
    assert document(here(*same))["task_id"] == document(here(*same))["task_id"]
    other = here("task", "submit", "noop", "jobs=2", "--deadline", deadline, "--request-id", request_id, "--json")
    assert (other.returncode, document(other)["error"]["reason"]) == (1, "ID_CONFLICT")


BAD_INPUT = [
    (("synthetic", "matrix_size=0"), "payload.matrix_size", r"not 0\b"),
    (("synthetic", "matrix_size=-1"), "payload.matrix_size", r"not -1\b"),
    (("synthetic", "matrix_size=1000000000"), "payload.matrix_size", "not 1000000000"),
    (("synthetic", "matrix_size=abc"), "payload.matrix_size", "not 'abc'"),
    (("synthetic",), "payload.matrix_size", "missing"),
    (("synthetic", "matrix_size=64", "--reward", "-1"), "reward", "'-1' must not be negative"),
    (("synthetic", "matrix_size=64", "--reward", "1e400"), "reward", "'1e400' must be plain decimal"),
    (("synthetic", "matrix_size=64", "--reward", "0.0000000001"), "reward", "10 decimals, at most 6"),
    (("synthetic", "matrix_size=64", "--deadline", "1000"), "deadline", "1000 is in the past"),
    (("synthetic", "matrix_size=64", "--deadline", "1893456000000"), "deadline", "1893456000000 is"),
    (("synthetic", "matrix_size=64", "--priority", "12"), "priority", "12"),
    (("rendring", "a=1"), "challenge_type", "'rendring' is not a task type; known are"),
]


@pytest.mark.parametrize(("words", "field", "says"), BAD_INPUT, ids=[" ".join(row[0]) for row in BAD_INPUT])
def test_bad_input_names_field_value_and_limit(here: Mesh, words: tuple[str, ...], field: str, says: str) -> None:
    result = here("task", "submit", *words, "--json")
    assert result.returncode == 1
    error = document(result)["error"]
    assert error["reason"] == "INVALID_ARGUMENT"
    assert field in [one["field"] for one in error["violations"]], error
    assert re.search(says, error["message"]), error["message"]
    text = here("task", "submit", *words)
    assert text.returncode == 1
    assert text.stdout == ""
    assert field in text.stderr
    assert "Traceback" not in text.stderr
    assert len(text.stderr.splitlines()) <= 3


def test_too_little_money_says_what_is_there_and_what_to_do(here: Mesh) -> None:
    result = here("task", "submit", "noop", "jobs=1", "--reward", "99999999")
    assert result.returncode == 1
    assert "INSUFFICIENT_FUNDS" in result.stderr
    assert "faucet" in result.stderr


def test_the_task_of_another_customer_is_not_shown(here: Mesh, cluster: Cluster) -> None:
    with Client(market=cluster.profile.market, key=cluster.plan.keys["customer"]) as customer:
        other = customer.submit("noop", {"jobs": 1}).task_id
    for command in ("get", "watch", "cancel", "receipt"):
        result = here("task", command, other)
        assert result.returncode == 1
        assert "UNAUTHORIZED" in result.stderr, command


@pytest.mark.parametrize(
    "words",
    [
        (), ("nothing",), ("task",), ("task", "get"), ("task", "submit", "noop", "jobs"), ("task", "list", "--nix"),
        ("task", "submit", "noop", "--priority", "high"), ("ledger", "block", "-3"), ("ledger", "block", "x"),
        ("worker", "join", "nohost"), ("task", "submit", "noop", "--deadline", "tomorrow"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_exits_2_and_leaves_stdout_to_documents(here: Mesh, words: tuple[str, ...]) -> None:
    result = here(*words, *(("--json",) if len(words) > 1 else ()))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_no_profile_says_what_to_do(mesh: Mesh) -> None:
    result = mesh("task", "list")
    assert result.returncode == 1
    assert "mesh up" in result.stderr
    assert document(mesh("task", "list", "--json"))["error"]["reason"] == "PROFILE_NOT_FOUND"


def test_a_mesh_that_does_not_run_is_named(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "gone.toml").write_text('market = "127.0.0.1:1"\napi_key = "k"\n')
    result = mesh("--profile", str(tmp_path / "gone.toml"), "task", "list")
    assert result.returncode == 1
    assert "market at 127.0.0.1:1 cannot be reached" in result.stderr
    assert "mesh up" in result.stderr


def test_get_list_and_watch_agree(here: Mesh, done: str) -> None:
    task = document(here("task", "get", done, "--json"))
    listed = document(here("task", "list", "--status", "completed", "--limit", "1000", "--json"))
    assert task in listed["tasks"]
    watched = document(here("task", "watch", done, "--json"))
    assert watched["status"] == "completed"
    cursors = [event["cursor"] for event in watched["events"]]
    assert cursors == sorted(set(cursors))
    assert watched["events"][-1]["task"] == task
    rest = document(here("task", "watch", done, "--cursor", str(cursors[0]), "--json"))
    assert [event["cursor"] for event in rest["events"]] == cursors[1:]


def test_list_pages_until_the_end(here: Mesh, done: str) -> None:
    seen: list[str] = []
    token: tuple[str, ...] = ()
    while True:
        page = document(here("task", "list", "--limit", "2", *token, "--json"))
        seen += [task["task_id"] for task in page["tasks"]]
        if not page["next_page_token"]:
            break
        token = ("--page-token", page["next_page_token"])
    assert len(seen) == len(set(seen)) == page["total"]
    assert here("task", "list", "--page-token", "nonsense").returncode == 1


def test_cancelling_an_ended_task_fails(here: Mesh, done: str) -> None:
    result = here("task", "cancel", done, "--json")
    assert (result.returncode, document(result)["error"]["reason"]) == (1, "INVALID_STATE")


def test_a_task_that_does_not_complete_is_status_1(here: Mesh) -> None:
    submitted = document(here("task", "submit", "synthetic", "matrix_size=1024", "iterations=500", "--json"))
    cancelled = document(here("task", "cancel", submitted["task_id"], "--json"))
    assert cancelled["status"] == "cancelled"
    assert cancelled["refunded"] == "10.0"
    assert here("task", "watch", submitted["task_id"], "--json").returncode == 1


def test_a_receipt_verifies_online_offline_and_replayed(here: Mesh, mesh: Mesh, done: str, tmp_path: Path) -> None:
    assert document(here("verify", done, "--json"))["ok"] is True
    assert here("task", "receipt", done, "--out", "r.json").returncode == 0
    offline = mesh("verify", "r.json", "--json")  # no profile, no network
    assert offline.returncode == 1  # consistent, but nobody said whose log it is
    assert (document(offline)["trusted_key"], document(offline)["consistent"]) == (False, True)
    assert mesh("verify", "r.json", "--allow-unknown-log").returncode == 0
    replayed = here("verify", "r.json", "--replay", "--json")
    assert replayed.returncode == 0, replayed.stdout
    checks = {check["name"]: check for check in document(replayed)["checks"]}
    assert checks["jobs[1].replay"]["ok"]
    assert "recomputed" in checks["jobs[1].replay"]["detail"]


def test_a_receipt_changed_in_one_place_is_refused(here: Mesh, mesh: Mesh, done: str, tmp_path: Path) -> None:
    receipt = json.loads(here("task", "receipt", done).stdout)
    receipt["payload"]["matrix_size"] = 512
    (tmp_path / "changed.json").write_text(json.dumps(receipt))
    result = mesh("verify", "changed.json", "--json")
    assert result.returncode == 1
    assert [check["name"] for check in document(result)["checks"] if not check["ok"]] == ["payload"]


def test_a_receipt_of_another_log_is_refused(here: Mesh, done: str, tmp_path: Path) -> None:
    from computemesh.trust.checkpoint import NoteSigner

    here("task", "receipt", done, "--out", "r.json")
    other = NoteSigner("computemesh-local/blocks", b"\x01" * 32).vkey
    assert here("verify", "r.json", "--vkey", other).returncode == 1


def test_verify_of_nonsense_is_an_error_without_a_traceback(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text("{")
    for name in ("n.json", "missing.json", "."):
        result = mesh("verify", name)
        assert (result.returncode, "Traceback" in result.stderr) == (1, False)


def test_the_block_of_a_result_has_a_compute_root_and_a_proof(here: Mesh, done: str) -> None:
    height = document(here("task", "get", done, "--json"))["block_height"]
    block = document(here("ledger", "block", str(height), "--full", "--json"))
    assert re.fullmatch("[0-9a-f]{64}", block["compute_root"])
    assert len(block["legacy_poc_root"]) == 64
    assert done in [result["task_id"] for result in block["results"]]
    proof = document(here("ledger", "proof", done, "1", "--json"))
    assert proof["ok"] is True
    assert here("ledger", "proof", done, "99").returncode == 1
    assert here("ledger", "block", "999999999").returncode == 1


def test_supply_is_conserved_and_the_faucet_mints(here: Mesh, cluster: Cluster) -> None:
    before = document(here("ledger", "supply", "--json"))
    address = PrivateKey.generate().address
    assert document(here("ledger", "faucet", "1.25", address, "--json"))["account"]["balance"] == "1.25"
    after = document(here("ledger", "supply", "--json"))
    assert after["minted_units"] - before["minted_units"] == 1_250_000
    assert before["conserved"] is after["conserved"] is True
    for amount in ("abc", "0", "0.0000001"):
        assert here("ledger", "faucet", amount, address).returncode == 1
    assert document(here("ledger", "account", "customer", "--json"))["address"] == cluster.plan.keys["customer"].address
    assert document(here("ledger", "checkpoint", "--json"))["trusted_key"] is True


def test_workers_are_listed_drained_and_resumed(here: Mesh) -> None:
    workers = document(here("worker", "list", "--json"))["workers"]
    assert {name_of(worker) for worker in workers} >= {"worker-1", "worker-2"}
    drained = document(here("worker", "drain", "worker-2", "--json"))
    assert drained["status"] == "WORKER_AGENT_STATUS_DRAINING"
    assert here("task", "submit", "noop", "jobs=5", "--wait").returncode == 0
    resumed = document(here("worker", "drain", "worker-2", "--resume", "--json"))
    assert resumed["status"] == "WORKER_AGENT_STATUS_CONNECTED"


def test_a_worker_joins_with_one_command_and_leaves_in_order(
    here: Mesh, cluster: Cluster, mesh_process: Start, tmp_path: Path
) -> None:
    address = cluster.profile.orchestrator
    process = mesh_process("worker", "join", address, "--data", "w", "--name", "joined", "--types", "noop")
    try:
        until = time.monotonic() + 60
        while not (mine := [one for one in listed(here) if name_of(one) == "joined"]):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.3)
        assert mine[0]["capabilities"]["challenge_types"] == ["noop"]
        assert (tmp_path / "w" / "worker.key").stat().st_mode & 0o777 == 0o600
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert mine[0]["address"] in err


def listed(here: Mesh) -> list[dict[str, Any]]:
    workers: list[dict[str, Any]] = document(here("worker", "list", "--json"))["workers"]
    return workers


def test_help_is_quick_and_imports_neither_grpc_nor_jax(mesh_process: Start) -> None:
    process = mesh_process("--help")
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "worker" in out
    import subprocess
    import sys

    probe = "import sys, computemesh.cli.main; print(sorted({'grpc', 'jax', 'numpy', 'pydantic'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
