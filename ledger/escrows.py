"""Escrows: a task's money from opening to its end, but for settlement. PURE."""

from __future__ import annotations

import heapq

from computemesh.trust import acts, identity, statement
from ledger.money import Book, acts_for, post, require_funds
from ledger.records import Answers, Model, Pool
from ledger.state import OPEN_PHASES, TRANSITIONS, Escrow, Event, Phase, Reason, Refused, State

MAX_JOBS = 2**20
"""Jobs of one task. An assignment costs its signer nothing, so the space it can claim is bounded."""


def step(escrow: Escrow | None, event: Event, task_id: bytes) -> Phase:
    """The phase that `event` leads to. Raises Refused as the table says."""
    phase = Phase.ABSENT if escrow is None else escrow.phase
    following = TRANSITIONS[(phase, event)]
    if isinstance(following, Reason):
        raise Refused(following, f"task {task_id.hex()} is {phase.name.lower()}: {event.value} is refused")
    return following


def require_running(state: State) -> None:
    """Raises Refused while the authority has paused the chain."""
    if state.paused:
        raise Refused(Reason.PAUSED, "the authority paused new escrows, assignments and stakes")


def open_(state: State, task_id: bytes, signer: bytes, order: statement.Order) -> None:
    """Holds an order's reward. Raises Refused."""
    require_running(state)
    phase = step(state.escrows.get(task_id), Event.OPEN, task_id)
    if order.customer_key != signer:
        raise Refused(Reason.UNAUTHORIZED, "public_key: not the order's customer_key")
    if order.reward_units < 1:
        raise Refused(Reason.INVALID_ORDER, "order.reward_units: 0, must be at least 1")
    if not identity.valid_public_key(order.market_key):
        raise Refused(Reason.INVALID_ORDER, "order.market_key: not a public key")
    if order.deadline_ms <= state.time_ms:
        raise Refused(
            Reason.TASK_EXPIRED, f"order.deadline_ms: {order.deadline_ms} is not after block time {state.time_ms}")
    payer = _payer(state, signer, order.terms.payer)
    royalty_to, royalty_bps = _royalty(state, order)
    require_funds(state, payer, order.reward_units, "order.reward_units")
    post(state, ((payer, -order.reward_units), (Book.ESCROWED, order.reward_units)))
    state.account(payer).held += order.reward_units
    state.opened += 1
    escrow = Escrow(
        state.opened, task_id, payer, order.market_key, order.reward_units, order.deadline_ms,
        state.next_tx, phase, opened_ms=state.time_ms, publisher=signer, terms=order.terms, royalty_to=royalty_to,
        royalty_bps=royalty_bps)  # fmt: skip
    state.escrows[task_id] = escrow
    heapq.heappush(state.deadlines, (escrow.deadline_ms, escrow.no, task_id))
    state.touched.escrows.add(task_id)


def _payer(state: State, signer: bytes, payer: bytes) -> bytes:
    if payer == statement.NO_ADDRESS:
        return identity.address_bytes(signer)
    if acts_for(state, signer, payer):
        return payer
    pool = state.records.get(Pool.key(state.pools[payer])) if payer in state.pools else None
    if not isinstance(pool, Pool) or not acts_for(state, signer, pool.owner):
        raise Refused(
            Reason.UNAUTHORIZED,
            f"order.payer: {identity.encode_address(payer)} is neither an account that lets this key publish, nor a "
            "pool of one")
    if not pool.terms.active:
        raise Refused(Reason.POOL_INACTIVE, f"order.payer: the pool {identity.encode_address(payer)} is deactivated")
    return payer


def _royalty(state: State, order: statement.Order) -> tuple[bytes, int]:
    name = order.terms.model
    if name == statement.ZERO_HASH:
        return b"", 0
    model = state.records.get(Model.key(name))
    if not isinstance(model, Model):
        raise Refused(Reason.UNKNOWN_MODEL, f"order.model: no model is registered under {name.hex()}")
    if not model.terms.active:
        raise Refused(Reason.MODEL_INACTIVE, f"order.model: {name.hex()} was deactivated by its owner")
    if model.terms.price_per == acts.PRICE_FIXED and order.reward_units < model.terms.price_units:
        raise Refused(
            Reason.UNDERPRICED,
            f"order.reward_units: {order.reward_units}, the model asks at least {model.terms.price_units} a task")
    return model.owner, model.terms.royalty_bps


def require_market(escrow: Escrow, signer: bytes) -> None:
    """Raises Refused unless the order's market signed."""
    if signer != escrow.market_key:
        raise Refused(Reason.UNAUTHORIZED, f"public_key: {signer.hex()} is not the order's market_key")


def require_customer(state: State, escrow: Escrow, signer: bytes) -> None:
    """Raises Refused unless whoever signed the order, or may publish with the paying account's money, signed."""
    if signer != escrow.publisher and not acts_for(state, signer, escrow.customer):
        raise Refused(Reason.UNAUTHORIZED, f"public_key: {signer.hex()} is not the task's customer")


def assign(state: State, signer: bytes, assignment: statement.Assignment) -> None:
    """Says who may settle, and in how many jobs. Raises Refused."""
    require_running(state)
    task_id = assignment.task_id
    escrow = state.escrows.get(task_id)
    phase = step(escrow, Event.ASSIGN, task_id)
    assert escrow is not None  # the table refuses an absent one
    require_market(escrow, signer)
    key, epoch, jobs = assignment.orchestrator_key, assignment.epoch, assignment.jobs
    if (escrow.orchestrator, escrow.epoch, escrow.jobs) == (key, epoch, jobs):
        return
    if epoch <= escrow.epoch:
        raise Refused(Reason.EXPIRED_EPOCH, f"assignment.epoch: {epoch}, must be above {escrow.epoch}")
    if jobs > MAX_JOBS:
        raise Refused(Reason.INVALID_ASSIGNMENT, f"assignment.jobs: {jobs}, must be at most {MAX_JOBS}")
    if (escrow.jobs_settled or escrow.answered) and jobs != escrow.jobs:
        raise Refused(
            Reason.INVALID_ASSIGNMENT,
            f"assignment.jobs: {jobs}, must stay {escrow.jobs}, of which {escrow.jobs_settled} are settled")
    if not identity.valid_public_key(key):
        raise Refused(Reason.INVALID_ASSIGNMENT, "assignment.orchestrator_key: not a public key")
    escrow.phase, escrow.orchestrator, escrow.epoch, escrow.jobs = phase, key, epoch, jobs
    escrow.assign_tx = state.next_tx
    state.touched.escrows.add(task_id)


def refund(state: State, signer: bytes, task_id: bytes, cause: int) -> None:
    """The market ends a task. Raises Refused."""
    event = Event.CANCEL if cause == statement.CAUSE_CANCELLED else Event.FAIL
    escrow = state.escrows.get(task_id)
    step(escrow, event, task_id)
    assert escrow is not None  # the table refuses an absent one
    require_market(escrow, signer)
    close(state, escrow, event)


def retract(state: State, signer: bytes, task_id: bytes) -> None:
    """The customer takes an unassigned task back, without asking the market. Raises Refused."""
    escrow = state.escrows.get(task_id)
    step(escrow, Event.RETRACT, task_id)
    assert escrow is not None  # the table refuses an absent one
    require_customer(state, escrow, signer)
    due_ms = escrow.opened_ms + state.rules.retract_wait_ms
    if state.time_ms < due_ms:
        raise Refused(Reason.TOO_EARLY, f"task {task_id.hex()} may be retracted {due_ms - state.time_ms} ms from now")
    close(state, escrow, Event.RETRACT)


def close(state: State, escrow: Escrow, event: Event) -> None:
    """Ends an open escrow early: what is unspent goes back. Responses nobody picked are paid first."""
    from ledger.settling import confirm_first  # here: that module closes nothing, but settles what this one opens

    for job in sorted(escrow.answered):
        confirm_first(state, escrow, job)
    if escrow.phase not in OPEN_PHASES:
        return  # those were the last jobs
    escrow.phase = step(escrow, event, escrow.task_id)
    rest = escrow.reward - escrow.settled - escrow.refunded
    post(state, ((Book.ESCROWED, -rest), (escrow.customer, rest)))
    state.account(escrow.customer).held -= rest
    escrow.refunded += rest
    state.touched.escrows.add(escrow.task_id)


def answers_of(state: State, escrow: Escrow, job: int) -> Answers | None:
    """The responses to a job of a MANUAL task, None where there is none to pick from."""
    found = state.records.get(Answers.key(escrow.task_id, job)) if job in escrow.answered else None
    return found if isinstance(found, Answers) else None
