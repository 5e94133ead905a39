"""Receipts put together from what the market and the ledger answer."""

from __future__ import annotations

from typing import Any

from computemesh.client.model import Task
from computemesh.trust.errors import InvalidState
from computemesh.trust.receipt import JobEvidence, Receipt, SignedAssignment
from computemesh.v1 import ledger_pb2

_SAME = [name for name in JobEvidence.__dataclass_fields__ if not name.endswith("_path")]
_PATHS = [name for name in JobEvidence.__dataclass_fields__ if name.endswith("_path")]


def evidence(proven: ledger_pb2.ProvenResult) -> JobEvidence:
    """One job's evidence from the wire."""
    values: dict[str, Any] = {name: getattr(proven, name) for name in _SAME}
    values |= {name: tuple(getattr(proven, name)) for name in _PATHS}
    return JobEvidence(**values)


def require_settled(task: Task) -> None:
    """Raises InvalidState where a task cannot have a receipt."""
    if not task.ended or not task.jobs_settled:
        ended = "ended with no job settled" if task.ended else "has not ended"
        raise InvalidState(f"task {task.task_id[:12]}.. is {task.status} and {ended}; a receipt needs settled jobs")


def assemble(
    chain: str, vkey: str, task: Task, escrow: ledger_pb2.Escrow, proven: list[ledger_pb2.ProvenResult], checkpoint: str
) -> Receipt:
    """A receipt from a task that ended, its escrow, and its proven results, whose header paths lead to `checkpoint`."""
    assignments = {
        one.assignment_id: SignedAssignment(
            one.assignment, one.assignment_id, one.assignment_signature, one.assignment_header, one.assignment_index,
            tuple(one.assignment_tx_path), tuple(one.assignment_header_path))
        for one in proven
    }
    return Receipt(
        chain=chain,
        vkey=vkey,
        challenge_type=task.challenge_type,
        payload=task.payload,
        order=escrow.order,
        customer_signature=escrow.order_signature,
        assignments=tuple(assignments.values()),
        jobs=tuple(evidence(one) for one in proven),
        checkpoint=checkpoint,
        partial=task.status != "completed",
        orders_id=escrow.orders_id,
        orders_count=escrow.orders_count,
        orders_position=escrow.orders_position,
        orders_path=tuple(escrow.orders_path),
    )
