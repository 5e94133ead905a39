"""What the ledger keeps besides accounts, escrows and nonce windows: one record a thing, each with its one encoding.

A record's key is (kind, key bytes), its body what `pack` gives: leaf data of the state root and the row of the table
`records` (docs/PROTOCOL.md section 4). PURE.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import sha256
from typing import ClassVar, Self

from computemesh.trust import acts


class Kind(IntEnum):
    """Kinds of records; the numbers follow those of the other records of the state root."""

    STAKE = 5
    DISPUTE = 6
    DELEGATION = 7
    MODEL = 8
    POOL = 9
    BUCKET = 10
    BEACON = 11
    ANSWERS = 12


Key = tuple[Kind, bytes]


@dataclass(slots=True)
class Stake:
    """An account's stake. `unbonding` and `raises` are (height, units): free at, and added at."""

    KIND: ClassVar = Kind.STAKE
    _HEAD: ClassVar = struct.Struct(">QQQQQI")
    _ENTRY: ClassVar = struct.Struct(">QQ")
    units: int = 0
    cooldown_height: int = 0
    won: int = 0
    lost: int = 0
    slashed: int = 0
    unbonding: list[tuple[int, int]] = field(default_factory=list)
    raises: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def key(cls, address: bytes) -> Key:
        """Of a 20-byte address."""
        return cls.KIND, address

    @property
    def leaving(self) -> int:
        """Units that are unbonding."""
        return sum(units for _, units in self.unbonding)

    def before(self, height: int) -> int:
        """Units at stake now that were there before block `height`."""
        return max(self.units - sum(units for at, units in self.raises if at >= height), 0)

    def pack(self) -> bytes:
        """u64 units | cooldown | won | lost | slashed | u32 n unbonding, then u64 height | u64 units: those, raises."""
        head = self._HEAD.pack(self.units, self.cooldown_height, self.won, self.lost, self.slashed, len(self.unbonding))
        return head + b"".join(self._ENTRY.pack(*entry) for entry in (*self.unbonding, *self.raises))

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Reads what `pack` packed."""
        *head, leaving = cls._HEAD.unpack_from(body)
        entries = list(cls._ENTRY.iter_unpack(body[cls._HEAD.size :]))
        return cls(*(*head, entries[:leaving], entries[leaving:]))


class Status(IntEnum):
    """How a dispute stands; the numbers of `DisputeStatus` in the contract, but that VOTING includes REVEALING."""

    OPEN = 1
    UPHELD = 3
    REJECTED = 4


@dataclass(slots=True)
class Vote:
    """`verdict` is 0 until revealed; `stake` what counted before the contest, `weight` that after the cap."""

    sealed: bytes
    stake: int
    verdict: int = 0
    weight: int = 0


@dataclass(frozen=True, slots=True)
class Parts:
    """A job's reward by whom it goes to, base units; `royalty` is out of the worker's share."""

    burn: int = 0
    worker: int = 0
    royalty: int = 0
    validator: int = 0
    treasury: int = 0

    @property
    def total(self) -> int:
        """The whole reward."""
        return self.burn + self.worker + self.royalty + self.validator + self.treasury


@dataclass(slots=True)
class Dispute:
    """A contest or an accusation, and the votes on it. `height` is that of its block; addresses have 20 bytes, keys 33.

    `judged` says whether validators decide: for an accusation only once its worker appealed. What is accused was never
    settled, so its parts are nothing.
    """

    KIND: ClassVar = Kind.DISPUTE
    _HEAD: ClassVar = struct.Struct(">BB20s20s33s174sQQQQQQQQQQI")
    _VOTE: ClassVar = struct.Struct(">20s32sQBQ")
    contestant: bytes
    accused: bytes
    orchestrator: bytes
    result: bytes
    height: int
    vote_height: int
    reveal_height: int
    bond: int
    parts: Parts
    judged: bool = True
    status: Status = Status.OPEN
    slashed: int = 0
    votes: dict[bytes, Vote] = field(default_factory=dict)

    @classmethod
    def key(cls, contest: bytes) -> Key:
        """Of a contest's 16-byte transaction id."""
        return cls.KIND, contest

    def pack(self) -> bytes:
        """u8 status | u8 judged | 20 contestant | 20 accused | 33 orchestrator | 174 result |
        u64 heights: contest, vote, reveal | u64 bond | u64 burn, worker, royalty, validator, treasury | u64 slashed |
        u32 n, then the votes by address:
        20 voter | 32 sealed | u64 stake | u8 verdict | u64 weight."""
        parts = self.parts
        head = self._HEAD.pack(
            self.status, self.judged, self.contestant, self.accused, self.orchestrator, self.result, self.height,
            self.vote_height, self.reveal_height, self.bond, parts.burn, parts.worker, parts.royalty, parts.validator,
            parts.treasury, self.slashed, len(self.votes))  # fmt: skip
        rows = sorted(self.votes.items())
        return head + b"".join(self._VOTE.pack(who, v.sealed, v.stake, v.verdict, v.weight) for who, v in rows)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Reads what `pack` packed."""
        (status, judged, contestant, accused, orchestrator, result, height, vote_height, reveal_height, bond, burn,
         worker, royalty, validator, treasury, slashed, _) = cls._HEAD.unpack_from(body)  # fmt: skip
        votes = {
            who: Vote(sealed, stake, verdict, weight)
            for who, sealed, stake, verdict, weight in cls._VOTE.iter_unpack(body[cls._HEAD.size :])
        }
        parts = Parts(burn, worker, royalty, validator, treasury)
        return cls(contestant, accused, orchestrator, result, height, vote_height, reveal_height, bond, parts,
                   bool(judged), Status(status), slashed, votes)  # fmt: skip


@dataclass(slots=True)
class Delegation:
    """What a key may do for an account, and until when (Unix ms)."""

    KIND: ClassVar = Kind.DELEGATION
    _LAYOUT: ClassVar = struct.Struct(">BQ")
    permissions: int
    expires_ms: int

    @classmethod
    def key(cls, address: bytes, key: bytes) -> Key:
        """Of the account's address and the delegated key."""
        return cls.KIND, address + key

    def pack(self) -> bytes:
        """u8 permissions | u64 expires_ms."""
        return self._LAYOUT.pack(self.permissions, self.expires_ms)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Reads what `pack` packed."""
        return cls(*cls._LAYOUT.unpack(body))


@dataclass(slots=True)
class Model:
    """A registered model: its owner's address and the act that said its terms."""

    KIND: ClassVar = Kind.MODEL
    owner: bytes
    terms: acts.Model

    @classmethod
    def key(cls, name: bytes) -> Key:
        """Of a name hash."""
        return cls.KIND, name

    def pack(self) -> bytes:
        """20 owner | the act's body."""
        return self.owner + self.terms.pack()

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Reads what `pack` packed."""
        return cls(body[:20], acts.Model.unpack(body[20:]))


@dataclass(slots=True)
class Pool:
    """A pool: its owner's address and the act that said how it stands."""

    KIND: ClassVar = Kind.POOL
    owner: bytes
    terms: acts.Pool

    @classmethod
    def key(cls, name: bytes) -> Key:
        """Of a name hash."""
        return cls.KIND, name

    def pack(self) -> bytes:
        """20 owner | the act's body."""
        return self.owner + self.terms.pack()

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Reads what `pack` packed."""
        return cls(body[:20], acts.Pool.unpack(body[20:]))


@dataclass(slots=True)
class Bucket:
    """Rewards settled in one block, until their dispute window closes: what burns, and units by address."""

    KIND: ClassVar = Kind.BUCKET
    _LAYOUT: ClassVar = struct.Struct(">QI32s")
    _ENTRY: ClassVar = struct.Struct(">20sQ")
    burn: int = 0
    units: dict[bytes, int] = field(default_factory=dict)

    @classmethod
    def key(cls, height: int) -> Key:
        """Of a block's height."""
        return cls.KIND, height.to_bytes(8, "big")

    def add(self, address: bytes, units: int) -> None:
        """`units` more for an address; negative takes back."""
        self.units[address] = self.units.get(address, 0) + units

    def pack(self) -> bytes:
        """u64 burn | u32 n | 32 SHA-256 of the rows 20 address | u64 units, by address."""
        rows = b"".join(self._ENTRY.pack(*row) for row in sorted(self.units.items()))
        return self._LAYOUT.pack(self.burn, len(self.units), sha256(rows).digest())


@dataclass(slots=True)
class Beacon:
    """An epoch's sealed audit secret, and the secret once revealed (else zeros)."""

    KIND: ClassVar = Kind.BEACON
    sealed: bytes
    secret: bytes = bytes(32)

    @classmethod
    def key(cls, orchestrator: bytes, epoch: int) -> Key:
        """Of an orchestrator's key and an epoch."""
        return cls.KIND, orchestrator + epoch.to_bytes(8, "big")

    def pack(self) -> bytes:
        """32 sealed | 32 secret."""
        return self.sealed + self.secret

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Reads what `pack` packed."""
        return cls(body[:32], body[32:])


@dataclass(frozen=True, slots=True)
class Answer:
    """One response to a job of a MANUAL task: who made it, who vouches for it, and where its result stands."""

    worker: bytes
    orchestrator: bytes
    place: int


@dataclass(slots=True)
class Answers:
    """Responses to pick from, first come first; without a pick the first is paid at `due_ms`."""

    KIND: ClassVar = Kind.ANSWERS
    _HEAD: ClassVar = struct.Struct(">Q")
    _ROW: ClassVar = struct.Struct(">33s33sQ")
    due_ms: int
    rows: list[Answer] = field(default_factory=list)

    @classmethod
    def key(cls, task_id: bytes, job: int) -> Key:
        """Of a task and a job."""
        return cls.KIND, task_id + job.to_bytes(4, "big")

    def pack(self) -> bytes:
        """u64 due_ms, then 33 worker | 33 orchestrator | u64 place."""
        rows = b"".join(self._ROW.pack(row.worker, row.orchestrator, row.place) for row in self.rows)
        return self._HEAD.pack(self.due_ms) + rows

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Reads what `pack` packed."""
        (due_ms,) = cls._HEAD.unpack_from(body)
        return cls(due_ms, [Answer(*row) for row in cls._ROW.iter_unpack(body[cls._HEAD.size :])])


Record = Stake | Dispute | Delegation | Model | Pool | Bucket | Beacon | Answers


def leaf(key: Key, record: Record | None) -> bytes:
    """Leaf data of the state root: u8 kind | u32 length | key | body; a record that is gone has no body."""
    kind, name = key
    return bytes([kind]) + len(name).to_bytes(4, "big") + name + (record.pack() if record is not None else b"")
