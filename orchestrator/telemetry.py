"""What the orchestrator tells of itself: counts of what the core decided, and the span of each traced task."""

from __future__ import annotations

import time

from prometheus_client import Counter, Gauge, Histogram

from computemesh.service import tracing
from orchestrator import events as e
from orchestrator.core import Core
from orchestrator.model import Job, Task
from orchestrator.state import State

VERDICTS = {e.SETTLED: "settled", e.WRONG: "wrong", e.LATE: "late", e.STALE: "stale", e.REFUSED: "refused"}
SAMPLE_EVERY_S = 1.0

_ASSIGNED = Counter("computemesh_jobs_assigned", "Jobs given to workers.")
_SETTLED = Counter("computemesh_jobs_settled", "Jobs the ledger settled.")
_AUDITS = Counter("computemesh_audits", "Commitments judged, by verdict: accepted, wrong.", ["verdict"])
_VERDICTS = Counter("computemesh_verdicts", "What workers were told of their commitments.", ["verdict"])
_BATCH = Histogram(
    "computemesh_commitment_batch_jobs", "Jobs one worker signature covered.", buckets=(1, 4, 16, 64, 256, 1024, 4096))
_TASKS = Counter("computemesh_task_outcomes", "Tasks that ended here, by how.", ["outcome"])
_JOBS = Gauge("computemesh_jobs", "Jobs of the tasks held now, by state.", ["state"])
_HELD = Gauge("computemesh_tasks_held", "Tasks leased to this orchestrator.")
_WORKERS = Gauge("computemesh_workers", "Connected workers, by whether they may get jobs.", ["status"])
_CREDITS = Gauge("computemesh_worker_credits", "Jobs that workers asked for and did not get yet.")
_WAITING = Gauge("computemesh_queue_jobs", "Jobs that could be given out now.")
_ACCEPTED, _WRONG = _AUDITS.labels("accepted"), _AUDITS.labels("wrong")
_TOLD = {kind: _VERDICTS.labels(name) for kind, name in VERDICTS.items()}
_BY_STATE = {state: _JOBS.labels(state.name.lower()) for state in Job}
_READY, _DRAINING = _WORKERS.labels("ready"), _WORKERS.labels("draining")


class Telemetry:
    """One orchestrator's. Its methods are called once per event or batch."""

    def __init__(self) -> None:
        self._spans: dict[bytes, tracing.Opened] = {}
        self._sampled_s = 0.0

    # ---- tasks -------------------------------------------------------------------------------------------------------
    def leased(self, task: Task) -> None:
        """Opens the task's span, and lets its jobs carry that."""
        if task.id in self._spans:
            return
        span = tracing.begin(
            "task", task.traceparent,
            {"task": task.id.hex(), "type": task.challenge_type, "jobs": len(task.jobs), "epoch": task.epoch})
        if span is not None:
            self._spans[task.id] = span
            task.traceparent = span.traceparent

    def ended(self, task_id: bytes, outcome: str) -> None:
        """A task is over for this orchestrator: completed, failed or revoked."""
        _TASKS.labels(outcome).inc()
        span = self._spans.pop(task_id, None)
        if span is not None:
            span.end({"outcome": outcome})

    # ---- batches -----------------------------------------------------------------------------------------------------
    def took(self, event: e.Event) -> None:
        """An event the core has taken in."""
        if isinstance(event, e.Judged):
            accepted = sum(event.accepted)
            _ACCEPTED.inc(accepted)
            _WRONG.inc(len(event.accepted) - accepted)
            if tracing.on():
                leases = (event.batch.leases[at] for at in event.positions)
                tracing.record(
                    "audit", (lease.task.traceparent for lease in leases if lease is not None),
                    event.batch.arrived_ms * 1_000_000, {"jobs": len(event.positions), "accepted": accepted})
        elif isinstance(event, e.Committed):
            _BATCH.observe(len(event.lease_ids))

    def sends(self, effect: e.Send) -> None:
        """An effect that leaves now."""
        if isinstance(effect, e.SendJobs):
            _ASSIGNED.inc(len(effect.leases))
        elif isinstance(effect, e.SendVerdicts):
            _TOLD[effect.kind].inc(len(effect.lease_ids))
        elif isinstance(effect, e.SaveOutcome):
            self.ended(effect.task_id, "completed" if effect.completed else "failed")

    def settled(self, jobs: int) -> None:
        """The ledger settled so many."""
        _SETTLED.inc(jobs)

    def sample(self, core: Core) -> None:
        """Gauges, at most once a second: a look at every byte of the tasks' states takes a millisecond per 10^7."""
        now_s = time.monotonic()
        if now_s - self._sampled_s < SAMPLE_EVERY_S:
            return
        self._sampled_s = now_s
        _sample(core.state)


def _sample(state: State) -> None:
    tasks = list(state.tasks.values())
    for job_state, gauge in _BY_STATE.items():
        gauge.set(sum(task.states.count(job_state) for task in tasks))
    workers = list(state.workers.values())
    draining = sum(worker.draining for worker in workers)
    _DRAINING.set(draining)
    _READY.set(len(workers) - draining)
    _CREDITS.set(sum(worker.free for worker in workers))
    _WAITING.set(sum(task.waiting for task in tasks if not task.ended))
    _HELD.set(len(tasks))
