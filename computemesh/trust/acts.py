"""What accounts declare on the ledger besides paying: stake, disputes, models, pools, keys (docs/PROTOCOL.md, 4).

An act is a transaction `kind` with a body of one fixed layout. Being in `ACTS` is being known. Integers are unsigned,
big-endian, names travel as the SHA-256 of their UTF-8 text, amounts are base units, heights are block heights.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any, ClassVar, Self, TypeVar

from computemesh.trust import merkle, statement
from computemesh.trust.amount import MAX_UNITS
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument, InvalidProof

MAY_PUBLISH = 1
"""Permission of a delegated key: publish, confirm and retract with the account's money. Never to move it elsewhere."""

VERDICT_VALID, VERDICT_INVALID = 1, 2

PRICE_FIXED, PRICE_PER_TOKEN, PRICE_PER_BYTE = 0, 1, 2

MAX_ORDERS = 4096
MAX_ROYALTY_BPS = 10_000


def _refuse(kind: str, name: str, problem: str) -> InvalidProof:
    return InvalidProof(f"{kind}.{name} {problem}", violations=[(f"{kind}.{name}", problem)])


def name_hash(name: str) -> bytes:
    """How a model or pool is named on the ledger: SHA-256 of its UTF-8 name."""
    return sha256(name.encode()).digest()


def pool_address(pool: bytes) -> bytes:
    """The 20-byte account of a pool: nobody has its key, so only the ledger's rules move its money."""
    return tagged("computemesh.v1/pool", pool)[:20]


def sealed_vote(contest: bytes, voter_key: bytes, verdict: int, salt: bytes) -> bytes:
    """The 32 bytes a voter commits to before anybody reveals: bound to the contest and to the voter."""
    return tagged("computemesh.v1/vote", contest + voter_key + bytes([verdict]) + salt)


def sealed_beacon(orchestrator_key: bytes, epoch: int, secret: bytes) -> bytes:
    """The 32 bytes by which an orchestrator commits to an epoch's audit secret before it is used."""
    return tagged("computemesh.v1/beacon", orchestrator_key + struct.pack(">Q", epoch) + secret)


def beacon_seed(secret: bytes, commitment_root: bytes) -> bytes:
    """The 32-byte seed of a challenge: from an epoch's secret and the root of the batch a worker signed."""
    return tagged("computemesh.v1/beacon-seed", secret + commitment_root)


class Act:
    """A body of one fixed layout. `KIND` is the transaction kind whose digest is signed."""

    KIND: ClassVar[str]
    LAYOUT: ClassVar[struct.Struct]

    def pack(self) -> bytes:
        """The body. Raises InvalidArgument naming a field of wrong width or range."""
        values = [getattr(self, one.name) for one in fields(self)]  # type: ignore[arg-type]
        try:
            packed = self.LAYOUT.pack(*values)
        except struct.error as error:
            raise InvalidArgument(f"{self.KIND}: a field is out of range: {error}") from None
        if type(self).unpack(packed) != self:  # struct cuts or pads byte strings of another length without a word
            raise InvalidArgument(f"{self.KIND}: a field has the wrong width: {values}")
        return packed

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Reads a body. Raises InvalidProof naming the field, its value and the limit."""
        if len(body) != cls.LAYOUT.size:
            raise _refuse(cls.KIND, "body", f"has {len(body)} bytes, not {cls.LAYOUT.size}")
        act = cls(*cls.LAYOUT.unpack(body))
        act.check()
        return act

    def check(self) -> None:
        """Raises InvalidProof where a field can never be right."""


def _amount(act: Act, units: int) -> None:
    if not 1 <= units <= MAX_UNITS:
        raise _refuse(act.KIND, "units", f"is {units}, must be 1..{MAX_UNITS}")


def _one_of(act: Act, name: str, value: int, allowed: tuple[int, ...]) -> None:
    if value not in allowed:
        raise _refuse(act.KIND, name, f"is {value}, must be one of {', '.join(map(str, allowed))}")


_A = TypeVar("_A", bound=Act)


def _pack_with_path(act: Act) -> bytes:
    """The fixed fields, then the hashes of a Merkle path, the last field. Raises InvalidArgument."""
    *values, path = (getattr(act, one.name) for one in fields(act))  # type: ignore[arg-type]
    try:
        body: bytes = act.LAYOUT.pack(*values) + path
    except struct.error as error:
        raise InvalidArgument(f"{act.KIND}: a field is out of range: {error}") from None
    if type(act).unpack(body) != act:
        raise InvalidArgument(f"{act.KIND}: a field has the wrong width")
    return body


def _unpack_with_path(kind: type[_A], body: bytes) -> _A:
    size = kind.LAYOUT.size
    path = body[size:]
    if len(body) < size or len(path) % 32 or len(path) > 32 * 64:
        raise _refuse(kind.KIND, "body", f"has {len(body)} bytes, not {size} and up to 64 hashes of 32")
    return kind(*(*kind.LAYOUT.unpack(body[:size]), path))


@dataclass(frozen=True, slots=True)
class Stake(Act):
    """The signer puts `units` of its balance at stake."""

    KIND, LAYOUT = "stake", struct.Struct(">Q")
    units: int

    def check(self) -> None:
        _amount(self, self.units)


@dataclass(frozen=True, slots=True)
class Unstake(Act):
    """`units` of stake begin to unbond; they are slashable until they are free."""

    KIND, LAYOUT = "unstake", struct.Struct(">Q")
    units: int

    def check(self) -> None:
        _amount(self, self.units)


@dataclass(frozen=True, slots=True)
class Contest(Act):
    """The signer says that a settled result is wrong and stakes the bond on it.

    `result` is the result statement (174 bytes), which stands at `leaf_index` of the compute root of block `height`;
    `path` are the joined hashes that prove it. `commitment_root` and `position` open the result's authorisation, which
    shows that `orchestrator_key` settled it.
    """

    KIND, LAYOUT = "contest", struct.Struct(">174s33s32sIQI")
    result: bytes
    orchestrator_key: bytes
    commitment_root: bytes
    position: int
    height: int
    leaf_index: int
    path: bytes

    def pack(self) -> bytes:
        """The body. Raises InvalidArgument."""
        return _pack_with_path(self)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Reads a body. Raises InvalidProof."""
        act = _unpack_with_path(cls, body)
        statement.Result.unpack(act.result)
        return act


@dataclass(frozen=True, slots=True)
class Accuse(Act):
    """The assigned orchestrator says that a signed commitment failed its audit, and stakes the bond on it.

    `commitment` (118 bytes) stands at `position` of `count` under `root`, which the worker signed; `path` proves it.
    `transcript` is the audit's transcript digest.
    """

    KIND, LAYOUT = "accuse", struct.Struct(">118s32sII64s32s")
    commitment: bytes
    root: bytes
    position: int
    count: int
    worker_signature: bytes
    transcript: bytes
    path: bytes

    def pack(self) -> bytes:
        """The body. Raises InvalidArgument."""
        return _pack_with_path(self)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Reads a body. Raises InvalidProof."""
        act = _unpack_with_path(cls, body)
        statement.Commitment.unpack(act.commitment)
        return act


@dataclass(frozen=True, slots=True)
class Appeal(Act):
    """The accused worker has validators decide on an accusation (named by its transaction id)."""

    KIND, LAYOUT = "appeal", struct.Struct(">16s")
    accusation: bytes


@dataclass(frozen=True, slots=True)
class Vote(Act):
    """A validator's verdict on a contest (named by its transaction id), sealed with `sealed_vote`."""

    KIND, LAYOUT = "vote", struct.Struct(">16s32s")
    contest: bytes
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Reveal(Act):
    """Opens a sealed vote."""

    KIND, LAYOUT = "reveal", struct.Struct(">16sB32s")
    contest: bytes
    verdict: int
    salt: bytes

    def check(self) -> None:
        _one_of(self, "verdict", self.verdict, (VERDICT_VALID, VERDICT_INVALID))


@dataclass(frozen=True, slots=True)
class Confirm(Act):
    """The customer of a MANUAL_CONFIRMATION task picks `worker_key`'s response to `job`."""

    KIND, LAYOUT = "confirm", struct.Struct(">32sI33s")
    task_id: bytes
    job: int
    worker_key: bytes


@dataclass(frozen=True, slots=True)
class Retract(Act):
    """The customer takes back a task that nobody has been assigned, after the minimum wait."""

    KIND, LAYOUT = "retract", struct.Struct(">32s")
    task_id: bytes


@dataclass(frozen=True, slots=True)
class Delegate(Act):
    """The signer lets `key` act for its account until `expires_ms` (Unix ms); `permissions` 0 takes that back."""

    KIND, LAYOUT = "delegate", struct.Struct(">33sBQ")
    key: bytes
    permissions: int
    expires_ms: int

    def check(self) -> None:
        _one_of(self, "permissions", self.permissions, (0, MAY_PUBLISH))


@dataclass(frozen=True, slots=True)
class Model(Act):
    """Registers or changes a model; the first signer owns the name and gets `royalty_bps` of the worker's share.

    `price_units` is the least reward per task, token or byte (`price_per`); `memory_bytes` what a worker must have.
    """

    KIND, LAYOUT = "model", struct.Struct(">32s32sIHBQQB")
    model: bytes
    artifact: bytes
    version: int
    royalty_bps: int
    price_per: int
    price_units: int
    memory_bytes: int
    active: int

    def check(self) -> None:
        _one_of(self, "active", self.active, (0, 1))
        _one_of(self, "price_per", self.price_per, (PRICE_FIXED, PRICE_PER_TOKEN, PRICE_PER_BYTE))
        if self.royalty_bps > MAX_ROYALTY_BPS:
            raise _refuse("model", "royalty_bps", f"is {self.royalty_bps}, must be at most {MAX_ROYALTY_BPS}")
        for name in ("price_units", "memory_bytes"):
            if getattr(self, name) > MAX_UNITS:
                raise _refuse("model", name, f"is {getattr(self, name)}, must be at most {MAX_UNITS}")


@dataclass(frozen=True, slots=True)
class Pool(Act):
    """Opens, activates or deactivates a pool; the first signer owns it. A transfer to `pool_address` funds it."""

    KIND, LAYOUT = "pool", struct.Struct(">32s32sB")
    pool: bytes
    category: bytes
    active: int

    def check(self) -> None:
        _one_of(self, "active", self.active, (0, 1))


@dataclass(frozen=True, slots=True)
class Withdraw(Act):
    """The owner of a pool moves its money to an address."""

    KIND, LAYOUT = "withdraw", struct.Struct(">32s20sQ")
    pool: bytes
    to: bytes
    units: int

    def check(self) -> None:
        _amount(self, self.units)


@dataclass(frozen=True, slots=True)
class Pause(Act):
    """The authority stops (1) or lets on (0) new escrows, assignments and stakes. What is open is paid and refunded."""

    KIND, LAYOUT = "pause", struct.Struct(">B")
    paused: int

    def check(self) -> None:
        _one_of(self, "paused", self.paused, (0, 1))


@dataclass(frozen=True, slots=True)
class Beacon(Act):
    """An orchestrator commits to the secret that its audits of `epoch` will draw from (`sealed_beacon`)."""

    KIND, LAYOUT = "beacon", struct.Struct(">Q32s")
    epoch: int
    sealed: bytes


@dataclass(frozen=True, slots=True)
class BeaconReveal(Act):
    """The secret of an epoch that is over: from now on anybody can redo every draw."""

    KIND, LAYOUT = "beacon_reveal", struct.Struct(">Q32s")
    epoch: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class Orders(Act):
    """Several orders of one customer under one signature; each is judged alone.

    Signed is `u32 count || 32 RFC 9162 root over the packed orders`, as with a batch of commitments.
    """

    KIND, LAYOUT = "orders", struct.Struct(">I")
    orders: tuple[bytes, ...]

    def pack(self) -> bytes:
        """u32 count, then the packed orders, each 164 or 222 bytes as its version says. Raises InvalidArgument."""
        body = self.LAYOUT.pack(len(self.orders)) + b"".join(self.orders)
        if type(self).unpack(body) != self:
            raise InvalidArgument("orders: not packed orders")
        return body

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Reads a body. Raises InvalidProof naming the order."""
        if len(body) < 4:
            raise _refuse("orders", "body", f"has {len(body)} bytes, at least 4 are needed")
        (count,) = cls.LAYOUT.unpack(body[:4])
        if not 1 <= count <= MAX_ORDERS:
            raise _refuse("orders", "count", f"is {count}, must be 1..{MAX_ORDERS}")
        found, at = [], 4
        for index in range(count):
            size = statement.order_size(body[at : at + 1])
            packed = body[at : at + size]
            if not size or len(packed) != size:
                raise _refuse("orders", f"[{index}]", "is not an order of a known version and its length")
            found.append(packed)
            at += size
        if at != len(body):
            raise _refuse("orders", "body", f"has {len(body) - at} bytes after its {count} orders")
        return cls(tuple(found))

    @property
    def root(self) -> bytes:
        """The RFC 9162 root over the packed orders."""
        return merkle.root([merkle.leaf_hash(order) for order in self.orders])

    def signed_body(self) -> bytes:
        """What stands for the body in the signed digest."""
        return statement.commitments_body(len(self.orders), self.root)


ACTS: dict[str, type[Act]] = {
    act.KIND: act
    for act in (Stake, Unstake, Contest, Accuse, Appeal, Vote, Reveal, Confirm, Retract, Delegate, Model, Pool,
                Withdraw, Pause, Beacon, BeaconReveal, Orders)
}  # fmt: skip


def unpack(kind: str, body: bytes) -> Act:
    """The act of this kind and body. Raises InvalidProof: unknown kind, wrong length, a value out of range."""
    act: Any = ACTS.get(kind)
    if act is None:
        raise _refuse("act", "kind", f"is {kind[:40]!r}, known are: {', '.join(ACTS)}")
    return act.unpack(body)  # type: ignore[no-any-return]


def digest(act: Act, chain: str, tx_id: bytes) -> bytes:
    """The 32 bytes the author of an act signs."""
    body = act.signed_body() if isinstance(act, Orders) else act.pack()
    return statement.transaction_digest(act.KIND, chain, tx_id, body)
