"""What the ledger's fold works on: accounts, escrows, nonce windows, and the table of an escrow's transitions. PURE."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum
from typing import Any

from computemesh.trust import statement
from computemesh.trust.amount import Shares
from ledger.records import Bucket, Key, Record

WINDOW = 4096
"""Nonces below a key's highest that may still arrive (RFC 4303 section 3.4.3)."""

WINDOW_MASK = (1 << WINDOW) - 1

PLACES = 4096
"""A result's place is its transaction's number * PLACES + its position there."""


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
    PAUSED = "PAUSED"
    POOL_INACTIVE = "POOL_INACTIVE"
    UNKNOWN_POOL = "UNKNOWN_POOL"
    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    MODEL_INACTIVE = "MODEL_INACTIVE"
    UNDERPRICED = "UNDERPRICED"
    TASK_ASSIGNED = "TASK_ASSIGNED"
    TOO_EARLY = "TOO_EARLY"
    NOT_CONTESTABLE = "NOT_CONTESTABLE"
    INVALID_EVIDENCE = "INVALID_EVIDENCE"
    INSUFFICIENT_STAKE = "INSUFFICIENT_STAKE"
    UNKNOWN_DISPUTE = "UNKNOWN_DISPUTE"
    INELIGIBLE_VOTER = "INELIGIBLE_VOTER"
    VOTING_CLOSED = "VOTING_CLOSED"
    DUPLICATE_VOTE = "DUPLICATE_VOTE"
    WRONG_REVEAL = "WRONG_REVEAL"
    WRONG_BEACON = "WRONG_BEACON"


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
    RETRACT = "retract"
    FAIL = "fail"
    DEADLINE = "deadline"


TRANSITIONS: dict[tuple[Phase, Event], Phase | Reason] = {
    (Phase.ABSENT, Event.OPEN): Phase.FUNDED,
    (Phase.ABSENT, Event.ASSIGN): Reason.UNKNOWN_TASK,
    (Phase.ABSENT, Event.PAY): Reason.UNKNOWN_TASK,
    (Phase.ABSENT, Event.PAY_LAST): Reason.UNKNOWN_TASK,
    (Phase.ABSENT, Event.CANCEL): Reason.UNKNOWN_TASK,
    (Phase.ABSENT, Event.RETRACT): Reason.UNKNOWN_TASK,
    (Phase.ABSENT, Event.FAIL): Reason.UNKNOWN_TASK,
    (Phase.ABSENT, Event.DEADLINE): Phase.ABSENT,
    (Phase.FUNDED, Event.OPEN): Reason.DUPLICATE_TASK,
    (Phase.FUNDED, Event.ASSIGN): Phase.ASSIGNED,
    (Phase.FUNDED, Event.PAY): Reason.UNFUNDED_TASK,
    (Phase.FUNDED, Event.PAY_LAST): Reason.UNFUNDED_TASK,
    (Phase.FUNDED, Event.CANCEL): Phase.CANCELLED,
    (Phase.FUNDED, Event.RETRACT): Phase.CANCELLED,
    (Phase.FUNDED, Event.FAIL): Phase.FAILED,
    (Phase.FUNDED, Event.DEADLINE): Phase.EXPIRED,
    (Phase.ASSIGNED, Event.OPEN): Reason.DUPLICATE_TASK,
    (Phase.ASSIGNED, Event.ASSIGN): Phase.ASSIGNED,
    (Phase.ASSIGNED, Event.PAY): Phase.ASSIGNED,
    (Phase.ASSIGNED, Event.PAY_LAST): Phase.SETTLED,
    (Phase.ASSIGNED, Event.CANCEL): Phase.CANCELLED,
    (Phase.ASSIGNED, Event.RETRACT): Reason.TASK_ASSIGNED,
    (Phase.ASSIGNED, Event.FAIL): Phase.FAILED,
    (Phase.ASSIGNED, Event.DEADLINE): Phase.EXPIRED,
    **{(phase, Event.OPEN): Reason.DUPLICATE_TASK for phase in list(Phase)[3:]},
    **{(phase, event): Reason.ESCROW_CLOSED
       for phase in (Phase.SETTLED, Phase.CANCELLED, Phase.FAILED)
       for event in (Event.ASSIGN, Event.CANCEL, Event.RETRACT, Event.FAIL)},
    **{(Phase.SETTLED, event): Reason.DUPLICATE_RESULT for event in (Event.PAY, Event.PAY_LAST)},
    **{(phase, event): Reason.UNFUNDED_TASK
       for phase in (Phase.CANCELLED, Phase.FAILED) for event in (Event.PAY, Event.PAY_LAST)},
    **{(Phase.EXPIRED, event): Reason.TASK_EXPIRED
       for event in (Event.ASSIGN, Event.PAY, Event.PAY_LAST, Event.CANCEL, Event.RETRACT, Event.FAIL)},
    **{(phase, Event.DEADLINE): phase for phase in list(Phase)[3:]},
}  # fmt: skip
"""Every phase meets every event: the next phase, or the reason for refusing. Closed phases lead nowhere else."""

OPEN_PHASES = (Phase.FUNDED, Phase.ASSIGNED)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a chain fixes at its first start. Windows count blocks; percents are of what a dispute's loser loses.

    `winner_percent` of that goes to the other party, `voters_percent` to the validators who voted so, the rest burns.
    """

    dispute_window_blocks: int = 2
    vote_blocks: int = 200
    unbonding_blocks: int = 1000
    cooldown_blocks: int = 1000
    dispute_bond_units: int = 1_000_000
    validator_stake_units: int = 10_000_000
    slash_percent: int = 50
    winner_percent: int = 50
    voters_percent: int = 25
    vote_cap_percent: int = 40
    quorum: int = 3
    retract_wait_ms: int = 0


@dataclass(slots=True)
class Account:
    """Base units; `held` is in open escrows, `pending` earned in blocks whose dispute window is open, `earned` and
    `spent` are sums of settled shares over all time; `results` counts results of this key's worker."""

    balance: int = 0
    held: int = 0
    earned: int = 0
    spent: int = 0
    highest_nonce: int = 0
    pending: int = 0
    results: int = 0


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
            self.below = (self.below << ahead | 1 << (ahead - 1)) & WINDOW_MASK if ahead <= WINDOW else 0
            self.highest = nonce


@dataclass(slots=True)
class Escrow:
    """A task's money. `seen` has bit j set once job j is settled; `no` counts escrows in order of opening.

    `customer` is the account that paid, `publisher` the key that signed the order. `answered` are the jobs of a MANUAL
    task with responses to pick from. `open_tx` and `assign_tx` are numbers of transactions, 0 for none.
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
    opened_ms: int = 0
    publisher: bytes = b""
    terms: statement.Terms = statement.PLAIN
    royalty_to: bytes = b""
    royalty_bps: int = 0
    answered: set[int] = field(default_factory=set)
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


class Escrows(dict[bytes, Escrow]):
    """Escrows by task id: those in memory, and through `archived` those that ended and were put away."""

    archived: Callable[[bytes], Escrow | None] | None = None

    def get(self, task_id: bytes, default: Any = None) -> Any:
        """The escrow of a task, or `default`; one that was put away is in memory again afterwards."""
        found = super().get(task_id)
        if found is None and self.archived is not None:
            found = self.archived(task_id)
            if found is not None:
                self[task_id] = found
        return default if found is None else found

    def open_(self, task_id: bytes) -> Escrow | None:
        """The escrow, if it is open: those are always in memory."""
        found = super().get(task_id)
        return found if found is not None and found.phase in OPEN_PHASES else None

    def __missing__(self, task_id: bytes) -> Escrow:
        found: Escrow | None = self.get(task_id)
        if found is None:
            raise KeyError(task_id)
        return found


@dataclass(slots=True)
class Touched:
    """Keys of what changed since whoever asks last looked, and where new results stand: (escrow's number, jobs, places)
    of some at a time."""

    accounts: set[bytes] = field(default_factory=set)
    escrows: set[bytes] = field(default_factory=set)
    workers: set[bytes] = field(default_factory=set)
    records: set[Key] = field(default_factory=set)
    results: list[tuple[int, Sequence[int], Sequence[int]]] = field(default_factory=list)

    def update(self, other: Touched) -> None:
        """Adds what `other` holds."""
        self.accounts |= other.accounts
        self.escrows |= other.escrows
        self.workers |= other.workers
        self.records |= other.records
        self.results += other.results


class Due(IntEnum):
    """What falls due when a block closes, in this order."""

    MATURE = 1
    UNBOND = 2
    DECIDE = 3


@dataclass(slots=True)
class State:
    """Everything the fold knows. `treasury` is a 20-byte address, `authority` a 33-byte key, `height` that of the open
    block. Where every unit is: accounts + escrowed + maturing + staked + burned = minted."""

    chain: str
    authority: bytes
    treasury: bytes
    shares: Shares
    rules: Rules = field(default_factory=Rules)
    time_ms: int = 0
    height: int = 0
    next_tx: int = 1
    paused: bool = False
    minted: int = 0
    burned: int = 0
    escrowed: int = 0
    maturing: int = 0
    staked: int = 0
    accounts: dict[bytes, Account] = field(default_factory=dict)
    opened: int = 0
    escrows: Escrows = field(default_factory=Escrows)
    workers: dict[bytes, Window] = field(default_factory=dict)
    records: dict[Key, Record] = field(default_factory=dict)
    deadlines: list[tuple[int, int, bytes]] = field(default_factory=list)
    confirmations: list[tuple[int, bytes, int]] = field(default_factory=list)
    due: list[tuple[int, Due, bytes]] = field(default_factory=list)
    roots: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    contested: dict[tuple[bytes, int], bytes] = field(default_factory=dict)
    accused: set[bytes] = field(default_factory=set)
    pools: dict[bytes, bytes] = field(default_factory=dict)
    touched: Touched = field(default_factory=Touched)

    def account(self, address: bytes) -> Account:
        """The account of 20 address bytes, made on first use, and noted as touched."""
        self.touched.accounts.add(address)
        found = self.accounts.get(address)
        if found is None:
            found = self.accounts[address] = Account()
        return found

    def bucket(self) -> Bucket:
        """The rewards settled in the open block, made on first use; they fall due when their window closes."""
        key = Bucket.key(self.height)
        self.touched.records.add(key)
        found = self.records.get(key)
        if found is None:
            found = self.records[key] = Bucket()
            heapq.heappush(self.due, (self.height + self.rules.dispute_window_blocks, Due.MATURE, key[1]))
        assert isinstance(found, Bucket)
        return found

    def put(self, key: Key, record: Record) -> None:
        """Stores a record and notes it as touched."""
        self.records[key] = record
        self.touched.records.add(key)

    def take_touched(self) -> Touched:
        """What changed since the last call."""
        taken, self.touched = self.touched, Touched()
        return taken


class Refused(Exception):
    """A transaction the rules do not allow: it changes nothing."""

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason, self.message = reason, message


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused result or order: its position in the whole transaction, and why."""

    position: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Effects:
    """What became of a transaction. `number` is its place among all applied ones, 0 where it was refused.

    `leaves` are the result leaf hashes it adds to the block, in order, joined.
    """

    number: int
    reason: Reason | None = None
    message: str = ""
    refusals: tuple[Refusal, ...] = ()
    leaves: bytes = b""
