"""`mesh` as people use it for money and trust, against a real cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from computemesh.cli.cluster import Cluster

Mesh = Callable[..., CompletedProcess[str]]


@pytest.fixture
def here(cluster: Cluster, mesh: Mesh) -> Mesh:
    """`mesh` with the cluster's profile."""
    return lambda *arguments: mesh(*arguments, profile=cluster.profile.path)


def test_a_file_of_tasks_is_published_line_by_line(here: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"challenge_type": "noop", "payload": {"jobs": 2}, "reward": "1.0"}\n\n'
                    '{"challenge_type": "noop", "payload": {"jobs": 1}, "reward": "999999999.0", "deadline": "+1h"}\n')
    result = here("task", "submit", "--batch", str(file), "--json")
    first, dear = json.loads(result.stdout)["results"]
    assert result.returncode == 1
    assert first["task"]["reward"] == "1.0"
    assert (dear["task"], dear["reason"]) == (None, "INSUFFICIENT_FUNDS")
    file.write_text('{"challenge_type": "noop", "rewrad": "1.0"}')
    wrong = here("task", "submit", "--batch", str(file))
    assert "tasks[0]: rewrad is not a field of a task; known are challenge_type" in wrong.stderr


def test_a_customer_confirms_the_answer_it_waits_for(here: Mesh) -> None:
    words = ("task", "submit", "noop", "jobs=2", "--reward", "1.0", "--delivery", "manual", "--confirm-window", "1h")
    task_id = json.loads(here(*words, "--json").stdout)["task_id"]
    rows: list[dict[str, object]] = []
    for _ in range(200):
        rows = json.loads(here("task", "answers", task_id, "--json").stdout)["answers"]
        if len(rows) == 2:
            break
    assert [row["job"] for row in rows] == [0, 1]
    late = here("task", "retract", task_id)
    assert "TASK_ALREADY_CLAIMED" in late.stderr
    assert "`mesh task cancel` ends a task somebody works on" in late.stderr
    assert json.loads(here("task", "get", task_id, "--json").stdout)["status"] == "in_progress"
    stranger = here("task", "confirm", task_id, "--worker", "cpc1nobody")
    assert "TASK_NOT_CLAIMED" in stranger.stderr
    assert here("task", "confirm", task_id).returncode == 0
    watched = here("task", "watch", task_id, "--timeout", "60", "--json")
    assert json.loads(watched.stdout)["status"] == "completed", watched.stderr
    assert "has no answers that wait for you" in here("task", "confirm", task_id).stderr
