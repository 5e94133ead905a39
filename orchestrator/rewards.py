"""Pays the workers whose answers were the replica of another's: transfers from this orchestrator's own account.

What is owed is durable before it is sent, under an id that follows from job and attempt, so that neither a restart nor
a repeated call pays twice. A transfer the ledger refuses (the account has too little) stays unpaid, and is said so.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import grpc
import structlog

from computemesh.service import transactions
from computemesh.service.errors import from_rpc_error
from computemesh.trust.identity import address_of
from computemesh.v1 import ledger_pb2
from orchestrator import store

if TYPE_CHECKING:
    from orchestrator.runtime import Runtime

CALL_TIMEOUT_S = 10.0
RETRY_S = 1.0
MAX_TRANSFERS = 256
log = structlog.get_logger("orchestrator.rewards")


class ReplicaRewards:
    """One loop that sends what is owed, also from before a restart."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.wake = asyncio.Event()
        self.wake.set()

    async def run(self) -> None:
        """Pays for ever."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            # In a group of its own: what the core deferred is durable with it.
            while owed := await self._runtime.group.commit(partial(store.rewards_owed, most=MAX_TRANSFERS)):
                if not await self._pay(owed):
                    await asyncio.sleep(RETRY_S)

    async def _pay(self, owed: list[tuple[bytes, bytes, int]]) -> bool:
        """Whether the ledger answered."""
        runtime = self._runtime
        try:
            info = await runtime.ledger.GetLedger(ledger_pb2.GetLedgerRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.warning("replicas wait for their pay", owed=len(owed), error=str(from_rpc_error(error))[:200])
            return False
        signed = [
            transactions.signed(
                runtime.key, runtime.config.chain_id, transactions.TRANSFER,
                transactions.transfer_body(address_of(worker), max(reward * info.worker_percent // 100, 1)), tx_id,
            ) for tx_id, worker, reward in owed
        ]  # fmt: skip
        outcomes = await runtime.submit(signed, "replicas' pay waits")
        if not outcomes:
            return False
        answers = {}
        for sent, outcome in zip(signed, outcomes, strict=True):
            paid = answers[sent.id] = outcome.kind == ledger_pb2.OUTCOME_KIND_APPLIED
            (log.info if paid else log.warning)(
                "replica paid" if paid else "a replica stays unpaid", worker=sent.transfer.to,
                units=sent.transfer.amount_units, tx_id=sent.id.hex(), reason=outcome.reason)  # fmt: skip
        await runtime.group.commit(partial(store.rewards_answered, answers=answers))
        return True
