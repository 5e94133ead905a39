"""What the market's core speaks: statuses, transition tables, records, events and effects. Values only, no behaviour.

Times are Unix milliseconds, amounts base units, ids bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum

from computemesh.trust import statement
from market.kinds import EventKind, FeedKind


class Status(IntEnum):
    """A task's status as customers see it; the numbers are those of `TaskStatus` in the contract."""

    PENDING = 1
    IN_PROGRESS = 2
    COMPLETED = 3
    FAILED = 4
    CANCELLED = 5
    EXPIRED = 6


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})


class Move(Enum):
    """What can happen to a task."""

    START = "start"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"


TRANSITIONS: dict[tuple[Status, Move], Status] = {
    (Status.PENDING, Move.START): Status.IN_PROGRESS,
    (Status.PENDING, Move.FAIL): Status.FAILED,
    (Status.PENDING, Move.CANCEL): Status.CANCELLED,
    (Status.PENDING, Move.EXPIRE): Status.EXPIRED,
    (Status.IN_PROGRESS, Move.COMPLETE): Status.COMPLETED,
    (Status.IN_PROGRESS, Move.FAIL): Status.FAILED,
    (Status.IN_PROGRESS, Move.CANCEL): Status.CANCELLED,
    (Status.IN_PROGRESS, Move.EXPIRE): Status.EXPIRED,
}


class Phase(IntEnum):
    """Where a task is between the market, its orchestrator and the ledger."""

    QUEUED = 1
    # The ledger is being told which orchestrator may settle it.
    ASSIGNING = 2
    LEASED = 3
    # The ledger is being asked how it ended (a refund was sent, the deadline passed, an assignment was refused).
    CLOSING = 4
    ENDED = 5


PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.QUEUED: frozenset({Phase.ASSIGNING, Phase.CLOSING}),
    Phase.ASSIGNING: frozenset({Phase.LEASED, Phase.CLOSING}),
    Phase.LEASED: frozenset({Phase.QUEUED, Phase.CLOSING, Phase.ENDED}),
    Phase.CLOSING: frozenset({Phase.QUEUED, Phase.ENDED}),
    Phase.ENDED: frozenset(),
}


class IntentKind(IntEnum):
    """Transactions the market owes the ledger."""

    ASSIGN = 1
    REFUND = 2


class Cause(IntEnum):
    """Cause of a refund; the numbers are those of `RefundCause` in the contract."""

    NONE = 0
    CANCELLED = 1
    FAILED = 2
    EXPIRED = 3


@dataclass(frozen=True, slots=True)
class Intent:
    """A transaction made durable here before it is sent, and sent until the ledger answers."""

    kind: IntentKind
    tx_id: bytes
    cause: Cause = Cause.NONE


@dataclass(frozen=True, slots=True)
class Spec:
    """What was ordered; never changes. `payload` is the deterministic encoding of the Struct; `references` a JSON
    object with the digest of each registered name in it, `traceparent` the trace the creating call belongs to; `labels`
    are what people call the pool and the model that the order names by hash, and the memory that model needs, JSON."""

    task_id: bytes
    request_id: bytes
    customer_key: bytes
    customer: str
    challenge_type: str
    payload: bytes
    reward_units: int
    deadline_ms: int
    priority: int
    jobs: int
    created_ms: int
    order: bytes
    order_signature: bytes
    references: str = "{}"
    traceparent: str = ""
    labels: str = "{}"

    @property
    def manual(self) -> bool:
        """Whether the customer confirms the answers."""
        return self.order[statement.ORDER_SIZE : statement.ORDER_SIZE + 1] == bytes([statement.DELIVERY_MANUAL])


@dataclass(frozen=True, slots=True)
class State:
    """What changes. `cursor` is that of the last event; `epoch` that of the last lease, 0 before the first. `files` is
    a serialised Task with nothing but `artifacts` and `preview`."""

    status: Status = Status.PENDING
    phase: Phase = Phase.QUEUED
    cursor: int = 0
    updated_ms: int = 0
    ended_ms: int = 0
    jobs_settled: int = 0
    jobs_running: int = 0
    detail: str = ""
    result_hash: bytes = b""
    block_height: int = 0
    refunded_units: int = 0
    epoch: int = 0
    orchestrator_key: bytes = b""
    orchestrator_address: str = ""
    files: bytes = b""
    intent: Intent | None = None


# ---------------------------------------------------------------- records: what is made durable


@dataclass(frozen=True, slots=True)
class Created:
    """A new task."""

    spec: Spec
    state: State


@dataclass(frozen=True, slots=True)
class Changed:
    """The task's state from now on; `kind` where customers are told (the state's cursor is then new)."""

    task_id: bytes
    state: State
    kind: EventKind | None
    # (kind, jobs) of events for everybody, before the one that `kind` stands for.
    feed: tuple[tuple[FeedKind, int], ...] = ()


Record = Created | Changed


# ---------------------------------------------------------------- events: what happened


@dataclass(frozen=True, slots=True)
class Restore:
    """At start: every live task, in order of creation."""

    tasks: tuple[tuple[Spec, State], ...]


@dataclass(frozen=True, slots=True)
class Create:
    """The ledger holds the money of this order."""

    spec: Spec


@dataclass(frozen=True, slots=True)
class Cancel:
    """The customer wants it ended."""

    task_id: bytes


@dataclass(frozen=True, slots=True)
class Look:
    """The customer changed the task on the ledger: retracted it, or confirmed an answer."""

    task_id: bytes


@dataclass(frozen=True, slots=True)
class Connect:
    """An orchestrator's hello was verified. `held` are (task id, epoch); `ended` the statuses of those that ended."""

    connection: int
    key: bytes
    address: str
    held: tuple[tuple[bytes, int], ...] = ()
    ended: tuple[tuple[bytes, Status], ...] = ()


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The stream ended, for whatever reason. Leases stay until `lease_ms` of silence."""

    connection: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The orchestrator takes so many tasks more."""

    connection: int
    credits: int


@dataclass(frozen=True, slots=True)
class Takes:
    """The task types that the orchestrator has workers for."""

    connection: int
    challenge_types: frozenset[str]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The orchestrator is alive."""

    connection: int


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """One task's counts as its orchestrator knows them."""

    task_id: bytes
    epoch: int
    jobs_settled: int
    jobs_running: int
    block_height: int
    files: bytes = b""
    jobs_submitted: int = 0
    jobs_verified: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts changed."""

    connection: int
    rows: tuple[ProgressRow, ...]


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """How a task ended, as its orchestrator claims."""

    task_id: bytes
    epoch: int
    completed: bool
    detail: str
    result_hash: bytes
    block_height: int
    jobs_settled: int
    files: bytes = b""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Tasks ended, as the orchestrator claims."""

    connection: int
    rows: tuple[OutcomeRow, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The ledger's word on one transaction."""

    task_id: bytes
    tx_id: bytes
    applied: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LedgerAnswered:
    """The ledger answered; its answers are durable there."""

    answers: tuple[Answer, ...]


class EscrowStatus(IntEnum):
    """The numbers are those of `EscrowStatus` in the contract; MISSING where the ledger knows no such escrow."""

    MISSING = 0
    OPEN = 1
    SETTLED = 2
    REFUNDED = 3


@dataclass(frozen=True, slots=True)
class EscrowRead:
    """What the ledger holds for a task. `result_hash` is the root over all results where it was asked for."""

    task_id: bytes
    status: EscrowStatus
    cause: Cause = Cause.NONE
    refunded_units: int = 0
    jobs_settled: int = 0
    epoch: int = 0
    result_hash: bytes = b""
    block_height: int = 0


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Drain:
    """The market is going to stop: no new leases."""


Event = (
    Restore | Create | Cancel | Look | Connect | Disconnect | Ready | Takes | Heartbeat | Progress | Outcomes
    | LedgerAnswered | EscrowRead | Tick | Drain
)  # fmt: skip


# ---------------------------------------------------------------- effects: what is to be done


@dataclass(frozen=True, slots=True)
class Lease:
    """One task for an orchestrator."""

    spec: Spec
    epoch: int


@dataclass(frozen=True, slots=True)
class SendLease:
    connection: int
    lease: Lease


@dataclass(frozen=True, slots=True)
class SendAck:
    connection: int
    task_id: bytes


@dataclass(frozen=True, slots=True)
class SendRevoke:
    """`status` None where another orchestrator may hold it."""

    connection: int
    task_id: bytes
    epoch: int
    status: Status | None


@dataclass(frozen=True, slots=True)
class SendClose:
    connection: int
    reason: str
    message: str


Send = SendLease | SendAck | SendRevoke | SendClose


@dataclass(frozen=True, slots=True)
class Submit:
    """Send this transaction until the ledger answers: its intent is among the records of the same step or before."""

    task_id: bytes
    intent: Intent
    epoch: int
    orchestrator_key: bytes
    jobs: int


@dataclass(frozen=True, slots=True)
class Inspect:
    """Read the task's escrow; `with_root` also the root over its results, if it is settled."""

    task_id: bytes
    with_root: bool


LedgerCall = Submit | Inspect


@dataclass(frozen=True, slots=True)
class Release:
    """The task ended: only its `files` are kept on, for a while."""

    task_id: bytes
    challenge_type: str
    files: bytes


@dataclass(slots=True)
class Effects:
    """Make `persist` durable, then do `send`, `ledger` and `release`."""

    persist: list[Record] = field(default_factory=list)
    send: list[Send] = field(default_factory=list)
    ledger: list[LedgerCall] = field(default_factory=list)
    release: list[Release] = field(default_factory=list)
