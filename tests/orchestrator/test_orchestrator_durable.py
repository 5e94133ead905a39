"""What leaves the orchestrator before its records are durable, and what does not (decision 0025)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from computemesh.trust.identity import PrivateKey
from orchestrator import events as e
from orchestrator import runtime
from orchestrator.config import Config
from orchestrator.core import Core
from orchestrator.runtime import Runtime
from tests.orchestrator.scene import Scene, key, task


class SlowDisk:
    """A group commit that the test makes durable when it likes."""

    def __init__(self) -> None:
        self.deferred = 0
        self.waiting: list[asyncio.Future[None]] = []

    def defer(self, operation: Callable[[Any], None]) -> None:
        self.deferred += 1

    def submit(self, operation: Callable[[Any], None]) -> asyncio.Future[None]:
        self.waiting.append(asyncio.get_running_loop().create_future())
        return self.waiting[-1]


@pytest.fixture
async def told(monkeypatch: pytest.MonkeyPatch) -> tuple[Runtime, SlowDisk, list[object]]:
    """A runtime over a slow disk, and what it tells others."""
    disk, sent = SlowDisk(), []
    group: Any = disk
    ledger: Any = None
    runtime = Runtime(Config(data_dir="", key_file=""), PrivateKey.generate(), Core(1), group, ledger)
    others: Any = type("Others", (), {"progress": asyncio.Event(), "wake": asyncio.Event(), "freed": lambda *_: None})
    runtime.dispatch = runtime.submitter = others
    monkeypatch.setattr(runtime, "_deliver", sent.extend)
    monkeypatch.setattr(runtime, "do", lambda work: None)
    return runtime, disk, sent


async def test_jobs_leave_at_once_and_a_seed_is_drawn_only_for_a_durable_batch(told: Any) -> None:
    runtime, disk, sent = told
    runtime.apply(e.WorkerJoined(1, key(1), frozenset(), 0))
    runtime.apply(e.CreditsGranted(1, 2))
    runtime.apply(e.TaskLeased(task(1, jobs=2, exact_whole=False, deadline_ms=2**62)))
    assert [type(effect) for effect in sent] == [e.SendJobs]
    assert (disk.deferred, disk.waiting) == (1, [])
    event = Scene().commitments(1, sent.pop().leases)
    runtime.apply(event)
    await asyncio.sleep(0)
    assert sent == []
    disk.waiting[0].set_result(None)
    await asyncio.sleep(0)
    assert [type(effect) for effect in sent] == [e.DrawSeed]


async def test_a_verdict_against_a_worker_waits_for_its_judgement(told: Any) -> None:
    runtime, disk, sent = told
    runtime.apply(e.WorkerJoined(1, key(1), frozenset(), 0))
    runtime.apply(e.CreditsGranted(1, 1))
    runtime.apply(e.TaskLeased(task(1, jobs=1, deadline_ms=2**62)))
    lease = sent.pop().leases[0]
    work = runtime.core.step(Scene().commitments(1, [lease]), 10**9).work[0]
    runtime.apply(e.Judged(work.batch, [0], [False], [bytes(32)]))
    assert not [effect for effect in sent if isinstance(effect, e.SendVerdicts)]
    disk.waiting[0].set_result(None)
    await asyncio.sleep(0)
    assert [effect.kind for effect in sent if isinstance(effect, e.SendVerdicts)] == [e.WRONG]


def test_the_orchestrators_time_does_not_jump_with_the_machines_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    before = runtime.now_ms()
    monkeypatch.setattr(runtime.time, "time_ns", lambda: (before + 3_600_000) * 1_000_000)
    assert 0 <= runtime.now_ms() - before < 60_000
