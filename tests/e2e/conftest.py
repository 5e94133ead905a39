"""The cluster of the tests that kill: whoever died is soon given up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from computemesh.cli.cluster import Cluster

FUNCTIONS = Path(__file__).parents[2] / "examples" / "functions" / "text_service.py"
# Short leases, so that what a dead worker held is soon given to another; long enough for a machine under load.
IMPATIENT = {
    "orchestrator": {
        "worker_lease_ms": 8000, "heartbeat_interval_ms": 500, "job_lease_ms": 15_000, "wrong_streak": 1000,
    },
    "market": {"lease_ms": 6000, "heartbeat_interval_ms": 500},
    "worker": {"functions": [str(FUNCTIONS)]},
}  # fmt: skip


@pytest.fixture(scope="package")
def mesh_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("impatient"), workers=2, port_base=0, overrides=IMPATIENT) as running:
        yield running
