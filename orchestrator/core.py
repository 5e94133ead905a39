"""The orchestrator's decisions: `Core.step(event, now_ms) -> Effects`. No I/O, no clock, no randomness.

The table `STEPS` names the function for each event. Jobs and leases are in `state.py`, audits and settlements in
`judging.py`; here are tasks, workers and time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from computemesh.trust.identity import address_of
from orchestrator import events as e
from orchestrator import judging, lapses, replicas
from orchestrator.model import TRANSITIONS, Batch, Cause, Job, Lease, Task, Trouble, Worker
from orchestrator.state import (
    POISON_ATTEMPTS,
    POISON_PAUSE_MS,
    POISON_WORKERS,
    UNANSWERED_LIMIT,
    Limits,
    State,
    backoff,
    end_attempts,
    fail_task,
    longest_ms,
    lost,
    place,
    place_one,
    proven_seen,
    requeue,
    void,
)

__all__ = ["STEPS", "Core", "Limits"]


class Core:
    """The fold. `state` may be read by anyone; only `step` changes it."""

    def __init__(self, boot: int, limits: Limits | None = None, next_batch: int = 1) -> None:
        self.state = State(boot, limits or Limits(), next_batch)
        # Work that restoring asked for, to be done once the shell runs.
        self.replay: list[e.Work] = []

    def step(self, event: e.Event, now_ms: int) -> e.Effects:
        """Take in one event; `now_ms` is Unix milliseconds. Raises BrokenRule where a worker broke the protocol."""
        out = e.Effects()
        STEPS[type(event)](self.state, event, now_ms, out)
        if self.state.place_needed:
            place(self.state, now_ms, out)
        return out

    @property
    def busy(self) -> bool:
        """Whether anything is with workers, in audit's reach, or on its way into the ledger."""
        state = self.state
        at_work = any(worker.leases or worker.challenged for worker in state.workers.values())
        held = any(task.held for task in state.tasks.values())
        return at_work or held or bool(state.unsettled or state.in_flight)

    def take_progress(self) -> list[Task]:
        """Tasks whose counts changed since the last call and that are still held."""
        state = self.state
        changed = [state.tasks[task_id] for task_id in state.progress if task_id in state.tasks]
        state.progress.clear()
        return changed


# ---- tasks ---------------------------------------------------------------------------------------------------------
def _task_leased(state: State, event: e.TaskLeased, now_ms: int, out: e.Effects) -> None:
    task = event.task
    held = state.tasks.get(task.id)
    if held is not None:
        if task.epoch > held.epoch:
            _renew(state, held, task.epoch, now_ms, out)
            out.persist.append(e.SaveTask(held.id, held.epoch, event.raw, ()))
            judging.repeat_outcome(held, out)
        _settled_before(state, held, event.settled, now_ms, out)
        return
    state.tasks[task.id] = task
    task.offered.update(((job, result_hash), output) for job, result_hash, output in event.outputs)
    out.persist.append(e.SaveTask(task.id, task.epoch, event.raw, event.settled, event.outputs))
    if task.leaves:
        task.wait_for_needs()
    _settled_before(state, task, event.settled, now_ms, out)
    state.queue.add(task, now_ms)
    state.place_needed = True


def _renew(state: State, task: Task, epoch: int, now_ms: int, out: e.Effects) -> None:
    """The market leased a held task anew: attempts of the old epoch would be refused, so they begin again."""
    old = [lease for worker in state.workers.values() for lease in worker.leases.values() if lease.task is task]
    old += [row[0] for worker in state.workers.values() for row in worker.challenged.values() if row[0].task is task]
    end_attempts(state, task, out)
    task.ended = bool(task.outcome)
    task.epoch = epoch
    for lease in old:
        requeue(state, lease, now_ms, "the task was leased anew")
    state.queue.add(task, now_ms)


def _settled_before(
    state: State, task: Task, settled: Sequence[tuple[int, bytes]], now_ms: int, out: e.Effects
) -> None:
    for index, result_hash in settled:
        if index < len(task.states) and task.states[index] == Job.QUEUED:
            judging.settle_job(state, task, index, result_hash, now_ms, out)


def _task_revoked(state: State, event: e.TaskRevoked, now_ms: int, out: e.Effects) -> None:
    task = state.tasks.get(event.task_id)
    if task is not None and task.epoch <= event.epoch:
        end_attempts(state, task, out)
        judging.forget(state, task, out)


def _task_unusable(state: State, event: e.TaskUnusable, now_ms: int, out: e.Effects) -> None:
    if event.task_id in state.tasks:
        return
    task = Task(event.task_id, event.epoch, "", ())
    task.detail = event.detail
    state.tasks[task.id] = task
    out.persist.append(e.SaveTask(task.id, task.epoch, event.raw, ()))
    fail_task(state, task, out)


def _outcome_acked(state: State, event: e.OutcomeAcked, now_ms: int, out: e.Effects) -> None:
    for task_id in event.task_ids:
        task = state.tasks.get(task_id)
        if task is not None and task.outcome in ("COMPLETED", "FAILED"):
            if task.responses > 1:
                end_attempts(state, task, out)
            judging.forget(state, task, out)


# ---- workers -------------------------------------------------------------------------------------------------------
def _worker_joined(state: State, event: e.WorkerJoined, now_ms: int, out: e.Effects) -> None:
    older = state.sessions.get(event.key)
    if older is not None:
        out.send.append(e.CloseStream(older, "SUPERSEDED", "the same key dialled again"))
        _leave(state, state.workers[older], now_ms, "the worker dialled again", blame=False, out=out)
    record = state.record(event.key)
    record.owner = event.owner or address_of(event.key)
    worker = Worker(event.session, event.key, event.types, event.memory_bytes, record, now_ms, event.ask,
                    event.functions)
    state.workers[event.session] = worker
    state.sessions[event.key] = event.session


def _standing(state: State, event: e.StandingKnown, now_ms: int, out: e.Effects) -> None:
    record = state.record(event.key)
    record.reputation, record.reasons = event.reputation, event.reasons


def _worker_left(state: State, event: e.WorkerLeft, now_ms: int, out: e.Effects) -> None:
    worker = state.workers.get(event.session)
    if worker is not None:
        _leave(state, worker, now_ms, "the worker's stream ended", blame=False, out=out)


def _leave(state: State, worker: Worker, now_ms: int, why: str, *, blame: bool, out: e.Effects) -> None:
    del state.workers[worker.session]
    worker.record.last_seen_ms = worker.last_seen_ms
    state.ready.discard(worker)
    if state.sessions.get(worker.key) == worker.session:
        del state.sessions[worker.key]
    if blame:
        worker.record.late += len(worker.leases)
    for lease in worker.leases.values():
        lease.task.running -= 1
        lost(state, lease, now_ms, why, out)
    worker.leases.clear()
    for lease, batch, position, _ in worker.challenged.values():
        void(batch, position, out)
        _unanswered(state, worker, lease, (batch, position), now_ms, out)
    worker.challenged.clear()


def _unanswered(
    state: State, worker: Worker, lease: Lease, of: tuple[Batch, int], now_ms: int, out: e.Effects
) -> None:
    """A challenge went without an answer: another worker gets the job first. The third time bars this one from it, and
    it is accused: once is a crash."""
    worker.record.late += 1
    trouble = lost(state, lease, now_ms, "a challenge was not answered in time", out)
    times = trouble.unanswered[worker.key] = trouble.unanswered.get(worker.key, 0) + 1
    if times >= UNANSWERED_LIMIT:
        trouble.wrong_by.add(worker.key)
        out.work.append(e.Accuse(*of, bytes(32)))
    else:
        trouble.avoid[worker.key] = now_ms + state.limits.opening_timeout_ms


def _credits(state: State, event: e.CreditsGranted, now_ms: int, out: e.Effects) -> None:
    worker = state.workers.get(event.session)
    if worker is None:
        return
    worker.last_seen_ms = now_ms
    worker.free += event.credits
    if not worker.draining:
        state.ready.add(worker)
        place_one(state, worker, now_ms, out)


def _alive(state: State, event: e.Alive, now_ms: int, out: e.Effects) -> None:
    worker = state.workers.get(event.session)
    if worker is None:
        return
    worker.last_seen_ms = now_ms
    leases = worker.leases
    limits = state.limits
    for lease_id in event.running:
        lease = leases.get(lease_id)
        # A device that hangs does not stop the heartbeats, and they cost nothing.
        if lease is not None and now_ms - lease.began_ms < longest_ms(limits, lease.task):
            lease.renewed_ms = now_ms
    if event.draining != worker.paused:
        worker.paused = event.draining
        _ready_or_not(state, worker)


def _ready_or_not(state: State, worker: Worker) -> None:
    """A drain began or was taken back."""
    if worker.draining:
        state.ready.discard(worker)
    else:
        state.ready.add(worker)
        state.place_needed = True


def _nacked(state: State, event: e.Nacked, now_ms: int, out: e.Effects) -> None:
    worker = state.workers.get(event.session)
    if worker is None:
        return
    worker.last_seen_ms = now_ms
    poison = any(kind == e.POISON for _, kind, _ in event.nacks)
    proven = poison and proven_seen(state, now_ms)
    believed = not proven or worker.record.settled > 0
    for lease_id, kind, reason in event.nacks:
        lease = worker.leases.pop(lease_id, None)
        if lease is None:
            continue  # revoked or expired meanwhile: nothing is left to hand back
        task, index = lease.task, lease.index
        task.running -= 1
        trouble = task.trouble.setdefault(index, Trouble())
        wait_ms = backoff(trouble)
        trouble.avoid[worker.key] = now_ms + 2 * wait_ms
        if kind == e.POISON:
            trouble.poisoned_by[worker.key] = trouble.poisoned_by.get(worker.key, 0) + 1
            pause_ms = POISON_PAUSE_MS if believed else state.limits.wrong_cooldown_ms
            trouble.avoid[worker.key] = now_ms + pause_ms
        detail = reason or "nack"
        lost(state, lease, now_ms, detail, out, delay_ms=wait_ms, counts=kind == e.POISON and believed)
        if kind == e.POISON and believed and not task.outcome:
            _condemn_poison(state, task, index, reason, proven, out)


def _condemn_poison(state: State, task: Task, index: int, reason: str, proven: bool, out: e.Effects) -> None:
    """Fail the task where enough workers said the job fails. Where any is `proven`, only those with a record count."""
    said = task.trouble[index].poisoned_by
    counts = [times for key, times in said.items() if not proven or state.record(key).settled]
    if len(counts) >= POISON_WORKERS or sum(counts) >= POISON_ATTEMPTS:
        task.detail = f"job {index} failed {sum(counts)} times on {len(counts)} workers: {reason}"
        task.move(index, Cause.CONDEMN)
        fail_task(state, task, out)


def _drained(state: State, event: e.WorkerDrained, now_ms: int, out: e.Effects) -> None:
    worker = state.workers.get(event.session)
    if worker is not None:
        worker.called_off = True
        worker.record.drained = event.held or worker.record.drained
        _ready_or_not(state, worker)


def _resumed(state: State, event: e.WorkerResumed, now_ms: int, out: e.Effects) -> None:
    state.record(event.key).drained = False
    worker = state.workers.get(state.sessions.get(event.key, 0))
    if worker is not None and worker.called_off:
        worker.called_off = False
        _ready_or_not(state, worker)


# ---- time ----------------------------------------------------------------------------------------------------------
def _block(state: State, event: e.BlockSealed, now_ms: int, out: e.Effects) -> None:
    # Only the first block starts work that waited for a binding; later ones matter to later attempts.
    state.place_needed = not state.block_hash
    state.block_hash = event.block_hash


def _tick(state: State, event: e.Tick, now_ms: int, out: e.Effects) -> None:
    lapsed: list[Lease] = []
    for worker in list(state.workers.values()):
        if worker.last_seen_ms + state.limits.worker_lease_ms < now_ms:
            lapsed += worker.leases.values()
            out.send.append(e.CloseStream(worker.session, "SILENT", f"silent for {now_ms - worker.last_seen_ms} ms"))
            _leave(state, worker, now_ms, "the worker fell silent", blame=True, out=out)
            continue
        if worker.next_check_ms <= now_ms:
            lapsed += lapses.expire(state, worker, now_ms, out)
        _time_out(state, worker, now_ms, out)
    lapses.reserve(state, lapsed, now_ms)
    while state.delayed and state.delayed[0][0] <= now_ms:
        _, _, index, task = heapq.heappop(state.delayed)
        # The same object: a task that was let go and leased again begins with a cursor of its own.
        if state.tasks.get(task.id) is task and not task.ended and task.states[index] == Job.QUEUED:
            task.returned.append(index)
            state.queue.add(task, now_ms)
    replicas.overdue(state, now_ms, out)
    state.queue.forget_idle()
    state.place_needed = bool(state.ready)


def _time_out(state: State, worker: Worker, now_ms: int, out: e.Effects) -> None:
    late = []
    for lease_id, row in worker.challenged.items():
        if row[3] <= now_ms:
            late.append(lease_id)
    for lease_id in late:
        lease, batch, position, _ = worker.challenged.pop(lease_id)
        void(batch, position, out)
        _unanswered(state, worker, lease, (batch, position), now_ms, out)
    if late:
        out.send.append(e.SendVerdicts(worker.session, e.LATE, late))


Step = Callable[[State, Any, int, e.Effects], None]
STEPS: dict[type[Any], Step] = {
    e.TaskLeased: _task_leased,
    e.TaskRevoked: _task_revoked,
    e.TaskUnusable: _task_unusable,
    e.OutcomeAcked: _outcome_acked,
    e.Rooted: judging.rooted,
    e.WorkerJoined: _worker_joined,
    e.StandingKnown: _standing,
    e.WorkerLeft: _worker_left,
    e.CreditsGranted: _credits,
    e.Alive: _alive,
    e.Nacked: _nacked,
    e.WorkerDrained: _drained,
    e.WorkerResumed: _resumed,
    e.Committed: judging.committed,
    e.SeedDrawn: judging.seed_drawn,
    e.Opened: judging.opened,
    e.Judged: judging.judged,
    e.AuditBroke: judging.audit_broke,
    e.SettleStarted: judging.settle_started,
    e.SettleRestored: judging.settle_restored,
    e.SettleAnswered: judging.settle_answered,
    e.ResultKnown: judging.result_known,
    e.BlockSealed: _block,
    e.Tick: _tick,
}

assert all(target in Job for target in TRANSITIONS.values())
