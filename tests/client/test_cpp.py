"""A C++ client, from the contracts and docs/PROTOCOL.md: signs its order itself, believes nothing, completes a task."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.trust.checkpoint import NoteSigner
from tests.client.npm import ROOT

BUILD = ROOT / "build" / "cpp-example"
NEEDED = ("make", "g++", "protoc", "grpc_cpp_plugin", "pkg-config")
# Building takes half a minute of CPU, its packages a few hundred megabytes.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def program() -> Path:
    """The example, built in a folder that is kept between runs."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (deploy/debian-client-packages.txt)")
    made = subprocess.run(["make", "-s", "-j2", f"BUILD={BUILD}"], cwd=ROOT / "examples" / "cpp", capture_output=True,
                          text=True, timeout=800, check=False)  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "warning" not in made.stderr
    return BUILD / "publish"


def run(program: Path, cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    profile = cluster.profile
    command = [program, "--key", cluster.data / "keys" / "customer.key", "--market", profile.market, "--vkey",
               profile.ledger_vkey, *arguments]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False, env=dict(os.environ))


def test_cpp_signs_publishes_watches_and_verifies_the_inclusion_proof_itself(program: Path, cluster: Cluster) -> None:
    result = run(program, cluster)
    assert result.returncode == 0, result.stderr
    assert "1 of 1 jobs settled" in result.stdout
    assert "verified: checkpoint of computemesh-local/blocks" in result.stdout


def test_cpp_refuses_a_result_with_one_flipped_bit(program: Path, cluster: Cluster) -> None:
    result = run(program, cluster, "--tamper")
    assert result.returncode == 1
    assert "NOT verified: the result is not under the block's compute root" in result.stderr
    assert "verified:" not in result.stdout


def test_cpp_refuses_a_checkpoint_of_another_key(program: Path, cluster: Cluster) -> None:
    other = NoteSigner(cluster.profile.ledger_vkey.split("+")[0], b"\x02" * 32).vkey
    result = run(program, cluster, "--vkey", other)
    assert result.returncode == 1
    assert "no signature of the trusted key" in result.stderr


def test_cpp_says_what_was_refused(program: Path, cluster: Cluster) -> None:
    assert "matrix_size must be" in run(program, cluster, "--size", "0").stderr
    assert "at most 6 decimals" in run(program, cluster, "--reward", "0.0000001").stderr
    assert "--key FILE is needed" in run(program, cluster, "--key", "").stderr
