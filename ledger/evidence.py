"""What a transaction says, and whether its signatures hold: everything about it that needs no state.

PURE, and by far the larger part of a settlement's cost, so it is done before a transaction takes its place in line.
Layouts are docs/PROTOCOL.md section 4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from computemesh.trust import acts, envelope, identity, merkle, statement
from computemesh.trust.statement import COMMITMENT_SIZE, RESULT_SIZE

MAX_RESULTS = 4096
"""Results one settlement may hold: as many as a block."""

_U32 = struct.Struct(">I")
_AUTHORISATION_TAG = sha256(b"computemesh.v1/authorisation").digest() * 2


@dataclass(frozen=True, slots=True)
class Deposit:
    """Mints `amount` base units to a 20-byte address."""

    to: bytes
    amount: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """Moves `amount` base units from the signer to a 20-byte address."""

    to: bytes
    amount: int


@dataclass(frozen=True, slots=True)
class Open:
    """Holds the order's reward in escrow. `packed` are the order's 164 bytes."""

    order: statement.Order
    packed: bytes


@dataclass(frozen=True, slots=True)
class Assign:
    """Says who may settle. `packed` are the assignment's 74 bytes."""

    assignment: statement.Assignment
    packed: bytes


@dataclass(frozen=True, slots=True)
class Refund:
    """Returns what is unspent; `cause` is statement.CAUSE_CANCELLED or CAUSE_FAILED."""

    task_id: bytes
    cause: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Results of one batch a worker signed, as columns of bytes (`ResultBatch` of the contract).

    `positions` and `leaf_hashes` are empty where the whole batch is settled in order.
    """

    worker_key: bytes
    worker_signature: bytes
    commitments: bytes
    proof_hashes: bytes
    positions: tuple[int, ...] = ()
    leaf_hashes: bytes = b""


@dataclass(frozen=True, slots=True)
class Settle:
    """Results that passed their audit, in the order of the contract: batches in order, results in order."""

    batches: tuple[Batch, ...]


Body = Deposit | Transfer | Open | Assign | Refund | Settle | acts.Act


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction whose shape is right: every length, enum and address was checked by whoever made this."""

    id: bytes
    public_key: bytes
    signature: bytes
    body: Body


@dataclass(frozen=True, slots=True)
class BatchEvidence:
    """One worker batch, examined: rows of commitments, leaf hashes of the results, and what was signed.

    `included[i]` says whether commitment i stands at its position in the signed batch; None: all do, by construction.
    """

    worker_key: bytes
    signed: bool
    rows: list[statement.CommitmentRow]
    included: list[bool] | None
    leaves: list[bytes]


@dataclass(frozen=True, slots=True)
class Examined:
    """A transaction with its statement's digest, which is also its content's identity, and its signature's verdict."""

    transaction: Transaction
    digest: bytes
    signed: bool
    batches: tuple[BatchEvidence, ...] = ()
    orders: tuple[tuple[bytes, statement.Order], ...] = ()
    """(task id, order) of each order an `orders` act opens."""

    @property
    def results(self) -> int:
        """Results a settlement asks to settle; 0 for everything else."""
        return sum(len(batch.rows) for batch in self.batches)


def batch_tree(batch: Batch) -> tuple[list[bytes], list[bytes]]:
    """(leaf hashes of the settled commitments, leaf hashes of the whole batch the worker signed)."""
    own = statement.leaves(batch.commitments, COMMITMENT_SIZE)
    if not batch.leaf_hashes:
        return own, own
    everything = batch.leaf_hashes
    return own, [everything[at : at + 32] for at in range(0, len(everything), 32)]


def result_statements(batch: Batch, orchestrator_key: bytes, commitment_root: bytes) -> Iterator[bytes]:
    """The 174-byte result statement of each commitment: spliced, because this runs once per result.

    Same bytes as statement.Result(..., statement.authorisation(...)).pack().
    """
    bound = sha256(_AUTHORISATION_TAG + orchestrator_key + commitment_root)
    count = len(batch.commitments) // COMMITMENT_SIZE
    commitments, proofs = batch.commitments, batch.proof_hashes
    at = 0
    for index, position in enumerate(batch.positions or range(count)):
        authorisation = bound.copy()
        authorisation.update(_U32.pack(position))
        yield (
            commitments[at : at + 37]  # version, task id, job
            + commitments[at + 45 : at + 110]  # worker key, result hash
            + proofs[index * 32 : index * 32 + 32]
            + commitments[at + 110 : at + 118]  # nonce
            + authorisation.digest()
        )
        at += COMMITMENT_SIZE


def _batch_evidence(batch: Batch, chain: str, orchestrator_key: bytes) -> BatchEvidence:
    own, everything = batch_tree(batch)
    root = merkle.root(everything)
    signed = statement.verify_commitments(batch.worker_key, chain, len(everything), root, batch.worker_signature)
    included = None
    if batch.leaf_hashes:
        included = [everything[p] == leaf for p, leaf in zip(batch.positions, own, strict=True)]
    leaves = [sha256(b"\x00" + result).digest() for result in result_statements(batch, orchestrator_key, root)]
    rows = list(statement.iter_commitments(batch.commitments))
    return BatchEvidence(batch.worker_key, signed, rows, included, leaves)


def examine(chain: str, transaction: Transaction) -> Examined:
    """The digest and verdicts of `transaction` on `chain`. Deterministic; raises nothing on what is well shaped."""
    body = transaction.body
    batches: tuple[BatchEvidence, ...] = ()
    orders: tuple[tuple[bytes, statement.Order], ...] = ()
    match body:
        case acts.Act():
            digest = acts.digest(body, chain, transaction.id)
            if isinstance(body, acts.Orders):
                orders = tuple((envelope.digest("order", chain, one), statement.Order.unpack(one))
                               for one in body.orders)  # fmt: skip
        case Deposit(to, amount):
            digest = _digest("deposit", chain, transaction, statement.deposit_body(to, amount))
        case Transfer(to, amount):
            digest = _digest("transfer", chain, transaction, statement.transfer_body(to, amount))
        case Open(_, packed):
            digest = envelope.digest("order", chain, packed)
        case Assign(_, packed):
            digest = _digest("assign", chain, transaction, packed)
        case Refund(task_id, cause):
            digest = _digest("refund", chain, transaction, statement.refund_body(task_id, cause))
        case Settle(columns):
            batches = tuple(_batch_evidence(batch, chain, transaction.public_key) for batch in columns)
            leaves = [leaf for batch in batches for leaf in batch.leaves]
            digest = _digest("settle", chain, transaction, statement.settle_body(len(leaves), merkle.root(leaves)))
    signed = identity.verify(transaction.public_key, digest, transaction.signature)
    return Examined(transaction, digest, signed, batches, orders)


def _digest(kind: str, chain: str, transaction: Transaction, body: bytes) -> bytes:
    return statement.transaction_digest(kind, chain, transaction.id, body)


assert RESULT_SIZE == 37 + 65 + 32 + 8 + 32
