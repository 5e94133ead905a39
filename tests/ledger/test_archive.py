"""Escrows that ended leave memory, and nothing that is decided or shown changes by it."""

from __future__ import annotations

import time
from dataclasses import replace

from computemesh.v1 import ledger_pb2 as pb
from ledger import replay, startup, wire
from ledger.archive import Archive
from ledger.block import Chain
from ledger.config import Config
from ledger.core import advance
from ledger.evidence import examine
from ledger.startup import Running
from ledger.state import Escrow, Phase, Reason
from tests.ledger import parties
from tests.ledger.conftest import serving
from tests.ledger.parties import CHAIN, CUSTOMER
from tests.ledger.test_core import DEADLINE, new_chain


def apply(chain: Chain, message: pb.Transaction) -> Reason | None:
    effects = chain.apply(examine(CHAIN, wire.transaction(message)))
    return effects.reason


class Kept:
    """A chain whose ended escrows go to a table, which is a dict of their rows here."""

    def __init__(self) -> None:
        self.chain = new_chain()
        self.rows: dict[bytes, tuple[object, ...]] = {}
        self.archive = Archive(self.chain, lambda task_id: replay.ended_escrow(self.rows.get(task_id)))
        assert apply(self.chain, parties.deposit(CUSTOMER, 10_000)) is None

    @property
    def here(self) -> set[bytes]:
        return set(self.chain.state.escrows)

    def seal(self) -> None:
        self.chain.collect()
        touched = self.chain.seal().touched
        touched.escrows |= set(self.here)
        for task_id in touched.escrows:
            escrow: Escrow = self.chain.state.escrows[task_id]
            self.rows[task_id] = replay.escrow_row(escrow)
        self.archive.written(touched.escrows)

    def ended(self, blocks: int = 9) -> tuple[bytes, pb.Transaction]:
        """A settled task whose rows are written, some blocks ago; and its settlement with another id."""
        order = parties.order(100, DEADLINE)
        task = parties.task_id(order)
        batch = parties.batch([parties.commitment(task, 0, 1 + len(self.rows))])
        for message in (parties.open_(order), parties.assign(task, 1), parties.settle([batch])):
            assert apply(self.chain, message) is None
        self.seal()
        for _ in range(blocks):
            self.chain.seal()
        return task, parties.settle([batch])


def test_an_ended_escrow_leaves_memory_once_its_row_is_durable() -> None:
    kept = Kept()
    task, _ = kept.ended()
    kept.archive.put_away()
    assert kept.here == {task}
    kept.archive.durable()
    kept.archive.put_away()
    assert kept.here == set()


def test_an_ended_escrow_stays_while_its_result_may_be_contested() -> None:
    kept = Kept()
    task, _ = kept.ended(blocks=0)
    kept.archive.durable()
    kept.archive.put_away()
    assert kept.here == {task}


def test_what_was_put_away_refuses_as_before_and_leaves_again() -> None:
    kept = Kept()
    task, again = kept.ended()
    before = replace(kept.chain.state.escrows[task])
    kept.archive.durable()
    kept.archive.put_away()
    assert apply(kept.chain, again) is Reason.DUPLICATE_RESULT
    assert apply(kept.chain, parties.refund(task)) is Reason.ESCROW_CLOSED
    assert kept.here == {task}
    assert kept.chain.state.escrows[task] == before
    for _ in range(9):
        kept.chain.seal()
    kept.archive.put_away()
    assert kept.here == set()


def test_a_change_that_is_not_durable_yet_keeps_an_escrow() -> None:
    kept = Kept()
    task, _ = kept.ended()
    kept.archive.durable()
    kept.chain.state.escrows[task].refunded = 1
    kept.archive.written([task])
    kept.archive.put_away()
    assert kept.here == {task}


def test_a_deadline_of_what_was_put_away_brings_nothing_back() -> None:
    kept = Kept()
    kept.ended()
    kept.archive.durable()
    kept.archive.put_away()
    assert advance(kept.chain.state, DEADLINE + 1) == 0
    assert kept.here == set()


async def test_a_ledger_remembers_a_thousand_tasks_and_keeps_few(config: Config) -> None:
    tasks, deadline_ms = [], time.time_ns() // 1_000_000 + 3_600_000
    async with serving(config) as stub:
        for _ in range(20):
            orders = [parties.order(10, deadline_ms) for _ in range(50)]
            tasks += [parties.task_id(order) for order in orders]
            made = [parties.deposit(CUSTOMER, 500), *(parties.open_(order) for order in orders)]
            made += [parties.refund(parties.task_id(order)) for order in orders]
            reply = await stub.SubmitTransactions(pb.SubmitTransactionsRequest(transactions=made, wait=pb.WAIT_SEALED))
            assert all(one.kind == pb.OUTCOME_KIND_APPLIED for one in reply.outcomes)
    assert startup.fsck(config) == []
    running = Running(config)
    try:
        state = running.writer._chain.state
        assert state.opened == len(set(tasks)) == 1000
        assert len(state.escrows) <= 200
        assert state.escrows[tasks[0]].phase is Phase.CANCELLED
    finally:
        running.close()


