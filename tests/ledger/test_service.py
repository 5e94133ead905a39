"""The ledger's contract, over gRPC and a real database."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from computemesh.client import receipts
from computemesh.client.model import Task
from computemesh.service.errors import from_rpc_error
from computemesh.trust import computechain, identity, merkle, receipt, statement
from computemesh.trust.checkpoint import Checkpoint, NoteVerifier, open_note
from computemesh.v1 import ledger_pb2 as pb
from ledger import startup, writer
from tests.ledger import parties
from tests.ledger.conftest import make_config, serving
from tests.ledger.parties import CUSTOMER, ORCHESTRATOR, OTHER, TREASURY, WORKER
from tests.money import conserved

HOUR = 3_600_000


def soon(ms: int = HOUR) -> int:
    return time.time_ns() // 1_000_000 + ms


async def funded_task(submit: Any, reward: int = 10_000_000, jobs: int = 4, deadline_ms: int | None = None) -> bytes:
    order = parties.order(reward, deadline_ms or soon())
    task = parties.task_id(order)
    outcomes = await submit(
        parties.deposit(CUSTOMER, reward), parties.open_(order), parties.assign(task, jobs))
    assert [outcome.kind for outcome in outcomes] == [pb.OUTCOME_KIND_APPLIED] * 3, outcomes
    return task


async def balance(ledger: Any, key: Any) -> int:
    reply = await ledger.GetAccount(pb.GetAccountRequest(address=key.address))
    return int(reply.account.balance_units)


async def matured(ledger: Any) -> pb.GetSupplyResponse:
    """The supply once no reward waits for its dispute window; conserved all the while."""
    while True:
        supply = await ledger.GetSupply(pb.GetSupplyRequest())
        assert conserved(supply), supply
        if not supply.maturing_units:
            return supply
        await asyncio.sleep(0.01)


async def receipt_checks(ledger: Any, escrow: pb.Escrow, proven: Any, note: str) -> list[receipt.Check]:
    """What an independent reader of the task's receipt finds."""
    vkey = (await ledger.GetLedger(pb.GetLedgerRequest())).vkey
    completed = escrow.status == pb.ESCROW_STATUS_SETTLED
    task = SimpleNamespace(
        challenge_type="synthetic", payload=parties.PAYLOAD, status="completed" if completed else "failed")
    document = receipts.assemble(parties.CHAIN, vkey, cast(Task, task), escrow, list(proven), note)
    return receipt.verify(receipt.Receipt.from_json(document.to_json()), vkey)


async def test_settled_task_pays_60_25_10_5_and_its_receipt_verifies(ledger: Any, submit: Any) -> None:
    order = parties.order(10_000_000, soon())
    task = parties.task_id(order)
    await submit(parties.deposit(CUSTOMER, 10_000_000), parties.open_(order), parties.assign(task, 4))
    commitments = [parties.commitment(task, job, job + 1) for job in range(4)]
    request = pb.SubmitTransactionsRequest(
        transactions=[parties.settle([parties.batch(commitments[:3], settled=[0, 2]), parties.batch(commitments[1:2])]),
                      parties.settle([parties.batch(commitments[3:])])],
        wait=pb.WAIT_SEALED)  # fmt: skip
    reply = await ledger.SubmitTransactions(request)
    assert all(one.kind == pb.OUTCOME_KIND_APPLIED and not one.refusals for one in reply.outcomes), reply
    assert all(0 < one.block_height < reply.checkpoint.size for one in reply.outcomes)

    supply = await matured(ledger)
    assert await balance(ledger, WORKER) == 2_500_000
    assert await balance(ledger, ORCHESTRATOR) == 1_000_000
    assert await balance(ledger, TREASURY) == 500_000
    assert await balance(ledger, CUSTOMER) == 0
    assert (supply.minted_units, supply.accounts_units, supply.escrowed_units, supply.burned_units) == (
        10_000_000, 4_000_000, 0, 6_000_000)
    escrow = (await ledger.GetEscrow(pb.GetEscrowRequest(task_id=task.hex()))).escrow
    assert (escrow.status, escrow.settled_units, escrow.jobs_settled) == (pb.ESCROW_STATUS_SETTLED, 10_000_000, 4)

    proven = await ledger.ListResults(pb.ListResultsRequest(task_id=task.hex(), with_proofs=True))
    checks = await receipt_checks(ledger, escrow, proven.proven, proven.checkpoint.note)
    assert receipt.accepted(checks), [check for check in checks if not check.ok]


async def test_sealed_transactions_are_in_a_block_under_a_signed_checkpoint(ledger: Any, submit: Any) -> None:
    task = await funded_task(submit)
    settlement = parties.settle([parties.batch([parties.commitment(task, 0, 1)])])
    reply = await ledger.SubmitTransactions(
        pb.SubmitTransactionsRequest(transactions=[settlement], wait=pb.WAIT_SEALED))
    vkey = (await ledger.GetLedger(pb.GetLedgerRequest())).vkey
    parsed = Checkpoint.parse(open_note(reply.checkpoint.note, [NoteVerifier(vkey)]))
    assert (parsed.origin, parsed.size, parsed.root) == (
        f"{parties.CHAIN}/blocks", reply.checkpoint.size, reply.checkpoint.root)
    height = reply.outcomes[0].block_height
    assert 0 < height < parsed.size
    proof = await ledger.GetInclusionProof(pb.GetInclusionProofRequest(task_id=task.hex(), job=0))
    header = statement.Header.unpack(proof.result.header)
    assert header.height == height
    assert merkle.verify_inclusion(
        merkle.leaf_hash(proof.result.result), proof.result.leaf_index, header.result_count,
        proof.result.compute_path, header.compute_root)
    assert merkle.verify_inclusion(
        merkle.leaf_hash(proof.result.header), height, proof.checkpoint.size, proof.result.header_path,
        proof.checkpoint.root)


async def test_retry_has_the_first_outcome_and_other_content_is_a_conflict(ledger: Any, submit: Any) -> None:
    task = await funded_task(submit)
    await submit(parties.settle([parties.batch([parties.commitment(task, 1, 1)])]))
    tx_id = parties.new_id()
    mixed = parties.settle(
        [parties.batch([parties.commitment(task, job, 10 + job) for job in range(3)])], tx_id=tx_id)
    first, within = await submit(mixed, mixed)
    (later,) = await submit(mixed)
    for outcome in (first, within, later):
        assert outcome.kind == pb.OUTCOME_KIND_APPLIED
        assert [(one.position, one.reason) for one in outcome.refusals] == [(1, "DUPLICATE_RESULT")]
    (again,) = await submit(
        parties.settle([parties.batch([parties.commitment(task, job, 10 + job) for job in (0, 2)])]))
    assert again.kind == pb.OUTCOME_KIND_REFUSED
    assert [one.reason for one in again.refusals] == ["DUPLICATE_RESULT"] * 2
    (conflict,) = await submit(parties.deposit(CUSTOMER, 1, tx_id=tx_id))
    assert (conflict.kind, conflict.reason) == (pb.OUTCOME_KIND_REFUSED, "ID_CONFLICT")
    stored = await ledger.GetTransaction(pb.GetTransactionRequest(id=tx_id.hex()))
    assert stored.transaction == mixed
    await matured(ledger)


async def test_refused_transaction_may_be_tried_again_with_its_id(submit: Any) -> None:
    payment = parties.transfer(CUSTOMER, OTHER, 5)
    (poor,) = await submit(payment)
    assert (poor.kind, poor.reason, poor.block_height) == (pb.OUTCOME_KIND_REFUSED, "INSUFFICIENT_FUNDS", 0)
    assert "0.000005 CPC" in poor.message
    _, rich = await submit(parties.deposit(CUSTOMER, 5), payment)
    assert rich.kind == pb.OUTCOME_KIND_APPLIED


async def test_deadline_refunds_in_a_block_with_nobody_asking(ledger: Any, submit: Any) -> None:
    deadline = soon(600)
    task = await funded_task(submit, 1000, 4, deadline)
    await submit(parties.settle([parties.batch([parties.commitment(task, 0, 1)])]))
    height = (await ledger.GetLedger(pb.GetLedgerRequest())).block_height
    seen = [reply.block async for reply in _until(ledger, height, deadline)]
    assert seen[-1].time_ms >= deadline > seen[0].time_ms
    assert seen[-1].tx_count == 0
    assert await balance(ledger, CUSTOMER) == 750
    escrow = (await ledger.GetEscrow(pb.GetEscrowRequest(task_id=task.hex()))).escrow
    assert (escrow.status, escrow.refund_cause) == (pb.ESCROW_STATUS_REFUNDED, pb.REFUND_CAUSE_EXPIRED)
    assert (escrow.settled_units, escrow.refunded_units) == (250, 750)


async def _until(ledger: Any, height: int, time_ms: int) -> Any:
    """Watches from `height` to the first block at or after `time_ms`."""
    async for reply in ledger.WatchBlocks(pb.WatchBlocksRequest(from_height=height), timeout=10):
        yield reply
        if reply.block.time_ms >= time_ms:
            return


async def test_nothing_is_sealed_while_nothing_happens(ledger: Any, submit: Any) -> None:
    await submit(parties.deposit(CUSTOMER, 5), wait=pb.WAIT_SEALED)
    before = (await ledger.GetLedger(pb.GetLedgerRequest())).block_height
    await submit(parties.transfer(OTHER, CUSTOMER, 5), wait=pb.WAIT_SEALED)
    await asyncio.sleep(0.1)
    assert (await ledger.GetLedger(pb.GetLedgerRequest())).block_height == before


async def test_blocks_link_are_watched_listed_and_proved_consistent(ledger: Any, submit: Any) -> None:
    for _ in range(7):
        await submit(parties.deposit(CUSTOMER, 5), wait=pb.WAIT_SEALED)
    size = (await ledger.GetCheckpoint(pb.GetCheckpointRequest())).checkpoint.size
    blocks = []
    async for reply in ledger.WatchBlocks(pb.WatchBlocksRequest(from_height=0)):
        blocks.append(reply.block)
        if len(blocks) == size:
            break
    assert [block.height for block in blocks] == list(range(size))
    assert blocks[0].previous_hash == "00" * 32
    for previous, block in itertools.pairwise(blocks):
        assert block.previous_hash == previous.hash == merkle.leaf_hash(previous.header).hex()
        assert block.time_ms >= previous.time_ms
    listed, token = [], ""
    while True:
        page = await ledger.ListBlocks(pb.ListBlocksRequest(page_size=3, page_token=token))
        listed += page.blocks
        token = page.next_page_token
        if not token:
            break
    assert listed == blocks[::-1]
    assert page.total == size
    leaves = [merkle.leaf_hash(block.header) for block in blocks]
    for new in range(1, size + 1):
        for old in range(1, new + 1):
            proof = await ledger.GetConsistencyProof(pb.GetConsistencyProofRequest(old_size=old, new_size=new))
            assert (proof.old_root, proof.new_root) == (merkle.root(leaves[:old]), merkle.root(leaves[:new]))
            assert merkle.verify_consistency(old, new, proof.old_root, proof.new_root, proof.path)


async def test_block_lists_its_results_and_both_roots(ledger: Any, submit: Any) -> None:
    task = await funded_task(submit, 1000, 5)
    rows = [parties.commitment(task, job, job + 1) for job in range(5)]
    outcomes = await submit(
        parties.settle([parties.batch(rows[:2]), parties.batch(rows[2:])]), wait=pb.WAIT_SEALED)
    height = outcomes[0].block_height
    reply = await ledger.GetBlock(pb.GetBlockRequest(height=height, full=True))
    assert [(one.job, one.leaf_index, one.worker_units) for one in reply.results] == [(j, j, 50) for j in range(5)]
    await matured(ledger)
    window = (await ledger.GetLedger(pb.GetLedgerRequest())).dispute_window_blocks
    closed = await ledger.GetBlock(pb.GetBlockRequest(height=height + window))
    assert (reply.block.burned_units, closed.block.burned_units) == (0, 600)
    assert reply.block.tx_count == len(reply.transaction_ids)
    roots = await ledger.GetComputeRoot(pb.GetComputeRootRequest(height=height))
    assert roots.compute_root == reply.block.compute_root != merkle.EMPTY_ROOT.hex()
    rows_as_seed = [{name: getattr(one, name) for name in computechain.FIELDS} for one in reply.results]
    leaves = [computechain.poc_leaf(row) for row in rows_as_seed]
    assert roots.legacy_poc_root == computechain.poc_root(leaves)
    empty = await ledger.GetComputeRoot(pb.GetComputeRootRequest(height=0))
    assert (empty.compute_root, empty.legacy_poc_root) == (merkle.EMPTY_ROOT.hex(), "")
    one = await ledger.GetResult(pb.GetResultRequest(task_id=task.hex(), job=3))
    assert one.result == reply.results[3]


async def test_results_are_paged_in_job_order_with_proofs_across_orchestrators(ledger: Any, submit: Any) -> None:
    task = await funded_task(submit, 1000, 6)
    await submit(parties.settle([parties.batch([parties.commitment(task, job, job + 1) for job in (4, 0, 2)])]))
    await submit(parties.assign(task, 6, epoch=2, orchestrator=OTHER))
    late = parties.settle([parties.batch([parties.commitment(task, 5, 50)])])
    (superseded,) = await submit(late)
    assert superseded.reason == "EXPIRED_EPOCH"
    rows = [parties.commitment(task, job, job + 20, epoch=2) for job in (1, 3, 5)]
    await submit(parties.settle([parties.batch(rows)], orchestrator=OTHER), wait=pb.WAIT_SEALED)
    proven, token = [], ""
    while True:
        page = await ledger.ListResults(pb.ListResultsRequest(
            task_id=task.hex(), page_size=4, page_token=token, with_proofs=True))  # fmt: skip
        proven += page.proven
        token = page.next_page_token
        if not token:
            break
        # A block sealed between two pages: all pages still lead to the first one's checkpoint.
        await submit(parties.deposit(parties.CUSTOMER, 1), wait=pb.WAIT_SEALED)
    assert [statement.Result.unpack(one.result).job for one in proven] == list(range(6))
    escrow = (await ledger.GetEscrow(pb.GetEscrowRequest(task_id=task.hex()))).escrow
    checks = await receipt_checks(ledger, escrow, proven, page.checkpoint.note)
    assert receipt.accepted(checks), [check for check in checks if not check.ok]


async def test_full_block_seals_at_its_limit(tmp_path: Path) -> None:
    config = make_config(tmp_path, block_interval_ms=60_000, block_max_results=10)
    async with serving(config) as ledger:
        order = parties.order(10_000, soon())
        task = parties.task_id(order)
        settlements = [
            parties.settle([parties.batch([parties.commitment(task, n * 4 + i, n * 4 + i + 1) for i in range(4)])])
            for n in range(6)
        ]  # fmt: skip
        reply = await ledger.SubmitTransactions(pb.SubmitTransactionsRequest(transactions=[
            parties.deposit(CUSTOMER, 10_000), parties.open_(order), parties.assign(task, 24), *settlements]))
        assert all(one.kind == pb.OUTCOME_KIND_APPLIED for one in reply.outcomes)
        blocks = (await ledger.ListBlocks(pb.ListBlocksRequest())).blocks
        assert [block.result_count for block in blocks] == [8, 8, 0]
    assert startup.fsck(config) == []


@pytest.mark.parametrize(("call", "request_", "code", "says"), [
    ("GetAccount", pb.GetAccountRequest(address="cpc1nonsense"), "INVALID_ARGUMENT", "address"),
    ("GetEscrow", pb.GetEscrowRequest(task_id="ab" * 32), "NOT_FOUND", "ESCROW_NOT_FOUND"),
    ("GetEscrow", pb.GetEscrowRequest(task_id="xyz"), "INVALID_ARGUMENT", "task_id"),
    ("GetBlock", pb.GetBlockRequest(height=999), "NOT_FOUND", "BLOCK_NOT_FOUND"),
    ("GetBlock", pb.GetBlockRequest(height=2**64 - 1), "NOT_FOUND", "BLOCK_NOT_FOUND"),
    ("GetComputeRoot", pb.GetComputeRootRequest(height=999), "NOT_FOUND", "BLOCK_NOT_FOUND"),
    ("GetResult", pb.GetResultRequest(task_id="ab" * 32, job=2**32 - 1), "NOT_FOUND", "RESULT_NOT_FOUND"),
    ("GetTransaction", pb.GetTransactionRequest(id="ab" * 16), "NOT_FOUND", "TRANSACTION_NOT_FOUND"),
    ("GetInclusionProof", pb.GetInclusionProofRequest(task_id="ab" * 32), "NOT_FOUND", "RESULT_NOT_FOUND"),
    ("GetConsistencyProof", pb.GetConsistencyProofRequest(old_size=0), "INVALID_ARGUMENT", "old_size"),
    ("GetConsistencyProof", pb.GetConsistencyProofRequest(old_size=1, new_size=99), "INVALID_ARGUMENT", "old_size"),
    ("ListAccounts", pb.ListAccountsRequest(page_token="!!"), "INVALID_ARGUMENT", "page_token"),
    ("ListBlocks", pb.ListBlocksRequest(page_token="AAAAAAAAAAA"), "INVALID_ARGUMENT", "page_token"),
    ("ListBlocks", pb.ListBlocksRequest(page_size=1001), "INVALID_ARGUMENT", "page_size"),
    ("SubmitTransactions", pb.SubmitTransactionsRequest(), "INVALID_ARGUMENT", "transactions"),
])  # fmt: skip
async def test_bad_reads_name_what_is_wrong(ledger: Any, call: str, request_: Any, code: str, says: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(ledger, call)(request_)
    error = from_rpc_error(caught.value)
    assert error.status == code
    assert says in f"{error.reason} {error.message}"


async def test_watching_from_beyond_the_next_block_is_refused(ledger: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in ledger.WatchBlocks(pb.WatchBlocksRequest(from_height=99)):
            pass
    assert "from_height: 99" in from_rpc_error(caught.value).message


def _damaged(**changes: Any) -> pb.Transaction:
    message = parties.settle([parties.batch([parties.commitment(bytes(32), 0, 1)])])
    for name, value in changes.items():
        target = message.settle.batches[0]
        if name == "positions":
            target.positions.extend(value)
        else:
            setattr(target, name, value)
    return message


@pytest.mark.parametrize(("message", "path"), [
    (_damaged(commitments=b"\x01" * 117), "settle.batches[0].commitments"),
    (_damaged(commitments=b""), "settle.batches[0].commitments"),
    (_damaged(commitments=b"\x02" * 118), "settle.batches[0].commitments"),
    (_damaged(proof_hashes=b"x"), "settle.batches[0].proof_hashes"),
    (_damaged(positions=[0]), "settle.batches[0].positions"),
    (_damaged(positions=[3], leaf_hashes=bytes(64)), "settle.batches[0].positions"),
    (_damaged(leaf_hashes=bytes(31)), "settle.batches[0].leaf_hashes"),
    (pb.Transaction(id=bytes(16), public_key=bytes(33), signature=bytes(64)), "body"),
    (pb.Transaction(id=bytes(16), public_key=bytes(33), signature=bytes(64),
                    deposit=pb.Deposit(to="cpc1x", amount_units=1)), "deposit.to"),
    (pb.Transaction(id=bytes(16), public_key=bytes(33), signature=bytes(64),
                    open=pb.EscrowOpen(order=b"\x02" * 164)), "open.order"),
    (pb.Transaction(id=bytes(16), public_key=bytes(33), signature=bytes(64),
                    refund=pb.EscrowRefund(task_id=bytes(32), cause=pb.REFUND_CAUSE_EXPIRED)), "refund.cause"),
])  # fmt: skip
async def test_malformed_request_applies_nothing(ledger: Any, message: pb.Transaction, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ledger.SubmitTransactions(
            pb.SubmitTransactionsRequest(transactions=[parties.deposit(CUSTOMER, 5), message]))
    error = from_rpc_error(caught.value)
    assert error.status == "INVALID_ARGUMENT"
    assert f"transactions[1].{path}" in error.message, error.message
    assert await balance(ledger, CUSTOMER) == 0


async def test_accounts_are_paged_in_address_order_and_sum_to_what_was_minted(ledger: Any, submit: Any) -> None:
    keys = [parties.key(500 + at) for at in range(9)]
    await submit(*(parties.deposit(key, at + 1) for at, key in enumerate(keys)))
    listed, token = [], ""
    while True:
        page = await ledger.ListAccounts(pb.ListAccountsRequest(page_size=4, page_token=token))
        listed += page.accounts
        token = page.next_page_token
        if not token:
            break
    raw = [identity.decode_address(one.address) for one in listed]
    assert raw == sorted(raw)
    assert len(raw) == page.total == 9
    assert sum(one.balance_units for one in listed) == 45


async def test_full_queue_is_refused_with_a_time_to_retry(ledger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_QUEUED_BYTES", 10)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ledger.SubmitTransactions(pb.SubmitTransactionsRequest(transactions=[parties.deposit(CUSTOMER, 5)]))
    error = from_rpc_error(caught.value)
    assert error.status == "RESOURCE_EXHAUSTED"
    assert error.retry_after_ms
