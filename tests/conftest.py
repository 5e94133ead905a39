"""What tests of several rooms share: one real cluster for the whole session, started when first asked for."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from tests import databases

ROOT = Path(__file__).resolve().parent.parent
Mesh = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=databases.POSTGRES)
def postgres() -> Iterator[None]:
    """The server that every service keeps its tables in, where the tests are run so."""
    server = databases.Server().start()
    os.environ[databases.URL] = server.url
    yield
    server.remove()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Ledger, market, orchestrator, two workers and an edge on free ports. Tests leave it running as they found it."""
    with Cluster(tmp_path_factory.mktemp("cluster"), workers=2, port_base=0, edge_port=0) as running:
        yield running


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    """A client of the cluster, calling with its API key."""
    with Client(cluster.profile) as connected:
        yield connected


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mesh:
    """Runs the `mesh` command in an empty folder without any profile: `mesh("task", "list", profile=...)`.

    In this process, which saves half a second of imports each time; `mesh_process` has the real thing.
    """
    from computemesh.cli.main import main

    monkeypatch.chdir(tmp_path)
    for name, value in _environment(tmp_path).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, profile: str | None = None) -> subprocess.CompletedProcess[str]:
        if profile is None:
            monkeypatch.delenv("COMPUTEMESH_PROFILE", raising=False)
        else:
            monkeypatch.setenv("COMPUTEMESH_PROFILE", profile)
        monkeypatch.setattr(sys, "argv", ["mesh", *arguments])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
            main()
        status = caught.value.code or 0
        assert isinstance(status, int)
        return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def mesh_process(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the `mesh` command as a process of its own in an empty folder."""

    def start(*arguments: str, profile: str | None = None) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "COMPUTEMESH_PROFILE"}
        environment |= _environment(tmp_path) | ({"COMPUTEMESH_PROFILE": profile} if profile else {})
        # Ctrl-C must mean something to it also where the tests run in the background, which ignores SIGINT.
        return subprocess.Popen(
            ["env", "--default-signal=INT", sys.executable, "-m", "computemesh.cli", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment,
        )  # fmt: skip

    return start


def _environment(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "120", "TERM": "dumb"}
