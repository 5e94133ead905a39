"""What the ledger's fold works on: accounts, escrows, nonce windows, and the table of an escrow's transitions. PURE."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum

from computemesh.trust.amount import Shares

WINDOW = 4096
"""Nonces below a key's highest that may still arrive (RFC 4303 section 3.4.3)."""

_WINDOW_MASK = (1 << WINDOW) - 1


class Reason(StrEnum):
    """Why a transaction or a result was refused."""

    INVALID_SIGNATURE = "INVALID_SIGNATURE"
    UNAUTHORIZED = "UNAUTHORIZED"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    SUPPLY_EXCEEDED = "SUPPLY_EXCEEDED"
    INVALID_ORDER = "INVALID_ORDER"
    INVALID_ASSIGNMENT = "INVALID_ASSIGNMENT"
    DUPLICATE_TASK = "DUPLICATE_TASK"
    UNKNOWN_TASK = "UNKNOWN_TASK"
    UNFUNDED_TASK = "UNFUNDED_TASK"
    ESCROW_CLOSED = "ESCROW_CLOSED"
    TASK_EXPIRED = "TASK_EXPIRED"
    EXPIRED_EPOCH = "EXPIRED_EPOCH"
    WRONG_ADDRESS = "WRONG_ADDRESS"
    NONCE_REPLAYED = "NONCE_REPLAYED"
    DUPLICATE_RESULT = "DUPLICATE_RESULT"
    INVALID_RESULT = "INVALID_RESULT"
    ID_CONFLICT = "ID_CONFLICT"


class Phase(IntEnum):
    """Where an escrow stands. The numbers are part of the state root (docs/PROTOCOL.md section 4)."""

    ABSENT = 0
    FUNDED = 1
    ASSIGNED = 2
    SETTLED = 3
    CANCELLED = 4
    FAILED = 5
    EXPIRED = 6


class Event(Enum):
    """What may happen to an escrow. PAY settles one of several jobs left, PAY_LAST the only one."""

    OPEN = "open"
    ASSIGN = "assign"
    PAY = "pay"
    PAY_LAST = "pay_last"
    CANCEL = "cancel"
    FAIL = "fail"
    DEADLINE = "deadline"


TRANSITIONS: dict[tuple[Phase, Event], Phase | Reason] = {
    (Phase.ABSENT, Event.OPEN): Phase.FUNDED,
    (Phase.ABSENT, Event.ASSIGN): Reason.UNKNOWN_TASK,
    (Phase.ABSENT, Event.PAY): Reason.UNKNOWN_TASK,
    (Phase.ABSENT, Event.PAY_LAST): Reason.UNKNOWN_TASK,
    (Phase.ABSENT, Event.CANCEL): Reason.UNKNOWN_TASK,
    (Phase.ABSENT, Event.FAIL): Reason.UNKNOWN_TASK,
    (Phase.ABSENT, Event.DEADLINE): Phase.ABSENT,
    (Phase.FUNDED, Event.OPEN): Reason.DUPLICATE_TASK,
    (Phase.FUNDED, Event.ASSIGN): Phase.ASSIGNED,
    (Phase.FUNDED, Event.PAY): Reason.UNFUNDED_TASK,
    (Phase.FUNDED, Event.PAY_LAST): Reason.UNFUNDED_TASK,
    (Phase.FUNDED, Event.CANCEL): Phase.CANCELLED,
    (Phase.FUNDED, Event.FAIL): Phase.FAILED,
    (Phase.FUNDED, Event.DEADLINE): Phase.EXPIRED,
    (Phase.ASSIGNED, Event.OPEN): Reason.DUPLICATE_TASK,
    (Phase.ASSIGNED, Event.ASSIGN): Phase.ASSIGNED,
    (Phase.ASSIGNED, Event.PAY): Phase.ASSIGNED,
    (Phase.ASSIGNED, Event.PAY_LAST): Phase.SETTLED,
    (Phase.ASSIGNED, Event.CANCEL): Phase.CANCELLED,
    (Phase.ASSIGNED, Event.FAIL): Phase.FAILED,
    (Phase.ASSIGNED, Event.DEADLINE): Phase.EXPIRED,
    **{(phase, Event.OPEN): Reason.DUPLICATE_TASK for phase in list(Phase)[3:]},
    **{(phase, event): Reason.ESCROW_CLOSED
       for phase in (Phase.SETTLED, Phase.CANCELLED, Phase.FAILED)
       for event in (Event.ASSIGN, Event.CANCEL, Event.FAIL)},
    **{(Phase.SETTLED, event): Reason.DUPLICATE_RESULT for event in (Event.PAY, Event.PAY_LAST)},
    **{(phase, event): Reason.UNFUNDED_TASK
       for phase in (Phase.CANCELLED, Phase.FAILED) for event in (Event.PAY, Event.PAY_LAST)},
    **{(Phase.EXPIRED, event): Reason.TASK_EXPIRED
       for event in (Event.ASSIGN, Event.PAY, Event.PAY_LAST, Event.CANCEL, Event.FAIL)},
    **{(phase, Event.DEADLINE): phase for phase in list(Phase)[3:]},
}  # fmt: skip
"""Every phase meets every event: the next phase, or the reason for refusing. Closed phases lead nowhere else."""

OPEN_PHASES = (Phase.FUNDED, Phase.ASSIGNED)


@dataclass(slots=True)
class Account:
    """Base units; `held` is in open escrows, `earned` and `spent` are sums of settled shares over all time."""

    balance: int = 0
    held: int = 0
    earned: int = 0
    spent: int = 0
    highest_nonce: int = 0


@dataclass(slots=True)
class Window:
    """Nonces a worker's key has used: the highest, and bit i of `below` for `highest - 1 - i`."""

    highest: int = 0
    below: int = 0

    def seen(self, nonce: int) -> bool:
        """Whether `nonce` was used, or is too far below the highest to know. 0 always was."""
        age = self.highest - nonce
        return age >= 0 and (age == 0 or age > WINDOW or bool(self.below >> (age - 1) & 1))

    def take(self, nonce: int) -> None:
        """Marks an unseen nonce."""
        ahead = nonce - self.highest
        if ahead < 0:
            self.below |= 1 << (-ahead - 1)
        else:
            self.below = (self.below << ahead | 1 << (ahead - 1)) & _WINDOW_MASK if ahead <= WINDOW else 0
            self.highest = nonce


@dataclass(slots=True)
class Escrow:
    """A task's money. `seen` has bit j set once job j is settled; `no` counts escrows in order of opening.

    `open_tx` and `assign_tx` are numbers of transactions, 0 for none.
    """

    no: int
    task_id: bytes
    customer: bytes
    market_key: bytes
    reward: int
    deadline_ms: int
    open_tx: int
    phase: Phase = Phase.FUNDED
    settled: int = 0
    refunded: int = 0
    jobs: int = 0
    jobs_settled: int = 0
    epoch: int = 0
    orchestrator: bytes = b""
    assign_tx: int = 0
    seen: bytearray = field(default_factory=bytearray)

    def has(self, job: int) -> bool:
        """Whether `job` is settled."""
        at = job >> 3
        return at < len(self.seen) and bool(self.seen[at] >> (job & 7) & 1)

    def mark(self, job: int) -> None:
        """Notes that `job` is settled."""
        at = job >> 3
        if at >= len(self.seen):
            self.seen.extend(bytes(at + 1 - len(self.seen)))
        self.seen[at] |= 1 << (job & 7)


@dataclass(slots=True)
class Touched:
    """Keys of the records that changed since whoever asks last looked."""

    accounts: set[bytes] = field(default_factory=set)
    escrows: set[bytes] = field(default_factory=set)
    workers: set[bytes] = field(default_factory=set)

    def update(self, other: Touched) -> None:
        """Adds what `other` holds."""
        self.accounts |= other.accounts
        self.escrows |= other.escrows
        self.workers |= other.workers


@dataclass(slots=True)
class State:
    """Everything the fold knows. `treasury` is a 20-byte address, `authority` a 33-byte key."""

    chain: str
    authority: bytes
    treasury: bytes
    shares: Shares
    time_ms: int = 0
    next_tx: int = 1
    minted: int = 0
    burned: int = 0
    escrowed: int = 0
    accounts: dict[bytes, Account] = field(default_factory=dict)
    escrows: dict[bytes, Escrow] = field(default_factory=dict)
    workers: dict[bytes, Window] = field(default_factory=dict)
    deadlines: list[tuple[int, int, bytes]] = field(default_factory=list)
    touched: Touched = field(default_factory=Touched)

    def account(self, address: bytes) -> Account:
        """The account of 20 address bytes, made on first use, and noted as touched."""
        self.touched.accounts.add(address)
        found = self.accounts.get(address)
        if found is None:
            found = self.accounts[address] = Account()
        return found

    def take_touched(self) -> Touched:
        """What changed since the last call."""
        taken, self.touched = self.touched, Touched()
        return taken


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused result: its position in the whole transaction, and why."""

    position: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Effects:
    """What became of a transaction. `number` is its place among all applied ones, 0 where it was refused.

    `settled` are (escrow number, job, position in the transaction) and `leaves` the result leaf hashes, in order.
    """

    number: int
    reason: Reason | None = None
    message: str = ""
    refusals: tuple[Refusal, ...] = ()
    settled: tuple[tuple[int, int, int], ...] = ()
    leaves: tuple[bytes, ...] = ()
