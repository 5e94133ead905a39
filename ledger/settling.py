"""Settlement: audited results become paid jobs, or responses a customer picks from. PURE."""

from __future__ import annotations

import heapq

from computemesh.trust import amount, identity, statement
from computemesh.trust.acts import Confirm
from computemesh.trust.amount import Shares, job_reward
from computemesh.trust.statement import COMMITMENT_SIZE
from ledger import columns, money
from ledger.escrows import MAX_JOBS, answers_of, require_customer, step
from ledger.evidence import BatchEvidence, Examined
from ledger.records import Answer, Answers, Parts
from ledger.state import (
    PLACES,
    TRANSITIONS,
    Account,
    Effects,
    Escrow,
    Event,
    Phase,
    Reason,
    Refusal,
    Refused,
    State,
    Window,
)


def parts_of(units: int, shares: Shares, royalty_bps: int) -> Parts:
    """How a job's reward is divided: floors, the remainder burns; the royalty is out of the worker's share."""
    split = amount.split(units, shares)
    royalty = split.worker * royalty_bps // 10_000
    return Parts(split.burn, split.worker - royalty, royalty, split.validator, split.treasury)


class _Pay:
    """What one worker batch earns, added up: money is posted once per batch."""

    __slots__ = ("burn", "royalties", "treasury", "validator", "worker")

    def __init__(self) -> None:
        self.burn = self.worker = self.validator = self.treasury = 0
        self.royalties: dict[bytes, int] = {}

    def add(self, parts: Parts, owner: bytes, jobs: int = 1) -> None:
        """`jobs` more, each divided so."""
        self.burn += parts.burn * jobs
        self.worker += parts.worker * jobs
        self.validator += parts.validator * jobs
        self.treasury += parts.treasury * jobs
        if parts.royalty:
            self.royalties[owner] = self.royalties.get(owner, 0) + parts.royalty * jobs

    def post(self, state: State, worker: bytes, validator: bytes) -> None:
        """Out of escrow, into the open block's bucket."""
        payees = [(worker, self.worker), (validator, self.validator), (state.treasury, self.treasury)]
        money.reward(state, [*payees, *self.royalties.items()], self.burn)


def settle(state: State, examined: Examined) -> Effects:
    """Judges a settlement result by result. Refused whole where nothing of it holds."""
    signer, number = examined.transaction.public_key, state.next_tx
    refusals: list[Refusal] = []
    leaves = bytearray()
    offset = 0
    for batch in examined.batches:
        _settle_batch(state, batch, signer, offset, refusals, leaves)
        offset += batch.count
    if not leaves:
        first = refusals[0]
        message = f"none of {offset} results was settled; result {first.position}: {first.reason}"
        return Effects(0, first.reason, message, tuple(refusals))
    state.next_tx += 1
    return Effects(number, None, "", tuple(refusals), bytes(leaves))


def _settle_batch(
    state: State, batch: BatchEvidence, signer: bytes, offset: int, refusals: list[Refusal], leaves: bytearray
) -> None:
    """Settles what it can of one worker batch: state changes per result, money is posted once."""
    window = state.workers.get(batch.worker_key) or Window()
    pay, before, paid = _Pay(), len(leaves), 0
    for first, end in columns.runs(batch.commitments):
        whole = _settle_whole(state, batch, first, end, signer, offset, window, pay) if end - first > columns.FEW else 0
        if whole:
            leaves += batch.leaves[32 * first : 32 * end]
        paid += whole or _settle_rows(state, batch, first, end, signer, offset, window, pay, refusals, leaves)
    if len(leaves) > before:
        state.workers[batch.worker_key] = window
        state.touched.workers.add(batch.worker_key)
        worker = identity.address_bytes(batch.worker_key)
        account = state.account(worker)
        account.highest_nonce = window.highest
        account.results += paid
        if paid:
            pay.post(state, worker, identity.address_bytes(signer))


def _settle_whole(
    state: State, batch: BatchEvidence, first: int, end: int, signer: bytes, offset: int, window: Window, pay: _Pay
) -> int:
    """Settles results first..end - 1, all of one task, if nothing speaks against any of them; returns how many."""
    packed = batch.commitments[COMMITMENT_SIZE * first : COMMITMENT_SIZE * end]
    escrow, run = state.escrows.get(packed[1:33]), columns.Run.read(packed, batch.worker_key)
    if escrow is None or run is None or not batch.signed or not all((batch.included or ())[first:end]):
        return 0
    if escrow.phase is not Phase.ASSIGNED or escrow.terms.delivery == statement.DELIVERY_MANUAL:
        return 0
    if (signer, run.epoch) != (escrow.orchestrator, escrow.epoch):
        return 0
    if not run.new_in(escrow) or not run.unseen(window):
        return 0
    run.take(window)
    run.mark(escrow)
    count, least, more = end - first, escrow.reward // escrow.jobs, run.one_unit_more(escrow)
    for units, jobs in ((least, count - more), (least + 1, more)):
        pay.add(parts_of(units, state.shares, escrow.royalty_bps), escrow.royalty_to, jobs)
    _spend(state, escrow, state.accounts[escrow.customer], count, least * count + more)
    base = state.next_tx * PLACES + offset
    state.touched.results.append((escrow.no, run.jobs, range(base + first, base + end)))
    return count


def _settle_rows(
    state: State, batch: BatchEvidence, first: int, end: int, signer: bytes, offset: int, window: Window, pay: _Pay,
    refusals: list[Refusal], leaves: bytearray,
) -> int:  # fmt: skip
    """Judges results first..end - 1 one by one; returns how many were paid."""
    shares, results, base = state.shares, state.touched.results, state.next_tx * PLACES + offset
    current, escrow, customer, paid = b"", None, Account(), 0
    divided, parts = (-1, -1), Parts()
    for index, row in enumerate(batch.rows[first:end], first):
        _, task_id, job, _, _, _, _, nonce = row
        if task_id != current:
            current, escrow = task_id, state.escrows.get(task_id)
            if escrow is not None:
                customer = state.accounts[escrow.customer]
        reason = _result_refusal(state, batch, index, row, escrow, window, signer)
        if reason is not None or escrow is None:
            refusals.append(Refusal(offset + index, reason or Reason.UNKNOWN_TASK))
            continue
        window.take(nonce)
        leaves += batch.leaves[32 * index : 32 * index + 32]
        if escrow.terms.delivery == statement.DELIVERY_MANUAL:
            _respond(state, escrow, job, Answer(batch.worker_key, signer, base + index))
            continue
        units = _mark_paid(state, escrow, customer, job)
        if (units, escrow.royalty_bps) != divided:  # jobs of one task are worth the same, give or take one unit
            divided, parts = (units, escrow.royalty_bps), parts_of(units, shares, escrow.royalty_bps)
        pay.add(parts, escrow.royalty_to)
        results.append((escrow.no, [job], [base + index]))
        paid += 1
    return paid


def _mark_paid(state: State, escrow: Escrow, customer: Account, job: int) -> int:
    """The job is settled for good; returns its reward, which leaves the customer's escrow."""
    escrow.mark(job)
    units = job_reward(escrow.reward, job, escrow.jobs)
    _spend(state, escrow, customer, 1, units)
    return units


def _spend(state: State, escrow: Escrow, customer: Account, jobs: int, units: int) -> None:
    """`units` for so many jobs leave the customer's escrow."""
    escrow.jobs_settled += jobs
    escrow.settled += units
    customer.held -= units
    customer.spent += units
    if escrow.jobs_settled == escrow.jobs:
        escrow.phase = step(escrow, Event.PAY_LAST, escrow.task_id)
    state.touched.escrows.add(escrow.task_id)
    state.touched.accounts.add(escrow.customer)


def _respond(state: State, escrow: Escrow, job: int, answer: Answer) -> None:
    """One response more to pick from; the first starts the customer's window."""
    answers = answers_of(state, escrow, job)
    if answers is None:
        answers = Answers(state.time_ms + escrow.terms.confirm_window_s * 1000)
        escrow.answered.add(job)
        heapq.heappush(state.confirmations, (answers.due_ms, escrow.task_id, job))
    answers.rows.append(answer)
    state.put(Answers.key(escrow.task_id, job), answers)
    state.touched.escrows.add(escrow.task_id)


def confirm(state: State, signer: bytes, act: Confirm) -> None:
    """The customer picks a response. Raises Refused."""
    escrow = state.escrows.get(act.task_id)
    if escrow is None:
        raise Refused(Reason.UNKNOWN_TASK, f"task_id: no escrow was opened for {act.task_id.hex()}")
    require_customer(state, escrow, signer)
    answers = answers_of(state, escrow, act.job)
    found = [row for row in answers.rows if row.worker == act.worker_key] if answers else []
    if not found:
        if escrow.has(act.job):
            raise Refused(Reason.DUPLICATE_RESULT, f"job: {act.job} is paid already")
        raise Refused(
            Reason.INVALID_RESULT, f"worker_key: {act.worker_key.hex()} has no response to job {act.job} to confirm")
    _pay_answer(state, escrow, act.job, found[0])


def confirm_first(state: State, escrow: Escrow, job: int) -> None:
    """The window passed without a pick: the first response is paid."""
    answers = answers_of(state, escrow, job)
    assert answers is not None
    _pay_answer(state, escrow, job, answers.rows[0])


def _pay_answer(state: State, escrow: Escrow, job: int, answer: Answer) -> None:
    key = Answers.key(escrow.task_id, job)
    del state.records[key]
    state.touched.records.add(key)
    escrow.answered.discard(job)
    units = _mark_paid(state, escrow, state.account(escrow.customer), job)
    pay = _Pay()
    pay.add(parts_of(units, state.shares, escrow.royalty_bps), escrow.royalty_to)
    worker = identity.address_bytes(answer.worker)
    state.account(worker).results += 1
    pay.post(state, worker, identity.address_bytes(answer.orchestrator))
    state.touched.results.append((escrow.no, [job], [answer.place]))


def _result_refusal(
    state: State, batch: BatchEvidence, index: int, row: statement.CommitmentRow, escrow: Escrow | None,
    window: Window, signer: bytes,
) -> Reason | None:  # fmt: skip
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
    if escrow.has(job) or (job in escrow.answered and _answered_by(state, escrow, job, worker_key)):
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


def _answered_by(state: State, escrow: Escrow, job: int, worker_key: bytes) -> bool:
    """Whether this worker has responded, or all the responses asked for are there."""
    answers = answers_of(state, escrow, job)
    rows = answers.rows if answers else []
    return len(rows) >= escrow.terms.responses or any(row.worker == worker_key for row in rows)
