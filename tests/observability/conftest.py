"""A mesh that is watched: every process tells a collector its spans and shows its metrics."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from computemesh.cli.cluster import Cluster
from tests.observability.collector import Collector


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def watched(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    overrides = {name: {"traces": collector.address} for name in ("ledger", "market", "orchestrator", "worker")}
    running = Cluster(tmp_path_factory.mktemp("watched"), workers=1, port_base=0, overrides=overrides)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        running.start()
    yield running
    running.stop()
