"""`mesh explain` prints calls that buf really makes, and changes nothing itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client

Mesh = Callable[..., CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"


@pytest.fixture(scope="module")
def buf() -> str:
    """The folder with buf, installed as `make check-proto` does."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    if not (BUILD / "node_modules/.bin/buf").exists():
        subprocess.run(["make", "build/node_modules"], cwd=ROOT, check=True, timeout=170)
    return str(BUILD / "node_modules/.bin")


@pytest.fixture
def shell(buf: str, tmp_path: Path) -> Callable[[str], CompletedProcess[str]]:
    """Runs what was printed, as somebody would paste it: with `buf` and `mesh` on the PATH."""
    mesh = tmp_path / "bin" / "mesh"
    mesh.parent.mkdir()
    mesh.write_text(f'#!/bin/sh\nexec {sys.executable} -m computemesh.cli "$@"\n')
    mesh.chmod(0o755)
    environment = {**os.environ, "PATH": f"{mesh.parent}:{buf}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def run(script: str) -> CompletedProcess[str]:
        return subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, timeout=60,
                              env=environment, check=False)  # fmt: skip

    return run


def documents(text: str) -> list[Any]:
    """The JSON documents that stand one after the other in a text."""
    found, at = [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        document, at = json.JSONDecoder().raw_decode(text, at)
        found.append(document)
    return found


def test_the_printed_call_creates_the_task_that_explain_did_not(
    mesh: Mesh, cluster: Cluster, client: Client, shell: Callable[[str], CompletedProcess[str]]
) -> None:
    before = client.page(page_size=1).total
    explained = mesh("explain", "task", "submit", "noop", "jobs=3", "--reward", "2.5", profile=cluster.profile.path)
    assert explained.returncode == 0, explained.stderr
    assert "# explain has not made this call" in explained.stdout
    assert cluster.profile.api_key not in explained.stdout
    assert client.page(page_size=1).total == before
    ran = shell(explained.stdout)
    assert ran.returncode == 0, ran.stderr
    made = documents(ran.stdout)[-1]["task"]
    assert client.page(page_size=1).total == before + 1
    assert client.attach(made["taskId"]).wait(60).payload == {"jobs": 3}


def test_reads_streams_and_signed_tokens_run_as_printed(
    mesh: Mesh, cluster: Cluster, client: Client, shell: Callable[[str], CompletedProcess[str]]
) -> None:
    task_id = client.run("noop", {"jobs": 1}, timeout=60).task_id
    profile = cluster.profile.path
    for words, says in (
        (("task", "watch", task_id), "TASK_EVENT_KIND_ENDED"), (("ledger", "block", "latest"), "computeRoot"),
        (("worker", "list"), "jobsSettled"),
    ):  # fmt: skip
        explained = mesh("explain", *words, profile=profile)
        ran = shell(explained.stdout)
        assert (ran.returncode, says in ran.stdout) == (0, True), (explained.stdout, ran.stderr)
    drained = mesh("explain", "worker", "drain", cluster.plan.keys["worker-1"].address, profile=profile).stdout
    assert "mesh profile token --operator" in drained
    assert "WORKER_STATUS_READY" in mesh("worker", "list", "--json", profile=profile).stdout
    assert shell(drained.replace("DrainWorker", "ResumeWorker")).returncode == 0


def test_what_no_call_can_say_is_said(mesh: Mesh, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    profile = cluster.profile.path
    assert mesh("explain", "profile", "list", profile=profile).stdout == "# mesh profile list calls no service\n"
    for words in (("up", "--once"), ("worker", "join", "127.0.0.1:1"), ("profile", "set", "lab", "market=x:1")):
        assert "calls no service" in mesh("explain", *words, profile=profile).stdout
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / ".config").exists()
    put = mesh("explain", "artifact", "put", "file", profile=profile).stdout
    assert "is a stream in both directions" in put
    assert "# the call was answered with TASK_NOT_FOUND" in mesh("explain", "task", "get", "ab" * 32,
                                                                 profile=profile).stdout  # fmt: skip
    first = mesh("--profile", str(profile), "explain", "task", "list")
    assert f"mesh profile token --profile {profile}" in first.stdout
    assert mesh("explain", "explain", "task", profile=profile).returncode == 2
    assert mesh("explain", "task", "get", "ab", profile=profile).returncode == 2
    assert mesh("explain", "task", "list").returncode == 1
