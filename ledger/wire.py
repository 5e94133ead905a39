"""Transactions from the contract's messages, their shape checked field by field."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable
from typing import TypeVar

from computemesh.trust import acts, identity, statement
from computemesh.trust.errors import InvalidArgument
from computemesh.trust.statement import COMMITMENT_SIZE
from computemesh.v1 import ledger_pb2 as pb
from ledger.evidence import (
    MAX_RESULTS,
    Assign,
    Batch,
    Body,
    Deposit,
    Open,
    Refund,
    Settle,
    Transaction,
    Transfer,
)  # fmt: skip
from ledger.state import Reason, Refusal

T = TypeVar("T")

MAX_TIME_MS = 2**63 - 1
MAX_BATCH = 65536
"""Commitments of one batch a worker signed, settled here or not."""

_REFUSAL = struct.Struct(">IB")
_CODES: tuple[Reason, ...] = (
    Reason.WRONG_ADDRESS, Reason.INVALID_SIGNATURE, Reason.NONCE_REPLAYED, Reason.UNKNOWN_TASK, Reason.UNFUNDED_TASK,
    Reason.DUPLICATE_RESULT, Reason.EXPIRED_EPOCH, Reason.UNAUTHORIZED, Reason.TASK_EXPIRED, Reason.INVALID_RESULT,
    Reason.PAUSED, Reason.DUPLICATE_TASK, Reason.INVALID_ORDER, Reason.INSUFFICIENT_FUNDS, Reason.POOL_INACTIVE,
    Reason.UNKNOWN_MODEL, Reason.MODEL_INACTIVE, Reason.UNDERPRICED,
)  # fmt: skip
"""Stored: append only."""


def _bad(path: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"{path}: {problem}", violations=[(path, problem)])


def _named(path: str, parse: Callable[[], T]) -> T:
    """What `parse` gives, or its refusal with the field's path in front."""
    try:
        return parse()
    except InvalidArgument as error:
        raise _bad(path, error.message) from None


def transaction(message: pb.Transaction, path: str = "transaction") -> Transaction:
    """The transaction a message says. Raises InvalidArgument naming the field below `path`."""
    for name, size in (("id", 16), ("public_key", 33), ("signature", 64)):
        if len(getattr(message, name)) != size:
            raise _bad(f"{path}.{name}", f"has {len(getattr(message, name))} bytes, must have {size}")
    kind = message.WhichOneof("body")
    if kind is None:
        raise _bad(f"{path}.body", "is required: one of deposit, transfer, open, assign, refund, settle, act")
    body = _BODIES[kind](getattr(message, kind), f"{path}.{kind}")
    return Transaction(message.id, message.public_key, message.signature, body)


def _payment(message: pb.Deposit | pb.Transfer, path: str) -> tuple[bytes, int]:
    to = _named(f"{path}.to", lambda: identity.decode_address(message.to))
    if message.amount_units < 1:
        raise _bad(f"{path}.amount_units", f"is {message.amount_units}, must be at least 1")
    return to, message.amount_units


def _deposit(message: pb.Deposit, path: str) -> Body:
    return Deposit(*_payment(message, path))


def _transfer(message: pb.Transfer, path: str) -> Body:
    return Transfer(*_payment(message, path))


def _open(message: pb.EscrowOpen, path: str) -> Body:
    order = _named(f"{path}.order", lambda: statement.Order.unpack(message.order))
    if order.deadline_ms > MAX_TIME_MS:
        raise _bad(f"{path}.order", f"deadline_ms is {order.deadline_ms}, must be at most {MAX_TIME_MS}")
    return Open(order, message.order)


def _assign(message: pb.EscrowAssign, path: str) -> Body:
    assignment = _named(f"{path}.assignment", lambda: statement.Assignment.unpack(message.assignment))
    return Assign(assignment, message.assignment)


def _refund(message: pb.EscrowRefund, path: str) -> Body:
    if len(message.task_id) != 32:
        raise _bad(f"{path}.task_id", f"has {len(message.task_id)} bytes, must have 32")
    if message.cause not in (pb.REFUND_CAUSE_CANCELLED, pb.REFUND_CAUSE_FAILED):
        raise _bad(f"{path}.cause", f"is {message.cause}, must be CANCELLED (1) or FAILED (2)")
    return Refund(message.task_id, message.cause)


def _act(message: pb.Act, path: str) -> Body:
    return _named(path, lambda: acts.unpack(message.kind, message.body))


def _settle(message: pb.Settle, path: str) -> Body:
    if not message.batches:
        raise _bad(f"{path}.batches", "is empty")
    batches = tuple(_batch(batch, f"{path}.batches[{at}]") for at, batch in enumerate(message.batches))
    results = sum(len(batch.commitments) // COMMITMENT_SIZE for batch in batches)
    if results > MAX_RESULTS:
        raise _bad(f"{path}.batches", f"hold {results} results, at most {MAX_RESULTS} fit one settlement")
    return Settle(batches)


def _batch(message: pb.ResultBatch, path: str) -> Batch:
    commitments, proofs, positions = message.commitments, message.proof_hashes, tuple(message.positions)
    count, rest = divmod(len(commitments), COMMITMENT_SIZE)
    if rest or not count:
        raise _bad(f"{path}.commitments", f"has {len(commitments)} bytes, must have a multiple of {COMMITMENT_SIZE}")
    _named(f"{path}.commitments", lambda: statement.iter_commitments(commitments))
    if len(message.worker_key) != 33:
        raise _bad(f"{path}.worker_key", f"has {len(message.worker_key)} bytes, must have 33")
    if len(message.worker_signature) != 64:
        raise _bad(f"{path}.worker_signature", f"has {len(message.worker_signature)} bytes, must have 64")
    if len(proofs) != count * 32:
        raise _bad(f"{path}.proof_hashes", f"has {len(proofs)} bytes, must have 32 for each of {count} commitments")
    whole, rest = divmod(len(message.leaf_hashes), 32)
    if rest or whole > MAX_BATCH:
        problem = f"has {len(message.leaf_hashes)} bytes, must have a multiple of 32 for at most {MAX_BATCH}"
        raise _bad(f"{path}.leaf_hashes", problem)
    if bool(positions) != bool(whole) or (positions and len(positions) != count):
        problem = f"has {len(positions)} entries with {whole} leaf hashes; both empty, or one per commitment ({count})"
        raise _bad(f"{path}.positions", problem)
    if positions and (positions[-1] >= whole or any(a >= b for a, b in itertools.pairwise(positions))):
        raise _bad(f"{path}.positions", f"must ascend and stay below the {whole} leaf hashes")
    return Batch(
        message.worker_key, message.worker_signature, commitments, proofs, positions, message.leaf_hashes)


_BODIES: dict[str, Callable[..., Body]] = {
    "deposit": _deposit, "transfer": _transfer, "open": _open,
    "assign": _assign, "refund": _refund, "settle": _settle, "act": _act,
}  # fmt: skip


def pack_refusals(refusals: Iterable[Refusal]) -> bytes:
    """Refused results as stored: u32 position and u8 reason each."""
    return b"".join(_REFUSAL.pack(refusal.position, _CODES.index(refusal.reason)) for refusal in refusals)


def unpack_refusals(data: bytes) -> tuple[Refusal, ...]:
    """What `pack_refusals` packed."""
    return tuple(Refusal(position, _CODES[code]) for position, code in _REFUSAL.iter_unpack(data))
