"""The journal of administrative acts: what it holds, and that no line of it can be changed unseen."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from computemesh.cli.cluster import Cluster
from computemesh.service import journal
from computemesh.service.auth import read_token
from computemesh.trust.errors import DigestMismatch, NotFound
from computemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc, worker_pb2, worker_pb2_grpc
from tests.conftest import Mesh


def test_every_change_of_a_line_is_seen(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        heads = list(pool.map(lambda at: journal.record(tmp_path, "drain", f"cpc1{at}", worker="w"), range(12)))
    file = tmp_path / journal.NAME
    sound = file.read_bytes()
    assert {found for _, found in journal.read(file)} == set(heads)
    lines = sound.splitlines(keepends=True)
    for at in range(11):
        for other in (lines[:at] + lines[at + 1 :], [*lines[: at + 1], lines[at], *lines[at + 1 :]],
                      [*lines[:at], lines[at].replace(b"cpc1", b"cpc2"), *lines[at + 1 :]]):  # fmt: skip
            file.write_bytes(b"".join(other))
            with pytest.raises(DigestMismatch, match="line"):
                list(journal.read(file))
    with pytest.raises(NotFound):
        list(journal.read(tmp_path / "none"))


def test_half_a_line_that_a_crash_left_does_not_end_the_journal(tmp_path: Path) -> None:
    journal.record(tmp_path, "drain", "a")
    with (tmp_path / journal.NAME).open("ab") as file:
        file.write(b'{"at_ms": 17')
    journal.record(tmp_path, "resume", "a")
    assert [act["act"] for act, _ in journal.read(tmp_path / journal.NAME)] == ["drain", "unreadable", "resume"]


def test_a_cut_end_is_seen_by_who_kept_the_head(tmp_path: Path, mesh: Mesh) -> None:
    for _ in range(3):
        journal.record(tmp_path, "mint", "a")
    file = tmp_path / journal.NAME
    head = json.loads(mesh("audit", "verify", str(file), "--json").stdout)["head"]
    assert mesh("audit", "verify", str(file), "--head", head).returncode == 0
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))
    assert mesh("audit", "verify", str(file)).returncode == 0
    cut = mesh("audit", "verify", str(file), "--head", head)
    assert cut.returncode != 0
    assert head in cut.stderr


def acts(folder: Path) -> list[dict]:
    return [act for act, _ in journal.read(folder / journal.NAME)]


def test_drains_money_and_tokens_are_noted_with_who_did_them(cluster: Cluster, mesh: Mesh) -> None:
    profile, keys = cluster.profile.path, cluster.plan.keys
    assert mesh("ledger", "faucet", "1.5", profile=profile).returncode == 0
    token = mesh("profile", "token", "--read-only", "--minutes", "5", profile=profile).stdout.strip()
    now_ms = time.time_ns() // 1_000_000
    read = read_token(token, cluster.profile.chain_id, now_ms)
    assert (read.key, read.read_only) == (keys["customer"].public, True)
    assert 0 < read.expires_ms - now_ms <= 300_000
    operator = mesh("profile", "token", "--operator", profile=profile).stdout.strip()
    request = {"worker": keys["worker-1"].address}
    with grpc.insecure_channel(cluster.address("orchestrator")) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        for name in ("Drain", "Resume"):
            message = getattr(orchestrator_pb2, f"{name}WorkerRequest")(**request)
            getattr(stub, f"{name}Worker")(message, metadata=[("authorization", f"Bearer {operator}")], timeout=20)
    with grpc.insecure_channel(cluster.address("worker-1")) as channel:
        worker_pb2_grpc.WorkerServiceStub(channel).Resume(worker_pb2.ResumeRequest(), timeout=20)
    noted = {act["act"]: act for act in acts(cluster.data)}
    assert noted["mint"]["by"] == keys["authority"].address
    assert noted["mint"]["amount_units"] == 1_500_000
    assert {act["scope"] for act in acts(cluster.data) if act["act"] == "token"} == {"all", "read-only"}
    assert [(act["act"], act["by"], act["worker"]) for act in acts(cluster.data / "orchestrator")][-2:] == [
        (name, keys["orchestrator"].address, request["worker"]) for name in ("drain", "resume")]
    assert acts(cluster.data / "worker-1")[-1]["act"] == "resume"
    text = b"".join(path.read_bytes() for path in cluster.data.rglob(journal.NAME)).decode()
    for secret in (token, operator, cluster.plan.api_key, *(key.secret.hex() for key in keys.values())):
        assert secret not in text
