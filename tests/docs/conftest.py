"""Where the documents' commands run: a folder with what they speak of, at a live cluster."""

from __future__ import annotations

import os
import shlex
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.v1 import orchestrator_pb2

ROOT = Path(__file__).resolve().parents[2]
MODEL = """import jax.numpy as jnp


def score(x, w):
    for i in range(16):
        x = jnp.tanh(x @ w[i] / 22.6)
    return x
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Path:
    """A working folder: the examples, some files, and `data`, with a copy of the cluster's ledger."""
    work = tmp_path_factory.mktemp("documents")
    (work / "examples").symlink_to(ROOT / "examples")
    (work / "model").mkdir()
    (work / "model" / "weights").write_bytes(b"weights")
    (work / "scene.glb").write_bytes(b"scene")
    (work / "model.py").write_text(MODEL)
    (work / "tasks.jsonl").write_text('{"challenge_type": "noop", "payload": {"jobs": 2}, "reward": "1.0"}\n')
    ledger = work / "data" / "ledger"
    ledger.mkdir(parents=True)
    (work / "data" / "ledger.toml").write_text((cluster.data / "ledger.toml").read_text())
    for path in (cluster.data / "ledger").glob("*.sqlite"):
        with sqlite3.connect(path) as source, sqlite3.connect(ledger / path.name) as copy:
            source.backup(copy)
    return work


@pytest.fixture(scope="module")
def functions(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A worker that offers examples/functions, started as the documents say."""
    words = ["worker", "join", cluster.profile.orchestrator, "--types", "function", "--platform", "cpu",
             "--data", str(tmp_path_factory.mktemp("joined")),
             "--functions", "examples/functions/text_service.py"]  # fmt: skip
    worker = subprocess.Popen([sys.executable, "-m", "computemesh.cli", *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    with Client(cluster.profile) as client:
        while not any(
            one.capabilities.functions
            for one in client.orchestrator("ListWorkers", orchestrator_pb2.ListWorkersRequest()).workers
        ):
            assert worker.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
    yield
    worker.terminate()
    worker.wait(30)


@pytest.fixture(scope="module")
def bash(folder: Path, cluster: Cluster) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a shell command in the folder, with `mesh` and `python` on the PATH."""
    programs = folder / "bin"
    programs.mkdir()
    for name, words in (("mesh", "-m computemesh.cli"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                   "COMPUTEMESH_PROFILE": cluster.profile.path, "HOME": str(folder)}  # fmt: skip

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-e", "-c", command], cwd=folder, env=environment, capture_output=True,
                              text=True, timeout=170, check=False)  # fmt: skip

    return run


def write_arrays(path: Path) -> None:
    """The inputs of the program of docs/task-types.md: 256 rows, and weights that every item gets whole."""
    random = np.random.default_rng(0)
    rows, weights = random.normal(size=(256, 64, 512)), random.normal(size=(16, 512, 512))
    np.savez(path, arg0=rows.astype("float32"), arg1=weights.astype("float32"))


def write_ring(path: Path) -> None:
    """200 bodies on a circle around none, as the start of docs/task-types.md has them."""
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    position = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    velocity = np.stack([-np.sin(angle), np.cos(angle), 0 * angle], axis=1)
    np.savez(path, position=position, velocity=velocity, mass=np.full(200, 0.001))
