"""REST from a shell: curl and jq publish a task, follow it, and get what its digests name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from computemesh.cli.cluster import Cluster
from computemesh.client import Client

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "curl" / "publish.sh"


def run(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COMPUTEMESH_URL": f"http://{cluster.address('edge')}"}
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, timeout=120, env=environment)


def test_curl_publishes_follows_fetches_and_lists(cluster: Cluster, client: Client, tmp_path: Path) -> None:
    done = run(cluster, str(tmp_path / "results"))
    assert done.returncode == 0, done.stdout + done.stderr
    task_id = done.stdout.split()[1]
    assert client.get(task_id).status == "completed"
    assert "TASK_STATUS_COMPLETED: 1 of 1 jobs settled" in done.stdout
    assert done.stdout.count("has the digest that the task names") == len(list((tmp_path / "results").iterdir())) > 1
    assert (tmp_path / "results" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert f"  {task_id[:12]} TASK_STATUS_COMPLETED 1.5" in done.stdout


def test_curl_says_what_was_refused(cluster: Cluster) -> None:
    refused = run(cluster, "nowhere", "ten")
    assert refused.returncode == 1
    assert "reward" in refused.stderr
    assert "published" not in refused.stdout
