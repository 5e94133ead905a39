"""Settled results with what proves them, rebuilt from the stored transactions, leaf hashes and log nodes.

Nothing of a proof is stored per result: a transaction's trees are built when one of its results is asked for, and
the last few are kept.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from functools import cached_property, lru_cache

from computemesh.service.store import Connection
from computemesh.trust import computechain, identity, merkle, paths, results, statement
from computemesh.trust.amount import Shares, job_reward
from computemesh.trust.errors import Internal, NotFound
from computemesh.trust.statement import COMMITMENT_SIZE, RESULT_SIZE
from computemesh.v1 import ledger_pb2 as pb
from ledger import store, wire
from ledger.evidence import Batch, Settle
from ledger.settling import parts_of
from ledger.state import PLACES


class _SignedBatch:
    """One worker batch of a settlement with its tree."""

    def __init__(self, batch: Batch, orchestrator_key: bytes) -> None:
        self.batch = batch
        self.tree = merkle.Tree(batch.signed_leaves)
        self.count = len(batch.commitments) // COMMITMENT_SIZE
        self.results = results.result_statements(
            orchestrator_key, self.tree.root, batch.commitments, batch.places, batch.proof_hashes)

    def result(self, index: int) -> bytes:
        """The packed result `index`."""
        return self.results[index * RESULT_SIZE : (index + 1) * RESULT_SIZE]

    def commitment(self, index: int) -> bytes:
        """The packed commitment of the batch's result `index`."""
        return self.batch.commitments[index * COMMITMENT_SIZE : (index + 1) * COMMITMENT_SIZE]

    def position(self, index: int) -> int:
        """Where it stands in the batch that the worker signed."""
        return self.batch.places[index]


class Settlement:
    """A settle transaction as stored, by position of its results."""

    def __init__(self, message: pb.Transaction, refusals: bytes, first_leaf: int) -> None:
        parsed = wire.transaction(message)
        assert isinstance(parsed.body, Settle)
        self.transaction = parsed
        self._batches = [_SignedBatch(batch, parsed.public_key) for batch in parsed.body.batches]
        self._starts = list(itertools.accumulate((batch.count for batch in self._batches), initial=0))
        self._refused = [refusal.position for refusal in wire.unpack_refusals(refusals)]
        self._first_leaf = first_leaf

    @property
    def count(self) -> int:
        """Results the transaction holds, refused ones included."""
        return self._starts[-1]

    @cached_property
    def tree(self) -> merkle.Tree:
        """The tree whose root the orchestrator signed."""
        return merkle.Tree(b"".join([merkle.leaf_hashes(batch.results, RESULT_SIZE) for batch in self._batches]))

    def find(self, position: int) -> tuple[_SignedBatch, int]:
        """The batch of a result and its index there."""
        at = bisect.bisect_right(self._starts, position) - 1
        return self._batches[at], position - self._starts[at]

    def statement(self, position: int) -> bytes:
        """The packed result."""
        batch, index = self.find(position)
        return batch.result(index)

    def leaf_index(self, position: int) -> int:
        """The settled result's leaf in its block: refused ones have none."""
        return self._first_leaf + position - bisect.bisect_left(self._refused, position)

    def settled(self) -> Iterator[int]:
        """Positions of the settled results, in order."""
        refused = set(self._refused)
        return (position for position in range(self.count) if position not in refused)


class Library:
    """Reads results and proofs of a ledger through one connection. `shares` are the chain's."""

    def __init__(self, connection: Connection, shares: Shares) -> None:
        self._connection, self._shares = connection, shares
        self.message = lru_cache(maxsize=256)(self._message)
        self._settlement = lru_cache(maxsize=64)(self._load_settlement)
        self._block_tree = lru_cache(maxsize=64)(self._load_block_tree)
        self._tx_tree = lru_cache(maxsize=16)(self._load_tx_tree)
        self._assigned = lru_cache(maxsize=64)(self._load_assigned)
        self._sealed = lru_cache(maxsize=1024)(self._load_sealed)
        self._assignment = lru_cache(maxsize=64)(self._find_assignment)
        self._statements = lru_cache(maxsize=4)(self._load_statements)

    def _row(self, number: int) -> store.Row:
        row = store.transaction_by_number(self._connection, number)
        if row is None:
            raise Internal(f"transaction {number} is missing from the store")
        return row

    def _message(self, number: int) -> pb.Transaction:
        return pb.Transaction.FromString(self._row(number)[0])

    def _load_settlement(self, number: int) -> Settlement:
        body, refusals, first_leaf = self._row(number)
        return Settlement(pb.Transaction.FromString(body), refusals, first_leaf)

    def _load_block_tree(self, height: int) -> merkle.Tree:
        return merkle.Tree(store.block_leaves(self._connection, height))

    def _load_tx_tree(self, first_tx: int, last_tx: int) -> merkle.Tree:
        rows = store.transaction_leaves(self._connection, first_tx, last_tx)
        return merkle.Tree([
            merkle.leaf_hash(digest + pb.Transaction.FromString(body).signature) for digest, body in rows])  # fmt: skip

    def _load_statements(self, first_tx: int, last_tx: int) -> list[bytes]:
        return [
            settlement.statement(position) for _, settlement in self._settlements(first_tx, last_tx)
            for position in settlement.settled()
        ]  # fmt: skip

    def numbers(self, height: int) -> tuple[int, int]:
        """First and last transaction number of a block that is there."""
        before, row = (store.block(self._connection, at) for at in (height - 1, height))
        assert row is not None
        return (0 if before is None else before[1]) + 1, row[1]

    def entries(self, height: int | None, start: int, count: int) -> list[bytes]:
        """Leaf data: headers of the log, or result statements of a block."""
        if height is None:
            return [bytes(row[2]) for row in store.blocks_up(self._connection, start, count)]
        return self._statements(*self.numbers(height))[start : start + count]

    def node(self, level: int, position: int) -> bytes:
        """A perfect node of the log tree."""
        return store.node(self._connection, level, position)

    def result(self, place: int, escrow: store.Row | None = None) -> pb.Result:
        """One settled result; block_height 0 until it is sealed."""
        number, position = divmod(place, PLACES)
        settlement = self._settlement(number)
        batch, index = settlement.find(position)
        commitment = statement.Commitment.unpack(batch.commitment(index))
        if escrow is None or escrow[1] != commitment.task_id:
            escrow = store.escrow(self._connection, commitment.task_id)
            assert escrow is not None
        units = job_reward(escrow[4], commitment.job, escrow[8])
        proof = batch.batch.proof_hashes[index * 32 : index * 32 + 32]
        return pb.Result(
            task_id=commitment.task_id.hex(), job=commitment.job,
            worker_address=identity.address_of(commitment.worker_key), result_hash=commitment.result_hash.hex(),
            proof=proof.hex(), nonce=commitment.nonce, signature=batch.batch.worker_signature.hex(),
            block_height=store.height_of(self._connection, number) or 0,
            leaf_index=settlement.leaf_index(position), reward_units=units,
            worker_units=parts_of(units, self._shares, escrow[14]).worker)

    def proven(self, place: int, log_size: int) -> pb.ProvenResult:
        """One sealed result with all its evidence, up to the log's first `log_size` headers.

        Raises NotFound where its block is not among them.
        """
        number, position = divmod(place, PLACES)
        height, sealed = self._sealed(number, log_size)
        settlement = self._settlement(number)
        batch, index = settlement.find(position)
        commitment, commitment_position = batch.commitment(index), batch.position(index)
        leaf_index = settlement.leaf_index(position)
        proven = pb.ProvenResult(
            result=batch.result(index), commitment=commitment, commitment_position=commitment_position,
            commitment_count=batch.tree.size, commitment_path=batch.tree.path(commitment_position),
            worker_signature=batch.batch.worker_signature, settle_position=position,
            settle_path=settlement.tree.path(position), leaf_index=leaf_index,
            compute_path=self._block_tree(height).path(leaf_index))
        proven.MergeFrom(sealed)
        _, task_id, _, epoch, *_ = statement.COMMITMENT.unpack(commitment)
        proven.MergeFrom(self._assigned(self._assignment(task_id, epoch), log_size))
        return proven

    def _load_sealed(self, number: int, log_size: int) -> tuple[int, pb.ProvenResult]:
        """(height, the part of a proven result that is the same for all results of its settlement)."""
        height = store.height_of(self._connection, number)
        if height is None or height >= log_size:
            raise NotFound("the result is not in a sealed block yet", reason="RESULT_NOT_FOUND")
        settlement, block = self._settlement(number), store.block(self._connection, height)
        assert block is not None
        settle_index, settle_tx_path = self._tx_place(number, height)
        return height, pb.ProvenResult(
            orchestrator_key=settlement.transaction.public_key, settle_id=settlement.transaction.id,
            settle_count=settlement.count, settle_signature=settlement.transaction.signature, header=block[2],
            header_path=paths.inclusion(self.node, height, log_size), settle_index=settle_index,
            settle_tx_path=settle_tx_path)

    def _tx_place(self, number: int, height: int) -> tuple[int, list[bytes]]:
        """A transaction's index under its block's transaction root, and its path there."""
        first, last = self.numbers(height)
        return number - first, self._tx_tree(first, last).path(number - first)

    def _load_assigned(self, number: int, log_size: int) -> pb.ProvenResult:
        """The part of a proven result that is about its assignment: the same for all results of it."""
        assigned, height = self.message(number), store.height_of(self._connection, number)
        block = None if height is None else store.block(self._connection, height)
        if height is None or block is None:
            raise Internal(f"assignment {number} is not in a block before its settlement")
        index, path = self._tx_place(number, height)
        return pb.ProvenResult(
            assignment=assigned.assign.assignment, assignment_id=assigned.id, assignment_signature=assigned.signature,
            assignment_header=block[2], assignment_index=index, assignment_tx_path=path,
            assignment_header_path=paths.inclusion(self.node, height, log_size))

    def _find_assignment(self, task_id: bytes, epoch: int) -> int:
        """Number of the assignment in force at a settlement: that of its commitments' epoch, or it was refused."""
        escrow = store.escrow(self._connection, task_id)
        number = None if escrow is None else store.assignment_tx(self._connection, escrow[0], epoch)
        if number is None:
            raise Internal(f"the assignment of task {task_id.hex()} epoch {epoch} is missing")
        return number

    def block_results(self, first_tx: int, last_tx: int) -> Iterator[pb.Result]:
        """The results of the transactions numbered first..last, in leaf order."""
        for number, settlement in self._settlements(first_tx, last_tx):
            for position in settlement.settled():
                yield self.result(number * PLACES + position)

    def _settlements(self, first_tx: int, last_tx: int) -> Iterator[tuple[int, Settlement]]:
        for number, _ in store.transaction_ids(self._connection, first_tx, last_tx):
            if self.message(number).WhichOneof("body") == "settle":
                yield number, self._settlement(number)

    def legacy_root(self, first_tx: int, last_tx: int) -> str:
        """ComputeChain's root over the same results, as the seed's ComputeResults: a view, never trusted."""
        return computechain.poc_root([
            computechain.poc_leaf({name: getattr(result, name) for name in computechain.FIELDS})
            for result in self.block_results(first_tx, last_tx)
        ])  # fmt: skip
