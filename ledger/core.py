"""The ledger's fold: (state, transaction, time) -> new state and outcome. PURE: no I/O, no clock, no randomness.

Money is double entry: every transition posts amounts that sum to zero, and no account goes below zero. Time is block
time and never goes backwards. A refused transaction changes nothing; a settlement is judged result by result.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from enum import Enum

from computemesh.trust import amount, identity, statement
from computemesh.trust.amount import MAX_UNITS, Shares, format_cpc, job_reward
from ledger.evidence import (
    Assign,
    BatchEvidence,
    Deposit,
    Examined,
    Open,
    Refund,
    Settle,
    Transfer,
)  # fmt: skip
from ledger.state import (
    OPEN_PHASES,
    TRANSITIONS,
    Account,
    Effects,
    Escrow,
    Event,
    Phase,
    Reason,
    Refusal,
    State,
    Window,
)  # fmt: skip

MAX_JOBS = 2**20
"""Jobs of one task. An assignment costs its signer nothing, so the space it can claim is bounded."""


class _Refused(Exception):
    def __init__(self, reason: Reason, message: str) -> None:
        self.reason, self.message = reason, message


class _Book(Enum):
    """The accounts that are not addresses. What was issued is negative by as much as there is."""

    ISSUED = "issued"
    BURNED = "burned"
    ESCROWED = "escrowed"


def _post(state: State, entries: Sequence[tuple[bytes | _Book, int]]) -> None:
    """Moves money: entries sum to zero and leave nothing negative, or the fold itself is wrong."""
    if sum(change for _, change in entries):
        raise AssertionError(f"entries do not balance: {entries}")
    for where, change in entries:
        if where is _Book.ISSUED:
            state.minted -= change
        elif where is _Book.BURNED:
            state.burned += change
        elif where is _Book.ESCROWED:
            state.escrowed += change
            if state.escrowed < 0:
                raise AssertionError("escrow below zero")
        elif isinstance(where, bytes):
            account = state.account(where)
            account.balance += change
            if account.balance < 0:
                raise AssertionError(f"account {where.hex()} below zero")


def advance(state: State, time_ms: int) -> int:
    """Sets block time to `time_ms`, or keeps it where that is earlier, and refunds every escrow that is then due.

    Returns how many expired.
    """
    state.time_ms = max(state.time_ms, time_ms)
    expired = 0
    while state.deadlines and state.deadlines[0][0] <= state.time_ms:
        escrow = state.escrows[heapq.heappop(state.deadlines)[2]]
        if escrow.phase in OPEN_PHASES:
            _close(state, escrow, Event.DEADLINE)
            expired += 1
    return expired


def next_deadline(state: State) -> int | None:
    """The earliest deadline of an open escrow, Unix ms."""
    while state.deadlines and state.escrows[state.deadlines[0][2]].phase not in OPEN_PHASES:
        heapq.heappop(state.deadlines)
    return state.deadlines[0][0] if state.deadlines else None


def apply(state: State, examined: Examined) -> Effects:
    """Applies one transaction at the state's time. Refused: nothing changed, and the effects say why."""
    transaction = examined.transaction
    signer, number = transaction.public_key, state.next_tx
    try:
        if not examined.signed:
            raise _Refused(Reason.INVALID_SIGNATURE, "signature: not public_key's over this transaction on this chain")
        match transaction.body:
            case Settle():
                return _settle(state, examined)
            case Deposit(to, units):
                _deposit(state, signer, to, units)
            case Transfer(to, units):
                _transfer(state, signer, to, units)
            case Open(order, _):
                _open(state, examined.digest, transaction.id, signer, order)
            case Assign(assignment, _):
                _assign(state, signer, assignment)
            case Refund(task_id, cause):
                _refund(state, signer, task_id, cause)
    except _Refused as refused:
        return Effects(0, refused.reason, refused.message)
    state.next_tx += 1
    return Effects(number)


def _deposit(state: State, signer: bytes, to: bytes, units: int) -> None:
    if signer != state.authority:
        raise _Refused(Reason.UNAUTHORIZED, f"public_key: {signer.hex()} may not mint, only the authority may")
    if state.minted + units > MAX_UNITS:
        raise _Refused(
            Reason.SUPPLY_EXCEEDED,
            f"amount_units: {units} and the {state.minted} minted so far exceed the largest supply, {MAX_UNITS}")
    _post(state, ((_Book.ISSUED, -units), (to, units)))


def _require_funds(state: State, payer: bytes, units: int, name: str) -> None:
    account = state.accounts.get(payer)
    balance = account.balance if account else 0
    if balance < units:
        raise _Refused(
            Reason.INSUFFICIENT_FUNDS,
            f"{name}: {format_cpc(units)} CPC, but {identity.encode_address(payer)} has {format_cpc(balance)} CPC")


def _transfer(state: State, signer: bytes, to: bytes, units: int) -> None:
    payer = identity.address_bytes(signer)
    _require_funds(state, payer, units, "amount_units")
    _post(state, ((payer, -units), (to, units)))


def _step(escrow: Escrow | None, event: Event, task_id: bytes) -> Phase:
    """The phase that `event` leads to. Raises _Refused as the table says."""
    phase = Phase.ABSENT if escrow is None else escrow.phase
    following = TRANSITIONS[(phase, event)]
    if isinstance(following, Reason):
        raise _Refused(following, f"task {task_id.hex()} is {phase.name.lower()}: {event.value} is refused")
    return following


def _open(state: State, task_id: bytes, tx_id: bytes, signer: bytes, order: statement.Order) -> None:
    phase = _step(state.escrows.get(task_id), Event.OPEN, task_id)
    if order.request_id != tx_id:
        raise _Refused(
            Reason.INVALID_ORDER, f"id: {tx_id.hex()} is not the order's request_id {order.request_id.hex()}")
    if order.customer_key != signer:
        raise _Refused(Reason.UNAUTHORIZED, "public_key: not the order's customer_key")
    if order.reward_units < 1:
        raise _Refused(Reason.INVALID_ORDER, "order.reward_units: 0, must be at least 1")
    if not identity.valid_public_key(order.market_key):
        raise _Refused(Reason.INVALID_ORDER, "order.market_key: not a public key")
    if order.deadline_ms <= state.time_ms:
        raise _Refused(
            Reason.TASK_EXPIRED, f"order.deadline_ms: {order.deadline_ms} is not after block time {state.time_ms}")
    customer = identity.address_bytes(signer)
    _require_funds(state, customer, order.reward_units, "order.reward_units")
    _post(state, ((customer, -order.reward_units), (_Book.ESCROWED, order.reward_units)))
    state.account(customer).held += order.reward_units
    escrow = Escrow(
        len(state.escrows) + 1, task_id, customer, order.market_key, order.reward_units, order.deadline_ms,
        state.next_tx, phase)  # fmt: skip
    state.escrows[task_id] = escrow
    heapq.heappush(state.deadlines, (escrow.deadline_ms, escrow.no, task_id))
    state.touched.escrows.add(task_id)


def _require_market(escrow: Escrow, signer: bytes) -> None:
    if signer != escrow.market_key:
        raise _Refused(Reason.UNAUTHORIZED, f"public_key: {signer.hex()} is not the order's market_key")


def _assign(state: State, signer: bytes, assignment: statement.Assignment) -> None:
    task_id = assignment.task_id
    escrow = state.escrows.get(task_id)
    phase = _step(escrow, Event.ASSIGN, task_id)
    assert escrow is not None  # the table refuses an absent one
    _require_market(escrow, signer)
    key, epoch, jobs = assignment.orchestrator_key, assignment.epoch, assignment.jobs
    if (escrow.orchestrator, escrow.epoch, escrow.jobs) == (key, epoch, jobs):
        return
    if epoch <= escrow.epoch:
        raise _Refused(Reason.EXPIRED_EPOCH, f"assignment.epoch: {epoch}, must be above {escrow.epoch}")
    if jobs > MAX_JOBS:
        raise _Refused(Reason.INVALID_ASSIGNMENT, f"assignment.jobs: {jobs}, must be at most {MAX_JOBS}")
    if escrow.jobs_settled and jobs != escrow.jobs:
        raise _Refused(
            Reason.INVALID_ASSIGNMENT,
            f"assignment.jobs: {jobs}, must stay {escrow.jobs}, of which {escrow.jobs_settled} are settled")
    if not identity.valid_public_key(key):
        raise _Refused(Reason.INVALID_ASSIGNMENT, "assignment.orchestrator_key: not a public key")
    escrow.phase, escrow.orchestrator, escrow.epoch, escrow.jobs = phase, key, epoch, jobs
    escrow.assign_tx = state.next_tx
    state.touched.escrows.add(task_id)


def _refund(state: State, signer: bytes, task_id: bytes, cause: int) -> None:
    event = Event.CANCEL if cause == statement.CAUSE_CANCELLED else Event.FAIL
    escrow = state.escrows.get(task_id)
    _step(escrow, event, task_id)
    assert escrow is not None  # the table refuses an absent one
    _require_market(escrow, signer)
    _close(state, escrow, event)


def _close(state: State, escrow: Escrow, event: Event) -> None:
    """Ends an open escrow early: what is unspent goes back."""
    escrow.phase = _step(escrow, event, escrow.task_id)
    rest = escrow.reward - escrow.settled
    _post(state, ((_Book.ESCROWED, -rest), (escrow.customer, rest)))
    state.account(escrow.customer).held -= rest
    escrow.refunded = rest
    state.touched.escrows.add(escrow.task_id)


def _split(units: int, shares: Shares) -> tuple[int, int, int, int]:
    parts = amount.split(units, shares)
    return parts.burn, parts.worker, parts.validator, parts.treasury


def _settle(state: State, examined: Examined) -> Effects:
    signer, number = examined.transaction.public_key, state.next_tx
    refusals: list[Refusal] = []
    settled: list[tuple[int, int, int]] = []
    leaves: list[bytes] = []
    offset = 0
    for batch in examined.batches:
        _settle_batch(state, batch, signer, offset, refusals, settled, leaves)
        offset += len(batch.rows)
    if not settled:
        first = refusals[0]
        message = f"none of {offset} results was settled; result {first.position}: {first.reason}"
        return Effects(0, first.reason, message, tuple(refusals))
    state.next_tx += 1
    return Effects(number, None, "", tuple(refusals), tuple(settled), tuple(leaves))


def _settle_batch(
    state: State, batch: BatchEvidence, signer: bytes, offset: int,
    refusals: list[Refusal], settled: list[tuple[int, int, int]], leaves: list[bytes],
) -> None:  # fmt: skip
    """Settles what it can of one worker batch: state changes per result, money is posted once."""
    window = state.workers.get(batch.worker_key) or Window()
    shares = state.shares
    burn = worker = validator = treasury = 0
    current, escrow, customer, before = b"", None, Account(), len(settled)
    divided, parts = -1, (0, 0, 0, 0)
    for index, row in enumerate(batch.rows):
        _, task_id, job, _, _, _, _, nonce = row
        if task_id != current:
            current, escrow = task_id, state.escrows.get(task_id)
            if escrow is not None:
                customer = state.accounts[escrow.customer]
        reason = _result_refusal(batch, index, row, escrow, window, signer)
        if reason is not None or escrow is None:
            refusals.append(Refusal(offset + index, reason or Reason.UNKNOWN_TASK))
            continue
        window.take(nonce)
        escrow.mark(job)
        escrow.jobs_settled += 1
        units = job_reward(escrow.reward, job, escrow.jobs)
        escrow.settled += units
        customer.held -= units
        customer.spent += units
        if escrow.jobs_settled == escrow.jobs:
            escrow.phase = _step(escrow, Event.PAY_LAST, task_id)
        if units != divided:  # jobs of one task are worth the same, give or take one unit
            divided, parts = units, _split(units, shares)
        burn += parts[0]
        worker += parts[1]
        validator += parts[2]
        treasury += parts[3]
        state.touched.escrows.add(task_id)
        state.touched.accounts.add(escrow.customer)
        settled.append((escrow.no, job, offset + index))
        leaves.append(batch.leaves[index])
    if len(settled) > before:
        state.workers[batch.worker_key] = window
        state.touched.workers.add(batch.worker_key)
        _pay(state, batch.worker_key, signer, window.highest, burn, worker, validator, treasury)


def _pay(
    state: State, worker_key: bytes, signer: bytes, nonce: int, burn: int, worker: int, validator: int, treasury: int
) -> None:
    total = burn + worker + validator + treasury
    payee, validated_by = identity.address_bytes(worker_key), identity.address_bytes(signer)
    _post(state, (
        (_Book.ESCROWED, -total), (_Book.BURNED, burn), (payee, worker), (validated_by, validator),
        (state.treasury, treasury),
    ))  # fmt: skip
    state.account(payee).earned += worker
    state.account(payee).highest_nonce = nonce
    state.account(validated_by).earned += validator
    state.account(state.treasury).earned += treasury


def _result_refusal(
    batch: BatchEvidence, index: int, row: statement.CommitmentRow, escrow: Escrow | None, window: Window, signer: bytes
) -> Reason | None:
    """Why a result may not be settled, in this order of precedence; None where it may."""
    _, _, job, epoch, _, worker_key, _, nonce = row
    if worker_key != batch.worker_key:
        return Reason.WRONG_ADDRESS
    if not batch.signed or (batch.included is not None and not batch.included[index]):
        return Reason.INVALID_SIGNATURE
    if escrow is None:
        return Reason.UNKNOWN_TASK
    if job >= (escrow.jobs or MAX_JOBS):
        return Reason.INVALID_RESULT
    # Before the phase: whoever asks again after a crash learns that the job is settled, also when the task is over.
    if escrow.has(job):
        return Reason.DUPLICATE_RESULT
    if escrow.phase is not Phase.ASSIGNED:
        refused = TRANSITIONS[(escrow.phase, Event.PAY)]
        return refused if isinstance(refused, Reason) else Reason.UNFUNDED_TASK
    if epoch < escrow.epoch:
        return Reason.EXPIRED_EPOCH
    # A later epoch was never assigned, so nobody may settle in it; a receipt could not show who was.
    if epoch > escrow.epoch or signer != escrow.orchestrator:
        return Reason.UNAUTHORIZED
    if window.seen(nonce):
        return Reason.NONCE_REPLAYED
    return None

