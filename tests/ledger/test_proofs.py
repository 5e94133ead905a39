"""What the ledger gives a stranger to check: a block's own checkpoint, entries, and receipts of every kind of order."""

from __future__ import annotations

from typing import Any

import pytest

from computemesh.service.errors import from_rpc_error
from computemesh.trust import acts, merkle, statement
from computemesh.trust.checkpoint import NoteVerifier, block_origin, open_checkpoint
from computemesh.trust.errors import InvalidArgument, MeshError, NotFound
from computemesh.trust.receipt import accepted
from computemesh.v1 import ledger_pb2 as pb
from tests.ledger import parties
from tests.ledger.parties import CUSTOMER
from tests.ledger.test_service import funded_task, receipt_checks, soon


async def sealed(ledger: Any, *transactions: pb.Transaction) -> int:
    """Height of the block of the last one."""
    reply = await ledger.SubmitTransactions(
        pb.SubmitTransactionsRequest(transactions=transactions, wait=pb.WAIT_SEALED))
    assert all(one.kind == pb.OUTCOME_KIND_APPLIED and not one.refusals for one in reply.outcomes), reply
    return int(reply.outcomes[-1].block_height)


async def error_of(call: Any) -> MeshError:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        await call
    return from_rpc_error(caught.value)  # type: ignore[arg-type]


async def test_a_blocks_checkpoint_is_the_tree_its_header_names(ledger: Any, submit: Any) -> None:
    task = await funded_task(submit)
    height = await sealed(ledger, parties.settle([parties.batch([parties.commitment(task, job, job + 1)
                                                                 for job in range(3)])]))  # fmt: skip
    vkey = (await ledger.GetLedger(pb.GetLedgerRequest())).vkey
    header = statement.Header.unpack((await ledger.GetBlock(pb.GetBlockRequest(height=height))).block.header)
    reply = await ledger.GetCheckpoint(pb.GetCheckpointRequest(block_height=height))
    point = open_checkpoint(reply.checkpoint.note, NoteVerifier(vkey), block_origin(parties.CHAIN, height))
    assert (point.size, point.root) == (header.result_count, header.compute_root)
    entries = (await ledger.ListEntries(pb.ListEntriesRequest(block_height=height))).entries
    assert merkle.root([merkle.leaf_hash(one) for one in entries]) == point.root
    assert [statement.Result.unpack(one).job for one in entries] == [0, 1, 2]
    empty = await ledger.GetCheckpoint(pb.GetCheckpointRequest(block_height=0))
    assert (empty.checkpoint.size, empty.checkpoint.root) == (0, merkle.EMPTY_ROOT)
    missing = await error_of(ledger.GetCheckpoint(pb.GetCheckpointRequest(block_height=10**6)))
    assert isinstance(missing, NotFound)
    assert "no block 1000000 yet" in missing.message


async def test_entries_are_listed_from_any_place_to_the_trees_end(ledger: Any, submit: Any) -> None:
    for _ in range(3):
        await sealed(ledger, parties.deposit(CUSTOMER, 1))
    size = (await ledger.GetCheckpoint(pb.GetCheckpointRequest())).checkpoint.size
    headers = list((await ledger.ListEntries(pb.ListEntriesRequest())).entries)
    assert [statement.Header.unpack(one).height for one in headers[:size]] == list(range(size))
    assert list((await ledger.ListEntries(pb.ListEntriesRequest(start=1, count=2))).entries) == headers[1:3]
    assert not (await ledger.ListEntries(pb.ListEntriesRequest(block_height=0))).entries
    beyond = await error_of(ledger.ListEntries(pb.ListEntriesRequest(start=10**6)))
    assert isinstance(beyond, InvalidArgument)
    assert "start: 1000000 is beyond the end of the tree" in beyond.message


@pytest.mark.parametrize("jobs_settled", [2, 4])
async def test_an_order_signed_in_a_batch_has_a_receipt_whole_or_of_part(
    ledger: Any, submit: Any, jobs_settled: int
) -> None:
    orders = [parties.order(1000, soon()) for _ in range(3)]
    act = acts.Orders(tuple(one.pack() for one in orders))
    tx_id = parties.new_id()
    signature = CUSTOMER.sign(acts.digest(act, parties.CHAIN, tx_id))
    opening = pb.Transaction(
        id=tx_id, public_key=CUSTOMER.public, signature=signature, act=pb.Act(kind=act.KIND, body=act.pack()))
    task = parties.task_id(orders[1])
    commitments = [parties.commitment(task, job, job + 1) for job in range(jobs_settled)]
    closing = [] if jobs_settled == 4 else [parties.refund(task, statement.CAUSE_FAILED)]
    await sealed(ledger, parties.deposit(CUSTOMER, 3000), opening, parties.assign(task, 4),
                 parties.settle([parties.batch(commitments)]), *closing)  # fmt: skip
    escrow = (await ledger.GetEscrow(pb.GetEscrowRequest(task_id=task.hex()))).escrow
    found = await ledger.ListResults(pb.ListResultsRequest(task_id=task.hex(), with_proofs=True))
    checks = await receipt_checks(ledger, escrow, found.proven, found.checkpoint.note)
    assert accepted(checks), [check for check in checks if not check.ok]
    said = {check.name: check.detail for check in checks}
    assert "in a batch of 3" in said["order"]
    assert said["jobs"].startswith("PARTIAL: 2 of 4" if closing else "all 4 jobs")
