"""A client written in another language, from the contracts alone, believes nothing and completes a task."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from computemesh.cli.cluster import Cluster
from tests.client.npm import ROOT, installed


@pytest.fixture(scope="module")
def program() -> Path:
    return installed("node") / "publish.js"


def run(program: Path, cluster: Cluster, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    profile = cluster.profile
    environment = {
        **os.environ, "COMPUTEMESH_PROTO": str(ROOT / "proto"), "COMPUTEMESH_API_KEY": profile.api_key,
        "COMPUTEMESH_VKEY": profile.ledger_vkey, **variables,
    }  # fmt: skip
    command = ["node", str(program), "--market", profile.market, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def test_node_publishes_watches_and_verifies_the_inclusion_proof_itself(program: Path, cluster: Cluster) -> None:
    result = run(program, cluster)
    assert result.returncode == 0, result.stderr
    assert "1 of 1 jobs settled" in result.stdout
    assert "verified: checkpoint of computemesh-local/blocks" in result.stdout


def test_node_refuses_a_result_with_one_flipped_bit(program: Path, cluster: Cluster) -> None:
    result = run(program, cluster, "--tamper")
    assert result.returncode == 1
    assert "NOT verified" in result.stderr
    assert "verified:" not in result.stdout


def test_node_refuses_a_checkpoint_of_another_key(program: Path, cluster: Cluster) -> None:
    from computemesh.trust.checkpoint import NoteSigner

    other = NoteSigner(cluster.profile.ledger_vkey.split("+")[0], b"\x02" * 32).vkey
    result = run(program, cluster, COMPUTEMESH_VKEY=other)
    assert result.returncode == 1
    assert "no signature of the trusted key" in result.stderr


def test_node_says_what_the_market_refused(program: Path, cluster: Cluster) -> None:
    result = run(program, cluster, "--size", "0")
    assert result.returncode == 1
    assert "matrix_size must be" in result.stderr
    assert run(program, cluster, COMPUTEMESH_API_KEY="").returncode == 1
