"""The ledger's fold: (state, transaction, time) -> new state and outcome. PURE: no I/O, no clock, no randomness.

Money is double entry: every transition posts amounts that sum to zero, and no account goes below zero. Time is block
time and never goes backwards. A refused transaction changes nothing, not even what counts as touched; a settlement is
judged result by result, a batch of orders order by order. `RULES` names the function for each kind of transaction.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from computemesh.trust import acts
from ledger import disputes, escrows, money, registry, settling, staking
from ledger.evidence import Assign, Deposit, Examined, Open, Refund, Settle, Transaction, Transfer
from ledger.state import Due, Effects, Event, Reason, Refusal, Refused, State


def advance(state: State, time_ms: int) -> int:
    """Sets block time to `time_ms`, or keeps it where that is earlier, and does what is then due: responses nobody
    picked from are paid, escrows past their deadline refunded.

    Returns how many there were.
    """
    state.time_ms = max(state.time_ms, time_ms)
    count = 0
    while state.confirmations and state.confirmations[0][0] <= state.time_ms:
        _, task_id, job = heapq.heappop(state.confirmations)
        escrow = state.escrows.open_(task_id)
        if escrow is not None and job in escrow.answered:
            settling.confirm_first(state, escrow, job)
            count += 1
    while state.deadlines and state.deadlines[0][0] <= state.time_ms:
        escrow = state.escrows.open_(heapq.heappop(state.deadlines)[2])
        if escrow is not None:
            escrows.close(state, escrow, Event.DEADLINE)
            count += 1
    return count


def next_deadline(state: State) -> int | None:
    """The earliest time at which `advance` has something to do, Unix ms."""
    while state.deadlines and state.escrows.open_(state.deadlines[0][2]) is None:
        heapq.heappop(state.deadlines)
    while state.confirmations and not _answered(state, *state.confirmations[0][1:]):
        heapq.heappop(state.confirmations)
    return min((queue[0][0] for queue in (state.deadlines, state.confirmations) if queue), default=None)


def _answered(state: State, task_id: bytes, job: int) -> bool:
    escrow = state.escrows.open_(task_id)
    return escrow is not None and job in escrow.answered


def put_away(state: State, task_id: bytes) -> None:
    """Forgets an escrow that ended: `state.escrows.archived` gives it back where somebody asks."""
    state.escrows.pop(task_id, None)
    if len(state.deadlines) > 2 * len(state.escrows) + 1024:  # mostly deadlines of what ended long before
        state.deadlines = [entry for entry in state.deadlines if state.escrows.open_(entry[2])]
        heapq.heapify(state.deadlines)


_DUE: dict[Due, Callable[[State, bytes], None]] = {
    Due.MATURE: money.mature,
    Due.UNBOND: staking.unbond,
    Due.DECIDE: disputes.decide,
}


def close_block(state: State, compute_root: bytes, results: int) -> None:
    """Ends the open block: does what falls due with it, and begins the next height."""
    if results:
        state.roots[state.height] = (compute_root, results)
    while state.due and state.due[0][0] <= state.height:
        _, kind, name = heapq.heappop(state.due)
        _DUE[kind](state, name)
    state.roots.pop(state.height - state.rules.dispute_window_blocks, None)
    state.height += 1


def _open(state: State, tx: Transaction, body: Open, examined: Examined) -> None:
    if body.order.request_id != tx.id:
        raise Refused(
            Reason.INVALID_ORDER, f"id: {tx.id.hex()} is not the order's request_id {body.order.request_id.hex()}")
    escrows.open_(state, examined.digest, tx.public_key, body.order)


def _orders(state: State, examined: Examined) -> Effects:
    """Each order is judged alone; refused whole where none holds."""
    number, refusals, first = state.next_tx, [], ""
    for position, (task_id, order) in enumerate(examined.orders):
        try:
            escrows.open_(state, task_id, examined.transaction.public_key, order)
        except Refused as refused:
            refusals.append(Refusal(position, refused.reason))
            first = first or f"orders[{position}]: {refused.message}"
    if len(refusals) == len(examined.orders):
        return Effects(0, refusals[0].reason, first, tuple(refusals))
    state.next_tx += 1
    return Effects(number, None, first, tuple(refusals))


_Rule = Callable[[State, Transaction, Any, Examined], None]

RULES: dict[type, _Rule] = {
    Deposit: lambda state, tx, body, _: money.deposit(state, tx.public_key, body.to, body.amount),
    Transfer: lambda state, tx, body, _: money.transfer(state, tx.public_key, body.to, body.amount),
    Open: _open,
    Assign: lambda state, tx, body, _: escrows.assign(state, tx.public_key, body.assignment),
    Refund: lambda state, tx, body, _: escrows.refund(state, tx.public_key, body.task_id, body.cause),
    acts.Retract: lambda state, tx, body, _: escrows.retract(state, tx.public_key, body.task_id),
    acts.Confirm: lambda state, tx, body, _: settling.confirm(state, tx.public_key, body),
    acts.Stake: lambda state, tx, body, _: staking.stake(state, tx.public_key, body.units),
    acts.Unstake: lambda state, tx, body, _: staking.unstake(state, tx.public_key, body.units),
    acts.Contest: lambda state, tx, body, _: disputes.contest(state, tx.id, tx.public_key, body),
    acts.Accuse: lambda state, tx, body, _: disputes.accuse(state, tx.id, tx.public_key, body),
    acts.Appeal: lambda state, tx, body, _: disputes.appeal(state, tx.public_key, body),
    acts.Vote: lambda state, tx, body, _: disputes.vote(state, tx.public_key, body),
    acts.Reveal: lambda state, tx, body, _: disputes.reveal(state, tx.public_key, body),
    acts.Delegate: lambda state, tx, body, _: registry.delegate(state, tx.public_key, body),
    acts.Model: lambda state, tx, body, _: registry.model(state, tx.public_key, body),
    acts.Pool: lambda state, tx, body, _: registry.pool(state, tx.public_key, body),
    acts.Withdraw: lambda state, tx, body, _: registry.withdraw(state, tx.public_key, body),
    acts.Pause: lambda state, tx, body, _: registry.pause(state, tx.public_key, body),
    acts.Beacon: lambda state, tx, body, _: registry.beacon(state, tx.public_key, body),
    acts.BeaconReveal: lambda state, tx, body, _: registry.beacon_reveal(state, tx.public_key, body),
}


def apply(state: State, examined: Examined) -> Effects:
    """Applies one transaction at the state's time. Refused: nothing changed, and the effects say why."""
    transaction = examined.transaction
    body, number = transaction.body, state.next_tx
    if not examined.signed:
        message = "signature: not public_key's over this transaction on this chain"
        return Effects(0, Reason.INVALID_SIGNATURE, message)
    if isinstance(body, Settle):
        return settling.settle(state, examined)
    if isinstance(body, acts.Orders):
        return _orders(state, examined)
    try:
        RULES[type(body)](state, transaction, body, examined)
    except Refused as refused:
        return Effects(0, refused.reason, refused.message)
    state.next_tx += 1
    return Effects(number)
