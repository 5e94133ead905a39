"""The market's decisions: `step(event, now_ms) -> Effects(persist, send, ledger)`. No I/O, no clock, no randomness.

Every change of a task is a record, made by `Book.change`. The shell makes `persist` durable, then does `send` and
`ledger`. The ledger alone decides how a task ended: cancelling, failing and expiring only ask it, and `_conclude`
believes its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from market.book import Book, Orchestrator, Task, revocation, transaction_id
from market.kinds import EventKind, FeedKind
from market.progress import Counts
from market.states import (
    TERMINAL,
    TRANSITIONS,
    Cancel,
    Cause,
    Connect,
    Create,
    Created,
    Disconnect,
    Drain,
    Effects,
    EscrowRead,
    EscrowStatus,
    Event,
    Heartbeat,
    Inspect,
    Intent,
    IntentKind,
    Lease,
    LedgerAnswered,
    Look,
    Move,
    OutcomeRow,
    Outcomes,
    Phase,
    Progress,
    Ready,
    Release,
    Restore,
    SendAck,
    SendClose,
    SendLease,
    SendRevoke,
    State,
    Status,
    Submit,
    Takes,
    Tick,
)

MAX_CREDITS = 100_000
_FIRST_RETRY_MS = 50
_LONGEST_RETRY_MS = 5_000


class Core:
    """Decides over the tasks in `book`."""

    def __init__(self, lease_ms: int) -> None:
        self._lease_ms = lease_ms
        self.book = Book()
        self._wakes: list[tuple[int, bytes]] = []
        self._counts = Counts(self.book)
        self._draining = False
        self._effects = Effects()
        self._now = 0
        self._steps: dict[type, Callable[[Any], None]] = {
            Restore: self._restore,
            Create: self._create,
            Cancel: self._cancel,
            Look: self._look,
            Connect: self._connect,
            Disconnect: self._disconnect,
            Ready: self._ready,
            Takes: self._takes,
            Heartbeat: self._heartbeat,
            Progress: self._progress,
            Outcomes: self._outcomes,
            LedgerAnswered: self._ledger_answered,
            EscrowRead: self._conclude,
            Tick: self._tick,
            Drain: self._drain,
        }

    def step(self, event: Event, now_ms: int) -> Effects:
        """Decides what follows from `event` at `now_ms` (Unix ms). Never raises for anything a peer sent."""
        self._now = self.book.now_ms = now_ms
        self._effects = Effects()
        self.book.records = self._effects.persist
        self._steps[type(event)](event)
        self._lease_out()
        return self._effects

    def _start(self, task: Task) -> None:
        if task.state.status is Status.PENDING:
            self.book.change(task, EventKind.STARTED, status=TRANSITIONS[Status.PENDING, Move.START])

    def _end(self, task: Task, move: Move, escrow: EscrowRead, **values: Any) -> None:
        if move is Move.COMPLETE:
            self._start(task)
        status = TRANSITIONS[task.state.status, move]
        holder = self.book.holder(task)
        self._counts.forget(task)
        claimed = task.claim is not None
        files = task.claim.files if task.claim is not None and move is Move.COMPLETE else b""
        self._effects.release.append(Release(task.spec.task_id, task.spec.challenge_type, files))
        settled = max(task.state.jobs_settled, escrow.jobs_settled)
        feed = ((FeedKind.TASK_SETTLED, settled),) if settled > task.reached[2] else ()
        self.book.change(
            task, EventKind.ENDED, feed, status=status, phase=Phase.ENDED, ended_ms=self._now, jobs_running=0,
            jobs_settled=settled, refunded_units=escrow.refunded_units,
            intent=None, files=files, **values)
        if holder is not None and holder.connection is not None and claimed:
            self._effects.send.append(SendAck(holder.connection, task.spec.task_id))

    def _restore(self, event: Restore) -> None:
        for spec, state in event.tasks:
            task = self.book.admit(spec, state)
            if state.phase is Phase.ASSIGNING or (state.phase is Phase.CLOSING and state.intent is not None):
                self._submit(task)
            elif state.phase is Phase.CLOSING:
                self._effects.ledger.append(Inspect(spec.task_id, False))

    def _create(self, event: Create) -> None:
        if event.spec.task_id in self.book.tasks:
            return
        state = State(cursor=1, updated_ms=self._now)
        self.book.records.append(Created(event.spec, state))
        self.book.admit(event.spec, state)

    def _cancel(self, event: Cancel) -> None:
        task = self.book.tasks.get(event.task_id)
        if task is not None and (task.state.phase is not Phase.CLOSING or task.state.intent is None):
            self._refund(task, Cause.CANCELLED, "cancelled by the customer")

    def _look(self, event: Look) -> None:
        if event.task_id in self.book.tasks:
            self._effects.ledger.append(Inspect(event.task_id, False))

    def _refund(self, task: Task, cause: Cause, detail: str) -> None:
        if cause is Cause.CANCELLED:
            self._revoke(task, Status.CANCELLED)
        intent = Intent(
            IntentKind.REFUND, transaction_id(IntentKind.REFUND, task.spec.task_id, task.state.epoch, self._now), cause)
        self.book.change(task, None, phase=Phase.CLOSING, intent=intent, detail=detail)
        self._submit(task)

    def _submit(self, task: Task) -> None:
        state = task.state
        assert state.intent is not None
        self._effects.ledger.append(
            Submit(task.spec.task_id, state.intent, state.epoch, state.orchestrator_key, task.spec.jobs))

    def _revoke(self, task: Task, status: Status | None) -> None:
        holder = self.book.holder(task)
        if task.state.phase is Phase.LEASED and holder is not None and holder.connection is not None:
            self._effects.send.append(
                SendRevoke(holder.connection, task.spec.task_id, task.state.epoch, status))

    # ------------------------------------------------------------ orchestrators

    def _connect(self, event: Connect) -> None:
        orchestrator = self.book.orchestrator(event.key, event.address)
        if orchestrator.connection is not None:
            self._close(orchestrator, "SUPERSEDED", "the same key dialled again")
        orchestrator.connection, orchestrator.address = event.connection, event.address
        orchestrator.seen_ms, orchestrator.credits = self._now, 0
        self.book.connections[event.connection] = orchestrator
        ended = dict(event.ended)
        for task_id, epoch in event.held:
            task = self.book.tasks.get(task_id)
            if task is None or task.state.epoch != epoch or task_id not in orchestrator.held:
                self._effects.send.append(
                    SendRevoke(event.connection, task_id, epoch, revocation(task, ended.get(task_id))))
        # What it holds and what a crash kept from reaching it: both are told again, under the epoch they have.
        for task_id in list(orchestrator.held):
            self._send_lease(orchestrator, self.book.tasks[task_id])

    def _send_lease(self, orchestrator: Orchestrator, task: Task) -> None:
        if task.state.phase is Phase.LEASED and orchestrator.connection is not None:
            self._effects.send.append(
                SendLease(orchestrator.connection, Lease(task.spec, task.state.epoch)))

    def _close(self, orchestrator: Orchestrator, reason: str, message: str) -> None:
        assert orchestrator.connection is not None
        self._effects.send.append(SendClose(orchestrator.connection, reason, message))
        del self.book.connections[orchestrator.connection]
        orchestrator.connection, orchestrator.credits = None, 0

    def _heard(self, connection: int) -> Orchestrator | None:
        orchestrator = self.book.connections.get(connection)
        if orchestrator is not None:
            orchestrator.seen_ms = self._now
        return orchestrator

    def _disconnect(self, event: Disconnect) -> None:
        orchestrator = self.book.connections.pop(event.connection, None)
        if orchestrator is not None:
            orchestrator.connection, orchestrator.credits = None, 0

    def _ready(self, event: Ready) -> None:
        orchestrator = self._heard(event.connection)
        if orchestrator is not None:
            orchestrator.credits = min(orchestrator.credits + event.credits, MAX_CREDITS)

    def _takes(self, event: Takes) -> None:
        orchestrator = self._heard(event.connection)
        if orchestrator is not None:
            orchestrator.takes = event.challenge_types
            self._give_up(self.book.stranded(orchestrator, self._lease_ms))

    def _heartbeat(self, event: Heartbeat) -> None:
        self._heard(event.connection)

    def leased(self, connection: int, task_id: bytes, epoch: int) -> bool:
        """Whether the orchestrator of this connection holds the task."""
        orchestrator = self._heard(connection)
        return orchestrator is not None and self.book.leased(orchestrator, task_id, epoch) is not None

    def _progress(self, event: Progress) -> None:
        orchestrator = self._heard(event.connection)
        if orchestrator is None:
            return
        for row in event.rows:
            task = self.book.leased(orchestrator, row.task_id, row.epoch)
            if task is None:
                continue
            if row.jobs_running or row.jobs_settled:
                self._start(task)
            self._counts.take(task, row)

    def _outcomes(self, event: Outcomes) -> None:
        orchestrator = self._heard(event.connection)
        if orchestrator is None:
            return
        for row in event.rows:
            task = self.book.leased(orchestrator, row.task_id, row.epoch)
            if task is None:
                self._late_outcome(orchestrator, event.connection, row)
            elif row.completed:
                # Believed once the ledger says so, acknowledged once that is durable.
                task.claim = row
                self._effects.ledger.append(Inspect(row.task_id, len(row.result_hash) != 32))
            else:
                self._refund(task, Cause.FAILED, row.detail or "a job cannot be done")
                self._effects.send.append(SendAck(event.connection, row.task_id))

    def _late_outcome(self, orchestrator: Orchestrator, connection: int, row: OutcomeRow) -> None:
        task = self.book.tasks.get(row.task_id)
        if task is None:  # ended and recorded before: the acknowledgement was lost, not the outcome
            self._effects.send.append(SendAck(connection, row.task_id))
        elif task.state.phase is Phase.CLOSING \
                and (task.state.orchestrator_key, task.state.epoch) == (orchestrator.key, row.epoch):
            if row.completed:
                task.claim = row
            else:
                self._effects.send.append(SendAck(connection, row.task_id))
        else:
            self._effects.send.append(SendRevoke(connection, row.task_id, row.epoch, None))

    def _lease_out(self) -> None:
        """Gives waiting tasks to whoever has credits, first who has workers for them, then most free credits."""
        if self._draining or not len(self.book.queue):
            return
        free = [o for o in self.book.connections.values() if o.credits > 0]
        while free:
            task_id = self.book.queue.pop()
            if task_id is None:
                return
            task = self.book.tasks[task_id]
            ranks = [(task.spec.challenge_type in one.takes, one.credits, one.key) for one in free]
            orchestrator = free[ranks.index(max(ranks))]
            orchestrator.credits -= 1
            if orchestrator.credits == 0:
                free.remove(orchestrator)
            epoch = task.state.epoch + 1
            intent = Intent(
                IntentKind.ASSIGN, transaction_id(IntentKind.ASSIGN, task_id, epoch, self._now))
            task.charged = orchestrator.connection
            self.book.change(task, None, phase=Phase.ASSIGNING, epoch=epoch, intent=intent,
                         orchestrator_key=orchestrator.key, orchestrator_address=orchestrator.address)
            self._submit(task)

    # ------------------------------------------------------------ ledger

    def _ledger_answered(self, event: LedgerAnswered) -> None:
        for answer in event.answers:
            task = self.book.tasks.get(answer.task_id)
            # An answer to an intent that a later one replaced changes nothing.
            if task is None or task.state.intent is None or task.state.intent.tx_id != answer.tx_id:
                continue
            if task.state.intent.kind is IntentKind.REFUND:
                self._effects.ledger.append(Inspect(answer.task_id, False))
            elif answer.applied:
                self._assigned(task)
            else:
                self._assignment_refused(task)

    def _assigned(self, task: Task) -> None:
        orchestrator = self.book.orchestrator(task.state.orchestrator_key, task.state.orchestrator_address)
        self.book.change(task, EventKind.LEASED, phase=Phase.LEASED, intent=None)
        task.retries = 0
        self._send_lease(orchestrator, task)

    def _assignment_refused(self, task: Task) -> None:
        self.book.change(task, None, phase=Phase.CLOSING, intent=None, orchestrator_key=b"", orchestrator_address="")
        # Ended there meanwhile, or a lower epoch than the ledger's: reading it tells. Not at once, or a ledger that
        # refuses every assignment would be asked in a tight loop.
        self._wake_later(task)

    def _conclude(self, escrow: EscrowRead) -> None:
        """The ledger's word on how a task stands."""
        task = self.book.tasks.get(escrow.task_id)
        if task is None:
            return
        if escrow.status is EscrowStatus.OPEN:
            self._still_open(task, escrow)
        elif escrow.status is EscrowStatus.SETTLED:
            self._settled(task, escrow)
        elif escrow.status is EscrowStatus.MISSING:
            self._closed(task, Move.FAIL, escrow, "the ledger holds no escrow for this task")
        elif escrow.cause is Cause.CANCELLED:
            self._closed(task, Move.CANCEL, escrow, "cancelled by the customer")
        elif escrow.cause is Cause.FAILED:
            self._closed(task, Move.FAIL, escrow, task.state.detail or "a job cannot be done")
        else:
            self._closed(task, Move.EXPIRE, escrow, "the deadline passed")

    def _closed(self, task: Task, move: Move, escrow: EscrowRead, detail: str) -> None:
        if task.state.phase is not Phase.CLOSING:
            self._revoke(task, Status.EXPIRED if move is Move.EXPIRE else Status.CANCELLED)
            self.book.change(task, None, phase=Phase.CLOSING, intent=None)
        self._end(task, move, escrow, detail=detail)

    def _settled(self, task: Task, escrow: EscrowRead) -> None:
        claim = task.claim
        result_hash = claim.result_hash if claim is not None and len(claim.result_hash) == 32 else escrow.result_hash
        if not result_hash:
            self._effects.ledger.append(Inspect(task.spec.task_id, True))
            return
        if task.state.phase in (Phase.QUEUED, Phase.ASSIGNING):
            self.book.change(task, None, phase=Phase.CLOSING, intent=None)
        height = max(task.state.block_height, escrow.block_height, claim.block_height if claim else 0)
        detail = claim.detail if claim is not None else ""
        self._end(task, Move.COMPLETE, escrow, detail=detail, result_hash=result_hash, block_height=height)

    def _still_open(self, task: Task, escrow: EscrowRead) -> None:
        state = task.state
        if state.phase is Phase.LEASED and task.claim is not None and task.spec.manual:
            self._wake_later(task)  # answered, not confirmed yet: the customer's word or its silence ends it
        elif state.phase is Phase.LEASED and task.claim is not None:
            # A claim that the ledger does not bear out: another orchestrator shall try.
            self._give_up([task])
        elif state.phase is Phase.CLOSING and state.intent is None and self._now < task.spec.deadline_ms:
            self.book.change(task, None, phase=Phase.QUEUED, epoch=max(state.epoch, escrow.epoch))
        elif state.phase is Phase.CLOSING:
            self._wake_later(task)

    def _wake_later(self, task: Task) -> None:
        delay_ms = min(_FIRST_RETRY_MS << min(task.retries, 10), _LONGEST_RETRY_MS)
        task.retries += 1
        task.wake_ms = self._now + delay_ms
        heappush(self._wakes, (task.wake_ms, task.spec.task_id))

    def _tick(self, _: Tick) -> None:
        while self._wakes and self._wakes[0][0] <= self._now:
            self._wake(*heappop(self._wakes))
        while self.book.deadlines and self.book.deadlines[0][0] <= self._now:
            self._expire(heappop(self.book.deadlines)[1])
        self._counts.record_due()
        for orchestrator in list(self.book.orchestrators.values()):
            if self._now - orchestrator.seen_ms >= self._lease_ms:
                self._silent(orchestrator)

    def _wake(self, due_ms: int, task_id: bytes) -> None:
        task = self.book.tasks.get(task_id)
        # One that was put off again is not due; one that runs is looked at where its answers wait to be confirmed.
        if task is None or task.wake_ms != due_ms or not (task.state.phase is Phase.CLOSING or task.claim):
            return
        if task.state.intent is not None:
            self._submit(task)
        else:
            self._effects.ledger.append(Inspect(task_id, False))

    def _expire(self, task_id: bytes) -> None:
        task = self.book.tasks.get(task_id)
        if task is None or task.state.phase is Phase.CLOSING:
            return
        # The ledger refunds by itself, at the first block time past the deadline; here it is only asked.
        self._revoke(task, Status.EXPIRED)
        self.book.change(task, None, phase=Phase.CLOSING, intent=None)
        self._effects.ledger.append(Inspect(task_id, False))

    def _silent(self, orchestrator: Orchestrator) -> None:
        held = [self.book.tasks[task_id] for task_id in orchestrator.held]
        self._give_up([task for task in held if task.state.phase is Phase.LEASED])
        if orchestrator.connection is not None:
            self._close(orchestrator, "LEASE_EXPIRED", f"nothing heard for {self._lease_ms} ms")
        if not orchestrator.held:
            del self.book.orchestrators[orchestrator.key]

    def _give_up(self, tasks: list[Task]) -> None:
        """Their holders have them no more: they are leased to whoever is next."""
        for task in tasks:
            self._revoke(task, None)
            self._counts.record(task)
            task.claim = None
            self.book.change(task, EventKind.RELEASED, phase=Phase.QUEUED, jobs_running=0,
                             orchestrator_key=b"", orchestrator_address="")

    def _drain(self, _: Drain) -> None:
        self._draining = True


assert set(TRANSITIONS.values()) - {Status.IN_PROGRESS} == TERMINAL
