"""Laws of the market's core, without I/O: the tables, the queue, leases."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from computemesh.v1 import ledger_pb2, market_pb2
from market import states as s
from market.core import Core, transaction_id
from market.fair_queue import FairQueue
from market.progress import PROGRESS_MS

LEASE_MS = 1000


def spec(number: int, customer: str = "cpc1a", deadline_ms: int = 10**12, priority: int = 0, jobs: int = 3) -> s.Spec:
    return s.Spec(
        task_id=number.to_bytes(32, "big"), request_id=number.to_bytes(16, "big"), customer_key=bytes(33),
        customer=customer, challenge_type="noop", payload=b"", reward_units=100, deadline_ms=deadline_ms,
        priority=priority, jobs=jobs, created_ms=number, order=bytes(164), order_signature=bytes(64))


# ---------------------------------------------------------------- tables


def test_the_numbers_are_those_of_the_contract() -> None:
    for mine, theirs, prefix in (
        (s.Status, market_pb2.TaskStatus, "TASK_STATUS_"), (s.EventKind, market_pb2.TaskEventKind, "TASK_EVENT_KIND_"),
        (s.Cause, ledger_pb2.RefundCause, "REFUND_CAUSE_"), (s.EscrowStatus, ledger_pb2.EscrowStatus, "ESCROW_STATUS_"),
    ):
        names = {prefix + item.name: int(item) for item in mine if int(item)}
        assert names == {name: number for name, number in theirs.items() if number}


def test_nothing_leads_out_of_a_terminal_status_and_every_other_status_leads_to_one() -> None:
    assert not {status for status, _ in s.TRANSITIONS} & s.TERMINAL
    for status in set(s.Status) - s.TERMINAL:
        assert {to for (at, _), to in s.TRANSITIONS.items() if at is status} & s.TERMINAL
    assert (s.Status.PENDING, s.Move.COMPLETE) not in s.TRANSITIONS


def test_every_phase_can_reach_the_end() -> None:
    reach = {s.Phase.ENDED}
    for _ in s.Phase:
        reach |= {phase for phase, after in s.PHASES.items() if after & reach}
    assert reach == set(s.Phase)
    assert not s.PHASES[s.Phase.ENDED]


def test_a_transaction_id_is_a_uuid7_and_repeats_only_for_the_same_thing() -> None:
    one = transaction_id(s.IntentKind.ASSIGN, bytes(32), 1, 1_700_000_000_000)
    assert one[:6] == (1_700_000_000_000).to_bytes(6, "big")
    assert (one[6] >> 4, one[8] >> 6, len(one)) == (7, 2, 16)
    assert one != transaction_id(s.IntentKind.ASSIGN, bytes(32), 2, 1_700_000_000_000)
    assert one != transaction_id(s.IntentKind.REFUND, bytes(32), 1, 1_700_000_000_000)


# ---------------------------------------------------------------- queue


def test_one_customers_tasks_go_by_priority_then_deadline_then_age() -> None:
    core = Core(LEASE_MS)
    for number, (priority, deadline) in enumerate([(0, 900), (5, 900), (5, 800), (0, 900), (9, 999)], 1):
        core.step(s.Create(spec(number, priority=priority, deadline_ms=deadline)), 0)
    core.step(s.Connect(1, b"o" * 33, "a:1"), 0)
    order = [int.from_bytes(core.step(s.Ready(1, 1), 0).ledger[0].task_id, "big") for _ in range(5)]
    assert order == [5, 3, 2, 1, 4]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 9), st.booleans()), min_size=1, max_size=120))
def test_no_other_customer_is_served_more_than_twice_before_one_who_waits(steps: list[tuple[str, int, bool]]) -> None:
    """So with n customers a waiting one is passed over at most 2 (n - 1) times, whatever others push meanwhile."""
    queue, waiting, since, picks = FairQueue(), Counter(), {}, 0
    owners: dict[bytes, str] = {}
    for number, (customer, priority, pick) in enumerate(steps * 3):
        task_id = number.to_bytes(32, "big")
        queue.push(customer, (9 - priority, number), task_id)
        owners[task_id] = customer
        waiting[customer] += 1
        since.setdefault(customer, picks)
        if pick:
            found = queue.pop()
            assert found is not None
            picks += 1
            served = owners[found]
            waiting[served] -= 1
            since.pop(served)
            if waiting[served]:
                since[served] = picks
            for other, start in since.items():
                assert picks - start <= 2 * (5 - 1), (other, since)
    left = sum(waiting.values())
    assert [queue.pop() is not None for _ in range(left + 1)] == [True] * left + [False]


def test_a_customer_who_leaves_the_queue_and_rejoins_at_once_gets_no_extra_turn() -> None:
    queue = FairQueue()
    for number in range(10):
        queue.push("patient", (1, number), b"p%d" % number)
    order = []
    for number in range(10):
        queue.push("eager", (0, number), b"e%d" % number)
        order.append(queue.pop())
    assert Counter(bytes(item)[:1] for item in order if item) == {b"p": 5, b"e": 5}


def test_a_discarded_task_does_not_come_up() -> None:
    queue = FairQueue()
    queue.push("a", (1, 1), b"1")
    queue.push("a", (1, 2), b"2")
    queue.push("b", (1, 3), b"3")
    queue.discard(b"1")
    queue.discard(b"3")
    assert (queue.pop(), queue.pop(), len(queue)) == (b"2", None, 0)


# ---------------------------------------------------------------- leases


def leased(core: Core, number: int = 1, connection: int = 1, key: bytes = b"o" * 33) -> s.Effects:
    """Task `number` leased to `key` at time 0."""
    core.step(s.Create(spec(number)), 0)
    core.step(s.Connect(connection, key, "a:1"), 0)
    return answer(core, core.step(s.Ready(connection, 1), 0), 0)


def answer(core: Core, effects: s.Effects, now_ms: int, applied: bool = True) -> s.Effects:
    (call,) = effects.ledger
    return core.step(s.LedgerAnswered((s.Answer(call.task_id, call.intent.tx_id, applied, "R"),)), now_ms)


def test_a_lease_is_sent_only_after_the_ledger_knows_of_it() -> None:
    core = Core(LEASE_MS)
    core.step(s.Create(spec(1)), 0)
    core.step(s.Connect(1, b"o" * 33, "a:1"), 0)
    effects = core.step(s.Ready(1, 1), 0)
    assert [type(item) for item in effects.ledger] == [s.Submit]
    assert not effects.send
    assert effects.persist[-1].state.intent == effects.ledger[0].intent
    effects = answer(core, effects, 0)
    assert [(type(item), item.lease.epoch) for item in effects.send] == [(s.SendLease, 1)]
    assert effects.persist[-1].state.intent is None


def test_silence_releases_the_task_to_another_orchestrator_under_the_next_epoch() -> None:
    core = Core(LEASE_MS)
    leased(core)
    core.step(s.Disconnect(1), 10)
    core.step(s.Connect(2, b"p" * 33, "b:1"), 900)
    core.step(s.Ready(2, 1), 900)
    assert not core.step(s.Tick(), LEASE_MS - 1).persist
    effects = core.step(s.Tick(), LEASE_MS)
    assert [record.kind for record in effects.persist] == [s.EventKind.RELEASED, None]
    effects = answer(core, effects, LEASE_MS)
    assert (effects.send[0].connection, effects.send[0].lease.epoch) == (2, 2)


def test_a_task_goes_to_an_orchestrator_with_workers_for_it_before_one_with_more_credits() -> None:
    core = Core(LEASE_MS)
    for connection, key, types in ((1, b"o" * 33, {"noop"}), (2, b"p" * 33, {"rendering"})):
        core.step(s.Connect(connection, key, "a:1"), 0)
        core.step(s.Takes(connection, frozenset(types)), 0)
        core.step(s.Ready(connection, 8 * connection), 0)
    assert answer(core, core.step(s.Create(spec(1)), 0), 0).send[0].connection == 1
    core.step(s.Takes(1, frozenset()), 0)
    assert answer(core, core.step(s.Create(spec(2)), 0), 0).send[0].connection == 2


def test_a_task_whose_orchestrator_has_lost_its_workers_moves_to_one_that_has_some() -> None:
    core = Core(LEASE_MS)
    core.step(s.Connect(1, b"o" * 33, "a:1"), 0)
    core.step(s.Takes(1, frozenset(["noop"])), 0)
    core.step(s.Ready(1, 8), 0)
    for number in (1, 2):
        answer(core, core.step(s.Create(spec(number)), 0), 0)
    core.step(s.Takes(1, frozenset()), 100)
    assert not core.step(s.Takes(1, frozenset()), 100 + LEASE_MS).persist, "nobody else could do it"
    core.step(s.Connect(2, b"p" * 33, "b:1"), 200 + LEASE_MS)
    core.step(s.Takes(2, frozenset(["noop"])), 200 + LEASE_MS)
    core.step(s.Ready(2, 1), 200 + LEASE_MS)
    effects = core.step(s.Takes(1, frozenset()), 300 + LEASE_MS)
    assert [type(item) for item in effects.send] == [s.SendRevoke], "as many as the other has credits for"
    effects = answer(core, effects, 300 + LEASE_MS)
    assert [(item.connection, item.lease.epoch) for item in effects.send] == [(2, 2)]


def test_a_task_stays_where_workers_are_away_for_less_than_a_lease() -> None:
    core = Core(LEASE_MS)
    leased(core)
    core.step(s.Connect(2, b"p" * 33, "b:1"), 0)
    core.step(s.Takes(2, frozenset(["noop"])), 0)
    core.step(s.Ready(2, 1), 0)
    for now in range(0, 10 * LEASE_MS, LEASE_MS // 2):
        assert not core.step(s.Takes(1, frozenset(["noop"] if now % LEASE_MS else ())), now).persist


def test_a_task_that_is_done_stays_where_it_was_done_when_the_workers_leave() -> None:
    core = Core(LEASE_MS)
    leased(core)
    core.step(s.Outcomes(1, (s.OutcomeRow(spec(1).task_id, 1, True, "", bytes(32), 1, 3),)), 0)
    core.step(s.Connect(2, b"p" * 33, "b:1"), 0)
    core.step(s.Takes(2, frozenset(["noop"])), 0)
    core.step(s.Ready(2, 1), 0)
    for now in (0, LEASE_MS - 1, LEASE_MS):
        core.step(s.Heartbeat(2), now)
        assert not core.step(s.Takes(1, frozenset()), now).persist


def test_a_heartbeat_keeps_the_lease() -> None:
    core = Core(LEASE_MS)
    leased(core)
    for now in range(0, 10 * LEASE_MS, 500):
        core.step(s.Heartbeat(1), now)
        assert not core.step(s.Tick(), now).persist


def test_an_orchestrator_that_comes_back_with_its_task_keeps_the_lease() -> None:
    core = Core(LEASE_MS)
    leased(core)
    core.step(s.Disconnect(1), 10)
    task_id = spec(1).task_id
    effects = core.step(s.Connect(2, b"o" * 33, "a:1", held=((task_id, 1),)), 500)
    assert not effects.persist
    assert [(type(item), item.lease.epoch) for item in effects.send] == [(s.SendLease, 1)]
    assert not core.step(s.Tick(), 500 + LEASE_MS - 1).persist


@pytest.mark.parametrize(("held", "status"), [
    ((spec(1).task_id, 7), None), ((spec(2).task_id, 1), s.Status.EXPIRED), ((spec(3).task_id, 1), None)])
def test_what_an_orchestrator_no_longer_holds_is_revoked_at_its_hello(held: tuple[bytes, int], status: object) -> None:
    core = Core(LEASE_MS)
    leased(core)
    ended = ((spec(2).task_id, s.Status.EXPIRED), (spec(3).task_id, s.Status.COMPLETED))
    effects = core.step(s.Connect(2, b"o" * 33, "a:1", held=(held,), ended=ended), 500)
    assert s.SendRevoke(2, *held, status) in effects.send


def test_a_second_connection_of_a_key_supersedes_the_first() -> None:
    core = Core(LEASE_MS)
    leased(core)
    effects = core.step(s.Connect(2, b"o" * 33, "a:1"), 10)
    assert [item.reason for item in effects.send if isinstance(item, s.SendClose)] == ["SUPERSEDED"]
    core.step(s.Ready(1, 5), 20)  # from the dead one: nothing
    core.step(s.Create(spec(2)), 20)
    assert not core.step(s.Disconnect(1), 30).persist
    assert core.step(s.Ready(2, 1), 40).ledger


def test_an_outcome_under_an_old_epoch_changes_nothing() -> None:
    core = Core(LEASE_MS)
    leased(core)
    row = s.OutcomeRow(spec(1).task_id, 9, True, "", b"r" * 32, 1, 3)
    effects = core.step(s.Outcomes(1, (row,)), 10)
    assert (effects.persist, effects.ledger) == ([], [])
    assert effects.send == [s.SendRevoke(1, spec(1).task_id, 9, None)]


def test_a_claim_the_ledger_does_not_bear_out_costs_the_lease() -> None:
    core = Core(LEASE_MS)
    leased(core)
    row = s.OutcomeRow(spec(1).task_id, 1, True, "", b"r" * 32, 1, 3)
    assert core.step(s.Outcomes(1, (row,)), 10).ledger == [s.Inspect(spec(1).task_id, False)]
    effects = core.step(s.EscrowRead(spec(1).task_id, s.EscrowStatus.OPEN, jobs_settled=2), 20)
    assert [record.kind for record in effects.persist] == [s.EventKind.RELEASED]
    assert effects.send == [s.SendRevoke(1, spec(1).task_id, 1, None)]


def test_progress_is_told_at_once_first_and_then_at_most_every_so_often() -> None:
    core = Core(LEASE_MS)
    leased(core)
    kinds = []
    for now in range(1000, 1000 + 3 * PROGRESS_MS):
        row = s.ProgressRow(spec(1).task_id, 1, 0, now % 3 + 1, 0)
        kinds += [record.kind for record in core.step(s.Progress(1, (row,)), now).persist]
        kinds += [record.kind for record in core.step(s.Tick(), now).persist]
    assert kinds == [s.EventKind.STARTED] + [s.EventKind.PROGRESS] * 3


def test_a_ledger_that_refuses_every_assignment_is_not_asked_in_a_tight_loop() -> None:
    core = Core(LEASE_MS)
    core.step(s.Create(spec(1)), 0)
    core.step(s.Connect(1, b"o" * 33, "a:1"), 0)
    effects = core.step(s.Ready(1, 1), 0)
    asked = 0
    for now in range(0, 10_000, 10):
        core.step(s.Heartbeat(1), now)
        effects.ledger += core.step(s.Tick(), now).ledger
        calls, effects = effects.ledger, s.Effects()
        for call in calls:
            if isinstance(call, s.Submit):
                asked += 1
                event = s.LedgerAnswered((s.Answer(call.task_id, call.intent.tx_id, False, "UNAUTHORIZED"),))
            else:
                event = s.EscrowRead(call.task_id, s.EscrowStatus.OPEN)
            effects.ledger += core.step(event, now).ledger
    assert 3 <= asked <= 15


@pytest.mark.parametrize("completed", [True, False])
def test_an_orchestrator_that_does_not_hold_the_task_cannot_end_it(completed: bool) -> None:
    core = Core(LEASE_MS)
    leased(core)
    core.step(s.Connect(2, b"p" * 33, "b:1"), 0)
    row = s.OutcomeRow(spec(1).task_id, 1, completed, "", b"r" * 32, 1, 3)
    effects = core.step(s.Outcomes(2, (row,)), 10)
    assert (effects.persist, effects.ledger) == ([], [])
    progress = s.ProgressRow(spec(1).task_id, 1, 2, 1, 0)
    assert not core.step(s.Progress(2, (progress,)), 10).persist


def test_the_answer_to_a_transaction_that_a_later_one_replaced_changes_nothing() -> None:
    core = Core(LEASE_MS)
    core.step(s.Create(spec(1)), 0)
    core.step(s.Connect(1, b"o" * 33, "a:1"), 0)
    assigning = core.step(s.Ready(1, 1), 0)
    core.step(s.Cancel(spec(1).task_id), 5)
    effects = answer(core, assigning, 10)
    assert (effects.persist, effects.send, effects.ledger) == ([], [], [])
