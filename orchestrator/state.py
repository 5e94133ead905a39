"""The core's whole state, and the two moves everything shares: losing an attempt, giving out jobs."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from enum import Enum
from itertools import count, islice

from computemesh.trust.audit import INLINE_BYTES
from computemesh.trust.identity import address_of
from computemesh.trust.reputation import FULL
from computemesh.workloads.contract import bind, worker_seed
from orchestrator import events as e
from orchestrator.model import ATTEMPT_BITS, LEASE_BITS, Batch, Cause, Job, Lease, Part, Record, Task, Trouble, Worker
from orchestrator.placement import Line, Queue, Ready

MAX_CHUNK = 512
# Workers of one line that have a turn in a round; the others come first in the next.
MAX_TURNS = 64
POISON_WORKERS = 3
# Where there are fewer workers the same ones are asked again after a pause, so often in all.
POISON_ATTEMPTS = 5
POISON_PAUSE_MS = 5_000
# A worker with settled results keeps its say, and others wait for it, so long after it was last seen.
PROVEN_SEEN_MS = 600_000
UNANSWERED_LIMIT = 3
# Once so many jobs of a task were accepted, none may take longer than so many times their mean.
TIMED_JOBS = 3
TIMES_THE_MEAN = 10
MAX_ATTEMPTS = (1 << ATTEMPT_BITS) - 1
FIRST_BACKOFF_MS = 250
LAST_BACKOFF_MS = 15_000
LEAST_SAMPLE = 8


@dataclass(frozen=True)
class Limits:
    """The numbers of the configuration that decide anything; times in milliseconds."""

    worker_lease_ms: int = 15_000
    job_lease_ms: int = 60_000
    job_limit_ms: int = 900_000
    opening_timeout_ms: int = 10_000
    upload_bytes_per_s: int = 4 << 20
    aging_ms: int = 5_000
    wrong_streak: int = 3
    wrong_cooldown_ms: int = 600_000
    max_attempts: int = 32
    replica_percent: int = 5

    def opening_ms(self, lease: Lease) -> int:
        """How long a challenge may stay unanswered, ms: longer where the openings are too large for a message."""
        size = lease.task.opening_bytes(lease.spec)
        return self.opening_timeout_ms + (1000 * size // self.upload_bytes_per_s if size > INLINE_BYTES else 0)


class State:
    """Everything the core remembers. `boot` counts starts of the process and makes attempt and lease numbers new."""

    def __init__(self, boot: int, limits: Limits, next_batch: int = 1) -> None:
        self.boot, self.limits = boot, limits
        self.tasks: dict[bytes, Task] = {}
        self.workers: dict[int, Worker] = {}
        self.sessions: dict[bytes, int] = {}
        self.records: dict[bytes, Record] = {}
        self.queue = Queue(limits.aging_ms)
        self.ready = Ready()
        self.delayed: list[tuple[int, int, int, Task]] = []  # due, order, job, task
        self.order = count()
        self.block_hash = b""
        self.next_lease = boot << LEASE_BITS
        self.next_batch = next_batch
        self.unsettled: list[Part] = []
        self.in_flight: dict[bytes, list[Part]] = {}
        self.progress: set[bytes] = set()
        # Operations of accepted jobs of each task type, and the time from their assignment to their commitment, ms.
        self.rates: dict[str, tuple[int, int]] = {}
        self.place_needed = False

    def record(self, key: bytes) -> Record:
        """What is remembered of a worker, made at first sight."""
        found = self.records.get(key)
        if found is None:
            found = self.records[key] = Record()
        return found


def longest_ms(limits: Limits, task: Task) -> int:
    """Age of an attempt from which on heartbeats renew its lease no more, ms.

    Only accepted jobs set the mean: a worker that commits nonsense at once must not cut others' time short.
    """
    if task.timed < TIMED_JOBS:
        return limits.job_limit_ms
    return min(limits.job_limit_ms, max(limits.job_lease_ms, TIMES_THE_MEAN * task.took_ms // task.timed))


def timed(state: State, task: Task, took_ms: int) -> None:
    """An accepted job took so long."""
    task.timed += 1
    task.took_ms += took_ms
    operations, total_ms = state.rates.get(task.challenge_type, (0, 0))
    state.rates[task.challenge_type] = operations + task.operations, total_ms + took_ms


def blame(state: State, record: Record, now_ms: int) -> None:
    """A wrong result, or a lease that ran out: so many in a row cost the worker its work for the cooldown."""
    record.streak += 1
    if record.streak >= state.limits.wrong_streak:
        record.streak = 0
        record.cooldown_until_ms = now_ms + state.limits.wrong_cooldown_ms


def proven_seen(state: State, now_ms: int) -> bool:
    """Whether a worker with settled results is connected or was seen lately. Keys cost nothing, settled results do."""
    return any(
        record.settled and (key in state.sessions or record.last_seen_ms + PROVEN_SEEN_MS > now_ms)
        for key, record in state.records.items()
    )


def requeue(
    state: State, lease: Lease, now_ms: int, detail: str, *, delay_ms: int = 0, counts: bool = True
) -> Trouble:
    """The attempt came to nothing: the job waits for another, after `delay_ms`. Condemns it where it failed too often.

    `counts`: whether the attempt says something about the job.
    """
    task, index = lease.task, lease.index
    task.move(index, Cause.LOSE)
    trouble = task.trouble.get(index)
    if trouble is None:
        trouble = task.trouble[index] = Trouble()
    trouble.attempts += 1
    trouble.failures += counts
    trouble.detail = detail
    state.progress.add(task.id)
    state.place_needed = True
    if trouble.failures >= state.limits.max_attempts or trouble.attempts >= MAX_ATTEMPTS:
        task.detail = f"job {index} failed {trouble.attempts} times, at last: {detail}"
        task.move(index, Cause.CONDEMN)
    elif delay_ms:
        heapq.heappush(state.delayed, (now_ms + delay_ms, next(state.order), index, task))
    else:
        task.returned.append(index)
        state.queue.add(task, now_ms)
    return trouble


def lost(
    state: State, lease: Lease, now_ms: int, detail: str, out: e.Effects, *, delay_ms: int = 0, counts: bool = True
) -> Trouble:
    """`requeue`, and the task fails where that condemned the job."""
    trouble = requeue(state, lease, now_ms, detail, delay_ms=delay_ms, counts=counts)
    if lease.task.states[lease.index] == Job.FAILED:
        fail_task(state, lease.task, out)
    return trouble


def backoff(trouble: Trouble) -> int:
    """The next wait of a job that keeps coming back, ms: doubling."""
    trouble.backoff_ms = min(max(trouble.backoff_ms * 2, FIRST_BACKOFF_MS), LAST_BACKOFF_MS)
    return trouble.backoff_ms


def fail_task(state: State, task: Task, out: e.Effects) -> None:
    """A job is condemned: the task ends FAILED, its other attempts are called back."""
    if task.outcome:
        return
    task.outcome = "FAILED"
    end_attempts(state, task, out)
    row = e.SaveOutcome(task.id, task.epoch, False, task.detail, b"", task.height, task.settled, bytes(task.states))
    out.persist.append(row)
    out.send.append(row)


def accept(state: State, batch: Batch, position: int, lease: Lease) -> None:
    """An answer is good: its job waits for the ledger."""
    task = lease.task
    task.states[lease.index] = Job.SETTLING  # (AUDITING | QUEUED, ACCEPT)
    task.settling += 1
    timed(state, task, batch.arrived_ms - lease.began_ms)
    if task.leaves:
        task.offered[lease.index, lease.result_hash] = batch.outputs[position]


def void(batch: Batch, position: int, out: e.Effects) -> None:
    """A commitment will not be judged: what it names is of no use to anybody."""
    if batch.outputs:
        out.work.append(e.Discard(batch.key, batch.uploads(position)))


def count_settled(state: State, task: Task, jobs: int, height: int, tx_id: bytes, out: e.Effects) -> None:
    """`jobs` more are settled; the task's root is asked for with the last one."""
    if not jobs:
        return
    task.settled += jobs
    if height > task.height:
        task.height = height
    state.progress.add(task.id)
    if task.settled == len(task.states) and not task.outcome and not task.ended:
        task.outcome = "ROOTING"
        if task.responses == 1:
            task.trouble.clear()
        out.work.append(e.ComputeRoot(task.id, bytes(task.results), height, tx_id))


def end_attempts(state: State, task: Task, out: e.Effects) -> None:
    """No more work for this task: attempts in workers' hands are revoked, those in audit end when they are judged."""
    task.ended = True
    if not task.began:
        return
    for answer in [one for index in list(task.held) for one in task.take_held(index)]:
        void(answer.batch, answer.position, out)
        out.send.append(e.SendVerdicts(answer.batch.session, e.STALE, [answer.lease.id]))
    for worker in state.workers.values():
        gone = [lease_id for lease_id, lease in worker.leases.items() if lease.task is task]
        for lease_id in gone:
            del worker.leases[lease_id]
        if gone:
            out.send.append(e.SendRevokes(worker.session, gone))
        stale = [lease_id for lease_id, row in worker.challenged.items() if row[0].task is task]
        for lease_id in stale:
            _, batch, position, _ = worker.challenged.pop(lease_id)
            void(batch, position, out)
        if stale:
            out.send.append(e.SendVerdicts(worker.session, e.STALE, stale))
    task.running = 0


class Given(Enum):
    """What became of an attempt to give a worker jobs."""

    SOME = 1
    # Something waits that this worker must not have now; another might.
    BARRED = 2
    # Nothing waits for this worker, or for any like it.
    NOTHING = 3


def place(state: State, now_ms: int, out: e.Effects) -> None:
    """Give waiting jobs to workers with free credits, in rounds: who holds least first, of those that failed last time
    none before others, each its share of what waits, so that a small task is spread over all of them and one large
    worker leaves some for others.

    Costs as much as is given; workers that get nothing cost nothing, however many there are.
    """
    state.place_needed = False
    lines = state.ready.lines() if state.queue else []
    while lines:
        lines = _round(state, lines, now_ms, out)


def _round(state: State, lines: list[Line], now_ms: int, out: e.Effects) -> list[Line]:
    """A turn for each worker, of long lines for the first `MAX_TURNS`; the lines where another round may find more."""
    turns = [(worker, at) for at, line in enumerate(lines) for worker in islice(line.values(), MAX_TURNS)]
    turns.sort(key=lambda turn: (turn[0].record.streak > 0, len(turn[0].leases), -turn[0].record.reputation))
    left = [len(line) for line in lines]
    sharers = sum(left)
    served: set[int] = set()
    for worker, at in turns:
        if not left[at]:
            continue
        given = Given.BARRED
        if worker.record.cooldown_until_ms <= now_ms:
            given = _give(state, worker, sharers, now_ms, out)
        if given is Given.NOTHING:
            sharers -= left[at]
            left[at] = 0
            served.discard(at)
            continue
        left[at] -= 1
        sharers -= 1
        if given is Given.SOME:
            served.add(at)
        if worker.free <= 0:
            state.ready.discard(worker)
        else:
            lines[at].move_to_end(worker.session)
    return [line for at, line in enumerate(lines) if line and at in served]


def place_one(state: State, worker: Worker, now_ms: int, out: e.Effects) -> None:
    """As `place`, for a worker that has become free. Nothing that waits was for those who were free before."""
    while state.queue and worker.free > 0 and worker.record.cooldown_until_ms <= now_ms:
        if _give(state, worker, 1, now_ms, out) is not Given.SOME:
            break
    if worker.free <= 0:
        state.ready.discard(worker)


def _give(state: State, worker: Worker, sharers: int, now_ms: int, out: e.Effects) -> Given:
    passed: list[Task] = []
    given = Given.NOTHING
    for task in state.queue.choose(worker.types, worker.memory_bytes, now_ms):
        if task.deadline_ms <= now_ms:
            continue  # the market and the ledger end it; nothing done now would be paid
        if not worker.ask.takes(task) or (task.binds and not state.block_hash):
            passed.append(task)
            given = Given.BARRED
            continue
        share = -(-task.waiting // sharers)
        indices = _take(task, worker, min(worker.free, share, MAX_CHUNK), now_ms)
        if not indices:
            passed.append(task)
            given = Given.BARRED
            continue
        state.queue.served(task, len(indices), now_ms)
        state.queue.add(task, now_ms)
        _lease(state, task, worker, indices, now_ms, out)
        given = Given.SOME
        break
    for task in passed:
        state.queue.add(task, now_ms)
    return given


def _take(task: Task, worker: Worker, most: int, now_ms: int) -> list[int]:
    taken: list[int] = []
    for _ in range(len(task.returned)):
        if len(taken) == most:
            return taken
        index = task.returned.popleft()
        trouble = task.trouble.get(index)
        if trouble is not None and trouble.bars(worker, now_ms):
            task.returned.append(index)
        elif task.states[index] == Job.QUEUED:
            taken.append(index)
    while len(taken) < most:
        first = task.states.find(Job.QUEUED, task.cursor)
        if first < 0:
            task.cursor = len(task.states)
            break
        task.cursor = min(first + most - len(taken), len(task.states))
        span = range(first, task.cursor)
        alike = task.states.count(Job.QUEUED, first, task.cursor) == len(span)
        taken.extend(span if alike else (index for index in span if task.states[index] == Job.QUEUED))
    return taken


def _lease(state: State, task: Task, worker: Worker, indices: list[int], now_ms: int, out: e.Effects) -> None:
    first, after = indices[0], indices[0] + len(indices)
    in_a_row = indices == list(range(first, after))  # returned jobs come in any order
    specs = list(task.jobs[first:after]) if in_a_row else [task.jobs[i] for i in indices]
    if task.binds:
        binding = _binding(state, worker)
        specs = [bind(spec, binding) for spec in specs]
    attempt, number = state.boot << ATTEMPT_BITS, state.next_lease
    trouble, states = task.trouble, task.states
    leases = [
        Lease(at, task, index, attempt, spec, now_ms)
        for at, index, spec in zip(range(number, number + len(indices)), indices, specs, strict=True)
    ]
    for lease in leases if trouble else ():
        tried = trouble.get(lease.index)
        lease.attempt += tried.attempts if tried else 0
    worker.leases.update(zip(range(number, number + len(leases)), leases, strict=True))
    if in_a_row:
        states[first:after] = bytes((Job.RUNNING,)) * len(leases)  # (QUEUED, ASSIGN): all of them are queued
    else:
        for index in indices:
            states[index] = Job.RUNNING
    state.next_lease = number + len(leases)
    k = sample_size(task.k, worker.record.reputation)
    for lease in leases if k != task.k or task.responses > 1 or task.replicates else ():
        lease.k, lease.owner = k, worker.owner
    worker.free -= len(leases)
    task.running += len(leases)
    state.progress.add(task.id)
    worker.next_check_ms = min(worker.next_check_ms, now_ms + state.limits.job_lease_ms)
    out.send.append(e.SendJobs(worker.session, leases))


def sample_size(k: int, reputation: int) -> int:
    """Units to challenge of a worker with this reputation, of the `k` a stranger gets: never below LEAST_SAMPLE."""
    return k if k <= LEAST_SAMPLE else k - (k - LEAST_SAMPLE) * reputation // FULL


def _binding(state: State, worker: Worker) -> bytes:
    if worker.binding_block != state.block_hash:
        worker.binding = worker_seed(state.block_hash, address_of(worker.key))
        worker.binding_block = state.block_hash
    return worker.binding


def batch_of(
    state: State, worker: Worker, event: e.Committed, leases: list[Lease | None], now_ms: int
) -> Batch:
    """A new batch with the next number."""
    batch = Batch(
        state.next_batch, worker.key, worker.session, event.commitments, event.signature, event.leaves, leases
    )
    batch.arrived_ms = now_ms
    batch.outputs, batch.unit_digests, batch.env_class = event.outputs, event.unit_digests, event.env_class
    batch.root = event.root
    state.next_batch += 1
    return batch
