"""Brings accepted results into the ledger, and news of blocks out of it.

A settle transaction is durable here before it is first sent, and sent again under its id until the ledger answered:
nothing is lost or settled twice. What is accepted while one is under way goes into the next. The ledger answers when
the results are durable; their block, which a task's outcome names, is asked for when the next one is sealed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterable
from functools import partial
from typing import Any

import grpc
import structlog

from computemesh.service import tracing
from computemesh.service.crashpoints import crash_point
from computemesh.service.errors import from_rpc_error
from computemesh.service.transactions import uuid7
from computemesh.trust.errors import MeshError
from computemesh.v1 import ledger_pb2
from orchestrator import events as e
from orchestrator import settlement, store
from orchestrator.runtime import Runtime

CALL_TIMEOUT_S = 15.0
FIRST_WAIT_S, LAST_WAIT_S = 0.05, 3.0
HEIGHT_WAIT_S = 0.2
log = structlog.get_logger("orchestrator.settlement")


class Submitter:
    """One loop that sends settle transactions, one that follows the blocks."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.wake = asyncio.Event()
        self._next: e.Submit | None = None
        self._sealed = asyncio.Event()
        self._asking = asyncio.Lock()
        self._heights: dict[bytes, int] = {}

    def take(self, work: e.Submit) -> None:
        """What the core put into the transaction that the loop just named."""
        self._next = work

    async def run(self) -> None:
        """Settle for ever."""
        runtime = self._runtime
        while True:
            await self.wake.wait()
            self.wake.clear()
            while runtime.core.state.unsettled:
                tx_id = uuid7()
                runtime.apply(e.SettleStarted(tx_id, settlement.MAX_RESULTS, settlement.MAX_BYTES))
                work, self._next = self._next, None
                if work is None:
                    break
                body = settlement.build(runtime.key, runtime.config.chain_id, work.tx_id, work.parts)
                crash_point("orchestrator.settlement.built")
                leases = (part.batch.leases[at] for part in work.parts for at in part.positions)
                tasks = {lease.task.id: lease.task.traceparent for lease in leases if lease is not None}
                await runtime.group.commit(
                    partial(_save, tx_id=work.tx_id, body=body, task_ids=list(tasks))
                )
                await self.send(work.tx_id, body, tasks.values())

    async def send(self, tx_id: bytes, body: bytes, traces: Iterable[str] = ()) -> None:
        """Send one transaction until the ledger answered, and tell the core. `traces`: the tasks' traceparents."""
        transaction = ledger_pb2.Transaction.FromString(body)
        request = ledger_pb2.SubmitTransactionsRequest(transactions=[transaction], wait=ledger_pb2.WAIT_ACCEPTED)
        results = sum(len(batch.proof_hashes) // 32 for batch in transaction.settle.batches)
        crash_point("orchestrator.settlement.leaves")
        try:
            with tracing.shared("settle", traces, {"tx_id": tx_id.hex(), "results": results}):
                response = await self._call(self._runtime.ledger.SubmitTransactions, request)
            crash_point("orchestrator.settlement.answered")
            refused, height = settlement.read_answer(response.outcomes[0], results)
        except MeshError as error:
            # The ledger cannot read the transaction, and never will: all of it is refused, loudly.
            log.error("the ledger rejects a settle transaction", tx_id=tx_id.hex(), error=str(error))
            refused, height = dict.fromkeys(range(results), error.reason), 0
        if refused:
            log.warning("results refused", tx_id=tx_id.hex(), of=results, reasons=_counts(refused))
        log.info("settled", tx_id=tx_id.hex(), results=results - len(refused), block=height,
                 **tracing.named(next(iter(traces), "")))
        self._runtime.telemetry.settled(results - len(refused))
        self._runtime.apply(e.SettleAnswered(tx_id, refused, height))

    async def _call(self, method: Any, request: Any) -> Any:
        """Call until it is answered. Raises MeshError where repeating cannot help."""
        wait = FIRST_WAIT_S
        while True:
            try:
                return await method(request, timeout=CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                cause = from_rpc_error(error)
                if cause.status in ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "OUT_OF_RANGE"):
                    raise cause from None
                log.warning("the ledger does not answer", status=cause.status, error=str(cause)[:200], wait_s=wait)
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(wait * 2, LAST_WAIT_S)

    async def height(self, work: e.ComputeRoot) -> int:
        """Block of a task's last settlement, once it is sealed; 0 where the task is gone."""
        while work.task_id in self._runtime.core.state.tasks:
            # No news in that time: the watch may be down, or the block was sealed just before.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._sealed.wait(), HEIGHT_WAIT_S)
            async with self._asking:
                found = self._heights.get(work.tx_id, 0) or await self._height(work)
                if found:
                    if work.tx_id:  # tasks that end in one transaction share the answer
                        self._heights = {work.tx_id: found}
                    return found
        return 0

    async def _height(self, work: e.ComputeRoot) -> int:
        ledger, task_id = self._runtime.ledger, work.task_id.hex()
        try:
            if work.tx_id:
                asked = ledger_pb2.GetTransactionRequest(id=work.tx_id.hex())
                return int((await self._call(ledger.GetTransaction, asked)).outcome.block_height)
            last = ledger_pb2.GetResultRequest(task_id=task_id, job=len(work.results) // 32 - 1)
            return int((await self._call(ledger.GetResult, last)).result.block_height)
        except MeshError as error:
            log.warning("no block height for a finished task", task=task_id, error=str(error))
            return 0

    def _block(self, block_hash: str) -> None:
        self._runtime.apply(e.BlockSealed(bytes.fromhex(block_hash)))
        self._sealed.set()
        self._sealed = asyncio.Event()

    async def fetch(self, work: e.FetchResult) -> None:
        """What the ledger has for a job that was settled before."""
        request = ledger_pb2.GetResultRequest(task_id=work.task_id.hex(), job=work.job)
        while work.task_id in self._runtime.core.state.tasks:
            try:
                result = (await self._call(self._runtime.ledger.GetResult, request)).result
            except MeshError as error:
                log.warning("no result where one was settled", task=work.task_id.hex(), job=work.job, error=str(error))
                await asyncio.sleep(LAST_WAIT_S)
                continue
            found = bytes.fromhex(result.result_hash)
            self._runtime.apply(e.ResultKnown(work.task_id, work.job, found, result.block_height))
            return

    async def settled_before(self, task_id: bytes) -> list[tuple[int, bytes]]:
        """(job, result hash) of what the ledger has settled of a task that another orchestrator held."""
        found: list[tuple[int, bytes]] = []
        token = ""
        while True:
            request = ledger_pb2.ListResultsRequest(task_id=task_id.hex(), page_size=1000, page_token=token)
            try:
                page = await self._call(self._runtime.ledger.ListResults, request)
            except MeshError as error:
                log.warning("the ledger lists no results", task=task_id.hex(), error=str(error))
                return found
            found += [(result.job, bytes.fromhex(result.result_hash)) for result in page.results]
            token = page.next_page_token
            if not token:
                return found

    async def follow_blocks(self) -> None:
        """Keep the newest block's hash, which binds unseeded jobs to their worker and time."""
        wait = FIRST_WAIT_S
        while True:
            try:
                head = await self._runtime.ledger.GetLedger(ledger_pb2.GetLedgerRequest(), timeout=CALL_TIMEOUT_S)
                if head.chain_id != self._runtime.config.chain_id:
                    log.error("the ledger is of another chain", theirs=head.chain_id)
                elif head.block_hash:
                    self._block(head.block_hash)
                request = ledger_pb2.WatchBlocksRequest(from_height=head.block_height + 1)
                async for response in self._runtime.ledger.WatchBlocks(request):
                    wait = FIRST_WAIT_S
                    self._block(response.block.hash)
            except grpc.RpcError as error:
                log.warning("the ledger's blocks cannot be followed", error=str(from_rpc_error(error))[:200])
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(wait * 2, LAST_WAIT_S)


def _save(connection: Any, *, tx_id: bytes, body: bytes, task_ids: list[bytes]) -> None:
    store.save_settle(connection, tx_id, body, task_ids)


def _counts(refused: dict[int, str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in refused.values():
        counts[reason] = counts.get(reason, 0) + 1
    return counts
