"""From commitments to settled jobs: what the core does with batches, audits and the ledger's answers.

Order of a batch: commitments durable -> seed drawn -> challenge -> openings -> audit -> settle transaction durable ->
sent -> answer -> verdicts. Jobs small enough to be recomputed whole skip seed and openings: nothing is drawn, so
nothing has to be durable first, and their batch becomes durable with the settle transaction at the latest.
"""

from __future__ import annotations

from collections.abc import Sequence

from computemesh.trust.errors import InvalidArgument
from computemesh.trust.statement import COMMITMENT
from orchestrator import answers, replicas
from orchestrator import events as e
from orchestrator.held import Answer
from orchestrator.model import Batch, Cause, Job, Lease, Part, Task, Trouble, Worker
from orchestrator.state import (
    State,
    accept,
    batch_of,
    blame,
    count_settled,
    end_attempts,
    fail_task,
    lost,
    void,
)

# Below this many operations a job is recomputed in the event loop: handing it to a thread would cost more.
CHEAP_COST = 20_000.0
# Commitment and proof hash of one result in a settle transaction.
RESULT_BYTES = 150
# Refusals after which nothing of the task can be paid any more, so it is not worked on.
TASK_GONE = frozenset({"UNKNOWN_TASK", "UNFUNDED_TASK", "TASK_EXPIRED", "UNAUTHORIZED"})


class BrokenRule(InvalidArgument):
    """A worker's message contradicts what it was given; its stream ends."""


def committed(state: State, event: e.Committed, now_ms: int, out: e.Effects) -> None:
    """A signed batch arrived. Raises BrokenRule where a commitment does not match its lease; nothing changed then."""
    worker = state.workers.get(event.session)
    if worker is None:
        return
    worker.last_seen_ms = now_ms
    leases = [worker.leases.get(lease_id) for lease_id in event.lease_ids]
    _match(worker, leases, event)
    stale = [lease_id for lease_id, lease in zip(event.lease_ids, leases, strict=True) if lease is None]
    if stale:
        out.send.append(e.SendVerdicts(worker.session, e.STALE, stale))
        at = [position for position, lease in enumerate(leases) if lease is None]
        left = [digests[position] for digests in (event.outputs, event.unit_digests) if digests for position in at]
        if left:
            out.work.append(e.Discard(worker.key, left))
    if len(stale) == len(leases):
        return
    batch = batch_of(state, worker, event, leases, now_ms)
    whole: list[tuple[int, Lease]] = []
    cheap, challenged = True, False
    mine = worker.leases
    for position, lease in enumerate(leases):
        if lease is None:
            continue
        del mine[lease.id]
        task = lease.task
        task.running -= 1
        task.states[lease.index] = Job.AUDITING  # (RUNNING, COMMIT): a lease in the worker's hands is running
        if task.exact_whole:
            whole.append((position, lease))
            cheap = cheap and task.cost <= CHEAP_COST
        else:
            challenged = True
    out.persist.append(e.SaveBatch(batch))
    if whole:
        out.work.append(e.Recompute(batch, whole, cheap))
    if challenged:
        out.send.append(e.DrawSeed(batch))


def _match(worker: Worker, leases: Sequence[Lease | None], event: e.Committed) -> None:
    if len(set(event.lease_ids)) != len(event.lease_ids):
        raise _broken("lease_ids", "names a lease twice")
    key = worker.key
    rows = COMMITMENT.iter_unpack(event.commitments)
    for position, (lease, row) in enumerate(zip(leases, rows, strict=True)):
        if row[5] != key:
            raise _broken(f"commitments[{position}].worker_key", "is not the key of this stream")
        if lease is None:
            continue
        if lease.task.leaves and not (event.outputs and len(event.outputs[position]) == 32):
            raise _broken(f"commitments.outputs[{position}]", "is missing: the job leaves an output")
        if row[1] != lease.task.id or row[2] != lease.index:
            raise _broken(f"commitments[{position}]", f"is not for the job of lease {lease.id}")
        if row[3] != lease.epoch or row[4] != lease.attempt:
            raise _broken(
                f"commitments[{position}]",
                f"is for epoch {row[3]} attempt {row[4]}, lease {lease.id} is epoch {lease.epoch} "
                f"attempt {lease.attempt}",
            )
        lease.result_hash = row[6]


def _broken(path: str, problem: str) -> BrokenRule:
    return BrokenRule(f"{path} {problem}", violations=[(path, problem)], reason="COMMITMENT_MISMATCH")


def seed_drawn(state: State, event: e.SeedDrawn, now_ms: int, out: e.Effects) -> None:
    """The batch is durable: challenge what is not recomputed whole. Without its stream nobody can answer."""
    batch = event.batch
    batch.seed, batch.beacon_epoch = event.seed, event.epoch
    worker = state.workers.get(batch.session)
    asked = []
    for position, lease in enumerate(batch.leases):
        if lease is None or lease.task.exact_whole:
            continue
        if lease.task.ended or lease.epoch != lease.task.epoch:
            void(batch, position, out)
            _stale(state, batch, lease, now_ms, out)
        elif not lease.task.opens:
            out.work.append(e.CheckOpening(batch, position, lease, None))
        elif not lease.k:
            out.work.append(e.CheckOpening(batch, position, lease, b""))
        elif worker is None:
            void(batch, position, out)
            lost(state, lease, now_ms, "the worker's stream ended", out)
        else:
            deadline = now_ms + state.limits.opening_ms(lease)
            worker.challenged[lease.id] = (lease, batch, position, deadline)
            asked.append((lease.id, lease.k))
    if asked and worker is not None:
        out.send.append(e.SendChallenges(worker.session, event.seed, asked))


def opened(state: State, event: e.Opened, now_ms: int, out: e.Effects) -> None:
    """Answers to challenges; one that comes too late, twice or unasked changes nothing."""
    worker = state.workers.get(event.session)
    if worker is None:
        return
    worker.last_seen_ms = now_ms
    for lease_id, openings in event.openings:
        row = worker.challenged.pop(lease_id, None)
        if row is not None:
            out.work.append(e.CheckOpening(row[1], row[2], row[0], openings))
    for lease_id, uploaded in event.uploaded:
        row = worker.challenged.pop(lease_id, None)
        if row is not None:
            out.work.append(e.CheckOpening(row[1], row[2], row[0], b"", uploaded))
        else:
            out.work.append(e.Discard(worker.key, [uploaded]))


def judged(state: State, event: e.Judged, now_ms: int, out: e.Effects) -> None:
    """The audit spoke: accepted results wait for settlement, wrong ones cost the worker the job and a mark."""
    batch = event.batch
    record = state.record(batch.key)
    part = Part(batch, [], [])
    wrong = []
    for position, accepted, proof in zip(event.positions, event.accepted, event.proofs, strict=True):
        lease = batch.leases[position]
        assert lease is not None
        task = lease.task
        if task.ended or lease.epoch != task.epoch:
            _stale(state, batch, lease, now_ms, out)
        elif accepted:
            if task.replicates and replicas.takes(state, Answer(batch, position, proof), now_ms, out):
                continue
            accept(state, batch, position, lease)
            part.positions.append(position)
            part.proofs.append(proof)
        else:
            wrong.append(lease.id)
            _wrong(state, batch, lease, now_ms, out)
            out.work.append(e.Accuse(batch, position, proof))
    if part.positions:
        record.streak = 0
        state.unsettled.append(part)
    out.persist.append(e.SaveJudgement(event))
    if wrong:
        out.send.append(e.SendVerdicts(batch.session, e.WRONG, wrong))


def _wrong(state: State, batch: Batch, lease: Lease, now_ms: int, out: e.Effects) -> None:
    record = state.record(batch.key)
    record.wrong += 1
    blame(state, record, now_ms)
    lease.task.trouble.setdefault(lease.index, Trouble()).wrong_by.add(batch.key)
    lost(state, lease, now_ms, "the result failed its audit", out)


def audit_broke(state: State, event: e.AuditBroke, now_ms: int, out: e.Effects) -> None:
    """A fault of this side: the attempt is void, and the job waits a little, in case the fault is the job's."""
    for position in event.positions:
        lease = event.batch.leases[position]
        assert lease is not None
        out.send.append(e.SendVerdicts(event.batch.session, e.STALE, [lease.id], "AUDIT_BROKE"))
        if not lease.task.ended:
            lost(state, lease, now_ms, "the audit could not be made", out, delay_ms=1000)


def _stale(state: State, batch: Batch, lease: Lease, now_ms: int, out: e.Effects) -> None:
    out.send.append(e.SendVerdicts(batch.session, e.STALE, [lease.id]))
    if not lease.task.ended:
        lost(state, lease, now_ms, "the task was leased anew", out, counts=False)


# ---- settlement ----------------------------------------------------------------------------------------------------
def settle_started(state: State, event: e.SettleStarted, now_ms: int, out: e.Effects) -> None:
    """Put what is accepted, up to `max_results` and `max_bytes` of it, into one transaction."""
    by_batch: dict[int, Part] = {}
    room, bytes_left, taken = event.max_results, event.max_bytes, 0
    for part in list(state.unsettled):
        # A part of a batch carries the leaf hashes of all of it.
        bytes_left -= RESULT_BYTES * len(part.positions) + 32 * part.batch.count
        if room == 0 or (bytes_left < 0 and taken):
            break
        if len(part.positions) > room:
            rest = Part(part.batch, part.positions[room:], part.proofs[room:])
            part = Part(part.batch, part.positions[:room], part.proofs[:room])
            state.unsettled.insert(taken + 1, rest)
        room -= len(part.positions)
        taken += 1
        known = by_batch.get(part.batch.id)
        by_batch[part.batch.id] = part if known is None else _merged(known, part)
    del state.unsettled[:taken]
    parts = list(by_batch.values())
    if not parts:
        return
    state.in_flight[event.tx_id] = parts
    out.work.append(e.Submit(event.tx_id, parts))


def _merged(one: Part, two: Part) -> Part:
    rows = sorted(zip(one.positions + two.positions, one.proofs + two.proofs, strict=True))
    return Part(one.batch, [position for position, _ in rows], [proof for _, proof in rows])


def _leases(part: Part) -> list[Lease]:
    leases = part.batch.leases
    return [lease for position in part.positions if (lease := leases[position]) is not None]


def settle_restored(state: State, event: e.SettleRestored, now_ms: int, out: e.Effects) -> None:
    """A transaction of before the restart: its jobs are settling until the ledger's answer is known."""
    state.in_flight[event.tx_id] = list(event.parts)
    for part in event.parts:
        for lease in _leases(part):
            if lease.task.states[lease.index] == Job.QUEUED:
                lease.task.move(lease.index, Cause.RESUME)
                lease.task.settling += 1


def settle_answered(state: State, event: e.SettleAnswered, now_ms: int, out: e.Effects) -> None:
    """The ledger answered: settled jobs are done, refused ones go back to the queue or end their task."""
    parts = state.in_flight.pop(event.tx_id, None)
    if parts is None:
        return
    if not event.replay:
        out.persist.append(e.SaveAnswer(event))
    at = 0
    for part in parts:
        leases = _leases(part)
        here = range(at, at + len(leases))
        at = here.stop
        settled = leases
        if event.refused:
            settled = [lease for position, lease in zip(here, leases, strict=True) if position not in event.refused]
        done = _settled(state, settled, event, now_ms, out)
        for position, lease in zip(here, leases, strict=True) if event.refused else ():
            if position in event.refused:
                _refused(state, part.batch, lease, event.refused[position], now_ms, out)
        if done:
            state.record(part.batch.key).settled += len(done)
            out.send.append(e.SendVerdicts(part.batch.session, e.SETTLED, done))


def _settled(
    state: State, leases: Sequence[Lease], event: e.SettleAnswered, now_ms: int, out: e.Effects
) -> list[int]:
    """Mark these jobs settled, task by task; their lease ids."""
    at = 0
    while at < len(leases):
        task, start = leases[at].task, at
        if task.responses > 1:
            answers.settled(state, leases[at], event, now_ms, out)
            at += 1
            continue
        states, results = task.states, task.results
        while at < len(leases) and leases[at].task is task:
            lease = leases[at]
            index = lease.index
            at += 1
            if states[index] == Job.SETTLING:
                states[index] = Job.SETTLED  # (SETTLING, SETTLE)
                results[32 * index : 32 * index + 32] = lease.result_hash
                if task.feeds:
                    _feed(state, task, index, now_ms)
            else:
                start += 1  # of a task that ended, or settled before: the ledger's answer is for nobody
        task.settling -= at - start
        count_settled(state, task, at - start, event.height, event.tx_id, out)
    return [lease.id for lease in leases]


def settle_job(
    state: State, task: Task, index: int, result_hash: bytes, now_ms: int, out: e.Effects, height: int = 0
) -> None:
    """One job is settled in the ledger by an earlier transaction than those here."""
    task.states[index] = Job.SETTLED  # (SETTLING | QUEUED, SETTLE): callers checked
    task.results[32 * index : 32 * index + 32] = result_hash
    _feed(state, task, index, now_ms)
    count_settled(state, task, 1, height, b"", out)


def _feed(state: State, task: Task, index: int, now_ms: int) -> None:
    """Jobs that needed this one may be ready."""
    if task.freed_by(index):
        state.queue.add(task, now_ms)
        state.place_needed = True


def _refused(state: State, batch: Batch, lease: Lease, reason: str, now_ms: int, out: e.Effects) -> None:
    task = lease.task
    if task.states[lease.index] != Job.SETTLING:
        return
    if answers.one_more(task, lease.index):
        answers.refused(state, batch, lease, reason, out)
    elif reason == "DUPLICATE_RESULT":
        # Somebody settled the job before: it counts, with the hash the ledger has. It stays SETTLING until asked.
        out.send.append(e.SendVerdicts(batch.session, e.REFUSED, [lease.id], reason))
        out.work.append(e.FetchResult(task.id, lease.index))
    else:
        task.settling -= 1
        out.send.append(e.SendVerdicts(batch.session, e.REFUSED, [lease.id], reason))
        if not task.ended:
            _try_again(state, lease, reason, now_ms, out)


def _try_again(state: State, lease: Lease, reason: str, now_ms: int, out: e.Effects) -> None:
    """The ledger refused a result: another attempt, or the end of the task, as the reason says."""
    task = lease.task
    if reason in TASK_GONE and not task.outcome:
        task.detail = f"the ledger refuses its results: {reason}"
        fail_task(state, task, out)
    elif reason == "EXPIRED_EPOCH" and lease.epoch == task.epoch:
        # Another orchestrator has the task by the ledger's word; the market knows, it signed that.
        end_attempts(state, task, out)
        forget(state, task, out)
    else:
        lost(state, lease, now_ms, f"the ledger refused the result: {reason}", out)


def result_known(state: State, event: e.ResultKnown, now_ms: int, out: e.Effects) -> None:
    """The ledger's record of a job that was settled before."""
    task = state.tasks.get(event.task_id)
    if task is not None and task.states[event.job] == Job.SETTLING:
        task.settling -= 1
        out.persist.append(e.SaveResult(task.id, event.job, event.result_hash))
        settle_job(state, task, event.job, event.result_hash, now_ms, out, event.height)


# ---- end of a task -------------------------------------------------------------------------------------------------
def rooted(state: State, event: e.Rooted, now_ms: int, out: e.Effects) -> None:
    """The result hash is known: the task is COMPLETED, and the market told until it acknowledges."""
    task = state.tasks.get(event.task_id)
    if task is None or task.outcome != "ROOTING":
        return
    # Where the customer picks, further answers are taken until it has, or its silence has.
    task.outcome, task.root, task.ended = "COMPLETED", event.root, task.responses == 1
    task.height = max(task.height, event.height)
    task.artifacts, task.detail = event.artifacts, event.detail
    repeat_outcome(task, out)


def repeat_outcome(task: Task, out: e.Effects) -> None:
    """The market leased a task anew whose outcome it was told under an older epoch: tell it under this one."""
    completed = task.outcome == "COMPLETED"
    if not completed and task.outcome != "FAILED":
        return
    row = e.SaveOutcome(
        task.id, task.epoch, completed, task.detail, task.root, task.height, task.settled, bytes(task.states),
        task.artifacts,
    )
    out.persist.append(row)
    out.send.append(row)


def forget(state: State, task: Task, out: e.Effects) -> None:
    """Nothing of the task is open any more; its transcripts stay."""
    task.ended = True
    del state.tasks[task.id]
    state.progress.discard(task.id)
    out.persist.append(e.CloseTask(task.id, bytes(task.states)))
    out.freed += 1
