"""The parties of a ledger test: keys, signed transactions, settlements."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from computemesh.trust import audit, envelope, identity, merkle, statement
from computemesh.trust.digest import payload_digest
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2 as pb
from ledger import evidence

CHAIN = "computemesh-test"
PAYLOAD: dict[str, object] = {"matrix_size": 64}


def key(number: int) -> PrivateKey:
    """A key whose secret is a small number."""
    return PrivateKey.from_bytes(number.to_bytes(32, "big"))


AUTHORITY, MARKET, ORCHESTRATOR, CUSTOMER, WORKER, OTHER, TREASURY = (key(100 + at) for at in range(7))
LOG_SEED = bytes(range(32))
_ids = itertools.count(1)


def new_id() -> bytes:
    """A transaction id that no other test step uses."""
    return next(_ids).to_bytes(16, "big")


def signed(kind: str, body: bytes, signer: PrivateKey, tx_id: bytes | None = None) -> dict[str, bytes]:
    """id, public_key and signature of a transaction."""
    tx_id = tx_id or new_id()
    signature = signer.sign(statement.transaction_digest(kind, CHAIN, tx_id, body))
    return {"id": tx_id, "public_key": signer.public, "signature": signature}


def deposit(to: PrivateKey, units: int, signer: PrivateKey = AUTHORITY, tx_id: bytes | None = None) -> pb.Transaction:
    """Mints."""
    body = statement.deposit_body(identity.address_bytes(to.public), units)
    return pb.Transaction(
        **signed("deposit", body, signer, tx_id), deposit=pb.Deposit(to=to.address, amount_units=units))


def transfer(payer: PrivateKey, to: PrivateKey, units: int, tx_id: bytes | None = None) -> pb.Transaction:
    """Pays."""
    body = statement.transfer_body(identity.address_bytes(to.public), units)
    return pb.Transaction(
        **signed("transfer", body, payer, tx_id), transfer=pb.Transfer(to=to.address, amount_units=units))


def order(
    reward: int, deadline_ms: int, customer: PrivateKey = CUSTOMER, market: PrivateKey = MARKET
) -> statement.Order:
    """A synthetic task's order."""
    return statement.Order(
        new_id(), customer.public, market.public, statement.challenge_type_hash("synthetic"), payload_digest(PAYLOAD),
        reward, deadline_ms, 5)


def task_id(task: statement.Order) -> bytes:
    """The order's digest."""
    return task.task_id(CHAIN)


def open_(task: statement.Order, customer: PrivateKey = CUSTOMER) -> pb.Transaction:
    """Puts the reward in escrow."""
    packed = task.pack()
    return pb.Transaction(
        id=task.request_id, public_key=customer.public, signature=envelope.sign(customer, "order", CHAIN, packed),
        open=pb.EscrowOpen(order=packed))


def assign(
    task: bytes, jobs: int, epoch: int = 1, orchestrator: PrivateKey = ORCHESTRATOR, market: PrivateKey = MARKET
) -> pb.Transaction:
    """Says who may settle."""
    packed = statement.Assignment(task, orchestrator.public, epoch, jobs).pack()
    return pb.Transaction(**signed("assign", packed, market), assign=pb.EscrowAssign(assignment=packed))


def refund(task: bytes, cause: int = statement.CAUSE_CANCELLED, market: PrivateKey = MARKET) -> pb.Transaction:
    """Ends the escrow early."""
    body = statement.refund_body(task, cause)
    return pb.Transaction(
        **signed("refund", body, market), refund=pb.EscrowRefund(task_id=task, cause=pb.RefundCause.ValueType(cause)))


def commitment(
    task: bytes, job: int, nonce: int, worker: PrivateKey = WORKER, epoch: int = 1, attempt: int = 1, salt: bytes = b""
) -> bytes:
    """One packed commitment."""
    result = merkle.leaf_hash(task + job.to_bytes(4, "big") + salt)
    return statement.Commitment(task, job, epoch, attempt, worker.public, result, nonce).pack()


def batch(
    commitments: Sequence[bytes], worker: PrivateKey = WORKER, settled: Sequence[int] | None = None
) -> pb.ResultBatch:
    """A worker's signed batch, of which `settled` (default: all) is to be settled."""
    signature = statement.sign_commitments(worker, CHAIN, b"".join(commitments))
    chosen = range(len(commitments)) if settled is None else settled
    proofs = [
        audit.transcript_digest(statement.Commitment.unpack(commitments[at]).result_hash, bytes(32), 32, 64, b"", True)
        for at in chosen
    ]
    message = pb.ResultBatch(
        worker_key=worker.public, worker_signature=signature, commitments=b"".join(commitments[at] for at in chosen),
        proof_hashes=b"".join(proofs))
    if settled is not None:
        message.positions.extend(settled)
        message.leaf_hashes = b"".join(merkle.leaf_hash(one) for one in commitments)
    return message


def settle(
    batches: Sequence[pb.ResultBatch], orchestrator: PrivateKey = ORCHESTRATOR, tx_id: bytes | None = None
) -> pb.Transaction:
    """A signed settlement."""
    leaves = []
    for one in batches:
        columns = evidence.Batch(
            one.worker_key, one.worker_signature, one.commitments, one.proof_hashes, tuple(one.positions),
            one.leaf_hashes)
        leaves += [merkle.leaf_hash(r) for r in columns.statements(orchestrator.public)]
    body = statement.settle_body(len(leaves), merkle.root(leaves))
    return pb.Transaction(**signed("settle", body, orchestrator, tx_id), settle=pb.Settle(batches=list(batches)))
