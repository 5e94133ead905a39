"""A task's receipt, verified offline: everything a third party needs to believe a result.

A receipt is JSON with bytes as lower-case hex. `verify` follows the evidence from the customer's signature
down to the log's checkpoint and reports each step. What it needs besides the receipt is one thing: the log's
verifier key, obtained elsewhere. Statements and digests are docs/PROTOCOL.md sections 1 to 4, the checkpoint
section 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from computemesh.trust import envelope, identity, merkle, statement
from computemesh.trust.checkpoint import Checkpoint, NoteVerifier, log_origin, open_checkpoint
from computemesh.trust.digest import payload_digest
from computemesh.trust.errors import InvalidProof, MeshError


@dataclass(frozen=True, slots=True)
class SignedAssignment:
    """One `assign` transaction: the 74 bytes, its 16-byte id, the market's signature, and its place in the log.

    `tx_path` leads from the transaction at `tx_index` to the `tx_root` of its block's header, `header_path` from that
    header to the checkpoint's root. A receipt of the first format does not show these four.
    """

    assignment: bytes
    tx_id: bytes
    signature: bytes
    header: bytes = b""
    tx_index: int = 0
    tx_path: tuple[bytes, ...] = ()
    header_path: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class JobEvidence:
    """One settled job: its result, who signed it, and where it stands in the log.

    `commitment_path` leads from the commitment to the root the worker signed, `settle_path` from the result
    to the root the orchestrator signed, `compute_path` from the result at `leaf_index` to the header's
    compute root, `header_path` from the header to the checkpoint's root, and `settle_tx_path` from the settle
    transaction at `settle_index` to the header's transaction root (the first format does not show these two).
    """

    result: bytes
    commitment: bytes
    commitment_position: int
    commitment_count: int
    commitment_path: tuple[bytes, ...]
    worker_signature: bytes
    orchestrator_key: bytes
    settle_id: bytes
    settle_count: int
    settle_position: int
    settle_path: tuple[bytes, ...]
    settle_signature: bytes
    header: bytes
    leaf_index: int
    compute_path: tuple[bytes, ...]
    header_path: tuple[bytes, ...]
    settle_index: int = 0
    settle_tx_path: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """A task and the evidence for each of its jobs, or if `partial` for those that were settled before it ended.

    `assignments` are the task's assignments in force, one unless it changed orchestrator; `vkey` is the log's
    key as the issuer names it, which proves nothing unless the reader trusts it. Where the order was signed in a batch,
    `orders_id` is that transaction's 16-byte id, and `orders_path` leads from the order at `orders_position` to
    the root of the `orders_count` orders that was signed; else it is empty.
    """

    chain: str
    vkey: str
    challenge_type: str
    payload: Mapping[str, Any]
    order: bytes
    customer_signature: bytes
    assignments: tuple[SignedAssignment, ...]
    jobs: tuple[JobEvidence, ...]
    checkpoint: str
    partial: bool = False
    orders_id: bytes = b""
    orders_count: int = 0
    orders_position: int = 0
    orders_path: tuple[bytes, ...] = ()

    @property
    def shows_transactions(self) -> bool:
        """Whether its transactions' places in their blocks are shown: not in the first format."""
        return any(signed.header for signed in self.assignments)

    def to_json(self) -> str:
        """The receipt as indented JSON."""
        from computemesh.trust import receipt_json  # here: that module imports these classes

        return receipt_json.dump(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Receipt:
        """Read a receipt. Raises InvalidProof naming the field, whatever the input."""
        from computemesh.trust import receipt_json

        return receipt_json.load(text)


@dataclass(frozen=True, slots=True)
class Check:
    """One step of a verification: its name, whether it held, and what was compared."""

    name: str
    ok: bool
    detail: str


def accepted(checks: list[Check]) -> bool:
    """Whether every step held, and there was one."""
    return bool(checks) and all(check.ok for check in checks)


def verify(receipt: Receipt, trusted_vkey: str | None = None) -> list[Check]:
    """Check every step of a receipt; never raises on a receipt's content.

    `trusted_vkey` is the log's verifier key as the reader knows it; without it the receipt's own is used,
    which shows consistency but not who keeps the log, and the step `checkpoint` says so. With it, the step
    `log key` asks that the receipt names that key and no other. A step whose input is malformed fails. The receipt
    holds if `accepted(...)`.
    """
    return list(_steps(receipt, trusted_vkey))


def _need(condition: bool, problem: str) -> None:
    if not condition:
        raise InvalidProof(problem)


def _step(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except (MeshError, UnicodeEncodeError) as error:
        return Check(name, False, str(error))


def _steps(receipt: Receipt, trusted_vkey: str | None) -> Iterator[Check]:
    # Every job leads to the one checkpoint: its signature is checked once, unless it fails.
    point = cache(lambda: _checkpoint(receipt, trusted_vkey))
    yield _step("order", lambda: _check_order(receipt))
    yield _step("payload", lambda: _check_payload(receipt))
    yield _step("assignments", lambda: _check_assignments(receipt))
    if receipt.shows_transactions:
        for position, signed in enumerate(receipt.assignments):
            yield _step(f"assignments[{position}].transaction", partial(_check_assigned, receipt, signed, point))
    yield _step("jobs", lambda: _check_jobs(receipt))
    for position, job in enumerate(receipt.jobs):
        yield from _job_steps(receipt, job, f"jobs[{position}]", point)
    if trusted_vkey is not None:
        yield _step("log key", lambda: _check_log_key(receipt, trusted_vkey))
    yield _step("checkpoint", lambda: _check_checkpoint(point(), trusted_vkey))


def _job_steps(
    receipt: Receipt, job: JobEvidence, name: str, point: Callable[[], Checkpoint]
) -> Iterator[Check]:
    yield _step(f"{name}.commitment", lambda: _check_commitment(receipt, job))
    yield _step(f"{name}.worker_signature", lambda: _check_worker(receipt, job))
    yield _step(f"{name}.authorisation", lambda: _check_authorisation(job))
    yield _step(f"{name}.orchestrator", lambda: _check_orchestrator(receipt, job))
    yield _step(f"{name}.settlement", lambda: _check_settlement(receipt, job))
    if receipt.shows_transactions:
        yield _step(f"{name}.transaction", lambda: _check_settled(receipt, job))
    yield _step(f"{name}.block", lambda: _check_block(receipt, job))
    yield _step(f"{name}.log", lambda: _check_log(job, point()))


def _task_id(receipt: Receipt) -> bytes:
    return envelope.digest("order", receipt.chain, receipt.order)


def _check_order(receipt: Receipt) -> str:
    order = statement.Order.unpack(receipt.order)
    task = _task_id(receipt)
    batch = f" in a batch of {receipt.orders_count}" if receipt.orders_id else ""
    _need(
        bool(batch) or not (receipt.orders_count or receipt.orders_position or receipt.orders_path),
        "the order was signed alone, so there is no batch to have a count, a position and a path in",
    )
    _need(
        identity.verify(order.customer_key, _ordered(receipt) if batch else task, receipt.customer_signature),
        f"the customer's signature is not over this order{batch} on this chain",
    )
    return f"task {task.hex()} ordered by {identity.address_of(order.customer_key)}{batch}"


def _ordered(receipt: Receipt) -> bytes:
    """What the customer of a batch of orders signed."""
    leaf = merkle.leaf_hash(receipt.order)
    root = merkle.root_from_path(leaf, receipt.orders_position, receipt.orders_count, receipt.orders_path)
    body = statement.commitments_body(receipt.orders_count, root)
    return statement.transaction_digest("orders", receipt.chain, receipt.orders_id, body)


def _check_payload(receipt: Receipt) -> str:
    order = statement.Order.unpack(receipt.order)
    kind = statement.challenge_type_hash(receipt.challenge_type)
    _need(
        kind == order.challenge_type_hash, f"the order is not for a task of type {receipt.challenge_type!r}"
    )
    digest = payload_digest(receipt.payload)
    _need(digest == order.payload_digest, "the payload is not the one that was ordered")
    return f"{receipt.challenge_type} with payload {digest.hex()}"


def _assignments(receipt: Receipt) -> list[statement.Assignment]:
    """The assignments by ascending epoch, their signatures unchecked."""
    unpacked = [statement.Assignment.unpack(signed.assignment) for signed in receipt.assignments]
    return sorted(unpacked, key=lambda assignment: assignment.epoch)


def _check_assignments(receipt: Receipt) -> str:
    order, task = statement.Order.unpack(receipt.order), _task_id(receipt)
    for position, signed in enumerate(receipt.assignments):
        statement.Assignment.unpack(signed.assignment)
        digest = statement.transaction_digest("assign", receipt.chain, signed.tx_id, signed.assignment)
        _need(
            identity.verify(order.market_key, digest, signed.signature),
            f"assignments[{position}] is not signed by the order's market key",
        )
    ordered = _assignments(receipt)
    _need(bool(ordered), "there is no assignment")
    _need(all(one.task_id == task for one in ordered), "an assignment is for another task")
    _need(len({one.jobs for one in ordered}) == 1, "the assignments divide the task differently")
    _need(len({one.epoch for one in ordered}) == len(ordered), "two assignments share an epoch")
    return f"{ordered[-1].jobs} jobs, {len(ordered)} assignments signed by the market"


def _check_jobs(receipt: Receipt) -> str:
    ordered = _assignments(receipt)
    _need(bool(ordered), "there is no assignment")
    expected, task = ordered[-1].jobs, _task_id(receipt)
    results = [statement.Result.unpack(job.result) for job in receipt.jobs]
    jobs = {result.job for result in results}
    if receipt.partial:
        _need(0 < len(results) < expected, f"it says that it is partial and has {len(results)} of {expected} jobs")
    else:
        _need(len(results) == expected, f"{len(results)} of {expected} jobs are present")
    _need(all(result.task_id == task for result in results), "a result is of another task")
    _need(len(jobs) == len(results), "a job is present twice")
    _need(all(job < expected for job in jobs), f"a job is not among the task's {expected}")
    if receipt.partial:
        return f"PARTIAL: {len(jobs)} of {expected} jobs, each once; it shows nothing of the others"
    return f"all {expected} jobs are present, each once: the task is complete"


def _commitment_root(job: JobEvidence) -> bytes:
    leaf = merkle.leaf_hash(job.commitment)
    return merkle.root_from_path(leaf, job.commitment_position, job.commitment_count, job.commitment_path)


def _check_commitment(receipt: Receipt, job: JobEvidence) -> str:
    commitment = statement.Commitment.unpack(job.commitment)
    result = statement.Result.unpack(job.result)
    for field in ("task_id", "job", "worker_key", "result_hash", "nonce"):
        same = getattr(commitment, field) == getattr(result, field)
        _need(same, f"the commitment's {field} is not the result's")
    _need(commitment.task_id == _task_id(receipt), "the commitment is for another task")
    return f"job {result.job} has result {result.result_hash.hex()}"


def _check_worker(receipt: Receipt, job: JobEvidence) -> str:
    worker = statement.Commitment.unpack(job.commitment).worker_key
    signed = statement.verify_commitments(
        worker, receipt.chain, job.commitment_count, _commitment_root(job), job.worker_signature
    )
    _need(signed, "the worker's signature is not over the batch with this commitment")
    return f"signed by worker {identity.address_of(worker)} in a batch of {job.commitment_count}"


def _check_authorisation(job: JobEvidence) -> str:
    expected = statement.authorisation(job.orchestrator_key, _commitment_root(job), job.commitment_position)
    stated = statement.Result.unpack(job.result).authorisation
    _need(stated == expected, "the result is not bound to this commitment and orchestrator")
    return f"the result is bound to commitment {job.commitment_position} of the batch"


def _check_orchestrator(receipt: Receipt, job: JobEvidence) -> str:
    epoch = statement.Commitment.unpack(job.commitment).task_epoch
    current = [one for one in _assignments(receipt) if one.epoch <= epoch]
    _need(bool(current), f"no assignment was in force in epoch {epoch}")
    _need(
        current[-1].orchestrator_key == job.orchestrator_key,
        f"the orchestrator was not the one assigned in epoch {epoch}",
    )
    return f"orchestrator {identity.address_of(job.orchestrator_key)} was assigned in epoch {epoch}"


def _check_assigned(receipt: Receipt, signed: SignedAssignment, point: Callable[[], Checkpoint]) -> str:
    digest = statement.transaction_digest("assign", receipt.chain, signed.tx_id, signed.assignment)
    header = _check_transaction(receipt, signed.header, digest + signed.signature, signed.tx_index, signed.tx_path)
    _check_header(signed.header, signed.header_path, point())
    return f"assigned in transaction {signed.tx_index} of {header.tx_count} in block {header.height}"


def _check_settled(receipt: Receipt, job: JobEvidence) -> str:
    transaction = _settle_digest(receipt, job) + job.settle_signature
    header = _check_transaction(receipt, job.header, transaction, job.settle_index, job.settle_tx_path)
    return f"settled by transaction {job.settle_index} of {header.tx_count} in block {header.height}"


def _check_transaction(
    receipt: Receipt, packed: bytes, transaction: bytes, index: int, path: tuple[bytes, ...]
) -> statement.Header:
    """The header under whose `tx_root` a transaction (digest || signature) stands."""
    header = statement.Header.unpack(packed)
    _need(header.chain_hash == statement.chain_hash(receipt.chain), "the block is of another chain")
    root = merkle.root_from_path(merkle.leaf_hash(transaction), index, header.tx_count, path)
    _need(root == header.tx_root, "the transaction is not under the block's transaction root")
    return header


def _settle_digest(receipt: Receipt, job: JobEvidence) -> bytes:
    leaf = merkle.leaf_hash(job.result)
    root = merkle.root_from_path(leaf, job.settle_position, job.settle_count, job.settle_path)
    body = statement.settle_body(job.settle_count, root)
    return statement.transaction_digest("settle", receipt.chain, job.settle_id, body)


def _check_settlement(receipt: Receipt, job: JobEvidence) -> str:
    _need(
        identity.verify(job.orchestrator_key, _settle_digest(receipt, job), job.settle_signature),
        "the orchestrator's signature is not over the settlement with this result",
    )
    return f"settled in {job.settle_id.hex()} with {job.settle_count} results"


def _check_block(receipt: Receipt, job: JobEvidence) -> str:
    header = statement.Header.unpack(job.header)
    _need(header.chain_hash == statement.chain_hash(receipt.chain), "the block is of another chain")
    leaf = merkle.leaf_hash(job.result)
    root = merkle.root_from_path(leaf, job.leaf_index, header.result_count, job.compute_path)
    _need(root == header.compute_root, "the result is not under the block's compute root")
    return f"result {job.leaf_index} of {header.result_count} in block {header.height}"


def _checkpoint(receipt: Receipt, trusted_vkey: str | None) -> Checkpoint:
    verifier = NoteVerifier(receipt.vkey if trusted_vkey is None else trusted_vkey)
    return open_checkpoint(receipt.checkpoint, verifier, log_origin(receipt.chain))


def _check_log(job: JobEvidence, point: Checkpoint) -> str:
    header = _check_header(job.header, job.header_path, point)
    return f"block {header.height} is one of the log's {point.size}"


def _check_header(packed: bytes, path: tuple[bytes, ...], point: Checkpoint) -> statement.Header:
    header = statement.Header.unpack(packed)
    root = merkle.root_from_path(merkle.leaf_hash(packed), header.height, point.size, path)
    _need(root == point.root, "the block is not in the checkpoint's tree")
    return header


def _check_log_key(receipt: Receipt, trusted_vkey: str) -> str:
    _need(receipt.vkey == trusted_vkey, "the receipt names another log key than the trusted one")
    return "the receipt names the trusted key"


def _check_checkpoint(point: Checkpoint, trusted_vkey: str | None) -> str:
    own = "the receipt's own key: consistent, but not known to be the log's"
    whose = own if trusted_vkey is None else "the trusted key"
    return f"{point.origin} at {point.size} blocks, signed by {whose}"
