"""A slice of `make faults`: some points of every service. And a mesh that breaks its promise is found out."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from computemesh.service.crashpoints import POINTS
from tests.faults import processes
from tests.faults.laws import Violation
from tests.faults.mesh import Mesh
from tests.faults.points import AT_START, ROWS, crash

SLICE = (
    ("ledger", "commit.written"), ("ledger", "ledger.anchor.synced"), ("market", "market.order.noted"),
    ("orchestrator", "orchestrator.settlement.leaves"), ("worker", "worker.step.sent"),
)  # fmt: skip
HASTY = Path(__file__).parent / "hasty"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("faults")) as running:
        yield running
        running.fsck()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("service", "point"), SLICE, ids=[f"{service}-{point}" for service, point in SLICE])
def test_dying_at_a_crash_point_costs_nothing_but_time(mesh: Mesh, service: str, point: str) -> None:
    crash(mesh, service, point, 0)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_thawed_worker_is_paid_nothing_for_jobs_whose_lease_had_ended(mesh: Mesh) -> None:
    assert processes.strike(mesh, 0, signal.SIGSTOP)["jobs"]


def crash_often(mesh: Mesh, service: str, point: str) -> None:
    for seed in range(20):
        crash(mesh, service, point, seed)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_an_answer_before_the_commit_is_caught(tmp_path: Path) -> None:
    environment = {"ledger": {"PYTHONPATH": os.pathsep.join((str(HASTY), str(ROOT)))}}
    with Mesh(tmp_path, environment=environment) as hasty, pytest.raises(Violation) as caught:
        crash_often(hasty, "ledger", "commit.written")
    assert caught.value.law in ("C", "L")


def test_what_is_reached_at_a_start_only_is_a_crash_point() -> None:
    assert POINTS.keys() > AT_START
    assert len(ROWS) == sum(map(len, POINTS.values()))
