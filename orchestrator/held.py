"""Answers that wait for another owner's, and what is kept of how they compared."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from orchestrator.model import Batch, Lease


class Replication(IntEnum):
    """What became of an answer whose job was drawn for a replica. The numbers are those of the contract."""

    AGREED = 1
    REPLICA = 2
    NO_OTHER_OWNER = 3
    OUTVOTED = 4
    NO_MAJORITY = 5


NOT_SETTLED = frozenset({Replication.REPLICA, Replication.OUTVOTED, Replication.NO_MAJORITY})
"""Of answers that passed their audit and are yet not the job's."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A commitment that passed its audit; `proof` is its transcript's digest."""

    batch: Batch
    position: int
    proof: bytes

    @property
    def lease(self) -> Lease:
        """The attempt it came from."""
        lease = self.batch.leases[self.position]
        assert lease is not None
        return lease


@dataclass(slots=True)
class Held:
    """Answers of different owners to one job that wait for another to be compared with, until a time (Unix ms)."""

    until_ms: int
    answers: list[Answer]


@dataclass(frozen=True, slots=True)
class SaveReplication:
    """What became of an answer whose job was drawn for a replica. Its worker is owed its share of
    `reward_units` for having been the replica, by the transfer `tx_id`; empty where nothing is."""

    batch: Batch
    position: int
    kind: Replication
    tx_id: bytes = b""
    reward_units: int = 0


@dataclass(frozen=True, slots=True)
class PayReplicas:
    """A replica's worker is owed its share; `SaveReplication` says what."""
