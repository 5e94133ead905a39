"""The edge of the session's cluster, and edges of their own for tests that configure one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.cli.health import ready
from computemesh.cli.plan import free_ports, write_toml
from edge.config import Config

ROOT = Path(__file__).resolve().parents[2]
EdgeStarter = Callable[..., str]


@pytest.fixture
def url(cluster: Cluster) -> str:
    return f"http://{cluster.address('edge')}"


@pytest.fixture
def start_edge(cluster: Cluster, tmp_path: Path) -> Iterator[EdgeStarter]:
    """Starts an edge before the session's cluster and returns its HOST:PORT; keywords are its configuration."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**values: Any) -> str:
        address = f"127.0.0.1:{free_ports(1)[0]}"
        config = Config(str(tmp_path / "edge"), cluster.address("market"), cluster.address("ledger"),
                        cluster.address("orchestrator"), address, advertise=address, **values)  # fmt: skip
        write_toml(tmp_path / "edge.toml", dataclasses.asdict(config))
        child = subprocess.Popen([sys.executable, "-m", "edge", "--config", str(tmp_path / "edge.toml")], cwd=ROOT)
        started.append(child)
        until = time.monotonic() + 60
        while not ready("edge", address, 1.0):
            assert child.poll() is None, "the edge ended"
            assert time.monotonic() < until, "the edge does not listen"
            time.sleep(0.05)
        return address

    yield start
    for child in started:
        child.terminate()
        assert child.wait(30) == 0, "an edge that is asked to stop ends in order"
