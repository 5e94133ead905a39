"""What a worker tells of itself: its jobs, how busy its devices are, and the spans of groups it ran."""

from __future__ import annotations

import time
from dataclasses import astuple

from prometheus_client import Counter, Gauge, Histogram

from computemesh.service import tracing
from worker.answers import GroupDone
from worker.core import Core
from worker.events import Counts, State

_JOBS = Counter("computemesh_worker_jobs", "Jobs by what became of them: done, settled, refused, nacked.", ["outcome"])
_HELD = Gauge("computemesh_worker_jobs_held", "Jobs held now.")
_CONNECTED = Gauge("computemesh_worker_connected", "1 while the orchestrator has welcomed this worker.")
_BUSY = Gauge("computemesh_worker_utilisation", "Busy share of a device since the heartbeat before, 0..1.", ["device"])
_GROUP_SECONDS = Histogram(
    "computemesh_worker_group_seconds", "Time an executor took for one group of jobs.",
    buckets=(0.0001, 0.001, 0.01, 0.1, 1, 10, 100))
_OUTCOMES = [_JOBS.labels(outcome) for outcome in ("done", "settled", "refused", "nacked")]


class Telemetry:
    """One agent's."""

    def __init__(self) -> None:
        self._counted = astuple(Counts())

    def finished(self, core: Core, done: GroupDone) -> None:
        """An executor is through with a group; the core does not know it yet."""
        _GROUP_SECONDS.observe(done.wall_us / 1e6)
        if tracing.on():
            jobs = core.lanes.jobs_of(done.group_id)
            tracing.record(
                "execute", (job.traceparent for job in jobs), time.time_ns() - done.wall_us * 1000,
                {"jobs": len(jobs), "failed": len(done.failures), "lane": done.lane})

    def sample(self, core: Core) -> None:
        """Counts since the last call, and gauges."""
        counted = astuple(core.counts)
        for counter, now, before in zip(_OUTCOMES, counted, self._counted, strict=True):
            counter.inc(now - before)
        self._counted = counted
        _HELD.set(len(core.lanes.held))
        _CONNECTED.set(core.state in (State.READY, State.DRAINING))
        for device, share in enumerate(core.lanes.busy):
            _BUSY.labels(str(device)).set(share)
