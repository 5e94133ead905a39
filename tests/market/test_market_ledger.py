"""The market in front of the real ledger, a process of its own: money and tasks stay together whatever dies."""

from __future__ import annotations

import asyncio
import time
import uuid

import grpc
import pytest

from computemesh.trust import merkle
from computemesh.v1 import ledger_pb2
from computemesh.v1 import market_pb2 as pb
from tests.market.market_bench import Bench
from tests.market.real_ledger import RealLedger

Real = tuple[Bench, RealLedger]


async def test_a_task_is_paid_for_leased_settled_and_completed(real: Real) -> None:
    bench, ledger = real
    task = await bench.create(reward="10.0")
    assert await ledger.balance(bench.alice.address) == 90_000_000
    one = bench.orchestrator()
    await one.dial()
    await one.ready()
    lease = await one.lease()
    outcome = await ledger.settle(one.key, lease.task_id, lease.epoch, range(4))
    assert outcome.kind == ledger_pb2.OUTCOME_KIND_APPLIED
    assert not outcome.refusals
    await one.outcome(lease)
    assert (await one.read()).acks.task_ids == [lease.task_id]
    done = await bench.get(task.task_id)
    assert (done.status, done.jobs_settled, done.refunded) == (pb.TASK_STATUS_COMPLETED, 4, "0.0")
    assert await ledger.conserved()


async def test_a_claim_before_the_last_job_is_settled_is_not_believed(real: Real) -> None:
    bench, ledger = real
    task = await bench.create()
    one = bench.orchestrator()
    await one.dial()
    await one.ready()
    lease = await one.lease()
    await ledger.settle(one.key, lease.task_id, lease.epoch, range(3))
    await one.outcome(lease)
    (revoke,) = (await one.read()).revokes.revokes
    assert (revoke.task_id, revoke.epoch) == (lease.task_id, 1)
    await one.ready()
    lease = await one.lease()
    assert lease.epoch == 2
    await ledger.settle(one.key, lease.task_id, lease.epoch, range(3, 4))
    await one.outcome(lease)
    assert (await one.read()).acks.task_ids == [lease.task_id]
    assert (await bench.get(task.task_id)).status == pb.TASK_STATUS_COMPLETED


async def test_an_expired_task_is_refunded_with_nobody_asking(real: Real) -> None:
    bench, ledger = real
    task = await bench.create(reward="4.0", deadline=int(time.time()) + 2)
    one = bench.orchestrator()
    await one.dial()
    await one.ready()
    lease = await one.lease()
    beat = asyncio.create_task(one.beat())
    await ledger.settle(one.key, lease.task_id, lease.epoch, range(1))
    events = await bench.watch(task.task_id)
    beat.cancel()
    ended = events[-1].task
    assert (ended.status, ended.refunded, ended.jobs_settled) == (pb.TASK_STATUS_EXPIRED, "3.0", 1)
    assert ended.status_detail == "the deadline passed"
    assert await ledger.balance(bench.alice.address) == 99_000_000
    assert await ledger.conserved()


async def test_cancelling_refunds_what_is_unspent_and_tells_the_orchestrator(real: Real) -> None:
    bench, ledger = real
    task = await bench.create(reward="4.0")
    one = bench.orchestrator()
    await one.dial()
    await one.ready()
    lease = await one.lease()
    await ledger.settle(one.key, lease.task_id, lease.epoch, range(1))
    response = await bench.stub.CancelTask(
        pb.CancelTaskRequest(task_id=task.task_id), metadata=(("authorization", "Bearer secret-key-of-alice"),))
    assert (response.task.status, response.task.refunded) == (pb.TASK_STATUS_CANCELLED, "3.0")
    (revoke,) = (await one.read()).revokes.revokes
    assert (revoke.task_id, revoke.status) == (lease.task_id, pb.TASK_STATUS_CANCELLED)
    assert await ledger.balance(bench.alice.address) == 99_000_000


async def test_a_failed_task_is_refunded(real: Real) -> None:
    bench, ledger = real
    task = await bench.create()
    one = bench.orchestrator()
    await one.dial()
    await one.ready()
    lease = await one.lease()
    await one.outcome(lease, pb.TASK_STATUS_FAILED, b"", "job 2 failed on three workers: OUT_OF_MEMORY")
    assert (await one.read()).acks.task_ids == [lease.task_id]
    ended = await bench.reach(task.task_id, pb.TASK_STATUS_FAILED)
    assert (ended.refunded, ended.status_detail) == ("1.0", "job 2 failed on three workers: OUT_OF_MEMORY")
    assert await ledger.balance(bench.alice.address) == 100_000_000


async def test_a_task_whose_orchestrator_settled_all_and_vanished_is_completed(real: Real) -> None:
    """The next assignment is refused because the escrow is closed; the result hash then comes from the ledger."""
    bench, ledger = real
    task = await bench.create()
    one = bench.orchestrator()
    await one.dial()
    await one.ready()
    lease = await one.lease()
    await ledger.settle(one.key, lease.task_id, lease.epoch, range(4))
    one.call.cancel()
    two = bench.orchestrator("two")
    await two.dial()
    await two.ready()
    beat = asyncio.create_task(two.beat())
    done = await bench.reach(task.task_id, pb.TASK_STATUS_COMPLETED)
    beat.cancel()
    assert done.result_hash == merkle.root([merkle.leaf_hash(bytes([job]) * 32) for job in range(4)]).hex()
    assert done.jobs_settled == 4


async def test_a_reward_beyond_the_balance_is_refused_with_both_amounts(real: Real) -> None:
    bench, ledger = real
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.create(reward="100.5")
    assert caught.value.details() == f"reward 100.5 CPC, but account {bench.alice.address} holds 100.0 CPC"
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert await ledger.conserved()


async def test_a_ledger_killed_under_load_loses_neither_tasks_nor_money(real: Real) -> None:
    bench, ledger = real
    one = bench.orchestrator()
    await one.dial()
    await one.ready(20)
    beat = asyncio.create_task(one.beat())
    requests = [str(uuid.uuid4()) for _ in range(20)]

    async def create(request_id: str) -> pb.Task:
        while True:
            try:
                return await bench.create(request_id=request_id)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise

    creating = [asyncio.create_task(create(request_id)) for request_id in requests]
    await asyncio.sleep(0.02)
    await ledger.kill()
    await asyncio.sleep(0.2)
    await ledger.start()
    tasks = await asyncio.gather(*creating)
    assert len({task.task_id for task in tasks}) == 20
    leases: list[pb.TaskLease] = []
    while len(leases) < 20:
        leases += (await one.read()).leases.leases
    assert {lease.task_id.hex() for lease in leases} == {task.task_id for task in tasks}
    beat.cancel()
    assert await ledger.balance(bench.alice.address) == 80_000_000
    assert await ledger.conserved()
