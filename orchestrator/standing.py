"""What the public ledger says of workers: asked when one joins, and again now and then."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import structlog

from computemesh.service.errors import from_rpc_error
from computemesh.trust.identity import address_of
from computemesh.v1 import ledger_pb2
from orchestrator import events as e

if TYPE_CHECKING:
    from orchestrator.runtime import Runtime

REFRESH_S = 30.0
CALL_TIMEOUT_S = 5.0
log = structlog.get_logger("orchestrator.standing")


class Standing:
    """Asks the ledger for reputations. One that is not known counts as 0, which costs a worker nothing but time."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def run(self) -> None:
        """Asks for every connected worker, for ever."""
        while True:
            await asyncio.sleep(REFRESH_S)
            for key in list(self._runtime.core.state.sessions):
                await self.ask(key)

    async def ask(self, key: bytes) -> None:
        """Asks for one worker and tells the core."""
        request = ledger_pb2.GetStakeRequest(address=address_of(key))
        try:
            stake = (await self._runtime.ledger.GetStake(request, timeout=CALL_TIMEOUT_S)).stake
        except grpc.aio.AioRpcError as error:
            log.warning("a worker's standing is not known", worker=request.address,
                        error=str(from_rpc_error(error))[:200])  # fmt: skip
            return
        self._runtime.apply(e.StandingKnown(key, stake.reputation, tuple(stake.reputation_reasons)))
