"""Replicas: of task types whose units nobody can check cheaply, some jobs are answered by workers of different owners.

Whether a job is drawn follows from its batch's seed and its commitment's leaf: the seed is drawn after the batch is
durable, so nobody knows before committing, and once the beacon's secret is revealed everybody can redo the draw. An
answer that is drawn is held until another owner's has passed its audit, too. Two that agree win, of at most three; the
first of them is settled, the other one's worker is paid by this orchestrator. What is held does not survive a restart:
the job is queued then as if nobody had answered.
"""

from __future__ import annotations

from computemesh.trust.digest import tagged
from computemesh.trust.reputation import FULL
from orchestrator import events as e
from orchestrator.held import Answer, Held, PayReplicas, Replication, SaveReplication
from orchestrator.model import Cause, Part, Task, Trouble
from orchestrator.state import State, accept, blame, fail_task, lost, void

FLOOR_PERCENT = 5
# Workers without reputation are drawn so many times as often as those with all of it.
STRANGER_TIMES = 5
MOST_ANSWERS = 3
_SCALE = 100 * FULL


def drawn(seed: bytes, leaf: bytes, reputation: int, percent: int) -> bool:
    """Whether the commitment with this leaf hash (32 bytes) of a worker of this reputation (0..1000) is replicated, by
    the 32-byte seed of its batch: with a probability of `percent`, at least 5 %, five times as often for strangers."""
    least = max(percent, FLOOR_PERCENT)
    most = min(100, STRANGER_TIMES * least)
    chance = most * FULL - (most - least) * reputation
    word = int.from_bytes(tagged("computemesh.v1/replica", seed + leaf)[:8], "big")
    return word * _SCALE < chance << 64


def payment_id(answer: Answer) -> bytes:
    """Id of the transfer that pays a replica's worker: one per attempt, however often it is sent."""
    lease = answer.lease
    body = lease.task.id + b"".join(n.to_bytes(8, "big") for n in (lease.index, lease.epoch, lease.attempt))
    raw = bytearray(tagged("computemesh.v1/replica-reward", body)[:16])
    raw[6] = raw[6] & 0x0F | 0x80  # UUIDv8 (RFC 9562 section 5.8): a digest
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)


def takes(state: State, answer: Answer, now_ms: int, out: e.Effects) -> bool:
    """An answer passed its audit: whether it waits for another, or was decided on here; else it settles as any."""
    lease, batch = answer.lease, answer.batch
    task, index = lease.task, lease.index
    held = task.held.get(index)
    trouble = task.trouble.get(index) or Trouble()
    if held is None:
        record = state.record(batch.key)
        leaf = batch.leaves[answer.position]
        if not drawn(batch.seed, leaf, record.reputation, state.limits.replica_percent):
            return False
        trouble.answered.add(lease.owner)
        if not _somebody(state, task, trouble, now_ms):
            trouble.answered.clear()
            out.persist.append(SaveReplication(batch, answer.position, Replication.NO_OTHER_OWNER))
            return False
        until_ms = min(now_ms + state.limits.job_limit_ms, (now_ms + task.deadline_ms) // 2)
        held = task.held[index] = Held(until_ms, [])
        task.trouble[index] = trouble
    held.answers.append(answer)
    trouble.answered.add(lease.owner)
    if any(one.lease.result_hash == lease.result_hash for one in held.answers[:-1]):
        _agreed(state, task.take_held(index), now_ms, out)
    elif len(held.answers) == MOST_ANSWERS:
        _undecided(task, index, out)
        lost(state, lease, now_ms, "the owners' answers differ", out)
    else:
        trouble.attempts += 1  # the next commitment is another attempt
        task.move(index, Cause.REPLICATE)
        task.returned.append(index)
        state.queue.add(task, now_ms)
        state.place_needed = True
    return True


def overdue(state: State, now_ms: int, out: e.Effects) -> None:
    """Decide on answers for which nobody else is there any more, or whose time is over."""
    for task in list(state.tasks.values()):
        queued = set(task.returned) if task.held else ()
        for index, held in list(task.held.items()):
            if task.ended or index not in queued:
                continue  # somebody is at it, or was: then it comes back in a moment
            alone = len(held.answers) == 1
            if held.until_ms > now_ms and not (alone and not _somebody(state, task, task.trouble[index], now_ms)):
                continue
            if alone:
                (answer,) = task.take_held(index)
                task.returned.remove(index)
                out.persist.append(SaveReplication(answer.batch, answer.position, Replication.NO_OTHER_OWNER))
                _settle(state, answer)
            else:
                _undecided(task, index, out)
                _failed_once(state, task, index, out)


def _somebody(state: State, task: Task, trouble: Trouble, now_ms: int) -> bool:
    """Whether a connected worker of another owner could do the job."""
    return any(
        worker.owner not in trouble.answered and worker.key not in trouble.wrong_by
        and worker.key not in trouble.poisoned_by and worker.fits(task, now_ms)
        for worker in state.workers.values()
    )


def _agreed(state: State, answers: list[Answer], now_ms: int, out: e.Effects) -> None:
    """The newest answer is as an earlier one: that one settles, the newest is paid from here, others are wrong."""
    replica = answers[-1]
    first = next(one for one in answers if one.lease.result_hash == replica.lease.result_hash)
    _settle(state, first)
    out.persist.append(SaveReplication(first.batch, first.position, Replication.AGREED))
    owed = payment_id(replica), replica.lease.task.job_units
    out.persist.append(SaveReplication(replica.batch, replica.position, Replication.REPLICA, *owed))
    out.work.append(PayReplicas())
    out.send.append(e.SendVerdicts(replica.batch.session, e.SETTLED, [replica.lease.id], "REPLICA"))
    for answer in answers:
        if answer is not first and answer is not replica:
            _outvoted(state, answer, now_ms, out)


def _settle(state: State, answer: Answer) -> None:
    accept(state, answer.batch, answer.position, answer.lease)
    state.record(answer.batch.key).streak = 0
    state.unsettled.append(Part(answer.batch, [answer.position], [answer.proof]))


def _outvoted(state: State, answer: Answer, now_ms: int, out: e.Effects) -> None:
    """Two other owners agree against it. It is not accused on the ledger: nobody there could redo the work."""
    batch, task = answer.batch, answer.lease.task
    record = state.record(batch.key)
    record.wrong += 1
    blame(state, record, now_ms)
    task.trouble[answer.lease.index].wrong_by.add(batch.key)
    void(batch, answer.position, out)
    out.persist.append(SaveReplication(batch, answer.position, Replication.OUTVOTED))
    out.send.append(e.SendVerdicts(batch.session, e.WRONG, [answer.lease.id], "OUTVOTED"))


def _undecided(task: Task, index: int, out: e.Effects) -> None:
    """No two agree: nobody is known to be wrong, nobody is paid, and these workers get the job no more."""
    for answer in task.take_held(index):
        task.trouble[index].wrong_by.add(answer.batch.key)
        void(answer.batch, answer.position, out)
        out.persist.append(SaveReplication(answer.batch, answer.position, Replication.NO_MAJORITY))
        out.send.append(e.SendVerdicts(answer.batch.session, e.REFUSED, [answer.lease.id], "NO_MAJORITY"))


def _failed_once(state: State, task: Task, index: int, out: e.Effects) -> None:
    """A queued job whose answers came to nothing: once more counts, and the last time ends the task."""
    trouble = task.trouble[index]
    trouble.failures += 1
    trouble.detail = "the owners' answers differ"
    if trouble.failures >= state.limits.max_attempts:
        task.detail = f"job {index} failed {trouble.failures} times, at last: {trouble.detail}"
        task.move(index, Cause.CONDEMN)
        fail_task(state, task, out)
