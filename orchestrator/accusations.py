"""Tells the ledger of commitments that failed their audit: without an appeal the worker's stake pays for them.

An accusation holds a bond of the orchestrator's own stake. Where it has none, wrong answers cost the worker its reward
and its standing here, and nothing more. Nothing is kept for a restart: what was not accused in time is not accused.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import grpc
import structlog

from computemesh.service import transactions
from computemesh.service.errors import from_rpc_error
from computemesh.trust import acts, merkle
from computemesh.trust.statement import COMMITMENT_SIZE
from computemesh.v1 import ledger_pb2
from orchestrator import events as e

if TYPE_CHECKING:
    from orchestrator.runtime import Runtime

CALL_TIMEOUT_S = 10.0
MAX_WAITING = 10_000
TRIES = 50
RETRY_S = 0.2
WITHOUT_STAKE_S = 60.0
"""How long nobody is accused after the ledger said that this orchestrator has no stake for a bond."""
log = structlog.get_logger("orchestrator.accusations")


class Accusations:
    """One loop that sends them, in the order in which audits failed."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._queue: asyncio.Queue[e.Accuse] = asyncio.Queue(MAX_WAITING)
        self._silent_until = 0.0

    def take(self, work: e.Accuse) -> None:
        """Accuses, unless there is no stake for it or too many wait already."""
        if time.monotonic() >= self._silent_until and not self._queue.full():
            self._queue.put_nowait(work)

    async def run(self) -> None:
        """Sends for ever."""
        while True:
            work = await self._queue.get()
            for _ in range(TRIES):
                if await self._settled(work):
                    break
                await asyncio.sleep(RETRY_S)

    async def _settled(self, work: e.Accuse) -> bool:
        """Whether this accusation needs no other try."""
        runtime = self._runtime
        signed = transactions.signed(runtime.key, runtime.config.chain_id, acts.Accuse.KIND, _act(work).pack())
        outcomes = await runtime.submit([signed], "an accusation waits")
        if not outcomes:
            return False
        outcome = outcomes[0]
        if outcome.reason == "INSUFFICIENT_STAKE":
            return await self._without_stake(outcome.message)
        if outcome.kind == ledger_pb2.OUTCOME_KIND_APPLIED:
            log.info("worker accused", worker=work.batch.key.hex(), accusation=signed.id.hex())
            return True
        log.warning("an accusation is refused", worker=work.batch.key.hex(), reason=outcome.reason)
        return True

    async def _without_stake(self, message: str) -> bool:
        """Bonds of earlier accusations may come back in a moment; whoever has no stake at all stays silent a while."""
        ledger, address = self._runtime.ledger, self._runtime.key.address
        asked, listed = ledger_pb2.GetStakeRequest(address=address), ledger_pb2.ListDisputesRequest(open_only=True)
        try:
            stake = (await ledger.GetStake(asked, timeout=CALL_TIMEOUT_S)).stake
            open_ = (await ledger.ListDisputes(listed, timeout=CALL_TIMEOUT_S)).disputes
        except grpc.aio.AioRpcError as error:
            log.warning("an accusation waits for the ledger", error=str(from_rpc_error(error))[:200])
            return False
        if stake.units or any(dispute.contestant == address for dispute in open_):
            return False
        self._silent_until = time.monotonic() + WITHOUT_STAKE_S
        log.info("nobody is accused: this orchestrator has no stake for a bond", address=address, problem=message)
        return True


def _act(work: e.Accuse) -> acts.Accuse:
    batch, at = work.batch, work.position
    tree = merkle.Tree(batch.leaves)
    commitment = batch.commitments[at * COMMITMENT_SIZE : (at + 1) * COMMITMENT_SIZE]
    return acts.Accuse(
        commitment, tree.root, at, batch.count, batch.signature, work.transcript, b"".join(tree.path(at)))
