"""Leases that ended without an answer.

A key costs nothing, so anybody can bring any number of workers that take jobs and sit on them. A job that one of them
sat on is reserved for workers that are known to answer, where there is such a one: else it would pass from one silent
worker to the next for as long as they last.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator import events as e
from orchestrator.model import Lease, Worker
from orchestrator.state import State, blame, lost


def expire(state: State, worker: Worker, now_ms: int, out: e.Effects) -> list[Lease]:
    """Take from the worker what it did not answer in time; those leases."""
    limit = now_ms - state.limits.job_lease_ms
    gone = []
    for lease in [lease for lease in worker.leases.values() if lease.renewed_ms <= limit]:
        if worker.leases.pop(lease.id, None) is None:
            continue  # its task failed while the loop went on
        gone.append(lease)
        worker.record.late += 1
        blame(state, worker.record, now_ms)
        lease.task.running -= 1
        trouble = lost(state, lease, now_ms, "the lease ended before an answer came", out)
        # As long as it held the job: others get at least the same time to take it.
        trouble.avoid[worker.key] = now_ms + _held_ms(state, lease, now_ms)
    if gone:
        out.send.append(e.SendRevokes(worker.session, [lease.id for lease in gone]))
    oldest = min((lease.renewed_ms for lease in worker.leases.values()), default=2**62)
    worker.next_check_ms = oldest + state.limits.job_lease_ms
    return gone


def reserve(state: State, lapsed: Sequence[Lease], now_ms: int) -> None:
    """Keep jobs that workers sat on for such as are known to answer, for as long as they were held; those excepted that
    none of these may have."""
    known = [worker for worker in state.workers.values() if worker.record.answers] if lapsed else []
    fits: dict[bytes, bool] = {}
    for lease in lapsed:
        task = lease.task
        if task.id not in fits:
            fits[task.id] = any(worker.fits(task, now_ms) for worker in known)
        if fits[task.id] and lease.index in task.trouble:
            task.trouble[lease.index].reserved_until_ms = now_ms + _held_ms(state, lease, now_ms)


def _held_ms(state: State, lease: Lease, now_ms: int) -> int:
    return max(state.limits.job_lease_ms, now_ms - lease.began_ms)
