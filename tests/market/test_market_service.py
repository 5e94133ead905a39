"""The market as customers and orchestrators see it, over real gRPC."""

from __future__ import annotations

import asyncio

import pytest

from computemesh.v1 import market_pb2 as pb
from market_bench import Bench


async def test_a_task_goes_from_escrow_over_a_lease_to_completion(bench: Bench) -> None:
    task = await bench.create()
    assert task.status == pb.TASK_STATUS_PENDING and bench.ledger.escrows[task.task_id].reward_units == 1_000_000
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
    assert done.status == pb.TASK_STATUS_COMPLETED and done.result_hash == b"r".hex() * 32 and done.jobs_settled == 4
    events = await bench.watch(task.task_id)
    assert [e.cursor for e in events] == list(range(1, len(events) + 1))
    kinds = [pb.TaskEventKind.Name(e.kind).removeprefix("TASK_EVENT_KIND_") for e in events]
    assert kinds == ["CREATED", "LEASED", "STARTED", "PROGRESS", "ENDED"]
