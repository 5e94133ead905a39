"""Batches of orders, and how tasks are delivered, paid in part, retracted and confirmed, with the real ledger."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from dataclasses import replace

from computemesh.client.contest import contest_of
from computemesh.client.orders import Wish
from computemesh.client.terms import OrderTerms
from computemesh.service import transactions
from computemesh.service.auth import make_token
from computemesh.trust import acts, merkle
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2
from computemesh.v1 import market_pb2 as pb
from tests.market.market_bench import ALICE, CHAIN, Bench, Orchestrator, bearer, create_request, struct
from tests.market.real_ledger import RealLedger
from tests.market.test_market_refusals import refused

Real = tuple[Bench, RealLedger]
CAROL = PrivateKey.from_bytes(hashlib.sha256(b"carol").digest())
WORKERS = [PrivateKey.from_bytes(hashlib.sha256(b"w%d" % at).digest()) for at in range(3)]


async def leased(bench: Bench) -> tuple[Orchestrator, pb.TaskLease]:
    one = bench.orchestrator()
    await one.dial()
    await one.ready()
    return one, await one.lease()


async def act(bench: Bench, one: acts.Act, metadata=ALICE, **values: object) -> pb.SubmitActResponse:
    request = pb.SubmitActRequest(kind=one.KIND, body=one.pack(), **values)
    return await bench.stub.SubmitAct(request, metadata=metadata, timeout=10)


# ---------------------------------------------------------------- batches


async def test_each_order_of_a_batch_is_judged_alone(real: Real) -> None:
    bench, ledger = real
    known = await bench.create(request_id=str(uuid.UUID(int=7)))
    tasks = [create_request(reward="1.0"), create_request(reward="5000.0"), create_request(payload=struct(jobs=0)),
             create_request(request_id=str(uuid.UUID(int=7)))]
    reply = await bench.stub.CreateTasks(pb.CreateTasksRequest(tasks=tasks), metadata=ALICE, timeout=10)
    first, dear, wrong, repeated = reply.results
    assert first.task.status == pb.TASK_STATUS_PENDING
    assert (await ledger.escrow(first.task.task_id)).reward_units == 1_000_000
    assert (dear.status, dear.reason) == ("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS")
    assert dear.message.startswith("reward 5000.0 CPC, but account cpc1")
    assert wrong.reason == "INVALID_ARGUMENT"
    assert wrong.message.startswith("tasks[2]: jobs must be a whole number")
    assert repeated.task.task_id == known.task_id
    assert await ledger.balance(bench.alice.address) == 98_000_000


def signed_batch(bench: Bench, rewards: list[str]) -> tuple[pb.CreateTasksRequest, tuple]:
    """Carol's batch, as the SDK makes it, and her token."""
    now_ms = time.time_ns() // 1_000_000
    wishes = [Wish.of("noop", {"jobs": 4}, reward, None, 0, None, now_ms, signs=True) for reward in rewards]
    act = acts.Orders(tuple(wish.order(CAROL.public, bench.key.public).pack() for wish in wishes))
    signed = transactions.signed(CAROL, CHAIN, act.KIND, act.pack())
    request = pb.CreateTasksRequest(
        tasks=[wish.signed_request(CAROL, bench.key.public, CHAIN) for wish in wishes], id=signed.id,
        signature=signed.signature)
    return request, bearer(make_token(CAROL, CHAIN, now_ms + 60_000))


async def test_a_batch_a_customer_signed_is_one_transaction_and_repeats_as_the_same_tasks(real: Real) -> None:
    bench, ledger = real
    await ledger.deposit(CAROL.address, 3_000_000)
    request, carol = signed_batch(bench, ["1.0", "1.5", "1.0"])
    reply = await bench.stub.CreateTasks(request, metadata=carol, timeout=10)
    assert [one.reason for one in reply.results] == ["", "", "INSUFFICIENT_FUNDS"]
    again = await bench.stub.CreateTasks(request, metadata=carol, timeout=10)
    assert [one.task.task_id for one in again.results] == [one.task.task_id for one in reply.results]
    assert await ledger.balance(CAROL.address) == 500_000
    request.signature = bytes(64)
    error = await refused(bench.stub.CreateTasks(request, metadata=carol, timeout=10))
    assert (error.status, error.reason) == ("PERMISSION_DENIED", "INVALID_SIGNATURE")


async def test_an_order_that_cannot_be_read_stops_a_signed_batch_before_any_money_moves(real: Real) -> None:
    bench, ledger = real
    await ledger.deposit(CAROL.address, 3_000_000)
    request, carol = signed_batch(bench, ["1.0", "1.0"])
    request.tasks[1].payload.update({"jobs": 0})
    error = await refused(bench.stub.CreateTasks(request, metadata=carol, timeout=10))
    assert [field for field, _ in error.violations] == ["tasks[1].payload.jobs"]
    assert await ledger.balance(CAROL.address) == 3_000_000


# ---------------------------------------------------------------- ends


async def test_a_task_that_completes_70_of_100_jobs_pays_70_and_refunds_30(real: Real) -> None:
    bench, ledger = real
    task = await bench.create(payload=struct(jobs=100), reward="10.0")
    one, lease = await leased(bench)
    await ledger.settle(one.key, lease.task_id, lease.epoch, range(70))
    ended = (await bench.stub.CancelTask(pb.CancelTaskRequest(task_id=task.task_id), metadata=ALICE)).task
    assert (ended.status, ended.jobs_settled, ended.refunded) == (pb.TASK_STATUS_CANCELLED, 70, "3.0")
    assert await ledger.balance(bench.alice.address) == 93_000_000
    assert await ledger.conserved()


async def test_retracting_before_anybody_is_assigned_gives_everything_back(real: Real) -> None:
    bench, ledger = real
    task = await bench.create(reward="10.0")
    await act(bench, acts.Retract(bytes.fromhex(task.task_id)))
    ended = await bench.reach(task.task_id, pb.TASK_STATUS_CANCELLED)
    assert (ended.refunded, ended.jobs_settled) == ("10.0", 0)
    assert await ledger.balance(bench.alice.address) == 100_000_000


async def test_a_task_somebody_works_on_cannot_be_retracted(real: Real) -> None:
    bench, _ = real
    task = await bench.create()
    await leased(bench)
    error = await refused(act(bench, acts.Retract(bytes.fromhex(task.task_id))))
    assert (error.status, error.reason) == ("FAILED_PRECONDITION", "TASK_ALREADY_CLAIMED")
    assert "assigned" in error.message


async def test_nobody_retracts_or_confirms_for_another(real: Real) -> None:
    bench, _ = real
    task = await bench.create()
    carol = bearer(make_token(CAROL, CHAIN, time.time_ns() // 1_000_000 + 60_000))
    retract = acts.Retract(bytes.fromhex(task.task_id))
    signed = transactions.signed(CAROL, CHAIN, retract.KIND, retract.pack())
    error = await refused(act(bench, retract, carol, id=signed.id, signature=signed.signature))
    assert (error.status, error.reason) == ("PERMISSION_DENIED", "UNAUTHORIZED")
    error = await refused(act(bench, retract, carol))
    assert error.violations[0][0] == "signature"


# ---------------------------------------------------------------- manual delivery


async def test_the_customer_picks_among_the_answers_and_the_task_completes_with_its_pick(real: Real) -> None:
    bench, ledger = real
    task = await bench.create(payload=struct(jobs=1), delivery=pb.DELIVERY_MANUAL, responses=2, confirm_window_s=600)
    assert (task.delivery, task.responses, task.confirm_window_s) == (pb.DELIVERY_MANUAL, 2, 600)
    one, lease = await leased(bench)
    assert (lease.delivery, lease.responses) == (pb.DELIVERY_MANUAL, 2)
    for at in range(2):
        await ledger.settle(one.key, lease.task_id, lease.epoch, range(1), WORKERS[at], answer=at)
    await one.outcome(lease, result_hash=b"")
    beat = asyncio.create_task(one.beat())
    error = await refused(act(bench, acts.Confirm(lease.task_id, 0, WORKERS[2].public)))
    assert (error.status, error.reason) == ("FAILED_PRECONDITION", "TASK_NOT_CLAIMED")
    assert "has no response to job 0 to confirm" in error.message
    assert (await bench.get(task.task_id)).status == pb.TASK_STATUS_PENDING
    await act(bench, acts.Confirm(lease.task_id, 0, WORKERS[1].public))
    assert (await one.read()).acks.task_ids == [lease.task_id]
    done = await bench.get(task.task_id)
    beat.cancel()
    assert (done.status, done.jobs_settled) == (pb.TASK_STATUS_COMPLETED, 1)
    assert done.result_hash == merkle.root([merkle.leaf_hash(bytes([1]) * 32)]).hex()
    assert await ledger.conserved()
    assert await ledger.balance(WORKERS[0].address) == 0
    assert await ledger.balance(WORKERS[1].address) == 250_000


async def test_silence_past_the_window_confirms_the_first_answer(real: Real) -> None:
    bench, ledger = real
    task = await bench.create(payload=struct(jobs=1), delivery=pb.DELIVERY_MANUAL, confirm_window_s=1)
    one, lease = await leased(bench)
    await ledger.settle(one.key, lease.task_id, lease.epoch, range(1), WORKERS[0])
    await one.outcome(lease, result_hash=b"")
    beat = asyncio.create_task(one.beat())
    done = await bench.reach(task.task_id, pb.TASK_STATUS_COMPLETED, 15)
    beat.cancel()
    assert done.result_hash == merkle.root([merkle.leaf_hash(bytes(32))]).hex()


async def test_terms_that_do_not_go_together_are_refused_naming_the_field(real: Real) -> None:
    bench, _ = real
    for values, field, text in (
        ({"responses": 3}, "responses", "which only goes with delivery MANUAL"),
        ({"confirm_window_s": 9}, "confirm_window_s", "which only goes with delivery MANUAL"),
        ({"delivery": pb.DELIVERY_MANUAL, "responses": 9}, "responses", "9"),
        ({"payer": "cpc1nobody"}, "payer", "is not an address"),
        ({"payer": CAROL.address, "pool": "render"}, "pool", "cannot both pay"),
    ):
        error = await refused(bench.create(**values))
        assert error.violations[0][0] == field, error
        assert text in error.message


async def test_an_account_that_delegated_a_key_pays_and_gets_the_refund(real: Real) -> None:
    bench, ledger = real
    delegate = acts.Delegate(CAROL.public, acts.MAY_PUBLISH, 2**53)
    await act(bench, delegate)
    wish = Wish.of("noop", {"jobs": 4}, "1.0", None, 0, None, time.time_ns() // 1_000_000, True,
                   OrderTerms(payer=bench.alice.address))
    carol = bearer(make_token(CAROL, CHAIN, time.time_ns() // 1_000_000 + 60_000))
    request = wish.signed_request(CAROL, bench.key.public, CHAIN)
    task = (await bench.stub.CreateTask(request, metadata=carol)).task
    assert (task.payer, task.customer) == (bench.alice.address, CAROL.address)
    assert await ledger.balance(bench.alice.address) == 99_000_000
    await bench.stub.CancelTask(pb.CancelTaskRequest(task_id=task.task_id), metadata=carol)
    assert await ledger.balance(bench.alice.address) == 100_000_000
    stolen = transactions.signed(CAROL, CHAIN, transactions.TRANSFER,
                                 transactions.transfer_body(CAROL.address, 1_000_000))
    assert (await ledger.submit(stolen)).reason == "INSUFFICIENT_FUNDS"  # it may publish, and moves only its own money


# ---------------------------------------------------------------- errors of the seeds


async def test_what_comes_after_the_deadline_is_refused_as_expired(real: Real) -> None:
    bench, ledger = real
    task = await bench.create(deadline=int(time.time()) + 2)
    await bench.reach(task.task_id, pb.TASK_STATUS_EXPIRED, 15)
    assert await ledger.balance(bench.alice.address) == 100_000_000
    error = await refused(act(bench, acts.Retract(bytes.fromhex(task.task_id))))
    assert (error.status, error.reason) == ("FAILED_PRECONDITION", "TASK_EXPIRED")
    assert error.message.endswith("is expired: retract is refused")


async def test_a_contest_with_a_forged_path_is_refused_as_an_invalid_proof(real: Real) -> None:
    bench, ledger = real
    await bench.create()
    one, lease = await leased(bench)
    await ledger.settle(one.key, lease.task_id, lease.epoch, range(4))
    await act(bench, acts.Stake(5_000_000))
    asked = ledger_pb2.GetInclusionProofRequest(task_id=lease.task_id.hex(), job=0)
    proven = (await ledger.stub.GetInclusionProof(asked, timeout=10)).result
    contest = contest_of(proven)
    error = await refused(act(bench, replace(contest, path=bytes(len(contest.path)))))
    # The window of two blocks may be over on a slow machine: then that is what is said.
    assert error.reason in ("INVALID_PROOF", "NOT_CONTESTABLE"), error
    error = await refused(bench.stub.SubmitAct(pb.SubmitActRequest(kind="contest", body=b"x"), metadata=ALICE))
    assert (error.status, error.reason) == ("INVALID_ARGUMENT", "INVALID_PROOF")
    assert "has 1 bytes, not" in error.message


async def test_a_task_nobody_knows_is_not_found(real: Real) -> None:
    bench, _ = real
    error = await refused(act(bench, acts.Retract(bytes(32))))
    assert (error.status, error.reason) == ("NOT_FOUND", "TASK_NOT_FOUND")
