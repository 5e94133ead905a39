"""The market's side of the ledger: opens escrows for customers, and carries out what the core owes the ledger.

Transactions the core asks for go out in batches, one request at a time, again and again until the ledger answers;
their ids are durable before, so repeating them is safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import structlog

from computemesh.service.crashpoints import crash_point
from computemesh.service.errors import from_rpc_error
from computemesh.trust import merkle, statement
from computemesh.trust.errors import MeshError, NotFound, Unavailable
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2, ledger_pb2_grpc
from market.states import Answer, Cause, EscrowRead, EscrowStatus, Event, Inspect, IntentKind, LedgerAnswered, Submit

log = structlog.get_logger("market.ledger")

CALL_TIMEOUT_S = 10.0
_MAX_BATCH = 1024
_READS_AT_ONCE = 64
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.1, 5.0
_TRANSIENT = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "UNKNOWN", "RESOURCE_EXHAUSTED"})


def unreachable(address: str, error: MeshError) -> Unavailable:
    """What a customer is told while the ledger does not answer."""
    return Unavailable(
        f"the ledger at {address} does not answer ({error.message}); nothing was kept, retry with the same request_id",
        reason="LEDGER_UNAVAILABLE", metadata={"ledger": address}, retry_after_ms=1000)


def transaction(key: PrivateKey, chain: str, call: Submit) -> ledger_pb2.Transaction:
    """What the core owes the ledger, as the market's `key` signs it on `chain`."""
    tx_id = call.intent.tx_id
    if call.intent.kind is IntentKind.ASSIGN:
        body = statement.Assignment(call.task_id, call.orchestrator_key, call.epoch, call.jobs).pack()
        signed = key.sign(statement.transaction_digest("assign", chain, tx_id, body))
        return ledger_pb2.Transaction(
            id=tx_id, public_key=key.public, signature=signed, assign=ledger_pb2.EscrowAssign(assignment=body))
    body = statement.refund_body(call.task_id, int(call.intent.cause))
    signed = key.sign(statement.transaction_digest("refund", chain, tx_id, body))
    return ledger_pb2.Transaction(
        id=tx_id, public_key=key.public, signature=signed,
        refund=ledger_pb2.EscrowRefund(
            task_id=call.task_id, cause=ledger_pb2.RefundCause.ValueType(int(call.intent.cause))))


class LedgerClient:
    """One ledger, as `key` (the market's) on `chain`."""

    def __init__(self, channel: grpc.aio.Channel, address: str, chain: str, key: PrivateKey) -> None:
        self._stub: Any = ledger_pb2_grpc.LedgerServiceStub(channel)  # type: ignore[no-untyped-call]
        self.address = address
        self._chain = chain
        self._key = key
        self._vkey = ""
        self._waiting: list[Submit] = []
        self._wake = asyncio.Event()
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_event: Callable[[Event], object] = lambda _: None

    # ------------------------------------------------------------ for customers

    async def vkey(self) -> str:
        """The verifier key of the ledger's checkpoints, read once. Raises Unavailable."""
        if not self._vkey:
            found = await self._ask(self._stub.GetLedger, ledger_pb2.GetLedgerRequest())
            self._vkey = str(found.vkey)
        return self._vkey

    async def open(self, order: bytes, signature: bytes) -> ledger_pb2.Outcome:
        """Holds an order's reward; returns the ledger's outcome. Raises Unavailable where there is none."""
        parsed = statement.Order.unpack(order)
        return await self.apply(ledger_pb2.Transaction(
            id=parsed.request_id, public_key=parsed.customer_key, signature=signature,
            open=ledger_pb2.EscrowOpen(order=order)))

    async def apply(self, transaction: ledger_pb2.Transaction) -> ledger_pb2.Outcome:
        """Applies a signed transaction; the ledger's outcome. Raises Unavailable where there is none."""
        response = await self._ask(self._stub.SubmitTransactions, ledger_pb2.SubmitTransactionsRequest(
            transactions=[transaction], wait=ledger_pb2.WAIT_ACCEPTED))
        outcome: ledger_pb2.Outcome = response.outcomes[0]
        return outcome

    async def opened(self, request_id: bytes) -> tuple[bytes, bytes] | None:
        """Order and signature of the `open` with this id, None where there is none. Raises Unavailable."""
        try:
            found = await self._ask(
                self._stub.GetTransaction, ledger_pb2.GetTransactionRequest(id=request_id.hex()))
        except NotFound:
            return None
        applied = found.outcome.kind == ledger_pb2.OUTCOME_KIND_APPLIED
        if not applied or found.transaction.WhichOneof("body") != "open":
            return None
        return found.transaction.open.order, found.transaction.signature

    async def has_escrow(self, task_id: bytes) -> bool:
        """Whether the ledger ever held money for this task. Raises Unavailable."""
        try:
            await self._ask(self._stub.GetEscrow, ledger_pb2.GetEscrowRequest(task_id=task_id.hex()))
        except NotFound:
            return False
        return True

    async def may_judge(self, task_id: str, address: str) -> bool:
        """Whether the account has a validator's stake and a result of the task is contested. Raises Unavailable."""
        rules = await self._ask(self._stub.GetLedger, ledger_pb2.GetLedgerRequest())
        stake = (await self._ask(self._stub.GetStake, ledger_pb2.GetStakeRequest(address=address))).stake
        if stake.units < rules.validator_stake_units:
            return False
        token = ""
        while True:
            page = await self._ask(self._stub.ListDisputes, ledger_pb2.ListDisputesRequest(
                open_only=True, page_size=1000, page_token=token))
            if any(dispute.task_id == task_id for dispute in page.disputes):
                return True
            token = page.next_page_token
            if not token:
                return False

    async def model_terms(self, name: str) -> ledger_pb2.GetModelTermsResponse | None:
        """What a model's owner asks; None where no terms are registered. Raises Unavailable."""
        try:
            found: ledger_pb2.GetModelTermsResponse = await self._ask(
                self._stub.GetModelTerms, ledger_pb2.GetModelTermsRequest(model_id=name))
        except NotFound:
            return None
        return found

    async def pool(self, name: str) -> ledger_pb2.GetPoolResponse:
        """A pool as the ledger has it. Raises NotFound, Unavailable."""
        found: ledger_pb2.GetPoolResponse = await self._ask(
            self._stub.GetPool, ledger_pb2.GetPoolRequest(name=name))
        return found

    async def balance_units(self, address: str) -> int:
        """Free balance of an account. Raises Unavailable."""
        found = await self._ask(self._stub.GetAccount, ledger_pb2.GetAccountRequest(address=address))
        return int(found.account.balance_units)

    async def _ask(self, method: Any, request: Any) -> Any:
        """One call; what may be over in a moment (the ledger restarting) is tried again for a few seconds."""
        delay = _FIRST_DELAY_S
        for attempt in range(4):
            try:
                return await method(request, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as failure:
                error = from_rpc_error(failure)
            if error.status not in _TRANSIENT:
                raise error
            if attempt < 3:
                await asyncio.sleep(delay)
                delay *= 2
        raise unreachable(self.address, error)

    # ------------------------------------------------------------ for the core

    def submit(self, call: Submit) -> None:
        """Queues a transaction of the core's."""
        self._waiting.append(call)
        self._wake.set()

    def inspect(self, call: Inspect) -> None:
        """Reads an escrow, until it is read."""
        task = asyncio.create_task(self._inspect(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def run(self) -> None:
        """Sends what is queued, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:_MAX_BATCH], self._waiting[_MAX_BATCH:]
                await self._send(batch)

    async def close(self) -> None:
        """Ends the reads under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self, batch: list[Submit]) -> None:
        request = ledger_pb2.SubmitTransactionsRequest(
            transactions=[transaction(self._key, self._chain, call) for call in batch], wait=ledger_pb2.WAIT_ACCEPTED)
        delay = _FIRST_DELAY_S
        while True:
            try:
                crash_point("market.transactions.leave")
                response = await self._stub.SubmitTransactions(request, timeout=CALL_TIMEOUT_S)
                break
            except grpc.aio.AioRpcError as failure:
                log.warning("transactions not accepted yet", count=len(batch), error=from_rpc_error(failure).message)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY_S)
        crash_point("market.transactions.answered")
        answers = []
        for call, outcome in zip(batch, response.outcomes, strict=True):
            applied = outcome.kind == ledger_pb2.OUTCOME_KIND_APPLIED
            answers.append(Answer(call.task_id, call.intent.tx_id, applied, outcome.reason))
            if not applied:
                log.info("transaction refused", task=call.task_id.hex(), kind=call.intent.kind.name,
                         reason=outcome.reason, message=outcome.message)
        self.on_event(LedgerAnswered(tuple(answers)))

    async def _inspect(self, call: Inspect) -> None:
        delay = _FIRST_DELAY_S
        while True:
            try:
                async with self._reads:
                    event = await self._read_escrow(call)
                break
            except grpc.aio.AioRpcError as failure:
                log.warning("escrow not read yet", task=call.task_id.hex(), error=from_rpc_error(failure).message)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY_S)
        crash_point("market.escrow.read")
        self.on_event(event)

    async def _read_escrow(self, call: Inspect) -> EscrowRead:
        task_id = call.task_id.hex()
        try:
            found = await self._stub.GetEscrow(ledger_pb2.GetEscrowRequest(task_id=task_id), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as failure:
            if failure.code() is grpc.StatusCode.NOT_FOUND:
                return EscrowRead(call.task_id, EscrowStatus.MISSING)
            raise
        escrow = found.escrow
        root, height = b"", 0
        if call.with_root and escrow.status == ledger_pb2.ESCROW_STATUS_SETTLED:
            root, height = await self._results_root(task_id)
        return EscrowRead(
            call.task_id, EscrowStatus(escrow.status), Cause(escrow.refund_cause), escrow.refunded_units,
            escrow.jobs_settled, escrow.epoch, root, height)

    async def _results_root(self, task_id: str) -> tuple[bytes, int]:
        """Root over the result hashes in job order, and the height of the last block with one of them."""
        leaves: list[bytes] = []
        height, token = 0, ""
        while True:
            page = await self._stub.ListResults(
                ledger_pb2.ListResultsRequest(task_id=task_id, page_size=1000, page_token=token),
                timeout=CALL_TIMEOUT_S)
            for result in page.results:
                leaves.append(merkle.leaf_hash(bytes.fromhex(result.result_hash)))
                height = max(height, result.block_height)
            token = page.next_page_token
            if not token:
                return merkle.root(leaves), height
