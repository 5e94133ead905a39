"""The ledger's contract, over gRPC and a real database."""

from __future__ import annotations

import time
from typing import Any

from computemesh.trust import receipt
from computemesh.v1 import ledger_pb2 as pb
from tests.ledger import parties
from tests.ledger.parties import CUSTOMER, ORCHESTRATOR, TREASURY, WORKER

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

    assert await balance(ledger, WORKER) == 2_500_000
    assert await balance(ledger, ORCHESTRATOR) == 1_000_000
    assert await balance(ledger, TREASURY) == 500_000
    assert await balance(ledger, CUSTOMER) == 0
    supply = await ledger.GetSupply(pb.GetSupplyRequest())
    assert (supply.minted_units, supply.accounts_units, supply.escrowed_units, supply.burned_units) == (
        10_000_000, 4_000_000, 0, 6_000_000)
    escrow = (await ledger.GetEscrow(pb.GetEscrowRequest(task_id=task.hex()))).escrow
    assert (escrow.status, escrow.settled_units, escrow.jobs_settled) == (pb.ESCROW_STATUS_SETTLED, 10_000_000, 4)

    proven = await ledger.ListResults(pb.ListResultsRequest(task_id=task.hex(), with_proofs=True))
    vkey = (await ledger.GetLedger(pb.GetLedgerRequest())).vkey
    names = [field for field in receipt.JobEvidence.__dataclass_fields__]
    jobs = tuple(
        receipt.JobEvidence(**{
            name: tuple(value) if name.endswith("_path") else value
            for name in names for value in [getattr(one, name)]})
        for one in proven.proven)  # fmt: skip
    assignments = {(one.assignment, one.assignment_id, one.assignment_signature) for one in proven.proven}
    document = receipt.Receipt(
        parties.CHAIN, vkey, "synthetic", parties.PAYLOAD, escrow.order, escrow.order_signature,
        tuple(receipt.SignedAssignment(*one) for one in assignments), jobs, proven.checkpoint.note)
    checks = receipt.verify(document, vkey)
    assert receipt.accepted(checks), [check for check in checks if not check.ok]
