"""Settling by columns changes exactly what settling result by result changes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2 as pb
from ledger import columns, wire
from ledger.block import Chain
from ledger.evidence import examine
from ledger.state import WINDOW, Effects, Phase, Reason, Touched, Window
from tests.ledger import parties
from tests.ledger.parties import CHAIN, CUSTOMER, OTHER, WORKER
from tests.ledger.test_core import DEADLINE, new_chain

Found = tuple[Chain, list[Effects], Touched, list[tuple[int, int, int]]]


def settled(
    few: int, history: Sequence[pb.Transaction], messages: Sequence[pb.Transaction], monkeypatch: pytest.MonkeyPatch
) -> Found:
    """The chain, the effects and what was touched, where batches of more than `few` go by columns."""
    monkeypatch.setattr(columns, "FEW", few)
    chain = new_chain()
    for message in history:
        assert chain.apply(examine(CHAIN, wire.transaction(message))).number
    chain.collect()
    effects = [chain.apply(examine(CHAIN, wire.transaction(message))) for message in messages]
    touched = chain.collect()
    places = [
        (escrow, int(job), place) for escrow, jobs, at in touched.results
        for job, place in zip(jobs, at, strict=True)
    ]  # fmt: skip
    touched.results = []
    return chain, effects, touched, places


def same_both_ways(history: Sequence[pb.Transaction], messages: Sequence[pb.Transaction]) -> Found:
    with pytest.MonkeyPatch.context() as monkeypatch:
        by_rows = settled(10**9, history, messages, monkeypatch)
        by_columns = settled(0, history, messages, monkeypatch)
    assert by_columns[0].state == by_rows[0].state
    assert by_columns[1:] == by_rows[1:]
    assert by_columns[0].seal() == by_rows[0].seal()
    return by_columns


def history(reward: int, jobs: int, tasks: int = 1) -> tuple[list[bytes], list[pb.Transaction]]:
    orders = [parties.order(reward, DEADLINE) for _ in range(tasks)]
    made = [parties.deposit(CUSTOMER, reward * tasks)]
    for order in orders:
        made += [parties.open_(order), parties.assign(parties.task_id(order), jobs, epoch=2)]
    return [parties.task_id(order) for order in orders], made


JOBS = 70
Row = tuple[int, int, int, int, bool]
"""(task, job, nonce's step, epoch, by the batch's worker)"""

ROWS = st.lists(st.tuples(
    st.sampled_from((0, 0, 0, 1)), st.integers(0, JOBS + 1) | st.integers(0, JOBS - 1),
    st.sampled_from((1, 1, 1, 2, 300, WINDOW, WINDOW + 1, -1, 0)), st.sampled_from((2, 2, 2, 2, 2, 1, 3)),
    st.sampled_from((True, True, True, True, False))), max_size=30)  # fmt: skip


@given(st.lists(ROWS.filter(len), min_size=1, max_size=4), st.integers(0, 2000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_whatever_a_batch_holds(batches: list[list[Row]], reward: int, partly: bool) -> None:
    tasks, before = history(reward + 1, JOBS, 2)
    nonce, messages = 5000, []
    for rows in batches:
        packed = []
        for task, job, step, epoch, own in rows:
            nonce = max(nonce + step, 1)
            worker: PrivateKey = WORKER if own else OTHER
            packed.append(parties.commitment(tasks[task], job, nonce, worker, epoch))
        chosen = range(0, len(packed), 2) if partly else None
        messages.append(parties.settle([parties.batch(packed, settled=chosen)]))
    same_both_ways(before, messages)


@pytest.mark.parametrize("reward", [1, JOBS, 12_345_677, 2**62 + 12345])
def test_a_whole_task_pays_its_reward_to_the_unit(reward: int) -> None:
    (task,), before = history(reward, JOBS)
    order = [*range(1, JOBS, 2), *range(0, JOBS, 2)]
    rows = [parties.commitment(task, job, at + 1, epoch=2) for at, job in enumerate(order)]
    chain, effects, _, places = same_both_ways(before, [parties.settle([parties.batch(rows)])])
    escrow = chain.state.escrows[task]
    assert (escrow.settled, escrow.jobs_settled, escrow.phase) == (reward, JOBS, Phase.SETTLED)
    assert sorted(job for _, job, _ in places) == list(range(JOBS))
    assert len(effects[0].leaves) == 32 * JOBS


def test_a_job_twice_in_one_batch_is_paid_once() -> None:
    (task,), before = history(700, JOBS)
    rows = [parties.commitment(task, job % 20, job + 1, epoch=2, salt=bytes([job])) for job in range(25)]
    _, effects, _, places = same_both_ways(before, [parties.settle([parties.batch(rows)])])
    assert [(one.position, one.reason) for one in effects[0].refusals] == [
        (at, Reason.DUPLICATE_RESULT) for at in range(20, 25)]
    assert len(places) == 20


def test_columns_are_used_where_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (task,), before = history(700, JOBS)
    rows = [parties.commitment(task, job, job + 1, epoch=2) for job in range(JOBS)]
    monkeypatch.setattr("ledger.settling._settle_rows", None)
    _, effects, _, places = settled(columns.FEW, before, [parties.settle([parties.batch(rows)])], monkeypatch)
    assert effects[0].number
    assert len(places) == JOBS


STEPS = st.lists(st.sampled_from((1, 1, 2, 7, WINDOW - 1, WINDOW, WINDOW + 1)), min_size=1)


@given(st.integers(0, 3 * WINDOW), st.sampled_from((0, 0, 1, 9, 200, WINDOW, WINDOW + 2)), STEPS)
@settings(max_examples=100, deadline=None)
def test_nonces_taken_at_once_are_those_taken_one_by_one(highest: int, back: int, steps: list[int]) -> None:
    below = highest * 0x9E3779B97F4A7C15 % 2 ** min(highest, 300)
    one, other = Window(highest, below), Window(highest, below)
    nonces, at, unseen = [], max(highest - back, 0), True
    for step in steps:
        at += step
        nonces.append(at)
        unseen = unseen and not one.seen(at)
        if unseen:
            one.take(at)
    packed = b"".join(parties.commitment(bytes(32), job, nonce) for job, nonce in enumerate(nonces))
    run_ = columns.Run.read(packed, WORKER.public)
    assert run_ is not None
    assert run_.unseen(other) is unseen
    if unseen:
        run_.take(other)
        assert one == other


def test_batches_of_a_worker_may_come_in_any_order() -> None:
    (task,), before = history(700, JOBS)
    packed = [parties.commitment(task, job, job + 1, epoch=2) for job in range(60)]
    messages = [parties.settle([parties.batch(packed[at : at + 20])]) for at in (40, 0, 20, 40)]
    _, effects, _, places = same_both_ways(before, messages)
    assert [bool(one.number) for one in effects] == [True, True, True, False]
    assert len(places) == 60
