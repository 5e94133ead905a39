"""What happens to the core (events) and what it wants done (effects). Plain data: no protobuf, no sockets.

`Effects.persist` is made durable by the shell before anything in `Effects.send` leaves that is `binding`; the rest
leaves at once (decision 0025). `Effects.work` is computation that may begin at once, because nothing of it is visible
outside before a later step's `persist`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.held import PayReplicas, SaveReplication
from orchestrator.model import FREE, Ask, Batch, Lease, Part, Task

# Verdicts and nacks, numbered as in the contract.
SETTLED, WRONG, LATE, STALE, REFUSED = 1, 2, 3, 4, 5
RETRYABLE, POISON = 1, 2


# ---- events: tasks -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class TaskLeased:
    """The market leased a task; `task` is fresh, `raw` the lease as received. `settled` are jobs that the ledger has
    already, as (job, result hash), where another orchestrator had the task before. `outputs` are those that passed an
    audit before a restart, as (job, result hash, SHA-256)."""

    task: Task
    raw: bytes = b""
    settled: Sequence[tuple[int, bytes]] = ()
    outputs: Sequence[tuple[int, bytes, bytes]] = ()


@dataclass(frozen=True, slots=True)
class TaskRevoked:
    task_id: bytes
    epoch: int


@dataclass(frozen=True, slots=True)
class TaskUnusable:
    """A leased task that cannot be split (its payload does not parse here): FAILED at once."""

    task_id: bytes
    epoch: int
    detail: str
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class OutcomeAcked:
    task_ids: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Rooted:
    """The root over the task's result hashes is computed, the block of its last settlement known, and its files are
    stored. `detail` says what is wrong with them, for people."""

    task_id: bytes
    root: bytes
    height: int
    artifacts: bytes = b""
    detail: str = ""


# ---- events: workers -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class WorkerJoined:
    session: int
    key: bytes
    types: frozenset[str]
    memory_bytes: int
    owner: str = ""
    ask: Ask = FREE
    functions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StandingKnown:
    """What the ledger says of a worker: its reputation, 0..1000, and the grounds."""

    key: bytes
    reputation: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    session: int


@dataclass(frozen=True, slots=True)
class CreditsGranted:
    session: int
    credits: int


@dataclass(frozen=True, slots=True)
class Alive:
    """A heartbeat; `running` are the leases it names, `draining`: its owner wants it to have no more jobs."""

    session: int
    running: Sequence[int]
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Nacked:
    """(lease, kind, reason) of each."""

    session: int
    nacks: Sequence[tuple[int, int, str]]


@dataclass(frozen=True, slots=True)
class Committed:
    """A signed batch: signature and layout are verified, `leaves` are the commitments' leaf hashes, `root` theirs."""

    session: int
    lease_ids: Sequence[int]
    commitments: bytes
    signature: bytes
    leaves: list[bytes]
    outputs: Sequence[bytes] = ()
    unit_digests: Sequence[bytes] = ()
    env_class: str = ""
    root: bytes = b""


@dataclass(frozen=True, slots=True)
class SeedDrawn:
    """The batch is durable and its 32-byte seed was drawn since, from the beacon of `epoch`; 0: from none."""

    batch: Batch
    seed: bytes
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """(lease, openings) of each; `uploaded` those that did not fit a message, as (lease, SHA-256 of their artifact)."""

    session: int
    openings: Sequence[tuple[int, bytes]]
    uploaded: Sequence[tuple[int, bytes]] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """Audit outcome of some commitments of a batch; columns. `openings` is empty where all was recomputed; `uploaded`
    are the artifacts of those that did not fit a message (empty items: they did), empty where there are none."""

    batch: Batch
    positions: Sequence[int]
    accepted: Sequence[bool]
    proofs: Sequence[bytes]
    openings: Sequence[bytes] = ()
    k: int = 0
    uploaded: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class AuditBroke:
    """The auditor itself failed on these positions: nobody is to blame, another attempt is made."""

    batch: Batch
    positions: Sequence[int]


@dataclass(frozen=True, slots=True)
class WorkerDrained:
    """No more jobs for it; `held`: also when it dials again, until WorkerResumed."""

    session: int
    held: bool = False


@dataclass(frozen=True, slots=True)
class WorkerResumed:
    key: bytes


# ---- events: settlement, time --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class SettleStarted:
    """The shell can send a settle transaction now and names it; answered by `Submit` in `work` if there is anything."""

    tx_id: bytes
    max_results: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class SettleRestored:
    """After a restart: a transaction was sent (or about to be) with these results."""

    tx_id: bytes
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class SettleAnswered:
    """The ledger's answer: `refused` maps a position in the transaction to its reason, all others are settled.
    `height` is the block, 0 where it is not sealed yet. `replay`: read from the store, not news."""

    tx_id: bytes
    refused: dict[int, str]
    height: int
    replay: bool = False


@dataclass(frozen=True, slots=True)
class ResultKnown:
    """What the ledger has for a job that somebody settled before."""

    task_id: bytes
    job: int
    result_hash: bytes
    height: int


@dataclass(frozen=True, slots=True)
class BlockSealed:
    block_hash: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


# ---- effects: records to make durable ------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class SaveTask:
    """`outputs` are those of jobs another orchestrator verified, as (job, result hash, SHA-256)."""

    task_id: bytes
    epoch: int
    raw: bytes
    settled: Sequence[tuple[int, bytes]]
    outputs: Sequence[tuple[int, bytes, bytes]] = ()


@dataclass(frozen=True, slots=True)
class SaveBatch:
    batch: Batch


@dataclass(frozen=True, slots=True)
class SaveJudgement:
    event: Judged


@dataclass(frozen=True, slots=True)
class SaveResult:
    """A job that somebody else settled."""

    task_id: bytes
    job: int
    result_hash: bytes


@dataclass(frozen=True, slots=True)
class SaveAnswer:
    event: SettleAnswered


@dataclass(frozen=True, slots=True)
class SaveOutcome:
    task_id: bytes
    epoch: int
    completed: bool
    detail: str
    root: bytes
    height: int
    settled: int
    states: bytes
    artifacts: bytes = b""


@dataclass(frozen=True, slots=True)
class CloseTask:
    """The market knows the outcome, or took the task away: nothing of it is open any more."""

    task_id: bytes
    states: bytes


# ---- effects: messages ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class SendJobs:
    session: int
    leases: Sequence[Lease]


@dataclass(frozen=True, slots=True)
class SendChallenges:
    """(lease, k) of each; one seed for the batch, since units are drawn from seed and commitment."""

    session: int
    seed: bytes
    leases: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class SendVerdicts:
    session: int
    kind: int
    lease_ids: Sequence[int]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SendRevokes:
    session: int
    lease_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class CloseStream:
    """End a worker's stream: `reason` SUPERSEDED or SILENT or the name of a broken rule."""

    session: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class DrawSeed:
    """The batch is durable: draw its seed and come back with SeedDrawn."""

    batch: Batch


# ---- effects: computation and calls ----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Recompute:
    """Recompute every unit of these (position, lease); cheap: little enough for the event loop itself."""

    batch: Batch
    rows: Sequence[tuple[int, Lease]]
    cheap: bool


@dataclass(frozen=True, slots=True)
class CheckOpening:
    """Judge an answer, and the output if there is one; `openings` None: the units are to be taken from the output.
    `uploaded` is the artifact the openings are where they did not fit a message."""

    batch: Batch
    position: int
    lease: Lease
    openings: bytes | None
    uploaded: bytes = b""


@dataclass(frozen=True, slots=True)
class Discard:
    """Nobody judges these uploads of a worker (SHA-256 each): they came too late, or unasked."""

    key: bytes
    uploaded: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Submit:
    """Sign, store and send these as one settle transaction."""

    tx_id: bytes
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class FetchResult:
    task_id: bytes
    job: int


@dataclass(frozen=True, slots=True)
class ComputeRoot:
    """Every job is settled: root over `results`; `tx_id` settled the last one, empty where that is not known."""

    task_id: bytes
    results: bytes
    height: int
    tx_id: bytes


@dataclass(frozen=True, slots=True)
class Accuse:
    """The commitment at `position` failed its audit; `transcript` is its digest, zeros where nothing was answered."""

    batch: Batch
    position: int
    transcript: bytes


Persist = SaveTask | SaveBatch | SaveJudgement | SaveReplication | SaveResult | SaveAnswer | SaveOutcome | CloseTask
Send = SendJobs | SendChallenges | SendVerdicts | SendRevokes | CloseStream | DrawSeed | SaveOutcome
Work = Recompute | CheckOpening | Discard | Submit | FetchResult | ComputeRoot | Accuse | PayReplicas


def binding(effect: Send) -> bool:
    """Whether an effect tells of something that must outlive this process: it waits until its step is durable.

    A seed binds, because a batch that is forgotten after its challenge could be committed anew to suit it; so do a
    judgement against a worker and a task's outcome. Jobs, revocations and the other verdicts do not: leases end with
    the process, and what the ledger answered is asked again after a restart.
    """
    return isinstance(effect, DrawSeed | SaveOutcome) or (isinstance(effect, SendVerdicts) and effect.kind == WRONG)


Event = (
    TaskLeased | TaskRevoked | TaskUnusable | OutcomeAcked | Rooted | WorkerJoined | StandingKnown | WorkerLeft
    | CreditsGranted | Alive | Nacked | Committed | SeedDrawn | Opened | Judged | AuditBroke | WorkerDrained
    | WorkerResumed
    | SettleStarted | SettleRestored | SettleAnswered | ResultKnown | BlockSealed | Tick
)  # fmt: skip


@dataclass(slots=True)
class Effects:
    """`progress`: tasks whose counts changed; `settle`: accepted results wait for a transaction; `freed`: tasks let
    go since, which give their credits back to the market."""

    persist: list[Persist] = field(default_factory=list)
    send: list[Send] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    freed: int = 0
