"""Settle transactions: accepted results as the ledger takes them, signed once, and the ledger's answer read back."""

from __future__ import annotations

from collections.abc import Sequence

from computemesh.trust import merkle, statement
from computemesh.trust.identity import PrivateKey
from computemesh.trust.results import result_leaves
from computemesh.trust.statement import COMMITMENT, COMMITMENT_SIZE
from computemesh.v1 import ledger_pb2
from computemesh.workloads.contract import JobSpec
from orchestrator.model import Batch, Lease, Part, Task

# The ledger takes no more in one settle transaction; bytes leave room below a message's 4 MiB.
MAX_RESULTS = 4096
MAX_BYTES = 3 * 1024 * 1024


def build(key: PrivateKey, chain: str, tx_id: bytes, parts: Sequence[Part]) -> bytes:
    """The serialised Transaction that settles these parts, signed by the orchestrator."""
    settle = ledger_pb2.Settle()
    leaves = b""
    for part in parts:
        batch = part.batch
        whole, proofs = len(part.positions) == batch.count, b"".join(part.proofs)
        commitments = batch.commitments if whole else _chosen(batch.commitments, part.positions)
        settle.batches.add(
            worker_key=batch.key,
            worker_signature=batch.signature,
            commitments=commitments,
            proof_hashes=proofs,
            positions=() if whole else part.positions,
            leaf_hashes=b"" if whole else b"".join(batch.leaves),
        )
        leaves += result_leaves(key.public, batch.root, commitments, part.positions, proofs)
    body = statement.settle_body(len(leaves) // 32, merkle.root(leaves))
    signature = key.sign(statement.transaction_digest("settle", chain, tx_id, body))
    transaction = ledger_pb2.Transaction(id=tx_id, public_key=key.public, signature=signature, settle=settle)
    return transaction.SerializeToString()


def _chosen(commitments: bytes, positions: Sequence[int]) -> bytes:
    return b"".join(commitments[at * COMMITMENT_SIZE : (at + 1) * COMMITMENT_SIZE] for at in positions)


def read_answer(outcome: ledger_pb2.Outcome, results: int) -> tuple[dict[int, str], int]:
    """(position -> reason of refused results, block height, 0 where not sealed). A transaction refused whole is every
    result refused for its reason."""
    if outcome.kind == ledger_pb2.OUTCOME_KIND_APPLIED:
        return {refusal.position: refusal.reason for refusal in outcome.refusals}, outcome.block_height
    return dict.fromkeys(range(results), outcome.reason or "REFUSED"), outcome.block_height


def read_parts(transaction: ledger_pb2.Transaction, tasks: dict[bytes, Task]) -> list[Part]:
    """The parts of a stored transaction, for start-up. Results of tasks that are no longer open get one that ended,
    so that positions still count."""
    parts = []
    for batch in transaction.settle.batches:
        leases: list[Lease | None] = [restored_lease(tasks, row) for row in COMMITMENT.iter_unpack(batch.commitments)]
        proofs = [batch.proof_hashes[at : at + 32] for at in range(0, len(batch.proof_hashes), 32)]
        held = Batch(0, batch.worker_key, 0, batch.commitments, batch.worker_signature, [], leases)
        parts.append(Part(held, list(range(len(leases))), proofs))
    return parts


_NOTHING = JobSpec(bytes(32), 0, b"")


def restored_lease(tasks: dict[bytes, Task], row: tuple[int, bytes, int, int, int, bytes, bytes, int]) -> Lease:
    """A lease that only remembers what was committed."""
    task, index = tasks.get(row[1]), row[2]
    if task is None or index >= len(task.states):
        task, index = Task(row[1], row[3], "", [_NOTHING]), 0
        task.ended = True
    lease = Lease(0, task, index, row[4], _NOTHING, 0)
    lease.epoch, lease.result_hash = row[3], row[6]
    return lease
