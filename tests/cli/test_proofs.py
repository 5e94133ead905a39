"""What `mesh` leaves for strangers, from a real cluster: proofs, tiles and relay files, checked from the file alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from tests.verifiers.conftest import Verifier, go  # noqa: F401

Mesh = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def block(cluster: Cluster) -> tuple[str, int]:
    """(task, height of the block of its first result)."""
    with Client(cluster.profile) as client:
        task = client.run("synthetic", {"matrix_size": 128, "jobs": 3}, "3.0", timeout=120)
        assert task.status == "completed", task.status_detail
        return task.task_id, task.block_height


@pytest.fixture
def here(cluster: Cluster, mesh: Mesh) -> Mesh:
    return lambda *words: mesh(*words, profile=cluster.profile.path)


def test_proof_files_are_verified_by_us_and_by_go(
    cluster: Cluster, here: Mesh, mesh: Mesh, block: tuple[str, int], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    verifier: Verifier = request.getfixturevalue("go")
    words = ("ledger", "proof", block[0], "1", "--format", "tlog-proof", "--output", str(tmp_path / "out"), "--json")
    files = json.loads(here(*words).stdout)["files"]
    vkey = cluster.profile.ledger_vkey
    assert [Path(file).name.split(".", 1)[1] for file in files] == ["result.tlog-proof", "block.tlog-proof"]
    said = [mesh("verify", file, "--vkey", vkey).stdout for file in files]
    assert re.search(r"result of job 1 of task \w+\.\. is \d+ of \d+ in block \d+\nverified", said[0]), said[0]
    assert re.search(r"block \d+ is one of the log's \d+\nverified", said[1]), said[1]
    origins = [json.loads(mesh("verify", file, "--vkey", vkey, "--json").stdout)["origin"] for file in files]
    for file, origin in zip(files, origins, strict=True):
        assert verifier("proof", vkey, origin, file) == "ok"
        forged = tmp_path / "forged"
        forged.write_text(Path(file).read_text().replace("\nindex ", "\nindex 1", 1))
        refused = mesh("verify", str(forged), "--vkey", vkey)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "INVALID_PROOF" in refused.stderr
    unknown = mesh("verify", files[0])
    assert unknown.returncode == 1
    assert "--vkey" in unknown.stderr


def test_tiles_are_copied_once_and_go_accepts_each_tree(
    cluster: Cluster, here: Mesh, block: tuple[str, int], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    verifier: Verifier = request.getfixturevalue("go")
    folder, vkey = tmp_path / "blocks", cluster.profile.ledger_vkey
    first = json.loads(here("ledger", "tiles", "--output", str(folder), "--json").stdout)
    assert first["new"] == first["blocks"] > block[1]
    origin = f"{cluster.profile.chain_id}/blocks"
    assert verifier("tiles", vkey, origin, str(folder)) == "ok"
    assert verifier("tiles", vkey, f"{origin}/{block[1]}", str(folder / str(block[1]))) == "ok"
    again = json.loads(here("ledger", "tiles", "--output", str(folder), "--json").stdout)
    assert again["new"] == again["blocks"] - first["blocks"]
    shown = here("ledger", "checkpoint", "--block", str(block[1])).stdout
    assert shown.startswith((folder / str(block[1]) / "checkpoint").read_text())


def test_a_relay_file_is_signed_with_the_workers_keys_and_judged_offline(
    cluster: Cluster, here: Mesh, mesh: Mesh, block: tuple[str, int], tmp_path: Path
) -> None:
    file, vkey = str(tmp_path / "relay.json"), cluster.profile.ledger_vkey
    keys = [word for path in sorted(cluster.data.glob("worker-*/worker.key")) for word in ("--key", str(path))]
    assert len(keys) == 4
    assert here("ledger", "relay", str(block[1]), "--output", file, *keys).returncode == 0
    judged = mesh("ledger", "relay", "--check", file, "--vkey", vkey)
    assert judged.returncode == 0, judged.stdout
    assert "signed by their workers" in judged.stdout
    with Client(cluster.profile) as client:
        from computemesh.v1 import ledger_pb2

        roots = client.ledger("GetComputeRoot", ledger_pb2.GetComputeRootRequest(height=block[1]))
    assert json.loads(Path(file).read_text())["legacy_poc_root"] == roots.legacy_poc_root
    assert here("ledger", "relay", str(block[1]), "--output", file).returncode == 0
    unsigned = mesh("ledger", "relay", "--check", file, "--vkey", vkey)
    assert unsigned.returncode == 1
    assert "unsigned: cpc1" in unsigned.stdout
    empty = here("ledger", "relay", "0")
    assert empty.returncode == 1
    assert "nothing to relay" in empty.stderr
    assert here("ledger", "relay").returncode == 2


def test_a_task_cancelled_in_between_has_a_receipt_of_its_settled_jobs(
    cluster: Cluster, here: Mesh, mesh: Mesh, tmp_path: Path
) -> None:
    with Client(cluster.profile) as client:
        handle = client.submit("synthetic", {"matrix_size": 512, "jobs": 400}, "40.0")
        for event in handle.watch(timeout=120):
            if event.task.jobs_settled:
                break
        assert handle.cancel().status == "cancelled"
        task = client.get(handle.task_id)
        assert 0 < task.jobs_settled < task.jobs_total
    file = str(tmp_path / "part.json")
    assert here("task", "receipt", handle.task_id, "--out", file).returncode == 0
    judged = mesh("verify", file, "--vkey", cluster.profile.ledger_vkey)
    assert judged.returncode == 0, judged.stdout + judged.stderr
    shown = json.loads(Path(file).read_text())
    assert shown["partial"] is True
    assert f"PARTIAL: {len(shown['jobs'])} of 400 jobs" in judged.stdout
    Path(file).write_text(json.dumps({**shown, "partial": False}))
    whole = mesh("verify", file, "--vkey", cluster.profile.ledger_vkey)
    assert whole.returncode == 1
    assert f"{len(shown['jobs'])} of 400 jobs are present" in whole.stdout
