"""What tests of several rooms share: one real cluster for the whole session, started when first asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client

ROOT = Path(__file__).resolve().parent.parent
Mesh = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Ledger, market, orchestrator and two workers on free ports. Tests leave it running as they found it."""
    with Cluster(tmp_path_factory.mktemp("cluster"), workers=2, port_base=0) as running:
        yield running


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    """A client of the cluster, calling with its API key."""
    with Client(cluster.profile) as connected:
        yield connected


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    """Runs the `mesh` command in an empty folder without any profile: `mesh("task", "list", profile=...)`."""

    def run(*arguments: str, profile: str | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "COMPUTEMESH_PROFILE"}
        environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "120", "TERM": "dumb"}
        if profile is not None:
            environment["COMPUTEMESH_PROFILE"] = profile
        return subprocess.run(
            [sys.executable, "-m", "computemesh.cli", *arguments],
            capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=timeout, check=False,
        )  # fmt: skip

    return run
