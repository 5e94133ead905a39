"""What a transaction says, and whether its signatures hold: everything about it that needs no state.

PURE, and by far the larger part of a settlement's cost, so it is done before a transaction takes its place in line.
Layouts are docs/PROTOCOL.md section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from computemesh.trust import acts, envelope, identity, merkle, results, statement
from computemesh.trust.statement import COMMITMENT_SIZE, RESULT_SIZE

MAX_RESULTS = 4096
"""Results one settlement may hold: as many as a block."""


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

    @property
    def signed_leaves(self) -> bytes:
        """Leaf hashes, joined, of everything the worker signed."""
        return self.leaf_hashes or statement.joined_leaves(self.commitments, COMMITMENT_SIZE)

    @property
    def places(self) -> Sequence[int]:
        """Where each commitment stands among them."""
        return self.positions or range(len(self.commitments) // COMMITMENT_SIZE)

    def statements(self, orchestrator_key: bytes) -> list[bytes]:
        """The 174-byte result statement of each commitment, settled by this orchestrator."""
        joined = results.result_statements(
            orchestrator_key, merkle.root(self.signed_leaves), self.commitments, self.places, self.proof_hashes)
        return [joined[at : at + RESULT_SIZE] for at in range(0, len(joined), RESULT_SIZE)]


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
    """One worker batch, examined: packed commitments, leaf hashes of the results (joined), and what was signed.

    `included[i]` says whether commitment i stands at its position in the signed batch; None: all do, by construction.
    """

    worker_key: bytes
    signed: bool
    commitments: bytes
    included: list[bool] | None
    leaves: bytes

    @property
    def count(self) -> int:
        """Results in it."""
        return len(self.commitments) // COMMITMENT_SIZE

    @property
    def rows(self) -> list[statement.CommitmentRow]:
        """The commitments, read."""
        return list(statement.iter_commitments(self.commitments))


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
        return sum(batch.count for batch in self.batches)


def _batch_evidence(batch: Batch, chain: str, orchestrator_key: bytes) -> BatchEvidence:
    everything = batch.signed_leaves
    root = merkle.root(everything)
    signed = statement.verify_commitments(batch.worker_key, chain, len(everything) // 32, root, batch.worker_signature)
    included = None
    if batch.leaf_hashes:
        own = merkle.split(statement.joined_leaves(batch.commitments, COMMITMENT_SIZE))
        included = [everything[32 * at : 32 * at + 32] == leaf for at, leaf in zip(batch.places, own, strict=True)]
    leaves = results.result_leaves(orchestrator_key, root, batch.commitments, batch.places, batch.proof_hashes)
    return BatchEvidence(batch.worker_key, signed, batch.commitments, included, leaves)


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
            leaves = b"".join([batch.leaves for batch in batches])
            body_bytes = statement.settle_body(len(leaves) // 32, merkle.root(leaves))
            digest = _digest("settle", chain, transaction, body_bytes)
    signed = identity.verify(transaction.public_key, digest, transaction.signature)
    return Examined(transaction, digest, signed, batches, orders)


def _digest(kind: str, chain: str, transaction: Transaction, body: bytes) -> bytes:
    return statement.transaction_digest(kind, chain, transaction.id, body)
