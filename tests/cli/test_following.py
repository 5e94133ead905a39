"""Watching, logs and the live view: what is shown of a task while it runs."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import computemesh.cli.top
from computemesh.cli.cluster import Cluster
from computemesh.cli.following import Pace, duration
from computemesh.client import Client
from computemesh.client.model import TaskEvent
from tests.client.fake_market import event

Mesh = Callable[..., CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]


def at(seconds: float, settled: int, running: int = 1, total: int = 10) -> TaskEvent:
    made = TaskEvent.of(event(1))
    task = replace(made.task, jobs_settled=settled, jobs_running=running, jobs_total=total)
    return replace(made, time_ms=round(seconds * 1000), task=task)


def test_what_is_left_follows_from_the_mean_pace_since_the_first_job_ran() -> None:
    pace = Pace()
    assert [pace.eta_s(one) for one in (at(0, 0, 0), at(100, 0), at(110, 1), at(120, 4), at(130, 9))] == [
        None, None, 90.0, 30.0, pytest.approx(10 / 3, rel=0.01)]  # fmt: skip
    resumed = Pace()  # a watch that begins in the middle counts from there
    assert [resumed.eta_s(one) for one in (at(50, 6), at(60, 8))] == [None, 10.0]
    assert [duration(seconds) for seconds in (5, 89.6, 600, 9000)] == ["5 s", "90 s", "10 min", "2.5 h"]


def test_the_log_names_every_job_its_worker_and_the_end(mesh: Mesh, cluster: Cluster, client: Client) -> None:
    task_id = client.run("noop", {"jobs": 3}, timeout=60).task_id
    result = mesh("task", "logs", task_id, profile=cluster.profile.path)
    assert result.returncode == 0
    workers = [key.address for name, key in cluster.plan.keys.items() if name.startswith("worker")]
    settled = re.findall(r"job (\d+) +settled by (cpc1\w+), attempt 1, result [0-9a-f]{16}", result.stdout)
    assert {job for job, _ in settled} == {"0", "1", "2"}
    assert {worker for _, worker in settled} <= set(workers)
    assert "task       created" in result.stdout
    assert any(line.endswith("task       completed") for line in result.stdout.splitlines())


def test_the_log_of_a_running_task_ends_unless_followed(mesh: Mesh, cluster: Cluster, client: Client) -> None:
    handle = client.submit("synthetic", {"matrix_size": 1024, "iterations": 500})
    try:
        said = json.loads(mesh("task", "logs", handle.task_id, "--json", profile=cluster.profile.path).stdout)
        assert said["status"] in ("pending", "in_progress")
        assert said["lines"][0]["text"].startswith("created")
    finally:
        handle.cancel()
    followed = mesh("task", "logs", handle.task_id, "-f", profile=cluster.profile.path)
    assert followed.stdout.splitlines()[-1].partition("task ")[2].strip().startswith("cancelled")


def on_a_terminal(cluster: Cluster, folder: Path, *arguments: str) -> tuple[int, str]:
    """The exit status of a command whose three streams are a terminal, and what that showed."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COMPUTEMESH_PROFILE": cluster.profile.path, "PYTHONPATH": str(ROOT),
                   "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "computemesh.cli", *arguments], stdin=slave, stdout=slave,
                               stderr=slave, cwd=folder, env=environment)  # fmt: skip
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        shown += part
        if b"COMPUTE ROOT" in shown and arguments[0] == "top":
            process.terminate()
    os.close(master)
    return process.wait(60), shown.decode(errors="replace")


def test_a_watch_on_a_terminal_shows_a_table_of_jobs_and_then_the_task(
    cluster: Cluster, client: Client, tmp_path: Path
) -> None:
    handle = client.submit("noop", {"jobs": 2})
    status, shown = on_a_terminal(cluster, tmp_path, "task", "watch", handle.task_id)
    assert status == 0
    assert "LAST FAILURE" in shown
    assert "2 of 2 settled" in shown


def test_top_is_live_on_a_terminal_and_one_look_in_a_pipe(
    cluster: Cluster, mesh: Mesh, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.run("noop", {"jobs": 3}, timeout=60)
    _, shown = on_a_terminal(cluster, tmp_path, "top", "--interval", "0.2")
    assert "worker-1" in shown
    once = mesh("top", "--once", profile=cluster.profile.path)
    assert once.returncode == 0
    for part in ("results/s", "worker-1", "COMPUTE ROOT"):
        assert part in once.stdout
    monkeypatch.setattr(computemesh.cli.top, "WINDOW_MS", 600_000)  # however slow this machine is today
    look = json.loads(mesh("top", "--json", profile=cluster.profile.path).stdout)
    assert look["results_per_s"] >= 3 / 600
    assert look["block_height"] >= look["blocks"][0]["height"] > 0
