"""Audit randomness that is committed before it is used: one secret per epoch, sealed on the ledger, revealed later.

An epoch's secret follows from the orchestrator's key, so a restart goes on with the same one. A batch's seed follows
from the secret and the signed root of its commitments (docs/PROTOCOL.md section 6): the orchestrator cannot choose a
seed that spares a unit, and once the secret is out everybody can redo every draw. While the ledger has not taken an
epoch's seal, seeds are drawn by chance and say so (epoch 0).
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from typing import TYPE_CHECKING

from computemesh.service import transactions
from computemesh.trust import acts
from computemesh.trust.digest import tagged
from computemesh.v1 import ledger_pb2
from orchestrator import store
from orchestrator.model import Batch

if TYPE_CHECKING:
    from orchestrator.runtime import Runtime

RETRY_S = 1.0
REVEAL_AFTER = 2
"""Epochs between a secret's last use and its revelation: what was challenged with it has been answered by then."""


class Beacons:
    """The secrets of this orchestrator; epochs are `epoch_ms` long, numbered from the Unix epoch."""

    def __init__(self, runtime: Runtime, epoch_ms: int) -> None:
        self._runtime, self._epoch_ms = runtime, epoch_ms
        self._sealed: set[int] = set()
        # Sealed, also by an earlier process, and not revealed yet.
        self._owed: set[int] = set()

    def secret(self, epoch: int) -> bytes:
        """The 32 bytes of an epoch."""
        return tagged("computemesh.v1/beacon-secret", self._runtime.key.secret + epoch.to_bytes(8, "big"))

    def draw(self, batch: Batch) -> tuple[bytes, int]:
        """Seed of a batch whose commitments are durable, and the epoch it is from; 0 where it is from no beacon."""
        epoch = self._now()
        if epoch not in self._sealed:
            return os.urandom(32), 0
        return acts.beacon_seed(self.secret(epoch), batch.root), epoch

    async def run(self) -> None:
        """Seals this epoch and the next, and reveals those that are over, for ever."""
        self._owed = set(await self._runtime.group.read(store.beacons_owed))
        while True:
            epoch = self._now()
            done = await self._seal(epoch) and await self._seal(epoch + 1)
            for past in sorted(old for old in self._owed if old + REVEAL_AFTER <= epoch):
                done = await self._reveal(past) and done
            left_s = ((epoch + 1) * self._epoch_ms - time.time_ns() // 1_000_000) / 1000
            await asyncio.sleep(max(left_s, 0.01) if done else RETRY_S)

    def _now(self) -> int:
        return time.time_ns() // 1_000_000 // self._epoch_ms

    async def _seal(self, epoch: int) -> bool:
        if epoch in self._sealed:
            return True
        sealed = acts.sealed_beacon(self._runtime.key.public, epoch, self.secret(epoch))
        # WRONG_BEACON: sealed before a restart, with the same secret.
        if await self._send(acts.Beacon(epoch, sealed)):
            await self._runtime.group.commit(partial(store.owe_beacon, epoch=epoch))
            self._owed.add(epoch)
            self._sealed.add(epoch)
        return epoch in self._sealed

    async def _reveal(self, epoch: int) -> bool:
        if await self._send(acts.BeaconReveal(epoch, self.secret(epoch))):
            await self._runtime.group.commit(partial(store.beacon_revealed, epoch=epoch))
            self._owed.discard(epoch)
        return epoch not in self._owed

    async def _send(self, act: acts.Act) -> bool:
        """Whether the ledger has it now."""
        runtime = self._runtime
        signed = transactions.signed(runtime.key, runtime.config.chain_id, act.KIND, act.pack())
        outcomes = await runtime.submit([signed], f"a {act.KIND} waits")
        return any(one.kind == ledger_pb2.OUTCOME_KIND_APPLIED or one.reason == "WRONG_BEACON" for one in outcomes)
