"""What the core knows: tasks, leases, batches, workers, and the table that moves a job from state to state.

Jobs are columns, not objects: a task of a million jobs is a cursor, a byte per job for its state and 32 bytes per
settled job. Only jobs that a worker holds now have an object of their own, the lease.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from computemesh.workloads.contract import JobSpec

if TYPE_CHECKING:
    from orchestrator.held import Answer, Held


class Job(IntEnum):
    """Where a job stands. The numbers are those of `JobStatus` in the contract."""

    QUEUED = 1
    RUNNING = 2
    AUDITING = 3
    SETTLING = 4
    SETTLED = 5
    FAILED = 6


class Cause(IntEnum):
    """What moves a job."""

    ASSIGN = 1
    COMMIT = 2
    ACCEPT = 3
    SETTLE = 4
    # The attempt came to nothing: lease ended, nack, failed audit, refused by the ledger.
    LOSE = 5
    # Three distinct workers called it poison, or it failed too often.
    CONDEMN = 6
    # After a restart: its settlement was sent, the answer is not known.
    RESUME = 7
    # Answered, and the customer wants another answer to pick from.
    ANSWERED = 8
    # Answered, and another owner's answer is wanted to hold against it.
    REPLICATE = 9


TRANSITIONS: dict[tuple[Job, Cause], Job] = {
    (Job.QUEUED, Cause.ASSIGN): Job.RUNNING,
    (Job.QUEUED, Cause.RESUME): Job.SETTLING,
    (Job.QUEUED, Cause.SETTLE): Job.SETTLED,
    (Job.QUEUED, Cause.CONDEMN): Job.FAILED,
    (Job.RUNNING, Cause.COMMIT): Job.AUDITING,
    (Job.RUNNING, Cause.LOSE): Job.QUEUED,
    (Job.AUDITING, Cause.ACCEPT): Job.SETTLING,
    (Job.AUDITING, Cause.LOSE): Job.QUEUED,
    (Job.AUDITING, Cause.REPLICATE): Job.QUEUED,
    (Job.QUEUED, Cause.ACCEPT): Job.SETTLING,
    (Job.SETTLING, Cause.SETTLE): Job.SETTLED,
    (Job.SETTLING, Cause.LOSE): Job.QUEUED,
    (Job.SETTLING, Cause.ANSWERED): Job.QUEUED,
}
"""Everything a job may do; what is not here is a fault of the core."""

# Attempts of one job since one start of the process; the boot count stands above these bits, so that an attempt
# number never comes back after a restart.
ATTEMPT_BITS = 12
LEASE_BITS = 40


@dataclass(frozen=True, slots=True)
class Ask:
    """Lowest price a worker takes, base units per 10^12 operations: in general, and of some task types."""

    general: int = 0
    of: Mapping[str, int] = field(default_factory=dict)

    def takes(self, task: Task) -> bool:
        """Whether the task's jobs pay enough."""
        return task.operations * self.of.get(task.challenge_type, self.general) <= task.job_units * TERA


FREE = Ask()
TERA = 10**12


@dataclass(slots=True)
class Trouble:
    """What is remembered of a job that did not go straight through: few jobs have one."""

    attempts: int = 0
    # Attempts that count towards giving up; a worker that was merely busy does not.
    failures: int = 0
    # Workers that said the job itself fails, and how often each.
    poisoned_by: dict[bytes, int] = field(default_factory=dict)
    # Workers whose answer was wrong: they get the job no more.
    wrong_by: set[bytes] = field(default_factory=set)
    # Workers that should not get it before a time, Unix ms.
    avoid: dict[bytes, int] = field(default_factory=dict)
    # Owners whose answer the customer has: where it wants several, they are of different owners.
    answered: set[str] = field(default_factory=set)
    # Challenges a worker left unanswered: three bar it, or it could wait for a seed that spares it.
    unanswered: dict[bytes, int] = field(default_factory=dict)
    # A worker sat on it: until then, Unix ms, only workers that are known to answer get it.
    reserved_until_ms: int = 0
    backoff_ms: int = 0
    detail: str = ""

    def bars(self, worker: Worker, now_ms: int) -> bool:
        """Whether this worker must not get the job now."""
        return (worker.key in self.wrong_by or worker.owner in self.answered or self.avoid.get(worker.key, 0) > now_ms
                or (self.reserved_until_ms > now_ms and not worker.record.answers))


class Task:
    """A leased task. `jobs` makes the specs when asked; `memory` and `cost` are per job."""

    __slots__ = (
        "apart",
        "artifacts",
        "binds",
        "blocked",
        "challenge_type",
        "cost",
        "created_ms",
        "cursor",
        "customer",
        "deadline_ms",
        "delayed",
        "detail",
        "ended",
        "epoch",
        "exact_whole",
        "feeds",
        "function",
        "height",
        "held",
        "id",
        "inputs",
        "job_units",
        "jobs",
        "k",
        "leaves",
        "memory",
        "offered",
        "opening_bytes",
        "opens",
        "operations",
        "outcome",
        "partial",
        "payload",
        "priority",
        "queued",
        "replicates",
        "responses",
        "results",
        "returned",
        "root",
        "running",
        "settled",
        "settling",
        "states",
        "timed",
        "took_ms",
        "traceparent",
        "trouble",
    )  # fmt: skip

    def __init__(
        self, id: bytes, epoch: int, challenge_type: str, jobs: Sequence[JobSpec], *, customer: str = "",
        priority: int = 0, deadline_ms: int = 2**62, created_ms: int = 0, memory: int = 0, cost: float = 1.0,
        exact_whole: bool = True, k: int = 32, binds: bool = False, leaves: bool = False, opens: bool = True,
        inputs: Callable[[JobSpec], Sequence[bytes]] | None = None, apart: bool = False,
        payload: Mapping[str, object] | None = None, traceparent: str = "",
        opening_bytes: Callable[[JobSpec], int] = lambda _: 0,
    ) -> None:  # fmt: skip
        count = len(jobs)
        self.id, self.epoch, self.challenge_type, self.jobs = id, epoch, challenge_type, jobs
        self.customer, self.priority, self.deadline_ms, self.created_ms = customer, priority, deadline_ms, created_ms
        self.memory, self.cost, self.exact_whole, self.k, self.binds = memory, cost, exact_whole, k, binds
        # Answers wanted for each job; reward of one, base units, and its operations.
        self.responses, self.job_units, self.operations = 1, 0, 0
        self.cursor = 0  # jobs below it were given out at least once
        self.returned: deque[int] = deque()
        self.delayed = 0  # jobs waiting for their back-off
        self.states = bytearray([Job.QUEUED]) * count
        self.results = bytearray(32 * count)
        self.trouble: dict[int, Trouble] = {}
        self.partial = ""  # what its only job's text has come to, unverified; until it is passed on
        self.running = self.settled = self.settling = self.height = 0
        # Accepted jobs, and the time from their assignment to their commitment, ms: how long a job may take.
        self.timed = self.took_ms = 0
        self.queued = self.ended = False
        # Whether jobs leave outputs, whether their units are opened by the worker (else taken from the output), what
        # each reads, and whether they are judged in a process apart. `payload` is as the task type parses it,
        # `opening_bytes` the most bytes an answer to a challenge may have as an artifact.
        self.leaves, self.opens, self.inputs, self.apart = leaves, opens, inputs, apart
        self.opening_bytes = opening_bytes
        self.payload = payload or {}
        self.traceparent = traceparent  # of its span here, or of who created it; empty where it is not traced
        # (job, result hash) -> SHA-256 of an output that was held against that hash and found good.
        self.offered: dict[tuple[int, bytes], bytes] = {}
        # Jobs that wait for others: how many results each lacks; and which jobs each result is needed by.
        self.blocked: dict[int, int] = {}
        self.feeds: dict[int, list[int]] = {}
        # Whether some jobs are given to a second owner, the function they call there, and answers that wait for others.
        self.replicates, self.function = False, ""
        self.held: dict[int, Held] = {}
        self.artifacts = b""  # the task's files, as the market is told of them
        self.outcome = ""  # "", "ROOTING", "COMPLETED" or "FAILED"
        self.detail = ""
        self.root = b""

    def take_held(self, index: int) -> list[Answer]:
        """The answers to a job that wait to be compared, which they do no more; any owner may have the job again."""
        if index in self.trouble:
            self.trouble[index].answered.clear()
        held = self.held.pop(index, None)
        return held.answers if held is not None else []

    @property
    def waiting(self) -> int:
        """Jobs that could be given out now."""
        return len(self.states) - self.cursor + len(self.returned)

    @property
    def began(self) -> bool:
        """Whether any of its jobs can have been given out."""
        return self.cursor > 0

    def wait_for_needs(self) -> None:
        """Hold back the jobs that need others. Call it once, before any job is given out."""
        ready = []
        for index, spec in enumerate(self.jobs[:]):
            if spec.needs:
                self.blocked[index] = len(spec.needs)
                for needed in spec.needs:
                    self.feeds.setdefault(needed, []).append(index)
            else:
                ready.append(index)
        if self.blocked:
            self.cursor = len(self.states)  # nothing is given out by counting up
            self.returned.extend(ready)

    def freed_by(self, index: int) -> bool:
        """Job `index` is settled: whether a job that waited for it is ready now."""
        freed = False
        for waiting in self.feeds.pop(index, ()):
            self.blocked[waiting] -= 1
            if not self.blocked[waiting]:
                del self.blocked[waiting]
                if self.states[waiting] == Job.QUEUED:
                    self.returned.append(waiting)
                    freed = True
        return freed

    def output(self, index: int) -> bytes:
        """SHA-256 of a settled job's output; empty where there is none."""
        return self.offered.get((index, bytes(self.results[32 * index : 32 * index + 32])), b"")

    def move(self, index: int, cause: Cause) -> None:
        """Move one job by the table. Raises KeyError on a move the table does not know."""
        self.states[index] = TRANSITIONS[Job(self.states[index]), cause]


class Lease:
    """One attempt: one worker's time-limited right to one job."""

    __slots__ = (
        "attempt", "began_ms", "epoch", "id", "index", "k", "owner", "renewed_ms", "result_hash", "spec", "task",
    )  # fmt: skip

    def __init__(self, id: int, task: Task, index: int, attempt: int, spec: JobSpec, now_ms: int) -> None:
        self.id, self.task, self.index, self.attempt = id, task, index, attempt
        self.epoch = task.epoch
        self.k = task.k  # units to challenge
        self.owner = ""
        self.spec, self.began_ms, self.renewed_ms = spec, now_ms, now_ms
        self.result_hash = b""


class Batch:
    """Commitments a worker signed together. `leases[i]` is None where commitment i was stale on arrival."""

    __slots__ = (
        "arrived_ms", "beacon_epoch", "commitments", "env_class", "id", "key", "leases", "leaves", "outputs", "root",
        "seed", "session", "signature", "unit_digests",
    )  # fmt: skip

    def __init__(
        self, id: int, key: bytes, session: int, commitments: bytes, signature: bytes, leaves: list[bytes],
        leases: list[Lease | None],
    ) -> None:  # fmt: skip
        self.id, self.key, self.session, self.commitments = id, key, session, commitments
        self.signature, self.leaves, self.leases = signature, leaves, leases
        self.arrived_ms = 0
        self.seed = b""
        self.beacon_epoch = 0
        # Artifacts of each commitment (SHA-256, or empty), both lists empty where no job of the batch leaves any.
        self.outputs: Sequence[bytes] = ()
        self.unit_digests: Sequence[bytes] = ()
        self.env_class = ""
        self.root = b""  # over `leaves`

    @property
    def count(self) -> int:
        """Commitments in the batch."""
        return len(self.leaves)

    def uploads(self, position: int) -> tuple[bytes, bytes]:
        """SHA-256 of the output and of the list of unit digests that a commitment names; empty where it names none."""
        output = self.outputs[position] if self.outputs else b""
        return output, self.unit_digests[position] if output and self.unit_digests else b""


@dataclass(slots=True)
class Part:
    """Accepted results of one batch, on their way into one settle transaction. Columns, in ascending position."""

    batch: Batch
    positions: list[int]
    proofs: list[bytes]


class Worker:
    """A connected worker. `types` empty takes every task type; `memory_bytes` 0 is unlimited."""

    __slots__ = (
        "ask",
        "binding",
        "binding_block",
        "called_off",
        "challenged",
        "free",
        "functions",
        "key",
        "last_seen_ms",
        "leases",
        "memory_bytes",
        "next_check_ms",
        "owner",
        "paused",
        "record",
        "session",
        "types",
    )  # fmt: skip

    def __init__(
        self, session: int, key: bytes, types: frozenset[str], memory_bytes: int, record: Record, now_ms: int,
        ask: Ask = FREE, functions: frozenset[str] = frozenset(),
    ) -> None:
        self.session, self.key, self.types, self.memory_bytes = session, key, types, memory_bytes
        self.record, self.owner, self.ask, self.functions = record, record.owner, ask, functions
        self.free = 0
        # Drained from this side (on request, or because it shuts down), and by the worker's owner.
        self.called_off = record.drained
        self.paused = False
        self.leases: dict[int, Lease] = {}
        # lease id -> (lease, batch, position, deadline)
        self.challenged: dict[int, tuple[Lease, Batch, int, int]] = {}
        self.last_seen_ms = now_ms
        self.next_check_ms = 2**62
        self.binding = self.binding_block = b""

    @property
    def draining(self) -> bool:
        """Whether it is to get no jobs."""
        return self.called_off or self.paused

    def fits(self, task: Task, now_ms: int) -> bool:
        """Whether it may be given jobs of the task, as soon as it is free."""
        return (
            not self.draining and self.record.cooldown_until_ms <= now_ms
            and (not self.types or task.challenge_type in self.types)
            and (not task.function or task.function in self.functions)
            and (not self.memory_bytes or self.memory_bytes >= task.memory)
            and self.ask.takes(task)
        )  # fmt: skip


@dataclass(slots=True)
class Record:
    """What is remembered of a worker across its connections."""

    settled: int = 0
    wrong: int = 0
    late: int = 0
    # Wrong results and leases that ran out, since the last accepted result.
    streak: int = 0
    cooldown_until_ms: int = 0
    last_seen_ms: int = 0
    drained: bool = False
    # Address of whoever owns it, as it says.
    owner: str = ""
    # By the ledger: 0..1000, and on what grounds.
    reputation: int = 0
    reasons: tuple[str, ...] = ()

    @property
    def answers(self) -> bool:
        """Whether it is known to answer: it has earned something, and nothing went wrong since. A key costs nothing."""
        return (self.settled > 0 or self.reputation > 0) and not self.streak
