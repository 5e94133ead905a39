"""The one writer: submissions in, folded in order, made durable in groups, answered after COMMIT.

The fold runs ahead of the disk by at most two commits. Nobody reads its state: readers see the tables.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from computemesh.service import tracing
from computemesh.service.crashpoints import crash_point
from computemesh.service.store import Connection, GroupCommit
from computemesh.trust.checkpoint import NoteSigner
from computemesh.trust.errors import ResourceExhausted, Unavailable
from ledger import replay, store, wire
from ledger.anchor import Anchor
from ledger.archive import Archive
from ledger.block import Chain
from ledger.core import next_deadline
from ledger.evidence import Examined
from ledger.state import Effects, Reason, Refusal, Touched
from ledger.telemetry import Telemetry

log = structlog.get_logger("ledger.writer")

MAX_QUEUED_BYTES = 64 * 1024 * 1024
MAX_QUEUED = 4096
_MAX_COMMITS = 2
_MAX_GROUP_RESULTS = 8192
_RETRY_MS = 100
_ANCHOR_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one transaction, as its submitter learns it; `number` is 0 where it was refused."""

    number: int
    reason: Reason | None = None
    message: str = ""
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """A transaction applied before: its number, its content's digest, its refused results."""

    number: int
    digest: bytes
    refusals: tuple[Refusal, ...]


@dataclass(slots=True)
class Submission:
    """One request's transactions with their stored form, and who waits for them."""

    examined: Sequence[Examined]
    bodies: Sequence[bytes]
    sealed: bool
    size: int
    trace: str
    answer: asyncio.Future[list[Verdict]]


class Writer:
    """Owns the fold. `clock` gives Unix ms."""

    def __init__(
        self, chain: Chain, last_seq: int, group: GroupCommit, reader: Connection, signer: NoteSigner, anchor: Anchor,
        *, block_interval_ms: int, block_max_results: int,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:  # fmt: skip
        self._chain, self._seq, self._group, self._reader, self._signer = chain, last_seq + 1, group, reader, signer
        self._anchor = anchor
        self._interval_ms, self._max_results, self._clock = block_interval_ms, block_max_results, clock
        self._queue: deque[Submission] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self.closing = self._folded = False
        self._unsealed_since: float | None = time.monotonic() if chain.dirty else None
        self._pending: dict[bytes, Known] = {}
        self._slots = asyncio.Semaphore(_MAX_COMMITS)
        self._waiting: list[tuple[int, Submission, list[Verdict]]] = []
        self._telemetry = Telemetry(replay.supply_row(chain.state))
        self._archive = Archive(chain, lambda task_id: replay.ended_escrow(store.escrow(reader, task_id)))
        self.news = asyncio.Event()
        """Set once another block is sealed, durable and anchored, or the writer closes; then there is a new one."""
        newest = store.newest_block(reader)
        assert newest is not None  # block 0 is made before
        self.sealed_tx: int = newest[1]
        """Number of the last transaction in a published block."""
        self.anchored: int = newest[0] + 1
        """Blocks whose checkpoint may be published: it is durable, and the anchor has it or a later one."""
        self._durable_block: store.Row | None = None
        self._anchor_due = asyncio.Event()

    # What callers use

    def admit(self, size: int) -> None:
        """Raises ResourceExhausted where `size` more bytes do not fit the queue, Unavailable while stopping."""
        if self.closing:
            raise Unavailable("the ledger is stopping", retry_after_ms=1000)
        if self._queued_bytes + size > MAX_QUEUED_BYTES or len(self._queue) >= MAX_QUEUED:
            raise ResourceExhausted(
                f"queue: {self._queued_bytes} bytes in {len(self._queue)} requests wait already, "
                f"at most {MAX_QUEUED_BYTES} in {MAX_QUEUED}", retry_after_ms=_RETRY_MS)

    async def submit(
        self, examined: Sequence[Examined], bodies: Sequence[bytes], size: int, sealed: bool
    ) -> list[Verdict]:
        """Queues transactions; returns once all are durable, or with `sealed` once their blocks are."""
        self.admit(size)
        answer: asyncio.Future[list[Verdict]] = asyncio.get_running_loop().create_future()
        self._queue.append(Submission(examined, bodies, sealed, size, tracing.current(), answer))
        self._queued_bytes += size
        self._wake.set()
        return await answer

    def close(self) -> None:
        """Lets `run` end once everything queued is applied, sealed and durable."""
        self.closing = True
        self._wake.set()
        self._announce()

    # The loop

    async def run(self) -> None:
        """Works until closed."""
        async with asyncio.TaskGroup() as group:
            anchoring = group.create_task(self._publish())
            await self._fold()
            self._folded = True
            self._anchor_due.set()
            await anchoring

    async def _fold(self) -> None:
        while not (self.closing and not self._queue):
            await self._wait()
            await self._slots.acquire()
            await self._cycle(final=False)
        await self._slots.acquire()
        await self._cycle(final=True)
        for _ in range(_MAX_COMMITS):
            await self._slots.acquire()

    async def _wait(self) -> None:
        """Returns when there is something to apply, to seal or to expire."""
        if self._queue or self.closing:
            return
        self._wake.clear()
        due: list[float] = []
        if self._unsealed_since is not None:
            due.append(self._unsealed_since + self._interval_ms / 1000 - time.monotonic())
        deadline = next_deadline(self._chain.state)
        if deadline is not None:
            due.append((deadline - max(self._clock(), self._chain.state.time_ms)) / 1000)
        timer = None
        if due:
            # Capped: a deadline may be years away, and clocks are set.
            timer = asyncio.get_running_loop().call_later(min(max(min(due), 0.0), 60.0), self._wake.set)
        await self._wake.wait()
        if timer is not None:
            timer.cancel()

    async def _cycle(self, final: bool) -> None:
        """Folds what is queued and hands it to the disk. Takes a commit slot that is given back once it is durable."""
        crash_point("ledger.fold.begins")
        self._archive.put_away()
        rows, touched = store.Rows(), Touched()
        done: list[tuple[Submission, list[Verdict]]] = []
        results = 0
        group = _Group(self, rows, touched)
        while self._queue and results < _MAX_GROUP_RESULTS:
            submission = self._queue.popleft()
            self._queued_bytes -= submission.size
            verdicts = []
            for examined, body in zip(submission.examined, submission.bodies, strict=True):
                verdicts.append(self._apply(group, examined, body))
                results += examined.results
            done.append((submission, verdicts))
            await asyncio.sleep(0)  # others may speak between two requests
        group.end(seal=self._seal_due(group) or (final and group.dirty()))
        if rows.log:
            self._finish_rows(rows, touched)
        elif not done:
            self._slots.release()
            return
        crash_point("ledger.fold.done")
        commit = self._group.submit(lambda connection: store.write(connection, rows))
        commit.add_done_callback(lambda _: self._durable(rows, done))

    def _seal_due(self, group: _Group) -> bool:
        if not group.dirty():
            return False
        if self._unsealed_since is None:
            self._unsealed_since = time.monotonic()
        waited_ms = (time.monotonic() - self._unsealed_since) * 1000
        return waited_ms >= self._interval_ms or self._chain.results >= self._max_results

    def _apply(self, group: _Group, examined: Examined, body: bytes) -> Verdict:
        known = self._known(examined.transaction.id)
        if known is not None:
            if known.digest != examined.digest:
                return Verdict(
                    0, Reason.ID_CONFLICT, f"id: {examined.transaction.id.hex()} was used with other content")
            return Verdict(known.number, refusals=known.refusals)
        chain = self._chain
        if chain.results and chain.results + examined.results > self._max_results:
            group.end(seal=True)
            group.begin()
        first_leaf = chain.results
        effects = chain.apply(examined)
        if effects.number:
            group.add(examined, effects, body, first_leaf)
            self._pending[examined.transaction.id] = Known(effects.number, examined.digest, effects.refusals)
        return Verdict(effects.number, effects.reason, effects.message, effects.refusals)

    def _known(self, tx_id: bytes) -> Known | None:
        known = self._pending.get(tx_id)
        if known is None:
            row = store.outcome_by_id(self._reader, tx_id)
            if row is not None:
                known = Known(row[0], row[1], wire.unpack_refusals(row[2]))
        return known

    def _finish_rows(self, rows: store.Rows, touched: Touched) -> None:
        state = self._chain.state
        rows.accounts = [replay.account_row(key, state.accounts[key]) for key in touched.accounts]
        rows.escrows = [replay.escrow_row(state.escrows[key]) for key in touched.escrows]
        self._archive.written(touched.escrows)
        rows.supply = [replay.supply_row(state)]
        rows.results = touched.results
        for key in touched.records:
            record = state.records.get(key)
            if record is None:
                rows.gone.append(key)
            else:
                rows.records.append((*key, record.pack()))

    def _announce(self) -> None:
        self.news.set()
        self.news = asyncio.Event()

    def _durable(self, rows: store.Rows, done: list[tuple[Submission, list[Verdict]]]) -> None:
        self._slots.release()
        if rows.log:
            self._archive.durable()
        self._telemetry.durable(rows, self._queued_bytes)
        for row in rows.transactions:
            self._pending.pop(row[1], None)
        for submission, verdicts in done:
            self._telemetry.traced(submission.trace, max((verdict.number for verdict in verdicts), default=0))
            last = max((verdict.number for verdict in verdicts), default=0) if submission.sealed else 0
            self._waiting.append((last, submission, verdicts))
        if rows.blocks:
            crash_point("ledger.block.durable")
            self._durable_block = rows.blocks[-1]
            self._anchor_due.set()
        self._telemetry.sealed(rows.blocks)
        self._answer()

    async def _publish(self) -> None:
        """Anchors the newest durable block, then lets it be seen; while one is being anchored the next collect."""
        while not self._folded or self._durable_block is not None:
            await self._anchor_due.wait()
            self._anchor_due.clear()
            newest, self._durable_block = self._durable_block, None
            if newest is None or not await self._anchored(newest[4]):
                continue
            blocks, transactions = newest[0] + 1 - self.anchored, newest[1] - self.sealed_tx
            self.anchored, self.sealed_tx = newest[0] + 1, newest[1]
            log.info("blocks sealed", height=newest[0], blocks=blocks, transactions=transactions)
            self._announce()
            self._answer()

    async def _anchored(self, note: str) -> bool:
        """False where the anchor cannot be reached while we stop: the next start makes it good."""
        while True:
            try:
                crash_point("ledger.anchor.begins")
                await asyncio.to_thread(self._anchor.advance, note)
                crash_point("ledger.anchor.done")
                return True
            except Unavailable as error:
                log.error("blocks stay unpublished until the anchor answers", problem=str(error))
                if self.closing:
                    return False
                await asyncio.sleep(_ANCHOR_RETRY_S)

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for last, submission, verdicts in waiting:
            if last > self.sealed_tx:
                self._waiting.append((last, submission, verdicts))
            elif not submission.answer.done():
                submission.answer.set_result(verdicts)


class _Group:
    """The group that is being folded: one row of the log, ended at a seal or with the commit."""

    def __init__(self, writer: Writer, rows: store.Rows, touched: Touched) -> None:
        self._writer, self._rows, self._touched = writer, rows, touched
        self.begin()

    def begin(self) -> None:
        """Moves time forward; what expires by that belongs to the group."""
        self._count = 0
        self._expired = self._writer._chain.advance(self._writer._clock())

    def dirty(self) -> bool:
        """Whether the open block has anything in it, this group included."""
        self._touched.update(self._writer._chain.collect())
        return self._writer._chain.dirty

    def add(self, examined: Examined, effects: Effects, body: bytes, first_leaf: int) -> None:
        """Notes an applied transaction."""
        rows, number = self._rows, effects.number
        rows.transactions.append(replay.transaction_row(examined, effects, body, first_leaf))
        assignment = replay.assignment_row(self._writer._chain.state, examined, number)
        if assignment:
            rows.assignments.append(assignment)
        self._count += 1

    def end(self, seal: bool) -> None:
        """Writes the group's row, if it did anything, and seals its block if asked."""
        writer, chain = self._writer, self._writer._chain
        self.dirty()
        if self._count or self._expired or seal:
            self._rows.log.append((writer._seq, chain.state.time_ms, int(seal), self._count))
            writer._seq += 1
        if seal:
            sealed = chain.seal()
            crash_point("ledger.block.sealed")
            self._rows.blocks.append(replay.block_row(sealed, writer._signer))
            self._rows.nodes.extend(sealed.nodes)
            self._touched.update(sealed.touched)
            writer._unsealed_since = time.monotonic() if chain.dirty else None
