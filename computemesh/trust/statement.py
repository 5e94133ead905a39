"""Signed statements as fixed layouts (docs/PROTOCOL.md section 4).

A layout has one length, so its bytes are canonical: a reader checks length and version before anything else.
Hot paths splice columns with the `struct.Struct`s below; the dataclasses are for everything else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from computemesh.trust import envelope, merkle
from computemesh.trust.amount import MAX_UNITS
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument, InvalidProof
from computemesh.trust.identity import PrivateKey

VERSION = 1
MAX_PRIORITY = 9
ZERO_HASH = bytes(32)

ORDER = struct.Struct(">B16s33s33s32s32sQQB")
ORDER_TERMS = struct.Struct(">BBI20s32s")
ASSIGNMENT = struct.Struct(">B32s33sII")
COMMITMENT = struct.Struct(">B32sIII33s32sQ")
RESULT = struct.Struct(">B32sI33s32s32sQ32s")
HEADER = struct.Struct(">B32sQ32sQ32s32s32sII")

ORDER_SIZE = 164
ORDER_TERMS_SIZE = 222
ASSIGNMENT_SIZE = 74
COMMITMENT_SIZE = 118
RESULT_SIZE = 174
HEADER_SIZE = 185

CAUSE_CANCELLED = 1
CAUSE_FAILED = 2

DELIVERY_VERIFIED = 0
DELIVERY_MANUAL = 1
DELIVERY_FIRST_RESPONSE = 2
MAX_RESPONSES = 8
MAX_CONFIRM_WINDOW_S = 30 * 24 * 3600
NO_ADDRESS = bytes(20)

_COUNT_ROOT = struct.Struct(">I32s")
_TO_AMOUNT = struct.Struct(">20sQ")
_TASK_CAUSE = struct.Struct(">32sB")

CommitmentRow = tuple[int, bytes, int, int, int, bytes, bytes, int]
"""(version, task_id, job, task_epoch, attempt, worker_key, result_hash, nonce)"""


def _fields(layout: struct.Struct, data: bytes, kind: str) -> tuple[Any, ...]:
    if len(data) != layout.size:
        raise _bad(kind, f"has {len(data)} bytes, not {layout.size}")
    version, *fields = layout.unpack(data)
    if version != VERSION:
        raise _bad(f"{kind}.version", f"is {version}, not {VERSION}")
    return tuple(fields)


def _bad(path: str, problem: str) -> InvalidProof:
    return InvalidProof(f"{path} {problem}", violations=[(path, problem)])


def _pack(layout: struct.Struct, kind: str, widths: dict[str, int], statement: object) -> bytes:
    values = [getattr(statement, name) for name in widths]
    for (name, width), value in zip(widths.items(), values, strict=True):
        # struct would cut or pad a byte string of another length without a word.
        if width and (not isinstance(value, bytes) or len(value) != width):
            problem = f"must have {width} bytes"
            raise InvalidArgument(f"{kind}.{name} {problem}", violations=[(f"{kind}.{name}", problem)])
    try:
        return layout.pack(VERSION, *values)
    except struct.error as error:
        raise InvalidArgument(f"{kind} has a number out of range: {error}") from None


_ORDER_WIDTHS = {
    "request_id": 16, "customer_key": 33, "market_key": 33, "challenge_type_hash": 32, "payload_digest": 32,
    "reward_units": 0, "deadline_ms": 0, "priority": 0,
}  # fmt: skip
_ASSIGNMENT_WIDTHS = {"task_id": 32, "orchestrator_key": 33, "epoch": 0, "jobs": 0}
_COMMITMENT_WIDTHS = {
    "task_id": 32, "job": 0, "task_epoch": 0, "attempt": 0, "worker_key": 33, "result_hash": 32, "nonce": 0,
}  # fmt: skip
_RESULT_WIDTHS = {
    "task_id": 32, "job": 0, "worker_key": 33, "result_hash": 32, "proof_hash": 32, "nonce": 0,
    "authorisation": 32,
}  # fmt: skip
_HEADER_WIDTHS = {
    "chain_hash": 32, "height": 0, "previous": 32, "time_ms": 0, "tx_root": 32, "compute_root": 32,
    "state_root": 32, "tx_count": 0, "result_count": 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Terms:
    """What an order may ask for beyond the plain case; version 2 of the order has them.

    `delivery` is VERIFIED (accepted when its audits pass), MANUAL (the customer picks among `responses` answers; its
    silence for `confirm_window_s` seconds after the first picks that one) or FIRST_RESPONSE (accepted unaudited).
    `payer` is the 20-byte account that pays where that is not the customer's own: an account that delegated the
    customer's key, or a pool. `model` is the name hash of a registered model, whose owner gets its royalty.
    """

    delivery: int = DELIVERY_VERIFIED
    responses: int = 1
    confirm_window_s: int = 0
    payer: bytes = NO_ADDRESS
    model: bytes = ZERO_HASH

    def pack(self) -> bytes:
        """The 58 bytes in which an order of version 2 goes on. Raises InvalidArgument."""
        payer, model = _exact("order.payer", self.payer, 20), _exact("order.model", self.model, 32)
        return _packed(ORDER_TERMS.pack, self.delivery, self.responses, self.confirm_window_s, payer, model)

    @classmethod
    def unpack(cls, data: bytes) -> Terms:
        """What `pack` packed."""
        return cls(*ORDER_TERMS.unpack(data))

    def problem(self) -> tuple[str, str] | None:
        """The first field that is out of range, and why."""
        manual = self.delivery == DELIVERY_MANUAL
        if self.delivery not in (DELIVERY_VERIFIED, DELIVERY_MANUAL, DELIVERY_FIRST_RESPONSE):
            return "delivery", f"is {self.delivery}, must be 0 (verified), 1 (manual) or 2 (first response)"
        if not 1 <= self.responses <= (MAX_RESPONSES if manual else 1):
            return "responses", f"is {self.responses}, must be 1, or 1..{MAX_RESPONSES} with manual confirmation"
        low, high = (1, MAX_CONFIRM_WINDOW_S) if manual else (0, 0)
        if not low <= self.confirm_window_s <= high:
            return "confirm_window_s", f"is {self.confirm_window_s}, must be {low}..{high} seconds"
        return None


PLAIN = Terms()


@dataclass(frozen=True, slots=True)
class Order:
    """What a customer buys; `reward_units` in base units, `deadline_ms` Unix milliseconds, `priority`
    0..9. Plain `terms` make version 1 (164 bytes), others version 2 (222 bytes).
    """

    request_id: bytes
    customer_key: bytes
    market_key: bytes
    challenge_type_hash: bytes
    payload_digest: bytes
    reward_units: int
    deadline_ms: int
    priority: int = 0
    terms: Terms = PLAIN

    def pack(self) -> bytes:
        """The 164 or 222 bytes. Raises InvalidArgument naming a field of wrong width or range."""
        self._check(InvalidArgument)
        packed = _pack(ORDER, "order", _ORDER_WIDTHS, self)
        if self.terms == PLAIN:
            return packed
        return b"\x02" + packed[1:] + self.terms.pack()

    @classmethod
    def unpack(cls, data: bytes) -> Order:
        """Read 164 or 222 bytes, as the version says. Raises InvalidProof naming the field."""
        terms = PLAIN
        if data[:1] == b"\x02":
            if len(data) != ORDER_TERMS_SIZE:
                raise _bad("order", f"has {len(data)} bytes, not {ORDER_TERMS_SIZE} as version 2 has")
            terms = Terms.unpack(data[ORDER_SIZE:])
            if terms == PLAIN:
                raise _bad("order.version", "is 2 for plain terms, which version 1 says")
            data = bytes([VERSION]) + data[1:ORDER_SIZE]
        order = cls(*(*_fields(ORDER, data, "order"), terms))
        order._check(InvalidProof)
        return order

    def _check(self, error: type[InvalidArgument]) -> None:
        for name, limit in (("reward_units", MAX_UNITS), ("priority", MAX_PRIORITY)):
            value = getattr(self, name)
            if not 0 <= value <= limit:
                problem = f"is {value}, must be 0..{limit}"
                raise error(f"order.{name} {problem}", violations=[(f"order.{name}", problem)])
        found = self.terms.problem()
        if found:
            raise error(f"order.{found[0]} {found[1]}", violations=[(f"order.{found[0]}", found[1])])

    def task_id(self, chain: str) -> bytes:
        """The task's id: the 32-byte digest the customer signs (domain `order`)."""
        return envelope.digest("order", chain, self.pack())


def order_size(version: bytes) -> int:
    """Bytes of an order that begins with this version byte; 0 where there is no such version."""
    return {b"\x01": ORDER_SIZE, b"\x02": ORDER_TERMS_SIZE}.get(version, 0)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which orchestrator may settle a task from `epoch` on, and into how many jobs its reward is divided."""

    task_id: bytes
    orchestrator_key: bytes
    epoch: int
    jobs: int

    def pack(self) -> bytes:
        """The 74 bytes. Raises InvalidArgument."""
        return _pack(ASSIGNMENT, "assignment", _ASSIGNMENT_WIDTHS, self)

    @classmethod
    def unpack(cls, data: bytes) -> Assignment:
        """Read 74 bytes. Raises InvalidProof naming the field."""
        assignment = cls(*_fields(ASSIGNMENT, data, "assignment"))
        if assignment.jobs == 0:
            raise _bad("assignment.jobs", "must be at least 1")
        return assignment


@dataclass(frozen=True, slots=True)
class Commitment:
    """A worker's word that this `result_hash` is its answer to one attempt at one job."""

    task_id: bytes
    job: int
    task_epoch: int
    attempt: int
    worker_key: bytes
    result_hash: bytes
    nonce: int

    def pack(self) -> bytes:
        """The 118 bytes. Raises InvalidArgument."""
        return _pack(COMMITMENT, "commitment", _COMMITMENT_WIDTHS, self)

    @classmethod
    def unpack(cls, data: bytes) -> Commitment:
        """Read 118 bytes. Raises InvalidProof naming the field."""
        return cls(*_fields(COMMITMENT, data, "commitment"))


@dataclass(frozen=True, slots=True)
class Result:
    """One audited result: the leaf data of a block's `compute_root`."""

    task_id: bytes
    job: int
    worker_key: bytes
    result_hash: bytes
    proof_hash: bytes
    nonce: int
    authorisation: bytes

    def pack(self) -> bytes:
        """The 174 bytes. Raises InvalidArgument."""
        return _pack(RESULT, "result", _RESULT_WIDTHS, self)

    @classmethod
    def unpack(cls, data: bytes) -> Result:
        """Read 174 bytes. Raises InvalidProof naming the field."""
        return cls(*_fields(RESULT, data, "result"))


@dataclass(frozen=True, slots=True)
class Header:
    """A block's header; `chain_hash` is SHA-256 of the chain id, `time_ms` Unix milliseconds."""

    chain_hash: bytes
    height: int
    previous: bytes
    time_ms: int
    tx_root: bytes
    compute_root: bytes
    state_root: bytes
    tx_count: int
    result_count: int

    def pack(self) -> bytes:
        """The 185 bytes. Raises InvalidArgument."""
        return _pack(HEADER, "header", _HEADER_WIDTHS, self)

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """Read 185 bytes. Raises InvalidProof naming the field."""
        return cls(*_fields(HEADER, data, "header"))

    @property
    def block_hash(self) -> bytes:
        """The RFC 9162 leaf hash of the header, 32 bytes."""
        return merkle.leaf_hash(self.pack())


def challenge_type_hash(challenge_type: str) -> bytes:
    """SHA-256 of the UTF-8 task type name, as an order carries it."""
    return sha256(challenge_type.encode()).digest()


def chain_hash(chain: str) -> bytes:
    """SHA-256 of the UTF-8 chain id, as a header carries it."""
    return sha256(chain.encode()).digest()


def joined_leaves(batch: bytes, size: int, kind: str = "commitments") -> bytes:
    """The leaf hashes of a batch of `size`-byte statements, joined. Raises InvalidProof on a ragged or mixed
    batch.
    """
    count, rest = divmod(len(batch), size)
    if rest:
        raise _bad(kind, f"has {len(batch)} bytes, not a multiple of {size}")
    if batch[::size] != bytes([VERSION]) * count:
        raise _bad(f"{kind}.version", f"is not {VERSION} throughout")
    return merkle.leaf_hashes(batch, size)


def leaves(batch: bytes, size: int, kind: str = "commitments") -> list[bytes]:
    """The same one by one."""
    return merkle.split(joined_leaves(batch, size, kind))


def iter_commitments(batch: bytes) -> Iterator[CommitmentRow]:
    """The rows of a batch of packed commitments, lengths and versions checked. Raises InvalidProof at
    once.
    """
    count, rest = divmod(len(batch), COMMITMENT_SIZE)
    if rest:
        raise _bad("commitments", f"has {len(batch)} bytes, not a multiple of {COMMITMENT_SIZE}")
    if batch[::COMMITMENT_SIZE] != bytes([VERSION]) * count:
        raise _bad("commitments.version", f"is not {VERSION} throughout")
    return COMMITMENT.iter_unpack(batch)


def commitment_root(batch: bytes) -> bytes:
    """The root of the tree over a batch of packed commitments, in order. Raises InvalidProof."""
    return merkle.root(joined_leaves(batch, COMMITMENT_SIZE))


def commitments_body(count: int, root: bytes) -> bytes:
    """`u32 count || 32 root`: what a worker signs for a whole batch (domain `commitment`)."""
    return _packed(_COUNT_ROOT.pack, count, _exact("root", root, 32))


def sign_commitments(key: PrivateKey, chain: str, batch: bytes) -> bytes:
    """The worker's one 64-byte signature for a batch of packed commitments."""
    return sign_leaves(key, chain, leaves(batch, COMMITMENT_SIZE))


def sign_leaves(key: PrivateKey, chain: str, leaf_hashes: Sequence[bytes]) -> bytes:
    """As `sign_commitments`, where the commitments' leaf hashes are known already."""
    body = commitments_body(len(leaf_hashes), merkle.root(leaf_hashes))
    return envelope.sign(key, "commitment", chain, body)


def verify_commitments(worker_key: bytes, chain: str, count: int, root: bytes, signature: bytes) -> bool:
    """Whether the worker signed the batch of `count` commitments with this root."""
    return envelope.verify(worker_key, "commitment", chain, commitments_body(count, root), signature)


def authorisation(orchestrator_key: bytes, commitment_root: bytes, position: int) -> bytes:
    """The 32 bytes that bind a result to the signed batch and to who settles it."""
    body = _exact("orchestrator_key", orchestrator_key, 33) + _exact("commitment_root", commitment_root, 32)
    return tagged("computemesh.v1/authorisation", body + _packed(struct.pack, ">I", position))


def state_root(previous: bytes, touched_root: bytes) -> bytes:
    """The header's `state_root` after a block whose touched records, in key order, have this tree root."""
    return tagged(
        "computemesh.v1/state", _exact("previous", previous, 32) + _exact("touched_root", touched_root, 32)
    )


def deposit_body(to: bytes, amount: int) -> bytes:
    """Body of a `deposit` of base units to 20 address bytes."""
    return _packed(_TO_AMOUNT.pack, _exact("to", to, 20), amount)


def transfer_body(to: bytes, amount: int) -> bytes:
    """Body of a `transfer` of base units to 20 address bytes."""
    return deposit_body(to, amount)


def refund_body(task_id: bytes, cause: int) -> bytes:
    """Body of a `refund`; `cause` is CAUSE_CANCELLED or CAUSE_FAILED."""
    return _packed(_TASK_CAUSE.pack, _exact("task_id", task_id, 32), cause)


def settle_body(count: int, root: bytes) -> bytes:
    """Body of a `settle` of `count` results with this root of their leaves."""
    return commitments_body(count, root)


def transaction_digest(kind: str, chain: str, tx_id: bytes, body: bytes) -> bytes:
    """What the author of a transaction signs: digest("tx/" || kind, chain, 16 id || body)."""
    return envelope.digest(f"tx/{kind}", chain, _exact("tx_id", tx_id, 16) + body)


def token_body(key: bytes, expires_ms: int) -> bytes:
    """Body of a bearer token (domain `token`)."""
    return _exact("key", key, 33) + _packed(struct.pack, ">Q", expires_ms)


def hello_body(greeting_nonce: bytes, greeter_key: bytes, own_key: bytes, capabilities: bytes) -> bytes:
    """Body of a stream's Hello (domain `hello`); `capabilities` are the bytes as sent."""
    fixed = (
        _exact("nonce", greeting_nonce, 32)
        + _exact("greeter_key", greeter_key, 33)
        + _exact("key", own_key, 33)
    )
    return fixed + sha256(capabilities).digest()


def _exact(name: str, value: bytes, width: int) -> bytes:
    if len(value) != width:
        problem = f"must have {width} bytes, not {len(value)}"
        raise InvalidArgument(f"{name} {problem}", violations=[(name, problem)])
    return value


def _packed(pack: Callable[..., bytes], *values: Any) -> bytes:
    try:
        return pack(*values)
    except struct.error as error:
        raise InvalidArgument(f"a number is out of range: {error}") from None
