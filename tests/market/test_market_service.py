"""The market as customers and orchestrators see it, over real gRPC with real SQLite."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from computemesh import workloads
from computemesh.service.errors import from_rpc_error
from computemesh.v1 import market_pb2 as pb
from tests.market.market_bench import ALICE, BOB, Bench, struct


def kinds(events: list[pb.WatchTaskResponse]) -> list[str]:
    return [pb.TaskEventKind.Name(event.kind).removeprefix("TASK_EVENT_KIND_") for event in events]


async def test_a_task_goes_from_escrow_over_a_lease_to_completion(bench: Bench) -> None:
    task = await bench.create()
    assert task.status == pb.TASK_STATUS_PENDING
    assert bench.ledger.escrows[task.task_id].reward_units == 1_000_000
    one = bench.orchestrator()
    await one.dial()
    await one.ready()
    lease = await one.lease()
    assert (lease.task_id.hex(), lease.epoch, lease.jobs, lease.reward_units) == (task.task_id, 1, 4, 1_000_000)
    assert bench.ledger.escrows[task.task_id].orchestrator_key == one.key.public.hex()
    await one.progress(lease, 0, 2)
    await bench.reach(task.task_id, pb.TASK_STATUS_IN_PROGRESS)
    bench.ledger.settle(task.task_id, 4)
    await one.outcome(lease)
    assert (await one.read()).acks.task_ids == [lease.task_id]
    done = await bench.get(task.task_id)
    assert done.status == pb.TASK_STATUS_COMPLETED
    assert (done.result_hash, done.jobs_settled, done.block_height) == (b"r".hex() * 32, 4, 7)
    events = await bench.watch(task.task_id)
    assert [event.cursor for event in events] == list(range(1, len(events) + 1))
    assert kinds(events) == ["CREATED", "LEASED", "STARTED", "PROGRESS", "ENDED"]


async def test_a_task_costs_three_calls_to_the_ledger(bench: Bench) -> None:
    """Open, assign, confirm: the budget of DESIGN section 3."""
    one = bench.orchestrator()
    await one.dial()
    task = await bench.create()
    await one.ready()
    lease = await one.lease()
    bench.ledger.settle(task.task_id, 4)
    await one.outcome(lease)
    await one.read()
    assert bench.ledger.calls == {"SubmitTransactions": 2, "GetEscrow": 1}


async def test_cancelling_before_work_begins_gives_everything_back(bench: Bench) -> None:
    task = await bench.create()
    cancel = pb.CancelTaskRequest(task_id=task.task_id)
    ended = (await bench.stub.CancelTask(cancel, metadata=ALICE)).task
    assert (ended.status, ended.refunded, ended.status_detail) == (
        pb.TASK_STATUS_CANCELLED, "1.0", "cancelled by the customer")
    assert (await bench.stub.CancelTask(cancel, metadata=ALICE)).task.status == pb.TASK_STATUS_CANCELLED
    assert bench.ledger.balances[bench.alice.address] == 100_000_000


async def test_a_cancel_that_comes_after_the_last_settlement_finds_the_task_completed(bench: Bench) -> None:
    task = await bench.create()
    one = bench.orchestrator()
    await one.dial()
    await one.ready()
    await one.lease()
    bench.ledger.settle(task.task_id, 4)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.stub.CancelTask(pb.CancelTaskRequest(task_id=task.task_id), metadata=ALICE)
    error = from_rpc_error(caught.value)
    assert error.message == f"task {task.task_id} cannot be cancelled: it is COMPLETED"
    assert (await bench.get(task.task_id)).result_hash


async def test_a_deadline_ends_a_task_that_nobody_took(bench: Bench) -> None:
    task = await bench.create(deadline=int(time.time()) + 1)
    events = await bench.watch(task.task_id)
    assert kinds(events) == ["CREATED", "ENDED"]
    assert (events[-1].task.status, events[-1].task.refunded) == (pb.TASK_STATUS_EXPIRED, "1.0")


async def test_a_lost_orchestrator_gives_the_task_to_another(bench: Bench) -> None:
    task = await bench.create()
    one, two = bench.orchestrator("one"), bench.orchestrator("two")
    await one.dial()
    await one.ready()
    await one.lease()
    one.call.cancel()
    await two.dial()
    await two.ready()
    beat = asyncio.create_task(two.beat())
    lease = await two.lease()
    beat.cancel()
    assert (lease.task_id.hex(), lease.epoch) == (task.task_id, 2)
    assert bench.ledger.escrows[task.task_id].orchestrator_key == two.key.public.hex()


async def test_an_orchestrator_that_is_connected_but_silent_is_cut_off(bench: Bench) -> None:
    one = bench.orchestrator()
    await one.dial()
    assert (one.welcome.lease_ms, one.welcome.heartbeat_interval_ms) == (1000, 200)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await one.read()
    assert from_rpc_error(caught.value).reason == "LEASE_EXPIRED"


async def test_everything_is_reloaded_at_a_restart(bench: Bench) -> None:
    waiting, working = await bench.create(reward="2.0"), await bench.create(priority=9)
    one = bench.orchestrator()
    await one.dial()
    await one.ready()
    lease = await one.lease()
    assert lease.task_id.hex() == working.task_id
    await bench.restart()
    await one.dial(held=[(lease.task_id, lease.epoch)])
    again = await one.lease()
    assert (again.task_id, again.epoch) == (lease.task_id, 1)
    await one.ready()
    assert (await one.lease()).task_id.hex() == waiting.task_id
    bench.ledger.settle(working.task_id, 4)
    await one.outcome(lease)
    await bench.reach(working.task_id, pb.TASK_STATUS_COMPLETED)


async def test_an_outcome_sent_again_after_it_was_recorded_is_acknowledged_again(bench: Bench) -> None:
    task = await bench.create()
    one = bench.orchestrator()
    await one.dial()
    await one.ready()
    lease = await one.lease()
    bench.ledger.settle(task.task_id, 4)
    for _ in range(2):
        await one.outcome(lease)
        assert (await one.read()).acks.task_ids == [lease.task_id]


async def test_an_orchestrator_is_told_before_the_market_stops(bench: Bench) -> None:
    one = bench.orchestrator()
    await one.dial()
    stopping = asyncio.create_task(bench.stop())
    assert (await one.read()).drain.cause == "shutting down"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await one.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await stopping
    await bench.start()


# ---------------------------------------------------------------- lists and watches


async def test_lists_are_filtered_paged_and_only_the_callers(bench: Bench) -> None:
    mine = [(await bench.create(reward="0.1")).task_id for _ in range(7)]
    await bench.create(metadata=BOB, reward="0.1")
    await bench.stub.CancelTask(pb.CancelTaskRequest(task_id=mine[0]), metadata=ALICE)

    async def page(**values: object) -> pb.ListTasksResponse:
        return await bench.stub.ListTasks(pb.ListTasksRequest(**values), metadata=ALICE)

    found, token = [], ""
    while True:
        response = await page(limit=3, page_token=token)
        assert response.total == 7
        found += [task.task_id for task in response.tasks]
        token = response.next_page_token
        if not token:
            break
    assert found == mine[::-1]
    assert [t.task_id for t in (await page(offset=5)).tasks] == mine[1::-1]
    assert [t.task_id for t in (await page(status=pb.TASK_STATUS_CANCELLED)).tasks] == mine[:1]
    assert (await page(status=pb.TASK_STATUS_PENDING)).total == 6
    assert (await page(challenge_type="synthetic")).total == 0
    token = (await page(limit=3)).next_page_token
    for values in ({"page_token": token, "status": pb.TASK_STATUS_PENDING}, {"page_token": "AAAA"},
                   {"page_token": token, "offset": 1}, {"status": 77}, {"limit": 1001}):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await page(**values)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_many_watchers_see_every_event_once_in_order(bench: Bench) -> None:
    task = await bench.create()
    watchers = [asyncio.create_task(bench.watch(task.task_id)) for _ in range(12)]
    one = bench.orchestrator()
    await one.dial()
    await one.ready()
    lease = await one.lease()
    for settled in range(1, 5):
        await one.progress(lease, settled, 1)
        await asyncio.sleep(0.05)
    bench.ledger.settle(task.task_id, 4)
    await one.outcome(lease)
    seen = await asyncio.gather(*watchers)
    assert all(events == seen[0] for events in seen)
    assert [event.cursor for event in seen[0]] == list(range(1, len(seen[0]) + 1))
    assert await bench.watch(task.task_id, cursor=len(seen[0])) == []
    assert await bench.watch(task.task_id, cursor=2) == seen[0][2:]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.watch(task.task_id, cursor=99)
    assert "cursor 99 is beyond the task's last event" in caught.value.details()


async def test_the_market_says_what_an_order_must_name(bench: Bench) -> None:
    found = await bench.stub.GetMarket(pb.GetMarketRequest())
    assert (found.market_key, found.ledger_vkey) == (bench.key.public.hex(), "toy+00000000+AAAA")
    assert tuple(found.challenge_types) == workloads.names()


async def test_a_quote_fills_in_defaults_and_creates_nothing(bench: Bench) -> None:
    request = pb.QuoteTaskRequest(challenge_type="noop", payload=struct(jobs=1000))
    quote = await bench.stub.QuoteTask(request, metadata=ALICE)
    assert (quote.price, quote.operations, quote.jobs) == ("0.01", "0", 1000)
    assert (quote.units_per_job, quote.checked_units_per_job) == (1, 1)
    assert dict(quote.payload) == {"jobs": 1000, "bytes": 200}
    assert (await bench.stub.ListTasks(pb.ListTasksRequest(), metadata=ALICE)).total == 0
