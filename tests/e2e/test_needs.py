"""A chain of jobs, each reading an artifact by its registered name and what the job before left."""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path

import pytest

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.trust.errors import InvalidArgument, NotFound
from computemesh.v1 import orchestrator_pb2

JOBS = 12
SALT = b"grain of salt"
OVERRIDES = {
    "orchestrator": {"preview_interval_ms": 300, "worker_lease_ms": 8000, "heartbeat_interval_ms": 500},
    "market": {"lease_ms": 6000, "heartbeat_interval_ms": 500},
}


def expected() -> bytes:
    found, before = b"", b""
    for _ in range(JOBS):
        before = b"".join(sha256(before + SALT + i.to_bytes(4, "big")).digest() for i in range(4))
        found += before
    return found


@pytest.mark.timeout(240)
def test_a_chain_of_jobs_survives_the_death_of_everybody_who_works_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chained = str(Path(__file__).parent / "chained")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [chained, os.environ.get("PYTHONPATH")])))
    with (Cluster(tmp_path / "mesh", workers=2, port_base=0, overrides=OVERRIDES) as cluster,
          Client(cluster.profile) as client):
        with pytest.raises((InvalidArgument, NotFound)):
            client.submit("chained", {"salt": "0" * 64, "jobs": JOBS}, reward="1.0")
        stored = client.put_artifact(SALT)
        client.register_model("salts/table", stored.digest)
        client.delete_artifact(stored.digest)
        handle = client.submit("chained", {"salt": "salts/table", "jobs": JOBS}, reward="1.0")
        assert handle.task.references == {"salts/table": stored.digest}
        assert handle.task.payload["salt"] == "salts/table"
        preview = None
        for victim, jobs in (("orchestrator", 3), ("worker-1", 6), ("worker-2", 7)):
            deadline = time.monotonic() + 60
            while (task := client.get(handle.task_id)).jobs_settled < jobs:
                preview = task.preview or preview
                assert time.monotonic() < deadline, task
                time.sleep(0.05)
            cluster.kill(victim)
            cluster.start_process(victim)
        task = handle.wait(timeout=150)
        assert (task.status, task.jobs_settled, task.status_detail) == ("completed", JOBS, "")
        assert preview is not None
        (path,) = client.download(task.task_id, tmp_path / "files")
        assert path.read_bytes() == expected()
        transcript = client.transcript(task.task_id, 5, cluster.address("orchestrator"))
        assert [item.job for item in transcript.needs] == [4]
        assert len(transcript.openings) > 0
        everybody = client.orchestrator("ListWorkers", orchestrator_pb2.ListWorkersRequest()).workers
        assert sum(worker.jobs_wrong for worker in everybody) == 0
