"""The text of a running prompt, as its customer sees it come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from tests.workloads import inference_models


@pytest.mark.timeout(240)
def test_a_running_prompts_text_is_seen_before_its_end_and_begins_the_result(tmp_path: Path) -> None:
    inference_models.gpt2(tmp_path / "gpt2", n_layer=1)
    with Cluster(tmp_path / "mesh", workers=1, port_base=0) as cluster, Client(cluster.profile) as client:
        payload = {"model_id": client.put_artifact(tmp_path / "gpt2").digest, "prompt": "A worker", "max_tokens": 384,
                   "temperature": 1.0, "seed": "partial", "model_parameters": 1_000_000}  # fmt: skip
        handle = client.submit("inference", payload, reward="1.0")
        events = list(handle.watch(timeout=150))
        assert events[-1].task.status == "completed", events[-1].task
        seen = [event for event in events if event.partial]
        assert seen
        assert not any(event.task.ended for event in seen)
        (path,) = client.download(handle.task_id, tmp_path / "files")
        text = json.loads(path.read_text("utf-8"))["text"]
        assert all(text.startswith(event.partial) for event in seen)
        assert len(seen[0].partial) < len(text)
        # Kept nowhere: whoever watches later sees the same durable events without it.
        again = list(client.watch(handle.task_id))
        assert [e.cursor for e in again] == [e.cursor for e in events if not e.partial]
        assert not any(event.partial for event in again)
